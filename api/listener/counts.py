"""Asks senders how many instances they have of studies that they sent. Source: PS3.4 C.4.1 (C-FIND), C.6.2 (keys)."""

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association

from api.backends import Backends
from shared.dicom.conformance import STUDY_ROOT_FIND
from shared.errors import OsteonError
from shared.logs import get_logger
from shared.queries import completeness
from shared.queries.completeness import DueCount, SeriesCount

log = get_logger(__name__)
LOOK_EVERY_S = 2.0
PEERS_AT_ONCE = 4
STEP_S = 5.0  # for a connection, its negotiation, and each answer
ASKED_FOR_S = 20.0  # one peer, in one association
MAX_SERIES = 500  # of a study: whoever has more does not count radiographs
MAX_INSTANCES = 1_000_000
PENDING = (0xFF00, 0xFF01)


class Counts:
    """Looks every LOOK_EVERY_S for counts that are due, from a thread of its own; close it."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._lock = threading.Lock()
        self._busy: set[UUID] = set()  # peers that are asked just now
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(PEERS_AT_ONCE, "dicom-count")
        self._thread = threading.Thread(target=self._run, name="dicom-counts", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more; what is asked just now ends by its own limit."""
        self._stop.set()
        self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def look(self) -> int:
        """Have peers asked whose counts are due; returns the number of questions."""
        with self._lock:
            busy = set(self._busy)
        if len(busy) >= PEERS_AT_ONCE:
            return 0
        with self._backends.database.transaction() as session:
            due = completeness.take_due_counts(session, busy)
        questions: dict[UUID, list[DueCount]] = defaultdict(list)
        for one in due:
            questions[one.peer_id].append(one)
        for peer_id, its in questions.items():
            with self._lock:
                self._busy.add(peer_id)
            self._pool.submit(self._ask, peer_id, its)
        return len(due)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except OsteonError as error:
                log.warning("counts not asked", error=type(error).__name__)
            except Exception:
                log.exception("counts not asked")

    def _ask(self, peer_id: UUID, questions: Sequence[DueCount]) -> None:
        left = {one.study_id: one for one in questions}
        try:
            for question, answer in answers(questions):
                self._write(left.pop(question.study_id), answer)
        except Exception as error:  # noqa: BLE001 - whatever a peer makes pynetdicom raise
            log.warning("counts not asked", error=type(error).__name__, peer_id=str(peer_id))
        finally:
            if left:
                log.warning("counts not received", studies=len(left), peer_id=str(peer_id))
            try:
                for question in left.values():
                    self._write(question, None)
            except OsteonError as error:  # those studies wait a little longer
                log.warning("counts not asked", error=type(error).__name__)
            with self._lock:
                self._busy.discard(peer_id)

    def _write(self, question: DueCount, answer: Collection[SeriesCount] | int | None) -> None:
        with self._backends.database.transaction() as session:
            completeness.record_count(session, question, answer)


def answers(questions: Sequence[DueCount]) -> Iterator[tuple[DueCount, Collection[SeriesCount] | int | None]]:
    """Ask one peer, over one association, for ASKED_FOR_S at most.

    Args:
        questions: all to the same peer, at least one.

    Yields:
        Question and answer: the study's series, the number of its instances, or None: the peer does not say. Questions
        that are left out were not answered.
    """
    rule = questions[0].rule
    entity = AE(rule.called_ae)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = STEP_S
    entity.add_requested_context(STUDY_ROOT_FIND)
    until = time.monotonic() + ASKED_FOR_S
    association = entity.associate(rule.query_host, rule.query_port, ae_title=rule.query_ae)
    if not association.is_established:
        return
    try:
        for question in questions:
            if time.monotonic() > until or not association.is_established:
                break
            yield question, _count(association, question.study_instance_uid)
    finally:
        if association.is_established:
            association.release()


def _count(association: Association, study_instance_uid: str) -> Collection[SeriesCount] | int | None:
    """The study's series; the number of its instances, where the peer does not count by series."""
    found = _find(association, "SERIES", study_instance_uid, "SeriesInstanceUID", "Modality", _OF_SERIES)
    series = [
        SeriesCount(str(one.get("SeriesInstanceUID", "")), str(one.get("Modality", "")), _number(one, _OF_SERIES))
        for one in found or ()
    ]
    if series and all(one.instances is not None for one in series):
        return series
    whole = _find(association, "STUDY", study_instance_uid, _OF_STUDY) or []
    return _number(whole[0], _OF_STUDY) if len(whole) == 1 else None


_OF_SERIES, _OF_STUDY = "NumberOfSeriesRelatedInstances", "NumberOfStudyRelatedInstances"


def _find(association: Association, level: str, study_instance_uid: str, *keys: str) -> list[Dataset] | None:
    """What a C-FIND finds; None: it failed, or found too much."""
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = level, study_instance_uid
    for keyword in keys:
        setattr(query, keyword, None)
    if not association.is_established:
        return None
    found: list[Dataset] = []
    for status, identifier in association.send_c_find(query, UID(STUDY_ROOT_FIND)):
        code = status.get("Status")
        if code not in PENDING:
            return found if code == 0 else None
        if identifier is not None:
            found.append(identifier)
        if len(found) > MAX_SERIES:
            association.abort()
            return None
    return None


def _number(answer: Dataset, keyword: str) -> int | None:
    try:
        number = int(answer.get(keyword, ""))
    except (TypeError, ValueError):
        return None
    return number if 0 <= number <= MAX_INSTANCES else None
