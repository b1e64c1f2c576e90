"""Which notices make which messages: readers' answers and newer models by the API, and what must never be told twice."""

import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, select, update

from shared.db.clock import db_now
from shared.db.tables import AnalysisRow, DeliveryRow, InstanceRow, NoticeRow, StudyRow
from shared.domain.analysis import Claim, Purpose
from shared.domain.destinations import NewerModels, When
from shared.domain.findings import Assessment, Extent, Finding, Heatmap, InstanceResult
from shared.domain.notices import USUAL_EVENTS, Event, NoticeContent
from shared.domain.security import Role
from shared.domain.study import Priority, StoredStatus
from shared.errors import Reason
from shared.queries import analyses, backfill, deliveries, notices
from shared.queries import outbox as due
from shared.queries.access import find_key
from shared.queries.models import activate_bundle, add_bundle
from shared.queries.results import request_results
from shared.storage import original_key, sha256_of
from tests.conftest import InProcessApi
from tests.feedback_data import MANIFEST, ONE, POINTS, analyse, say, study_file
from tests.hospital import Hospital
from tests.integration.test_messages import (
    ALL,
    ANALYSED,
    HERE,
    Hooks,
    Ris,
    ack,
    analysed,
    fields,
    radiograph,
)
from tests.integration.test_messages import outbox as outbox_of_messages
from tests.pace import limit_s
from tests.results import Outbox, end_waits, only_delivery, rows

outbox = outbox_of_messages  # the fixture
NAME, NUMBER, ACCESSION = "ZEBRA^QUAGGA", "P-62049377", "ACC-8815-12"


# -- by the API, from the radiograph to the receiver ------------------------------------------------------------------


@pytest.fixture
def api(make_api: Callable[..., InProcessApi]) -> InProcessApi:
    """The API, and a process that sends beside it."""
    return make_api(delivery_answer_s=5.0, lease_s=20.0)


def sending(api: InProcessApi) -> Outbox:
    """What sends for the API's site."""
    with api.database.transaction() as session:
        key = find_key(session, api.keys[Role.ADMIN])
    assert key is not None
    return Outbox(api.database, api.settings, key.site_id, key)


def add(api: InProcessApi, **wanted: Any) -> dict[str, Any]:
    """A destination, as an operator adds it."""
    response = api.http.post(
        "/api/v1/destinations", json={"site": "default", **wanted}, headers=api.headers("operator")
    )
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


def submitted(api: InProcessApi, number: int, **tags: str) -> str:
    """A study of one radiograph that an order is known of."""
    told = {"PatientName": NAME, "PatientID": NUMBER, "AccessionNumber": ACCESSION} | tags
    made: str = api.post({"1": study_file(number, 1, **told)}).json()["studies"][0]["id"]  # type: ignore[arg-type]
    return made


def undo(api: InProcessApi, study: str, entry: str) -> None:
    url = f"/api/v1/studies/{study}/feedback/{entry}/undo"
    assert api.http.post(url, headers=api.headers("radiologist")).status_code in (200, 201)


def revise(api: InProcessApi, study: str, assessment: Assessment) -> None:
    """A run over history with a newer model, which assesses the study in another way."""
    with api.database.transaction() as session:
        add_bundle(session, "second", "1" * 64, MANIFEST)
        activate_bundle(session, "second")
        now = db_now(session)
        assert backfill.open_backfill_run(session, now.date(), now, "second", 4.0, 1000) is not None
    with api.database.transaction() as session:
        backfill.next_batch(session, backfill.Pacing(100, 2.0, timedelta(seconds=8)), dict.fromkeys(Priority), now)
    with api.database.transaction() as session:
        its = AnalysisRow.study_id == UUID(study), AnalysisRow.purpose == Purpose.RERUN
        wanted = list(session.scalars(select(AnalysisRow.id).where(*its)))
        (claim,) = analyses.claim(session, wanted, "second", now, timedelta(seconds=30), max_attempts=4)
        assert isinstance(claim, Claim)
    probability = {Assessment.NEGATIVE: 0.05, Assessment.POSITIVE: 0.9}[assessment]
    extent = Extent.NONE if assessment is Assessment.NEGATIVE else Extent.MILD
    hot = Heatmap(bytes(49), 7, 7)
    found = Finding(1, "second", "hand", 0.98, probability, assessment, extent, hot, POINTS.score(probability))
    with api.database.transaction() as session:
        results = [InstanceResult(one.id, [found]) for one in claim.instances]
        assert analyses.finish(session, [analyses.AnalysisResult(claim, results)], db_now(session)) == [True]


