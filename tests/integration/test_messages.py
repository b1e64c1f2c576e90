"""Messages on their way, on real Postgres: HL7 to receivers that answer in each way, and webhooks."""

import io
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pydicom
import pytest
from pydicom.uid import generate_uid
from sqlalchemy import func, update
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from shared.db.engine import Database
from shared.db.tables import BundleRow, DeliveryRow, DestinationRow, NoticeRow, ResultSetRow, StudyRow
from shared.domain.completeness import Completeness
from shared.domain.destinations import MAX_WAIT, TRIED_FOR, Destination, DestinationKind, NewerModels, Rule, When
from shared.domain.findings import Assessment, Extent, Finding, Heatmap, InstanceResult
from shared.domain.notices import USUAL_EVENTS, Event, webhook_secret
from shared.domain.security import Role
from shared.domain.study import StoredStatus
from shared.errors import Reason
from shared.queries import deliveries, destinations
from shared.queries import outbox as due
from shared.queries.access import add_key, key_of_row
from shared.settings import ROOT, Settings
from tests.certificates import Certificates
from tests.hospital import Hospital
from tests.pace import limit_s
from tests.results import Archive, Outbox, end_waits, only_delivery, rows
from worker.delivery import sending
from worker.delivery.mllp import BEGIN, END

KEY = "a key of webhooks that is for tests alone"
MANIFEST = {"sensitive": 0.1, "specific": 0.6, "regions": ["hand"], "metrics": {}}
ANALYSED = Rule(When.ANALYSED, events=(Event.ANALYSED, Event.REVISED))
ALL = Rule(When.ANALYSED, events=USUAL_EVENTS)
SCORES = {Assessment.POSITIVE: 8.3, Assessment.NEGATIVE: 0.4}
HERE = "127.0.0.0/8, ::1/128"
PATIENT, NUMBER, ACCESSION = "Grünwald^Änne", "P-47110815", "ACC-2026-77"


@pytest.fixture
def outbox(database: Database, make_settings: Callable[..., Settings], hospital: Hospital) -> Outbox:
    """The site's outbox; what a receiver does not answer within half a second it does not answer."""
    settings = make_settings(delivery_answer_s=0.5, lease_s=5.0, webhook_key=KEY)
    with database.transaction() as session:
        session.execute(update(BundleRow).values(manifest=MANIFEST))
        row = add_key(session, "north", "an admin", Role.ADMIN, "osk_messages")
        assert row is not None
        key = replace(key_of_row(row), site_id=hospital.site_id)
    return Outbox(database, settings, hospital.site_id, key)


def radiograph(**changes: str) -> bytes:
    """A sample's file with a patient and an order."""
    sample = next((ROOT / "samples" / "studies").glob("*/*.dcm"))
    made = pydicom.dcmread(sample)
    made.SpecificCharacterSet = "ISO_IR 100"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    told = {"PatientName": PATIENT, "PatientID": NUMBER, "AccessionNumber": ACCESSION} | changes
    for keyword, value in told.items():
        setattr(made, keyword, value)
    written = io.BytesIO()
    made.save_as(written)
    return written.getvalue()


def analysed(outbox: Outbox, hospital: Hospital, assessment: Assessment = Assessment.POSITIVE, **changes: str) -> UUID:
    """A study of a real file that a worker has just analysed."""
    study = hospital.stored(outbox.store, [radiograph(**changes)])
    finish(hospital, study, assessment)
    return study


def finish(hospital: Hospital, study: UUID, assessment: Assessment = Assessment.POSITIVE) -> None:
    hospital.set(study, completeness=Completeness.COMPLETE)
    claim = hospital.claim(study)
    found = Finding(1, "a", "hand", 0.9, 0.7, assessment, Extent.MILD, Heatmap(b"1234", 2, 2), SCORES[assessment])
    assert hospital.finish(claim, [InstanceResult(one.id, [found]) for one in claim.instances])


# -- a receiver of HL7


