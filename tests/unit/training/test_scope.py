"""Who is turned away: fitting it on radiographs, and counting it."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.manifest import Manifest
from shared.model.engines import torch_engine
from shared.model.network import BoneNet
from shared.model.predictor import Predictor
from tests.radiographs import fracatlas_tree
from training.card import card
from training.datasets import MISSING, REGIONS, LabelledRadiograph, radiographs
from training.evaluate import Predictions, predict, sigmoid
from training.scope import (
    HELD_OUT,
    METAL_SENSITIVITY,
    NO_REGION,
    OUT_OF_DISTRIBUTION,
    certainties,
    fit_limits,
    fit_scope,
    measure_scope,
)

SIZE = 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledRadiograph]:
    return radiographs(fracatlas_tree(tmp_path_factory.mktemp("radiographs") / "fracatlas"))


@pytest.fixture(scope="module")
def fitted(tree: list[LabelledRadiograph]) -> tuple[BoneNet, Predictions]:
    torch.manual_seed(4)
    network = BoneNet(len(REGIONS)).eval()
    fit_scope(network, tree, SIZE)
    return network, predict(torch_engine(network, CPU), tree, SIZE)


def manifest(predictions: Predictions) -> Manifest:
    return Manifest(
        name="scope-1",
        regions=list(REGIONS),
        input_size=SIZE,
        sensitive=0.2,
        specific=0.6,
        modalities=["CR"],
        least_region_probability=0.0,
        most_ood_score=float(predictions.ood_score.max()) * 1.05,
        hardware=1.0,
        heatmap_full=0.5,
    )


@pytest.mark.slow
def test_radiographs_like_those_learned_score_about_one(fitted: tuple[BoneNet, Predictions]) -> None:
    """The radiographs that it was fitted on have a root mean square distance of about 1."""
    ood_score = fitted[1].ood_score
    assert 0.5 < np.sqrt(np.square(ood_score).mean()) < 1.5


@pytest.mark.slow
def test_other_pictures_score_higher(fitted: tuple[BoneNet, Predictions], tmp_path: Path) -> None:
    """A chequered board is farther away than every radiograph."""
    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((16, 16))).astype(np.uint8) * 255
    cv2.imwrite(str(tmp_path / "board.png"), board)
    radiograph = replace(fitted[1].radiographs[0], path=tmp_path / "board.png")
    (odd,) = predict(torch_engine(fitted[0], CPU), [radiograph], SIZE).ood_score
    assert odd > 1.5 * fitted[1].ood_score.max()


@pytest.mark.slow
def test_without_metal_anywhere_metal_is_never_reported(tree: list[LabelledRadiograph]) -> None:
    """Where no radiograph is known to show metal, no radiograph is turned away for it."""
    torch.manual_seed(4)
    network = BoneNet(len(REGIONS)).eval()
    unknown = [replace(radiograph, hardware=MISSING) for radiograph in tree[:12]]
    fit_scope(network, unknown, SIZE)
    said = predict(torch_engine(network, CPU), unknown, SIZE)
    assert (said.hardware < -10).all()
    assert np.isfinite(said.ood_score).all(), "fewer radiographs than directions"


@pytest.mark.slow
def test_abstentions_are_counted_by_kind(fitted: tuple[BoneNet, Predictions], tmp_path: Path) -> None:
    """Each kind is counted; what is no DICOM image is left out; the card tells the counts."""
    network, predictions = fitted
    told = manifest(predictions)
    (tmp_path / "notes.txt").write_text("no image")
    counts = measure_scope(Predictor(network, told), predictions, tmp_path)
    held_out = {name: counts[name]["images"] for name in HELD_OUT}
    assert sum(held_out.values()) == len(predictions.radiographs)
    assert held_out[HELD_OUT[2]] == sum(radiograph.hardware == 1 for radiograph in predictions.radiographs)
    assert counts["radiographs collimated away"]["abstained"] == counts["radiographs collimated away"]["images"] > 0
    assert counts["noise"]["images"] == counts["photographs"]["images"] == counts["pages of text"]["images"] == 40
    assert counts["other DICOM images, with header"] == {"images": 0, "abstained": 0, "reasons": {}}
    assert counts["radiographs collimated away"]["reasons"] == {
        "collimated": counts["radiographs collimated away"]["images"]
    }
    written = card(told.model_copy(update={"metrics": {"scope": counts}}))
    assert "| noise | 40 |" in written
    assert "| collimated " in written
    assert "too few" in written
    assert "Research use only" in written


@given(st.integers(0, 2**32 - 1), st.integers(5, 60), st.integers(5, 400))
def test_neither_class_loses_more_than_the_share(seed: int, fractured: int, sound: int) -> None:
    """Limits keep the fractured as often as the sound, however few there are and however high their scores."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.ones(fractured, int), np.zeros(sound, int)]
    radiographs = [LabelledRadiograph(Path(), "", 0, int(one), 0, 0, (1, 1)) for one in labels]
    shift = 3 * rng.random() * labels  # fractures have higher scores
    predictions = Predictions(
        radiographs, rng.normal(size=len(labels)), rng.normal(size=(len(labels), 5)) * 3, np.zeros((len(labels), 3)),
        np.zeros((len(labels), 1, 1)), rng.gamma(9, 0.1, len(labels)) + shift, rng.normal(-4, 2, len(labels)) + shift,
    )  # fmt: skip
    limits = fit_limits(predictions, [("hip", "leg")])
    certainty = certainties(predictions, [("hip", "leg")])
    for group in (labels == 1, labels == 0):
        one = 1 / group.sum()  # a share of few is no finer than one of them
        assert (predictions.ood_score[group] > limits.most_ood_score + 1e-4).mean() <= OUT_OF_DISTRIBUTION + one
        assert (certainty[group] < limits.least_region_probability - 1e-3).mean() <= NO_REGION + one
    assert limits.hardware == 1, "where nothing is known to show metal, it is never suspected"
    metal = [replace(radiograph, hardware=1) for radiograph in radiographs]
    limits = fit_limits(replace(predictions, radiographs=metal), [])
    assert (sigmoid(predictions.hardware) >= limits.hardware).mean() >= METAL_SENSITIVITY


def test_neighbours_count_together() -> None:
    """A radiograph between hip and leg is of a known region; one between hand and hip is not."""
    logits = np.log(np.array([[0.01, 0.01, 0.01, 0.49, 0.48], [0.49, 0.01, 0.01, 0.48, 0.01]]))
    predictions = Predictions([], np.zeros(2), logits, np.zeros((2, 3)), np.zeros((2, 1, 1)), np.zeros(2), np.zeros(2))
    assert certainties(predictions, [("hip", "leg")]) == pytest.approx([0.97, 0.49])
