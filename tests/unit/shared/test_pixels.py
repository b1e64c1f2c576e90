"""From DICOM bytes to images: every encoding, every damage. Small radiographs are made here; real ones where they are found."""

import contextlib
import csv
import io
import re
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NoReturn

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.filewriter import dcmwrite
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import UID

from shared import errors
from shared.dicom.image import ImageLimits
from shared.pixels.decode import display, open_pixels
from shared.settings import ROOT
from tests.pace import limit_s

IMPLICIT_LE, EXPLICIT_LE, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG = "1.2.840.10008.1.2.4."
SECRET = "Secret^Patient"
Array = npt.NDArray[Any]


def _rle(radiograph: Array, bits: int) -> bytes:
    allocated = radiograph.dtype.itemsize * 8
    return bytes(
        RLELosslessEncoder.encode(
            radiograph,
            rows=radiograph.shape[0],
            columns=radiograph.shape[1],
            samples_per_pixel=1,
            bits_allocated=allocated,
            bits_stored=allocated,
            pixel_representation=int(radiograph.dtype.kind == "i"),
            photometric_interpretation="MONOCHROME2",
            number_of_frames=1,
        )
    )


def _jpeg2000(radiograph: Array, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(radiograph, codecformat="J2K", reversible=True, bitspersample=bits))


def _lossless_jpeg(radiograph: Array, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(_raw(radiograph), lossless=True, bitspersample=max(bits, 2), predictor=1))


def _htj2k(radiograph: Array, _bits: int) -> bytes:
    return bytes(imagecodecs.htj2k_encode(radiograph, reversible=True))


def _jpeg_ls(radiograph: Array, _bits: int) -> bytes:
    return bytes(imagecodecs.jpegls_encode(_raw(radiograph)))


def _raw(radiograph: Array) -> Array:
    return radiograph.view(f"u{radiograph.dtype.itemsize}")


LOSSLESS: dict[str, Callable[[Array, int], bytes]] = {
    RLE: _rle,
    JPEG + "57": _lossless_jpeg,
    JPEG + "70": _lossless_jpeg,
    JPEG + "80": _jpeg_ls,
    JPEG + "81": _jpeg_ls,
    JPEG + "90": _jpeg2000,
    JPEG + "91": _jpeg2000,
    JPEG + "201": _htj2k,
    JPEG + "202": _htj2k,
    JPEG + "203": _htj2k,
}
NATIVE = (IMPLICIT_LE, EXPLICIT_LE, BIG_ENDIAN, DEFLATED)


def make(
    radiographs: list[Array],
    syntax: str = EXPLICIT_LE,
    bits: int | None = None,
    frames: list[bytes] | None = None,
    value: bytes | None = None,
    **attributes: Any,
) -> bytes:
    """A DICOM file of the radiographs, (H, W) integers each. frames or value stand in for the encoded pixels."""
    first = radiographs[0]
    allocated = first.dtype.itemsize * 8
    bits = bits or allocated
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    dataset.PatientName, dataset.Modality = SECRET, "CR"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = first.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelRepresentation = int(first.dtype.kind == "i")
    if len(radiographs) > 1:
        dataset.NumberOfFrames = len(radiographs)
    if syntax in LOSSLESS or frames:
        frames = frames or [LOSSLESS[syntax](radiograph, bits) for radiograph in radiographs]
        dataset.PixelData = encapsulate(frames)
        dataset["PixelData"].is_undefined_length = True
        vr = "OB"
    else:
        order: Literal["<", ">"] = ">" if syntax == BIG_ENDIAN else "<"
        pixels = b"".join(
            radiograph.astype(radiograph.dtype.newbyteorder(order)).tobytes() for radiograph in radiographs
        )
        pixels += b"\0" * (len(pixels) % 2)
        if allocated == 8 and syntax == BIG_ENDIAN:
            pixels = np.frombuffer(pixels, "<u2").astype(">u2").tobytes()  # OW: bytes swap within words
        dataset.PixelData = pixels
        vr = "OW"
    if value is not None:
        dataset.PixelData = value
    dataset["PixelData"].VR = vr
    for keyword, content in attributes.items():
        if keyword.startswith("Overlay"):
            dataset.add_new(
                {"OverlayBitsAllocated": 0x60000100, "OverlayBitPosition": 0x60000102}[keyword], "US", content
            )
        elif content is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, content)
    return write(dataset, syntax)


