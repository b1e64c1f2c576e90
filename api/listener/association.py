"""Associations that are bounded in every direction: pynetdicom's, with limits that it lacks.

pynetdicom reads whatever a peer announces into memory, keeps requests that nobody asked for, and looks a thousand times
a second whether something has come. Here each wait ends, each PDU and message has a largest size, one request is in
work at a time while the next waits with its sender, and data sets go to the spool as they come: what a cut association
leaves is an unnamed file, which is gone with it. Source: PS3.8 9 (upper layer), PS3.7 6 and 9 (messages).
"""

import contextlib
import os
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, Protocol, cast
from uuid import UUID, uuid4

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.transport import AddressInformation, AssociationSocket

from shared.dicom.conformance import STORAGE_COMMITMENT
from shared.logs import get_logger
from shared.queries.peers import Peer

log = get_logger(__name__)

ASKED_PDU_BYTES = 1 << 17  # that we ask for: the largest that dcmtk sends
P_DATA_TF = 4  # type of a PDU
MAX_PDU_BYTES = 1 << 20  # that we take, for senders who do not ask
MAX_COMMAND_BYTES = 1 << 14  # bytes of a command set; a C-STORE's has some 200
MAX_OTHER_BYTES = 1 << 22  # of a message that is no C-STORE: a commitment request names 20,000 instances
PIECE_BYTES = 1 << 19  # of a connection, that are read ahead; what they hold of a data set goes to the spool together
MAX_PARTS = 256  # of a data set, that go to the spool together: a system call takes no more than 1024
PDV_HEAD = 6  # bytes: length, presentation context, control (PS3.8 9.3.5.1)
COMMAND, LAST = 1, 2  # bits of the control (PS3.8 E.2)
LIMIT_STEP_S = 0.1  # by which a limit may be exceeded
CLOSING_S = 1.0  # for a peer to finish what it says while the connection is closed
LOOK_S = 0.5  # the longest wait that nothing can end before
NOBODY = (None, None)
CLOSING = ("Sta1", "Sta2", "Sta13")  # states in which no association is there that we could speak in (PS3.8 9.2.1)


class DataSetSink(Protocol):
    """Where a data set goes as it comes."""

    def write(self, *parts: bytes | memoryview) -> None:
        """Add the next bytes; never raises for lack of room: that is the answer's matter."""

    def close(self) -> None:
        """Free what it holds; may be called twice."""


@dataclass(frozen=True)
class Announced:
    """What the command and the presentation context say of a data set."""

    transfer_syntax: str
    sop_class: str
    sop_instance: str


class ProtocolViolation(Exception):
    """The peer breaks the protocol, or goes beyond a bound: the association is aborted."""


class Wakeup:
    """Wakes a thread that polls descriptors."""

    def __init__(self) -> None:
        self.descriptor, self._other_end = os.pipe()
        for end in (self.descriptor, self._other_end):
            os.set_blocking(end, False)
        self._lock = threading.Lock()
        self._open = True

    def wake(self) -> None:
        """Wake it, now or when it next polls."""
        with self._lock, contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            if self._open:
                os.write(self._other_end, b"1")

    def clear(self) -> None:
        """Forget that it was woken."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 1 << 16)

    def close(self) -> None:
        """Close its descriptors; to wake it does nothing from now on."""
        with self._lock:
            if self._open:
                self._open = False
                os.close(self.descriptor)
                os.close(self._other_end)


class WakingQueue(queue.Queue):  # type: ignore[type-arg]
    """A queue whose reader waits elsewhere."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002, ANN401
        """Put an item, then wake the reader.

        Args:
            item: as Queue has it.
            block: as Queue has it.
            timeout: as Queue has it.
        """
        super().put(item, block, timeout)
        self._wake()


