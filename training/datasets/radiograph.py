"""The one table that every data set becomes, its split, and the reading of a radiograph."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.domain.findings import ExposedField
from shared.errors import BadDataset, Rejected
from shared.pixels.decode import open_pixels
from shared.pixels.radiograph import Radiograph, decode_radiograph, of_picture
from shared.pixels.tensors import content_box

REGIONS = ("hand", "elbow", "shoulder", "hip", "leg")
MISSING = -1

Outline = npt.NDArray[np.float32]  # (N, 2), x and y in 0..1 of the radiograph

_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # how JPEG and PNG files begin
_EXIF_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class LabelledRadiograph:
    """One labelled radiograph; what a data set does not say is MISSING."""

    path: Path
    block: str  # radiographs of one block (patient, or neighbours in id order) never stand on both sides of a split
    region: int  # index into REGIONS, or MISSING
    fractured: int  # 0, 1 or MISSING
    extent: int  # 0 none .. 3 severe, by the proxy that its adapter describes, or MISSING
    hardware: int  # 0, 1 or MISSING
    original_size: tuple[int, int]  # (width, height) of the source radiograph, pixels
    outlines: list[Outline] = field(default_factory=list)
    weight: float = 1.0  # of this radiograph in the losses
    source: str = ""  # kind of data set it is from: fracatlas, mura, grazpedwri, csv, dicom


def split(
    radiographs: list[LabelledRadiograph], seed: int, held_out: float = 0.2
) -> tuple[list[LabelledRadiograph], list[LabelledRadiograph]]:
    """Divide by block into training and validation; the same seed gives the same split.

    Each source is divided by itself: a data set has the same validation radiographs alone and beside others, and every
    one of them is measured.

    Args:
        radiographs: of one or more data sets.
        seed: decides which blocks are held out.
        held_out: share of the blocks of each source, 0..1; one block at least is held out.

    Returns:
        Training radiographs, then validation radiographs.
    """
    # csv and dicom radiographs of one table share patients, so a block belongs to one source only
    source_of: dict[str, str] = {}
    for radiograph in radiographs:
        source_of[radiograph.block] = min(radiograph.source, source_of.get(radiograph.block, radiograph.source))
    kept_out: set[str] = set()
    for source in set(source_of.values()):
        blocks = sorted(block for block, its in source_of.items() if its == source)
        random.Random(seed).shuffle(blocks)
        kept_out.update(blocks[: max(1, round(len(blocks) * held_out))])
    return [f for f in radiographs if f.block not in kept_out], [f for f in radiographs if f.block in kept_out]


def read_radiograph(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Read the square of `read_exposed` alone.

    Args:
        path: JPEG, PNG or DICOM.
        size: side of the square, pixels.

    Returns:
        (size, size) uint8.
    """
    return read_exposed(path, size)[0]


def read_exposed(path: Path, size: int) -> tuple[npt.NDArray[np.uint8], ExposedField]:
    """Prepare one radiograph as the worker does.

    Args:
        path: JPEG or PNG of 8 or 16 bits (colour is turned gray), or DICOM, whose first frame is taken.
        size: side of the square, pixels.

    Returns:
        (size, size) uint8, and which part of the radiograph that is.

    Raises:
        BadDataset: The file cannot be read; names it.
    """
    seen = _read(path)
    return seen.square(size), seen.field


def _read(path: Path) -> Radiograph:
    try:
        data = path.read_bytes()
        if _says_dicom(path, data):
            return decode_radiograph(open_pixels(data), 0)
    except (OSError, Rejected) as error:
        raise BadDataset(f"{path} is not a readable image: {error}") from error
    image = _picture(data)
    if image is None:
        raise BadDataset(f"{path} is not a readable image: mend it, or take its row out of the table")
    return of_picture(image)


def _picture(data: bytes) -> npt.NDArray[np.number] | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # no bytes at all, or far too many pixels
        return None


def is_dicom(path: Path) -> bool:
    """Decide whether a radiograph is DICOM: by its DICM mark, or by its name where it is no JPEG or PNG.

    Args:
        path: a file; .dcm or no extension counts as a name of DICOM.

    Returns:
        True for DICOM.

    Raises:
        OSError: The file cannot be opened.
    """
    with path.open("rb") as file:
        return _says_dicom(path, file.read(132))


