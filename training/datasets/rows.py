"""Reads tables of labels; an error names the file and the line."""

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from shared.errors import BadDataset
from training.datasets.radiograph import MISSING, REGIONS, LabelledRadiograph

REGION = {"": MISSING, **{name: index for index, name in enumerate(REGIONS)}}
FLAG = {"0": 0, "1": 1}


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    table: Path
    line: int  # where it begins, 1 for the first line of the file
    cells: dict[str, str]  # without the blanks around them

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")

    def choice(self, column: str, words: Mapping[str, int]) -> int:
        """Translate the word in a cell, in lower case.

        Args:
            column: "" counts as its word where the table has no such column.
            words: the words that may be there, and what each stands for.

        Returns:
            What the word stands for.

        Raises:
            ValueError: The cell holds another word; lists the known ones.
        """
        word = self[column].lower()
        if word not in words:
            known = ", ".join(known or "nothing" for known in words)
            raise ValueError(f"{column} is '{self[column]}': give one of {known}")
        return words[word]

    def whole(self, column: str) -> int:
        """Read the cell as a whole number, 1 or more; raises ValueError for anything else."""
        if not self[column].isdecimal() or int(self[column]) < 1:
            raise ValueError(f"{column} is '{self[column]}': give a whole number, 1 or more")
        return int(self[column])


def read_text(path: Path) -> str:
    """Read a whole text file; raises BadDataset if it is missing, is not UTF-8 (the line is named), or holds a NUL."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadDataset(f"{path} is missing: give the folder that holds it") from None
    except OSError as error:
        raise BadDataset(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")  # spreadsheets put a mark before UTF-8
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadDataset(f"{path}, line {line}: not UTF-8; save the file as UTF-8 text") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BadDataset(f"{path}, line {line}: holds a NUL, so it is damaged or not plain text; export it again")
    return text


def read_rows(
    table: Path, needed: Sequence[str], *, optional: Collection[str] | None = None, has_head: bool = True
) -> list[Row]:
    """Read the rows of a CSV file in UTF-8; empty ones are passed over.

    Args:
        table: the file.
        needed: columns that must be there, and where has_head is false all columns, in order.
        optional: the only other columns that may be there; None allows any.
        has_head: whether the first row names the columns.

    Returns:
        The rows in order, without the head.

    Raises:
        BadDataset: Names the file and the line that is wrong.
    """
    text = read_text(table)
    if not text.strip():
        raise BadDataset(f"{table} is empty: export it again")
    columns = [] if has_head else [*needed]
    rows: list[Row] = []
    lines, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for cells in lines:
            texts = [cell.strip() for cell in cells]
            if not any(texts):
                pass
            elif not columns:
                _check_head(f"{table}, line {line}", texts, needed, optional)
                columns = texts
            elif len(texts) != len(columns):
                raise BadDataset(
                    f"{table}, line {line}: has {len(texts)} cells where {len(columns)} are due; mend the row"
                )
            else:
                rows.append(Row(table, line, dict(zip(columns, texts, strict=True))))
            line = lines.line_num + 1
    except csv.Error as error:
        raise BadDataset(f"{table}, line {line}: {error}; mend its quotes, or export it again") from error
    return rows


def _check_head(where: str, columns: list[str], needed: Sequence[str], optional: Collection[str] | None) -> None:
    for name in needed:
        if name not in columns:
            raise BadDataset(f"{where}: no column {name}; found {', '.join(columns)} (commas must separate them)")
    for at, name in enumerate(columns):
        if name in columns[:at]:
            raise BadDataset(f"{where}: two columns are named '{name}'; keep one")
        if optional is not None and name not in needed and name not in optional:
            raise BadDataset(f"{where}: unknown column '{name}'; known are {', '.join((*needed, *optional))}")


def check_unique(rows: list[Row], key: Callable[[Row], str]) -> None:
    """Refuse a table where two rows have the same key.

    Args:
        rows: of one table.
        key: gives what must be unique.

    Raises:
        BadDataset: Names both lines.
    """
    first: dict[str, int] = {}
    for row in rows:
        line = first.setdefault(key(row), row.line)
        if line != row.line:
            raise BadDataset(f"{row.table}, line {row.line}: {key(row)} is on line {line} already; keep one of the two")


def path_inside(folder: Path, name: str) -> Path:
    """Find a file in a folder or below it.

    Args:
        folder: the file must not lie outside.
        name: path from the folder, as a table has it.

    Returns:
        Path of a file that exists.

    Raises:
        ValueError: It is not there, or would lie outside.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"'{name}' leads out of {folder}: give a path within it")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} does not exist: mend the name, or put the file there")
    return path


def radiographs_of_rows(
    table: Path, rows: list[Row], radiographs_of: Callable[[Row], Iterable[LabelledRadiograph]]
) -> list[LabelledRadiograph]:
    """Make radiographs of rows. Uses threads, for nearly all the time goes into opening files.

    Args:
        table: named in errors and in the progress bar.
        rows: of that table.
        radiographs_of: makes the radiographs of one row; its ValueError, OSError and BadDataset become BadDataset.

    Returns:
        The radiographs of all rows, in order.

    Raises:
        BadDataset: What radiographs_of raised, with file and line of the row; or there is no radiograph at all.
    """

    def of(row: Row) -> list[LabelledRadiograph]:
        try:
            return [*radiographs_of(row)]
        except (ValueError, OSError, BadDataset) as error:
            raise BadDataset(f"{row.table}, line {row.line}: {error}") from error

    with ThreadPoolExecutor(8) as pool:
        read = tqdm(pool.map(of, rows), desc=f"read {table.name}", total=len(rows), unit="row", delay=2)
        radiographs = [radiograph for some in read for radiograph in some]
    if not radiographs:
        raise BadDataset(f"{table} has no usable row: a radiograph is needed at least")
    return radiographs
