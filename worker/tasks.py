"""What a Celery message leads to: claim, analyse, write; or retry, or quarantine."""

import logging
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import cv2

from shared.errors import ObjectMissing, OsteonError, Unavailable
from shared.repository import Database
from shared.repository import work
from shared.settings import Settings, cpu_count
from shared.storage import open_store
from shared.study import Claim
from shared.vision.pixels import PixelLimits
from worker.analysis import analyse
from worker.batching import Batcher
from worker.predictor import ActiveReader, predict

log = logging.getLogger(__name__)


class Engine:
    """All that one worker process shares between its tasks."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url.get_secret_value(), settings.database_pool_size)
        self.store = open_store(settings.store_url.get_secret_value())
        self.reader = ActiveReader(self.database, self.store)
        self.batcher = Batcher(predict, settings.batch_size, settings.batch_wait_ms / 1000, settings.predict_limit_s)
        self.limits = PixelLimits(settings.max_frame_pixels, settings.max_frames, settings.max_decoded_bytes)
        self.gate = Gate()
        self.leases = Leases(self.database, timedelta(seconds=settings.lease_s))
        cv2.setNumThreads(1)  # tasks are threads already; a pool in each would only add switches

    def analyse_study(self, study_id: UUID) -> str:
        """Analyse one study to its end; returns one word for Flower. Messages may come twice, or for nothing."""
        settings = self.settings
        try:
            reader = self.reader.current()
            with self.database.transaction() as session:
                claim = work.claim(
                    session,
                    study_id,
                    reader.manifest.name,
                    datetime.now(UTC),
                    timedelta(seconds=settings.lease_s),
                    settings.max_attempts,
                )
        except OsteonError as wrong:
            # not claimed: the reconciler rings again when the part that is missing may be back
            log.warning("study left in the queue", extra={"study": str(study_id), "why": str(wrong)})
            return "left"
        if claim is None:
            return "nothing to do"
        with self.leases.holding(claim), self.gate.alone() if claim.suspect else self.gate.among_others():
            return self._analyse(claim, reader.manifest.name)

    def _analyse(self, claim: Claim, bundle: str) -> str:
        study = {"study": str(claim.study_id), "attempt": claim.attempt}
        try:
            results = analyse(claim, self.store, self.reader.current(), self.batcher, self.limits)
            with self.database.transaction() as session:
                written = work.finish(session, claim, results, bundle, datetime.now(UTC))
        except (Unavailable, ObjectMissing) as wrong:
            return self._later(claim, str(wrong), study)
        except Exception as wrong:  # noqa: BLE001 - an unknown error must end in the study's own row, not in a lost task
            log.exception("analysis failed", extra=study)
            return self._later(claim, f"analysis failed ({type(wrong).__name__})", study)
        log.info("analysed" if written else "lease lost", extra=study | {"images": len(results)})
        return "analysed" if written else "lease lost"

    def _later(self, claim: Claim, reason: str, study: dict[str, object]) -> str:
        """Retry with exponential backoff and jitter; if even that cannot be written, the lease runs out by itself."""
        base = self.settings.retry_base_s * 2 ** (claim.attempt - 1)
        wait = timedelta(seconds=min(600.0, base) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        try:
            with self.database.transaction() as session:
                work.retry(session, claim, reason, datetime.now(UTC) + wait, self.settings.max_attempts)
        except Unavailable:
            log.warning("left to its lease", extra=study)
        log.warning("will retry", extra=study | {"why": reason})
        return "will retry"

    def close(self) -> None:
        """Stop the model thread and the lease keeper, give connections back."""
        self.batcher.close()
        self.leases.close()
        self.database.close()


class Gate:
    """Suspects are analysed alone: if one kills the process, no neighbour dies with it and is blamed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False
        self._wanting = 0

    @contextmanager
    def among_others(self) -> Iterator[None]:
        """Enter together with any number of others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._wanting)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Enter once everybody has left, and keep everybody out; new ones queue up behind."""
        with self._changed:
            self._wanting += 1
            self._changed.wait_for(lambda: not self._alone and not self._inside)
            self._wanting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


class Leases:
    """Renews the leases of all studies in hand, in one statement, three times per lease."""

    def __init__(self, database: Database, lease: timedelta) -> None:
        self._database, self._lease = database, lease
        self._tokens: set[UUID] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="leases", daemon=True)
        self._keeper.start()

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        """Keep this claim's lease alive during the block."""
        with self._lock:
            self._tokens.add(claim.token)
        try:
            yield
        finally:
            with self._lock:
                self._tokens.discard(claim.token)

    def close(self) -> None:
        """Stop renewing."""
        self._stop.set()
        self._keeper.join()

    def _keep(self) -> None:
        while not self._stop.wait(self._lease.total_seconds() / 3):
            with self._lock:
                tokens = sorted(self._tokens, key=str)
            if tokens:
                try:
                    with self._database.transaction() as session:
                        work.renew(session, tokens, datetime.now(UTC) + self._lease)
                except OsteonError as wrong:
                    log.warning("leases not renewed", extra={"why": str(wrong)})


def threads_for(settings: Settings) -> int:
    """Task threads: enough that a batch fills while another one is decoded."""
    return max(settings.worker_threads, 2 * settings.batch_size, cpu_count())
