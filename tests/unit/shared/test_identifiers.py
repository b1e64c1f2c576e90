"""UIDs of files that are refused: read as far as the file goes, and never anything but a valid UID."""

import io
import warnings
from typing import Any

import pydicom.uid as uids
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samples.objects import pattern_image, to_bytes
from shared.dicom.header import read_header
from shared.dicom.identifiers import MAX_BYTES, Identifiers, identifiers
from shared.dicom.image import ImageLimits
from shared.errors import Rejected
from shared.settings import ROOT

SAMPLES = sorted((ROOT / "samples").rglob("*.dcm"))
UIDS = {
    "SOPClassUID": uids.DigitalXRayImageStorageForPresentation,
    "SOPInstanceUID": "1.2.3.4",
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.9",
}
WHOLE = Identifiers(UIDS["SOPClassUID"], "1.2.3.4", "1.2.3", "1.2.3.9")


def made(syntax: str = uids.ExplicitVRLittleEndian, **values: Any) -> bytes:
    ds = pattern_image(1, "pattern")
    for name, value in (UIDS | values).items():
        setattr(ds, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, syntax)


def read(content: bytes) -> Identifiers:
    return identifiers(io.BytesIO(content))


@pytest.mark.parametrize(
    "syntax",
    [uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian, uids.DeflatedExplicitVRLittleEndian, uids.ExplicitVRBigEndian],
    ids=lambda syntax: uids.UID(syntax).name,
)  # fmt: skip
def test_every_encoding(syntax: str) -> None:
    """The data set's UIDs, in all encodings that Osteon takes."""
    assert read(made(syntax)) == WHOLE


def test_the_same_as_the_header_of_what_is_accepted() -> None:
    """Of each sample that is accepted, class, instance and study are those that the intake stores."""
    compared = 0
    for path in SAMPLES:
        content = path.read_bytes()
        try:
            header = read_header(io.BytesIO(content), len(content), ImageLimits())
        except Rejected:
            continue
        found = read(content)
        told = (header.sop_class_uid, header.sop_instance_uid, header.study_instance_uid)
        assert (found.sop_class_uid, found.sop_instance_uid, found.study_instance_uid) == told, path
        assert found.series_instance_uid, path
        compared += 1
    assert compared > 30


@given(st.integers(0, 100_000))
def test_a_file_that_is_cut(length: int) -> None:
    """Class and instance are known from the meta information on; what the file does not tell is empty, never wrong."""
    content = made()
    found = read(content[: length % len(content)])
    for told, true in zip(vars(found).values(), vars(WHOLE).values(), strict=True):
        assert told in ("", true)
    if length % len(content) >= 1200:
        assert found.sop_instance_uid == "1.2.3.4"


@given(st.binary(max_size=400), st.booleans())
def test_nothing_breaks_it(noise: bytes, mark: bool) -> None:
    """Any bytes at all have UIDs that are valid or empty."""
    content = bytes(128) + b"DICM" + noise if mark else noise
    assert all(not value or value.replace(".", "").isdigit() for value in vars(read(content)).values())


@pytest.mark.parametrize("value", ["", "1.2.x", "1" * 65, "1..2", "ZEBRA^QUAGGA", "1.2\\1.3"])
def test_what_is_no_uid_is_none(value: str) -> None:
    """A value that a client could not have meant is left out, whatever it says."""
    assert read(made(StudyInstanceUID=value)).study_instance_uid == ""


def test_no_more_is_read_than_it_takes() -> None:
    """A long header before the UIDs is given up on; the meta information still tells class and instance."""
    long = made(ImageComments="x")
    found = read(long)
    assert found == WHOLE
    padded = made(**{"Manufacturer": "x" * 60_000} | {"InstitutionName": "y" * 60_000})
    assert read(padded) == WHOLE
    ds = pattern_image(1, "pattern")
    for name, value in UIDS.items():
        setattr(ds, name, value)
    ds.add_new(0x00090010, "LO", "OTHER")
    for number in range(16):
        ds.add_new(0x00091001 + number, "UN", b"z" * (MAX_BYTES // 8))
    found = read(to_bytes(ds, uids.ImplicitVRLittleEndian))
    assert (found.sop_instance_uid, found.study_instance_uid) in (("1.2.3.4", "1.2.3"), ("1.2.3.4", ""))
