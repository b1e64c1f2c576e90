"""Workers' heartbeats, the history in Postgres, and what was refused: on a real Postgres."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import strategies as st
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from shared.db.tables import HoldingRow, KeyRow, RejectionRow, StatisticRow, StudyRow, UploadRow, WorkerRow
from shared.domain.findings import InstanceResult
from shared.domain.security import Role
from shared.domain.study import Priority, StudyStatus
from shared.errors import Cause, NotFound, Reason
from shared.queries import analyses, operations, statistics
from shared.queries.access import LastKeyError, find_key, keys, make_key, revoke_key_by_id
from shared.settings import Settings
from tests.examples import examples
from tests.hospital import Hospital
from tests.pace import LIMIT_S
from worker.maintenance.heartbeat import HeartbeatWriter

MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def write_statistics(hospital: Hospital, now: datetime) -> None:
    """All samples up to now."""
    for _ in range(500):
        with hospital.database.transaction() as session:
            if not statistics.write_statistics(session, now):
                return
    raise AssertionError("sampling never ends")


def rows(hospital: Hospital) -> Sequence[StatisticRow]:
    with hospital.database.transaction() as session:
        return session.scalars(select(StatisticRow).order_by(StatisticRow.at, StatisticRow.queue)).all()


def analysed(hospital: Hospital, received: datetime, done: datetime, priority: Priority = Priority.ROUTINE) -> UUID:
    """A study that came and was finished at these times; it was claimed a second before its end."""
    study = hospital.study(priority=priority, now=received)
    claim = hospital.claim(study, done)
    hospital.finish(claim, hospital.results(claim), now=done)
    hospital.set(study, queued_at=received, started_at=done - timedelta(seconds=1))
    return study


def quarantined(hospital: Hospital, at: datetime, reason: Reason = Reason.OBJECT_MISSING) -> UUID:
    study = hospital.study(now=at)
    with hospital.database.transaction() as session:
        analyses.retry(session, hospital.claim(study, at), Cause(reason, str(study)), at, 1)
    hospital.set(study, quarantined_at=at, finished_at=at)
    return study


def test_a_minute_is_summed_up_from_the_rows(hospital: Hospital) -> None:
    """Each site, minute and class has its counts and percentiles, and the length of the queue at its end."""
    for second in range(10):
        analysed(hospital, NOON, NOON + timedelta(seconds=second + 2))
    analysed(hospital, NOON, NOON + timedelta(seconds=3), Priority.URGENT)
    quarantined(hospital, NOON + timedelta(seconds=5))
    waits = hospital.study(now=NOON + timedelta(seconds=9))
    hospital.set(waits, queued_at=NOON + timedelta(seconds=9))
    write_statistics(hospital, NOON + MINUTE + timedelta(seconds=14))
    assert [row.at for row in rows(hospital) if row.at >= NOON] == [], (
        "a minute is not over before late transactions are"
    )
    write_statistics(hospital, NOON + MINUTE + timedelta(seconds=16))
    routine, urgent = (row for row in rows(hospital) if row.at >= NOON)
    assert (routine.at, routine.queue, urgent.queue) == (NOON, "routine", "urgent")
    assert (routine.received, routine.analysed, routine.failed, routine.waiting) == (12, 10, 1, 1)
    assert (urgent.received, urgent.analysed, urgent.failed, urgent.waiting) == (1, 1, 0, 0)
    assert routine.wait_p50_s == pytest.approx(6.5)
    assert routine.wait_p95_s == pytest.approx(10.55)
    assert routine.work_p95_s == pytest.approx(1)
    assert routine.oldest_s is not None and routine.oldest_s > 0


def test_statistics_of_a_minute_are_written_once(hospital: Hospital) -> None:
    """Workers that look at the same moment, or again, write each minute once."""
    analysed(hospital, NOON, NOON + timedelta(seconds=3))
    start = threading.Barrier(4)

    def look(_: object) -> None:
        start.wait(LIMIT_S)
        write_statistics(hospital, NOON + 2 * MINUTE)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(4)))
    before = [(row.at, row.queue, row.received) for row in rows(hospital)]
    assert before == [(NOON, "routine", 1)]
    write_statistics(hospital, NOON + 2 * MINUTE)
    assert [(row.at, row.queue, row.received) for row in rows(hospital)] == before


def test_hours_without_a_worker_are_filled_in(hospital: Hospital) -> None:
    """What came and went while nobody sampled is found in the rows later; only the queue's length is not known."""
    times = [NOON, NOON + timedelta(hours=9), NOON + timedelta(days=3)]
    for at in times:
        analysed(hospital, at, at + timedelta(seconds=2))
    write_statistics(hospital, times[-1] + 10 * MINUTE)
    assert [(row.at, row.received, row.analysed) for row in rows(hospital)] == [(at, 1, 1) for at in times]
    assert {row.waiting for row in rows(hospital)} == {None}


