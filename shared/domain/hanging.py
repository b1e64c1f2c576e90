"""In which order a study's images hang beside each other: by view and side, with rules for each region."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class ViewKind(StrEnum):
    """Views that hang alike, in the order in which they hang where no rule says otherwise."""

    FRONTAL = "frontal"
    OBLIQUE = "oblique"
    LATERAL = "lateral"
    AXIAL = "axial"
    OTHER = "other"


ANY = "any"  # the rule for regions that have none
_RULE = re.compile(r"\s*([a-z][a-z -]*?)\s*:\s*([a-z\s]+?)\s*")
_WORDS = (  # of View Position (PS3.3 C.8.1.2) and of the meanings of view codes; the first kind that has one counts
    (ViewKind.OBLIQUE, {"OBLIQUE", "OBL", "LAO", "LPO", "RAO", "RPO", "MLO", "LMO"}),
    (ViewKind.AXIAL, {"AXIAL", "AXILLARY", "SKYLINE", "SUNRISE", "TANGENTIAL", "MERCHANT"}),
    (ViewKind.LATERAL, {"LATERAL", "LAT", "LL", "RL", "ML", "LM", "MEDIOLATERAL", "LATEROMEDIAL"}),
    (ViewKind.FRONTAL, {"AP", "PA", "FRONTAL", "ANTEROPOSTERIOR", "POSTEROANTERIOR", "DP", "PD"}),
)
_SIDES = "RL"  # as one faces the patient: the right side hangs on the viewer's left


@dataclass(frozen=True)
class HungImage:
    """What the place of an image hangs by."""

    number: int
    view: str  # "" if the header does not say
    side: str  # R, L, B or ""


def view_kind(view: str) -> ViewKind:
    """Sort a view into its kind; OTHER if its words say nothing of it."""
    words = set(re.findall("[A-Z]+", view.upper()))
    for kind, known in _WORDS:
        if words & known:
            return kind
    if {"ANTERO", "POSTERIOR"} <= words or {"POSTERO", "ANTERIOR"} <= words:
        return ViewKind.FRONTAL
    return ViewKind.OTHER


def parse_rules(text: str) -> dict[str, tuple[ViewKind, ...]]:
    """Read a site's rules: kinds of views by region, from left to right.

    Args:
        text: such as "any: frontal lateral; hip: frontal axial". Of a region that stands twice the later rule counts.

    Returns:
        All kinds by region: those that its rule names, and then the others.

    Raises:
        ValueError: A rule is not of that form, or names an unknown kind.
    """
    rules = {}
    for rule in filter(str.strip, text.split(";")):
        match = _RULE.fullmatch(rule)
        if not match:
            raise ValueError("a rule must be a region, a colon, and kinds of views")
        rules[match[1]] = tuple(dict.fromkeys([*map(ViewKind, match[2].split()), *ViewKind]))
    return rules


def hang(images: Sequence[HungImage], rules: Mapping[str, Sequence[ViewKind]], region: str) -> list[int]:
    """Order images from the viewer's left to the right, and then from above to below.

    Equal views of both sides stand beside each other, the right side on the viewer's left. Images that say neither view
    nor side stay in their order, behind the others.

    Args:
        images: of one study.
        rules: that `parse_rules` read.
        region: of the study, as the model names it; "" if it does not.

    Returns:
        Their numbers, each once.
    """
    order = rules.get(region) or rules.get(ANY) or tuple(ViewKind)
    sides = {side: place for place, side in enumerate(_SIDES)}
    places = sorted(
        (order.index(view_kind(image.view)), sides.get(image.side, len(sides)), place)
        for place, image in enumerate(images)
    )
    return [images[place].number for _, _, place in places]
