"""Pieces of identities are made anew: those of two letters are new.

Revision ID: 0038
Revises: 0037
"""

from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Leave it to the next starts to make them; until then such identities are compared one by one."""
    op.execute("UPDATE identities SET pieces = NULL WHERE pieces IS NOT NULL")


def downgrade() -> None:
    """Nothing: further pieces do no harm."""
