"""The real parts of Osteon as processes in one folder, for benchmarks and tests: Postgres, Valkey, API, workers."""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psycopg2
from cryptography.fernet import Fernet

from infra.client.api import Client
from infra.embedded.postgres import EmbeddedPostgres
from infra.embedded.process import Child, free_port, wait_until
from infra.embedded.valkey import EmbeddedValkey
from shared.domain.security import Role
from shared.errors import StackError
from shared.settings import ROOT, Settings

KEYS = {role.value: f"osk_bench_{role.value}_key_of_the_benchmarks" for role in Role}
# as in the API's image, without PyTorch, which would take seconds to load
PREPARE = "import sys; sys.modules['torch'] = None; import infra.prepare; sys.exit(infra.prepare.main())"


class LiveStack:
    """Postgres (migrated, with site, keys and the shipped bundle) and Valkey; API, workers and S3 when asked for.

    Use it as `with LiveStack() as live_stack:`, from the main thread: its processes end with that thread. All of it
    lies in one folder; TMPDIR decides where a temporary one is.
    """

    def __init__(
        self, store_url: str | None = None, settings: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        """Prepare a folder; nothing is started yet.

        Args:
            store_url: where objects are stored; None: in a directory of the folder.
            settings: OSTEON_* variables without their prefix; they replace those that it has by itself.
            folder: where everything lies, and stays afterwards; None: a temporary one, which is removed.
        """
        self._temporary = folder is None
        if folder is None:
            # a benchmark may write gigabytes; as root, Postgres' own uid must pass through the folder
            folder = Path(tempfile.mkdtemp(prefix="osteon-live-"))
            folder.chmod(0o711)
        self.folder = folder
        self.postgres, self.valkey = EmbeddedPostgres(self.folder / "postgres"), EmbeddedValkey(self.folder / "valkey")
        self.store_url = store_url or f"file:{self.folder / 'objects'}"
        self.children: list[Child] = []
        self.environment: dict[str, str] = {}
        self._settings = dict(settings or {})

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the servers and prepare them; raises StackError."""
        self.postgres.start()
        self.valkey.start()
        own = {
            "HOME": str(self.folder),
            "DATABASE_URL": self.postgres.url,
            "BROKER_URL": self.valkey.url,
            "STORE_URL": self.store_url,
            "SPOOL_DIR": str(self.folder / "spool"),
            "CACHE_DIR": str(Settings().cache.absolute()),  # not measured: how long a first start takes
            "IDENTITY_KEY": Fernet.generate_key().decode(),
            "SESSION_SECRET": "a secret of live stacks",
            "LOG_LEVEL": "WARNING",
            **{f"KEY_{role.upper()}": secret for role, secret in KEYS.items()},
            **self._settings,
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OSTEON_")}
        self.environment = clean | {f"OSTEON_{name}": value for name, value in own.items()} | {"PYTHONPATH": str(ROOT)}
        owner = {"OSTEON_DATABASE_OWNER_URL": self.postgres.owner_url}
        self._step("-m", "alembic", "-c", str(ROOT / "migrations/alembic.ini"), "upgrade", "head", **owner)
        self.prepare()

    def prepare(self, **more: str) -> None:
        """Make site, keys and bundle; raises StackError.

        Args:
            **more: further environment variables.
        """
        self._step("-c", PREPARE, **more)

    def stop(self) -> None:
        """End everything, and remove the folder if it is a temporary one."""
        for child in reversed(self.children):
            child.stop()
        self.valkey.stop()
        self.postgres.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, name: str, *arguments: str, **more: str) -> Child:
        """Start a Python process in the stack's environment.

        Args:
            name: of the process; its log is NAME.log.
            *arguments: of the interpreter.
            **more: further environment variables.

        Returns:
            The process; it ends with the stack.
        """
        child = Child(name, [sys.executable, *arguments], self.folder / f"{name}.log", self.environment | more)
        child.start()
        self.children.append(child)
        return child

    def api(self, **more: str) -> str:
        """Start an API with these further settings and wait until it answers; returns its URL, or raises StackError."""
        port = free_port()
        own = {f"OSTEON_{name}": value for name, value in more.items()} | {"OSTEON_API_PORT": str(port)}
        child = self.run(f"api-{port}", "-m", "api.server", **own)
        url = f"http://127.0.0.1:{port}"
        self._until(child, lambda: _responds(f"{url}/readyz"))
        return url

    def worker(self, program: str = "import worker.main; worker.main.main()", **more: str) -> Child:
        """Start a worker process. It may take a minute until it is ready.

        Args:
            program: Python that runs the worker, and may change it first.
            **more: further environment variables.

        Returns:
            The process; it ends with the stack.
        """
        return self.run(f"worker-{len(self.children)}", "-c", textwrap.dedent(program), **more)

    def client(self, url: str, role: str = "admin") -> Client:
        """Make a client of an API that this stack started.

        Args:
            url: of the API.
            role: whose key it uses.

        Returns:
            A client to be closed, or used by `with`.
        """
        return Client(url, KEYS[role])

    def as_owner(self, *statements: str) -> None:
        """Run SQL as the tables' owner, each statement by itself, outside any transaction."""
        connection = psycopg2.connect(self.postgres.owner_url.replace("+psycopg2", ""))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
        finally:
            connection.close()

    def _step(self, *arguments: str, **more: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=self.environment | more,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StackError(f"preparing the live stack failed:\n{done.stderr[-2000:]}")

    def _until(self, child: Child, ready: Callable[[], bool]) -> None:
        def looked() -> bool:
            if not child.running:
                raise child.failure(f"ended while starting (exit code {child.exit_code})")
            return ready()

        if not wait_until(looked, 120):
            raise child.failure("was not ready within 120 s")


def _responds(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).is_success
    except httpx.HTTPError:
        return False
