"""One run of `osteon submit`: its files, what became of each, and its progress."""

import contextlib
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from infra.client import manifest
from infra.client.api import Client
from infra.client.body import SendError, open_item, sha256_of
from infra.client.journal import Journal, JournalEntry
from infra.client.receipt import KEPT, NOTHING_TO_DO, SENT_BEFORE, FileStatus, ReceiptLine
from infra.client.upload import UploadCallbacks, Uploader, UploadResult
from infra.client.walk import Archive, Item, UnreadablePath, groups, walk
from shared.archives import DAMAGED
from shared.dicom.image import ImageLimits
from shared.dicom.media import why_skipped
from shared.errors import OsteonError

Place = tuple[int, int]  # in the walk, and within an archive


@dataclass
class Progress:
    """Progress of a run; totals are None until all files were counted."""

    files: int = 0  # whose outcome is known
    bytes: int = 0  # sent; of archives, packed
    total_files: int | None = None
    total_bytes: int | None = None
    skipped_files: int = 0  # stored by an earlier run, and not sent again
    skipped_bytes: int = 0
    rejected: int = 0
    studies: set[str] = field(default_factory=set)
    notice: str = ""  # e.g. why nothing is sent at the moment


class Submission:
    """Sends the files of some places; afterwards `lines` has every file, in the order of the walk."""

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
        """Prepare a run; `run` sends.

        Args:
            client: with a submitter's key.
            places: files and folders to send.
            priority: of all studies.
            jobs: requests side by side.
            give_up_after_s: seconds of an API that does not answer, after which the run ends.
            journal: what was sent earlier; None: everything is sent.
            identify: read each file's identifiers too, for a manifest.
        """
        self.places, self.journal, self.identify = places, journal, identify
        self.tally = Progress()
        self.studies: dict[str, dict[str, Any]] = {}  # as the API's receipts have them
        self.started = time.monotonic()
        self._told: list[tuple[Place, ReceiptLine, manifest.Identifiers]] = []
        self._place: dict[Item, Place] = {}  # of what is on its way
        self._inside: dict[Item, tuple[Item, ...]] = {}  # of archives that are sent as they are
        self._abandoned = False
        self._lock = threading.Lock()
        callbacks = UploadCallbacks(self._completed, self._refused, self._unsent, self._sent, self._trouble)
        self.uploader = Uploader(client, priority, jobs, give_up_after_s, callbacks)

    def run(self) -> None:
        """Send everything; raises OsteonError if a place does not exist. What ended it early is `uploader.failure`."""
        found = walk(self.places)
        threading.Thread(target=self._count, daemon=True).start()
        self.uploader.run(groups(self._plan(found)))

    def mark_unsent(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Note all that has no line in a receipt as not sent; responses are no longer waited for.

        What the walk had not reached is looked for once more, without being opened or sent.

        Args:
            enough: is asked before each file, and ends the search by True.
        """
        with self._lock:
            self._abandoned = True
            printed = {place for place, _, _ in self._told}
            on_its_way = dict(self._place)
        for item, place in on_its_way.items():
            for at, line in self._not_sent(item, place):
                if at not in printed:
                    self._add(at, line)
                    printed.add(at)
        with contextlib.suppress(OSError, OsteonError):
            for number, each in enumerate(walk(self.places)):
                if enough():
                    return
                if isinstance(each, UnreadablePath):
                    if (number, 0) not in printed:
                        self._add(
                            (number, 0), ReceiptLine(each.name, FileStatus.UNREADABLE, "unreadable", text=each.why)
                        )
                    continue
                for index, item in enumerate(each.members if isinstance(each, Archive) else (each,)):
                    if (number, index) not in printed:
                        self._add((number, index), _unsent(item))

    def _not_sent(self, item: Item, place: Place) -> list[tuple[Place, ReceiptLine]]:
        """Make a line for each file of an item that was not sent."""
        number, first = place
        return [((number, first + i), _unsent(each)) for i, each in enumerate(self._inside.get(item, (item,)))]

    def _add(self, place: Place, line: ReceiptLine) -> None:
        with self._lock:
            self._told.append((place, line, manifest.Identifiers()))

    @property
    def lines(self) -> list[ReceiptLine]:
        """What became of each file."""
        return [line for line, _ in self.identified]

    @property
    def identified(self) -> list[tuple[ReceiptLine, manifest.Identifiers]]:
        """What became of each file, with the identifiers in its header."""
        with self._lock:
            in_order = sorted(self._told, key=lambda each: each[0])
        return [(line, header) for _, line, header in in_order]

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

    def _plan(self, found: Iterator[Item | Archive | UnreadablePath]) -> Iterator[Item]:
        """Choose what must be sent: files that the journal does not know."""
        for number, each in enumerate(found):
            if isinstance(each, UnreadablePath):
                self._tell(
                    (number, 0), ReceiptLine(each.name, FileStatus.UNREADABLE, "unreadable", text=each.why), None
                )
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
        """Add a line for a file that an earlier run has stored; return whether it is one."""
        known = self.journal.stored(item, self.uploader.priority) if self.journal is not None else None
        if known is None:
            return False
        line = ReceiptLine(
            item.name, FileStatus.DUPLICATE, None, None, SENT_BEFORE, known.study_id, known.sop_instance_uid,
            known.sha256, item.size_bytes,
        )  # fmt: skip
        with self._lock:
            self.tally.skipped_files += 1
            self.tally.skipped_bytes += item.size_bytes
        self._tell(place, line, item)
        return True

    def _skipped(self, place: Place, item: Item) -> bool:
        """Add a line for a file that is no image by design; return whether it is one. False if it cannot be read."""
        try:
            with open_item(item) as file:
                why = why_skipped(cast("BinaryIO", file), item.size_bytes, item.name, ImageLimits())
        except SendError:
            return False
        if why is None:
            return False
        with self._lock:
            self.tally.skipped_bytes += item.size_bytes
        self._tell(place, ReceiptLine(item.name, FileStatus.SKIPPED, why, text=why.words, bytes=item.size_bytes), item)
        return True

    # -- in the uploader's threads

    def _completed(self, result: UploadResult) -> None:
        lines: list[tuple[Place, ReceiptLine, Item]] = []
        for item, sha256, receipt_lines in zip(result.items, result.sha256, result.lines, strict=True):
            number, index = self._place.pop(item, (0, 0))
            for each in receipt_lines:
                # an archive that was sent as it is has a line for each of its members
                file, digest = item, sha256
                if each["file"]:
                    file, digest = _member(item, each["file"])
                lines.append(((number, index), _line(file, digest, each, result.seconds), file))
                index += 1
        if self.journal is not None:
            self.journal.add(
                (
                    file,
                    JournalEntry(
                        file.stamp,
                        line.sha256 or "",
                        line.study_id or "",
                        line.sop_instance_uid or "",
                        self.uploader.priority,
                    ),
                )
                for _, line, file in lines
                if line.outcome in (FileStatus.STORED, FileStatus.KEPT, FileStatus.DUPLICATE) and line.study_id
            )
        self.studies |= {study["id"]: study for study in result.studies}
        for place, line, file in lines:
            self._tell(place, line, file)

    def _refused(self, item: Item, reason: str, text: str) -> None:
        fate = FileStatus.UNREADABLE if reason == "unreadable" else FileStatus.REJECTED
        self._tell(
            self._place.pop(item, (0, 0)), ReceiptLine(item.name, fate, reason, text=text, bytes=item.size_bytes), item
        )

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

    def _tell(self, place: Place, line: ReceiptLine, item: Item | None) -> None:
        header = manifest.identify(item) if self.identify and item is not None else manifest.Identifiers()
        with self._lock:
            if self._abandoned:
                return
            self._told.append((place, line, header))
            self.tally.files += line.outcome is not FileStatus.UNSENT
            self.tally.rejected += line.outcome not in (*NOTHING_TO_DO, FileStatus.UNSENT)
            if line.study_id and line.outcome in KEPT:
                self.tally.studies.add(line.study_id)

    def _count(self) -> None:
        files = size = 0
        with contextlib.suppress(OSError, OsteonError):
            for each in walk(self.places, look_inside=False):
                if isinstance(each, UnreadablePath):
                    files += 1
                    continue
                item = each.whole if isinstance(each, Archive) else each
                files += item.files
                size += item.size_bytes
            self.tally.total_files, self.tally.total_bytes = files, size


def _member(archive: Item, name: str) -> tuple[Item, str]:
    """Find a member that the API named, in its archive, with its SHA-256; "" if it cannot be read here."""
    with contextlib.suppress(*DAMAGED), zipfile.ZipFile(archive.path) as opened:
        size = opened.getinfo(name).file_size
        item = Item(f"{archive.name}!{name}", archive.path, archive.stamp, size, name)
        with contextlib.suppress(SendError):
            return item, sha256_of(item)
        return item, ""
    return Item(f"{archive.name}!{name}", archive.path, archive.stamp, 0, name), ""


def _unsent(item: Item) -> ReceiptLine:
    return ReceiptLine(
        item.name, FileStatus.UNSENT, "unsent", text="not sent: the run ended before", bytes=item.size_bytes
    )


def _line(item: Item, sha256: str, line: dict[str, Any], seconds: float) -> ReceiptLine:
    return ReceiptLine(
        item.name, FileStatus(line["outcome"]), line.get("reason"), line.get("failure"), line.get("text"),
        line.get("study_id"), line.get("sop_instance_uid"), sha256 or None, item.size_bytes, seconds,
    )  # fmt: skip


def forget_missing_studies(journal: Journal, client: Client, give_up_after_s: float) -> int:
    """Drop from the journal the studies of which the API lacks images.

    Args:
        journal: of earlier runs.
        client: of the API that they were sent to.
        give_up_after_s: an API that is away is asked again for so long.

    Returns:
        How many files were dropped.

    Raises:
        ApiError: The API answers with an error.
        Unavailable: The API does not answer.
    """

    def images(study_ids: Collection[str]) -> dict[str, int]:
        states, _ = client.retry_while_away(partial(client.states, study_ids), limit_s=give_up_after_s)
        return {study_id: state["images"] for study_id, state in states.items()}

    return journal.verify(images)
