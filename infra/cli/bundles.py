"""Bundles side by side, and runs over history: which there are, how far they are, what they found."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from infra.cli.terminal import Json, KeyOption, Url, calling, connected, honest, line, out, print_json
from shared.errors import OsteonError
from shared.findings import Assessment

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
Name = Annotated[str, typer.Argument(help="a bundle's name, as `osteon bundles` shows it")]


@app.command()
@honest
def bundles(url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """List the stored bundles, the newest first: state, what was measured of each, and what its shadow run does."""
    with calling(url, key, "admin") as client:
        found = client.get("/bundles")
    if as_json:
        print_json(found)
        return
    if not found:
        line("No bundle is stored. Store one with: osteon activate FILE")
        return
    table = Table("bundle", "state", "added", "AUROC", "shadow run", box=box.SIMPLE_HEAD)
    for one in found:
        auroc = one["metrics"].get("fracture_auroc")
        figure = f"{auroc[0]:.3f} ({auroc[1]:.3f} - {auroc[2]:.3f})" if auroc else ""
        cells = one["name"], one["state"], one["added_at"][:10], figure, _state_of(one["run"]) if one["run"] else ""
        table.add_row(*map(Text, cells), style="bold" if one["state"] == "active" else "")
    out.print(table)


@app.command()
@honest
def shadow(
    bundle: Annotated[str, typer.Argument(help="a stored bundle's name, or a bundle file to store first")],
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="only studies that arrived on this day (UTC) or later")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many studies, newest day first")] = None,
    retire: Annotated[bool, typer.Option("--retire", help="stop it instead; what it found stays, unseen")] = False,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Let a bundle look at history unseen by radiologists; then compare the two, and promote it with `activate`.

    It runs on free capacity behind all live work, and beside no night. `osteon backlog` says how far it is.
    """
    name = _stored(bundle)
    with calling(url, key, "admin") as client:
        if retire:
            answer = client.post(f"/bundles/{name}/retire")
        else:
            answer = client.post(
                f"/bundles/{name}/shadow", {"since": since and since.date().isoformat(), "limit": limit}
            )
    print_json(answer) if as_json else line(f"{name}: {answer['state']}, {_state_of(answer['run'])}")


@app.command("compare-bundles")
@honest
def compare_bundles(
    old: Name, new: Name, url: Url = None, key: KeyOption = None, as_json: Json = False
) -> None:  # fmt: skip
    """Set two bundles side by side on the studies of this site that OLD spoke for when NEW looked at them."""
    with calling(url, key, "admin") as client:
        found = client.get(f"/bundles/{old}/compare/{new}")
    if as_json:
        print_json(found)
        return
    line(f"{found['all']['studies']} studies that both have looked at")
    print_changes(found["all"]["changes"], old, new)
    table = Table(
        "region", "studies", "newly positive", "newly negative", "mean change of P", "abstains", box=box.SIMPLE_HEAD
    )
    for region, stratum in [*found["regions"].items(), ("all", found["all"])]:
        changes = stratum["changes"]
        up = sum(changes.get("negative", {}).get(assessment, 0) for assessment in ("unclear", "positive"))
        down = sum(changes.get(assessment, {}).get("negative", 0) for assessment in ("unclear", "positive"))
        moved, abstains = f"{stratum['probability_change']:+.3f}", f"{stratum['abstention_change']:+d}"
        table.add_row(Text(region), str(stratum["studies"]), str(up), str(down), moved, abstains)
    out.print(table)
    for word in ("positive", "negative"):
        for study in found[f"newly_{word}_studies"]:
            line(f"newly {word}: {study}")
    line(found["notice"], style="yellow")


@app.command()
@honest
def backlog(
    night: Annotated[str | None, typer.Argument(help="a night, e.g. 2026-01-12: its whole report")] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Print the latest nightly and shadow runs, those under way with a forecast; or the report of one night."""
    with calling(url, key, "admin") as client:
        found = client.get("/backlog" if night is None else f"/backlog/{night}")
    if as_json:
        print_json(found)
    elif night is None and not found:
        line("No nightly or shadow run yet.")
    elif night is None:
        table = Table("run", "bundle", "failed", "stranded", "outdated", "state", box=box.SIMPLE_HEAD)
        for run in found:
            counts = (str(run[kind]) for kind in ("failed", "stranded", "outdated"))
            table.add_row(run["night"] or "shadow", Text(run["bundle"]), *counts, Text(_state_of(run)))
        out.print(table)
    else:
        print_report(found)


def print_report(report: dict[str, Any]) -> None:
    """One night's report for people: what was done, what changed, and what must be looked at again."""
    run = report["run"]
    line(f"night of {run['night']}, bundle {run['bundle']}: {_state_of(run)}")
    for kind, states in report["kinds"].items():
        line(f"{kind}: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    print_changes(report["changes"], "before", run["bundle"])
    line(f"{report['newly_positive']} studies called negative before are unclear or positive now", style="bold")
    for alert in report["alerts"]:
        seen = "seen" if alert["seen_at"] else "nobody has seen it"
        chance = f"{alert['old_probability']:.2f} -> {alert['new_probability']:.2f}"
        change = f"{alert['old_assessment']} -> {alert['new_assessment']}"
        line(f"  {alert['study_id']}  {change}  {chance}  {alert['region']}  {seen}")
    line(f"{report['from_abstained']} studies that a bundle abstained on before are unclear or positive now")
    for study in report["from_abstained_studies"]:
        line(f"  {study}")
    line(report["notice"], style="yellow")


def print_changes(changes: dict[str, dict[str, int]], old: str, new: str) -> None:
    """A matrix old assessment x new assessment."""
    if not changes:
        return
    table = Table(f"{old} \\ {new}", *Assessment, box=box.SIMPLE_HEAD)
    for before in Assessment:
        if before in changes:
            table.add_row(before, *(str(changes[before].get(after, 0)) for after in Assessment))
    out.print(table)


def _state_of(run: dict[str, Any]) -> str:
    if run["finished_at"]:
        return f"ended {run['finished_at'][:16].replace('T', ' ')} UTC: {run['ended_by']}"
    return str(run["forecast"]["words"])


def _stored(bundle: str) -> str:
    """The bundle's name; a file is stored first."""
    file = Path(bundle)
    if not file.is_file():
        if file.suffix == ".safetensors":
            raise OsteonError(f"{bundle} does not exist")
        return bundle
    from infra.prepare import publish
    from shared.repository import Database

    config = connected()
    database = Database(config.database_url.get_secret_value(), 1)
    try:
        return publish(config, database, file, activate=False)
    except ValueError as wrong:
        raise OsteonError(str(wrong)) from None
    finally:
        database.close()
