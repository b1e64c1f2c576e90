"""The UIDs of a file that may be refused: what its sender knows it by. Source: PS3.10 7, PS3.18 I."""

import io
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag

from shared.dicom.elements import CountedFile, ReadBudget, read_plain, uid_of
from shared.dicom.header import PREAMBLE, UID_PATTERN
from shared.dicom.image import BIG_ENDIAN, DEFLATED, IMPLICIT_LE

MAX_BYTES = 1 << 18  # read of one file for its UIDs
_LAST = int(Tag("SeriesInstanceUID"))
_WANTED = frozenset(
    int(Tag(keyword)) for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
)


@dataclass(frozen=True)
class Identifiers:
    """UIDs of an instance; "" for what its file does not tell, or tells in no valid form."""

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""


def identifiers(file: BinaryIO) -> Identifiers:
    """Read the UIDs of a file, as far as it can be read; nothing else of it is checked.

    Args:
        file: seekable, at its start; left anywhere.

    Returns:
        Its UIDs. Class and instance are those of the file meta information where the data set cannot be read.
    """
    meta, dataset = Dataset(), Dataset()
    try:
        meta = read_meta(file)
        dataset = _dataset(file, uid_of(meta, "TransferSyntaxUID"))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - pydicom raises nearly anything on damaged headers
        dataset = Dataset()
    return Identifiers(
        _uid(dataset, "SOPClassUID") or _uid(meta, "MediaStorageSOPClassUID"),
        _uid(dataset, "SOPInstanceUID") or _uid(meta, "MediaStorageSOPInstanceUID"),
        _uid(dataset, "StudyInstanceUID"),
        _uid(dataset, "SeriesInstanceUID"),
    )


def read_meta(file: BinaryIO) -> Dataset:
    """Read the file meta information, with a preamble or without; empty where there is none.

    Args:
        file: seekable, at its start; left behind it.

    Returns:
        Group 0002. pydicom's errors pass through.
    """
    if file.read(PREAMBLE + 4)[PREAMBLE:] != b"DICM":
        file.seek(0)
        if file.read(4) != b"\x02\x00\x00\x00":
            return Dataset()
        file.seek(0)
    return _read(file, "<", implicit=False, last=0x0002FFFF)


def _dataset(file: BinaryIO, syntax: str) -> Dataset:
    if not syntax:
        return Dataset()
    if syntax == DEFLATED:
        file = io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(MAX_BYTES), MAX_BYTES))
    return _read(file, ">" if syntax == BIG_ENDIAN else "<", implicit=syntax == IMPLICIT_LE, last=_LAST)


def _read(file: BinaryIO, order: str, *, implicit: bool, last: int) -> Dataset:
    budget = ReadBudget(MAX_BYTES)
    tags = None if last < _LAST else _WANTED
    plain = read_plain(file, budget, order, lambda tag: tag > last, tags, implicit=implicit, any_stop=True)
    if plain:
        return plain[0]
    return read_dataset(
        CountedFile(file, budget, "" if implicit else order),  # type: ignore[arg-type]
        is_implicit_VR=implicit,
        is_little_endian=order == "<",
        stop_when=lambda tag, _vr, _length: int(tag) > last,
        specific_tags=None if tags is None else list(tags),
    )


def _uid(dataset: Dataset, keyword: str) -> str:
    raw = dataset.get_item(keyword, keep_deferred=True)
    if isinstance(raw, RawDataElement) and raw.length != len(raw.value or b""):
        return ""  # the file ends within the value
    try:
        value = uid_of(dataset, keyword)
    except Exception:  # noqa: BLE001 - as above
        return ""
    return value if len(value) <= 64 and UID_PATTERN.fullmatch(value) else ""
