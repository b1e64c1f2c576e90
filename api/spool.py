"""Receiving a multipart request: every part is written to a spool on disk, so memory stays flat.

A client that disconnects midway leaves nothing behind: nothing is used before the request is complete.
"""

import asyncio
import errno
import hashlib
import io
import os
import re
import tempfile
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self, TypeVar, cast
from urllib.parse import unquote_to_bytes

from anyio import CapacityLimiter, to_thread
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from shared.archives import HEAD_BYTES
from shared.errors import BadRequest, Unavailable

T = TypeVar("T")
MAX_FIELD_BYTES = 4096
MAX_FIELDS = 16
WRITE_BYTES = 1 << 20  # a file from this size on is a large one
BATCH_BYTES = 1 << 20
OPEN_LARGE_FILES = threading.BoundedSemaphore(256)  # descriptors for large files in all requests together
DISK = ThreadPoolExecutor(8, "disk")  # waits for disks and stores
CUT_SHORT = "The multipart body ends before its closing boundary: it was cut short. Send the request again"
RESERVED_SHARE = 20  # of a disk smaller than that many reserves, this part is left free


class SpoolBudget:
    """How much all uploads in progress hold in the spool, and the bounds on that. Safe between threads."""

    def __init__(self, folder: Path | None, max_bytes: int, reserve: int) -> None:
        """max_bytes: of all uploads; reserve: bytes left free on the disk for others, of a small disk a twentieth."""
        self.folder = folder or Path(tempfile.gettempdir())
        self.max_bytes, self.reserve = max_bytes, reserve
        self._parts: list[int] | memoryview[int] = [0]  # that processes hold
        self._own = 0  # the part of this one
        self._lock = threading.Lock()

    def share(self, parts: "memoryview[int]", own: int) -> None:
        """Hold the bounds together with other processes, before anything is held.

        Args:
            parts: what each process holds, in bytes, in memory that they share.
            own: number of this process.
        """
        self._parts, self._own = parts, own

    @property
    def used(self) -> int:
        """What is held, in bytes."""
        return sum(self._parts)

    def check(self, more: int) -> None:
        """Raises SpoolFull if so many bytes do not fit now."""
        if self.used + more > self.max_bytes:
            raise SpoolFull("Other uploads fill the spool. Send it again later, or raise OSTEON_MAX_SPOOL_BYTES")
        try:
            disk = os.statvfs(self.folder)
        except FileNotFoundError:  # the first upload makes it
            return
        except OSError as error:
            raise _unwritable(error) from error
        reserve = min(self.reserve, disk.f_blocks * disk.f_frsize // RESERVED_SHARE)
        if disk.f_bavail * disk.f_frsize - more < reserve:
            raise SpoolFull(
                "The disk where uploads wait has no room beyond what is reserved for the database. Free some, or set "
                "OSTEON_SPOOL_DIR to a folder on a larger disk"
            )

    def reserve_bytes(self, more: int) -> None:
        """Count bytes that are written next. Raises SpoolFull."""
        with self._lock:
            self.check(more)
            self._parts[self._own] += more

    def release_bytes(self, less: int) -> None:
        """Count bytes off again."""
        with self._lock:
            self._parts[self._own] -= less


class Limiters:
    """Threads of uploads, apart from those of pages and everything else.

    Some write what comes in, others work on requests that are complete: however long the work takes, bodies are still
    received, and a slow body delays no work.
    """

    def __init__(self, threads: int) -> None:
        self.receiving, self.working = CapacityLimiter(threads), CapacityLimiter(threads)

    async def receive(self, work: Callable[..., T], *args: object) -> T:
        """Run a function in a thread that writes what comes in.

        Args:
            work: the function.
            *args: its arguments.

        Returns:
            What it returns.
        """
        return await to_thread.run_sync(partial(work, *args), limiter=self.receiving)

    async def work(self, work: Callable[..., T], *args: object) -> T:
        """Run a function in a thread that works on complete requests.

        Args:
            work: the function.
            *args: its arguments.

        Returns:
            What it returns.
        """
        return await to_thread.run_sync(partial(work, *args), limiter=self.working)


@dataclass(frozen=True)
class SpooledFile:
    """A file of the request, in the spool."""

    name: str  # as the client called it; never used as a path, never logged
    offset: int
    size_bytes: int
    sha256: str
    start: bytes = field(repr=False)  # its first HEAD_BYTES
    own: "LargeFile | None" = None  # where it lies alone; None: in the file that small ones share
    spool: "Spool | None" = field(default=None, repr=False, compare=False)  # that it lies in


class RequestTooLarge(BadRequest):
    """The request is over this installation's limits. Split it into several requests."""


class SpoolFull(Unavailable):
    """The disk where uploads wait has no room. Free some, or set OSTEON_SPOOL_DIR to a larger one."""


class WrongContentType(BadRequest):
    """Send the files as multipart/form-data, each in a part with a file name."""


class LargeFile:
    """A file that holds one upload and nothing else, so that a store on this disk can take it over."""

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
        """Close it, after a flush that still runs: the number would be another file's by then."""
        if self._flushed is None:
            self._close(None)
        else:
            self._flushed.add_done_callback(self._close)

    def _close(self, _flushed: object) -> None:
        os.close(self.descriptor)
        OPEN_LARGE_FILES.release()


class Spool:
    """The files of one request in unnamed files: small ones one behind the other, large ones each in its own.

    So a request has few descriptors, however many files it has, and no large file is written twice.
    """

    def __init__(self, folder: Path | None, budget: SpoolBudget | None = None, *, own_files: bool = False) -> None:
        """budget: what all spools share; own_files: whether a store can take large files over.

        Raises OSError when the disk cannot be written.
        """
        self._budget = budget or SpoolBudget(folder, 1 << 62, 0)
        self._taken = 0  # bytes of that budget
        self.folder = folder or Path(tempfile.gettempdir())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.end = 0  # bytes taken in, those still pending too
        self._shared_end = 0
        self._pending = bytearray()
        self._own_files = own_files and hasattr(os, "O_TMPFILE")
        self._owned: list[LargeFile] = []
        self._shared: int | None = None
        self._spare: int | None = self._unnamed()  # the first file, whatever it will hold

    def open(self, spooled: SpooledFile) -> BinaryIO:
        """A reader of one flushed file, also of another spool's; independent of all others."""
        shared = (spooled.spool or self)._shared  # noqa: SLF001 - of this class
        descriptor = spooled.own.descriptor if spooled.own else shared
        assert descriptor is not None or not spooled.size_bytes, "not flushed"
        return cast(
            "BinaryIO", io.BufferedReader(_FileSlice(descriptor or 0, spooled.offset, spooled.size_bytes), 65536)
        )

    def begin(self, name: str) -> "IncomingFile":
        """A file that comes in pieces; finish it before the next one begins."""
        return IncomingFile(self, name)

    def append(self, name: str, chunks: Iterator[bytes]) -> SpooledFile:
        """Add a whole file, as from an archive.

        Args:
            name: as the client called it.
            chunks: its bytes.

        Returns:
            The file, readable.

        Raises:
            SpoolFull: there is no room. Errors of the chunks pass through.
        """
        incoming = self.begin(name)
        for chunk in chunks:
            incoming.write(chunk)
        spooled = incoming.finish()
        self.flush()
        return spooled

    def flush(self) -> None:
        """Make all bytes readable. Raises SpoolFull."""
        if self._pending:
            if self._shared is None:
                self._shared = self._take()
            # as bytes: while a view of it is held, as by an error's traceback, it cannot be cleared
            self.write(self._shared, [bytes(self._pending)], self._shared_end - len(self._pending))
            self._pending.clear()

    def write(self, descriptor: int, parts: "Sequence[bytes | bytearray | memoryview[int]]", at: int) -> None:
        """Write to one of the spool's files.

        Args:
            descriptor: of the file.
            parts: all of them are written, one behind the other.
            at: position in the file, in bytes.

        Raises:
            SpoolFull: there is no room on the disk, or all spools together hold too much.
        """
        size = sum(map(len, parts))
        self._budget.reserve_bytes(size)
        self._taken += size
        write(descriptor, parts, at)

    def keep(self, content: bytes | bytearray) -> int:
        """Add a small file's bytes, or more of a large one, to the shared file; returns where they start."""
        start = self._shared_end
        self._pending += content
        self._shared_end += len(content)
        if len(self._pending) >= WRITE_BYTES:
            self.flush()
        return start

    def own_file(self) -> LargeFile | None:
        """A file for a large upload alone, or None if no store can use it or too many are open. Raises SpoolFull."""
        if not self._own_files or not OPEN_LARGE_FILES.acquire(blocking=False):
            return None
        try:
            owned = LargeFile(self._take())
        except BaseException:
            OPEN_LARGE_FILES.release()
            raise
        self._owned.append(owned)
        return owned

    def close(self) -> None:
        """Free its disk space. Never waits for the disk."""
        for owned in self._owned:
            owned.close()
        for descriptor in (self._shared, self._spare):
            if descriptor is not None:
                os.close(descriptor)
        self._owned, self._shared, self._spare = [], None, None
        self._budget.release_bytes(self._taken)
        self._taken = 0

    def _take(self) -> int:
        descriptor, self._spare = self._spare, None
        try:
            return self._unnamed() if descriptor is None else descriptor
        except OSError as error:
            raise _unwritable(error) from error

    def _unnamed(self) -> int:
        if self._own_files:
            try:
                return os.open(self.folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in (errno.EISDIR, errno.EOPNOTSUPP, errno.ENOENT):
                    raise
                self._own_files = False  # a file system without unnamed files: NFS
        with tempfile.TemporaryFile(dir=self.folder, buffering=0) as file:
            return os.dup(file.fileno())


class IncomingFile:
    """A file of the request while it comes, hashed on its way; a large one moves to a file of its own."""

    def __init__(self, spool: Spool, name: str) -> None:
        self.spool, self.name = spool, name
        self.size_bytes = 0
        self._digest = hashlib.sha256()
        self._head = b""
        self._start: int | None = None  # in the shared file, once its first bytes are there
        self._held = bytearray()  # until it is known whether it is large
        self._own: LargeFile | None = None

    def write(self, *parts: "bytes | memoryview[int]") -> None:
        """Add the next bytes. Raises SpoolFull."""
        size = 0
        for part in parts:
            self._digest.update(part)
            size += len(part)
            if len(self._head) < HEAD_BYTES:
                self._head += bytes(part[: HEAD_BYTES - len(self._head)])
        self.size_bytes += size
        self.spool.end += size
        if self._own is not None:
            self.spool.write(self._own.descriptor, parts, self.size_bytes - size)
            return
        if self._start is not None:
            self.spool.keep(b"".join(parts))
            return
        for part in parts:
            self._held += part
        if len(self._held) >= WRITE_BYTES:
            self._own = self.spool.own_file()
            if self._own is not None:
                self.spool.write(self._own.descriptor, [self._held], 0)
            else:
                self._start = self.spool.keep(self._held)
            self._held = bytearray()

    def finish(self) -> SpooledFile:
        """End the file; a large one begins to be flushed. Raises SpoolFull."""
        if self._own is not None:
            self._own.flush()
        elif self._start is None:
            self._start = self.spool.keep(self._held)
        return SpooledFile(
            self.name, self._start or 0, self.size_bytes, self._digest.hexdigest(), self._head, self._own, self.spool
        )


def _unwritable(error: OSError) -> SpoolFull:
    return SpoolFull(f"The disk where uploads wait cannot be written: {error.strerror}. Check OSTEON_SPOOL_DIR")


def write(descriptor: int, parts: "Sequence[bytes | bytearray | memoryview[int]]", at: int) -> None:
    """Write to a file.

    Args:
        descriptor: of the file.
        parts: all of them are written, one behind the other.
        at: position in the file, in bytes.

    Raises:
        SpoolFull: there is no room.
    """
    left = [memoryview(part) for part in parts if part]
    while left:
        try:
            done = os.pwritev(descriptor, left, at)
        except OSError as error:
            raise SpoolFull from error
        at += done
        while left and done >= len(left[0]):
            done -= len(left.pop(0))
        if done:
            left[0] = left[0][done:]


@contextmanager
def open_spool(folder: Path | None, budget: SpoolBudget | None = None, *, own_files: bool = False) -> Iterator[Spool]:
    """Open a spool that is gone, with its disk space, when the block ends or the process dies.

    Args:
        folder: for its files; None: the system's folder for temporary files.
        budget: what all spools share; None: no limit.
        own_files: whether a store can take large files over.

    Yields:
        The spool.

    Raises:
        SpoolFull: the disk cannot be written.
    """
    try:
        spool = Spool(folder, budget, own_files=own_files)
    except OSError as error:
        raise _unwritable(error) from error
    try:
        yield spool
    finally:
        spool.close()


class PositionedReader(io.RawIOBase):
    """A file of which bytes can be read from any position; subclasses say how."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes, self.position = size_bytes, 0

    @abstractmethod
    def read_at(self, position: int, size: int) -> bytes:
        """Read bytes.

        Args:
            position: offset of the first one, in bytes.
            size: how many, at least 1; all of them lie within the file.

        Returns:
            The bytes.
        """

    def readable(self) -> bool:
        """As a file."""
        return True

    def seekable(self) -> bool:
        """As a file."""
        return True

    def tell(self) -> int:
        """As a file."""
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, as a file.

        Args:
            offset: bytes, from there.
            whence: os.SEEK_SET, SEEK_CUR or SEEK_END.

        Returns:
            The new position.

        Raises:
            OSError: it would be before the start.
        """
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size_bytes}[whence]
        if base + offset < 0:
            raise OSError("cannot seek to before the start")
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        """As a file. Raises what `read_at` raises."""
        size = max(0, min(len(buffer), self.size_bytes - self.position))
        data = self.read_at(self.position, size) if size else b""
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


class _FileSlice(PositionedReader):
    """A stretch of a file as a file; reads by position, so several windows can be read at once."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        super().__init__(size)
        self.descriptor, self.start = descriptor, start

    def read_at(self, position: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, self.start + position)


async def receive(
    body: AsyncIterator[bytes],
    content_type: str,
    spool: Spool,
    max_bytes: int,
    max_files: int,
    limiters: Limiters | None = None,
) -> tuple[list[SpooledFile], dict[str, str]]:
    """Write a multipart/form-data body to the spool.

    Args:
        body: pieces of the body; its errors pass through, as when the client disconnects.
        content_type: of the request.
        spool: for the files.
        max_bytes: the largest body.
        max_files: the most files in it.
        limiters: threads that write; None: one of its own.

    Returns:
        The files, and the values of the other fields by name.

    Raises:
        WrongContentType: this is no multipart/form-data.
        BadRequest: the body is not what its type says.
        RequestTooLarge: the body is over the limits.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise WrongContentType
    parts = _PartCollector(spool, max_files)
    try:
        await parse(body, MultipartParser(options[b"boundary"], parts.callbacks()), spool, max_bytes, limiters)
    except FormParserError:
        # its text may quote the body
        raise BadRequest(
            "The multipart body is malformed, or its boundary or a part's header is too long; send it as RFC 7578 says"
        ) from None
    if not parts.complete:
        raise BadRequest(CUT_SHORT)
    return parts.files, parts.fields


class Parser(Protocol):
    """Takes a body piece by piece, in one thread at a time, and writes its files to a spool."""

    def write(self, data: bytes) -> object:
        """Take the next bytes. May raise BadRequest, SpoolFull and FormParserError."""

    def finalize(self) -> None:
        """Take the end. May raise as `write`."""


async def parse(
    body: AsyncIterator[bytes], parser: Parser, spool: Spool, max_bytes: int, limiters: Limiters | None = None
) -> None:
    """Have a parser write a body to the spool; then all files in it are readable.

    Args:
        body: pieces of the body; its errors pass through, as when the client disconnects.
        parser: of the body; what it raises passes through.
        spool: for the files.
        max_bytes: the largest body.
        limiters: threads that write; None: one of its own.

    Raises:
        RequestTooLarge: the body is over the limit.
    """
    run = (limiters or Limiters(1)).receive
    received = 0
    async with _BackgroundParser(parser, run) as parsing:
        async for chunk in body:
            received += len(chunk)
            if received > max_bytes:
                raise RequestTooLarge(f"The request is larger than {max_bytes} bytes. Split it into several requests.")
            await parsing.add(chunk)
        await parsing.finish()
    await run(spool.flush)


class _BackgroundParser:
    """Parses a body in a thread, a batch at a time, while the next bytes come in.

    Hashing and disk would hold up every other request if they ran in the event loop. Two batches at most wait.
    """

    def __init__(self, parser: Parser, run: Callable[..., Coroutine[Any, Any, None]]) -> None:
        self._parser, self._run = parser, run
        self._chunks: list[bytes] = []
        self._waiting = 0  # bytes in chunks
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task])  # it writes to the spool, which is closed next

    async def add(self, chunk: bytes) -> None:
        """Take the next bytes. Raises what parsing earlier ones has raised."""
        self._chunks.append(chunk)
        self._waiting += len(chunk)
        if self._waiting >= BATCH_BYTES:
            await self._begin()

    async def finish(self) -> None:
        """Parse what is left. Raises what parsing it raises."""
        await self._begin()
        assert self._task is not None
        await self._task
        self._parser.finalize()

    async def _begin(self) -> None:
        if self._task is not None:
            await self._task
        self._task = asyncio.create_task(self._run(self._parse, self._chunks))
        self._chunks, self._waiting = [], 0

    def _parse(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            self._parser.write(chunk)


_EXTENDED = re.compile(r';\s*filename\*(\d{0,3})(\*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;]*)', re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


def extended_name(disposition: bytes) -> str | None:
    """Read the file name of a part that has it in extended form only, whole or in numbered pieces.

    RFC 7578 4.2 forbids that form here, and some clients send no other. Source: RFC 8187 3.2, RFC 2231 3 and 4.

    Args:
        disposition: the header Content-Disposition.

    Returns:
        The name, U+FFFD for what cannot be decoded; None if there is none.
    """
    text = disposition.decode("latin-1")
    quoted = [found.span() for found in _QUOTED.finditer(text)]
    pieces, charset = [], "utf-8"
    for found in _EXTENDED.finditer(text):
        if any(begin < found.start() < end for begin, end in quoted):
            continue  # it is within another parameter's value
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


class _PartCollector:
    """Turns the parser's calls into files and fields."""

    def __init__(self, spool: Spool, max_files: int) -> None:
        self.spool, self.max_files = spool, max_files
        self.files: list[SpooledFile] = []
        self.fields: dict[str, str] = {}
        self.complete = False
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._field: str | None = None
        self._file: IncomingFile | None = None
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
            raise BadRequest("A part's header is too long; shorten the file's name")

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        kind, options = parse_options_header(disposition)
        if kind != b"form-data":
            raise BadRequest("A part has no header Content-Disposition: form-data; add it")
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
