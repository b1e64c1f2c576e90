"""Many threads ask one at a time; batches are answered. Nothing is lost, doubled or swapped.

The model, the decoders and the database writes all stand behind one of these.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
OLDEST_EVERY = 10  # of so many items taken one is the oldest that may begin: nothing starves, nothing urgent feels it
URGENT = 0  # an item of this priority or less is urgent
LIVE = 1  # of this or less it belongs to a live study: somebody waits for it
YIELD_S = 1.0  # for so long live studies may stop the others: one study's time on slow cores
REFILL = 0.5  # seconds of that a second, while no live study is in hand
Item = TypeVar("Item")
Answer = TypeVar("Answer")
_Entry = tuple[int, float, Item, "Future[Answer]"]  # order of arrival, submitted (monotonic seconds)


class Batcher(Generic[Item, Answer]):
    """Threads ("lanes") that answer batches, the most urgent items first.

    A batch starts when `max_batch` items wait, or when the oldest has waited `max_wait_s` and the lane's pace lets it;
    of items that are not live, none does before a live study's right of way.
    When a batch raises it is halved until the culprit is alone: that one gets the exception, its neighbours answers.
    """

    def __init__(
        self,
        name: str,
        answer: Callable[[Sequence[Item]], Sequence[Answer]],
        *,
        max_batch: int,
        max_wait_s: float = 0.0,
        pace_s: float = 0.0,
        few: int = 0,
        few_pace_s: float = 0.0,
        lanes: int = 1,
        right_of_way: "RightOfWay | None" = None,
        common: tuple[type[BaseException], ...] = (),
    ) -> None:
        """answer: items in, as many answers out, in order; called by so many threads at a time as there are lanes.

        pace_s: a lane starts its next batch no sooner than this after its last: under load more come together. An
        urgent item does not wait for that, but once in this time: however many come, batches at most double.
        few_pace_s: the same while fewer than `few` items wait and none is urgent, where a batch costs about as much for
        one as for many.
        right_of_way: of live studies, before which items that are not live stand back.
        common: errors that no single item causes; the whole batch gets them at once, unhalved.
        """
        self.lanes = [Lane() for _ in range(lanes)]
        self._answer, self._max_batch, self._max_wait_s, self._common = answer, max_batch, max_wait_s, common
        self._pace_s, self._few, self._few_pace_s = pace_s, few, max(pace_s, few_pace_s)
        self._queues: dict[int, deque[_Entry[Item, Answer]]] = {}  # by priority; none is empty
        self._order = itertools.count()
        self._taken = 0
        self._changed = threading.Condition()
        self._closed = False
        self._right_of_way = right_of_way or RightOfWay()
        self._right_of_way.when_over(self._look_again)
        for number, lane in enumerate(self.lanes):
            lane.thread = threading.Thread(target=self._run, args=(lane,), name=f"{name}-{number}", daemon=True)
            lane.thread.start()

    def submit(self, item: Item, priority: int = 0) -> "Future[Answer]":
        """Queue an item. Raises RuntimeError once closed.

        Smaller priorities go first, equal ones in order; but each OLDEST_EVERY-th item taken is the oldest of all,
        unless a live study has the right of way.
        """
        future: Future[Answer] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            entry = (next(self._order), time.monotonic(), item, future)
            self._queues.setdefault(priority, deque()).append(entry)
            self._changed.notify()
        return future

    @property
    def at_once(self) -> int:
        """How many items all lanes together answer at a time."""
        return self._max_batch * len(self.lanes)

    @property
    def waiting(self) -> int:
        """Items that no lane has taken yet."""
        with self._changed:
            return self._waiting()

    def close(self) -> None:
        """Answer what waits, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for lane in self.lanes:
            lane.thread.join()

    def _look_again(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self, lane: "Lane") -> None:
        while batch := self._next(lane):
            wanted = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
            if wanted:
                self._settle(lane, wanted)
        lane.finished = True

    def _next(self, lane: "Lane") -> list[tuple[Item, "Future[Answer]"]]:
        with self._changed:
            while True:
                while not self._queues and not self._closed:
                    self._changed.wait()
                if not self._queues:
                    return []
                left = self._left(lane)
                if self._closed or left <= 0:
                    break
                self._changed.wait(left)  # another lane may take all of it meanwhile
            if min(self._queues) <= URGENT and time.monotonic() < lane.started_at + self._pace_s:
                lane.hurried_at = time.monotonic()
            batch: list[tuple[Item, Future[Answer]]] = []
            while self._queues and len(batch) < self._max_batch:
                if batch and self._stands_back():
                    break  # nor does it make a live study's batch larger
                priority = self._turn()
                *_, item, future = self._queues[priority].popleft()
                if not self._queues[priority]:
                    del self._queues[priority]
                self._taken += 1
                batch.append((item, future))
            if self._queues:
                self._changed.notify()
            return batch

    def _left(self, lane: "Lane") -> float:
        """Seconds until this lane should take what waits, if nothing more comes."""
        if self._stands_back():
            return self._right_of_way.left()
        waiting = self._waiting()
        if waiting >= self._max_batch:
            return 0.0
        oldest_at = min(queue[0][1] for queue in self._queues.values())
        if min(self._queues) <= URGENT:
            due_at = lane.hurried_at + self._pace_s
        else:
            due_at = lane.started_at + (self._few_pace_s if waiting < self._few else self._pace_s)
        return max(oldest_at + self._max_wait_s, due_at) - time.monotonic()

    def _stands_back(self) -> bool:
        """Whether nothing live waits, and a live study has the right of way."""
        return min(self._queues) > LIVE and self._right_of_way.left() > 0

    def _turn(self) -> int:
        """The priority whose first item is to be taken next."""
        if self._taken % OLDEST_EVERY == OLDEST_EVERY - 1 and not self._right_of_way.left():
            return min(self._queues, key=lambda priority: self._queues[priority][0][0])
        return min(self._queues)

    def _waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def _settle(self, lane: "Lane", batch: list[tuple[Item, "Future[Answer]"]]) -> None:
        try:
            lane.busy_since = lane.started_at = time.monotonic()
            answers = self._answer([item for item, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} items got {len(answers)} answers")  # noqa: TRY301
        except BaseException as wrong:  # noqa: BLE001 - whatever it is, it belongs to these items
            lane.busy_since = None
            if len(batch) == 1 or isinstance(wrong, self._common):
                for _, future in batch:
                    future.set_exception(wrong)
                lane.failures += len(batch)
                return
            log.warning("a batch failed and is halved", extra={"size": len(batch), "error": type(wrong).__name__})
            middle = len(batch) // 2
            self._settle(lane, batch[:middle])
            self._settle(lane, batch[middle:])
            return
        lane.busy_since = None
        lane.failures = 0
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)


