"""WADO-RS: metadata of instances as DICOM JSON, and bulk data that these leave out. Source: PS3.18 10.4.1.1.2 and 5."""

import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import HTTPException, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.dependencies import Parts, PartsDep, Radiologist
from api.dicomweb.addresses import DICOMWEB, INSTANCE, SERIES, STUDY, DicomPath, OfInstance, OfSeries, OfStudy
from api.dicomweb.current import CurrentInstance, current_instances
from api.dicomweb.datasets import DATA_SET
from api.dicomweb.documents import DOCUMENT, PDF, SHOWN_IN_PAGES, binary_value, is_pdf
from api.dicomweb.frames import MAX_FRAMES, retrieve_frames
from api.dicomweb.multipart import ResponsePart, multipart_response
from api.media_types import JSON, MULTIPART, OCTETS, MediaType, choose, chosen
from api.requests import Router
from shared.dicom.image import ImageLimits
from shared.dicom.metadata import metadata_of
from shared.errors import ObjectMissing, Rejected
from shared.queries.access import Key

router = Router(prefix=DICOMWEB, tags=["dicomweb"])
PIXELS = "7FE00010"
HEAD_PIECES = 3  # of a rewritten object: file meta information, data set, and the beginning of its pixels
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {kind: {"schema": {"type": "array", "items": DATA_SET}} for kind in JSON},
        "description": "one data set for each instance, in UTF-8; long binary values have a BulkDataURI",
    },
    406: {"description": "the header Accept does not allow JSON"},
    410: {"description": "a stored object is gone"},
}
BULK: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (MULTIPART, OCTETS, PDF)},
        "description": "the value, as a part or alone",
    },
    406: {"description": "the header Accept does not allow it"},
    410: {"description": "the stored object is gone"},
}


@router.get(f"{STUDY}/metadata", responses=RESPONSES, response_class=Response)
def study_metadata(request: Request, parts: PartsDep, key: Radiologist, place: OfStudy) -> Response:
    """Get the metadata of all instances of a study (WADO-RS). Who reads them is recorded, as they name the patient."""
    return _metadata(request, parts, key, place)


@router.get(f"{SERIES}/metadata", responses=RESPONSES, response_class=Response)
def series_metadata(request: Request, parts: PartsDep, key: Radiologist, place: OfSeries) -> Response:
    """Get the metadata of all instances of a series (WADO-RS)."""
    return _metadata(request, parts, key, place)


@router.get(f"{INSTANCE}/metadata", responses=RESPONSES, response_class=Response)
def instance_metadata(request: Request, parts: PartsDep, key: Radiologist, place: OfInstance) -> Response:
    """Get the metadata of one instance (WADO-RS)."""
    return _metadata(request, parts, key, place)


@router.get(f"{INSTANCE}/bulk/{{path}}", responses=BULK, response_class=Response)
async def bulk_data(
    request: Request,
    parts: PartsDep,
    key: Radiologist,
    place: OfInstance,
    path: Annotated[
        str, Path(max_length=600, description="tags and numbers of items with dots between them, as a BulkDataURI ends")
    ],
) -> Response:
    """Get a binary value that the metadata leave out (WADO-RS): a document, a lookup table, or the pixels as frames."""
    found = (await run_in_threadpool(current_instances, parts, key, place))[0]
    if path == PIXELS:
        numbers = ",".join(str(number + 1) for number in range(min(found.stored.frames, MAX_FRAMES)))
        return await retrieve_frames(request, parts, key, place, numbers)
    return await run_in_threadpool(_bulk_response, request, parts, found, path)


def _metadata(request: Request, parts: Parts, key: Key, place: DicomPath) -> Response:
    kind = choose(request, JSON)
    base = request.scope.get("root_path", "") + DICOMWEB
    data_sets = (_instance_metadata(parts, one, base) for one in current_instances(parts, key, place))
    first = next(data_sets)  # what cannot be read is told before the response begins
    return StreamingResponse(_json_array(itertools.chain([first], data_sets)), headers={"Content-Type": kind})


def _json_array(data_sets: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """A JSON array, an item at a time."""
    start = b"["
    for one in data_sets:
        yield start + json.dumps(one, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        start = b","
    yield b"]"


def _instance_metadata(parts: Parts, one: CurrentInstance, base: str) -> dict[str, Any]:
    """The metadata of an instance, as it is retrieved now. Raises HTTPException (410), StoreUnavailable."""
    stored = one.stored
    try:
        attributes = (
            _changed_metadata(parts, one)
            if one.values
            else parts.metadata.read(stored.object_sha256, stored.size_bytes)
        )
    except ObjectMissing:
        raise HTTPException(410, "The stored bytes of an instance are gone. Send it again") from None
    except Rejected as error:
        raise HTTPException(410, f"The header of a stored instance cannot be read any more. {error}") from None
    uids = (stored.study_instance_uid, stored.series_instance_uid, stored.sop_instance_uid)
    return with_addresses(attributes, "{}/studies/{}/series/{}/instances/{}/bulk/".format(base, *uids))


def _changed_metadata(parts: Parts, one: CurrentInstance) -> dict[str, Any]:
    """The metadata of an instance that says something else than its stored object."""
    limits, size = ImageLimits.of(parts.settings), one.stored.size_bytes + parts.settings.max_header_bytes
    head = b"".join(itertools.islice(one.content(parts), HEAD_PIECES))
    try:
        return metadata_of(io.BytesIO(head), size, limits)
    except Rejected:  # a deflated one, of which the beginning tells nothing
        whole = b"".join(one.content(parts))
        return metadata_of(io.BytesIO(whole), len(whole), limits)


def with_addresses(attributes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Make addresses of the paths by which bulk data are found, in sequences too.

    They have no host, so that they are right behind any proxy and for any origin.

    Args:
        attributes: DICOM JSON of a data set.
        prefix: what stands before a path.

    Returns:
        The data set with addresses.
    """
    made: dict[str, Any] = {}
    for tag, attribute in attributes.items():
        if "BulkDataURI" in attribute:
            made[tag] = {**attribute, "BulkDataURI": prefix + attribute["BulkDataURI"].replace("/", ".")}
        elif attribute.get("vr") == "SQ" and "Value" in attribute:
            made[tag] = {**attribute, "Value": [with_addresses(item, prefix) for item in attribute["Value"]]}
        else:
            made[tag] = attribute
    return made


def choose_form(media_range: MediaType, kinds: Sequence[str]) -> tuple[str, bool] | None:
    """Find the form in which a value fits what a client accepts.

    Args:
        media_range: one range of the header Accept.
        kinds: media types that the value has, the narrowest first.

    Returns:
        One of the types, and whether it is sent as a part; None if none fits.
    """
    in_parts = media_range.name in (MULTIPART, "multipart/*", "*/*")
    any_part = in_parts and "type" not in media_range.parameters
    kind = kinds[0] if any_part else next((one for one in kinds if media_range.related.holds(one)), None)
    return None if kind is None else (kind, in_parts)


def _bulk_response(request: Request, parts: Parts, found: CurrentInstance, path: str) -> Response:
    stored = found.stored
    kinds = [PDF, OCTETS] if path == DOCUMENT and is_pdf(parts, stored) else [OCTETS]
    kind, in_parts = chosen(request, [f'{MULTIPART}; type="{one}"' for one in kinds], partial(choose_form, kinds=kinds))
    value = binary_value(parts, stored, path.replace(".", "/"))
    if in_parts:
        return multipart_response([ResponsePart(kind, [value])], kind)
    return Response(value, headers={"Content-Type": kind} | (SHOWN_IN_PAGES if kind == PDF else {}))
