"""What the application's role may do in Postgres: rows, and nothing that is the owner's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg2
import pytest
from psycopg2 import errors
from sqlalchemy import create_engine, make_url

from infra.embedded.postgres import EmbeddedPostgres
from shared.db.grants import grant
from shared.db.tables import Base
from shared.errors import OsteonError
from tests.databases import admin_sql

RECORDS = {
    "feedback",
    "quarantine_decisions",
    "identity_reads",
    "identity_searches",
    "turnaround_targets",
    "audit_events",
}
TABLES = sorted(table.name for table in Base.metadata.tables.values())
RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN")


@contextmanager
def connected(url: str) -> Iterator[psycopg2.extensions.cursor]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def rights(url: str) -> dict[str, set[str]]:
    """What the application's role may do with each table that there is."""
    with connected(url) as cursor:
        cursor.execute("SELECT current_setting('server_version_num')::int")
        known = [right for right in RIGHTS if right != "MAINTAIN" or cursor.fetchone()[0] >= 170000]  # type: ignore[index]
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        tables = [name for (name,) in cursor.fetchall()]
        found = {}
        for table in tables:
            cursor.execute(
                "SELECT " + ", ".join("has_table_privilege(%s, %s)" for _ in known),
                [x for r in known for x in (table, r)],
            )
            found[table] = {right for right, has in zip(known, cursor.fetchone() or (), strict=True) if has}
        return found


def test_rights_are_the_least(database_url: str) -> None:
    """Rows of every table, a record's to add and to read, the migrations' number to read; nothing more."""
    found = rights(database_url)
    assert set(found) == {*TABLES, "alembic_version"}
    records = {table.name for table in Base.metadata.tables.values() if table.info.get("append_only")}
    assert records >= RECORDS
    for table, has in found.items():
        if table == "alembic_version":
            assert has == {"SELECT"}
        elif table in records:
            assert has == {"SELECT", "INSERT"}, table
        else:
            assert has == {"SELECT", "INSERT", "UPDATE", "DELETE"}, table


def test_the_role_is_nobody(database_url: str) -> None:
    """It is no superuser, makes neither roles nor databases, belongs to no other role, and owns nothing."""
    with connected(database_url) as cursor:
        cursor.execute(
            "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, "
            "(SELECT count(*) FROM pg_auth_members WHERE member = r.oid), (SELECT count(*) FROM pg_class WHERE relowner = r.oid) "
            "FROM pg_roles r WHERE rolname = current_user"
        )
        assert cursor.fetchone() == (False, False, False, False, False, 0, 0)
        cursor.execute(
            "SELECT count(*) FROM pg_class WHERE relname = ANY(%s) AND relowner::regrole::text <> 'osteon'", [TABLES]
        )
        assert cursor.fetchone() == (0,)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE {table} CASCADE",
        "ALTER TABLE {table} ADD COLUMN more int",
        "ALTER TABLE {table} DISABLE TRIGGER ALL",
        "TRUNCATE {table} CASCADE",
        "CREATE INDEX ON {table} ((1))",
    ],
)
def test_no_table_is_its_to_change(database_url: str, statement: str) -> None:
    """Neither shape nor triggers nor all rows at once, of any table."""
    with connected(database_url) as cursor:
        for table in [*TABLES, "alembic_version"]:
            with pytest.raises(errors.InsufficientPrivilege):
                cursor.execute(statement.format(table=table))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (id int)",
        "CREATE TEMPORARY TABLE mine (id int)",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE ROLE mine",
        "CREATE EXTENSION file_fdw",
        "ALTER ROLE osteon PASSWORD 'x'",
        "SET ROLE osteon",
        "COPY sites TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
        "ALTER SYSTEM SET log_statement = 'all'",
        "UPDATE alembic_version SET version_num = '0001'",
    ],
)
def test_nothing_is_its_to_make(database_url: str, owner_url: str, statement: str) -> None:
    """No object, no role, no program, no file of the server."""
    granted(owner_url, database_url)  # rights on the database itself are not copied with a test's template
    with connected(database_url) as cursor, pytest.raises(errors.InsufficientPrivilege):
        cursor.execute(statement)


