"""Who may do what: every route of the application, by role, at one's own site and at another."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

from api.legacy import REUSED_AS_PAGES
from api.pages.operations import Tab
from api.pages.render import STATIC
from shared.domain.security import Role
from shared.queries.access import add_key
from tests.conftest import SAMPLES, InProcessApi

RADIOGRAPH = (SAMPLES / "studies" / "01-hand" / "1-pa.dcm").read_bytes()
SENDS, READS, ADMINISTERS = {"submitter", "admin"}, {"radiologist", "admin"}, {"admin"}
OPERATES, CARES = {"operator"}, {"admin", "operator"}
EVERYBODY: set[str] = set()  # without a key

# Method and path, to the roles that may. A route that is not here fails the test: who adds one says who may.
RULES: dict[tuple[str, str], set[str]] = {
    # sending
    ("POST", "/api/v1/studies"): SENDS,
    ("POST", "/api/v1/studies/states"): SENDS,
    ("POST", "/api/v1/studies/arrived"): SENDS,
    ("GET", "/send"): SENDS,
    ("POST", "/dicom-web/studies"): SENDS,
    ("POST", "/dicom-web/studies/{study}"): SENDS,
    ("GET", "/dicom-web/studies/{study}"): READS,
    ("GET", "/dicom-web/studies/{study}/thumbnail"): READS,
    ("GET", "/dicom-web/studies/{study}/metadata"): READS,
    ("GET", "/dicom-web/studies/{study}/series/{series}/metadata"): READS,
    ("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/metadata"): READS,
    ("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/bulk/{path}"): READS,
    ("GET", "/dicom-web/studies/{study}/series/{series}"): READS,
    ("GET", "/dicom-web/studies/{study}/series/{series}/thumbnail"): READS,
    ("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}"): READS,
    ("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/thumbnail"): READS,
    ("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/rendered"): READS,
    ("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/{frames}"): READS,
    ("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/{frame}/rendered"): READS,
    # reading
    ("GET", "/dicom-web/studies"): READS,
    ("GET", "/dicom-web/series"): READS,
    ("GET", "/dicom-web/instances"): READS,
    ("GET", "/dicom-web/studies/{study}/series"): READS,
    ("GET", "/dicom-web/studies/{study}/instances"): READS,
    ("GET", "/dicom-web/studies/{study}/series/{series}/instances"): READS,
    ("GET", "/fhir/DiagnosticReport"): READS,
    ("GET", "/fhir/DiagnosticReport/{id_}"): READS,
    ("GET", "/fhir/Observation"): READS,
    ("GET", "/fhir/Observation/{id_}"): READS,
    ("GET", "/fhir/Device"): READS,
    ("GET", "/fhir/Device/{id_}"): READS,
    ("GET", "/api/v1/studies/{study_id}"): SENDS | READS,  # a submitter is told the state only: see below
    ("GET", "/api/v1/studies/{study_id}/preview.jpg"): READS,
    ("GET", "/api/v1/studies/{study_id}/heatmap.png"): READS,
    ("GET", "/api/v1/studies/{study_id}/heatmap.json"): READS,
    ("GET", "/api/v1/studies/{study_id}/frame"): READS,
    ("GET", "/api/v1/studies/{study_id}/overlay.jpg"): READS,
    ("GET", "/api/v1/studies/{study_id}/priors"): READS,
    ("GET", "/view/{study_id}/report"): READS,
    ("GET", "/api/v1/studies/{study_id}/report.pdf"): READS,
    ("GET", "/api/v1/studies/{study_id}/feedback"): READS,
    ("POST", "/api/v1/studies/{study_id}/feedback"): READS,
    ("POST", "/api/v1/studies/{study_id}/feedback/{entry_id}/undo"): READS,
    ("POST", "/api/v1/studies/{study_id}/lock"): READS,
    ("GET", "/api/v1/studies/{study_id}/lock"): READS,
    ("DELETE", "/api/v1/studies/{study_id}/lock/{token}"): READS,
    ("GET", "/api/v1/studies/{study_id}/locks"): READS,
    ("GET", "/api/v1/worklist"): READS,
    ("GET", "/api/v1/worklist.csv"): READS,
    ("POST", "/api/v1/worklist/search"): READS,
    ("GET", "/api/v1/worklist/events"): READS,
    ("GET", "/api/v1/filters"): READS,
    ("POST", "/api/v1/filters"): READS,
    ("PATCH", "/api/v1/filters/{filter_id}"): READS,
    ("DELETE", "/api/v1/filters/{filter_id}"): READS,
    ("GET", "/api/v1/notices"): READS,
    ("GET", "/api/v1/revised-findings"): READS,
    ("GET", "/api/v1/revised-findings/count"): READS,
    ("POST", "/api/v1/revised-findings/{revised_id}/seen"): READS,
    ("GET", "/api/v1/agreement"): READS,
    ("POST", "/view/{study_id}/done"): READS,
    # one site
    ("POST", "/api/v1/studies/{study_id}/release"): ADMINISTERS,
    ("POST", "/api/v1/quarantine/release"): ADMINISTERS,
    ("GET", "/api/v1/quarantine"): ADMINISTERS,
    ("POST", "/api/v1/quarantine/{study_id}/dismiss"): ADMINISTERS,
    ("POST", "/api/v1/quarantine/{study_id}/delete"): ADMINISTERS,
    ("GET", "/api/v1/held-files"): ADMINISTERS,
    ("POST", "/api/v1/held-files/{held_id}/decision"): ADMINISTERS,
    ("GET", "/api/v1/studies/{study_id}/deliveries"): ADMINISTERS,
    ("GET", "/api/v1/studies/{study_id}/results"): ADMINISTERS,
    ("POST", "/api/v1/studies/{study_id}/results"): ADMINISTERS,
    ("GET", "/api/v1/turnaround-targets"): ADMINISTERS,
    ("PUT", "/api/v1/turnaround-targets"): ADMINISTERS,
    ("GET", "/api/v1/refused-kinds"): ADMINISTERS,
    ("PUT", "/api/v1/refused-kinds"): ADMINISTERS,
    ("GET", "/api/v1/studies/{study_id}/upcoming"): READS,
    ("GET", "/api/v1/result-choices"): ADMINISTERS,
    ("PUT", "/api/v1/result-choices"): ADMINISTERS,
    ("DELETE", "/api/v1/studies/{study_id}"): ADMINISTERS,
    ("DELETE", "/api/v1/studies/{study_id}/images/{sop_instance_uid}"): ADMINISTERS,
    ("GET", "/api/v1/deletions"): ADMINISTERS,
    ("GET", "/api/v1/feedback"): ADMINISTERS,
    ("GET", "/api/v1/feedback/labels"): ADMINISTERS,
    ("GET", "/api/v1/arrivals"): ADMINISTERS,
    ("GET", "/api/v1/studies/{study_id}/original"): ADMINISTERS,
    # all sites, or one: what is shown of it, and which keys, goes by the role
    ("GET", "/api/v1/operations"): CARES,
    ("GET", "/api/v1/backfill-runs"): CARES,
    ("GET", "/api/v1/backfill-runs/{day}"): CARES,
    ("GET", "/api/v1/bundles"): CARES,
    ("GET", "/api/v1/bundles/{old}/compare/{new}"): CARES,
    ("GET", "/api/v1/audit-events"): CARES,
    ("GET", "/api/v1/keys"): CARES,
    ("GET", "/api/v1/keys/{key_id}"): CARES,
    ("POST", "/api/v1/keys"): CARES,
    ("POST", "/api/v1/keys/{key_id}/revoke"): CARES,
    ("GET", "/api/v1/dicom-peers"): CARES,
    ("POST", "/api/v1/dicom-peers"): CARES,
    ("PUT", "/api/v1/dicom-peers/{peer_id}"): CARES,
    ("POST", "/api/v1/dicom-peers/{peer_id}/disable"): CARES,
    ("POST", "/api/v1/dicom-peers/{peer_id}/enable"): CARES,
    ("GET", "/api/v1/dicom-callers"): CARES,
    ("GET", "/api/v1/destinations"): CARES,
    ("POST", "/api/v1/destinations"): CARES,
    ("PUT", "/api/v1/destinations/{destination_id}"): CARES,
    ("PUT", "/api/v1/destinations/{destination_id}/rules"): CARES,
    ("POST", "/api/v1/destinations/{destination_id}/secret"): CARES,
    ("POST", "/api/v1/destinations/{destination_id}/disable"): CARES,
    ("POST", "/api/v1/destinations/{destination_id}/enable"): CARES,
    ("POST", "/api/v1/destinations/{destination_id}/test"): CARES,
    ("POST", "/api/v1/destinations/{destination_id}/retry"): CARES,
    ("GET", "/api/v1/deliveries"): CARES,
    ("GET", "/api/v1/checks"): CARES,
    ("GET", "/api/v1/checks/{check_id}"): CARES,
    ("POST", "/api/v1/deliveries/{delivery_id}/send"): CARES,
    ("POST", "/api/v1/dicom-callers/{caller_id}/admit"): CARES,
    # all sites
    ("POST", "/api/v1/bundles"): OPERATES,
    ("POST", "/api/v1/bundles/{name}/shadow"): OPERATES,
    ("POST", "/api/v1/bundles/{name}/retire"): OPERATES,
    ("POST", "/api/v1/bundles/{name}/activate"): OPERATES,
    ("GET", "/metrics"): OPERATES,
    ("POST", "/api/v1/checks"): OPERATES,
    # nobody's secret
    ("GET", "/fhir/metadata"): EVERYBODY,
    ("GET", "/healthz"): EVERYBODY,
    ("GET", "/readyz"): EVERYBODY,
    ("GET", "/login"): EVERYBODY,
    ("POST", "/login"): EVERYBODY,
    ("POST", "/logout"): EVERYBODY,
    ("GET", "/openapi.json"): EVERYBODY,
    ("GET", "/docs"): EVERYBODY,
    ("GET", "/docs/oauth2-redirect"): EVERYBODY,
    # pages
    ("GET", "/active"): set(Role),
    ("POST", "/active"): set(Role),
    ("GET", "/"): READS,
    ("POST", "/search"): READS,
    ("GET", "/view/{study_id}"): READS,
    ("POST", "/view/{study_id}/seen/{revised_id}"): READS,
    ("GET", "/view/{study_id}/delete"): ADMINISTERS,
    ("POST", "/view/{study_id}/delete"): ADMINISTERS,
    ("GET", "/revised"): READS,
    ("POST", "/revised/{revised_id}/seen"): READS,
    ("GET", "/agreement"): READS,
    ("GET", "/notices"): READS,
    ("GET", "/operations"): CARES,
}
GONE = {
    "/api/v1/studies/{study_id}",
    "/api/v1/studies/{study_id}/images/{sop_instance_uid}",
}  # where a deletion needs its reason
FILES_OF_PAGES = {STATIC, "/static-offline-docs"}  # folders of files that hold no data
ENDLESS = {"/api/v1/worklist/events"}  # has no end; see test_events.py
NOBODY = UUID(int=1)
FILLED = {
    "study": "1.2.3",
    "series": "1.2.3",
    "instance": "1.2.3",
    "frames": "1",
    "frame": "1",
    "path": "00091001",
    "sop_instance_uid": "1.2.3",
    "day": "2026-01-12",
    "name": "none",
    "old": "none",
    "new": "none",
}


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Every route of the application, with each of its methods."""
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, Mount):
            assert route.path in FILES_OF_PAGES, route.path
            continue
        for method in sorted(set(route.methods or ()) - {"HEAD"}):
            yield method, str(route.path)


