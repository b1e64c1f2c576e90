"""Keyed pieces of names and numbers, by which QIDO-RS finds patterns with wild cards.

Revision ID: 0030
Revises: 0029
"""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column that may be empty touches no row; infra.prepare fills it, since it takes the identities' key.

    What stands outside the transaction may run again after it was cut off.
    """
    op.execute("ALTER TABLE identities ADD COLUMN IF NOT EXISTS pieces integer[]")
    with op.get_context().autocommit_block():
        _build("ix_identities_pieces", "pieces", using="gin")
        _build("ix_identities_unfilled", "study_id", where="pieces IS NULL")


def downgrade() -> None:
    """Undo it; the indexes go with the column."""
    op.drop_index("ix_identities_unfilled", table_name="identities")
    op.drop_column("identities", "pieces")


def _build(name: str, column: str, *, using: str = "btree", where: str | None = None) -> None:
    """Build an index; what an interrupted build left of it is dropped first, IF NOT EXISTS would take it for whole."""
    broken = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"
    if op.get_bind().scalar(sa.text(broken), {"name": name}):
        op.drop_index(name, table_name="identities", postgresql_concurrently=True, if_exists=True)
    op.create_index(
        name, "identities", [column], postgresql_using=using, postgresql_where=sa.text(where) if where else None,
        # kB; each search reads the list of what is pending as a whole
        postgresql_with={"gin_pending_list_limit": 512} if using == "gin" else {},
        postgresql_concurrently=True, if_not_exists=True,
    )
