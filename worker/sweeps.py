"""What runs beside the studies: the reconciler, every few seconds, and the nightly run."""

import logging
import threading
from datetime import UTC, datetime, timedelta

from shared.backlog import night_of
from shared.errors import OsteonError
from shared.jobs import Doorbell
from shared.repository import Database, nights, work
from shared.repository.bundles import active_bundle
from shared.settings import Settings

log = logging.getLogger(__name__)


def reconcile(database: Database, doorbell: Doorbell, grace: timedelta) -> int:
    """Send what stands in Postgres and is nowhere else; returns how many messages left. Raises Unavailable."""
    now = datetime.now(UTC)  # before the look: what is sent from here on is not lost yet
    heads = doorbell.heads()
    with database.transaction() as session:
        to_send = work.lost(session, heads, now, grace)
    return len(to_send) - _ring(database, doorbell, to_send)


def _ring(database: Database, doorbell: Doorbell, to_send: list[work.ToSend]) -> int:
    failed = doorbell.ring(to_send)
    if failed:
        with database.transaction() as session:
            work.sending_failed(session, failed)
    return len(failed)


class Reconciler:
    """The reconciler as a thread of the worker; an advisory lock lets one at a time through, however many there are."""

    def __init__(self, settings: Settings, database: Database, doorbell: Doorbell) -> None:
        self._every_s, self._grace = settings.reconcile_every_s, timedelta(seconds=settings.resend_grace_s)
        self._database, self._doorbell = database, doorbell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the sweep under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                sent = reconcile(self._database, self._doorbell, self._grace)
                if sent:
                    log.info("reconciled", extra={"sent": sent})
            except OsteonError as wrong:
                log.warning("could not reconcile", extra={"why": str(wrong)})
            except Exception:
                log.exception("the reconciler met something unknown")  # and must outlive it


def nightly(settings: Settings, database: Database, doorbell: Doorbell, now: datetime) -> int | None:
    """Run tonight's backlog run, or do nothing (None) if it ran; returns how many studies were queued.

    Raises Unavailable.
    """
    with database.transaction() as session:
        active = active_bundle(session)
        if active is None:
            return None
        run_id = nights.begin_night(session, night_of(now, settings.nightly_timezone), now, active.name)
        if run_id is None:
            return None
        chosen = nights.gather(session, run_id, active.name, now - nights.STRANDED_AFTER, settings.nightly_max_studies)
        nights.end_night(session, run_id, datetime.now(UTC))
        to_send = work.unsent(session, chosen, now)
    _ring(database, doorbell, to_send)
    log.info("nightly run", extra={"studies": len(chosen)})
    return len(chosen)
