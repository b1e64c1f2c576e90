"""FHIR R4 over HTTP: resources that other programs' models accept, searches, pages, errors, and who may see what.

fhir.resources has models of R4B, not of R4. `R4` below holds what differs for what is served here: it is compared by hand.
"""

import re
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import pytest
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.capabilitystatement import CapabilityStatement
from fhir.resources.R4B.device import Device
from fhir.resources.R4B.diagnosticreport import DiagnosticReport
from fhir.resources.R4B.observation import Observation
from fhir.resources.R4B.operationoutcome import OperationOutcome
from sqlalchemy import func, select

from api.fhir import routes
from api.fhir.parameters import INCLUDES, PARAMETERS
from shared.db.tables import IdentityReadRow, InstanceRow, StudyRow
from shared.domain.device import device_uid
from shared.domain.findings import RESEARCH_USE, Assessment
from shared.domain.security import Role
from shared.errors import Reason
from shared.queries.access import add_key
from shared.storage import sha256_of
from tests.conftest import InProcessApi
from tests.feedback_data import analyse, study_file

MODELS: dict[str, Any] = {
    "Bundle": Bundle, "CapabilityStatement": CapabilityStatement, "Device": Device, "DiagnosticReport": DiagnosticReport,
    "Observation": Observation, "OperationOutcome": OperationOutcome,
}  # fmt: skip
# R4 against R4B: the elements that R4B has and R4 has not, of the types that are served. None may be used.
ONLY_IN_R4B: dict[str, set[str]] = {name: set() for name in MODELS}
# DiagnosticReport.performer, Observation.derivedFrom and others: the types that R4 allows a reference to lead to
TARGETS = {
    "DiagnosticReport.performer": {"Practitioner", "PractitionerRole", "Organization", "CareTeam"},
    "DiagnosticReport.result": {"Observation"},
    "DiagnosticReport.imagingStudy": {"ImagingStudy"},
    "DiagnosticReport.basedOn": {"CarePlan", "ImmunizationRecommendation", "MedicationRequest", "NutritionOrder", "ServiceRequest"},
    "DiagnosticReport.subject": {"Patient", "Group", "Device", "Location"},
    "Observation.derivedFrom": {"DocumentReference", "ImagingStudy", "Media", "QuestionnaireResponse", "Observation", "MolecularSequence"},
    "Observation.hasMember": {"Observation", "QuestionnaireResponse", "MolecularSequence"},
    "Observation.device": {"Device", "DeviceMetric"},
    "Observation.basedOn": {"CarePlan", "DeviceRequest", "ImmunizationRecommendation", "MedicationRequest", "NutritionOrder", "ServiceRequest"},
    "Observation.subject": {"Patient", "Group", "Device", "Location"},
}  # fmt: skip
KNOWN: dict[str, str] = {
    "PatientName": "ZEBRA^QUAGGA", "PatientID": "P-4711", "IssuerOfPatientID": "CLINIC", "AccessionNumber": "A 11",
    "StudyDate": "20260110", "StudyTime": "101500", "TimezoneOffsetFromUTC": "+0100",
}  # fmt: skip


def get(api: InProcessApi, path: str, role: str = "radiologist", status: int = 200, **headers: str) -> Any:
    """A resource, which must be what it says it is."""
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    response = api.http.get(f"/fhir/{path}", headers=api.headers(role) | shown)
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/fhir+json"), response.headers
    return sound(response.json())


def sound(resource: Any) -> Any:
    """The resource, once its model, R4's references and JSON's rules have accepted it."""
    MODELS[resource["resourceType"]].model_validate(resource)
    no_empty(resource)
    for one in (resource, *(entry["resource"] for entry in resource.get("entry", ()))):
        assert not set(one) & ONLY_IN_R4B[one["resourceType"]]
        for name, value in one.items():
            for reference in value if isinstance(value, list) else [value]:
                if isinstance(reference, dict) and {"identifier", "reference"} & set(reference):
                    kinds = {reference.get("type"), reference.get("reference", "").partition("/")[0]} - {None, ""}
                    assert kinds <= TARGETS[f"{one['resourceType']}.{name}"], reference
    return resource


def no_empty(value: Any) -> None:
    """FHIR's JSON holds no empty array, object or text, and no null. Source: FHIR R4, json.html."""
    assert value not in (None, "", [], {}), "an empty value"
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        no_empty(one)


