"""Readers' feedback: over HTTP, in Postgres, and when somebody tampers with it."""

import threading
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.exc import DBAPIError

from shared.db.clock import db_now
from shared.db.tables import FeedbackRow, IdentityReadRow
from shared.domain.feedback import ChainCheck, check_chain
from shared.domain.security import Role
from shared.queries import feedback
from shared.queries.access import add_key
from tests.feedback_data import ONE, analyse, leave, say, study_file

SECRET = "Mrs Zebra fell from a ladder"


@pytest.fixture
def study(in_process: Any) -> str:
    """An analysed study of two images."""
    made: str = in_process.post({"a": study_file(1, 1), "b": study_file(1, 2)}).json()["studies"][0]["id"]
    analyse(in_process, made)
    return made


def entries(api: Any, study: str, role: str = "radiologist") -> list[dict[str, Any]]:
    response = api.http.get(f"/api/v1/studies/{study}/feedback", headers=api.headers(role))
    assert response.status_code == 200, response.text
    return list(response.json()["entries"])


def checked(api: Any, noted: tuple[int, str] | None = None) -> ChainCheck:
    with api.database.transaction() as session:
        return check_chain(feedback.chain_entries(session, api.key().site_id), noted)


def test_feedback_is_kept_with_who_and_when(in_process: Any, study: str) -> None:
    """Verdict, what the reader sees instead, marks and words come back as they were said, with who and when."""
    mark = {"image": 2, "frame": 1, "x": 0.25, "y": 0.5, "width": 0.125, "height": 0.0625}
    said = ONE | {"verdict": "disagree", "fracture": "no", "region": "leg", "marks": [mark], "text": f" {SECRET} "}
    response = say(in_process, study, **said, contradiction_meant=True)
    assert response.status_code == 201, response.text
    (entry,) = entries(in_process, study)
    assert response.json()["entries"] == [entry]
    for name, value in (said | {"text": SECRET, "reader": "radiologist", "mine": True, "number": 1}).items():
        assert entry[name] == value, name
    assert not entries(in_process, study, "admin")[0]["mine"]
    with in_process.database.transaction() as session:
        row = session.scalars(select(FeedbackRow)).one()
        assert (db_now(session) - row.answered_at).total_seconds() < 60
        assert SECRET.encode() not in bytes(row.words or b"")


def test_words_are_read_under_audit(in_process: Any, study: str) -> None:
    """Free text can name a patient: each reading leaves an audit row; entries without text leave none."""

    def reads() -> int:
        with in_process.database.transaction() as session:
            return len(session.scalars(select(IdentityReadRow)).all())

    say(in_process, study, **ONE)
    entries(in_process, study)
    assert reads() == 0
    say(in_process, study, **ONE | {"verdict": "supplement", "text": SECRET})
    before = reads()
    entries(in_process, study)
    assert reads() == before + 1


def test_a_retry_writes_once(in_process: Any, study: str) -> None:
    """The same request, twice and at once, is one entry; the same key with other words is refused."""
    barrier, statuses = threading.Barrier(6), []

    def send() -> None:
        barrier.wait()
        statuses.append(say(in_process, study, "click-1", **ONE).status_code)

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [201] * 6
    assert len(entries(in_process, study)) == 1
    assert say(in_process, study, "click-1", **ONE | {"text": "other"}).status_code == 409
    analyse(in_process, study, "second")
    assert say(in_process, study, "click-1", **ONE).status_code == 201  # even though another finding is shown now
    assert len(entries(in_process, study)) == 1


def test_many_at_once_make_one_chain(in_process: Any, study: str) -> None:
    """Readers who give feedback at the same moment get consecutive numbers, and the chain holds."""
    barrier = threading.Barrier(8)

    def send(number: int) -> None:
        barrier.wait()
        for _ in range(3):
            assert say(in_process, study, **ONE | {"verdict": "supplement", "text": f"{number}"}).status_code == 201

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry["number"] for entry in entries(in_process, study)] == list(range(1, 25))
    assert checked(in_process).problems == []


