"""What lies on a disc beside the images is passed by; what may be an image never is."""

import io

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samples.objects import pattern_image, to_bytes
from shared.dicom.header import read_header
from shared.dicom.image import ImageLimits
from shared.dicom.media import DIRECTORY_UID, SkippedFileKind, why_skipped
from shared.errors import Rejected
from shared.settings import ROOT

LIMITS = ImageLimits()
IMAGE = to_bytes(pattern_image(1, "media"), "1.2.840.10008.1.2.1")
NAMES = ["IM1", "DICOMDIR", "README.txt", "a.dcm", "viewer.exe", "disc.zip!IMAGES/IM1", "1.2.840.1", "a\\b.txt"]


def why(content: bytes, name: str = "IM1") -> SkippedFileKind | None:
    return why_skipped(io.BytesIO(content), len(content), name, LIMITS)


def accepted(content: bytes) -> bool:
    try:
        read_header(io.BytesIO(content), len(content), LIMITS)
    except Rejected:
        return False
    return True


def directory(dataset: pydicom.Dataset) -> bytes:
    """A file whose meta information says that it is a DICOMDIR."""
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.UID(DIRECTORY_UID.decode())
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("1.2.3")
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_never_passed_by(name: str) -> None:
    """Whatever it is called, with a preamble or without, and if its meta information calls it a DICOMDIR."""
    assert why(IMAGE, name) is None
    assert accepted(IMAGE[128 + 4 :])
    assert why(IMAGE[128 + 4 :], name) is None
    lying = directory(pydicom.dcmread(io.BytesIO(IMAGE)))
    assert accepted(lying)
    assert why(lying, name) is None


@given(st.data())
def test_what_is_accepted_is_never_passed_by(data: st.DataObject) -> None:
    """Bytes changed anywhere in the first 600, cut off or put before: none that intake takes is passed by."""
    start = data.draw(st.sampled_from([IMAGE, IMAGE[132:], directory(pydicom.dcmread(io.BytesIO(IMAGE)))]))
    content = bytearray(start)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, 600))] = data.draw(st.integers(0, 255))
    content = content[data.draw(st.sampled_from([0, 0, 1, 4, 128])) :]
    if accepted(bytes(content)):
        assert why(bytes(content), data.draw(st.sampled_from(NAMES))) is None


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\xd0\xcf\x11\xe0" + bytes(500), "Thumbs.db"),
        (b"MZ" + bytes(5000), "viewer.exe"),
        (b"Dear patient", "README.txt"),
        (b"Dear patient", "README"),
        (b"[autorun]", "AUTORUN.INF"),
        (b"", "desktop.ini"),
        (b"\x7fELF" + bytes(500), "viewer"),
        (b"%PDF-1.7", "disc.zip!report.pdf"),
        (b"see 1.2.840.10008.1.1 in PS3.6", "CONFORMANCE"),
    ],
)
def test_what_lies_beside_the_images_is_passed_by(content: bytes, name: str) -> None:
    """By its content where nothing speaks for an image."""
    assert why(content, name) is SkippedFileKind.OTHER


def test_a_dicomdir_is_passed_by_whatever_it_is_called() -> None:
    """Its Media Storage SOP Class tells."""
    listing = pydicom.Dataset()
    listing.FileSetID = "DISC"
    for name in NAMES:
        assert why(directory(listing), name) is SkippedFileKind.DIRECTORY


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"torn", "a.dcm"),
        (b"", "a.DCM"),
        (b"", "IM1"),
        (bytes(4096), "IM1"),
        (bytes(100), "disc.zip!IMAGES\\IM1"),
        (b"\0" * 132 + IMAGE[132:], "IM1"),
        (b"\xff" * 40 + IMAGE[140:], "1.2.840.113619.2"),
        (IMAGE[:200], "IM1"),
        (b"\x08\x00\x05\x00CS", "README.txt"),
        (b"\xff" * 40 + IMAGE[140:], "scan.bin"),
        (b"PK\x03\x04" + bytes(200), "day.zip"),
        (b"PK\x03\x04" + bytes(200), "disc.zip!IMAGES"),
    ],
)
def test_a_damaged_image_is_not_passed_by(content: bytes, name: str) -> None:
    """Its name, its first element, or what is left of it speaks for an image."""
    assert why(content, name) is None
    assert not accepted(content)


def test_samples_that_are_refused_are_not_passed_by() -> None:
    """Each of the broken samples is answered for, but for the archive."""
    for path in (ROOT / "samples/broken").glob("*.dcm"):
        assert why(path.read_bytes(), path.name) is None
