"""A study's images hang by view and side, by rules that a site may set; none is lost, whatever its header says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.hanging import HungImage, ViewKind, hang, parse_rules, view_kind
from shared.settings import BadSettings, Settings

DEFAULT = parse_rules(Settings.model_fields["hanging"].default)
IMAGES = st.lists(st.tuples(st.text(max_size=12), st.sampled_from(["R", "L", "B", ""])), max_size=20)


@pytest.mark.parametrize(
    ("view", "kind"),
    [
        ("AP", "frontal"), ("PA", "frontal"), ("ap", "frontal"), ("antero-posterior", "frontal"), ("Tibia AP", "frontal"),
        ("LL", "lateral"), ("LATERAL", "lateral"), ("medio-lateral", "lateral"), ("Hand seitlich LAT", "lateral"),
        ("LAO", "oblique"), ("antero-posterior oblique", "oblique"), ("AXIAL", "axial"), ("Skyline", "axial"),
        ("", "other"), ("GRASP", "other"), ("\u0000^*", "other"), ("LLAMA", "other"),
    ],
)  # fmt: skip
def test_views_are_sorted_into_kinds(view: str, kind: str) -> None:
    """By whole words, whatever their case; what is not known is "other"."""
    assert view_kind(view) is ViewKind(kind)


@pytest.mark.parametrize(
    ("images", "region", "order"),
    [
        ([("LL", "R"), ("AP", "R")], "leg", [2, 1]),
        ([("LAT", "L"), ("OBL", "L"), ("PA", "L")], "hand", [3, 2, 1]),
        ([("AP", "L"), ("AP", "R")], "hand", [2, 1]),  # the right side on the viewer's left
        ([("LL", "L"), ("AP", "L"), ("AP", "R"), ("LL", "R")], "leg", [3, 2, 4, 1]),  # R AP, L AP above R LL, L LL
        ([("LATERAL", ""), ("AXIAL", ""), ("AP", "")], "hip", [3, 2, 1]),  # its own rule
        ([("", ""), ("AP", ""), ("", "")], "leg", [2, 1, 3]),
        ([], "leg", []),
    ],
)
def test_images_hang(images: list[tuple[str, str]], region: str, order: list[int]) -> None:
    """Frontal on the left, lateral on the right, and the right side on the viewer's left."""
    hung = [HungImage(number, view, side) for number, (view, side) in enumerate(images, start=1)]
    assert hang(hung, DEFAULT, region) == order


@given(IMAGES, st.sampled_from(["hand", "hip", "", "tail"]))
def test_no_image_is_lost(images: list[tuple[str, str]], region: str) -> None:
    """Each hangs once, by whatever rules."""
    hung = [HungImage(number, view, side) for number, (view, side) in enumerate(images, start=1)]
    for rules in (DEFAULT, {}, parse_rules("any: other lateral")):
        assert sorted(hang(hung, rules, region)) == list(range(1, len(images) + 1))


def test_a_site_sets_its_own_rules() -> None:
    """Lateral first for hands there; regions without a rule keep the order of all kinds."""
    rules = parse_rules("hand: lateral frontal; any: axial;")
    hung = [HungImage(1, "PA", ""), HungImage(2, "LL", "")]
    assert hang(hung, rules, "hand") == [2, 1]
    assert hang(hung, rules, "leg") == [1, 2]
    assert rules["any"] == (ViewKind.AXIAL, ViewKind.FRONTAL, ViewKind.OBLIQUE, ViewKind.LATERAL, ViewKind.OTHER)


@pytest.mark.parametrize("rules", ["hand", "hand: sideways", "hand lateral", ": lateral", "hand: lateral, frontal"])
def test_rules_that_cannot_be_read_are_refused_at_the_start(rules: str) -> None:
    """By the setting, before a page needs them; and by whoever reads them without it."""
    with pytest.raises(BadSettings, match="OSTEON_HANGING"):
        Settings(hanging=rules)
    with pytest.raises(ValueError, match=r"rule|ViewKind"):
        parse_rules(rules)


@given(st.from_regex(r"\A[a-z]{1,6}: (frontal|lateral|axial)( other)?(; [a-z]{1,6}: oblique)?\Z"))
def test_what_the_setting_takes_can_be_read(rules: str) -> None:
    """The pattern of the setting, and the parser, agree."""
    assert parse_rules(Settings(hanging=rules).hanging)
