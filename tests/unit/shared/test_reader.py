"""A bundle at work: batches, words and scope."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from shared.findings import Assessment, Severity, abstention_words
from shared.vision.bundle import Calibration, Manifest
from shared.vision.network import BoneNet
from shared.vision.reader import Look, RawReading, Reader, look
from shared.vision.tensors import prepare

SCOPE = {
    "modalities": ["CR", "DX"],
    "other_body_parts": ["CHEST"],
    "least_region_probability": 0.4,
    "most_strangeness": 2.0,
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
def reader(network: BoneNet) -> Reader:
    return Reader(network, manifest(calibration=Calibration(slope=2.0, offset=0.25), region_temperature=1.5))


def raw(fracture: float = 0.9, **changes: Any) -> RawReading:
    reading = RawReading(
        region=np.array([0.9, 0.1], np.float32),
        fracture=fracture,
        severity=np.array([0.8, 0.6, 0.1], np.float32),
        heatmap=np.array([[0.0, 0.001, 0.25], [0.5, 1.0, 0.1]], np.float32),
        strangeness=1.0,
        hardware=0.1,
        look=Look.USUAL,
    )
    return replace(reading, **changes)


def squares(count: int) -> list[Any]:
    dice = np.random.default_rng(4)
    return [dice.integers(0, 256, (64, 64)).astype(np.uint8) for _ in range(count)]


def test_batch_answers_as_single_films_do(reader: Reader) -> None:
    """A film's answer does not depend on what it was batched with, nor on its place."""
    films = squares(5)
    together = reader.read(films)
    for film, answer in zip(films, together, strict=True):
        (alone,) = reader.read([film])
        assert answer.fracture == pytest.approx(alone.fracture, abs=1e-4)
        np.testing.assert_allclose(answer.region, alone.region, atol=1e-4)
        np.testing.assert_allclose(answer.severity, alone.severity, atol=1e-4)
        np.testing.assert_allclose(answer.heatmap, alone.heatmap, atol=1e-3)
    assert len({answer.fracture for answer in together}) == 5


def test_answers_are_the_networks_after_calibration(reader: Reader, network: BoneNet) -> None:
    """Probabilities are the network's logits through the manifest's calibration and temperature."""
    film = squares(1)[0]
    with torch.inference_mode():
        said = network(torch.from_numpy(film)[None, None])
    (answer,) = reader.read([film])
    assert answer.fracture == pytest.approx(float((said.fracture * 2 + 0.25).sigmoid()), abs=1e-4)
    np.testing.assert_allclose(answer.region, (said.region[0] / 1.5).softmax(0).numpy(), atol=1e-4)


def test_probabilities_are_probabilities(reader: Reader) -> None:
    """Regions sum to one, and a severe extent is never more probable than a moderate one."""
    for answer in reader.read(squares(4)):
        assert answer.region.sum() == pytest.approx(1, abs=1e-5)
        assert all(answer.severity[i] >= answer.severity[i + 1] for i in range(2))


def test_blank_film_is_seen(reader: Reader) -> None:
    """A film without anything on it is marked blank among others that are not."""
    answers = reader.read([squares(1)[0], np.zeros((64, 64), np.uint8)])
    assert [answer.look for answer in answers] == [Look.USUAL, Look.BLANK]


@pytest.mark.parametrize(
    ("chance", "assessment"), [(0.1, Assessment.NEGATIVE), (0.3, Assessment.UNCLEAR), (0.9, Assessment.POSITIVE)]
)
def test_in_scope_calls_by_the_operating_points(reader: Reader, chance: float, assessment: Assessment) -> None:
    """In scope, the manifest's two thresholds decide the assessment, and only a called fracture has an extent."""
    finding = reader.finding(raw(chance), 1, "DX")
    assert (finding.assessment, finding.abstention) == (assessment, None)
    assert (finding.severity is Severity.NONE) == (assessment is Assessment.NEGATIVE)


def test_called_fracture_has_at_least_mild_extent(reader: Reader) -> None:
    """A fracture that is called is never reported with the extent "none"."""
    finding = reader.finding(raw(0.9, severity=np.array([0.2, 0.1, 0.0], np.float32)), 1, "DX")
    assert finding.severity is Severity.MILD
    assert reader.finding(raw(0.9), 1, "DX").severity is Severity.MODERATE


