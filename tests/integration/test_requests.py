"""Requests on real sockets: nothing of a body is read for somebody without a key, and no response waits for its end."""

import itertools
import json
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from api.pages.render import STATIC
from api.server import Protocol
from infra.client.api import ApiError, Client
from infra.client.body import Body
from infra.client.walk import Item, Stamp
from tests.conftest import InProcessApi
from tests.pace import LIMIT_S
from tests.served import served

BODY = 10 * 10**6
# what may be had without a key
OPEN = {
    ("GET", "/healthz"): 200, ("GET", "/readyz"): 200, ("GET", "/openapi.json"): 200, ("GET", "/docs"): 200,
    ("GET", "/fhir/metadata"): 200,
    ("GET", "/docs/oauth2-redirect"): 200, ("GET", "/login"): 200, ("POST", "/login"): 400, ("POST", "/logout"): 403,
}  # fmt: skip
# what is not there: said without a look at the body
NOWHERE = {
    ("POST", "/nowhere"): 404, ("GET", "/nowhere"): 404, ("POST", "/healthz"): 405, ("PATCH", "/api/v1/worklist"): 405,
    ("POST", f"{STATIC}/osteon.css"): 405, ("BREW", "/api/v1/studies"): 405,
}  # fmt: skip


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every route, those hidden from the OpenAPI document too."""
    found = set()
    for route in iter_route_contexts(app.routes):
        for method in getattr(route, "methods", None) or ():
            path = str(route.path).replace("{day}", "2026-01-01").replace("{path:path}", "")
            for name in ("study_id", "entry_id", "revised_id", "held_id", "filter_id", "key_id", "token"):
                path = path.replace(f"{{{name}}}", "3f0c2b1e-6f0e-4a53-9c1c-0d7b1d0e8a11")
            found.add((method, path.replace("{name}", "a").replace("{old}", "a").replace("{new}", "b")))
    return sorted(found)


@dataclass
class Response:
    """What came back, and how much the client had sent by then."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent: int


