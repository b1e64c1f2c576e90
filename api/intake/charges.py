"""Quotas: what a key and a site may send in an hour."""

from collections.abc import Iterator
from contextlib import contextmanager

from api.backends import Backends
from api.request_metrics import UPLOADS_REFUSED
from api.spool import SpoolFull
from shared.errors import QuotaExceeded
from shared.logs import get_logger
from shared.queries import quotas
from shared.queries.access import Key
from shared.queries.quotas import Quotas
from shared.settings import Settings

log = get_logger(__name__)


def charge_bytes(backends: Backends, key: Key, size_bytes: int) -> None:
    """Check a request against the quotas of its key and site, and charge its bytes.

    Args:
        backends: of this process.
        key: of the request.
        size_bytes: of its body.

    Raises:
        QuotaExceeded: it is too much.
    """
    with backends.database.transaction() as session:
        quotas.charge_bytes(session, key, quotas_from_settings(backends.settings), size_bytes)


def refund_bytes(backends: Backends, key: Key, size_bytes: int) -> None:
    """Undo a charge. Fails no upload.

    Args:
        backends: of this process.
        key: that was charged.
        size_bytes: how many bytes.
    """
    try:
        with backends.database.transaction() as session:
            quotas.refund_bytes(session, key, size_bytes)
    except Exception as error:  # noqa: BLE001 - the request has failed already
        log.warning("quota not refunded", error=type(error).__name__)


def quotas_from_settings(settings: Settings) -> Quotas:
    """The settings that limit what may be sent in an hour."""
    return Quotas(
        settings.key_bytes_per_hour,
        settings.site_bytes_per_hour,
        settings.key_studies_per_hour,
        settings.site_studies_per_hour,
        settings.urgent_share,
        settings.urgent_free,
    )


@contextmanager
def count_refused_uploads() -> Iterator[None]:
    """Count uploads that are refused for lack of room or quota."""
    try:
        yield
    except (QuotaExceeded, SpoolFull) as error:
        UPLOADS_REFUSED.labels("quota" if isinstance(error, QuotaExceeded) else "spool").inc()
        raise
