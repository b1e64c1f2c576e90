"""What others' programs say of result objects: dicom3tools, dcmtk, Orthanc and OHIF. Needs Debian's dcmtk and orthanc."""

import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from benchmarks.orthanc import orthanc
from infra.predict import FilePredictor, FileToRead
from samples.objects import SYNTAX, pattern_image, to_bytes
from shared.domain.findings import Finding
from shared.domain.results import DOCUMENTS
from shared.settings import ROOT, Settings
from tests.results import MODEL, found, study_of
from worker.pipeline import ImageResult
from worker.results.source import COPIED

pytestmark = [pytest.mark.systems, pytest.mark.timeout(1800)]

STUDIES = sorted((ROOT / "samples/studies").iterdir())
BUNDLE = ROOT / "training/bundles/second-look.safetensors"
TOOLS = Path(sys.executable).parent
NAMES = {  # (0008,0005), and a name
    "ISO_IR 100": "Äneas^Rüdiger",
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "ISO_IR 192": "Wang^XiaoDong=王^小东=",
}
WRONG = "Error"


def said(*command: str | Path) -> tuple[int, list[str]]:
    """Exit status and lines of a program."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, list[Finding]]:
    """What the shipped model finds on every sample."""
    read: dict[Path, list[Finding]] = {}
    with FilePredictor(BUNDLE.read_bytes(), Settings(home=tmp_path_factory.mktemp("home"))) as predictor:
        files = [FileToRead(str(path), path) for study in STUDIES for path in sorted(study.glob("*.dcm"))]
        for outcome in predictor.findings(files):
            assert isinstance(outcome, ImageResult)
            read[outcome.image.path] = [replace(one, bundle=MODEL.name) for one in outcome.findings]
    return read


@pytest.fixture(scope="module")
def made(
    findings: dict[Path, list[Finding]], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[list[Path], list[Path]]]:
    """Each study's sources and results, as files."""
    folder = tmp_path_factory.mktemp("results")
    groups = []
    for study in STUDIES:
        sources = sorted(study.glob("*.dcm"))
        groups.append(_written(folder / study.name, sources, [findings[path] for path in sources]))
    for number, (charset, name) in enumerate(NAMES.items()):
        image = pattern_image(101 + number, f"results/charset/{number}")
        image.SpecificCharacterSet, image.PatientName = charset.split("\\"), name
        image.IssuerOfPatientID, image.StudyDescription = "NORTH", "Hand"
        path = folder / f"charset-{number}.dcm"
        path.write_bytes(to_bytes(image, SYNTAX["explicit"]))
        groups.append(_written(folder / f"charset-{number}", [path], [[found()]]))
    return groups


def _written(folder: Path, sources: Sequence[Path], mine: Sequence[Sequence[Finding]]) -> tuple[list[Path], list[Path]]:
    folder.mkdir()
    results = []
    for one in study_of([path.read_bytes() for path in sources], mine).build():
        results.append(folder / f"{one.kind}-{one.number}.dcm")
        results[-1].write_bytes(one.content)
    assert {path.name.rsplit("-", 1)[0] for path in results} >= {
        "sc-summary",
        "sc-overlay",
        "sr-statements",
        "pdf",
    }
    return list(sources), results


def errors(lines: Sequence[str], files: Sequence[Path]) -> set[str]:
    """Errors without the files' names."""
    return {
        functools.reduce(lambda text, file: text.replace(str(file), "FILE"), files, line)
        for line in lines
        if line.startswith(WRONG)
    }


def test_dciodvfy_finds_no_error_that_the_sources_do_not_have(
    made: list[tuple[list[Path], list[Path]]],
) -> None:
    files = 0
    for sources, results in made:
        known: set[str] = set().union(*(errors(said(TOOLS / "dciodvfy", path)[1], [path]) for path in sources))
        for path in results:
            assert errors(said(TOOLS / "dciodvfy", path)[1], [path]) - known == set(), path
            files += 1
    assert files > 200


