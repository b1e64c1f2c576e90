"""The `osteon` command as people and scripts call it."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import httpx
import numpy as np
import pydicom
import pytest
import typer
from sqlalchemy import func, select, update
from typer.testing import CliRunner, Result

from api.listener.server import listening
from infra import cli
from infra.cli.stack import _admit_sender, _say_where
from infra.embedded import state
from infra.embedded.process import free_port
from infra.predict import COLUMNS
from samples.objects import SYNTAX, set_pixels, to_bytes
from shared.db.engine import Database
from shared.db.tables import InstanceRow, KeyRow
from shared.domain.security import Role
from shared.queries.access import add_key
from shared.settings import ROOT, Settings
from tests.conftest import InProcessApi, System
from tests.forked import run_module
from tests.pace import limit_s, until

STUDIES, BROKEN = ROOT / "samples/studies", ROOT / "samples/broken"


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside but the cache, without which each command makes the engine anew; nothing runs at home."""
    for name in [name for name in os.environ if name.startswith("OSTEON_") and name != "OSTEON_CACHE_DIR"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OSTEON_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def osteon(*arguments: str | Path) -> Result:
    """Call the command in this process."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def process(*arguments: str | Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Call the command as a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return run_module(["infra.cli", *map(str, arguments)], os.environ | env, Path(folder), apart=True)


@dataclass
class Prediction:
    """One run of `osteon predict` over a folder and two pictures."""

    done: subprocess.CompletedProcess[str]
    rows: list[dict[str, Any]]
    table: list[dict[str, str]]
    header: list[str]
    heatmaps: Path


def bomb() -> bytes:
    """An archive that expands to far more than its size allows."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.dcm", bytes(10**7))
    return out.getvalue()


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Prediction:
    folder = tmp_path_factory.mktemp("predict")
    radiographs, inner = folder / "radiographs", folder / "radiographs" / "inner"
    inner.mkdir(parents=True)
    shutil.copy(STUDIES / "01-hand/1-pa.dcm", radiographs / "a.dcm")
    shutil.copy(BROKEN / "text.dcm", radiographs / "b.dcm")
    shutil.copy(STUDIES / "24-leg/1-oblique.dcm", inner / "c.dcm")
    (radiographs / ".hidden").write_text("not a radiograph")
    (radiographs / "README.txt").write_text("Dear patient")
    gray = np.random.default_rng(0).integers(0, 255, (90, 140)).astype(np.uint8)
    cv2.imwrite(str(folder / "d.png"), gray)
    cv2.imwrite(str(folder / "e.jpg"), gray)
    (folder / "f.png").write_bytes((folder / "d.png").read_bytes()[:100])
    (folder / "other").mkdir()
    with zipfile.ZipFile(folder / "other" / "day.zip", "w") as day:
        day.write(STUDIES / "01-hand/1-pa.dcm", "radiographs/a.dcm")
        day.writestr("inner.zip", (folder / "d.png").read_bytes())
        day.writestr("__MACOSX/._a.dcm", "not a radiograph")
    (folder / "other" / "bomb.zip").write_bytes(bomb())
    (folder / "other" / "torn.zip").write_bytes((folder / "other" / "day.zip").read_bytes()[:-40])
    where: list[str | Path] = ["--csv", folder / "out.csv", "--heatmaps", folder / "maps", "--json"]
    done = process(
        "predict", radiographs, folder / "d.png", folder / "e.jpg", folder / "f.png", folder / "other", *where
    )
    with (folder / "out.csv").open(newline="") as file:
        table = csv.DictReader(file)
        rows = list(table)
    assert table.fieldnames is not None
    return Prediction(done, json.loads(done.stdout), rows, list(table.fieldnames), folder / "maps")


