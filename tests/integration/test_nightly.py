"""The nightly run, on a real Postgres and a real broker."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import pytest
from celery.schedules import crontab

from shared.findings import InstanceResult
from shared.jobs import NIGHTLY, Doorbell, celery_app
from shared.repository import nights, work
from shared.study import Priority, StudyStatus
from worker.sweeps import nightly

MIDDAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
TWO = datetime(2026, 3, 2, 2, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def run(ward, make_settings):
    """Runs a night at a time."""
    settings = make_settings(nightly_max_studies=10)
    doorbell = Doorbell(celery_app(settings))

    def at(now=TWO):
        return nightly(settings, ward.database, doorbell, now)

    at.doorbell = doorbell
    yield at
    doorbell.app.close()


def analysed(ward, bundle="a"):
    study = ward.study()
    claim = ward.claim(study, bundle=bundle)
    ward.finish(claim, ward.answers(claim, bundle), bundle)
    return study


def failed(ward):
    """Quarantined by something that may have healed overnight."""
    study = ward.study()
    with ward.database.transaction() as session:
        work.retry(session, ward.claim(study), "the object is missing", MIDDAY, 1)
    return study


def broken(ward):
    """Quarantined because its only image can never be read."""
    study = ward.study()
    claim = ward.claim(study)
    ward.finish(claim, [InstanceResult(claim.instances[0].id, error_reason="truncated-pixels", error_text="cut short")])
    return study


def runs(ward):
    with ward.database.transaction() as session:
        return nights.nights(session)


def test_what_was_left_behind_is_queued_on_the_backlog(ward, run):
    """Failed and outdated studies go to the backlog queue, a stranded one is sent again where it belongs, others rest."""
    outdated = [analysed(ward), analysed(ward)]
    ward.add_bundle("b")
    rest = [analysed(ward, "b"), broken(ward)]
    healable, stranded = failed(ward), ward.study()
    ward.set(stranded, sent_at=MIDDAY)
    fresh = ward.study(now=TWO - timedelta(hours=1))
    assert run() == 4
    for study in (healable, *outdated):
        row = ward.row(study)
        assert (row.status, row.queue, row.attempts) == (StudyStatus.QUEUED, Priority.BACKLOG, 0)
        assert row.sent_at == TWO
    assert (ward.row(stranded).queue, ward.row(stranded).sent_at) == (Priority.ROUTINE, TWO)
    assert [ward.row(study).status for study in rest] == [StudyStatus.ANALYSED, StudyStatus.QUARANTINED]
    assert ward.row(fresh).sent_at is None
    assert run.doorbell.waiting() == {Priority.URGENT: 0, Priority.ROUTINE: 1, Priority.BACKLOG: 3}
    (done,) = runs(ward)
    assert (done.failed, done.stranded, done.outdated) == (1, 1, 2)
    assert (done.bundle, done.night, done.finished_at is not None) == ("b", date(2026, 3, 2), True)


def test_a_study_that_kills_workers_is_left_to_people(ward, run):
    """What was quarantined for the death of its workers is not let loose on its neighbours again every night."""
    study, now = ward.study(), MIDDAY
    for _ in range(5):
        ward.claim(study, now, alone=True)
        now += timedelta(minutes=1)
    assert "the worker died" in ward.row(study).reason
    assert run() == 0
    assert ward.row(study).status == StudyStatus.QUARANTINED


def test_one_run_a_night(ward, run):
    """A second scheduler, or a second message, does nothing; the next night runs again."""
    failed(ward)
    assert run() == 1
    failed(ward)
    assert run(TWO + timedelta(minutes=30)) is None
    assert run(TWO + DAY) == 2  # the new one, and the first, which no worker took
    assert [done.night for done in runs(ward)] == [date(2026, 3, 3), date(2026, 3, 2)]


def test_two_schedulers_at_once_run_one_night(ward, run):
    """Of schedulers that ring at the same moment one runs the night, and each study gets one message."""
    for _ in range(5):
        failed(ward)
    start = threading.Barrier(4)

    def ring(_):
        start.wait(10)
        return run()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(ring, range(4)))
    assert sorted(results, key=str) == [5, None, None, None]
    assert len(runs(ward)) == 1
    assert run.doorbell.waiting()[Priority.BACKLOG] == 5


def test_a_night_is_bounded_and_the_next_goes_on(ward, run):
    """A night takes at most so many studies, failed ones before outdated ones, and leaves the rest to the next."""
    for _ in range(8):
        analysed(ward)
    for _ in range(6):
        failed(ward)
    ward.add_bundle("b")
    assert run() == 10
    assert (runs(ward)[0].failed, runs(ward)[0].outdated) == (6, 4)
    assert ward.count(status=StudyStatus.ANALYSED) == 4
    with ward.database.transaction() as session:
        queued = session.scalars(nights.select(nights.StudyRow.id).filter_by(status=StudyStatus.QUEUED)).all()
    for study in queued:
        claim = ward.claim(study, TWO, bundle="b")
        ward.finish(claim, ward.answers(claim, "b"), "b")
    assert run(TWO + DAY) == 4
    assert (runs(ward)[0].failed, runs(ward)[0].stranded, runs(ward)[0].outdated) == (0, 0, 4)


def test_without_a_bundle_the_night_is_not_spent(ward, run):
    """Before a bundle is active no run is recorded, so that the night can still run."""
    failed(ward)
    with ward.database.transaction() as session:
        session.connection().exec_driver_sql("UPDATE bundles SET active = false")
    assert run() is None
    assert runs(ward) == []
    ward.add_bundle("b")
    assert run() == 1


def test_a_dead_broker_does_not_lose_the_night(ward, make_settings):
    """What the night chose while the broker is down is sent by the reconciler."""
    study = failed(ward)
    settings = make_settings(broker_url="redis://127.0.0.1:1/0")
    app = celery_app(settings)
    assert nightly(settings, ward.database, Doorbell(app), TWO) == 1
    app.close()
    assert ward.lost(dict.fromkeys(Priority), TWO + timedelta(seconds=1)) == [study]


def test_the_schedule_rings_once_a_night_at_the_hour_of_the_settings(make_settings):
    """Beat sends the nightly task at the set hour in the hospital's zone, where it cannot wait behind a backlog."""
    app = celery_app(make_settings(nightly_hour=3, nightly_timezone="Europe/Berlin"))
    entry = app.conf.beat_schedule["nightly"]
    assert entry["task"] == NIGHTLY
    assert entry["schedule"] == crontab(hour=3, minute=0)
    assert entry["options"]["queue"] == Priority.URGENT
    assert app.conf.timezone == "Europe/Berlin"
    app.close()
