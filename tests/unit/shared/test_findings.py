"""What findings add up to, and the words for a probability."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.findings import Call, Finding, Heatmap, OperatingPoints, Severity, summarise

CHANCES = st.floats(0, 1)
STRENGTH = [Call.NONE, Call.POSSIBLE, Call.LIKELY]


def finding(
    call: Call = Call.NONE, severity: Severity = Severity.NONE, chance: float = 0.1, region: str = "hand"
) -> Finding:
    return Finding(1, "test", region, 0.9, chance, call, severity, "in scope", Heatmap(b"\0", 1, 1))


FINDINGS = st.builds(finding, st.sampled_from(Call), st.sampled_from(Severity), CHANCES)


@given(CHANCES, CHANCES, CHANCES, CHANCES)
def test_more_probable_is_never_a_weaker_call(sensitive: float, specific: float, one: float, other: float) -> None:
    """A higher probability never gets a weaker word, whatever the thresholds are and in whichever order."""
    points = OperatingPoints(sensitive, specific)
    low, high = sorted((one, other))
    assert STRENGTH.index(points.call(low)) <= STRENGTH.index(points.call(high))


def test_call_at_the_thresholds() -> None:
    """A probability exactly at an operating point belongs to the stronger word."""
    points = OperatingPoints(sensitive=0.2, specific=0.6)
    chances = [0.0, 0.199, 0.2, 0.599, 0.6, 1.0]
    words = ["none", "none", "possible", "possible", "likely", "likely"]
    assert [str(points.call(chance)) for chance in chances] == words


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -0.01, 1.01])
def test_what_is_no_probability_gets_no_call(nonsense: float) -> None:
    """A model that answers with no number is an error, never "none", which would read as normal."""
    with pytest.raises(ValueError, match="no probability"):
        OperatingPoints(0.2, 0.6).call(nonsense)


def test_worst_finding_speaks_for_the_study() -> None:
    """One likely fracture among many normal images decides, with its own region and extent."""
    one = finding(Call.LIKELY, Severity.MILD, 0.9, "elbow")
    summary = summarise([finding(), finding(Call.ABSTAINED, chance=0.99), one, finding(Call.POSSIBLE, Severity.SEVERE)])
    assert summary is not None
    assert (summary.call, summary.severity, summary.region) == (Call.LIKELY, Severity.MILD, "elbow")
    assert summary.fracture_probability == 0.9


def test_abstention_outweighs_none() -> None:
    """A study with one image out of scope is not called normal on the strength of the others."""
    summary = summarise([finding(Call.NONE, chance=0.3), finding(Call.ABSTAINED, chance=0.0)])
    assert summary is not None
    assert summary.call is Call.ABSTAINED


@pytest.mark.parametrize(("unread", "words"), [(1, "1 image could not be read"), (2, "2 images could not be read")])
def test_beside_an_unread_image_there_is_no_none(unread: int, words: str) -> None:
    """A study of which an image could not be read is not called normal; a graver finding still speaks for it."""
    summary = summarise([finding(Call.NONE, chance=0.3)], unread)
    assert summary is not None
    assert (summary.call, summary.severity, summary.scope) == (Call.ABSTAINED, Severity.NONE, words)
    found = [finding(Call.POSSIBLE, chance=0.5)]
    assert summarise(found, unread) == summarise(found)


def test_extent_then_probability_decide_between_equal_calls() -> None:
    """Of two fractures with the same call the larger one speaks, then the more probable one."""
    findings = [
        finding(Call.LIKELY, Severity.MILD, 0.99, "hand"),
        finding(Call.LIKELY, Severity.SEVERE, 0.7, "hip"),
        finding(Call.LIKELY, Severity.SEVERE, 0.8, "leg"),
    ]
    summary = summarise(findings)
    assert summary is not None
    assert summary.region == "leg"


@given(st.lists(FINDINGS, min_size=1, max_size=5), FINDINGS)
def test_another_image_never_makes_a_study_look_better(findings: list[Finding], late: Finding) -> None:
    """An image that arrives late can only keep or worsen what the study is summarised as."""
    order = [Call.NONE, Call.ABSTAINED, Call.POSSIBLE, Call.LIKELY]
    before, after = summarise(findings), summarise([*findings, late])
    assert before is not None
    assert after is not None
    assert order.index(after.call) >= order.index(before.call)


def test_no_findings_no_summary() -> None:
    """A study without any finding has no summary, rather than a normal one."""
    assert summarise([]) is None


def test_heatmap_fills_its_shape() -> None:
    """Bytes that do not fill height x width are refused where they are made, not where they are drawn."""
    assert Heatmap(bytes(6), 2, 3).width == 3
    with pytest.raises(ValueError, match="5 bytes do not fill 2 x 3"):
        Heatmap(bytes(5), 2, 3)