def write(dataset: Dataset, syntax: str) -> bytes:
    """The data set as a file, whatever it holds."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.1"), UID("1.2.3")
    meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta = meta
    file = io.BytesIO()
    little, implicit = syntax != BIG_ENDIAN, syntax == IMPLICIT_LE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # without enforced format, so that unsound files can be made too
        if UID(syntax) in pydicom.uid.AllTransferSyntaxes:
            dcmwrite(file, dataset, enforce_file_format=True)
        else:
            dcmwrite(file, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    return file.getvalue()


def ramp(dtype: str, bits: int, shape: tuple[int, int] = (12, 10)) -> Array:
    """A radiograph that takes the least, the greatest and many values between."""
    signed = np.dtype(dtype).kind == "i"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    radiograph = np.linspace(low, high, shape[0] * shape[1]).round().reshape(shape).astype(dtype)
    radiograph[2:5, 3:7] = high
    return radiograph


@st.composite
def radiographs(draw: st.DrawFn) -> tuple[Array, int]:
    """A radiograph with its Bits Stored; every value lies within them."""
    dtype, bits = draw(st.sampled_from([("u1", 8), ("u2", 10), ("u2", 12), ("u2", 16), ("i2", 12), ("i2", 16)]))
    signed = dtype[0] == "i"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    return draw(hnp.arrays(np.dtype(dtype), shape, elements=st.integers(low, high))), bits


# -- laws -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(radiographs(), st.sampled_from([*NATIVE, RLE]))
def test_native_and_rle_encodings_of_a_radiograph_give_its_values(case: tuple[Array, int], syntax: str) -> None:
    """However a radiograph is stored uncompressed or run length encoded, its frame is the radiograph."""
    radiograph, bits = case
    frame = open_pixels(make([radiograph], syntax, bits)).frame(0)
    assert frame.dtype == np.float32
    np.testing.assert_array_equal(frame, radiograph.astype(np.float32))


@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS])
@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 10), ("u2", 12), ("u2", 16), ("i2", 12), ("i2", 16)])
def test_every_lossless_encoding_gives_the_same_frame(syntax: str, dtype: str, bits: int) -> None:
    """All lossless transfer syntaxes of one radiograph give identical frames, at every bit depth and sign."""
    radiograph = ramp(dtype, bits, (24, 19))
    np.testing.assert_array_equal(open_pixels(make([radiograph], syntax, bits)).frame(0), radiograph.astype(np.float32))


WHOLE_CELLS: dict[str, tuple[int, ...]] = {  # Bits Allocated that the encoders here take
    **dict.fromkeys(NATIVE, (8, 16, 32)),
    **dict.fromkeys(LOSSLESS, (8, 16)),
}


@st.composite
def cells(draw: st.DrawFn, widths: tuple[int, ...] = (8, 16, 32)) -> tuple[Array, Array, int, int]:
    """Stored values, the cells that hold them, Bits Stored and High Bit; what lies outside is clear, set or noise."""
    allocated, signed = draw(st.sampled_from(widths)), draw(st.booleans())
    bits = draw(st.integers(1, allocated))
    high_bit = draw(st.integers(bits - 1, allocated - 1))
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    values = draw(hnp.arrays(np.int64, shape, elements=st.integers(low, high)))
    outside = draw(st.sampled_from(["clear", "extended", "noise", "overlay"]))
    mask, shift, room = (1 << bits) - 1, high_bit + 1 - bits, (1 << allocated) - 1
    held = (values & mask) << shift
    if outside == "extended" and signed:
        held = (values << shift) & room
    elif outside in ("noise", "overlay") and allocated > bits:
        beyond = room & ~(mask << shift)
        if outside == "overlay":  # one bit, as (60xx,0102) names it
            beyond &= 1 << draw(st.sampled_from([bit for bit in range(allocated) if beyond >> bit & 1]))
        held |= draw(hnp.arrays(np.int64, shape, elements=st.integers(0, room))) & beyond
    kind = "i" if signed else "u"
    return values, held.astype(f"u{allocated // 8}").view(f"{kind}{allocated // 8}"), bits, high_bit


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([*NATIVE, *LOSSLESS]))
def test_one_set_of_stored_values_gives_one_frame_in_every_encoding(data: st.DataObject, syntax: str) -> None:
    """Codec x bits x sign x High Bit x overlay: the values are those of Bits Stored, whatever lies around them."""
    values, held, bits, high_bit = data.draw(cells(WHOLE_CELLS[syntax]))
    allocated = 8 * held.itemsize
    frames = [LOSSLESS[syntax](held, allocated)] if syntax in LOSSLESS else None
    source = open_pixels(make([held], syntax, bits, frames=frames, HighBit=high_bit))
    np.testing.assert_array_equal(source.stored(0), values)
    # and overlays that the header names change nothing
    named = make([held], syntax, bits, frames=frames, HighBit=high_bit, **overlay(bit=min(bits, allocated - 1)))
    np.testing.assert_array_equal(open_pixels(named).stored(0), values)


def overlay(bit: int) -> dict[str, Any]:
    """Attributes of an overlay in a bit of the samples. Source: PS3.3 C.9.2 (until 2004)."""
    return {"OverlayBitsAllocated": 16, "OverlayBitPosition": bit}


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([JPEG + "57", JPEG + "70", JPEG + "90", JPEG + "91"]), st.booleans())
def test_a_stream_of_values_alone_gives_them(data: st.DataObject, syntax: str, signed: bool) -> None:
    """A stream as wide as the values, or as wide as they need, holds them from bit 0 on, whatever High Bit says."""
    bits = data.draw(st.integers(2, 16))
    width = data.draw(st.integers(2, bits))
    high_bit = data.draw(st.sampled_from([bits - 1, *range(max(bits - 1, width), 16)]))
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
    values = data.draw(hnp.arrays("i2" if signed else "u2", (5, 4), elements=st.integers(low, high)))
    held = values
    if not syntax.startswith(JPEG + "9"):
        held = (values.view("u2") & ((1 << width) - 1)).astype("u1" if width <= 8 else "u2")
    elif width <= 8:
        held = values.astype("i1" if signed else "u1")
    stream = LOSSLESS[syntax](held, width)
    source = open_pixels(make([values], syntax, bits, frames=[stream], HighBit=high_bit))
    np.testing.assert_array_equal(source.stored(0), values)


@pytest.mark.parametrize("syntax", [JPEG + "90", JPEG + "91"])
@pytest.mark.parametrize(("allocated", "bits", "width"), [(16, 12, 16), (16, 16, 16), (16, 12, 12), (8, 8, 8)])
def test_a_sign_that_the_header_does_not_know_is_refused(syntax: str, allocated: int, bits: int, width: int) -> None:
    """A signed codestream under Pixel Representation 0: some mean its bits, others its values, so none is guessed."""
    radiograph = ramp(f"i{allocated // 8}", min(bits, width))
    stream = _jpeg2000(radiograph, width)
    content = make([radiograph.view(f"u{allocated // 8}")], syntax, bits, frames=[stream])
    with pytest.raises(errors.UndecodablePixels, match=r"Pixel Representation \(0028,0103\)"):
        open_pixels(content).frame(0)


def test_a_stream_that_fits_neither_bits_stored_nor_high_bit_is_refused() -> None:
    """Between the two it cannot be told where in a sample the value lies."""
    stream = _jpeg2000(ramp("u2", 12), 12)
    source = open_pixels(make([ramp("u2", 12)], JPEG + "90", 10, frames=[stream], HighBit=13))
    with pytest.raises(errors.UndecodablePixels, match="fits neither"):
        source.frame(0)


@pytest.mark.parametrize("signed", [False, True])
def test_what_a_lossy_stream_misses_does_not_wrap(signed: bool) -> None:
    """A lossy stream wider than Bits Stored goes over their ends by a little; white does not become black."""
    radiograph = np.zeros((64, 64), "u2")
    radiograph[9:40, 20:] = radiograph[50:] = 4095
    radiograph = radiograph.astype("i2") - 2048 if signed else radiograph
    stream = bytes(imagecodecs.jpeg2k_encode(radiograph, codecformat="J2K", level=45, bitspersample=16))
    decoded = imagecodecs.jpeg2k_decode(stream)
    assert decoded.max() > radiograph.max()  # so that there is something to miss
    stored = open_pixels(make([radiograph], JPEG + "91", 12, frames=[stream])).stored(0)
    np.testing.assert_array_equal(stored, np.clip(decoded, radiograph.min(), radiograph.max()))
    # an overlay that the header names is cleared there, too
    marked = radiograph.view("u2") | 0x8000
    stream = bytes(imagecodecs.jpeg2k_encode(marked, codecformat="J2K", level=90, bitspersample=16))
    if not signed:
        stored = open_pixels(make([marked], JPEG + "91", 12, frames=[stream], **overlay(15))).stored(0)
        assert stored.max() <= 4095


@settings(max_examples=60, deadline=None)
@given(radiographs(), st.sampled_from([(1, 0), (2, -1024), (0.684, 200.0), (-1, 0)]))
def test_monochrome1_inversion_undoes_itself(case: tuple[Array, int], rescale: tuple[float, float]) -> None:
    """A radiograph and its negative, marked MONOCHROME1, give the same frame, whatever the rescale."""
    radiograph, bits = case
    total = -1 if radiograph.dtype.kind == "i" else (1 << bits) - 1
    negative = (total - radiograph.astype(np.int64)).astype(radiograph.dtype)
    slope, intercept = rescale
    plain = open_pixels(make([radiograph], bits=bits, RescaleSlope=slope, RescaleIntercept=intercept))
    mirrored = open_pixels(
        make(
            [negative],
            bits=bits,
            PhotometricInterpretation="MONOCHROME1",
            RescaleSlope=slope,
            RescaleIntercept=intercept,
        )
    )
    exact = slope == int(slope)
    np.testing.assert_allclose(mirrored.frame(0), plain.frame(0), rtol=0, atol=0 if exact else 0.02)
    # and within one source: mirroring a mirrored frame is the frame
    twice = replace(plain, photometric="MONOCHROME1").frame(0)
    ends = sum(plain.transform(0).ends(*((-(1 << bits - 1), (1 << bits - 1) - 1) if total == -1 else (0, total))))
    np.testing.assert_allclose(np.float32(ends) - twice, plain.frame(0), rtol=0, atol=0 if exact else 0.02)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_damage_is_refused_by_name_or_survived(data: st.DataObject) -> None:
    """Flipped and missing bytes raise a Rejected that does not name the patient, or do no harm; nothing else."""
    syntax = data.draw(st.sampled_from([EXPLICIT_LE, IMPLICIT_LE, BIG_ENDIAN, DEFLATED, *LOSSLESS]))
    content = bytearray(make([ramp("u2", 12)] * 2, syntax, 12, WindowCenter=2000, WindowWidth=3000))
    for at in data.draw(st.lists(st.integers(128, len(content) - 1), max_size=6)):
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        source = open_pixels(bytes(content[:cut]), ImageLimits(max_frame_pixels=10_000, max_decoded_bytes=10**7))
        for number in range(source.frames):
            assert display(source, number).shape == (source.rows, source.columns)
    except errors.Rejected as error:
        assert "Secret" not in str(error)


# -- kinds of pixels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [JPEG + "50", JPEG + "51"])
def test_lossy_jpeg_is_near_its_radiograph(syntax: str) -> None:
    """JPEG baseline at 8 bit and extended at 12 bit decode to within their loss."""
    bits, dtype = (8, "u1") if syntax.endswith("50") else (12, "u2")
    radiograph = ramp(dtype, bits, (32, 32))
    stream = bytes(imagecodecs.jpeg8_encode(radiograph, level=98, bitspersample=bits))
    frame = open_pixels(make([radiograph], syntax, bits, frames=[stream])).frame(0)
    assert np.abs(frame - radiograph).mean() < 0.02 * (1 << bits)


@pytest.mark.parametrize("syntax", [*NATIVE, RLE, JPEG + "80", JPEG + "90"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_frames_keep_their_order_and_size(syntax: str, dtype: str) -> None:
    """Every frame of a multi-frame radiograph is its own, also where 8-bit frames have an odd number of pixels."""
    stack = [ramp(dtype, 8, (5, 7)) // divisor for divisor in (1, 2, 3)]
    source = open_pixels(make(stack, syntax, 8))
    assert source.frames == 3
    for frame, radiograph in zip(source, stack, strict=True):
        np.testing.assert_array_equal(frame.image, radiograph)
    assert [frame.number for frame in source] == [1, 2, 3]
    with pytest.raises(IndexError):
        source.frame(3)


def test_fragments_and_extended_offsets_are_joined() -> None:
    """A frame cut into fragments, with or without offset tables, is put together again."""
    stack = [ramp("u2", 12), ramp("u2", 12)[::-1].copy()]
    streams = [_jpeg_ls(radiograph, 12) for radiograph in stack]
    fragmented = encapsulate(streams, fragments_per_frame=2)
    without_table = encapsulate(streams, has_bot=False)
    pixels, offsets, lengths = encapsulate_extended(streams)
    for content in (
        make(stack, JPEG + "80", 12, frames=streams, value=fragmented),
        make(stack, JPEG + "80", 12, frames=streams, value=without_table),
        make(
            stack,
            JPEG + "80",
            12,
            frames=streams,
            value=pixels,
            ExtendedOffsetTable=offsets,
            ExtendedOffsetTableLengths=lengths,
        ),
    ):
        source = open_pixels(content)
        for number, radiograph in enumerate(stack):
            np.testing.assert_array_equal(source.frame(number), radiograph)


def test_bits_beyond_bits_stored_are_no_pixels() -> None:
    """An old overlay in the unused high bits does not reach the frame, and High Bit places the samples."""
    radiograph = ramp("u2", 10)
    noisy = radiograph | 0xA000
    np.testing.assert_array_equal(open_pixels(make([noisy], bits=10)).frame(0), radiograph)
    np.testing.assert_array_equal(open_pixels(make([radiograph << 6], bits=10, HighBit=15)).frame(0), radiograph)


def test_signed_samples_are_extended_from_their_own_width() -> None:
    """A negative 12-bit sample whose upper nibble is clear is still negative."""
    radiograph = ramp("i2", 12)
    bare = (radiograph.view("u2") & 0x0FFF).view("i2")
    np.testing.assert_array_equal(open_pixels(make([bare], bits=12)).frame(0), radiograph)


def test_jpeg2000_of_the_wrong_sign_reads_as_the_header_says() -> None:
    """An unsigned JPEG 2000 stream under a signed header holds two's complement samples, as pydicom takes it."""
    radiograph = ramp("i2", 13)
    stream = _jpeg2000(radiograph.view("u2") & 0x1FFF, 13)
    np.testing.assert_array_equal(
        open_pixels(make([radiograph], JPEG + "90", 16, frames=[stream])).frame(0), radiograph
    )


