"""Ends the process where only a fresh one helps: a stuck model, a consumer that stands still.

A thread cannot be killed. The process ends with EXIT_CODE, its supervisor starts another one, and leases bring back
what it held.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence

from shared.logs import get_logger
from worker.batching import Stream

log = get_logger(__name__)
EXIT_CODE = 70  # EX_SOFTWARE
MAX_FAILURES = 32  # items in a row: after an error of the GPU, for example, nothing succeeds any more


def end_process(why: str) -> None:
    """End the process without clean-up, which could hang as well."""
    log.critical("process ended", why=why)
    os._exit(EXIT_CODE)


class Watchdog:
    """Ends the process when a stream of the model hangs, dies, or fails every time."""

    def __init__(self, streams: Sequence[Stream], limit_s: float, end: Callable[[str], None] = end_process) -> None:
        """Start watching.

        Args:
            streams: of the model.
            limit_s: how long one call of the model may take, seconds.
            end: is called with what is wrong, in words.
        """
        self._streams, self._limit_s, self._end = streams, limit_s, end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._limit_s / 4)):
            for stream in self._streams:
                if fault := stream_fault(stream, self._limit_s):
                    self._end(fault)
                    return


def stream_fault(stream: Stream, limit_s: float) -> str:
    """Find what is wrong with a stream of the model.

    Args:
        stream: of the batcher.
        limit_s: how long one call of the model may take, seconds.

    Returns:
        In words; "" while all is well.
    """
    since = stream.busy_since
    if since is not None and time.monotonic() - since > limit_s:
        return "the model hangs"
    if stream.failures >= MAX_FAILURES:
        return "the model fails every time"
    if not stream.thread.is_alive() and not stream.finished:
        return "the model's thread has died"
    return ""


class StalledConsumer:
    """Detects a stuck consumer: messages wait, this worker has free slots, and yet it takes none.

    Celery's consumer has been seen to do so after its broker was killed, connected and taking nothing.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.reset()

    def reset(self) -> None:
        """Forget what was seen, because the broker itself was away."""
        self._taken = -1
        self._since = time.monotonic()

    def check(self, waiting: int, taken: int, *, free: bool) -> bool:
        """Check whether the consumer is stuck; to be called every few seconds.

        Args:
            waiting: messages in the queues.
            taken: messages that this worker has ever taken.
            free: whether it has room for another one.

        Returns:
            True once nothing has moved for the limit.
        """
        now = time.monotonic()
        if not waiting or not free or taken != self._taken:
            self._taken, self._since = taken, now
            return False
        return now - self._since > self._limit_s
