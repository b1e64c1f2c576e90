"""What an administrator asks of the API: /operations, /quarantine/release, /keys, /metrics."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.fernet import Fernet
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select, text, update

from api.main import create_app
from api.overview import Operations
from shared.repository import operations
from shared.settings import Settings
from shared.study import StudyStatus
from shared.tables import KeyRow, QuarantineDecisionRow, RefusalRow, StudyRow, WorkerRow
from tests.conftest import SAMPLES, InProcessApi

FILM = (SAMPLES / "studies" / "01-hand" / "1-pa.dcm").read_bytes()


def overview(api: InProcessApi, role: str = "admin", **query: str) -> Operations:
    answer = api.http.get("/operations", headers=api.headers(role), params=query)
    assert answer.status_code == 200, answer.text
    return Operations.model_validate(answer.json())


def set_aside(api: InProcessApi, reason: str = "the object is missing") -> str:
    """One study in quarantine; its id."""
    (study,) = api.post({"film.dcm": FILM}).json()["studies"]
    with api.database.transaction() as session:
        session.execute(
            update(StudyRow).values(status="quarantined", reason=reason, attempts=4, quarantined_at=datetime.now(UTC))
        )
    return str(study["id"])


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/operations"), ("POST", "/quarantine/release"), ("GET", "/keys"), ("POST", "/keys"), ("GET", "/admin"),
     ("POST", "/keys/3f0c2b1e-6f0e-4a53-9c1c-0d7b1d0e8a11/revoke")],
)  # fmt: skip
@pytest.mark.parametrize("role", ["submitter", "radiologist", None])
def test_only_administrators(in_process: InProcessApi, method: str, path: str, role: str | None) -> None:
    """Without a key 401, with any other role 403."""
    headers = in_process.headers(role) if role else {}
    answer = in_process.http.request(method, path, headers=headers, json={})
    assert answer.status_code == (403 if role else 401)


def test_an_empty_system_says_what_is_missing(in_process: InProcessApi) -> None:
    """Before anything has run the overview answers, and names the two things that keep studies from being analysed."""
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
    assert [(one.reason, one.studies) for one in view.quarantine] == [("the object is missing", 1)]
    assert (str(view.quarantined[0].id), view.quarantined[0].attempts) == (study, 4)
    assert study in view.quarantined[0].flower_url
    release = {"reason": "the object is missing"}
    answer = in_process.http.post("/quarantine/release", json=release, headers=in_process.headers())
    assert answer.json() == {"released": 1, "left": 0}
    assert in_process.http.post("/quarantine/release", json=release, headers=in_process.headers()).json() == {
        "released": 0, "left": 0,
    }  # fmt: skip
    view = overview(in_process)
    assert (view.quarantine, view.queues[1].waiting) == ([], 1)


def test_a_study_is_dismissed_with_a_reason(in_process: InProcessApi) -> None:
    """It leaves quarantine and list, the reason stays on record and can be read by nobody without the key."""
    study = set_aside(in_process)
    http, admin = in_process.http, in_process.headers("admin")
    assert [one["id"] for one in http.get("/quarantine", headers=admin).json()["studies"]] == [study]
    for role, status in (("radiologist", 403), ("submitter", 403)):
        answer = http.post(f"/quarantine/{study}/dismiss", json={"reason": "x"}, headers=in_process.headers(role))
        assert answer.status_code == status
    assert http.post(f"/quarantine/{study}/dismiss", json={"reason": " "}, headers=admin).status_code == 422
    answer = http.post(f"/quarantine/{study[:8]}/dismiss", json={"reason": "a phantom"}, headers=admin)
    assert answer.json() == {"id": study, "decision": "dismissed"}
    assert http.get("/quarantine", headers=admin).json() == {"studies": [], "next": None}
    view = overview(in_process)
    assert (view.quarantine, view.quarantined, view.counts[StudyStatus.QUARANTINED]) == ([], [], 0)
    release = {"reason": "the object is missing"}
    assert http.post("/quarantine/release", json=release, headers=admin).json()["released"] == 0
    with in_process.database.transaction() as session:
        row = session.scalars(select(QuarantineDecisionRow)).one()
        assert (row.decision, row.set_aside_for) == ("dismissed", "the object is missing")
        assert b"phantom" not in row.why
        # set aside once more, after a late image: it is to be seen again
        session.execute(update(StudyRow).values(quarantined_at=func.clock_timestamp(), read_at=None))
    assert [one["id"] for one in http.get("/quarantine", headers=admin).json()["studies"]] == [study]


def test_a_study_is_deleted_with_a_reason(in_process: InProcessApi) -> None:
    """All its rows go, the decision stays; only what is in quarantine can be deleted, and what is sent again comes anew."""
    study = set_aside(in_process)
    http, admin = in_process.http, in_process.headers("admin")
    with in_process.database.transaction() as session:
        session.execute(update(StudyRow).values(status="analysed"))
    assert http.post(f"/quarantine/{study}/delete", json={"reason": "x"}, headers=admin).status_code == 409
    with in_process.database.transaction() as session:
        session.execute(update(StudyRow).values(status="quarantined"))
    answer = http.post(f"/quarantine/{study}/delete", json={"reason": "wrong patient"}, headers=admin)
    assert answer.json() == {"id": study, "decision": "deleted"}
    assert http.get(f"/studies/{study}", headers=admin).status_code == 404
    with in_process.database.transaction() as session:
        for table in ("studies", "instances", "identities"):
            assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0
        assert session.scalars(select(QuarantineDecisionRow.decision)).all() == ["deleted"]
    assert in_process.post({"film.dcm": FILM}).json()["stored"] == 1


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
        page = in_process.http.get("/quarantine", params=wanted, headers=in_process.headers("admin")).json()
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
        assert http.get(f"/studies/{start}", headers=admin).json()["id"] == study
    found = http.post("/worklist/search", json={"number": study[:8]}, headers=in_process.headers("radiologist")).json()
    assert [row["study_id"] for row in found["entries"]] == [study]
    assert http.post("/worklist/search", json={"number": study[:4]}, headers=admin).json()["entries"] == []
    unknown = "0" if study[0] != "0" else "1"
    assert http.get(f"/studies/{unknown * 8}", headers=admin).status_code == 404
    assert http.get("/studies/xyz", headers=admin).status_code == 422
    twin = study[:-1] + ("0" if study[-1] != "0" else "1")
    with in_process.database.transaction() as session:
        session.execute(
            text(
                "INSERT INTO studies SELECT (jsonb_populate_record(s, jsonb_build_object('id', CAST(:twin AS text), "
                "'study_instance_uid', '2.25.4711'))).* FROM studies s"
            ),
            {"twin": twin},
        )
    answer = http.post(f"/studies/{study[:8]}/release", headers=admin)
    assert answer.status_code == 400
    assert study in answer.json()["detail"]
    assert twin in answer.json()["detail"]
    assert http.post(f"/studies/{study}/release", headers=admin).json()["status"] == "queued"


def test_what_is_tried_again_is_listed(in_process: InProcessApi) -> None:
    """A study that failed is told of with its reason and the time of its next attempt, to its own site's administrator."""
    (study,) = in_process.post({"film.dcm": FILM}).json()["studies"]
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    with in_process.database.transaction() as session:
        changed = {"status": "retrying", "reason": "the object is missing", "attempts": 2, "not_before": at}
        session.execute(update(StudyRow).values(changed))
    view = overview(in_process)
    (one,) = view.retrying
    assert (str(one.id), one.reason, one.attempts, one.next_at) == (study["id"], "the object is missing", 2, at)
    page = in_process.http.get("/admin", headers=in_process.headers("admin")).text
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
    link = f"/tasks?name=analyse_study%20{study}"
    assert link in in_process.http.get(f"/view/{study}", headers=in_process.headers("admin")).text
    assert link not in in_process.http.get(f"/view/{study}", headers=in_process.headers("radiologist")).text


