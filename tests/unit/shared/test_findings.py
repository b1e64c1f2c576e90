"""What findings add up to, and the words for a probability."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.findings import (
    AbstentionReason,
    Assessment,
    Finding,
    Heatmap,
    OperatingPoints,
    Severity,
    abstention_words,
    summarise,
)

CHANCES = st.floats(0, 1)
STRENGTH = [Assessment.NEGATIVE, Assessment.UNCLEAR, Assessment.POSITIVE]


def finding(
    assessment: Assessment = Assessment.NEGATIVE,
    severity: Severity = Severity.NONE,
    chance: float = 0.1,
    region: str = "hand",
) -> Finding:
    return Finding(
        1,
        "test",
        region,
        0.9,
        chance,
        assessment,
        severity,
        Heatmap(b"\0", 1, 1),
        AbstentionReason.METAL if assessment is Assessment.ABSTAINED else None,
    )


FINDINGS = st.builds(finding, st.sampled_from(Assessment), st.sampled_from(Severity), CHANCES)


@given(CHANCES, CHANCES, CHANCES, CHANCES)
def test_more_probable_is_never_a_weaker_call(sensitive: float, specific: float, one: float, other: float) -> None:
    """A higher probability never gets a weaker word, whatever the thresholds are and in whichever order."""
    points = OperatingPoints(sensitive, specific)
    low, high = sorted((one, other))
    assert STRENGTH.index(points.assessment(low)) <= STRENGTH.index(points.assessment(high))


def test_call_at_the_thresholds() -> None:
    """A probability exactly at an operating point belongs to the stronger word."""
    points = OperatingPoints(sensitive=0.2, specific=0.6)
    chances = [0.0, 0.199, 0.2, 0.599, 0.6, 1.0]
    words = ["negative", "negative", "unclear", "unclear", "positive", "positive"]
    assert [str(points.assessment(chance)) for chance in chances] == words


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -0.01, 1.01])
def test_what_is_no_probability_gets_no_call(nonsense: float) -> None:
    """A model that answers with no number is an error, never "negative", which would read as normal."""
    with pytest.raises(ValueError, match="no probability"):
        OperatingPoints(0.2, 0.6).assessment(nonsense)


def test_worst_finding_speaks_for_the_study() -> None:
    """One positive image among many negative images decides, with its own region and extent."""
    one = finding(Assessment.POSITIVE, Severity.MILD, 0.9, "elbow")
    summary = summarise(
        [finding(), finding(Assessment.ABSTAINED, chance=0.99), one, finding(Assessment.UNCLEAR, Severity.SEVERE)]
    )
    assert summary is not None
    assert (summary.assessment, summary.severity, summary.region) == (Assessment.POSITIVE, Severity.MILD, "elbow")
    assert summary.fracture_probability == 0.9


def test_abstention_outweighs_negative() -> None:
    """A study with one image out of scope is not called normal on the strength of the others."""
    summary = summarise([finding(Assessment.NEGATIVE, chance=0.3), finding(Assessment.ABSTAINED, chance=0.0)])
    assert summary is not None
    assert summary.assessment is Assessment.ABSTAINED


@pytest.mark.parametrize(("unread", "words"), [(1, "1 image could not be read"), (2, "2 images could not be read")])
def test_beside_an_unread_image_there_is_no_negative(unread: int, words: str) -> None:
    """A study of which an image could not be read is not called normal; a graver finding still speaks for it."""
    summary = summarise([finding(Assessment.NEGATIVE, chance=0.3)], unread)
    assert summary is not None
    assert (summary.assessment, summary.severity) == (Assessment.ABSTAINED, Severity.NONE)
    assert abstention_words(summary.abstention, summary.abstention_detail) == words
    found = [finding(Assessment.UNCLEAR, chance=0.5)]
    assert summarise(found, unread) == summarise(found)


def test_extent_then_probability_decide_between_equal_calls() -> None:
    """Of two fractures with the same assessment the larger one speaks, then the more probable one."""
    findings = [
        finding(Assessment.POSITIVE, Severity.MILD, 0.99, "hand"),
        finding(Assessment.POSITIVE, Severity.SEVERE, 0.7, "hip"),
        finding(Assessment.POSITIVE, Severity.SEVERE, 0.8, "leg"),
    ]
    summary = summarise(findings)
    assert summary is not None
    assert summary.region == "leg"


@given(st.lists(FINDINGS, min_size=1, max_size=5), FINDINGS)
def test_another_image_never_makes_a_study_look_better(findings: list[Finding], late: Finding) -> None:
    """An image that arrives late can only keep or worsen what the study is summarised as."""
    order = [Assessment.NEGATIVE, Assessment.ABSTAINED, Assessment.UNCLEAR, Assessment.POSITIVE]
    before, after = summarise(findings), summarise([*findings, late])
    assert before is not None
    assert after is not None
    assert order.index(after.assessment) >= order.index(before.assessment)


def test_no_findings_no_summary() -> None:
    """A study without any finding has no summary, rather than a normal one."""
    assert summarise([]) is None


def test_heatmap_fills_its_shape() -> None:
    """Bytes that do not fill height x width are refused where they are made, not where they are drawn."""
    assert Heatmap(bytes(6), 2, 3).width == 3
    with pytest.raises(ValueError, match="5 bytes do not fill 2 x 3"):
        Heatmap(bytes(5), 2, 3)
