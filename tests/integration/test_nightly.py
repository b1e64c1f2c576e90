"""The nightly run, on a real Postgres and a real broker: what it chooses, in which order, and where it stops."""

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from shared.backlog import BacklogRun, LookState, Purpose, Stage
from shared.findings import Assessment, Finding, InstanceResult
from shared.jobs import ANALYSE, FILMS, NIGHTLY, SECOND_LOOK, SWEEP_FILMS, Doorbell, celery_app
from shared.repository import nights, reports, second_looks, work
from shared.settings import Settings
from shared.study import Claim, Priority, StudyStatus
from shared.tables import AlertRow, BacklogRunRow, BundleRow, SecondLookRow, StudyRow
from tests.pace import LIMIT_S
from tests.ward import Ward
from worker.nights import feed, nightly
from worker.sweeps import BEGUN_S, reconcile

MIDDAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
TWO = datetime(2026, 3, 2, 2, tzinfo=UTC)
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
LEASE = timedelta(seconds=30)


class Run:
    """Nights, one at a time, at times of the test's choosing, and workers that take what waits."""

    finding: Callable[..., Finding]

    def __init__(self, ward: Ward, settings: Settings) -> None:
        self.ward, self.settings = ward, settings
        self.doorbell = Doorbell(celery_app(settings))

    def __call__(self, now: datetime = TWO) -> Any:
        return nightly(self.settings, self.ward.database, self.doorbell, now)

    def feed(self, now: datetime) -> Any:
        return feed(self.settings, self.ward.database, self.doorbell, now)

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
        """A second look as a worker takes it; None if there is nothing to do."""
        with self.ward.database.transaction() as session:
            (claim,) = second_looks.claim(session, [study], bundle, now, LEASE, max_attempts=4)
        if claim is None:
            return None
        assert isinstance(claim, Claim)
        results = [InstanceResult(one.id, [self.finding(bundle, assessment=assessment)]) for one in claim.instances]
        with self.ward.database.transaction() as session:
            assert second_looks.finish(session, [work.Analysed(claim, results, bundle)], now) == [True]
        return claim

    def work_off(
        self, now: datetime = TWO, bundle: str = "b", assessment: Assessment = Assessment.POSITIVE, most: int = 10**6
    ) -> list[UUID]:
        """Do up to `most` of the second looks that are out, in the order in which they were sent; returns the ids."""
        with self.ward.database.transaction() as session:
            looks = session.scalars(
                select(SecondLookRow).where(SecondLookRow.state == LookState.QUEUED, SecondLookRow.bundle == bundle)
            ).all()
        chosen = [look.study_id for look in looks][:most]
        self.empty()
        return [study for study in chosen if self.look(study, now, bundle, assessment)]


@pytest.fixture
def run(ward: Ward, make_settings: Callable[..., Settings], make_finding: Callable[..., Finding]) -> Iterator[Run]:
    """Runs a night at a time."""
    made = Run(ward, make_settings(nightly_max_studies=10, nightly_in_flight=100))
    made.finding = make_finding
    yield made
    made.doorbell.app.close()


def analysed(
    ward: Ward,
    make_finding: Callable[..., Finding],
    bundle: str = "a",
    assessment: Assessment = Assessment.POSITIVE,
    now: datetime = MIDDAY,
    **values: Any,
) -> UUID:
    study = ward.study(now=now)
    claim = ward.claim(study, bundle=bundle)
    ward.finish(
        claim,
        [InstanceResult(one.id, [make_finding(bundle, assessment=assessment)]) for one in claim.instances],
        bundle,
    )
    if values:
        ward.set(study, **values)
    return study


def failed(ward: Ward) -> UUID:
    """Quarantined by something that may have healed overnight."""
    study = ward.study()
    with ward.database.transaction() as session:
        work.retry(session, ward.claim(study), "the object is missing", MIDDAY, 1)
    return study


def broken(ward: Ward) -> UUID:
    """Quarantined because its only image can never be read."""
    study = ward.study()
    claim = ward.claim(study)
    ward.finish(claim, [InstanceResult(claim.instances[0].id, error_reason="truncated-pixels", error_text="cut short")])
    return study


def runs(ward: Ward) -> list[BacklogRun]:
    with ward.database.transaction() as session:
        return reports.runs(session)


def looks(ward: Ward, **values: Any) -> list[SecondLookRow]:
    with ward.database.transaction() as session:
        return list(session.scalars(select(SecondLookRow).filter_by(**values)))