def matches(bundle: Any) -> list[Any]:
    return [entry["resource"] for entry in bundle.get("entry", ()) if entry["search"]["mode"] == "match"]


def all_pages(api: InProcessApi, path: str) -> list[Any]:
    """All matches of a search, page by page."""
    found: list[Any] = []
    for _ in range(50):
        bundle = get(api, path)
        found += matches(bundle)
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        if "next" not in links:
            return found
        path = links["next"].split("/fhir/", 1)[1]
    raise AssertionError("the pages have no end")


def made(
    api: InProcessApi,
    number: int,
    images: int = 1,
    assessment: Assessment = Assessment.POSITIVE,
    unread: int = 0,
    **tags: str,
) -> str:
    header: dict[str, Any] = {**KNOWN, **tags}
    files = {f"{image}": study_file(number, image, **header) for image in range(1, images + 1)}
    study: str = api.post(files).json()["studies"][0]["id"]
    analyse(api, study, assessment=assessment, unread=unread)
    return study


def uid_of(api: InProcessApi, study: str) -> str:
    with api.database.transaction() as session:
        return session.get_one(StudyRow, UUID(study)).study_instance_uid


def readings(api: InProcessApi) -> int:
    with api.database.transaction() as session:
        return session.scalar(select(func.count()).select_from(IdentityReadRow)) or 0


def test_a_report_its_observations_and_the_device(in_process: InProcessApi) -> None:
    """What each says, word for word where another program reads it."""
    study = made(in_process, 1, images=2, unread=1)
    uid = uid_of(in_process, study)
    report = get(in_process, f"DiagnosticReport/{study}")
    assert (report["status"], report["id"]) == ("preliminary", study)
    assert report["code"]["coding"] == [
        {"system": "http://loinc.org", "code": "18748-4", "display": "Diagnostic imaging study"}
    ]
    assert report["imagingStudy"] == [
        {"type": "ImagingStudy", "identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}}
    ]
    assert report["subject"]["identifier"]["value"] == "P-4711"
    assert report["subject"]["identifier"]["assigner"] == {"display": "CLINIC"}
    assert report["subject"]["display"] == "ZEBRA QUAGGA"
    assert report["basedOn"][0]["identifier"]["value"] == "A 11"
    assert report["effectiveDateTime"] == "2026-01-10T10:15:00+01:00"
    assert (
        report["conclusion"]
        == f"The model's own statement. Fracture: positive, hand. 1 image could not be read. {RESEARCH_USE}"
    )
    sha256 = sha256_of(b"first")
    assert report["performer"] == [
        {"identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{device_uid(sha256)}"}, "display": "Osteon first"}
    ]
    assert report["result"] == [{"reference": f"Observation/{study}", "type": "Observation"}]

    whole = get(in_process, f"Observation/{study}")
    assert whole["code"]["coding"][0]["code"] == "111017"
    assert whole["valueCodeableConcept"]["coding"][0]["code"] == "111244"  # not all succeeded, with findings
    assert whole["interpretation"][0]["coding"][0]["code"] == "POS"
    images = [get(in_process, member["reference"]) for member in whole["hasMember"]]
    read, unread = sorted(images, key=lambda one: "dataAbsentReason" in one)
    assert (read["status"], unread["status"]) == ("preliminary", "cancelled")
    assert read["valueCodeableConcept"]["coding"][0] == {
        "system": "http://snomed.info/sct",
        "code": "52101004",
        "display": "Present",
    }
    assert read["bodySite"]["coding"][0]["code"] == "85562004"
    assert "component" not in read  # the probability is told only where the site asks
    assert unread["dataAbsentReason"]["coding"][0]["code"] == "error"
    assert "valueCodeableConcept" not in unread
    with in_process.database.transaction() as session:
        names = list(
            session.scalars(
                select(InstanceRow.sop_instance_uid).order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
            )
        )
    assert [one["derivedFrom"][1]["identifier"]["value"] for one in images] == [f"urn:oid:{name}" for name in names]
    assert all(one["derivedFrom"][0]["identifier"]["value"] == f"urn:oid:{uid}" for one in (whole, read, unread))

    device = get(in_process, read["device"]["reference"])
    assert device["identifier"] == [{"system": "urn:dicom:uid", "value": f"urn:oid:{device_uid(sha256)}"}]
    assert (device["id"], device["status"], device["modelNumber"]) == (sha256, "active", "first")
    for one in (report, whole, read, unread, device):
        assert RESEARCH_USE in one["text"]["div"]


