"""Who did what: actor, subject, before and after of each event. `security_events` becomes `audit_events`.

Old rows stay as they are: their actor is their key's name, which never changes. Code of before goes on by a view that
has the old table's name: it writes the kinds that it knows, and reads no other.

Revision ID: 0020
Revises: 0019
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

OLD = (
    "'login', 'logout', 'login-failed', 'key-refused', 'throttled', 'new-address', 'key-made', 'key-revoked', "
    "'model-stored', 'model-activated', 'model-shadowed', 'model-retired', 'export', 'study-deleted', 'image-deleted', "
    "'setting-changed'"
)
NEW = (
    "'site-made', 'study-released', 'study-dismissed', 'held-decided', 'run-begun', 'identity-key-accepted', "
    "'schema-changed'"
)
SUBJECTS = "'site', 'key', 'model', 'study', 'image', 'held-file', 'setting', 'run', 'database'"
COLUMNS = ("actor", "subject_kind", "subject_id", "before", "after")


def upgrade() -> None:
    """The table gets its name and columns. Its rows are not touched: Postgres refuses that."""
    _rename("security_events", "audit_events")
    op.add_column("audit_events", sa.Column("actor", sa.String(64)))
    op.add_column("audit_events", sa.Column("subject_kind", sa.String(16)))
    op.add_column("audit_events", sa.Column("subject_id", sa.String(64)))
    op.add_column("audit_events", sa.Column("before", JSONB()))
    op.add_column("audit_events", sa.Column("after", JSONB()))
    op.drop_constraint("ck_audit_events_kind", "audit_events")
    op.create_check_constraint("ck_audit_events_kind", "audit_events", f"kind IN ({OLD}, {NEW})")
    op.create_check_constraint("ck_audit_events_subject_kind", "audit_events", f"subject_kind IN ({SUBJECTS})")
    # no row has a subject yet, so that the index is empty: it is built within the transaction that renames the table
    op.create_index(
        "ix_audit_events_subject", "audit_events", ["subject_kind", "subject_id", "id"],
        postgresql_where=sa.text("subject_kind IS NOT NULL"),
    )  # fmt: skip
    op.execute(f"""
        CREATE VIEW security_events AS
        SELECT id, at, kind, site_id, key_id, address, network, study_id, detail FROM audit_events WHERE kind IN ({OLD})
    """)


def downgrade() -> None:
    """Undo it. Events of kinds that the code before does not know go, for it would stumble over them."""
    op.execute("DROP VIEW security_events")
    op.execute("ALTER TABLE audit_events DISABLE TRIGGER USER")
    op.execute(f"DELETE FROM audit_events WHERE kind IN ({NEW})")
    op.execute("ALTER TABLE audit_events ENABLE TRIGGER USER")
    op.drop_index("ix_audit_events_subject", "audit_events")
    op.drop_constraint("ck_audit_events_subject_kind", "audit_events")
    op.drop_constraint("ck_audit_events_kind", "audit_events")
    op.create_check_constraint("ck_audit_events_kind", "audit_events", f"kind IN ({OLD})")
    for column in COLUMNS:
        op.drop_column("audit_events", column)
    _rename("audit_events", "security_events")


def _rename(old: str, new: str) -> None:
    """The table, and all that bears its name: constraints, indexes, its sequence and its trigger."""
    op.rename_table(old, new)
    op.execute(f"""
        DO $$
        DECLARE
            name text;
        BEGIN
            FOR name IN SELECT conname FROM pg_constraint
                WHERE conrelid = '{new}'::regclass AND strpos(conname, '{old}') > 0
            LOOP
                EXECUTE format('ALTER TABLE {new} RENAME CONSTRAINT %I TO %I', name, replace(name, '{old}', '{new}'));
            END LOOP;
            FOR name IN SELECT indexrelid::regclass FROM pg_index
                WHERE indrelid = '{new}'::regclass AND strpos(indexrelid::regclass::text, '{old}') > 0
            LOOP
                EXECUTE format('ALTER INDEX %I RENAME TO %I', name, replace(name, '{old}', '{new}'));
            END LOOP;
        END $$
    """)
    op.execute(f"ALTER SEQUENCE {old}_id_seq RENAME TO {new}_id_seq")
    op.execute(f"ALTER TRIGGER {old}_stay ON {new} RENAME TO {new}_stay")
