"""Measures how much longer an urgent study takes beside a long routine queue, in batch times of the model.

Longer than the same study takes in an idle system, measured in turns with the busy one: what is left are the waits
behind others, on every machine alike. A batch is what the model takes for OSTEON_BATCH_SIZE images.
"""

import io
import random
import statistics
import time
from collections.abc import Sequence

from benchmarks.instances import instance
from benchmarks.measure import Case, Goal, Result, Say, median_interval
from benchmarks.worker import images_per_s
from benchmarks.workload import Workload
from infra.embedded.live_stack import LiveStack
from shared.model.bundle import load_bundle
from shared.model.engines import pick_engine
from shared.settings import Settings
from shared.storage import open_store, original_key, sha256_of

GOAL = Goal("<=", 2.0)


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Time urgent studies beside a long queue and without one.

    Instances are small and the model is the shipped one: with decoding out of the way, the order of work is measured.

    Args:
        quick: 400 routine studies and 2 rounds of fewer urgent ones instead of 10,000 and 4.
        say: is called with a line of progress.

    Returns:
        Median and 95th percentile of what the queue adds, in batch times.

    Raises:
        StackError: A worker ended, or a study was not done in time.
    """
    queued, rounds, alone, beside = (400, 2, 3, 4) if quick else (10_000, 4, 10, 15)
    batch_s = seconds_a_batch(8 if quick else 16)
    idle: list[float] = []
    busy: list[float] = []
    with LiveStack() as live_stack:
        digests = small_instances(live_stack)
        workload = Workload(live_stack)
        try:
            live_stack.worker()
            workload.queue(digests, 4)
            workload.wait()
            for number in range(rounds):
                say(f"round {number + 1} of {rounds}: {alone} urgent studies come to an idle worker")
                idle += _waits(workload, digests, alone, batch_s)
                say(f"{beside} come while {queued} routine ones are queued")
                before = workload.done()
                workload.queue(digests, queued)
                workload.wait(before + (2 if quick else 3) * Settings().batch_size)
                busy += _waits(workload, digests, beside, batch_s)
                workload.withdraw("routine")
                time.sleep(1 + 2 * batch_s)  # what is in hand is done
        finally:
            workload.close()
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


def _waits(workload: Workload, instances: Sequence[str], count: int, batch_s: float) -> list[float]:
    """Time urgent studies, seconds: each comes when the one before is done, at a random moment of a batch."""
    rng, waits = random.Random(count), []  # noqa: S311 - when, not what is secret
    for number in range(count):
        time.sleep(rng.uniform(0.1, 0.1 + batch_s))
        waits += workload.waits(workload.queue(instances[number % len(instances) :], 1, "urgent"))
    return waits


def seconds_a_batch(images: int = 16) -> float:
    """Measure the shipped model's time for a batch of the default size on this machine: the median of three runs.

    Args:
        images: about so many are read in each run.

    Returns:
        Seconds.
    """
    network, manifest = load_bundle(Settings().bundle_path.read_bytes())
    engine = pick_engine(network, manifest.input_size, Settings().cache)
    rates = [images_per_s(engine, manifest.input_size, images) for _ in range(3)]
    return Settings().batch_size / statistics.median(rates)


def small_instances(live_stack: LiveStack) -> list[str]:
    """Store 16 instances that decode quickly; return the sha256 of each."""
    store, digests = open_store(live_stack.store_url), []
    for number in range(16):
        content = instance(number, 256, 256)
        digests.append(sha256_of(content))
        store.put(original_key(digests[-1]), io.BytesIO(content), len(content))
    return digests


def p95(values: Sequence[float]) -> float:
    """Find the 95th percentile: one of the values."""
    return sorted(values)[min(len(values) - 1, round(0.95 * len(values)))]


def p95_between(values: Sequence[float]) -> tuple[float, float]:
    """Give the values between which the 95th percentile lies."""
    return sorted(values)[round(0.85 * len(values)) - 1], max(values)
