"""Readers' feedback is in the table `feedback`; it was `answers`. What the hash chain holds does not change.

Revision ID: 0023
Revises: 0022
"""

from alembic import op

revision = "0023"
down_revision = "0022"
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

# as 0016 made it; words of an entry may go once what they are about was deleted
REFUSE = """
CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND TG_LEVEL = 'ROW' THEN
        IF OLD.words_sha256 IS NOT NULL AND NEW.words IS NULL
            AND to_jsonb(NEW) - 'words' = to_jsonb(OLD) - 'words'
            AND (NOT EXISTS (SELECT FROM studies WHERE id = OLD.study_id)
                OR OLD.instance_id IS NOT NULL
                    AND NOT EXISTS (SELECT FROM instances WHERE id = OLD.instance_id))
        THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION '{words} are never changed: add one that supersedes it'
        USING ERRCODE = 'restrict_violation';
END $$
"""


def upgrade() -> None:
    """Rename the table, its constraints, indexes and triggers, and the count of entries of a deletion."""
    op.execute(RENAME.format(old="answers", new="feedback"))
    op.alter_column("deletions", "answers", new_column_name="feedback_entries")
    op.execute("ALTER FUNCTION refuse_change() RENAME TO refuse_change_of_feedback")
    op.execute(REFUSE.format(name="refuse_change_of_feedback", words="entries of the feedback log"))


def downgrade() -> None:
    """Undo it."""
    op.execute("ALTER FUNCTION refuse_change_of_feedback() RENAME TO refuse_change")
    op.execute(REFUSE.format(name="refuse_change", words="entries of the ledger"))
    op.alter_column("deletions", "feedback_entries", new_column_name="answers")
    op.execute(RENAME.format(old="feedback", new="answers"))
