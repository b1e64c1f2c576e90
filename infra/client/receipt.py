"""What became of each file, as a table for people and programs."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO


class FileStatus(StrEnum):
    """What became of a file: the API's responses, and two that are known here only."""

    STORED = "stored"
    KEPT = "kept"  # stored, and not analysed
    DUPLICATE = "duplicate"
    REJECTED = "rejected"
    CONFLICT = "conflict"  # stored; an administrator of the API decides what becomes of it
    CORRECTION = "correction"  # stored, until an administrator applies it
    COMPARING = "comparing"  # stored; the API compares it with an image that it has
    SKIPPED = "skipped"  # no image by design
    UNREADABLE = "unreadable"  # this computer could not read it
    UNSENT = "unsent"  # interrupted, or given up


HELD = (
    FileStatus.CONFLICT,
    FileStatus.CORRECTION,
    FileStatus.COMPARING,
)  # stored, and nothing that a sender could do better
KEPT = (FileStatus.STORED, FileStatus.KEPT, FileStatus.DUPLICATE, *HELD)
NOTHING_TO_DO = (*KEPT, FileStatus.SKIPPED)  # nothing is to be done about these
SENT_BEFORE = "stored by an earlier run of this command, and unchanged since: not sent again"


@dataclass(frozen=True, slots=True)
class ReceiptLine:
    """One file of the receipt; None where there is nothing to say."""

    file: str
    outcome: FileStatus
    reason: str | None = None  # stable word for scripts
    failure: str | None = None  # DICOM Failure Reason (0008,1197), hexadecimal
    text: str | None = None
    study_id: str | None = None
    sop_instance_uid: str | None = None
    sha256: str | None = None
    bytes: int | None = None  # on the disk; of an archive's member, unpacked
    seconds: float | None = None  # the request that brought it took so long, attempts and waits together


COLUMNS = tuple(field.name for field in fields(ReceiptLine))


def counts(lines: Iterable[ReceiptLine]) -> dict[str, int]:
    """Count the files of each status; all are there."""
    found = Counter(line.outcome for line in lines)
    return {fate.value: found[fate] for fate in FileStatus}


def reasons(lines: Iterable[ReceiptLine]) -> dict[str, int]:
    """Count the files that were not kept for each reason, the most frequent first."""
    found = Counter(line.reason or "" for line in lines if line.outcome not in NOTHING_TO_DO)
    return dict(found.most_common())


def printable(text: str) -> str:
    """Make a file name printable: on one line, and without what no terminal can print."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def open_private(path: Path) -> TextIO:
    """Open a new text file that only its owner may read: file names and accession numbers may name patients."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return open(descriptor, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: PTH123 - a descriptor


def write(path: Path, lines: Sequence[ReceiptLine], summary: dict[str, Any]) -> None:
    """Write a receipt file.

    A file name that is no UTF-8 is written as its bytes in CSV, and as lone surrogates (as Python has it) in JSON.

    Args:
        path: JSON if its name ends so, else CSV with COLUMNS as header; only its owner may read it.
        lines: one a file.
        summary: goes into JSON only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".json":
        with open_private(path) as file:
            json.dump(summary | {"files": [asdict(line) for line in lines]}, file, indent=1, default=str)
        return
    with open_private(path) as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(asdict(line) for line in lines)
