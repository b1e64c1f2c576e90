"""Find the exposed field of a radiograph, in which the window is chosen, the image is checked and the network looks.

Around the field lie padding, shutters, the borders that a collimator leaves (bright, for hardly any radiation came
there), or what a scanner or a program added, black or white. They are no anatomy, yet they shift the window, the
scale and the checks. They are looked for in this order, and again while something is found:

1. Padding and shutters, which the header describes.
2. Lines at a side of which all pixels have one value. They hold nothing, so removing them loses nothing.
3. A bright border with a straight inner edge along the whole side, which falls towards the inside: a collimator's.

At last the corners of a field that is round, has eight sides or lies askew are found. Exposed fields are convex and
anatomy is not, so a surround counts only if what it leaves is convex.

If nothing is certain, the whole image is the field: a border in view costs less than anatomy out of view. The
steps are repeated so that an image with an added border has the same field as without it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from shared.pixels.tensors import Float32Image, fill_covered

BoolImage = npt.NDArray[np.bool_]  # (H, W)

ROUNDS = 4
CENTRE = 0.35, 0.65  # of each side: within every field that has borders of up to 30 %
MIN_SIDE, MIN_SHARE = 0.2, 0.05  # of the image: a smaller field is no certain one
MIN_LINES = 2  # lines of a border; one alone could be the beginning of a slope
STRAY = 0.005  # of a line: pixels that may differ from the rest of it
# of the middle's range: how far values of one border differ; dark lines could be background that holds faint anatomy
BRIGHT_TOLERANCE, DARK_TOLERANCE = 0.012, 0.002
BINS, MIN_IN_BIN, MAX_IN_BIN = 24, 8, 32  # parts of a line, each summed up by its median; pixels of each
MIN_EVEN_LINES = 4  # lines of a border that is not of one value
EVEN_TOLERANCE = 0.0015  # of the range: changes that are none
ABRUPTLY = 5  # times the mean step between the lines of a border: the step where it ends
# share of a line: what may change within such a border (letters), that must where it ends, and of the part from the
# first that changes to the last
LETTER_HEIGHT, LETTERS_SHARE = 0.08, 0.5  # of the longer side, and of a line, that letters may take
LETTERS, MIN_EDGE, EDGE_CHANGES = 0.3, 0.6, 0.75
ABRUPT_SHARE = 0.6  # of the change over four lines: what comes with the first
SAMPLES = 256  # of the longer side, to find a collimator's edge
MIN_SAMPLES = 48  # of the shorter side: in a smaller image a slope looks like a step
BRIGHT, BRIGHT_LINES = 0.75, 0.8  # of the range; share of a side that must be so bright at the very edge
STEP, STEP_LINES = 0.06, 0.7  # of the range; share of an edge that must show such a step inwards
AGAINST = 0.1  # share of an edge that may show a step the other way; of the range: how far brightness may rise inwards
SHALLOWEST, DEEPEST = 0.08, 0.45  # of a side: how far in an edge is looked for; networks learn narrow borders along
MAX_BORDER_SLOPE = 0.06  # of a side: how far an edge may lean over its length
CONVEX = 0.98  # area of a convex field over that of its hull
MAX_ALIKE = 0.35  # of what is left: pixels of a bright border's value; more of them are a negative's background
# share of a line that is no border at once behind a dark one, or, a little further on, of what is none half way in;
# anatomy on background of one value begins with less
ABRUPT, ALL = 0.3, 0.95
DENT = 0.01  # of the longer side: how deep a convex field's outline may be dented
MAX_CORNERS = 0.35  # of the rectangle: a circle leaves 0.22
RIM = 2  # pixels around a covered area in which it is mixed with the image
MIN_TILT, MAX_TILT = 0.2, 15.0  # degrees: less looks like a staircase, more is no scanner's mistake
CERTAIN_TURN = 2.0  # degrees, from which a rectangle with sharp edges is turned too; collimators lean by less
SIDE_LINES = 0.4  # share of each side of a turned rectangle that must be seen as a straight edge
BLENDED = 0.85  # of the way from border to image: outermost pixels of an image that was turned are between both


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
        """Convert a box that is given in pixels of `outer` to pixels of the image."""
        return Box(outer.top + self.top, outer.left + self.left, self.height, self.width)


@dataclass(frozen=True)
class RotatedRectangle:
    """A rectangle of whole pixels that lies askew in an image."""

    row: float  # of its centre; the upper left pixel's own centre is at 0.5, 0.5
    column: float
    height: int
    width: int
    angle: float  # degrees, clockwise as people see it

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """From the rectangle's pixels to the image's, (2, 3): x and y of pixel centres that count from 0."""
        sine, cosine = np.sin(np.deg2rad(self.angle)), np.cos(np.deg2rad(self.angle))
        turn = np.array([[cosine, -sine], [sine, cosine]])
        middle = np.array([(self.width - 1) / 2, (self.height - 1) / 2])
        at = np.array([self.column, self.row]) - 0.5
        return np.hstack([turn, (at - turn @ middle)[:, None]])

    def cut(self, box: Box) -> "RotatedRectangle":
        """Convert a part of it, given in its own pixels, to pixels of the image."""
        x, y = self.matrix @ [box.left + (box.width - 1) / 2, box.top + (box.height - 1) / 2, 1]
        return RotatedRectangle(y + 0.5, x + 0.5, box.height, box.width, self.angle)

    def corners(self, margin: float = 0.0) -> npt.NDArray[np.float64]:
        """X and y of its corners in the image, (4, 2), pixel centres count from 0; margin: so much smaller, pixels."""
        near, right, below = margin - 0.5, self.width - 0.5 - margin, self.height - 0.5 - margin
        ends = np.array([(near, near), (right, near), (right, below), (near, below)])
        corners: npt.NDArray[np.float64] = ends @ self.matrix[:, :2].T + self.matrix[:, 2]
        return corners


@dataclass(frozen=True)
class UprightField:
    """A field that lies askew in its frame, turned upright."""

    turned: RotatedRectangle  # where it lies, in the frame's pixels
    image: Float32Image = field(repr=False)  # of its height and width
    covered: BoolImage | None = field(repr=False)  # of the same shape, as Exposure has it


@dataclass(frozen=True)
class Exposure:
    """The part of a frame that holds the radiograph."""

    box: Box  # in the frame's pixels
    covered: BoolImage | None  # of the box's shape, True where there is none; None: nowhere within the box
    upright: UprightField | None = None  # where the field lies askew; the box is around it, and the rest is covered


def find_exposure(
    image: Float32Image,
    hidden: BoolImage | None = None,
    *,
    padding: float | None = None,
    turn: bool = True,
    again: bool = True,
) -> Exposure:
    """Find the exposed field of a frame; the same image always has the same field.

    Args:
        image: (H, W) float32, bone is the greater value.
        hidden: (H, W), True where the header or padding says that there is no image; None: nowhere.
        padding: value of the padding before it was painted over; None if there was none.
        turn: whether a field that lies askew is turned upright, for which pixels must be square.
        again: whether to look for borders once more after corners were covered.

    Returns:
        The field; the whole image if nothing else is certain.
    """
    image_box = Box(0, 0, *image.shape)
    start = image_box
    if hidden is not None:
        start = _bounds(~hidden) or image_box
        if not hidden[start.cut].any():
            hidden = None
    box = _without_borders(image, start)
    if turn:
        askew = _tilted_field(image, box, hidden, padding)
        if askew is not None:
            return askew
    inside = None if hidden is None else hidden[box.cut]
    corners = _corners(image, box, inside)
    if corners is None:
        return Exposure(box, inside if inside is not None and inside.any() else None)
    covered = corners if inside is None else corners | inside
    tight = _bounds(~covered)
    if tight is None or not _certain(tight.within(box), start):
        return Exposure(box, inside)
    exposure = Exposure(tight.within(box), covered[tight.cut])
    if not again:
        return exposure
    # what the corners hid of borders further in: an image with corners covered gives the field that it gives without
    filled = fill_covered(np.ascontiguousarray(image[exposure.box.cut]), covered[tight.cut])
    further = find_exposure(filled, turn=False, again=False)
    if further.covered is not None or further.box == Box(0, 0, *filled.shape):
        return exposure
    return Exposure(further.box.within(exposure.box), covered[tight.cut][further.box.cut])


def areas_at_edge(mask: BoolImage) -> BoolImage:
    """Return those areas of a mask (H, W) that reach the image's edge."""
    if not mask.any():
        return mask
    # a rim of ones joins them all
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    cv2.floodFill(padded, None, (0, 0), 2, flags=8)
    reached: BoolImage = padded[1:-1, 1:-1] == 2
    return reached


