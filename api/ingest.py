"""Receiving a multipart request: every part goes to one spool file on disk, so memory stays flat.

A client that hangs up midway leaves nothing behind: nothing is looked at before the request is whole.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool

from shared.errors import BadRequest, Unavailable

MAX_FIELD_BYTES = 4096
MAX_FIELDS = 16
WRITE_BYTES = 1 << 20


@dataclass(frozen=True)
class SpooledFile:
    """One file of the request, lying in the spool."""

    name: str  # as the client called it; never used as a path, never logged
    offset: int
    size_bytes: int
    sha256: str


class RequestTooLarge(BadRequest):
    """The request is over this installation's limits. Split it into several requests."""


class SpoolFull(Unavailable):
    """The disk where uploads wait has no room. Free some, or set OSTEON_SPOOL_DIR to a larger one."""


class WrongContentType(BadRequest):
    """Send the files as multipart/form-data, each in a part with a file name."""


class Spool:
    """Files one behind the other in one unnamed file: one descriptor, however many files a request has."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.end = 0  # bytes taken in, those still pending too
        self._pending = bytearray()

    def open(self, spooled: SpooledFile) -> BinaryIO:
        """A reader of one flushed file; independent of all others."""
        return cast("BinaryIO", io.BufferedReader(_Window(self.descriptor, spooled.offset, spooled.size_bytes), 65536))

    def write(self, data: bytes) -> None:
        """Add bytes at the end. Raises SpoolFull."""
        self._pending += data
        self.end += len(data)
        if len(self._pending) >= WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Make all bytes readable. Raises SpoolFull."""
        data, at = memoryview(bytes(self._pending)), self.end - len(self._pending)
        self._pending.clear()
        while data:
            try:
                done = os.pwrite(self.descriptor, data, at)
            except OSError as wrong:
                raise SpoolFull from wrong
            data, at = data[done:], at + done

    def append(self, name: str, chunks: Iterator[bytes]) -> SpooledFile:
        """Add a file, e.g. one that came out of an archive. Raises SpoolFull, and what the chunks raise."""
        digest, start = hashlib.sha256(), self.end
        for chunk in chunks:
            self.write(chunk)
            digest.update(chunk)
        self.flush()
        return SpooledFile(name, start, self.end - start, digest.hexdigest())


@contextmanager
def open_spool(folder: Path | None) -> Iterator[Spool]:
    """A spool that is gone, with its disk space, when the block ends or the process dies. Raises SpoolFull."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed below
    except OSError as wrong:
        raise SpoolFull(f"The disk where uploads wait cannot be written: {wrong.strerror}") from wrong
    with file:
        yield Spool(file.fileno())


class _Window(io.RawIOBase):
    """A stretch of a file as a file; reads by position, so several windows can be read at once."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self.descriptor, self.start, self.size, self.position = descriptor, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("cannot seek to before the start")
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        left = max(0, min(len(buffer), self.size - self.position))
        data = os.pread(self.descriptor, left, self.start + self.position)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


async def receive(
    body: AsyncIterator[bytes], content_type: str, spool: Spool, max_bytes: int, max_files: int
) -> tuple[list[SpooledFile], dict[str, str]]:
    """Write a multipart/form-data body to the spool; returns its files and its fields.

    Raises WrongContentType, BadRequest for a body that is not what its type says, RequestTooLarge over the limits,
    and whatever the body raises when the client hangs up.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise WrongContentType
    parts = _Parts(spool, max_files)
    received = 0
    try:
        parser = MultipartParser(options[b"boundary"], parts.callbacks())
        async for chunk in body:
            received += len(chunk)
            if received > max_bytes:
                raise RequestTooLarge(f"The request is larger than {max_bytes} bytes. Split it into several requests.")
            # hashing and disk would hold up every other request if they ran in the event loop
            if len(chunk) >= 4096:
                await run_in_threadpool(parser.write, chunk)
            else:
                parser.write(chunk)
        parser.finalize()
    except FormParserError:
        # its text may quote the body
        raise BadRequest("The multipart body is malformed, or its boundary or a part's header is too long") from None
    if not parts.complete:
        raise BadRequest("The multipart body ends before its closing boundary")
    await run_in_threadpool(spool.flush)
    return parts.files, parts.fields


class _Parts:
    """What the parser tells, turned into files and fields."""

    def __init__(self, spool: Spool, max_files: int) -> None:
        self.spool, self.max_files = spool, max_files
        self.files: list[SpooledFile] = []
        self.fields: dict[str, str] = {}
        self.complete = False
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._field: str | None = None
        self._file: str | None = None
        self._start = 0
        self._digest = hashlib.sha256()
        self._content = bytearray()

    def callbacks(self) -> Any:  # noqa: ANN401 - its type is not exported
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._headers, self._field, self._file = {}, None, None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise BadRequest("A part's header is too long")

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if kind != b"form-data":
            raise BadRequest("A part has no Content-Disposition: form-data header")
        if b"filename" in options:
            if len(self.files) >= self.max_files:
                raise RequestTooLarge(f"More than {self.max_files} files in one request. Split it into several.")
            self._file = options[b"filename"].decode("utf-8", "replace")
            self._start, self._digest = self.spool.end, hashlib.sha256()
        else:
            if len(self.fields) >= MAX_FIELDS:
                raise BadRequest("The request has too many form fields; files need a file name")
            self._field, self._content = options.get(b"name", b"").decode("utf-8", "replace"), bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._file is None:
            self._content += piece
            if len(self._content) > MAX_FIELD_BYTES:
                raise BadRequest("A form field is too long; files need a file name in their Content-Disposition")
            return
        self._digest.update(piece)
        self.spool.write(piece)

    def _part_end(self) -> None:
        if self._file is not None:
            size = self.spool.end - self._start
            self.files.append(SpooledFile(self._file, self._start, size, self._digest.hexdigest()))
        elif self._field is not None:
            self.fields[self._field] = self._content.decode("utf-8", "replace")

    def _end(self) -> None:
        self.complete = True
