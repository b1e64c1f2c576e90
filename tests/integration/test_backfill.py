"""The backfill run, on a real Postgres and a real broker: what it chooses, in which order, and where it stops."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from celery.schedules import crontab
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from shared.db.clock import db_now
from shared.db.tables import AnalysisRow, BackfillRunRow, BundleRow, RevisedFindingRow, StudyRow
from shared.domain.analysis import AnalysisState, Claim, Purpose
from shared.domain.backfill import BackfillRun, RunEnd, Stage
from shared.domain.findings import Assessment, Finding, InstanceResult
from shared.domain.study import Priority, StudyStatus
from shared.errors import Cause, Reason
from shared.queries import analyses, backfill, backfill_reports
from shared.queue.celery_app import ANALYSE, BACKFILL, FRAMES, SWEEP_FRAMES, celery_app
from shared.queue.publisher import TaskPublisher
from shared.settings import Settings
from tests.examples import examples
from tests.hospital import Hospital
from tests.pace import LIMIT_S
from worker.maintenance.backfill import send_batches, start_run
from worker.maintenance.sweeper import CLAIM_GRACE_S, reconcile

MIDDAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
TWO = datetime(2026, 3, 2, 2, tzinfo=UTC)
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
LEASE = timedelta(seconds=30)


class PlannedRun:
    """Backfill runs, one at a time, at times of the test's choosing, and workers that take what waits."""

    finding: Callable[..., Finding]

    def __init__(self, hospital: Hospital, settings: Settings) -> None:
        self.hospital, self.settings = hospital, settings
        self.publisher = TaskPublisher(celery_app(settings))

    def __call__(self, now: datetime = TWO) -> Any:
        return start_run(self.settings, self.hospital.database, self.publisher, now)

    def send_batches(self, now: datetime) -> Any:
        """What a sweep does: send the next batch, and what of earlier ones is lost."""
        fed, oldest = (
            send_batches(self.settings, self.hospital.database, self.publisher, now),
            self.publisher.oldest_messages(),
        )
        grace = timedelta(seconds=self.settings.resend_grace_s)
        with self.hospital.database.transaction() as session:
            lost = [one for one in analyses.resend_lost(session, oldest, now, grace) if one.queue is Priority.BACKLOG]
        return fed + len(lost) - len(self.publisher.send(lost))

    def messages(self, queue: str = "backlog") -> list[tuple[str, str]]:
        """(task, arguments) of the messages of a queue, the oldest first; they stay there."""
        with redis.Redis.from_url(self.settings.broker_url.get_secret_value()) as client:
            found = [json.loads(message)["headers"] for message in reversed(client.lrange(queue, 0, -1))]
        return [(headers["task"], headers["argsrepr"]) for headers in found]

    def empty(self) -> None:
        """Messages are taken, and what they led to is up to the test."""
        with redis.Redis.from_url(self.settings.broker_url.get_secret_value()) as client:
            client.flushdb()

    def look(
        self, study: UUID, now: datetime = TWO, bundle: str = "b", assessment: Assessment = Assessment.POSITIVE
    ) -> Any:
        """A rerun as a worker takes it; None if there is nothing to do."""
        asked = self.hospital.rerun(study, bundle).id
        with self.hospital.database.transaction() as session:
            (claim,) = analyses.claim(session, [asked], bundle, now, LEASE, max_attempts=4)
        if claim is None:
            return None
        assert isinstance(claim, Claim)
        results = [InstanceResult(one.id, [self.finding(bundle, assessment=assessment)]) for one in claim.instances]
        with self.hospital.database.transaction() as session:
            assert analyses.finish(session, [analyses.AnalysisResult(claim, results)], now) == [True]
        return claim

    def work_off(
        self, now: datetime = TWO, bundle: str = "b", assessment: Assessment = Assessment.POSITIVE, most: int = 10**6
    ) -> list[UUID]:
        """Do up to `most` of the reruns that are out, in the order in which they were sent; returns the ids."""
        with self.hospital.database.transaction() as session:
            looks = session.scalars(
                select(AnalysisRow).where(AnalysisRow.state == AnalysisState.QUEUED, AnalysisRow.model == bundle)
            ).all()
        chosen = [look.study_id for look in looks][:most]
        self.empty()
        return [study for study in chosen if self.look(study, now, bundle, assessment)]


