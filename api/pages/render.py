"""Templates, and the words and numbers that people read in them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fastapi import Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.alerts import MOST_COUNTED
from api.dependencies import Parts
from api.examination import cut, dicom_date, examined, image_words, joined, patient, when
from api.responses import FindingView
from shared.dicom import one_line
from shared.findings import RESEARCH_USE, Assessment, Severity, gravity, unread_words
from shared.repository.access import Key, Role
from shared.repository.alerts import unseen_count
from shared.worklist import span

HERE = Path(__file__).parent
REVISED_PATH = "/second-looks"
ROOMS = [
    ("/", "Worklist", Role.RADIOLOGIST),
    (REVISED_PATH, "Revised findings", Role.RADIOLOGIST),
    ("/agreement.html", "Agreement", Role.RADIOLOGIST),
    ("/admin", "Operations", Role.ADMIN),
]


def person(name: str) -> str:
    """A DICOM person name as people write it: "DOE^JANE" is "DOE, JANE". Source: PS3.5 6.2.1."""
    groups = []
    for group in one_line(name).split("="):
        family, *rest = (part.strip() for part in group.split("^"))
        given = " ".join(part for part in rest if part)
        groups.append(f"{family}, {given}" if family and given else family or given)
    return " / ".join(group for group in groups if group)


def percent(probability: float) -> str:
    """A probability in 0..1, never rounded to a certainty."""
    if 0.99 < probability < 1:
        return ">\N{NO-BREAK SPACE}99\N{NO-BREAK SPACE}%"
    if 0 < probability < 0.01:
        return "<\N{NO-BREAK SPACE}1\N{NO-BREAK SPACE}%"
    return f"{probability * 100:.0f}\N{NO-BREAK SPACE}%"


def reason_alone(why: str) -> str:
    """`why` without its leading due time, which the page shows in the reader's own zone."""
    return why.partition(": ")[2] or why


def gravest(findings: Sequence[FindingView]) -> FindingView:
    """The frame to open first: of many frames the first may show nothing."""
    return min(findings, key=lambda finding: (-gravity_of(finding), -finding.fracture_probability))


def gravity_of(finding: FindingView) -> int:
    """0 for negative to 3 for what ranks as positive."""
    return gravity(finding.assessment, finding.score)


def digest(*parts: bytes) -> str:
    """16 hexadecimal digits that change when any of the parts does."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


ASSETS = digest(*(file.read_bytes() for file in sorted(HERE.glob("static/*")) + sorted(HERE.glob("templates/*"))))


def revised_words(count: int) -> str:
    """How many revised findings wait, as the navigation says it: no one counts further than MOST_COUNTED."""
    return f"{count - 1}+" if count >= MOST_COUNTED else str(count)


def header(parts: Parts, session: Session, key: Key) -> dict[str, object]:
    """What every page's header shows: whose key it is, and what waits at their site."""
    return {
        "key": key,
        "counts": parts.counts.of(session, key.site_id),
        "revised": unseen_count(session, key.site_id, MOST_COUNTED),
    }


def rooms(key: Key) -> list[tuple[str, str]]:
    """The pages that a key opens, as (path, name)."""
    return [(path, name) for path, name, role in ROOMS if key.may(role)]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = (person, dicom_date, percent, span, reason_alone, gravest, gravity_of, unread_words)
    environment.filters.update({function.__name__: function for function in filters})
    environment.globals.update(examined=examined, when=when, patient=patient, image_words=image_words, joined=joined)
    environment.filters.update(cut=cut, one_line=one_line)
    environment.globals.update(RESEARCH_USE=RESEARCH_USE, ASSETS=ASSETS, Assessment=Assessment, Severity=Severity)
    environment.globals.update(key=None, rooms=rooms, revised_words=revised_words, REVISED_PATH=REVISED_PATH)
    return environment


_PAGES = _environment()


def render(template: str, status: int, headers: dict[str, str] | None = None, /, **context: object) -> Response:
    """A template as an HTML answer. Raises jinja2.UndefinedError for a name that the context lacks."""
    return HTMLResponse(_PAGES.get_template(template).render(context), status, headers)


def version_of(shown: BaseModel, key: Key, *more: str) -> str:
    """Changes when anything on the screen does, the passing of time apart."""
    parts = (shown.model_dump_json(), ASSETS, *more)
    return f'"{digest(key.id.bytes, *(part.encode() for part in parts))}"'
