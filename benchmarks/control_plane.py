"""Messages, leases and rows alone: one worker process whose model is ready at once and which decodes nothing.

Its rate stands against that of a bare Celery application (benchmarks/bare.py) on the same servers, and against its own
with a long queue behind. All workers are up, and one has work at a time: a gate holds the others' tasks.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from pydantic import SecretStr
from sqlalchemy import text

from benchmarks import bare
from benchmarks.line import Line, pace
from benchmarks.measure import Case, Goal, Result, Say, interleaved
from benchmarks.plant import Plant
from infra.process import Child
from shared.settings import Settings
from worker.tasks import threads_for

GOAL = Goal(">=", 0.6)
FLAT = Goal(">=", 0.9)  # a long queue to a short one
BUNDLE = "INSERT INTO bundles (name, sha256, manifest, active) VALUES ('instant', '', '{}', false)"  # of INSTANT
# PAUSE_S: seconds of each study; GATE: a file that holds all studies for as long as it exists
INSTANT = """
    import os, sys, time
    from types import SimpleNamespace
    sys.modules["openvino"] = None
    import worker.main, worker.tasks
    from shared.findings import Assessment, Finding, Heatmap, InstanceResult, Severity
    MAP = Heatmap(bytes(28 * 28), 28, 28)
    FOUND = Finding(1, "instant", "hand", 0.9, 0.8, Assessment.POSITIVE, Severity.MILD, MAP)
    PAUSE_S, GATE = float(os.environ.get("PAUSE_S", "0")), os.environ.get("GATE", "")
    def analyse(claim, *_, **__):
        while GATE and os.path.exists(GATE):
            time.sleep(0.05)
        if PAUSE_S:
            time.sleep(PAUSE_S)
        return [InstanceResult(one.id, [FOUND]) for one in claim.instances]
    worker.tasks.analyse = analyse
    worker.tasks.ActiveReader.current = lambda self: SimpleNamespace(manifest=SimpleNamespace(name="instant"), size=448)
    worker.tasks.Engine.warm_up = lambda self: None
    worker.main.main()
"""
OURS = "SELECT extract(epoch FROM analysed_at) FROM studies WHERE analysed_at >= :since ORDER BY 1"
THEIRS = "SELECT extract(epoch FROM at) FROM bare WHERE at >= :since ORDER BY 1"


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Rates of all three in turns: the bare application's, ours with a short queue, ours with a long one behind."""
    short, long, repeats = (500, 6000, 3) if quick else (1000, 100_000, 11)
    with Plant() as near, Plant() as far:
        arms = {"bare": _bare(near), "short": _ours(near), "long": _ours(far)}
        try:
            say(f"{long} studies are queued")
            arms["long"].queue(long)
            say(f"{repeats} rounds of {short} studies each")
            turns = {name: functools.partial(arm.rate, short) for name, arm in arms.items()}
            for arm in arms.values():  # once without counting: caches and connections fill
                arm.rate(short)
                _vacuum(arm.line)
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
    """A worker behind a gate, how it gets studies, and where it shows when each was done."""

    def __init__(self, line: Line, worker: Child, gate: Path, queue: Callable[[int], object], times: str) -> None:
        self.line, self.queue, self._worker, self._gate, self._times = line, queue, worker, gate, text(times)

    def close(self) -> None:
        """Have the worker killed at its end: it would wait for the studies that its gate holds."""
        self._worker.stop_wait_s = 0
        self.line.close()

    def rate(self, count: int, limit_s: float = 300.0) -> float:
        """Studies/s of so many more, none of which is begun before all stand in the queue. Raises StackError."""
        self.queue(count)
        with self.line.database.transaction() as session:
            since = session.scalar(text("SELECT clock_timestamp()"))
        self._gate.unlink()
        try:
            deadline = time.monotonic() + limit_s
            while True:
                time.sleep(0.2)
                with self.line.database.transaction() as session:
                    times = [float(at) for at in session.scalars(self._times, {"since": since})]
                if len(times) >= count:
                    return pace(times[:count])
                if not self._worker.running or time.monotonic() > deadline:
                    raise self._worker.failure(f"has done {len(times)} of {count} studies in {limit_s:.0f} s")
        finally:
            self._gate.touch()


def _vacuum(line: Line) -> None:
    """As autovacuum does within a minute; beside the workers it would be measured with them."""
    with line.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def _ours(plant: Plant) -> _Arm:
    line, gate = Line(plant), plant.folder / "ours.gate"
    gate.touch()
    with line.database.transaction() as session:
        session.execute(text(BUNDLE))
    worker = plant.worker(INSTANT, GATE=str(gate))
    return _Arm(line, worker, gate, lambda count: line.queue(["0" * 64], count), OURS)


def _bare(plant: Plant) -> _Arm:
    line, gate = Line(plant), plant.folder / "bare.gate"
    gate.touch()
    with line.database.transaction() as session:
        session.execute(text(bare.TABLE))
    worker = plant.run("bare", "-m", "benchmarks.bare", GATE=str(gate), THREADS=str(threads_for(Settings())))
    app = bare.bare_app(Settings(broker_url=SecretStr(plant.valkey.url)))

    def queue(count: int) -> None:
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            for _ in range(count):
                app.send_task(bare.TASK, args=[str(uuid4())], queue=bare.NAMES[1], producer=producer)

    return _Arm(line, worker, gate, queue, THEIRS)
