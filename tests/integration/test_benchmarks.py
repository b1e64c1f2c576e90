"""The benchmarks run as they are run by hand."""

import json
import subprocess
import sys

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.measure import Result
from shared.settings import ROOT
from tests.pace import limit_s


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_each_runs_quickly(name: str) -> None:
    """Each benchmark runs with --quick --json and prints one result that can be read back; how fast it is, is no test."""
    if name == "peers":
        pytest.importorskip("litserve", reason="the extra `bench` is not installed")
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s(280), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = Result.from_json(json.loads(done.stdout))
    assert (result.name, result.quick) == (name, True)
    assert all(case.subject > 0 and case.baseline > 0 for case in result.cases)
