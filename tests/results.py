"""What tests of results need: studies with invented findings, destinations to deliver to, small objects to deliver."""

import hashlib
import io
import math
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from sqlalchemy import func, select, update

from samples.objects import SYNTAX, pattern_image, to_bytes
from shared.db.engine import Database
from shared.db.tables import DeliveryRow, DestinationRow
from shared.dicom.commitment import COMPLETE, WELL_KNOWN, WITH_FAILURES, Instance
from shared.dicom.conformance import STORAGE_COMMITMENT
from shared.domain.destinations import Destination, Rule
from shared.domain.findings import Assessment, Extent, Finding, Heatmap, OperatingPoints
from shared.domain.results import (
    OF_AN_IMAGE,
    ImageStatement,
    ModelStatement,
    ResultInput,
    ResultKind,
    ResultObject,
    SiteStatement,
)
from shared.domain.security import Role
from shared.pixels.decode import open_pixels
from shared.pixels.radiograph import decode_radiograph
from shared.pixels.tensors import UInt8Image
from shared.queries import destinations
from shared.queries.access import Key
from shared.queries.results import CLASS_OF
from shared.settings import Settings
from shared.storage import open_store
from worker.delivery.sending import Sender
from worker.results.making import Maker
from worker.results.objects import build

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
MODEL = ModelStatement(
    "made-up",
    "Made up 1",
    "b" * 64,
    OperatingPoints(0.02, 0.35),
    1.1,
    0.43,
    ("Trained on nothing.", "No limits known."),
)
SCORES = {Assessment.POSITIVE: 8.3, Assessment.UNCLEAR: 4.1, Assessment.NEGATIVE: 1.2, Assessment.ABSTAINED: None}
CHANCES = {Assessment.POSITIVE: 0.8, Assessment.UNCLEAR: 0.1, Assessment.NEGATIVE: 0.004, Assessment.ABSTAINED: 0.5}


def spots(*places: tuple[float, float, float, float], side: int = 14) -> Heatmap:
    """A heatmap with a hill at each place: row, column, height to 1, radius in cells."""
    cells = [
        sum(
            top * math.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * radius**2))
            for row, column, top, radius in places
        )
        for y in range(side)
        for x in range(side)
    ]
    return Heatmap(bytes(min(255, round(255 * cell)) for cell in cells), side, side)


ONE_SPOT = spots((5, 6, 0.9, 1.4))


def found(assessment: Assessment = Assessment.POSITIVE, frame: int = 1, **more: Any) -> Finding:
    """A finding with one spot."""
    values: dict[str, Any] = {
        "region": "hand",
        "heatmap": ONE_SPOT,
        "score": SCORES[assessment],
        "extent": Extent.NONE,
    } | more
    chance = values.pop("fracture_probability", CHANCES[assessment])
    return Finding(
        frame=frame,
        bundle=MODEL.name,
        region_probability=0.9,
        fracture_probability=chance,
        assessment=assessment,
        **values,
    )


@dataclass
class MadeUpStudy:
    """Images with what was found on them."""

    told: ResultInput
    store: dict[str, bytes] = field(repr=False)

    def build(self, *kinds: ResultKind) -> list[ResultObject]:
        """Its objects, of all kinds if none is named."""
        return build(self.told, kinds or tuple(ResultKind), self.store.__getitem__, self.shown)

    def shown(self, sha256: str, frame: int, side: int) -> UInt8Image:
        """The picture of a frame, decoded in this process."""
        source = open_pixels(self.store[sha256])
        return decode_radiograph(source, frame - 1).preview(source, frame - 1, side)

    def one(self, kind: ResultKind) -> Dataset:
        """The first object of a kind, read back."""
        return read_back(self.build(kind)[0])


def read_back(made: ResultObject) -> Dataset:
    """An object's data set."""
    return dcmread(io.BytesIO(made.content))


def study_of(images: Sequence[Dataset | bytes], findings: Sequence[Sequence[Finding]], **more: Any) -> MadeUpStudy:
    """A study of these images, in this order, each with its findings."""
    store, statements, uid = {}, [], ""
    for number, (image, mine) in enumerate(zip(images, findings, strict=True), start=1):
        content = image if isinstance(image, bytes) else to_bytes(image, SYNTAX["explicit"])
        header = dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
        sha256 = hashlib.sha256(content).hexdigest()
        store[sha256], uid = content, uid or str(header.StudyInstanceUID)
        statements.append(
            ImageStatement(number, str(header.SOPInstanceUID), sha256, NOON, NOON if mine else None, tuple(mine))
        )
    values: dict[str, Any] = {
        "site": SiteStatement("North", "Europe/Berlin"),
        "models": (MODEL,),
        "software": "0.2.0",
    } | more
    told = ResultInput("0199-study", uid, values.pop("site"), tuple(statements), **values)
    return MadeUpStudy(told, store)