def test_predict_has_exactly_the_promised_columns(predicted: Prediction) -> None:
    """Scripts find the same thirteen columns in CSV and JSON, in this order."""
    promised = [
        "file", "frame", "region", "region_probability", "fracture_probability", "assessment", "score", "severity",
        "abstention", "abstention_detail", "abstention_words", "bundle", "error",
    ]  # fmt: skip
    assert predicted.header == promised == list(COLUMNS)
    assert all(list(row) == promised for row in predicted.rows)


def test_predict_reads_folders_frames_and_pictures(predicted: Prediction) -> None:
    """Folders and archives are read through, each frame is a row, PNG and JPEG are images too; hidden files are not.

    A file is called by its path from the folder that all places have in common.
    """
    told = [(row["file"], row["frame"]) for row in predicted.rows]
    assert told == [
        ("radiographs/a.dcm", 1), ("radiographs/b.dcm", None), ("radiographs/inner/c.dcm", 1), ("radiographs/inner/c.dcm", 2), ("d.png", 1),
        ("e.jpg", 1), ("f.png", None), ("other/bomb.zip", None), ("other/day.zip!radiographs/a.dcm", 1),
        ("other/day.zip!inner.zip", 1), ("other/torn.zip", None),
    ]  # fmt: skip


def test_predict_values_are_findings(predicted: Prediction) -> None:
    """Every row that is no error is a whole finding."""
    for row in predicted.rows:
        if row["error"] is None:
            assert 0 <= row["fracture_probability"] <= 1
            assert 0 < row["region_probability"] <= 1
            assert row["region"] in {"hand", "elbow", "shoulder", "hip", "leg"}
            assert row["assessment"] in {"negative", "unclear", "positive", "abstained"}
            assert (row["assessment"] == "abstained") <= (row["abstention"] is not None)
            assert row["severity"] in {"none", "mild", "moderate", "severe"}
            assert row["bundle"]


def test_predict_csv_says_what_json_says(predicted: Prediction) -> None:
    """Both outputs carry the same values; an empty cell is a null."""
    for line, row in zip(predicted.table, predicted.rows, strict=True):
        assert line == {key: "" if value is None else str(value) for key, value in row.items()}


def test_bad_file_does_not_stop_the_others(predicted: Prediction) -> None:
    """A file that cannot be read is named with its reason, the others are read, and the exit code is 1."""
    assert predicted.done.returncode == 1
    errors = {row["file"]: row["error"] for row in predicted.rows if row["error"]}
    assert set(errors) == {"radiographs/b.dcm", "f.png", "other/bomb.zip", "other/torn.zip"}
    assert errors["radiographs/b.dcm"].startswith("not-dicom: ")
    assert errors["other/bomb.zip"].startswith("too-large: ")
    assert errors["f.png"].startswith("unsupported-pixels: ")
    assert "b.dcm: not-dicom" in predicted.done.stderr
    assert "1 files are no images by design" in predicted.done.stderr
    assert "Traceback" not in predicted.done.stderr


def test_heatmaps_are_pictures_of_the_radiographs(predicted: Prediction) -> None:
    """Each frame that was read gives one colour picture in the radiograph's own aspect."""
    drawn = {str(path.relative_to(predicted.heatmaps)) for path in predicted.heatmaps.rglob("*.png")}
    assert drawn == {f"{row['file']}-{row['frame']}.png" for row in predicted.rows if not row["error"]}
    picture = cv2.imread(str(predicted.heatmaps / "d.png-1.png"))
    assert picture is not None
    assert picture.shape == (90, 140, 3)
    radiograph = pydicom.dcmread(STUDIES / "01-hand/1-pa.dcm", stop_before_pixels=True)
    big = cv2.imread(str(predicted.heatmaps / "radiographs/a.dcm-1.png"))
    assert big is not None
    assert max(big.shape) <= 1024
    assert big.shape[0] / big.shape[1] == pytest.approx(radiograph.Rows / radiograph.Columns, rel=0.01)


