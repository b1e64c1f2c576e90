"""`osteon demo`: runs the whole system on the sample studies, and compares each result with the expected one."""

import csv
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.client.api import Client, Receipt
from infra.client.walk import files_in
from shared.domain.peers import OUR_TITLE
from shared.settings import ROOT

SAMPLES = ROOT / "samples"
SENDER = "DCMSEND"  # by which DCMTK's dcmsend calls unless it is told otherwise


@dataclass(frozen=True)
class Mismatch:
    """A sample file whose result differs from expected.csv."""

    file: str
    expected: str
    got: str


def sample_files() -> list[tuple[Path, str]]:
    """List all sample files, sound, broken and kept, under the names that expected.csv has."""
    folders = (SAMPLES / "studies", SAMPLES / "broken", SAMPLES / "kept")
    return [(path, f"{folder.name}/{name}") for folder in folders for path, name in files_in([folder])]


def mismatches(receipt: Receipt, reports: dict[str, dict[str, Any]]) -> list[Mismatch]:
    """Compare receipts and reports with expected.csv.

    Args:
        receipt: of all sample files.
        reports: of their studies, by id.

    Returns:
        What differs; empty when all is as it should be.
    """
    with (SAMPLES / "expected.csv").open(newline="") as lines:
        expected = {row["file"]: row for row in csv.DictReader(lines)}
    got: dict[str, str] = {}
    for line in receipt.files:
        # the outcome of an archive is that of its members
        name = line["file"].split("!")[0]
        if line["outcome"] == "rejected":
            got[name] = f"rejected: {line['reason']}"
        else:
            got[name] = reports.get(line["study_id"], {}).get("status", "not analysed")
    found = []
    for name, row in expected.items():
        states = {"stored": "analysed", "kept": "kept"}
        expected_text = states.get(row["outcome"], f"rejected: {row['reason']}")
        if got.get(name) != expected_text:
            found.append(Mismatch(name, expected_text, got.get(name, "no response")))
    failed = [
        Mismatch(f"study {report['id']} image {image['number']}", "a finding", image["error"])
        for report in reports.values()
        for image in report["instances"]
        if image["error"]
    ]
    return found + failed


def run_samples(
    client: Client,
    tell_submitted: Callable[[int], None],
    tell_waited: Callable[[int], None],
    tick: Callable[[], None],
) -> tuple[Receipt, dict[str, dict[str, Any]]]:
    """Submit all samples and wait for their results.

    Args:
        client: with an administrator's key.
        tell_submitted: is called with the number of files that were sent.
        tell_waited: is called with the number of studies that have ended.
        tick: is called on and on; what it raises ends the run.

    Returns:
        The receipt, and the reports by study id.

    Raises:
        OsteonError: The API refuses, or no study ends for 300 s.
    """
    receipt = client.submit(sample_files(), progress=tell_submitted, tick=tick)
    reports = client.wait(list(receipt.studies), limit_s=300, progress=tell_waited, tick=tick)
    return receipt, reports


def dcmsend_command(host: str, port: int) -> str:
    """Write the line by which DCMTK's dcmsend sends the sample studies, for a shell.

    Args:
        host: of the listener, as a URL has it.
        port: without TLS, which dcmsend does not speak.

    Returns:
        The line. The listener must know a peer of the title SENDER.
    """
    place = (host.strip("[]"), str(port))
    return shlex.join(
        ["dcmsend", "-aec", OUR_TITLE, *place, "--scan-directories", "--recurse", str(SAMPLES / "studies")]
    )


def admit_sender(client: Client, host: str) -> None:
    """Admit dcmsend on this machine as a DICOM peer.

    Args:
        client: with an operator's key.
        host: of the listener, as a URL has it: what calls it from the same machine comes from there.

    Raises:
        OsteonError: the API refuses.
    """
    client.post("/api/v1/dicom-peers", {"calling_ae": SENDER, "address": host.strip("[]"), "name": SENDER.lower()})