def filled(path: str, study: object = NOBODY) -> str:
    """A path with every name in it filled in."""
    named = (
        "revised_id",
        "entry_id",
        "key_id",
        "token",
        "filter_id",
        "held_id",
        "peer_id",
        "caller_id",
        "id_",
        "destination_id",
        "delivery_id",
        "check_id",
    )
    ids = dict.fromkeys(named, NOBODY)
    asked = "?reason=wrong-patient" if path in GONE else ""
    return path.format(study_id=study, **ids, **FILLED) + asked


@pytest.fixture
def api(in_process: InProcessApi) -> InProcessApi:
    """The API, with a second site that has a key of each role."""
    with in_process.database.transaction() as session:
        for role in Role:
            add_key(session, "elsewhere", role, role, f"osk_elsewhere_{role}")
    return in_process


def test_every_route_says_who_may(in_process: InProcessApi) -> None:
    """A route without a rule here, and a rule without a route, are mistakes."""
    assert set(routes(in_process.http.app)) == set(RULES)


@dataclass(frozen=True)
class Status:
    """What a request of one role came to."""

    method: str
    path: str
    role: str
    status: int


def test_every_route_by_every_role(api: InProcessApi) -> None:
    """401 without a key or with a wrong one, 403 for each role that it is not for, and something else for the others."""
    wrong = []
    for (method, path), allowed in RULES.items():
        if allowed is EVERYBODY:
            continue
        headers: dict[str, dict[str, str]] = {role: api.headers(role) for role in Role}
        headers |= {
            "nobody": {},
            "wrong": {"Authorization": "Bearer osk_wrong"},
            "basic": {"Authorization": "Basic b3NrOg=="},
        }
        for role, shown in headers.items():
            if path in ENDLESS and role in allowed:
                continue
            asked = shown | ({"Accept": "text/html"} if path in REUSED_AS_PAGES else {})
            status = api.http.request(method, filled(path), headers=asked, follow_redirects=False).status_code
            if role not in set(Role):
                fine = status == 401 or (status == 303 and role == "nobody" and path in REUSED_AS_PAGES)  # to the login
            else:
                fine = (status not in (401, 403)) == (role in allowed) and status < 500
            if not fine:
                wrong.append(Status(method, path, role, status))
    assert wrong == []


