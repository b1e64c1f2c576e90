"""Deleting studies and images: nothing of them is left but what must stay, and no byte is lost or left behind."""

import io
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Uuid, func, select, text, update
from typer.testing import CliRunner

from infra import cli
from shared.db.clock import db_now
from shared.db.tables import (
    AuditEventRow,
    BackfillRunRow,
    Base,
    FeedbackRow,
    FindingRow,
    IdentityReadRow,
    InstanceRow,
    LeftObjectRow,
    StudyRow,
)
from shared.domain.analysis import Claim, Purpose
from shared.domain.deletion import DeletionReason
from shared.domain.feedback import check_chain
from shared.domain.security import Role
from shared.domain.study import StudyStatus
from shared.errors import StoreUnavailable
from shared.object_removal import remove_left_objects
from shared.queries import analyses, deletions, feedback
from shared.queries.access import Key, add_key, find_key
from shared.storage import DirectoryStore, Store, frame_key, open_store, original_key, preview_key, sha256_of
from tests.conftest import InProcessApi
from tests.feedback_data import ONE, analyse, say, study_file
from tests.forked import run_program
from tests.hospital import IDENTITY_KEY, Hospital
from tests.integration.test_held_files import ROE, choose, image, sent, waiting
from tests.pace import until
from tests.store_files import keys_of

WHY = {"reason": "wrong-patient"}
MAY_STAY = {"feedback", "identity_reads", "deletions", "audit_events", "quarantine_decisions"}


def store_of(api: InProcessApi) -> DirectoryStore:
    store: DirectoryStore = api.http.app.state.parts.store  # type: ignore[attr-defined]
    return store


def objects(api: InProcessApi) -> set[str]:
    """What lies in the store, by key."""
    return set(keys_of(store_of(api).folder))


def delete(api: InProcessApi, path: str, role: str = "admin", note: str = "", **query: str) -> Any:
    body = {"note": note} if note else None
    return api.http.request("DELETE", path, params=WHY | query, json=body, headers=api.headers(role))


def tables_with(api: InProcessApi, *ids: UUID) -> set[str]:
    """The tables that hold one of these ids in any column, JSON too."""
    found = set()
    with api.database.transaction() as session:
        for table in Base.metadata.sorted_tables:
            rows = session.execute(select(text("t::text")).select_from(text(f"{table.name} t"))).scalars()
            told = "".join(rows)
            if any(str(one) in told for one in ids):
                found.add(table.name)
    assert any(isinstance(column.type, Uuid) for column in StudyRow.__table__.columns)
    return found


# -- what goes, and what stays -------------------------------------------------------------------------------------


def test_nothing_of_a_study_is_left_but_what_must_stay(in_process: InProcessApi) -> None:
    """Rows, identity, search, pictures, corrections, claims and receipts go; feedback log and audit stay; it comes anew."""
    api = in_process
    first, second = image(1, 1), image(1, 2)
    study = sent(api, first, second, idempotency_key="day")[0]["study_id"]
    sent(api, image(1, 1, PatientName="DOE^JANET"))
    (held,) = waiting(api)
    assert choose(api, held["id"], "apply").status_code == 200
    sent(api, image(1, 2, PatientName="DOE^JANETTE"))  # a correction that waits
    analyse(api, study)
    mine = api.headers("radiologist")
    assert say(api, study, **ONE | {"verdict": "supplement", "text": "Mrs Doe, room 9"}).status_code == 201
    assert api.http.post(f"/api/v1/studies/{study}/lock", headers=mine).status_code == 200
    api.http.get(f"/view/{study}", headers=mine)
    for content in (first, second):
        for key in (preview_key(sha256_of(content), 1), frame_key(sha256_of(content), 1)):
            store_of(api).put(key, io.BytesIO(b"x"), 1)
    with api.database.transaction() as session:
        instances = session.scalars(select(InstanceRow.id)).all()
        read = session.scalar(select(func.count()).select_from(IdentityReadRow))
    assert read
    assert len(objects(api)) == 12

    response = delete(api, f"/api/v1/studies/{study[:8]}", note="the console was set to another patient")
    assert response.json() == {"id": study, "whole": True, "images": 2, "feedback_entries": 1, "answers": 1}
    assert objects(api) == set()
    assert tables_with(api, UUID(study), *instances) == {"feedback", "identity_reads", "deletions", "audit_events"}
    with api.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(IdentityReadRow)) == read
        (entry,) = session.scalars(select(FeedbackRow)).all()
        assert (entry.words, len(entry.words_sha256 or "")) == (None, 64)
        assert check_chain(feedback.chain_entries(session, api.key().site_id)).problems == []
        assert b"console" not in b"".join(session.scalars(text("SELECT note FROM deletions")))
        event = session.scalars(select(AuditEventRow).where(AuditEventRow.kind == "study-deleted")).one()
        assert (event.detail["reason"], event.detail["images"], str(event.study_id)) == ("wrong-patient", 2, study)
    for path in (
        f"/api/v1/studies/{study}",
        f"/view/{study}",
        f"/api/v1/studies/{study}/feedback",
        f"/view/{study}/report",
    ):
        assert api.http.get(path, headers=mine).status_code == 404, path
    for number in ("4711", study[:8]):
        found = api.http.post("/api/v1/worklist/search", json={"number": number}, headers=mine).json()
        assert (found["entries"], found["held"]) == ([], [])
    assert delete(api, f"/api/v1/studies/{study}").status_code == 404
    (past,) = api.http.get("/api/v1/deletions", headers=api.headers()).json()
    assert (past["id"], past["reason"], past["images"]) == (study, "wrong-patient", 2)

    again = sent(api, first, second, idempotency_key="day")
    assert [line["outcome"] for line in again] == ["stored", "stored"]
    assert again[0]["study_id"] != study
    assert store_of(api).get(original_key(sha256_of(first))) == first


