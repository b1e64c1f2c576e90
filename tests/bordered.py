"""Radiographs with borders added outside, as scanners, collimators and programs leave them, and as DICOM files."""

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

Stored = npt.NDArray[np.uint16]  # (H, W)
TOP = 4095  # of 12 bits
SHAPES = ("straight", "leaning", "rotated", "rounded", "octagonal")
COLOURS = {"white": 1.0, "black": 0.0, "gray": 0.45}  # in parts of the range
FILLS = ("flat", "gradient", "noise", "letters")


@dataclass(frozen=True)
class Border:
    """How a border looks."""

    shape: str  # one of SHAPES
    colour: str  # one of COLOURS
    widths: tuple[float, float, float, float]  # top, bottom, left, right, in shares of the image's side
    lean: float  # degrees: of the border's edges, or of the image within it
    corner: float  # radius or length of the corners, in shares of the shorter side
    padded: bool  # whether the header calls its value padding
    mirrored: bool  # MONOCHROME1
    fill: str = "flat"  # one of FILLS
    seed: int = 0  # of noise, letters and the direction of a gradient
    bits: int = 12  # Bits Stored
    window: tuple[float, float] | None = None  # centre and width, in parts of the range; None: the file has none

    @property
    def value(self) -> int:
        """Of its pixels, bone is the greater; that of most where the border is not flat."""
        return round(TOP * COLOURS[self.colour])

    @property
    def kind(self) -> str:
        """What is counted by itself: how the border is filled where it is straight, else its shape."""
        return f"{self.shape}, {self.fill}" if self.shape == "straight" else self.shape


def any_border(rng: np.random.Generator, shape: str | None = None, fill: str | None = None) -> Border:
    """A border of any kind: one to four sides, 2 to 30 % each. shape, fill: None for any.

    A third of the borders are thin, 2 to 4 % at each side that has one. An image is turned by up to 10 degrees.
    """
    sides = rng.random(4) < 0.5
    sides[rng.integers(4)] = True
    most = 0.04 if rng.random() < 1 / 3 else 0.3
    widths = np.where(sides, rng.uniform(0.02, most, 4), 0)
    shape = str(rng.choice(SHAPES)) if shape is None else shape
    fill = str(rng.choice(FILLS)) if fill is None else fill
    turn = rng.uniform(0.3, 1.5) if shape != "rotated" or rng.random() < 0.4 else rng.uniform(1, 10)
    level, width = rng.uniform(0.3, 0.7), rng.uniform(0.3, 1.5)
    return Border(
        shape=shape,
        colour=str(rng.choice(["white", "black", "white", "black", "gray"])),
        widths=tuple(float(width) for width in widths),  # type: ignore[arg-type]
        lean=float(rng.choice([-1, 1]) * turn),
        corner=float(rng.uniform(0.03, 0.12)),
        padded=bool(rng.random() < 0.3) and fill == "flat",
        mirrored=bool(rng.random() < 0.5),
        fill=fill,
        seed=int(rng.integers(2**31)),
        bits=int(rng.choice([8, 10, 12, 14, 16])),
        window=(level, width) if rng.random() < 0.5 else None,
    )


def bordered(image: Stored, border: Border) -> Stored:
    """image: (H, W) of 12 bits, bone is the greater. Returns it with the border around it."""
    height, width = image.shape
    top, bottom, left, right = (
        round(share * side) for share, side in zip(border.widths, (height, height, width, width), strict=True)
    )
    if border.shape == "rotated":  # the canvas grows by what the turned image needs
        slant = np.deg2rad(abs(border.lean))
        beyond = np.sin(slant) * width + np.cos(slant) * height, np.sin(slant) * height + np.cos(slant) * width
        more_y, more_x = (max(0, int(np.ceil((to - side) / 2))) for to, side in zip(beyond, image.shape, strict=True))
        top, bottom, left, right = top + more_y, bottom + more_y, left + more_x, right + more_x
    whole = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0).astype(np.float64)
    open_ = np.zeros(whole.shape, np.uint8)
    if border.shape in ("straight", "rotated"):
        open_[top : top + height, left : left + width] = 1
    else:
        _open(open_[top : top + height, left : left + width], border)
    shown, share = whole * open_, open_.astype(np.float64)
    if border.shape == "rotated":
        turn = cv2.getRotationMatrix2D((left + (width - 1) / 2, top + (height - 1) / 2), border.lean, 1)
        shown, share = (
            np.asarray(cv2.warpAffine(part, turn, part.shape[::-1], flags=cv2.INTER_LINEAR), np.float64)
            for part in (shown, share)
        )
    out = shown + (1 - share) * _filling(whole.shape, border, (top, bottom, left, right))
    return np.rint(np.clip(out, 0, TOP)).astype(np.uint16)


