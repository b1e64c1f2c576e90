"""Collects items of many threads into batches. Nothing is lost, doubled or swapped.

The model, the decoders and the database writes all stand behind one of these.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from shared.logs import get_logger
from worker.preemption import Preemption

log = get_logger(__name__)
OLDEST_EVERY = (
    10  # one of so many items is the oldest that may begin: nothing starves, and urgent ones hardly wait longer
)
URGENT = 0  # an item of this priority or less is urgent
LIVE = 1  # an item of this priority or less belongs to a live study: somebody waits for it
Item = TypeVar("Item")
Output = TypeVar("Output")
_Entry = tuple[int, float, Item, "Future[Output]"]  # order of arrival, submitted (monotonic seconds)


class Batcher(Generic[Item, Output]):
    """Threads ("streams") that work on batches, the most urgent items first.

    A batch starts when `max_batch` items wait, or when the oldest has waited `max_wait_s` and the stream's pace lets
    it; of items that are not live, none does before a live study's precedence.
    When a batch raises it is halved until the culprit is alone: that one gets the exception, its neighbours get
    outputs.
    """

    def __init__(
        self,
        name: str,
        predict: Callable[[Sequence[Item]], Sequence[Output]],
        *,
        max_batch: int,
        max_wait_s: float = 0.0,
        pace_s: float = 0.0,
        few: int = 0,
        few_pace_s: float = 0.0,
        streams: int = 1,
        preemption: "Preemption | None" = None,
        common: tuple[type[BaseException], ...] = (),
    ) -> None:
        """Start the streams.

        Args:
            name: of the threads.
            predict: items in, as many outputs out, in order; called by so many threads at a time as there are streams.
            max_batch: items in a call at most.
            max_wait_s: how long the oldest item waits for others, seconds.
            pace_s: a stream starts its next batch no sooner than this after its last: under load more come together. An
                urgent item does not wait for that, but once in this time: however many come, batches at most double.
                An item of a live study waits by the last batch that held one: history beside it does not delay it.
            few: under so many items `few_pace_s` holds.
            few_pace_s: as pace_s, while fewer than `few` items wait and none is urgent, where a batch costs about as
                much for one as for many.
            streams: number of threads.
            preemption: of live studies, before which items that are not live wait.
            common: errors that no single item causes; the whole batch gets them at once, unhalved.
        """
        self.streams = [Stream() for _ in range(streams)]
        self._predict, self._max_batch, self._max_wait_s, self._common = predict, max_batch, max_wait_s, common
        self._pace_s, self._few, self._few_pace_s = pace_s, few, max(pace_s, few_pace_s)
        self._queues: dict[int, deque[_Entry[Item, Output]]] = {}  # by priority; none is empty
        self._order = itertools.count()
        self._taken = 0
        self._changed = threading.Condition()
        self._closed = False
        self._right_of_way = preemption or Preemption()
        self._right_of_way.call_when_over(self._wake_streams)
        for number, stream in enumerate(self.streams):
            stream.thread = threading.Thread(target=self._run, args=(stream,), name=f"{name}-{number}", daemon=True)
            stream.thread.start()

    def submit(self, item: Item, priority: int = 0) -> "Future[Output]":
        """Queue an item.

        Args:
            item: to be answered.
            priority: smaller ones go first, equal ones in order; but each OLDEST_EVERY-th item taken is the oldest of
                all, unless a live study has precedence.

        Returns:
            A future of the item's output.

        Raises:
            RuntimeError: The batcher is closed.
        """
        future: Future[Output] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            entry = (next(self._order), time.monotonic(), item, future)
            self._queues.setdefault(priority, deque()).append(entry)
            self._changed.notify()
        return future

    @property
    def at_once(self) -> int:
        """Number of items that all streams together have in hand at a time."""
        return self._max_batch * len(self.streams)

    @property
    def waiting(self) -> int:
        """Number of items that no stream has taken yet."""
        with self._changed:
            return self._waiting()

    def close(self) -> None:
        """Answer what waits, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for stream in self.streams:
            stream.thread.join()

    def _wake_streams(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self, stream: "Stream") -> None:
        while batch := self._next(stream):
            uncancelled = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
            if uncancelled:
                self._run_batch(stream, uncancelled)
        stream.finished = True

    def _next(self, stream: "Stream") -> list[tuple[Item, "Future[Output]"]]:
        with self._changed:
            while True:
                while not self._queues and not self._closed:
                    self._changed.wait()
                if not self._queues:
                    return []
                left = self._left(stream)
                if self._closed or left <= 0:
                    break
                self._changed.wait(left)  # another stream may take all of it meanwhile
            self._note_start(stream)
            batch: list[tuple[Item, Future[Output]]] = []
            while self._queues and len(batch) < self._max_batch:
                if batch and self._is_preempted():
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

    def _note_start(self, stream: "Stream") -> None:
        """Note when the stream takes a batch, for whose pace the most urgent item that waits counts."""
        now = time.monotonic()
        if min(self._queues) <= LIVE:
            stream.live_at = now
        if min(self._queues) <= URGENT and now < stream.started_at + self._pace_s:
            stream.hurried_at = now

    def _left(self, stream: "Stream") -> float:
        """Seconds until this stream should take what waits, if nothing more comes."""
        if self._is_preempted():
            return self._right_of_way.seconds_to_wait()
        waiting = self._waiting()
        if waiting >= self._max_batch:
            return 0.0
        oldest_at = min(queue[0][1] for queue in self._queues.values())
        if min(self._queues) <= URGENT:
            due_at = stream.hurried_at + self._pace_s
        else:
            last_at = stream.live_at if min(self._queues) <= LIVE else stream.started_at
            due_at = last_at + (self._few_pace_s if waiting < self._few else self._pace_s)
        return max(oldest_at + self._max_wait_s, due_at) - time.monotonic()

    def _is_preempted(self) -> bool:
        """Whether nothing live waits, and a live study has precedence."""
        return min(self._queues) > LIVE and self._right_of_way.seconds_to_wait() > 0

    def _turn(self) -> int:
        """Choose the priority whose first item is taken next."""
        if self._taken % OLDEST_EVERY == OLDEST_EVERY - 1 and not self._right_of_way.seconds_to_wait():
            return min(self._queues, key=lambda priority: self._queues[priority][0][0])
        return min(self._queues)

    def _waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def _run_batch(self, stream: "Stream", batch: list[tuple[Item, "Future[Output]"]]) -> None:
        try:
            stream.busy_since = stream.started_at = time.monotonic()
            outputs = self._predict([item for item, _ in batch])
            if len(outputs) != len(batch):
                raise RuntimeError(f"{len(batch)} items got {len(outputs)} outputs")  # noqa: TRY301
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to these items
            stream.busy_since = None
            if len(batch) == 1 or isinstance(error, self._common):
                for _, future in batch:
                    future.set_exception(error)
                stream.failures += len(batch)
                return
            log.warning("batch halved", size=len(batch), error=type(error).__name__)
            middle = len(batch) // 2
            self._run_batch(stream, batch[:middle])
            self._run_batch(stream, batch[middle:])
            return
        stream.busy_since = None
        stream.failures = 0
        for (_, future), output in zip(batch, outputs, strict=True):
            future.set_result(output)


class Stream:
    """One thread of a batcher, with what the watchdog looks at."""

    thread: threading.Thread

    def __init__(self) -> None:
        self.busy_since: float | None = None  # monotonic seconds; None: between calls
        self.started_at = float("-inf")  # its last call
        self.live_at = float("-inf")  # the last one with an item of a live study
        self.hurried_at = float("-inf")  # the last one that began before its pace let it, for an urgent item
        self.failures = 0  # items one after the other
        self.finished = False  # it ended because the batcher was closed
