"""Storage commitment for results: what is asked after a delivery, and what each kind of report, or none, does."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, build_role
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from sqlalchemy import func, select, update

from api.listener import server
from api.listener.server import listening
from infra.embedded.process import free_port
from shared.db.engine import Database
from shared.db.tables import (
    CommitmentRequestRow,
    DeliveryObjectRow,
    DeliveryRow,
    DestinationRow,
    ResultObjectRow,
)
from shared.dicom.commitment import COMPLETE, MAX_INSTANCES, WELL_KNOWN
from shared.dicom.conformance import STORAGE_COMMITMENT, VERIFICATION
from shared.domain.destinations import Destination, DestinationKind
from shared.domain.peers import PeerRule
from shared.domain.security import System
from shared.errors import BadRequest, InvalidState
from shared.queries import deliveries, destinations, peers
from shared.settings import Settings
from tests.hospital import Hospital
from tests.integration.test_deliveries import ANALYSED, analysed, pacs
from tests.integration.test_deliveries import outbox as impatient
from tests.results import SC, Archive, Outbox, end_waits, only_delivery, rows

__all__ = ["impatient"]  # the fixture


@pytest.fixture
def outbox(impatient: Outbox) -> Outbox:
    """The site's outbox, which waits as long as a busy machine takes."""
    impatient.settings = impatient.settings.model_copy(update={"delivery_answer_s": 30.0, "lease_s": 60.0})
    return impatient


def committing(**changes: Any) -> Archive:
    """An archive that takes each request."""
    return replace(Archive(commits=lambda _: 0x0000), **changes)


def sent(outbox: Outbox, hospital: Hospital, archive: Archive) -> None:
    """Send a study's results there, and ask whether they are kept."""
    outbox.add(pacs(archive, confirm=True), ANALYSED)
    analysed(hospital)
    outbox.make()
    outbox.send()


def objects(database: Database) -> dict[str, DeliveryObjectRow]:
    """What was delivered, by SOP Instance UID."""
    with database.transaction() as session:
        found = session.execute(
            select(ResultObjectRow.sop_instance_uid, DeliveryObjectRow)
            .join(DeliveryObjectRow, DeliveryObjectRow.object_id == ResultObjectRow.id)
        )  # fmt: skip
        return {uid: row for uid, row in found}  # noqa: C416 - rows are no pairs to mypy


def requests(database: Database) -> list[CommitmentRequestRow]:
    """What was asked, the first first."""
    return sorted(rows(database, CommitmentRequestRow), key=lambda row: row.asked_at)


@pytest.fixture
def port(outbox: Outbox) -> Iterator[int]:
    """A listener beside the process that sends."""
    settings = outbox.settings.model_copy(update={"dicom_port": free_port()})
    with listening(settings) as (_, ports):
        yield ports["dicom"]


# -- over the association of the request


def test_an_archive_that_answers_at_once_confirms_every_object(outbox: Outbox, hospital: Hospital) -> None:
    """Over the association of the request; nothing is asked or sent again afterwards."""
    archive = committing(at_once=True)
    with archive.open():
        sent(outbox, hospital, archive)
        outbox.send()
    row = only_delivery(outbox.database)
    assert (row.state, row.confirmation, row.reason) == ("sent", "confirmed", "")
    assert row.confirmed_at is not None and row.sent_at is not None
    assert archive.answers == [0x0000]
    (asked,) = archive.asked.values()
    found = objects(outbox.database)
    assert sorted(uid for _, uid in asked) == sorted(found) == sorted(uid for uid, _ in archive.received)
    assert all(one.confirmed_at is not None and one.failure == "" for one in found.values())


def test_several_deliveries_are_confirmed_over_one_association(outbox: Outbox, hospital: Hospital) -> None:
    """Reports come while the next request is sent."""
    archive = committing(at_once=True)
    with archive.open():
        outbox.add(pacs(archive, confirm=True), ANALYSED)
        for _ in range(5):
            analysed(hospital)
        outbox.make()
        outbox.send()
    assert {row.confirmation for row in rows(outbox.database, DeliveryRow)} == {"confirmed"}
    assert archive.answers == [0x0000] * 5


def test_a_destination_that_is_not_asked_is_not_waited_for(outbox: Outbox, hospital: Hospital) -> None:
    """Without `confirm` nothing is proposed and nothing is asked."""
    archive = committing(at_once=True)
    with archive.open():
        outbox.add(pacs(archive), ANALYSED)
        analysed(hospital)
        outbox.make()
        outbox.send()
    assert (only_delivery(outbox.database).state, only_delivery(outbox.database).confirmation) == ("sent", "")
    assert archive.asked == {}


