"""The login, and what a browser gets instead of a bare 401."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import quote
from uuid import UUID

from fastapi import HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from api.auth import KeyRejected, address, is_from_own_page
from api.dependencies import AnyRole, Parts, PartsDep, login_of
from api.pages.render import navigation, render
from api.requests import Router, form_fields
from shared.domain.security import EventKind, KeyRefusal, LoginEnd
from shared.errors import BadRequest, Unavailable
from shared.queries.access import Key

router = Router(include_in_schema=False)
LOGIN_BYTES = 4096
LOGIN_DELAY_S = 0.5


def wants_page(request: Request) -> bool:
    """Whether a person's browser sends this, rather than a program."""
    return "text/html" in request.headers.get("accept", "") and "authorization" not in request.headers


def to_login(request: Request) -> Response:
    """Redirect to the login page, and from there back to the page that was asked for."""
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.method not in ("GET", "HEAD"):  # what was sent is lost, and the address alone leads nowhere
        target = "/"
    return RedirectResponse(f"/login?next={quote(_inside(target), safe='')}", 303)


def problem_page(status: int, title: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Make an error page for people, in the words that the API uses for programs.

    Args:
        status: HTTP status.
        title: what kind of error this is.
        detail: what is wrong and what to do, as a sentence.
        headers: more headers of the response.

    Returns:
        The page.
    """
    return render("problem.html", status, dict(headers or {}), title=title, detail=detail)


@router.get("/login")
def login_form(request: Request, parts: PartsDep) -> Response:
    """Show the login form, and why an earlier login of this browser has ended."""
    ended = None
    with suppress(Unavailable, ValueError):
        if login := login_of(request):
            ended = parts.credentials.login_end(login)
        elif told := request.session.get("ended"):
            ended = LoginEnd(told)
    told = parts.credentials.login_end_text(ended) if ended else ""
    return _login_page(200, "", request.query_params.get("next", "/"), told)


@router.post("/login")
async def login(request: Request, parts: PartsDep) -> Response:
    """Accept a key, and keep the id of a new login, never the key itself, in the signed cookie."""
    fields = await _small_form(request)
    target = _inside(fields.get("next", "/"))
    if is_from_own_page(request) is False and request.headers.get("sec-fetch-site") != "none":
        return _login_page(403, "This form was sent from another site. Log in here.", "/")
    try:
        key, begun = await run_in_threadpool(_log_in, parts, fields.get("key", "").strip(), address(request))
    except KeyRejected as error:
        await asyncio.sleep(LOGIN_DELAY_S)
        message = "This key is not valid: it is mistyped, or belongs to another installation."
        words = message if error.code == KeyRefusal.WRONG else f"{error.detail}."
        response = _login_page(error.status_code, words, target)
        response.headers.update({name: value for name, value in (error.headers or {}).items() if name == "Retry-After"})
        return response
    request.session.clear()
    request.session["login"] = begun.hex
    return RedirectResponse(target if target != "/" else navigation(key)[0][0], 303)


@router.post("/logout")
def logout(request: Request, parts: PartsDep) -> Response:
    """End the login, here and on the server; the browser forgets drafts and pictures too."""
    if not is_from_own_page(request):
        raise HTTPException(403, "This was not sent by a page of Osteon: log out with the button of a page")
    if login := login_of(request):
        parts.credentials.log_out(login, address(request))
    request.session.clear()
    request.session["ended"] = LoginEnd.LOGGED_OUT
    return RedirectResponse("/login", 303, headers={"Clear-Site-Data": '"cache", "storage"'})


@router.get("/active")
def left(parts: PartsDep, key: AnyRole) -> dict[str, float | None]:
    """Tell pages in how many seconds the login ends without activity. 401 once it has."""
    remaining = parts.credentials.time_left(key.login) if key.login else None
    return {"left_s": remaining.total_seconds() if remaining else None}


@router.post("/active", status_code=204)
def active(_key: AnyRole) -> Response:
    """Record that the user is active, as pages report it. Requests that pages make themselves keep no login alive."""
    return Response(status_code=204)


def _log_in(parts: Parts, secret: str, where: str) -> tuple[Key, UUID]:
    """The key, and its new login: each page asks for the role that it needs. Raises KeyRejected."""
    key = parts.credentials.verify_key(secret, where, EventKind.LOGIN_FAILED)
    return key, parts.credentials.log_in(key)


async def _small_form(request: Request) -> dict[str, str]:
    """The fields of a urlencoded body. Raises BadRequest for anything else, or anything large."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise BadRequest("Send the login form as application/x-www-form-urlencoded")
    return await form_fields(request, LOGIN_BYTES)


def _inside(target: str) -> str:
    """The target if it is a path of this site, else the worklist: a login must not lead elsewhere."""
    plain = target.isprintable() and "\\" not in target and " " not in target
    return target if plain and target.startswith("/") and not target.startswith(("//", "/log")) else "/"


def _login_page(status: int, message: str, target: str, ended: str = "") -> Response:
    return render("login.html", status, wrong=message, ended=ended, target=_inside(target))
