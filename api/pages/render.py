"""Templates, and the words and numbers that people read in them."""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fastapi import Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.models.revised import MAX_COUNTED
from api.schemas import FindingView
from api.studies.examination import cut, dicom_date, examined, image_words, joined, patient, when
from api.uploads.held import PatientView
from shared.dicom.header import one_line
from shared.domain.completeness import completeness_words, received_words
from shared.domain.findings import RESEARCH_USE, Assessment, Extent, gravity, unread_words
from shared.domain.security import Role
from shared.domain.study import Identity
from shared.domain.worklist import duration_text
from shared.queries.access import Key
from shared.queries.revised import unseen_count

HERE = Path(__file__).parent
STATIC_DIR = HERE / "static"
REVISED_PATH = "/revised"
NAVIGATION = [  # path, name, and the roles of which one opens it
    ("/", "Worklist", (Role.RADIOLOGIST,)),
    (REVISED_PATH, "Revised findings", (Role.RADIOLOGIST,)),
    ("/agreement", "Agreement", (Role.RADIOLOGIST,)),
    ("/notices", "Notices", (Role.RADIOLOGIST,)),
    ("/send", "Send", (Role.SUBMITTER,)),
    ("/operations", "Operations", (Role.ADMIN, Role.OPERATOR)),
]

ATTRIBUTES = {  # of a header, by DICOM keyword, as people call them
    "PatientName": "name",
    "PatientID": "patient ID",
    "IssuerOfPatientID": "issuer of the ID",
    "PatientBirthDate": "birth date",
    "AccessionNumber": "accession number",
    "StudyDescription": "study description",
    "StudyID": "study ID",
    "ReferringPhysicianName": "referring physician",
    "BodyPartExamined": "body part",
    "Laterality": "side",
    "ViewPosition": "view",
}


def attribute_words(keyword: str) -> str:
    """What people call an attribute of a header; its keyword if it has no other name here."""
    return ATTRIBUTES.get(keyword, keyword)


def person(name: str) -> str:
    """A DICOM person name as people write it: "DOE^JANE" is "DOE, JANE". Source: PS3.5 6.2.1."""
    groups = []
    for group in one_line(name).split("="):
        family, *rest = (part.strip() for part in group.split("^"))
        given = " ".join(part for part in rest if part)
        groups.append(f"{family}, {given}" if family and given else family or given)
    return " / ".join(group for group in groups if group)


def named(who: Identity | PatientView | None) -> str:
    """The patient's name as pages and reports show it, or a phrase if there is none or it cannot be decrypted."""
    if who is None or who.readable:
        return (person(who.patient_name) if who else "") or "Name not given"
    return "Identity cannot be decrypted"


def percent(probability: float) -> str:
    """A probability in 0..1, never rounded to a certainty."""
    if 0.99 < probability < 1:
        return ">\N{NO-BREAK SPACE}99\N{NO-BREAK SPACE}%"
    if 0 < probability < 0.01:
        return "<\N{NO-BREAK SPACE}1\N{NO-BREAK SPACE}%"
    return f"{probability * 100:.0f}\N{NO-BREAK SPACE}%"


def gravest(findings: Sequence[FindingView]) -> FindingView:
    """The frame to open first: of many frames the first may show nothing."""
    return min(findings, key=lambda finding: (-gravity_of(finding), -finding.fracture_probability))


def gravity_of(finding: FindingView) -> int:
    """0 for negative to 3 for what ranks as positive."""
    return gravity(finding.assessment, finding.score)