def test_who_may_and_why(in_process: InProcessApi) -> None:
    """An admin of the site, with a reason that is a code; a note is bounded; nothing else changes anything."""
    api = in_process
    study = sent(api, image())[0]["study_id"]
    for role in ("submitter", "radiologist", "operator"):
        assert delete(api, f"/api/v1/studies/{study}", role).status_code == 403
    assert delete(api, f"/api/v1/studies/{study}", reason="because").status_code == 422
    assert delete(api, f"/api/v1/studies/{study}", note="x" * 501).status_code == 422
    missing = api.http.request("DELETE", f"/api/v1/studies/{study}", headers=api.headers())
    assert missing.status_code == 422
    with api.database.transaction() as session:
        add_key(session, "elsewhere", "admin", Role.ADMIN, "osk_of_another_site")
    foreign = api.http.request(
        "DELETE", f"/api/v1/studies/{study}", params=WHY, headers={"Authorization": "Bearer osk_of_another_site"}
    )
    assert foreign.status_code == 404
    assert api.http.get(f"/api/v1/studies/{study}", headers=api.headers()).status_code == 200


def test_a_file_of_another_patient_is_decided_on_first(in_process: InProcessApi) -> None:
    """It may be all that there is of them. One that became another study stays that, and its study can be deleted too."""
    api = in_process
    study = sent(api, image())[0]["study_id"]
    other = image(1, 2, **ROE)
    sent(api, other)
    refused = delete(api, f"/api/v1/studies/{study}")
    assert (refused.status_code, refused.json()["code"]) == (409, "files-wait")
    (held,) = waiting(api)
    (made,) = choose(api, held["id"], "another-study").json()["study_ids"]
    assert delete(api, f"/api/v1/studies/{study}").status_code == 200
    assert sent(api, other)[0] | {"text": None} == {
        "file": "0.dcm", "outcome": "duplicate", "reason": "another-study", "failure": None, "text": None, "study_id": made,
        "sop_instance_uid": sent(api, other)[0]["sop_instance_uid"],
    }  # fmt: skip
    page = api.http.get("/operations?tab=queue", headers=api.headers(page=True))
    assert page.status_code == 200
    assert api.http.get("/api/v1/held-files", headers=api.headers()).json()["decided"][0]["study_id"] is None
    assert delete(api, f"/api/v1/studies/{made}").status_code == 200
    assert objects(api) == set()
    assert sent(api, other)[0]["outcome"] == "stored"


