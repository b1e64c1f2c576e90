"""Secondary Captures: each radiograph with its outlines, and a summary of the study. Every archive shows them.

Words stand in strips beside the anatomy. A picture that is larger than MAX_SIDE is made smaller; its spacing is then
scaled, or left out where the source has none.
Source: PS3.3 A.8.1 (Secondary Capture Image), C.7.6.1 (General Image), C.7.6.3 (Image Pixel), C.8.6 (SC modules),
10.7.1.3 (calibration of spacing).
"""

from collections.abc import Callable, Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import SecondaryCaptureImageStorage

from shared.dicom.elements import count, decimals, value_of
from shared.domain.findings import gravity
from shared.domain.results import ModelStatement, ResultInput, ResultKind
from shared.pixels.tensors import UInt8Image, shrink
from worker.results.drawing import Picture, draw_outlines, stack, strip, to_colour, widen
from worker.results.envelope import begin_object, code_item, reference_item
from worker.results.plain import plain
from worker.results.source import Source
from worker.results.structured import DrawnFrame
from worker.results.words import LEGEND, RESEARCH, finding_words, study_words, unread_image_words

MAX_SIDE, SMALL = 2048, 1024  # pixels of the longer side: of an overlay's radiograph, and of a report's
MAX_KEPT = 24  # small frames, of a megabyte each
THUMBNAIL, PER_ROW, MAX_THUMBNAILS = 320, 4, 24  # pixels of a summary's small images; of them in a row, and in all
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")  # PS3.16 CID 7202
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def gravest(frames: Sequence[DrawnFrame]) -> DrawnFrame:
    """The frame that stands for an image of several, as reports choose it."""
    return max(
        frames, key=lambda one: (gravity(one.finding.assessment, one.finding.score), one.finding.fracture_probability)
    )


# gives the picture of a frame: by the SHA-256 of its file, its number from 1, and the most pixels of the longer side
Shown = Callable[[str, int, int], UInt8Image]


class Radiographs:
    """Frames as people see them, each decoded once as long as few are asked for again."""

    def __init__(self, shown: Shown) -> None:
        """Keep what decodes them."""
        self._shown = shown
        self._small: dict[tuple[int, int], UInt8Image] = {}

    def draw_outlines(self, frame: DrawnFrame, side: int) -> Picture:
        """Draw a frame's outlines on it.

        A smaller picture is made of a larger one, always in the same steps: what was asked for before changes nothing.

        Args:
            frame: with its outlines.
            side: the most pixels of the longer side: MAX_SIDE, or at most SMALL.

        Returns:
            The frame in its own proportions, as previews show it.

        Raises:
            Rejected: its pixels are damaged.
        """
        key = frame.source.image.number, frame.finding.frame
        gray = self._small.get(key) if side <= SMALL else None
        if gray is None:
            gray = self._decode(frame)
            if len(self._small) < MAX_KEPT:
                self._small[key] = _fit(gray, SMALL)
        if side <= SMALL:
            gray = _fit(_fit(gray, SMALL), side)
        picture = to_colour(gray)
        rows, columns = (count(frame.source.header, name) for name in ("Rows", "Columns"))
        across, down = frame.scale  # from square pixels to stored ones, and on to those of the picture
        draw_outlines(picture, frame.outlines, (across * gray.shape[1] / columns, down * gray.shape[0] / rows))
        return picture

    def _decode(self, frame: DrawnFrame) -> UInt8Image:
        return _fit(self._shown(frame.source.image.sha256, frame.finding.frame, MAX_SIDE), MAX_SIDE)


def _fit(gray: UInt8Image, side: int) -> UInt8Image:
    return gray if max(gray.shape) <= side else np.rint(shrink(gray, side)).astype(np.uint8)


def make_overlay(inputs: ResultInput, frames: Sequence[DrawnFrame], radiographs: Radiographs) -> Dataset:
    """Make the capture of an image.

    Args:
        inputs: the inputs.
        frames: of the image, at least one.
        radiographs: decodes the image.

    Returns:
        The object. Of several frames it shows the gravest.

    Raises:
        Rejected: the image's pixels are damaged.
    """
    frame = gravest(frames)
    source = frame.source
    picture = radiographs.draw_outlines(frame, MAX_SIDE)
    words = [f"AI: {finding_words(frame.finding, probability=inputs.site.probability)}"]
    if source.frames > 1:
        words.append(f"Frame {frame.finding.frame} of {source.frames}, the gravest of {len(frames)} analysed")
    if frame.outlines:
        words.append(LEGEND)
    elif frame.finding.abstention is None:
        words.append("No place alone is enough for a line. That does not mean no fracture.")
    words.append(made_by_words(inputs, inputs.models_of(source.image)))
    whole = widen(picture)
    made = _capture(inputs, ResultKind.SC_OVERLAY, source, stack([whole, _strip(whole, words)]), source.image.number)
    made.SourceImageSequence = [_source(source, [frame.finding.frame])]
    made.DerivationDescription = "Radiograph with outlines of a model's evidence; words in a strip below"
    _copy_geometry(made, source, picture)
    return made


