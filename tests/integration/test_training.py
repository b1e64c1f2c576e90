"""From labelled radiographs to a finding, with the commands that a researcher types."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from infra import cli
from shared.model.bundle import load_bundle
from shared.settings import ROOT
from tests.pace import limit_s, until
from tests.radiographs import fracatlas_tree

SAMPLE = ROOT / "samples/studies/01-hand/1-pa.dcm"


def osteon(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s(280), check=False)


def here(*arguments: str | Path) -> Result:
    """The same in this process, which has PyTorch imported."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def steps(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=False)["steps"])


@pytest.mark.slow
def test_train_killed_resumed_exported_and_used(tmp_path: Path) -> None:
    """A run that was killed goes on from its checkpoint, and its bundle reads a DICOM radiograph."""
    data, run, bundle = fracatlas_tree(tmp_path / "data"), tmp_path / "run", tmp_path / "tiny-1.safetensors"
    checkpoint = run / "student.pt"
    options: list[str | Path] = [
        "--data",
        data,
        "--out",
        run,
        "--size",
        "64",
        "--crop",
        "64",
        "--batch",
        "4",
        "--checkpoint-seconds",
        "0.5",
    ]
    command = ["train", *options, "--minutes", "0.15"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    until(lambda: checkpoint.exists() or killed.poll() is not None, 120, every_s=0.05)
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
    assert "--seed 7" in other.stderr, "another seed would train on the radiographs it is measured on"
    resumed = osteon(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert steps(checkpoint) > before
    checkpoint.unlink()  # 400 MB

    others = tmp_path / "others"
    others.mkdir()
    shutil.copyfile(SAMPLE, others / "radiograph.dcm")
    exported = osteon("export", run, bundle, "--out-of-distribution", others)
    assert exported.returncode == 0, exported.stderr
    _, manifest = load_bundle(bundle.read_bytes())
    assert (manifest.name, manifest.input_size) == ("tiny-1", 64)
    assert 0 <= manifest.sensitive <= manifest.specific <= 1
    assert manifest.metrics["radiographs"] == 8
    assert json.loads((run / "metrics.json").read_text()) == manifest.metrics
    assert manifest.metrics["scope"]["other DICOM images, with header"]["images"] == 1
    assert manifest.name in (run / "report.html").read_text()

    card = osteon("card", bundle)
    assert card.stdout.strip() == bundle.with_suffix(".md").read_text().strip()
    assert "Research use only" in card.stdout

    whole = ("--data", data, "--out", tmp_path / "report", "--json")
    held_out, everything = osteon("evaluate", bundle, *whole), osteon("evaluate", bundle, *whole, "--all")
    assert held_out.returncode == everything.returncode == 0, held_out.stderr + everything.stderr
    assert json.loads(held_out.stdout)["radiographs"] == 8
    assert json.loads(everything.stdout)["radiographs"] == 40
    assert (tmp_path / "report/report.html").stat().st_size > 10_000
    without = osteon("evaluate", bundle)
    assert without.returncode == 2
    assert "--data" in without.stderr

    read = osteon("predict", SAMPLE, "--bundle", bundle, "--json")
    assert read.returncode == 0, read.stderr
    (row,) = json.loads(read.stdout)
    assert row["bundle"] == "tiny-1"
    assert row["error"] is None


@pytest.mark.slow
def test_architectures_are_compared_alike(tmp_path: Path) -> None:
    """Each architecture is trained and measured on the same radiographs, in one table and one figure; a second run only reads."""
    data, out = fracatlas_tree(tmp_path / "data"), tmp_path / "compared"
    options: list[str | Path] = [
        "--data",
        data,
        "--out",
        out,
        "--size",
        "64",
        "--crop",
        "64",
        "--batch",
        "4",
        "--minutes",
        "0.02",
    ]
    chosen = ["--architecture", "resnet50", "--architecture", "vgg16"]
    done = osteon("compare", *options, *chosen, "--json")
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)
    assert [line["architecture"] for line in lines] == ["resnet50", "vgg16"]
    assert all(line["images_per_s"] > 0 and line["training_steps"] > 0 for line in lines)
    assert (out / "comparison.png").stat().st_size > 1000
    trained = (out / "resnet50/weights.pt").stat().st_mtime
    again = osteon("compare", *options, *chosen)
    assert again.returncode == 0, again.stderr
    assert "| vgg16 |" in again.stdout
    assert (out / "resnet50/weights.pt").stat().st_mtime == trained


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """A name that is none of the four ends before anything is read, with the four."""
    done = here("train", "--data", tmp_path, "--out", tmp_path / "run", "--architecture", "alexnet")
    assert done.exit_code == 2
    assert "densenet121" in done.stderr


def test_wrong_folder_is_an_error_in_words(tmp_path: Path) -> None:
    """Given a folder without labels.csv, training says what it needs and exits 1."""
    done = here("train", "--data", tmp_path, "--out", tmp_path / "run", "--minutes", "0.05")
    assert done.exit_code == 1
    assert "has no layout that is known" in done.stderr
    assert "labels.csv" in done.stderr
    assert "Traceback" not in done.stderr
