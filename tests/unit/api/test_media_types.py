"""Media types as clients write them: quotes or none, one header or several, parameters anywhere."""

from typing import Any

import pytest
from fastapi import HTTPException, Request
from hypothesis import given
from hypothesis import strategies as st

from api.media_types import (
    DICOM,
    JSON,
    MAX_RANGES,
    XML,
    MediaType,
    accepted,
    choose,
    media_ranges,
    media_type,
)

TOKENS = st.text("abcdefghijklmnopqrstuvwxyz0123456789+.-", min_size=1, max_size=12)
NAMES = st.builds("{}/{}".format, TOKENS, TOKENS)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


def request(*accept: str, query: str = "") -> Request:
    headers = [(b"accept", one.encode("latin-1")) for one in accept]
    return Request({"type": "http", "headers": headers, "query_string": query.encode()})


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(
    st.lists(
        st.tuples(NAMES, st.dictionaries(TOKENS.filter(lambda name: name != "q"), VALUES, max_size=3), st.integers(1, 1000)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([",", ", ", " ,\t"]),
    st.sampled_from([";", "; ", " ; "]),
)  # fmt: skip
def test_what_is_written_is_read(ranges: list[tuple[str, dict[str, str], int]], comma: str, semicolon: str) -> None:
    """Every range comes back, best first, whatever stands in quotes: commas, semicolons and quotes too."""
    texts = [
        semicolon.join([name, *(f"{key}={quoted(value)}" for key, value in parameters.items()), f"q={quality / 1000:.3f}"])
        for name, parameters, quality in ranges
    ]  # fmt: skip
    found = media_ranges(comma.join(texts))
    wanted = sorted(ranges, key=lambda one: -one[2])
    assert [(one.name, dict(one.parameters), round(one.quality * 1000)) for one in found] == wanted


@given(st.text(max_size=200))
def test_nothing_breaks_it(text: str) -> None:
    """Anything at all is read without an error, and has ranges with a quality above 0 only."""
    assert all(0 < one.quality <= 1 and "/" in one.name for one in media_ranges(text))


@given(st.text(st.characters(blacklist_characters='",')), st.text(st.characters(blacklist_characters='",')))
def test_what_is_malformed_spoils_no_neighbour(before: str, after: str) -> None:
    """The sound range between others is found."""
    assert "image/jpeg" in {one.name for one in media_ranges(f"{before},image/jpeg,{after}")}


@pytest.mark.parametrize(
    ("text", "kind", "syntax"),
    [
        ('multipart/related; type="application/dicom"; transfer-syntax=*', "application/dicom", "*"),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", "application/octet-stream", "*"),
        ('multipart/related;type="application/dicom";transfer-syntax=1.2.840.10008.1.2.1;q=0.9', "application/dicom", "1.2.840.10008.1.2.1"),
        ('Multipart/Related; Type="image/jls"; Transfer-Syntax="1.2.840.10008.1.2.4.80"', "image/jls", "1.2.840.10008.1.2.4.80"),
        ("multipart/related", "application/dicom", None),
        ("application/dicom; transfer-syntax=*", "application/dicom", "*"),
    ],
)  # fmt: skip
def test_related_types_of_clients(text: str, kind: str, syntax: str | None) -> None:
    """OHIF, Weasis, dicomweb-client and dcm4che: with quotes and without, in any case."""
    (found,) = media_ranges(text)
    assert (found.related.name, found.related.parameters.get("transfer-syntax")) == (kind, syntax)


@pytest.mark.parametrize("text", ["", "dicom", "a/b, c/d", "a/b;=", 'a/b; c="d', "/", "a/b c/d"])
def test_no_media_type(text: str) -> None:
    """What is no single type has none."""
    assert media_type(text) is None


def test_a_long_header_is_bounded() -> None:
    """No more ranges are read than MAX_RANGES."""
    assert len(media_ranges(",".join(f"a/b{number}" for number in range(10 * MAX_RANGES)))) == MAX_RANGES


@pytest.mark.parametrize(
    ("accept", "response"),
    [
        ([], JSON[0]),
        (["*/*"], JSON[0]),
        (["application/dicom+json"], JSON[0]),
        (["application/*"], JSON[0]),
        (["application/dicom+json, application/json"], JSON[0]),
        (["application/json, text/plain, */*"], JSON[1]),
        (["application/dicom+xml"], XML[0]),
        (["application/dicom+json;q=0.5, application/dicom+xml"], XML[0]),
        (["text/html", "application/dicom+json"], JSON[0]),
        (["text/html"], None),
        (["application/dicom+json;q=0"], None),
        (["nonsense"], None),
    ],
)
def test_json_or_xml(accept: list[str], response: str | None) -> None:
    """The type of a response, or 406 that names what there is."""
    try:
        assert choose(request(*accept), [*JSON, *XML]) == response
    except HTTPException as error:
        assert (response, error.status_code) == (None, 406)
        assert "application/dicom+json" in error.detail


def test_the_query_parameter_decides() -> None:
    """A link in a page can set no header: PS3.18 8.3.3.1."""
    assert choose(request("text/html", query="accept=application/dicom%2Bxml"), [*JSON, *XML]) == XML[0]
    assert accepted(request()) == [MediaType("*/*", {})]


def test_ranges_hold_types() -> None:
    """A range of one kind holds all of this kind."""
    wide: Any = MediaType("image/*", {})
    assert wide.holds("image/jpeg")
    assert not wide.holds(DICOM)
