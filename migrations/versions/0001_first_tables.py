"""First tables

Before you commit this: is it safe while the old code still runs? Add columns as nullable or with a server default;
make indexes of large tables with postgresql_concurrently=True in a migration of their own; drop a column only one
release after the last code that reads it. `pytest tests/integration/test_migrations.py` checks schema and downgrade.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0001'
down_revision = None


def upgrade() -> None:
    """First tables."""
    op.create_table('backlog_runs',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('night', sa.Date(), nullable=False),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('finished_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('failed', sa.Integer(), nullable=False),
    sa.Column('stranded', sa.Integer(), nullable=False),
    sa.Column('outdated', sa.Integer(), nullable=False),
    sa.Column('bundle', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_backlog_runs')),
    sa.UniqueConstraint('night', name=op.f('uq_backlog_runs_night'))
    )
    op.create_table('bundles',
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('manifest', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('active', sa.Boolean(), nullable=False),
    sa.Column('added_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_bundles'))
    )
    op.create_index('uq_bundles_active', 'bundles', ['active'], unique=True, postgresql_where=sa.text('active'))
    op.create_table('sites',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('name', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_sites')),
    sa.UniqueConstraint('name', name=op.f('uq_sites_name'))
    )
    op.create_table('api_keys',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('site_id', sa.Uuid(), nullable=False),
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('role', sa.String(length=16), nullable=False),
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('revoked_at', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['site_id'], ['sites.id'], name=op.f('fk_api_keys_site_id')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_api_keys')),
    sa.UniqueConstraint('sha256', name=op.f('uq_api_keys_sha256'))
    )
    op.create_table('studies',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('site_id', sa.Uuid(), nullable=False),
    sa.Column('study_instance_uid', sa.String(length=64), nullable=False),
    sa.Column('priority', sa.String(length=16), nullable=False),
    sa.Column('status', sa.String(length=16), nullable=False),
    sa.Column('received_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('queue', sa.String(length=16), nullable=False),
    sa.Column('sent_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('attempts', sa.Integer(), nullable=False),
    sa.Column('not_before', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_token', sa.Uuid(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('analysed_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('reason', sa.String(), nullable=False),
    sa.Column('due_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('modality', sa.String(length=16), nullable=False),
    sa.Column('call', sa.String(length=16), nullable=True),
    sa.Column('severity', sa.String(length=16), nullable=True),
    sa.Column('region', sa.String(length=32), nullable=False),
    sa.Column('fracture_probability', sa.Double(), nullable=True),
    sa.Column('scope', sa.String(), nullable=False),
    sa.Column('bundle', sa.String(), nullable=False),
    sa.Column('images', sa.Integer(), nullable=False),
    sa.Column('failed_images', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['site_id'], ['sites.id'], name=op.f('fk_studies_site_id')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_studies')),
    sa.UniqueConstraint('site_id', 'study_instance_uid', name=op.f('uq_studies_site_id_study_instance_uid'))
    )
    op.create_index('ix_studies_bundle', 'studies', ['bundle'], unique=False)
    op.create_index('ix_studies_open', 'studies', ['status', 'sent_at'], unique=False, postgresql_where=sa.text("status <> 'analysed'"))
    op.create_index('ix_studies_worklist', 'studies', ['site_id', 'due_at', 'id'], unique=False)
    op.create_table('uploads',
    sa.Column('site_id', sa.Uuid(), nullable=False),
    sa.Column('idempotency_key', sa.String(length=128), nullable=False),
    sa.Column('content_sha256', sa.String(length=64), nullable=False),
    sa.Column('receipt', sa.LargeBinary(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['site_id'], ['sites.id'], name=op.f('fk_uploads_site_id')),
    sa.PrimaryKeyConstraint('site_id', 'idempotency_key', name=op.f('pk_uploads'))
    )
    op.create_table('identities',
    sa.Column('study_id', sa.Uuid(), nullable=False),
    sa.Column('ciphertext', sa.LargeBinary(), nullable=False),
    sa.ForeignKeyConstraint(['study_id'], ['studies.id'], name=op.f('fk_identities_study_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('study_id', name=op.f('pk_identities'))
    )
    op.create_table('identity_reads',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('study_id', sa.Uuid(), nullable=False),
    sa.Column('key_id', sa.Uuid(), nullable=False),
    sa.Column('read_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['key_id'], ['api_keys.id'], name=op.f('fk_identity_reads_key_id')),
    sa.ForeignKeyConstraint(['study_id'], ['studies.id'], name=op.f('fk_identity_reads_study_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_identity_reads'))
    )
    op.create_index(op.f('ix_identity_reads_study_id'), 'identity_reads', ['study_id'], unique=False)
    op.create_table('instances',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('site_id', sa.Uuid(), nullable=False),
    sa.Column('study_id', sa.Uuid(), nullable=False),
    sa.Column('sop_instance_uid', sa.String(length=64), nullable=False),
    sa.Column('sop_class_uid', sa.String(length=64), nullable=False),
    sa.Column('transfer_syntax_uid', sa.String(length=64), nullable=False),
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('modality', sa.String(length=16), nullable=False),
    sa.Column('body_part', sa.String(length=16), nullable=False),
    sa.Column('rows', sa.Integer(), nullable=False),
    sa.Column('columns', sa.Integer(), nullable=False),
    sa.Column('frames', sa.Integer(), nullable=False),
    sa.Column('received_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('error_reason', sa.String(), nullable=False),
    sa.Column('error_text', sa.String(), nullable=False),
    sa.ForeignKeyConstraint(['site_id'], ['sites.id'], name=op.f('fk_instances_site_id')),
    sa.ForeignKeyConstraint(['study_id'], ['studies.id'], name=op.f('fk_instances_study_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_instances')),
    sa.UniqueConstraint('site_id', 'sop_instance_uid', name=op.f('uq_instances_site_id_sop_instance_uid'))
    )
    op.create_index(op.f('ix_instances_study_id'), 'instances', ['study_id'], unique=False)
    op.create_table('findings',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('instance_id', sa.Uuid(), nullable=False),
    sa.Column('frame', sa.Integer(), nullable=False),
    sa.Column('bundle', sa.String(), nullable=False),
    sa.Column('region', sa.String(length=32), nullable=False),
    sa.Column('region_probability', sa.Double(), nullable=False),
    sa.Column('fracture_probability', sa.Double(), nullable=False),
    sa.Column('call', sa.String(length=16), nullable=False),
    sa.Column('severity', sa.String(length=16), nullable=False),
    sa.Column('scope', sa.String(), nullable=False),
    sa.Column('heatmap', sa.LargeBinary(), nullable=False),
    sa.Column('heatmap_height', sa.Integer(), nullable=False),
    sa.Column('heatmap_width', sa.Integer(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['bundle'], ['bundles.name'], name=op.f('fk_findings_bundle')),
    sa.ForeignKeyConstraint(['instance_id'], ['instances.id'], name=op.f('fk_findings_instance_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_findings')),
    sa.UniqueConstraint('instance_id', 'frame', 'bundle', name=op.f('uq_findings_instance_id_frame_bundle'))
    )


def downgrade() -> None:
    """Undo it."""
    op.drop_table('findings')
    op.drop_index(op.f('ix_instances_study_id'), table_name='instances')
    op.drop_table('instances')
    op.drop_index(op.f('ix_identity_reads_study_id'), table_name='identity_reads')
    op.drop_table('identity_reads')
    op.drop_table('identities')
    op.drop_table('uploads')
    op.drop_index('ix_studies_worklist', table_name='studies')
    op.drop_index('ix_studies_open', table_name='studies', postgresql_where=sa.text("status <> 'analysed'"))
    op.drop_index('ix_studies_bundle', table_name='studies')
    op.drop_table('studies')
    op.drop_table('api_keys')
    op.drop_table('sites')
    op.drop_index('uq_bundles_active', table_name='bundles', postgresql_where=sa.text('active'))
    op.drop_table('bundles')
    op.drop_table('backlog_runs')
