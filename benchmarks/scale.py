"""`python -m benchmarks.scale [--workers 1 2 4] [--postgres CORES] [--valkey CORES]`: what saturates first.

Real Postgres, Valkey, Celery and worker processes; the model only sleeps as long as a data-centre GPU is assumed to
take (`GPU_BATCH_S`, `GPU_IMAGE_S`: an assumption, no such GPU was measured), and nothing is decoded. On a small machine
all of them share the same few cores, so the throughput of several workers says little. Two ways to learn more there:
what each part spends on a study, and giving a server a share of a core so small that the workers fill it. Its
throughput then is that of a full server, commits grown as large as they get and all, and grows with the share.
docs/run/scaling.md is written from this.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
from sqlalchemy import text

from benchmarks.cpu_limit import CpuLimit
from benchmarks.workload import Workload
from infra.embedded.live_stack import LiveStack

GPU_BATCH_S, GPU_IMAGE_S, GPU_BATCH = 0.002, 0.0004, 32
WORKER = f"""
    import sys, time
    from types import SimpleNamespace
    sys.modules["openvino"] = None
    import worker.main, worker.tasks
    from shared.domain.findings import Assessment, Extent, Finding, Heatmap, InstanceResult
    MAP = Heatmap(bytes(28 * 28), 28, 28)
    FOUND = Finding(1, "asleep", "hand", 0.9, 0.8, Assessment.POSITIVE, Extent.MILD, MAP)
    def predict(items):
        time.sleep({GPU_BATCH_S} + {GPU_IMAGE_S} * len(items))
        return items
    def analyse(claim, predictor, decode, batcher, *, last_attempt=False):
        waiting = [batcher.submit(one) for one in claim.instances]
        return [InstanceResult(future.result().id, [FOUND]) for future in waiting]
    worker.tasks.predict, worker.tasks.analyse = predict, analyse
    asleep = SimpleNamespace(manifest=SimpleNamespace(name="asleep"), size=448)
    worker.tasks.ActivePredictor.current = lambda self: asleep
    worker.tasks.Engine.warm_up = lambda self: None
    worker.main.main()
"""


@dataclass(frozen=True)
class Load:
    """Measurement with one number of workers. Costs are milliseconds of CPU a study (of two images)."""

    workers: int
    studies_per_s: float
    postgres_ms: float
    valkey_ms: float
    workers_ms: float
    wal_bytes: float  # a study
    studies_a_transaction: float  # of claims and results together, over all workers
    full: dict[str, float]  # of each server with a share: how much of it was used, 1 is all


def measure(workers: int, studies: int, shares: Mapping[str, float]) -> Load:
    """Queue studies, start workers, and look what everything costs while all of them work.

    Args:
        workers: processes.
        studies: of two images each.
        shares: cores that "postgres" or "valkey" may use, where that is limited.

    Returns:
        Rate and costs between the first and the last twentieth of the studies.

    Raises:
        StackError: A server or worker failed, or a limit cannot be set here.
    """
    with LiveStack(settings={"BATCH_SIZE": str(GPU_BATCH), "WORKER_THREADS": "64", "BACKFILL_HOUR": "0"}) as live_stack:
        workload = Workload(live_stack)
        try:
            with workload.database.transaction() as session:
                session.execute(
                    text("INSERT INTO bundles (name, sha256, manifest, active) VALUES ('asleep', '', '{}', false)")
                )
            workload.queue(["0" * 64], studies, images=2)
            servers: dict[str, Any] = {"postgres": live_stack.postgres.child, "valkey": live_stack.valkey.child}
            with contextlib.ExitStack() as limits:
                for name, cores in shares.items():
                    limits.enter_context(CpuLimit(name, cores, servers[name].pid))
                children = [live_stack.worker(WORKER) for _ in range(workers)]
                groups: dict[str, list[Any]] = {
                    **{name: [child] for name, child in servers.items()},
                    "workers": children,
                }
                workload.wait(studies // 20, 300)
                before, start = _sample_load(workload, groups), time.monotonic()
                workload.wait(studies * 19 // 20, 600)
                after, seconds = _sample_load(workload, groups), time.monotonic() - start
        finally:
            workload.close()
    done = after["done"] - before["done"]
    spent = {name: 1000 * (after[name] - before[name]) / done for name in groups}
    commits = (after["commits"] - before["commits"]) / done
    return Load(
        workers,
        done / seconds,
        spent["postgres"],
        spent["valkey"],
        spent["workers"],
        (after["wal"] - before["wal"]) / done,
        2 / commits if commits else 0.0,
        {name: (after[name] - before[name]) / seconds / cores for name, cores in shares.items()},
    )


def _sample_load(workload: Workload, groups: dict[str, list[Any]]) -> dict[str, float]:
    done = workload.done()
    with workload.database.transaction() as session:
        wal = session.scalar(text("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))
        commits = session.scalar(text("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"))
    spent = {name: sum(_cpu_s(child.pid) for child in group) for name, group in groups.items()}
    return {"done": float(done), "wal": float(wal or 0), "commits": float(commits or 0), **spent}


def _cpu_s(pid: int) -> float:
    """Sum the CPU seconds of a process and all below it."""
    root, spent = psutil.Process(pid), 0.0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system
    return spent


def table(loads: Iterable[Load]) -> str:
    """Print the table of docs/run/scaling.md; ms are of CPU a study."""
    lines = [
        "| workers | studies/s | Postgres, ms | Valkey, ms | workers, ms | WAL, bytes | studies/commit | share used |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {load.workers} | {load.studies_per_s:.0f} | {load.postgres_ms:.2f} | {load.valkey_ms:.2f} | "
        f"{load.workers_ms:.2f} | {load.wal_bytes:.0f} | {load.studies_a_transaction:.1f} | "
        f"{', '.join(f'{name} {used:.0%}' for name, used in load.full.items()) or 'no limit'} |"
        for load in loads
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each number of workers in turn."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description="What each part spends on a study.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="worker processes, one run each")
    parser.add_argument("--studies", type=int, default=4000, help="studies of two images a run")
    for name in ("postgres", "valkey"):
        parser.add_argument(
            f"--{name}", type=float, metavar="CORES", help="give it no more of a core than this, e.g. 0.1"
        )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    shares = {name: cores for name in ("postgres", "valkey") if (cores := getattr(given, name)) is not None}
    loads = [measure(workers, given.studies, shares) for workers in given.workers]
    print(json.dumps([asdict(load) for load in loads]) if given.json else table(loads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
