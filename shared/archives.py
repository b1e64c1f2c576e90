"""Zip archives from outside: listed and read within bounds, one level deep, names never used as paths."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, BinaryIO, cast

from shared.errors import BadArchive, TooLarge

MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
HEAD_BYTES = 132
MAX_DIRECTORY_BYTES = 4 * 2**20
CHUNK = 1 << 20
SPLIT = "Split it into several archives."
NESTED = "An archive within an archive is not opened"
# what zipfile raises on damaged archives
DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, LookupError,
    OSError,
)  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """What one archive may hold."""

    max_files: int
    max_bytes: int  # unpacked
    max_ratio: int  # of that to the archive's own size


def starts_as_archive(start: bytes) -> bool:
    """Recognise a zip archive by its first bytes, whatever its name; a DICOM preamble may begin like one.

    Args:
        start: a file's first HEAD_BYTES, or more.

    Returns:
        Whether it is an archive.
    """
    return start[:4] in MAGIC and start[128:132] != b"DICM"


@contextmanager
def open_archive(
    file: BinaryIO, size_bytes: int, bounds: Bounds
) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """Open an archive, and list its members.

    Args:
        file: seekable, at its start.
        size_bytes: size of the file.
        bounds: what it may hold.

    Yields:
        The archive, and those of its members that are files.

    Raises:
        BadArchive: it is damaged or empty; also for damage that shows inside the `with` block.
        TooLarge: it is beyond the bounds.
    """
    left = min(bounds.max_bytes, size_bytes * bounds.max_ratio)
    try:
        with zipfile.ZipFile(cast("IO[bytes]", BoundedFile(file))) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if not members:
                raise BadArchive("The archive holds no file", hint="Pack it again.")
            if len(members) > bounds.max_files:
                raise TooLarge(
                    f"The archive holds more than the {bounds.max_files} files that this request may still have",
                    hint="Split it into several archives, and send each in a request of its own.",
                )
            if sum(member.file_size for member in members) > left:
                raise TooLarge(f"The archive expands to more than {left} bytes", hint=SPLIT)
            yield archive, members
    except DAMAGED:
        raise BadArchive("The zip archive is damaged or was cut short", hint="Pack it again.") from None


class BoundedFile:
    """A file that refuses large reads: zipfile reads the directory in one piece, as large as the archive claims."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        """Read as a file does. Raises TooLarge beyond MAX_DIRECTORY_BYTES."""
        if size > MAX_DIRECTORY_BYTES:
            raise TooLarge("The archive's directory is too large", hint=SPLIT)
        return self.file.read(size)


def check_member(member: zipfile.ZipInfo) -> None:
    """Raises BadArchive for a member that must not be opened."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
        raise BadArchive("The name of this member points outside the archive", hint="Pack it under another name.")
    if member.flag_bits & 0x1:
        raise BadArchive("This member is encrypted", hint="Pack the archive without a password.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python expands the other methods without a bound on memory
        raise BadArchive("This member is neither stored nor deflated", hint="Pack the archive with the usual method.")


def chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int) -> Iterator[bytes]:
    """Read a member, and count its bytes as they come, for a directory can lie about sizes.

    Args:
        archive: opened by `open_archive`.
        member: one of its members, checked by `check_member`.
        max_bytes: how many bytes it may have.

    Yields:
        Up to CHUNK bytes.

    Raises:
        BadArchive: the member is damaged.
        TooLarge: it has more than `max_bytes` bytes.
    """
    total = 0
    try:
        with archive.open(member) as file:
            while chunk := file.read(CHUNK):
                total += len(chunk)
                if total > max_bytes:
                    raise TooLarge("The archive expands beyond the limits", hint=SPLIT)
                yield chunk
    except DAMAGED:
        raise BadArchive("This member of the archive is damaged") from None


def member_of(file: BinaryIO, size_bytes: int, name: str, bounds: Bounds, max_bytes: int) -> bytes:
    """Read one member of an archive.

    Args:
        file: the archive; seekable, at its start.
        size_bytes: size of the archive.
        name: of the member, as in the archive's directory.
        bounds: what the archive may hold.
        max_bytes: how many bytes the member may have.

    Returns:
        The member's bytes.

    Raises:
        BadArchive: the archive or the member is damaged, encrypted, missing, or an archive itself.
        TooLarge: the archive or the member is beyond its bounds.
    """
    with open_archive(file, size_bytes, bounds) as (archive, members):
        member = next((member for member in members if member.filename == name), None)
        if member is None:
            raise BadArchive("The archive changed while it was read")
        check_member(member)
        content = b"".join(chunks(archive, member, max_bytes))
    if starts_as_archive(content[:HEAD_BYTES]):
        raise BadArchive(NESTED, hint="Send its files themselves.")
    return content
