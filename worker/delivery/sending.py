"""Sends what is due, one association at a time for each destination, and notes each answer before the next object."""

import hashlib
import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pydicom

from shared.db.engine import Database
from shared.dicom.commitment import PROCESSING_FAILURE, TAKEN, UNKNOWN_TRANSACTION, Report
from shared.domain.destinations import (
    HALTS,
    MISFIT,
    Answer,
    DeliveryReason,
    DeliveryState,
    DestinationKind,
    printable_words,
)
from shared.domain.identity import same_patient
from shared.domain.study import Identity
from shared.errors import ObjectMissing, OsteonError, StoreUnavailable
from shared.logs import get_logger
from shared.queries import alarms, confirmations, deliveries, notices, operations
from shared.queries.deliveries import DueDelivery, DueObject, Work
from shared.queue.liveness import STEP_S, Progress
from shared.settings import Settings
from shared.storage import Store, original_key
from worker.delivery.connections import Away, Connection, answer_limit_s
from worker.delivery.dicom import DicomConnection
from worker.delivery.folder import FolderConnection
from worker.delivery.logins import authorization
from worker.delivery.messages import Messenger, choose_messenger
from worker.delivery.stow import StowConnection

log = get_logger(__name__)
LOOK_EVERY_S = 1.0
WATCH_EVERY_S = 15.0  # for what only time makes so
SPREAD_S = 1.0  # of one look, for notices
TURN_S = 300.0  # at one destination; then others that wait for a thread have theirs


class Sender:
    """Looks every LOOK_EVERY_S for what is due. A destination that is away costs its own thread and nobody else's."""

    def __init__(self, settings: Settings, database: Database, store: Store) -> None:
        """Begin nothing yet: call `look`, or `run`."""
        self._settings, self._database, self._store = settings, database, store
        self._lease = timedelta(seconds=settings.lease_s)
        self._pool = ThreadPoolExecutor(settings.delivery_destinations, "deliver")
        self._held: set[UUID] = set()  # tokens
        self._lock = threading.Lock()
        self._renewed = time.monotonic()
        self.progress = Progress()
        self.stopping = threading.Event()

    def run(self) -> None:
        """Look until `stop` is called; an error is logged, and the next look comes all the same."""
        self.progress.expect(self)
        watch_at = time.monotonic()
        while not self.stopping.wait(LOOK_EVERY_S):
            self.progress.expect(self)
            try:
                if time.monotonic() >= watch_at:
                    watch_at = time.monotonic() + WATCH_EVERY_S
                    self.watch()
                self.look()
            except OsteonError as error:
                log.warning("deliveries not checked", error=type(error).__name__)
            except Exception:
                log.exception("deliveries not checked")

    def watch(self) -> int:
        """Write down what people are told of now, for all sites; returns how many notices there are of it."""
        limits = operations.queue_limits(self._settings.routine_limit_s, self._settings.backlog_limit_s)
        with self._database.transaction() as session:
            written = alarms.record_alarms(session, limits)
        if written:
            log.info("notices recorded", notices=written)
        return written

    def look(self) -> int:
        """Renew what this process holds, and begin what is due; returns at how many destinations."""
        with self._lock:
            held = set(self._held)
        if held and time.monotonic() - self._renewed > self._settings.lease_s / 4:
            with self._database.transaction() as session:
                deliveries.renew(session, held, self._lease)
            self._renewed = time.monotonic()
        self._write_deliveries()
        free = self._settings.delivery_destinations - len(held)
        if free <= 0:
            return 0
        with self._database.transaction() as session:
            zone = self._settings.backfill_timezone
            taken = deliveries.take(session, self._lease, free, kinds=tuple(DestinationKind), zone=zone)
        for work in taken:
            with self._lock:
                self._held.add(work.token)
            self._pool.submit(self._serve, work)
        return len(taken)

    def _write_deliveries(self) -> None:
        """Write the deliveries of notices, each in a transaction of its own; not for long, as leases end."""
        zone, until = self._settings.backfill_timezone, time.monotonic() + SPREAD_S
        while time.monotonic() < until:
            with self._database.transaction() as session:
                if notices.write_next_deliveries(session, zone) is None:
                    return

    def close(self) -> None:
        """Finish the objects that are on their way, and nothing more."""
        self.stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _serve(self, work: Work) -> None:
        """Send to one destination what is due there."""

        def goes_on(size_bytes: int = 0) -> None:
            # an answer is waited for at most twice in a step: to the question whose study it is, and to an object
            self.progress.expect(work.token, STEP_S + 2 * answer_limit_s(self._settings, size_bytes))

        goes_on()
        try:
            self._take_turn(work, goes_on)
        finally:
            self.progress.done(work.token)

    def _take_turn(self, work: Work, goes_on: Callable[..., None]) -> None:
        try:
            if work.test:
                self._test(work)
            _Turn(self._settings, self._database, self._store, work, self.stopping, goes_on).run()
        except OsteonError as error:  # the lease ends by itself
            log.warning("delivery ended", destination=str(work.destination_id), error=type(error).__name__)
        except Exception:
            log.exception("delivery ended", destination=str(work.destination_id))
        finally:
            with self._lock:
                self._held.discard(work.token)
            try:
                with self._database.transaction() as session:
                    deliveries.release(session, work)
            except OsteonError as error:
                log.warning("delivery ended", destination=str(work.destination_id), error=type(error).__name__)

    def _test(self, work: Work) -> None:
        connection: Connection | None = None
        try:
            if work.destination.is_told:
                answer = choose_messenger(self._settings, work, lambda sha256: read_object(self._store, sha256)).test()
            else:
                connection = open_connection(self._settings, work)
                answer = connection.test()
        except Away as error:
            answer = error.answer
        except Exception as error:  # a person waits, and without an answer it would be tried again each second
            log.exception("delivery ended", destination=str(work.destination_id))
            answer = Answer(DeliveryReason.NOT_SENT, words=type(error).__name__)
        finally:
            if connection is not None:
                connection.close()
        with self._database.transaction() as session:
            if connection is not None and connection.capabilities and answer.reason is None:
                deliveries.record_answer(session, work, connection.capabilities)
            deliveries.record_test(session, work, answer)
        log.info("destination tested", destination=str(work.destination_id), reason=answer.reason or "")


