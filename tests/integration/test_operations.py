"""Workers' heartbeats, the history in Postgres, and what was refused: on a real Postgres."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from shared.errors import NotFound
from shared.findings import InstanceResult
from shared.repository import operations, samples, work
from shared.repository.access import LastAdmin, Role, keys, make_key, revoke_key_by_id
from shared.settings import Settings
from shared.study import Priority, StudyStatus
from shared.tables import HoldingRow, KeyRow, RefusalRow, SampleRow, StudyRow, UploadRow, WorkerRow
from tests.pace import LIMIT_S
from tests.ward import Ward
from worker.pulse import Heart

MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def sample(ward: Ward, now: datetime) -> None:
    """All samples up to now."""
    for _ in range(500):
        with ward.database.transaction() as session:
            if not samples.sample(session, now):
                return
    raise AssertionError("sampling never ends")


def rows(ward: Ward) -> Sequence[SampleRow]:
    with ward.database.transaction() as session:
        return session.scalars(select(SampleRow).order_by(SampleRow.at, SampleRow.queue)).all()


def analysed(ward: Ward, received: datetime, done: datetime, priority: Priority = Priority.ROUTINE) -> UUID:
    """A study that came and was finished at these times; it was claimed a second before its end."""
    study = ward.study(priority=priority, now=received)
    claim = ward.claim(study, done)
    ward.finish(claim, ward.answers(claim), now=done)
    ward.set(study, queued_at=received, started_at=done - timedelta(seconds=1))
    return study


def quarantined(ward: Ward, at: datetime, reason: str = "the object is missing") -> UUID:
    study = ward.study(now=at)
    with ward.database.transaction() as session:
        work.retry(session, ward.claim(study, at), reason, at, 1)
    ward.set(study, quarantined_at=at)
    return study


def test_a_minute_is_summed_up_from_the_rows(ward: Ward) -> None:
    """Each site, minute and class has its counts and percentiles, and the length of the queue at its end."""
    for second in range(10):
        analysed(ward, NOON, NOON + timedelta(seconds=second + 2))
    analysed(ward, NOON, NOON + timedelta(seconds=3), Priority.URGENT)
    quarantined(ward, NOON + timedelta(seconds=5))
    waits = ward.study(now=NOON + timedelta(seconds=9))
    ward.set(waits, queued_at=NOON + timedelta(seconds=9))
    sample(ward, NOON + MINUTE + timedelta(seconds=14))
    assert [row.at for row in rows(ward) if row.at >= NOON] == [], "a minute is not over before late transactions are"
    sample(ward, NOON + MINUTE + timedelta(seconds=16))
    routine, urgent = (row for row in rows(ward) if row.at >= NOON)
    assert (routine.at, routine.queue, urgent.queue) == (NOON, "routine", "urgent")
    assert (routine.received, routine.analysed, routine.failed, routine.waiting) == (12, 10, 1, 1)
    assert (urgent.received, urgent.analysed, urgent.failed, urgent.waiting) == (1, 1, 0, 0)
    assert routine.wait_p50_s == pytest.approx(6.5)
    assert routine.wait_p95_s == pytest.approx(10.55)
    assert routine.work_p95_s == pytest.approx(1)
    assert routine.oldest_s is not None and routine.oldest_s > 0


def test_a_sample_is_written_once(ward: Ward) -> None:
    """Workers that look at the same moment, or again, write each minute once."""
    analysed(ward, NOON, NOON + timedelta(seconds=3))
    start = threading.Barrier(4)

    def look(_: object) -> None:
        start.wait(LIMIT_S)
        sample(ward, NOON + 2 * MINUTE)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(4)))
    before = [(row.at, row.queue, row.received) for row in rows(ward)]
    assert before == [(NOON, "routine", 1)]
    sample(ward, NOON + 2 * MINUTE)
    assert [(row.at, row.queue, row.received) for row in rows(ward)] == before


def test_hours_without_a_worker_are_filled_in(ward: Ward) -> None:
    """What came and went while nobody sampled is found in the rows later; only the queue's length is not known."""
    times = [NOON, NOON + timedelta(hours=9), NOON + timedelta(days=3)]
    for at in times:
        analysed(ward, at, at + timedelta(seconds=2))
    sample(ward, times[-1] + 10 * MINUTE)
    assert [(row.at, row.received, row.analysed) for row in rows(ward)] == [(at, 1, 1) for at in times]
    assert {row.waiting for row in rows(ward)} == {None}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 600)), max_size=8),
    looks=st.lists(st.integers(0, 4000), max_size=6),
)
def test_no_study_is_counted_twice_or_lost(ward: Ward, arrivals: list[tuple[int, int]], looks: list[int]) -> None:
    """However often and whenever samplers look, all samples together hold each arrival and each answer once."""
    with ward.database.transaction() as session:
        session.execute(text("DELETE FROM studies; DELETE FROM samples"))
    for at in sorted([*looks, 8000]):
        for came, took in [one for one in arrivals if one[0] + one[1] <= at]:
            analysed(ward, NOON + timedelta(seconds=came), NOON + timedelta(seconds=came + took))
            arrivals = [one for one in arrivals if one[0] + one[1] > at]
        with ward.database.transaction() as session:
            expected = session.scalars(select(func.count()).select_from(StudyRow)).one()
        sample(ward, NOON + timedelta(seconds=at))
        assert sum(row.analysed for row in rows(ward)) <= expected
    assert sum(row.analysed for row in rows(ward)) == expected


