"""Many threads ask one at a time; the model answers in batches. Nothing is lost, doubled or swapped."""

import heapq
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Answer = TypeVar("Answer")


MAX_FAILURES = 32  # items one after the other


def end_process() -> None:
    """The model is stuck, and a thread cannot be killed: end the process; leases bring its studies back."""
    os._exit(70)


class Batcher(Generic[Item, Answer]):
    """One model thread behind a priority heap.

    A batch starts when `max_batch` items wait or the oldest has waited `max_wait_s`. When a batch raises it is halved
    until the culprit is alone: that one gets the exception, its neighbours their answers.

    When the model hangs, dies, or fails MAX_FAILURES times without a success in between (as after an error of the GPU),
    `on_hang` is called: a fresh process is the cure for all three.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[Item]], Sequence[Answer]],
        max_batch: int,
        max_wait_s: float,
        limit_s: float = 120.0,
        on_hang: Callable[[], None] = end_process,
    ) -> None:
        """predict: items in, as many answers out, in order; limit_s: how long one call may take."""
        self._predict, self._max_batch, self._max_wait_s = predict, max_batch, max_wait_s
        self._limit_s, self._on_hang = limit_s, on_hang
        self._heap: list[tuple[int, int, float, Item, Future[Answer]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = self._finished = False
        self._failures = 0
        self._busy_since: float | None = None
        self._model = threading.Thread(target=self._run, name="model", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="model-watchdog", daemon=True)
        self._model.start()
        self._watchdog.start()

    def submit(self, item: Item, priority: int = 0) -> "Future[Answer]":
        """Queue an item; smaller priorities go first, equal ones in order. Raises RuntimeError once closed."""
        future: Future[Answer] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            heapq.heappush(self._heap, (priority, next(self._order), time.monotonic(), item, future))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Answer what waits, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._model.join()
        self._watchdog.join()

    def _run(self) -> None:
        while batch := self._next():
            live = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
            if live:
                self._answer(live)
        self._finished = True

    def _next(self) -> list[tuple[Item, "Future[Answer]"]]:
        with self._changed:
            while not self._heap and not self._closed:
                self._changed.wait()
            if not self._heap:
                return []
            started = min(entry[2] for entry in self._heap)
            while len(self._heap) < self._max_batch and not self._closed:
                left = started + self._max_wait_s - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            count = min(self._max_batch, len(self._heap))
            return [(item, future) for _, _, _, item, future in (heapq.heappop(self._heap) for _ in range(count))]

    def _answer(self, batch: list[tuple[Item, "Future[Answer]"]]) -> None:
        try:
            self._busy_since = time.monotonic()
            answers = self._predict([item for item, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} items got {len(answers)} answers")  # noqa: TRY301
        except BaseException as wrong:  # noqa: BLE001 - whatever it is, it belongs to one of these items
            self._busy_since = None
            if len(batch) == 1:
                batch[0][1].set_exception(wrong)
                self._failures += 1
                return
            log.warning("a batch failed and is halved", extra={"size": len(batch), "error": type(wrong).__name__})
            middle = len(batch) // 2
            self._answer(batch[:middle])
            self._answer(batch[middle:])
            return
        self._busy_since = None
        self._failures = 0
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)

    def _watch(self) -> None:
        while self._model.is_alive():
            since = self._busy_since
            if since is not None and time.monotonic() - since > self._limit_s:
                self._give_up("hangs")
                return
            if self._failures >= MAX_FAILURES:
                self._give_up("fails every time")
                return
            self._model.join(min(1.0, self._limit_s / 4))
        if not self._finished:
            self._give_up("has died")

    def _give_up(self, how: str) -> None:
        log.critical("the model %s; ending this process", how)
        self._on_hang()
