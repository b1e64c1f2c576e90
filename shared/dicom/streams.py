"""Compressed frames: where each lies in a file, and what its stream says about itself.

Plain Python over a function that reads, so that intake can inspect a file of any size without holding it, and the
decoder the same bytes in memory: the decoder never refuses what intake accepts.
Source: PS3.5 8.2 and A.4, ITU-T T.81, T.87, T.800.
"""

import bisect
import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shared.errors import TruncatedPixels, UndecodablePixels, UnsupportedPixels

RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
_SEQUENTIAL = (0xC0, 0xC1)  # no progressive: not allowed in these syntaxes, and thousands of scans cost minutes
_LOSSLESS = (0xC3,)
_JPEG_LS = (0xF7,)
# the starts of frame that a transfer syntax of the JPEG family allows
_ALLOWED = {
    _JPEG + "50": _SEQUENTIAL,
    _JPEG + "51": _SEQUENTIAL,
    _JPEG + "57": _LOSSLESS,
    _JPEG + "70": _LOSSLESS,
    _JPEG + "80": _JPEG_LS,
    _JPEG + "81": _JPEG_LS,
}
JPEG_2000 = frozenset({_JPEG + "90", _JPEG + "91"})
HTJ2K = frozenset({_JPEG + "201", _JPEG + "202", _JPEG + "203"})
ENCAPSULATED = frozenset({RLE, *_ALLOWED, *JPEG_2000, *HTJ2K})

_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
_SOI = b"\xff\xd8"
_SOC_SIZ = b"\xff\x4f\xff\x51"
_JP2 = b"\0\0\0\x0cjP  "  # begins a JP2 file
END = b"\xff\xd9"  # EOI and EOC; cannot occur inside entropy coded data of any of the formats
_MAX_HEAD_BYTES = 4096  # bytes in which a codestream begins: some writers wrap it into a JP2 file
_PADDING = b"\0\xff"
_MOST_JUNK = 32768  # bytes other than padding that may follow an end mark

_ITEM, _DELIMITER = 0xFFFEE000, 0xFFFEE0DD
_NEIGHBOURS = 8  # fragments in which a mark is looked for: it may be cut in two, and padding can be a fragment
_MOST_FRAGMENTS = 100_000  # a radiograph has a handful; walking millions of empty ones would take minutes
# of JPEG 2000: OpenJPEG takes 9 KB for a tile and 1.6 KB for a precinct, OpenJPH 5.7 KB for a code block, though it
# were a pixel. Radiographs of 60 million pixels have half of these at most
_MOST_TILES, _MOST_PRECINCTS, _MOST_BLOCKS = 8192, 50_000, 100_000
_FEW_BLOCKS, _BLOCK_PIXELS = 10_000, 256  # beyond a few, blocks must hold so many pixels on average
_MOST_PACKETS = 10_000_000  # layers times precincts
_NO_IMAGE = "The compressed pixel data ends before its image begins: the file was cut short"
_EXACT_BITS = 24  # of a sample, beyond which OpenJPEG gives other values
_HT = 0x4000  # in Rsiz: the block coder of Part 15
_SOT, _SOD, _COD, _COC = 0x90, 0x93, 0x52, 0x53
# with these a reader's place in the stream is certain; OpenJPEG looks for what follows any other by trial
_J2K_SEGMENTS = set(bytes.fromhex("50 51 52 53 55 56 57 58 59 5C 5D 5E 5F 60 61 63 64 74 75 77 78"))

Read = Callable[[int, int], bytes]  # position and size; fewer bytes where the data end
Pieces = tuple[tuple[int, int], ...]  # where in a file the fragments of a frame begin and end, in order


@dataclass(frozen=True)
class Stream:
    """What a compressed stream says about itself."""

    rows: int
    columns: int
    components: int
    precision: int  # significant bits of a sample
    signed: bool = False
    exact: bool = True  # whether decoding gives what was encoded, bit for bit