def test_a_new_verdict_takes_the_old_ones_place(in_process: Any, study: str) -> None:
    """A reader's second verdict on a finding supersedes the first; another reader's, and a supplement, stand beside."""
    say(in_process, study, **ONE)
    say(in_process, study, role="admin", **ONE)
    say(in_process, study, **ONE | {"verdict": "supplement", "text": "also"})
    say(in_process, study, **ONE | {"verdict": "disagree", "fracture": "no"})
    told = entries(in_process, study)
    assert [entry["superseded_by"] for entry in told] == [told[3]["id"], None, None, None]
    assert told[3]["supersedes"] == told[0]["id"]
    again = say(in_process, study, **ONE | {"verdict": "supplement", "text": "x", "supersedes": told[0]["id"]})
    assert (again.status_code, "corrected already" in again.json()["detail"]) == (404, True)
    others = ONE | {"verdict": "disagree", "supersedes": told[1]["id"]}
    assert say(in_process, study, **others).status_code == 404  # what somebody else said is theirs to correct
    mine = say(in_process, study, **ONE | {"verdict": "supplement", "text": "not also", "supersedes": told[2]["id"]})
    assert mine.json()["entries"][2]["superseded_by"] == mine.json()["entries"][4]["id"]


@pytest.mark.parametrize("other", [{"image": 2}, {"bundle": "second"}])
def test_a_correction_is_of_the_same_finding(in_process: Any, study: str, other: dict[str, Any]) -> None:
    """An entry on one image or bundle cannot take the place of an entry on another."""
    (entry,) = say(in_process, study, **ONE).json()["entries"]
    if "bundle" in other:
        analyse(in_process, study, "second")
    refused = say(in_process, study, **ONE | {"verdict": "disagree", "supersedes": entry["id"]} | other)
    assert refused.status_code == 404
    assert [one["superseded_by"] for one in entries(in_process, study)] == [None]


def test_a_verdict_in_a_supplements_place_leaves_one_verdict(in_process: Any, study: str) -> None:
    """Agree, a supplement, and a disagree that corrects the supplement: only the disagree stands and counts."""
    say(in_process, study, **ONE)
    added = say(in_process, study, **ONE | {"verdict": "supplement", "text": "also"}).json()["entries"][1]
    last = ONE | {"verdict": "disagree", "fracture": "no", "supersedes": added["id"]}
    told = say(in_process, study, **last).json()["entries"]
    assert [one["superseded_by"] for one in told] == [told[2]["id"], told[2]["id"], None]
    found = in_process.http.get("/api/v1/agreement", headers=in_process.headers("radiologist")).json()
    assert (found["verdicts"], found["overall"]["hits"]) == (1, 0)


def test_the_same_verdict_again_is_written_once(in_process: Any, study: str) -> None:
    """Agreeing with what one agrees with leaves the entry that stands; anything new is a new entry."""
    first = say(in_process, study, **ONE | {"text": "seen"})
    again = say(in_process, study, "click-2", **ONE)
    assert (again.status_code, again.json()["entries"]) == (201, first.json()["entries"])
    assert len(say(in_process, study, **ONE | {"text": "seen twice"}).json()["entries"]) == 2
    assert len(say(in_process, study, **ONE | {"verdict": "disagree", "fracture": "no"}).json()["entries"]) == 3
    assert len(say(in_process, study, **ONE | {"verdict": "disagree", "fracture": "unsure"}).json()["entries"]) == 4
    assert len(say(in_process, study, role="admin", **ONE).json()["entries"]) == 5


