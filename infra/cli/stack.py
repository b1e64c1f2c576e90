"""Commands for the whole system on this machine: up, down, status, demo."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from infra.cli.reading import print_worklist
from infra.cli.terminal import Json, KeyOption, Url, calling, errors, exit_codes, line, out, print_json, progress
from shared.domain.findings import RESEARCH_USE
from shared.domain.peers import OUR_TITLE
from shared.errors import OsteonError
from shared.settings import Settings

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()


@app.command()
@exit_codes
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
    """Start the whole system here: Postgres, Valkey, API, DICOM listener, worker, beat, Flower.

    Its state is in OSTEON_HOME (default ./.osteon). OSTEON_DATABASE_URL, OSTEON_BROKER_URL and OSTEON_STORE_URL
    replace the embedded parts by yours. Runs until Ctrl-C.
    """
    from infra.embedded.stack import Stack

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
    """Print what the stack does on standard error, apart from a command's own output."""
    errors.print(f"  {text}", style="dim", markup=False, highlight=False)


def _detach(*, as_json: bool) -> None:
    """Start a second `osteon up` that outlives this one, and wait for the byte that it writes when it is ready."""
    import signal
    import subprocess

    from infra.embedded import state
    from infra.embedded.process import private_folder, private_log

    home = Settings().home.absolute()
    state.prepare_home(home)
    log = home / "logs" / "up.log"
    private_folder(log.parent)
    before = log.stat().st_size if log.exists() else 0
    ready, child_end = os.pipe()
    with private_log(log) as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "up", "--ready-fd", str(child_end)], pass_fds=[child_end],
            stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    os.close(child_end)
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
        output = log.read_bytes()[before:].decode(errors="replace")
        raise OsteonError(f"The stack did not start:\n{output.strip()}")
    _say_where(state.status(home).urls, home, as_json=as_json)


def _say_where(urls: dict[str, str], home: Path, *, as_json: bool = False) -> None:
    from infra.embedded import state

    place = home / "secrets.json"
    if as_json:
        told = {
            "api": urls["api"],
            "flower": urls["flower"],
            "dicom": urls.get("dicom"),
            "home": home,
            "secrets": place,
        }
        print_json(told)
        return
    host, _, port = urls.get("dicom", "").rpartition(":")
    # keys are not printed: terminals are recorded, and output lands in logs
    valid, admitted = _known_keys(urls["database"], state.read_secrets(home)["keys"], host)
    line("\nOsteon is ready.", style="bold")
    for name, role, path, use in (("page", "radiologist", "/", "log in"), ("API", "submitter", "/docs", "submit")):
        with_key = (
            f"{use} with the {role}'s key in {place}"
            if role in valid
            else f"the {role}'s key is revoked: osteon keys add"
        )
        line(f"  {name:7} {urls['api']}{path}   {with_key}")
    if host:
        line(f"  DICOM   AE title {OUR_TITLE}, host {host}, port {port}   for senders that an administrator admits")
    line(f"  Flower  {urls['flower']}/   flower_user and flower_password in the same file")
    line(f"  state   {home}   (osteon down stops it, osteon down --delete removes its data)")
    line(f"  {RESEARCH_USE}", style="yellow")
    if host and Settings().dicom_port:
        from infra.demo import SENDER, dcmsend_command

        first = "" if admitted else f"osteon peers add {SENDER} --address {host.strip('[]')} && "
        line(f"\nSend the samples by DICOM, with DCMTK installed:\n{first}{dcmsend_command(host, int(port))}")
    line("")


def _known_keys(database_url: str, keys: dict[str, str], host: str) -> tuple[set[str], bool]:
    """Name the roles whose keys are known, for a revoked key is not offered; say whether dcmsend may send from here."""
    from infra.demo import SENDER
    from shared.db.engine import JOBS, Database
    from shared.domain.peers import Caller
    from shared.queries.access import find_key
    from shared.queries.peers import find_peer

    database = Database(database_url, 1, JOBS)
    try:
        with database.transaction() as session:
            valid = {role for role, secret in keys.items() if find_key(session, secret) is not None}
            return valid, find_peer(session, Caller(SENDER, OUR_TITLE, host.strip("[]"), "")) is not None
    finally:
        database.close()


@app.command()
@exit_codes
def dicom() -> None:
    """Receive images over a DICOM network (C-STORE, C-ECHO) in this terminal, beside an installation that runs.

    `osteon up` and Compose start it by themselves. OSTEON_DICOM_HOST and OSTEON_DICOM_PORT say where it listens; it
    needs the same settings as the API, and the package's extra `api`. Runs until Ctrl-C.
    """
    from api.listener.server import main

    main()


@app.command()
@exit_codes
def results() -> None:
    """Make the DICOM objects of results in this terminal, beside an installation that runs, until Ctrl-C.

    `osteon up` starts it by itself. It needs the settings and the extra of the worker.
    """
    from worker.results.main import main

    main()


@app.command()
@exit_codes
def deliver() -> None:
    """Send results to their destinations in this terminal, beside an installation that runs, until Ctrl-C.

    `osteon up` starts it by itself. It needs the settings of the worker, and the package's extra `api`.
    """
    from worker.delivery.main import main

    main()


