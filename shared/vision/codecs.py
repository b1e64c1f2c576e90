"""Bytes to stored values: one frame at a time, compressed or not.

Compressed ones go through imagecodecs, which lets go of the GIL while it decodes. Every stream's own size is read
before it is decoded, so that none can allocate more than the DICOM header owns up to.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

from shared.errors import TruncatedPixels, UndecodablePixels, UnsupportedPixels

RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
_SEQUENTIAL = (0xC0, 0xC1)  # no progressive: not allowed in these syntaxes, and thousands of scans cost minutes
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
_END = b"\xff\xd9"  # EOI and EOC; cannot occur inside entropy coded data of any of the formats


_ITEM, _DELIMITER = 0xFFFEE000, 0xFFFEE0DD
_MOST_FRAGMENTS = 100_000  # a film has a handful; walking millions of empty ones would take minutes
# of JPEG 2000: OpenJPEG takes 9 KB for a tile and 1.6 KB for a precinct, OpenJPH 5.7 KB for a code block, though it
# were a pixel. Films of 60 million pixels have half of these at most
_MOST_TILES, _MOST_PRECINCTS, _MOST_BLOCKS = 8192, 50_000, 100_000
_FEW_BLOCKS, _BLOCK_PIXELS = 10_000, 256  # beyond a few, blocks must hold so many pixels on average
_MOST_PACKETS = 10_000_000  # layers times precincts
_SOT, _SOD, _COD, _COC = 0x90, 0x93, 0x52, 0x53
# with these a reader's place in the stream is certain; OpenJPEG looks for what follows any other by trial
_J2K_SEGMENTS = set(bytes.fromhex("50 51 52 53 55 56 57 58 59 5C 5D 5E 5F 60 61 63 64 74 75 77 78"))


@dataclass(frozen=True)
class Stream:
    """What a compressed stream says about itself."""

    rows: int
    columns: int
    components: int
    precision: int  # significant bits of a sample
    signed: bool = False


@dataclass(frozen=True)
class _Codec:
    inspect: Callable[[bytes], Stream]
    decode: Callable[[bytes], npt.NDArray[Any]]


def decode_frame(syntax: str, frame: bytes, rows: int, columns: int, bits: int) -> tuple[npt.NDArray[Any], int | None]:
    """Decode one frame of an encapsulated image.

    syntax: transfer syntax UID, one of ENCAPSULATED; frame: its joined fragments; bits: Bits Allocated.
    Returns (rows, columns) integers and their significant bits, None where the header's Bits Stored tells.
    Raises UndecodablePixels (damaged, or another size than the header's), TruncatedPixels, UnsupportedPixels.
    Source: PS3.5 8.2 and A.4.
    """
    try:
        if syntax == RLE:
            return _rle(frame, rows, columns, bits), None
        codec = _CODECS[syntax]
        stream = codec.inspect(frame)
        _check(stream, rows, columns, bits)
        _check_end(frame)
        values = codec.decode(frame)
    except (UndecodablePixels, TruncatedPixels, UnsupportedPixels, MemoryError):  # the last is no flaw of the frame
        raise
    except Exception as broken:  # noqa: BLE001 - every codec raises its own kinds
        raise UndecodablePixels(f"{UndecodablePixels.__doc__} ({type(broken).__name__})") from None
    if values.shape != (rows, columns) or values.dtype.kind not in "iu":
        raise UndecodablePixels(f"The compressed image is {values.shape}, the header says {(rows, columns)}")
    return values, stream.precision


def _check(stream: Stream, rows: int, columns: int, bits: int) -> None:
    if stream.components != 1:
        raise UnsupportedPixels(f"The compressed image has {stream.components} components; only grayscale is read")
    if (stream.rows, stream.columns) != (rows, columns):
        raise UndecodablePixels(
            f"The compressed image is {stream.rows} x {stream.columns}, the header says {rows} x {columns}"
        )
    if not 1 <= stream.precision <= bits:
        raise UndecodablePixels(f"The compressed image has {stream.precision} bits, Bits Allocated is {bits}")


def _check_end(frame: bytes) -> None:
    # libjpeg and OpenJPH fill what is missing with gray and say nothing
    if frame.rfind(_END) < 0:
        raise TruncatedPixels("The compressed pixel data ends early: the file was cut short")


def _rle(frame: bytes, rows: int, columns: int, bits: int) -> npt.NDArray[Any]:
    """Source: PS3.5 G."""
    dtype = np.dtype(f"<u{bits // 8}")
    # a buffer of the right size: runs that would write beyond it are an error, not an allocation
    out = bytearray(rows * columns * dtype.itemsize)
    decoded = imagecodecs.dicomrle_decode(frame, dtype, out=out)
    if len(decoded) != len(out):
        raise UndecodablePixels(f"The RLE frame holds {len(decoded)} bytes, the header says {len(out)}")
    return np.frombuffer(decoded, dtype).reshape(rows, columns)


def _inspect_jpeg(frame: bytes, allowed: tuple[int, ...]) -> Stream:
    """Walk the markers to the start of frame. Source: ITU-T T.81 B.2.2; T.87 C.2.2 for JPEG-LS."""
    if frame[:2] != b"\xff\xd8":
        raise UndecodablePixels("The compressed frame is no JPEG stream, though its transfer syntax says so")
    at = 2
    while at + 4 <= len(frame):
        if frame[at] != 0xFF:
            raise UndecodablePixels
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _START_OF_FRAME:
            if marker not in allowed:
                raise UndecodablePixels(f"JPEG process SOF {marker:#x} does not belong to the transfer syntax")
            body = frame[at + 4 : at + 10]
            if len(body) < 6:
                break
            rows, columns = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            return Stream(rows, columns, components=body[5], precision=body[0])
        else:
            at += 2 + max(2, int.from_bytes(frame[at + 2 : at + 4], "big"))
    raise TruncatedPixels("The compressed pixel data ends before its image begins: the file was cut short")


def _inspect_jpeg2000(frame: bytes) -> Stream:
    """Read SIZ, which comes right after SOC. Source: ITU-T T.800 A.5.1."""
    frame = _codestream(frame)
    siz = frame[6:45]
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
        raise UndecodablePixels("The compressed image is cut into more tiles than any film is")
    rows, columns = -(-height // step_y) + (-top // step_y), -(-width // step_x) + (-left // step_x)
    for at in _coding_styles(frame, 2):
        _check_coding_style(frame, at, rows, columns)
    return Stream(
        rows=rows,
        columns=columns,
        components=components,
        precision=(depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
    )


def _codestream(frame: bytes) -> bytes:
    """What is inspected and decoded; empty when there is none.

    Some writers wrap it into a JP2 file, which PS3.5 A.4.4 forbids and everybody reads. The boxes are left off, for
    they could lead a decoder to another codestream than the one that was inspected.
    """
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    return frame[start:] if start >= 0 else b""


def _coding_styles(frame: bytes, at: int) -> Iterator[int]:
    """Where COD and COC segments begin, those of tile-parts too; at: the first marker segment.

    Raises UndecodablePixels. Source: ITU-T T.800 A.3 and A.4.
    """
    end_of_part = None
    while at + 4 <= len(frame) and frame[at : at + 2] != _END:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if frame[at] == 0xFF and marker == _SOT:
            part = int.from_bytes(frame[at + 6 : at + 10], "big")
            if 0 < part < 14:
                break
            end_of_part = at + part if part else len(frame)
            at += 12
        elif frame[at] == 0xFF and marker == _SOD and end_of_part is not None:
            at = max(end_of_part, at + 2)
        elif frame[at] == 0xFF and marker in _J2K_SEGMENTS and length >= 2:
            if marker in (_COD, _COC):
                yield at
            at += 2 + length
        else:
            break
    else:
        return
    raise UndecodablePixels("The compressed frame is damaged: its marker segments do not follow each other")


def _check_coding_style(frame: bytes, at: int, rows: int, columns: int) -> None:
    """Refuse so many parts that they cost far more memory than the pixels.

    Raises UndecodablePixels. Source: ITU-T T.800 A.6.1 and A.6.2.
    """
    common = frame[at + 1] == _COD
    first = at + (9 if common else 6)  # Number of decomposition levels
    if len(frame) < first + 5:
        raise UndecodablePixels
    levels, across, down = frame[first], (frame[first + 1] & 15) + 2, (frame[first + 2] & 15) + 2
    precincts = levels + 1
    if frame[at + (4 if common else 5)] & 1:
        sizes = frame[first + 5 : first + 6 + levels]
        precincts = sum(
            (-columns >> levels - level + (size & 15)) * (-rows >> levels - level + (size >> 4))
            for level, size in enumerate(sizes)
        )
    blocks = (-columns >> across) * (-rows >> down)
    layers = int.from_bytes(frame[at + 6 : at + 8], "big") if common else 1
    small = blocks > _FEW_BLOCKS and blocks * _BLOCK_PIXELS > rows * columns
    too_many = precincts > _MOST_PRECINCTS or blocks > _MOST_BLOCKS or layers * precincts > _MOST_PACKETS
    if small or too_many or levels > 32:
        raise UndecodablePixels("The compressed image is cut into more parts than any film is")


def _jpeg(*allowed: int) -> _Codec:
    return _Codec(lambda frame: _inspect_jpeg(frame, allowed), imagecodecs.jpeg8_decode)


_JPEG_LS = _Codec(lambda frame: _inspect_jpeg(frame, (0xF7,)), imagecodecs.jpegls_decode)
# one thread: the worker runs a process per core already
_JPEG_2000 = _Codec(_inspect_jpeg2000, lambda frame: imagecodecs.jpeg2k_decode(_codestream(frame), numthreads=1))
_HTJ2K = _Codec(_inspect_jpeg2000, lambda frame: imagecodecs.htj2k_decode(_codestream(frame)))
_CODECS = {
    _JPEG + "50": _jpeg(*_SEQUENTIAL),
    _JPEG + "51": _jpeg(*_SEQUENTIAL),
    _JPEG + "57": _jpeg(0xC3),
    _JPEG + "70": _jpeg(0xC3),
    _JPEG + "80": _JPEG_LS,
    _JPEG + "81": _JPEG_LS,
    _JPEG + "90": _JPEG_2000,
    _JPEG + "91": _JPEG_2000,
    _JPEG + "201": _HTJ2K,
    _JPEG + "202": _HTJ2K,
    _JPEG + "203": _HTJ2K,
}
ENCAPSULATED = frozenset({RLE, *_CODECS})


def significant(values: npt.NDArray[Any], bits: int, high_bit: int, *, signed: bool) -> npt.NDArray[Any]:
    """Clear what lies outside the significant bits (old overlays, noise), and extend the sign.

    values: any shape, integers of the allocated width. Returns the same shape in native byte order, signed or not.
    Source: PS3.5 8.1.1.
    """
    width = 8 * values.dtype.itemsize
    raw = values.astype(f"u{values.dtype.itemsize}", copy=False)
    if width - 1 - high_bit:
        raw = raw << (width - 1 - high_bit)
    # an arithmetic shift on the way back is what extends the sign
    wanted = raw.view(f"{'i' if signed else 'u'}{values.dtype.itemsize}")
    return wanted >> (width - bits) if width > bits else wanted


Pieces = tuple[tuple[int, int], ...]  # where in a file the fragments of a frame begin and end, in order


def find_frames(data: bytes, at: int, frames: int, extended: tuple[bytes, bytes] | None) -> tuple[Pieces, ...]:
    """Walk the items of encapsulated Pixel Data that begin at `at`, the Basic Offset Table first.

    extended: the Extended Offset Table and its lengths. Returns the pieces of each frame.
    Raises TruncatedPixels when an item runs past the end of the file or there are fewer than frames;
    UndecodablePixels. One walk for all frames: a walk for each takes minutes where they are in thousands of fragments.
    Source: PS3.5 A.4, PS3.3 C.7.6.3.1.8.
    """
    items: list[tuple[int, int]] = []
    while len(data) - at >= 8:
        group, element, length = struct.unpack_from("<HHL", data, at)
        tag = group << 16 | element
        if tag == _DELIMITER:
            break
        if tag != _ITEM or len(items) > _MOST_FRAGMENTS:
            raise UndecodablePixels("The encapsulated Pixel Data is damaged: its items do not follow each other")
        items.append((at + 8, at + 8 + length))
        at += 8 + length
    if at > len(data) or len(items) - 1 < frames:
        raise TruncatedPixels(f"Pixel Data does not hold {frames} whole frame(s): the file was cut short")
    table, *fragments = items
    if frames == 1:
        return (tuple(fragments),)
    if len(fragments) == frames:
        return tuple((fragment,) for fragment in fragments)
    if extended:
        return _by_extended_table(extended, fragments[0][0], frames, at)
    if table[1] > table[0]:
        return _by_basic_table(data[slice(*table)], fragments, frames)
    return _by_end_marks(data, fragments, frames)


def _by_extended_table(extended: tuple[bytes, bytes], first: int, frames: int, end: int) -> tuple[Pieces, ...]:
    offsets, lengths = (np.frombuffer(table, "<u8", min(frames, len(table) // 8)).tolist() for table in extended)
    pieces = [((first + offset, first + offset + length),) for offset, length in zip(offsets, lengths, strict=False)]
    if len(pieces) < frames or any(piece[0][1] > end for piece in pieces):
        raise UndecodablePixels("The Extended Offset Table (7FE0,0001) does not fit the Pixel Data")
    return tuple(pieces)


def _by_basic_table(table: bytes, fragments: list[tuple[int, int]], frames: int) -> tuple[Pieces, ...]:
    offsets = np.frombuffer(table, "<u4", len(table) // 4).astype(np.int64)
    starts = np.array([start for start, _ in fragments]) - fragments[0][0]
    borders = np.searchsorted(starts, offsets).tolist()
    # each offset is that of a fragment, and no frame is empty
    if len(offsets) != frames or borders[0] != 0 or not np.isin(offsets, starts).all() or (np.diff(offsets) <= 0).any():
        raise UndecodablePixels("The Basic Offset Table does not fit the Pixel Data")
    ends = [*borders[1:], len(fragments)]
    return tuple(tuple(fragments[begin:end]) for begin, end in zip(borders, ends, strict=True))


def _by_end_marks(data: bytes, fragments: list[tuple[int, int]], frames: int) -> tuple[Pieces, ...]:
    """Without a table a frame ends with the fragment that ends its stream, padded perhaps."""
    found: list[Pieces] = []
    begin = 0
    for number, (start, end) in enumerate(fragments, start=1):
        if _END in data[max(start, end - 10) : end]:
            found.append(tuple(fragments[begin:number]))
            begin = number
    if len(found) < frames:
        raise UndecodablePixels("Where the frames of the Pixel Data begin cannot be told: it has no offset table")
    return tuple(found[:frames])


def inflate(data: bytes, at: int, most: int) -> bytes:
    """The deflated data set that begins at `at`, inflated up to `most` bytes; as much as there is if it is cut short.

    Source: PS3.5 A.5.
    """
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(memoryview(data)[at:], most)
