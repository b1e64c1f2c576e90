"""From radiographs to a bundle: train, compare, evaluate, export, card."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from infra.cli.terminal import Json, exit_codes, line, out, print_json

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()


ARCHITECTURE = "resnet50, densenet121, densenet169 or vgg16"
Data = Annotated[
    list[Path],
    typer.Option(
        help="a data set: FracAtlas, MURA or GRAZPEDWRI-DX as they are unpacked, or a CSV of own images; repeatable"
    ),
]
TeacherFolder = Annotated[
    Path | None,
    typer.Option(help="folder of the ImageNet MobileNetV2; without: labels only, which needs far more radiographs"),
]
OutOfDistribution = Annotated[
    Path | None, typer.Option(help="folder of DICOM images that are no bone radiographs, to measure abstention on")
]
OldName = Annotated[Path | None, typer.Option("--strangers", hidden=True)]


def _of_either(folder: Path | None, old: Path | None) -> Path | None:
    """The folder by the option's name of before 0.2.0, with a warning."""
    if old is None:
        return folder
    if folder is not None:
        raise typer.BadParameter("--strangers is its old name: give --out-of-distribution alone")
    print("osteon: --strangers is now --out-of-distribution; the old name works until 0.3.0", file=sys.stderr)
    return old


@app.command()
@exit_codes
def train(
    data: Data,
    out_dir: Annotated[Path, typer.Option("--out", help="the run's folder; an unfinished run in it is resumed")],
    teacher: TeacherFolder = None,
    architecture: Annotated[str, typer.Option(help=ARCHITECTURE)] = "resnet50",
    start: Annotated[Path | None, typer.Option(help="a bundle whose backbone to start from")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="training time, the teacher's included")] = 100.0,
    size: Annotated[int, typer.Option(min=64, help="input size, pixels; a multiple of 32")] = 448,
    crop: Annotated[int, typer.Option(min=64, help="size of the parts it looks at closely; a multiple of 32")] = 192,
    batch: Annotated[int, typer.Option(min=4, help="parts a step; fewer need less memory")] = 24,
    seed: Annotated[int, typer.Option(help="decides the split too: a run goes on with its own seed only")] = 7,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, help="between checkpoints: what a kill costs at most")
    ] = 60.0,
) -> None:
    """Train a network. Stop it whenever you like: the same command goes on from the last checkpoint."""
    from training.train import Recipe
    from training.train import train as run

    _check_network(architecture, size, crop)
    recipe = Recipe(
        data=data, teacher=teacher, architecture=architecture, start=start, minutes=minutes, size=size,
        crop=min(crop, size), batch=batch, seed=seed, checkpoint_s=checkpoint_seconds,
    )  # fmt: skip
    line(f"weights: {run(recipe, out_dir)}")


def _check_network(architecture: str, *sizes: int) -> None:
    from shared.domain.manifest import ARCHITECTURES

    if architecture not in ARCHITECTURES:
        raise typer.BadParameter(f"must be {ARCHITECTURE}", param_hint="--architecture")
    if any(size % 32 for size in sizes):
        raise typer.BadParameter("must be a multiple of 32", param_hint="--size, --crop")


@app.command()
@exit_codes
def compare(
    data: Data,
    out_dir: Annotated[Path, typer.Option("--out", help="one run in it for each architecture; resumed if unfinished")],
    teacher: TeacherFolder = None,
    architecture: Annotated[list[str] | None, typer.Option(help=f"{ARCHITECTURE}; default: all")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="training time of each")] = 30.0,
    size: Annotated[int, typer.Option(min=64, help="input size, pixels; a multiple of 32")] = 448,
    crop: Annotated[int, typer.Option(min=64, help="size of the parts it looks at closely; a multiple of 32")] = 192,
    batch: Annotated[int, typer.Option(min=4, help="parts a step; fewer need less memory")] = 24,
    seed: Annotated[int, typer.Option(help="decides the split")] = 7,
    as_json: Json = False,
) -> None:
    """Train several architectures alike and set them side by side: accuracy, calibration, place, speed, size."""
    from shared.domain.manifest import ARCHITECTURES
    from training.compare import compare as run
    from training.compare import table
    from training.train import Recipe

    chosen = architecture or list(ARCHITECTURES)
    for name in chosen:
        _check_network(name, size, crop)
    recipe = Recipe(
        data=data, teacher=teacher, minutes=minutes, size=size, crop=min(crop, size), batch=batch, seed=seed
    )  # fmt: skip
    lines = run(recipe, chosen, out_dir)
    if as_json:
        print_json([asdict(line) for line in lines])
    else:
        out.print(table(lines), markup=False, highlight=False, soft_wrap=True)
        line(f"figure: {out_dir / 'comparison.png'}")


