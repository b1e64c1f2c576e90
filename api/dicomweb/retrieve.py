"""WADO-RS: studies, series and instances as they are stored. Source: PS3.18 10.4."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from api.dependencies import Parts, PartsDep, Radiologist
from api.dicomweb.addresses import DICOMWEB, INSTANCE, SERIES, STUDY, DicomPath, OfInstance, OfSeries, OfStudy
from api.dicomweb.current import CurrentInstance, current_instances
from api.dicomweb.multipart import ResponsePart, multipart_response
from api.dicomweb.objects import open_object
from api.media_types import DICOM, MULTIPART, MediaType, chosen
from api.requests import Router
from shared.dicom.elements import uid_of
from shared.dicom.identifiers import read_meta
from shared.queries.access import Key
from shared.storage import original_key

router = Router(prefix=DICOMWEB, tags=["dicomweb"])
HEAD_BYTES = 1 << 14  # of an object, in which its file meta information is
STORED = f'{MULTIPART}; type="{DICOM}"; transfer-syntax=*'
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {MULTIPART: {"schema": {"type": "string", "format": "binary"}}},
        "description": "the instances, each a part of type application/dicom, in the transfer syntax that is stored",
    },
    406: {"description": "the header Accept does not allow them as they are stored; they are not transcoded"},
    410: {"description": "the stored object is gone"},
}
ONE = RESPONSES | {
    200: {
        "content": RESPONSES[200]["content"] | {DICOM: {"schema": {"type": "string", "format": "binary"}}},
        "description": "the instance in the transfer syntax that is stored, as a part or alone",
    }
}


@router.get(STUDY, responses=RESPONSES, response_class=Response)
def retrieve_study(request: Request, parts: PartsDep, key: Radiologist, place: OfStudy) -> Response:
    """Get all instances of a study (WADO-RS). Who reads them is recorded, as they name the patient."""
    return _retrieve(request, parts, key, place)


@router.get(SERIES, responses=RESPONSES, response_class=Response)
def retrieve_series(request: Request, parts: PartsDep, key: Radiologist, place: OfSeries) -> Response:
    """Get all instances of a series (WADO-RS)."""
    return _retrieve(request, parts, key, place)


@router.get(INSTANCE, responses=ONE, response_class=Response)
def retrieve_instance(request: Request, parts: PartsDep, key: Radiologist, place: OfInstance) -> Response:
    """Get one instance (WADO-RS): as a part, or alone where the header Accept names application/dicom itself."""
    return _retrieve(request, parts, key, place)


def _retrieve(request: Request, parts: Parts, key: Key, place: DicomPath) -> Response:
    def fits(media_range: MediaType) -> str | None:
        return choose_form(media_range, alone=place.instance is not None)

    chosen(request, [STORED], fits)  # who accepts nothing of it is told before anything is read
    found = current_instances(parts, key, place)
    syntaxes: set[str] = set()

    def fits_stored(media_range: MediaType) -> str | None:
        syntax = media_range.parameters.get("transfer-syntax", "*")
        if syntax != "*":
            if not syntaxes:
                syntaxes.update(syntax_of(parts, one) for one in found)
            if syntaxes != {syntax}:
                return None
        return fits(media_range)

    if chosen(request, [STORED], fits_stored) == DICOM:
        return StreamingResponse(found[0].content(parts), headers={"Content-Type": DICOM})
    found[0].content(parts)  # raises before the response begins
    return multipart_response(_parts(parts, found), DICOM)


def choose_form(media_range: MediaType, *, alone: bool) -> str | None:
    """Find the form in which DICOM objects fit what a client accepts, transfer syntaxes apart.

    Args:
        media_range: one range of the header Accept.
        alone: whether it is one object, which may be sent without parts.

    Returns:
        MULTIPART or DICOM; None if there is none.
    """
    if media_range.name in ("*/*", "multipart/*") or (
        media_range.name == MULTIPART and media_range.related.holds(DICOM)
    ):
        return MULTIPART
    return DICOM if alone and media_range.holds(DICOM) else None


def syntax_of(parts: Parts, instance: CurrentInstance) -> str:
    """Read the transfer syntax of an instance.

    Args:
        parts: of this application.
        instance: the instance.

    Returns:
        Its Transfer Syntax UID.

    Raises:
        HTTPException: 410; its object is gone.
        StoreUnavailable: the store does not answer.
    """
    stored = instance.stored
    with open_object(parts.store, original_key(stored.object_sha256), stored.size_bytes, HEAD_BYTES) as file:
        return uid_of(read_meta(file), "TransferSyntaxUID")


def _parts(parts: Parts, found: Sequence[CurrentInstance]) -> Iterator[ResponsePart]:
    for one in found:
        yield ResponsePart(DICOM, one.content(parts))
