"""What readers answer to findings: an entry of the ledger, and the chain that makes later changes show."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

GENESIS = "0" * 64  # what stands before a site's first entry


class Verdict(StrEnum):
    """What an entry says."""

    AGREE = "agree"
    DISAGREE = "disagree"
    SUPPLEMENT = "supplement"  # neither right nor wrong, but something to add
    DONE = "done"  # the whole study has been read
    REOPENED = "reopened"  # it has not, after all


OF_STUDY = frozenset({Verdict.DONE, Verdict.REOPENED})


class Fracture(StrEnum):
    """What the reader sees where the model is wrong, or says too little."""

    YES = "yes"
    NO = "no"
    UNSURE = "unsure"


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


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, UUID):
        return str(value)
    return bytes(value).hex() if isinstance(value, bytes | memoryview) else value