@pytest.mark.parametrize(
    ("changes", "modality", "reason"),
    [
        ({}, "MR", "modality"),
        ({"look": Look.BLANK}, "DX", "blank"),
        ({"look": Look.COLLIMATED}, "DX", "collimated"),
        ({"look": Look.INVERTED}, "DX", "inverted"),
        ({"strangeness": 2.1}, "DX", "out-of-distribution"),
        ({"strangeness": math.nan}, "DX", "out-of-distribution"),
        ({"region": np.array([0.39, 0.35], np.float32)}, "DX", "region"),
    ],
)
def test_out_of_scope_abstains_and_says_why(
    reader: Reader, changes: dict[str, Any], modality: str, reason: str
) -> None:
    """Out of scope the model says neither "positive" nor "negative": it abstains, and the reason is a code."""
    for chance in (0.01, 0.99):
        finding = reader.finding(raw(chance, **changes), 3, modality)
        assert (finding.assessment, finding.severity, finding.abstention) == (
            Assessment.ABSTAINED,
            Severity.NONE,
            reason,
        )
        assert finding.abstention_detail == ("MR" if reason == "modality" else "")
        assert (finding.frame, finding.bundle, finding.fracture_probability) == (3, "test-1", chance)


@pytest.mark.parametrize(
    ("chance", "said"), [(0.01, "abstained"), (0.59, "abstained"), (0.61, "positive"), (0.99, "positive")]
)
def test_metal_is_a_caveat_and_not_silence(reader: Reader, chance: float, said: str) -> None:
    """A positive raw score is told as positive, outside the validated scope; else the model abstains, with the score."""
    finding = reader.finding(raw(chance, hardware=0.8), 1, "DX")
    assert (finding.assessment, finding.abstention) == (said, "metal")
    assert finding.score == reader.manifest.operating_points.score(chance)
    assert (finding.severity is Severity.NONE) == (said == "abstained")
    assert "metal in view. Raw score" in abstention_words(finding.abstention, score=finding.score)
    strange = reader.finding(raw(chance, hardware=0.8, strangeness=2.1), 1, "DX")
    assert (strange.assessment, strange.abstention) == ("abstained", "metal"), "metal excuses nothing else"


def test_neighbours_together_are_a_known_region(network: BoneNet) -> None:
    """Between two regions that share a bone no region is doubtful; between others it is."""
    unsure = raw(0.99, region=np.array([0.39, 0.35], np.float32))
    for neighbours, said in (([], "abstained"), ([("hand", "elbow")], "positive")):
        told = manifest(region_neighbours=neighbours)
        assert Reader(network, told).finding(unsure, 1, "DX").assessment == said


def test_picture_without_modality_is_in_scope(reader: Reader) -> None:
    """A PNG has no modality to judge, so only its content decides."""
    assert reader.finding(raw(), 1, "").assessment is Assessment.POSITIVE


def test_body_part_that_no_region_stands_for_is_out_of_scope(reader: Reader) -> None:
    """A chest is turned away by its header even where its pixels look like a shoulder; other parts are not."""
    finding = reader.finding(raw(), 1, "DX", "CHEST")
    assert (finding.assessment, finding.abstention, finding.abstention_detail) == ("abstained", "body-part", "CHEST")
    assert reader.finding(raw(), 1, "DX", "HAND").assessment is Assessment.POSITIVE


def film(size: int = 96) -> Any:
    """A bright bone with a soft shade around it on a dark ground, as it comes from `prepare`."""
    row = np.abs(np.linspace(-1, 1, size))
    return prepare(np.tile(np.where(row < 0.2, 220, np.where(row < 0.6, 90, 8)), (size, 1)).astype(np.uint8), size)


def test_what_can_be_seen_without_a_network() -> None:
    """A film, the same inverted, shut away but for a speck, and blank are told apart; padding beside a film is none."""
    usual = film()
    shut = np.zeros_like(usual)
    shut[40:46, 40:46] = usual[40:46, 40:46]
    assert look(usual) is Look.USUAL
    assert look((255 - usual).astype(np.uint8)) is Look.INVERTED
    assert look(shut) is Look.COLLIMATED
    assert look(np.full_like(usual, 77)) is Look.BLANK
    assert look(np.pad(usual[:, 20:60], ((0, 0), (28, 28)))) is Look.USUAL


def test_no_number_is_no_finding(reader: Reader) -> None:
    """A network that answers nan is an error to retry or quarantine, never a normal study."""
    with pytest.raises(ValueError, match="no probability"):
        reader.finding(raw(math.nan), 1, "DX")


def test_heatmap_is_scaled_to_full_strength(reader: Reader) -> None:
    """Cell probabilities become 0..255 between nothing and the manifest's full value, in the map's own shape."""
    heatmap = reader.finding(raw(), 1, "DX").heatmap
    assert (heatmap.height, heatmap.width) == (2, 3)
    assert list(heatmap.values) == [0, 1, 128, 255, 255, 51]


def test_heatmap_of_a_real_reading_has_the_last_maps_size(reader: Reader) -> None:
    """A finding's heatmap has a 16th of the input's side."""
    (answer,) = reader.read(squares(1))
    heatmap = reader.finding(answer, 1, "DX").heatmap
    assert (heatmap.height, heatmap.width) == (4, 4)
