"""Find the exposed field of a radiograph, in which the window is chosen, the image is checked and the network looks.

Around the field lie padding, shutters, the borders that a collimator leaves (bright, for hardly any radiation came
there), or what a scanner or a program added, black or white. They are no anatomy, yet they shift the window, the
scale and the checks. In this order, and again while something is found:

1. Padding and shutters, which the header tells.
2. Lines at a side of which all pixels have one value. They hold nothing, so taking them away loses nothing.
3. A bright border with a straight inner edge along the whole side, which falls towards the inside: a collimator's.

At last the corners of a field that is round, has eight sides or lies askew are found. Exposed fields are convex and
anatomy is not, so a surround counts only where what it leaves is convex.

Where nothing is certain, the whole image is the field: a border in view costs less than anatomy out of view. The
steps are repeated so that an image with a border added gives the field that it gives without.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from shared.vision.tensors import Float32Image

BoolImage = npt.NDArray[np.bool_]  # (H, W)

ROUNDS = 4
MIDDLE = 0.35, 0.65  # of each side: within every field that has borders of up to 30 %
LEAST_SIDE, LEAST_SHARE = 0.2, 0.05  # of the image: a smaller field is no certain one
FEWEST = 2  # lines of a border; one alone could be the beginning of a slope
STRAY = 0.005  # of a line: pixels that may differ from the rest of it
# of the middle's range: how far values of one border differ; dark lines could be background that holds faint anatomy
BRIGHT_TOLERANCE, DARK_TOLERANCE = 0.012, 0.002
SAMPLES = 256  # of the longer side, to find a collimator's edge
LEAST_SAMPLES = 48  # of the shorter side: in a smaller image a slope looks like a step
BRIGHT, BRIGHT_LINES = 0.75, 0.8  # of the range; share of a side that must be so bright at the very edge
STEP, STEP_LINES = 0.06, 0.7  # of the range; share of an edge that must show such a step inwards
AGAINST = 0.1  # share of an edge that may show a step the other way; of the range: how far brightness may rise inwards
SHALLOWEST, DEEPEST = 0.08, 0.45  # of a side: how far in an edge is looked for; networks learn narrow borders along
LEAN = 0.06  # of a side: how far an edge may lean over its length
CONVEX = 0.98  # area of a convex field over that of its hull
MOST_ALIKE = 0.35  # of what is left: pixels of a bright border's value; more of them are a negative's background
# share of a line that is no border at once behind a dark one, or, a little further on, of what is none half way in;
# anatomy on background of one value begins with less
ABRUPT, ALL = 0.3, 0.95
DENT = 0.01  # of the longer side: how deep a convex field's outline may be dented
MOST_CORNERS = 0.35  # of the rectangle: a circle leaves 0.22
RIM = 2  # pixels around a covered area in which it is mixed with the image


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def cut(self) -> tuple[slice, slice]:
        """Index that cuts it out of an array."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def within(self, outer: "Box") -> "Box":
        """A box that is given in pixels of `outer`, in those of the image."""
        return Box(outer.top + self.top, outer.left + self.left, self.height, self.width)


@dataclass(frozen=True)
class Exposure:
    """Where a frame holds radiograph."""

    box: Box  # in the frame's pixels
    covered: BoolImage | None  # of the box's shape, True where there is none; None: nowhere within the box


def find_exposure(image: Float32Image, hidden: BoolImage | None = None) -> Exposure:
    """Find the exposed field of a frame.

    image: (H, W) float32, bone is the greater value; hidden: (H, W), where header or padding say that nothing is.
    The same image always gives the same field.
    """
    whole = Box(0, 0, *image.shape)
    start = box = whole
    if hidden is not None:
        start = box = _bounds(~hidden) or whole
        if not hidden[box.cut].any():
            hidden = None
    for _ in range(ROUNDS):
        part = image[box.cut]
        inner = _without_flat_lines(part)
        bright = _without_bright_borders(part[inner.cut]).within(inner)
        if bright == Box(0, 0, *part.shape):
            break
        box = bright.within(box)
    if not _certain(box, start):
        box = start
    inside = None if hidden is None else hidden[box.cut]
    corners = _corners(image, box, inside)
    if corners is None:
        return Exposure(box, inside if inside is not None and inside.any() else None)
    covered = corners if inside is None else corners | inside
    tight = _bounds(~covered)
    if tight is None or not _certain(tight.within(box), start):
        return Exposure(box, inside)
    return Exposure(tight.within(box), covered[tight.cut])


def reaching_edge(mask: BoolImage) -> BoolImage:
    """Those areas of a mask (H, W) that reach the image's edge."""
    if not mask.any():
        return mask
    # a rim of ones joins them all
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    cv2.floodFill(padded, None, (0, 0), 2, flags=8)
    reached: BoolImage = padded[1:-1, 1:-1] == 2
    return reached


def _certain(box: Box, whole: Box) -> bool:
    least = min(box.height / whole.height, box.width / whole.width)
    return least >= LEAST_SIDE and box.height * box.width >= LEAST_SHARE * whole.height * whole.width


