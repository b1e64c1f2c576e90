"""Every engine gives the answers of plain torch."""

import numpy as np
import pytest
import torch

from shared.vision.engines import Answer, openvino_engine, torch_engine
from shared.vision.network import BoneNet

# of probability; in bfloat16, which OpenVINO takes where the processor has it, a random network's extent is the noisiest
TOLERANCE = {"region": 0.006, "fracture": 0.006, "severity": 0.02, "heatmap": 0.006}


def test_openvino_agrees_with_torch() -> None:
    """The compiled network says the same, for any batch size, and its map's peak is a peak of torch's map."""
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    network = BoneNet(5).eval()
    compiled, plain = openvino_engine(network, 64), torch_engine(network, torch.device("cpu"))
    dice = np.random.default_rng(0)
    for batch in (1, 3, 8):
        squares = dice.integers(0, 256, (batch, 64, 64), np.uint8)
        mine, theirs = compiled(squares), plain(squares)
        assert [part.shape for part in mine] == [part.shape for part in theirs]
        for name, tolerance in TOLERANCE.items():
            assert np.abs(chance(mine, name) - chance(theirs, name)).max() < tolerance, name
        np.testing.assert_allclose(mine.strangeness, theirs.strangeness, rtol=0.02)
        for one, other in zip(mine.heatmap, theirs.heatmap, strict=True):
            assert other.flat[one.argmax()] >= other.max() - 0.02


def chance(answer: Answer, name: str) -> np.ndarray:
    """One field's logits as probabilities."""
    return np.asarray(1 / (1 + np.exp(-getattr(answer, name))))
