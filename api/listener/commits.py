"""Takes data sets in, those of one sender together: one transaction for what came while the one before was written.

So a sender with four associations pays for one commit where it would pay for four, and one that sends slowly waits for
nobody. The intake is that of an upload (`api.intake`): same order, same rules.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.orm import Session
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from api.backends import Backends
from api.intake.charges import quotas_from_settings, refund_bytes
from api.intake.files import Intake
from api.intake.receipts import record_outcomes
from api.listener import metrics
from api.listener.received import ReceivedFile
from api.messages import send_tasks
from api.schemas import FileReceipt, Outcome, Receipt
from api.spool import SpooledFile
from shared.dicom.image import DEFLATED
from shared.domain.study import Header, Priority
from shared.errors import BadAttributes, Locked, QuotaExceeded, Unavailable
from shared.logs import get_logger
from shared.queries import completeness, peers, quotas
from shared.queries.peers import Peer

log = get_logger(__name__)
MAX_FILES, MAX_BYTES = 32, 256 << 20  # of a transaction
SENDERS_AT_ONCE = 4
PACE_S = 0.25  # between two rounds of what follows commits: a round costs as much as the intake of an image
LOCKED_FOR_S = 5.0  # how long we come again to a study that another transaction holds


class OtherThanAnnounced(BadAttributes):
    """The data set has another UID than the command that it came with."""

    hint = "Send it again, or correct the sender: it mixes up its instances."


@dataclass
class Waiting:
    """A data set that is to be taken in."""

    peer: Peer
    file: SpooledFile
    received: ReceivedFile
    association_id: UUID
    answer: "Future[FileReceipt]" = field(default_factory=Future)


class GroupCommits:
    """The senders' queues. `submit` from any thread."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._lock = threading.Lock()
        self._queues: dict[UUID, deque[Waiting]] = {}  # by the peer; one that is there is in work
        self._threads = ThreadPoolExecutor(SENDERS_AT_ONCE, "dicom-commit")
        self._after = FollowUp(backends)

    def submit(self, waiting: Waiting) -> "Future[FileReceipt]":
        """Have a data set taken in.

        Args:
            waiting: the data set; its received is closed once it is answered.

        Returns:
            Its line of the receipt, once bytes and row are durable; or the error.
        """
        with self._lock:
            queue = self._queues.get(waiting.peer.id)
            if queue is not None:
                queue.append(waiting)
                return waiting.answer
            self._queues[waiting.peer.id] = deque([waiting])
        self._threads.submit(self._work, waiting.peer.id)
        return waiting.answer

    def ended(self, association_id: UUID, *, released: bool) -> None:
        """Note that an association has ended by which data sets came, soon.

        Args:
            association_id: as data sets had it.
            released: as agreed; otherwise it was aborted or cut.
        """
        self._after.ended(association_id, released=released)

    def close(self) -> None:
        """Take in what waits, then stop."""
        self._threads.shutdown()
        self._after.close()

    def _work(self, peer_id: UUID) -> None:
        """Take in one batch of a sender; other senders come before its next one."""
        batch = self._next(peer_id)
        try:
            self._take_in(batch)
        except Exception as error:  # noqa: BLE001 - whoever waits for the answer logs it
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
        finally:
            for one in batch:
                one.received.close()
            with self._lock:
                more = bool(self._queues[peer_id])
                if not more:
                    del self._queues[peer_id]
        if more:
            try:
                self._threads.submit(self._work, peer_id)
            except RuntimeError:  # it is closing: here is a thread that still runs
                self._work(peer_id)

    def _next(self, peer_id: UUID) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        with self._lock:
            queue = self._queues[peer_id]
            while queue and len(batch) < MAX_FILES:
                one = queue[0]
                # a deflated data set alone, for what one may expand to is counted for all of a transaction
                alone = one.received.announced.transfer_syntax == DEFLATED
                if batch and (alone or size + one.file.size_bytes > MAX_BYTES):
                    break
                batch.append(queue.popleft())
                size += one.file.size_bytes
                if alone:
                    break
        return batch

    def _take_in(self, batch: Sequence[Waiting]) -> None:
        """Take a batch in and answer each; where one breaks it, each alone."""
        try:
            receipt = self._receipt(batch)
        except Exception as error:
            if len(batch) == 1 or isinstance(error, Unavailable):  # what is away is away for each of them
                log.warning("data sets not stored", files=len(batch), error=type(error).__name__)
                for one in batch:
                    one.answer.set_exception(error)
                return
            if not isinstance(error, QuotaExceeded):  # some may fit
                log.exception("commit batch retried", files=len(batch))
            for one in batch:
                self._take_in([one])
            return
        metrics.COMMIT.observe(len(batch))
        for one, line in zip(batch, receipt.files, strict=True):
            one.answer.set_result(line)
        self._after.add(batch, receipt)

    def _receipt(self, batch: Sequence[Waiting]) -> Receipt:
        backends, key = self._backends, batch[0].peer.key
        announced = {one.file: one.received.announced for one in batch}
        size = sum(one.file.size_bytes for one in batch)

        def charge(session: Session) -> None:
            quotas.charge_bytes(session, key, quotas_from_settings(backends.settings), size)

        def check(file: SpooledFile, header: Header) -> None:
            request = announced[file]
            if header.sop_instance_uid != request.sop_instance:
                raise OtherThanAnnounced(detail="SOPInstanceUID")
            if header.sop_class_uid != request.sop_class:
                raise OtherThanAnnounced(detail="SOPClassUID")

        def sent(session: Session, lines: Sequence[FileReceipt]) -> None:
            studies: dict[UUID, set[UUID]] = defaultdict(set)
            for one, line in zip(batch, lines, strict=True):
                if line.study_id is not None:
                    studies[one.association_id].add(line.study_id)
            completeness.record_sending(session, batch[0].peer.id, studies)

        intake = Intake(
            backends, key, batch[0].received.spool, Priority.ROUTINE, check, sent, charge=charge, summed_up=False
        )
        policy = Retrying(
            # what is locked before the files are stored is not the studies
            retry=retry_if_exception(lambda wrong: isinstance(wrong, Locked) and intake.stored_request is not None),
            wait=wait_random(0.1, 0.4),
            stop=stop_after_delay(LOCKED_FOR_S),
            reraise=True,
        )
        try:
            receipt, _ = policy(
                lambda: intake.commit() if intake.stored_request else intake.run([one.file for one in batch], None)
            )
        except BaseException:
            if intake.charged:
                refund_bytes(backends, key, size)
            raise
        return receipt


