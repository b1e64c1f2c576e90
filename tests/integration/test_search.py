"""QIDO-RS on real Postgres: what is found, what is returned, and what clients make of it."""

import io
import random
import re
import warnings
from datetime import timedelta
from typing import Any
from uuid import UUID

import pydicom.uid as uids
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import func, select, text

from api.dicomweb import search
from samples.objects import pattern_image, to_bytes
from shared.db.tables import IdentityReadRow, IdentityRow, IdentitySearchRow
from shared.domain.matching import NamePattern, TextPattern
from shared.domain.security import Role
from shared.domain.study import Header, Identity, StoredFile
from shared.queries import qido
from shared.queries.access import add_key, find_key
from shared.queries.qido import KEYS, Level, Question, find
from tests.conftest import InProcessApi
from tests.hospital import NOW, Hospital
from tests.served import served

JSON = "application/dicom+json"
# PS3.18 tables 10.6.3-3 to 10.6.3-5
STUDY_TAGS = (
    "00080005 00080020 00080030 00080050 00080056 00080061 00080090 00081190 00100010 00100020 00100030 00100040 "
    "0020000D 00200010 00201206 00201208"
)
SERIES_TAGS = "00080060 0008103E 00081190 0020000E 00200011 00201209 00400244 00400245 00400275"
INSTANCE_TAGS = "00080016 00080018 00080056 00081190 00200013 00280010 00280011 00280100 00280008"
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def image(study: int, series: int = 1, number: int = 1, **values: Any) -> bytes:
    """A little radiograph of study number `study`; None removes an attribute."""
    ds = pattern_image(study, f"search {series}/{number}")
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = f"{ds.StudyInstanceUID}.{series}", series, number
    ds.SOPInstanceUID = f"{ds.SeriesInstanceUID}.{number}"
    for name, value in values.items():
        if value is None:
            ds.pop(name)
        else:
            setattr(ds, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, uids.ExplicitVRLittleEndian)


def requested(step: str, procedure: str) -> Dataset:
    item = Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = step, procedure
    return item


ONE: dict[str, Any] = {
    "PatientName": "Smith^John", "PatientID": "P-4711", "IssuerOfPatientID": "CLINIC", "PatientBirthDate": "19700131",
    "PatientSex": "M", "AccessionNumber": "A 11", "StudyDate": "20260110", "StudyTime": "101500", "StudyID": "SID-1",
    "StudyDescription": "Hand ap", "ReferringPhysicianName": "Referrer^Rita", "TimezoneOffsetFromUTC": "+0100",
}  # fmt: skip
STEP: dict[str, Any] = {
    "SeriesDescription": "left hand", "PerformedProcedureStepStartDate": "20260110",
    "PerformedProcedureStepStartTime": "1020", "ProtocolName": "HAND", "SeriesDate": "20260110", "SeriesTime": "102001",
}  # fmt: skip
TWO: dict[str, Any] = {
    "PatientName": JAPANESE, "PatientID": "P-0815", "PatientBirthDate": "", "AccessionNumber": "A 22",
    "StudyDate": "20260220", "StudyTime": "235959", "StudyID": "", "ReferringPhysicianName": "Anders^Arzt",
}  # fmt: skip
THREE: dict[str, Any] = {
    "PatientName": "Müller-Smythe^Eva", "PatientID": "X%_1", "AccessionNumber": "", "StudyDate": None,
    "StudyTime": None, "Modality": "DX",
}  # fmt: skip


def filled(api: InProcessApi) -> list[str]:
    """Three studies of five images: their Study Instance UIDs."""
    requests = [requested("SPS-1", "RP-1"), requested("SPS-2", "RP-1")]
    first = [
        image(1, 1, 2, **ONE, **STEP, RequestAttributesSequence=requests),
        image(1, 1, 1, **ONE, **STEP, RequestAttributesSequence=requests),
        image(1, 2, 10, **ONE, Modality="DX"),
    ]
    for contents in (first, [image(2, **TWO)], [image(3, **THREE)]):  # one after the other: that is their order
        response = api.post({f"{number}.dcm": content for number, content in enumerate(contents)})
        assert response.status_code == 200, response.text
    return [pattern_image(study, "").StudyInstanceUID for study in (1, 2, 3)]


