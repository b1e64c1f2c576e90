"""Data sets as one table of films. `films` reads any of them; each has an adapter in its own file."""

from collections.abc import Callable
from pathlib import Path

from shared.errors import BadDataset
from training.datasets.film import MISSING, REGIONS, Film, in_square, outline_mask, read_exposed, read_film, split
from training.datasets.fracatlas import extent, fracatlas
from training.datasets.grazpedwri import grazpedwri
from training.datasets.mura import NAME, TABLES, mura
from training.datasets.tables import tables

__all__ = [
    "ADAPTERS",
    "MISSING",
    "REGIONS",
    "Film",
    "extent",
    "films",
    "fracatlas",
    "grazpedwri",
    "in_square",
    "mura",
    "outline_mask",
    "read_exposed",
    "read_film",
    "split",
    "tables",
]

ADAPTERS: dict[str, Callable[[Path], list[Film]]] = {
    "fracatlas": fracatlas,
    "mura": mura,
    "grazpedwri": grazpedwri,
    "csv": tables,
    "dicom": tables,  # the same table: each of its films is what its content says
}

LAYOUTS = f"""\
  fracatlas    a folder with labels.csv, polygons.json and images/
  mura         {NAME}/ or the folder that holds it, with {" and ".join(TABLES)}
  grazpedwri   a folder with dataset.csv, images_part1/ .. images_part4/ and folder_structure/
  csv, dicom   a .csv file, or a folder with films.csv: columns image and patient, and what else is known"""


def films(path: Path, kind: str = "") -> list[Film]:
    """The films of a data set.

    kind: one of ADAPTERS; "" finds it out from the files that are there.
    Raises BadDataset: for an unknown layout it lists the known ones, else it names the file and the line to mend.
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
    if (path / "films.csv").is_file():
        return "csv"
    raise BadDataset(f"{path} has no layout that is known:\n{LAYOUTS}")
