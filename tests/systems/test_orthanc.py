"""Orthanc, as Debian has it, beside Osteon: as a modality, as a DICOMweb peer, and as an archive that forwards everything.

Needs Debian's orthanc, orthanc-dicomweb and dcmtk.
"""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset

from benchmarks.orthanc import Orthanc, orthanc
from samples.objects import uid
from shared.db.tables import AnalysisRow, HeldFileRow, InstanceRow
from shared.domain.device import device_uid
from shared.domain.held import HeldKind, HeldState
from shared.domain.study import StoredOnly
from shared.settings import ROOT
from tests.conftest import System
from tests.pace import limit_s, until
from tests.systems.clients import Site, Uids, said

pytestmark = pytest.mark.systems
SAMPLES = sorted((ROOT / "samples/studies").rglob("*.dcm"))
# every object that is stored is sent on, as archives do that know no other rule
FORWARD = """
function OnStoredInstance(instanceId, tags, metadata, origin)
  SendToModality(instanceId, 'osteon')
end
"""


def renamed(paths: Sequence[Path], run: str) -> dict[Uids, bytes]:
    """Sample files under UIDs that no other test sends, their pixels untouched."""
    made = {}
    for path in paths:
        dataset = pydicom.dcmread(path)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(dataset, keyword, uid(f"{run}/{dataset[keyword].value}"))
        dataset.PatientID = f"{run}-{dataset.PatientID}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        made[uids_of(dataset)] = file.getvalue()
    return made


def uids_of(dataset: Dataset) -> Uids:
    """UIDs of study, series and instance."""
    return str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)


def studies_of(files: dict[Uids, bytes]) -> list[str]:
    """UIDs of their studies."""
    return list(dict.fromkeys(study for study, _, _ in files))


def own_result(files: dict[Uids, bytes]) -> dict[Uids, bytes]:
    """An image in the study of the first of these files, as Osteon's device makes it."""
    dataset = pydicom.dcmread(io.BytesIO(next(iter(files.values()))))
    dataset.SeriesInstanceUID, dataset.SOPInstanceUID = uid("a result's series"), uid("a result")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.DeviceUID = device_uid("0" * 64)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return {uids_of(dataset): file.getvalue()}


class Archive:
    """An Orthanc, by its REST API."""

    def __init__(self, running: Orthanc) -> None:
        self.running = running
        self._http = httpx.Client(base_url=running.url, trust_env=False, timeout=limit_s(120))

    def get(self, path: str) -> Any:
        """GET of JSON."""
        return self._answer(self._http.get(path))

    def post(self, path: str, body: Any) -> Any:
        """POST of JSON, or of a file's bytes."""
        sent = {"content": body} if isinstance(body, bytes) else {"json": body}
        return self._answer(self._http.post(path, **sent))

    def _answer(self, response: httpx.Response) -> Any:
        assert response.is_success, f"{response.text}\n{self.running.log.read_text()[-3000:]}"
        return response.json()

    def take(self, files: dict[Uids, bytes]) -> list[str]:
        """Store files; returns Orthanc's ids of their studies."""
        return list(dict.fromkeys(self.post("/instances", content)["ParentStudy"] for content in files.values()))

    def empty(self) -> None:
        """Delete everything."""
        for patient in self.get("/patients"):
            assert self._http.delete(f"/patients/{patient}").is_success

    @property
    def count(self) -> int:
        """Instances that it has."""
        return int(self.get("/statistics")["CountInstances"])

    def files(self) -> dict[Uids, bytes]:
        """What it has."""
        contents = [self._http.get(f"/instances/{one}/file").content for one in self.get("/instances")]
        return {uids_of(pydicom.dcmread(io.BytesIO(one), stop_before_pixels=True)): one for one in contents}


def same_pixels(one: bytes, other: bytes) -> None:
    """Check that Pixel Data is the same to the bit, in the same transfer syntax."""
    first, second = pydicom.dcmread(io.BytesIO(one)), pydicom.dcmread(io.BytesIO(other))
    assert first.file_meta.TransferSyntaxUID == second.file_meta.TransferSyntaxUID
    assert first.PixelData == second.PixelData


def arrived(site: Site, files: dict[Uids, bytes]) -> None:
    """Check that QIDO-RS lists each of these once, that WADO-RS returns them as they were sent, and that none waits."""
    for study in studies_of(files):
        assert site.instances(StudyInstanceUID=study) == dict.fromkeys((one for one in files if one[0] == study), 1)
    with site.web() as client:
        for uids, content in files.items():
            back = io.BytesIO()
            client.retrieve_instance(*uids).save_as(back)
            same_pixels(content, back.getvalue())
    ours, undecided = [uids[2] for uids in files], HeldFileRow.state == HeldState.OPEN
    until(lambda: not site.count(HeldFileRow, HeldFileRow.kind == HeldKind.COMPARING, undecided), 60)
    assert not site.count(HeldFileRow, HeldFileRow.sop_instance_uid.in_(ours), undecided)


def test_orthanc_sends_as_a_modality(system: System, tmp_path: Path) -> None:
    """All sample studies by C-STORE, in the transfer syntaxes in which Orthanc has them; twice, without doubling."""
    site = Site(system)
    site.admit("ORTHANC")
    peer = {"osteon": {"AET": "OSTEON", "Host": site.host, "Port": site.port}}
    files = renamed(SAMPLES, "modality")
    with orthanc(tmp_path, dicom=True, DicomModalities=peer) as running:
        archive = Archive(running)
        assert archive.post("/modalities/osteon/echo", {}) == {}
        studies = archive.take(files)
        for _ in range(2):
            done = archive.post("/modalities/osteon/store", {"Resources": studies, "Synchronous": True})
            assert (done["InstancesCount"], done["FailedInstancesCount"]) == (len(files), 0), done
            arrived(site, files)


