"""Compares held files whose pixels only a decoder can compare: a few at a time, beside the studies."""

import threading
from collections.abc import Callable

from shared.db.clock import db_now
from shared.db.engine import Database
from shared.dicom.comparison import Verdict
from shared.domain.held import HeldKind
from shared.errors import ObjectMissing, OsteonError, Rejected
from shared.logs import get_logger
from shared.queries import held
from shared.settings import Settings
from worker.decoder_pool import Decoders, DecodingFailed, PairJob

log = get_logger(__name__)
KINDS = {Verdict.SAME: None, Verdict.HEADER: HeldKind.CORRECTION, Verdict.PIXELS: HeldKind.PIXELS}


def compare_held(settings: Settings, database: Database, decoders: Decoders) -> int:
    """Compare held files that wait for it, a few at a time.

    What cannot be decoded is a conflict: nobody can say that it is the same image.

    Args:
        settings: number of attempts.
        database: with the tables.
        decoders: of this worker.

    Returns:
        How many were settled.

    Raises:
        Unavailable: Postgres or the store does not answer.
    """
    with database.transaction() as session:
        pairs = held.take_to_compare(session, db_now(session))
    decided = 0
    for pair in pairs:
        try:
            kind: HeldKind | None = HeldKind.PATIENT
            if pair.stored is not None:
                kind = KINDS[decoders.compare(PairJob(pair.stored, pair.held)).result()]
            if kind is not None and any(_same(decoders, other, pair.held) for other in pair.others):
                kind = None
        except Rejected:
            kind = HeldKind.PIXELS
        except DecodingFailed as error:
            log.warning("held file not compared", held=str(pair.held_id), why=str(error))
            if pair.attempt < settings.max_attempts:
                continue
            kind = HeldKind.PIXELS
        with database.transaction() as session:
            held.record_comparison(session, pair.held_id, kind)
        decided += 1
    return decided


def _same(decoders: Decoders, one: str, other: str) -> bool:
    """Whether two objects are the same; what cannot be decoded, or is gone, is not."""
    try:
        return decoders.compare(PairJob(one, other)).result() is Verdict.SAME
    except (Rejected, DecodingFailed, ObjectMissing) as error:
        log.info("held file not compared", why=type(error).__name__)
        return False


class ComparisonThread:
    """Runs `compare_held` in a thread of its own, so that a sweep never waits for a decoder."""

    def __init__(self, compare: Callable[[], int]) -> None:
        self._compare = compare
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless the last comparison still runs; raises nothing."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="comparing", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while self._compare():
                pass
        except OsteonError as error:
            log.warning("comparison interrupted", why=str(error))
        except Exception:
            log.exception("comparison interrupted")