@pytest.fixture
def run(
    hospital: Hospital, make_settings: Callable[..., Settings], make_finding: Callable[..., Finding]
) -> Iterator[PlannedRun]:
    """Opens one run at a time."""
    made = PlannedRun(hospital, make_settings(backfill_max_studies=10, backfill_in_flight=100))
    made.finding = make_finding
    yield made
    made.publisher.app.close()


def analysed(
    hospital: Hospital,
    make_finding: Callable[..., Finding],
    bundle: str = "a",
    assessment: Assessment = Assessment.POSITIVE,
    now: datetime = MIDDAY,
    **values: Any,
) -> UUID:
    study = hospital.study(now=now)
    claim = hospital.claim(study, bundle=bundle)
    hospital.finish(
        claim,
        [InstanceResult(one.id, [make_finding(bundle, assessment=assessment)]) for one in claim.instances],
        bundle,
    )
    if values:
        hospital.set(study, **values)
    return study


def failed(hospital: Hospital) -> UUID:
    """Quarantined by something that may have healed since."""
    study = hospital.study()
    with hospital.database.transaction() as session:
        analyses.retry(session, hospital.claim(study), Cause(Reason.OBJECT_MISSING), MIDDAY, 1)
    return study


def broken(hospital: Hospital) -> UUID:
    """Quarantined because its only image can never be read."""
    study = hospital.study()
    claim = hospital.claim(study)
    hospital.finish(claim, [InstanceResult(claim.instances[0].id, error_reason=Reason.TRUNCATED_PIXELS)])
    return study


def runs(hospital: Hospital) -> list[BackfillRun]:
    with hospital.database.transaction() as session:
        return backfill_reports.runs(session)


def looks(hospital: Hospital, **values: Any) -> list[AnalysisRow]:
    with hospital.database.transaction() as session:
        return list(session.scalars(select(AnalysisRow).where(AnalysisRow.run_id.is_not(None)).filter_by(**values)))


def test_what_was_left_behind_goes_to_the_backlog(
    hospital: Hospital, run: PlannedRun, make_finding: Callable[..., Finding]
) -> None:
    """Failed studies are queued on the backlog, a stranded one is sent again where it belongs, outdated ones get a
    rerun and stay what they are for all who read, and others rest."""
    outdated = [analysed(hospital, make_finding), analysed(hospital, make_finding)]
    hospital.add_bundle("b")
    rest = [analysed(hospital, make_finding, "b"), broken(hospital)]
    healable, stranded = failed(hospital), hospital.study()
    hospital.set(stranded, sent_at=MIDDAY)
    fresh = hospital.study(now=TWO - HOUR)
    assert run() == 4
    row = hospital.row(healable)
    assert (row.status, row.queue, row.attempts, row.sent_at) == (StudyStatus.QUEUED, Priority.BACKLOG, 0, TWO)
    for study in outdated:
        row = hospital.row(study)
        assert (row.status, row.bundle, row.assessment, row.queue) == (
            StudyStatus.ANALYSED,
            "a",
            Assessment.POSITIVE,
            "routine",
        )
    assert (hospital.row(stranded).queue, hospital.row(stranded).sent_at) == (Priority.ROUTINE, TWO)
    assert [hospital.row(study).status for study in rest] == [StudyStatus.ANALYSED, StudyStatus.QUARANTINED]
    assert hospital.row(fresh).sent_at is None
    assert [task for task, _ in run.messages("routine")] == [ANALYSE]
    assert [task for task, _ in run.messages()] == [ANALYSE, ANALYSE, ANALYSE]
    assert all(str(study) in str(run.messages()) for study in outdated)
    (opened,) = runs(hospital)
    assert (opened.failed, opened.stranded, opened.outdated, opened.finished_at) == (1, 1, 2, None)
    assert (opened.bundle, opened.day, opened.ends_at) == ("b", date(2026, 3, 2), TWO + 4 * HOUR)


