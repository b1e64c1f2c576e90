"""Whether a file that came is one that is there: the image under its SOP Instance UID, or a file that is held."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from api.backends import Backends
from api.spool import Spool, SpooledFile
from shared.dicom.comparison import MAX_BYTES, Verdict, compare
from shared.dicom.image import ImageLimits
from shared.domain.held import HeldKind
from shared.errors import ObjectMissing
from shared.queries.held import HeldFile
from shared.queries.intake import ExistingInstance
from shared.storage import original_key

COMPARISON_LIMIT_S = 20.0  # of a request; a worker compares the rest
MAX_COMPARED_FILES = 8  # files with one SOP Instance UID with which one more is compared
HELD_KINDS = {
    Verdict.SAME: None,
    Verdict.HEADER: HeldKind.CORRECTION,
    Verdict.PIXELS: HeldKind.PIXELS,
    Verdict.UNKNOWN: HeldKind.COMPARING,
}


@dataclass(frozen=True)
class ComparedFile:
    """What a file is."""

    # why it is to be held; None: it is not, as far as its SOP Instance UID says. COMPARING: a worker has to compare it
    kind: HeldKind | None
    held: HeldFile | None = None  # that it is, in another encoding
    earlier: int | None = None  # which of the request's files it is, in another encoding


class FileComparison:
    """Compares a file with others of its SOP Instance UID; what takes too long is left to a worker."""

    def __init__(self, backends: Backends, spool: Spool) -> None:
        self.backends, self.spool = backends, spool
        self._spent_s = 0.0

    def compare(
        self,
        file: SpooledFile,
        existing: ExistingInstance | None,
        alike: Sequence[HeldFile],
        spooled_before: Sequence[SpooledFile],
    ) -> ComparedFile:
        """Compare a file with all that has its SOP Instance UID.

        Args:
            file: of the request.
            existing: the stored image; None: there is none, and the first file of the request becomes it.
            alike: files that are or were held.
            spooled_before: other files of the request that came before.

        Returns:
            What it is.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        kind: HeldKind | None = None
        if existing is not None:
            kind = HELD_KINDS[self._with_stored(file, existing)]
        elif spooled_before:
            kind = HELD_KINDS[self._with_spooled(file, spooled_before[0])]
        if kind is None and (existing is not None or spooled_before):
            return ComparedFile(None)
        certain = max(len(alike), len(spooled_before)) <= MAX_COMPARED_FILES
        for held in alike[:MAX_COMPARED_FILES]:
            verdict = self._with_object(file, held.sha256, held.size_bytes)
            if verdict is Verdict.SAME:
                return ComparedFile(kind, held=held)
            certain = certain and verdict is not Verdict.UNKNOWN
        for place, one in enumerate(spooled_before[:MAX_COMPARED_FILES]):
            if place or existing is not None:
                verdict = self._with_spooled(file, one)
                if verdict is Verdict.SAME:
                    return ComparedFile(kind, earlier=place)
                certain = certain and verdict is not Verdict.UNKNOWN
        return ComparedFile(kind if certain else HeldKind.COMPARING)

    def _with_stored(self, file: SpooledFile, existing: ExistingInstance) -> Verdict:
        """Compare with a stored image, also as it was before a correction."""
        verdict = self._with_object(file, existing.current, existing.size_bytes)
        if verdict is Verdict.SAME or existing.current == existing.sha256:
            return verdict
        before = self._with_object(file, existing.sha256, existing.size_bytes)
        return before if before in (Verdict.SAME, Verdict.UNKNOWN) else verdict

    def _with_spooled(self, file: SpooledFile, other: SpooledFile) -> Verdict:
        if self._spent_s > COMPARISON_LIMIT_S or max(file.size_bytes, other.size_bytes) > MAX_BYTES:
            return Verdict.UNKNOWN
        with self._counting_time(), self.spool.open(other) as reader:
            return self._verdict(reader.read(), file)

    def _with_object(self, file: SpooledFile, sha256: str, size_bytes: int) -> Verdict:
        if self._spent_s > COMPARISON_LIMIT_S or max(file.size_bytes, size_bytes) > MAX_BYTES:
            return Verdict.UNKNOWN
        with self._counting_time():
            try:
                return self._verdict(self.backends.store.get(original_key(sha256)), file)
            except ObjectMissing:
                return Verdict.UNKNOWN

    def _verdict(self, content: bytes, file: SpooledFile) -> Verdict:
        with self.spool.open(file) as reader:
            return compare(content, reader.read(), ImageLimits.of(self.backends.settings))

    @contextmanager
    def _counting_time(self) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent_s += time.monotonic() - start
