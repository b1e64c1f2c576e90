"""One image in many ways of writing is one image; one that says or shows something else is not."""

import io
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from samples.objects import SYNTAX, pattern_image, set_pixels, to_bytes
from shared.dicom.comparison import Verdict, compare
from shared.dicom.image import ImageLimits
from shared.storage import DirectoryStore, original_key, sha256_of
from worker import decoder_pool
from worker.decoder_pool import PairJob, compare_pair

LIMITS = ImageLimits()
NATIVE = ("explicit", "implicit", "deflated")
PACKED = ("rle", "jpegls", "jpeg2000", "jpegsv1")


def image(encoding: str = "explicit", *, flip: bool = False, **values: Any) -> bytes:
    ds = pattern_image(1, "a")
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "L", "Hand"
    ds.AnatomicRegionSequence = [code]
    ds.PatientName, ds.StudyDescription = "MÜLLER^JO", "Hand"
    for name, value in values.items():
        setattr(ds, name, value)
    pixels = np.frombuffer(ds.PixelData, np.uint8 if ds.BitsAllocated == 8 else np.uint16)
    pixels = pixels[: ds.Rows * ds.Columns].reshape(ds.Rows, ds.Columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_pixels(ds, [pixels[::-1].copy() if flip else pixels], ds.BitsStored, encoding)
        return to_bytes(ds, SYNTAX[encoding])


PLAIN = image()


@pytest.mark.parametrize("encoding", NATIVE)
def test_ways_of_writing(encoding: str) -> None:
    """Transfer syntax, character set, padding and group lengths are no difference; the header is, and so are pixels."""
    assert compare(PLAIN, image(encoding), LIMITS) is Verdict.SAME
    assert compare(image(encoding, SpecificCharacterSet="ISO_IR 192"), PLAIN, LIMITS) is Verdict.SAME
    assert compare(PLAIN, image(encoding, StudyDescription="Hand "), LIMITS) is Verdict.SAME
    assert compare(PLAIN, image(encoding, PatientComments=""), LIMITS) is Verdict.SAME
    assert compare(PLAIN, image(encoding, StudyDescription="Foot"), LIMITS) is Verdict.HEADER
    assert compare(PLAIN, image(encoding, flip=True), LIMITS) is Verdict.PIXELS
    assert compare(PLAIN, image(encoding, flip=True, StudyDescription="Foot"), LIMITS) is Verdict.PIXELS


def test_within_sequences() -> None:
    """What an item says is part of the header."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "L", "Foot"
    assert compare(PLAIN, image(AnatomicRegionSequence=[code]), LIMITS) is Verdict.HEADER
    assert compare(PLAIN, image(AnatomicRegionSequence=[code, code]), LIMITS) is Verdict.HEADER


@pytest.mark.parametrize("encoding", PACKED)
def test_packed_pixels(encoding: str) -> None:
    """One stream is one image; two encodings are left to who can decode them."""
    packed = image(encoding)
    assert compare(packed, packed, LIMITS) is Verdict.SAME
    assert compare(packed, image(encoding, StudyDescription="Foot"), LIMITS) is Verdict.HEADER
    assert compare(packed, PLAIN, LIMITS) is Verdict.UNKNOWN
    assert compare(packed, image(encoding, flip=True), LIMITS) is Verdict.UNKNOWN


@given(st.integers(0, len(PLAIN) - 1), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_any_other_byte_is_never_the_same_by_mistake(at: int, change: int) -> None:
    """A changed byte is told as a difference, or does not matter to what pydicom reads; nothing else is raised."""
    other = bytearray(PLAIN)
    other[at] ^= change
    verdict = compare(PLAIN, bytes(other), LIMITS)
    if verdict is not Verdict.SAME:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a character set that is none
        told = dcmread(io.BytesIO(bytes(other)), force=True)
        assume("PixelData" in told)  # at a VR that is none, which we step over, pydicom loses its way
        assert told.PixelData == dcmread(io.BytesIO(PLAIN)).PixelData
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID", "StudyDescription"):
            try:
                value = told.get(keyword)
            except NotImplementedError:  # a VR that is none: pydicom has no value there, and we compare the bytes
                assert told.get_item(keyword).value == dcmread(io.BytesIO(PLAIN)).get_item(keyword).value
                continue
            assert str(value).strip() == str(dcmread(io.BytesIO(PLAIN)).get(keyword)).strip()


@pytest.mark.parametrize("encoding", PACKED)
def test_a_worker_compares_values(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """A decoder tells what bytes do not: the same image in another encoding, a header, other pixels."""
    store = DirectoryStore(tmp_path)
    monkeypatch.setattr(decoder_pool, "_state", None)
    decoder_pool.begin_here(store, LIMITS)

    def put(content: bytes) -> str:
        store.put(original_key(sha256_of(content)), io.BytesIO(content), len(content))
        return sha256_of(content)

    plain = put(PLAIN)
    assert compare_pair(PairJob(plain, put(image(encoding)))) is Verdict.SAME
    assert compare_pair(PairJob(plain, put(image(encoding, StudyDescription="Foot")))) is Verdict.HEADER
    assert compare_pair(PairJob(plain, put(image(encoding, flip=True)))) is Verdict.PIXELS
