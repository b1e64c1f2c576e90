"""DICOM peers: who may send, what they sent, and callers that were refused.

Revision ID: 0029
Revises: 0028
"""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
KINDS = (
    "'login', 'logout', 'login-failed', 'key-refused', 'throttled', 'new-address', 'site-made', 'key-made', "
    "'key-revoked', 'model-stored', 'model-activated', 'model-shadowed', 'model-retired', 'export', 'study-released', "
    "'study-dismissed', 'study-deleted', 'image-deleted', 'held-decided', 'setting-changed', 'run-begun', "
    "'identity-key-accepted', 'schema-changed'"
)
SUBJECTS = "'site', 'key', 'model', 'study', 'image', 'held-file', 'setting', 'run', 'database'"
NEW_KINDS = "'peer-admitted', 'peer-changed', 'peer-disabled', 'peer-enabled'"
REASONS = "'bad-title', 'calling-ae', 'called-ae', 'address', 'certificate', 'disabled'"


def upgrade() -> None:
    """Make the tables, and let audits name their events."""
    op.create_table(
        "dicom_peers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("called_ae", sa.String(16), nullable=False),
        sa.Column("address", sa.String(49), server_default="", nullable=False),
        sa.Column("tls_fingerprint", sa.String(64), server_default="", nullable=False),
        sa.Column("may_send", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("may_commit", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("query_host", sa.String(253), server_default="", nullable=False),
        sa.Column("query_port", sa.Integer(), server_default="0", nullable=False),
        sa.Column("query_ae", sa.String(16), server_default="", nullable=False),
        sa.Column("silent_after_h", sa.Integer()),
        sa.Column("added_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("disabled_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_dicom_peers"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_dicom_peers_site_id"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_dicom_peers_key_id"),
        sa.UniqueConstraint("key_id", name="uq_dicom_peers_key_id"),
        sa.CheckConstraint("query_port BETWEEN 0 AND 65535", name="ck_dicom_peers_query_port"),
    )
    op.create_index(
        "uq_dicom_peers_calling_ae", "dicom_peers", ["calling_ae", "called_ae", "address", "tls_fingerprint"],
        unique=True,
    )  # fmt: skip
    op.create_index("ix_dicom_peers_site_id", "dicom_peers", ["site_id"])
    op.create_table(
        "dicom_peer_days",
        sa.Column("peer_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("associations", sa.Integer(), server_default="0", nullable=False),
        sa.Column("images", sa.Integer(), server_default="0", nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rejected", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_contact_at", TIME, nullable=False),
        sa.Column("last_images_at", TIME),
        sa.PrimaryKeyConstraint("peer_id", "day", name="pk_dicom_peer_days"),
        sa.ForeignKeyConstraint(
            ["peer_id"], ["dicom_peers.id"], name="fk_dicom_peer_days_peer_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "dicom_callers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("called_ae", sa.String(16), nullable=False),
        sa.Column("address", sa.String(45), nullable=False),
        sa.Column("network", sa.String(49), nullable=False),
        sa.Column("tls_fingerprint", sa.String(64), server_default="", nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("times", sa.Integer(), server_default="1", nullable=False),
        sa.Column("first_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("last_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dicom_callers"),
        sa.CheckConstraint(f"reason IN ({REASONS})", name="ck_dicom_callers_reason"),
    )
    op.create_index(
        "uq_dicom_callers_calling_ae", "dicom_callers", ["calling_ae", "called_ae", "address"], unique=True
    )
    op.create_index("ix_dicom_callers_network", "dicom_callers", ["network"])
    _check("kind", f"{KINDS}, {NEW_KINDS}")
    _check("subject_kind", f"{SUBJECTS}, 'dicom-peer'")


def downgrade() -> None:
    """Undo it. The peers' keys stay, for studies and audits name them; nobody has their secrets."""
    op.execute("ALTER TABLE audit_events DISABLE TRIGGER USER")
    op.execute(f"DELETE FROM audit_events WHERE kind IN ({NEW_KINDS})")
    op.execute("ALTER TABLE audit_events ENABLE TRIGGER USER")
    _check("kind", KINDS)
    _check("subject_kind", SUBJECTS)
    for table in ("dicom_callers", "dicom_peer_days", "dicom_peers"):
        op.drop_table(table)


def _check(column: str, codes: str) -> None:
    name = f"ck_audit_events_{column}"
    op.execute(
        f"ALTER TABLE audit_events DROP CONSTRAINT {name}, ADD CONSTRAINT {name} CHECK ({column} IN ({codes})) NOT VALID"
    )
    op.execute(f"ALTER TABLE audit_events VALIDATE CONSTRAINT {name}")
