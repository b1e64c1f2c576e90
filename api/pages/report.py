"""A study's report: as a page, and as a PDF."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.dependencies import PartsDep, Radiologist
from api.films import FrameNumber, ImageNumber
from api.pages.paper import pdf
from api.pages.render import header, render
from api.report import EARLIER, EXTENT, overlay_jpeg, report_of
from api.studies import PICTURE
from shared.errors import ObjectMissing

router = APIRouter(tags=["read"])
Unveiled = Annotated[bool, Query(description="draw the heatmaps of abstentions, too")]


@router.get("/studies/{study_id}/report.html", response_class=Response)
def page(study_id: UUID, parts: PartsDep, key: Radiologist, *, unveiled: Unveiled = False) -> Response:
    """The study as a page that prints well: identity, pictures, findings, limits, answers. Read under audit."""
    report = report_of(parts, key, study_id, unveiled=unveiled)
    with parts.database.transaction() as session:
        context = header(parts, session, key)
    context |= {"report": report, "extent": EXTENT, "earlier": EARLIER, "unveiled": unveiled}
    return render("report.html", 200, **context)


@router.get("/studies/{study_id}/report.pdf", response_class=Response)
def paper(study_id: UUID, parts: PartsDep, key: Radiologist, *, unveiled: Unveiled = False) -> Response:
    """The same as a PDF, A4. Read under audit."""
    report = report_of(parts, key, study_id, unveiled=unveiled)
    pictures: dict[int, bytes] = {}
    for film in report.films:
        if film.frame is not None:
            try:
                pictures[film.number] = overlay_jpeg(parts, key, study_id, film.number, film.frame, unveiled=unveiled)
            except ObjectMissing:
                continue  # the report says so
    headers = {"Content-Disposition": f'inline; filename="osteon-{study_id}.pdf"'}
    return Response(pdf(report, pictures), media_type="application/pdf", headers=headers)


@router.get("/studies/{study_id}/overlay.jpg", response_class=Response)
def overlay(
    study_id: UUID, parts: PartsDep, key: Radiologist, image: ImageNumber = 1, frame: FrameNumber = 1,
    *, unveiled: Unveiled = False,
    version: Annotated[str, Query(max_length=64, description="changes with the answers, so that none is old")] = "",
) -> Response:  # fmt: skip
    """The film with its heatmap and readers' marks drawn in, as reports show it."""
    del version  # for the browser's cache only
    return Response(
        overlay_jpeg(parts, key, study_id, image, frame, unveiled=unveiled), media_type="image/jpeg", headers=PICTURE
    )