def quarantine(api: InProcessApi, study: str) -> None:
    """No image of it can be read."""
    with api.database.transaction() as session:
        current = session.get_one(StudyRow, UUID(study)).current_analysis_id
        assert current is not None
        (held,) = analyses.claim(session, [current], "first", db_now(session), timedelta(seconds=30), max_attempts=4)
        assert isinstance(held, Claim)
    with api.database.transaction() as session:
        results = [InstanceResult(one.id, error_reason=Reason.TRUNCATED_PIXELS) for one in held.instances]
        assert analyses.finish(session, [analyses.AnalysisResult(held, results)], db_now(session)) == [True]


def test_a_reader_who_agrees_sends_one_message(api: InProcessApi) -> None:
    """Not before; once, though "done" is said again; patient, order and codes, preliminary throughout."""
    sender = sending(api)
    with Ris().open() as ris:
        rules = [{"when": "agreed", "events": ["study.analysed"]}]
        add(api, name="RIS", kind="hl7", host="127.0.0.1", port=ris.port, rules=rules)
        study = submitted(api, 1)
        analyse(api, study)
        sender.send()
        assert ris.received == []
        assert say(api, study, **ONE).status_code == 201
        sender.send()
        assert ris.received == []  # of an image; the study is not done
        done = say(api, study, verdict="done")
        assert done.status_code == 201, done.text
        sender.send()
        (message,) = ris.received
        undo(api, study, next(one["id"] for one in done.json()["entries"] if one["verdict"] == "done"))
        sender.send()
        assert say(api, study, verdict="done").status_code == 201
        sender.send()
        assert len(ris.received) == 1
    assert fields(message, "PID")[0][3].startswith(f"{NUMBER}^")
    (obr,) = fields(message, "OBR")
    assert (obr[3], obr[18], obr[25]) == (ACCESSION, ACCESSION, "P")
    observations = fields(message, "OBX")
    assert observations
    assert {one[11] for one in observations} == {"P"}
    told = api.http.get(f"/api/v1/studies/{study}/deliveries", headers=api.headers()).json()
    assert [(one["destination"], one["state"]) for one in told] == [("RIS", "sent")]


def test_a_reader_who_contradicts_sends_none(api: InProcessApi) -> None:
    """The rule waits for a reader with whom the model agrees."""
    sender = sending(api)
    with Ris().open() as ris:
        rules = [{"when": "agreed", "events": ["study.analysed"]}]
        add(api, name="RIS", kind="hl7", host="127.0.0.1", port=ris.port, rules=rules)
        study = submitted(api, 1)
        analyse(api, study)
        assert say(api, study, **ONE | {"verdict": "disagree", "fracture": "no"}).status_code == 201
        assert say(api, study, verdict="done").status_code == 201
        sender.send()
        assert ris.received == []


def test_a_newer_result_waits_for_a_reader_where_the_first_one_did(api: InProcessApi) -> None:
    """Whoever wants results that a reader agrees with gets none that no reader has seen; others get it at once.

    Once a reader is done with the newer one it goes there as well.
    """
    sender = sending(api)
    with Ris().open() as careful, Ris().open() as quick:
        for when, ris in (("agreed", careful), ("analysed", quick)):
            rules = [{"when": when, "events": ["study.analysed", "study.revised"]}]
            add(api, name=when, kind="hl7", host="127.0.0.1", port=ris.port, rules=rules)
        study = submitted(api, 1)
        analyse(api, study)
        assert say(api, study, **ONE).status_code == 201
        assert say(api, study, verdict="done").status_code == 201
        sender.send()
        assert (len(careful.received), len(quick.received)) == (1, 1)
        revise(api, study, Assessment.NEGATIVE)
        sender.send()
        assert (len(careful.received), len(quick.received)) == (1, 2)
        assert say(api, study, verdict="reopened").status_code == 201
        assert say(api, study, verdict="done").status_code == 201
        sender.send()
        assert (len(careful.received), len(quick.received)) == (2, 2)
        assert b"Negative, hand" in careful.received[1]