@pytest.mark.slow
def test_predict_prints_a_table_for_people(tmp_path: Path) -> None:
    """Without options the findings are a table on standard output, with the notice, and exit code 0."""
    done = process("predict", STUDIES / "01-hand/1-pa.dcm")
    assert done.returncode == 0, done.stderr
    assert "1-pa.dcm" in done.stdout
    assert "Research use only" in done.stdout
    assert done.stderr == ""


def test_predict_of_nothing_is_an_error(tmp_path: Path) -> None:
    """A missing file and an empty folder are said in a line, without a trace."""
    (tmp_path / "empty").mkdir()
    for place, words in ((tmp_path / "gone.dcm", "does not exist"), (tmp_path / "empty", "no file")):
        done = osteon("predict", place)
        assert done.exit_code == 1
        assert words in done.stderr
        assert done.stdout == ""


def test_damaged_bundle_is_an_error_in_words(tmp_path: Path) -> None:
    """A bundle that is none is refused before any file is read."""
    (tmp_path / "bad.safetensors").write_bytes(b"no bundle")
    done = osteon("predict", STUDIES, "--bundle", tmp_path / "bad.safetensors")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no intact Osteon model bundle" in done.stderr


HELP = {
    "up": "Start the whole system", "down": "Stop the stack", "status": "which parts run", "submit": "Upload studies",
    "worklist": "most urgent first", "demo": "sample studies", "predict": "without any server", "activate": "active one",
    "train": "Train a network", "compare": "side by side", "card": "model card",
    "evaluate": "held-out radiographs", "export": "write it as a bundle", "release": "quarantined studies", "quarantine": "were set aside", "delete": "for good", "revoke": "osteon keys revoke", "keys": "Keys of the API", "peers": "may send by DICOM", "conformance": "as senders and viewers do", "dicom": "over a DICOM network",
    "backtest": "Replay arrivals", "arrivals": "no identities",
    "bundles": "stored bundles", "shadow": "without showing its findings", "compare-bundles": "Compare two bundles",
    "backfill": "with a forecast", "events": "Who did what",
    "feedback": "verify its log",
    "results": "DICOM objects of results", "deliver": "to their destinations", "destinations": "Where results go",
    "refused-kinds": "that a site refuses", "result-choices": "results of a site state", "check": "Check the whole system",
}  # fmt: skip


def test_every_command_has_help() -> None:
    """`--help` says for each command, and for all together, what it does."""
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert {name for name, command in commands.items() if not command.hidden} == set(HELP)
    overview = osteon("--help").stdout
    for name, words in HELP.items():
        done = osteon(name, "--help")
        assert done.exit_code == 0
        assert words in " ".join(done.stdout.split())
        assert name in overview


def test_a_former_name_works_with_a_warning() -> None:
    """What scripts of before 0.2.0 call is there until 0.3.0, not in the help, and says its new name on stderr."""
    done = osteon("backlog", "--url", "http://127.0.0.1:9", "--key", "x")
    assert done.exit_code == 1
    assert "osteon backlog is now osteon backfill" in done.stderr
    assert "backlog" not in osteon("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["read"], ["No such command"]),
        (["submit"], ["Missing argument"]),
        (["submit", "x", "--priority", "soon"], ["urgent", "routine"]),
        (["submit", "x", "--priority", "backlog"], ["urgent", "routine"]),
        (["worklist", "--limit", "0"], ["greater than or equal to 1"]),
        (["worklist", "--assessment", "maybe"], ["negative", "unclear", "positive", "abstained"]),
        (["worklist", "--status", "lost"], ["queued", "quarantined"]),
        (["train", "--data", "x", "--out", "y", "--size", "100"], ["multiple of 32"]),
        (["export", "run", "My Model.safetensors"], ["a-z"]),
        (["predict"], ["Missing argument"]),
        (["status", "--loud"], ["No such option"]),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], words: list[str]) -> None:
    """What is typed wrongly ends with exit code 2 and says what would be right."""
    done = osteon(*arguments)
    assert done.exit_code == 2
    for word in words:
        assert word in done.stderr