def _says_dicom(path: Path, data: bytes) -> bool:
    if data[128:132] == b"DICM":
        return True
    return path.suffix.lower() in ("", ".dcm") and not data.startswith(_PICTURES)


def image_size(path: Path) -> tuple[int, int]:
    """Read the size of a radiograph as `read_radiograph` sees it, from its header alone.

    Args:
        path: JPEG, PNG or DICOM.

    Returns:
        (width, height) in pixels, turned as EXIF says.

    Raises:
        BadDataset: The file has no readable header; names it.
    """
    try:
        if is_dicom(path):
            source = open_pixels(path.read_bytes())
            return source.columns, source.rows
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            # asking a PNG without EXIF for it would decode the whole radiograph
            lying = "exif" in image.info and image.getexif().get(_EXIF_ORIENTATION) in _LYING
            width, height = image.size
            return (height, width) if lying else (width, height)
    # Pillow raises SyntaxError for broken PNG chunks
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Rejected) as error:
        raise BadDataset(f"{path} is not a readable image: {error}") from error


def corners(left: float, top: float, right: float, bottom: float) -> Outline:
    """Turn a box into an outline.

    Args:
        left: least x.
        top: least y.
        right: greatest x.
        bottom: greatest y.

    Returns:
        (4, 2) float32, clockwise from the top left corner, in the unit of the arguments.
    """
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def yolo_box(parts: Sequence[str]) -> Outline:
    """Convert a YOLO box, cx cy w h in 0..1, to an outline, (4, 2); raises ValueError for anything else."""
    try:
        cx, cy, w, h = (float(part) for part in parts)
    except ValueError:
        raise ValueError(f"box '{' '.join(parts)}' is not four numbers: cx cy w h") from None
    if not (0 <= cx <= 1 and 0 <= cy <= 1 and 0 < w <= 1 and 0 < h <= 1):
        raise ValueError(f"box '{' '.join(parts)}' does not lie in the radiograph: cx cy w h are shares of it, 0..1")
    return corners(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)


def in_square(
    points: npt.NDArray[np.floating], radiograph: LabelledRadiograph, size: int, field: ExposedField | None
) -> npt.NDArray[np.floating]:
    """Convert points of a radiograph to pixels of its prepared square.

    Args:
        points: (N, 2), x and y in 0..1 of the radiograph.
        radiograph: the points are on it.
        size: side of the square, pixels.
        field: what the square shows of the radiograph; None for all of it.

    Returns:
        (N, 2), x and y in pixels; points that the square does not show lie outside 0..size.
    """
    width, height = radiograph.original_size
    shown = field or ExposedField.whole(height, width)
    top, left, fitted_h, fitted_w = content_box(shown.height, shown.width, size)
    begin_x, begin_y, wide, high = shown.shares
    if shown.turn:
        sine, cosine = math.sin(math.radians(shown.turn / 1000)), math.cos(math.radians(shown.turn / 1000))
        pixels = [shown.columns, shown.rows]
        middle = np.array([begin_x + wide / 2, begin_y + high / 2]) * pixels
        points = ((points * pixels - middle) @ [[cosine, -sine], [sine, cosine]] + middle) / pixels
    return (points - [begin_x, begin_y]) / [wide, high] * [fitted_w, fitted_h] + [left, top]


def outline_mask(
    radiograph: LabelledRadiograph, size: int, field: ExposedField | None = None, *, boxes: bool = False
) -> npt.NDArray[np.uint8]:
    """Draw where the fractures are, in the prepared square.

    Args:
        radiograph: with outlines or without.
        size: side of the square, pixels.
        field: what the square shows of the radiograph; None for all of it.
        boxes: fill the boxes around the outlines instead, as the pointing game counts.

    Returns:
        (size, size) uint8, 255 inside.
    """
    mask = np.zeros((size, size), np.uint8)
    if radiograph.outlines:
        outlines = [corners(*o.min(0), *o.max(0)) for o in radiograph.outlines] if boxes else radiograph.outlines
        rings = [np.rint(in_square(o, radiograph, size, field)).astype(np.int32) for o in outlines]
        cv2.fillPoly(mask, rings, 255)
    return mask
