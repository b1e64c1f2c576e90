"""One image that arrives in every way in which a hospital sends it again."""

import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest

from shared.db.tables import AnalysisRow, HeldFileRow, InstanceRow
from shared.domain.held import HeldKind, HeldState
from shared.settings import ROOT
from tests.conftest import System
from tests.pace import until
from tests.systems.clients import Site, said

pytestmark = pytest.mark.systems
UNCOMPRESSED = ROOT / "samples/studies/02-hand/1-pa.dcm"


def stored(output: str) -> bool:
    """Whether dcmtk's client was told Success for its only file."""
    return output.count("Response (Success)") == 1


def lossless(path: Path) -> Path:
    """The same image as JPEG-LS."""
    encoded = path.with_suffix(".jls")
    assert not said("dcmcjpls", "--encode-lossless", str(path), str(encoded))
    return encoded


def waiting(site: Site, patient_id: str) -> list[Any]:
    """The decisions about a patient's files that wait, once none is being compared any more."""
    compared = HeldFileRow.kind == HeldKind.COMPARING, HeldFileRow.state == HeldState.OPEN
    until(lambda: not site.count(HeldFileRow, *compared), 60)
    with site.system.client() as client:
        page = client.get("/api/v1/held-files")
    return [one for one in page["waiting"] if one["file"]["patient_id"] == patient_id]


def test_an_image_that_comes_again_in_other_forms_is_one_image(system: System, tmp_path: Path) -> None:
    """As a file, as JPEG-LS, by STOW-RS, with a corrected name: each succeeds, however often and by whom it is sent.

    There is one instance, which is analysed once, and one correction waits; it is decided on once, in all its forms.
    """
    site = Site(system)
    image, corrected = tmp_path / "image.dcm", tmp_path / "corrected.dcm"
    shutil.copyfile(UNCOMPRESSED, image)
    assert not said("dcmodify", "-nb", "-gst", "-gse", "-gin", "-m", "PatientID=SAME-1", str(image))
    shutil.copyfile(image, corrected)
    assert not said("dcmodify", "-nb", "-m", "PatientName=Sample^Corrected", str(corrected))
    header = pydicom.dcmread(image)
    uids = str(header.StudyInstanceUID), str(header.SeriesInstanceUID), str(header.SOPInstanceUID)

    def store(path: Path) -> None:
        with site.web("submitter") as client:
            answer = client.store_instances([pydicom.dcmread(path)])
        assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [uids[2]]
        assert "FailedSOPSequence" not in answer

    assert stored(site.call("dcmsend", image))
    assert stored(site.call("storescu", "-R", "-xt", lossless(image)))
    store(image)
    assert stored(site.call("dcmsend", corrected))
    (correction,) = waiting(site, "SAME-1")
    assert (correction["kind"], correction["files"]) == (HeldKind.CORRECTION, 1)
    changed = {"field": "PatientName", "study": str(header.PatientName), "file": "Sample^Corrected"}
    assert correction["changes"] == [changed]

    assert stored(site.call("storescu", "-R", corrected))
    assert stored(site.call("storescu", "-R", "-xt", lossless(corrected)))
    for path in (corrected, lossless(corrected), image):
        store(path)
    assert stored(site.call("storescu", "-R", image))
    assert [(one["id"], one["kind"]) for one in waiting(site, "SAME-1")] == [(correction["id"], HeldKind.CORRECTION)]
    system.wait([correction["study_id"]])
    assert site.instances(StudyInstanceUID=uids[0]) == {uids: 1}
    assert site.count(InstanceRow, InstanceRow.sop_instance_uid == uids[2]) == 1
    assert site.count(AnalysisRow, AnalysisRow.study_id == correction["study_id"]) == 1

    with system.client() as client:
        client.post(f"/api/v1/held-files/{correction['id']}/decision", {"decision": "apply"})
    assert waiting(site, "SAME-1") == []
    assert site.instances(PatientName="*corrected*", PatientID="SAME-1") == {uids: 1}
    for path in (image, corrected):
        assert stored(site.call("dcmsend", path))
    assert site.instances(PatientName="Sample^Corrected") == {uids: 1}