def ask(port: int, method: str, path: str, body: Iterator[bytes], **headers: str) -> Response:
    """Send a body until the response begins, as browsers do."""
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        lines = [f"{method} {path} HTTP/1.1", "Host: t", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        sent = 0
        sock.setblocking(False)
        piece = memoryview(next(body, b""))
        while piece:
            readable, writable, _ = select.select([sock], [sock], [], LIMIT_S)
            if readable:
                break
            if writable:
                done = sock.send(piece)
                sent += done
                piece = piece[done:] or memoryview(next(body, b""))
        sock.settimeout(LIMIT_S)
        return read_response(sock, sent)


def read_response(sock: socket.socket, sent: int = 0) -> Response:
    """The next response; its body is complete where its length is said or the connection closes."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        assert more, data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += sock.recv(65536)
    return Response(int(first.split()[1]), headers, body, sent)


class CountingProtocol(Protocol):
    """Counts what it is given."""

    received = 0

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        type(self).received += len(data)
        super().data_received(data)


def endless() -> Iterator[bytes]:
    """A JSON array of empty arrays, BODY long."""
    return itertools.chain([b"["], itertools.repeat(b"[]," * 10_000, BODY // 30_000))


def chunked(body: Iterator[bytes]) -> Iterator[bytes]:
    """The same in chunks."""
    return (b"%x\r\n%s\r\n" % (len(piece), piece) for piece in body)


@pytest.mark.parametrize("who", ["no key", "a wrong key"])
def test_no_body_is_read_without_a_key(in_process: InProcessApi, who: str) -> None:
    """Every route: 401 at once, though 10 MB are announced, and what the server took is less than socket buffers."""
    app = in_process.http.app
    assert isinstance(app, FastAPI)
    asked = [(method, path) for method, path in routes(app) if (method, path) != ("HEAD", "/openapi.json")]
    assert len(asked) > 60
    key = {"Authorization": "Bearer osk_wrong"} if who == "a wrong key" else {}
    with served(app, CountingProtocol) as port:
        for method, path in [*asked, *NOWHERE]:
            if method == "HEAD":
                continue
            for way in ("length", "chunks"):
                CountingProtocol.received = 0
                more = {"Content_Length": str(BODY)} if way == "length" else {"Transfer_Encoding": "chunked"}
                body = endless() if way == "length" else chunked(endless())
                got = ask(port, method, path, body, Content_Type="application/json", **more, **key)
                expected = (OPEN | NOWHERE).get((method, path), 401)
                assert got.status == expected, (method, path, got)
                assert got.headers["connection"] == "close", (method, path)
                assert CountingProtocol.received < 2**20, (method, path, CountingProtocol.received)


def test_the_role_comes_before_the_body(in_process: InProcessApi) -> None:
    """A key that may not: 403, with the body unread."""
    assert isinstance(in_process.http.app, FastAPI)
    with served(in_process.http.app, CountingProtocol) as port:
        for path in ("/api/v1/keys", "/api/v1/studies", "/api/v1/studies/states", "/api/v1/quarantine/release"):
            key = "radiologist" if path.startswith("/api/v1/studies") else "submitter"
            CountingProtocol.received = 0
            got = ask(port, "POST", path, endless(), Content_Length=str(BODY), Content_Type="application/json",
                      Authorization=f"Bearer {in_process.keys[key]}")  # fmt: skip
            assert (got.status, got.headers["connection"]) == (403, "close")
            assert CountingProtocol.received < 2**20


@pytest.mark.parametrize("way", ["length", "chunks"])
def test_json_bodies_are_bounded(in_process: InProcessApi, way: str) -> None:
    """With a key: 413 once the limit is passed, whether the length is announced or not."""
    assert isinstance(in_process.http.app, FastAPI)
    more = {"Content_Length": str(BODY)} if way == "length" else {"Transfer_Encoding": "chunked"}
    with served(in_process.http.app, CountingProtocol) as port:
        CountingProtocol.received = 0
        body = endless() if way == "length" else chunked(endless())
        got = ask(port, "POST", "/api/v1/keys", body, Content_Type="application/json", **more,
                  Authorization=f"Bearer {in_process.keys['admin']}")  # fmt: skip
        assert (got.status, got.headers["connection"]) == (413, "close")
        assert CountingProtocol.received < 2**20
        assert "65536" in json.loads(got.body)["detail"]


def test_expectation_is_refused_before_the_body(in_process: InProcessApi) -> None:
    """Expect: 100-continue: the refusal comes instead of the invitation; with a key the invitation comes."""
    assert isinstance(in_process.http.app, FastAPI)
    expecting: dict[str, Any] = {"Content_Length": "2", "Content_Type": "application/json", "Expect": "100-continue"}
    with served(in_process.http.app) as port:
        assert ask(port, "POST", "/api/v1/keys", iter(()), **expecting).status == 401
        key = f"Bearer {in_process.keys['admin']}"
        assert ask(port, "POST", "/api/v1/keys", iter(()), Authorization=key, **expecting).status == 100


def test_a_refused_small_request_keeps_nothing_waiting(in_process: InProcessApi) -> None:
    """A response after a whole body leaves the connection open for the next request."""
    assert isinstance(in_process.http.app, FastAPI)
    with served(in_process.http.app) as port, socket.create_connection(("127.0.0.1", port), LIMIT_S) as sock:
        head = f"POST /api/v1/studies/states HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {in_process.keys['submitter']}\r\n"
        for _ in range(2):
            sock.sendall(head.encode() + b'Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{"ids":[]}')
            got = read_response(sock)
            assert "connection" not in got.headers


def test_the_sender_is_told(in_process: InProcessApi, tmp_path: Path) -> None:
    """`osteon submit` sends first and reads then: it hears that its key is wrong, not that the API is away."""
    assert isinstance(in_process.http.app, FastAPI)
    large = tmp_path / "a.dcm"
    with large.open("wb") as file:
        file.truncate(3 * BODY)
    with served(in_process.http.app) as port, Client(f"http://127.0.0.1:{port}", "osk_wrong") as client:
        for _ in range(2):
            item = Item("a.dcm", large, Stamp(3 * BODY, 0), 3 * BODY)
            with pytest.raises(ApiError, match="401"):
                client.upload(Body([item], {"priority": "routine"}, lambda _: None))
