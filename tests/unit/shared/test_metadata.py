"""DICOM JSON of a header: what pydicom makes of it, within bounds, in UTF-8 and with paths in place of bulk data."""

import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pydicom.uid as uids
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.sequence import Sequence

from samples.objects import SYNTAX, pattern_image, report, to_bytes
from shared.dicom.header import read_header
from shared.dicom.image import ImageLimits
from shared.dicom.metadata import INLINE_BYTES, MAX_DEPTH, bulk_value, metadata_of
from shared.errors import NotFound, Rejected, TooLarge
from shared.metadata import HEAD_BYTES
from shared.settings import ROOT

LIMITS = ImageLimits()
SYNTAXES = (
    uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian, uids.ExplicitVRBigEndian,
    uids.DeflatedExplicitVRLittleEndian,
)  # fmt: skip


def told(data: bytes, **limits: int) -> dict[str, Any]:
    return metadata_of(io.BytesIO(data), len(data), ImageLimits(**limits))


def written(ds: Dataset, syntax: str = uids.ExplicitVRLittleEndian) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, syntax)


def expected(ds: Dataset, path: str = "") -> dict[str, Any]:
    """What pydicom's to_json_dict makes of a data set, with the exceptions that `metadata_of` names."""
    found = {}
    for element in ds:
        key = f"{int(element.tag):08X}"
        one = element.to_json_dict(None, 0)
        if element.VR == "SQ":
            one = {
                "vr": "SQ",
                "Value": [expected(item, f"{path}{key}/{n}/") for n, item in enumerate(element.value, 1)],
            }
        elif "InlineBinary" in one and (len(element.value) > INLINE_BYTES or key == "7FE00010"):
            one = {"vr": element.VR, "BulkDataURI": f"{path}{key}"}
        elif key == "00080005":
            one = {"vr": "CS", "Value": ["ISO_IR 192"]}
        found[key] = one
    return found


def of_pydicom(data: bytes) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(io.BytesIO(data))
        return expected(correct_ambiguous_vr(ds, is_little_endian=True))


def without_private(found: dict[str, Any]) -> None:
    for key in [key for key in found if key.startswith("0009")]:
        del found[key]
    for item in found.get("00400275", {}).get("Value", []):
        without_private(item)


LETTERS = {
    "ISO_IR 6": st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="\\^="),
    "ISO_IR 100": st.characters(codec="latin-1", exclude_categories=["Cc"], exclude_characters="\\^="),
    "ISO_IR 192": st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\\^="),
}


@st.composite
def data_sets(draw: Any, charset: str = "", deep: int = 2) -> Dataset:
    """A data set of text, numbers, names, binary values and sequences, private elements among them."""
    whole = not charset
    charset = charset or draw(st.sampled_from(sorted(LETTERS)))
    text = st.text(LETTERS[charset], max_size=20)
    ds = Dataset()
    ds.SpecificCharacterSet = charset
    values: dict[str, Any] = {
        "StudyDescription": text, "PatientComments": st.text(LETTERS[charset], max_size=3000),
        "OtherPatientNames": st.lists(st.tuples(text, text).map("^".join), min_size=1, max_size=3),
        "PatientName": st.tuples(text, text, text).map("=".join), "ImageType": st.lists(st.sampled_from("AB"), max_size=3),
        "SeriesNumber": st.integers(-(2**31), 2**31 - 1), "PatientWeight": st.floats(-1e6, 1e6).map(lambda x: f"{x:.6g}"),
        "WindowCenter": st.lists(st.integers(0, 9999), min_size=2, max_size=4),
        "StudyDate": st.dates().map(lambda d: f"{d:%Y%m%d}"), "StudyTime": st.times().map(lambda t: f"{t:%H%M%S.%f}"),
        "SimpleFrameList": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4),
        "FrameIncrementPointer": st.integers(0, 2**32 - 1), "TableOfYBreakPoints": st.floats(width=32, allow_nan=False, allow_infinity=False),
        "RealWorldValueSlope": st.floats(allow_infinity=False, allow_nan=False),
        "EncapsulatedDocument": st.binary(max_size=2 * INLINE_BYTES).map(lambda b: b + bytes(len(b) % 2)),
        "SmallestImagePixelValue": st.integers(0, 32767), "LUTDescriptor": st.just([256, 0, 16]),
        "FilterThicknessMinimum": st.just(None), "ExposureDoseSequence": st.just([]),
    }  # fmt: skip
    for keyword in draw(st.lists(st.sampled_from(sorted(values)), unique=True, max_size=8)):
        if keyword in ("SmallestImagePixelValue", "LUTDescriptor"):
            ds.PixelRepresentation = 0
        setattr(ds, keyword, draw(values[keyword]))
    if draw(st.booleans()):
        ds.private_block(0x0009, "OSTEON TEST", create=True).add_new(1, "LO", draw(text))
        ds.private_block(0x0009, "OSTEON TEST").add_new(2, "OB", draw(st.binary(max_size=40).map(lambda b: b + b)))
    if deep and draw(st.booleans()):
        ds.RequestAttributesSequence = Sequence(draw(st.lists(data_sets(charset, deep - 1), max_size=3)))
        ds["RequestAttributesSequence"].is_undefined_length = draw(st.booleans())
        if not whole:  # an item that says nothing has its parent's character set
            del ds.SpecificCharacterSet
    return ds


