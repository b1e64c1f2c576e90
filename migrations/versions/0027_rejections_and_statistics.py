"""The table `refusals` is called `rejections`, and `samples` is called `statistics`.

Revision ID: 0027
Revises: 0026
"""

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rename the tables with their constraints; no row is touched."""
    _rename("refusals", "rejections", "reason")
    _rename("samples", "statistics", "queue")


def downgrade() -> None:
    """Undo it."""
    _rename("statistics", "samples", "queue")
    _rename("rejections", "refusals", "reason")


def _rename(old: str, new: str, checked: str) -> None:
    op.rename_table(old, new)
    for name in ("pk_{}", "fk_{}_site_id", f"ck_{{}}_{checked}"):
        op.execute(f"ALTER TABLE {new} RENAME CONSTRAINT {name.format(old)} TO {name.format(new)}")