def test_the_night_is_not_held_against_the_day(ward: Ward) -> None:
    """The wait of the backlog, which may take all night, does not show in the wait of the others."""
    analysed(ward, NOON, NOON + timedelta(seconds=4))
    analysed(ward, NOON - timedelta(hours=5), NOON + timedelta(seconds=9), Priority.BACKLOG)
    sample(ward, NOON + 2 * MINUTE)
    with ward.database.transaction() as session:
        (point,) = samples.history(session, ward.site_id, NOON, NOON + timedelta(hours=1), timedelta(hours=1))
    assert (point.received, point.analysed) == (1, 2)
    assert point.wait_p95_s == pytest.approx(4)


def test_history_is_summed_up_by_steps_and_by_site(ward: Ward) -> None:
    """A step holds all of its minutes, and nothing of another site's."""
    for minute in range(30):
        at = NOON + minute * MINUTE
        analysed(ward, at, at + timedelta(seconds=minute + 1))
    sample(ward, NOON + timedelta(hours=2))
    with ward.database.transaction() as session:
        points = samples.history(session, ward.site_id, NOON, NOON + timedelta(hours=1), 15 * MINUTE)
        assert samples.history(session, uuid4(), NOON, NOON + timedelta(hours=1), 15 * MINUTE) == []
    assert [(point.at, point.received, point.analysed) for point in points] == [
        (NOON, 15, 15), (NOON + 15 * MINUTE, 15, 15),
    ]  # fmt: skip
    assert points[0].wait_p50_s == pytest.approx(8)
    assert points[1].wait_p95_s == pytest.approx(30)


def test_old_history_is_deleted(ward: Ward) -> None:
    """What is older than it is kept goes, of every table, and what is not stays."""
    for at in (NOON, NOON + timedelta(days=1)):
        analysed(ward, at, at)
    sample(ward, NOON + timedelta(days=2))
    with ward.database.transaction() as session:
        session.add(HoldingRow(site_id=ward.site_id, at=NOON, images=1, size_bytes=1))
        session.add(RefusalRow(site_id=ward.site_id, hour=NOON, reason="x", failure="", text="", files=1, last_at=NOON))
    with ward.database.transaction() as session:
        samples.forget(session, NOON + MINUTE)
        assert session.scalar(select(func.count()).select_from(HoldingRow)) == 0
        assert session.scalar(select(func.count()).select_from(RefusalRow)) == 0
    assert [row.at for row in rows(ward)] == [NOON + timedelta(days=1)]


def test_what_is_stored_is_counted_once_an_hour(ward: Ward) -> None:
    """Images and their bytes, as the rows say, and not again within the hour."""
    ward.study(images=3)
    with ward.database.transaction() as session:
        assert samples.count_stored(session)
    ward.study()
    with ward.database.transaction() as session:
        assert not samples.count_stored(session)
        now, before = samples.stored(session, ward.site_id)
    assert now is not None
    assert (now.images, now.size_bytes, before) == (3, 27, None)


def heart(ward: Ward, **more: Any) -> Heart:
    load: Any = SimpleNamespace(taken=5, in_hand=2)
    return Heart(ward.database, load, device="CPU, 2 lanes, OpenVINO bf16", threads=8, bundle=lambda: "a")


