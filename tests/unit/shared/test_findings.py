"""What findings add up to, and the words for a probability."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.findings import (
    AbstentionReason,
    Assessment,
    Extent,
    Finding,
    Heatmap,
    OperatingPoints,
    abstention_words,
    assessment_of,
    gravity,
    ranked_as,
    shown_score,
    summarise,
)
from shared.domain.worklist import TURNAROUND_TARGETS, urgency_class

CHANCES = st.floats(0, 1)
STRENGTH = [Assessment.NEGATIVE, Assessment.UNCLEAR, Assessment.POSITIVE]


def finding(
    assessment: Assessment = Assessment.NEGATIVE,
    extent: Extent = Extent.NONE,
    chance: float = 0.1,
    region: str = "hand",
    score: float | None = None,
) -> Finding:
    return Finding(
        1,
        "test",
        region,
        0.9,
        chance,
        assessment,
        extent,
        Heatmap(b"\0", 1, 1),
        score,
        AbstentionReason.METAL if assessment is Assessment.ABSTAINED else None,
    )


SCORES = {
    Assessment.NEGATIVE: st.floats(0, 3, exclude_max=True),
    Assessment.UNCLEAR: st.floats(3, 7, exclude_max=True),
    Assessment.POSITIVE: st.floats(7, 10),
    Assessment.ABSTAINED: st.none() | st.floats(0, 10),
}
FINDINGS = st.sampled_from(Assessment).flatmap(
    lambda said: st.builds(finding, st.just(said), st.sampled_from(Extent), CHANCES, score=st.none() | SCORES[said])
)


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
    one = finding(Assessment.POSITIVE, Extent.MILD, 0.9, "elbow")
    summary = summarise(
        [finding(), finding(Assessment.ABSTAINED, chance=0.99), one, finding(Assessment.UNCLEAR, Extent.SEVERE)]
    )
    assert summary is not None
    assert (summary.assessment, summary.extent, summary.region) == (Assessment.POSITIVE, Extent.MILD, "elbow")
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
    assert (summary.assessment, summary.extent) == (Assessment.ABSTAINED, Extent.NONE)
    assert abstention_words(summary.abstention, summary.abstention_detail) == words
    found = [finding(Assessment.UNCLEAR, chance=0.5)]
    assert summarise(found, unread) == summarise(found)


def test_extent_then_probability_decide_between_equal_calls() -> None:
    """Of two fractures with the same assessment the larger one speaks, then the more probable one."""
    findings = [
        finding(Assessment.POSITIVE, Extent.MILD, 0.99, "hand"),
        finding(Assessment.POSITIVE, Extent.SEVERE, 0.7, "hip"),
        finding(Assessment.POSITIVE, Extent.SEVERE, 0.8, "leg"),
    ]
    summary = summarise(findings)
    assert summary is not None
    assert summary.region == "leg"


@given(st.lists(FINDINGS, min_size=1, max_size=5), FINDINGS)
def test_another_image_never_makes_a_study_look_better(findings: list[Finding], late: Finding) -> None:
    """An image that arrives late can only keep or worsen the place that a study's summary gives it."""
    before, after = summarise(findings), summarise([*findings, late])
    assert before is not None
    assert after is not None
    classes = list(TURNAROUND_TARGETS)  # the gravest first
    assert classes.index(urgency_class(after)) <= classes.index(urgency_class(before))


def test_no_findings_no_summary() -> None:
    """A study without any finding has no summary, rather than a normal one."""
    assert summarise([]) is None


def test_heatmap_fills_its_shape() -> None:
    """Bytes that do not fill height x width are refused where they are made, not where they are drawn."""
    assert Heatmap(bytes(6), 2, 3).width == 3
    with pytest.raises(ValueError, match="5 bytes do not fill 2 x 3"):
        Heatmap(bytes(5), 2, 3)


POINTS = st.builds(OperatingPoints, CHANCES, CHANCES)


