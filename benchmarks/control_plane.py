"""Measures messages, leases and rows alone: one worker process with an instant model and without decoding.

Its rate stands against that of a bare Celery application (benchmarks/bare.py) on the same servers, and against its own
with a long queue behind. All workers are up, and one has work at a time: a file holds the others' tasks.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from pydantic import SecretStr
from sqlalchemy import text

from benchmarks import bare
from benchmarks.measure import Case, Goal, Result, Say, interleaved
from benchmarks.workload import Workload, pace
from infra.embedded.live_stack import LiveStack
from infra.embedded.process import Child
from shared.settings import Settings
from worker.tasks import threads_for

GOAL = Goal(">=", 0.6)
FLAT = Goal(">=", 0.9)  # a long queue to a short one
BUNDLE = "INSERT INTO bundles (name, sha256, manifest, active) VALUES ('instant', '', '{}', false)"  # of INSTANT
# PAUSE_S: seconds of each study; HOLD: a file that holds all studies for as long as it exists
INSTANT = """
    import os, sys, time
    from types import SimpleNamespace
    sys.modules["openvino"] = None
    import worker.main, worker.tasks
    from shared.domain.findings import Assessment, Extent, Finding, Heatmap, InstanceResult
    MAP = Heatmap(bytes(28 * 28), 28, 28)
    FOUND = Finding(1, "instant", "hand", 0.9, 0.8, Assessment.POSITIVE, Extent.MILD, MAP)
    PAUSE_S, HOLD = float(os.environ.get("PAUSE_S", "0")), os.environ.get("HOLD", "")
    def analyse(claim, *_, **__):
        while HOLD and os.path.exists(HOLD):
            time.sleep(0.05)
        if PAUSE_S:
            time.sleep(PAUSE_S)
        return [InstanceResult(one.id, [FOUND]) for one in claim.instances]
    worker.tasks.analyse = analyse
    instant = SimpleNamespace(manifest=SimpleNamespace(name="instant"), size=448)
    worker.tasks.ActivePredictor.current = lambda self: instant
    worker.tasks.Engine.warm_up = lambda self: None
    worker.main.main()
"""
OURS = "SELECT extract(epoch FROM analysed_at) FROM studies WHERE analysed_at >= :since ORDER BY 1"
THEIRS = "SELECT extract(epoch FROM at) FROM bare WHERE at >= :since ORDER BY 1"


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Measure three rates in turns: the bare application's, ours with a short queue, ours with a long one behind.

    Args:
        quick: 3 rounds, and 4,000 studies in the long queue instead of 100,000.
        say: is called with a line of progress.

    Returns:
        Our rate to the bare one, and with a long queue to that with a short one.

    Raises:
        StackError: A worker ended, or did not do its studies in time.
    """
    short, long, repeats = (400, 4000, 3) if quick else (1000, 100_000, 11)
    with LiveStack() as near, LiveStack() as far:
        arms = {"bare": _bare(near), "short": _ours(near), "long": _ours(far)}
        try:
            say(f"{long} studies are queued")
            arms["long"].queue(long)
            say(f"{repeats} rounds of {short} studies each")
            turns = {name: functools.partial(arm.rate, short) for name, arm in arms.items()}
            for arm in arms.values():  # once without counting: caches and connections fill
                arm.rate(short // 2)
                _vacuum(arm.workload)
            samples = interleaved(turns, repeats, warmups=0)
        finally:
            for arm in arms.values():
                arm.close()
    return Result(
        "control_plane",
        "studies/s of one worker process with an instant model, against those of a bare Celery application that "
        "inserts a row a task (same broker, database, settings and pool), and a long queue against a short one",
        GOAL,
        (
            Case.of(f"{short} queued, to bare Celery", "studies/s", samples["short"], samples["bare"]),
            Case.of(f"{long} queued, to {short}", "studies/s", samples["long"], samples["short"], goal=FLAT),
        ),
        {},
        quick,
    )


class _Arm:
    """A worker that a file holds, with a way to queue studies and to see when each was done."""

    def __init__(
        self, workload: Workload, worker: Child, hold: Path, queue: Callable[[int], object], times: str
    ) -> None:
        self.workload, self.queue, self._worker, self._hold, self._times = workload, queue, worker, hold, text(times)

    def close(self) -> None:
        """Kill the worker at its end: it would wait for the studies that its file holds."""
        self._worker.stop_wait_s = 0
        self.workload.close()

    def rate(self, count: int, limit_s: float = 300.0) -> float:
        """Measure the rate, in studies/s, of more studies, started when all are queued. Raises StackError."""
        self.queue(count)
        with self.workload.database.transaction() as session:
            since = session.scalar(text("SELECT clock_timestamp()"))
        self._hold.unlink()
        try:
            deadline = time.monotonic() + limit_s
            while True:
                time.sleep(0.2)
                with self.workload.database.transaction() as session:
                    times = [float(at) for at in session.scalars(self._times, {"since": since})]
                if len(times) >= count:
                    return pace(times[:count])
                if not self._worker.running or time.monotonic() > deadline:
                    raise self._worker.failure(f"has done {len(times)} of {count} studies in {limit_s:.0f} s")
        finally:
            self._hold.touch()


def _vacuum(workload: Workload) -> None:
    """Vacuum now, as autovacuum would within a minute, beside the workers that are measured."""
    workload.live_stack.as_owner("VACUUM ANALYZE")


def _ours(live_stack: LiveStack) -> _Arm:
    workload, hold = Workload(live_stack), live_stack.folder / "ours.hold"
    hold.touch()
    with workload.database.transaction() as session:
        session.execute(text(BUNDLE))
    worker = live_stack.worker(INSTANT, HOLD=str(hold))
    return _Arm(workload, worker, hold, lambda count: workload.queue(["0" * 64], count), OURS)


def _bare(live_stack: LiveStack) -> _Arm:
    workload, hold = Workload(live_stack), live_stack.folder / "bare.hold"
    hold.touch()
    live_stack.as_owner(bare.TABLE)
    worker = live_stack.run("bare", "-m", "benchmarks.bare", HOLD=str(hold), THREADS=str(threads_for(Settings())))
    app = bare.bare_app(Settings(broker_url=SecretStr(live_stack.valkey.url)))

    def queue(count: int) -> None:
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            for _ in range(count):
                app.send_task(bare.TASK, args=[str(uuid4())], queue=bare.NAMES[1], producer=producer)

    return _Arm(workload, worker, hold, queue, THEIRS)
