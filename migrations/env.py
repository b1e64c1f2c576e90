"""Runs migrations against OSTEON_DATABASE_URL, each in its own transaction."""

import time

from alembic import context
from sqlalchemy import create_engine, pool

from shared.settings import Settings, one_sentence
from shared.tables import Base

with one_sentence():
    url = Settings().database_url.get_secret_value()

if context.is_offline_mode():
    context.configure(url=url, target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(url, poolclass=pool.NullPool, hide_parameters=True)
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
        )
        with context.begin_transaction():
            context.run_migrations()
