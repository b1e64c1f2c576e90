"""`osteon demo`: the whole system on the sample studies, and whether each came out as the sample set says."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.client import Client, Receipt
from infra.sending.walk import files_in
from shared.settings import ROOT

SAMPLES = ROOT / "samples"


@dataclass(frozen=True)
class Surprise:
    """A sample file that did not come out as expected.csv says."""

    file: str
    expected: str
    got: str


def sample_files() -> list[tuple[Path, str]]:
    """All sample files, sound and broken, under the names that expected.csv has."""
    folders = (SAMPLES / "studies", SAMPLES / "broken")
    return [(path, f"{folder.name}/{name}") for folder in folders for path, name in files_in([folder])]


def surprises(receipt: Receipt, reports: dict[str, dict[str, Any]]) -> list[Surprise]:
    """Compare receipts and reports with expected.csv; empty when all is as it should be."""
    with (SAMPLES / "expected.csv").open(newline="") as lines:
        expected = {row["file"]: row for row in csv.DictReader(lines)}
    got: dict[str, str] = {}
    for line in receipt.files:
        # members of an archive speak for it
        name = line["file"].split("!")[0]
        if line["outcome"] == "rejected":
            got[name] = f"rejected: {line['reason']}"
        else:
            got[name] = reports.get(line["study_id"], {}).get("status", "not analysed")
    found = []
    for name, row in expected.items():
        wanted = "analysed" if row["outcome"] == "stored" else f"rejected: {row['reason']}"
        if got.get(name) != wanted:
            found.append(Surprise(name, wanted, got.get(name, "no answer")))
    failed = [
        Surprise(f"study {report['id']} image {image['number']}", "a finding", image["error"])
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
    """Submit all samples and wait for their results, calling tick meanwhile. Raises OsteonError, and what tick does."""
    receipt = client.submit(sample_files(), progress=tell_submitted, tick=tick)
    reports = client.wait(list(receipt.studies), limit_s=300, progress=tell_waited, tick=tick)
    return receipt, reports
