"""What a header says of an image: size, samples, lookup tables; intake and decoder both use it.

Plain Python: the API, which has no numpy, checks here what the decoder will need.
Source: PS3.3 C.7.6.3 (image pixel), C.11.1 (modality LUT), C.11.2 (VOI LUT), PS3.5 8 and A (encoding).
"""

import math
import struct
import sys
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import BinaryIO

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag

from shared.dicom.elements import (
    CountedFile,
    ReadBudget,
    code_string,
    count,
    decimals,
    items_of,
    read_plain,
    tagged_keyword,
    text_of,
    value_of,
)
from shared.dicom.streams import Pieces, Read, SampleFormat, find_frames
from shared.errors import (
    BadAttributes,
    CannotUnderstand,
    NoPixelData,
    TooLarge,
    TruncatedPixels,
    UndecodablePixels,
    UnsupportedPixels,
)
from shared.settings import Settings

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = frozenset({IMPLICIT_LE, EXPLICIT_LE, DEFLATED, BIG_ENDIAN})
MIN_RESCALE, MAX_RESCALE = 1e-20, 1e20  # of a rescale: beyond them float32 has no room for the steps that follow
MIN_WINDOW_WIDTH = 1e-10  # of a window
MAX_TABLE_ENTRIES = 1 << 20  # bytes of LUT Data, 65536 numbers as text included
UNDEFINED_LENGTH = 0xFFFFFFFF

