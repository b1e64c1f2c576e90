"""The network's algebra: a logit, its map, and Grad-CAM are one thing."""

import pytest
import torch
from torch import Tensor

from shared.vision.network import BoneNet


@pytest.fixture(scope="module")
def net() -> BoneNet:
    torch.manual_seed(3)
    return BoneNet(5).eval()


def films(count: int = 2, size: int = 96) -> Tensor:
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=torch.manual_seed(size))


@pytest.mark.parametrize("size", [64, 96, 128, 192, 256])
def test_shapes(net: BoneNet, size: int) -> None:
    """For every supported size a film gets one logit per question and a map of a 32nd of its side."""
    with torch.inference_mode():
        reading = net(films(2, size))
        strides = [m.shape[-1] for m in net.features(films(2, size))]
    assert [tuple(part.shape) for part in reading] == [(2, 5), (2,), (2, 3), (2, size // 32, size // 32)]
    assert strides == [size // 4, size // 8, size // 16, size // 32]


def test_logit_is_the_mean_of_its_map(net: BoneNet) -> None:
    """What the heatmap shows adds up to exactly what the fracture probability says."""
    with torch.inference_mode():
        reading = net(films())
    torch.testing.assert_close(reading.fracture, reading.heatmap.mean((1, 2)), atol=1e-5, rtol=0)


def test_map_then_mean_is_pool_then_linear(net: BoneNet) -> None:
    """The heads are the usual ResNet heads, average pooling and a linear layer, in another order."""
    with torch.inference_mode():
        last = net.features(films())[-1]
        pooled, reading = last.mean((2, 3)), net.heads(last)
        region = torch.nn.functional.linear(pooled, net.region.weight[:, :, 0, 0], net.region.bias)
        per_region = torch.nn.functional.linear(pooled, net.fracture.weight[:, :, 0, 0], net.fracture.bias)
        severity = torch.nn.functional.linear(pooled, net.severity.weight[:, :, 0, 0], net.severity.bias)
    torch.testing.assert_close(reading.region, region, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reading.severity, severity, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reading.fracture, (per_region * region.softmax(1)).sum(1), atol=1e-5, rtol=1e-5)


def test_map_is_grad_cam(net: BoneNet) -> None:
    """The map without its bias is Grad-CAM of the fracture logit, up to the number of cells.

    The region's posterior is held fixed, as the network itself holds it.
    """
    last = net.features(films())[-1].detach().requires_grad_()
    reading = net.heads(last)
    (gradient,) = torch.autograd.grad(reading.fracture.sum(), last)
    weights = gradient.mean((2, 3), keepdim=True)  # Selvaraju et al. 2017, equation 1
    grad_cam = (weights * last).sum(1).detach()
    cells = last.shape[2] * last.shape[3]
    bias = (reading.region.softmax(1) * net.fracture.bias).sum(1).detach()
    torch.testing.assert_close(reading.heatmap.detach() - bias[:, None, None], grad_cam * cells, atol=1e-4, rtol=1e-4)
    assert grad_cam.std() > 0


def test_posterior_chooses_the_regions_map(net: BoneNet) -> None:
    """Sure of a region, the network answers with that region's own fracture map."""
    last = net.features(films())[-1].detach()
    sure = BoneNet(5).eval()
    sure.load_state_dict(net.state_dict())
    with torch.no_grad():
        sure.region.weight.zero_()
        for chosen in range(5):
            sure.region.bias.copy_(torch.full((5,), -50.0).index_fill(0, torch.tensor([chosen]), 50.0))
            own = sure.fracture(last)[:, chosen]
            torch.testing.assert_close(sure.heads(last).heatmap, own, atol=1e-5, rtol=1e-5)


def test_fracture_loss_does_not_bend_the_region(net: BoneNet) -> None:
    """No gradient of the fracture logit reaches the region head, which answers another question."""
    reading = net(films())
    reading.fracture.sum().backward()  # type: ignore[no-untyped-call]
    assert net.region.weight.grad is None
    assert net.fracture.weight.grad is not None
    net.zero_grad()


def test_one_film_does_not_change_anothers_answer(net: BoneNet) -> None:
    """In serving a film's answer is its own, whatever else lies in its batch."""
    batch = films(4)
    with torch.inference_mode():
        together, alone = net(batch), net(batch[2:3])
    torch.testing.assert_close(together.fracture[2:3], alone.fracture, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.heatmap[2:3], alone.heatmap, atol=1e-4, rtol=1e-4)
