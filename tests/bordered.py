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
COLOURS = ("white", "black")


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

    @property
    def value(self) -> int:
        """Of its pixels, bone is the greater."""
        return TOP if self.colour == "white" else 0


def any_border(dice: np.random.Generator) -> Border:
    """A border of any kind: one to four sides, 2 to 30 % each."""
    sides = dice.random(4) < 0.5
    sides[dice.integers(4)] = True
    widths = np.where(sides, dice.uniform(0.02, 0.3, 4), 0)
    return Border(
        shape=str(dice.choice(SHAPES)),
        colour=str(dice.choice(COLOURS)),
        widths=tuple(float(width) for width in widths),  # type: ignore[arg-type]
        lean=float(dice.choice([-1, 1]) * dice.uniform(0.3, 1.5)),
        corner=float(dice.uniform(0.03, 0.12)),
        padded=bool(dice.random() < 0.3),
        mirrored=bool(dice.random() < 0.5),
    )


def bordered(image: Stored, border: Border) -> Stored:
    """image: (H, W), bone is the greater. Returns it with the border around it."""
    height, width = image.shape
    top, bottom, left, right = (
        round(share * side) for share, side in zip(border.widths, (height, height, width, width), strict=True)
    )
    if border.shape == "rotated":  # the canvas grows by what the turned image needs
        slant = np.deg2rad(abs(border.lean))
        more_y, more_x = (int(np.ceil(np.sin(slant) * side / 2)) for side in (width, height))
        top, bottom, left, right = top + more_y, bottom + more_y, left + more_x, right + more_x
    out = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=border.value)
    if border.shape == "rotated":
        turn = cv2.getRotationMatrix2D((left + width / 2, top + height / 2), border.lean, 1)
        size = (out.shape[1], out.shape[0])
        out = cv2.warpAffine(out, turn, size, flags=cv2.INTER_LINEAR, borderValue=border.value)
    elif border.shape != "straight":
        open_ = np.zeros(out.shape, np.uint8)
        _open(open_[top : top + height, left : left + width], border)
        out = np.where(open_ > 0, out, np.uint16(border.value))
    return np.asarray(out, np.uint16)


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
    """A CR file of 12 bits. image: (H, W), bone is the greater; border: what its header says of it; more: attributes."""
    mirrored = border is not None and border.mirrored
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
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    if border is not None and border.padded:
        ds.add_new("PixelPaddingValue", "US", TOP - border.value if mirrored else border.value)
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    ds.PixelData = (TOP - image if mirrored else image).astype("<u2").tobytes()
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()