@given(POINTS, CHANCES)
def test_the_score_never_contradicts_the_assessment(points: OperatingPoints, chance: float) -> None:
    """Negative is below 3, unclear below 7, positive from 7 on, in full precision and as it is shown."""
    score = points.score(chance)
    assert 0 <= score <= 10
    assert assessment_of(score) is points.assessment(chance)
    assert assessment_of(shown_score(score)) is points.assessment(chance)
    assert assessment_of(float(f"{shown_score(score):.1f}")) is points.assessment(chance)
    assert 0 <= score - shown_score(score) < 0.1 + 1e-9


@given(POINTS, CHANCES, CHANCES)
def test_a_higher_probability_never_scores_lower(points: OperatingPoints, one: float, other: float) -> None:
    """The scale is monotone, whatever the points are and in whichever order."""
    low, high = sorted((one, other))
    assert points.score(low) <= points.score(high)
    assert shown_score(points.score(low)) <= shown_score(points.score(high))


@pytest.mark.parametrize(
    ("chance", "score"),
    [(0.0, 0.0), (0.1, 1.5), (0.2, 3.0), (0.4, 5.0), (0.6, 7.0), (0.8, 8.5), (1.0, 10.0)],
)
def test_scores_between_the_points(chance: float, score: float) -> None:
    """Zero, both operating points and one are fixed; between them the scale is linear in the probability."""
    assert OperatingPoints(0.2, 0.6).score(chance) == pytest.approx(score)


def test_points_at_the_ends() -> None:
    """Points that leave no room below or between still give every probability a score of its assessment."""
    assert OperatingPoints(0.0, 0.0).score(0.0) == 7
    assert OperatingPoints(0.0, 1.0).score(0.0) == 3
    assert OperatingPoints(1.0, 1.0).score(1.0) == 7
    assert OperatingPoints(0.5, 0.2).score(0.5) == 7, "the specific point is never below the sensitive one"


@pytest.mark.parametrize("nonsense", [-0.1, 1.1, float("nan")])
def test_no_probability_no_score(nonsense: float) -> None:
    """What is no probability has no score."""
    with pytest.raises(ValueError, match="no probability"):
        OperatingPoints(0.2, 0.6).score(nonsense)


@pytest.mark.parametrize(
    ("score", "ranked", "level"),
    [
        (None, Assessment.ABSTAINED, ""),
        (0.0, Assessment.ABSTAINED, ". Raw score low"),
        (2.9, Assessment.ABSTAINED, ". Raw score low"),
        (3.0, Assessment.UNCLEAR, ". Raw score medium"),
        (7.0, Assessment.POSITIVE, ". Raw score high"),
    ],
)
def test_an_abstention_ranks_as_the_graver_of_the_two(score: float | None, ranked: Assessment, level: str) -> None:
    """Silence never ranks as calmer than its raw score, nor a low raw score as calmer than silence."""
    assert ranked_as(Assessment.ABSTAINED, score) is ranked
    assert gravity(Assessment.ABSTAINED, score) == gravity(ranked, score)
    words = abstention_words(AbstentionReason.METAL, score=score)
    assert words == f"outside the validated scope: metal in view{level}"


def test_the_abstention_speaks_where_its_raw_score_is_graver() -> None:
    """Beside an unclear image one with metal and a high raw score decides; beside a positive one it does not."""
    metal = finding(Assessment.ABSTAINED, chance=0.9, score=8.0)
    summary = summarise([finding(Assessment.UNCLEAR, Extent.MILD, 0.5, score=4.0), metal])
    assert summary is not None
    assert (summary.assessment, summary.score, summary.abstention) == ("abstained", 8.0, "metal")
    summary = summarise([finding(Assessment.POSITIVE, Extent.MILD, 0.8, score=7.5), metal])
    assert summary is not None
    assert (summary.assessment, summary.score, summary.abstention) == ("positive", 7.5, None)
