"""Runs migrations as the tables' owner, each in its own transaction, and gives the application's role its rights.

OSTEON_DATABASE_OWNER_URL is the owner's, OSTEON_DATABASE_URL the application's; where there is only the latter, one
role is both.
"""

import time
from typing import Any

from alembic import context
from sqlalchemy import create_engine, insert, inspect, make_url, pool

from shared.db.engine import MIGRATIONS, connect_arguments
from shared.db.grants import grant
from shared.db.tables import AuditEventRow, Base
from shared.domain.security import EventKind, Subject, System
from shared.settings import Settings, one_sentence


def note(ctx: Any, step: Any, **_: object) -> None:  # noqa: ANN401 - Alembic's
    """Note a step, in its own transaction, in the database of an installation; not of one that is just being made."""
    if begun is None or not inspect(ctx.connection).has_table(AuditEventRow.__tablename__):
        return
    before, after = step.source_revision_ids, step.destination_revision_ids
    ctx.connection.execute(
        insert(AuditEventRow).values(
            kind=EventKind.SCHEMA_CHANGED, actor=System.MIGRATION, subject_kind=Subject.DATABASE, subject_id="schema",
            before={"revision": ", ".join(before)}, after={"revision": ", ".join(after)},
        )
    )  # fmt: skip


with one_sentence():
    config = Settings()
    application = config.database_url.get_secret_value()
    url = config.database_owner_url.get_secret_value() or application

if context.is_offline_mode():
    context.configure(url=url, target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(
        url, poolclass=pool.NullPool, hide_parameters=True, connect_args=connect_arguments(url, MIGRATIONS)
    )
    with engine.connect() as connection:
        # two starts at once must not migrate twice. It is the session's lock, for indexes are built outside
        # transactions, and is asked for again and again: CREATE INDEX CONCURRENTLY would wait for one that waits
        while not connection.exec_driver_sql("SELECT pg_try_advisory_lock(5701)").scalar():
            connection.rollback()
            time.sleep(0.5)
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_server_default=True,
            transaction_per_migration=True,
            on_version_apply=note,
        )
        begun = context.get_context().get_current_revision()
        connection.rollback()
        with context.begin_transaction():
            context.run_migrations()
        connection.rollback()
        with one_sentence(), connection.begin():
            grant(connection, make_url(application))