# -- later


def test_an_archive_that_answers_later_is_heard_by_the_listener(outbox: Outbox, hospital: Hospital, port: int) -> None:
    """Days later, with reversed roles, over an association of its own; the same report again is answered and no more."""
    archive = committing()
    with archive.open():
        sent(outbox, hospital, archive)
    assert (only_delivery(outbox.database).confirmation, only_delivery(outbox.database).confirmed_at) == ("asked", None)
    with outbox.database.transaction() as session:
        past = timedelta(days=4)
        session.execute(update(CommitmentRequestRow).values(asked_at=func.now() - past))
        session.execute(update(DeliveryRow).values(tried_until=func.now() - past))
    (transaction,) = archive.asked
    assert archive.report(port, transaction) == 0x0000
    row = only_delivery(outbox.database)
    assert (row.confirmation, row.reason) == ("confirmed", "")
    archive.not_kept = dict.fromkeys(objects(outbox.database), 0x0112)
    assert archive.report(port, transaction) == 0x0000
    assert only_delivery(outbox.database).confirmed_at == row.confirmed_at
    assert len(archive.received) == 4


def test_an_archive_that_proposes_no_roles_is_heard_as_well(outbox: Outbox, hospital: Hospital, port: int) -> None:
    """Some do not negotiate what they do."""
    archive = committing()
    with archive.open():
        sent(outbox, hospital, archive)
    (transaction,) = archive.asked
    assert archive.report(port, transaction, role=False) == 0x0000
    assert only_delivery(outbox.database).confirmation == "confirmed"


def test_silence_confirms_nothing_and_sends_nothing(outbox: Outbox, hospital: Hospital) -> None:
    """Weeks without a report: the delivery is sent, and not confirmed. A person may ask again, and nothing is resent."""
    archive = committing()
    with archive.open():
        sent(outbox, hospital, archive)
        with outbox.database.transaction() as session:
            session.execute(update(DeliveryRow).values(tried_until=func.now() - timedelta(days=30)))
        end_waits(outbox.database)
        outbox.send()
        row = only_delivery(outbox.database)
        assert (row.state, row.confirmation, row.confirmed_at) == ("sent", "asked", None)
        assert (len(archive.received), len(archive.asked)) == (4, 1)
        with outbox.database.transaction() as session:
            assert deliveries.send_again(session, outbox.key, None, row.id).state == "sent"
        outbox.send()
    assert (len(archive.received), len(archive.asked)) == (4, 2)
    assert only_delivery(outbox.database).confirmation == "asked"


def test_who_is_asked_no_more_is_not_asked_again(outbox: Outbox, hospital: Hospital) -> None:
    """A person clears what was not confirmed before: it is sent, and nothing is open."""
    archive = Archive()
    with archive.open():
        sent(outbox, hospital, archive)
        row = only_delivery(outbox.database)
        assert row.confirmation == "failed"
        with outbox.database.transaction() as session:
            locked = destinations.lock_destination(session, None, row.destination_id)
            destinations.change(session, outbox.key, locked, pacs(archive))
            assert deliveries.send_all_again(session, outbox.key, row.destination_id) == 1
        outbox.send()
    row = only_delivery(outbox.database)
    assert (row.state, row.confirmation, row.reason) == ("sent", "", "")
    assert len(archive.received) == 4
    with outbox.database.transaction() as session:
        assert deliveries.list_undelivered(session, None, 10) == []


def test_a_report_on_an_earlier_request_counts(outbox: Outbox, hospital: Hospital, port: int) -> None:
    """Who is asked twice may answer the first request only."""
    archive = committing()
    with archive.open():
        sent(outbox, hospital, archive)
        with outbox.database.transaction() as session:
            deliveries.send_again(session, outbox.key, None, only_delivery(outbox.database).id)
        outbox.send()
    first, second = (row.transaction_uid for row in requests(outbox.database))
    assert archive.report(port, first) == 0x0000
    assert only_delivery(outbox.database).confirmation == "confirmed"
    assert archive.report(port, second) == 0x0000


# -- failures