def test_what_was_left_behind_goes_to_the_backlog(ward: Ward, run: Run, make_finding: Callable[..., Finding]) -> None:
    """Failed studies are queued on the backlog, a stranded one is sent again where it belongs, outdated ones get a
    second look and stay what they are for all who read, and others rest."""
    outdated = [analysed(ward, make_finding), analysed(ward, make_finding)]
    ward.add_bundle("b")
    rest = [analysed(ward, make_finding, "b"), broken(ward)]
    healable, stranded = failed(ward), ward.study()
    ward.set(stranded, sent_at=MIDDAY)
    fresh = ward.study(now=TWO - HOUR)
    assert run() == 4
    row = ward.row(healable)
    assert (row.status, row.queue, row.attempts, row.sent_at) == (StudyStatus.QUEUED, Priority.BACKLOG, 0, TWO)
    for study in outdated:
        row = ward.row(study)
        assert (row.status, row.bundle, row.assessment, row.queue) == (
            StudyStatus.ANALYSED,
            "a",
            Assessment.POSITIVE,
            "routine",
        )
    assert (ward.row(stranded).queue, ward.row(stranded).sent_at) == (Priority.ROUTINE, TWO)
    assert [ward.row(study).status for study in rest] == [StudyStatus.ANALYSED, StudyStatus.QUARANTINED]
    assert ward.row(fresh).sent_at is None
    assert [task for task, _ in run.messages("routine")] == [ANALYSE]
    assert [task for task, _ in run.messages()] == [ANALYSE, SECOND_LOOK, SECOND_LOOK]
    assert all(str(study) in str(run.messages()) for study in outdated)
    (night,) = runs(ward)
    assert (night.failed, night.stranded, night.outdated, night.finished_at) == (1, 1, 2, None)
    assert (night.bundle, night.night, night.ends_at) == ("b", date(2026, 3, 2), TWO + 4 * HOUR)


def test_a_study_that_kills_workers_is_left_to_people(ward: Ward, run: Run) -> None:
    """What was quarantined for the death of its workers is not let loose on its neighbours again every night."""
    study, now = ward.study(), MIDDAY
    for _ in range(5):
        ward.claim(study, now, alone=True)
        now += MINUTE
    assert "the worker died" in ward.row(study).reason
    assert run() == 0
    assert ward.row(study).status == StudyStatus.QUARANTINED


def test_one_run_a_night(ward: Ward, run: Run) -> None:
    """A second scheduler, or a second message, does nothing; the next night runs again."""
    failed(ward)
    assert run() == 1
    failed(ward)
    assert run(TWO + 30 * MINUTE) is None
    assert run(TWO + DAY) == 1  # the new one; the first still waits in the queue
    assert [night.night for night in runs(ward)] == [date(2026, 3, 3), date(2026, 3, 2)]
    assert runs(ward)[1].ended_by == "the next night began"


def test_a_night_whose_message_was_lost_is_opened_by_the_sweeper(
    ward: Ward, run: Run, make_finding: Callable[..., Finding]
) -> None:
    """Within its window the feeder opens a night that nobody opened, once, and it ends when the window does."""
    study = analysed(ward, make_finding)
    ward.add_bundle("b")
    with ward.database.transaction() as session:
        session.execute(update(BundleRow).values(activated_at=MIDDAY))
    assert run.feed(TWO - MINUTE) == 0, "before the window"
    assert run.feed(TWO + 4 * HOUR) == 0, "after it"
    assert runs(ward) == []
    assert run.feed(TWO + HOUR) == 1
    assert run(TWO + HOUR + MINUTE) is None, "beat's message, late"
    (night,) = runs(ward)
    assert (night.night, night.ends_at) == (TWO.date(), TWO + 4 * HOUR)
    run.empty()
    assert run.look(study, TWO + HOUR)
    run.feed(TWO + 2 * HOUR)
    run.feed(TWO + 3 * HOUR)
    assert len(runs(ward)) == 1


def test_a_system_that_starts_within_the_window_has_no_night_yet(ward: Ward, run: Run) -> None:
    """Where no bundle was active before the window there is no history to look at."""
    with ward.database.transaction() as session:
        session.execute(update(BundleRow).values(activated_at=TWO + MINUTE))
    assert run.feed(TWO + HOUR) == 0
    assert runs(ward) == []


