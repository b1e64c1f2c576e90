"""Commands about readers' feedback: verify it, export it as a training table."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli.terminal import Json, KeyOption, Url, calling, exit_codes, line, out, print_json, progress, warn
from infra.client.api import Client
from shared.domain.feedback import ChainEntry, check_chain

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
feedback = typer.Typer(no_args_is_help=True, help="Readers' feedback: verify its log, export it as a training table.")
app.add_typer(feedback, name="feedback")
ledger = typer.Typer(no_args_is_help=True)  # the name from before 0.2.0; it goes with 0.3.0
ledger.registered_commands = feedback.registered_commands
app.add_typer(ledger, name="ledger", hidden=True)


@ledger.callback()
def _renamed() -> None:
    warn("osteon ledger is now osteon feedback; the old name works until version 0.3.0")


@feedback.command()
@exit_codes
def verify(
    expect: Annotated[
        str | None, typer.Option(help="NUMBER:HASH of an entry as an earlier run printed it; tells a cut off end")
    ] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Check that every entry of your site's feedback log is unchanged and none is missing. Exit code 1 if not.

    The API sends the entries, this command computes the chain. It prints the last entry as NUMBER:HASH. Keep that
    elsewhere: without it nobody can see that the end of a feedback log was removed. Needs an admin's key.
    """
    noted = _noted(expect) if expect else None
    end: dict[str, Any] = {}

    def entries(client: Client) -> Iterator[ChainEntry]:
        for entry in client.lines("/api/v1/feedback"):
            if "hash" in entry:
                yield ChainEntry.from_json(entry)
            else:
                end.update(entry)

    with calling(url, key, "admin") as client:
        found = check_chain(entries(client), noted)
    head = f"{found.entries}:{found.head}"
    if as_json:
        print_json({"site": end["site"], "entries": found.entries, "head": head, "problems": found.problems})
    else:
        for problem in found.problems:
            line(problem, style="bold red")
        line(f"{found.entries} entries, {'CHANGED' if found.problems else 'unchanged'}; last entry {head}")
    if found.problems:
        raise typer.Exit(1)


def _noted(text: str) -> tuple[int, str]:
    number, colon, digest = text.partition(":")
    if not (colon and number.isdecimal() and len(digest) == 64):
        raise typer.BadParameter("must be NUMBER:HASH, as `osteon feedback verify` prints it", param_hint="--expect")
    return int(number), digest


@feedback.command("export")
@exit_codes
def export_table(
    folder: Annotated[Path, typer.Option("--out", help="a new folder for radiographs.csv and the pictures")],
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="only radiographs with feedback from this day on (UTC)"),
    ] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Export answered radiographs for `osteon train --data`: labels and marks of readers, pictures without any header.

    Patients become pseudonyms, the same in every export of that installation; their identities are read for that, under
    audit, so an admin's key is needed.
    """
    from training.datasets.feedback import export_table

    day = since.replace(tzinfo=UTC) if since else None
    with calling(url, key, "admin") as client, progress(quiet=as_json) as bars:
        found = export_table(
            client, folder, day, lambda items, total: bars.track(items, total=total, description="radiographs")
        )  # fmt: skip
    if as_json:
        print_json(asdict(found) | {"table": str(folder / "radiographs.csv")})
        return
    out.print(f"{found.radiographs} radiographs")
    for count, why in (
        (found.contradicted, "left out: readers contradict each other"),
        (found.without_label, "left out: no reader says whether it is fractured, or of which region"),
        (found.unreadable, "left out: the original is missing or cannot be decoded"),
    ):
        if count:
            line(f"{count} {why}")
    line(f"train with: osteon train --data {folder} --out runs/mine")
