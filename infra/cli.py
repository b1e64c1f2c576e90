"""The `osteon` command: everything a person does with Osteon, one verb each."""

# ruff: noqa: FBT002 - whoever calls a command names its options

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar
from uuid import UUID

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from shared.errors import OsteonError, Unavailable
from shared.findings import RESEARCH_USE, Call
from shared.settings import Settings
from shared.study import Priority, StudyStatus

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Osteon reads bone radiographs in batches. {RESEARCH_USE}",
    epilog="Start with `osteon demo`, or `osteon up` and `osteon submit DIR`. Exit codes: 0 done, 1 something failed, "
    "2 wrong usage.",
)
P = ParamSpec("P")
R = TypeVar("R")
Json = Annotated[bool, typer.Option("--json", help="print JSON for scripts instead of text")]
Url = Annotated[str | None, typer.Option(envvar="OSTEON_API_URL", help="the API; default: the local stack's")]
KeyOption = Annotated[
    str | None, typer.Option("--key", envvar="OSTEON_KEY", help="an API key; default: the local stack's")
]
# without a terminal (a file, a pipe) Rich would squeeze everything into 80 columns
WIDTH_OF_FILES = 160
WIDE = 110  # columns from which on the worklist shows everything


def _width(*, terminal: bool) -> int | None:
    return None if terminal or "COLUMNS" in os.environ else WIDTH_OF_FILES


errors = Console(stderr=True, width=_width(terminal=sys.stderr.isatty()))
out = Console(width=_width(terminal=sys.stdout.isatty()))


class Wanted(StrEnum):
    """The priorities that a sender may ask for; the third is the nightly run's own."""

    URGENT = Priority.URGENT
    ROUTINE = Priority.ROUTINE


def _honest(command: Callable[P, R]) -> Callable[P, R]:
    """Known errors become one line and exit code 1, not a trace."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (OsteonError, OSError) as wrong:
            errors.print(f"osteon: {wrong}", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            errors.print("osteon: interrupted", markup=False)
            raise typer.Exit(130) from None

    return run


def _line(text: str, style: str | None = None) -> None:
    """Print text as it is: no markup, and broken only where the terminal breaks it."""
    out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _print_json(value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    print(json.dumps(value, indent=1, default=str))


def _progress(*, quiet: bool = False) -> Progress:
    """Bars on standard error, for people at a terminal only."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=errors, disable=quiet or not errors.is_terminal)


@app.command()
@_honest
def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="return once it is ready; stop it with osteon down")
    ] = False,
    as_json: Json = False,
    ready_fd: Annotated[
        int | None, typer.Option(hidden=True, help="where to write a byte once all parts are ready")
    ] = None,
) -> None:
    """Start the whole system here: Postgres, Valkey, API, worker, beat, Flower.

    Its state lies in OSTEON_HOME (default ./.osteon). OSTEON_DATABASE_URL, OSTEON_BROKER_URL and OSTEON_STORE_URL
    replace the embedded parts by yours. Runs until Ctrl-C.
    """
    from infra.stack import Stack

    if detach:
        _detach(as_json=as_json)
        return
    with Stack(Settings(), report=lambda text: errors.print(f"  {text}", style="dim", markup=False)) as stack:
        if ready_fd is None:
            _say_where(stack.urls, stack.home, as_json=as_json)
        else:
            os.write(ready_fd, b"1")
            os.close(ready_fd)
        stack.watch()


def _detach(*, as_json: bool) -> None:
    """Start a second `osteon up` that outlives this one, and wait for the byte that it writes once it is ready."""
    import signal
    import subprocess

    from infra import state

    home = Settings().home.absolute()
    state.prepare_home(home)
    log = home / "logs" / "up.log"
    log.parent.mkdir(mode=0o700, exist_ok=True)
    before = log.stat().st_size if log.exists() else 0
    ready, theirs = os.pipe()
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "up", "--ready-fd", str(theirs)], pass_fds=[theirs],
            stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    os.close(theirs)
    try:
        is_ready = os.read(ready, 1) == b"1"  # the pipe's end without a byte: it ended before
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise
    finally:
        os.close(ready)
    if not is_ready:
        child.wait()
        said = log.read_bytes()[before:].decode(errors="replace")
        raise OsteonError(f"The stack did not start:\n{said.strip()}")
    _say_where(state.status(home).urls, home, as_json=as_json)


