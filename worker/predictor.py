"""The active bundle, loaded; a newly activated one is picked up between studies."""

import logging
import threading
import time
from collections.abc import Sequence

import torch

from shared.errors import OsteonError
from shared.repository import Database
from shared.repository.bundles import active_bundle, bundle
from shared.settings import cpu_count
from shared.storage import Store, bundle_key
from shared.tables import BundleRow
from shared.vision.engines import lanes
from shared.vision.reader import RawReading, Reader
from shared.vision.tensors import UInt8Image

log = logging.getLogger(__name__)
LOOK_EVERY_S = 2.0


class NoBundle(OsteonError):
    """No model bundle is active. Activate one: osteon activate FILE."""


class ActiveReader:
    """Hands out the reader of the active bundle, and of one other for second looks; two are held at most."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database, self._store = database, store
        self._lock = threading.Lock()
        self._reader: Reader | None = None
        self._name = ""
        self._looked_at = 0.0
        self._other: Reader | None = None
        self._other_lock = threading.Lock()  # while another bundle is loaded, live studies go on
        torch.set_num_threads(max(1, cpu_count() // lanes()))

    @property
    def name(self) -> str:
        """The bundle in memory; "" before the first."""
        return self._name

    def current(self) -> Reader:
        """The reader for a study that starts now. Raises NoBundle, Unavailable, ObjectMissing, BadBundle."""
        with self._lock:
            if self._reader is None or time.monotonic() - self._looked_at > LOOK_EVERY_S:
                try:
                    self._look()
                except Exception:
                    if self._reader is None:
                        raise
                    # rather go on with a bundle that works than stand still before one that does not
                    log.exception("the active bundle cannot be loaded; going on with %s", self._name)
                self._looked_at = time.monotonic()
            assert self._reader is not None
            return self._reader

    def of(self, name: str) -> Reader:
        """The reader of this bundle. Raises NotFound, Unavailable, ObjectMissing, BadBundle, or as `current`."""
        active = self.current()
        if active.manifest.name == name:
            return active
        with self._other_lock:
            if self._other is None or self._other.manifest.name != name:
                self._other = None  # two at once in memory, not three
                with self._database.transaction() as session:
                    row = bundle(session, name)
                self._other = self._load(row)
            return self._other

    def _load(self, row: BundleRow) -> Reader:
        reader = Reader.of_bundle(self._store.get(bundle_key(row.sha256)), row.sha256, resident=True)
        log.info("bundle loaded", extra={"bundle": row.name})
        return reader

    def _look(self) -> None:
        with self._database.transaction() as session:
            row = active_bundle(session)
        if row is None:
            raise NoBundle
        if row.name != self._name:
            other = self._other
            if other is not None and other.manifest.name == row.name:  # a shadow that was promoted
                self._reader, self._other = other, None
            else:
                self._reader = self._load(row)
            self._name = row.name


def predict(items: Sequence[tuple[Reader, UInt8Image]]) -> list[RawReading]:
    """Answer a batch; just after an activation it may hold squares of two bundles."""
    answers: list[RawReading | None] = [None] * len(items)
    for reader in {id(reader): reader for reader, _ in items}.values():
        own = [index for index, (wanted, _) in enumerate(items) if wanted is reader]
        for index, answer in zip(own, reader.read([items[i][1] for i in own]), strict=True):
            answers[index] = answer
    return [answer for answer in answers if answer is not None]
