"""The codes of what is found: the same in FHIR and HL7 as in DICOM, and none for what was not assessed."""

import inspect
from collections.abc import Iterator

import pytest

from shared.domain import coding
from shared.domain.coding import Code, processing
from shared.domain.findings import Assessment
from worker.results import concepts

POSITIVE, UNCLEAR, NEGATIVE, ABSTAINED = (
    Assessment.POSITIVE,
    Assessment.UNCLEAR,
    Assessment.NEGATIVE,
    Assessment.ABSTAINED,
)


@pytest.mark.parametrize(
    ("assessments", "code"),
    [
        ([NEGATIVE], "111241"), ([NEGATIVE, NEGATIVE], "111241"), ([POSITIVE], "111242"), ([UNCLEAR, NEGATIVE], "111242"),
        ([NEGATIVE, ABSTAINED], "111243"), ([None, NEGATIVE], "111243"), ([POSITIVE, None], "111244"),
        ([ABSTAINED], "111245"), ([None, ABSTAINED], "111245"), ([], "111245"),
    ],
)  # fmt: skip
def test_what_became_of_the_processing(assessments: list[Assessment | None], code: str) -> None:
    """An abstention and an unread image have not succeeded; nothing at all is no negative result."""
    assert processing(assessments).value == code


def codes(within: object) -> Iterator[Code]:
    """Each code that a module's name, dictionary or list holds."""
    if isinstance(within, Code):
        yield within
    elif isinstance(within, dict):
        for inner in within.values():
            yield from codes(inner)


def test_each_code_is_written_once() -> None:
    """DICOM results take theirs from here: none of these is written there a second time, where it could differ."""
    shared = {code.value for inner in vars(coding).values() for code in codes(inner)}
    assert len(shared) > 15
    source = inspect.getsource(concepts)
    assert {value for value in shared if f'"{value}"' in source} == set()
    assert concepts.PRESENCES.keys() == coding.PRESENCE.keys()
    assert Assessment.ABSTAINED not in coding.PRESENCE
