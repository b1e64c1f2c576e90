"""The worker, against the same films through a worker as it is usually written (benchmarks/usual.py)."""

import time
from collections.abc import Sequence
from pathlib import Path

from celery import Celery

from benchmarks.line import Line, pace
from benchmarks.measure import Arm, Case, Goal, Result, Say, interleaved
from benchmarks.plant import Plant
from benchmarks.radiographs import stored
from shared.errors import StackError
from shared.settings import Settings
from shared.storage import open_store, original_key

GOAL = Goal(">=", 5.0)
TABLE = "CREATE TABLE usual (number int, region int, probability float, heatmap bytea, at timestamptz DEFAULT now())"


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Raw films, which both decode alike fast; both workers stand ready, and one has work at a time."""
    ours, theirs, repeats = (24, 6, 3) if quick else (64, 16, 5)
    with Plant() as plant:
        store = open_store(plant.store_url)
        say("making films")
        digests = stored(store, 8 if quick else 24, "explicit")
        paths = [plant.folder / "objects" / original_key(digest) for digest in digests]
        line = Line(plant)
        try:
            with line.database.transaction() as session:
                session.connection().exec_driver_sql(TABLE)
            plant.worker()
            plant.run("usual", "-m", "benchmarks.usual", USUAL_BUNDLE=str(Settings().bundle_path))
            usual = _Usual(line, paths)
            line.queue(digests, 8)
            line.wait()
            usual.rate(3)
            arms: dict[str, Arm] = {"ours": lambda: _ours(line, digests, ours), "usual": lambda: usual.rate(theirs)}
            say(f"{repeats} rounds of {ours} and {theirs} films")
            samples = interleaved(arms, repeats, warmups=0)
        finally:
            line.close()
    return Result(
        "usual_way",
        "raw films/s, against a task an image with pydicom, eager float32 torch, backward Grad-CAM, and an INSERT",
        GOAL,
        (Case.of("raw films", "films/s", samples["ours"], samples["usual"]),),
        {},
        quick,
    )


def _ours(line: Line, digests: Sequence[str], count: int) -> float:
    ids = line.queue(digests, count)
    line.wait()
    return pace(line.times(ids))


class _Usual:
    """The other worker's queue and table."""

    def __init__(self, line: Line, paths: Sequence[Path]) -> None:
        self.line, self.paths = line, paths
        self.app = Celery("usual", broker=line.plant.valkey.url)
        self.sent = 0

    def rate(self, count: int, limit_s: float = 300.0) -> float:
        """Send so many films; films/s from the first row to the last. Raises StackError."""
        start = self.sent
        for number in range(count):
            path = self.paths[number % len(self.paths)]
            self.app.send_task("usual.analyse", args=[str(path), start + number], queue="usual")
        self.sent += count
        deadline = time.monotonic() + limit_s
        while True:
            with self.line.database.transaction() as session:
                times = session.connection().exec_driver_sql(
                    "SELECT extract(epoch FROM at) FROM usual WHERE number >= %(start)s ORDER BY 1", {"start": start}
                )
                found = [float(at) for at in times.scalars()]
            if len(found) >= count:
                return (count - 1) / (found[-1] - found[0])
            if time.monotonic() > deadline:
                raise StackError(f"the usual worker did {len(found)} of {count} films in {limit_s:.0f} s")
            time.sleep(0.1)
