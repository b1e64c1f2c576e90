"""`osteon train`: teacher, distillation, labels; resumable, budgeted in minutes.

    osteon train --data ../fracatlas --teacher ../mobilenet_v2_imagenet --out runs/first --minutes 90

1. teacher  a MobileNetV2 from ImageNet is fine-tuned on the films (skipped without --teacher);
2. distil   the ResNet50 imitates the teacher's features at strides 8, 16, 32; no label is used;
3. labels   region, fracture, severity and place, with the teacher still pulling, at the final size.
Stopped at any moment, the same command goes on from the last checkpoint (by default one a minute).
"""

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch reader knows
from tqdm import tqdm

from shared.errors import BadDataset
from shared.vision.bundle import pick_device
from shared.vision.network import BoneNet
from training.datasets import REGIONS, Batch, Film, FilmCache, fracatlas, split
from training.teacher import CHANNELS, CellScale, Teacher, label_loss, teach

STUDENT_CHANNELS = (512, 1024, 2048)
TEACHER_LOOKS_CLOSER = 1.5  # times the student's size


@dataclass(frozen=True)
class Recipe:
    """How a run goes; stored with its checkpoint and, in the end, with its bundle."""

    data: Path
    teacher: Path | None
    minutes: float = 90.0
    distil_share: float = 0.5  # of the minutes
    distil_size: int = 128  # pixels
    label_size: int = 192  # pixels, also the bundle's input size
    batch: int = 24
    distil_rate: float = 1e-3
    label_rate: float = 2e-4  # backbone; the heads learn five times as fast
    positives: float = 0.35
    seed: int = 7
    teacher_size: int = 320
    teacher_views: int = 2
    teacher_epochs: int = 4
    checkpoint_s: float = 60.0  # between checkpoints: what a kill costs at most


class Student(nn.Module):
    """The network with what only training needs: adapters to the teacher's channels, and the cell scale."""

    def __init__(self) -> None:
        super().__init__()
        self.net = BoneNet(len(REGIONS))
        self.adapters = nn.ModuleList(
            nn.Conv2d(own, taught, 1) for own, taught in zip(STUDENT_CHANNELS, CHANNELS, strict=True)
        )
        self.cells = CellScale()

    def imitation(self, maps: list[Tensor], taught: list[Tensor]) -> Tensor:
        """Mean squared distance to the teacher's features, each channel in units of its own spread."""
        loss = maps[0].new_zeros(())
        for adapter, own, finer in zip(self.adapters, maps[1:], taught, strict=True):
            goal = F.adaptive_avg_pool2d(finer, (own.shape[2], own.shape[3]))
            spread = goal.std((0, 2, 3), keepdim=True) + 0.05
            mean = goal.mean((0, 2, 3), keepdim=True)
            loss = loss + F.smooth_l1_loss(adapter(own), (goal - mean) / spread)
            self._remember(goal.shape[1], mean, spread)
        return loss

    def _remember(self, channels: int, mean: Tensor, spread: Tensor) -> None:
        if channels == CHANNELS[-1]:  # the head transplant needs the units of the last map
            old = getattr(self, "units", (mean, spread))
            self.units = (0.98 * old[0] + 0.02 * mean, 0.98 * old[1] + 0.02 * spread)

    @torch.no_grad()
    def transplant(self, teacher: Teacher) -> None:
        """Start the heads as the teacher's heads behind the last adapter: two linear maps are one."""
        mean, spread = self.units
        adapter = self.adapters[-1]
        assert isinstance(adapter, nn.Conv2d)
        assert adapter.bias is not None
        into, shift = adapter.weight[:, :, 0, 0], adapter.bias  # (1280, 2048), (1280,)
        for name in ("region", "fracture", "severity"):
            head, own = getattr(teacher, name), getattr(self.net, name)
            weight = head.weight[:, :, 0, 0]  # (K, 1280)
            scaled = weight * spread.flatten()
            own.weight.copy_((scaled @ into)[:, :, None, None])
            own.bias.copy_(head.bias + scaled @ shift + weight @ mean.flatten())


def train(recipe: Recipe, out: Path) -> Path:
    """Train by `recipe`, or go on with the run in `out`. Returns the path of the trained weights.

    Raises BadDataset if the data or the teacher cannot be read, or `out` holds a run of another seed.
    """
    out.mkdir(parents=True, exist_ok=True)
    _refuse_other_split(recipe, out)
    torch.manual_seed(recipe.seed)
    films, _ = split(fracatlas(recipe.data), recipe.seed)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), default=str, indent=1))
    cache = FilmCache(films)
    teacher = _teacher(recipe, cache, out) if recipe.teacher else None
    run = Run(recipe, out, cache, teacher)
    if teacher:
        run.stage("distil", recipe.minutes * recipe.distil_share)
    run.stage("labels", recipe.minutes * (1 - recipe.distil_share if teacher else 1))
    weights = out / "weights.pt"
    torch.save(run.average.net.cpu().state_dict(), weights)
    return weights


def _refuse_other_split(recipe: Recipe, out: Path) -> None:
    """Going on with another seed would measure the network on films that it was trained on."""
    if (out / "recipe.json").exists() and any((out / name).exists() for name in ("checkpoint.pt", "teacher.pt")):
        seed = json.loads((out / "recipe.json").read_text())["seed"]
        if seed != recipe.seed:
            raise BadDataset(f"{out} holds a run with seed {seed}: go on with --seed {seed}, or choose another --out")


