"""Where the frames of a stored object lie, for those who pass them on as they are. No pixel is decoded.

Other than `shared.dicom.image` it takes colour, too. Source: PS3.5 8 and A, PS3.3 C.7.6.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from shared.dicom.elements import CountedFile, ReadBudget, code_string, count, in_our_words, uid_of, value_of
from shared.dicom.identifiers import read_meta
from shared.dicom.image import (
    EXPLICIT_LE,
    IMPLICIT_LE,
    NATIVE,
    UNDEFINED_LENGTH,
    ImageLimits,
    PixelElement,
    read_until_pixels,
)
from shared.dicom.streams import ENCAPSULATED, Pieces, Read, find_frames
from shared.errors import NoPixelData, Rejected, TruncatedPixels, UnsupportedPixels

LITTLE_ENDIAN = frozenset({IMPLICIT_LE, EXPLICIT_LE})
PIECE_BYTES = 1 << 20  # read at a time
_PIXELS = int(Tag("PixelData"))
_WANTED = tuple(
    int(Tag(keyword))
    for keyword in (
        "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
        "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    )
)  # fmt: skip


@dataclass(frozen=True)
class FrameMap:
    """The frames of an object."""

    syntax: str  # Transfer Syntax UID of the frames: of uncompressed ones Explicit VR Little Endian
    pieces: tuple[Pieces, ...]  # one a frame

    def frame(self, read: Read, number: int) -> Iterator[bytes]:
        """Read a frame.

        Args:
            read: reads from the object by position and size.
            number: 1 for the first.

        Yields:
            Its bytes, at most PIECE_BYTES at a time.

        Raises:
            TruncatedPixels: the object ends within the frame.
        """
        for begin, end in self.pieces[number - 1]:
            at = begin
            while at < end:
                piece = read(at, min(PIECE_BYTES, end - at))
                if not piece:
                    raise TruncatedPixels("The stored object is shorter than its frames")
                yield piece
                at += len(piece)


def frame_map(file: BinaryIO, size_bytes: int, limits: ImageLimits) -> FrameMap:
    """Find the frames of an object.

    Args:
        file: seekable, at its start.
        size_bytes: size of the file.
        limits: bounds on what a header may claim.

    Returns:
        The frames.

    Raises:
        NoPixelData: it has none.
        UnsupportedPixels: they cannot be passed on as they are: deflated, big endian, or parts of bytes.
        Rejected: the header or the pixel data is damaged.
    """
    try:
        return _frame_map(file, size_bytes, limits)
    except Rejected:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises nearly anything on damaged headers
        raise in_our_words(error) from None


def _frame_map(file: BinaryIO, size_bytes: int, limits: ImageLimits) -> FrameMap:
    syntax = uid_of(read_meta(file), "TransferSyntaxUID")
    if syntax not in LITTLE_ENDIAN | ENCAPSULATED:
        raise UnsupportedPixels("Its frames cannot be passed on as they are stored", syntax)
    budget = ReadBudget(limits.max_header_bytes)
    dataset, pixels = read_until_pixels(file, syntax, budget, _WANTED, lambda: (size_bytes, size_bytes))
    if pixels.tag != _PIXELS:
        raise NoPixelData
    frames = count(dataset, "NumberOfFrames", 1, 0) or 1
    read = CountedFile(file, budget).at
    if syntax in NATIVE:
        return FrameMap(EXPLICIT_LE, _native(dataset, pixels, frames, size_bytes))
    tables = [value_of(dataset, keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    extended = (tables[0], tables[1]) if all(isinstance(table, bytes) for table in tables) else None
    return FrameMap(syntax, find_frames(syntax, read, pixels.start, size_bytes, frames, extended))


def _native(dataset: Dataset, pixels: PixelElement, frames: int, size_bytes: int) -> tuple[Pieces, ...]:
    allocated = count(dataset, "BitsAllocated")
    if allocated % 8:
        raise UnsupportedPixels("Its frames do not begin at whole bytes", f"BitsAllocated {allocated}")
    samples = count(dataset, "SamplesPerPixel", 1) * count(dataset, "Rows") * count(dataset, "Columns")
    if code_string(dataset, "PhotometricInterpretation") in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        samples = samples * 2 // 3  # PS3.3 C.7.6.3.1.2: two pixels share their colour
    frame = samples * allocated // 8
    end = size_bytes if pixels.length == UNDEFINED_LENGTH else min(size_bytes, pixels.start + pixels.length)
    if pixels.start + frames * frame > end:
        raise TruncatedPixels("Pixel Data is shorter than its frames", f"NumberOfFrames {frames}")
    return tuple(((pixels.start + number * frame, pixels.start + (number + 1) * frame),) for number in range(frames))
