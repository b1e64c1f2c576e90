"""QIDO-RS: searching for studies, series and instances. Source: PS3.18 10.6."""

from dataclasses import replace
from typing import Any

from fastapi import Request, Response
from sqlalchemy.orm import Session

from api.dependencies import Parts, PartsDep, Radiologist, SessionDep
from api.dicomweb.addresses import (
    DICOMWEB,
    REJECTED,
    SERIES,
    STUDY,
    DicomPath,
    OfSeries,
    OfStudy,
    base_url,
    may_see_rejected,
)
from api.dicomweb.datasets import DATA_SET, data_set_response
from api.dicomweb.keys import FUZZY, MAX_FIELDS_LENGTH, MAX_NUMBER, MAX_VALUE_LENGTH, read_query, warning_header
from api.dicomweb.search_results import data_set_of, database_query, returned_attributes
from api.media_types import JSON, choose
from api.requests import Router
from shared.queries.access import Key
from shared.queries.qido import KEYS, MAX_COMPARED, Level, find

router = Router(prefix=DICOMWEB, tags=["dicomweb"])
MAX_RESULTS = 1000  # results of one response
MORE_RESULTS = f"There are additional results that can be requested. One response has at most {MAX_RESULTS}."
NOT_ALL_COMPARED = (
    f"The newest {MAX_COMPARED} candidates were compared, and there are more. "
    "Give more letters of a name or number, or further attributes."
)


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": longest}


def _parameter(name: str, kind: dict[str, Any], words: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": kind, "description": words}


NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}
# beside these each attribute of the dictionary is a parameter, by its keyword or its tag
PARAMETERS = {
    "parameters": [
        _parameter("limit", NUMBER, f"results at most; a response has at most {MAX_RESULTS}"),
        _parameter("offset", NUMBER, "results that are left out before the first"),
        _parameter("includefield", _text(MAX_FIELDS_LENGTH), "attributes to return besides, with commas, or `all`"),
        _parameter("fuzzymatching", {"type": "boolean"}, FUZZY),
        _parameter("includerejected", {"type": "boolean"}, REJECTED),
        _parameter(
            "PatientName",
            _text(MAX_VALUE_LENGTH),
            "as each attribute by its keyword or tag; * stands for any letters, ? for one",
        ),
    ]
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {kind: {"schema": {"type": "array", "items": DATA_SET}} for kind in JSON},
        "description": "the results; the header Warning tells what was not done",
    },
    400: {"description": "an attribute is outside the DICOM dictionary, or a value cannot be read"},
    406: {"description": "the header Accept does not allow JSON"},
}


@router.get("/studies", openapi_extra=PARAMETERS, responses=RESPONSES, response_class=Response)
def search_studies(request: Request, parts: PartsDep, key: Radiologist, session: SessionDep) -> Response:
    """Search for studies (QIDO-RS), those that came last first.

    Matched are date, time, UID, modalities and sex; and, although they are stored encrypted, patient's name, ID and
    birth date, accession number, study ID, description and referring physician. Other attributes of the DICOM
    dictionary are ignored, and the header Warning says which. Identities that are returned, and searches for them, are
    recorded.
    """
    return _search(request, parts, session, key, Level.STUDY)


@router.get("/series", openapi_extra=PARAMETERS, responses=RESPONSES, response_class=Response)
def search_series(request: Request, parts: PartsDep, key: Radiologist, session: SessionDep) -> Response:
    """Search for series of all studies (QIDO-RS), also by attributes of their studies."""
    return _search(request, parts, session, key, Level.SERIES)


@router.get("/instances", openapi_extra=PARAMETERS, responses=RESPONSES, response_class=Response)
def search_instances(request: Request, parts: PartsDep, key: Radiologist, session: SessionDep) -> Response:
    """Search for instances of all studies (QIDO-RS), also by attributes of their series and studies."""
    return _search(request, parts, session, key, Level.INSTANCE)


@router.get(f"{STUDY}/series", openapi_extra=PARAMETERS, responses=RESPONSES, response_class=Response)
def search_series_of_study(
    request: Request, parts: PartsDep, key: Radiologist, session: SessionDep, place: OfStudy
) -> Response:
    """Search for series of one study (QIDO-RS), in the order of their numbers."""
    return _search(request, parts, session, key, Level.SERIES, place)


@router.get(f"{STUDY}/instances", openapi_extra=PARAMETERS, responses=RESPONSES, response_class=Response)
def search_instances_of_study(
    request: Request, parts: PartsDep, key: Radiologist, session: SessionDep, place: OfStudy
) -> Response:
    """Search for instances of one study (QIDO-RS), in the order of their series' and their own numbers."""
    return _search(request, parts, session, key, Level.INSTANCE, place)


@router.get(f"{SERIES}/instances", openapi_extra=PARAMETERS, responses=RESPONSES, response_class=Response)
def search_instances_of_series(
    request: Request, parts: PartsDep, key: Radiologist, session: SessionDep, place: OfSeries
) -> Response:
    """Search for instances of one series (QIDO-RS), in the order of their numbers."""
    return _search(request, parts, session, key, Level.INSTANCE, place)


def _search(
    request: Request,
    parts: Parts,
    session: Session,
    key: Key,
    level: Level,
    place: DicomPath | None = None,
) -> Response:
    kind = choose(request, JSON)
    search = read_query(request.query_params.multi_items())
    may_see_rejected(key, search.rejected)
    study, series = (place.study, place.series) if place else (None, None)
    warnings, ignored = list(search.warnings), sorted(set(search.matches) - KEYS[level])
    if ignored:
        warnings.append(f"These attributes are not indexed here and were ignored: {' '.join(ignored)}")
        search = replace(search, matches={name: search.matches[name] for name in search.matches if name in KEYS[level]})
    attributes = returned_attributes(search, level, study, series)
    results = find(session, parts.vault, key, database_query(search, attributes, MAX_RESULTS, study, series))
    if results.more and (search.limit is None or search.limit > MAX_RESULTS):
        warnings.append(MORE_RESULTS)
    if not results.whole:
        warnings.append(NOT_ALL_COMPARED)
    base = base_url(request)
    response = data_set_response([data_set_of(one, attributes, base) for one in results.found], kind)
    response.headers.update(warning_header(base, warnings))
    return response