def test_8_bit_big_endian_bytes_are_not_swapped_in_ob() -> None:
    """Big endian 8-bit pixels are swapped within words as OW, but stand in order as OB."""
    radiograph = ramp("u1", 8, (5, 5))
    swapped = make([radiograph], BIG_ENDIAN)
    at = swapped.index(b"\x7f\xe0\x00\x10OW")
    plain = swapped[: at + 4] + b"OB" + swapped[at + 6 : at + 12] + radiograph.tobytes() + b"\0"
    np.testing.assert_array_equal(open_pixels(swapped).frame(0), radiograph)
    np.testing.assert_array_equal(open_pixels(plain).frame(0), radiograph)


def test_rescale_and_modality_lut_give_modality_units() -> None:
    """Rescale is slope times value plus intercept; a modality LUT maps, and clamps beyond its ends."""
    radiograph = ramp("u2", 12)
    rescaled = open_pixels(make([radiograph], bits=12, RescaleSlope=2, RescaleIntercept=-1024)).frame(0)
    np.testing.assert_array_equal(rescaled, radiograph * 2.0 - 1024)
    for count, first in ((256, 100), (4096, 0)):
        table = (np.arange(count) * 3 % 4096).astype("u2")
        item = Dataset()
        item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [count, first, 12], "US", table.tobytes()
        item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
        frame = open_pixels(make([radiograph], bits=12, ModalityLUTSequence=[item])).frame(0)
        np.testing.assert_array_equal(frame, table[np.clip(radiograph.astype(int) - first, 0, count - 1)])


