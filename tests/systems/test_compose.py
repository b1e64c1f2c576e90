"""The containers, started for real: what `make compose-test` does."""

import subprocess
import sys

import pytest

from shared.settings import ROOT
from tests.pace import limit_s

pytestmark = pytest.mark.systems


@pytest.mark.timeout(2400)
def test_compose() -> None:
    """Images are built, the stack starts and checks itself, results leave, each container dies once: nothing lost or doubled."""
    program = [sys.executable, "-m", "tests.systems.compose"]
    ended = subprocess.run(program, cwd=ROOT, timeout=limit_s(1800), check=False)  # its progress is pytest's to show
    assert ended.returncode == 0
