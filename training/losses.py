"""Losses computed from labels."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch reader knows

from shared.model.network import EXTENT_STEPS, NetworkOutput
from training.datasets import MISSING
from training.views import Batch


def label_losses(output: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
    """Compare an output with the labels; what is not known takes no part, and every radiograph counts by its weight.

    Args:
        output: of the network, for B radiographs.
        batch: labels and weights of the same radiographs.

    Returns:
        A scalar for each of region, radiograph, extent and where.
    """
    region = F.cross_entropy(output.region, batch.region.clamp(min=0), reduction="none")
    radiograph = F.binary_cross_entropy_with_logits(output.fracture, batch.fractured.clamp(min=0), reduction="none")
    steps = (batch.extent[:, None] > torch.arange(EXTENT_STEPS, device=batch.extent.device)).float()
    extent = F.binary_cross_entropy_with_logits(output.extent, steps, reduction="none").mean(1)
    return {
        "region": _weighted_mean(region, batch.weight * (batch.region != MISSING)) * 0.5,
        "radiograph": _weighted_mean(radiograph, batch.weight * (batch.fractured != MISSING)),
        "extent": _weighted_mean(extent, batch.weight * (batch.extent != MISSING)) * 0.3,
        "where": localization_loss(output.heatmap, batch),
    }


def localization_loss(heatmap: Tensor, batch: Batch) -> Tensor:
    """Quality focal loss of the cells (Li et al. 2020, arXiv:2006.04388), divided by the fractured cells.

    Most cells are easily sound; the focal weight keeps them from drowning the others.

    Args:
        heatmap: (B, h, w) logits.
        batch: cells and weights of the same radiographs.

    Returns:
        A scalar.
    """
    place = batch.place
    chance = heatmap.sigmoid()
    loss = F.binary_cross_entropy_with_logits(heatmap, place, reduction="none") * (place - chance).detach().abs() ** 2
    weight = (batch.weight * batch.placed)[:, None, None]
    return (loss * weight).sum() / (1 + (place * weight).sum())


def _weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    return (loss * weight).sum() / weight.sum().clamp(min=1e-6)
