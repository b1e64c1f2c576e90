"""The table `allowances` is called `turnaround_targets`.

Revision ID: 0021
Revises: 0020
"""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rename the table with all that bears its name; no row is touched."""
    _rename("allowances", "turnaround_targets")


def downgrade() -> None:
    """Undo it."""
    _rename("turnaround_targets", "allowances")


def _rename(old: str, new: str) -> None:
    op.rename_table(old, new)
    for name in ("site_id", "key_id"):
        op.execute(f"ALTER TABLE {new} RENAME CONSTRAINT fk_{old}_{name} TO fk_{new}_{name}")
    op.execute(f"ALTER TABLE {new} RENAME CONSTRAINT pk_{old} TO pk_{new}")
    op.execute(f"ALTER INDEX ix_{old}_site_id_id RENAME TO ix_{new}_site_id_id")
    op.execute(f"ALTER SEQUENCE {old}_id_seq RENAME TO {new}_id_seq")
