"""Messages, claims and rows alone: one worker process whose model is ready at once and which decodes nothing."""

from sqlalchemy import text

from benchmarks.line import Line
from benchmarks.measure import Case, Goal, Result, Say
from benchmarks.plant import Plant

REQUIRED = 300.0  # studies/s
FIRST = 500  # studies while the worker's caches and connections fill; not measured, and queued besides the length
MOST = 4000  # studies that are measured
GOAL = Goal(">=", 1.0)
FLAT = Goal(">=", 0.8)  # slowest to fastest, over all lengths
BUNDLE = "INSERT INTO bundles (name, sha256, manifest, active) VALUES ('instant', '', '{}', false)"  # of INSTANT
INSTANT = """
    import os, sys, time
    from types import SimpleNamespace
    sys.modules["openvino"] = None
    import worker.main, worker.tasks
    from shared.findings import Call, Finding, Heatmap, InstanceResult, Severity
    MAP = Heatmap(bytes(28 * 28), 28, 28)
    FOUND = Finding(1, "instant", "hand", 0.9, 0.8, Call.LIKELY, Severity.MILD, "in scope", MAP)
    PAUSE_S = float(os.environ.get("PAUSE_S", "0"))  # of each study
    def analyse(claim, *_, **__):
        if PAUSE_S:
            time.sleep(PAUSE_S)
        return [InstanceResult(one.id, [FOUND]) for one in claim.instances]
    worker.tasks.analyse = analyse
    worker.tasks.ActiveReader.current = lambda self: SimpleNamespace(manifest=SimpleNamespace(name="instant"), size=448)
    worker.tasks.Engine.warm_up = lambda self: None
    worker.main.main()
"""


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """The rate at the front of queues of different lengths, once the worker is warm."""
    lengths, repeats = ([500, 2000], 1) if quick else ([1000, 10_000, 100_000], 3)
    rates: dict[int, list[float]] = {length: [] for length in lengths}
    for repeat in range(repeats):
        for length in lengths:
            say(f"round {repeat + 1} of {repeats}: {length} queued")
            rates[length].append(_rate(length))
    cases = [Case.of(f"{length} queued", "studies/s", rates[length], [REQUIRED] * repeats) for length in lengths]
    rounds = list(zip(*rates.values(), strict=True))  # each with a rate of every length
    slowest, fastest = [min(one) for one in rounds], [max(one) for one in rounds]
    cases.append(Case.of("slowest to fastest length", "studies/s", slowest, fastest, goal=FLAT))
    return Result(
        "control_plane",
        f"studies/s of one worker process with an instant model, in units of the {REQUIRED:.0f} that are required",
        GOAL,
        tuple(cases),
        {},
        quick,
    )


def _rate(length: int) -> float:
    with Plant() as plant:
        line = Line(plant)
        try:
            with line.database.transaction() as session:
                session.execute(text(BUNDLE))
            line.queue(["0" * 64], FIRST + length)
            # as autovacuum does within a minute; beside the worker it would be measured with it
            with line.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))
            plant.worker(INSTANT)
            measured = min(length, MOST)
            line.wait(FIRST + measured)
            return line.pace_of_first(measured, FIRST)
        finally:
            line.close()