class BoundedSocket(AssociationSocket):
    """A connection on which no read or write waits for ever, and no PDU is larger than MAX_PDU_BYTES."""

    def __init__(self, assoc: Association, client_socket: socket.socket, idle_s: float) -> None:
        super().__init__(assoc, client_socket=client_socket)
        self.idle_s = idle_s
        self._unread = memoryview(b"")
        client_socket.settimeout(idle_s)

    @property
    def ready(self) -> bool:
        """Whether something can be read. By poll: a process with many files has descriptors that select cannot take."""
        if self.socket is None or not self._is_connected:
            return False
        if self._unread or (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()):
            return True
        try:
            poll = select.poll()
            poll.register(self.socket, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # the connection is closed
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, or those before the end.

        Args:
            nr_bytes: the rest of a PDU, or its first 6 bytes.

        Returns:
            The bytes.

        Raises:
            OSError: it is over MAX_PDU_BYTES.
            TimeoutError: it took longer than an association may be silent.
        """
        if nr_bytes > MAX_PDU_BYTES:
            self.event_queue.put("Evt19")  # aborts, then closes
            raise OSError("the PDU is too large")
        data = bytearray(nr_bytes)
        with memoryview(data) as view:
            done = self.fill(view)
        return data if done == nr_bytes else data[:done]

    def unread(self, data: bytes) -> None:
        """Have bytes that were read given again, before what comes."""
        self._unread = memoryview(data + self._unread)

    @property
    def has_unread(self) -> bool:
        """Whether bytes that were read wait to be given again."""
        return bool(self._unread)

    def fill(self, view: memoryview, least: int | None = None) -> int:
        """Read into a buffer until it is full, or to the end of the connection.

        Args:
            view: the buffer.
            least: so many bytes will do; None: all that fit.

        Returns:
            The number of bytes; less than the least at the end of the connection.

        Raises:
            OSError: the connection is broken.
            TimeoutError: it took longer than an association may be silent.
        """
        assert self.socket is not None
        least = len(view) if least is None else least
        done = min(len(self._unread), len(view))
        if done:
            view[:done], self._unread = self._unread[:done], self._unread[done:]
        closing = self.assoc.dul.state_machine.current_state == "Sta13"  # what comes now is thrown away
        max_wait_s = CLOSING_S if closing else self.idle_s
        until, limit_s = time.monotonic() + max_wait_s, self.idle_s
        try:
            while done < least:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the PDU came too slowly")
                if limit_s - left > LIMIT_STEP_S:  # each setting is a call of the system
                    self.socket.settimeout(left)
                    limit_s = left
                read = self.socket.recv_into(view[done:])
                if not read:
                    break
                done += read
        finally:
            if limit_s != self.idle_s:
                self.socket.settimeout(self.idle_s)
        return done


class BoundedUpperLayer(DULServiceProvider):
    """The upper layer's thread: it sleeps until the peer or we have something to say."""

    def __init__(self, assoc: "PeerAssociation") -> None:
        super().__init__(assoc)
        self._association = assoc
        self.wakeup = Wakeup()
        self.to_provider_queue = WakingQueue(self.wakeup.wake)
        self.to_user_queue = WakingQueue(lambda: assoc.dimse.msg_queue.put(NOBODY))

    def run_reactor(self) -> None:
        """As pynetdicom's, to its end."""
        try:
            super().run_reactor()
        finally:
            self.to_user_queue.put(None)  # type: ignore[arg-type] # whoever waits for a request sees that none will come
            self.wakeup.close()

    def resume(self) -> None:
        """Read on: the request before is answered, and it was we who took the time."""
        self._idle_timer.restart()
        self.wakeup.wake()

    def _is_transport_event(self) -> bool:
        """Wait for the peer or for us, at most LOOK_S; return whether something came or went."""
        if self.event_queue.empty() and not self._kill_thread:
            self._wait()
            if self._process_recv_primitive():  # ours goes first
                return True
        if self._full:
            return False
        return bool(super()._is_transport_event())

    def _read_pdu_data(self) -> None:
        """Read a PDU; those that go on with a data set of a C-STORE without the copies that pynetdicom makes."""
        data_set = self._association.dimse.storing
        if data_set is None or self.state_machine.current_state != "Sta6":
            super()._read_pdu_data()
            return
        sock = cast("BoundedSocket", self.socket)
        try:
            self._read_fragments(sock, data_set)
        except OSError:  # a limit in time, too
            self.event_queue.put("Evt17")
        except Exception:  # noqa: BLE001 - whatever breaks the protocol or a bound
            self._association.dimse.close()
            self.event_queue.put("Evt19")

    def _read_fragments(self, sock: BoundedSocket, data_set: "IncomingDataSet") -> None:
        """Read PDUs of a data set until it ends, none is there, or enough was read for now.

        Raises:
            OSError: the connection is broken, or too slow.
            ConnectionError: it ended within a PDU.
            ProtocolViolation: a fragment is not of this data set, or not within its PDU.
        """
        moved, on = 0, True
        while on or data_set.read_ahead:
            head = data_set.next(sock, PDV_HEAD, ahead=on)
            kind, left = head[0], int.from_bytes(head[2:6], "big")
            if kind != P_DATA_TF or not PDV_HEAD <= left <= MAX_PDU_BYTES:
                sock.unread(bytes(head) + data_set.rest())
                super()._read_pdu_data()
                return
            while left:
                if left < PDV_HEAD:
                    raise ProtocolViolation
                head = data_set.next(sock, PDV_HEAD, ahead=on)
                size, context, control = int.from_bytes(head[:4], "big") - 2, head[4], head[5]
                left -= PDV_HEAD + size
                if control & COMMAND or size < 0 or left < 0:
                    raise ProtocolViolation
                data_set.take(sock, size, ahead=on)
                moved += PDV_HEAD + size
                if control & LAST:
                    if left:
                        raise ProtocolViolation
                    sock.unread(data_set.rest())
                    end = P_DATA()  # pynetdicom finishes the message
                    end.presentation_data_value_list = [[context, bytes([control])]]  # type: ignore[list-item] # as checked
                    self._association.dimse.receive_primitive(end)
                    return
            # from here on no more is read than this PDU and those that are there in part: then we can stop between two
            on = on and moved < PIECE_BYTES and not self._kill_thread and self.to_provider_queue.empty()
            if on and not data_set.read_ahead and not sock.ready:
                return

    def _process_recv_primitive(self) -> bool:
        """Say what we have to say; nothing while the connection closes, for which pynetdicom has no transition."""
        if self.state_machine.current_state in CLOSING:
            with contextlib.suppress(queue.Empty):
                self.to_provider_queue.get_nowait()
            return False
        return super()._process_recv_primitive()

    @property
    def _full(self) -> bool:
        """Whether the peer's next bytes are left with it, since its request before is in work."""
        return self.state_machine.current_state == "Sta6" and self._association.dimse.busy

    def _wait(self) -> None:
        sock = self.socket.socket if self.socket is not None else None
        poll = select.poll()
        poll.register(self.wakeup.descriptor, select.POLLIN)
        if sock is not None and not self._full:
            unread = cast("BoundedSocket", self.socket).has_unread
            if sock.fileno() < 0 or unread or (isinstance(sock, ssl.SSLSocket) and sock.pending()):
                return
            poll.register(sock, select.POLLIN)
        poll.poll(LOOK_S * 1000)
        self.wakeup.clear()


class BoundedBytes(BytesIO):
    """Bytes of a message, up to a number."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        """As BytesIO has it. Raises ProtocolViolation."""
        if self.tell() + len(data) > self.max_bytes:
            raise ProtocolViolation
        return super().write(data)


class IncomingDataSet(BoundedBytes):
    """The data set of a message: of a C-STORE it goes to the spool, of others it stays here."""

    def __init__(self, message: DIMSEMessage, begin: Callable[[DIMSEMessage], DataSetSink]) -> None:
        super().__init__(MAX_OTHER_BYTES)
        self._message, self._begin = message, begin
        self._buffer: memoryview | None = None  # of a C-STORE: bytes as they come, PDU heads among them
        self._end = self._seen = 0  # of the buffer: what was read, and what of it was looked at
        self._parts: list[memoryview] = []  # of the buffer, that are still to be written
        self.sink: DataSetSink | None = None
        self.came_at = 0.0  # the last bytes of a C-STORE's, by time.perf_counter

    @property
    def storing(self) -> bool:
        """Whether it is that of a C-STORE, whose command is complete."""
        return isinstance(self._message, C_STORE_RQ)

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        """Take the next bytes. Raises ProtocolViolation."""
        if not self.storing:
            return super().write(data)
        self.came_at = time.perf_counter()
        sink, self._buffer = self._flush(), None
        sink.write(data)
        return len(data)

    @property
    def read_ahead(self) -> int:
        """How many bytes were read and not looked at yet."""
        return self._end - self._seen

    def rest(self) -> bytes:
        """Those bytes, which are another's matter from now on."""
        if self._buffer is None:
            return b""
        rest = bytes(self._buffer[self._seen : self._end])
        self._end = self._seen
        return rest

    def next(self, sock: BoundedSocket, size: int, *, ahead: bool) -> memoryview:
        """Read a head of a PDU or a fragment.

        Args:
            sock: where it comes from.
            size: in bytes.
            ahead: whether further bytes may be read with it.

        Returns:
            Its bytes, until more is read.

        Raises:
            ConnectionError: the connection ended.
            OSError: it is broken, or too slow.
        """
        buffer = self._read(sock, size, ahead=ahead)
        self._seen += size
        return buffer[self._seen - size : self._seen]

    def take(self, sock: BoundedSocket, size: int, *, ahead: bool) -> None:
        """Read a fragment of a C-STORE's data set; it goes to the spool with others.

        Args:
            sock: where it comes from.
            size: in bytes.
            ahead: whether further bytes may be read with it.

        Raises:
            ProtocolViolation: as `write`. ConnectionError, OSError: as `next`.
        """
        while size:
            step = min(size, PIECE_BYTES - self._seen % PIECE_BYTES)  # up to the buffer's end
            buffer = self._read(sock, step, ahead=ahead)
            self._parts.append(buffer[self._seen : self._seen + step])
            self._seen += step
            size -= step
            if len(self._parts) == MAX_PARTS:
                self._flush()

    def _read(self, sock: BoundedSocket, least: int, *, ahead: bool) -> memoryview:
        """The buffer, once so many bytes are there that were not looked at yet."""
        if self._buffer is None:
            self._buffer, self._end, self._seen = memoryview(bytearray(PIECE_BYTES)), 0, 0
        buffer, missing = self._buffer, self._seen + least - self._end
        if self._seen + least > PIECE_BYTES:  # the rest of it is the beginning of a head
            self._flush()
            left = self._end - self._seen
            buffer[:left], self._seen, self._end = buffer[self._seen : self._end], 0, left
        if missing > 0:
            goal = buffer[self._end :] if ahead else buffer[self._end : self._end + missing]
            read = sock.fill(goal, missing)
            self._end += read
            if read < missing:
                raise ConnectionError("the connection ended within a PDU")
        return buffer

    def _flush(self) -> DataSetSink:
        """Write what is held; returns where to."""
        if self.sink is None:
            self.sink = self._begin(self._message)
        if self._parts:
            self.sink.write(*self._parts)
            self._parts.clear()
        return self.sink


@dataclass
class InTurn:
    """An N-EVENT-REPORT request that waits its turn as others do: pynetdicom starts a thread for each one."""

    request: N_EVENT_REPORT


def _in_turn(message: DIMSEMessage) -> Any:  # noqa: ANN401 - of any kind
    """What a complete message becomes."""
    made = type(message).message_to_primitive(message)
    return InTurn(made) if isinstance(made, N_EVENT_REPORT) and made.is_valid_request else made


class RequestQueue(queue.Queue):  # type: ignore[type-arg]
    """Complete requests; it counts those that are not answered yet."""

    def __init__(self) -> None:
        super().__init__()
        self.responses: queue.Queue[N_EVENT_REPORT] = queue.Queue(4)
        self.unanswered = 0
        self._counting = threading.Lock()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002, ANN401
        """Put a request and count it; NOBODY only wakes the reader, a response goes to who waits for it.

        Args:
            item: presentation context and message.
            block: as Queue has it.
            timeout: as Queue has it.
        """
        if isinstance(item[1], InTurn):
            item = item[0], item[1].request
        elif isinstance(item[1], N_EVENT_REPORT) and not item[1].is_valid_request:
            with contextlib.suppress(queue.Full):  # nobody waits for so many
                self.responses.put_nowait(item[1])
            return
        if item[1] is not None:
            with self._counting:
                self.unanswered += 1
        super().put(item, block, timeout)

    def answered(self) -> None:
        """Count one off."""
        with self._counting:
            self.unanswered -= 1


class BoundedDIMSE(DIMSEServiceProvider):
    """Messages of bounded size, one in work at a time."""

    msg_queue: RequestQueue

    def __init__(self, assoc: "PeerAssociation") -> None:
        super().__init__(assoc)
        self._association = assoc
        self.msg_queue = RequestQueue()
        self._in_work = False
        self._coming: IncomingDataSet | None = None
        self._sending = threading.Lock()

    def send_msg(self, primitive: Any, context_id: int) -> None:  # noqa: ANN401 - of any kind
        """Send a message, whose parts stay together.

        Args:
            primitive: request or response.
            context_id: of its presentation context.
        """
        with self._sending:
            super().send_msg(primitive, context_id)

    @property
    def busy(self) -> bool:
        """Whether a request of the peer waits or is in work."""
        return bool(self.msg_queue.unanswered)

    @property
    def storing(self) -> IncomingDataSet | None:
        """The data set of a C-STORE that comes just now."""
        data_set = self._coming
        return data_set if data_set is not None and data_set.storing else None

    def receive_primitive(self, primitive: Any) -> None:  # noqa: ANN401 - P_DATA
        """Take a PDU's part of a message; one that breaks a bound ends the association."""
        if self.message is None:
            self.message = DIMSEMessage()
            self.message.message_to_primitive = partial(_in_turn, self.message)  # type: ignore[method-assign]
            self.message.encoded_command_set = BoundedBytes(MAX_COMMAND_BYTES)
            self.message.data_set = self._coming = IncomingDataSet(self.message, self._begin)
        try:
            super().receive_primitive(primitive)
        except Exception:  # noqa: BLE001 - whatever a hostile message makes pynetdicom or pydicom raise
            self.close()
            self.dul.event_queue.put("Evt19")
            return
        if self.message is None:  # it is complete, and its request's now
            self._coming = None

    def get_msg(self, block: bool = False) -> Any:  # noqa: FBT001, FBT002, ANN401 - as pynetdicom has it
        """The next request, waiting LOOK_S at most; whoever asks has answered the one before."""
        del block
        self.answered()
        try:
            found = self.msg_queue.get(timeout=LOOK_S)
        except queue.Empty:
            return NOBODY
        self._in_work = found[1] is not None
        return found

    def answered(self) -> None:
        """Let the next request come, if one was in work."""
        if self._in_work:
            self._in_work = False
            self.msg_queue.answered()
            self._association.dul.resume()

    def close(self) -> None:
        """Free what messages hold that came in part, or that nobody answers any more."""
        left, self._coming = [self._coming], None
        while not self.msg_queue.empty():
            left.append(getattr(self.msg_queue.get_nowait()[1], "DataSet", None))
        for data_set in left:
            if isinstance(data_set, IncomingDataSet) and data_set.sink is not None:
                data_set.sink.close()

    def _begin(self, message: DIMSEMessage) -> DataSetSink:
        """Begin the file of a C-STORE. Raises ProtocolViolation: its context was not accepted, or a UID is missing."""
        syntax = self._association.transfer_syntax(message.context_id)
        command = message.command_set
        uids = [str(command.get(keyword, "")) for keyword in ("AffectedSOPClassUID", "AffectedSOPInstanceUID")]
        if not (syntax and all(uids)):
            raise ProtocolViolation
        return self._association.host.begin(self._association, Announced(syntax, *uids))


class AssociationHost(Protocol):
    """What associations ask: the process that listens."""

    def admit(self, association: "PeerAssociation") -> tuple[int, int, int] | None:
        """Decide on an association request: None, or result, source and reason of its rejection (PS3.8 9.3.4)."""

    def begin(self, association: "PeerAssociation", announced: Announced) -> DataSetSink:
        """Begin to take a data set.

        Args:
            association: that it comes by.
            announced: what is known of it.

        Returns:
            Where it goes.
        """

    def ended(self, association: "PeerAssociation") -> None:
        """An association, or a connection that never became one, has ended."""


class AdmittingACSE(ACSE):
    """Asks the host before it negotiates."""

    def __init__(self, assoc: "PeerAssociation") -> None:
        super().__init__(assoc)
        self._association = assoc

    def negotiate_association(self) -> None:
        """Accept or reject the request."""
        association = self._association
        rejected = association.host.admit(association)
        if rejected is None:
            super().negotiate_association()
            return
        self.send_reject(*rejected)
        evt.trigger(association, evt.EVT_REJECTED, {})
        association.kill()


class PeerAssociation(Association):
    """An association that a peer asked for, from its connection on."""

    acse: AdmittingACSE
    dul: BoundedUpperLayer
    dimse: BoundedDIMSE

    def __init__(self, ae: AE, host: AssociationHost, connection: socket.socket, address: tuple[Any, ...]) -> None:
        """ae: ours, with its limits; connection: ready to be read, after TLS's handshake; address: of the peer."""
        super().__init__(ae, MODE_ACCEPTOR)
        self.host = host
        self.peer: Peer | None = None  # once it is admitted, as one that sends
        self.reporters: tuple[UUID, ...] = ()  # the destinations that it may be, which report on what we sent
        self.id = uuid4()
        self.brought = False  # whether a data set came to its end
        self._reports = 0
        self.name = f"dicom-{address[1]}"
        self.acse = AdmittingACSE(self)
        self.dul = BoundedUpperLayer(self)
        self.dimse = BoundedDIMSE(self)
        self.acse_timeout, self.network_timeout = ae.acse_timeout, ae.network_timeout  # of the new provider
        self.connection = connection
        self.set_socket(BoundedSocket(self, connection, float(ae.network_timeout or 60)))
        self.acceptor.maximum_length = ae.maximum_pdu_size
        self.acceptor.ae_title = ae.ae_title
        self.acceptor.address_info = AddressInformation.from_tuple(connection.getsockname())
        self.acceptor.implementation_class_uid = ae.implementation_class_uid
        self.acceptor.implementation_version_name = ae.implementation_version_name
        self.requestor.address_info = AddressInformation.from_tuple(address)

    @property
    def asked(self) -> A_ASSOCIATE | None:
        """The association request, once it has come."""
        return self.requestor.primitive

    def transfer_syntax(self, context_id: int | None) -> str:
        """That of an accepted presentation context; "" if it was not accepted."""
        context = self._accepted_cx.get(context_id or 0)
        return str(context.transfer_syntax[0]) if context else ""

    def report(self, information: Dataset, event_type: int, instance: str, limit_s: float) -> int | None:
        """Send an N-EVENT-REPORT over this association, from another thread than its own, one at a time.

        The association goes on meanwhile: its peer may ask for more, or release it.

        Args:
            information: of the event.
            event_type: of the SOP class.
            instance: SOP Instance UID that the report is about.
            limit_s: how long the answer may take, in seconds.

        Returns:
            The answer's status; None: the association has ended or ends, or there was no answer.
        """
        contexts = [one for one in self.accepted_contexts if one.abstract_syntax == STORAGE_COMMITMENT]
        if not (contexts and self.is_established):
            return None
        request, syntax = N_EVENT_REPORT(), contexts[0].transfer_syntax[0]
        self._reports = self._reports % 0xFFFF + 1
        request.MessageID, request.EventTypeID = self._reports, event_type
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(STORAGE_COMMITMENT), UID(instance)
        encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian)
        assert encoded is not None, "a data set of ours"
        request.EventInformation = BytesIO(encoded)
        self.dimse.send_msg(request, int(contexts[0].context_id or 0))
        until = time.monotonic() + limit_s
        while self.is_established and (left := until - time.monotonic()) > 0:
            try:
                answer = self.dimse.msg_queue.responses.get(timeout=min(left, LOOK_S))
            except queue.Empty:
                continue
            if answer.MessageIDBeingRespondedTo == request.MessageID:
                return None if answer.Status is None else int(answer.Status)
        return None

    def run_reactor(self) -> None:
        """As pynetdicom's, to its end; what is left of it is freed."""
        try:
            super().run_reactor()
        finally:
            self.hang_up()
            self.dul.join(self._network_timeout)
            self.dimse.close()
            self.connection.close()
            self.host.ended(self)

    def hang_up(self) -> None:
        """Close the connection; the association notices and ends."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _serve_request(self, msg: Any, context_id: int) -> None:  # noqa: ANN401 - of any kind
        """Answer a request; a C-STORE also where its SOP class is not known, which pynetdicom would abort for."""
        context = self._accepted_cx.get(context_id)
        if not isinstance(msg, C_STORE) or context is None:
            super()._serve_request(msg, context_id)
            return
        try:
            StorageServiceClass(self).SCP(msg, context)
        except Exception:
            log.exception("store response not sent")
            self.abort()
        self.dimse.answered()
