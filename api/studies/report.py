"""What a report of a study says, as a page and as a PDF, and its pictures."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from PIL import Image, ImageDraw

from api.dependencies import Parts
from api.feedback.routes import FeedbackView, feedback_view
from api.schemas import FindingView, InstanceReport, StudyReport
from api.studies.examination import dicom_date, examined, image_words, joined, patient, when
from api.studies.routes import heatmap_png, study_report
from shared.db.clock import db_now
from shared.dicom.header import one_line
from shared.domain.feedback import Verdict
from shared.domain.findings import (
    AbstentionReason,
    Assessment,
    ExposedField,
    Extent,
    Heatmap,
    gravity,
    shown_score,
    unread_words,
)
from shared.domain.manifest import title_and_key
from shared.domain.study import Identity
from shared.queries import studies
from shared.queries.access import Key
from shared.queries.feedback import findings_with_feedback
from shared.queries.models import manifests
from shared.storage import preview_key

OPACITY = 0.45  # of the heatmap, as the study's page opens
MARK = (80, 220, 255)  # readers' boxes; the heatmap has no blue
MAX_PICTURES = 24
VEILED = "Its heatmap is not drawn: the model abstains."
NO_FINDING = "Not pictured here: there is no finding to draw in."
SILENCE = "Silence is not normal."


@dataclass(frozen=True)
class ReportRadiograph:
    """One image of a report: of many frames the gravest."""

    number: int
    size: str
    frame: int | None  # None: not pictured
    lines: list[str]  # the model's words
    abstains: bool
    pictureless: str = ""  # why no picture was made


@dataclass(frozen=True)
class Report:
    """Everything that a report says, in words."""

    study: StudyReport
    identity: Identity
    facts: list[tuple[str, str]]  # who and what, each under its name; what is not known has no line or a dash
    headline: str  # the readers' once one of them contradicts the model
    beside: str  # then the model's
    radiographs: list[ReportRadiograph]
    bundles: dict[str, list[str]]  # title and key, to what it learned from, and its limits
    feedback: list[str]
    earlier: list[str]  # feedback on findings that newer ones have replaced
    marks: str  # changes with the marks in the pictures
    generated_at: datetime
    generated_by: str


def overlay_jpeg(parts: Parts, key: Key, study_id: UUID, image: int, frame: int, *, unveiled: bool = False) -> bytes:
    """Draw a frame's preview with its heatmap and the readers' marks.

    Args:
        parts: of this application.
        key: of the reader.
        study_id: the study.
        image: number of the image in its study, from 1.
        frame: number of the frame, from 1.
        unveiled: whether to draw the heatmap of an abstention, for which the model was not validated.

    Returns:
        A JPEG.

    Raises:
        NotFound: there is no such frame, or it has no finding.
        ObjectMissing: the preview is not in the store.
        StoreUnavailable: the store does not answer.
    """
    with parts.database.transaction() as session:
        row, finding = studies.frame_finding(session, key.site_id, study_id, image, frame)
        drawn = unveiled or finding.assessment != Assessment.ABSTAINED
        found = Heatmap(finding.heatmap, finding.heatmap_height, finding.heatmap_width) if drawn else None
        field = studies.field_of(finding, row)
        marks = reading_marks(feedback_view(session, parts, key, study_id, words=False).entries, image, frame)
    return compose(parts.store.get(preview_key(row.sha256, frame)), found, field, marks)


def reading_marks(entries: Sequence[FeedbackView], image: int, frame: int) -> list[tuple[float, float, float, float]]:
    """Collect the marks on a frame, of entries that are not superseded.

    Args:
        entries: of the study.
        image: number of the image in its study, from 1.
        frame: number of the frame, from 1.

    Returns:
        x, y, width and height of each, in shares of the image.
    """
    return [
        (mark.x, mark.y, mark.width, mark.height)
        for entry in entries
        if entry.superseded_by is None
        for mark in entry.marks
        if (mark.image, mark.frame) == (image, frame)
    ]


def compose(
    preview: bytes, heatmap: Heatmap | None, field: ExposedField, marks: Sequence[tuple[float, float, float, float]]
) -> bytes:
    """Draw heatmap and marks over a preview.

    Args:
        preview: a JPEG of the whole image.
        heatmap: of the frame; None: none is drawn.
        field: the part of the image that the heatmap covers.
        marks: x, y, width and height, in shares of the image.

    Returns:
        An RGB JPEG.
    """
    radiograph = Image.open(io.BytesIO(preview)).convert("RGB")
    if heatmap is not None:
        colours = Image.open(io.BytesIO(heatmap_png(heatmap, field))).resize(radiograph.size, Image.Resampling.BILINEAR)
        radiograph.paste(colours, mask=colours.getchannel("A").point(lambda level: round(level * OPACITY)))
    draw, (width, height) = ImageDraw.Draw(radiograph), radiograph.size
    for x, y, wide, high in marks:
        box = (x * width, y * height, (x + wide) * width, (y + high) * height)
        draw.rectangle(box, outline=MARK, width=max(2, round(max(radiograph.size) / 250)))
    out = io.BytesIO()
    radiograph.save(out, "JPEG", quality=88)
    return out.getvalue()


def report_of(parts: Parts, key: Key, study_id: UUID, *, unveiled: bool = False) -> Report:
    """Gather a report; reading the identity leaves an audit row.

    Args:
        parts: of this application.
        key: of the reader.
        study_id: the study.
        unveiled: whether to draw the heatmaps of abstentions, for which the model was not validated.

    Returns:
        The report.

    Raises:
        NotFound: there is no such study.
    """
    with parts.database.transaction() as session:
        study = study_report(session, key, study_id)
        identity = parts.vault.identities(session, key, [study.id]).get(study.id, Identity())
        models = manifests(session, {finding.bundle for image in study.instances for finding in image.findings})
        entries = [one for one in feedback_view(session, parts, key, study_id).entries if one.superseded_by is None]
        found = findings_with_feedback(session, study_id)
        now = db_now(session)
    return Report(
        study=study,
        identity=identity,
        facts=_facts(study, identity),
        headline=study.readers.words if study.readers else _headline(study),
        beside=f"Model: {_headline(study)}" if study.readers else "",
        radiographs=_radiographs(study.instances, unveiled=unveiled),
        bundles={title_and_key(name, manifest): bundle_facts(manifest) for name, manifest in sorted(models.items())},
        feedback=[feedback_words(entry) for entry in entries if _is_current(entry, study)],
        earlier=[_earlier_words(entry, *found[entry.id]) for entry in entries if not _is_current(entry, study)],
        marks=hashlib.sha256("".join(entry.hash for entry in entries).encode()).hexdigest()[:16],
        generated_at=now,
        generated_by=key.name,
    )


def _facts(study: StudyReport, who: Identity) -> list[tuple[str, str]]:
    """Patient and examination, as page and PDF show them."""
    what = examined(who.study_description, study.body_part, study.views, study.laterality)
    facts = [
        ("Patient ID", joined(one_line(who.patient_id), one_line(who.issuer), mark=" · ") or "-"),
        ("Born", joined(dicom_date(one_line(who.birth_date)), patient(study.sex, study.age_years), mark=" · ") or "-"),
        ("Accession", one_line(who.accession_number) or "-"),
        ("Examination", what),
        ("Made", joined(when(study.study_date, study.study_time), study.scanner, mark=" · ")),
    ]
    return [(name, text) for name, text in facts if text]


def _is_current(entry: FeedbackView, study: StudyReport) -> bool:
    """Whether an entry is of the whole study, or of a finding that the report shows."""
    shown = {(image.number, one.frame, one.bundle) for image in study.instances for one in image.findings}
    return entry.image is None or (entry.image, entry.frame, entry.bundle) in shown


def _earlier_words(entry: FeedbackView, assessment: Assessment, score: float | None) -> str:
    """Feedback on a finding that is not shown any more, and what that finding was."""
    found = str(assessment)
    if assessment is not Assessment.ABSTAINED:
        found += _score_words(", ", None if score is None else shown_score(score))
    return f"{feedback_words(entry)}. It is about bundle {entry.bundle}: {found}."


def _headline(study: StudyReport) -> str:
    """The study's finding in a sentence, and how many images it says nothing of."""
    if not study.instances:
        return f"This study holds no images, so there is nothing to report. {SILENCE}"
    unread = ""
    if study.assessment and study.failed_images and study.abstention is not AbstentionReason.UNREAD_IMAGES:
        unread = f"{unread_words(study.failed_images)}."
    silent = unread or study.assessment in (None, Assessment.ABSTAINED)
    return joined(_found(study), unread, SILENCE if silent else "", mark=" ")


