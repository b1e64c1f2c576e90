"""The DICOM listener on real Postgres and a real store, with pynetdicom as the sender: statuses, refusals, bounds."""

import contextlib
import hashlib
import io
import queue
import random
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pydicom
import pydicom.uid as uids
import pytest
from prometheus_client import REGISTRY
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ, N_ACTION_RQ
from pynetdicom.dimse_primitives import C_STORE, N_ACTION
from pynetdicom.dsutils import decode, encode
from pynetdicom.fsm import TRANSITION_TABLE
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import (
    A_ABORT,
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.transport import AddressInformation
from sqlalchemy import delete, func, select, update

from api.intake.files import Intake
from api.listener import commitment, counts, server
from api.listener.association import CLOSING, Announced
from api.listener.received import file_meta
from api.listener.server import Listener, listening
from api.spool import SpooledFile
from docs.references import conformance_page
from infra.embedded.process import free_port
from samples.objects import pattern_image, to_bytes
from shared.db.engine import Database
from shared.db.tables import (
    CallerRow,
    CommitmentRow,
    HeldFileRow,
    InstanceRow,
    PeerDayRow,
    PeerRow,
    RejectionRow,
    SendingRow,
    SiteRow,
    StudyRow,
)
from shared.dicom.conformance import MESSAGE_SYNTAXES, STORAGE, STORAGE_COMMITMENT, STUDY_ROOT_FIND, VERIFICATION
from shared.domain.peers import PeerRule
from shared.domain.security import System
from shared.errors import DatabaseUnavailable, OsteonError
from shared.queries import access, commitments, peers
from shared.settings import ROOT, Settings
from shared.storage import open_store, original_key
from tests.certificates import Certificates
from tests.forked import ForkedProcess
from tests.pace import LIMIT_S, limit_s, until

CR = str(ComputedRadiographyImageStorage)
SENT_AS = (CR, [str(ExplicitVRLittleEndian)])
KINDS = ("SOP Class", "Transfer Syntax")  # in PS3.6


@dataclass
class Running:
    """A listener of this test, with its database."""

    listener: Listener
    port: int
    settings: Settings
    database: Database
    tls_port: int = 0
    statuses: list[int] = field(default_factory=list)

    def associate(
        self, *contexts: tuple[str, list[str]], calling: str = "SENDER", called: str = "OSTEON", **more: Any
    ) -> Association:
        """Open an association, or try to."""
        ae = AE(calling)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = LIMIT_S
        for abstract, syntaxes in contexts or (SENT_AS,):
            ae.add_requested_context(abstract, syntaxes)
        return ae.associate("127.0.0.1", more.pop("port", self.port), ae_title=called, **more)

    def send(self, *files: bytes, **how: Any) -> list[Dataset]:
        """Send files over one association, as they are; returns the answers."""
        contexts: dict[tuple[str, str], None] = {}
        for file in files:
            meta = pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True).file_meta
            contexts[str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)] = None
        association = self.associate(*((abstract, [syntax]) for abstract, syntax in contexts), **how)
        assert association.is_established
        answers = [association.send_c_store(pydicom.dcmread(io.BytesIO(file))) for file in files]
        association.release()
        return answers

    def count(self, *chosen: Any) -> int:
        """Count rows."""
        with self.database.transaction() as session:
            return int(session.scalar(select(func.count()).select_from(*chosen)) or 0)


