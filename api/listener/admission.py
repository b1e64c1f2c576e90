"""Who may open an association, how many at a time, and in which presentation contexts.

Source: PS3.8 9.3.4 (A-ASSOCIATE-RJ), PS3.7 D.3 (presentation contexts), PS3.4 B.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from pydicom.uid import UID
from pynetdicom.presentation import PresentationContext

from api.backends import Backends
from api.listener import metrics
from api.listener.places import Places
from api.spool import SpoolFull
from shared.dicom.conformance import MESSAGE_SYNTAXES, STORAGE, STORAGE_COMMITMENT, VERIFICATION, accepted
from shared.domain.peers import Caller, CallerReason
from shared.errors import OsteonError, Unavailable
from shared.logs import get_logger
from shared.queries import confirmations, peers
from shared.queries.peers import Peer

log = get_logger(__name__)
Rejection = tuple[int, int, int]  # result, source, reason
UNKNOWN_CALLING: Rejection = (1, 1, 3)
UNKNOWN_CALLED: Rejection = (1, 1, 7)
CONGESTED: Rejection = (2, 3, 1)  # temporarily: come again
LIMIT_EXCEEDED: Rejection = (2, 3, 2)
REFUSED_FOR_S = 5.0  # how long a refused caller is refused again without a look at the table of peers
MAX_REFUSED = 1000


@dataclass(frozen=True)
class Admitted:
    """Who opened an association. reporters: the destinations of ours that it may be, which report on what they keep."""

    peer: Peer | None
    reporters: tuple[UUID, ...] = ()

    @property
    def id(self) -> UUID:
        """By which its associations are counted."""
        return self.peer.id if self.peer is not None else self.reporters[0]


class Admission:
    """Decides on association requests. Safe between threads."""

    def __init__(self, backends: Backends, places: Places) -> None:
        self._backends, self._places = backends, places
        self._lock = threading.Lock()
        self._refused: dict[Caller, tuple[float, Rejection, str]] = {}
        self.closing = False

    def admit(self, caller: Caller) -> Admitted | Rejection:
        """Decide on a request.

        Args:
            caller: who asks.

        Returns:
            Who it is, whose association counts until `left`; or why it is rejected.
        """
        with self._lock:
            until, rejection, again = self._refused.get(caller, (0.0, UNKNOWN_CALLING, ""))
        if time.monotonic() < until:
            metrics.REFUSED.labels(again).inc()
            return rejection
        try:
            if self.closing:
                metrics.REFUSED.labels("stopping").inc()
                return CONGESTED
            self._backends.spool_budget.check(0)
            with self._backends.database.transaction() as session:
                admitted = Admitted(peers.find_peer(session, caller), confirmations.find_reporters(session, caller))
                known = admitted.peer is not None or admitted.reporters
                reason = None if known else peers.note_refused(session, caller)
        except Unavailable as error:  # no room, or Postgres is away
            log.warning("association rejected", reason=type(error).__name__)
            metrics.REFUSED.labels("spool" if isinstance(error, SpoolFull) else "database").inc()
            return CONGESTED
        if not known:
            return self._refuse(caller, reason)
        if not self._places.take(admitted.id, self._backends.settings.dicom_associations_per_peer):
            log.warning("association rejected", reason="limit", peer_id=str(admitted.id))
            metrics.REFUSED.labels("limit").inc()
            return LIMIT_EXCEEDED
        if admitted.peer is not None:
            self._note_contact(admitted.peer)
        return admitted

    def left(self, admitted: Admitted) -> None:
        """Count off an association."""
        self._places.leave(admitted.id)

    @property
    def open(self) -> int:
        """How many associations are open, in all processes."""
        return self._places.taken

    def _note_contact(self, peer: Peer) -> None:
        try:
            with self._backends.database.transaction() as session:
                peers.note_contact(session, peer.id)
        except OsteonError as error:  # a figure is not worth a rejection
            log.warning("peer contact not recorded", error=type(error).__name__)

    def _refuse(self, caller: Caller, reason: CallerReason | None) -> Rejection:
        rejection = UNKNOWN_CALLED if reason is CallerReason.CALLED_AE else UNKNOWN_CALLING
        why = reason.value if reason else ""
        log.warning("association rejected", reason=why)
        metrics.REFUSED.labels(why).inc()
        with self._lock:
            if len(self._refused) >= MAX_REFUSED:
                self._refused.clear()
            self._refused[caller] = time.monotonic() + REFUSED_FOR_S, rejection, why
        return rejection


def contexts(
    admitted: Admitted, asked: Iterable[PresentationContext], *, commitment: bool
) -> list[PresentationContext]:
    """Make the presentation contexts that are supported in one association.

    pynetdicom takes the first of ours that the peer proposes: so ours are in the order of the answer, see
    `shared.dicom.conformance.accepted`.

    For storage commitment the caller may be the SCU, which asks, or the SCP, which reports on what we asked: the roles
    that it may take are those that are its own (PS3.7 D.3.3.4). One that reports without proposing roles is accepted.

    Args:
        admitted: who asks.
        asked: what it proposes.
        commitment: whether storage commitment is offered at all.

    Returns:
        One a SOP class, with the transfer syntaxes in our order.
    """
    proposed: dict[str, list[str]] = {}
    for context in asked:
        proposed.setdefault(str(context.abstract_syntax), []).extend(map(str, context.transfer_syntax))
    supported = []
    may_ask, may_report = commitment and may_commit(admitted.peer), bool(admitted.reporters)
    may_send = admitted.peer is not None and admitted.peer.rule.may_send
    for sop_class, syntaxes in proposed.items():
        if sop_class == VERIFICATION:
            supported.append(_context(sop_class, MESSAGE_SYNTAXES))
        elif sop_class == STORAGE_COMMITMENT and (may_ask or may_report):
            context = _context(sop_class, MESSAGE_SYNTAXES)
            if may_report:
                context.scu_role, context.scp_role = may_ask, True
            supported.append(context)
        elif sop_class in STORAGE and may_send:
            supported.append(
                _context(sop_class, accepted(sop_class, syntaxes))
            )  # without one: none of them is supported
    return supported


def may_commit(peer: Peer | None) -> bool:
    """Whether a peer may ask for storage commitment: only if it is known where reports go to."""
    return peer is not None and peer.rule.may_commit and bool(peer.rule.query_host)


def _context(sop_class: str, syntaxes: Iterable[str]) -> PresentationContext:
    context = PresentationContext()
    context.abstract_syntax = UID(sop_class)
    context.transfer_syntax = [UID(syntax) for syntax in syntaxes]
    return context