def _without_borders(image: Float32Image, start: Box) -> Box:
    """The part of `start` within flat lines and bright borders; `start` itself if that is not certain."""
    box = start
    for _ in range(ROUNDS):
        part = image[box.cut]
        inner = _without_flat_lines(part)
        bright = _without_bright_borders(part[inner.cut]).within(inner)
        if bright == Box(0, 0, *part.shape):
            break
        box = bright.within(box)
    return box if _certain(box, start) else start


def _certain(box: Box, image_box: Box) -> bool:
    least = min(box.height / image_box.height, box.width / image_box.width)
    return least >= MIN_SIDE and box.height * box.width >= MIN_SHARE * image_box.height * image_box.width


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
    rows, columns = (slice(int(CENTRE[0] * side), int(CENTRE[1] * side) + 1) for side in (height, width))
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
    """Return what is left without the lines at the sides that have one value."""
    box = Box(0, 0, *image.shape)
    bright: list[tuple[float, Box]] = []  # values that were cut away, and what was left before
    for _ in range(2 * ROUNDS):  # where two sides have other values, the corner belongs to one of them
        part = image[box.cut]
        low, high = _range(part, 1, 99)
        depths = []
        for lines in _sides(part):
            depths.append(_flat_lines(lines, low, high) or _even_lines(lines, high - low))
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
        if (np.abs(few - value) <= BRIGHT_TOLERANCE * (high - low)).mean() > MAX_ALIKE:
            return before
    return box


