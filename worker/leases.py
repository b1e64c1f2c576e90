"""Renews the leases of the analyses in hand."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID

from shared.db.clock import db_now
from shared.db.engine import Database
from shared.domain.analysis import Claim
from shared.errors import OsteonError
from shared.logs import get_logger
from shared.queries import analyses

log = get_logger(__name__)


class Leases:
    """Renews the leases of all analyses in hand, in one statement, three times per lease."""

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
                        analyses.renew_leases(session, tokens, db_now(session) + self._lease)
                except OsteonError as error:
                    log.warning("leases not renewed", why=str(error))
                except Exception:
                    log.exception("leases not renewed")  # and the keeper must outlive it
