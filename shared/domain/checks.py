"""The daily check: its steps, how it can end, and when findings are no longer those that are expected."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

SITE = "Osteon daily check"  # the site that the reference study belongs to: no list and no count shows it
TITLE = "OSTEON-CHECK"  # AE title of its receiver, name of its destination and its key


class CheckState(StrEnum):
    """Where a check stands, or how it ended."""

    ASKED = "asked"
    RUNNING = "running"
    WELL = "well"
    DRIFTED = "drifted"  # the findings are not those that are expected of this model on this engine
    BROKEN = "broken"  # a part did not do what it is for
    BEHIND = "behind"  # the system has so much to do that the check's study was not analysed in time


ENDED = (CheckState.WELL, CheckState.DRIFTED, CheckState.BROKEN, CheckState.BEHIND)


class CheckStep(StrEnum):
    """What a check does, in this order."""

    TIDIED = "tidied"  # what a check that died has left is deleted
    SENT = "sent"  # to the API, which has taken every image
    ANALYSED = "analysed"  # by a worker
    COMPARED = "compared"  # with the expected findings
    MADE = "made"  # the objects of its results
    DELIVERED = "delivered"  # to the check's own receiver
    READ_BACK = "read-back"  # each object as it is stored
    DELETED = "deleted"


class CheckReason(StrEnum):
    """Why a check did not end well. The fact that some have is in brackets."""

    API_AWAY = "api-away"  # it does not answer (class of the exception)
    REFUSED = "refused"  # it answers otherwise than it should (the HTTP status)
    NO_MODEL = "no-model"  # none is active
    NO_WORKER = "no-worker"  # none lives
    NOT_ANALYSED = "not-analysed"  # in time, although little else waited
    QUEUE_FULL = "queue-full"  # others wait as well, and meanwhile some were done (number of those that wait)
    QUARANTINED = "quarantined"  # the study was (the reason's code)
    CODES_DIFFER = "codes-differ"  # region, assessment, extent or abstention is another one (which)
    VALUES_DIFFER = "values-differ"  # probabilities or heatmaps differ by more than they may
    NOT_MADE = "not-made"  # the objects (the reason's code; none: they wait still)
    WRONG_STATEMENT = "wrong-statement"  # the objects state another assessment than was found
    NOT_DELIVERED = "not-delivered"  # (the reason's code; none: the delivery waits still)
    NOT_EQUAL = "not-equal"  # what arrived is not what is stored (kind of the object)
    NOT_DELETED = "not-deleted"
    DIED = "died"  # the process of the check ended in the middle
    ERROR = "error"  # nobody foresaw it (class of the exception)


STATES = {
    CheckReason.CODES_DIFFER: CheckState.DRIFTED,
    CheckReason.VALUES_DIFFER: CheckState.DRIFTED,
    CheckReason.QUEUE_FULL: CheckState.BEHIND,
}  # with which a check ends for a reason; for every other one it is broken


@dataclass(frozen=True)
class FrameFinding:
    """What is compared of a frame's finding."""

    image: int  # place of the image in the reference study, from 1
    frame: int
    region: str
    assessment: str
    severity: str
    abstention: str  # empty: none
    field: tuple[int, ...]  # the exposed field, empty: the whole image
    region_probability: float
    fracture_probability: float
    heatmap: bytes  # (height, width) uint8
    height: int
    width: int

    def as_json(self) -> dict[str, Any]:
        """As JSON; `finding_of` reads it."""
        return {**self.__dict__, "field": list(self.field), "heatmap": self.heatmap.hex()}


CODES = ("region", "assessment", "severity", "abstention", "field")


def finding_of(values: Mapping[str, Any]) -> FrameFinding:
    """The finding that JSON holds, as `FrameFinding.as_json` wrote it."""
    return FrameFinding(**{**values, "field": tuple(values["field"]), "heatmap": bytes.fromhex(values["heatmap"])})


@dataclass(frozen=True)
class Tolerance:
    """By how much findings may differ from the expected ones.

    probability: of a probability. heatmap: of a cell, in its 255 levels.
    """

    probability: float
    heatmap: int


@dataclass(frozen=True)
class Deviation:
    """How findings differ from the expected ones.

    codes: names of what is another code or another place. probability: the greatest difference of a probability, 1.0
    where one is no number. heatmap: the greatest difference of a cell, in levels.
    """

    codes: tuple[str, ...]
    probability: float
    heatmap: int

    def reason(self, tolerance: Tolerance) -> CheckReason | None:
        """Why this is a drift; None: it is none."""
        if self.codes:
            return CheckReason.CODES_DIFFER
        if self.probability > tolerance.probability or self.heatmap > tolerance.heatmap:
            return CheckReason.VALUES_DIFFER
        return None


def deviation(expected: Sequence[FrameFinding], findings: Sequence[FrameFinding]) -> Deviation:
    """Compare findings with the expected ones.

    Args:
        expected: of the reference study's frames, in any order.
        findings: the same of the last check.

    Returns:
        The deviation. Where other frames have findings, or heatmaps another size, "frames" or "size" is among its
        codes.
    """
    expected_of_frame = {(one.image, one.frame): one for one in expected}
    found_of_frame = {(one.image, one.frame): one for one in findings}
    same = (
        expected_of_frame.keys() == found_of_frame.keys()
        and len(expected_of_frame) == len(expected)
        and len(found_of_frame) == len(findings)
    )
    codes = [] if same else ["frames"]
    probability, heatmap = 0.0, 0
    for place in sorted(expected_of_frame.keys() & found_of_frame.keys()):
        one, other = expected_of_frame[place], found_of_frame[place]
        codes += [name for name in CODES if getattr(one, name) != getattr(other, name)]
        probability = max(
            probability,
            _apart(one.region_probability, other.region_probability),
            _apart(one.fracture_probability, other.fracture_probability),
        )
        if (one.height, one.width, len(one.heatmap)) != (other.height, other.width, len(other.heatmap)):
            codes.append("size")
        heatmap = max([heatmap, *(abs(a - b) for a, b in zip(one.heatmap, other.heatmap, strict=False))])
    return Deviation(tuple(dict.fromkeys(codes)), probability, heatmap)


def _apart(one: float, other: float) -> float:
    return abs(one - other) if math.isfinite(one) and math.isfinite(other) else 1.0
