"""The real parts for a benchmark: Postgres, Valkey, API, workers and an S3 server, in a temporary folder."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from cryptography.fernet import Fernet

from infra.client import Client
from infra.postgres import EmbeddedPostgres
from infra.process import Child, free_port, free_ports, wait_until
from infra.valkey import EmbeddedValkey
from shared.errors import StackError, StoreUnavailable
from shared.repository.access import Role
from shared.settings import ROOT, Settings
from shared.storage import open_store

KEYS = {role.value: f"osk_bench_{role.value}_key_of_the_benchmarks" for role in Role}
S3_USER, S3_PASSWORD = "osteon", "osteon-secret"
# as in the API's image, without PyTorch, which would take seconds to load
PREPARE = "import sys; sys.modules['torch'] = None; import infra.prepare; sys.exit(infra.prepare.main())"
# all on loopback, nothing told to its makers, no catalogs beside S3
SEAWEEDFS = (
    "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0",
    "-volume.max=1000", "-master.volumeSizeLimitMB=1024",
)  # fmt: skip
SEAWEEDFS_PORTS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
    "s3.port.grpc",
)  # fmt: skip


class Plant:
    """Postgres (migrated, with site, keys and the shipped bundle) and Valkey; API, workers and S3 when asked for.

    Use it as `with Plant() as plant:`, from the main thread: its processes end with that thread. All of it lies in one
    temporary folder (TMPDIR decides where), which goes with it.
    """

    def __init__(self, store_url: str | None = None, settings: Mapping[str, str] | None = None) -> None:
        """store_url: default a directory store in the folder; settings: OSTEON_* variables without their prefix."""
        # a benchmark may write gigabytes; as root, Postgres' own uid must pass through the folder
        self.folder = Path(tempfile.mkdtemp(prefix="osteon-bench-"))
        self.folder.chmod(0o711)
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
        """Start the servers and prepare them. Raises StackError."""
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
            "SESSION_SECRET": "a session secret for benchmarks",
            "LOG_LEVEL": "WARNING",
            **{f"KEY_{role.upper()}": secret for role, secret in KEYS.items()},
            **self._settings,
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OSTEON_")}
        self.environment = clean | {f"OSTEON_{name}": value for name, value in own.items()} | {"PYTHONPATH": str(ROOT)}
        self._step("-m", "alembic", "-c", str(ROOT / "migrations/alembic.ini"), "upgrade", "head")
        self._step("-c", PREPARE)

    def stop(self) -> None:
        """End everything and remove the folder."""
        for child in reversed(self.children):
            child.stop()
        self.valkey.stop()
        self.postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, name: str, *arguments: str, **more: str) -> Child:
        """Start a Python process in the plant's environment; its log is NAME.log. more: further variables."""
        child = Child(name, [sys.executable, *arguments], self.folder / f"{name}.log", self.environment | more)
        child.start()
        self.children.append(child)
        return child

    def api(self, **more: str) -> str:
        """Start an API and wait until it answers; returns its URL. more: settings. Raises StackError."""
        port = free_port()
        command = ["-m", "uvicorn", "api.main:create_app", "--factory", "--port", str(port), "--no-access-log"]
        own = {f"OSTEON_{name}": value for name, value in more.items()}
        child = self.run(f"api-{port}", *command, **own)
        url = f"http://127.0.0.1:{port}"
        self._until(child, lambda: _answers(f"{url}/readyz"))
        return url

    def worker(self, program: str = "import worker.main; worker.main.main()", **more: str) -> Child:
        """Start a worker process; program: Python that changes it first. It may take a minute until it is ready."""
        return self.run(f"worker-{len(self.children)}", "-c", textwrap.dedent(program), **more)

    def client(self, url: str, role: str = "admin") -> Client:
        """A client of an API that this plant started."""
        return Client(url, KEYS[role])

    def _step(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise StackError(f"preparing the benchmark failed:\n{done.stderr[-2000:]}")

    def _until(self, child: Child, ready: Callable[[], bool]) -> None:
        def looked() -> bool:
            if not child.running:
                raise child.failure(f"ended while starting (exit code {child.exit_code})")
            return ready()

        if not wait_until(looked, 120):
            raise child.failure("was not ready within 120 s")


class S3Server:
    """An S3 server of its own: MinIO when its binary is on PATH, else SeaweedFS where it is installed, else moto's.

    Use it as `with S3Server(folder) as server:`.
    """

    def __init__(self, folder: Path) -> None:
        """folder: where its data and its log lie; it may be new."""
        self.folder = folder
        self.port, *others = free_ports(8)
        self._master = others[0]
        minio, own = shutil.which("minio"), Path(sys.executable).parent
        weed = shutil.which("weed", path=f"{own}{os.pathsep}{os.environ.get('PATH', '')}")
        data = folder / "s3"
        data.mkdir(parents=True, exist_ok=True)
        if minio:
            self.kind = "MinIO"
            command = [minio, "server", str(data), "--address", f"127.0.0.1:{self.port}"]
        elif weed:
            self.kind = "SeaweedFS"
            command = [weed, "server", f"-dir={data}", *SEAWEEDFS, f"-s3.port={self.port}"]
            command += [f"-{name}={port}" for name, port in zip(SEAWEEDFS_PORTS, others, strict=True)]
        else:
            self.kind = "moto"
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        variables = {
            **os.environ,
            "MINIO_ROOT_USER": S3_USER,
            "MINIO_ROOT_PASSWORD": S3_PASSWORD,
            "AWS_ACCESS_KEY_ID": S3_USER,
            "AWS_SECRET_ACCESS_KEY": S3_PASSWORD,
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",  # of its volumes, for each bucket
        }
        self.child = Child("S3", command, folder / "s3.log", variables, stop_wait_s=3)

    def url(self, bucket: str) -> str:
        """A store URL for OSTEON_STORE_URL."""
        return f"s3://{S3_USER}:{S3_PASSWORD}@127.0.0.1:{self.port}/{bucket}"

    def compact(self) -> None:
        """Give the room of removed objects back to the disk at once; SeaweedFS would do it later."""
        if self.kind == "SeaweedFS":
            url = f"http://127.0.0.1:{self._master}/vol/vacuum?garbageThreshold=0.01"
            httpx.get(url, trust_env=False, timeout=120).raise_for_status()

    def _ready(self) -> bool:
        try:
            open_store(self.url("ready")).check()
        except StoreUnavailable:
            return False
        return True

    def start(self) -> None:
        """Start it, on the objects that are there, and wait until it takes more. Raises StackError."""
        self.child.start()
        if not wait_until(self._ready, 60):
            raise self.child.failure("was not ready within 60 s")

    def kill(self) -> None:
        """As the power does. moto forgets its objects by that."""
        os.kill(self.child.pid or 0, signal.SIGKILL)
        self.child.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.child.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).is_success
    except httpx.HTTPError:
        return False
