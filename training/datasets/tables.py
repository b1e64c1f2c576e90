"""Your own radiographs: a CSV file beside JPEG, PNG or DICOM."""

import os
import re
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from shared.errors import BadDataset
from training.datasets.radiograph import MISSING, LabelledRadiograph, Outline, corners, image_size, is_dicom
from training.datasets.rows import REGION, Row, check_unique, path_inside, radiographs_of_rows, read_rows

COLUMNS = ("patient", "block", "region", "fracture", "severity", "ao", "boxes", "hardware", "weight")
YES = {"": MISSING, "0": 0, "1": 1, "no": 0, "yes": 1, "false": 0, "true": 1}
EXTENT = {"": MISSING, "none": 0, "mild": 1, "moderate": 2, "severe": 3, "0": 0, "1": 1, "2": 2, "3": 3}
OWN_TABLES = ("radiographs.csv", "films.csv")  # in a folder; the second was its name before 0.2.0, read until 0.3.0
AO = re.compile(r"\d[RUF]?\d(\.\d)*-?(?P<type>[ABC])[\d.]*([(\[].*[)\]])?")


def tables(path: Path) -> list[LabelledRadiograph]:
    """Read a CSV file with a row a radiograph, or the radiographs.csv of a folder.

    | column  | what it holds; an empty cell, or no such column, is MISSING                                        |
    |---------|-----------------------------------------------------------------------------------------------------|
    | image   | path from the table's folder: JPEG, PNG, DICOM (.dcm, no extension, or any name with a DICM mark)   |
    | patient | who, or `block`, which images belong together; one of the two is needed, and never empty            |
    | region  | hand, elbow, shoulder, hip or leg                                                                   |
    | fracture, hardware | 0 or 1, no or yes, false or true                                                         |
    | severity| none, mild, moderate, severe, or 0..3; none where fracture is 0                                     |
    | ao      | AO/OTA code, taken where severity is empty: type A is mild, B moderate, C severe (2R3A2 is mild)    |
    | boxes   | of the fractures, "x0 y0 x1 y1; x0 y0 x1 y1" in pixels of the image                                 |
    | weight  | of the image in the losses, more than 0; empty is 1                                                 |

    Source of the AO types: Meinberg et al. 2018, AO/OTA Fracture and Dislocation Classification Compendium.

    Args:
        path: the .csv file, or a folder with radiographs.csv.

    Returns:
        A radiograph a row, in order.

    Raises:
        BadDataset: Names the file and the line that is wrong.
    """
    table = path
    if path.is_dir():
        table = next((path / name for name in OWN_TABLES if (path / name).is_file()), path / OWN_TABLES[0])
    rows = read_rows(table, ("image",), optional=COLUMNS)
    if rows and ("patient" in rows[0].cells) == ("block" in rows[0].cells):
        raise BadDataset(f"{table}, line 1: give one of the columns patient and block, and not both")
    check_unique(rows, lambda row: os.path.normpath(row["image"]))
    return radiographs_of_rows(table, rows, _radiographs)


def _radiographs(row: Row) -> Iterator[LabelledRadiograph]:
    image = path_inside(row.table.parent, row["image"])
    block = row["patient"] or row["block"]
    if not block:
        raise ValueError("patient or block is empty: it keeps a patient on one side of the split")
    fractured, size = row.choice("fracture", YES), image_size(image)
    yield LabelledRadiograph(
        path=image,
        block=f"csv-{block}",
        region=row.choice("region", REGION),
        fractured=fractured,
        extent=_extent_of(row, fractured),
        hardware=row.choice("hardware", YES),
        original_size=size,
        outlines=_boxes(row, fractured, size),
        weight=_weight(row["weight"]),
        source="dicom" if is_dicom(image) else "csv",
    )


def _extent_of(row: Row, fractured: int) -> int:
    extent = row.choice("severity", EXTENT)
    if extent == MISSING and row["ao"]:
        code = AO.fullmatch(row["ao"].upper())
        if not code:
            raise ValueError(
                f"ao is '{row['ao']}', no AO/OTA code with a type A, B or C like 2R3A2; else leave it empty"
            )
        extent = " ABC".index(code["type"])
    if extent == MISSING and fractured == 0:
        return 0
    if MISSING not in (extent, fractured) and (extent > 0) != (fractured == 1):
        raise ValueError(f"fracture is '{row['fracture']}' but severity is {extent}: mend one of them")
    return extent


def _boxes(row: Row, fractured: int, size: tuple[int, int]) -> list[Outline]:
    width, height = size
    boxes = []
    for text in filter(str.strip, row["boxes"].split(";")):
        try:
            x0, y0, x1, y1 = (float(part) for part in text.split())
        except ValueError:
            raise ValueError(f"box '{text.strip()}' is not four numbers: x0 y0 x1 y1") from None
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"box '{text.strip()}' does not lie in the image of {width} x {height}: give x0 y0 x1 y1 in its pixels"
            )
        boxes.append(corners(x0 / width, y0 / height, x1 / width, y1 / height))
    if boxes and fractured == 0:
        raise ValueError(f"fracture is '{row['fracture']}' but boxes are given: mend one of them")
    return boxes


def _weight(text: str) -> float:
    try:
        weight = float(text or 1)
    except ValueError:
        weight = 0.0
    if not (isfinite(weight) and weight > 0):
        raise ValueError(f"weight is '{text}': give a number greater than 0, or nothing")
    return weight
