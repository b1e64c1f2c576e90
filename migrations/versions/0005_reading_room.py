"""Allowances, claims, saved filters, search; and the worklist's indexes, parted into what is unread and what was read.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COLUMNS = ("status", "call", "severity", "region", "priority", "modality")
AGE = sa.text("(width_bucket(age_years, '{18,40,65}'::integer[]))")
FILTERS = {"": [], **{f"_{column}": [column] for column in COLUMNS}, "_age": [AGE]}
BEFORE = {"ix_studies_worklist": [], **{f"ix_studies_{column}": [column] for column in COLUMNS if column != "severity"}}
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """The indexes are built while the old code reads and writes: a lock on a large table would stop uploads."""
    op.create_table(
        "allowances",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("minutes", postgresql.JSONB(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("chosen_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("fk_allowances_site_id")),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_allowances_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_allowances")),
        if_not_exists=True,
    )
    op.create_index("ix_allowances_site_id_id", "allowances", ["site_id", "id"], if_not_exists=True)
    op.create_table(
        "study_claims",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("desk", sa.String(32), server_default="", nullable=False),
        sa.Column("token", sa.Uuid(), nullable=False),
        sa.Column("claimed_at", TIME, nullable=False),
        sa.Column("until", TIME, nullable=False),
        sa.Column("taken_from", sa.Uuid(), nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("ended", sa.String(16), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name=op.f("fk_study_claims_study_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_study_claims_key_id")),
        sa.ForeignKeyConstraint(["taken_from"], ["api_keys.id"], name=op.f("fk_study_claims_taken_from")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study_claims")),
        if_not_exists=True,
    )
    op.create_index("ix_study_claims_study_id", "study_claims", ["study_id"], if_not_exists=True)
    op.create_index(
        "uq_study_claims_open", "study_claims", ["study_id"], unique=True, postgresql_where=sa.text("ended_at IS NULL"),
        if_not_exists=True,
    )
    op.create_table(
        "saved_filters",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("query", sa.String(400), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_saved_filters_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_filters")),
        sa.UniqueConstraint("key_id", "name", name=op.f("uq_saved_filters_key_id_name")),
        if_not_exists=True,
    )
    op.create_table(
        "identity_tokens",
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("token", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name=op.f("fk_identity_tokens_study_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", "kind", name=op.f("pk_identity_tokens")),
        if_not_exists=True,
    )
    op.create_index("ix_identity_tokens_token", "identity_tokens", ["token"], if_not_exists=True)
    op.create_table(
        "identity_searches",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("found", sa.Integer(), nullable=False),
        sa.Column("searched_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_identity_searches_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identity_searches")),
        if_not_exists=True,
    )
    with op.get_context().autocommit_block():
        for name, column in FILTERS.items():
            _index(f"ix_studies_unread{name}", [*column, "due_at"], "read_at IS NULL")
            _index(f"ix_studies_read{name}", [*column, "read_at"], "read_at IS NOT NULL")
        for name in BEFORE:
            op.drop_index(name, table_name="studies", postgresql_concurrently=True, if_exists=True)


def downgrade() -> None:
    """Undo it."""
    with op.get_context().autocommit_block():
        for name, column in BEFORE.items():
            _index(name, [*column, "due_at"], None)
        for name in FILTERS:
            for half in ("unread", "read"):
                op.drop_index(
                    f"ix_studies_{half}{name}", table_name="studies", postgresql_concurrently=True, if_exists=True
                )
    for table in ("identity_searches", "identity_tokens", "saved_filters", "study_claims", "allowances"):
        op.drop_table(table)


def _index(name: str, columns: list[object], where: str | None) -> None:
    _drop_broken(name)
    op.create_index(
        name, "studies", ["site_id", *columns, "id"], postgresql_concurrently=True, if_not_exists=True,
        postgresql_where=sa.text(where) if where else None,
    )


def _drop_broken(name: str) -> None:
    """Drop what an interrupted build left of an index: IF NOT EXISTS would take it for whole."""
    broken = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"
    if op.get_bind().scalar(sa.text(broken), {"name": name}):
        op.drop_index(name, table_name="studies", postgresql_concurrently=True, if_exists=True)
