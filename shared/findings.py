"""What the model says of an image, and what that adds up to for a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

RESEARCH_USE = "Research use only, not for clinical decisions."


class Call(StrEnum):
    """The model's answer in one word."""

    NONE = "none"  # under the sensitive operating point
    POSSIBLE = "possible"  # at or over the sensitive operating point
    LIKELY = "likely"  # at or over the specific operating point
    ABSTAINED = "abstained"  # out of the bundle's scope: no answer, which is not "normal"


class Severity(StrEnum):
    """Extent of the fracture, by annotation: how many are outlined and how large. Not a clinical grade."""

    NONE = "none"
    MILD = "mild"
    MODERATE = "moderate"
    SEVERE = "severe"


@dataclass(frozen=True)
class OperatingPoints:
    """Two thresholds on the calibrated fracture probability."""

    sensitive: float  # chosen for sensitivity >= 0.95
    specific: float  # chosen for specificity >= 0.95

    def call(self, probability: float) -> Call:
        """The word for a probability in 0..1. Raises ValueError for anything else: not a number is not "none"."""
        if not 0 <= probability <= 1:
            raise ValueError(f"{probability} is no probability")
        if probability >= max(self.specific, self.sensitive):
            return Call.LIKELY
        return Call.POSSIBLE if probability >= self.sensitive else Call.NONE


@dataclass(frozen=True)
class Heatmap:
    """Where the fracture head looks: (height, width) uint8, row by row; 255 is the strongest evidence."""

    values: bytes
    height: int
    width: int

    def __post_init__(self) -> None:
        """Raises ValueError if the bytes do not fill the shape."""
        if len(self.values) != self.height * self.width:
            raise ValueError(f"{len(self.values)} bytes do not fill {self.height} x {self.width}")


@dataclass(frozen=True)
class Finding:
    """One frame's result by one bundle; immutable, superseded by another bundle's, never overwritten."""

    frame: int  # 1 for the first
    bundle: str
    region: str
    region_probability: float
    fracture_probability: float  # calibrated; given even when the model abstained
    call: Call
    severity: Severity
    scope: str  # "in scope", or why the model abstains
    heatmap: Heatmap


IN_SCOPE = "in scope"


@dataclass(frozen=True)
class InstanceResult:
    """What became of one instance: findings for its frames, or an error that will not heal."""

    instance_id: object
    findings: Sequence[Finding] = ()
    error_reason: str = ""
    error_text: str = ""


@dataclass(frozen=True)
class StudySummary:
    """The finding that decides a study's place in the worklist."""

    call: Call
    severity: Severity
    region: str
    fracture_probability: float
    scope: str


def unread_words(images: int) -> str:
    """As "2 images could not be read"."""
    return f"{images} image{'' if images == 1 else 's'} could not be read"


_WORST = {Call.LIKELY: 3, Call.POSSIBLE: 2, Call.ABSTAINED: 1, Call.NONE: 0}
_EXTENT = {Severity.SEVERE: 3, Severity.MODERATE: 2, Severity.MILD: 1, Severity.NONE: 0}


def summarise(findings: Sequence[Finding], unread: int = 0) -> StudySummary | None:
    """The worst finding speaks for the study; an abstention outweighs a "none", for silence is not normal.

    unread: how many images could not be read; beside one there is no "none" either. Returns None when there is no
    finding at all.
    """
    if not findings:
        return None
    worst = max(findings, key=lambda f: (_WORST[f.call], _EXTENT[f.severity], f.fracture_probability))
    if unread and worst.call is Call.NONE:
        words = unread_words(unread)
        return StudySummary(Call.ABSTAINED, Severity.NONE, worst.region, worst.fracture_probability, words)
    return StudySummary(worst.call, worst.severity, worst.region, worst.fracture_probability, worst.scope)