def test_dcentvfy_finds_results_and_sources_of_one_patient_and_study(
    made: list[tuple[list[Path], list[Path]]], tmp_path: Path
) -> None:
    """What a source refers to and is not among the samples, dcentvfy reports with results and without."""
    silent = 0
    for sources, results in made:
        readable = [_inflated(path, tmp_path / f"{path.parent.name}-{path.name}") for path in sources]
        alone, told = said(TOOLS / "dcentvfy", *readable)
        together, lines = said(TOOLS / "dcentvfy", *readable, *results)
        files = [*readable, *results]
        assert errors(lines, files) == errors(told, files), results[0]
        assert together == alone
        silent += together == 0
    assert silent >= len(made) - 2  # two real radiographs name an image that was not published


def _inflated(path: Path, copy: Path) -> Path:
    """dcentvfy reads no deflated file."""
    if dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return path
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(copy, dataset)
    return copy


def test_dsrdump_reads_every_document(
    made: list[tuple[list[Path], list[Path]]],
) -> None:
    read = 0
    for _, results in made:
        for path in results:
            if any(path.name.startswith(f"{kind}-") for kind in DOCUMENTS):
                code, lines = said("dsrdump", path)
                assert code == 0, lines
                assert any("Imaging Measurement Report" in line for line in lines)
                assert not any(line.startswith("E: ") for line in lines)
                read += 1
    assert read > 100


def test_dcm2json_shows_patient_and_study_as_the_source_has_them(
    made: list[tuple[list[Path], list[Path]]], tmp_path: Path
) -> None:
    compared = 0
    for sources, results in made:
        source = _json(sources[0], tmp_path)
        for path in results:
            result = _json(path, tmp_path)
            for keyword in COPIED:
                tag = f"{int(Tag(keyword)):08X}"
                empty = {"vr": source.get(tag, result.get(tag, {})).get("vr")}
                assert result.get(tag, empty) == source.get(tag, empty), (path, keyword)
            compared += 1
    assert compared > 200


def _json(path: Path, folder: Path) -> dict[str, Any]:
    """dcm2json's, of the header in UTF-8, which it asks for; it takes no compressed pixels."""
    header = folder / "header.dcm"
    dataset = dcmread(path, stop_before_pixels=True)
    dataset.decode()  # iconv's dcmconv knows no ISO 2022
    if dataset.get("SpecificCharacterSet"):
        dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(header, dataset)
    code, lines = said("dcm2json", header)
    assert code == 0, lines
    told: dict[str, Any] = json.loads("\n".join(lines))
    return told


def test_dcmpschk_accepts_the_presentation_states(
    made: list[tuple[list[Path], list[Path]]],
) -> None:
    """It knows no character set of several bytes, so only those of the samples are shown to it."""
    states = [path for _, results in made[:-3] for path in results if path.name.startswith("gsps-")]
    assert len(states) > 10
    for path in states:
        code, lines = said("dcmpschk", path)
        assert code == 0, lines
        assert not any("Error" in line for line in lines), lines


def test_orthanc_stores_the_objects_and_gives_them_back_equal(
    made: list[tuple[list[Path], list[Path]]], tmp_path: Path
) -> None:
    chosen = [made[0], made[4], *made[-3:]]
    with orthanc(tmp_path) as running:
        for sources, results in chosen:
            for path in [*sources, *results]:
                answer = httpx.post(f"{running.url}/instances", content=path.read_bytes(), timeout=60)
                assert answer.status_code == 200, answer.text
                told = answer.json()
                assert told["Status"] == "Success"
                back = httpx.get(f"{running.url}/instances/{told['ID']}/file", timeout=60).content
                assert back == path.read_bytes()
            kinds = _series(running.url, told["ParentStudy"])
            assert len(kinds) == len({path.name.rsplit("-", 1)[0] for path in results}) + len(sources)


def _series(url: str, study: str) -> list[str]:
    found: list[str] = httpx.get(f"{url}/studies/{study}", timeout=60).json()["Series"]
    return found