def test_feedback_is_on_the_finding_on_the_screen(in_process: Any, study: str) -> None:
    """Once a newer bundle's finding is shown, feedback to the older one is 409, unless it is meant."""
    analyse(in_process, study, "second")
    refused = say(in_process, study, **ONE)
    assert (refused.status_code, "second" in refused.json()["detail"]) == (409, True)
    assert say(in_process, study, **ONE | {"older_bundle": True}).status_code == 201
    assert say(in_process, study, **ONE | {"bundle": "nobody's", "older_bundle": True}).status_code == 409
    assert say(in_process, study, **ONE | {"bundle": "second"}).status_code == 201


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"verdict": "maybe"}, 422),
        ({"image": 3}, 404),
        ({"frame": 2}, 404),
        ({"image": None}, 422),
        ({"verdict": "done"}, 422),
        ({"verdict": "supplement"}, 422),
        ({"text": "x" * 4001}, 422),
        ({"region": "\x1f"}, 422),
        ({"unknown": 1}, 422),
        ({"marks": [{"image": 1, "x": 0.9, "y": 0, "width": 0.2, "height": 0.1}]}, 422),
        ({"marks": [{"image": 1, "x": 0.9, "y": 0, "width": 0, "height": 0.1}]}, 422),
        ({"marks": [{"image": 7, "x": 0, "y": 0, "width": 0.2, "height": 0.1}]}, 404),
        ({"marks": [{"image": 1, "frame": 2, "x": 0, "y": 0, "width": 0.2, "height": 0.1}]}, 400),
        ({"supersedes": str(uuid4())}, 404),
    ],
)
def test_what_makes_no_sense_is_refused(in_process: Any, study: str, change: dict[str, Any], status: int) -> None:
    """Feedback that cannot be meant is refused, and leaves nothing."""
    assert say(in_process, study, **ONE | change).status_code == status
    assert entries(in_process, study) == []


def test_only_readers_of_the_site_give_feedback(in_process: Any, study: str) -> None:
    """A sender may not, another site's reader does not even find the study, and a stranger is 401."""
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.RADIOLOGIST, "osk_elsewhere")
    in_process.keys["other"] = "osk_elsewhere"
    assert say(in_process, study, role="submitter", **ONE).status_code == 403
    assert say(in_process, study, role="other", **ONE).status_code == 404
    assert in_process.http.post(f"/api/v1/studies/{study}/feedback", json=ONE).status_code == 401
    assert (
        in_process.http.get(f"/api/v1/studies/{study}/feedback", headers=in_process.headers("other")).status_code == 404
    )


def test_done_marks_the_study_read_and_leads_on(in_process: Any, study: str) -> None:
    """Done sets when it was read and names the next unread study; reopening clears it; both are entries."""
    other = in_process.post({"c": study_file(2, 1)}).json()["studies"][0]["id"]
    analyse(in_process, other)
    done = say(in_process, study, verdict="done", unanswered=leave(1, 2)).json()
    assert (done["next_study"], done["read_at"]) == (f"/view/{other}", done["entries"][0]["answered_at"])
    assert say(in_process, other, verdict="done", unanswered=leave(1)).json()["next_study"] is None
    reopened = say(in_process, study, verdict="reopened").json()
    assert reopened["read_at"] is None
    assert [entry["verdict"] for entry in reopened["entries"]] == ["done", "reopened"]
    assert reopened["entries"][0]["superseded_by"] == reopened["entries"][1]["id"]


def test_done_speaks_of_the_images_that_were_shown(in_process: Any, study: str) -> None:
    """An image that came while the reader looked is not called read; with it on the page the study is done."""
    in_process.post({"c": study_file(1, 3)})
    refused = say(in_process, study, verdict="done", images=2)
    assert refused.status_code == 409
    assert "3 images by now" in refused.json()["detail"]
    assert entries(in_process, study) == []
    done = say(in_process, study, verdict="done", images=3, unanswered=leave(1, 2)).json()
    assert done["read_at"] is not None


