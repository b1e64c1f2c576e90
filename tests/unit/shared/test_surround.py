"""What the header tells of padding, shutters and proportions, and what becomes of it."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGBaseline8Bit

from shared.pixels.decode import open_pixels
from shared.pixels.radiograph import Radiograph, decode_radiograph
from shared.pixels.tensors import content_box
from tests.bordered import TOP, Border, as_dicom, bordered
from tests.unit.shared.test_exposure import PLAIN, limb

FIELD_REPORTS = Path(__file__).parents[2] / "data/field_reports"


def seen(content: bytes) -> Radiograph:
    return decode_radiograph(open_pixels(content), 0)


def padded(value: int, *, signed: bool = False, bits: int = 16, vr: str = "US", **more: Any) -> bytes:
    """The limb of 12 bits with a border of `value`, which is called padding."""
    image = cv2.copyMakeBorder(limb().astype(np.int32), 20, 30, 40, 10, cv2.BORDER_CONSTANT, value=value)
    ds = pydicom.dcmread(io.BytesIO(as_dicom(image.astype(np.uint16))))
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(signed)
    ds.PixelData = image.astype("<i2" if signed else "<u2").tobytes()
    said = value & 0xFFFF if vr == "US" else value
    ds.add_new("PixelPaddingValue", vr, said)
    for keyword, number in more.items():
        ds.add_new(keyword, vr, number)
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("value", "signed", "bits", "vr"),
    [
        (0, False, 16, "US"),
        (4095, False, 12, "US"),
        (65535, False, 16, "US"),
        (-2000, True, 16, "SS"),
        (-2000, True, 16, "US"),  # written as US where SS was meant
        (-32768, True, 16, "SS"),
    ],
)
def test_padding_is_no_part_of_the_radiograph(value: int, signed: bool, bits: int, vr: str) -> None:
    """Window, field and square are those of the image without it; the preview shows it black."""
    twin = seen(as_dicom(limb()))
    found = seen(padded(value, signed=signed, bits=bits, vr=vr))
    np.testing.assert_array_equal(found.square(128), twin.square(128))
    source = open_pixels(padded(value, signed=signed, bits=bits, vr=vr))
    shown = found.preview(source, 0, 1024)
    assert not shown[:20].any() and not shown[-30:].any() and not shown[:, :40].any() and not shown[:, -10:].any()
    inner = open_pixels(as_dicom(limb()))
    np.testing.assert_allclose(shown[20:-30, 40:-10].astype(int), twin.preview(inner, 0, 1024), atol=1)


def test_a_range_of_values_is_padding() -> None:
    """Pixel Padding Range Limit: all values between, whichever is named first."""
    image = limb().astype(np.int32) + 1000
    around = cv2.copyMakeBorder(image, 30, 30, 30, 30, cv2.BORDER_CONSTANT, value=0)
    around[:30] = np.arange(around.shape[1]) % 200
    twin = seen(as_dicom(image.astype(np.uint16)))
    for first, last in ((0, 199), (199, 0)):
        content = as_dicom(around.astype(np.uint16), PixelPaddingValue=first, PixelPaddingRangeLimit=last)
        np.testing.assert_array_equal(seen(content).square(128), twin.square(128))


def test_the_value_within_the_anatomy_stays() -> None:
    """A spot of the padding value that does not reach the edge is image."""
    image = limb()
    image[100:110, 120:130] = 0
    border = Border("straight", "black", (0.1,) * 4, 0, 0, padded=True, mirrored=False)
    found = seen(as_dicom(bordered(image, border), border))
    assert found.padded is not None
    top, left = 30, 24
    assert not found.padded[top + 100 : top + 110, left + 120 : left + 130].any()
    assert (found.image[top + 100 : top + 110, left + 120 : left + 130] == 0).all()


def test_padding_survives_lossy_compression() -> None:
    """A lossy stream makes neighbours of the value: they are padding, too."""
    image = np.rint(limb() / 16).astype(np.uint8)
    around = cv2.copyMakeBorder(image, 24, 24, 24, 24, cv2.BORDER_CONSTANT, value=255)
    _, stream = cv2.imencode(".jpg", around, [cv2.IMWRITE_JPEG_QUALITY, 85])
    ds = pydicom.dcmread(io.BytesIO(as_dicom(around.astype(np.uint16))))
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = pydicom.encaps.encapsulate([stream.tobytes()])
    ds["PixelData"].VR = "OB"
    ds.add_new("PixelPaddingValue", "US", 255)
    out = io.BytesIO()
    ds.save_as(out)
    box = seen(out.getvalue()).exposure.box
    assert (box.top, box.left) == pytest.approx((24, 24), abs=2)
    assert (box.height, box.width) == pytest.approx(image.shape, abs=4)


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_padding_value_is_none(value: Any) -> None:
    """The element without a value says nothing."""
    assert seen(as_dicom(limb(), PixelPaddingValue=value)).padded is None


def test_a_rectangular_shutter_is_the_field() -> None:
    """Rows and columns count from 1, and the edges belong to what is seen."""
    more: dict[str, Any] = {
        "ShutterShape": "RECTANGULAR",
        "ShutterUpperHorizontalEdge": 41,
        "ShutterLowerHorizontalEdge": 260,
        "ShutterLeftVerticalEdge": 31,
        "ShutterRightVerticalEdge": 200,
    }
    found = seen(as_dicom(limb(), **more))
    box = found.exposure.box
    assert (box.top, box.left, box.height, box.width) == (40, 30, 220, 170)
    assert found.padded is None  # it can be lifted


def enhanced(shutters: list[dict[str, Any]], *, per_frame: bool) -> bytes:
    """Two frames whose shutters stand in functional groups: one each, or the first for both."""
    ds = pydicom.dcmread(io.BytesIO(as_dicom(limb())))
    ds.NumberOfFrames, ds.PixelData = 2, ds.PixelData * 2
    groups = []
    for attributes in shutters:
        shutter, group = pydicom.Dataset(), pydicom.Dataset()
        for keyword, value in attributes.items():
            setattr(shutter, keyword, value)
        group.FrameDisplayShutterSequence = [shutter]
        groups.append(group)
    if per_frame:
        ds.PerFrameFunctionalGroupsSequence = groups
    else:
        ds.SharedFunctionalGroupsSequence = groups[:1]
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


RECTANGLE = (
    ("UpperHorizontalEdge", 41),
    ("LowerHorizontalEdge", 260),
    ("LeftVerticalEdge", 31),
    ("RightVerticalEdge", 200),
)


def blades(kind: str, more: int = 0) -> dict[str, Any]:
    """A rectangular shutter, or a collimator, `more` pixels further down."""
    edges = {f"{kind}{name}": place + (more if "Horizontal" in name else 0) for name, place in RECTANGLE}
    return {f"{kind}Shape": "RECTANGULAR", **edges}


@pytest.mark.parametrize("per_frame", [True, False])
def test_a_shutter_in_functional_groups_is_its_frames(per_frame: bool) -> None:
    """Frame Display Shutter Sequence, PS3.3 C.7.6.16.2.16: of each frame, or shared."""
    source = open_pixels(enhanced([blades("Shutter"), blades("Shutter", 20)], per_frame=per_frame))
    tops = [decode_radiograph(source, i).exposure.box.top for i in range(2)]
    assert tops == ([40, 60] if per_frame else [40, 40])


def test_a_collimators_edges_are_the_field() -> None:
    """X-Ray Collimator, PS3.3 C.8.7.3: what lies beyond its edges holds scatter only."""
    image = limb()
    dimmed = np.full_like(image, 300) + np.arange(image.shape[1], dtype=np.uint16) % 7 * 9
    dimmed[40:260, 30:200] = image[40:260, 30:200]
    found = seen(as_dicom(dimmed, **blades("Collimator")))
    box = found.exposure.box
    assert (box.top, box.left, box.height, box.width) == (40, 30, 220, 170)


def test_a_collimator_that_would_hide_anatomy_is_not_believed() -> None:
    """Its edges may be told in pixels of an image that was cut since."""
    assert seen(as_dicom(limb(), **blades("Collimator"))).exposure.box.height == 300


def test_a_circular_and_a_polygonal_shutter_cover_their_corners() -> None:
    """The rectangle around the shape is cut out, its corners are covered."""
    circle = seen(
        as_dicom(limb(), ShutterShape="CIRCULAR", CenterOfCircularShutter=[150, 120], RadiusOfCircularShutter=100)
    )
    box, covered = circle.exposure.box, circle.exposure.covered
    assert (box.height, box.width) == pytest.approx((200, 200), abs=8)
    assert covered is not None and 0.15 < covered.mean() < 0.25
    corners = [50, 20, 50, 220, 250, 120]
    triangle = seen(as_dicom(limb(), ShutterShape="POLYGONAL", VerticesOfThePolygonalShutter=corners))
    box, covered = triangle.exposure.box, triangle.exposure.covered
    assert (box.height, box.width) == pytest.approx((200, 200), abs=10)
    assert covered is not None and 0.4 < covered.mean() < 0.55


@pytest.mark.parametrize(
    "more",
    [
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [150, 120], "RadiusOfCircularShutter": 3},
        {"ShutterShape": "RECTANGULAR", "ShutterUpperHorizontalEdge": 200, "ShutterLowerHorizontalEdge": 100,
         "ShutterLeftVerticalEdge": 1, "ShutterRightVerticalEdge": 100},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 2, 3]},
        {"ShutterShape": "RECTANGULAR"},
    ],
)  # fmt: skip
def test_a_shutter_without_meaning_is_passed_over(more: dict[str, Any]) -> None:
    """One that covers nearly everything, is the wrong way round, or lacks numbers."""
    assert seen(as_dicom(limb(), **more)).exposure.box.height == 300


@pytest.mark.parametrize(
    ("more", "stretch"),
    [
        ({"PixelAspectRatio": [1, 2]}, 0.5),
        ({"PixelAspectRatio": [2, 1]}, 2.0),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, 0.5),
        ({"PixelSpacing": [0.2, 0.2], "PixelAspectRatio": [1, 2]}, 1.0),  # a spacing tells more
        ({"PixelSpacing": [0.2, 0.2001]}, 1.0),
        ({"PixelAspectRatio": [0, 1]}, 1.0),
        ({"PixelAspectRatio": [1, 50]}, 1.0),
        ({}, 1.0),
    ],
)
def test_the_proportions_of_a_pixel(more: dict[str, Any], stretch: float) -> None:
    """Spacing or Pixel Aspect Ratio, in this order; what has no meaning is square."""
    assert seen(as_dicom(limb(), **more)).stretch == pytest.approx(stretch)


def test_pixels_that_are_not_square_are_shown_and_read_in_true_proportions() -> None:
    """Every second column left away and said so: square and preview are those of the whole radiograph, but for sharpness."""
    image = limb(300, 240)
    halved = (image[:, ::2].astype(np.uint32) + image[:, 1::2]).astype(np.float64) / 2
    content = as_dicom(np.rint(halved).astype(np.uint16), PixelAspectRatio=[1, 2])
    squashed, twin = seen(content), seen(as_dicom(image))
    field = squashed.field
    assert (field.rows, field.columns, field.height, field.width) == (300, 240, 300, 240)
    shown = squashed.preview(open_pixels(content), 0, 1024)
    assert shown.shape == (300, 240)
    top, left, height, width = content_box(300, 240, 128)
    square = squashed.square(128)
    assert square[top : top + height, left : left + width].any(0).all() and not square[:, :left].any()
    assert np.abs(square.astype(int) - twin.square(128)).mean() < 6
    assert np.abs(shown.astype(int) - twin.preview(open_pixels(as_dicom(image)), 0, 1024)).mean() < 6


def test_a_window_goes_by_the_field() -> None:
    """A white border would make everything else dark: the preview's percentiles are taken within the field."""
    image = limb()
    around = bordered(image, PLAIN)
    source = open_pixels(as_dicom(around))
    found = decode_radiograph(source, 0)
    twin = open_pixels(as_dicom(image))
    shown = found.preview(source, 0, 4096)[found.exposure.box.cut]
    np.testing.assert_allclose(shown.astype(int), decode_radiograph(twin, 0).preview(twin, 0, 4096), atol=1)


def test_no_value_is_beyond_the_range() -> None:
    """All bits set in the header where only Bits Stored count in the pixels."""
    border = Border("straight", "white", (0.1,) * 4, 0, 0, padded=False, mirrored=False)
    content = as_dicom(bordered(limb(), border), PixelPaddingValue=65535)
    found = seen(content)
    assert found.padded is not None and found.padded[0].all()
    assert found.image.max() < TOP
