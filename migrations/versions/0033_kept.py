"""Studies of which nothing is analysed, and instances that documents reject.

Revision ID: 0033
Revises: 0032
"""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None

REASONS = (
    "", "cannot-understand", "empty-file", "not-dicom", "no-file-meta", "unknown-transfer-syntax",
    "sop-class-not-supported", "no-pixel-data", "bad-attributes", "truncated-pixels", "too-large", "bad-archive",
    "unsupported-pixels", "undecodable-pixels", "decoding-failed", "decoding-timed-out", "decoder-died",
    "decoder-out-of-memory", "store-unavailable", "object-missing", "object-damaged", "database-unavailable",
    "database-locked", "database-full", "part-unavailable", "bad-bundle", "analysis-failed", "worker-died", "no-image",
    "other", "image-unread", "images-missing", "analysed-anew", "speaks-already", "other-bundle", "image-deleted",
)  # fmt: skip
KINDS = (
    "login", "logout", "login-failed", "key-refused", "throttled", "new-address", "site-made", "key-made",
    "key-revoked", "model-stored", "model-activated", "model-shadowed", "model-retired", "export", "study-released",
    "study-dismissed", "study-deleted", "image-deleted", "held-decided", "setting-changed", "run-begun",
    "identity-key-accepted", "schema-changed", "peer-admitted", "peer-changed", "peer-disabled", "peer-enabled",
)  # fmt: skip
STATES = ("queued", "analysed", "quarantined")
CHECKS = {  # by table and column: codes of before, and new ones
    ("studies", "status"): (STATES, ("kept",)),
    ("analyses", "reason"): (REASONS, ("image-rejected",)),
    ("audit_events", "kind"): (KINDS, ("instances-rejected",)),
}
PLACE = ["date_trunc('minute'::text, timezone('UTC'::text, due_at))", "(- COALESCE(score, 0::double precision))", "id"]
SECOND = ("priority", "assessment", "region", "severity")
FILTERS = {
    **{word: word for word in ("status", "assessment", "severity", "region", "priority", "modality")},
    "age": "(width_bucket(age_years, '{18,40,65}'::integer[]))",
}
UNREAD = {
    "ix_studies_unread": ["site_id", *PLACE],
    **{
        f"ix_studies_unread_by_{word}": ["site_id", column, *PLACE, *(other for other in SECOND if other != word)]
        for word, column in FILTERS.items()
    },
}
READ = {
    "ix_studies_read": ["site_id", "read_at", "id"],
    **{f"ix_studies_read_{word}": ["site_id", column, "read_at", "id"] for word, column in FILTERS.items()},
}
INDEXES = {
    **dict.fromkeys(UNREAD, "read_at IS NULL"),
    **dict.fromkeys(READ, "read_at IS NOT NULL"),
}


def upgrade() -> None:
    """New codes, a table, and the lists' indexes without what stands on no list.

    What stands outside the transaction may run again after it was cut off.
    """
    op.create_table(
        "rejected_instances",
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("title", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("instance_id", "sop_instance_uid", name=op.f("pk_rejected_instances")),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instances.id"], name=op.f("fk_rejected_instances_instance_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("fk_rejected_instances_site_id")),
        sa.CheckConstraint(
            "title IN ('113001', '113037', '113038', '113039')", name=op.f("ck_rejected_instances_title")
        ),
        if_not_exists=True,
    )
    op.create_index(
        "ix_rejected_instances_sop_instance_uid", "rejected_instances", ["site_id", "sop_instance_uid"],
        if_not_exists=True,
    )  # fmt: skip
    for (table, column), (before, new) in CHECKS.items():
        _check(table, column, (*before, *new))
    with op.get_context().autocommit_block():
        for name, half in INDEXES.items():
            _rebuild(name, f"{half} AND status <> 'kept'")


def downgrade() -> None:
    """Undo it. Studies of which nothing was analysed become quarantined ones without an image."""
    op.drop_table("rejected_instances")
    op.execute(
        "UPDATE studies SET status = 'quarantined', reason = 'no-image', quarantined_at = received_at "
        "WHERE status = 'kept'"
    )
    op.execute("UPDATE analyses SET reason = 'image-deleted' WHERE reason = 'image-rejected'")
    op.execute("ALTER TABLE audit_events DISABLE TRIGGER USER")
    op.execute("DELETE FROM audit_events WHERE kind = 'instances-rejected'")
    op.execute("ALTER TABLE audit_events ENABLE TRIGGER USER")
    for (table, column), (before, _) in CHECKS.items():
        _check(table, column, before)
    for name, half in INDEXES.items():
        op.drop_index(name, "studies")
        _build(name, name, half, concurrently=False)


def _check(table: str, column: str, codes: tuple[str, ...]) -> None:
    name, listed = f"ck_{table}_{column}", ", ".join(f"'{code}'" for code in codes)
    op.execute(
        f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, "
        f"ADD CONSTRAINT {name} CHECK ({column} IN ({listed})) NOT VALID"
    )
    op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


def _rebuild(name: str, where: str) -> None:
    """Build an index beside the one of its name and put it in that one's place: lists stay fast meanwhile."""
    built = f"{name}_listed"
    bind = op.get_bind()
    done = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name) AND pg_get_indexdef(indexrelid) LIKE '%kept%'"
    if bind.scalar(sa.text(done), {"name": name}):
        return
    op.drop_index(built, "studies", postgresql_concurrently=True, if_exists=True)
    _build(name, built, where, concurrently=True)
    op.drop_index(name, "studies", postgresql_concurrently=True, if_exists=True)
    op.execute(f"ALTER INDEX {built} RENAME TO {name}")


def _build(name: str, called: str, where: str, *, concurrently: bool) -> None:
    columns = [sa.text(column) if "(" in column else column for column in {**UNREAD, **READ}[name]]
    op.create_index(
        called, "studies", columns, postgresql_where=sa.text(where), postgresql_concurrently=concurrently
    )  # fmt: skip