def get(api: InProcessApi, path: str, role: str = "radiologist", **headers: str) -> Any:
    return api.http.get(f"/dicom-web/{path}", headers=api.headers(role) | {"Accept": JSON} | headers)


def values(response: Any, tag: str) -> list[Any]:
    """The first value of an attribute of each result; None where it has none."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == JSON
    return [one.get(tag, {}).get("Value", [None])[0] for one in response.json()]


STUDIES = [
    # query, and which of the three studies it finds
    ("", "321"),
    ("PatientName=Smith^John", "1"),
    ("PatientName=smith", ""),
    ("PatientName=smith*", "1"),
    ("00100010=*sm%3Fth*", "31"),
    ("PatientName=*m*", "321"),
    ("PatientName=*MÜLLER*", "3"),
    ("PatientName=*太郎*", "2"),
    ("PatientName=*たろ*", "2"),
    ("PatientName=*郎", "2"),
    ("PatientName=yamada*", "2"),
    ("PatientName=Yamada^Tarou%3D山田*", "2"),
    ("PatientName=*mith*&PatientID=P-4711", "1"),
    ("PatientName=*mith*&PatientID=P-0815", ""),
    ("PatientID=P-4711", "1"),
    ("PatientID=p-4711", ""),  # only names are compared without capitals
    ("PatientID=P-*", "21"),
    ("PatientID=*47*", "1"),
    ("PatientID=X%25_1", "3"),
    ("PatientID=P-4711%5CP-0815", "21"),
    ("PatientID=P-4711&PatientID=P-0815", "21"),
    ("IssuerOfPatientID=CLINIC", "1"),
    ("PatientBirthDate=19700131", "1"),
    ("PatientBirthDate=19700101-19701231", "1"),
    ("PatientBirthDate=19710101-", ""),
    ("PatientSex=M", "1"),
    ("AccessionNumber=A 11", "1"),
    ("AccessionNumber=A11", ""),
    ("AccessionNumber=A *", "21"),
    ("StudyID=SID-1", "1"),
    ("StudyID=SID*", "1"),
    ("StudyDescription=Hand*", "1"),
    ("ReferringPhysicianName=*rita*", "1"),
    ("ReferringPhysicianName=Anders^Arzt", "2"),
    ("StudyDate=20260110", "1"),
    ("StudyDate=20260110-20260220", "21"),
    ("StudyDate=-20260219", "1"),
    ("StudyDate=20260111-", "2"),
    ("StudyDate=20260110%5C20260220", "21"),
    ("StudyTime=1015", "1"),
    ("StudyTime=10", "1"),
    ("StudyTime=101501-", "2"),
    ("StudyTime=100000-110000", "1"),
    ("ModalitiesInStudy=DX", "31"),
    ("ModalitiesInStudy=CR,PX", "21"),
    ("ModalitiesInStudy=C*", "21"),
    ("ModalitiesInStudy=C_", ""),
    ("ModalitiesInStudy=CR%5CDX&StudyDate=20260101-20260131", "1"),
    ("limit=1", "3"),
    ("limit=1&offset=1", "2"),
    ("limit=0", ""),
    ("offset=2", "1"),
    ("offset=3", ""),
    ("offset=999999999999999999", ""),
    ("PatientName=*m*&limit=1&offset=1", "2"),
    ("PatientName=*m*&offset=3", ""),
    ("PatientID=P-*&limit=1", "2"),
    ("NumberOfFrames=1", "321"),  # not indexed: ignored
]


def test_studies_are_found(in_process: InProcessApi) -> None:
    """Each kind of key and of matching; the order is that of arrival, newest first."""
    uids_ = filled(in_process)
    for query, wanted in STUDIES:
        found = values(get(in_process, f"studies?{query}"), "0020000D")
        assert found == [uids_[int(number) - 1] for number in wanted], query
    for joint in (",", "%5C", "&StudyInstanceUID="):
        found = values(get(in_process, f"studies?StudyInstanceUID={uids_[0]}{joint}{uids_[2]}"), "0020000D")
        assert found == [uids_[2], uids_[0]]


SERIES = [
    # query, and which series it finds: study and series number
    ("studies/{0}/series", "1.1 1.2"),
    ("studies/{0}/series?Modality=DX", "1.2"),
    ("studies/{0}/series?SeriesInstanceUID={0}.2", "1.2"),
    ("studies/{0}/series?SeriesNumber=01", "1.1"),
    ("studies/{0}/series?SeriesNumber=1,2,99999999999", "1.1 1.2"),
    ("studies/{0}/series?SeriesDescription=*hand", "1.1"),
    ("studies/{0}/series?PerformedProcedureStepStartDate=20260101-20260131", "1.1"),
    ("studies/{0}/series?PerformedProcedureStepStartTime=1020", "1.1"),
    ("studies/{0}/series?RequestAttributesSequence.ScheduledProcedureStepID=SPS-2", "1.1"),
    ("studies/{0}/series?00400275.00401001=RP-*", "1.1"),
    ("studies/{0}/series?RequestAttributesSequence.RequestedProcedureID=RP", ""),
    ("studies/{0}/series?PatientName=*john*", "1.1 1.2"),
    ("studies/{0}/series?PatientName=*jane*", ""),
    ("studies/{0}/series?offset=1", "1.2"),
    ("studies/{0}/series?offset=2", ""),
    ("studies/1.2.3/series", ""),
    ("series?PatientName=*taro*", "2.1"),
    ("series?StudyInstanceUID={0}&Modality=CR", "1.1"),
    ("series?SeriesDescription=left*", "1.1"),
]


def test_series_are_found(in_process: InProcessApi) -> None:
    """Of one study by their numbers; of all studies, also by attributes of the study."""
    uids_ = filled(in_process)
    for query, wanted in SERIES:
        found = values(get(in_process, query.format(*uids_)), "0020000E")
        expected = [f"{uids_[int(one[0]) - 1]}.{one[2]}" for one in wanted.split()]
        assert found == expected, query
    everything = values(get(in_process, "series"), "0020000E")
    assert len(set(everything)) == 4
    paged = [values(get(in_process, f"series?limit=1&offset={offset}"), "0020000E") for offset in range(5)]
    assert [one for page in paged for one in page] == everything


INSTANCES = [
    ("studies/{0}/instances", "1.1.1 1.1.2 1.2.10"),
    ("studies/{0}/series/{0}.1/instances", "1.1.1 1.1.2"),
    ("studies/{0}/series/{1}.1/instances", ""),
    ("studies/{0}/series/{0}.1/instances?InstanceNumber=2", "1.1.2"),
    ("studies/{0}/instances?SOPInstanceUID={0}.1.1,{0}.2.10", "1.1.1 1.2.10"),
    ("studies/{0}/instances?Modality=DX", "1.2.10"),
    ("studies/{0}/instances?SeriesDescription=left hand&limit=1", "1.1.1"),
    ("instances?SOPInstanceUID={2}.1.1", "3.1.1"),
    ("instances?PatientID=X*", "3.1.1"),
    ("instances?SOPClassUID=1.2.3", ""),
]


def test_instances_are_found(in_process: InProcessApi) -> None:
    """Of a series and a study by their numbers; of all studies by any attribute."""
    uids_ = filled(in_process)
    for query, wanted in INSTANCES:
        found = values(get(in_process, query.format(*uids_)), "00080018")
        places = [one.split(".", 1) for one in wanted.split()]
        assert found == [f"{uids_[int(study) - 1]}.{rest}" for study, rest in places], query
    assert len(set(values(get(in_process, "instances"), "00080018"))) == 5


def test_what_must_be_returned_is(in_process: InProcessApi) -> None:
    """Every attribute of the standard's tables, with its value; RetrieveURL leads to the result."""
    uid, *_ = filled(in_process)
    (one,) = get(in_process, "studies?PatientID=P-4711").json()
    assert set(STUDY_TAGS.split()) | {"00080201"} <= set(one)
    ds = Dataset.from_json(one)
    told = {name: str(ds[name].value) for name in ONE if name in ds}
    assert told == {name: value for name, value in ONE.items() if name != "IssuerOfPatientID"}
    assert ds.SpecificCharacterSet == "ISO_IR 192" and ds.InstanceAvailability == "ONLINE"
    assert list(ds.ModalitiesInStudy) == ["CR", "DX"]
    assert (ds.NumberOfStudyRelatedSeries, ds.NumberOfStudyRelatedInstances) == (2, 3)
    assert ds.RetrieveURL == f"http://testserver/dicom-web/studies/{uid}"
    (first, second) = get(in_process, f"studies/{uid}/series").json()
    assert set(SERIES_TAGS.split()) <= set(first) and "00400275" not in second and "00100010" not in first
    ds = Dataset.from_json(first)
    assert (ds.SeriesDescription, ds.SeriesNumber, ds.NumberOfSeriesRelatedInstances) == ("left hand", 1, 2)
    assert (ds.PerformedProcedureStepStartDate, ds.PerformedProcedureStepStartTime) == ("20260110", "102000")
    assert [(item.ScheduledProcedureStepID, item.RequestedProcedureID) for item in ds.RequestAttributesSequence] == [
        ("SPS-1", "RP-1"), ("SPS-2", "RP-1"),
    ]  # fmt: skip
    assert ds.RetrieveURL == f"http://testserver/dicom-web/studies/{uid}/series/{uid}.1"
    assert ds.StudyInstanceUID == uid
    first = get(in_process, f"studies/{uid}/series/{uid}.1/instances").json()[0]
    assert set(INSTANCE_TAGS.split()) <= set(first) and "00080060" not in first
    ds = Dataset.from_json(first)
    assert ds.RetrieveURL == f"http://testserver/dicom-web/studies/{uid}/series/{uid}.1/instances/{uid}.1.1"
    assert (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.InstanceNumber) == (uid, f"{uid}.1", 1)
    assert ds.Rows > 0 and ds.Columns > 0 and ds.BitsAllocated in (8, 16) and ds.NumberOfFrames == 1
    # over all studies each result has what is above it
    both = set(STUDY_TAGS.split()) | set(SERIES_TAGS.split())
    assert both <= set(get(in_process, "series?Modality=CR&PatientID=P-4711").json()[0])
    whole = get(in_process, f"instances?SOPInstanceUID={uid}.1.1").json()[0]
    assert both | set(INSTANCE_TAGS.split()) <= set(whole)
    assert whole["00200010"]["Value"] == ["SID-1"]
    # what is asked for besides
    one = get(in_process, f"studies?StudyInstanceUID={uid}&includefield=IssuerOfPatientID").json()[0]
    assert one["00100021"] == {"vr": "LO", "Value": ["CLINIC"]}
    all_of_it = get(in_process, f"studies/{uid}/series?includefield=all").json()[0]
    assert {"00181030", "00080021", "00080031", "00100010", "00100021"} <= set(all_of_it)
    (name,) = get(in_process, "studies?PatientID=P-0815").json()[0]["00100010"]["Value"]
    assert name == dict(zip(("Alphabetic", "Ideographic", "Phonetic"), JAPANESE.split("="), strict=True))
    absent = get(in_process, "studies?PatientID=X*").json()[0]
    assert absent["00080020"] == {"vr": "DA"} and absent["00080050"] == {"vr": "SH"} and "00080201" not in absent


