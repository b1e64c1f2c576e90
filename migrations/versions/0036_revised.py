"""When what is told of a study last changed, and an index of results in that order.

Revision ID: 0036
Revises: 0035
"""

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None

INDEX = "ix_studies_reported"


def upgrade() -> None:
    """Add a column that is empty at first, and build the index beside the running system.

    It may run again after it was cut off: an index that a killed run left is not valid, and is built anew.
    """
    columns = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("studies")}
    if "revised_at" not in columns:
        op.add_column("studies", sa.Column("revised_at", sa.DateTime(timezone=True)))
    with op.get_context().autocommit_block():
        op.drop_index(INDEX, "studies", postgresql_concurrently=True, if_exists=True)
        op.create_index(
            INDEX,
            "studies",
            ["site_id", sa.text("GREATEST(analysed_at, quarantined_at, revised_at)"), "id"],
            postgresql_where=sa.text("assessment IS NOT NULL OR status = 'quarantined'"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    """Undo it."""
    op.drop_index(INDEX, "studies")
    op.drop_column("studies", "revised_at")
