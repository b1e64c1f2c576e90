"""The schema is what the migrations make, and they can be undone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from infra.postgres import EmbeddedPostgres
from shared.repository import Database
from shared.tables import Base


def test_migrations_lead_to_exactly_the_tables(database: Database) -> None:
    """A table, column, index or constraint that only one side knows is a difference."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


@pytest.mark.parametrize(
    ("before", "step", "index"),
    [
        ("0003", "0004", "ix_studies_history"),
        ("0004", "0005", "ix_studies_unread_region"),
        ("0006", "0007", "ix_studies_analysed_at"),
        ("0007", "0008", "ix_studies_sent"),
        ("0008", "0009", "ix_studies_unread_by_region"),
    ],
)
def test_an_interrupted_upgrade_is_done_again(
    database: Database, postgres: EmbeddedPostgres, database_url: str, run_alembic: Callable[..., None],
    before: str, step: str, index: str,
) -> None:  # fmt: skip
    """A step that builds indexes outside its transaction may be killed half done: run again it ends where it must.

    What a killed CREATE INDEX CONCURRENTLY leaves, an index that is not valid, is built anew.
    """
    run_alembic(database_url, "downgrade", step)
    superuser = create_engine(f"{postgres.admin_url.rsplit('/', 1)[0]}/{database_url.rsplit('/', 1)[1]}")
    with superuser.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :before"), {"before": before})
        spoilt = text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:index)")
        assert connection.execute(spoilt, {"index": index}).rowcount == 1
    superuser.dispose()
    run_alembic(database_url, "upgrade", "head")
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_index WHERE NOT indisvalid").scalar() == 0
    test_migrations_lead_to_exactly_the_tables(database)


def test_two_upgrades_at_once_take_turns(
    database: Database, database_url: str, run_alembic: Callable[..., None]
) -> None:
    """Two hosts that start together both end well."""
    run_alembic(database_url, "downgrade", "base")
    with ThreadPoolExecutor(2) as pool:
        for started in [pool.submit(run_alembic, database_url, "upgrade", "head") for _ in range(2)]:
            started.result()
    assert set(inspect(database.engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}


def test_a_difference_would_be_seen(database: Database) -> None:
    """The comparison above can fail: a dropped column shows."""
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE studies DROP COLUMN scope")
        context = MigrationContext.configure(connection)
        assert any("scope" in str(difference) for difference in compare_metadata(context, Base.metadata))


def test_downgrade_leaves_an_empty_database_that_upgrades_again(
    database: Database, database_url: str, run_alembic: Callable[..., None]
) -> None:
    """An operator can go back, and forth again."""
    run_alembic(database_url, "downgrade", "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    run_alembic(database_url, "upgrade", "head")
    assert set(inspect(database.engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
