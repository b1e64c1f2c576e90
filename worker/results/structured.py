"""Structured reports by TID 1500 in two documents: outlines, and statements on images and study.

Two, since OHIF 3.12 draws no outline of a document that has a group without one, and shows only the last document of a
series: each has a series of its own. The content is made of highdicom's templates; the image library is ours, because
highdicom's needs Imager Pixel Spacing, which many radiographs do not have.
Source: PS3.16 TID 1500, 1501, 1410, 1600, 4019; PS3.3 A.35.3, A.35.13, C.17; IHE AI Results 6.5.3.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageContentItem,
    ImageRegion,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage

from shared.domain import coding
from shared.domain.device import DEVICE_ROOT, device_uid
from shared.domain.findings import Assessment, Finding, abstention_words
from shared.domain.results import (
    IN_PLACE_OF,
    ModelStatement,
    ResultInput,
    ResultKind,
    object_uid,
)
from worker.results import concepts
from worker.results.envelope import MANUFACTURER, MODEL_NAME, begin_object, references_by_series
from worker.results.outlines import Level, Line, Outline, holds
from worker.results.plain import plain
from worker.results.source import Source
from worker.results.words import RESEARCH, study_words, unread_image_words

OUTLINES = frozenset({ResultKind.SR_OUTLINES, ResultKind.SR_OUTLINES_2D})
CONTAINS = RelationshipTypeValues.CONTAINS
ACQUISITION = RelationshipTypeValues.HAS_ACQ_CONTEXT


@dataclass(frozen=True, eq=False)
class DrawnFrame:
    """A frame with a finding, and the outlines in it."""

    source: Source
    finding: Finding
    outlines: Sequence[Outline]
    scale: tuple[float, float]  # columns and rows of the stored frame for one of its square pixels


def make_document(
    inputs: ResultInput, kind: ResultKind, sources: Sequence[Source], frames: Sequence[DrawnFrame]
) -> Dataset | None:
    """Make one of the documents.

    Args:
        inputs: the inputs.
        kind: which document, as which SOP class.
        sources: all images, in their order.
        frames: all frames with findings, in their order.

    Returns:
        The document; None for one of outlines where nothing is outlined.
    """
    groups = _outline_groups(inputs, frames) if kind in OUTLINES else _image_groups(inputs, sources, frames)
    if not groups:
        return None
    sop_class = ComprehensiveSRStorage if kind in IN_PLACE_OF.values() else Comprehensive3DSRStorage
    made = begin_object(inputs, kind, sources[0], sop_class, "SR")
    content = MeasurementReport(
        observation_context=_observer(inputs),
        procedure_reported=concepts.RADIOGRAPHY,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )[0]
    content.ContentSequence.insert(_place_of_groups(content), _library(sources))
    if kind not in OUTLINES:
        content.ContentSequence.append(_evaluations(inputs))
    for element in content:
        made[element.tag] = element
    made.CompletionFlag = (
        "COMPLETE" if all(one.image.findings or one.image.error_reason for one in sources) else "PARTIAL"
    )
    made.VerificationFlag, made.PreliminaryFlag = "UNVERIFIED", "PRELIMINARY"
    made.ReferencedPerformedProcedureStepSequence = []
    made.PerformedProcedureCodeSequence = []
    evidence = Dataset()
    evidence.StudyInstanceUID = inputs.study_instance_uid
    evidence.ReferencedSeriesSequence = references_by_series(sources)
    made.CurrentRequestedProcedureEvidenceSequence = [evidence]
    if predecessors := _predecessors(inputs, kind, has_outlines=any(frame.outlines for frame in frames)):
        made.PredecessorDocumentsSequence = predecessors
    return made


def _place_of_groups(content: Dataset) -> int:
    return next(
        place for place, item in enumerate(content.ContentSequence) if item.name == codes.DCM.ImagingMeasurements
    )


def _observer(inputs: ResultInput) -> ObservationContext:
    newest = inputs.models[-1] if inputs.models else None
    device = DeviceObserverIdentifyingAttributes(
        uid=device_uid(newest.sha256) if newest else DEVICE_ROOT,
        name=MODEL_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=plain(newest.title, 64) if newest else MODEL_NAME,
        serial_number=plain(inputs.site.name, 64) or "-",
    )
    observer = CodedConcept.from_code(concepts.DEVICE)
    return ObservationContext(
        observer_device_context=ObserverContext(observer_type=observer, observer_identifying_attributes=device)
    )


def _library(sources: Iterable[Source]) -> ContainerContentItem:
    """TID 1600: every image of the study that was received, whatever became of it."""
    library = ContainerContentItem(name=codes.DCM.ImageLibrary, relationship_type=CONTAINS)
    group = ContainerContentItem(name=codes.DCM.ImageLibraryGroup, relationship_type=CONTAINS)
    group.ContentSequence = ContentSequence()
    for source in sources:
        item = ImageContentItem(
            name=Code("260753009", "SCT", "Source"),
            referenced_sop_class_uid=source.sop_class_uid,
            referenced_sop_instance_uid=source.image.sop_instance_uid,
            relationship_type=CONTAINS,
        )
        if source.side in concepts.SIDES:
            side = CodeContentItem(
                name=codes.DCM.ImageLaterality, value=concepts.SIDES[source.side], relationship_type=ACQUISITION
            )
            item.ContentSequence = ContentSequence([side])
        group.ContentSequence.append(item)
    library.ContentSequence = ContentSequence([group])
    return library


# -- outlines


def _outline_groups(
    inputs: ResultInput, frames: Sequence[DrawnFrame]
) -> list[PlanarROIMeasurementsAndQualitativeEvaluations]:
    groups = []
    for frame in frames:
        for number, (outline, presence) in enumerate(choose_outlines(frame.outlines), start=1):
            image = frame.source.image
            model = _model(inputs, frame.finding)
            # the same outline has the same name in every later document
            name = f"{image.sop_instance_uid}/{frame.finding.frame}/{model.sha256}"
            region = ImageRegion(
                graphic_type="POLYLINE",
                graphic_data=stored_pixels(outline.line, frame.scale),
                source_image=SourceImageForRegion(
                    frame.source.sop_class_uid, image.sop_instance_uid, _numbers(frame.source, frame.finding)
                ),
            )
            label = f"Osteon {image.number}.{frame.finding.frame}.{number}"
            groups.append(
                PlanarROIMeasurementsAndQualitativeEvaluations(
                    tracking_identifier=TrackingIdentifier(
                        object_uid(name, ResultKind.SR_OUTLINES, number), identifier=label
                    ),
                    referenced_region=region,
                    finding_type=concepts.FRACTURE,
                    algorithm_id=_algorithm(inputs, model),
                    finding_sites=_sites(frame.source, frame.finding),
                    measurements=_certainty(inputs, frame.finding),
                    qualitative_evaluations=[_presence(presence)],
                )
            )
    return groups


def choose_outlines(outlines: Sequence[Outline]) -> list[tuple[Outline, Code]]:
    """Choose the outlines that documents tell of.

    What reaches the specific point is a fracture that is present. Around it lies a line of the sensitive point, which
    is left out; where no place within such a line reaches the specific point, it is undetermined. Holes are none.

    Args:
        outlines: of a frame.

    Returns:
        The outlines, each with what it is.
    """
    around = [one for one in outlines if not one.hole]
    specific = [one for one in around if one.level is Level.SPECIFIC]
    sensitive = [
        one
        for one in around
        if one.level is Level.SENSITIVE and not any(holds(one.line, within.line) for within in specific)
    ]
    return [(one, concepts.PRESENT) for one in specific] + [(one, concepts.UNDETERMINED) for one in sensitive]


def stored_pixels(line: Line, scale: tuple[float, float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Convert a line to a closed one in the stored frame's pixels.

    Args:
        line: (N, 2) in square pixels.
        scale: columns and rows of the stored frame for one of them.

    Returns:
        (N + 1, 2) columns and rows, the last point as the first; thousandths of a pixel.
    """
    points: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.round(line * np.array(scale), 3)
    return np.vstack([points, points[:1]])


