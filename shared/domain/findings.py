"""The model's findings on an image, and their summary for a study."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.errors import Reason

RESEARCH_USE = "Research use only, not for clinical decisions."


class Assessment(StrEnum):
    """The model's assessment in one word."""

    NEGATIVE = "negative"  # below the sensitive operating point
    UNCLEAR = "unclear"  # from the sensitive operating point on
    POSITIVE = "positive"  # from the specific operating point on
    ABSTAINED = "abstained"  # outside the validated scope: no assessment, which is not "negative"


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


class Extent(StrEnum):
    """Extent of the fracture, by annotation: how many are outlined and how large. Not a clinical grade."""

    NONE = "none"
    MILD = "mild"
    MODERATE = "moderate"
    SEVERE = "severe"


UNCLEAR_FROM, POSITIVE_FROM, MAX_SCORE = 3.0, 7.0, 10.0  # on the scale of scores


@dataclass(frozen=True)
class OperatingPoints:
    """Two thresholds on the calibrated fracture probability."""

    sensitive: float  # chosen for sensitivity >= 0.95
    specific: float  # chosen for specificity >= 0.95

    def assessment(self, probability: float) -> Assessment:
        """The word for a probability in 0..1. Raises ValueError for anything else: NaN must not become "negative"."""
        if not 0 <= probability <= 1:
            raise ValueError(f"{probability} is no probability")
        if probability >= max(self.specific, self.sensitive):
            return Assessment.POSITIVE
        return Assessment.UNCLEAR if probability >= self.sensitive else Assessment.NEGATIVE

    def score(self, probability: float) -> float:
        """Put a probability on a scale from 0 to 10 that means the same for every bundle.

        3 is the sensitive operating point and 7 the specific one; between 0, both points and 1 the scale is linear in
        the probability. So a negative finding has less than 3, an unclear one from 3 on, a positive one from 7 on, and
        a higher probability never has a lower score.

        Args:
            probability: calibrated, 0 to 1.

        Returns:
            The score, 0 to 10.

        Raises:
            ValueError: it is no probability.
        """
        assessment, specific = self.assessment(probability), max(self.specific, self.sensitive)
        if assessment is Assessment.POSITIVE:
            return _between(probability, specific, 1.0, POSITIVE_FROM, MAX_SCORE)
        if assessment is Assessment.UNCLEAR:
            below = math.nextafter(POSITIVE_FROM, 0)
            return min(_between(probability, self.sensitive, specific, UNCLEAR_FROM, POSITIVE_FROM), below)
        return min(_between(probability, 0.0, self.sensitive, 0.0, UNCLEAR_FROM), math.nextafter(UNCLEAR_FROM, 0))


def _between(value: float, low: float, high: float, start: float, end: float) -> float:
    """Map a value between low and high to between start and end; start if low is high."""
    return start + (end - start) * (value - low) / (high - low) if high > low else start


def shown_score(score: float) -> float:
    """Round a score to the one decimal that is shown: down, so that it never seems to have reached the next point."""
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
    """Where in an image the radiograph lies; the network saw nothing else. All in square pixels of the whole image.

    Pixels that are not square count as many as their proportions are.
    """

    rows: int  # of the whole image
    columns: int
    top: int
    left: int
    height: int
    width: int
    turn: int = 0  # thousandths of a degree, clockwise: the rectangle lies askew, turned so about its own middle

    @classmethod
    def whole(cls, rows: int, columns: int) -> "ExposedField":
        """Make the field of an image that is all exposed.

        Args:
            rows: height of the image, in square pixels.
            columns: width of the image, in square pixels.

        Returns:
            The field.
        """
        return cls(rows, columns, 0, 0, rows, columns)

    @property
    def numbers(self) -> list[int]:
        """As the database keeps it; `ExposedField(*numbers)` is the field again."""
        numbers = [self.rows, self.columns, self.top, self.left, self.height, self.width]
        return [*numbers, self.turn] if self.turn else numbers

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of the field, before it is turned, in shares of the image."""
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
    extent: Extent
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
    error_reason: Reason | None = None
    error_detail: str = ""  # the fact that the reason is about, as shared.errors.Cause has it


@dataclass(frozen=True)
class StudySummary:
    """The finding that decides a study's place in the worklist."""

    assessment: Assessment
    extent: Extent
    region: str
    fracture_probability: float
    score: float | None = None
    abstention: AbstentionReason | None = None
    abstention_detail: str = ""


