"""WADO-RS: frames, in the transfer syntax that is stored, or uncompressed. Source: PS3.18 10.4.1.1.6, 8.7.3.

The API decodes no pixel: a worker makes uncompressed frames of compressed ones, as it makes full frames for our viewer.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, cast

from fastapi import HTTPException, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.dependencies import Parts, PartsDep, Radiologist
from api.dicomweb.addresses import DICOMWEB, INSTANCE, DicomPath, OfInstance
from api.dicomweb.current import find_instances
from api.dicomweb.multipart import ResponsePart, multipart_response
from api.dicomweb.objects import StoredObject, open_object, pieces
from api.media_types import MULTIPART, OCTETS, MediaType, chosen
from api.reasons import reason_words
from api.requests import Router
from shared.dicom.frames import FrameMap, frame_map
from shared.dicom.image import EXPLICIT_LE, ImageLimits
from shared.errors import BadRequest, NoPixelData, NotFound, ObjectMissing, Rejected, Unavailable
from shared.queries.access import Key
from shared.queries.retrieval import StoredInstance
from shared.storage import original_key, raw_frame_key

router = Router(prefix=DICOMWEB, tags=["dicomweb"])
IMAGE_TYPES = {  # PS3.18 table 8.7.3-5, and the syntaxes that came later
    "1.2.840.10008.1.2.5": "image/dicom-rle",
    **dict.fromkeys(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"), "image/jpeg"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"), "image/jpeg"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "image/jls"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"), "image/jp2"),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203)), "image/jphc"),
}
MAX_FRAMES = 200  # of one request
FRAME_WAIT_S, FRAME_POLL_S = 10.0, 0.1  # viewers give up after 15 s
DESCRIPTION_BYTES = 4096  # of a made frame, in which its description is
READ_BYTES = 1 << 16  # of an object at a time, while its frames are looked for
NUMBERS = re.compile(r"[0-9]{1,9}(,[0-9]{1,9})*", re.ASCII)
STORED = f"{MULTIPART}; type={OCTETS}; transfer-syntax=*"
FrameNumbers = Annotated[str, Path(max_length=2000, description="numbers of frames with commas, 1 for the first")]
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in (MULTIPART, OCTETS, *dict.fromkeys(IMAGE_TYPES.values()))
        },
        "description": "the frames in their order, each a part; its Content-Type names the transfer syntax",
    },
    406: {"description": "the header Accept allows no form in which the frames are there"},
    410: {"description": "the stored object is gone"},
}


@router.get(f"{INSTANCE}/frames/{{frames}}", responses=RESPONSES, response_class=Response)
async def retrieve_frames(
    request: Request, parts: PartsDep, key: Radiologist, place: OfInstance, frames: FrameNumbers
) -> Response:
    """Get frames of an image without its header (WADO-RS), each a part.

    They come in the transfer syntax that is stored where the header Accept says transfer-syntax=* or names it, and
    uncompressed in Explicit VR Little Endian where it names that or none. 503 if no worker makes these in time.
    """
    numbers = frame_numbers(frames)
    found, frame_map = await run_in_threadpool(_look_up, parts, key, place)
    count = len(frame_map.pieces) if frame_map else found.frames
    if max(numbers) > count:
        raise NotFound(f"The image has {count} frame(s); there is no frame {max(numbers)}")
    syntax = frame_map.syntax if frame_map else ""

    def fits(media_range: MediaType) -> FrameForm | None:
        return choose_form(media_range, syntax, alone=len(numbers) == 1)

    kind = IMAGE_TYPES.get(syntax, OCTETS)
    form = chosen(request, [STORED, f"{MULTIPART}; type={kind}; transfer-syntax={syntax or EXPLICIT_LE}"], fits)
    if form.raw or frame_map is None:
        kind, syntax = OCTETS, EXPLICIT_LE
        contents = await _uncompressed_frames(parts, found, numbers)
    else:
        contents = _stored_frames(parts, found, frame_map, numbers)
    content_type = f"{kind}; transfer-syntax={syntax}"
    if form.alone:
        return StreamingResponse(iter(next(contents)), headers={"Content-Type": content_type})
    return multipart_response((ResponsePart(content_type, content) for content in contents), kind)


def frame_numbers(text: str) -> list[int]:
    """Read a list of frames.

    Args:
        text: numbers with commas.

    Returns:
        The numbers, as they stand there.

    Raises:
        BadRequest: it is no such list, or a long one.
    """
    numbers = [int(one) for one in text.split(",")] if NUMBERS.fullmatch(text) else []
    if not numbers or min(numbers) < 1:
        raise BadRequest("Write the frames as numbers from 1 with commas between them, as 1,2")
    if len(numbers) > MAX_FRAMES:
        raise BadRequest(f"At most {MAX_FRAMES} frames a request")
    return numbers


@dataclass(frozen=True)
class FrameForm:
    """The form in which frames are sent."""

    alone: bool  # one frame, without parts
    raw: bool  # uncompressed, made by a worker


def choose_form(media_range: MediaType, syntax: str, *, alone: bool) -> FrameForm | None:
    """Find the form in which frames fit what a client accepts.

    Args:
        media_range: one range of the header Accept.
        syntax: Transfer Syntax UID of the frames as they are stored; "" if they cannot be sent as they are.
        alone: whether it is one frame, which may be sent without parts.

    Returns:
        The form; None if they do not fit.
    """
    if media_range.name in ("*/*", "multipart/*"):
        return FrameForm(alone=False, raw=not syntax)
    if media_range.name != MULTIPART and not alone:
        return None
    kind, named = media_range.related, media_range.parameters.get("transfer-syntax")
    as_stored = named == "*" or (syntax and named == syntax)
    of_image = syntax in IMAGE_TYPES and kind.holds(IMAGE_TYPES[syntax]) and (as_stored or named is None)
    if syntax and (of_image or (kind.holds(OCTETS) and as_stored)):
        return FrameForm(alone=media_range.name != MULTIPART, raw=False)
    # without a transfer syntax, octets are uncompressed (PS3.18 8.7.3.3.2)
    if kind.holds(OCTETS) and (named in (None, EXPLICIT_LE) or (named == "*" and not syntax)):
        return FrameForm(alone=media_range.name != MULTIPART, raw=syntax != EXPLICIT_LE)
    return None


def _look_up(parts: Parts, key: Key, place: DicomPath) -> tuple[StoredInstance, FrameMap | None]:
    """The instance and its frames; None for frames that cannot be sent as they are stored. Raises NotFound."""
    with parts.database.transaction() as session:
        (found,) = find_instances(session, key, place)
    try:
        return found, stored_frames(parts, found)
    except NoPixelData:
        raise NotFound("This instance has no frames: it is no image") from None
    except Rejected:  # a worker says what is wrong with them, if anything is
        return found, None


def stored_frames(parts: Parts, instance: StoredInstance) -> FrameMap:
    """Find the frames of an instance.

    Args:
        parts: of this application.
        instance: the instance.

    Returns:
        Where they lie in its object.

    Raises:
        Rejected: it has none, or they cannot be passed on as they are stored.
    """
    with open_object(parts.store, original_key(instance.object_sha256), instance.size_bytes, READ_BYTES) as file:
        return frame_map(file, instance.size_bytes, ImageLimits.of(parts.settings))


def _stored_frames(
    parts: Parts, found: StoredInstance, frame_map: FrameMap, numbers: Sequence[int]
) -> Iterator[Iterator[bytes]]:
    key = original_key(found.object_sha256)

    def read(at: int, size: int) -> bytes:
        return parts.store.get(key, size, at)

    for number in numbers:
        yield frame_map.frame(read, number)


# -- uncompressed frames, which a worker makes ------------------------------------------------------------------------


class NotMadeInTime(Unavailable):
    """No worker has made the uncompressed frames in time; ask again, or accept transfer-syntax=*."""


async def _uncompressed_frames(
    parts: Parts, found: StoredInstance, numbers: Sequence[int]
) -> Iterator[Iterator[bytes]]:
    """Have frames made, and wait for them without a thread. Raises HTTPException (406) for one that cannot be."""
    until = time.monotonic() + FRAME_WAIT_S
    sizes: dict[int, int] = {}
    while left := [number for number in dict.fromkeys(numbers) if number not in sizes]:
        for number in left:
            size = await run_in_threadpool(_made_size, parts, found, number)
            if size is not None:
                sizes[number] = size
        if len(sizes) < len(set(numbers)):
            if time.monotonic() > until:
                raise NotMadeInTime
            await asyncio.sleep(FRAME_POLL_S)
    return (_made_frame(parts, found, number, sizes[number]) for number in numbers)


def _made_size(parts: Parts, found: StoredInstance, number: int) -> int | None:
    """The size of a frame that is made; None where a worker is asked for it."""
    try:
        about = _frame_description(parts.store.get(raw_frame_key(found.sha256, number), DESCRIPTION_BYTES))
    except ObjectMissing:
        about = {"until": 0}
    if "size" in about:
        return int(about["size"])
    if about["until"] is None or about["until"] > time.time():
        why = reason_words(about["reason"], about.get("detail", ""))
        raise HTTPException(406, f"The frame cannot be sent uncompressed. {why}")
    parts.publisher.ask_frame(found.id, number, raw=True)
    return None


def _frame_description(start: bytes) -> dict[str, Any]:
    """The description at the start of a made frame, as worker/frames.py writes it."""
    description: dict[str, Any] = json.loads(start[4 : 4 + int.from_bytes(start[:4], "big")])
    return description


def _made_frame(parts: Parts, found: StoredInstance, number: int, size: int) -> Iterator[bytes]:
    key = raw_frame_key(found.sha256, number)
    at = 4 + int.from_bytes(parts.store.get(key, 4), "big")
    file = StoredObject(parts.store, key, at + size)
    file.seek(at)
    yield from pieces(cast("BinaryIO", file), size)
