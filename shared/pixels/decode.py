"""The one path from the stored bytes of a DICOM file to images; training and the worker both use it.

    stored values -> modality LUT or rescale -> MONOCHROME1 mirrored               = PixelSource.frame, for the network
                                            -> VOI LUT -> MONOCHROME1 mirrored    = display, for people

`frame` leaves the VOI LUT out, sigmoid and LUT Sequence included: it is the sender's taste, differs between
consoles, and clips. The network's own window (`tensors.prepare_square`) replaces it. Presentation LUT Shape is not
read: the photometric interpretation, to which PS3.3 C.8.11.3 ties it, decides.

Everything that the header says is checked before anything is allocated. A PixelSource keeps numbers and the file's
bytes, no data set, so that nothing it prints can name a patient.
"""

import io
import logging
import math
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.filereader import read_dataset

from shared.dicom.elements import CountedFile, ReadBudget, code_string, in_our_words, value_of
from shared.dicom.image import (
    BIG_ENDIAN,
    DEFLATED,
    NATIVE,
    WANTED,
    ImageLimits,
    Table,
    Values,
    describe_image,
    functional_group,
    locate_frames,
    read_until_pixels,
    spacing_of,
    stored_range,
)
from shared.dicom.streams import ENCAPSULATED, Pieces, SampleFormat, reader_of_bytes
from shared.errors import EmptyFile, NoFileMeta, NotDicom, Rejected, TooLarge, UnknownTransferSyntax
from shared.pixels.codecs import decode_frame, inflate, significant
from shared.pixels.exposure import BoolImage
from shared.pixels.surround import SURROUND, Surround, padding_of, shutter_of, stretch_of
from shared.pixels.tensors import Float32Image, UInt8Image

PREVIEW_PERCENTILES = (0.5, 99.5)

