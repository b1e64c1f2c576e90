"""The exposed field: what is cut away around a radiograph, and what never is."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from api.studies.routes import heatmap_png
from shared.domain.findings import Heatmap
from shared.model.predictor import QualityFlag, quality_flag
from shared.pixels.decode import open_pixels
from shared.pixels.exposure import Box, areas_at_edge, find_exposure
from shared.pixels.radiograph import Radiograph, decode_radiograph
from tests.bordered import TOP, Border, Stored, any_border, as_dicom, bordered
from training.datasets.radiograph import LabelledRadiograph, in_square

HERE = Path(__file__).parents[2]
PLAIN = Border("straight", "white", (0.1, 0.2, 0.05, 0.3), 0, 0, padded=False, mirrored=False)


def limb(height: int = 300, width: int = 240) -> Stored:
    """A forearm across the image: grainy background, soft tissue, two bones, cut off at the upper side."""
    rng = np.random.default_rng(7)
    image = np.full((height, width), 500.0)
    left, right = int(width * 0.3), int(width * 0.65)
    image[: int(height * 0.9), left:right] = 1600
    for bone in (0.38, 0.52):
        image[: int(height * 0.85), int(width * bone) : int(width * (bone + 0.08))] = 2900
    image = cv2.GaussianBlur(image, (0, 0), 2) + rng.normal(0, 40, image.shape)
    return np.clip(np.rint(image), 1, TOP - 1).astype(np.uint16)


def field(image: np.ndarray) -> Box:
    return find_exposure(image.astype(np.float32)).box


def test_an_image_without_borders_is_its_own_field() -> None:
    """Nothing is cut off a plain radiograph, whatever its anatomy reaches."""
    image = limb()
    found = find_exposure(image.astype(np.float32))
    assert (found.box, found.covered) == (Box(0, 0, *image.shape), None)


@pytest.mark.parametrize("colour", ["white", "black"])
@settings(max_examples=25, deadline=None)
@given(
    widths=st.tuples(*[st.sampled_from([0.0, 0.02, 0.1, 0.3])] * 4).filter(any),
    turned=st.booleans(),
)
def test_a_flat_border_is_cut_off_to_the_pixel(
    colour: str, widths: tuple[float, float, float, float], turned: bool
) -> None:
    """One to four sides, 2 to 30 %, white or black: what is left is the image, not a line more or less."""
    image = np.ascontiguousarray(np.rot90(limb())) if turned else limb()
    around = bordered(image, replace(PLAIN, colour=colour, widths=widths))
    box = field(around)
    np.testing.assert_array_equal(around[box.cut], image)


def test_sides_of_different_colours_are_cut_off_too() -> None:
    """A white side beside a black one: the corner belongs to one of them."""
    image = limb()
    once = bordered(image, replace(PLAIN, widths=(0.1, 0, 0, 0)))
    twice = bordered(once, replace(PLAIN, colour="black", widths=(0, 0, 0.2, 0.05)))
    np.testing.assert_array_equal(twice[field(twice).cut], image)


@pytest.mark.parametrize("shape", ["leaning", "rounded", "octagonal", "rotated"])
def test_what_remains_in_the_corners_is_covered(shape: str) -> None:
    """A field that is round, has eight sides or lies askew: its corners are no part of the radiograph."""
    border = replace(PLAIN, shape=shape, widths=(0.1,) * 4, lean=1.2, corner=0.1)
    around = bordered(limb(), border)
    found = find_exposure(around.astype(np.float32))
    assert found.covered is not None
    part = around[found.box.cut]
    assert (part[~found.covered] < TOP).mean() > 0.999
    assert found.covered[part == TOP].all()
    assert found.covered.mean() < 0.1


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_an_image_that_was_turned_is_turned_back(seed: int, padded: bool) -> None:
    """By any angle, within borders at any sides: the field is the image, to a small part of a pixel.

    From half a degree on. Of 1,433 borders, each padded and not, 29 cases were found as upright or by more than a tenth
    of a degree off, all of them below that: two pixels at the side of this image.
    """
    border = replace(any_border(np.random.default_rng(seed), "rotated", "flat"), padded=padded)
    assume(abs(border.lean) >= 0.5)
    image = limb()
    around = bordered(image, border)
    seen = decode_radiograph(open_pixels(as_dicom(around, replace(border, bits=12))), 0)
    upright = seen.exposure.upright
    assert upright is not None
    lies = upright.turned
    assert (lies.height, lies.width) == image.shape
    assert lies.angle == pytest.approx(-border.lean, abs=0.1)
    assert np.abs(upright.image[2:-2, 2:-2] - image[2:-2, 2:-2]).mean() < 40  # its own noise is that great
    apart = np.abs(seen.square(128).astype(int) - seen_as_it_is(image).square(128))
    assert (apart > 24).mean() < 0.001 and apart.max() < 64  # a few pixels of an edge are others' neighbours
    field = seen.field
    assert field.turn == pytest.approx(-1000 * border.lean, abs=100)
    assert type(field)(*field.numbers) == field


def test_places_are_carried_over_to_a_field_that_lies_askew() -> None:
    """An outline of the image as it was sent, and the map of what the network reads, meet on the same spot."""
    image = np.random.default_rng(7).normal(500, 40, (300, 240)).astype(np.uint16)
    cv2.circle(image, (70, 60), 5, TOP, -1)
    border = replace(PLAIN, shape="rotated", colour="black", widths=(0.1, 0.02, 0, 0.2), lean=7.0)
    around = bordered(image, border)
    seen = decode_radiograph(open_pixels(as_dicom(around)), 0)
    row, column = np.argwhere(cv2.GaussianBlur(around, (9, 9), 0) == cv2.GaussianBlur(around, (9, 9), 0).max()).mean(0)
    rows, columns = around.shape
    radiograph = LabelledRadiograph(Path("x"), "", 0, 1, 0, 0, (columns, rows))
    at = np.array([[(column + 0.5) / columns, (row + 0.5) / rows]], np.float32)
    x, y = in_square(at, radiograph, 448, seen.field)[0]
    smooth = cv2.GaussianBlur(seen.square(448), (13, 13), 0)
    bright_y, bright_x = np.argwhere(smooth == smooth.max()).mean(0)
    assert (x, y) == pytest.approx((bright_x + 0.5, bright_y + 0.5), abs=2)
    cells = np.zeros((28, 28), np.uint8)
    cells[int(y / 16), int(x / 16)] = 255
    drawn = np.asarray(Image.open(BytesIO(heatmap_png(Heatmap(cells.tobytes(), 28, 28), seen.field))).getchannel("A"))
    there = np.argwhere(drawn == drawn.max()).mean(0) / drawn.shape * around.shape
    assert there == pytest.approx((row, column), abs=16 / 448 * 300)


def seen_as_it_is(image: Stored) -> Radiograph:
    """The image without a border."""
    return decode_radiograph(open_pixels(as_dicom(image)), 0)


@pytest.mark.parametrize("angle", [1.0, -1.5])
def test_a_field_that_a_collimator_left_askew_is_not_turned(angle: float) -> None:
    """Sharp edges that lean a little are a collimator's: anatomy stands upright, the corners are covered."""
    border = replace(PLAIN, shape="leaning", widths=(0.1,) * 4, lean=angle)
    found = find_exposure(bordered(limb(), border).astype(np.float32))
    assert found.upright is None and found.covered is not None