class FollowUp:
    """What follows a commit and no sender waits for: messages, records of rejections, figures of the peer.

    Done together for all commits within PACE_S: one transaction each would take as long as the commits themselves.
    """

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._changed = threading.Condition()
        self._done: list[tuple[Peer, list[FileReceipt], list[int], list[UUID]]] = []
        self._ends: list[tuple[UUID, bool]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dicom-follow-up", daemon=True)
        self._thread.start()

    def add(self, batch: Sequence[Waiting], receipt: Receipt) -> None:
        """Do it soon.

        Args:
            batch: data sets of one peer.
            receipt: of these.
        """
        stored = [
            one.file.size_bytes for one, line in zip(batch, receipt.files, strict=True)
            if line.outcome is not Outcome.REJECTED
        ]  # fmt: skip
        with self._changed:
            self._done.append((batch[0].peer, receipt.files, stored, _studies(receipt.files)))
            self._changed.notify()

    def ended(self, association_id: UUID, *, released: bool) -> None:
        """Note it soon.

        Args:
            association_id: as `GroupCommits.ended`.
            released: as `GroupCommits.ended`.
        """
        with self._changed:
            self._ends.append((association_id, released))
            self._changed.notify()

    def close(self) -> None:
        """Do what is due, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._done or self._ends or self._closed)
                done, self._done, closed = self._done, [], self._closed
                ends, self._ends = self._ends, []
            self._send(list(dict.fromkeys(study for *_, studies in done for study in studies)))
            for peer in {peer.id: peer for peer, *_ in done}.values():
                its = [one for one in done if one[0].id == peer.id]
                lines = [line for _, lines, _, _ in its for line in lines]
                self._record(peer, lines, [size for _, _, sizes, _ in its for size in sizes])
            self._end(ends)
            if closed:
                return
            time.sleep(PACE_S)

    def _send(self, studies: list[UUID]) -> None:
        try:
            if studies:
                send_tasks(self._backends, studies)
        except Exception:  # the sweeper sends what was not sent
            log.exception("messages not queued", studies=len(studies))

    def _end(self, ends: list[tuple[UUID, bool]]) -> None:
        try:
            if ends:
                with self._backends.database.transaction() as session:
                    for released in (True, False):
                        completeness.record_ended(
                            session, [id_ for id_, how in ends if how is released], released=released
                        )
        except Exception as error:  # noqa: BLE001 - their studies are complete after the longest time
            log.warning("association end not recorded", error=type(error).__name__)

    def _record(self, peer: Peer, lines: list[FileReceipt], stored: list[int]) -> None:
        record_outcomes(self._backends, peer.site_id, lines)
        try:
            with self._backends.database.transaction() as session:
                peers.note_images(session, peer.id, len(stored), sum(stored), len(lines) - len(stored))
        except Exception as error:  # noqa: BLE001 - the images are stored; a figure is not worth an error
            log.warning("peer figures not recorded", error=type(error).__name__)


def _studies(lines: Sequence[FileReceipt]) -> list[UUID]:
    """The studies that files belong to; not those that a held file came for."""
    belonging = (Outcome.STORED, Outcome.KEPT, Outcome.DUPLICATE)
    return [line.study_id for line in lines if line.study_id is not None and line.outcome in belonging]
