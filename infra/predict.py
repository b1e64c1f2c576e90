"""`osteon predict`: files straight through the model, without any server."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
import numpy.typing as npt

from shared.errors import OsteonError, Rejected, UnsupportedPixels
from shared.findings import Finding, abstention_words, shown_score
from shared.vision.pixels import display, open_pixels
from shared.vision.reader import Reader
from shared.vision.tensors import content_box, prepare

PICTURES = (b"\x89PNG", b"\xff\xd8\xff")
COLUMNS = (
    "file", "frame", "region", "region_probability", "fracture_probability", "assessment", "score", "severity",
    "abstention", "abstention_detail", "abstention_words", "bundle", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One frame's line of the result; a file that could not be read has only `file` and `error`."""

    file: str
    frame: int | None = None
    region: str | None = None
    region_probability: float | None = None
    fracture_probability: float | None = None
    assessment: str | None = None
    score: float | None = None
    severity: str | None = None
    abstention: str | None = None  # the reason as a code
    abstention_detail: str | None = None
    abstention_words: str | None = None
    bundle: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Shown:
    """A frame on its way: what the model reads, and what a person looks at."""

    frame: int
    square: npt.NDArray[np.uint8]  # (S, S)
    film: Callable[[], npt.NDArray[np.uint8]]  # gives (H, W); made only where it is drawn
    modality: str  # DICOM's, "" for a picture
    body_part: str  # likewise


def predict(
    reader: Reader,
    files: Sequence[tuple[Path, str]],
    heatmaps: Path | None,
    done: Callable[[], None],
) -> Iterator[Row]:
    """Rows for all files in order; a bad file gives one row with its error and does not stop the others."""
    seen: Counter[str] = Counter()  # two folders may hold files of one name; their pictures must not
    for path, name in files:
        seen[name] += 1
        picture = name if seen[name] == 1 else f"{name} ({seen[name]})"
        try:
            for shown in _frames(path, reader.size):
                reading = reader.read([shown.square])[0]
                finding = reader.finding(reading, shown.frame, shown.modality, shown.body_part)
                if heatmaps is not None:
                    _draw(heatmaps / f"{picture}-{shown.frame}.png", shown.film(), finding)
                yield _row(name, finding)
        except Rejected as why:
            yield Row(name, error=f"{why.reason}: {why}")
        except OSError as why:
            yield Row(name, error=f"unreadable: {why.strerror or type(why).__name__}")
        done()


def _frames(path: Path, size: int) -> Iterator[Shown]:
    content = path.read_bytes()
    if content.startswith(PICTURES):
        picture = _picture(content)
        yield Shown(1, prepare(picture, size), lambda: picture, "", "")
        return
    source = open_pixels(content)
    for index in range(source.frames):
        frame = source.frame(index)
        film = partial(display, source, index, frame)
        yield Shown(index + 1, prepare(frame, size), film, source.modality, source.body_part)


def _picture(content: bytes) -> npt.NDArray[np.uint8]:
    try:
        film = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # the size that it claims is over OpenCV's limit
        film = None
    if film is None:
        raise UnsupportedPixels("The picture is damaged or too large and cannot be decoded")
    return film.astype(np.uint8)


def _row(name: str, finding: Finding) -> Row:
    return Row(
        name,
        finding.frame,
        finding.region,
        round(finding.region_probability, 4),
        round(finding.fracture_probability, 4),
        finding.assessment,
        None if finding.score is None else shown_score(finding.score),
        finding.severity,
        finding.abstention,
        finding.abstention_detail,
        abstention_words(finding.abstention, finding.abstention_detail, finding.score),
        finding.bundle,
    )


def _draw(path: Path, film: npt.NDArray[np.uint8], finding: Finding) -> None:
    """The film with its heatmap laid over, at most 1024 pixels a side."""
    scale = min(1.0, 1024 / max(film.shape))
    height, width = (max(1, round(side * scale)) for side in film.shape)
    gray = cv2.resize(film, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    side = max(height, width)
    top, left, fitted_h, fitted_w = content_box(height, width, side)
    grid = np.frombuffer(finding.heatmap.values, np.uint8).reshape(finding.heatmap.height, finding.heatmap.width)
    heat = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)[top : top + fitted_h, left : left + fitted_w]
    strength = (heat.astype(np.float32) / 255)[..., None] * 0.6
    amber = np.array([30, 120, 255], np.float32)  # blue, green, red
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = gray[..., None] * (1 - strength) + amber * strength
    if not cv2.imwrite(str(path), picture.astype(np.uint8)):
        raise OsteonError(f"{path} cannot be written")


def write_csv(rows: Sequence[Row], out: TextIO) -> None:
    """One line a frame, COLUMNS as header; nothing stays empty but what is not known."""
    table = csv.DictWriter(out, COLUMNS)
    table.writeheader()
    table.writerows([asdict(row) for row in rows])


def as_json(rows: Sequence[Row]) -> str:
    """The same as a JSON list."""
    listed: list[dict[str, Any]] = [asdict(row) for row in rows]
    return json.dumps(listed, indent=1)