@dataclass(frozen=True)
class SampleFormat:
    """What a header says about the samples of a frame. Source: PS3.3 C.7.6.3, PS3.5 8.1.1."""

    rows: int
    columns: int
    bits_allocated: int  # 8, 16 or 32
    bits_stored: int
    high_bit: int
    signed: bool


def reader_of_bytes(data: bytes) -> Read:
    """Reads from bytes in memory."""
    return lambda at, size: data[at : at + size]


def join_fragments(read: Read, pieces: Pieces) -> tuple[Read, int]:
    """Read the fragments of a frame as if they were one.

    Args:
        read: reads from the file by position and size.
        pieces: where the fragments begin and end in the file.

    Returns:
        A function that reads from the joined fragments, and their length in bytes.
    """
    starts, total = [], 0
    for begin, end in pieces:
        starts.append(total)
        total += end - begin

    def read_joined(at: int, size: int) -> bytes:
        found = b""
        number = bisect.bisect_right(starts, at) - 1
        while size > 0 and 0 <= number < len(pieces):
            begin, end = pieces[number]
            place = begin + at - starts[number]
            part = read(place, min(size, end - place)) if place < end else b""
            found += part
            if place + len(part) < end:
                break
            at, size, number = at + len(part), size - len(part), number + 1
        return found

    return read_joined, total


# -- a frame ---------------------------------------------------------------------------------------------------


def inspect_stream(syntax: str, read: Read, length: int, samples: SampleFormat) -> Stream | None:
    """Read the header of a frame's stream and compare it with the DICOM header; nothing is decoded.

    Args:
        syntax: Transfer Syntax UID, one of ENCAPSULATED.
        read: reads from the frame's joined fragments.
        length: bytes of the joined fragments.
        samples: what the DICOM header says of the samples.

    Returns:
        What the stream says; None for RLE, which says nothing.

    Raises:
        UndecodablePixels: the stream is damaged, or contradicts the DICOM header.
        TruncatedPixels: the stream ends early.
        UnsupportedPixels: the image is in colour, or has more bits than the decoder can read exactly.
    """
    if syntax == RLE:
        _check_rle(read, length, samples)
        return None
    stream = _inspect_jpeg(read, _ALLOWED[syntax]) if syntax in _ALLOWED else _inspect_jpeg2000(read)
    if stream.components != 1:
        text = f"The compressed image has {stream.components} components; only grayscale is read"
        raise UnsupportedPixels(text, f"{stream.components} components")
    if (stream.rows, stream.columns) != (samples.rows, samples.columns):
        raise UndecodablePixels(
            f"The compressed image is {stream.rows} x {stream.columns}, "
            f"the header says {samples.rows} x {samples.columns}",
            f"{stream.rows} x {stream.columns} for {samples.rows} x {samples.columns}",
        )
    if not 1 <= stream.precision <= samples.bits_allocated:
        raise UndecodablePixels(
            f"The compressed image has {stream.precision} bits, Bits Allocated (0028,0100) is {samples.bits_allocated}",
            f"{stream.precision} bits for BitsAllocated {samples.bits_allocated}",
        )
    if syntax not in _ALLOWED and stream.precision > _EXACT_BITS and not is_high_throughput(read):
        raise UnsupportedPixels(
            f"The compressed image has {stream.precision} bits; JPEG 2000 is read up to {_EXACT_BITS}",
            f"{stream.precision} bits",
        )
    value_position(stream, samples)
    # libjpeg and OpenJPH fill what is missing with gray and say nothing
    if not _has_end(read, length):
        raise TruncatedPixels("The compressed pixel data ends early: the file was cut short")
    return stream


def _has_end(read: Read, length: int) -> bool:
    """Whether an end mark is at the end of a stream; after it may come padding, or at most _MOST_JUNK other bytes."""
    size = 64
    while True:
        tail = read(max(0, length - size), min(size, length))
        if END in tail:
            return True
        if size >= length or (size >= _MOST_JUNK and tail.strip(_PADDING)):
            return False
        size *= 8