_PREAMBLE = 128
_quiet_lock = threading.Lock()
_ELEMENTS = frozenset({*WANTED, *SURROUND})


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
        """Look up values of shape (H, W), integers or whole floats; return (H, W) float32."""
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
        """Convert stored values, (H, W) integers, to modality units, (H, W) float32."""
        if self.lut:
            return self.lut.apply(stored)
        values = stored.astype(np.float32)
        if (self.slope, self.intercept) != (1, 0):
            values *= np.float32(self.slope)
            values += np.float32(self.intercept)
        return values

    def ends(self, low: int, high: int) -> tuple[float, float]:
        """Convert the ends of the range of stored values.

        Args:
            low: the least stored value.
            high: the greatest stored value.

        Returns:
            Both in modality units, in this order; the first is the greater one if the slope is negative.
        """
        if self.lut:
            return 0.0, self.lut.top
        return low * self.slope + self.intercept, high * self.slope + self.intercept

    def voi(self, values: Float32Image) -> Float32Image | None:
        """Convert modality units, (H, W), for people: (H, W) float32 in [0, 1], or None if the file has no VOI LUT."""
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
    overlays: bool  # whether old overlays lie in unused bits of the samples
    spacing: tuple[float, float] | None  # mm from row to row and from column to column, where the file says so
    spacing_from: str  # the DICOM keyword that says so, or ""
    surround: Surround = field(repr=False)  # padding, shutter, and the proportions of a pixel
    transforms: tuple[Transform, ...] = field(repr=False)  # one for all frames, or one for each
    data: bytes = field(repr=False)
    start: int = field(repr=False)  # where in data the value of Pixel Data begins
    pieces: tuple[Pieces, ...] = field(repr=False)  # of each frame, where it is compressed

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order; each is decoded when its turn comes."""
        return (Frame(i + 1, self.frame(i)) for i in range(self.frames))

    def frame(self, i: int) -> Float32Image:
        """Decode a frame. Source: PS3.3 C.7.6.3.1.2, C.11.1.

        MONOCHROME1 is mirrored within the range that Bits Stored can hold, so that an image and its negative give the
        same frame to the bit.

        Args:
            i: index of the frame, from 0.

        Returns:
            (rows, columns) float32 in modality units (not scaled to [0, 1]), bone is the greater value.

        Raises:
            IndexError: there is no such frame.
            UndecodablePixels: the frame is damaged, or contradicts the header.
            TruncatedPixels: the frame ends early.
            UnsupportedPixels: the frame is in colour, or has more bits than can be decoded exactly.
        """
        return self.units(self.stored(i), i)

    def padded(self, stored: npt.NDArray[Any]) -> BoolImage | None:
        """Where a frame, as `stored` gives it, is padding that reaches the image's edge; None: nowhere."""
        return self.surround.padding.mask(stored) if self.surround.padding else None

    def shuttered(self, i: int) -> BoolImage | None:
        """Where the header's shutter covers frame i, (rows, columns); None: nowhere."""
        shutters = self.surround.shutters
        shutter = shutters[i if len(shutters) > 1 else 0]
        return shutter.mask(self.rows, self.columns, self.surround.stretch) if shutter else None

    def collimated(self) -> BoolImage | None:
        """Where the header says that a collimator's blades were, (rows, columns); None: nowhere, or nothing is said."""
        blades = self.surround.collimator
        return blades.mask(self.rows, self.columns, self.surround.stretch) if blades else None

    def units(self, stored: npt.NDArray[Any], i: int) -> Float32Image:
        """Convert stored values to what `frame` returns.

        Args:
            stored: what `stored` returned for the frame, (rows, columns) integers.
            i: index of the frame, from 0.

        Returns:
            (rows, columns) float32 in modality units, bone is the greater value.
        """
        transform = self.transform(i)
        values = transform.modality(stored)
        if self.photometric == "MONOCHROME1":
            np.subtract(
                np.float32(sum(transform.ends(*stored_range(self.bits_stored, signed=self.signed)))), values, out=values
            )
        return values

    @property
    def ends(self) -> tuple[int, int]:
        """Least and greatest value that Bits Stored can hold."""
        return stored_range(self.bits_stored, signed=self.signed)

    def stored(self, i: int) -> npt.NDArray[Any]:
        """Frame i as (rows, columns) integers, native byte order, sign extended. Raises as frame."""
        if not 0 <= i < self.frames:
            raise IndexError(f"frame {i} of {self.frames}")
        if self.transfer_syntax in NATIVE:
            return significant(self._native(i), self.bits_stored, self.high_bit, signed=self.signed)
        frame = b"".join(self.data[begin:end] for begin, end in self.pieces[i])
        samples = SampleFormat(
            self.rows, self.columns, self.bits_allocated, self.bits_stored, self.high_bit, self.signed
        )
        return decode_frame(self.transfer_syntax, frame, samples, overlays=self.overlays)

    def raw(self, i: int) -> bytes:
        """Frame i as uncompressed Pixel Data has it: little endian, Bits Allocated a sample. Raises as `stored`."""
        if not 0 <= i < self.frames:
            raise IndexError(f"frame {i} of {self.frames}")
        values = self._native(i) if self.transfer_syntax in NATIVE else self.stored(i)
        return values.astype(f"<u{self.bits_allocated // 8}").tobytes()

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