def test_a_study_that_kills_workers_is_left_to_people(hospital: Hospital, run: PlannedRun) -> None:
    """What was quarantined for the death of its workers is not let loose on its neighbours again in every run."""
    study, now = hospital.study(), MIDDAY
    for _ in range(5):
        hospital.claim(study, now, alone=True)
        now += MINUTE
    assert hospital.row(study).reason == Reason.WORKER_DIED
    assert run() == 0
    assert hospital.row(study).status == StudyStatus.QUARANTINED


def test_one_run_a_day(hospital: Hospital, run: PlannedRun) -> None:
    """A second scheduler, or a second message, does nothing; the next day runs again."""
    failed(hospital)
    assert run() == 1
    failed(hospital)
    assert run(TWO + 30 * MINUTE) is None
    assert run(TWO + DAY) == 1  # the new one; the first still waits in the queue
    assert [each.day for each in runs(hospital)] == [date(2026, 3, 3), date(2026, 3, 2)]
    assert runs(hospital)[1].ended_by is RunEnd.NEXT_RUN


def test_a_run_whose_message_was_lost_is_opened_by_the_sweeper(
    hospital: Hospital, run: PlannedRun, make_finding: Callable[..., Finding]
) -> None:
    """Within its window a sweeper opens a run that nobody opened, once, and it ends when the window does."""
    study = analysed(hospital, make_finding)
    hospital.add_bundle("b")
    with hospital.database.transaction() as session:
        session.execute(update(BundleRow).values(activated_at=MIDDAY))
    assert run.send_batches(TWO - MINUTE) == 0, "before the window"
    assert run.send_batches(TWO + 4 * HOUR) == 0, "after it"
    assert runs(hospital) == []
    assert run.send_batches(TWO + HOUR) == 1
    assert run(TWO + HOUR + MINUTE) is None, "beat's message, late"
    (opened,) = runs(hospital)
    assert (opened.day, opened.ends_at) == (TWO.date(), TWO + 4 * HOUR)
    run.empty()
    assert run.look(study, TWO + HOUR)
    run.send_batches(TWO + 2 * HOUR)
    run.send_batches(TWO + 3 * HOUR)
    assert len(runs(hospital)) == 1


def test_a_system_that_starts_within_the_window_has_no_run_yet(hospital: Hospital, run: PlannedRun) -> None:
    """Where no bundle was active before the window there is no history to look at."""
    with hospital.database.transaction() as session:
        session.execute(update(BundleRow).values(activated_at=TWO + MINUTE))
    assert run.send_batches(TWO + HOUR) == 0
    assert runs(hospital) == []


def test_two_schedulers_at_once_open_one_run(hospital: Hospital, run: PlannedRun) -> None:
    """Of schedulers that send at the same moment one opens the run, and each study gets one message."""
    for _ in range(5):
        failed(hospital)
    start = threading.Barrier(4)

    def send(_: int) -> Any:
        start.wait(LIMIT_S)
        return run()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(send, range(4)))
    assert results.count(None) == 3
    run.send_batches(TWO + MINUTE)
    assert len(runs(hospital)) == 1
    assert run.publisher.waiting()[Priority.BACKLOG] == 5


def test_any_number_of_workers_send_each_rerun_once(
    hospital: Hospital, run: PlannedRun, make_finding: Callable[..., Finding]
) -> None:
    """Workers that sweep at the same moment fill the queue once: no study is sent twice, and no room is overrun."""
    studies = [analysed(hospital, make_finding) for _ in range(9)]
    hospital.add_bundle("b")
    run.settings = run.settings.model_copy(update={"backfill_in_flight": 3})
    assert run() == 3
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run.send_batches, [TWO + MINUTE] * 4))
    assert run.publisher.waiting()[Priority.BACKLOG] == 3
    run.work_off()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run.send_batches, [TWO + MINUTE] * 4))
    assert run.publisher.waiting()[Priority.BACKLOG] == 3
    assert len(looks(hospital)) == 6
    assert {look.study_id for look in looks(hospital)} < set(studies)


