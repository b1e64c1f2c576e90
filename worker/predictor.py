"""The active bundle in memory; a newly activated one is loaded between studies."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from shared.db.engine import Database
from shared.db.tables import BundleRow
from shared.errors import OsteonError
from shared.logs import get_logger
from shared.model.predictor import ModelOutput, Predictor
from shared.pixels.tensors import UInt8Image
from shared.queries.models import active_bundle, get_bundle
from shared.storage import Store, bundle_key

log = get_logger(__name__)
BUNDLE_CHECK_INTERVAL_S = 2.0


class BundleMissing(OsteonError):
    """No model bundle is active. Activate one: osteon activate FILE."""


class ActivePredictor:
    """Gives out the predictor of the active bundle, and of other bundles for reruns.

    Of a bundle there is one predictor, whoever asks. Held are the active one and the last other; of further ones those
    that a study in hand uses, so runs of several bundles at once do not load them in turn.
    """

    def __init__(self, database: Database, store: Store, folder: Path) -> None:
        """Load nothing yet; the folder is where converted networks are kept."""
        self._folder = folder
        self._database, self._store = database, store
        self._lock = threading.Lock()
        self._predictor: Predictor | None = None
        self._name = ""
        self._looked_at = 0.0
        self._other: Predictor | None = None  # kept for the next rerun
        self._alive: WeakValueDictionary[str, Predictor] = WeakValueDictionary()  # by the bundle's name
        self._other_lock = threading.Lock()  # while another bundle is loaded, live studies go on

    @property
    def name(self) -> str:
        """Name of the bundle in memory; "" before the first."""
        return self._name

    def current(self) -> Predictor:
        """Give the predictor for a new study; raises BundleMissing, Unavailable, ObjectMissing or BadBundle."""
        with self._lock:
            if self._predictor is None or time.monotonic() - self._looked_at > BUNDLE_CHECK_INTERVAL_S:
                try:
                    self._load_if_changed()
                except Exception:
                    if self._predictor is None:
                        raise
                    # a bundle that works is better than none
                    log.exception("active bundle not loaded", kept=self._name)
                self._looked_at = time.monotonic()
            assert self._predictor is not None
            return self._predictor

    def of(self, name: str) -> Predictor:
        """Give a named bundle's predictor; raises NotFound, Unavailable, ObjectMissing, BadBundle, BundleMissing."""
        active = self.current()
        if active.manifest.name == name:
            return active
        with self._other_lock:
            predictor = self._alive.get(name)
            if predictor is None:
                self._other = None  # free its memory before the next one is loaded
                with self._database.transaction() as session:
                    row = get_bundle(session, name)
                predictor = self._load(row)
            self._other = predictor
            return predictor

    def _load(self, row: BundleRow) -> Predictor:
        predictor = Predictor.for_service(self._store.get(bundle_key(row.sha256)), row.sha256, self._folder)
        log.info("bundle loaded", bundle=row.name)
        self._alive[row.name] = predictor
        return predictor

    def _load_if_changed(self) -> None:
        with self._database.transaction() as session:
            row = active_bundle(session)
        if row is None:
            raise BundleMissing
        if row.name != self._name:
            self._predictor = self._alive.get(row.name) or self._load(
                row
            )  # loaded already if it is a shadow that was promoted
            self._name = row.name


def predict(items: Sequence[tuple[Predictor, UInt8Image]]) -> list[ModelOutput]:
    """Answer a batch; just after an activation it may hold squares of two bundles."""
    outputs: list[ModelOutput | None] = [None] * len(items)
    for predictor in {id(predictor): predictor for predictor, _ in items}.values():
        own = [index for index, (predictor_of_item, _) in enumerate(items) if predictor_of_item is predictor]
        for index, output in zip(own, predictor.predict([items[i][1] for i in own]), strict=True):
            outputs[index] = output
    return [output for output in outputs if output is not None]
