"""One study as a page: a viewer for its images, and the model's words about each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from api.dependencies import LoginId, NamedStudy, PartsDep, Radiologist, SessionDep
from api.feedback.routes import NewFeedback, give_feedback
from api.models.revised import revised_of
from api.operations.destinations import set_views, study_views
from api.operations.routes import flower_link
from api.pages.login import problem_page
from api.pages.model_text import SILENCE, model_words, plain_reason
from api.pages.render import gravest, header, render, version_of
from api.requests import Router, form_fields, strict_json
from api.schemas import InstanceReport, StudyReport
from api.studies.priors import PriorView, describe, prior_views
from api.studies.routes import series_descriptions, study_report
from api.uploads.held import corrections_of
from shared.domain.destinations import Occasion, SetState
from shared.domain.feedback import ReadersAssessment, Verdict
from shared.domain.findings import gravity
from shared.domain.hanging import HungImage, hang, parse_rules
from shared.domain.held import HeldKind
from shared.domain.manifest import title_of
from shared.domain.results import ResultKind
from shared.domain.security import Role
from shared.domain.study import Identity, StudyStatus
from shared.domain.worklist import WorklistEntry
from shared.errors import BadRequest, InvalidState
from shared.queries import held, studies
from shared.queries.models import manifests

router = Router(include_in_schema=False)
FORM_BYTES = 2**20
KIND_WORDS = {  # of one object
    ResultKind.SC_OVERLAY: "picture with outlines",
    ResultKind.SC_SUMMARY: "summary picture",
    ResultKind.SR_OUTLINES: "SR with outlines",
    ResultKind.SR_STATEMENTS: "SR with statements",
    ResultKind.SR_OUTLINES_2D: "SR with outlines (Comprehensive SR)",
    ResultKind.SR_STATEMENTS_2D: "SR with statements (Comprehensive SR)",
    ResultKind.PDF: "PDF report",
    ResultKind.GSPS: "presentation state",
}
OCCASIONS = {
    Occasion.ANALYSED: "after the analysis",
    Occasion.COMPLETE: "when the study was complete",
    Occasion.AGREED: "after it was read",
    Occasion.NEWER_MODEL: "after a newer model's analysis",
    Occasion.ASKED: "as somebody asked",
    Occasion.CLASS_REFUSED: "in another form, since a destination refused one",
}
SET_STATES = {
    SetState.WAITING: "waits to be made",
    SetState.MADE: "made",
    SetState.REPEATED: "the same as before, nothing was made anew",
    SetState.NOT_WANTED: "not made",
    SetState.WITHDRAWN: "not made",
    SetState.FAILED: "could not be made",
}
READERS_MARKS = {  # the mark of an assessment that says the same
    ReadersAssessment.FRACTURE: "positive",
    ReadersAssessment.NO_FRACTURE: "negative",
    ReadersAssessment.UNSURE: "unclear",
    ReadersAssessment.DIFFER: "unclear",
    ReadersAssessment.OPEN: "reading",
}
MAX_PRIOR_THUMBS = 4  # of one prior; its own page has all its images
UNFINISHED = (StudyStatus.QUEUED, StudyStatus.RUNNING, StudyStatus.RETRYING)


@router.get("/view/{study_id}")
def study(request: Request, study_id: str, parts: PartsDep, key: Radiologist, session: SessionDep) -> Response:
    """One study: its radiographs, and the model's words about each. An id's first digits lead to its address."""
    try:
        report = study_report(session, key, UUID(study_id))
    except ValueError:
        return RedirectResponse(f"/view/{studies.named(session, key.site_id, study_id)}", 303)
    revisions = revised_of(session, key, report.id)
    waiting = held.waiting(session, report.id)
    deliveries, sets = study_views(session, report.id), set_views(session, report.id)
    earlier = prior_views(session, parts, key, report.id)
    more = (one.model_dump_json() for one in (*revisions, *deliveries, *sets, *earlier))
    version = version_of(report, key, str(sorted(waiting.items())), *more)
    if request.headers.get("if-none-match") == version:
        return Response(status_code=304, headers={"ETag": version})
    identity = parts.vault.identities(session, key, [report.id]).get(report.id, Identity())
    head = header(session, key)
    models = manifests(session, {finding.bundle for image in report.instances for finding in image.findings})
    series = series_descriptions(session, parts, report.id)
    corrected = corrections_of(session, parts, report.id)
    radiographs = [image for image in report.instances if image.findings]
    first = min(radiographs, key=_gravity) if radiographs else None
    context = {
        **head,
        "revisions": revisions,
        "report": report,
        "identity": identity,
        "why": _why(report),
        "overdue": report.due_at < datetime.now(UTC),
        "unfinished": report.status in UNFINISHED,
        "radiographs": radiographs,
        "first": first,
        "priors": [_prior(one, first) for one in describe(session, parts, key, earlier)],
        "places": _places(radiographs, first, series, parts.settings.hanging),
        "rest": [image for image in report.instances if not image.findings],
        "models": [model_words(name, manifest) for name, manifest in sorted(models.items())],
        "titles": {name: title_of(name, manifest) for name, manifest in models.items()},
        "plain_reason": plain_reason,
        "silence": SILENCE,
        "full_frames": parts.settings.full_frames,
        "overlay_at_start": parts.settings.overlay_at_start,
        "flower_url": flower_link(parts.settings, report.id) if key.may(Role.ADMIN) else "",
        "version": version,
        "administers": key.may(Role.ADMIN),
        "waiting": {kind.value: waiting.get(kind, 0) for kind in HeldKind},
        "series": series,
        "corrected": corrected,
        "deliveries": deliveries,
        "sets": sets,
        "kind_words": KIND_WORDS,
        "occasions": OCCASIONS,
        "set_states": SET_STATES,
    }
    return render("study.html", 200, {"ETag": version}, **context)


def _gravity(image: InstanceReport) -> tuple[int, float]:
    """Less for an image that should be seen first."""
    worst = gravest(image.findings)
    return -gravity(worst.assessment, worst.score), -worst.fracture_probability


@dataclass(frozen=True)
class ShownPrior:
    """A prior as the page shows it."""

    study: PriorView
    day: date
    result: str  # the readers' word, or else the model's
    mark: str  # name of an icon
    images: Sequence[InstanceReport]  # the one to open beside the study first


def _prior(study: PriorView, first: InstanceReport | None) -> ShownPrior:
    """Sort a prior's images: first the view and side of the image that the study is opened with, then the gravest."""

    def differs(image: InstanceReport) -> int:
        return 2 if first is None or image.view != first.view else int(image.laterality != first.laterality)

    images = sorted(
        (image for image in study.instances if image.findings), key=lambda image: (differs(image), *_gravity(image))
    )
    readers = study.readers
    return ShownPrior(
        study,
        study.study_date or study.received_at.astimezone(UTC).date(),
        readers.words[:1].lower() + readers.words[1:].rstrip(".") if readers else study.assessment or "not analysed",
        READERS_MARKS[readers.reading] if readers else study.assessment or "pending",
        images[:MAX_PRIOR_THUMBS],
    )