def test_pixels_that_are_not_square_are_not_turned() -> None:
    """A rectangle that was turned before its pixels were squeezed is none any more."""
    border = replace(PLAIN, shape="rotated", widths=(0.1,) * 4, lean=4.0)
    content = as_dicom(bordered(limb(), border), PixelAspectRatio=[1, 2])
    assert decode_radiograph(open_pixels(content), 0).exposure.upright is None


@pytest.mark.parametrize("fill", ["gradient", "noise", "letters"])
@pytest.mark.parametrize("colour", ["white", "gray", "black"])
def test_a_border_that_is_not_of_one_value_is_cut_off(fill: str, colour: str) -> None:
    """It ends where much of a line changes at once; what is left is the image."""
    image = limb()
    for seed in range(3):
        border = replace(PLAIN, fill=fill, colour=colour, seed=seed, widths=(0.1, 0, 0.06, 0.2))
        around = bordered(image, border)
        np.testing.assert_array_equal(around[field(around).cut], image)


def test_a_circle_that_touches_the_sides_is_a_field() -> None:
    """Round collimation has no border at the sides, only corners."""
    image = limb(280, 280)
    y, x = np.mgrid[:280, :280] - 139.5
    image[y * y + x * x > 139**2] = TOP
    found = find_exposure(image.astype(np.float32))
    assert found.box == Box(0, 0, 280, 280) or min(found.box.height, found.box.width) > 270
    assert found.covered is not None and 0.15 < found.covered.mean() < 0.25


