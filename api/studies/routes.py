"""GET /api/v1/studies/{id} and its pictures."""

import io
from collections.abc import Mapping, Sequence
from uuid import UUID

from fastapi import HTTPException, Response
from PIL import Image
from pydicom.uid import UID
from sqlalchemy import Row
from sqlalchemy.orm import Session

from api.dependencies import (
    Admin,
    FrameNumber,
    ImageNumber,
    NamedStudy,
    Parts,
    PartsDep,
    Radiologist,
    SessionDep,
    StudyId,
    Submitter,
    SubmitterOrRadiologist,
)
from api.readers_summary import readers_summary_view
from api.reasons import kept_words, reason_fields, reason_words, rejection_words
from api.requests import API, Router
from api.schemas import (
    FindingView,
    HeatmapView,
    InstanceReport,
    KeptInstance,
    StudyReport,
    StudyState,
    StudyStates,
    StudyStatesRequest,
)
from shared.db.clock import db_now
from shared.db.tables import FindingRow, InstanceRow
from shared.domain.completeness import Completeness
from shared.domain.findings import Assessment, ExposedField, Heatmap, shown_score
from shared.domain.localization import cell_levels, local_probability
from shared.domain.security import Role
from shared.domain.study import Rejection, StoredOnly, StudyStatus
from shared.errors import reason_of
from shared.queries import analyses, studies
from shared.queries.access import Key
from shared.queries.models import manifests, thresholds
from shared.storage import preview_key

router = Router(prefix=API, tags=["read"])
# findings never change, but a newer bundle may supersede them: let browsers keep pictures for a minute
PICTURE = {"Cache-Control": "private, max-age=60"}


def _colours() -> list[int]:
    """256 RGBA entries: transparent, over amber, to red; readable on gray, and for the colour-blind by alpha."""
    palette: list[int] = []
    for level in range(256):
        share = level / 255
        palette += [255, round(200 * (1 - share) ** 0.8), round(40 * (1 - share)), round(230 * share**1.3)]
    return palette


PALETTE = _colours()


@router.get("/studies/{study_id}")
def study(study_id: StudyId, key: SubmitterOrRadiologist, session: SessionDep) -> StudyReport | StudyState:
    """Get a study's state, timings, errors, and the findings of every image.

    A submitter's key gets the state only, as by POST /api/v1/studies/states: findings are for radiologists.
    """
    row_id = studies.named(session, key.site_id, study_id)
    if key.may(Role.RADIOLOGIST):
        return study_report(session, key, row_id)
    return _state(studies.states(session, key.site_id, [row_id])[0])


def _state(row: Row[UUID, str, str, str, int, str, int | None]) -> StudyState:
    why = reason_fields(row.reason, row.reason_detail)
    return StudyState(
        id=row.id, status=StudyStatus(row.status), images=row.stored, completeness=Completeness(row.completeness),
        expected_images=row.expected_images, **why,
    )  # fmt: skip


def study_report(session: Session, key: Key, study_id: UUID) -> StudyReport:
    """Build the response of GET /api/v1/studies/{id}, which the page uses too.

    Args:
        session: the caller's transaction.
        key: of the reader.
        study_id: the study.

    Returns:
        The study with its findings.

    Raises:
        NotFound: there is no such study.
    """
    row = studies.get(session, key.site_id, study_id)
    stands = studies.status_of(session, study_id)
    views = studies.instances(session, study_id)
    points = thresholds(session, {finding.bundle for view in views for finding in view.findings})
    readers = readers_summary_view(session, study_id, views)
    instances = instance_reports(study_id, views, points)
    return StudyReport.of_row(
        row,
        status=stands.status,
        started_at=stands.started_at,
        attempts=stands.attempts,
        **reason_fields(stands.reason, stands.reason_detail),
        score=None if row.score is None else shown_score(row.score),
        failed_images=sum(1 for image in instances if image.error_reason),
        instances=instances,
        kept=[_kept(one) for one in studies.kept(session, study_id)],
        readers=readers,
        stored_instances=row.images + row.kept,
    )


