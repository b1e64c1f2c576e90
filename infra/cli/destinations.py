"""Where results go: list, add, change, rules, secret, test, disable, retry."""

import time
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from infra.cli.keys import minute
from infra.cli.terminal import Json, KeyOption, Url, calling, exit_codes, line, out, print_json
from shared.domain.destinations import BY_HL7, BY_MESSAGES, DestinationKind, NewerModels, When
from shared.domain.notices import ALARMS, CODECS, HL7_EVENTS, USUAL_EVENTS, AccessionPlace, Event
from shared.domain.results import ResultKind
from shared.errors import NotFound, OsteonError

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
destinations = typer.Typer(
    no_args_is_help=True,
    help="Where results go: archives by DICOM or STOW-RS, folders, receivers of HL7, of webhooks and of mail.\n\n"
    "Nothing leaves until a destination is added, and nothing of before goes there afterwards. Its rules say which "
    "results go, and when; without --when these are the pictures and documents of each study that is complete.",
)
app.add_typer(destinations, name="destinations")
SETTINGS = (
    "kind", "host", "port", "called_ae", "calling_ae", "tls_fingerprint", "url", "folder", "confirm", "application",
    "facility", "sending_application", "sending_facility", "character_set", "accession", "processing", "probability",
    "networks", "address",
)  # fmt: skip
PLACES = "TITLE@HOST:PORT, a URL of STOW-RS, folder:NAME, hl7:HOST:PORT, webhook:URL or mailto:ADDRESS"
USUAL = {DestinationKind.WEBHOOK: USUAL_EVENTS, DestinationKind.MAIL: ALARMS}  # events, where none is chosen
TESTED_WITHIN_S = 60.0
Name = Annotated[str, typer.Argument(help="the destination's name, as `osteon destinations list` shows it")]
Site = Annotated[str | None, typer.Option(help="of this site; with an operator's key")]
Fingerprint = Annotated[
    str | None, typer.Option(help="SHA-256 of its TLS certificate, as openssl prints it; '' to trust its authority")
]
Calling = Annotated[str | None, typer.Option("--calling", help="our AE title, as it knows us; default: OSTEON")]
Confirm = Annotated[
    bool | None, typer.Option("--confirm/--no-confirm", help="DICOM: ask whether it keeps what it was sent")
]
Application = Annotated[str | None, typer.Option(help="of HL7: the receiver's application, MSH-5")]
Facility = Annotated[str | None, typer.Option(help="of HL7: the receiver's facility, MSH-6")]
SendingApplication = Annotated[str | None, typer.Option(help="of HL7: how it knows us, MSH-3; default: OSTEON")]
SendingFacility = Annotated[str | None, typer.Option(help="of HL7: our facility, MSH-4")]
CharacterSet = Annotated[str | None, typer.Option(help=f"of HL7, MSH-18: {', '.join(CODECS)}; default: UNICODE UTF-8")]
Accession = Annotated[
    AccessionPlace | None, typer.Option(help="of HL7: where it looks for the accession number: OBR-3, OBR-2 or both")
]
Processing = Annotated[str | None, typer.Option(help="of HL7, MSH-11: P production, T training, D debugging")]
Probability = Annotated[
    bool | None, typer.Option("--probability/--no-probability", help="of HL7: tell the calibrated probability")
]
Networks = Annotated[
    str | None,
    typer.Option(help="of a webhook: where it may be beside public addresses, as 10.1.0.0/16; with an operator's key"),
]
Events = Annotated[list[Event] | None, typer.Option("--event", help="that HL7, webhooks and mail are told; several")]
Hours = Annotated[str | None, typer.Option("--hours", metavar="FROM-TO", help="when it is sent, such as 7-19")]
Kinds = Annotated[
    list[ResultKind] | None, typer.Option("--kind", help="of object that goes; give it once for each kind")
]
Senders = Annotated[list[str] | None, typer.Option("--sender", help="studies of this key or DICOM peer; several")]
Regions = Annotated[list[str] | None, typer.Option("--region", help="of the body, a code; several")]
Assessments = Annotated[list[str] | None, typer.Option("--assessment", help="of the study; several")]


