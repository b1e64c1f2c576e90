"""Full-resolution frames: bit for bit what the file holds, and enough said to show it as it was meant."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom.uid as uids
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import apply_modality_lut

from samples.objects import pattern_image, set_pixels, to_bytes
from shared.errors import Cause, Reason
from shared.pixels.decode import PixelSource, open_pixels
from worker.frames import is_frame, pack, picture, refusal

STUDIES = Path(__file__).parents[3] / "samples/studies"
SAMPLES = sorted(STUDIES.rglob("*.dcm"))
EXPLICIT = "1.2.840.10008.1.2.1"


def unpacked(frame: bytes) -> tuple[dict[str, Any], np.ndarray]:
    length = int.from_bytes(frame[:4], "big")
    about = json.loads(frame[4 : 4 + length])
    pixels = np.frombuffer(gzip.decompress(frame[4 + length :]), "<u2").reshape(about["rows"], about["columns"])
    return about, pixels


def made(
    values: np.ndarray, bits: int = 12, **attributes: Any
) -> tuple[PixelSource, tuple[dict[str, Any], np.ndarray]]:
    """(source, frame) of an invented CR with these stored values."""
    ds = pattern_image(3, "frame")
    for keyword in ("WindowCenter", "WindowWidth"):
        ds.pop(keyword, None)
    set_pixels(ds, [values], bits, "explicit")
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    source = open_pixels(to_bytes(ds, EXPLICIT))
    return source, unpacked(pack(*picture(source, 0)))


def reference(ds: Dataset) -> np.ndarray:
    """(F, H, W) stored values by pydicom; JPEG-LS and JPEG Lossless, which it cannot read here, by their codecs."""
    decode = {uids.JPEGLSLossless: imagecodecs.jpegls_decode, uids.JPEGLSNearLossless: imagecodecs.jpegls_decode,
              uids.JPEGLosslessSV1: imagecodecs.ljpeg_decode}.get(ds.file_meta.TransferSyntaxUID)  # fmt: skip
    frames = int(ds.get("NumberOfFrames", 1) or 1)
    if decode is None:
        return ds.pixel_array.reshape(frames, ds.Rows, ds.Columns).astype(np.int64)
    values = np.stack([decode(one) for one in generate_frames(ds.PixelData, number_of_frames=frames)]).astype(np.int64)
    values &= (1 << ds.BitsStored) - 1
    return values - ((values >> (ds.BitsStored - 1)) << ds.BitsStored) if ds.PixelRepresentation else values


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: str(path.relative_to(STUDIES)))
def test_frame_is_what_the_file_holds(path: Path) -> None:
    """Of each sample: signed or not, 8 to 16 bits, either photometric, in ten transfer syntaxes, every pixel is there."""
    ds = dcmread(path)
    source = open_pixels(path.read_bytes())
    for i, frame in enumerate(reference(ds)):
        about, pixels = unpacked(pack(*picture(source, i)))
        low = -(1 << (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
        high = low + (1 << ds.BitsStored) - 1
        wanted = high - frame if ds.PhotometricInterpretation == "MONOCHROME1" else frame - low
        assert (about["rows"], about["columns"], about["bits"], about["exact"]) == (*frame.shape, ds.BitsStored, True)
        np.testing.assert_array_equal(pixels, wanted)
        units = about["slope"] * pixels.astype(np.float64) + about["intercept"]
        if ds.PhotometricInterpretation == "MONOCHROME2":
            np.testing.assert_allclose(units, apply_modality_lut(frame, ds), atol=1e-6)
        np.testing.assert_allclose(units, source.frame(i), rtol=1e-6, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 16), st.booleans(), st.sampled_from(["MONOCHROME1", "MONOCHROME2"]), st.integers(0, 2**32 - 1))
def test_no_gray_level_is_lost(bits: int, signed: bool, photometric: str, seed: int) -> None:
    """Whatever the width, sign and sense, frames keep the stored values' order, distances and number."""
    low = -(1 << (bits - 1)) if signed else 0
    values = np.random.default_rng(seed).integers(low, low + (1 << bits), (9, 7))
    stored = (values & 0xFFFF).astype(np.uint16)
    _, (about, pixels) = made(
        stored, 16, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=int(signed),
        PhotometricInterpretation=photometric,
    )  # fmt: skip
    assert about["exact"]
    apart = np.diff(pixels.astype(np.int64).ravel())
    np.testing.assert_array_equal(apart, np.diff(values.ravel()) * (-1 if photometric == "MONOCHROME1" else 1))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -100), (-0.5, 900)])
