"""`osteon train`: teacher, distillation, labels; resumable, budgeted in minutes.

    osteon train --data ../fracatlas --teacher ../mobilenet_v2_imagenet --out runs/second --minutes 100

1. teach   a MobileNetV2 from ImageNet is fine-tuned on the radiographs (skipped without --teacher);
2. distil  the network imitates the teacher's features at strides 8, 16, 32 on parts of radiographs; no label is used;
3. labels  region, fracture, extent and place, on parts and on whole radiographs, with the teacher still pulling;
4. finetune  the same on whole radiographs only, with batch norm as it will be when serving.
Stopped at any moment, the same command goes on from the last checkpoint (by default one a minute).
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch reader knows
from tqdm import tqdm

from shared.errors import BadDataset
from shared.model.bundle import pick_device
from shared.model.engines import half_precision
from shared.model.network import BoneNet, NetworkOutput
from shared.settings import cpu_count
from training.datasets import REGIONS, LabelledRadiograph, radiographs, split
from training.losses import label_losses
from training.teacher import CHANNELS, Teacher
from training.views import Batch, RadiographCache

Losses = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; stored with its checkpoint, and finally with its bundle."""

    data: Sequence[Path]
    teacher: Path | None
    architecture: str = "resnet50"
    start: Path | None = None  # a bundle whose backbone to start from
    minutes: float = 100.0
    teach_share: float = 0.12  # of the minutes, when there is a teacher
    distil_share: float = 0.40
    finetune_share: float = 0.12
    size: int = 448  # pixels, also the bundle's input size
    crop: int = 192  # pixels, of the views that show a part
    batch: int = 24  # crops a step; whole radiographs: a quarter
    distil_rate: float = 1e-3
    label_rate: float = 2e-4  # backbone; the heads learn three times as fast
    positives: float = 0.4
    seed: int = 7
    checkpoint_s: float = 60.0  # between checkpoints: what a kill costs at most

    @property
    def whole_batch(self) -> int:
        """Number of whole radiographs a step."""
        return max(2, self.batch // 4)


class Student(nn.Module):
    """The network, with the adapters to the teacher's channels and their units, which only training needs."""

    def __init__(self, architecture: str) -> None:
        super().__init__()
        self.net = BoneNet(len(REGIONS), architecture)
        self.adapters = nn.ModuleList(
            nn.Conv2d(own, taught, 1) for own, taught in zip(self.net.channels, CHANNELS, strict=True)
        )
        for level, channels in enumerate(CHANNELS):
            self.register_buffer(f"mean{level}", torch.zeros(1, channels, 1, 1))
            self.register_buffer(f"spread{level}", torch.ones(1, channels, 1, 1))

    def imitation_loss(self, maps: list[Tensor], taught: list[Tensor]) -> Tensor:
        """Smooth distance to the teacher's features, each channel in units of its own spread.

        Args:
            maps: of the student, a level each: (B, C, h, w).
            taught: of the teacher, of the same radiographs and sizes.

        Returns:
            A scalar.
        """
        loss = maps[0].new_zeros((), dtype=torch.float32)
        for level, (adapter, own, goal) in enumerate(zip(self.adapters, maps, taught, strict=True)):
            mean, spread = self._units(level, goal.float())
            loss = loss + F.smooth_l1_loss(adapter(own).float(), (goal.float() - mean) / spread)
        return loss

    @torch.no_grad()
    def _units(self, level: int, goal: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.get_buffer(f"mean{level}"), self.get_buffer(f"spread{level}")
        if self.training:
            fresh = 1.0 if not mean.any() else 0.02
            mean.lerp_(goal.mean((0, 2, 3), keepdim=True), fresh)
            spread.lerp_(goal.std((0, 2, 3), keepdim=True) + 0.05, fresh)
        return mean.clone(), spread.clone()

    @torch.no_grad()
    def transplant(self, teacher: Teacher) -> None:
        """Start the heads as the teacher's heads after the adapters: two linear maps are one."""
        own, taught = self.net.heads, teacher.heads
        own.load_state_dict({k: v for k, v in taught.state_dict().items() if k in SAME_HEADS}, strict=False)
        for name, level in (("place", 1), ("context", 2), ("region", 2)):
            adapter = self.adapters[level]
            assert isinstance(adapter, nn.Conv2d)
            assert adapter.bias is not None
            mean, spread = self.get_buffer(f"mean{level}"), self.get_buffer(f"spread{level}")
            weight, bias = getattr(taught, name).weight.flatten(1), getattr(taught, name).bias  # (K, taught)
            into, shift = adapter.weight.flatten(1), adapter.bias  # (taught, own), (taught,)
            scaled = weight * spread.flatten()
            head = getattr(own, name)
            head.weight.copy_((scaled @ into).view_as(head.weight))
            head.bias.copy_(bias + scaled @ shift + weight @ mean.flatten())


SAME_HEADS = ("mix.weight", "mix.bias", "fracture.weight", "fracture.bias", "severity.weight", "severity.bias")


def train(recipe: Recipe, out: Path) -> Path:
    """Train by a recipe, or go on with the run in a folder.

    Args:
        recipe: stored as recipe.json.
        out: folder of the run, made where it is missing.

    Returns:
        Path of the trained weights.

    Raises:
        BadDataset: The data or the teacher cannot be read, or `out` holds a run of another seed.
    """
    out.mkdir(parents=True, exist_ok=True)
    _refuse_other_split(recipe, out)
    torch.manual_seed(recipe.seed)
    cv2.setNumThreads(1)
    torch.set_num_threads(min(torch.get_num_threads(), cpu_count()))  # torch does not know a container's quota
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), default=str, indent=1))
    cache = RadiographCache(learned_from(out / "recipe.json"), recipe.size)
    teacher = _train_teacher(recipe, cache, out) if recipe.teacher else None
    run = Run(Student(recipe.architecture), recipe, out / "student.pt")
    if recipe.start and not run.steps:
        _start_from(run, recipe.start)
    lessons = Batches(run, cache, teacher)
    rest = 1 - (recipe.teach_share + recipe.distil_share if teacher else 0) - recipe.finetune_share
    if teacher:
        run.stage("distil", recipe.minutes * recipe.distil_share, recipe.distil_rate, 1, lessons.distil())
    if teacher and not run.spent.get("labels"):
        run.module.transplant(teacher)
        run.restart_average()
    rate = recipe.label_rate if teacher or recipe.start else recipe.distil_rate
    run.stage("labels", recipe.minutes * rest, rate, 3, lessons.labels())
    run.stage("finetune", recipe.minutes * recipe.finetune_share, rate / 4, 3, lessons.finetune(), frozen_norms=True)
    weights = out / "weights.pt"
    torch.save(run.average.net.cpu().state_dict(), weights)
    (out / "done.json").write_text(json.dumps({"steps": run.steps, "minutes": run.spent}))
    return weights


