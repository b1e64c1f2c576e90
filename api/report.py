"""What a report of a study says, for the page and the paper alike, and its pictures."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from PIL import Image, ImageDraw

from api.answers import AnswerView, answers_view
from api.dependencies import Parts
from api.examination import dicom_date, examined, image_words, joined, patient, when
from api.responses import FindingView, InstanceReport, StudyReport
from api.studies import heatmap_png, study_report
from shared.answers import Verdict
from shared.dicom import one_line
from shared.findings import (
    AbstentionReason,
    Assessment,
    ExposedField,
    Heatmap,
    Severity,
    gravity,
    shown_score,
    unread_words,
)
from shared.repository import reading
from shared.repository.access import Key
from shared.repository.answers import answered_findings
from shared.repository.bundles import manifests
from shared.repository.work import clock
from shared.storage import preview_key
from shared.study import Identity

OPACITY = 0.45  # of the heatmap, as the study's page opens
MARK = (80, 220, 255)  # readers' boxes; the heatmap has no blue
EXTENT = (
    "Extent is by annotation, how many fractures were outlined in the training films and how large; it is not a "
    "clinical grade."
)
EARLIER = "A newer finding has replaced what these readers answered; they say nothing of it."
MOST_PICTURES = 24
VEILED = "Its heatmap is not drawn: the model abstains."
NO_FINDING = "Not pictured here: there is no finding to draw in."
SILENCE = "Silence is not normal."


@dataclass(frozen=True)
class Film:
    """One image of a report: of many frames the gravest."""

    number: int
    size: str
    frame: int | None  # None: not pictured
    lines: list[str]  # the model's words
    abstains: bool
    pictureless: str = ""  # why no picture was made


@dataclass(frozen=True)
class Report:
    """Everything that stands on a report, in words."""

    study: StudyReport
    identity: Identity
    facts: list[tuple[str, str]]  # who and what, each under its name; what is not known has no line or a dash
    headline: str  # the readers' once one of them contradicts the model
    beside: str  # then the model's
    films: list[Film]
    bundles: dict[str, list[str]]  # name to what it learned from, and its limits
    answers: list[str]
    earlier: list[str]  # answers to findings that newer ones have replaced
    marks: str  # changes with the marks in the pictures
    generated_at: datetime
    generated_by: str


def overlay_jpeg(parts: Parts, key: Key, study_id: UUID, image: int, frame: int, *, unveiled: bool = False) -> bytes:
    """Preview, heatmap and marks in one JPEG. Raises NotFound, ObjectMissing, StoreUnavailable.

    unveiled: draw the heatmap of an abstention too, where it says nothing that the model was validated for.
    """
    with parts.database.transaction() as session:
        row, finding = reading.frame_finding(session, key.site_id, study_id, image, frame)
        drawn = unveiled or finding.assessment != Assessment.ABSTAINED
        found = Heatmap(finding.heatmap, finding.heatmap_height, finding.heatmap_width) if drawn else None
        field = reading.field_of(finding, row)
        marks = reading_marks(answers_view(session, parts, key, study_id, words=False).entries, image, frame)
    return compose(parts.store.get(preview_key(row.sha256, frame)), found, field, marks)


def reading_marks(entries: Sequence[AnswerView], image: int, frame: int) -> list[tuple[float, float, float, float]]:
    """x, y, width and height of the marks on a frame, of entries that still stand."""
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
    """preview: a JPEG of the whole image; heatmap: None draws none; field: where it belongs; marks: in shares.

    Returns an RGB JPEG.
    """
    film = Image.open(io.BytesIO(preview)).convert("RGB")
    if heatmap is not None:
        colours = Image.open(io.BytesIO(heatmap_png(heatmap, field))).resize(film.size, Image.Resampling.BILINEAR)
        film.paste(colours, mask=colours.getchannel("A").point(lambda level: round(level * OPACITY)))
    draw, (width, height) = ImageDraw.Draw(film), film.size
    for x, y, wide, high in marks:
        box = (x * width, y * height, (x + wide) * width, (y + high) * height)
        draw.rectangle(box, outline=MARK, width=max(2, round(max(film.size) / 250)))
    out = io.BytesIO()
    film.save(out, "JPEG", quality=88)
    return out.getvalue()


def report_of(parts: Parts, key: Key, study_id: UUID, *, unveiled: bool = False) -> Report:
    """Gather a report; reading the identity leaves an audit row. Raises NotFound.

    unveiled: with the heatmaps of abstentions.
    """
    study = study_report(parts, key, study_id)
    with parts.database.transaction() as session:
        identity = parts.vault.identities(session, key, [study.id]).get(study.id, Identity())
        told = manifests(session, {finding.bundle for image in study.instances for finding in image.findings})
        said = [one for one in answers_view(session, parts, key, study_id).entries if one.superseded_by is None]
        found = answered_findings(session, study_id)
        now = clock(session)
    return Report(
        study=study,
        identity=identity,
        facts=_facts(study, identity),
        headline=study.readers.words if study.readers else _headline(study),
        beside=f"Model: {_headline(study)}" if study.readers else "",
        films=_films(study.instances, unveiled=unveiled),
        bundles={name: bundle_facts(manifest) for name, manifest in sorted(told.items())},
        answers=[answer_words(entry) for entry in said if _is_current(entry, study)],
        earlier=[_earlier_words(entry, *found[entry.id]) for entry in said if not _is_current(entry, study)],
        marks=hashlib.sha256("".join(entry.hash for entry in said).encode()).hexdigest()[:16],
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


def _is_current(entry: AnswerView, study: StudyReport) -> bool:
    """Whether an entry is of the whole study, or of a finding that the report shows."""
    shown = {(image.number, one.frame, one.bundle) for image in study.instances for one in image.findings}
    return entry.image is None or (entry.image, entry.frame, entry.bundle) in shown


def _earlier_words(entry: AnswerView, assessment: Assessment, score: float | None) -> str:
    """An answer to a finding that is not shown any more, and what that finding was."""
    found = str(assessment)
    if assessment is not Assessment.ABSTAINED:
        found += _score_words(", ", None if score is None else shown_score(score))
    return f"{answer_words(entry)}. This answered bundle {entry.bundle}: {found}."


def _headline(study: StudyReport) -> str:
    """The study's finding in a sentence, and how many images it says nothing of."""
    if not study.instances:
        return f"This study holds no images, so there is nothing to report. {SILENCE}"
    found = _found(study)
    if study.assessment is None or not study.failed_images:
        return found
    if study.abstention is AbstentionReason.UNREAD_IMAGES:
        return found
    words = unread_words(study.failed_images)
    return f"{found.removesuffix(f' {SILENCE}')} {words}. {SILENCE}"