def _say_where(urls: dict[str, str], home: Path, *, as_json: bool = False) -> None:
    from infra import state

    secrets = state.read_secrets(home)
    if as_json:
        _print_json({"api": urls["api"], "flower": urls["flower"], "home": home, "secrets": home / "secrets.json"})
        return
    _line("\nOsteon is ready.", style="bold")
    _line(f"  page    {urls['api']}/   log in with the key  {secrets['keys']['radiologist']}")
    _line(f"  API     {urls['api']}/docs   submit with the key  {secrets['keys']['submitter']}")
    _line(f"  Flower  {urls['flower']}/   user {secrets['flower_user']}, password {secrets['flower_password']}")
    _line(f"  state   {home}   (osteon down stops it, osteon down --delete removes its data)")
    _line(f"  {RESEARCH_USE}\n", style="yellow")


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
        _line(f"{'Stopped' if ran else 'No stack ran in'} {home}{'; its data is deleted' if delete else ''}")


@app.command()
@_honest
def status(as_json: Json = False) -> None:
    """Show which parts run. Exit code 0: all do, 1: some or all do not."""
    from infra import state

    now = state.status(Settings().home)
    if as_json:
        # the other URLs hold passwords
        _print_json(asdict(now) | {"urls": {name: now.urls[name] for name in ("api", "flower") if name in now.urls}})
    elif not now.parts:
        out.print("No stack runs here. Start one with `osteon up`.")
    else:
        table = Table("part", "state", "pid", "port")
        for part in now.parts:
            table.add_row(
                part.name, "running" if part.running else "[red]not running", str(part.pid), str(part.port or "")
            )
        out.print(table)
    raise typer.Exit(0 if now.running and all(part.running for part in now.parts) else 1)


@contextmanager
def _client(url: str | None, key: str | None, role: str) -> Iterator[Any]:
    from infra import state
    from infra.client import Client

    home = Settings().home.absolute()
    if key is None and url is not None:  # the local stack's keys are nobody else's business
        raise OsteonError("Give that API's key with OSTEON_KEY (or --key, which other users of this machine can see)")
    if url is None:
        url = state.environment(home)["OSTEON_API_URL"]
    key = key or state.read_secrets(home)["keys"][role]
    with Client(url, key) as client:
        yield client


