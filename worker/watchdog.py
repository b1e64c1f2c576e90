"""A fresh process is the cure for what cannot be cured from inside: a stuck model, a consumer that stands still.

A thread cannot be killed. The process ends with EXIT, its supervisor starts another one, and leases bring back what
it held.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from worker.batching import Lane

log = logging.getLogger(__name__)
EXIT = 70  # EX_SOFTWARE
MAX_FAILURES = 32  # items one after the other: as after an error of the GPU, nothing will succeed any more


def end_process(why: str) -> None:
    """Without clean-up, which could hang as well."""
    log.critical("%s; ending this process", why)
    os._exit(EXIT)


class Watchdog:
    """Ends the process when a lane of the model hangs, dies, or fails every time."""

    def __init__(self, lanes: Sequence[Lane], limit_s: float, end: Callable[[str], None] = end_process) -> None:
        """limit_s: how long one call of the model may take; end: told why, in words."""
        self._lanes, self._limit_s, self._end = lanes, limit_s, end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._limit_s / 4)):
            for lane in self._lanes:
                if wrong := trouble(lane, self._limit_s):
                    self._end(wrong)
                    return


def trouble(lane: Lane, limit_s: float) -> str:
    """What is wrong with a lane of the model, in words; "" while all is well."""
    since = lane.busy_since
    if since is not None and time.monotonic() - since > limit_s:
        return "the model hangs"
    if lane.failures >= MAX_FAILURES:
        return "the model fails every time"
    if not lane.thread.is_alive() and not lane.finished:
        return "the model's thread has died"
    return ""


class Standstill:
    """Whether messages wait, this worker has room for them, and yet it takes none: its consumer is stuck.

    Celery's consumer has been seen to do so after its broker was killed, connected and deaf.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.start_over()

    def start_over(self) -> None:
        """Forget what was seen: the broker itself was away."""
        self._taken = -1
        self._since = time.monotonic()

    def look(self, waiting: int, taken: int, *, free: bool) -> bool:
        """To be called every few seconds.

        waiting: messages in the queues; taken: how many this worker has ever taken; free: whether any may come.
        """
        now = time.monotonic()
        if not waiting or not free or taken != self._taken:
            self._taken, self._since = taken, now
            return False
        return now - self._since > self._limit_s
