"""What a worker process tells Prometheus. Numbers only: no study, no site, no patient."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from prometheus_client import Counter, Histogram, start_http_server

from shared.settings import Settings
from shared.study import Claim

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Answer = TypeVar("Answer")
WAITS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 12 * 3600, 86400)
SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30)

STUDIES = Counter("osteon_worker_studies", "Messages about studies, by what they led to", ["outcome"])
WAIT = Histogram("osteon_worker_wait_seconds", "From the arrival of a study to its answer", ["queue"], buckets=WAITS)
BATCH = Histogram("osteon_worker_batch_images", "Images in a batch of the model", buckets=(1, 2, 4, 8, 16, 32, 64))
MODEL = Histogram(
    "osteon_worker_model_seconds",
    "One call of the model, its wait for a lane included",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)
DECODING = Histogram("osteon_worker_decode_seconds", "One instance in its decoder", buckets=SECONDS)
WORDS = {"analysed", "nothing to do", "left", "suspect", "lease lost", "will retry", "quarantined"}


def count(outcome: str) -> None:
    """One message was worked off. Of words that are not known, as of errors' names, there might be any number."""
    STUDIES.labels(outcome if outcome in WORDS else "other").inc()


def waited(claim: Claim) -> None:
    """A study has its answer. By this host's clock against Postgres': wrong by as much as they differ."""
    seconds = (datetime.now(UTC) - claim.waits_since).total_seconds()
    WAIT.labels(claim.priority.value).observe(max(0.0, seconds))


def measured(model: Callable[[Sequence[Item]], Sequence[Answer]]) -> Callable[[Sequence[Item]], Sequence[Answer]]:
    """The same function, with its batches and seconds told."""

    def call(items: Sequence[Item]) -> Sequence[Answer]:
        BATCH.observe(len(items))
        start = time.perf_counter()
        answers = model(items)
        MODEL.observe(time.perf_counter() - start)
        return answers

    return call


def serve(settings: Settings) -> Callable[[], None]:
    """Answer GET /metrics on OSTEON_WORKER_METRICS_PORT, if there is one; returns how to stop it.

    A port that is taken costs the worker its metrics, not its work.
    """
    if not settings.worker_metrics_port:
        return lambda: None
    try:
        server, thread = start_http_server(settings.worker_metrics_port, settings.worker_metrics_host)
    except OSError as wrong:
        log.warning("no metrics", extra={"why": f"{wrong.strerror}. Set OSTEON_WORKER_METRICS_PORT to a free port."})
        return lambda: None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        if isinstance(thread, threading.Thread):
            thread.join()

    return stop
