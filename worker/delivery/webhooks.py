"""Signed webhooks: ids and codes of what happened to a study, posted to a receiver that can tell that we sent them.

No redirect is followed, no proxy is used, and the connection goes to an address that was checked: a name that leads
into a network which the site has not allowed is refused, whatever it leads to later. Source: Standard Webhooks 1.0.0
(https://github.com/standard-webhooks/standard-webhooks), RFC 9110, RFC 6890 (special addresses).
"""

import base64
import binascii
import hmac
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpcore

from shared import __version__
from shared.domain.notices import PREFIX, Event, Network, is_never_allowed

MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64  # bytes of a secret
WAIT_S = 5.0  # for all of a request
MAX_ANSWER_BYTES = 16 * 1024  # bytes of a response that are read, to be shown to an administrator
MAX_ADDRESSES = 4  # of one name that are tried
MAX_SECRETS = 2  # of one receiver: while one replaces the other, both sign

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressNotAllowed(Exception):
    """The receiver's name leads into a network that the site has not allowed."""


class TooSlow(Exception):
    """The receiver has not answered within WAIT_S."""


class NoConnection(Exception):
    """There is no connection, or it ended before a response came. unknown: nobody knows the name."""

    def __init__(self, *, unknown: bool = False) -> None:
        super().__init__("there is no connection")
        self.unknown = unknown


class WrongCertificate(Exception):
    """No authority that we trust has signed the receiver's certificate, or it is for another name."""


@dataclass(frozen=True)
class Notice:
    """What a receiver is told: ids and codes alone. Who the patient is, it asks for by the study, with a key.

    study_id, study_instance_uid, status: empty: it is about the site.
    """

    event: Event
    happened_at: datetime
    study_id: str
    study_instance_uid: str
    status: str
    assessment: str = ""  # empty: there is none
    region: str = ""
    reason: str = ""  # code of a quarantined study
    model: str = ""
    link: str = ""  # to the study's page, or the one of operations
    count: int = 0  # of a site: studies that wait, or deliveries that fail
    destination: str = ""  # where these go

    @property
    def body(self) -> bytes:
        """JSON, the same for the same notice. Absent values are left out."""
        data = {
            "study_id": self.study_id, "study_instance_uid": self.study_instance_uid, "status": self.status,
            "assessment": self.assessment, "region": self.region, "reason": self.reason, "model": self.model,
            "link": self.link, "count": self.count, "destination": self.destination,
        }  # fmt: skip
        values: dict[str, Any] = {
            "type": str(self.event),
            "timestamp": _stamp(self.happened_at),
            "data": {name: value for name, value in data.items() if value},
        }
        return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()


def test_body(now: datetime) -> bytes:
    """The body of a test: an event of no study."""
    values = {"type": "destination.test", "timestamp": _stamp(now), "data": {}}
    return json.dumps(values, separators=(",", ":")).encode()


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Response:
    """What a receiver answered. words: the beginning of its body, printable; never logged."""

    status: int
    words: str = field(default="", repr=False)

    @property
    def accepted(self) -> bool:
        """Whether it has taken the notice; a redirect is no acceptance."""
        return 200 <= self.status < 300