def make_summary(
    inputs: ResultInput, sources: Sequence[Source], frames: Sequence[DrawnFrame], radiographs: Radiographs
) -> Dataset:
    """Make the study's summary.

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
    earlier = sources[0].clock(inputs.replaces.made_at, inputs.site) if inputs.replaces else None
    words = [*study_words(inputs, earlier), made_by_words(inputs, inputs.models)]
    words[0] = f"AI on the study: {words[0]}"
    cells = [_cell(source, frames, radiographs) for source in sources[:MAX_THUMBNAILS]]
    if len(sources) > MAX_THUMBNAILS:
        words.insert(2, f"The first {MAX_THUMBNAILS} images are shown")
    rows = [_put_beside(cells[at : at + PER_ROW]) for at in range(0, len(cells), PER_ROW)]
    whole = widen(stack(rows))
    made = _capture(inputs, ResultKind.SC_SUMMARY, sources[0], stack([whole, _strip(whole, words)]), 1)
    made.SourceImageSequence = [_source(source) for source in sources]
    made.DerivationDescription = "Small images of the study and a summary of a model's findings"
    made.PatientOrientation = made.Laterality = ""
    return made


def made_by_words(inputs: ResultInput, models: Sequence[ModelStatement]) -> str:
    """Name the models and the software.

    Args:
        inputs: the inputs.
        models: those to be named.

    Returns:
        A line.
    """
    named = ", ".join(f"{plain(model.title)} ({model.name})" for model in models)
    return f"{f'Model {named}; ' if named else ''}Osteon {plain(inputs.software)}"


def _strip(picture: Picture, words: Sequence[str]) -> Picture:
    return strip(picture.shape[1], [plain(line) for line in words], RESEARCH)


def _cell(source: Source, frames: Sequence[DrawnFrame], radiographs: Radiographs) -> Picture:
    """A small image with its words below it, always of one width."""
    frames_of_source = [frame for frame in frames if frame.source is source]
    square = np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8)
    words = unread_image_words(source.image)
    if frames_of_source:
        frame = gravest(frames_of_source)
        small = radiographs.draw_outlines(frame, THUMBNAIL)
        top, left = (THUMBNAIL - small.shape[0]) // 2, (THUMBNAIL - small.shape[1]) // 2
        square[top : top + small.shape[0], left : left + small.shape[1]] = small
        words = finding_words(frame.finding)
    return stack([square, strip(THUMBNAIL, [plain(f"Image {source.image.number}"), plain(words)], size=12)])


def _put_beside(pictures: Sequence[Picture]) -> Picture:
    height = max(picture.shape[0] for picture in pictures)
    return np.hstack([np.pad(one, ((0, height - one.shape[0]), (0, 8), (0, 0))) for one in pictures])


def _source(source: Source, frames: Sequence[int] = ()) -> Dataset:
    item = reference_item(source, frames)
    item.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE)]
    return item


def _capture(inputs: ResultInput, kind: ResultKind, source: Source, picture: Picture, number: int) -> Dataset:
    made = begin_object(inputs, kind, source, SecondaryCaptureImageStorage, inputs.site.modality, number)
    made.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    made.ConversionType = "WSD"
    made.BurnedInAnnotation, made.RecognizableVisualFeatures = "YES", "NO"
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.Rows, made.Columns = picture.shape[:2]
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    raw = np.ascontiguousarray(picture).tobytes()
    made.PixelData = raw + b"\0" * (len(raw) % 2)
    made["PixelData"].VR = "OB"
    return made


def _copy_geometry(made: Dataset, source: Source, picture: Picture) -> None:
    """Which side, which way round, how lossy and how large the anatomy is, as the source says it.

    The side is the image's own attribute, for the series may hold both sides.
    """
    if source.side:
        made.ImageLaterality = source.side
    else:
        made.Laterality = ""
    orientation = value_of(source.header, "PatientOrientation")
    made.PatientOrientation = orientation if orientation and len(orientation) == 2 else ""
    for keyword in LOSSY:
        if keyword in source.header:
            made[keyword] = source.header[keyword]
    spacing = _numbers(source, "PixelSpacing")
    if spacing:
        rows, columns = (int(value_of(source.header, name)) for name in ("Rows", "Columns"))
        down, across = spacing[0] * rows / picture.shape[0], spacing[1] * columns / picture.shape[1]
        made.PixelSpacing = [f"{down:.8g}", f"{across:.8g}"]
        for keyword in ("PixelSpacingCalibrationType", "PixelSpacingCalibrationDescription"):
            if keyword in source.header:
                made[keyword] = source.header[keyword]


def _numbers(source: Source, keyword: str) -> list[float]:
    """Two positive numbers; none where the header does not have them."""
    try:
        found = decimals(source.header, keyword)
    except Exception:  # noqa: BLE001 - whatever stands there is no spacing
        return []
    return found if len(found) == 2 and all(0 < one < 1e6 for one in found) else []
