"""Storage commitment for results that were sent: what was asked, and what each object's destination says of it.

Beside it an index for what was sent last, a reason of HL7, and a state of notices that break.

Revision ID: 0040
Revises: 0039
"""

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
STATES = ("", "due", "asked", "confirmed", "failed")
REASONS = (
    "", "unreachable", "unknown-name", "rejected-for-now", "no-answer", "cut", "busy", "full", "store-unavailable",
    "rejected", "nothing-taken", "refused", "certificate", "access", "bad-address", "no-folder", "object-missing",
    "gave-up", "patient-differs", "study-gone", "not-sent", "unintelligible", "no-key", "no-accession-number",
    "not-encodable", "no-header", "address-not-allowed",
)  # fmt: skip
NEW_REASONS = ("no-commitment", "commitment-refused", "not-kept", "not-named", "unsupported")
NOTICES = ("waiting", "told", "not-wanted", "withdrawn")
COLUMNS = (("destinations", "reason"), ("destinations", "test_reason"), ("deliveries", "reason"))


def upgrade() -> None:
    """Columns that are empty for what was sent before: nobody asked for it, and nobody does."""
    op.drop_index("ix_deliveries_commitment_uid", "deliveries")
    op.drop_column("deliveries", "commitment_uid")
    op.add_column("deliveries", sa.Column("confirmation", sa.String(16), server_default="", nullable=False))
    listed = ", ".join(f"'{state}'" for state in STATES)
    op.create_check_constraint(op.f("ck_deliveries_confirmation"), "deliveries", f"confirmation IN ({listed})")
    op.create_check_constraint(
        op.f("ck_deliveries_confirmed_at"), "deliveries",
        "(confirmation = 'confirmed') = (confirmed_at IS NOT NULL) AND (confirmation = '' OR state = 'sent')",
    )  # fmt: skip
    op.create_index(
        "ix_deliveries_to_confirm", "deliveries", ["destination_id", "next_at", "id"],
        postgresql_where=sa.text("confirmation = 'due'"),
    )  # fmt: skip
    op.create_index(
        "ix_deliveries_unconfirmed", "deliveries", ["destination_id", "confirmation"],
        postgresql_where=sa.text("confirmation IN ('due', 'asked', 'failed')"),
    )  # fmt: skip
    op.add_column("delivery_objects", sa.Column("confirmed_at", TIME))
    op.add_column("delivery_objects", sa.Column("failure", sa.String(4), server_default="", nullable=False))
    op.create_check_constraint(
        op.f("ck_delivery_objects_failure"), "delivery_objects",
        "failure = '' OR (confirmed_at IS NULL AND failure ~ '^[0-9A-F]{4}$')",
    )  # fmt: skip
    op.create_check_constraint(
        op.f("ck_delivery_objects_confirmed_at"), "delivery_objects",
        "accepted_at IS NOT NULL OR (confirmed_at IS NULL AND failure = '')",
    )  # fmt: skip
    op.create_table(
        "commitment_requests",
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("delivery_id", sa.Uuid(), nullable=False),
        sa.Column("asked_at", TIME, server_default=sa.func.clock_timestamp(), nullable=False),
        sa.Column("reported_at", TIME),
        sa.PrimaryKeyConstraint("transaction_uid", name=op.f("pk_commitment_requests")),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["deliveries.id"], name=op.f("fk_commitment_requests_delivery_id"), ondelete="CASCADE"
        ),
    )
    op.create_index(op.f("ix_commitment_requests_delivery_id"), "commitment_requests", ["delivery_id"])
    op.create_index("ix_deliveries_sent_at", "deliveries", ["destination_id", "sent_at"])
    _one_of("notices", "state", (*NOTICES, "failed"))
    for table, column in COLUMNS:
        _one_of(table, column, (*REASONS, *NEW_REASONS))


def downgrade() -> None:
    """Undo it. What was confirmed is not known afterwards; what was sent stays sent."""
    listed = ", ".join(f"'{reason}'" for reason in NEW_REASONS)
    for table, column in COLUMNS:
        op.execute(f"UPDATE {table} SET {column} = '' WHERE {column} IN ({listed})")
        _one_of(table, column, REASONS)
    op.execute("UPDATE notices SET state = 'withdrawn' WHERE state = 'failed'")
    _one_of("notices", "state", NOTICES)
    op.drop_index("ix_deliveries_sent_at", "deliveries")
    op.drop_table("commitment_requests")
    for name in ("confirmed_at", "failure"):  # each constraint is of both columns
        op.drop_constraint(op.f(f"ck_delivery_objects_{name}"), "delivery_objects")
    for name in ("confirmed_at", "failure"):
        op.drop_column("delivery_objects", name)
    op.drop_index("ix_deliveries_unconfirmed", "deliveries")
    op.drop_index("ix_deliveries_to_confirm", "deliveries")
    op.drop_constraint(op.f("ck_deliveries_confirmed_at"), "deliveries")
    op.execute("UPDATE deliveries SET confirmed_at = NULL WHERE confirmed_at IS NOT NULL")
    op.drop_column("deliveries", "confirmation")
    op.add_column("deliveries", sa.Column("commitment_uid", sa.String(64), server_default="", nullable=False))
    op.create_index(
        "ix_deliveries_commitment_uid", "deliveries", ["commitment_uid"],
        postgresql_where=sa.text("commitment_uid <> ''"),
    )  # fmt: skip


def _one_of(table: str, column: str, codes: tuple[str, ...]) -> None:
    name, listed = f"ck_{table}_{column}", ", ".join(f"'{code}'" for code in codes)
    op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} CHECK ({column} IN ({listed})) NOT VALID")
    op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