def test_another_site_sees_nothing(in_process: InProcessApi) -> None:
    """Studies, refusals and keys of one site do not show at another, and cannot be released from there."""
    set_aside(in_process)
    in_process.post({"x.dcm": b"nothing"})
    with in_process.database.transaction() as session:
        site = session.scalar(text("INSERT INTO sites (id, name) VALUES (gen_random_uuid(), 'other') RETURNING id"))
        session.execute(update(KeyRow).where(KeyRow.name == "admin").values(site_id=site))
    view = overview(in_process)
    assert (view.quarantine, view.quarantined, view.refusals, sum(view.counts.values())) == ([], [], [], 0)
    assert [key.name for key in view.keys] == ["admin"]
    answer = in_process.http.post(
        "/quarantine/release", json={"reason": "the object is missing"}, headers=in_process.headers()
    )
    assert answer.json()["released"] == 0
    with in_process.database.transaction() as session:
        other = session.scalar(select(KeyRow.id).where(KeyRow.name == "submitter"))
    assert in_process.http.post(f"/keys/{other}/revoke", headers=in_process.headers()).status_code == 404


def test_refused_files_are_counted_without_their_names(in_process: InProcessApi) -> None:
    """Why files were refused is kept; what they were called, which may name a patient, is not."""
    for _ in range(2):
        assert in_process.post({"DOE^JANE.dcm": b"nothing", "film.dcm": FILM}).status_code == 202
    (refusal,) = overview(in_process).refusals
    assert (refusal.reason, refusal.files, refusal.failure) == ("not-dicom", 2, "0xC000")
    with in_process.database.transaction() as session:
        assert "DOE" not in str(vars(session.scalars(select(RefusalRow)).one()))


def test_a_replayed_receipt_is_not_counted_again(in_process: InProcessApi) -> None:
    """The same request with its idempotency key is one refusal."""
    for _ in range(2):
        in_process.post({"x.dcm": b"nothing"}, idempotency_key="one")
    assert overview(in_process).refusals[0].files == 1


