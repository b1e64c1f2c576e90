"""Compares the worker, from a stored radiograph to its rows, with what its cores could do without any wait."""

import functools
import statistics
import threading
import time
from itertools import chain
from typing import Any

import cv2
import numpy as np

from benchmarks.measure import Arm, Case, Goal, Result, Say, interleaved
from benchmarks.radiographs import stored
from benchmarks.workload import Workload, pace
from infra.embedded.live_stack import LiveStack
from shared.dicom.image import ImageLimits
from shared.model.bundle import load_bundle
from shared.model.engines import Engine, engine_streams, images_per_call, pick_engine
from shared.settings import Settings, cpu_count
from shared.storage import open_store
from worker import decoder_pool
from worker.tasks import threads_for

GOAL = Goal(">=", 0.90)
KINDS = {"raw": "explicit", "JPEG-LS": "jpegls", "JPEG 2000": "jpeg2000"}
RADIOGRAPHS = 24


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Run a real worker process with the shipped bundle; the bound is measured beside it while its queue is empty.

    Args:
        quick: raw and JPEG-LS radiographs together, fewer studies, and 3 rounds instead of 5.
        say: is called with a line of progress.

    Returns:
        Studies/s to the bound, for each encoding.

    Raises:
        StackError: The worker ended, or did not do its studies in time.
    """
    held = threads_for(Settings())
    studies, edge, repeats = (held + 4, held // 4, 3) if quick else (4 * held, held, 5)
    kinds = {"raw and JPEG-LS": ("explicit", "jpegls")} if quick else {kind: (one,) for kind, one in KINDS.items()}
    network, manifest = load_bundle(Settings().bundle_path.read_bytes())
    engine, size = pick_engine(network, manifest.input_size, Settings().cache), manifest.input_size
    details: dict[str, Any] = {"cores": cpu_count(), "streams": engine_streams()}
    with LiveStack() as live_stack:
        store = open_store(live_stack.store_url)
        live_stack.worker()
        say("making radiographs")
        radiographs = {
            kind: [*chain(*zip(*(stored(store, 2 if quick else RADIOGRAPHS, one) for one in encodings), strict=True))]
            for kind, encodings in kinds.items()
        }
        decoder_pool.begin_here(store, ImageLimits())
        cv2.setNumThreads(1)
        workload = Workload(live_stack)
        try:
            workload.queue(next(iter(radiographs.values())), 8)
            workload.wait()
            arms: dict[str, Arm] = {"model": lambda: images_per_s(engine, size, 8 if quick else 48)}
            for kind, digests in radiographs.items():
                arms[f"{kind} prepared"] = functools.partial(_core_seconds, digests, size)
                arms[f"{kind} worker"] = functools.partial(_studies_per_s, workload, digests, studies, edge)
            say(f"{repeats} rounds of {studies} studies of each kind")
            samples = interleaved(arms, repeats, warmups=0 if quick else 1)
        finally:
            workload.close()
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
        "stored radiograph to findings, heatmap and rows, against 1 / (model time + preparing core-time / cores)",
        GOAL,
        tuple(cases),
        details,
        quick,
    )


def images_per_s(engine: Engine, size: int, images: int) -> float:
    """Time the model alone, all streams busy, with as many images a call as the worker gives it.

    Args:
        engine: compiled.
        size: of the bundle's input, pixels.
        images: at least about so many are read.

    Returns:
        Images/s.
    """
    a_call = images_per_call(Settings().batch_size)
    calls = max(1, images // (engine_streams() * a_call))  # of each stream
    squares = np.random.default_rng(0).integers(0, 256, (a_call, size, size), np.uint8)
    start = time.perf_counter()
    threads = [
        threading.Thread(target=lambda: [engine(squares) for _ in range(calls)]) for _ in range(engine_streams())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return engine_streams() * calls * a_call / (time.perf_counter() - start)


def _core_seconds(digests: list[str], size: int) -> float:
    """Measure the core seconds of fetching, checking, decoding and squaring a radiograph, and storing its preview."""
    start = time.process_time()
    for digest in digests:
        decoder_pool.decode(decoder_pool.Job(digest, size))
    return (time.process_time() - start) / len(digests)


def _studies_per_s(workload: Workload, digests: list[str], studies: int, edge: int) -> float:
    ids = workload.queue(digests, studies)
    workload.wait()
    return pace(workload.times(ids), edge)
