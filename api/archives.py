"""Zip archives in an upload: unpacked into the spool, within bounds, one level deep, names never used as paths."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from api.ingest import Spool, SpooledFile
from shared.errors import BadArchive, Rejected, TooLarge

MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
END_RECORD = 22  # bytes, PKZIP APPNOTE 4.3.16
MAX_DIRECTORY_BYTES = 16 * 2**20
CHUNK = 1 << 20


def is_archive(spool: Spool, file: SpooledFile) -> bool:
    """Whether a file starts as zip archives do, whatever it is called."""
    with spool.open(file) as reader:
        return reader.read(4) in MAGIC


def unpack(
    spool: Spool, archive: SpooledFile, max_files: int, max_bytes: int, max_ratio: int
) -> Iterator[SpooledFile | tuple[str, Rejected]]:
    """Each member as a spooled file, or its name with the reason why it was left out.

    Raises BadArchive or TooLarge if the archive as a whole cannot be used.
    """
    _check_directory(spool, archive, max_files)
    left = min(max_bytes, archive.size_bytes * max_ratio)
    try:
        with zipfile.ZipFile(spool.open(archive)) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
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
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, struct.error, ValueError, OSError):
        raise BadArchive("The zip archive is damaged; pack it again") from None


def _check_directory(spool: Spool, archive: SpooledFile, max_files: int) -> None:
    """Look at the end record before zipfile reads the whole directory into memory."""
    with spool.open(archive) as reader:
        reader.seek(max(0, archive.size_bytes - END_RECORD - 65535))
        tail = reader.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < END_RECORD:
        raise BadArchive("The zip archive has no end: it was cut short; send it again")
    _, _, _, _, entries, directory_bytes, _, _ = struct.unpack("<4s4H2LH", tail[at : at + END_RECORD])
    if entries > max_files or directory_bytes > MAX_DIRECTORY_BYTES:
        raise TooLarge(f"The archive holds more than {max_files} files. Split it into several archives.")


def _check_member(member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise BadArchive("The name of this member points outside the archive; it is left out")
    if member.flag_bits & 0x1:
        raise BadArchive("This member is encrypted; pack the archive without a password")


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
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise BadArchive("This member of the archive is damaged") from None
