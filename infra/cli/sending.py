"""The command of a hospital's bulk sender: submit."""

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from infra.cli.terminal import Json, KeyOption, Url, calling, errors, exit_codes, line, out, print_json, progress
from shared.domain.study import Priority
from shared.errors import OsteonError

if TYPE_CHECKING:
    from infra.client.journal import Journal
    from infra.client.manifest import ReconciliationRow
    from infra.client.submission import Submission

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
MAX_NAMED = 20  # files that the terminal names; the receipt names all
STALLED_S = 3600.0  # a wait is given up when no study has ended for so long
REJECTED, MISSING, INTERRUPTED = 1, 3, 130  # exit codes
STOPPING = "Finishing what is on its way; Ctrl-C again waits for nothing"


class SubmitterPriority(StrEnum):
    """The priorities that a sender may ask for; the third one belongs to the backfill run."""

    URGENT = Priority.URGENT
    ROUTINE = Priority.ROUTINE


@app.command()
@exit_codes
def submit(
    places: Annotated[list[Path], typer.Argument(help="DICOM files, zip archives, or folders of them")],
    priority: Annotated[SubmitterPriority, typer.Option(help="how soon they are wanted")] = SubmitterPriority.ROUTINE,
    wait: Annotated[bool, typer.Option("--wait", help="wait until all are analysed")] = False,
    jobs: Annotated[int, typer.Option(min=1, max=32, help="requests at a time")] = 4,
    receipt: Annotated[
        Path | None, typer.Option(help="FILE.csv or FILE.json, a line a file; default: beside the journal")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="CSV of what should come: by instance, study (with images) or accession number")
    ] = None,
    give_up_after: Annotated[float, typer.Option(min=0, help="seconds without a response of the API")] = 900,
    fresh: Annotated[bool, typer.Option("--fresh", help="forget what earlier runs sent, and send all again")] = False,
    journal: Annotated[
        Path | None, typer.Option(help="where to remember what is stored; default: in your state folder")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Upload studies. Safe to repeat: what is stored already is not sent again.

    After a break (Ctrl-C, a crash, a lost network) the same command continues where it stopped; a file that has changed
    since is sent again. A manifest's first line names its columns: sop_instance_uid, study_instance_uid,
    accession_number, images (other common spellings are understood); each row should come, and what is missing is
    listed.

    Files on a patient's disc that are no images (DICOMDIR, viewer, texts) are skipped; this is no failure.

    Exit code 0: all is stored. 1: some file was rejected, could not be read, or was not sent; with --wait also when a
    study is quarantined. 3: something that the manifest lists did not come. 130: interrupted.
    """
    from infra.client import manifest as manifests
    from infra.client import receipt as receipts
    from infra.client.journal import default_path
    from infra.client.submission import Submission
    from infra.client.watching import watching

    entries = None if manifest is None else manifests.read_manifest(manifest)
    with calling(url, key, "submitter") as client, contextlib.ExitStack() as closing:
        remembered = _open(journal or default_path(client.url, places), client, give_up_after, fresh=fresh)
        if remembered is not None:
            closing.enter_context(remembered)
        sending = Submission(client, places, priority, jobs, give_up_after, remembered, identify=entries is not None)
        # until the receipt is written: whatever happens, it names every file
        interrupted = closing.enter_context(_interruptible(sending))
        failure = _run(sending, watching(sending, errors, quiet=quiet or as_json), interrupted)
        lines = sending.lines
        if not lines:
            raise failure or OsteonError("There is no file to send; name a file, or a folder that holds some")
        rows = None if entries is None else manifests.reconcile(entries, sending.identified)
        where = receipt or _usual_receipt(places)
        summary: dict[str, Any] = {
            **sending.summary(), "counts": receipts.counts(lines), "reasons": receipts.reasons(lines),
            "interrupted": bool(interrupted), "studies": list(sending.studies.values()), "receipt": where,
        }  # fmt: skip
        if rows is not None:
            summary["manifest"] = {"counts": manifests.counts(rows), "rows": [asdict(row) for row in rows]}
        _write(where, sending, summary, rows, as_csv=receipt is not None)
        if not as_json:
            _print(sending, summary)
        interrupted.restore_handlers()
        summary["reports"], summary["quarantined"] = [], []
        if wait and sending.tally.studies and not interrupted and failure is None:
            summary["reports"], summary["quarantined"] = _wait(client, sending, as_json=as_json)
        if as_json:
            print_json(summary | {"files": [asdict(each) for each in lines]})
    if failure is not None:
        raise failure
    if code := _exit_code(summary, rows, interrupted=bool(interrupted)):
        raise typer.Exit(code)


def _exit_code(summary: dict[str, Any], rows: "list[ReconciliationRow] | None", *, interrupted: bool) -> int:
    """The exit code of a run whose every file was answered for, or that was interrupted."""
    from infra.client import receipt as receipts

    if interrupted:
        return INTERRUPTED
    if any(row.kept in ("missing", "incomplete", "rejected") for row in rows or ()):
        return MISSING
    fine = sum(summary["counts"][fate] for fate in receipts.NOTHING_TO_DO)
    return REJECTED if fine < sum(summary["counts"].values()) or summary["quarantined"] else 0


def _open(
    path: Path,
    client: Any,  # noqa: ANN401 - infra.client.api, imported late
    give_up_after_s: float,
    *,
    fresh: bool,
) -> "Journal | None":
    """Open the journal, without studies that the API lacks or has in part; None, with a warning, if it has no place."""
    from infra.client.journal import Journal
    from infra.client.submission import forget_missing_studies

    try:
        journal = Journal(path, fresh=fresh)
    except OSError as error:
        errors.print(
            f"No journal can be kept at {path} ({error.strerror}): after a break all files are sent again. "
            "Name another place with --journal.",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        return None
    if len(journal):
        try:
            gone = forget_missing_studies(journal, client, give_up_after_s)
        except BaseException:
            journal.__exit__()
            raise
        if gone:
            errors.print(f"The API lacks images of studies that were sent earlier; their {gone} files are sent again.")
    return journal


def _write(
    where: Path,
    sending: "Submission",
    summary: dict[str, Any],
    rows: "list[ReconciliationRow] | None",
    *,
    as_csv: bool,
) -> None:
    """Write the receipt, and the manifest's result beside a CSV. Raises OSError only for a file that was named."""
    from infra.client import manifest as manifests
    from infra.client import receipt as receipts

    try:
        receipts.write(where, sending.lines, summary)
        if rows is not None and where.suffix.lower() != ".json":
            summary["reconciled"] = where.with_name(f"{where.stem}-manifest.csv")
            manifests.write_result(summary["reconciled"], rows)
    except OSError as error:
        summary["receipt"] = other = _write_to_temporary_folder(where, sending, summary)
        put = f"it is at {other}" if other else "nor in the folder for temporary files"
        why = f"No receipt can be written at {where} ({error.strerror}), {put}"
        if as_csv:
            raise OsteonError(why) from None
        errors.print(f"{why}; name another place with --receipt.", markup=False, highlight=False, soft_wrap=True)


def _write_to_temporary_folder(where: Path, sending: "Submission", summary: dict[str, Any]) -> Path | None:
    """Write the receipt to a temporary folder; None if that fails too."""
    from infra.client import receipt as receipts

    try:
        other = Path(tempfile.mkdtemp(prefix="osteon-receipt-")) / where.name
        receipts.write(other, sending.lines, summary)
    except OSError:
        return None
    return other


def _usual_receipt(places: list[Path]) -> Path:
    from infra.client.journal import state_folder

    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%fZ")
    return state_folder() / "receipts" / f"{moment}-{places[0].resolve().name or 'root'}.csv"


class _Interrupts:
    """Count how often this run was asked to end: by Ctrl-C, SIGTERM or a closed terminal.

    The first one finishes what is on its way and sends no more. The second waits for no response; what was found and
    not sent is still listed. The third lists no further. The receipt is written in any case.
    """

    def __init__(self, sending: "Submission") -> None:
        self._sending, self._count = sending, 0
        self._before: dict[int, Any] = {}
        self.abandoning = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                self._before[number] = signal.signal(number, self._handle)

    def __bool__(self) -> bool:
        return self._count > 0

    def is_third(self) -> bool:
        """Whether a third one came."""
        return self._count > 2

    def restore_handlers(self) -> None:
        """Restore what signals did before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._count == 1:
            self._sending.uploader.stop()
            self._sending.tally.notice = STOPPING
            if not errors.is_terminal:
                with contextlib.suppress(OSError):  # the terminal may be gone
                    sys.stderr.write(f"{STOPPING}\n")
        elif not self.abandoning:
            self.abandoning = True
            raise KeyboardInterrupt


@contextlib.contextmanager
def _interruptible(sending: "Submission") -> Iterator[_Interrupts]:
    interrupts = _Interrupts(sending)
    try:
        yield interrupts
    finally:
        interrupts.restore_handlers()


def _run(
    sending: "Submission", shown: contextlib.AbstractContextManager[None], interrupts: _Interrupts
) -> BaseException | None:
    """Send, and return what ended it early, except a wish to end. Afterwards each file that was found has a line."""
    failure: BaseException | None = None
    try:
        with shown:
            sending.run()
    except KeyboardInterrupt:
        sending.mark_unsent(interrupts.is_third)
    except Exception as error:  # noqa: BLE001 - raised again once the receipt is written
        failure = error
        interrupts.abandoning = True
        sending.mark_unsent(interrupts.is_third)
    interrupts.abandoning = True  # nothing but the receipt is left to do
    return failure or sending.uploader.failure


def _wait(
    client: Any,  # noqa: ANN401 - as above
    sending: "Submission",
    *,
    as_json: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Wait until all studies are analysed; return their reports for scripts, and those that are quarantined.

    Each of the latter is printed with its reason and the files that were sent of it.
    """
    from infra.client.receipt import printable

    study_ids = sorted(sending.tally.studies)
    with progress(quiet=as_json) as bar:
        task = bar.add_task("analysing", total=len(study_ids))
        ended = client.wait_for_states(study_ids, STALLED_S, lambda count: bar.update(task, completed=count))
    files: dict[str, list[str]] = {}
    for each in sending.lines:
        if each.study_id:
            files.setdefault(each.study_id, []).append(each.file)
    failed = [
        {
            "study": state["id"],
            "reason": state["reason"],
            "detail": state.get("detail", ""),
            "files": files.get(state["id"], []),
        }
        for state in ended.values()
        if state["status"] == "quarantined"
    ]
    if as_json:
        return [client.retry_while_away(partial(client.report, study_id)) for study_id in study_ids], failed
    kept = sum(state["status"] == "kept" for state in ended.values())
    nothing = f", {kept} with nothing to analyse" if kept else ""
    line(f"{len(ended) - len(failed) - kept} studies analysed, {len(failed)} quarantined{nothing}")
    left = MAX_NAMED
    for one in failed:
        line(f"quarantined {one['study']}: {one['detail'] or one['reason']}")
        for name in one["files"][:left]:
            line(f"  {printable(name)}")
        left = max(0, left - len(one["files"]))
    if failed and sum(len(one["files"]) for one in failed) > MAX_NAMED:
        line("… and more; the receipt has the files of each study")
    return [], failed


def _print(sending: "Submission", summary: dict[str, Any]) -> None:
    from infra.client.receipt import HELD, NOTHING_TO_DO, printable

    counts = summary["counts"]
    bad = [each for each in sending.lines if each.outcome not in NOTHING_TO_DO]
    unsent = counts["unsent"]
    named = [each for each in bad if each.outcome != "unsent"][:MAX_NAMED]
    for each in named:
        what = ", ".join(word for word in (each.reason, each.failure) if word)
        line(f"{each.outcome} {printable(each.file)}: {each.text} [{what}]")
    if len(bad) - unsent > len(named):
        line(f"… and {len(bad) - unsent - len(named)} more, in the receipt")
    reasons = {reason: count for reason, count in summary["reasons"].items() if reason != "unsent"}
    if len(reasons) > 1 or len(bad) - unsent > MAX_NAMED:
        table = Table("reason", "files", box=box.SIMPLE_HEAD)
        for reason, count in reasons.items():
            table.add_row(Text(reason), f"{count:,}")
        out.print(table)
    more = "".join(f", {counts[name]} {name}" for name in (*HELD, "skipped", "unreadable", "unsent") if counts[name])
    line(
        f"{counts['stored']} stored, {counts['duplicate']} duplicate, {counts['rejected']} rejected{more}; "
        f"{len(sending.tally.studies)} studies"
    )
    if sending.tally.skipped_files:
        line(f"{sending.tally.skipped_files} of the duplicates were stored by an earlier run, and not sent again")
    if "manifest" in summary:
        _print_manifest(summary["manifest"])
    if summary["receipt"]:
        line(f"receipt: {summary['receipt']}" + (f", {summary['reconciled']}" if "reconciled" in summary else ""))
    if any(counts[fate] for fate in HELD):
        line("Stored, and an administrator decides what becomes of them: conflicts and corrections, on Operations.")
    if unsent:
        line("Run the same command again: it goes on from here.", style="yellow")


def _print_manifest(result: dict[str, Any]) -> None:
    from infra.client.receipt import printable

    counts = result["counts"]
    line("manifest: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    bad = [row for row in result["rows"] if row["kept"] != "came"]
    for row in bad[:MAX_NAMED]:
        what = row["sop_instance_uid"] or row["study_instance_uid"] or f"accession {row['accession_number']}"
        where = f" (line {row['row']})" if row["row"] else ""
        line(
            f"{row['kept']} {what}{where}: {printable(': '.join(word for word in (row['file'], row['text']) if word))}"
        )
    if len(bad) > MAX_NAMED:
        line(f"… and {len(bad) - MAX_NAMED} more, in the receipt")
