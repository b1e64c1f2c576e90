"""The process `osteon dicom`: it listens, and receives associations. Run it by -m api.listener.server."""

import contextlib
import errno
import logging
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from types import FrameType
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt

from api.backends import Backends, open_backends
from api.listener import metrics, responses, tls
from api.listener.admission import Admission, Admitted, Rejection, contexts, may_commit
from api.listener.association import ASKED_PDU_BYTES, Announced, IncomingDataSet, PeerAssociation, Wakeup
from api.listener.commitment import NOT_AUTHORISED, Commitment, take_report
from api.listener.commits import GroupCommits, Waiting
from api.listener.counts import Counts
from api.listener.places import Places, processes_of
from api.listener.processes import LOOK_S, Processes
from api.listener.received import ReceivedFile
from shared.dicom.conformance import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from shared.domain.peers import OUR_TITLE, Caller
from shared.errors import OsteonError, QuotaExceeded, Rejected, Unavailable
from shared.logs import configure_logs, get_logger
from shared.metrics import serve
from shared.queries.peers import Peer
from shared.queue.liveness import touch
from shared.settings import Settings, one_sentence, raise_files
from shared.tcp import SOCKET_OPTIONS

log = get_logger(__name__)
ACSE_S = 30.0  # for an association request after the connection, and for each step of its negotiation
ANSWER_S = 25.0  # most senders wait 30 s for the answer to a C-STORE
STOP_S = 20.0  # for requests in work to be answered
BACKLOG = 128
SPARE = 32  # connections beyond the associations: those that have not asked yet
ALIVE_S = 5.0
GIVE_WAY_S = 0.01  # for a process with fewer connections to take the next one
BIND_S = 3.0  # that a port may still be taken by a process that was killed


