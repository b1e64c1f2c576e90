"""What feedback may say at once, and what the feedback on a study comes to."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.feedback import (
    Contradiction,
    Entry,
    Fracture,
    ReadersAssessment,
    Verdict,
    contradictions,
    readers_summary,
)
from shared.domain.findings import Assessment, Extent

ADA, BOB = UUID(int=1), UUID(int=2)
JUDGES = (Verdict.AGREE, Verdict.DISAGREE, Verdict.SUPPLEMENT)


@pytest.mark.parametrize(
    ("assessment", "verdict", "said", "found"),
    [
        ("positive", "disagree", {"fracture": "no"}, []),
        ("positive", "disagree", {"fracture": "no", "marks": 1}, ["box-without-fracture"]),
        ("positive", "supplement", {"fracture": "no", "marks": 2}, ["box-without-fracture"]),
        ("negative", "agree", {"marks": 1}, ["box-without-fracture"]),
        ("abstained", "disagree", {"severity": "none", "marks": 1}, ["box-without-fracture"]),
        ("positive", "disagree", {"fracture": "no", "severity": "mild"}, ["extent-without-fracture"]),
        ("positive", "disagree", {"fracture": "no", "severity": "none"}, []),
        ("negative", "disagree", {"fracture": "yes", "severity": "none"}, ["fracture-without-extent"]),
        ("positive", "agree", {"severity": "none"}, ["fracture-without-extent"]),
        ("positive", "agree", {"fracture": "no"}, ["agrees-with-the-opposite"]),
        ("negative", "agree", {"fracture": "yes"}, ["agrees-with-the-opposite"]),
        ("positive", "disagree", {"fracture": "yes"}, ["disagrees-with-the-same"]),
        ("negative", "disagree", {"fracture": "no"}, ["disagrees-with-the-same"]),
        ("positive", "disagree", {"fracture": "yes", "more": True}, []),  # elsewhere, or another region
        ("positive", "disagree", {"fracture": "yes", "marks": 1}, []),
        ("positive", "disagree", {"fracture": "yes", "severity": "severe"}, []),
        ("unclear", "disagree", {"fracture": "yes"}, []),
        ("unclear", "disagree", {"fracture": "no"}, []),
        ("unclear", "agree", {"fracture": "yes", "marks": 1}, []),
        ("abstained", "disagree", {}, []),
        ("positive", "disagree", {"fracture": "unsure", "marks": 1}, []),
        ("positive", "withdrawn", {}, []),
    ],
)
def test_what_contradicts_itself(assessment: str, verdict: str, said: dict[str, Any], found: list[str]) -> None:
    """Each kind of contradiction, and what only looks like one."""
    said = {"fracture": None, "severity": None, "marks": 0} | said
    assert contradictions(Assessment(assessment), verdict, **said) == found


@given(st.sampled_from(Assessment), st.sampled_from([Verdict.AGREE, Verdict.SUPPLEMENT]), st.booleans())
def test_bare_feedback_never_contradicts_itself(assessment: Assessment, verdict: Verdict, more: bool) -> None:
    """What one key says is stored without a question."""
    assert contradictions(assessment, verdict, None, None, 0, more=more) == []
    opposite = {Assessment.POSITIVE: "no", Assessment.UNCLEAR: "no", Assessment.NEGATIVE: "yes"}.get(assessment)
    assert contradictions(assessment, Verdict.DISAGREE, opposite, None, 0) == []


@given(
    st.sampled_from(Assessment), st.sampled_from(JUDGES), st.sampled_from(Fracture), st.none() | st.sampled_from(Extent),
    st.integers(1, 3), st.booleans(),
)  # fmt: skip
def test_no_fracture_and_a_box_is_always_asked(
    assessment: Assessment, verdict: Verdict, fracture: Fracture, severity: Extent | None, marks: int, more: bool
) -> None:
    """Whoever says it of whatever, and only then."""
    asked = Contradiction.BOX_WITHOUT_FRACTURE in contradictions(
        assessment, verdict, fracture, severity, marks, more=more
    )
    assert asked == (fracture is Fracture.NO)


def entry(number: int, reader: UUID, image: int, verdict: str, **said: Any) -> Entry:
    values: dict[str, Any] = {
        "fracture": None, "region": None, "severity": None, "marks": [], "words": None, "model_shown": True,
        "supersedes": None, "frame": 1, "bundle": "m",
    } | said  # fmt: skip
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    return Entry(
        id=UUID(int=number), site_id=UUID(int=0), number=number, study_id=UUID(int=9), key_id=reader, answered_at=at,
        request_id=str(number), verdict=verdict, instance_id=UUID(int=100 + image) if image else None, **values,
    )  # fmt: skip


def shown(*assessments: str) -> dict[Any, tuple[Assessment, str]]:
    return {(UUID(int=101 + place), 1, "m"): (Assessment(one), "hand") for place, one in enumerate(assessments)}


@pytest.mark.parametrize(
    ("findings", "said", "reading", "unanswered"),
    [
        (["positive"], [], None, 0),
        (["positive"], [(ADA, 1, "agree", {})], None, 0),
        (["negative", "unclear"], [(ADA, 1, "agree", {}), (ADA, 2, "agree", {})], None, 0),
        (["positive"], [(ADA, 1, "supplement", {})], None, 0),
        (["positive"], [(ADA, 1, "disagree", {"fracture": "no"})], "no-fracture", 0),
        (["positive"], [(ADA, 1, "supplement", {"fracture": "no"})], "no-fracture", 0),
        (["negative"], [(ADA, 1, "disagree", {"fracture": "yes"})], "fracture", 0),
        (["abstained"], [(ADA, 1, "supplement", {"fracture": "yes"})], "fracture", 0),
        (["positive"], [(ADA, 1, "disagree", {})], "unsure", 0),
        (["positive", "positive"], [(ADA, 1, "disagree", {"fracture": "no"})], "open", 1),
        (["positive", "unclear"], [(ADA, 1, "disagree", {"fracture": "no"})], "no-fracture", 0),
        (["positive", "positive"], [(ADA, 1, "disagree", {"fracture": "no"}), (ADA, 2, "agree", {})], "fracture", 0),
        (["positive"], [(ADA, 1, "agree", {}), (BOB, 1, "disagree", {"fracture": "no"})], "differ", 0),
        (["negative", "negative"], [(ADA, 1, "agree", {}), (BOB, 1, "disagree", {"fracture": "yes"}),
                            (BOB, 2, "disagree", {"fracture": "yes"})], "fracture", 0),
        (["positive"], [(ADA, 1, "agree", {}), (ADA, 1, "supplement", {"fracture": "no"})], "no-fracture", 0),
        (["positive"], [(ADA, 0, "done", {"bundle": None, "frame": None})], None, 0),
        (["positive"], [(ADA, 1, "disagree", {"fracture": "no", "bundle": "older"})], None, 0),
    ],
)  # fmt: skip
def test_what_readers_say_of_a_study(
    findings: list[str], said: list[tuple[UUID, int, str, dict[str, Any]]], reading: str | None, unanswered: int
) -> None:
    """The model speaks for the study until a reader contradicts it; then the gravest that readers see."""
    entries = [entry(number, *one[:3], **one[3]) for number, one in enumerate(said, start=1)]
    word = readers_summary(shown(*findings), entries)
    assert (word and word.reading) == reading
    if word:
        assert word.unanswered == unanswered


def test_the_word_tells_where_how_large_and_whose() -> None:
    """Region and extent are the reader's where chosen, else the region is the model's and no extent is given."""
    word = readers_summary(shown("positive"), [entry(1, ADA, 1, "disagree", fracture="no")])
    assert word is not None
    assert (word.region, word.severity, word.readers) == ("hand", None, (ADA,))
    own = [entry(1, ADA, 1, "disagree", fracture="yes", region="leg", severity="severe"), entry(2, BOB, 1, "agree")]
    word = readers_summary(shown("negative"), [own[0]])
    assert word is not None
    assert (word.reading, word.region, word.severity) == (ReadersAssessment.FRACTURE, "leg", "severe")
    word = readers_summary(shown("positive"), own)
    assert word is not None
    assert (word.readers, word.answered_at) == ((ADA, BOB), own[1].answered_at)


@given(
    st.lists(st.sampled_from(Assessment), min_size=1, max_size=3),
    st.lists(st.tuples(st.sampled_from([ADA, BOB]), st.integers(1, 3), st.sampled_from(JUDGES),
                       st.none() | st.sampled_from(Fracture)), max_size=6),
)  # fmt: skip
def test_no_fracture_is_said_only_where_nobody_sees_one(
    assessments: list[Assessment], said: list[tuple[UUID, int, Verdict, Fracture | None]]
) -> None:
    """`no-fracture` leaves no positive finding open, and no reader's last word is another one."""
    entries = [
        entry(number, reader, image, verdict, fracture=fracture)
        for number, (reader, image, verdict, fracture) in enumerate(said, start=1)
    ]
    word = readers_summary(shown(*assessments), entries)
    if word is None or word.reading is not ReadersAssessment.NO_FRACTURE:
        return
    answered = {one.instance_id for one in entries}
    assert all(
        of[0] in answered for of, (assessment, _) in shown(*assessments).items() if assessment is Assessment.POSITIVE
    )
    last = {(one.key_id, one.instance_id): one.fracture for one in entries if one.fracture}
    disagreed = [one for one in entries if one.verdict == Verdict.DISAGREE]
    assert disagreed or last
