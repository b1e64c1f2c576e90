"""Commands for a department that wants to change the order of its worklist: backtest, arrivals."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from rich import box
from rich.table import Table

from infra.cli.terminal import Json, KeyOption, Url, calling, exit_codes, line, out, print_json, renamed
from shared.domain.findings import RESEARCH_USE
from shared.domain.study import Priority
from shared.domain.worklist import TURNAROUND_TARGETS, target_errors
from shared.errors import OsteonError
from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.backtest.figures import Figures
    from infra.backtest.simulation import Department

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()


@app.command()
@exit_codes
def backtest(
    arrivals: Annotated[Path | None, typer.Argument(help="CSV of arrivals; see below")] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="generate arrivals instead, from --seed")] = False,
    seed: Annotated[int, typer.Option(help="of the synthetic arrivals")] = 7,
    days: Annotated[int, typer.Option(min=1, max=3650, help="of the synthetic arrivals")] = 28,
    per_day: Annotated[float, typer.Option(min=1, max=5000, help="synthetic studies a day")] = 240,
    save: Annotated[Path | None, typer.Option(help="write the synthetic arrivals to this CSV")] = None,
    readers: Annotated[int, typer.Option(min=1, max=1000, help="who read at the same time")] = 2,
    hours: Annotated[str, typer.Option(help="when they read, e.g. 8-18; or one for each, 8-18,18-8")] = "0-24",
    reading_minutes: Annotated[
        str, typer.Option(help="for a study that has none of its own: 4, or by class: positive=6,negative=3,4")
    ] = "4",
    analysis_minutes: Annotated[float, typer.Option(min=0, help="from arrival to the model's findings")] = 1,
    targets: Annotated[
        Path | None, typer.Option(help="JSON, as {'negative': {'routine': 1440}}; what it leaves out is as shipped")
    ] = None,
    allowances: Annotated[Path | None, typer.Option(hidden=True)] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the waits to this PNG")] = None,
    as_json: Json = False,
) -> None:
    """Replay arrivals under other orders of the worklist: mean, p95 and maximum wait by finding class.

    The orders are: first come, first served; highest fracture probability first; Osteon's, earliest due time first.
    Readers take the first study of the list and finish it; a wait ends when reading starts.

    ARRIVALS.csv has a first line with the columns' names: arrived_at (2026-01-05T08:30:00), class (positive severe,
    positive, unclear, abstained, negative, pending; or assessment and severity), and, where they are known, priority
    (urgent, routine, backlog), probability (0 to 1), fracture (yes, no), reading_minutes. Shifts go by the clock of
    arrived_at.
    `--synthetic --save ARRIVALS.csv` shows one; `osteon arrivals` makes one of your own studies.
    """
    from infra.backtest import arrivals as made
    from infra.backtest.figures import figures
    from infra.backtest.figures import plot as draw
    from infra.backtest.simulation import Department, Policy, simulate

    if allowances is not None:
        targets = renamed("--allowances", allowances, "--targets", targets)
    if (arrivals is None) != synthetic:
        raise OsteonError("Give a CSV of arrivals, or --synthetic")
    if arrivals is not None:
        replayed, what = made.read_arrivals(arrivals), arrivals.name
    else:
        manifest = made.manifest_of(Settings().bundle_path)
        replayed = made.synthetic_arrivals(manifest, seed, days, per_day)
        what = f"synthetic, seed {seed}, {days} days"
    if save is not None:
        made.write_arrivals(save, replayed)
    department = Department(
        _shifts(hours, readers), _by_class(reading_minutes), analysis_minutes, _targets(targets)
    )  # fmt: skip
    rows = []
    for policy in Policy:
        rows += figures(policy, simulate(replayed, policy, department), department)
    load = _utilisation(replayed, department)
    title = f"{what}: {len(replayed):,} studies, {readers} readers, hours {hours}, load {load:.0%}"
    if plot is not None:
        draw(plot, rows, title)
    if as_json:
        print_json({"title": title, "figures": [asdict(row) for row in rows]})
        return
    if not rows:
        line("No arrivals: nothing to replay.")
        return
    line(title)
    out.print(_table(rows, last=list(Policy)[-1]))
    line(f"Waits in minutes, until reading starts. {RESEARCH_USE}", style="yellow")


def _table(rows: "Sequence[Figures]", last: str) -> Table:
    """The figures by finding class; a line is drawn below the last policy of each."""
    table = Table("finding", "studies", "policy", "mean", "p95", "maximum", "over target", box=box.SIMPLE_HEAD)
    for kind in dict.fromkeys(row.kind for row in rows):
        for index, row in enumerate(each for each in rows if each.kind == kind):
            first = (kind, f"{row.studies:,}") if index == 0 else ("", "")
            cells = (_minutes(row.mean), _minutes(row.p95), _minutes(row.maximum), f"{row.over:.1%}")
            table.add_row(*first, row.policy, *cells, end_section=row.policy == last)
    return table


@app.command()
@exit_codes
def arrivals(
    since: Annotated[datetime, typer.Option(help="first day")],
    until: Annotated[datetime | None, typer.Option(help="day after the last; default: now")] = None,
    out_file: Annotated[Path, typer.Option("--out", help="the CSV to write")] = Path("arrivals.csv"),
    zone: Annotated[str, typer.Option(help="whose clock the times are written by, e.g. Europe/Berlin")] = "UTC",
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Write the arrivals of a period as a CSV for `osteon backtest`: times, priorities and findings, no identities.

    Of the site that the key belongs to. Needs an admin's key.
    """
    import csv

    from infra.backtest.arrivals import COLUMNS
    from shared.domain.worklist import PENDING

    try:
        clock = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        raise OsteonError(f"There is no time zone {zone!r}; name one as Europe/Berlin") from None
    end = datetime.now(UTC) if until is None else until.replace(tzinfo=clock)
    span = {"since": since.replace(tzinfo=clock).isoformat(), "until": end.isoformat()}
    with calling(url, key, "admin") as client:
        rows = [one for one in client.lines("/api/v1/arrivals", **span) if "priority" in one]
    with out_file.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for row in rows:
            severe = row["assessment"] == "positive" and row["severity"] == "severe"
            kind = "positive severe" if severe else row["assessment"] or PENDING
            moment = datetime.fromisoformat(row["received_at"]).astimezone(clock).replace(tzinfo=None)
            chance = row["fracture_probability"]
            table.writerow([moment.isoformat(timespec="seconds"), row["priority"], kind, chance, "", ""])
    print_json({"arrivals": len(rows), "file": out_file}) if as_json else line(f"{len(rows)} arrivals: {out_file}")


