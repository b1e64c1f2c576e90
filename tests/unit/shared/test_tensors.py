"""From a display image to the network's square."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.pixels.tensors import MAX_AREAS, content_box, fill_covered, prepare_square, shrink

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 300)


def radiograph(height: int, width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Smooth anatomy-like blobs with a little noise, 0..4000."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    image = np.zeros((height, width), np.float32)
    for _ in range(6):
        cy, cx, spread = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.1, 0.4) * max(height, width)
        image += rng.uniform(0.3, 1) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * spread**2))
    image += rng.normal(0, 0.01, image.shape)
    return np.asarray(4000 * (image - image.min()) / (np.ptp(image) or 1), np.float32)


@given(SIDES, SIDES, st.sampled_from([32, 64, 96]), st.sampled_from(["uint8", "uint16", "int16", "float64"]))
@settings(max_examples=60, deadline=None)
def test_any_radiograph_becomes_one_square(height: int, width: int, size: int, dtype: str) -> None:
    """Whatever size and type a radiograph has, the network gets (size, size) uint8 with zeros around the radiograph's box."""
    image = np.random.default_rng(height * 301 + width).integers(0, 250, (height, width)).astype(dtype)
    square = prepare_square(image, size)
    assert (square.shape, square.dtype) == ((size, size), np.dtype(np.uint8))
    top, left, fitted_h, fitted_w = content_box(height, width, size)
    outside = square.copy()
    outside[top : top + fitted_h, left : left + fitted_w] = 0
    assert not outside.any()


@given(SIDES, SIDES, st.sampled_from([32, 64, 192]))
def test_content_box_keeps_aspect_and_is_centred(height: int, width: int, size: int) -> None:
    """The longer side fills the square, the other keeps the aspect within half a pixel, both margins are equal."""
    top, left, fitted_h, fitted_w = content_box(height, width, size)
    assert max(fitted_h, fitted_w) == size
    assert abs(fitted_h - height * size / max(height, width)) <= 1
    assert abs(fitted_w - width * size / max(height, width)) <= 1
    assert 0 <= size - fitted_h - 2 * top <= 1
    assert 0 <= size - fitted_w - 2 * left <= 1


@pytest.mark.parametrize(("height", "width"), [(301, 517), (1031, 517), (2000, 2500), (777, 1399), (96, 96), (20, 31)])
def test_radiograph_lies_where_content_box_says(height: int, width: int) -> None:
    """A bright bar along each edge of a radiograph ends up on the edges of its box, to the pixel, large radiographs included."""
    image = np.zeros((height, width), np.float32)
    border = max(4, min(height, width) // 10)
    image[:border], image[-border:], image[:, :border], image[:, -border:] = 1, 1, 1, 1
    square = prepare_square(image, 96)
    top, left, fitted_h, fitted_w = content_box(height, width, 96)
    rows, columns = np.flatnonzero(square.max(1) > 127), np.flatnonzero(square.max(0) > 127)
    assert (rows[0], rows[-1]) == (top, top + fitted_h - 1)
    assert (columns[0], columns[-1]) == (left, left + fitted_w - 1)


@pytest.mark.parametrize("value", [0, 1, 255, -1000, 65535])
@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (512, 512)])
def test_constant_image_is_blank(value: int, shape: tuple[int, int]) -> None:
    """An image of one value shows nothing and becomes all 0, never noise blown up to full range."""
    assert not prepare_square(np.full(shape, value, np.float32), 64).any()


@given(SEEDS, st.floats(0.01, 50), st.floats(-5000, 5000))
@settings(max_examples=30, deadline=None)
def test_gain_and_offset_do_not_matter(seed: int, gain: float, offset: float) -> None:
    """Two consoles that scale the same radiograph differently give the same square, within one gray level."""
    image = radiograph(150, 110, seed)
    one, other = prepare_square(image, 64).astype(int), prepare_square(image * gain + offset, 64).astype(int)
    assert np.abs(one - other).max() <= 1


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_negative_is_the_mirrored_square(seed: int) -> None:
    """The window treats both ends alike: a negative gives 255 minus the radiograph's square, within one level."""
    image = radiograph(128, 128, seed)
    assert np.abs(255 - prepare_square(image, 64).astype(int) - prepare_square(image.max() - image, 64)).max() <= 1


