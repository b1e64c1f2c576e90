"""Messages, claims and rows alone: one worker process whose model is ready at once and which decodes nothing."""

from benchmarks.line import Line
from benchmarks.measure import Case, Goal, Result, Say
from benchmarks.plant import Plant

REQUIRED = 300.0  # studies/s
GOAL = Goal(">=", 1.0)
FLAT = 0.8  # of the rate with the shortest queue
INSTANT = """
    import sys
    from types import SimpleNamespace
    sys.modules["openvino"] = None
    import worker.main, worker.tasks
    from shared.findings import Call, Finding, Heatmap, InstanceResult, Severity
    MAP = Heatmap(bytes(28 * 28), 28, 28)
    FOUND = Finding(1, "instant", "hand", 0.9, 0.8, Call.LIKELY, Severity.MILD, "in scope", MAP)
    def analyse(claim, *_, **__):
        return [InstanceResult(one.id, [FOUND]) for one in claim.instances]
    worker.tasks.analyse = analyse
    worker.tasks.ActiveReader.current = lambda self: SimpleNamespace(manifest=SimpleNamespace(name="instant"), size=448)
    worker.tasks.Engine.warm_up = lambda self: None
    worker.main.main()
"""


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """The rate at the front of queues of different lengths, measured over the same number of studies."""
    lengths, repeats = ([1000, 3000], 1) if quick else ([1000, 10_000, 100_000], 3)
    rates: dict[int, list[float]] = {length: [] for length in lengths}
    for repeat in range(repeats):
        for length in lengths:
            say(f"round {repeat + 1} of {repeats}: {length} queued")
            rates[length].append(_rate(length))
    cases = tuple(Case.of(f"{length} queued", "studies/s", rates[length], [REQUIRED] * repeats) for length in lengths)
    slowest, fastest = (pick(case.subject for case in cases) for pick in (min, max))
    return Result(
        "control_plane",
        f"studies/s of one worker process with an instant model, in units of the {REQUIRED:.0f} that are required",
        GOAL,
        cases,
        {"flat: slowest to fastest queue length": round(slowest / fastest, 2), "flat is": f">= {FLAT}"},
        quick,
    )


def _rate(length: int) -> float:
    with Plant() as plant:
        line = Line(plant)
        try:
            with line.database.transaction() as session:
                session.connection().exec_driver_sql(
                    "INSERT INTO bundles (name, sha256, manifest, active) VALUES ('instant', '', '{}', false)"
                )
            line.queue(["0" * 64], length)
            plant.worker(INSTANT)
            measured = min(length, 4000)
            line.wait(measured)
            return line.pace_of_first(measured)
        finally:
            line.close()
