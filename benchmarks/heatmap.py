"""What the heatmap costs: the network with its map, against the same trunk with heads that only pool."""

import torch
from torch import Tensor, nn

from benchmarks.measure import Arm, Case, Goal, Result, Say, interleaved, timed
from shared.settings import Settings, cpu_count
from shared.vision.bundle import load_bundle, pick_device
from shared.vision.engines import pick_engine
from shared.vision.network import SEVERITY_STEPS, BoneNet
from shared.vision.reader import shown

GOAL = Goal("<=", 0.03)
BATCH = 8


class PooledHeads(nn.Module):
    """Region, fracture and extent from the pooled coarse map: all that a network needs which need not say where."""

    def __init__(self, coarse: int, regions: int) -> None:
        """coarse: channels at stride 32; regions: how many body regions are told apart."""
        super().__init__()
        self.region, self.fracture = nn.Linear(coarse, regions), nn.Linear(coarse, 1)
        self.severity = nn.Linear(coarse, SEVERITY_STEPS)

    def forward(self, _fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """coarse: (B, C, h, w). As `Heads`, with one number in the heatmap's place."""
        pooled = coarse.float().mean((2, 3))
        return self.region(pooled), self.fracture(pooled)[:, 0], self.severity(pooled), pooled[:, :1, None]


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Both networks run by the engine that this machine's worker takes, the map also made ready to be shown."""
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
        "map": timed(lambda: shown(whole(images).heatmap)),
        "no map": timed(lambda: bare(images)),
    }
    say(f"{batch} squares of {size} x {size} at a time")
    samples = interleaved(arms, 11 if quick else 41, warmups=2)
    plain, _ = load_bundle(Settings().bundle_path.read_bytes())
    backward = interleaved(
        {"forward": timed(_Forward(plain, squares)), "Grad-CAM": timed(_GradCam(plain, squares))}, 1 if quick else 7
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
    """What the subject takes more than the baseline, as a share of the baseline."""
    return subject / baseline - 1


class _Forward:
    """The network's answer, and nothing else."""

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
    """The same with the usual Grad-CAM: the fracture logit's gradient by the last map (Selvaraju 2016)."""

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
