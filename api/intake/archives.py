"""Zip archives in an upload: unpacked into the spool, each member a file of the request."""

from collections.abc import Iterator

from api.spool import Spool, SpooledFile
from shared.archives import NESTED, Bounds, check_member, chunks, open_archive, starts_as_archive
from shared.errors import BadArchive, Rejected


def unpack_archive(
    spool: Spool, archive: SpooledFile, max_files: int, max_bytes: int, max_ratio: int
) -> Iterator[SpooledFile | tuple[str, Rejected]]:
    """Unpack an archive into the spool.

    Args:
        spool: of the request.
        archive: a file in it.
        max_files: the most members.
        max_bytes: the most bytes that all members together may have.
        max_ratio: of that to the archive's own size.

    Yields:
        Each member as a file of the spool, or its name with the reason why it was left out.

    Raises:
        BadArchive: the archive cannot be opened.
        TooLarge: the archive is beyond the bounds.
    """
    left = min(max_bytes, archive.size_bytes * max_ratio)
    bounds = Bounds(max_files, max_bytes, max_ratio)
    with spool.open(archive) as file, open_archive(file, archive.size_bytes, bounds) as (unpacked, members):
        for member in members:
            name = f"{archive.name}!{member.filename}"
            try:
                check_member(member)
                spooled = spool.append(name, chunks(unpacked, member, left))
            except Rejected as error:
                yield name, error
                continue
            left -= spooled.size_bytes
            if starts_as_archive(spooled.start):
                yield name, BadArchive(NESTED, hint="Send its files themselves.")
            else:
                yield spooled
