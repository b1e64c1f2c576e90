"""A reader's claim on a study is a reading lock: the table `reading_locks`, which was `study_claims`.

Revision ID: 0024
Revises: 0023
"""

from alembic import op

revision = "0024"
down_revision = "0023"
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
COLUMNS = {"desk": "login", "claimed_at": "locked_at"}


def upgrade() -> None:
    """Rename the table, its constraints and indexes, and two columns."""
    op.execute(RENAME.format(old="study_claims", new="reading_locks"))
    for old, new in COLUMNS.items():
        op.alter_column("reading_locks", old, new_column_name=new)


def downgrade() -> None:
    """Undo it."""
    for old, new in COLUMNS.items():
        op.alter_column("reading_locks", new, new_column_name=old)
    op.execute(RENAME.format(old="reading_locks", new="study_claims"))
