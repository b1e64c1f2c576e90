"""The examination in columns; files that wait for a decision; several search tokens a study; a sender's issuer.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
TEXTS = {
    "studies": {"sex": 1, "body_part": 16, "laterality": 1, "views": 64},
    "instances": {"laterality": 1, "view": 32, "manufacturer": 64, "model": 64},
    "api_keys": {"issuer": 64},
}
OTHERS = {
    "studies": (("study_date", "date"), ("study_time", "time"), ("header_version", "smallint NOT NULL DEFAULT 0")),
    "instances": (("description", "bytea"), ("header_sha256", "varchar(64)")),
    "api_keys": (),
}


def upgrade() -> None:
    """Columns with constant defaults touch no row; existing studies are filled from their originals by infra.prepare.

    What stands outside the transaction may run again after it was cut off.
    """
    for table, texts in TEXTS.items():
        for name, length in texts.items():
            op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} varchar({length}) NOT NULL DEFAULT ''")
        for name, kind in OTHERS[table]:
            op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} {kind}")
    op.create_table(
        "held_files",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("instance_id", sa.Uuid(), nullable=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("study_instance_uid", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.String(16), nullable=False),
        sa.Column("patient", sa.LargeBinary(), nullable=False),
        sa.Column("header", sa.LargeBinary(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", TIME, nullable=True),
        sa.Column("received_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("decided_at", TIME, nullable=True),
        sa.Column("decided_by", sa.Uuid(), nullable=True),
        sa.Column("reason", sa.LargeBinary(), nullable=True),
        sa.Column("new_study_id", sa.Uuid(), nullable=True),
        sa.Column("new_instance_id", sa.Uuid(), nullable=True),
        sa.Column("before", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("fk_held_files_site_id")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_held_files_study_id")),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name=op.f("fk_held_files_instance_id")),
        sa.ForeignKeyConstraint(["decided_by"], ["api_keys.id"], name=op.f("fk_held_files_decided_by")),
        sa.ForeignKeyConstraint(
            ["new_study_id"], ["studies.id"], name=op.f("fk_held_files_new_study_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["new_instance_id"], ["instances.id"], name=op.f("fk_held_files_new_instance_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_held_files")),
        sa.UniqueConstraint("site_id", "sha256", name=op.f("uq_held_files_site_id_sha256")),
        if_not_exists=True,
    )
    op.create_index(
        "ix_held_files_open", "held_files", ["site_id", "received_at", "id"],
        postgresql_where=sa.text("state = 'open'"), if_not_exists=True,
    )
    op.create_index("ix_held_files_study_id", "held_files", ["study_id", "kind", "patient"], if_not_exists=True)
    op.create_table(
        "held_tokens",
        sa.Column("held_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("token", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["held_id"], ["held_files.id"], name=op.f("fk_held_tokens_held_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("held_id", "kind", name=op.f("pk_held_tokens")),
        if_not_exists=True,
    )
    op.create_index("ix_held_tokens_token", "held_tokens", ["token"], if_not_exists=True)
    with op.get_context().autocommit_block():
        _build("ix_studies_unfilled", "studies", ["id"], where="header_version = 0")
        if _key_columns() == 2:
            _build("pk_identity_tokens_new", "identity_tokens", ["study_id", "kind", "token"], unique=True)
            op.execute(
                "ALTER TABLE identity_tokens DROP CONSTRAINT pk_identity_tokens, "
                "ADD CONSTRAINT pk_identity_tokens PRIMARY KEY USING INDEX pk_identity_tokens_new"
            )


def downgrade() -> None:
    """Undo it; files that wait for a decision are forgotten, their bytes stay in the store."""
    op.execute(
        "DELETE FROM identity_tokens AS one USING identity_tokens AS other "
        "WHERE one.study_id = other.study_id AND one.kind = other.kind AND one.token > other.token"
    )
    op.execute(
        "ALTER TABLE identity_tokens DROP CONSTRAINT pk_identity_tokens, "
        "ADD CONSTRAINT pk_identity_tokens PRIMARY KEY (study_id, kind)"
    )
    op.drop_table("held_tokens")
    op.drop_table("held_files")
    op.drop_index("ix_studies_unfilled", table_name="studies")
    for table, texts in TEXTS.items():
        for name in (*texts, *(name for name, _ in OTHERS[table])):
            op.drop_column(table, name)


def _key_columns() -> int:
    """How many columns the primary key of identity_tokens has: 2 before, 3 after."""
    keys = "SELECT array_length(conkey, 1) FROM pg_constraint WHERE conname = 'pk_identity_tokens'"
    return int(op.get_bind().scalar(sa.text(keys)) or 0)


def _build(name: str, table: str, columns: list[str], *, where: str | None = None, unique: bool = False) -> None:
    """Build an index; what an interrupted build left of it is dropped first, IF NOT EXISTS would take it for whole."""
    broken = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"
    if op.get_bind().scalar(sa.text(broken), {"name": name}):
        op.drop_index(name, table_name=table, postgresql_concurrently=True, if_exists=True)
    op.create_index(
        name, table, columns, unique=unique, postgresql_where=sa.text(where) if where else None,
        postgresql_concurrently=True, if_not_exists=True,
    )
