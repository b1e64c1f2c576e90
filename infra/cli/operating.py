"""What an administrator does: release, quarantine, activate, revoke."""

import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from infra.cli.terminal import Json, KeyOption, Url, calling, connected, honest, line, out, print_json
from shared.errors import OsteonError, Unavailable

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()


@app.command()
@honest
def release(
    studies: Annotated[
        list[str], typer.Argument(help="ids of studies, as worklist and logs show them; first digits are enough")
    ],
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Try quarantined studies again, and images that broke their decoder, with all attempts.

    Exit code 1 if one could not be released.
    """
    released, refused = [], {}
    with calling(url, key, "admin") as client:
        for study in studies:
            try:
                released.append(client.release(study)["id"])
            except Unavailable:
                raise
            except OsteonError as wrong:
                refused[study] = str(wrong)
    if as_json:
        print_json({"released": released, "refused": refused})
    else:
        out.print(f"{len(released)} released")
        for study_id, why in refused.items():
            line(f"not released {study_id}: {why}")
    if refused:
        raise typer.Exit(1)


quarantine = typer.Typer(no_args_is_help=True, help="Studies that were set aside: list, dismiss, delete them.")
app.add_typer(quarantine, name="quarantine")
Reason = Annotated[str, typer.Option(help="why; it is kept on record, encrypted")]
Study = Annotated[str, typer.Argument(help="a study's id, or its first digits")]


@quarantine.command("list")
@honest
def list_quarantine(
    limit: Annotated[int, typer.Option(min=1, max=500, help="studies to print")] = 50,
    after: Annotated[str | None, typer.Option(help="the `next` of the page before")] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """List the studies in quarantine that were not dismissed, the latest first, each with its reason."""
    with calling(url, key, "admin") as client:
        page = client.get("/quarantine", limit=limit, after=after)
    if as_json:
        print_json(page)
        return
    if not page["studies"]:
        line("Nothing is in quarantine.")
        return
    table = Table("study", "since", "attempts", "images", "reason", box=box.SIMPLE_HEAD)
    for one in page["studies"]:
        since = (one["since"] or "")[:16].replace("T", " ")
        table.add_row(*map(Text, (one["id"][:8], since, str(one["attempts"]), str(one["images"]), one["reason"])))
    out.print(table)
    if page["next"]:
        line(f"more: osteon quarantine list --after {page['next']}")


@quarantine.command()
@honest
def dismiss(study: Study, reason: Reason, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Take a study out of the quarantine and the worklist: nothing is to be done about it."""
    _decide("dismiss", study, reason, url, key, as_json=as_json)


@quarantine.command()
@honest
def delete(
    study: Study,
    reason: Reason,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Delete a study that was set aside, with the patient's identity. Only sending it again brings it back."""
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("nobody can be asked here; add --yes if you mean it", param_hint="--yes")
        typer.confirm(f"Delete study {study} for good?", abort=True, err=True)
    _decide("delete", study, reason, url, key, as_json=as_json)


def _decide(what: str, study: str, reason: str, url: str | None, key: str | None, *, as_json: bool) -> None:
    with calling(url, key, "admin") as client:
        answer = client.post(f"/quarantine/{quote(study, safe='')}/{what}", {"reason": reason})
    print_json(answer) if as_json else line(f"{answer['id']} {answer['decision']}")


@app.command()
@honest
def activate(
    bundle: Annotated[Path, typer.Argument(help="a bundle file, as `osteon export` writes it, or a stored one's name")],
    as_json: Json = False,
) -> None:
    """Store a bundle and make it the active one; workers take it up between studies, the nights look at history again.

    A shadow is promoted by its name: the nights then put in place what it found, without decoding an image.
    """
    from infra.prepare import publish
    from shared.repository import Database
    from shared.repository.bundles import activate_bundle

    config = connected()
    database = Database(config.database_url.get_secret_value(), 1)
    try:
        if bundle.exists() or bundle.suffix == ".safetensors":
            name = publish(config, database, bundle, activate=True)
        else:
            name = str(bundle)
            with database.transaction() as session:
                activate_bundle(session, name)
    except ValueError as wrong:
        raise OsteonError(str(wrong)) from None
    finally:
        database.close()
    print_json({"active": name}) if as_json else out.print(f"{name} is active")


@app.command()
@honest
def revoke(
    name: Annotated[str, typer.Argument(help="the key's name: submitter, radiologist or admin unless you named it")],
    as_json: Json = False,
) -> None:
    """Make an API key of this site invalid at once, its logins too. Exit code 1 if there is none of that name."""
    from shared.repository import Database
    from shared.repository.access import revoke_key

    config = connected()
    database = Database(config.database_url.get_secret_value(), 1)
    try:
        with database.transaction() as session:
            count = revoke_key(session, config.site, name)
    finally:
        database.close()
    print_json({"revoked": count}) if as_json else out.print(f"{count} key(s) named {name} revoked")
    if not count:
        raise typer.Exit(1)
