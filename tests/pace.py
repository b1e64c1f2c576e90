"""Limits on waiting that a slow or busy machine does not turn into failures.

A limit is there to find what hangs. It is given in seconds of the machine that the tests were written on, multiplied by
how much slower this one was when the tests began, and spent in turns of waiting, not in seconds of a clock: a machine
that stands still for a minute spends one turn.
"""

import hashlib
import os
import time
from collections.abc import Callable

REFERENCE_S = 0.055  # what `work` takes on a quiet core of the machine that the limits were written on
MARGIN = 3.0  # busy neighbours come and go
EVERY_S = 0.1
_VARIABLE = "TESTS_SLOWNESS"  # measured once by the first process, and told to its workers


def work() -> float:
    """Seconds of the clock that a fixed piece of work takes."""
    began = time.perf_counter()
    digest, words = b"", {}
    for number in range(400_000):
        words[number % 997] = str(number)
        if number % 1000 == 0:
            digest = hashlib.sha256(digest + "".join(words.values()).encode()).digest()
    return time.perf_counter() - began


def slowness() -> float:
    """How many times longer than a quiet reference machine this one takes; at least 1."""
    if _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = str(max(1.0, sorted(work() for _ in range(3))[1] / REFERENCE_S))
    return float(os.environ[_VARIABLE])


def limit_s(seconds: float) -> float:
    """The limit for what takes less than this on a quiet machine."""
    return seconds * slowness() * MARGIN


def until(
    condition: Callable[[], object], seconds: float, why: Callable[[], str] = lambda: "", *, every_s: float = EVERY_S
) -> None:
    """Wait until the condition holds. Raises AssertionError, with what `why` says, after limit_s(seconds) of turns."""
    for _ in range(max(1, round(limit_s(seconds) / every_s))):
        if condition():
            return
        time.sleep(every_s)
    assert condition(), f"not within {seconds:g} s of a quiet machine (times {limit_s(1):.1f} here). {why()}"


LIMIT_S = limit_s(60)  # for what takes a moment unless it hangs
