"""Has each set of results made once: reads the originals, stores the objects, writes their rows and deliveries."""

import io
import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import TypeAlias
from uuid import UUID

import pydicom

import shared
from shared.db.engine import Database
from shared.domain.destinations import SetReason, next_wait
from shared.domain.results import ResultInput, ResultKind, ResultObject
from shared.errors import DECODING, ObjectMissing, OsteonError, Rejected, StoreUnavailable
from shared.logs import get_logger
from shared.queries import results
from shared.queries.results import DueSet, MadeObject, Plan
from shared.queue.liveness import Progress
from shared.settings import Settings
from shared.storage import Store, original_key, sha256_of

log = get_logger(__name__)
LOOK_EVERY_S = 1.0
MAKERS = 2  # sets at a time: one whose original hangs its decoder holds up no other
MAX_ATTEMPTS = 4  # at a set whose making fails with something that nobody foresaw, or kills the process
STORE_TRIED = 12  # times, over hours, that the store may be away

Build: TypeAlias = Callable[
    [ResultInput, Collection[ResultKind], Callable[[str], bytes]], Sequence[ResultObject]
]  # inputs, kinds, and how an original is read by its SHA-256


class Maker:
    """Makes sets, MAKERS at a time and never two of one study."""

    def __init__(
        self, settings: Settings, database: Database, store: Store, build: Build, able: Collection[ResultKind]
    ) -> None:
        """Begin nothing yet.

        Args:
            settings: of this process.
            database: with the tables.
            store: holds the originals, and takes the objects.
            build: makes objects.
            able: the kinds that it makes.
        """
        self._settings, self._database, self._store = settings, database, store
        self._build, self._able = build, frozenset(able)
        self._lease = timedelta(seconds=max(60.0, 2 * settings.lease_s))
        self._held: set[UUID] = set()  # tokens
        self._renewed = time.monotonic()
        self.progress = Progress()
        self.stopping = threading.Event()

    def run(self) -> None:
        """Look until `stopping` is set, and finish the sets in hand."""
        makers = [threading.Thread(target=self._run, name=f"maker-{number}") for number in range(MAKERS)]
        for maker in makers:
            maker.start()
        while any(maker.is_alive() for maker in makers):
            self._goes_on()
            makers[0].join(LOOK_EVERY_S)
            try:
                self.renew()
            except OsteonError as error:
                log.warning("results not checked", error=type(error).__name__)
            except Exception:
                log.exception("results not checked")
        self.progress.done(threading.get_ident())

    def renew(self) -> None:
        """Go on having the sets in hand; now and then is enough."""
        held = set(self._held)
        if held and time.monotonic() - self._renewed > self._lease.total_seconds() / 4:
            with self._database.transaction() as session:
                results.renew(session, held, self._lease)
            self._renewed = time.monotonic()

    def _run(self) -> None:
        """Make one set after the other; an error is logged, and the next look comes all the same."""
        while not self.stopping.wait(LOOK_EVERY_S):
            self._goes_on()
            try:
                while not self.stopping.is_set() and self.look():
                    pass
            except OsteonError as error:
                log.warning("results not checked", error=type(error).__name__)
            except Exception:
                log.exception("results not checked")
        self.progress.done(threading.get_ident())

    def _goes_on(self) -> None:
        """Say that this thread's loop does."""
        self.progress.expect(threading.get_ident())

    def look(self) -> bool:
        """Make one set; return whether there was one."""
        self._goes_on()
        with self._database.transaction() as session:
            due = results.take(session, self._lease)
        if due is None:
            return False
        self._held.add(due.token)
        try:
            self._try(due)
        finally:
            self._held.discard(due.token)
        return True

    def _try(self, due: DueSet) -> None:
        """Make a set, or note why it was not made."""
        try:
            self._make(due)
        except StoreUnavailable as error:
            self._record_failure(due, SetReason.STORE_UNAVAILABLE, error.detail, STORE_TRIED)
        except Rejected as error:  # an original lacks what an object needs: it always will
            self._record_failure(due, SetReason.SOURCE_LACKS, error.detail, 0)
        except ObjectMissing:
            self._record_failure(due, SetReason.NOT_MADE, "ObjectMissing", 0)
        except OsteonError as error:
            if error.reason not in DECODING:
                raise
            self._record_failure(due, SetReason.NOT_MADE, error.reason, MAX_ATTEMPTS)
        except Exception as error:
            log.exception("results not made", set=str(due.id))
            self._record_failure(due, SetReason.NOT_MADE, type(error).__name__, MAX_ATTEMPTS)

    def _make(self, due: DueSet) -> None:
        began = time.monotonic()
        if due.attempts > MAX_ATTEMPTS + STORE_TRIED:  # it ended this process each time
            self._record_failure(due, SetReason.NOT_MADE, "attempts", 0)
            return
        zone = self._settings.backfill_timezone
        with self._database.transaction() as session:
            planned = results.plan(session, due, self._able, zone, shared.__version__)
            if isinstance(planned, SetReason):
                results.record_failure(session, due, planned, wait=None)
        if isinstance(planned, SetReason):
            log.info("results withheld", set=str(due.id), reason=planned)
            return
        made = self._objects(planned)
        with self._database.transaction() as session:
            written = results.write_objects(session, due, planned, made)
        log.info(
            "results made", set=str(due.id), study=str(due.study_id), objects=len(made), written=written,
            destinations=len(planned.destinations), seconds=round(time.monotonic() - began, 3),
        )  # fmt: skip

    def _objects(self, planned: Plan) -> list[MadeObject]:
        if not planned.missing:
            return []

        def read(sha256: str) -> bytes:
            self._goes_on()
            return self._store.get(original_key(sha256))

        made = []
        for one in self._build(planned.stated, planned.missing, read):
            self._goes_on()
            sha256 = sha256_of(one.content)
            self._store.put(original_key(sha256), io.BytesIO(one.content), len(one.content))
            head = pydicom.dcmread(
                io.BytesIO(one.content), stop_before_pixels=True, specific_tags=["Modality", "Rows", "Columns"]
            )
            made.append(
                MadeObject(
                    one.kind, one.number, one.sop_class_uid, one.series_instance_uid, one.sop_instance_uid,
                    one.transfer_syntax_uid, sha256, len(one.content), str(head.get("Modality", "")),
                    int(head.get("Rows", 0) or 0), int(head.get("Columns", 0) or 0),
                )
            )  # fmt: skip
        return made

    def _record_failure(self, due: DueSet, reason: SetReason, detail: str, max_attempts: int) -> None:
        wait = next_wait(due.attempts) if due.attempts < max_attempts else None
        with self._database.transaction() as session:
            results.record_failure(session, due, reason, detail, wait=wait)
        log.warning("results not made", set=str(due.id), reason=reason, detail=detail, again=wait is not None)