class RightOfWay:
    """Live studies between their claim and their results: meanwhile nothing of the others begins a step.

    So cores and lanes are free for them. For YIELD_S on end at most, and REFILL / (1 + REFILL) of the time: after that,
    where live studies follow each other closely, priorities alone decide. Of this process only.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live = 0
        # monotonic seconds
        self._until = float("-inf")  # the end of the right of way, if those in hand are not done before
        self._ended = float("-inf")  # the last one's end
        self._left_over = 0.0  # seconds that it left unused
        self._waking: list[Callable[[], None]] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """A live study is in hand during the block."""
        with self._lock:
            self._live += 1
            if self._live == 1:
                now = time.monotonic()
                self._until = now + min(YIELD_S, self._left_over + REFILL * (now - self._ended))
        try:
            yield
        finally:
            with self._lock:
                self._live -= 1
                over = not self._live
                if over:
                    self._ended = time.monotonic()
                    self._left_over = max(0.0, self._until - self._ended)
            if over:
                for wake in self._waking:
                    wake()

    def left(self) -> float:
        """Seconds for which the others stand back, if no live study is done before; 0: they need not."""
        return max(0.0, self._until - time.monotonic()) if self._live else 0.0

    def when_over(self, wake: Callable[[], None]) -> None:
        """Call this whenever the last live study is done."""
        self._waking.append(wake)


class Lane:
    """One thread of a batcher, as its watchdog sees it."""

    thread: threading.Thread

    def __init__(self) -> None:
        self.busy_since: float | None = None  # monotonic seconds; None: between calls
        self.started_at = float("-inf")  # its last call
        self.hurried_at = float("-inf")  # the last one that began before its pace let it, for an urgent item
        self.failures = 0  # items one after the other
        self.finished = False  # it ended because the batcher was closed
