"""GET /studies/{id} and its pictures."""

import io
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, HTTPException, Path, Response
from PIL import Image
from sqlalchemy.orm import Session

from api.dependencies import Admin, AnyReader, Parts, PartsDep, Radiologist, Submitter
from api.evidence import cell_levels, local_probability
from api.films import FrameNumber, ImageNumber
from api.readers import reader_view
from api.responses import FindingView, HeatmapView, InstanceReport, StatesWanted, StudyReport, StudyState, StudyStates
from shared.findings import Assessment, ExposedField, Heatmap, Severity, abstention_of, shown_score
from shared.repository import reading, work
from shared.repository.access import Key
from shared.repository.bundles import manifests, thresholds
from shared.storage import preview_key
from shared.study import Priority, StudyStatus
from shared.tables import FindingRow, InstanceRow

router = APIRouter(tags=["read"])
StudyId = Annotated[
    str, Path(pattern="^[0-9a-fA-F-]{4,36}$", description="a study's id, or its first digits where no other has them")
]
# findings never change, but a newer bundle may supersede them: let browsers keep pictures for a minute
PICTURE = {"Cache-Control": "private, max-age=60"}


def _colours() -> list[int]:
    """256 RGBA entries: transparent, over amber, to red; readable on gray films, and for the colour-blind by alpha."""
    palette: list[int] = []
    for level in range(256):
        share = level / 255
        palette += [255, round(200 * (1 - share) ** 0.8), round(40 * (1 - share)), round(230 * share**1.3)]
    return palette


PALETTE = _colours()


@router.get("/studies/{study_id}")
def study(study_id: StudyId, parts: PartsDep, key: AnyReader) -> StudyReport:
    """A study's state, timings, errors, and the findings of every image."""
    return study_report(parts, key, _named(parts, key, study_id))


def _named(parts: Parts, key: Key, start: str) -> UUID:
    with parts.database.transaction() as session:
        return reading.named(session, key.site_id, start)


def study_report(parts: Parts, key: Key, study_id: UUID) -> StudyReport:
    """What GET /studies/{id} answers; the page shows the same. Raises NotFound."""
    with parts.database.transaction() as session:
        row = reading.study(session, key.site_id, study_id)
        views = reading.instances(session, study_id)
        points = thresholds(session, {finding.bundle for view in views for finding in view.findings})
        readers = reader_view(session, study_id, views)
    instances = [
        InstanceReport(
            number=number,
            sop_instance_uid=view.row.sop_instance_uid,
            modality=view.row.modality,
            rows=view.row.rows,
            columns=view.row.columns,
            frames=view.row.frames,
            body_part=view.row.body_part,
            laterality=view.row.laterality,
            view=view.row.view,
            manufacturer=view.row.manufacturer,
            model=view.row.model,
            findings=[
                _finding(f, view.row, study_id, number, points.get(f.bundle, (None, None))) for f in view.findings
            ],
            error=view.row.error_text or None,
            error_reason=view.row.error_reason or None,
        )
        for number, view in enumerate(views, start=1)
    ]
    return StudyReport(
        id=row.id,
        study_instance_uid=row.study_instance_uid,
        status=StudyStatus(row.status),
        priority=Priority(row.priority),
        received_at=row.received_at,
        started_at=row.started_at,
        analysed_at=row.analysed_at,
        due_at=row.due_at,
        attempts=row.attempts,
        reason=row.reason,
        assessment=Assessment(row.assessment) if row.assessment else None,
        severity=Severity(row.severity) if row.severity else None,
        region=row.region,
        fracture_probability=row.fracture_probability,
        score=None if row.score is None else shown_score(row.score),
        abstention=abstention_of(row.abstention),
        abstention_detail=row.abstention_detail,
        failed_images=sum(1 for image in instances if image.error_reason),
        sex=row.sex,
        age_years=row.age_years,
        study_date=row.study_date,
        study_time=row.study_time,
        body_part=row.body_part,
        laterality=row.laterality,
        views=row.views,
        header_version=row.header_version,
        scanner=row.scanner,
        instances=instances,
        readers=readers,
    )


def series_descriptions(session: Session, parts: Parts, study_id: UUID) -> dict[int, str]:
    """What the images' series are called, by the images' numbers; free text, which is kept encrypted."""
    return {
        number: str(parts.vault.open(view.row.description))
        for number, view in enumerate(reading.instances(session, study_id), start=1)
        if view.row.description
    }


def _finding(
    row: FindingRow, image: InstanceRow, study_id: UUID, number: int, points: tuple[float | None, float | None]
) -> FindingView:
    where = f"image={number}&frame={row.frame}"
    field = reading.field_of(row, image)
    return FindingView(
        frame=row.frame,
        region=row.region,
        region_probability=row.region_probability,
        fracture_probability=row.fracture_probability,
        assessment=Assessment(row.assessment),
        sensitive_threshold=points[0],
        specific_threshold=points[1],
        severity=Severity(row.severity),
        score=None if row.score is None else shown_score(row.score),
        abstention=abstention_of(row.abstention),
        abstention_detail=row.abstention_detail,
        bundle=row.bundle,
        rows=field.rows,
        columns=field.columns,
        field=field.shares,
        heatmap_url=f"/studies/{study_id}/heatmap.png?{where}",
        preview_url=f"/studies/{study_id}/preview.jpg?{where}",
    )


