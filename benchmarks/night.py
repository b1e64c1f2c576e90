"""How much later a live study is done because a night looks at history beside it, in batch times of the model."""

import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import text

from benchmarks.line import Line
from benchmarks.measure import Case, Goal, Result, Say, median_interval
from benchmarks.plant import Plant
from benchmarks.urgent import p95, p95_between, seconds_a_batch, small_films
from shared.errors import StackError
from shared.repository import nights, work
from shared.repository.bundles import active_bundle
from shared.settings import Settings
from worker.ledger import FEW_PACE_S

GOAL = Goal("<=", 1.0)
PRIORITIES = ("urgent", "routine")
# what an older bundle read long ago
OLDER = """
    INSERT INTO bundles (name, sha256, manifest, active, activated_at)
    VALUES ('older', '', '{}', false, now() - interval '1 year')
"""
HISTORY = """
    UPDATE studies SET status = 'analysed', bundle = 'older', assessment = 'negative', severity = 'none',
        region = 'hand', fracture_probability = 0.1, attempts = 1, sent_at = now(), analysed_at = now(),
        read_at = now() WHERE id = ANY(CAST(:ids AS uuid[]))
"""
LOOKS = "SELECT count(*) FROM second_looks WHERE state = 'done'"


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Small films, shipped model. Live studies come to an idle worker first, then to one that a night keeps busy."""
    history, arrivals = (800, 4) if quick else (10_000, 30)
    batch_s = seconds_a_batch()
    pause_s = max(1.5 * batch_s, 2 * FEW_PACE_S)  # so that no live study waits for another one
    # an hour whose night is over, or a worker would begin the night by itself
    hour = (datetime.now(UTC).hour + 2) % 24
    with Plant(settings={"NIGHTLY_HOUR": str(hour)}) as plant:
        digests = small_films(plant)
        line = Line(plant)
        try:
            with line.database.transaction() as session:
                session.execute(text(OLDER))
            past = line.rows(digests, history)
            with line.database.transaction() as session:
                session.execute(text(HISTORY), {"ids": [str(one) for one in past]})
            plant.worker()
            line.queue(digests, 4)
            line.wait(history + 4)
            say(f"{arrivals} live studies of each priority come to an idle worker")
            alone = _waits(line, digests, arrivals, pause_s)
            say(f"as many come while {history} second looks are under way")
            with line.database.transaction() as session:
                now, active = work.clock(session), active_bundle(session)
                if active is None or not nights.begin_night(session, now.date(), now, active.name, 4.0, history):
                    raise StackError("the night did not begin")
            _until_looked(line, 40)
            before, start = _looked(line), time.monotonic()
            beside = _waits(line, digests, arrivals, pause_s)
            pace, left = (_looked(line) - before) / (time.monotonic() - start), history - _looked(line)
            if left <= 0:
                raise StackError("the night was over before the last live study came")
        finally:
            line.close()
    return Result(
        "night",
        "what second looks beside it add to the time from a live study's row to its result, in batch times",
        GOAL,
        tuple(case for priority in PRIORITIES for case in _cases(priority, alone[priority], beside[priority], batch_s)),
        {
            "a batch": f"{Settings().batch_size} images, {batch_s:.2f} s",
            "second looks a second meanwhile": round(pace, 1),
            "second looks left at the end": left,
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


def _waits(line: Line, films: Sequence[str], arrivals: int, pause_s: float) -> dict[str, list[float]]:
    """Seconds that each of so many studies took, by priority; they come in turns, one at a time."""
    ids: dict[str, list[UUID]] = {priority: [] for priority in PRIORITIES}
    for number in range(arrivals):
        for priority in PRIORITIES:
            ids[priority] += line.queue(films[number % len(films) :], 1, priority)
            time.sleep(pause_s)
    return {priority: line.waits(ids[priority]) for priority in PRIORITIES}


def _looked(line: Line) -> int:
    with line.database.transaction() as session:
        return session.scalar(text(LOOKS)) or 0


def _until_looked(line: Line, count: int, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while _looked(line) < count:
        if time.monotonic() > deadline:
            raise StackError(f"the night has not looked at {count} studies within {limit_s:.0f} s")
        time.sleep(0.2)
