"""Storage commitment: a peer asks whether instances are stored for good, and is told by a report.

Whoever asks may delete its own copies on the report: an instance is confirmed when its row and its bytes are there.
Requests are rows: a report comes also after a restart, over the association of its request if that is still open, else
over one of ours. The other way round, a destination reports on what we sent there. Source: PS3.4 J.3 (N-ACTION,
N-EVENT-REPORT), PS3.3 C.14 (reasons).
"""

import threading
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt

from api.backends import Backends
from api.listener.association import PeerAssociation
from shared.dicom.commitment import (
    A_UID,
    COMPLETE,
    MAX_INSTANCES,
    PROCESSING_FAILURE,
    REQUEST,
    UNKNOWN_TRANSACTION,
    WELL_KNOWN,
    WITH_FAILURES,
    BadReport,
    read_report,
)
from shared.dicom.conformance import MESSAGE_SYNTAXES, STORAGE, STORAGE_COMMITMENT
from shared.errors import OsteonError
from shared.logs import get_logger
from shared.queries import commitments, confirmations
from shared.queries.commitments import DueReport
from shared.queries.intake import stored_contents
from shared.storage import original_key

log = get_logger(__name__)
# statuses of an N-ACTION (PS3.7 C), and reasons why an instance is not confirmed (PS3.3 C.14.1.1)
DONE, NO_SUCH_INSTANCE, BAD_ARGUMENT, NO_SUCH_ACTION, NOT_AUTHORISED, BUSY = 0, 0x0112, 0x0115, 0x0123, 0x0124, 0x0213
CLASS_NOT_SUPPORTED, CONFLICT, DUPLICATE_TRANSACTION = 0x0122, 0x0119, 0x0131
FIRST_S = 0.5  # between two looks; who releases the association at once is told over another one
# after a report that did not arrive; then it is given up
AGAIN_S = (10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
REPORT_S = 30.0
OTHERS_S = 5.0  # so much longer a report waits for another process than for that with the association of its request


class Commitment:
    """Answers requests and sends reports from a thread of its own; close it."""

    def __init__(self, backends: Backends, *, alone: bool = True) -> None:
        """alone: no other process of this listener sends reports."""
        self._backends = backends
        self._others = timedelta(seconds=0.0 if alone else OTHERS_S)
        self._asked: dict[UUID, PeerAssociation] = {}  # by the request, until its first report
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dicom-commitment", daemon=True)
        self._thread.start()

    def request(self, event: evt.Event, association: PeerAssociation) -> tuple[int, None]:
        """Take an N-ACTION; its success means that the request is durable.

        Args:
            event: pynetdicom's.
            association: that it came by, of an admitted peer.

        Returns:
            Its status, and no reply.
        """
        status, transaction, instances = _parse_request(event)
        if status != DONE:
            return status, None
        assert association.peer is not None
        try:
            with self._backends.database.transaction() as session:
                kept = commitments.add_request(
                    session, association.peer.id, transaction, instances, timedelta(seconds=FIRST_S) + self._others
                )  # fmt: skip
        except OsteonError:  # Postgres is away
            kept = None
        if kept is None:
            return BUSY, None
        self._asked[kept] = association
        return DONE, None

    def close(self) -> None:
        """Send no more; what waits is sent after the next start."""
        self._closed.set()
        self._thread.join(REPORT_S)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with self._backends.database.transaction() as session:
                    due = commitments.take_due(session, list(self._asked), self._others)
                if due is not None:
                    self._send(due)
                    continue
            except OsteonError as error:  # who took a report on has it for some time, then it is due again
                log.warning("commitment report delayed", error=type(error).__name__)
            except Exception:
                log.exception("commitment report crashed")
            for id_, association in list(self._asked.items()):
                if not association.is_established:
                    self._asked.pop(id_, None)
            self._closed.wait(FIRST_S)

    def _send(self, due: DueReport) -> None:
        """Send a report, and note whether it arrived."""
        asked_by = self._asked.pop(due.id, None)
        arrived, failed = False, due.failed + 1
        if due.enabled and due.rule.may_commit:
            report, event_type = self._report(due)
            over = asked_by is not None and asked_by.report(report, event_type, WELL_KNOWN, REPORT_S) == DONE
            arrived = over or self._called(due, report, event_type)
        else:
            failed = len(AGAIN_S) + 1
        with self._backends.database.transaction() as session:
            if arrived or failed > len(AGAIN_S):
                commitments.delete_request(session, due.id)
            else:
                commitments.postpone(session, due.id, timedelta(seconds=AGAIN_S[failed - 1]))
        if not arrived and failed > len(AGAIN_S):
            log.warning("commitment report abandoned", peer_id=str(due.peer_id))

    def _report(self, due: DueReport) -> tuple[Dataset, int]:
        """The report on what is stored now, and its event type."""
        report = Dataset()
        stored: list[Dataset] = []
        failed: list[Dataset] = []
        report.TransactionUID = due.transaction_uid
        for sop_class, sop_instance, reason in self._checked(due):
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
            if reason:
                item.FailureReason = reason
            (failed if reason else stored).append(item)
        if stored:
            report.ReferencedSOPSequence = stored
        if failed:
            report.FailedSOPSequence = failed
        return report, WITH_FAILURES if failed else COMPLETE

    def _called(self, due: DueReport, report: Dataset, event_type: int) -> bool:
        """Send a report over an association of ours; return whether the peer took it."""
        rule = due.rule
        if not rule.query_host:
            return False
        entity = AE(rule.called_ae)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = REPORT_S
        entity.add_requested_context(STORAGE_COMMITMENT, list(MESSAGE_SYNTAXES))
        role = build_role(STORAGE_COMMITMENT, scp_role=True)
        try:
            association = entity.associate(rule.query_host, rule.query_port, ae_title=rule.query_ae, ext_neg=[role])
            if not association.is_established:
                return False
            try:
                response, _ = association.send_n_event_report(report, event_type, STORAGE_COMMITMENT, WELL_KNOWN)
            finally:
                association.release()
        except Exception as error:  # noqa: BLE001 - whatever a peer, or the look-up of its name, makes pynetdicom raise
            log.warning("commitment report refused", error=type(error).__name__, peer_id=str(due.peer_id))
            return False
        return bool(response) and response.Status == DONE

    def _checked(self, due: DueReport) -> Iterator[tuple[str, str, int]]:
        """Each instance with the reason why it is not confirmed, 0 if it is."""
        if due.duplicate:
            yield from ((*one, DUPLICATE_TRANSACTION) for one in due.instances)
            return
        with self._backends.database.transaction() as session:
            uids = [sop_instance for _, sop_instance in due.instances]
            stored = stored_contents(session, due.site_id, uids)
        for sop_class, sop_instance in due.instances:
            content = stored.get(sop_instance)
            if content is not None and content.sop_class_uid != sop_class:
                reason = CONFLICT
            elif content is not None and self._backends.store.exists(original_key(content.sha256)):
                reason = 0
            else:
                reason = NO_SUCH_INSTANCE if sop_class in STORAGE else CLASS_NOT_SUPPORTED
            yield sop_class, sop_instance, reason


def take_report(backends: Backends, event: evt.Event, destinations: tuple[UUID, ...]) -> int:
    """Take a report on what was sent to a destination; its success means that it is durable.

    Args:
        backends: where it is noted.
        event: pynetdicom's.
        destinations: that whoever brings it may be.

    Returns:
        The status of the answer. A failure of ours is answered as one, so that the destination may come again.
    """
    asked = event.request
    try:
        report = read_report(
            getattr(asked, "EventTypeID", None), str(getattr(asked, "AffectedSOPInstanceUID", "")),
            lambda: event.event_information,
        )  # fmt: skip
        with backends.database.transaction() as session:
            known = confirmations.record_report(session, destinations, report)
    except BadReport as error:
        return error.status
    except OsteonError:  # Postgres is away
        return PROCESSING_FAILURE
    return DONE if known else UNKNOWN_TRANSACTION


def _parse_request(event: evt.Event) -> tuple[int, str, list[tuple[str, str]]]:
    """Status of an N-ACTION; if it is DONE, its transaction and instances: SOP class and SOP instance."""
    asked = event.request
    if getattr(asked, "ActionTypeID", None) != REQUEST:
        return NO_SUCH_ACTION, "", []
    if str(getattr(asked, "RequestedSOPInstanceUID", "")) != WELL_KNOWN:
        return NO_SUCH_INSTANCE, "", []
    try:
        request = event.action_information
        items = list(request.ReferencedSOPSequence)
        instances = [(str(one.ReferencedSOPClassUID), str(one.ReferencedSOPInstanceUID)) for one in items]
        transaction = str(request.TransactionUID)
    except Exception:  # noqa: BLE001 - whatever pydicom raises on a damaged data set
        return BAD_ARGUMENT, "", []
    uids = [transaction, *(uid for instance in instances for uid in instance)]
    if not 0 < len(instances) <= MAX_INSTANCES or not all(map(A_UID.fullmatch, uids)):
        return BAD_ARGUMENT, "", []
    return DONE, transaction, instances
