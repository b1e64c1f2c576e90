"""What an administrator asks of the API: /api/v1/operations, /api/v1/quarantine/release, /api/v1/keys, /metrics."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from cryptography.fernet import Fernet
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select, text, update

from api.app import create_app
from api.operations.schemas import Operations
from api.pages.operations import TABS, Tab
from api.pages.render import STATIC
from api.reasons import REASONS
from shared.db.tables import DeletionRow, KeyRow, QuarantineDecisionRow, RejectionRow, SiteRow, StudyRow, WorkerRow
from shared.domain.study import StudyStatus
from shared.errors import NotDicom, Reason
from shared.queries import operations
from shared.settings import Settings
from tests.conftest import SAMPLES, InProcessApi
from tests.hospital import change

RADIOGRAPH = (SAMPLES / "studies" / "01-hand" / "1-pa.dcm").read_bytes()


def overview(api: InProcessApi, role: str = "admin", **query: str) -> Operations:
    response = api.http.get("/api/v1/operations", headers=api.headers(role), params=query)
    assert response.status_code == 200, response.text
    return Operations.model_validate(response.json())


def set_aside(api: InProcessApi, reason: str = "object-missing") -> str:
    """One study in quarantine; its id."""
    (study,) = api.post({"radiograph.dcm": RADIOGRAPH}).json()["studies"]
    with api.database.transaction() as session:
        at = datetime.now(UTC)
        ids = session.scalars(select(StudyRow.id)).all()
        change(session, *ids, status="quarantined", reason=reason, attempts=4, quarantined_at=at, finished_at=at)
    return str(study["id"])


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/v1/operations"), ("POST", "/api/v1/quarantine/release"), ("GET", "/api/v1/keys"), ("POST", "/api/v1/keys"), ("GET", "/operations"),
     ("POST", "/api/v1/keys/3f0c2b1e-6f0e-4a53-9c1c-0d7b1d0e8a11/revoke")],
)  # fmt: skip
@pytest.mark.parametrize("role", ["submitter", "radiologist", None])
def test_only_administrators(in_process: InProcessApi, method: str, path: str, role: str | None) -> None:
    """Without a key 401, with any other role 403."""
    headers = in_process.headers(role) if role else {}
    response = in_process.http.request(method, path, headers=headers, json={})
    assert response.status_code == (403 if role else 401)


def test_an_empty_system_says_what_is_missing(in_process: InProcessApi) -> None:
    """Before anything has run the operations page is there, and names the two things that keep studies from being analysed."""
    view = overview(in_process)
    assert view.health.ready
    assert [one.waiting for one in view.queues] == [0, 0, 0]
    assert (view.workers, view.history, view.quarantine, view.bundles) == ([], [], [], [])
    assert any("No worker is alive" in trouble for trouble in view.troubles)
    assert any("No bundle is active" in trouble for trouble in view.troubles)


def test_what_stands_in_quarantine_is_told_and_released(in_process: InProcessApi) -> None:
    """Reason, attempts and time are shown; released as a whole reason, it waits again."""
    study = set_aside(in_process)
    view = overview(in_process)
    assert [(one.reason, one.studies) for one in view.quarantine] == [("object-missing", 1)]
    assert view.quarantine[0].detail == view.quarantined[0].detail == REASONS[Reason.OBJECT_MISSING]
    assert (str(view.quarantined[0].id), view.quarantined[0].attempts) == (study, 4)
    assert study in view.quarantined[0].flower_url
    release = {"reason": "object-missing"}
    response = in_process.http.post("/api/v1/quarantine/release", json=release, headers=in_process.headers())
    assert response.json() == {"released": 1, "left": 0}
    assert in_process.http.post("/api/v1/quarantine/release", json=release, headers=in_process.headers()).json() == {
        "released": 0, "left": 0,
    }  # fmt: skip
    view = overview(in_process)
    assert (view.quarantine, view.queues[1].waiting) == ([], 1)


def test_a_study_is_dismissed_with_a_reason(in_process: InProcessApi) -> None:
    """It leaves quarantine and list, the reason stays on record and can be read by nobody without the key."""
    study = set_aside(in_process)
    http, admin = in_process.http, in_process.headers("admin")
    assert [one["id"] for one in http.get("/api/v1/quarantine", headers=admin).json()["studies"]] == [study]
    for role, status in (("radiologist", 403), ("submitter", 403)):
        response = http.post(
            f"/api/v1/quarantine/{study}/dismiss", json={"reason": "x"}, headers=in_process.headers(role)
        )
        assert response.status_code == status
    assert http.post(f"/api/v1/quarantine/{study}/dismiss", json={"reason": " "}, headers=admin).status_code == 422
    response = http.post(f"/api/v1/quarantine/{study[:8]}/dismiss", json={"reason": "a phantom"}, headers=admin)
    assert response.json() == {"id": study, "decision": "dismissed"}
    assert http.get("/api/v1/quarantine", headers=admin).json() == {"studies": [], "next": None}
    view = overview(in_process)
    assert (view.quarantine, view.quarantined, view.counts[StudyStatus.QUARANTINED]) == ([], [], 0)
    release = {"reason": "object-missing"}
    assert http.post("/api/v1/quarantine/release", json=release, headers=admin).json()["released"] == 0
    with in_process.database.transaction() as session:
        row = session.scalars(select(QuarantineDecisionRow)).one()
        assert (row.decision, row.set_aside_for) == ("dismissed", "object-missing")
        assert b"phantom" not in row.why
        # set aside once more, after a late image: it is to be seen again
        session.execute(update(StudyRow).values(quarantined_at=func.clock_timestamp(), read_at=None))
    assert [one["id"] for one in http.get("/api/v1/quarantine", headers=admin).json()["studies"]] == [study]


def test_a_study_is_deleted_with_a_reason(in_process: InProcessApi) -> None:
    """All its rows go, the decision stays; only what is in quarantine can be deleted, and what is sent again comes anew."""
    study = set_aside(in_process)
    http, admin = in_process.http, in_process.headers("admin")
    with in_process.database.transaction() as session:
        change(session, *session.scalars(select(StudyRow.id)), status="analysed")
    assert http.post(f"/api/v1/quarantine/{study}/delete", json={"reason": "x"}, headers=admin).status_code == 409
    with in_process.database.transaction() as session:
        change(session, *session.scalars(select(StudyRow.id)), status="quarantined")
    response = http.post(f"/api/v1/quarantine/{study}/delete", json={"reason": "wrong patient"}, headers=admin)
    assert response.json() == {"id": study, "decision": "deleted"}
    assert http.get(f"/api/v1/studies/{study}", headers=admin).status_code == 404
    with in_process.database.transaction() as session:
        for table in ("studies", "instances", "identities"):
            assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0
        assert session.scalars(select(DeletionRow.reason)).all() == ["unusable"]
    assert in_process.post({"radiograph.dcm": RADIOGRAPH}).json()["stored"] == 1


def test_the_quarantine_is_paged(in_process: InProcessApi) -> None:
    """Each study comes once, the latest first, however few a page holds."""
    first = set_aside(in_process)
    with in_process.database.transaction() as session:
        for number in range(6):
            session.execute(
                text(
                    "INSERT INTO studies SELECT (jsonb_populate_record(s, jsonb_build_object('id', gen_random_uuid(), "
                    "'study_instance_uid', '2.25.' || :number, 'quarantined_at', now() - :number / 2 * interval '1 s')"
                    ")).* FROM studies s WHERE id = CAST(:first AS uuid)"
                ),
                {"number": number, "first": first},
            )
    seen: list[str] = []
    after = None
    while True:
        wanted = {"limit": 2} | ({"after": after} if after else {})
        page = in_process.http.get("/api/v1/quarantine", params=wanted, headers=in_process.headers("admin")).json()
        seen += [one["id"] for one in page["studies"]]
        after = page["next"]
        if after is None:
            break
    assert len(seen) == len(set(seen)) == 7


def test_a_study_is_named_by_its_first_digits(in_process: InProcessApi) -> None:
    """As lists show it: for its report, its release and the search; several alike are named, a stranger's is unknown."""
    study = set_aside(in_process)
    http, admin = in_process.http, in_process.headers("admin")
    for start in (study[:8], study[:8].upper(), study[:13], study.replace("-", ""), study):
        assert http.get(f"/api/v1/studies/{start}", headers=admin).json()["id"] == study
    found = http.post(
        "/api/v1/worklist/search", json={"number": study[:8]}, headers=in_process.headers("radiologist")
    ).json()
    assert [row["study_id"] for row in found["entries"]] == [study]
    assert http.post("/api/v1/worklist/search", json={"number": study[:4]}, headers=admin).json()["entries"] == []
    unknown = "0" if study[0] != "0" else "1"
    assert http.get(f"/api/v1/studies/{unknown * 8}", headers=admin).status_code == 404
    assert http.get("/api/v1/studies/xyz", headers=admin).status_code == 422
    twin = study[:-1] + ("0" if study[-1] != "0" else "1")
    with in_process.database.transaction() as session:
        session.execute(
            text(
                "INSERT INTO studies SELECT (jsonb_populate_record(s, jsonb_build_object('id', CAST(:twin AS text), "
                "'study_instance_uid', '2.25.4711'))).* FROM studies s"
            ),
            {"twin": twin},
        )
    response = http.post(f"/api/v1/studies/{study[:8]}/release", headers=admin)
    assert response.status_code == 400
    assert study in response.json()["detail"]
    assert twin in response.json()["detail"]
    assert http.post(f"/api/v1/studies/{study}/release", headers=admin).json()["status"] == "queued"