def _found(study: StudyReport) -> str:
    if study.assessment is Assessment.ABSTAINED:
        return f"Abstained, {study.abstention_words}."
    if study.assessment is None:
        return joined(f"No finding: this study is {study.status}.", study.detail, mark=" ")
    extent = f", extent {study.severity}" if study.severity and study.severity is not Extent.NONE else ""
    text = f"{study.assessment.capitalize()}, {study.region}{extent}{_score_words('; ', study.score)}."
    return text + _caveat(study.abstention_words)


def _radiographs(images: Sequence[InstanceReport], *, unveiled: bool) -> list[ReportRadiograph]:
    """All images in their order. Of very many only the gravest are pictured: a report is to be read."""
    gravest = sorted((image for image in images if image.findings), key=lambda image: _gravity(_gravest(image)))
    pictured = {image.number for image in gravest[:MAX_PICTURES]}
    radiographs = [_radiograph(image, unveiled=unveiled) for image in images]
    without = f"Not pictured here: the {MAX_PICTURES} gravest images of this study are."
    for place, radiograph in enumerate(radiographs):
        if radiograph.frame is not None and radiograph.number not in pictured:
            radiographs[place] = replace(radiograph, frame=None, pictureless=without)
    return radiographs


def _gravest(image: InstanceReport) -> FindingView:
    return min(image.findings, key=_gravity)


