"""Compares the worker's batcher and engine, on ready squares, with LitServe and with the model alone."""

import base64
import contextlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from benchmarks.measure import Case, Goal, MissingRequirement, Result, Say, interleaved
from benchmarks.worker import images_per_s
from infra.embedded.process import Child, free_port, wait_until
from shared.model.bundle import load_bundle
from shared.model.engines import calling_threads, images_per_call, pick_engine
from shared.model.predictor import Predictor
from shared.settings import ROOT, Settings, cpu_count
from worker.batching import Batcher
from worker.predictor import predict

GOAL, BARE = Goal(">=", 1.0), Goal(">=", 0.95)
CLIENTS = 16
SETUPS = ((8, 1), (4, 2), (1, 2))  # LitServe's batch size and worker processes; the best counts


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Time both servers; each stands ready, one has work at a time, and clients of both wait for each response.

    Args:
        quick: 28 squares in 3 rounds, and one setup of LitServe without a search for its best.
        say: is called with a line of progress.

    Returns:
        Our squares/s to LitServe's, and to those of the model alone.

    Raises:
        MissingRequirement: LitServe is not installed.
        StackError: LitServe did not start.
    """
    if not importlib.util.find_spec("litserve"):
        raise MissingRequirement("LitServe is not installed: uv pip install -c constraints.txt -e '.[bench]'")
    count, repeats = (28, 3) if quick else (160, 6)
    network, manifest = load_bundle(Settings().bundle_path.read_bytes())
    engine, size = pick_engine(network, manifest.input_size, Settings().cache), manifest.input_size
    predictor = Predictor(network, manifest, engine)
    squares = np.random.default_rng(0).integers(0, 256, (CLIENTS, size, size), np.uint8)
    settings = Settings()
    batcher = Batcher(
        "model",
        predict,
        max_batch=images_per_call(settings.batch_size),
        max_wait_s=settings.batch_wait_ms / 1000,
        streams=calling_threads(),
    )
    with contextlib.ExitStack() as held:
        held.callback(batcher.close)
        pool = held.enter_context(ThreadPoolExecutor(CLIENTS))
        http = held.enter_context(httpx.Client(timeout=120, trust_env=False))
        bodies = [{"square": base64.b64encode(square.tobytes()).decode()} for square in squares]

        def ours() -> float:
            return _rate(pool, count, lambda i: batcher.submit((predictor, squares[i % CLIENTS])).result())

        def theirs(url: str, count: int) -> float:
            return _rate(pool, count, lambda i: http.post(url, json=bodies[i % CLIENTS]).raise_for_status())

        rates: dict[tuple[int, int], float] = {}
        for setup in () if quick else SETUPS:  # each takes many seconds to start
            say(f"LitServe with batches of {setup[0]} in {setup[1]} process(es)")
            with _peer(*setup) as url:
                theirs(url, CLIENTS)
                rates[setup] = theirs(url, 32)
        best = max(rates, key=lambda setup: rates[setup], default=SETUPS[-1])
        url = held.enter_context(_peer(*best))
        say(f"{repeats} rounds of {count} squares; LitServe with batches of {best[0]} in {best[1]} process(es)")
        samples = interleaved(
            {
                "ours": ours,
                "LitServe": lambda: theirs(url, count),
                "bare": lambda: images_per_s(engine, size, count),
            },
            repeats,
        )
    return Result(
        "peers",
        f"ready squares through our batcher, {CLIENTS} threads waiting, against LitServe with the same engine",
        GOAL,
        (
            Case.of("LitServe", "images/s", samples["ours"], samples["LitServe"]),
            Case.of("the bare model", "images/s", samples["ours"], samples["bare"], goal=BARE),
        ),
        {
            "LitServe, images/s by (batch, processes)": {str(setup): round(rate, 2) for setup, rate in rates.items()},
            "cores": cpu_count(),
        },
        quick,
    )


def _rate(pool: ThreadPoolExecutor, count: int, ask: Callable[[int], object]) -> float:
    start = time.perf_counter()
    for _ in pool.map(ask, range(count)):
        pass
    return count / (time.perf_counter() - start)


@contextlib.contextmanager
def _peer(batch: int, workers: int) -> Iterator[str]:
    """Run LitServe during the block, and give its address; raises StackError."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.litserve_peer", str(port), str(batch), str(workers)]
        child = Child("LitServe", command, Path(folder) / "litserve.log", {**os.environ, "PYTHONPATH": str(ROOT)})
        child.start()
        try:
            url = f"http://127.0.0.1:{port}"
            if not wait_until(lambda: _healthy(url), 180):
                raise child.failure("was not ready within 180 s")
            yield f"{url}/predict"
        finally:
            child.stop()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False, timeout=5).is_success
    except httpx.HTTPError:
        return False