def _places(
    radiographs: list[InstanceReport], first: InstanceReport | None, series: dict[int, str], rules: str
) -> dict[int, int]:
    """Where each image hangs, 0 for the leftmost, by its number; the series' words count where no view is named."""
    if first is None:
        return {}
    hung = [
        HungImage(image.number, image.view or series.get(image.number, ""), image.laterality) for image in radiographs
    ]
    order = hang(hung, parse_rules(rules), gravest(first.findings).region)
    return {number: place for place, number in enumerate(order)}


def _why(report: StudyReport) -> str:
    """The study's place in the worklist, in the worklist's words, without the time that is shown beside it."""
    entry = WorklistEntry(
        study_id=report.id, priority=report.priority, status=report.status, received_at=report.received_at,
        due_at=report.due_at, assessment=report.assessment, extent=report.severity, region=report.region,
        fracture_probability=report.fracture_probability, score=report.score, abstention=report.abstention,
        abstention_detail=report.abstention_detail, modality="",
        images=len(report.instances), failed_images=report.failed_images, reason=report.reason or None,
        reason_detail="",
    )  # fmt: skip
    return entry.summary()


@router.post("/view/{study_id}/done")
async def done(study_id: NamedStudy, request: Request, parts: PartsDep, key: Radiologist, login: LoginId) -> Response:
    """Mark a study as read, for browsers without scripts; positive images without feedback are asked about first."""
    fields = await form_fields(request, FORM_BYTES)
    try:
        statement: dict[str, object] = {"verdict": Verdict.DONE, "images": int(fields.get("images", ""))}
        if "choice" in fields:
            unanswered = strict_json(fields.get("findings", "[]").encode())
            statement["unanswered"] = {"choice": fields["choice"], "findings": unanswered}
        entry = NewFeedback.model_validate(statement)
    except ValueError:
        raise BadRequest("The form cannot be read; load the study's page again") from None

    def write() -> None:
        with parts.database.transaction() as session:
            give_feedback(study_id, entry, parts, key, session, login)

    try:
        await run_in_threadpool(write)
    except InvalidState as error:
        if error.code != "positive-unanswered":
            return problem_page(409, "Not now", str(error))
        findings: Any = error.more["findings"]
        with parts.database.transaction() as session:
            context = header(session, key)
        asked = [{name: one[name] for name in ("image", "frame", "bundle")} for one in findings]
        context |= {"study": study_id, "images": entry.images, "words": str(error), "findings": json.dumps(asked)}
        return render("done.html", 409, **context)
    return RedirectResponse("/", 303)
