"""What results say in words: short, English, and plain enough for any character set."""

from collections.abc import Iterator
from datetime import datetime

from shared.domain.feedback import ReadersAssessment
from shared.domain.findings import Assessment, Finding, StudySummary, abstention_words, shown_score, unread_words
from shared.domain.results import ImageStatement, ReaderStatement, ResultInput

RESEARCH = "Research use only - not for clinical decisions"
SILENCE = "Silence is not normal."
LEGEND = (
    "Dotted line: this place alone is enough for unclear (score 3). Solid line: for positive (score 7). A line does not"
    " outline a fracture, and no line does not mean no fracture."
)
READINGS = {
    ReadersAssessment.FRACTURE: "fracture",
    ReadersAssessment.NO_FRACTURE: "no fracture",
    ReadersAssessment.UNSURE: "unsure",
    ReadersAssessment.DIFFER: "they differ",
    ReadersAssessment.OPEN: "no fracture so far, and positive findings without an answer",
}


def finding_words(finding: Finding | StudySummary, *, probability: bool = False) -> str:
    """Say a finding.

    Args:
        finding: of a frame, or the one that stands for the study.
        probability: whether to state the calibrated probability.

    Returns:
        One line, such as "Positive, hand, score 8.3 of 10"; a caveat follows in brackets.
    """
    why = abstention_words(finding.abstention, finding.abstention_detail, finding.score)
    if finding.assessment is Assessment.ABSTAINED:
        return f"Abstained, {why}. {SILENCE}"
    words = [finding.assessment.capitalize(), finding.region]
    if finding.score is not None:
        words.append(f"score {shown_score(finding.score):.1f} of 10")
    if probability:
        words.append(f"calibrated probability {100 * finding.fracture_probability:.1f} %")
    return ", ".join(words) + (f" ({why})" if why else "")


def unread_image_words(image: ImageStatement) -> str:
    """Say why an image has no finding."""
    if image.error_reason is None:
        return f"Not analysed yet. {SILENCE}"
    return f"This image could not be read ({image.error_reason}). {SILENCE}"


def study_words(inputs: ResultInput, clock: datetime | None = None) -> list[str]:
    """Say what there is to say of the study, line by line.

    Args:
        inputs: the inputs.
        clock: the time at which the replaced results were made, by the clock of the object; None: it is not said.

    Returns:
        The lines, the finding first.
    """
    return list(_study_words(inputs, clock))


def _study_words(inputs: ResultInput, clock: datetime | None) -> Iterator[str]:
    summary = inputs.summary
    if summary is None:
        yield f"No finding: {unread_words(inputs.unread)}. {SILENCE}" if inputs.unread else f"No finding. {SILENCE}"
    else:
        yield finding_words(summary, probability=inputs.site.probability)
    yield images_words(inputs)
    if inputs.reader is not None:
        yield reader_words(inputs.reader)
    if clock is not None:
        yield f"Replaces the results of {clock:%Y-%m-%d %H:%M}"


def images_words(inputs: ResultInput) -> str:
    """As "2 of 3 images assessed, 1 abstained, 1 could not be read, more expected"."""
    images = [image.findings for image in inputs.images]
    assessed = sum(any(one.assessment is not Assessment.ABSTAINED for one in findings) for findings in images)
    abstained = sum(bool(findings) for findings in images) - assessed
    expected = max(inputs.expected_images or 0, len(images))
    words = [f"{assessed} of {expected} image{'' if expected == 1 else 's'} assessed"]
    if abstained:
        words.append(f"{abstained} abstained")
    if inputs.unread:
        words.append(f"{inputs.unread} could not be read")
    if waiting := sum(not image.findings and image.error_reason is None for image in inputs.images):
        words.append(f"{waiting} not analysed yet")
    if missing := expected - len(images):
        words.append(f"{missing} not received")
    return ", ".join(words)


def reader_words(reader: ReaderStatement) -> str:
    """What the readers answered."""
    if reader.reading is None:
        return "The readers agree with the model"
    return f"The readers' word: {READINGS[reader.reading]}{f', {reader.region}' if reader.region else ''}"