def test_what_is_not_kept_is_told_and_sent_again_when_a_person_says_so(
    outbox: Outbox, hospital: Hospital, port: int
) -> None:
    """One object of four; the others are not sent a second time, and all are confirmed in the end."""
    archive = committing()
    with archive.open():
        sent(outbox, hospital, archive)
        lost = archive.received[1][0]
        archive.not_kept = {lost: 0x0112}
        (transaction,) = archive.asked
        assert archive.report(port, transaction) == 0x0000
        row = only_delivery(outbox.database)
        assert (row.state, row.confirmation, row.reason, row.status) == ("sent", "failed", "not-kept", "0112")
        assert {uid: one.failure for uid, one in objects(outbox.database).items() if one.failure} == {lost: "0112"}
        outbox.send()
        assert len(archive.received) == 4  # a failure sends nothing by itself
        archive.not_kept = {}
        with outbox.database.transaction() as session:
            (told,) = deliveries.list_undelivered(session, None, 10)
            assert told.row.id == row.id
            assert deliveries.send_all_again(session, outbox.key, row.destination_id) == 1
        outbox.send()
        assert [uid for uid, _ in archive.received[4:]] == [lost]
        again = next(uid for uid in archive.asked if uid != transaction)
        assert [uid for _, uid in archive.asked[again]] == [lost]
        assert archive.report(port, again) == 0x0000
    assert (only_delivery(outbox.database).confirmation, only_delivery(outbox.database).reason) == ("confirmed", "")


def test_an_object_that_a_report_leaves_out_is_not_confirmed(outbox: Outbox, hospital: Hospital, port: int) -> None:
    """PS3.4 J.3.3.1.2 has every instance of the request in its report."""
    archive = committing()
    with archive.open():
        sent(outbox, hospital, archive)
    (transaction,) = archive.asked
    left_out = archive.asked[transaction].pop()
    assert archive.report(port, transaction) == 0x0000
    row = only_delivery(outbox.database)
    assert (row.confirmation, row.reason) == ("failed", "not-named")
    confirmed = {uid: one.confirmed_at is not None for uid, one in objects(outbox.database).items()}
    assert [uid for uid, is_ in confirmed.items() if not is_] == [left_out[1]]


def test_an_object_under_another_class_is_not_confirmed(outbox: Outbox, hospital: Hospital, port: int) -> None:
    """What the archive keeps is not what was sent."""
    archive = committing()
    with archive.open():
        sent(outbox, hospital, archive)
    (transaction,) = archive.asked
    archive.asked[transaction] = [("1.2.3", uid) for _, uid in archive.asked[transaction]]
    assert archive.report(port, transaction) == 0x0000
    assert only_delivery(outbox.database).reason == "not-named"


@pytest.mark.parametrize(
    ("status", "confirmation", "reason"),
    [(0x0110, "due", "busy"), (0x0213, "due", "busy"), (0x0124, "failed", "commitment-refused")],
)
def test_a_request_that_is_refused_is_told_and_one_that_can_heal_is_repeated(
    outbox: Outbox, hospital: Hospital, status: int, confirmation: str, reason: str
) -> None:
    """The delivery stays sent in each case."""
    answers = iter([status])
    archive = Archive(commits=lambda _: next(answers, 0x0000), at_once=True)
    with archive.open():
        sent(outbox, hospital, archive)
        row = only_delivery(outbox.database)
        assert (row.state, row.confirmation, row.reason, row.status) == ("sent", confirmation, reason, f"{status:04X}")
        end_waits(outbox.database)
        outbox.send()
    assert only_delivery(outbox.database).confirmation == ("confirmed" if confirmation == "due" else "failed")
    assert len(archive.received) == 4


def test_an_archive_without_storage_commitment_is_told(outbox: Outbox, hospital: Hospital) -> None:
    """By the test of the destination as well."""
    archive = Archive()
    with archive.open():
        sent(outbox, hospital, archive)
        row = only_delivery(outbox.database)
        assert (row.state, row.confirmation, row.reason) == ("sent", "failed", "no-commitment")
        with outbox.database.transaction() as session:
            destinations.ask_test(session, session.get_one(DestinationRow, row.destination_id))
        outbox.send()
    (destination,) = rows(outbox.database, DestinationRow)
    assert destination.test_reason == "no-commitment"


def test_a_request_without_an_answer_is_repeated_under_another_uid(outbox: Outbox, hospital: Hospital) -> None:
    """It hangs: the destination waits as with an object, and is asked again for three days at most."""

    def silent(_event: Any) -> int:
        time.sleep(5)
        return 0x0000

    outbox.settings = outbox.settings.model_copy(update={"delivery_answer_s": 2.0})
    archive = Archive(commits=silent)
    with archive.open():
        sent(outbox, hospital, archive)
        (destination,) = rows(outbox.database, DestinationRow)
        assert (destination.reason, only_delivery(outbox.database).confirmation) == ("no-answer", "due")
        end_waits(outbox.database)
        with outbox.database.transaction() as session:
            session.execute(update(DeliveryRow).values(tried_until=func.now()))
        outbox.send()
    row = only_delivery(outbox.database)
    assert (row.state, row.confirmation, row.reason) == ("sent", "failed", "gave-up")
    assert len({one.transaction_uid for one in requests(outbox.database)}) == 2


