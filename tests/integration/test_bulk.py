"""Many rows updated by one call: each gets its own values, and no other row or column changes."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import DataError

from shared.db.bulk import update_each
from shared.db.engine import Database
from shared.db.tables.operations import WorkerRow

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
CHANGES = st.fixed_dictionaries(
    {},
    optional={"host": WORDS, "bundle": WORDS, "taken": st.integers(0, 2**31 - 1), "stopped_at": st.none() | TIMES},
)
BEFORE = {"host": "a", "pid": 1, "device": "cpu", "bundle": "b", "threads": 2, "taken": 3, "stopped_at": None}


def rows(database: Database) -> dict[UUID, dict[str, Any]]:
    columns = [WorkerRow.__table__.c[name] for name in ("id", *BEFORE)]
    with database.transaction() as session:
        return {row.id: dict(row._mapping) for row in session.execute(select(*columns))}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CHANGES, max_size=6))
def test_each_row_gets_its_own_values(database: Database, changes: list[dict[str, Any]]) -> None:
    """Whatever columns each row changes, in whatever order they come."""
    there = {id_: BEFORE | {"id": id_} for id_ in (uuid4() for _ in range(len(changes) + 1))}
    with database.transaction() as session:
        session.execute(delete(WorkerRow))
        session.execute(insert(WorkerRow), list(there.values()))
    wanted = [{"id": id_} | change for id_, change in zip(there, changes, strict=False)]
    with database.transaction() as session:
        update_each(session, WorkerRow, wanted)
    assert rows(database) == there | {values["id"]: there[values["id"]] | values for values in wanted}


def test_what_is_too_long_is_refused_and_not_cut(database: Database) -> None:
    """As by an UPDATE of one row; nothing is written."""
    id_ = uuid4()
    with database.transaction() as session:
        session.execute(insert(WorkerRow), [BEFORE | {"id": id_}])
    with pytest.raises(DataError), database.transaction() as session:
        update_each(session, WorkerRow, [{"id": id_, "host": "x" * 256}])
    assert rows(database)[id_]["host"] == "a"
