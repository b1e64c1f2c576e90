"""Nights with a window and a cursor, second looks, shadow bundles, retrospective alerts.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
RUN = [
    sa.Column("purpose", sa.String(16), server_default="night", nullable=False),
    sa.Column("ends_at", TIME, nullable=True),
    sa.Column("switched", sa.Integer(), server_default="0", nullable=False),
    sa.Column("most", sa.Integer(), nullable=True),
    sa.Column("since", sa.Date(), nullable=True),
    sa.Column("stage", sa.String(16), server_default="exhausted", nullable=False),
    sa.Column("cursor_day", sa.Date(), nullable=True),
    sa.Column("cursor_probability", sa.Double(), nullable=True),
    sa.Column("cursor_study", sa.Uuid(), nullable=True),
    sa.Column("ended_by", sa.String(), server_default="", nullable=False),
    sa.Column("report", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
]


def upgrade() -> None:
    op.add_column("studies", sa.Column("read_at", TIME, nullable=True), if_not_exists=True)
    op.add_column("studies", sa.Column("age_years", sa.Integer(), nullable=True), if_not_exists=True)
    op.add_column("studies", sa.Column("scanner", sa.String(128), server_default="", nullable=False), if_not_exists=True)
    op.add_column("bundles", sa.Column("activated_at", TIME, nullable=True), if_not_exists=True)
    op.add_column("bundles", sa.Column("shadow", sa.Boolean(), server_default=sa.text("false"), nullable=False), if_not_exists=True)
    for column in RUN:
        op.add_column("backlog_runs", column, if_not_exists=True)
    op.alter_column("backlog_runs", "night", nullable=True)
    op.execute("UPDATE backlog_runs SET finished_at = started_at WHERE finished_at IS NULL")
    op.create_index("ix_backlog_runs_open", "backlog_runs", ["purpose"], postgresql_where=sa.text("finished_at IS NULL"), if_not_exists=True)
    op.create_table(
        "second_looks",
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("bundle", sa.String(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("queued_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", TIME, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", TIME, nullable=True),
        sa.Column("lease_token", sa.Uuid(), nullable=True),
        sa.Column("lease_until", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("region", sa.String(32), nullable=False),
        sa.Column("old_bundle", sa.String(), nullable=False),
        sa.Column("old_call", sa.String(16), nullable=True),
        sa.Column("old_severity", sa.String(16), nullable=True),
        sa.Column("old_probability", sa.Double(), nullable=True),
        sa.Column("new_call", sa.String(16), nullable=True),
        sa.Column("new_severity", sa.String(16), nullable=True),
        sa.Column("new_probability", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_second_looks_study_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("fk_second_looks_site_id")),
        sa.ForeignKeyConstraint(["run_id"], ["backlog_runs.id"], name=op.f("fk_second_looks_run_id")),
        sa.PrimaryKeyConstraint("study_id", "bundle", name=op.f("pk_second_looks")),
        if_not_exists=True,
    )
    op.create_index(
        "ix_second_looks_open", "second_looks", ["state", "sent_at"],
        postgresql_where=sa.text("state IN ('queued', 'running', 'held')"),
        if_not_exists=True,
    )
    op.create_index("ix_second_looks_run", "second_looks", ["run_id", "state", "finished_at"], if_not_exists=True)
    op.create_index("ix_second_looks_pairs", "second_looks", ["bundle", "old_bundle", "site_id", "old_call", "new_call"], if_not_exists=True)
    op.create_table(
        "alerts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("old_bundle", sa.String(), nullable=False),
        sa.Column("new_bundle", sa.String(), nullable=False),
        sa.Column("old_call", sa.String(16), nullable=False),
        sa.Column("new_call", sa.String(16), nullable=False),
        sa.Column("region", sa.String(32), nullable=False),
        sa.Column("old_probability", sa.Double(), nullable=False),
        sa.Column("new_probability", sa.Double(), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", TIME, nullable=True),
        sa.Column("seen_by", sa.Uuid(), nullable=True),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("fk_alerts_site_id")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_alerts_study_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["backlog_runs.id"], name=op.f("fk_alerts_run_id")),
        sa.ForeignKeyConstraint(["seen_by"], ["api_keys.id"], name=op.f("fk_alerts_seen_by")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
        if_not_exists=True,
    )
    op.create_index("uq_alerts_study_id_new_bundle", "alerts", ["study_id", "new_bundle"], unique=True, if_not_exists=True)
    op.create_index("ix_alerts_run_id", "alerts", ["run_id"], if_not_exists=True)
    op.create_index(
        "ix_alerts_unseen", "alerts", ["site_id", "new_probability", "id"], postgresql_where=sa.text("seen_at IS NULL"),
        if_not_exists=True,
    )
    # built while the old code reads and writes; it serves what the index of the bundle alone did
    with op.get_context().autocommit_block():
        # until now every bundle with findings was an active one; by itself, for it reads all findings
        op.execute(
            "UPDATE bundles SET activated_at = added_at "
            "WHERE activated_at IS NULL AND (active OR name IN (SELECT bundle FROM findings))"
        )
        _drop_broken("ix_studies_history")
        op.create_index(
            "ix_studies_history", "studies",
            ["bundle", sa.text("date(timezone('UTC'::text, received_at))"), "fracture_probability", "id"],
            postgresql_where=sa.text("status = 'analysed'"), postgresql_concurrently=True, if_not_exists=True,
        )
        op.drop_index("ix_studies_bundle", table_name="studies", postgresql_concurrently=True, if_exists=True)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        _drop_broken("ix_studies_bundle")
        op.create_index("ix_studies_bundle", "studies", ["bundle"], postgresql_concurrently=True, if_not_exists=True)
        op.drop_index("ix_studies_history", table_name="studies", postgresql_concurrently=True, if_exists=True)
    op.drop_table("alerts")
    op.drop_table("second_looks")
    op.drop_index("ix_backlog_runs_open", table_name="backlog_runs")
    op.execute("DELETE FROM backlog_runs WHERE night IS NULL")
    op.alter_column("backlog_runs", "night", nullable=False)
    for column in reversed(RUN):
        op.drop_column("backlog_runs", column.name)
    for column in ("shadow", "activated_at"):
        op.drop_column("bundles", column)
    for column in ("scanner", "age_years", "read_at"):
        op.drop_column("studies", column)


def _drop_broken(name: str) -> None:
    """Drop what an interrupted build left of an index: IF NOT EXISTS would take it for whole."""
    broken = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"
    if op.get_bind().scalar(sa.text(broken), {"name": name}):
        op.drop_index(name, table_name="studies", postgresql_concurrently=True, if_exists=True)