@app.command()
@exit_codes
def down(
    delete: Annotated[bool, typer.Option("--delete", help="remove all its data too: studies, findings, keys")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="with --delete: do not ask")] = False,
    as_json: Json = False,
) -> None:
    """Stop the stack of OSTEON_HOME, wherever it was started.

    --delete asks before it removes anything; where nobody can be asked it does nothing without --yes, and ends with 2.
    """
    from infra.embedded import state

    home = Settings().home.absolute()
    if delete and not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter(
                f"removes all data in {home}, and nobody can be asked here; add --yes if that is meant",
                param_hint="--delete",
            )
        typer.confirm(f"Remove all data in {home}: images, findings, feedback, keys?", abort=True, err=True)
    ran = state.down(home, delete=delete)
    if as_json:
        print_json({"ran": ran, "deleted": delete})
    else:
        line(f"{'Stopped' if ran else 'No stack ran in'} {home}{'; its data is deleted' if delete else ''}")


@app.command()
@exit_codes
def status(url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Show which parts run: those of the stack of OSTEON_HOME, or of the API that --url (OSTEON_API_URL) names.

    An API reports its database, store and broker, workers, queues, and of what is stuck, to an admin's key.
    Exit code 0: all is well, 1: some or all parts do not run, or something is stuck.
    """
    if url is not None:
        with calling(url, key, "admin") as client:
            well = _show_operations(url, client.get("/api/v1/operations"), as_json=as_json)
        raise typer.Exit(0 if well else 1)
    from infra.embedded import state

    now = state.status(Settings().home)
    if as_json:
        # the other URLs hold passwords
        print_json(
            asdict(now) | {"urls": {name: now.urls[name] for name in ("api", "dicom", "flower") if name in now.urls}}
        )
    elif not now.parts:
        line("No stack runs here. Start one with `osteon up`, or name an API with OSTEON_API_URL.")
    else:
        table = Table("part", "state", "pid", "port")
        for part in now.parts:
            table.add_row(
                part.name, "running" if part.running else "[red]not running", str(part.pid), str(part.port or "")
            )
        out.print(table)
    raise typer.Exit(0 if now.running and all(part.running for part in now.parts) else 1)


def _show_operations(url: str, found: dict[str, Any], *, as_json: bool) -> bool:
    """Print the state of an installation, found by GET /api/v1/operations; return whether all is well."""
    health, troubles = found["health"], found["troubles"]
    alive = [one for one in found["workers"] if one["state"] == "alive"]
    active = next((one["name"] for one in found["bundles"] if one["state"] == "active"), None)
    well = bool(health["ready"]) and not troubles
    if as_json:
        report = {"api": url, "well": well, "ready": health["ready"], "parts": health["parts"], "troubles": troubles}
        print_json(report | {"workers": found["workers"], "queues": found["queues"], "bundle": active})
        return well
    table = Table("part", "state", box=box.SIMPLE_HEAD)
    table.add_row("api", Text(url))
    for name, state in health["parts"].items():
        table.add_row(name, Text(state, style="" if state == "ok" else "red"))
    table.add_row("workers", Text(f"{len(alive)} alive, {sum(one['in_hand'] for one in alive)} studies in hand"))
    table.add_row("bundle", Text(active or "none is active"))
    for queue in found["queues"]:
        table.add_row(f"{queue['queue']} queue", f"{queue['waiting']} wait")
    out.print(table)
    for trouble in troubles:
        line(trouble, style="bold red")
    return well


@app.command()
@exit_codes
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="exit after the samples: 0 only if each came out as expected")
    ] = False,
) -> None:
    """Start everything, analyse the sample studies, print the worklist, and leave the page open until Ctrl-C."""
    from infra.client.api import Client
    from infra.demo import mismatches, run_samples
    from infra.embedded.stack import Stack
    from infra.embedded.state import read_secrets

    with Stack(Settings(), report=_tell) as stack:
        keys = read_secrets(stack.home)["keys"]
        with Client(stack.urls["api"], keys["admin"]) as client, progress() as bar:
            sending, waiting = bar.add_task("uploading", total=None), bar.add_task("analysing", total=None)
            receipt, reports = run_samples(
                client,
                lambda count: bar.update(sending, completed=count, total=count),
                lambda count: bar.update(waiting, completed=count),
                stack.check,
            )
            page = client.worklist(limit=100)
        print_worklist(page)
        found = mismatches(receipt, reports)
        for mismatch in found:
            errors.print(
                f"{mismatch.file}: expected {mismatch.expected}, got {mismatch.got}", style="red", markup=False
            )
        rejected = receipt.count("rejected")
        kept = sum(report["status"] == "kept" for report in reports.values())
        analysed = sum(report["status"] == "analysed" for report in reports.values())
        out.print(
            f"{analysed} studies analysed, {kept} kept and not analysed, {rejected} broken files rejected, "
            f"{len(found)} mismatches"
        )
        _admit_sender(stack.urls, keys)
        _say_where(stack.urls, stack.home)
        if not once:
            out.print("Ctrl-C stops it.")
            stack.watch()
    if found:
        raise typer.Exit(1)


def _admit_sender(urls: dict[str, str], keys: dict[str, str]) -> None:
    """Let dcmsend send from this machine, so that the line that is printed works."""
    from infra.client.api import Client
    from infra.demo import admit_sender

    host = urls.get("dicom", "").rpartition(":")[0]
    if host and not _known_keys(urls["database"], keys, host)[1]:
        with Client(urls["api"], keys["operator"]) as client:
            admit_sender(client, host)
