"""Compares a list of expected studies with the receipt."""

import csv
import io
import re
import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import pydicom

from infra.client.body import SendError, open_item
from infra.client.receipt import KEPT, FileStatus, ReceiptLine, open_private
from infra.client.walk import Item
from shared.dicom import header as dicom  # noqa: F401 - keeps pydicom from logging values
from shared.errors import OsteonError

# headers are compared without case, spaces and signs; DICOM tags are understood too
HEADERS = {
    "sop_instance_uid": ("sopinstanceuid", "sopuid", "sop", "instanceuid", "imageuid", "00080018"),
    "study_instance_uid": ("studyinstanceuid", "studyuid", "study", "0020000d"),
    "accession_number": ("accessionnumber", "accession", "accessionno", "accessionnr", "accno", "00080050"),
    "images": (
        "images", "imagecount", "instances", "instancecount", "numberofimages", "numberofinstances", "expectedimages",
        "expected", "count", "numberofstudyrelatedinstances", "00201208",
    ),
}  # fmt: skip
KNOWN_COLUMNS = (
    "sop_instance_uid (or SOPInstanceUID, Image UID, 0008,0018), study_instance_uid (or StudyInstanceUID, Study UID, "
    "0020,000D), accession_number (or Accession No, 0008,0050), and images (or Number of Images, Instances, Count)"
)
_ONE_AT_A_TIME = threading.Lock()  # as catch_warnings needs
TAGS = ["SOPInstanceUID", "StudyInstanceUID", "AccessionNumber"]


class ManifestState(StrEnum):
    """What became of an entry."""

    CAME = "came"
    INCOMPLETE = "incomplete"  # fewer images than promised
    REJECTED = "rejected"  # it was sent, and not taken
    MISSING = "missing"  # it never came


@dataclass(frozen=True)
class Identifiers:
    """Identifiers in a file's header, read on this computer; "" where one is missing."""

    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    accession_number: str = ""


@dataclass(frozen=True)
class ManifestEntry:
    """A row of the manifest: one image, or one study by its UID or its accession number."""

    row: int  # in the file, 1 for the header
    wanted: Identifiers
    images: int | None  # promised at least; None: not said, one is enough

    @property
    def key(self) -> tuple[str, str]:
        """The most exact identifier that the row has, and its value."""
        return next((name, value) for name, value in asdict(self.wanted).items() if value)


@dataclass(frozen=True)
class ReconciliationRow:
    """A row of the result; unpromised files have no manifest row, and `kept` is "unpromised"."""

    kept: str
    row: int | None
    sop_instance_uid: str
    study_instance_uid: str
    accession_number: str
    promised: int | None  # images
    came: int | None
    file: str  # of what was rejected, or came unpromised
    text: str


def read_manifest(path: Path) -> list[ManifestEntry]:
    """Read each row once; raises OsteonError if no column is understood or a count is no number."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = _columns(next(rows, []))
    if not columns.keys() - {"images"}:
        raise OsteonError(f"{path} has no column that is understood. Its first line must name one of: {KNOWN_COLUMNS}")
    found: dict[tuple[str, str], ManifestEntry] = {}
    for cells in rows:
        values = {name: cells[at].strip() if at < len(cells) else "" for name, at in columns.items()}
        images = values.pop("images", "")
        if not any(values.values()):
            continue
        if images and not images.isdecimal():
            raise OsteonError(
                f"{path}, line {rows.line_num}: {images!r} is no number of images; write a whole number, or nothing"
            )
        entry = ManifestEntry(rows.line_num, Identifiers(**values), int(images) if images else None)
        found.setdefault(entry.key, entry)
    return list(found.values())


def _columns(header: Sequence[str]) -> dict[str, int]:
    spelled = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in header]
    return {
        name: next(at for at, spelling in enumerate(spelled) if spelling in understood)
        for name, understood in HEADERS.items()
        if any(spelling in understood for spelling in spelled)
    }


def identify(item: Item) -> Identifiers:
    """Read identifiers from the file's header; they are empty if it cannot be read."""
    try:
        with (
            _ONE_AT_A_TIME,
            warnings.catch_warnings(action="ignore"),
            open_item(item) as file,
        ):  # as in shared.dicom.header: values are quoted
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS)
            return Identifiers(*(str(header.get(tag) or "").strip() for tag in TAGS))
    except SendError:
        return Identifiers()
    except Exception:  # noqa: BLE001 - whatever a damaged file leads pydicom to
        return Identifiers()


def reconcile(
    entries: Sequence[ManifestEntry], sent: Iterable[tuple[ReceiptLine, Identifiers]]
) -> list[ReconciliationRow]:
    """Compare what was promised with what was sent. The same image in two files came once.

    Args:
        entries: rows of the manifest.
        sent: the receipt's lines, each with what the file's header says.

    Returns:
        Every entry with how it was kept, then every file that the API has though nobody promised it.
    """
    by_key = {entry.key: entry for entry in entries}
    came: dict[tuple[str, str], set[str]] = {}
    rejected: dict[tuple[str, str], list[ReceiptLine]] = {}
    unpromised: dict[str, ReconciliationRow] = {}
    for line, header in sent:
        uid = line.sop_instance_uid or header.sop_instance_uid
        values = asdict(header) | {"sop_instance_uid": uid}
        keys = [key for key in values.items() if key in by_key]
        if line.outcome in KEPT:
            for key in keys:
                came.setdefault(key, set()).add(uid)
            if not keys:
                text = "the manifest has no such row"
                row = ReconciliationRow("unpromised", None, **values, promised=None, came=1, file=line.file, text=text)
                unpromised.setdefault(uid, row)
        elif line.outcome not in (FileStatus.UNSENT, FileStatus.SKIPPED):
            for key in keys:
                rejected.setdefault(key, []).append(line)
    kept = [_reconciled_row(entry, len(came.get(entry.key, ())), rejected.get(entry.key, [])) for entry in entries]
    return kept + list(unpromised.values())


def _reconciled_row(entry: ManifestEntry, came: int, rejected: list[ReceiptLine]) -> ReconciliationRow:
    promised = entry.images or 1
    file, text = "", ""
    if came >= promised:
        kept = ManifestState.CAME
    elif rejected:
        kept = ManifestState.REJECTED
        file, text = rejected[0].file, rejected[0].text or ""
    else:
        kept = ManifestState.INCOMPLETE if came else ManifestState.MISSING
        text = f"{promised - came} of {promised} images never came" if entry.images else "it never came"
    return ReconciliationRow(
        kept, entry.row, **asdict(entry.wanted), promised=entry.images, came=came, file=file, text=text
    )


def write_result(path: Path, rows: Sequence[ReconciliationRow]) -> None:
    """Write the result as CSV, a line an entry or unpromised file.

    Args:
        path: of the file, which only its owner may read.
        rows: what `reconcile` returned.
    """
    with open_private(path) as file:
        table = csv.DictWriter(file, [field.name for field in fields(ReconciliationRow)])
        table.writeheader()
        table.writerows(asdict(row) for row in rows)


def counts(rows: Sequence[ReconciliationRow]) -> dict[str, Any]:
    """Count the rows of each kind."""
    return {kind: sum(row.kept == kind for row in rows) for kind in (*ManifestState, "unpromised")}
