"""Webhooks: signatures that others verify, addresses that are allowed, and receivers that misbehave."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from shared.domain.notices import Event, parse_networks, webhook_secret
from tests.certificates import Certificates
from tests.pace import limit_s
from worker.delivery import webhooks
from worker.delivery.webhooks import (
    MAX_ANSWER_BYTES,
    AddressNotAllowed,
    NoConnection,
    Notice,
    Response,
    TooSlow,
    WrongCertificate,
    is_allowed,
    key_of,
    post,
    sign,
)

NOTICE = Notice(
    Event.ANALYSED, datetime(2026, 1, 10, 9, 20, tzinfo=UTC), "0b5c", "1.2.3", "analysed", "positive", "hand", model="first",
    link="https://osteon.example/view/0b5c",
)  # fmt: skip
HERE = parse_networks("127.0.0.0/8, ::1/128")


@given(
    st.binary(min_size=24, max_size=64),
    st.text("abcdef0123456789-_", min_size=1, max_size=40),
    st.dictionaries(st.text(max_size=5), st.text(max_size=9)),
)
def test_others_verify_what_we_sign(key: bytes, id_: str, data: dict[str, str]) -> None:
    """The library of Standard Webhooks takes it, and nothing that was changed; each of two secrets verifies alone."""
    import base64

    secret, second = "whsec_" + base64.b64encode(key).decode(), webhook_secret("k" * 32, UUID(int=1), 1)
    body = json.dumps(data).encode()
    headers = sign(body, id_, datetime.now(UTC), [second, secret])
    assert Webhook(secret).verify(body, headers) == data
    assert Webhook(second).verify(body, headers) == data
    for changed, more in (
        (body + b" ", {}),
        (body, {"webhook-id": f"{id_}x"}),
        (body, {"webhook-timestamp": str(int(time.time()) + 7)}),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(changed, headers | more)
    with pytest.raises(WebhookVerificationError):
        Webhook(webhook_secret("k" * 32, UUID(int=1), 2)).verify(body, headers)


def test_the_time_is_that_of_the_try() -> None:
    """A receiver refuses what is older than minutes, so that each try is signed anew; the id stays."""
    secret = webhook_secret("k" * 32, UUID(int=1), 1)
    old = sign(NOTICE.body, "id", datetime.now(UTC) - timedelta(hours=1), [secret])
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(secret).verify(NOTICE.body, old)
    new = sign(NOTICE.body, "id", datetime.now(UTC), [secret])
    assert old["webhook-id"] == new["webhook-id"]
    Webhook(secret).verify(NOTICE.body, new)


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_x", "whsec_AAAA", "whsec_" + "A" * 200, "whsec_!!!!" + "A" * 40]
)
def test_what_is_no_secret(secret: str) -> None:
    """Too short, too long, no base64; and the error repeats nothing of it."""
    with pytest.raises(ValueError, match="secret") as wrong:
        key_of(secret)
    assert "AAAA" not in str(wrong.value)
    for keys in ([], [webhook_secret("k" * 32, UUID(int=1), 1)] * 3):
        with pytest.raises(ValueError, match="1 to 2"):
            sign(b"", "id", datetime.now(UTC), keys)


def test_a_notice_names_nobody() -> None:
    """Ids and codes; absent values are left out; the same bytes each time."""
    assert json.loads(NOTICE.body) == {
        "type": "study.analysed",
        "timestamp": "2026-01-10T09:20:00.000000Z",
        "data": {
            "study_id": "0b5c", "study_instance_uid": "1.2.3", "status": "analysed", "assessment": "positive", "region": "hand",
            "model": "first", "link": "https://osteon.example/view/0b5c",
        },
    }  # fmt: skip
    assert NOTICE.body == NOTICE.body
    fields = set(Notice.__dataclass_fields__)
    assert not {one for one in fields if "patient" in one or "name" in one or "accession" in one or "birth" in one}


PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111"]
SPECIAL = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1",
    "192.0.2.1", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1", "fec0::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "2002:0a00:0001::1",
    "2001:0:0a00:1::f5ff:fffe",
]  # fmt: skip


def test_which_addresses_are_allowed() -> None:
    """Public ones, and those that the site names; however an IPv4 address is wrapped."""
    assert all(is_allowed(one, ()) for one in PUBLIC)
    assert [one for one in SPECIAL if is_allowed(one, ())] == []
    assert is_allowed("10.1.2.3", parse_networks("10.0.0.0/8")) and is_allowed(
        "::ffff:10.1.2.3", parse_networks("10.0.0.0/8")
    )
    assert not is_allowed("10.1.2.3", parse_networks("192.168.0.0/16, fc00::/7"))
    everything = parse_networks("0.0.0.0/0, ::/0")
    for one in (
        "169.254.169.254", "fe80::1", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254",
        "168.63.129.16", "100.100.100.200", "192.0.0.192",
    ):  # fmt: skip
        assert not is_allowed(one, everything)  # a cloud's credentials, whatever a site names
    assert not is_allowed("8.8.8.8", parse_networks("10.0.0.0/8"), public=False)
    assert is_allowed("10.1.2.3", everything)
    with pytest.raises(ValueError, match="link-local"):
        parse_networks("169.254.169.0/24")
    assert parse_networks("none") == ()
    with pytest.raises(ValueError, match="network"):
        parse_networks("nonsense")


@contextmanager
def receiver(answer: Any, context: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """A server for one request: the beginning of its URL, and what it received. answer: bytes, or a function."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
                with context.wrap_socket(connection, server_side=True) if context else connection as talking:
                    received = b""
                    while b"\r\n\r\n" not in received or not received.endswith(b"}}"):
                        piece = talking.recv(65536)
                        if not piece:
                            break
                        received += piece
                    seen.append(received)
                    if callable(answer):
                        answer(talking)
                    else:
                        talking.sendall(answer)
            except OSError:
                pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"{'https' if context else 'http'}://localhost:{server.getsockname()[1]}", seen
        finally:
            with suppress(OSError):  # wakes a server that nobody has called
                server.shutdown(socket.SHUT_RDWR)
    thread.join(limit_s(10))


