"""POST /studies: from received files to durable rows, messages and a receipt.

Order is everything: object, then row, then commit, then message. Each step finds the one before it done.
"""

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import as_completed, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, BackgroundTasks, HTTPException, Request, Response, params
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.archives import is_archive, unpack
from api.dependencies import Parts, PartsDep, Submitter
from api.ingest import DISK, Spool, SpooledFile, SpoolFull, open_spool, receive
from api.metrics import count_files
from api.responses import FileReceipt, Outcome, Receipt, StudyReceipt
from shared.dicom import read_header
from shared.errors import BadRequest, Conflict, Rejected, TooLarge, Unavailable
from shared.image import ImageLimits
from shared.repository.access import Key
from shared.repository.intake import Known, Taken, lock_upload, look_up, take_in
from shared.repository.operations import note_refusals
from shared.repository.work import clock, sending_failed, unsent
from shared.settings import Settings
from shared.storage import original_key
from shared.study import Header, Priority, StoredFile, StudyStatus
from shared.tables import StudyRow, UploadRow

log = logging.getLogger(__name__)
router = APIRouter(tags=["upload"])
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "DICOM files and zip archives of them, as many as the limits allow",
                        },
                        "priority": {"type": "string", "enum": ["urgent", "routine"], "default": "routine"},
                    },
                }
            }
        },
    }
}
_STATUS = select(StudyRow.id, StudyRow.status)
# as STOW-RS answers: all stored, some stored, none stored (PS3.18 10.5.3)
ALL, SOME, NONE = 200, 202, 409


@router.post(
    "/studies",
    openapi_extra=BODY,
    responses={
        ALL: {"description": "every file is stored, or was before"},
        SOME: {"model": Receipt, "description": "some files were rejected; the receipt says which and why"},
        NONE: {"model": Receipt, "description": "every file was rejected"},
    },
)
async def upload(
    request: Request,
    response: Response,
    parts: PartsDep,
    key: Submitter,
    later: BackgroundTasks,
    idempotency_key: Annotated[str | None, params.Header(max_length=128)] = None,
) -> Receipt:
    """Take many DICOM files and zip archives in at once; answer for each what became of it.

    Send it again after any error: what is stored already is a duplicate and costs nothing. With the same
    Idempotency-Key and the same content the first receipt comes back as it was, also to a request sent meanwhile.
    """
    settings = parts.settings
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > settings.max_request_bytes:
        raise HTTPException(413, f"At most {settings.max_request_bytes} bytes a request; split it into several")
    with open_spool(settings.spool_dir, own_files=parts.store.takes_files) as spool:
        files, fields = await receive(
            request.stream(),
            request.headers.get("content-type", ""),
            spool,
            settings.max_request_bytes,
            settings.max_request_files,
        )
        if not files:
            raise BadRequest("The request holds no file; send each file in a part with a file name")
        priority = _priority(fields.get("priority", Priority.ROUTINE))
        taking = Taking(parts, key, spool, priority)
        receipt, replayed = await run_in_threadpool(taking.run, files, idempotency_key)
    response.status_code = SOME if receipt.rejected else ALL
    if not receipt.stored and not receipt.duplicate:
        response.status_code = NONE
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    else:
        # once the receipt is on its way: what is stored is stored, whatever the broker does
        later.add_task(ring, parts, [study.id for study in receipt.studies])
        later.add_task(note, parts, key.site_id, receipt.files)
    return receipt


def _priority(text: str) -> Priority:
    if text not in (Priority.URGENT, Priority.ROUTINE):
        raise BadRequest("priority must be urgent or routine")
    return Priority(text)


def header_limits(settings: Settings) -> ImageLimits:
    """The part of the settings that headers are held to."""
    return ImageLimits(
        max_header_bytes=settings.max_header_bytes,
        max_frame_pixels=settings.max_frame_pixels,
        max_frames=settings.max_frames,
        max_decoded_bytes=settings.max_decoded_bytes,
    )


