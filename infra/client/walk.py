"""Finds the files to send, one after the other: the first one is sent before the last one is found."""

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from shared.archives import DAMAGED, HEAD_BYTES, BoundedFile, starts_as_archive
from shared.errors import OsteonError, TooLarge

FILES_PER_REQUEST = 50
BYTES_PER_REQUEST = 64 * 2**20
# an archive is sent as it is within these bounds, which lie far under the API's own; else member by member
MAX_MEMBERS = 1000
MAX_EXPANDED_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Stamp:
    """Size and time of a file on the disk, which change when its content does."""

    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Item:
    """What the API will get as one file: a file, an archive as it is, or one member of an archive."""

    name: str  # as the receipt shows it: the path within the place given, or archive!member
    path: Path
    stamp: Stamp  # of the file on the disk
    size_bytes: int  # that are sent
    member: str | None = None  # its name within the archive at `path`
    files: int = 1  # how many the receipt will name: more than one for an archive


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip archive: its members, and whether it may be sent as it is."""

    whole: Item
    members: tuple[Item, ...]
    sendable: bool


@dataclass(frozen=True, slots=True)
class UnreadablePath:
    """A file or folder that this process cannot read."""

    name: str
    path: Path
    why: str


Found = Item | Archive | UnreadablePath


def walk(places: Sequence[Path], *, look_inside: bool = True) -> Iterator[Found]:
    """Find all files in these files and folders, in order of their names; hidden ones are left out.

    A folder is entered once, however many links lead to it.

    Args:
        places: files and folders.
        look_inside: tell archives by their first bytes, whatever they are called; else only what is called .zip is
            opened.

    Returns:
        An iterator over what is found.

    Raises:
        OsteonError: A place does not exist; raised at once, before the first file is asked for.
    """
    for place in places:
        if not place.exists():
            raise OsteonError(f"{place} does not exist; check the path")
    return _all(places, look_inside)


def _all(places: Sequence[Path], look_inside: bool) -> Iterator[Found]:  # noqa: FBT001 - as above
    entered: set[tuple[int, int]] = set()
    for place in places:
        if place.is_dir():
            yield from _folder(place, "", entered, look_inside)
        else:
            yield from _file(place, place.name, look_inside)


def _folder(folder: Path, prefix: str, entered: set[tuple[int, int]], look_inside: bool) -> Iterator[Found]:  # noqa: FBT001
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield UnreadablePath(prefix.rstrip("/") or str(folder), folder, _why(error))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path, name = folder / entry.name, prefix + entry.name
        if entry.is_dir():
            yield from _folder(path, f"{name}/", entered, look_inside)
        elif entry.is_file() or entry.is_symlink():  # a broken link is reported; pipes and devices are no files
            yield from _file(path, name, look_inside)


def _file(path: Path, name: str, look_inside: bool) -> Iterator[Found]:  # noqa: FBT001
    try:
        status = path.stat()
        item = Item(name, path, Stamp(status.st_size, status.st_mtime_ns), status.st_size)
        archive = _is_archive(path) if look_inside else name.lower().endswith(".zip")
    except OSError as error:
        yield UnreadablePath(name, path, _why(error))
        return
    yield (_archive(item) if archive else None) or item


def _is_archive(path: Path) -> bool:
    """Recognise a zip archive as the API does: by its first bytes, except those of a DICOM file's preamble."""
    with path.open("rb") as file:
        return starts_as_archive(file.read(HEAD_BYTES))


def _archive(whole: Item) -> Archive | None:
    """List an archive's members; None if that fails: then the API gets it is, and says what is wrong."""
    try:
        with whole.path.open("rb") as file, zipfile.ZipFile(cast("IO[bytes]", BoundedFile(file))) as opened:
            listed = [member for member in opened.infolist() if not member.is_dir()]
    except (*DAMAGED, TooLarge):
        return None
    members = tuple(
        Item(f"{whole.name}!{each.filename}", whole.path, whole.stamp, each.file_size, each.filename)
        for each in listed
        if not _hidden(each.filename)
    )
    small = (
        whole.size_bytes <= BYTES_PER_REQUEST
        and len(listed) <= MAX_MEMBERS
        and sum(each.file_size for each in listed) <= MAX_EXPANDED_BYTES
    )
    whole = Item(whole.name, whole.path, whole.stamp, whole.size_bytes, None, max(1, len(members)))
    # an archive that holds hidden files (macOS adds some) is sent without them
    return Archive(whole, members, small and len(members) == len(listed)) if members else None


def _hidden(member: str) -> bool:
    parts = PurePosixPath(member).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__


def groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Put items into groups, one a request: at most 50 files and 64 MiB, but that one item may be larger alone."""
    group: list[Item] = []
    files = size = 0
    for item in items:
        if group and (files + item.files > FILES_PER_REQUEST or size + item.size_bytes > BYTES_PER_REQUEST):
            yield group
            group, files, size = [], 0, 0
        group.append(item)
        files += item.files
        size += item.size_bytes
    if group:
        yield group


def files_in(places: Sequence[Path]) -> list[tuple[Path, str]]:
    """List all files in these places with their names; an archive is one. Raises OsteonError if one is unreadable."""
    found = []
    for each in walk(places, look_inside=False):
        if isinstance(each, UnreadablePath):
            raise OsteonError(f"{each.name} cannot be read: {each.why}")
        item = each.whole if isinstance(each, Archive) else each
        found.append((item.path, item.name))
    return found
