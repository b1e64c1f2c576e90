"""Osteon calls nobody: no part of it looks up another machine's name or connects to one, whatever its libraries would."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from shared.settings import ROOT
from tests.conftest import SAMPLES, System
from tests.outbound import outbound_calls, watched
from tests.pace import LIMIT_S, limit_s
from tests.radiographs import fracatlas_tree

FOLDERS = ("api", "benchmarks", "infra", "migrations", "samples", "shared", "training", "worker")


def run(home: Path, *arguments: str | Path) -> list[str]:
    """Run a Python program with this home folder and without CI; returns whom it called."""
    home.mkdir(exist_ok=True)
    record = home.with_suffix(".outbound")
    environment = os.environ | watched(record) | {"HOME": str(home), "OSTEON_HOME": str(home / "osteon")}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=limit_s(280),
        cwd=home, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return outbound_calls(record)


def test_the_watch_sees_a_call_to_another_machine(tmp_path: Path) -> None:
    """A look-up and a datagram are written down, those of this machine are not."""
    program = """if True:
        import contextlib, socket
        with contextlib.suppress(OSError):
            socket.getaddrinfo("elsewhere.invalid", 443)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own, contextlib.suppress(OSError):
            own.connect(("192.0.2.1", 53))
            own.connect(("127.0.0.1", 53))
        socket.getaddrinfo("localhost", 80)
    """
    found = run(tmp_path / "home", "-c", program)
    assert [line.rsplit(" ", 2)[1:] for line in found] == [
        ["socket.getaddrinfo", "'elsewhere.invalid'"], ["socket.connect", "'192.0.2.1'"],
    ]  # fmt: skip


@pytest.mark.slow
def test_openvino_runs_without_its_telemetry(tmp_path: Path) -> None:
    """Its package that tells others of each use is not loaded, where it is installed, by whatever of ours loads it."""
    pytest.importorskip("openvino")
    package = tmp_path / "openvino_telemetry"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('telemetry was loaded')")
    program = f"""if True:
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from shared.model import engines
        engines.device_description()
        import openvino.tools.ovc
        assert openvino.tools.ovc.telemetry.__module__ == "openvino.tools.ovc.telemetry_stub"
    """
    assert run(tmp_path / "home", "-c", program) == []


def test_openvino_is_loaded_where_its_telemetry_is_off() -> None:
    """Only modules of shared.model name it, and that package turns its telemetry off before any of them is run."""
    loading = []
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "openvino" for name in names):
                loading.append(path.relative_to(ROOT).parent.as_posix())
    assert set(loading) == {"shared/model"}


def test_no_part_calls_another_machine(system: System, sample_paths: list[Path]) -> None:
    """Worker, API, beat and Flower stay on this machine from their start to a study's findings, pages and radiograph."""
    receipt = system.submit([path for path in sample_paths if "01-hand" in str(path)])
    study_id = receipt["studies"][0]["id"]
    system.wait([study_id])
    with httpx.Client(base_url=system.api_url, trust_env=False, timeout=LIMIT_S) as http:
        http.headers["Authorization"] = f"Bearer {system.keys['admin']}"
        for path in (
            "/login",
            "/docs",
            "/readyz",
            "/api/v1/worklist",
            f"/api/v1/studies/{study_id}",
            "/api/v1/operations",
        ):
            assert http.get(path).status_code == 200, path
    assert outbound_calls(system.outbound) == []


@pytest.mark.slow
def test_predict_calls_nobody(tmp_path: Path) -> None:
    """`osteon predict` stays on this machine, and leaves nothing in the user's home folder."""
    home = tmp_path / "home"
    assert run(home, "-m", "infra.cli", "predict", SAMPLES / "studies/01-hand", "--csv", tmp_path / "found.csv") == []
    assert [path.name for path in home.iterdir() if path.name != "osteon"] == []


@pytest.mark.slow
def test_training_calls_nobody(tmp_path: Path) -> None:
    """`osteon train` stays on this machine."""
    data = fracatlas_tree(tmp_path / "data")
    options = ("--data", data, "--out", tmp_path / "run", "--size", "64", "--crop", "64", "--batch", "4")
    assert run(tmp_path / "home", "-m", "infra.cli", "train", *options, "--minutes", "0.1") == []
