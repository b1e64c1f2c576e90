"""The file by which a process shows that its loops go on: old while a step of one of them hangs."""

import threading

import pytest

from shared.db.engine import WORKER
from shared.queue import liveness
from shared.queue.liveness import STEP_S, Progress
from shared.settings import Settings
from shared.storage.s3 import RESPONSE_LIMIT_S
from tests.pace import until
from worker.delivery.connections import answer_limit_s
from worker.delivery.dicom import CONNECT_S


class Clock:
    """Stands in for `time`, and goes as a test has it."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the module, which stands still."""
    made = Clock()
    monkeypatch.setattr(liveness, "time", made)
    return made


def test_a_loop_hangs_once_it_is_late(clock: Clock) -> None:
    """One late loop is enough, whatever the others say; one that has ended is waited for no more."""
    progress = Progress()
    assert not progress.hangs()
    progress.expect("look", 10)
    progress.expect("turn", 30)
    clock.now = 9
    progress.expect("look", 10)
    assert not progress.hangs()
    clock.now = 20
    assert progress.hangs()
    progress.expect("look", 1000)
    assert not progress.hangs()
    clock.now = 31
    assert progress.hangs()
    progress.done("turn")
    progress.done("turn")
    assert not progress.hangs()


def test_the_file_grows_old_while_a_step_hangs(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is touched again once the step has ended after all."""
    touched: list[float] = []
    monkeypatch.setattr(liveness, "touch", lambda: touched.append(clock.now))
    monkeypatch.setattr(liveness, "TOUCH_EVERY_S", 0.002)
    looked = threading.Semaphore(0)

    class Watched(Progress):
        def hangs(self) -> bool:
            looked.release()
            return super().hangs()

    progress, stopping = Watched(), threading.Event()
    progress.expect("look", 10)
    progress.show(stopping)
    try:
        until(lambda: touched, 5)
        clock.now = 11
        for _ in range(3):  # a round that began before may still touch
            looked.acquire()
        while looked.acquire(blocking=False):
            pass
        count = len(touched)
        for _ in range(5):
            looked.acquire()
        assert len(touched) == count
        progress.expect("look", 10)
        until(lambda: len(touched) > count, 5)
    finally:
        stopping.set()


def test_the_limit_of_a_step_is_longer_than_each_of_its_waits() -> None:
    """Of the longest that settings allow too: a wait that ends by itself is no hang."""
    settings = Settings(delivery_answer_s=600.0)
    size = 64 * 2**20
    database, store, connection = WORKER.statement_s + WORKER.lock_s, 3 * RESPONSE_LIMIT_S, 4 * CONNECT_S
    answer = answer_limit_s(settings, size)
    assert database + store < STEP_S
    assert database + store + connection + settings.delivery_answer_s + answer < STEP_S + 2 * answer
