"""The body of a store request: instances in a multipart/related body, or one instance by itself.

Source: PS3.18 8.6.1 and 10.5.1, RFC 2046 5.1, RFC 2387.
"""

from collections.abc import AsyncIterator
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError

from api.media_types import DICOM, MULTIPART, media_type
from api.spool import CUT_SHORT, IncomingFile, Limiters, RequestTooLarge, Spool, SpooledFile, WrongContentType, parse
from shared.errors import BadRequest

SEND = (
    'Send instances as multipart/related; type="application/dicom"; boundary=…, each in a part of its own, or one as '
    "application/dicom"
)


async def receive_instances(
    body: AsyncIterator[bytes],
    content_type: str,
    spool: Spool,
    max_bytes: int,
    max_files: int,
    limiters: Limiters | None = None,
) -> list[SpooledFile]:
    """Write the instances of a store request to the spool. What they are is not looked at: a part's type may be wrong.

    Args:
        body: pieces of the body; its errors pass through, as when the client disconnects.
        content_type: of the request.
        spool: for the files.
        max_bytes: the largest body.
        max_files: the most instances in it.
        limiters: threads that write; None: one of its own.

    Returns:
        The instances in their order, named "part 1" and so on.

    Raises:
        WrongContentType: the body is of another type.
        BadRequest: the body is not what its type says, or holds no part.
        RequestTooLarge: the body is over the limits.
    """
    found = media_type(content_type)
    if found is None or found.name not in (MULTIPART, DICOM) or found.related.name != DICOM:
        raise WrongContentType(SEND)
    if found.name == DICOM:
        whole = _SingleInstance(spool)
        await parse(body, whole, spool, max_bytes, limiters)
        return whole.files
    boundary = found.parameters.get("boundary", "").encode("ascii", "replace")
    if not boundary:
        raise BadRequest("The Content-Type names no boundary; without it the parts cannot be told apart")
    parts = _InstanceCollector(spool, max_files)
    try:
        await parse(body, _related(boundary, parts), spool, max_bytes, limiters)
    except FormParserError:
        # its text may quote the body
        raise BadRequest(
            "The multipart body is malformed, or its boundary or a part's header is too long; send it as RFC 2046 says"
        ) from None
    if not parts.complete:
        raise BadRequest(CUT_SHORT)
    if not parts.files:
        raise BadRequest(f"The multipart body holds no part. {SEND}")
    return parts.files


def _related(boundary: bytes, parts: "_InstanceCollector") -> MultipartParser:
    """A parser that takes what stands before the first boundary for one more part, and so reads over it."""
    parser = MultipartParser(boundary, parts.callbacks())
    parser.write(b"--" + boundary + b"\r\n\r\n\r\n")
    return parser


class _SingleInstance:
    """A body that is one instance."""

    def __init__(self, spool: Spool) -> None:
        self._coming = spool.begin("part 1")
        self.files: list[SpooledFile] = []

    def write(self, data: bytes) -> None:
        self._coming.write(data)

    def finalize(self) -> None:
        self.files.append(self._coming.finish())


class _InstanceCollector:
    """Turns the parser's calls into files: one a part, whatever its header says."""

    def __init__(self, spool: Spool, max_files: int) -> None:
        self.spool, self.max_files = spool, max_files
        self.files: list[SpooledFile] = []
        self.complete = False
        self._begun = 0  # parts, the preamble too
        self._file: IncomingFile | None = None

    def callbacks(self) -> Any:  # noqa: ANN401 - its type is not exported
        return {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        if self._begun > self.max_files:
            raise RequestTooLarge(f"More than {self.max_files} instances in one request. Split it into several.")
        if self._begun:
            self._file = self.spool.begin(f"part {self._begun}")
        self._begun += 1

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])

    def _part_end(self) -> None:
        if self._file is not None:
            self.files.append(self._file.finish())

    def _end(self) -> None:
        self.complete = True