def open_connection(
    settings: Settings, work: Work, due: DueDelivery | None = None, reported: Callable[[Report], int] | None = None
) -> Connection:
    """Open the way into a destination.

    Args:
        settings: of this process.
        work: the destination.
        due: what is to be sent first; None: nothing.
        reported: takes a report on storage commitment; None: nothing asks for it.

    Returns:
        The connection; close it.

    Raises:
        Away: there is none, or a file that the settings name cannot be used.
    """
    destination = work.destination
    if destination.kind is DestinationKind.FOLDER:
        return FolderConnection(settings.delivery_folder, destination)
    if destination.kind is DestinationKind.STOW:
        try:
            login = authorization(settings.delivery_logins, work.site, work.name, destination.url)
        except OsteonError as error:
            raise Away(Answer(DeliveryReason.ACCESS, words=printable_words(str(error)))) from error
        return StowConnection(settings, destination, login)
    contexts = [(one.sop_class_uid, one.transfer_syntax_uid) for one in due.objects] if due else []
    return DicomConnection(settings, destination, contexts, find=bool(due and due.ask_patient), reported=reported)


def read_object(store: Store, sha256: str) -> bytes:
    """Read a stored object.

    Args:
        store: that holds it.
        sha256: its name, which its bytes are held to.

    Returns:
        Its bytes.

    Raises:
        Away: it is missing or damaged, or the store does not answer.
    """
    try:
        content = store.get(original_key(sha256))
    except ObjectMissing as error:
        raise Away(Answer(DeliveryReason.OBJECT_MISSING)) from error
    except StoreUnavailable as error:
        raise Away(Answer(DeliveryReason.STORE_UNAVAILABLE)) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Away(Answer(DeliveryReason.OBJECT_MISSING, words="its bytes are not those that were made"))
    return content