def test_two_schedulers_at_once_run_one_night(ward: Ward, run: Run) -> None:
    """Of schedulers that ring at the same moment one runs the night, and each study gets one message."""
    for _ in range(5):
        failed(ward)
    start = threading.Barrier(4)

    def ring(_: int) -> Any:
        start.wait(LIMIT_S)
        return run()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(ring, range(4)))
    assert results.count(None) == 3
    run.feed(TWO + MINUTE)
    assert len(runs(ward)) == 1
    assert run.doorbell.waiting()[Priority.BACKLOG] == 5


def test_any_number_of_feeders_send_each_second_look_once(
    ward: Ward, run: Run, make_finding: Callable[..., Finding]
) -> None:
    """Workers that sweep at the same moment fill the room once: no study is sent twice, and no room is overrun."""
    studies = [analysed(ward, make_finding) for _ in range(9)]
    ward.add_bundle("b")
    run.settings = run.settings.model_copy(update={"nightly_in_flight": 3})
    assert run() == 3
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run.feed, [TWO + MINUTE] * 4))
    assert run.doorbell.waiting()[Priority.BACKLOG] == 3
    run.work_off()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run.feed, [TWO + MINUTE] * 4))
    assert run.doorbell.waiting()[Priority.BACKLOG] == 3
    assert len(looks(ward)) == 6
    assert {look.study_id for look in looks(ward)} < set(studies)


def test_the_order_is_newest_day_first_and_likeliest_fracture_first(
    ward: Ward, run: Run, make_finding: Callable[..., Finding]
) -> None:
    """After failed and stranded ones, history goes by day of arrival, newest first, and within a day by risk."""
    expected = {}
    ward.add_bundle("c")
    for day in range(3):
        for risk in (0.9, 0.2, 0.5):
            arrived = MIDDAY - day * DAY + timedelta(hours=random.Random(day + risk).randrange(10))
            expected[day, -risk] = analysed(
                ward, make_finding, random.choice("ac"), now=arrived, fracture_probability=risk
            )
    first = failed(ward)
    ward.add_bundle("b")
    run()
    sent = [arguments for _, arguments in run.messages()]
    assert len(sent) == 10
    for arguments, study in zip(sent, [first, *(expected[key] for key in sorted(expected))], strict=True):
        assert str(study) in arguments


def test_a_night_is_bounded_and_the_next_goes_on(ward: Ward, run: Run, make_finding: Callable[..., Finding]) -> None:
    """A night takes at most so many studies, failed ones first but no more than half, and leaves the rest to the next."""
    old = [analysed(ward, make_finding) for _ in range(8)]
    bad = [failed(ward) for _ in range(6)]
    ward.add_bundle("b")
    assert run() == 10
    assert (runs(ward)[0].failed, runs(ward)[0].outdated) == (5, 5)
    assert len(run.work_off()) == 5
    for study in bad:
        if ward.row(study).status == StudyStatus.QUEUED:
            claim = ward.claim(study, TWO, bundle="b")
            ward.finish(claim, ward.answers(claim, "b"), "b")
    assert run.feed(TWO + MINUTE) == 0
    (night,) = runs(ward)
    assert (night.ended_by, night.finished_at) == ("the night's count", TWO + MINUTE)
    assert (night.report or {})["kinds"] == {"failed": {"done": 5}, "outdated": {"done": 5}}
    run.empty()
    assert run(TWO + DAY) == 4
    assert len(run.work_off(TWO + DAY)) == 3
    (last,) = (study for study in bad if ward.row(study).status == StudyStatus.QUEUED)
    claim = ward.claim(last, TWO + DAY, bundle="b")
    ward.finish(claim, ward.answers(claim, "b"), "b")
    run.feed(TWO + DAY + MINUTE)
    assert (runs(ward)[0].failed, runs(ward)[0].stranded, runs(ward)[0].outdated) == (1, 0, 3)
    assert runs(ward)[0].ended_by == "history came to its end"
    assert {ward.row(study).bundle for study in old} == {"b"}


def test_a_failed_study_is_tried_once_a_night(ward: Ward, run: Run) -> None:
    """What fails again does not come round and round in the same night; the report says so."""
    study = failed(ward)
    run()
    with ward.database.transaction() as session:
        work.retry(session, ward.claim(study, TWO), "the object is missing", TWO, 1)
    assert run.feed(TWO + MINUTE) == 0
    (night,) = runs(ward)
    assert (night.report or {})["kinds"] == {"failed": {"failed": 1}}
    assert ward.row(study).status == StudyStatus.QUARANTINED