def instance_reports(
    study_id: UUID, views: Sequence[studies.InstanceView], points: Mapping[str, tuple[float, float]]
) -> list[InstanceReport]:
    """Describe a study's images with their findings.

    Args:
        study_id: the study.
        views: its images, in their order.
        points: the operating points by bundle, as `thresholds` returns them.

    Returns:
        One report for each image.
    """
    return [
        InstanceReport.of_row(
            view.row,
            number=number,
            findings=[
                _finding(f, view.row, study_id, number, points.get(f.bundle, (None, None))) for f in view.findings
            ],
            error=reason_words(view.row.error_reason, view.row.error_detail) or None,
            error_reason=reason_of(view.row.error_reason),
        )
        for number, view in enumerate(views, start=1)
    ]


def _kept(row: InstanceRow) -> KeptInstance:
    name = UID(row.sop_class_uid).name
    rejection, kept = (
        (Rejection(row.rejected_by_ko) if row.rejected_by_ko else None),
        StoredOnly(row.kept) if row.kept else None,
    )
    return KeptInstance.of_row(
        row,
        sop_class=name if name != row.sop_class_uid else "",
        kept=kept,
        rejected_by_ko=rejection,
        words=rejection_words(rejection) if rejection else kept_words(kept) if kept else "",
    )


def series_descriptions(session: Session, parts: Parts, study_id: UUID) -> dict[int, str]:
    """Read the Series Descriptions of a study's images: free text, which is kept encrypted.

    Args:
        session: the caller's transaction.
        parts: of this application.
        study_id: the study.

    Returns:
        The descriptions by number of the image, of those that have one.
    """
    return {
        number: parts.vault.text(view.row.description)
        for number, view in enumerate(studies.instances(session, study_id), start=1)
        if view.row.description
    }


def _finding(
    row: FindingRow, image: InstanceRow, study_id: UUID, number: int, points: tuple[float | None, float | None]
) -> FindingView:
    where = f"image={number}&frame={row.frame}"
    field = studies.field_of(row, image)
    return FindingView.of_row(
        row,
        sensitive_threshold=points[0],
        specific_threshold=points[1],
        score=None if row.score is None else shown_score(row.score),
        rows=field.rows,
        columns=field.columns,
        field=field.shares,
        field_turn=field.turn / 1000,
        heatmap_url=f"/api/v1/studies/{study_id}/heatmap.png?{where}",
        preview_url=f"/api/v1/studies/{study_id}/preview.jpg?{where}",
    )


@router.post("/studies/{study_id}/release", tags=["administer"])
def release(study_id: StudyId, parts: PartsDep, key: Admin) -> StudyReport:
    """Analyse a quarantined study again, or those images of an analysed one that broke their decoder.

    404 if the study is unknown, 409 if there is nothing to release.
    """
    with parts.database.transaction() as session:
        row_id = studies.named(session, key.site_id, study_id)
        to_send = analyses.release_study(session, key, row_id, db_now(session))
    if to_send is None:
        raise HTTPException(409, "Neither this study nor an image of it was set aside; there is nothing to release")
    if parts.publisher.send([to_send]):
        with parts.database.transaction() as session:
            analyses.mark_not_sent(session, [to_send.analysis_id])
    with parts.database.transaction() as session:
        return study_report(session, key, row_id)


@router.get("/studies/{study_id}/preview.jpg", response_class=Response)
def preview(
    study_id: NamedStudy, parts: PartsDep, key: Radiologist, image: ImageNumber = 1, frame: FrameNumber = 1
) -> Response:
    """Get an image for people: VOI window applied, at most 1024 pixels a side, 8-bit gray."""
    with parts.database.transaction() as session:
        row, _, _ = studies.picture(session, key.site_id, study_id, image, frame)
    return Response(parts.store.get(preview_key(row.sha256, frame)), media_type="image/jpeg", headers=PICTURE)


