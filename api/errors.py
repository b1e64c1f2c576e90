"""Every error in one form: problem+json for programs, a page for people, and nothing of the input in either.

Source: RFC 9457.
"""

import http
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import pages
from api.auth import KeyRejected
from api.fhir.formats import CONTENT_TYPES, FHIR_JSON, is_fhir, outcome
from api.intake.files import IdempotencyKeyReused
from api.schemas import InputError, Problem
from api.spool import RequestTooLarge, WrongContentType
from shared.errors import (
    BadBundle,
    BadRequest,
    InvalidState,
    NotFound,
    ObjectMissing,
    OsteonError,
    QuotaExceeded,
    Unavailable,
)
from shared.logs import get_logger
from shared.queries.access import LastKeyError

log = get_logger(__name__)
PROBLEM = "application/problem+json"
STATUS_OF: list[tuple[type[OsteonError], int]] = [
    (RequestTooLarge, 413),
    (WrongContentType, 415),
    (IdempotencyKeyReused, 422),
    (BadRequest, 400),
    (BadBundle, 422),
    (NotFound, 404),
    (InvalidState, 409),
    (ObjectMissing, 404),
    (LastKeyError, 409),
    (QuotaExceeded, 429),
    (Unavailable, 503),
    (OsteonError, 500),
]
MAX_INPUT_ERRORS = 20  # of one request that are listed
UNEXPECTED_ERROR = "An unexpected error happened here. It is in the API's log; please tell your administrator"
# statuses that any route answers, and those that only some can
EVERY_RESPONSE = {
    400: "The request cannot be understood",
    500: "An unexpected error of the server",
    503: "A part does not answer, or is busy; try again",
}
WITH_KEY = {
    401: "There is no valid API key",
    403: "The key's role does not allow this",
    429: "Too many requests; try again after Retry-After",
}
WITH_PLACE = {404: "There is no such thing, or it belongs to another site"}
WITH_CHANGE = {409: "The present state does not allow this"}
WITH_BODY = {
    408: "The body came too slowly",
    413: "The body is too large",
    415: "The body's content type is not accepted",
}
WITH_INPUT = {422: "A value is not allowed"}