def pattern_study(*assessments: Assessment, **more: Any) -> MadeUpStudy:
    """A study of little images, one for each assessment."""
    images = [pattern_image(1, f"results/{number}") for number in range(len(assessments))]
    return study_of(images, [[found(assessment)] for assessment in assessments], **more)


# -- on their way

SC = "1.2.840.10008.5.1.4.1.1.7"
DEFAULT = ("sc-overlay", "sc-summary", "sr-outlines", "sr-statements")
ABLE = frozenset(ResultKind)


def small_objects(
    stated: ResultInput, kinds: Collection[ResultKind], read: Callable[[str], bytes]
) -> Sequence[ResultObject]:
    """An object of each kind without pixels or content: what is delivered is what was made, whatever it says."""
    assert read is not None
    made = []
    for kind in sorted(kinds):
        for number in [image.number for image in stated.images] if kind in OF_AN_IMAGE else [1]:
            ds = Dataset()
            ds.SOPClassUID = CLASS_OF.get(kind, SC)
            ds.SOPInstanceUID = stated.sop_uid(kind, number)
            ds.SeriesInstanceUID = stated.series_uid(kind, number)
            ds.StudyInstanceUID = stated.study_instance_uid
            ds.PatientID, ds.IssuerOfPatientID, ds.PatientName = "P1", "NORTH", "DOE^JANE"
            ds.Modality = "SR" if kind in CLASS_OF else "OT"
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            written = io.BytesIO()
            ds.save_as(written, enforce_file_format=True)
            made.append(
                ResultObject(
                    kind, number, ds.SOPClassUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, ExplicitVRLittleEndian,
                    written.getvalue(),
                )
            )  # fmt: skip
    return made