def test_the_order_is_newest_day_first_and_likeliest_fracture_first(
    hospital: Hospital, run: PlannedRun, make_finding: Callable[..., Finding]
) -> None:
    """After failed and stranded ones, history goes by day of arrival, newest first, and within a day by risk."""
    expected = {}
    hospital.add_bundle("c")
    for day in range(3):
        for risk in (0.9, 0.2, 0.5):
            arrived = MIDDAY - day * DAY + timedelta(hours=random.Random(day + risk).randrange(10))
            expected[day, -risk] = analysed(
                hospital, make_finding, random.choice("ac"), now=arrived, fracture_probability=risk
            )
    first = failed(hospital)
    hospital.add_bundle("b")
    run()
    sent = [arguments for _, arguments in run.messages()]
    assert len(sent) == 10
    for arguments, study in zip(sent, [first, *(expected[key] for key in sorted(expected))], strict=True):
        assert str(study) in arguments


def test_a_run_is_bounded_and_the_next_goes_on(
    hospital: Hospital, run: PlannedRun, make_finding: Callable[..., Finding]
) -> None:
    """A run takes at most so many studies, failed ones first but no more than half, and leaves the rest to the next."""
    old = [analysed(hospital, make_finding) for _ in range(8)]
    bad = [failed(hospital) for _ in range(6)]
    hospital.add_bundle("b")
    assert run() == 10
    assert (runs(hospital)[0].failed, runs(hospital)[0].outdated) == (5, 5)
    assert len(run.work_off()) == 5
    for study in bad:
        if hospital.row(study).status == StudyStatus.QUEUED:
            claim = hospital.claim(study, TWO, bundle="b")
            hospital.finish(claim, hospital.results(claim, "b"), "b")
    assert run.send_batches(TWO + MINUTE) == 0
    (opened,) = runs(hospital)
    assert (opened.ended_by, opened.finished_at) == (RunEnd.COUNT_REACHED, TWO + MINUTE)
    assert (opened.report or {})["kinds"] == {"failed": {"done": 5}, "outdated": {"done": 5}}
    run.empty()
    assert run(TWO + DAY) == 4
    assert len(run.work_off(TWO + DAY)) == 3
    (last,) = (study for study in bad if hospital.row(study).status == StudyStatus.QUEUED)
    claim = hospital.claim(last, TWO + DAY, bundle="b")
    hospital.finish(claim, hospital.results(claim, "b"), "b")
    run.send_batches(TWO + DAY + MINUTE)
    assert (runs(hospital)[0].failed, runs(hospital)[0].stranded, runs(hospital)[0].outdated) == (1, 0, 3)
    assert runs(hospital)[0].ended_by == RunEnd.HISTORY_ENDED
    assert {hospital.row(study).bundle for study in old} == {"b"}


def test_a_failed_study_is_tried_once_a_run(hospital: Hospital, run: PlannedRun) -> None:
    """What fails again does not come round and round in the same run; the report says so."""
    study = failed(hospital)
    run()
    with hospital.database.transaction() as session:
        analyses.retry(session, hospital.claim(study, TWO), Cause(Reason.OBJECT_MISSING), TWO, 1)
    assert run.send_batches(TWO + MINUTE) == 0
    (opened,) = runs(hospital)
    assert (opened.report or {})["kinds"] == {"failed": {"failed": 1}}
    assert hospital.row(study).status == StudyStatus.QUARANTINED


def test_the_window_ends_and_the_next_run_goes_on(
    hospital: Hospital, run: PlannedRun, make_finding: Callable[..., Finding]
) -> None:
    """At its end nothing more is sent, what is out and not begun is taken back, what is begun may finish; the next run
    takes up first what was taken back, and then goes on at the cursor."""
    for hour in range(9):
        analysed(hospital, make_finding, now=MIDDAY + hour * MINUTE, fracture_probability=hour / 10)
    hospital.add_bundle("b")
    run.settings = run.settings.model_copy(update={"backfill_in_flight": 4})
    assert run() == 4
    first = run.messages()
    begun = looks(hospital)[0].study_id
    with hospital.database.transaction() as session:
        (claim,) = analyses.claim(session, [hospital.rerun(begun, "b").id], "b", TWO + 4 * HOUR, LEASE, max_attempts=4)
    assert isinstance(claim, Claim)
    late = TWO + 4 * HOUR + timedelta(seconds=1)
    assert run.send_batches(late) == 0
    assert runs(hospital)[0].finished_at is None, "one is still in hand"
    assert len(looks(hospital, state=AnalysisState.PAUSED)) == 3
    assert all(run.look(look.study_id, late) is None for look in looks(hospital, state=AnalysisState.PAUSED))
    with hospital.database.transaction() as session:
        analyses.finish(session, [analyses.AnalysisResult(claim, hospital.results(claim, "b"))], late)
    assert hospital.row(begun).bundle == "b"
    assert run.send_batches(late) == 0
    (opened,) = runs(hospital)
    assert (opened.ended_by, opened.finished_at) == (RunEnd.WINDOW_CLOSED, late)
    assert (opened.report or {})["kinds"] == {"outdated": {"done": 1, "paused": 3}}
    run.empty()
    assert run(TWO + DAY) == 4
    assert run.messages()[:3] == [message for message in first if str(begun) not in message[1]]
    done = [begun, *run.work_off(TWO + DAY)]
    while run.send_batches(TWO + DAY + MINUTE):
        done += run.work_off(TWO + DAY)
    assert len(done) == len(set(done)) == 9
    assert hospital.count(bundle="b") == 9


