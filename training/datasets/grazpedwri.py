"""GRAZPEDWRI-DX: 20,000 radiographs of children's wrists, with boxes and AO codes."""

import re
from collections.abc import Iterator
from pathlib import Path

from shared.errors import BadDataset
from training.datasets.radiograph import MISSING, REGIONS, LabelledRadiograph, Outline, image_size, yolo_box
from training.datasets.rows import Row, check_unique, radiographs_of_rows, read_rows, read_text

COLUMNS = ("filestem", "patient_id", "ao_classification", "fracture_visible", "metal")
LABELS = ("folder_structure/yolov5/labels", "labels")
FRACTURE = 3  # of the classes boneanomaly bonelesion foreignbody fracture metal periostealreaction pronatorsign ...
YES = {"": MISSING, "0": 0, "0.0": 0, "1": 1, "1.0": 1}  # tables that pandas wrote say 1.0
AO = re.compile(r"(?P<bone>[1-4])[1-3](?P<which>[ru]?)-(?P<part>[EMD])/(?P<child>\d)(\.\d)?")


def grazpedwri(root: Path) -> list[LabelledRadiograph]:
    """Read GRAZPEDWRI-DX (Nagy et al. 2022, doi:10.1038/s41597-022-01328-z).

    Fractured is what fracture_visible says. The set leaves that column empty for no fracture: then a fracture box
    still makes it 1, no box and no AO code 0, and an AO code alone (broken, but perhaps not to be seen here) MISSING.
    A 0 that an AO code or a box contradicts is MISSING as well. Hardware is the column metal, empty for none. Severity
    is `grade`.

    Args:
        root: the folder with dataset.csv, images_part1/ .. images_part4/ (or images/) of 16-bit PNG, and
            folder_structure/yolov5/labels/ (or labels/), where a radiograph without a file has no box.

    Returns:
        Its radiographs, in the order of dataset.csv.

    Raises:
        BadDataset: Names the file and the line that is wrong.
    """
    table = root / "dataset.csv"
    rows = read_rows(table, COLUMNS)
    check_unique(rows, lambda row: row["filestem"])
    labels = next((root / name for name in LABELS if (root / name).is_dir()), None)
    if labels is None:
        raise BadDataset(f"{root} has no {LABELS[0]}: unpack folder_structure.zip, for it holds the boxes")
    folders = sorted(folder for folder in root.glob("images*") if folder.is_dir())
    images = {path.stem: path for folder in folders for path in folder.glob("*.png")}
    return radiographs_of_rows(table, rows, lambda row: _radiographs(images, labels, row))


def _radiographs(images: dict[str, Path], labels: Path, row: Row) -> Iterator[LabelledRadiograph]:
    stem, ao = row["filestem"], row["ao_classification"]
    if stem not in images:
        raise ValueError(f"'{stem}.png' is in none of images_part1 .. images_part4: unpack all four")
    if not row["patient_id"]:
        raise ValueError("patient_id is empty: it keeps a patient on one side of the split")
    boxes = _boxes(labels / f"{stem}.txt")
    fractured = _fractured(row.choice("fracture_visible", YES), ao, boxes)
    yield LabelledRadiograph(
        path=images[stem],
        block=f"grazpedwri-{row['patient_id']}",
        region=REGIONS.index("hand"),
        fractured=fractured,
        extent=grade(ao) if fractured == 1 else fractured,
        hardware=int(row.choice("metal", YES) == 1),
        original_size=image_size(images[stem]),
        outlines=boxes if fractured == 1 else [],
        source="grazpedwri",
    )


def _fractured(visible: int, ao: str, boxes: list[Outline]) -> int:
    if visible == 1 or (visible == MISSING and boxes):
        return 1
    return MISSING if ao or boxes else 0


def _boxes(file: Path) -> list[Outline]:
    """Read the fractures among a radiograph's boxes; raises BadDataset naming the file and the line."""
    boxes = []
    for number, line in enumerate(read_text(file).splitlines() if file.is_file() else [], 1):
        kind, *box = line.split() or ["", ""]
        try:
            if kind and int(kind) == FRACTURE:
                boxes.append(yolo_box(box))
        except ValueError as error:
            raise BadDataset(f"{file}, line {number}: {error}") from error
    return boxes


def grade(ao: str) -> int:
    """Grade the extent, from the AO paediatric codes of a radiograph.

    Source: Slongo et al. 2007, AO Pediatric Comprehensive Classification of Long-Bone Fractures.

    Args:
        ao: codes separated by semicolons: "23r-M/3.1; 23u-E/7". A forearm code without r or u means both bones.

    Returns:
        1 mild: bowing, torus and greenstick fractures (D/1, M/2, D/2); 2 moderate: complete ones (M/3, D/4, D/5)
        and all of the growth plate or epiphysis (E); 3 severe: two bones are broken, one of them moderately at least;
        MISSING: no code, or one that says none of this.
    """
    grades, bones = [], set()
    for code in ao.split(";"):
        known = AO.fullmatch("".join(code.split()))
        if not known:
            return MISSING
        if known["part"] == "E" or known["child"] == "3" or (known["part"], known["child"]) in (("D", "4"), ("D", "5")):
            grades.append(2)
        elif known["child"] in "12":
            grades.append(1)
        else:
            return MISSING
        both = known["bone"] == "2" and not known["which"]
        bones |= {known["bone"] + which for which in ("ru" if both else [known["which"]])}
    return 3 if len(bones) > 1 and max(grades) == 2 else max(grades)