def test_a_modality_lut_of_bytes_is_exact_wherever_it_begins() -> None:
    """A table that begins far below the least value maps each byte to its own entry."""
    radiograph, item = np.arange(256, dtype="u1").reshape(16, 16), Dataset()
    table = (np.arange(8192) % 4099).astype("u2")
    item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [8192, -5001, 16], "US", table.tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "SS", "OW"
    frame = open_pixels(make([radiograph], ModalityLUTSequence=[item])).frame(0)
    np.testing.assert_array_equal(frame, table[radiograph.astype(int) + 5001])


def test_each_frame_follows_its_functional_group() -> None:
    """Enhanced objects rescale frame by frame."""
    radiograph, groups = ramp("u2", 12), []
    for slope in (1, 3):
        value, group = Dataset(), Dataset()
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = slope, 5, "US"
        group.PixelValueTransformationSequence = [value]
        groups.append(group)
    source = open_pixels(make([radiograph, radiograph], bits=12, PerFrameFunctionalGroupsSequence=groups))
    np.testing.assert_array_equal(source.frame(0), radiograph + 5.0)
    np.testing.assert_array_equal(source.frame(1), radiograph * 3.0 + 5)


# -- preview ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_is_the_standards(function: str) -> None:
    """The preview follows PS3.3 C.11.2.1.2 and .3 to within a gray level, and pydicom's reading of it."""
    radiograph = ramp("u2", 12)
    content = make([radiograph], bits=12, WindowCenter=1500, WindowWidth=1800, VOILUTFunction=function)
    expected = apply_voi_lut(radiograph, pydicom.dcmread(io.BytesIO(content))) / 4095 * 255
    assert np.abs(display(open_pixels(content), 0) - expected).max() <= 1


def test_voi_lut_sequence_comes_before_the_window() -> None:
    """A VOI LUT Sequence is applied, scaled by the bits of its descriptor, and rules over a window."""
    radiograph, item = ramp("u2", 12), Dataset()
    table = np.minimum(np.arange(4096) // 8, 255).astype("u2")
    item.LUTDescriptor, item.LUTData = [4096, 0, 8], table.tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    content = make([radiograph], bits=12, VOILUTSequence=[item], WindowCenter=10, WindowWidth=20)
    np.testing.assert_array_equal(display(open_pixels(content), 0), table[radiograph])


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"WindowCenter": 2000, "WindowWidth": 0},
        {"WindowCenter": -90000, "WindowWidth": 10},
        {"WindowCenter": "", "WindowWidth": ""},
    ],
)
def test_a_useless_window_gives_way_to_percentiles(window: dict[str, Any]) -> None:
    """Without a window that shows something, the preview still spans black to white."""
    shown = display(open_pixels(make([ramp("u2", 12)], bits=12, **window)), 0)
    assert (shown.dtype, shown.min(), shown.max()) == (np.dtype(np.uint8), 0, 255)


def test_bone_is_white_in_the_preview_of_either_kind() -> None:
    """MONOCHROME1 is inverted after its window, so that a negative's preview is the radiograph's, and a blank is black."""
    radiograph = ramp("u2", 12)
    plain = make([radiograph], bits=12, WindowCenter=2048, WindowWidth=4096)
    mirrored = make(
        [4095 - radiograph], bits=12, WindowCenter=2048, WindowWidth=4096, PhotometricInterpretation="MONOCHROME1"
    )
    source = open_pixels(mirrored)
    np.testing.assert_array_equal(display(source, 0), display(open_pixels(plain), 0))
    np.testing.assert_array_equal(display(source, 0, source.frame(0)), display(source, 0))
    blank = make([np.full((4, 4), 9, "u2")], bits=12, PhotometricInterpretation="MONOCHROME1")
    assert not display(open_pixels(blank), 0).any()