def test_the_requests_of_ohif(in_process: InProcessApi) -> None:
    """Word for word what OHIF 3.12 sends to fill its list, to search in it, and to open a study."""
    uid, *_ = filled(in_process)
    fields = "limit=101&offset=0&fuzzymatching=false&includefield=00081030,00080060"
    found = get(in_process, f"studies?{fields}")
    assert len(found.json()) == 3 and "warning" not in found.headers
    assert values(found, "00081030") == [None, None, "Hand ap"]
    assert values(get(in_process, f"studies?{fields}&StudyInstanceUID={uid}"), "0020000D") == [uid]
    assert values(get(in_process, f"studies?{fields}&00100020=P-4711"), "0020000D") == [uid]
    searched = "PatientName=*smith*&00100020=*47*&AccessionNumber=*A*&StudyDescription=*and*&ModalitiesInStudy=CR%2CDX"
    found = get(
        in_process, f"studies?{searched}&limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060"
    )
    assert values(found, "0020000D") == [uid]
    assert "fuzzymatching" in found.headers["warning"]
    found = get(in_process, f"studies/{uid}/series?includefield=00080021,00080031,0008103E,00200011")
    assert values(found, "00080021") == ["20260110", "20260102"] and values(found, "00200011") == [1, 2]


def test_what_is_not_indexed_is_ignored_and_told(in_process: InProcessApi) -> None:
    """An attribute of the dictionary restricts nothing; one outside it is an error that does not repeat it."""
    filled(in_process)
    found = get(in_process, "studies?BodyPartExamined=HAND&Modality=CR&fuzzymatching=true&PatientName=*m*")
    assert len(found.json()) == 3
    told = re.findall(r'299 http://testserver/dicom-web: "([^"]+)"', found.headers["warning"])
    assert [one.partition(" ")[0] for one in told] == ["The", "These"] and told[1].endswith("BodyPartExamined Modality")
    for query in ("ZebraQuagga=1", "includefield=ZebraQuagga", "StudyDate=zebraquagga", "limit=zebraquagga",
                  "StudyTime=99", "PatientBirthDate=zebraquagga", "0020FFFF=1"):  # fmt: skip
        refused = get(in_process, f"studies?{query}")
        assert refused.status_code == 400, query
        assert refused.headers["content-type"] == "application/problem+json"
        assert "zebraquagga" not in refused.text.lower()
    assert get(in_process, "studies/1.2.3/series?SeriesNumber=one").status_code == 400