def test_a_request_is_its_readers_own(in_process: Any, study: str) -> None:
    """Another reader who sends the same Idempotency-Key is not taken for the first one."""
    with in_process.database.transaction() as session:
        add_key(session, "default", "dr-other", Role.RADIOLOGIST, "osk_other_reader")
    in_process.keys["other"] = "osk_other_reader"
    assert say(in_process, study, "click-1", **ONE).status_code == 201
    assert say(in_process, study, "click-1", role="other", **ONE).status_code == 409
    assert [entry["reader"] for entry in entries(in_process, study)] == ["radiologist"]


def test_done_ends_the_claim_and_passes_by_what_others_read(in_process: Any, study: str) -> None:
    """Whoever is done holds the study no longer, and is not led to one that somebody else has in hand."""
    theirs, free = (in_process.post({"c": study_file(n, 1)}).json()["studies"][0]["id"] for n in (2, 3))
    for one in (theirs, free):
        analyse(in_process, one)
    with in_process.database.transaction() as session:
        add_key(session, "default", "dr-other", Role.RADIOLOGIST, "osk_other_reader")
    in_process.keys["other"] = "osk_other_reader"
    for one, role in ((study, "radiologist"), (theirs, "other")):
        assert in_process.http.post(f"/api/v1/studies/{one}/lock", headers=in_process.headers(role)).json()["mine"]
    done = say(in_process, study, verdict="done", unanswered=leave(1, 2)).json()
    assert done["next_study"] == f"/view/{free}"
    history = in_process.http.get(f"/api/v1/studies/{study}/locks", headers=in_process.headers()).json()
    assert [(one["name"], one["ended"]) for one in history] == [("radiologist", "read")]


@pytest.mark.parametrize("change", [
    lambda: update(FeedbackRow).values(verdict="agree"),
    lambda: delete(FeedbackRow),
])  # fmt: skip
def test_postgres_refuses_to_change_an_entry(in_process: Any, study: str, change: Callable[[], Any]) -> None:
    """Neither UPDATE nor DELETE is possible: the application has no right to, and triggers stop whoever has."""
    say(in_process, study, **ONE)
    with pytest.raises(DBAPIError, match="permission denied"), in_process.database.transaction() as session:
        session.execute(change())
    assert len(entries(in_process, study)) == 1


@pytest.mark.parametrize("statement", [
    "UPDATE feedback SET verdict = 'disagree'", "DELETE FROM feedback", "TRUNCATE feedback",
])  # fmt: skip
def test_psql_cannot_either(in_process: Any, study: str, statement: str) -> None:
    """The refusal is Postgres' own: past SQLAlchemy it is the same."""
    say(in_process, study, **ONE)
    with pytest.raises(psycopg2.Error, match="never changed"):
        in_process.as_owner(statement)
    assert len(entries(in_process, study)) == 1


@pytest.mark.parametrize("statement", ["TRUNCATE studies CASCADE", "DELETE FROM studies"])
def test_feedback_outlasts_its_study(in_process: Any, study: str, statement: str) -> None:
    """Whoever removes studies, by whatever way, leaves the feedback log whole."""
    say(in_process, study, **ONE)
    before = checked(in_process)
    in_process.as_owner(statement)
    assert checked(in_process) == before


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("UPDATE feedback SET verdict = 'agree' WHERE number = 2", "entry 2 was changed"),
        (
            "UPDATE feedback SET answered_at = answered_at + interval '1 microsecond' WHERE number = 3",
            "entry 3 was changed",
        ),
        ("UPDATE feedback SET marks = '[]' WHERE number = 1", "entry 1 was changed"),
        ("UPDATE feedback SET words = 'x' WHERE number = 1", "entry 1 was changed"),
        ("DELETE FROM feedback WHERE number = 2", "entry 2 is missing"),
        ("UPDATE feedback SET hash = repeat('0', 64) WHERE number = 1", "entry 2 does not follow"),
    ],
)
def test_tampering_shows(in_process: Any, study: str, statement: str, word: str) -> None:
    """Who owns the tables can switch the trigger off; what is changed then breaks the chain, and the entry is named."""
    mark = {"image": 1, "frame": 1, "x": 0.1, "y": 0.2, "width": 0.333333, "height": 0.1}
    say(in_process, study, **ONE | {"text": SECRET, "marks": [mark]})
    say(in_process, study, **ONE | {"verdict": "disagree", "fracture": "no"})
    say(in_process, study, role="admin", **ONE)
    assert checked(in_process).problems == []
    disarm = "ALTER TABLE feedback DISABLE TRIGGER feedback_stay; ALTER TABLE feedback DROP CONSTRAINT fk_feedback_supersedes"
    in_process.as_owner(disarm, statement)
    assert any(word in problem for problem in checked(in_process).problems)


