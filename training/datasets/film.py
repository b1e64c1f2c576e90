"""The one table that every data set becomes, the split of it, and how a film is read."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.errors import BadDataset, Rejected
from shared.findings import ExposedField
from shared.vision.pixels import open_pixels
from shared.vision.radiograph import Radiograph, of_picture, radiograph
from shared.vision.tensors import content_box

REGIONS = ("hand", "elbow", "shoulder", "hip", "leg")
MISSING = -1

Outline = npt.NDArray[np.float32]  # (N, 2), x and y in 0..1 of the film

_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # how JPEG and PNG files begin
_EXIF_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Film:
    """One labelled radiograph; what a data set does not say is MISSING."""

    path: Path
    block: str  # films of one block (patient, or neighbours in id order) never stand on both sides of a split
    region: int  # index into REGIONS, or MISSING
    fractured: int  # 0, 1 or MISSING
    severity: int  # 0 none .. 3 severe, by the proxy that its adapter describes, or MISSING
    hardware: int  # 0, 1 or MISSING
    original_size: tuple[int, int]  # (width, height) of the source film, pixels
    outlines: list[Outline] = field(default_factory=list)
    weight: float = 1.0  # of this film in the losses
    source: str = ""  # kind of data set it is from: fracatlas, mura, grazpedwri, csv, dicom


def split(films: list[Film], seed: int, held_out: float = 0.2) -> tuple[list[Film], list[Film]]:
    """Divide by block into (training, validation); the same seed gives the same split.

    Each source is divided by itself: a data set has the same validation films alone and beside others, and every
    one of them is measured.
    """
    # csv and dicom films of one table share patients, so a block belongs to one source only
    source_of: dict[str, str] = {}
    for film in films:
        source_of[film.block] = min(film.source, source_of.get(film.block, film.source))
    kept_out: set[str] = set()
    for source in set(source_of.values()):
        blocks = sorted(block for block, its in source_of.items() if its == source)
        random.Random(seed).shuffle(blocks)
        kept_out.update(blocks[: max(1, round(len(blocks) * held_out))])
    return [f for f in films if f.block not in kept_out], [f for f in films if f.block in kept_out]


def read_film(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """The square of `read_exposed`."""
    return read_exposed(path, size)[0]


def read_exposed(path: Path, size: int) -> tuple[npt.NDArray[np.uint8], ExposedField]:
    """Prepare one film as the worker does: (size, size) uint8, and which part of the film that is.

    path: JPEG or PNG of 8 or 16 bits (colour is turned gray), or DICOM, whose first frame is taken.
    Raises BadDataset, naming the file, if it cannot be read.
    """
    seen = _read(path)
    return seen.square(size), seen.field


def _read(path: Path) -> Radiograph:
    try:
        data = path.read_bytes()
        if _says_dicom(path, data):
            return radiograph(open_pixels(data), 0)
    except (OSError, Rejected) as wrong:
        raise BadDataset(f"{path} is not a readable image: {wrong}") from wrong
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
    """Whether a film is DICOM: by its DICM mark, or by its name (.dcm, or no extension) where it is no JPEG or PNG.

    Raises OSError.
    """
    with path.open("rb") as file:
        return _says_dicom(path, file.read(132))


def _says_dicom(path: Path, data: bytes) -> bool:
    if data[128:132] == b"DICM":
        return True
    return path.suffix.lower() in ("", ".dcm") and not data.startswith(_PICTURES)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels as read_film sees the film, from its header alone.

    Raises BadDataset, naming the file, if it has no readable header.
    """
    try:
        if is_dicom(path):
            source = open_pixels(path.read_bytes())
            return source.columns, source.rows
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            # asking a PNG without EXIF for it would decode the whole film
            lying = "exif" in image.info and image.getexif().get(_EXIF_ORIENTATION) in _LYING
            width, height = image.size
            return (height, width) if lying else (width, height)
    # Pillow raises SyntaxError for broken PNG chunks
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Rejected) as wrong:
        raise BadDataset(f"{path} is not a readable image: {wrong}") from wrong


def corners(left: float, top: float, right: float, bottom: float) -> Outline:
    """A box as an outline: (4, 2)."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def yolo_box(parts: Sequence[str]) -> Outline:
    """A YOLO box, cx cy w h in 0..1, as an outline: (4, 2). Raises ValueError if these are not its four numbers."""
    try:
        cx, cy, w, h = (float(part) for part in parts)
    except ValueError:
        raise ValueError(f"box '{' '.join(parts)}' is not four numbers: cx cy w h") from None
    if not (0 <= cx <= 1 and 0 <= cy <= 1 and 0 < w <= 1 and 0 < h <= 1):
        raise ValueError(f"box '{' '.join(parts)}' does not lie in the film: cx cy w h are shares of it, 0..1")
    return corners(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)


def in_square(
    points: npt.NDArray[np.floating], film: Film, size: int, field: ExposedField | None
) -> npt.NDArray[np.floating]:
    """Points (N, 2) of a film, x and y in 0..1 of it, in pixels of its prepared square.

    field: what the square shows of the film, None for all of it.
    """
    width, height = film.original_size
    shown = field or ExposedField.whole(height, width)
    top, left, fitted_h, fitted_w = content_box(shown.height, shown.width, size)
    begin_x, begin_y, wide, high = shown.shares
    return (points - [begin_x, begin_y]) / [wide, high] * [fitted_w, fitted_h] + [left, top]


def outline_mask(
    film: Film, size: int, field: ExposedField | None = None, *, boxes: bool = False
) -> npt.NDArray[np.uint8]:
    """Where the fractures are, in the prepared square: (size, size) uint8, 255 inside.

    field: as `in_square` has it.
    boxes: fill the boxes around the outlines instead, as the pointing game counts.
    """
    mask = np.zeros((size, size), np.uint8)
    if film.outlines:
        outlines = [corners(*o.min(0), *o.max(0)) for o in film.outlines] if boxes else film.outlines
        rings = [np.rint(in_square(o, film, size, field)).astype(np.int32) for o in outlines]
        cv2.fillPoly(mask, rings, 255)
    return mask
