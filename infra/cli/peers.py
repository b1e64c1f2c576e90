"""DICOM peers: list, admit, add, change, disable."""

from dataclasses import fields
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from infra.cli.keys import minute
from infra.cli.terminal import Json, KeyOption, Url, calling, exit_codes, line, out, print_json
from shared.domain.peers import Identification, PeerRule
from shared.errors import NotFound, OsteonError

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
peers = typer.Typer(
    no_args_is_help=True,
    help="Devices and archives that may send by DICOM.\n\n"
    "To connect one: let it send an echo to Osteon's port. It is refused, and `osteon peers list` shows it with its AE "
    "title and address. `osteon peers admit TITLE` admits it: its next association is accepted, without a restart.\n\n"
    "A peer is known by its AE titles and, unless you say otherwise, by its address or its TLS certificate. An admin's "
    "key sees the peers of its site, an operator's key those of all sites.",
)
app.add_typer(peers, name="peers")
SETTINGS = [*(field.name for field in fields(PeerRule)), "issuer"]  # what PUT takes
Name = Annotated[str, typer.Argument(help="the peer's name, as `osteon peers list` shows it")]
Site = Annotated[str | None, typer.Option(help="of this site; with an operator's key")]
Address = Annotated[
    str | None, typer.Option(help="IP address, or a network such as 10.1.2.0/24; '' for any. Names are not looked up")
]
Fingerprint = Annotated[
    str | None, typer.Option(help="SHA-256 of its TLS certificate, as openssl prints it; '' for any or none")
]
Called = Annotated[str | None, typer.Option("--called", help="AE title by which it calls Osteon; default: OSTEON")]
Issuer = Annotated[str | None, typer.Option(help="who gives the patient IDs that come without an issuer")]
Send = Annotated[bool | None, typer.Option("--send/--no-send", help="it may store objects; default: send")]
Commit = Annotated[
    bool | None,
    typer.Option(
        "--commit/--no-commit",
        help="it may ask for Storage Commitment, and delete its own objects then; default: no-commit",
    ),
]
Query = Annotated[
    str | None,
    typer.Option(metavar="TITLE@HOST:PORT", help="where a study's images are counted by C-FIND; '' for none"),
]
Silent = Annotated[
    str | None,
    typer.Option(
        "--silent-after",
        metavar="HOURS",
        help="without images it is silent then; 0: never; auto: after 36 if it sends daily; default: auto",
    ),
]


