"""Storage commitment, push model: the data sets of a request and of its report.

Source: PS3.4 J.3 (N-ACTION, N-EVENT-REPORT), PS3.3 C.14 (attributes), PS3.7 10.1.1 (statuses).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

WELL_KNOWN = "1.2.840.10008.1.20.1.1"  # the instance of the service
REQUEST = 1  # action type
COMPLETE, WITH_FAILURES = 1, 2  # event types
MAX_INSTANCES = 20_000  # of a request, and of a report
# statuses of the response to a report; PS3.4 J.3.3.1.4 defines none of its own, so these are those of PS3.7 10.1.1.1.8
TAKEN, PROCESSING_FAILURE, NO_SUCH_INSTANCE, NO_SUCH_EVENT = 0x0000, 0x0110, 0x0112, 0x0113
INVALID_ARGUMENT = UNKNOWN_TRANSACTION = 0x0115
UNKNOWN_FAILURE = 0x0110  # a failed instance without a Failure Reason
A_UID = re.compile(r"[0-9.]{1,64}")

Instance = tuple[str, str]  # SOP Class UID, SOP Instance UID


@dataclass(frozen=True)
class Report:
    """What an archive says of the instances of a request. failed: with the Failure Reason, PS3.3 C.14.1.1."""

    transaction_uid: str
    kept: frozenset[Instance]
    failed: Mapping[str, int]  # by SOP Instance UID


class BadReport(Exception):
    """An N-EVENT-REPORT is none that can be understood; `status` is the answer to it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:04X}")
        self.status = status


def request(transaction_uid: str, instances: Sequence[Instance]) -> Dataset:
    """Make the action information of a request.

    Args:
        transaction_uid: by which the report will name it.
        instances: that it is about.

    Returns:
        The data set.
    """
    made, items = Dataset(), []
    for sop_class, sop_instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
        items.append(item)
    made.TransactionUID, made.ReferencedSOPSequence = transaction_uid, items
    return made


def read_report(event_type: int | None, instance: str, information: Callable[[], Dataset]) -> Report:
    """Understand an N-EVENT-REPORT.

    An instance that is both kept and failed has failed. An event of type 1 (complete) that names failures is taken at
    its sequences.

    Args:
        event_type: its Event Type ID.
        instance: its Affected SOP Instance UID.
        information: decodes its event information; may raise anything.

    Returns:
        The report.

    Raises:
        BadReport: it is of another instance or event, or its data set is damaged or too large.
    """
    if instance != WELL_KNOWN:
        raise BadReport(NO_SUCH_INSTANCE)
    if event_type not in (COMPLETE, WITH_FAILURES):
        raise BadReport(NO_SUCH_EVENT)
    try:
        event_information = information()
        transaction = str(event_information.TransactionUID)
        kept = [_instance(one) for one in event_information.get("ReferencedSOPSequence") or ()]
        failed = {_instance(one)[1]: _failure(one) for one in event_information.get("FailedSOPSequence") or ()}
    except Exception as error:  # whatever pydicom raises on a damaged data set
        raise BadReport(INVALID_ARGUMENT) from error
    uids = [transaction, *(uid for one in kept for uid in one), *failed]
    if len(kept) + len(failed) > MAX_INSTANCES or not all(map(A_UID.fullmatch, uids)):
        raise BadReport(INVALID_ARGUMENT)
    return Report(transaction, frozenset(one for one in kept if one[1] not in failed), failed)


def _instance(item: Dataset) -> Instance:
    return str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)


def _failure(item: Dataset) -> int:
    reason = item.get("FailureReason")
    number = UNKNOWN_FAILURE if reason is None else int(reason)
    if not 0 <= number <= 0xFFFF:
        raise ValueError("not an unsigned short")
    return number
