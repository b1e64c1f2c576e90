"""The model in plain language: what it says, what it was tried on, how often it is right, why it says nothing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.domain.findings import AbstentionReason
from shared.domain.manifest import title_of

ABSTENTIONS = {  # what to make of an abstention
    AbstentionReason.BODY_PART: "The file says that it shows a part of the body that the model was never tried on.",
    AbstentionReason.MODALITY: "This is not a plain radiograph; the model was never tried on such images.",
    AbstentionReason.BLANK: "Nothing can be told apart on this image.",
    AbstentionReason.COLLIMATED: "Nearly all of this image is unexposed or collimated away.",
    AbstentionReason.INVERTED: "Bone seems to be dark here; the model reads radiographs on which it is bright.",
    AbstentionReason.METAL: (
        "Plates, screws and jewellery mislead the model, and some displaced fractures and casts look like them to it."
    ),
    AbstentionReason.OUT_OF_DISTRIBUTION: (
        "This radiograph is unlike the training images; the model's assessment would be a guess."
    ),
    AbstentionReason.REGION: "The model cannot tell which bone this is, so it does not judge it.",
    AbstentionReason.UNREAD_IMAGES: "Some images could not be read; the others are judged one by one.",
}
SILENCE = "Silence is not normal: read this radiograph as if there were no model."


def plain_reason(reason: AbstentionReason | None) -> str:
    """What to make of an abstention, in a sentence; "" where the model does not abstain."""
    return ABSTENTIONS[reason] if reason else ""


@dataclass(frozen=True)
class ModelText:
    """A bundle's manifest as sentences; a part that the manifest lacks is empty."""

    name: str
    tried_on: str
    rates: list[str]
    limits: str


def model_words(name: str, manifest: Mapping[str, Any]) -> ModelText:
    """Describe a bundle in plain language.

    Args:
        name: key of the bundle.
        manifest: of the bundle; what it lacks is left out.

    Returns:
        The sentences.
    """
    metrics = manifest.get("metrics", {})
    regions, modalities = _listed(manifest.get("regions", [])), _listed(manifest.get("modalities", []), "or")
    tried = f"Validated for {regions}" + (f", on images of modality {modalities}" if modalities else "")
    if metrics.get("radiographs"):
        radiographs, fractured = metrics["radiographs"], metrics.get("fractured", 0)
        tried += f"; measured on {radiographs} radiographs that it had not seen, {fractured} of them fractured"
    points = metrics.get("operating_points", {})
    marks = (("sensitive", "unclear or positive", "dotted"), ("specific", "positive", "solid"))
    return ModelText(
        name=title_of(name, manifest),
        tried_on=f"{tried}.",
        rates=[_rate(points[point], word, line) for point, word, line in marks if point in points],
        limits=manifest.get("limits", ""),
    )


def _rate(point: Mapping[str, Any], word: str, line: str) -> str:
    """An operating point as natural frequencies, which people understand better than rates (Gigerenzer et al. 2007)."""
    hits, low_hits, high_hits = (_of_100(share) for share in point["sensitivity"])
    alarms, low_alarms, high_alarms = (_of_100(1 - share) for share in _turned(point["specificity"]))
    return (
        f"Of 100 fractured radiographs {hits} are {word} ({low_hits} to {high_hits}), and of 100 sound ones {alarms} "
        f"too ({low_alarms} to {high_alarms}): {line} line."
    )


def _of_100(share: float) -> int:
    return math.floor(round(100 * share, 3) + 0.5)  # halves upwards; 1 - 0.455 is a little less than it should be


def _turned(interval: list[float]) -> tuple[float, float, float]:
    """The same interval for one minus the share."""
    estimate, low, high = interval
    return estimate, high, low


def _listed(words: list[str], last: str = "and") -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)
