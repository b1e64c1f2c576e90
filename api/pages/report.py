"""A study's report: as a page, and as a PDF."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Query, Response

from api.dependencies import FrameNumber, ImageNumber, NamedStudy, PartsDep, Radiologist
from api.pages.render import header, named, render
from api.requests import API, Router
from api.studies.report import Report, overlay_jpeg, report_of
from api.studies.routes import PICTURE
from shared.errors import ObjectMissing
from shared.report_pdf import EARLIER, EXTENT, NOT_THERE, ReportContent, ReportImage, minute_text, render_pdf

router = Router(include_in_schema=False)
files = Router(prefix=API, tags=["read"])  # programs fetch them too
Unveiled = Annotated[bool, Query(description="draw the heatmaps of abstentions, too")]


@router.get("/view/{study_id}/report", response_class=Response)
def page(study_id: NamedStudy, parts: PartsDep, key: Radiologist, *, unveiled: Unveiled = False) -> Response:
    """Show a page that prints well: identity, pictures, findings, limits, feedback. Reading it is audited."""
    report = report_of(parts, key, study_id, unveiled=unveiled)
    with parts.database.transaction() as session:
        context = header(session, key)
    context |= {"report": report, "extent": EXTENT, "earlier": EARLIER, "unveiled": unveiled}
    return render("report.html", 200, **context)


@files.get("/studies/{study_id}/report.pdf", response_class=Response)
def paper(study_id: NamedStudy, parts: PartsDep, key: Radiologist, *, unveiled: Unveiled = False) -> Response:
    """Get the same as a PDF, A4. Reading it is audited."""
    report = report_of(parts, key, study_id, unveiled=unveiled)
    pictures: dict[int, bytes] = {}
    for radiograph in report.radiographs:
        if radiograph.frame is not None:
            try:
                pictures[radiograph.number] = overlay_jpeg(
                    parts, key, study_id, radiograph.number, radiograph.frame, unveiled=unveiled
                )
            except ObjectMissing:
                continue  # the report says so
    headers = {"Content-Disposition": f'inline; filename="osteon-{study_id}.pdf"'}
    return Response(render_pdf(_content(report, pictures)), media_type="application/pdf", headers=headers)


def _content(report: Report, pictures: Mapping[int, bytes]) -> ReportContent:
    study = report.study
    return ReportContent(
        study_id=str(study.id),
        study_instance_uid=study.study_instance_uid,
        name=named(report.identity),
        facts=report.facts,
        standing=[
            ("Received", minute_text(study.received_at)),
            ("Analysed", minute_text(study.analysed_at) if study.analysed_at else "not yet"),
            ("Priority", str(study.priority)),
            ("State", str(study.status)),
        ],
        headline=report.headline,
        beside=report.beside,
        images=[
            ReportImage(one.number, one.size, one.lines, one.pictureless or NOT_THERE) for one in report.radiographs
        ],
        pictures=pictures,
        note="Heatmaps show where the model looks; they outline nothing. Blue boxes are readers' marks.",
        bundles=report.bundles,
        feedback=report.feedback,
        earlier=report.earlier,
        generated_at=minute_text(report.generated_at),
        generated_by=report.generated_by,
    )


@files.get("/studies/{study_id}/overlay.jpg", response_class=Response)
def overlay(
    study_id: NamedStudy, parts: PartsDep, key: Radiologist, image: ImageNumber = 1, frame: FrameNumber = 1,
    *, unveiled: Unveiled = False,
    version: Annotated[str, Query(max_length=64, description="changes with the feedback, so that none is old")] = "",
) -> Response:  # fmt: skip
    """The radiograph with its heatmap and readers' marks drawn in, as reports show it."""
    del version  # for the browser's cache only
    return Response(
        overlay_jpeg(parts, key, study_id, image, frame, unveiled=unveiled), media_type="image/jpeg", headers=PICTURE
    )
