"""Values of queries against values of attributes, and the pieces by which an index finds them."""

import re
from datetime import date, time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from shared.domain.identity import name_groups
from shared.domain.matching import (
    MAX_PIECES,
    NamePattern,
    Span,
    TextPattern,
    Wildcards,
    name_pieces,
    parse_dates,
    parse_times,
    pieces_of_name_pattern,
    pieces_of_text_pattern,
    text_pieces,
)

LETTERS = "abAB éÉßİ山田^=.[\\"
TEXTS = st.text(LETTERS, max_size=12)
PATTERNS = st.text(LETTERS + "**??", max_size=8)


@st.composite
def likened(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> tuple[str, str]:
    """A text, and a pattern made of it by putting wild cards in place of its letters."""
    text = draw(texts)
    pattern = list(text)
    for at in draw(st.lists(st.integers(0, max(0, len(text) - 1)), max_size=6)):
        if at < len(text):
            pattern[at] = draw(st.sampled_from("*?"))
    for at in sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)), reverse=True):
        pattern.insert(at, "*")
    return "".join(pattern), text


@given(st.text("ab.\n", max_size=10), st.text("ab.\n*?", max_size=8))
@example("ab", "ab*b")  # the same letter cannot be both the beginning and the end
@example("", "*")
@example("", "")
def test_wild_cards_are_those_of_the_standard(text: str, pattern: str) -> None:
    """* stands for any letters, ? for one, and every other sign for itself."""
    meaning = "".join({"*": "(?s:.*)", "?": "(?s:.)"}.get(letter, re.escape(letter)) for letter in pattern)
    assert Wildcards(pattern).matches(text) == (re.fullmatch(meaning, text) is not None)


def test_a_pattern_of_many_stars_costs_little() -> None:
    """A pattern that would make a regular expression try for ever is compared at once."""
    assert not Wildcards("*a" * 160 + "b").matches("a" * 324)


@given(likened(TEXTS))
def test_a_text_is_like_a_pattern_made_of_it(made: tuple[str, str]) -> None:
    """What a pattern was made of matches it, and each piece that is looked for is one of its pieces."""
    pattern, text = made
    assume(text.strip(" ") and pattern.strip(" "))
    if not TextPattern(pattern).matches(text):  # a wild card in place of a space that is cut off at the end
        assert text != text.strip(" ")
        return
    assert pieces_of_text_pattern(pattern) <= text_pieces(text)


@given(likened(TEXTS))
@example(("smith^*", "smith"))
@example(("*^john", "Smith^John"))
@example(("*=山田^*", "Yamada^Taro=山田^太郎=やまだ^たろう"))
def test_names_are_found_by_their_pieces(made: tuple[str, str]) -> None:
    """The index never hides a name that a pattern matches."""
    pattern, name = made
    if NamePattern(pattern).matches(name):
        assert pieces_of_name_pattern(pattern) <= name_pieces(name)


@given(TEXTS, PATTERNS)
def test_no_piece_is_looked_for_that_a_match_may_lack(text: str, pattern: str) -> None:
    """The same for patterns and texts that have nothing to do with each other."""
    if NamePattern(pattern).matches(text):
        assert pieces_of_name_pattern(pattern) <= name_pieces(text)
    if TextPattern(pattern).matches(text):
        assert pieces_of_text_pattern(pattern) <= text_pieces(text)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_a_name_matches_itself(name: str) -> None:
    """Whatever a name holds, but for wild cards, it is found by itself and by a piece of three letters out of it."""
    assume("*" not in name and "?" not in name and any(name_groups(name)))
    assert NamePattern(name).matches(name)
    group = name_groups(name)[0]
    if group and "=" not in name:
        assert NamePattern(f"*{group[:3]}*").matches(name) or group[:3] != group[:3].strip("^ ")


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("SMITH^JOHN", "Smith^John", True),
        ("smith", "Smith^John", False),
        ("smith*", "Smith^John", True),
        ("*mit*", "Smith^John", True),
        ("*john*", "Smith^John", True),
        ("*john", "Smith^John", True),
        ("*hn^*", "Smith^John", True),  # John^ and an empty component
        ("smith^*", "Smith", True),
        ("smith^j?hn", "Smith^John", True),
        ("smith?", "Smith", False),
        ("smith?john", "Smith^John", True),
        ("*müller*", "MU\u0308LLER^Eva", True),  # a letter and its dots apart
        ("*strasse*", "Straße^Eva", True),
        ("*太郎*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("*たろ*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("yamada^tarou=*郎", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("=山田*", "Yamada^Tarou=山田^太郎", True),
        ("=yamada*", "Yamada^Tarou=山田^太郎", False),
        ("*", "", False),
        ("", "", False),
    ],
)
def test_names_as_people_look_for_them(pattern: str, name: str, found: bool) -> None:
    """Capitals, groups, components at the end that are empty."""
    assert NamePattern(pattern).matches(name) is found