def test_a_failed_study_is_accounted_for_after_the_window(hospital: Hospital, run: PlannedRun) -> None:
    """It stays in its queue when the window closes, so it is not "held": the run ends with its result."""
    done, waits = failed(hospital), failed(hospital)
    run()
    late = TWO + 4 * HOUR + timedelta(seconds=1)
    claim = hospital.claim(done, late)
    hospital.finish(claim, hospital.results(claim))
    run.send_batches(late)
    assert {look.study_id: look.state for look in looks(hospital)} == {
        done: AnalysisState.DONE,
        waits: AnalysisState.QUEUED,
    }
    claim = hospital.claim(waits, late)
    hospital.finish(claim, hospital.results(claim))
    run.send_batches(late + MINUTE)
    assert (runs(hospital)[0].report or {})["kinds"] == {"failed": {"done": 2}}


def test_the_next_run_closes_the_account_of_the_last(hospital: Hospital, run: PlannedRun) -> None:
    """What was analysed counts as done, what still waits in its own queue as queued: no night is owed it."""
    done, waits = failed(hospital), failed(hospital)
    run()
    claim = hospital.claim(done, TWO)
    hospital.finish(claim, hospital.results(claim))
    run(TWO + DAY)
    last, before = runs(hospital)
    assert (before.report or {})["kinds"] == {"failed": {"done": 1, "queued": 1}}
    assert hospital.row(waits).status == StudyStatus.QUEUED
    assert not looks(hospital, state=AnalysisState.PAUSED)
    assert last.finished_at == TWO + DAY, "nothing is owed any more"


def test_a_newer_activation_ends_the_run(
    hospital: Hospital, run: PlannedRun, make_finding: Callable[..., Finding]
) -> None:
    """A bundle that becomes active while reruns by another are out makes them needless, and harms nothing."""
    studies = [analysed(hospital, make_finding) for _ in range(3)]
    hospital.add_bundle("b")
    run()
    with hospital.database.transaction() as session:
        (claim,) = analyses.claim(session, [hospital.rerun(studies[0], "b").id], "b", TWO, LEASE, max_attempts=4)
    assert isinstance(claim, Claim)
    hospital.add_bundle("c")
    assert run.look(studies[1]) is None
    with hospital.database.transaction() as session:
        assert analyses.finish(session, [analyses.AnalysisResult(claim, hospital.results(claim, "b"))], TWO) == [True]
    run.send_batches(TWO + MINUTE)
    (opened,) = runs(hospital)
    assert (opened.ended_by, opened.finished_at is not None) == (RunEnd.OTHER_BUNDLE, True)
    assert {hospital.row(study).bundle for study in studies} == {"a"}
    run.empty()
    assert run(TWO + DAY) == 3
    assert all(run.look(study, TWO + DAY, "c") for study in studies)
    assert {hospital.row(study).bundle for study in studies} == {"c"}


