"""Workers, samples and refusals: what the administrator sees.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INDEXES = (
    ("ix_studies_waiting", ["site_id", "queue", "queued_at"], "status IN ('queued', 'retrying')"),
    ("ix_studies_quarantined_at", ["quarantined_at"], "status = 'quarantined'"),
    ("ix_studies_received_at", ["received_at"], None),
    ("ix_studies_analysed_at", ["analysed_at"], "analysed_at IS NOT NULL"),
)


def upgrade() -> None:
    """The indexes are built while the old code reads and writes, as in 0003; after a failure it may run again."""
    time = sa.DateTime(timezone=True)
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(255), nullable=False),
        sa.Column("bundle", sa.String(), server_default="", nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("taken", sa.Integer(), server_default="0", nullable=False),
        sa.Column("in_hand", sa.Integer(), server_default="0", nullable=False),
        sa.Column("started_at", time, server_default=sa.func.now(), nullable=False),
        sa.Column("seen_at", time, server_default=sa.func.now(), nullable=False),
        sa.Column("stopped_at", time, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
        if_not_exists=True,
    )
    op.create_index("ix_workers_seen_at", "workers", ["seen_at"], if_not_exists=True)
    op.create_table(
        "samples",
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("at", time, nullable=False),
        sa.Column("queue", sa.String(16), nullable=False),
        sa.Column("received", sa.Integer(), nullable=False),
        sa.Column("analysed", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("wait_p50_s", sa.Float(), nullable=True),
        sa.Column("wait_p95_s", sa.Float(), nullable=True),
        sa.Column("work_p50_s", sa.Float(), nullable=True),
        sa.Column("work_p95_s", sa.Float(), nullable=True),
        sa.Column("waiting", sa.Integer(), nullable=True),
        sa.Column("oldest_s", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_samples_site_id"),
        sa.PrimaryKeyConstraint("site_id", "at", "queue", name="pk_samples"),
        if_not_exists=True,
    )
    op.create_table(
        "holdings",
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("at", time, nullable=False),
        sa.Column("images", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_holdings_site_id"),
        sa.PrimaryKeyConstraint("site_id", "at", name="pk_holdings"),
        if_not_exists=True,
    )
    op.create_table(
        "refusals",
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("hour", time, nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("failure", sa.String(8), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("last_at", time, nullable=False),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_refusals_site_id"),
        sa.PrimaryKeyConstraint("site_id", "hour", "reason", name="pk_refusals"),
        if_not_exists=True,
    )
    op.add_column("studies", sa.Column("quarantined_at", time, nullable=True), if_not_exists=True)
    # of those that stand there already only the start of their last attempt is known
    op.execute(
        "UPDATE studies SET quarantined_at = coalesce(started_at, received_at) WHERE status = 'quarantined' "
        "AND quarantined_at IS NULL"
    )
    with op.get_context().autocommit_block():
        for name, columns, where in INDEXES:
            _drop_broken(name)
            op.create_index(
                name, "studies", columns, postgresql_where=sa.text(where) if where else None,
                postgresql_concurrently=True, if_not_exists=True,
            )


def downgrade() -> None:
    """Undo it."""
    with op.get_context().autocommit_block():
        for name, _, _ in INDEXES:
            op.drop_index(name, table_name="studies", postgresql_concurrently=True, if_exists=True)
    op.drop_column("studies", "quarantined_at")
    for table in ("refusals", "holdings", "samples", "workers"):
        op.drop_table(table)


def _drop_broken(name: str) -> None:
    """Drop what an interrupted build left of an index: IF NOT EXISTS would take it for whole."""
    broken = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"
    if op.get_bind().scalar(sa.text(broken), {"name": name}):
        op.drop_index(name, table_name="studies", postgresql_concurrently=True, if_exists=True)
