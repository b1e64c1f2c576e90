"""An ImageNet MobileNetV2 that learns the films quickly, then teaches the ResNet50 its features.

There is no ImageNet ResNet50 with open terms for this, and a ResNet50 from scratch on 2,800 films learns shortcuts.
The weights are read from a folder with arch.json (the graph) and mobilenet_v2_folded_fp16.npz (batch norm folded in,
TensorFlow's asymmetric SAME padding). They are not part of any bundle.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch reader knows
from tqdm import tqdm

from shared.errors import BadDataset
from shared.vision.network import SEVERITY_STEPS, Reading
from training.datasets import MISSING, REGIONS, Batch, FilmCache

STRIDE8, STRIDE16, STRIDE32 = 130, 156, 171  # nodes of arch.json
CHANNELS = (32, 96, 1280)


class Teacher(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) with the heads of BoneNet."""

    def __init__(self, folder: Path) -> None:
        """folder: holds arch.json and mobilenet_v2_folded_fp16.npz. Raises BadDataset if one is missing."""
        super().__init__()
        try:
            graph = json.loads((folder / "arch.json").read_text())
            weights = np.load(folder / "mobilenet_v2_folded_fp16.npz")
        except OSError as wrong:
            raise BadDataset(f"{folder} is no teacher folder: {wrong.strerror} {wrong.filename}") from wrong
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
        self.region = nn.Conv2d(CHANNELS[-1], len(REGIONS), 1)
        self.fracture = nn.Conv2d(CHANNELS[-1], len(REGIONS), 1)
        self.severity = nn.Conv2d(CHANNELS[-1], SEVERITY_STEPS, 1)

    def run(self, values: dict[int, Tensor], last: int) -> dict[int, Tensor]:
        """Carry the graph on from the node values given, up to node `last`; returns all values."""
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
        """pixels: (B, 1, T, T) uint8. Returns maps of 32, 96, 1280 channels at strides 8, 16, 32."""
        values = self.run({0: (pixels.float() / 127.5 - 1).expand(-1, 3, -1, -1)}, STRIDE32)
        return [values[STRIDE8], values[STRIDE16], values[STRIDE32]]

    def heads(self, last: Tensor) -> Reading:
        """last: (B, 1280, h, w)."""
        region = self.region(last).mean((2, 3))
        heatmap = (self.fracture(last) * region.softmax(1).detach()[:, :, None, None]).sum(1)
        return Reading(region, heatmap.mean((1, 2)), self.severity(last).mean((2, 3)), heatmap)


class CellScale(nn.Module):
    """Turns map values into cell logits: the map's mean must be the film's logit, a cell's scale is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def forward(self, heatmap: Tensor) -> Tensor:
        """heatmap: (B, h, w). Returns the same shape."""
        return heatmap * self.gain.abs() + self.bias


def label_loss(reading: Reading, cells: CellScale, batch: Batch, film_weight: float = 1.0) -> dict[str, Tensor]:
    """The losses from labels, each a scalar; missing labels take no part."""
    known = batch.region != MISSING
    region = F.cross_entropy(reading.region[known], batch.region[known]) if known.any() else reading.region.sum() * 0
    graded = batch.severity != MISSING
    steps = (batch.severity[graded, None] > torch.arange(SEVERITY_STEPS, device=graded.device)).float()
    severity = F.binary_cross_entropy_with_logits(reading.severity[graded], steps) if graded.any() else region * 0
    place = batch.place
    if place.shape[1:] != reading.heatmap.shape[1:]:
        place = F.adaptive_max_pool2d(place[:, None], reading.heatmap.shape[1:])[:, 0]
    # a fractured film without an outline says nothing of where
    said = (batch.fractured == 0) | (place.amax((1, 2)) > 0)
    weight = 1.0 + 4.0 * place[said]
    where = F.binary_cross_entropy_with_logits(cells(reading.heatmap)[said], place[said], weight=weight)
    film = F.binary_cross_entropy_with_logits(reading.fracture, batch.fractured) * film_weight
    return {"region": region, "film": film, "severity": severity * 0.5, "where": where * 2.0}


def teach(
    teacher: Teacher, cache: FilmCache, size: int, views: int, epochs: int, rate: float, dice: np.random.Generator
) -> None:
    """Fine-tune the part of the teacher behind stride 16, in place.

    The front stays as ImageNet left it, so its maps are computed once for `views` augmented views of every film.
    size: pixels; epochs: passes over all views.
    """
    teacher.eval()
    device = teacher.region.weight.device
    stored: list[Tensor] = []
    labels: list[Batch] = []
    everyone = list(range(len(cache.films)))
    with torch.no_grad():
        for _ in range(views):
            order = dice.permutation(everyone)
            for start in tqdm(range(0, len(order), 32), desc="teacher: features", unit="batch"):
                batch = cache.batch([int(i) for i in order[start : start + 32]], size, size, dice).on(device)
                front = teacher.run({0: (batch.pixels.float() / 127.5 - 1).expand(-1, 3, -1, -1)}, STRIDE16)
                stored.append(front[STRIDE16].half())
                labels.append(batch)
    cells = CellScale().to(device)
    late = [c for name, c in teacher.convs.items() if _position(teacher, name) > STRIDE16]
    heads = [teacher.region, teacher.fracture, teacher.severity, cells]
    tail = [p for m in late for p in m.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": tail, "lr": rate * 0.1}, {"params": [p for m in heads for p in m.parameters()], "lr": rate}],
        weight_decay=0.02,
    )
    total = epochs * len(stored)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate * 0.1, rate], total_steps=total, pct_start=0.1)
    bar = tqdm(total=total, desc="teacher: tail", unit="step")
    for _ in range(epochs):
        for index in dice.permutation(len(stored)):
            values = teacher.run({STRIDE16: stored[index].float()}, STRIDE32)
            losses = label_loss(teacher.heads(values[STRIDE32]), cells, labels[index])
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix({k: f"{v.item():.3f}" for k, v in losses.items()}, refresh=False)
    bar.close()


def _position(teacher: Teacher, name: str) -> int:
    return next(int(node["dst"]) for node in teacher.graph if node.get("name") == name)