def _found(study: StudyReport) -> str:
    if study.assessment is Assessment.ABSTAINED:
        return f"Abstained, {study.abstention_words}. {SILENCE}"
    if study.assessment is None:
        return f"No finding: this study is {study.status}. {study.reason} {SILENCE}".replace("  ", " ")
    extent = f", extent {study.severity}" if study.severity and study.severity is not Severity.NONE else ""
    said = f"{study.assessment.capitalize()}, {study.region}{extent}{_score_words('; ', study.score)}."
    return said + _caveat(study.abstention_words)


def _films(images: Sequence[InstanceReport], *, unveiled: bool) -> list[Film]:
    """All images in their order. Of very many only the gravest are pictured: a report is to be read."""
    gravest = sorted((image for image in images if image.findings), key=lambda image: _gravity(_gravest(image)))
    pictured = {image.number for image in gravest[:MOST_PICTURES]}
    films = [_film(image, unveiled=unveiled) for image in images]
    without = f"Not pictured here: the {MOST_PICTURES} gravest images of this study are."
    for place, film in enumerate(films):
        if film.frame is not None and film.number not in pictured:
            films[place] = replace(film, frame=None, pictureless=without)
    return films


def _gravest(image: InstanceReport) -> FindingView:
    return min(image.findings, key=_gravity)


def _gravity(finding: FindingView) -> tuple[int, float]:
    return -gravity(finding.assessment, finding.score), -finding.fracture_probability


def _film(image: InstanceReport, *, unveiled: bool) -> Film:
    size = joined(image_words(image.view, image.laterality), image.modality, f"{image.columns} x {image.rows} px")
    if image.frames > 1:
        size += f", {image.frames} frames"
    if not image.findings:
        why = image.error or "Not analysed yet."
        return Film(image.number, size, None, [f"No finding. {why} {SILENCE}"], False, NO_FINDING)
    gravest = _gravest(image)
    lines = [finding_words(gravest)]
    if image.frames > 1:
        lines.append(f"Frame {gravest.frame} is shown, the gravest of {len(image.findings)} analysed.")
    if gravest.assessment is Assessment.ABSTAINED and not unveiled:
        lines.append(VEILED)
    if image.error:
        lines.append(image.error)
    return Film(image.number, size, gravest.frame, lines, abstains=gravest.assessment is Assessment.ABSTAINED)


def finding_words(finding: FindingView) -> str:
    """A finding in a sentence or two."""
    if finding.assessment is Assessment.ABSTAINED:
        return f"Abstained, {finding.abstention_words}. {SILENCE}"
    extent = f", extent {finding.severity}" if finding.severity is not Severity.NONE else ""
    points = ""
    if finding.sensitive_threshold is not None and finding.specific_threshold is not None:
        unclear, positive = _percent(finding.sensitive_threshold), _percent(finding.specific_threshold)
        points = f" (unclear from {unclear}, positive from {positive})"
    said = f"{finding.assessment.capitalize()}, {finding.region}{extent}{_score_words('; ', finding.score)}."
    chance = f"Calibrated fracture probability {_percent(finding.fracture_probability)}{points}."
    return f"{said} {chance}{_caveat(finding.abstention_words)}"


def answer_words(entry: AnswerView) -> str:
    """An entry of the ledger in a sentence."""
    verbs = {
        "agree": "agrees", "disagree": "disagrees", "supplement": "adds", "done": "marked the study as read",
        "reopened": "reopened the study", "withdrawn": "withdrew an answer", "seen": "has seen the revised finding",
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
    if metrics.get("films"):
        facts.append(f"Measured on {metrics['films']} held-out films, {metrics.get('fractured', '?')} fractured.")
    facts.append(str(manifest.get("limits") or "This bundle says nothing of its limits."))
    return facts


def _figure(values: Sequence[float]) -> str:
    estimate, low, high = values
    return f"{estimate:.2f} ({low:.2f} to {high:.2f})"


def _score_words(before: str, score: float | None) -> str:
    """As "; score 8.3 of 10"; "" where there is none."""
    return "" if score is None else f"{before}score {score:.1f} of 10"


def _caveat(words: str) -> str:
    """What stands behind a positive finding outside the validated scope."""
    return f" {words[0].upper()}{words[1:]}." if words else ""


def _percent(share: float) -> str:
    number = ">99" if 0.99 < share < 1 else "<1" if 0 < share < 0.01 else f"{share * 100:.0f}"
    return f"{number}\N{NO-BREAK SPACE}%"
