"""Who is turned away: fitting it on films, and counting it."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.vision.bundle import Manifest
from shared.vision.engines import torch_engine
from shared.vision.network import BoneNet
from shared.vision.reader import Reader
from tests.films import fracatlas_tree
from training.card import card
from training.datasets import MISSING, REGIONS, Film, films
from training.evaluate import Answers, answer, sigmoid
from training.scope import FLAGGED, HELD_OUT, NO_REGION, STRANGE, certainties, fit_limits, fit_scope, measure_scope

SIZE = 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> list[Film]:
    return films(fracatlas_tree(tmp_path_factory.mktemp("films") / "fracatlas"))


@pytest.fixture(scope="module")
def fitted(tree: list[Film]) -> tuple[BoneNet, Answers]:
    torch.manual_seed(4)
    network = BoneNet(len(REGIONS)).eval()
    fit_scope(network, tree, SIZE)
    return network, answer(torch_engine(network, CPU), tree, SIZE)


def manifest(answers: Answers) -> Manifest:
    return Manifest(
        name="scope-1",
        regions=list(REGIONS),
        input_size=SIZE,
        sensitive=0.2,
        specific=0.6,
        modalities=["CR"],
        least_region_probability=0.0,
        most_strangeness=float(answers.strangeness.max()) * 1.05,
        hardware=1.0,
        heatmap_full=0.5,
    )


def test_films_like_those_learned_are_about_one_strange(fitted: tuple[BoneNet, Answers]) -> None:
    """The films that it was fitted on have a root mean square distance of about 1."""
    strangeness = fitted[1].strangeness
    assert 0.5 < np.sqrt(np.square(strangeness).mean()) < 1.5


def test_other_pictures_are_stranger(fitted: tuple[BoneNet, Answers], tmp_path: Path) -> None:
    """A chequered board is farther away than every film."""
    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((16, 16))).astype(np.uint8) * 255
    cv2.imwrite(str(tmp_path / "board.png"), board)
    film = replace(fitted[1].films[0], path=tmp_path / "board.png")
    (strange,) = answer(torch_engine(fitted[0], CPU), [film], SIZE).strangeness
    assert strange > 1.5 * fitted[1].strangeness.max()


def test_without_metal_anywhere_metal_is_never_reported(tree: list[Film]) -> None:
    """Where no film is known to show metal, no film is turned away for it."""
    torch.manual_seed(4)
    network = BoneNet(len(REGIONS)).eval()
    unknown = [replace(film, hardware=MISSING) for film in tree[:12]]
    fit_scope(network, unknown, SIZE)
    said = answer(torch_engine(network, CPU), unknown, SIZE)
    assert (said.hardware < -10).all()
    assert np.isfinite(said.strangeness).all(), "fewer films than directions"


def test_abstentions_are_counted_by_kind(fitted: tuple[BoneNet, Answers], tmp_path: Path) -> None:
    """Each kind is counted; what is no DICOM image is left out; the card tells the counts."""
    network, answers = fitted
    told = manifest(answers)
    (tmp_path / "notes.txt").write_text("no image")
    counts = measure_scope(Reader(network, told), answers, tmp_path)
    held_out = {name: counts[name]["images"] for name in HELD_OUT}
    assert sum(held_out.values()) == len(answers.films)
    assert held_out[HELD_OUT[2]] == sum(film.hardware == 1 for film in answers.films)
    assert counts["films collimated away"]["abstained"] == counts["films collimated away"]["images"] > 0
    assert counts["noise"]["images"] == counts["photographs"]["images"] == counts["pages of text"]["images"] == 40
    assert counts["other DICOM images, with header"] == {"images": 0, "abstained": 0, "reasons": {}}
    assert counts["films collimated away"]["reasons"] == {"collimated": counts["films collimated away"]["images"]}
    written = card(told.model_copy(update={"metrics": {"scope": counts}}))
    assert "| noise | 40 |" in written
    assert "| collimated " in written
    assert "too few" in written
    assert "Research use only" in written


@given(st.integers(0, 2**32 - 1), st.integers(5, 60), st.integers(5, 400))
def test_neither_class_loses_more_than_the_share(seed: int, fractured: int, sound: int) -> None:
    """Limits keep the fractured as often as the sound, however few and however strange they are."""
    dice = np.random.default_rng(seed)
    labels = np.r_[np.ones(fractured, int), np.zeros(sound, int)]
    films = [Film(Path(), "", 0, int(one), 0, 0, (1, 1)) for one in labels]
    shift = 3 * dice.random() * labels  # fractures look stranger
    answers = Answers(
        films, dice.normal(size=len(labels)), dice.normal(size=(len(labels), 5)) * 3, np.zeros((len(labels), 3)),
        np.zeros((len(labels), 1, 1)), dice.gamma(9, 0.1, len(labels)) + shift, dice.normal(-4, 2, len(labels)) + shift,
    )  # fmt: skip
    limits = fit_limits(answers, [("hip", "leg")])
    certainty = certainties(answers, [("hip", "leg")])
    for group in (labels == 1, labels == 0):
        one = 1 / group.sum()  # a share of few is no finer than one of them
        assert (answers.strangeness[group] > limits.most_strangeness + 1e-4).mean() <= STRANGE + one
        assert (certainty[group] < limits.least_region_probability - 1e-3).mean() <= NO_REGION + one
    assert limits.hardware == 1, "where nothing is known to show metal, it is never suspected"
    metal = [replace(film, hardware=1) for film in films]
    limits = fit_limits(replace(answers, films=metal), [])
    assert (sigmoid(answers.hardware) >= limits.hardware).mean() >= FLAGGED


def test_neighbours_count_together() -> None:
    """A radiograph between hip and leg is of a known region; one between hand and hip is not."""
    logits = np.log(np.array([[0.01, 0.01, 0.01, 0.49, 0.48], [0.49, 0.01, 0.01, 0.48, 0.01]]))
    answers = Answers([], np.zeros(2), logits, np.zeros((2, 3)), np.zeros((2, 1, 1)), np.zeros(2), np.zeros(2))
    assert certainties(answers, [("hip", "leg")]) == pytest.approx([0.97, 0.49])
