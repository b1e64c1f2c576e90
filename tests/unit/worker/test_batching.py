"""The batcher under every mix of sizes, priorities and poison."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.batching import MAX_FAILURES, Batcher


class Poison(Exception):
    """What the model raises for a poisoned item; says which."""


class Model:
    """Doubles numbers; raises when a poisoned one is in the batch; can be held up."""

    def __init__(self, poisoned: frozenset[int] = frozenset()) -> None:
        self.poisoned = poisoned
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.open.wait(20)
        self.batches.append(list(items))
        for item in items:
            if item in self.poisoned:
                raise Poison(item)
        return [2 * item for item in items]


@contextmanager
def batcher_of(model: Model, max_batch: int = 4, max_wait_s: float = 0.0, limit_s: float = 60.0) -> Iterator[Batcher]:
    batcher = Batcher(model, max_batch, max_wait_s, limit_s, on_hang=lambda: None)
    try:
        yield batcher
    finally:
        model.open.set()
        batcher.close()


@given(
    count=st.integers(1, 40),
    max_batch=st.integers(1, 9),
    poisoned=st.frozensets(st.integers(0, 39)),
    priorities=st.lists(st.integers(0, 2), min_size=40, max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_every_item_gets_its_own_answer_or_its_own_exception(count, max_batch, poisoned, priorities):
    """Whatever is poisoned and however batches fall, nothing is lost, doubled or swapped, and no neighbour suffers."""
    model = Model(poisoned)
    model.open.clear()  # so that all wait together and batches are as full as they get
    with batcher_of(model, max_batch) as batcher:
        futures = [batcher.submit(item, priorities[item]) for item in range(count)]
        model.open.set()
        for item, future in enumerate(futures):
            if item in poisoned:
                with pytest.raises(Poison) as caught:
                    future.result(20)
                assert caught.value.args == (item,)
            else:
                assert future.result(20) == 2 * item
    answered = [item for batch in model.batches if not poisoned & set(batch) for item in batch]
    assert sorted(answered) == sorted(set(range(count)) - poisoned)
    assert max(map(len, model.batches)) <= max_batch


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_what_waits_is_served_by_priority_then_in_order(priorities, max_batch):
    """Of everything that waits, the most urgent goes first, and equals go in the order in which they came."""
    model = Model()
    model.open.clear()
    with batcher_of(model, max_batch) as batcher:
        batcher.submit(-1, -1)  # occupies the model until all others wait
        deadline = time.monotonic() + 20
        while batcher._heap and time.monotonic() < deadline:
            time.sleep(0.0005)
        futures = [batcher.submit(item, priority) for item, priority in enumerate(priorities)]
        model.open.set()
        for future in futures:
            future.result(20)
    served = [item for batch in model.batches for item in batch]
    assert served == [-1, *sorted(range(len(priorities)), key=lambda item: (priorities[item], item))]


def test_many_threads_get_their_own_answers():
    """Threads that submit at the same time each get the answer to what they asked."""
    model = Model(frozenset(range(0, 400, 7)))
    wrong: list[object] = []

    def ask(start: int) -> None:
        for item in range(start, start + 50):
            try:
                if batcher.submit(item, item % 3).result(20) != 2 * item:
                    wrong.append(item)
            except Poison as poison:
                if poison.args != (item,) or item % 7:
                    wrong.append(poison)

    with batcher_of(model, 8, 0.002) as batcher:
        threads = [threading.Thread(target=ask, args=(start,)) for start in range(0, 400, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not wrong
    assert any(len(batch) > 1 for batch in model.batches), "the threads' items were batched together"


def test_a_batch_waits_for_company_but_not_for_long():
    """A lonely item starts after the wait, and a full batch starts without it."""
    model = Model()
    with batcher_of(model, 3, 0.3) as batcher:
        started = time.monotonic()
        assert batcher.submit(1).result(20) == 2
        assert time.monotonic() - started >= 0.29
        futures = [batcher.submit(item) for item in (2, 3, 4)]
        assert [future.result(20) for future in futures] == [4, 6, 8]
    assert model.batches == [[1], [2, 3, 4]]


def test_close_answers_what_waits_and_takes_no_more():
    """Closing loses nothing that was submitted before, and refuses what comes after."""
    model = Model()
    model.open.clear()
    batcher = Batcher(model, 4, 10.0, 60.0, on_hang=lambda: None)
    futures = [batcher.submit(item) for item in range(11)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.open.set()
    closing.join(20)
    assert [future.result(0) for future in futures] == [2 * item for item in range(11)]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(12)


def test_cancelled_items_are_skipped():
    """A cancelled item never reaches the model, and its neighbours are answered."""
    model = Model()
    model.open.clear()
    with batcher_of(model) as batcher:
        futures = [batcher.submit(item) for item in range(9)]
        cancelled = [item for item in (5, 7) if futures[item].cancel()]
        model.open.set()
        answers = {item: futures[item].result(20) for item in range(9) if item not in cancelled}
    assert cancelled == [5, 7]
    assert answers == {item: 2 * item for item in (0, 1, 2, 3, 4, 6, 8)}
    assert sorted(item for batch in model.batches for item in batch) == sorted(answers)


def test_a_wrong_number_of_answers_is_an_error_not_a_swap():
    """A model that answers too few items fails them loudly rather than shifting answers to neighbours."""
    batcher = Batcher(lambda items: [0] * (len(items) - 1), 4, 0.0, 60.0, on_hang=lambda: None)
    with pytest.raises(RuntimeError, match="1 items got 0 answers"):
        batcher.submit(1).result(20)
    batcher.close()


def hang_of(model: Model, limit_s: float, items: int = 1) -> threading.Event:
    hung = threading.Event()
    batcher = Batcher(model, 4, 0.0, limit_s, on_hang=hung.set)
    for item in range(items):
        batcher.submit(item)
    hung.wait(10)
    model.open.set()
    batcher.close()
    return hung


def test_the_watchdog_fires_on_a_hang():
    """A model call over its limit ends the process, for a thread cannot be killed."""
    model = Model()
    model.open.clear()
    assert hang_of(model, 0.2).is_set()


def test_the_watchdog_is_silent_while_the_model_works():
    """Many quick calls that together take longer than the limit are no hang."""
    model = Model()
    hung = threading.Event()
    batcher = Batcher(model, 1, 0.0, 0.3, on_hang=hung.set)
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        batcher.submit(1).result(20)
    batcher.close()
    assert not hung.is_set()


def test_a_model_that_only_fails_ends_the_process():
    """When nothing succeeds any more the fault is the model's, and a fresh process is the cure; a few failures are not."""
    assert hang_of(Model(frozenset(range(MAX_FAILURES))), 1.0, MAX_FAILURES).is_set()
    hung = threading.Event()
    model = Model(frozenset(range(MAX_FAILURES - 1)))
    batcher = Batcher(model, 4, 0.0, 0.2, on_hang=hung.set)
    futures = [batcher.submit(item) for item in range(2 * MAX_FAILURES)]
    assert futures[-1].result(20) == 2 * (2 * MAX_FAILURES - 1)
    time.sleep(0.2)
    batcher.close()
    assert not hung.is_set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_watchdog_notices_a_dead_model_thread():
    """Should the model thread itself die, tasks do not wait for it forever: the process ends."""
    hung = threading.Event()
    batcher = Batcher(Model(), 4, 0.0, 0.4, on_hang=hung.set)

    def die() -> list[object]:
        raise SystemExit

    batcher._next = die  # type: ignore[assignment]
    batcher.submit(1).result(20)  # the call under way ends first, then the next look dies
    assert hung.wait(10)
    batcher.close()