def test_orthanc_sends_and_fetches_by_dicomweb(system: System, tmp_path: Path) -> None:
    """Its plugin stores all sample studies by STOW-RS, searches them by QIDO-RS, and fetches them again by WADO-RS."""
    site = Site(system)
    servers = {
        name: {"Url": f"{site.dicomweb}/", "HttpHeaders": {"Authorization": f"Bearer {system.keys[role]}"}}
        for name, role in (("store", "submitter"), ("read", "radiologist"))
    }
    files = renamed(SAMPLES, "dicomweb")
    with orthanc(tmp_path, DicomWeb={"Enable": True, "Root": "/dicom-web/", "Servers": servers}) as running:
        archive = Archive(running)
        studies = archive.take(files)
        for _ in range(2):
            archive.post("/dicom-web/servers/store/stow", {"Resources": studies, "Synchronous": True})
            arrived(site, files)
        archive.empty()
        wanted = {"Uri": "/studies", "Arguments": {"PatientID": "dicomweb-*"}}
        found = archive.post("/dicom-web/servers/read/qido", wanted)
        assert {one["0020000D"]["Value"] for one in found} == set(studies_of(files))
        resources = [{"Study": study} for study in studies_of(files)]
        archive.post("/dicom-web/servers/read/retrieve", {"Resources": resources, "Synchronous": True})
        back = archive.files()
        assert back.keys() == files.keys()
        for uids, content in files.items():
            same_pixels(content, back[uids])


def test_an_archive_that_forwards_everything_comes_to_rest(system: System, tmp_path: Path) -> None:
    """Orthanc forwards each object that it stores, known ones too, and is sent all of them back by who has Osteon's.

    So is what Osteon itself made. Each round ends: Orthanc has as many instances as before, and neither worklist nor analyses nor decisions change.
    """
    site, rounds = Site(system), 2
    site.admit("ORTHANC")
    script = tmp_path / "forward.lua"
    script.write_text(FORWARD)
    files = renamed(SAMPLES[:6], "loop")
    options = {
        "DicomModalities": {"osteon": {"AET": "OSTEON", "Host": site.host, "Port": site.port}},
        "LuaScripts": [str(script)], "OverwriteInstances": True, "DicomAlwaysAllowFind": True,
    }  # fmt: skip
    studies = studies_of(files)
    headers = [pydicom.dcmread(io.BytesIO(one), stop_before_pixels=True) for one in files.values()]
    patients = sorted({str(header.PatientID) for header in headers})  # one a study

    def received() -> int:
        """Objects that came from Orthanc, known ones included."""
        with system.client() as client:
            (peer,) = [one for one in client.get("/api/v1/dicom-peers") if one["calling_ae"] == "ORTHANC"]
        return int(peer["whole"]["images"])

    def wait_for(images: int) -> None:
        until(lambda: received() >= images, 60)

    def seen() -> Any:
        """The studies as the worklist has them, and their analyses."""
        found = [one for patient in patients for one in entries_of(site, patient)]
        return found, [site.count(AnalysisRow, AnalysisRow.study_id == one["study_id"]) for one in found]

    with orthanc(tmp_path, dicom=True, **options) as running:
        archive, before = Archive(running), received()
        archive.take(files)
        wait_for(before + len(files))
        arrived(site, files)
        system.wait([one["study_id"] for one in seen()[0]])
        first = seen()
        assert [entry["images"] for entry in first[0]] == [sum(one[0] == study for one in files) for study in studies]
        assert first[1] == [1] * len(studies)
        result = own_result(files)
        files |= result
        archive.take(result)
        wait_for(before + len(files))
        assert site.count(InstanceRow, InstanceRow.kept == StoredOnly.OWN_RESULT) == 1
        assert seen()[1] == first[1]
        first = seen()
        for number in range(1, rounds + 1):
            send_back(site, running, studies, tmp_path / f"round {number}")
            wait_for(before + (number + 1) * len(files))
        # what is stored last is forwarded last: when it is here, nothing is on its way any more
        archive.take(renamed(SAMPLES[-1:], "last"))
        wait_for(before + (rounds + 1) * len(files) + 1)
        assert received() == before + (rounds + 1) * len(files) + 1
        assert archive.count == len(files) + 1
        assert seen() == first
        arrived(site, files)
        for study in studies:
            count = said(
                "findscu", "-S", "-aec", "ORTHANC", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}",
                "-k", "NumberOfStudyRelatedInstances", "127.0.0.1", str(running.dicom_port),
            )  # fmt: skip
            assert f"IS [{sum(one[0] == study for one in files)}" in count, count


def entries_of(site: Site, patient_id: str) -> list[Any]:
    """A patient's entries on the worklist."""
    with site.system.client("radiologist") as client:
        return list(client.post("/api/v1/worklist/search", {"number": patient_id})["entries"])


def send_back(site: Site, running: Orthanc, studies: Sequence[str], folder: Path) -> None:
    """Send what WADO-RS returns of the studies to Orthanc, by C-STORE, as it is."""
    folder.mkdir()
    with site.web() as client:
        for study in studies:
            for dataset in client.retrieve_study(study):
                dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
    output = said("dcmsend", "-v", "-aec", "ORTHANC", "127.0.0.1", str(running.dicom_port), "+sd", str(folder))
    assert "Number of SOP instances sent" in output or "Success" in output, output
    shutil.rmtree(folder)
