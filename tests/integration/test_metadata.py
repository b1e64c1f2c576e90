"""Metadata and bulk data by WADO-RS: what pydicom's JSON says of the stored object, in the forms that clients accept."""

import io
import json
from typing import Any

import pydicom.uid as uids
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset

from samples.objects import pattern_image, to_bytes
from shared.storage import metadata_key, original_key, sha256_of
from tests.conftest import SAMPLES, InProcessApi
from tests.integration.test_retrieve import decide, got, identities_read, image, parts_of, path_of, sent
from tests.served import served

OHIF_METADATA = "application/dicom+json"
OHIF_BULK = 'multipart/related; type="application/pdf", multipart/related; type="application/octet-stream"'
TABLE = bytes(range(256)) * 16


def told(api: InProcessApi, path: str, accept: str = OHIF_METADATA) -> list[dict[str, Any]]:
    """The data sets of a response."""
    response = got(api, path, accept)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/dicom+json"
    found: list[dict[str, Any]] = json.loads(response.content)
    return found


def with_table(number: int = 1) -> bytes:
    """An image with a long binary value, on its own and within a sequence."""
    ds = pattern_image(1, f"retrieve/{number}")
    ds.PatientName, ds.PatientID = "DOE^JANE", "4711"
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [2048, 0, 16], "US"
    item.add_new("LUTData", "OW", TABLE)
    ds.VOILUTSequence = [item]
    ds.add_new("IconImageSequence", "SQ", [])
    ds.add_new(0x00091001, "OB", TABLE)
    ds.add_new(0x00090010, "LO", "OSTEON TEST")
    return to_bytes(ds, uids.ExplicitVRLittleEndian)


def test_each_level(in_process: InProcessApi) -> None:
    """An array of data sets, whether of a study, a series or one instance; each request is audited."""
    contents = [image(1), image(2)]
    sent(in_process, *contents)
    for level, count in (("study", 2), ("series", 2), ("instance", 1)):
        found = told(in_process, f"{path_of(contents[0], level)}/metadata")
        assert len(found) == count
        assert {one["00100010"]["Value"][0]["Alphabetic"] for one in found} == {"DOE^JANE"}
    assert identities_read(in_process) == 3


@pytest.mark.parametrize("path", sorted((SAMPLES / "studies" / "01-hand").glob("*.dcm")), ids=lambda path: path.name)
def test_what_pydicom_says(in_process: InProcessApi, path: Any) -> None:
    """The data set is the one of the file; its pixels have an address of the same instance."""
    content = path.read_bytes()
    sent(in_process, content)
    (found,) = told(in_process, f"{path_of(content)}/metadata")
    pixels = found.pop("7FE00010")
    assert pixels["BulkDataURI"] == f"{path_of(content)}/bulk/7FE00010"
    ds = dcmread(path)
    del ds.PixelData
    told_by_file = ds.to_json_dict()
    told_by_file["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert {tag: one for tag, one in found.items() if "BulkDataURI" not in one} == {
        tag: one for tag, one in told_by_file.items() if "BulkDataURI" not in found.get(tag, {})
    }
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("accept", "status", "kind"),
    [
        ("application/dicom+json", 200, "application/dicom+json"),
        ("application/dicom+json, application/json", 200, "application/dicom+json"),
        ("*/*", 200, "application/dicom+json"),
        ("application/json", 200, "application/json"),
        ('multipart/related; type="application/dicom+xml"', 406, "application/problem+json"),
        ("application/dicom", 406, "application/problem+json"),
    ],
)
def test_what_clients_accept_of_metadata(in_process: InProcessApi, accept: str, status: int, kind: str) -> None:
    """JSON without a parameter in its media type; nothing else."""
    sent(in_process, image(1))
    response = got(in_process, f"{path_of(image(1))}/metadata", accept)
    assert (response.status_code, response.headers["content-type"]) == (status, kind)


def addresses(whole: dict[str, Any]) -> list[str]:
    """All addresses of bulk data in a data set."""
    found: list[str] = []
    for one in whole.values():
        found += [one["BulkDataURI"]] if "BulkDataURI" in one else []
        found += [uri for item in one.get("Value", []) if one["vr"] == "SQ" for uri in addresses(item)]
    return found