def _filling(shape: tuple[int, ...], border: Border, widths: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """What the border looks like where it is seen, (H, W) of 12 bits. widths: of the sides, pixels."""
    rng = np.random.default_rng(border.seed)
    out = np.full(shape, float(border.value))
    if border.fill == "gradient":
        y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
        direction = rng.uniform(0, 2 * np.pi)
        slope = np.cos(direction) * (x - x.mean()) + np.sin(direction) * (y - y.mean())
        out += TOP * rng.uniform(0.03, 0.15) * (slope - (slope.max() if border.colour == "white" else slope.min()))
    elif border.fill == "noise":
        out += rng.normal(0, TOP * rng.uniform(0.002, 0.015), shape)
    elif border.fill == "letters":
        size = max(widths)
        side = widths.index(size)
        room_y, room_x = (size, shape[1]) if side < 2 else (shape[0], size)
        text = str(rng.choice(["L", "R 2", "AP 12:31", "LAT"]))
        (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1, 1)
        scale = min(1.2, 0.7 * room_y / high, 0.7 * room_x / wide)
        wide, high = round(wide * scale), round(high * scale)
        y = int(rng.integers(0, max(1, room_y - high))) + high + (shape[0] - size if side == 1 else 0)
        x = int(rng.integers(0, max(1, room_x - wide))) + (shape[1] - size if side == 3 else 0)
        ink = np.zeros(shape, np.uint8)
        cv2.putText(ink, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, 1, max(1, round(scale)))
        out[ink > 0] = 0 if border.value > TOP / 2 else TOP
    return np.asarray(np.clip(out, 0, TOP), np.float64)


def _open(area: npt.NDArray[np.uint8], border: Border) -> None:
    """Write 1 where the image is to be seen."""
    height, width = area.shape
    cut = round(border.corner * min(height, width))
    if border.shape == "leaning":  # the sides that have a border lean inwards from one end
        top, bottom, left, right = (width * bool(border.widths[0]), width * bool(border.widths[1]),
                                    height * bool(border.widths[2]), height * bool(border.widths[3]))  # fmt: skip
        slant = np.tan(np.deg2rad(abs(border.lean)))
        down, up, inwards, back = (side * slant for side in (top, bottom, left, right))
        corners = [(inwards, 0), (width - 1, down), (width - 1 - back, height - 1), (0, height - 1 - up)]
        cv2.fillPoly(area, [np.rint(np.array(corners)).astype(np.int32)], 1)
    elif border.shape == "octagonal":
        w, h = width - 1, height - 1
        ring = [(cut, 0), (w - cut, 0), (w, cut), (w, h - cut), (w - cut, h), (cut, h), (0, h - cut), (0, cut)]
        cv2.fillPoly(area, [np.array(ring, np.int32)], 1)
    else:
        cv2.rectangle(area, (cut, 0), (width - 1 - cut, height - 1), 1, -1)
        cv2.rectangle(area, (0, cut), (width - 1, height - 1 - cut), 1, -1)
        for x in (cut, width - 1 - cut):
            for y in (cut, height - 1 - cut):
                cv2.circle(area, (x, y), cut, 1, -1)


def as_dicom(image: Stored, border: Border | None = None, **more: Any) -> bytes:
    """A CR file. image: (H, W) of 12 bits, bone is the greater; border: what its header says of it; more: attributes."""
    mirrored = border is not None and border.mirrored
    bits = 12 if border is None else border.bits
    top = (1 << bits) - 1
    stored = image if bits == 12 else np.rint(image * (top / TOP)).astype(np.uint16)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid(entropy_srcs=["bordered"])
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["bordered study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["bordered series"])
    ds.Modality, ds.SamplesPerPixel = "CR", 1
    ds.PhotometricInterpretation = "MONOCHROME1" if mirrored else "MONOCHROME2"
    ds.Rows, ds.Columns = image.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, 0
    if border is not None and border.padded:
        padding = round(border.value * (top / TOP))
        ds.add_new("PixelPaddingValue", "US", top - padding if mirrored else padding)
    if border is not None and border.window is not None:
        centre, width = border.window
        ds.WindowCenter, ds.WindowWidth = round(centre * top), max(2, round(width * top))
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    ds.PixelData = (top - stored if mirrored else stored).astype("<u2").tobytes()
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()
