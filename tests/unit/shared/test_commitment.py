"""Requests for storage commitment and their reports: whatever comes is understood, or refused with a status."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from shared.dicom.commitment import (
    COMPLETE,
    MAX_INSTANCES,
    UNKNOWN_FAILURE,
    WELL_KNOWN,
    WITH_FAILURES,
    BadReport,
    read_report,
    request,
)
from shared.domain.destinations import HALTS, HEALS, MISFIT, DeliveryReason, n_action_answer

UIDS = st.from_regex(r"[12]\.[0-9]{1,20}(\.[1-9][0-9]{0,9}){1,3}", fullmatch=True)
INSTANCES = st.lists(st.tuples(UIDS, UIDS), min_size=1, max_size=8, unique_by=lambda one: one[1])


@given(transaction=UIDS, instances=INSTANCES, lost=st.data())
def test_a_report_says_what_was_put_into_it(
    transaction: str, instances: list[tuple[str, str]], lost: st.DataObject
) -> None:
    """Each instance of a request is kept or has failed, as the archive says."""
    asked = request(transaction, instances)
    failed = lost.draw(st.sets(st.sampled_from([uid for _, uid in instances])))
    reasons = {uid: lost.draw(st.integers(0, 0xFFFF)) for uid in failed}
    told = Dataset()
    told.TransactionUID = asked.TransactionUID
    told.ReferencedSOPSequence = [
        one for one in asked.ReferencedSOPSequence if one.ReferencedSOPInstanceUID not in failed
    ]
    told.FailedSOPSequence = [one for one in asked.ReferencedSOPSequence if one.ReferencedSOPInstanceUID in failed]
    for one in told.FailedSOPSequence:
        one.FailureReason = reasons[one.ReferencedSOPInstanceUID]
    report = read_report(WITH_FAILURES if failed else COMPLETE, WELL_KNOWN, lambda: told)
    assert report.transaction_uid == transaction
    assert report.kept == {one for one in instances if one[1] not in failed}
    assert report.failed == reasons


def test_an_instance_that_is_kept_and_failed_has_failed() -> None:
    """And one without a reason has one of ours."""
    told = request("1.2.3", [("1.2", "1.3")])
    told.FailedSOPSequence = request("1.2.3", [("1.2", "1.3")]).ReferencedSOPSequence
    report = read_report(COMPLETE, WELL_KNOWN, lambda: told)
    assert (report.kept, report.failed) == (frozenset(), {"1.3": UNKNOWN_FAILURE})


def _refuse() -> Dataset:
    raise ValueError("damaged")


NONE = Dataset()
LARGE = request("1.2", [("1.2", "1.3")])
LARGE.ReferencedSOPSequence = list(LARGE.ReferencedSOPSequence) * (MAX_INSTANCES + 1)


@pytest.mark.parametrize(
    ("event", "instance", "information", "status"),
    [(None, WELL_KNOWN, NONE, 0x0113), (3, WELL_KNOWN, NONE, 0x0113), (COMPLETE, "", NONE, 0x0112),
     (COMPLETE, WELL_KNOWN, NONE, 0x0115), (COMPLETE, WELL_KNOWN, None, 0x0115), (COMPLETE, WELL_KNOWN, LARGE, 0x0115),
     (COMPLETE, WELL_KNOWN, request("1.2.x", [("1.2", "1.3")]), 0x0115),
     (COMPLETE, WELL_KNOWN, request("1.2", [("1.2", "1." + "3" * 64)]), 0x0115)],
)  # fmt: skip
def test_what_is_no_report_has_a_status(
    event: int | None, instance: str, information: Dataset | None, status: int
) -> None:
    """Another event, another instance, nothing, a damaged one, one that is too large, a UID that is none."""
    with pytest.raises(BadReport) as told:
        read_report(event, instance, lambda: _refuse() if information is None else information)
    assert told.value.status == status


@given(status=st.integers(0, 0xFFFF))
def test_each_status_of_a_request_means_one_thing(status: int) -> None:
    """Taken, later, or refused; nothing about a request is a fault of the whole destination."""
    reason = n_action_answer(status).reason
    assert reason in (None, DeliveryReason.BUSY, DeliveryReason.COMMITMENT_REFUSED)
    assert (reason is DeliveryReason.BUSY) == (status in (0x0110, 0x0213))
    assert reason not in HALTS


def test_a_destination_that_is_set_up_wrongly_waits_as_a_whole() -> None:
    """What heals by itself, what a person mends, and what is about one object are told apart."""
    assert not MISFIT & HEALS
    assert MISFIT <= HALTS
    assert {DeliveryReason.REFUSED, DeliveryReason.OBJECT_MISSING, DeliveryReason.NOT_KEPT}.isdisjoint(HALTS)
