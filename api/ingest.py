"""Receiving a multipart request: every part goes to a spool on disk, so memory stays flat.

A client that hangs up midway leaves nothing behind: nothing is looked at before the request is whole.
"""

import asyncio
import errno
import hashlib
import io
import os
import re
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_to_bytes

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool

from shared.errors import BadRequest, Unavailable

MAX_FIELD_BYTES = 4096
MAX_FIELDS = 16
WRITE_BYTES = 1 << 20  # a file from this size on is a large one
BATCH_BYTES = 1 << 20
OWN_FILES = threading.BoundedSemaphore(256)  # descriptors for large files in all requests together
DISK = ThreadPoolExecutor(8, "disk")  # waits for disks and stores


@dataclass(frozen=True)
class SpooledFile:
    """One file of the request, lying in the spool."""

    name: str  # as the client called it; never used as a path, never logged
    offset: int
    size_bytes: int
    sha256: str
    own: "OwnFile | None" = None  # where it lies alone; None: in the file that small ones share


class RequestTooLarge(BadRequest):
    """The request is over this installation's limits. Split it into several requests."""


class SpoolFull(Unavailable):
    """The disk where uploads wait has no room. Free some, or set OSTEON_SPOOL_DIR to a larger one."""


class WrongContentType(BadRequest):
    """Send the files as multipart/form-data, each in a part with a file name."""


class OwnFile:
    """An unnamed file that holds one large upload and nothing else, so that a store on this disk can take it over."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._flushed: Future[None] | None = None

    def flush(self) -> None:
        """Start writing it to the disk, and return at once."""
        self._flushed = DISK.submit(os.fsync, self.descriptor)

    def wait(self) -> int:
        """The descriptor, once all bytes are durable. Raises OSError when they cannot be written."""
        assert self._flushed is not None, "flush comes first"
        self._flushed.result()
        return self.descriptor

    def close(self) -> None:
        """Close it, at the end of a flush that still runs: the number would be another file's by then."""
        if self._flushed is None:
            self._close(None)
        else:
            self._flushed.add_done_callback(self._close)

    def _close(self, _flushed: object) -> None:
        os.close(self.descriptor)
        OWN_FILES.release()


