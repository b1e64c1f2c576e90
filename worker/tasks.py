"""Handles a Celery message: claims, analyses and writes; or retries, or quarantines."""

import io
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import numpy as np
from structlog.contextvars import bound_contextvars

from shared.db.clock import db_now
from shared.db.engine import WORKER, Database
from shared.dicom.image import ImageLimits
from shared.domain.analysis import Claim, Purpose, TaskOutcome
from shared.domain.study import Priority
from shared.errors import (
    DatabaseFull,
    Locked,
    ObjectMissing,
    OsteonError,
    Rejected,
    StoreUnavailable,
    Unavailable,
    cause_of,
)
from shared.logs import get_logger
from shared.model.engines import calling_threads, images_per_call
from shared.model.predictor import Predictor
from shared.queries import analyses, studies
from shared.settings import Settings, cpu_count
from shared.storage import frame_key, open_store, raw_frame_key
from worker import metrics
from worker.analysis import analyse
from worker.batching import Batcher
from worker.decoder_pool import Decoders, DecodingFailed, FrameJob
from worker.frames import is_frame, refusal
from worker.group_commit import GroupCommitter
from worker.isolation import Isolation
from worker.leases import Leases
from worker.pipeline import ModelBatcher
from worker.predictor import ActivePredictor, predict
from worker.preemption import Preemption
from worker.watchdog import Watchdog

log = get_logger(__name__)
NOT_BEGUN = (TaskOutcome.NOTHING_TO_DO, TaskOutcome.SUSPECT, TaskOutcome.LOCKED, TaskOutcome.LEFT)
LOCKED_RETRY_DELAY_S = 0.5  # for a study whose row is locked


@dataclass(frozen=True)
class AnalysisJob:
    """The analysis that a message asks for."""

    analysis_id: UUID
    queue: Priority = field(default=Priority.BACKLOG, compare=False)  # where the message came from


