"""When a worker process must make room for a fresh one, and when it must not."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import pytest

from shared.domain.study import Priority
from shared.errors import Unavailable
from shared.settings import Settings
from tests.pace import LIMIT_S
from worker.batching import Batcher
from worker.maintenance.sweeper import Sweeper
from worker.tasks import MessageCount
from worker.watchdog import MAX_FAILURES, StalledConsumer, Watchdog, stream_fault


class WatchedBatcher:
    """A batcher with a watchdog, and what the watchdog said."""

    def __init__(self, predict: Callable[[Sequence[int]], Sequence[int]], limit_s: float, streams: int = 1) -> None:
        self.said: list[str] = []
        self.ended = threading.Event()
        self.batcher = Batcher("model", predict, max_batch=4, streams=streams)
        self.watchdog = Watchdog(self.batcher.streams, limit_s, self.end)

    def end(self, why: str) -> None:
        self.said.append(why)
        self.ended.set()

    def close(self) -> None:
        self.batcher.close()
        self.watchdog.close()


def test_a_hanging_model_ends_the_process() -> None:
    """A call over its limit is noticed on whichever stream it hangs, for a thread cannot be killed."""
    release = threading.Event()

    def hang_on_seven(items: Sequence[int]) -> Sequence[int]:
        if 7 in items:
            release.wait(LIMIT_S)
        return items

    watched = WatchedBatcher(hang_on_seven, 0.2, streams=2)
    hanging = watched.batcher.submit(7)
    assert watched.ended.wait(LIMIT_S)
    release.set()
    assert hanging.result(LIMIT_S) == 7
    watched.close()
    assert watched.said == ["the model hangs"]


def test_many_quick_calls_are_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that together take longer than the limit are none; a call that alone does is one."""
    now = [1000.0]
    monkeypatch.setattr("worker.batching.time.monotonic", lambda: now[0])
    monkeypatch.setattr("worker.watchdog.time.monotonic", lambda: now[0])
    looked: list[str] = []

    def take(items: Sequence[float]) -> Sequence[float]:
        now[0] += items[0]
        looked.append(stream_fault(batcher.streams[0], 10.0))
        return items

    with contextlib.closing(Batcher("model", take, max_batch=1, streams=1)) as batcher:
        for seconds in (4.0, 4.0, 4.0, 9.0, 11.0):
            batcher.submit(seconds).result(LIMIT_S)
    assert looked == ["", "", "", "", "the model hangs"]


def failing_below(count: int) -> Callable[[Sequence[int]], Sequence[int]]:
    def predict(items: Sequence[int]) -> Sequence[int]:
        if any(item < count for item in items):
            raise ValueError
        return items

    return predict


def test_a_model_that_only_fails_ends_the_process() -> None:
    """When nothing succeeds any more the fault is the model's; a few failures are the images'."""
    watched = WatchedBatcher(failing_below(MAX_FAILURES), 10.0)
    for item in range(MAX_FAILURES):
        watched.batcher.submit(item)
    assert watched.ended.wait(LIMIT_S)
    watched.close()
    assert watched.said == ["the model fails every time"]
    healthy = WatchedBatcher(failing_below(MAX_FAILURES - 1), 1.0)
    futures = [healthy.batcher.submit(item) for item in range(2 * MAX_FAILURES)]
    assert futures[-1].result(LIMIT_S) == 2 * MAX_FAILURES - 1
    assert [stream_fault(stream, LIMIT_S) for stream in healthy.batcher.streams] == [""]
    healthy.close()
    assert healthy.said == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_model_thread_ends_the_process() -> None:
    """Should the thread itself die, tasks do not wait for it forever."""
    watched = WatchedBatcher(list, 10.0)

    def die(_stream: object) -> NoReturn:
        raise SystemExit

    watched.batcher._next = die  # type: ignore[method-assign,assignment]
    watched.batcher.submit(1).result(LIMIT_S)  # the call under way ends first, then the next look dies
    assert watched.ended.wait(LIMIT_S)
    watched.close()
    assert watched.said == ["the model's thread has died"]