def workers(ward: Ward) -> tuple[Any, Any]:
    with ward.database.transaction() as session:
        return operations.workers(session), operations.living_workers(session)


def test_a_worker_is_seen_until_it_says_goodbye(ward: Ward) -> None:
    """A beating heart counts as living; one that was stopped as it should does not, and is not silent either."""
    one, two = heart(ward), heart(ward)
    one.beat()
    two.beat()
    found, living = workers(ward)
    assert living == 2
    assert {(row.taken, row.in_hand, row.bundle, row.threads) for row in found} == {(5, 2, "a", 8)}
    one.stop()
    found, living = workers(ward)
    assert living == 1
    assert [row.stopped_at is None for row in found] == [True, False]


def test_a_silent_worker_does_not_count(ward: Ward) -> None:
    """A process that was killed says no goodbye: after SILENT_AFTER it is no longer taken for alive, but still shown."""
    heart(ward).beat()
    with ward.database.transaction() as session:
        session.execute(update(WorkerRow).values(seen_at=func.now() - operations.SILENT_AFTER))
    found, living = workers(ward)
    assert (len(found), living) == (1, 0)


def test_a_heart_without_a_database_raises_nothing(ward: Ward, make_settings: Callable[..., Settings]) -> None:
    """A heartbeat that cannot be written is no reason to stop working."""
    from shared.repository import Database

    nowhere = Database("postgresql+psycopg2://nobody@127.0.0.1:1/nothing", 1)
    load: Any = SimpleNamespace(taken=0, in_hand=0)
    Heart(nowhere, load, device="", threads=1, bundle=str).beat()
    nowhere.close()