def display(
    source: PixelSource, i: int, frame: Float32Image | None = None, field_values: npt.NDArray[Any] | None = None
) -> UInt8Image:
    """Make the preview of a frame for people. Source: PS3.3 C.11.2.

    It goes through the file's VOI LUT (the first, if it has several), or through a window from percentile 0.5 to 99.5
    if it has none, or one that leaves nothing to see.

    Args:
        source: the image.
        i: index of the frame, from 0.
        frame: what source.frame(i) returned, or that made smaller, which saves decoding it again. None: decode it.
        field_values: values of the exposed field, from which the window is chosen. None: all of the frame.

    Returns:
        uint8 of the frame's shape, 0..255, bone is white; all 0 for a blank image. PixelSource.frame's errors pass
        through.
    """
    frame = source.frame(i) if frame is None else frame
    transform, mirrored = source.transform(i), source.photometric == "MONOCHROME1"
    ends = transform.ends(*stored_range(source.bits_stored, signed=source.signed))
    # the VOI LUT is made for values that are not mirrored yet
    shown = transform.voi(np.float32(sum(ends)) - frame if mirrored else frame)
    if shown is not None and mirrored:
        shown = 1 - shown
    if shown is None or float(shown.max() - shown.min()) < 1 / 255:
        step = max(1, math.isqrt(frame.size // 1_000_000))  # a million samples place a percentile well enough
        values = frame[::step, ::step] if field_values is None else field_values
        low, high = np.percentile(values, PREVIEW_PERCENTILES)
        if high <= low:
            low, high = float(values.min()), float(values.max())
        shown = np.clip((frame - np.float32(low)) / np.float32(high - low or 1), 0, 1)
    return np.rint(shown * 255).astype(np.uint8)


def open_pixels(data: bytes, limits: ImageLimits = ImageLimits()) -> PixelSource:  # noqa: B008 - it is frozen
    """Read and check the header of a DICOM file; decode nothing yet. Source: PS3.10 7.1, PS3.3 C.7.6.3, PS3.5 8 and A.

    Args:
        data: the whole file.
        limits: bounds on what it may claim.

    Returns:
        The source of its frames, which keeps `data`.

    Raises:
        Rejected: one of EmptyFile, NotDicom, NoFileMeta, CannotUnderstand, UnknownTransferSyntax, NoPixelData,
            UnsupportedPixels, BadAttributes, TooLarge, TruncatedPixels, UndecodablePixels.
        MemoryError: memory ran out while pydicom read it.
    """
    try:
        with _quiet():
            return _open(data, limits)
    except Rejected:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises nearly anything on damaged headers
        raise in_our_words(error) from None


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


def _open(data: bytes, limits: ImageLimits) -> PixelSource:
    syntax, at = _file_meta(data, limits)
    if syntax not in NATIVE and syntax not in ENCAPSULATED:
        # only a well-formed UID is repeated; a damaged file could have anything there
        named = f" ({syntax})" if re.fullmatch(r"[0-9.]{1,64}", syntax) else ""
        raise UnknownTransferSyntax(f"The transfer syntax{named} is not one that Osteon can decode", named.strip(" ()"))
    packed, packed_at = data, at
    more = 0  # whether a deflated data set is longer than what was inflated of it
    if syntax == DEFLATED:
        data, at = inflate(packed, packed_at, limits.max_header_bytes), 0
        more = int(len(data) == limits.max_header_bytes)
    held = len(data)
    file, budget = io.BytesIO(data), ReadBudget(limits.max_header_bytes)
    file.seek(at)
    dataset, pixels = read_until_pixels(file, syntax, budget, _ELEMENTS, lambda: (held, held + more))
    if more and pixels.tag == 0:
        raise TooLarge("The DICOM header is larger than this installation reads")
    image = describe_image(dataset, pixels, syntax, limits, budget)
    if more and image.start + image.native_bytes > len(data):
        # no more than the header declares, whatever follows the pixels
        data = inflate(packed, packed_at, image.start + image.native_bytes)
    pieces = locate_frames(image, dataset, pixels, syntax, reader_of_bytes(data), len(data))
    samples = image.samples
    measures = functional_group(dataset, 0, "PixelMeasuresSequence", budget)
    spacing, spacing_from = spacing_of(measures) or spacing_of(dataset) or (None, "")
    return PixelSource(
        rows=samples.rows,
        columns=samples.columns,
        frames=image.frames,
        modality=code_string(dataset, "Modality"),
        body_part=code_string(dataset, "BodyPartExamined").upper(),
        photometric=image.photometric,
        bits_allocated=samples.bits_allocated,
        bits_stored=samples.bits_stored,
        high_bit=samples.high_bit,
        signed=samples.signed,
        transfer_syntax=syntax,
        swapped_bytes=image.swapped_bytes,
        overlays=image.overlays,
        spacing=spacing,
        spacing_from=spacing_from,
        surround=Surround(
            padding_of(dataset, syntax, samples),
            tuple(
                shutter_of(functional_group(dataset, i, "FrameDisplayShutterSequence", budget))
                for i in range(len(image.values))
            ),
            shutter_of(dataset, "Collimator"),
            stretch_of(dataset, spacing),
        ),
        transforms=tuple(_transform(values) for values in image.values),
        data=data,
        start=image.start,
        pieces=pieces,
    )


def _transform(values: Values) -> Transform:
    return Transform(values.slope, values.intercept, _lut(values.table), values.window, _lut(values.voi_table))


def _lut(table: Table | None) -> Lut | None:
    if table is None:
        return None
    entries = np.frombuffer(table.entries, np.uint8) if isinstance(table.entries, bytes) else np.asarray(table.entries)
    return Lut(table.first, entries.astype(np.float32), table.top)


def _file_meta(data: bytes, limits: ImageLimits) -> tuple[str, int]:
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
        CountedFile(file, ReadBudget(limits.max_header_bytes)),  # type: ignore[arg-type]
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag.group != 2,
    )
    syntax = str(value_of(meta, "TransferSyntaxUID") or "")
    if not syntax:
        raise NoFileMeta
    return syntax, file.tell()