_FLOAT, _DOUBLE, _PIXELS = 0x7FE00008, 0x7FE00009, 0x7FE00010
_OVERLAY_BITS = frozenset(Tag(0x6000 + 2 * number, 0x0102) for number in range(16))
# all that is read of a data set for its image
WANTED: list[int] = [
    int(Tag(keyword))
    for keyword in (
        "Modality", "BodyPartExamined", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows",
        "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "WindowCenter", "WindowWidth",
        "VOILUTFunction", "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "VOILUTSequence",
        "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths", "PixelSpacing", "ImagerPixelSpacing",
        "NominalScannedPixelSpacing",
    )
] + [int(tag) for tag in _OVERLAY_BITS]  # fmt: skip
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_LUMINANCE = ("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
_COLOUR = ("RGB", "PALETTE COLOR", "HSV", "ARGB", "CMYK", "XYB", *_LUMINANCE)


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Bounds on what one file may claim."""

    max_frame_pixels: int = 60_000_000
    max_frames: int = 200
    max_decoded_bytes: int = 2 * 2**30  # all frames as stored
    max_header_bytes: int = 16 * 2**20

    @classmethod
    def of(cls, settings: Settings) -> "ImageLimits":
        """Those that an installation has set: every process that opens a file has the same."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Table:
    """A modality or VOI lookup table. Source: PS3.3 C.11.1.1.1, C.11.2.1.1."""

    first: int  # the input that the first entry is for; inputs beyond either end take the end's entry
    entries: Sequence[float] = field(repr=False)
    top: float  # greatest output that its descriptor allows


@dataclass(frozen=True)
class Values:
    """What the header does to the stored values of a frame. Source: PS3.3 C.11.1 and C.11.2."""

    slope: float
    intercept: float
    table: Table | None  # modality LUT, in place of slope and intercept
    window: tuple[float, float, str] | None  # centre, width and VOI LUT Function
    voi_table: Table | None  # in place of the window


@dataclass(frozen=True)
class Image:
    """An image as its header describes it, after the checks of `describe_image`."""

    samples: SampleFormat
    frames: int
    photometric: str  # MONOCHROME1 or MONOCHROME2
    swapped_bytes: bool  # 8-bit samples in big endian words, PS3.5 8.1.1 and A.3
    overlays: bool  # whether old overlays lie in unused bits of the samples, PS3.3 C.9.2
    values: tuple[Values, ...] = field(repr=False)  # one for all frames, or one for each
    start: int = 0  # where the value of Pixel Data begins
    pieces: tuple[Pieces, ...] = field(default=(), repr=False)  # of each frame, where it is compressed

    @property
    def native_bytes(self) -> int:
        """Bytes of all frames uncompressed, as Pixel Data holds them."""
        size = self.samples.rows * self.samples.columns * self.frames * self.samples.bits_allocated // 8
        return size + (size % 2 if self.swapped_bytes else 0)


@dataclass(frozen=True)
class PixelElement:
    """The element that holds the pixels; length is UNDEFINED_LENGTH if its items say how long it is."""

    tag: int  # 0 where there is none
    vr: str
    start: int  # where its value begins
    length: int  # UNDEFINED_LENGTH if its items say


def read_until_pixels(
    file: BinaryIO, syntax: str, budget: ReadBudget, tags: Collection[int], extent: Callable[[], tuple[int, int]]
) -> tuple[Dataset, PixelElement]:
    """Read the wanted elements of a data set up to its pixels, and find the element that holds these.

    Args:
        file: at the start of the data set.
        syntax: Transfer Syntax UID.
        budget: what may still be read of the header.
        tags: tags to keep.
        extent: returns how many bytes of the file can be read, and how many it has.

    Returns:
        The wanted elements, and the element that holds the pixels.

    Raises:
        CannotUnderstand: the header is cut short.
        TooLarge: the header goes on beyond the budget. pydicom's own errors pass through.
    """
    order = ">" if syntax == BIG_ENDIAN else "<"
    if plain := read_plain(file, budget, order, _at_pixels, tags, implicit=syntax == IMPLICIT_LE):
        dataset, stop = plain
        return dataset, PixelElement(stop.tag, stop.vr or "OW", stop.start, stop.length)
    pixels, begin = PixelElement(0, "", 0, 0), file.tell()
    counted = CountedFile(file, budget, {IMPLICIT_LE: "", BIG_ENDIAN: ">"}.get(syntax, "<"))

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal pixels
        number = int(tag)  # a BaseTag compares several times as slowly
        if number >= _FLOAT:
            pixels = PixelElement(number, vr or "OW", file.tell(), length)
        return number >= _FLOAT

    dataset = read_dataset(
        counted,  # type: ignore[arg-type]
        is_implicit_VR=syntax == IMPLICIT_LE,
        is_little_endian=syntax != BIG_ENDIAN,
        stop_when=at_pixels,
        specific_tags=list(tags),
    )
    readable, size = extent()
    if counted.cut_short or file.tell() > readable:  # unwanted values are skipped, past the end too
        if readable < size:
            raise TooLarge("The DICOM header is larger than this installation reads")
        if file.tell() - begin < 8:  # not even one element begins: it lacks everything
            return dataset, pixels
        raise CannotUnderstand("The DICOM header is cut short: the file ends within an element")
    return dataset, pixels


def _at_pixels(tag: int) -> bool:
    return tag >= _FLOAT


def describe_image(
    dataset: Dataset, pixels: PixelElement, syntax: str, limits: ImageLimits, budget: ReadBudget
) -> Image:
    """Check what the header says of the image; of Pixel Data, only length and VR are used.

    Args:
        dataset: the header with the attributes in WANTED.
        pixels: the element that holds the pixels.
        syntax: Transfer Syntax UID.
        limits: bounds on what the file may claim.
        budget: what may still be read of the header; reading sequences takes from it.

    Returns:
        The image, without the pieces of its frames: `locate_frames` finds those.

    Raises:
        BadAttributes: an attribute is missing, or has no meaning beside the others.
        UnsupportedPixels: the image is in colour, or has 1, 64 or floating point bits.
        NoPixelData: there are no pixels.
        TooLarge: the image is over the limits.
    """
    _check_element(pixels)
    rows, columns, frames = count(dataset, "Rows"), count(dataset, "Columns"), count(dataset, "NumberOfFrames", 1, 0)
    frames = frames or 1  # some writers say 0 for a plain image
    allocated = count(dataset, "BitsAllocated")
    _check_size(rows, columns, frames, allocated, limits)
    one_component = rows * columns * frames * allocated // 8 if syntax in NATIVE else None
    photometric = _photometric(dataset, one_component, pixels.length)
    if allocated in (1, 64):
        text = f"Bits Allocated (0028,0100) is {allocated}; 8, 16 and 32 are read"
        raise UnsupportedPixels(text, f"BitsAllocated {allocated}")
    if allocated not in (8, 16, 32):
        text = f"Bits Allocated (0028,0100) is {allocated}; it must be 8, 16 or 32"
        raise BadAttributes(text, f"BitsAllocated {allocated}")
    stored = count(dataset, "BitsStored", allocated)
    # a High Bit below that is impossible and says nothing; one above is how old systems stored
    high_bit = max(count(dataset, "HighBit", stored - 1, least=0), stored - 1)
    if high_bit >= allocated:
        raise BadAttributes(
            f"Bits Stored (0028,0101) of {stored} and High Bit (0028,0102) of {high_bit} "
            f"do not fit into Bits Allocated (0028,0100) of {allocated}",
            f"BitsStored {stored}, HighBit {high_bit}, BitsAllocated {allocated}",
        )
    signed = count(dataset, "PixelRepresentation", 0, least=0) == 1
    several = frames if items_of(dataset, "PerFrameFunctionalGroupsSequence", budget) else 1
    ends = stored_range(stored, signed=signed)
    return Image(
        samples=SampleFormat(rows, columns, allocated, stored, high_bit, signed),
        frames=frames,
        photometric=photometric,
        swapped_bytes=syntax == BIG_ENDIAN and allocated == 8 and pixels.vr == "OW",
        overlays=any(_overlay_bit(dataset, tag) for tag in _OVERLAY_BITS & dataset.keys()),
        values=tuple(_values(dataset, i, ends, budget) for i in range(several)),
        start=pixels.start,
    )


def locate_frames(
    image: Image, dataset: Dataset, pixels: PixelElement, syntax: str, read: Read, end: int
) -> tuple[Pieces, ...]:
    """Find where the frames of Pixel Data lie.

    Args:
        image: what `describe_image` returned.
        dataset: the header, for the Extended Offset Table.
        pixels: the element that holds the pixels.
        syntax: Transfer Syntax UID.
        read: reads from the file by position and size.
        end: size of the file, in bytes.

    Returns:
        The pieces of each frame; () if frames are not compressed: then each begins where the one before it ends.

    Raises:
        TruncatedPixels: Pixel Data is shorter than its frames.
        UndecodablePixels: Pixel Data is encapsulated where the transfer syntax says otherwise, or the reverse, or is
            damaged.
        BadAttributes: Pixel Data is at least twice as long as its frames.
    """
    if syntax not in NATIVE:
        if pixels.length != UNDEFINED_LENGTH:
            text = "The transfer syntax is a compressed one, but Pixel Data is not encapsulated"
            raise UndecodablePixels(text, "TransferSyntaxUID")
        tables = [value_of(dataset, keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
        extended = (tables[0], tables[1]) if all(isinstance(table, bytes) for table in tables) else None
        return find_frames(syntax, read, pixels.start, end, image.frames, extended)
    available, needed = min(pixels.length, end - pixels.start), image.native_bytes
    if pixels.length == UNDEFINED_LENGTH or _begins_with_items(read(pixels.start, 8), pixels, read):
        raise UndecodablePixels(
            "The transfer syntax (0002,0010) is an uncompressed one, but Pixel Data is encapsulated: "
            "compressed images under a wrong name",
            "TransferSyntaxUID",
        )
    if available < needed:
        text = f"Pixel Data has {available} bytes where {needed} are needed: the file was cut short"
        raise TruncatedPixels(text, f"{available} of {needed} bytes")
    if pixels.length >= 2 * needed and pixels.length > needed + 1:
        raise BadAttributes(
            f"Pixel Data has {pixels.length} bytes where {needed} are needed: Number of Frames (0028,0008), Rows, "
            "Columns or Bits Allocated are not those of this image",
            f"PixelData, {pixels.length} bytes for {needed}",
        )
    return ()


def _begins_with_items(start: bytes, pixels: PixelElement, read: Read) -> bool:
    """Whether native Pixel Data are a table and fragments, one behind the other, as compressed ones are."""
    if start[:4] != b"\xfe\xff\x00\xe0":
        return False
    (length,) = struct.unpack("<L", start[4:8])
    follows = pixels.start + 8 + length
    return follows + 8 <= pixels.start + pixels.length and read(follows, 4) in (
        b"\xfe\xff\x00\xe0",
        b"\xfe\xff\xdd\xe0",
    )


def stored_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Find the range of stored values.

    Args:
        bits: bits of a sample, at least 1.
        signed: whether they are in two's complement.

    Returns:
        The least and the greatest value.
    """
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _photometric(dataset: Dataset, native: int | None, length: int) -> str:
    """Return MONOCHROME1 or MONOCHROME2. native: bytes of one component, None if it is compressed.

    A single component that is called YBR is its Y, the luminance: gray.
    """
    named_as = _photometric_name(dataset)
    samples = count(dataset, "SamplesPerPixel", 1, least=0)
    if not named_as:
        raise BadAttributes("Photometric Interpretation (0028,0004) is missing", "PhotometricInterpretation")
    if named_as in _LUMINANCE and samples == 1 and _is_luminance(native, length):
        return "MONOCHROME2"
    if named_as in _COLOUR:
        raise UnsupportedPixels(
            f"Photometric Interpretation (0028,0004) is {named_as}, a colour image; only grayscale is read",
            f"PhotometricInterpretation {named_as}",
        )
    if named_as not in _GRAY:
        raise UnsupportedPixels(
            "Photometric Interpretation (0028,0004) is none that DICOM knows; MONOCHROME1 and MONOCHROME2 are read",
            "PhotometricInterpretation",
        )
    if samples != 1:
        text = f"Samples per Pixel (0028,0002) is {samples} in a grayscale image; it must be 1"
        raise UnsupportedPixels(text, f"SamplesPerPixel {samples}")
    return named_as


def is_colour(dataset: Dataset, pixels: PixelElement, syntax: str) -> bool:
    """Whether an image is in colour, by Photometric Interpretation.

    Args:
        dataset: the header with the attributes in WANTED.
        pixels: the element that holds the pixels.
        syntax: Transfer Syntax UID.

    Returns:
        False too for a single component that is called YBR: that is gray.

    Raises:
        BadAttributes: an attribute is no number.
    """
    named_as = _photometric_name(dataset)
    if named_as not in _COLOUR:
        return False
    if named_as not in _LUMINANCE or count(dataset, "SamplesPerPixel", 1, least=0) != 1:
        return True
    size = (
        count(dataset, "Rows", 0, 0) * count(dataset, "Columns", 0, 0) * max(1, count(dataset, "NumberOfFrames", 1, 0))
    )
    native = size * count(dataset, "BitsAllocated", 0, 0) // 8 if syntax in NATIVE else None
    return not _is_luminance(native, pixels.length)


def _photometric_name(dataset: Dataset) -> str:
    return " ".join(text_of(dataset, "PhotometricInterpretation", 64).upper().split())


def _is_luminance(native: int | None, length: int) -> bool:
    """Whether a single component called YBR has the size of one. native: bytes of one, None if it is compressed."""
    return native is None or native <= length <= native + 1


def _check_element(pixels: PixelElement) -> None:
    if pixels.tag in (_FLOAT, _DOUBLE):
        text = "Float Pixel Data (7FE0,0008) or (7FE0,0009) is not read; only whole numbers are"
        raise UnsupportedPixels(text, "FloatPixelData")
    if pixels.tag != _PIXELS:
        raise NoPixelData
    if pixels.length == 0:
        raise NoPixelData("Pixel Data (7FE0,0010) is empty", "PixelData")


def _overlay_bit(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether Overlay Bit Position names a bit of the samples: it is 0 for overlays in an element of their own."""
    element = dataset.get_item(tag, keep_deferred=True)
    return isinstance(element, RawDataElement) and len(element.value or b"") == 2 and element.value != b"\0\0"


def _check_size(rows: int, columns: int, frames: int, allocated: int, limits: ImageLimits) -> None:
    if rows * columns > limits.max_frame_pixels or frames > limits.max_frames:
        raise TooLarge(
            f"The image claims {frames} frame(s) of {rows} x {columns} pixels; at most "
            f"{limits.max_frames} frames of {limits.max_frame_pixels} pixels are taken here",
            f"{frames} x {rows} x {columns} pixels",
        )
    if rows * columns * frames * allocated // 8 > limits.max_decoded_bytes:
        text = f"The image would need more than {limits.max_decoded_bytes} bytes of memory"
        raise TooLarge(text, f"{frames} x {rows} x {columns} pixels")


def _values(dataset: Dataset, i: int, stored_ends: tuple[int, int], budget: ReadBudget) -> Values:
    """Raises BadAttributes for a rescale or modality LUT that has no meaning; such a VOI LUT is left out."""
    holder = functional_group(dataset, i, "PixelValueTransformationSequence", budget)
    slope, intercept = _decimal(holder, "RescaleSlope", 1.0), _decimal(holder, "RescaleIntercept", 0.0)
    table = _first_table(holder, "ModalityLUTSequence", budget, signed=stored_ends[0] < 0)
    reach = max(abs(end) for end in stored_ends) * abs(slope) + abs(intercept)
    if not (MIN_RESCALE <= abs(slope) <= MAX_RESCALE and reach <= MAX_RESCALE):  # not a number, too
        raise BadAttributes("Rescale Slope (0028,1053) or Intercept (0028,1052) has no meaning", "RescaleSlope")
    plain = Values(slope, intercept, table, None, None)
    low, high = (0.0, table.top) if table else (end * slope + intercept for end in stored_ends)
    try:
        voi = functional_group(dataset, i, "FrameVOILUTSequence", budget)
        window, voi_table = _voi(voi, budget, signed=min(low, high) < 0)
    except TooLarge:
        raise
    except Exception:  # noqa: BLE001 - a broken preview setting is no reason to reject the radiograph
        return plain
    return Values(slope, intercept, table, window, voi_table)


def _voi(holder: Dataset, budget: ReadBudget, *, signed: bool) -> tuple[tuple[float, float, str] | None, Table | None]:
    if table := _first_table(holder, "VOILUTSequence", budget, signed=signed):
        # some writers declare 16 bits and fill 12 of them: what the entries need is what they mean, as DCMTK has it
        needed = max(1, math.ceil(max(table.entries)).bit_length())
        return None, Table(table.first, table.entries, min(table.top, float((1 << needed) - 1)))
    center, width = _decimal(holder, "WindowCenter", math.nan), _decimal(holder, "WindowWidth", math.nan)
    function = code_string(holder, "VOILUTFunction").upper() or "LINEAR"
    least = 1 if function == "LINEAR" else MIN_WINDOW_WIDTH
    usable = abs(center) <= MAX_RESCALE and least <= width <= MAX_RESCALE
    return (center, width, function) if usable else None, None


def functional_group(dataset: Dataset, i: int, keyword: str, budget: ReadBudget) -> Dataset:
    """Find the data set that holds a frame's attributes. Source: PS3.3 C.7.6.16.1.

    Args:
        dataset: the header.
        i: index of the frame, from 0.
        keyword: DICOM keyword of the functional group, e.g. "FrameVOILUTSequence".
        budget: what may still be read of the header.

    Returns:
        The frame's own functional group, else the shared one, else the header itself.

    Raises:
        BadAttributes: a functional group is no sequence.
        TooLarge: the budget is used up.
    """
    for groups, at in (("PerFrameFunctionalGroupsSequence", i), ("SharedFunctionalGroupsSequence", 0)):
        items = items_of(dataset, groups, budget)
        if at < len(items) and (found := items_of(items[at], keyword, budget)):
            return found[0]
    return dataset


def _first_table(holder: Dataset, keyword: str, budget: ReadBudget, *, signed: bool) -> Table | None:
    """The table of the first item that has values; an item without LUT Data is none."""
    for item in items_of(holder, keyword, budget):
        entries = _entries(item)
        if len(entries):
            return _table(item, entries, signed=signed)
    return None


def _entries(item: Dataset) -> Sequence[float]:
    """LUT Data as read: bytes if the number of entries has to show how wide they are."""
    element = item.get_item(Tag("LUTData"), keep_deferred=True)
    if isinstance(element, RawDataElement) and element.VR in ("US", "OW", "OB", "UN", None):
        if element.length > MAX_TABLE_ENTRIES:
            raise BadAttributes(f"{tagged_keyword('LUTData')} is far longer than it may be", "LUTData")
        return element.value or b""
    value = value_of(item, "LUTData", MAX_TABLE_ENTRIES)
    if value in (None, "", b""):
        return b""
    return value if isinstance(value, bytes) or hasattr(value, "append") else [value]


def _table(item: Dataset, data: Sequence[float], *, signed: bool) -> Table:
    """Build a table. signed: whether its inputs can be negative. Raises BadAttributes. Source: PS3.3 C.11.1.1.1."""
    try:
        size, first, bits = (int(value) for value in value_of(item, "LUTDescriptor"))
    except (TypeError, ValueError):
        raise BadAttributes(f"{tagged_keyword('LUTDescriptor')} is not three numbers", "LUTDescriptor") from None
    size = (size & 0xFFFF) or 65536  # 0 stands for 2**16; a signed VR can make it negative
    if signed and first >= 1 << 15:
        first -= 1 << 16  # written as US where SS was meant
    entries: Sequence[float]
    if not isinstance(data, bytes):
        try:
            entries = array("d", (float(value) for value in data[:size]))
        except (TypeError, ValueError):
            raise BadAttributes(f"{tagged_keyword('LUTData')} holds values that are no numbers", "LUTData") from None
        if not all(abs(entry) <= MAX_RESCALE for entry in entries):  # numbers as text can be anything, or none
            raise BadAttributes(f"{tagged_keyword('LUTData')} holds values that have no meaning", "LUTData")
    elif len(data) >= 2 * size:
        entries = array("H", data[: 2 * size])
        if item.original_encoding[1] is not (sys.byteorder == "little"):
            entries.byteswap()
    else:
        entries = data[:size]
    if len(entries) < size or not 1 <= bits <= 16:
        raise BadAttributes(f"{tagged_keyword('LUTData')} is shorter than LUT Descriptor (0028,3002) says", "LUTData")
    greatest = max(entries)
    return Table(first, entries, float(max((1 << bits) - 1, greatest)))


def _decimal(dataset: Dataset, keyword: str, default: float) -> float:
    """The first value; images with several windows name the preferred one first."""
    numbers = decimals(dataset, keyword)
    return default if not numbers or math.isnan(numbers[0]) else numbers[0]


def spacing_of(dataset: Dataset) -> tuple[tuple[float, float], str] | None:
    """Read the spacing of pixels: at the patient if calibrated, else at the detector. Source: PS3.3 10.7.1, C.8.11.4.

    Args:
        dataset: the header, or its Pixel Measures.

    Returns:
        Mm from row to row and from column to column, and the keyword that says so; None if the file does not say.
    """
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        try:
            down, across = decimals(dataset, keyword)
        except Exception:  # noqa: BLE001 - absent or broken: no reason to reject the radiograph
            down = across = math.nan
        if 0 < down < MAX_RESCALE and 0 < across < MAX_RESCALE:
            return (down, across), keyword
    return None
