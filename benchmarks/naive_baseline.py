"""Compares the worker with one that is written in the usual way (benchmarks/naive_worker.py), on the same images."""

import time
from collections.abc import Sequence
from pathlib import Path

from celery import Celery

from benchmarks.measure import Arm, Case, Goal, Result, Say, interleaved
from benchmarks.radiographs import stored
from benchmarks.workload import Workload, pace
from infra.embedded.live_stack import LiveStack
from shared.errors import StackError
from shared.settings import Settings
from shared.storage import open_store, original_key

GOAL = Goal(">=", 5.0)
TABLE = "CREATE TABLE usual (number int, region int, probability float, heatmap bytea, at timestamptz DEFAULT now())"


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Time raw radiographs, which both decode alike fast; both workers stand ready, and one has work at a time.

    Args:
        quick: a third of the radiographs, 3 rounds instead of 5.
        say: is called with a line of progress.

    Returns:
        Our radiographs/s to the other worker's.

    Raises:
        StackError: A worker ended, or did not do its radiographs in time.
    """
    ours, theirs, repeats = (20, 5, 3) if quick else (64, 16, 5)
    with LiveStack() as live_stack:
        store = open_store(live_stack.store_url)
        say("making radiographs")
        digests = stored(store, 8 if quick else 24, "explicit")
        paths = [live_stack.folder / "objects" / original_key(digest) for digest in digests]
        workload = Workload(live_stack)
        try:
            live_stack.as_owner(TABLE)
            live_stack.worker()
            live_stack.run("usual", "-m", "benchmarks.naive_worker", USUAL_BUNDLE=str(Settings().bundle_path))
            usual = _NaiveWorker(workload, paths)
            workload.queue(digests, 8)
            workload.wait()
            usual.rate(3)
            arms: dict[str, Arm] = {"ours": lambda: _ours(workload, digests, ours), "usual": lambda: usual.rate(theirs)}
            say(f"{repeats} rounds of {ours} and {theirs} radiographs")
            samples = interleaved(arms, repeats, warmups=0)
        finally:
            workload.close()
    return Result(
        "naive_baseline",
        "raw radiographs/s, against one task per image with pydicom, eager float32 torch, Grad-CAM and an INSERT",
        GOAL,
        (Case.of("raw radiographs", "radiographs/s", samples["ours"], samples["usual"]),),
        {},
        quick,
    )


def _ours(workload: Workload, digests: Sequence[str], count: int) -> float:
    ids = workload.queue(digests, count)
    workload.wait()
    return pace(workload.times(ids))


class _NaiveWorker:
    """Queue and table of the other worker."""

    def __init__(self, workload: Workload, paths: Sequence[Path]) -> None:
        self.workload, self.paths = workload, paths
        self.app = Celery("usual", broker=workload.live_stack.valkey.url)
        self.sent = 0

    def rate(self, count: int, limit_s: float = 300.0) -> float:
        """Send radiographs, and measure radiographs/s from the first row to the last; raises StackError."""
        start = self.sent
        for number in range(count):
            path = self.paths[number % len(self.paths)]
            self.app.send_task("usual.analyse", args=[str(path), start + number], queue="usual")
        self.sent += count
        deadline = time.monotonic() + limit_s
        while True:
            with self.workload.database.transaction() as session:
                times = session.connection().exec_driver_sql(
                    "SELECT extract(epoch FROM at) FROM usual WHERE number >= %(start)s ORDER BY 1", {"start": start}
                )
                found = [float(at) for at in times.scalars()]
            if len(found) >= count:
                return (count - 1) / (found[-1] - found[0])
            if time.monotonic() > deadline:
                raise StackError(f"the usual worker did {len(found)} of {count} radiographs in {limit_s:.0f} s")
            time.sleep(0.1)