def test_a_slow_count_holds_no_beat_and_runs_once(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting what is stored may take minutes: meanwhile the heart beats and samples are written; counts never overlap."""
    began, go_on, counts = threading.Event(), threading.Event(), []

    def slow(session: Session) -> None:
        assert session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": samples.COUNTER_LOCK})
        counts.append(1)
        began.set()
        go_on.wait(LIMIT_S)
        raise RuntimeError("and its end is nobody's trouble")

    monkeypatch.setattr(samples, "count_stored", slow)
    one = heart(ward)
    one.beat()
    assert began.wait(LIMIT_S)
    try:
        for _ in range(3):
            one._sample()
            one._say()
        assert len(counts) == 1
        assert workers(ward)[1] == 1
    finally:
        go_on.set()
        assert one._counter is not None
        one._counter.join()


def test_receipts_are_forgotten_after_a_month(ward: Ward) -> None:
    """A receipt of a keyed request goes when nobody repeats that request any more; a younger one stays."""
    with ward.database.transaction() as session:
        for key, at in (("old", NOON), ("new", NOON + timedelta(days=2))):
            row = UploadRow(site_id=ward.site_id, idempotency_key=key, content_sha256="0" * 64, receipt=b"sealed")
            row.created_at = at
            session.add(row)
    with ward.database.transaction() as session:
        samples.forget_receipts(session, NOON + timedelta(days=1))
        assert session.scalars(select(UploadRow.idempotency_key)).all() == ["new"]


def test_the_heart_counts_and_forgets_every_hour(ward: Ward) -> None:
    """What is stored is counted, and what is kept for long enough is forgotten, receipts too."""
    with ward.database.transaction() as session:
        row = UploadRow(site_id=ward.site_id, idempotency_key="k", content_sha256="0" * 64, receipt=b"sealed")
        row.created_at = NOON - samples.RECEIPTS_KEPT_FOR
        session.add(row)
    ward.study(images=3)
    one = heart(ward)
    one._count()
    with ward.database.transaction() as session:
        now, _ = samples.stored(session, ward.site_id)
        assert now is not None and now.images == 3
        assert not session.scalars(select(UploadRow)).all()


def test_queues_tell_length_and_age(ward: Ward) -> None:
    """Studies that wait for their first attempt or their next are counted by class, with the age of the oldest."""
    first = ward.study(priority=Priority.URGENT)
    ward.study(priority=Priority.URGENT)
    analysed(ward, NOON, NOON)
    ward.set(first, queued_at=NOON)
    with ward.database.transaction() as session:
        session.execute(text("INSERT INTO sites (id, name) VALUES (gen_random_uuid(), 'elsewhere')"))
        urgent, routine, backlog = operations.queues(session, ward.site_id)
        elsewhere = operations.queues(session, uuid4())[0]
    assert (urgent.waiting, urgent.oldest_at, urgent.waiting_everywhere) == (2, NOON, 2)
    assert (routine.waiting, routine.oldest_at, backlog.waiting) == (0, None, 0)
    assert (elsewhere.waiting, elsewhere.oldest_at, elsewhere.waiting_everywhere) == (0, None, 2)


def test_the_moment_of_quarantine_is_kept(ward: Ward) -> None:
    """Both ways into quarantine leave their time."""
    worn = quarantined(ward, NOON)
    broken = ward.study()
    claim = ward.claim(broken)
    ward.finish(claim, [InstanceResult(claim.instances[0].id, error_reason="truncated-pixels", error_text="cut")])
    assert ward.row(worn).quarantined_at == NOON
    assert ward.row(broken).status == StudyStatus.QUARANTINED
    assert ward.row(broken).quarantined_at == NOON


def test_a_reason_is_released_as_a_whole_and_no_other(ward: Ward) -> None:
    """All studies of one reason go back to their queue, up to the bound; those of another stay."""
    same = [quarantined(ward, NOON) for _ in range(3)]
    other = quarantined(ward, NOON, "something else")
    with ward.database.transaction() as session:
        assert [(r.reason, r.count) for r in operations.quarantine_reasons(session, ward.site_id)] == [
            ("the object is missing", 3), ("something else", 1),
        ]  # fmt: skip
        assert len(operations.quarantined(session, ward.site_id, 2)) == 2
        sent = operations.release_reason(session, ward.site_id, "the object is missing")
        assert operations.release_reason(session, uuid4(), "something else") == []
    assert {one.study_id for one in sent} == set(same)
    assert {ward.row(study).status for study in same} == {StudyStatus.QUEUED}
    assert ward.row(other).status == StudyStatus.QUARANTINED


def test_refusals_stay_few_however_many_files_are_refused(ward: Ward) -> None:
    """Ten thousand bad files in an hour are one row a reason, with their number and the last one's words."""
    with ward.database.transaction() as session:
        operations.note_refusals(session, ward.site_id, [("not-dicom", "0xC000", "first")] * 9_000)
        operations.note_refusals(
            session, ward.site_id, [("not-dicom", "0xC000", "last")] * 1_000 + [("too-large", "0xA700", "huge")]
        )
    with ward.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(RefusalRow)) == 2
        found = {one.reason: one for one in operations.refusals(session, ward.site_id, NOON)}
    assert (found["not-dicom"].files, found["not-dicom"].text, found["not-dicom"].failure) == (10_000, "last", "0xC000")
    assert found["too-large"].files == 1


def test_the_last_admin_key_cannot_be_revoked(ward: Ward) -> None:
    """A site keeps a key that can make keys; with a second one either may go."""
    with ward.database.transaction() as session:
        first = session.scalars(select(KeyRow)).one()
        with pytest.raises(LastAdmin, match="Make a new admin key first"):
            revoke_key_by_id(session, ward.site_id, first.id)
        second, secret = make_key(session, ward.site_id, "second", Role.ADMIN)
        assert secret not in str(second.__dict__)
        revoke_key_by_id(session, ward.site_id, first.id)
        with pytest.raises(LastAdmin):
            revoke_key_by_id(session, ward.site_id, second.id)
        with pytest.raises(NotFound):
            revoke_key_by_id(session, uuid4(), second.id)
        assert [(key.name, key.revoked_at is None) for key in keys(session, ward.site_id)] == [
            ("second", True), ("admin", False),
        ]  # fmt: skip


def test_two_admins_cannot_revoke_each_other(ward: Ward) -> None:
    """Two revocations at the same moment leave one admin key."""
    with ward.database.transaction() as session:
        make_key(session, ward.site_id, "second", Role.ADMIN)
        ids = [key.id for key in keys(session, ward.site_id)]
    start = threading.Barrier(2)

    def revoke(key_id: UUID) -> str:
        start.wait(LIMIT_S)
        try:
            with ward.database.transaction() as session:
                revoke_key_by_id(session, ward.site_id, key_id)
        except LastAdmin:
            return "refused"
        return "revoked"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(revoke, ids)) == ["refused", "revoked"]
