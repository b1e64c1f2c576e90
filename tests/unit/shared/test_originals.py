"""Original Attributes Sequence: what an object said before it was changed."""

import io
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import dcmread

from shared.dicom.originals import coerce_attributes

FILE = Path(__file__).parents[2] / "data/field_reports/o2-second-patient-same-study-uid.dcm"
WHEN = datetime(2026, 11, 29, 21, 5, tzinfo=UTC)


def test_old_values_are_kept() -> None:
    """The new values stand in the data set, the old ones in an item that says when, by whom and why."""
    dataset = dcmread(FILE)
    old, sop = dataset.StudyInstanceUID, dataset.SOPInstanceUID
    coerce_attributes(dataset, {"StudyInstanceUID": "2.25.1", "SOPInstanceUID": "2.25.2"}, WHEN, "ER console")
    out = io.BytesIO()
    dataset.save_as(out)
    again = dcmread(io.BytesIO(out.getvalue()))
    (item,) = again.OriginalAttributesSequence
    (before,) = item.ModifiedAttributesSequence
    assert (again.StudyInstanceUID, again.SOPInstanceUID) == ("2.25.1", "2.25.2")
    assert again.file_meta.MediaStorageSOPInstanceUID == "2.25.2"
    assert (before.StudyInstanceUID, before.SOPInstanceUID, len(before)) == (old, sop, 2)
    assert (item.ModifyingSystem, item.ReasonForTheAttributeModification) == ("OSTEON", "COERCE")
    assert (item.AttributeModificationDateTime, item.SourceOfPreviousValues) == ("20261129210500+0000", "ER console")
    assert again.PixelData == dcmread(FILE).PixelData


def test_nothing_changed_nothing_noted() -> None:
    """The same value again, and one that was not there, add no item; earlier items stay."""
    dataset = dcmread(FILE)
    coerce_attributes(dataset, {"StudyInstanceUID": str(dataset.StudyInstanceUID), "Laterality": "L"}, WHEN)
    assert "OriginalAttributesSequence" not in dataset
    coerce_attributes(dataset, {"StudyInstanceUID": "2.25.1"}, WHEN)
    coerce_attributes(dataset, {"StudyInstanceUID": "2.25.3"}, WHEN)
    kept = [item.ModifiedAttributesSequence[0].StudyInstanceUID for item in dataset.OriginalAttributesSequence]
    assert kept == [dcmread(FILE).StudyInstanceUID, "2.25.1"]


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmtk is not installed")
def test_dcmtk_reads_it(tmp_path: Path) -> None:
    """DCMTK finds the sequence and the old UID in it."""
    dataset = dcmread(FILE)
    coerce_attributes(dataset, {"StudyInstanceUID": "2.25.1"}, WHEN)
    dataset.save_as(tmp_path / "a.dcm")
    told = subprocess.run(
        ["dcmdump", "+P", "0400,0561", tmp_path / "a.dcm"], check=True, capture_output=True, text=True
    ).stdout
    assert "OriginalAttributesSequence" in told and str(dcmread(FILE).StudyInstanceUID) in told