def test_short_ids_work_on_every_route_of_a_study(in_process: InProcessApi) -> None:
    """Whatever takes a whole id takes its first digits."""
    study = set_aside(in_process)
    paths = [
        path
        for path in in_process.http.get("/openapi.json").json()["paths"]
        if path.startswith("/api/v1/studies/{study_id}")
    ]
    assert {
        "/api/v1/studies/{study_id}/lock",
        "/api/v1/studies/{study_id}/frame",
        "/api/v1/studies/{study_id}/heatmap.json",
    } <= set(paths)
    asked = 0
    for path in paths:
        told = {
            name: in_process.http.get(path.format(study_id=name, token=study, entry_id=study, sop_instance_uid="1"), headers=in_process.headers())
            for name in (study, study[:8])
        }  # fmt: skip
        whole, short = told.values()
        # not their bytes: a report says when it was made
        assert [whole.status_code, whole.headers["content-type"]] == [short.status_code, short.headers["content-type"]]
        asked += whole.status_code != 405
    assert asked > 8
    pages = {
        name: in_process.http.get(f"/view/{name}", headers=in_process.headers(), follow_redirects=False)
        for name in (study[:8], "00000000", "nobody")
    }
    assert {name: page.status_code for name, page in pages.items()} == {study[:8]: 303, "00000000": 404, "nobody": 404}
    assert pages[study[:8]].headers["location"] == f"/view/{study}"


