"""Bytes to stored values: one frame at a time, compressed or not.

imagecodecs decodes compressed ones and releases the GIL meanwhile. Every stream's own size is read before it is
decoded, so that none can allocate more than the DICOM header declares.
"""

import itertools
import struct
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

from shared.dicom import streams
from shared.dicom.image import stored_range
from shared.dicom.streams import SampleFormat, Stream
from shared.errors import TruncatedPixels, UndecodablePixels, UnsupportedPixels

_MOST_MORE = 3  # bytes of a run of one, and one to make it even
Decoder = Callable[[bytes], npt.NDArray[Any]]


def decode_frame(syntax: str, frame: bytes, samples: SampleFormat, *, overlays: bool = False) -> npt.NDArray[Any]:
    """Decode one frame of an encapsulated image. Source: PS3.5 8.1.1, 8.2 and A.4.

    Args:
        syntax: Transfer Syntax UID, one of streams.ENCAPSULATED.
        frame: its joined fragments.
        samples: what the header says of the samples.
        overlays: whether old overlays lie in the unused bits of its samples.

    Returns:
        Its stored values, (rows, columns) integers of the allocated width, sign extended. Where the compression is
        lossless, they are those that the same image has uncompressed.

    Raises:
        UndecodablePixels: the frame is damaged, or has another size than the header says.
        TruncatedPixels: the frame ends early.
        UnsupportedPixels: the frame is in colour, or has more bits than can be decoded exactly.
        MemoryError: memory ran out; the frame may be sound.
    """
    try:
        stream = streams.inspect_stream(syntax, streams.reader_of_bytes(frame), len(frame), samples)
        values = _rle(frame, samples) if stream is None else _DECODERS[syntax](frame)
    except (UndecodablePixels, TruncatedPixels, UnsupportedPixels, MemoryError):  # the last is no flaw of the frame
        raise
    except Exception as error:  # noqa: BLE001 - every codec raises its own kinds
        kind = type(error).__name__
        raise UndecodablePixels(f"The compressed pixel data cannot be decoded ({kind})", kind) from None
    if values.shape != (samples.rows, samples.columns) or values.dtype.kind not in "iu":
        raise UndecodablePixels(
            f"The compressed image is {values.shape}, the header says {(samples.rows, samples.columns)}",
            f"{values.shape} for {(samples.rows, samples.columns)}",
        )
    width = samples.bits_allocated // 8
    # a signed value keeps its sign on its way to the allocated width, an unsigned one has zeros above it
    cells = values.astype(f"{values.dtype.kind}{width}", copy=False).view(f"u{width}")
    bits, high_bit = streams.value_position(stream, samples)
    if stream is None or stream.exact or overlays or stream.precision <= samples.high_bit:
        return significant(cells, bits, high_bit, signed=samples.signed)
    return _clip_to_range(cells, stream, samples)


def _clip_to_range(cells: npt.NDArray[Any], stream: Stream, samples: SampleFormat) -> npt.NDArray[Any]:
    """The values of a lossy stream: near the ends of Bits Stored it can miss by a little, which sets no other bit."""
    values = significant(cells, stream.precision, stream.precision - 1, signed=samples.signed)
    values = values >> (samples.high_bit + 1 - samples.bits_stored)
    clipped: npt.NDArray[Any] = np.clip(values, *stored_range(samples.bits_stored, signed=samples.signed))
    return clipped