@peers.command("list")
@exit_codes
def list_peers(site: Site = None, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """List the peers with what they sent, and the callers that were refused within 30 days."""
    with calling(url, key, "operator") as client:
        found = [one for one in client.get("/api/v1/dicom-peers") if site in (None, one["site"])]
        callers = client.get("/api/v1/dicom-callers")
    if as_json:
        print_json({"peers": found, "callers": callers})
        return
    if found:
        table = Table(
            "site", "peer", "calling", "called", "known by", "state", "last images", "today", "30 days", "rejected",
            box=box.SIMPLE_HEAD,
        )  # fmt: skip
        for one in found:
            cells = (
                one["site"], one["name"], one["calling_ae"], one["called_ae"], _known(one), _state(one),
                minute(one["last_images_at"]) or "never", f"{one['today']['images']:,}", f"{one['month']['images']:,}",
                f"{one['month']['rejected']:,}",
            )  # fmt: skip
            table.add_row(*map(Text, cells))
        out.print(table)
    else:
        line("No peer. Let the device send an echo, and list again; or add it: osteon peers add --help")
    if callers:
        line("Refused callers; admit one with: osteon peers admit CALLING")
        table = Table("calling", "called", "from", "certificate", "times", "last", "why", box=box.SIMPLE_HEAD)
        for one in callers:
            shown = (
                one["calling_ae"], one["called_ae"], one["address"], one["tls_fingerprint"][:8] or "none",
                f"{one['times']:,}", minute(one["last_at"]), one["detail"],
            )  # fmt: skip
            table.add_row(*map(Text, shown))
        out.print(table)


@peers.command()
@exit_codes
def admit(
    calling_ae: Annotated[str, typer.Argument(metavar="CALLING", help="AE title of a refused caller")],
    address: Annotated[str | None, typer.Option(help="that it called from, if several have this title")] = None,
    known_by: Annotated[
        Identification | None,
        typer.Option(help="beside its titles; default: its certificate if it showed one, else its address"),
    ] = None,
    called: Called = None,
    name: Annotated[str | None, typer.Option(help="of the peer; default: its AE title")] = None,
    issuer: Issuer = None,
    site: Annotated[str | None, typer.Option(help="whose images it sends; with an operator's key")] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Admit a refused caller: its next association is accepted. Exit code 1 if none of that title was refused."""
    settings = _given(known_by=known_by, called_ae=called, name=name, issuer=issuer, site=site)
    with calling(url, key, "operator") as client:
        found = [
            one
            for one in client.get("/api/v1/dicom-callers")
            if one["calling_ae"] == calling_ae.strip() and address in (None, one["address"])
        ]
        found = [one for one in found if one["called_ae"] == called] or found
        if not found:
            raise NotFound(f"no caller {calling_ae} was refused lately; `osteon peers list` shows who was")
        if len(found) > 1:
            places = ", ".join(f"{one['address']} calling {one['called_ae']}" for one in found)
            raise OsteonError(
                f"{len(found)} refused callers have this title: choose one with --address or --called ({places})"
            )
        made = client.post(f"/api/v1/dicom-callers/{found[0]['id']}/admit", settings)
    _tell(made, "may send now", as_json=as_json)


@peers.command()
@exit_codes
def add(
    calling_ae: Annotated[str, typer.Argument(metavar="CALLING", help="AE title of the device or archive")],
    called: Called = None,
    address: Address = None,
    fingerprint: Fingerprint = None,
    name: Annotated[str | None, typer.Option(help="of the peer; default: its AE title")] = None,
    issuer: Issuer = None,
    send: Send = None,
    commit: Commit = None,
    query: Query = None,
    silent_after: Silent = None,
    site: Annotated[str | None, typer.Option(help="whose images it sends; with an operator's key")] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Add a peer before it has called.

    Without --address and --fingerprint its titles alone are checked: whoever reaches the port and knows them can send.
    """
    settings = _rule(called, address, fingerprint, issuer, send, commit, query, silent_after)
    with calling(url, key, "operator") as client:
        made = client.post(
            "/api/v1/dicom-peers", {"calling_ae": calling_ae, **settings, **_given(name=name, site=site)}
        )
    _tell(made, "may send now", as_json=as_json)


@peers.command()
@exit_codes
def change(
    name: Name,
    calling_ae: Annotated[str | None, typer.Option("--calling", help="AE title of the device or archive")] = None,
    called: Called = None,
    address: Address = None,
    fingerprint: Fingerprint = None,
    issuer: Issuer = None,
    send: Send = None,
    commit: Commit = None,
    query: Query = None,
    silent_after: Silent = None,
    site: Site = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Change what is named here and nothing else, from the peer's next association on."""
    settings = _rule(called, address, fingerprint, issuer, send, commit, query, silent_after)
    settings |= _given(calling_ae=calling_ae)
    if not settings:
        raise OsteonError("Nothing to change: name an option, such as --address; see osteon peers change --help")
    with calling(url, key, "operator") as client:
        found = _named(client, name, site)
        kept = {name: found[name] for name in SETTINGS}
        done = client.put(f"/api/v1/dicom-peers/{found['id']}", kept | settings)
    _tell(done, "is changed", as_json=as_json)


@peers.command()
@exit_codes
def disable(name: Name, site: Site = None, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Refuse a peer from its next association on. What it sent stays."""
    with calling(url, key, "operator") as client:
        done = client.post(f"/api/v1/dicom-peers/{_named(client, name, site)['id']}/disable")
    _tell(done, "is refused from now on", as_json=as_json)


@peers.command()
@exit_codes
def enable(name: Name, site: Site = None, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Accept a peer again that was disabled."""
    with calling(url, key, "operator") as client:
        done = client.post(f"/api/v1/dicom-peers/{_named(client, name, site)['id']}/enable")
    _tell(done, "may send again", as_json=as_json)


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _rule(
    called: str | None,
    address: str | None,
    fingerprint: str | None,
    issuer: str | None,
    send: bool | None,  # noqa: FBT001
    commit: bool | None,  # noqa: FBT001
    query: str | None,
    silent_after: str | None,
) -> dict[str, Any]:
    """What of a peer is named by options, as the API takes it."""
    settings = _given(
        called_ae=called, address=address, tls_fingerprint=fingerprint, issuer=issuer, may_send=send, may_commit=commit
    )  # fmt: skip
    if query is not None:
        title, _, place = query.rpartition("@")
        host, _, port = place.rpartition(":")
        if query and not (title and host and port.isascii() and port.isdigit()):
            raise OsteonError("Give --query as TITLE@HOST:PORT, such as PACS@pacs.example:104; '' for none")
        settings |= {"query_ae": title, "query_host": host.strip("[]"), "query_port": int(port or 0)}
    if silent_after is not None:
        if silent_after != "auto" and not (silent_after.isascii() and silent_after.isdigit()):
            raise OsteonError("Give --silent-after as hours, 0 for never, or auto")
        settings["silent_after_h"] = None if silent_after == "auto" else int(silent_after)
    return settings


def _named(client: Any, name: str, site: str | None) -> dict[str, Any]:  # noqa: ANN401 - the client that `calling` gives
    found: list[dict[str, Any]] = [
        one for one in client.get("/api/v1/dicom-peers") if one["name"] == name and site in (None, one["site"])
    ]
    if not found:
        raise NotFound(f"there is no peer named {name}; `osteon peers list` shows all")
    if len(found) > 1:
        sites = ", ".join(sorted(one["site"] for one in found))
        raise OsteonError(f"{len(found)} sites have a peer named {name}: choose one with --site ({sites})")
    return found[0]


def _tell(peer: dict[str, Any], what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(peer)
        return
    line(
        f"{peer['name']} of site {peer['site']} {what}. AE titles: its own {peer['calling_ae']}, "
        f"Osteon's {peer['called_ae']}. Known by {_known(peer)}."
    )


def _known(peer: dict[str, Any]) -> str:
    known = [f"certificate {peer['tls_fingerprint'][:8]}"] if peer["tls_fingerprint"] else []
    return " and ".join(known + ([peer["address"]] if peer["address"] else [])) or "its titles alone"


def _state(peer: dict[str, Any]) -> str:
    if peer["disabled_at"]:
        return f"disabled {minute(peer['disabled_at'])}"
    return f"silent since {minute(peer['silent_since'])}" if peer["silent_since"] else "enabled"