def test_the_window_ends_and_the_next_night_goes_on(ward: Ward, run: Run, make_finding: Callable[..., Finding]) -> None:
    """At its end nothing more is sent, what is out and not begun is taken back, what is begun may finish; the next night
    takes up first what was taken back, and then goes on at the cursor."""
    for hour in range(9):
        analysed(ward, make_finding, now=MIDDAY + hour * MINUTE, fracture_probability=hour / 10)
    ward.add_bundle("b")
    run.settings = run.settings.model_copy(update={"nightly_in_flight": 4})
    assert run() == 4
    first = run.messages()
    begun = looks(ward)[0].study_id
    with ward.database.transaction() as session:
        (claim,) = second_looks.claim(session, [begun], "b", TWO + 4 * HOUR, LEASE, max_attempts=4)
    assert isinstance(claim, Claim)
    late = TWO + 4 * HOUR + timedelta(seconds=1)
    assert run.feed(late) == 0
    assert runs(ward)[0].finished_at is None, "one is still in hand"
    assert len(looks(ward, state=LookState.HELD)) == 3
    assert all(run.look(look.study_id, late) is None for look in looks(ward, state=LookState.HELD))
    with ward.database.transaction() as session:
        second_looks.finish(session, [work.Analysed(claim, ward.answers(claim, "b"), "b")], late)
    assert ward.row(begun).bundle == "b"
    assert run.feed(late) == 0
    (night,) = runs(ward)
    assert (night.ended_by, night.finished_at) == ("the window closed", late)
    assert (night.report or {})["kinds"] == {"outdated": {"done": 1, "held": 3}}
    run.empty()
    assert run(TWO + DAY) == 4
    assert run.messages()[:3] == [message for message in first if str(begun) not in message[1]]
    done = [begun, *run.work_off(TWO + DAY)]
    while run.feed(TWO + DAY + MINUTE):
        done += run.work_off(TWO + DAY)
    assert len(done) == len(set(done)) == 9
    assert ward.count(bundle="b") == 9


def test_a_failed_study_is_accounted_for_after_the_window(ward: Ward, run: Run) -> None:
    """It stays in its queue when the window closes, so it is not "held": the run ends with its answer."""
    done, waits = failed(ward), failed(ward)
    run()
    late = TWO + 4 * HOUR + timedelta(seconds=1)
    claim = ward.claim(done, late)
    ward.finish(claim, ward.answers(claim))
    run.feed(late)
    assert {look.study_id: look.state for look in looks(ward)} == {done: LookState.DONE, waits: LookState.QUEUED}
    claim = ward.claim(waits, late)
    ward.finish(claim, ward.answers(claim))
    run.feed(late + MINUTE)
    assert (runs(ward)[0].report or {})["kinds"] == {"failed": {"done": 2}}


def test_the_next_night_closes_the_account_of_the_last(ward: Ward, run: Run) -> None:
    """What was analysed counts as done, what still waits in its own queue as overtaken: no night is owed it."""
    done, waits = failed(ward), failed(ward)
    run()
    claim = ward.claim(done, TWO)
    ward.finish(claim, ward.answers(claim))
    run(TWO + DAY)
    last, before = runs(ward)
    assert (before.report or {})["kinds"] == {"failed": {"done": 1, "overtaken": 1}}
    assert ward.row(waits).status == StudyStatus.QUEUED
    assert not looks(ward, state=LookState.HELD)
    assert last.finished_at == TWO + DAY, "nothing is owed any more"


def test_what_no_night_takes_up_is_not_in_its_forecast(
    ward: Ward, run: Run, make_finding: Callable[..., Finding]
) -> None:
    """A study that is held as failed, as earlier versions left them, is not counted every night anew."""
    old, study = failed(ward), analysed(ward, make_finding)
    ward.add_bundle("b")
    run()
    with ward.database.transaction() as session:
        session.get_one(SecondLookRow, (old, "b")).state = LookState.HELD
        (night,) = reports.runs(session)
        told = reports.forecast_of(session, night, TWO + MINUTE)
        assert told is not None and told.left == 1, study


