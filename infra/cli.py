"""The `osteon` command: everything a person does with Osteon, one verb each."""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from shared.errors import OsteonError
from shared.findings import RESEARCH_USE
from shared.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Osteon reads bone radiographs in batches. {RESEARCH_USE}",
    epilog="Start with `osteon demo`, or `osteon up` and `osteon submit DIR`. Exit codes: 0 done, 1 something failed, "
    "2 wrong usage.",
)
P, R = ParamSpec("P"), TypeVar("R")
Json = Annotated[bool, typer.Option("--json", help="print JSON for scripts instead of text")]
Url = Annotated[str | None, typer.Option(envvar="OSTEON_API_URL", help="the API; default: the local stack's")]
KeyOption = Annotated[
    str | None, typer.Option("--key", envvar="OSTEON_KEY", help="an API key; default: the local stack's")
]
errors = Console(stderr=True)
out = Console(soft_wrap=True)


def _honest(command: Callable[P, R]) -> Callable[P, R]:
    """Known errors become one line and exit code 1, not a trace."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (OsteonError, OSError) as wrong:
            errors.print(f"osteon: {wrong}", markup=False, highlight=False)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            errors.print("osteon: interrupted", markup=False)
            raise typer.Exit(130) from None

    return run


def _print_json(value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    print(json.dumps(value, indent=1, default=str))


@contextmanager
def _progress(*columns: str) -> Iterator[Progress]:
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=errors
    ) as bar:
        for column in columns:
            bar.add_task(column, total=None)
        yield bar


@app.command()
@_honest
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="return once it is ready; stop it with osteon down")] = False,
) -> None:
    """Start the whole system here: Postgres, Valkey, API, worker, beat, Flower.

    Its state lies in OSTEON_HOME (default ./.osteon). OSTEON_DATABASE_URL, OSTEON_BROKER_URL and OSTEON_STORE_URL
    replace the embedded parts by yours. Runs until Ctrl-C.
    """
    from infra.stack import Stack

    if detach:
        _detach()
        return
    with Stack(Settings(), report=lambda text: errors.print(f"  {text}", style="dim", markup=False)) as stack:
        _say_where(stack.urls, stack.home)
        stack.watch()


def _detach() -> None:
    """Start a second `osteon up` that outlives this one, and wait until it says that it is ready."""
    import subprocess
    import time

    from infra import state

    home = Settings().home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    log = home / "up.log"
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "up"], stdout=file, stderr=file, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    while child.poll() is None:
        now = state.status(home)
        if now.running and now.urls and "ready" in _tail(log):
            _say_where(now.urls, home)
            return
        time.sleep(0.3)
    raise OsteonError(f"The stack did not start:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def _say_where(urls: dict[str, str], home: Path) -> None:
    from infra import state

    secrets = state.read_secrets(home)
    out.print("\nOsteon is ready.", style="bold")
    out.print(f"  page    {urls['api']}/   log in with the key  {secrets['keys']['radiologist']}", highlight=False)
    out.print(f"  API     {urls['api']}/docs   submit with the key  {secrets['keys']['submitter']}", highlight=False)
    out.print(
        f"  Flower  {urls['flower']}/   user {secrets['flower_user']}, password {secrets['flower_password']}",
        highlight=False,
    )
    out.print(f"  state   {home}   (osteon down stops it, osteon down --delete removes its data)", highlight=False)
    out.print(f"  {RESEARCH_USE}\n", style="yellow", highlight=False)


@app.command()
@_honest
def down(
    delete: Annotated[bool, typer.Option("--delete", help="remove all its data too: studies, findings, keys")] = False,
    as_json: Json = False,
) -> None:
    """Stop the stack of OSTEON_HOME, wherever it was started."""
    from infra import state

    home = Settings().home.absolute()
    ran = state.down(home, delete=delete)
    if as_json:
        _print_json({"ran": ran, "deleted": delete})
    else:
        out.print(f"{'Stopped' if ran else 'No stack ran in'} {home}{'; its data is deleted' if delete else ''}")


@app.command()
@_honest
def status(as_json: Json = False) -> None:
    """Show which parts run. Exit code 0: all do, 1: some or all do not."""
    from dataclasses import asdict

    from infra import state

    now = state.status(Settings().home)
    if as_json:
        _print_json(asdict(now))
    elif not now.parts:
        out.print("No stack runs here. Start one with `osteon up`.")
    else:
        table = Table("part", "state", "pid", "port")
        for part in now.parts:
            table.add_row(part.name, "running" if part.running else "[red]not running", str(part.pid), str(part.port or ""))
        out.print(table)
    raise typer.Exit(0 if now.running and all(part.running for part in now.parts) else 1)


@contextmanager
def _client(url: str | None, key: str | None, role: str) -> Iterator[Any]:
    from infra import state
    from infra.client import Client

    home = Settings().home.absolute()
    if url is None:
        url = state.environment(home)["OSTEON_API_URL"]
    if key is None:
        if not (home / "secrets.json").is_file():
            raise OsteonError("Give an API key with --key or OSTEON_KEY")
        key = state.read_secrets(home)["keys"][role]
    with Client(url, key) as client:
        yield client


@app.command()
@_honest
def submit(
    places: Annotated[list[Path], typer.Argument(help="DICOM files, zip archives, or folders of them")],
    priority: Annotated[str, typer.Option(help="urgent or routine")] = "routine",
    wait: Annotated[bool, typer.Option("--wait", help="wait until all are analysed")] = False,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Upload studies. Safe to repeat: what is stored already costs nothing. Exit code 1 if any file was rejected."""
    from infra.client import files_in

    files = files_in(places)
    if not files:
        raise OsteonError("There is no file to send")
    with _client(url, key, "submitter") as client, _progress() as bar:
        task = bar.add_task("uploading", total=len(files))
        receipt = client.submit(files, priority, lambda count: bar.update(task, completed=min(count, len(files))))
        reports = {}
        if wait and receipt.studies:
            waiting = bar.add_task("analysing", total=len(receipt.studies))
            reports = client.wait(list(receipt.studies), 3600, lambda count: bar.update(waiting, completed=count))
    rejected = [file for file in receipt.files if file["outcome"] == "rejected"]
    if as_json:
        _print_json({"files": receipt.files, "studies": list(receipt.studies.values()), "reports": list(reports.values())})
    else:
        _print_receipt(receipt, rejected)
    if rejected:
        raise typer.Exit(1)


