"""What the model says of an image, and what that adds up to for a study."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

RESEARCH_USE = "Research use only, not for clinical decisions."


class Assessment(StrEnum):
    """The model's answer in one word."""

    NEGATIVE = "negative"  # below the sensitive operating point
    UNCLEAR = "unclear"  # from the sensitive operating point on
    POSITIVE = "positive"  # from the specific operating point on
    ABSTAINED = "abstained"  # outside the validated scope: no answer, which is not "negative"


class AbstentionReason(StrEnum):
    """Why an image is outside the validated scope: a code, compared and stored as it is.

    The model abstains for it, but for metal beside a positive raw score: then it is a caveat of the positive finding.
    `abstention_words` makes the words.
    """

    BODY_PART = "body-part"  # detail: Body Part Examined
    MODALITY = "modality"  # detail: Modality
    BLANK = "blank"
    COLLIMATED = "collimated"
    INVERTED = "inverted"
    METAL = "metal"
    OUT_OF_DISTRIBUTION = "out-of-distribution"
    REGION = "region"
    UNREAD_IMAGES = "unread-images"  # of a study only; detail: how many


class Severity(StrEnum):
    """Extent of the fracture, by annotation: how many are outlined and how large. Not a clinical grade."""

    NONE = "none"
    MILD = "mild"
    MODERATE = "moderate"
    SEVERE = "severe"


UNCLEAR_FROM, POSITIVE_FROM, MOST = 3.0, 7.0, 10.0  # on the scale of scores


@dataclass(frozen=True)
class OperatingPoints:
    """Two thresholds on the calibrated fracture probability."""

    sensitive: float  # chosen for sensitivity >= 0.95
    specific: float  # chosen for specificity >= 0.95

    def assessment(self, probability: float) -> Assessment:
        """The word for a probability in 0..1. Raises ValueError for anything else: not a number is not "negative"."""
        if not 0 <= probability <= 1:
            raise ValueError(f"{probability} is no probability")
        if probability >= max(self.specific, self.sensitive):
            return Assessment.POSITIVE
        return Assessment.UNCLEAR if probability >= self.sensitive else Assessment.NEGATIVE

    def score(self, probability: float) -> float:
        """The probability on a scale from 0 to 10 that means the same for every bundle.

        3 stands at the sensitive operating point and 7 at the specific one; between 0, both points and 1 the scale is
        linear in the probability. So a negative finding has less than 3, an unclear one from 3 on, a positive one from
        7 on, and a higher probability never has a lower score. Raises ValueError as `assessment`.
        """
        assessment, specific = self.assessment(probability), max(self.specific, self.sensitive)
        if assessment is Assessment.POSITIVE:
            return _between(probability, specific, 1.0, POSITIVE_FROM, MOST)
        if assessment is Assessment.UNCLEAR:
            below = math.nextafter(POSITIVE_FROM, 0)
            return min(_between(probability, self.sensitive, specific, UNCLEAR_FROM, POSITIVE_FROM), below)
        return min(_between(probability, 0.0, self.sensitive, 0.0, UNCLEAR_FROM), math.nextafter(UNCLEAR_FROM, 0))


def _between(value: float, low: float, high: float, start: float, end: float) -> float:
    """value, from low to high, carried over to start to end; start where low is high."""
    return start + (end - start) * (value - low) / (high - low) if high > low else start


