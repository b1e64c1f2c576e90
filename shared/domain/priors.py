"""Which earlier examinations of a patient are shown beside a study: the newest of the same or a neighbouring region."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from uuid import UUID

from shared.domain.findings import AbstentionReason

MAX_PRIORS = 3
MAX_OF_PATIENT = 1000  # studies under one Patient ID: where there are more, it stands for "unknown" and for no patient
# regions that share a bone
NEIGHBOURS = frozenset(map(frozenset, (("hand", "elbow"), ("elbow", "shoulder"), ("hip", "leg"))))
UPPER, LOWER = ("hand", "elbow", "shoulder"), ("hip", "leg")
# Body Part Examined, letters alone, to regions. Source: PS3.16 annex L. What is not here is a region of its own name
_PARTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("HAND", "FINGER", "FINGERS", "THUMB", "WRIST", "CARPUS", "SCAPHOID"), ("hand",)),
    **dict.fromkeys(("ELBOW", "FOREARM", "RADIUS", "ULNA", "RADIUSULNA"), ("elbow",)),
    **dict.fromkeys(("SHOULDER", "CLAVICLE", "SCAPULA", "ACJOINT", "SCJOINT"), ("shoulder",)),
    **dict.fromkeys(("HUMERUS", "UPPERARM", "ARM"), ("elbow", "shoulder")),
    **dict.fromkeys(("HIP", "PELVIS", "PELVISHIP", "SIJOINT"), ("hip",)),
    **dict.fromkeys(("FEMUR", "THIGH", "UPPERLEG"), ("hip", "leg")),
    **dict.fromkeys(
        ("LEG", "LOWERLEG", "KNEE", "PATELLA", "TIBIA", "FIBULA", "TIBIAFIBULA", "ANKLE", "FOOT", "TOE", "CALCANEUS"),
        ("leg",),
    ),
    "UPPEREXTREMITY": UPPER,
    "LOWEREXTREMITY": LOWER,
    **dict.fromkeys(("EXTREMITY", "WHOLEBODY", "OTHER", "UNKNOWN"), ()),
}  # fmt: skip
# with these the model's region means nothing
_REGIONLESS = frozenset({
    AbstentionReason.BODY_PART, AbstentionReason.MODALITY, AbstentionReason.BLANK, AbstentionReason.COLLIMATED,
    AbstentionReason.REGION, AbstentionReason.OUT_OF_DISTRIBUTION,
})  # fmt: skip


@dataclass(frozen=True)
class DatedStudy:
    """When a study was made, and of what."""

    id: UUID
    study_date: date | None
    study_time: time | None  # on the clock of the hospital
    received_at: datetime
    regions: frozenset[str]  # as `regions_of` says

    @property
    def day(self) -> date:
        """When it was made; if its header does not say, when it came, in UTC."""
        return self.study_date or self.received_at.astimezone(UTC).date()


def regions_of(region: str, abstention: AbstentionReason | None, body_part: str) -> frozenset[str]:
    """Find the body regions of a study, by the model and by the header.

    Args:
        region: that the model recognised; "" if it saw none.
        abstention: why the model abstains; None if it does not.
        body_part: Body Part Examined.

    Returns:
        Regions; a part that is no region, such as CHEST, stands for itself. Empty if nothing is known.
    """
    part = re.sub(r"[^A-Z]", "", body_part.upper())
    stated = _PARTS.get(part, (part,)) if part else ()
    return frozenset(stated) | (frozenset({region}) if region and abstention not in _REGIONLESS else frozenset())


def are_near(regions: frozenset[str], others: frozenset[str]) -> bool:
    """Check whether two studies show one region, or neighbouring ones.

    Args:
        regions: of a study, as `regions_of` says.
        others: of another one.

    Returns:
        False also if either has none.
    """
    return any(one == other or frozenset((one, other)) in NEIGHBOURS for one in regions for other in others)


def is_earlier(one: DatedStudy, other: DatedStudy) -> bool:
    """Check whether a study was made before another one: by day, then by time if both have one, then by arrival.

    Args:
        one: a study.
        other: another study.

    Returns:
        Never true both ways, nor for a study and itself.
    """
    if one.day != other.day:
        return one.day < other.day
    if one.study_time is not None and other.study_time is not None and one.study_time != other.study_time:
        return one.study_time < other.study_time
    return one.received_at < other.received_at


def choose_priors(study: DatedStudy, candidates: Iterable[DatedStudy]) -> list[UUID]:
    """Choose a study's priors.

    Args:
        study: the study.
        candidates: studies of its patient; it may be among them.

    Returns:
        The ids of those that are earlier and of the same or a neighbouring region, newest first.
    """
    found = [
        one
        for one in candidates
        if one.id != study.id and is_earlier(one, study) and are_near(one.regions, study.regions)
    ]
    found.sort(key=lambda one: (one.day, one.study_time or time.min, one.received_at, one.id), reverse=True)
    return [one.id for one in found]
