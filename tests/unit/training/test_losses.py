"""What labels cost, and what is not known costs nothing."""

import pytest
import torch
from torch import Tensor

from shared.model.network import NetworkOutput
from training.datasets import MISSING
from training.losses import label_losses, localization_loss
from training.views import Batch


def batch(**changes: Tensor) -> Batch:
    parts = {
        "pixels": torch.zeros(2, 1, 64, 64, dtype=torch.uint8),
        "region": torch.tensor([1, 3]),
        "fractured": torch.tensor([0.0, 1.0]),
        "extent": torch.tensor([0, 2]),
        "place": torch.zeros(2, 4, 4),
        "placed": torch.tensor([True, True]),
        "weight": torch.ones(2),
    }
    return Batch(**(parts | changes))


def output(seed: int = 0) -> NetworkOutput:
    torch.manual_seed(seed)
    shapes = [(2, 5), (2,), (2, 3), (2, 4, 4), (2,), (2,)]
    return NetworkOutput(*(torch.randn(shape, requires_grad=True) for shape in shapes))


@pytest.mark.parametrize(
    ("unknown", "silent"),
    [
        ({"region": torch.tensor([MISSING, MISSING])}, "region"),
        ({"fractured": torch.tensor([-1.0, -1.0])}, "radiograph"),
        ({"extent": torch.tensor([MISSING, MISSING])}, "extent"),
        ({"placed": torch.tensor([False, False])}, "where"),
    ],
)
def test_missing_labels_teach_nothing(unknown: dict[str, Tensor], silent: str) -> None:
    """A label that a data set lacks has no loss and no gradient, and the others keep theirs."""
    told, known = label_losses(output(), batch(**unknown)), label_losses(output(), batch())
    assert told[silent].item() == 0
    for name in told.keys() - {silent}:
        assert told[name].item() == pytest.approx(known[name].item())


@pytest.mark.parametrize("name", ["region", "radiograph", "extent", "where"])
def test_radiograph_of_no_weight_changes_nothing(name: str) -> None:
    """Of two radiographs the one that weighs next to nothing leaves the loss to the other."""
    place = torch.zeros(2, 4, 4)
    place[1, 2, 2] = 1
    light = label_losses(output(), batch(place=place, weight=torch.tensor([1e-9, 1.0])))[name]
    other = batch(place=place, weight=torch.tensor([1e-9, 1.0]), region=torch.tensor([4, 3]), fractured=torch.ones(2))
    assert label_losses(output(), other)[name].item() == pytest.approx(light.item(), rel=1e-5)


def test_right_outputs_cost_nearly_nothing() -> None:
    """Sure and right is nearly free; sure and wrong is dear."""
    place = torch.zeros(2, 4, 4)
    place[1, 1, 2] = 1
    sure = NetworkOutput(
        torch.nn.functional.one_hot(torch.tensor([1, 3]), 5) * 20.0,
        torch.tensor([-20.0, 20.0]),
        torch.tensor([[-20.0] * 3, [20.0, 20.0, -20.0]]),
        (place * 2 - 1) * 20,
        torch.zeros(2),
        torch.zeros(2),
    )
    right, wrong = (
        batch(place=place),
        batch(place=place.flip(0), region=torch.tensor([0, 0]), fractured=torch.tensor([1.0, 0.0])),
    )
    assert sum(loss.item() for loss in label_losses(sure, right).values()) < 1e-3
    for name in ("region", "radiograph", "where"):
        assert label_losses(sure, wrong)[name].item() > 5


def test_easy_sound_cells_do_not_drown_the_fractured_one() -> None:
    """A thousand cells that are already rightly cold weigh less than one fractured cell that is missed."""
    heatmap, place = torch.full((1, 32, 32), -5.0), torch.zeros(1, 32, 32)
    place[0, 3, 3] = 1
    told = batch(place=place, placed=torch.tensor([True]), weight=torch.ones(1))
    heatmap.requires_grad_()
    localization_loss(heatmap, told).backward()  # type: ignore[no-untyped-call]
    assert heatmap.grad is not None
    missed = heatmap.grad[0, 3, 3].abs()
    assert missed > 10 * (heatmap.grad.abs().sum() - missed)
