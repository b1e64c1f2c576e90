"""STOW-RS and QIDO-RS as a client. Source: PS3.18 10.5 and Annex I (store), 10.6 (search)."""

import json
import secrets
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from shared.domain.destinations import (
    Answer,
    Capabilities,
    DeliveryReason,
    Destination,
    failure_answer,
    http_answer,
)
from shared.queries.deliveries import DueObject
from shared.settings import Settings
from worker.delivery.connections import (
    Away,
    KnownPatient,
    answer_limit_s,
    certificate_refusal,
    client_context,
    first_value,
)

MAX_ANSWER_BYTES = 1 << 20  # bytes of a response that are read
CONNECT_S = 10.0
FAILED_SOP, FAILURE_REASON, REFERENCED_UID = "00081198", "00081197", "00081155"
PATIENT_ID, ISSUER = "00100020", "00100021"
JSON = "application/dicom+json"


class StowConnection:
    """A STOW-RS service. Each object is a request of its own, so that each has an answer of its own."""

    def __init__(self, settings: Settings, destination: Destination, authorization: str = "") -> None:
        """authorization: header that it is shown with each request; empty: none."""
        self._settings, self._destination = settings, destination
        self.capabilities: Capabilities = {}
        self._context = client_context(settings, destination) if destination.url.startswith("https") else None
        self._client = httpx.Client(
            verify=self._context or False,  # without TLS there is nothing to verify
            follow_redirects=False,  # an object goes where an administrator said, and nowhere else
            trust_env=False,
            headers={"Authorization": authorization} if authorization else None,
            limits=httpx.Limits(max_connections=1),
        )

    def refuses(self, due_object: DueObject) -> bool:  # noqa: ARG002 - it says so when it is given one
        """False."""
        return False

    def send(self, due_object: DueObject, content: bytes) -> Answer:
        """Store an object.

        Args:
            due_object: which.
            content: the file.

        Returns:
            The answer; with 200 and 202, too, it may say that it failed.
        """
        mark = f"osteon-{secrets.token_hex(16)}"
        head = f"--{mark}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + content + f"\r\n--{mark}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={mark}'
        status, response, words = self._ask(
            "POST", "/studies", answer_limit_s(self._settings, len(body)), content=body,
            headers={"Content-Type": kind, "Accept": JSON},
        )  # fmt: skip
        failure = _failure(response, due_object.sop_instance_uid)
        if failure is not None and (status < 300 or status == 409):
            return failure_answer(failure)
        return Answer(None, f"HTTP {status}") if status < 300 else http_answer(status, words)

    def test(self) -> Answer:
        """Send a request without an object: whoever speaks STOW-RS refuses it, and nobody stores anything."""
        status, _, words = self._ask(
            "POST", "/studies", self._settings.delivery_answer_s, content=b"--x--\r\n",
            headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=x', "Accept": JSON},
        )  # fmt: skip
        if status < 300 or status in (400, 409, 415, 422):
            shown = "with a login" if "Authorization" in self._client.headers else "without a login"
            return Answer(None, f"HTTP {status}", shown)
        return http_answer(status, words)

    def patient_of(self, study_instance_uid: str) -> KnownPatient | None:
        """Ask by QIDO-RS whose a study is; None: it does not know the study, or does not say."""
        fields = {"StudyInstanceUID": study_instance_uid, "includefield": f"{PATIENT_ID},{ISSUER}", "limit": "2"}
        status, matches, _ = self._ask(
            "GET", "/studies", self._settings.delivery_answer_s, params=fields, headers={"Accept": JSON}
        )
        if status != 200 or not isinstance(matches, list) or len(matches) != 1 or not isinstance(matches[0], Mapping):
            return None
        return KnownPatient(first_value(matches[0], PATIENT_ID), first_value(matches[0], ISSUER))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _ask(self, method: str, path: str, limit_s: float, **more: Any) -> tuple[int, Any, str]:  # noqa: ANN401 - httpx's
        """Status, JSON if there is any, and words; of a response that ends in time."""
        timeout = httpx.Timeout(limit_s, connect=CONNECT_S)
        until = time.monotonic() + limit_s
        try:
            with self._client.stream(method, self._destination.url + path, timeout=timeout, **more) as response:
                text = b"".join(_read_in_time(response.iter_bytes(), until))
                return response.status_code, _json(text), "" if response.is_success else _words(response, text)
        except httpx.TimeoutException as error:
            connecting = isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
            reason = DeliveryReason.UNREACHABLE if connecting else DeliveryReason.NO_ANSWER
            raise Away(Answer(reason)) from error
        except httpx.HTTPError as error:
            raise Away(certificate_refusal(self._context) or _failure_answer(error)) from error


def _read_in_time(parts: Iterator[bytes], until: float) -> Iterator[bytes]:
    """The parts of a response, as long as they come in time; what is beyond MAX_ANSWER_BYTES is not read."""
    read = 0
    for part in parts:
        yield part
        read += len(part)
        if read >= MAX_ANSWER_BYTES:
            return
        if time.monotonic() > until:
            raise httpx.ReadTimeout("the response does not end")


def _failure_answer(error: httpx.HTTPError) -> Answer:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            why = str(getattr(cause, "reason", None) or "")
            return Answer(DeliveryReason.CERTIFICATE, words=why.replace("_", " ").lower())
        if isinstance(cause, socket.gaierror):
            return Answer(DeliveryReason.UNKNOWN_NAME)
        cause = cause.__cause__ or cause.__context__
    return Answer(DeliveryReason.UNREACHABLE if isinstance(error, httpx.ConnectError) else DeliveryReason.CUT)


def _json(text: bytes) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _words(response: httpx.Response, text: bytes) -> str:
    """What a service says of its refusal: its warning, else the beginning of its text."""
    return response.headers.get("Warning") or text[:400].decode("utf-8", "replace")


def _failure(response: object, sop_instance_uid: str) -> int | None:
    """The Failure Reason of an object; None: the response names none."""
    items = response.get(FAILED_SOP) if isinstance(response, Mapping) else None
    for item in items.get("Value") or () if isinstance(items, Mapping) else ():
        if isinstance(item, Mapping) and first_value(item, REFERENCED_UID) in (sop_instance_uid, ""):
            number = first_value(item, FAILURE_REASON)
            return int(number) if number.isdecimal() else 0x0110
    return None
