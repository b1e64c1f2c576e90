"""Messages: destinations of HL7 and webhooks, the notices that they are told, and their deliveries.

Revision ID: 0039
Revises: 0038
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
CLOCK, NOTHING, NONE = sa.text("clock_timestamp()"), sa.text("''"), sa.text("'{}'")
KINDS, NEW_KINDS = ("dicom", "dicom-tls", "stow", "folder"), ("hl7", "hl7-tls", "webhook")
REASONS = (
    "unreachable", "unknown-name", "rejected-for-now", "no-answer", "cut", "busy", "full", "store-unavailable",
    "rejected", "nothing-taken", "refused", "certificate", "access", "bad-address", "no-folder", "object-missing",
    "gave-up", "patient-differs", "study-gone", "not-sent",
)  # fmt: skip
NEW_REASONS = (
    "unintelligible", "no-key", "no-accession-number", "not-encodable", "no-header", "address-not-allowed",
)  # fmt: skip
EVENTS = ("study.analysed", "study.quarantined", "study.revised", "study.read")
CHARACTER_SETS = ("ASCII", "8859/1", "8859/2", "8859/5", "8859/7", "8859/9", "8859/15", "UNICODE UTF-8")
REASONED = (("destinations", "reason"), ("destinations", "test_reason"), ("deliveries", "reason"))


def upgrade() -> None:
    """New columns have constant defaults, so that no table is rewritten; deliveries of sets stay as they are."""
    for name in ("application", "facility", "sending_facility"):
        op.add_column("destinations", _text(name, 64))
    op.add_column("destinations", _text("sending_application", 64, "'OSTEON'"))
    op.add_column("destinations", _text("character_set", 16, "'UNICODE UTF-8'"))
    op.add_column("destinations", _text("accession", 16, "'filler'"))
    op.add_column("destinations", _text("processing", 1, "'P'"))
    op.add_column("destinations", sa.Column("probability", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("destinations", _text("networks", 512))
    op.add_column(
        "destinations", sa.Column("secret_number", sa.Integer(), server_default=sa.text("1"), nullable=False)
    )
    op.add_column("destinations", sa.Column("former_secret_until", TIME))
    for column, codes in (
        ("character_set", CHARACTER_SETS), ("accession", ("filler", "placer", "both")), ("processing", ("P", "T", "D"))
    ):  # fmt: skip
        op.create_check_constraint(op.f(f"ck_destinations_{column}"), "destinations", _one_of(column, codes))
    op.add_column(
        "destination_rules", sa.Column("events", sa.ARRAY(sa.String(24)), server_default=NONE, nullable=False)
    )
    listed = ", ".join(f"'{event}'" for event in EVENTS)
    op.create_check_constraint(
        op.f("ck_destination_rules_events"), "destination_rules", f"events <@ ARRAY[{listed}]::varchar[]"
    )
    op.create_table(
        "notices",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("event", sa.String(24), nullable=False),
        _text("when", 16),
        sa.Column("happened_at", TIME, server_default=CLOCK, nullable=False),
        _text("state", 16, "'waiting'"),
        sa.Column("told", JSONB()),
        sa.PrimaryKeyConstraint("id", name="pk_notices"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_notices_site_id"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_notices_study_id", ondelete="CASCADE"),
        sa.CheckConstraint(_one_of("event", EVENTS), name="ck_notices_event"),
        sa.CheckConstraint(_one_of('"when"', ("", "analysed", "complete", "agreed")), name="ck_notices_when"),
        sa.CheckConstraint(
            _one_of("state", ("waiting", "told", "not-wanted", "withdrawn")), name="ck_notices_state"
        ),
    )
    op.create_index(
        "ix_notices_waiting", "notices", ["happened_at", "id"], postgresql_where=sa.text("state = 'waiting'")
    )
    op.create_index("ix_notices_study_id", "notices", ["study_id", "happened_at"])
    op.alter_column("deliveries", "set_id", existing_type=sa.Uuid(), nullable=True)
    op.add_column("deliveries", sa.Column("notice_id", sa.Uuid()))
    op.create_foreign_key(
        "fk_deliveries_notice_id", "deliveries", "notices", ["notice_id"], ["id"], ondelete="CASCADE"
    )
    op.create_unique_constraint(
        "uq_deliveries_notice_id_destination_id", "deliveries", ["notice_id", "destination_id"]
    )
    _check("deliveries", "ck_deliveries_subject", "num_nonnulls(set_id, notice_id) = 1", anew=True)
    _check("destinations", "ck_destinations_kind", _one_of("kind", (*KINDS, *NEW_KINDS)))
    for table, column in REASONED:
        _check(table, f"ck_{table}_{column}", _one_of(column, ("", *REASONS, *NEW_REASONS)))


def downgrade() -> None:
    """Undo it: destinations of messages go, with what was told to them."""
    op.execute(f"DELETE FROM destinations WHERE {_one_of('kind', NEW_KINDS)}")
    op.execute("DELETE FROM deliveries WHERE notice_id IS NOT NULL")
    for table, column in REASONED:
        op.execute(f"UPDATE {table} SET {column} = '' WHERE {_one_of(column, NEW_REASONS)}")
        _check(table, f"ck_{table}_{column}", _one_of(column, ("", *REASONS)))
    _check("destinations", "ck_destinations_kind", _one_of("kind", KINDS))
    op.drop_constraint(op.f("ck_deliveries_subject"), "deliveries")
    op.drop_column("deliveries", "notice_id")
    op.alter_column("deliveries", "set_id", existing_type=sa.Uuid(), nullable=False)
    op.drop_table("notices")
    op.drop_column("destination_rules", "events")
    for name in (
        "application", "facility", "sending_facility", "sending_application", "character_set", "accession",
        "processing", "probability", "networks", "secret_number", "former_secret_until",
    ):  # fmt: skip
        op.drop_column("destinations", name)


def _text(name: str, length: int, default: str = "''") -> sa.Column:
    return sa.Column(name, sa.String(length), server_default=sa.text(default), nullable=False)


def _one_of(column: str, codes: tuple[str, ...]) -> str:
    listed = ", ".join(f"'{code}'" for code in codes)
    return f"{column} IN ({listed})"


def _check(table: str, name: str, condition: str, *, anew: bool = False) -> None:
    """Replace a constraint, or make it; rows are checked without a lock that others wait for."""
    dropped = "" if anew else f"DROP CONSTRAINT {name}, "
    op.execute(f"ALTER TABLE {table} {dropped}ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID")
    op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
