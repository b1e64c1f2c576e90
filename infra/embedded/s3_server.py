"""An S3 server as a process, for benchmarks and tests."""

import os
import shutil
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from infra.embedded.process import Child, free_ports, wait_until
from shared.errors import StoreUnavailable
from shared.storage import open_store

S3_USER, S3_PASSWORD = "osteon", "osteon-secret"
# all on loopback, no telemetry, no catalogs beside S3
SEAWEEDFS = (
    "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0",
    "-volume.max=1000", "-master.volumeSizeLimitMB=1024",
)  # fmt: skip
SEAWEEDFS_PORTS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
    "s3.port.grpc",
)  # fmt: skip


class S3Server:
    """An S3 server of its own: MinIO when its binary is on PATH, else SeaweedFS where it is installed, else moto's.

    Use it as `with S3Server(folder) as server:`.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare a server whose data and log are in a folder, which is made if it is missing."""
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
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",  # volumes for each bucket
        }
        self.child = Child("S3", command, folder / "s3.log", variables, stop_wait_s=3)

    def url(self, bucket: str) -> str:
        """Make the store URL of a bucket, for OSTEON_STORE_URL."""
        return f"s3://{S3_USER}:{S3_PASSWORD}@127.0.0.1:{self.port}/{bucket}"

    def compact(self) -> None:
        """Free the disk space of removed objects at once; SeaweedFS would do it later."""
        if self.kind == "SeaweedFS":
            url = f"http://127.0.0.1:{self._master}/vol/vacuum?garbageThreshold=0.01"
            httpx.get(url, trust_env=False, timeout=120).raise_for_status()

    def _ready(self) -> bool:
        try:
            open_store(self.url("ready")).check_writable()
        except StoreUnavailable:
            return False
        return True

    def start(self) -> None:
        """Start it on its existing objects, and wait until it accepts requests; raises StackError."""
        self.child.start()
        if not wait_until(self._ready, 60):
            raise self.child.failure("was not ready within 60 s")

    def kill(self) -> None:
        """Kill it without a warning, as a power cut does; moto then forgets its objects."""
        os.kill(self.child.pid or 0, signal.SIGKILL)
        self.child.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.child.stop()