ACCEPTED = {
    JSON: JSON,
    "application/dicom+json, application/json;q=0.9": JSON,
    "*/*": JSON,
    "application/*": JSON,
    "application/json": "application/json",
    'multipart/related; type="application/dicom+xml"': "",
    "text/csv": "",
}


def test_the_media_type_has_no_parameter(in_process: InProcessApi) -> None:
    """Clients compare the header as a whole; XML is not made."""
    for accept, kind in ACCEPTED.items():
        response = get(in_process, "studies", Accept=accept)
        assert response.status_code == (200 if kind else 406), accept
        assert response.headers["content-type"] == (kind or "application/problem+json")
        assert not kind or response.json() == []


def test_dicomweb_client_searches(in_process: InProcessApi) -> None:
    """The client of highdicom and Slicer: it pages until nothing comes, at each level."""
    uid, *_ = filled(in_process)
    with served(in_process.http.app) as port:  # type: ignore[arg-type]
        client = DICOMwebClient(f"http://127.0.0.1:{port}/dicom-web", headers=in_process.headers("radiologist"))
        found = client.search_for_studies(limit=1, get_remaining=True)
        assert len({one["0020000D"]["Value"][0] for one in found}) == len(found) == 3
        found = client.search_for_studies(
            fuzzymatching=True, fields=["StudyDescription"], search_filters={"PatientName": "*smith*"}
        )
        assert [one["0020000D"]["Value"] for one in found] == [[uid]]
        # the client names the host without its port, which is what the server makes of it
        assert found[0]["00081190"]["Value"] == [f"http://127.0.0.1/dicom-web/studies/{uid}"]
        assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []
        assert len(client.search_for_series(uid)) == 2 and len(client.search_for_series()) == 4
        assert len(client.search_for_instances(uid, f"{uid}.1")) == 2
        assert len(client.search_for_instances(uid)) == 3 and len(client.search_for_instances()) == 5
        assert len(client.search_for_instances(search_filters={"SOPInstanceUID": f"{uid}.1.1"})) == 1