def value_position(stream: Stream | None, samples: SampleFormat) -> tuple[int, int]:
    """Find where in a decoded sample the stored value lies.

    A stream that reaches the High Bit holds whole cells, with old overlays above the value or below it, and a value
    without its sign. A narrower one holds values alone, from bit 0 on; its own width is that of their sign.

    Args:
        stream: what the stream says; None for RLE, which holds whole cells.
        samples: what the DICOM header says.

    Returns:
        How many bits the stored value has, and the number of its highest bit.

    Raises:
        UndecodablePixels: the two cases cannot be told apart, or the stream is signed and the header unsigned. Some
            writers mean the stream's bits by that, others its values.
    """
    if stream is None:  # RLE keeps the cells
        return samples.bits_stored, samples.high_bit
    if stream.signed and not samples.signed:
        raise UndecodablePixels(
            "The compressed image has signed samples, Pixel Representation (0028,0103) says unsigned: "
            "which values are meant cannot be told",
            "PixelRepresentation",
        )
    if stream.precision > samples.high_bit:
        return samples.bits_stored, samples.high_bit
    if stream.precision > samples.bits_stored:
        raise UndecodablePixels(
            f"The compressed image has {stream.precision} bits, which fits neither Bits Stored (0028,0101) of "
            f"{samples.bits_stored} nor High Bit (0028,0102) of {samples.high_bit}",
            f"{stream.precision} bits for BitsStored {samples.bits_stored}, HighBit {samples.high_bit}",
        )
    return stream.precision, stream.precision - 1


def _check_rle(read: Read, length: int, samples: SampleFormat) -> None:
    """A segment for each byte of a sample. Source: PS3.5 G.2 and G.5."""
    header = read(0, 64)
    if len(header) < 64:
        raise TruncatedPixels("An RLE frame ends within its header: the file was cut short")
    segments, *offsets = struct.unpack("<16L", header)
    needed = samples.bits_allocated // 8
    if segments != needed:
        raise UndecodablePixels(
            f"An RLE frame has {min(segments, 1 << 16)} segments where Bits Allocated (0028,0100) needs {needed}",
            f"{min(segments, 1 << 16)} segments for {needed}",
        )
    ends = [*offsets[1:segments], length]
    if offsets[0] < 64 or any(begin >= end for begin, end in zip(offsets, ends, strict=False)):
        raise UndecodablePixels("The segments of an RLE frame lie outside of it: the file is damaged or cut short")


def _inspect_jpeg(read: Read, allowed: tuple[int, ...]) -> Stream:
    """Walk the markers to the start of frame, for JPEG-LS to the scan. Source: T.81 B.2.2; T.87 C.2.2 and C.2.3."""
    if read(0, 2) != _SOI:
        raise UndecodablePixels("The compressed frame is no JPEG stream, though its transfer syntax says so")
    at = 2
    stream = None
    while len(head := read(at, 4)) == 4:
        marker = head[1]
        if head[0] != 0xFF:
            raise UndecodablePixels
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _START_OF_FRAME:
            stream = _start_of_frame(marker, read(at + 4, 6), allowed)
            if allowed != _JPEG_LS:
                return stream
            at += 2 + max(2, int.from_bytes(head[2:4], "big"))
        elif marker == _START_OF_SCAN and stream is not None:
            scan = read(at + 4, 16)
            near = scan[1 + 2 * scan[0] :][:1] if scan else b""
            return Stream(stream.rows, stream.columns, stream.components, stream.precision, exact=near == b"\0")
        else:
            at += 2 + max(2, int.from_bytes(head[2:4], "big"))
    raise TruncatedPixels(_NO_IMAGE)