def shown_score(score: float) -> float:
    """As it is shown, with one decimal: rounded down, so that it never looks as if it had reached the next point."""
    return math.floor(score * 10) / 10


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
class ExposedField:
    """Where in an image the radiograph lies; the network looked nowhere else. All in square pixels of the whole image.

    Pixels that are not square count as many as their proportions are.
    """

    rows: int  # of the whole image
    columns: int
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def whole(cls, rows: int, columns: int) -> "ExposedField":
        """An image of (rows, columns) square pixels that is all exposed."""
        return cls(rows, columns, 0, 0, rows, columns)

    @property
    def numbers(self) -> list[int]:
        """As the database keeps it; `ExposedField(*numbers)` is the field again."""
        return [self.rows, self.columns, self.top, self.left, self.height, self.width]

    @property
    def is_whole(self) -> bool:
        """Whether the field is the whole image."""
        return (self.height, self.width) == (self.rows, self.columns)

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of the field, in shares of the image."""
        rows, columns = self.rows, self.columns
        return self.left / columns, self.top / rows, self.width / columns, self.height / rows


@dataclass(frozen=True)
class Finding:
    """One frame's result by one bundle; immutable, superseded by another bundle's, never overwritten."""

    frame: int  # 1 for the first
    bundle: str
    region: str
    region_probability: float
    fracture_probability: float  # calibrated; given even when the model abstained
    assessment: Assessment
    severity: Severity
    heatmap: Heatmap
    score: float | None = None  # `OperatingPoints.score`; raw where the model abstains; None: meaningless
    abstention: AbstentionReason | None = None  # None: in scope; beside "positive", where it is metal, a caveat
    abstention_detail: str = ""  # the value that the reason is about, where it has one
    field: ExposedField | None = None  # None: the whole image, and of square pixels


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

    assessment: Assessment
    severity: Severity
    region: str
    fracture_probability: float
    score: float | None = None
    abstention: AbstentionReason | None = None
    abstention_detail: str = ""


def unread_words(images: int) -> str:
    """As "2 images could not be read"."""
    return f"{images} image{'' if images == 1 else 's'} could not be read"


def abstention_of(code: str | None) -> AbstentionReason | None:
    """The reason as it is stored. Raises ValueError for a code that is none."""
    return AbstentionReason(code) if code else None


OUTSIDE = "outside the validated scope: "
_LEVELS = {Assessment.NEGATIVE: "low", Assessment.UNCLEAR: "medium", Assessment.POSITIVE: "high"}
# the image may be a radiograph that the network reads right, so its raw score still counts for the place in the list;
# of another modality or body part, and of an image that shows nothing, a score means nothing
SCORED = frozenset({
    AbstentionReason.METAL, AbstentionReason.REGION, AbstentionReason.INVERTED, AbstentionReason.OUT_OF_DISTRIBUTION
})  # fmt: skip
_REASONS = {
    AbstentionReason.BODY_PART: "body part",
    AbstentionReason.MODALITY: "modality",
    AbstentionReason.BLANK: "blank image",
    AbstentionReason.COLLIMATED: "almost nothing is exposed",
    AbstentionReason.INVERTED: "gray levels look inverted",
    AbstentionReason.METAL: "metal in view",
    AbstentionReason.OUT_OF_DISTRIBUTION: "unlike the images that the model learned from",
    AbstentionReason.REGION: "body region not recognised",
}


def abstention_words(reason: AbstentionReason | None, detail: str = "", score: float | None = None) -> str:
    """Why the model abstains, as "outside the validated scope: metal in view. Raw score high"; "" where it does not.

    The list, pages, reports, tables and the API all show these words. score: the raw one, where it has a meaning.
    """
    if reason is None:
        return ""
    if reason is AbstentionReason.UNREAD_IMAGES:
        return unread_words(int(detail))
    why = f"{OUTSIDE}{_REASONS[reason]} {detail}".rstrip()
    return why if score is None else f"{why}. Raw score {_LEVELS[assessment_of(score)]}"


def assessment_of(score: float) -> Assessment:
    """The assessment that a score stands for, shown or not."""
    if score >= POSITIVE_FROM:
        return Assessment.POSITIVE
    return Assessment.UNCLEAR if score >= UNCLEAR_FROM else Assessment.NEGATIVE


def ranked_as(assessment: Assessment, score: float | None) -> Assessment:
    """What ranks: an abstention counts as unclear or positive where its raw score is so high, for it is not calm."""
    if assessment is Assessment.ABSTAINED and score is not None and score >= UNCLEAR_FROM:
        return assessment_of(score)
    return assessment


def gravity(assessment: Assessment, score: float | None) -> int:
    """0 for negative to 3 for what ranks as positive."""
    return _WORST[ranked_as(assessment, score)]


_WORST = {Assessment.POSITIVE: 3, Assessment.UNCLEAR: 2, Assessment.ABSTAINED: 1, Assessment.NEGATIVE: 0}
_EXTENT = {Severity.SEVERE: 3, Severity.MODERATE: 2, Severity.MILD: 1, Severity.NONE: 0}


def summarise(findings: Sequence[Finding], unread: int = 0) -> StudySummary | None:
    """The worst finding speaks for the study; an abstention outweighs "negative", for silence is not normal.

    unread: how many images could not be read; beside one there is no "negative" either. Returns None when there is no
    finding at all.
    """
    if not findings:
        return None
    worst = max(findings, key=_gravest)
    if unread and worst.assessment is Assessment.NEGATIVE:
        return StudySummary(
            Assessment.ABSTAINED,
            Severity.NONE,
            worst.region,
            worst.fracture_probability,
            abstention=AbstentionReason.UNREAD_IMAGES,
            abstention_detail=str(unread),
        )
    return StudySummary(
        worst.assessment,
        worst.severity,
        worst.region,
        worst.fracture_probability,
        worst.score,
        worst.abstention,
        worst.abstention_detail,
    )


def _gravest(finding: Finding) -> tuple[int, bool, int, float]:
    """Among equals a finding in scope speaks, then the larger extent, then the more probable fracture."""
    answers = finding.assessment is not Assessment.ABSTAINED
    return gravity(finding.assessment, finding.score), answers, _EXTENT[finding.severity], finding.fracture_probability
