"""Asking a part whether it works."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg2.errors import InsufficientPrivilege, UndefinedTable
from sqlalchemy.exc import ProgrammingError

from api.probe import OK, Probe
from shared.errors import StoreUnavailable
from tests.pace import LIMIT_S


def test_many_who_ask_cost_a_part_one_question() -> None:
    """However many ask at once or shortly after, the part is asked once."""
    asked: list[int] = []
    probe = Probe(lambda: asked.append(1), fresh_s=600, patience_s=LIMIT_S)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: probe.state(), range(50))) == {OK}
    assert len(asked) == 1


def test_a_silent_part_is_told_of_and_asked_by_nobody_else() -> None:
    """One that does not answer holds up nobody for longer than said, and no second question waits behind the first."""
    go_on, asked = threading.Event(), []

    def question() -> None:
        asked.append(1)
        go_on.wait(LIMIT_S)

    probe = Probe(question, fresh_s=0.0, patience_s=0.05)
    for _ in range(5):
        assert probe.state() == "did not answer within 0.05 s"
    assert len(asked) == 1
    go_on.set()
    patient = Probe(question, fresh_s=0.0, patience_s=LIMIT_S)
    assert patient.state() == OK


def raises(error: Exception) -> Callable[[], None]:
    def question() -> None:
        raise error

    return question


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ProgrammingError("SELECT", {}, UndefinedTable("relation")), "its tables are missing or older"),
        (ProgrammingError("SELECT 'secret'", {}, InsufficientPrivilege("secret")), "failed (InsufficientPrivilege)"),
        (RuntimeError("password=secret"), "failed (RuntimeError)"),
        (StoreUnavailable(), "OSTEON_STORE_URL"),
    ],
)
def test_only_a_missing_migration_is_called_one(error: Exception, said: str) -> None:
    """An error is named by its kind, without the words that may hold a secret."""
    state = Probe(raises(error)).state()
    assert said in state
    assert "secret" not in state
    assert ("migration" in state) == isinstance(getattr(error, "orig", None), UndefinedTable)
