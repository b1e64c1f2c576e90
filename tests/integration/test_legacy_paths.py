"""The API's paths of before 0.2.0: served as the new ones are, until 0.3.0, and named as old."""

import logging
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI

from api.legacy import API_PATHS, PAGES, REUSED_AS_PAGES
from shared import __version__
from tests.conftest import SAMPLES, InProcessApi
from tests.integration.test_requests import BODY, CountingProtocol, ask, endless
from tests.served import served

FILM = (SAMPLES / "studies" / "01-hand" / "1-pa.dcm").read_bytes()
NOBODY = UUID(int=1)
ENDLESS = "/worklist/events"  # has no end
# every path of 0.1.0 with its methods, as its openapi.json named them: frozen, whatever is renamed later
OLD = """
GET /agreement
GET /alerts
GET /alerts/count
POST /alerts/{alert_id}/seen
GET PUT /allowances
GET /arrivals
GET /audit-events
GET /backlog
GET /backlog/{day}
GET POST /bundles
POST /bundles/{name}/activate
POST /bundles/{name}/retire
POST /bundles/{name}/shadow
GET /bundles/{old}/compare/{new}
GET /deletions
GET POST /filters
DELETE /filters/{filter_id}
GET /held-files
POST /held-files/{held_id}/decision
GET POST /keys
GET /keys/{key_id}
POST /keys/{key_id}/revoke
GET /ledger
GET /ledger/labels
GET /operations
GET /quarantine
POST /quarantine/release
POST /quarantine/{study_id}/delete
POST /quarantine/{study_id}/dismiss
GET /security-events
POST /studies
POST /studies/states
DELETE GET /studies/{study_id}
GET POST /studies/{study_id}/answers
POST /studies/{study_id}/answers/{entry_id}/undo
GET POST /studies/{study_id}/claim
DELETE /studies/{study_id}/claim/{token}
GET /studies/{study_id}/claims
GET /studies/{study_id}/film
GET /studies/{study_id}/heatmap.json
GET /studies/{study_id}/heatmap.png
DELETE /studies/{study_id}/images/{sop_instance_uid}
GET /studies/{study_id}/original
GET /studies/{study_id}/overlay.jpg
GET /studies/{study_id}/preview.jpg
POST /studies/{study_id}/release
GET /studies/{study_id}/report.pdf
GET /worklist
GET /worklist/events
POST /worklist/search
"""
OLD_PAGES = ["/admin", "/agreement.html", "/second-looks", "/studies/{study_id}/report.html"]


def old() -> Iterator[tuple[str, str]]:
    """Method and path."""
    for line in OLD.split("\n"):
        *methods, path = line.split() or [""]
        for method in methods:
            yield method, path


def filled(template: str, study: object = NOBODY) -> str:
    """A path with every name in it filled in."""
    ids = dict.fromkeys(("alert_id", "entry_id", "key_id", "token", "filter_id", "held_id"), NOBODY)
    words = {"sop_instance_uid": "1.2.3", "day": "2026-01-12", "name": "none", "old": "none", "new": "none"}
    return template.format(study_id=study, **ids, **words)


def same(response: Any) -> tuple[int, dict[str, str], str]:
    """What of a response does not change from one request to the next."""
    headers = {
        name: value
        for name, value in response.headers.items()
        if name not in ("deprecation", "link", "content-length", "set-cookie")
    }
    text = response.text if "json" in headers.get("content-type", "") else ""
    return response.status_code, headers, re.sub(r"\d[\d.:T+Z-]*", "#", text)


def test_every_old_path_answers_as_its_new_one(in_process: InProcessApi) -> None:
    """For each role and for nobody, and each response names the new path."""
    assert {path for _, path in old()} == set(API_PATHS)
    assert len(list(old())) == 57
    study = in_process.post({"a": FILM}).json()["studies"][0]["id"]
    shown: list[dict[str, str]] = [{}, {"Authorization": "Bearer osk_wrong"}]
    shown += [in_process.headers(role) for role in ("submitter", "radiologist", "admin", "operator")]
    wrong = []
    for method, path in old():
        new = filled(API_PATHS[path], study if method == "GET" else NOBODY)
        url = filled(path, study if method == "GET" else NOBODY)
        for headers in shown:
            if path == ENDLESS and headers in (in_process.headers("radiologist"), in_process.headers("admin")):
                continue
            told = in_process.http.request(method, url, headers=headers, follow_redirects=False)
            asked = in_process.http.request(method, new, headers=headers, follow_redirects=False)
            if same(told) != same(asked) or told.status_code >= 500:
                wrong.append((method, path, told.status_code, asked.status_code))
            assert told.headers["deprecation"] == "@1795996800", path
            assert told.headers["link"] == f'<{new}>; rel="successor-version"'
            assert not {"deprecation", "link"} & set(asked.headers), path
            if not headers:
                assert told.status_code == 401, path
    assert wrong == []


