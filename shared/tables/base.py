"""What all tables share."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, DateTime, MetaData
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

from shared.findings import POSITIVE_FROM, UNCLEAR_FROM, AbstentionReason, Assessment

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """All tables; every time is aware (timestamptz), every id a UUID of ours."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: JSONB}  # noqa: RUF012 - SQLAlchemy's


def assessed(table: str) -> tuple[CheckConstraint, ...]:
    """What Postgres holds of assessment, abstention and score: known codes that do not contradict each other."""
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


def one_of(table: str, column: str, codes: type[StrEnum]) -> CheckConstraint:
    """A column holds one of these codes, or null."""
    listed = ", ".join(f"'{code}'" for code in codes)
    return CheckConstraint(f"{column} IN ({listed})", name=f"ck_{table}_{column}")