def test_what_waits_in_a_long_queue_is_neither_stranded_nor_lost(
    hospital: Hospital, run: PlannedRun, make_finding: Callable[..., Finding]
) -> None:
    """The oldest of the queues tell what is lost: a study or rerun that waits behind an older message is not sent
    again, and one that was forgotten is, by the next sweep."""
    waiting, study = hospital.study(), analysed(hospital, make_finding)
    hospital.add_bundle("b")
    with hospital.database.transaction() as session:
        run.publisher.send(analyses.mark_unsent_as_sent(session, [waiting], MIDDAY))
    assert run() == 1
    assert hospital.row(waiting).sent_at == MIDDAY
    assert run.send_batches(TWO + HOUR) == 0
    run.empty()
    assert run.send_batches(TWO + 2 * HOUR) == 1
    assert [arguments for _, arguments in run.messages()] == [f"('{hospital.rerun(study, 'b').id}',) study {study}"]
    with hospital.database.transaction() as session:
        (claim,) = analyses.claim(session, [hospital.rerun(study, "b").id], "b", TWO + 2 * HOUR, LEASE, max_attempts=4)
    run.empty()
    assert run.send_batches(TWO + 2 * HOUR + LEASE) == 0, "a worker holds it"
    assert run.send_batches(TWO + 2 * HOUR + LEASE * 2) == 1, "its worker died"
    assert isinstance(claim, Claim) and claim.attempt == 1