def fields(message: bytes, name: str) -> list[list[str]]:
    """The segments of a kind, in their fields."""
    return [line.split("|") for line in message.decode("latin-1").split("\r") if line.startswith(f"{name}|")]


def id_of(message: bytes) -> str:
    return fields(message, "MSH")[0][9]


def ack(message: bytes, code: str = "AA", words: str = "", more: str = "") -> bytes:
    return BEGIN + f"MSH|^~\\&|RIS\rMSA|{code}|{id_of(message)}|{words}\r{more}".encode() + END


Answering = Callable[[bytes], bytes | None]  # a message, and what is answered; None: nothing, and the line stays open


@dataclass
class Ris:
    """A receiver of HL7 that keeps each message."""

    answer: Answering = ack
    port: int = 0
    received: list[bytes] = field(default_factory=list)

    @contextmanager
    def open(self, context: ssl.SSLContext | None = None) -> Iterator["Ris"]:
        """Listen during the block."""
        stopping, held = threading.Event(), []
        with socket.create_server(("127.0.0.1", self.port)) as server:
            self.port = server.getsockname()[1]

            def serve() -> None:
                while not stopping.is_set():
                    with suppress(OSError):
                        plain, _ = server.accept()
                        talking = context.wrap_socket(plain, server_side=True) if context else plain
                        held.append(talking)
                        self._one(talking)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            try:
                yield self
            finally:
                stopping.set()
                for one in held:
                    one.close()
                with suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
        thread.join(limit_s(10))

    def _one(self, talking: socket.socket) -> None:
        taken = b""
        while not taken.endswith(END):
            piece = talking.recv(65536)
            if not piece:
                talking.close()
                return
            taken += piece
        message = taken[1:-2]
        self.received.append(message)
        if (answer := self.answer(message)) is not None:
            talking.sendall(answer)
            talking.close()

    def destination(self, **changes: Any) -> Destination:
        """This receiver as a destination."""
        return replace(Destination(DestinationKind.HL7, "127.0.0.1", self.port), **changes)


def test_a_result_reaches_the_order_it_is_of(outbox: Outbox, hospital: Hospital) -> None:
    """From the finding's commit to the acknowledgement: patient, order, codes, preliminary; no row holds the patient."""
    with Ris().open() as ris:
        wanted = ris.destination(application="RIS", facility="NORTH", character_set="8859/1", probability=True)
        outbox.add(wanted, ANALYSED)
        analysed(outbox, hospital)
        outbox.send()
        outbox.send()
        (message,) = ris.received
    text = message.decode("iso8859-1")
    segments = {line.split("|")[0]: line.split("|") for line in text.split("\r") if line}
    assert segments["MSH"][4:6] == ["RIS", "NORTH"]
    assert segments["MSH"][17] == "8859/1"
    assert segments["PID"][3].split("^")[0] == NUMBER
    assert segments["PID"][5].startswith("Grünwald^Änne^")
    assert (segments["OBR"][3], segments["OBR"][25]) == (ACCESSION, "P")
    assert "Positive, hand, score" in text
    assert "70.0" in text
    row = only_delivery(outbox.database)
    assert (row.state, row.attempts, row.set_id) == ("sent", 1, None)
    assert rows(outbox.database, ResultSetRow) == []  # no object is made for it
    (notice,) = rows(outbox.database, NoticeRow)
    told = json.dumps(notice.told)
    assert not [one for one in (NUMBER, ACCESSION, "Grünwald", "Gr\\u00fcnwald") if one in told]


def test_nothing_is_written_where_nobody_is_told(outbox: Outbox, hospital: Hospital) -> None:
    """Neither without a destination, nor for one of objects; and an archive's rules make no notice."""
    analysed(outbox, hospital)
    with Archive().open() as archive:
        outbox.add(Destination(DestinationKind.DICOM, "127.0.0.1", archive.port, archive.title), Rule(kinds=("pdf",)))
        analysed(outbox, hospital)
    assert rows(outbox.database, NoticeRow) == []


