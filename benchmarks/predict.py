"""Compares `osteon predict` on a folder of radiographs, from its start, with a worker that already runs.

A quick run reckons what the folder would take from what two smaller ones do: each further file takes as long.
"""

import csv
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Case, Goal, Result, Say, interleaved
from benchmarks.radiographs import stored
from benchmarks.workload import Workload, pace
from infra.embedded.live_stack import LiveStack
from shared.errors import StackError
from shared.model.engines import engine_streams
from shared.settings import Settings, cpu_count
from shared.storage import Store, open_store, original_key
from worker.tasks import threads_for

GOAL = Goal(">=", 0.85)
FILES = 500  # fewer would measure the start alone
KINDS = ("explicit", "jpegls")
FEW, SOME = 16, 88  # files of the folders of a quick run
OF_KIND = 12  # of each kind, sent in turn


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Time the same radiographs, raw and JPEG-LS in turn, as files of a folder and as studies of one image.

    Args:
        quick: two small folders, from which the time of 500 files is reckoned; one round instead of 5.
        say: is called with a line of progress.

    Returns:
        Radiographs/s of `osteon predict` to those of the worker.

    Raises:
        StackError: The command failed, or a worker ended.
    """
    held = threads_for(Settings())
    studies, edge, repeats = (held + held // 2, held // 2, 1) if quick else (FILES, held, 5)
    with LiveStack() as live_stack:
        store = open_store(live_stack.store_url)
        live_stack.worker()
        say("making radiographs")
        kinds = [stored(store, 3 if quick else OF_KIND, encoding) for encoding in KINDS]
        radiographs = list(itertools.chain.from_iterable(zip(*kinds, strict=True)))
        folders = {
            count: _folder(live_stack, store, radiographs, count) for count in ((FEW, SOME) if quick else (FILES,))
        }
        workload = Workload(live_stack)
        try:
            workload.queue(radiographs, 8)
            workload.wait()
            say(f"{repeats} rounds of {' and '.join(map(str, folders))} files and {studies} studies")
            samples = interleaved(
                {
                    "predict": lambda: _predicted_per_s(live_stack, folders),
                    "worker": lambda: _studies_per_s(workload, radiographs, studies, edge),
                },
                repeats,
                warmups=0,
            )
        finally:
            workload.close()
    label = "raw and JPEG-LS" + (f", reckoned from {FEW} and {SOME} files" if quick else "")
    case = Case.of(label, "radiographs/s", samples["predict"], samples["worker"])
    return Result(
        "predict",
        f"osteon predict on {FILES} files, from its start to its end, against a warm worker's radiographs/s",
        GOAL,
        (case,),
        {"cores": cpu_count(), "streams": engine_streams()},
        quick,
    )


def _folder(live_stack: LiveStack, store: Store, radiographs: Sequence[str], count: int) -> Path:
    """Make a folder of files: the radiographs, and then links to them."""
    folder = live_stack.folder / f"{count} radiographs"
    folder.mkdir()
    for number, digest in enumerate(radiographs):
        (folder / f"{number:04}.dcm").write_bytes(store.get(original_key(digest)))
    for number in range(len(radiographs), count):
        os.link(folder / f"{number % len(radiographs):04}.dcm", folder / f"{number:04}.dcm")
    return folder


def _predicted_per_s(live_stack: LiveStack, folders: Mapping[int, Path]) -> float:
    """Measure radiographs/s of FILES files; folders are by their number of files, the smallest first."""
    seconds = {count: _seconds(live_stack, folder, count) for count, folder in folders.items()}
    if FILES in seconds:
        return FILES / seconds[FILES]
    further = (seconds[SOME] - seconds[FEW]) / (SOME - FEW)
    return FILES / (seconds[FEW] + (FILES - FEW) * further)


def _seconds(live_stack: LiveStack, folder: Path, count: int) -> float:
    """Measure the command from its start to its end."""
    table = live_stack.folder / "out.csv"
    command = ["-m", "infra.cli", "predict", str(folder), "--csv", str(table), "--fresh", "--quiet"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], env=live_stack.environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise StackError(f"osteon predict failed:\n{done.stderr[-2000:]}")
    with table.open(newline="") as file:
        rows = sum(1 for _ in csv.DictReader(file))
    if rows != count:
        raise StackError(f"osteon predict wrote {rows} rows for {count} files")
    return seconds


def _studies_per_s(workload: Workload, radiographs: list[str], studies: int, edge: int) -> float:
    ids = workload.queue(radiographs, studies)
    workload.wait()
    return pace(workload.times(ids), edge)
