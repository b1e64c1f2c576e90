"""`osteon compare`: architectures trained and measured alike, as one table and one figure."""

import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from shared.errors import BadDataset
from shared.model.engines import Engine, pick_engine
from training.evaluate import judge_cross_fitted, measure, predict
from training.export import load_run
from training.train import Recipe, held_out, train

SPEED_BATCH, SPEED_REPEATS = 8, 5


@dataclass(frozen=True)
class ComparisonLine:
    """One architecture's row; triples are [estimate, low, high] of a 95 % interval, None if there are too few."""

    architecture: str
    fracture_auroc: list[float] | None
    expected_calibration_error: list[float] | None
    region_accuracy: list[float] | None
    pointing_game: list[float] | None
    images_per_s: float  # median over interleaved repeats, batches of 8
    images_per_s_spread: list[float]  # least and greatest repeat
    parameters_millions: float
    bundle_mib: float  # fp16 weights
    training_steps: int


def compare(recipe: Recipe, architectures: Sequence[str], out: Path) -> list[ComparisonLine]:
    """Train each architecture by the same recipe for the same minutes, and measure all on the same held-out ones.

    Goes on where it was stopped, as `train` does; the teacher is trained once. Writes comparison.json,
    comparison.md and comparison.png.

    Args:
        recipe: the same for all; its architecture is not used.
        architectures: keys of the networks, one at least.
        out: folder for the table and figure, and for a run of each architecture.

    Returns:
        One line for each architecture, in the order given.

    Raises:
        BadDataset: No architecture is given, or the radiographs do not suffice.
    """
    if not architectures:
        raise BadDataset("Nothing to compare: name at least one architecture")
    engines: dict[str, Engine] = {}
    lines: list[ComparisonLine] = []
    for architecture in architectures:
        run = out / architecture
        _share_teacher(out, architectures, run)
        if not (run / "weights.pt").exists():
            train(replace(recipe, architecture=architecture), run)
        network, _ = load_run(run)
        engines[architecture] = pick_engine(network, recipe.size)
        figures = measure(
            judge_cross_fitted(predict(engines[architecture], held_out(run / "recipe.json"), recipe.size))
        )
        parameters = sum(p.numel() for p in network.parameters())
        lines.append(
            ComparisonLine(
                architecture,
                figures["fracture_auroc"],
                figures["expected_calibration_error"],
                figures["region_accuracy"],
                figures["pointing_game"],
                0.0,
                [],
                round(parameters / 1e6, 1),
                round(parameters * 2 / 2**20, 1),
                json.loads((run / "done.json").read_text())["steps"],
            )
        )
    lines = [_with_speed(line, rates) for line, rates in zip(lines, _speeds(engines, recipe.size), strict=True)]
    (out / "comparison.json").write_text(json.dumps([asdict(line) for line in lines], indent=1))
    (out / "comparison.md").write_text(table(lines))
    _draw(lines, out / "comparison.png")
    return lines


def _share_teacher(out: Path, architectures: Sequence[str], run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    for other in architectures:
        taught = out / other / "teacher.pt"
        # only a teacher whose run is over has learned all it will
        if (out / other / "weights.pt").exists() and taught.exists() and not (run / "teacher.pt").exists():
            shutil.copyfile(taught, run / "teacher.pt")


def _speeds(engines: dict[str, Engine], size: int) -> list[list[float]]:
    """Measure images a second of each engine; repeats are interleaved, so that a busy moment affects all alike."""
    squares = np.random.default_rng(0).integers(0, 256, (SPEED_BATCH, size, size), np.uint8)
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(SPEED_REPEATS + 1):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine(squares)
            if repeat:  # the first warms up
                rates[name].append(SPEED_BATCH / (time.perf_counter() - started))
    return list(rates.values())


def _with_speed(line: ComparisonLine, rates: list[float]) -> ComparisonLine:
    spread = [round(min(rates), 1), round(max(rates), 1)]
    return replace(line, images_per_s=round(statistics.median(rates), 1), images_per_s_spread=spread)


def table(lines: Sequence[ComparisonLine]) -> str:
    """Write the comparison as a Markdown table."""
    head = "| architecture | AUROC | calibration error | region | pointing | images/s | million weights | MiB | steps |"
    rows = [
        f"| {line.architecture} | {_cell(line.fracture_auroc)} | {_cell(line.expected_calibration_error)} "
        f"| {_cell(line.region_accuracy)} | {_cell(line.pointing_game)} "
        f"| {line.images_per_s} ({line.images_per_s_spread[0]} to {line.images_per_s_spread[1]}) "
        f"| {line.parameters_millions} | {line.bundle_mib} | {line.training_steps} |"
        for line in lines
    ]
    return "\n".join([head, "| --- " * 9 + "|", *rows, ""])


def _cell(triple: list[float] | None) -> str:
    return "too few radiographs" if triple is None else f"{triple[0]:.3f} [{triple[1]:.3f}, {triple[2]:.3f}]"


def _draw(lines: Sequence[ComparisonLine], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figures = ("fracture_auroc", "pointing_game", "region_accuracy", "expected_calibration_error")
    size = (16, 1.2 + 0.6 * len(lines))
    figure, axes = plt.subplots(1, len(figures) + 1, figsize=size, sharey=True, layout="constrained")
    names = [line.architecture for line in lines]
    for axis, name in zip(axes, figures, strict=False):
        for row, line in enumerate(lines):
            triple = getattr(line, name)
            if triple:
                axis.plot(triple[1:], [row, row], color="0.6")
                axis.plot(triple[0], row, "o", color="C0")
        axis.set_title(name.replace("_", " "))
    axes[-1].barh(range(len(lines)), [line.images_per_s for line in lines], color="C1")
    axes[-1].set_title("images a second")
    axes[0].set_yticks(range(len(lines)), names)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)
