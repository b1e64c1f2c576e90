"""What the kinds of destinations have in common: how one is opened, given an object, and closed."""

import hashlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from shared.domain.destinations import Answer, Capabilities, DeliveryReason, Destination, printable_words
from shared.queries.deliveries import DueObject
from shared.settings import Settings

# forward secrecy and AEAD only, as RFC 9325 4.2 recommends for TLS 1.2; those of TLS 1.3 are all of that kind
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
SLOWEST = 128 * 1024  # bytes a second that a destination takes at least


class Away(Exception):
    """The destination takes nothing just now, or never will: no further object is tried."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(str(answer.reason))
        self.answer = answer


@dataclass(frozen=True)
class KnownPatient:
    """Whose a study is at the destination. No repr: it names a patient."""

    patient_id: str
    issuer: str

    def __repr__(self) -> str:
        return "KnownPatient()"


class Connection(Protocol):
    """An open way into a destination. All calls are bounded; each may raise Away."""

    @property
    def capabilities(self) -> Capabilities:
        """What it takes of all that was proposed; empty: it does not say before it is given something."""

    def test(self) -> Answer:
        """Ask whether it would take something, as far as that can be asked without giving it anything."""

    def refuses(self, due_object: DueObject) -> bool:
        """Whether it takes no object of this one's class."""

    def send(self, due_object: DueObject, content: bytes) -> Answer:
        """Give it an object: a DICOM file.

        Args:
            due_object: which.
            content: the file.

        Returns:
            Its answer.
        """

    def patient_of(self, study_instance_uid: str) -> KnownPatient | None:
        """Whose a study is there; None: it does not know the study, or cannot be asked."""

    def close(self) -> None:
        """Leave; raises nothing."""


def answer_limit_s(settings: Settings, size_bytes: int) -> float:
    """How long to wait for the answer to an object.

    Args:
        settings: how long at least.
        size_bytes: of the object.

    Returns:
        Seconds.
    """
    return settings.delivery_answer_s + size_bytes / SLOWEST


# -- TLS


class ClientContext(ssl.SSLContext):
    """A client's context that knows the fingerprint of the one certificate it takes, and why a handshake failed."""

    fingerprint = ""
    failure = ""  # of the last handshake; empty: none failed


class _Socket(ssl.SSLSocket):
    """A socket that holds the server to its fingerprint before anything is sent."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - ssl's
        context = self.context
        assert isinstance(context, ClientContext)
        try:
            super().do_handshake(block)
            shown = self.getpeercert(binary_form=True) or b""
            if context.fingerprint and hashlib.sha256(shown).hexdigest() != context.fingerprint:
                raise ssl.SSLCertVerificationError("the certificate is not the one that was agreed on")
        except ssl.SSLError as error:
            # an error that Python raises, as this one does, has no reason
            context.failure = getattr(error, "reason", "") or "the certificate is not the one that was agreed on"
            raise


def client_context(settings: Settings, destination: Destination) -> ClientContext:
    """Make the context for a destination: TLS 1.2 or newer, held to its fingerprint, or else to its authority.

    Source: PS3.15 B.12, which is BCP 195 (RFC 8996, RFC 9325).

    Args:
        settings: our certificate, and which authorities we trust.
        destination: with or without a fingerprint.

    Returns:
        The context.

    Raises:
        Away: a file of the settings is missing or holds no certificate or key.
    """
    made = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    made.sslsocket_class = _Socket
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(CIPHERS)
    try:
        if destination.tls_fingerprint:
            made.fingerprint = destination.tls_fingerprint
            made.check_hostname = False
            made.verify_mode = ssl.CERT_NONE  # it is compared whole instead
        elif settings.delivery_tls_authorities is not None:
            made.load_verify_locations(settings.delivery_tls_authorities)
        else:
            made.load_default_certs()
        if settings.delivery_tls_certificate is not None:
            made.load_cert_chain(settings.delivery_tls_certificate, settings.delivery_tls_key)
    except OSError as error:
        words = (
            "OSTEON_DELIVERY_TLS_CERTIFICATE, OSTEON_DELIVERY_TLS_KEY and OSTEON_DELIVERY_TLS_AUTHORITIES do not all "
            f"name files in PEM that this process can read: {error.strerror or type(error).__name__}"
        )
        raise Away(Answer(DeliveryReason.CERTIFICATE, words=printable_words(words))) from error
    return made


def certificate_refusal(context: ssl.SSLContext | None) -> Answer | None:
    """The answer where a handshake failed; None: none did."""
    if isinstance(context, ClientContext) and context.failure:
        return Answer(DeliveryReason.CERTIFICATE, words=context.failure.replace("_", " ").lower())
    return None


def first_value(attributes: Mapping[str, Any], tag: str) -> str:
    """Read the first value of an attribute of DICOM JSON. Source: PS3.18 F.2.

    Args:
        attributes: the data set.
        tag: eight hexadecimal digits.

    Returns:
        The value as text; empty: there is none.
    """
    element = attributes.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    return str(values[0]) if isinstance(values, list) and values else ""