# -- rejections ---------------------------------------------------------------------------------------------------

RADIOGRAPH = ramp("u2", 12)
SOUND = make([RADIOGRAPH], bits=12)


def _cut(content: bytes, by: int) -> bytes:
    return content[:-by]


def _no_meta() -> bytes:
    return SOUND[SOUND.index(b"\x08\x00\x16\x00") :]


def _no_syntax() -> bytes:
    at = SOUND.index(b"\x02\x00\x10\x00UI")
    return SOUND[:at] + SOUND[at + 8 + struct.unpack_from("<H", SOUND, at + 6)[0] :]


def _defined_length() -> bytes:
    content = make([RADIOGRAPH], JPEG + "90", 12)
    at = content.index(b"\xe0\x7f\x10\x00OB") + 8
    return content[:at] + struct.pack("<L", len(content) - at - 4) + content[at + 4 :]


REFUSED: list[tuple[str, type[errors.Rejected], Callable[[], bytes]]] = [
    ("empty", errors.EmptyFile, lambda: b""),
    ("text", errors.NotDicom, lambda: b"Dear colleague, please find enclosed" * 9),
    ("bare data set", errors.NoFileMeta, _no_meta),
    ("no transfer syntax", errors.NoFileMeta, _no_syntax),
    ("header cut", errors.CannotUnderstand, lambda: SOUND[: SOUND.index(b"\x28\x00\x00\x01US") + 3]),
    ("value cut", errors.CannotUnderstand, lambda: SOUND[: SOUND.index(SECRET.encode()) + 4]),
    ("unknown syntax", errors.UnknownTransferSyntax, lambda: make([RADIOGRAPH], "1.2.3.4.5")),
    ("mpeg", errors.UnknownTransferSyntax, lambda: make([RADIOGRAPH], JPEG + "102", frames=[b"\0" * 8])),
    ("progressive syntax", errors.UnknownTransferSyntax, lambda: make([RADIOGRAPH], JPEG + "55", frames=[b"\0" * 8])),
    ("no pixel data", errors.NoPixelData, lambda: make([RADIOGRAPH], PixelData=None)),
    ("empty pixel data", errors.NoPixelData, lambda: make([RADIOGRAPH], value=b"")),
    (
        "colour",
        errors.UnsupportedPixels,
        lambda: make([RADIOGRAPH], PhotometricInterpretation="RGB", SamplesPerPixel=3),
    ),
    ("palette", errors.UnsupportedPixels, lambda: make([RADIOGRAPH], PhotometricInterpretation="PALETTE COLOR")),
    ("float", errors.UnsupportedPixels, lambda: make([RADIOGRAPH], PixelData=None, FloatPixelData=b"\0" * 480)),
    ("bitmap", errors.UnsupportedPixels, lambda: make([RADIOGRAPH], BitsAllocated=1, BitsStored=1, HighBit=0)),
    ("no rows", errors.BadAttributes, lambda: make([RADIOGRAPH], Rows=None)),
    ("rows 0", errors.BadAttributes, lambda: make([RADIOGRAPH], Rows=0)),
    ("too many bits", errors.BadAttributes, lambda: make([RADIOGRAPH], BitsStored=17)),
    ("slope 0", errors.BadAttributes, lambda: make([RADIOGRAPH], RescaleSlope=0, RescaleIntercept=0)),
    ("huge", errors.TooLarge, lambda: make([RADIOGRAPH], Rows=60000, Columns=60000)),
    ("201 frames", errors.TooLarge, lambda: make([RADIOGRAPH], NumberOfFrames=201)),
    ("native cut", errors.TruncatedPixels, lambda: _cut(SOUND, 1)),
    ("fewer frames than said", errors.TruncatedPixels, lambda: make([RADIOGRAPH], NumberOfFrames=2)),
    ("fewer fragments than said", errors.TruncatedPixels, lambda: make([RADIOGRAPH], JPEG + "80", NumberOfFrames=2)),
    ("fragment cut", errors.TruncatedPixels, lambda: _cut(make([RADIOGRAPH], JPEG + "90", 12), 40)),
    ("not encapsulated", errors.UndecodablePixels, _defined_length),
]


