"""Isolation: suspects alone, everybody gets in."""

import random
import threading
import time
from contextlib import AbstractContextManager

import pytest

from tests.pace import LIMIT_S
from worker.isolation import Isolation


class OverlapLog:
    """Notes who is in together."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.others = self.alone = self.most_others = 0
        self.broken: list[str] = []
        self.visits = 0

    def visit(self, isolation: Isolation, alone: bool, stay_s: float = 0.0005) -> None:
        entry: AbstractContextManager[None] = isolation.exclusive() if alone else isolation.shared()
        with entry:
            with self.lock:
                self.alone += alone
                self.others += not alone
                self.most_others = max(self.most_others, self.others)
                if self.alone > 1 or (self.alone and self.others):
                    self.broken.append(f"{self.alone} alone with {self.others} others")
            time.sleep(stay_s)
            with self.lock:
                self.alone -= alone
                self.others -= not alone
                self.visits += 1


def join(threads: list[threading.Thread], limit_s: float = 30) -> None:
    for thread in threads:
        thread.join(limit_s)
    assert not any(thread.is_alive() for thread in threads), "somebody never got in"


def test_alone_means_alone_under_threads() -> None:
    """However visits interleave, a suspect is never together with anybody, and everybody gets through."""
    isolation, overlap = Isolation(), OverlapLog()

    def visits(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            overlap.visit(isolation, chance.random() < 0.3)

    threads = [threading.Thread(target=visits, args=(seed,), daemon=True) for seed in range(12)]
    for thread in threads:
        thread.start()
    join(threads)
    assert not overlap.broken
    assert overlap.visits == 12 * 40


def test_others_are_in_together() -> None:
    """Those who are no suspects do not wait for each other."""
    isolation, inside = Isolation(), threading.Barrier(8)

    def visit() -> None:
        with isolation.shared():
            inside.wait(LIMIT_S)  # passes only with all eight inside

    threads = [threading.Thread(target=visit, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    join(threads)
    assert not inside.broken


def starves(isolation: Isolation, crowd_alone: bool) -> bool:
    """Whether one visitor of the other kind waits in vain while a crowd comes without a pause."""
    stop, overlap = threading.Event(), OverlapLog()

    def crowd() -> None:
        while not stop.is_set():
            overlap.visit(isolation, crowd_alone, 0.001)

    threads = [threading.Thread(target=crowd, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    one = threading.Thread(target=overlap.visit, args=(isolation, not crowd_alone), daemon=True)
    one.start()
    one.join(LIMIT_S)
    waits_in_vain = one.is_alive()
    stop.set()
    join([*threads, one])
    assert not overlap.broken
    return waits_in_vain


def test_nobody_starves() -> None:
    """A crowd of one kind does not keep a single visitor of the other kind out."""
    assert not starves(Isolation(), crowd_alone=False)
    assert not starves(Isolation(), crowd_alone=True)


def test_an_error_in_isolation_ends_it() -> None:
    """Whoever fails inside leaves it was found."""
    isolation, overlap = Isolation(), OverlapLog()
    for entry in (isolation.exclusive, isolation.shared):
        with pytest.raises(RuntimeError), entry():
            raise RuntimeError
    visitor = threading.Thread(target=overlap.visit, args=(isolation, True), daemon=True)
    visitor.start()
    join([visitor], 10)
    assert overlap.visits == 1
