"""The one path from the stored bytes of a DICOM file to images; training and the worker both use it.

stored values -> sign and significant bits -> modality LUT or rescale -> MONOCHROME1 inverted = `frame`
                                                        \\-> VOI LUT -> MONOCHROME1 inverted = `display`

`frame` leaves the VOI LUT out, sigmoid and LUT Sequence included: it is the sender's taste, differs between
consoles, and clips; the network's own window (`tensors.prepare`) comes instead. Presentation LUT Shape is not
looked at: PS3.3 C.8.11.3.1.2 ties it to the photometric interpretation, which is what decides here.

open_pixels checks everything that the header tells before anything is allocated, and keeps of the data set only
the numbers below: nothing in a PixelSource names a patient.
"""

import io
import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset

from shared.errors import (
    BadAttributes,
    CannotUnderstand,
    EmptyFile,
    NoFileMeta,
    NoPixelData,
    NotDicom,
    Rejected,
    TooLarge,
    TruncatedPixels,
    UndecodablePixels,
    UnknownTransferSyntax,
    UnsupportedPixels,
)
from shared.vision import luts
from shared.vision.codecs import ENCAPSULATED, decode_frame
from shared.vision.tensors import Float32Image, UInt8Image

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = frozenset({IMPLICIT_LE, EXPLICIT_LE, DEFLATED, BIG_ENDIAN})

_PREAMBLE = 128
_UNDEFINED = 0xFFFFFFFF
_FLOAT, _DOUBLE, _PIXELS = 0x7FE00008, 0x7FE00009, 0x7FE00010
_ITEM, _DELIMITER = 0xFFFEE000, 0xFFFEE0DD
_MOST_FRAGMENTS = 100_000  # a film has a handful; walking millions of empty ones would take minutes
_INFLATE_STEP = 1 << 20
_quiet_lock = threading.Lock()


@dataclass(frozen=True)
class PixelLimits:
    """Bounds on what one file may claim."""

    max_frame_pixels: int = 60_000_000
    max_frames: int = 200
    max_decoded_bytes: int = 2 * 2**30  # all frames as stored, and a deflated data set once inflated


@dataclass(frozen=True)
class Frame:
    """One frame, numbered as DICOM does."""

    number: int  # 1 for the first
    image: Float32Image  # (H, W), as PixelSource.frame gives it


