"""Readers' feedback on findings: an entry of its log, and the chain that makes later changes show."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from shared.domain.findings import Assessment, Extent

GENESIS = "0" * 64  # what stands before a site's first entry


class Verdict(StrEnum):
    """What an entry says."""

    AGREE = "agree"
    DISAGREE = "disagree"
    SUPPLEMENT = "supplement"  # neither right nor wrong, but something to add
    WITHDRAWN = "withdrawn"  # the reader takes their feedback back and says nothing in its place
    DONE = "done"  # the whole study has been read
    REOPENED = "reopened"  # it has not, after all
    SEEN = "seen"  # the reader has seen that this bundle revised an earlier finding of the study


OF_STUDY = frozenset({Verdict.DONE, Verdict.REOPENED})


class Fracture(StrEnum):
    """What the reader sees where the model is wrong, or says too little."""

    YES = "yes"
    NO = "no"
    UNSURE = "unsure"


class Contradiction(StrEnum):
    """How the parts of one entry speak against each other."""

    BOX_WITHOUT_FRACTURE = "box-without-fracture"  # no fracture, and a box where it is
    EXTENT_WITHOUT_FRACTURE = "extent-without-fracture"  # no fracture, and how large it is
    FRACTURE_WITHOUT_EXTENT = "fracture-without-extent"  # a fracture of the extent "none"
    AGREES_WITH_THE_OPPOSITE = "agrees-with-the-opposite"  # agrees with the model, and sees the opposite
    DISAGREES_WITH_THE_SAME = "disagrees-with-the-same"  # disagrees, and says what the model says and no more


def contradictions(
    assessment: Assessment, verdict: str, fracture: str | None, severity: str | None, marks: int, *, more: bool = False
) -> list[Contradiction]:
    """Find contradictions within feedback on a finding.

    Args:
        assessment: the finding's.
        verdict: a `Verdict`.
        fracture: a `Fracture`; None if the reader gave none.
        severity: an `Extent`; None if the reader gave none.
        marks: how many boxes the reader drew.
        more: whether it also has a region or a text.

    Returns:
        The contradictions; empty for feedback that can be meant.
    """
    agrees, disagrees = verdict == Verdict.AGREE, verdict == Verdict.DISAGREE
    implied = MODEL_STATEMENT.get(assessment) if agrees else None
    seen = fracture or implied or (Fracture.NO if severity == Extent.NONE else None)
    found = []
    if seen == Fracture.NO and marks:
        found.append(Contradiction.BOX_WITHOUT_FRACTURE)
    if seen == Fracture.NO and severity not in (None, Extent.NONE):
        found.append(Contradiction.EXTENT_WITHOUT_FRACTURE)
    if seen == Fracture.YES and severity == Extent.NONE:
        found.append(Contradiction.FRACTURE_WITHOUT_EXTENT)
    if implied and {implied, fracture} == {Fracture.YES, Fracture.NO}:
        found.append(Contradiction.AGREES_WITH_THE_OPPOSITE)
    if disagrees and fracture and fracture == MODEL_STATEMENT.get(assessment) and not (more or marks or severity):
        found.append(Contradiction.DISAGREES_WITH_THE_SAME)
    return found


MODEL_STATEMENT = {
    Assessment.POSITIVE: Fracture.YES,
    Assessment.NEGATIVE: Fracture.NO,
}  # what the model says where it is sure


@dataclass(frozen=True)
class Mark:
    """A box that the reader drew on a frame; shares of its width and height, from the top left corner."""

    instance_id: UUID
    frame: int  # 1 for the first
    x: float
    y: float
    width: float
    height: float

    def stored(self) -> dict[str, Any]:
        """As JSON; four decimals are finer than any pixel that is shown."""
        shares = {name: round(getattr(self, name), 4) for name in ("x", "y", "width", "height")}
        shares |= {name: max(shares[name], 0.0001) for name in ("width", "height")}  # the thinnest box is one still
        return {"instance": str(self.instance_id), "frame": self.frame, **shares}


@dataclass(frozen=True)
class Entry:
    """One line of a site's feedback log. It is never changed: a later entry supersedes it."""

    id: UUID
    site_id: UUID
    number: int  # 1 for the site's first; no number is left out
    study_id: UUID
    key_id: UUID  # who
    answered_at: datetime  # by Postgres' clock
    request_id: str  # the client's, so that a retry writes nothing twice
    verdict: str
    instance_id: UUID | None  # of the finding; with frame and bundle. None: the whole study
    frame: int | None
    bundle: str | None
    fracture: str | None
    region: str | None
    severity: str | None
    marks: list[dict[str, Any]]  # as Mark.stored gives them
    words: bytes | None  # free text, encrypted: it may name a patient; None too once the study was deleted
    model_shown: bool  # whether the reader saw the model's words before
    supersedes: UUID | None
    words_sha256: str | None = None  # of the encrypted words; None: there were none, or the entry is of before 0.1

    def hash(self, previous: str) -> str:
        """Hash the entry before and every field of this one (SHA-256).

        Of the encrypted words the digest is hashed, so that a check of the chain needs neither a key nor the words,
        which are deleted with their study. Entries from before there was a digest hold the words themselves.

        Args:
            previous: hash of the entry before.

        Returns:
            64 hexadecimal digits.
        """
        fields = {name: _plain(value) for name, value in vars(self).items()}
        if (digest := fields.pop("words_sha256")) is not None:
            fields["words"] = digest if self.words is None else hashlib.sha256(self.words).hexdigest()
        canonical = json.dumps({"previous": previous, **fields}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class ChainEntry:
    """An entry as it stands in the feedback log, with its place in the chain."""

    entry: Entry
    previous_hash: str
    hash: str

    def as_json(self) -> dict[str, Any]:
        """Values that JSON can hold; encrypted words as hexadecimal digits."""
        values = {name: _plain(value) for name, value in vars(self.entry).items()}
        return {**values, "previous_hash": self.previous_hash, "hash": self.hash}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "ChainEntry":
        """Undo as_json. Raises KeyError, TypeError, ValueError for anything else."""
        values = {field.name: stored[field.name] for field in fields(Entry)}
        for name in ("id", "site_id", "study_id", "key_id", "instance_id", "supersedes"):
            values[name] = None if values[name] is None else UUID(values[name])
        values["answered_at"] = datetime.fromisoformat(values["answered_at"])
        values["words"] = None if values["words"] is None else bytes.fromhex(values["words"])
        return cls(Entry(**values), str(stored["previous_hash"]), str(stored["hash"]))


@dataclass(frozen=True)
class ChainCheck:
    """What checking a feedback log found."""

    entries: int
    head: str  # hash of the last entry: note it elsewhere, for a feedback log cut off at its end cannot tell by itself
    problems: list[str]  # in words, with entry numbers; empty when nothing was changed


def check_chain(entries: Iterable[ChainEntry], noted: tuple[int, str] | None = None) -> ChainCheck:
    """Check a site's feedback log from its first entry on.

    Args:
        entries: all of the feedback log, in order.
        noted: number and hash of an entry that was written down elsewhere; None: none was.

    Returns:
        How many entries there are, and what is wrong with them.
    """
    problems: list[str] = []
    count, last, previous, found = 0, 0, GENESIS, None
    for one in entries:
        number = one.entry.number
        if number != last + 1:
            problems.append(f"entry {last + 1} is missing: the next one is {number}")
        if one.previous_hash != previous:
            problems.append(f"entry {number} does not follow the entry before it")
        if one.entry.hash(one.previous_hash) != one.hash:
            problems.append(f"entry {number} was changed after it was written")
        count, last, previous = count + 1, number, one.hash
        if noted is not None and number == noted[0]:
            found = one.hash
    if noted is not None and found != noted[1]:
        problems.append(f"entry {noted[0]} {'is missing' if found is None else 'is another one than was noted'}")
    return ChainCheck(count, previous, problems)


class ReadersAssessment(StrEnum):
    """What the readers of a study say of it, in one word."""

    FRACTURE = "fracture"
    NO_FRACTURE = "no-fracture"
    UNSURE = "unsure"
    DIFFER = "differ"  # one reader sees a fracture on an image, another one none
    OPEN = "open"  # no reader sees a fracture so far, but a positive finding has no feedback


@dataclass(frozen=True)
class ReadersSummary:
    """What readers say of a study whose model they contradict, and who said it last."""

    reading: ReadersAssessment
    region: str  # as the reader has it, else as the model; empty where it is of no single finding
    severity: str | None  # as a reader chose it
    readers: tuple[UUID, ...]  # the keys of those whose feedback counts, in the order of their entries
    answered_at: datetime
    unanswered: int  # positive findings without feedback


FindingKey = tuple[UUID | None, int | None, str | None]  # instance, frame, bundle


def readers_summary(
    findings: Mapping[FindingKey, tuple[Assessment, str]], entries: Iterable[Entry]
) -> ReadersSummary | None:
    """Sum up what readers say of a study.

    A reader's last word on a finding counts. Agreeing says what the model says there, disagreeing without saying what
    one sees is unsure. A fracture on one image is a fracture of the study.

    Args:
        findings: assessment and region of each finding that is shown.
        entries: those that are not superseded, in their order.

    Returns:
        The readers' word; None if no reader contradicts the model: then its word is the study's.
    """
    last: dict[FindingKey, dict[UUID, _LatestEntry]] = {}
    for entry in entries:
        of = (entry.instance_id, entry.frame, entry.bundle)
        if of in findings and (word := _fracture_of(entry, findings[of][0])):
            last.setdefault(of, {})[entry.key_id] = _LatestEntry(word, entry, *findings[of])
    spoken = {of: list(by_reader.values()) for of, by_reader in last.items()}
    if not any(word.contradicts() for words in spoken.values() for word in words):
        return None
    unanswered = sum(assessment is Assessment.POSITIVE and of not in spoken for of, (assessment, _) in findings.items())
    reading, decisive = _decided(list(spoken.values()))
    if reading is ReadersAssessment.NO_FRACTURE and unanswered:
        reading = ReadersAssessment.OPEN
    decisive.sort(key=lambda word: word.entry.number)
    regions = list({word.entry.region or word.region: None for word in decisive})
    extents = [word.entry.severity for word in decisive if word.entry.severity]
    return ReadersSummary(
        reading=reading,
        region=regions[0] if len(regions) == 1 else "",
        severity=extents[-1] if extents and reading is ReadersAssessment.FRACTURE else None,
        readers=tuple({word.entry.key_id: None for word in decisive}),
        answered_at=decisive[-1].entry.answered_at,
        unanswered=unanswered,
    )


@dataclass(frozen=True)
class _LatestEntry:
    """A reader's last word on a finding, and what the model says there."""

    fracture: Fracture
    entry: Entry
    assessment: Assessment
    region: str

    def contradicts(self) -> bool:
        return self.entry.verdict == Verdict.DISAGREE or self.fracture != _says(self.assessment)


def _says(assessment: Assessment) -> Fracture | None:
    """What the model says; None where it abstains."""
    return Fracture.UNSURE if assessment is Assessment.UNCLEAR else MODEL_STATEMENT.get(assessment)


def _fracture_of(entry: Entry, assessment: Assessment) -> Fracture | None:
    """What an entry says of its finding; None for one that leaves it open whether there is a fracture."""
    if entry.fracture:
        return Fracture(entry.fracture)
    if entry.verdict == Verdict.DISAGREE:
        return Fracture.UNSURE
    return _says(assessment) if entry.verdict == Verdict.AGREE else None


def _decided(findings: Sequence[Sequence[_LatestEntry]]) -> tuple[ReadersAssessment, list[_LatestEntry]]:
    """The gravest reading of these findings' words, and the words that it rests on."""
    statements = [({word.fracture for word in words}, words) for words in findings]
    fractured = [words for found, words in statements if Fracture.YES in found and Fracture.NO not in found]
    if fractured:
        return ReadersAssessment.FRACTURE, [
            word for words in fractured for word in words if word.fracture is Fracture.YES
        ]
    differing = [words for found, words in statements if {Fracture.YES, Fracture.NO} <= found]
    if differing:
        return ReadersAssessment.DIFFER, [word for words in differing for word in words]
    everything = [word for words in findings for word in words]
    unsure = [word for word in everything if word.fracture is Fracture.UNSURE]
    return (ReadersAssessment.UNSURE, unsure) if unsure else (ReadersAssessment.NO_FRACTURE, everything)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, UUID):
        return str(value)
    return bytes(value).hex() if isinstance(value, bytes | memoryview) else value