def test_no_two_landmarks_of_the_operations_page_have_one_name(in_process: InProcessApi) -> None:
    """Who goes from region to region hears which is which (axe: landmark-unique); and an empty table says that it is."""
    pages = []
    for tab in Tab:
        page = in_process.http.get(f"/operations?tab={tab}", headers=in_process.headers(page=True)).text
        named = dict(re.findall(r'id="([a-z-]+)"[^>]*>([^<]+)', page))
        regions = re.findall(r'<section[^>]*aria-labelledby="([a-z-]+)"', page)
        names = [named[one].strip() for one in regions] + re.findall(r'role="region" aria-label="([^"]+)"', page)
        assert len(names) == len(set(names)), sorted(names)
        assert ("Turnaround targets" in names) == (tab is Tab.QUEUE)
        pages.append(page)
    for words in ("No worker holds a study", "No study failed", "No worker was seen", "No study is in quarantine"):
        assert sum(words in page for page in pages) == 1, words


def test_a_tab_has_an_address_and_says_what_needs_somebody(in_process: InProcessApi) -> None:
    """An address opens its tab, an event filter that of the events, any other is refused; marks stand on tabs that are not open."""
    set_aside(in_process)

    def shown(address: str, role: str = "admin") -> str:
        answer = in_process.http.get(address, headers=in_process.headers(role, page=True))
        assert answer.status_code == 200, address
        return str(re.findall(r'id="tab-([a-z]+)"[^>]* aria-current="page"', answer.text))

    for address, tab in (
        ("/operations", "now"), ("/operations?range=24h", "now"), ("/operations?subject=a", "events"),
        ("/operations?tab=keys&subject=a", "keys"), *((f"/operations?tab={tab}", tab) for tab in Tab),
    ):  # fmt: skip
        assert shown(address) == shown(address, "operator") == f"['{tab}']", address
    assert in_process.http.get("/operations?tab=x", headers=in_process.headers(page=True)).status_code == 400

    def marks(role: str) -> dict[str, str]:
        page = in_process.http.get("/operations?tab=keys", headers=in_process.headers(role, page=True)).text
        return dict(re.findall(r'id="tab-([a-z]+)"[^>]*>[^<]*<span class="pill alarming" title="([^"]+)"', page))

    # no worker lives and no model is active: the first tab has all troubles, the others what is decided there
    assert marks("admin") == {"now": "2 troubles", "queue": "1 in quarantine", "models": "1 trouble"}
    assert marks("operator") == {"now": "2 troubles", "models": "1 trouble"}
    own = in_process.http.get("/operations?tab=models", headers=in_process.headers(page=True)).text
    assert "No bundle is active" in own
    assert "No worker is alive" not in own