@app.command()
@_honest
def submit(
    places: Annotated[list[Path], typer.Argument(help="DICOM files, zip archives, or folders of them")],
    priority: Annotated[Wanted, typer.Option(help="how soon they are wanted")] = Wanted.ROUTINE,
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
    with _client(url, key, "submitter") as client, _progress(quiet=as_json) as bar:
        task = bar.add_task("uploading", total=len(files))
        receipt = client.submit(files, priority, lambda count: bar.update(task, completed=min(count, len(files))))
        reports = {}
        if wait and receipt.studies:
            waiting = bar.add_task("analysing", total=len(receipt.studies))
            reports = client.wait(list(receipt.studies), 3600, lambda count: bar.update(waiting, completed=count))
    rejected = [file for file in receipt.files if file["outcome"] == "rejected"]
    if as_json:
        _print_json(
            {"files": receipt.files, "studies": list(receipt.studies.values()), "reports": list(reports.values())}
        )
    else:
        _print_receipt(receipt, rejected)
    if rejected:
        raise typer.Exit(1)


def _print_receipt(receipt: Any, rejected: list[dict[str, Any]]) -> None:  # noqa: ANN401 - infra.client, imported late
    for file in rejected:
        _line(f"rejected {file['file']}: {file['text']} [{file['reason']}, {file['failure']}]")
    out.print(
        f"{receipt.count('stored')} stored, {receipt.count('duplicate')} duplicate, {len(rejected)} rejected; "
        f"{len(receipt.studies)} studies"
    )


@app.command()
@_honest
def release(
    studies: Annotated[list[UUID], typer.Argument(help="ids of quarantined studies, as worklist and logs show them")],
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Try quarantined studies again, with all their attempts. Exit code 1 if one could not be released."""
    released, refused = [], {}
    with _client(url, key, "admin") as client:
        for study in studies:
            try:
                released.append(client.release(str(study))["id"])
            except Unavailable:
                raise
            except OsteonError as wrong:
                refused[str(study)] = str(wrong)
    if as_json:
        _print_json({"released": released, "refused": refused})
    else:
        out.print(f"{len(released)} released")
        for study_id, why in refused.items():
            _line(f"not released {study_id}: {why}")
    if refused:
        raise typer.Exit(1)


@app.command()
@_honest
def worklist(
    limit: Annotated[int, typer.Option(min=1, max=500, help="rows to print")] = 50,
    after: Annotated[str | None, typer.Option(help="the `next` of the page before")] = None,
    call: Annotated[Call | None, typer.Option(help="only studies with this finding")] = None,
    region: Annotated[str | None, typer.Option(help="only studies of this body region")] = None,
    study_status: Annotated[StudyStatus | None, typer.Option("--status", help="only studies in this state")] = None,
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
    """The worklist as a table; a narrow terminal gets the columns that "why" does not repeat."""
    wide = out.width >= WIDE
    names = (
        ["#", "finding", "P(fracture)", "region", "extent", "state", "why", "study"] if wide else ["#", "why", "study"]
    )
    table = Table(*names, title="Worklist", box=box.SIMPLE_HEAD)
    for row in page["entries"]:
        chance = "" if row["fracture_probability"] is None else f"{row['fracture_probability']:.2f}"
        cells = {
            "#": str(row["rank"]), "finding": row["call"] or "-", "P(fracture)": chance, "region": row["region"],
            "extent": row["severity"] or "", "state": row["status"], "why": row["why"], "study": row["study_id"][:8],
        }  # fmt: skip
        style = {"likely": "bold red", "possible": "yellow"}.get(row["call"] or "", "")
        table.add_row(*(Text(cells[name]) for name in names), style=style)
    out.print(table)
    if page["next"]:
        _line(f"more: osteon worklist --after {page['next']}")
    _line(page["notice"], style="yellow")


@app.command()
@_honest
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="exit after the samples: 0 only if each came out as expected")
    ] = False,
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
                stack.check,
            )
            page = client.worklist(limit=100)
        print_worklist(page)
        wrong = surprises(receipt, reports)
        for surprise in wrong:
            errors.print(
                f"{surprise.file}: expected {surprise.expected}, got {surprise.got}", style="red", markup=False
            )
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
    if not files:
        raise OsteonError("There is no file to read")
    with _progress(quiet=as_json) as bar:
        task = bar.add_task("reading", total=len(files))
        rows = list(straight.predict(reader, files, heatmaps, lambda: bar.advance(task)))
    if csv is not None:
        with csv.open("w", newline="") as file:
            straight.write_csv(rows, file)
    if as_json:
        print(straight.as_json(rows))
    elif csv is None:
        table = Table("file", "frame", "region", "P(fracture)", "call", "extent", "scope or error", box=box.SIMPLE_HEAD)
        for row in rows:
            chance = "" if row.fracture_probability is None else f"{row.fracture_probability:.3f}"
            cells = (
                row.file, str(row.frame or ""), row.region or "", chance, row.call or "", row.severity or "",
                row.error or row.scope or "",
            )  # fmt: skip
            table.add_row(*map(Text, cells), style="red" if row.error else "")
        out.print(table)
        _line(RESEARCH_USE, style="yellow")
    for row in rows:
        if row.error:
            errors.print(f"{row.file}: {row.error}", markup=False, highlight=False, soft_wrap=True)
    if any(row.error for row in rows):
        raise typer.Exit(1)


@app.command()
@_honest
def activate(
    bundle: Annotated[Path, typer.Argument(help="a bundle file, as `osteon export` writes it")],
    as_json: Json = False,
) -> None:
    """Store a bundle and make it the active one; workers take it up between studies, old findings stay as they are."""
    from infra.prepare import publish
    from shared.repository import Database

    config = _connected()
    database = Database(config.database_url.get_secret_value(), 1)
    try:
        name = publish(config, database, bundle, activate=True)
    except ValueError as wrong:
        raise OsteonError(str(wrong)) from None
    finally:
        database.close()
    _print_json({"active": name}) if as_json else out.print(f"{name} is active")


def _connected() -> Settings:
    """Settings with the URLs of the stack that runs here, or those of the environment. Raises OsteonError."""
    from infra import state

    if not {"OSTEON_DATABASE_URL", "OSTEON_STORE_URL"} <= os.environ.keys():
        os.environ |= state.environment(Settings().home)
    return Settings()


@app.command()
@_honest
def revoke(
    name: Annotated[str, typer.Argument(help="the key's name: submitter, radiologist or admin unless you named it")],
    as_json: Json = False,
) -> None:
    """Make an API key of this site invalid at once, its logins too. Exit code 1 if there is none of that name."""
    from shared.repository import Database
    from shared.repository.access import revoke_key

    config = _connected()
    database = Database(config.database_url.get_secret_value(), 1)
    try:
        with database.transaction() as session:
            count = revoke_key(session, config.site, name)
    finally:
        database.close()
    _print_json({"revoked": count}) if as_json else out.print(f"{count} key(s) named {name} revoked")
    if not count:
        raise typer.Exit(1)


ARCHITECTURE = "resnet50, densenet121, densenet169 or vgg16"
Data = Annotated[
    list[Path],
    typer.Option(
        help="a data set: FracAtlas, MURA or GRAZPEDWRI-DX as they are unpacked, or a CSV of own films; may be repeated"
    ),
]
TeacherFolder = Annotated[
    Path | None,
    typer.Option(help="folder of the ImageNet MobileNetV2; without: labels only, which needs far more films"),
]
Strangers = Annotated[
    Path | None, typer.Option(help="folder of DICOM images that are no bone radiographs, to measure abstention on")
]


@app.command()
@_honest
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
    _line(f"weights: {run(recipe, out_dir)}")


def _check_network(architecture: str, *sizes: int) -> None:
    from shared.vision.network import ARCHITECTURES

    if architecture not in ARCHITECTURES:
        raise typer.BadParameter(f"must be {ARCHITECTURE}", param_hint="--architecture")
    if any(size % 32 for size in sizes):
        raise typer.BadParameter("must be a multiple of 32", param_hint="--size, --crop")


@app.command()
@_honest
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
    from shared.vision.network import ARCHITECTURES
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
        _print_json([asdict(line) for line in lines])
    else:
        out.print(table(lines), markup=False, highlight=False, soft_wrap=True)
        _line(f"figure: {out_dir / 'comparison.png'}")


@app.command()
@_honest
def evaluate(
    model: Annotated[Path, typer.Argument(help="a finished run of `osteon train`, or a bundle file")],
    data: Annotated[
        list[Path] | None, typer.Option(help="data sets to measure a bundle on; a run knows its own. May be repeated")
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="all films of the sets, for sets that the bundle was not trained on; else held-out ones"
        ),
    ] = False,
    out_dir: Annotated[Path | None, typer.Option("--out", help="where report.html and metrics.json go")] = None,
    strangers: Strangers = None,
    as_json: Json = False,
) -> None:
    """Measure a model: a report with curves, subgroups and heatmaps, and figures with 95 % intervals.

    On held-out films unless --all says otherwise.
    """
    from training.export import assess_bundle, assess_run, report

    if model.is_dir():
        assessment = assess_run(model, "run")
    elif data:
        assessment = assess_bundle(model, data, everything=everything)
    else:
        raise typer.BadParameter("a bundle needs films to be measured on", param_hint="--data")
    folder = out_dir or (model if model.is_dir() else Path(f"{model.stem}-report"))
    figures = report(assessment, folder, strangers)
    if as_json:
        _print_json(figures)
        return
    table = Table("figure", "estimate", "95 % interval", box=box.SIMPLE_HEAD)
    for name, value in figures.items():
        if isinstance(value, list) and len(value) == 3 and isinstance(value[0], float):
            table.add_row(name, f"{value[0]:.3f}", f"{value[1]:.3f} - {value[2]:.3f}")
        elif isinstance(value, int) or value is None:
            table.add_row(name, "too few films" if value is None else str(value), "")
    out.print(table)
    _line(f"measured on {assessment.note}")
    _line(f"report: {folder / 'report.html'}")


@app.command()
@_honest
def export(
    run: Annotated[Path, typer.Argument(help="a finished run of `osteon train`")],
    bundle: Annotated[Path, typer.Argument(help="the bundle file to write, e.g. my-model.safetensors")],
    strangers: Strangers = None,
) -> None:
    """Evaluate a run, choose its operating points, and write it as a bundle for the worker, with its model card."""
    import re

    from shared.vision.bundle import NAME
    from training.export import export as write

    if not re.match(NAME, bundle.stem):
        raise typer.BadParameter("its name names the bundle: a-z, 0-9, dot, dash, underscore", param_hint="BUNDLE")
    manifest = write(run, bundle.stem, bundle, strangers)
    _line(f"{bundle}: bundle {manifest.name}, {bundle.stat().st_size / 2**20:.1f} MiB")
    _line(f"model card: {bundle.with_suffix('.md')}; report: {run / 'report.html'}")


@app.command()
@_honest
def card(
    bundle: Annotated[Path, typer.Argument(help="a bundle file")],
    as_json: Json = False,
) -> None:
    """Print a bundle's model card: what it learned from, how good it is, and when it abstains."""
    from shared.vision.bundle import load_bundle
    from training.card import card as written

    _, manifest = load_bundle(bundle.read_bytes())
    if as_json:
        _print_json(manifest.model_dump())
    else:
        out.print(written(manifest), markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """The entry point of the `osteon` command."""
    app()


if __name__ == "__main__":
    main()
