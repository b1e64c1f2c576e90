"""The one path from the stored bytes of a DICOM file to images; training and the worker both use it.

    stored values -> modality LUT or rescale -> MONOCHROME1 mirrored               = PixelSource.frame, for the network
                                            -> VOI LUT -> MONOCHROME1 mirrored    = display, for people

`frame` leaves the VOI LUT out, sigmoid and LUT Sequence included: it is the sender's taste, differs between
consoles, and clips. The network's own window (`tensors.prepare`) comes in its place. Presentation LUT Shape is not
looked at: the photometric interpretation, to which PS3.3 C.8.11.3 ties it, decides.

Everything that the header tells is checked before anything is allocated. A PixelSource keeps numbers and the file's
bytes, no data set, so that nothing it prints can name a patient.
"""

import io
import logging
import math
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag

from shared.dicom import Budget, CountedFile, code_string, count, in_our_words, items_of, value_of
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
from shared.vision.codecs import ENCAPSULATED, Pieces, decode_frame, find_frames, inflate, significant
from shared.vision.tensors import Float32Image, UInt8Image

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = frozenset({IMPLICIT_LE, EXPLICIT_LE, DEFLATED, BIG_ENDIAN})
PREVIEW_PERCENTILES = (0.5, 99.5)
LEAST, LARGEST = 1e-20, 1e20  # of a rescale: beyond them float32 has no room for the steps that follow
LEAST_WIDTH = 1e-10  # of a window
LONGEST_TABLE = 1 << 20  # bytes of LUT Data, 65536 numbers as text included

_PREAMBLE = 128
_UNDEFINED = 0xFFFFFFFF
_FLOAT, _DOUBLE, _PIXELS = 0x7FE00008, 0x7FE00009, 0x7FE00010
_quiet_lock = threading.Lock()
# all that is read of a data set
_WANTED = [
    Tag(keyword)
    for keyword in (
        "Modality", "BodyPartExamined", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows",
        "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "WindowCenter", "WindowWidth",
        "VOILUTFunction", "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "VOILUTSequence",
        "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths", "PixelSpacing", "ImagerPixelSpacing",
    )
]  # fmt: skip


@dataclass(frozen=True)
class PixelLimits:
    """Bounds on what one file may claim."""

    max_frame_pixels: int = 60_000_000
    max_frames: int = 200
    max_decoded_bytes: int = 2 * 2**30  # all frames as stored
    max_header_bytes: int = 16 * 2**20


@dataclass(frozen=True)
class Frame:
    """One frame, numbered as DICOM does."""

    number: int  # 1 for the first
    image: Float32Image  # (H, W), as PixelSource.frame gives it


@dataclass(frozen=True)
class Lut:
    """A modality or VOI lookup table. Source: PS3.3 C.11.1.1.1, C.11.2.1.1."""

    first: int  # the input that the first entry is for; inputs beyond either end take the end's entry
    table: npt.NDArray[np.float32]  # (N,)
    top: float  # greatest output that its descriptor allows

    def apply(self, values: npt.NDArray[Any]) -> Float32Image:
        """values: (H, W) integers or whole floats; returns (H, W) float32."""
        wide = np.result_type(values.dtype, np.float32)  # rint alone makes float16 of bytes, which rounds from 2048 on
        index = np.clip(np.rint(values, dtype=wide) - self.first, 0, len(self.table) - 1).astype(np.intp)
        picked: Float32Image = self.table[index]
        return picked


@dataclass(frozen=True)
class Transform:
    """What the header does to the stored values of a frame. Source: PS3.3 C.11.1 and C.11.2."""

    slope: float
    intercept: float
    lut: Lut | None  # modality LUT, in place of slope and intercept
    window: tuple[float, float, str] | None  # centre, width and VOI LUT Function
    voi_lut: Lut | None  # in place of the window

    def modality(self, stored: npt.NDArray[Any]) -> Float32Image:
        """stored: (H, W) integers; returns (H, W) float32 in modality units."""
        if self.lut:
            return self.lut.apply(stored)
        values = stored.astype(np.float32)
        if (self.slope, self.intercept) != (1, 0):
            values *= np.float32(self.slope)
            values += np.float32(self.intercept)
        return values

    def ends(self, low: int, high: int) -> tuple[float, float]:
        """Modality units of the least and greatest stored value."""
        if self.lut:
            return 0.0, self.lut.top
        return low * self.slope + self.intercept, high * self.slope + self.intercept

    def voi(self, values: Float32Image) -> Float32Image | None:
        """values: (H, W) modality units; returns (H, W) float32 in [0, 1], or None where the file has no VOI LUT."""
        shown: Float32Image
        if self.voi_lut:
            shown = np.clip(self.voi_lut.apply(values) / np.float32(self.voi_lut.top), 0, 1)
            return shown
        if not self.window:
            return None
        center, width, function = self.window
        if function == "SIGMOID":
            shown = 1 / (1 + np.exp(np.clip((values - np.float32(center)) * np.float32(-4 / width), -80, 80)))
            return shown
        if function == "LINEAR":  # C.11.2.1.2.1: half a unit off the middle, and a width of 1 is a threshold
            center, width = center - 0.5, max(width - 1, 1e-6)
        shown = np.clip((values - np.float32(center)) / np.float32(width) + np.float32(0.5), 0, 1)
        return shown