def test_more_than_a_response_may_hold(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header says that more can be requested, if the client did not want so few itself."""
    filled(in_process)
    monkeypatch.setattr(search, "MAX_RESULTS", 2)
    for query, told in (("", True), ("limit=3", True), ("limit=2", False), ("limit=1", False), ("offset=1", False)):
        found = get(in_process, f"studies?{query}")
        assert len(found.json()) <= 2
        assert ("additional results" in found.headers.get("warning", "")) is told, query
    monkeypatch.setattr(qido, "MAX_COMPARED", 2)
    found = get(in_process, "studies?PatientName=*mith*")
    assert "warning" not in found.headers  # pieces leave two candidates at most
    found = get(in_process, "studies?PatientName=*q*")  # no piece: the newest are compared
    assert values(found, "0020000D") == [] and "candidates" in found.headers["warning"]


def test_readings_and_searches_are_recorded(in_process: InProcessApi) -> None:
    """Each identity that a response shows, and each search by an encrypted attribute; nothing for others."""
    uid, *_ = filled(in_process)

    def recorded() -> tuple[int, list[int]]:
        with in_process.database.transaction() as session:
            reads = session.scalar(select(func.count()).select_from(IdentityReadRow)) or 0
            return reads, list(session.scalars(select(IdentitySearchRow.found).order_by(IdentitySearchRow.id)))

    get(in_process, "studies?limit=2")
    assert recorded() == (2, [])
    get(in_process, "studies?PatientName=*smith*")
    assert recorded() == (3, [1])
    get(in_process, f"studies/{uid}/series")
    get(in_process, f"studies/{uid}/instances")
    get(in_process, f"studies/{uid}/series/{uid}.1/instances?SeriesNumber=1")
    assert recorded() == (3, [1])
    get(in_process, f"studies/{uid}/series?includefield=PatientName")
    get(in_process, "instances")
    assert recorded() == (3 + 1 + 3, [1])
    get(in_process, "studies?PatientID=nobody")
    assert recorded() == (7, [1, 0])


def test_only_readers_of_the_site_find_anything(in_process: InProcessApi, caplog: pytest.LogCaptureFixture) -> None:
    """No key, a sender's key, and a reader's of another site; and no log holds what was searched for."""
    filled(in_process)
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "reader", Role.RADIOLOGIST, "osk_elsewhere")
    with caplog.at_level("DEBUG"):
        for path in ("studies", "series", "instances", "studies/1/series", "studies/1/instances",
                     "studies/1/series/1/instances"):  # fmt: skip
            assert in_process.http.get(f"/dicom-web/{path}").status_code == 401
            assert get(in_process, path, "submitter").status_code == 403
            assert get(in_process, path, "operator").status_code == 403
            there = get(in_process, f"{path}?PatientName=*zebraquagga*", Authorization="Bearer osk_elsewhere")
            assert there.json() == []
    assert get(in_process, "studies", Authorization="Bearer osk_elsewhere").json() == []
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    assert ours and "zebraquagga" not in " ".join(ours).lower()


def test_a_correction_is_found_under_its_new_name(in_process: InProcessApi) -> None:
    """Once a correction is applied, search and retrieval say the same; what is deleted is not found any more."""
    uid = filled(in_process)[2]
    corrected = THREE | {
        "PatientName": "Neumann^Nora", "PatientID": "N-1", "AccessionNumber": "A 33", "StudyDate": "20260303",
        "SeriesDescription": "right wrist",
    }  # fmt: skip
    (line,) = in_process.post({"again.dcm": image(3, **corrected)}).json()["files"]
    assert line["outcome"] == "correction"
    found = {
        "PatientName=*smythe*": 1, "PatientID=X*": 1, "PatientName=neu*": 0, "PatientName=*mann^*": 0, "PatientID=N-1": 0,
        "AccessionNumber=A 33": 0, "StudyDate=20260303": 0,
    }  # fmt: skip
    for query, count in found.items():
        assert len(get(in_process, f"studies?{query}").json()) == count, query
    (waiting,) = in_process.http.get("/api/v1/held-files", headers=in_process.headers()).json()["waiting"]
    decision = f"/api/v1/held-files/{waiting['id']}/decision"
    assert in_process.http.post(decision, json={"decision": "apply"}, headers=in_process.headers()).is_success
    for query, count in found.items():
        assert len(get(in_process, f"studies?{query}").json()) == 1 - count, query
    assert values(get(in_process, f"studies/{uid}/series?SeriesDescription=right*"), "0020000E") == [f"{uid}.1"]
    (row,) = get(in_process, f"instances?SOPInstanceUID={uid}.1.1").json()
    told = Dataset.from_json(row)
    retrieved = get(in_process, told.RetrieveURL.partition("/dicom-web/")[2], Accept="application/dicom")
    whole = dcmread(io.BytesIO(retrieved.content))
    for name in ("PatientName", "PatientID", "AccessionNumber", "StudyDate", "SeriesDescription", "SOPInstanceUID"):
        assert told[name].value == whole[name].value, name
    studies = in_process.http.post("/api/v1/worklist/search", json={"number": "N-1"}, headers=in_process.headers())
    study_id = studies.json()["entries"][0]["study_id"]
    gone = in_process.http.delete(f"/api/v1/studies/{study_id}?reason=test", headers=in_process.headers())
    assert gone.is_success
    assert get(in_process, "studies?PatientName=neu*").json() == []
    assert uid not in values(get(in_process, "studies"), "0020000D")


def test_what_is_frequent_is_found_among_the_newest(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list that the index has of a frequent piece is not read then; what is not found there is looked up."""
    uid, *_ = filled(in_process)
    whole = values(get(in_process, "studies?PatientName=*sm*"), "0020000D")
    assert uid in whole
    steps = qido._in_steps
    read: list[int] = []

    def watched(*given: Any) -> Any:
        read.append(1)
        return steps(*given)

    monkeypatch.setattr(qido, "_in_steps", watched)
    monkeypatch.setattr(qido, "NEWEST", 2)
    for pattern, looked_up in (("*sm*", False), ("*zq*", True)):
        read.clear()
        found = values(get(in_process, f"studies?PatientName={pattern}&limit=1"), "0020000D")
        assert found == ([] if looked_up else whole[:1]) and bool(read) is looked_up


def test_the_index_hides_nothing(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random patterns find exactly the names and numbers that a comparison of all finds, with and without pieces."""
    rng = random.Random(7)
    parts = ["an", "ber", "Smith", "jo", "hn", "é", "山田", "ß", "mar", " ", "-"]
    who: dict[UUID, Identity] = {}
    for number in range(40):
        family, given = ("".join(rng.choices(parts, k=rng.randint(1, 3))) for _ in range(2))
        one = Identity(f"{family}^{given}", f"P{rng.randrange(999):03}", accession_number=f"{rng.randrange(99)}")
        plain = hospital.file(7000 + number, 0)
        header = Header(**{**vars(plain.header), "identity": one})
        study = hospital.take_in([StoredFile(plain.sha256, 9, header)], now=NOW + timedelta(minutes=number // 2))
        who[study] = one
    with hospital.database.transaction() as session:
        key = find_key(session, "a secret")
        assert key is not None
        some = select(IdentityRow.study_id).order_by(IdentityRow.study_id).limit(5)
        session.execute(text("UPDATE identities SET pieces = NULL WHERE study_id = ANY(:some)"),
                        {"some": list(session.scalars(some))})  # fmt: skip
        order: list[UUID] | None = None
        for _ in range(60):
            monkeypatch.setattr(qido, "NEWEST", rng.choice([1, 3, 40]))
            name = rng.choice(list(who.values())).patient_name
            start = rng.randrange(len(name))
            middle = name[start : start + rng.randint(1, 5)].replace("=", "")
            pattern = rng.choice(["*{}*", "{}*", "*{}", "{}", "?{}*"]).format(middle)
            asked = {"PatientName": [pattern]}
            if rng.random() < 0.3:
                asked["PatientID"] = [rng.choice(["P1*", "*9*", "P00?", "*"])]
            expected = {
                study
                for study, one in who.items()
                if NamePattern(pattern).matches(one.patient_name)
                and all(TextPattern(value).matches(one.patient_id) for value in asked.get("PatientID", []))
            }
            results = find(session, hospital.vault, key, Question(Level.STUDY, asked))
            found = [one.study.id for one in results.found]
            assert set(found) == expected and len(found) == len(expected), pattern
            everything = find(session, hospital.vault, key, Question(Level.STUDY, {}))
            order = order or [one.study.id for one in everything.found]
            assert found == [one for one in order if one in expected]
            page = find(session, hospital.vault, key, Question(Level.STUDY, asked, limit=2, offset=1))
            assert [one.study.id for one in page.found] == found[1:3]
            assert page.more == (len(found) > 3) and page.whole


def test_every_key_of_the_standard_is_one_here() -> None:
    """PS3.18 table 10.6.1-5: what shall be matched at each level."""
    study = (
        "StudyDate StudyTime AccessionNumber ModalitiesInStudy ReferringPhysicianName PatientName PatientID "
        "StudyInstanceUID StudyID"
    ).split()
    series = (
        "Modality SeriesInstanceUID SeriesNumber PerformedProcedureStepStartDate PerformedProcedureStepStartTime "
        "RequestAttributesSequence.ScheduledProcedureStepID RequestAttributesSequence.RequestedProcedureID"
    ).split()
    instance = "SOPClassUID SOPInstanceUID InstanceNumber".split()
    assert set(study) <= KEYS[Level.STUDY]
    assert {*study, *series} <= KEYS[Level.SERIES]
    assert {*study, *series, *instance} <= KEYS[Level.INSTANCE]
    assert not KEYS[Level.STUDY] & {*series, *instance}
