"""Zip archives in an upload: unpacked into the spool, each member a file of the request."""

from collections.abc import Iterator

from api.ingest import Spool, SpooledFile
from shared.archives import HEAD_BYTES, Bounds, check_member, chunks, opened, starts_as_archive
from shared.errors import BadArchive, Rejected


def is_archive(spool: Spool, file: SpooledFile) -> bool:
    """Whether a file starts as zip archives do, whatever it is called; a DICOM preamble may do so, too."""
    with spool.open(file) as reader:
        return starts_as_archive(reader.read(HEAD_BYTES))


def unpack(
    spool: Spool, archive: SpooledFile, max_files: int, max_bytes: int, max_ratio: int
) -> Iterator[SpooledFile | tuple[str, Rejected]]:
    """Each member as a spooled file, or its name with the reason why it was left out.

    Raises BadArchive or TooLarge if the archive as a whole cannot be used.
    """
    left = min(max_bytes, archive.size_bytes * max_ratio)
    bounds = Bounds(max_files, max_bytes, max_ratio)
    with spool.open(archive) as file, opened(file, archive.size_bytes, bounds) as (unpacked, members):
        for member in members:
            name = f"{archive.name}!{member.filename}"
            try:
                check_member(member)
                spooled = spool.append(name, chunks(unpacked, member, left))
            except Rejected as why:
                yield name, why
                continue
            left -= spooled.size_bytes
            if is_archive(spool, spooled):
                yield name, BadArchive("An archive within an archive is not opened; send its files themselves")
            else:
                yield spooled