def test_one_image_is_deleted(in_process: InProcessApi) -> None:
    """The study is summed up from the others, feedback on that image is not shown any more; the last takes the study."""
    api = in_process
    contents = [study_file(1, 1), study_file(1, 2)]
    study = api.post({"a": contents[0], "b": contents[1]}).json()["studies"][0]["id"]
    analyse(api, study)
    say(api, study, **ONE | {"verdict": "supplement", "text": "words", "marks": [
        {"image": 1, "frame": 1, "x": 0.1, "y": 0.1, "width": 0.2, "height": 0.2}]})  # fmt: skip
    report = api.http.get(f"/api/v1/studies/{study}", headers=api.headers()).json()
    gone, left = (one["sop_instance_uid"] for one in report["instances"])
    assert delete(api, f"/api/v1/studies/{study}/images/2.25.999").status_code == 404
    response = delete(api, f"/api/v1/studies/{study}/images/{gone}")
    assert response.json() == {"id": study, "whole": False, "images": 1, "feedback_entries": 1, "answers": 1}
    report = api.http.get(f"/api/v1/studies/{study}", headers=api.headers()).json()
    assert [one["sop_instance_uid"] for one in report["instances"]] == [left]
    assert (report["status"], report["assessment"]) == ("queued", None)
    assert len([key for key in objects(api) if key.startswith("originals")]) == 1
    assert api.http.get(f"/api/v1/studies/{study}/feedback", headers=api.headers("radiologist")).json()["entries"] == []
    assert api.http.get(f"/view/{study}", headers=api.headers("radiologist")).status_code == 200
    with api.database.transaction() as session:
        assert session.scalars(select(FeedbackRow.words)).all() == [None]
        assert check_chain(feedback.chain_entries(session, api.key().site_id)).problems == []
    analyse(api, study)  # a worker finds that all is said, and sums it up
    report = api.http.get(f"/api/v1/studies/{study}", headers=api.headers()).json()
    assert (report["status"], report["assessment"]) == ("analysed", "positive")
    assert delete(api, f"/api/v1/studies/{study}/images/{left}").json()["whole"]
    assert (objects(api), tables_with(api, UUID(study)) - MAY_STAY) == (set(), set())


def test_words_cannot_be_taken_from_an_entry_whose_study_is_there(in_process: InProcessApi) -> None:
    """Postgres refuses every change of the feedback log but that of a deletion, and the chain tells who goes round it."""
    api = in_process
    study = api.post({"a": study_file(1)}).json()["studies"][0]["id"]
    analyse(api, study)
    say(api, study, **ONE | {"verdict": "supplement", "text": "words"})
    for change in ("words = NULL", "verdict = 'agree'", "words = NULL, region = 'leg'"):
        with pytest.raises(Exception, match="never changed"):
            api.as_owner(f"UPDATE feedback SET {change}")
    delete(api, f"/api/v1/studies/{study}")
    for change in ("verdict = 'agree'", "words_sha256 = NULL"):
        with pytest.raises(Exception, match="never changed"):
            api.as_owner(f"UPDATE feedback SET {change}")
    api.as_owner(
        "ALTER TABLE feedback DISABLE TRIGGER feedback_stay", "UPDATE feedback SET words_sha256 = repeat('0', 64)"
    )
    with api.database.transaction() as session:
        problems = check_chain(feedback.chain_entries(session, api.key().site_id)).problems
    assert problems == ["entry 1 was changed after it was written"]


# -- workers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def admin(hospital: Hospital) -> Key:
    with hospital.database.transaction() as session:
        found = find_key(session, "a secret")
    assert found is not None
    return found


def gone(hospital: Hospital, admin: Key, study: UUID, uid: str | None = None) -> None:
    with hospital.database.transaction() as session:
        if uid is None:
            deletions.delete_study(session, hospital.vault, admin, study, DeletionReason.TEST)
        else:
            deletions.delete_image(session, hospital.vault, admin, study, uid, DeletionReason.TEST)


def test_a_worker_that_holds_the_study_writes_nothing(hospital: Hospital, admin: Key) -> None:
    """Its results come to nothing, whatever else it writes in the same transaction; a message that waits too."""
    studies = [hospital.study(2) for _ in range(2)]
    claims = [hospital.claim(study) for study in studies]
    gone(hospital, admin, studies[0])
    with hospital.database.transaction() as session:
        done = [analyses.AnalysisResult(claim, hospital.results(claim)) for claim in claims]
        assert analyses.finish(session, done, db_now(session)) == [False, True]
    assert hospital.claim(studies[0]) is None
    assert hospital.row(studies[1]).status == StudyStatus.ANALYSED
    with hospital.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(FindingRow)) == 2