# -- statements


def _image_groups(
    inputs: ResultInput, sources: Sequence[Source], frames: Sequence[DrawnFrame]
) -> list[MeasurementsAndQualitativeEvaluations]:
    groups = []
    for source in sources:
        findings = [frame.finding for frame in frames if frame.source is source]
        groups += [_image_group(inputs, source, finding) for finding in findings or (None,)]
    return groups


def _image_group(inputs: ResultInput, source: Source, finding: Finding | None) -> MeasurementsAndQualitativeEvaluations:
    image, frame = source.image, finding.frame if finding else 1
    evaluations, comment = [], ""
    if finding is None:
        comment = unread_image_words(image)
        evaluations.append(_detections(concepts.FAILED if image.error_reason else concepts.NOT_ATTEMPTED))
    elif finding.assessment is Assessment.ABSTAINED:
        comment = f"Abstained, {abstention_words(finding.abstention, finding.abstention_detail, finding.score)}"
        evaluations.append(_detections(concepts.NOT_ATTEMPTED))
    else:
        comment = abstention_words(finding.abstention, finding.abstention_detail, finding.score)
        evaluations += [_presence(concepts.PRESENCES[finding.assessment]), _detections(concepts.SUCCEEDED)]
    assessed = finding if finding and finding.assessment is not Assessment.ABSTAINED else None
    name = f"{image.sop_instance_uid}/{frame}"
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            object_uid(name, ResultKind.SR_STATEMENTS, frame), identifier=f"Osteon {image.number}.{frame}"
        ),
        finding_type=concepts.FRACTURE,
        algorithm_id=_algorithm(inputs, _model(inputs, finding)) if finding else None,
        finding_sites=_sites(source, assessed) if assessed else None,
        measurements=_certainty(inputs, assessed) if assessed else None,
        qualitative_evaluations=evaluations,
        source_images=[
            SourceImageForMeasurementGroup(
                source.sop_class_uid, image.sop_instance_uid, _numbers(source, finding) if finding else None
            )
        ],
    )
    if comment:
        group[0].ContentSequence.append(_comment(comment))
    return group


