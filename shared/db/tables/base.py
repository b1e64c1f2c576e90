"""What all tables share."""

from datetime import datetime
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import CheckConstraint, DateTime, MetaData, Table
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

from shared.domain.findings import POSITIVE_FROM, UNCLEAR_FROM, AbstentionReason, Assessment

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


# in __table_args__: a record, which the application's role adds to and changes nothing in (shared/db/grants.py)
RECORD: dict[str, Any] = {"info": {"append_only": True}}
ERASED: dict[str, Any] = {"erased": True}  # the info of a column of such a record that may be emptied: free text


class Base(DeclarativeBase):
    """All tables; every time is aware (timestamptz), every id a UUID of ours."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: JSONB}  # noqa: RUF012 - SQLAlchemy's


def table_of(row: type[Base]) -> Table:
    """The table of a class, for statements without objects: those are made, cached and read in half of the time."""
    return cast("Table", row.__table__)


def assessed(table: str) -> tuple[CheckConstraint, ...]:
    """The checks of assessment, abstention and score: known codes that do not contradict each other."""
    return (
        one_of(table, "assessment", Assessment),
        one_of(table, "abstention", AbstentionReason),
        CheckConstraint(
            "score IS NULL OR assessment IN ('abstained') OR assessment = CASE "
            f"WHEN score >= {POSITIVE_FROM:g} THEN 'positive' WHEN score >= {UNCLEAR_FROM:g} THEN 'unclear' "
            "ELSE 'negative' END",
            name=f"ck_{table}_score",
        ),
        CheckConstraint(
            f"(assessment IS NOT DISTINCT FROM '{Assessment.ABSTAINED}') = (abstention IS NOT NULL) "
            f"OR coalesce(assessment = '{Assessment.POSITIVE}' AND abstention = '{AbstentionReason.METAL}', false)",
            name=f"ck_{table}_abstained_with_reason",
        ),
    )


def some_of(table: str, column: str, codes: type[StrEnum]) -> CheckConstraint:
    """Make the check that an array holds known codes only, or is null.

    Args:
        table: name of the table.
        column: name of the column.
        codes: the codes.

    Returns:
        The constraint.
    """
    listed = ", ".join(f"'{code}'" for code in codes)
    return CheckConstraint(f"{column} <@ ARRAY[{listed}]::varchar[]", name=f"ck_{table}_{column}")


def one_of(table: str, column: str, *enums: type[StrEnum], empty: bool = False) -> CheckConstraint:
    """Make the check that a column holds a known code or null.

    Args:
        table: name of the table.
        column: name of the column.
        *enums: the codes.
        empty: whether the empty string is allowed, too.

    Returns:
        The constraint.
    """
    codes = [*([""] if empty else []), *(code for codes in enums for code in codes)]
    listed = ", ".join(f"'{code}'" for code in dict.fromkeys(codes))
    return CheckConstraint(f"{column} IN ({listed})", name=f"ck_{table}_{column}")
