"""GET /studies/{id}/film: a frame with all its pixels and gray levels, made by the worker and handed on here."""

import json
import time
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from api.dependencies import PartsDep, Radiologist
from api.responses import Problem
from shared.errors import NotFound, ObjectMissing
from shared.repository import reading
from shared.storage import film_key

router = APIRouter(tags=["read"])
ImageNumber = Annotated[int, Query(ge=1, le=100_000, description="number of the image in its study")]
FrameNumber = Annotated[int, Query(ge=1, le=100_000)]
ABOUT = "Osteon-Film"  # the header that describes the pixels
CACHED = "private, no-cache"  # kept by the browser, but each time we are asked whether its reader still may
VERSION = 2  # of the films that workers make
RETRY_AFTER_S = 1
DESCRIBED = {
    200: {
        "content": {"application/octet-stream": {}},
        "description": (
            f"uint16, little endian, rows x columns, MONOCHROME1 mirrored. The header {ABOUT} holds JSON: rows, "
            "columns, bits, exact, slope and intercept (slope * pixel + intercept are modality units, bone is the "
            "greater), window ([black, white] in pixels), window_from, window_shape, spacing (mm)"
        ),
    },
    304: {"description": "the one that If-None-Match names"},
    202: {"description": "it is being made; ask again after Retry-After seconds"},
    404: {"model": Problem},
    422: {"model": Problem, "description": "it cannot be made, and why"},
}


@router.get("/studies/{study_id}/film", response_class=Response, responses=DESCRIBED)  # type: ignore[arg-type]
def film(
    request: Request,
    study_id: Annotated[UUID, Path()],
    parts: PartsDep,
    key: Radiologist,
    image: ImageNumber = 1,
    frame: FrameNumber = 1,
) -> Response:
    """The image with all its pixels and gray levels, for a viewer; 202 until the worker has made it."""
    if not parts.settings.full_films:
        raise NotFound("This installation shows previews only (OSTEON_FULL_FILMS)")
    with parts.database.transaction() as session:
        row = reading.image(session, key.site_id, study_id, image, frame)
    if row.error_reason:
        raise HTTPException(422, row.error_text)
    etag = f'"{VERSION}-{row.sha256}-{frame}"'
    headers = {"Cache-Control": CACHED, "ETag": etag}
    if request.headers.get("if-none-match") == etag and parts.store.exists(film_key(row.sha256, frame)):
        return Response(status_code=304, headers=headers)
    try:
        about, pixels = unpack(parts.store.get(film_key(row.sha256, frame)))
    except ObjectMissing:
        about, pixels = {"until": 0}, b""
    if pixels:
        headers |= {"Content-Encoding": "gzip", ABOUT: json.dumps(about)}
        return Response(pixels, media_type="application/octet-stream", headers=headers)
    if about["until"] is None or about["until"] > time.time():
        raise HTTPException(422, about["error"])
    parts.doorbell.ask_film(row.id, frame)
    waiting = {"detail": "The film is being made; ask again"}
    return JSONResponse(waiting, 202, {"Retry-After": str(RETRY_AFTER_S)})


def unpack(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A stored film's description and its gzip; the latter is empty where the film could not be made."""
    length = int.from_bytes(content[:4], "big")
    return json.loads(content[4 : 4 + length]), content[4 + length :]
