"""A worklist page with two filters reads the rows that it shows, and not those that only the first one lets through.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

FILTERS = {
    word: sa.text("width_bucket(age_years, '{18,40,65}'::integer[])") if word == "age" else word
    for word in ("status", "call", "severity", "region", "priority", "modality", "age")
}
SECOND = ("priority", "call", "region", "severity")


def upgrade() -> None:
    """The new indexes first, while the old code reads and writes; after a failure it may run again."""
    with op.get_context().autocommit_block():
        for word in FILTERS:
            _build(f"ix_studies_unread_by_{word}", word, *(second for second in SECOND if second != word))
            _drop(f"ix_studies_unread_{word}")


def downgrade() -> None:
    """Undo it."""
    with op.get_context().autocommit_block():
        for word in FILTERS:
            _build(f"ix_studies_unread_{word}", word)
            _drop(f"ix_studies_unread_by_{word}")


def _build(name: str, word: str, *second: str) -> None:
    """Build an index; what an interrupted build left of it is dropped first, IF NOT EXISTS would take it for whole."""
    broken = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"
    if op.get_bind().scalar(sa.text(broken), {"name": name}):
        _drop(name)
    op.create_index(
        name,
        "studies",
        ["site_id", FILTERS[word], "due_at", "id", *second],
        postgresql_where=sa.text("read_at IS NULL"),
        postgresql_concurrently=True,
        if_not_exists=True,
    )


def _drop(name: str) -> None:
    op.drop_index(name, table_name="studies", postgresql_concurrently=True, if_exists=True)