@examples(
    7,
    40,
    arrivals=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 600)), max_size=8),
    looks=st.lists(st.integers(0, 4000), max_size=6),
)
def test_no_study_is_counted_twice_or_lost(
    hospital: Hospital, arrivals: list[tuple[int, int]], looks: list[int]
) -> None:
    """However often and whenever samplers look, all samples together hold each arrival and each result once."""
    with hospital.database.transaction() as session:
        session.execute(text("DELETE FROM studies; DELETE FROM statistics"))
    for at in sorted([*looks, 8000]):
        for came, took in [one for one in arrivals if one[0] + one[1] <= at]:
            analysed(hospital, NOON + timedelta(seconds=came), NOON + timedelta(seconds=came + took))
            arrivals = [one for one in arrivals if one[0] + one[1] > at]
        with hospital.database.transaction() as session:
            expected = session.scalars(select(func.count()).select_from(StudyRow)).one()
        write_statistics(hospital, NOON + timedelta(seconds=at))
        assert sum(row.analysed for row in rows(hospital)) <= expected
    assert sum(row.analysed for row in rows(hospital)) == expected


def test_the_wait_of_the_backlog_is_not_counted_with_the_others(hospital: Hospital) -> None:
    """The wait of the backlog, which may take hours, does not show in the wait of the others."""
    analysed(hospital, NOON, NOON + timedelta(seconds=4))
    analysed(hospital, NOON - timedelta(hours=5), NOON + timedelta(seconds=9), Priority.BACKLOG)
    write_statistics(hospital, NOON + 2 * MINUTE)
    with hospital.database.transaction() as session:
        (point,) = statistics.history(session, hospital.site_id, NOON, NOON + timedelta(hours=1), timedelta(hours=1))
    assert (point.received, point.analysed) == (1, 2)
    assert point.wait_p95_s == pytest.approx(4)


def test_history_is_summed_up_by_steps_and_by_site(hospital: Hospital) -> None:
    """A step holds all of its minutes, and nothing of another site's."""
    for minute in range(30):
        at = NOON + minute * MINUTE
        analysed(hospital, at, at + timedelta(seconds=minute + 1))
    write_statistics(hospital, NOON + timedelta(hours=2))
    with hospital.database.transaction() as session:
        points = statistics.history(session, hospital.site_id, NOON, NOON + timedelta(hours=1), 15 * MINUTE)
        assert statistics.history(session, uuid4(), NOON, NOON + timedelta(hours=1), 15 * MINUTE) == []
    assert [(point.at, point.received, point.analysed) for point in points] == [
        (NOON, 15, 15), (NOON + 15 * MINUTE, 15, 15),
    ]  # fmt: skip
    assert points[0].wait_p50_s == pytest.approx(8)
    assert points[1].wait_p95_s == pytest.approx(30)


def test_old_history_is_deleted(hospital: Hospital) -> None:
    """What is older than it is kept goes, of every table, and what is not stays."""
    for at in (NOON, NOON + timedelta(days=1)):
        analysed(hospital, at, at)
    write_statistics(hospital, NOON + timedelta(days=2))
    with hospital.database.transaction() as session:
        session.add(HoldingRow(site_id=hospital.site_id, at=NOON, images=1, size_bytes=1))
        session.add(
            RejectionRow(
                site_id=hospital.site_id, hour=NOON, reason="not-dicom", failure="", text="", files=1, last_at=NOON
            )
        )
    with hospital.database.transaction() as session:
        statistics.delete_old_statistics(session, NOON + MINUTE)
        assert session.scalar(select(func.count()).select_from(HoldingRow)) == 0
        assert session.scalar(select(func.count()).select_from(RejectionRow)) == 0
    assert [row.at for row in rows(hospital)] == [NOON + timedelta(days=1)]


def test_what_is_stored_is_counted_once_an_hour(hospital: Hospital) -> None:
    """Images and their bytes, as the rows say, and not again within the hour."""
    hospital.study(images=3)
    with hospital.database.transaction() as session:
        assert statistics.count_stored(session)
    hospital.study()
    with hospital.database.transaction() as session:
        assert not statistics.count_stored(session)
        now, before = statistics.stored(session, hospital.site_id)
    assert now is not None
    assert (now.images, now.size_bytes, before) == (3, 27, None)


