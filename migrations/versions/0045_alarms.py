"""Notices to people: mail as a destination, what is told of a site, and the hours in which deliveries may go.

Revision ID: 0045
Revises: 0044
"""

import sqlalchemy as sa
from alembic import op

revision = "0045"
down_revision = "0044"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
KINDS = ("dicom", "dicom-tls", "stow", "folder", "hl7", "hl7-tls", "webhook")
NEW_KINDS = ("mail",)
REASONS = (
    "", "unreachable", "unknown-name", "rejected-for-now", "no-answer", "cut", "busy", "full", "store-unavailable",
    "rejected", "nothing-taken", "refused", "certificate", "access", "bad-address", "no-folder", "object-missing",
    "gave-up", "patient-differs", "study-gone", "not-sent", "unintelligible", "no-key", "no-accession-number",
    "not-encodable", "no-header", "address-not-allowed", "no-commitment", "commitment-refused", "not-kept",
    "not-named", "unsupported",
)  # fmt: skip
NEW_REASONS = ("no-mail-server", "not-true-now")
EVENTS = ("study.analysed", "study.quarantined", "study.revised", "study.read")
OF_STUDIES = ("positive.overdue", "finding.revised")
OF_SITES = ("queue.late", "queue.on-time", "delivery.failed", "delivery.well")
REASONED = (("destinations", "reason"), ("destinations", "test_reason"), ("deliveries", "reason"))


def upgrade() -> None:
    """New columns are empty or have constant defaults, so that no table is rewritten."""
    op.add_column("destinations", sa.Column("address", sa.String(254), server_default="", nullable=False))
    op.add_column("notices", sa.Column("about_id", sa.Uuid()))
    op.create_foreign_key("fk_notices_about_id", "notices", "destinations", ["about_id"], ["id"], ondelete="CASCADE")
    op.add_column("notices", sa.Column("noted_at", TIME))
    op.alter_column("notices", "noted_at", server_default=sa.text("clock_timestamp()"))
    for table in ("notices", "deliveries"):
        op.alter_column(table, "study_id", existing_type=sa.Uuid(), nullable=True)
    for name in ("hour_from", "hour_to"):
        op.add_column("deliveries", sa.Column(name, sa.SmallInteger(), server_default="0", nullable=False))
    _allow((*EVENTS, *OF_STUDIES, *OF_SITES), (*KINDS, *NEW_KINDS), (*REASONS, *NEW_REASONS))
    of_studies = ", ".join(f"'{event}'" for event in (*EVENTS, *OF_STUDIES))
    _check("notices", "ck_notices_subject", f"study_id IS NOT NULL OR event NOT IN ({of_studies})", anew=True)
    _check("deliveries", "ck_deliveries_study_id", "study_id IS NOT NULL OR notice_id IS NOT NULL", anew=True)
    op.create_index(
        "uq_notices_overdue", "notices", ["study_id"], unique=True,
        postgresql_where=sa.text("event = 'positive.overdue'"),
    )  # fmt: skip
    op.create_index(
        "ix_notices_alarms", "notices", ["site_id", "noted_at"],
        postgresql_where=sa.text(_one_of("event", (*OF_STUDIES, *OF_SITES))),
    )  # fmt: skip
    op.create_index("ix_notices_about_id", "notices", ["about_id"], postgresql_where=sa.text("about_id IS NOT NULL"))


def downgrade() -> None:
    """Undo it: mail destinations go, and what was told of sites, or of studies to people."""
    op.execute(f"DELETE FROM destinations WHERE {_one_of('kind', NEW_KINDS)}")
    op.execute(f"DELETE FROM notices WHERE {_one_of('event', (*OF_STUDIES, *OF_SITES))}")
    for event in OF_STUDIES + OF_SITES:
        op.execute(
            f"UPDATE destination_rules SET events = array_remove(events, '{event}') WHERE '{event}' = ANY(events)"
        )
    op.execute("DELETE FROM destination_rules WHERE cardinality(events) = 0 AND cardinality(kinds) = 0")
    for table, column in REASONED:
        op.execute(f"UPDATE {table} SET {column} = '' WHERE {_one_of(column, NEW_REASONS)}")
    for index in ("ix_notices_about_id", "ix_notices_alarms", "uq_notices_overdue"):
        op.drop_index(index, "notices")
    op.drop_constraint(op.f("ck_deliveries_study_id"), "deliveries")
    op.drop_constraint(op.f("ck_notices_subject"), "notices")
    _allow(EVENTS, KINDS, REASONS)
    for name in ("hour_from", "hour_to"):
        op.drop_column("deliveries", name)
    for table in ("notices", "deliveries"):
        op.alter_column(table, "study_id", existing_type=sa.Uuid(), nullable=False)
    op.drop_column("notices", "noted_at")
    op.drop_column("notices", "about_id")
    op.drop_column("destinations", "address")


def _allow(events: tuple[str, ...], kinds: tuple[str, ...], reasons: tuple[str, ...]) -> None:
    """Let the columns hold these codes."""
    listed = ", ".join(f"'{event}'" for event in events)
    _check("destination_rules", "ck_destination_rules_events", f"events <@ ARRAY[{listed}]::varchar[]")
    _check("notices", "ck_notices_event", _one_of("event", events))
    _check("destinations", "ck_destinations_kind", _one_of("kind", kinds))
    for table, column in REASONED:
        _check(table, f"ck_{table}_{column}", _one_of(column, reasons))


def _one_of(column: str, codes: tuple[str, ...]) -> str:
    listed = ", ".join(f"'{code}'" for code in codes)
    return f"{column} IN ({listed})"


def _check(table: str, name: str, condition: str, *, anew: bool = False) -> None:
    """Replace a constraint, or make it; rows are checked without a lock that others wait for."""
    dropped = "" if anew else f"DROP CONSTRAINT {name}, "
    op.execute(f"ALTER TABLE {table} {dropped}ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID")
    op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
