"""A small FracAtlas folder made of noise and bright bars, for tests of training."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np

REGIONS = ("hand", "elbow", "shoulder", "hip", "leg")


def fracatlas_tree(root: Path, blocks: int = 10, films_per_block: int = 4) -> Path:
    """Write labels.csv, polygons.json and images/; every second film is fractured, all regions occur."""
    (root / "images").mkdir(parents=True)
    dice = np.random.default_rng(5)
    rows, polygons = [], {}
    for number in range(blocks * films_per_block):
        name = f"IMG{number:07d}.png"
        height, width = (120, 96) if number % 3 else (90, 130)
        image = dice.integers(20, 120, (height, width)).astype(np.uint8)
        fractured = number % 2
        boxes = ""
        if fractured:
            left, top = width // 4, height // 3
            image[top : top + height // 6, left : left + width // 4] = 250
            x0, x1 = left / width, (left + width // 4) / width
            y0, y1 = top / height, (top + height // 6) / height
            polygons[name] = [{"polygon_norm": [[x0, y0, x1, y0, x1, y1, x0, y1]]}]
            boxes = f"{(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}"
        cv2.imwrite(str(root / "images" / name), image)
        rows.append(
            {
                "image_id": name,
                "block": number // films_per_block,
                "fractured": fractured,
                "region": REGIONS[number % 5] if number != 7 else "",
                "hardware": int(number % 11 == 0),
                "orig_width": width,
                "orig_height": height,
                "source_jpeg_truncated": 0,
                "exact_duplicate": 0,
                "boxes_yolo_cx_cy_w_h": boxes,
            }
        )
    write_labels(root, rows)
    (root / "polygons.json").write_text(json.dumps(polygons))
    return root


def read_labels(root: Path) -> list[dict[str, str]]:
    """The rows of labels.csv."""
    with (root / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_labels(root: Path, rows: list[dict[str, object]] | list[dict[str, str]]) -> None:
    """Write these rows as labels.csv."""
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)  # type: ignore[arg-type]