@dataclass(frozen=True)
class PixelSource:
    """An image, checked and ready to be decoded frame by frame. Made by open_pixels; threads may share it."""

    rows: int
    columns: int
    frames: int
    modality: str  # DICOM's code, "" when the file has none
    body_part: str  # DICOM's Body Part Examined, "" when the file has none
    photometric: str  # MONOCHROME1 or MONOCHROME2
    bits_allocated: int  # 8, 16 or 32
    bits_stored: int
    high_bit: int
    signed: bool
    transfer_syntax: str
    swapped_bytes: bool  # 8-bit samples in big endian words, PS3.5 8.1.1 and A.3
    spacing: tuple[float, float] | None  # mm from row to row and from column to column, where the file says so
    transforms: tuple[Transform, ...] = field(repr=False)  # one for all frames, or one for each
    data: bytes = field(repr=False)
    start: int = field(repr=False)  # where in data the value of Pixel Data begins
    pieces: tuple[Pieces, ...] = field(repr=False)  # of each frame, where it is compressed

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order; each is decoded when its turn comes."""
        return (Frame(i + 1, self.frame(i)) for i in range(self.frames))

    def frame(self, i: int) -> Float32Image:
        """Decode frame i, 0 for the first.

        Returns (rows, columns) float32 in modality units (not scaled to [0, 1]), bone is the greater value.
        MONOCHROME1 is mirrored within the range that Bits Stored can hold, so that a film and its negative give
        the same frame to the bit. Raises IndexError, UndecodablePixels, TruncatedPixels, UnsupportedPixels.
        Source: PS3.3 C.7.6.3.1.2, C.11.1.
        """
        transform = self.transform(i)
        values = transform.modality(self.stored(i))
        if self.photometric == "MONOCHROME1":
            np.subtract(
                np.float32(sum(transform.ends(*_ends(self.bits_stored, signed=self.signed)))), values, out=values
            )
        return values

    @property
    def ends(self) -> tuple[int, int]:
        """Least and greatest value that Bits Stored can hold."""
        return _ends(self.bits_stored, signed=self.signed)

    def stored(self, i: int) -> npt.NDArray[Any]:
        """Frame i as (rows, columns) integers, native byte order, sign extended. Raises as frame."""
        if not 0 <= i < self.frames:
            raise IndexError(f"frame {i} of {self.frames}")
        if self.transfer_syntax in NATIVE:
            return significant(self._native(i), self.bits_stored, self.high_bit, signed=self.signed)
        frame = b"".join(self.data[begin:end] for begin, end in self.pieces[i])
        values, bits = decode_frame(self.transfer_syntax, frame, self.rows, self.columns, self.bits_allocated)
        if bits is None:
            return significant(values, self.bits_stored, self.high_bit, signed=self.signed)
        # the stream knows its width best, but where its sign contradicts the header, the header is right
        return significant(values, bits, bits - 1, signed=self.signed)

    def transform(self, i: int) -> Transform:
        """What the header does to frame i."""
        return self.transforms[i if len(self.transforms) > 1 else 0]

    def _native(self, i: int) -> npt.NDArray[Any]:
        pixels, size = self.rows * self.columns, self.bits_allocated // 8
        if self.swapped_bytes:
            first, last = i * pixels, (i + 1) * pixels
            words = np.frombuffer(self.data, ">u2", (last + 1) // 2 - first // 2, self.start + first // 2 * 2)
            samples: npt.NDArray[Any] = words.astype("<u2").view(np.uint8)[first % 2 :][:pixels]
        else:
            dtype = f"{'>' if self.transfer_syntax == BIG_ENDIAN else '<'}u{size}"
            samples = np.frombuffer(self.data, dtype, pixels, self.start + i * pixels * size)
        return samples.reshape(self.rows, self.columns)


def display(source: PixelSource, i: int, frame: Float32Image | None = None) -> UInt8Image:
    """The preview of frame i for people, 0 for the first.

    frame: what source.frame(i) gave, or that made smaller; saves decoding it again.
    Returns uint8 of the frame's shape, 0..255, bone is white: through the file's VOI LUT (the first, where it has
    several), or a 0.5..99.5 percentile window where it has none or one that leaves nothing to see. A blank image is
    all 0.
    Raises as PixelSource.frame. Source: PS3.3 C.11.2.
    """
    frame = source.frame(i) if frame is None else frame
    transform, mirrored = source.transform(i), source.photometric == "MONOCHROME1"
    ends = transform.ends(*_ends(source.bits_stored, signed=source.signed))
    # the VOI LUT is made for values that are not mirrored yet
    shown = transform.voi(np.float32(sum(ends)) - frame if mirrored else frame)
    if shown is not None and mirrored:
        shown = 1 - shown
    if shown is None or float(shown.max() - shown.min()) < 1 / 255:
        step = max(1, math.isqrt(frame.size // 1_000_000))  # a million samples place a percentile well enough
        low, high = np.percentile(frame[::step, ::step], PREVIEW_PERCENTILES)
        if high <= low:
            low, high = float(frame.min()), float(frame.max())
        shown = np.clip((frame - np.float32(low)) / np.float32(high - low or 1), 0, 1)
    return np.rint(shown * 255).astype(np.uint8)


def open_pixels(data: bytes, limits: PixelLimits = PixelLimits()) -> PixelSource:
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
        raise in_our_words(broken) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom: it warns of harmless oddities, in words that quote values."""
    logger = logging.getLogger("pydicom")
    with _quiet_lock, warnings.catch_warnings():  # both belong to the whole process, hence the lock
        warnings.simplefilter("ignore")
        before, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = before


