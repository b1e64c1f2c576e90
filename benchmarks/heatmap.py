"""Measures the cost of the heatmap: the network with its map, against the same trunk with heads that only pool."""

import torch
from torch import Tensor, nn

from benchmarks.measure import Arm, Case, Goal, Result, Say, interleaved, time_of
from shared.model.bundle import load_bundle, pick_device
from shared.model.engines import pick_engine
from shared.model.network import EXTENT_STEPS, BoneNet
from shared.model.predictor import displayed_heatmaps
from shared.settings import Settings, cpu_count

GOAL = Goal("<=", 0.03)
BATCH = 8


class PooledHeads(nn.Module):
    """Heads for region, fracture and extent on the pooled coarse map: what a network without a map needs."""

    def __init__(self, coarse: int, regions: int) -> None:
        """coarse: channels at stride 32; regions: how many body regions are told apart."""
        super().__init__()
        self.region, self.fracture = nn.Linear(coarse, regions), nn.Linear(coarse, 1)
        self.extent = nn.Linear(coarse, EXTENT_STEPS)

    def forward(self, _fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read pooled features, as `Heads` does, with one number in the heatmap's place.

        Args:
            coarse: (B, C, h, w), the map at stride 32.

        Returns:
            Logits of region (B, R), fracture (B,), severity (B, 3), and (B, 1, 1).
        """
        pooled = coarse.float().mean((2, 3))
        return self.region(pooled), self.fracture(pooled)[:, 0], self.extent(pooled), pooled[:, :1, None]


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Run both networks by the engine that this machine's worker takes, the map also made ready to be shown.

    Args:
        quick: 2 squares at a time instead of 8, and a quarter of the repeats.
        say: is called with a line of progress.

    Returns:
        What the map adds, as a share of the time without it.
    """
    network, manifest = load_bundle(Settings().bundle_path.read_bytes())
    size, coarse = manifest.input_size, network.channels[2]
    mapless = BoneNet(len(manifest.regions), manifest.architecture)
    mapless.load_state_dict(network.state_dict())
    mapless.heads = PooledHeads(coarse, len(manifest.regions))  # type: ignore[assignment]
    batch = 2 if quick else BATCH
    squares = torch.randint(0, 256, (batch, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = squares.numpy()
    say("compiling both networks")
    whole, bare = pick_engine(network, size, Settings().cache), pick_engine(mapless.eval(), size)
    arms: dict[str, Arm] = {
        "map": time_of(lambda: displayed_heatmaps(whole(images).heatmap)),
        "no map": time_of(lambda: bare(images)),
    }
    say(f"{batch} squares of {size} x {size} at a time")
    samples = interleaved(arms, 11 if quick else 41, warmups=2)
    plain, _ = load_bundle(Settings().bundle_path.read_bytes())
    backward = interleaved(
        {"forward": time_of(_Forward(plain, squares)), "Grad-CAM": time_of(_GradCam(plain, squares))}, 1 if quick else 7
    )
    again = Case.of("Grad-CAM", "s", backward["Grad-CAM"], backward["forward"], _share)
    return Result(
        "heatmap",
        "forward time with the fracture map, against the same trunk with pooled heads",
        GOAL,
        (Case.of(f"batch of {batch}, {size} x {size}", "s", samples["map"], samples["no map"], _share),),
        {
            "a backward Grad-CAM, share of its forward time (eager torch, float32)": round(again.ratio, 2),
            "its spread": [round(end, 2) for end in again.spread],
            "cores": cpu_count(),
        },
        quick,
    )


def _share(subject: float, baseline: float) -> float:
    """Extra time of the subject, as a share of the baseline."""
    return subject / baseline - 1


class _Forward:
    """Runs the network forward."""

    def __init__(self, network: BoneNet, squares: Tensor) -> None:
        self.device = pick_device()
        self.network = network.eval().to(self.device).to(memory_format=torch.channels_last)
        self.squares = squares[:, None].to(self.device)

    def __call__(self) -> None:
        with torch.inference_mode():
            self.network(self.squares)
        self._wait()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class _GradCam(_Forward):
    """Runs it forward, and backward for Grad-CAM: the fracture logit's gradient by the last map (Selvaraju 2016)."""

    def __call__(self) -> None:
        _, fine, coarse = self.network.features(self.squares)
        coarse.retain_grad()
        fracture = self.network.heads(fine, coarse)[1]
        self.network.zero_grad()
        fracture.sum().backward()
        assert coarse.grad is not None
        weights = coarse.grad.mean((2, 3), keepdim=True)
        torch.relu((weights * coarse).sum(1)).detach().cpu()
        self._wait()