@dataclass
class Archive:
    """A peer that keeps each data set that it is given, under a number of its own."""

    title: str = "ARCHIVE"
    port: int = 0
    received: list[tuple[str, bytes]] = field(default_factory=list)  # SOP Instance UID, data set
    syntaxes: Sequence[str] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    classes: Sequence[str] = (SC, *dict.fromkeys(CLASS_OF.values()), "1.2.840.10008.5.1.4.1.1.104.1")
    status: Callable[[Any], int | Dataset] = lambda _: 0x0000
    patients: dict[str, tuple[str, str]] = field(default_factory=dict)  # by study: Patient ID, issuer
    finds: bool = False
    # storage commitment: the status of each request, none: not offered; what it asked, by Transaction UID; reasons by
    # which instances are not kept; whether it reports at once, over the association of the request
    commits: Callable[[Any], int] | None = None
    asked: dict[str, list[Instance]] = field(default_factory=dict)
    not_kept: dict[str, int] = field(default_factory=dict)
    at_once: bool = False
    answers: list[int] = field(default_factory=list)  # to its reports; -1: none came

    @contextmanager
    def open(self, tls: Any = None) -> Iterator["Archive"]:
        """Listen during the block."""
        entity = AE(self.title)
        entity.add_supported_context("1.2.840.10008.1.1")
        for uid in self.classes:
            entity.add_supported_context(uid, list(self.syntaxes))
        if self.finds:
            entity.add_supported_context("1.2.840.10008.5.1.4.1.2.2.1")
        if self.commits is not None:
            entity.add_supported_context(STORAGE_COMMITMENT)
        entity.require_called_aet = True
        handlers: Any = [
            (evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find), (evt.EVT_N_ACTION, self._commit)
        ]  # fmt: skip
        server: Any = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers, ssl_context=tls)
        self.port = server.socket.getsockname()[1]
        try:
            yield self
        finally:
            server.shutdown()

    def _store(self, event: Any) -> int | Dataset:
        status = self.status(event)
        if status == 0x0000:
            self.received.append((str(event.request.AffectedSOPInstanceUID), event.request.DataSet.getvalue()))
        return status

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        if found := self.patients.get(query.StudyInstanceUID):
            one = Dataset()
            one.QueryRetrieveLevel, one.StudyInstanceUID = "STUDY", query.StudyInstanceUID
            one.PatientID, one.IssuerOfPatientID = found
            yield 0xFF00, one

    def _commit(self, event: Any) -> tuple[int, None]:
        assert self.commits is not None
        status, told = self.commits(event), event.action_information
        if status == 0x0000:
            self.asked[str(told.TransactionUID)] = [
                (str(one.ReferencedSOPClassUID), str(one.ReferencedSOPInstanceUID))
                for one in told.ReferencedSOPSequence
            ]
            if self.at_once:
                threading.Thread(
                    target=lambda: self.answers.append(self._report(event.assoc, str(told.TransactionUID)))
                ).start()
        return status, None

    def report(self, port: int, transaction_uid: str, *, called: str = "OSTEON", role: bool = True) -> int | None:
        """Report over an association of its own.

        Args:
            port: of the listener.
            transaction_uid: of a request, or of none.
            called: AE title that it knows us by.
            role: whether it proposes to be the SCP.

        Returns:
            The status of the answer, -1 if none came; None: the association was rejected, or its context.
        """
        entity = AE(self.title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
        entity.add_requested_context(STORAGE_COMMITMENT)
        roles = [build_role(STORAGE_COMMITMENT, scp_role=True)] if role else []
        association = entity.associate("127.0.0.1", port, ae_title=called, ext_neg=roles)  # type: ignore[arg-type]
        if not association.is_established:
            return None
        try:
            for context in association.accepted_contexts:
                context._as_scp = True
            return self._report(association, transaction_uid)
        finally:
            association.release()

    def _report(self, association: Any, transaction_uid: str) -> int:
        instances = self.asked.get(transaction_uid, [(SC, "1.2.3")])
        told, kept, failed = Dataset(), [], []
        for sop_class, sop_instance in instances:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
            if sop_instance in self.not_kept:
                item.FailureReason = self.not_kept[sop_instance]
                failed.append(item)
            else:
                kept.append(item)
        told.TransactionUID = transaction_uid
        told.ReferencedSOPSequence = kept
        if failed:
            told.FailedSOPSequence = failed
        kind = WITH_FAILURES if failed else COMPLETE
        status, _ = association.send_n_event_report(told, kind, STORAGE_COMMITMENT, WELL_KNOWN)
        return int(status.Status) if "Status" in status else -1


class Outbox:
    """A site's results on their way, with the processes that make and send them in this one."""

    def __init__(self, database: Database, settings: Settings, site_id: UUID, key: Key) -> None:
        self.database, self.settings, self.site_id, self.key = database, settings, site_id, key
        self.store = open_store(settings.store_url.get_secret_value())
        self.maker = Maker(settings, database, self.store, small_objects, ABLE)

    def add(self, wanted: Destination, *rules: Rule, name: str = "PACS") -> UUID:
        """Set up a destination."""
        with self.database.transaction() as session:
            its = [rule.validate([*ResultKind]) for rule in rules]
            return destinations.add(session, self.key, self.site_id, name, wanted.validate(), its).id

    def make(self) -> int:
        """Make all sets that are due; returns how many there were."""
        made = 0
        while self.maker.look():
            made += 1
        return made

    def send(self) -> None:
        """Send all that is due, to its end."""
        sender = Sender(self.settings, self.database, self.store)
        sender.look()
        while sender._held:
            threading.Event().wait(0.01)
        sender.close()


def rows(database: Database, table: Any) -> list[Any]:
    """All rows of a table, the earliest first where they have a time: an update may put a row at the table's end."""
    order = next((getattr(table, name) for name in ("created_at", "due_at") if hasattr(table, name)), None)
    with database.transaction() as session:
        return list(session.scalars(select(table).order_by(order)))


def only_delivery(database: Database) -> DeliveryRow:
    """The one delivery that there is."""
    (row,) = rows(database, DeliveryRow)
    assert isinstance(row, DeliveryRow)
    return row


def end_waits(database: Database) -> None:
    """Let every wait of deliveries and destinations end."""
    with database.transaction() as session:
        session.execute(update(DeliveryRow).values(next_at=func.now()))
        session.execute(update(DestinationRow).values(not_before=None))


def admin_key(key_id: UUID, site_id: UUID) -> Key:
    """A key of an administrator who decides."""
    return Key(key_id, site_id, "admin", Role.ADMIN, "")
