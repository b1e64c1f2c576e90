"""The daily check: its site, its runs, and the findings that it expects.

Revision ID: 0042
Revises: 0040
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0042"
down_revision = "0040"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
STATES = ("asked", "running", "well", "drifted", "broken", "behind")
STEPS = ("", "tidied", "sent", "analysed", "compared", "made", "delivered", "read-back", "deleted")
REASONS = (
    "", "api-away", "refused", "no-model", "no-worker", "not-analysed", "queue-full", "quarantined",
    "codes-differ", "values-differ", "not-made", "wrong-statement", "not-delivered", "not-equal", "not-deleted", "died",
    "error",
)  # fmt: skip


def upgrade() -> None:
    """The column has a constant default, so that no table is rewritten; the site is made by the first check."""
    op.add_column("sites", sa.Column("checks", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_index("uq_sites_checks", "sites", ["checks"], unique=True, postgresql_where=sa.text("checks"))
    op.create_table(
        "checks",
        sa.Column("id", sa.Uuid(), nullable=False),
        _text("state", 16, "asked"),
        sa.Column("asked_at", TIME, server_default=sa.func.clock_timestamp(), nullable=False),
        *(sa.Column(name, sa.Boolean(), server_default=sa.false(), nullable=False) for name in ("scheduled", "accept")),
        *(sa.Column(name, TIME) for name in ("started_at", "lease_until", "ended_at")),
        sa.Column("steps", JSONB(), server_default=sa.text("'[]'"), nullable=False),
        _text("step", 16),
        _text("reason", 24),
        _text("reason_detail", 128),
        sa.Column("model", sa.String(), server_default="", nullable=False),
        _text("engine", 512),
        sa.Column("learned", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("probability_deviation", sa.Float()),
        sa.Column("heatmap_deviation", sa.Integer()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checks")),
        *(
            sa.CheckConstraint(
                f"{name} IN ({', '.join(repr(code) for code in codes)})", name=op.f(f"ck_checks_{name}")
            )
            for name, codes in (("state", STATES), ("step", STEPS), ("reason", REASONS))
        ),
    )  # fmt: skip
    op.create_index(
        "uq_checks_open", "checks", ["state"], unique=True, postgresql_where=sa.text("state IN ('asked', 'running')")
    )
    op.create_index("ix_checks_asked_at", "checks", ["asked_at"])
    op.create_table(
        "check_expectations",
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("reference", "bundle_sha256")),
        sa.Column("engine", sa.String(512), nullable=False),
        sa.Column("findings", JSONB(), nullable=False),
        sa.Column("set_at", TIME, server_default=sa.func.clock_timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("reference", "bundle_sha256", "engine", name=op.f("pk_check_expectations")),
    )


def downgrade() -> None:
    """Undo it. The check's site stays, as one without studies: what it did is on record under it."""
    op.drop_table("check_expectations")
    op.drop_table("checks")
    op.drop_index("uq_sites_checks", "sites")
    op.drop_column("sites", "checks")


def _text(name: str, length: int, default: str = "") -> "sa.Column[str]":
    return sa.Column(name, sa.String(length), server_default=default, nullable=False)
