"""`osteon submit` as a hospital's night job runs it, against a real API in a process of its own."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pydicom
import pytest
from typer.testing import CliRunner

from infra import cli
from shared.settings import ROOT
from tests.live_stack import KEYS, BreakableStack, instance
from tests.pace import LIMIT_S, until


@pytest.fixture(scope="module")
def live_stack(standing: BreakableStack) -> Iterator[BreakableStack]:
    """Postgres, Valkey and an API."""
    standing.begin()
    yield standing
    standing.end_processes(1)


@dataclass
class Sender:
    """A hospital's computer: a state folder of its own, and a folder to send."""

    live_stack: BreakableStack
    home: Path
    label: str

    @property
    def folder(self) -> Path:
        """What is sent."""
        made = self.home / "day"
        made.mkdir(exist_ok=True)
        return made

    def write(self, name: str, number: int) -> Path:
        """A instance of a study of its own."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(instance(self.label, number))
        return path

    @property
    def variables(self) -> dict[str, str]:
        """What a shell of this computer knows of Osteon."""
        return {
            "OSTEON_API_URL": self.live_stack.url, "OSTEON_KEY": KEYS["submitter"], "XDG_STATE_HOME": str(self.home / "state"),
        }  # fmt: skip

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """`osteon submit` as a process."""
        command = [sys.executable, "-m", "infra.cli", "submit", *map(str, arguments)]
        env = {name: value for name, value in os.environ.items() if not name.startswith("OSTEON_")} | self.variables
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit code and both outputs of `osteon submit` in this process, which begins in a moment."""
        others: dict[str, str | None] = {name: None for name in os.environ if name.startswith("OSTEON_")}
        done = CliRunner().invoke(cli.app, ["submit", *map(str, arguments)], env={**others, **self.variables})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.stderr
        return done.exit_code, done.stdout, done.stderr

    def told(self, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        """What --json says."""
        ended, out, err = self.run(*arguments, "--json")
        assert ended == code, err
        response: dict[str, Any] = json.loads(out)
        return response

    def stored(self) -> int:
        """How many of this sender's studies the API has."""
        uids = [instance_uid(self.label, number) for number in range(2000)]
        query = "SELECT count(*) FROM studies WHERE study_instance_uid = ANY(%s)"
        return int(self.live_stack.studies.ask(query, uids)[0][0])

    def journal(self) -> list[dict[str, Any]]:
        """The journal's entries, none before it is begun; a last line that is being written is none yet."""
        paths = list((self.home / "state/osteon/journals").glob("*"))
        assert len(paths) <= 1
        return [
            json.loads(line)
            for path in paths
            for line in path.read_text().splitlines(keepends=True)
            if line.strip() and line[-1] == "\n"
        ]


def instance_uid(label: str, number: int) -> str:
    from samples.objects import uid

    return uid(f"faults/{label}/{number}")


def image_uid(label: str, number: int) -> str:
    import io

    import pydicom

    return str(pydicom.dcmread(io.BytesIO(instance(label, number)), stop_before_pixels=True).SOPInstanceUID)


@pytest.fixture
def sender(live_stack: BreakableStack, tmp_path: Path) -> Sender:
    return Sender(live_stack, tmp_path, tmp_path.name)


def uploads(live_stack: BreakableStack) -> int:
    """Files that the API took since it started, whatever became of them."""
    lines = [
        json.loads(line)
        for line in (live_stack.folder / "api.log").read_text().splitlines()
        if '"upload received"' in line
    ]
    return sum(
        line["stored"] + line["duplicate"] + line["rejected"] for line in lines if line["message"] == "upload received"
    )


def test_second_run_sends_nothing_again(sender: Sender) -> None:
    """What is stored and unchanged is not sent again; what is new, or has changed, is; --fresh sends all."""
    for number in range(5):
        sender.write(f"{number}.dcm", number)
    assert sender.told(sender.folder)["counts"]["stored"] == 5
    before = uploads(sender.live_stack)
    again = sender.told(sender.folder)
    assert (again["counts"]["duplicate"], again["sent_earlier"]) == (5, 5)
    assert {line["sop_instance_uid"] for line in again["files"]} == {image_uid(sender.label, n) for n in range(5)}
    assert uploads(sender.live_stack) == before
    sender.write("1.dcm", 11)  # another instance under the same name
    sender.write("new.dcm", 12)
    os.utime(sender.folder / "2.dcm")  # touched, but the same bytes: known by its content
    more = sender.told(sender.folder)
    assert (more["counts"]["stored"], more["sent_earlier"]) == (2, 4)
    assert uploads(sender.live_stack) == before + 2
    assert sender.told(sender.folder, "--fresh")["sent_earlier"] == 0
    assert uploads(sender.live_stack) == before + 8


def test_what_is_wanted_sooner_is_sent_again(sender: Sender) -> None:
    """A day that went as routine moves up when it is sent as urgent; a journal of before knew of no priorities."""

    def queues() -> set[str]:
        query = (
            "SELECT DISTINCT analyses.priority FROM studies JOIN analyses ON analyses.id = current_analysis_id "
            "WHERE study_instance_uid = ANY(%s)"
        )
        return {
            row[0] for row in sender.live_stack.studies.ask(query, [instance_uid(sender.label, n) for n in range(2)])
        }

    for number in range(2):
        sender.write(f"{number}.dcm", number)
    assert sender.told(sender.folder)["counts"]["stored"] == 2
    assert queues() == {"routine"}
    (journal,) = (sender.home / "state/osteon/journals").iterdir()
    lines = [{name: value for name, value in line.items() if name != "priority"} for line in sender.journal()]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert sender.told(sender.folder)["sent_earlier"] == 2
    urgent = sender.told(sender.folder, "--priority", "urgent")
    assert (urgent["counts"]["duplicate"], urgent["sent_earlier"]) == (2, 0)
    assert queues() == {"urgent"}
    for again in ("urgent", "routine"):
        assert sender.told(sender.folder, "--priority", again)["sent_earlier"] == 2


def test_a_patients_disc(sender: Sender) -> None:
    """DICOMDIR, viewer and texts are skipped, not rejected, in a folder and in an archive; the exit code is 0.

    What may be a damaged image is rejected as ever.
    """
    sender.write("IMAGES/IM1", 1)
    directory = pydicom.Dataset()
    directory.FileSetID = "DISC"
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    directory.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    directory.save_as(sender.folder / "DICOMDIR", enforce_file_format=True)
    beside = {
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "viewer.exe": b"MZ" + bytes(9000),
        "README.txt": b"Dear patient",
        "AUTORUN.INF": b"",
    }
    for name, content in beside.items():
        (sender.folder / name).write_bytes(content)
    told = sender.told(sender.folder)
    outcomes = {line["file"]: line["outcome"] for line in told["files"]}
    assert outcomes == dict.fromkeys([*beside, "DICOMDIR"], "skipped") | {"IMAGES/IM1": "stored"}
    assert (told["counts"]["skipped"], told["counts"]["rejected"], told["reasons"]) == (5, 0, {})
    disc = sender.home / "disc.zip"
    with zipfile.ZipFile(disc, "w") as archive:
        for path in sorted(sender.folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(sender.folder))
    code, out, err = sender.run(disc)
    assert code == 0, err
    assert "0 stored, 1 duplicate, 0 rejected, 5 skipped" in out
    (sender.folder / "IMAGES/IM2").write_bytes(bytes(4000))
    (sender.folder / "torn.dcm").write_bytes(b"torn")
    told = sender.told(sender.folder, code=1)
    assert {line["file"] for line in told["files"] if line["outcome"] == "rejected"} == {"IMAGES/IM2", "torn.dcm"}


def test_receipts_are_their_owner_s(sender: Sender) -> None:
    """File names and accession numbers may tell of patients: nobody else of this computer reads them."""
    sender.write("doe_jane.dcm", 0)
    manifest = sender.home / "day.csv"
    manifest.write_text(f"study_instance_uid\n{instance_uid(sender.label, 0)}\n")
    for name in ("receipt.csv", "receipt.json"):
        sender.run(sender.folder, "--receipt", sender.home / name, "--manifest", manifest)
    written = [path for path in sender.home.iterdir() if path.name.startswith("receipt")]
    assert len(written) >= 3
    assert {path.stat().st_mode & 0o777 for path in written} == {0o600}


def test_killed_in_the_middle(sender: Sender) -> None:
    """After kill -9 the same command sends the rest: all is stored once, and at most what was on its way comes twice."""
    count, jobs = 400, 3
    for number in range(count):
        sender.write(f"{number // 40}/{number}.dcm", number)
    before = uploads(sender.live_stack)
    process = sender.start(sender.folder, "--jobs", str(jobs))

    def well_begun() -> bool:
        assert process.poll() is None, "it ended before it could be killed"
        return len(sender.journal()) >= 100

    until(well_begun, 100, every_s=0.005)
    process.kill()
    process.communicate()
    known = len(sender.journal())
    assert known < count, "killed too late to show anything"
    inserting = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query ILIKE 'INSERT%%'"
    until(lambda: not sender.live_stack.studies.ask(inserting), 60, every_s=0.05)
    told = sender.told(sender.folder)
    assert told["sent_earlier"] == known
    assert told["counts"]["stored"] + told["counts"]["duplicate"] == count
    assert sender.stored() == count
    twice = told["counts"]["duplicate"] - told["sent_earlier"]
    assert twice <= jobs * 50, "more was sent again than was on its way"
    assert uploads(sender.live_stack) - before == count + twice


def test_interrupted(sender: Sender) -> None:
    """Ctrl-C finishes what is on its way, says what was not sent, exits 130; the next run sends just that."""
    for number in range(300):
        sender.write(f"{number}.dcm", number)
    process = sender.start(sender.folder, "--jobs", "1", "--json")
    until(lambda: len(sender.journal()) >= 50, 100, every_s=0.005)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    told = json.loads(out)
    assert told["interrupted"]
    assert 0 < told["counts"]["unsent"] < 300
    assert told["counts"]["stored"] == 300 - told["counts"]["unsent"] == sender.stored() == len(sender.journal())
    assert len(told["files"]) == 300
    rest = sender.told(sender.folder)
    assert (rest["counts"]["stored"], rest["sent_earlier"]) == (told["counts"]["unsent"], told["counts"]["stored"])


@pytest.mark.slow
def test_interrupted_twice(sender: Sender) -> None:
    """A second Ctrl-C waits for nothing: the receipt names every file all the same, and the next run sends the rest."""
    for number in range(400):
        sender.write(f"{number}.dcm", number)
    process = sender.start(sender.folder, "--jobs", "1", "--json")
    until(lambda: len(sender.journal()) >= 50, 100, every_s=0.005)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, err
    told = json.loads(out)
    assert len({line["file"] for line in told["files"]}) == len(told["files"]) == 400
    assert told["counts"]["stored"] + told["counts"]["unsent"] == 400
    with Path(told["receipt"]).open(newline="") as file:
        assert [line["file"] for line in csv.DictReader(file)] == [line["file"] for line in told["files"]]
    assert sender.told(sender.folder)["counts"]["duplicate"] >= told["counts"]["stored"]
    assert sender.stored() == 400


def test_a_study_that_is_quarantined_fails_the_wait(sender: Sender) -> None:
    """--wait ends with exit code 1 and names the files of what could not be analysed."""
    sender.write("bad/one.dcm", 1)
    sender.write("good.dcm", 2)
    process = sender.start(sender.folder, "--wait")
    until(lambda: sender.stored() == 2, 100)
    bad, good = instance_uid(sender.label, 1), instance_uid(sender.label, 2)
    connection = psycopg2.connect(sender.live_stack.postgres.url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        settled = "UPDATE studies SET status = %s, reason = %s WHERE study_instance_uid = %s"
        cursor.execute(settled, ("quarantined", "no-image", bad))
        cursor.execute(settled, ("analysed", "", good))
    connection.close()
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, err
    assert "1 studies analysed, 1 quarantined" in out
    assert re.search(r"quarantined [0-9a-f-]{36}: The study has no image\.\n  bad/one\.dcm\n", out)
    assert "good.dcm" not in out


def test_data_that_the_api_lost(sender: Sender) -> None:
    """A journal does not outlive the data: what the API no longer has is sent again, though unchanged here."""
    for number in range(3):
        sender.write(f"{number}.dcm", number)
    study = sender.told(sender.folder)["files"][1]["study_id"]
    connection = psycopg2.connect(sender.live_stack.postgres.url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM studies WHERE id = %s", (study,))
    connection.close()
    told = sender.told(sender.folder)
    assert [line["outcome"] for line in told["files"]] == ["duplicate", "stored", "duplicate"]


def test_images_that_the_api_lost(sender: Sender) -> None:
    """After a restored backup a study may be there, and its later images not: all of its files are sent again."""
    for number in range(3):
        sender.write(f"{number}.dcm", number)
    first, second = (pydicom.dcmread(sender.folder / f"{number}.dcm") for number in (0, 1))
    second.StudyInstanceUID = first.StudyInstanceUID
    second.save_as(sender.folder / "1.dcm")
    sender.told(sender.folder)

    def delete(image: pydicom.Dataset) -> None:
        connection = psycopg2.connect(sender.live_stack.postgres.url.replace("+psycopg2", ""))
        with connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM instances WHERE sop_instance_uid = %s", (image.SOPInstanceUID,))
        connection.close()

    delete(second)
    told = sender.told(sender.folder)
    assert [line["outcome"] for line in told["files"]] == ["duplicate", "stored", "duplicate"]
    assert told["sent_earlier"] == 1
    delete(second)
    (sender.folder / "1.dcm").unlink()  # so it cannot be sent again
    for earlier in (1, 2):
        told = sender.told(sender.folder)
        assert [line["outcome"] for line in told["files"]] == ["duplicate", "duplicate"]
        assert told["sent_earlier"] == earlier, "once, and not in every run"


def test_archives_by_member(sender: Sender) -> None:
    """An archive is sent as it is, and remembered by member: when it grows, only what is not stored is sent."""
    archive = sender.folder / "nacht.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("ärm/1.dcm", instance(sender.label, 1))
        packed.writestr("2.dcm", "no instance")
    told = sender.told(sender.folder, code=1)
    assert [(line["file"], line["outcome"]) for line in told["files"]] == [
        ("nacht.zip!ärm/1.dcm", "stored"), ("nacht.zip!2.dcm", "rejected"),
    ]  # fmt: skip
    assert all(re.fullmatch("[0-9a-f]{64}", line["sha256"]) for line in told["files"])
    before = uploads(sender.live_stack)
    again = sender.told(sender.folder, code=1)
    assert [line["outcome"] for line in again["files"]] == ["duplicate", "rejected"]
    assert uploads(sender.live_stack) == before + 1, "the rejected member alone was tried again"


def test_hidden_members_and_broken_archives(sender: Sender) -> None:
    """What macOS hides in archives is left out; a broken archive is sent, for the API says what is wrong with it."""
    with zipfile.ZipFile(sender.folder / "a.zip", "w") as packed:
        packed.writestr("1.dcm", instance(sender.label, 1))
        packed.writestr("__MACOSX/._1.dcm", "x")
        packed.writestr(".DS_Store", "x")
    (sender.folder / "b.zip").write_bytes((sender.folder / "a.zip").read_bytes()[:500])
    told = sender.told(sender.folder, code=1)
    assert [(line["file"], line["outcome"], line["reason"]) for line in told["files"]] == [
        ("a.zip!1.dcm", "stored", None), ("b.zip", "rejected", "bad-archive"),
    ]  # fmt: skip


def test_names_of_all_kinds(sender: Sender) -> None:
    """File names with umlauts, line breaks, quotes and bytes that are no UTF-8 come back in receipts as they are."""
    names = ["Grüße, Ärzte.dcm", "two\nlines.dcm", '"quoted" 50%0A;.dcm', "!bang!.dcm", os.fsdecode(b"latin-\xe4.dcm")]
    for number, name in enumerate(names):
        sender.write(name, number)
    table, listed = sender.home / "receipt.csv", sender.home / "receipt.json"
    code, out, err = sender.run(sender.folder, "--receipt", table)
    assert code == 0, err
    assert "5 stored" in out
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == set(names)
    assert sender.run(sender.folder, "--fresh", "--receipt", listed)[0] == 0
    assert {line["file"] for line in json.loads(listed.read_text())["files"]} == set(names)


def test_receipt_in_csv_and_json_agree(sender: Sender) -> None:
    """Both receipts say the same of every file, in the order of the folder."""
    sender.write("b.dcm", 1)
    (sender.folder / "a.dcm").write_text("no instance")
    table = sender.home / "receipt.csv"
    told = sender.told(sender.folder, "--receipt", table, code=1)
    assert [line["file"] for line in told["files"]] == ["a.dcm", "b.dcm"]
    assert told["reasons"] == {"not-dicom": 1}
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {name: "" if value is None else str(value) for name, value in line.items()} for line in told["files"]
    ]


def test_unreadable_files_stop_nothing(sender: Sender) -> None:
    """A link to nothing and a loop of folders are no obstacle; the first is said, the second passed over."""
    sender.write("a.dcm", 1)
    (sender.folder / "gone.dcm").symlink_to(sender.folder / "nowhere")
    (sender.folder / "loop").symlink_to(sender.folder)
    (sender.folder / ".hidden").write_text("x")
    told = sender.told(sender.folder, code=1)
    assert [(line["file"], line["outcome"]) for line in told["files"]] == [
        ("a.dcm", "stored"), ("gone.dcm", "unreadable"),
    ]  # fmt: skip


def test_manifest(sender: Sender) -> None:
    """Of a day's list: what came, what was refused, what never came, what is incomplete; and what nobody promised."""
    for number in range(3):
        sender.write(f"{number}.dcm", number)
    cut = sender.folder / "cut.dcm"
    cut.write_bytes(instance(sender.label, 3)[:-100])
    day = sender.home / "day.csv"
    rows = [
        "Image UID;Study Instance UID;Accession No;Number of Images",
        f"{image_uid(sender.label, 0)};;;",
        f";{instance_uid(sender.label, 1)};;2",
        f"{image_uid(sender.label, 3)};;;",
        ";;ACC-NEVER;",
        ";;;",
    ]
    day.write_text("\n".join(rows), encoding="utf-8-sig")
    table = sender.home / "receipt.csv"
    told = sender.told(sender.folder, "--manifest", day, "--receipt", table, code=3)
    kept = [(row["kept"], row["row"], row["file"]) for row in told["manifest"]["rows"]]
    assert kept == [
        ("came", 2, ""), ("incomplete", 3, ""), ("rejected", 4, "cut.dcm"), ("missing", 5, ""), ("unpromised", None, "2.dcm"),
    ]  # fmt: skip
    with (sender.home / "receipt-manifest.csv").open(newline="") as file:
        assert [row["kept"] for row in csv.DictReader(file)] == [row[0] for row in kept]
    cut.unlink()
    (sender.folder / "2.dcm").unlink()
    day.write_text(f"SOPInstanceUID\n{image_uid(sender.label, 0)}\n{image_uid(sender.label, 1)}\n")
    assert sender.told(sender.folder, "--manifest", day)["manifest"]["counts"]["came"] == 2


def test_manifest_that_is_none(sender: Sender) -> None:
    """A manifest without a known column is refused before anything is sent, with the columns that are understood."""
    sender.write("a.dcm", 1)
    (sender.home / "day.csv").write_text("name,date\nx,y\n")
    code, out, err = sender.run(sender.folder, "--manifest", sender.home / "day.csv")
    assert (code, out) == (1, "")
    assert "sop_instance_uid" in err
    assert sender.stored() == 0


def test_nowhere_to_remember(sender: Sender) -> None:
    """Where neither journal nor receipt can be written, that is said, and the files are sent all the same."""
    sender.write("a.dcm", 1)
    (sender.home / "state").write_text("a file where the state folder should be")
    code, out, err = sender.run(sender.folder)
    assert code == 0, err
    assert "No journal can be kept" in err
    assert "No receipt can be written" in err
    assert "1 stored" in out


def test_wrong_key(sender: Sender) -> None:
    """A key that is refused ends the run at once; every file stands in the receipt as not sent."""
    sender.write("a.dcm", 1)
    receipt = sender.home / "receipt.json"
    code, _, err = sender.run(sender.folder, "--key", "osk_wrong", "--receipt", receipt)
    assert code == 1
    assert "401" in err
    assert json.loads(receipt.read_text())["counts"]["unsent"] == 1


def test_states_of_many_studies(in_process: Any) -> None:
    """One call tells where a thousand studies stand; another site's are as unknown as those that never were."""
    from uuid import uuid4

    from shared.domain.security import Role
    from shared.queries.access import add_key

    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.SUBMITTER, "osk_elsewhere")
    study = in_process.post({"a": instance("states", 1)}).json()["studies"][0]["id"]
    nobody = str(uuid4())
    mine, other = in_process.headers("submitter"), {"Authorization": "Bearer osk_elsewhere"}

    def ask(ids: list[str], headers: dict[str, str]) -> Any:
        return in_process.http.post("/api/v1/studies/states", json={"ids": ids}, headers=headers)

    told = ask([study, nobody, study, nobody], mine).json()
    assert told == {
        "studies": [
            {
                "id": study,
                "status": "queued",
                "reason": "",
                "detail": "",
                "images": 1,
                "completeness": "receiving",
                "expected_images": None,
            }
        ],
        "unknown": [nobody],
    }
    assert ask([study], other).json() == {"studies": [], "unknown": [study]}
    assert ask([str(uuid4()) for _ in range(1000)], mine).status_code == 200
    assert ask([str(uuid4()) for _ in range(1001)], mine).status_code == 422
