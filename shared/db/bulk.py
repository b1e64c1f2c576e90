"""Updates many rows of a table in one statement."""

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import groupby
from typing import Any

from sqlalchemy import ARRAY, String, Text, Update, bindparam, cast, column, func, update
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from shared.db.tables.base import Base


def update_each(session: Session, table: type[Base], rows: Iterable[Mapping[str, Any]]) -> None:
    """Update rows by their ids, each with values of its own.

    Rows with the same columns share a statement; an UPDATE for each would cost Postgres a parse and a plan for each.

    Args:
        session: the caller's transaction.
        table: with a primary key `id`.
        rows: `id` and the columns to change; plain values, no SQL expressions. No id twice.
    """
    changed = (row for row in rows if len(row) > 1)
    for names, alike in groupby(sorted(changed, key=sorted), key=lambda row: tuple(sorted(row))):
        values = list(alike)
        session.execute(_statement(table, names), {f"of_{name}": [row[name] for row in values] for name in names})


@cache  # it costs more to build than to run
def _statement(table: type[Base], names: tuple[str, ...]) -> Update:
    """The UPDATE of these columns, with an array of values for each."""
    columns = table.__table__.c
    types = {name: ARRAY(_value_type(columns[name].type)) for name in names}
    arrays = [cast(bindparam(f"of_{name}", type_=of), of) for name, of in types.items()]
    given = func.unnest(*arrays).table_valued(*(column(name, of.item_type) for name, of in types.items()), name="given")
    given = given.render_derived()
    return (
        update(table)
        .where(columns["id"] == given.c["id"])
        .values({name: given.c[name] for name in names if name != "id"})
        .execution_options(synchronize_session=False)
    )


def _value_type(of: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type of an array's values; a cast to varchar(n) would cut what is too long, which an UPDATE refuses."""
    return Text() if isinstance(of, String) else of
