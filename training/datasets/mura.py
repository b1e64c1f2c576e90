"""MURA: 40,000 radiographs of the upper extremity, normal or not."""

import re
from collections.abc import Iterator
from pathlib import Path

from training.datasets.radiograph import MISSING, REGIONS, LabelledRadiograph, image_size
from training.datasets.rows import FLAG, Row, check_unique, radiographs_of_rows, read_rows

NAME = "MURA-v1.1"
TABLES = ("train_labeled_studies.csv", "valid_labeled_studies.csv")
REGION_OF = {
    "FINGER": "hand",
    "HAND": "hand",
    "WRIST": "hand",
    "ELBOW": "elbow",
    "FOREARM": "elbow",
    "HUMERUS": "shoulder",
    "SHOULDER": "shoulder",
}
STUDY = re.compile(
    rf"{re.escape(NAME)}/(?P<folder>(train|valid)/XR_(?P<part>{'|'.join(REGION_OF)})/(?P<patient>patient\d+)"
    r"/study\d+_(?P<said>positive|negative))/?"
)


def mura(root: Path) -> list[LabelledRadiograph]:
    """Read MURA v1.1 (Rajpurkar et al. 2018, arXiv:1712.06957) as it is unpacked.

    A study is labelled normal or abnormal. Normal is no fracture. Abnormal is not a fracture: about half of those
    studies show hardware, and degeneration and lesions count as well; so an abnormal radiograph has no fracture label
    and no extent. A study's label is given to each of its radiographs. Hardware is not labelled.

    Args:
        root: the folder MURA-v1.1, or the one that holds it.

    Returns:
        Its radiographs of both tables, training first.

    Raises:
        BadDataset: Names the file and the line that is wrong.
    """
    root = root / NAME if (root / NAME).is_dir() else root
    found: list[LabelledRadiograph] = []
    for name in TABLES:
        rows = read_rows(root / name, ("study", "label"), has_head=False)
        check_unique(rows, lambda row: row["study"].rstrip("/"))
        found += radiographs_of_rows(root / name, rows, lambda row: _radiographs(root, row))
    return found


def _radiographs(root: Path, row: Row) -> Iterator[LabelledRadiograph]:
    study, abnormal = STUDY.fullmatch(row["study"]), row.choice("label", FLAG)
    if not study:
        raise ValueError(f"'{row['study']}' should look like {NAME}/train/XR_WRIST/patient00001/study1_negative/")
    if abnormal != (study["said"] == "positive"):
        raise ValueError(f"the label is {abnormal}, but the folder says {study['said']}: one of them is wrong")
    folder = root / study["folder"]
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: unpack the whole archive")
    # ._image1.png and the like are left by macOS and hold no image
    images = [p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg") and not p.name.startswith(".")]
    if not images:
        raise ValueError(f"{folder} holds no image: unpack the whole archive")
    for path in sorted(images):
        yield LabelledRadiograph(
            path=path,
            block=f"mura-{study['patient']}",
            region=REGIONS.index(REGION_OF[study["part"]]),
            fractured=MISSING if abnormal else 0,
            extent=MISSING if abnormal else 0,
            hardware=MISSING,
            original_size=image_size(path),
            source="mura",
        )
