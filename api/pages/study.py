"""One study as a page: a viewer for its films, and the model's words about each."""

from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, Request, Response

from api.alerts import revised_of
from api.dependencies import PartsDep, Radiologist
from api.held import corrections_of
from api.operations import flower_link
from api.pages.render import gravest, header, render, version_of
from api.pages.words import SILENCE, model_words, plain_reason
from api.responses import InstanceReport, StudyReport
from api.studies import series_descriptions, study_report
from shared.errors import NotFound
from shared.findings import gravity
from shared.held import Kind
from shared.repository import held
from shared.repository.access import Role
from shared.repository.bundles import manifests
from shared.study import Identity, StudyStatus
from shared.worklist import WorklistEntry

router = APIRouter(include_in_schema=False)
UNFINISHED = (StudyStatus.QUEUED, StudyStatus.RUNNING, StudyStatus.RETRYING)


@router.get("/view/{study_id}")
def study(request: Request, study_id: str, parts: PartsDep, key: Radiologist) -> Response:
    """One study: its films, and the model's words about each."""
    try:
        report = study_report(parts, key, UUID(study_id))
    except ValueError:
        raise NotFound(f"there is no study {study_id} here") from None
    revisions = revised_of(parts, key, report.id)
    with parts.database.transaction() as session:
        waiting = held.waiting(session, report.id)
    version = version_of(report, key, str(sorted(waiting.items())), *(one.model_dump_json() for one in revisions))
    if request.headers.get("if-none-match") == version:
        return Response(status_code=304, headers={"ETag": version})
    with parts.database.transaction() as session:
        identity = parts.vault.identities(session, key, [report.id]).get(report.id, Identity())
        head = header(parts, session, key)
        told = manifests(session, {finding.bundle for image in report.instances for finding in image.findings})
        series = series_descriptions(session, parts, report.id)
        corrected = corrections_of(session, parts, report.id)
    films = [image for image in report.instances if image.findings]
    context = {
        **head,
        "revisions": revisions,
        "report": report,
        "identity": identity,
        "why": _why(report),
        "overdue": report.due_at < datetime.now(UTC),
        "unfinished": report.status in UNFINISHED,
        "films": films,
        "first": min(films, key=_gravity) if films else None,
        "rest": [image for image in report.instances if not image.findings],
        "models": [model_words(name, manifest) for name, manifest in sorted(told.items())],
        "plain_reason": plain_reason,
        "silence": SILENCE,
        "full_films": parts.settings.full_films,
        "flower_url": flower_link(parts.settings, report.id) if key.role is Role.ADMIN else "",
        "version": version,
        "waiting": {kind.value: waiting.get(kind, 0) for kind in Kind},
        "series": series,
        "corrected": corrected,
    }
    return render("study.html", 200, {"ETag": version}, **context)


def _gravity(image: InstanceReport) -> tuple[int, float]:
    """Less for an image that should be seen first."""
    worst = gravest(image.findings)
    return -gravity(worst.assessment, worst.score), -worst.fracture_probability


def _why(report: StudyReport) -> str:
    """The study's place in the worklist, in the worklist's words."""
    entry = WorklistEntry(
        study_id=report.id, priority=report.priority, status=report.status, received_at=report.received_at,
        due_at=report.due_at, assessment=report.assessment, severity=report.severity, region=report.region,
        fracture_probability=report.fracture_probability, score=report.score, abstention=report.abstention,
        abstention_detail=report.abstention_detail, modality="",
        images=len(report.instances), failed_images=report.failed_images, reason=report.reason,
    )  # fmt: skip
    return entry.why()