@pytest.mark.parametrize(("kind", "content"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_the_header_shows_is_refused_on_opening(kind: type[errors.Rejected], content: Callable[[], bytes]) -> None:
    """Each flaw has its own error, raised before a frame is asked for, without the patient's name in it."""
    with pytest.raises(errors.Rejected) as refused:
        open_pixels(content())
    assert type(refused.value) is kind
    assert "Secret" not in str(refused.value)


def test_a_file_without_preamble_is_read() -> None:
    """A file that starts at its meta information, without preamble and DICM mark, is taken."""
    np.testing.assert_array_equal(open_pixels(SOUND[132:]).frame(0), RADIOGRAPH)


@pytest.mark.parametrize("syntax", [JPEG + n for n in ("50", "51", "57", "70", "80", "81", "90", "91", "201", "203")])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_cut_stream_is_refused_not_filled_with_gray(syntax: str, part: float) -> None:
    """A compressed stream that ends early raises, though some codecs would fill in what is missing."""
    radiograph = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype("u2")
    if syntax[-2:] in ("50", "51"):
        radiograph = (radiograph >> 4).astype("u1")
        stream = bytes(imagecodecs.jpeg8_encode(radiograph, level=90))
    else:
        stream = LOSSLESS[syntax](radiograph, 12)
    cut = stream[: int(len(stream) * part)]
    source = open_pixels(make([radiograph], syntax, frames=[cut]))
    with pytest.raises((errors.TruncatedPixels, errors.UndecodablePixels)):
        source.frame(0)


@pytest.mark.parametrize("syntax", list(LOSSLESS))
def test_a_stream_of_another_size_is_refused(syntax: str) -> None:
    """A stream that holds fewer or more pixels than Rows x Columns is refused."""
    for shape in ((11, 10), (12, 12), (40, 40)):
        stream = LOSSLESS[syntax](ramp("u2", 12, shape), 12)
        with pytest.raises(errors.UndecodablePixels):
            open_pixels(make([RADIOGRAPH], syntax, 12, frames=[stream])).frame(0)


@pytest.mark.parametrize("syntax", [RLE, JPEG + "70", JPEG + "80", JPEG + "90", JPEG + "201"])
def test_noise_instead_of_a_stream_is_refused(syntax: str) -> None:
    """Bytes that are no stream of the transfer syntax raise UndecodablePixels, as does a colour stream."""
    with pytest.raises(errors.UndecodablePixels):
        open_pixels(make([RADIOGRAPH], syntax, 12, frames=[bytes(range(1, 201))])).frame(0)


def test_a_colour_stream_under_a_gray_header_is_refused() -> None:
    """Three components are not read as one."""
    stream = bytes(imagecodecs.jpeg2k_encode(np.zeros((12, 10, 3), "u1"), codecformat="J2K"))
    with pytest.raises(errors.UnsupportedPixels):
        open_pixels(make([RADIOGRAPH], JPEG + "90", 12, frames=[stream])).frame(0)


def _peak(work: Callable[[], object], kind: type[errors.Rejected]) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(kind):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_deflate_bomb_costs_no_memory() -> None:
    """A header that inflates beyond the limit is TooLarge while only a few MiB are held."""
    machine = zlib.compressobj(9, wbits=-15)
    zeros = b"\0" * (1 << 20)
    bomb = b"".join(machine.compress(zeros) for _ in range(64)) + machine.flush()
    deflated = make([RADIOGRAPH], DEFLATED)
    meta = deflated[: 144 + struct.unpack_from("<L", deflated, 140)[0]]
    limits = ImageLimits(max_header_bytes=1 << 20)
    assert _peak(lambda: open_pixels(meta + bomb, limits), errors.TooLarge) < 8 << 20


def test_a_claim_of_sixty_thousand_squared_costs_no_memory() -> None:
    """Rows and Columns are held against the limits before anything of their size is allocated."""
    content = make([RADIOGRAPH], Rows=60000, Columns=60000)
    assert _peak(lambda: open_pixels(content), errors.TooLarge) < 1 << 20


def test_a_stream_larger_than_its_header_is_refused_before_decoding() -> None:
    """A stream's own claim to be enormous is found in its header and never allocated."""
    stream = bytearray(_jpeg2000(RADIOGRAPH, 12))
    stream[8:16] = struct.pack(">LL", 60000, 60000)
    source = open_pixels(make([RADIOGRAPH], JPEG + "90", 12, frames=[bytes(stream)]))
    assert _peak(lambda: source.frame(0), errors.UndecodablePixels) < 1 << 20


def _coded(rows: int, columns: int, *, tile: int = 0, precinct: int = 15, block: int = 6, layers: int = 1) -> bytes:
    """A JPEG 2000 radiograph whose header and stream claim rows x columns; the rest as powers of two, but the tile."""
    stream = bytearray(_jpeg2000(ramp("u2", 12, (64, 64)), 12))
    stream[8:16], stream[24:32] = struct.pack(">LL", columns, rows), struct.pack(">LL", tile or columns, tile or rows)
    at = stream.index(b"\xff\x52")
    levels, length = stream[at + 9], int.from_bytes(stream[at + 2 : at + 4], "big")
    segment = stream[at : at + 2 + length] + bytes([17 * precinct]) * (levels + 1)
    segment[2:4], segment[6:8] = struct.pack(">H", len(segment) - 2), struct.pack(">H", layers)
    segment[4], segment[10:12] = segment[4] | 1, bytes([block - 2] * 2)
    stream[at : at + 2 + length] = segment
    return make([RADIOGRAPH], JPEG + "90", 12, frames=[bytes(stream)], Rows=rows, Columns=columns)


def test_a_radiograph_in_parts_as_real_ones_are_is_decoded() -> None:
    """Precincts of 128, blocks of 32 and a few layers are no reason to refuse."""
    assert open_pixels(_coded(64, 64, precinct=7, block=5)).frame(0).shape == (64, 64)


@pytest.mark.parametrize(
    "parts",
    [{"tile": 1}, {"tile": 9}, {"precinct": 1}, {"precinct": 3}, {"block": 2}, {"precinct": 7, "layers": 65535}],
)
def test_a_radiograph_in_millions_of_parts_is_refused_before_decoding(parts: dict[str, int]) -> None:
    """Tiles, precincts, blocks and layers cost memory each, 31 GB for a radiograph of 60 million pixels in 3 KB."""
    source = open_pixels(_coded(7000, 7000, **parts))
    with pytest.raises(errors.UndecodablePixels, match="than any radiograph is"):
        source.frame(0)


def test_tiles_are_counted_in_the_codestream_that_is_decoded() -> None:
    """Boxes around it cannot show the check another codestream than the decoder's."""
    radiograph = ramp("u2", 12, (64, 64))
    boxed = bytes(imagecodecs.jpeg2k_encode(radiograph, codecformat="JP2", reversible=True, bitspersample=12))
    np.testing.assert_array_equal(open_pixels(make([radiograph], JPEG + "90", 12, frames=[boxed])).frame(0), radiograph)
    plain, at = _jpeg2000(radiograph[::-1].copy(), 12), boxed.index(b"jp2h") - 4
    decoy = struct.pack(">L4s", 8 + len(plain), b"free") + plain
    twice = boxed[:at] + decoy + boxed[at:]
    np.testing.assert_array_equal(
        open_pixels(make([radiograph], JPEG + "90", 12, frames=[twice])).frame(0), radiograph[::-1]
    )


def test_tiles_beside_the_image_are_refused() -> None:
    """A first tile that does not hold the first pixel is not decoded: OpenJPH looks for it for ever."""
    stream = bytearray(_htj2k(ramp("u2", 12, (64, 64)), 12))
    stream[36:40] = struct.pack(">L", 9)
    source = open_pixels(make([ramp("u2", 12, (64, 64))], JPEG + "201", 12, frames=[bytes(stream)]))
    with pytest.raises(errors.UndecodablePixels):
        source.frame(0)


def test_frames_are_found_whatever_the_offset_tables_say() -> None:
    """One fragment for each frame needs no table; where one is needed, it must fit."""
    stack = [ramp("u2", 12), ramp("u2", 12)[::-1].copy()]
    streams = [_jpeg_ls(radiograph, 12) for radiograph in stack]
    streams = [stream + b"\0" * (len(stream) % 2) for stream in streams]

    def encapsulated(table: bytes, *fragments: bytes) -> bytes:
        items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in (table, *fragments))
        return make(stack, JPEG + "80", 12, frames=streams, value=items + b"\xfe\xff\xdd\xe0\0\0\0\0")

    wrong = struct.pack("<LL", 0, 7)
    for number, frame in enumerate(open_pixels(encapsulated(wrong, *streams))):
        np.testing.assert_array_equal(frame.image, stack[number])
    halves = [streams[0][:40], streams[0][40:], streams[1]]
    right = struct.pack("<LL", 0, 16 + len(streams[0]))
    for table in (b"", right):
        for number, frame in enumerate(open_pixels(encapsulated(table, *halves))):
            np.testing.assert_array_equal(frame.image, stack[number])
    useless = (wrong, right[:4], right + right, struct.pack("<LL", 16 + len(streams[0]), 0), b"\0" * 8)
    for table in useless:  # the streams' own marks tell
        for number, frame in enumerate(open_pixels(encapsulated(table, *halves))):
            np.testing.assert_array_equal(frame.image, stack[number])
    for table in (b"", right, *useless):
        for fragments in ([b"\0\0"] * 3, [streams[0][:40], streams[0][40:], streams[1][2:]], [*streams, streams[0]]):
            with pytest.raises(errors.UndecodablePixels, match="cannot be told"):
                open_pixels(encapsulated(table, *fragments))
    for offsets, lengths in ((2**63, 5), (0, 2**40), (16 + len(streams[0]), len(streams[1]))):
        tables = struct.pack("<QQ", 0, offsets), struct.pack("<QQ", lengths, lengths)
        content = encapsulated(b"", *halves)
        item = b"\xe0\x7f\x01\x00OV\0\0\x10\0\0\0" + tables[0] + b"\xe0\x7f\x02\x00OV\0\0\x10\0\0\0" + tables[1]
        at = content.index(b"\xe0\x7f\x10\x00")
        for number, frame in enumerate(open_pixels(content[:at] + item + content[at:])):
            np.testing.assert_array_equal(frame.image, stack[number])


@pytest.mark.timeout(60)
def test_many_frames_in_many_fragments_are_found_in_one_walk() -> None:
    """200 frames in 99,000 fragments take a moment to find, not minutes."""
    stream = _jpeg_ls(RADIOGRAPH, 12)
    items = [b"", *[stream + b"\0" * (len(stream) % 2)] * 200, *[b"\0\0"] * 98_000, b"\xff\xd9"]
    value = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in items)
    content = make([RADIOGRAPH], JPEG + "80", 12, value=value + b"\xfe\xff\xdd\xe0\0\0\0\0", NumberOfFrames=200)
    before = time.process_time()
    assert sum(1 for _ in open_pixels(content)) == 200
    assert time.process_time() - before < limit_s(1)


