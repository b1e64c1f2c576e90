"""The examination in words: what is missing leaves no odd punctuation, the side is never cut off."""

from datetime import date, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.studies.examination import aged, cut, examined, image_words, joined, patient, when

texts = st.text(max_size=80)


@pytest.mark.parametrize(
    ("description", "body_part", "views", "side", "words"),
    [
        ("Lower leg, 2 views", "LEG", "AP, LL", "R", "Lower leg, 2 views, AP, LL, right"),
        ("", "HAND", "PA", "L", "Hand, PA, left"),
        ("", "LOWER LEG", "", "B", "Lower leg, both sides"),
        ("Hand right PA", "HAND", "PA", "R", "Hand right PA"),
        ("", "", "AP", "", "AP"),
        ("", "", "", "R", "right"),
        ("", "", "", "", ""),
        ("  Elbow\n\x1b AP ", "", "", "", "Elbow AP"),
    ],
)
def test_examined(description: str, body_part: str, views: str, side: str, words: str) -> None:
    """Description, or else the body part; then what it does not say of views and side."""
    assert examined(description, body_part, views, side) == words


@given(texts, texts, texts, st.sampled_from(["", "R", "L", "B"]))
def test_no_odd_punctuation(description: str, body_part: str, views: str, side: str) -> None:
    """Whatever is missing, nothing begins or ends with a mark of ours, and nothing invisible is left."""
    words = examined(description, body_part, views, side)
    assert words.isprintable()
    assert (not words.endswith(", ") and not words.startswith(", ")) or "," in description + body_part + views
    assert bool(words) >= bool(side)


@given(texts, st.integers(2, 90))
def test_cut(text: str, most: int) -> None:
    """What is long ends in an ellipsis; what is not stays."""
    assert len(cut(text, most)) <= most
    assert cut(text, most) == text if len(text) <= most else cut(text, most).endswith("…")


def test_facts() -> None:
    """Dates, ages and people, whole and in part."""
    assert when(date(2026, 11, 8), time(14, 2)) == "8 Nov 2026, 14:02"
    assert (when(date(2026, 11, 8), None), when(None, time(14))) == ("8 Nov 2026", "")
    assert [aged(years) for years in (None, 0, 41, 90)] == ["", "under 1 y", "41 y", "90 y or more"]
    assert (patient("F", 41, "4711"), patient("", None, "4711"), patient("", None)) == ("F · 41 y · 4711", "4711", "")
    assert (image_words("AP", "R"), image_words("", "L"), image_words("", "")) == ("AP, right", "left", "")
    assert joined("", "a", "", "b", mark=" · ") == "a · b"
