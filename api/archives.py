"""Zip archives in an upload: unpacked into the spool, within bounds, one level deep, names never used as paths."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from api.ingest import Spool, SpooledFile
from shared.errors import BadArchive, Rejected, TooLarge

MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
MAX_DIRECTORY_BYTES = 4 * 2**20
CHUNK = 1 << 20
# what zipfile raises on damaged archives
DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, LookupError,
    OSError,
)  # fmt: skip


def is_archive(spool: Spool, file: SpooledFile) -> bool:
    """Whether a file starts as zip archives do, whatever it is called; a DICOM preamble may do so, too."""
    with spool.open(file) as reader:
        start = reader.read(132)
    return start[:4] in MAGIC and start[128:] != b"DICM"


def unpack(
    spool: Spool, archive: SpooledFile, max_files: int, max_bytes: int, max_ratio: int
) -> Iterator[SpooledFile | tuple[str, Rejected]]:
    """Each member as a spooled file, or its name with the reason why it was left out.

    Raises BadArchive or TooLarge if the archive as a whole cannot be used.
    """
    left = min(max_bytes, archive.size_bytes * max_ratio)
    try:
        with spool.open(archive) as file, zipfile.ZipFile(_Frugal(file)) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            if not members:
                raise BadArchive("The archive holds no file; pack it again")
            if len(members) > max_files:
                raise TooLarge(f"The archive holds more than the {max_files} files that this request may still have")
            if sum(member.file_size for member in members) > left:
                raise TooLarge(f"The archive expands to more than {left} bytes: it is refused unopened")
            for member in members:
                name = f"{archive.name}!{member.filename}"
                try:
                    _check_member(member)
                    spooled = spool.append(name, _read(opened, member, left))
                except Rejected as why:
                    yield name, why
                    continue
                left -= spooled.size_bytes
                if is_archive(spool, spooled):
                    yield name, BadArchive("An archive within an archive is not opened; send its files themselves")
                else:
                    yield spooled
    except DAMAGED:
        raise BadArchive("The zip archive is damaged or was cut short; pack it again") from None


class _Frugal:
    """A file that refuses large reads: zipfile reads the directory in one piece, as large as the archive claims."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        """As a file's read. Raises TooLarge."""
        if size > MAX_DIRECTORY_BYTES:
            raise TooLarge("The archive's directory is too large. Split it into several archives.")
        return self.file.read(size)


def _check_member(member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
        raise BadArchive("The name of this member points outside the archive; it is left out")
    if member.flag_bits & 0x1:
        raise BadArchive("This member is encrypted; pack the archive without a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python expands the other methods without a bound on memory
        raise BadArchive("This member is neither stored nor deflated; pack the archive with the usual method")


def _read(opened: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> Iterator[bytes]:
    """The member's bytes, counted as they come, for a directory can lie about sizes."""
    total = 0
    try:
        with opened.open(member) as file:
            while chunk := file.read(CHUNK):
                total += len(chunk)
                if total > most:
                    raise TooLarge("The archive expands beyond the limits")
                yield chunk
    except DAMAGED:
        raise BadArchive("This member of the archive is damaged") from None
