"""What readers search for by words: parts of names, numbers and descriptions, and dates of studies.

Keyed pieces (`Vault`) find candidates, which are decrypted and compared: MAX_COMPARED of a search at most, the newest.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from shared.db.tables import IdentityRow, StudyRow
from shared.domain.identity import name_groups
from shared.domain.matching import FIRST_WIDE_LETTER
from shared.domain.study import Identity
from shared.queries.access import MAX_MATCHES, Key, Vault

MAX_WORDS = 8
MAX_COMPARED = 2000  # candidates that are decrypted for a search: about a tenth of a second
SEARCHED = ("patient_name", "patient_id", "accession_number", "study_description")  # of Identity
_SPLIT = re.compile(r"[\s,^=*?]+")  # also what stands between the parts of a name, and what is a wild card elsewhere
_ISO = re.compile(r"(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})")
_DOTTED = re.compile(r"(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})")


@dataclass(frozen=True)
class SearchWords:
    """What a reader wants; each word must be found, and one of the dates, if there are any."""

    words: tuple[str, ...] = ()  # case-folded
    dates: tuple[date, ...] = ()
    no_dates: tuple[str, ...] = ()  # written like dates, and none
    too_many: bool = False  # more than MAX_WORDS: nothing is searched


@dataclass(frozen=True)
class FoundStudies:
    """What a search found."""

    ids: list[UUID]  # newest first
    whole: bool  # False: there are more, or more candidates than were compared


def parse_search(text: str) -> SearchWords:
    """Read what somebody typed.

    Args:
        text: words, and dates as 2026-11-28 or 28.11.2026, in any order.

    Returns:
        What is wanted.
    """
    words: dict[str, None] = {}
    dates: dict[date, None] = {}
    no_dates = []
    for word in _SPLIT.split(unicodedata.normalize("NFC", text)):
        like_date = _ISO.fullmatch(word) or _DOTTED.fullmatch(word)
        if like_date:
            try:
                dates[date(**{part: int(digits) for part, digits in like_date.groupdict().items()})] = None
            except ValueError:
                no_dates.append(word)
        elif word:
            words[word.casefold()] = None
    many = len(words) + len(dates) > MAX_WORDS
    return SearchWords(tuple(words)[:MAX_WORDS], tuple(dates)[:MAX_WORDS], tuple(no_dates), many)


def find_by_words(session: Session, vault: Vault, reader: Key, wanted: SearchWords) -> FoundStudies:
    """Find studies, read or not.

    Args:
        session: the caller's transaction.
        vault: decrypts identities.
        reader: who searches; only their site is searched.
        wanted: what they want.

    Returns:
        At most MAX_MATCHES studies.
    """
    if wanted.too_many or wanted.no_dates or not (wanted.words or wanted.dates):
        return FoundStudies([], whole=True)
    query = (
        select(StudyRow.id, IdentityRow.ciphertext)
        .outerjoin(IdentityRow, IdentityRow.study_id == StudyRow.id)
        .where(StudyRow.site_id == reader.site_id)
    )
    if wanted.words:  # only an inner join can use the index of pieces
        query = (
            select(StudyRow.id, IdentityRow.ciphertext)
            .join(IdentityRow, IdentityRow.study_id == StudyRow.id)
            .where(StudyRow.site_id == reader.site_id, *_have_pieces(vault, reader.site_id, wanted.words))
        )
    if wanted.dates:
        query = query.where(StudyRow.study_date.in_(wanted.dates))
    rows = session.execute(query.order_by(StudyRow.received_at.desc(), StudyRow.id).limit(MAX_COMPARED)).all()
    found: list[UUID] = []
    for study_id, ciphertext in rows:
        if wanted.words and not _has(vault.identity_of(bytes(ciphertext)), wanted.words):
            continue
        if len(found) == MAX_MATCHES:
            return FoundStudies(found, whole=False)
        found.append(study_id)
    return FoundStudies(found, whole=len(rows) < MAX_COMPARED)


def _have_pieces(vault: Vault, site_id: UUID, words: tuple[str, ...]) -> Iterator[ColumnElement[bool]]:
    """What candidates fulfil; one that has no pieces yet may match, too."""
    for word in words:
        pattern = f"{word}*" if _begins(word) else f"*{word}*"
        several = [vault.pieces_wanted(site_id, kind, pattern) for kind in SEARCHED]
        if all(several):
            yield or_(*(IdentityRow.pieces.contains(pieces) for pieces in several), IdentityRow.pieces.is_(None))


def _begins(word: str) -> bool:
    """Whether a word is looked for at beginnings only: one letter is in nearly every name."""
    return len(word) == 1 and word < FIRST_WIDE_LETTER


def _has(who: Identity, words: tuple[str, ...]) -> bool:
    components = [part for group in name_groups(who.patient_name) for part in group.split("^")]
    others = (who.patient_id, who.accession_number, who.study_description)
    texts = components + [unicodedata.normalize("NFC", text).strip(" ").casefold() for text in others]
    return all(any(text.startswith(word) if _begins(word) else word in text for text in texts) for word in words)
