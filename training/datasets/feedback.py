"""Readers' feedback as a data set: radiographs.csv beside pictures, as `osteon train --data` reads it, without names.

A picture is the radiograph's stored values as a 16-bit PNG, without its DICOM header; what is burned into the pixels
stays. A patient is a pseudonym, the same in every export of this installation, so that the split keeps a patient on one
side.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from shared.domain.feedback import Verdict
from shared.domain.findings import Assessment
from shared.errors import OsteonError, Rejected
from shared.pixels.decode import open_pixels
from training.datasets.radiograph import REGIONS

COLUMNS = ("image", "patient", "region", "fracture", "severity", "ao", "boxes", "hardware", "weight")
README = """\
Radiographs with readers' feedback, exported from Osteon. Research use only.

radiographs.csv is read by `osteon train --data` of this folder. Labels are the readers', who saw the model's words
before they gave feedback. Pictures are 16-bit PNG without any DICOM header, but text that a device burned into an
image is still in it: look before you pass them on. Patients are pseudonyms; who has this installation's
OSTEON_IDENTITY_KEY
can link them to their radiographs.
"""


class FeedbackSource(Protocol):
    """Where feedback and pictures come from: `infra.client.api.Client` with an admin's key."""

    def labels(self, since: datetime | None) -> Iterable[Mapping[str, Any]]:
        """The objects of GET /api/v1/feedback/labels; since: only radiographs with feedback from then on."""

    def original(self, url: str) -> bytes | None:
        """A stored file by its `original_url`; None if it is missing."""


@dataclass
class Label:
    """What readers say of one frame; None and empty: not said."""

    fracture: int | None = None
    region: str = ""
    extent: str = ""
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)  # x0 y0 x1 y1, shares of the frame
    contradicted: bool = False  # one reader's last word is a fracture, another's none


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote."""

    radiographs: int
    without_label: int  # readers say neither whether it is fractured nor of which region
    contradicted: int  # readers contradict each other
    unreadable: int  # the original is missing, or cannot be decoded


def label_of_frame(entries: Sequence[Mapping[str, Any]]) -> Label:
    """Make the label of one frame; a later word outweighs an earlier.

    Agreeing takes over the model's assessment and region, and never its extent, which the reader did not look at.

    Args:
        entries: All standing feedback on the frame in their order, as GET /api/v1/feedback/labels has them.

    Returns:
        What the readers say together.
    """
    made = Label()
    seen: dict[str, int] = {}  # the last word of each reader
    for one in entries:
        fracture = {"yes": 1, "no": 0}.get(one["fracture"] or "")
        if one["verdict"] == Verdict.AGREE and one["found_assessment"] != Assessment.ABSTAINED:
            fracture = int(one["found_assessment"] != Assessment.NEGATIVE)
            made.region = one["found_region"] if one["found_region"] in REGIONS else made.region
        if fracture is not None:
            made.fracture = fracture
            seen[one["reader"]] = fracture
        made.region = one["region"] if one["region"] in REGIONS else made.region
        made.extent = one["severity"] or made.extent
        for mark in one["marks"]:
            x, y = mark["x"], mark["y"]
            made.boxes.append((x, y, min(1.0, x + mark["width"]), min(1.0, y + mark["height"])))
    made.contradicted = len(set(seen.values())) > 1
    if made.fracture != 1:
        made.boxes = []
    if made.fracture is not None and made.extent and (made.extent != "none") != (made.fracture == 1):
        made.extent = ""
    return made


def export_table(
    client: FeedbackSource, out: Path, since: datetime | None = None,
    watch: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, _: items,
) -> ExportResult:  # fmt: skip
    """Write radiographs.csv, radiographs/ and README.txt.

    Args:
        client: The API with an admin's key, under which identities are read for the pseudonyms.
        out: A new or empty folder.
        since: Only radiographs that got feedback from then on.
        watch: Shows progress over the items; it is given their number too.

    Returns:
        What was written and what was left out.

    Raises:
        OsteonError: The folder holds something; also what the client raises.
    """
    if out.exists() and any(out.iterdir()):
        raise OsteonError(f"{out} holds files already: give a new folder with --out")
    frames: dict[str, list[Mapping[str, Any]]] = {}
    for one in client.labels(since):
        if "picture" in one:
            frames.setdefault(one["picture"], []).append(one)
    (out / "radiographs").mkdir(parents=True, exist_ok=True)
    rows, left = [], {"without_label": 0, "contradicted": 0, "unreadable": 0}
    for group in watch(frames.values(), len(frames)):
        made = label_of_frame(group)
        if made.contradicted or (made.fracture is None and not made.region):
            left["contradicted" if made.contradicted else "without_label"] += 1
            continue
        picture = f"radiographs/{group[0]['picture']}.png"
        size = _write_picture(client, group[0], out / picture)
        if size is None:
            left["unreadable"] += 1
            continue
        rows.append(_row(made, picture, group[0]["patient"], size))
    with (out / "radiographs.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(sorted(rows))
    (out / "README.txt").write_text(README, encoding="utf-8")
    return ExportResult(len(rows), **left)


def _row(made: Label, picture: str, patient: str, size: tuple[int, int]) -> list[str]:
    """Make a row of radiographs.csv; boxes are in pixels of the picture, whose size is (width, height)."""
    width, height = size
    corners = [(x0 * width, y0 * height, x1 * width, y1 * height) for x0, y0, x1, y1 in made.boxes]
    boxes = "; ".join(" ".join(f"{value:.2f}" for value in box) for box in corners)
    fracture = "" if made.fracture is None else str(made.fracture)
    return [picture, patient, made.region, fracture, made.extent, "", boxes, "", ""]


def _write_picture(client: FeedbackSource, one: Mapping[str, Any], path: Path) -> tuple[int, int] | None:
    """Write the frame as a 16-bit PNG, in the image's own steps if 16 bits hold them; return (width, height) in pixels.

    None if the original is missing or cannot be decoded.
    """
    content = client.original(one["original_url"])
    if content is None:
        return None
    try:
        frame = open_pixels(content).frame(one["frame"] - 1)
    except (Rejected, IndexError):
        return None
    low, high = float(frame.min()), float(frame.max())
    values = frame - low
    if high - low > np.iinfo(np.uint16).max or not np.array_equal(values, np.rint(values)):
        values *= np.iinfo(np.uint16).max / (high - low)
    cv2.imwrite(str(path), np.rint(values).astype(np.uint16))
    return frame.shape[1], frame.shape[0]
