"""An archive by DICOM as a destination: C-STORE, C-ECHO, C-FIND and storage commitment as a client.

Source: PS3.4 Annex B (storage), A (verification), C.4.1 (C-FIND), J.3 (storage commitment); PS3.8 9.3 (associations).
"""

import io
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from shared import tcp
from shared.dicom.commitment import (
    REQUEST,
    UNKNOWN_TRANSACTION,
    WELL_KNOWN,
    BadReport,
    Instance,
    Report,
    read_report,
    request,
)
from shared.dicom.conformance import MESSAGE_SYNTAXES, STORAGE_COMMITMENT, STUDY_ROOT_FIND, VERIFICATION
from shared.domain.destinations import (
    Answer,
    Capabilities,
    DeliveryReason,
    Destination,
    DestinationKind,
    c_store_answer,
    n_action_answer,
)
from shared.queries.deliveries import DueObject
from shared.settings import Settings
from worker.delivery.connections import Away, KnownPatient, answer_limit_s, certificate_refusal, client_context

CLASSES = (  # of all that results are made of
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture Image Storage
    "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR Storage
    "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR Storage
    "1.2.840.10008.5.1.4.1.1.104.1",  # Encapsulated PDF Storage
    "1.2.840.10008.5.1.4.1.1.11.1",  # Grayscale Softcopy Presentation State Storage
)
UNCOMPRESSED = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
CONNECT_S = 10.0  # for a connection, and for its negotiation
REPORT_S = 2.0  # that a report is waited for; who takes longer brings it to the listener
PENDING = (0xFF00, 0xFF01)
TRANSIENT = 2  # result of A-ASSOCIATE-RJ, PS3.8 9.3.4
CONGESTION, LIMIT = 1, 2  # its diagnostics where the source is the presentation layer: both pass

# an object leaves as its file has it: pynetdicom sends the file's bytes and decodes nothing
_config.STORE_SEND_CHUNKED_DATASET = True


