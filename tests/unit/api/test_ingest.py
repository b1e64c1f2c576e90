"""Multipart bodies and archives that are not what they say."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.intake.archives import unpack_archive
from api.spool import extended_name, open_spool, receive
from shared.errors import BadArchive, BadRequest

PART = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n'


def received(body: bytes, content_type: str) -> int:
    async def whole() -> AsyncIterator[bytes]:
        yield body

    with open_spool(None) as spool:
        return len(asyncio.run(receive(whole(), content_type, spool, 10**6, 5))[0])


@pytest.mark.parametrize(
    ("body", "boundary"),
    [
        (PART + b"\r\nx\r\n--edge--\r\n", "e" * 5000),
        (PART + b"X-Patient: " + b"ZEBRA" * 2000 + b"\r\n\r\nx\r\n--edge--\r\n", "edge"),
        (b"--ZEBRA" + PART, "edge"),
    ],
    ids=["a boundary that is too long", "a header that is too long", "no boundary"],
)
def test_what_the_parser_refuses_is_a_bad_request_in_our_words(body: bytes, boundary: str) -> None:
    """Nothing the parser raises gets out as an error of the server, or is quoted: it could hold what was sent."""
    assert received(PART + b"\r\nx\r\n--edge--\r\n", "multipart/form-data; boundary=edge") == 1
    with pytest.raises(BadRequest) as caught:
        received(body, f"multipart/form-data; boundary={boundary}")
    assert str(caught.value.__context__) not in str(caught.value)


def names(disposition: str) -> list[str]:
    async def whole() -> AsyncIterator[bytes]:
        yield f"--edge\r\nContent-Disposition: {disposition}\r\n\r\nx\r\n--edge--\r\n".encode()

    with open_spool(None) as spool:
        files, _fields = asyncio.run(receive(whole(), "multipart/form-data; boundary=edge", spool, 10**6, 5))
        return [file.name for file in files]


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("form-data; name=files; filename*=UTF-8''R%C3%B6ntgen%20Hand.dcm", "Röntgen Hand.dcm"),
        ("form-data; name=\"files\"; filename*=utf-8'de'a%E2%82%AC.dcm", "a€.dcm"),
        ("form-data; name=files; FileName* = \"UTF-8''hand.dcm\"", "hand.dcm"),
        ("form-data; name=files; filename*=ISO-8859-1''%E4.dcm", "ä.dcm"),
        ("form-data; name=files; filename*=x-unknown''%C3%A4.dcm", "ä.dcm"),
        ("form-data; name=files; filename*=UTF-8''%FF%zz.dcm", "\ufffd%zz.dcm"),
        ("form-data; name=files; filename*=hand.dcm", "hand.dcm"),
        ("form-data; name=files; filename*=", ""),
        ('form-data; name=files; filename*0="left"; filename*1=" hand.dcm"', "left hand.dcm"),
        ("form-data; name=files; filename*1*=%20hand.dcm; filename*0*=UTF-8''left", "left hand.dcm"),
        ("form-data; name=files; filename=\"plain.dcm\"; filename*=UTF-8''other.dcm", "plain.dcm"),
    ],
)
def test_a_file_whose_name_is_in_extended_form_is_a_file(disposition: str, name: str) -> None:
    """`filename*` alone names a file, too; beside `filename` it is passed over (RFC 7578 4.2)."""
    assert names(disposition) == [name]


def test_a_field_is_none_for_what_its_name_holds() -> None:
    """What looks like a file name within another parameter's quotes is none."""
    assert names("form-data; name=\"a; filename*=UTF-8''x.dcm\"") == []


@given(st.text(max_size=40))
def test_any_name_survives_its_extended_form(name: str) -> None:
    """What RFC 8187 encodes is decoded."""
    sound = name.encode("utf-8", "replace").decode()
    disposition = f"form-data; name=files; filename*=UTF-8''{quote(sound, safe='')}"
    assert extended_name(disposition.encode()) == sound


def test_an_archive_of_nothing_is_refused() -> None:
    """It gets a line in the receipt as every file does, instead of being passed over."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("folder/", b"")
    with open_spool(None) as spool:
        spooled = spool.append("a.zip", iter([out.getvalue()]))
        with pytest.raises(BadArchive, match="no file"):
            list(unpack_archive(spool, spooled, 10, 10**6, 100))