def test_an_upload_to_the_old_path_is_taken_as_it_streams(in_process: InProcessApi) -> None:
    """No redirect: the body is sent once, and its study is there under the new path, with a slash at the end too."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'

    def body() -> Iterator[bytes]:
        yield from (head, FILM, b"\r\n--x--\r\n")

    sent = in_process.headers("submitter") | {"Content-Type": "multipart/form-data; boundary=x"}
    for url, outcome in (("/studies", "stored"), ("/studies/", "duplicate")):
        response = in_process.http.post(url, content=body(), headers=sent, follow_redirects=False)
        assert (response.status_code, response.json()["files"][0]["outcome"]) == (200, outcome)
    (study,) = {one["study_id"] for one in response.json()["files"]}
    found = in_process.http.get(f"/api/v1/studies/{study}", headers=in_process.headers())
    assert found.json()["id"] == study


def test_no_body_to_an_old_path_is_read_without_a_key(in_process: InProcessApi) -> None:
    """401 at once, though 10 MB are announced, and the response says that the path is old."""
    app = in_process.http.app
    assert isinstance(app, FastAPI)
    with served(app, CountingProtocol) as port:
        for method, path in old():
            CountingProtocol.received = 0
            got = ask(port, method, filled(path), endless(), Content_Length=str(BODY), Content_Type="application/json")
            assert (got.status, got.headers["connection"]) == (401, "close"), (method, path)
            assert got.headers["deprecation"], path
            assert CountingProtocol.received < 2**20, (method, path)


def test_pages_are_pages_and_programs_are_answered(in_process: InProcessApi) -> None:
    """Paths that were the API's and are pages: who asks for HTML is a reader, everybody else a program."""
    for path in REUSED_AS_PAGES:
        program = in_process.http.get(path, headers=in_process.headers())
        assert program.headers["content-type"] == "application/json" and program.headers["deprecation"], path
        reader = in_process.http.get(path, headers={"Accept": "text/html"}, follow_redirects=False)
        assert reader.headers["location"] == f"/login?next=%2F{path[1:]}"
        page = in_process.http.get(path, headers=in_process.headers(page=True))
        assert page.headers["content-type"].startswith("text/html")
        assert "deprecation" not in reader.headers | page.headers


def test_old_addresses_of_pages_lead_to_the_new_ones(in_process: InProcessApi) -> None:
    """As redirects with the query, which browsers remember nowhere; a form of an open page is taken."""
    assert {path for path in PAGES if not path.endswith("/seen")} == set(OLD_PAGES)
    for path in OLD_PAGES:
        response = in_process.http.get(f"{filled(path)}?subject=a", follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (308, f"{filled(PAGES[path])}?subject=a")
        assert response.headers["cache-control"] == "no-store" and "content-security-policy" in response.headers
    seen = in_process.http.post(f"/second-looks/{NOBODY}/seen", headers=in_process.headers(), follow_redirects=False)
    assert seen.status_code == 404 and seen.headers["link"].startswith(f"</revised/{NOBODY}/seen>")


def test_old_paths_are_logged_without_ids_and_counted_under_the_new_ones(
    in_process: InProcessApi, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for an old path, however often it is asked for; none for a new one."""
    caplog.set_level(logging.WARNING, "api.legacy")
    for path in (f"/studies/{NOBODY}", "/studies/4711", "/nothing", f"/api/v1/studies/{NOBODY}", "/login"):
        in_process.http.get(path, headers=in_process.headers("admin"))
    (line,) = [vars(one) for one in caplog.records if one.name == "api.legacy"]
    assert (line["old"], line["new"]) == ("/studies/{study_id}", "/api/v1/studies/{study_id}")
    scraped = in_process.http.get("/metrics", headers=in_process.headers("operator")).text
    counted = set(re.findall(r'osteon_api_request_seconds_count\{method="GET",route="([^"]+)"', scraped))
    assert "/api/v1/studies/{study_id}" in counted and not (set(API_PATHS) - REUSED_AS_PAGES) & counted


def test_openapi_knows_the_new_paths_only(in_process: InProcessApi) -> None:
    """Everything but probes, metrics, DICOMweb and FHIR, whose paths standards name, stands under the prefix."""
    assert __version__.startswith("0.2."), "remove api/legacy.py and this file: old paths were promised until 0.3.0"
    paths = set(in_process.http.get("/openapi.json").json()["paths"])
    assert {path for path in paths if not path.startswith(("/api/v1/", "/dicom-web/", "/fhir/"))} == {
        "/healthz",
        "/readyz",
        "/metrics",
    }