def test_no_role_of_another_site_reaches_a_study(api: InProcessApi) -> None:
    """Every route that names a study answers 404 to those who may call it at another site, and changes nothing."""
    study = api.post({"a": RADIOGRAPH}).json()["studies"][0]["id"]
    before = api.http.get(f"/api/v1/studies/{study}", headers=api.headers()).json()
    wrong = []
    for ((method, path), allowed), role in product(RULES.items(), Role):
        if "{study_id}" not in path or role not in allowed:
            continue
        shown = {"Authorization": f"Bearer osk_elsewhere_{role}"}
        sent = FORMS.get((method, path)) or {"json": BODIES.get((method, path))}
        response = api.http.request(method, filled(path, study), headers=shown, follow_redirects=False, **sent)
        if response.status_code != TOLD.get((method, path), 404):
            wrong.append(Status(method, path, role, response.status_code))
    assert wrong == []
    assert api.http.get(f"/api/v1/studies/{study}", headers=api.headers()).json() == before
    told = api.http.post(
        "/api/v1/studies/states", json={"ids": [study]}, headers={"Authorization": "Bearer osk_elsewhere_submitter"}
    )
    assert told.json() == {"studies": [], "unknown": [study]}


TOLD = {("DELETE", "/api/v1/studies/{study_id}/lock/{token}"): 204}  # a claim that is not there is given back, too
# what a request needs to come as far as the study
FORMS: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/view/{study_id}/delete"): {"data": {"reason": "wrong-patient"}},
    ("POST", "/view/{study_id}/done"): {"data": {"images": "1"}},
}
BODIES: dict[tuple[str, str], object] = {
    ("POST", "/api/v1/quarantine/{study_id}/dismiss"): {"reason": "none"},
    ("POST", "/api/v1/quarantine/{study_id}/delete"): {"reason": "none"},
    ("POST", "/api/v1/studies/{study_id}/feedback"): {"verdict": "done", "images": 1},
}