ASSESSMENTS = [
    # CID 6047 of the study, presence and interpretation of its image
    (Assessment.POSITIVE, "111242", "52101004", "POS"),
    (Assessment.UNCLEAR, "111242", "373068000", "IND"),
    (Assessment.NEGATIVE, "111241", "272519000", "NEG"),
    (Assessment.ABSTAINED, "111245", None, None),
]


def test_each_assessment_has_its_codes(in_process: InProcessApi) -> None:
    """An abstention is no presence and no absence: it has a reason instead of a value, and the study's summary says so."""
    for number, (assessment, summary, presence, interpretation) in enumerate(ASSESSMENTS, start=1):
        study = made(in_process, number, assessment=assessment)
        uid = uid_of(in_process, study)
        whole, image = matches(get(in_process, f"Observation?derived-from:identifier=urn:dicom:uid|urn:oid:{uid}"))
        assert whole["valueCodeableConcept"]["coding"][0]["code"] == summary
        value = image.get("valueCodeableConcept", {}).get("coding", [{}])[0].get("code")
        given = image.get("interpretation", [{}])[0].get("coding", [{}])[0].get("code")
        assert (value, given) == (presence, interpretation)
        if presence is None:
            assert image["dataAbsentReason"]["coding"][0]["code"] == "unsupported"
            assert "Silence is not normal" in get(in_process, f"DiagnosticReport/{study}")["conclusion"]


def test_the_probability_is_told_where_it_is_asked_for(make_api: Any) -> None:
    """By a setting, as a component with DICOM's code."""
    api = make_api(fhir_certainty=True)
    study = made(api, 1)
    image = get(api, get(api, f"Observation/{study}")["hasMember"][0]["reference"])
    (component,) = image["component"]
    assert component["code"]["coding"][0]["code"] == "111012"
    assert component["valueQuantity"] == {"value": 90, "unit": "%", "system": "http://unitsofmeasure.org", "code": "%"}


def test_a_study_of_which_nothing_could_be_analysed(in_process: InProcessApi) -> None:
    """Its report is cancelled, and says why; one that waits for its analysis has no report."""
    study = made(in_process, 1, unread=1)
    report = get(in_process, f"DiagnosticReport/{study}")
    assert report["status"] == "cancelled"
    assert "No image of this study could be analysed." in report["conclusion"]
    assert get(in_process, f"Observation/{study}")["valueCodeableConcept"]["coding"][0]["code"] == "111245"
    waiting = in_process.post({"a": study_file(2)}).json()["studies"][0]["id"]
    get(in_process, f"DiagnosticReport/{waiting}", status=404)
    assert [one["id"] for one in all_pages(in_process, "DiagnosticReport")] == [study]
    assert matches(get(in_process, "DiagnosticReport?status=preliminary")) == []
    assert len(matches(get(in_process, "DiagnosticReport?status=cancelled,preliminary"))) == 1
    assert len(matches(get(in_process, "Observation?status=cancelled"))) == 2


def test_capabilities_are_what_there_is(in_process: InProcessApi) -> None:
    """Each parameter and each include of the statement is accepted strictly; it needs no key, and R4B's version is not ours."""
    statement = sound(in_process.http.get("/fhir/metadata").json())
    assert statement["fhirVersion"] == "4.0.1"
    examples = {"token": "x", "date": "2026-01-01", "reference": "urn:oid:1.2.3"}
    (rest,) = statement["rest"]
    assert {one["type"] for one in rest["resource"]} == set(PARAMETERS)
    for one in rest["resource"]:
        assert {interaction["code"] for interaction in one["interaction"]} == {"read", "search-type"}
        for parameter in one["searchParam"]:
            get(
                in_process, f"{one['type']}?{parameter['name']}={examples[parameter['type']]}", Prefer="handling=strict"
            )
        for include in one.get("searchInclude", ()):
            assert include in INCLUDES[one["type"]]
            get(in_process, f"{one['type']}?_include={include}", Prefer="handling=strict")