@dataclass(frozen=True)
class PixelSource:
    """An image that is checked and ready to be decoded, frame by frame. Made by open_pixels; safe to share."""

    rows: int
    columns: int
    frames: int
    modality: str  # DICOM's code, "" when the file has none
    photometric: str  # MONOCHROME1 or MONOCHROME2
    bits_allocated: int  # 8, 16 or 32
    bits_stored: int
    high_bit: int
    signed: bool
    transfer_syntax: str
    little_endian: bool
    swapped_bytes: bool  # 8-bit samples packed into big endian words (PS3.5 A.3)
    transforms: tuple[luts.Transform, ...] = field(repr=False)  # one for all frames, or one each
    data: bytes = field(repr=False)
    start: int = field(repr=False)  # of the Pixel Data value in data
    offsets: tuple[bytes, bytes] | None = field(repr=False)  # Extended Offset Table and its lengths

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order, one decoded at a time."""
        return (Frame(i + 1, self.frame(i)) for i in range(self.frames))

    def frame(self, i: int) -> Float32Image:
        """Decode frame i, 0 for the first.

        Returns (rows, columns) float32 in the modality's own units (not scaled to [0, 1]), white is bone.
        MONOCHROME1 is mirrored within the range that Bits Stored can hold, so that a film and its negative give
        the same frame to the bit. Raises IndexError, UndecodablePixels, TruncatedPixels, UnsupportedPixels.
        Source: PS3.3 C.7.6.3.1.2, C.11.1.
        """
        values = self.modality_values(i)
        if self.photometric == "MONOCHROME1":
            low, high = self.transform(i).modality.ends(*self.stored_ends)
            np.subtract(np.float32(low + high), values, out=values)
        return values

    def modality_values(self, i: int) -> Float32Image:
        """Frame i as (rows, columns) float32 after the modality LUT or rescale, not inverted. Raises as frame."""
        return self.transform(i).modality.apply(self.stored(i))

    def stored(self, i: int) -> npt.NDArray[np.integer[Any]]:
        """Frame i as (rows, columns) integers, sign extended from the significant bits. Raises as frame."""
        if not 0 <= i < self.frames:
            raise IndexError(f"frame {i} of {self.frames}")
        if self.transfer_syntax in NATIVE:
            return _significant(self._native(i), self.bits_stored, self.high_bit, self.signed)
        try:
            buffer = io.BytesIO(self.data)  # shares the bytes, does not copy them
            buffer.seek(self.start)
            frame = get_frame(buffer, i, number_of_frames=self.frames, extended_offsets=self.offsets)
        except Exception as broken:  # noqa: BLE001 - offset tables of damaged files raise nearly anything
            raise UndecodablePixels(f"{UndecodablePixels.__doc__} ({type(broken).__name__})") from None
        values, bits = decode_frame(self.transfer_syntax, frame, self.rows, self.columns, self.bits_allocated)
        if bits is None:
            return _significant(values, self.bits_stored, self.high_bit, self.signed)
        # the stream's own precision rules; its sign does not where it contradicts the header, as pydicom has it
        return _significant(values, bits, bits - 1, self.signed)

    def transform(self, i: int) -> luts.Transform:
        """The modality and VOI transform of frame i."""
        return self.transforms[i if len(self.transforms) > 1 else 0]

    @property
    def stored_ends(self) -> tuple[int, int]:
        """Least and greatest value that Bits Stored can hold."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1

    def _native(self, i: int) -> npt.NDArray[Any]:
        pixels = self.rows * self.columns
        if self.swapped_bytes:
            first, last = i * pixels, (i + 1) * pixels
            words = np.frombuffer(self.data, ">u2", (last + 1) // 2 - first // 2, self.start + first // 2 * 2)
            samples: npt.NDArray[Any] = words.astype("<u2").view(np.uint8)[first % 2 :][:pixels]
        else:
            size = self.bits_allocated // 8
            dtype = f"{'<' if self.little_endian else '>'}u{size}"
            samples = np.frombuffer(self.data, dtype, pixels, self.start + i * pixels * size)
        return samples.reshape(self.rows, self.columns)


def display(source: PixelSource, i: int) -> UInt8Image:
    """The preview of frame i for people, 0 for the first.

    Returns (rows, columns) uint8, 0..255, white is bone: the file's VOI LUT, or a 0.5..99.5 percentile window where
    it has none or a useless one. A blank image is 0. Raises as PixelSource.frame.
    Source: PS3.3 C.11.2.
    """
    voi = source.transform(i).voi
    if voi is not None:
        shown = voi.apply(source.modality_values(i))
        if source.photometric == "MONOCHROME1":
            shown = 1 - shown
        if shown.max() - shown.min() >= 1 / 255:
            return luts.to_uint8(shown)
    return luts.to_uint8(luts.percentile_window(source.frame(i)))


def open_pixels(data: bytes, limits: PixelLimits = PixelLimits()) -> PixelSource:  # noqa: B008 - frozen
    """Read and check the header of a DICOM file; decode nothing yet.

    data: the whole file. Returns the source of its frames, which holds on to data.
    Raises EmptyFile, NotDicom, NoFileMeta, CannotUnderstand, UnknownTransferSyntax, NoPixelData, UnsupportedPixels,
    BadAttributes, TooLarge, TruncatedPixels, UndecodablePixels.
    Source: PS3.10 7.1, PS3.3 C.7.6.3, PS3.5 8 and A.
    """
    try:
        with _quiet():
            return _open(data, limits)
    except Rejected:
        raise
    except Exception as broken:  # noqa: BLE001 - pydicom raises nearly anything on damaged headers
        # the text may quote a patient's values, so only the kind is passed on
        raise CannotUnderstand(f"{CannotUnderstand.__doc__} ({type(broken).__name__})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom: it warns of harmless oddities, in words that quote values."""
    logger = logging.getLogger("pydicom")
    with _quiet_lock, warnings.catch_warnings():  # filters belong to the process, hence the lock
        warnings.simplefilter("ignore")
        before, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = before


def _open(data: bytes, limits: PixelLimits) -> PixelSource:
    syntax, at = _file_meta(data)
    if syntax not in NATIVE and syntax not in ENCAPSULATED:
        # only a well-formed UID is repeated; a damaged file could hold anything there
        named = f" ({syntax})" if re.fullmatch(r"[0-9.]{1,64}", syntax) else ""
        raise UnknownTransferSyntax(f"{UnknownTransferSyntax.__doc__}{named}")
    if syntax == DEFLATED:
        data, at = _inflate(data, at, limits.max_decoded_bytes), 0
    file = io.BytesIO(data)
    file.seek(at)
    dataset = read_dataset(
        file,
        is_implicit_VR=syntax == IMPLICIT_LE,
        is_little_endian=syntax != BIG_ENDIAN,
        stop_when=lambda tag, _vr, _length: tag >= _FLOAT,
    )
    order = "<" if syntax != BIG_ENDIAN else ">"
    tag, vr, start, length = _element(data, file.tell(), order, implicit=bool(dataset.original_encoding[0]))
    if tag in (_FLOAT, _DOUBLE):
        raise UnsupportedPixels
    if tag != _PIXELS or length == 0:
        if _cut_short(dataset, data):
            raise CannotUnderstand
        raise NoPixelData
    source = _describe(dataset, data, start, syntax, vr)
    _check_size(source, limits)
    if syntax in NATIVE:
        _check_native(source, length)
    else:
        _check_fragments(source, length)
    return source


def _file_meta(data: bytes) -> tuple[str, int]:
    """Transfer syntax UID, and where the data set begins. Source: PS3.10 7.1."""
    if not data:
        raise EmptyFile
    at = _PREAMBLE + 4 if data[_PREAMBLE : _PREAMBLE + 4] == b"DICM" else 0
    if at == 0 and data[:4] != b"\x02\x00\x00\x00":
        # a bare data set begins with group 0008, in either byte order
        bare = data[:2] in (b"\x08\x00", b"\x00\x08") and len(data) >= 8
        raise NoFileMeta if bare else NotDicom
    file = io.BytesIO(data)
    file.seek(at)
    meta = read_dataset(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, _vr, _length: tag.group != 2
    )
    syntax = str(meta.get("TransferSyntaxUID", "") or "")
    if not syntax:
        raise NoFileMeta
    return syntax, file.tell()


def _inflate(data: bytes, at: int, most: int) -> bytes:
    """A deflated data set, inflated. Counted first and thrown away, so that a bomb costs no memory."""
    for keep in (False, True):
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        left, total, parts = memoryview(data)[at:], 0, io.BytesIO()
        while not inflate.eof:
            part = inflate.decompress(left, _INFLATE_STEP)
            left = memoryview(inflate.unconsumed_tail)
            total += len(part)
            if total > most:
                raise TooLarge(f"The deflated data set expands beyond {most} bytes")
            if not part and not left:
                break  # cut short: what is there tells how
            if keep:
                parts.write(part)
    return parts.getvalue()


def _element(data: bytes, at: int, order: str, *, implicit: bool) -> tuple[int, str, int, int]:
    """Tag, VR, start and length of the value of the element at `at`; tag 0 at the end. Source: PS3.5 7.1."""
    if len(data) - at < (8 if implicit else 12):
        return 0, "", at, 0
    group, element = struct.unpack_from(f"{order}HH", data, at)
    tag = group << 16 | element
    if implicit:
        return tag, "OW", at + 8, struct.unpack_from(f"{order}L", data, at + 4)[0]
    vr = data[at + 4 : at + 6].decode("ascii", "replace")
    return tag, vr, at + 12, struct.unpack_from(f"{order}L", data, at + 8)[0]


def _cut_short(dataset: Dataset, data: bytes) -> bool:
    """Whether the file ends within an element, which pydicom passes over in silence."""
    end = 0
    for tag in dataset.keys():
        raw = dataset.get_item(tag)
        tell, length = getattr(raw, "value_tell", None), getattr(raw, "length", None)
        if tell and length is not None and length != _UNDEFINED:
            end = max(end, tell + length)
    return end > len(data)