def _minutes(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _shifts(text: str, readers: int) -> Any:  # noqa: ANN401 - infra.backtest, imported late
    from infra.backtest.simulation import Shift

    try:
        spans = [tuple(float(hour) for hour in span.split("-")) for span in text.split(",")]
        shifts = [Shift(start, end) for start, end in spans]
    except ValueError:
        shifts = []
    if not shifts or not all(0 <= hour <= 24 for shift in shifts for hour in (shift.start, shift.end)):
        raise OsteonError(f"--hours {text} must be as 8-18, hours from 0 to 24")
    if len(shifts) not in (1, readers):
        raise OsteonError(f"--hours gives {len(shifts)} shifts for {readers} readers; give one, or one for each")
    return shifts * readers if len(shifts) == 1 else shifts


def _by_class(text: str) -> dict[str, float]:
    minutes_by_class: dict[str, float] = {}
    try:
        for part in text.split(","):
            kind, _, minutes = part.rpartition("=")
            minutes_by_class[kind.strip()] = float(minutes)
    except ValueError:
        minutes_by_class = {"?": 0}
    if not minutes_by_class.keys() <= {*TURNAROUND_TARGETS, ""} or not all(
        0 < minutes <= 1440 for minutes in minutes_by_class.values()
    ):
        raise OsteonError(
            f"--reading-minutes {text} must be as 4, or as positive=6,negative=3,4 "
            f"(classes: {', '.join(TURNAROUND_TARGETS)})"
        )
    return {kind: minutes_by_class.get(kind, minutes_by_class.get("", 4.0)) for kind in TURNAROUND_TARGETS}


def _targets(path: Path | None) -> dict[str, dict[Priority, float]]:
    table: dict[str, dict[Priority, float]] = {kind: dict(row) for kind, row in TURNAROUND_TARGETS.items()}
    if path is None:
        return table
    try:
        targets = json.loads(path.read_text())
        for kind, row in targets.get(
            "minutes", targets
        ).items():  # as GET /api/v1/turnaround-targets answers, or the table alone
            table[kind] |= {Priority(priority): float(minutes) for priority, minutes in row.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise OsteonError(f"{path} is no table of turnaround targets ({error}); for its shape see --help") from None
    if wrong_rows := target_errors({kind: {one: int(row[one]) for one in row} for kind, row in table.items()}):
        raise OsteonError(f"{path} breaks the rules for turnaround targets: {'; '.join(wrong_rows)}")
    return table


def _utilisation(replayed: Any, department: "Department") -> float:  # noqa: ANN401 - as above
    """Reading time of all arrivals, as a share of the reading time of all shifts."""
    days = max(1.0, (replayed[-1].at - replayed[0].at) / 1440)
    staffed = sum((shift.end - shift.start) % 24 or 24 for shift in department.shifts) * 60 * days
    return float(sum(department.minutes(each) for each in replayed) / staffed)
