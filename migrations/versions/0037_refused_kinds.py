"""Which kinds of objects a site refuses.

Revision ID: 0037
Revises: 0036
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None

KINDS = ("not-an-image", "colour", "secondary-capture", "other-modality", "own-result")


def upgrade() -> None:
    """A column that may be empty: sites that have not chosen follow the setting."""
    op.add_column("sites", sa.Column("refused_kinds", postgresql.ARRAY(sa.String(32)), nullable=True))
    listed = ", ".join(f"'{kind}'" for kind in KINDS)
    op.create_check_constraint(
        op.f("ck_sites_refused_kinds"), "sites", f"refused_kinds <@ ARRAY[{listed}]::varchar[]"
    )


def downgrade() -> None:
    """All sites follow the setting again."""
    op.drop_column("sites", "refused_kinds")
