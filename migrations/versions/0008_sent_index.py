"""What was sent and when, by queue: the reconciler no longer walks through all that wait.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

OPEN = "status <> 'analysed'"


def upgrade() -> None:
    """The new index first, while the old code reads and writes; after a failure it may run again."""
    with op.get_context().autocommit_block():
        _build("ix_studies_sent", ["status", "queue", "sent_at"])
        op.drop_index("ix_studies_open", table_name="studies", postgresql_concurrently=True, if_exists=True)


def downgrade() -> None:
    """Undo it."""
    with op.get_context().autocommit_block():
        _build("ix_studies_open", ["status", "sent_at"])
        op.drop_index("ix_studies_sent", table_name="studies", postgresql_concurrently=True, if_exists=True)


def _build(name: str, columns: list[str]) -> None:
    """Build an index; what an interrupted build left of it is dropped first, IF NOT EXISTS would take it for whole."""
    broken = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"
    if op.get_bind().scalar(sa.text(broken), {"name": name}):
        op.drop_index(name, table_name="studies", postgresql_concurrently=True, if_exists=True)
    op.create_index(
        name, "studies", columns, postgresql_where=sa.text(OPEN), postgresql_concurrently=True, if_not_exists=True
    )
