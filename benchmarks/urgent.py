"""How long an urgent study takes while a long routine queue is worked off, in units of one batch of the model."""

import io
import statistics
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from benchmarks.films import film
from benchmarks.line import Line
from benchmarks.measure import Case, Goal, Result, Say, median_interval
from benchmarks.plant import Plant
from benchmarks.worker import images_per_s
from shared.errors import StackError
from shared.settings import Settings
from shared.storage import open_store, original_key, sha256_of
from shared.vision.bundle import load_bundle
from shared.vision.engines import pick_engine

GOAL = Goal("<=", 2.0)
WAITED = """
    SELECT extract(epoch FROM analysed_at - queued_at) FROM studies
    WHERE queue = 'urgent' AND priority = 'urgent' AND status = 'analysed' ORDER BY queued_at
"""


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Small films and the shipped model: with decoding out of the way, what is measured is the order of work."""
    queued, arrivals = (1000, 6) if quick else (10_000, 40)
    batch_s = seconds_a_batch()
    with Plant() as plant:
        digests = small_films(plant)
        line = Line(plant)
        try:
            plant.worker()
            say(f"{queued} routine studies are queued")
            line.queue(digests, queued)
            line.wait(40)
            say(f"{arrivals} urgent ones arrive, one after the other")
            for number in range(arrivals):
                line.queue(digests[number % 16 :], 1, "urgent")
                time.sleep(2.5 * batch_s)
            waits = _waits(line, arrivals)
            with line.database.transaction() as session:
                left = session.scalar(text("SELECT count(*) FROM studies WHERE status = 'queued'"))
        finally:
            line.close()
    units = sorted(wait / batch_s for wait in waits)
    details: dict[str, Any] = {
        "a batch": f"{Settings().batch_size} images, {batch_s:.2f} s",
        "routine studies still queued at the end": left,
        "longest in batches": round(units[-1], 2),
    }
    middle, late = statistics.median(units), p95(units)
    cases = (
        Case(
            f"{queued} routine queued, median",
            middle,
            median_interval(units),
            len(units),
            "s",
            middle * batch_s,
            batch_s,
        ),
        Case(f"{queued} routine queued, p95", late, p95_between(units), len(units), "s", late * batch_s, batch_s),
    )
    return Result(
        "urgent", "row of an urgent study to its result, in batch times of the model", GOAL, cases, details, quick
    )


def seconds_a_batch() -> float:
    """How long the shipped model takes for a batch of the default size on this machine."""
    network, manifest = load_bundle(Settings().bundle_path.read_bytes())
    engine = pick_engine(network, manifest.input_size, Settings().cache)
    return Settings().batch_size / images_per_s(engine, manifest.input_size, 32)


def small_films(plant: Plant) -> list[str]:
    """Store 16 films that take no time to decode; returns the sha256 of each."""
    store, digests = open_store(plant.store_url), []
    for number in range(16):
        content = film(number, 256, 256)
        digests.append(sha256_of(content))
        store.put(original_key(digests[-1]), io.BytesIO(content), len(content))
    return digests


def p95(values: Sequence[float]) -> float:
    """The 95th percentile: one of the values."""
    return sorted(values)[min(len(values) - 1, round(0.95 * len(values)))]


def p95_between(values: Sequence[float]) -> tuple[float, float]:
    """What the 95th percentile lies between."""
    return sorted(values)[round(0.85 * len(values)) - 1], max(values)


def _waits(line: Line, count: int, limit_s: float = 120.0) -> list[float]:
    """Seconds that each of so many urgent studies took. Raises StackError where one was not served in time."""
    deadline = time.monotonic() + limit_s
    while True:
        with line.database.transaction() as session:
            waits = [float(wait) for wait in session.scalars(text(WAITED))]
        if len(waits) >= count:
            return waits
        if time.monotonic() > deadline:  # those left out would be the ones that waited longest
            raise StackError(f"{len(waits)} of {count} urgent studies were served within {limit_s:.0f} s")
        time.sleep(0.2)
