"""Requests for storage commitment that wait for their report.

Revision ID: 0034
Revises: 0033
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table of its own; those that wait in a listener's memory just now are lost with it, as before."""
    op.create_table(
        "dicom_commitments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("peer_id", sa.Uuid(), nullable=False),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("duplicate", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("instances", JSONB(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dicom_commitments")),
        sa.UniqueConstraint(
            "peer_id", "transaction_uid", "duplicate",
            name=op.f("uq_dicom_commitments_peer_id_transaction_uid_duplicate"),
        ),
        sa.ForeignKeyConstraint(
            ["peer_id"], ["dicom_peers.id"], name=op.f("fk_dicom_commitments_peer_id"), ondelete="CASCADE"
        ),
    )  # fmt: skip
    op.create_index(op.f("ix_dicom_commitments_due_at"), "dicom_commitments", ["due_at"])


def downgrade() -> None:
    """Undo it. Without a report nothing is confirmed, and the peers ask again."""
    op.drop_table("dicom_commitments")