def test_an_archive_that_is_away_when_it_is_to_be_asked_is_asked_later(outbox: Outbox, hospital: Hospital) -> None:
    """It aborts the association on each request."""
    archive = Archive(commits=lambda event: event.assoc.abort() or 0x0000)
    with archive.open():
        sent(outbox, hospital, archive)
    assert only_delivery(outbox.database).confirmation == "due"
    with replace(committing(at_once=True), port=archive.port).open():
        end_waits(outbox.database)
        outbox.send()
    assert only_delivery(outbox.database).confirmation == "confirmed"


# -- reports that are nobody's


def test_an_unknown_transaction_uid_is_answered_and_changes_nothing(
    outbox: Outbox, hospital: Hospital, port: int
) -> None:
    """0115, invalid argument value: over both ways, and for a UID of another destination's."""
    archive, other = committing(), committing(title="OTHER")
    with archive.open(), other.open():
        sent(outbox, hospital, archive)
        outbox.add(pacs(other, confirm=True), ANALYSED, name="OTHER")
    (transaction,) = archive.asked
    assert archive.report(port, "2.25.1") == 0x0115
    assert other.report(port, transaction) == 0x0115
    assert archive.report(port, transaction + "9" * 64) == 0x0115
    assert only_delivery(outbox.database).confirmation == "asked"
    assert requests(outbox.database)[0].reported_at is None


def test_only_destinations_that_are_asked_may_report(outbox: Outbox, hospital: Hospital, port: int) -> None:
    """Other titles, a disabled destination, and one without `confirm` are rejected as unknown callers."""
    archive = committing()
    with archive.open():
        sent(outbox, hospital, archive)
    (transaction,) = archive.asked
    assert replace(archive, title="NOBODY").report(port, transaction) is None
    assert archive.report(port, transaction, called="OTHER") is None
    for value in ({"disabled_at": func.now()}, {"disabled_at": None, "confirm": False}):
        with outbox.database.transaction() as session:
            session.execute(update(DestinationRow).values(value))
        title = f"PACS{len(value)}"  # the listener remembers callers that it refused
        with outbox.database.transaction() as session:
            session.execute(update(DestinationRow).values(called_ae=title))
        assert replace(archive, title=title).report(port, transaction) is None
    assert only_delivery(outbox.database).confirmation == "asked"


def test_whoever_may_report_may_do_nothing_else(outbox: Outbox, hospital: Hospital, port: int) -> None:
    """No storage, and no request for storage commitment; C-ECHO tells that the way is open."""
    archive = committing()
    with archive.open():
        sent(outbox, hospital, archive)
    entity = AE(archive.title)
    for uid in (VERIFICATION, SC, STORAGE_COMMITMENT):
        entity.add_requested_context(uid, ImplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title="OSTEON")
    assert {str(one.abstract_syntax) for one in association.accepted_contexts} == {VERIFICATION, STORAGE_COMMITMENT}
    assert association.send_c_echo().Status == 0x0000
    told, item = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = SC, "1.2.3"
    told.TransactionUID, told.ReferencedSOPSequence = "1.2.3", [item]
    status, _ = association.send_n_action(told, 1, STORAGE_COMMITMENT, WELL_KNOWN)
    assert status.Status == 0x0124
    association.release()
    association = entity.associate(
        "127.0.0.1", port, ae_title="OSTEON", ext_neg=[build_role(STORAGE_COMMITMENT, scu_role=True)]
    )
    assert STORAGE_COMMITMENT not in {str(one.abstract_syntax) for one in association.accepted_contexts}
    association.release()


def test_an_archive_that_also_sends_reports_as_well(outbox: Outbox, hospital: Hospital, port: int) -> None:
    """A peer with the titles of a destination keeps what it may."""
    archive = committing()
    with archive.open():
        sent(outbox, hospital, archive)
    with outbox.database.transaction() as session:
        peers.admit(session, System.PREPARE, hospital.site_id, PeerRule(archive.title), name="archive", issuer="")
    entity = AE(archive.title)
    entity.add_requested_context(SC)
    association = entity.associate("127.0.0.1", port, ae_title="OSTEON")
    assert association.is_established
    association.release()
    (transaction,) = archive.asked
    assert archive.report(port, transaction) == 0x0000
    assert only_delivery(outbox.database).confirmation == "confirmed"


