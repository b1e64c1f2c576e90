"""Parameters of QIDO-RS queries."""

from urllib.parse import parse_qsl, quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import keyword_for_tag

from api.dicomweb.keys import (
    FUZZY,
    MAX_DEPTH,
    MAX_FIELDS_LENGTH,
    MAX_PARAMETERS,
    MAX_VALUE_LENGTH,
    MAX_VALUES,
    Search,
    attribute_keyword,
    read_query,
    vr_of,
    warning_header,
)
from shared.errors import BadRequest

TAGS = st.sampled_from(sorted(DicomDictionary))
SEQUENCES = st.sampled_from([tag for tag, entry in sorted(DicomDictionary.items()) if entry[0] == "SQ"])
OHIF = (
    "limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060",
    "PatientName=*smith*&limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060",
    (
        "00100020=*4711*&AccessionNumber=*A1*&StudyDescription=*hand*&ModalitiesInStudy=CR%2CDX&"
        "StudyDate=20260101-20261130&limit=101&offset=101&fuzzymatching=false&includefield=00081030%2C00080060"
    ),
    "includefield=00080021%2C00080031%2C0008103E%2C00200011",
)


def asked(query: str) -> Search:
    """As Starlette parses the query of an address."""
    return read_query(parse_qsl(query, keep_blank_values=True))


@given(st.lists(SEQUENCES, max_size=MAX_DEPTH - 1), TAGS, st.data())
def test_every_attribute_has_three_names(above: list[int], last: int, data: st.DataObject) -> None:
    """By keyword, by digits in small letters or capitals, and mixed in a sequence: they are one attribute."""
    tags = [*above, last]
    keywords = [keyword_for_tag(tag) or f"{tag:08X}" for tag in tags]
    names = [
        data.draw(st.sampled_from([f"{tag:08x}", f"{tag:08X}", keyword]))
        for tag, keyword in zip(tags, keywords, strict=True)
    ]
    name = ".".join(names)
    assert attribute_keyword(name, "it") == ".".join(keywords)
    assert read_query([("includefield", name)]).fields == {".".join(keywords)}
    assert vr_of(".".join(keywords)) == DicomDictionary[last][0]
    assert read_query([(name, "")]).fields == {".".join(keywords)}


@pytest.mark.parametrize(
    "name",
    [
        "FooBar", "patientname", "0010001", "001000100", "00100010 ", "0010,0010", "00091001", "", ".", "PatientName.",
        "PatientName.PatientID", "RequestAttributesSequence.FooBar", "00400275..00401001", "orderby", "\u0660" * 8,
        ".".join(["00400275"] * (MAX_DEPTH + 1)),
    ],
)  # fmt: skip
def test_a_name_outside_the_dictionary_is_refused(name: str) -> None:
    """The message says what a name may be, and does not repeat this one."""
    with pytest.raises(BadRequest, match="dictionary") as told:
        read_query([(name, "1")])
    assert len(name) < 3 or name not in str(told.value)
    if name.strip() == name and name:  # of spaces around it, and of nothing, includefield makes no mistake
        with pytest.raises(BadRequest, match="dictionary"):
            read_query([("includefield", name)])


