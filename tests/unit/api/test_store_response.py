"""The response to a store request (STOW-RS), in both forms, read as clients read it."""

import json
from collections.abc import Mapping
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest
from dicomweb_client.web import _load_xml_dataset
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from api.dicomweb.datasets import DataSet, Value, data_set, data_set_response, native_xml
from api.dicomweb.store_response import MAX_COMMENT_LENGTH, Part, failure_comment, status_of, store_instances_response
from api.schemas import FileReceipt, Outcome
from shared.dicom.identifiers import Identifiers

BASE = "https://osteon.hospital.example/dicom-web"
CLASS = "1.2.840.10008.5.1.4.1.1.1.1"


def part(outcome: Outcome, number: int = 1, **more: Any) -> Part:
    uids = more.pop("uids", Identifiers(CLASS, f"1.2.3.{number}", "1.2.3", "1.2.3.0"))
    return Part(uids, FileReceipt(file=f"part {number}", outcome=outcome, **more))


def rejected(number: int = 1, **more: Any) -> Part:
    return part(Outcome.REJECTED, number, **({"failure": "0xA900", "text": "Rows is missing"} | more))


PARTS = st.builds(
    lambda outcome, known, failure: (
        Identifiers(CLASS, "1.2.3.4", "1.2.3", "1.2.3.0") if known else Identifiers(),
        FileReceipt(
            file="part 7",
            outcome=outcome,
            **({"failure": f"0x{failure:04X}", "text": "damaged"} if outcome is Outcome.REJECTED else {}),
        ),
    ),
    st.sampled_from(Outcome),
    st.booleans(),
    st.integers(0xA700, 0xCFFF),
).map(lambda made: Part(*made))


@given(st.lists(PARTS, min_size=1, max_size=8))
def test_no_part_is_passed_over(parts: list[Part]) -> None:
    """Each part stands in exactly one sequence, none of which is empty, and the status follows from them."""
    told = Dataset.from_json(json.dumps(store_instances_response(parts, BASE)))
    kept, failed, others = (
        list(told[name].value) if name in told else None
        for name in ("ReferencedSOPSequence", "FailedSOPSequence", "OtherFailuresSequence")
    )
    assert [] not in (kept, failed, others)
    assert len(kept or ()) == sum(one.stored for one in parts)
    assert len(failed or ()) + len(others or ()) == sum(not one.stored for one in parts)
    for item in failed or ():
        assert item.ReferencedSOPClassUID == CLASS
        assert item.ReferencedSOPInstanceUID == "1.2.3.4"
    for item in [*(failed or ()), *(others or ())]:
        assert item.FailureReason
        assert "part 7" in item.ErrorComment
    wanted = 200 if not (failed or others) else 202 if kept else 409
    assert status_of(parts) == wanted


@pytest.mark.parametrize(
    ("outcome", "reason", "found"),
    [
        (Outcome.STORED, None, True),
        (Outcome.DUPLICATE, None, True),
        (Outcome.DUPLICATE, "another-study", False),
        (Outcome.CONFLICT, "other-patient", False),
        (Outcome.CORRECTION, "other-header", False),
        (Outcome.COMPARING, "to-be-compared", False),
    ],
)
def test_what_is_kept_is_a_success(outcome: Outcome, reason: str | None, found: bool) -> None:
    """A duplicate, a correction and a conflict too, or a sender would repeat them for ever; without a warning."""
    whole = [part(outcome, reason=reason)]
    told = Dataset.from_json(json.dumps(store_instances_response(whole, BASE)))
    (item,) = told.ReferencedSOPSequence
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (CLASS, "1.2.3.1")
    url = f"{BASE}/studies/1.2.3/series/1.2.3.0/instances/1.2.3.1"
    assert (item.RetrieveURL or "") == (url if found else "")
    assert (told.RetrieveURL or "") == (f"{BASE}/studies/1.2.3" if found else "")
    assert "WarningReason" not in item
    assert status_of(whole) == 200


