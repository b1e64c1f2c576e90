"""What a site chooses for its results: whether documents state the probability, and the modality of captures.

Revision ID: 0044
Revises: 0043
"""

import sqlalchemy as sa
from alembic import op

revision = "0044"
down_revision = "0043"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Sites that have not chosen keep what they had: no probability, modality OT."""
    op.add_column("sites", sa.Column("states_probability", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("sites", sa.Column("capture_modality", sa.String(2), server_default="OT", nullable=False))
    op.create_check_constraint(op.f("ck_sites_capture_modality"), "sites", "capture_modality IN ('OT', 'CR', 'DX')")


def downgrade() -> None:
    """All sites' results are as they were."""
    op.drop_column("sites", "capture_modality")
    op.drop_column("sites", "states_probability")