def _start_from(run: "Run[Student]", bundle: Path) -> None:
    """Load the backbone of another bundle of the same architecture."""
    try:
        tensors = load_file(bundle)
    except (OSError, ValueError) as error:
        raise BadDataset(f"{bundle} is no bundle to start from: {error}") from error
    trunk = {name.removeprefix("trunk."): value for name, value in tensors.items() if name.startswith("trunk.")}
    try:
        run.module.net.trunk.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in trunk.items()})
    except RuntimeError as error:
        raise BadDataset(
            f"{bundle} holds another architecture than {run.recipe.architecture}: choose that one, or another bundle"
        ) from error
    run.restart_average()


def _refuse_other_split(recipe: Recipe, out: Path) -> None:
    """Refuse another seed: it would measure the network on radiographs that it was trained on."""
    if (out / "recipe.json").exists() and any((out / name).exists() for name in ("student.pt", "teacher.pt")):
        seed = json.loads((out / "recipe.json").read_text())["seed"]
        if seed != recipe.seed:
            raise BadDataset(f"{out} holds a run with seed {seed}: go on with --seed {seed}, or choose another --out")


def _train_teacher(recipe: Recipe, cache: RadiographCache, out: Path) -> Teacher:
    """Fine-tune the teacher; it also marks in each radiograph where it wrongly sees a fracture."""
    assert recipe.teacher is not None
    run = Run(Teacher(recipe.teacher), recipe, out / "teacher.pt")
    rng = np.random.default_rng(recipe.seed + run.steps)
    run.stage(
        "teach", recipe.minutes * recipe.teach_share, 2e-4, 10, _supervised_batches(recipe, cache, rng, run.module)
    )
    teacher = run.average.eval().requires_grad_(requires_grad=False)
    _mark_suspects(teacher, cache, run.device)
    return teacher


def _supervised_batches(
    recipe: Recipe, cache: RadiographCache, rng: np.random.Generator, module: nn.Module
) -> Iterator[list["Lesson"]]:
    """Make for each step a batch of crops and one of whole radiographs, with labels only."""
    crops = cache.crops(recipe.crop, recipe.batch, 0.5, (0.8, 1.3), rng)
    whole = cache.whole_radiographs(recipe.whole_batch, recipe.positives, rng)
    while True:
        yield [_supervised_lesson(module, next(crops)), _supervised_lesson(module, next(whole))]