def test_retrieve_url_is_empty_where_there_are_several_studies() -> None:
    """It is of type 2: there, and empty."""
    other = Identifiers(CLASS, "1.2.4.1", "1.2.4", "1.2.4.0")
    told = store_instances_response([part(Outcome.STORED), part(Outcome.STORED, 2, uids=other)], BASE)
    assert told["00081190"] == {"vr": "UR"}


def test_failure_reasons() -> None:
    """As PS3.18 I.2.2 has them: a DICOMDIR is no instance that can be stored (0122)."""
    parts = [rejected(failure="0xC122"), part(Outcome.SKIPPED, 2, reason="dicomdir", text="a DICOMDIR")]
    told = Dataset.from_json(json.dumps(store_instances_response(parts, BASE)))
    assert [item.FailureReason for item in told.FailedSOPSequence] == [0xC122, 0x0122]
    assert status_of(parts) == 409


@given(st.text(max_size=200))
def test_a_comment_fits_into_an_lo(text: str) -> None:
    """At most 64 characters without a backslash, and the number of the part first."""
    told = failure_comment(FileReceipt(file="part 12", outcome=Outcome.REJECTED, text=text))
    assert len(told) <= MAX_COMMENT_LENGTH
    assert "\\" not in told
    assert told.startswith("part 12:")


TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF), min_size=1, max_size=30)
PLAIN = st.fixed_dictionaries(
    {},
    optional={
        "RetrieveURL": TEXTS.filter(str.strip),
        "FailureReason": st.integers(0, 65535),
        "ReferencedSOPClassUID": st.just(CLASS),
        "ErrorComment": TEXTS,
    },
).map(lambda values: data_set(**cast("dict[str, Value]", values)))
NESTED = st.lists(PLAIN, min_size=1, max_size=3).map(lambda items: data_set(FailedSOPSequence=items))


def plain(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The data set with all values as texts, as XML has them."""
    return {
        tag: (one["vr"], [plain(value) if isinstance(value, Mapping) else str(value) for value in one.get("Value", [])])
        for tag, one in whole.items()
    }


def parsed(parent: ET.Element) -> dict[str, Any]:
    """The same of a document."""
    space = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"
    made = {}
    for one in parent:
        assert one.tag == f"{space}DicomAttribute"
        assert [int(child.attrib["number"]) for child in one] == list(range(1, len(one) + 1))
        values = [parsed(child) if child.tag == f"{space}Item" else child.text for child in one]
        made[one.attrib["tag"]] = (one.attrib["vr"], values)
    return made


@given(st.one_of(PLAIN, NESTED))
def test_xml_says_what_json_says(whole: DataSet) -> None:
    """The Native DICOM Model holds the same attributes, items and values, in their order."""
    root = ET.fromstring(native_xml(whole))
    assert root.tag == "{http://dicom.nema.org/PS3.19/models/NativeDICOM}NativeDicomModel"
    assert parsed(root) == plain(whole)


def test_clients_read_both_forms_alike() -> None:
    """dicomweb-client makes the same data set of the JSON and of the XML."""
    whole = store_instances_response([part(Outcome.STORED), rejected(2), rejected(3, uids=Identifiers())], BASE)
    of_json = Dataset.from_json(bytes(data_set_response(whole, "application/dicom+json").body).decode())
    of_xml = _load_xml_dataset(ET.fromstring(data_set_response(whole, "application/dicom+xml").body))
    assert of_json == of_xml
    assert of_json.FailedSOPSequence[0].FailureReason == 0xA900


@pytest.mark.parametrize("kind", ["application/dicom+json", "application/json", "application/dicom+xml"])
def test_the_content_type_has_no_parameter(kind: str) -> None:
    """dicomweb-client compares the header as a whole."""
    assert data_set_response(data_set(RetrieveURL=""), kind).headers["content-type"] == kind
