"""GRAZPEDWRI-DX: 20,000 films of children's wrists, with boxes and AO codes."""

import re
from collections.abc import Iterator
from pathlib import Path

from shared.errors import BadDataset
from training.datasets.film import MISSING, REGIONS, Film, Outline, image_size, yolo_box
from training.datasets.rows import Row, gather, read_rows, read_text, refuse_twice

COLUMNS = ("filestem", "patient_id", "ao_classification", "fracture_visible", "metal")
LABELS = ("folder_structure/yolov5/labels", "labels")
FRACTURE = 3  # of the classes boneanomaly bonelesion foreignbody fracture metal periostealreaction pronatorsign ...
YES = {"": MISSING, "0": 0, "0.0": 0, "1": 1, "1.0": 1}  # tables that pandas wrote say 1.0
AO = re.compile(r"(?P<bone>[1-4])[1-3](?P<which>[ru]?)-(?P<part>[EMD])/(?P<child>\d)(\.\d)?")


def grazpedwri(root: Path) -> list[Film]:
    """Read GRAZPEDWRI-DX (Nagy et al. 2022, doi:10.1038/s41597-022-01328-z).

    root: the folder with dataset.csv, images_part1/ .. images_part4/ (or images/) of 16-bit PNG, and
    folder_structure/yolov5/labels/ (or labels/), where a film without a file has no box.
    Fractured is what fracture_visible says. The set leaves that column empty for no fracture: then a fracture box
    still makes it 1, no box and no AO code 0, and an AO code alone (broken, but perhaps not to be seen here) MISSING.
    So is a 0 that an AO code or a box contradicts. Hardware is the column metal, empty for none. Severity is `grade`.
    Raises BadDataset naming the file and the line that is wrong.
    """
    table = root / "dataset.csv"
    rows = read_rows(table, COLUMNS)
    refuse_twice(rows, lambda row: row["filestem"])
    labels = next((root / name for name in LABELS if (root / name).is_dir()), None)
    if labels is None:
        raise BadDataset(f"{root} has no {LABELS[0]}: unpack folder_structure.zip, for it holds the boxes")
    folders = sorted(folder for folder in root.glob("images*") if folder.is_dir())
    images = {path.stem: path for folder in folders for path in folder.glob("*.png")}
    return gather(table, rows, lambda row: _films(images, labels, row))


def _films(images: dict[str, Path], labels: Path, row: Row) -> Iterator[Film]:
    stem, ao = row["filestem"], row["ao_classification"]
    if stem not in images:
        raise ValueError(f"'{stem}.png' is in none of images_part1 .. images_part4: unpack all four")
    if not row["patient_id"]:
        raise ValueError("patient_id is empty: it keeps a patient on one side of the split")
    boxes = _boxes(labels / f"{stem}.txt")
    fractured = _fractured(row.choice("fracture_visible", YES), ao, boxes)
    yield Film(
        path=images[stem],
        block=f"grazpedwri-{row['patient_id']}",
        region=REGIONS.index("hand"),
        fractured=fractured,
        severity=grade(ao) if fractured == 1 else fractured,
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
    """The fractures among a film's boxes. Raises BadDataset naming the file and the line."""
    boxes = []
    for number, line in enumerate(read_text(file).splitlines() if file.is_file() else [], 1):
        kind, *box = line.split() or ["", ""]
        try:
            if kind and int(kind) == FRACTURE:
                boxes.append(yolo_box(box))
        except ValueError as wrong:
            raise BadDataset(f"{file}, line {number}: {wrong}") from wrong
    return boxes


def grade(ao: str) -> int:
    """Severity by proxy, from the AO paediatric codes of a film, separated by semicolons: "23r-M/3.1; 23u-E/7".

    Returns 1 mild: bowing, torus and greenstick fractures (D/1, M/2, D/2); 2 moderate: complete ones (M/3, D/4, D/5)
    and all of the growth plate or epiphysis (E); 3 severe: two bones are broken, one of them moderately at least;
    MISSING: no code, or one that says none of this. A forearm code without r or u means both bones.
    Source: Slongo et al. 2007, AO Pediatric Comprehensive Classification of Long-Bone Fractures.
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
