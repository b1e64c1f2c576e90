"""GET /api/v1/held-files: files that wait for a decision; POST /api/v1/held-files/{id}/decision: the decision."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.orm import Session

from api.dependencies import Admin, Parts, PartsDep, SessionDep
from api.messages import send_tasks
from api.requests import API, Router
from api.schemas import STUDY_ID, RowView
from shared.db.clock import db_now
from shared.db.tables import HeldFileRow
from shared.domain.held import POSSIBLE_DECISIONS, STATE_OF, HeldDecision, HeldKind, HeldState
from shared.domain.study import IDENTITY_KEYWORDS, Header, Identity, UnreadableIdentity
from shared.errors import BadRequest
from shared.queries import held
from shared.queries.access import Key
from shared.queries.decisions import decide

router = Router(prefix=API, tags=["administer"])
LISTED = 20
Reason = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]


class PatientView(RowView):
    """The patient, as a file or a study names them."""

    patient_name: str = Field("", description="DICOM Patient's Name")
    patient_id: str = Field("", description="DICOM Patient ID")
    issuer: str = Field("", description="DICOM Issuer of Patient ID")
    birth_date: str = Field("", description="DICOM Patient's Birth Date, YYYYMMDD")
    accession_number: str = Field("", description="DICOM Accession Number")
    study_description: str = Field("", description="DICOM Study Description")
    dicom_study_id: str = Field("", description="DICOM Study ID")
    referring_physician: str = Field("", description="DICOM Referring Physician's Name")
    unreadable: bool = Field(False, description="it was encrypted with another identity key and cannot be decrypted")

    @property
    def readable(self) -> bool:
        """Whether it could be decrypted."""
        return not self.unreadable

    @classmethod
    def of(cls, identity: Identity) -> "PatientView":
        """From the value."""
        return cls.of_row(identity, unreadable=not identity.readable)


class HeaderDifference(BaseModel):
    """A value that differs between a file and the study that it came for."""

    field: str = Field(description="DICOM keyword of the element")
    study: str = Field(description="what is stored")
    file: str = Field(description="what the file says")


class HeldFilesView(RowView):
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
                "changes": [{"field": "PatientID", "study": "4711", "file": "0815"}],
                "decisions": ["another-study", "same-patient", "reject"],
            }
        }
    )

    id: UUID = Field(description="its id")
    kind: HeldKind = Field(description="another patient, other pixels, a correction, or being compared by a worker")
    state: HeldState = Field(description="waiting, or what was decided, a code")
    files: int = Field(description="files that belong together with it")
    received_at: datetime = Field(description="when it came")
    study_id: UUID | None = Field(description="that the file came for; null: it was deleted")
    study_url: str | None = Field(description="page of the study that it came for; empty: none")
    study: PatientView = Field(default_factory=PatientView, description="the patient of the stored study")
    file: PatientView = Field(default_factory=PatientView, description="the patient that the file names")
    changes: list[HeaderDifference] = Field(description="what the header says otherwise")
    decisions: list[HeldDecision] = Field(description="what can be decided")
    decided_at: datetime | None = Field(None, description="when; null: not yet")
    decided_by: str | None = Field(None, description="name of the key")
    reason: str = Field("", description="why it was decided so; empty: not said")
    new_study_id: UUID | None = Field(None, description="the study that was made of it; null: none")
    original_study_instance_uid: str | None = Field(None, description="of an image that has another one now")
    original_sop_instance_uid: str | None = Field(
        None, description="the UID that the file came with, where it was changed; null: it was not"
    )


class HeldFilesPage(BaseModel):
    """What waits for a decision, and what was decided last."""

    counts: dict[HeldKind, int] = Field(description="files that wait")
    waiting: list[HeldFilesView] = Field(description="the oldest first")
    decided: list[HeldFilesView] = Field(description="the latest first")


class HeldDecisionRequest(BaseModel):
    """A decision on held files."""

    model_config = ConfigDict(json_schema_extra={"example": {"decision": "another-study", "reason": "console mix-up"}})

    decision: HeldDecision = Field(description="what was decided, a code")
    reason: Reason = Field("", description="why; needed to reject. Kept encrypted")


class HeldDecisionResult(BaseModel):
    """What a decision led to."""

    state: HeldState = Field(description="of the file, a code")
    files: int = Field(description="that it was about; 0: it had been made before")
    study_ids: list[UUID] = Field(description="studies that got images")


@router.get("/held-files")
def held_files(parts: PartsDep, key: Admin, session: SessionDep) -> HeldFilesPage:
    """List files that wait for a decision, the oldest first, and the last decisions. Reading identities is audited."""
    return held_page(parts, session, key)


def held_page(parts: Parts, session: Session, key: Key, *, renewed: bool = False) -> HeldFilesPage:
    """Build the response of GET /api/v1/held-files, which the page uses too.

    Args:
        parts: of this application.
        session: the caller's transaction.
        key: of the administrator.
        renewed: whether an open list renews itself, as Vault.identities has it.

    Returns:
        The page.
    """
    rows = [(group.row, group.files) for group in held.waiting_groups(session, key.site_id, LISTED)]
    past = [(row, 1) for row in held.decided_files(session, key.site_id, LISTED)]
    views = _views(session, parts, key, [*rows, *past], renewed=renewed)
    counts = held.open_counts(session, key.site_id)
    return HeldFilesPage(counts=counts, waiting=views[: len(rows)], decided=views[len(rows) :])


@router.post(
    "/held-files/{held_id}/decision",
    responses={
        404: {"description": "there is no such file here"},
        409: {"description": "it was decided otherwise, or this cannot be decided"},
    },
)
def decision(
    held_id: Annotated[UUID, Path(description="of a held file")],
    choice: HeldDecisionRequest,
    parts: PartsDep,
    key: Admin,
) -> HeldDecisionResult:
    """Decide about a held file and those that belong together with it. The same decision again changes nothing.

    `another-study`: its images become a study of their own, under a new Study Instance UID. `same-patient`: they join
    the study that they came for. `apply`: the corrected header is used from now on; what it replaces is kept. `reject`:
    it is never analysed; its bytes stay stored.
    """
    if choice.decision is HeldDecision.REJECT and not choice.reason:
        raise BadRequest("Say why it is rejected")
    with parts.database.transaction() as session:
        made = decide(session, parts.vault, key, held_id, choice.decision, choice.reason, db_now(session))
    send_tasks(parts, made.study_ids)
    return HeldDecisionResult(state=STATE_OF[choice.decision], files=made.files, study_ids=made.study_ids)


def corrections_of(session: Session, parts: Parts, study_id: UUID) -> list[HeldFilesView]:
    """Read the corrections of a study that are in force. The caller records that identities were read.

    Args:
        session: the caller's transaction.
        parts: of this application.
        study_id: the study.

    Returns:
        The corrections, the earliest first.
    """
    rows = held.corrections(session, study_id)
    return _described(session, parts, {}, [(row, 1) for row in rows if row.state == HeldState.APPLIED])


def _views(
    session: Session, parts: Parts, key: Key, rows: Sequence[tuple[HeldFileRow, int]], *, renewed: bool
) -> list[HeldFilesView]:
    known = parts.vault.identities(
        session, key, list({row.study_id for row, _ in rows if row.study_id}), renewed=renewed
    )
    return _described(session, parts, known, rows)


def _described(
    session: Session, parts: Parts, known: dict[UUID, Identity], rows: Sequence[tuple[HeldFileRow, int]]
) -> list[HeldFilesView]:
    related = held.related_names(session, [row for row, _ in rows])
    return [_view(parts, row, files, known.get(row.study_id or row.id, Identity()), related) for row, files in rows]


def _view(parts: Parts, row: HeldFileRow, files: int, identity: Identity, related: held.RelatedNames) -> HeldFilesView:
    header = held.opened_header(parts.vault, row.header)
    who = header.identity if header else UnreadableIdentity()
    image = related.instances.get(row.instance_id) if row.instance_id else None
    now = {"body_part": image.body_part, "laterality": image.laterality, "view": image.view} if image else {}
    if row.before:
        kept: Any = parts.vault.open(row.before)
        identity = Identity(**kept["identity"]) if kept else UnreadableIdentity()
        now = {name: kept[name] for name in ("body_part", "laterality", "view")} if kept else {}
    made = related.instances.get(row.new_instance_id) if row.new_instance_id else None
    uid = row.study_instance_uid
    if row.new_study_id:
        uid = related.study_uids.get(row.new_study_id, uid)
    return HeldFilesView.of_row(
        row,
        files=files,
        study_url=f"/view/{row.study_id}" if row.study_id else None,
        study=PatientView.of(identity),
        file=PatientView.of(who),
        changes=_changes(identity, now, header) if header else [],
        decisions=_possible(row, identity, who) if row.state == HeldState.OPEN else [],
        decided_by=related.key_names.get(row.decided_by) if row.decided_by else None,
        reason=parts.vault.text(row.reason),
        original_study_instance_uid=row.study_instance_uid if uid != row.study_instance_uid else None,
        original_sop_instance_uid=(
            row.sop_instance_uid if made and made.sop_instance_uid != row.sop_instance_uid else None
        ),
    )


def _possible(row: HeldFileRow, study: Identity, file: Identity) -> list[HeldDecision]:
    """The decisions that are possible about an open file; of what cannot be decrypted, those that do not need it."""
    possible = list(POSSIBLE_DECISIONS[HeldKind(row.kind)])
    if file.readable and (study.readable or row.kind != HeldKind.CORRECTION):
        return possible
    return [one for one in possible if one is HeldDecision.REJECT]


def _changes(study: Identity, image: dict[str, str], header: Header) -> list[HeaderDifference]:
    """The values that differ. image: body part, laterality and view of the image that the file replaces, if any."""
    who = IDENTITY_KEYWORDS if study.readable else {}
    values = [(keyword, getattr(study, name), getattr(header.identity, name)) for name, keyword in who.items()]
    if image:
        seen = header.examination
        values += [
            ("BodyPartExamined", image["body_part"], header.body_part),
            ("Laterality", image["laterality"], seen.laterality),
            ("ViewPosition", image["view"], seen.view),
        ]
    return [HeaderDifference(field=keyword, study=old, file=new) for keyword, old, new in values if old != new]
