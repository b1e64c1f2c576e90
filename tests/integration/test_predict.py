"""`osteon predict` beside the worker, and what is left when it is interrupted."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.predict import COLUMNS, FilePredictor, FileToRead, Row, Table, files_of
from shared.dicom.image import ImageLimits
from shared.domain.analysis import Claim, InstanceToAnalyse, Purpose
from shared.domain.findings import Finding
from shared.domain.study import Priority
from shared.errors import OsteonError
from shared.model.engines import calling_threads, images_per_call
from shared.settings import ROOT, Settings, cpu_count
from shared.storage import open_store, original_key, sha256_of
from tests.conftest import System
from tests.pace import LIMIT_S, limit_s, until
from worker.analysis import analyse
from worker.batching import Batcher
from worker.decoder_pool import DecodedImage, Decoders, Job
from worker.pipeline import ImageFailure, ImageResult, ModelBatcher
from worker.predictor import predict

STUDIES, BROKEN = ROOT / "samples/studies", ROOT / "samples/broken"
BUNDLE = Settings().bundle_path


def as_worker(predictor: FilePredictor, files: list[FileToRead], folder: Path) -> dict[str, list[Finding] | str]:
    """Findings by file as a worker makes them of its store, or the reason why there are none."""
    store, own = open_store(f"file:{folder}"), Settings()
    names: dict[UUID, str] = {}
    instances = []
    for file in files:
        content = file.path.read_bytes()
        store.put(original_key(sha256_of(content)), io.BytesIO(content), len(content))
        instances.append(InstanceToAnalyse(uuid4(), sha256_of(content), 1, 0))
        names[instances[-1].id] = file.name
    claim = Claim(uuid4(), uuid4(), Purpose.FIRST, "any", uuid4(), 4, Priority.ROUTINE, datetime.now(UTC), instances)
    decoders = Decoders(
        f"file:{folder}", ImageLimits(), count=cpu_count(), limit_s=limit_s(60), memory_bytes=2**32, log_level="ERROR"
    )
    batcher: ModelBatcher = Batcher(
        "model", predict, max_batch=images_per_call(own.batch_size), streams=calling_threads()
    )

    def decode(job: Job, priority: int) -> "Future[DecodedImage]":
        return decoders.submit(job, priority)

    try:
        results = analyse(claim, predictor.predictor, decode, batcher, last_attempt=True)
    finally:
        decoders.close()
        batcher.close()
    return {
        names[UUID(str(result.instance_id))]: result.error_reason or list(result.findings) for result in results
    }  # fmt: skip


def as_predict(predictor: FilePredictor, files: list[FileToRead]) -> dict[str, list[Finding] | str]:
    """The same as `osteon predict` makes them."""

    def told(outcome: ImageResult[FileToRead] | ImageFailure[FileToRead]) -> list[Finding] | str:
        return outcome.findings if isinstance(outcome, ImageResult) else getattr(outcome.error, "reason", "other")

    return {outcome.image.name: told(outcome) for outcome in predictor.findings(files)}


@pytest.mark.usefixtures("forked_decoders")
@pytest.mark.parametrize("step", [pytest.param(9, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_predict_finds_what_the_worker_finds(tmp_path: Path, step: int) -> None:
    """On every sample, broken ones and one without a modality too, to the bit: probabilities, words and heatmaps."""
    nameless = pydicom.dcmread(STUDIES / "09-elbow/1-ap.dcm")
    del nameless.Modality
    nameless.save_as(tmp_path / "no-modality.dcm")
    files = files_of([STUDIES, BROKEN], Settings())[::step] + files_of([tmp_path / "no-modality.dcm"], Settings())
    files = [file for file in files if file.member is None and not file.error]
    with FilePredictor(BUNDLE.read_bytes(), Settings()) as predictor:
        found, expected = as_predict(predictor, files), as_worker(predictor, files, tmp_path / "store")
    assert set(found) == {file.name for file in files}
    assert found == expected
    nobody = found["no-modality.dcm"][0]
    assert isinstance(nobody, Finding)
    assert nobody.assessment == "abstained"


@pytest.mark.slow
def test_predict_says_what_the_running_system_says(system: System, tmp_path: Path) -> None:
    """All samples through a live stack and through `osteon predict`: no other word on any of them."""
    environment = os.environ | {
        "OSTEON_HOME": str(system.stack.home),
        "OSTEON_KEY": system.keys["admin"],  # who only submits is told states
        "XDG_STATE_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "infra.cli"]
    sent = subprocess.run(
        [*command, "submit", STUDIES, "--wait", "--json"],
        env=environment, capture_output=True, text=True, check=True, timeout=limit_s(240),
    )  # fmt: skip
    predict = json.loads(sent.stdout)
    by_uid = {
        instance["sop_instance_uid"]: instance for report in predict["reports"] for instance in report["instances"]
    }
    live = {
        (file["file"], finding["frame"]): finding
        for file in predict["files"]
        for finding in by_uid[file["sop_instance_uid"]]["findings"]
    }
    with FilePredictor(BUNDLE.read_bytes(), Settings()) as predictor:
        rows = [row for rows in predictor.read(files_of([STUDIES], Settings())) for row in rows]
    assert {(row.file, row.frame) for row in rows} == set(live)
    for row in rows:
        other = live[row.file, row.frame or 0]
        for name in set(COLUMNS) & set(other):
            told = getattr(row, name)
            expected = pytest.approx(other[name], abs=1e-4) if isinstance(told, float) else other[name] or None
            assert told == expected, name


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Ctrl-C: exit code 130, all that was read is in the table, and the same command reads the rest only."""
    radiographs = tmp_path / "radiographs"
    radiographs.mkdir()
    for number in range(60):
        shutil.copy(STUDIES / "01-hand/1-pa.dcm", radiographs / f"{number:02}.dcm")
    table = tmp_path / "out.csv"
    command = [sys.executable, "-m", "infra.cli", "predict", str(radiographs), "--csv", str(table)]
    environment = os.environ | {"OSTEON_HOME": str(tmp_path / "home")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        until(
            lambda: run.poll() is not None or (table.exists() and table.read_bytes().count(b"\n") > 3), 60, every_s=0.01
        )
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=LIMIT_S)
    assert run.returncode == 130, said
    assert "the same command goes on from there" in said
    before = rows_of(table)
    assert 3 <= len(before) < 60
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s(120), check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(before) - 1} of 60 files are in" in done.stderr
    after = rows_of(table)
    assert after[: len(before)] == before
    assert [row["file"] for row in after] == [f"{number:02}.dcm" for number in range(60)]


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(NAMES, st.integers(0, 3)), max_size=6, unique_by=lambda each: each[0]), st.data())
def test_a_table_that_was_cut_anywhere_can_be_gone_on_with(
    tmp_path: Path, files: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Whichever byte was the last: kept are whole rows of whole files, and going on gives the table as it would be."""
    path = tmp_path / "table.csv"
    rows = {
        name: [
            Row(name, frame, "hand", 0.5, 0.25, "negative", 1.0, "none", bundle="one") for frame in range(1, frames + 1)
        ]
        or [Row(name, error="not-dicom: no")]
        for name, frames in files
    }
    with Table(path, "one", fresh=True) as table:
        for each in rows.values():
            table.write(each)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with Table(path, "one", fresh=False) as table:
        kept = {row["file"] for row in table.kept}
        for name, each in rows.items():
            if name not in kept:
                table.write(each)
    assert path.read_bytes() == whole


def test_what_can_heal_is_tried_again(tmp_path: Path) -> None:
    """A file that could not be read from the disk has no row any more; one that was refused keeps its own."""
    path = tmp_path / "table.csv"
    with Table(path, "one", fresh=True) as table:
        table.write([Row("a", error="unreadable: Stale file handle")])
        table.write([Row("b", error="not-dicom: This is not a DICOM file")])
        table.write([Row("c", error="decoding-failed: Decoding took more than 60 s")])
    with Table(path, "one", fresh=False) as table:
        assert [row["file"] for row in table.kept] == ["b"]
    assert [row["file"] for row in rows_of(path)] == ["b"]


HEAD = f"{','.join(COLUMNS)}\r\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("years of work", "no table"),
        ("file,frame\r\na,1\r\n", "no table"),
        (HEAD + "a,1\r\nb,1\r\n", "no table"),
        (HEAD + "a,1,hand,0.5,0.2,negative,1.0,none,,,,another,\r\n", "another"),
    ],
)
def test_another_file_is_not_written_over(tmp_path: Path, content: str, words: str) -> None:
    """What is no such table, or holds another bundle's rows, stays as it is; --fresh writes over it."""
    path = tmp_path / "thesis.csv"
    path.write_bytes(content.encode())
    with pytest.raises(OsteonError, match=words):
        Table(path, "one", fresh=False)
    assert path.read_bytes() == content.encode()
    with Table(path, "one", fresh=True):
        assert path.read_bytes() == HEAD.encode()


def test_two_runs_do_not_write_one_table(tmp_path: Path) -> None:
    """The second one is told, and changes nothing."""
    with Table(tmp_path / "table.csv", "one", fresh=False), pytest.raises(OsteonError, match="Another osteon predict"):
        Table(tmp_path / "table.csv", "one", fresh=False)


def test_folders_with_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    """Names are paths from the common folder, each file is read once, and a bare folder's names are as they were."""
    for folder in ("a/radiographs", "b/radiographs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.dcm").write_bytes(b"x")
    own = Settings()
    both = [tmp_path / "a/radiographs", tmp_path / "b/radiographs", tmp_path / "b/radiographs/1.dcm"]
    assert [file.name for file in files_of(both, own)] == ["a/radiographs/1.dcm", "b/radiographs/1.dcm"]
    assert [file.name for file in files_of([tmp_path / "a"], own)] == ["radiographs/1.dcm"]
    assert [file.name for file in files_of([tmp_path / "a/radiographs/1.dcm"], own)] == ["1.dcm"]