def test_without_a_stack(tmp_path: Path) -> None:
    """Where no stack runs, status exits 1, in JSON too, and the others say how to start one."""
    done = osteon("status")
    assert done.exit_code == 1
    assert "osteon up" in done.stdout
    assert osteon("status", "--json").exit_code == 1
    assert json.loads(osteon("status", "--json").stdout)["running"] is False
    done = osteon("worklist")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "osteon up" in done.stderr


def test_api_that_does_not_answer(tmp_path: Path) -> None:
    """A wrong address is one line that names it."""
    done = osteon("worklist", "--url", "http://127.0.0.1:9", "--key", "osk_x")
    assert done.exit_code == 1
    assert "http://127.0.0.1:9 does not answer" in done.stderr


@pytest.fixture
def home(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of the running stack, as OSTEON_HOME."""
    monkeypatch.setenv("OSTEON_HOME", str(system.stack.home))
    yield system.stack.home


def identities(folder: Path) -> set[str]:
    """Names and ids of the patients in these files."""
    radiographs = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.glob("*.dcm")]
    found = {str(radiograph.get(tag, "")) for radiograph in radiographs for tag in ("PatientName", "PatientID")} - {""}
    assert found
    return found


def test_submit_then_worklist(home: Path) -> None:
    """Submitted files are analysed and stand in the worklist with a reason and without the patient's identity."""
    done = process("submit", STUDIES / "09-elbow", BROKEN / "text.dcm", "--priority", "urgent", "--wait", "--json")
    assert done.returncode == 1, done.stderr  # one file is no DICOM
    assert done.stderr == ""
    response = json.loads(done.stdout)
    assert [file["outcome"] for file in response["files"]] == ["stored", "rejected"]
    assert response["files"][1]["reason"] == "not-dicom"
    (study,), (report,) = response["studies"], response["reports"]
    assert report["status"] == "analysed"
    page, shown = process("worklist", "--limit", "500", "--json"), process("worklist", "--limit", "500")
    assert (page.returncode, shown.returncode) == (0, 0)
    (row,) = [row for row in json.loads(page.stdout)["entries"] if row["study_id"] == study["id"]]
    assert row["priority"] == "urgent"
    lines = [line for line in shown.stdout.splitlines() if study["id"][:8] in line]
    assert len(lines) == 1, "a row is one line when nothing limits its width"
    assert row["why"] in lines[0]
    for name in identities(STUDIES / "09-elbow"):
        assert name not in page.stdout + shown.stdout
    assert "Research use only" in shown.stdout


def test_submit_again_is_a_duplicate(home: Path) -> None:
    """Sending the same files twice stores them once, succeeds, and says so."""
    assert process("submit", STUDIES / "21-leg").returncode == 0
    done = process("submit", STUDIES / "21-leg")
    assert done.returncode == 0
    assert "0 stored, 2 duplicate, 0 rejected; 1 studies" in done.stdout


def test_an_image_sent_again_is_compared(home: Path, system: System, tmp_path: Path) -> None:
    """In another encoding it is stored and compared by the worker: the same, a correction, or other pixels that wait."""
    radiograph = STUDIES / "13-elbow" / "1-ap.dcm"
    ds = pydicom.dcmread(radiograph)
    sent = osteon("submit", radiograph, "--wait", "--json")
    assert sent.exit_code == 0, sent.stderr
    study_id = json.loads(sent.stdout)["studies"][0]["id"]
    pixels, ds.file_meta.TransferSyntaxUID = ds.pixel_array, SYNTAX["rle"]
    for name, flips, words in (
        ("same", 0, ds.get("SeriesDescription")),
        ("header", 0, "Corrected"),
        ("pixels", 1, "Corrected"),
    ):
        ds.SeriesDescription = words
        set_pixels(ds, [pixels ^ pixels.dtype.type(flips)], ds.BitsStored, "rle")
        (tmp_path / name).mkdir()
        (tmp_path / name / "again.dcm").write_bytes(to_bytes(ds, SYNTAX["rle"]))
        again = osteon("submit", tmp_path / name, "--wait", "--json")
        assert again.exit_code == 0, again.stderr
        assert [file["outcome"] for file in json.loads(again.stdout)["files"]] == ["comparing"]

    def kinds() -> list[str]:
        response = httpx.get(
            f"{system.api_url}/api/v1/held-files",
            headers={"Authorization": f"Bearer {system.keys['admin']}"},
            trust_env=False,
        )
        return sorted(view["kind"] for view in response.json()["waiting"] if view["study_id"] == study_id)

    until(lambda: kinds() == ["correction", "pixels"], 120, lambda: str(kinds()))


def test_worklist_on_a_narrow_terminal_keeps_the_reason(home: Path) -> None:
    """At 80 columns rank, reason and study remain, and no line is wider than the terminal."""
    process("submit", STUDIES / "21-leg", "--wait")
    done = process("worklist", COLUMNS="80")
    assert done.returncode == 0
    table = [line for line in done.stdout.splitlines() if "Research use" not in line and "more:" not in line]
    assert max(len(line) for line in table) <= 80
    assert "due " in done.stdout
    assert "P(fracture)" not in done.stdout


def test_worklist_filters(home: Path) -> None:
    """--status and --assessment choose rows, --sort orders them; what the filter excludes is not printed."""
    process("submit", STUDIES / "21-leg", "--wait")
    every = json.loads(process("worklist", "--status", "analysed", "--limit", "500", "--json").stdout)["entries"]
    assert every
    assert {row["status"] for row in every} == {"analysed"}
    likely = json.loads(process("worklist", "--assessment", "positive", "--limit", "500", "--json").stdout)["entries"]
    assert [row["study_id"] for row in likely] == [row["study_id"] for row in every if row["assessment"] == "positive"]
    turned = json.loads(process("worklist", "--status", "analysed", "--sort=-due", "--limit", "500", "--json").stdout)
    assert [row["study_id"] for row in turned["entries"]] == [row["study_id"] for row in every[::-1]]
    refused = process("worklist", "--sort", "name")
    assert (refused.returncode, "sort" in refused.stderr) == (1, True)


def test_status_of_a_running_stack(home: Path, system: System) -> None:
    """Status names every part with its process, and exits 0 while all of them run."""
    done = osteon("status", "--json")
    assert done.exit_code == 0
    response = json.loads(done.stdout)
    assert response["running"] is True
    assert {part["name"] for part in response["parts"]} == {
        "worker",
        "api",
        "dicom",
        "results",
        "deliver",
        "check",
        "beat",
        "flower",
        "valkey",
        "postgres",
    }
    assert all(part["running"] for part in response["parts"])
    shown = osteon("status").stdout
    assert all(part in shown for part in ("worker", "postgres"))
    assert system.keys["admin"] not in shown + done.stdout


def test_activating_the_active_bundle_changes_nothing(home: Path) -> None:
    """A bundle can be activated again; a file that is none is refused by name of the cause."""
    bundle = Settings().bundle_path
    done = process("activate", bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["active"]
    refused = process("activate", BROKEN / "text.dcm")
    assert refused.returncode == 1
    assert "no intact Osteon model bundle" in refused.stderr


@pytest.mark.slow
def test_up_in_the_background(tmp_path: Path) -> None:
    """`up --detach` in a new home returns once uploads and analyses work; `down` ends it; a second one is refused."""
    started = process("up", "--detach")
    try:
        assert started.returncode == 0, started.stderr
        keys = state.read_secrets(tmp_path / "home")["keys"]
        assert str(tmp_path / "home" / "secrets.json") in started.stdout
        assert not [secret for secret in keys.values() if secret in started.stdout + started.stderr]
        assert osteon("status").exit_code == 0
        second = process("up", "--detach")
        assert second.returncode == 1
        assert "already runs" in second.stderr
        done = process("submit", STUDIES / "21-leg", "--wait")
        assert done.returncode == 0, done.stderr
    finally:
        stopped = process("down", "--delete", "--yes", "--json")
    assert json.loads(stopped.stdout) == {"ran": True, "deleted": True}
    assert not (tmp_path / "home").exists()


def test_up_says_where_keys_are_and_prints_none(
    database: Database, database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `up` prints lands in logs and on screens: it names the file, no secret, and no key that was revoked."""
    home = tmp_path / "up"
    home.mkdir()
    secrets = state.ensure_secrets(home)
    with database.transaction() as session:
        for role, key in secrets["keys"].items():
            add_key(session, "default", role, Role(role), key)
    urls = {"api": "http://127.0.0.1:8080", "flower": "http://127.0.0.1:5555", "database": database_url}
    _say_where(urls, home)
    said = capsys.readouterr().out.replace("\n", "")
    assert str(home / "secrets.json") in said
    assert "the radiologist's key" in said
    for secret in (*secrets["keys"].values(), secrets["flower_password"], secrets["identity_key"], database_url):
        assert secret not in said
    with database.transaction() as session:
        session.execute(update(KeyRow).where(KeyRow.name == "radiologist").values(revoked_at=func.now()))
    _say_where(urls, home)
    said = capsys.readouterr().out
    assert "the radiologist's key is revoked: osteon keys add" in said
    assert "log in with" not in said
    assert "submit with the submitter's key" in said


@pytest.mark.parametrize("admits", [pytest.param("demo", marks=pytest.mark.slow), "up"])
def test_the_printed_line_sends_the_samples(
    in_process: InProcessApi,
    address: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    admits: str,
) -> None:
    """The demo has admitted dcmsend; `up` has not, and prints how to. The shell gets what is printed, and no more."""
    home = in_process.settings.home
    state.ensure_secrets(home)
    monkeypatch.setenv("OSTEON_KEY", in_process.keys["operator"])
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    settings = in_process.settings.model_copy(update={"dicom_port": free_port()})
    urls = {
        "api": address, "flower": "", "database": settings.database_url.get_secret_value(),
        "dicom": f"127.0.0.1:{settings.dicom_port}",
    }  # fmt: skip
    with listening(settings):
        if admits == "demo":
            _admit_sender(urls, in_process.keys)
            _admit_sender(urls, in_process.keys)  # as the second demo of a home does
        _say_where(urls, home)
        said = capsys.readouterr().out
        assert f"AE title OSTEON, host 127.0.0.1, port {settings.dicom_port}" in said
        (line,) = (line for line in said.splitlines() if "dcmsend -" in line)
        assert line.startswith("osteon peers add") == (admits == "up")
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=limit_s(120), check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    with in_process.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(InstanceRow)) == len([*STUDIES.rglob("*.dcm")])


def test_data_is_not_deleted_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal --delete does nothing and names --yes; at one it asks, and "no" leaves all as it was."""
    kept = tmp_path / "home" / "secrets.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    done = osteon("down", "--delete")
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    monkeypatch.setattr("infra.cli.stack.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    done = CliRunner().invoke(cli.app, ["down", "--delete"], input="n\n")
    assert done.exit_code == 1
    assert kept.exists()
    done = CliRunner().invoke(cli.app, ["down", "--delete"], input="y\n")
    assert done.exit_code == 0, done.stderr
    assert not kept.exists()


def test_up_does_not_touch_a_foreign_folder(tmp_path: Path) -> None:
    """`up --detach` in a folder with other files refuses, and leaves nothing in it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    done = process("up", "--detach")
    assert done.returncode == 1
    assert "OSTEON_HOME" in done.stderr
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]