@pytest.mark.parametrize(
    "keyword",
    [
        "VOILUTSequence",
        pytest.param("PerFrameFunctionalGroupsSequence", marks=pytest.mark.slow),
        "Rows",
        "WindowCenter",
    ],
)
def test_a_million_items_cost_no_memory(keyword: str) -> None:
    """Items are counted as they are read, in sequences that are wanted and in the place of numbers."""
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 1_000_000
    tag = struct.pack("<HH", *divmod(int(pydicom.tag.Tag(keyword)), 1 << 16))
    cut = SOUND.find(tag, 200) if keyword == "Rows" else SOUND.index(b"\xe0\x7f\x10\x00")
    content = SOUND[:cut] + tag + b"SQ\0\0" + struct.pack("<L", len(items)) + items
    content += SOUND[cut + (10 if keyword == "Rows" else 0) :]
    tracemalloc.start()
    with contextlib.suppress(errors.TooLarge, errors.BadAttributes):
        open_pixels(content)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 120 << 20


def test_what_follows_deflated_pixels_is_not_inflated() -> None:
    """A tail that would fill the memory costs none."""
    deflated = make([RADIOGRAPH], DEFLATED)
    at = 144 + struct.unpack_from("<L", deflated, 140)[0]
    machine = zlib.compressobj(9, wbits=-15)
    swollen = machine.compress(zlib.decompress(deflated[at:], -15) + b"\0" * (200 << 20)) + machine.flush()
    tracemalloc.start()
    frame = open_pixels(deflated[:at] + swollen, ImageLimits(max_header_bytes=1 << 20)).frame(0)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(frame, RADIOGRAPH)
    assert used < 8 << 20


def test_a_deflated_radiograph_beyond_the_header_s_limit_is_inflated_as_far_as_its_pixels_reach() -> None:
    """The limit is the header's, not the radiograph's."""
    radiograph = np.random.default_rng(1).integers(0, 4096, (300, 300)).astype("u2")
    np.testing.assert_array_equal(
        open_pixels(make([radiograph], DEFLATED, 12), ImageLimits(max_header_bytes=4096)).frame(0), radiograph
    )