def test_a_submitter_sees_the_state_and_no_finding(api: InProcessApi) -> None:
    """Of its own study a submitter's key is told what POST /api/v1/studies/states tells, and nothing of what was found."""
    study = api.post({"a": RADIOGRAPH}).json()["studies"][0]["id"]
    told = api.http.get(f"/api/v1/studies/{study}", headers=api.headers("submitter")).json()
    assert told == {
        "id": study, "status": "queued", "reason": "", "detail": "", "images": 1, "completeness": "receiving",
        "expected_images": None,
    }  # fmt: skip
    states = api.http.post("/api/v1/studies/states", json={"ids": [study]}, headers=api.headers("submitter")).json()
    assert states["studies"] == [told]


def test_an_admin_makes_keys_of_their_site_only(api: InProcessApi) -> None:
    """Neither an operator's key, nor one of another site, nor one that operates; an operator makes all of them."""

    def make(by: str, **wanted: object) -> Any:
        return api.http.post(
            "/api/v1/keys", json={"name": str(uuid4())[:8], "role": "radiologist", **wanted}, headers=api.headers(by)
        )

    assert make("admin").status_code == 201
    for refused in (
        {"role": "operator"},
        {"role": "admin", "operates": True},
        {"site": "elsewhere"},
        {"site": "default"},
    ):
        assert make("admin", **refused).status_code == 403, refused
        made = make("operator", **refused)
        assert made.status_code == 201, refused
        assert made.json()["site"] == refused.get("site", "default")
    assert make("operator", site="nowhere").status_code == 404
    assert make("operator", site="nowhere", new_site=True).json()["site"] == "nowhere"
    assert make("operator", operates=True).status_code == 400


