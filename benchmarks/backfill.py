"""How much later a live study is done because a backfill run works beside it, in batch times of the model."""

import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import text

from benchmarks.measure import Case, Goal, Result, Say, median_interval
from benchmarks.urgent import p95, p95_between, seconds_a_batch, small_instances
from benchmarks.workload import Workload
from infra.embedded.live_stack import LiveStack
from shared.db.clock import db_now
from shared.errors import StackError
from shared.queries import backfill
from shared.queries.models import active_bundle
from shared.settings import Settings
from worker.group_commit import FEW_PACE_S

GOAL = Goal("<=", 1.0)
PRIORITIES = ("urgent", "routine")
# what an older bundle read long ago
OLDER = """
    INSERT INTO bundles (name, sha256, manifest, active, activated_at)
    VALUES ('older', '', '{}', false, now() - interval '1 year')
"""
HISTORY = """
    WITH done AS (
        UPDATE analyses SET state = 'done', model = 'older', assessment = 'negative', severity = 'none',
            fracture_probability = 0.1, attempts = 1, sent_at = now(), finished_at = now()
        WHERE study_id = ANY(CAST(:ids AS uuid[])) RETURNING study_id
    )
    UPDATE studies SET status = 'analysed', bundle = 'older', assessment = 'negative', severity = 'none',
        region = 'hand', fracture_probability = 0.1, analysed_at = now(), read_at = now()
    FROM done WHERE id = study_id
"""
RERUNS = "SELECT count(*) FROM analyses WHERE purpose = 'rerun' AND state = 'done'"


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Time live studies that come to an idle worker first, then to one that a backfill run keeps busy.

    The radiographs are small, and the model is the shipped one.

    Args:
        quick: 800 studies of history and 4 arrivals instead of 10,000 and 30.
        say: is called with a line of progress.

    Returns:
        What the backfill run adds to median and 95th percentile, in batch times, for each priority.

    Raises:
        StackError: The backfill run did not begin, or was over too early; or a worker ended.
    """
    history, arrivals = (800, 4) if quick else (10_000, 30)
    batch_s = seconds_a_batch()
    pause_s = max(1.5 * batch_s, 2 * FEW_PACE_S)  # so that no live study waits for another one
    # an hour whose window is over, or a worker would begin a run by itself
    hour = (datetime.now(UTC).hour + 2) % 24
    with LiveStack(settings={"BACKFILL_HOUR": str(hour)}) as live_stack:
        digests = small_instances(live_stack)
        workload = Workload(live_stack)
        try:
            with workload.database.transaction() as session:
                session.execute(text(OLDER))
            past = workload.rows(digests, history)
            with workload.database.transaction() as session:
                session.execute(text(HISTORY), {"ids": [str(one) for one in past]})
            live_stack.worker()
            workload.queue(digests, 4)
            workload.wait(history + 4)
            say(f"{arrivals} live studies of each priority come to an idle worker")
            alone = _waits(workload, digests, arrivals, pause_s)
            say(f"as many come while {history} reruns are under way")
            with workload.database.transaction() as session:
                now, active = db_now(session), active_bundle(session)
                if active is None or not backfill.open_backfill_run(
                    session, now.date(), now, active.name, 4.0, history
                ):
                    raise StackError("the backfill run did not begin")
            _wait_for_reruns(workload, 40)
            before, start = _reruns_done(workload), time.monotonic()
            beside = _waits(workload, digests, arrivals, pause_s)
            pace, left = (
                (_reruns_done(workload) - before) / (time.monotonic() - start),
                history - _reruns_done(workload),
            )
            if left <= 0:
                raise StackError("the backfill run was over before the last live study came")
        finally:
            workload.close()
    return Result(
        "backfill",
        "what reruns beside it add to the time from a live study's row to its result, in batch times",
        GOAL,
        tuple(case for priority in PRIORITIES for case in _cases(priority, alone[priority], beside[priority], batch_s)),
        {
            "a batch": f"{Settings().batch_size} images, {batch_s:.2f} s",
            "reruns a second meanwhile": round(pace, 1),
            "reruns left at the end": left,
            "longest, s": {priority: round(max(beside[priority]), 2) for priority in PRIORITIES},
            "longest alone, s": {priority: round(max(alone[priority]), 2) for priority in PRIORITIES},
        },
        quick,
    )


def _cases(priority: str, alone: Sequence[float], beside: Sequence[float], batch_s: float) -> list[Case]:
    """Median against median, and 95th percentile against the same."""
    usual, latest = statistics.median(alone), p95(alone)
    units, late_units = ([(wait - one) / batch_s for wait in beside] for one in (usual, latest))
    middle, late = statistics.median(beside), p95(beside)
    spread, between = median_interval(units), p95_between(late_units)
    return [
        Case(f"{priority}, median", (middle - usual) / batch_s, spread, len(units), "s", middle, usual),
        Case(f"{priority}, p95", (late - latest) / batch_s, between, len(units), "s", late, latest),
    ]


def _waits(workload: Workload, radiographs: Sequence[str], arrivals: int, pause_s: float) -> dict[str, list[float]]:
    """Seconds that each of so many studies took, by priority; they come in turns, one at a time."""
    ids: dict[str, list[UUID]] = {priority: [] for priority in PRIORITIES}
    for number in range(arrivals):
        for priority in PRIORITIES:
            ids[priority] += workload.queue(radiographs[number % len(radiographs) :], 1, priority)
            time.sleep(pause_s)
    return {priority: workload.waits(ids[priority]) for priority in PRIORITIES}


def _reruns_done(workload: Workload) -> int:
    with workload.database.transaction() as session:
        return session.scalar(text(RERUNS)) or 0


def _wait_for_reruns(workload: Workload, count: int, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while _reruns_done(workload) < count:
        if time.monotonic() > deadline:
            raise StackError(f"the backfill run has not analysed {count} studies within {limit_s:.0f} s")
        time.sleep(0.2)
