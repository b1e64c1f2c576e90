"""Every engine gives the answers of plain torch."""

import numpy as np
import pytest
import torch

from shared.vision.engines import openvino_engine, torch_engine
from shared.vision.network import BoneNet


def test_openvino_agrees_with_torch_on_probability_and_on_the_heatmaps_peak() -> None:
    """The compiled network says the same within 0.006 of probability, for any batch size, and points to the same cell."""
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    network = BoneNet(5).eval()
    compiled, plain = openvino_engine(network, 64), torch_engine(network, torch.device("cpu"))
    dice = np.random.default_rng(0)
    for batch in (1, 3, 8):
        squares = dice.integers(0, 256, (batch, 64, 64), np.uint8)
        for mine, theirs in zip(compiled(squares), plain(squares), strict=True):
            assert mine.shape == theirs.shape
            assert np.abs(1 / (1 + np.exp(-mine)) - 1 / (1 + np.exp(-theirs))).max() < 0.006
        peaks = [answer[3].reshape(batch, -1).argmax(1) for answer in (compiled(squares), plain(squares))]
        assert (peaks[0] == peaks[1]).all()