def _supervised_lesson(module: nn.Module, batch: Batch) -> "Lesson":
    return batch, lambda ready: label_losses(module(_channels_last(ready.pixels)), ready)


@torch.no_grad()
def _mark_suspects(teacher: Teacher, cache: RadiographCache, device: torch.device, count: int = 3) -> None:
    for start in tqdm(range(0, len(cache.radiographs), 16), desc="suspects", unit="batch"):
        squares = torch.from_numpy(np.stack(cache.images[start : start + 16]))[:, None].to(device)
        with half_precision(device):
            heatmap = teacher(_channels_last(squares)).heatmap
        alone = heatmap == F.max_pool2d(heatmap[:, None], 5, 1, 2)[:, 0]
        for row, (values, peak) in enumerate(zip(heatmap, alone, strict=True)):
            best = (values - 1e4 * ~peak).flatten().topk(count).indices.cpu()
            across = values.shape[1]
            cache.suspects[start + row] = [
                ((int(i) % across + 0.5) / across, (int(i) // across + 0.5) / across) for i in best
            ]


Lesson = tuple[Batch, Callable[[Batch], Losses]]


class Batches:
    """What the student learns from in each stage: batches, and the losses of each."""

    def __init__(self, run: "Run[Student]", cache: RadiographCache, teacher: Teacher | None) -> None:
        self.student, self.recipe, self.cache, self.teacher = run.module, run.recipe, cache, teacher
        self.rng = np.random.default_rng(run.recipe.seed + run.steps)

    def distil(self) -> Iterator[list[Lesson]]:
        """Imitate features only, at many scales."""
        recipe = self.recipe
        for batch in self.cache.crops(recipe.crop, recipe.batch, 0.3, (0.5, 1.3), self.rng):
            yield [(batch, self._imitation_losses)]

    def labels(self) -> Iterator[list[Lesson]]:
        """Make for each step a batch of crops and one of whole radiographs."""
        recipe = self.recipe
        crops = self.cache.crops(recipe.crop, recipe.batch, 0.5, (0.8, 1.3), self.rng)
        for whole in self.finetune():
            yield [(next(crops), self._label_and_imitation_losses), *whole]

    def finetune(self) -> Iterator[list[Lesson]]:
        """Make batches of whole radiographs only."""
        for batch in self.cache.whole_radiographs(self.recipe.whole_batch, self.recipe.positives, self.rng):
            yield [(batch, self._label_and_imitation_losses)]

    def _imitation_losses(self, batch: Batch) -> Losses:
        assert self.teacher is not None
        pixels = _channels_last(batch.pixels)
        with torch.no_grad():
            taught = self.teacher.features(pixels)
        return {"imitate": self.student.imitation_loss(self.student.net.features(pixels), taught)}

    def _label_and_imitation_losses(self, batch: Batch) -> Losses:
        pixels = _channels_last(batch.pixels)
        maps = self.student.net.features(pixels)
        output = NetworkOutput(*self.student.net.heads(maps[1], maps[2]), *self.student.net.scope(maps[2]))
        losses = label_losses(output, batch)
        if self.teacher:
            with torch.no_grad():
                taught = self.teacher.features(pixels)
                _, _, _, taught_map = self.teacher.heads(taught[1], taught[2])
            losses["imitate"] = self.student.imitation_loss(maps, taught) * 0.5
            losses["map"] = F.smooth_l1_loss(output.heatmap.clamp(-8, 8), taught_map.clamp(-8, 8)) * 0.3
        return losses


def _stages(spent: dict[str, float]) -> dict[str, float]:
    """Seconds per stage, by the names of today: runs of before 0.2.0 call the last one settle."""
    return {("finetune" if name == "settle" else name): seconds for name, seconds in spent.items()}


class Run(Generic[Module]):
    """State of one module in training: its moving average, and the progress of each stage."""

    def __init__(self, module: Module, recipe: Recipe, file: Path) -> None:
        self.recipe, self.file = recipe, file
        self.device = pick_device()
        self.module = module.to(self.device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.module)
        self.spent: dict[str, float] = {}  # seconds per stage
        self.steps = 0
        self.saved: dict[str, object] = {}
        if file.exists():
            self.saved = torch.load(file, weights_only=True, map_location=self.device)
            self.module.load_state_dict(self.saved["module"])  # type: ignore[arg-type]
            self.average.load_state_dict(self.saved["average"])  # type: ignore[arg-type]
            self.spent, self.steps = _stages(cast("dict[str, float]", self.saved["spent"])), self.saved["steps"]  # type: ignore[assignment]

    def restart_average(self) -> None:
        """Start the average again, after a transplant."""
        self.average = copy.deepcopy(self.module)

    def stage(
        self,
        name: str,
        minutes: float,
        rate: float,
        heads_faster: float,
        lessons: Iterator[list[Lesson]],
        *,
        frozen_norms: bool = False,
    ) -> None:
        """Run one stage until its minutes are used up, with a cosine rate over them.

        Args:
            name: a stage that was interrupted goes on under the same name.
            minutes: of training, with those before an interruption.
            rate: greatest learning rate of the backbone.
            heads_faster: how many times that is the rate of everything else.
            lessons: what to learn from, an item a step; endless.
            frozen_norms: leave the statistics of batch norm as they are.
        """
        budget, spent = minutes * 60, self.spent.get(name, 0.0)
        if spent >= budget:
            return
        optimizer = self._optimizer(rate, heads_faster)
        if self.saved.get("stage") in (name, "settle" if name == "finetune" else name):
            optimizer.load_state_dict(self.saved["optimizer"])  # type: ignore[arg-type]
        bar = tqdm(total=round(budget), initial=round(spent), desc=name, unit="s", mininterval=5)
        mark = saved_at = time.monotonic()
        for step in lessons:
            done = spent / budget
            pace = min(1.0, done * 25 + 0.02) * (0.5 + 0.5 * math.cos(math.pi * done))
            for group, peak in zip(optimizer.param_groups, (rate, rate * heads_faster), strict=True):
                group["lr"] = peak * pace
            self.module.train()
            if frozen_norms:
                _freeze_norms(self.module)
            losses = self._step(step, optimizer)
            now = time.monotonic()
            # a pause (a suspended process) is not training time
            spent, mark = spent + min(now - mark, 60.0), now
            bar.n = min(round(spent), round(budget))
            bar.set_postfix({k: f"{v:.3f}" for k, v in losses.items()} | {"step": self.steps})
            if now - saved_at > self.recipe.checkpoint_s or spent >= budget:
                self.spent[name], saved_at = spent, now
                self._save(name, optimizer)
            if spent >= budget:
                break
        bar.close()

    def _step(self, step: list[Lesson], optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Learn from the batches of one step; returns the losses of the last one."""
        optimizer.zero_grad()
        values: dict[str, float] = {}
        for batch, losses_of in step:
            with half_precision(self.device):
                losses = losses_of(batch.on(self.device))
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            values = {key: loss.item() for key, loss in losses.items()}
        nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
        optimizer.step()
        self.steps += 1
        self._update_average()
        return values

    def _optimizer(self, rate: float, heads_faster: float) -> torch.optim.Optimizer:
        slow: list[nn.Parameter] = []
        fast: list[nn.Parameter] = []
        for name, parameter in self.module.named_parameters():
            (slow if "trunk." in name or "convs." in name else fast).append(parameter)
        return torch.optim.AdamW(
            [{"params": slow, "lr": rate}, {"params": fast, "lr": rate * heads_faster}], weight_decay=0.05
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        """Update the exponential average of weights and of batch-norm statistics; young averages forget faster."""
        decay = min(0.995, (1 + self.steps) / (10 + self.steps))
        for mean, now in zip(self.average.state_dict().values(), self.module.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)

    def _save(self, stage: str, optimizer: torch.optim.Optimizer) -> None:
        partial = self.file.with_suffix(".partial")
        torch.save(
            {
                "module": self.module.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "spent": self.spent,
                "steps": self.steps,
                "stage": stage,
            },
            partial,
        )
        partial.replace(self.file)  # atomic: a kill leaves the old checkpoint whole


def _freeze_norms(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


def _channels_last(pixels: Tensor) -> Tensor:
    return pixels.contiguous(memory_format=torch.channels_last)


def learned_from(recipe_file: Path) -> list[LabelledRadiograph]:
    """List the training radiographs of the run that recipe.json describes."""
    return _splits(recipe_file)[0]


def held_out(recipe_file: Path) -> list[LabelledRadiograph]:
    """List the validation radiographs of the run that recipe.json describes."""
    return _splits(recipe_file)[1]


def _splits(recipe_file: Path) -> tuple[list[LabelledRadiograph], list[LabelledRadiograph]]:
    recipe = json.loads(recipe_file.read_text())
    return split([radiograph for path in recipe["data"] for radiograph in radiographs(Path(path))], recipe["seed"])