@dataclass
class Taking:
    """The taking in of one request's files."""

    parts: Parts
    key: Key
    spool: Spool
    priority: Priority

    def run(self, files: list[SpooledFile], idempotency_key: str | None) -> tuple[Receipt, bool]:
        """Returns the receipt, and whether it is that of an earlier request. Raises Unavailable, BadRequest."""
        content = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest() + self.priority[0]
        content = hashlib.sha256(content.encode()).hexdigest()
        if idempotency_key:
            with self.parts.database.transaction() as session:
                earlier = self._earlier(session, idempotency_key, content)
            if earlier:
                return earlier, True
        lines: list[FileReceipt] = []
        sound: dict[int, tuple[SpooledFile, Header]] = {}  # by index in lines
        for file, why in self._members(files):
            name = file if isinstance(file, str) else file.name
            lines.append(FileReceipt(file=name, outcome=Outcome.STORED))  # filled in when its row is written
            try:
                if why is not None:
                    raise why
                assert isinstance(file, SpooledFile)
                sound[len(lines) - 1] = file, self._header(file)
            except Rejected as reason:
                lines[-1] = _rejected(name, reason)
        stored = self._keep(lines, sound)
        return self._commit(lines, stored, idempotency_key, content)

    def _members(self, files: list[SpooledFile]) -> Iterator[tuple[SpooledFile | str, Rejected | None]]:
        """All files, those within archives too; the limits hold for all archives together."""
        settings = self.parts.settings
        archives = {file for file in files if is_archive(self.spool, file)}
        files_left = settings.max_request_files - (len(files) - len(archives))
        start = self.spool.end
        for file in files:
            if file not in archives:
                yield file, None
                continue
            try:
                bytes_left = settings.max_request_bytes - (self.spool.end - start)
                for member in unpack(self.spool, file, files_left, bytes_left, settings.max_archive_ratio):
                    files_left -= 1
                    yield member if isinstance(member, tuple) else (member, None)
            except Rejected as why:
                yield file, why

    def _header(self, file: SpooledFile) -> Header:
        """Read and check one file's header. Raises Rejected."""
        settings = self.parts.settings
        if file.size_bytes > settings.max_file_bytes:
            raise TooLarge(f"The file has {file.size_bytes} bytes; at most {settings.max_file_bytes} are taken")
        with self.spool.open(file) as reader:
            return read_header(reader, file.size_bytes, header_limits(settings))

    def _keep(self, lines: list[FileReceipt], sound: dict[int, tuple[SpooledFile, Header]]) -> dict[int, StoredFile]:
        """Make the bytes of all new files durable, and return those; the lines of the others are filled in."""
        with self.parts.database.transaction() as session:
            known = look_up(session, self.key.site_id, [header.sop_instance_uid for _, header in sound.values()])
        stored: dict[int, StoredFile] = {}
        here: dict[str, str] = {}  # SHA-256 of this request's instances by their UIDs
        to_put: dict[str, SpooledFile] = {}  # by SHA-256
        for index, (file, header) in sound.items():
            uid = header.sop_instance_uid
            if uid in known:
                taken = known[uid].compared(file.sha256)
                lines[index] = _line(file.name, taken, uid)
                # a row whose object was lost is mended by sending the file again
                if taken.known is Known.DUPLICATE and not self.parts.store.exists(original_key(file.sha256)):
                    to_put[file.sha256] = file
            elif here.setdefault(uid, file.sha256) != file.sha256:
                why = Conflict("This request holds another file with the same SOP Instance UID; the first one is taken")
                lines[index] = _rejected(file.name, why)
            else:
                stored[index] = StoredFile(file.sha256, file.size_bytes, header)
                to_put[file.sha256] = file
        putting = [DISK.submit(self._put, file) for file in to_put.values()]
        try:
            for each in as_completed(putting):
                each.result()
        finally:  # none may read the spool once it is closed
            for each in putting:
                each.cancel()
            wait(putting)
        return stored

    def _put(self, file: SpooledFile) -> None:
        """Make one file durable under its name. Raises StoreUnavailable."""
        store, key = self.parts.store, original_key(file.sha256)
        if file.own is not None:
            try:
                descriptor = file.own.wait()
            except OSError as wrong:
                raise SpoolFull from wrong
            if store.adopt(key, descriptor):
                return
        with self.spool.open(file) as reader:
            store.put(key, reader, file.size_bytes)

    def _commit(
        self, lines: list[FileReceipt], stored: dict[int, StoredFile], idempotency_key: str | None, content: str
    ) -> tuple[Receipt, bool]:
        """Rows and receipt in one transaction; messages after it. As `run`."""
        new = {line.study_id: 0 for line in lines if line.study_id}
        with self.parts.database.transaction() as session:
            if idempotency_key:
                # two at once: the second waits for the first one's commit, and answers what that one answered
                lock_upload(session, self.key.site_id, idempotency_key)
                earlier = self._earlier(session, idempotency_key, content)
                if earlier:
                    return earlier, True
            taken = take_in(
                session,
                self.parts.vault,
                self.key.site_id,
                self.priority,
                list(stored.values()),
                clock(session),  # as a lease is: a host whose clock is wrong must not strand its studies
                list(new),
                timedelta(seconds=self.parts.settings.settle_s),
            )
            for (index, file), outcome in zip(stored.items(), taken, strict=True):
                lines[index] = _line(lines[index].file, outcome, file.header.sop_instance_uid)
                if outcome.known is not Known.CONFLICT:
                    new[outcome.study_id] = new.get(outcome.study_id, 0) + (outcome.known is Known.NEW)
            receipt = _receipt(session, lines, new)
            if idempotency_key:
                self._remember(session, idempotency_key, content, receipt)
        log.info(
            "upload", extra={"stored": receipt.stored, "duplicate": receipt.duplicate, "rejected": receipt.rejected}
        )
        return receipt, False

    def _earlier(self, session: Session, idempotency_key: str, content: str) -> Receipt | None:
        row = session.get(UploadRow, (self.key.site_id, idempotency_key))
        if row is None:
            return None
        if row.content_sha256 != content:
            raise HTTPException(422, "This Idempotency-Key came before with other content; use a new one")
        return Receipt.model_validate(self.parts.vault.open(row.receipt))

    def _remember(self, session: Session, idempotency_key: str, content: str, receipt: Receipt) -> None:
        values: dict[str, Any] = {
            "site_id": self.key.site_id,
            "idempotency_key": idempotency_key,
            "content_sha256": content,
            "receipt": self.parts.vault.seal(receipt.model_dump(mode="json")),
        }
        session.execute(insert(UploadRow).values(values).on_conflict_do_nothing())


