"""Assessments and reasons to abstain are codes: what was `call` is `assessment`, prose in `scope` becomes `abstention`.

Revision ID: 0010
Revises: 0009

One transaction: it renames columns, so that code of before and after cannot run on either side of it. Stop API and
workers, migrate, start the new ones. What readers answered (the hash chain of `answers`) holds none of these words.
"""

from collections.abc import Iterable

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

WORDS = {"none": "negative", "possible": "unclear", "likely": "positive", "abstained": "abstained"}
REASONS = (
    "body-part", "modality", "blank", "collimated", "inverted", "metal", "out-of-distribution", "region", "unread-images",
)  # fmt: skip
# an abstention's prose, of every version, as LIKE patterns; what is none of these was never written
PROSE = (
    ("body part %", "body-part"),
    ("modality %", "modality"),
    ("%blank", "blank"),
    ("almost nothing %", "collimated"),
    ("%inverted%", "inverted"),
    ("%metal%", "metal"),
    ("%region%", "region"),
    ("% could not be read", "unread-images"),
    ("%", "out-of-distribution"),
)
DETAIL = (
    "coalesce((regexp_match(scope, '^(body part|modality) (.+) is outside'))[2], (regexp_match(scope, '^[0-9]+'))[1], '')"
)
SCOPE = {
    "body-part": "'body part ' || abstention_detail || ' is outside the model''s validated scope'",
    "modality": "'modality ' || abstention_detail || ' is outside the model''s validated scope'",
    "blank": "'the image is blank'",
    "collimated": "'almost nothing of the image is exposed'",
    "inverted": "'the image looks inverted'",
    "metal": "'metal is in view'",
    "out-of-distribution": "'the image is unlike those it learned from'",
    "region": "'the body region was not recognised'",
    "unread-images": (
        "abstention_detail || CASE abstention_detail WHEN '1' THEN ' image' ELSE ' images' END || ' could not be read'"
    ),
}
COLUMNS = (("findings", ""), ("studies", ""), *((table, age) for table in ("second_looks", "alerts") for age in ("old_", "new_")))
INDEXES = (("ix_studies_unread_by_call", "ix_studies_unread_by_assessment"), ("ix_studies_read_call", "ix_studies_read_assessment"))


def upgrade() -> None:
    """Rename, translate, and let Postgres refuse other codes from now on."""
    for table, age in COLUMNS:
        op.alter_column(table, f"{age}call", new_column_name=f"{age}assessment")
    for old, new in INDEXES:
        op.execute(f"ALTER INDEX {old} RENAME TO {new}")
    for table in ("findings", "studies"):
        op.add_column(table, sa.Column("abstention", sa.String(32), nullable=True))
        op.add_column(table, sa.Column("abstention_detail", sa.String(), server_default="", nullable=False))
        reason = " ".join(f"WHEN scope LIKE '{pattern}' THEN '{code}'" for pattern, code in PROSE)
        abstains = "assessment = 'abstained'"
        op.execute(
            f"UPDATE {table} SET assessment = {_case('assessment', WORDS)}, "  # noqa: S608 - constants
            f"abstention = CASE WHEN {abstains} THEN CASE {reason} END END, "
            f"abstention_detail = CASE WHEN {abstains} THEN {DETAIL} ELSE '' END WHERE assessment IS NOT NULL"
        )
        op.drop_column(table, "scope")
        op.create_check_constraint(f"ck_{table}_abstention", table, _one_of("abstention", REASONS))
        op.create_check_constraint(
            f"ck_{table}_abstained_with_reason",
            table,
            "(assessment IS NOT DISTINCT FROM 'abstained') = (abstention IS NOT NULL)",
        )
    _translate(WORDS, ("call", "assessment"))
    for table, age in COLUMNS:
        op.create_check_constraint(
            f"ck_{table}_{age}assessment", table, _one_of(f"{age}assessment", WORDS.values())
        )


def downgrade() -> None:
    """The words and the prose of before."""
    back = {new: old for old, new in WORDS.items()}
    for table, age in COLUMNS:
        op.drop_constraint(f"ck_{table}_{age}assessment", table)
    for table in ("findings", "studies"):
        op.drop_constraint(f"ck_{table}_abstained_with_reason", table)
        op.drop_constraint(f"ck_{table}_abstention", table)
        op.add_column(table, sa.Column("scope", sa.String(), server_default="", nullable=False))
        op.alter_column(table, "scope", server_default=None)
        prose = " ".join(f"WHEN '{code}' THEN {words}" for code, words in SCOPE.items())
        op.execute(
            f"UPDATE {table} SET assessment = {_case('assessment', back)}, "  # noqa: S608 - constants
            f"scope = CASE abstention {prose} ELSE 'in scope' END WHERE assessment IS NOT NULL"
        )
        op.drop_column(table, "abstention_detail")
        op.drop_column(table, "abstention")
    _translate(back, ("assessment", "call"))
    for old, new in INDEXES:
        op.execute(f"ALTER INDEX {new} RENAME TO {old}")
    for table, age in COLUMNS:
        op.alter_column(table, f"{age}assessment", new_column_name=f"{age}call")


def _translate(words: dict[str, str], name: tuple[str, str]) -> None:
    """Comparisons, targets of turnaround, reports of runs and saved filters; name: of the filter, before and after."""
    for table, age in COLUMNS[2:]:
        column = f"{age}assessment"
        op.execute(f"UPDATE {table} SET {column} = {_case(column, words)} WHERE {column} IS NOT NULL")  # noqa: S608
    classes = words | {f"{old} severe": f"{new} severe" for old, new in words.items()}
    op.execute(f"UPDATE allowances SET minutes = {_rekeyed('minutes', classes)}")  # noqa: S608
    inner = _rekeyed("old.value", words)
    matrix = (
        f"(SELECT coalesce(jsonb_object_agg({_case('old.key', words)}, {inner}), '{{}}') "
        "FROM jsonb_each(report->'changes') AS old)"
    )
    op.execute(f"UPDATE backlog_runs SET report = jsonb_set(report, '{{changes}}', {matrix}) WHERE report ? 'changes'")  # noqa: S608
    for old, new in words.items():
        op.execute(
            "UPDATE saved_filters SET query = regexp_replace(query, "  # noqa: S608
            rf"'(^|&){name[0]}={old}(?=&|$)', '\1{name[1]}={new}')"
        )


def _case(column: str, words: dict[str, str]) -> str:
    """Each word in place of its older one; others, and null, as they are."""
    whens = " ".join(f"WHEN '{old}' THEN '{new}'" for old, new in words.items())
    return f"CASE {column} {whens} ELSE {column} END"


def _rekeyed(document: str, words: dict[str, str]) -> str:
    """A JSON object with its keys translated."""
    return (
        f"(SELECT coalesce(jsonb_object_agg({_case('each.key', words)}, each.value), '{{}}') "
        f"FROM jsonb_each({document}) AS each)"
    )


def _one_of(column: str, codes: Iterable[str]) -> str:
    listed = ", ".join(f"'{code}'" for code in codes)
    return f"{column} IN ({listed})"
