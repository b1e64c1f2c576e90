"""Studies and images can be deleted: what remains of them, and whose bytes the store has to let go.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY


revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# as they were then: a migration that was released does not follow the code
REASONS = "'wrong-patient', 'sent-by-mistake', 'patient-asked', 'test', 'unusable', 'other'"




def upgrade() -> None:
    """New tables; entries of the ledger and of the audit outlive their study."""
    op.create_table(
        "deletions",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("site_id", sa.Uuid(), sa.ForeignKey("sites.id"), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("whole", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=True),
        sa.Column("key_id", sa.Uuid(), sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("answers", sa.Integer(), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
        sa.CheckConstraint(f"reason IN ({REASONS})", name="ck_deletions_reason"),
    )
    op.create_index("ix_deletions_site_id_deleted_at", "deletions", ["site_id", "deleted_at"])
    op.create_table(
        "left_objects",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("frames", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("passes", sa.SmallInteger(), nullable=False, server_default="0"),
    )
    op.create_index("ix_left_objects_due_at", "left_objects", ["due_at"])
    op.drop_constraint("fk_identity_reads_study_id", "identity_reads")
    op.alter_column("held_files", "study_id", nullable=True)
    op.add_column("uploads", sa.Column("study_ids", ARRAY(sa.Uuid()), nullable=False, server_default=sa.text("'{}'")))
    op.add_column("answers", sa.Column("words_sha256", sa.String(64), nullable=True))
    op.drop_constraint("fk_answers_study_id", "answers")
    op.drop_constraint("fk_answers_instance_id", "answers")
    op.execute("DROP TRIGGER answers_stay ON answers")
    op.execute("""
        CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
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
            RAISE EXCEPTION 'entries of the ledger are never changed: add one that supersedes it'
                USING ERRCODE = 'restrict_violation';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER answers_stay BEFORE UPDATE OR DELETE ON answers
            FOR EACH ROW EXECUTE FUNCTION refuse_change()
    """)
    op.execute("""
        CREATE TRIGGER answers_stay_all BEFORE TRUNCATE ON answers
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """)


def downgrade() -> None:
    """Undo it; what was deleted stays deleted, and its audit and its held files go."""
    op.execute("DROP TRIGGER answers_stay_all ON answers")
    op.execute("DROP TRIGGER answers_stay ON answers")
    op.execute("""
        CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'entries of the ledger are never changed: add one that supersedes it'
                USING ERRCODE = 'restrict_violation';
        END $$
    """)
    op.drop_column("answers", "words_sha256")
    op.create_foreign_key("fk_answers_study_id", "answers", "studies", ["study_id"], ["id"], postgresql_not_valid=True)
    op.create_foreign_key(
        "fk_answers_instance_id", "answers", "instances", ["instance_id"], ["id"], postgresql_not_valid=True
    )
    op.execute("""
        CREATE TRIGGER answers_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON answers
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """)
    op.drop_column("uploads", "study_ids")
    op.execute("DELETE FROM held_files WHERE study_id IS NULL")
    op.alter_column("held_files", "study_id", nullable=False)
    op.execute("DELETE FROM identity_reads WHERE study_id NOT IN (SELECT id FROM studies)")
    op.create_foreign_key(
        "fk_identity_reads_study_id", "identity_reads", "studies", ["study_id"], ["id"], ondelete="CASCADE"
    )
    op.drop_table("left_objects")
    op.drop_table("deletions")
