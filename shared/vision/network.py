"""The network: a torchvision backbone and three 1x1-convolution heads on its last feature map."""

from typing import NamedTuple

import torchvision
from torch import Tensor, nn

# of 8-bit prepared films, measured on the FracAtlas training blocks
PIXEL_MEAN, PIXEL_STD = 0.17, 0.23

SEVERITY_STEPS = 3  # at least mild, at least moderate, at least severe


class Reading(NamedTuple):
    """What the network says of a batch; all logits, before calibration."""

    region: Tensor  # (B, R)
    fracture: Tensor  # (B,), weighted over regions by their posterior
    severity: Tensor  # (B, 3), cumulative: P(severity >= k) = sigmoid, k = mild, moderate, severe
    heatmap: Tensor  # (B, h, w), the fracture head's map; its spatial mean is `fracture`


class BoneNet(nn.Module):
    """ResNet50 with one fracture map per region.

    A head is a 1x1 convolution and its logit the spatial mean of its map. By linearity that equals
    pool-then-linear, and the map is the class activation map (Zhou et al. 2016, arXiv:1512.04150), which for this
    architecture is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) without a backward pass. The fracture logit
    is a mean of the regions' logits weighted by P(region), so its map is the same weighted sum of the regions' maps.
    """

    def __init__(self, regions: int) -> None:
        """regions: how many body regions the heads tell apart."""
        super().__init__()
        trunk = torchvision.models.resnet50()
        stem = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)  # films are gray: one channel
        self.stem = nn.Sequential(stem, trunk.bn1, trunk.relu, trunk.maxpool)
        self.stages = nn.ModuleList([trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4])
        self.region = nn.Conv2d(2048, regions, 1)
        self.fracture = nn.Conv2d(2048, regions, 1)
        self.severity = nn.Conv2d(2048, SEVERITY_STEPS, 1)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """pixels: (B, 1, S, S) uint8 or float 0..255. Returns maps (B, C, S/k, S/k) for k = 4, 8, 16, 32."""
        x = self.stem((pixels.float() / 255.0 - PIXEL_MEAN) / PIXEL_STD)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def heads(self, last: Tensor) -> Reading:
        """last: (B, 2048, h, w), the last feature map."""
        region = self.region(last).mean((2, 3))
        posterior = region.softmax(1).detach()  # the fracture loss must not bend the region's answer
        heatmap = (self.fracture(last) * posterior[:, :, None, None]).sum(1)
        return Reading(region, heatmap.mean((1, 2)), self.severity(last).mean((2, 3)), heatmap)

    def forward(self, pixels: Tensor) -> Reading:
        """pixels: (B, 1, S, S) uint8 or float 0..255, S a multiple of 32."""
        return self.heads(self.features(pixels)[-1])