def told(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Any", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def sent(url: str, allowed: Any = HERE, context: ssl.SSLContext | None = None) -> Response:
    secret = webhook_secret("k" * 32, UUID(int=1), 1)
    return post(f"{url}/hook?x=1", NOTICE.body, sign(NOTICE.body, "id", datetime.now(UTC), [secret]), allowed, context)


def test_what_a_receiver_gets_and_says() -> None:
    """The path, the host that was named, the signature, the body; and its status with the beginning of its words."""
    with receiver(told(400, b"so\x00\xff not")) as (url, seen):
        response = sent(url)
    assert (response.status, response.accepted) == (400, False)
    assert response.words.startswith("so")
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert body == NOTICE.body
    assert head.startswith(b"POST /hook?x=1 HTTP/1.1\r\n")
    names = head.lower()
    for name in (
        b"webhook-id: id",
        b"webhook-timestamp: ",
        b"webhook-signature: v1,",
        b"content-type: application/json",
        b"host: localhost:",
    ):
        assert name in names


@pytest.mark.parametrize("status", [302, 307, 400, 410, 429, 500, 503])
def test_nothing_but_success_is_success(status: int) -> None:
    """A redirect is not followed: it would lead to an address that nobody checked."""
    with receiver(told(status, b"", "Location: http://127.0.0.1:1/")) as (url, seen):
        response = sent(url)
    assert (response.status, response.accepted, len(seen)) == (status, False, 1)


def dripping(talking: socket.socket) -> None:
    talking.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        talking.sendall(b"X-Drip: 1\r\n")
        time.sleep(0.02)


def dripping_body(status: int) -> Callable[[socket.socket], None]:
    def drip(talking: socket.socket) -> None:
        talking.sendall(f"HTTP/1.1 {status} So\r\nContent-Length: 100000\r\n\r\n".encode())
        while True:
            talking.sendall(b"x")
            time.sleep(0.02)

    return drip


def endless(talking: socket.socket) -> None:
    talking.sendall(b"HTTP/1.1 400 No\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        talking.sendall(b"x" * 65536)


def test_slow_and_large_receivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """All waits together end with one deadline, whatever comes meanwhile; of a body only a beginning is read."""
    with receiver(endless) as (url, _):
        assert len(sent(url).words) <= MAX_ANSWER_BYTES
    monkeypatch.setattr(webhooks, "WAIT_S", 0.4)
    for answer in (lambda talking: talking.recv(1), dripping):
        with receiver(answer) as (url, _), pytest.raises(TooSlow):
            sent(url)


@pytest.mark.parametrize("status", [202, 400, 503])
def test_a_body_that_does_not_end_changes_no_status(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has said that it has the message has it: it is not told again because of what follows."""
    begun: list[bool] = []
    words, seconds_left = webhooks._words, webhooks._seconds_left

    def begin(pieces: Iterable[bytes]) -> str:
        begun.append(True)  # from now on the deadline is passed
        return words(pieces)

    monkeypatch.setattr(webhooks, "_words", begin)
    monkeypatch.setattr(webhooks, "_seconds_left", lambda ends: seconds_left(0 if begun else ends))
    for answer in (dripping_body(status), told(status, b"12345")[:-3]):
        begun.clear()
        with receiver(answer) as (url, _):
            response = sent(url)
        assert (response.status, response.accepted) == (status, status == 202)


def test_an_address_without_encryption_must_be_in_a_network_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes through the internet in the clear because some network of the site is named."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: found)
    with pytest.raises(AddressNotAllowed):
        sent("http://receiver.example", parse_networks("10.0.0.0/8"))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 2", b"SSH-2.0-x\r\n"])
def test_a_receiver_that_hangs_up(answer: bytes) -> None:
    """Before or within the head: there is no response."""
    with receiver(answer) as (url, _), pytest.raises(NoConnection):
        sent(url)


def test_no_way_into_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it allows its network, nothing is sent, whatever the name; one address of several is enough to refuse."""
    with receiver(told(200)) as (url, seen):
        for allowed in ((), parse_networks("10.0.0.0/8")):
            with pytest.raises(AddressNotAllowed):
                sent(url, allowed)
        for addresses in (["10.0.0.1"], ["8.8.8.8", "127.0.0.1"]):
            found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (one, 80)) for one in addresses]
            with monkeypatch.context() as patched, pytest.raises(AddressNotAllowed):
                patched.setattr(socket, "getaddrinfo", lambda *_a, found=found, **_k: found)
                sent("http://receiver.example", ())
    assert seen == []


def test_an_address_that_is_silent_leaves_time_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with IPv6 that leads nowhere beside IPv4 that works; together they have the time of one request."""
    connect, waited = httpcore.SyncBackend.connect_tcp, []

    def silent(backend: Any, host: str, port: int, timeout: float, *more: Any) -> Any:
        waited.append(timeout)
        if host == "127.0.0.9":
            raise httpcore.ConnectTimeout
        return connect(backend, host, port, timeout, *more)

    with receiver(told(204)) as (url, seen):
        port = int(url.rpartition(":")[2])
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (one, port)) for one in ("127.0.0.9", "127.0.0.1")]
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", lambda *_a, **_k: found)
            patched.setattr(httpcore.SyncBackend, "connect_tcp", silent)
            assert sent(url).accepted
    assert len(seen) == 1
    assert waited[0] <= webhooks.WAIT_S / 2


def test_a_name_that_nobody_knows() -> None:
    """Told apart from a receiver that is away."""
    for name in ("nobody.invalid", "a" * 64 + ".example"):
        with pytest.raises(NoConnection) as wrong:
            sent(f"http://{name}")
        assert wrong.value.unknown
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(NoConnection) as wrong:
        sent(f"http://localhost:{port}")
    assert not wrong.value.unknown


def test_certificates(tmp_path: Path) -> None:
    """The receiver's must be trusted, and for the name in its URL, although an address is connected to."""
    certificate, key, _ = Certificates(tmp_path).make("receiver")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    with receiver(told(204), server) as (url, _):
        assert sent(url, context=ssl.create_default_context(cafile=str(certificate))).accepted
    with receiver(told(204), server) as (url, seen):
        with pytest.raises(WrongCertificate):
            sent(url)
    assert seen == []
