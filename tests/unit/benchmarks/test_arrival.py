"""What the benchmark of arrivals sends, and what it makes of the times."""

from pathlib import Path

import pydicom
import pytest

from benchmarks import arrival
from benchmarks.arrival import SentStudy, Studies, _result
from benchmarks.instances import instance
from benchmarks.measure import MissingRequirement


def test_each_study_has_three_images_of_a_patient_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Images of a study share its UID, series and patient; no two studies share anything, and no two images a UID."""
    monkeypatch.setattr(arrival, "radiograph", lambda number, encoding: instance(number, 32, 32, encoding))
    studies = Studies(tmp_path / "sent")
    seen: dict[str, set[str]] = {"PatientID": set(), "StudyInstanceUID": set(), "SeriesInstanceUID": set()}
    instances: set[str] = set()
    for number in range(8):
        uid, files = studies.write(number)
        headers = [pydicom.dcmread(file) for file in files]
        assert len(files) == 3
        assert {header.StudyInstanceUID for header in headers} == {uid}
        for keyword, others in seen.items():
            values = {str(header[keyword].value) for header in headers}
            assert len(values) == 1
            assert not values & others
            others.update(values)
        instances |= {str(header.SOPInstanceUID) for header in headers}
        assert all(header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID for header in headers)
    assert len(instances) == 24


def test_the_last_object_counts_of_a_study_and_of_each_kind() -> None:
    """A study has arrived with its last object, a kind with its last one; a study without a kind is not in its figure."""
    sent = [SentStudy("1", 100.0), SentStudy("2", 200.0)]
    times = {"1": (101.0, 103.0, 121.0, 123.0, 124.0), "2": (201.0, 203.0, 221.0, 223.0, 224.0)}
    objects = {"a": ("1", "sc"), "b": ("1", "sc"), "c": ("1", "sr"), "d": ("2", "sc")}
    found = _result(sent, times, objects, {"a": 130.0, "b": 142.0, "c": 124.0, "d": 270.0}, 0.5, quick=False)
    assert {case.label: (case.repeats, case.subject) for case in found.cases} == {
        "all results, p95": (2, 70.0), "sc, p95": (2, 70.0), "sr, p95": (1, 24.0)
    }  # fmt: skip
    assert not found.met
    assert found.details["since the first byte, s: p50, p95, longest"]["complete"] == [21.0, 21.0, 21.0]
    assert found.details["since the first byte, s: p50, p95, longest"]["in the archive"] == [56.0, 70.0, 70.0]


def test_without_dcmtk_it_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install, before it starts anything."""
    monkeypatch.setattr("benchmarks.arrival.shutil.which", lambda _: None)
    with pytest.raises(MissingRequirement, match="dcmtk"):
        arrival.run(quick=True, say=print)
