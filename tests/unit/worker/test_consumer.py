"""What a worker tells Flower, and when."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from worker.consumer import EVENTS_S, Consumer


class Loop:
    """Celery's loop with a clock of its own: turns at which events are in the buffer, and timers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.told_at: list[float] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        monkeypatch.setattr("worker.consumer.time.monotonic", lambda: self.now)
        self.consumer = Consumer.__new__(Consumer)
        self.consumer.event_dispatcher = SimpleNamespace(flush=lambda: self.told_at.append(self.now))
        self.consumer.hub = SimpleNamespace(
            call_later=lambda wait_s, call: self.timers.append((self.now + wait_s, call))
        )

    def until(self, end: float, turn_s: float) -> None:
        """A turn with an event every turn_s."""
        while self.now < end:
            self.now += turn_s
            due = [timer for timer in self.timers if timer[0] <= self.now]
            self.timers = [timer for timer in self.timers if timer not in due]
            for _, call in due:
                call()
            self.consumer._flush_events()

    def rest(self) -> None:
        """No event comes any more; timers do."""
        while self.timers:
            self.now, call = self.timers.pop(0)
            call()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(monkeypatch)


def test_events_are_told_in_groups(loop: Loop) -> None:
    """A thousand turns in two seconds tell Flower at most nine times, and none waits longer than EVENTS_S."""
    loop.until(102.0, 0.002)
    pauses = [later - sooner for sooner, later in zip(loop.told_at, loop.told_at[1:], strict=False)]
    assert 8 <= len(loop.told_at) <= 9
    assert max(pauses) <= EVENTS_S + 0.003


def test_the_first_is_told_at_once_and_the_last_is_told(loop: Loop) -> None:
    """A lone event waits for nothing; one that comes right after it is told when no other follows."""
    loop.until(100.001, 0.001)
    assert loop.told_at == [loop.now]
    loop.until(100.01, 0.001)
    assert len(loop.told_at) == 1
    loop.rest()
    assert len(loop.told_at) == 2
    assert loop.now == pytest.approx(loop.told_at[0] + EVENTS_S)


def test_a_hub_that_forgot_its_timers_is_asked_again(loop: Loop) -> None:
    """After a lost connection events are told again."""
    loop.until(100.01, 0.001)
    loop.timers.clear()
    loop.until(100.6, 0.001)
    assert len(loop.told_at) >= 3
