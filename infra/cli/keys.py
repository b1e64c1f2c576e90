"""Keys of the API: list, show, add, revoke."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from infra.cli.terminal import Json, KeyOption, Url, calling, exit_codes, line, out, print_json
from shared.domain.security import Role
from shared.errors import NotFound, OsteonError

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
keys = typer.Typer(
    no_args_is_help=True,
    help="Keys of the API. An admin's key sees and makes those of its site, an operator's key those of all sites.",
)
app.add_typer(keys, name="keys")
Name = Annotated[str, typer.Argument(help="the key's name, as `osteon keys list` shows it")]
Site = Annotated[str | None, typer.Option(help="of this site; with an operator's key")]


@keys.command("list")
@exit_codes
def list_keys(
    site: Site = None,
    everything: Annotated[bool, typer.Option("--all", help="those that were revoked or have expired, too")] = False,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """List the valid keys: role, last use, expiry. Secrets are stored nowhere."""
    with calling(url, key, "operator") as client:
        found = [one for one in client.get("/api/v1/keys", site=site) if everything or one["valid"]]
    if as_json:
        print_json(found)
        return
    if not found:
        line("No key." if everything else "No valid key; --all shows those that were revoked or have expired.")
        return
    table = Table("site", "name", "role", "made", "last used", "expires", "state", box=box.SIMPLE_HEAD)
    for one in found:
        cells = (
            one["site"], one["name"] + (" (yours)" if one["yours"] else ""), _role(one), _day(one["created_at"]),
            minute(one["last_used_at"]) or "never", minute(one["expires_at"]) or "never", _state(one),
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    out.print(table)


@keys.command()
@exit_codes
def show(name: Name, site: Site = None, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Show one key, and the addresses that it was used from. Exit code 1 if there is none of that name."""
    with calling(url, key, "operator") as client:
        found = client.get(f"/api/v1/keys/{_named(client, name, site)['id']}")
    if as_json:
        print_json(found)
        return
    for words, value in (
        ("site", found["site"]), ("name", found["name"]), ("role", _role(found)), ("state", _state(found)),
        ("made", minute(found["created_at"])), ("last used", minute(found["last_used_at"]) or "never"),
        ("expires", minute(found["expires_at"]) or "never"), ("patient ID issuer", found["issuer"] or "the setting's"),
        ("id", found["id"]),
    ):  # fmt: skip
        line(f"{words:18}{value}")
    for used in found["addresses"]:
        line(f"{'first used from':18}{used['address']} at {minute(used['first_at'])}")


@keys.command()
@exit_codes
def add(
    name: Annotated[str, typer.Argument(help="who will hold it; the site has no other key of this name")],
    role: Annotated[Role, typer.Option(help="what it may do")],
    days: Annotated[int | None, typer.Option(min=1, help="valid so long; default: until it is revoked")] = None,
    operates: Annotated[bool, typer.Option("--operates", help="an admin's key that is an operator's too")] = False,
    issuer: Annotated[str, typer.Option(help="who gives the patient IDs that its files bring without an issuer")] = "",
    site: Site = None,
    new_site: Annotated[bool, typer.Option("--new-site", help="make the site of --site unless it is there")] = False,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Make a key and print its secret, this once. Exit code 1 if the site has a key of this name.

    submitter: sends studies and sees their states. radiologist: reads. admin: everything at one site. operator: what
    concerns all sites (models, runs over history, metrics, keys of all sites), and no patient.
    """
    expires = datetime.now(UTC) + timedelta(days=days) if days else None
    settings = {
        "name": name, "role": role, "operates": operates, "issuer": issuer, "site": site, "new_site": new_site,
        "expires_at": expires and expires.isoformat(),
    }  # fmt: skip
    with calling(url, key, "operator") as client:
        made = client.post("/api/v1/keys", settings)
    if as_json:
        print_json(made)
        return
    line(f"{_role(made)} key {made['name']} of site {made['site']}. Its secret is shown this once; hand it over now:")
    line(made["secret"])


@keys.command()
@exit_codes
def revoke(name: Name, site: Site = None, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Make a key invalid at once, with its logins. Exit code 1 if there is none of that name."""
    with calling(url, key, "operator") as client:
        found = _named(client, name, site)
        done = client.post(f"/api/v1/keys/{found['id']}/revoke")
    print_json({"revoked": 1, "key": done}) if as_json else line(f"{name} of site {done['site']} is revoked")


app.command(name="revoke", help="As `osteon keys revoke`.")(revoke)


def _named(client: Any, name: str, site: str | None) -> dict[str, Any]:  # noqa: ANN401 - the client that `calling` gives
    found: list[dict[str, Any]] = [one for one in client.get("/api/v1/keys", site=site) if one["name"] == name]
    if not found:
        raise NotFound(f"there is no key named {name}; `osteon keys list --all` shows all")
    if len(found) > 1:
        sites = ", ".join(sorted(one["site"] for one in found))
        raise OsteonError(f"{len(found)} sites have a key named {name}: choose one with --site ({sites})")
    return found[0]


def _role(key: dict[str, Any]) -> str:
    return "admin, operator" if key["operates"] else str(key["role"])


def _state(key: dict[str, Any]) -> str:
    if key["revoked_at"]:
        return f"revoked {minute(key['revoked_at'])}"
    return "valid" if key["valid"] else f"expired {minute(key['expires_at'])}"


def _day(at: str) -> str:
    return at[:10]


def minute(at: str | None) -> str:
    """A time of the API, to the minute; "" for none."""
    return f"{at[:16].replace('T', ' ')} UTC" if at else ""
