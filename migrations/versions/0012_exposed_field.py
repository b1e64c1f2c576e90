"""A finding names the exposed field that the model looked at; earlier ones looked at the whole image.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """An empty column: no row is rewritten."""
    op.add_column("findings", sa.Column("field", sa.ARRAY(sa.Integer()), nullable=True))


def downgrade() -> None:
    """Undo it."""
    op.drop_column("findings", "field")
