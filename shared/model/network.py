"""The network: a torchvision backbone, and heads for region, fracture, extent and place."""

from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch reader knows

from shared.domain.manifest import ARCHITECTURES

# of 8-bit prepared radiographs, measured on the FracAtlas training blocks
PIXEL_MEAN, PIXEL_STD = 0.17, 0.23

EXTENT_STEPS = 3  # at least mild, at least moderate, at least severe
WIDTH = 128  # channels where strides 16 and 32 meet
DIRECTIONS = 64  # of the pooled features, in which the OOD score is measured exactly
CELL = 16  # pixels: the side of a heatmap's cell
RARE = -5.0  # a new network's cell logit: nearly every cell is sound bone or background


class NetworkOutput(NamedTuple):
    """The network's outputs for a batch; all logits, before calibration."""

    region: Tensor  # (B, R)
    fracture: Tensor  # (B,), log-sum-exp of `heatmap`
    extent: Tensor  # (B, 3), cumulative: P(extent >= k) = sigmoid, k = mild, moderate, severe
    heatmap: Tensor  # (B, S/16, S/16), each cell's fracture logit
    ood_score: Tensor  # (B,), distance from the radiographs it learned from, about 1 for those
    hardware: Tensor  # (B,), metal in view


class Heads(nn.Module):
    """From a backbone's maps at strides 16 and 32 to the network's output.

    The coarse map, which knows the context, is added to the fine one, which knows the place (Lin et al. 2017, feature
    pyramids, arXiv:1612.03144). Each cell of the result gets a fracture logit, and the radiograph's logit is their
    log-sum-exp, a smooth maximum (Pinheiro & Collobert 2015, arXiv:1411.6228): a fracture is small, and a mean would
    drown it. So the radiograph's output comes from the heatmap and from nothing else.
    """

    def __init__(self, fine: int, coarse: int, regions: int) -> None:
        """fine, coarse: channels at strides 16 and 32; regions: number of body regions."""
        super().__init__()
        self.region = nn.Linear(coarse, regions)
        self.place = nn.Conv2d(fine, WIDTH, 1)
        self.context = nn.Conv2d(coarse, WIDTH, 1)
        self.mix = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.fracture = nn.Conv2d(WIDTH, 1, 1)
        self.severity = nn.Linear(WIDTH + 1, EXTENT_STEPS)  # its name in the weights of every bundle
        nn.init.constant_(self.fracture.bias, RARE)  # type: ignore[arg-type]

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the logits.

        Args:
            fine: (B, F, 2h, 2w), maps at stride 16.
            coarse: (B, C, h, w), maps at stride 32.

        Returns:
            Region, fracture, extent and heatmap as in `NetworkOutput`.
        """
        context = F.interpolate(
            self.context(coarse), size=(fine.shape[2], fine.shape[3]), mode="bilinear", align_corners=False
        )
        mixed = F.relu(self.mix(F.relu(self.place(fine) + context)))
        heatmap = self.fracture(mixed)[:, 0].float()
        cells = heatmap.flatten(1)
        fracture = cells.logsumexp(1)
        # extent is judged where the fracture is
        seen = (mixed.flatten(2).float() * cells.softmax(1)[:, None]).sum(2)
        extent = self.severity(torch.cat([seen, fracture[:, None]], 1))
        return self.region(coarse.mean((2, 3))), fracture, extent, heatmap


class Scope(nn.Module):
    """Whether a radiograph is of the kind that was learned; fitted after training, on the pooled coarse map.

    The score is the Mahalanobis distance to the nearest region's centre (Lee et al. 2018, arXiv:1807.03888), exact
    along the leading directions and pooled over the others, per direction: radiographs like those learned have about 1.
    """

    def __init__(self, coarse: int, regions: int) -> None:
        """coarse: channels at stride 32. Unfitted, the score grows with the features."""
        super().__init__()
        self.register_buffer("centres", torch.zeros(regions, coarse))
        self.register_buffer("axes", torch.zeros(DIRECTIONS, coarse))
        self.register_buffer("spread", torch.ones(DIRECTIONS))  # standard deviation along each axis
        self.register_buffer("rest", torch.ones(1))  # the same across all other directions together
        self.hardware = nn.Linear(coarse, 1)

    def forward(self, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """coarse: (B, C, h, w). Returns ood_score and hardware as in `NetworkOutput`."""
        pooled = coarse.float().mean((2, 3))
        off = pooled[:, None] - self.get_buffer("centres")  # (B, R, C)
        along = off @ self.get_buffer("axes").T
        beside = (off.square().sum(2) - along.square().sum(2)).clamp(min=0)
        squared = (along / self.get_buffer("spread")).square().sum(2) + beside / self.get_buffer("rest").square()
        return (squared.amin(1) / (DIRECTIONS + 1)).sqrt(), self.hardware(pooled)[:, 0]


class ResNetTrunk(nn.Module):
    """ResNet50 (He et al. 2015, arXiv:1512.03385)."""

    channels = (512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        trunk = torchvision.models.resnet50()
        stem = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)  # radiographs are gray: one channel
        self.stem = nn.Sequential(stem, trunk.bn1, trunk.relu, trunk.maxpool)
        self.stages = nn.ModuleList([trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4])

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, 1, S, S) normalised."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]


class DenseNetTrunk(nn.Module):
    """DenseNet121 or 169 (Huang et al. 2016, arXiv:1608.06993)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        build = {121: torchvision.models.densenet121, 169: torchvision.models.densenet169}[depth]
        layers = build().features
        layers.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.layers = layers
        self.channels = {121: (512, 1024, 1024), 169: (512, 1280, 1664)}[depth]

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, 1, S, S) normalised."""
        maps = []
        for name, layer in self.layers.named_children():
            x = layer(x)
            if name in ("denseblock2", "denseblock3", "norm5"):
                maps.append(x)
        return [*maps[:2], F.relu(maps[2])]


class VGGTrunk(nn.Module):
    """VGG16 with batch norm (Simonyan & Zisserman 2014, arXiv:1409.1556), without its fully connected layers."""

    channels = (512, 512, 512)

    def __init__(self) -> None:
        super().__init__()
        layers = torchvision.models.vgg16_bn().features
        layers[0] = nn.Conv2d(1, 64, kernel_size=3, padding=1)
        ends = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]  # strides 2, 4, 8, 16, 32
        self.stages = nn.ModuleList(
            [layers[: ends[3]], layers[ends[3] : ends[4]], layers[ends[4] :]]  # up to strides 8, 16, 32
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, 1, S, S) normalised."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _trunk(architecture: str) -> ResNetTrunk | DenseNetTrunk | VGGTrunk:
    if architecture == "resnet50":
        return ResNetTrunk()
    if architecture.startswith("densenet"):
        return DenseNetTrunk(int(architecture.removeprefix("densenet")))
    return VGGTrunk()


class BoneNet(nn.Module):
    """A backbone with `Heads`."""

    def __init__(self, regions: int, architecture: str = "resnet50") -> None:
        """regions: number of body regions. Raises ValueError for an unknown architecture."""
        if architecture not in ARCHITECTURES:
            raise ValueError(f"{architecture} is none of {', '.join(ARCHITECTURES)}")
        super().__init__()
        self.trunk = _trunk(architecture)
        self.channels: tuple[int, int, int] = self.trunk.channels
        self.heads = Heads(self.channels[1], self.channels[2], regions)
        self.scope = Scope(self.channels[2], regions)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """pixels: (B, 1, S, S) uint8 or float 0..255. Returns maps (B, C, S/k, S/k) for k = 8, 16, 32."""
        maps: list[Tensor] = self.trunk((pixels.float() / 255.0 - PIXEL_MEAN) / PIXEL_STD)
        return maps

    def forward(self, pixels: Tensor) -> NetworkOutput:
        """pixels: (B, 1, S, S) uint8 or float 0..255, S a multiple of 32."""
        _, fine, coarse = self.features(pixels)
        return NetworkOutput(*self.heads(fine, coarse), *self.scope(coarse))
