"""The page for radiologists: login, worklist, study. It shows what the API answers, rendered here without a build."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, quote, urlencode
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles

from api.dependencies import Parts, PartsDep, Radiologist
from api.responses import FindingView, StudyReport, WorklistPage
from api.studies import study_report
from api.worklist import worklist_page
from shared.errors import BadRequest, NotFound
from shared.findings import RESEARCH_USE, Call, Severity
from shared.repository import reading
from shared.repository.access import Key, Role, find_key
from shared.repository.bundles import active_bundle
from shared.study import Identity, Priority, StudyStatus
from shared.worklist import WorklistEntry

HERE = Path(__file__).parent
STATIC = StaticFiles(directory=HERE / "static")
router = APIRouter(include_in_schema=False)

ROWS = 50
LOGIN_BYTES = 4096
LOGIN_DELAY_S = 0.5
GRAVEST_FIRST = [Call.LIKELY, Call.POSSIBLE, Call.ABSTAINED, Call.NONE]
UNFINISHED = (StudyStatus.QUEUED, StudyStatus.RUNNING, StudyStatus.RETRYING)
Word = TypeVar("Word", bound=StrEnum)


# -- who may come in -----------------------------------------------------------------------------------------------


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
    return _render("problem.html", status, title=title, detail=detail)


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
        return RedirectResponse(target, 303)
    await asyncio.sleep(LOGIN_DELAY_S)
    if key is None:
        wrong = "This key is not valid: it is mistyped, was revoked, or belongs to another installation."
        return _login_page(401, wrong, target)
    wrong = f"This key may send studies only (role {key.role}). This page needs a radiologist's or an admin's key."
    return _login_page(403, wrong, target)


@router.post("/logout")
def logout(request: Request) -> Response:
    """Forget the reader."""
    request.session.clear()
    return RedirectResponse("/login", 303)


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
    return _render("login.html", status, wrong=wrong, target=_inside(target))


# -- what they see -------------------------------------------------------------------------------------------------


@router.get("/")
def worklist(request: Request, parts: PartsDep, key: Radiologist) -> Response:
    """The worklist. Asked again with the ETag of what is on the screen, it reads identities only if that changed."""
    given = request.query_params
    chosen = _filter(given)
    page = worklist_page(parts, key, chosen, given.get("after") or None, ROWS)
    version = _version(page, key)
    if request.headers.get("if-none-match") == version:
        return Response(status_code=304, headers={"ETag": version})
    with parts.database.transaction() as session:
        identities = parts.vault.identities(session, key, [entry.study_id for entry in page.entries])
        bundle = active_bundle(session)
    regions = list(bundle.manifest.get("regions", [])) if bundle else []
    if chosen.region and chosen.region not in regions:
        regions.append(chosen.region)
    filters = {name: given[name] for name in FILTERS if given.get(name)}
    context = {
        "key": key,
        "counts": page.counts,
        "page": page,
        "identities": identities,
        "filters": filters,
        "options": {"status": StudyStatus, "call": Call, "region": regions, "priority": Priority},
        "version": version,
        "first_page": f"/?{urlencode(filters)}" if given.get("after") else "",
        "next_page": f"/?{urlencode({**filters, 'after': page.next})}" if page.next else "",
    }
    return _render("worklist.html", 200, {"ETag": version}, **context)


@router.get("/view/{study_id}")
def study(request: Request, study_id: str, parts: PartsDep, key: Radiologist) -> Response:
    """One study: its films, and the model's words about each."""
    try:
        report = study_report(parts, key, UUID(study_id))
    except ValueError:
        raise NotFound(f"there is no study {study_id} here") from None
    version = _version(report, key)
    if request.headers.get("if-none-match") == version:
        return Response(status_code=304, headers={"ETag": version})
    with parts.database.transaction() as session:
        identity = parts.vault.identities(session, key, [report.id]).get(report.id, Identity())
        counts = parts.counts.of(session, key.site_id)
    context = {
        "key": key,
        "counts": counts,
        "report": report,
        "identity": identity,
        "why": _why(report),
        "overdue": report.due_at < datetime.now(UTC),
        "unfinished": report.status in UNFINISHED,
        "pictures": any(image.findings for image in report.instances),
        "version": version,
    }
    return _render("study.html", 200, {"ETag": version}, **context)