@pytest.mark.parametrize(
    ("looks", "stands"),
    [
        ([(5, 1, True)] * 4, True),
        ([(0, 1, True)] * 4, False),
        ([(5, 1, False)] * 4, False),
        ([(5, 1, True), (5, 2, True), (5, 3, True), (5, 4, True)], False),
        ([(5, 1, True), (5, 1, True), (0, 1, True), (5, 1, True)], False),
    ],
    ids=["stalled", "idle", "busy", "working", "emptied once"],
)
def test_a_deaf_consumer_is_told_from_an_idle_or_busy_one(
    monkeypatch: pytest.MonkeyPatch, looks: list[tuple[int, int, bool]], stands: bool
) -> None:
    """Only messages that wait, a free thread, and nothing taken, for the whole limit: that is a stalled consumer."""
    now = [100.0]
    monkeypatch.setattr("worker.watchdog.time.monotonic", lambda: now[0])
    stalled, seen = StalledConsumer(6.0), False
    for waiting, taken, free in looks:
        seen = stalled.check(waiting, taken, free=free)
        now[0] += 3
    assert seen is stands


class FakeBroker:
    """A broker with five messages, which may be away or slow to answer."""

    def __init__(self) -> None:
        self.away, self.takes_s = False, 0.0
        self.now = 100.0

    def waiting(self) -> dict[Priority, int]:
        self.now += self.takes_s
        if self.away:
            raise Unavailable
        return {Priority.ROUTINE: 5}


@pytest.mark.parametrize("trouble", ["none", "away", "slow", "Postgres hangs"])
def test_the_consumer_is_not_to_blame_while_the_broker_is_away(monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """The time in which the broker gave no messages, or it or Postgres hung, is no stalled consumer."""
    bell: Any = FakeBroker()
    said: list[str] = []
    monkeypatch.setattr("worker.watchdog.time.monotonic", lambda: bell.now)

    def reconcile(*_: object) -> int:
        bell.now += 5.0 if trouble == "Postgres hangs" else 0.0
        return 0

    monkeypatch.setattr("worker.maintenance.sweeper.reconcile", reconcile)
    monkeypatch.setattr("worker.maintenance.sweeper.promote", lambda *_: 0)
    monkeypatch.setattr("worker.maintenance.sweeper.send_batches", lambda *_: 0)
    settings = Settings(reconcile_every_s=3600, stalled_consumer_s=6)
    sweeper = Sweeper(settings, None, bell, MessageCount(), slots=1, end=said.append)  # type: ignore[arg-type]
    sweeper._sweep()
    bell.now += 2
    bell.away, bell.takes_s = trouble == "away", 5.0 if trouble == "slow" else 0.0
    if trouble == "away":
        with pytest.raises(Unavailable):
            sweeper._sweep()
    bell.now += 5
    bell.away = False
    sweeper._sweep()
    assert bool(said) is (trouble == "none")
    bell.takes_s, trouble = 0, "none"
    sweeper._sweep()
    bell.now += 6.5
    sweeper._sweep()
    assert set(said) == {"the consumer of messages stands still"}
    sweeper.close()


def test_no_study_counts_for_two_promotions(monkeypatch: pytest.MonkeyPatch) -> None:
    """While what follows in a sweep fails each time, promotion still sees only what was taken since the last one."""
    seen: list[int] = []

    def send_batches(*_: object) -> None:
        raise Unavailable

    monkeypatch.setattr("worker.maintenance.sweeper.reconcile", lambda *_: 0)
    monkeypatch.setattr("worker.maintenance.sweeper.promote", lambda *arguments: seen.append(arguments[-1]) or 0)
    monkeypatch.setattr("worker.maintenance.sweeper.send_batches", send_batches)
    bell: Any = FakeBroker()
    load = MessageCount()
    load.taken = 7  # before this sweeper
    sweeper = Sweeper(Settings(reconcile_every_s=3600), None, bell, load, slots=1, end=lambda _: None)  # type: ignore[arg-type]
    for taken in (20, 50, 0):
        load.taken += taken
        with pytest.raises(Unavailable):
            sweeper._sweep()
    sweeper.close()
    assert seen == [20, 50, 0]
