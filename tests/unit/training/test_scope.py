"""Who is turned away: fitting it on films, and counting it."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from shared.vision.bundle import Manifest
from shared.vision.engines import torch_engine
from shared.vision.network import BoneNet
from shared.vision.reader import Reader
from tests.films import fracatlas_tree
from training.card import card
from training.datasets import MISSING, REGIONS, Film, films
from training.evaluate import Answers, answer
from training.scope import fit_scope, measure_scope

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
    assert counts["held-out films without metal"]["abstained"] == 0
    assert counts["films collimated away"]["abstained"] == counts["films collimated away"]["images"] > 0
    assert counts["noise"]["images"] == counts["photographs"]["images"] == counts["pages of text"]["images"] == 40
    assert counts["other DICOM images, with header"] == {"images": 0, "abstained": 0}
    written = card(told.model_copy(update={"metrics": {"scope": counts}}))
    assert "| noise | 40 |" in written
    assert "too few" in written
    assert "Research use only" in written
