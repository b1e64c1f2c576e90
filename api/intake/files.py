"""From received files to durable rows and a receipt.

The order is essential: object, then row, then commit, then message. Each step relies on the one before it.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, as_completed, wait
from dataclasses import dataclass, field, replace
from datetime import timedelta

from sqlalchemy.orm import Session

from api.backends import Backends
from api.intake.archives import unpack_archive
from api.intake.charges import quotas_from_settings
from api.intake.comparison import FileComparison
from api.intake.receipts import receipt_line, receipt_of, rejection_line
from api.schemas import FileReceipt, Outcome, Receipt
from api.spool import DISK, Spool, SpooledFile, SpoolFull
from shared.archives import starts_as_archive
from shared.db.clock import db_now
from shared.dicom.header import Inflation, read_header
from shared.dicom.image import ImageLimits
from shared.dicom.media import SkippedFileKind, why_skipped
from shared.domain.held import HeldKind
from shared.domain.study import Header, Priority, StoredFile, StoredOnly
from shared.errors import BadRequest, KindRefused, Rejected, TooLarge, Unavailable
from shared.logs import get_logger
from shared.queries import deletions, quotas, refused_kinds, studies
from shared.queries.access import Key
from shared.queries.held import HeldBefore, HeldFile, held_before
from shared.queries.intake import (
    ExistingInstance,
    IntakeResult,
    IntakeState,
    find_existing,
    find_receipt,
    lock_upload,
    save_receipt,
    take_in,
)
from shared.storage import original_key

log = get_logger(__name__)
PUT_BATCH_FILES = 25  # files that are looked up, and begun to be put, together
LOCK_WAIT_S = 0.1  # how long an intake holds a connection while it waits for a study that another transaction holds


class IdempotencyKeyReused(BadRequest):
    """This Idempotency-Key came before with other content; use a new one."""


@dataclass
class FilesToStore:
    """The files of a request that get rows, once their bytes are durable."""

    files: dict[int, StoredFile] = field(default_factory=dict)  # by their number
    kinds: dict[str, HeldKind | None] = field(default_factory=dict)  # as take_in has them, by SHA-256
    trusted: set[str] = field(default_factory=set)
    # different files of each SOP Instance UID by their numbers, in the order in which they came
    variants: dict[str, dict[int, SpooledFile]] = field(default_factory=dict)
    repeats: dict[int, int] = field(default_factory=dict)  # which file is an earlier one in another encoding
    put_digests: set[str] = field(default_factory=set)  # what is on its way to the store, by SHA-256
    put_futures: list[Future[None]] = field(default_factory=list)
    spooled: dict[str, SpooledFile] = field(default_factory=dict)  # by SHA-256


@dataclass
class Intake:
    """Takes in the files of one request."""

    backends: Backends
    sender: Key
    spool: Spool
    priority: Priority
    check: Callable[[SpooledFile, Header], None] = lambda _file, _header: None  # raises Rejected for what is not wanted
    # what belongs into the transaction of the rows; it may run more than once
    note: Callable[[Session, list[FileReceipt]], None] = lambda _session, _lines: None
    # charges for the files, once, in the transaction that looks the first of them up; None: they are charged already
    charge: Callable[[Session], None] | None = None
    charged: bool = False  # by that
    summed_up: bool = True  # whether the receipt says where its studies stand; if not it names none
    refused: Collection[StoredOnly] | None = None  # kinds; None: not looked up yet
    # what is stored and has no rows yet
    stored_request: tuple[list[FileReceipt], FilesToStore, str | None, str] | None = None

    def __post_init__(self) -> None:
        self.comparing = FileComparison(self.backends, self.spool)
        self.inflation = Inflation(self.backends.settings.max_inflated_bytes, self.backends.settings.max_archive_ratio)

    def run(self, files: list[SpooledFile], idempotency_key: str | None) -> tuple[Receipt, bool]:
        """Store the files of the request, then write their rows.

        Args:
            files: of the request.
            idempotency_key: of the request; None: it has none.

        Returns:
            The receipt, and whether it is that of an earlier request.

        Raises:
            Unavailable: the database or the store does not answer.
            BadRequest: the request cannot be used.
        """
        content = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest() + self.priority[0]
        content = hashlib.sha256(content.encode()).hexdigest()
        if idempotency_key:
            with self.backends.database.transaction() as session:
                earlier = self._earlier_receipt(session, idempotency_key, content)
            if earlier:
                return earlier, True
        lines: list[FileReceipt] = []
        to_store = FilesToStore()
        # archives first: nothing is put into the store before all of the request has found room in the spool
        members = list(self._unpacked(files))
        top = set(files)
        group: dict[int, tuple[SpooledFile, Header]] = {}  # accepted files, by index in lines
        try:
            for file, why in members:
                name = file if isinstance(file, str) else file.name
                lines.append(FileReceipt(file=name, outcome=Outcome.STORED))  # filled in when its row is written
                try:
                    if why is not None:
                        raise why
                    assert isinstance(file, SpooledFile)
                    group[len(lines) - 1] = file, self._checked_header(file)
                except Rejected as reason:
                    lines[-1] = self._skipped_line(file, inside=file not in top) or rejection_line(name, reason)
                if len(group) >= PUT_BATCH_FILES:  # these go to the store while the next headers are read
                    self._begin_to_store(lines, group, to_store)
                    group = {}
            self._begin_to_store(lines, group, to_store)
            if self.charge is not None and not self.charged:  # no file was accepted
                with self.backends.database.transaction() as session:
                    self.charge(session)
                self.charged = True
            for each in as_completed(to_store.put_futures):
                each.result()
        finally:  # none may read the spool once it is closed
            for each in to_store.put_futures:
                each.cancel()
            wait(to_store.put_futures)
        self.stored_request = lines, to_store, idempotency_key, content
        return self.commit()

    def commit(self) -> tuple[Receipt, bool]:
        """Write the rows of what `run` has stored; as `run`. It may be called again after it raised Locked."""
        assert self.stored_request is not None
        lines, to_store, idempotency_key, content = self.stored_request
        return self._write_rows(list(lines), to_store, idempotency_key, content)

    def _unpacked(self, files: list[SpooledFile]) -> Iterator[tuple[SpooledFile | str, Rejected | None]]:
        """All files, those within archives too; the limits hold for all archives together."""
        settings = self.backends.settings
        archives = {file for file in files if starts_as_archive(file.start)}
        files_left = settings.max_request_files - (len(files) - len(archives))
        start = self.spool.end
        for file in files:
            if file not in archives:
                yield file, None
                continue
            try:
                bytes_left = min(settings.max_request_bytes - (self.spool.end - start), self.inflation.bytes_left)
                for member in unpack_archive(self.spool, file, files_left, bytes_left, settings.max_archive_ratio):
                    files_left -= 1
                    if isinstance(member, tuple):
                        yield member
                        continue
                    self.inflation.bytes_left -= member.size_bytes
                    yield member, None
            except Rejected as error:
                yield file, error

    def _checked_header(self, file: SpooledFile) -> Header:
        """Read and check one file's header. Raises Rejected."""
        settings = self.backends.settings
        if file.size_bytes > settings.max_file_bytes:
            text = f"The file has {file.size_bytes} bytes; at most {settings.max_file_bytes} are taken"
            raise TooLarge(text, f"{file.size_bytes} bytes")
        with self.spool.open(file) as reader:
            header = read_header(reader, file.size_bytes, ImageLimits.of(settings), self.inflation)
        self.check(file, header)
        if header.kept is not None and header.kept in self._refused():
            raise KindRefused(f"Objects of the kind {header.kept} are refused here", header.kept)
        identity = header.identity
        if identity.issuer or not identity.patient_id:
            return header
        issuer = self.sender.issuer or settings.patient_id_issuer
        return replace(header, identity=replace(identity, issuer=issuer))

    def _refused(self) -> Collection[StoredOnly]:
        """The kinds that the site refuses; looked up once, for the first object that is not analysed."""
        if self.refused is None:
            with self.backends.database.transaction() as session:
                own = refused_kinds.chosen(session, self.sender.site_id)
            self.refused = refused_kinds.of_setting(self.backends.settings.refused_kinds) if own is None else own
        return self.refused

    def _skipped_line(self, file: SpooledFile | str, *, inside: bool) -> FileReceipt | None:
        """The line of a file that was not accepted but is no failure; inside: it came in an archive."""
        if isinstance(file, str):
            return None
        with self.spool.open(file) as reader:
            why = why_skipped(reader, file.size_bytes, file.name, ImageLimits.of(self.backends.settings))
        if why is None or (
            why is not SkippedFileKind.DIRECTORY and not inside
        ):  # what was sent by itself is answered for
            return None
        return FileReceipt(file=file.name, outcome=Outcome.SKIPPED, reason=why, text=why.words)

    def _begin_to_store(
        self, lines: list[FileReceipt], accepted: dict[int, tuple[SpooledFile, Header]], to_store: FilesToStore
    ) -> None:
        """Begin to make the bytes of files that are new durable; the lines of the others are filled in."""
        if not accepted:
            return
        vault, site_id = self.backends.vault, self.sender.site_id
        with self.backends.database.transaction() as session:
            existing_of_uid = find_existing(
                session, site_id, [header.sop_instance_uid for _, header in accepted.values()]
            )
            headers = {index: header for index, (_, header) in accepted.items()}
            sha256s, its_studies = (
                {file.sha256 for file, _ in accepted.values()},
                {one.study_id for one in existing_of_uid.values()},
            )
            before = held_before(session, vault, site_id, headers, sha256s, its_studies)
            if self.charge is not None and not self.charged:  # last, for it keeps other senders of the site waiting
                self.charge(session)
        self.charged = self.charge is not None
        to_put: dict[str, SpooledFile] = {}  # by SHA-256
        for index, (file, read) in accepted.items():
            header = before.decisions.headers.get(index, read)
            uid = header.sop_instance_uid
            existing = existing_of_uid.get(uid)
            result = _same_bytes(file, existing, before)
            if result is None:
                result = self._held_duplicate(index, file, existing, before.alike.get(uid, ()), to_store, uid)
            if result is not None:
                lines[index] = receipt_line(file.name, result, uid)
                # a row whose object was lost is mended by sending the file again
                if result.known is IntakeState.DUPLICATE and not self.backends.store.exists(original_key(file.sha256)):
                    to_put[file.sha256] = file
                continue
            if index in to_store.repeats:
                continue
            if index in before.decisions.trusted:
                to_store.trusted.add(file.sha256)
            to_store.files[index] = StoredFile(file.sha256, file.size_bytes, header)
            to_store.spooled[file.sha256] = file
            to_put[file.sha256] = file
        self._begin_to_put(to_put, to_store)

    def _held_duplicate(
        self,
        index: int,
        file: SpooledFile,
        existing: ExistingInstance | None,
        alike: Sequence[HeldFile],
        to_store: FilesToStore,
        uid: str,
    ) -> IntakeResult | None:
        """What became of the held file that this one is, in another encoding; None: another, or one of `to_store`.

        Args:
            index: its number.
            file: the file.
            existing: the stored image with its SOP Instance UID, if there is one.
            alike: held files with that UID.
            to_store: of this request; gets what the comparison showed.
            uid: its SOP Instance UID.
        """
        variants = to_store.variants.setdefault(uid, {})
        if any(one.sha256 == file.sha256 for one in variants.values()):
            return None
        found = self.comparing.compare(file, existing, alike, list(variants.values()))
        if found.held is not None:
            return IntakeResult(IntakeState.HELD, found.held.belongs_to, found.held)
        if found.earlier is not None:
            to_store.repeats[index] = list(variants)[found.earlier]
            return None
        if existing is not None or variants or found.kind is not None:
            to_store.kinds[file.sha256] = found.kind
        variants[index] = file
        return None

    def _begin_to_put(self, files: dict[str, SpooledFile], to_store: FilesToStore) -> None:
        """Have the bytes of these files made durable, unless this request does so already; files: by SHA-256."""
        for sha256, file in files.items():
            if sha256 not in to_store.put_digests:
                to_store.put_digests.add(sha256)
                to_store.put_futures.append(DISK.submit(self._put, file))

    def _put(self, file: SpooledFile) -> None:
        """Make one file durable under its name. Raises StoreUnavailable."""
        store, key = self.backends.store, original_key(file.sha256)
        if file.own is not None and store.takes_files:
            try:
                descriptor = file.own.wait()
            except OSError as error:
                raise SpoolFull from error
            if store.adopt(key, descriptor):
                return
        with self.spool.open(file) as reader:
            store.put(key, reader, file.size_bytes)

    def _write_rows(
        self, lines: list[FileReceipt], to_store: FilesToStore, idempotency_key: str | None, content: str
    ) -> tuple[Receipt, bool]:
        """Rows and receipt in one transaction; messages after it. As `run`."""
        stored = to_store.files
        # a held file is of no study, and a correction brings none to the front
        new = {line.study_id: 0 for line in lines if line.study_id and line.outcome is Outcome.DUPLICATE}
        with self.backends.database.transaction(lock_s=LOCK_WAIT_S) as session:
            if idempotency_key:
                # two at once: the second waits for the first one's commit, and gives the response of that one
                lock_upload(session, self.sender.site_id, idempotency_key)
                earlier = self._earlier_receipt(session, idempotency_key, content)
                if earlier:
                    return earlier, True
            if left := studies.missing_studies(session, list(new)):
                raise Unavailable(f"{len(left)} studies were deleted while this came. Send it again")
            # contents that a deletion removes just now, and on which this request relies
            for sha256 in deletions.protect_objects(session, to_store.spooled.keys()):
                if not self.backends.store.exists(original_key(sha256)):
                    self._put(to_store.spooled[sha256])
            taken = take_in(
                session,
                self.backends.vault,
                self.sender.site_id,
                self.priority,
                list(stored.values()),
                db_now(session),  # as a lease is: a host whose clock is wrong must not strand its studies
                list(new),
                timedelta(seconds=self.backends.settings.debounce_s),
                to_store.kinds,
                to_store.trusted,
                lambda studies, urgent: quotas.charge_studies(
                    session, self.sender, quotas_from_settings(self.backends.settings), studies, urgent
                ),
                self.sender,
            )
            for (index, file), outcome in zip(stored.items(), taken, strict=True):
                lines[index] = receipt_line(lines[index].file, outcome, file.header.sop_instance_uid, file.header.kept)
                if outcome.known is not IntakeState.HELD:
                    image = outcome.known is IntakeState.NEW and file.header.kept is None
                    new[outcome.study_id] = new.get(outcome.study_id, 0) + image
            for index, first in to_store.repeats.items():
                lines[index] = lines[first].model_copy(update={"file": lines[index].file})
            self.note(session, lines)
            receipt = receipt_of(session, lines, new if self.summed_up else {})
            if idempotency_key:
                self._save_receipt(session, idempotency_key, content, receipt)
        self._make_metadata(to_store)
        log.info("upload received", **{outcome.value: getattr(receipt, outcome.value) for outcome in Outcome})
        return receipt, False

    def _make_metadata(self, to_store: FilesToStore) -> None:
        """Have metadata made of what was stored, while it is at hand."""
        heads = {file.sha256: file.header.head_bytes for file in to_store.files.values()}
        for one in to_store.spooled.values():
            with self.spool.open(one) as reader:
                self.backends.metadata.make_from_file(one.sha256, one.size_bytes, reader, heads[one.sha256])

    def _earlier_receipt(self, session: Session, idempotency_key: str, content: str) -> Receipt | None:
        row = find_receipt(session, self.sender.site_id, idempotency_key)
        if row is None:
            return None
        if row.content_sha256 != content:
            raise IdempotencyKeyReused
        stored = self.backends.vault.open(row.receipt)
        # sealed with another key, or of a study that is gone: the request is worked through again, and what is stored
        # already is a duplicate
        if stored is None or studies.missing_studies(session, row.study_ids):
            return None
        return Receipt.model_validate(stored)

    def _save_receipt(self, session: Session, idempotency_key: str, content: str, receipt: Receipt) -> None:
        save_receipt(
            session,
            site_id=self.sender.site_id,
            idempotency_key=idempotency_key,
            content_sha256=content,
            receipt=self.backends.vault.seal(receipt.model_dump(mode="json")),
            study_ids={line.study_id for line in receipt.files if line.study_id},
        )


def _same_bytes(file: SpooledFile, existing: ExistingInstance | None, before: HeldBefore) -> IntakeResult | None:
    """What became of a file with the same bytes; None: there is none."""
    held = before.files.get(file.sha256)
    if held is not None:
        return IntakeResult(IntakeState.HELD, held.belongs_to, held)
    taken = existing.compared(file.sha256) if existing is not None else None
    return taken if taken is not None and taken.known is IntakeState.DUPLICATE else None
