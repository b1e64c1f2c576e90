"""Series, and what else DICOMweb asks of studies and instances; instances that are kept, or rejected.

Revision ID: 0031
Revises: 0030
"""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None

COLUMNS = {
    "studies": {
        "utc_offset": "varchar(5) NOT NULL DEFAULT ''",
        "filled_version": "smallint NOT NULL DEFAULT 0",
        "kept": "integer NOT NULL DEFAULT 0",
    },
    "instances": {
        "series_id": "uuid",
        "instance_number": "integer",
        "bits_allocated": "smallint NOT NULL DEFAULT 0",
        "kept": "varchar(32) NOT NULL DEFAULT ''",
        "rejected_by_ko": "varchar(16) NOT NULL DEFAULT ''",
    },
}
CONSTRAINTS = {
    "ck_instances_kept": (
        "CHECK (kept IN ('', 'not-an-image', 'colour', 'secondary-capture', 'other-modality', 'own-result'))"
    ),
    "ck_instances_rejected_by_ko": "CHECK (rejected_by_ko IN ('', '113001', '113037', '113038', '113039'))",
    "fk_instances_series_id": "FOREIGN KEY (series_id) REFERENCES series (id) ON DELETE CASCADE",
}


def upgrade() -> None:
    """Columns with constant defaults touch no row; existing studies are filled from their originals by infra.prepare.

    What stands outside the transaction may run again after it was cut off.
    """
    for table, columns in COLUMNS.items():
        for name, kind in columns.items():
            op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} {kind}")
    op.create_table(
        "series",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("series_number", sa.Integer()),
        sa.Column("series_date", sa.Date()),
        sa.Column("series_time", sa.Time()),
        sa.Column("performed_date", sa.Date()),
        sa.Column("performed_time", sa.Time()),
        sa.Column("sealed", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("fk_series_site_id")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_series_study_id"), ondelete="CASCADE"),
        sa.UniqueConstraint(
            "study_id", "series_instance_uid", name=op.f("uq_series_study_id_series_instance_uid")
        ),
        if_not_exists=True,
    )
    for name, what in CONSTRAINTS.items():
        op.execute(f"ALTER TABLE instances DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} {what} NOT VALID")
    for name in CONSTRAINTS:
        op.execute(f"ALTER TABLE instances VALIDATE CONSTRAINT {name}")
    with op.get_context().autocommit_block():
        _build("ix_instances_series_id", "instances", ["series_id"])
        _build("ix_studies_lacking", "studies", ["id"], where="filled_version < 2")
        op.drop_index("ix_studies_unfilled", "studies", postgresql_concurrently=True, if_exists=True)


def downgrade() -> None:
    """Undo it; what the series said is in the stored originals."""
    op.create_index("ix_studies_unfilled", "studies", ["id"], postgresql_where=sa.text("header_version = 0"))
    op.drop_index("ix_studies_lacking", "studies")
    op.drop_index("ix_instances_series_id", "instances")
    for table, columns in COLUMNS.items():
        for name in columns:
            op.drop_column(table, name)
    op.drop_table("series")


def _build(name: str, table: str, columns: list[str], *, where: str | None = None) -> None:
    """Build an index; what an interrupted build left of it is dropped first, IF NOT EXISTS would take it for whole."""
    broken = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"
    if op.get_bind().scalar(sa.text(broken), {"name": name}):
        op.drop_index(name, table_name=table, postgresql_concurrently=True, if_exists=True)
    op.create_index(
        name, table, columns, postgresql_where=sa.text(where) if where else None, postgresql_concurrently=True,
        if_not_exists=True,
    )