def _teacher(recipe: Recipe, cache: FilmCache, out: Path) -> Teacher:
    assert recipe.teacher is not None
    teacher, kept = Teacher(recipe.teacher).to(pick_device()), out / "teacher.pt"
    if kept.exists():
        teacher.load_state_dict(torch.load(kept, weights_only=True, map_location=pick_device()))
    else:
        dice = np.random.default_rng(recipe.seed)
        teach(teacher, cache, recipe.teacher_size, recipe.teacher_views, recipe.teacher_epochs, 2e-3, dice)
        torch.save(teacher.state_dict(), kept)
    return teacher.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)


class Run:
    """The state of one training run: student, its moving average, and how far each stage has come."""

    def __init__(self, recipe: Recipe, out: Path, cache: FilmCache, teacher: Teacher | None) -> None:
        self.recipe, self.cache, self.teacher, self.file = recipe, cache, teacher, out / "checkpoint.pt"
        self.device = pick_device()
        self.student = Student().to(self.device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.student)
        self.spent: dict[str, float] = {}  # seconds per stage
        self.steps = 0
        self.saved: dict[str, object] = {}
        if self.file.exists():
            self.saved = torch.load(self.file, weights_only=True, map_location=self.device)
            self.student.load_state_dict(self.saved["student"])  # type: ignore[arg-type]
            self.average.load_state_dict(self.saved["average"])  # type: ignore[arg-type]
            self.spent, self.steps = self.saved["spent"], self.saved["steps"]  # type: ignore[assignment]
            if self.saved["units"] is not None:  # None: begun without a teacher
                self.student.units = self.saved["units"]  # type: ignore[assignment]

    def stage(self, name: str, minutes: float) -> None:
        """Run one stage until its minutes are used up, with a cosine rate over them."""
        budget, spent = minutes * 60, self.spent.get(name, 0.0)
        if spent >= budget:
            return
        if name == "labels" and self.teacher and not spent:
            self.student.transplant(self.teacher)
            self.average = copy.deepcopy(self.student)
        optimizer = self._optimizer(name)
        if self.saved.get("stage") == name:
            optimizer.load_state_dict(self.saved["optimizer"])  # type: ignore[arg-type]
        peaks = [group["lr"] if not spent else group["peak"] for group in optimizer.param_groups]
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
        bar = tqdm(total=round(budget), initial=round(spent), desc=name, unit="s", mininterval=5)
        mark = saved_at = time.monotonic()
        for batch in self._batches(name):
            done = spent / budget
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * min(1.0, done * 25 + 0.02) * (0.5 + 0.5 * math.cos(math.pi * done))
            self.student.train()
            losses = self._losses(name, batch.on(self.device))
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
            optimizer.step()
            self.steps += 1
            self._follow()
            now = time.monotonic()
            # a pause (a suspended process) is not training time
            spent, mark = spent + min(now - mark, 60.0), now
            bar.n = min(round(spent), round(budget))
            bar.set_postfix({k: f"{v.item():.3f}" for k, v in losses.items()} | {"step": self.steps})
            if now - saved_at > self.recipe.checkpoint_s or spent >= budget:
                self.spent[name], saved_at = spent, now
                self._save(name, optimizer)
            if spent >= budget:
                break
        bar.close()

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        student, recipe = self.student, self.recipe
        net = student.net
        trunk = [*net.stem.parameters(), *net.stages.parameters()]
        heads = [*net.region.parameters(), *net.fracture.parameters(), *net.severity.parameters()]
        extra = [*student.adapters.parameters(), *student.cells.parameters()]
        rate = recipe.distil_rate if name == "distil" or self.teacher is None else recipe.label_rate
        fast = rate if name == "distil" else rate * 5
        return torch.optim.AdamW(
            [{"params": trunk, "lr": rate}, {"params": heads + extra, "lr": fast}], weight_decay=0.05
        )

    def _batches(self, name: str) -> Iterator[Batch]:
        recipe = self.recipe
        size = recipe.distil_size if name == "distil" else recipe.label_size
        closer = round(size * TEACHER_LOOKS_CLOSER / 32) * 32 if self.teacher else size
        dice = np.random.default_rng(recipe.seed + self.steps)
        share = 0.25 if name == "distil" else recipe.positives
        return self.cache.batches(size, closer, recipe.batch, share, dice)

    def _losses(self, name: str, batch: Batch) -> dict[str, Tensor]:
        pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
        maps = self.student.net.features(pixels)
        losses: dict[str, Tensor] = {}
        if self.teacher:
            with torch.no_grad():
                taught = self.teacher.features(batch.larger)
            losses["imitate"] = self.student.imitation(maps, taught) * (1.0 if name == "distil" else 0.5)
        if name == "labels":
            reading = self.student.net.heads(maps[-1])
            losses |= label_loss(reading, self.student.cells, batch)
            if self.teacher:
                said = self.teacher.heads(taught[-1])
                chance = 0.5 * said.fracture.sigmoid() + 0.5 * batch.fractured
                losses["film"] = F.binary_cross_entropy_with_logits(reading.fracture, chance)
        return losses

    @torch.no_grad()
    def _follow(self) -> None:
        """Exponential moving average of weights and of batch-norm statistics; young averages forget faster."""
        decay = min(0.995, (1 + self.steps) / (10 + self.steps))
        for mean, now in zip(self.average.state_dict().values(), self.student.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)

    def _save(self, stage: str, optimizer: torch.optim.Optimizer) -> None:
        partial = self.file.with_suffix(".partial")
        torch.save(
            {
                "student": self.student.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "units": getattr(self.student, "units", None),
                "spent": self.spent,
                "steps": self.steps,
                "stage": stage,
            },
            partial,
        )
        partial.replace(self.file)  # atomic: a kill leaves the old checkpoint whole


def held_out(recipe_file: Path) -> list[Film]:
    """The validation films of the run that recipe.json describes."""
    recipe = json.loads(recipe_file.read_text())
    return split(fracatlas(Path(recipe["data"])), recipe["seed"])[1]
