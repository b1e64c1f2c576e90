"""What a worker tells Prometheus."""

from collections.abc import Sequence
from typing import NoReturn

import pytest
from prometheus_client import REGISTRY

from shared.domain.analysis import TaskOutcome
from worker import metrics


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_batch_is_told_and_returned() -> None:
    """The model's outputs come back as they are; its batches and seconds are counted."""
    before = value("osteon_worker_batch_images_sum"), value("osteon_worker_model_seconds_count")

    def add_one(items: Sequence[int]) -> list[int]:
        return [item + 1 for item in items]

    assert metrics.with_model_metrics(add_one)([1, 2, 3]) == [2, 3, 4]
    assert value("osteon_worker_batch_images_sum") == before[0] + 3
    assert value("osteon_worker_model_seconds_count") == before[1] + 1


def test_a_model_that_raises_raises() -> None:
    """An error of the model reaches whoever asked."""

    def divide(items: Sequence[int]) -> NoReturn:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        metrics.with_model_metrics(divide)([1])


def test_each_outcome_is_a_series() -> None:
    """Messages are counted by the code of what they led to."""
    before = value("osteon_worker_studies_total", outcome="left-to-lease")
    for outcome in TaskOutcome:
        metrics.count_outcome(outcome)
    assert value("osteon_worker_studies_total", outcome="left-to-lease") == before + 1