@given(data_sets(), st.sampled_from(SYNTAXES), st.booleans())
@settings(max_examples=80, deadline=None)
def test_it_is_what_pydicom_makes(ds: Dataset, syntax: str, pixels: bool) -> None:
    """Of any data set, in each syntax, with and without pixels: the same as pydicom of the explicit little endian one."""
    whole = pattern_image(1, "metadata") if pixels else report(1)
    whole.update(ds)
    if not pixels:
        whole.pop("PixelRepresentation", None)
        for keyword in ("SmallestImagePixelValue", "LUTDescriptor"):
            whole.pop(keyword, None)
    found, other = told(written(whole, syntax)), of_pydicom(written(whole))
    for one in (found, other):
        one.get("7FE00010", {}).pop("vr", None)  # OW in some syntaxes, whatever it was: PS3.5 A.1 and A.3
        if syntax == uids.ImplicitVRLittleEndian:  # which does not say what a private element is
            without_private(one)
    assert found == other
    assert list(found) == sorted(found)
    json.dumps(found, allow_nan=False)


def test_samples_are_as_pydicom_makes_them() -> None:
    """Real headers, all compressed syntaxes among them."""
    for path in sorted((ROOT / "samples/studies").rglob("*.dcm")):
        data = path.read_bytes()
        found = told(data)
        assert found == of_pydicom(data), path.name
        assert found["7FE00010"]["BulkDataURI"] == "7FE00010"
        head = metadata_of(io.BytesIO(data[: 2**14]), len(data), LIMITS)
        assert head == found


