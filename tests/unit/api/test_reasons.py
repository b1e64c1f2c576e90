"""Stored codes and the sentences that people read: each code has one, and no two share it."""

from enum import StrEnum
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import CheckConstraint

from api.reasons import (
    CALLERS,
    CHECKS,
    DELIVERIES,
    READING_ENDS,
    REASONS,
    RESULT_SETS,
    RUN_ENDS,
    SUPERSEDED,
    reason_fields,
    reason_words,
    run_end_words,
)
from api.schemas import StudyState
from shared.db.tables import Base
from shared.domain.analysis import SupersededReason
from shared.domain.backfill import RunEnd
from shared.domain.checks import CheckReason
from shared.domain.destinations import DeliveryReason, SetReason
from shared.domain.peers import CallerReason
from shared.domain.worklist import ReadingEnd
from shared.errors import DECODING, Cause, OsteonError, Reason, Rejected, cause_of, reason_of
from worker.decoder_pool import DecodingFailed

WORDS: dict[type[StrEnum], Any] = {
    Reason: REASONS, SupersededReason: SUPERSEDED, RunEnd: RUN_ENDS, ReadingEnd: READING_ENDS, CallerReason: CALLERS,
    DeliveryReason: DELIVERIES, SetReason: RESULT_SETS, CheckReason: CHECKS,
}  # fmt: skip
FACTS = st.text(max_size=40)


def kinds(kind: type[OsteonError] = OsteonError) -> list[type[OsteonError]]:
    """Every error that Osteon knows, as far as it is loaded."""
    return [kind, *chain.from_iterable(map(kinds, kind.__subclasses__()))]


@pytest.mark.parametrize("codes", WORDS, ids=lambda codes: codes.__name__)
def test_each_code_has_words_of_its_own(codes: type[StrEnum]) -> None:
    """No code is without a sentence, none has two, no two share one; and a code is no sentence."""
    words = WORDS[codes]
    assert set(words) == set(codes)
    assert len(set(words.values())) == len(codes)
    assert all(isinstance(text, str) and " " in text and text == text.strip() for text in words.values())
    assert all(code == code.lower() and " " not in code for code in codes)


def test_reasons_of_attempts_and_of_looks_are_told_apart() -> None:
    """One column holds both, so no code and no sentence is of both."""
    assert not set(map(str, Reason)) & set(map(str, SupersededReason))
    assert not set(REASONS.values()) & set(SUPERSEDED.values())


@given(
    code=st.sampled_from([*Reason, *SupersededReason]), other=st.sampled_from([*Reason, *SupersededReason]), fact=FACTS
)
def test_words_are_total_and_tell_codes_apart(code: str, other: str, fact: str) -> None:
    """Whatever fact stands beside a code, there is a sentence with that fact; another code has another sentence."""
    words = reason_words(code, fact)
    assert words and fact in words
    # "other" repeats what an earlier version wrote
    assert (words == reason_words(other, fact)) == (code == other) or Reason.OTHER in (code, other)


@given(code=st.text(), fact=FACTS)
def test_an_unknown_code_stands_for_itself(code: str, fact: str) -> None:
    """A newer worker's code fails nothing."""
    assert code in reason_words(code, fact) or code in set(Reason) | set(SupersededReason)


def test_no_reason_has_no_words() -> None:
    """A study that is not set aside says nothing."""
    assert (reason_words(""), reason_words(None, "left over"), run_end_words(None)) == ("", "", "")
    assert reason_fields("", "left over") == {"reason": "", "detail": ""}
    assert reason_of("") is None


def test_each_run_end_is_told() -> None:
    """What the operations page shows behind "ended"."""
    assert [run_end_words(end) for end in RunEnd] == list(RUN_ENDS.values())


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_each_error_is_stored_as_a_code(kind: type[OsteonError]) -> None:
    """What ends an attempt is a code with words, and the exception's message is not in what is stored."""
    assert kind.reason in set(Reason)
    if kind.__init__ in (OsteonError.__init__, DecodingFailed.__init__):
        cause = kind("a sentence that quotes DOE^JANE").cause
        assert cause.reason is kind.reason
        assert cause.detail in ("", kind.__name__)


def test_what_nobody_foresaw_is_stored_by_its_class() -> None:
    """Its words may hold what the header holds."""
    assert cause_of(ZeroDivisionError("DOE^JANE")) == Cause(Reason.ANALYSIS_FAILED, "ZeroDivisionError")


def test_each_rejection_has_a_code_of_its_own() -> None:
    """A refused file's code tells its kind of error; none is taken for an image that may be read another time."""
    codes = [kind.reason for kind in Rejected.__subclasses__()]
    assert len(set(codes)) == len(codes)
    assert not set(codes) & DECODING


def test_codes_leave_as_they_are_stored() -> None:
    """A response has the code in `reason` and the sentence in `detail`."""
    state = StudyState(
        id="3f0c2b1e-6f0e-4a53-9c1c-0d7b1d0e8a11", status="quarantined", images=1, **reason_fields("worker-died", "3")
    )
    assert state.model_dump(mode="json")["reason"] == "worker-died"
    assert state.detail == "3 attempts ended without a result: the worker died or hung each time."


CODED = {"status", "state", "reason", "priority", "queue", "role", "purpose", "stage", "assessment", "severity", "verdict",
         "error_reason", "ended_by", "ended", "ended_for", "decision", "set_aside_for", "abstention", "fracture"}  # fmt: skip
FREE = {
    # what a peer answered, as DICOM or HTTP has it
    ("deliveries", "status"),
    ("delivery_objects", "status"),
    ("held_files", "reason"),
    ("samples", "status"),
}  # what an administrator wrote, encrypted


def test_every_column_of_codes_is_checked() -> None:
    """A state, reason, role, priority or assessment that Postgres does not hold to its codes is one that nobody checked."""
    for table in Base.metadata.tables.values():
        checks = {str(check.name) for check in table.constraints if isinstance(check, CheckConstraint)}
        for column in table.columns:
            name = column.name.removeprefix("old_").removeprefix("new_")
            if name in CODED and (table.name, column.name) not in FREE:
                assert f"ck_{table.name}_{column.name}" in checks, (table.name, column.name)