class Engine:
    """Everything that the tasks of one worker process share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        store_url = settings.store_url.get_secret_value()
        self.load = MessageCount()
        self.preemption = Preemption()
        self.database = Database(settings.database_url.get_secret_value(), settings.database_pool_size, WORKER)
        self.store = open_store(store_url)
        self.predictor = ActivePredictor(self.database, self.store, settings.cache)
        self.decoders = Decoders(
            store_url,
            ImageLimits.of(settings),
            count=settings.decoders or cpu_count(),
            limit_s=settings.decode_limit_s,
            memory_bytes=settings.decode_memory_bytes,
            log_level=settings.log_level,
            preemption=self.preemption,
            observe=metrics.DECODING.observe,
        )
        self.batcher: ModelBatcher = Batcher(
            "model",
            metrics.with_model_metrics(predict),
            max_batch=images_per_call(settings.batch_size),
            max_wait_s=settings.batch_wait_ms / 1000,
            streams=calling_threads(),
            preemption=self.preemption,
        )
        self.watchdog = Watchdog(self.batcher.streams, settings.predict_limit_s)
        lease = timedelta(seconds=settings.lease_s)
        slots = threads_for(settings)
        self.committer = GroupCommitter(self.database, lease, settings.max_attempts, slots)
        self.isolation = Isolation()
        self._waiting_alone: set[AnalysisJob] = set()
        self._waiting_lock = threading.Lock()
        self._frames = threading.BoundedSemaphore(threads_for(settings) // 2)
        # threads that may wait for a locked study; the others are the other studies'
        self._waiting = threading.BoundedSemaphore(max(1, threads_for(settings) // 4))
        self.leases = Leases(self.database, lease)

    def warm_up(self) -> None:
        """Load the active bundle and run it once: the first study should not wait for a compiler."""
        try:
            predictor = self.predictor.current()
            blank = np.zeros((predictor.size, predictor.size), np.uint8)
            for pending in [self.batcher.submit((predictor, blank)) for _ in self.batcher.streams]:
                pending.result()
        except OsteonError as error:
            log.warning("warm-up failed", why=str(error))

    def analyse(self, analysis_id: UUID, queue: Priority = Priority.ROUTINE) -> TaskOutcome:
        """Make one analysis to its end. Messages may come twice, or for nothing.

        Args:
            analysis_id: in the message.
            queue: that of the message.

        Returns:
            The outcome, for Flower.
        """
        with self.load.counting():
            return self._counted(AnalysisJob(analysis_id, queue))

    def analyse_study(self, study_id: UUID, queue: Priority = Priority.ROUTINE, model: str = "") -> TaskOutcome:
        """Handle a message of a version before 0.2.0: analyse a study, or have another model do so.

        Nothing is lost without it: the reconciler finds the analyses whose own messages are missing.

        Args:
            study_id: in the message.
            queue: that of the message.
            model: whose rerun is asked for; "" for the study's own analysis.

        Returns:
            The outcome, for Flower.
        """
        with self.load.counting():
            try:
                with self.database.transaction() as session:
                    analysis_id = analyses.find_for_old_message(session, study_id, model)
            except OsteonError as error:
                log.warning("analysis not started", study=str(study_id), why=str(error))
                return TaskOutcome.LEFT
            return self._counted(AnalysisJob(analysis_id, queue)) if analysis_id else TaskOutcome.NOTHING_TO_DO

    def _counted(self, job: AnalysisJob) -> TaskOutcome:
        with bound_contextvars(analysis=str(job.analysis_id)):
            outcome = self._analysed(job)
        if outcome in NOT_BEGUN:
            metrics.count_outcome(outcome)
        return outcome

    def full_frame(self, instance_id: UUID, frame: int, *, raw: bool = False) -> TaskOutcome:
        """Make a full-resolution frame, or store why there is none. Who waits for it asks again if need be.

        Args:
            instance_id: of the image.
            frame: 1 for the first.
            raw: its stored values; else as our own viewer shows it.

        Returns:
            The outcome, for Flower.
        """
        if not self._frames.acquire(blocking=False):
            return TaskOutcome.BUSY  # half of the threads make frames already: studies need the others
        with bound_contextvars(instance=str(instance_id)):
            try:
                with self.load.counting():
                    return self._make_frame(instance_id, frame, raw=raw)
            except OsteonError as error:
                log.warning("frame not made", why=str(error))
            except Exception:
                log.exception("frame not made")
            finally:
                self._frames.release()
        return TaskOutcome.FAILED

    def sweep_frames(self) -> int | None:
        """Remove frames older than OSTEON_FULL_FRAMES_DAYS; return how many, or None if the store failed."""
        try:
            swept = self.store.sweep(timedelta(days=self.settings.full_frames_days))
        except StoreUnavailable as error:
            log.warning("frames not swept", why=str(error))
            return None
        log.info("frames swept", frames=swept)
        return swept

    def _make_frame(self, instance_id: UUID, frame: int, *, raw: bool) -> TaskOutcome:
        with self.database.transaction() as session:
            sha256 = studies.sha256_of_instance(session, instance_id)
        if sha256 is None:
            return TaskOutcome.NOTHING_TO_DO
        key = raw_frame_key(sha256, frame) if raw else frame_key(sha256, frame)
        if self.store.exists(key) and is_frame(self.store.get(key)):
            return TaskOutcome.MADE_ALREADY
        try:
            self.decoders.frame(FrameJob(sha256, frame, raw)).result()
        except Rejected as error:
            marker = refusal(error.cause, heals=False)
        except (DecodingFailed, ObjectMissing) as error:
            marker = refusal(error.cause, heals=True)
        else:
            return TaskOutcome.MADE
        self.store.put(key, io.BytesIO(marker), len(marker))
        return TaskOutcome.REFUSED

    def _analysed(self, job: AnalysisJob) -> TaskOutcome:
        try:
            # claimed in isolation: who waits for that holds no lease, and a crash meanwhile costs it no attempt
            outcome = self._unless_locked(job)
            if outcome is TaskOutcome.SUSPECT and self._first_to_wait(job):
                try:
                    with self.isolation.exclusive():
                        outcome = self._attempt(job, alone=True)
                finally:
                    self._waiting_alone.discard(job)
            if outcome is TaskOutcome.LOCKED:
                log.warning("analysis not started", why=Locked.HINT, outcome=outcome)
            return outcome
        except OsteonError as error:
            # not claimed: the reconciler rings again when the part that is missing may be back
            log.warning("analysis not started", why=str(error))
        except Exception:
            log.exception("analysis not started")
        return TaskOutcome.LEFT

    def _unless_locked(self, job: AnalysisJob) -> TaskOutcome:
        """Attempt it among others; a few threads ask again for a study that another transaction has locked.

        They ask until the reconciler knows that no queue has the study: then it sends a message once the row is free.
        """
        with self.isolation.shared():
            outcome = self._attempt(job, alone=False)
        if outcome is not TaskOutcome.LOCKED or not self._waiting.acquire(blocking=False):
            return outcome
        try:
            settings = self.settings
            deadline = time.monotonic() + settings.resend_grace_s + 3 * settings.reconcile_every_s
            while outcome is TaskOutcome.LOCKED and time.monotonic() < deadline:
                time.sleep(LOCKED_RETRY_DELAY_S)
                with self.isolation.shared():
                    outcome = self._attempt(job, alone=False)
        finally:
            self._waiting.release()
        return outcome

    def _first_to_wait(self, job: AnalysisJob) -> bool:
        """Check that no other thread waits to be alone with this study: a second message adds nothing."""
        with self._waiting_lock:
            first = job not in self._waiting_alone
            self._waiting_alone.add(job)
        return first

    def _attempt(self, job: AnalysisJob, *, alone: bool) -> TaskOutcome:
        active = self.predictor.current()
        name = active.manifest.name
        if alone:
            claim = self.committer.claim_alone(job.analysis_id, name)
        else:
            claim = self.committer.claim(job.analysis_id, name, job.queue)
        if claim is None:
            return TaskOutcome.NOTHING_TO_DO
        if isinstance(claim, analyses.NotClaimed):
            return TaskOutcome.SUSPECT if claim is analyses.NOT_ALONE else TaskOutcome.LOCKED
        with self.leases.holding(claim), bound_contextvars(study=str(claim.study_id), attempt=claim.attempt):
            outcome = self._analyse(claim, active, alone=alone)
        if claim.purpose is Purpose.FIRST:
            metrics.count_outcome(outcome)
        return outcome

    def _analyse(self, claim: Claim, active: Predictor, *, alone: bool) -> TaskOutcome:
        last = claim.attempt >= self.settings.max_attempts
        try:
            # one that cannot be loaded costs an attempt
            predictor = active if claim.model == active.manifest.name else self.predictor.of(claim.model)
            with self.preemption.live_study_in_hand() if claim.priority is not Priority.BACKLOG else nullcontext():
                results = analyse(claim, predictor, self.decoders.submit, self.batcher, last_attempt=last)
            written = self.committer.finish(analyses.AnalysisResult(claim, results), alone=alone)
        except StoreUnavailable as error:
            return self._retry_later(claim, error, blameless=not self._store_works())
        except (DatabaseFull, Locked) as error:  # of which no study is to blame
            return self._retry_later(claim, error, blameless=True)
        except (Unavailable, ObjectMissing, DecodingFailed) as error:
            return self._retry_later(claim, error)
        except Exception as error:
            log.exception("analysis crashed")
            return self._retry_later(claim, error)
        if written and claim.purpose is Purpose.FIRST:  # of a rerun the arrival tells nothing
            metrics.observe_wait(claim)
        outcome = TaskOutcome.ANALYSED if written else TaskOutcome.LEASE_LOST
        log.info("analysis finished", outcome=outcome, images=len(results))
        return outcome

    def _store_works(self) -> bool:
        try:
            self.store.check_writable()
        except StoreUnavailable:
            return False
        return True

    def _retry_later(self, claim: Claim, failure: Exception, *, blameless: bool = False) -> TaskOutcome:
        """Retry with exponential backoff and jitter; if even that cannot be written, the lease runs out by itself.

        blameless: the attempt does not count, for a store that is down or a full disk says nothing about the study.
        """
        base = self.settings.retry_base_s * 2 ** (claim.attempt - 1)
        why = cause_of(failure)
        # of what nobody foresaw only the class: its words may hold what the header holds
        fields = {
            "reason": why.reason,
            "detail": why.detail,
            "why": str(failure) if isinstance(failure, OsteonError) else "",
        }
        wait = timedelta(seconds=min(600.0, base) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        try:
            with self.database.transaction() as session:
                not_before, max_attempts = db_now(session) + wait, self.settings.max_attempts
                outcome = analyses.retry(session, claim, why, not_before, max_attempts, blameless=blameless)
        except Exception as error:  # noqa: BLE001 - whatever keeps us from writing, the lease brings the study back
            outcome = TaskOutcome.LEFT_TO_LEASE
            fields["unwritten"] = type(error).__name__
        log.warning("analysis failed", outcome=outcome, **fields)
        return outcome

    def close(self) -> None:
        """Stop the model and the decoders, write what is done, give connections back."""
        self.decoders.close()
        self.batcher.close()
        self.watchdog.close()
        self.committer.close()
        self.leases.close()
        self.database.close()


class MessageCount:
    """Counts this worker's messages: all it ever took, for a study or a frame, and those in hand."""

    def __init__(self) -> None:
        self.taken = self.in_hand = 0
        self._lock = threading.Lock()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count one study or frame as in hand during the block."""
        with self._lock:
            self.taken += 1
            self.in_hand += 1
        try:
            yield
        finally:
            with self._lock:
                self.in_hand -= 1


def threads_for(settings: Settings) -> int:
    """Number of task threads: the backlog fills a batch while another is decoded, with room for live studies."""
    return max(settings.worker_threads, 3 * settings.batch_size, 3 * cpu_count())
