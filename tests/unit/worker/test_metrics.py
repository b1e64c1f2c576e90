"""What a worker tells Prometheus."""

import socket
import urllib.request
from collections.abc import Sequence
from typing import NoReturn

import pytest
from prometheus_client import REGISTRY

from infra.process import free_port
from shared.settings import Settings
from worker import metrics


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_batch_is_told_and_answered() -> None:
    """The model's answers come back as they are; its batches and seconds are counted."""
    before = value("osteon_worker_batch_images_sum"), value("osteon_worker_model_seconds_count")

    def add_one(items: Sequence[int]) -> list[int]:
        return [item + 1 for item in items]

    assert metrics.measured(add_one)([1, 2, 3]) == [2, 3, 4]
    assert value("osteon_worker_batch_images_sum") == before[0] + 3
    assert value("osteon_worker_model_seconds_count") == before[1] + 1


def test_a_model_that_raises_raises() -> None:
    """An error of the model reaches whoever asked."""

    def divide(items: Sequence[int]) -> NoReturn:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        metrics.measured(divide)([1])


def test_unknown_outcomes_are_one_series() -> None:
    """Words with the names of errors in them do not become a series each."""
    before = value("osteon_worker_studies_total", outcome="other")
    for word in ("left to its lease (OSError)", "left to its lease (ValueError)"):
        metrics.count(word)
    assert value("osteon_worker_studies_total", outcome="other") == before + 2


def test_metrics_are_served_only_where_they_are_wanted() -> None:
    """Without a port nothing listens; with one, its host's loopback does, until it is stopped."""
    metrics.serve(Settings(worker_metrics_port=0))()
    port = free_port()
    stop = metrics.serve(Settings(worker_metrics_port=port))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert b"osteon_worker_model_seconds_bucket" in answer.read()
    stop()
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 1):
        pass


def test_a_taken_port_stops_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    """A port that is in use costs the metrics, and is told with its cure."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        metrics.serve(Settings(worker_metrics_port=taken.getsockname()[1]))()
    assert "OSTEON_WORKER_METRICS_PORT" in str([vars(record) for record in caplog.records])
