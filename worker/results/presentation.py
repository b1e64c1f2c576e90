"""Outlines on the original pixels, as a grayscale softcopy presentation state of each image.

Source: PS3.3 A.33.1, C.10.4 (displayed area), C.10.5 (graphic annotation), C.10.7 (graphic layer), C.11.1, C.11.2,
C.11.6 (presentation LUT), C.11.10 and C.11.11 (identification and relationship).
"""

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from shared.dicom.elements import code_string, decimals, value_of
from shared.domain.results import ResultInput, ResultKind
from worker.results.envelope import begin_object, reference_item
from worker.results.outlines import Level
from worker.results.plain import plain
from worker.results.structured import DrawnFrame, stored_pixels
from worker.results.words import RESEARCH, finding_words

LAYER = "OSTEON AI"
COLOUR = 0xC000, 0x6C00, 0x7000  # PCS values (CIELab) of the outlines' light blue


def make_presentation(inputs: ResultInput, frames: Sequence[DrawnFrame]) -> Dataset:
    """Make the presentation state of an image.

    Args:
        inputs: the inputs.
        frames: those of the image that have outlines, at least one.

    Returns:
        The object.

    Raises:
        Rejected: the image's header is damaged.
    """
    source = frames[0].source
    modality_class = GrayscaleSoftcopyPresentationStateStorage
    made = begin_object(inputs, ResultKind.GSPS, source, modality_class, "PR", source.image.number)
    made.PresentationCreationDate, made.PresentationCreationTime = made.ContentDate, made.ContentTime
    del made.ContentDate, made.ContentTime  # these are of other objects
    made.ContentLabel = "OSTEON AI"
    made.ContentDescription = RESEARCH
    made.ContentCreatorName = "Osteon^AI"
    made.Laterality = ""
    series = Dataset()
    series.SeriesInstanceUID = source.series_instance_uid
    series.ReferencedImageSequence = [reference_item(source)]
    made.ReferencedSeriesSequence = [series]
    made.DisplayedAreaSelectionSequence = [_area(frames[0])]
    made.GraphicAnnotationSequence = [_annotation(inputs, frame) for frame in frames]
    layer = Dataset()
    layer.GraphicLayer, layer.GraphicLayerOrder = LAYER, 1
    layer.GraphicLayerRecommendedDisplayCIELabValue = list(COLOUR)
    layer.GraphicLayerDescription = RESEARCH
    made.GraphicLayerSequence = [layer]
    _gray_levels(made, frames[0])
    return made


def _area(frame: DrawnFrame) -> Dataset:
    source = frame.source
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [int(value_of(source.header, name)) for name in ("Columns", "Rows")]
    area.PresentationSizeMode = "SCALE TO FIT"
    across, down = frame.scale  # stored pixels for a square one
    if across == down:
        area.PresentationPixelAspectRatio = [1, 1]
    else:  # vertical, horizontal (PS3.3 C.7.6.3.1.7)
        area.PresentationPixelAspectRatio = [round(1000 * across), round(1000 * down)]
    return area


def _annotation(inputs: ResultInput, frame: DrawnFrame) -> Dataset:
    annotation = Dataset()
    annotation.ReferencedImageSequence = [reference_item(frame.source, [frame.finding.frame])]
    annotation.GraphicLayer = LAYER
    annotation.GraphicObjectSequence = [_line(frame, outline.line, outline.level) for outline in frame.outlines]
    text = Dataset()
    text.UnformattedTextValue = plain(
        f"AI Osteon: {finding_words(frame.finding, probability=inputs.site.probability)}. {RESEARCH}"
    )
    text.BoundingBoxAnnotationUnits = "DISPLAY"  # in a corner, whatever lies there can be moved away from it
    text.BoundingBoxTopLeftHandCorner, text.BoundingBoxBottomRightHandCorner = [0.01, 0.93], [0.99, 0.99]
    text.BoundingBoxTextHorizontalJustification = "LEFT"
    annotation.TextObjectSequence = [text]
    return annotation


def _line(frame: DrawnFrame, line: object, level: Level) -> Dataset:
    points = stored_pixels(line, frame.scale)  # type: ignore[arg-type]
    graphic = Dataset()
    graphic.GraphicAnnotationUnits = "PIXEL"
    graphic.GraphicDimensions = 2
    graphic.NumberOfGraphicPoints = len(points)
    # PIXEL counts from 1 at the upper left pixel's upper left corner... its centre is at 1, 1 (PS3.3 C.10.5.1.2)
    graphic.GraphicData = [float(value) for value in (points + 0.5).ravel()]
    graphic.GraphicType, graphic.GraphicFilled = "POLYLINE", "N"
    style = Dataset()
    style.PatternOnColorCIELabValue = list(COLOUR)
    style.PatternOnOpacity, style.LineThickness = 1.0, 1.5
    style.LineDashingStyle = "SOLID" if level is Level.SPECIFIC else "DASHED"
    style.ShadowStyle, style.ShadowOffsetX, style.ShadowOffsetY = "OUTLINED", 0.0, 0.0
    style.ShadowColorCIELabValue, style.ShadowOpacity = [0, 0x8080, 0x8080], 0.6
    if level is Level.SENSITIVE:
        style.LinePattern = 0x00000F0F
    graphic.LineStyleSequence = [style]
    return graphic


def _gray_levels(made: Dataset, frame: DrawnFrame) -> None:
    """The image's own transformations, so that it looks as it does without the state."""
    header = frame.source.header
    slope, intercept = decimals(header, "RescaleSlope"), decimals(header, "RescaleIntercept")
    if slope and intercept:
        made.RescaleSlope, made.RescaleIntercept = f"{slope[0]:.10g}", f"{intercept[0]:.10g}"
        made.RescaleType = "US"
    centre, width = decimals(header, "WindowCenter"), decimals(header, "WindowWidth")
    if centre and width and width[0] >= 1:
        window = Dataset()
        window.WindowCenter, window.WindowWidth = f"{centre[0]:.10g}", f"{width[0]:.10g}"
        if function := code_string(header, "VOILUTFunction"):
            window.VOILUTFunction = function
        made.SoftcopyVOILUTSequence = [window]
    inverse = code_string(header, "PhotometricInterpretation") == "MONOCHROME1"
    made.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
