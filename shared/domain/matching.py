"""How a query's values are compared with an attribute's, and which pieces of a text an index needs for it.

Source: PS3.4 C.2.2.2 (single value, list, wild card and range matching), PS3.5 6.2 (DA, TM, PN).
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, time
from functools import cached_property
from typing import Generic, TypeVar

from shared.domain.identity import name_groups

PIECE = 3  # letters
EDGE = "^"  # stands before the first and behind the last letter of a component
FIRST_WIDE_LETTER = "\u2e80"  # from here on names are written in one to three letters: Chinese, Japanese, Korean
MAX_PIECES = 16  # of a pattern that are looked for; more would choose no better
_DATE = re.compile(r"[0-9]{8}")
_TIME = re.compile(r"([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:\.[0-9]{1,6})?)?)?")

Point = TypeVar("Point", date, time)


@dataclass(frozen=True)
class Span(Generic[Point]):
    """A range of dates or times, both ends of it included. None: no end."""

    first: Point | None
    last: Point | None


def parse_dates(text: str) -> Span[date]:
    """Read a date of a query, or a range of dates.

    Args:
        text: YYYYMMDD, or two of these with "-" between, of which one may be missing.

    Returns:
        The range; of one date it begins and ends there.

    Raises:
        ValueError: it is neither.
    """
    first, last = _split_range(text)
    return Span(_date(first), _date(last))


def parse_times(text: str) -> Span[time]:
    """Read a time of a query, or a range of times. Times are compared to the second.

    Args:
        text: HH, HHMM, HHMMSS or HHMMSS.FFFFFF, or two of these with "-" between, of which one may be missing.

    Returns:
        The range; of one time that lacks minutes or seconds it is the whole hour or minute.

    Raises:
        ValueError: it is neither.
    """
    first, last = _split_range(text)
    return Span(_time(first, 0), _time(last, 59))


def _split_range(text: str) -> tuple[str, str]:
    first, dash, last = text.partition("-")
    if not (first or last):
        raise ValueError("both ends are missing")
    return (first, last) if dash else (first, first)


def _date(text: str) -> date | None:
    if not text:
        return None
    if not _DATE.fullmatch(text):
        raise ValueError("not YYYYMMDD")
    return date(int(text[:4]), int(text[4:6]), int(text[6:]))


def _time(text: str, rest: int) -> time | None:
    """rest: minutes and seconds that the text does not say."""
    if not text:
        return None
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError("not HHMMSS")
    hour, minute, second = (rest if part is None else int(part) for part in found.groups())
    return time(hour, minute, min(second, 59))  # a leap second counts as the one before


@dataclass(frozen=True)
class Wildcards:
    """A text in which * stands for any letters, or none, and ? for one. Compared in linear time, case-sensitive."""

    pattern: str

    @property
    def any(self) -> bool:
        """Whether every text is like it."""
        return bool(self.pattern) and not self.pattern.strip("*")

    @property
    def exact(self) -> bool:
        """Whether no letter of it stands for others."""
        return "*" not in self.pattern and "?" not in self.pattern

    @cached_property
    def _parts(self) -> list[re.Pattern[str]]:
        return [
            re.compile("".join("." if letter == "?" else re.escape(letter) for letter in part), re.DOTALL)
            for part in self.pattern.split("*")
        ]

    def matches(self, text: str) -> bool:
        """Whether a text is like it."""
        first, *middle = self._parts
        if not middle:
            return first.fullmatch(text) is not None
        last = middle.pop()
        end = len(text) - len(self.pattern.rpartition("*")[2])  # each of its letters stands for one
        begun = first.match(text)
        at = begun.end() if begun else end + 1
        for part in middle:
            if at > end:
                return False
            found = part.search(text, at, end)  # the first place leaves most room for what follows
            at = found.end() if found else end + 1
        return at <= end and last.fullmatch(text, end) is not None


class TextPattern:
    """A value of a query, with wild cards, that texts are compared with which are no names."""

    def __init__(self, pattern: str) -> None:
        self._like = Wildcards(_compose(pattern))

    def matches(self, text: str) -> bool:
        """Whether a text is like it: capitals matter, spaces at both ends do not. One that is absent is like none."""
        text = _compose(text)
        return bool(text) and self._like.matches(text)


class NamePattern:
    """A value of a query, with wild cards, that persons' names are compared with.

    Without "=" any group of a name may be like it, with "=" each group must be like the one in its place, but for those
    that are empty.
    """

    def __init__(self, pattern: str) -> None:
        self._by_group = "=" in pattern
        self._wanted = [_GroupPattern(group) if group else None for group in name_groups(pattern)]

    def matches(self, name: str) -> bool:
        """Whether a decoded name is like it; capitals, doubled spaces and carets at the end do not matter."""
        groups = name_groups(name)
        if not any(groups):
            return False
        if self._by_group:
            return all(one.matches(group) for one, group in zip(self._wanted, groups, strict=True) if one)
        first = self._wanted[0]
        return first is not None and any(first.matches(group) for group in groups if group)


class _GroupPattern:
    """The pattern of one group of a name."""

    def __init__(self, pattern: str) -> None:
        self._like = Wildcards(pattern)
        self._most = min(pattern.count("^"), 4)  # components at the end that are empty: Smith is Smith^

    def matches(self, group: str) -> bool:
        return any(self._like.matches(group + "^" * count) for count in range(self._most + 1))


def text_pieces(text: str) -> frozenset[str]:
    """Cut a text that is no name into the pieces by which an index finds it.

    Args:
        text: of an attribute.

    Returns:
        Pieces of one to three letters; none of an empty text.
    """
    return frozenset(_cut(_compose(text).casefold(), starts=True, ends=True))


def name_pieces(name: str) -> frozenset[str]:
    """Cut a person's name into the pieces by which an index finds it.

    Args:
        name: Patient's Name or another one, decoded.

    Returns:
        Pieces of one to three letters of the components of all groups; none of an empty name.
    """
    components = (component for group in name_groups(name) for component in group.split("^"))
    return frozenset(piece for one in components for piece in _cut(one, starts=True, ends=True))


def pieces_of_text_pattern(pattern: str) -> frozenset[str]:
    """Find pieces that `text_pieces` makes of each text that a pattern matches.

    Args:
        pattern: with wild cards.

    Returns:
        At most MAX_PIECES; none if the pattern has no such piece.
    """
    return _longest(_cut_pattern(_compose(pattern).casefold()))


def pieces_of_name_pattern(pattern: str) -> frozenset[str]:
    """Find pieces that `name_pieces` makes of each name that a pattern matches.

    Args:
        pattern: with wild cards.

    Returns:
        At most MAX_PIECES; none if the pattern has no such piece.
    """
    # without "=" the first group is all there is
    parts = (part for group in name_groups(pattern) for part in group.split("^"))
    return _longest(piece for part in parts for piece in _cut_pattern(part))


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip(" ")


def _longest(pieces: Iterator[str]) -> frozenset[str]:
    return frozenset(sorted(set(pieces), key=lambda piece: (-len(piece), piece))[:MAX_PIECES])


def _cut_pattern(part: str) -> Iterator[str]:
    """Of a pattern of one component: the pieces between its wild cards."""
    at = 0
    for run in re.split(r"[*?]", part):
        pieces = list(_cut(run, starts=at == 0, ends=at + len(run) == len(part)))
        # where there are three letters, two of them choose no better; but one number may be a frequent piece's, too
        longest = [piece for piece in pieces if len(piece) >= PIECE or min(piece) >= FIRST_WIDE_LETTER]
        yield from longest if len(longest) > 1 else pieces
        at += len(run) + 1


def _cut(text: str, *, starts: bool, ends: bool) -> Iterator[str]:
    """Pieces of a text that begins, or ends, a component.

    Three letters each, edges counted; two letters, for patterns such as *zq*; the first letter with its edge, for S*;
    and one letter of scripts that write names in so few.
    """
    if not text:
        return
    whole = EDGE * starts + text + EDGE * ends
    for at in range(len(whole) - PIECE + 1):
        yield whole[at : at + PIECE]
    if starts:
        yield whole[:2]
    for at in range(len(text) - 1):
        yield text[at : at + 2]
    for letter in text:
        if letter >= FIRST_WIDE_LETTER:
            yield letter
