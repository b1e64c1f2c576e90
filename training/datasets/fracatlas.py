"""FracAtlas: 4083 radiographs of five regions, with outlines of the fractures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import BadDataset
from training.datasets.radiograph import MISSING, LabelledRadiograph, Outline, yolo_box
from training.datasets.rows import (
    FLAG,
    REGION,
    Row,
    check_unique,
    path_inside,
    radiographs_of_rows,
    read_rows,
    read_text,
)

COLUMNS = (
    *("image_id", "block", "region", "fractured", "hardware", "boxes_yolo_cx_cy_w_h"),
    *("orig_width", "orig_height", "source_jpeg_truncated", "exact_duplicate"),
)


def fracatlas(root: Path) -> list[LabelledRadiograph]:
    """Read FracAtlas (Abedeen et al. 2023, doi:10.1038/s41597-023-02432-4).

    Args:
        root: the folder with labels.csv, polygons.json and images/.

    Returns:
        Its radiographs without truncated and duplicate ones; the extent is counted by `extent`.

    Raises:
        BadDataset: Names the file and the line that is wrong.
    """
    table, polygons_file = root / "labels.csv", root / "polygons.json"
    rows = read_rows(table, COLUMNS)
    check_unique(rows, lambda row: row["image_id"])
    try:
        polygons = json.loads(read_text(polygons_file))
    except ValueError as error:
        raise BadDataset(f"{polygons_file} is not JSON: {error}; take it from the data set again") from error
    if not isinstance(polygons, dict):
        raise BadDataset(
            f"{polygons_file} should hold an object with the outlines of each image_id; take it from the data set again"
        )
    return radiographs_of_rows(table, rows, lambda row: _radiographs(root, row, polygons.get(row["image_id"], [])))


def _radiographs(root: Path, row: Row, shapes: list[dict[str, Any]]) -> Iterator[LabelledRadiograph]:
    if "1" in (row["source_jpeg_truncated"], row["exact_duplicate"]):
        return
    try:
        outlines = [np.array(ring, np.float32).reshape(-1, 2) for shape in shapes for ring in shape["polygon_norm"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its outline in polygons.json cannot be read: {error!r}") from error
    boxes = [yolo_box(text.split()) for text in row["boxes_yolo_cx_cy_w_h"].split(";") if text.strip()]
    fractured = row.choice("fractured", FLAG)
    yield LabelledRadiograph(
        path=path_inside(root / "images", row["image_id"]),
        block=row["block"],
        region=row.choice("region", REGION),
        fractured=fractured,
        extent=extent(fractured, boxes),
        hardware=row.choice("hardware", FLAG),
        original_size=(row.whole("orig_width"), row.whole("orig_height")),
        outlines=outlines or boxes,
        source="fracatlas",
    )


def extent(fractured: int, boxes: list[Outline]) -> int:
    """Grade the extent, since this set does not carry it: how many fractures are annotated, and how large.

    Args:
        fractured: 0 or 1.
        boxes: of the fractures, each (4, 2) corners in 0..1.

    Returns:
        0 none; 1 mild: one box under 1 % of the radiograph; 3 severe: three or more boxes, or 6 % of the radiograph;
        2 moderate: what is between; MISSING: fractured, but nothing is outlined.
    """
    if not fractured:
        return 0
    if not boxes:
        return MISSING
    area = sum(float(np.ptp(box[:, 0]) * np.ptp(box[:, 1])) for box in boxes)
    if len(boxes) >= 3 or area >= 0.06:
        return 3
    return 1 if len(boxes) == 1 and area < 0.01 else 2
