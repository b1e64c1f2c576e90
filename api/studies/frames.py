"""GET /api/v1/studies/{id}/frame: a frame with all its pixels and gray levels, which a worker made."""

import json
import time
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse

from api.dependencies import FrameNumber, ImageNumber, NamedStudy, PartsDep, Radiologist
from api.reasons import reason_words
from api.requests import API, Router
from api.schemas import Problem
from shared.errors import NotFound, ObjectMissing
from shared.queries import studies
from shared.storage import frame_key

router = Router(prefix=API, tags=["read"])
ABOUT = "Osteon-Frame"  # the header that describes the pixels
OLD_ABOUT = "Osteon-Film"  # its name before 0.2.0, sent beside it until 0.3.0
CACHED = "private, no-cache"  # kept by the browser, but each time we are asked whether its reader still may
VERSION = 2  # of the frames that workers make
RETRY_AFTER_S = 1
DESCRIBED = {
    200: {
        "content": {"application/octet-stream": {}},
        "description": (
            f"uint16, little endian, rows x columns, MONOCHROME1 mirrored. The header {ABOUT} holds JSON: rows, "
            "columns, bits, exact, slope and intercept (slope * pixel + intercept are modality units, bone is the "
            "greater), window ([black, white] in pixels), window_from, window_shape, spacing (mm), spacing_from (DICOM "
            "keyword)"
        ),
    },
    304: {"description": "the one that If-None-Match names"},
    202: {"description": "it is being made; ask again after Retry-After seconds"},
    404: {"model": Problem},
    422: {"model": Problem, "description": "it cannot be made, and why"},
}


@router.get("/studies/{study_id}/frame", response_class=Response, responses=DESCRIBED)  # type: ignore[arg-type]
def full_frame(
    request: Request,
    study_id: NamedStudy,
    parts: PartsDep,
    key: Radiologist,
    image: ImageNumber = 1,
    frame: FrameNumber = 1,
) -> Response:
    """Get an image with all its pixels and gray levels, for a viewer; 202 until the worker has made it."""
    if not parts.settings.full_frames:
        raise NotFound("This installation shows previews only (OSTEON_FULL_FRAMES)")
    with parts.database.transaction() as session:
        row = studies.image(session, key.site_id, study_id, image, frame)
    if row.error_reason:
        raise HTTPException(422, reason_words(row.error_reason, row.error_detail))
    etag = f'"{VERSION}-{row.sha256}-{frame}"'
    headers = {"Cache-Control": CACHED, "ETag": etag}
    if request.headers.get("if-none-match") == etag and parts.store.exists(frame_key(row.sha256, frame)):
        return Response(status_code=304, headers=headers)
    try:
        about, pixels = unpack(parts.store.get(frame_key(row.sha256, frame)))
    except ObjectMissing:
        about, pixels = {"until": 0}, b""
    if pixels:
        headers |= {"Content-Encoding": "gzip", ABOUT: json.dumps(about), OLD_ABOUT: json.dumps(about)}
        return Response(pixels, media_type="application/octet-stream", headers=headers)
    if about["until"] is None or about["until"] > time.time():
        raise HTTPException(422, reason_words(about["reason"], about.get("detail", "")))
    parts.publisher.ask_frame(row.id, frame)
    waiting = {"detail": "The frame is being made; ask again"}
    return JSONResponse(waiting, 202, {"Retry-After": str(RETRY_AFTER_S)})


def unpack(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A stored frame's description and its gzip; the latter is empty where the frame could not be made."""
    length = int.from_bytes(content[:4], "big")
    return json.loads(content[4 : 4 + length]), content[4 + length :]
