"""Objects that are stored and not analysed: why, and that damaged ones are refused."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom.uid as uids
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from samples.objects import SYNTAX, code, pattern_image, report, to_bytes
from shared import errors
from shared.dicom.conformance import RT_DOSE, STORAGE, Handling
from shared.dicom.header import read_header
from shared.dicom.image import ImageLimits
from shared.dicom.kept import OTHER_MODALITIES
from shared.domain.device import DEVICE_ROOT, device_uid, is_own_device
from shared.domain.study import Header, Rejection, StoredOnly

EXPLICIT, IMPLICIT = SYNTAX["explicit"], SYNTAX["implicit"]
SYNTAXES = ("explicit", "implicit", "deflated")


def read(data: bytes, limits: ImageLimits | None = None) -> Header:
    return read_header(io.BytesIO(data), len(data), limits or ImageLimits())


def written(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are wrong on purpose
        return to_bytes(ds, syntax)


def radiograph(**values: object) -> Dataset:
    ds = pattern_image(1, "kept")
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def coloured(photometric: str = "RGB", samples: int = 3, **values: object) -> Dataset:
    pixels = np.zeros((16, 20, 2 if photometric == "YBR_FULL_422" else samples), "u1")
    described: dict[str, object] = {
        "PhotometricInterpretation": photometric, "SamplesPerPixel": samples, "PlanarConfiguration": 0, "Rows": 16,
        "Columns": 20, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": pixels.tobytes(),
    }  # fmt: skip
    return radiograph(**{**described, **values})


def key_object(title: str = "113001", uids_named: tuple[str, ...] = ("1.2.3", "1.2.4")) -> Dataset:
    ds = report(3)
    ds.SOPClassUID, ds.Modality = uids.KeyObjectSelectionDocumentStorage, "KO"
    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = title, "DCM", "Rejected"
    ds.ConceptNameCodeSequence = [name]
    items = []
    for uid in uids_named:
        item, reference = Dataset(), Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", uid
        item.RelationshipType, item.ValueType, item.ReferencedSOPSequence = "CONTAINS", "IMAGE", [reference]
        items.append(item)
    ds.ContentSequence = items
    return ds


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("uid", sorted(STORAGE))
def test_every_class_of_the_table_is_read(uid: str, syntax: str) -> None:
    """Each has a header in each encoding, and a reason unless it is a radiograph."""
    ds = radiograph(SOPClassUID=uid) if STORAGE[uid].image else report(1)
    ds.SOPClassUID = uid
    header = read(written(ds, SYNTAX[syntax]))
    captured = UID(uid).name.startswith(("Secondary", "Multi-frame"))
    expected = (
        StoredOnly.SECONDARY_CAPTURE
        if captured
        else StoredOnly.OTHER_MODALITY
        if STORAGE[uid].image
        else StoredOnly.NOT_AN_IMAGE
    )
    assert header.kept is (None if STORAGE[uid].handling is Handling.ANALYSED else expected)
    assert (header.sop_class_uid, header.identity.patient_name) == (uid, str(ds.PatientName))
    assert (header.frames == 0) is (not STORAGE[uid].image)


KEPT: dict[str, tuple[Dataset, StoredOnly]] = {
    "RGB": (coloured(), StoredOnly.COLOUR),
    "YBR_FULL_422": (coloured("YBR_FULL_422"), StoredOnly.COLOUR),
    "a palette": (coloured("PALETTE COLOR", 1), StoredOnly.COLOUR),
    "colour of another modality": (coloured(SOPClassUID=uids.UltrasoundImageStorage, Modality="US"), StoredOnly.OTHER_MODALITY),
    "a screenshot": (coloured(SOPClassUID=uids.SecondaryCaptureImageStorage), StoredOnly.SECONDARY_CAPTURE),
    "a gray screenshot": (radiograph(SOPClassUID=uids.SecondaryCaptureImageStorage), StoredOnly.SECONDARY_CAPTURE),
    "frames of a screen": (
        radiograph(SOPClassUID=uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage, Modality="OT"),
        StoredOnly.SECONDARY_CAPTURE,
    ),
    "a mammogram of a CR reader": (radiograph(Modality="MG"), StoredOnly.OTHER_MODALITY),
    "small letters": (radiograph(Modality="mr"), StoredOnly.OTHER_MODALITY),
    "our device": (radiograph(DeviceUID=DEVICE_ROOT), StoredOnly.OWN_RESULT),
    "our model's device": (radiograph(DeviceUID=device_uid("ab" * 32)), StoredOnly.OWN_RESULT),
    "a class of our devices": (radiograph(ManufacturerDeviceClassUID=["1.2.3", DEVICE_ROOT]), StoredOnly.OWN_RESULT),
    "a report of ours": (report(2), StoredOnly.NOT_AN_IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_reason(case: str, syntax: str) -> None:
    ds, why = KEPT[case]
    assert read(written(ds, SYNTAX[syntax])).kept is why


@pytest.mark.parametrize("modality", ["", "CR", "DX", "RG", "XA", "OT", "SOMETHING"])
def test_radiographs_stay_analysed(modality: str) -> None:
    """A radiograph's class is enough, unless Modality names something that is none; one digitised in frames is one."""
    assert read(written(radiograph(Modality=modality))).kept is None
    frames = radiograph(SOPClassUID=uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage)
    assert read(written(frames)).kept is None
    gray = radiograph(PhotometricInterpretation="YBR_FULL")  # one component: that is gray
    assert read(written(gray)).kept is None