def test_the_log_outlasts_another_version(
    in_process: Any, study: str, database_url: str, run_alembic: Callable[..., None]
) -> None:
    """Version 0.1 had the entries in the table `answers`: neither way of the migration changes what the chain holds."""
    say(in_process, study, **ONE | {"text": SECRET})
    say(in_process, study, **ONE | {"verdict": "disagree", "fracture": "no"})
    before = checked(in_process)
    run_alembic(database_url, "downgrade", "0022")
    in_process.as_owner("SELECT hash FROM answers")
    with pytest.raises(psycopg2.Error, match="never changed"):
        in_process.as_owner("DELETE FROM answers")
    run_alembic(database_url, "upgrade", "head")
    assert (checked(in_process), before.entries, before.problems) == (before, 2, [])
    with pytest.raises(psycopg2.Error, match="feedback log are never changed"):
        in_process.as_owner("DELETE FROM feedback")


def test_a_cut_off_end_shows_against_what_was_noted(in_process: Any, study: str) -> None:
    """A chain cannot tell that its last entries are gone; the head that somebody wrote down can."""
    for text in ("one", "two", "three"):
        say(in_process, study, **ONE | {"verdict": "supplement", "text": text})
    before = checked(in_process)
    assert checked(in_process, (3, before.head)).problems == []
    in_process.as_owner("ALTER TABLE feedback DISABLE TRIGGER feedback_stay", "DELETE FROM feedback WHERE number = 3")
    assert checked(in_process).problems == []
    assert checked(in_process, (3, before.head)).problems == ["entry 3 is missing"]
    say(in_process, study, **ONE)
    assert checked(in_process, (3, before.head)).problems == ["entry 3 is another one than was noted"]


def test_drift_is_logged_once(in_process: Any, study: str, caplog: pytest.LogCaptureFixture) -> None:
    """An alarm is one warning with bundle, region and time, however often the page is looked at; nobody is named."""
    for number in range(90):
        verdict = {"verdict": "agree"} if number < 52 else {"verdict": "disagree", "fracture": "no"}
        with in_process.database.transaction() as session:
            add_key(session, "default", f"reader {number}", Role.RADIOLOGIST, f"osk_reader_{number}")
        in_process.keys["other"] = f"osk_reader_{number}"
        assert say(in_process, study, role="other", **ONE | verdict).status_code == 201
    for _ in range(2):
        response = in_process.http.get("/api/v1/agreement", headers=in_process.headers("radiologist"))
        assert [one["alarm"] for one in response.json()["drift"]] == [True, True]  # of its region, and of its scanner
        assert "reader 1" not in response.text
    admin = in_process.headers("admin")
    assert "\nosteon_drift_alarms 2.0\n" in in_process.http.get("/metrics", headers=in_process.headers("operator")).text
    troubles = in_process.http.get("/api/v1/operations", headers=admin).json()["troubles"]
    assert any("agree with first on radiographs of hand (region) less" in trouble for trouble in troubles)
    told = [record for record in caplog.records if record.getMessage() == "agreement reduced"]
    assert [(one.levelname, vars(one)["bundle"]) for one in told] == [("WARNING", "first")] * 2
    assert [vars(one)["by"] for one in told] == ["region", "scanner"]
    assert vars(told[0])["where"] == "hand"