def test_a_study_without_an_accession_number_is_not_sent(outbox: Outbox, hospital: Hospital) -> None:
    """A code says why, nothing fails, and the next study goes."""
    with Ris().open() as ris:
        outbox.add(ris.destination(), ANALYSED)
        analysed(outbox, hospital, AccessionNumber="")
        outbox.send()
        assert ris.received == []
        row = only_delivery(outbox.database)
        assert (row.state, row.reason) == ("withdrawn", "no-accession-number")
        analysed(outbox, hospital)
        outbox.send()
        assert len(ris.received) == 1


def test_a_number_that_cannot_be_written_waits_for_a_person(outbox: Outbox, hospital: Hospital) -> None:
    """An identifier loses no letter: the field is named, and another character set heals it."""
    with Ris().open() as ris:
        outbox.add(ris.destination(character_set="ASCII"), ANALYSED)
        analysed(outbox, hospital, AccessionNumber="Ä-1")
        outbox.send()
        row = only_delivery(outbox.database)
        assert (row.state, row.reason, ris.received) == ("failed", "not-encodable", [])
        assert row.words.startswith("OBR-")


@pytest.mark.parametrize(
    ("answer", "state", "reason", "status"),
    [
        (lambda got: ack(got, "AE", f"no patient {NUMBER} Grünwald"), "failed", "refused", "AE"),
        (lambda got: ack(got, "AR", "", "ERR|||200^unsupported message type\r"), "waiting", "unsupported", "AR"),
        (lambda got: ack(got, "AR", "queue is full"), "waiting", "busy", "AR"),
        (lambda got: ack(got, "CA"), "sent", "", ""),
        (lambda _: BEGIN + b"hello" + END, "waiting", "unintelligible", ""),
        (lambda _: b"", "waiting", "cut", ""),
        (lambda _: None, "waiting", "no-answer", ""),
        (lambda got: ack(got.replace(id_of(got).encode(), b"ANOTHER")), "waiting", "cut", ""),
    ],
)
def test_each_answer_of_a_receiver(
    outbox: Outbox,
    hospital: Hospital,
    answer: Answering,
    state: str,
    reason: str,
    status: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What can heal is tried again under the same id with the same bytes; the rest is told in the receiver's words."""
    with Ris(answer).open() as ris:
        outbox.add(ris.destination(), ANALYSED)
        analysed(outbox, hospital)
        outbox.send()
        row = only_delivery(outbox.database)
        assert (row.state, row.reason, row.status) == (state, reason, status)
        ris.answer = ack
        end_waits(outbox.database)
        outbox.send()
        row = only_delivery(outbox.database)
        assert row.state == ("sent" if state == "waiting" else state)
        assert len(set(ris.received)) == 1  # the same bytes, so the same MSH-10
        assert len(ris.received) == (2 if state == "waiting" else 1)
    if status == "AE":
        assert row.words == "no patient ... ..."  # what the message says of the patient is left out
    printed = capsys.readouterr()
    assert not [one for one in (NUMBER, ACCESSION, "nwald") if one in printed.out + printed.err]


def test_what_is_refused_for_three_days_is_told_in_the_receivers_words(outbox: Outbox, hospital: Hospital) -> None:
    """AR means later; at the end a person sees the words, and has it sent again."""
    with Ris(lambda got: ack(got, "AR", "queue is full")).open() as ris:
        outbox.add(ris.destination(), ANALYSED)
        analysed(outbox, hospital)
        outbox.send()
        with outbox.database.transaction() as session:
            session.execute(update(DeliveryRow).values(tried_until=func.now()))
        end_waits(outbox.database)
        outbox.send()
    row = only_delivery(outbox.database)
    assert (row.state, row.reason, row.status, row.words) == ("failed", "gave-up", "AR", "queue is full")


def test_a_message_that_silences_a_receiver_holds_up_no_other_one(outbox: Outbox, hospital: Hospital) -> None:
    """It waits for itself, and for the destination a little; then the next one is tried before it."""
    with Ris(lambda got: None if b"POISON" in got else ack(got)).open() as ris:
        outbox.add(ris.destination(), ANALYSED)
        analysed(outbox, hospital, AccessionNumber="POISON")
        analysed(outbox, hospital)
        outbox.send()
        with outbox.database.transaction() as session:
            session.execute(update(DestinationRow).values(not_before=None))  # its wait ends; the message's goes on
        outbox.send()
    states = sorted((row.state, row.reason) for row in rows(outbox.database, DeliveryRow))
    assert states == [("sent", ""), ("waiting", "no-answer")]


def test_an_older_message_never_comes_after_a_newer_one(outbox: Outbox, hospital: Hospital) -> None:
    """A message says all there is: one that waits is superseded by the next of its study."""
    with Ris(lambda got: ack(got, "AR")).open() as ris:
        outbox.add(ris.destination(), replace(ANALYSED, newer_models=NewerModels.ALL))
        study = analysed(outbox, hospital)
        outbox.send()
        ris.answer = ack
        with outbox.database.transaction() as session:
            due.record_newer_model(session, [study])
        end_waits(outbox.database)
        outbox.send()
        assert len({id_of(one) for one in ris.received}) == 2
    assert sorted(row.state for row in rows(outbox.database, DeliveryRow)) == ["sent", "superseded"]


def test_nobody_there_and_the_destination_waits(outbox: Outbox, hospital: Hospital) -> None:
    """Its wait grows with each failure, and ends with an answer."""
    with Ris().open() as ris:
        pass
    outbox.add(ris.destination(), ANALYSED)
    analysed(outbox, hospital)
    for failures in (1, 2, 3):
        outbox.send()
        (destination,) = rows(outbox.database, DestinationRow)
        assert (destination.failures, destination.reason) == (failures, "unreachable")
        end_waits(outbox.database)
    with ris.open():
        outbox.send()
    assert only_delivery(outbox.database).state == "sent"
    (destination,) = rows(outbox.database, DestinationRow)
    assert (destination.failures, destination.reason) == (0, "")


def test_a_certificate_that_was_not_agreed_on(outbox: Outbox, hospital: Hospital, tmp_path: Path) -> None:
    """Nothing is sent to another machine, and it waits for a person; with the right fingerprint it goes."""
    certificate, key, fingerprint = Certificates(tmp_path).make("ris")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Ris().open(context) as ris:
        for agreed, name in (("00" * 32, "WRONG"), (fingerprint, "RIGHT")):
            wanted = ris.destination(kind=DestinationKind.HL7_TLS, tls_fingerprint=agreed)
            outbox.add(wanted, ANALYSED, name=name)
        analysed(outbox, hospital)
        outbox.send()
        assert len(ris.received) == 1
    states = sorted((row.state, row.reason) for row in rows(outbox.database, DeliveryRow))
    assert states == [("sent", ""), ("waiting", "certificate")]


def test_files_of_tls_that_are_missing_are_told(outbox: Outbox, hospital: Hospital, tmp_path: Path) -> None:
    """Everything that goes there waits, and the words name the settings; nothing is tried each second."""
    changes = {"delivery_tls_authorities": tmp_path / "nothing.pem"}
    outbox.settings = outbox.settings.model_copy(update=changes)
    outbox.add(Destination(DestinationKind.HL7_TLS, "127.0.0.1", 2575), ANALYSED, name="RIS")
    outbox.add(Destination(DestinationKind.WEBHOOK, url="https://127.0.0.1:1", networks=HERE), ANALYSED, name="HOOKS")
    analysed(outbox, hospital)
    outbox.send()
    for row in rows(outbox.database, DeliveryRow):
        assert (row.state, row.reason, row.attempts) == ("waiting", "certificate", 1)
        assert "OSTEON_DELIVERY_TLS_AUTHORITIES" in row.words
    assert all(row.not_before is not None for row in rows(outbox.database, DestinationRow))


def test_a_test_always_ends(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a name that cannot be one, and with an error of our own: it is told, and not tried each second."""

    def tried(wanted: Destination) -> str:
        id_ = outbox.add(wanted, ANALYSED, name=wanted.host[:9] or "HOOKS")
        with outbox.database.transaction() as session:
            destinations.ask_test(session, session.get_one(DestinationRow, id_))
        outbox.send()
        with outbox.database.transaction() as session:
            row = session.get_one(DestinationRow, id_)
            assert row.test_asked_at is None
            return row.test_reason

    long = "a" * 64 + ".example"
    assert tried(Destination(DestinationKind.HL7, long, 2575)) == "unknown-name"
    assert tried(Destination(DestinationKind.WEBHOOK, url=f"https://{long}")) == "unknown-name"
    monkeypatch.setattr(sending, "choose_messenger", lambda *_: 1 // 0)
    assert tried(Destination(DestinationKind.HL7, "127.0.0.1", 2575)) == "not-sent"


def test_a_receiver_that_contradicts_itself_is_refused_when_it_is_added() -> None:
    """An event that is no result, objects, a webhook's networks: each is named."""
    wanted = Destination(DestinationKind.HL7, "ris.example", 2575)
    for rule, word in (
        (replace(ANALYSED, events=(Event.READ,)), "webhook"),
        (Rule(kinds=("pdf",)), "events"),
    ):
        with pytest.raises(Exception, match=word):
            rule.validate(["pdf"]).check_kind(wanted.kind)
    for changes, word in (
        ({"networks": "10.0.0.0/8"}, "networks"),
        ({"character_set": "EBCDIC"}, "character_set"),
        ({"accession": "OBR-18"}, "accession"),
        ({"port": 0}, "port"),
        ({"application": "a" * 65}, "application"),
        ({"url": "https://x"}, "URL"),
    ):
        with pytest.raises(Exception, match=word):
            replace(wanted, **changes).validate()


# -- a receiver of webhooks


@dataclass
class Hooks:
    """A receiver of webhooks that keeps each request, and answers as it is told to."""

    statuses: list[int] = field(default_factory=list)  # of the next requests; then 204
    body: bytes = b""
    url: str = ""
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator["Hooks"]:
        """Listen during the block."""
        statuses, taken, body = self.statuses, self.received, self.body

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                taken.append(({name.lower(): value for name, value in self.headers.items()}, content))
                status = statuses.pop() if statuses else 204
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("location", "http://127.0.0.1:1/elsewhere")
                self.send_header("content-length", str(len(body) if status != 204 else 0))
                self.end_headers()
                self.wfile.write(body if status != 204 else b"")

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}/osteon"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def destination(self, networks: str = HERE) -> Destination:
        """This receiver as a destination."""
        return Destination(DestinationKind.WEBHOOK, url=self.url, networks=networks)

    @property
    def bodies(self) -> list[Any]:
        """What was told."""
        return [json.loads(body) for _, body in self.received]


def test_what_happens_to_a_study_is_told_signed_and_names_nobody(outbox: Outbox, hospital: Hospital) -> None:
    """Analysed and quarantined; ids and codes; the receiver verifies it with its secret."""
    with Hooks().open() as hooks:
        destination = outbox.add(hooks.destination(), ALL)
        study = analysed(outbox, hospital)
        other = hospital.stored(outbox.store, [radiograph()])
        claim = hospital.claim(other)
        unread = [InstanceResult(one.id, [], Reason.NO_PIXEL_DATA) for one in claim.instances]
        assert hospital.finish(claim, unread)
        outbox.send()
        told = {one["type"]: one["data"] for one in hooks.bodies}
        for headers, body in hooks.received:
            Webhook(webhook_secret(KEY, destination, 1)).verify(body, headers)
            for one in (NUMBER, ACCESSION, "nwald"):
                assert one.encode() not in body
    assert set(told) == {"study.analysed", "study.quarantined"}
    assert told["study.analysed"]["study_id"] == str(study)
    assert (told["study.analysed"]["assessment"], told["study.analysed"]["region"]) == ("positive", "hand")
    assert told["study.quarantined"]["reason"] == Reason.NO_PIXEL_DATA
    assert "assessment" not in told["study.quarantined"]
    assert {row.state for row in rows(outbox.database, DeliveryRow)} == {"sent"}


def test_a_receiver_that_answers_500_for_a_day(outbox: Outbox, hospital: Hospital) -> None:
    """It is tried again by the outbox's waits, at most an hour each, under one id and with a fresh signature; then it goes."""
    with Hooks(statuses=[500] * 200).open() as hooks:
        destination = outbox.add(hooks.destination(), ANALYSED)
        analysed(outbox, hospital)
        waited = timedelta(0)
        while waited < timedelta(days=1):
            outbox.send()
            row = only_delivery(outbox.database)
            assert (row.state, row.reason, row.status) == ("waiting", "busy", "HTTP 500")
            wait = row.next_at - datetime.now(UTC)
            assert wait <= MAX_WAIT * 1.5
            waited += wait
            end_waits(outbox.database)
        assert waited < TRIED_FOR
        tries = len(hooks.received)
        assert 24 <= tries < 60
        hooks.statuses.clear()
        outbox.send()
        assert only_delivery(outbox.database).state == "sent"
        assert len({headers["webhook-id"] for headers, _ in hooks.received}) == 1
        assert len({body for _, body in hooks.received}) == 1
        for headers, body in hooks.received:
            Webhook(webhook_secret(KEY, destination, 1)).verify(body, headers)


@pytest.mark.parametrize("status", [400, 422])
def test_what_waiting_does_not_heal_is_told(outbox: Outbox, hospital: Hospital, status: int) -> None:
    """A refusal is told in the receiver's words; the next message goes."""
    with Hooks(statuses=[status], body=b"not like this").open() as hooks:
        outbox.add(hooks.destination(), ANALYSED)
        for _ in range(2):
            analysed(outbox, hospital)
        outbox.send()
        assert len(hooks.received) == 2
    told = sorted((row.state, row.reason, row.status, row.words) for row in rows(outbox.database, DeliveryRow))
    assert told == [("failed", "refused", f"HTTP {status}", "not like this"), ("sent", "", "", "")]


@pytest.mark.parametrize(("status", "reason"), [(302, "bad-address"), (404, "bad-address"), (401, "access")])
def test_what_a_person_mends_waits_together(outbox: Outbox, hospital: Hospital, status: int, reason: str) -> None:
    """A redirect is not followed. One message tries, the others wait with it, and all go once it is mended."""
    with Hooks(statuses=[status], body=b"not like this").open() as hooks:
        destination = outbox.add(hooks.destination(), ANALYSED)
        for _ in range(3):
            analysed(outbox, hospital)
        outbox.send()
        assert len(hooks.received) == 1
        told = {(row.state, row.reason, row.words) for row in rows(outbox.database, DeliveryRow)}
        assert told == {("waiting", reason, "not like this")}
        with outbox.database.transaction() as session:
            deliveries.send_all_again(session, outbox.key, destination)
        outbox.send()
        assert len(hooks.received) == 4
    assert {row.state for row in rows(outbox.database, DeliveryRow)} == {"sent"}


def test_no_way_into_the_site(outbox: Outbox, hospital: Hospital) -> None:
    """An address of this machine is refused unless its network is named; nothing connects."""
    with Hooks().open() as hooks:
        outbox.add(hooks.destination(networks="10.0.0.0/8"), ANALYSED)
        analysed(outbox, hospital)
        outbox.send()
        assert hooks.received == []
    row = only_delivery(outbox.database)
    assert (row.state, row.reason) == ("waiting", "address-not-allowed")
    (destination,) = rows(outbox.database, DestinationRow)
    assert (destination.reason, destination.failures) == ("address-not-allowed", 1)


def test_a_secret_is_replaced_without_a_gap(outbox: Outbox, hospital: Hospital) -> None:
    """For a day both sign, so that a receiver changes when it likes; then, or at once, the new one alone."""
    with Hooks().open() as hooks:
        destination = outbox.add(hooks.destination(), ANALYSED)

        def sent() -> dict[int, bool]:
            analysed(outbox, hospital)
            outbox.send()
            headers, body = hooks.received[-1]
            found = {}
            for number in (1, 2, 3):
                try:
                    Webhook(webhook_secret(KEY, destination, number)).verify(body, headers)
                    found[number] = True
                except WebhookVerificationError:
                    found[number] = False
            return found

        def replaced(*, at_once: bool) -> None:
            with outbox.database.transaction() as session:
                row = destinations.lock_destination(session, None, destination)
                destinations.replace_secret(session, outbox.key, row, at_once=at_once)

        assert sent() == {1: True, 2: False, 3: False}
        replaced(at_once=False)
        assert sent() == {1: True, 2: True, 3: False}
        with outbox.database.transaction() as session:
            session.execute(update(DestinationRow).values(former_secret_until=func.now()))
        assert sent() == {1: False, 2: True, 3: False}
        replaced(at_once=True)
        assert sent() == {1: False, 2: False, 3: True}


def test_without_a_key_webhooks_wait(outbox: Outbox, hospital: Hospital) -> None:
    """Nothing leaves unsigned; the reason names the cure, and nothing is lost."""
    with Hooks().open() as hooks:
        outbox.add(hooks.destination(), ANALYSED)
        analysed(outbox, hospital)
        keyed, outbox.settings = (
            outbox.settings,
            outbox.settings.model_copy(update={"webhook_key": type(outbox.settings.webhook_key)("")}),
        )
        outbox.send()
        (row,) = rows(outbox.database, DestinationRow)
        assert (row.reason, hooks.received) == ("no-key", [])
        outbox.settings = keyed
        end_waits(outbox.database)
        outbox.send()
        assert len(hooks.received) == 1


def test_what_is_not_so_any_more_is_not_told(outbox: Outbox, hospital: Hospital) -> None:
    """A study that was rejected before its message went."""
    with Hooks().open() as hooks:
        outbox.add(hooks.destination(), ALL)
        study = analysed(outbox, hospital)
        with outbox.database.transaction() as session:
            session.get_one(StudyRow, study).status = StoredStatus.KEPT
        outbox.send()
        assert hooks.received == []
    assert [row.state for row in rows(outbox.database, NoticeRow)] == ["withdrawn"]


def test_a_newer_model_is_told_only_where_it_says_something_else(outbox: Outbox, hospital: Hospital) -> None:
    """And only where something was told: a run over history tells nobody."""
    with Hooks().open() as hooks:
        before = analysed(outbox, hospital)
        outbox.add(hooks.destination(), ALL)
        study = analysed(outbox, hospital)
        outbox.send()
        with outbox.database.transaction() as session:
            due.record_newer_model(session, [before, study])
        outbox.send()
        assert [one["type"] for one in hooks.bodies] == ["study.analysed"]
        hospital.set(study, assessment="negative", score=1.0)
        with outbox.database.transaction() as session:
            due.record_newer_model(session, [before, study])
        outbox.send()
        assert [one["type"] for one in hooks.bodies] == ["study.analysed", "study.revised"]
        assert hooks.bodies[1]["data"]["assessment"] == "negative"


def test_rules_choose_studies_moments_and_hours(outbox: Outbox, hospital: Hospital) -> None:
    """Another assessment is not told; a rule that waits for completeness waits."""
    with Hooks().open() as hooks:
        outbox.add(
            hooks.destination(), replace(ANALYSED, assessments=("negative",)), replace(ANALYSED, when=When.AGREED)
        )
        analysed(outbox, hospital)
        outbox.send()
        assert hooks.received == []
        analysed(outbox, hospital, Assessment.NEGATIVE)
        outbox.send()
        assert len(hooks.received) == 1