def test_no_modality_is_both() -> None:
    assert not OTHER_MODALITIES & {"", "CR", "DX", "RG", "RF", "XA", "OT"}


def own_in_equipment(ds: Dataset, undefined: bool) -> Dataset:
    item = Dataset()
    item.Manufacturer, item.DeviceUID = "Osteon", device_uid("01" * 32)
    ds.ContributingEquipmentSequence = [item]
    ds["ContributingEquipmentSequence"].is_undefined_length = undefined
    return ds


def own_in_content(ds: Dataset, undefined: bool) -> Dataset:
    item, child = Dataset(), Dataset()
    item.RelationshipType, item.ValueType, item.UID = "HAS OBS CONTEXT", "UIDREF", device_uid("02" * 32)
    child.RelationshipType, child.ValueType, child.ContentSequence = "CONTAINS", "CONTAINER", [item]
    ds.ContentSequence = [child]
    ds["ContentSequence"].is_undefined_length = undefined
    return ds


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda undefined: own_in_equipment(radiograph(), undefined),
        lambda undefined: own_in_equipment(report(2), undefined),
        lambda undefined: own_in_content(report(2), undefined),
        lambda undefined: own_in_equipment(radiograph(SOPClassUID=uids.SecondaryCaptureImageStorage), undefined),
    ],
)
def test_what_osteon_made_comes_back(make: Callable[[bool], Dataset], undefined: bool, syntax: str) -> None:
    """Whatever the object, wherever it names the device."""
    assert read(written(make(undefined), SYNTAX[syntax])).kept is StoredOnly.OWN_RESULT


@given(st.text("0123456789abcdef", min_size=64, max_size=64))
def test_device_uids(sha256: str) -> None:
    """Every bundle's is a valid UID of the family; nothing that only begins alike is."""
    uid = device_uid(sha256)
    assert UID(uid).is_valid
    assert is_own_device(uid)
    assert not is_own_device(DEVICE_ROOT + "1")
    assert not is_own_device(uid[2:])


# -- damaged ones


def packed(frames: int = 2) -> bytes:
    ds = coloured(NumberOfFrames=frames, SOPClassUID=uids.UltrasoundMultiFrameImageStorage)
    ds.PixelData = encapsulate([b"\xff\xd8 stream \xff\xd9"] * 2)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return written(ds, SYNTAX["jpeg"])