def test_searches(in_process: InProcessApi) -> None:
    """By study, day, change, id and code; what is given twice must hold both times, what stands beside commas either."""
    first = made(in_process, 1)
    second = made(
        in_process, 2, StudyDate="20260220", StudyTime="", TimezoneOffsetFromUTC="", assessment=Assessment.NEGATIVE
    )
    third = made(in_process, 3, StudyDate="")
    uids = {one: uid_of(in_process, one) for one in (first, second, third)}
    changed = {one["id"]: one["meta"]["lastUpdated"] for one in all_pages(in_process, "DiagnosticReport")}
    nobody = uuid4()
    expected = [
        ("", (third, second, first)),
        ("_sort=_lastUpdated", (first, second, third)),
        ("_sort=-_lastUpdated&_count=2", (third, second, first)),
        (f"_id={first}", (first,)),
        (f"_id={first},{third}", (third, first)),
        (f"_id={first}&_id={third}", ()),
        (f"_id={first},{third}&_id={third},{second}", (third,)),
        (f"_id={nobody},no-uuid,{first.upper()}", ()),
        (f"study:identifier=urn:dicom:uid|urn:oid:{uids[second]}", (second,)),
        (f"study:identifier=urn:oid:{uids[second]}", (second,)),
        (f"study=urn:oid:{uids[second]}", (second,)),
        (f"study=urn:oid:{uids[second]},urn:oid:{uids[first]}", (second, first)),
        (f"study:identifier=http://elsewhere|urn:oid:{uids[second]}", ()),
        ("study:identifier=urn:dicom:uid|urn:oid:1.2.3", ()),
        ("study:identifier=ImagingStudy/1", ()),
        ("date=2026-01-10", (first,)),
        ("date=2026", (second, first)),
        ("date=2026-02", (second,)),
        ("date=ge2026-01-11", (second,)),
        ("date=gt2026-01-10", (second,)),
        ("date=le2026-01-10", (first,)),
        ("date=lt2026-01-10", ()),
        ("date=sa2026-01-09&date=eb2026-02-20", (first,)),
        ("date=ne2026-01-10", (second,)),
        ("date=2026-01-10,2026-02-20", (second, first)),
        ("date=2026-01-10T23:30:00-11:00", (first,)),
        ("status=preliminary", (third, second, first)),
        ("status=http://hl7.org/fhir/diagnostic-report-status|preliminary", (third, second, first)),
        ("status=final", ()),
        ("status=final&status=preliminary", ()),
        ("code=18748-4", (third, second, first)),
        ("code=http://loinc.org|18748-4", (third, second, first)),
        ("code=http://loinc.org|", (third, second, first)),
        ("code=|18748-4", ()),
        ("code=other", ()),
        (f"_lastUpdated={changed[second]}", (second,)),
        (f"_lastUpdated=gt{changed[second]}", (third,)),
        (f"_lastUpdated=ge{changed[second]}", (third, second)),
        (f"_lastUpdated=lt{changed[second]}", (first,)),
        (f"issued=le{changed[second]}", (second, first)),
        (f"_lastUpdated=ne{changed[second]}", (third, first)),
        ("_lastUpdated=ge9998", ()),
        ("_lastUpdated=lt0001-01-02", ()),
        ("_pretty=true&_format=json", (third, second, first)),
    ]  # fmt: skip
    for query, wanted in expected:
        found = [one["id"] for one in all_pages(in_process, f"DiagnosticReport?{query}".replace("+", "%2B"))]
        assert found == list(wanted), query
    whole = [one for study in (third, second, first) for one in (study,)]
    found = [one["id"] for one in all_pages(in_process, "Observation?code=111017&_count=1")]
    assert found == whole
    assert len(all_pages(in_process, "Observation?code=http://snomed.info/sct|125605004")) == 3
    image = get(in_process, f"Observation/{first}")["hasMember"][0]["reference"].split("/")[1]
    assert [one["id"] for one in all_pages(in_process, f"Observation?_id={image},{third}")] == [third, image]
    assert len(all_pages(in_process, f"Device?identifier=urn:dicom:uid|urn:oid:{device_uid(sha256_of(b'first'))}")) == 1
    assert all_pages(in_process, "Device?identifier=urn:oid:1.2.3") == all_pages(in_process, "Device?_id=other") == []


