"""What an administrator does: release, activate, revoke."""

from pathlib import Path
from typing import Annotated

import typer

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
