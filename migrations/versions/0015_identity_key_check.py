"""A value that tells whether the identity key is the right one.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A new table of one row; the row is made at the next start, by a process that has the key."""
    op.create_table(
        "identity_key_check",
        sa.Column("id", sa.SmallInteger(), primary_key=True, server_default="1"),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("id = 1", name="ck_identity_key_check_one"),
    )


def downgrade() -> None:
    """Undo it."""
    op.drop_table("identity_key_check")