def test_pages_hold_everything_once(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many stand on a page, also where a page ends within a study, and studies are read two at a time."""
    monkeypatch.setattr(routes, "STUDIES_PER_STEP", 2)
    made_ = [made(in_process, number, images=1 + number % 2) for number in range(1, 5)]
    members = {
        study: [one["reference"].split("/")[1] for one in get(in_process, f"Observation/{study}")["hasMember"]]
        for study in made_
    }
    for count, sort in product((1, 2, 3), ("_lastUpdated", "-_lastUpdated")):
        order = made_ if sort == "_lastUpdated" else made_[::-1]
        reports = all_pages(in_process, f"DiagnosticReport?_count={count}&_sort={sort}")
        assert [one["id"] for one in reports] == order
        found = [one["id"] for one in all_pages(in_process, f"Observation?_count={count}&_sort={sort}")]
        assert found == [id_ for study in order for id_ in (study, *members[study])], (count, sort)


def test_a_page_may_be_short_where_little_fits(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search looks through so many studies at most; the next page goes on where it stopped."""
    monkeypatch.setattr(routes, "STUDIES_PER_STEP", 1)
    monkeypatch.setattr(routes, "MAX_STUDIES", 2)
    made_ = [made(in_process, number) for number in range(1, 4)]
    page = get(in_process, f"Observation?code=111017&_id={made_[0]},{uuid4()}")
    assert [one["id"] for one in matches(page)] == [made_[0]]
    first = get(in_process, "Observation?code=none")
    assert "entry" not in first
    assert [link["relation"] for link in first["link"]] == ["self", "next"]
    assert all_pages(in_process, "Observation?code=none") == []


def test_what_is_included(in_process: InProcessApi) -> None:
    """The study's observation; those of images and the device where they are asked for; each with its own address."""
    study = made(in_process, 1, images=2)
    several = (
        "_include=DiagnosticReport:result&_include:iterate=Observation:has-member&_include:iterate=Observation:device"
    )
    bundle = get(in_process, f"DiagnosticReport?{several}", Prefer="handling=strict")
    kinds = [(entry["resource"]["resourceType"], entry["search"]["mode"]) for entry in bundle["entry"]]
    assert kinds == [("DiagnosticReport", "match"), *[("Observation", "include")] * 3, ("Device", "include")]
    for entry in bundle["entry"]:
        one = entry["resource"]
        assert entry["fullUrl"] == f"http://testserver/fhir/{one['resourceType']}/{one['id']}"
        assert get(in_process, f"{one['resourceType']}/{one['id']}") == one
    only = get(in_process, "DiagnosticReport?_include=DiagnosticReport:result")
    assert [entry["resource"]["id"] for entry in only["entry"]] == [study, study]


def test_a_newer_model_and_a_correction_change_the_report(in_process: InProcessApi) -> None:
    """What is told changes, so that a client that asks for changes is told of it."""
    study = made(in_process, 1)
    before = get(in_process, f"DiagnosticReport/{study}")["meta"]["lastUpdated"]
    with in_process.database.transaction() as session:
        session.get_one(StudyRow, UUID(study)).revised_at = datetime.now(UTC) + timedelta(seconds=1)
    assert [one["id"] for one in matches(get(in_process, f"DiagnosticReport?_lastUpdated=gt{before}"))] == [study]


UNKNOWN = [
    "unknown=1",
    "patient=1",
    "_summary=count",
    "_sort=date",
    "_include=DiagnosticReport:subject",
    "_elements=id",
    "Status=final",
]


def test_unknown_parameters(in_process: InProcessApi) -> None:
    """Ignored and told of by default, and left out of the link to itself; refused if the client prefers that."""
    study = made(in_process, 1)
    for query in UNKNOWN:
        bundle = get(in_process, f"DiagnosticReport?{query}&_id={study}")
        assert [entry["search"]["mode"] for entry in bundle["entry"]] == ["match", "outcome"]
        assert bundle["link"] == [{"relation": "self", "url": f"http://testserver/fhir/DiagnosticReport?_id={study}"}]
        lenient = get(in_process, f"DiagnosticReport?{query}", Prefer="return=minimal; handling=lenient")
        assert len(lenient["entry"]) == 2
        for wish in ("handling=strict", "return=minimal, handling=strict", 'Handling="strict"'):
            refused = get(in_process, f"DiagnosticReport?{query}", status=400, Prefer=wish)
            assert refused["issue"][0]["code"] == "invalid"
            assert query.split("=", maxsplit=1)[0] not in refused["issue"][0]["details"]["text"]


REFUSED = [
    "DiagnosticReport?_count=0", "DiagnosticReport?_count=-1", "DiagnosticReport?_count=x", "DiagnosticReport?_count=²",
    "DiagnosticReport?_cursor=x", "DiagnosticReport?_cursor=W10", "DiagnosticReport?_cursor=%00",
    "DiagnosticReport?date=2026-13", "DiagnosticReport?date=2026-02-30", "DiagnosticReport?date=today",
    "DiagnosticReport?date=ap2026", "DiagnosticReport?date=xx2026", "DiagnosticReport?date=0000", "DiagnosticReport?date=9999",
    "DiagnosticReport?_lastUpdated=2026-01-01T25:00:00Z", "DiagnosticReport?_lastUpdated=2026-01-01T10",
    "DiagnosticReport?_lastUpdated=0001-01-01T00:00:00%2B14:00", "DiagnosticReport?_id:missing=true",
    "DiagnosticReport?study:missing=true", "DiagnosticReport?code=1&code=2", "DiagnosticReport?_sort:x=_lastUpdated",
    f"DiagnosticReport?_id={'x' * 1025}", f"DiagnosticReport?_id={',x' * 101}", f"DiagnosticReport?{'a=1&' * 51}",
    "Observation?derived-from:ImagingStudy=1",
]  # fmt: skip


def test_what_cannot_be_understood_is_refused(in_process: InProcessApi) -> None:
    """A wrong value, modifier or prefix would otherwise find what nobody asked for."""
    for path in REFUSED:
        assert get(in_process, path, status=400)["resourceType"] == "OperationOutcome"


def test_every_error_is_an_operation_outcome(in_process: InProcessApi) -> None:
    """Whoever causes it: no key, a wrong one, another role, an unknown address, method, host, form, NUL."""
    api = in_process
    study = made(api, 1)

    def failed(status: int, code: str, path: str, method: str = "GET", **headers: str) -> Any:
        shown = {name.replace("_", "-"): value for name, value in headers.items()}
        response = api.http.request(method, path, headers=shown, follow_redirects=False)
        assert response.status_code == status, (path, response.text)
        assert response.headers["content-type"] == "application/fhir+json; fhirVersion=4.0"
        told = sound(response.json())
        assert told["issue"][0]["code"] == code
        return response

    admin = api.headers()
    assert failed(401, "login", "/fhir/DiagnosticReport").headers["www-authenticate"] == "Bearer"
    failed(401, "login", "/fhir/DiagnosticReport", Authorization="Bearer osk_wrong")
    failed(401, "login", "/fhir/DiagnosticReport", Accept="text/html")  # a browser is not sent to the login
    for role in ("submitter", "operator"):
        failed(403, "forbidden", f"/fhir/DiagnosticReport/{study}", **api.headers(role))
    for path in ("/fhir", "/fhir/", "/fhir/Patient", "/fhir/Patient/1", f"/fhir/DiagnosticReport/{study}/_history/1",
                 f"/fhir/DiagnosticReport/{uuid4()}", "/fhir/DiagnosticReport/x", "/fhir/Device/x",
                 f"/fhir/Observation/{uuid4()}", "/fhir/Observation/x"):  # fmt: skip
        failed(404, "not-found", path, **admin)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (
            failed(405, "not-supported", f"/fhir/DiagnosticReport/{study}", method, **admin).headers["allow"] == "GET"
        )
    for accept in ("application/fhir+xml", "application/fhir+json; fhirVersion=5.0", "text/html"):
        failed(406, "not-supported", "/fhir/metadata", Accept=accept)
    failed(406, "not-supported", "/fhir/metadata?_format=xml")
    failed(400, "invalid", "/fhir/DiagnosticReport?_id=%00", **admin)
    failed(421, "invalid", "/fhir/metadata", Host="elsewhere.example")


FORMS: list[tuple[dict[str, str], str, str]] = [
    # headers, _format, and the media type of the response
    ({}, "", "application/fhir+json; fhirVersion=4.0"),
    ({"Accept": "*/*"}, "", "application/fhir+json; fhirVersion=4.0"),
    ({"Accept": "application/fhir+json; fhirVersion=4.0"}, "", "application/fhir+json; fhirVersion=4.0"),
    ({"Accept": "application/fhir+xml;q=1, application/fhir+json;q=0.1"}, "", "application/fhir+json; fhirVersion=4.0"),
    ({"Accept": "application/json"}, "", "application/json"),
    ({"Accept": "text/html"}, "json", "application/fhir+json; fhirVersion=4.0"),
    ({}, "application/fhir+json", "application/fhir+json; fhirVersion=4.0"),
    ({}, "application/json", "application/json"),
]


def test_the_form_of_a_response(in_process: InProcessApi) -> None:
    """By the header Accept, or the parameter _format, which is stronger, with its plus sign encoded or not."""
    for headers, form, given in FORMS:
        for query in {f"?_format={form}", f"?_format={form.replace('+', '%2B')}"} if form else {""}:
            response = in_process.http.get(f"/fhir/metadata{query}", headers=headers)
            assert (response.status_code, response.headers["content-type"]) == (200, given)


def test_another_sites_key_sees_nothing(in_process: InProcessApi) -> None:
    """Neither by searching nor by id."""
    study = made(in_process, 1)
    image = get(in_process, f"Observation/{study}")["hasMember"][0]["reference"]
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "reader", Role.RADIOLOGIST, "osk_elsewhere_reader")
    shown = {"Authorization": "Bearer osk_elsewhere_reader"}
    for path in ("DiagnosticReport", "Observation", f"Observation?_id={study}"):
        assert "entry" not in in_process.http.get(f"/fhir/{path}", headers=shown).json()
    for path in (f"DiagnosticReport/{study}", f"Observation/{study}", image):
        assert in_process.http.get(f"/fhir/{path}", headers=shown).status_code == 404