@app.command()
@exit_codes
def evaluate(
    model: Annotated[Path, typer.Argument(help="a finished run of `osteon train`, or a bundle file")],
    data: Annotated[
        list[Path] | None, typer.Option(help="data sets to measure a bundle on; a run knows its own. May be repeated")
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="all radiographs of the sets, for sets that the bundle was not trained on; else held-out ones"
        ),
    ] = False,
    out_dir: Annotated[Path | None, typer.Option("--out", help="where report.html and metrics.json go")] = None,
    out_of_distribution: OutOfDistribution = None,
    strangers: OldName = None,
    as_json: Json = False,
) -> None:
    """Measure a model: a report with curves, subgroups and heatmaps, and figures with 95 % intervals.

    On held-out radiographs unless --all says otherwise.
    """
    from training.export import evaluate_bundle, evaluate_run, report

    if model.is_dir():
        evaluation = evaluate_run(model, "run")
    elif data:
        evaluation = evaluate_bundle(model, data, everything=everything)
    else:
        raise typer.BadParameter("a bundle needs radiographs to be measured on", param_hint="--data")
    folder = out_dir or (model if model.is_dir() else Path(f"{model.stem}-report"))
    figures = report(evaluation, folder, _of_either(out_of_distribution, strangers))
    if as_json:
        print_json(figures)
        return
    table = Table("figure", "estimate", "95 % interval", box=box.SIMPLE_HEAD)
    for name, value in figures.items():
        if isinstance(value, list) and len(value) == 3 and isinstance(value[0], float):
            table.add_row(name, f"{value[0]:.3f}", f"{value[1]:.3f} - {value[2]:.3f}")
        elif isinstance(value, int) or value is None:
            table.add_row(name, "too few radiographs" if value is None else str(value), "")
    out.print(table)
    line(f"measured on {evaluation.note}")
    line(f"report: {folder / 'report.html'}")


@app.command()
@exit_codes
def export(
    run: Annotated[Path, typer.Argument(help="a finished run of `osteon train`")],
    bundle: Annotated[Path, typer.Argument(help="the bundle file to write, e.g. my-model.safetensors")],
    title: Annotated[str, typer.Option(help='the name that people see, e.g. "Wards 2026"; without: the key')] = "",
    out_of_distribution: OutOfDistribution = None,
    strangers: OldName = None,
) -> None:
    """Evaluate a run, choose its operating points, and write it as a bundle for the worker, with its model card."""
    import re

    from shared.domain.manifest import NAME
    from training.export import export as write

    if not re.match(NAME, bundle.stem):
        raise typer.BadParameter("its name names the bundle: a-z, 0-9, dot, dash, underscore", param_hint="BUNDLE")
    manifest = write(run, bundle.stem, bundle, _of_either(out_of_distribution, strangers), title)
    line(f"{bundle}: bundle {manifest.name}, {bundle.stat().st_size / 2**20:.1f} MiB")
    line(f"model card: {bundle.with_suffix('.md')}; report: {run / 'report.html'}")


@app.command()
@exit_codes
def card(
    bundle: Annotated[Path, typer.Argument(help="a bundle file")],
    as_json: Json = False,
) -> None:
    """Print a bundle's model card: what it learned from, how good it is, and when it abstains."""
    from shared.model.bundle import load_bundle
    from training.card import card as written

    _, manifest = load_bundle(bundle.read_bytes())
    if as_json:
        print_json(manifest.model_dump())
    else:
        out.print(written(manifest), markup=False, highlight=False, soft_wrap=True)
