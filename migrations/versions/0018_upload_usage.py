"""What each key has sent, by the minute.

Revision ID: 0018
Revises: 0017
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A new table."""
    op.create_table(
        "upload_usage",
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("studies", sa.Integer(), nullable=False),
        sa.Column("urgent", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_upload_usage_site_id"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_upload_usage_key_id"),
        sa.PrimaryKeyConstraint("site_id", "at", "key_id", name="pk_upload_usage"),
    )


def downgrade() -> None:
    """Undo it."""
    op.drop_table("upload_usage")
