"""An index for each filter of the worklist, in the worklist's order.

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

FILTERS = ("status", "call", "region", "priority", "modality")


def upgrade() -> None:
    """Built while the old code reads and writes: a lock on a large table would stop a hospital's uploads."""
    with op.get_context().autocommit_block():
        for column in FILTERS:
            op.create_index(
                f"ix_studies_{column}", "studies", ["site_id", column, "due_at", "id"],
                postgresql_concurrently=True, if_not_exists=True,
            )


def downgrade() -> None:
    """Undo it."""
    with op.get_context().autocommit_block():
        for column in FILTERS:
            op.drop_index(f"ix_studies_{column}", table_name="studies", postgresql_concurrently=True, if_exists=True)
