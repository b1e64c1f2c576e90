"""Objects with changed attributes: nothing else in them changes, whatever their encoding."""

import io
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom.uid as uids
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from samples.objects import pattern_image, to_bytes
from shared.dicom.frames import frame_map
from shared.dicom.header import read_header
from shared.dicom.image import ImageLimits
from shared.dicom.rewriting import rewrite
from shared.errors import NoPixelData, Rejected, TooLarge, TruncatedPixels, UnsupportedPixels
from shared.settings import ROOT

STUDIES = sorted((ROOT / "samples" / "studies").rglob("*.dcm"))
SAMPLES = list({str(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID): path for path in STUDIES}.values())  # fmt: skip
WHEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
MIB = 2**20


def made(syntax: str = uids.ExplicitVRLittleEndian, **values: Any) -> bytes:
    ds = pattern_image(1, "pattern")
    ds.PatientName, ds.PatientID, ds.SOPInstanceUID = "DOE^JANE", "4711", "1.2.3.4"
    for name, value in values.items():
        setattr(ds, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, syntax)


def changed(content: bytes, changes: dict[str, str], most: int = 16 * MIB) -> bytes:
    return b"".join(rewrite(io.BytesIO(content), lambda _: changes, WHEN, most))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_every_encoding(path: Path) -> None:
    """Of each encoding of the samples: new UIDs and patient, the old ones beside them, and all else as it was."""
    content = path.read_bytes()
    before = dcmread(io.BytesIO(content))
    changes = {"PatientID": "X-1", "SOPInstanceUID": "1.2.3.4.5", "StudyInstanceUID": "1.2.3.4"}
    after = dcmread(io.BytesIO(changed(content, changes)))
    assert {name: str(after[name].value) for name in changes} == changes
    assert after.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4.5"
    assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
    said = after.OriginalAttributesSequence[0]
    assert said.AttributeModificationDateTime == "20260304050607+0000"
    assert {name: said.ModifiedAttributesSequence[0][name].value for name in changes} == {
        name: before[name].value for name in changes
    }
    del after.OriginalAttributesSequence
    for name in changes:
        after[name].value = before[name].value
    assert after == before
    read_header(io.BytesIO(content), len(content), ImageLimits())


def test_nothing_to_change() -> None:
    """An object that says it already gets no record of a change."""
    after = dcmread(io.BytesIO(changed(made(), {"PatientID": "4711", "InstitutionName": "none"})))
    assert "OriginalAttributesSequence" not in after
    assert "InstitutionName" not in after


NAMES = st.text(st.characters(codec="utf-8", categories=("Lu", "Ll", "Lo")), min_size=1, max_size=20)


@settings(max_examples=25)
@given(NAMES, st.sampled_from(["ISO_IR 100", "ISO_IR 6", "ISO_IR 192", "ISO_IR 144", "GB18030", None]))
def test_any_name_in_any_character_set(name: str, charset: str | None) -> None:
    """A name that the object's character set lacks turns it into UTF-8; other texts keep their letters."""
    content = made(SpecificCharacterSet=charset, InstitutionName="Klinik")
    after = dcmread(io.BytesIO(changed(content, {"PatientName": name})))
    assert str(after.PatientName) == name
    assert after.InstitutionName == "Klinik"
    assert str(after.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].PatientName) == "DOE^JANE"


def test_old_letters_are_kept_where_the_character_set_changes() -> None:
    """What was written in Latin 1 is the same text in UTF-8."""
    after = dcmread(
        io.BytesIO(changed(made(SpecificCharacterSet="ISO_IR 100", InstitutionName="Köln"), {"PatientName": "李^四"}))
    )
    assert (after.SpecificCharacterSet, after.InstitutionName, str(after.PatientName)) == (
        "ISO_IR 192",
        "Köln",
        "李^四",
    )


def test_a_huge_header_is_refused() -> None:
    """No more of a data set is held than the bound allows."""
    with pytest.raises(TooLarge):
        changed(made(ImageComments="x" * 200_000), {"PatientID": "X"}, 100_000)


# -- frames as they are -------------------------------------------------------------------------------------------------


def found(content: bytes) -> list[bytes]:
    there = frame_map(io.BytesIO(content), len(content), ImageLimits())

    def read(at: int, size: int) -> bytes:
        return content[at : at + size]

    return [b"".join(there.frame(read, number + 1)) for number in range(len(there.pieces))]


def test_colour_and_several_frames() -> None:
    """Frames of colour images are found as others are: two bytes a pixel where pixels share their colour."""
    pixels = bytes(range(240)) * 2
    for photometric, samples, frame in (("RGB", 3, 240), ("YBR_FULL_422", 3, 160), ("MONOCHROME2", 1, 80)):
        content = made(
            Rows=8, Columns=10, SamplesPerPixel=samples, PhotometricInterpretation=photometric, NumberOfFrames=2,
            BitsAllocated=8, PixelData=pixels,
        )  # fmt: skip
        assert found(content) == [pixels[:frame], pixels[frame : 2 * frame]]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"Rows": 4000}, TruncatedPixels),
        ({"BitsAllocated": 1}, UnsupportedPixels),
        ({"Rows": 0}, Rejected),
    ],
)
def test_frames_that_cannot_be_passed_on(values: dict[str, Any], kind: type[Exception]) -> None:
    """Each with its reason."""
    with pytest.raises(kind):
        found(made(**values))


def test_objects_without_frames() -> None:
    """No image, and what is deflated or big endian, whose bytes no client reads as they are."""
    ds = pattern_image(1, "pattern")
    del ds.PixelData
    with pytest.raises(NoPixelData):
        found(to_bytes(ds, uids.ExplicitVRLittleEndian))
    for syntax in (uids.DeflatedExplicitVRLittleEndian, uids.ExplicitVRBigEndian):
        with pytest.raises(UnsupportedPixels):
            found(made(syntax))
    with pytest.raises(Rejected):
        found(b"no DICOM")