def test_few_bright_pixels_are_not_blank() -> None:
    """A radiograph that is nearly all background is still shown where it is not."""
    image = np.zeros((64, 64), np.float32)
    image[30:33, 30:33] = 1
    square = prepare_square(image, 64)
    assert square[31, 31] == 255
    assert square[0, 0] == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 40000), (3, 3), (1, 2), (1023, 1025), (40001, 7)])
def test_odd_shapes_pass(shape: tuple[int, int]) -> None:
    """Tiny radiographs and strips of a pixel's width come through with what they show."""
    image = np.zeros(shape, np.float32)
    longest = image if shape[0] >= shape[1] else image.T
    longest[: len(longest) // 2] = 100
    square = prepare_square(image, 64)
    assert square.shape == (64, 64)
    assert (square.max() > 0) == (image.size > 1)


def test_resizing_first_is_as_good_as_windowing_first() -> None:
    """Percentiles and median on the small radiograph change its square by less than a gray level on average."""
    image = radiograph(1600, 2000, 3)
    low, high = np.percentile(image, [1, 99])
    windowed = np.clip((image - low) / (high - low), 0, 1) * 255
    difference = np.abs(prepare_square(image, 192).astype(float) - prepare_square(windowed.astype(np.float32), 192))
    assert difference.mean() < 1
    assert difference.max() < 5


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (5,), (5, 5, 3), ()])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    """An empty or not two-dimensional array is an error that names its shape."""
    with pytest.raises(ValueError, match="shape"):
        prepare_square(np.zeros(shape), 64)


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([64, 128]))
@settings(max_examples=60, deadline=None)
def test_a_shrunk_radiograph_fits_and_a_small_one_stays(height: int, width: int, side: int) -> None:
    """The longer side becomes `side`, the other keeps the proportion; what is small enough is not touched."""
    image = radiograph(height, width)
    small = shrink(image, side)
    if max(height, width) <= side:
        np.testing.assert_array_equal(small, image)
    else:
        assert small.shape == content_box(height, width, side)[2:]
        assert image.min() - 1 <= small.min() <= small.max() <= image.max() + 1


def test_halving_first_shows_the_same_radiograph() -> None:
    """A preview made by a halving and a small step is that of one large step, to half a gray level on average."""
    for height, width in ((1250, 1000), (1600, 1100), (1024, 2047)):
        image = radiograph(height, width)
        small = shrink(image, 512)
        once = cv2.resize(image, small.shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small - once).mean() * 255 / np.ptp(once) < 0.5


@given(SEEDS, st.integers(1, 60), st.integers(1, 60), st.sampled_from(["spots", "corners", "circle", "triangle"]))
@settings(max_examples=200, deadline=None)
def test_covered_pixels_take_the_nearest_value(seed: int, height: int, width: int, kind: str) -> None:
    """Area by area as if all of the image were looked at at once, whatever is covered; the others keep their values."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(height, width)).astype(np.float32)
    shape = np.zeros((height, width), np.uint8)
    if kind == "spots":
        shape[:] = rng.random((height, width)) < rng.random() ** 3
    elif kind == "circle":
        cv2.circle(shape, (width // 2, height // 2), int(rng.integers(1, 60)), 1, -1)
        shape = 1 - shape
    elif kind == "triangle":
        cv2.fillPoly(shape, [rng.integers(0, 60, (3, 2)).astype(np.int32)], 1)
    else:
        y, x = np.mgrid[:height, :width]
        reach = int(rng.integers(0, 30))
        shape[(x + y < reach) | (width - 1 - x + y < reach) | (x + height - 1 - y < reach)] = 1
    covered = shape == 1
    if covered.all():
        covered[0, 0] = False
    filled = fill_covered(image, covered)
    _, labels = cv2.distanceTransformWithLabels(
        covered.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    value_of = np.zeros(int(labels.max()) + 1, np.float32)
    value_of[labels[~covered]] = image[~covered]
    assert np.array_equal(filled, np.where(covered, value_of[labels], image))


def test_many_covered_spots_are_filled_together() -> None:
    """Each is a pixel of its own; one pass fills them all."""
    image = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    covered = np.zeros((64, 64), np.bool_)
    covered[::4, ::4] = True
    assert covered.sum() > MAX_AREAS
    filled = fill_covered(image, covered)
    assert np.array_equal(filled[~covered], image[~covered])
    assert np.abs(filled[covered] - image[covered]).max() <= 65
