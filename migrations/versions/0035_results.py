"""Results that leave Osteon: destinations with their rules, the outbox, objects and deliveries; a study's sender.

Revision ID: 0035
Revises: 0034
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
CLOCK, NOW, NOTHING, NONE = sa.text("clock_timestamp()"), sa.text("now()"), sa.text("''"), sa.text("'{}'")
EVENTS = (
    "login", "logout", "login-failed", "key-refused", "throttled", "new-address", "site-made", "key-made",
    "key-revoked", "model-stored", "model-activated", "model-shadowed", "model-retired", "export", "study-released",
    "study-dismissed", "study-deleted", "image-deleted", "held-decided", "setting-changed", "run-begun",
    "identity-key-accepted", "schema-changed", "peer-admitted", "peer-changed", "peer-disabled", "peer-enabled",
    "instances-rejected",
)  # fmt: skip
NEW_EVENTS = (
    "destination-added", "destination-changed", "destination-disabled", "destination-enabled", "delivery-retried",
    "results-asked",
)  # fmt: skip
SUBJECTS = (
    "site", "key", "model", "study", "image", "held-file", "setting", "run", "database", "dicom-peer",
)  # fmt: skip
KINDS = (
    "sc-overlay", "sc-summary", "sr-outlines", "sr-statements", "sr-outlines-2d", "sr-statements-2d", "pdf", "gsps"
)  # fmt: skip
REASONS = (
    "unreachable", "unknown-name", "rejected-for-now", "no-answer", "cut", "busy", "full", "store-unavailable",
    "rejected", "nothing-taken", "refused", "certificate", "access", "bad-address", "no-folder", "object-missing",
    "gave-up", "patient-differs", "study-gone", "not-sent",
)  # fmt: skip
SET_REASONS = (
    "no-rule", "not-analysed", "contradicted", "same-assessment", "never-sent", "source-lacks", "not-made",
    "store-unavailable",
)  # fmt: skip
TABLES = ("delivery_objects", "deliveries", "result_objects", "result_sets", "destination_rules", "destinations")


def upgrade() -> None:
    """Make the tables, let audits name their events, and let studies name their sender."""
    op.add_column("studies", sa.Column("sender", sa.String(128), server_default=NOTHING, nullable=False))
    op.create_table(
        "destinations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        _text("host", 253),
        sa.Column("port", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _text("called_ae", 16),
        _text("calling_ae", 16),
        _text("tls_fingerprint", 64),
        _text("url", 512),
        _text("folder", 64),
        sa.Column("confirm", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("capabilities", JSONB(), server_default=NONE, nullable=False),
        sa.Column("added_at", TIME, server_default=NOW, nullable=False),
        sa.Column("disabled_at", TIME),
        sa.Column("lease_token", sa.Uuid()),
        sa.Column("lease_until", TIME),
        sa.Column("not_before", TIME),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _text("reason", 24),
        sa.Column("test_asked_at", TIME),
        sa.Column("tested_at", TIME),
        _text("test_reason", 24),
        _text("test_status", 16),
        _text("test_words", 200),
        sa.PrimaryKeyConstraint("id", name="pk_destinations"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_destinations_site_id"),
        sa.UniqueConstraint("site_id", "name", name="uq_destinations_site_id_name"),
        _one_of("destinations", "kind", ("dicom", "dicom-tls", "stow", "folder")),
        _one_of("destinations", "reason", ("", *REASONS)),
        _one_of("destinations", "test_reason", ("", *REASONS)),
        sa.CheckConstraint("port BETWEEN 0 AND 65535", name="ck_destinations_port"),
    )
    op.create_table(
        "destination_rules",
        sa.Column("destination_id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.SmallInteger(), nullable=False),
        sa.Column("when", sa.String(16), nullable=False),
        sa.Column("kinds", sa.ARRAY(sa.String(24)), nullable=False),
        sa.Column("senders", sa.ARRAY(sa.String(128)), server_default=NONE, nullable=False),
        sa.Column("regions", sa.ARRAY(sa.String(32)), server_default=NONE, nullable=False),
        sa.Column("assessments", sa.ARRAY(sa.String(16)), server_default=NONE, nullable=False),
        sa.Column("age_from", sa.Integer()),
        sa.Column("age_to", sa.Integer()),
        sa.Column("hour_from", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("hour_to", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("newer_models", sa.String(16), server_default="changed", nullable=False),
        sa.PrimaryKeyConstraint("destination_id", "place", name="pk_destination_rules"),
        _cascade("destination_rules", "destination_id", "destinations"),
        _one_of("destination_rules", "when", ("analysed", "complete", "agreed"), '"when"'),
        _one_of("destination_rules", "newer_models", ("changed", "all")),
        _known_kinds("destination_rules"),
        sa.CheckConstraint(
            "hour_from BETWEEN 0 AND 23 AND hour_to BETWEEN 0 AND 23", name="ck_destination_rules_hours"
        ),
    )
    op.create_table(
        "result_sets",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("occasion", sa.String(16), nullable=False),
        sa.Column("destination_id", sa.Uuid()),
        sa.Column("kinds", sa.ARRAY(sa.String(24))),
        sa.Column("due_at", TIME, server_default=CLOCK, nullable=False),
        sa.Column("state", sa.String(16), server_default="waiting", nullable=False),
        _text("reason", 24),
        _text("reason_detail", 128),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_at", TIME, server_default=CLOCK, nullable=False),
        sa.Column("lease_token", sa.Uuid()),
        sa.Column("lease_until", TIME),
        sa.Column("made_at", TIME),
        _text("digest", 64),
        sa.Column("stated_at", TIME),
        sa.Column("made_kinds", sa.ARRAY(sa.String(24)), server_default=NONE, nullable=False),
        sa.Column("replaces", JSONB()),
        _text("assessment", 16),
        sa.PrimaryKeyConstraint("id", name="pk_result_sets"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_result_sets_site_id"),
        _cascade("result_sets", "study_id", "studies"),
        _cascade("result_sets", "destination_id", "destinations"),
        _one_of(
            "result_sets", "occasion", ("analysed", "complete", "agreed", "newer-model", "asked", "class-refused")
        ),
        _one_of(
            "result_sets", "state", ("waiting", "made", "repeated", "not-wanted", "withdrawn", "failed")
        ),
        _one_of("result_sets", "reason", ("", *SET_REASONS)),
        _one_of("result_sets", "assessment", ("", "negative", "unclear", "positive", "abstained")),
        _known_kinds("result_sets"),
    )
    op.create_index("ix_result_sets_waiting", "result_sets", ["next_at", "id"], postgresql_where=sa.text("state = 'waiting'"))
    op.create_index("ix_result_sets_study_id", "result_sets", ["study_id", "due_at"])
    op.create_index(
        "ix_result_sets_destination_id", "result_sets", ["destination_id"],
        postgresql_where=sa.text("destination_id IS NOT NULL"),
    )  # fmt: skip
    op.create_table(
        "result_objects",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("set_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(24), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("sop_class_uid", sa.String(64), nullable=False),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("made_at", TIME, server_default=CLOCK, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_result_objects"),
        _cascade("result_objects", "study_id", "studies"),
        _cascade("result_objects", "set_id", "result_sets"),
        sa.UniqueConstraint("study_id", "sop_instance_uid", name="uq_result_objects_study_id_sop_instance_uid"),
        _one_of("result_objects", "kind", KINDS),
    )
    op.create_index("ix_result_objects_set_id", "result_objects", ["set_id"])
    op.create_index("ix_result_objects_sha256", "result_objects", ["sha256"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("set_id", sa.Uuid(), nullable=False),
        sa.Column("destination_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.String(16), server_default="waiting", nullable=False),
        sa.Column("created_at", TIME, server_default=CLOCK, nullable=False),
        sa.Column("next_at", TIME, server_default=CLOCK, nullable=False),
        sa.Column("tried_until", TIME, nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _text("reason", 24),
        _text("status", 16),
        _text("words", 200),
        sa.Column("unchecked", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("sent_at", TIME),
        _text("commitment_uid", 64),
        sa.Column("confirmed_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_deliveries_site_id"),
        _cascade("deliveries", "study_id", "studies"),
        _cascade("deliveries", "set_id", "result_sets"),
        _cascade("deliveries", "destination_id", "destinations"),
        sa.UniqueConstraint("set_id", "destination_id", name="uq_deliveries_set_id_destination_id"),
        _one_of("deliveries", "state", ("waiting", "sent", "held", "failed", "superseded", "withdrawn")),
        _one_of("deliveries", "reason", ("", *REASONS)),
    )
    op.create_index(
        "ix_deliveries_waiting", "deliveries", ["destination_id", "next_at", "id"],
        postgresql_where=sa.text("state = 'waiting'"),
    )  # fmt: skip
    op.create_index(
        "ix_deliveries_undelivered", "deliveries", ["site_id", "state", "created_at"],
        postgresql_where=sa.text("state IN ('failed', 'held')"),
    )  # fmt: skip
    op.create_index("ix_deliveries_study_id", "deliveries", ["study_id", "created_at"])
    op.create_index(
        "ix_deliveries_commitment_uid", "deliveries", ["commitment_uid"],
        postgresql_where=sa.text("commitment_uid <> ''"),
    )  # fmt: skip
    op.create_table(
        "delivery_objects",
        sa.Column("delivery_id", sa.Uuid(), nullable=False),
        sa.Column("object_id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.SmallInteger(), nullable=False),
        sa.Column("accepted_at", TIME),
        sa.Column("refused", sa.Boolean(), server_default=sa.false(), nullable=False),
        _text("status", 16),
        sa.PrimaryKeyConstraint("delivery_id", "object_id", name="pk_delivery_objects"),
        _cascade("delivery_objects", "delivery_id", "deliveries"),
        _cascade("delivery_objects", "object_id", "result_objects"),
    )
    op.create_index("ix_delivery_objects_object_id", "delivery_objects", ["object_id"])
    _check("kind", (*EVENTS, *NEW_EVENTS))
    _check("subject_kind", (*SUBJECTS, "destination"))


def downgrade() -> None:
    """Undo it. The objects stay, as instances of their studies that are not analysed."""
    listed = ", ".join(f"'{kind}'" for kind in NEW_EVENTS)
    op.execute("ALTER TABLE audit_events DISABLE TRIGGER USER")
    op.execute(f"DELETE FROM audit_events WHERE kind IN ({listed})")
    op.execute("ALTER TABLE audit_events ENABLE TRIGGER USER")
    _check("kind", EVENTS)
    _check("subject_kind", SUBJECTS)
    for table in TABLES:
        op.drop_table(table)
    op.drop_column("studies", "sender")


def _text(name: str, length: int) -> sa.Column:
    return sa.Column(name, sa.String(length), server_default=NOTHING, nullable=False)


def _cascade(table: str, column: str, of: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{of}.id"], name=f"fk_{table}_{column}", ondelete="CASCADE")


def _one_of(table: str, column: str, codes: tuple[str, ...], quoted: str = "") -> sa.CheckConstraint:
    listed = ", ".join(f"'{code}'" for code in codes)
    return sa.CheckConstraint(f"{quoted or column} IN ({listed})", name=f"ck_{table}_{column}")


def _known_kinds(table: str) -> sa.CheckConstraint:
    listed = ", ".join(f"'{kind}'" for kind in KINDS)
    return sa.CheckConstraint(f"kinds <@ ARRAY[{listed}]::varchar[]", name=f"ck_{table}_kinds")


def _check(column: str, codes: tuple[str, ...]) -> None:
    name, listed = f"ck_audit_events_{column}", ", ".join(f"'{code}'" for code in codes)
    op.execute(
        f"ALTER TABLE audit_events DROP CONSTRAINT {name}, ADD CONSTRAINT {name} CHECK ({column} IN ({listed})) NOT VALID"
    )
    op.execute(f"ALTER TABLE audit_events VALIDATE CONSTRAINT {name}")
