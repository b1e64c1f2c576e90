"""The batcher under every mix of sizes, priorities and poison."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pace import LIMIT_S, until
from worker.batching import LIVE, OLDEST_EVERY, URGENT, Batcher, Stream
from worker.preemption import MAX_YIELD_S, YIELD_REFILL_RATE, Preemption


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
        self.open.wait(LIMIT_S)
        self.batches.append(list(items))
        for item in items:
            if item in self.poisoned:
                raise Poison(item)
        return [2 * item for item in items]


@contextmanager
def batcher_of(
    model: Model, max_batch: int = 4, max_wait_s: float = 0.0, streams: int = 1
) -> Iterator[Batcher[int, int]]:
    batcher = Batcher("model", model, max_batch=max_batch, max_wait_s=max_wait_s, streams=streams)
    try:
        yield batcher
    finally:
        model.open.set()
        batcher.close()


@given(
    count=st.integers(1, 40),
    max_batch=st.integers(1, 9),
    streams=st.integers(1, 3),
    poisoned=st.frozensets(st.integers(0, 39)),
    priorities=st.lists(st.integers(0, 2), min_size=40, max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_every_item_gets_its_own_result_or_its_own_exception(
    count: int, max_batch: int, streams: int, poisoned: frozenset[int], priorities: list[int]
) -> None:
    """Whatever is poisoned and however batches fall, nothing is lost, doubled or swapped, and no neighbour suffers."""
    model = Model(poisoned)
    model.open.clear()  # so that all wait together and batches are as full as they get
    with batcher_of(model, max_batch, streams=streams) as batcher:
        futures = [batcher.submit(item, priorities[item]) for item in range(count)]
        model.open.set()
        for item, future in enumerate(futures):
            if item in poisoned:
                with pytest.raises(Poison) as caught:
                    future.result(LIMIT_S)
                assert caught.value.args == (item,)
            else:
                assert future.result(LIMIT_S) == 2 * item
    returned = [item for batch in model.batches if not poisoned & set(batch) for item in batch]
    assert sorted(returned) == sorted(set(range(count)) - poisoned)
    assert max(map(len, model.batches)) <= max_batch


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_what_waits_is_served_by_priority_then_in_order(priorities: list[int], max_batch: int) -> None:
    """The most urgent goes first, equals in the order in which they came, and each tenth item is the oldest of all."""
    model = Model()
    model.open.clear()
    with batcher_of(model, max_batch) as batcher:
        batcher.submit(-1, -1)  # occupies the model until all others wait
        until(lambda: not batcher.waiting, 20, every_s=0.0005)
        futures = [batcher.submit(item, priority) for item, priority in enumerate(priorities)]
        model.open.set()
        for future in futures:
            future.result(LIMIT_S)
    served = [item for batch in model.batches for item in batch]
    expected, left = [-1], list(enumerate(priorities))
    while left:
        oldest = len(expected) % OLDEST_EVERY == OLDEST_EVERY - 1
        left.remove(one := left[0] if oldest else min(left, key=lambda waiting: (waiting[1], waiting[0])))
        expected.append(one[0])
    assert served == expected


def test_many_threads_get_their_own_results() -> None:
    """Threads that submit at the same time each get the result of what they asked."""
    model = Model(frozenset(range(0, 400, 7)))
    wrong: list[object] = []

    def ask(start: int) -> None:
        for item in range(start, start + 50):
            try:
                if batcher.submit(item, item % 3).result(LIMIT_S) != 2 * item:
                    wrong.append(item)
            except Poison as error:
                if error.args != (item,) or item % 7:
                    wrong.append(error)

    with batcher_of(model, 8, 0.002) as batcher:
        threads = [threading.Thread(target=ask, args=(start,)) for start in range(0, 400, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
    assert not wrong
    assert any(len(batch) > 1 for batch in model.batches), "the threads' items were batched together"


def test_a_batch_waits_for_company_but_not_for_long() -> None:
    """A lonely item starts after the wait, and a full batch starts without it."""
    model = Model()
    with batcher_of(model, 3, 0.3) as batcher:
        started = time.monotonic()
        assert batcher.submit(1, 1).result(LIMIT_S) == 2
        assert time.monotonic() - started >= 0.29
    with batcher_of(model, 3, 24 * 3600) as batcher:
        futures = [batcher.submit(item, 1) for item in (2, 3, 4)]
        assert [future.result(LIMIT_S) for future in futures] == [4, 6, 8]
    assert model.batches == [[1], [2, 3, 4]]


@pytest.mark.parametrize(
    ("waiting", "left"),
    [
        ([1], 0.3), ([1, 2, 1], 0.3), ([1] * 4, 0.05), ([2] * 7, 0.05), ([1] * 8, 0.0),
    ],
)  # fmt: skip
def test_a_few_wait_longer_for_company(monkeypatch: pytest.MonkeyPatch, waiting: list[int], left: float) -> None:
    """Since the batch before began: few_pace_s for a few, pace_s for more, nothing for a full batch."""
    now = [1000.0]
    monkeypatch.setattr("worker.batching.time.monotonic", lambda: now[0])
    batcher, stream = (
        Batcher[int, int]("results", list, max_batch=8, pace_s=0.05, few=4, few_pace_s=0.3, streams=0),
        Stream(),
    )
    for item, priority in enumerate(waiting):
        batcher.submit(item, priority)
    assert batcher._left(stream) <= 0, "the first one waits for nobody"
    stream.started_at = stream.live_at = 1000.0
    assert batcher._left(stream) == pytest.approx(left)
    now[0] += left
    assert batcher._left(stream) == pytest.approx(0)


@pytest.mark.parametrize("live", range(LIVE + 1))
def test_a_live_item_does_not_wait_by_the_pace_of_history(monkeypatch: pytest.MonkeyPatch, live: int) -> None:
    """Its wait counts from the last batch with a live item, however many of history's began since; theirs from any."""
    now = [1000.0]
    monkeypatch.setattr("worker.batching.time.monotonic", lambda: now[0])
    batcher, stream = (
        Batcher[int, int]("results", list, max_batch=8, pace_s=0.05, few=4, few_pace_s=0.3, streams=0),
        Stream(),
    )
    batcher.submit(0, LIVE + 1)
    batcher._next(stream)
    stream.started_at = now[0]
    batcher.submit(1, live)
    assert batcher._left(stream) <= 0
    assert len(batcher._next(stream)) == 1
    stream.started_at = now[0]
    batcher.submit(2, LIVE + 1)
    assert batcher._left(stream) == pytest.approx(0.3)
    batcher.submit(3, LIVE)
    assert batcher._left(stream) == pytest.approx(0.3), "a live one began just now"