def test_an_admin_neither_sees_nor_revokes_keys_of_others(api: InProcessApi) -> None:
    """An admin's list holds their site's keys; an operator's key is revoked by operators; an operator sees all sites."""
    everything = api.http.get("/api/v1/keys", headers=api.headers("operator")).json()
    assert {one["site"] for one in everything} == {"default", "elsewhere"}
    mine = api.http.get("/api/v1/keys", headers=api.headers("admin")).json()
    assert {one["id"] for one in mine} == {one["id"] for one in everything if one["site"] == "default"}
    assert api.http.get("/api/v1/keys?site=elsewhere", headers=api.headers("admin")).status_code == 404
    for one in everything:
        status = api.http.post(f"/api/v1/keys/{one['id']}/revoke", headers=api.headers("admin")).status_code
        expected = 404 if one["site"] == "elsewhere" else {"operator": 403, "admin": 409}.get(one["role"], 200)
        assert status == expected, one
        shown = api.http.get(f"/api/v1/keys/{one['id']}", headers=api.headers("admin")).status_code
        assert shown == (404 if one["site"] == "elsewhere" else 200)


def test_an_operator_is_shown_no_patient(api: InProcessApi) -> None:
    """The operations page of an operator opens without the parts of a site, and names no study that could be opened."""
    api.post({"a": RADIOGRAPH})
    parts = {
        "queue": ("held", "quarantine", "turnaround-targets"),
        "senders": ("rejections", "sent", "refused-kinds"),
        "results": ("result-choices",),
    }
    for tab in Tab:
        address = f"/operations?tab={tab}"
        page = api.http.get(address, headers=api.headers("operator", page=True)).text
        for part in parts.get(tab, ()):
            assert f'<section id="{part}"' not in page
            assert f'<section id="{part}"' in api.http.get(address, headers=api.headers(page=True)).text
        assert 'href="/view/' not in page
    login = api.http.post("/login", data={"key": api.keys["operator"]}, follow_redirects=False)
    assert (login.status_code, login.headers["location"]) == (303, "/operations")
