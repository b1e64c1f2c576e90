"""History as lines: numbers in, SVG coordinates and words out, drawn without any script or style attribute."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

WIDTH, HEIGHT = 640, 190  # of the viewBox
LEFT, RIGHT, TOP, BOTTOM = 64, 632, 10, 180
TICKS_ACROSS = 5
SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 4 * 3600, 8 * 3600, 86400)
NOTHING = "\N{EN DASH}"
Value = float | None


@dataclass(frozen=True)
class Line:
    """One line of a plot: strokes where its values are known, gaps where they are not."""

    name: str
    path: str  # of an SVG <path>
    dots: list[tuple[float, float]]  # values with no neighbour, which no stroke shows
    last: str  # its latest value, in words


@dataclass(frozen=True)
class Plot:
    """A plot, ready to be drawn, with the same as a table."""

    id: str
    title: str
    about: str  # what is drawn, in a sentence or two
    lines: list[Line]
    across: list[datetime]  # times at equal distances, the first at the left edge, the last at the right one
    up: list[tuple[float, str]]  # (y, label)
    rows: list[tuple[datetime, list[str]]]  # latest first, without those in which nothing is known
    empty: bool


def plot(
    id: str,  # noqa: A002 - it is one
    title: str,
    about: str,
    times: Sequence[datetime],
    series: Sequence[tuple[str, Sequence[Value]]],
    step: timedelta,
    *,
    seconds: bool = False,
) -> Plot:
    """Draw series of numbers.

    Args:
        id: of the plot's element, unique on its page.
        title: of the plot.
        about: what it shows, as a sentence.
        times: beginning of each step, at least one.
        series: name, and a value for each of the times; None where it is not known.
        step: length of a step.
        seconds: whether values are lengths of time in seconds, rather than counts.

    Returns:
        The plot, with the same as a table.
    """
    known = [value for _, values in series for value in values if value is not None]
    marks = _marks(max(known, default=0.0), seconds=seconds)
    top, word = marks[-1], (length if seconds else number)
    lines = [_line(name, values, top, word) for name, values in series]
    rows = [
        (at, [NOTHING if value is None else word(value) for value in values])
        for at, *values in zip(times, *(values for _, values in series), strict=True)
        if any(value for value in values)
    ]
    span = times[-1] + step - times[0]
    across = [times[0] + span * n / (TICKS_ACROSS - 1) for n in range(TICKS_ACROSS)]
    up = [(_y(mark, top), word(mark)) for mark in marks]
    return Plot(id, title, about, lines, across, up, rows[::-1], empty=not rows)


def length(seconds: float) -> str:
    """A length of time in one unit, as "0.4 s", "12 s", "7 min", "3 h"."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size * (1 if seconds % size == 0 else 2):
            return f"{seconds / size:.3g}\N{NO-BREAK SPACE}{unit}"
    return f"{seconds:.2g}\N{NO-BREAK SPACE}s" if seconds < 10 else f"{seconds:.0f}\N{NO-BREAK SPACE}s"


def number(value: float) -> str:
    """A count, with commas."""
    return f"{value:,.0f}"


def _line(name: str, values: Sequence[Value], top: float, word: object) -> Line:
    path: list[str] = []
    dots: list[tuple[float, float]] = []
    for index, value in enumerate(values):
        if value is None:
            continue
        point = _x(index, len(values)), _y(value, top)
        before = index > 0 and values[index - 1] is not None
        after = index + 1 < len(values) and values[index + 1] is not None
        path.append(f"{'L' if before else 'M'}{point[0]:.1f} {point[1]:.1f}")
        if not before and not after:
            dots.append(point)
    last = next((value for value in reversed(values) if value is not None), None)
    assert callable(word)
    return Line(name, "".join(path), dots, NOTHING if last is None else word(last))


def _x(index: int, count: int) -> float:
    """The middle of a step."""
    return LEFT + (RIGHT - LEFT) * (index + 0.5) / count


def _y(value: float, top: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * value / top


def _marks(largest: float, *, seconds: bool) -> list[float]:
    """Round numbers from zero to one that is not below the largest, three to six of them."""
    if seconds:
        days = [86400.0 * n for n in (2, 5, 10, 20, 50, 100, 500)]
        step = next((size for size in (*SECONDS, *days) if size * 4 >= largest), largest / 4)
    else:
        raw_step = max(largest / 4, 1.0)
        size = 10 ** math.floor(math.log10(raw_step))
        step = next(size * n for n in (1, 2, 5, 10) if size * n >= raw_step)
    return [step * n for n in range(max(2, math.ceil(largest / step)) + 1)]
