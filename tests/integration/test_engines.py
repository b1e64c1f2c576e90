"""Every engine gives the outputs of plain torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shared.domain.manifest import ARCHITECTURES
from shared.model.bundle import load_bundle
from shared.model.engines import (
    BATCHES,
    EngineOutput,
    calling_threads,
    engine_streams,
    fixed_batches,
    fold_batch_norm,
    images_per_call,
    openvino_engine,
    pick_engine,
    to_bfloat16,
    torch_engine,
)
from shared.model.network import BoneNet, NetworkOutput
from shared.model.predictor import displayed_heatmaps
from shared.pixels.decode import open_pixels
from shared.pixels.radiograph import decode_radiograph
from shared.settings import ROOT, Settings

# of probability; OpenVINO computes in bfloat16 where the processor has it
TOLERANCE = {"fracture": 0.01, "region": 0.01, "extent": 0.02, "hardware": 0.05}


@pytest.fixture(scope="module")
def read() -> tuple[BoneNet, np.ndarray, EngineOutput]:
    """The shipped network, four radiographs as it takes them, and what plain torch says of them."""
    network, manifest = load_bundle(Settings().bundle_path.read_bytes())
    radiographs = sorted((ROOT / "samples/studies").rglob("*.dcm"))[:4]
    squares = np.stack(
        [
            decode_radiograph(open_pixels(radiograph.read_bytes()), 0).square(manifest.input_size)
            for radiograph in radiographs
        ]
    )
    return network, squares, torch_engine(network, torch.device("cpu"))(squares)


def test_openvino_agrees_with_torch(read: tuple[BoneNet, np.ndarray, EngineOutput]) -> None:
    """On real radiographs the compiled network says the same, for any batch size, and its map peaks where torch's does."""
    pytest.importorskip("openvino")
    network, squares, theirs = read
    compiled = openvino_engine(network, squares.shape[-1])
    parts = [compiled(squares[start : start + size]) for start, size in ((0, 1), (1, 3))]
    mine = EngineOutput(*(np.concatenate(pieces) for pieces in zip(*parts, strict=True)))
    assert [part.shape for part in mine] == [part.shape for part in theirs]
    for name, tolerance in TOLERANCE.items():
        assert np.abs(chance(mine, name) - chance(theirs, name)).max() < tolerance, name
    np.testing.assert_allclose(mine.ood_score, theirs.ood_score, rtol=0.03)
    for one, other in zip(displayed_heatmaps(mine.heatmap), displayed_heatmaps(theirs.heatmap), strict=True):
        assert other.flat[one.argmax()] >= other.max() - 0.01


def test_streams_may_run_at_the_same_time() -> None:
    """There is at least one stream, and no more than cores."""
    assert 1 <= engine_streams() <= 8


