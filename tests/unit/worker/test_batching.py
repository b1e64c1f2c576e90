"""The batcher under every mix of sizes, priorities and poison."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.batching import PATIENCE_S, Batcher


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
def batcher_of(
    model: Model, max_batch: int = 4, max_wait_s: float = 0.0, lanes: int = 1, mixed: bool = True
) -> Iterator[Batcher]:
    batcher = Batcher("model", model, max_batch=max_batch, max_wait_s=max_wait_s, lanes=lanes, mixed=mixed)
    try:
        yield batcher
    finally:
        model.open.set()
        batcher.close()


@given(
    count=st.integers(1, 40),
    max_batch=st.integers(1, 9),
    lanes=st.integers(1, 3),
    poisoned=st.frozensets(st.integers(0, 39)),
    priorities=st.lists(st.integers(0, 2), min_size=40, max_size=40),
    mixed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_item_gets_its_own_answer_or_its_own_exception(count, max_batch, lanes, poisoned, priorities, mixed):
    """Whatever is poisoned and however batches fall, nothing is lost, doubled or swapped, and no neighbour suffers."""
    model = Model(poisoned)
    model.open.clear()  # so that all wait together and batches are as full as they get
    with batcher_of(model, max_batch, lanes=lanes, mixed=mixed) as batcher:
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
    if not mixed:
        assert all(len({priorities[item] for item in batch}) == 1 for batch in model.batches)


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
    batcher = Batcher("model", model, max_batch=4, max_wait_s=10.0)
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
    batcher = Batcher("model", lambda items: [0] * (len(items) - 1), max_batch=4)
    with pytest.raises(RuntimeError, match="1 items got 0 answers"):
        batcher.submit(1).result(20)
    batcher.close()


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 60)), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_nothing_waits_for_ever(arrivals):
    """However urgent what comes later is, an item is overtaken only by what came within its patience."""
    model = Model()
    model.open.clear()
    with batcher_of(model, 1) as batcher, pytest.MonkeyPatch.context() as patched:
        batcher.submit(-1, -1)
        deadline = time.monotonic() + 20
        while batcher._heap and time.monotonic() < deadline:
            time.sleep(0.0005)
        start = time.monotonic()
        ordered = sorted(arrivals, key=lambda arrival: arrival[1])
        futures = []
        for number, (priority, after) in enumerate(ordered):
            patched.setattr("worker.batching.time.monotonic", lambda after=after: start + after)
            futures.append(batcher.submit(number, priority))
        patched.undo()
        model.open.set()
        for future in futures:
            future.result(20)
    served = [item for batch in model.batches for item in batch][1:]
    for place, item in enumerate(served):
        priority, after = ordered[item]
        assert all(ordered[earlier][1] <= after + priority * PATIENCE_S + 1e-6 for earlier in served[:place])


def test_what_no_item_caused_fails_the_batch_at_once():
    """A database that is away fails all alike: the batch is not halved until each has asked it once more."""
    calls = []

    def away(items):
        calls.append(len(items))
        raise ConnectionError

    batcher = Batcher("claims", away, max_batch=8, max_wait_s=0.2, common=(ConnectionError,))
    futures = [batcher.submit(item) for item in range(8)]
    for future in futures:
        with pytest.raises(ConnectionError):
            future.result(20)
    batcher.close()
    assert calls == [8]


def test_lanes_work_side_by_side():
    """Two lanes answer two batches at the same time."""
    both = threading.Barrier(2)

    def answer(items):
        both.wait(10)
        return items

    batcher = Batcher("model", answer, max_batch=1, lanes=2)
    assert [future.result(20) for future in (batcher.submit(1), batcher.submit(2))] == [1, 2]
    batcher.close()


def test_an_urgent_item_need_not_wait_for_the_rest_of_a_batch():
    """Unmixed, the next batch after an urgent item came holds the urgent ones alone, and then routine batches are full."""
    model = Model()
    model.open.clear()
    with batcher_of(model, 4, mixed=False) as batcher:
        first = batcher.submit(0, 1)  # the lane is busy with it
        while not first.running():
            time.sleep(0.001)
        futures = [batcher.submit(item, 1) for item in range(1, 9)] + [batcher.submit(item, 0) for item in (20, 21)]
        model.open.set()
        for future in futures:
            future.result(20)
    assert model.batches == [[0], [20, 21], [1, 2, 3, 4], [5, 6, 7, 8]]