def _start_of_frame(marker: int, body: bytes, allowed: tuple[int, ...]) -> Stream:
    """What the first six bytes after a start of frame's length say of the image. Source: T.81 B.2.2."""
    if marker not in allowed:
        text = f"JPEG process SOF {marker:#x} does not belong to the transfer syntax"
        raise UndecodablePixels(text, f"SOF {marker:#x}")
    if len(body) < 6:
        raise TruncatedPixels(_NO_IMAGE)
    precision, rows, columns, components = struct.unpack(">BHHB", body)
    if precision not in ((8, 12) if allowed == _SEQUENTIAL else range(2, 17)):
        raise UndecodablePixels(
            f"The compressed image has {precision} bits, which its JPEG process does not know", f"{precision} bits"
        )
    return Stream(rows, columns, components, precision, exact=allowed != _SEQUENTIAL)


def codestream_start(read: Read) -> int:
    """Find where the JPEG 2000 codestream begins in a frame.

    Some writers wrap it into a JP2 file, which PS3.5 A.4.4 forbids and everybody reads. The boxes are left off, for
    they could lead a decoder to another codestream than the one that was inspected.

    Args:
        read: reads from the frame's joined fragments.

    Returns:
        Its position; -1 if there is none.
    """
    return read(0, _MAX_HEAD_BYTES).find(_SOC_SIZ)


def is_high_throughput(read: Read) -> bool:
    """Whether Part 15 codes the blocks of a JPEG 2000 codestream. Source: ITU-T T.814 A.2."""
    return bool(int.from_bytes(read(codestream_start(read) + 6, 2), "big") & _HT)