def _evaluations(inputs: ResultInput) -> ContainerContentItem:
    """What is said of the study: CID 6047, presence, and words on what codes cannot say."""
    container = ContainerContentItem(name=concepts.EVALUATIONS, relationship_type=CONTAINS)
    container.ContentSequence = ContentSequence()
    container.ContentSequence.append(
        CodeContentItem(name=concepts.SUMMARY, value=processing(inputs), relationship_type=CONTAINS)
    )
    summary = inputs.summary
    if summary is not None and summary.assessment in concepts.PRESENCES:
        container.ContentSequence.append(
            CodeContentItem(
                name=concepts.FRACTURE, value=concepts.PRESENCES[summary.assessment], relationship_type=CONTAINS
            )
        )
    for words in (*study_words(inputs), RESEARCH):
        container.ContentSequence.append(_comment(words))
    return container


def processing(inputs: ResultInput) -> Code:
    """Say by CID 6047 whether all images could be assessed, and whether anything was found.

    Args:
        inputs: the inputs.

    Returns:
        The code. An abstention, and an image that could not be read, or not yet, are no success.
    """
    frames: list[Assessment | None] = []
    for image in inputs.images:
        frames += [finding.assessment for finding in image.findings] or [None]
    return concepts.concept(coding.processing(frames))


# -- parts of both


def _model(inputs: ResultInput, finding: Finding) -> ModelStatement:
    return next(model for model in inputs.models if model.name == finding.bundle)


def _algorithm(inputs: ResultInput, model: ModelStatement) -> AlgorithmIdentification:
    """TID 4019."""
    return AlgorithmIdentification(
        name=plain(model.title) or model.name,
        version=f"{plain(inputs.software)} / {model.name}",
        manufacturer=MANUFACTURER,
        family=concepts.ARTIFICIAL_INTELLIGENCE,
        parameters=[f"sensitive={model.points.sensitive:.6g}", f"specific={model.points.specific:.6g}"],
    )


def _sites(source: Source, finding: Finding) -> list[FindingSite] | None:
    region = concepts.REGIONS.get(finding.region)
    return [FindingSite(region, laterality=concepts.SIDES.get(source.side))] if region else None


def _certainty(inputs: ResultInput, finding: Finding) -> list[Measurement] | None:
    """The calibrated probability, where the site asks for it."""
    if not inputs.site.probability:
        return None
    percent = round(100 * finding.fracture_probability, 1)
    return [Measurement(name=concepts.CERTAINTY, value=percent, unit=codes.UCUM.Percent)]


def _presence(code: Code) -> QualitativeEvaluation:
    return QualitativeEvaluation(name=concepts.FRACTURE, value=code)


def _detections(code: Code) -> QualitativeEvaluation:
    return QualitativeEvaluation(name=concepts.DETECTIONS, value=code)


def _comment(words: str) -> TextContentItem:
    return TextContentItem(name=concepts.COMMENT, value=plain(words), relationship_type=CONTAINS)


def _numbers(source: Source, finding: Finding) -> list[int] | None:
    return [finding.frame] if source.frames > 1 else None


def _predecessors(inputs: ResultInput, kind: ResultKind, *, has_outlines: bool) -> list[Dataset]:
    """The documents that this one replaces: of its own kind, and, of no more outlines, the earlier ones of outlines.

    Source: PS3.3 C.17.2.
    """
    earlier = inputs.replaces
    if earlier is None:
        return []
    gone = {ResultKind.SR_STATEMENTS: ResultKind.SR_OUTLINES, ResultKind.SR_STATEMENTS_2D: ResultKind.SR_OUTLINES_2D}
    kinds = [kind] if has_outlines or kind not in gone else [kind, gone[kind]]
    series = []
    for one in kinds:
        if one not in earlier.kinds:
            continue
        document = Dataset()
        document.ReferencedSOPClassUID = (
            ComprehensiveSRStorage if one in IN_PLACE_OF.values() else Comprehensive3DSRStorage
        )
        document.ReferencedSOPInstanceUID = object_uid(earlier.digest, one, 1)
        item = Dataset()
        item.SeriesInstanceUID = object_uid(earlier.digest, one, 0)
        item.ReferencedSOPSequence = [document]
        series.append(item)
    if not series:
        return []
    study = Dataset()
    study.StudyInstanceUID = inputs.study_instance_uid
    study.ReferencedSeriesSequence = series
    return [study]
