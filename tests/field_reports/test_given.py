"""Files of tests/data/field_reports: each gives the frames of its twin, or is rejected when it is sent, by its tag."""

import io

import numpy as np
import pytest

from shared import errors
from shared.dicom.header import read_header
from shared.dicom.image import ImageLimits
from shared.domain.study import Header, StoredOnly
from shared.pixels.decode import display, open_pixels
from shared.settings import ROOT

FILES = ROOT / "tests/data/field_reports"
TWINS = {
    "p04-signed-12-not-extended": "ref",
    "p06-native-overlay-bits": "ref",
    "p07-j2k-overlay-bits": "ref",
    "p09-ljpeg-overlay-bits": "ref",
    "p22-mono2-lower-case": "ref",
    "p27-slope-comma": "ref",
    "p42-voilut-bits-16-data-12": "p40-voilut",
    "p49-modlut-empty-item": "ref",
    "q25-two-frames-two-fragments-bot-zeros": "q26-two-frames-two-fragments-bot-right",
    "q56-vr-dashes": "ref",
    "r02-elbow-overlay-bit-15": "r01-elbow-plain",
    "r03-elbow-overlay-bit-15-rle": "r01-elbow-plain",
    "t83-gray-jpeg-as-ybr": "ref8",
    "t84-two-frames-padded-fragments": "q26-two-frames-two-fragments-bot-right",
}
REJECTED = {
    "p16-j2k-signed-stream-unsigned-header": (errors.UndecodablePixels, r"Pixel Representation \(0028,0103\)"),
    "q42-native-uid-encapsulated-long": (errors.UndecodablePixels, r"transfer syntax \(0002,0010\)"),
}


def content(name: str) -> bytes:
    return (FILES / f"{name}.dcm").read_bytes()


def taken_in(data: bytes) -> Header:
    """The header as intake reads it."""
    return read_header(io.BytesIO(data), len(data), ImageLimits())


@pytest.mark.parametrize("name", TWINS)
def test_same_as_its_twin(name: str) -> None:
    """IntakeResult in; every frame equals its twin's to the bit, and so does the preview."""
    odd, twin = content(name), content(TWINS[name])
    taken_in(odd)
    one, other = open_pixels(odd), open_pixels(twin)
    assert one.frames == other.frames
    for number in range(one.frames):
        np.testing.assert_array_equal(one.frame(number), other.frame(number))
        np.testing.assert_array_equal(display(one, number), display(other, number))


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_when_it_is_sent(name: str) -> None:
    """Rejected by the tag's name, by intake and decoder alike."""
    kind, words = REJECTED[name]
    with pytest.raises(kind, match=words):
        taken_in(content(name))
    with pytest.raises(kind, match=words):
        open_pixels(content(name)).frame(0)


def test_colour_is_kept_and_never_read() -> None:
    """It is stored as what it is; the decoder still refuses it by the tag's name."""
    assert taken_in(content("q81-ybr422-native")).kept is StoredOnly.COLOUR
    with pytest.raises(errors.UnsupportedPixels, match=r"Photometric Interpretation \(0028,0004\) is YBR_FULL_422"):
        open_pixels(content("q81-ybr422-native")).frame(0)


def test_name_in_two_scripts() -> None:
    """ISO 2022 IR 58: no escape sequence is left in the name (DCMTK decodes it alike)."""
    assert taken_in(content("c03-ir58")).identity.patient_name == "Zhang^XiaoDong=张^小东="
