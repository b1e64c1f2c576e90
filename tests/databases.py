"""A migrated database for each test: a copy of a template, or one that a test before has used and that was emptied.

To empty one takes a tenth of what it takes to copy, and most tests write little. One that was altered, analysed or
filled is dropped instead, so that each test finds what a copy would be, down to the numbers of sequences.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2.extensions import connection as Connection

from infra.embedded.postgres import EmbeddedPostgres

_numbers = itertools.count(1)
LARGE = 4 * 2**20  # bytes of tables in a database that is not worth being emptied
# What a test may have left other than rows. Copies keep the template's numbers of objects.
SHAPE = """
SELECT md5(string_agg(line, ' ' ORDER BY line)) FROM (
  SELECT concat_ws(' ', 'relation', oid, relname, relkind, relchecks, relowner, relacl::text,
    CASE WHEN relkind = 'r' THEN reltuples END) AS line
  FROM pg_class WHERE relnamespace = 'public'::regnamespace
  UNION ALL SELECT concat_ws(' ', 'column', attrelid, attname, atttypid, atttypmod, attnotnull, atthasdef)
  FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace
  UNION ALL SELECT concat_ws(' ', 'constraint', oid, conname, convalidated) FROM pg_constraint
  UNION ALL SELECT concat_ws(' ', 'trigger', oid, tgname, tgenabled) FROM pg_trigger
  UNION ALL SELECT concat_ws(' ', 'function', oid, prosrc) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
  UNION ALL SELECT concat_ws(' ', 'schema', nspname, nspacl) FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'
  UNION ALL SELECT concat_ws(' ', 'rights', oid, defaclacl) FROM pg_default_acl
  UNION ALL SELECT concat_ws(' ', 'setting', setconfig) FROM pg_db_role_setting
  WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
) AS lines
"""
END_OTHERS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
# tables that have or had rows, with their bytes, and sequences that gave numbers: to empty all the others takes longer
USED = """
SELECT oid::regclass::text, relkind = 'r', pg_relation_size(oid) FROM pg_class
WHERE relnamespace = 'public'::regnamespace
AND CASE relkind WHEN 'r' THEN pg_relation_size(oid) > 0 WHEN 'S' THEN pg_sequence_last_value(oid) IS NOT NULL END
"""
OBJECTS = "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = %s"


@contextmanager
def superuser(postgres: EmbeddedPostgres, name: str = "postgres") -> Iterator[Connection]:
    """A connection to one of its databases that is in no transaction."""
    opened = psycopg2.connect(postgres.admin_url.replace("+psycopg2", "").rsplit("/", 1)[0] + f"/{name}")
    opened.autocommit = True
    try:
        yield opened
    finally:
        opened.close()


def admin_sql(postgres: EmbeddedPostgres, statement: str) -> None:
    """Run one statement as superuser, outside any transaction."""
    with superuser(postgres) as connection, connection.cursor() as cursor:
        cursor.execute(statement)


def run_sql(url: str, *statements: str) -> None:
    """Run statements as the role of a URL, each by itself, outside any transaction."""
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


def as_owner(postgres: EmbeddedPostgres, url: str) -> str:
    """The URL of one of its databases for the role that its tables belong to; `url` is the application's."""
    return f"{postgres.owner_url.rsplit('/', 1)[0]}/{url.rsplit('/', 1)[1]}"


@contextmanager
def copied(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """URL of a copy of a database, for the block."""
    name = f"test_{next(_numbers)}"
    admin_sql(postgres, f"CREATE DATABASE {name} TEMPLATE {template} OWNER osteon")
    yield postgres.url.rsplit("/", 1)[0] + f"/{name}"
    admin_sql(postgres, f"DROP DATABASE {name} WITH (FORCE)")


class Databases:
    """Copies of one template, each used by one test at a time."""

    def __init__(self, postgres: EmbeddedPostgres, template: str) -> None:
        """template: the name of a database to which nobody is connected, and which stays as it is."""
        self._postgres, self.template = postgres, template
        self.spare: list[str] = []
        with superuser(postgres, template) as connection, connection.cursor() as cursor:
            cursor.execute(OBJECTS, ("r",))
            tables = [name for (name,) in cursor.fetchall()]
            # a table that a migration fills is compared, the others are emptied
            self._filled = [table for table in tables if _has_rows(cursor, table)]
            rows = ", ".join(
                f"(SELECT md5(string_agg(t::text, ' ' ORDER BY t::text)) FROM {t} AS t)" for t in self._filled
            )
            self._state = f"SELECT ({SHAPE}), {rows or 'NULL'}"
            cursor.execute(self._state)
            self._as_made = cursor.fetchone()

    @contextmanager
    def one(self) -> Iterator[str]:
        """URL of a database that is as the template is, for the block."""
        name = f"test_{next(_numbers)}"
        if self.spare:  # under a new name: what a test before has left running does not find it
            admin_sql(self._postgres, f"ALTER DATABASE {self.spare.pop()} RENAME TO {name}")
        else:
            admin_sql(self._postgres, f"CREATE DATABASE {name} TEMPLATE {self.template} OWNER osteon")
        yield self._postgres.url.rsplit("/", 1)[0] + f"/{name}"
        if self.emptied(name):
            self.spare.append(name)
        else:
            admin_sql(self._postgres, f"DROP DATABASE {name} WITH (FORCE)")

    def emptied(self, name: str) -> bool:
        """Whether it is now as the template is. Connections to it are ended."""
        try:
            with superuser(self._postgres, name) as connection, connection.cursor() as cursor:
                cursor.execute(END_OTHERS)
                cursor.execute(self._state)
                if cursor.fetchone() != self._as_made:
                    return False
                cursor.execute(USED)
                used = cursor.fetchall()
                if sum(size for _, is_table, size in used if is_table) > LARGE:
                    return False
                statements = ["SET session_replication_role = replica"]  # neither triggers nor foreign keys
                statements += [
                    f"DELETE FROM {name}" if is_table else f"ALTER SEQUENCE {name} RESTART"
                    for name, is_table, _ in used
                    if name not in self._filled
                ]
                cursor.execute("; ".join(statements))
        except psycopg2.Error:
            return False
        return True


def _has_rows(cursor: psycopg2.extensions.cursor, table: str) -> bool:
    cursor.execute(f"SELECT EXISTS (SELECT FROM {table})")
    (found,) = cursor.fetchone() or (False,)
    return bool(found)