class Listener:
    """Everything of a listening process. Safe between threads; close it."""

    def __init__(self, backends: Backends, places: Places | None = None) -> None:
        """Prepare; nothing listens before `serve`. places: of all processes, if there are several."""
        _config.LOG_HANDLER_LEVEL = "none"  # its handlers format each PDU, and may write headers into the log
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # quotes what peers sent
        self._backends = backends
        self._places = places or Places(backends.settings.dicom_associations)
        alone = self._places.processes == 1
        backends.spool_budget.share(self._places.spooled, self._places.number)
        self.admission = Admission(backends, self._places)
        self._commits = GroupCommits(backends)
        self._counts = Counts(backends) if self._places.number == 0 else None  # one process asks for all
        self._commitment = Commitment(backends, alone=alone) if backends.settings.dicom_commitment else None
        self._entity = AE(OUR_TITLE)
        self._entity.acse_timeout = ACSE_S
        self._entity.network_timeout = backends.settings.dicom_idle_s
        self._entity.maximum_pdu_size = ASKED_PDU_BYTES
        self._entity.maximum_associations = 1_000_000  # the admission counts
        self._entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._entity.implementation_version_name = IMPLEMENTATION_VERSION
        self._lock = threading.Lock()
        metrics.ASSOCIATIONS.set_function(lambda: self.admission.open)
        metrics.SPOOL.set_function(lambda: backends.spool_budget.used)
        metrics.SPOOL_MOST.set(backends.spool_budget.max_bytes)
        self._connections: dict[socket.socket, PeerAssociation | None] = {}  # the oldest first
        self._sockets: list[socket.socket] = []
        self._wakeup = Wakeup()
        self._threads: list[threading.Thread] = []

    def serve(self, bound: socket.socket, context: ssl.SSLContext | None = None) -> None:
        """Take connections from now on.

        Args:
            bound: the socket of a port, as `bind` makes it.
            context: of TLS; None: without it.
        """
        thread = threading.Thread(target=self._accept, args=(bound, context), name="dicom-accept", daemon=True)
        self._sockets.append(bound)
        self._threads.append(thread)
        thread.start()

    @property
    def alive(self) -> bool:
        """Whether all its ports are served."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Take no more, answer what is in work within STOP_S, abort the associations."""
        self.admission.closing = True
        if self._counts is not None:
            self._counts.close()
        self._wakeup.wake()
        for thread in self._threads:
            thread.join()
        for bound in self._sockets:
            bound.close()
        self._wakeup.close()
        until = time.monotonic() + STOP_S
        while open_ := self._open():
            late = time.monotonic() > until
            for connection, association in open_:
                if association is None or not association.is_established:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                elif late or not association.dimse.busy:
                    association.abort(block=False)
            if time.monotonic() > until + ANSWER_S:
                break
            time.sleep(0.05)
        self._commits.close()
        if self._commitment is not None:
            self._commitment.close()

    # -- connections

    def _accept(self, bound: socket.socket, context: ssl.SSLContext | None) -> None:
        poll = select.poll()
        poll.register(self._wakeup.descriptor, select.POLLIN)
        poll.register(bound, select.POLLIN)
        while not self.admission.closing:
            poll.poll()
            if self._places.busier:
                time.sleep(GIVE_WAY_S)
            try:
                connection, address = bound.accept()
            except BlockingIOError:  # another process was faster
                continue
            except OSError as error:
                log.warning("connection not accepted", error=error.strerror)  # too many open files
                time.sleep(0.1)
                continue
            if not self._has_room():
                connection.close()
                continue
            with self._lock:
                self._connections[connection] = None
                self._places.connections(len(self._connections))
            threading.Thread(
                target=self._receive, args=(connection, address, context), name="dicom-connection", daemon=True
            ).start()

    def _has_room(self) -> bool:
        """Make room for a connection: if there are too many, the one that waits longest for its request makes it."""
        with self._lock:
            if len(self._connections) < self._backends.settings.dicom_associations + SPARE:
                return True
            waiting = (
                connection for connection, association in self._connections.items()
                if association is None or association.asked is None
            )  # fmt: skip
            oldest = next(waiting, None)
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        return oldest is not None

    def _receive(self, accepted: socket.socket, address: tuple[Any, ...], context: ssl.SSLContext | None) -> None:
        """Make a connection an association; in a thread of its own, for a handshake can take its time."""
        connection = accepted
        try:
            for option in SOCKET_OPTIONS:
                accepted.setsockopt(*option)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                accepted.settimeout(tls.HANDSHAKE_S)
                connection = context.wrap_socket(accepted, server_side=True)
            association = PeerAssociation(self._entity, self, connection, address)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the end of this connection alone
            log.warning("connection not accepted", error=type(error).__name__)
            connection.close()
            self._forget(accepted)
            return
        association.bind(evt.EVT_C_STORE, self._store, [association])
        association.bind(evt.EVT_N_ACTION, self._commit, [association])
        association.bind(evt.EVT_N_EVENT_REPORT, self._reported, [association])
        with self._lock:
            self._connections.pop(accepted, None)
            self._connections[connection] = association
        association.start()

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.pop(connection, None)
            self._places.connections(len(self._connections))

    def _open(self) -> list[tuple[socket.socket, PeerAssociation | None]]:
        with self._lock:
            return list(self._connections.items())

    # -- what associations ask

    def admit(self, association: PeerAssociation) -> Rejection | None:
        """See `association.AssociationHost`."""
        request = association.asked
        assert request is not None, "it has come"
        caller = Caller(
            request.calling_ae_title, request.called_ae_title, association.requestor.address,
            tls.fingerprint(association.connection),
        )  # fmt: skip
        found = self.admission.admit(caller)
        if not isinstance(found, Admitted):
            return found
        association.peer, association.reporters = found.peer, found.reporters
        association.acceptor.supported_contexts = contexts(
            found, request.presentation_context_definition_list, commitment=self._backends.settings.dicom_commitment
        )
        log.info("association accepted", peer_id=str(found.id))
        return None

    def begin(self, association: PeerAssociation, announced: Announced) -> ReceivedFile:
        """See `association.AssociationHost`."""
        del association
        return ReceivedFile(self._backends, announced)

    def ended(self, association: PeerAssociation) -> None:
        """See `association.AssociationHost`."""
        if association.brought:
            self._commits.ended(association.id, released=association.is_released)
        self._forget(association.connection)
        admitted = Admitted(association.peer, association.reporters)
        if admitted.peer is not None or admitted.reporters:
            self.admission.left(admitted)

    # -- requests

    def _commit(self, event: evt.Event, association: PeerAssociation) -> tuple[int, None]:
        """Answer an N-ACTION, of peers alone that may ask."""
        if self._commitment is None or not may_commit(association.peer):
            return NOT_AUTHORISED, None
        return self._commitment.request(event, association)

    def _reported(self, event: evt.Event, association: PeerAssociation) -> tuple[int, None]:
        """Answer an N-EVENT-REPORT: what a destination says of what we sent there."""
        status = take_report(self._backends, event, association.reporters)
        metrics.REPORTS.labels(f"{status:04X}").inc()
        return status, None

    def _store(self, event: evt.Event, association: PeerAssociation) -> Dataset:
        """Answer a C-STORE; never raises."""
        data = getattr(event.request, "DataSet", None)
        received = data.sink if isinstance(data, IncomingDataSet) else None
        if not isinstance(received, ReceivedFile) or association.peer is None:
            return responses.of_rejection(Rejected("The request holds no data set"))
        response = self._answer(received, str(event.context.abstract_syntax), association, association.peer)
        status = f"{response.Status:04X}"
        metrics.OBJECTS.labels(status).inc()
        metrics.BYTES.labels(status).inc(received.size_bytes)
        if isinstance(data, IncomingDataSet) and response.Status == responses.SUCCESS:
            metrics.SUCCESS.observe(time.perf_counter() - data.came_at)
        return response

    def _answer(self, received: ReceivedFile, sop_class: str, association: PeerAssociation, peer: Peer) -> Dataset:
        """Have a data set stored that came in the presentation context of a class; never raises."""
        if received.announced.sop_class != sop_class:
            received.close()
            return responses.other_class()
        try:
            waiting = Waiting(peer, received.finish(), received, association.id)
            association.brought = True
            response = responses.of_line(self._commits.submit(waiting).result(ANSWER_S))
        except Rejected as error:
            response = responses.of_rejection(error)
        except (Unavailable, QuotaExceeded) as error:
            response = responses.busy(error)
        except FutureTimeout:
            response = responses.busy("the database or the store takes too long")
        except Exception:
            log.exception("data set crashed")
            response = responses.failed()
        return response