@pytest.mark.parametrize(
    ("pattern", "pieces"),
    [
        ("*mit*", {"mit", "mi", "it"}),
        ("*mith*", {"mit", "ith"}),
        ("s*", {"^s"}),
        ("smi*", {"^sm", "smi"}),
        ("*th", {"th^", "th"}),
        ("*an*", {"an"}),
        ("*a*", set()),  # one letter in the middle of a word has no piece
        ("*太郎*", {"太郎", "太", "郎"}),
        ("*", set()),
        ("a^b", {"^a^", "^a", "^b^", "^b"}),
    ],
)
def test_the_pieces_of_a_pattern(pattern: str, pieces: set[str]) -> None:
    """Three letters, edges counted; two where there are not several times three; one at a beginning, and of scripts that
    need no more."""
    assert pieces_of_name_pattern(pattern) == pieces


def test_a_long_pattern_looks_for_few_pieces() -> None:
    """The number of pieces of a pattern is bounded, and the longest are taken."""
    pieces = pieces_of_name_pattern("*abcdefghijklmnopqrstuvwxyz*")
    assert len(pieces) == MAX_PIECES and all(len(piece) == 3 for piece in pieces)


@given(st.dates(min_value=date(1, 1, 1)), st.dates(min_value=date(1, 1, 1)))
def test_dates_and_their_ranges(first: date, last: date) -> None:
    """A date, a range, and a range without one end."""
    one, other = (f"{day.year:04}{day:%m%d}" for day in (first, last))
    assert parse_dates(one) == Span(first, first)
    assert parse_dates(f"{one}-{other}") == Span(first, last)
    assert parse_dates(f"{one}-") == Span(first, None)
    assert parse_dates(f"-{one}") == Span(None, first)


@given(st.times(), st.times())
def test_times_and_their_ranges(first: time, last: time) -> None:
    """A time without minutes or seconds is the whole hour or minute; fractions are left out."""
    whole = [one.replace(microsecond=0) for one in (first, last)]
    assert parse_times(f"{first:%H%M%S.%f}-{last:%H%M%S}") == Span(*whole)
    assert parse_times(f"{first:%H}") == Span(time(first.hour), time(first.hour, 59, 59))
    assert parse_times(f"{first:%H%M}-") == Span(time(first.hour, first.minute), None)
    assert parse_times(f"-{first:%H%M}") == Span(None, time(first.hour, first.minute, 59))


@pytest.mark.parametrize("text", ["", "-", "2026", "20261301", "20260230", "2026-01-01", "1-2-3", "٢٠٢٦٠١٠١", "x"])
def test_what_is_no_date(text: str) -> None:
    """A date that DICOM does not know is refused."""
    with pytest.raises(ValueError):
        parse_dates(text)


@pytest.mark.parametrize("text", ["", "-", "1", "123", "25", "1260", "10:00", "100000.1234567", "noon"])
def test_what_is_no_time(text: str) -> None:
    """A time that DICOM does not know is refused."""
    with pytest.raises(ValueError):
        parse_times(text)