@destinations.command("list")
@exit_codes
def list_destinations(site: Site = None, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """List the destinations with what waits, has failed and was sent; then what somebody must decide about."""
    with calling(url, key, "operator") as client:
        found = [one for one in client.get("/api/v1/destinations") if site in (None, one["site"])]
        undelivered = client.get("/api/v1/deliveries")
    if as_json:
        print_json({"destinations": found, "deliveries": undelivered})
        return
    if not found:
        line("No destination: results stay here. Add one: osteon destinations add --help")
        return
    table = Table(
        "site", "destination", "where", "state", "waiting", "oldest", "failed", "held", "sent, 24 h", "unconfirmed",
        "rules",
        box=box.SIMPLE_HEAD,
    )  # fmt: skip
    for one in found:
        rules = "; ".join(f"{rule['when']}: {' '.join([*rule['kinds'], *rule['events']])}" for rule in one["rules"])
        cells = (
            one["site"], one["name"], _where(one), _state(one), f"{one['waiting']:,}", minute(one["oldest_at"]) or "-",
            f"{one['failed']:,}", f"{one['held']:,}", f"{one['sent']:,}", _unconfirmed(one),
            rules or "none: nothing goes by itself",
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    out.print(table)
    for one in undelivered:
        words = f" It says: {one['words']}" if one["words"] else ""
        state = "not confirmed" if one["confirmation"] else one["state"]
        what = f"study {one['study_id']}" if one["study_id"] else one["event"]
        line(f"{state}: {what} to {one['destination']}. {one['detail']}{words}")


@destinations.command()
@exit_codes
def add(
    name: Annotated[str, typer.Argument(help="of the destination, as you like")],
    where: Annotated[str, typer.Argument(metavar="WHERE", help=PLACES)],
    tls: Annotated[bool, typer.Option("--tls", help="DICOM or HL7 over TLS")] = False,
    fingerprint: Fingerprint = None,
    calling_ae: Calling = None,
    confirm: Confirm = None,
    application: Application = None,
    facility: Facility = None,
    sending_application: SendingApplication = None,
    sending_facility: SendingFacility = None,
    character_set: CharacterSet = None,
    accession: Accession = None,
    processing: Processing = None,
    probability: Probability = None,
    networks: Networks = None,
    when: Annotated[When, typer.Option(help="what must be true of a study before its results go")] = When.COMPLETE,
    kinds: Kinds = None,
    events: Events = None,
    senders: Senders = None,
    regions: Regions = None,
    assessments: Assessments = None,
    hours: Hours = None,
    by_hand: Annotated[bool, typer.Option("--by-hand", help="no rule: nothing goes there by itself")] = False,
    site: Annotated[str | None, typer.Option(help="whose results go there; with an operator's key")] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Add a destination. Test it then: osteon destinations test NAME.

    The secret that signs what a webhook gets is printed once.
    """
    settings = _place(where, tls=tls) | _given(
        tls_fingerprint=fingerprint, calling_ae=calling_ae, confirm=confirm, site=site, application=application,
        facility=facility, sending_application=sending_application, sending_facility=sending_facility,
        character_set=character_set, accession=accession, processing=processing, probability=probability,
        networks=networks,
    )  # fmt: skip
    if settings["kind"] in BY_MESSAGES and not events:  # as the API has it for this kind
        events = list(USUAL.get(settings["kind"], HL7_EVENTS))
    rule = {"when": when} | _hours(hours) | _given(
        kinds=kinds, events=events, senders=senders, regions=regions, assessments=assessments
    )  # fmt: skip
    settings |= {"name": name, "rules": [] if by_hand else [rule]}
    with calling(url, key, "operator") as client:
        made = client.post("/api/v1/destinations", settings)
    _tell(made, "gets results from now on", as_json=as_json)
    _show_secret(made, as_json=as_json)


@destinations.command()
@exit_codes
def change(
    name: Name,
    where: Annotated[str | None, typer.Option(metavar="WHERE", help=PLACES)] = None,
    fingerprint: Fingerprint = None,
    calling_ae: Calling = None,
    confirm: Confirm = None,
    application: Application = None,
    facility: Facility = None,
    sending_application: SendingApplication = None,
    sending_facility: SendingFacility = None,
    character_set: CharacterSet = None,
    accession: Accession = None,
    processing: Processing = None,
    probability: Probability = None,
    networks: Networks = None,
    site: Site = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Change what is named here and nothing else; what waits goes there from now on."""
    settings = _given(
        tls_fingerprint=fingerprint, calling_ae=calling_ae, confirm=confirm, application=application,
        facility=facility, sending_application=sending_application, sending_facility=sending_facility,
        character_set=character_set, accession=accession, processing=processing, probability=probability,
        networks=networks,
    )  # fmt: skip
    if where is None and not settings:
        raise OsteonError("Nothing to change: name an option, such as --where; see osteon destinations change --help")
    with calling(url, key, "operator") as client:
        found = _named(client, name, site)
        if where is not None:
            settings |= _place(where, tls=str(found["kind"]).endswith("-tls"))
        kept = {one: found[one] for one in SETTINGS}
        done = client.put(f"/api/v1/destinations/{found['id']}", kept | settings)
    _tell(done, "is changed", as_json=as_json)


@destinations.command()
@exit_codes
def rules(
    name: Name,
    when: Annotated[When | None, typer.Option(help="what must be true of a study before its results go")] = None,
    kinds: Kinds = None,
    events: Events = None,
    senders: Senders = None,
    regions: Regions = None,
    assessments: Assessments = None,
    age_from: Annotated[int | None, typer.Option(help="the patient is at least so old, in years")] = None,
    age_to: Annotated[int | None, typer.Option(help="the patient is at most so old, in years")] = None,
    hours: Hours = None,
    newer_models: Annotated[NewerModels | None, typer.Option(help="which results of a newer model go")] = None,
    more: Annotated[bool, typer.Option("--more", help="a further rule; else this one replaces all others")] = False,
    none: Annotated[bool, typer.Option("--none", help="remove all rules: nothing goes there by itself")] = False,
    site: Site = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Show the rules of a destination, or set one. An object goes if one of them wants it."""
    settings = _given(
        when=when, kinds=kinds, events=events, senders=senders, regions=regions, assessments=assessments,
        age_from=age_from, age_to=age_to, newer_models=newer_models,
    ) | _hours(hours)  # fmt: skip
    with calling(url, key, "operator") as client:
        found = _named(client, name, site)
        if settings or none:
            its = [] if none else [*(found["rules"] if more else ()), settings]
            found = client.put(f"/api/v1/destinations/{found['id']}/rules", its)
    if as_json:
        print_json(found["rules"])
        return
    for place, rule in enumerate(found["rules"], 1):
        text = ", ".join(f"{word} {value}" for word, value in rule.items() if value not in (None, [], 0))
        line(f"{place}. {text}")
    if not found["rules"]:
        line(f"{found['name']} has no rule: nothing goes there by itself")


@destinations.command()
@exit_codes
def secret(
    name: Name,
    at_once: Annotated[bool, typer.Option("--at-once", help="the secret before signs nothing any more")] = False,
    site: Site = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Replace the secret of a webhook and print it once; the one before signs too for 24 hours."""
    with calling(url, key, "operator") as client:
        found = _named(client, name, site)
        done = client.post(f"/api/v1/destinations/{found['id']}/secret", {"at_once": at_once})
    _tell(done, "has a new secret", as_json=as_json)
    _show_secret(done, as_json=as_json)


@destinations.command("test")
@exit_codes
def try_out(name: Name, site: Site = None, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Have the process that sends try a destination; nothing is stored there. Exit code 1 if it does not answer."""
    with calling(url, key, "operator") as client:
        found = _named(client, name, site)
        client.post(f"/api/v1/destinations/{found['id']}/test")
        until = time.monotonic() + TESTED_WITHIN_S
        while (found := _named(client, name, found["site"]))["testing"]:
            if time.monotonic() > until:
                raise OsteonError("No process that sends has tried it for a minute: look whether `osteon deliver` runs")
            time.sleep(0.5)
    if as_json:
        print_json(found["test"])
    elif not found["test"]["reason"]:
        line(f"{name} answers ({found['test']['status']})")
    if found["test"]["reason"]:
        words = f" It says: {found['test']['words']}" if found["test"]["words"] else ""
        raise OsteonError(f"{name} does not take results. {found['test']['detail']}{words}")


@destinations.command()
@exit_codes
def disable(name: Name, site: Site = None, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Send nothing more there. What waits stays, and goes once the destination is enabled again."""
    _decide(name, site, url, key, "disable", "gets nothing from now on", as_json=as_json)


@destinations.command()
@exit_codes
def enable(name: Name, site: Site = None, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Send there again."""
    _decide(name, site, url, key, "enable", "gets results again", as_json=as_json)


@destinations.command()
@exit_codes
def retry(name: Name, site: Site = None, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Have all failed deliveries sent again, 1,000 at most. What the destination has accepted is not sent twice.

    Of deliveries that it does not confirm, what it says it does not keep is sent again; else it is asked again.
    """
    _decide(name, site, url, key, "retry", "is tried again", as_json=as_json)


def _decide(
    name: str, site: str | None, url: str | None, key: str | None, verb: str, what: str, *, as_json: bool
) -> None:
    with calling(url, key, "operator") as client:
        done = client.post(f"/api/v1/destinations/{_named(client, name, site)['id']}/{verb}")
    _tell(done, what, as_json=as_json)


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _hours(hours: str | None) -> dict[str, Any]:
    """The hours of a rule, as the API takes them; the rest of the day is quiet."""
    if hours is None:
        return {}
    first, _, last = hours.partition("-")
    if not all(hour.isascii() and hour.isdigit() for hour in (first, last)):
        raise OsteonError("Give --hours as two numbers from 0 to 23, such as 18-6")
    return {"hour_from": int(first), "hour_to": int(last)}


def _place(where: str, *, tls: bool) -> dict[str, Any]:
    """Where a destination is, as the API takes it."""
    if where.startswith(("http://", "https://")):
        return {"kind": DestinationKind.STOW, "url": where}
    if where.startswith("folder:"):
        return {"kind": DestinationKind.FOLDER, "folder": where.removeprefix("folder:")}
    if where.startswith("webhook:"):
        return {"kind": DestinationKind.WEBHOOK, "url": where.removeprefix("webhook:")}
    if where.startswith("mailto:"):
        return {"kind": DestinationKind.MAIL, "address": where.removeprefix("mailto:")}
    if where.startswith("hl7:"):
        host, _, port = where.removeprefix("hl7:").rpartition(":")
        if not (host and port.isascii() and port.isdigit()):
            raise OsteonError("Give hl7:HOST:PORT, such as hl7:ris.example:2575")
        kind = DestinationKind.HL7_TLS if tls else DestinationKind.HL7
        return {"kind": kind, "host": host.strip("[]"), "port": int(port)}
    title, _, place = where.rpartition("@")
    host, _, port = place.rpartition(":")
    if not (title and host and port.isascii() and port.isdigit()):
        raise OsteonError(
            "Give TITLE@HOST:PORT, such as PACS@pacs.example:104; a URL of STOW-RS; folder:NAME; hl7:HOST:PORT; "
            "webhook:URL; or mailto:ADDRESS"
        )
    kind = DestinationKind.DICOM_TLS if tls else DestinationKind.DICOM
    return {"kind": kind, "called_ae": title, "host": host.strip("[]"), "port": int(port)}


def _named(client: Any, name: str, site: str | None) -> dict[str, Any]:  # noqa: ANN401 - the client that `calling` gives
    found: list[dict[str, Any]] = [
        one for one in client.get("/api/v1/destinations") if one["name"] == name and site in (None, one["site"])
    ]
    if not found:
        raise NotFound(f"there is no destination named {name}; `osteon destinations list` shows all")
    if len(found) > 1:
        sites = ", ".join(sorted(one["site"] for one in found))
        raise OsteonError(f"{len(found)} sites have a destination named {name}: choose one with --site ({sites})")
    return found[0]


def _tell(one: dict[str, Any], what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(one)
        return
    line(f"{one['name']} of site {one['site']} {what}: {_where(one)}")


def _show_secret(one: dict[str, Any], *, as_json: bool) -> None:
    if one["secret"] and not as_json:
        line(f"Give this secret to the receiver; it is not shown again: {one['secret']}")


def _where(one: dict[str, Any]) -> str:
    if one["kind"] == DestinationKind.WEBHOOK:
        return f"webhook {one['url']}"
    if one["kind"] == DestinationKind.MAIL:
        return f"mail to {one['address']}"
    if one["kind"] in BY_HL7:
        return f"HL7 at {one['host']}:{one['port']}{' by TLS' if one['kind'] == DestinationKind.HL7_TLS else ''}"
    if one["kind"] == DestinationKind.STOW:
        return str(one["url"])
    if one["kind"] == DestinationKind.FOLDER:
        return f"folder {one['folder']}"
    return f"{one['called_ae']} at {one['host']}:{one['port']}{' by TLS' if one['kind'] == 'dicom-tls' else ''}"


def _unconfirmed(one: dict[str, Any]) -> str:
    """Deliveries that it has not confirmed, those that it will not included."""
    return f"{one['unconfirmed'] + one['not_confirmed']:,}" if one["confirm"] else "-"


def _state(one: dict[str, Any]) -> str:
    if one["disabled_at"]:
        return f"disabled {minute(one['disabled_at'])}"
    return f"away: {one['away_detail']}" if one["away"] else "enabled"
