"""`osteon predict` on a folder of radiographs, its start included, against a worker that is warm."""

import csv
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.line import Line, pace
from benchmarks.measure import Case, Goal, Result, Say, interleaved
from benchmarks.plant import Plant
from benchmarks.radiographs import stored
from shared.errors import StackError
from shared.settings import Settings, cpu_count
from shared.storage import open_store, original_key
from shared.vision.engines import lanes
from worker.tasks import threads_for

GOAL = Goal(">=", 0.85)
RADIOGRAPHS = 500  # fewer would measure the start alone
KINDS = ("explicit", "jpegls")
FILMS = 12  # of each kind, sent in turn


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """The same radiographs, raw and JPEG-LS in turn, as files of a folder and as studies of one image."""
    held = threads_for(Settings())
    studies, edge, repeats = (3 * held, held, 1) if quick else (RADIOGRAPHS, held, 5)
    with Plant() as plant:
        store = open_store(plant.store_url)
        plant.worker()
        say("making films")
        kinds = [stored(store, 3 if quick else FILMS, encoding) for encoding in KINDS]
        films = list(itertools.chain.from_iterable(zip(*kinds, strict=True)))
        folder = plant.folder / "films"
        folder.mkdir()
        for number, digest in enumerate(films):
            (folder / f"{number:04}.dcm").write_bytes(store.get(original_key(digest)))
        for number in range(len(films), RADIOGRAPHS):
            os.link(folder / f"{number % len(films):04}.dcm", folder / f"{number:04}.dcm")
        line = Line(plant)
        try:
            line.queue(films, 8)
            line.wait()
            say(f"{repeats} rounds of {RADIOGRAPHS} files and {studies} studies")
            samples = interleaved(
                {
                    "predict": lambda: _predicted_per_s(plant, folder),
                    "worker": lambda: _studies_per_s(line, films, studies, edge),
                },
                repeats,
                warmups=0,
            )
        finally:
            line.close()
    case = Case.of("raw and JPEG-LS", "films/s", samples["predict"], samples["worker"])
    return Result(
        "predict",
        f"osteon predict on {RADIOGRAPHS} files, from its start to its end, against a warm worker's films/s",
        GOAL,
        (case,),
        {"cores": cpu_count(), "lanes": lanes()},
        quick,
    )


def _predicted_per_s(plant: Plant, folder: Path) -> float:
    table = plant.folder / "out.csv"
    command = ["-m", "infra.cli", "predict", str(folder), "--csv", str(table), "--fresh", "--quiet"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], env=plant.environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise StackError(f"osteon predict failed:\n{done.stderr[-2000:]}")
    with table.open(newline="") as file:
        rows = sum(1 for _ in csv.DictReader(file))
    if rows != RADIOGRAPHS:
        raise StackError(f"osteon predict wrote {rows} rows for {RADIOGRAPHS} files")
    return RADIOGRAPHS / seconds


def _studies_per_s(line: Line, films: list[str], studies: int, edge: int) -> float:
    ids = line.queue(films, studies)
    line.wait()
    return pace(line.times(ids), edge)
