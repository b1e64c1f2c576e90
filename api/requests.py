"""How requests are read: the key is checked before a byte of a body is read; bodies are small and strict JSON."""

import json
import re
from collections.abc import Callable, Coroutine
from datetime import UTC, date, datetime
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator, AwareDatetime, BeforeValidator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import BadRequest

API = "/api/v1"  # what programs call stands under it; pages, probes and metrics do not
BODY_BYTES = 64 * 2**10  # of a JSON body, unless its route says more (max_body_size)
MAX_INTEGER_DIGITS = 20  # digits; the largest integer that is stored has 19


def _as_date_text(given: object) -> object:
    """A date as people write it: pydantic takes numbers too, as seconds since 1970, and OpenAPI does not."""
    if isinstance(given, date) or (isinstance(given, str) and re.match(r"\d{4}-\d\d-\d\d", given)):
        return given
    raise ValueError("write it in ISO 8601, such as 2026-01-31 or 2026-01-31T08:00:00Z")


def _in_utc(moment: datetime) -> datetime:
    """The same moment: Postgres takes no zone that is 16 hours or more from UTC."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("it is before the year 1 or after the year 9999 in UTC") from None


def _as_number(given: object) -> object:
    """A number as JSON has it, whole ones with a fraction of zero included: pydantic takes texts and true as well."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        return given
    raise ValueError("write a whole number")


AS_NUMBER = BeforeValidator(_as_number)  # the last in its Annotated: limits that follow it would not stand in OpenAPI
Day = Annotated[date, BeforeValidator(_as_date_text)]
Moment = Annotated[AwareDatetime, BeforeValidator(_as_date_text), AfterValidator(_in_utc)]


class KeyFirstRoute(APIRoute):
    """A route that checks its dependencies, the key too, before its body, and accepts bodies of at most max_body_size.

    FastAPI reads and parses a whole JSON body before it calls the first dependency, and when Starlette's limit
    (max_body_size) is exceeded, its 413 replaces the 401.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:  # noqa: ANN401 - FastAPI's
        self.body_bytes = more.pop("max_body_size", None) or BODY_BYTES
        super().__init__(path, endpoint, **more)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute.get_route_handler`."""
        respond = super().get_route_handler()
        if self.body_field is None:  # FastAPI reads no body, so dependencies come first already
            return respond
        # no transaction is begun before the body is there
        asked = [
            Depends(one.call) for one in self.dependant.dependencies if one.call is not None and one.scope != "function"
        ]
        check_key = APIRoute(self.path, _empty_endpoint, dependencies=asked).get_route_handler()
        limit = self.body_bytes

        async def key_first(request: Request) -> Response:
            await check_key(request)  # raises what the dependencies raise
            return await respond(StrictRequest(request.scope, request.receive, limit))

        return key_first


def _empty_endpoint() -> None:
    """What a route whose dependencies are asked alone does."""


class Router(APIRouter):
    """FastAPI's router, with routes that check the key first."""

    def __init__(self, **more: Any) -> None:  # noqa: ANN401 - FastAPI's
        super().__init__(route_class=KeyFirstRoute, **more)


class StrictRequest(Request):
    """A request with a bounded body, in which JSON means one thing only. Source: RFC 8259, RFC 7493 (I-JSON)."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        super().__init__(scope, receive)
        self._limit = limit

    async def body(self) -> bytes:
        """The whole body. Raises HTTPException (413) before more than the limit is held."""
        if not hasattr(self, "_body"):
            declared = self.headers.get("content-length", "0")
            pieces, size = [], int(declared) if declared.isdigit() else 0
            if size <= self._limit:
                size = 0
                async for piece in self.stream():
                    size += len(piece)
                    if size > self._limit:
                        break
                    pieces.append(piece)
            if size > self._limit:
                raise HTTPException(413, f"The body of this request may have at most {self._limit} bytes")
            self._body = b"".join(pieces)
        return self._body

    async def json(self) -> Any:  # noqa: ANN401 - any JSON
        """The body as JSON. Raises HTTPException (400) for what is not JSON, or not JSON for every program."""
        return strict_json(await self.body())


def strict_json(body: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Parse JSON without NaN, names given twice, lone surrogates, NUL characters or integers that nothing can store.

    Args:
        body: of a request.

    Returns:
        Its value.

    Raises:
        HTTPException: 400, with nothing of the body in its text.
    """
    try:
        found = json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, parse_int=_integer, object_pairs_hook=_object
        )
        _check_strings(found)
    except UnicodeError:
        raise HTTPException(400, "The body is not JSON in UTF-8, or names half of a surrogate pair") from None
    except _AmbiguousJson as error:
        raise HTTPException(400, f"The body holds {error}") from None
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not JSON, or is nested too deeply") from None
    return found


class _AmbiguousJson(Exception):
    """What the body holds that no JSON for us may."""


def _refuse_constant(name: str) -> None:
    raise _AmbiguousJson(f"{name}, which is no JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise _AmbiguousJson("an integer that is longer than any number here")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _AmbiguousJson("a name that is given twice")
    return found


def _check_strings(found: object) -> None:
    """Raises UnicodeError, _AmbiguousJson. Not recursive: the body may be nested as deeply as it is long."""
    todo = [found]
    while todo:
        one = todo.pop()
        if isinstance(one, str):
            one.encode("utf-8")
            if "\0" in one:
                raise _AmbiguousJson("a NUL character, which cannot be stored")
        elif isinstance(one, dict):
            todo += [*one, *one.values()]
        elif isinstance(one, list):
            todo += one


async def form_fields(request: Request, max_bytes: int) -> dict[str, str]:
    """Read an application/x-www-form-urlencoded body. Source: WHATWG URL, 5.1.

    Args:
        request: whose body was not read yet.
        max_bytes: the largest body; no more is held.

    Returns:
        The first value of each of at most 8 fields.

    Raises:
        BadRequest: the body is larger, or is no such form.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise BadRequest("The form is too large; load the page again")
    try:
        return {name: values[0] for name, values in parse_qs(body.decode("ascii"), max_num_fields=8).items()}
    except ValueError:
        raise BadRequest("The form cannot be read; load the page again") from None


class UnreadBodies:
    """Closes the connection after a response that came before the end of the request's body. Plain ASGI.

    Otherwise the server would read the rest, whatever its size, to find the next request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        names = {name: value for name, value in scope.get("headers", ()) if name in _FRAMING}
        if scope["type"] != "http" or not names or names.get(b"content-length") == b"0":
            await self.app(scope, receive, send)
            return
        unread = True

        async def noting() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and unread:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self.app(scope, noting, closing)


_FRAMING = (b"content-length", b"transfer-encoding")
