"""What readers answered: check that nobody changed it, export it as a training table."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from infra.cli.terminal import Json, KeyOption, connected, honest, line, out, print_json, progress
from shared.errors import OsteonError

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
ledger = typer.Typer(no_args_is_help=True, help="Readers' answers: verify the ledger, export it as a training table.")
app.add_typer(ledger, name="ledger")


@ledger.command()
@honest
def verify(
    expect: Annotated[
        str | None, typer.Option(help="NUMBER:HASH of an entry as an earlier run printed it; tells a cut off end")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that every entry of this site's ledger is as it was written, and none is missing. Exit code 1 if not.

    It prints the last entry as NUMBER:HASH. Keep that elsewhere: a ledger whose end was cut off looks whole by itself.
    """
    from shared.repository import Database
    from shared.repository.answers import check

    config = connected()
    noted = _noted(expect) if expect else None
    database = Database(config.database_url.get_secret_value(), 1)
    try:
        with database.transaction() as session:
            found = check(session, config.site, noted)
    finally:
        database.close()
    head = f"{found.entries}:{found.head}"
    if as_json:
        print_json({"site": found.site, "entries": found.entries, "head": head, "problems": found.problems})
    else:
        for problem in found.problems:
            line(problem, style="bold red")
        line(f"{found.entries} entries, {'CHANGED' if found.problems else 'unchanged'}; last entry {head}")
    if found.problems:
        raise typer.Exit(1)


def _noted(text: str) -> tuple[int, str]:
    number, colon, digest = text.partition(":")
    if not (colon and number.isdecimal() and len(digest) == 64):
        raise typer.BadParameter("must be NUMBER:HASH, as `osteon ledger verify` prints it", param_hint="--expect")
    return int(number), digest


@ledger.command("export")
@honest
def export_table(
    folder: Annotated[Path, typer.Option("--out", help="a new folder for films.csv and the pictures")],
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="only films answered from this day on (UTC)")
    ] = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Export answered films for `osteon train --data`: labels and marks of readers, pictures without any header.

    Patients become pseudonyms; their identities are read for that, under audit, with an admin's key (--key).
    """
    from infra import state
    from infra.training_table import export
    from shared.repository import Database
    from shared.repository.access import Role, Vault, find_key
    from shared.storage import open_store

    config = connected()
    secret = key or state.read_secrets(config.home.absolute())["keys"]["admin"]
    identity_key = config.identity_key.get_secret_value()
    database = Database(config.database_url.get_secret_value(), 1)
    try:
        with database.transaction() as session:
            reader = find_key(session, secret)
        if reader is None or not reader.may(Role.ADMIN):
            raise OsteonError("Give an admin's key with OSTEON_KEY: reading identities is recorded under it")
        store = open_store(config.store_url.get_secret_value())
        day = since.replace(tzinfo=UTC) if since else None
        with progress(quiet=as_json) as bars:
            found = export(
                database, store, Vault(identity_key), f"training table {identity_key}".encode(), reader, folder, day,
                lambda items, total: bars.track(items, total=total, description="films"),
            )  # fmt: skip
    finally:
        database.close()
    if as_json:
        print_json(asdict(found) | {"table": str(folder / "films.csv")})
        return
    out.print(f"{found.films} films")
    for count, why in (
        (found.contradicted, "left out: readers contradict each other"),
        (found.without_label, "left out: no reader says whether it is fractured, or of which region"),
        (found.unreadable, "left out: the original is missing or cannot be decoded"),
    ):
        if count:
            line(f"{count} {why}")
    line(f"train with: osteon train --data {folder} --out runs/mine")
