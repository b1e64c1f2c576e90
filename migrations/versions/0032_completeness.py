"""Whether more images of a study are expected, and what its associations have to do with it.

Revision ID: 0032
Revises: 0031
"""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None

COLUMNS = {
    "completeness": "varchar(16) NOT NULL DEFAULT 'complete'",
    "completeness_since": "timestamptz",
    "last_received_at": "timestamptz",
    "expected_images": "integer",
}
INDEX = "ix_studies_receiving"
CHECK = "CHECK (completeness IN ('receiving', 'complete', 'forced'))"


def upgrade() -> None:
    """Columns with constant defaults touch no row: the studies that are there are complete.

    What stands outside the transaction may run again after it was cut off.
    """
    for name, kind in COLUMNS.items():
        op.execute(f"ALTER TABLE studies ADD COLUMN IF NOT EXISTS {name} {kind}")
    op.create_table(
        "dicom_sendings",
        sa.Column("association_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("peer_id", sa.Uuid(), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("released", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True)),
        sa.Column("answered_at", sa.DateTime(timezone=True)),
        sa.Column("counted", sa.Integer()),
        sa.PrimaryKeyConstraint("association_id", "study_id", name=op.f("pk_dicom_sendings")),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name=op.f("fk_dicom_sendings_study_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["peer_id"], ["dicom_peers.id"], name=op.f("fk_dicom_sendings_peer_id"), ondelete="CASCADE"
        ),
        if_not_exists=True,
    )
    for column in ("study_id", "peer_id"):
        op.create_index(op.f(f"ix_dicom_sendings_{column}"), "dicom_sendings", [column], if_not_exists=True)
    name = "ck_studies_completeness"
    op.execute(f"ALTER TABLE studies DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} {CHECK} NOT VALID")
    op.execute(f"ALTER TABLE studies VALIDATE CONSTRAINT {name}")
    with op.get_context().autocommit_block():
        # what an interrupted build left is dropped first: IF NOT EXISTS would take it for whole
        broken = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"
        if op.get_bind().scalar(sa.text(broken), {"name": INDEX}):
            op.drop_index(INDEX, table_name="studies", postgresql_concurrently=True, if_exists=True)
        op.create_index(
            INDEX, "studies", ["id"], postgresql_where=sa.text("completeness = 'receiving'"),
            postgresql_concurrently=True, if_not_exists=True,
        )  # fmt: skip


def downgrade() -> None:
    """Undo it; which studies were being received is forgotten."""
    op.drop_table("dicom_sendings")
    op.drop_index(INDEX, "studies")
    for name in COLUMNS:
        op.drop_column("studies", name)