class _Turn:
    """What one thread does at one destination, with one association."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: Store,
        work: Work,
        stopping: threading.Event,
        goes_on: Callable[..., None],
    ) -> None:
        """goes_on: is told of each step, and of the bytes that it sends."""
        self._settings, self._database, self._store = settings, database, store
        self._work, self._stopping, self._goes_on = work, stopping, goes_on
        self._connection: Connection | None = None
        self._heard = False  # whether the destination has answered in this turn
        self._messenger: Messenger | None = None

    def run(self) -> None:
        """Send one delivery after the other; end with the first object for which the destination is away."""
        until = time.monotonic() + TURN_S
        try:
            while not self._stopping.is_set() and time.monotonic() < until:
                self._goes_on()
                with self._database.transaction() as session:
                    due = deliveries.next_due(session, self._work)
                # what waits to be sent goes first: an archive often keeps for good what it has had for some time
                if not (self._deliver(due) if due is not None else self._confirm()):
                    return
        finally:
            self._disconnect()

    def _confirm(self) -> bool:
        """Ask the destination whether it keeps what one delivery brought; return whether another one may be tried."""
        with self._database.transaction() as session:
            ask = confirmations.begin_next(session, self._work)
        if ask is None:
            return False
        answer, away = Answer(DeliveryReason.NO_COMMITMENT), False
        try:
            connection = self._connect(None)
            if isinstance(connection, DicomConnection):
                answer = connection.ask(ask.transaction_uid, ask.instances)
        except Away as error:
            answer, away = error.answer, error.answer.reason in HALTS
            self._disconnect()
        fields = {"destination": str(self._work.destination_id), "delivery": str(ask.delivery_id)}
        with self._database.transaction() as session:
            if answer.reason is None:
                confirmations.record_asked(session, ask)
            else:
                confirmations.record_refusal(session, ask, answer)
            if away:
                deliveries.record_away(session, self._work, answer)
        if answer.reason is None:
            log.info("confirmation asked", **fields)
        else:
            log.warning("confirmation not asked", reason=answer.reason, status=answer.status, **fields)
        return not away

    def _record_report(self, report: Report) -> int:
        """Note a report that came over our association; returns the status to be answered."""
        try:
            with self._database.transaction() as session:
                their_patient = confirmations.record_report(session, (self._work.destination_id,), report)
        except OsteonError as error:
            log.warning("confirmation not noted", error=type(error).__name__)
            return PROCESSING_FAILURE
        return TAKEN if their_patient else UNKNOWN_TRANSACTION

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _deliver(self, due: DueDelivery) -> bool:
        """Send one delivery; return whether another one may be tried."""
        fields = {"destination": str(self._work.destination_id), "delivery": str(due.delivery_id)}
        try:
            state, answer = self._send_objects(due)
        except Away as error:
            answer = error.answer
            if answer.reason not in HALTS:  # it is about this delivery alone
                state, _ = self._note_failure(due, answer)
                log.warning("delivery failed", state=state, reason=answer.reason, status=answer.status, **fields)
                self._disconnect()
                return state != DeliveryState.WAITING
            with self._database.transaction() as session:
                given_up = deliveries.record_away(session, self._work, answer, due)
            fields |= {"reason": str(answer.reason), "status": answer.status}
            log.warning("destination not reached", given_up=given_up, **fields)
            return False
        except OsteonError:
            raise
        except Exception as error:  # one that breaks the sending must not hold up the others
            self._note_failure(due, Answer(DeliveryReason.NOT_SENT, words=type(error).__name__))
            log.exception("delivery failed", **fields)
            self._disconnect()
            return True
        if answer is None:
            log.info("delivery sent", state=state, **fields)
        else:
            log.warning("delivery failed", state=state, reason=answer.reason, status=answer.status, **fields)
        return True

    def _send_objects(self, due: DueDelivery) -> tuple[DeliveryState, Answer | None]:
        """Send the objects of a delivery, each of which is noted once it was accepted; or its message."""
        if due.told is not None:
            return self._send_message(due)
        refused: list[DueObject] = []
        for number, one in enumerate(due.objects):
            if self._stopping.is_set():
                return DeliveryState.WAITING, None
            self._goes_on(one.size_bytes)
            content = read_object(self._store, one.sha256)
            connection = self._connection_for(due, one)
            if not number and due.ask_patient and _belongs_to_another_patient(connection, due, content):
                return self._note_failure(due, Answer(DeliveryReason.PATIENT_DIFFERS))
            if connection.refuses(one):
                refused.append(one)
                continue
            answer = connection.send(one, content)
            if answer.reason in MISFIT:  # it says so of an object, and would of each one
                raise Away(answer)
            self._note_answered()
            if answer.reason is not None:
                return self._note_failure(due, answer)
            with self._database.transaction() as session:
                deliveries.record_accepted(session, self._work, due, one.object_id, answer.status)
        with self._database.transaction() as session:
            return deliveries.finish(session, self._work, due, refused), None

    def _send_message(self, due: DueDelivery) -> tuple[DeliveryState, Answer | None]:
        """Send the message of a notice."""
        if self._messenger is None:
            self._messenger = choose_messenger(
                self._settings, self._work, lambda sha256: read_object(self._store, sha256)
            )
        answer = self._messenger.tell(due)
        if answer.reason in MISFIT:  # the receiver says so of a message, and would of each one
            raise Away(answer)
        if answer.status:  # the receiver's, so that it is there
            self._note_answered()
        if answer.reason is not None:
            return self._note_failure(due, answer)
        with self._database.transaction() as session:
            state, *_ = [deliveries.finish(session, self._work, one) for one in due.together]
            return state, None

    def _note_answered(self) -> None:
        """Note, once a turn, that the destination is there: only then its next failure is a first one."""
        if not self._heard:
            with self._database.transaction() as session:
                deliveries.record_answer(session, self._work)
            self._heard = True

    def _note_failure(self, due: DueDelivery, answer: Answer) -> tuple[DeliveryState, Answer]:
        with self._database.transaction() as session:
            state, *_ = [deliveries.record_failure(session, self._work, one, answer) for one in due.together]
            return state, answer

    def _connection_for(self, due: DueDelivery, one: DueObject) -> Connection:
        """The open connection; a new one where this one was opened without what the object needs."""
        connection = self._connection
        if isinstance(connection, DicomConnection) and (
            (one.sop_class_uid, one.transfer_syntax_uid) not in connection.proposed
            or (due.ask_patient and not connection.finds)
        ):
            self._disconnect()
        return self._connect(due)

    def _connect(self, due: DueDelivery | None) -> Connection:
        """The open connection; without one, a new one."""
        if self._connection is None:
            self._connection = open_connection(self._settings, self._work, due, self._record_report)
            if isinstance(self._connection, DicomConnection):  # which has negotiated; others have said nothing yet
                with self._database.transaction() as session:
                    deliveries.record_answer(session, self._work, self._connection.capabilities)
        return self._connection


def _belongs_to_another_patient(connection: Connection, due: DueDelivery, content: bytes) -> bool:
    """Whether the destination knows the study under another patient. What it does not say is no difference."""
    their_patient = connection.patient_of(due.study_instance_uid)
    if their_patient is None:
        return False
    our_header = pydicom.dcmread(
        io.BytesIO(content), stop_before_pixels=True, specific_tags=["PatientID", "IssuerOfPatientID"]
    )
    our_patient = Identity(
        patient_id=str(our_header.get("PatientID", "")), issuer=str(our_header.get("IssuerOfPatientID", ""))
    )
    return not same_patient(our_patient, Identity(patient_id=their_patient.patient_id, issuer=their_patient.issuer))
