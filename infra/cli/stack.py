"""The whole system on this machine: up, down, status, demo."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from infra.cli.reading import print_worklist
from infra.cli.terminal import Json, errors, honest, line, out, print_json, progress
from shared.errors import OsteonError
from shared.findings import RESEARCH_USE
from shared.settings import Settings

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()


@app.command()
@honest
def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="return once it is ready; stop it with osteon down")
    ] = False,
    as_json: Json = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="for developers: start a part again when its code or its pages change")
    ] = False,
    ready_fd: Annotated[
        int | None, typer.Option(hidden=True, help="where to write a byte once all parts are ready")
    ] = None,
) -> None:
    """Start the whole system here: Postgres, Valkey, API, worker, beat, Flower.

    Its state lies in OSTEON_HOME (default ./.osteon). OSTEON_DATABASE_URL, OSTEON_BROKER_URL and OSTEON_STORE_URL
    replace the embedded parts by yours. Runs until Ctrl-C.
    """
    from infra.stack import Stack

    if detach and reload:
        raise typer.BadParameter("--reload tells what it does in this terminal; leave --detach out")
    if detach:
        _detach(as_json=as_json)
        return
    with Stack(Settings(), report=_tell, reload=reload) as stack:
        if ready_fd is None:
            _say_where(stack.urls, stack.home, as_json=as_json)
        else:
            os.write(ready_fd, b"1")
            os.close(ready_fd)
        stack.watch()


def _tell(text: str) -> None:
    """What the stack does, beside a command's own output."""
    errors.print(f"  {text}", style="dim", markup=False, highlight=False)


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
        print_json({"api": urls["api"], "flower": urls["flower"], "home": home, "secrets": home / "secrets.json"})
        return
    line("\nOsteon is ready.", style="bold")
    line(f"  page    {urls['api']}/   log in with the key  {secrets['keys']['radiologist']}")
    line(f"  API     {urls['api']}/docs   submit with the key  {secrets['keys']['submitter']}")
    line(f"  Flower  {urls['flower']}/   user {secrets['flower_user']}, password {secrets['flower_password']}")
    line(f"  state   {home}   (osteon down stops it, osteon down --delete removes its data)")
    line(f"  {RESEARCH_USE}\n", style="yellow")


@app.command()
@honest
def down(
    delete: Annotated[bool, typer.Option("--delete", help="remove all its data too: studies, findings, keys")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="with --delete: do not ask")] = False,
    as_json: Json = False,
) -> None:
    """Stop the stack of OSTEON_HOME, wherever it was started.

    --delete asks before it removes anything; where nobody can be asked it does nothing without --yes, and ends with 2.
    """
    from infra import state

    home = Settings().home.absolute()
    if delete and not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter(
                f"removes all data in {home}, and nobody can be asked here; add --yes if that is meant",
                param_hint="--delete",
            )
        typer.confirm(f"Remove all data in {home}: images, findings, answers, keys?", abort=True, err=True)
    ran = state.down(home, delete=delete)
    if as_json:
        print_json({"ran": ran, "deleted": delete})
    else:
        line(f"{'Stopped' if ran else 'No stack ran in'} {home}{'; its data is deleted' if delete else ''}")


@app.command()
@honest
def status(as_json: Json = False) -> None:
    """Show which parts run. Exit code 0: all do, 1: some or all do not."""
    from infra import state

    now = state.status(Settings().home)
    if as_json:
        # the other URLs hold passwords
        print_json(asdict(now) | {"urls": {name: now.urls[name] for name in ("api", "flower") if name in now.urls}})
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


@app.command()
@honest
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

    with Stack(Settings(), report=_tell) as stack:
        key = read_secrets(stack.home)["keys"]["admin"]
        with Client(stack.urls["api"], key) as client, progress() as bar:
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
