"""The losses from labels."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch reader knows

from shared.vision.network import SEVERITY_STEPS, Reading
from training.datasets import MISSING
from training.views import Batch


def label_losses(reading: Reading, batch: Batch) -> dict[str, Tensor]:
    """Each a scalar; what is not known takes no part, and every film counts by its weight."""
    region = F.cross_entropy(reading.region, batch.region.clamp(min=0), reduction="none")
    film = F.binary_cross_entropy_with_logits(reading.fracture, batch.fractured.clamp(min=0), reduction="none")
    steps = (batch.severity[:, None] > torch.arange(SEVERITY_STEPS, device=batch.severity.device)).float()
    severity = F.binary_cross_entropy_with_logits(reading.severity, steps, reduction="none").mean(1)
    return {
        "region": _mean(region, batch.weight * (batch.region != MISSING)) * 0.5,
        "film": _mean(film, batch.weight * (batch.fractured != MISSING)),
        "severity": _mean(severity, batch.weight * (batch.severity != MISSING)) * 0.3,
        "where": where_loss(reading.heatmap, batch),
    }


def where_loss(heatmap: Tensor, batch: Batch) -> Tensor:
    """Quality focal loss of the cells (Li et al. 2020, arXiv:2006.04388), a share of the fractured cells each.

    heatmap: (B, h, w) logits. Most cells are easily sound; the focal weight keeps them from drowning the others.
    """
    place = batch.place
    chance = heatmap.sigmoid()
    loss = F.binary_cross_entropy_with_logits(heatmap, place, reduction="none") * (place - chance).detach().abs() ** 2
    weight = (batch.weight * batch.placed)[:, None, None]
    return (loss * weight).sum() / (1 + (place * weight).sum())


def _mean(loss: Tensor, weight: Tensor) -> Tensor:
    return (loss * weight).sum() / weight.sum().clamp(min=1e-6)
