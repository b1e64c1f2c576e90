"""Writes claims and results to Postgres, of many studies in one transaction.

A commit costs about the same for one study as for thirty. Those that come within PACE_S of the transaction before share
the next; a few that are not urgent wait up to FEW_PACE_S for more.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from shared.db.clock import db_now
from shared.db.engine import Database
from shared.domain.study import Priority
from shared.errors import Locked, Unavailable
from shared.queries import analyses
from shared.queue.celery_app import QUEUES
from worker.batching import Batcher

MAX_BATCH_STUDIES = 64  # studies a transaction
RETRY_DELAY_S, RETRY_LIMIT_S = 0.5, 30.0  # between tries to write results, and how long they are tried
FEW = 16  # from so many on, waiting longer would save little more
PACE_S, FEW_PACE_S = 0.05, 0.5  # see docs/adr/0013-decoding-in-child-processes.md


class RowLocked(Exception):
    """Another transaction has locked a row of one of several studies."""


class GroupCommitter:
    """Collects claims and results of threads into group commits; each thread gets its own result."""

    def __init__(self, database: Database, lease: timedelta, max_attempts: int, slots: int) -> None:
        """Start the two batchers.

        Args:
            database: with the tables.
            lease: of each claim.
            max_attempts: as `analyses.claim` has it.
            slots: studies that can be in hand. Under a third of them wait here for others: most must be at work.
        """
        self._database, self._lease, self._max_attempts = database, lease, max_attempts
        # a database that is down fails all alike; halving would only ask it more often
        pace: dict[str, Any] = {
            "max_batch": MAX_BATCH_STUDIES,
            "pace_s": PACE_S,
            "few": min(FEW, slots // 3),
            "few_pace_s": FEW_PACE_S,
            "common": (Unavailable,),
        }
        self._claims = Batcher("claims", self._claim, **pace)
        self._results = Batcher("results", self._finish, **pace)

    def claim(self, analysis_id: UUID, model: str, queue: Priority) -> analyses.ClaimResult:
        """Claim one analysis, together with others; raises Unavailable.

        Args:
            analysis_id: in the message.
            model: name of the active bundle.
            queue: that of the message.

        Returns:
            As `analyses.claim`.
        """
        return self._claims.submit((analysis_id, model), QUEUES.index(queue)).result()

    def claim_alone(self, analysis_id: UUID, model: str) -> analyses.ClaimResult:
        """Claim an analysis that nothing else is analysed beside; raises Unavailable.

        Args:
            analysis_id: in the message.
            model: name of the active bundle.

        Returns:
            As `analyses.claim`.
        """
        with self._database.transaction() as session:
            (result,) = analyses.claim(
                session,
                [analysis_id],
                model,
                db_now(session),
                self._lease,
                max_attempts=self._max_attempts,
                alone=True,
            )
        return result

    def finish(self, done: analyses.AnalysisResult, *, alone: bool = False) -> bool:
        """Write results; once it returns, they are durable.

        They cost a second of work, and the study stays ours for as long as nobody else can ask the database for it
        either: so while that is away, or has the study's row locked, they wait.

        Args:
            done: a claim with its results.
            alone: no other study is in hand, so it waits for none.

        Returns:
            False if the lease is another worker's by now, and nothing was written.

        Raises:
            Locked: Another transaction held the row for RETRY_LIMIT_S.
            Unavailable: Postgres was away for RETRY_LIMIT_S.
        """
        place = 0 if alone else QUEUES.index(done.claim.priority)

        def written() -> bool:
            result = self._results.submit(done, place).result()
            if isinstance(result, bool):
                return result
            raise Locked(f"Another transaction held the study's row in Postgres. {Locked.HINT}")

        policy = Retrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_fixed(RETRY_DELAY_S),
            stop=stop_after_delay(RETRY_LIMIT_S),
            reraise=True,
        )
        return policy(written)

    def close(self) -> None:
        """Write what waits, then stop."""
        self._claims.close()
        self._results.close()

    @contextmanager
    def _transaction(self, items: int) -> Iterator[Session]:
        """Open a transaction for a number of analyses; a lock that one of several meets is raised as RowLocked."""
        try:
            with self._database.transaction() as session:
                yield session
        except Locked as error:
            if items > 1:
                raise RowLocked from error
            raise

    def _claim(self, requests: Sequence[tuple[UUID, str]]) -> list[analyses.ClaimResult]:
        results: dict[tuple[UUID, str], analyses.ClaimResult] = {}
        with self._transaction(len(requests)) as session:
            now = db_now(session)
            for model in {model for _, model in requests}:  # two, for a moment after an activation
                ids = list(dict.fromkeys(analysis_id for analysis_id, its in requests if its == model))
                given = analyses.claim(session, ids, model, now, self._lease, max_attempts=self._max_attempts)
                results |= {(analysis_id, model): result for analysis_id, result in zip(ids, given, strict=True)}
        # two messages for one analysis: the first has the claim
        return [results.pop(one, None) for one in requests]

    def _finish(self, done: Sequence[analyses.AnalysisResult]) -> list[analyses.Written]:
        with self._transaction(len(done)) as session:
            return analyses.finish(session, done, db_now(session))