def digest(*parts: bytes) -> str:
    """16 hexadecimal digits that change when any of the parts does."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


_FILES = sorted(file for file in STATIC_DIR.rglob("*") if file.is_file())
# A file's address carries the digest of the whole folder, and a script imports its neighbours by relative paths: what a
# page loads is of one version, and browsers may keep it for ever.
STATIC = "/static/" + digest(
    *(part for file in _FILES for part in (file.relative_to(STATIC_DIR).as_posix().encode(), file.read_bytes()))
)
PAGES_DIGEST = digest(STATIC.encode(), *(file.read_bytes() for file in sorted(HERE.glob("templates/*"))))
_IMPORT = re.compile(r'^(?:import|export|}) [^"\n]*"(\.[^"]+)";', re.MULTILINE)


def modules(entry: str) -> list[str]:
    """The script of a page and all that it imports, as paths below the static folder; the entry comes last."""
    found = [entry]
    for name in found:  # it grows meanwhile
        folder = (STATIC_DIR / name).parent
        for path in _IMPORT.findall((STATIC_DIR / name).read_text()):
            imported = str((folder / path).resolve().relative_to(STATIC_DIR.resolve()))
            if imported not in found:
                found.append(imported)
    return found[::-1]


@cache
def script(entry: str) -> Markup:
    """Load the script of a page. All that it imports is named with it, or the browser would find it file by file."""
    *imported, _ = modules(entry)
    preloads = (f'<link rel="modulepreload" href="{STATIC}/{name}">' for name in imported)
    return Markup("\n".join((*preloads, f'<script type="module" src="{STATIC}/{entry}"></script>')))  # noqa: S704 - our own names


# It stands before the styles and is no module: it chooses the theme before anything is drawn.
THEME_SCRIPT = Markup(f'<script src="{STATIC}/theme.js"></script>')  # noqa: S704 - our own name


def revised_words(count: int) -> str:
    """How many revised findings wait, as the navigation says it: no more than MAX_COUNTED are counted."""
    return f"{count - 1}+" if count >= MAX_COUNTED else str(count)


def header(session: Session, key: Key) -> dict[str, object]:
    """Collect what every page's header shows.

    Args:
        session: the caller's transaction.
        key: of the reader.

    Returns:
        Values by name: the key, and for radiologists what waits at their site.
    """
    if not key.may(Role.RADIOLOGIST):
        return {"key": key}
    return {"key": key, "revised": unseen_count(session, key.site_id, MAX_COUNTED)}


def navigation(key: Key) -> list[tuple[str, str]]:
    """The pages that a key opens, as (path, name)."""
    return [(path, name) for path, name, roles in NAVIGATION if key.may(*roles)]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = (person, named, dicom_date, percent, duration_text, gravest, gravity_of, unread_words)
    environment.filters.update({function.__name__: function for function in filters})
    environment.globals.update(examined=examined, when=when, patient=patient, image_words=image_words, joined=joined)
    environment.filters.update(cut=cut, one_line=one_line, attribute_words=attribute_words)
    environment.globals.update(RESEARCH_USE=RESEARCH_USE, STATIC=STATIC, script=script, theme_script=THEME_SCRIPT)
    environment.globals.update(Assessment=Assessment, Extent=Extent)
    environment.globals.update(completeness_words=completeness_words, received_words=received_words)
    environment.globals.update(key=None, navigation=navigation, revised_words=revised_words, REVISED_PATH=REVISED_PATH)
    return environment


_PAGES = _environment()


def render(template: str, status: int, headers: dict[str, str] | None = None, /, **context: object) -> Response:
    """Render a template.

    Args:
        template: name of its file.
        status: HTTP status.
        headers: more headers of the response.
        **context: what the template uses; a name that it lacks raises jinja2.UndefinedError.

    Returns:
        The page.
    """
    return HTMLResponse(_PAGES.get_template(template).render(context), status, headers)


def version_of(shown: BaseModel, key: Key, *more: str) -> str:
    """Make a page's ETag, which changes when anything on the screen does, the passing of time apart.

    Args:
        shown: what the page shows.
        key: of the reader.
        *more: what else the page shows.

    Returns:
        The ETag, with its quotation marks.
    """
    parts = (shown.model_dump_json(), PAGES_DIGEST, *more)
    return f'"{digest(key.id.bytes, *(part.encode() for part in parts))}"'