def test_readings_of_identities_are_recorded(in_process: InProcessApi) -> None:
    """One for each study that a response names the patient of, and none for what was looked through only."""
    first, second = made(in_process, 1), made(in_process, 2)
    for path, more in (
        (f"DiagnosticReport/{first}", 1), ("DiagnosticReport", 2), ("DiagnosticReport?_count=1", 1),
        ("DiagnosticReport?_id=none", 0), (f"Observation/{second}", 1), ("Observation", 2),
        ("Observation?code=none", 0), ("Device", 0), ("metadata", 0),
    ):  # fmt: skip
        before = readings(in_process)
        get(in_process, path)
        assert readings(in_process) - before == more, path


def test_an_identity_that_cannot_be_read(in_process: InProcessApi) -> None:
    """The result is told without a patient; nothing else breaks."""
    study = made(in_process, 1)
    in_process.as_owner("UPDATE identities SET ciphertext = 'x'")
    for path in (f"DiagnosticReport/{study}", f"Observation/{study}"):
        resource = get(in_process, path)
        assert "subject" not in resource
        assert "basedOn" not in resource


def test_no_text_of_a_header_breaks_the_narrative(in_process: InProcessApi) -> None:
    """Names and numbers with markup are data, and the narrative is XHTML."""
    study = made(
        in_process, 1, PatientName='<b>O\'Neil & Söhne^"x"', PatientID="<i>", SpecificCharacterSet="ISO_IR 192"
    )
    report = get(in_process, f"DiagnosticReport/{study}")
    assert report["subject"]["display"] == '<b>O\'Neil & Söhne "x"'
    assert not re.search("O'Neil|<b>", report["text"]["div"])
    with in_process.database.transaction() as session:
        session.get_one(StudyRow, UUID(study)).region = "<script>"
    assert "&lt;script&gt;" in get(in_process, f"DiagnosticReport/{study}")["text"]["div"]


def test_reasons_are_told_in_words(in_process: InProcessApi) -> None:
    """An unread image's observation says what the page says."""
    made(in_process, 1, images=2, unread=1)
    (unread,) = matches(get(in_process, "Observation?status=cancelled"))
    with in_process.database.transaction() as session:
        reasons = set(session.scalars(select(InstanceRow.error_reason)))
    assert reasons == {"", Reason.TRUNCATED_PIXELS}
    assert unread["dataAbsentReason"]["text"] in unread["note"][0]["text"]