def bind(host: str, port: int) -> socket.socket:
    """Take a port.

    Args:
        host: address of this machine.
        port: of TCP; 0: any that is free.

    Returns:
        The socket; to accept from it never waits.

    Raises:
        OsteonError: nothing can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    until = time.monotonic() + BIND_S
    while True:
        try:
            bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < until:  # by processes that end just now
                time.sleep(0.1)
                continue
            raise OsteonError(
                f"Nothing can listen for DICOM on port {port} of {host}: {error.strerror}. Set OSTEON_DICOM_PORT, or "
                "OSTEON_DICOM_HOST, to what is free here"
            ) from error
        bound.setblocking(False)
        return bound


Port = tuple[str, socket.socket, ssl.SSLContext | None]  # what it is called, its socket, its TLS


def ports_of(settings: Settings) -> list[Port]:
    """Take the ports of the settings.

    Args:
        settings: of this installation.

    Returns:
        "dicom", and "tls" if there is one.

    Raises:
        OsteonError: nothing can listen there, or a file of TLS cannot be used.
    """
    if not (settings.dicom_port or settings.dicom_tls_port):
        raise OsteonError("OSTEON_DICOM_PORT and OSTEON_DICOM_TLS_PORT are both 0: set one, or leave osteon dicom out")
    context = tls.context(settings) if settings.dicom_tls_port else None
    ports = [("dicom", settings.dicom_port, None), ("tls", settings.dicom_tls_port, context)]
    return [(name, bind(settings.dicom_host, port), its) for name, port, its in ports if port]


@contextlib.contextmanager
def serving(settings: Settings, ports: Sequence[Port], places: Places | None = None) -> Iterator[Listener]:
    """Take connections from ports.

    Args:
        settings: of this installation.
        ports: as `ports_of` has them.
        places: of all processes; None: this is the only one.

    Yields:
        The listener.

    Raises:
        OsteonError: a part that it needs cannot be used.
    """
    backends = open_backends(settings)
    listener = Listener(backends, places)
    try:
        for _, bound, context in ports:
            listener.serve(bound, context)
        yield listener
    finally:
        listener.close()
        backends.database.close()


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[tuple[Listener, dict[str, int]]]:
    """Listen on the ports of the settings, in this process alone.

    Args:
        settings: of this installation.

    Yields:
        The listener, and its ports: "dicom", and "tls" if there is one.

    Raises:
        OsteonError: nothing can listen there, or a file of TLS cannot be used.
    """
    ports = ports_of(settings)
    try:
        with serving(settings, ports) as listener:
            yield listener, port_numbers(ports)
    finally:
        for _, bound, _ in ports:
            bound.close()


def port_numbers(ports: Sequence[Port]) -> dict[str, int]:
    """Their numbers by name."""
    return {name: int(bound.getsockname()[1]) for name, bound, _ in ports}


def main() -> None:
    """Listen until SIGTERM or SIGINT."""
    asked = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    with one_sentence():
        settings = Settings()
        configure_logs(settings.log_level)
        raise_files()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        count = processes_of(settings.dicom_processes)
        if count > 1:
            _run_processes(settings, count, asked)
            return
        serve(settings.dicom_metrics_port, settings.dicom_metrics_host, "OSTEON_DICOM_METRICS_PORT")
        with listening(settings) as (listener, ports):
            log.info("listener started", **ports)
            while not asked.wait(ALIVE_S):
                _check(listener)
                touch()


def _check(listener: Listener) -> None:
    if not listener.alive:
        raise OsteonError("A thread that accepts connections ended; the log says why")


def _run_processes(settings: Settings, count: int, asked: threading.Event) -> None:
    """Watch over several processes until the event is set. Raises OsteonError: they do not start."""
    places = Places(settings.dicom_associations, count)
    ports = ports_of(settings)

    def process(_number: int, stopped: threading.Event, ready: Callable[[], None]) -> None:
        with serving(settings, ports, places) as listener:
            ready()
            while not stopped.wait(ALIVE_S):
                _check(listener)

    watched = Processes(places, process)
    try:
        if not watched.start():
            raise OsteonError("A process of the DICOM listener did not start; the log says why")
        watched.serve_metrics()
        serve(settings.dicom_metrics_port, settings.dicom_metrics_host, "OSTEON_DICOM_METRICS_PORT")
        log.info("listener started", **port_numbers(ports))
        asked_at = time.monotonic()
        while not asked.wait(LOOK_S):
            watched.watch()
            if time.monotonic() - asked_at > ALIVE_S:
                asked_at = time.monotonic()
                if watched.answer():
                    touch()
    finally:
        for _, bound, _ in ports:
            bound.close()
        watched.stop(STOP_S + ANSWER_S)


if __name__ == "__main__":
    main()
