"""Data sets as one table of films, and the batches made from it."""

import csv
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.errors import BadDataset
from shared.vision.tensors import content_box, prepare

REGIONS = ("hand", "elbow", "shoulder", "hip", "leg")
MISSING = -1


@dataclass(frozen=True)
class Film:
    """One labelled radiograph; what a data set does not say is MISSING."""

    path: Path
    block: str  # films of one block (patient, or neighbours in id order) never stand on both sides of a split
    region: int  # index into REGIONS
    fractured: int  # 0, 1
    severity: int  # 0 none .. 3 severe: extent, by annotation
    hardware: int  # 0, 1
    original_size: tuple[int, int]  # (width, height) of the source film, pixels
    outlines: list[npt.NDArray[np.float32]] = field(default_factory=list)  # each (N, 2), x and y in 0..1
    weight: float = 1.0  # of this film in the losses


def fracatlas(root: Path) -> list[Film]:
    """Read FracAtlas (Abedeen et al. 2023, doi:10.1038/s41597-023-02432-4).

    root: the folder with labels.csv, polygons.json and images/.
    Leaves out truncated and duplicate films. Raises BadDataset naming the file or the row that is wrong.
    """
    table, polygons_file = root / "labels.csv", root / "polygons.json"
    for needed in (table, polygons_file):
        if not needed.is_file():
            raise BadDataset(f"{needed} is missing: give the FracAtlas folder that holds it")
    try:
        polygons = json.loads(polygons_file.read_bytes())
    except ValueError as wrong:
        raise BadDataset(f"{polygons_file} is not JSON: {wrong}") from wrong
    films = []
    with table.open(newline="", encoding="utf-8", errors="replace") as lines:
        rows = csv.DictReader(lines)
        for row in rows:
            try:
                if row["source_jpeg_truncated"] == "1" or row["exact_duplicate"] == "1":
                    continue
                films.append(_fracatlas_film(root, row, polygons.get(row["image_id"], [])))
            # a short row has None in its last columns, hence the last two
            except (KeyError, ValueError, TypeError, AttributeError) as wrong:
                raise BadDataset(f"{table}, line {rows.line_num}: {type(wrong).__name__} {wrong}") from wrong
    if not films:
        raise BadDataset(f"{table} has no usable row")
    return films


def _fracatlas_film(root: Path, row: dict[str, str], shapes: list[dict[str, list[list[float]]]]) -> Film:
    path = root / "images" / row["image_id"]
    if not path.is_file():
        raise ValueError(f"names {path}, which does not exist")
    outlines = [np.array(ring, np.float32).reshape(-1, 2) for shape in shapes for ring in shape["polygon_norm"]]
    boxes = [_box(text) for text in row["boxes_yolo_cx_cy_w_h"].split(";") if text.strip()]
    fractured = int(row["fractured"])
    return Film(
        path=path,
        block=row["block"],
        region=REGIONS.index(row["region"]) if row["region"] else MISSING,
        fractured=fractured,
        severity=extent(fractured, boxes),
        hardware=int(row["hardware"]),
        original_size=(int(row["orig_width"]), int(row["orig_height"])),
        outlines=outlines or boxes,
    )


def _box(text: str) -> npt.NDArray[np.float32]:
    cx, cy, w, h = (float(part) for part in text.split())
    left, right, top, bottom = cx - w / 2, cx + w / 2, cy - h / 2, cy + h / 2
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def _around(outline: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    (left, top), (right, bottom) = outline.min(0), outline.max(0)
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def extent(fractured: int, boxes: list[npt.NDArray[np.float32]]) -> int:
    """Severity by proxy, since no public set carries it: how many fractures are annotated, and how large.

    boxes: each (4, 2) corners in 0..1. Returns 0 none; 1 mild: one box under 1 % of the film; 3 severe: three or more
    boxes, or 6 % of the film; 2 moderate: what is between; MISSING: fractured, but nothing is outlined.
    """
    if not fractured:
        return 0
    if not boxes:
        return MISSING
    area = sum(float(np.ptp(box[:, 0]) * np.ptp(box[:, 1])) for box in boxes)
    if len(boxes) >= 3 or area >= 0.06:
        return 3
    return 1 if len(boxes) == 1 and area < 0.01 else 2


def split(films: list[Film], seed: int, held_out: float = 0.2) -> tuple[list[Film], list[Film]]:
    """Divide by block into (training, validation); the same seed gives the same split."""
    blocks = sorted({film.block for film in films})
    random.Random(seed).shuffle(blocks)
    kept_out = set(blocks[: max(1, round(len(blocks) * held_out))])
    return [f for f in films if f.block not in kept_out], [f for f in films if f.block in kept_out]


def read_film(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Prepare one JPEG or PNG film: (size, size) uint8. Raises BadDataset if it cannot be read."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise BadDataset(f"{path} is not a readable image")
    return prepare(image, size)


def outline_mask(film: Film, size: int, *, boxes: bool = False) -> npt.NDArray[np.uint8]:
    """Where the fractures are, in the prepared square: (size, size) uint8, 255 inside.

    boxes: fill the boxes around the outlines instead, as the pointing game counts.
    """
    mask = np.zeros((size, size), np.uint8)
    if film.outlines:
        width, height = film.original_size
        top, left, fitted_h, fitted_w = content_box(height, width, size)
        outlines = [_around(outline) for outline in film.outlines] if boxes else film.outlines
        corners = [np.rint(o * [fitted_w, fitted_h] + [left, top]).astype(np.int32) for o in outlines]
        cv2.fillPoly(mask, corners, 255)
    return mask