def unread_words(images: int) -> str:
    """As "2 images could not be read"."""
    return f"{images} image{'' if images == 1 else 's'} could not be read"


def abstention_of(code: str | None) -> AbstentionReason | None:
    """The reason that is stored as this code. Raises ValueError for an unknown code."""
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
    """Say why the model abstains, as "outside the validated scope: metal in view. Raw score high".

    The list, pages, reports, tables and the API all show these words.

    Args:
        reason: why the model abstains; None if it does not.
        detail: the value that the reason is about, as stored with it.
        score: the raw score, 0 to 10; None if it has no meaning.

    Returns:
        A phrase; "" if the model does not abstain.
    """
    if reason is None:
        return ""
    if reason is AbstentionReason.UNREAD_IMAGES:
        return unread_words(int(detail))
    why = f"{OUTSIDE}{_REASONS[reason]} {detail}".rstrip()
    return why if score is None else f"{why}. Raw score {_LEVELS[assessment_of(score)]}"


def assessment_of(score: float) -> Assessment:
    """The assessment that a score means, rounded or not."""
    if score >= POSITIVE_FROM:
        return Assessment.POSITIVE
    return Assessment.UNCLEAR if score >= UNCLEAR_FROM else Assessment.NEGATIVE


def ranked_as(assessment: Assessment, score: float | None) -> Assessment:
    """Choose the assessment by which a finding ranks.

    An abstention ranks as unclear or positive if its raw score is so high, because it may be urgent.

    Args:
        assessment: the finding's.
        score: 0 to 10; None if it has no meaning.

    Returns:
        The assessment that counts.
    """
    if assessment is Assessment.ABSTAINED and score is not None and score >= UNCLEAR_FROM:
        return assessment_of(score)
    return assessment


def gravity(assessment: Assessment, score: float | None) -> int:
    """Order findings by what they rank as.

    Args:
        assessment: the finding's.
        score: 0 to 10; None if it has no meaning.

    Returns:
        0 for negative, 1 for abstained, 2 for unclear, 3 for positive.
    """
    return _ASSESSMENT_ORDER[ranked_as(assessment, score)]


_ASSESSMENT_ORDER = {Assessment.POSITIVE: 3, Assessment.UNCLEAR: 2, Assessment.ABSTAINED: 1, Assessment.NEGATIVE: 0}
_EXTENT = {Extent.SEVERE: 3, Extent.MODERATE: 2, Extent.MILD: 1, Extent.NONE: 0}


def summarise(findings: Sequence[Finding], unread: int = 0) -> StudySummary | None:
    """Choose the finding that stands for the study: the worst one.

    An abstention outweighs "negative", for a missing result is not a normal one.

    Args:
        findings: of all frames of all images.
        unread: how many images could not be read; beside one, the study is not "negative" either.

    Returns:
        The summary; None if there is no finding at all.
    """
    if not findings:
        return None
    worst = max(findings, key=_gravest)
    if unread and worst.assessment is Assessment.NEGATIVE:
        return StudySummary(
            Assessment.ABSTAINED,
            Extent.NONE,
            worst.region,
            worst.fracture_probability,
            abstention=AbstentionReason.UNREAD_IMAGES,
            abstention_detail=str(unread),
        )
    return StudySummary(
        worst.assessment,
        worst.extent,
        worst.region,
        worst.fracture_probability,
        worst.score,
        worst.abstention,
        worst.abstention_detail,
    )


def _gravest(finding: Finding) -> tuple[int, bool, int, float]:
    """Among equals a finding in scope comes first, then the larger extent, then the more probable fracture."""
    assessed = finding.assessment is not Assessment.ABSTAINED
    return gravity(finding.assessment, finding.score), assessed, _EXTENT[finding.extent], finding.fracture_probability
