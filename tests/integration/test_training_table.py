"""The ledger as a training table: what training reads back is what readers said."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from infra import cli
from infra.training_table import Exported, export
from shared.errors import OsteonError
from shared.findings import Assessment
from shared.vision.pixels import open_pixels
from shared.vision.radiograph import radiograph
from tests.answered import ONE, analyse, say, study_file
from training.datasets import MISSING, REGIONS, films, read_film

WORDS = "Mrs Zebra, room 9"


def exported(api: Any, out: Path, **more: Any) -> Exported:
    parts = api.http.app.state.parts
    return export(api.database, parts.store, parts.vault, b"salt", api.key("admin"), out, **more)


def study(api: Any, number: int, assessment: Assessment = Assessment.POSITIVE, **tags: Any) -> tuple[str, bytes]:
    content = study_file(number, rows=100, columns=80, PatientID=f"P{number}", **tags)
    made: str = api.post({"a": content}).json()["studies"][0]["id"]
    analyse(api, made, assessment=assessment)
    return made, content


def test_training_reads_back_what_readers_said(in_process: Any, tmp_path: Path) -> None:
    """Agreement takes the model's assessment over, disagreement the reader's, marks become boxes in pixels; the film is the
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

    assert exported(in_process, tmp_path / "out") == Exported(3, without_label=1, contradicted=1, unreadable=0)
    found = {(film.fractured, film.severity): film for film in films(tmp_path / "out")}
    assert set(found) == {(1, MISSING), (0, 0), (1, 2)}
    right = found[1, MISSING]
    assert right.region == REGIONS.index("hand")
    assert right.original_size == (80, 100)
    (outline,) = right.outlines
    assert [*outline[0], *outline[2]] == pytest.approx([0.25, 0.1, 0.75, 0.3], abs=1e-3)
    assert (found[0, 0].region, found[0, 0].outlines) == (REGIONS.index("leg"), [])
    assert found[1, 2].region == MISSING
    assert np.array_equal(read_film(right.path, 64), radiograph(open_pixels(content), 0).square(64))


def test_a_readers_last_word_contradicts_nobody(in_process: Any, tmp_path: Path) -> None:
    """Who agrees and then adds that there is no fracture has changed their mind; two readers do contradict each other."""
    changed, _ = study(in_process, 1)
    say(in_process, changed, **ONE)
    say(in_process, changed, **ONE | {"verdict": "supplement", "fracture": "no"})
    assert exported(in_process, tmp_path / "one") == Exported(1, without_label=0, contradicted=0, unreadable=0)
    assert [film.fractured for film in films(tmp_path / "one")] == [0]
    say(in_process, changed, role="admin", **ONE)
    assert exported(in_process, tmp_path / "two") == Exported(0, without_label=0, contradicted=1, unreadable=0)


def test_an_export_names_nobody(in_process: Any, tmp_path: Path) -> None:
    """No file of it holds a name, a patient id, a UID or a reader's words; one patient is one pseudonym, always."""
    one, _ = study(in_process, 1, StudyInstanceUID="2.25.1", SOPInstanceUID="2.25.1.1")
    two, _ = study(in_process, 2, StudyInstanceUID="2.25.2", SOPInstanceUID="2.25.2.1")
    content = study_file(3, PatientID="P1", StudyInstanceUID="2.25.3", SOPInstanceUID="2.25.3.1")
    three = in_process.post({"a": content}).json()["studies"][0]["id"]
    analyse(in_process, three)
    for made in (one, two, three):
        assert say(in_process, made, **ONE | {"text": WORDS}).status_code == 201
    exported(in_process, tmp_path / "out")
    written = b"".join(
        path.read_bytes() + path.name.encode() for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    for secret in (b"zebra", b"quagga", b"P1", b"2.25.", b"room 9", one.encode()):
        assert secret.lower() not in written.lower(), secret
    blocks = sorted(film.block for film in films(tmp_path / "out"))
    assert len(blocks) == 3
    assert len(set(blocks)) == 2
    exported(in_process, tmp_path / "again")
    assert (tmp_path / "again/films.csv").read_bytes() == (tmp_path / "out/films.csv").read_bytes()


def test_what_cannot_be_exported_is_counted(in_process: Any, tmp_path: Path) -> None:
    """A missing original leaves a count, not a broken table; a folder that holds something is never written to."""
    made, _ = study(in_process, 1)
    say(in_process, made, **ONE)
    folder = Path(in_process.settings.store_url.get_secret_value().removeprefix("file:"))
    for path in (folder / "originals").rglob("*.dcm"):
        path.unlink()
    assert exported(in_process, tmp_path / "out").unreadable == 1
    with pytest.raises(OsteonError, match="--out"):
        exported(in_process, tmp_path / "out")


def test_since_takes_whole_films(in_process: Any, tmp_path: Path) -> None:
    """--since leaves out films that nobody answered from then on."""
    made, _ = study(in_process, 1)
    answered = say(in_process, made, **ONE).json()["entries"][0]["answered_at"]
    at = datetime.fromisoformat(answered)
    assert exported(in_process, tmp_path / "a", since=at).films == 1
    assert exported(in_process, tmp_path / "b", since=at + timedelta(seconds=1)).films == 0


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def osteon(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Calls the command with the test's own servers."""
    settings = in_process.settings
    for name in ("database_url", "store_url", "identity_key"):
        monkeypatch.setenv(f"OSTEON_{name.upper()}", getattr(settings, name).get_secret_value())
    monkeypatch.setenv("OSTEON_KEY", in_process.keys["admin"])
    return lambda *words: CliRunner().invoke(cli.app, ["ledger", *map(str, words)])


def test_verify_tells_a_whole_ledger_from_a_changed_one(in_process: Any, osteon: Callable[..., Result]) -> None:
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
    with in_process.database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE answers DISABLE TRIGGER answers_stay")
        connection.exec_driver_sql("UPDATE answers SET verdict = 'disagree'")
    done = osteon("verify")
    assert (done.exit_code, "entry 1 was changed" in done.stdout, "CHANGED" in done.stdout) == (1, True, True)
    assert WORDS not in done.stdout


def test_export_by_command(in_process: Any, osteon: Callable[..., Result], tmp_path: Path) -> None:
    """The folder is written and named; a radiologist's key may not, and a second export into it is refused."""
    made, _ = study(in_process, 1)
    say(in_process, made, **ONE)
    done = osteon("export", "--out", tmp_path / "out", "--json")
    assert (done.exit_code, json.loads(done.stdout)["films"]) == (0, 1), done.output
    assert len(films(tmp_path / "out")) == 1
    assert osteon("export", "--out", tmp_path / "out").exit_code == 1
    refused = osteon("export", "--out", tmp_path / "other", "--key", in_process.keys["radiologist"])
    assert (refused.exit_code, "admin's key" in refused.stderr) == (1, True)
    assert osteon("export", "--out", tmp_path / "late", "--since", "2999-01-01", "--json").exit_code == 0
