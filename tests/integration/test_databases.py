"""Each test's database is as a copy of the template would be, whatever the test before did to its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest

from infra.embedded.postgres import EmbeddedPostgres
from tests.databases import LARGE, USED, Databases, as_owner

ROWS = "INSERT INTO sites VALUES (gen_random_uuid(), 'left')"
PARTS = (
    "SELECT oid, relname, reltuples FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY oid",
    "SELECT oid, relacl::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY oid",
    "SELECT tgname, tgenabled FROM pg_trigger ORDER BY oid",
    "SELECT attrelid, attname, attnotnull FROM pg_attribute ORDER BY attrelid, attnum",
    "SELECT setconfig FROM pg_db_role_setting",
)
LEFT = {
    "rows": ROWS,
    "a number taken": "SELECT nextval('turnaround_targets_id_seq')",
    "a column": "ALTER TABLE sites ADD COLUMN more int",
    "a trigger that is off": "ALTER TABLE feedback DISABLE TRIGGER feedback_stay",
    "statistics": f"{ROWS}; ANALYZE sites",
    "another revision": "UPDATE alembic_version SET version_num = '0001'",
    "a right": "GRANT UPDATE ON feedback TO osteon_app",
    "a setting": "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET jit = off', current_database()); END $$",
    "a table": "CREATE TABLE more (id int)",
    "much": "INSERT INTO sites SELECT gen_random_uuid(), n || repeat(md5(n::text), 9) FROM generate_series(1, 20000) AS n",
}


def ask(connection: psycopg2.extensions.connection, statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def connect(url: str) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    return connection


def state(url: str) -> list[object]:
    """All rows and numbers of a database, and how it is made."""
    connection = connect(url)
    relations = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S') ORDER BY oid"
    names = ask(connection, relations)
    found: list[object] = [
        *(ask(connection, f"SELECT * FROM {name}") for (name,) in names),
        *(ask(connection, one) for one in PARTS),
    ]
    connection.close()
    return found


@pytest.fixture
def made(postgres: EmbeddedPostgres, template: str) -> Databases:
    class AsOwner(Databases):
        @contextmanager
        def one(self) -> Iterator[str]:
            with super().one() as url:
                yield as_owner(postgres, url)

    return AsOwner(postgres, template)


@pytest.mark.parametrize("left", LEFT)
def test_the_next_database_is_as_the_template_is(made: Databases, left: str) -> None:
    """Rows and numbers are taken back; a database that was changed in another way is not used again."""
    with made.one() as url:
        fresh = state(url)
        connection = connect(url)
        ask(connection, LEFT[left])
        connection.close()
        assert state(url) != fresh, "the test would show nothing"
    with made.one() as url:
        assert state(url) == fresh
        connection = connect(url)
        assert sum(size for _, is_table, size in ask(connection, USED) if is_table) < LARGE
        connection.close()
    assert len(made.spare) == 1


def test_what_a_test_left_running_does_not_reach_the_next_one(made: Databases) -> None:
    """Its connections are ended, what they had not committed is gone, and under the old name there is nothing."""
    with made.one() as before:
        connection = psycopg2.connect(before.replace("+psycopg2", ""))
        ask(connection, ROWS)
    with made.one() as url:
        assert url != before
        assert ask(connect(url), "SELECT * FROM sites") == []
        with pytest.raises(psycopg2.OperationalError):
            connect(before)
    with pytest.raises(psycopg2.OperationalError):
        ask(connection, ROWS)


def test_an_emptied_database_is_taken_again(made: Databases) -> None:
    """It keeps its number of a database, so it is the same one: the reason for all of this."""
    numbers = []
    for _ in range(2):
        with made.one() as url:
            connection = connect(url)
            ask(connection, ROWS)
            numbers += ask(connection, "SELECT oid FROM pg_database WHERE datname = current_database()")
            connection.close()
    assert numbers[0] == numbers[1]