class Spool:
    """The files of one request in unnamed files: small ones one behind the other, large ones each in its own.

    So a request has few descriptors, however many files it has, and no large file is written twice.
    """

    def __init__(self, folder: Path | None, *, own_files: bool = False) -> None:
        """own_files: whether a store can take large files over. Raises OSError when the disk cannot be written."""
        self.folder = folder or Path(tempfile.gettempdir())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.end = 0  # bytes taken in, those still pending too
        self._shared_end = 0
        self._pending = bytearray()
        self._own_files = own_files and hasattr(os, "O_TMPFILE")
        self._owned: list[OwnFile] = []
        self._shared: int | None = None
        self._spare: int | None = self._unnamed()  # the first file, whatever it will hold

    def open(self, spooled: SpooledFile) -> BinaryIO:
        """A reader of one flushed file; independent of all others."""
        descriptor = spooled.own.descriptor if spooled.own else self._shared
        assert descriptor is not None or not spooled.size_bytes, "not flushed"
        return cast("BinaryIO", io.BufferedReader(_Window(descriptor or 0, spooled.offset, spooled.size_bytes), 65536))

    def begin(self, name: str) -> "Incoming":
        """A file that comes in pieces; finish one before the next is begun."""
        return Incoming(self, name)

    def append(self, name: str, chunks: Iterator[bytes]) -> SpooledFile:
        """Add a file, e.g. one that came out of an archive. Raises SpoolFull, and what the chunks raise."""
        coming = self.begin(name)
        for chunk in chunks:
            coming.write(chunk)
        spooled = coming.finish()
        self.flush()
        return spooled

    def flush(self) -> None:
        """Make all bytes readable. Raises SpoolFull."""
        if self._pending:
            if self._shared is None:
                self._shared = self._take()
            write(self._shared, memoryview(bytes(self._pending)), self._shared_end - len(self._pending))
            self._pending.clear()

    def keep(self, content: bytes | bytearray) -> int:
        """Add a small file's bytes, or more of a large one, to the shared file; returns where they start."""
        start = self._shared_end
        self._pending += content
        self._shared_end += len(content)
        if len(self._pending) >= WRITE_BYTES:
            self.flush()
        return start

    def own_file(self) -> OwnFile | None:
        """A file for a large upload alone, or None if no store can use it or too many are open. Raises SpoolFull."""
        if not self._own_files or not OWN_FILES.acquire(blocking=False):
            return None
        try:
            owned = OwnFile(self._take())
        except BaseException:
            OWN_FILES.release()
            raise
        self._owned.append(owned)
        return owned

    def close(self) -> None:
        """Give all of it back to the disk. Never waits for the disk."""
        for owned in self._owned:
            owned.close()
        for descriptor in (self._shared, self._spare):
            if descriptor is not None:
                os.close(descriptor)
        self._owned, self._shared, self._spare = [], None, None

    def _take(self) -> int:
        descriptor, self._spare = self._spare, None
        try:
            return self._unnamed() if descriptor is None else descriptor
        except OSError as wrong:
            raise SpoolFull(f"The disk where uploads wait cannot be written: {wrong.strerror}") from wrong

    def _unnamed(self) -> int:
        if self._own_files:
            try:
                return os.open(self.folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError as wrong:
                if wrong.errno not in (errno.EISDIR, errno.EOPNOTSUPP, errno.ENOENT):
                    raise
                self._own_files = False  # a file system without unnamed files: NFS
        with tempfile.TemporaryFile(dir=self.folder, buffering=0) as file:
            return os.dup(file.fileno())


class Incoming:
    """A file of the request as it comes, hashed on its way; a large one moves to a file of its own."""

    def __init__(self, spool: Spool, name: str) -> None:
        self.spool, self.name = spool, name
        self.size_bytes = 0
        self._digest = hashlib.sha256()
        self._start: int | None = None  # in the shared file, once its first bytes are there
        self._held = bytearray()  # as long as nobody knows whether it is large
        self._own: OwnFile | None = None

    def write(self, data: "bytes | memoryview[int]") -> None:
        """The next bytes. Raises SpoolFull."""
        self._digest.update(data)
        self.size_bytes += len(data)
        self.spool.end += len(data)
        if self._own is not None:
            write(self._own.descriptor, memoryview(data), self.size_bytes - len(data))
            return
        if self._start is not None:
            self.spool.keep(bytes(data))
            return
        self._held += data
        if len(self._held) >= WRITE_BYTES:
            self._own = self.spool.own_file()
            if self._own is not None:
                write(self._own.descriptor, memoryview(bytes(self._held)), 0)
            else:
                self._start = self.spool.keep(self._held)
            self._held = bytearray()

    def finish(self) -> SpooledFile:
        """It is whole; a large one starts on its way to the disk. Raises SpoolFull."""
        if self._own is not None:
            self._own.flush()
        elif self._start is None:
            self._start = self.spool.keep(self._held)
        return SpooledFile(self.name, self._start or 0, self.size_bytes, self._digest.hexdigest(), self._own)


def write(descriptor: int, data: "memoryview[int]", at: int) -> None:
    """Write all of it at this place. Raises SpoolFull."""
    while data:
        try:
            done = os.pwrite(descriptor, data, at)
        except OSError as wrong:
            raise SpoolFull from wrong
        data, at = data[done:], at + done


@contextmanager
def open_spool(folder: Path | None, *, own_files: bool = False) -> Iterator[Spool]:
    """A spool that is gone, with its disk space, when the block ends or the process dies. Raises SpoolFull.

    own_files: whether a store can take large files over.
    """
    try:
        spool = Spool(folder, own_files=own_files)
    except OSError as wrong:
        raise SpoolFull(f"The disk where uploads wait cannot be written: {wrong.strerror}") from wrong
    try:
        yield spool
    finally:
        spool.close()


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
    chunks: list[bytes] = []
    waiting = 0  # bytes in chunks
    parsing: asyncio.Task[None] | None = None

    def parse(pieces: list[bytes]) -> None:
        for piece in pieces:
            parser.write(piece)

    try:
        parser = MultipartParser(options[b"boundary"], parts.callbacks())
        async for chunk in body:
            received += len(chunk)
            if received > max_bytes:
                raise RequestTooLarge(f"The request is larger than {max_bytes} bytes. Split it into several requests.")
            chunks.append(chunk)
            waiting += len(chunk)
            # Hashing and disk would hold up every other request if they ran in the event loop; so a thread does that,
            # while the next bytes come in. What waits is bounded: two batches.
            if waiting >= BATCH_BYTES:
                if parsing is not None:
                    await parsing
                parsing = asyncio.create_task(run_in_threadpool(parse, chunks))
                chunks, waiting = [], 0
        if parsing is not None:
            await parsing
        await run_in_threadpool(parse, chunks)
        parser.finalize()
    except FormParserError:
        # its text may quote the body
        raise BadRequest("The multipart body is malformed, or its boundary or a part's header is too long") from None
    finally:
        if parsing is not None and not parsing.done():
            await asyncio.wait([parsing])  # it writes to the spool, which is closed next
    if not parts.complete:
        raise BadRequest("The multipart body ends before its closing boundary")
    await run_in_threadpool(spool.flush)
    return parts.files, parts.fields


_EXTENDED = re.compile(r';\s*filename\*(\d{0,3})(\*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;]*)', re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


def extended_name(disposition: bytes) -> str | None:
    """The file name of a part that has it in extended form alone, whole or in numbered pieces; None where it has none.

    RFC 7578 4.2 forbids that form here and some clients send nothing else; what cannot be decoded becomes U+FFFD.
    Source: RFC 8187 3.2, RFC 2231 3 and 4.
    """
    text = disposition.decode("latin-1")
    quoted = [found.span() for found in _QUOTED.finditer(text)]
    pieces, charset = [], "utf-8"
    for found in _EXTENDED.finditer(text):
        if any(begin < found.start() < end for begin, end in quoted):
            continue  # it stands within another parameter's value
        number, star, value = found.groups()
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        encoded = bool(star) or not number
        if encoded and number in ("", "0") and value.count("'") >= 2:
            charset, _language, value = value.split("'", 2)
        raw = unquote_to_bytes(value.encode("latin-1")) if encoded else value.encode("latin-1")
        pieces.append((int(number or 0), raw))
    if not pieces:
        return None
    raw = b"".join(piece for _, piece in sorted(pieces))
    return raw.decode("latin-1" if charset.casefold() == "iso-8859-1" else "utf-8", "replace")


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
        self._file: Incoming | None = None
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
        disposition = self._headers.get(b"content-disposition", b"")
        kind, options = parse_options_header(disposition)
        if kind != b"form-data":
            raise BadRequest("A part has no Content-Disposition: form-data header")
        name = options[b"filename"].decode("utf-8", "replace") if b"filename" in options else extended_name(disposition)
        if name is not None:
            if len(self.files) >= self.max_files:
                raise RequestTooLarge(f"More than {self.max_files} files in one request. Split it into several.")
            self._file = self.spool.begin(name)
        else:
            if len(self.fields) >= MAX_FIELDS:
                raise BadRequest("The request has too many form fields; files need a file name")
            self._field, self._content = options.get(b"name", b"").decode("utf-8", "replace"), bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            self._content += data[start:end]
            if len(self._content) > MAX_FIELD_BYTES:
                raise BadRequest("A form field is too long; files need a file name in their Content-Disposition")
            return
        self._file.write(memoryview(data)[start:end])

    def _part_end(self) -> None:
        if self._file is not None:
            self.files.append(self._file.finish())
        elif self._field is not None:
            self.fields[self._field] = self._content.decode("utf-8", "replace")

    def _end(self) -> None:
        self.complete = True
