"""TLS for associations: the profile of PS3.15 B.12, which is BCP 195 (RFC 8996, RFC 9325)."""

import hashlib
import socket
import ssl

from shared.errors import OsteonError
from shared.settings import Settings

# forward secrecy and AEAD only, as RFC 9325 4.2 recommends for TLS 1.2; those of TLS 1.3 are all of that kind
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
HANDSHAKE_S = 10.0


def context(settings: Settings) -> ssl.SSLContext:
    """Make the context of the TLS port.

    Args:
        settings: certificate, key, and whose certificates clients may show.

    Returns:
        The context; TLS 1.2 or newer.

    Raises:
        OsteonError: a file is missing or holds no certificate or key.
    """
    certificate, clients = settings.dicom_tls_certificate, settings.dicom_tls_clients
    if certificate is None:
        raise OsteonError(
            "Set OSTEON_DICOM_TLS_CERTIFICATE to the file of our certificate: OSTEON_DICOM_TLS_PORT is set"
        )
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(CIPHERS)
    made.options |= ssl.OP_NO_RENEGOTIATION
    try:
        made.load_cert_chain(certificate, settings.dicom_tls_key)
    except OSError as error:
        raise OsteonError(
            "OSTEON_DICOM_TLS_CERTIFICATE and OSTEON_DICOM_TLS_KEY do not name a certificate and its key in PEM that "
            f"this process can read: {error.strerror or type(error).__name__}"
        ) from error
    if clients is not None:
        made.verify_mode = ssl.CERT_REQUIRED if settings.dicom_tls_mutual else ssl.CERT_OPTIONAL
        made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a device's own certificate suffices, without who signed it
        try:
            made.load_verify_locations(clients)
        except OSError as error:
            raise OsteonError(
                "OSTEON_DICOM_TLS_CLIENTS names no file of certificates in PEM that this process can read: "
                f"{error.strerror or type(error).__name__}"
            ) from error
    elif settings.dicom_tls_mutual:
        raise OsteonError(
            "OSTEON_DICOM_TLS_MUTUAL is set: set OSTEON_DICOM_TLS_CLIENTS to a file of the certificates of those who "
            "may connect, or of their authorities"
        )
    return made


def fingerprint(connection: socket.socket) -> str:
    """SHA-256 of the certificate that the client showed and the handshake verified; "" without one."""
    shown = connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLSocket) else None
    return hashlib.sha256(shown).hexdigest() if shown else ""
