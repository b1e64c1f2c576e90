"""STOW-RS: instances in a multipart/related body. The same intake as POST /api/v1/studies, with another response.

Source: PS3.18 10.5.
"""

from typing import Annotated, Any

from fastapi import BackgroundTasks, Request, Response, params

from api.dependencies import Parts, PartsDep, Submitter
from api.dicomweb.addresses import DICOMWEB, StudyUID, base_url
from api.dicomweb.bodies import receive_instances
from api.dicomweb.datasets import DATA_SET, data_set_response
from api.dicomweb.store_response import ALL, NONE, SOME, Part, status_of, store_instances_response
from api.intake.receipts import record_outcomes, rejection_line
from api.intake.requests import follow_up, take_files
from api.media_types import DICOM, JSON, MULTIPART, XML, choose
from api.requests import Router
from api.schemas import FileReceipt
from api.spool import Spool, SpooledFile
from shared.archives import starts_as_archive
from shared.dicom.identifiers import Identifiers, identifiers
from shared.domain.study import Priority
from shared.errors import BadArchive, BadAttributes, Rejected
from shared.queries.access import Key

router = Router(prefix=DICOMWEB, tags=["dicomweb"])
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            MULTIPART: {
                "schema": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 5000,
                    "items": {"type": "string", "format": "binary"},
                    "description": "DICOM instances, each a part of type application/dicom",
                }
            },
            DICOM: {"schema": {"type": "string", "format": "binary", "description": "one DICOM instance"}},
        },
    }
}
_KINDS: dict[str, Any] = {kind: {"schema": DATA_SET} for kind in (*JSON, *XML)}
RESPONSES: dict[int | str, dict[str, Any]] = {
    ALL: {
        "content": _KINDS,
        "description": "every instance is stored, or was before: a Store Instances Response Module (PS3.18 I)",
    },
    SOME: {"content": _KINDS, "description": "some instances failed: FailedSOPSequence says which and why"},
    NONE: {"content": _KINDS, "description": "every instance failed"},
    406: {"description": "the header Accept allows neither JSON nor XML"},
}
IdempotencyKey = Annotated[
    str | None,
    params.Header(max_length=128, description="of your choice; the same key and content get the same response"),
]


class AnotherStudy(BadAttributes):
    """The instance belongs to another study than the one in the address."""

    failure = 0xA901  # our own within A9xx
    hint = "Send it to /dicom-web/studies, or to the address of its study."


class NoInstance(BadArchive):
    """The part is an archive."""

    hint = "Send each file in a part of its own, or the archive to POST /api/v1/studies."


class _NothingToTake(Exception):
    """No part of a request can be taken."""


@router.post("/studies", openapi_extra=BODY, responses=RESPONSES, response_class=Response)
async def store(
    request: Request, parts: PartsDep, key: Submitter, later: BackgroundTasks, idempotency_key: IdempotencyKey = None
) -> Response:
    """Store instances of any studies (STOW-RS). The response names each as stored or as failed, with the reason.

    Send the request again after any error: what is stored already is a duplicate, and counts as stored.
    """
    return await _StoreRequest(request, parts, key, later).run(None, idempotency_key)


@router.post("/studies/{study}", openapi_extra=BODY, responses=RESPONSES, response_class=Response)
async def store_in_study(
    request: Request,
    parts: PartsDep,
    key: Submitter,
    later: BackgroundTasks,
    study: StudyUID,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Store instances of one study (STOW-RS). Those of another study fail with A901."""
    return await _StoreRequest(request, parts, key, later).run(study, idempotency_key)


class _StoreRequest:
    """One request: its parts, and what became of each."""

    def __init__(self, request: Request, parts: Parts, key: Key, later: BackgroundTasks) -> None:
        self.request, self.parts, self.key, self.later = request, parts, key, later
        self.uids: list[Identifiers] = []
        self.refused: dict[int, FileReceipt] = {}  # before they reach the intake, by their index

    async def run(self, study: str | None, idempotency_key: str | None) -> Response:
        """Take the instances in. study: UID of the only study that they may belong to; None: any."""
        kind = choose(self.request, [*JSON, *XML])

        async def read(spool: Spool) -> tuple[list[SpooledFile], str]:
            settings = self.parts.settings
            files = await receive_instances(
                self.request.stream(),
                self.request.headers.get("content-type", ""),
                spool,
                settings.max_request_bytes,
                settings.max_request_files,
                self.parts.uploads,
            )
            taken = await self.parts.uploads.work(self._sort, spool, files, study)
            if not taken:
                raise _NothingToTake
            return taken, Priority.ROUTINE

        replayed = False
        try:
            receipt, replayed = await take_files(self.request, self.parts, self.key, read, idempotency_key)
            lines = iter(receipt.files)
            if not replayed:
                follow_up(self.later, self.parts, self.key, receipt)
        except _NothingToTake:
            lines = iter(())
        if self.refused and not replayed:
            refused = list(self.refused.values())
            self.later.add_task(self.parts.uploads.work, record_outcomes, self.parts, self.key.site_id, refused)
        whole = [Part(uids, self.refused.get(index) or next(lines)) for index, uids in enumerate(self.uids)]
        response = data_set_response(store_instances_response(whole, base_url(self.request)), kind, status_of(whole))
        if replayed:
            response.headers["Idempotent-Replayed"] = "true"
        return response

    def _sort(self, spool: Spool, files: list[SpooledFile], study: str | None) -> list[SpooledFile]:
        """Note the UIDs of all parts; return those that the intake decides on."""
        taken = []
        for index, file in enumerate(files):
            with spool.open(file) as reader:
                uids = identifiers(reader)
            self.uids.append(uids)
            why = _uid_refusal(file, uids, study)
            if why is None:
                taken.append(file)
            else:
                self.refused[index] = rejection_line(file.name, why)
        return taken


def _uid_refusal(file: SpooledFile, uids: Identifiers, study: str | None) -> Rejected | None:
    if starts_as_archive(file.start):  # what it holds could not be answered for part by part
        return NoInstance()
    if study is not None and uids.study_instance_uid not in ("", study):
        return AnotherStudy(detail="StudyInstanceUID")
    return None
