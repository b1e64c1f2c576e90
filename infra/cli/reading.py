"""What a reader does without the page: worklist, predict."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from infra.cli.terminal import WIDE, Json, KeyOption, Url, calling, errors, honest, line, out, print_json, progress
from shared.errors import OsteonError
from shared.findings import RESEARCH_USE, Assessment
from shared.settings import Settings
from shared.study import StudyStatus
from shared.worklist import span

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()


@app.command()
@honest
def worklist(
    limit: Annotated[int, typer.Option(min=1, max=500, help="rows to print")] = 50,
    after: Annotated[str | None, typer.Option(help="the `next` of the page before")] = None,
    assessment: Annotated[Assessment | None, typer.Option(help="only studies with this finding")] = None,
    region: Annotated[str | None, typer.Option(help="only studies of this body region")] = None,
    study_status: Annotated[StudyStatus | None, typer.Option("--status", help="only studies in this state")] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Print the worklist, most urgent first, each row with its reason. No patient identity is printed."""
    with calling(url, key, "radiologist") as client:
        page = client.worklist(limit=limit, after=after, assessment=assessment, region=region, status=study_status)
    if as_json:
        print_json(page)
        return
    print_worklist(page)


def print_worklist(page: dict[str, Any]) -> None:
    """The worklist as a table; a narrow terminal gets fewer columns."""
    wide = ["#", "finding", "score", "state", "waiting", "why", "study"]
    names = wide if out.width >= WIDE else ["#", "waiting", "why", "study"]
    table = Table(*names, title="Worklist", box=box.SIMPLE_HEAD)
    for row in page["entries"]:
        score = "" if row["score"] is None else f"{row['score']:.1f}"
        waiting = span(datetime.fromisoformat(row["received_at"])) + (", overdue" if row["overdue"] else "")
        cells = {
            "#": str(row["rank"]), "finding": row["assessment"] or "-", "score": score, "waiting": waiting,
            "state": row["status"] + (f", {row['reader']} reads it" if row["reader"] else ""), "why": row["why"],
            "study": row["study_id"][:8],
        }  # fmt: skip
        style = {"positive": "bold red", "unclear": "yellow"}.get(row["assessment"] or "", "")
        table.add_row(*(Text(cells[name]) for name in names), style=style)
    out.print(table)
    if page["next"]:
        line(f"more: osteon worklist --after {page['next']}")
    line(page["notice"], style="yellow")


@app.command()
@honest
def predict(
    places: Annotated[list[Path], typer.Argument(help="DICOM, PNG or JPEG files, or folders of them")],
    as_json: Json = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="write a table to this file")] = None,
    heatmaps: Annotated[Path | None, typer.Option(help="write each film with its heatmap into this folder")] = None,
    bundle: Annotated[Path | None, typer.Option(help="a model bundle; default: the shipped one")] = None,
) -> None:
    """Read films straight through the model, without any server. Exit code 1 if a file could not be read."""
    from infra import predict as straight
    from infra.sending.walk import files_in
    from shared.vision.reader import Reader

    reader = Reader.of_bundle((bundle or Settings().bundle_path).read_bytes())
    files = files_in(places)
    if not files:
        raise OsteonError("There is no file to read")
    with progress(quiet=as_json) as bar:
        task = bar.add_task("reading", total=len(files))
        rows = list(straight.predict(reader, files, heatmaps, lambda: bar.advance(task)))
    if csv is not None:
        with csv.open("w", newline="") as file:
            straight.write_csv(rows, file)
    if as_json:
        print(straight.as_json(rows))
    elif csv is None:
        table = Table(
            "file", "frame", "region", "assessment", "score", "extent", "abstention or error", box=box.SIMPLE_HEAD
        )
        for row in rows:
            score = "" if row.score is None else f"{row.score:.1f}"
            cells = (
                row.file, str(row.frame or ""), row.region or "", row.assessment or "", score, row.severity or "",
                row.error or row.abstention_words or "",
            )  # fmt: skip
            table.add_row(*map(Text, cells), style="red" if row.error else "")
        out.print(table)
        line(RESEARCH_USE, style="yellow")
    for row in rows:
        if row.error:
            errors.print(f"{row.file}: {row.error}", markup=False, highlight=False, soft_wrap=True)
    if any(row.error for row in rows):
        raise typer.Exit(1)
