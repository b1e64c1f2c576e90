"""The model in plain language."""

from pathlib import Path
from typing import Any

import pytest
from pydicom.datadict import keyword_dict

from api.pages.model_text import model_words, plain_reason
from api.pages.render import ATTRIBUTES, attribute_words
from shared.domain.findings import AbstentionReason, abstention_words
from shared.domain.study import IDENTITY_KEYWORDS, Identity
from shared.model.bundle import load_bundle
from shared.model.predictor import QualityFlag
from shared.settings import ROOT


def test_every_abstention_has_plain_words() -> None:
    """No reason to abstain is left without a name and an explanation, and in scope there is neither."""
    for reason in AbstentionReason:
        assert plain_reason(reason).endswith(".")
        assert abstention_words(reason, "2")
    assert plain_reason(None) == abstention_words(None) == ""
    assert abstention_words(AbstentionReason.BODY_PART, "CHEST") == "outside the validated scope: body part CHEST"
    assert abstention_words(AbstentionReason.METAL) == "outside the validated scope: metal in view"


def test_a_look_is_a_reason() -> None:
    """What is seen without the network is a reason to abstain by the same code."""
    assert all(AbstentionReason(look) for look in QualityFlag if look != QualityFlag.NONE)


def test_the_shipped_bundle_in_words() -> None:
    """Rates are told of 100 radiographs each, with intervals the right way round."""
    path: Path = ROOT / "training/bundles/second-look.safetensors"
    _, manifest = load_bundle(path.read_bytes())
    words = model_words("second-look", manifest.model_dump())
    assert words.rates == [
        (
            "Of 100 fractured radiographs 98 are unclear or positive (94 to 100), and of 100 sound ones 55 too "
            "(49 to 60): dotted line."
        ),
        "Of 100 fractured radiographs 75 are positive (57 to 88), and of 100 sound ones 5 too (3 to 7): solid line.",
    ]
    assert "hand, elbow, shoulder, hip and leg" in words.tried_on
    assert "CR, DX, RG or OT" in words.tried_on
    assert "703 radiographs" in words.tried_on


@pytest.mark.parametrize("manifest", [{}, {"regions": ["hand"]}, {"metrics": {"radiographs": 0}}])
def test_a_bundle_that_was_not_measured_says_no_rates(manifest: dict[str, Any]) -> None:
    """What a manifest does not tell is not made up."""
    assert model_words("bare", manifest).rates == []


def test_attributes_have_words() -> None:
    """What the API names by its DICOM keyword people read in words."""
    assert {attribute_words(keyword) for keyword in IDENTITY_KEYWORDS.values()}.isdisjoint(IDENTITY_KEYWORDS.values())
    assert all(keyword_dict.get(keyword) for keyword in (*ATTRIBUTES, *IDENTITY_KEYWORDS.values()))
    assert vars(Identity()).keys() == IDENTITY_KEYWORDS.keys()
    assert attribute_words("FrameType") == "FrameType"