@router.post("/studies/{study_id}/release", tags=["administer"])
def release(study_id: StudyId, parts: PartsDep, key: Admin) -> StudyReport:
    """Try a quarantined study again, or the images of an analysed one that broke their decoder; with all attempts.

    404 if it is unknown, 409 if nothing of it was set aside so.
    """
    whole = _named(parts, key, study_id)
    with parts.database.transaction() as session:
        to_send = work.release(session, key.site_id, whole, work.clock(session))
    if to_send is None:
        raise HTTPException(409, "Neither this study nor an image of it was set aside; there is nothing to release")
    if parts.doorbell.ring([to_send]):
        with parts.database.transaction() as session:
            work.sending_failed(session, [whole])
    return study_report(parts, key, whole)


@router.get("/studies/{study_id}/preview.jpg", response_class=Response)
def preview(
    study_id: UUID, parts: PartsDep, key: Radiologist, image: ImageNumber = 1, frame: FrameNumber = 1
) -> Response:
    """The image as people look at it: VOI window applied, at most 1024 pixels a side, 8-bit gray."""
    with parts.database.transaction() as session:
        row, _, _ = reading.picture(session, key.site_id, study_id, image, frame)
    return Response(parts.store.get(preview_key(row.sha256, frame)), media_type="image/jpeg", headers=PICTURE)


@router.get("/studies/{study_id}/heatmap.png", response_class=Response)
def heatmap(
    study_id: UUID, parts: PartsDep, key: Radiologist, image: ImageNumber = 1, frame: FrameNumber = 1
) -> Response:
    """Where the fracture head looks, as a coloured, transparent picture of the preview's shape, to lay over it."""
    with parts.database.transaction() as session:
        _, found, field = reading.picture(session, key.site_id, study_id, image, frame)
    return Response(heatmap_png(found, field), media_type="image/png", headers=PICTURE)


@router.get("/studies/{study_id}/heatmap.json")
def heatmap_values(
    response: Response,
    study_id: UUID,
    parts: PartsDep,
    key: Radiologist,
    image: ImageNumber = 1,
    frame: FrameNumber = 1,
) -> HeatmapView:
    """Where the fracture head looks, as numbers, for a viewer that draws it itself."""
    with parts.database.transaction() as session:
        row, finding = reading.frame_finding(session, key.site_id, study_id, image, frame)
        manifest = manifests(session, {finding.bundle})[finding.bundle]
    response.headers.update(PICTURE)
    found = Heatmap(finding.heatmap, finding.heatmap_height, finding.heatmap_width)
    cells = cell_levels(found, manifest)
    field = reading.field_of(finding, row)
    longest = max(field.height, field.width)
    across, down = found.width / longest, found.height / longest  # cells for one pixel
    width, height = field.width * across, field.height * down
    left, top = (found.width - width) / 2, (found.height - height) / 2
    return HeatmapView(
        height=found.height,
        width=found.width,
        cells=[round(cell, 4) for cell in cells],
        full=manifest.get("heatmap_full", 1.0),
        local=[
            round(chance, 5) for chance in local_probability(cells, found.width, finding.fracture_probability, manifest)
        ],
        film=(left - field.left * across, top - field.top * down, field.columns * across, field.rows * down),
        field=(left, top, width, height),
        assessment=Assessment(finding.assessment),
        sensitive_threshold=manifest["sensitive"],
        specific_threshold=manifest["specific"],
    )


def heatmap_png(heatmap: Heatmap, field: ExposedField) -> bytes:
    """Colour a heatmap. The map covers the network's square; the field lies centred in it, so its margin is cut off.

    Returns an RGBA PNG of the whole image's shape, longer side 512 pixels, transparent outside of the field.
    """
    scale = 512 / max(field.rows, field.columns)
    side = max(1, round(max(field.height, field.width) * scale))
    square = Image.frombytes("L", (heatmap.width, heatmap.height), heatmap.values).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    width, height = max(1, round(field.width * scale)), max(1, round(field.height * scale))
    left, top = (side - width) // 2, (side - height) // 2
    film = Image.new("L", (max(1, round(field.columns * scale)), max(1, round(field.rows * scale))))
    seen = square.crop((left, top, left + width, top + height))
    film.paste(seen, (round(field.left * scale), round(field.top * scale)))
    coloured = Image.frombytes("P", film.size, film.tobytes())
    coloured.putpalette(PALETTE, "RGBA")
    out = io.BytesIO()
    coloured.convert("RGBA").save(out, "PNG", compress_level=1)
    return out.getvalue()


@router.post("/studies/states", tags=["upload"])
def states(wanted: StatesWanted, parts: PartsDep, key: Submitter) -> StudyStates:
    """Where many studies stand, in one call: what a bulk sender polls. At most 1000 ids; unknown ones are said."""
    with parts.database.transaction() as session:
        found = reading.states(session, key.site_id, wanted.ids)
    known = [
        StudyState(id=row.id, status=StudyStatus(row.status), reason=row.reason, images=row.stored) for row in found
    ]
    there = {state.id for state in known}
    return StudyStates(studies=known, unknown=[each for each in dict.fromkeys(wanted.ids) if each not in there])
