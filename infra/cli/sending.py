"""What a hospital's bulk sender does: submit."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli.terminal import Json, KeyOption, Url, calling, honest, line, out, print_json, progress
from shared.errors import OsteonError
from shared.study import Priority

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()


class Wanted(StrEnum):
    """The priorities that a sender may ask for; the third is the nightly run's own."""

    URGENT = Priority.URGENT
    ROUTINE = Priority.ROUTINE


@app.command()
@honest
def submit(
    places: Annotated[list[Path], typer.Argument(help="DICOM files, zip archives, or folders of them")],
    priority: Annotated[Wanted, typer.Option(help="how soon they are wanted")] = Wanted.ROUTINE,
    wait: Annotated[bool, typer.Option("--wait", help="wait until all are analysed")] = False,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Upload studies. Safe to repeat: what is stored already costs nothing. Exit code 1 if any file was rejected."""
    from infra.client import files_in

    files = files_in(places)
    if not files:
        raise OsteonError("There is no file to send")
    with calling(url, key, "submitter") as client, progress(quiet=as_json) as bar:
        task = bar.add_task("uploading", total=len(files))
        receipt = client.submit(files, priority, lambda count: bar.update(task, completed=min(count, len(files))))
        reports = {}
        if wait and receipt.studies:
            waiting = bar.add_task("analysing", total=len(receipt.studies))
            reports = client.wait(list(receipt.studies), 3600, lambda count: bar.update(waiting, completed=count))
    rejected = [file for file in receipt.files if file["outcome"] == "rejected"]
    if as_json:
        print_json(
            {"files": receipt.files, "studies": list(receipt.studies.values()), "reports": list(reports.values())}
        )
    else:
        _print_receipt(receipt, rejected)
    if rejected:
        raise typer.Exit(1)


def _print_receipt(receipt: Any, rejected: list[dict[str, Any]]) -> None:  # noqa: ANN401 - infra.client, imported late
    for file in rejected:
        line(f"rejected {file['file']}: {file['text']} [{file['reason']}, {file['failure']}]")
    out.print(
        f"{receipt.count('stored')} stored, {receipt.count('duplicate')} duplicate, {len(rejected)} rejected; "
        f"{len(receipt.studies)} studies"
    )
