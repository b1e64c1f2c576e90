"""The table `backlog_runs` is called `backfill_runs`; its `night` is its `day`, and codes say so, too.

What was held of a run is paused, what was overtaken is superseded; reports of runs that have ended count them by these
names.

Revision ID: 0025
Revises: 0024
"""

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

# column of a table: each code as it was, and as it is now
CODES = {
    ("backfill_runs", "purpose"): {"night": "backfill"},
    ("backfill_runs", "ended_by"): {"next-night": "next-run"},
    ("second_looks", "state"): {"held": "paused", "overtaken": "superseded"},
    ("second_looks", "reason"): {"night-over": "run-over"},
}
OTHERS = {  # the codes that stay
    ("backfill_runs", "purpose"): ("shadow",),
    ("backfill_runs", "ended_by"): (
        "", "retired", "other-bundle", "promoted", "window-closed", "history-ended", "count-reached", "other",
    ),
    ("second_looks", "state"): ("queued", "running", "done", "failed"),
    ("second_looks", "reason"): (
        "", "cannot-understand", "empty-file", "not-dicom", "no-file-meta", "unknown-transfer-syntax",
        "sop-class-not-supported", "no-pixel-data", "bad-attributes", "truncated-pixels", "too-large", "bad-archive",
        "unsupported-pixels", "undecodable-pixels", "decoding-failed", "decoding-timed-out", "decoder-died",
        "decoder-out-of-memory", "store-unavailable", "object-missing", "object-damaged", "database-unavailable",
        "database-locked", "database-full", "part-unavailable", "bad-bundle", "analysis-failed", "worker-died",
        "no-image", "other", "image-unread", "images-missing", "analysed-anew", "speaks-already", "other-bundle",
        "image-deleted",
    ),
}  # fmt: skip


def upgrade() -> None:
    """Rename table, column, constraints and index, then translate the codes."""
    _rename("backlog_runs", "backfill_runs", "night", "day")
    _translate({place: dict(codes) for place, codes in CODES.items()})
    op.alter_column("backfill_runs", "purpose", server_default="backfill")


def downgrade() -> None:
    """Undo it."""
    _translate({place: {new: old for old, new in codes.items()} for place, codes in CODES.items()})
    op.alter_column("backfill_runs", "purpose", server_default="night")
    _rename("backfill_runs", "backlog_runs", "day", "night")


def _rename(old: str, new: str, old_column: str, new_column: str) -> None:
    op.rename_table(old, new)
    op.alter_column(new, old_column, new_column_name=new_column)
    op.execute(f"ALTER TABLE {new} RENAME CONSTRAINT pk_{old} TO pk_{new}")
    op.execute(f"ALTER TABLE {new} RENAME CONSTRAINT uq_{old}_{old_column} TO uq_{new}_{new_column}")
    for column in ("purpose", "stage", "ended_by"):
        op.execute(f"ALTER TABLE {new} RENAME CONSTRAINT ck_{old}_{column} TO ck_{new}_{column}")
    op.execute(f"ALTER INDEX ix_{old}_open RENAME TO ix_{new}_open")


def _translate(codes: dict[tuple[str, str], dict[str, str]]) -> None:
    """Codes in their columns and in the reports of runs, the checks of them, and the index that names one."""
    op.drop_index("ix_second_looks_open", "second_looks")
    for (table, column), renamed in codes.items():
        cases = " ".join(f"WHEN '{old}' THEN '{new}'" for old, new in renamed.items())
        olds = ", ".join(f"'{old}'" for old in renamed)
        listed = ", ".join(f"'{code}'" for code in (*OTHERS[table, column], *renamed.values()))
        op.drop_constraint(f"ck_{table}_{column}", table)
        op.execute(f"UPDATE {table} SET {column} = CASE {column} {cases} END WHERE {column} IN ({olds})")  # noqa: S608 - constants
        op.create_check_constraint(f"ck_{table}_{column}", table, f"{column} IN ({listed})")
    states = codes["second_looks", "state"]
    paused = states.get("held", "held")
    op.create_index(
        "ix_second_looks_open", "second_looks", ["state", "sent_at"],
        postgresql_where=f"state IN ('queued', 'running', '{paused}')",
    )  # fmt: skip
    renamed_keys = " ".join(f"WHEN '{old}' THEN '{new}'" for old, new in states.items())
    op.execute(f"""
        UPDATE backfill_runs SET report = jsonb_set(report, '{{kinds}}', (
            SELECT coalesce(jsonb_object_agg(kind.key, (
                SELECT coalesce(jsonb_object_agg(CASE state.key {renamed_keys} ELSE state.key END, state.value), '{{}}')
                FROM jsonb_each(kind.value) AS state
            )), '{{}}') FROM jsonb_each(report->'kinds') AS kind
        )) WHERE report ? 'kinds'
    """)  # noqa: S608 - constants
