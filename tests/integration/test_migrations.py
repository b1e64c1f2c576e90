"""The schema is what the migrations make, and they can be undone."""

from collections.abc import Callable

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from shared.repository import Database
from shared.tables import Base


def test_migrations_lead_to_exactly_the_tables(database: Database) -> None:
    """A table, column, index or constraint that only one side knows is a difference."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


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
