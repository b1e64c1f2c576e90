"""Nights with a window and a cursor, second looks, shadow bundles, retrospective alerts.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("studies", sa.Column("read_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("studies", sa.Column("age_years", sa.Integer(), nullable=True))
    op.add_column("studies", sa.Column("scanner", sa.String(128), server_default="", nullable=False))


def downgrade() -> None:
    for column in ("scanner", "age_years", "read_at"):
        op.drop_column("studies", column)