def note(parts: Parts, site_id: UUID, lines: list[FileReceipt]) -> None:
    """Count the files of a request, and keep why some were refused; names stay in the receipt. Fails no upload."""
    for line in lines:
        count_files(line.outcome, line.reason)
    refused = [
        (line.reason or "", line.failure or "", line.text or "") for line in lines if line.outcome is Outcome.REJECTED
    ]
    try:
        if refused:
            with parts.database.transaction() as session:
                note_refusals(session, site_id, refused)
    except Unavailable:
        log.warning("refusals not noted: Postgres does not answer", extra={"files": len(refused)})
    except Exception:
        log.exception("refusals not noted")


def ring(parts: Parts, study_ids: list[UUID]) -> None:
    """A broker that is down does not fail an upload: what is not sent now, the reconciler sends."""
    try:
        with parts.database.transaction() as session:
            to_send = unsent(session, study_ids, clock(session))
        failed = parts.doorbell.ring(to_send)
        if failed:
            log.warning("broker did not take messages", extra={"studies": len(failed)})
            with parts.database.transaction() as session:
                sending_failed(session, failed)
    except Unavailable:
        log.warning("messages left to the reconciler", extra={"studies": len(study_ids)})


def _line(name: str, taken: Taken, sop_instance_uid: str | None) -> FileReceipt:
    if taken.known is Known.CONFLICT:
        return _rejected(name, Conflict())
    outcome = Outcome.STORED if taken.known is Known.NEW else Outcome.DUPLICATE
    return FileReceipt(file=name, outcome=outcome, study_id=taken.study_id, sop_instance_uid=sop_instance_uid)


def _rejected(name: str, why: Rejected) -> FileReceipt:
    return FileReceipt(
        file=name, outcome=Outcome.REJECTED, reason=why.reason, failure=f"0x{why.failure:04X}", text=str(why)
    )


def _receipt(session: Session, lines: list[FileReceipt], new: dict[UUID, int]) -> Receipt:
    count = {outcome: sum(line.outcome is outcome for line in lines) for outcome in Outcome}
    statuses = {row.id: row.status for row in session.execute(_STATUS.where(StudyRow.id.in_(new)))}
    studies = [
        StudyReceipt(id=study_id, url=f"/studies/{study_id}", status=StudyStatus(statuses[study_id]), new_images=images)
        for study_id, images in new.items()
    ]
    return Receipt(
        stored=count[Outcome.STORED],
        duplicate=count[Outcome.DUPLICATE],
        rejected=count[Outcome.REJECTED],
        files=lines,
        studies=studies,
    )