FILTERS = ("status", "call", "region", "priority")


def _filter(given: Mapping[str, str]) -> reading.WorklistFilter:
    """The chosen filters; a form sends the empty string for "any". Raises BadRequest for words that do not exist."""
    region = given.get("region") or None
    if region and not (region.isprintable() and len(region) <= 32):
        raise BadRequest("There is no such region")
    return reading.WorklistFilter(
        _word(StudyStatus, given.get("status")), _word(Call, given.get("call")), region,
        _word(Priority, given.get("priority")),
    )  # fmt: skip


def _word(kind: type[Word], text: str | None) -> Word | None:
    try:
        return kind(text) if text else None
    except ValueError:
        raise BadRequest(f"Choose one of: {', '.join(kind)}") from None


def _version(shown: WorklistPage | StudyReport, key: Key) -> str:
    """Changes when anything on the screen does, the passing of time apart."""
    return f'"{_digest(BaseModel.model_dump_json(shown).encode(), key.id.bytes, ASSETS.encode())}"'


def _why(report: StudyReport) -> str:
    """The study's place in the worklist, in the worklist's words."""
    entry = WorklistEntry(
        study_id=report.id, priority=report.priority, status=report.status, received_at=report.received_at,
        due_at=report.due_at, call=report.call, severity=report.severity, region=report.region,
        fracture_probability=report.fracture_probability, scope=report.scope, modality="",
        images=len(report.instances), failed_images=0, reason=report.reason,
    )  # fmt: skip
    return entry.why()


# -- words and numbers for people ----------------------------------------------------------------------------------


def person(name: str) -> str:
    """A DICOM person name as people write it: "DOE^JANE" is "DOE, JANE". Source: PS3.5 6.2.1."""
    groups = []
    for group in name.split("="):
        family, *rest = (part.strip() for part in group.split("^"))
        given = " ".join(part for part in rest if part)
        groups.append(f"{family}, {given}" if family and given else family or given)
    return " / ".join(group for group in groups if group)


def dicom_date(text: str) -> str:
    """A DICOM date as ISO 8601, anything else as it is."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text


def percent(probability: float) -> str:
    """A probability in 0..1, never rounded to a certainty."""
    if 0.99 < probability < 1:
        return ">\N{NO-BREAK SPACE}99\N{NO-BREAK SPACE}%"
    if 0 < probability < 0.01:
        return "<\N{NO-BREAK SPACE}1\N{NO-BREAK SPACE}%"
    return f"{probability * 100:.0f}\N{NO-BREAK SPACE}%"


def span(start: datetime, end: datetime | None = None) -> str:
    """The time from start to end, or to now, in two units at most."""
    seconds = max(0, int(((end or datetime.now(UTC)) - start).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 60:
        return f"{seconds} s" if end else "< 1 min"
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02d} min" if hours < 24 else f"{days} d {hours % 24} h"


def reason_alone(why: str) -> str:
    """`why` without its leading due time, which the page shows in the reader's own zone."""
    return why.partition(": ")[2] or why


def gravest(findings: Sequence[FindingView]) -> FindingView:
    """The frame to open first: of many frames the first may show nothing."""
    return min(findings, key=lambda finding: (GRAVEST_FIRST.index(finding.call), -finding.fracture_probability))


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


ASSETS = _digest(*(file.read_bytes() for file in sorted(HERE.glob("static/*")) + sorted(HERE.glob("templates/*"))))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = (person, dicom_date, percent, span, reason_alone, gravest)
    environment.filters.update({function.__name__: function for function in filters})
    environment.globals.update(RESEARCH_USE=RESEARCH_USE, ASSETS=ASSETS, Call=Call, Severity=Severity, key=None)
    return environment


_PAGES = _environment()


def _render(template: str, status: int, headers: dict[str, str] | None = None, /, **context: object) -> Response:
    return HTMLResponse(_PAGES.get_template(template).render(context), status, headers)