def key_of(secret: str) -> bytes:
    """Read a secret.

    Args:
        secret: as `shared.domain.notices.webhook_secret` derives it.

    Returns:
        Its bytes.

    Raises:
        ValueError: it is no base64 of MIN_SECRET_BYTES to MAX_SECRET_BYTES bytes; the message repeats nothing of it.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"A secret is {PREFIX} and base64") from None
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(f"A secret has {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes")
    return key


def sign(body: bytes, id_: str, sent_at: datetime, keys: Sequence[str]) -> dict[str, str]:
    """Make the headers of a request.

    The id stays the same at each try, so that a receiver can tell a repetition. The time is that of the try: receivers
    refuse what is older than some minutes.

    Args:
        body: of the request.
        id_: of the notice; without a dot.
        sent_at: now.
        keys: the receiver's secrets, one or, while one replaces the other, two.

    Returns:
        The headers that sign it, one signature for each secret.

    Raises:
        ValueError: there is no secret, or there are more, or one is none.
    """
    if not 1 <= len(keys) <= MAX_SECRETS:
        raise ValueError(f"A receiver has 1 to {MAX_SECRETS} secrets")
    stamp = str(int(sent_at.timestamp()))
    message = f"{id_}.{stamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key_of(one), message, "sha256")).decode() for one in keys]
    return {
        "webhook-id": id_,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(f"v1,{one}" for one in signatures),
    }


def is_allowed(address: str, allowed: Iterable[Network], *, public: bool = True) -> bool:
    """Decide whether a receiver may have an address.

    Args:
        address: as a resolver writes it.
        allowed: networks that the site allows.
        public: whether the public ones are allowed beside them.

    Returns:
        Whether it is in one of them, or public, and none that is never allowed. An IPv4 address within an IPv6 one is
        decided by itself.
    """
    found = _unwrap(ipaddress.ip_address(address.partition("%")[0]))
    if is_never_allowed(found):
        return False
    if any(found in network for network in allowed if network.version == found.version):
        return True
    if not public or found.is_multicast or found.is_reserved:
        return False
    return found.is_global and not (isinstance(found, ipaddress.IPv6Address) and found.is_site_local)


def _unwrap(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[12:])
    within = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    return within or address


def post(
    url: str, body: bytes, headers: Mapping[str, str], allowed: Sequence[Network], context: ssl.SSLContext | None = None
) -> Response:
    """Post a notice.

    Args:
        url: of the receiver, checked when it was added.
        body: as `Notice.body` has it.
        headers: as `sign` returns them.
        allowed: networks that the site allows; public ones beside them for HTTPS alone.
        context: for HTTPS; None: the authorities that this system trusts.

    Returns:
        What the receiver answered, whatever the status. Its body has no say: one that does not end is cut.

    Raises:
        AddressNotAllowed: its name leads elsewhere.
        TooSlow: it took longer than WAIT_S.
        NoConnection: it cannot be reached, or hung up.
        WrongCertificate: its certificate is not trusted.
    """
    ends = time.monotonic() + WAIT_S
    own_headers = {"content-type": "application/json", "user-agent": f"Osteon/{__version__}", "accept": "*/*"}
    network = _CheckedNetwork(tuple(allowed), ends, public=url.startswith("https:"))
    try:
        with (
            httpcore.ConnectionPool(
                ssl_context=context or ssl.create_default_context(), network_backend=network, retries=0
            ) as pool,
            pool.stream("POST", url, headers=[*own_headers.items(), *headers.items()], content=body) as response,
        ):
            accepted = 200 <= response.status < 300  # what else is said does not matter then, and may take its time
            return Response(response.status, "" if accepted else _words(response.iter_stream()))
    except (TimeoutError, httpcore.TimeoutException):
        raise TooSlow from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError):
        raise NoConnection from None


def _words(pieces: Iterable[bytes]) -> str:
    """The beginning of a body, fit to be shown; what comes of one that is cut, or does not end."""
    taken = b""
    with suppress(TooSlow, OSError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        for piece in pieces:
            taken += piece
            if len(taken) >= MAX_ANSWER_BYTES:
                break
    text = taken[:MAX_ANSWER_BYTES].decode("utf-8", "replace")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


class _CheckedNetwork(httpcore.NetworkBackend):
    """Connects to addresses that are allowed, and ends each wait with the deadline of the whole request."""

    def __init__(self, allowed: tuple[Network, ...], ends: float, *, public: bool) -> None:
        self._allowed, self._ends, self._public, self._plain = allowed, ends, public, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - ours counts
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve the name once, and connect to what it led to if that is allowed, and all of it is."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError):  # a name with a part that is too long
            raise NoConnection(unknown=True) from None
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        if not addresses or not all(is_allowed(one, self._allowed, public=self._public) for one in addresses):
            raise AddressNotAllowed
        tried = addresses[:MAX_ADDRESSES]
        for left, one in zip(range(len(tried), 0, -1), tried, strict=True):  # one that is silent leaves time for others
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                limit_s = _seconds_left(self._ends) / left
                stream = self._plain.connect_tcp(one, port, limit_s, local_address, socket_options)
                return _TimedStream(stream, self._ends)
        raise NoConnection


class _TimedStream(httpcore.NetworkStream):
    """A stream whose waits all end at one time."""

    def __init__(self, stream: httpcore.NetworkStream, ends: float) -> None:
        self._stream, self._ends = stream, ends

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - ours counts
        """As httpcore has it."""
        return self._stream.read(max_bytes, _seconds_left(self._ends))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - ours counts
        """As httpcore has it."""
        self._stream.write(buffer, _seconds_left(self._ends))

    def close(self) -> None:
        """As httpcore has it."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - ours counts
    ) -> httpcore.NetworkStream:
        """As httpcore has it."""
        try:
            return _TimedStream(
                self._stream.start_tls(ssl_context, server_hostname, _seconds_left(self._ends)), self._ends
            )
        except httpcore.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise WrongCertificate from None
            raise

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's
        """As httpcore has it."""
        return self._stream.get_extra_info(info)


def _seconds_left(ends: float) -> float:
    """Seconds until the deadline. Raises TooSlow once it has passed."""
    left = ends - time.monotonic()
    if left <= 0:
        raise TooSlow
    return left