def test_a_newer_activation_ends_the_night(ward: Ward, run: Run, make_finding: Callable[..., Finding]) -> None:
    """A bundle that becomes active while second looks by another are out makes them needless, and harms nothing."""
    studies = [analysed(ward, make_finding) for _ in range(3)]
    ward.add_bundle("b")
    run()
    with ward.database.transaction() as session:
        (claim,) = second_looks.claim(session, studies[:1], "b", TWO, LEASE, max_attempts=4)
    assert isinstance(claim, Claim)
    ward.add_bundle("c")
    assert run.look(studies[1]) is None
    with ward.database.transaction() as session:
        assert second_looks.finish(session, [work.Analysed(claim, ward.answers(claim, "b"), "b")], TWO) == [True]
    run.feed(TWO + MINUTE)
    (night,) = runs(ward)
    assert (night.ended_by, night.finished_at is not None) == ("another bundle became active", True)
    assert {ward.row(study).bundle for study in studies} == {"a"}
    run.empty()
    assert run(TWO + DAY) == 3
    assert all(run.look(study, TWO + DAY, "c") for study in studies)
    assert {ward.row(study).bundle for study in studies} == {"c"}


def test_what_waits_in_a_long_queue_is_neither_stranded_nor_lost(
    ward: Ward, run: Run, make_finding: Callable[..., Finding]
) -> None:
    """The heads of the queues tell what is lost: a study or second look that waits behind an older message is not sent
    again, and one that was forgotten is, by the next sweep."""
    waiting, study = ward.study(), analysed(ward, make_finding)
    ward.add_bundle("b")
    with ward.database.transaction() as session:
        run.doorbell.ring(work.unsent(session, [waiting], MIDDAY))
    assert run() == 1
    assert ward.row(waiting).sent_at == MIDDAY
    assert run.feed(TWO + HOUR) == 0
    run.empty()
    assert run.feed(TWO + 2 * HOUR) == 1
    assert [arguments for _, arguments in run.messages()] == [f"['{study}', 'b']"]
    with ward.database.transaction() as session:
        (claim,) = second_looks.claim(session, [study], "b", TWO + 2 * HOUR, LEASE, max_attempts=4)
    run.empty()
    assert run.feed(TWO + 2 * HOUR + LEASE) == 0, "a worker holds it"
    assert run.feed(TWO + 2 * HOUR + LEASE * 2) == 1, "its worker died"
    assert isinstance(claim, Claim) and claim.attempt == 1