def test_every_part_is_on_the_tab_that_links_to_it(in_process: InProcessApi) -> None:
    """An address with the id of a part, as documents and bookmarks have it, leads to the tab where the part stands."""
    for tab, (_, parts) in TABS.items():
        page = in_process.http.get(f"/operations?tab={tab}", headers=in_process.headers(page=True)).text
        assert [part for part in parts.split() if part != "targets" and f'id="{part}"' not in page] == []


def test_what_is_tried_again_is_listed(in_process: InProcessApi) -> None:
    """A study that failed is told of with its reason and the time of its next attempt, to its own site's administrator."""
    (study,) = in_process.post({"radiograph.dcm": RADIOGRAPH}).json()["studies"]
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    with in_process.database.transaction() as session:
        changed = {"status": "retrying", "reason": "object-missing", "attempts": 2, "not_before": at}
        change(session, UUID(study["id"]), **changed)
    view = overview(in_process)
    (one,) = view.retrying
    assert (str(one.id), one.reason, one.attempts, one.next_at) == (study["id"], "object-missing", 2, at)
    page = in_process.http.get("/operations?tab=queue", headers=in_process.headers(page=True)).text
    assert f'id="retrying-{study["id"]}"' in page
    assert "To be tried again" in page
    assert one.flower_url in page
    with in_process.database.transaction() as session:
        site = session.scalar(text("INSERT INTO sites (id, name) VALUES (gen_random_uuid(), 'other') RETURNING id"))
        session.execute(update(KeyRow).where(KeyRow.name == "admin").values(site_id=site))
    assert overview(in_process).retrying == []


def test_a_study_s_page_links_its_tasks_for_administrators(in_process: InProcessApi) -> None:
    """Whatever state a study is in, its page leads an administrator to its tasks in Flower, and nobody else."""
    study = set_aside(in_process)
    link = f"/tasks?name=osteon.analyse%20{study}"
    assert link in in_process.http.get(f"/view/{study}", headers=in_process.headers("admin")).text
    assert link not in in_process.http.get(f"/view/{study}", headers=in_process.headers("radiologist")).text


