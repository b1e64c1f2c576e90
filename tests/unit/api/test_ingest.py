"""Multipart bodies and archives that are not what they say."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator

import pytest

from api.archives import unpack
from api.ingest import open_spool, receive
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


def test_an_archive_of_nothing_is_refused() -> None:
    """It gets a line in the receipt as every file does, instead of being passed over."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("folder/", b"")
    with open_spool(None) as spool:
        spooled = spool.append("a.zip", iter([out.getvalue()]))
        with pytest.raises(BadArchive, match="no file"):
            list(unpack(spool, spooled, 10, 10**6, 100))