@router.get("/studies/{study_id}/heatmap.png", response_class=Response)
def heatmap(
    study_id: NamedStudy, parts: PartsDep, key: Radiologist, image: ImageNumber = 1, frame: FrameNumber = 1
) -> Response:
    """Get the evidence for a fracture as a coloured, transparent picture of the preview's shape, to lay over it."""
    with parts.database.transaction() as session:
        _, found, field = studies.picture(session, key.site_id, study_id, image, frame)
    return Response(heatmap_png(found, field), media_type="image/png", headers=PICTURE)


@router.get("/studies/{study_id}/heatmap.json")
def heatmap_values(
    response: Response,
    study_id: NamedStudy,
    parts: PartsDep,
    key: Radiologist,
    image: ImageNumber = 1,
    frame: FrameNumber = 1,
) -> HeatmapView:
    """Get the evidence for a fracture as numbers, for a viewer that draws it itself."""
    with parts.database.transaction() as session:
        row, finding = studies.frame_finding(session, key.site_id, study_id, image, frame)
        manifest = manifests(session, {finding.bundle})[finding.bundle]
    response.headers.update(PICTURE)
    found = Heatmap(finding.heatmap, finding.heatmap_height, finding.heatmap_width)
    full, slope = manifest.get("heatmap_full", 1.0), manifest.get("calibration", {}).get("slope", 1.0)
    cells = cell_levels(found, full)
    field = studies.field_of(finding, row)
    longest = max(field.height, field.width)
    across, down = found.width / longest, found.height / longest  # cells for one pixel
    width, height = field.width * across, field.height * down
    left, top = (found.width - width) / 2, (found.height - height) / 2
    map_box = (left - field.left * across, top - field.top * down, field.columns * across, field.rows * down)
    return HeatmapView(
        height=found.height,
        width=found.width,
        cells=[round(cell, 4) for cell in cells],
        full=full,
        local=[
            round(chance, 5) for chance in local_probability(cells, found.width, finding.fracture_probability, slope)
        ],
        frame=map_box,
        film=map_box,
        field=(left, top, width, height),
        field_turn=field.turn / 1000,
        assessment=Assessment(finding.assessment),
        sensitive_threshold=manifest["sensitive"],
        specific_threshold=manifest["specific"],
    )


def heatmap_png(heatmap: Heatmap, field: ExposedField) -> bytes:
    """Colour a heatmap. It covers the network's square, in which the field is centred, so its margin is cut off.

    Args:
        heatmap: of a frame.
        field: the part of the image that the network saw.

    Returns:
        An RGBA PNG of the whole image's shape, longer side 512 pixels, transparent outside of the field.
    """
    scale = 512 / max(field.rows, field.columns)
    side = max(1, round(max(field.height, field.width) * scale))
    square = Image.frombytes("L", (heatmap.width, heatmap.height), heatmap.values).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    width, height = max(1, round(field.width * scale)), max(1, round(field.height * scale))
    left, top = (side - width) // 2, (side - height) // 2
    radiograph = Image.new("L", (max(1, round(field.columns * scale)), max(1, round(field.rows * scale))))
    seen = square.crop((left, top, left + width, top + height))
    radiograph.paste(seen, (round(field.left * scale), round(field.top * scale)))
    if field.turn:
        middle = (field.left + field.width / 2) * scale, (field.top + field.height / 2) * scale
        radiograph = radiograph.rotate(-field.turn / 1000, Image.Resampling.BICUBIC, center=middle)
    coloured = Image.frombytes("P", radiograph.size, radiograph.tobytes())
    coloured.putpalette(PALETTE, "RGBA")
    out = io.BytesIO()
    coloured.convert("RGBA").save(out, "PNG", compress_level=1)
    return out.getvalue()


@router.post("/studies/states", tags=["upload"])
def states(body: StudyStatesRequest, key: Submitter, session: SessionDep) -> StudyStates:
    """Get the states of at most 1000 studies in one call, as a bulk sender polls them. Unknown ids are listed."""
    found = studies.states(session, key.site_id, body.ids)
    found_states = [_state(row) for row in found]
    known_ids = {state.id for state in found_states}
    return StudyStates(
        studies=found_states, unknown=[each for each in dict.fromkeys(body.ids) if each not in known_ids]
    )
