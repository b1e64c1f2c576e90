"""POST /studies: from received files to durable rows, messages and a receipt.

Order is everything: object, then row, then commit, then message. Each step finds the one before it done.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from concurrent.futures import as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from shared.comparison import MOST_BYTES, Verdict, compare
from shared.dicom import read_header
from shared.errors import BadRequest, ObjectMissing, Rejected, TooLarge, Unavailable
from shared.held import Kind, State
from shared.image import ImageLimits
from shared.media import PassedBy, passed_by
from shared.repository.access import Key
from shared.repository.held import known_files, routed
from shared.repository.intake import Known, Standing, Taken, lock_upload, look_up, take_in
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
COMPARED_FOR_S = 20.0  # of a request; a worker compares the rest
KINDS = {
    Verdict.SAME: None,
    Verdict.HEADER: Kind.CORRECTION,
    Verdict.PIXELS: Kind.PIXELS,
    Verdict.UNKNOWN: Kind.COMPARING,
}
HELD = {  # outcome, reason and words of a file that waits for a decision
    Kind.PATIENT: (
        Outcome.CONFLICT,
        "other-patient",
        (
            "Stored as a conflict: under its Study Instance UID is another patient's study. It is not analysed until "
            "an administrator has decided; there is no need to send it again"
        ),
    ),
    Kind.PIXELS: (
        Outcome.CONFLICT,
        "other-image",
        (
            "Stored as a conflict: its SOP Instance UID is that of another stored image. It is not analysed until an "
            "administrator has decided; there is no need to send it again"
        ),
    ),
    Kind.CORRECTION: (
        Outcome.CORRECTION,
        "other-header",
        (
            "Stored as a correction: the image is here already, with another header. It counts once an administrator "
            "has applied it; there is no need to send it again"
        ),
    ),
    Kind.COMPARING: (
        Outcome.COMPARING,
        "to-be-compared",
        (
            "Stored: an image with its SOP Instance UID is here already. A worker compares both and tells the "
            "administrator what it is; there is no need to send it again"
        ),
    ),
}
DECIDED = {  # words of a file that was held and is sent again
    State.ANOTHER_STUDY: "An administrator has made it an image of a study of its own",
    State.SAME_PATIENT: "An administrator has made it an image of this study",
    State.APPLIED: "An administrator has applied it as a correction",
    State.REJECTED: "An administrator has rejected it, with a reason; it is stored and not analysed",
    State.DUPLICATE: "It holds the same image as the one that is stored",
}
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
    if receipt.rejected == len(receipt.files):
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
class Keeping:
    """What of a request gets rows, once its bytes are durable."""

    files: dict[int, StoredFile] = field(default_factory=dict)  # by their number
    kinds: dict[str, Kind | None] = field(default_factory=dict)  # as take_in has them, by SHA-256
    trusted: set[str] = field(default_factory=set)


class Comparing:
    """Tells what a file is whose SOP Instance UID is an image's already; what takes too long is left to a worker."""

    def __init__(self, parts: Parts, spool: Spool) -> None:
        self.parts, self.spool = parts, spool
        self._spent_s = 0.0

    def with_stored(self, file: SpooledFile, standing: Standing) -> Kind | None:
        """Compare with a stored image: why the file is to be held, None if it is the same. Raises StoreUnavailable."""
        if self._spent_s > COMPARED_FOR_S or max(file.size_bytes, standing.size_bytes) > MOST_BYTES:
            return Kind.COMPARING
        with self._measured():
            try:
                return self._kind(self.parts.store.get(original_key(standing.current)), file)
            except ObjectMissing:
                return Kind.COMPARING

    def with_spooled(self, file: SpooledFile, first: SpooledFile) -> Kind | None:
        """Compare with another file of the same request."""
        if self._spent_s > COMPARED_FOR_S or max(file.size_bytes, first.size_bytes) > MOST_BYTES:
            return Kind.COMPARING
        with self._measured(), self.spool.open(first) as reader:
            return self._kind(reader.read(), file)

    def _kind(self, there: bytes, file: SpooledFile) -> Kind | None:
        with self.spool.open(file) as reader:
            return KINDS[compare(there, reader.read(), header_limits(self.parts.settings))]

    @contextmanager
    def _measured(self) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent_s += time.monotonic() - start


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
        top = set(files)
        for file, why in self._members(files):
            name = file if isinstance(file, str) else file.name
            lines.append(FileReceipt(file=name, outcome=Outcome.STORED))  # filled in when its row is written
            try:
                if why is not None:
                    raise why
                assert isinstance(file, SpooledFile)
                sound[len(lines) - 1] = file, self._header(file)
            except Rejected as reason:
                lines[-1] = self._passed_by(file, inside=file not in top) or _rejected(name, reason)
        keeping = self._keep(lines, sound)
        return self._commit(lines, keeping, idempotency_key, content)

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
            header = read_header(reader, file.size_bytes, header_limits(settings))
        identity = header.identity
        if identity.issuer or not identity.patient_id:
            return header
        issuer = self.key.issuer or settings.patient_id_issuer
        return replace(header, identity=replace(identity, issuer=issuer))

    def _passed_by(self, file: SpooledFile | str, *, inside: bool) -> FileReceipt | None:
        """The line of a file that was not accepted but is no failure; inside: it came in an archive."""
        if isinstance(file, str):
            return None
        with self.spool.open(file) as reader:
            why = passed_by(reader, file.size_bytes, file.name, header_limits(self.parts.settings))
        if why is None or (why is not PassedBy.DIRECTORY and not inside):  # what was sent by itself is answered for
            return None
        return FileReceipt(file=file.name, outcome=Outcome.SKIPPED, reason=why, text=why.words)

    def _keep(self, lines: list[FileReceipt], sound: dict[int, tuple[SpooledFile, Header]]) -> "Keeping":
        """Make the bytes of all files that are new durable, and return those; the lines of the others are filled in."""
        vault, site_id = self.parts.vault, self.key.site_id
        with self.parts.database.transaction() as session:
            known = look_up(session, site_id, [header.sop_instance_uid for _, header in sound.values()])
            held = known_files(session, site_id, [file.sha256 for file, _ in sound.values()])
            routes = routed(session, vault, site_id, {index: header for index, (_, header) in sound.items()})
        keeping = Keeping()
        comparing = Comparing(self.parts, self.spool)
        here: dict[str, SpooledFile] = {}  # this request's instances by their UIDs
        to_put: dict[str, SpooledFile] = {}  # by SHA-256
        for index, (file, read) in sound.items():
            header = routes.headers.get(index, read)
            uid = header.sop_instance_uid
            if file.sha256 in held:
                lines[index] = _line(file.name, Taken(Known.HELD, held[file.sha256].study_id, held[file.sha256]), uid)
                continue
            if uid in known:
                taken = known[uid].compared(file.sha256)
                if taken.known is Known.DUPLICATE:
                    lines[index] = _line(file.name, taken, uid)
                    # a row whose object was lost is mended by sending the file again
                    if not self.parts.store.exists(original_key(file.sha256)):
                        to_put[file.sha256] = file
                    continue
                keeping.kinds[file.sha256] = comparing.with_stored(file, known[uid])
            elif (first := here.setdefault(uid, file)).sha256 != file.sha256:
                keeping.kinds[file.sha256] = comparing.with_spooled(file, first)
            if index in routes.trusted:
                keeping.trusted.add(file.sha256)
            keeping.files[index] = StoredFile(file.sha256, file.size_bytes, header)
            to_put[file.sha256] = file
        putting = [DISK.submit(self._put, file) for file in to_put.values()]
        try:
            for each in as_completed(putting):
                each.result()
        finally:  # none may read the spool once it is closed
            for each in putting:
                each.cancel()
            wait(putting)
        return keeping

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
        self, lines: list[FileReceipt], keeping: "Keeping", idempotency_key: str | None, content: str
    ) -> tuple[Receipt, bool]:
        """Rows and receipt in one transaction; messages after it. As `run`."""
        stored = keeping.files
        # a held file is of no study, and a correction brings none to the front
        new = {line.study_id: 0 for line in lines if line.study_id and line.outcome is Outcome.DUPLICATE}
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
                keeping.kinds,
                keeping.trusted,
            )
            for (index, file), outcome in zip(stored.items(), taken, strict=True):
                lines[index] = _line(lines[index].file, outcome, file.header.sop_instance_uid)
                if outcome.known is not Known.HELD:
                    new[outcome.study_id] = new.get(outcome.study_id, 0) + (outcome.known is Known.NEW)
            receipt = _receipt(session, lines, new)
            if idempotency_key:
                self._remember(session, idempotency_key, content, receipt)
        log.info("upload", extra={outcome.value: getattr(receipt, outcome.value) for outcome in Outcome})
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
    held = taken.held
    if taken.known is not Known.HELD or held is None:
        outcome = Outcome.STORED if taken.known is Known.NEW else Outcome.DUPLICATE
        return FileReceipt(file=name, outcome=outcome, study_id=taken.study_id, sop_instance_uid=sop_instance_uid)
    if held.state is not State.OPEN:
        # of another study, the one that it was given; who sends it again has nothing more to do
        study_id = held.new_study_id or (None if held.state is State.REJECTED else held.study_id)
        return FileReceipt(
            file=name, outcome=Outcome.DUPLICATE, reason=held.state, text=DECIDED[held.state], study_id=study_id,
            sop_instance_uid=sop_instance_uid,
        )  # fmt: skip
    outcome, reason, text = HELD[held.kind]
    # whose study a conflict came for is not told: it is another patient's
    study_id = held.study_id if held.kind is Kind.CORRECTION else None
    return FileReceipt(
        file=name, outcome=outcome, reason=reason, text=text, study_id=study_id, sop_instance_uid=sop_instance_uid
    )


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
        conflict=count[Outcome.CONFLICT],
        correction=count[Outcome.CORRECTION],
        comparing=count[Outcome.COMPARING],
        skipped=count[Outcome.SKIPPED],
        files=lines,
        studies=studies,
    )