@pytest.mark.parametrize("radiograph", [RADIOGRAPH, ramp("u4", 32)], ids=["u2", "u4"])
@pytest.mark.parametrize(
    "values",
    [
        {"RescaleSlope": 5e34, "RescaleIntercept": 0},
        {"RescaleSlope": 1e-45, "RescaleIntercept": 0},
        {"RescaleSlope": 1, "RescaleIntercept": 3.4e38},
        {"WindowCenter": 1e300, "WindowWidth": 1},
        {"WindowCenter": 0, "WindowWidth": 1e300},
        {"WindowCenter": 0, "WindowWidth": 1e-300, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 0, "WindowWidth": 1e-300, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": "NaN", "WindowWidth": 5},
    ],
)
def test_numbers_beyond_float32_never_reach_arithmetic(radiograph: Array, values: dict[str, Any]) -> None:
    """Such a rescale is refused and such a window left out; warnings are errors here."""
    content = make([radiograph], **values)
    if "RescaleSlope" in values:
        with pytest.raises(errors.BadAttributes):
            open_pixels(content)
    else:
        shown = display(open_pixels(content), 0)
        assert (shown.min(), shown.max()) == (0, 255)


def test_a_lack_of_memory_is_no_flaw_of_the_radiograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not answered with "damaged", which would be final, but raised, so that the study is tried again."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise MemoryError

    source = open_pixels(make([RADIOGRAPH], JPEG + "80", 12))
    monkeypatch.setattr("shared.pixels.codecs._DECODERS", {JPEG + "80": fail})
    with pytest.raises(MemoryError):
        source.frame(0)
    monkeypatch.setattr("shared.dicom.image.read_plain", fail)
    with pytest.raises(MemoryError):
        open_pixels(SOUND)


def test_pydicom_says_nothing_and_keeps_its_voice(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Odd values, whose warnings quote them, pass in silence; pydicom's logger is as before afterwards."""
    content = SOUND.replace(b"1.2.3\0", b"1.2.x\0")
    open_pixels(content).frame(0)
    assert not recwarn.list
    assert not caplog.records
    assert SECRET not in repr(open_pixels(content))


# -- real radiographs -------------------------------------------------------------------------------------------------

SAMPLES = ROOT / "tests/data/dicom"
ROWS = list(csv.DictReader((SAMPLES / "labels.csv").read_text().splitlines()))
# pydicom's plugins refuse these two for flaws in the JPEG header that libjpeg reads over: RG2_JPLY decodes to the
# same pixels as its repaired twin, and JPEG-lossy stays within its own Largest Image Pixel Value
BEYOND_PYDICOM = {"RG2_JPLY.dcm": "RG2_JPLY_fixed.dcm", "JPEG-lossy.dcm": ""}
REJECTED = {
    "no_meta.dcm": errors.NotDicom,  # a stray byte comes before its first element
    "meta_missing_tsyntax.dcm": errors.NoFileMeta,
    "ExplVR_BigEndNoMeta.dcm": errors.NoFileMeta,
    "ExplVR_BigEnd.dcm": errors.UnsupportedPixels,
    "OBXXXX1A_rle_2frame.dcm": errors.UnsupportedPixels,
    "UN_sequence.dcm": errors.NoPixelData,
    "empty_charset_LEI.dcm": errors.NoPixelData,
    "test-SR.dcm": errors.NoPixelData,
    "JPEG2000-embedded-sequence-delimiter.dcm": errors.UndecodablePixels,
    "966.dcm": errors.UndecodablePixels,
    "cornerstone_JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55.dcm": errors.UnknownTransferSyntax,
    "derived_tibia_truncated_pixels.dcm": errors.TruncatedPixels,
    "derived_tibia_truncated_header.dcm": errors.CannotUnderstand,
    "derived_tibia_bitflips_header.dcm": errors.UnknownTransferSyntax,
    "derived_tibia_no_pixeldata.dcm": errors.NoPixelData,
    "derived_tibia_huge_dims.dcm": errors.TooLarge,
}


def _sample(name: str) -> bytes:
    return (SAMPLES / "files" / name).read_bytes()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_real_files_decode_as_in_pydicom_or_are_refused(row: dict[str, str]) -> None:
    """Each sample's frames equal pydicom's after rescale and inversion, or the sample raises the error it deserves."""
    name = row["file"]
    content = _sample(name)
    if not row["pydicom3_decode"].startswith("ok") or row["samples"] != "1" or "PALETTE" in row["photometric"]:
        if name in BEYOND_PYDICOM:
            assert open_pixels(content).frame(0).shape == (int(row["rows"]), int(row["cols"]))
            return
        with pytest.raises(errors.Rejected) as refused:
            open_pixels(content).frame(0)
        assert type(refused.value) is REJECTED[name]
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        try:
            stored = dataset.pixel_array
        except RuntimeError:
            # pydicom needs pylibjpeg for this one; labels.csv has what it said, e.g. "ok (8, 8) int16 -3..7"
            ((low, high),) = re.findall(r"(-?\d+)\.\.(-?\d+)$", row["pydicom3_decode"])
            source = open_pixels(content)
            ours = np.stack([source.stored(i) for i in range(source.frames)])
            assert (ours.min(), ours.max()) == (int(low), int(high))
            return
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        rescale = shared.get("PixelValueTransformationSequence", [dataset])[0]
        expected = apply_modality_lut(stored, rescale).astype(np.float64)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            bits, signed = dataset.BitsStored, dataset.PixelRepresentation
            low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
            slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
            expected = (low + high) * slope + 2 * intercept - expected
    source = open_pixels(content)
    frames = np.stack([frame.image for frame in source])
    lossy_jpeg = source.transfer_syntax in (JPEG + "50", JPEG + "51")  # decoders may round differently, ITU-T T.83
    np.testing.assert_allclose(frames, expected.reshape(frames.shape), rtol=1e-6, atol=1 if lossy_jpeg else 1e-3)
    assert display(source, 0, frames[0]).std() > 0


def test_the_tibia_is_one_radiograph_in_every_encoding() -> None:
    """The derived tibia gives identical frames from every encoding, photometric interpretation and sign."""
    names = "explicit_le implicit_le big_endian deflated rle mono2 signed16 3frames no_preamble".split()
    reference, *others = (open_pixels(_sample(f"derived_tibia_{name}.dcm")).frame(0) for name in names)
    for other in others:
        np.testing.assert_array_equal(other, reference)


def test_an_unrepaired_jpeg_gives_the_repaired_ones_pixels() -> None:
    """Where we read what pydicom's plugins refuse, we read it right."""
    broken, repaired = (open_pixels(_sample(name)).frame(0) for name in ("RG2_JPLY.dcm", "RG2_JPLY_fixed.dcm"))
    np.testing.assert_array_equal(broken, repaired)