def test_a_worker_that_holds_a_study_of_which_an_image_goes(hospital: Hospital, admin: Key) -> None:
    """Its lease is gone; the study is analysed anew without the image."""
    study = hospital.study(2)
    held = hospital.claim(study)
    first, second = hospital.instances(study)
    gone(hospital, admin, study, first.sop_instance_uid)
    assert not hospital.finish(held, hospital.results(held))
    assert hospital.findings(study) == []
    again = hospital.claim(study)
    assert [one.id for one in again.instances] == [second.id]
    assert hospital.finish(again, hospital.results(again))
    assert (hospital.row(study).status, hospital.row(study).images) == (StudyStatus.ANALYSED, 1)


@pytest.mark.parametrize("whole", [True, False])
def test_a_rerun_comes_to_nothing(hospital: Hospital, admin: Key, *, whole: bool) -> None:
    """One that a worker holds, of a deleted study or of one that lost an image."""
    study = hospital.study(2)
    hospital.finish(claim := hospital.claim(study), hospital.results(claim))
    hospital.add_bundle("b")
    with hospital.database.transaction() as session:
        run = BackfillRunRow(started_at=db_now(session), bundle="b")
        session.add(run)
        session.flush()
        analyses.request_reruns(session, run.id, "b", Purpose.RERUN, [(study, hospital.site_id)], db_now(session))
    with hospital.database.transaction() as session:
        now = db_now(session)
        (held,) = analyses.claim(session, [hospital.rerun(study, "b").id], "b", now, timedelta(60), max_attempts=4)
    assert isinstance(held, Claim)
    gone(hospital, admin, study, None if whole else hospital.instances(study)[0].sop_instance_uid)
    with hospital.database.transaction() as session:
        done = analyses.AnalysisResult(held, hospital.results(held, "b"))
        assert analyses.finish(session, [done], db_now(session)) == [False]
        assert session.scalar(select(func.count()).select_from(FindingRow).where(FindingRow.bundle == "b")) == 0


# -- bytes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


def test_the_last_one_who_holds_a_content_takes_its_bytes_along(hospital: Hospital, admin: Key, store: Store) -> None:
    """Two studies, of one site or of two, may hold the same bytes: counted, in either store."""
    content = study_file(1)
    key = original_key(sha256_of(content))
    studies = [hospital.stored(store, [content], sop_instance_uid=f"2.25.{number}") for number in (1, 2)]
    with hospital.database.transaction() as session:
        add_key(session, "elsewhere", "admin", Role.ADMIN, "elsewhere")
        other = find_key(session, "elsewhere")
    assert other is not None
    elsewhere = Hospital(hospital.database, other.site_id)
    theirs = elsewhere.stored(store, [content])
    for study in studies:
        gone(hospital, admin, study)
        assert remove_left_objects(hospital.database, store) == 1
        assert store.exists(key)
    gone(elsewhere, other, theirs)
    remove_left_objects(hospital.database, store)
    assert not store.exists(key)


def test_pictures_that_come_later_go_later(hospital: Hospital, admin: Key, store: Store) -> None:
    """A worker that held the study may write a preview after the deletion: the store is swept again, then forgets it."""
    content = study_file(1)
    study = hospital.stored(store, [content])
    preview = preview_key(sha256_of(content), 1)
    gone(hospital, admin, study)
    remove_left_objects(hospital.database, store)
    for _ in range(2):
        assert remove_left_objects(hospital.database, store) == 0  # not yet
        store.put(preview, io.BytesIO(b"x"), 1)
        with hospital.database.transaction() as session:
            session.execute(update(LeftObjectRow).values(due_at=func.clock_timestamp()))
        assert remove_left_objects(hospital.database, store) == 1
        assert not store.exists(preview)
    with hospital.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(LeftObjectRow)) == 0