def test_each_event_is_told_once_and_names_nobody(api: InProcessApi) -> None:
    """Analysed, read, revised, quarantined: ids and codes, in the order in which they happened."""
    sender = sending(api)
    with Hooks().open() as hooks:
        add(
            api,
            name="EVENTS",
            kind="webhook",
            url=hooks.url,
            networks=HERE,
            rules=[{"when": "analysed", "events": [*USUAL_EVENTS]}],
        )
        study = submitted(api, 1)
        analyse(api, study)
        sender.send()
        assert say(api, study, **ONE).status_code == 201
        assert say(api, study, verdict="done").status_code == 201
        sender.send()
        revise(api, study, Assessment.NEGATIVE)
        sender.send()
        other = submitted(api, 2, PatientID=f"{NUMBER}-2")
        quarantine(api, other)
        sender.send()
        sender.send()
        told = [(one["type"], one["data"]["study_id"]) for one in hooks.bodies]
        assert told == [
            ("study.analysed", study), ("study.read", study), ("study.revised", study), ("study.quarantined", other)
        ]  # fmt: skip
        assert [one["data"].get("assessment") for one in hooks.bodies] == ["positive", "positive", "negative", None]
        assert hooks.bodies[3]["data"]["reason"] == Reason.TRUNCATED_PIXELS
        allowed = {"study_id", "study_instance_uid", "status", "assessment", "region", "reason", "model"}
        for headers, body in hooks.received:
            assert set(json.loads(body)["data"]) <= allowed
            for one in (NUMBER, ACCESSION, *NAME.split("^")):
                assert one.encode() not in body
                assert one not in json.dumps(headers)
        assert len({headers["webhook-id"] for headers, _ in hooks.received}) == 4


def test_no_order_no_message(api: InProcessApi) -> None:
    """Without an accession number nothing leaves; an administrator reads why at the study."""
    sender = sending(api)
    with Ris().open() as ris:
        add(
            api,
            name="RIS",
            kind="hl7",
            host="127.0.0.1",
            port=ris.port,
            rules=[{"when": "analysed", "events": ["study.analysed"]}],
        )
        study = submitted(api, 1, AccessionNumber="")
        analyse(api, study)
        sender.send()
        assert ris.received == []
    (told,) = api.http.get(f"/api/v1/studies/{study}/deliveries", headers=api.headers()).json()
    assert (told["state"], told["reason"]) == ("withdrawn", "no-accession-number")


def test_what_is_asked_for_is_told_once(api: InProcessApi) -> None:
    """By every rule, whatever it waits for; what went already does not go twice; a corrected header is told then."""
    sender = sending(api)
    with Ris().open() as ris:
        rules = [{"when": "agreed", "events": ["study.analysed"]}]
        add(api, name="RIS", kind="hl7", host="127.0.0.1", port=ris.port, rules=rules)
        study = submitted(api, 1)
        analyse(api, study)
        for _ in range(2):
            asked = api.http.post(f"/api/v1/studies/{study}/results", headers=api.headers())
            assert asked.status_code == 201, asked.text
            sender.send()
            assert len(ris.received) == 1


def test_what_had_no_order_is_told_once_it_has_one(outbox: Outbox, hospital: Hospital) -> None:
    """The header was corrected, and somebody asks for the study's results."""
    with Ris().open() as ris:
        outbox.add(ris.destination(), ANALYSED)
        study = analysed(outbox, hospital, AccessionNumber="")
        outbox.send()
        assert (only_delivery(outbox.database).reason, ris.received) == ("no-accession-number", [])
        corrected = radiograph(AccessionNumber="ACC-2")
        digest = sha256_of(corrected)
        outbox.store.put(original_key(digest), io.BytesIO(corrected), len(corrected))
        with outbox.database.transaction() as session:
            session.execute(update(InstanceRow).where(InstanceRow.study_id == study).values(header_sha256=digest))
            request_results(session, session.get_one(StudyRow, study))
        outbox.send()
        assert [fields(one, "OBR")[0][3] for one in ris.received] == ["ACC-2"]


# -- once, and what corrects it ---------------------------------------------------------------------------------------


