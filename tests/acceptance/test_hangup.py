"""A real API process and real sockets: clients that hang up, and uploads larger than memory may grow."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select

from api.server import main
from infra.embedded.process import free_port
from samples.objects import pattern_image, to_bytes
from shared.db.engine import Database
from shared.db.tables import InstanceRow
from shared.domain.security import Role
from shared.queries.access import add_key
from shared.settings import ROOT, Settings
from tests.forked import ForkedProcess
from tests.pace import LIMIT_S, limit_s, until
from tests.store_files import keys_of

KEY = "osk_acceptance"
PART = b'--line\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n'
END = b"\r\n--line--\r\n"


@dataclass
class Server:
    """uvicorn in a process of its own."""

    process: ForkedProcess
    port: int
    settings: Settings
    database: Database

    def begin(self, length: int) -> socket.socket:
        """An upload whose headers are sent; the body is the caller's."""
        sock = socket.create_connection(("127.0.0.1", self.port), 30)
        head = (
            f"POST /api/v1/studies HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n"
        )
        sock.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=line\r\n\r\n")
        return sock

    def upload(self, body: bytes) -> tuple[int, Any]:
        with self.begin(len(body)) as sock:
            sock.sendall(body)
            return read_response(sock)

    def instances(self) -> int:
        with self.database.transaction() as session:
            return session.scalar(select(func.count()).select_from(InstanceRow)) or 0

    def spools(self) -> list[str]:
        """Files in the spool, those without a name too."""
        folder = self.settings.spool_dir
        assert folder is not None
        named = [str(path) for path in folder.iterdir()] if folder.exists() else []
        return named + [target for target in descriptors(self.process.pid) if target.startswith(str(folder))]

    def objects(self) -> list[str]:
        """By their keys, without metadata, which can be made anew."""
        return [key for key in keys_of(self.settings.home / "objects") if not key.startswith("metadata/")]


def descriptors(pid: int) -> list[str]:
    """What the open descriptors of a process point to."""
    targets = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            targets.append(str(link.readlink()))
    return targets


def read_response(sock: socket.socket) -> tuple[int, Any]:
    """Status and JSON of a response."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(
        next(line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    )
    while len(body) < length:
        body += sock.recv(65536)
    return int(head.split()[1]), json.loads(body)


@pytest.fixture
def server(make_settings: Callable[..., Settings], tmp_path: Path) -> Iterator[Server]:
    """The API under uvicorn on a real socket, with a submitter's key."""
    settings = make_settings()
    database = Database(settings.database_url.get_secret_value(), 2)
    with database.transaction() as session:
        add_key(session, "default", "acceptance", Role.ADMIN, KEY)
    port = free_port()
    secret = {name: getattr(settings, name).get_secret_value() for name in
              ("database_url", "broker_url", "store_url", "identity_key", "session_secret")}  # fmt: skip
    env = {f"OSTEON_{name.upper()}": value for name, value in secret.items()} | {
        "PATH": os.environ["PATH"], "OSTEON_HOME": str(settings.home), "OSTEON_SPOOL_DIR": str(settings.spool_dir),
        "OSTEON_API_PORT": str(port),
    }  # fmt: skip
    with (tmp_path / "api.log").open("wb") as log:
        process = ForkedProcess(main, env, log, ROOT)

    def listens() -> bool:
        assert process.poll() is None, (tmp_path / "api.log").read_text()
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(listens, 60)
        yield Server(process, port, settings, database)
    finally:
        process.terminate()
        process.wait(LIMIT_S)
        database.close()


def sound() -> bytes:
    return to_bytes(pattern_image(1, "a"), "1.2.840.10008.1.2.1")


@pytest.mark.parametrize("at", ["in a file", "before the last boundary"])
def test_client_hangs_up(server: Server, tmp_path: Path, at: str) -> None:
    """A client that hangs up midway leaves no object, no row and no spool, and the next upload works."""
    whole = PART % b"a.dcm" + sound() + b"\r\n" + PART % b"b.dcm" + bytes(3 * 2**20) + END
    sock = server.begin(len(whole))
    sock.sendall(whole[: -len(END)] if at == "before the last boundary" else whole[: 2 * 2**20])
    until(lambda: len(server.spools()) == 1, 15)
    sock.close()
    until(lambda: server.spools() == [], 15)
    assert (server.instances(), server.objects()) == (0, [])
    status, receipt = server.upload(PART % b"a.dcm" + sound() + END)
    assert (status, receipt["stored"], server.instances(), len(server.objects())) == (200, 1, 1, 1)
    assert server.process.poll() is None
    assert '"level": "error"' not in (tmp_path / "api.log").read_text()


def test_many_clients_hang_up(server: Server) -> None:
    """Fifty hang-ups at once leave no descriptor and no disk space behind."""
    assert server.upload(PART % b"a.dcm" + sound() + END)[0] == 200
    before = len(descriptors(server.process.pid))
    socks = [server.begin(10**6) for _ in range(50)]
    for sock in socks:
        sock.sendall(PART % b"a.dcm" + bytes(100_000))
    until(lambda: len(server.spools()) == 50, 15)
    for sock in socks:
        sock.close()
    until(lambda: server.spools() == [], 15)
    pool = server.settings.database_pool_size  # connections to Postgres are kept
    until(lambda: len(descriptors(server.process.pid)) <= before + pool, 15)
    assert server.upload(PART % b"a.dcm" + sound() + END)[0] == 200


def test_too_large_is_said_before_the_body(server: Server) -> None:
    """A declared length over the limit is answered with 413 before the body is sent."""
    with server.begin(server.settings.max_request_bytes + 1) as sock:
        assert read_response(sock)[0] == 413


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gigabytes_in_flat_memory(server: Server, tmp_path: Path) -> None:
    """An upload of 2 GB, streamed, grows the API process by less than 150 MB; its image is stored whole."""
    size = 2 * 10**9
    data = pattern_image(1, "large")
    data.DataSetTrailingPadding = b""
    head = to_bytes(data, "1.2.840.10008.1.2.1")[:-12]
    head += b"\xfc\xff\xfc\xffOB\0\0" + (size - len(head) - 12).to_bytes(4, "little")
    start, end = PART % b"large.dcm", END
    process = psutil.Process(server.process.pid)
    server.upload(PART % b"a.dcm" + sound() + END)  # what is loaded once is loaded now
    before, peak, done = process.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with server.begin(len(start) + size + len(end)) as sock:
            sock.settimeout(limit_s(300))
            sock.sendall(start + head)
            left, block = size - len(head), bytes(2**20)
            while left:
                sock.sendall(block[: min(left, len(block))])
                left -= min(left, len(block))
            sock.sendall(end)
            status, receipt = read_response(sock)
    finally:
        done.set()
        watcher.join()
    grown = (peak - before) / 10**6
    print(f"API process: {before / 10**6:.0f} MB before, {grown:.1f} MB more at the peak of a 2 GB upload")
    assert (status, receipt["stored"]) == (200, 1)
    assert max((server.settings.home / "objects" / key).stat().st_size for key in server.objects()) == size
    assert grown < 150
