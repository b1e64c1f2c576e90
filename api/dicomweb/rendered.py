"""WADO-RS: what people look at: rendered images and thumbnails, and PDFs. Source: PS3.18 10.4.1.1.4 and 5, 8.7.4.

A preview is an image with its VOI window applied, at most 1024 pixels a side, in 8 bits. A PDF is given as it is.
"""

import io
import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Path, Query, Request, Response
from PIL import Image

from api.dependencies import Parts, PartsDep, Radiologist
from api.dicomweb.addresses import (
    DICOMWEB,
    INSTANCE,
    SERIES,
    STUDY,
    DicomPath,
    OfInstance,
    OfSeries,
    OfStudy,
    base_url,
)
from api.dicomweb.current import current_instances, find_instances
from api.dicomweb.documents import PDF, SHOWN_IN_PAGES, is_pdf, pdf_bytes
from api.dicomweb.keys import warning_header
from api.media_types import choose
from api.reasons import reason_words
from api.requests import Router
from shared.errors import BadRequest, NotFound, ObjectMissing, Unavailable
from shared.queries.access import Key
from shared.queries.retrieval import StoredInstance
from shared.storage import preview_key

router = Router(prefix=DICOMWEB, tags=["dicomweb"])
KINDS = ("image/jpeg", "image/png")
THUMBNAIL = (200, 200)  # pixels, where no viewport is named
QUALITY = 85
VIEWPORT = re.compile(r"([0-9]{1,5}),([0-9]{1,5})(?:,.*)?", re.ASCII)
NO_WINDOW = "The parameter window is not supported: previews have the window of the header"
NO_REGION = "The viewport's region is not supported: the whole image is shown"
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS},
        "description": "the picture, in 8 bits",
    },
    406: {"description": "the header Accept allows neither JPEG nor PNG"},
}
SHOWN = RESPONSES | {
    200: {
        "content": RESPONSES[200]["content"] | {PDF: {"schema": {"type": "string", "format": "binary"}}},
        "description": "the picture, in 8 bits; of an encapsulated PDF the document",
    },
    406: {"description": "the header Accept allows neither JPEG nor PNG, or for a PDF no PDF"},
    410: {"description": "the stored object is gone"},
}
Viewport = Annotated[
    str | None, Query(max_length=64, description="width,height in pixels into which the image is fitted")
]
Window = Annotated[str | None, Query(max_length=64, description="not supported: a Warning says so")]
OneFrame = Annotated[int, Path(ge=1, le=100_000, description="number of the frame, 1 for the first")]


class NotYetAnalysed(Unavailable):
    """The image has no picture yet: it is analysed soon. Ask again."""


@router.get(f"{STUDY}/thumbnail", responses=RESPONSES, response_class=Response)
def study_thumbnail(
    request: Request, parts: PartsDep, key: Radiologist, place: OfStudy, viewport: Viewport = None
) -> Response:
    """Get a small picture of a study (WADO-RS): of its first image that has one."""
    return _picture_response(request, parts, _found(parts, key, place), 1, viewport, THUMBNAIL)


@router.get(f"{SERIES}/thumbnail", responses=RESPONSES, response_class=Response)
def series_thumbnail(
    request: Request, parts: PartsDep, key: Radiologist, place: OfSeries, viewport: Viewport = None
) -> Response:
    """Get a small picture of a series (WADO-RS): of its first image that has one."""
    return _picture_response(request, parts, _found(parts, key, place), 1, viewport, THUMBNAIL)


@router.get(f"{INSTANCE}/thumbnail", responses=RESPONSES, response_class=Response)
def instance_thumbnail(
    request: Request,
    parts: PartsDep,
    key: Radiologist,
    place: OfInstance,
    viewport: Viewport = None,
) -> Response:
    """Get a small picture of an image (WADO-RS)."""
    return _picture_response(request, parts, _found(parts, key, place), 1, viewport, THUMBNAIL)


@router.get(f"{INSTANCE}/rendered", responses=SHOWN, response_class=Response)
def rendered_instance(
    request: Request,
    parts: PartsDep,
    key: Radiologist,
    place: OfInstance,
    viewport: Viewport = None,
    window: Window = None,
) -> Response:
    """Get an image for people (WADO-RS): its first frame with the window of its header, at most 1024 pixels a side.

    Of an encapsulated PDF: the document. Who reads it is recorded, as it names the patient.
    """
    found = _found(parts, key, place)
    if found[0].kept is None or not is_pdf(parts, found[0]):
        return _picture_response(request, parts, found, 1, viewport, None, window)
    choose(request, [PDF])
    document = pdf_bytes(parts, current_instances(parts, key, place)[0].stored)
    return Response(document, headers={"Content-Type": PDF} | SHOWN_IN_PAGES)


@router.get(
    f"{INSTANCE}/frames/{{frame}}/rendered",
    responses=RESPONSES,
    response_class=Response,
)
def rendered_frame(
    request: Request,
    parts: PartsDep,
    key: Radiologist,
    place: OfInstance,
    frame: OneFrame,
    viewport: Viewport = None,
    window: Window = None,
) -> Response:
    """Get one frame of an image for people (WADO-RS)."""
    return _picture_response(request, parts, _found(parts, key, place), frame, viewport, None, window)


def _found(parts: Parts, key: Key, place: DicomPath) -> list[StoredInstance]:
    with parts.database.transaction() as session:
        return find_instances(session, key, place)


def _picture_response(
    request: Request,
    parts: Parts,
    found: Sequence[StoredInstance],
    frame: int,
    viewport: str | None,
    largest: tuple[int, int] | None,
    window: str | None = None,
) -> Response:
    kind = choose(request, KINDS)
    warnings = [NO_WINDOW] if window else []
    if viewport is not None:
        size = VIEWPORT.fullmatch(viewport)
        if size is None or not (int(size[1]) and int(size[2])):
            raise BadRequest("Write the viewport as width,height in pixels, as 200,200")
        largest = int(size[1]), int(size[2])
        warnings += [NO_REGION] if viewport.count(",") > 1 else []
    content = convert_preview(_preview(parts, found, frame), kind, largest)
    return Response(content, headers={"Content-Type": kind} | warning_header(base_url(request), warnings))


def _preview(parts: Parts, found: Sequence[StoredInstance], frame: int) -> bytes:
    """The preview of the first instance that has one. Raises NotFound if none will ever have one."""
    if frame > max(one.frames for one in found):
        raise NotFound("The image has no such frame")
    for one in found:
        try:
            return parts.store.get(preview_key(one.sha256, frame))
        except ObjectMissing:
            continue
    if all(one.kept or one.error for one in found):
        why = next((one.error for one in found if one.error), None)
        raise NotFound(f"There is no picture of it. {reason_words(why)}".strip())
    raise NotYetAnalysed


def convert_preview(preview: bytes, kind: str, largest: tuple[int, int] | None) -> bytes:
    """Write a preview in another form or size.

    Args:
        preview: a JPEG.
        kind: media type, one of KINDS.
        largest: width and height into which it is fitted, in pixels; it is never enlarged. None: as it is.

    Returns:
        The picture.
    """
    if kind == KINDS[0] and largest is None:
        return preview
    with Image.open(io.BytesIO(preview)) as image:
        if largest is not None:
            image.thumbnail(largest)
        out = io.BytesIO()
        if kind == KINDS[0]:
            image.save(out, "JPEG", quality=QUALITY)
        else:
            image.save(out, "PNG", compress_level=1)
    return out.getvalue()
