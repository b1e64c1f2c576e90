"""Bodies of store requests (STOW-RS): multipart/related as clients write it, or one instance alone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dicomweb.bodies import receive_instances
from api.spool import RequestTooLarge, WrongContentType, open_spool
from shared.errors import BadRequest

KIND = 'multipart/related; type="application/dicom"; boundary=edge'
ONE = b"--edge\r\nContent-Type: application/dicom\r\n\r\none\r\n--edge--\r\n"


@dataclass
class Received:
    names: list[str]
    contents: list[bytes]


def received(
    body: bytes, content_type: str = KIND, *, at_once: int = 1 << 20, most: int = 10**6, files: int = 9
) -> Received:
    """Receive a body that comes in pieces of so many bytes."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), at_once):
            yield body[start : start + at_once]

    with open_spool(None) as spool:
        found = asyncio.run(receive_instances(pieces(), content_type, spool, most, files))
        return Received([one.name for one in found], [spool.open(one).read() for one in found])


BYTES = st.binary(max_size=60)
# what could be taken for the end of a part, and is none
CONTENTS = st.lists(
    st.one_of(BYTES, st.sampled_from([b"\r\n", b"--", b"--edg", b"\r\n--edg", b"-", b"\r"])), max_size=6
).map(b"".join)
HEADERS = st.lists(
    st.sampled_from(
        [
            b"Content-Type: application/dicom",
            b"content-type:application/octet-stream",
            b'Content-Type: application/dicom; transfer-syntax="1.2.840.10008.1.2.1"',
            b"Content-Location: /studies/1",
            b"Content-Length: 3",
            b"MIME-Version: 1.0",
        ]
    ),
    max_size=3,
)


@given(
    st.lists(st.tuples(HEADERS, CONTENTS), min_size=1, max_size=5),
    st.sampled_from([b"", b"\r\n", b"This is a multi-part message.\r\n", b"--edg\r\n\r\n", b"\r\n\r\n"]),
    st.sampled_from([b"", b"\r\n", b"\r\nend", b"\r\n--edge\r\n\r\nno part\r\n--edge--"]),
    st.sampled_from([b"", b" ", b" \t"]),
    st.integers(1, 50),
)
def test_each_part_is_an_instance(
    parts: list[tuple[list[bytes], bytes]], preamble: bytes, epilogue: bytes, padding: bytes, at_once: int
) -> None:
    """Whatever the headers, the bytes, the pieces in which they come, and what stands before and behind the parts."""
    body = preamble
    for headers, content in parts:
        body += b"--edge" + padding + b"\r\n" + b"".join(one + b"\r\n" for one in headers) + b"\r\n" + content + b"\r\n"
    found = received(body + b"--edge--" + epilogue, at_once=at_once)
    assert found.contents == [content for _, content in parts]
    assert found.names == [f"part {number + 1}" for number in range(len(parts))]


@given(st.binary(min_size=1, max_size=300), st.integers(1, 50))
def test_bytes_that_are_no_multipart_are_refused_or_read(body: bytes, at_once: int) -> None:
    """Nothing but the errors that a client gets comes out of any body."""
    with contextlib.suppress(BadRequest):
        received(body, at_once=at_once)


@pytest.mark.parametrize(
    "content_type",
    [
        KIND,
        "multipart/related;boundary=edge;type=application/dicom",
        'Multipart/Related; Boundary="edge"; Type="Application/DICOM"',
        "multipart/related; boundary=edge",
        'multipart/related; type="application/dicom"; start="<1>"; boundary="edge"; charset=utf-8',
    ],
)
def test_types_as_clients_write_them(content_type: str) -> None:
    """Quotes are optional, the order is free, and a missing type is the only one that there is."""
    assert received(ONE, content_type).contents == [b"one"]


@pytest.mark.parametrize(
    "content_type",
    [
        "", "nonsense", "multipart/form-data; boundary=edge", "multipart/mixed; boundary=edge", "application/json",
        'multipart/related; type="application/dicom+json"; boundary=edge',
        "multipart/related; type=application/dicom+xml; boundary=edge", "application/octet-stream", "application/zip",
    ],
)  # fmt: skip
def test_other_types_are_refused(content_type: str) -> None:
    """With 415 and a sentence that says what to send."""
    with pytest.raises(WrongContentType, match="multipart/related"):
        received(ONE, content_type)


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (ONE, 'multipart/related; type="application/dicom"', "no boundary"),
        (ONE, 'multipart/related; type="application/dicom"; boundary=""', "no boundary"),
        (ONE, KIND.replace("edge", "e" * 5000), "boundary"),
        (ONE, KIND.replace("edge", "other"), "closing boundary"),
        (ONE[:-9], KIND, "closing boundary"),
        (b"", KIND, "closing boundary"),
        (b"--edge--\r\n", KIND, "no part"),
        (b"--edge\r\nX-Patient: " + b"ZEBRA" * 2000 + b"\r\n\r\nx\r\n--edge--\r\n", KIND, "header is too long"),
        (b"--edge\r\nno header\r\n\r\nx\r\n--edge--\r\n", KIND, "malformed"),
    ],
)
def test_broken_bodies_are_refused_in_our_words(body: bytes, content_type: str, words: str) -> None:
    """With 400, and nothing of the body in the sentence."""
    with pytest.raises(BadRequest, match=words) as caught:
        received(body, content_type)
    assert "ZEBRA" not in str(caught.value)


def test_one_instance_alone() -> None:
    """A body of type application/dicom is one instance, whatever it holds; an empty one is one, too."""
    assert received(ONE, "application/dicom").contents == [ONE]
    assert received(ONE, 'application/dicom; transfer-syntax="1.2.840.10008.1.2.1"').contents == [ONE]
    assert received(b"", "application/dicom").contents == [b""]


def test_bounds() -> None:
    """Bytes and instances are counted while they come; what stands before the first boundary counts, too."""
    assert len(received(ONE.replace(b"--edge--\r\n", b"") * 3 + b"--edge--", files=3).names) == 3
    with pytest.raises(RequestTooLarge, match="3 instances"):
        received(ONE.replace(b"--edge--\r\n", b"") * 4 + b"--edge--", files=3)
    with pytest.raises(RequestTooLarge, match="100 bytes"):
        received(b"x" * 101 + b"\r\n" + ONE, most=100)