class DicomConnection:
    """An association with an archive, in which objects are stored one after the other."""

    def __init__(
        self,
        settings: Settings,
        destination: Destination,
        extra_contexts: Collection[tuple[str, str]] = (),
        *,
        find: bool = False,
        reported: Callable[[Report], int] | None = None,
    ) -> None:
        """Open the association.

        Args:
            settings: how long to wait.
            destination: where.
            extra_contexts: SOP classes with transfer syntaxes to be proposed beside CLASSES uncompressed.
            find: whether to propose C-FIND as well.
            reported: takes a report on storage commitment, and returns the status to be answered; None: nothing asks.

        Raises:
            Away: there is no association.
        """
        self._settings, self._reported = settings, reported
        self._reports = threading.Condition()
        self._noted: set[str] = set()  # Transaction UIDs of reports that came over this association
        self._answered: set[str] = set()  # and whose answers have gone
        self._reports_at_once = True  # as far as is known
        pairs = dict.fromkeys([*((uid, syntax) for uid in CLASSES for syntax in UNCOMPRESSED), *extra_contexts])
        # one context a syntax: an acceptor chooses one of a context, and what it refuses must be known by itself
        contexts = [build_context(uid, syntax) for uid, syntax in pairs]
        contexts.append(build_context(VERIFICATION))
        if find:
            contexts.append(build_context(STUDY_ROOT_FIND))
        self._confirms = destination.confirm
        if destination.confirm:
            contexts.append(build_context(STORAGE_COMMITMENT, list(MESSAGE_SYNTAXES)))
        self._association = _associate(settings, destination, contexts, self._report)
        self._taken: dict[str, list[str]] = {}
        for uid, _ in pairs:
            self._taken.setdefault(uid, [])
        for context in self._association.accepted_contexts:
            if context.abstract_syntax in self._taken and context.transfer_syntax:
                self._taken[str(context.abstract_syntax)].append(str(context.transfer_syntax[0]))
        self.proposed, self.finds = frozenset(pairs), find
        _one_message_at_a_time(self._association, self._note_answered)

    @property
    def capabilities(self) -> Capabilities:
        """By SOP class, the transfer syntaxes that it takes."""
        return self._taken

    def refuses(self, due_object: DueObject) -> bool:
        """Whether it takes the object in no form that it can be sent in."""
        return self._syntax(due_object) is None

    def send(self, due_object: DueObject, content: bytes) -> Answer:
        """Store an object, in its own transfer syntax; uncompressed ones in Implicit Little Endian, if need be.

        Args:
            due_object: which.
            content: the file.

        Returns:
            The answer.

        Raises:
            Away: the association has ended.
        """
        syntax = self._syntax(due_object)
        assert syntax is not None, "whoever sends asks `refuses` before"
        if syntax != due_object.transfer_syntax_uid:
            content = _convert(content, syntax)
        limit_s = answer_limit_s(self._settings, len(content))
        self._association.dimse_timeout = limit_s
        began = time.monotonic()
        try:
            with tempfile.TemporaryFile() as file:  # has no name that could outlive a process that is killed
                file.write(content)
                file.flush()
                response = self._association.send_c_store(Path(f"/proc/self/fd/{file.fileno()}"))
        except (RuntimeError, ValueError) as error:  # it ended between two objects
            raise Away(Answer(DeliveryReason.CUT)) from error
        if "Status" not in response:
            late = time.monotonic() - began >= limit_s
            raise Away(Answer(DeliveryReason.NO_ANSWER if late else DeliveryReason.CUT))
        return c_store_answer(int(response.Status), str(response.get("ErrorComment", "") or ""))

    def test(self) -> Answer:
        """Send C-ECHO."""
        response = self._association.send_c_echo() if self._association.is_established else Dataset()
        if "Status" not in response:
            return Answer(DeliveryReason.NO_ANSWER)
        status = f"{int(response.Status):04X}"
        if response.Status == 0 and self._confirms and not self._takes(STORAGE_COMMITMENT):
            return Answer(DeliveryReason.NO_COMMITMENT, status)
        return Answer(None if response.Status == 0 else DeliveryReason.REFUSED, status)

    def ask(self, transaction_uid: str, instances: Sequence[Instance]) -> Answer:
        """Ask for storage commitment. The report may come over this association, or over one of the archive's.

        Args:
            transaction_uid: that the report will bear.
            instances: which were stored.

        Returns:
            The answer; reason None: it has taken the request.

        Raises:
            Away: the association has ended.
        """
        if not self._takes(STORAGE_COMMITMENT):
            return Answer(DeliveryReason.NO_COMMITMENT)
        limit_s = self._association.dimse_timeout = self._settings.delivery_answer_s
        began = time.monotonic()
        try:
            response, _ = self._association.send_n_action(
                request(transaction_uid, instances), REQUEST, STORAGE_COMMITMENT, WELL_KNOWN
            )
        except (RuntimeError, ValueError) as error:  # it ended before
            raise Away(Answer(DeliveryReason.CUT)) from error
        if "Status" not in response:
            late = time.monotonic() - began >= limit_s
            raise Away(Answer(DeliveryReason.NO_ANSWER if late else DeliveryReason.CUT))
        answer = n_action_answer(int(response.Status), str(response.get("ErrorComment", "") or ""))
        # many archives cannot take a request while they wait for the answer to their report; who has not reported once
        # within the wait reports later
        with self._reports:
            if answer.reason is None and self._reports_at_once:
                self._reports_at_once = self._reports.wait_for(lambda: transaction_uid in self._answered, REPORT_S)
        return answer

    def patient_of(self, study_instance_uid: str) -> KnownPatient | None:
        """Ask by C-FIND whose a study is; None: it does not know the study, or takes no C-FIND."""
        if not self._takes(STUDY_ROOT_FIND):
            return None
        query = Dataset()
        query.QueryRetrieveLevel = "STUDY"
        query.StudyInstanceUID = study_instance_uid
        query.PatientID = query.IssuerOfPatientID = None
        found = []
        until = time.monotonic() + self._settings.delivery_answer_s
        self._association.dimse_timeout = self._settings.delivery_answer_s
        try:
            for status, one in self._association.send_c_find(query, STUDY_ROOT_FIND):
                if "Status" not in status or time.monotonic() > until:
                    raise Away(Answer(DeliveryReason.NO_ANSWER))
                if status.Status in PENDING and one is not None:
                    found.append(one)
        except (RuntimeError, ValueError) as error:
            raise Away(Answer(DeliveryReason.CUT)) from error
        if len(found) != 1:
            return None
        return KnownPatient(str(found[0].get("PatientID", "") or ""), str(found[0].get("IssuerOfPatientID", "") or ""))

    def close(self) -> None:
        """Release the association; one that does not answer is aborted."""
        if self._association.is_established:
            self._association.acse_timeout = CONNECT_S
            self._association.release()

    def _takes(self, sop_class: str) -> bool:
        return any(one.abstract_syntax == sop_class for one in self._association.accepted_contexts)

    def _report(self, event: Event) -> tuple[int, None]:
        """Take a report; in a thread of its own, while this one may send."""
        request = event.request
        try:
            report = read_report(
                getattr(request, "EventTypeID", None), str(getattr(request, "AffectedSOPInstanceUID", "")),
                lambda: event.event_information,
            )  # fmt: skip
        except BadReport as error:
            return error.status, None
        if self._reported is None:
            return UNKNOWN_TRANSACTION, None
        status = self._reported(report)
        with self._reports:
            self._noted.add(report.transaction_uid)
        return status, None

    def _note_answered(self) -> None:
        """The answer to a report has gone: more can be sent."""
        with self._reports:
            self._answered |= self._noted
            self._reports.notify_all()

    def _syntax(self, one: DueObject) -> str | None:
        taken = self._taken.get(one.sop_class_uid, ())
        if one.transfer_syntax_uid in taken:
            return one.transfer_syntax_uid
        if one.transfer_syntax_uid in UNCOMPRESSED:
            return next((syntax for syntax in UNCOMPRESSED if syntax in taken), None)
        return None


