"""A request that meets a study which another transaction has locked."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from api.intake import requests
from shared.errors import Locked, Unavailable


class Taking:
    """A request whose rows are refused so many times; each try is noted."""

    def __init__(self, refusals: int, wrong: Exception, *, stored: bool = True) -> None:
        self.refusals, self.wrong, self.stored = refusals, wrong, stored
        self.stored_request: object = None
        self.tried: list[str] = []

    def run(self, files: object, key: object) -> str:
        """Store, then write."""
        self.tried.append("run")
        self.stored_request = "whole" if self.stored else None
        return self._write()

    def commit(self) -> str:
        """Write."""
        self.tried.append("commit")
        return self._write()

    def _write(self) -> str:
        if len(self.tried) <= self.refusals:
            raise self.wrong
        return "receipt"


def take(taking: Taking) -> Any:
    async def work(call: Any, *args: Any) -> Any:
        return call(*args)

    parts: Any = SimpleNamespace(uploads=SimpleNamespace(work=work))
    unknown: Any = taking
    return asyncio.run(requests.take_in_unless_locked(parts, unknown, [], None))


def test_a_locked_study_is_tried_again_without_storing_again() -> None:
    """Files are stored once; only the rows are written again."""
    taking = Taking(2, Locked("locked"))
    assert take(taking) == "receipt"
    assert taking.tried == ["run", "commit", "commit"]


def test_a_study_that_stays_locked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """After LOCK_RETRY_S the lock itself is what is raised."""
    monkeypatch.setattr(requests, "LOCK_RETRY_S", 0.3)
    taking = Taking(1000, Locked("locked"))
    with pytest.raises(Locked, match="locked"):
        take(taking)
    assert 2 <= len(taking.tried) <= 5


@pytest.mark.parametrize(("wrong", "stored"), [(Unavailable("away"), True), (Locked("before"), False)])
def test_nothing_else_is_tried_again(wrong: Exception, stored: bool) -> None:
    """A part that is away, and a lock that is met before anything is stored, are told at once."""
    taking = Taking(1000, wrong, stored=stored)
    with pytest.raises(type(wrong)):
        take(taking)
    assert taking.tried == ["run"]
