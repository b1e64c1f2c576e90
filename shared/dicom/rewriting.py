"""Objects with some attributes changed, written without decoding or holding their pixels.

What an object said before stands in its Original Attributes Sequence. Source: PS3.3 C.12.1.1.9.1, PS3.5 7, PS3.10 7.
"""

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import BinaryIO, cast

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset, write_file_meta_info

from shared.dicom.elements import CountedFile, ReadBudget, uid_of
from shared.dicom.identifiers import read_meta
from shared.dicom.image import BIG_ENDIAN, DEFLATED, IMPLICIT_LE
from shared.dicom.originals import coerce_attributes
from shared.errors import CannotUnderstand

PIECE_BYTES = 1 << 20
UTF_8 = "ISO_IR 192"
_PIXELS = 0x7FE00008  # Pixel Data or a floating point kind of it; what follows is passed on as it is

Changes = Callable[[Dataset], Mapping[str, str]]


def rewrite(file: BinaryIO, changes: Changes, when: datetime, max_header_bytes: int) -> Iterator[bytes]:
    """Write an object with changed attributes, in its own transfer syntax.

    Args:
        file: the object, seekable, at its start.
        changes: gives new values by DICOM keyword for the data set up to its pixels; see `note_originals`.
        when: time of the change, with a time zone.
        max_header_bytes: bound on the data set without its pixels.

    Yields:
        The bytes of the new object.

    Raises:
        CannotUnderstand: the object has no file meta information.
        TooLarge: its data set goes on beyond the bound. pydicom's own errors pass through.
    """
    meta = read_meta(file)
    syntax = uid_of(meta, "TransferSyntaxUID")
    if not syntax:
        raise CannotUnderstand
    inflated = _InflatedFile(file)
    source = cast("BinaryIO", inflated) if syntax == DEFLATED else file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd values are common and harmless
        dataset = read_changed(source, syntax, changes, when, max_header_bytes)
        known = FileMetaDataset(meta)
        known.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", known.get("MediaStorageSOPInstanceUID"))
        head = DicomBytesIO()
        head.write(bytes(128) + b"DICM")
        write_file_meta_info(head, known, enforce_standard=False)
        body = _encode(dataset, syntax)
    yield head.getvalue()
    if syntax != DEFLATED:
        yield body
        yield from _rest(source)
        return
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    yield packer.compress(body)
    for piece in _rest(source):
        inflated.discard_read()
        yield packer.compress(piece)
    yield packer.flush()


def read_changed(file: BinaryIO, syntax: str, changes: Changes, when: datetime, max_header_bytes: int) -> Dataset:
    """Read a data set up to its pixels, and change it.

    Args:
        file: at the data set; left before the pixels.
        syntax: Transfer Syntax UID.
        changes: as `rewrite`.
        when: as `rewrite`.
        max_header_bytes: as `rewrite`.

    Returns:
        The data set. Its character set is UTF-8 where the new values need that.

    Raises:
        TooLarge: it goes on beyond the bound. pydicom's own errors pass through.
    """
    order = {IMPLICIT_LE: "", BIG_ENDIAN: ">"}.get(syntax, "<")
    dataset = read_dataset(
        CountedFile(file, ReadBudget(max_header_bytes), order),  # type: ignore[arg-type]
        is_implicit_VR=syntax == IMPLICIT_LE,
        is_little_endian=syntax != BIG_ENDIAN,
        stop_when=lambda tag, _vr, _length: int(tag) >= _PIXELS,
    )
    values = changes(dataset)
    if any(not _encodable(dataset, value) for value in values.values()):
        dataset.decode()
        dataset.SpecificCharacterSet = UTF_8
    coerce_attributes(dataset, values, when)
    return dataset


def _encodable(dataset: Dataset, value: str) -> bool:
    codecs = dataset.original_character_set
    try:
        for codec in [codecs] if isinstance(codecs, str) else codecs:
            value.encode(codec)
            return True
    except (UnicodeError, LookupError):
        pass
    return value.isascii()


def _encode(dataset: Dataset, syntax: str) -> bytes:
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = syntax == IMPLICIT_LE, syntax != BIG_ENDIAN
    write_dataset(out, dataset)
    return bytes(out.getvalue())


def _rest(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


class _InflatedFile:
    """A deflated data set, inflated as it is read; what was read can be read again until it is let go. PS3.5 A.5."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._machine = file, zlib.decompressobj(-zlib.MAX_WBITS)
        self._kept, self._start, self._position = bytearray(), 0, 0

    def read(self, size: int) -> bytes:
        while self._position + size > self._start + len(self._kept):
            packed = self._machine.unconsumed_tail or self._file.read(65536)
            if not packed or self._machine.eof:
                break
            self._kept += self._machine.decompress(packed, PIECE_BYTES)
        at = self._position - self._start
        data = bytes(self._kept[at : at + size])
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (self._position if whence else 0)
        return self._position

    def discard_read(self) -> None:
        del self._kept[: self._position - self._start]
        self._start = self._position
