"""Measures whether the memory of a worker and its decoders grows over thousands of instances of many kinds."""

import io
import statistics
import time

import psutil

from benchmarks.control_plane import INSTANT
from benchmarks.instances import instance
from benchmarks.measure import Case, Goal, Result, Say, median_interval
from benchmarks.workload import Workload
from infra.embedded.live_stack import LiveStack
from shared.storage import open_store, original_key, sha256_of

GOAL = Goal("<=", 1.05)
ENCODINGS = ("explicit", "jpegls", "jpeg2000", "rle", "jpegsv1")
SIDES = (96, 160, 256, 400)
# real decoding, then an output that is ready
DECODING = INSTANT.replace(
    "def analyse(claim, *_, **__):",
    "def analyse(claim, predictor, decode, *_, **__):\n        for one in claim.instances:\n"
    "            decode(Job(one.sha256, 448), 0).result()",
).replace(
    "import worker.main, worker.tasks", "import worker.main, worker.tasks\n    from worker.decoder_pool import Job"
)


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Look at resident memory every half second; compare the last tenth of the instances with the second tenth.

    Args:
        quick: 1,500 instances instead of 20,000.
        say: is called with a line of progress.

    Returns:
        How many times as much memory the worker and its decoders have at the end.

    Raises:
        StackError: The worker ended.
    """
    count = 1500 if quick else 20_000
    with LiveStack() as live_stack:
        store, digests = open_store(live_stack.store_url), []
        for number, encoding in enumerate(ENCODINGS * 4):
            side = SIDES[number % len(SIDES)]
            content = instance(number, side + number, side, encoding)
            digests.append(sha256_of(content))
            store.put(original_key(digests[-1]), io.BytesIO(content), len(content))
        workload = Workload(live_stack)
        try:
            with workload.database.transaction() as session:
                session.connection().exec_driver_sql(
                    "INSERT INTO bundles (name, sha256, manifest, active) VALUES ('instant', '', '{}', false)"
                )
            workload.queue(digests, count)
            worker = live_stack.worker(DECODING)
            say(f"{count} instances of {len(ENCODINGS)} encodings")
            seen: list[tuple[int, int]] = []
            while (done := workload.done()) < count:
                if not worker.running:
                    raise worker.failure("ended")
                seen.append((done, _resident(worker.pid or 0)))
                time.sleep(0.5)
        finally:
            workload.close()
    early = [size for done, size in seen if 0.1 * count <= done < 0.2 * count]
    late = [size for done, size in seen if done >= 0.9 * count]
    first = statistics.median(early)
    grown = [size / first for size in late]
    case = Case(
        f"{count} instances", statistics.median(grown), median_interval(grown), len(grown), "MB",
        statistics.median(late) / 1e6, first / 1e6,
    )  # fmt: skip
    return Result(
        "memory", "resident memory in the last tenth of many instances, against the second tenth", GOAL, (case,),
        {"largest, MB": round(max(size for _, size in seen) / 1e6)}, quick,
    )  # fmt: skip


def _resident(pid: int) -> int:
    """Count the resident bytes of a process and its children."""
    root = psutil.Process(pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
