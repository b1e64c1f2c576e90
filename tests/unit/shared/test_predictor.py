"""A bundle at work: batches, words and scope."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from shared.domain.findings import Assessment, Extent, abstention_words
from shared.domain.manifest import Calibration, Manifest
from shared.model.network import BoneNet
from shared.model.predictor import ModelOutput, Predictor, QualityFlag, quality_flag
from shared.pixels.tensors import prepare_square

SCOPE = {
    "modalities": ["CR", "DX"],
    "other_body_parts": ["CHEST"],
    "least_region_probability": 0.4,
    "most_ood_score": 2.0,
    "hardware": 0.8,
}


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "test-1",
        "regions": ["hand", "elbow"],
        "input_size": 64,
        "sensitive": 0.2,
        "specific": 0.6,
        "heatmap_full": 0.5,
        **SCOPE,
    }
    return Manifest(**(values | changes))


@pytest.fixture(scope="module")
def network() -> BoneNet:
    """Random, but with batch norms that know their input, so that logits stay small as a trained network's do."""
    torch.manual_seed(2)
    network = BoneNet(2).train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        network(torch.from_numpy(np.stack(squares(16)))[:, None])
    return network.eval()


@pytest.fixture(scope="module")
def predictor(network: BoneNet) -> Predictor:
    return Predictor(network, manifest(calibration=Calibration(slope=2.0, offset=0.25), region_temperature=1.5))


def raw(fracture: float = 0.9, **changes: Any) -> ModelOutput:
    output = ModelOutput(
        region=np.array([0.9, 0.1], np.float32),
        fracture=fracture,
        extent=np.array([0.8, 0.6, 0.1], np.float32),
        heatmap=np.array([[0.0, 0.001, 0.25], [0.5, 1.0, 0.1]], np.float32),
        ood_score=1.0,
        hardware=0.1,
        quality=QualityFlag.NONE,
    )
    return replace(output, **changes)


def squares(count: int) -> list[Any]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, 256, (64, 64)).astype(np.uint8) for _ in range(count)]


def test_batch_has_the_outputs_of_single_radiographs(predictor: Predictor) -> None:
    """A radiograph's output does not depend on what it was batched with, nor on its place."""
    radiographs = squares(5)
    together = predictor.predict(radiographs)
    for radiograph, output in zip(radiographs, together, strict=True):
        (alone,) = predictor.predict([radiograph])
        assert output.fracture == pytest.approx(alone.fracture, abs=1e-4)
        np.testing.assert_allclose(output.region, alone.region, atol=1e-4)
        np.testing.assert_allclose(output.extent, alone.extent, atol=1e-4)
        np.testing.assert_allclose(output.heatmap, alone.heatmap, atol=1e-3)
    assert len({output.fracture for output in together}) == 5


def test_outputs_are_the_networks_after_calibration(predictor: Predictor, network: BoneNet) -> None:
    """Probabilities are the network's logits through the manifest's calibration and temperature."""
    radiograph = squares(1)[0]
    with torch.inference_mode():
        said = network(torch.from_numpy(radiograph)[None, None])
    (output,) = predictor.predict([radiograph])
    assert output.fracture == pytest.approx(float((said.fracture * 2 + 0.25).sigmoid()), abs=1e-4)
    np.testing.assert_allclose(output.region, (said.region[0] / 1.5).softmax(0).numpy(), atol=1e-4)


def test_probabilities_are_probabilities(predictor: Predictor) -> None:
    """Regions sum to one, and a severe extent is never more probable than a moderate one."""
    for output in predictor.predict(squares(4)):
        assert output.region.sum() == pytest.approx(1, abs=1e-5)
        assert all(output.extent[i] >= output.extent[i + 1] for i in range(2))


def test_blank_radiograph_is_seen(predictor: Predictor) -> None:
    """A radiograph without anything on it is marked blank among others that are not."""
    outputs = predictor.predict([squares(1)[0], np.zeros((64, 64), np.uint8)])
    assert [output.quality for output in outputs] == [QualityFlag.NONE, QualityFlag.BLANK]


@pytest.mark.parametrize(
    ("chance", "assessment"), [(0.1, Assessment.NEGATIVE), (0.3, Assessment.UNCLEAR), (0.9, Assessment.POSITIVE)]
)
def test_in_scope_calls_by_the_operating_points(predictor: Predictor, chance: float, assessment: Assessment) -> None:
    """In scope, the manifest's two thresholds decide the assessment, and only a called fracture has an extent."""
    finding = predictor.finding(raw(chance), 1, "DX")
    assert (finding.assessment, finding.abstention) == (assessment, None)
    assert (finding.extent is Extent.NONE) == (assessment is Assessment.NEGATIVE)


def test_called_fracture_has_at_least_mild_extent(predictor: Predictor) -> None:
    """A fracture that is called is never reported with the extent "none"."""
    finding = predictor.finding(raw(0.9, extent=np.array([0.2, 0.1, 0.0], np.float32)), 1, "DX")
    assert finding.extent is Extent.MILD
    assert predictor.finding(raw(0.9), 1, "DX").extent is Extent.MODERATE


