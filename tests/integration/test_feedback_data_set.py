"""Feedback as a training table: what training reads back is what readers said."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from infra import cli
from infra.client.api import Client
from shared.domain.findings import Assessment
from shared.errors import OsteonError
from shared.pixels.decode import open_pixels
from shared.pixels.radiograph import decode_radiograph
from tests.feedback_data import ONE, analyse, say, study_file
from training.datasets import MISSING, REGIONS, radiographs, read_radiograph
from training.datasets.feedback import ExportResult, export_table

WORDS = "Mrs Zebra, room 9"


@pytest.fixture
def client(in_process: Any, address: str) -> Iterator[Client]:
    with Client(address, in_process.keys["admin"]) as made:
        yield made


def study(api: Any, number: int, assessment: Assessment = Assessment.POSITIVE, **tags: Any) -> tuple[str, bytes]:
    content = study_file(number, rows=100, columns=80, PatientID=f"P{number}", **tags)
    made: str = api.post({"a": content}).json()["studies"][0]["id"]
    analyse(api, made, assessment=assessment)
    return made, content


def test_training_reads_back_what_readers_said(in_process: Any, client: Client, tmp_path: Path) -> None:
    """Agreement takes the model's assessment over, disagreement the reader's, marks become boxes in pixels; the radiograph is the
    same to the bit as the worker saw it; what nobody said stays open."""
    agreed, content = study(in_process, 1)
    mark = {"image": 1, "frame": 1, "x": 0.25, "y": 0.1, "width": 0.5, "height": 0.2}
    say(in_process, agreed, **ONE | {"marks": [mark]})
    wrong, _ = study(in_process, 2)
    say(in_process, wrong, **ONE)
    say(in_process, wrong, **ONE | {"verdict": "disagree", "fracture": "no", "region": "leg", "marks": [mark]},
        contradiction_meant=True)  # fmt: skip
    missed, _ = study(in_process, 3, Assessment.NEGATIVE)
    say(in_process, missed, **ONE | {"verdict": "disagree", "fracture": "yes", "severity": "moderate"})
    fought, _ = study(in_process, 4)
    say(in_process, fought, **ONE)
    say(in_process, fought, role="admin", **ONE | {"verdict": "disagree", "fracture": "no"})
    silent, _ = study(in_process, 5, Assessment.ABSTAINED)
    say(in_process, silent, **ONE | {"text": WORDS})
    study(in_process, 6)  # nobody answers it

    assert export_table(client, tmp_path / "out") == ExportResult(3, without_label=1, contradicted=1, unreadable=0)
    found = {(radiograph.fractured, radiograph.extent): radiograph for radiograph in radiographs(tmp_path / "out")}
    assert set(found) == {(1, MISSING), (0, 0), (1, 2)}
    right = found[1, MISSING]
    assert right.region == REGIONS.index("hand")
    assert right.original_size == (80, 100)
    (outline,) = right.outlines
    assert [*outline[0], *outline[2]] == pytest.approx([0.25, 0.1, 0.75, 0.3], abs=1e-3)
    assert (found[0, 0].region, found[0, 0].outlines) == (REGIONS.index("leg"), [])
    assert found[1, 2].region == MISSING
    assert np.array_equal(read_radiograph(right.path, 64), decode_radiograph(open_pixels(content), 0).square(64))


def test_a_readers_last_word_contradicts_nobody(in_process: Any, client: Client, tmp_path: Path) -> None:
    """Who agrees and then adds that there is no fracture has changed their mind; two readers do contradict each other."""
    changed, _ = study(in_process, 1)
    say(in_process, changed, **ONE)
    say(in_process, changed, **ONE | {"verdict": "supplement", "fracture": "no"})
    assert export_table(client, tmp_path / "one") == ExportResult(1, without_label=0, contradicted=0, unreadable=0)
    assert [radiograph.fractured for radiograph in radiographs(tmp_path / "one")] == [0]
    say(in_process, changed, role="admin", **ONE)
    assert export_table(client, tmp_path / "two") == ExportResult(0, without_label=0, contradicted=1, unreadable=0)


def test_an_export_names_nobody(in_process: Any, client: Client, tmp_path: Path) -> None:
    """No file of it holds a name, a patient id, a UID or a reader's words; one patient is one pseudonym, always."""
    one, _ = study(in_process, 1, StudyInstanceUID="2.25.1", SOPInstanceUID="2.25.1.1")
    two, _ = study(in_process, 2, StudyInstanceUID="2.25.2", SOPInstanceUID="2.25.2.1")
    content = study_file(3, PatientID="P1", StudyInstanceUID="2.25.3", SOPInstanceUID="2.25.3.1")
    three = in_process.post({"a": content}).json()["studies"][0]["id"]
    analyse(in_process, three)
    for made in (one, two, three):
        assert say(in_process, made, **ONE | {"text": WORDS}).status_code == 201
    export_table(client, tmp_path / "out")
    written = b"".join(
        path.read_bytes() + path.name.encode() for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    for secret in (b"zebra", b"quagga", b"P1", b"2.25.", b"room 9", one.encode()):
        assert secret.lower() not in written.lower(), secret
    blocks = sorted(radiograph.block for radiograph in radiographs(tmp_path / "out"))
    assert len(blocks) == 3
    assert len(set(blocks)) == 2
    export_table(client, tmp_path / "again")
    assert (tmp_path / "again/radiographs.csv").read_bytes() == (tmp_path / "out/radiographs.csv").read_bytes()


def test_what_cannot_be_exported_is_counted(in_process: Any, client: Client, tmp_path: Path) -> None:
    """A missing original leaves a count, not a broken table; a folder that holds something is never written to."""
    made, _ = study(in_process, 1)
    say(in_process, made, **ONE)
    folder = Path(in_process.settings.store_url.get_secret_value().removeprefix("file:"))
    for path in (folder / "originals").rglob("*.dcm"):
        path.unlink()
    assert export_table(client, tmp_path / "out").unreadable == 1
    with pytest.raises(OsteonError, match="--out"):
        export_table(client, tmp_path / "out")


def test_since_takes_whole_radiographs(in_process: Any, client: Client, tmp_path: Path) -> None:
    """--since leaves out radiographs that nobody answered from then on."""
    made, _ = study(in_process, 1)
    given_at = say(in_process, made, **ONE).json()["entries"][0]["answered_at"]
    at = datetime.fromisoformat(given_at)
    assert export_table(client, tmp_path / "a", since=at).radiographs == 1
    assert export_table(client, tmp_path / "b", since=at + timedelta(seconds=1)).radiographs == 0


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def osteon(address: str) -> Callable[..., Result]:
    """Calls the command, which knows an API and a key and nothing else."""
    return lambda *words: CliRunner().invoke(cli.app, ["feedback", *map(str, words)])


def test_the_old_name_of_the_command_works_with_a_warning(osteon: Callable[..., Result]) -> None:
    """`osteon ledger verify` says on standard error what it is called now; standard output stays as it is."""
    old, new = CliRunner().invoke(cli.app, ["ledger", "verify"]), osteon("verify")
    assert (old.exit_code, old.stdout) == (0, new.stdout)
    assert "osteon ledger is now osteon feedback" in old.stderr
    assert "osteon ledger" not in new.stderr


def test_verify_tells_a_whole_log_from_a_changed_one(in_process: Any, osteon: Callable[..., Result]) -> None:
    """Exit code 0 and the head while all is as written; 1 and the entry's number once one was changed."""
    made, _ = study(in_process, 1)
    say(in_process, made, **ONE | {"text": WORDS})
    done = osteon("verify", "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["entries"], told["problems"]) == (0, 1, [])
    assert told["head"].startswith("1:")
    assert osteon("verify", "--expect", told["head"]).exit_code == 0
    assert osteon("verify", "--expect", "2:" + "0" * 64).exit_code == 1
    assert osteon("verify", "--expect", "nonsense").exit_code == 2
    in_process.as_owner(
        "ALTER TABLE feedback DISABLE TRIGGER feedback_stay", "UPDATE feedback SET verdict = 'disagree'"
    )
    done = osteon("verify")
    assert (done.exit_code, "entry 1 was changed" in done.stdout, "CHANGED" in done.stdout) == (1, True, True)
    assert WORDS not in done.stdout


def test_export_by_command(in_process: Any, osteon: Callable[..., Result], tmp_path: Path) -> None:
    """The folder is written and named; a radiologist's key may not, and a second export into it is refused."""
    made, _ = study(in_process, 1)
    say(in_process, made, **ONE)
    done = osteon("export", "--out", tmp_path / "out", "--json")
    assert (done.exit_code, json.loads(done.stdout)["radiographs"]) == (0, 1), done.output
    assert len(radiographs(tmp_path / "out")) == 1
    assert osteon("export", "--out", tmp_path / "out").exit_code == 1
    refused = osteon("export", "--out", tmp_path / "other", "--key", in_process.keys["radiologist"])
    assert (refused.exit_code, "needs a key with the role admin" in refused.stderr) == (1, True)
    assert osteon("export", "--out", tmp_path / "late", "--since", "2999-01-01", "--json").exit_code == 0