def heart(hospital: Hospital, **more: Any) -> HeartbeatWriter:
    load: Any = SimpleNamespace(taken=5, in_hand=2)
    return HeartbeatWriter(
        hospital.database, load, device="CPU, 2 streams, OpenVINO bf16", threads=8, bundle=lambda: "a"
    )


def workers(hospital: Hospital) -> tuple[Any, Any]:
    with hospital.database.transaction() as session:
        return operations.workers(session), operations.living_workers(session)


def test_a_worker_is_seen_until_it_says_goodbye(hospital: Hospital) -> None:
    """A beating heart counts as living; one that was stopped as it should does not, and is not silent either."""
    one, two = heart(hospital), heart(hospital)
    one.beat()
    two.beat()
    found, living = workers(hospital)
    assert living == 2
    assert {(row.taken, row.in_hand, row.bundle, row.threads) for row in found} == {(5, 2, "a", 8)}
    one.stop()
    found, living = workers(hospital)
    assert living == 1
    assert [row.stopped_at is None for row in found] == [True, False]


def test_a_silent_worker_does_not_count(hospital: Hospital) -> None:
    """A process that was killed says no goodbye: after SILENT_AFTER it is no longer taken for alive, but still shown."""
    heart(hospital).beat()
    with hospital.database.transaction() as session:
        session.execute(update(WorkerRow).values(seen_at=func.now() - operations.SILENT_AFTER))
    found, living = workers(hospital)
    assert (len(found), living) == (1, 0)


def test_a_heart_without_a_database_raises_nothing(hospital: Hospital, make_settings: Callable[..., Settings]) -> None:
    """A heartbeat that cannot be written is no reason to stop working."""
    from shared.db.engine import Database

    nowhere = Database("postgresql+psycopg2://nobody@127.0.0.1:1/nothing", 1)
    load: Any = SimpleNamespace(taken=0, in_hand=0)
    HeartbeatWriter(nowhere, load, device="", threads=1, bundle=str).beat()
    nowhere.close()