def test_text_is_utf_8_whatever_the_source_was() -> None:
    """Names in Japanese with code extensions, in the header and in an item that has a character set of its own."""
    ds = pattern_image(1, "text")
    ds.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    ds.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    item = Dataset()
    item.SpecificCharacterSet, item.RequestedProcedureDescription = "ISO_IR 100", "Schädel"
    ds.RequestAttributesSequence = [item]
    found = told(written(ds))
    assert found["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert found["00100010"]["Value"] == [
        {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
    ]
    (inner,) = found["00400275"]["Value"]
    assert inner["00080005"]["Value"] == ["ISO_IR 192"]
    assert inner["00321060"]["Value"] == ["Schädel"]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_bulk_data_is_found_by_its_path(syntax: str) -> None:
    """In the header and within items, in little endian; a binary value of INLINE_BYTES is still inline."""
    ds, item = report(1), Dataset()
    words = bytes(range(256)) * 8
    item.LUTDescriptor, item.LUTData = [1024, 0, 16], words
    item["LUTData"].VR = "OW"
    ds.ModalityLUTSequence = [Dataset(), item]
    ds.EncapsulatedDocument = b"%PDF" + bytes(INLINE_BYTES)
    ds.private_block(0x0011, "OSTEON TEST", create=True).add_new(1, "OB", bytes(INLINE_BYTES))
    data = written(ds, syntax)
    found = told(data)
    assert found["00420011"] == {"vr": "OB", "BulkDataURI": "00420011"}
    path = found["00283000"]["Value"][1]["00283006"]["BulkDataURI"]
    assert path == "00283000/2/00283006"

    def read(path: str) -> tuple[str, bytes]:
        return bulk_value(io.BytesIO(data), len(data), path, LIMITS)

    assert read("00420011") == ("OB", b"%PDF" + bytes(INLINE_BYTES))
    vr, value = read(path)
    swapped = b"".join(bytes([words[i + 1], words[i]]) for i in range(0, len(words), 2))
    assert (vr, value) == ("OW", swapped if syntax == uids.ExplicitVRBigEndian else words)
    if syntax != uids.ImplicitVRLittleEndian:  # where private elements say what they are
        assert "InlineBinary" in found["00111001"]
    for wrong in ("", "00100010", "00283000", "00283000/3/00283006", "00283000/x/00283006", "zz", "00283000/0/00283006",
                  "00283000/2", "7FE00010", "00420012", "../00420011", "-0042001", "00283000/2/00283006/1/00283006"):  # fmt: skip
        with pytest.raises(NotFound):
            read(wrong)


def test_numbers_that_json_has_not_are_words() -> None:
    """NaN and the infinities, in values of every kind of float."""
    ds = pattern_image(1, "numbers")
    ds.add(DataElement(0x00189999, "FD", [math.nan, math.inf, -math.inf, 1.5]))
    assert told(written(ds))["00189999"]["Value"] == ["NaN", "inf", "-inf", 1.5]


def test_a_damaged_value_is_left_out_alone() -> None:
    """Its element stays, without a value, and so do all others."""
    ds = pattern_image(1, "damaged")
    ds["SeriesNumber"] = DataElement("SeriesNumber", "LO", "seven")
    data = written(ds).replace(b"\x20\x00\x11\x00LO", b"\x20\x00\x11\x00IS")
    found = told(data)
    assert found["00200011"] == {"vr": "IS"}
    assert found["00080060"] == {"vr": "CS", "Value": ["CR"]}


def test_bounds() -> None:
    """A header beyond the limits, a head without the pixels, and a million items are refused; deep ones are cut."""
    data = written(pattern_image(1, "bounds"))
    with pytest.raises(TooLarge):
        told(data, max_header_bytes=200)
    with pytest.raises(TooLarge):
        metadata_of(io.BytesIO(data[:600]), len(data), LIMITS)
    with pytest.raises(Rejected):
        told(data[:600])
    ds = pattern_image(1, "items")
    ds.add(DataElement(0x00091001, "UN", b""))
    ds.RequestAttributesSequence = [Dataset()]
    crowded = written(ds)
    at = crowded.index(b"\x40\x00\x75\x02SQ")
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 200_000
    length = len(items).to_bytes(4, "little")
    pixels = crowded.index(b"\xe0\x7f\x10\x00")
    with pytest.raises(TooLarge):
        told(crowded[: at + 8] + length + items + crowded[pixels:])
    ds = pattern_image(1, "deep")
    inner = Dataset()
    for _ in range(MAX_DEPTH + 5):
        outer = Dataset()
        outer.RequestAttributesSequence = [inner]
        inner = outer
    ds.RequestAttributesSequence = [inner]
    found, depth = told(written(ds)), 0
    while "Value" in found.get("00400275", {}):
        found, depth = found["00400275"]["Value"][0], depth + 1
    assert depth == MAX_DEPTH - 1
    assert found["00400275"] == {"vr": "SQ"}


@given(st.sampled_from(sorted(SYNTAX)), st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_refused_in_our_words(kind: str, data: st.DataObject) -> None:
    """Whatever is damaged or missing, it is made, or refused as a file is: nothing else gets out."""
    whole = bytearray(written(pattern_image(1, "ZEBRA")))
    for _ in range(data.draw(st.integers(0, 5))):
        whole[data.draw(st.integers(0, 1500))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        json.dumps(told(cut), allow_nan=False)
    except Rejected as error:
        assert "ZEBRA" not in str(error)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_head_of_a_file_tells_them(syntax: str) -> None:
    """`read_header` says how much of a file is enough, and no byte less is."""
    for ds in (pattern_image(1, "head"), report(1)):
        data = written(ds, syntax)
        needed = read_header(io.BytesIO(data), len(data), LIMITS).head_bytes
        assert metadata_of(io.BytesIO(data[: needed or None]), len(data), LIMITS) == told(data)
        if syntax == uids.DeflatedExplicitVRLittleEndian:
            assert needed == (0 if "PixelData" in ds else len(data))
            continue
        with pytest.raises(Rejected):
            metadata_of(io.BytesIO(data[: needed - 1]), len(data), LIMITS)


@pytest.mark.parametrize("path", sorted(ROOT.glob("samples/studies/**/*.dcm")), ids=lambda path: path.stem)
def test_the_head_of_each_sample_tells_them(path: Path) -> None:
    """Also of compressed radiographs of scanners."""
    data = path.read_bytes()
    needed = read_header(io.BytesIO(data), len(data), LIMITS).head_bytes
    assert needed < len(data)
    assert metadata_of(io.BytesIO(data[: needed or HEAD_BYTES]), len(data), LIMITS) == told(data)
