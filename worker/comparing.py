"""Held files whose pixels only a decoder can compare: a few at a time, beside the studies."""

import logging
import threading
from collections.abc import Callable

from shared.comparison import Verdict
from shared.errors import OsteonError, Rejected
from shared.held import Kind
from shared.repository import Database, held, work
from shared.settings import Settings
from worker.decoding import Decoders, DecodingFailed, PairJob

log = logging.getLogger(__name__)
KINDS = {Verdict.SAME: None, Verdict.HEADER: Kind.CORRECTION, Verdict.PIXELS: Kind.PIXELS}


def compare_held(settings: Settings, database: Database, decoders: Decoders) -> int:
    """Compare what waits, a few at a time; how many were settled. Raises Unavailable.

    What cannot be decoded is a conflict: nobody can say that it is the same image.
    """
    with database.transaction() as session:
        pairs = held.to_compare(session, work.clock(session))
    settled = 0
    for pair in pairs:
        try:
            kind = KINDS[decoders.compare(PairJob(pair.stored, pair.held)).result()]
        except Rejected:
            kind = Kind.PIXELS
        except DecodingFailed as wrong:
            log.warning("a held file was not compared", extra={"held": str(pair.held_id), "why": str(wrong)})
            if pair.attempt < settings.max_attempts:
                continue
            kind = Kind.PIXELS
        with database.transaction() as session:
            held.compared(session, pair.held_id, kind)
        settled += 1
    return settled


class Comparing:
    """Runs `compare_held` in a thread of its own, so that a sweep never waits for a decoder."""

    def __init__(self, compare: Callable[[], int]) -> None:
        self._compare = compare
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin unless the last one still runs; raises nothing."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="comparing", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while self._compare():
                pass
        except OsteonError as wrong:
            log.warning("held files not compared", extra={"why": str(wrong)})
        except Exception:
            log.exception("held files not compared")
