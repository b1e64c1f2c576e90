"""Operators beside admins, keys that expire, logins that the server ends, and events of security.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

FAILED = sa.text("kind IN ('login-failed', 'key-refused')")


def upgrade() -> None:
    """New columns and tables; names of keys become unique at their site."""
    op.add_column("api_keys", sa.Column("operates", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("api_keys", sa.Column("expires_at", sa.DateTime(timezone=True)))
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True)))
    # where there is one site, whoever administers it went on administering everything; see ADR 35
    op.execute("UPDATE api_keys SET operates = true WHERE role = 'admin' AND (SELECT count(*) FROM sites) = 1")
    # of keys with one name the valid one keeps it, then the oldest; names that are taken are passed by
    op.execute("""
        DO $$
        DECLARE
            double record;
            number integer;
            base text;
        BEGIN
            FOR double IN
                SELECT id, site_id, name FROM (
                    SELECT id, site_id, name, row_number() OVER (
                        PARTITION BY site_id, name ORDER BY revoked_at IS NOT NULL, created_at, id
                    ) AS place FROM api_keys
                ) AS placed WHERE place > 1 ORDER BY site_id, name, place
            LOOP
                number := 2;
                base := left(double.name, 54);
                WHILE EXISTS (
                    SELECT FROM api_keys WHERE site_id = double.site_id AND name = base || ' (' || number || ')'
                ) LOOP
                    number := number + 1;
                END LOOP;
                UPDATE api_keys SET name = base || ' (' || number || ')' WHERE id = double.id;
            END LOOP;
        END $$
    """)
    op.create_unique_constraint("uq_api_keys_site_id_name", "api_keys", ["site_id", "name"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("key_id", sa.Uuid(), sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("address", sa.String(45), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("active_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("ended_for", sa.String(16)),
        sa.CheckConstraint(
            "ended_for IN ('logged-out', 'idle', 'revoked', 'expired', 'old')", name="ck_sessions_ended_for"
        ),
    )
    op.create_index("ix_sessions_key_id", "sessions", ["key_id"])
    op.create_table(
        "key_addresses",
        sa.Column("key_id", sa.Uuid(), sa.ForeignKey("api_keys.id"), primary_key=True),
        sa.Column("address", sa.String(45), primary_key=True),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_table(
        "security_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("site_id", sa.Uuid(), sa.ForeignKey("sites.id")),
        sa.Column("key_id", sa.Uuid(), sa.ForeignKey("api_keys.id")),
        sa.Column("address", sa.String(45), nullable=False, server_default=""),
        sa.Column("network", sa.String(49), nullable=False, server_default=""),
        sa.Column("study_id", sa.Uuid()),
        sa.Column("detail", JSONB(), nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.CheckConstraint(
            "kind IN ('login', 'logout', 'login-failed', 'key-refused', 'throttled', 'new-address', 'key-made', "
            "'key-revoked', 'model-stored', 'model-activated', 'model-shadowed', 'model-retired', 'export', "
            "'study-deleted', 'image-deleted', 'setting-changed')",
            name="ck_security_events_kind",
        ),
    )
    op.create_index("ix_security_events_site_id_id", "security_events", ["site_id", "id"])
    op.create_index("ix_security_events_failed_from", "security_events", ["network", "at"], postgresql_where=FAILED)
    op.create_index("ix_security_events_failed_by", "security_events", ["key_id", "at"], postgresql_where=FAILED)
    op.execute("""
        CREATE FUNCTION refuse_change_of_events() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'events of security are never changed or removed'
                USING ERRCODE = 'restrict_violation';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER security_events_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON security_events
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_events()
    """)


def downgrade() -> None:
    """Undo it. An operator's key is revoked: the code before knows no such role, and it must not become an admin's."""
    op.drop_table("security_events")
    op.execute("DROP FUNCTION refuse_change_of_events()")
    op.drop_table("key_addresses")
    op.drop_table("sessions")
    op.drop_constraint("uq_api_keys_site_id_name", "api_keys")
    op.execute("""
        UPDATE api_keys SET role = 'submitter', revoked_at = coalesce(revoked_at, now()) WHERE role = 'operator'
    """)
    for column in ("operates", "expires_at", "last_used_at"):
        op.drop_column("api_keys", column)
