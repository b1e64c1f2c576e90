"""What a Celery message leads to: claim, analyse, write; or retry, or quarantine."""

import io
import itertools
import logging
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import numpy as np

from shared.errors import DatabaseFull, ObjectMissing, OsteonError, Rejected, StoreUnavailable, Unavailable
from shared.image import ImageLimits
from shared.repository import Database, reading, second_looks, work
from shared.settings import Settings, cpu_count
from shared.storage import film_key, open_store
from shared.study import Claim, Priority
from shared.vision.engines import callers, images_a_call
from shared.vision.reader import Reader
from worker import metrics
from worker.analysis import analyse
from worker.batching import Batcher, RightOfWay
from worker.decoding import Decoders, DecodingFailed, FilmJob
from worker.films import is_film, refusal
from worker.ledger import Ledger
from worker.pipeline import ModelBatcher
from worker.predictor import ActiveReader, predict
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)
SUSPECT = "suspect"


@dataclass(frozen=True)
class Wanted:
    """What a message asks for."""

    study_id: UUID
    bundle: str = ""  # whose second look it is; "": the study itself, by the active bundle
    queue: Priority = field(default=Priority.BACKLOG, compare=False)  # where the message came from


class Engine:
    """All that one worker process shares between its tasks."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        store_url = settings.store_url.get_secret_value()
        self.load = Load()
        self.right_of_way = RightOfWay()
        self.database = Database(settings.database_url.get_secret_value(), settings.database_pool_size)
        self.store = open_store(store_url)
        self.reader = ActiveReader(self.database, self.store, settings.cache)
        self.decoders = Decoders(
            store_url,
            ImageLimits(
                max_header_bytes=settings.max_header_bytes,
                max_frame_pixels=settings.max_frame_pixels,
                max_frames=settings.max_frames,
                max_decoded_bytes=settings.max_decoded_bytes,
            ),
            count=settings.decoders or cpu_count(),
            limit_s=settings.decode_limit_s,
            memory_bytes=settings.decode_memory_bytes,
            log_level=settings.log_level,
            right_of_way=self.right_of_way,
            observe=metrics.DECODING.observe,
        )
        self.batcher: ModelBatcher = Batcher(
            "model",
            metrics.measured(predict),
            max_batch=images_a_call(settings.batch_size),
            max_wait_s=settings.batch_wait_ms / 1000,
            lanes=callers(),
            right_of_way=self.right_of_way,
        )
        self.watchdog = Watchdog(self.batcher.lanes, settings.predict_limit_s)
        lease = timedelta(seconds=settings.lease_s)
        places = threads_for(settings)
        self.ledger = Ledger(self.database, lease, settings.max_attempts, places)
        self.looks = Ledger(self.database, lease, settings.max_attempts, places, second_looks)
        self.gate = Gate()
        self._at_gate: set[Wanted] = set()
        self._gate_lock = threading.Lock()
        self._films = threading.BoundedSemaphore(threads_for(settings) // 2)
        self.leases = Leases(self.database, lease)

    def warm_up(self) -> None:
        """Load the active bundle and run it once: the first study should not wait for a compiler."""
        try:
            reader = self.reader.current()
            blank = np.zeros((reader.size, reader.size), np.uint8)
            for answer in [self.batcher.submit((reader, blank)) for _ in self.batcher.lanes]:
                answer.result()
        except OsteonError as wrong:
            log.warning("not warmed up", extra={"why": str(wrong)})

    def analyse_study(self, study_id: UUID, queue: Priority = Priority.ROUTINE) -> str:
        """Analyse one study to its end; returns one word for Flower. Messages may come twice, or for nothing.

        queue: that of the message.
        """
        with self.load.one():
            outcome = self._analysed(Wanted(study_id, queue=queue))
        metrics.count(outcome)
        return outcome

    def second_look(self, study_id: UUID, bundle: str) -> str:
        """Let this bundle look at a study; as `analyse_study`, on the same way, behind all live work."""
        with self.load.one():
            return self._analysed(Wanted(study_id, bundle))

    def full_film(self, instance_id: UUID, frame: int) -> str:
        """Make a full film, or store why there is none; returns one word for Flower. The page asks again if need be."""
        if not self._films.acquire(blocking=False):
            return "busy"  # half of the threads make films already: studies need the others
        try:
            with self.load.one():
                return self._filmed(instance_id, frame)
        except OsteonError as wrong:
            why = str(wrong)
        except Exception as wrong:
            log.exception("no film made", extra={"instance": str(instance_id)})
            return f"failed ({type(wrong).__name__})"
        finally:
            self._films.release()
        log.warning("no film made", extra={"instance": str(instance_id), "why": why})
        return "failed"

    def sweep_films(self) -> int | None:
        """Remove full films older than OSTEON_FULL_FILMS_DAYS; how many, or None if the store did not let us."""
        try:
            swept = self.store.sweep(timedelta(days=self.settings.full_films_days))
        except StoreUnavailable as wrong:
            log.warning("films not swept", extra={"why": str(wrong)})
            return None
        log.info("films swept", extra={"films": swept})
        return swept

    def _filmed(self, instance_id: UUID, frame: int) -> str:
        with self.database.transaction() as session:
            sha256 = reading.sha256_of_instance(session, instance_id)
        if sha256 is None:
            return "nothing to do"
        key = film_key(sha256, frame)
        if self.store.exists(key) and is_film(self.store.get(key)):
            return "made already"
        try:
            self.decoders.film(FilmJob(sha256, frame)).result()
        except Rejected as why:
            marker = refusal(why.reason, str(why), heals=False)
        except (DecodingFailed, ObjectMissing) as why:
            marker = refusal(work.DECODING_FAILED, str(why), heals=True)
        else:
            return "made"
        self.store.put(key, io.BytesIO(marker), len(marker))
        return "refused"

    def _analysed(self, wanted: Wanted) -> str:
        study = {"study": str(wanted.study_id)}
        try:
            # claimed inside the gate: who waits at it holds no lease, and a crash behind it costs him no attempt
            with self.gate.among_others():
                outcome = self._attempt(wanted, alone=False)
            if outcome == SUSPECT and self._first_at_gate(wanted):
                try:
                    with self.gate.alone():
                        outcome = self._attempt(wanted, alone=True)
                finally:
                    self._at_gate.discard(wanted)
            return outcome
        except OsteonError as wrong:
            # not claimed: the reconciler rings again when the part that is missing may be back
            log.warning("study left in the queue", extra=study | {"why": str(wrong)})
        except Exception:
            log.exception("study left in the queue", extra=study)
        return "left"

    def _first_at_gate(self, wanted: Wanted) -> bool:
        """Whether no other thread waits for the gate with this study: a second message adds nothing."""
        with self._gate_lock:
            first = wanted not in self._at_gate
            self._at_gate.add(wanted)
        return first

    def _attempt(self, wanted: Wanted, *, alone: bool) -> str:
        ledger = self.looks if wanted.bundle else self.ledger
        reader = None if wanted.bundle else self.reader.current()
        bundle = reader.manifest.name if reader else wanted.bundle
        if alone:
            claim = ledger.claim_alone(wanted.study_id, bundle)
        else:
            claim = ledger.claim(wanted.study_id, bundle, wanted.queue)
        if claim is None:
            return "nothing to do"
        if claim is work.NOT_ALONE:
            return SUSPECT
        with self.leases.holding(claim):
            return self._analyse(claim, bundle, reader, ledger, alone=alone)

    def _analyse(self, claim: Claim, bundle: str, reader: Reader | None, ledger: Ledger, *, alone: bool) -> str:
        study = {"study": str(claim.study_id), "attempt": claim.attempt}
        last = claim.attempt >= self.settings.max_attempts
        try:
            reader = reader or self.reader.of(bundle)  # one that cannot be loaded costs its second look an attempt
            with self.right_of_way.held() if claim.priority is not Priority.BACKLOG else nullcontext():
                results = analyse(claim, reader, self.decoders.submit, self.batcher, last_attempt=last)
            written = ledger.finish(work.Analysed(claim, results, bundle), alone=alone)
        except StoreUnavailable as wrong:
            return self._later(claim, str(wrong), study, ledger, blameless=not self._store_works())
        except DatabaseFull as wrong:  # of which no study is to blame
            return self._later(claim, str(wrong), study, ledger, blameless=True)
        except (Unavailable, ObjectMissing, DecodingFailed) as wrong:
            return self._later(claim, str(wrong), study, ledger)
        except Exception as wrong:
            log.exception("analysis failed", extra=study)
            return self._later(claim, f"analysis failed ({type(wrong).__name__})", study, ledger)
        if written and ledger is self.ledger:  # of a second look the arrival tells nothing
            metrics.waited(claim)
        log.info("analysed" if written else "lease lost", extra=study | {"images": len(results)})
        return "analysed" if written else "lease lost"

    def _store_works(self) -> bool:
        try:
            self.store.check()
        except StoreUnavailable:
            return False
        return True

    def _later(
        self, claim: Claim, reason: str, study: dict[str, object], ledger: Ledger, *, blameless: bool = False
    ) -> str:
        """Retry with exponential backoff and jitter; if even that cannot be written, the lease runs out by itself.

        blameless: the attempt does not count, for a store that is down or a full disk says nothing about the study.
        """
        base = self.settings.retry_base_s * 2 ** (claim.attempt - 1)
        wait = timedelta(seconds=min(600.0, base) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        try:
            with self.database.transaction() as session:
                not_before, most = work.clock(session) + wait, self.settings.max_attempts
                outcome = ledger.book.retry(session, claim, reason, not_before, most, blameless=blameless)
        except Exception as wrong:  # noqa: BLE001 - whatever keeps us from writing, the lease brings the study back
            outcome = f"left to its lease ({type(wrong).__name__})"
        log.warning(outcome, extra=study | {"why": reason})
        return outcome

    def close(self) -> None:
        """Stop the model and the decoders, write what is done, give connections back."""
        self.decoders.close()
        self.batcher.close()
        self.watchdog.close()
        self.ledger.close()
        self.looks.close()
        self.leases.close()
        self.database.close()


class Load:
    """How much this worker does: messages ever taken, for a study or a film, and those in hand."""

    def __init__(self) -> None:
        self.taken = self.in_hand = 0
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """One study or film is in hand during the block."""
        with self._lock:
            self.taken += 1
            self.in_hand += 1
        try:
            yield
        finally:
            with self._lock:
                self.in_hand -= 1


class Gate:
    """Suspects are analysed alone: if one kills the process, no neighbour dies with it and is blamed.

    First come, first in: neither suspects nor the others can keep each other out for good.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets = itertools.count()
        self._next = 0
        self._inside = 0
        self._alone = False

    @contextmanager
    def among_others(self) -> Iterator[None]:
        """Enter together with any number of others."""
        with self._changed:
            ticket = next(self._tickets)
            self._changed.wait_for(lambda: ticket == self._next and not self._alone)
            self._next += 1
            self._inside += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Enter once everybody has left, and keep everybody out; later ones queue up behind."""
        with self._changed:
            ticket = next(self._tickets)
            self._changed.wait_for(lambda: ticket == self._next and not self._alone and not self._inside)
            self._next += 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


class Leases:
    """Renews the leases of all studies and second looks in hand, in a statement each, three times per lease."""

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
                        until = work.clock(session) + self._lease
                        work.renew(session, tokens, until)
                        second_looks.renew(session, tokens, until)
                except OsteonError as wrong:
                    log.warning("leases not renewed", extra={"why": str(wrong)})
                except Exception:
                    log.exception("leases not renewed")  # and the keeper must outlive it


def threads_for(settings: Settings) -> int:
    """Task threads: the backlog fills a batch while another one is decoded, and live studies find room beside it."""
    return max(settings.worker_threads, 3 * settings.batch_size, 3 * cpu_count())