def _rle(frame: bytes, samples: SampleFormat) -> npt.NDArray[Any]:
    """Source: PS3.5 G."""
    dtype = np.dtype(f"<u{samples.bits_allocated // 8}")
    # a buffer of the right size: runs that would write beyond it are an error, not an allocation
    out = bytearray(samples.rows * samples.columns * dtype.itemsize)
    try:
        decoded = imagecodecs.dicomrle_decode(frame, dtype, out=out)
    except imagecodecs.DicomrleError:
        # padding behind a segment decodes to more bytes than there is room for
        decoded = imagecodecs.dicomrle_decode(_without_padding(frame, len(out) // dtype.itemsize), dtype, out=out)
    if len(decoded) != len(out):
        text = f"The RLE frame holds {len(decoded)} bytes, the header says {len(out)}"
        raise UndecodablePixels(text, f"{len(decoded)} bytes for {len(out)}")
    return np.frombuffer(decoded, dtype).reshape(samples.rows, samples.columns)


def _without_padding(frame: bytes, pixels: int) -> bytes:
    """The frame with each segment up to where it holds so many bytes, if what follows is padding.

    Raises UndecodablePixels where it is more: the frame of a larger image. Source: PS3.5 G.3.1 and G.5.
    """
    segments, *begins = struct.unpack_from("<16L", frame)
    parts, offsets, at = [], [0] * 15, 64
    for number, (begin, end) in enumerate(itertools.pairwise([*begins[:segments], len(frame)])):
        enough = _where_it_holds(pixels, frame, begin, end)
        more = frame[enough:end]
        # zeros, or a run of a single byte
        if more.strip(b"\0") and not (len(more) <= _MOST_MORE and more[0] == 0):
            raise UndecodablePixels("The RLE frame holds more bytes than the header says")
        parts.append(frame[begin:enough])
        offsets[number] = at
        at += enough - begin
    return struct.pack("<16L", segments, *offsets) + b"".join(parts)


def _where_it_holds(pixels: int, frame: bytes, at: int, end: int) -> int:
    """Where a segment that begins at `at` has so many bytes."""
    held = 0
    while held < pixels and at < end:
        run = frame[at]
        held += run + 1 if run < 128 else 257 - run if run > 128 else 0
        at += run + 2 if run < 128 else 2 if run > 128 else 1
    return min(at, end)


def _codestream(frame: bytes) -> bytes:
    return frame[streams.codestream_start(streams.reader_of_bytes(frame)) :]


def _jpeg_2000(frame: bytes) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = imagecodecs.jpeg2k_decode(_codestream(frame), numthreads=1)
    return values  # one thread: the worker runs a process per core already


def _htj2k(frame: bytes) -> npt.NDArray[Any]:
    if not streams.is_high_throughput(
        streams.reader_of_bytes(frame)
    ):  # the other coder under this name: OpenJPH has only one
        return _jpeg_2000(frame)
    values: npt.NDArray[Any] = imagecodecs.htj2k_decode(_codestream(frame))
    return values


_JPEG = "1.2.840.10008.1.2.4."
_DECODERS: dict[str, Decoder] = {
    **dict.fromkeys((_JPEG + "50", _JPEG + "51", _JPEG + "57", _JPEG + "70"), imagecodecs.jpeg8_decode),
    **dict.fromkeys((_JPEG + "80", _JPEG + "81"), imagecodecs.jpegls_decode),
    **dict.fromkeys(streams.JPEG_2000, _jpeg_2000),
    **dict.fromkeys(streams.HTJ2K, _htj2k),
}


def significant(values: npt.NDArray[Any], bits: int, high_bit: int, *, signed: bool) -> npt.NDArray[Any]:
    """Clear what lies outside the significant bits (old overlays, noise), and extend the sign. Source: PS3.5 8.1.1.

    Args:
        values: integers of the allocated width, any shape.
        bits: how many bits are significant.
        high_bit: number of the highest significant bit, from 0.
        signed: whether the values are in two's complement.

    Returns:
        The values in the same shape and native byte order, signed or unsigned integers of the same width.
    """
    width = 8 * values.dtype.itemsize
    raw = values.astype(f"u{values.dtype.itemsize}", copy=False)
    if width - 1 - high_bit:
        raw = raw << (width - 1 - high_bit)
    # an arithmetic shift on the way back is what extends the sign
    values_of_width = raw.view(f"{'i' if signed else 'u'}{values.dtype.itemsize}")
    return values_of_width >> (width - bits) if width > bits else values_of_width


def inflate(data: bytes, at: int, max_bytes: int) -> bytes:
    """Inflate a deflated data set. Source: PS3.5 A.5.

    Args:
        data: the whole file.
        at: position of the data set.
        max_bytes: how many bytes are wanted.

    Returns:
        At most `max_bytes` bytes; fewer where the data set is shorter or cut short.
    """
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(memoryview(data)[at:], max_bytes)