def test_a_slow_count_holds_no_beat_and_runs_once(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting what is stored may take minutes: meanwhile the heart beats and samples are written; counts never overlap."""
    began, go_on, counts = threading.Event(), threading.Event(), []

    def slow(session: Session) -> None:
        assert session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": statistics.COUNTER_LOCK})
        counts.append(1)
        began.set()
        go_on.wait(LIMIT_S)
        raise RuntimeError("and its end is nobody's trouble")

    monkeypatch.setattr(statistics, "count_stored", slow)
    one = heart(hospital)
    one.beat()
    assert began.wait(LIMIT_S)
    try:
        for _ in range(3):
            one._write_statistics()
            one._write_heartbeat()
        assert len(counts) == 1
        assert workers(hospital)[1] == 1
    finally:
        go_on.set()
        assert one._counter is not None
        one._counter.join()


def test_receipts_are_forgotten_after_a_month(hospital: Hospital) -> None:
    """A receipt of a keyed request goes when nobody repeats that request any more; a younger one stays."""
    with hospital.database.transaction() as session:
        for key, at in (("old", NOON), ("new", NOON + timedelta(days=2))):
            row = UploadRow(site_id=hospital.site_id, idempotency_key=key, content_sha256="0" * 64, receipt=b"sealed")
            row.created_at = at
            session.add(row)
    with hospital.database.transaction() as session:
        statistics.delete_old_receipts(session, NOON + timedelta(days=1))
        assert session.scalars(select(UploadRow.idempotency_key)).all() == ["new"]


def test_the_heart_counts_and_forgets_every_hour(hospital: Hospital) -> None:
    """What is stored is counted, and what is kept for long enough is forgotten, receipts too."""
    with hospital.database.transaction() as session:
        row = UploadRow(site_id=hospital.site_id, idempotency_key="k", content_sha256="0" * 64, receipt=b"sealed")
        row.created_at = NOON - statistics.RECEIPTS_KEPT_FOR
        session.add(row)
    hospital.study(images=3)
    one = heart(hospital)
    one._count()
    with hospital.database.transaction() as session:
        now, _ = statistics.stored(session, hospital.site_id)
        assert now is not None and now.images == 3
        assert not session.scalars(select(UploadRow)).all()


def test_queues_tell_length_and_age(hospital: Hospital) -> None:
    """Studies that wait for their first attempt or their next are counted by class, with the age of the oldest."""
    first = hospital.study(priority=Priority.URGENT)
    hospital.study(priority=Priority.URGENT)
    analysed(hospital, NOON, NOON)
    hospital.set(first, queued_at=NOON)
    with hospital.database.transaction() as session:
        session.execute(text("INSERT INTO sites (id, name) VALUES (gen_random_uuid(), 'elsewhere')"))
        urgent, routine, backlog = operations.queues(session, hospital.site_id)
        elsewhere = operations.queues(session, uuid4())[0]
    assert (urgent.waiting, urgent.oldest_at, urgent.waiting_everywhere) == (2, NOON, 2)
    assert (routine.waiting, routine.oldest_at, backlog.waiting) == (0, None, 0)
    assert (elsewhere.waiting, elsewhere.oldest_at, elsewhere.waiting_everywhere) == (0, None, 2)


def test_the_moment_of_quarantine_is_kept(hospital: Hospital) -> None:
    """Both ways into quarantine leave their time."""
    worn = quarantined(hospital, NOON)
    broken = hospital.study()
    claim = hospital.claim(broken)
    hospital.finish(claim, [InstanceResult(claim.instances[0].id, error_reason=Reason.TRUNCATED_PIXELS)])
    assert hospital.row(worn).quarantined_at == NOON
    assert hospital.row(broken).status == StudyStatus.QUARANTINED
    assert hospital.row(broken).quarantined_at == NOON


def test_a_reason_is_released_as_a_whole_and_no_other(hospital: Hospital) -> None:
    """All studies of one reason go back to their queue, up to the bound; those of another stay."""
    same = [quarantined(hospital, NOON) for _ in range(3)]
    other = quarantined(hospital, NOON, Reason.STORE_UNAVAILABLE)
    with hospital.database.transaction() as session:
        assert [(r.reason, r.count, r.detail) for r in operations.quarantine_reasons(session, hospital.site_id)] == [
            ("object-missing", 3, ""), ("store-unavailable", 1, str(other)),
        ]  # fmt: skip
        assert len(operations.quarantined(session, hospital.site_id, 2)) == 2
        admin = find_key(session, "a secret")
        assert admin is not None
        sent = operations.release_reason(session, admin, Reason.OBJECT_MISSING)
        assert operations.release_reason(session, replace(admin, site_id=uuid4()), Reason.STORE_UNAVAILABLE) == []
    assert {one.study_id for one in sent} == set(same)
    assert {hospital.row(study).status for study in same} == {StudyStatus.QUEUED}
    assert hospital.row(other).status == StudyStatus.QUARANTINED


def test_rejections_stay_few_however_many_files_are_rejected(hospital: Hospital) -> None:
    """Ten thousand bad files in an hour are one row a reason, with their number and the last one's fact."""
    with hospital.database.transaction() as session:
        operations.record_rejections(session, hospital.site_id, [("not-dicom", "0xC000", "first")] * 9_000)
        operations.record_rejections(
            session, hospital.site_id, [("not-dicom", "0xC000", "last")] * 1_000 + [("too-large", "0xA700", "huge")]
        )
    with hospital.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(RejectionRow)) == 2
        found = {one.reason: one for one in operations.rejections(session, hospital.site_id, NOON)}
    assert (found["not-dicom"].files, found["not-dicom"].detail, found["not-dicom"].failure) == (
        10_000,
        "last",
        "0xC000",
    )
    assert found["too-large"].files == 1


def test_the_last_admin_key_cannot_be_revoked(hospital: Hospital) -> None:
    """A site keeps a key that can make keys; with a second one either may go."""
    with hospital.database.transaction() as session:
        first = session.scalars(select(KeyRow)).one()
        with pytest.raises(LastKeyError, match="last valid key with the role admin"):
            revoke_key_by_id(session, hospital.site_id, first.id)
        second, secret = make_key(session, hospital.site_id, "second", Role.ADMIN)
        assert secret not in str(second.__dict__)
        revoke_key_by_id(session, hospital.site_id, first.id)
        with pytest.raises(LastKeyError):
            revoke_key_by_id(session, hospital.site_id, second.id)
        with pytest.raises(NotFound):
            revoke_key_by_id(session, uuid4(), second.id)
        assert [(key.name, key.revoked_at is None) for key in keys(session, hospital.site_id)] == [
            ("second", True), ("admin", False),
        ]  # fmt: skip


def test_two_admins_cannot_revoke_each_other(hospital: Hospital) -> None:
    """Two revocations at the same moment leave one admin key."""
    with hospital.database.transaction() as session:
        make_key(session, hospital.site_id, "second", Role.ADMIN)
        ids = [key.id for key in keys(session, hospital.site_id)]
    start = threading.Barrier(2)

    def revoke(key_id: UUID) -> str:
        start.wait(LIMIT_S)
        try:
            with hospital.database.transaction() as session:
                revoke_key_by_id(session, hospital.site_id, key_id)
        except LastKeyError:
            return "refused"
        return "revoked"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(revoke, ids)) == ["refused", "revoked"]