def test_a_report_that_is_none_is_refused(outbox: Outbox, hospital: Hospital, port: int) -> None:
    """Another event, another instance, a damaged or an endless data set; the association goes on."""
    archive = committing()
    with archive.open():
        sent(outbox, hospital, archive)
    (transaction,) = archive.asked
    entity = AE(archive.title)
    entity.add_requested_context(STORAGE_COMMITMENT)
    association = entity.associate(
        "127.0.0.1", port, ae_title="OSTEON", ext_neg=[build_role(STORAGE_COMMITMENT, scp_role=True)]
    )
    item, told, damaged, endless, nobodys = (Dataset() for _ in range(5))
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = SC, "1.2"
    told.TransactionUID = damaged.TransactionUID = endless.TransactionUID = transaction
    damaged.ReferencedSOPSequence, nobodys.ReferencedSOPSequence = [Dataset()], [item]
    endless.ReferencedSOPSequence = [item] * (MAX_INSTANCES + 1)

    def status(information: Dataset | None, kind: int = COMPLETE, instance: str = WELL_KNOWN) -> int:
        answer, _ = association.send_n_event_report(information, kind, STORAGE_COMMITMENT, instance)
        return int(answer.Status)

    assert status(told, kind=3) == 0x0113
    assert status(told, instance="1.2.3") == 0x0112
    assert status(damaged) == 0x0115
    assert status(nobodys) == 0x0115
    assert status(None) == 0x0115
    assert status(endless) == 0x0115
    assert only_delivery(outbox.database).confirmation == "asked"
    association.release()


def test_reports_of_one_association_are_taken_one_after_the_other(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends without waiting costs one thread: pynetdicom starts one for each report."""
    open_, most = [0], [0, 0]  # at once, in all

    def slow(*_: object) -> int:
        open_[0] += 1
        most[:] = max(most[0], open_[0]), most[1] + 1
        time.sleep(0.05)
        open_[0] -= 1
        return 0x0115

    monkeypatch.setattr(server, "take_report", slow)
    archive = committing()
    outbox.add(pacs(replace(archive, port=104), confirm=True), ANALYSED)
    with listening(outbox.settings.model_copy(update={"dicom_port": free_port()})) as (_, ports):
        entity = AE(archive.title)
        entity.add_requested_context(STORAGE_COMMITMENT)
        association = entity.associate(
            "127.0.0.1", ports["dicom"], ae_title="OSTEON", ext_neg=[build_role(STORAGE_COMMITMENT, scp_role=True)]
        )
        (context,) = association.accepted_contexts
        for number in range(1, 9):
            request = N_EVENT_REPORT()
            request.MessageID, request.EventTypeID = number, COMPLETE
            request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = STORAGE_COMMITMENT, WELL_KNOWN
            association.dimse.send_msg(request, int(context.context_id or 0))
        until = time.monotonic() + 60
        while most[1] < 8 and time.monotonic() < until:
            time.sleep(0.05)
        association.release()
    assert most == [1, 8]


# -- what is kept


def test_only_dicom_destinations_are_asked() -> None:
    """A folder and STOW-RS have no storage commitment."""
    with pytest.raises(BadRequest, match="storage commitment"):
        Destination(DestinationKind.FOLDER, folder="pacs", confirm=True).validate()
    with pytest.raises(BadRequest, match="storage commitment"):
        Destination(DestinationKind.STOW, url="http://a.example/x", confirm=True).validate()


def test_a_confirmed_delivery_is_not_sent_again(outbox: Outbox, hospital: Hospital) -> None:
    """Nothing is left to be decided."""
    archive = committing(at_once=True)
    with archive.open():
        sent(outbox, hospital, archive)
    with outbox.database.transaction() as session, pytest.raises(InvalidState, match="not confirmed"):
        deliveries.send_again(session, outbox.key, None, only_delivery(outbox.database).id)


def test_who_wants_no_confirmation_any_more_is_not_asked(
    outbox: Outbox, hospital: Hospital, make_settings: Callable[..., Settings]
) -> None:
    """What waits to be asked is left."""
    assert make_settings is not None
    archive = Archive(commits=lambda _: 0x0110)
    with archive.open():
        sent(outbox, hospital, archive)
        assert only_delivery(outbox.database).confirmation == "due"
        with outbox.database.transaction() as session:
            row = destinations.lock_destination(session, None, only_delivery(outbox.database).destination_id)
            destinations.change(session, outbox.key, row, replace(deliveries.destination_of(row), confirm=False))
        end_waits(outbox.database)
        with outbox.database.transaction() as session:
            assert deliveries.take(session, timedelta(seconds=5), 5, kinds=tuple(DestinationKind)) == []
    assert (only_delivery(outbox.database).confirmation, only_delivery(outbox.database).reason) == ("", "")
