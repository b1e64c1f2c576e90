"""One study through stand-ins for decoders and model: order, errors, and what is in memory at a time."""

import threading
import time
import uuid
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shared.domain.analysis import InstanceToAnalyse
from shared.domain.findings import ExposedField
from shared.domain.study import Priority
from shared.errors import Rejected
from worker.analysis import analyse
from worker.batching import Batcher
from worker.decoder_pool import DecodedImage, DecodingFailed, Job
from worker.pipeline import LARGE_PIXELS

SIDE = 8
PREDICTOR: Any = SimpleNamespace(size=SIDE, finding=lambda output, frame, *_: (output, frame))


class Squares:
    """Decoders that make marked squares and count those that are alive."""

    def __init__(self, frames: int, decode_s: float = 0.0) -> None:
        self.alive = self.peak = self.decoding = self.most_decoding = 0
        self.odd: int | None = None  # the image that breaks its decoder in a way that nobody foresaw
        self._frames, self._decode_s = frames, decode_s
        self._lock = threading.Lock()
        self.pool = ThreadPoolExecutor(4)

    def submit(self, job: Job, priority: int) -> "Future[DecodedImage]":
        return self.pool.submit(self._decode, int(job.sha256))

    def _decode(self, number: int) -> DecodedImage:
        with self._lock:
            self.decoding += 1
            self.most_decoding = max(self.most_decoding, self.decoding)
        time.sleep(self._decode_s)
        with self._lock:
            self.decoding -= 1
        if number == 13:
            raise Rejected("broken")
        if number == 17:
            raise DecodingFailed("dead")
        if number == self.odd:
            raise KeyError("DOE^JANE")
        squares = [self._square(number * 1000 + frame) for frame in range(self._frames)]
        return DecodedImage(squares, "DX", "HAND", [ExposedField.whole(SIDE, SIDE)] * self._frames)

    def _square(self, mark: int) -> np.ndarray:
        square = np.full((SIDE, SIDE), mark, np.int64)
        with self._lock:
            self.alive += 1
            self.peak = max(self.peak, self.alive)
        weakref.finalize(square, self._gone)
        return square

    def _gone(self) -> None:
        with self._lock:
            self.alive -= 1


def claim(count: int, frames: int, pixels: int = 100) -> Any:
    instances = [InstanceToAnalyse(uuid.UUID(int=n), str(n), frames, pixels) for n in range(count)]
    return SimpleNamespace(priority=Priority.ROUTINE, instances=instances)


def model(items: Sequence[tuple[Any, Any]]) -> Sequence[Any]:
    return [int(square[0, 0]) for _, square in items]


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.cpu_count", lambda: 2)


@pytest.mark.parametrize(("frames", "pixels"), [(1, 100), (3, 100), (3, LARGE_PIXELS + 1)])
def test_results_come_in_order_with_the_errors_of_their_images(frames: int, pixels: int) -> None:
    """Each image gets its own outputs, frame by frame, or its own error; on the last attempt a dead decoder too."""
    squares, batcher = Squares(frames), Batcher("model", model, max_batch=4, streams=2)
    results = analyse(claim(40, frames, pixels), PREDICTOR, squares.submit, batcher, last_attempt=True)
    batcher.close()
    assert [uuid.UUID(str(result.instance_id)).int for result in results] == list(range(40))
    for number, result in enumerate(results):
        if number in (13, 17):
            assert result.error_reason and not result.findings
        else:
            assert list[object](result.findings) == [(number * 1000 + frame, frame + 1) for frame in range(frames)]


def test_what_nobody_foresaw_costs_its_own_image_only() -> None:
    """Before the last attempt the study is tried again; on the last one the others keep their results."""
    squares, batcher = Squares(1), Batcher("model", model, max_batch=4)
    squares.odd = 3
    with pytest.raises(KeyError):
        analyse(claim(5, 1), PREDICTOR, squares.submit, batcher)
    results = analyse(claim(5, 1), PREDICTOR, squares.submit, batcher, last_attempt=True)
    batcher.close()
    assert [bool(result.findings) for result in results] == [True, True, True, False, True]
    assert (results[3].error_reason, results[3].error_detail) == ("decoding-failed", "KeyError")


@pytest.mark.parametrize("frames", [1, 5, 60])
def test_few_squares_are_in_memory_whatever_the_study_holds(frames: int) -> None:
    """However many images and frames, and however slow the model, the squares alive at a time stay few."""

    def slow(items: Sequence[tuple[Any, Any]]) -> Sequence[Any]:
        time.sleep(0.002)
        return model(items)

    squares, batcher = Squares(frames), Batcher("model", slow, max_batch=4)
    analyse(claim(600 // frames, frames), PREDICTOR, squares.submit, batcher, last_attempt=True)
    batcher.close()
    enough = 2 * (4 + 2)
    assert squares.peak < enough + frames + 4 + 4 * (frames == 1)  # what is in hand, the last one begun, a batch


def test_a_study_keeps_decoders_and_model_busy() -> None:
    """One study alone is decoded side by side, and the model's batches are full."""
    sizes = []

    def slow(items: Sequence[tuple[Any, Any]]) -> Sequence[Any]:
        sizes.append(len(items))
        time.sleep(0.02)
        return model(items)

    squares, batcher = Squares(1, decode_s=0.005), Batcher("model", slow, max_batch=4)
    analyse(claim(80, 1), PREDICTOR, squares.submit, batcher, last_attempt=True)
    batcher.close()
    assert sum(sizes) / len(sizes) > 3
    assert squares.most_decoding == 4


def test_what_a_failed_study_has_in_hand_is_cancelled() -> None:
    """Before the last attempt a dead decoder ends the study, and nothing of it is left for the decoders or the model."""
    seen: list[object] = []
    squares, batcher = (
        Squares(1),
        Batcher[Any, Any]("model", lambda items: seen.extend(items) or model(items), max_batch=4),
    )
    with pytest.raises(DecodingFailed):
        analyse(claim(200, 1), PREDICTOR, squares.submit, batcher)
    batcher.close()
    assert len(seen) < 40
