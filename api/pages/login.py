"""Who may come in: the login, and what a browser gets instead of a bare 401."""

import asyncio
import secrets
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from api.dependencies import Parts, PartsDep
from api.pages.render import render
from shared.errors import BadRequest
from shared.repository.access import Key, Role, find_key

router = APIRouter(include_in_schema=False)
LOGIN_BYTES = 4096
LOGIN_DELAY_S = 0.5


def wants_page(request: Request) -> bool:
    """Whether a browser's reader asks, rather than a program."""
    accepts_html = "text/html" in request.headers.get("accept", "")
    return request.method == "GET" and accepts_html and "authorization" not in request.headers


def to_login(request: Request) -> Response:
    """Send the reader to the login page, and from there back to where they were going."""
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?next={quote(_inside(target), safe='')}", 303)


def problem_page(status: int, title: str, detail: str) -> Response:
    """An error as a page for people, in the words that the API uses for programs."""
    return render("problem.html", status, title=title, detail=detail)


@router.get("/login")
def login_form(request: Request) -> Response:
    """The login form."""
    return _login_page(200, "", request.query_params.get("next", "/"))


@router.post("/login")
async def login(request: Request, parts: PartsDep) -> Response:
    """Take a key and keep its id, never the key itself, in the signed cookie."""
    fields = await _small_form(request)
    target = _inside(fields.get("next", "/"))
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return _login_page(403, "This form was sent from another site. Log in here.", "/")
    key = await run_in_threadpool(_find_key, parts, fields.get("key", "").strip())
    if key is not None and key.may(Role.RADIOLOGIST):
        request.session.clear()
        request.session["key"] = str(key.id)
        request.session["desk"] = secrets.token_hex(8)  # two people who share a key are two readers
        return RedirectResponse(target, 303)
    await asyncio.sleep(LOGIN_DELAY_S)
    if key is None:
        wrong = "This key is not valid: it is mistyped, was revoked, or belongs to another installation."
        return _login_page(401, wrong, target)
    wrong = f"This key may send studies only (role {key.role}). This page needs a radiologist's or an admin's key."
    return _login_page(403, wrong, target)


@router.post("/logout")
def logout(request: Request) -> Response:
    """Forget the reader, drafts that lie in the browser too."""
    request.session.clear()
    return RedirectResponse("/login", 303, headers={"Clear-Site-Data": '"storage"'})


def _find_key(parts: Parts, secret: str) -> Key | None:
    with parts.database.transaction() as session:
        return find_key(session, secret)


async def _small_form(request: Request) -> dict[str, str]:
    """The fields of a urlencoded body. Raises BadRequest for anything else, or anything large."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise BadRequest("Send the login form as application/x-www-form-urlencoded")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LOGIN_BYTES:
            raise BadRequest("The login form is larger than any key")
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=8)
    except ValueError:
        raise BadRequest("The login form cannot be read") from None
    return {name: values[0] for name, values in fields.items()}


def _inside(target: str) -> str:
    """The target if it is a path of this site, else the worklist: a login must not lead elsewhere."""
    plain = target.isprintable() and "\\" not in target and " " not in target
    return target if plain and target.startswith("/") and not target.startswith(("//", "/log")) else "/"


def _login_page(status: int, wrong: str, target: str) -> Response:
    return render("login.html", status, wrong=wrong, target=_inside(target))
