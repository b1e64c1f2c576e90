"""Pieces of identities are numbered anew: those of one and two letters have numbers of their own.

Revision ID: 0043
Revises: 0042
"""

from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Leave it to the next starts to make them; until then such identities are compared one by one."""
    op.execute("UPDATE identities SET pieces = NULL WHERE pieces IS NOT NULL")


def downgrade() -> None:
    """As upgrade: the code before looks for other numbers."""
    upgrade()
