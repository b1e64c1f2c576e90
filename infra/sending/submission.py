"""One run of `osteon submit`: what is sent, what became of it, and how far it is."""

import contextlib
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from infra.client import Client
from infra.sending import manifest
from infra.sending.body import Unsendable, opened, sha256_of
from infra.sending.journal import Journal, Known
from infra.sending.receipt import EARLIER, FINE, KEPT, Fate, Line
from infra.sending.upload import FIRST_PAUSE_S, LONGEST_PAUSE_S, Answered, Ears, Uploader
from infra.sending.walk import Archive, Item, Unreadable, groups, walk
from shared.archives import DAMAGED
from shared.errors import OsteonError, Unavailable
from shared.image import ImageLimits
from shared.media import passed_by

Place = tuple[int, int]  # in the walk, and within an archive


@dataclass
class Tally:
    """How far a run is, for whoever shows it; totals are None until all was counted."""

    files: int = 0  # that something became of
    bytes: int = 0  # on their way or there; of archives, packed
    total_files: int | None = None
    total_bytes: int | None = None
    skipped_files: int = 0  # that were not sent, for an earlier run did
    skipped_bytes: int = 0
    rejected: int = 0
    studies: set[str] = field(default_factory=set)
    notice: str = ""  # e.g. why nothing moves, while it does not


