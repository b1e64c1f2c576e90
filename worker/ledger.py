"""Claims and results on their way to Postgres, of many studies in one transaction.

A commit costs about the same for one study as for thirty. Those that come within PACE_S of the transaction before share
the next; a few that are not urgent wait up to FEW_PACE_S for more.
"""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy.orm import Session

from shared.errors import Unavailable
from shared.jobs import QUEUES
from shared.repository import Database, work
from shared.study import Claim, Priority
from worker.batching import Batcher

MOST = 64  # studies a transaction
PATIENCE_S = 30.0
FEW = 16  # from so many on, waiting longer would save little more
PACE_S, FEW_PACE_S = 0.05, 0.5  # see docs/adr/0013-decoding-in-child-processes.md


class Book(Protocol):
    """Where work is written down: `work` for studies, `second_looks` for second looks."""

    def claim(
        self,
        session: Session,
        study_ids: Sequence[UUID],
        bundle: str,
        now: datetime,
        lease: timedelta,
        *,
        max_attempts: int,
        alone: bool = False,
    ) -> list[work.Answer]:
        """As work.claim."""

    def finish(self, session: Session, done: Sequence[work.Analysed], now: datetime) -> list[bool]:
        """As work.finish."""

    def retry(
        self,
        session: Session,
        claimed: Claim,
        reason: str,
        not_before: datetime,
        max_attempts: int,
        *,
        blameless: bool = False,
    ) -> str:
        """As work.retry."""


class Ledger:
    """Group commits: `claim` and `finish` for threads, each with the answer to what it asked."""

    def __init__(self, database: Database, lease: timedelta, max_attempts: int, places: int, book: Book = work) -> None:
        """places: how many studies may be in hand; most of them must be at work, and not wait here for company."""
        self.book = book
        self._database, self._lease, self._max_attempts = database, lease, max_attempts
        # a database that is down fails all alike; halving would only ask it more often
        pace: dict[str, Any] = {
            "max_batch": MOST,
            "pace_s": PACE_S,
            "few": min(FEW, places // 3),
            "few_pace_s": FEW_PACE_S,
            "common": (Unavailable,),
        }
        self._claims = Batcher("claims", self._claim, **pace)
        self._results = Batcher("results", self._finish, **pace)

    def claim(self, study_id: UUID, bundle: str, queue: Priority) -> work.Answer:
        """As work.claim, among others; queue: that of the study's message. Raises Unavailable."""
        return self._claims.submit((study_id, bundle), QUEUES.index(queue)).result()

    def claim_alone(self, study_id: UUID, bundle: str) -> work.Answer:
        """As work.claim, for a study that nothing else is analysed beside. Raises Unavailable."""
        with self._database.transaction() as session:
            (answer,) = self.book.claim(
                session,
                [study_id],
                bundle,
                work.clock(session),
                self._lease,
                max_attempts=self._max_attempts,
                alone=True,
            )
        return answer

    def finish(self, done: work.Analysed, *, alone: bool = False) -> bool:
        """As work.finish: once it returns, the results are durable. alone: nothing is in hand that could come along.

        They cost a second of work, and the study stays ours for as long as nobody else can ask the database for it
        either: so while that is away they wait for it. Raises Unavailable after PATIENCE_S.
        """
        deadline, place = time.monotonic() + PATIENCE_S, 0 if alone else QUEUES.index(done.claim.priority)
        while True:
            try:
                return self._results.submit(done, place).result()
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def close(self) -> None:
        """Write what waits."""
        self._claims.close()
        self._results.close()

    def _claim(self, wanted: Sequence[tuple[UUID, str]]) -> list[work.Answer]:
        answers: dict[tuple[UUID, str], work.Answer] = {}
        with self._database.transaction() as session:
            now = work.clock(session)
            for bundle in {bundle for _, bundle in wanted}:  # two, for a moment after an activation
                ids = list(dict.fromkeys(study_id for study_id, its in wanted if its == bundle))
                given = self.book.claim(session, ids, bundle, now, self._lease, max_attempts=self._max_attempts)
                answers |= {(study_id, bundle): answer for study_id, answer in zip(ids, given, strict=True)}
        # two messages for one study: the first has the claim
        return [answers.pop(one, None) for one in wanted]

    def _finish(self, done: Sequence[work.Analysed]) -> list[bool]:
        with self._database.transaction() as session:
            return self.book.finish(session, done, work.clock(session))