class Raw:
    """A sender that says whatever the test wants, without pynetdicom's threads."""

    def __init__(
        self, port: int, *contexts: tuple[str, list[str]], calling: str = "SENDER", called: str = "OSTEON"
    ) -> None:
        """Ask for an association; `answer` is the type of the PDU that comes."""
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.settimeout(LIMIT_S)
        self.request = association_request(contexts, calling, called)
        self.send(self.request)
        self.pdu = self.read()
        self.answer = self.pdu[:1]

    def send(self, *data: bytes) -> None:
        """Send bytes."""
        for one in data:
            self.connection.sendall(one)

    def read(self) -> bytes:
        """Read a PDU; b"" at the end of the connection."""
        try:
            head = self._read(6)
            return head + self._read(int.from_bytes(head[2:], "big"))
        except (EOFError, ConnectionError):
            return b""

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.connection.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def message(self, file: bytes, *, sop_class: str = "", instance: str = "", most: int = 1 << 16) -> list[bytes]:
        """The PDUs of a C-STORE of a file's data set, as it is."""
        meta = pydicom.dcmread(io.BytesIO(file), specific_tags=[]).file_meta
        command = C_STORE()
        command.MessageID, command.Priority = 1, 2
        command.AffectedSOPClassUID = sop_class or meta.MediaStorageSOPClassUID
        command.AffectedSOPInstanceUID = instance or meta.MediaStorageSOPInstanceUID
        command.DataSet = io.BytesIO(file[144 + meta.FileMetaInformationGroupLength :])
        message = C_STORE_RQ()
        message.primitive_to_message(command)
        return [P_DATA_TF(primitive).encode() for primitive in message.encode_msg(1, most)]

    def pdv(self, context: int, control: int, data: bytes) -> bytes:
        """A PDU with one presentation data value."""
        return self.p_data((len(data) + 2).to_bytes(4, "big") + bytes([context, control]) + data)

    def p_data(self, items: bytes) -> bytes:
        """A P-DATA-TF PDU."""
        return b"\x04\x00" + len(items).to_bytes(4, "big") + items

    def status(self) -> Dataset:
        """The answer to a request."""
        pdu = self.read()
        assert pdu[:1] == b"\x04", pdu[:10]
        return decode(io.BytesIO(pdu[12:]), is_implicit_vr=True, is_little_endian=True)

    def store(self, file: bytes, **how: Any) -> Dataset:
        """Send a file; returns the answer."""
        self.send(*self.message(file, **how))
        return self.status()

    def close(self) -> None:
        """Release the association."""
        with contextlib.suppress(OSError):
            self.send(b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00")
            self.read()
        self.connection.close()


def association_request(contexts: Sequence[tuple[str, list[str]]], calling: str, called: str) -> bytes:
    """The PDU of an A-ASSOCIATE-RQ."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = calling, called
    request.calling_presentation_address = request.called_presentation_address = AddressInformation("127.0.0.1", 1)
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16382, UID("1.2.3.4")
    request.user_information = [length, implementation]
    proposed = []
    for number, (abstract, syntaxes) in enumerate(contexts):
        context = build_context(abstract, syntaxes)
        context.context_id = 2 * number + 1
        proposed.append(context)
    request.presentation_context_definition_list = proposed
    return bytes(A_ASSOCIATE_RQ(request).encode())


@pytest.fixture
def run(make_settings: Callable[..., Settings], database: Database) -> Iterator[Callable[..., Running]]:
    """Starts listeners in this process; the peer SENDER may send."""
    with contextlib.ExitStack() as running:

        def start(**changes: Any) -> Running:
            settings = make_settings(**{"dicom_port": free_port()} | changes)
            with database.transaction() as session:
                site = access.make_site(session, "north")
                if site:
                    peers.admit(session, System.PREPARE, site, PeerRule("SENDER"), name="sender", issuer="")
            listener, ports = running.enter_context(listening(settings))
            return Running(listener, ports.get("dicom", 0), settings, database, ports.get("tls", 0))

        yield start


@pytest.fixture
def running(run: Callable[..., Running]) -> Running:
    """A listener with default limits."""
    return run()


def image(study: int = 1, number: int = 1, syntax: UID = ExplicitVRLittleEndian, **values: Any) -> bytes:
    """A sound little radiograph: image `number` of study `study`."""
    ds = pattern_image(study, f"image {number}")
    for name, value in values.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return to_bytes(ds, syntax)


def changed(**values: str) -> bytes:
    """A sound little radiograph with other texts in its header."""
    return image(**values)  # type: ignore[arg-type]


def rejection(association: Association) -> tuple[Any, Any, Any]:
    """Result, source and reason of an association that was rejected."""
    told = association.acceptor.primitive
    assert told is not None
    return told.result, told.result_source, told.diagnostic


def test_echo(running: Running) -> None:
    association = running.associate((VERIFICATION, [str(ImplicitVRLittleEndian)]))
    assert association.send_c_echo().Status == 0
    association.release()
    until(lambda: running.listener.admission.open == 0, 10)


def test_what_is_accepted_is_what_the_conformance_statement_says(running: Running) -> None:
    """Every SOP class of the dictionary in every transfer syntax, each in a presentation context of its own."""
    page = conformance_page()
    syntaxes = dict(re.findall(r"^\| [^|]+ \| `([\d.]+)` \| yes \| (yes|) \|", page, re.MULTILINE))
    wanted: dict[str, set[str]] = {}
    for uid, which in re.findall(r"^\| [^|]+ \| `([\d.]+)` \| (?:analysed|kept) \| (\w+) \|", page, re.MULTILINE):
        wanted[uid] = {syntax for syntax, native in syntaxes.items() if which == "all" or native}
    assert len(wanted) > 150
    assert len(syntaxes) > 10
    kinds = {kind: [str(uid) for uid, row in UID_dictionary.items() if row[1] == kind] for kind in KINDS}
    classes = {*wanted, *(uid for uid in kinds["SOP Class"] if uid != VERIFICATION)}
    proposed = [(uid, syntax) for uid in sorted(classes) for syntax in sorted(kinds["Transfer Syntax"])]
    assert {syntax for _, syntax in proposed} > set(syntaxes)
    accepted = set()
    for at in range(0, len(proposed), 128):
        group = proposed[at : at + 128]
        raw = Raw(running.port, *((uid, [syntax]) for uid, syntax in group))
        if raw.answer == b"\x02":
            primitive = A_ASSOCIATE_AC()
            primitive.decode(raw.pdu)
            answers = {item.context_id: item.result for item in primitive.presentation_context}
            assert len(answers) == len(group)
            accepted |= {pair for number, pair in enumerate(group) if answers[2 * number + 1] == 0}
        raw.close()
    assert accepted == {(uid, syntax) for uid, syntaxes in wanted.items() for syntax in syntaxes}


def test_what_is_answered_with_success_has_a_row_and_an_object(running: Running) -> None:
    files = [image(1, 1), image(1, 2), image(2, 1, DeflatedExplicitVRLittleEndian)]
    assert [answer.Status for answer in running.send(*files)] == [0, 0, 0]
    assert running.count(StudyRow) == 2
    store = open_store(running.settings.store_url.get_secret_value())
    with running.database.transaction() as session:
        stored = [store.get(original_key(sha256)) for sha256 in session.scalars(select(InstanceRow.sha256))]
    assert len(stored) == 3
    plain = {pydicom.dcmread(io.BytesIO(file)).to_json() for file in files}
    assert {pydicom.dcmread(io.BytesIO(file)).to_json() for file in stored} == plain
    until(lambda: running.count(PeerDayRow) == 1, 10)


def test_what_comes_again_or_contradicts_what_is_stored_is_a_success(running: Running) -> None:
    """A sender would send a failure again for ever; conflicts and corrections wait for an administrator."""
    assert running.send(image(PatientName="A^B", PatientID="1"))[0].Status == 0
    again = {
        "the same": image(PatientName="A^B", PatientID="1"),
        "the same in another transfer syntax": image(PatientName="A^B", PatientID="1", syntax=ImplicitVRLittleEndian),
        "a correction": image(PatientName="A^C", PatientID="1"),
        "other pixels": image(
            PatientName="A^B", PatientID="1", PixelData=bytes(len(pattern_image(1, "image 1").PixelData))
        ),
        "another patient in the study": image(1, 2, PatientName="X^Y", PatientID="2"),
    }
    assert {what: [hex(answer.Status) for answer in running.send(file)] for what, file in again.items()} == {
        what: ["0x0"] for what in again
    }
    assert running.count(InstanceRow) == 1
    assert running.count(HeldFileRow) == 3


def test_what_is_damaged_is_refused_with_the_reason_and_hurts_no_other(running: Running) -> None:
    sound = image(1, 1)
    cut = sound[: len(sound) - 100]
    for damaged, status in ((cut, 0xC005), (image(1, 2, Rows=None), 0xA900)):
        raw = Raw(running.port, SENT_AS)
        answer = raw.store(damaged)
        assert (hex(answer.Status), bool(answer.ErrorComment)) == (hex(status), True)
        assert len(answer.ErrorComment) <= 64
        assert raw.store(sound).Status == 0
        raw.close()
    assert answer.OffendingElement == 0x00280010
    assert running.count(InstanceRow) == 1
    until(lambda: running.count(RejectionRow) == 2, 10)


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID"])
def test_a_data_set_with_other_uids_than_its_command_is_refused(running: Running, keyword: str) -> None:
    raw = Raw(running.port, SENT_AS)
    other = str(uids.DigitalXRayImageStorageForPresentation) if keyword == "SOPClassUID" else "1.2.3.4.5"
    answer = raw.store(
        changed(**{keyword: other}), instance=str(pattern_image(1, "image 1").SOPInstanceUID), sop_class=CR
    )
    assert (answer.Status, answer.OffendingElement) == (0xA900, pydicom.datadict.tag_for_keyword(keyword))
    assert running.count(InstanceRow) == 0
    assert raw.store(image()).Status == 0
    raw.close()


@pytest.mark.parametrize("other", [str(uids.DigitalXRayImageStorageForPresentation), "1.2.3.4"])
def test_a_command_of_another_class_than_its_context_is_refused(running: Running, other: str) -> None:
    raw = Raw(running.port, SENT_AS)
    assert raw.store(image(SOPClassUID=other), sop_class=other).Status == 0x0122
    assert raw.store(image()).Status == 0
    raw.close()
    until(lambda: running.listener._backends.spool_budget.used == 0, 10)


def test_what_is_no_image_is_kept(running: Running) -> None:
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = str(uids.BasicTextSRStorage), "1.2.3.9"
    report.StudyInstanceUID, report.SeriesInstanceUID, report.Modality = "1.2.3.1", "1.2.3.2", "SR"
    assert running.send(to_bytes(report, ExplicitVRLittleEndian))[0].Status == 0
    with running.database.transaction() as session:
        assert session.scalars(select(InstanceRow.kept)).one() == "not-an-image"


# -- who may call


@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [("STRANGER", "OSTEON", 3), ("SENDER", "ELSEWHERE", 7), ("STRANGER", "ELSEWHERE", 3)],
)
def test_an_unknown_caller_is_rejected_and_remembered(running: Running, calling: str, called: str, reason: int) -> None:
    for _ in range(2):
        association = running.associate(calling=calling, called=called)
        assert association.is_rejected
        assert rejection(association) == (1, 1, reason)
    with running.database.transaction() as session:
        caller = session.scalars(select(CallerRow)).one()
        assert (caller.calling_ae, caller.called_ae, caller.address) == (calling, called, "127.0.0.1")
    assert running.send(image())[0].Status == 0


def test_while_postgres_or_room_is_missing_callers_are_asked_to_come_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = running.listener._backends.spool_budget
    room.release_bytes(-room.max_bytes - 1)
    assert rejection(running.associate()) == (2, 3, 1)
    room.release_bytes(room.max_bytes + 1)
    with monkeypatch.context() as patched:
        patched.setattr(running.listener._backends.database, "transaction", away)
        assert rejection(running.associate()) == (2, 3, 1)
    assert running.send(image())[0].Status == 0


def test_a_sender_keeps_what_cannot_be_taken_now(run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    running = run(max_spool_bytes=len(image()) + 2000)
    raw = Raw(running.port, SENT_AS)
    large = image(2, 1, Rows=400, Columns=400, PixelData=bytes(320_000), BitsAllocated=16)
    assert raw.store(large).Status == 0xA700
    assert raw.store(image()).Status == 0
    with monkeypatch.context() as patched:
        patched.setattr(running.listener._backends.database, "transaction", away)
        answer = raw.store(image(1, 2))
        assert (answer.Status, answer.ErrorComment[:16]) == (0xA700, "Send again later")
    assert raw.store(image(1, 2)).Status == 0
    raw.close()
    until(lambda: running.listener._backends.spool_budget.used == 0, 10)


def away(**_: Any) -> Any:
    raise DatabaseUnavailable


def test_one_peer_cannot_keep_the_others_out(run: Callable[..., Running]) -> None:
    """101 associations of one sender: the last is rejected, another sender is not."""
    running = run()
    with running.database.transaction() as session:
        site = session.scalars(select(SiteRow.id)).one()
        peers.admit(session, System.PREPARE, site, PeerRule("OTHER"), name="other", issuer="")
    opened = [Raw(running.port, SENT_AS) for _ in range(101)]
    answers = [raw.answer for raw in opened]
    assert answers.count(b"\x02") == 100
    rejected = next(raw for raw in opened if raw.answer == b"\x03")
    assert tuple(rejected.pdu[7:10]) == (2, 3, 2)
    association = running.associate(calling="OTHER")
    assert association.is_established
    association.release()
    assert opened[0].store(image()).Status == 0
    for raw in opened:
        raw.close()
    until(lambda: running.listener.admission.open == 0, 20)
    assert running.send(image())[0].Status == 0


def test_connections_that_ask_for_nothing_make_room_for_those_that_do(run: Callable[..., Running]) -> None:
    running = run(dicom_associations=2, dicom_associations_per_peer=2)
    silent = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(server.SPARE + 10)]
    assert running.send(image())[0].Status == 0
    for one in silent:
        one.close()


# -- bounds


def test_an_association_that_stays_silent_ends(run: Callable[..., Running]) -> None:
    running = run(dicom_idle_s=1)
    raw = Raw(running.port, SENT_AS)
    assert raw.read()[:1] == b"\x07"  # A-ABORT
    until(lambda: running.listener.admission.open == 0, 10)


def test_a_connection_that_asks_for_nothing_ends(run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ACSE_S", 1.0)
    running = run(dicom_idle_s=1)
    for begun in (b"", b"\x01\x00\x00", b"\x01\x00\x00\x00\x01\x00rest"):
        with socket.create_connection(("127.0.0.1", running.port)) as silent:
            silent.settimeout(LIMIT_S)
            silent.sendall(begun)
            while silent.recv(100):
                pass
    until(lambda: not running.listener._open(), 10)


def test_what_a_cut_association_left_is_gone(running: Running) -> None:
    for begun in (1, 100, -1):  # PDUs
        raw = Raw(running.port, SENT_AS)
        assert raw.store(image()).Status == 0
        large = image(1, 2, Rows=1200, Columns=1000, PixelData=bytes(2_400_000), BitsAllocated=16)
        raw.send(*raw.message(large, most=16384)[:begun])
        if begun < 0:
            until(lambda: running.listener._backends.spool_budget.used > 1_000_000, 10)
        raw.connection.close()
        until(lambda: running.listener.admission.open == 0, 10)
        until(lambda: running.listener._backends.spool_budget.used == 0, 10)
    assert not list(Path(str(running.settings.spool_dir)).iterdir())
    assert running.count(InstanceRow) == 1


def large_image(number: int = 2) -> bytes:
    """A radiograph of 2.4 MB: more than is kept in memory of a data set."""
    return image(1, number, Rows=1200, Columns=1000, PixelData=bytes(range(240)) * 10_000, BitsAllocated=16)


@pytest.mark.parametrize("seed", range(4))
def test_a_data_set_in_whatever_fragments_it_comes_is_stored_as_it_is(running: Running, seed: int) -> None:
    """Of any sizes, several in a PDU, empty ones, with the command in the same PDU, PDUs cut anywhere on their way."""
    rng, raw = random.Random(seed), Raw(running.port, SENT_AS)
    file = large_image(seed)
    command, data = raw.message(file, most=1 << 30)
    whole, most = data[12:], rng.choice([300, 20_000, 130_000, 900_000])
    pieces: list[bytes] = []
    while whole or not pieces:
        size = rng.choice([0, 1, rng.randrange(most), most])
        pieces.append(raw.pdv(1, 0 if len(whole) > size else 2, whole[:size])[6:])
        whole = whole[size:]
    if rng.random() < 0.5:
        pieces[-1] = pieces[-1][:5] + b"\x00" + pieces[-1][6:]
        pieces.append(raw.pdv(1, 2, b"")[6:])
    stream, pdu = b"", command[6:] if rng.random() < 0.5 else b""
    stream += b"" if pdu else command
    for piece in pieces:
        if pdu and (len(pdu) + len(piece) > 1 << 20 or rng.random() < 0.5):
            stream, pdu = stream + raw.p_data(pdu), b""
        pdu += piece
    stream += raw.p_data(pdu)
    while stream:
        cut = rng.choice([1, 7, 4000, 100_000, len(stream)])
        raw.send(stream[:cut])
        stream = stream[cut:]
    assert raw.status().Status == 0
    assert raw.store(image(2, 1)).Status == 0
    raw.close()
    meta = pydicom.dcmread(io.BytesIO(file), specific_tags=[]).file_meta
    with running.database.transaction() as session:
        sha256 = session.scalars(
            select(InstanceRow.sha256).where(InstanceRow.sop_instance_uid == meta.MediaStorageSOPInstanceUID)
        ).one()
    stored = open_store(running.settings.store_url.get_secret_value()).get(original_key(sha256))
    assert stored.endswith(file[144 + meta.FileMetaInformationGroupLength :])
    assert hashlib.sha256(stored).hexdigest() == sha256


@pytest.mark.parametrize("seed", range(2))
def test_what_was_read_with_a_data_set_is_the_next_message(running: Running, seed: int) -> None:
    """Four radiographs and the release one behind the other, cut anywhere, none of which waits for an answer."""
    rng, raw = random.Random(seed), Raw(running.port, SENT_AS)
    files = [large_image(number) for number in range(4)]
    most = rng.choice([16_384, 131_072])
    stream = b"".join(b"".join(raw.message(file, most=most)) for file in files) + b"\x05\0\0\0\0\x04\0\0\0\0"

    def send() -> None:
        rest = stream
        while rest:
            cut = rng.choice([6, 13, 4000, 300_000, 3_000_000])
            raw.send(rest[:cut])
            rest = rest[cut:]

    sending = threading.Thread(target=send)
    sending.start()
    assert [raw.status().Status for _ in files] == [0] * len(files)
    assert raw.read()[:1] == b"\x06"
    sending.join()
    raw.close()
    store = open_store(running.settings.store_url.get_secret_value())
    with running.database.transaction() as session:
        rows = session.execute(select(InstanceRow.sop_instance_uid, InstanceRow.sha256)).all()
    stored = {uid: store.get(original_key(sha256)) for uid, sha256 in rows}
    for file in files:
        meta = pydicom.dcmread(io.BytesIO(file), specific_tags=[]).file_meta
        assert stored[meta.MediaStorageSOPInstanceUID].endswith(file[144 + meta.FileMetaInformationGroupLength :])


def test_pynetdicom_decodes_no_fragment_of_a_data_set(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It copies each PDU six times: that alone took half of what a radiograph cost."""
    decoded: list[int] = []
    decode_pdu = P_DATA_TF.decode

    def decoding(pdu: P_DATA_TF, data: bytes) -> None:
        decoded.append(len(data))
        decode_pdu(pdu, data)

    monkeypatch.setattr(P_DATA_TF, "decode", decoding)
    raw = Raw(running.port, SENT_AS)
    assert raw.store(large_image()).Status == 0
    raw.close()
    assert len(decoded) == 1
    assert decoded[0] < 1000


def test_a_sender_that_stops_within_a_data_set_is_aborted(run: Callable[..., Running]) -> None:
    """Between two PDUs of it, and within one; meanwhile a stop is noticed at once."""
    running = run(dicom_idle_s=1)
    for cut in (None, 30_000):
        raw = Raw(running.port, SENT_AS)
        raw.send(*raw.message(large_image(), most=65_536)[:3], raw.message(large_image(), most=65_536)[3][:cut])
        assert raw.read()[:1] in (b"\x07", b"")
        until(lambda: running.listener.admission.open == 0, 10)
        until(lambda: running.listener._backends.spool_budget.used == 0, 10)


FLOODS: dict[str, Callable[[Raw], list[bytes]]] = {
    "a PDU of 4 GB": lambda raw: [b"\x04\x00\xff\xff\xff\xff"],
    "a command without end": lambda raw: [raw.pdv(1, 1, bytes(10_000))] * 3,
    "a PDV without a byte": lambda raw: [raw.p_data(b"\x00\x00\x00\x01\x01")],
    "a PDV that is longer than its PDU": lambda raw: [raw.p_data(b"\x00\x00\xff\xff\x01\x03" + bytes(50))],
    "a command that is none": lambda raw: [raw.pdv(1, 3, b"\xff" * 100)],
    "a data set before its command": lambda raw: [raw.pdv(1, 0, bytes(1 << 20))] * 5,
    "a context that was not accepted": lambda raw: [
        b"".join(raw.message(image())).replace(b"\x01\x03", b"\x63\x03", 1)
    ],
    "a command amid a data set": lambda raw: [*raw.message(large_image())[:2], raw.message(image(1, 2))[0]],
    "a fragment beyond its PDU, amid a data set": lambda raw: [
        *raw.message(large_image())[:2],
        raw.p_data(b"\x00\x00\xff\xff\x01\x00" + bytes(50)),
    ],
    "a fragment without a byte, amid a data set": lambda raw: [
        *raw.message(large_image())[:2],
        raw.p_data(b"\x00\x00\x00\x01\x01\x00"),
    ],
    "what goes on after the last fragment": lambda raw: [
        *raw.message(large_image())[:2],
        raw.p_data(raw.pdv(1, 2, b"1234")[6:] + raw.pdv(1, 0, b"1234")[6:]),
    ],
    "an unknown PDU amid a data set": lambda raw: [*raw.message(large_image())[:2], b"\x33\x00\x00\x00\x00\x04aaaa"],
    "a PDU of 4 GB amid a data set": lambda raw: [*raw.message(large_image())[:2], b"\x04\x00\xff\xff\xff\xff"],
    "an unknown PDU": lambda raw: [b"\x33\x00\x00\x00\x00\x04aaaa"],
    "a second association request": lambda raw: [raw.request],
    "a release that nobody asked for": lambda raw: [b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"],
}


@pytest.mark.parametrize("flood", FLOODS)
def test_who_breaks_the_protocol_is_aborted_alone(running: Running, flood: str) -> None:
    other, raw = Raw(running.port, SENT_AS), Raw(running.port, SENT_AS)
    with contextlib.suppress(ConnectionError):
        for data in FLOODS[flood](raw):
            raw.send(data)
    assert raw.read()[:1] in (b"\x07", b"")  # A-ABORT, or the connection's end
    until(lambda: running.listener.admission.open == 1, 10)
    assert other.store(image()).Status == 0
    other.close()
    until(lambda: running.listener._backends.spool_budget.used == 0, 10)


def test_what_is_said_into_a_connection_that_closes_is_dropped(running: Running) -> None:
    """A stop may abort an association whose peer has just broken the protocol: pynetdicom has no transition for that."""
    raw = Raw(running.port, SENT_AS)
    (association,) = [one for _, one in running.listener._open() if one is not None]
    for state in CLOSING:
        association.dul.state_machine.current_state = state
        association.dul.to_provider_queue.put(A_ABORT())
        assert not association.dul._process_recv_primitive()
        assert association.dul.to_provider_queue.empty()
        assert ("Evt15", state) not in TRANSITION_TABLE
    association.dul.state_machine.current_state = "Sta6"
    raw.close()


def test_requests_that_come_before_their_answers_wait_with_the_sender(running: Running) -> None:
    """Who sends on and on without reading fills his own buffers, not our memory or disk."""
    raw = Raw(running.port, SENT_AS)
    files = [image(1, number) for number in range(40)]
    sending = threading.Thread(target=lambda: [raw.send(*raw.message(file)) for file in files])
    sending.start()
    most = 0
    for _ in files:
        most = max(most, running.listener._backends.spool_budget.used)
        assert raw.status().Status == 0
    sending.join()
    raw.close()
    assert most < 4 * len(files[0])
    assert running.count(InstanceRow) == 40


def test_silent_associations_cost_nothing(running: Running) -> None:
    """pynetdicom looks a thousand times a second at each."""
    silent = [Raw(running.port, SENT_AS) for _ in range(50)]
    time.sleep(0.5)
    before = time.process_time()
    time.sleep(2)
    spent = time.process_time() - before
    for raw in silent:
        raw.close()
    assert spent < 1.0, spent  # of processor time, which other processes do not add to


# -- presentation contexts


def test_every_storage_class_is_accepted_in_exactly_the_transfer_syntaxes_of_the_table(running: Running) -> None:
    """Each pair is proposed by itself; with syntaxes that nothing here reads, and classes that are no storage."""
    jpeg_xl, mpeg2 = "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.100"
    syntaxes = sorted({syntax for one in STORAGE.values() for syntax in one.transfer_syntaxes} | {jpeg_xl, mpeg2})
    pairs = [(uid, syntax) for uid in [*STORAGE, VERIFICATION, STORAGE_COMMITMENT, "1.2.3"] for syntax in syntaxes]
    expected: dict[tuple[str, str], int] = {}
    found: dict[tuple[str, str], int] = {}
    for uid, syntax in pairs:
        if uid in STORAGE:
            expected[uid, syntax] = 0 if syntax in STORAGE[uid].transfer_syntaxes else 4
        else:
            expected[uid, syntax] = 3 if uid != VERIFICATION else 0 if syntax in MESSAGE_SYNTAXES else 4
    for number in range(0, len(pairs), 128):
        some = pairs[number : number + 128]
        raw = Raw(running.port, *((uid, [syntax]) for uid, syntax in some))
        results = accepted_contexts(raw.pdu)
        found |= {pair: results[2 * place + 1][0] for place, pair in enumerate(some)}
        raw.close()
    assert found == expected
    assert len(pairs) > 2500


def accepted_contexts(pdu: bytes) -> dict[int, tuple[int, str]]:
    """Result and transfer syntax by presentation context of an A-ASSOCIATE-AC."""
    accepted = A_ASSOCIATE_AC()
    accepted.decode(pdu)
    return {
        int(item.context_id or 0): (-1 if item.result is None else item.result, str(item.transfer_syntax or ""))
        for item in accepted.presentation_context
    }


@pytest.mark.parametrize(
    ("proposed", "chosen"),
    [
        ([ExplicitVRLittleEndian, uids.JPEGLSLossless], uids.JPEGLSLossless),
        ([ImplicitVRLittleEndian, ExplicitVRLittleEndian], ImplicitVRLittleEndian),
        ([ExplicitVRLittleEndian, uids.JPEGBaseline8Bit], ExplicitVRLittleEndian),
        ([uids.JPEGBaseline8Bit, ExplicitVRLittleEndian], uids.JPEGBaseline8Bit),
        (["1.2.840.10008.1.2.4.110", ExplicitVRLittleEndian], ExplicitVRLittleEndian),
    ],
)
def test_of_several_transfer_syntaxes_the_best_is_chosen(running: Running, proposed: list[str], chosen: str) -> None:
    raw = Raw(running.port, (CR, [str(one) for one in proposed]))
    assert accepted_contexts(raw.pdu) == {1: (0, str(chosen))}
    raw.close()


def test_a_peer_that_may_not_send_is_offered_echo_alone(running: Running) -> None:
    with running.database.transaction() as session:
        site = session.scalars(select(SiteRow.id)).one()
        peers.admit(session, System.PREPARE, site, PeerRule("ASKER", may_send=False), name="asker", issuer="")
    raw = Raw(running.port, (VERIFICATION, [str(ImplicitVRLittleEndian)]), SENT_AS, calling="ASKER")
    assert {number: result for number, (result, _) in accepted_contexts(raw.pdu).items()} == {1: 0, 3: 3}
    raw.close()


# -- many at a time


def test_a_deflated_data_set_that_expands_without_end_takes_nothing_from_others(run: Callable[..., Running]) -> None:
    running = run(max_inflated_bytes=1_000_000)
    large = {"Rows": 2000, "Columns": 2000, "BitsAllocated": 16, "PixelData": bytes(8_000_000)}
    bomb = image(1, 1, DeflatedExplicitVRLittleEndian, **large)
    assert len(bomb) < 100_000
    sound = image(1, 2, DeflatedExplicitVRLittleEndian)
    raws = [Raw(running.port, (CR, [str(DeflatedExplicitVRLittleEndian)])) for _ in range(2)]
    for raw, file in zip(raws, (bomb, sound), strict=True):
        raw.send(*raw.message(file))
    assert [raw.status().Status for raw in raws] == [0xA700, 0]
    for raw in raws:
        raw.close()


def test_what_comes_together_shares_a_transaction(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where one breaks it, only that one fails."""
    sizes, taken_in = [], Intake.run

    def run_intake(intake: Intake, files: list[SpooledFile], key: str | None) -> Any:
        sizes.append(len(files))
        if len(sizes) == 1:
            until(lambda: len(running.listener._commits._queues[intake_peer(running)]) == 7, 20)
        if any(file.sha256 == broken for file in files):
            raise RuntimeError("foreseen by nobody")
        return taken_in(intake, files, key)

    files = [image(1, number) for number in range(8)]
    raws = [Raw(running.port, SENT_AS) for _ in files]
    head = file_meta(Announced(str(ExplicitVRLittleEndian), CR, str(pattern_image(1, "image 5").SOPInstanceUID)))
    broken = hashlib.sha256(head + b"".join(pdu[12:] for pdu in raws[5].message(files[5])[1:])).hexdigest()
    monkeypatch.setattr(Intake, "run", run_intake)
    raws[0].send(*raws[0].message(files[0]))
    until(lambda: sizes == [1], 20)
    for raw, file in list(zip(raws, files, strict=True))[1:]:
        raw.send(*raw.message(file))
    statuses = [raw.status().Status for raw in raws]
    assert statuses == [0x0110 if number == 5 else 0 for number in range(8)]
    assert sizes == [1, 7, *[1] * 7]
    for raw in raws:
        raw.close()
    assert running.count(InstanceRow) == 7


def intake_peer(running: Running) -> Any:
    """The id of the only peer."""
    with running.database.transaction() as session:
        return session.scalars(select(PeerRow.id)).one()


def test_a_stop_answers_what_is_in_work(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_in, begun = Intake.run, threading.Event()

    def slow(intake: Intake, files: list[SpooledFile], key: str | None) -> Any:
        begun.set()
        time.sleep(0.5)
        return taken_in(intake, files, key)

    monkeypatch.setattr(Intake, "run", slow)
    working, idle = Raw(running.port, SENT_AS), Raw(running.port, SENT_AS)
    working.send(*working.message(image()))
    begun.wait(LIMIT_S)
    stopping = threading.Thread(target=running.listener.close)
    stopping.start()
    assert idle.read()[:1] == b"\x07"
    assert working.status().Status == 0
    assert working.read()[:1] in (b"\x07", b"")
    stopping.join()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", running.port))
    assert running.count(InstanceRow) == 1


@pytest.mark.slow
def test_a_study_of_5000_instances(running: Running) -> None:
    uid = b"1.2.3.0000000000000"
    template = image(SOPInstanceUID=uid.decode(), Rows=2, Columns=2, PixelData=b"1234")

    def send(first: int) -> set[int]:
        raw = Raw(running.port, SENT_AS)
        numbers = range(first, 5000, 20)
        statuses = {int(raw.store(template.replace(uid, b"1.2.3.%013d" % number)).Status) for number in numbers}
        raw.close()
        return statuses

    with ThreadPoolExecutor(20) as senders:
        assert set().union(*senders.map(send, range(20))) == {0}
    assert running.count(InstanceRow) == 5000
    assert running.count(StudyRow) == 1


def test_no_success_is_lost_when_the_process_is_killed(
    make_settings: Callable[..., Settings], database: Database, tmp_path: Path
) -> None:
    settings, port = make_settings(), free_port()
    with database.transaction() as session:
        site = access.make_site(session, "north")
        assert site
        peers.admit(session, System.PREPARE, site, PeerRule("SENDER"), name="sender", issuer="")
    secrets = {name: getattr(settings, name) for name in ("database_url", "broker_url", "store_url", "identity_key")}
    environment = {f"OSTEON_{name.upper()}": secret.get_secret_value() for name, secret in secrets.items()}
    environment |= {
        "OSTEON_DICOM_PORT": str(port),
        "OSTEON_SPOOL_DIR": str(settings.spool_dir),
        "PYTHONPATH": str(ROOT),
    }
    with (tmp_path / "listener.log").open("wb") as log:
        process = ForkedProcess(server.main, environment, log, ROOT)
    try:
        until(lambda: reaches(port), 30)
        raw, told = Raw(port, SENT_AS), []
        with contextlib.suppress(AssertionError, ConnectionError):
            for number in range(10_000):
                file = image(1, number)
                if raw.store(file).Status == 0:
                    told.append(str(pydicom.dcmread(io.BytesIO(file)).SOPInstanceUID))
                if len(told) == 5:
                    threading.Timer(0.1, process.kill).start()
        raw.connection.close()
        assert process.wait(limit_s(60)) == -signal.SIGKILL
    finally:
        process.kill()
    with database.transaction() as session:
        stored = set(session.scalars(select(InstanceRow.sop_instance_uid)))
    assert told
    assert set(told) <= stored


def reaches(port: int) -> bool:
    """Whether something listens."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


# -- TLS


def client_context(server: Path, shown: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """What a sender over TLS uses."""
    context = ssl.create_default_context(cafile=str(server))
    if shown:
        context.load_cert_chain(shown, key)
    return context


def test_tls_and_peers_that_are_known_by_their_certificate(run: Callable[..., Running], tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    ours, our_key, _ = made.make("ours")
    known, known_key, fingerprint = made.make("known")
    other, other_key, _ = made.make("other")
    clients = tmp_path / "clients.pem"
    clients.write_bytes(known.read_bytes() + other.read_bytes())
    tls = {"dicom_tls_certificate": ours, "dicom_tls_key": our_key, "dicom_tls_clients": clients}
    running = run(dicom_tls_port=free_port(), **tls)
    with running.database.transaction() as session:
        site = session.scalars(select(SiteRow.id)).one()
        rule = PeerRule("SECURE", tls_fingerprint=fingerprint)
        peers.admit(session, System.PREPARE, site, rule, name="secure", issuer="")

    def over_tls(calling: str, *shown: Path) -> Association:
        context = client_context(ours, *shown)
        return running.associate(calling=calling, port=running.tls_port, tls_args=(context, "localhost"))

    stalled = socket.create_connection(("127.0.0.1", running.tls_port))  # no handshake keeps others waiting
    assert running.send(image(), calling="SECURE", port=running.tls_port,
                        tls_args=(client_context(ours, known, known_key), "localhost"))[0].Status == 0  # fmt: skip
    assert rejection(over_tls("SECURE", other, other_key)) == (1, 1, 3)
    assert rejection(over_tls("SECURE")) == (1, 1, 3)
    assert rejection(running.associate(calling="SECURE")) == (1, 1, 3)
    plain = over_tls("SENDER")
    assert plain.is_established
    plain.release()
    stalled.close()


def test_tls_may_ask_for_certificates_and_takes_no_old_version(run: Callable[..., Running], tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    ours, our_key, _ = made.make("ours")
    known, known_key, _ = made.make("known")
    stranger, stranger_key, _ = made.make("stranger")
    running = run(
        dicom_port=0, dicom_tls_port=free_port(), dicom_tls_certificate=ours, dicom_tls_key=our_key,
        dicom_tls_clients=known, dicom_tls_mutual=True,
    )  # fmt: skip
    for shown, well in (((known, known_key), True), ((stranger, stranger_key), False), ((), False)):
        context = client_context(ours, *shown)
        association = running.associate(port=running.tls_port, tls_args=(context, "localhost"))
        assert association.is_established is well
        if well:
            association.release()
    old = client_context(ours, known, known_key)
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.set_ciphers("AES256-SHA:@SECLEVEL=0")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", running.tls_port)) as connection, pytest.raises(ssl.SSLError):
        old.wrap_socket(connection, server_hostname="localhost")


def test_wrong_tls_settings_are_named(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    ours, our_key, _ = made.make("ours")
    _, other_key, _ = made.make("other")
    for changes, named in (
        ({}, "OSTEON_DICOM_TLS_CERTIFICATE"),
        ({"dicom_tls_certificate": tmp_path / "none.pem"}, "OSTEON_DICOM_TLS_KEY"),
        ({"dicom_tls_certificate": ours, "dicom_tls_key": other_key}, "OSTEON_DICOM_TLS_KEY"),
        (
            {"dicom_tls_certificate": ours, "dicom_tls_key": our_key, "dicom_tls_mutual": True},
            "OSTEON_DICOM_TLS_CLIENTS",
        ),
        ({"dicom_tls_certificate": ours, "dicom_tls_key": our_key, "dicom_tls_clients": our_key}, "TLS_CLIENTS"),
    ):
        with pytest.raises(OsteonError, match=named), listening(make_settings(dicom_tls_port=2762, **changes)):
            pass
    with pytest.raises(OsteonError, match="OSTEON_DICOM_PORT"), listening(make_settings(dicom_port=0)):
        pass


def sendings(running: Running) -> list[SendingRow]:
    """What the associations had to do with studies that are being received, in order of their beginning."""
    with running.database.transaction() as session:
        return list(session.scalars(select(SendingRow).order_by(SendingRow.began_at)))


def test_how_associations_ended_is_kept(running: Running) -> None:
    """Open, released, aborted by the sender, cut, and broken: each as it was; what it brought is received."""
    running.send(image(1, 1))
    until(lambda: [one.released for one in sendings(running)] == [True], LIMIT_S)
    association = running.associate()
    association.send_c_store(pydicom.dcmread(io.BytesIO(image(1, 2))))
    association.send_c_store(pydicom.dcmread(io.BytesIO(image(2, 1))))
    assert [one.ended_at for one in sendings(running)[1:]] == [None, None]
    association.abort()
    until(lambda: all(one.ended_at for one in sendings(running)), LIMIT_S)
    cut = Raw(running.port, SENT_AS)
    assert cut.store(image(1, 2)).Status == 0  # a duplicate
    cut.connection.close()
    broken = Raw(running.port, SENT_AS)
    assert broken.store(image(1, 3)).Status == 0
    broken.send(b"\x04\x00\xff\xff\xff\xff")
    until(lambda: len(found := sendings(running)) == 5 and all(one.ended_at for one in found), LIMIT_S)
    assert [one.released for one in sendings(running)] == [True, False, False, False, False]
    broken.connection.close()
    running.associate().release()  # brings nothing
    running.send(image(1, 4))
    until(lambda: [one.released for one in sendings(running)[5:]] == [True], LIMIT_S)
    with running.database.transaction() as session:
        assert session.scalars(select(StudyRow.completeness)).all() == ["receiving", "receiving"]


COUNTS: dict[str, tuple[Any, int | None]] = {  # what a PACS answers, by level, and what is expected then
    "by series": ({"SERIES": [("1.9.1", "CR", 2), ("1.9.2", "CR", 1), ("1.9.3", "SR", 7)]}, 3),
    "by study": ({"SERIES": [("1.9.1", "CR", None)], "STUDY": [("", "", 4)]}, 4),
    "not at all": ({"SERIES": [("1.9.1", "CR", None)], "STUDY": [("", "", None)]}, None),
    "nonsense": ({"SERIES": [("1.9.1", "CR", -1)], "STUDY": [("", "", 10**11)]}, None),
    "failing": ({}, None),
    "nothing": ({"SERIES": [], "STUDY": []}, None),
    "too much": ({"SERIES": [("1.9.1", "CR", 1)] * 501}, None),
    "away": (None, None),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_a_sender_is_asked_for_its_count(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Once, some time after the end; whatever it says or does not say, the question is settled."""
    monkeypatch.setattr(counts, "LOOK_EVERY_S", 0.05)
    running, (found, expected), port = run(), COUNTS[kind], free_port()
    asked: list[Dataset] = []
    with running.database.transaction() as session:
        (row,) = session.scalars(select(PeerRow))
        row.query_host, row.query_port, row.query_ae = "127.0.0.1", port, "PACS"

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        assert found is not None
        query = event.identifier
        asked.append(query)
        if query.QueryRetrieveLevel not in found:
            yield 0xA700, None
        for uid, modality, number in found[query.QueryRetrieveLevel]:
            one = Dataset()
            one.QueryRetrieveLevel, one.StudyInstanceUID = query.QueryRetrieveLevel, query.StudyInstanceUID
            one.SeriesInstanceUID, one.Modality = uid, modality
            if number is not None:
                one.add_new(f"NumberOf{query.QueryRetrieveLevel.title()}RelatedInstances", "LO", str(number))
            yield 0xFF00, one

    with contextlib.ExitStack() as here:
        if found is not None:
            pacs = AE("PACS")
            pacs.require_called_aet, pacs.require_calling_aet = True, ["OSTEON"]
            pacs.add_supported_context(STUDY_ROOT_FIND)
            server_ = pacs.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
            assert server_ is not None
            here.callback(server_.shutdown)
        running.send(
            image(1, 1, SeriesInstanceUID="1.9.1"), image(1, 2, SeriesInstanceUID="1.9.1"),
        )  # fmt: skip
        until(lambda: all(one.ended_at for one in sendings(running)), LIMIT_S)
        assert asked == []
        by = timedelta(seconds=31)
        with running.database.transaction() as session:
            session.execute(
                update(SendingRow).values(began_at=SendingRow.began_at - by, ended_at=SendingRow.ended_at - by)
            )
            session.execute(update(StudyRow).values(last_received_at=StudyRow.last_received_at - by))
        until(lambda: all(one.answered_at for one in sendings(running)), LIMIT_S)
        assert running.listener._counts is not None
        running.listener._counts.look()
    with running.database.transaction() as session:
        assert session.scalars(select(StudyRow.expected_images)).all() == [expected]
    levels = {"away": [], "by series": ["SERIES"]}.get(kind, ["SERIES", "STUDY"])
    assert [query.QueryRetrieveLevel for query in asked] == levels[: 1 if kind == "too much" else 2]
    assert {str(query.StudyInstanceUID) for query in asked} <= {uid_of(image(1, 1))}
    assert not any("PatientName" in query or "PatientID" in query for query in asked)


def uid_of(file: bytes) -> str:
    """Its Study Instance UID."""
    return str(pydicom.dcmread(io.BytesIO(file), specific_tags=["StudyInstanceUID"]).StudyInstanceUID)


# -- metrics


def metric(name: str, **labels: str) -> float:
    """A value of what this process counts."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_what_the_listener_does_is_counted(run: Callable[..., Running]) -> None:
    """Associations by what became of them, data sets and bytes by status, the time to Success, and the spool."""
    running = run(dicom_associations=1)
    names = {
        "stored": ("osteon_listener_objects_total", {"status": "0000"}),
        "bytes": ("osteon_listener_bytes_total", {"status": "0000"}),
        "refused": ("osteon_listener_objects_total", {"status": "A900"}),
        "seconds": ("osteon_listener_success_seconds_count", {}),
        "commits": ("osteon_listener_commit_objects_sum", {}),
        "limit": ("osteon_listener_associations_refused_total", {"reason": "limit"}),
        "calling": ("osteon_listener_associations_refused_total", {"reason": "calling-ae"}),
    }
    before = {what: metric(name, **labels) for what, (name, labels) in names.items()}
    raw = Raw(running.port, SENT_AS)
    assert (metric("osteon_listener_associations"), metric("osteon_listener_spool_bytes")) == (1, 0)
    assert raw.store(image(1, 1)).Status == 0
    assert raw.store(image(1, 2, Rows=None)).Status == 0xA900
    for calling in ("SENDER", "STRANGER", "STRANGER"):  # the last one without a look at the table
        assert Raw(running.port, SENT_AS, calling=calling).answer == b"\x03"
    raw.send(*raw.message(large_image())[:30])
    until(lambda: metric("osteon_listener_spool_bytes") > 1_000_000, 10)
    assert metric("osteon_listener_spool_most_bytes") == running.settings.max_spool_bytes
    raw.connection.close()
    until(lambda: metric("osteon_listener_associations") == 0, 10)
    after = {what: metric(name, **labels) - before[what] for what, (name, labels) in names.items()}
    size = after.pop("bytes")
    assert after == {"stored": 1, "refused": 1, "seconds": 1, "commits": 2, "limit": 1, "calling": 2}
    assert len(image(1, 1)) - 500 < size <= len(image(1, 1))  # without what stands before the data set


# -- storage commitment


@dataclass
class Modality:
    """A peer that asks for storage commitment, and takes reports on a port of its own or over its association."""

    running: Running
    port: int = field(default_factory=free_port)
    reports: queue.Queue[tuple[int, Dataset, str]] = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        """Have it admitted."""
        with self.running.database.transaction() as session:
            site = session.scalars(select(SiteRow.id)).one()
            rule = PeerRule(
                "MODALITY", may_commit=True, query_host="127.0.0.1", query_port=self.port, query_ae="MODALITY"
            )  # fmt: skip
            peers.admit(session, System.PREPARE, site, rule, name="modality", issuer="")

    def told(self, event: evt.Event) -> tuple[int, None]:
        """Take a report."""
        by = "us" if event.assoc.is_requestor else str(event.assoc.requestor.ae_title)
        self.reports.put((int(event.event_type or 0), event.event_information, by))
        return 0, None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take reports while the block runs."""
        ae = AE("MODALITY")
        ae.add_supported_context(STORAGE_COMMITMENT, scu_role=True, scp_role=True)
        taking = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.told)]
        )
        assert taking is not None
        try:
            yield
        finally:
            taking.shutdown()

    def associate(self) -> Association:
        """Open an association over which to ask."""
        contexts = (STORAGE_COMMITMENT, [str(ImplicitVRLittleEndian)])
        handlers = [(evt.EVT_N_EVENT_REPORT, self.told)]
        return self.running.associate(contexts, SENT_AS, calling="MODALITY", evt_handlers=handlers)

    def ask(self, association: Association, *instances: tuple[str, str], transaction: str = "1.2.3.7") -> int:
        """Ask over an association; returns the status."""
        request, items = Dataset(), []
        for sop_class, uid in instances:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
            items.append(item)
        request.TransactionUID, request.ReferencedSOPSequence = transaction, items
        status, _ = association.send_n_action(request, 1, STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1")
        return int(status.Status)

    def ask_and_go(self, *instances: tuple[str, str], **how: str) -> int:
        """Ask over an association that ends at once."""
        association = self.associate()
        status = self.ask(association, *instances, **how)
        association.release()
        return status

    def report(self) -> tuple[int, Dataset, str]:
        """The next report."""
        return self.reports.get(timeout=LIMIT_S)


def reasons(report: Dataset) -> list[int]:
    """Why instances of a report are not confirmed."""
    return [one.FailureReason for one in report.FailedSOPSequence]


UID_1, UID_2 = (str(pattern_image(1, f"image {number}").SOPInstanceUID) for number in (1, 2))


def test_storage_is_committed_for_what_is_there_with_its_bytes(run: Callable[..., Running]) -> None:
    running = run(dicom_commitment=True)
    modality = Modality(running)
    files = [image(1, 1), image(1, 2)]
    assert [answer.Status for answer in running.send(*files, calling="MODALITY")] == [0, 0]
    with running.database.transaction() as session:
        lost = session.scalars(select(InstanceRow.sha256).where(InstanceRow.sop_instance_uid == UID_2)).one()
    open_store(running.settings.store_url.get_secret_value()).remove([original_key(lost)])
    with modality.listening():
        assert modality.ask_and_go((CR, UID_1)) == 0
        kind, report, by = modality.report()
        assert (kind, by, report.TransactionUID) == (1, "OSTEON", "1.2.3.7")
        assert [one.ReferencedSOPInstanceUID for one in report.ReferencedSOPSequence] == [UID_1]
        until(lambda: running.count(CommitmentRow) == 0, 10)
        asked = (CR, UID_1), (CR, UID_2), (CR, "1.2.3.4"), (str(uids.CTImageStorage), UID_1), ("1.2.3", "1.2.3.4")
        assert modality.ask_and_go(*asked) == 0
        kind, report, _ = modality.report()
        assert kind == 2
        assert len(report.ReferencedSOPSequence) == 1
        assert reasons(report) == [0x0112, 0x0112, 0x0119, 0x0122]
        assert modality.ask_and_go() == 0x0115
        assert modality.ask_and_go((CR, "1" * 65)) == 0x0115
        assert modality.ask_and_go((CR, UID_1), transaction="1.2.x") == 0x0115
    assert running.count(CommitmentRow) == 0


def test_a_report_comes_after_a_restart(run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer is away, the listener stops: the one that starts next tells it."""
    monkeypatch.setattr(commitment, "AGAIN_S", (0.2, 3600.0))
    running = run(dicom_commitment=True)
    modality = Modality(running)
    assert running.send(image(1, 1), calling="MODALITY")[0].Status == 0
    assert modality.ask_and_go((CR, UID_1)) == 0

    def failed() -> int:
        with running.database.transaction() as session:
            return session.scalars(select(CommitmentRow.failed)).one()

    until(lambda: failed() >= 1, LIMIT_S)
    running.listener.close()
    with running.database.transaction() as session:
        session.execute(update(CommitmentRow).values(failed=1, due_at=func.now()))
    with modality.listening():
        run(dicom_commitment=True)
        kind, report, by = modality.report()
        assert (kind, by, report.TransactionUID) == (1, "OSTEON", "1.2.3.7")
        until(lambda: running.count(CommitmentRow) == 0, 10)


def test_a_report_is_given_up_after_some_time(run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commitment, "AGAIN_S", (0.1, 0.1))
    running = run(dicom_commitment=True)
    modality = Modality(running)
    assert modality.ask_and_go((CR, UID_1)) == 0
    until(lambda: running.count(CommitmentRow) == 0, LIMIT_S)
    with running.database.transaction() as session:
        row = session.scalars(select(PeerRow).where(PeerRow.calling_ae == "MODALITY")).one()
    with modality.listening():
        assert modality.ask_and_go((CR, UID_1)) == 0
        with running.database.transaction() as session:  # before its time comes
            peers.enable(session, System.PREPARE, session.get_one(PeerRow, row.id), enabled=False)
        until(lambda: running.count(CommitmentRow) == 0, LIMIT_S)
        assert modality.reports.empty()


def test_a_report_comes_over_the_association_that_stays_open(run: Callable[..., Running]) -> None:
    """The peer takes no other, and goes on sending over this one meanwhile."""
    running = run(dicom_commitment=True)
    modality = Modality(running)
    association = modality.associate()
    assert association.send_c_store(pydicom.dcmread(io.BytesIO(image(1, 1)))).Status == 0
    for transaction in ("1.2.3.7", "1.2.3.8"):
        assert modality.ask(association, (CR, UID_1), transaction=transaction) == 0
        kind, report, by = modality.report()
        assert (kind, by, report.TransactionUID) == (1, "us", transaction)
        until(lambda: running.count(CommitmentRow) == 0, 10)
        assert association.send_c_store(pydicom.dcmread(io.BytesIO(image(1, 2)))).Status == 0
    association.release()
    assert association.is_released


def test_who_does_not_answer_over_its_association_is_called(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its association is not aborted for that."""
    monkeypatch.setattr(commitment, "REPORT_S", 2.0)
    running = run(dicom_commitment=True)
    modality = Modality(running)
    deaf = Raw(running.port, (STORAGE_COMMITMENT, [str(ImplicitVRLittleEndian)]), calling="MODALITY")
    item, information = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CR, UID_1
    information.TransactionUID, information.ReferencedSOPSequence = "1.2.3.7", [item]
    request = N_ACTION()
    request.MessageID, request.ActionTypeID, request.RequestedSOPClassUID = 1, 1, UID(STORAGE_COMMITMENT)
    request.RequestedSOPInstanceUID = UID("1.2.840.10008.1.20.1.1")
    encoded = encode(information, is_implicit_vr=True, is_little_endian=True)
    assert encoded is not None
    request.ActionInformation = io.BytesIO(encoded)
    message = N_ACTION_RQ()
    message.primitive_to_message(request)
    with modality.listening():
        deaf.send(*(P_DATA_TF(primitive).encode() for primitive in message.encode_msg(1, 16_000)))
        assert deaf.status().Status == 0
        assert decode(io.BytesIO(deaf.read()[12:]), True, True).CommandField == 0x0100
        kind, _, by = modality.report()
        assert (kind, by) == (2, "OSTEON")
    assert running.listener.admission.open == 1
    deaf.close()


def test_a_transaction_uid_in_work_is_not_used_for_another(run: Callable[..., Running]) -> None:
    """The same request again is one request; with other instances nothing of it is confirmed."""
    running = run(dicom_commitment=True)
    modality = Modality(running)
    assert running.send(image(1, 1), calling="MODALITY")[0].Status == 0
    for instance in (UID_1, UID_1, UID_2, UID_2):
        assert modality.ask_and_go((CR, instance)) == 0
    with running.database.transaction() as session:
        rows = session.execute(select(CommitmentRow.duplicate, CommitmentRow.count).order_by(CommitmentRow.duplicate))
        assert [tuple(row) for row in rows] == [(False, 1), (True, 1)]
        session.execute(update(CommitmentRow).values(failed=0, due_at=func.now()))
    with modality.listening():
        found = sorted((modality.report() for _ in range(2)), key=lambda one: one[0])
    assert [kind for kind, _, _ in found] == [1, 2]
    assert reasons(found[1][1]) == [0x0131]


def test_requests_that_wait_are_bounded(run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one peer, of all, and by their instances; whoever is over them is told so, and nothing of it is kept."""
    running = run(dicom_commitment=True)
    modality = Modality(running)
    for name, most in (("MAX_REQUESTS", 2), ("MAX_PEER_REQUESTS", 2), ("MAX_INSTANCES", 3), ("MAX_PEER_INSTANCES", 3)):
        with monkeypatch.context() as patched:
            patched.setattr(commitments, name, most)
            statuses = [
                modality.ask_and_go((CR, UID_1), (CR, UID_2), transaction=f"1.2.3.{number}") for number in range(3)
            ]
            assert statuses == ([0, 0, 0x0213] if most == 2 else [0, 0x0213, 0x0213]), name
            with running.database.transaction() as session:
                session.execute(delete(CommitmentRow))


def test_storage_commitment_is_not_offered_by_default_or_to_those_who_may_not(run: Callable[..., Running]) -> None:
    for running in (run(), run(dicom_commitment=True)):
        raw = Raw(running.port, (STORAGE_COMMITMENT, [str(ImplicitVRLittleEndian)]))
        assert accepted_contexts(raw.pdu)[1][0] == 3
        raw.close()
