"""Encapsulated documents: their bytes, and the headers with which a viewer's page may show them. Source: PS3.3 C.24."""

from typing import Any

from fastapi import HTTPException

from api.dependencies import Parts
from api.dicomweb.objects import open_object
from shared.dicom.image import ImageLimits
from shared.dicom.metadata import bulk_value
from shared.errors import NotFound, ObjectMissing, Rejected
from shared.queries.retrieval import StoredInstance
from shared.storage import original_key

DOCUMENT, DOCUMENT_TYPE, DOCUMENT_LENGTH = "00420011", "00420012", "00420015"
PDF = "application/pdf"
# A viewer of the same origin puts the document into its page, as OHIF does by <object>. Such a page is often isolated
# (COEP), and then takes only documents that say the same of themselves. Other origins fetch the bytes with a key.
SHOWN_IN_PAGES = {
    "X-Frame-Options": "SAMEORIGIN",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Cross-Origin-Embedder-Policy": "require-corp",
}


def is_pdf(parts: Parts, stored: StoredInstance) -> bool:
    """Whether an instance says that it holds a PDF.

    What a file says of any other type never becomes a header of ours: a browser would run text/html as this host's.

    Args:
        parts: of this application.
        stored: the instance.

    Returns:
        Whether its MIME type is application/pdf.

    Raises:
        HTTPException: 410; its object is gone, or cannot be read any more.
        StoreUnavailable: the store does not answer.
    """
    named = _metadata(parts, stored).get(DOCUMENT_TYPE, {}).get("Value")
    return bool(named == [PDF])


def pdf_bytes(parts: Parts, stored: StoredInstance) -> bytes:
    """Read the PDF of an instance, without the byte that makes its length even.

    Args:
        parts: of this application.
        stored: an instance that holds one.

    Returns:
        The document.

    Raises:
        NotFound: it has none.
        HTTPException: 410; its object is gone, or cannot be read any more.
        StoreUnavailable: the store does not answer.
    """
    value = binary_value(parts, stored, DOCUMENT)
    padded = _metadata(parts, stored).get(DOCUMENT_LENGTH, {}).get("Value") == [len(value) - 1]
    return value[:-1] if padded else value


def binary_value(parts: Parts, stored: StoredInstance, path: str) -> bytes:
    """Read a binary value of an instance.

    Args:
        parts: of this application.
        stored: the instance.
        path: tags and numbers of items with slashes between them.

    Returns:
        The value.

    Raises:
        NotFound: it has no such value.
        HTTPException: 410; its object is gone.
        StoreUnavailable: the store does not answer.
    """
    try:
        with open_object(parts.store, original_key(stored.object_sha256), stored.size_bytes) as file:
            return bulk_value(file, stored.size_bytes, path, ImageLimits.of(parts.settings))[1]
    except Rejected:
        raise NotFound("The instance has no such value") from None


def _metadata(parts: Parts, stored: StoredInstance) -> dict[str, Any]:
    try:
        return parts.metadata.read(stored.object_sha256, stored.size_bytes)
    except ObjectMissing:
        raise HTTPException(410, "The stored bytes of this instance are gone. Send it again") from None
    except Rejected as error:
        raise HTTPException(410, f"The header of this stored instance cannot be read any more. {error}") from None
