"""What readers answer to findings: an entry of the ledger, and the chain that makes later changes show."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from shared.findings import Assessment, Severity

GENESIS = "0" * 64  # what stands before a site's first entry


class Verdict(StrEnum):
    """What an entry says."""

    AGREE = "agree"
    DISAGREE = "disagree"
    SUPPLEMENT = "supplement"  # neither right nor wrong, but something to add
    WITHDRAWN = "withdrawn"  # the reader takes an answer of theirs back and says nothing in its place
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
    """How the parts of one answer speak against each other."""

    BOX_WITHOUT_FRACTURE = "box-without-fracture"  # no fracture, and a box where it is
    EXTENT_WITHOUT_FRACTURE = "extent-without-fracture"  # no fracture, and how large it is
    FRACTURE_WITHOUT_EXTENT = "fracture-without-extent"  # a fracture of the extent "none"
    AGREES_WITH_THE_OPPOSITE = "agrees-with-the-opposite"  # agrees with the model, and sees the opposite
    DISAGREES_WITH_THE_SAME = "disagrees-with-the-same"  # disagrees, and says what the model says and no more


def contradictions(
    assessment: Assessment, verdict: str, fracture: str | None, severity: str | None, marks: int, *, more: bool = False
) -> list[Contradiction]:
    """What in an answer to a finding of this assessment contradicts itself; empty for an answer that can be meant.

    marks: how many boxes were drawn; more: whether the answer also gives a region or words of its own.
    """
    agrees, disagrees = verdict == Verdict.AGREE, verdict == Verdict.DISAGREE
    implied = SAYS.get(assessment) if agrees else None
    seen = fracture or implied or (Fracture.NO if severity == Severity.NONE else None)
    found = []
    if seen == Fracture.NO and marks:
        found.append(Contradiction.BOX_WITHOUT_FRACTURE)
    if seen == Fracture.NO and severity not in (None, Severity.NONE):
        found.append(Contradiction.EXTENT_WITHOUT_FRACTURE)
    if seen == Fracture.YES and severity == Severity.NONE:
        found.append(Contradiction.FRACTURE_WITHOUT_EXTENT)
    if implied and {implied, fracture} == {Fracture.YES, Fracture.NO}:
        found.append(Contradiction.AGREES_WITH_THE_OPPOSITE)
    if disagrees and fracture and fracture == SAYS.get(assessment) and not (more or marks or severity):
        found.append(Contradiction.DISAGREES_WITH_THE_SAME)
    return found


SAYS = {Assessment.POSITIVE: Fracture.YES, Assessment.NEGATIVE: Fracture.NO}  # what the model says where it is sure


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
    """One line of a site's ledger. It is never changed: a later entry supersedes it."""

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
    words: bytes | None  # free text, encrypted: it may name a patient
    model_shown: bool  # whether the reader saw the model's words before answering
    supersedes: UUID | None

    def hash(self, previous: str) -> str:
        """64 hexadecimal digits: SHA-256 over the entry before and every field of this one.

        The encrypted words are hashed as they are stored, so that whoever checks the chain needs no key.
        """
        fields = {name: _plain(value) for name, value in vars(self).items()}
        canonical = json.dumps({"previous": previous, **fields}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


class Reading(StrEnum):
    """What the readers of a study say of it, in one word."""

    FRACTURE = "fracture"
    NO_FRACTURE = "no-fracture"
    UNSURE = "unsure"
    DIFFER = "differ"  # one reader sees a fracture on an image, another one none
    OPEN = "open"  # no reader sees a fracture so far, but a positive finding is not answered


@dataclass(frozen=True)
class ReadersWord:
    """What readers say of a study whose model they contradict, and who said it last."""

    reading: Reading
    region: str  # as the reader has it, else as the model; empty where it is of no single finding
    severity: str | None  # as a reader chose it
    readers: tuple[UUID, ...]  # the keys of those whose answers count, in order of answering
    answered_at: datetime
    unanswered: int  # positive findings that no reader has answered


FindingKey = tuple[UUID | None, int | None, str | None]  # instance, frame, bundle


def readers_word(findings: Mapping[FindingKey, tuple[Assessment, str]], entries: Iterable[Entry]) -> ReadersWord | None:
    """What readers say of a study, or None while none of them contradicts the model: then its word is the study's.

    findings: assessment and region of each finding that is shown; entries: those that stand, in order of answering.
    A reader's last word on a finding counts. Agreeing says what the model says there, disagreeing without saying
    what one sees is unsure. A fracture on one image is a fracture of the study.
    """
    last: dict[FindingKey, dict[UUID, _Word]] = {}
    for entry in entries:
        of = (entry.instance_id, entry.frame, entry.bundle)
        if of in findings and (word := _word_of(entry, findings[of][0])):
            last.setdefault(of, {})[entry.key_id] = _Word(word, entry, *findings[of])
    spoken = {of: list(by_reader.values()) for of, by_reader in last.items()}
    if not any(word.contradicts() for words in spoken.values() for word in words):
        return None
    unanswered = sum(assessment is Assessment.POSITIVE and of not in spoken for of, (assessment, _) in findings.items())
    reading, decisive = _decided(list(spoken.values()))
    if reading is Reading.NO_FRACTURE and unanswered:
        reading = Reading.OPEN
    decisive.sort(key=lambda word: word.entry.number)
    regions = list({word.entry.region or word.region: None for word in decisive})
    extents = [word.entry.severity for word in decisive if word.entry.severity]
    return ReadersWord(
        reading=reading,
        region=regions[0] if len(regions) == 1 else "",
        severity=extents[-1] if extents and reading is Reading.FRACTURE else None,
        readers=tuple({word.entry.key_id: None for word in decisive}),
        answered_at=decisive[-1].entry.answered_at,
        unanswered=unanswered,
    )


@dataclass(frozen=True)
class _Word:
    """A reader's last word on a finding, and what the model says there."""

    fracture: Fracture
    entry: Entry
    assessment: Assessment
    region: str

    def contradicts(self) -> bool:
        return self.entry.verdict == Verdict.DISAGREE or self.fracture != _says(self.assessment)


def _says(assessment: Assessment) -> Fracture | None:
    """What the model says; None where it abstains."""
    return Fracture.UNSURE if assessment is Assessment.UNCLEAR else SAYS.get(assessment)


def _word_of(entry: Entry, assessment: Assessment) -> Fracture | None:
    """What an entry says of its finding; None for one that leaves it open whether there is a fracture."""
    if entry.fracture:
        return Fracture(entry.fracture)
    if entry.verdict == Verdict.DISAGREE:
        return Fracture.UNSURE
    return _says(assessment) if entry.verdict == Verdict.AGREE else None


def _decided(findings: Sequence[Sequence[_Word]]) -> tuple[Reading, list[_Word]]:
    """The gravest reading of these findings' words, and the words that it rests on."""
    said = [({word.fracture for word in words}, words) for words in findings]
    fractured = [words for found, words in said if Fracture.YES in found and Fracture.NO not in found]
    if fractured:
        return Reading.FRACTURE, [word for words in fractured for word in words if word.fracture is Fracture.YES]
    differing = [words for found, words in said if {Fracture.YES, Fracture.NO} <= found]
    if differing:
        return Reading.DIFFER, [word for words in differing for word in words]
    everything = [word for words in findings for word in words]
    unsure = [word for word in everything if word.fracture is Fracture.UNSURE]
    return (Reading.UNSURE, unsure) if unsure else (Reading.NO_FRACTURE, everything)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, UUID):
        return str(value)
    return bytes(value).hex() if isinstance(value, bytes | memoryview) else value
