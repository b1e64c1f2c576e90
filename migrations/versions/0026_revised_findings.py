"""Revised findings are in the table `revised_findings`; it was `alerts`.

Revision ID: 0026
Revises: 0025
"""

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

# SQL: rename a table and all that is named after it; `old` and `new` are replaced
RENAME = """
DO $$
DECLARE named record;
BEGIN
    ALTER TABLE {old} RENAME TO {new};
    FOR named IN SELECT conname AS name FROM pg_constraint
        WHERE conrelid = '{new}'::regclass AND conname ~ '(^|_){old}(_|$)'
    LOOP
        EXECUTE format('ALTER TABLE {new} RENAME CONSTRAINT %I TO %I', named.name, replace(named.name, '{old}', '{new}'));
    END LOOP;
    FOR named IN SELECT relname AS name FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE indrelid = '{new}'::regclass AND relname ~ '(^|_){old}(_|$)'
    LOOP
        EXECUTE format('ALTER INDEX %I RENAME TO %I', named.name, replace(named.name, '{old}', '{new}'));
    END LOOP;
    FOR named IN SELECT tgname AS name FROM pg_trigger
        WHERE tgrelid = '{new}'::regclass AND NOT tgisinternal AND tgname ~ '(^|_){old}(_|$)'
    LOOP
        EXECUTE format('ALTER TRIGGER %I ON {new} RENAME TO %I', named.name, replace(named.name, '{old}', '{new}'));
    END LOOP;
END $$
"""


def upgrade() -> None:
    """Rename the table, its constraints and indexes."""
    op.execute(RENAME.format(old="alerts", new="revised_findings"))


def downgrade() -> None:
    """Undo it."""
    op.execute(RENAME.format(old="revised_findings", new="alerts"))