def test_another_site_sees_nothing(in_process: InProcessApi) -> None:
    """Studies, rejections and keys of one site do not show at another, and cannot be released from there."""
    set_aside(in_process)
    in_process.post({"x.dcm": b"nothing"})
    with in_process.database.transaction() as session:
        site = session.scalar(text("INSERT INTO sites (id, name) VALUES (gen_random_uuid(), 'other') RETURNING id"))
        session.execute(update(KeyRow).where(KeyRow.name == "admin").values(site_id=site))
    view = overview(in_process)
    assert (view.quarantine, view.quarantined, view.rejections, sum(view.counts.values())) == ([], [], [], 0)
    assert [key.name for key in view.keys] == ["admin"]
    response = in_process.http.post(
        "/api/v1/quarantine/release", json={"reason": "object-missing"}, headers=in_process.headers()
    )
    assert response.json()["released"] == 0
    with in_process.database.transaction() as session:
        other = session.scalar(select(KeyRow.id).where(KeyRow.name == "submitter"))
    assert in_process.http.post(f"/api/v1/keys/{other}/revoke", headers=in_process.headers()).status_code == 404


def test_refused_files_are_counted_without_their_names(in_process: InProcessApi) -> None:
    """Why files were refused is kept; what they were called, which may name a patient, is not."""
    for _ in range(2):
        assert in_process.post({"DOE^JANE.dcm": b"nothing", "radiograph.dcm": RADIOGRAPH}).status_code == 202
    (rejection,) = overview(in_process).rejections
    assert (rejection.reason, rejection.files, rejection.failure, rejection.text) == (
        "not-dicom",
        2,
        "0xC002",
        str(NotDicom()),
    )
    with in_process.database.transaction() as session:
        assert "DOE" not in str(vars(session.scalars(select(RejectionRow)).one()))


def test_a_replayed_receipt_is_not_counted_again(in_process: InProcessApi) -> None:
    """The same request with its idempotency key is one rejection."""
    for _ in range(2):
        in_process.post({"x.dcm": b"nothing"}, idempotency_key="one")
    assert overview(in_process).rejections[0].files == 1