@pytest.mark.parametrize(
    ("changes", "modality", "reason"),
    [
        ({}, "MR", "modality"),
        ({"quality": QualityFlag.BLANK}, "DX", "blank"),
        ({"quality": QualityFlag.COLLIMATED}, "DX", "collimated"),
        ({"quality": QualityFlag.INVERTED}, "DX", "inverted"),
        ({"ood_score": 2.1}, "DX", "out-of-distribution"),
        ({"ood_score": math.nan}, "DX", "out-of-distribution"),
        ({"region": np.array([0.39, 0.35], np.float32)}, "DX", "region"),
    ],
)
def test_out_of_scope_abstains_and_says_why(
    predictor: Predictor, changes: dict[str, Any], modality: str, reason: str
) -> None:
    """Out of scope the model says neither "positive" nor "negative": it abstains, and the reason is a code."""
    for chance in (0.01, 0.99):
        finding = predictor.finding(raw(chance, **changes), 3, modality)
        assert (finding.assessment, finding.extent, finding.abstention) == (
            Assessment.ABSTAINED,
            Extent.NONE,
            reason,
        )
        assert finding.abstention_detail == ("MR" if reason == "modality" else "")
        assert (finding.frame, finding.bundle, finding.fracture_probability) == (3, "test-1", chance)


@pytest.mark.parametrize(
    ("chance", "said"), [(0.01, "abstained"), (0.59, "abstained"), (0.61, "positive"), (0.99, "positive")]
)
def test_metal_is_a_caveat_and_not_silence(predictor: Predictor, chance: float, said: str) -> None:
    """A positive raw score is told as positive, outside the validated scope; else the model abstains, with the score."""
    finding = predictor.finding(raw(chance, hardware=0.8), 1, "DX")
    assert (finding.assessment, finding.abstention) == (said, "metal")
    assert finding.score == predictor.manifest.operating_points.score(chance)
    assert (finding.extent is Extent.NONE) == (said == "abstained")
    assert "metal in view. Raw score" in abstention_words(finding.abstention, score=finding.score)
    odd = predictor.finding(raw(chance, hardware=0.8, ood_score=2.1), 1, "DX")
    assert (odd.assessment, odd.abstention) == ("abstained", "metal"), "metal excuses nothing else"


def test_neighbours_together_are_a_known_region(network: BoneNet) -> None:
    """Between two regions that share a bone no region is doubtful; between others it is."""
    unsure = raw(0.99, region=np.array([0.39, 0.35], np.float32))
    for neighbours, said in (([], "abstained"), ([("hand", "elbow")], "positive")):
        told = manifest(region_neighbours=neighbours)
        assert Predictor(network, told).finding(unsure, 1, "DX").assessment == said


def test_picture_without_modality_is_in_scope(predictor: Predictor) -> None:
    """A PNG has no modality to judge, so only its content decides."""
    assert predictor.finding(raw(), 1, "").assessment is Assessment.POSITIVE


def test_body_part_that_no_region_stands_for_is_out_of_scope(predictor: Predictor) -> None:
    """A chest is turned away by its header even where its pixels look like a shoulder; other parts are not."""
    finding = predictor.finding(raw(), 1, "DX", "CHEST")
    assert (finding.assessment, finding.abstention, finding.abstention_detail) == ("abstained", "body-part", "CHEST")
    assert predictor.finding(raw(), 1, "DX", "HAND").assessment is Assessment.POSITIVE


def radiograph(size: int = 96) -> Any:
    """A bright bone with a soft shade around it on a dark ground, as it comes from `prepare_square`."""
    row = np.abs(np.linspace(-1, 1, size))
    return prepare_square(
        np.tile(np.where(row < 0.2, 220, np.where(row < 0.6, 90, 8)), (size, 1)).astype(np.uint8), size
    )


def test_what_can_be_seen_without_a_network() -> None:
    """A radiograph, the same inverted, shut away but for a speck, and blank are told apart; padding beside a radiograph is none."""
    usual = radiograph()
    shut = np.zeros_like(usual)
    shut[40:46, 40:46] = usual[40:46, 40:46]
    assert quality_flag(usual) is QualityFlag.NONE
    assert quality_flag((255 - usual).astype(np.uint8)) is QualityFlag.INVERTED
    assert quality_flag(shut) is QualityFlag.COLLIMATED
    assert quality_flag(np.full_like(usual, 77)) is QualityFlag.BLANK
    assert quality_flag(np.pad(usual[:, 20:60], ((0, 0), (28, 28)))) is QualityFlag.NONE


def test_no_number_is_no_finding(predictor: Predictor) -> None:
    """A network that answers nan is an error to retry or quarantine, never a normal study."""
    with pytest.raises(ValueError, match="no probability"):
        predictor.finding(raw(math.nan), 1, "DX")


def test_heatmap_is_scaled_to_full_strength(predictor: Predictor) -> None:
    """Cell probabilities become 0..255 between nothing and the manifest's full value, in the map's own shape."""
    heatmap = predictor.finding(raw(), 1, "DX").heatmap
    assert (heatmap.height, heatmap.width) == (2, 3)
    assert list(heatmap.values) == [0, 1, 128, 255, 255, 51]


def test_heatmap_of_a_real_output_has_the_last_maps_size(predictor: Predictor) -> None:
    """A finding's heatmap has a 16th of the input's side."""
    (output,) = predictor.predict(squares(1))
    heatmap = predictor.finding(output, 1, "DX").heatmap
    assert (heatmap.height, heatmap.width) == (4, 4)
