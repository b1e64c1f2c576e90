"""Bytes to stored values: one frame at a time, compressed or not.

Compressed ones go through imagecodecs, which lets go of the GIL while it decodes. Every stream's own size is read
before it is decoded, so that none can allocate more than the DICOM header owns up to.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

from shared.errors import TooLarge, TruncatedPixels, UndecodablePixels, UnsupportedPixels

RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
_SEQUENTIAL = (0xC0, 0xC1)  # no progressive: not allowed in these syntaxes, and thousands of scans cost minutes
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
_END = b"\xff\xd9"  # EOI and EOC; cannot occur inside entropy coded data of any of the formats


_ITEM, _DELIMITER = 0xFFFEE000, 0xFFFEE0DD
_MOST_FRAGMENTS = 100_000  # a film has a handful; walking millions of empty ones would take minutes
_INFLATE_STEP = 1 << 20


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
    except (UndecodablePixels, TruncatedPixels, UnsupportedPixels):
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
    # some writers wrap the codestream into a JP2 file, which PS3.5 A.4.4 forbids and everybody reads
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    siz = frame[start + 6 : start + 45]
    if start < 0 or len(siz) < 39:
        raise UndecodablePixels("The compressed frame is no JPEG 2000 codestream, though its transfer syntax says so")
    width, height, left, top = (int.from_bytes(siz[i : i + 4], "big") for i in range(2, 18, 4))
    components = int.from_bytes(siz[34:36], "big")
    depth, step_x, step_y = siz[36:39]
    if 0 in (step_x, step_y):
        raise UndecodablePixels
    return Stream(
        rows=-(-height // step_y) + (-top // step_y),
        columns=-(-width // step_x) + (-left // step_x),
        components=components,
        precision=(depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
    )


def _jpeg(*allowed: int) -> _Codec:
    return _Codec(lambda frame: _inspect_jpeg(frame, allowed), imagecodecs.jpeg8_decode)


_JPEG_LS = _Codec(lambda frame: _inspect_jpeg(frame, (0xF7,)), imagecodecs.jpegls_decode)
# one thread: the worker runs a process per core already
_JPEG_2000 = _Codec(_inspect_jpeg2000, lambda frame: imagecodecs.jpeg2k_decode(frame, numthreads=1))
_HTJ2K = _Codec(_inspect_jpeg2000, imagecodecs.htj2k_decode)
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


def check_fragments(data: bytes, at: int, frames: int) -> None:
    """Walk the items of encapsulated Pixel Data that begin at `at`, the Basic Offset Table first.

    Raises TruncatedPixels when one runs past the end of the file or there are fewer than frames; UndecodablePixels.
    Source: PS3.5 A.4.
    """
    items = 0
    while len(data) - at >= 8:
        group, element, length = struct.unpack_from("<HHL", data, at)
        tag = group << 16 | element
        if tag == _DELIMITER:
            break
        if tag != _ITEM or items > _MOST_FRAGMENTS:
            raise UndecodablePixels("The encapsulated Pixel Data is damaged: its items do not follow each other")
        at += 8 + length
        items += 1
    if at > len(data) or items - 1 < frames:
        raise TruncatedPixels(f"Pixel Data does not hold {frames} whole frame(s): the file was cut short")


def inflate(data: bytes, at: int, most: int) -> bytes:
    """The deflated data set that begins at `at`, inflated; as much as there is when it is cut short.

    Raises TooLarge beyond `most` bytes. It is counted first and thrown away, so that a bomb costs no memory.
    Source: PS3.5 A.5.
    """
    kept = bytearray()
    for keep in (False, True):
        machine, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        # small pieces, since zlib copies the unused rest of its input at every step
        for begin in range(at, len(data), 65536):
            piece = data[begin : begin + 65536]
            while piece:
                part = machine.decompress(piece, _INFLATE_STEP)
                piece = machine.unconsumed_tail
                total += len(part)
                if total > most:
                    raise TooLarge(f"The deflated data set expands beyond {most} bytes")
                if keep:
                    kept += part
            if machine.eof:
                break
    return bytes(kept)