def test_what_a_worker_has_just_taken_is_not_sent_again(
    hospital: Hospital, run: PlannedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that left its queue a moment ago is no lost one: who took it claims its study while the reconciler waits."""
    taken, forgotten = hospital.study(), hospital.study()
    with hospital.database.transaction() as session:
        now = db_now(session)
    for study in (taken, forgotten):
        hospital.set(study, sent_at=now - MINUTE)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        assert hospital.claim(taken, now=now)

    monkeypatch.setattr("worker.maintenance.sweeper.time.sleep", sleep)
    assert reconcile(hospital.database, run.publisher, timedelta(0)) == 1
    assert [arguments for _, arguments in run.messages("routine")] == [
        f"('{hospital.current(forgotten)}',) study {forgotten}"
    ]
    assert reconcile(hospital.database, run.publisher, timedelta(seconds=5)) == 0
    assert waits == [CLAIM_GRACE_S], "what waits in its queue is not waited for"


def test_without_a_bundle_no_run_is_opened(hospital: Hospital, run: PlannedRun) -> None:
    """Before a bundle is active no run is recorded, so that the day can still have its run."""
    failed(hospital)
    with hospital.database.transaction() as session:
        session.connection().exec_driver_sql("UPDATE bundles SET active = false")
    assert run() is None
    assert runs(hospital) == []
    hospital.add_bundle("b")
    assert run() == 1


def test_a_dead_broker_does_not_lose_the_run(
    hospital: Hospital, make_settings: Callable[..., Settings], make_finding: Callable[..., Finding]
) -> None:
    """What the run could not send for want of a broker is sent once that is back, and is not chosen twice."""
    study = analysed(hospital, make_finding)
    hospital.add_bundle("b")
    dead = PlannedRun(hospital, make_settings(broker_url="redis://127.0.0.1:1/0"))
    with pytest.raises(Exception, match="broker does not answer"):
        dead()
    alive = PlannedRun(hospital, make_settings())
    assert alive() is None, "the run is open"
    with hospital.database.transaction() as session:
        batch = backfill.next_batch(session, backfill.Pacing(9, 2.0, timedelta(0)), dict.fromkeys(Priority), TWO)
    assert batch is not None
    assert [one.study_id for one in batch.to_send] == [study]
    assert dead.publisher.send(batch.to_send) == [hospital.rerun(study, "b").id]
    with hospital.database.transaction() as session:
        analyses.mark_not_sent(session, [one.analysis_id for one in batch.to_send])
    assert alive.send_batches(TWO) == 1
    for one in (dead, alive):
        one.publisher.app.close()


def test_a_broker_that_forgot_is_told_of_in_the_log(
    hospital: Hospital, run: PlannedRun, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages that were sent and are nowhere are worth a warning with the cure; a first message and a retry are not."""
    study, retried = hospital.study(), hospital.study()
    with hospital.database.transaction() as session:
        now = db_now(session)
        analyses.retry(session, hospital.claim(retried), Cause(Reason.STORE_UNAVAILABLE), MIDDAY, 4)
    hospital.set(study, sent_at=None)
    assert reconcile(hospital.database, run.publisher, timedelta(0)) == 2
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    run.empty()
    hospital.set(study, sent_at=now - MINUTE)
    hospital.set(retried, sent_at=now - MINUTE)
    assert reconcile(hospital.database, run.publisher, timedelta(0)) == 2
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (warning.name, vars(warning)["count"]) == ("worker.maintenance.sweeper", 2)
    assert "OSTEON_BROKER_URL" in vars(warning)["why"] and "appendonly" in vars(warning)["why"]


@examples(5, 30, data=st.data())
def test_however_runs_are_stopped_each_study_gets_exactly_one_rerun(
    hospital: Hospital, run: PlannedRun, make_finding: Callable[..., Finding], data: st.DataObject
) -> None:
    """Over any windows, batches, losses of the broker and studies that fail, every outdated study is looked at once."""
    with hospital.database.transaction() as session:
        for table in (RevisedFindingRow, AnalysisRow, BackfillRunRow):
            rows = delete(table)
            session.execute(rows.where(AnalysisRow.purpose != Purpose.FIRST) if table is AnalysisRow else rows)
    old, new = (f"{word}-{random.getrandbits(60)}" for word in ("old", "new"))
    hospital.add_bundle(old)
    studies = []
    for _ in range(data.draw(st.integers(1, 9), "studies")):
        now = MIDDAY - DAY * data.draw(st.integers(0, 2))
        risk = data.draw(st.sampled_from([0.1, 0.5, 0.9]))
        studies.append(analysed(hospital, make_finding, old, now=now, fracture_probability=risk))
    hospital.set(*(s for s in all_ids(hospital) if s not in studies), bundle=new)
    hospital.add_bundle(new)
    in_flight, most = data.draw(st.integers(1, 4), "in flight"), data.draw(st.integers(1, 9), "most")
    run.settings = run.settings.model_copy(update={"backfill_in_flight": in_flight, "backfill_max_studies": most})
    looked: list[UUID] = []
    begin = TWO
    while len(looked) < len(studies):
        run(begin)
        for sweep in range(data.draw(st.integers(1, 4), "sweeps")):
            out = looks(hospital, state=AnalysisState.QUEUED)
            assert len(out) <= in_flight
            if data.draw(st.booleans(), "the broker forgets"):
                run.empty()
            looked += run.work_off(begin + MINUTE, new, most=data.draw(st.integers(not sweep, 4), "done"))
            run.send_batches(begin + MINUTE)
        run.send_batches(begin + 5 * HOUR)
        assert not looks(hospital, state=AnalysisState.QUEUED)
        begin += DAY
        assert begin < TWO + 40 * DAY
    assert sorted(looked) == sorted(studies)
    assert {hospital.row(study).bundle for study in studies} == {new}


def all_ids(hospital: Hospital) -> list[UUID]:
    with hospital.database.transaction() as session:
        return list(session.scalars(select(StudyRow.id)))


def test_beat_sends_once_a_day_at_the_hour_of_the_settings(make_settings: Callable[..., Settings]) -> None:
    """Beat sends the backfill task at the set hour in the hospital's zone, where it cannot wait behind a backlog."""
    app = celery_app(make_settings(backfill_hour=3, backfill_timezone="Europe/Berlin"))
    entry = app.conf.beat_schedule["backfill"]
    assert entry["task"] == BACKFILL
    assert entry["schedule"] == crontab(hour=3, minute=0)
    assert entry["options"]["queue"] == Priority.URGENT
    frames = app.conf.beat_schedule["frames"]  # in a queue that tells the reconciler nothing
    assert (frames["task"], frames["options"]["queue"]) == (SWEEP_FRAMES, FRAMES)
    assert frames["schedule"] == crontab(hour=3, minute=30)
    assert app.conf.timezone == "Europe/Berlin"
    app.close()


def test_every_stage_and_purpose_has_its_word(hospital: Hospital, run: PlannedRun) -> None:
    """A run over nothing ends at once, exhausted, with an empty report."""
    assert run() == 0
    (opened,) = runs(hospital)
    assert (opened.stage, opened.ended_by, opened.finished_at) == (Stage.EXHAUSTED, RunEnd.HISTORY_ENDED, TWO)
    assert (opened.report or {})["kinds"] == {}
    assert "outdated" not in (opened.report or {})["changes"]