def _bounds(kept: BoolImage) -> Box | None:
    """The rectangle of the lines of which more than stray pixels are kept; None: there are none."""
    rows = np.flatnonzero(np.count_nonzero(kept, axis=1) > STRAY * kept.shape[1])
    columns = np.flatnonzero(np.count_nonzero(kept, axis=0) > STRAY * kept.shape[0])
    if not len(rows) or not len(columns):
        return None
    top, left = int(rows[0]), int(columns[0])
    return Box(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)


def _range(image: Float32Image, low: float, high: float) -> tuple[float, float]:
    """Two percentiles of the image's middle."""
    height, width = image.shape
    rows, columns = (slice(int(MIDDLE[0] * side), int(MIDDLE[1] * side) + 1) for side in (height, width))
    middle = image[rows, columns]
    step = max(1, max(middle.shape) // 128)
    found = np.percentile(middle[::step, ::step], [low, high])
    return float(found[0]), float(found[1])


def _sides(image: Float32Image) -> Iterator[Float32Image]:
    """Views of which row 0 is the line at a side: top, bottom, left, right."""
    yield image
    yield image[::-1]
    yield image.T
    yield image.T[::-1]


def _without_flat_lines(image: Float32Image) -> Box:
    """What is left without the lines at the sides that have one value."""
    box = Box(0, 0, *image.shape)
    bright: list[tuple[float, Box]] = []  # values that were cut away, and what was left before
    for _ in range(2 * ROUNDS):  # where two sides have other values, the corner belongs to one of them
        part = image[box.cut]
        low, high = _range(part, 1, 99)
        depths = []
        for lines in _sides(part):
            depths.append(_flat_lines(lines, low, high))
            if depths[-1]:
                value = float(np.median(lines[0]))
                bright += [(value, box)] if value >= (low + high) / 2 else []
                break
        depths += [0] * (4 - len(depths))
        top, bottom, left, right = depths
        inner = Box(top, left, part.shape[0] - top - bottom, part.shape[1] - left - right)
        if inner == Box(0, 0, *part.shape) or min(inner.height, inner.width) < 1:
            break
        box = inner.within(box)
    step = max(1, max(box.height, box.width) // SAMPLES)
    few = image[box.cut][::step, ::step]
    low, high = _range(image[box.cut], 1, 99)
    for value, before in bright:
        if (np.abs(few - value) <= BRIGHT_TOLERANCE * (high - low)).mean() > MOST_ALIKE:
            return before
    return box


def _flat_lines(lines: Float32Image, low: float, high: float) -> int:
    """How many lines from row 0 on have the value of the first; low, high: of the image's middle."""
    first = lines[0]
    value = float(np.median(first))
    bright = value >= (low + high) / 2
    tolerance = (BRIGHT_TOLERANCE if bright else DARK_TOLERANCE) * (high - low)
    stray = STRAY * len(first)
    if np.count_nonzero(np.abs(first - value) > tolerance) > stray:
        return 0
    for begin in range(0, len(lines), 32):
        other = np.count_nonzero(np.abs(lines[begin : begin + 32] - value) > tolerance, axis=1) > stray
        if other.any():
            depth = begin + int(other.argmax())
            if depth < FEWEST or abs(float(np.median(lines[depth - 1])) - value) > tolerance / 4:
                return 0  # a slope, which has no end
            return depth if bright or _ends(np.abs(lines[depth:] - value) > tolerance) else 0
    return 0  # blank: nothing tells border from image


def _ends(other: BoolImage) -> bool:
    """Whether a dark border ends in a straight line before (N, L) pixels, True where they have another value."""
    count, length = other.shape
    # the line after the next, for the next may be mixed with the border; and one behind an edge that leans
    near, far = (min(1 + more, count - 1) for more in (0, round(LEAN / 2 * length)))
    middle = float(other[count // 2].mean())
    return bool(other[near].mean() >= ABRUPT or (middle >= ABRUPT and other[far].mean() >= ALL * middle))


def _without_bright_borders(image: Float32Image) -> Box:
    """What is left without the bright borders that a collimator leaves at the sides."""
    step = max(1, max(image.shape) // SAMPLES)
    few = image[::step, ::step]
    height, width = image.shape
    if min(few.shape) < LEAST_SAMPLES:
        return Box(0, 0, height, width)
    few = np.asarray(cv2.blur(few, (3, 3), borderType=cv2.BORDER_REPLICATE), np.float32)
    low, high = (float(value) for value in np.percentile(few, [1, 99.5]))
    depths = [0] * 4
    if high > low:
        few = (few - np.float32(low)) / np.float32(high - low)
        depths = [step * _bright_depth(lines) for lines in _sides(few)]
    top, bottom, left, right = depths
    return Box(top, left, height - top - bottom, width - left - right)


def _bright_depth(lines: Float32Image) -> int:
    """How many lines from row 0 on belong to a collimator's border.

    lines: (N, L), in parts of the range. An edge is a straight line, perhaps leaning, along which brightness steps
    down towards the inside; outside of it brightness only falls.
    """
    count, length = lines.shape
    reach = max(2, round(0.012 * max(count, length)))  # an edge is blurred: by the focal spot, and by scatter
    deepest = int(DEEPEST * count)
    outer = lines[:reach].mean(0)
    if (outer >= BRIGHT).mean() < BRIGHT_LINES or deepest <= 2 * reach:
        return 0
    near = lines[: deepest + reach].astype(np.float64)
    sums = np.vstack([np.zeros((1, length)), np.cumsum(near, 0)])
    # steps[d] is that between the lines before depth d + reach and those from there on
    steps = (2 * sums[reach:-reach] - sums[: -2 * reach] - sums[2 * reach :]) / reach
    along = np.arange(length)
    best, found = 0.0, None
    most_lean = max(1, round(LEAN * length / 2))
    for lean in range(-most_lean, most_lean + 1, max(1, most_lean // 6)):
        shift = np.rint(lean * (2 * along / max(1, length - 1) - 1)).astype(np.intp)
        base = np.arange(abs(lean), len(steps) - abs(lean))
        if not len(base):
            continue
        there = steps[base[:, None] + shift, along]
        sure = ((there >= STEP).mean(1) >= STEP_LINES) & ((there <= -STEP).mean(1) <= AGAINST)
        strength = np.where(sure, np.clip(there, -0.5, 0.5).mean(1), 0)
        at = int(strength.argmax())
        if strength[at] > best:
            best, found = float(strength[at]), base[at] + shift + reach
    if found is None:
        return 0
    outside = np.where(np.arange(len(near))[:, None] < found, near, np.inf)
    lowest = np.minimum.accumulate(outside, 0)
    rises = np.where(np.isfinite(outside), outside - lowest, 0).max(0)
    if (rises > AGAINST).mean() > 1 - BRIGHT_LINES:
        return 0
    return int(found.min()) if found.min() >= SHALLOWEST * count else 0


def _corners(image: Float32Image, box: Box, hidden: BoolImage | None) -> BoolImage | None:
    """Areas of one value at the box's corners that leave a convex field, (height, width); None: there are none.

    They go on from a border outside of the box, or there is one of the same value at each corner, bright or darker
    than all of the image: else it is background. hidden: (height, width).
    """
    part = image[box.cut]
    low, high = _range(part, 0, 99)
    spread = high - low
    if spread <= 0 or min(part.shape) < 16:
        return None
    tolerance = BRIGHT_TOLERANCE * spread
    bottom, right = box.height - 1, box.width - 1
    seeds, joined, foreign = [], [], []
    for y, x in ((0, 0), (0, right), (bottom, 0), (bottom, right)):
        value = float(part[y, x])
        patch = part[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        if np.abs(patch - value).max() <= tolerance and (hidden is None or not hidden[y, x]):
            seeds.append((x, y))
            row, column = box.top + y, box.left + x
            outside = ((row + (1 if y else -1), column), (row, column + (1 if x else -1)))
            joined.append(
                any(
                    0 <= v < image.shape[0] and 0 <= h < image.shape[1] and abs(image[v, h] - value) <= tolerance
                    for v, h in outside
                )
            )
            foreign.append(value >= low + BRIGHT * spread or value < low - 0.05 * spread)
    values_there = [float(part[y, x]) for x, y in seeds]
    if sum(foreign) < 4 or max(values_there) - min(values_there) > tolerance:
        seeds = [seed for seed, goes_on in zip(seeds, joined, strict=True) if goes_on]
    if not seeds:
        return None
    values = np.ascontiguousarray(part)
    flooded = np.zeros((box.height + 2, box.width + 2), np.uint8)
    for seed in seeds:
        if not flooded[seed[1] + 1, seed[0] + 1]:
            flags = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (1 << 8)
            cv2.floodFill(values, flooded, seed, 0, tolerance, tolerance, flags)
    covered = np.asarray(cv2.dilate(flooded[1:-1, 1:-1], np.ones((2 * RIM + 1,) * 2, np.uint8)), np.uint8)
    left = covered == 0 if hidden is None else (covered == 0) & ~hidden
    if left.mean() < 1 - MOST_CORNERS or not _is_convex(left):
        return None
    found: BoolImage = covered > 0
    return found


def _is_convex(mask: BoolImage) -> bool:
    """Whether a mask is one area without dents."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    largest = max(contours, key=cv2.contourArea)
    hull = cv2.convexHull(largest, returnPoints=False)
    if hull.size < 3 or len(largest) < 4:
        return False
    try:
        dents = cv2.convexityDefects(largest, hull)
    except cv2.error:  # the outline crosses itself
        return False
    deepest = 0.0 if dents is None else dents.reshape(-1, 4)[:, 3].max() / 256
    whole = cv2.contourArea(largest[hull.ravel()])
    return bool(deepest <= max(RIM, DENT * max(mask.shape)) and np.count_nonzero(mask) >= CONVEX * whole)
