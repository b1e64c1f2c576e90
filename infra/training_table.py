"""The ledger as a training table: films.csv beside pictures, as `osteon train --data` reads it; nobody is named in it.

A picture is the film's stored values as a 16-bit PNG, without its DICOM header; what is burned into the pixels stays.
A patient is a pseudonym, the same in every export of this installation, so that the split keeps a patient on one side.
"""

import csv
import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import cv2
import numpy as np

from shared.answers import Verdict
from shared.errors import ObjectMissing, OsteonError, Rejected
from shared.findings import Assessment
from shared.repository import Database
from shared.repository.access import Key, Vault
from shared.repository.answers import Labelled, labelled
from shared.storage import Store, original_key
from shared.vision.pixels import open_pixels
from training.datasets import REGIONS

COLUMNS = ("image", "patient", "region", "fracture", "severity", "ao", "boxes", "hardware", "weight")
README = """\
Films that readers answered, exported from Osteon. Research use only.

films.csv is read by `osteon train --data` of this folder. Labels are the readers', who saw the model's words before
they answered. Pictures are 16-bit PNG without any DICOM header, but text that a device burned into a film is still in
it: look before you pass them on. Patients are pseudonyms; who has this installation's OSTEON_IDENTITY_KEY can link
them to their films.
"""


@dataclass
class Label:
    """What readers say of one frame; None and empty: not said."""

    fracture: int | None = None
    region: str = ""
    severity: str = ""
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)  # x0 y0 x1 y1, shares of the frame
    contradicted: bool = False  # one reader's last word is a fracture, another's none


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    films: int
    without_label: int  # readers say neither whether it is fractured nor of which region
    contradicted: int  # readers contradict each other
    unreadable: int  # the original is missing, or cannot be decoded


def label(entries: Sequence[Labelled]) -> Label:
    """The label of one frame from all its standing entries, in order of answering; a later word outweighs an earlier.

    Agreeing takes over the model's assessment and region, and never its extent, which the reader did not look at.
    """
    made = Label()
    seen: dict[UUID, int] = {}  # the last word of each reader
    for one in entries:
        entry, finding = one.entry, one.finding
        fracture = {"yes": 1, "no": 0}.get(entry.fracture or "")
        if entry.verdict == Verdict.AGREE and finding.assessment != Assessment.ABSTAINED:
            fracture = int(finding.assessment != Assessment.NEGATIVE)
            made.region = finding.region if finding.region in REGIONS else made.region
        if fracture is not None:
            made.fracture = fracture
            seen[entry.key_id] = fracture
        made.region = entry.region if entry.region in REGIONS else made.region
        made.severity = entry.severity or made.severity
        for mark in entry.marks:
            if mark["instance"] == str(entry.instance_id) and mark["frame"] == entry.frame:
                x, y = mark["x"], mark["y"]
                made.boxes.append((x, y, min(1.0, x + mark["width"]), min(1.0, y + mark["height"])))
    made.contradicted = len(set(seen.values())) > 1
    if made.fracture != 1:
        made.boxes = []
    if made.fracture is not None and made.severity and (made.severity != "none") != (made.fracture == 1):
        made.severity = ""
    return made


def export(
    database: Database, store: Store, vault: Vault, salt: bytes, reader: Key, out: Path, since: datetime | None = None,
    watch: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, _: items,
) -> Exported:  # fmt: skip
    """Write films.csv, films/ and README.txt into `out`, a new or empty folder.

    salt: what pseudonyms are made with; reader: under whose key identities are read; since: only films that were
    answered from then on; watch: shows progress over (items, their number).
    Raises OsteonError if the folder holds something, Unavailable.
    """
    if out.exists() and any(out.iterdir()):
        raise OsteonError(f"{out} holds files already: give a new folder with --out")
    with database.transaction() as session:
        entries = labelled(session, reader.site_id, since)
        identities = vault.identities(session, reader, list({one.entry.study_id for one in entries}))
    frames: dict[tuple[UUID, int], list[Labelled]] = {}
    for one in entries:
        frames.setdefault((one.instance.id, one.finding.frame), []).append(one)
    (out / "films").mkdir(parents=True, exist_ok=True)
    rows, left = [], {"without_label": 0, "contradicted": 0, "unreadable": 0}
    for group in watch(frames.values(), len(frames)):
        made = label(group)
        if made.contradicted or (made.fracture is None and not made.region):
            left["contradicted" if made.contradicted else "without_label"] += 1
            continue
        study = group[0].entry.study_id
        known = identities.get(study)
        whose = f"patient {known.patient_id}" if known and known.patient_id else f"study {study}"
        picture = f"films/{_pseudonym(salt, f'{group[0].instance.id} {group[0].finding.frame}')}.png"
        size = _write_picture(store, group[0], out / picture)
        if size is None:
            left["unreadable"] += 1
            continue
        rows.append(_row(made, picture, _pseudonym(salt, f"{reader.site_id} {whose}"), size))
    with (out / "films.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(sorted(rows))
    (out / "README.txt").write_text(README, encoding="utf-8")
    return Exported(len(rows), **left)


def _row(made: Label, picture: str, patient: str, size: tuple[int, int]) -> list[str]:
    """A row of films.csv; size: (width, height) of the picture in pixels, which boxes are given in."""
    width, height = size
    corners = [(x0 * width, y0 * height, x1 * width, y1 * height) for x0, y0, x1, y1 in made.boxes]
    boxes = "; ".join(" ".join(f"{value:.2f}" for value in box) for box in corners)
    fracture = "" if made.fracture is None else str(made.fracture)
    return [picture, patient, made.region, fracture, made.severity, "", boxes, "", ""]


def _pseudonym(salt: bytes, what: str) -> str:
    return hmac.new(salt, what.encode(), hashlib.sha256).hexdigest()[:24]


def _write_picture(store: Store, one: Labelled, path: Path) -> tuple[int, int] | None:
    """The frame as a 16-bit PNG whose steps are the film's own where 16 bits hold them; (width, height) in pixels.

    None if the original is missing or cannot be decoded.
    """
    try:
        frame = open_pixels(store.get(original_key(one.instance.sha256))).frame(one.finding.frame - 1)
    except (ObjectMissing, Rejected, IndexError):
        return None
    low, high = float(frame.min()), float(frame.max())
    values = frame - low
    if high - low > np.iinfo(np.uint16).max or not np.array_equal(values, np.rint(values)):
        values *= np.iinfo(np.uint16).max / (high - low)
    cv2.imwrite(str(path), np.rint(values).astype(np.uint16))
    return frame.shape[1], frame.shape[0]