@given(st.lists(st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,4}", fullmatch=True), min_size=1, max_size=6), st.data())
def test_uids_are_a_list(uids: list[str], data: st.DataObject) -> None:
    """Joined by commas or backslashes, in one parameter or in several: the same alternatives."""
    groups = data.draw(st.lists(st.integers(0, len(uids)), max_size=3).map(sorted))
    parts = [uids[start:end] for start, end in zip([0, *groups], [*groups, len(uids)], strict=True)]
    joint = data.draw(st.sampled_from([",", "\\", ", "]))
    query = urlencode([("StudyInstanceUID", joint.join(part)) for part in parts if part])
    assert asked(query).matches == {"StudyInstanceUID": tuple(uids)}


@given(st.lists(TAGS, max_size=8), st.data())
def test_fields_are_joined_or_repeated(tags: list[int], data: st.DataObject) -> None:
    """Includefield once with commas, or once for each: the same fields; the word all in any place."""
    names = [f"{tag:08X}" for tag in tags]
    everything = data.draw(st.booleans())
    given_ = [*names, data.draw(st.sampled_from(["all", "ALL"]))] if everything else names
    once, often = (
        read_query([("includefield", ",".join(given_))]),
        read_query([("includefield", name) for name in given_]),
    )
    assert once == often
    assert once.everything == everything
    assert set(once.fields) == {keyword_for_tag(tag) or f"{tag:08X}" for tag in tags}


def test_a_comma_belongs_to_a_name_and_a_backslash_to_none() -> None:
    """Only values that cannot hold a comma are cut at it."""
    found = asked("PatientName=Smith, John&PatientID=1,2&Modality=CR,DX\\PX&InstanceNumber=1,2&StudyID=a\\b")
    assert found.matches == {
        "PatientName": ("Smith, John",), "PatientID": ("1,2",), "Modality": ("CR", "DX", "PX"),
        "InstanceNumber": ("1", "2"), "StudyID": ("a", "b"),
    }  # fmt: skip


@pytest.mark.parametrize("value", ["", " ", "*", "**", "a\\*"])
def test_what_matches_everything_is_returned(value: str) -> None:
    """An empty value, or one star, restricts nothing and asks for the attribute."""
    found = read_query([("PatientName", value)])
    assert not found.matches and set(found.fields) == {"PatientName"}


def test_the_queries_of_ohif() -> None:
    """Each query that OHIF 3.12 makes is understood."""
    first, name, all_fields, series = map(asked, OHIF)
    assert first == read_query([("includefield", "StudyDescription,Modality"), ("limit", "101")])
    assert name.matches == {"PatientName": ("*smith*",)} and name.warnings == (FUZZY,)
    assert all_fields.offset == 101 and all_fields.limit == 101
    assert all_fields.matches == {
        "PatientID": ("*4711*",), "AccessionNumber": ("*A1*",), "StudyDescription": ("*hand*",),
        "ModalitiesInStudy": ("CR", "DX"), "StudyDate": ("20260101-20261130",),
    }  # fmt: skip
    assert series.fields == {"SeriesDate", "SeriesTime", "SeriesDescription", "SeriesNumber"}


@pytest.mark.parametrize(
    "query",
    ["limit=-1", "limit=", "limit=1.5", "limit=ten", "offset=-1", "limit=\u0663", f"offset={'9' * 19}",
     "fuzzymatching=yes", "fuzzymatching=", "emptyvaluematching=1", "multiplevaluematching=maybe"],
)  # fmt: skip
def test_numbers_and_flags_are_checked(query: str) -> None:
    """A limit is a whole number, a flag is true or false; the message names the parameter alone."""
    with pytest.raises(BadRequest, match=query.partition("=")[0]):
        asked(query)


def test_everything_is_bounded() -> None:
    """The number of parameters, of values, and the length of a value."""
    for parameters in (
        [("PatientName", "a")] * (MAX_PARAMETERS + 1),
        [("StudyInstanceUID", ",".join(["1"] * (MAX_VALUES + 1)))],
        [("PatientName", "a" * (MAX_VALUE_LENGTH + 1))],
        [("includefield", "," * (MAX_FIELDS_LENGTH + 1))],
    ):
        with pytest.raises(BadRequest):
            read_query(parameters)


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), max_size=6))
def test_nothing_but_a_bad_request_is_raised(parameters: list[tuple[str, str]]) -> None:
    """Whatever a client writes; and no value stands in what is raised. What is ASCII may be one of its own words."""
    try:
        read_query(parse_qsl("&".join(f"{quote(name)}={quote(value)}" for name, value in parameters)))
    except BadRequest as error:
        assert all(value.isascii() or value not in str(error) for _, value in parameters)


def test_warnings_stand_in_one_header() -> None:
    """Each with the code 299 and the service."""
    assert warning_header("http://a/dicom-web", ["One.", "Two."]) == {
        "Warning": '299 http://a/dicom-web: "One.", 299 http://a/dicom-web: "Two."'
    }
    assert warning_header("http://a/dicom-web", []) == {}
