"""Commands about bundles and about runs over history."""

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from infra.cli.terminal import (
    Json,
    KeyOption,
    Url,
    calling,
    exit_codes,
    former_name,
    line,
    out,
    print_json,
    stored_bundle,
)
from shared.domain.findings import Assessment

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
Name = Annotated[str, typer.Argument(help="a bundle's name, as `osteon bundles` shows it")]


@app.command()
@exit_codes
def bundles(url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """List the stored bundles, the newest first: state, measured figures, and progress of the shadow run."""
    with calling(url, key, "operator") as client:
        found = client.get("/api/v1/bundles")
    if as_json:
        print_json(found)
        return
    if not found:
        line("No bundle is stored. Store one with: osteon activate FILE")
        return
    table = Table("model", "bundle", "state", "added", "AUROC", "shadow run", box=box.SIMPLE_HEAD)
    for one in found:
        auroc = one["metrics"].get("fracture_auroc")
        figure = f"{auroc[0]:.3f} ({auroc[1]:.3f} - {auroc[2]:.3f})" if auroc else ""
        cells = (
            one["title"],
            one["name"],
            one["state"],
            one["added_at"][:10],
            figure,
            _state_of(one["run"]) if one["run"] else "",
        )
        table.add_row(*map(Text, cells), style="bold" if one["state"] == "active" else "")
    out.print(table)


@app.command()
@exit_codes
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
    """Let a bundle analyse history without showing its findings; then compare, and promote it with `activate`.

    It runs on free capacity behind all live work, and not beside a backfill run. `osteon backfill` says how far it is.
    """
    with calling(url, key, "operator") as client:
        name = quote(bundle if retire else stored_bundle(client, bundle), safe="")
        if retire:
            response = client.post(f"/api/v1/bundles/{name}/retire")
        else:
            response = client.post(
                f"/api/v1/bundles/{name}/shadow", {"since": since and since.date().isoformat(), "limit": limit}
            )
    print_json(response) if as_json else line(f"{response['name']}: {response['state']}, {_state_of(response['run'])}")


@app.command("compare-bundles")
@exit_codes
def compare_bundles(
    old: Name, new: Name, url: Url = None, key: KeyOption = None, as_json: Json = False
) -> None:  # fmt: skip
    """Compare two bundles on the studies of this site that had findings of OLD when NEW analysed them."""
    with calling(url, key, "admin") as client:
        found = client.get(f"/api/v1/bundles/{old}/compare/{new}")
    if as_json:
        print_json(found)
        return
    line(f"{found['all']['studies']} studies that both have looked at")
    if not found["all"]["studies"]:
        line(f"Nothing to compare yet: let {new} look at history with `osteon shadow {new}`.")
        return
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
@former_name(app, "backlog", "backfill")
@exit_codes
def backfill(
    day: Annotated[str | None, typer.Argument(help="the date of a run, e.g. 2026-01-12: its whole report")] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Print the latest backfill and shadow runs, those under way with a forecast; or the report of one run."""
    with calling(url, key, "admin") as client:
        found = client.get("/api/v1/backfill-runs" if day is None else f"/api/v1/backfill-runs/{day}")
    if as_json:
        print_json(found)
    elif day is None and not found:
        line("No backfill or shadow run yet.")
    elif day is None:
        table = Table("run", "bundle", "failed", "stranded", "outdated", "state", box=box.SIMPLE_HEAD)
        for run in found:
            counts = (str(run[kind]) for kind in ("failed", "stranded", "outdated"))
            table.add_row(run["day"] or "shadow", Text(run["bundle"]), *counts, Text(_state_of(run)))
        out.print(table)
    else:
        print_report(found)


def print_report(report: dict[str, Any]) -> None:
    """Print one run's report for people: what was done, what changed, and what must be looked at again."""
    run = report["run"]
    line(f"backfill run of {run['day']}, bundle {run['bundle']}: {_state_of(run)}")
    for kind, states in report["kinds"].items():
        line(f"{kind}: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    print_changes(report["changes"], "before", run["bundle"])
    line(f"{report['newly_positive']} studies called negative before are unclear or positive now", style="bold")
    for finding in report["revised_findings"]:
        seen = "seen" if finding["seen_at"] else "nobody has seen it"
        chance = f"{finding['old_probability']:.2f} -> {finding['new_probability']:.2f}"
        change = f"{finding['old_assessment']} -> {finding['new_assessment']}"
        line(f"  {finding['study_id']}  {change}  {chance}  {finding['region']}  {seen}")
    line(f"{report['from_abstained']} studies that a bundle abstained on before are unclear or positive now")
    for study in report["from_abstained_studies"]:
        line(f"  {study}")
    line(report["notice"], style="yellow")


def print_changes(changes: dict[str, dict[str, int]], old: str, new: str) -> None:
    """Print a matrix of old and new assessments.

    Args:
        changes: numbers of studies, by old and then by new assessment; nothing is printed where it is empty.
        old: heads the rows.
        new: heads the columns.
    """
    if not changes:
        return
    table = Table(f"{old} \\ {new}", *Assessment, box=box.SIMPLE_HEAD)
    for before in Assessment:
        if before in changes:
            table.add_row(before, *(str(changes[before].get(after, 0)) for after in Assessment))
    out.print(table)


def _state_of(run: dict[str, Any]) -> str:
    if run["finished_at"]:
        return f"ended {run['finished_at'][:16].replace('T', ' ')} UTC: {run.get('detail') or run['ended_by']}"
    return str(run["forecast"]["words"])
