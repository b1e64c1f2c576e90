"""Media types of FHIR, and the form that every error has there. Source: FHIR R4, http.html 3.1.0.1.9 and 3.1.0.5."""

from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse

from api.media_types import MediaType, chosen

FHIR = "/fhir"
FHIR_JSON = "application/fhir+json"
OFFERED = (FHIR_JSON, "application/json")
VERSION = "4.0"
CONTENT_TYPES = {FHIR_JSON: f"{FHIR_JSON}; fhirVersion={VERSION}", "application/json": "application/json"}
# what the parameter _format may be; a plus sign that was not encoded arrives as a space
FORMATS = {
    "json": FHIR_JSON, FHIR_JSON: FHIR_JSON, "application/fhir json": FHIR_JSON, "application/json": "application/json",
    "text/json": "application/json",
}  # fmt: skip
# http://hl7.org/fhir/issue-type, by HTTP status
ISSUES = {
    400: "invalid", 401: "login", 403: "forbidden", 404: "not-found", 405: "not-supported", 406: "not-supported",
    408: "timeout", 409: "conflict", 410: "deleted", 413: "too-long", 415: "not-supported", 421: "invalid",
    422: "processing", 429: "throttled", 500: "exception", 503: "transient",
}  # fmt: skip

Resource = dict[str, Any]


def is_fhir(path: str) -> bool:
    """Whether an address is FHIR's, so that its errors are."""
    return path == FHIR or path.startswith(f"{FHIR}/")


def base_of(request: Request) -> str:
    """The service's address as the client knows it, without a slash at its end."""
    return str(request.base_url).rstrip("/") + FHIR


def format_of(request: Request) -> str:
    """Choose the media type of a response: by the parameter _format if there is one, else by the header Accept.

    Args:
        request: as it came.

    Returns:
        One of OFFERED.

    Raises:
        HTTPException: 406; the client accepts neither, or another version of FHIR only.
    """
    asked = request.query_params.getlist("_format")
    if asked:
        found = FORMATS.get(asked[-1].strip().lower())
        if found is None:
            raise HTTPException(406, f"There is no such _format here; there is {', '.join(OFFERED)}")
        return found

    def fits(media_range: MediaType) -> str | None:
        if media_range.parameters.get("fhirversion", VERSION) != VERSION:
            return None
        return next((one for one in OFFERED if media_range.holds(one)), None)

    return chosen(request, [f"{FHIR_JSON}; fhirVersion={VERSION}", OFFERED[1]], fits)


def respond(resource: Resource, kind: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Make a response.

    Args:
        resource: its body.
        kind: of OFFERED.
        headers: further ones.

    Returns:
        The response, with status 200.
    """
    return JSONResponse(resource, headers=headers, media_type=CONTENT_TYPES[kind])


def issue(severity: str, code: str, text: str) -> Resource:
    """Make an issue of an OperationOutcome.

    Args:
        severity: error, warning or information.
        code: of http://hl7.org/fhir/issue-type.
        text: what is wrong and what to do.

    Returns:
        The issue.
    """
    return {"severity": severity, "code": code, "details": {"text": text}}


def outcome(status: int, text: str, code: str = "") -> Resource:
    """Make the OperationOutcome of an error.

    Args:
        status: HTTP status.
        text: what is wrong and what to do, as a sentence.
        code: Osteon's own word for it, if it has one.

    Returns:
        The resource.
    """
    entry = issue("error", ISSUES.get(status, "processing"), text)
    if code:
        entry["diagnostics"] = code
    return {"resourceType": "OperationOutcome", "issue": [entry]}
