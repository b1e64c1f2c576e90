"""The worker from a stored film to its rows, against what its cores could do if they never waited."""

import functools
import statistics
import threading
import time
from typing import Any

import cv2
import numpy as np

from benchmarks.line import Line, pace
from benchmarks.measure import Arm, Case, Goal, Result, Say, interleaved
from benchmarks.plant import Plant
from benchmarks.radiographs import stored
from shared.image import ImageLimits
from shared.settings import Settings, cpu_count
from shared.storage import open_store
from shared.vision.bundle import load_bundle
from shared.vision.engines import Engine, images_a_call, lanes, pick_engine
from worker import decoding
from worker.tasks import threads_for

GOAL = Goal(">=", 0.90)
KINDS = {"raw": "explicit", "JPEG-LS": "jpegls", "JPEG 2000": "jpeg2000"}
FILMS = 24


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """A real worker process with the shipped bundle; the bound is measured beside it while its queue is empty."""
    held = threads_for(Settings())
    studies, edge, repeats = (held + 8, held // 4, 3) if quick else (4 * held, held, 5)
    kinds = {"raw": "explicit", "JPEG-LS": "jpegls"} if quick else KINDS
    network, manifest = load_bundle(Settings().bundle_path.read_bytes())
    engine, size = pick_engine(network, manifest.input_size, Settings().cache), manifest.input_size
    details: dict[str, Any] = {"cores": cpu_count(), "lanes": lanes()}
    with Plant() as plant:
        store = open_store(plant.store_url)
        plant.worker()
        say("making films")
        films = {kind: stored(store, 4 if quick else FILMS, encoding) for kind, encoding in kinds.items()}
        decoding.begin_here(store, ImageLimits())
        cv2.setNumThreads(1)
        line = Line(plant)
        try:
            line.queue(films["raw"], 8)
            line.wait()
            arms: dict[str, Arm] = {"model": lambda: images_per_s(engine, size, 16 if quick else 48)}
            for kind, digests in films.items():
                arms[f"{kind} prepared"] = functools.partial(_core_seconds, digests, size)
                arms[f"{kind} worker"] = functools.partial(_studies_per_s, line, digests, studies, edge)
            say(f"{repeats} rounds of {studies} studies of each kind")
            samples = interleaved(arms, repeats, warmups=0 if quick else 1)
        finally:
            line.close()
    model = statistics.median(samples["model"])
    details["model, images/s"] = round(model, 2)
    cases = []
    for kind in kinds:
        prepared = samples[f"{kind} prepared"]
        details[f"{kind}: preparing, ms of a core"] = round(1000 * statistics.median(prepared), 1)
        bound = [1 / (1 / m + p / cpu_count()) for m, p in zip(samples["model"], prepared, strict=True)]
        cases.append(Case.of(kind, "studies/s", samples[f"{kind} worker"], bound))
    return Result(
        "worker",
        "stored film to findings, heatmap and rows, against 1 / (model time + preparing core-time / cores)",
        GOAL,
        tuple(cases),
        details,
        quick,
    )


def images_per_s(engine: Engine, size: int, images: int) -> float:
    """The model alone, all lanes busy, with as many images a call as the worker gives it."""
    a_call = images_a_call(Settings().batch_size)
    calls = max(1, images // (lanes() * a_call))  # of each lane
    squares = np.random.default_rng(0).integers(0, 256, (a_call, size, size), np.uint8)
    start = time.perf_counter()
    threads = [threading.Thread(target=lambda: [engine(squares) for _ in range(calls)]) for _ in range(lanes())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return lanes() * calls * a_call / (time.perf_counter() - start)


def _core_seconds(digests: list[str], size: int) -> float:
    """What fetching, checking, decoding and squaring a film, and storing its preview, takes one core."""
    start = time.process_time()
    for digest in digests:
        decoding.decode(decoding.Job(digest, size))
    return (time.process_time() - start) / len(digests)


def _studies_per_s(line: Line, digests: list[str], studies: int, edge: int) -> float:
    ids = line.queue(digests, studies)
    line.wait()
    return pace(line.times(ids), edge)