def test_an_upload_keeps_what_it_counts_on(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it writes its rows no sweep takes a content; one that went before its rows were written is stored again."""
    api = in_process
    content = image()
    monkeypatch.setattr("api.studies.deletions.sweep", lambda _: None)
    delete(api, f"/api/v1/studies/{sent(api, content)[0]['study_id']}")
    assert store_of(api).exists(original_key(sha256_of(content)))
    with api.database.transaction() as session:
        assert deletions.protect_objects(session, [sha256_of(content)]) == [sha256_of(content)]
        assert remove_left_objects(api.database, store_of(api)) == 0
    swept = []
    count_on = deletions.protect_objects

    def sweep_first(*given: Any) -> list[str]:
        swept.append(remove_left_objects(api.database, store_of(api)))
        assert not store_of(api).exists(original_key(sha256_of(content)))
        return count_on(*given)

    with monkeypatch.context() as racing:
        racing.setattr(deletions, "protect_objects", sweep_first)
        assert sent(api, content)[0]["outcome"] == "stored"
    assert swept == [1]
    assert store_of(api).get(original_key(sha256_of(content))) == content


KILLED = """
import os, signal, sys
from uuid import UUID
from shared import object_removal
from shared.domain.deletion import DeletionReason
from shared.db.engine import Database
from shared.queries import deletions
from shared.queries.access import Vault, find_key
from shared.storage import open_store
url, store_url, key, study, when = sys.argv[1:]
database, store = Database(url, 2), open_store(store_url)
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with database.transaction() as session:
    admin = find_key(session, "a secret")
    deletions.delete_study(session, Vault(key), admin, UUID(study), DeletionReason.TEST)
    if when == "before the commit":
        die()
if when == "after the commit":
    die()
if when == "before the store":
    store.remove = die
if when == "after the store":
    deletions.record_removal = die
object_removal.remove_left_objects(database, store)
"""


@pytest.mark.parametrize("when", ["before the commit", "after the commit", "before the store", "after the store"])
def test_a_process_that_is_killed_on_its_way_loses_nothing_and_leaves_nothing(
    hospital: Hospital, admin: Key, tmp_path: Path, when: str
) -> None:
    """Killed for real: before the commit nothing has happened, after it the next sweep does what is left."""
    url = f"file:{tmp_path / 'objects'}"
    store = open_store(url)
    content = study_file(1)
    study, key = hospital.stored(store, [content]), original_key(sha256_of(content))
    database_url = hospital.database.engine.url.render_as_string(hide_password=False)
    done = run_program(KILLED, [database_url, url, IDENTITY_KEY, str(study), when], {"PATH": "/usr/bin:/bin"}, tmp_path)
    assert done.returncode == -9, done.stdout
    remove_left_objects(hospital.database, store)
    kept = when == "before the commit"
    assert (hospital.count() == 1, store.exists(key)) == (kept, kept)
    if kept:
        gone(hospital, admin, study)


def test_a_store_that_fails_is_asked_again(hospital: Hospital, admin: Key, tmp_path: Path) -> None:
    """An error of the store takes nothing from the list of what must go."""
    store = DirectoryStore(tmp_path / "objects")
    study = hospital.stored(store, [study_file(1)])
    gone(hospital, admin, study)

    class FailingStore(DirectoryStore):
        def remove(self, keys: Any) -> None:
            raise StoreUnavailable

    with pytest.raises(StoreUnavailable):
        remove_left_objects(hospital.database, FailingStore(tmp_path / "objects"))
    assert remove_left_objects(hospital.database, store) == 1
    assert not list((tmp_path / "objects").rglob("*.dcm"))


STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "delete", "sweep"]), st.integers(0, 1), st.integers(0, 2)), max_size=12
)


@given(steps=STEPS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_and_deleted_the_store_holds_what_rows_name(
    hospital: Hospital, admin: Key, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    """Of any order of sending, deleting and sweeping by two sites: no named content is lost, no other one is left."""
    store = DirectoryStore(tmp_path_factory.mktemp("objects"))
    with hospital.database.transaction() as session:
        add_key(session, "elsewhere", "admin", Role.ADMIN, "elsewhere")
        other = find_key(session, "elsewhere")
    assert other is not None
    sites = [(hospital, admin), (Hospital(hospital.database, other.site_id), other)]
    for what, site, number in [*steps, ("sweep", 0, 0)]:
        place, key = sites[site]
        if what == "sweep":
            remove_left_objects(hospital.database, store)
            continue
        content = b"content %d" % number
        if what == "send":
            store.put(original_key(sha256_of(content)), io.BytesIO(content), len(content))
            file = place.file(number, number)
            place.take_in([type(file)(sha256_of(content), len(content), file.header)])
        else:
            with hospital.database.transaction() as session:
                mine = StudyRow.site_id == place.site_id, StudyRow.study_instance_uid == f"2.25.{number}"
                study = session.scalar(select(StudyRow.id).where(*mine))
            if study:
                gone(place, key, study)
    with hospital.database.transaction() as session:
        named = {original_key(sha256) for sha256 in session.scalars(select(InstanceRow.sha256))}
        session.execute(text("DELETE FROM left_objects"))
        session.execute(text("DELETE FROM studies"))
    assert set(keys_of(store.folder)) == named


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def osteon(address: str) -> Iterator[Callable[..., Any]]:
    assert address
    yield lambda *words, **more: CliRunner().invoke(cli.app, list(words), **more)


def test_osteon_delete_asks(osteon: Callable[..., Any], in_process: InProcessApi) -> None:
    """Without --yes where nobody can be asked: exit code 2 and nothing done; a wrong reason names the right ones."""
    api = in_process
    study = api.post({"a": study_file(1)}).json()["studies"][0]["id"]
    assert osteon("delete", study, "--reason", "test").exit_code == 2
    wrong = osteon("delete", study, "--reason", "boredom", "--yes")
    assert (wrong.exit_code, "wrong-patient" in wrong.stderr) == (2, True)
    assert api.http.get(f"/api/v1/studies/{study}", headers=api.headers()).status_code == 200
    done = osteon("delete", study[:8], "--reason", "test", "--note", "a phantom", "--yes", "--json")
    assert (done.exit_code, f'"id": "{study}"' in done.stdout) == (0, True), done.output
    missing = osteon("delete", study, "--reason", "test", "--yes")
    assert (missing.exit_code, "no study" in missing.stderr) == (1, True)


def test_a_quarantined_study_is_deleted_by_the_same_way(osteon: Callable[..., Any], in_process: InProcessApi) -> None:
    """`osteon quarantine delete` lets the bytes go too; and feedback is no hindrance any more."""
    api = in_process
    study = api.post({"a": study_file(1)}).json()["studies"][0]["id"]
    analyse(api, study)
    say(api, study, **ONE)
    assert osteon("quarantine", "delete", study, "--reason", "x", "--yes").exit_code == 1
    with api.database.transaction() as session:
        session.execute(update(StudyRow).values(status="quarantined", quarantined_at=func.now()))
    done = osteon("quarantine", "delete", study, "--reason", "x", "--yes")
    assert done.exit_code == 0, done.output
    until(lambda: objects(api) == set(), 20)


# -- the page ------------------------------------------------------------------------------------------------------


def test_the_page_asks_and_deletes(in_process: InProcessApi) -> None:
    """Linked for admins alone; a form that needs no script, with a reason; then the worklist, or what is left."""
    api = in_process
    study = api.post({"a": study_file(1, 1), "b": study_file(1, 2)}).json()["studies"][0]["id"]
    for role, status, linked in (("admin", 200, True), ("radiologist", 403, False)):
        assert (f"/view/{study}/delete" in api.http.get(f"/view/{study}", headers=api.headers(role)).text) == linked
        assert api.http.get(f"/view/{study}/delete", headers=api.headers(role)).status_code == status
    admin = api.headers()
    page = api.http.get(f"/view/{study[:8]}/delete?image=2", headers=admin).text
    (uid,) = re.findall(r'name="image" value="([0-9.]+)"', page)
    assert "ZEBRA, QUAGGA" in page
    assert api.http.get(f"/view/{study}/delete?image=3", headers=admin).status_code == 404

    def press(role: str = "admin", **fields: str) -> Any:
        return api.http.post(f"/view/{study}/delete", data=fields, headers=api.headers(role), follow_redirects=False)

    assert press().status_code == press(reason="boredom").status_code == 400
    assert press(reason="test", note="x" * 501).status_code == 400
    assert press("radiologist", reason="test").status_code == 403
    done = press(reason="test", image=uid)
    assert (done.status_code, done.headers["location"]) == (303, f"/view/{study}")
    assert len(api.http.get(f"/api/v1/studies/{study}", headers=admin).json()["instances"]) == 1
    done = press(reason="test", note="a phantom")
    assert (done.status_code, done.headers["location"]) == (303, "/")
    assert api.http.get(f"/api/v1/studies/{study}", headers=admin).status_code == 404
    assert objects(api) == set()