def _open(data: bytes, limits: PixelLimits) -> PixelSource:
    syntax, at = _file_meta(data, limits)
    if syntax not in NATIVE and syntax not in ENCAPSULATED:
        # only a well-formed UID is repeated; in a damaged file anything could stand there
        named = f" ({syntax})" if re.fullmatch(r"[0-9.]{1,64}", syntax) else ""
        raise UnknownTransferSyntax(f"{UnknownTransferSyntax.__doc__}{named}")
    packed, packed_at = data, at
    if syntax == DEFLATED:
        data, at = inflate(packed, packed_at, limits.max_header_bytes), 0
    file, budget = io.BytesIO(data), Budget(limits.max_header_bytes)
    file.seek(at)
    counted = CountedFile(file, budget)
    dataset = read_dataset(
        counted,  # type: ignore[arg-type]
        is_implicit_VR=syntax == IMPLICIT_LE,
        is_little_endian=syntax != BIG_ENDIAN,
        stop_when=lambda tag, _vr, _length: tag >= _FLOAT,
        specific_tags=list(_WANTED),
    )
    # pydicom finds out when a file is implicit though its syntax says explicit, or the other way round
    implicit = bool(dataset.original_encoding[0])
    tag, vr, start, length = _element(data, file.tell(), ">" if syntax == BIG_ENDIAN else "<", implicit=implicit)
    if tag in (_FLOAT, _DOUBLE):
        raise UnsupportedPixels
    if tag != _PIXELS or length == 0:
        if syntax == DEFLATED and len(data) == limits.max_header_bytes:
            raise TooLarge("The DICOM header is larger than this installation reads")
        if counted.cut_short or file.tell() > len(data):  # values that nobody asked for are stepped over
            raise CannotUnderstand
        raise NoPixelData
    source = _describe(dataset, limits, syntax, vr, start=start, budget=budget)
    if syntax in NATIVE:
        needed = source.rows * source.columns * source.frames * source.bits_allocated // 8
        needed += needed % 2 if source.swapped_bytes else 0
        if syntax == DEFLATED and start + needed > len(data):
            # no more than the header owns up to, whatever follows the pixels
            data = inflate(packed, packed_at, start + needed)
        there = min(length, len(data) - start)
        if there < needed:
            raise TruncatedPixels(f"Pixel Data has {there} bytes where {needed} are needed: the file was cut short")
    elif length != _UNDEFINED:
        raise UndecodablePixels("The transfer syntax is a compressed one, but Pixel Data is not encapsulated")
    else:
        tables = [value_of(dataset, keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
        extended = (tables[0], tables[1]) if all(isinstance(table, bytes) for table in tables) else None
        source = replace(source, pieces=find_frames(data, start, source.frames, extended))
    return replace(source, data=data)


def _file_meta(data: bytes, limits: PixelLimits) -> tuple[str, int]:
    """Transfer syntax UID, and where the data set begins."""
    if not data:
        raise EmptyFile
    at = _PREAMBLE + 4 if data[_PREAMBLE : _PREAMBLE + 4] == b"DICM" else 0
    if at == 0 and data[:2] != b"\x02\x00":
        # a bare data set begins with a low element of group 0008, in either byte order
        raise NoFileMeta if re.match(rb"\x08\0[\0-\x20]\0|\0\x08\0[\0-\x20]", data) else NotDicom
    file = io.BytesIO(data)
    file.seek(at)
    meta = read_dataset(
        CountedFile(file, Budget(limits.max_header_bytes)),  # type: ignore[arg-type]
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag.group != 2,
    )
    syntax = str(value_of(meta, "TransferSyntaxUID") or "")
    if not syntax:
        raise NoFileMeta
    return syntax, file.tell()


def _element(data: bytes, at: int, order: str, *, implicit: bool) -> tuple[int, str, int, int]:
    """Tag, VR, start and length of the element at `at`; tag 0 where the data end. Source: PS3.5 7.1."""
    header = 8 if implicit else 12
    if len(data) - at < header:
        return 0, "", at, 0
    group, element = struct.unpack_from(f"{order}HH", data, at)
    vr = "OW" if implicit else data[at + 4 : at + 6].decode("ascii", "replace")
    length: int = struct.unpack_from(f"{order}L", data, at + header - 4)[0]
    return group << 16 | element, vr, at + header, length


def _describe(
    dataset: Dataset, limits: PixelLimits, syntax: str, vr: str, *, start: int, budget: Budget
) -> PixelSource:
    photometric = str(value_of(dataset, "PhotometricInterpretation") or "").strip()
    if not photometric:
        raise BadAttributes("Photometric Interpretation (0028,0004) is missing")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or count(dataset, "SamplesPerPixel", 1, least=0) != 1:
        raise UnsupportedPixels
    allocated = count(dataset, "BitsAllocated", least=0)
    if allocated not in (8, 16, 32):
        raise UnsupportedPixels(f"Bits Allocated (0028,0100) is {allocated}; 8, 16 and 32 are read")
    stored = count(dataset, "BitsStored", allocated, least=0)
    # a High Bit below that is impossible and says nothing; one above is how old systems stored
    high_bit = max(count(dataset, "HighBit", stored - 1, least=0), stored - 1)
    if not 1 <= stored <= high_bit + 1 <= allocated:
        raise BadAttributes(f"Bits Stored {stored} and High Bit {high_bit} do not fit into Bits Allocated {allocated}")
    rows, columns, frames = _size(dataset, allocated, limits)
    signed = count(dataset, "PixelRepresentation", 0, least=0) == 1
    several = frames if items_of(dataset, "PerFrameFunctionalGroupsSequence", budget) else 1
    ends = _ends(stored, signed=signed)
    return PixelSource(
        rows=rows,
        columns=columns,
        frames=frames,
        modality=code_string(dataset, "Modality"),
        body_part=code_string(dataset, "BodyPartExamined").upper(),
        photometric=photometric,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high_bit,
        signed=signed,
        transfer_syntax=syntax,
        swapped_bytes=syntax == BIG_ENDIAN and allocated == 8 and vr == "OW",
        spacing=_spacing(dataset),
        transforms=tuple(_transform(dataset, i, ends, syntax, budget) for i in range(several)),
        data=b"",
        start=start,
        pieces=(),
    )


def _size(dataset: Dataset, allocated: int, limits: PixelLimits) -> tuple[int, int, int]:
    rows, columns, frames = (
        count(dataset, "Rows", least=0),
        count(dataset, "Columns", least=0),
        count(dataset, "NumberOfFrames", 1, least=0),
    )
    frames = frames or 1  # some writers say 0 for a plain image
    if 0 in (rows, columns):
        raise BadAttributes(f"The image has {rows} rows and {columns} columns")
    if rows * columns > limits.max_frame_pixels or frames > limits.max_frames:
        raise TooLarge(
            f"The image claims {frames} frame(s) of {rows} x {columns} pixels; at most {limits.max_frames} of "
            f"{limits.max_frame_pixels} pixels are read"
        )
    if rows * columns * frames * allocated // 8 > limits.max_decoded_bytes:
        raise TooLarge(f"The image would need more than {limits.max_decoded_bytes} bytes of memory")
    return rows, columns, frames


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """At the patient where it was calibrated, else at the detector. Source: PS3.3 10.7.1 and C.8.11.4."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            down, across = (float(value) for value in value_of(dataset, keyword))
        except Exception:  # noqa: BLE001 - absent or broken: no reason to refuse the film
            down = across = math.nan
        if 0 < down < LARGEST and 0 < across < LARGEST:
            return down, across
    return None


def _transform(dataset: Dataset, i: int, stored_ends: tuple[int, int], syntax: str, budget: Budget) -> Transform:
    """Raises BadAttributes for a rescale or modality LUT that has no meaning; such a VOI LUT is left out."""
    holder = _macro(dataset, i, "PixelValueTransformationSequence", budget)
    slope, intercept = _decimal(holder, "RescaleSlope", 1.0), _decimal(holder, "RescaleIntercept", 0.0)
    items = items_of(holder, "ModalityLUTSequence", budget)
    lut = _lut(items[0], syntax, signed=stored_ends[0] < 0) if items else None
    reach = max(abs(end) for end in stored_ends) * abs(slope) + abs(intercept)
    if not (LEAST <= abs(slope) <= LARGEST and reach <= LARGEST):  # not a number, too
        raise BadAttributes("Rescale Slope (0028,1053) or Intercept (0028,1052) has no meaning")
    plain = Transform(slope, intercept, lut, None, None)
    try:
        macro = _macro(dataset, i, "FrameVOILUTSequence", budget)
        window, voi_lut = _voi(macro, syntax, budget, signed=min(plain.ends(*stored_ends)) < 0)
    except Exception:  # noqa: BLE001 - a broken preview setting is no reason to refuse the film
        return plain
    return Transform(slope, intercept, lut, window, voi_lut)


def _voi(
    holder: Dataset, syntax: str, budget: Budget, *, signed: bool
) -> tuple[tuple[float, float, str] | None, Lut | None]:
    if items := items_of(holder, "VOILUTSequence", budget):
        return None, _lut(items[0], syntax, signed=signed)
    center, width = _decimal(holder, "WindowCenter", math.nan), _decimal(holder, "WindowWidth", math.nan)
    function = str(value_of(holder, "VOILUTFunction") or "LINEAR").strip()
    least = 1 if function == "LINEAR" else LEAST_WIDTH
    usable = abs(center) <= LARGEST and least <= width <= LARGEST
    return (center, width, function) if usable else None, None


def _macro(dataset: Dataset, i: int, keyword: str, budget: Budget) -> Dataset:
    """Where frame i has the attributes: its functional group, the shared one, or the data set. PS3.3 C.7.6.16.1."""
    for groups, at in (("PerFrameFunctionalGroupsSequence", i), ("SharedFunctionalGroupsSequence", 0)):
        items = items_of(dataset, groups, budget)
        if at < len(items) and (found := items_of(items[at], keyword, budget)):
            return found[0]
    return dataset


def _lut(item: Dataset, syntax: str, *, signed: bool) -> Lut:
    """signed: whether its inputs can be negative. Raises BadAttributes. Source: PS3.3 C.11.1.1.1."""
    count, first, bits = (int(value) for value in value_of(item, "LUTDescriptor"))
    count = (count & 0xFFFF) or 65536  # 0 stands for 2**16; a signed VR can make it negative
    if signed and first >= 1 << 15:
        first -= 1 << 16  # written as US where SS was meant
    data = value_of(item, "LUTData", LONGEST_TABLE)
    if isinstance(data, bytes):
        wide = len(data) >= 2 * count
        data = np.frombuffer(data, "u1" if not wide else ">u2" if syntax == BIG_ENDIAN else "<u2")
    table = np.atleast_1d(np.asarray(data, np.float64))[:count]
    if len(table) < count or not 1 <= bits <= 16:
        raise BadAttributes("A LUT Sequence is shorter than its LUT Descriptor (0028,3002) says")
    if not np.abs(table).max() <= LARGEST:  # numbers as text can be anything, or none
        raise BadAttributes("LUT Data (0028,3006) holds values that have no meaning")
    return Lut(first, table.astype(np.float32), float(max((1 << bits) - 1, table.max())))


def _ends(bits: int, *, signed: bool) -> tuple[int, int]:
    """Least and greatest value that so many bits can hold."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _decimal(dataset: Dataset, keyword: str, default: float) -> float:
    """The first value; images with several windows name the preferred one first."""
    value = value_of(dataset, keyword)
    if isinstance(value, list | tuple) or hasattr(value, "append"):
        value = value[0] if len(value) else None
    return default if value is None or value == "" else float(value)
