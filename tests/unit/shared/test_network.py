"""The network: shapes, and that a radiograph's output comes from its heatmap."""

import pytest
import torch
from torch import Tensor

from shared.domain.manifest import ARCHITECTURES
from shared.model.network import CELL, DIRECTIONS, BoneNet, Scope


@pytest.fixture(scope="module")
def net() -> BoneNet:
    torch.manual_seed(3)
    return BoneNet(5).eval()


def radiographs(count: int = 2, size: int = 96) -> Tensor:
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=torch.manual_seed(size))


@pytest.mark.parametrize("size", [*(pytest.param(size, marks=pytest.mark.slow) for size in (64, 192, 256)), 96])
@pytest.mark.parametrize(
    "architecture", [pytest.param(one, marks=() if one == "resnet50" else pytest.mark.slow) for one in ARCHITECTURES]
)
def test_shapes(architecture: str, size: int) -> None:
    """Every architecture gives one logit per question, and a map of a 16th of the side, for every supported size."""
    with torch.inference_mode():
        net = BoneNet(5, architecture).eval()
        reading, maps = net(radiographs(2, size)), net.features(radiographs(2, size))
    cells = size // CELL
    assert [tuple(part.shape) for part in reading] == [(2, 5), (2,), (2, 3), (2, cells, cells), (2,), (2,)]
    assert [m.shape[-1] for m in maps] == [size // 8, size // 16, size // 32]
    assert tuple(m.shape[1] for m in maps) == net.channels
    assert all(part.isfinite().all() for part in reading)


def test_unknown_architecture_is_refused() -> None:
    """A name that is none of the four is answered with the four."""
    with pytest.raises(ValueError, match="alexnet is none of resnet50"):
        BoneNet(5, "alexnet")


def test_radiographs_output_is_its_heatmaps(net: BoneNet) -> None:
    """The fracture logit is the log-sum-exp of the cells that the heatmap shows, and of nothing else."""
    with torch.inference_mode():
        reading = net(radiographs())
    torch.testing.assert_close(reading.fracture, reading.heatmap.flatten(1).logsumexp(1), atol=1e-5, rtol=0)


def test_cells_share_of_the_output_is_their_softmax(net: BoneNet) -> None:
    """How much the radiograph's output hangs on a cell is what the heatmap says of it: the hottest cell counts most."""
    maps = net.features(radiographs())
    _, fracture, _, heatmap = net.heads(maps[1], maps[2])
    heatmap.retain_grad()
    heatmap.flatten(1).logsumexp(1).sum().backward()
    assert heatmap.grad is not None
    torch.testing.assert_close(heatmap.grad.flatten(1), heatmap.detach().flatten(1).softmax(1))
    torch.testing.assert_close(fracture.detach(), heatmap.detach().flatten(1).logsumexp(1))


def test_one_hot_cell_decides_the_radiograph(net: BoneNet) -> None:
    """A small fracture on a large radiograph is not drowned by the sound rest: one sure cell is enough, wherever it is."""
    fine, coarse = torch.zeros(1, 1024, 28, 28), torch.zeros(1, 2048, 14, 14)
    with torch.inference_mode():
        sound = net.heads(fine, coarse)[3]
    hot = sound.clone()
    hot[0, 20, 3] = 9.0
    assert abs(float(hot.flatten(1).logsumexp(1)) - 9.0) < 0.1


def test_new_network_takes_fractures_for_rare() -> None:
    """Before any training a cell is almost surely sound, so that the first steps do not drown in false alarms."""
    torch.manual_seed(0)
    with torch.inference_mode():
        heatmap = BoneNet(5).eval()(radiographs(2, 64)).heatmap
    assert heatmap.sigmoid().median() < 0.1


def test_one_radiograph_does_not_change_anothers_output(net: BoneNet) -> None:
    """In serving a radiograph's output is its own, whatever else lies in its batch."""
    batch = radiographs(4)
    with torch.inference_mode():
        together, alone = net(batch), net(batch[2:3])
    for all_of_them, one in zip(together, alone, strict=True):
        torch.testing.assert_close(all_of_them[2:3], one, atol=1e-4, rtol=1e-4)


def test_ood_score_is_the_mahalanobis_distance_to_the_nearest_centre() -> None:
    """With known axes and spreads the distance is the textbook's, to whichever region's centre is nearest."""
    scope = Scope(100, 2)
    torch.manual_seed(1)
    axes = torch.linalg.qr(torch.randn(100, DIRECTIONS))[0].T
    spread = torch.rand(DIRECTIONS) + 0.5
    centres = torch.stack([torch.zeros(100), torch.full((100,), 30.0)])
    state = {"centres": centres, "axes": axes, "spread": spread, "rest": torch.tensor([2.0])}
    for name, value in state.items():
        scope.get_buffer(name).copy_(value)
    off = torch.randn(3, 100)
    ood_score, _ = scope((centres[[0, 1, 1]] + off)[:, :, None, None])
    along = off @ axes.T
    beside = off.square().sum(1) - along.square().sum(1)
    expected = (((along / spread).square().sum(1) + beside / 4) / (DIRECTIONS + 1)).sqrt()
    torch.testing.assert_close(ood_score, expected, rtol=1e-3, atol=1e-3)