class Submission:
    """Sends places with a client; afterwards `lines` has every file, in the order of the walk."""

    def __init__(
        self,
        client: Client,
        places: Sequence[Path],
        priority: str,
        jobs: int,
        give_up_after_s: float,
        journal: Journal | None,
        *,
        identify: bool = False,
    ) -> None:
        """identify: read each file's identifiers too, for a manifest."""
        self.places, self.journal, self.identify = places, journal, identify
        self.tally = Tally()
        self.studies: dict[str, dict[str, Any]] = {}  # as the API's receipts have them
        self.started = time.monotonic()
        self._told: list[tuple[Place, Line, manifest.Identifiers]] = []
        self._place: dict[Item, Place] = {}  # of what is on its way
        self._inside: dict[Item, tuple[Item, ...]] = {}  # of archives that are sent as they are
        self._abandoned = False
        self._lock = threading.Lock()
        ears = Ears(self._answered, self._refused, self._unsent, self._sent, self._trouble)
        self.uploader = Uploader(client, priority, jobs, give_up_after_s, ears)

    def run(self) -> None:
        """Send everything. Raises OsteonError if a place does not exist; what ended it early is `uploader.failure`."""
        found = walk(self.places)
        threading.Thread(target=self._count, daemon=True).start()
        self.uploader.run(groups(self._plan(found)))

    def abandon(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Say of all that was not answered for that it was not sent; answers are no longer waited for.

        What the walk had not reached is looked for once more, without being opened or sent, until `enough` says so.
        """
        with self._lock:
            self._abandoned = True
            told = {place for place, _, _ in self._told}
            on_its_way = dict(self._place)
        for item, place in on_its_way.items():
            for at, line in self._not_sent(item, place):
                if at not in told:
                    self._add(at, line)
                    told.add(at)
        with contextlib.suppress(OSError, OsteonError):
            for number, each in enumerate(walk(self.places)):
                if enough():
                    return
                if isinstance(each, Unreadable):
                    if (number, 0) not in told:
                        self._add((number, 0), Line(each.name, Fate.UNREADABLE, "unreadable", text=each.why))
                    continue
                for index, item in enumerate(each.members if isinstance(each, Archive) else (each,)):
                    if (number, index) not in told:
                        self._add((number, index), _unsent(item))

    def _not_sent(self, item: Item, place: Place) -> list[tuple[Place, Line]]:
        """A line for each file in it."""
        number, first = place
        return [((number, first + i), _unsent(each)) for i, each in enumerate(self._inside.get(item, (item,)))]

    def _add(self, place: Place, line: Line) -> None:
        with self._lock:
            self._told.append((place, line, manifest.Identifiers()))

    @property
    def lines(self) -> list[Line]:
        """What became of each file."""
        return [line for line, _ in self.identified]

    @property
    def identified(self) -> list[tuple[Line, manifest.Identifiers]]:
        """The same, each with what its header says."""
        with self._lock:
            told = sorted(self._told, key=lambda each: each[0])
        return [(line, header) for _, line, header in told]

    def summary(self) -> dict[str, Any]:
        """The figures of the run."""
        seconds = time.monotonic() - self.started
        return {
            "seconds": round(seconds, 1),
            "bytes_sent": self.tally.bytes,
            "files_per_second": round((self.tally.files - self.tally.skipped_files) / seconds, 1),
            "sent_earlier": self.tally.skipped_files,
            "studies": len(self.tally.studies),
        }

    # -- in the walk's thread

    def _plan(self, found: Iterator[Item | Archive | Unreadable]) -> Iterator[Item]:
        """What must be sent; the journal knows the others."""
        for number, each in enumerate(found):
            if isinstance(each, Unreadable):
                self._tell((number, 0), Line(each.name, Fate.UNREADABLE, "unreadable", text=each.why), None)
                continue
            files = each.members if isinstance(each, Archive) else (each,)
            places = {item: (number, index) for index, item in enumerate(files)}
            new = [item for item in files if not self._earlier(places[item], item)]
            if isinstance(each, Archive) and each.sendable and len(new) == len(files):
                self._place[each.whole], self._inside[each.whole] = (number, 0), each.members
                yield each.whole
                continue
            for item in new:
                if not self._skipped(places[item], item):
                    self._place[item] = places[item]
                    yield item

    def _earlier(self, place: Place, item: Item) -> bool:
        """Whether an earlier run's answer stands for this file; if so, that is told."""
        known = self.journal.stored(item, self.uploader.priority) if self.journal is not None else None
        if known is None:
            return False
        line = Line(
            item.name, Fate.DUPLICATE, None, None, EARLIER, known.study_id, known.sop_instance_uid, known.sha256,
            item.size_bytes,
        )  # fmt: skip
        with self._lock:
            self.tally.skipped_files += 1
            self.tally.skipped_bytes += item.size_bytes
        self._tell(place, line, item)
        return True

    def _skipped(self, place: Place, item: Item) -> bool:
        """Whether this is no image by design; if so, that is told. What cannot be read is left to the uploader."""
        try:
            with opened(item) as file:
                why = passed_by(cast("BinaryIO", file), item.size_bytes, item.name, ImageLimits())
        except Unsendable:
            return False
        if why is None:
            return False
        with self._lock:
            self.tally.skipped_bytes += item.size_bytes
        self._tell(place, Line(item.name, Fate.SKIPPED, why, text=why.words, bytes=item.size_bytes), item)
        return True

    # -- in the uploader's threads

    def _answered(self, answer: Answered) -> None:
        lines: list[tuple[Place, Line, Item]] = []
        for item, sha256, told in zip(answer.items, answer.sha256, answer.lines, strict=True):
            number, index = self._place.pop(item, (0, 0))
            for each in told:
                # an archive that was sent as it is answers for each of its members
                file, digest = item, sha256
                if each["file"]:
                    file, digest = _member(item, each["file"])
                lines.append(((number, index), _line(file, digest, each, answer.seconds), file))
                index += 1
        if self.journal is not None:
            self.journal.add(
                (
                    file,
                    Known(
                        file.stamp,
                        line.sha256 or "",
                        line.study_id or "",
                        line.sop_instance_uid or "",
                        self.uploader.priority,
                    ),
                )
                for _, line, file in lines
                if line.outcome in (Fate.STORED, Fate.DUPLICATE) and line.study_id
            )
        self.studies |= {study["id"]: study for study in answer.studies}
        for place, line, file in lines:
            self._tell(place, line, file)

    def _refused(self, item: Item, reason: str, text: str) -> None:
        fate = Fate.UNREADABLE if reason == "unreadable" else Fate.REJECTED
        self._tell(self._place.pop(item, (0, 0)), Line(item.name, fate, reason, text=text, bytes=item.size_bytes), item)

    def _unsent(self, items: list[Item]) -> None:
        for item in items:
            for place, line in self._not_sent(item, self._place.pop(item, (0, 0))):
                self._tell(place, line, item)

    def _sent(self, size: int) -> None:
        with self._lock:
            self.tally.bytes += size

    def _trouble(self, text: str) -> None:
        self.tally.notice = text

    # -- in all of them

    def _tell(self, place: Place, line: Line, item: Item | None) -> None:
        header = manifest.identify(item) if self.identify and item is not None else manifest.Identifiers()
        with self._lock:
            if self._abandoned:
                return
            self._told.append((place, line, header))
            self.tally.files += line.outcome is not Fate.UNSENT
            self.tally.rejected += line.outcome not in (*FINE, Fate.UNSENT)
            if line.study_id and line.outcome in KEPT:
                self.tally.studies.add(line.study_id)

    def _count(self) -> None:
        files = size = 0
        with contextlib.suppress(OSError, OsteonError):
            for each in walk(self.places, look_inside=False):
                if isinstance(each, Unreadable):
                    files += 1
                    continue
                item = each.whole if isinstance(each, Archive) else each
                files += item.files
                size += item.size_bytes
            self.tally.total_files, self.tally.total_bytes = files, size


def _member(archive: Item, name: str) -> tuple[Item, str]:
    """A member that the API found in an archive, and its SHA-256; "" if it cannot be read here."""
    with contextlib.suppress(*DAMAGED), zipfile.ZipFile(archive.path) as opened:
        size = opened.getinfo(name).file_size
        item = Item(f"{archive.name}!{name}", archive.path, archive.stamp, size, name)
        with contextlib.suppress(Unsendable):
            return item, sha256_of(item)
        return item, ""
    return Item(f"{archive.name}!{name}", archive.path, archive.stamp, 0, name), ""


def _unsent(item: Item) -> Line:
    return Line(item.name, Fate.UNSENT, "unsent", text="not sent: the run ended before", bytes=item.size_bytes)


def _line(item: Item, sha256: str, told: dict[str, Any], seconds: float) -> Line:
    return Line(
        item.name, Fate(told["outcome"]), told.get("reason"), told.get("failure"), told.get("text"),
        told.get("study_id"), told.get("sop_instance_uid"), sha256 or None, item.size_bytes, seconds,
    )  # fmt: skip


def forget_what_is_gone(journal: Journal, client: Client, give_up_after_s: float) -> int:
    """Drop from the journal the studies of which the API lacks images; returns how many files that are.

    An API that is away is asked again, as an upload would be. Raises Refused, Unavailable.
    """

    def images(study_ids: Collection[str]) -> dict[str, int]:
        deadline, pause_s = time.monotonic() + give_up_after_s, FIRST_PAUSE_S
        while True:
            try:
                return {study_id: state["images"] for study_id, state in client.states(study_ids)[0].items()}
            except Unavailable:
                if time.monotonic() + pause_s > deadline:
                    raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    return journal.verify(images)