def test_bulk_data(in_process: InProcessApi) -> None:
    """Each address has no host, and gives the value: of the data set, of an item of a sequence, the pixels as frames."""
    content = with_table()
    sent(in_process, content)
    (found,) = told(in_process, f"{path_of(content)}/metadata")
    uris = addresses(found)
    assert len(uris) == 3
    assert all(uri.startswith(f"{path_of(content)}/bulk/") for uri in uris)
    pixels = dcmread(io.BytesIO(content)).PixelData
    for uri in uris:
        response = got(in_process, uri, OHIF_BULK if "7FE0" not in uri else "*/*")
        ((_, value),) = parts_of(response, "application/octet-stream")
        assert value == (pixels if "7FE0" in uri else TABLE)
        assert got(in_process, uri, "application/octet-stream").content == value
        assert got(in_process, uri, "image/png").status_code == 406
    for wrong in ("00100010", "00280010", "ZEBRA", "00283010.2.00283006", "00283010.1", "."):
        assert got(in_process, f"{path_of(content)}/bulk/{wrong}").status_code == 404


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ("application/pdf", "application/pdf"),
        ("text/html", "application/octet-stream"),
        ("text/html\r\nX-Other: 1", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_documents(in_process: InProcessApi, named: str, kind: str) -> None:
    """OHIF's request for a PDF; what the file says of another type never becomes a header of ours."""
    ds = pattern_image(1, "retrieve/1")
    ds.MIMETypeOfEncapsulatedDocument, ds.EncapsulatedDocument = named, TABLE
    content = to_bytes(ds, uids.ExplicitVRLittleEndian)
    sent(in_process, content)
    uri = f"{path_of(content)}/bulk/00420011"
    assert parts_of(got(in_process, uri, OHIF_BULK), kind) == [(kind, TABLE)]
    assert got(in_process, uri, "text/html").status_code == 406


def test_what_is_not_there(in_process: InProcessApi) -> None:
    """404 for unknown UIDs; what was sealed is enough for metadata, and 410 if bytes and metadata are gone."""
    sent(in_process, image(1))
    path = path_of(image(1))
    store = in_process.http.app.state.parts.store  # type: ignore[attr-defined]
    assert got(in_process, "/dicom-web/studies/1.2.3/metadata").status_code == 404
    assert got(in_process, f"{path}/metadata", role="submitter").status_code == 403
    told(in_process, f"{path}/metadata")
    store.remove([original_key(sha256_of(image(1)))])
    assert told(in_process, f"{path}/metadata")
    store.remove([metadata_key(sha256_of(image(1)))])
    assert got(in_process, f"{path}/metadata").status_code == 410
    assert got(in_process, f"{path}/bulk/00091001").status_code == 410


@pytest.mark.parametrize(
    "syntax", [uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian, uids.DeflatedExplicitVRLittleEndian]
)
def test_corrections_show_in_metadata_as_in_objects(in_process: InProcessApi, syntax: str) -> None:
    """After a correction the metadata of each image say what its object says, earlier values included."""
    sent(in_process, image(1), image(2, syntax))
    sent(in_process, image(1, PatientName="MÜLLER^ÄNNE", PatientID="4712", SpecificCharacterSet="ISO_IR 192"))
    decide(in_process, "apply")
    for content in (image(1), image(2)):
        (found,) = told(in_process, f"{path_of(content)}/metadata")
        assert found["00100010"]["Value"] == [{"Alphabetic": "MÜLLER^ÄNNE"}]
        assert found["00100020"]["Value"] == ["4712"]
        object_of = dcmread(io.BytesIO(got(in_process, path_of(content), "application/dicom").content))
        del object_of.PixelData
        told_by_object = object_of.to_json_dict() | {"00080005": {"vr": "CS", "Value": ["ISO_IR 192"]}}
        del found["7FE00010"]
        assert found == told_by_object


def test_dicomweb_client_reads_metadata(in_process: InProcessApi) -> None:
    """The client of highdicom and Slicer, at each level; and it fetches bulk data by their addresses."""
    content = with_table()
    sent(in_process, content)
    ds = dcmread(io.BytesIO(content))
    uids_of = (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
    with served(in_process.http.app) as port:  # type: ignore[arg-type]
        root = f"http://127.0.0.1:{port}"
        client = DICOMwebClient(f"{root}/dicom-web", headers=in_process.headers("radiologist"))
        (of_study,), (of_series,) = (
            client.retrieve_study_metadata(uids_of[0]),
            client.retrieve_series_metadata(*uids_of[:2]),
        )
        of_instance = client.retrieve_instance_metadata(*uids_of)
        assert of_study == of_series == of_instance
        (value,) = client.retrieve_bulkdata(root + of_instance["00091001"]["BulkDataURI"])
    assert value == TABLE
