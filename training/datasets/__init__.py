"""Data sets as one table of labelled radiographs. `radiographs` reads any of them; each has its adapter in a file."""

from collections.abc import Callable
from pathlib import Path

from shared.errors import BadDataset
from training.datasets.fracatlas import extent, fracatlas
from training.datasets.grazpedwri import grazpedwri
from training.datasets.mura import NAME, TABLES, mura
from training.datasets.radiograph import (
    MISSING,
    REGIONS,
    LabelledRadiograph,
    in_square,
    outline_mask,
    read_exposed,
    read_radiograph,
    split,
)
from training.datasets.tables import OWN_TABLES, tables

__all__ = [
    "ADAPTERS",
    "MISSING",
    "REGIONS",
    "LabelledRadiograph",
    "extent",
    "fracatlas",
    "grazpedwri",
    "in_square",
    "mura",
    "outline_mask",
    "radiographs",
    "read_exposed",
    "read_radiograph",
    "split",
    "tables",
]

ADAPTERS: dict[str, Callable[[Path], list[LabelledRadiograph]]] = {
    "fracatlas": fracatlas,
    "mura": mura,
    "grazpedwri": grazpedwri,
    "csv": tables,
    "dicom": tables,  # the same table: each of its radiographs is what its content says
}

LAYOUTS = f"""\
  fracatlas    a folder with labels.csv, polygons.json and images/
  mura         {NAME}/ or the folder that holds it, with {" and ".join(TABLES)}
  grazpedwri   a folder with dataset.csv, images_part1/ .. images_part4/ and folder_structure/
  csv, dicom   a .csv file, or a folder with radiographs.csv: columns image and patient, and what else is known"""


def radiographs(path: Path, kind: str = "") -> list[LabelledRadiograph]:
    """Read a data set.

    Args:
        path: folder of the data set, or a .csv file.
        kind: one of ADAPTERS; "" finds it out from the files that are there.

    Returns:
        Its radiographs, in the order of its tables.

    Raises:
        BadDataset: An unknown layout: lists the known ones. Else names the file and the line to mend.
    """
    if not path.exists():
        raise BadDataset(f"{path} does not exist: give the folder of a data set, or a .csv file")
    kind = kind or _kind(path)
    if kind not in ADAPTERS:
        raise BadDataset(f"'{kind}' is no kind of data set: give one of {', '.join(ADAPTERS)}")
    return ADAPTERS[kind](path)


def _kind(path: Path) -> str:
    if path.is_file() and path.suffix.lower() == ".csv":
        return "csv"
    if (path / "labels.csv").is_file() and (path / "polygons.json").is_file():
        return "fracatlas"
    if (path / TABLES[0]).is_file() or (path / NAME).is_dir():
        return "mura"
    if (path / "dataset.csv").is_file():
        return "grazpedwri"
    if any((path / name).is_file() for name in OWN_TABLES):
        return "csv"
    raise BadDataset(f"{path} has no layout that is known:\n{LAYOUTS}")
