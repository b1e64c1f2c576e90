"""GET /held-files: files that wait for a decision; POST /held-files/{id}/decision: deciding."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dependencies import Admin, Parts, PartsDep
from api.responses import STUDY_ID
from api.uploads import ring
from shared.errors import BadRequest
from shared.held import POSSIBLE, STATE_OF, Decision, Kind, State
from shared.repository import held, work
from shared.repository.access import Key
from shared.repository.decisions import decide
from shared.study import Header, Identity
from shared.tables import HeldFileRow, InstanceRow, KeyRow, StudyRow

router = APIRouter(tags=["administer"])
LISTED = 20
FIELDS = {  # of an identity, as people call them
    "patient_name": "name",
    "patient_id": "patient ID",
    "issuer": "issuer of the ID",
    "birth_date": "birth date",
    "accession_number": "accession number",
    "study_description": "study description",
}
Reason = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]


class PatientView(BaseModel):
    """Who a file or a study says that its patient is."""

    patient_name: str = ""
    patient_id: str = ""
    issuer: str = ""
    birth_date: str = ""
    accession_number: str = ""
    study_description: str = ""


class Change(BaseModel):
    """What a file says otherwise than the study that it came for."""

    field: str
    study: str
    file: str


class HeldView(BaseModel):
    """Files that are decided on together: of one study, one patient, and held for one reason."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "7c1a52e0-7b2c-4e5f-8a55-5d3c2c1f9b10",
                "kind": "patient",
                "state": "open",
                "files": 2,
                "received_at": "2026-01-12T08:00:00Z",
                "study_id": STUDY_ID,
                "study_url": f"/view/{STUDY_ID}",
                "changes": [{"field": "patient ID", "study": "4711", "file": "0815"}],
                "decisions": ["another-study", "same-patient", "reject"],
            }
        }
    )

    id: UUID
    kind: Kind = Field(description="another patient, other pixels, a correction, or being compared by a worker")
    state: State
    files: int
    received_at: datetime
    study_id: UUID = Field(description="that the file came for")
    study_url: str
    study: PatientView = Field(default_factory=PatientView)
    file: PatientView = Field(default_factory=PatientView)
    changes: list[Change]
    decisions: list[Decision] = Field(description="what can be decided")
    decided_at: datetime | None = None
    decided_by: str | None = Field(None, description="name of the key")
    reason: str = ""
    new_study_id: UUID | None = None
    original_study_instance_uid: str | None = Field(None, description="of an image that has another one now")
    original_sop_instance_uid: str | None = None


class HeldPage(BaseModel):
    """What waits for a decision, and what was decided last."""

    counts: dict[Kind, int] = Field(description="files that wait")
    waiting: list[HeldView]
    decided: list[HeldView]


class Choice(BaseModel):
    """A decision on held files."""

    model_config = ConfigDict(json_schema_extra={"example": {"decision": "another-study", "reason": "console mix-up"}})

    decision: Decision
    reason: Reason = Field("", description="why; needed to reject. Kept encrypted")


class DecisionMade(BaseModel):
    """What a decision led to."""

    state: State
    files: int = Field(description="that it was about; 0: it had been made before")
    study_ids: list[UUID] = Field(description="studies that got images")


@router.get("/held-files")
def held_files(parts: PartsDep, key: Admin) -> HeldPage:
    """Files that wait for a decision, the oldest first, and what was decided last. Identities are read under audit."""
    return held_page(parts, key)


def held_page(parts: Parts, key: Key, *, renewed: bool = False) -> HeldPage:
    """What GET /held-files answers; the page shows the same. renewed: as Vault.identities has it."""
    with parts.database.transaction() as session:
        rows = [(group.row, group.files) for group in held.groups(session, key.site_id, LISTED)]
        past = [(row, 1) for row in held.decided(session, key.site_id, LISTED)]
        views = _views(session, parts, key, [*rows, *past], renewed=renewed)
        counts = held.open_counts(session, key.site_id)
    return HeldPage(counts=counts, waiting=views[: len(rows)], decided=views[len(rows) :])


