"""Assessments and reasons to abstain are codes, findings have a score, and the list is ordered by it.

Revision ID: 0010
Revises: 0009

What was `call` is `assessment`, prose in `scope` becomes `abstention`. One transaction: it renames columns, so that code
of before and after cannot run on either side of it. Stop API and workers, migrate, start the new ones. What readers
answered (the hash chain of `answers`) holds none of these words.
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
# as `OperatingPoints.score`, by the points in the bundle's manifest; an abstention has one where the image may be read
SCORE = """
    CASE WHEN fracture_probability >= specific THEN
        7 + coalesce(3 * (fracture_probability - specific) / nullif(1 - specific, 0), 0)
    WHEN fracture_probability >= sensitive THEN
        least(3 + coalesce(4 * (fracture_probability - sensitive) / nullif(specific - sensitive, 0), 0), 6.999999999999999)
    ELSE
        least(coalesce(3 * fracture_probability / nullif(sensitive, 0), 0), 2.9999999999999996)
    END
"""
POINTS = """
    SELECT name, (manifest->>'sensitive')::double precision AS sensitive,
        greatest((manifest->>'specific')::double precision, (manifest->>'sensitive')::double precision) AS specific
    FROM bundles WHERE manifest ? 'sensitive' AND manifest ? 'specific'
"""
SCORED = "'metal', 'region', 'inverted', 'out-of-distribution'"
CONSISTENT = (
    "score IS NULL OR assessment IN ('abstained') OR assessment = CASE "
    "WHEN score >= 7 THEN 'positive' WHEN score >= 3 THEN 'unclear' ELSE 'negative' END"
)
FILTERS = {
    word: sa.text("width_bucket(age_years, '{18,40,65}'::integer[])") if word == "age" else word
    for word in ("status", "assessment", "severity", "region", "priority", "modality", "age")
}
SECOND = ("priority", "assessment", "region", "severity")
PLACE = (
    sa.text("date_trunc('minute'::text, timezone('UTC'::text, due_at))"),
    sa.text("(- COALESCE(score, 0::double precision))"),
    "id",
)
COLUMNS = (
    ("findings", ""), ("studies", ""), ("second_looks", "old_"), ("second_looks", "new_"), ("alerts", "old_"), ("alerts", "new_"),
)  # fmt: skip


def upgrade() -> None:
    """Rename, translate, and let Postgres refuse other codes from now on."""
    for table, age in COLUMNS:
        op.alter_column(table, f"{age}call", new_column_name=f"{age}assessment")
    op.execute("ALTER INDEX ix_studies_read_call RENAME TO ix_studies_read_assessment")
    _drop("ix_studies_unread", *(f"ix_studies_unread_by_{'call' if word == 'assessment' else word}" for word in FILTERS))
    for table in ("findings", "studies"):
        op.add_column(table, sa.Column("score", sa.Float(), nullable=True))
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
        op.execute(
            f"UPDATE {table} SET score = {SCORE} FROM ({POINTS}) AS points WHERE points.name = bundle "  # noqa: S608
            f"AND fracture_probability IS NOT NULL AND (assessment <> 'abstained' OR abstention IN ({SCORED}))"
        )
        # a bundle of that name may have had other points when it said so
        op.execute(f"UPDATE {table} SET score = NULL WHERE NOT ({CONSISTENT})")  # noqa: S608
        op.create_check_constraint(f"ck_{table}_score", table, CONSISTENT)
        op.create_check_constraint(f"ck_{table}_abstention", table, _one_of("abstention", REASONS))
        op.create_check_constraint(
            f"ck_{table}_abstained_with_reason",
            table,
            "(assessment IS NOT DISTINCT FROM 'abstained') = (abstention IS NOT NULL) "
            "OR coalesce(assessment = 'positive' AND abstention = 'metal', false)",
        )
    _translate(WORDS, ("call", "assessment"))
    for table, age in COLUMNS:
        op.create_check_constraint(
            f"ck_{table}_{age}assessment", table, _one_of(f"{age}assessment", WORDS.values())
        )
    _index("ix_studies_unread", "site_id", *PLACE)
    for word, column in FILTERS.items():
        _index(f"ix_studies_unread_by_{word}", "site_id", column, *PLACE, *(other for other in SECOND if other != word))


def downgrade() -> None:
    """The words and the prose of before."""
    back = {new: old for old, new in WORDS.items()}
    _drop("ix_studies_unread", *(f"ix_studies_unread_by_{word}" for word in FILTERS))
    for table, age in COLUMNS:
        op.drop_constraint(f"ck_{table}_{age}assessment", table)
    for table in ("findings", "studies"):
        op.drop_constraint(f"ck_{table}_abstained_with_reason", table)
        op.drop_constraint(f"ck_{table}_abstention", table)
        op.drop_constraint(f"ck_{table}_score", table)
        op.drop_column(table, "score")
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
    op.execute("ALTER INDEX ix_studies_read_assessment RENAME TO ix_studies_read_call")
    for table, age in COLUMNS:
        op.alter_column(table, f"{age}assessment", new_column_name=f"{age}call")
    words = {("call" if word == "assessment" else word): column for word, column in FILTERS.items()}
    second = ["call" if word == "assessment" else word for word in SECOND]
    _index("ix_studies_unread", "site_id", "due_at", "id")
    for word, column in words.items():
        of_word = word if column == "assessment" else column
        _index(f"ix_studies_unread_by_{word}", "site_id", of_word, "due_at", "id", *(o for o in second if o != word))


def _drop(*names: str) -> None:
    for name in names:
        op.drop_index(name, table_name="studies")


def _index(name: str, *columns: object) -> None:
    """Of what is unread."""
    op.create_index(name, "studies", list(columns), postgresql_where=sa.text("read_at IS NULL"))


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