def _inspect_jpeg2000(read: Read) -> Stream:
    """Read SIZ, which comes right after SOC, and the coding styles. Source: ITU-T T.800 A.5.1."""
    start = codestream_start(read)
    siz = read(start + 6, 39) if start >= 0 else b""
    if len(siz) < 39:
        raise UndecodablePixels("The compressed frame is no JPEG 2000 codestream, though its transfer syntax says so")
    width, height, left, top = (int.from_bytes(siz[i : i + 4], "big") for i in range(2, 18, 4))
    components = int.from_bytes(siz[34:36], "big")
    depth, step_x, step_y = siz[36:39]
    tile_width, tile_height, tiles_left, tiles_top = (int.from_bytes(siz[i : i + 4], "big") for i in range(18, 34, 4))
    if 0 in (step_x, step_y, tile_width, tile_height):
        raise UndecodablePixels
    # the first tile holds the first pixel (B.3); OpenJPH never ends where it does not
    if not (tiles_left <= left < tiles_left + tile_width and tiles_top <= top < tiles_top + tile_height):
        raise UndecodablePixels
    if -(-(width - tiles_left) // tile_width) * -(-(height - tiles_top) // tile_height) > _MOST_TILES:
        raise UndecodablePixels("The compressed image is cut into more tiles than any radiograph is")
    rows, columns = -(-height // step_y) + (-top // step_y), -(-width // step_x) + (-left // step_x)
    reversible = True
    for style in _coding_styles(read, start + 2):
        reversible &= _check_coding_style(style, rows, columns)
    return Stream(
        rows=rows,
        columns=columns,
        components=components,
        precision=(depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
        exact=reversible,
    )


def _coding_styles(read: Read, at: int) -> Iterator[bytes]:
    """Yield COD and COC segments, those of tile-parts too. at: position of the first marker segment.

    Raises UndecodablePixels. Source: ITU-T T.800 A.3 and A.4.
    """
    end_of_part = None
    while len(head := read(at, 10)) >= 4 and head[:2] != END:
        marker, length = head[1], int.from_bytes(head[2:4], "big")
        if head[0] == 0xFF and marker == _SOT:
            part = int.from_bytes(head[6:10], "big")
            if 0 < part < 14:
                break
            end_of_part = at + part if part else -1
            at += 12
        elif head[0] == 0xFF and marker == _SOD and end_of_part is not None:
            if end_of_part < 0:  # the last part, up to the end
                return
            at = max(end_of_part, at + 2)
        elif head[0] == 0xFF and marker in _J2K_SEGMENTS and length >= 2:
            if marker in (_COD, _COC):
                yield read(at, 2 + length)
            at += 2 + length
        else:
            break
    else:
        return
    raise UndecodablePixels("The compressed frame is damaged: its marker segments do not follow each other")


def _check_coding_style(segment: bytes, rows: int, columns: int) -> bool:
    """Refuse so many parts that they cost far more memory than the pixels; returns whether nothing is lost.

    Raises UndecodablePixels. Source: ITU-T T.800 A.6.1 and A.6.2.
    """
    common = segment[1] == _COD
    first = 9 if common else 6  # Number of decomposition levels
    if len(segment) < first + 5:
        raise UndecodablePixels
    levels, across, down = segment[first], (segment[first + 1] & 15) + 2, (segment[first + 2] & 15) + 2
    precincts = levels + 1
    if segment[4 if common else 5] & 1:
        sizes = segment[first + 5 : first + 6 + levels]
        precincts = sum(
            (-columns >> levels - level + (size & 15)) * (-rows >> levels - level + (size >> 4))
            for level, size in enumerate(sizes)
        )
    blocks = (-columns >> across) * (-rows >> down)
    layers = int.from_bytes(segment[6:8], "big") if common else 1
    small = blocks > _FEW_BLOCKS and blocks * _BLOCK_PIXELS > rows * columns
    too_many = precincts > _MOST_PRECINCTS or blocks > _MOST_BLOCKS or layers * precincts > _MOST_PACKETS
    if small or too_many or levels > 32:
        raise UndecodablePixels("The compressed image is cut into more parts than any radiograph is")
    return segment[first + 4] == 1


# -- all frames ------------------------------------------------------------------------------------------------


def find_frames(
    syntax: str, read: Read, at: int, end: int, frames: int, extended: tuple[bytes, bytes] | None
) -> tuple[Pieces, ...]:
    """Walk the items of encapsulated Pixel Data, the Basic Offset Table first. Source: PS3.5 A.4, PS3.3 C.7.6.3.1.8.

    One walk for all frames: a walk for each takes minutes where they are in thousands of fragments.
    A frame in the wrong place is worse than none, so an offset table is believed only where streams begin and end
    as it says; otherwise the streams' own marks decide.

    Args:
        syntax: Transfer Syntax UID, one of ENCAPSULATED.
        read: reads from the file by position and size.
        at: position of the first item.
        end: size of the file, in bytes.
        frames: Number of Frames, at least 1.
        extended: values of Extended Offset Table and Extended Offset Table Lengths; None if the file lacks them.

    Returns:
        The pieces of each frame.

    Raises:
        TruncatedPixels: an item runs past the end of the file, or there are fewer fragments than frames.
        UndecodablePixels: the items are damaged, or where the frames begin cannot be found.
    """
    items = _walk(read, at, end)
    table, fragments = items[0] if items else (0, 0), items[1:]
    if len(fragments) < frames:
        text = f"Pixel Data does not hold {frames} whole frame(s): the file was cut short"
        raise TruncatedPixels(text, f"NumberOfFrames {frames}")
    if len(fragments) == frames:
        return tuple((fragment,) for fragment in fragments)
    marks = _StreamMarks(syntax, read, fragments)
    if frames == 1:
        if len(marks.borders()) > 1:
            text = "Pixel Data holds more images than Number of Frames (0028,0008) says"
            raise UndecodablePixels(text, "NumberOfFrames")
        return (tuple(fragments),)
    for borders in (_extended_borders(extended, fragments), _basic_borders(read, table, fragments)):
        if len(borders) == frames and marks.are_valid(borders):
            return _cut(borders, fragments)
    borders = marks.borders()
    if len(borders) != frames:
        raise UndecodablePixels(
            f"Where the {frames} frames of the Pixel Data begin cannot be told: it has no offset table that fits, "
            f"and marks of {len(borders)} streams",
            f"{len(borders)} streams for {frames} frames",
        )
    return _cut(borders, fragments)


def _walk(read: Read, at: int, end: int) -> list[tuple[int, int]]:
    items: list[tuple[int, int]] = []
    while len(head := read(at, 8)) == 8:
        group, element, length = struct.unpack("<HHL", head)
        tag = group << 16 | element
        if tag == _DELIMITER:
            break
        if tag != _ITEM or len(items) > _MOST_FRAGMENTS:
            raise UndecodablePixels("The encapsulated Pixel Data is damaged: its items do not follow each other")
        items.append((at + 8, at + 8 + length))
        at += 8 + length
        if at > end:
            raise TruncatedPixels("Pixel Data ends within a fragment: the file was cut short")
    return items


def _cut(borders: list[int], fragments: list[tuple[int, int]]) -> tuple[Pieces, ...]:
    ends = [*borders[1:], len(fragments)]
    return tuple(tuple(fragments[begin:end]) for begin, end in zip(borders, ends, strict=True))


def _basic_borders(read: Read, table: tuple[int, int], fragments: list[tuple[int, int]]) -> list[int]:
    """The first fragment of each frame as the Basic Offset Table says; [] where it leads nowhere."""
    size = min(table[1] - table[0], 4 * len(fragments))
    data = read(table[0], size // 4 * 4)
    return _borders(struct.unpack(f"<{len(data) // 4}L", data), fragments)


def _extended_borders(extended: tuple[bytes, bytes] | None, fragments: list[tuple[int, int]]) -> list[int]:
    """The same of the Extended Offset Table; its lengths are those of the fragments, which the items have."""
    offsets = extended[0][: 8 * len(fragments)] if extended else b""
    return _borders(struct.unpack(f"<{len(offsets) // 8}Q", offsets[: len(offsets) // 8 * 8]), fragments)


def _borders(offsets: tuple[int, ...], fragments: list[tuple[int, int]]) -> list[int]:
    numbers = {start - fragments[0][0]: number for number, (start, _) in enumerate(fragments)}
    borders = [numbers.get(offset, -1) for offset in offsets]
    ascending = all(one < next_one for one, next_one in itertools.pairwise(borders))
    return borders if borders and borders[0] == 0 and ascending else []


class _StreamMarks:
    """Where streams begin and end, by their own marks."""

    def __init__(self, syntax: str, read: Read, fragments: list[tuple[int, int]]) -> None:
        self.syntax, self.read, self.fragments = syntax, read, fragments

    def are_valid(self, borders: list[int]) -> bool:
        """Whether a stream begins at each border, and one ends before it."""
        return all(self._begins(border) and (border == 0 or self._ended(border)) for border in borders)

    def borders(self) -> list[int]:
        """The fragments with which a stream begins; [] where the first one does not."""
        if self.syntax == RLE or not self._begins(0):  # RLE: bytes of a frame may look like a header
            return []
        further = (number for number in range(1, len(self.fragments)) if self._begins(number) and self._ended(number))
        return [0, *further]

    def _begins(self, number: int) -> bool:
        """Whether a stream may begin with this fragment."""
        read, _ = join_fragments(self.read, tuple(self.fragments[number : number + _NEIGHBOURS]))
        start = read(0, 8)
        if self.syntax == RLE:
            return start[4:] == b"\x40\0\0\0" and 1 <= start[0] <= 15 and not any(start[1:4])
        if self.syntax in _ALLOWED:
            return start[:2] == _SOI
        return start[:4] == _SOC_SIZ or start == _JP2

    def _ended(self, number: int) -> bool:
        """Whether a stream ends before this fragment, padded perhaps; RLE has no mark of its end."""
        if self.syntax == RLE:
            return True
        read, length = join_fragments(self.read, tuple(self.fragments[max(0, number - _NEIGHBOURS) : number]))
        size = 64
        while True:
            tail = read(max(0, length - size), min(size, length)).rstrip(_PADDING)
            if len(tail) >= len(END) or size >= length:
                return tail.endswith(END)
            size *= 8
