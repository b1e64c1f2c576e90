"""Whom the processes of a test talk to: they must stay on this machine (watch/sitecustomize.py writes down what does not)."""

import os
from pathlib import Path

from shared.settings import ROOT

WATCH = ROOT / "tests" / "watch"


def watched(record: Path) -> dict[str, str]:
    """The variables with which a Python process, and what it starts, write to `record` each call to another machine.

    CI is not among them: OpenVINO sends nothing where it is set.
    """
    path = os.pathsep.join(filter(None, [str(WATCH), str(ROOT), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "TESTS_OUTBOUND": str(record), "CI": ""}


def outbound_calls(record: Path) -> list[str]:
    """What was written down."""
    return record.read_text().splitlines() if record.exists() else []