def test_an_urgent_item_does_not_wait_for_the_pace_but_a_flood_of_them_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first begins at once, though a batch has just begun; others go by the pace since then."""
    now = [1000.0]
    monkeypatch.setattr("worker.batching.time.monotonic", lambda: now[0])
    batcher, stream = (
        Batcher[int, int]("results", list, max_batch=64, pace_s=0.05, few=4, few_pace_s=0.3, streams=0),
        Stream(),
    )
    begun = []
    stream.started_at = 1000.0
    batcher.submit(0, 1)
    now[0] += 0.01
    for number in range(1, 200):  # an urgent one each millisecond
        batcher.submit(number, URGENT)
        if batcher._left(stream) <= 0:
            batcher._next(stream)
            begun.append(round(now[0] - 1000.0, 3))
            stream.started_at = now[0]
        now[0] += 0.001
    assert begun[0] == 0.01
    assert len(begun) <= 2 * 0.2 / 0.05


def test_close_finishes_what_waits_and_takes_no_more() -> None:
    """Closing loses nothing that was submitted before, and refuses what comes after."""
    model = Model()
    model.open.clear()
    batcher = Batcher("model", model, max_batch=4, max_wait_s=10.0)
    futures = [batcher.submit(item, 1) for item in range(11)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.open.set()
    closing.join(LIMIT_S)
    assert [future.result(0) for future in futures] == [2 * item for item in range(11)]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(12)


def test_cancelled_items_are_skipped() -> None:
    """A cancelled item never reaches the model, and its neighbours are answered."""
    model = Model()
    model.open.clear()
    with batcher_of(model) as batcher:
        futures = [batcher.submit(item) for item in range(9)]
        cancelled = [item for item in (5, 7) if futures[item].cancel()]
        model.open.set()
        results = {item: futures[item].result(LIMIT_S) for item in range(9) if item not in cancelled}
    assert cancelled == [5, 7]
    assert results == {item: 2 * item for item in (0, 1, 2, 3, 4, 6, 8)}
    assert sorted(item for batch in model.batches for item in batch) == sorted(results)


def test_a_wrong_number_of_outputs_is_an_error_not_a_swap() -> None:
    """A model that answers too few items fails them loudly rather than shifting answers to neighbours."""
    batcher = Batcher[int, int]("model", lambda items: [0] * (len(items) - 1), max_batch=4)
    with pytest.raises(RuntimeError, match="1 items got 0 outputs"):
        batcher.submit(1).result(LIMIT_S)
    batcher.close()


IntakeResult = tuple[int, int, int, int]  # priority, items taken before it came, items that waited then, place


def played(turns: list[tuple[list[int], int]], max_batch: int) -> list[IntakeResult]:
    """Let these arrivals (priorities, and how many batches are taken after them) pass through a batcher of no streams.

    Then urgent ones keep coming until all is taken that the turns brought, which is returned in the order of arrival.
    """
    batcher = Batcher[int, int]("model", list, max_batch=max_batch, streams=0)
    stream = Stream()
    came: list[tuple[int, int, int]] = []
    order: list[int] = []

    def arrive(priorities: list[int]) -> None:
        for priority in priorities:
            came.append((priority, len(order), batcher.waiting))
            batcher.submit(len(came) - 1, priority)

    for priorities, batches in turns:
        arrive(priorities)
        for _ in range(batches):
            if batcher.waiting:
                order.extend(item for item, _ in batcher._next(stream))
    wanted = len(came)
    while sum(item < wanted for item in order) < wanted:
        arrive([0] * 4)
        order.extend(item for item, _ in batcher._next(stream))
        assert len(order) < 50 * (wanted + 1), "an item starves"
    place = {item: index for index, item in enumerate(order)}
    return [(*came[item], place[item]) for item in range(wanted)]


TURNS = st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=20), st.integers(0, 3)), min_size=1, max_size=12)


@given(TURNS, st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_nothing_waits_for_ever(turns: list[tuple[list[int], int]], max_batch: int) -> None:
    """While urgent items come without end, each item has its turn after ten for each that was there before it."""
    for _, before, waited, place in played(turns, max_batch):
        assert place - before < OLDEST_EVERY * (waited + 1)


@given(st.integers(0, 300), st.integers(0, 40), st.integers(0, 2), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_what_is_urgent_waits_behind_a_tenth_at_most(routine: int, urgent: int, batches: int, max_batch: int) -> None:
    """However long and however old the queue is, of the items before an urgent one a tenth at most is less urgent."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("worker.batching.time.monotonic", lambda: 1000.0)
        batcher = Batcher[int, int]("model", list, max_batch=max_batch, streams=0)
        for item in range(routine):
            batcher.submit(-item, 1 + item % 2)
        for _ in range(batches):
            if batcher.waiting:
                batcher._next(Stream())
        patched.setattr("worker.batching.time.monotonic", lambda: 10_000.0)  # all of it has waited for hours
        for item in range(urgent + 1):
            batcher.submit(1000 + item, 0)
        order: list[int] = []
        while 1000 + urgent not in order:
            order.extend(item for item, _ in batcher._next(Stream()))
    before = order[: order.index(1000 + urgent)]
    others = sum(item < 1000 for item in before)
    assert others <= -(-len(before) // OLDEST_EVERY)
    assert len(before) <= urgent + urgent // (OLDEST_EVERY - 1) + 1


@pytest.mark.parametrize("live", [URGENT, LIVE])
def test_what_is_not_live_waits(live: int) -> None:
    """While a live study is in hand streams stay free for it; once the last of them is done the others go on at once."""
    model, preemption = Model(), Preemption()
    batcher = Batcher("model", model, max_batch=1, streams=2, preemption=preemption)
    began = time.monotonic()
    with preemption.live_study_in_hand():
        with preemption.live_study_in_hand():
            later = batcher.submit(7, LIVE + 1)
            assert batcher.submit(1, live).result(LIMIT_S) == 2
        assert not later.running()
        assert not later.done()
        ended = time.monotonic()
    assert later.result(LIMIT_S) == 14
    took = time.monotonic() - ended
    batcher.close()
    assert ended - began > MAX_YIELD_S or took < MAX_YIELD_S / 2, (
        "it was woken, and did not wait for the end of its patience"
    )


def test_not_even_the_oldest_goes_before_a_live_one() -> None:
    """The tenth turn, which belongs to the oldest, is left out while a live study is in hand."""
    preemption = Preemption()
    batcher = Batcher[int, int]("model", list, max_batch=1, streams=0, preemption=preemption)
    batcher.submit(-1, LIVE + 1)
    for item in range(2 * OLDEST_EVERY):
        batcher.submit(item, LIVE)
    with preemption.live_study_in_hand():
        taken = [batcher._next(Stream())[0][0] for _ in range(OLDEST_EVERY)]
    assert taken == list(range(OLDEST_EVERY))
    later = [batcher._next(Stream())[0][0] for _ in range(OLDEST_EVERY)]
    assert -1 in later


def test_live_studies_without_end_do_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """From MAX_YIELD_S on, priorities alone decide; the time for which the others wait comes again bit by bit."""
    now = [1000.0]
    monkeypatch.setattr("worker.batching.time.monotonic", lambda: now[0])
    preemption = Preemption()
    batcher, stream = Batcher[int, int]("model", list, max_batch=1, streams=0, preemption=preemption), Stream()
    batcher.submit(1, LIVE + 1)
    first, second = preemption.live_study_in_hand(), preemption.live_study_in_hand()
    with first:
        assert batcher._left(stream) == pytest.approx(MAX_YIELD_S)
        now[0] += MAX_YIELD_S / 2
        second.__enter__()
    assert batcher._left(stream) == pytest.approx(MAX_YIELD_S / 2), "the second is in hand still"
    now[0] += MAX_YIELD_S / 2
    assert batcher._left(stream) <= 0
    second.__exit__(None, None, None)
    with preemption.live_study_in_hand():
        assert batcher._left(stream) <= 0, "it begins where the last one ended"
    now[0] += MAX_YIELD_S / 10
    with preemption.live_study_in_hand():
        assert batcher._left(stream) == pytest.approx(YIELD_REFILL_RATE * MAX_YIELD_S / 10)
        now[0] += YIELD_REFILL_RATE * MAX_YIELD_S / 20
    now[0] += MAX_YIELD_S / 10
    with preemption.live_study_in_hand():
        assert batcher._left(stream) == pytest.approx(YIELD_REFILL_RATE * MAX_YIELD_S * 0.15), (
            "what was left over is kept"
        )
    now[0] += 100.0
    with preemption.live_study_in_hand():
        assert batcher._left(stream) == pytest.approx(MAX_YIELD_S)


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=40))
def test_the_others_have_most_of_the_time(studies: list[tuple[float, float]]) -> None:
    """However live studies come, the others wait for MAX_YIELD_S at first, and then for a third of the time at most."""
    with pytest.MonkeyPatch.context() as patched:
        now = [1000.0]
        patched.setattr("worker.batching.time.monotonic", lambda: now[0])
        preemption, stood_back = Preemption(), 0.0
        for gap, takes in studies:
            now[0] += gap
            with preemption.live_study_in_hand():
                stood_back += min(takes, preemption.seconds_to_wait())
                now[0] += takes
    passed = now[0] - 1000.0
    assert stood_back <= MAX_YIELD_S + YIELD_REFILL_RATE / (1 + YIELD_REFILL_RATE) * passed + 1e-6


