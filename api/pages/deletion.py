"""The page that deletes a study, or one image of it: it says what is deleted and what stays, and asks for a reason."""

from typing import Annotated
from urllib.parse import quote

from fastapi import BackgroundTasks, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from api.dependencies import Admin, PartsDep, SessionDep, StudyId
from api.pages.render import header, named, render
from api.requests import Router, form_fields
from api.studies.deletions import DeletionResultView, deleted
from api.studies.routes import study_report
from shared.domain.deletion import MAX_NOTE_LENGTH, WORDS, DeletionReason
from shared.domain.study import Identity
from shared.errors import BadRequest, NotFound
from shared.queries import studies

router = Router(include_in_schema=False)
FORM_BYTES = 8192


@router.get("/view/{study_id}/delete")
def ask(
    study_id: StudyId,
    parts: PartsDep,
    key: Admin,
    session: SessionDep,
    image: Annotated[int | None, Query(ge=1, le=100_000)] = None,
) -> Response:
    """Show the form."""
    study = studies.named(session, key.site_id, study_id)
    report = study_report(session, key, study)
    if image is not None and image > len(report.instances):
        raise NotFound(f"the study has {len(report.instances)} image(s); there is no image {image}")
    identity = parts.vault.identities(session, key, [study]).get(study, Identity())
    context = header(session, key)
    context |= {
        "report": report,
        "name": named(identity),
        "identity": identity,
        "image": report.instances[image - 1] if image and len(report.instances) > 1 else None,
        "reasons": WORDS,
        "longest": MAX_NOTE_LENGTH,
    }
    return render("deletion.html", 200, **context)


@router.post("/view/{study_id}/delete")
async def delete(study_id: StudyId, request: Request, parts: PartsDep, key: Admin, later: BackgroundTasks) -> Response:
    """Delete, and show the worklist, or what is left of the study."""
    fields = await form_fields(request, FORM_BYTES)
    try:
        reason = DeletionReason(fields.get("reason", ""))
    except ValueError:
        raise BadRequest(f"Choose a reason: {', '.join(DeletionReason)}") from None
    note, uid = fields.get("note", "").strip(), fields.get("image") or None
    if len(note) > MAX_NOTE_LENGTH or "\0" in note:
        raise BadRequest(f"The note has at most {MAX_NOTE_LENGTH} characters")

    def delete_it() -> DeletionResultView:
        with parts.database.transaction() as session:
            return deleted(parts, session, key, later, study_id, uid, reason, note)

    made = await run_in_threadpool(delete_it)
    return RedirectResponse("/" if made.whole else f"/view/{quote(str(made.id))}", 303)