def _flat_lines(lines: Float32Image, low: float, high: float) -> int:
    """Count the lines from row 0 on that have the value of the first; low, high: of the image's middle."""
    first = lines[0]
    value = float(np.median(first))
    bright = value >= (low + high) / 2
    tolerance = (BRIGHT_TOLERANCE if bright else DARK_TOLERANCE) * (high - low)
    if np.count_nonzero(np.abs(first - value) > tolerance) > STRAY * len(first):
        return 0
    max_depth = round(LETTER_HEIGHT * max(lines.shape))
    depth = 0  # of the last line that has one value; those between may hold letters
    for begin in range(0, len(lines), 32):
        other = np.count_nonzero(np.abs(lines[begin : begin + 32] - value) > tolerance, axis=1) / len(first)
        for number, share in enumerate(other.tolist(), begin):
            if share <= STRAY:
                depth = number + 1
            elif share > LETTERS_SHARE or number - depth >= max_depth:
                if depth < MIN_LINES or abs(float(np.median(lines[depth - 1])) - value) > tolerance / 4:
                    return 0  # a slope, which has no end
                return depth if bright or _ends(np.abs(lines[depth:] - value) > tolerance) else 0
    return 0  # blank: border and image look alike


def _even_lines(lines: Float32Image, spread: float) -> int:
    """How many lines from row 0 on are a border that has noise, a gradient or letters in it.

    Where it ends much of the line changes at once, from one line to the next, in value or in roughness; before, hardly
    anything does. lines: (N, L); spread: range of the image's middle.
    """
    count, length = lines.shape
    deepest = int(DEEPEST * count)
    step = max(1, length // (BINS * MAX_IN_BIN))
    wide = length // (BINS * step)
    if wide < MIN_IN_BIN or deepest < MIN_EVEN_LINES + 4:
        return 0
    few = np.ascontiguousarray(lines[: deepest + 4, : BINS * step * wide : step]).reshape(-1, BINS, wide)
    value = _medians(few).astype(np.float64)
    rough = _medians(np.abs(np.diff(few, axis=2))).astype(np.float64)
    levels = np.unique(few[:MIN_EVEN_LINES])
    grain = float(np.diff(levels).min()) if len(levels) > 1 else 0.0
    least = max(EVEN_TOLERANCE * spread, 1.2 * grain)
    number = np.arange(MIN_EVEN_LINES, len(few) - 3)
    changed = np.zeros((len(number), BINS), np.bool_)
    stays = changed.copy()
    for profile in (value, rough):
        steps = np.abs(np.diff(profile, axis=0))
        # a step is one that the lines before have not: they may have noise, or grow darker from line to line
        usual = np.cumsum(steps, 0)[number - 2] / (number - 1)[:, None]
        limit = ABRUPTLY * np.maximum(usual, _medians(usual)[:, None]) + least
        changed |= steps[number - 1] > limit
        # all at once: what grows from line to line is anatomy, or a collimator's blurred edge
        later = np.abs(np.stack([profile[number + more] for more in (1, 2, 3)]) - profile[number - 1])
        stays |= (later.min(0) > limit) & (steps[number - 1] >= ABRUPT_SHARE * np.sort(later, axis=0)[1])
    share = changed.mean(1)
    for at in np.flatnonzero(share >= LETTERS):
        where = np.flatnonzero(changed[at] & stays[at])
        if len(where) < MIN_EDGE * BINS:
            return 0
        within = (changed & stays)[at, where[0] : where[-1] + 1]
        return int(number[at]) if within.mean() >= EDGE_CHANGES else 0
    return 0


def _medians(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """The medians along the last axis, as np.median has them: to sort rows so short takes a sixth of its time."""
    ordered = np.sort(values, axis=-1)
    middle, odd = divmod(ordered.shape[-1], 2)
    return ordered[..., middle] if odd else (ordered[..., middle - 1] + ordered[..., middle]) / 2


def _ends(other: BoolImage) -> bool:
    """Whether a dark border ends in a straight line before (N, L) pixels, True where they have another value."""
    count, length = other.shape
    # the line after the next, for the next may be mixed with the border; and one behind an edge that leans
    near, far = (min(1 + more, count - 1) for more in (0, round(MAX_BORDER_SLOPE / 2 * length)))
    middle = float(other[count // 2].mean())
    return bool(other[near].mean() >= ABRUPT or (middle >= ABRUPT and other[far].mean() >= ALL * middle))


def _without_bright_borders(image: Float32Image) -> Box:
    """Return what is left without the bright borders that a collimator leaves at the sides."""
    step = max(1, max(image.shape) // SAMPLES)
    few = image[::step, ::step]
    height, width = image.shape
    if min(few.shape) < MIN_SAMPLES:
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
    max_lean = max(1, round(MAX_BORDER_SLOPE * length / 2))
    for lean in range(-max_lean, max_lean + 1, max(1, max_lean // 6)):
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

    hidden: (height, width).
    """
    flooded = _flooded_corners(image, box, hidden)
    if flooded is None:
        return None
    covered = np.asarray(cv2.dilate(flooded, np.ones((2 * RIM + 1,) * 2, np.uint8)), np.uint8)
    left = covered == 0 if hidden is None else (covered == 0) & ~hidden
    if left.mean() < 1 - MAX_CORNERS or not _is_convex(left):
        return None
    found: BoolImage = covered > 0
    return found


def _flooded_corners(
    image: Float32Image, box: Box, hidden: BoolImage | None, *, any_value: bool = False
) -> npt.NDArray[np.uint8] | None:
    """Areas of one value at the box's corners, (height, width), 1 where they are; None: there are none.

    They go on from a border outside of the box, or there is one of the same value at each corner, bright or darker
    than all of the image: else it is background. hidden: (height, width). any_value: whether any corner of one
    value counts, with as little spread as there can be.
    """
    part = image[box.cut]
    low, high = _range(part, 0, 99)
    spread = high - low
    if spread <= 0 or min(part.shape) < 16:
        return None
    tolerance = (DARK_TOLERANCE if any_value else BRIGHT_TOLERANCE) * spread
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
    if not any_value and (sum(foreign) < 4 or max(values_there) - min(values_there) > tolerance):
        seeds = [seed for seed, goes_on in zip(seeds, joined, strict=True) if goes_on]
    if not seeds:
        return None
    values = np.ascontiguousarray(part)
    flooded = np.zeros((box.height + 2, box.width + 2), np.uint8)
    for seed in seeds:
        if not flooded[seed[1] + 1, seed[0] + 1]:
            flags = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (1 << 8)
            cv2.floodFill(values, flooded, seed, 0, tolerance, tolerance, flags)
    return flooded[1:-1, 1:-1]


def _tilted_field(image: Float32Image, box: Box, hidden: BoolImage | None, padding: float | None) -> Exposure | None:
    """The field where it is a rectangle that lies askew in the box; None: it is none, or that is not certain.

    A collimator's field may lean a little too, and there anatomy stands upright: an image that a program or a scanner
    turned shows it by outermost pixels that are mixed with the border, or by a greater angle.
    hidden: (H, W).
    """
    reach = RIM + int(np.ceil(STRAY * max(image.shape)))  # a tip of the rectangle may have passed for stray pixels
    top, left = max(0, box.top - reach), max(0, box.left - reach)
    bottom, right = (
        min(end, begin + side + reach)
        for end, begin, side in zip(image.shape, (box.top, box.left), (box.height, box.width), strict=True)
    )
    around = Box(top, left, bottom - top, right - left)
    beyond = np.zeros((around.height, around.width), np.bool_) if hidden is None else hidden[around.cut]
    flooded = _flooded_corners(image, around, None if hidden is None else beyond, any_value=True)
    if flooded is not None:
        beyond = beyond | (flooded > 0)
    if not MIN_SHARE < 1 - beyond.mean() < 1 or min(beyond.shape) < MIN_SAMPLES:
        return None
    count, labels, about, _ = cv2.connectedComponentsWithStats((~beyond).astype(np.uint8), connectivity=4)
    inside = labels == 1 + int(np.argmax(about[1:count, cv2.CC_STAT_AREA]))
    part = np.ascontiguousarray(image[around.cut])
    if padding is not None:
        part[beyond] = padding
    fitted = _rectangle(part, inside)
    if fitted is None:
        return None
    row, column, height, width, angle = fitted
    if not _certain(Box(0, 0, height, width), around):
        return None
    upright = _upright(part, RotatedRectangle(row, column, height, width, angle), float(np.median(part[beyond])))
    within = find_exposure(upright, turn=False)  # and what borders it has of its own
    turned = RotatedRectangle(row + top, column + left, height, width, angle).cut(within.box)
    upright = np.ascontiguousarray(upright[within.box.cut])
    ends = turned.corners()
    low, high = np.floor(ends.min(0) + 0.5).astype(int), np.ceil(ends.max(0) + 0.5).astype(int)
    left, top = (int(max(0, value)) for value in low)
    right, bottom = (int(min(value, end)) for value, end in zip(high, image.shape[::-1], strict=True))
    open_ = np.zeros((bottom - top, right - left), np.uint8)
    shown = turned.corners(RIM) - [left, top]
    cv2.fillConvexPoly(open_, np.rint(shown * 16).astype(np.int32), 1, shift=4)
    return Exposure(Box(top, left, *open_.shape), open_ == 0, UprightField(turned, upright, within.covered))


def _rectangle(image: Float32Image, inside: BoolImage) -> tuple[float, float, int, int, float] | None:
    """The rectangle that an area fills, as RotatedRectangle has it; None: it fills none, or that does not lie askew.

    image, inside: (H, W). Each side is the straight line through the outermost pixels, all turned by one angle, which
    gives the place to a small part of a pixel.
    """
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(contours, key=len)[:, 0].astype(np.float64)
    angle = float(cv2.minAreaRect(outline.astype(np.float32))[2])
    angle = (angle + 45) % 90 - 45
    if not MIN_TILT / 2 <= abs(angle) <= MAX_TILT:
        return None
    turn = np.deg2rad(angle)
    for near in (6.0, 3.0, 1.5, 1.5):
        sides = _sides_of(outline, turn, near)
        if sides is None:
            return None
        moved = sum(sign * float((along - along.mean()) @ (far - far.mean())) for sign, along, far, _ in sides)
        turn += np.arctan(moved / sum(float(np.square(along - along.mean()).sum()) for _, along, _, _ in sides))
    sides = _sides_of(outline, turn, 1.5)
    if sides is None or not MIN_TILT <= abs(np.rad2deg(turn)) <= MAX_TILT:
        return None
    up, down, left, right = (float(far.mean()) for _, _, far, _ in sides)
    for (_, along, _, _), length in zip(sides, (right - left, right - left, down - up, down - up), strict=True):
        if len(np.unique(np.rint(along))) < SIDE_LINES * length:
            return None
    blended = _blended(image, sides)
    if not blended and abs(np.rad2deg(turn)) < CERTAIN_TURN:
        return None
    # outermost pixels lie from within the edge to a pixel beyond it where they are blended, else a pixel within it
    more = 0 if blended else 1
    sine, cosine = np.sin(turn), np.cos(turn)
    u, v = (left + right) / 2, (up + down) / 2
    row, column = sine * u + cosine * v + 0.5, cosine * u - sine * v + 0.5
    return row, column, round(down - up + more), round(right - left + more), float(np.rad2deg(turn))


_Side = tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _sides_of(outline: npt.NDArray[np.float64], turn: float, near: float) -> list[_Side] | None:
    """The outline's points that lie at the upper, lower, left and right side of a rectangle that is turned clockwise.

    outline: (N, 2), x and y. near: pixels from a side. Returns of each side a sign, the points' places along the side
    and across it, both in the turned system, and the points; None where a side has hardly any.
    """
    sine, cosine = np.sin(turn), np.cos(turn)
    u, v = outline @ [cosine, sine], outline @ [-sine, cosine]
    ends = [np.array([np.percentile(part, 0.5), np.percentile(part, 99.5)]) for part in (u, v)]
    found: list[_Side] = []
    for sign, across, along, (begin, end), places in ((1, v, u, ends[0], ends[1]), (-1, u, v, ends[1], ends[0])):
        inner = (along > begin + 0.03 * (end - begin)) & (along < end - 0.03 * (end - begin))
        for place in places:
            close = inner & (np.abs(across - place) <= near + 2)
            if np.count_nonzero(close) < 8:
                return None
            close &= np.abs(across - np.median(across[close])) <= near
            found.append((sign, along[close], across[close], outline[close]))
    return found


def _blended(image: Float32Image, sides: list[_Side]) -> bool:
    """Whether the outermost pixels of a turned rectangle are between the border and the image further in."""
    ratios = []
    for (dy, dx), (_, _, _, points) in zip(((1, 0), (-1, 0), (0, 1), (0, -1)), sides, strict=True):
        x, y = points.astype(np.intp).T
        low, high = -2 * (dy + dx), 3 * (dy + dx)
        at = []
        for step in (low, 0, high):
            row = np.clip(y + (abs(step) * np.sign(step) if dy else 0), 0, image.shape[0] - 1)
            column = np.clip(x + (abs(step) * np.sign(step) if dx else 0), 0, image.shape[1] - 1)
            at.append(image[row, column].astype(np.float64))
        border, outermost, further = at
        clear = np.abs(further - border) > STEP / 2 * max(1e-6, float(np.abs(further - border).max()))
        ratios.append(((outermost - border)[clear]) / (further - border)[clear])
    all_ratios = np.concatenate(ratios)
    return bool(len(all_ratios) and np.median(all_ratios) < BLENDED)


def _upright(image: Float32Image, turned: RotatedRectangle, border: float) -> Float32Image:
    """Turn the rectangle upright, (height, width) float32. border: the value around it.

    Turned back once more, it should equal the image: the difference is added (iterative back-projection, Irani & Peleg
    1991), for an image that is interpolated twice has lost details to which the network responds.
    """
    matrix = turned.matrix
    back = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    size, edge = (turned.width, turned.height), cv2.BORDER_REPLICATE
    upright = cv2.warpAffine(image, matrix, size, flags=back, borderMode=edge)
    again = cv2.warpAffine(upright, matrix, image.shape[::-1], flags=cv2.INTER_LINEAR, borderValue=border)
    missing = cv2.warpAffine(image - again, matrix, size, flags=back, borderMode=edge)
    return np.clip(np.asarray(upright + missing, np.float32), image.min(), image.max())


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
