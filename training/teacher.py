"""An ImageNet MobileNetV2 that learns the radiographs quickly, then teaches the ResNet50 its features.

There is no ImageNet ResNet50 with open terms for this, and a ResNet50 from scratch on 2,800 radiographs learns
shortcuts. The weights are read from a folder with arch.json (the graph) and mobilenet_v2_folded_fp16.npz (batch norm
folded in, TensorFlow's asymmetric SAME padding). They are not part of any bundle.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch reader knows

from shared.errors import BadDataset
from shared.model.network import Heads, NetworkOutput
from training.datasets import REGIONS

STRIDE8, STRIDE16, STRIDE32 = 130, 156, 171  # nodes of arch.json
CHANNELS = (32, 96, 1280)


class Teacher(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) with the network's heads."""

    def __init__(self, folder: Path) -> None:
        """Load arch.json and mobilenet_v2_folded_fp16.npz of a folder; raises BadDataset if one is missing."""
        super().__init__()
        try:
            graph = json.loads((folder / "arch.json").read_text())
            weights = np.load(folder / "mobilenet_v2_folded_fp16.npz")
        except OSError as error:
            raise BadDataset(
                f"{folder} is no teacher folder: {error.strerror} {error.filename}; name one that holds both files"
            ) from error
        self.graph = [node for node in graph if node["dst"] <= STRIDE32]
        self.convs = nn.ModuleDict()
        for node in self.graph:
            if node["op"] == "conv":
                weight = torch.from_numpy(weights[node["name"] + ".weight"].astype(np.float32))
                out, each, k, _ = weight.shape
                conv = nn.Conv2d(each * node["groups"], out, k, node["stride"], groups=node["groups"])
                bias = torch.from_numpy(weights[node["name"] + ".bias"].astype(np.float32))
                conv.load_state_dict({"weight": weight, "bias": bias})
                self.convs[node["name"]] = conv
        self.heads = Heads(CHANNELS[1], CHANNELS[2], len(REGIONS))

    def run(self, values: dict[int, Tensor], last: int) -> dict[int, Tensor]:
        """Compute further nodes of the graph from the values given.

        Args:
            values: of nodes, by number; the results are added in place.
            last: number of the last node to compute.

        Returns:
            All values.
        """
        known = max(values)
        for node in self.graph:
            if known < node["dst"] <= last:
                if node["op"] == "add":
                    values[node["dst"]] = values[node["a"]] + values[node["b"]]
                    continue
                x = values[node["src"]]
                if node["k"] == 3:  # SAME: at stride 2 the odd pixel of padding goes right and below
                    x = F.pad(x, (0, 1, 0, 1) if node["stride"] == 2 else (1, 1, 1, 1))
                x = self.convs[node["name"]](x)
                values[node["dst"]] = x.clamp(0, 6) if node["relu6"] else x
        return values

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Compute maps of 32, 96, 1280 channels at strides 8, 16, 32 of pixels, (B, 1, S, S) uint8."""
        inputs = (pixels.float() / 127.5 - 1).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():  # the front stays as ImageNet left it, which saves most of the time
            values = self.run({0: inputs}, STRIDE8)
        values = self.run({STRIDE8: values[STRIDE8]}, STRIDE32)
        return [values[STRIDE8], values[STRIDE16], values[STRIDE32]]

    def forward(self, pixels: Tensor) -> NetworkOutput:
        """Read pixels, (B, 1, S, S) uint8. A teacher has no scope."""
        _, fine, coarse = self.features(pixels)
        region, fracture, extent, heatmap = self.heads(fine, coarse)
        unknown = coarse.new_zeros(len(coarse))
        return NetworkOutput(region, fracture, extent, heatmap, unknown, unknown)