@pytest.mark.parametrize("record", sorted(RECORDS))
def test_records_only_grow(database_url: str, record: str) -> None:
    """What is a record is neither changed nor deleted by the application, whatever triggers say."""
    with connected(database_url) as cursor:
        _, column, *_ = Base.metadata.tables[record].columns.keys()
        for statement in (f"DELETE FROM {record}", f"UPDATE {record} SET {column} = {column}"):
            with pytest.raises(errors.InsufficientPrivilege):
                cursor.execute(statement)


def test_later_tables(database_url: str, owner_url: str, run_alembic: Callable[..., None]) -> None:
    """A table that a later migration makes has its rights when that ends; one made by hand can be read and added to."""
    with connected(owner_url) as cursor:
        cursor.execute("CREATE TABLE later (id serial PRIMARY KEY)")
    assert rights(database_url)["later"] == {"SELECT", "INSERT"}
    with connected(database_url) as cursor:
        cursor.execute("INSERT INTO later DEFAULT VALUES")  # its sequence too
    run_alembic(database_url, "upgrade", "head")
    assert rights(database_url)["later"] == {"SELECT", "INSERT", "UPDATE", "DELETE"}


def test_rights_that_somebody_gave_are_taken_back(
    database_url: str, owner_url: str, run_alembic: Callable[..., None]
) -> None:
    """Each migration leaves exactly the rights that are wanted."""
    with connected(owner_url) as cursor:
        cursor.execute("GRANT ALL ON feedback, sites TO osteon_app")
    run_alembic(database_url, "upgrade", "head")
    test_rights_are_the_least(database_url)


def granted(owner: str, application: str) -> None:
    engine = create_engine(owner)
    try:
        with engine.begin() as connection:
            grant(connection, make_url(application))
    finally:
        engine.dispose()


@pytest.fixture
def stranger(postgres: EmbeddedPostgres, database_url: str) -> Iterator[str]:
    """The URL of a role that there is not yet."""
    yield f"postgresql+psycopg2://a-stranger:its-password@{database_url.partition('@')[2]}"
    admin_sql(postgres, "DROP DATABASE IF EXISTS strange")


def test_a_superuser_makes_the_role(postgres: EmbeddedPostgres, database_url: str, stranger: str) -> None:
    """As in Compose, where the owner is the cluster's: the role is made, and a new password holds from then on."""
    admin = f"{postgres.admin_url.rsplit('/', 1)[0]}/{database_url.rsplit('/', 1)[1]}"
    try:
        granted(admin, stranger)
        with connected(stranger) as cursor:
            cursor.execute("SELECT count(*) FROM sites")
        changed = stranger.replace("its-password", "another-password")
        granted(admin, changed)
        with connected(changed) as cursor:
            cursor.execute("SELECT count(*) FROM sites")
        with pytest.raises(psycopg2.OperationalError), connected(stranger):
            pass
    finally:
        for statement in ('DROP OWNED BY "a-stranger"', 'DROP ROLE "a-stranger"'):
            with connected(admin) as cursor:
                cursor.execute(statement)


def test_an_owner_who_may_not_make_roles_says_how(owner_url: str, stranger: str) -> None:
    """The error names what an administrator has to do."""
    with pytest.raises(OsteonError, match='CREATE ROLE "a-stranger" LOGIN'):
        granted(owner_url, stranger)


def test_a_superuser_is_refused(postgres: EmbeddedPostgres, owner_url: str) -> None:
    """The application never runs as one by mistake."""
    superuser = f"{postgres.admin_url.rsplit('/', 1)[0]}/{owner_url.rsplit('/', 1)[1]}"
    with pytest.raises(OsteonError, match="a superuser"):
        granted(owner_url, superuser)


def test_one_role_is_allowed(owner_url: str, database_url: str) -> None:
    """Where somebody's own server has but one role, nothing is granted and nothing refused."""
    before = rights(database_url)
    granted(owner_url, owner_url)
    assert rights(database_url) == before