def handle_errors(app: FastAPI) -> None:
    """Give an application these responses, and write them into its OpenAPI document."""
    app.add_exception_handler(OsteonError, _osteon_error)
    app.add_exception_handler(AnyHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(ClientDisconnect, _client_disconnected)
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:  # all routes are there before the first request
            add_error_responses(made())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


class UnexpectedErrors:
    """Answers what no route does: unexpected exceptions, and NUL in an address. Plain ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it. Raises what the application raises once its response has begun: then closing shows it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if "\0" in scope["path"] or b"\0" in unquote_to_bytes(scope["query_string"]):
                # no text column of Postgres takes it, and no name of ours has it
                response = problem(Request(scope), 400, "The address holds a NUL character")
                await response(scope, receive, send)
            else:
                await self.app(scope, receive, noting)
        except Exception:
            if begun:
                raise
            log.exception("request failed")
            await problem(Request(scope), 500, UNEXPECTED_ERROR)(scope, receive, send)


def problem(
    request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: object
) -> Response:
    """Make the response for an error: a page for people, problem+json for programs, an OperationOutcome under /fhir.

    Source: RFC 9457; FHIR R4 operationoutcome.html.

    Args:
        request: that failed.
        status: HTTP status.
        detail: what is wrong and what to do, as a sentence.
        headers: more headers of the response.
        **more: members that this kind of error adds.

    Returns:
        The response.
    """
    if is_fhir(request.scope["path"]):
        content = outcome(status, detail, str(more.get("code", "")))
        return JSONResponse(content, status, headers, media_type=CONTENT_TYPES[FHIR_JSON])
    title = http.HTTPStatus(status).phrase
    if pages.wants_page(request):
        return pages.problem_page(status, title, detail, headers)
    body = Problem(title=title, status=status, detail=detail).model_dump(exclude_none=True) | more
    return JSONResponse(body, status, headers, media_type=PROBLEM)


async def _osteon_error(request: Request, error: Exception) -> Response:
    status = next(status for kind, status in STATUS_OF if isinstance(error, kind))
    more = {"code": error.code, **error.more} if isinstance(error, InvalidState) and error.code else {}
    wait_s = error.retry_after_s if isinstance(error, QuotaExceeded) else 5 if status == 503 else None
    return problem(request, status, str(error), {"Retry-After": str(wait_s)} if wait_s else None, **more)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)
    if error.status_code == 405:
        return _method_not_allowed(request)
    if error.status_code == 401 and pages.wants_page(request) and not is_fhir(request.scope["path"]):
        return pages.to_login(request)
    more = {"code": str(error.code)} if isinstance(error, KeyRejected) and error.code else {}
    return problem(request, error.status_code, str(error.detail), error.headers, **more)


def _method_not_allowed(request: Request) -> Response:
    allowed = ", ".join(_allowed_methods(request))
    return problem(request, 405, f"This address accepts {allowed}", {"Allow": allowed})


def _allowed_methods(request: Request) -> list[str]:
    """The methods of the address by its most exact route: each route of FastAPI has its own methods only."""
    path = request.scope["path"]
    routes = [one for one in iter_route_contexts(request.app.routes) if one.path_regex and one.path_regex.match(path)]
    fewest = min((len(one.param_convertors) for one in routes), default=0)
    return sorted(
        {name for one in routes if len(one.param_convertors) == fewest for name in one.methods or ("GET", "HEAD")}
    )


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if request.method not in (*_allowed_methods(request), "HEAD"):  # a route with parameters matched first
        return _method_not_allowed(request)
    faults = list(_input_errors(request.app, error))
    detail = "; ".join(f"{fault.where}: {fault.why}" for fault in faults)
    return problem(request, 422, detail, errors=[fault.model_dump() for fault in faults])


async def _client_disconnected(_request: Request, _wrong: Exception) -> Response:
    # nobody reads this response; 499 is what proxies log for it
    return Response(status_code=499)


def _input_errors(app: FastAPI, validation_error: RequestValidationError) -> Iterator[InputError]:
    """What is wrong and where, in our own words: names and values that the client made up are left out."""
    field_names = _field_names(app.openapi())
    for error in validation_error.errors()[:MAX_INPUT_ERRORS]:
        source, *place = error["loc"]
        names = [
            str(part) if source != "body" or isinstance(part, int) or part in field_names else "?" for part in place
        ]
        why = str(error["msg"]).removeprefix("Value error, ")
        given = error.get("input")
        if error["type"] == "uuid_parsing":
            why = "Input should be a valid UUID"  # pydantic quotes a character of it
        elif isinstance(given, str) and len(given) > 3 and given in why:
            why = "Input is not allowed"
        yield InputError(where=".".join([str(source), *names]), why=why)


def _field_names(schema: dict[str, Any]) -> set[str]:
    """All names of fields that an OpenAPI document defines."""
    models = schema.get("components", {}).get("schemas", {}).values()
    return {name for model in models for name in model.get("properties", ())}


def add_error_responses(schema: dict[str, Any]) -> None:
    """Write into an OpenAPI document which errors each operation has, and in what form."""
    models = schema["components"]["schemas"]
    models.pop("HTTPValidationError", None)
    models.pop("ValidationError", None)
    own = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    models |= own.pop("$defs", {})
    models["Problem"] = own
    shape = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            expected = dict(EVERY_RESPONSE)
            expected |= WITH_CHANGE if method != "get" else {}
            expected |= WITH_KEY if operation.get("security") else {}
            expected |= WITH_PLACE if "{" in path else {}
            expected |= WITH_BODY if "requestBody" in operation else {}
            expected |= WITH_INPUT if "requestBody" in operation or operation.get("parameters") else {}
            responses = operation["responses"]
            for status, words in expected.items():
                responses.setdefault(str(status), {"description": words})
            for status, response in responses.items():
                if re.fullmatch("[45]..", status) is None:
                    continue
                content = response.setdefault("content", {})
                if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith(_REPLACED):
                    del content["application/json"]
                content |= {FHIR_JSON: {"schema": OUTCOME}} if is_fhir(path) else {PROBLEM: shape}
                if response["description"] == "Validation Error":
                    response["description"] = WITH_INPUT[422]
            operation["responses"] = dict(sorted(responses.items()))


OUTCOME = {"type": "object", "description": "an OperationOutcome of FHIR R4", "required": ["resourceType", "issue"]}
_REPLACED = ("/Problem", "/HTTPValidationError")
