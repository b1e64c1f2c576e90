"""From labelled films to a finding, with the commands that a researcher types."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from shared.settings import ROOT
from shared.vision.bundle import load_bundle
from tests.films import fracatlas_tree

SAMPLE = ROOT / "samples/studies/01-hand/1-pa.dcm"


def osteon(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def steps(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=False)["steps"])


@pytest.mark.slow
def test_train_killed_resumed_exported_and_used(tmp_path: Path) -> None:
    """A run that was killed goes on from its checkpoint, and its bundle reads a DICOM film."""
    data, run, bundle = fracatlas_tree(tmp_path / "data"), tmp_path / "run", tmp_path / "tiny-1.safetensors"
    checkpoint = run / "checkpoint.pt"
    options = ["--data", data, "--out", run, "--size", "64", "--batch", "4", "--checkpoint-seconds", "0.5"]
    command = ["train", *options, "--minutes", "0.15"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert checkpoint.exists()
    assert not (run / "weights.pt").exists()
    before = steps(checkpoint)
    early = osteon("export", run, bundle)
    assert early.returncode == 1
    assert "finish the run" in early.stderr

    other = osteon(*command, "--seed", "8")
    assert other.returncode == 1
    assert "--seed 7" in other.stderr, "another seed would train on the films it is measured on"
    resumed = osteon(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert steps(checkpoint) > before
    checkpoint.unlink()  # 400 MB

    exported = osteon("export", run, bundle)
    assert exported.returncode == 0, exported.stderr
    _, manifest = load_bundle(bundle.read_bytes())
    assert (manifest.name, manifest.input_size) == ("tiny-1", 64)
    assert 0 <= manifest.sensitive <= manifest.specific <= 1
    assert manifest.metrics["films"] == 8
    assert json.loads((run / "metrics.json").read_text()) == manifest.metrics
    assert (run / "evaluation.png").stat().st_size > 1000

    read = osteon("predict", SAMPLE, "--bundle", bundle, "--json")
    assert read.returncode == 0, read.stderr
    (row,) = json.loads(read.stdout)
    assert row["bundle"] == "tiny-1"
    assert row["error"] is None


def test_wrong_folder_is_an_error_in_words(tmp_path: Path) -> None:
    """Given a folder without labels.csv, training says what it needs and exits 1."""
    done = osteon("train", "--data", tmp_path, "--out", tmp_path / "run", "--minutes", "0.05")
    assert done.returncode == 1
    assert "labels.csv is missing" in done.stderr
    assert "Traceback" not in done.stderr