@router.post(
    "/held-files/{held_id}/decision",
    responses={
        404: {"description": "there is no such file here"},
        409: {"description": "it was decided otherwise, or this cannot be decided"},
    },
)
def decision(held_id: UUID, choice: Choice, parts: PartsDep, key: Admin) -> DecisionMade:
    """Decide on a held file and those that belong together with it. Made again, a decision changes nothing.

    another-study: its images become a study of their own, under a new Study Instance UID. same-patient: they join the
    study that they came for. apply: the corrected header counts from now on; what it replaces is kept. reject: nothing
    of it is ever analysed; its bytes stay stored.
    """
    if choice.decision is Decision.REJECT and not choice.reason:
        raise BadRequest("Say why it is rejected")
    with parts.database.transaction() as session:
        made = decide(session, parts.vault, key, held_id, choice.decision, choice.reason, work.clock(session))
    ring(parts, made.study_ids)
    return DecisionMade(state=STATE_OF[choice.decision], files=made.files, study_ids=made.study_ids)


def corrections_of(session: Session, parts: Parts, study_id: UUID) -> list[HeldView]:
    """The corrections of a study that are in force, the earliest first; whoever shows them has noted the reading."""
    rows = held.corrections(session, study_id)
    return _described(session, parts, {}, [(row, 1) for row in rows if row.state == State.APPLIED])


def _views(
    session: Session, parts: Parts, key: Key, rows: Sequence[tuple[HeldFileRow, int]], *, renewed: bool
) -> list[HeldView]:
    known = parts.vault.identities(session, key, list({row.study_id for row, _ in rows}), renewed=renewed)
    return _described(session, parts, known, rows)


def _described(
    session: Session, parts: Parts, known: dict[UUID, Identity], rows: Sequence[tuple[HeldFileRow, int]]
) -> list[HeldView]:
    deciders = select(KeyRow.id, KeyRow.name).where(KeyRow.id.in_({row.decided_by for row, _ in rows}))
    names = {id_: name for id_, name in session.execute(deciders)}  # noqa: C416 - rows are no tuples to the type checker
    images = {one for row, _ in rows for one in (row.instance_id, row.new_instance_id) if one}
    instances = {one.id: one for one in session.scalars(select(InstanceRow).where(InstanceRow.id.in_(images)))}
    moved = select(StudyRow.id, StudyRow.study_instance_uid).where(
        StudyRow.id.in_({row.new_study_id for row, _ in rows})
    )
    uids = {id_: uid for id_, uid in session.execute(moved)}  # noqa: C416 - as above
    return [
        _view(parts, row, files, known.get(row.study_id, Identity()), instances, names, uids) for row, files in rows
    ]


def _view(
    parts: Parts,
    row: HeldFileRow,
    files: int,
    identity: Identity,
    instances: dict[UUID, InstanceRow],
    names: dict[UUID, str],
    uids: dict[UUID, str],
) -> HeldView:
    header = held.opened_header(parts.vault, row.header)
    image = instances.get(row.instance_id) if row.instance_id else None
    now = {"body_part": image.body_part, "laterality": image.laterality, "view": image.view} if image else {}
    if row.before:
        kept: Any = parts.vault.open(row.before)
        identity, now = Identity(**kept["identity"]), {name: kept[name] for name in ("body_part", "laterality", "view")}
    made = instances.get(row.new_instance_id) if row.new_instance_id else None
    uid = uids.get(row.new_study_id, row.study_instance_uid) if row.new_study_id else row.study_instance_uid
    return HeldView(
        id=row.id,
        kind=Kind(row.kind),
        state=State(row.state),
        files=files,
        received_at=row.received_at,
        study_id=row.study_id,
        study_url=f"/view/{row.study_id}",
        study=PatientView(**asdict(identity)),
        file=PatientView(**asdict(header.identity)),
        changes=_changes(identity, now, header),
        decisions=list(POSSIBLE[Kind(row.kind)]) if row.state == State.OPEN else [],
        decided_at=row.decided_at,
        decided_by=names.get(row.decided_by) if row.decided_by else None,
        reason=str(parts.vault.open(row.reason)) if row.reason else "",
        new_study_id=row.new_study_id,
        original_study_instance_uid=row.study_instance_uid if uid != row.study_instance_uid else None,
        original_sop_instance_uid=(
            row.sop_instance_uid if made and made.sop_instance_uid != row.sop_instance_uid else None
        ),
    )


def _changes(study: Identity, image: dict[str, str], header: Header) -> list[Change]:
    """What the file says otherwise; image: body part, laterality and view of the one that it replaces, if any."""
    told = [(words, getattr(study, name), getattr(header.identity, name)) for name, words in FIELDS.items()]
    if image:
        seen = header.examination
        told += [
            ("body part", image["body_part"], header.body_part),
            ("side", image["laterality"], seen.laterality),
            ("view", image["view"], seen.view),
        ]
    return [Change(field=words, study=old, file=new) for words, old, new in told if old != new]