@pytest.mark.parametrize(("openvino", "lanes_and_images"), [(None, (1, 1, 8)), ("there", (3, 4, 1))])
def test_a_lane_takes_a_batch_or_an_image(
    monkeypatch: pytest.MonkeyPatch, openvino: str | None, lanes_and_images: tuple[int, int, int]
) -> None:
    """OpenVINO has a stream a core, which take an image each, and one waits; eager torch one stream for a batch."""
    monkeypatch.setattr("shared.model.engines.importlib.util.find_spec", lambda _: openvino)
    monkeypatch.setattr("shared.model.engines.torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("shared.model.engines.cpu_count", lambda: 3)
    assert (engine_streams(), calling_threads(), images_per_call(8)) == lanes_and_images


CPU = torch.device("cpu")


def lived_in(architecture: str) -> BoneNet:
    """A network whose batch norms have statistics and weights, as after training."""
    torch.manual_seed(5)
    network = BoneNet(3, architecture).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return network


@pytest.mark.parametrize(
    "architecture", [pytest.param(one, marks=() if one == "resnet50" else pytest.mark.slow) for one in ARCHITECTURES]
)
def test_folding_changes_nothing(architecture: str) -> None:
    """With its batch norms in its convolutions, a network of each architecture says the same; the original is left alone."""
    network = lived_in(architecture)
    squares = np.random.default_rng(1).integers(0, 256, (2, 64, 64), np.uint8)
    before = torch_engine(network, CPU)(squares)
    less = fold_batch_norm(network)
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in one.modules()) for one in (network, less)]
    if architecture.startswith("densenet"):
        assert norms[1] <= norms[0] / 2 + 3  # half of its norms stand before a convolution, where none can be folded
    else:
        assert norms[1] == 0 < norms[0]
    after = torch_engine(less, CPU)(squares)
    for name, mine, theirs in zip(EngineOutput._fields, after, before, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=2e-4 * max(1, np.abs(theirs).max()), err_msg=name)
    for mine, theirs in zip(torch_engine(network, CPU)(squares), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_the_fallback_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU and without OpenVINO a service runs folded torch, and says what plain torch says."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    network = lived_in("resnet50")
    squares = np.random.default_rng(2).integers(0, 256, (3, 64, 64), np.uint8)
    mine, theirs = pick_engine(network, 64)(squares), torch_engine(network, CPU)(squares)
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_half_precision_has_the_outputs_of_a_gpu(read: tuple[BoneNet, np.ndarray, EngineOutput]) -> None:
    """What a GPU computes (folded, convolutions in bfloat16, under autocast), computed here, is near to float32 on radiographs."""
    network, squares, theirs = read
    ready = to_bfloat16(fold_batch_norm(network))
    assert {m.weight.dtype for m in ready.modules() if isinstance(m, torch.nn.Conv2d)} == {torch.bfloat16}

    def start(buffer: torch.Tensor) -> Callable[[], NetworkOutput]:
        def step() -> Any:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                return ready(buffer)

        return step

    mine = fixed_batches(squares.shape[-1], start)(squares)
    for name, tolerance in TOLERANCE.items():
        assert np.abs(chance(mine, name) - chance(theirs, name)).max() < tolerance, name
    for one, other in zip(displayed_heatmaps(mine.heatmap), displayed_heatmaps(theirs.heatmap), strict=True):
        assert other.flat[one.argmax()] >= other.max() - 0.01


class Tiny(torch.nn.Module):
    """Fields of an output's shapes, each from its own square only."""

    def forward(self, pixels: torch.Tensor) -> NetworkOutput:
        x = pixels.float()
        mean = x.mean((1, 2, 3))
        return NetworkOutput(x[:, 0, 0, :4], mean, x[:, 0, 1, :3], x[:, 0], x.amax((1, 2, 3)), x[:, 0, 0, 0])


def test_padding_never_changes_an_output() -> None:
    """Batches of every size, one after the other through the same buffers, get what each square gets alone."""
    rng, tiny = np.random.default_rng(3), Tiny()
    used: list[int] = []

    def start(buffer: torch.Tensor) -> Callable[[], NetworkOutput]:
        def step() -> Any:
            used.append(len(buffer))
            return tiny(buffer)

        return step

    engine = fixed_batches(8, start)
    kept: list[tuple[EngineOutput, EngineOutput]] = []
    for count in [*range(1, 34), 5, 64, 65, 1]:
        squares = rng.integers(0, 256, (count, 8, 8), np.uint8)
        alone = tiny(torch.from_numpy(squares)[:, None])
        kept.append((engine(squares), EngineOutput(*(part.numpy() for part in alone))))
    # looked at last: an output must not be written over by a later batch
    for mine, theirs in kept:
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    assert set(used) == set(BATCHES)
    assert used[:5] == [1, 2, 4, 4, 8]


@pytest.mark.slow
def test_padding_does_not_reach_a_real_network() -> None:
    """A square of the real network gets the same output alone and padded, whatever lay in the buffer before."""
    network = fold_batch_norm(lived_in("resnet50"))
    engine = fixed_batches(64, lambda buffer: lambda: network(buffer))
    squares = np.random.default_rng(4).integers(0, 256, (7, 64, 64), np.uint8)
    engine(255 - squares)
    padded, alone = engine(squares[:5]), [engine(squares[i : i + 1]) for i in range(5)]
    for index, field in enumerate(padded):
        np.testing.assert_allclose(field, np.concatenate([one[index] for one in alone]), rtol=1e-3, atol=1e-3)


def chance(output: EngineOutput, name: str) -> np.ndarray:
    """One field's logits as probabilities."""
    return np.asarray(1 / (1 + np.exp(-getattr(output, name))))
