"""The report as an encapsulated PDF. Source: PS3.3 A.45.1, C.24 (Encapsulated Document)."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import EncapsulatedPDFStorage

from shared.dicom.elements import text_of
from shared.dicom.header import one_line
from shared.domain.results import ResultInput, ResultKind
from shared.report_pdf import ReportContent, ReportImage, render_pdf
from worker.results.captures import SMALL, Radiographs, gravest, made_by_words
from worker.results.envelope import begin_object, code_item, reference_item
from worker.results.source import Source
from worker.results.structured import DrawnFrame
from worker.results.words import LEGEND, finding_words, reader_words, study_words, unread_image_words

REPORT = Code("18748-4", "LN", "Diagnostic imaging report")
MAX_PICTURES = 24


def make_pdf(
    inputs: ResultInput, sources: Sequence[Source], frames: Sequence[DrawnFrame], radiographs: Radiographs
) -> Dataset:
    """Make the report.

    Args:
        inputs: the inputs.
        sources: all images, in their order.
        frames: all frames with findings.
        radiographs: decodes the images.

    Returns:
        The object.

    Raises:
        Rejected: an image's pixels are damaged.
    """
    content = render_pdf(_report(inputs, sources, frames, radiographs))
    made = begin_object(inputs, ResultKind.PDF, sources[0], EncapsulatedPDFStorage, "DOC")
    made.ConversionType = "WSD"
    made.BurnedInAnnotation, made.RecognizableVisualFeatures = "YES", "NO"
    made.AcquisitionDateTime = ""
    made.SourceInstanceSequence = [reference_item(source) for source in sources]
    made.DocumentTitle = "Osteon report - research use only"
    made.ConceptNameCodeSequence = [code_item(REPORT)]
    made.VerificationFlag = "UNVERIFIED"
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.EncapsulatedDocumentLength = len(content)
    made.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    return made


def _report(
    inputs: ResultInput, sources: Sequence[Source], frames: Sequence[DrawnFrame], radiographs: Radiographs
) -> ReportContent:
    first = sources[0]
    images: list[ReportImage] = []
    pictures: dict[int, bytes] = {}
    for source in sources:
        frames_of_source = [frame for frame in frames if frame.source is source]
        size = f"{source.header.get('Columns', '?')} x {source.header.get('Rows', '?')} px"
        number = source.image.number
        if not frames_of_source:
            images.append(ReportImage(number, size, [unread_image_words(source.image)], "There is no finding to draw."))
            continue
        frame = gravest(frames_of_source)
        lines = [f"{finding_words(frame.finding, probability=inputs.site.probability)}."]
        if source.frames > 1:
            lines.append(f"Frame {frame.finding.frame} is shown, the gravest of {len(frames_of_source)} analysed.")
        if len(pictures) < MAX_PICTURES:
            pictures[number] = _jpeg(radiographs.draw_outlines(frame, SMALL))
        why = f"Not pictured here: the first {MAX_PICTURES} images are."
        images.append(ReportImage(number, size, lines, why))
    clock = first.clock(inputs.made_at, inputs.site)
    earlier = first.clock(inputs.replaces.made_at, inputs.site) if inputs.replaces else None
    headline, *rest = study_words(inputs, earlier)
    reader = inputs.reader
    return ReportContent(
        study_id=inputs.study_id,
        study_instance_uid=inputs.study_instance_uid,
        name=_text(first, "PatientName").replace("^", " ").strip() or "Name not given",
        facts=[
            (
                "Patient ID",
                " · ".join(filter(None, (_text(first, "PatientID"), _text(first, "IssuerOfPatientID")))) or "-",
            ),
            ("Born", _text(first, "PatientBirthDate") or "-"),
            ("Accession", _text(first, "AccessionNumber") or "-"),
            ("Examination", _text(first, "StudyDescription") or "-"),
        ],
        standing=[("Made", f"{clock:%Y-%m-%d %H:%M}"), ("Site", inputs.site.name), ("Images", rest[0])],
        headline=f"{headline}{'' if headline.endswith('.') else '.'}",
        beside=" ".join(f"{line}." for line in rest[1:]),
        images=images,
        pictures=pictures,
        note=LEGEND,
        bundles={f"{model.title} ({model.name})": model.facts for model in inputs.models},
        feedback=[f"{reader_words(reader)}.", *reader.words] if reader else [],
        generated_at=f"{clock:%Y-%m-%d %H:%M}",
        generated_by=made_by_words(inputs, inputs.models),
    )


def _text(source: Source, keyword: str) -> str:
    """A value for people; "" where the header has none, or none that can be read."""
    try:
        return one_line(text_of(source.identity_header, keyword, 1024))
    except Exception:  # noqa: BLE001 - a damaged value is not shown; the object has its bytes all the same
        return ""


def _jpeg(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=88)
    return out.getvalue()
