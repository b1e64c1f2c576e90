"""Commands of a reader who does not use the page: worklist, predict."""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from infra.cli.terminal import WIDE, Json, KeyOption, Url, calling, errors, exit_codes, line, out, print_json, watching
from infra.client.receipt import printable
from shared.domain.findings import RESEARCH_USE, Assessment
from shared.domain.study import StudyStatus
from shared.domain.worklist import duration_text
from shared.errors import OsteonError
from shared.settings import Settings

if TYPE_CHECKING:
    from infra.predict import FileToRead, Row
    from infra.predict import Table as CsvTable

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()


@app.command()
@exit_codes
def worklist(
    limit: Annotated[int, typer.Option(min=1, max=500, help="rows to print")] = 50,
    after: Annotated[str | None, typer.Option(help="the `next` of the page before")] = None,
    assessment: Annotated[Assessment | None, typer.Option(help="only studies with this finding")] = None,
    region: Annotated[str | None, typer.Option(help="only studies of this body region")] = None,
    study_status: Annotated[StudyStatus | None, typer.Option("--status", help="only studies in this state")] = None,
    sort: Annotated[
        str | None, typer.Option(help="another order, as GET /api/v1/worklist has it: `priority`, `-age`, …")
    ] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Print the worklist, most urgent first, each row with its reason. No patient identity is printed."""
    with calling(url, key, "radiologist") as client:
        page = client.worklist(
            limit=limit, after=after, assessment=assessment, region=region, status=study_status, sort=sort
        )
    if as_json:
        print_json(page)
        return
    print_worklist(page, sort)


def print_worklist(page: dict[str, Any], sort: str | None = None) -> None:
    """Print the worklist as a table; a narrow terminal gets fewer columns.

    Args:
        page: as GET /api/v1/worklist answers.
        sort: its order; None: the usual one.
    """
    if not page["entries"]:
        line("No study is on this list.")
        line(page["notice"], style="yellow")
        return
    wide = ["#", "finding", "score", "state", "waiting", "why", "study"]
    names = wide if out.width >= WIDE else ["#", "waiting", "why", "study"]
    table = Table(*names, title="Worklist", box=box.SIMPLE_HEAD)
    for row in page["entries"]:
        score = "" if row["score"] is None else f"{row['score']:.1f}"
        waiting = duration_text(datetime.fromisoformat(row["received_at"])) + (", overdue" if row["overdue"] else "")
        cells = {
            "#": str(row["rank"]), "finding": row["assessment"] or "-", "score": score, "waiting": waiting,
            "state": row["status"] + (f", {row['reader']} reads it" if row["reader"] else ""), "why": row["why"],
            "study": row["study_id"][:8],
        }  # fmt: skip
        style = {"positive": "bold red", "unclear": "yellow"}.get(row["assessment"] or "", "")
        table.add_row(*(Text(cells[name]) for name in names), style=style)
    out.print(table)
    if page["next"]:
        line(f"more: osteon worklist --after {page['next']}{f' --sort={sort}' if sort else ''}")
    line(page["notice"], style="yellow")


@app.command()
@exit_codes
def predict(
    places: Annotated[list[Path], typer.Argument(help="DICOM, PNG or JPEG files, zip archives, or folders of them")],
    as_json: Json = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="write a table to this file, or go on with the one that is there")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="write over the --csv file instead of going on with it")
    ] = False,
    heatmaps: Annotated[Path | None, typer.Option(help="write each image with its heatmap into this folder")] = None,
    bundle: Annotated[Path | None, typer.Option(help="a model bundle; default: the shipped one")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
) -> None:
    """Analyse files with the model, without any server; a worker gives the same results.

    Each row is written as soon as its file is read. After a break the same command with the same --csv continues where
    it stopped: files that have rows are not read again, except those that this machine could not read. Start again with
    --fresh when files or options have changed. The column `file` holds the path from the folder that all places
    have in common; of an archive's member, archive!member.

    Exit code 0: all files were read. 1: a file could not be read. 130: interrupted.
    """
    from infra import predict as straight

    settings = Settings()
    content = (bundle or settings.bundle_path).read_bytes()
    files = straight.files_of(places, settings)
    if not files:
        raise OsteonError("There is no file to read; name a file, or a folder that holds some")
    with contextlib.ExitStack() as closing:
        predictor = closing.enter_context(straight.FilePredictor(content, settings, heatmaps))
        table = None
        if csv is not None:
            name = predictor.predictor.manifest.name
            table = closing.enter_context(straight.Table(csv, name, fresh=fresh))
        earlier = [straight.as_row(row) for row in table.kept] if table else []
        done = {row.file for row in earlier}
        left = [file for file in files if file.name not in done]
        shown = closing.enter_context(_shown(as_json=as_json, table=csv is not None, files=files))
        for row in earlier:
            shown(row)
        if done:
            _say(f"{len(files) - len(left)} of {len(files)} files are in {csv} already, and not read again")
        bar = closing.enter_context(
            watching(len(left), quiet=quiet or (csv is None and not as_json and out.is_terminal))
        )
        totals = _Totals(failed=any(row.error for row in earlier))
        try:
            for rows in closing.enter_context(contextlib.closing(predictor.read(left))):
                totals.tell(rows, shown, table)
                bar(totals.files)
        except KeyboardInterrupt:
            # a second one ends it at once
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            _say(f"osteon: interrupted after {len(done) + totals.files} of {len(files)} files: {_next_step(csv)}")
            raise typer.Exit(130) from None
    if totals.skipped:
        _say(f"{totals.skipped} files are no images by design, as a DICOMDIR or a viewer, and were skipped")
    if not as_json and csv is None:
        line(RESEARCH_USE, style="yellow")
    if totals.failed:
        raise typer.Exit(1)


def _next_step(csv: Path | None) -> str:
    return f"{csv} has them; the same command goes on from there" if csv else "with --csv FILE one could go on there"


@dataclass
class _Totals:
    """Counts of a run of `osteon predict`."""

    files: int = 0
    skipped: int = 0  # files that are no images
    failed: bool = False  # a file could not be read

    def tell(self, rows: "Sequence[Row]", shown: "Callable[[Row], None]", table: "CsvTable | None") -> None:
        """Write the rows of one file to the table, show them, and its errors."""
        if table is not None:
            table.write(rows)
        for row in rows:
            shown(row)
            if row.error:
                self.failed = True
                _say(f"{row.file}: {row.error}")
        self.files += 1
        self.skipped += not rows


def _say(text: str) -> None:
    errors.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _shown(*, as_json: bool, table: bool, files: "Sequence[FileToRead]") -> "Iterator[Callable[[Row], None]]":
    """Make the function that prints a row as it comes: as JSON, not at all beside a CSV, or as a line for people."""
    if as_json:
        before = "[\n"

        def as_object(row: "Row") -> None:
            nonlocal before
            print(before + json.dumps(asdict(row)), end="", flush=True)
            before = ",\n"

        try:
            yield as_object
        finally:  # valid JSON, whatever ended it
            print("[]" if before == "[\n" else "\n]", flush=True)
        return
    if table:
        yield lambda _: None
        return
    widest = min(60, max(len(file.name) for file in files))
    form = f"{{:<{widest}}}  {{:>5}}  {{:<8}}  {{:<10}}  {{:>5}}  {{:<8}}  {{}}"
    names = ("file", "frame", "region", "assessment", "score", "extent", "abstention or error")
    line(form.format(*names), style="bold")

    def as_line(row: "Row") -> None:
        score = "" if row.score is None else f"{row.score:.1f}"
        why = row.error or row.abstention_words or ""
        words = (row.region or "", row.assessment or "", score, row.severity or "", why)
        line(form.format(printable(row.file), row.frame or "", *words).rstrip(), style="red" if row.error else None)

    yield as_line
