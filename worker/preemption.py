"""Live studies go before history: while one is in hand, no other study begins a step in this process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MAX_YIELD_S = 1.0  # how long live studies may stop the others: one study's time on slow cores
YIELD_REFILL_RATE = 0.5  # seconds of that a second, while no live study is in hand


class Preemption:
    """Live studies in hand, between their claim and their results: until they are done, no other study begins a step.

    So cores and streams are free for them. Others wait for MAX_YIELD_S on end at most, and for a share of the time of
    YIELD_REFILL_RATE / (1 + YIELD_REFILL_RATE): where live studies follow each other closely, priorities alone decide
    after that. Of this process only.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live = 0
        # monotonic seconds
        self._until = float("-inf")  # the end of precedence, if those in hand are not done before
        self._ended = float("-inf")  # the last one's end
        self._left_over = 0.0  # seconds that it left unused
        self._waking: list[Callable[[], None]] = []

    @contextmanager
    def live_study_in_hand(self) -> Iterator[None]:
        """Count a live study as in hand during the block."""
        with self._lock:
            self._live += 1
            if self._live == 1:
                now = time.monotonic()
                self._until = now + min(MAX_YIELD_S, self._left_over + YIELD_REFILL_RATE * (now - self._ended))
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

    def seconds_to_wait(self) -> float:
        """Seconds for which other studies must wait, if no live study is done before; 0: they need not."""
        return max(0.0, self._until - time.monotonic()) if self._live else 0.0

    def call_when_over(self, wake: Callable[[], None]) -> None:
        """Register a function to call whenever the last live study is done."""
        self._waking.append(wake)
