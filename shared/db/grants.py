"""What the application's role may do in the database that another role owns; run with each migration.

The owner makes and changes tables. The application reads and writes rows, adds to the tables that are a record and
changes nothing in them, and can neither drop, alter, empty nor create anything.
"""

from psycopg2.extensions import encrypt_password
from sqlalchemy import Connection
from sqlalchemy.engine import URL
from sqlalchemy.sql import text

from shared.db.tables import Base
from shared.errors import OsteonError

VERSION = "alembic_version"  # Alembic's own table, from which the application sees whether the tables fit its version
ROWS, RECORD, READ = "SELECT, INSERT, UPDATE, DELETE", "SELECT, INSERT", "SELECT"
_TABLES = text("""
    SELECT relname, relkind = 'v' FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v')
    ORDER BY relname
""")
_OWNER = text("SELECT rolsuper OR rolcreaterole, current_user::text FROM pg_roles WHERE rolname = current_user")
_ROLE = text("SELECT rolsuper FROM pg_roles WHERE rolname = :name")


def grant(connection: Connection, application: URL) -> None:
    """Give the role of the application's URL what it needs and no more; make the role if the owner may make roles.

    Nothing is done for an application that is the owner.

    Args:
        connection: the owner's, in a transaction.
        application: OSTEON_DATABASE_URL.

    Raises:
        OsteonError: the role does not exist and the owner may not make it, or it is a superuser.
    """
    makes_roles, owner = connection.execute(_OWNER).one()
    name, password = application.username, application.password
    if not name or name == owner:
        return
    role = connection.dialect.identifier_preparer.quote(name)
    known = connection.execute(_ROLE, {"name": name}).one_or_none()
    if known is not None and known.rolsuper:
        raise OsteonError(f"OSTEON_DATABASE_URL names {name}, a superuser. Name a role that is none; it owns no table.")
    if makes_roles and password:
        driver = connection.connection.driver_connection
        # hashed here, so that no log of the server's can hold it
        sealed = encrypt_password(password, name, driver, "scram-sha-256")
        verb = "ALTER" if known else "CREATE"
        connection.exec_driver_sql(f"{verb} ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD '{sealed}'")
    elif known is None:
        raise OsteonError(
            f"There is no role {name}, and {owner} may not make one. "
            f"As an administrator of the server: CREATE ROLE {role} LOGIN PASSWORD '...'"
        )
    database, schema = connection.execute(text("SELECT current_database(), current_schema()")).one()
    quote = connection.dialect.identifier_preparer.quote
    database, schema = quote(database), quote(schema)
    tables = Base.metadata.tables.values()
    record = {table.name for table in tables if table.info.get("append_only")}
    erased = {table.name: [column.name for column in table.columns if column.info.get("erased")] for table in tables}
    steps = [
        f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC",
        f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {database} TO {role}",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
        # for tables that are not made by a migration: the least rights that are useful
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT {RECORD} ON TABLES TO {role}",
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE ON SEQUENCES TO {role}",
    ]
    for table, view in connection.execute(_TABLES):  # a view is what code of before an update has in place of a record
        rights = READ if table == VERSION else RECORD if view or table in record else ROWS
        steps += [f"REVOKE ALL ON {quote(table)} FROM {role}", f"GRANT {rights} ON {quote(table)} TO {role}"]
        if rights == RECORD and (columns := ", ".join(map(quote, erased.get(table, [])))):
            steps.append(f"GRANT UPDATE ({columns}) ON {quote(table)} TO {role}")
    for step in steps:
        connection.exec_driver_sql(step)
