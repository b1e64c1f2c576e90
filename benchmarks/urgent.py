"""How much longer an urgent study takes while a long routine queue is worked off, in batch times of the model.

Longer than the same study takes in an idle system, measured in turns with the busy one: what is left are the waits
behind others, on every machine alike. A batch is what the model takes for OSTEON_BATCH_SIZE images.
"""

import io
import random
import statistics
import time
from collections.abc import Sequence

from benchmarks.films import film
from benchmarks.line import Line
from benchmarks.measure import Case, Goal, Result, Say, median_interval
from benchmarks.plant import Plant
from benchmarks.worker import images_per_s
from shared.settings import Settings
from shared.storage import open_store, original_key, sha256_of
from shared.vision.bundle import load_bundle
from shared.vision.engines import pick_engine

GOAL = Goal("<=", 2.0)


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Small films and the shipped model: with decoding out of the way, what is measured is the order of work."""
    queued, rounds, alone, beside = (1000, 2, 4, 6) if quick else (10_000, 4, 10, 15)
    batch_s = seconds_a_batch()
    idle: list[float] = []
    busy: list[float] = []
    with Plant() as plant:
        digests = small_films(plant)
        line = Line(plant)
        try:
            plant.worker()
            line.queue(digests, 4)
            line.wait()
            for number in range(rounds):
                say(f"round {number + 1} of {rounds}: {alone} urgent studies come to an idle worker")
                idle += _waits(line, digests, alone, batch_s)
                say(f"{beside} come while {queued} routine ones are queued")
                before = line.done()
                line.queue(digests, queued)
                line.wait(before + 3 * Settings().batch_size)
                busy += _waits(line, digests, beside, batch_s)
                line.withdraw("routine")
                time.sleep(1 + 2 * batch_s)  # what is in hand is done
        finally:
            line.close()
    usual, label = statistics.median(idle), f"{queued} routine queued"
    units = sorted((wait - usual) / batch_s for wait in busy)
    middle, late = statistics.median(units), p95(units)
    cases = (
        Case(f"{label}, median", middle, median_interval(units), len(units), "s", statistics.median(busy), usual),
        Case(f"{label}, p95", late, p95_between(units), len(units), "s", p95(busy), usual),
    )
    return Result(
        "urgent",
        "row of an urgent study to its result beside a long queue, less the median of an idle system, in batch times",
        GOAL,
        cases,
        {
            "a batch": f"{Settings().batch_size} images, {batch_s:.3f} s",
            "idle system, s: median, p95": [round(usual, 3), round(p95(idle), 3)],
            "longest in batches": round(units[-1], 2),
        },
        quick,
    )


def _waits(line: Line, films: Sequence[str], count: int, batch_s: float) -> list[float]:
    """What so many urgent studies wait, seconds: each comes when the one before is done, at any moment of a batch."""
    dice, waits = random.Random(count), []  # noqa: S311 - when, not what is secret
    for number in range(count):
        time.sleep(dice.uniform(0.1, 0.1 + batch_s))
        waits += line.waits(line.queue(films[number % len(films) :], 1, "urgent"))
    return waits


def seconds_a_batch() -> float:
    """How long the shipped model takes for a batch of the default size on this machine: the median of three looks."""
    network, manifest = load_bundle(Settings().bundle_path.read_bytes())
    engine = pick_engine(network, manifest.input_size, Settings().cache)
    rates = [images_per_s(engine, manifest.input_size, 16) for _ in range(3)]
    return Settings().batch_size / statistics.median(rates)


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