def newer(outbox: Outbox, hospital: Hospital, study: UUID, **values: Any) -> None:
    """A newer model has assessed a study."""
    hospital.set(study, **values)
    with outbox.database.transaction() as session:
        due.record_newer_model(session, [study])


def test_two_rules_for_two_moments_send_one_message(outbox: Outbox, hospital: Hospital) -> None:
    """A study that is analysed and complete at once; and for a webhook as for HL7."""
    rules = replace(ANALYSED), replace(ANALYSED, when=When.COMPLETE)
    with Ris().open() as ris, Hooks().open() as hooks:
        outbox.add(ris.destination(), *rules, name="RIS")
        outbox.add(hooks.destination(), *rules, name="HOOKS")
        analysed(outbox, hospital)
        outbox.send()
        outbox.send()
        assert (len(ris.received), len(hooks.received)) == (1, 1)


def test_a_message_that_arrived_while_a_newer_one_was_made_was_sent(outbox: Outbox, hospital: Hospital) -> None:
    """The proof says so of both; the newer one comes after it."""
    with Ris().open() as ris:
        outbox.add(ris.destination(), replace(ANALYSED, newer_models=NewerModels.ALL))
        study = analysed(outbox, hospital)

        def slow(got: bytes) -> bytes:
            ris.answer = ack
            newer(outbox, hospital, study, assessment="negative", score=1.0)
            with outbox.database.transaction() as session:
                assert notices.write_next_deliveries(session, "UTC") == "told"
            return ack(got)

        ris.answer = slow
        outbox.send()
        outbox.send()
        assert [b"Negative, hand" in one for one in ris.received] == [False, True]
    told = sorted(rows(outbox.database, DeliveryRow), key=lambda row: row.created_at)
    assert [row.state for row in told] == ["sent", "sent"]
    assert told[0].sent_at < told[1].sent_at


def test_what_corrects_goes_where_it_corrects(outbox: Outbox, hospital: Hospital) -> None:
    """A receiver of positive results alone learns that one is negative; of others it learns nothing."""
    with Ris().open() as ris:
        outbox.add(ris.destination(), replace(ANALYSED, assessments=("positive",)))
        study, other = analysed(outbox, hospital), analysed(outbox, hospital, Assessment.NEGATIVE)
        outbox.send()
        assert len(ris.received) == 1
        newer(outbox, hospital, study, assessment="negative", score=1.0)
        newer(outbox, hospital, other, assessment="negative", score=0.5)
        outbox.send()
        assert len(ris.received) == 2
        assert b"Negative, hand" in ris.received[1]


def test_what_waits_is_not_told_once_it_is_corrected(outbox: Outbox, hospital: Hospital) -> None:
    """A receiver that was away gets the negative result alone; a refused message is replaced, not sent again."""
    for answer, state in ((lambda got: ack(got, "AR"), "waiting"), (lambda got: ack(got, "AE"), "failed")):
        with Ris(answer).open() as ris:
            destination = outbox.add(ris.destination(), replace(ANALYSED, assessments=("positive",)), name=state)
            study = analysed(outbox, hospital)
            outbox.send()
            ris.answer, before = ack, len(ris.received)
            newer(outbox, hospital, study, assessment="negative", score=1.0)
            end_waits(outbox.database)
            outbox.send()
            with outbox.database.transaction() as session:
                deliveries.send_all_again(session, outbox.key, destination)
            outbox.send()
            (message,) = ris.received[before:]
            assert b"Negative, hand" in message
        mine = [row for row in rows(outbox.database, DeliveryRow) if row.destination_id == destination]
        assert sorted(row.state for row in mine) == ["sent", "superseded"]


def test_that_a_study_was_read_stays_so(outbox: Outbox, hospital: Hospital) -> None:
    """A late image comes before the message went; a study that was rejected is told of no more."""
    with Hooks().open() as hooks:
        outbox.add(hooks.destination(), replace(ALL, events=(Event.READ,)))
        study, rejected = analysed(outbox, hospital), analysed(outbox, hospital)
        with outbox.database.transaction() as session:
            due.record_event(session, [study, rejected], Event.READ)
            session.execute(update(StudyRow).where(StudyRow.id == study).values(status=StoredStatus.QUEUED))
            session.execute(update(StudyRow).where(StudyRow.id == rejected).values(status=StoredStatus.KEPT))
        outbox.send()
        assert [(one["type"], one["data"]["study_id"]) for one in hooks.bodies] == [("study.read", str(study))]