def test_window_shows_what_the_preview_shows(photometric: str, function: str, slope: float, intercept: int) -> None:
    """The window that is told gives the gray of the file's own VOI LUT, for either sense and any rescale."""
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    source, (about, pixels) = made(
        values, 12, PhotometricInterpretation=photometric, RescaleSlope=slope, RescaleIntercept=intercept,
        WindowCenter=intercept + slope * 1500, WindowWidth=abs(slope) * 800, VOILUTFunction=function,
    )  # fmt: skip
    black, white = about["window"]
    share = (pixels.astype(np.float64) - black) / (white - black)
    shown = 1 / (1 + np.exp(-4 * (share - 0.5))) if about["window_shape"] == "SIGMOID" else np.clip(share, 0, 1)
    transform = source.transform(0)
    meant = transform.voi(transform.modality(source.stored(0)))
    assert isinstance(meant, np.ndarray)
    assert about["window_from"] == "file"
    np.testing.assert_allclose(shown, 1 - meant if photometric == "MONOCHROME1" else meant, atol=1e-3)


def test_without_a_window_nearly_all_is_shown() -> None:
    """A frame without a window, or with one that shows nothing, is shown from its 0.5th to its 99.5th percentile."""
    values = np.arange(1000, 1400, dtype=np.uint16).reshape(20, 20)
    for more in ({}, {"WindowCenter": 10, "WindowWidth": 2}):
        _, (about, _) = made(values, 12, **more)
        assert about["window_from"] == "percentiles"
        assert about["window"] == pytest.approx([1002, 1397], abs=1)
    _, (flat, _) = made(np.full((5, 5), 7, np.uint16))
    assert flat["window"] == [7, 7]


def test_what_does_not_fit_is_scaled_and_says_so() -> None:
    """32-bit values are spread over 16 bits; slope and intercept lead back to within half a step."""
    ds = pattern_image(3, "wide")
    values = np.linspace(0, 4_000_000_000, 64).astype(np.uint32).reshape(8, 8)
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 32, 32, 31
    ds.PixelData = values.tobytes()
    ds["PixelData"].VR = "OW"
    source = open_pixels(to_bytes(ds, EXPLICIT))
    about, pixels = unpacked(pack(*picture(source, 0)))
    assert not about["exact"]
    back = about["slope"] * pixels + about["intercept"]
    np.testing.assert_allclose(back, source.frame(0), atol=about["slope"] * 0.51)


def test_spacing_is_told_where_the_file_has_it() -> None:
    """Millimetres from row to row and from column to column; nonsense is left out, and no reason to refuse the frame."""
    values = np.zeros((5, 5), np.uint16)
    assert made(values, ImagerPixelSpacing=[0.2, 0.1])[1][0]["spacing"] == [0.2, 0.1]
    assert made(values, PixelSpacing=[0.3, 0.3], ImagerPixelSpacing=[0.2, 0.1])[1][0]["spacing"] == [0.3, 0.3]
    both = made(values, PixelSpacing=[0.3, 0.3], ImagerPixelSpacing=[0.2, 0.1])
    sources = [one[1][0]["spacing_from"] for one in (made(values, ImagerPixelSpacing=[0.2, 0.1]), both, made(values))]
    assert sources == ["ImagerPixelSpacing", "PixelSpacing", ""]
    assert made(values, PixelSpacing=[0, 0])[1][0]["spacing"] is None
    assert made(values)[1][0]["spacing"] is None


def test_a_refusal_is_no_frame() -> None:
    """What stands in a frame's place is told from a frame."""
    assert not is_frame(refusal(Cause(Reason.TRUNCATED_PIXELS, "1 of 2 bytes"), heals=False))
    assert is_frame(pack(*picture(open_pixels(SAMPLES[0].read_bytes()), 0)))
    assert io.BytesIO(refusal(Cause(Reason.DECODER_DIED), heals=True)).read(4) != b"\0\0\0\0"