WHOLE_COLOUR = written(coloured())
PDF = report(4)
PDF.SOPClassUID, PDF.EncapsulatedDocument = uids.EncapsulatedPDFStorage, b"%PDF" + bytes(200_000)
DAMAGED: dict[str, tuple[bytes, type[errors.Rejected]]] = {
    "colour, cut": (WHOLE_COLOUR[:-1], errors.TruncatedPixels),
    "colour, a third of it": (written(coloured(PixelData=bytes(320))), errors.TruncatedPixels),
    "colour without pixels": (written(coloured(PixelData=b"")), errors.NoPixelData),
    "fewer fragments than frames": (packed(3), errors.TruncatedPixels),
    "a fragment, cut": (packed()[:-20], errors.TruncatedPixels),
    "a mark in place of a fragment": (packed().replace(b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0"), errors.UndecodablePixels),
    "a PDF, cut": (written(PDF)[:-100], errors.CannotUnderstand),
    "a PDF in implicit VR, cut": (written(PDF, IMPLICIT)[:-100], errors.CannotUnderstand),
    "a deflated PDF, cut": (written(PDF, SYNTAX["deflated"])[:-40], errors.Rejected),
    "a report without its study": (written(report(1)).replace(b"\x20\0\x0d\0UI", b"\x20\0\x0c\0UI"), errors.BadAttributes),
    "a screenshot without rows": (
        written(radiograph(SOPClassUID=uids.SecondaryCaptureImageStorage, Rows=None)), errors.BadAttributes,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_ones_are_refused(case: str) -> None:
    data, kind = DAMAGED[case]
    with pytest.raises(kind) as caught:
        read(data)
    assert len(str(caught.value)) >= 20


@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
@pytest.mark.parametrize("undefined", [False, True])
def test_cut_anywhere_is_refused(syntax: str, undefined: bool) -> None:
    """A report that ends within an element is never taken for a whole one; between elements nobody can tell."""
    ds = own_in_content(report(5), undefined)
    whole = written(ds, SYNTAX[syntax])
    start = whole.index(b"\x40\x00\x30\xa7")  # its content, the last element
    for end in range(start + 1, len(whole)):
        if whole[end:].strip(b"\0") and whole[start:end].strip(b"\0"):
            with pytest.raises(errors.Rejected):
                read(whole[:end])
    assert read(whole).kept is StoredOnly.OWN_RESULT


def test_a_million_elements_are_stepped_over_and_no_more() -> None:
    """What a plan holds costs little memory; what would take minutes is refused."""
    ds = report(6)
    ds.SOPClassUID, ds.Modality = uids.RTStructureSetStorage, "RTSTRUCT"
    plain = written(ds)
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\x06\x30\x50\x00DS\x02\x001 " * 3000 + b"\xfe\xff\x0d\xe0\0\0\0\0"
    sequence = b"\x06\x30\x39\x00SQ\0\0\xff\xff\xff\xff" + item * 40 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert read(plain + sequence).kept is StoredOnly.NOT_AN_IMAGE
    nested = b"\x06\x30\x39\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    with pytest.raises(errors.TooLarge):
        read(plain + nested)


@given(st.binary(max_size=60), st.integers(0, 2000))
def test_any_damage_is_refused_or_read(noise: bytes, place: int) -> None:
    """No bytes make it fail otherwise."""
    whole = written(key_object())
    at = place % len(whole)
    try:
        read(whole[:at] + noise + whole[at + len(noise) :])
    except errors.Rejected:
        return


# -- documents that reject


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("title", list(Rejection))
def test_rejection_note(title: Rejection, syntax: str) -> None:
    header = read(written(key_object(title), SYNTAX[syntax]))
    assert header.kept is StoredOnly.NOT_AN_IMAGE
    assert header.rejects is not None
    assert (header.rejects.title, header.rejects.sop_instance_uids) == (title, ("1.2.3", "1.2.4"))


def test_evidence_counts_too_and_other_titles_reject_nothing() -> None:
    ds = key_object(uids_named=())
    study, series, reference = Dataset(), Dataset(), Dataset()
    reference.ReferencedSOPInstanceUID = "1.2.9"
    series.ReferencedSOPSequence, study.ReferencedSeriesSequence = [reference], [series]
    ds.CurrentRequestedProcedureEvidenceSequence = [study]
    note = read(written(ds)).rejects
    assert note is not None
    assert note.sop_instance_uids == ("1.2.9",)
    assert read(written(key_object("113000"))).rejects is None
    other: Any = key_object()
    other.ConceptNameCodeSequence[0].CodingSchemeDesignator = "99LOCAL"
    assert read(written(other)).rejects is None
    other = report(7)
    other.ConceptNameCodeSequence = [code(uids_code())]
    assert read(written(other)).rejects is None


def uids_code() -> Any:
    from pydicom.sr.coding import Code

    return Code("113001", "DCM", "Rejected for Quality Reasons")


def test_dose_without_pixels_is_whole() -> None:
    ds = report(8)
    ds.SOPClassUID, ds.Modality = RT_DOSE, "RTDOSE"
    assert read(written(ds)).kept is StoredOnly.OTHER_MODALITY
