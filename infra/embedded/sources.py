"""Finds the parts of a stack that run older code than the files now hold, for `osteon up --reload`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SUFFIXES = (".py", ".html", ".css", ".js")
Stamp = tuple[int, int]  # time of the last change in ns, size in bytes


class Sources:
    """The files below some folders. They are looked at without a service of the operating system: 150 take 2 ms."""

    def __init__(self, parts: Mapping[str, Sequence[Path]]) -> None:
        """Take for each part, by name, the folders and files that it loads."""
        self._parts = parts
        self._told = self._last = self._look()

    def changed(self) -> dict[str, Path]:
        """Find the parts whose files differ from what was returned last.

        A change is returned once two looks in a row see the same: an editor, or a checkout, writes many files one by
        one.

        Returns:
            One changed file for each of these parts.
        """
        now = self._look()
        unchanged, self._last = now == self._last, now
        if not unchanged:
            return {}
        files = {path for path in now.keys() | self._told.keys() if now.get(path) != self._told.get(path)}
        self._told = now
        found = {}
        for part, places in self._parts.items():
            if own := [path for path in files if any(path.is_relative_to(place) for place in places)]:
                found[part] = min(own)
        return found

    def _look(self) -> dict[Path, Stamp]:
        found = {}
        for place in {place for places in self._parts.values() for place in places}:
            for path in _files(place):
                try:
                    stat = path.stat()
                except OSError:  # removed meanwhile
                    continue
                found[path] = (stat.st_mtime_ns, stat.st_size)
        return found


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    for folder, _, names in os.walk(place):
        for name in names:
            if name.endswith(SUFFIXES):
                yield Path(folder, name)
