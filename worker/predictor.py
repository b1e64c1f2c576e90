"""The active bundle, loaded; a newly activated one is picked up between studies."""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from shared.errors import OsteonError
from shared.repository import Database
from shared.repository.bundles import active_bundle, bundle
from shared.storage import Store, bundle_key
from shared.tables import BundleRow
from shared.vision.reader import RawReading, Reader
from shared.vision.tensors import UInt8Image

log = logging.getLogger(__name__)
LOOK_EVERY_S = 2.0


class NoBundle(OsteonError):
    """No model bundle is active. Activate one: osteon activate FILE."""


class ActiveReader:
    """Hands out the reader of the active bundle, and of others for second looks.

    Of a bundle there is one reader, whoever asks. Held are the active one and the last other; of further ones those
    that a study in hand uses, so runs of several bundles at once do not load them in turn.
    """

    def __init__(self, database: Database, store: Store, folder: Path) -> None:
        """folder: where converted networks are kept."""
        self._folder = folder
        self._database, self._store = database, store
        self._lock = threading.Lock()
        self._reader: Reader | None = None
        self._name = ""
        self._looked_at = 0.0
        self._other: Reader | None = None  # kept for the next second look
        self._alive: WeakValueDictionary[str, Reader] = WeakValueDictionary()  # by the bundle's name
        self._other_lock = threading.Lock()  # while another bundle is loaded, live studies go on

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
            reader = self._alive.get(name)
            if reader is None:
                self._other = None  # not one more in memory than is used
                with self._database.transaction() as session:
                    row = bundle(session, name)
                reader = self._load(row)
            self._other = reader
            return reader

    def _load(self, row: BundleRow) -> Reader:
        reader = Reader.resident(self._store.get(bundle_key(row.sha256)), row.sha256, self._folder)
        log.info("bundle loaded", extra={"bundle": row.name})
        self._alive[row.name] = reader
        return reader

    def _look(self) -> None:
        with self._database.transaction() as session:
            row = active_bundle(session)
        if row is None:
            raise NoBundle
        if row.name != self._name:
            self._reader = self._alive.get(row.name) or self._load(row)  # there already: a shadow that was promoted
            self._name = row.name


def predict(items: Sequence[tuple[Reader, UInt8Image]]) -> list[RawReading]:
    """Answer a batch; just after an activation it may hold squares of two bundles."""
    answers: list[RawReading | None] = [None] * len(items)
    for reader in {id(reader): reader for reader, _ in items}.values():
        own = [index for index, (wanted, _) in enumerate(items) if wanted is reader]
        for index, answer in zip(own, reader.read([items[i][1] for i in own]), strict=True):
            answers[index] = answer
    return [answer for answer in answers if answer is not None]