def _one_message_at_a_time(association: Association, answered: Callable[[], None]) -> None:
    """Keep the parts of a message together: answers to reports are sent by threads of their own.

    Args:
        association: that has just been accepted.
        answered: is called after each of these answers.
    """
    sending, send = threading.Lock(), association.dimse.send_msg

    def send_whole(primitive: Any, context_id: int) -> None:  # noqa: ANN401 - of any kind
        with sending:
            send(primitive, context_id)
        if isinstance(primitive, N_EVENT_REPORT):
            answered()

    association.dimse.send_msg = send_whole  # type: ignore[method-assign]


def _associate(
    settings: Settings,
    destination: Destination,
    contexts: Sequence[PresentationContext],
    reported: Callable[[Event], tuple[int, None]],
) -> Association:
    try:  # pynetdicom looks it up as well, and raises what it finds
        socket.getaddrinfo(destination.host, destination.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise Away(Answer(DeliveryReason.UNKNOWN_NAME)) from error
    entity = AE(destination.calling_ae)
    entity.connection_timeout = entity.acse_timeout = CONNECT_S
    entity.dimse_timeout = settings.delivery_answer_s
    entity.network_timeout = settings.delivery_answer_s
    connected = []

    def bound(event: Event) -> None:
        connected.append(True)
        _limit_silence(event)

    context = client_context(settings, destination) if destination.kind is DestinationKind.DICOM_TLS else None
    association = entity.associate(
        destination.host, destination.port, contexts=list(contexts), ae_title=destination.called_ae,
        tls_args=(context, destination.host) if context else None,
        evt_handlers=[(evt.EVT_CONN_OPEN, bound), (evt.EVT_N_EVENT_REPORT, reported)],
    )  # fmt: skip
    if association.is_established:
        return association
    if association.is_rejected:
        raise Away(_rejection_answer(association))
    refused = certificate_refusal(context)
    if refused is None and not connected:
        refused = Answer(DeliveryReason.UNREACHABLE)
    if refused is None and association.acceptor.primitive is not None:  # it accepted, and no context of ours
        refused = Answer(DeliveryReason.NOTHING_TAKEN)
    raise Away(refused or Answer(DeliveryReason.NO_ANSWER))


def _limit_silence(event: Event) -> None:
    """Have a connection that goes silent, or whose other end reads nothing, closed by the system."""
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        for level, option, value in tcp.SOCKET_OPTIONS:
            connection.socket.setsockopt(level, option, value)
        # a message is several small writes: each would wait for the acknowledgement of the one before
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _rejection_answer(association: Association) -> Answer:
    """Why an association was rejected, in the words of PS3.8 9.3.4."""
    rejection = association.acceptor.primitive
    assert rejection is not None
    words = f"{rejection.result_str}, {rejection.source_str}: {rejection.reason_str}"
    return Answer(
        DeliveryReason.REJECTED_FOR_NOW if rejection.result == TRANSIENT else DeliveryReason.REJECTED,
        f"{rejection.result}/{rejection.result_source}/{rejection.diagnostic}", words,
    )  # fmt: skip


def _convert(content: bytes, syntax: str) -> bytes:
    """The same object in another uncompressed transfer syntax; for the same bytes the same bytes."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    written = io.BytesIO()
    dataset.save_as(
        written, implicit_vr=syntax == str(ImplicitVRLittleEndian), little_endian=True, enforce_file_format=True
    )
    return written.getvalue()