def _print_receipt(receipt: Any, rejected: list[dict[str, Any]]) -> None:  # noqa: ANN401 - infra.client, imported late
    for file in rejected:
        out.print(f"rejected {file['file']}: {file['text']} [{file['reason']}, {file['failure']}]", markup=False)
    out.print(
        f"{receipt.count('stored')} stored, {receipt.count('duplicate')} duplicate, {len(rejected)} rejected; "
        f"{len(receipt.studies)} studies"
    )


@app.command()
@_honest
def worklist(
    limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
    after: Annotated[str | None, typer.Option(help="the `next` of the page before")] = None,
    call: Annotated[str | None, typer.Option(help="none, possible, likely, abstained")] = None,
    region: Annotated[str | None, typer.Option()] = None,
    study_status: Annotated[str | None, typer.Option("--status")] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Print the worklist, most urgent first, each row with its reason. No patient identity is printed."""
    with _client(url, key, "radiologist") as client:
        page = client.worklist(limit=limit, after=after, call=call, region=region, status=study_status)
    if as_json:
        _print_json(page)
        return
    print_worklist(page)


def print_worklist(page: dict[str, Any]) -> None:
    """The worklist as a table."""
    table = Table("#", "finding", "P(fracture)", "region", "extent", "state", "why", "study", title="Worklist")
    for row in page["entries"]:
        chance = "" if row["fracture_probability"] is None else f"{row['fracture_probability']:.2f}"
        style = {"likely": "bold red", "possible": "yellow"}.get(row["call"] or "", "")
        table.add_row(
            str(row["rank"]), row["call"] or "-", chance, row["region"], row["severity"] or "", row["status"],
            row["why"], row["study_id"][:8], style=style,
        )  # fmt: skip
    out.print(table)
    if page["next"]:
        out.print(f"more: osteon worklist --after {page['next']}", highlight=False)
    out.print(page["notice"], style="yellow")


@app.command()
@_honest
def demo(
    once: Annotated[bool, typer.Option("--once", help="exit after the samples: 0 only if each came out as expected")] = False,
) -> None:
    """Start everything, analyse the sample studies, print the worklist, and leave the page open until Ctrl-C."""
    from infra.client import Client
    from infra.demo import run_samples, surprises
    from infra.stack import Stack
    from infra.state import read_secrets

    with Stack(Settings(), report=lambda text: errors.print(f"  {text}", style="dim", markup=False)) as stack:
        key = read_secrets(stack.home)["keys"]["admin"]
        with Client(stack.urls["api"], key) as client, _progress() as bar:
            sending, waiting = bar.add_task("uploading", total=None), bar.add_task("analysing", total=None)
            receipt, reports = run_samples(
                client,
                lambda count: bar.update(sending, completed=count, total=count),
                lambda count: bar.update(waiting, completed=count),
            )
            page = client.worklist(limit=100)
        print_worklist(page)
        wrong = surprises(receipt, reports)
        for surprise in wrong:
            errors.print(f"{surprise.file}: expected {surprise.expected}, got {surprise.got}", style="red", markup=False)
        rejected = receipt.count("rejected")
        out.print(f"{len(reports)} studies analysed, {rejected} broken files rejected, {len(wrong)} surprises")
        _say_where(stack.urls, stack.home)
        if not once:
            out.print("Ctrl-C stops it.")
            stack.watch()
    if wrong:
        raise typer.Exit(1)


@app.command()
@_honest
def predict(
    places: Annotated[list[Path], typer.Argument(help="DICOM, PNG or JPEG files, or folders of them")],
    as_json: Json = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="write a table to this file")] = None,
    heatmaps: Annotated[Path | None, typer.Option(help="write each film with its heatmap into this folder")] = None,
    bundle: Annotated[Path | None, typer.Option(help="a model bundle; default: the shipped one")] = None,
) -> None:
    """Read films straight through the model, without any server. Exit code 1 if a file could not be read."""
    from infra import predict as straight
    from infra.client import files_in
    from shared.vision.reader import Reader

    reader = Reader.of_bundle((bundle or Settings().bundle_path).read_bytes())
    files = files_in(places)
    with _progress() as bar:
        task = bar.add_task("reading", total=len(files))
        rows = list(straight.predict(reader, files, heatmaps, lambda: bar.advance(task)))
    if csv is not None:
        with csv.open("w", newline="") as file:
            straight.write_csv(rows, file)
    if as_json:
        print(straight.as_json(rows))
    elif csv is None:
        table = Table("file", "frame", "region", "P(fracture)", "call", "extent", "scope or error", caption=RESEARCH_USE)
        for row in rows:
            chance = "" if row.fracture_probability is None else f"{row.fracture_probability:.3f}"
            table.add_row(
                row.file, str(row.frame or ""), row.region or "", chance, row.call or "", row.severity or "",
                row.error or row.scope, style="red" if row.error else "",
            )  # fmt: skip
        out.print(table)
    for row in rows:
        if row.error:
            errors.print(f"{row.file}: {row.error}", markup=False, highlight=False)
    if any(row.error for row in rows):
        raise typer.Exit(1)


@app.command()
@_honest
def activate(
    bundle: Annotated[Path, typer.Argument(help="a bundle file, as `osteon export` writes it")],
    as_json: Json = False,
) -> None:
    """Store a bundle and make it the active one; workers take it up between studies, old findings stay as they are."""
    from infra import state
    from infra.prepare import publish
    from shared.repository import Database

    os.environ |= state.environment(Settings().home) if "OSTEON_DATABASE_URL" not in os.environ else {}
    config = Settings()
    database = Database(config.database_url.get_secret_value(), 1)
    try:
        name = publish(config, database, bundle, activate=True)
    except ValueError as wrong:
        raise OsteonError(str(wrong)) from None
    finally:
        database.close()
    _print_json({"active": name}) if as_json else out.print(f"{name} is active")


@app.command()
@_honest
def train(
    data: Annotated[Path, typer.Option(help="the FracAtlas folder: labels.csv, polygons.json, images/")],
    out_dir: Annotated[Path, typer.Option("--out", help="the run's folder; an unfinished run in it is resumed")],
    teacher: Annotated[Path | None, typer.Option(help="folder of the ImageNet MobileNetV2; without: labels only")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="training time, without the teacher's")] = 90.0,
    size: Annotated[int, typer.Option(help="input size, pixels; a multiple of 32")] = 192,
    seed: int = 7,
) -> None:
    """Train a network. Stop it whenever you like: the same command goes on from the last checkpoint."""
    from training.train import Recipe
    from training.train import train as run

    if size % 32:
        raise OsteonError("--size must be a multiple of 32")
    recipe = Recipe(data=data, teacher=teacher, minutes=minutes, label_size=size, seed=seed)
    out.print(f"weights: {run(recipe, out_dir)}")


@app.command()
@_honest
def evaluate(
    run: Annotated[Path, typer.Argument(help="a finished run of `osteon train`")],
    out_dir: Annotated[Path | None, typer.Option("--out", help="where metrics.json and evaluation.png go")] = None,
    as_json: Json = False,
) -> None:
    """Measure a run on its held-out films: AUROC, region accuracy, calibration, pointing game, with 95 % intervals."""
    from training.evaluate import answer, write_report
    from training.export import load_run
    from training.train import held_out

    network, recipe = load_run(run)
    figures = write_report(answer(network, held_out(run / "recipe.json"), recipe["label_size"]), out_dir or run)
    if as_json:
        _print_json(figures)
        return
    table = Table("figure", "estimate", "95 % interval")
    for name, value in figures.items():
        for label, triple in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(triple, list):
                table.add_row(f"{name} {label}".strip(), f"{triple[0]:.3f}", f"{triple[1]:.3f} - {triple[2]:.3f}")
            else:
                table.add_row(name, str(triple), "")
    out.print(table)
    out.print(f"plots: {(out_dir or run) / 'evaluation.png'}")


@app.command()
@_honest
def export(
    run: Annotated[Path, typer.Argument(help="a finished run of `osteon train`")],
    bundle: Annotated[Path, typer.Argument(help="the bundle file to write, e.g. my-model.safetensors")],
) -> None:
    """Evaluate a run, choose its operating points, and write it as a bundle for the worker."""
    from training.export import export as write

    manifest = write(run, bundle.stem, bundle)
    out.print(f"{bundle}: bundle {manifest.name}, {bundle.stat().st_size / 2**20:.1f} MiB")


def main() -> None:
    """The entry point of the `osteon` command."""
    app()


if __name__ == "__main__":
    main()