def test_bright_anatomy_at_the_edge_stays() -> None:
    """A trunk that fills a lower corner, burnt out, is no border."""
    image = limb()
    cv2.ellipse(image, (240, 300), (150, 110), 0, 0, 360, TOP, -1)
    found = find_exposure(image.astype(np.float32))
    assert (found.box, found.covered) == (Box(0, 0, *image.shape), None)


def test_flat_background_around_anatomy_stays() -> None:
    """Background that a program made one value is not cut down to the anatomy: it changes the scale, and is no border."""
    image = np.full((300, 240), 500, np.uint16)
    cv2.ellipse(image, (120, 150), (40, 100), 0, 0, 360, 2500, -1)
    cv2.ellipse(image, (120, 150), (20, 80), 0, 0, 360, 3500, -1)
    assert field(image) == Box(0, 0, 300, 240)


def test_a_slope_is_no_border() -> None:
    """An image that only grows brighter to one side has no line where a border would end."""
    ramp = np.broadcast_to(np.linspace(200, 3900, 800), (600, 800))
    for image in (ramp, ramp[:, ::-1], ramp.T):
        assert field(np.rint(image).astype(np.uint16)) == Box(0, 0, *image.shape)


@pytest.mark.parametrize("border", ["white", "black", None])
def test_a_negative_stays_one(border: str | None) -> None:
    """Its bright background, though of one value, is no border: it must be found out, not cut away."""
    image = np.full((300, 240), 400, np.uint16)
    for place, turn in ((110, 20), (130, -20)):
        cv2.ellipse(image, (place, 180), (25, 110), turn, 0, 360, 2500, -1)
        cv2.ellipse(image, (place, 180), (12, 90), turn, 0, 360, 3500, -1)
    negative = TOP - image
    around = negative if border is None else bordered(negative, replace(PLAIN, colour=border))
    seen = decode_radiograph(open_pixels(as_dicom(around)), 0)
    assert quality_flag(seen.square(448)) is QualityFlag.INVERTED


@pytest.mark.parametrize("name", ["25-real-tibia/RG3_J2KI.dcm", "26-real-hip/RG2_JLSN.dcm"])
def test_a_collimators_borders_are_found_on_real_radiographs(name: str) -> None:
    """Wide, bright, blurred, leaning and not of one value: cut off, and the middle stays."""
    source = open_pixels((HERE.parent / "samples/studies" / name).read_bytes())
    box = decode_radiograph(source, 0).exposure.box
    assert box.height == source.rows
    left, right = box.left / source.columns, (box.left + box.width) / source.columns
    expected = (0.25, 0.72) if "tibia" in name else (0.11, 0.82)
    assert (left, right) == pytest.approx(expected, abs=0.03)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([1, 2, 3, 4096]),
)
def test_any_image_has_a_field_within_it(shape: tuple[int, int], seed: int, levels: int) -> None:
    """However small, flat or noisy: a rectangle within the image, and the same one each time."""
    image = np.random.default_rng(seed).integers(0, levels, shape).astype(np.float32)
    found, again = find_exposure(image), find_exposure(image)
    box = found.box
    assert box == again.box
    assert 0 <= box.top and 0 <= box.left and box.height >= 1 and box.width >= 1
    assert box.top + box.height <= shape[0] and box.left + box.width <= shape[1]
    assert found.covered is None or (found.covered.shape == (box.height, box.width) and not found.covered.all())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_border_leaves_the_image(seed: int) -> None:
    """Nothing of the image is cut off, for any border; where it is of one value, little of it stays."""
    border = any_border(np.random.default_rng(seed))
    image = limb()
    around = bordered(image, border)
    seen = decode_radiograph(open_pixels(as_dicom(around, border)), 0)
    box, (top, _, left, _) = seen.exposure.box, border.widths
    if border.shape != "rotated":  # there the image itself lies askew
        top, left = round(top * image.shape[0]), round(left * image.shape[1])
        slack = 0.03 * max(image.shape)
        assert box.top <= top + slack and box.left <= left + slack
        assert box.top + box.height >= top + image.shape[0] - slack
        assert box.left + box.width >= left + image.shape[1] - slack
        if border.fill == "flat":
            assert box.height <= image.shape[0] + slack and box.width <= image.shape[1] + slack


def test_only_what_reaches_the_edge_counts() -> None:
    """An island of the same value within the image stays."""
    mask = np.zeros((9, 9), bool)
    mask[0, 3:6] = mask[1, 4] = mask[5, 5] = True
    reached = areas_at_edge(mask)
    assert reached[0, 3:6].all() and reached[1, 4] and not reached[5, 5]
    assert reached.sum() == 4
