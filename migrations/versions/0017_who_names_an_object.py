"""Which rows name an object of the store, so that a deletion can tell whether another one does.

Revision ID: 0017
Revises: 0016
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

INDEXES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "ix_instances_sha256": ("instances", ["sha256"], {}),
    "ix_instances_header_sha256": (
        "instances", ["header_sha256"], {"postgresql_where": sa.text("header_sha256 IS NOT NULL")},
    ),
    "ix_held_files_sha256": ("held_files", ["sha256"], {}),
    "ix_uploads_study_ids": ("uploads", ["study_ids"], {"postgresql_using": "gin"}),
}  # fmt: skip


def upgrade() -> None:
    """Built while others read and write; after a failure it may run again."""
    with op.get_context().autocommit_block():
        for name, (table, columns, more) in INDEXES.items():
            _drop_broken(name, table)
            op.create_index(name, table, columns, postgresql_concurrently=True, if_not_exists=True, **more)


def downgrade() -> None:
    """Undo it."""
    with op.get_context().autocommit_block():
        for name, (table, _, _) in INDEXES.items():
            op.drop_index(name, table_name=table, postgresql_concurrently=True, if_exists=True)


def _drop_broken(name: str, table: str) -> None:
    """What an interrupted build left of an index: IF NOT EXISTS would take it for whole."""
    broken = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"
    if op.get_bind().scalar(sa.text(broken), {"name": name}):
        op.drop_index(name, table_name=table, postgresql_concurrently=True, if_exists=True)