def test_noting_a_refusal_fails_no_upload(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload is answered as it is, whatever becomes of the statistics."""
    monkeypatch.setattr("api.intake.receipts.record_rejections", lambda *_: 1 / 0)
    assert in_process.post({"x.dcm": b"nothing", "radiograph.dcm": RADIOGRAPH}).status_code == 202


def test_a_key_is_made_shown_once_and_revoked(in_process: InProcessApi) -> None:
    """The secret comes with the response that made it, works at once, stands in no list, and ends with the revocation."""
    made = in_process.http.post(
        "/api/v1/keys", json={"name": "night PACS", "role": "submitter"}, headers=in_process.headers()
    )
    assert made.status_code == 201
    secret, key_id = made.json()["secret"], made.json()["id"]
    use = {"Authorization": f"Bearer {secret}"}
    assert in_process.http.get(f"/api/v1/studies/{set_aside(in_process)}", headers=use).status_code == 200
    listed = in_process.http.get("/api/v1/keys", headers=in_process.headers())
    assert secret not in listed.text
    assert "sha256" not in listed.text
    revoked = in_process.http.post(f"/api/v1/keys/{key_id}/revoke", headers=in_process.headers())
    assert revoked.json()["revoked_at"]
    assert in_process.http.get("/api/v1/keys", headers=use).status_code == 401


@pytest.mark.parametrize("name", ["", "   ", "two\nlines", "x" * 65])
def test_a_key_needs_a_name_that_can_be_read(in_process: InProcessApi, name: str) -> None:
    """A name of nothing, of several lines or of a novel is refused."""
    wanted = {"name": name, "role": "submitter"}
    assert in_process.http.post("/api/v1/keys", json=wanted, headers=in_process.headers()).status_code == 422


def test_the_last_admin_key_stays(in_process: InProcessApi) -> None:
    """An administrator cannot lock the site out, and is told what to do first."""
    with in_process.database.transaction() as session:
        own = session.scalar(select(KeyRow.id).where(KeyRow.name == "admin"))
    response = in_process.http.post(f"/api/v1/keys/{own}/revoke", headers=in_process.headers())
    assert response.status_code == 409
    assert "make another one first" in response.json()["detail"]


def test_the_page_takes_one_connection_at_a_time(make_api: Callable[..., InProcessApi]) -> None:
    """With a pool of one connection the page comes at once: a request that held one and asked for more would hang."""
    api = make_api(database_pool_size=1)
    app: Any = api.http.app
    app.state.parts.database.engine.pool._timeout = 1
    for path in (
        "/api/v1/operations",
        *(f"/operations?tab={tab}" for tab in Tab),
        "/api/v1/keys",
        "/api/v1/backfill-runs",
    ):
        page = path.startswith("/operations")
        assert api.http.get(path, headers=api.headers(page=page)).status_code == 200, path


def test_a_stuck_system_says_so(in_process: InProcessApi) -> None:
    """Studies that wait with a living worker and no result, and an urgent one beyond two minutes, are told in words."""
    in_process.post({"radiograph.dcm": RADIOGRAPH}, priority="urgent")
    with in_process.database.transaction() as session:
        heartbeat = operations.Heartbeat(
            id=session.scalar(text("SELECT gen_random_uuid()")), host="here", pid=1, device="CPU", bundle="a",
            threads=1, taken=0, in_hand=0,
        )  # fmt: skip
        operations.write_heartbeat(session, heartbeat)
        session.execute(text("UPDATE analyses SET queued_at = now() - interval '20 minutes'"))
    troubles = overview(in_process).troubles
    assert any("none was finished for 20 min" in trouble for trouble in troubles)
    assert any("oldest urgent study" in trouble for trouble in troubles)
    assert not any("No worker" in trouble for trouble in troubles)
    with in_process.database.transaction() as session:
        session.execute(update(WorkerRow).values(seen_at=text("now() - interval '1 minute'")))
    view = overview(in_process)
    assert view.workers[0].state == "silent"
    assert any("No worker is alive" in trouble for trouble in view.troubles)


def scrape(api: InProcessApi, secret: str | None) -> Any:
    return api.http.get("/metrics", headers={"Authorization": f"Bearer {secret}"} if secret else {})


def test_metrics_are_not_for_everybody(make_api: Callable[..., InProcessApi]) -> None:
    """Without a token of the settings an operator's key opens them; nobody else's, no empty one, and no login cookie does."""
    api = make_api()
    for secret in ("", "guess"):
        assert scrape(api, secret).status_code == 401
    for role in ("radiologist", "submitter", "admin"):
        assert scrape(api, api.keys[role]).status_code == 403
    assert scrape(api, api.keys["operator"]).status_code == 200
    api.http.post("/login", data={"key": api.keys["admin"]})
    assert api.http.get("/operations", headers={"Accept": "text/html"}).status_code == 200
    assert scrape(api, "").status_code == 401


def test_the_token_opens_metrics_and_nothing_else(make_api: Callable[..., InProcessApi]) -> None:
    """A scraper needs no key that reads worklists."""
    api = make_api(metrics_token="a token for the tests")
    assert scrape(api, "a token for the tests").status_code == 200
    assert scrape(api, "a token for the test").status_code == 401
    other = api.http.get("/api/v1/operations", headers={"Authorization": "Bearer a token for the tests"})
    assert other.status_code == 401


def test_metrics_tell_routes_never_ids(in_process: InProcessApi) -> None:
    """Requests are counted by their route's template: a study's id in a label would be a new series a study."""
    study = set_aside(in_process)
    in_process.http.get(f"/api/v1/studies/{study}", headers=in_process.headers())
    in_process.http.get("/nothing/here")
    in_process.http.get(f"{STATIC}/osteon.css")
    body = scrape(in_process, in_process.keys["operator"]).text
    assert study not in body
    families = {family.name: family for family in text_string_to_metric_families(body)}
    routes = {sample.labels.get("route") for sample in families["osteon_api_request_seconds"].samples}
    assert {"/api/v1/studies/{study_id}", "/api/v1/studies", "/static", "none"} <= routes
    assert not [route for route in routes if route and re.search(r"[0-9a-f]{8}-", route)]


def test_metrics_tell_what_the_rows_say(in_process: InProcessApi) -> None:
    """Queues, quarantine, workers and files are told as they are."""

    def of(body: str, name: str, **labels: str) -> float:
        found = [
            sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    before = scrape(in_process, in_process.keys["operator"]).text
    in_process.post({"radiograph.dcm": RADIOGRAPH, "x.dcm": b"nothing"}, priority="urgent")
    body = scrape(in_process, in_process.keys["operator"]).text
    assert of(body, "osteon_queue_studies", queue="urgent") == 1
    assert of(body, "osteon_queue_oldest_seconds", queue="urgent") > 0
    assert of(body, "osteon_studies", status="queued") == 1
    assert of(body, "osteon_workers") == 0
    assert of(body, "osteon_store_free_bytes") > 0
    stored = of(body, "osteon_api_files_total", outcome="stored")
    assert stored == 1 + (of(before, "osteon_api_files_total", outcome="stored") if 'outcome="stored"' in before else 0)


def test_metrics_without_postgres() -> None:
    """While Postgres is away a scrape with the token still tells what the process knows."""
    settings = Settings(
        database_url="postgresql+psycopg2://x@127.0.0.1:1/x", identity_key=Fernet.generate_key().decode(),
        session_secret="a session secret for tests", metrics_token="a token for the tests",
    )  # fmt: skip
    http = TestClient(create_app(settings), raise_server_exceptions=False)
    response = http.get("/metrics", headers={"Authorization": "Bearer a token for the tests"})
    assert response.status_code == 200
    assert "process_resident_memory_bytes" in response.text
    assert "Postgres does not answer" in response.text


@pytest.mark.parametrize(
    ("reason", "fact", "words"),
    [
        ("worker-died", "4", "4 attempts ended without a result: the worker died or hung each time."),
        ("store-unavailable", "ENOSPC", "and that the store runs and has room. (ENOSPC)"),
        ("other", "as an earlier version said it", "as an earlier version said it"),
    ],
)
def test_people_read_sentences_and_programs_codes(in_process: InProcessApi, reason: str, fact: str, words: str) -> None:
    """Worklist, study, report and operations page say why in a sentence; responses hold the code beside it."""
    study = set_aside(in_process, reason)
    with in_process.database.transaction() as session:
        session.execute(update(StudyRow).values(reason_detail=fact))
    http, admin = in_process.http, in_process.headers("admin")
    for path in ("/", f"/view/{study}", f"/view/{study}/report", "/operations?tab=queue"):
        page = http.get(path, headers=admin | {"Accept": "text/html"})
        assert (page.status_code, words in page.text) == (200, True), path
    (entry,) = http.get("/api/v1/worklist", headers=admin).json()["entries"]
    (quarantined,) = http.get("/api/v1/quarantine", headers=admin).json()["studies"]
    (state,) = http.post("/api/v1/studies/states", json={"ids": [study]}, headers=admin).json()["studies"]
    report = http.get(f"/api/v1/studies/{study}", headers=admin).json()
    view = overview(in_process)
    for told in (entry, quarantined, state, report, *(one.model_dump() for one in view.quarantine + view.quarantined)):
        assert told["reason"] == reason
        assert told["detail"].endswith(words)


def test_a_site_chooses_what_its_results_state(in_process: InProcessApi) -> None:
    """All of it at once; what is refused changes nothing, and other sites keep theirs."""
    with in_process.database.transaction() as session:
        session.add(SiteRow(name="another"))

    def put(status: int, **body: object) -> Any:
        path, headers = "/api/v1/result-choices", in_process.headers()
        answer = in_process.http.put(path, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        return in_process.http.get(path, headers=headers).json()

    first = {"states_probability": False, "capture_modality": "OT"}
    chosen = {"states_probability": True, "capture_modality": "DX"}
    wrong: list[dict[str, object]] = [
        {}, {"states_probability": True}, {**first, "capture_modality": "PT"}, {**first, "states_probability": "yes"},
        {**first, "zone": "UTC"},
    ]  # fmt: skip
    for body in wrong:
        assert put(422, **body) == first
    assert put(200, **chosen) == chosen
    with in_process.database.transaction() as session:
        other = session.scalars(select(SiteRow).where(SiteRow.name == "another")).one()
        assert (other.states_probability, other.capture_modality) == (False, "OT")
