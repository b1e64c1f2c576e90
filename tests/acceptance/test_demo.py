"""`osteon demo`, as somebody meets Osteon for the first time."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shared.model.engines import device_description
from shared.settings import ROOT
from tests.pace import LIMIT_S, until


def processes_of(home: Path) -> list[str]:
    """Command lines of all processes that name this home."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(home) in line:
            found.append(line)
    return found


def osteon(home: Path, *arguments: str) -> tuple[int, str, bool]:
    """Exit code, all output, and whether processes of this home were seen meanwhile."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OSTEON_")}
    own = {"OSTEON_HOME": str(home), "OSTEON_START_LIMIT_S": os.environ["OSTEON_START_LIMIT_S"]}
    command = [sys.executable, "-m", "infra.cli", *arguments]
    log = home.with_suffix(".log")
    seen = False
    with log.open("w") as file:
        child = subprocess.Popen(command, cwd=ROOT, env=env | own, stdout=file, stderr=subprocess.STDOUT)

        def ended() -> bool:
            nonlocal seen
            seen = seen or bool(processes_of(home))
            return child.poll() is not None

        try:
            until(ended, 280, log.read_text, every_s=0.5)
        finally:
            child.terminate()
            child.wait(LIMIT_S)
    return child.returncode, log.read_text(), seen


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_demo_twice_then_gone(tmp_path: Path) -> None:
    """The demo analyses every sample as expected, a second one finds them stored, and nothing stays behind."""
    home = tmp_path / "home"
    code, said, seen = osteon(home, "demo", "--once")
    assert code == 0, said
    assert seen
    assert " 0 mismatches" in said
    assert "Worklist" in said
    assert "Research use only" in said
    assert processes_of(home) == []
    key = (home / "secrets.json").read_bytes()
    assert "OpenVINO" not in device_description() or len(list((home / "cache").iterdir())) == 1

    code, again, _ = osteon(home, "demo", "--once")
    assert code == 0, again
    assert " 0 mismatches" in again
    assert (home / "secrets.json").read_bytes() == key
    assert processes_of(home) == []

    code, said, _ = osteon(home, "down", "--delete", "--yes")
    assert code == 0, said
    assert not home.exists()