# -- what holds up others ---------------------------------------------------------------------------------------------


def test_a_notice_that_breaks_holds_up_no_other_one(
    outbox: Outbox, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has failed, and leaves nothing half done; the next one is told in the same look."""
    told = notices._current_content
    with Hooks().open() as hooks:
        outbox.add(hooks.destination(), ANALYSED)
        broken, fine = analysed(outbox, hospital), analysed(outbox, hospital)

        def breaking(session: Any, row: NoticeRow, *more: Any) -> NoticeContent:
            if row.study_id == broken:
                raise ArithmeticError(f"of {NUMBER}")
            return told(session, row, *more)

        monkeypatch.setattr(notices, "_current_content", breaking)
        outbox.send()
        assert [one["data"]["study_id"] for one in hooks.bodies] == [str(fine)]
    states = {row.study_id: row.state for row in rows(outbox.database, NoticeRow)}
    assert states == {broken: "failed", fine: "told"}


def test_a_study_that_is_being_changed_holds_up_no_other_one(outbox: Outbox, hospital: Hospital) -> None:
    """Its notice waits until the other transaction ends; a deletion and the sender wait for each other never."""
    with Hooks().open() as hooks:
        outbox.add(hooks.destination(), ANALYSED)
        held, free, gone = (analysed(outbox, hospital) for _ in range(3))
        with outbox.database.transaction() as session:
            session.get_one(StudyRow, held, with_for_update=True)
            session.get_one(StudyRow, gone, with_for_update=True)
            session.execute(delete(NoticeRow).where(NoticeRow.study_id == gone))  # as a deletion of the study does
            outbox.send()
            assert [one["data"]["study_id"] for one in hooks.bodies] == [str(free)]
        outbox.send()
        assert [one["data"]["study_id"] for one in hooks.bodies] == [str(free), str(held)]


def test_a_receiver_that_does_not_answer_holds_up_no_other_one(outbox: Outbox, hospital: Hospital) -> None:
    """It answers only once another destination has its message: both are there in the end."""
    outbox.settings = outbox.settings.model_copy(update={"delivery_answer_s": 60.0})
    with Hooks().open() as hooks:

        def late(got: bytes) -> bytes | None:
            until = time.monotonic() + limit_s(20)
            while not hooks.received and time.monotonic() < until:
                time.sleep(0.01)
            return ack(got) if hooks.received else None

        with Ris(late).open() as ris:
            outbox.add(ris.destination(), ANALYSED, name="A")
            outbox.add(hooks.destination(), ANALYSED, name="B")
            analysed(outbox, hospital)
            outbox.send()
    assert [row.state for row in rows(outbox.database, DeliveryRow)] == ["sent", "sent"]


def test_two_processes_send_each_message_once(outbox: Outbox, hospital: Hospital) -> None:
    """They look at the same time, again and again."""
    with Ris().open() as ris, Hooks().open() as hooks:
        outbox.add(ris.destination(), ANALYSED, name="RIS")
        outbox.add(hooks.destination(), ANALYSED, name="HOOKS")
        for _ in range(6):
            analysed(outbox, hospital)
        with ThreadPoolExecutor(2) as both:
            for sent in [both.submit(outbox.send) for _ in range(6)]:
                sent.result()
        assert len({fields(one, "MSH")[0][9] for one in ris.received}) == len(ris.received) == 6
        assert len({headers["webhook-id"] for headers, _ in hooks.received}) == len(hooks.received) == 6


def test_destinations_take_turns(outbox: Outbox, hospital: Hospital) -> None:
    """With fewer threads than destinations that always have something to do, each comes up sooner or later."""
    with Hooks().open() as hooks:
        wanted = {outbox.add(hooks.destination(), ANALYSED, name=f"{number}") for number in range(3)}
        analysed(outbox, hospital)
        with outbox.database.transaction() as session:
            assert notices.write_next_deliveries(session, "UTC") == "told"
        found = set()
        for _ in range(100):
            with outbox.database.transaction() as session:
                (work,) = deliveries.take(session, timedelta(seconds=5), 1, kinds=(hooks.destination().kind,))
                deliveries.release(session, work)
            found.add(work.destination_id)
        assert found == wanted