def _gravity(finding: FindingView) -> tuple[int, float]:
    return -gravity(finding.assessment, finding.score), -finding.fracture_probability


def _radiograph(image: InstanceReport, *, unveiled: bool) -> ReportRadiograph:
    size = joined(image_words(image.view, image.laterality), image.modality, f"{image.columns} x {image.rows} px")
    if image.frames > 1:
        size += f", {image.frames} frames"
    if not image.findings:
        why = image.error or "Not analysed yet."
        return ReportRadiograph(image.number, size, None, [f"No finding. {why} {SILENCE}"], False, NO_FINDING)
    gravest = _gravest(image)
    lines = [finding_words(gravest)]
    if image.frames > 1:
        lines.append(f"Frame {gravest.frame} is shown, the gravest of {len(image.findings)} analysed.")
    if gravest.assessment is Assessment.ABSTAINED and not unveiled:
        lines.append(VEILED)
    if image.error:
        lines.append(image.error)
    return ReportRadiograph(
        image.number, size, gravest.frame, lines, abstains=gravest.assessment is Assessment.ABSTAINED
    )


def finding_words(finding: FindingView) -> str:
    """A finding in a sentence or two."""
    if finding.assessment is Assessment.ABSTAINED:
        return f"Abstained, {finding.abstention_words}. {SILENCE}"
    extent = f", extent {finding.severity}" if finding.severity is not Extent.NONE else ""
    points = ""
    if finding.sensitive_threshold is not None and finding.specific_threshold is not None:
        unclear, positive = _percent(finding.sensitive_threshold), _percent(finding.specific_threshold)
        points = f" (unclear from {unclear}, positive from {positive})"
    text = f"{finding.assessment.capitalize()}, {finding.region}{extent}{_score_words('; ', finding.score)}."
    chance = f"Calibrated fracture probability {_percent(finding.fracture_probability)}{points}."
    return f"{text} {chance}{_caveat(finding.abstention_words)}"


def feedback_words(entry: FeedbackView) -> str:
    """An entry of the feedback log in a sentence."""
    verbs = {
        "agree": "agrees", "disagree": "disagrees", "supplement": "adds", "done": "marked the study as read",
        "reopened": "reopened the study", "withdrawn": "withdrew feedback", "seen": "has seen the revised finding",
    }  # fmt: skip
    where = ""
    if entry.image:
        where = f" on image {entry.image}" + (f", frame {entry.frame}" if (entry.frame or 1) > 1 else "")
    seen = [
        f"fracture: {entry.fracture}" if entry.fracture else "",
        entry.region or "",
        f"extent {entry.severity}" if entry.severity else "",
        f"{len(entry.marks)} mark(s) drawn" if entry.marks else "",
        f"“{entry.text}”" if entry.text else "",
    ]
    more = ", ".join(word for word in seen if word)
    if entry.verdict is Verdict.SEEN:
        where = f" of {entry.bundle}"
    who = f"{entry.answered_at:%Y-%m-%d %H:%M} UTC, {entry.reader}"
    return f"{who} {verbs[entry.verdict]}{where}{': ' + more if more else ''}"


def bundle_facts(manifest: Mapping[str, Any]) -> list[str]:
    """What a bundle learned from, what it was measured on, and its limits; manifests of old may lack some."""
    data, metrics = manifest.get("data", {}), manifest.get("metrics", {})
    points = metrics.get("operating_points", {})
    facts = []
    if data.get("sources"):
        facts.append(f"Trained on {'; '.join(data['sources'])}.")
    if manifest.get("regions"):
        kinds = f"; modalities {', '.join(manifest['modalities'])}" if manifest.get("modalities") else ""
        facts.append(f"Validated for {', '.join(manifest['regions'])}{kinds}. Elsewhere it abstains.")
    for name, word in (("sensitive", "unclear or positive"), ("specific", "positive")):
        one = points.get(name, {})
        if one.get("sensitivity") and one.get("specificity"):
            facts.append(
                f"“{word}”: sensitivity {_figure(one['sensitivity'])}, specificity {_figure(one['specificity'])}."
            )
    if metrics.get("radiographs"):
        facts.append(
            f"Measured on {metrics['radiographs']} held-out radiographs, {metrics.get('fractured', '?')} fractured."
        )
    facts.append(str(manifest.get("limits") or "This bundle says nothing of its limits."))
    return facts


def _figure(values: Sequence[float]) -> str:
    estimate, low, high = values
    return f"{estimate:.2f} ({low:.2f} to {high:.2f})"


def _score_words(before: str, score: float | None) -> str:
    """As "; score 8.3 of 10"; "" where there is none."""
    return "" if score is None else f"{before}score {score:.1f} of 10"


def _caveat(words: str) -> str:
    """What follows a positive finding outside the validated scope."""
    return f" {words[0].upper()}{words[1:]}." if words else ""


def _percent(share: float) -> str:
    number = ">99" if 0.99 < share < 1 else "<1" if 0 < share < 0.01 else f"{share * 100:.0f}"
    return f"{number}\N{NO-BREAK SPACE}%"