def test_noting_a_refusal_fails_no_upload(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload is answered as it is, whatever becomes of the statistics."""
    monkeypatch.setattr("api.uploads.note_refusals", lambda *_: 1 / 0)
    assert in_process.post({"x.dcm": b"nothing", "film.dcm": FILM}).status_code == 202


def test_a_key_is_made_shown_once_and_revoked(in_process: InProcessApi) -> None:
    """The secret comes with the answer that made it, works at once, stands in no list, and ends with the revocation."""
    made = in_process.http.post("/keys", json={"name": "night PACS", "role": "submitter"}, headers=in_process.headers())
    assert made.status_code == 201
    secret, key_id = made.json()["secret"], made.json()["id"]
    use = {"Authorization": f"Bearer {secret}"}
    assert in_process.http.get(f"/studies/{set_aside(in_process)}", headers=use).status_code == 200
    listed = in_process.http.get("/keys", headers=in_process.headers())
    assert secret not in listed.text
    assert "sha256" not in listed.text
    revoked = in_process.http.post(f"/keys/{key_id}/revoke", headers=in_process.headers())
    assert revoked.json()["revoked_at"]
    assert in_process.http.get("/keys", headers=use).status_code == 401


@pytest.mark.parametrize("name", ["", "   ", "two\nlines", "x" * 65])
def test_a_key_needs_a_name_that_can_be_read(in_process: InProcessApi, name: str) -> None:
    """A name of nothing, of several lines or of a novel is refused."""
    wanted = {"name": name, "role": "submitter"}
    assert in_process.http.post("/keys", json=wanted, headers=in_process.headers()).status_code == 422


def test_the_last_admin_key_stays(in_process: InProcessApi) -> None:
    """An administrator cannot lock the site out, and is told what to do first."""
    with in_process.database.transaction() as session:
        own = session.scalar(select(KeyRow.id).where(KeyRow.name == "admin"))
    answer = in_process.http.post(f"/keys/{own}/revoke", headers=in_process.headers())
    assert answer.status_code == 409
    assert "Make a new admin key first" in answer.json()["detail"]


def test_the_page_takes_one_connection_at_a_time(make_api: Callable[..., InProcessApi]) -> None:
    """With a pool of one connection the page comes at once: a request that held one and asked for more would hang."""
    api = make_api(database_pool_size=1)
    app: Any = api.http.app
    app.state.parts.database.engine.pool._timeout = 1
    for path in ("/operations", "/admin", "/keys", "/backlog"):
        assert api.http.get(path, headers=api.headers()).status_code == 200, path


def test_a_stuck_system_says_so(in_process: InProcessApi) -> None:
    """Studies that wait with a living worker and no answer, and an urgent one beyond two minutes, are told in words."""
    in_process.post({"film.dcm": FILM}, priority="urgent")
    with in_process.database.transaction() as session:
        pulse = operations.Pulse(
            id=session.scalar(text("SELECT gen_random_uuid()")), host="here", pid=1, device="CPU", bundle="a",
            threads=1, taken=0, in_hand=0,
        )  # fmt: skip
        operations.beat(session, pulse)
        session.execute(text("UPDATE studies SET queued_at = now() - interval '20 minutes'"))
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


def test_metrics_are_not_for_strangers(make_api: Callable[..., InProcessApi]) -> None:
    """Without a token of the settings an admin's key opens them; nobody else's, no empty one, and no login cookie does."""
    api = make_api()
    for secret in ("", "guess", api.keys["radiologist"], api.keys["submitter"]):
        assert scrape(api, secret).status_code == 401
    assert scrape(api, api.keys["admin"]).status_code == 200
    api.http.post("/login", data={"key": api.keys["admin"]})
    assert api.http.get("/admin").status_code == 200
    assert scrape(api, "").status_code == 401


def test_the_token_opens_metrics_and_nothing_else(make_api: Callable[..., InProcessApi]) -> None:
    """A scraper needs no key that reads worklists."""
    api = make_api(metrics_token="a token for the tests")
    assert scrape(api, "a token for the tests").status_code == 200
    assert scrape(api, "a token for the test").status_code == 401
    other = api.http.get("/operations", headers={"Authorization": "Bearer a token for the tests"})
    assert other.status_code == 401


def test_metrics_tell_routes_never_ids(in_process: InProcessApi) -> None:
    """Requests are counted by their route's template: a study's id in a label would be a new series a study."""
    study = set_aside(in_process)
    in_process.http.get(f"/studies/{study}", headers=in_process.headers())
    in_process.http.get("/nothing/here")
    in_process.http.get("/static/osteon.css")
    body = scrape(in_process, in_process.keys["admin"]).text
    assert study not in body
    families = {family.name: family for family in text_string_to_metric_families(body)}
    routes = {sample.labels.get("route") for sample in families["osteon_api_request_seconds"].samples}
    assert {"/studies/{study_id}", "/studies", "/static", "none"} <= routes
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

    before = scrape(in_process, in_process.keys["admin"]).text
    in_process.post({"film.dcm": FILM, "x.dcm": b"nothing"}, priority="urgent")
    body = scrape(in_process, in_process.keys["admin"]).text
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
    answer = http.get("/metrics", headers={"Authorization": "Bearer a token for the tests"})
    assert answer.status_code == 200
    assert "process_resident_memory_bytes" in answer.text
    assert "Postgres does not answer" in answer.text
