"""A record on the sender's disk of what was stored, so that an interruption costs only the requests under way."""

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from infra.client.body import SendError, sha256_of
from infra.client.walk import Item, Stamp
from shared.domain.study import Priority
from shared.errors import OsteonError

SOONEST_FIRST: tuple[str, ...] = (Priority.URGENT, Priority.ROUTINE, Priority.BACKLOG)


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A file that the API has: its stamp when it was sent, the API's identifiers, and the priority asked for."""

    stamp: Stamp
    sha256: str
    study_id: str
    sop_instance_uid: str
    priority: str = Priority.ROUTINE


Key = tuple[str, str | None]  # absolute path, and the member's name of what lies in an archive


def state_folder() -> Path:
    """Find where this user's journals and receipts lie (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "osteon"


def default_path(url: str, places: Sequence[Path]) -> Path:
    """Choose the journal of sending these places to this API.

    Args:
        url: of the API.
        places: files and folders, in any order.

    Returns:
        A path that is the same for the same places.
    """
    what = "\n".join([url, *sorted(str(place.resolve()) for place in places)])
    return state_folder() / "journals" / f"{hashlib.sha256(os.fsencode(what)).hexdigest()[:24]}.jsonl"


class Journal:
    """JSON lines, one a stored file, added and flushed to the disk as each request is answered.

    A line that was cut off, because this computer died, is passed over. Only its owner may read it: file names may name
    patients. Raises OsteonError while another process sends by it, OSError where it cannot be written.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._file = io.FileIO(descriptor, "r+")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise OsteonError(f"Another osteon submit is sending by {path}; wait for its end, or end it") from None
        if fresh:
            self._file.truncate(0)
        entries = dict(_entries(self._file.readall()))
        self._known = {key: known for key, known in entries.items() if known is not None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._known)

    def verify(self, images: Callable[[Collection[str]], Mapping[str, int]]) -> int:
        """Forget each study of which the API has fewer images than were stored.

        Without it a journal would outlive the data: after a restored backup, say, files would never be sent again.

        Args:
            images: tells how many images the API has of each of these study ids; may leave out those without any.

        Returns:
            How many files were forgotten.
        """
        stored: dict[str, set[str]] = {}
        for known in self._known.values():
            stored.setdefault(known.study_id, set()).add(known.sop_instance_uid)
        there = images(stored)
        gone = {study_id for study_id, instances in stored.items() if there.get(study_id, 0) < len(instances)}
        lost = [key for key, known in self._known.items() if known.study_id in gone]
        for key in lost:
            del self._known[key]
        # for good: else a file that is no longer here would have its study's other files sent again each time
        self._write([{"path": path, "member": member, "forgotten": True} for path, member in lost])
        return len(lost)

    def stored(self, item: Item, priority: str = Priority.BACKLOG) -> JournalEntry | None:
        """Find what the API has of a file that is unchanged: by size and time, or else by content.

        Args:
            item: as it lies on the disk now.
            priority: wanted for its study now.

        Returns:
            None where it must be sent: it is unknown or changed, or wanted sooner than before, so that its study moves
            up.
        """
        known = self._known.get(_key(item))
        if known is not None and SOONEST_FIRST.index(priority) < SOONEST_FIRST.index(known.priority):
            return None
        if known is None or known.stamp == item.stamp:
            return known
        if known.stamp.size_bytes != item.stamp.size_bytes or not known.sha256:
            return None
        try:
            return known if sha256_of(item) == known.sha256 else None
        except SendError:
            return None  # sending will say what is wrong with it

    def add(self, stored: Iterable[tuple[Item, JournalEntry]]) -> None:
        """Remember these; they are on the disk when this returns, or OSError is raised."""
        lines = []
        for item, known in stored:
            key = _key(item)
            self._known[key] = known
            fields = {
                "path": key[0], "member": key[1], "size": known.stamp.size_bytes, "mtime_ns": known.stamp.mtime_ns,
                "sha256": known.sha256, "study_id": known.study_id, "sop_instance_uid": known.sop_instance_uid,
                "priority": known.priority,
            }  # fmt: skip
            lines.append(fields)
        self._write(lines)

    def _write(self, lines: Sequence[dict[str, Any]]) -> None:
        if not lines:
            return
        # the line break comes first: a line that a crash cut off must not run into the next
        text = memoryview(("\n" + "\n".join(map(json.dumps, lines)) + "\n").encode())
        while text:
            text = text[self._file.write(text) or 0 :]
        os.fsync(self._file.fileno())


def _key(item: Item) -> Key:
    return os.path.abspath(item.path), item.member  # noqa: PTH100 - resolve() would follow links, a call each


def _entries(content: bytes) -> Iterable[tuple[Key, JournalEntry | None]]:
    """Read each line as a file and what is known of it; None: it was forgotten."""
    for line in content.split(b"\n"):
        try:
            entry: dict[str, Any] = json.loads(line)
            key = str(entry["path"]), entry["member"]
            if entry.get("forgotten"):
                yield key, None
                continue
            stamp = Stamp(int(entry["size"]), int(entry["mtime_ns"]))
            priority = Priority(entry.get("priority", Priority.ROUTINE))  # older lines do not say
            yield key, JournalEntry(stamp, entry["sha256"], entry["study_id"], entry["sop_instance_uid"], priority)
        except (ValueError, KeyError, TypeError):
            continue
