"""Every engine gives the answers of plain torch."""

import numpy as np
import pytest
import torch

from shared.settings import ROOT, Settings
from shared.vision.bundle import load_bundle
from shared.vision.engines import Answer, lanes, openvino_engine, torch_engine
from shared.vision.pixels import open_pixels
from shared.vision.reader import shown
from shared.vision.tensors import prepare

# of probability; OpenVINO computes in bfloat16 where the processor has it
TOLERANCE = {"fracture": 0.01, "region": 0.01, "severity": 0.02, "hardware": 0.05}


def test_openvino_agrees_with_torch() -> None:
    """On real films the compiled network says the same, for any batch size, and its map peaks where torch's does."""
    pytest.importorskip("openvino")
    network, manifest = load_bundle(Settings().bundle_path.read_bytes())
    compiled = openvino_engine(network, manifest.input_size)
    plain = torch_engine(network, torch.device("cpu"))
    films = sorted((ROOT / "samples/studies").rglob("*.dcm"))[:9]
    squares = np.stack([prepare(open_pixels(film.read_bytes()).frame(0), manifest.input_size) for film in films])
    theirs = plain(squares)
    parts = [compiled(squares[start : start + size]) for start, size in ((0, 1), (1, 5), (6, 3))]
    mine = Answer(*(np.concatenate(pieces) for pieces in zip(*parts, strict=True)))
    assert [part.shape for part in mine] == [part.shape for part in theirs]
    for name, tolerance in TOLERANCE.items():
        assert np.abs(chance(mine, name) - chance(theirs, name)).max() < tolerance, name
    np.testing.assert_allclose(mine.strangeness, theirs.strangeness, rtol=0.03)
    for one, other in zip(shown(mine.heatmap), shown(theirs.heatmap), strict=True):
        assert other.flat[one.argmax()] >= other.max() - 0.01


def test_lanes_may_run_at_the_same_time() -> None:
    """There is at least one lane, and no more than cores."""
    assert 1 <= lanes() <= 8


def chance(answer: Answer, name: str) -> np.ndarray:
    """One field's logits as probabilities."""
    return np.asarray(1 / (1 + np.exp(-getattr(answer, name))))
