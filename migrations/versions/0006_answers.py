"""What readers answered: a ledger that Postgres itself keeps from being changed.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "answers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("instance_id", sa.Uuid(), nullable=True),
        sa.Column("frame", sa.Integer(), nullable=True),
        sa.Column("bundle", sa.String(), nullable=True),
        sa.Column("fracture", sa.String(16), nullable=True),
        sa.Column("region", sa.String(32), nullable=True),
        sa.Column("severity", sa.String(16), nullable=True),
        sa.Column("marks", JSONB(), nullable=False),
        sa.Column("words", sa.LargeBinary(), nullable=True),
        sa.Column("model_shown", sa.Boolean(), nullable=False),
        sa.Column("supersedes", sa.Uuid(), nullable=True),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_answers_site_id"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_answers_study_id"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_answers_key_id"),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name="fk_answers_instance_id"),
        sa.ForeignKeyConstraint(["bundle"], ["bundles.name"], name="fk_answers_bundle"),
        sa.ForeignKeyConstraint(["supersedes"], ["answers.id"], name="fk_answers_supersedes"),
        sa.PrimaryKeyConstraint("id", name="pk_answers"),
        sa.UniqueConstraint("site_id", "number", name="uq_answers_site_id_number"),
        sa.UniqueConstraint("site_id", "request_id", name="uq_answers_site_id_request_id"),
        sa.UniqueConstraint("supersedes", name="uq_answers_supersedes"),
    )
    op.create_index("ix_answers_study_id", "answers", ["study_id"])
    op.create_index("ix_answers_instance_id", "answers", ["instance_id"])
    op.create_index("ix_answers_site_id_answered_at", "answers", ["site_id", "answered_at"])
    op.execute("""
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'entries of the ledger are never changed: add one that supersedes it'
                USING ERRCODE = 'restrict_violation';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER answers_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON answers
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """)


def downgrade() -> None:
    op.drop_table("answers")
    op.execute("DROP FUNCTION refuse_change()")