def test_no_other_item_makes_a_live_batch_larger() -> None:
    """While a live study has precedence its batch is its own; afterwards batches are full again."""
    preemption = Preemption()
    batcher = Batcher[int, int]("model", list, max_batch=4, streams=0, preemption=preemption)
    for priority in (LIVE + 1, LIVE, LIVE + 1, LIVE, LIVE + 1, LIVE + 1):
        batcher.submit(priority, priority)
    with preemption.live_study_in_hand():
        assert [item for item, _ in batcher._next(Stream())] == [LIVE, LIVE]
    assert [item for item, _ in batcher._next(Stream())] == [LIVE + 1] * 4


def test_close_waits_for_no_right_of_way() -> None:
    """What waits is answered, whoever is in hand."""
    preemption = Preemption()
    batcher = Batcher("model", Model(), max_batch=1, preemption=preemption)
    with preemption.live_study_in_hand():
        waiting = batcher.submit(3, LIVE + 1)
        batcher.close()
        assert waiting.result(0) == 6


def test_what_no_item_caused_fails_the_batch_at_once() -> None:
    """A database that is away fails all alike: the batch is not halved until each has asked it once more."""
    calls = []

    def away(items: Sequence[int]) -> NoReturn:
        calls.append(len(items))
        raise ConnectionError

    batcher = Batcher[int, int]("claims", away, max_batch=8, max_wait_s=0.2, common=(ConnectionError,))
    futures = [batcher.submit(item, 1) for item in range(8)]
    for future in futures:
        with pytest.raises(ConnectionError):
            future.result(LIMIT_S)
    batcher.close()
    assert calls == [8]


def test_streams_work_side_by_side() -> None:
    """Two streams work on two batches at the same time."""
    both = threading.Barrier(2)

    def respond(items: Sequence[int]) -> Sequence[int]:
        both.wait(LIMIT_S)
        return items

    batcher = Batcher("model", respond, max_batch=1, streams=2)
    assert [future.result(LIMIT_S) for future in (batcher.submit(1), batcher.submit(2))] == [1, 2]
    batcher.close()
