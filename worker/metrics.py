"""Metrics of a worker process for Prometheus. Numbers only: no study, no site, no patient."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from prometheus_client import Counter, Histogram

from shared.domain.analysis import Claim, TaskOutcome

Item = TypeVar("Item")
Output = TypeVar("Output")
WAITS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 12 * 3600, 86400)
SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30)

STUDIES = Counter("osteon_worker_studies", "Messages about studies, by outcome", ["outcome"])
WAIT = Histogram(
    "osteon_worker_wait_seconds", "Time from the arrival of a study to its result", ["queue"], buckets=WAITS
)
BATCH = Histogram("osteon_worker_batch_images", "Images in a batch of the model", buckets=(1, 2, 4, 8, 16, 32, 64))
MODEL = Histogram(
    "osteon_worker_model_seconds",
    "Duration of one call of the model, with its wait for a stream",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)
DECODING = Histogram("osteon_worker_decode_seconds", "Duration of decoding one instance", buckets=SECONDS)


def count_outcome(outcome: TaskOutcome) -> None:
    """Count one message about a study as worked off."""
    STUDIES.labels(outcome).inc()


def observe_wait(claim: Claim) -> None:
    """Note how long a study waited, by this host's clock against Postgres': wrong by as much as they differ."""
    seconds = (datetime.now(UTC) - claim.waits_since).total_seconds()
    WAIT.labels(claim.priority.value).observe(max(0.0, seconds))


def with_model_metrics(
    model: Callable[[Sequence[Item]], Sequence[Output]],
) -> Callable[[Sequence[Item]], Sequence[Output]]:
    """Wrap the model's function, so that its batches and seconds are counted."""

    def call(items: Sequence[Item]) -> Sequence[Output]:
        BATCH.observe(len(items))
        start = time.perf_counter()
        outputs = model(items)
        MODEL.observe(time.perf_counter() - start)
        return outputs

    return call
