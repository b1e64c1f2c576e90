"""Whether a worker's memory grows: its process and its decoders, over thousands of films of many kinds."""

import io
import statistics
import time

import psutil

from benchmarks.control_plane import INSTANT
from benchmarks.films import film
from benchmarks.line import Line
from benchmarks.measure import Case, Goal, Result, Say, median_interval
from benchmarks.plant import Plant
from shared.storage import open_store, original_key, sha256_of

GOAL = Goal("<=", 1.05)
ENCODINGS = ("explicit", "jpegls", "jpeg2000", "rle", "jpegsv1")
SIDES = (96, 160, 256, 400)
# real decoding, then an answer that is ready
DECODING = INSTANT.replace(
    "def analyse(claim, *_, **__):",
    "def analyse(claim, reader, decode, *_, **__):\n        for one in claim.instances:\n"
    "            decode(Job(one.sha256, 448), 0).result()",
).replace("import worker.main, worker.tasks", "import worker.main, worker.tasks\n    from worker.decoding import Job")


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Resident memory every half second; the last tenth of the films against the second tenth."""
    count = 1500 if quick else 20_000
    with Plant() as plant:
        store, digests = open_store(plant.store_url), []
        for number, encoding in enumerate(ENCODINGS * 4):
            side = SIDES[number % len(SIDES)]
            content = film(number, side + number, side, encoding)
            digests.append(sha256_of(content))
            store.put(original_key(digests[-1]), io.BytesIO(content), len(content))
        line = Line(plant)
        try:
            with line.database.transaction() as session:
                session.connection().exec_driver_sql(
                    "INSERT INTO bundles (name, sha256, manifest, active) VALUES ('instant', '', '{}', false)"
                )
            line.queue(digests, count)
            worker = plant.worker(DECODING)
            say(f"{count} films of {len(ENCODINGS)} encodings")
            seen: list[tuple[int, int]] = []
            while (done := line.done()) < count:
                if not worker.running:
                    raise worker.failure("ended")
                seen.append((done, _resident(worker.pid or 0)))
                time.sleep(0.5)
        finally:
            line.close()
    early = [size for done, size in seen if 0.1 * count <= done < 0.2 * count]
    late = [size for done, size in seen if done >= 0.9 * count]
    first = statistics.median(early)
    grown = [size / first for size in late]
    case = Case(
        f"{count} films", statistics.median(grown), median_interval(grown), len(grown), "MB",
        statistics.median(late) / 1e6, first / 1e6,
    )  # fmt: skip
    return Result(
        "memory", "resident memory in the last tenth of many films, against the second tenth", GOAL, (case,),
        {"largest, MB": round(max(size for _, size in seen) / 1e6)}, quick,
    )  # fmt: skip


def _resident(pid: int) -> int:
    """Bytes of a process and its children."""
    root = psutil.Process(pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