def test_what_a_worker_has_just_taken_is_not_sent_again(ward: Ward, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that left its queue a moment ago is no lost one: who took it claims its study while the reconciler waits."""
    taken, forgotten = ward.study(), ward.study()
    with ward.database.transaction() as session:
        now = work.clock(session)
    for study in (taken, forgotten):
        ward.set(study, sent_at=now - MINUTE)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        assert ward.claim(taken, now=now)

    monkeypatch.setattr("worker.sweeps.time.sleep", sleep)
    assert reconcile(ward.database, run.doorbell, timedelta(0)) == 1
    assert [arguments for _, arguments in run.messages("routine")] == [f"['{forgotten}']"]
    assert reconcile(ward.database, run.doorbell, timedelta(seconds=5)) == 0
    assert waits == [BEGUN_S], "what waits in its queue is not waited for"


def test_without_a_bundle_the_night_is_not_spent(ward: Ward, run: Run) -> None:
    """Before a bundle is active no run is recorded, so that the night can still run."""
    failed(ward)
    with ward.database.transaction() as session:
        session.connection().exec_driver_sql("UPDATE bundles SET active = false")
    assert run() is None
    assert runs(ward) == []
    ward.add_bundle("b")
    assert run() == 1


def test_a_dead_broker_does_not_lose_the_night(
    ward: Ward, make_settings: Callable[..., Settings], make_finding: Callable[..., Finding]
) -> None:
    """What the night could not send for want of a broker is sent once that is back, and is not chosen twice."""
    study = analysed(ward, make_finding)
    ward.add_bundle("b")
    dead = Run(ward, make_settings(broker_url="redis://127.0.0.1:1/0"))
    with pytest.raises(Exception, match="broker does not answer"):
        dead()
    alive = Run(ward, make_settings())
    assert alive() is None, "the night is open"
    with ward.database.transaction() as session:
        portion = nights.feed(session, nights.Feeding(9, 2.0, timedelta(0)), dict.fromkeys(Priority), TWO)
    assert portion is not None
    assert [one.study_id for one in portion.looks] == [study]
    assert dead.doorbell.ring(portion.looks) == [study]
    with ward.database.transaction() as session:
        second_looks.sending_failed(session, portion.looks)
    assert alive.feed(TWO) == 1
    for one in (dead, alive):
        one.doorbell.app.close()


def test_a_broker_that_forgot_is_told_of_in_the_log(ward: Ward, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Messages that were sent and are nowhere are worth a warning with the cure; a first message and a retry are not."""
    study, retried = ward.study(), ward.study()
    with ward.database.transaction() as session:
        now = work.clock(session)
        work.retry(session, ward.claim(retried), "the store was away", MIDDAY, 4)
    ward.set(study, sent_at=None)
    assert reconcile(ward.database, run.doorbell, timedelta(0)) == 2
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    run.empty()
    ward.set(study, sent_at=now - MINUTE)
    ward.set(retried, sent_at=now - MINUTE)
    assert reconcile(ward.database, run.doorbell, timedelta(0)) == 2
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (warning.name, vars(warning)["count"]) == ("worker.sweeps", 2)
    assert "OSTEON_BROKER_URL" in vars(warning)["why"] and "appendonly" in vars(warning)["why"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_however_nights_are_stopped_each_study_gets_exactly_one_second_look(
    ward: Ward, run: Run, make_finding: Callable[..., Finding], data: st.DataObject
) -> None:
    """Over any windows, portions, losses of the broker and studies that fail, every outdated study is looked at once."""
    with ward.database.transaction() as session:
        for table in (AlertRow, SecondLookRow, BacklogRunRow):
            session.execute(delete(table))
    old, new = (f"{word}-{random.getrandbits(60)}" for word in ("old", "new"))
    ward.add_bundle(old)
    studies = []
    for _ in range(data.draw(st.integers(1, 9), "studies")):
        now = MIDDAY - DAY * data.draw(st.integers(0, 2))
        risk = data.draw(st.sampled_from([0.1, 0.5, 0.9]))
        studies.append(analysed(ward, make_finding, old, now=now, fracture_probability=risk))
    ward.set(*(s for s in all_ids(ward) if s not in studies), bundle=new)
    ward.add_bundle(new)
    in_flight, most = data.draw(st.integers(1, 4), "in flight"), data.draw(st.integers(1, 9), "most")
    run.settings = run.settings.model_copy(update={"nightly_in_flight": in_flight, "nightly_max_studies": most})
    looked: list[UUID] = []
    night = TWO
    while len(looked) < len(studies):
        run(night)
        for sweep in range(data.draw(st.integers(1, 4), "sweeps")):
            out = looks(ward, state=LookState.QUEUED)
            assert len(out) <= in_flight
            if data.draw(st.booleans(), "the broker forgets"):
                run.empty()
            looked += run.work_off(night + MINUTE, new, most=data.draw(st.integers(not sweep, 4), "done"))
            run.feed(night + MINUTE)
        run.feed(night + 5 * HOUR)
        assert not looks(ward, state=LookState.QUEUED)
        night += DAY
        assert night < TWO + 40 * DAY
    assert sorted(looked) == sorted(studies)
    assert {ward.row(study).bundle for study in studies} == {new}


def all_ids(ward: Ward) -> list[UUID]:
    with ward.database.transaction() as session:
        return list(session.scalars(select(StudyRow.id)))


def test_the_schedule_rings_once_a_night_at_the_hour_of_the_settings(make_settings: Callable[..., Settings]) -> None:
    """Beat sends the nightly task at the set hour in the hospital's zone, where it cannot wait behind a backlog."""
    app = celery_app(make_settings(nightly_hour=3, nightly_timezone="Europe/Berlin"))
    entry = app.conf.beat_schedule["nightly"]
    assert entry["task"] == NIGHTLY
    assert entry["schedule"] == crontab(hour=3, minute=0)
    assert entry["options"]["queue"] == Priority.URGENT
    films = app.conf.beat_schedule["films"]  # in a queue that tells the reconciler nothing
    assert (films["task"], films["options"]["queue"]) == (SWEEP_FILMS, FILMS)
    assert films["schedule"] == crontab(hour=3, minute=30)
    assert app.conf.timezone == "Europe/Berlin"
    app.close()


def test_every_stage_and_purpose_has_its_word(ward: Ward, run: Run) -> None:
    """A night over nothing ends at once, exhausted, with an empty report."""
    assert run() == 0
    (night,) = runs(ward)
    assert (night.stage, night.ended_by, night.finished_at) == (Stage.EXHAUSTED, "history came to its end", TWO)
    assert (night.report or {})["kinds"] == {}
    assert Purpose.OUTDATED not in (night.report or {})["changes"]
