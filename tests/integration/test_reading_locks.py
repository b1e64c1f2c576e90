"""Around the worklist: who reads what, how long things may wait, saved filters, search; on real rows."""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, insert, select, text

from shared.db.clock import db_now
from shared.db.tables import (
    IdentityReadRow,
    IdentitySearchRow,
    IdentityTokenRow,
    StudyRow,
    TurnaroundTargetsRow,
)
from shared.domain.feedback import Verdict
from shared.domain.findings import Assessment, Extent, StudySummary
from shared.domain.security import Role
from shared.domain.study import Header, Identity, Priority, StoredFile
from shared.domain.worklist import TURNAROUND_TARGETS, due_at
from shared.errors import InvalidState
from shared.queries import feedback, reading_locks
from shared.queries.access import Key, add_key, find_key
from shared.queries.reading_locks import (
    AcquiredLock,
    LockHolder,
    acquire,
    locks_of,
    mark_read,
    put_back_on_list,
    release,
)
from shared.queries.turnaround import choose_targets, targets_of, update_due_times
from tests.hospital import Hospital
from tests.pace import LIMIT_S, until

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=60)
S = timedelta(seconds=1)


def add_studies(database: Any, site: UUID, rows: list[dict[str, Any]]) -> list[UUID]:
    """Studies straight into the table, with what a test wants different."""
    values: list[dict[str, Any]] = [
        {
            "id": uuid4(), "site_id": site, "study_instance_uid": f"1.2.{uuid4().int}", "priority": "routine",
            "status": "analysed", "received_at": NOW, "due_at": NOW, "reason": "",
            "modality": "CR", "assessment": "negative", "severity": "none", "region": "hand", "images": 1,
            "failed_images": 0, "age_years": None, "read_at": None,
            "abstention": "metal" if row.get("assessment") == "abstained" else None,
        } | row for row in rows
    ]  # fmt: skip
    with database.transaction() as session:
        session.execute(insert(StudyRow), values)
    return [value["id"] for value in values]


def key_of(hospital: Any, name: str) -> Key:
    with hospital.database.transaction() as session:
        add_key(session, "default", name, Role.RADIOLOGIST, f"secret of {name}")
        found = find_key(session, f"secret of {name}")
    assert found is not None
    return found


def listed(api: Any, **query: Any) -> list[str]:
    response = api.http.get("/api/v1/worklist", params=query, headers=api.headers("radiologist"))
    assert response.status_code == 200, response.text
    return [entry["study_id"] for entry in response.json()["entries"]]


# -- claims ---------------------------------------------------------------------------------------------------------


def test_a_claim_keeps_others_out_until_it_ends(hospital: Any) -> None:
    """The second reader is told who has the study and since when; once the lease has run out it is theirs."""
    study, ada, bob = hospital.study(), key_of(hospital, "ada"), key_of(hospital, "bob")
    with hospital.database.transaction() as session:
        assert isinstance(acquire(session, study, ada, "1", NOW, LEASE), AcquiredLock)
        assert acquire(session, study, bob, "2", NOW + S, LEASE) == LockHolder("ada", NOW, NOW + LEASE, same_key=False)
        assert isinstance(acquire(session, study, ada, "1", NOW + 30 * S, LEASE), AcquiredLock)  # prolongs it
        assert isinstance(acquire(session, study, bob, "2", NOW + 61 * S, LEASE), LockHolder)
        got = acquire(session, study, bob, "2", NOW + 91 * S, LEASE)
        assert isinstance(got, AcquiredLock)
        past = locks_of(session, study)
    assert [(one.name, one.ended, one.ended_at, one.taken_from) for one in past] == [
        ("ada", "expired", NOW + 90 * S, None),
        ("bob", None, None, None),
    ]


def test_a_takeover_is_on_record(hospital: Any) -> None:
    """Whoever takes over has the study, the other one is told, and the history names both."""
    study, ada, bob = hospital.study(), key_of(hospital, "ada"), key_of(hospital, "bob")
    with hospital.database.transaction() as session:
        acquire(session, study, ada, "1", NOW, LEASE)
        assert isinstance(acquire(session, study, bob, "2", NOW + S, LEASE, take_over=True), AcquiredLock)
        assert acquire(session, study, ada, "1", NOW + 2 * S, LEASE) == LockHolder(
            "bob", NOW + S, NOW + S + LEASE, same_key=False
        )
        past = locks_of(session, study)
    assert [(one.name, one.taken_from, one.ended) for one in past] == [
        ("ada", None, "taken-over"),
        ("bob", "ada", None),
    ]


def test_two_people_with_one_key_are_two_readers(hospital: Any) -> None:
    """Another login of the same key is asked as anybody else is, and gets the study on purpose only, or after the lease."""
    study, ada = hospital.study(), key_of(hospital, "ada")
    with hospital.database.transaction() as session:
        one = acquire(session, study, ada, "one login", NOW, LEASE)
        assert isinstance(one, AcquiredLock)
        asked = acquire(session, study, ada, "another", NOW + S, LEASE)
        assert asked == LockHolder("ada", NOW, NOW + LEASE, same_key=True)
        other = acquire(session, study, ada, "another", NOW + S, LEASE, take_over=True)
        assert isinstance(other, AcquiredLock)
        assert other.own_since == NOW
        told = acquire(session, study, ada, "one login", NOW + 2 * S, LEASE, token=one.token)
        assert told == LockHolder("ada", NOW + S, NOW + S + LEASE, same_key=True)
        kept = acquire(session, study, ada, "another", NOW + 3 * S, LEASE, token=other.token)
        assert isinstance(kept, AcquiredLock)
        assert [(one.ended, one.taken_from) for one in locks_of(session, study)] == [
            ("taken-over", None),
            (None, "ada"),
        ]
        assert isinstance(
            acquire(session, study, ada, "third", NOW + 64 * S, LEASE), AcquiredLock
        )  # that login has ended


def test_a_new_claim_ends_those_of_pages_that_died(hospital: Any) -> None:
    """A page that says no farewell leaves its claim open until somebody claims anything: it ends when its lease did."""
    dead, other, ada, bob = hospital.study(), hospital.study(), key_of(hospital, "ada"), key_of(hospital, "bob")
    with hospital.database.transaction() as session:
        acquire(session, dead, ada, "1", NOW, LEASE)
        acquire(session, other, bob, "2", NOW + 60 * S, LEASE)
        assert [(one.ended, one.ended_at) for one in locks_of(session, dead)] == [(None, None)]
        acquire(session, hospital.study(), bob, "2", NOW + 61 * S, LEASE)
        assert [(one.ended, one.ended_at) for one in locks_of(session, dead)] == [("expired", NOW + LEASE)]
        assert [one.ended for one in locks_of(session, other)] == [None]


@pytest.mark.parametrize("first", ["done", "lock"])
def test_done_and_a_claim_at_once_never_wait_for_each_other(hospital: Any, first: str) -> None:
    """However "done" and a new claim of one study meet, one waits for the other, and neither for a deadlock."""
    study, ada, bob = hospital.study(), key_of(hospital, "ada"), key_of(hospital, "bob")
    met, go_on = threading.Event(), threading.Event()

    def done() -> None:
        with hospital.database.transaction() as session:
            feedback.lock_study(session, ada.site_id, study)
            if first == "done":
                met.set()
                go_on.wait(LIMIT_S)
            feedback.append_entry(session, ada, "request", feedback.FeedbackDraft(study, Verdict.DONE))

    def take() -> None:
        with hospital.database.transaction() as session:
            reading_locks.serialize_locks(session, study)  # as far as a claim has come before it writes its row
            if first == "lock":
                met.set()
                go_on.wait(LIMIT_S)
            acquire(session, study, bob, "", db_now(session), LEASE)

    early, late = (done, take) if first == "done" else (take, done)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(early)
        assert met.wait(LIMIT_S)
        two = pool.submit(late)
        with hospital.database.transaction() as session:
            waits = select(func.count()).select_from(text("pg_locks")).where(text("NOT granted"))
            until(lambda: session.scalar(waits), 10, every_s=0.02)
        go_on.set()
        one.result(LIMIT_S)
        if first == "done":
            two.result(LIMIT_S)
        else:  # bob holds it by then
            with pytest.raises(InvalidState):
                two.result(LIMIT_S)


def test_only_the_newest_page_gives_the_study_back(hospital: Any) -> None:
    """A page that is loaded again claims before the old one's farewell comes: that must not free the study."""
    study, ada, bob = hospital.study(), key_of(hospital, "ada"), key_of(hospital, "bob")
    with hospital.database.transaction() as session:
        old = acquire(session, study, ada, "1", NOW, LEASE)
        assert isinstance(old, AcquiredLock)
        kept = acquire(session, study, ada, "1", NOW + S, LEASE, token=old.token)
        assert isinstance(kept, AcquiredLock)
        assert kept.token == old.token
        new = acquire(session, study, ada, "1", NOW + 2 * S, LEASE)
        assert isinstance(new, AcquiredLock)
        assert not release(session, study, ada, old.token, NOW + 2 * S)
        assert not release(session, study, bob, new.token, NOW + 2 * S)
        assert isinstance(acquire(session, study, bob, "2", NOW + 3 * S, LEASE), LockHolder)
        assert release(session, study, ada, new.token, NOW + 3 * S)
        again = acquire(session, study, ada, "1", NOW + 4 * S, LEASE)  # the page is back at once: one line of history
        assert isinstance(again, AcquiredLock)
        assert again.since == NOW
        assert release(session, study, ada, again.token, NOW + 5 * S)
        assert isinstance(acquire(session, study, bob, "2", NOW + 6 * S, LEASE), AcquiredLock)
        assert [one.ended for one in locks_of(session, study)] == ["released", None]


def test_a_page_that_leaves_before_its_response_gives_the_study_back(hospital: Any) -> None:
    """Its token is its own: it need not wait for the response to know it. A second page's renewal makes it the newest."""
    study, ada, bob = hospital.study(), key_of(hospital, "ada"), key_of(hospital, "bob")
    one, two = uuid4(), uuid4()
    with hospital.database.transaction() as session:
        got = acquire(session, study, ada, "1", NOW, LEASE, token=one)
        assert isinstance(got, AcquiredLock)
        assert got.token == one
        assert release(session, study, ada, one, NOW + S)
        assert isinstance(acquire(session, study, bob, "2", NOW + 2 * S, LEASE, token=one), AcquiredLock)
        assert not release(session, study, ada, one, NOW + 3 * S)  # the token alone frees nobody else's
        for page in (one, two, one):
            assert isinstance(acquire(session, study, bob, "2", NOW + 4 * S, LEASE, token=page), AcquiredLock)
        assert not release(session, study, bob, two, NOW + 5 * S)


def test_of_many_at_once_one_gets_it(hospital: Any) -> None:
    """However many ask in the same moment, one has the study and the others are told so."""
    study = hospital.study()
    keys = [key_of(hospital, f"reader {number}") for number in range(6)]
    start = threading.Barrier(len(keys))

    def ask(key: Key) -> Any:
        with hospital.database.transaction() as session:
            start.wait(LIMIT_S)
            return acquire(session, study, key, "", NOW, LEASE)

    with ThreadPoolExecutor(len(keys)) as pool:
        responses = list(pool.map(ask, keys))
    (winner,) = [key.name for key, response in zip(keys, responses, strict=True) if isinstance(response, AcquiredLock)]
    assert {response.name for response in responses if isinstance(response, LockHolder)} == {winner}


def test_locks_over_http(in_process: Any) -> None:
    """A lock is 200, somebody else's 409 with who and since when; a stranger's study is 404; submitters lock none."""
    (study,) = add_studies(in_process.database, in_process.key().site_id, [{}])
    url, mine, other = f"/api/v1/studies/{study}/lock", in_process.headers("radiologist"), in_process.headers("admin")
    got = in_process.http.post(url, headers=mine)
    assert (got.status_code, got.json()["mine"], got.json()["name"]) == (200, True, "radiologist")
    refused = in_process.http.post(url, headers=other)
    assert refused.status_code == 409
    assert (refused.json()["mine"], refused.json()["name"]) == (False, "radiologist")
    assert refused.json()["since"] == got.json()["since"]
    assert in_process.http.get(url, headers=other).json()["name"] == "radiologist"
    row = in_process.http.get("/api/v1/worklist", headers=other).json()["entries"][0]
    assert (row["reader"], row["reading_since"]) == ("radiologist", got.json()["since"])
    assert in_process.http.post(f"{url}?take_over=true", headers=other).json()["mine"] is True
    assert in_process.http.delete(f"{url}/{got.json()['token']}", headers=mine).status_code == 204  # no longer theirs
    assert in_process.http.get(url, headers=mine).json()["name"] == "admin"
    history = in_process.http.get(f"/api/v1/studies/{study}/locks", headers=mine).json()
    assert [(one["name"], one["taken_from"]) for one in history] == [("radiologist", None), ("admin", "radiologist")]
    assert in_process.http.post(f"/api/v1/studies/{uuid4()}/lock", headers=mine).status_code == 404
    assert in_process.http.post(url, headers=in_process.headers("submitter")).status_code == 403


def test_another_sites_study_cannot_be_locked(in_process: Any) -> None:
    """A study of another site is as if it were not there."""
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
        other = find_key(session, "osk_elsewhere")
    assert other is not None
    (study,) = add_studies(in_process.database, other.site_id, [{}])
    for method, path in (("POST", "lock"), ("GET", "lock"), ("GET", "locks")):
        response = in_process.http.request(method, f"/api/v1/studies/{study}/{path}", headers=in_process.headers())
        assert response.status_code == 404


# -- read and unread ------------------------------------------------------------------------------------------------


def test_what_was_read_leaves_the_list(in_process: Any) -> None:
    """The list shows what is unread by due time; state=read shows the rest, last read first, exactly paged."""
    site, key = in_process.key().site_id, in_process.key("radiologist")
    ids = add_studies(in_process.database, site, [{"due_at": NOW + n * 60 * S} for n in range(6)])
    with in_process.database.transaction() as session:
        for n, study in enumerate((ids[4], ids[1], ids[3])):
            mark_read(session, study, key, NOW + n * S)
    assert listed(in_process) == [str(ids[n]) for n in (0, 2, 5)]
    assert listed(in_process, state="read") == [str(ids[n]) for n in (3, 1, 4)]
    first = in_process.http.get(
        "/api/v1/worklist", params={"state": "read", "limit": 2}, headers=in_process.headers()
    ).json()
    rest = listed(in_process, state="read", limit=2, after=first["next"])
    assert [entry["study_id"] for entry in first["entries"]] + rest == [str(ids[n]) for n in (3, 1, 4)]
    assert first["counts"]["analysed"] == 3
    with in_process.database.transaction() as session:
        put_back_on_list(session, ids[1], key)
    assert listed(in_process) == [str(ids[n]) for n in (0, 1, 2, 5)]


def test_reading_ends_the_claim(hospital: Any) -> None:
    """A study that was read is held by nobody, and the history says who read it, claimed or not."""
    study, other, ada = hospital.study(), hospital.study(), key_of(hospital, "ada")
    with hospital.database.transaction() as session:
        acquire(session, study, ada, "1", NOW, LEASE)
        mark_read(session, study, ada, NOW + S, "1")
        mark_read(session, other, ada, NOW + S, "1")
        assert reading_locks.lock_holder(session, study, NOW + S) is None
        for one in (study, other):
            assert [(past.name, past.ended) for past in locks_of(session, one)] == [("ada", "read")]
    assert hospital.row(study).read_at == NOW + S


def test_nobody_finishes_what_somebody_else_reads(hospital: Any) -> None:
    """While another reader, or another login of the key, holds a study, it is not done; once their lease ended, it is."""
    study, ada, bob = hospital.study(), key_of(hospital, "ada"), key_of(hospital, "bob")
    with hospital.database.transaction() as session:
        acquire(session, study, ada, "1", NOW, LEASE)
        with pytest.raises(InvalidState, match="ada reads this study now"):
            mark_read(session, study, bob, NOW + S, "2")
        with pytest.raises(InvalidState, match="Another login of your own key, ada, reads"):
            mark_read(session, study, ada, NOW + S, "2")
        assert hospital.row(study).read_at is None
        mark_read(session, study, bob, NOW + 61 * S, "2")
        past = locks_of(session, study)
    assert [(one.name, one.ended, one.ended_at) for one in past] == [
        ("ada", "expired", NOW + LEASE),
        ("bob", "read", NOW + 61 * S),
    ]


def test_only_looking_finishes_nothing(in_process: Any) -> None:
    """Over HTTP "done" is 409 with words while somebody else holds the study, and 201 after a takeover."""
    (study,) = add_studies(in_process.database, in_process.key().site_id, [{}])
    mine, other = in_process.headers("radiologist"), in_process.headers("admin")
    url, done = f"/api/v1/studies/{study}", {"verdict": "done"}
    in_process.http.post(f"{url}/lock", headers=mine)
    refused = in_process.http.post(f"{url}/feedback", json=done, headers=other)
    assert (refused.status_code, "radiologist reads this study now" in refused.json()["detail"]) == (409, True)
    assert in_process.http.get(f"{url}/lock", headers=other).json()["name"] == "radiologist"
    assert in_process.http.get(f"{url}/feedback", headers=other).json()["entries"] == []
    in_process.http.post(f"{url}/lock?take_over=true", headers=other)
    assert in_process.http.post(f"{url}/feedback", json=done, headers=other).status_code == 201
    assert in_process.http.get(f"{url}/lock", headers=mine).json()["name"] == ""


def test_the_next_study_is_in_no_other_hands_and_on_the_readers_list(in_process: Any) -> None:
    """Passed by: what another login of the same key holds, and what the filter that the reader came with does not show."""
    kinds: list[dict[str, Any]] = [{}, {"region": "leg"}, {"region": "hand"}, {"region": "leg"}]
    kinds = [{"due_at": NOW + n * 60 * S, **kind} for n, kind in enumerate(kinds)]
    ids = add_studies(in_process.database, in_process.key().site_id, kinds)
    key = in_process.key("radiologist")
    with in_process.database.transaction() as session:
        acquire(session, ids[1], key, "1", db_now(session), LEASE)
        assert feedback.next_unread(session, key, ids[0], "1") == [ids[1]]
        assert feedback.next_unread(session, key, ids[0], "2") == [ids[2]]

    def following(worklist: str) -> Any:
        query, headers = {"worklist": worklist}, in_process.headers("radiologist")
        return in_process.http.get(f"/api/v1/studies/{ids[0]}/feedback", params=query, headers=headers).json()[
            "next_study"
        ]

    assert following("") == f"/view/{ids[2]}"
    assert following("?region=leg&after=x") == f"/view/{ids[3]}"
    assert following("?region=leg&state=read") == f"/view/{ids[3]}"
    assert following("?region=wrist") is None
    assert following("?search=sealed&region=wrist") == f"/view/{ids[2]}"


def test_what_is_read_next_is_told_with_its_pictures(in_process: Any) -> None:
    """The two studies that come next on the reader's list, each with its gravest images; nothing is locked by that."""
    first, second, third, last = add_studies(
        in_process.database, in_process.key().site_id, [{"due_at": NOW + n * 60 * S, "region": "leg"} for n in range(4)]
    )
    headers = in_process.headers("radiologist")

    def upcoming(study: UUID, worklist: str = "") -> list[Any]:
        path = f"/api/v1/studies/{study}/upcoming"
        answer = in_process.http.get(path, params={"worklist": worklist}, headers=headers)
        assert answer.status_code == 200, answer.text
        return list(answer.json())

    assert [one["url"] for one in upcoming(first)] == [f"/view/{second}", f"/view/{third}"]
    assert [one["url"] for one in upcoming(second)] == [f"/view/{first}", f"/view/{third}"]
    assert upcoming(first, "?region=hand") == []
    for one, study in zip(upcoming(first), (second, third), strict=True):
        for picture in one["pictures"]:
            assert picture["preview_url"].startswith(f"/api/v1/studies/{study}/preview.jpg?image=1")
            assert picture["frame_url"].startswith(f"/api/v1/studies/{study}/frame?image=1")
    locks = in_process.http.get(f"/api/v1/studies/{second}/lock", headers=headers).json()
    assert locks["name"] == ""
    assert last not in {one["url"] for one in upcoming(first)}


def test_a_row_is_yours_by_key_and_login_not_by_name(in_process: Any) -> None:
    """Two keys may have one name, and two people one key: only what this login reads is "you read it"."""
    (study,) = add_studies(in_process.database, in_process.key().site_id, [{}])
    with in_process.database.transaction() as session:
        acquire(session, study, in_process.key("radiologist"), "another login", db_now(session), LEASE)
    headers = in_process.headers("radiologist")
    (entry,) = in_process.http.get("/api/v1/worklist", headers=headers).json()["entries"]
    assert (entry["reader"], entry["mine"]) == ("radiologist", False)
    assert "<bdi>radiologist</bdi> reads it" in in_process.http.get("/", headers=headers).text
    in_process.http.post(f"/api/v1/studies/{study}/lock?take_over=true", headers=headers)
    assert in_process.http.get("/api/v1/worklist", headers=headers).json()["entries"][0]["mine"] is True
    assert "you read it" in in_process.http.get("/", headers=headers).text


def test_a_late_image_opens_a_read_study_again(hospital: Any) -> None:
    """Whoever read it has not seen the new image, so the study comes back to the list."""
    files = [hospital.file(4711, image) for image in range(2)]
    study, ada = hospital.take_in(files[:1]), key_of(hospital, "ada")
    with hospital.database.transaction() as session:
        mark_read(session, study, ada, NOW)
    hospital.take_in(files[:1])
    assert hospital.row(study).read_at == NOW  # the same image again is no news
    hospital.take_in(files)
    assert hospital.row(study).read_at is None


def test_new_filters_show_exactly_what_fits(in_process: Any) -> None:
    """Extent and age, alone, together and with the others; a study whose age is not known is in no band."""
    kinds: list[dict[str, Any]] = [
        {"severity": "severe", "assessment": "positive", "age_years": 0},
        {"severity": "mild", "assessment": "unclear", "age_years": 17},
        {"severity": "mild", "assessment": "positive", "age_years": 18},
        {"severity": None, "assessment": None, "age_years": 39, "status": "queued"},
        {"age_years": 40},
        {"age_years": 64},
        {"age_years": 65},
        {"age_years": 90},
        {"age_years": None},
    ]
    ids = [str(study) for study in add_studies(in_process.database, in_process.key().site_id, kinds)]
    for query, expected in (
        ({"age": "0-17"}, (0, 1)),
        ({"age": "18-39"}, (2, 3)),
        ({"age": "40-64"}, (4, 5)),
        ({"age": "65+"}, (6, 7)),
        ({"severity": "mild"}, (1, 2)),
        ({"severity": "mild", "age": "0-17"}, (1,)),
        ({"assessment": "positive", "age": "18-39", "severity": "mild"}, (2,)),
        ({"severity": "severe", "age": "65+"}, ()),
        ({"state": "read"}, ()),
    ):
        assert set(listed(in_process, **query)) == {ids[n] for n in expected}, query
    for wrong in ({"age": "old"}, {"severity": "grave"}, {"state": "all"}):
        assert in_process.http.get("/api/v1/worklist", params=wrong, headers=in_process.headers()).status_code == 422, (
            wrong
        )


# -- targets -----------------------------------------------------------------------------------------------------


def other_table(seed: int) -> dict[str, dict[Priority, int]]:
    """A sound table that is not the built-in one."""
    chance = random.Random(seed)
    columns: list[list[int]] = []
    for _ in Priority:
        column = sorted(chance.sample(range(1, 3000), len(TURNAROUND_TARGETS)))
        columns.append([max(a, b) for a, b in zip(column, columns[-1], strict=True)] if columns else column)
    return {
        name: {word: columns[n][row] for n, word in enumerate(Priority)} for row, name in enumerate(TURNAROUND_TARGETS)
    }


@pytest.mark.parametrize("seed", range(3))
def test_a_new_table_moves_every_unread_study(hospital: Any, seed: int) -> None:
    """After a change, unread studies stand where the table wants them, as `due_at` says; read ones stay."""
    key, table = key_of(hospital, "ada"), other_table(seed)
    kinds: list[dict[str, Any]] = [
        {
            "priority": priority,
            "assessment": assessment,
            "severity": severity,
            "status": "analysed",
            "received_at": NOW + n * S,
        }
        for n, priority in enumerate(Priority)
        for assessment in Assessment
        for severity in Extent
    ]
    for kind in kinds:
        kind["score"] = None
    kinds += [kind | {"score": score} for kind in kinds for score in (1, 4, 8) if kind["assessment"] == "abstained"]
    kinds += [{"priority": priority, "assessment": None, "severity": None, "status": status, "score": None}
              for priority in Priority for status in ("queued", "quarantined")]  # fmt: skip
    ids = add_studies(hospital.database, hospital.site_id, kinds)
    (read,) = add_studies(hospital.database, hospital.site_id, [{"read_at": NOW}])
    with hospital.database.transaction() as session:
        choose_targets(session, key, table)
    moved = 0
    with hospital.database.transaction() as session:
        while step := update_due_times(session, hospital.site_id, limit=7):
            assert step <= 7
            moved += step
    assert moved == len(ids)
    for study in ids:
        row = hospital.row(study)
        said = Assessment(row.assessment) if row.assessment else None
        summary = said and StudySummary(said, Extent(row.severity), "", 0.5, row.score)
        assert row.due_at == due_at(row.received_at, Priority(row.priority), summary or None, table)
    assert hospital.row(read).due_at == NOW


def test_new_and_finished_studies_follow_the_sites_table(hospital: Any) -> None:
    """Uploads and results are due by the table in force at their site, at once."""
    key, table = key_of(hospital, "ada"), other_table(5)
    with hospital.database.transaction() as session:
        choose_targets(session, key, table)
    study = hospital.study()
    assert hospital.row(study).due_at == due_at(NOW, Priority.ROUTINE, None, table)
    held = hospital.claim(study)
    assert hospital.finish(held, hospital.results(held))
    found = StudySummary(Assessment.POSITIVE, Extent.MILD, "hand", 0.8)
    assert hospital.row(study).due_at == due_at(NOW, Priority.ROUTINE, found, table)
    with hospital.database.transaction() as session:
        assert update_due_times(session, hospital.site_id) == 0
        assert targets_of(session, [hospital.site_id])[hospital.site_id] == table


def test_a_site_keeps_its_own_table(hospital: Any) -> None:
    """What one site chooses moves nothing elsewhere; earlier choices stay on record."""
    with hospital.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
        other = find_key(session, "osk_elsewhere")
        assert other is not None
        choose_targets(session, other, other_table(1))
        choose_targets(session, other, other_table(2))
    with hospital.database.transaction() as session:
        tables = targets_of(session, [hospital.site_id, other.site_id])
        assert session.scalar(select(func.count()).select_from(TurnaroundTargetsRow)) == 2
    assert tables == {hospital.site_id: TURNAROUND_TARGETS, other.site_id: other_table(2)}


def test_turnaround_targets_over_http(in_process: Any) -> None:
    """An admin reads and changes the table and hears how many studies moved; an unsound one is 422 in plain words."""
    (study,) = add_studies(in_process.database, in_process.key().site_id, [{"due_at": NOW + timedelta(minutes=1440)}])
    headers = in_process.headers()
    shown = in_process.http.get("/api/v1/turnaround-targets", headers=headers).json()
    assert shown == in_process.http.get("/allowances", headers=headers).json()  # its path before 0.2.0
    assert shown["minutes"] == json.loads(json.dumps(TURNAROUND_TARGETS))
    assert (shown["longest_minutes"], shown["most_minutes"], shown["chosen_by"]) == (2880, 10080, None)
    wanted = shown["minutes"] | {"negative": {"urgent": 61, "routine": 1441, "backlog": 2881}}
    response = in_process.http.put("/api/v1/turnaround-targets", json={"minutes": wanted}, headers=headers).json()
    assert (response["moved"], response["chosen_by"], response["longest_minutes"]) == (1, "admin", 2881)
    entry = in_process.http.get("/api/v1/worklist", headers=headers).json()["entries"][0]
    assert entry["study_id"] == str(study)
    assert datetime.fromisoformat(entry["due_at"]) == NOW + timedelta(minutes=1441)
    for change, words in (
        (
            {"positive": {"urgent": 9, "routine": 30, "backlog": 120}},
            "positive severe may not wait longer (10 minutes) than positive (9)",
        ),
        (
            {"negative": {"urgent": 1500, "routine": 1441, "backlog": 2881}},
            "urgent may not wait longer (1500 minutes) than routine (1441)",
        ),
        ({"negative": {"urgent": 61, "routine": 1441, "backlog": 10081}}, "no study may wait longer than 7 days"),
        ({"positive severe": {"urgent": 0, "routine": 10, "backlog": 60}}, "0 minutes"),
        ({"gone": {"urgent": 1, "routine": 1, "backlog": 1}}, "Give a row for each of: positive severe"),
        ({"negative": {"urgent": 61, "routine": 1441}}, "Give minutes for each of: urgent, routine, backlog"),
    ):
        refused = in_process.http.put("/api/v1/turnaround-targets", json={"minutes": wanted | change}, headers=headers)
        assert (refused.status_code, words in str(refused.json()["detail"])) == (422, True), refused.text
    assert (
        in_process.http.put(
            "/api/v1/turnaround-targets", json={"minutes": wanted}, headers=in_process.headers("radiologist")
        ).status_code
        == 403
    )


# -- saved filters --------------------------------------------------------------------------------------------------


def test_saved_filters_belong_to_their_key(in_process: Any) -> None:
    """A filter is saved under a name, replaced under the same, seen and deleted by its owner only."""
    mine, other = in_process.headers("radiologist"), in_process.headers("admin")

    def save(name: str, query: str) -> Any:
        return in_process.http.post("/api/v1/filters", json={"name": name, "query": query}, headers=mine)

    assert save("hands", "assessment=positive&region=hand&after=x&search=secret&state=unread").status_code == 201
    save("children", "age=0-17")
    save("hands", "region=hand&severity=mild")
    got = in_process.http.get("/api/v1/filters", headers=mine).json()
    assert [(one["name"], one["query"]) for one in got] == [
        ("children", "age=0-17"),
        ("hands", "severity=mild&region=hand"),
    ]
    assert in_process.http.get("/api/v1/filters", headers=other).json() == []
    assert in_process.http.delete(f"/api/v1/filters/{got[0]['id']}", headers=other).status_code == 404
    assert in_process.http.delete(f"/api/v1/filters/{got[0]['id']}", headers=mine).status_code == 204
    assert [one["name"] for one in in_process.http.get("/api/v1/filters", headers=mine).json()] == ["hands"]
    assert save("bad", "assessment=perhaps").status_code == 400
    for name in ("", " ", "x" * 41, "a\x1fb"):
        assert save(name, "age=0-17").status_code == 422, name
    for number in range(29):
        assert save(str(number), "age=65%2B").status_code == 201
    assert save("one too many", "age=0-17").status_code == 409


# -- search ---------------------------------------------------------------------------------------------------------


def taken_in(hospital: Hospital, number: int, identity: Identity) -> UUID:
    plain = hospital.file(number, 0)
    values = plain.header.__dict__ | {"identity": identity}
    return hospital.take_in([StoredFile(plain.sha256, 9, Header(**values))])


def test_a_number_finds_its_studies(hospital: Any) -> None:
    """Accession number and patient id find whole and exact, whatever their capitals and spaces; every search is on record."""
    key = key_of(hospital, "ada")
    one = taken_in(hospital, 9001, Identity("DOE^JANE", "AB-4711", "19700101", "ACC 1"))
    two = taken_in(hospital, 9002, Identity("DOE^JANE", "ab-4711", "", "ACC2"))
    three = taken_in(hospital, 9003, Identity("ROE^RICHARD", "", "", "AB-4711"))
    taken_in(hospital, 9004, Identity())
    for number, expected in (
        ("AB-4711", {one, two, three}),
        (" ab-4711 ", {one, two, three}),
        ("acc1", {one}),
        ("ACC2", {two}),
        ("AB-471", set()),
        ("DOE^JANE", set()),
        ("19700101", set()),
        ("", set()),
        ("%", set()),
    ):
        with hospital.database.transaction() as session:
            assert set(hospital.vault.search(session, key, number)) == expected, number
    with hospital.database.transaction() as session:
        found = session.scalars(select(IdentitySearchRow.found).order_by(IdentitySearchRow.id)).all()
        stored = session.scalars(select(IdentityTokenRow.token)).all()
    assert found == [3, 3, 1, 1, 0, 0, 0, 0, 0]
    assert all(b"4711" not in token for token in stored)


def test_a_number_is_looked_up_within_the_site(hospital: Any) -> None:
    """A reader of another site finds nothing, and the same number has another token there."""
    with hospital.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
        other = find_key(session, "osk_elsewhere")
    assert other is not None
    taken_in(hospital, 9005, Identity("", "4711", "", ""))
    with hospital.database.transaction() as session:
        assert hospital.vault.search(session, other, "4711") == []
    assert hospital.vault._token(hospital.site_id, "patient_id", "4711") != hospital.vault._token(
        other.site_id, "patient_id", "4711"
    )
    assert hospital.vault._token(hospital.site_id, "patient_id", "4711") != hospital.vault._token(
        hospital.site_id, "accession_number", "4711"
    )


def test_studies_from_before_the_search_become_searchable(hospital: Any) -> None:
    """Bounded steps write the missing tokens, each study once, those without a number too."""
    key = key_of(hospital, "ada")
    ids = [taken_in(hospital, 9100 + n, Identity("", f"P{n}" if n else "", "", "")) for n in range(5)]
    with hospital.database.transaction() as session:
        session.execute(text("DELETE FROM identity_tokens"))
        session.execute(text("UPDATE identities SET pieces = NULL"))
    steps = []
    with hospital.database.transaction() as session:
        while step := hospital.vault.make_searchable(session, 2):
            steps.append(step)
    assert steps == [2, 2, 1]
    with hospital.database.transaction() as session:
        assert hospital.vault.search(session, key, "P3") == [ids[3]]


def test_search_over_http_and_page(in_process: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Programs post the number; the page seals it, so no address and no log names a patient; names shown are recorded."""
    (study, _other) = add_studies(in_process.database, in_process.key().site_id, [{"read_at": NOW}, {}])
    parts = in_process.http.app.state.parts
    with in_process.database.transaction() as session:
        parts.vault.store_identities(session, in_process.key().site_id, {study: Identity("ZEBRA^QUAGGA", "Z-4711")})
    headers = in_process.headers("radiologist")
    with caplog.at_level("DEBUG"):
        got = in_process.http.post("/api/v1/worklist/search", json={"number": "z-4711"}, headers=headers).json()
        assert [entry["study_id"] for entry in got["entries"]] == [str(study)]
        assert in_process.http.post("/api/v1/worklist/search", json={"number": ""}, headers=headers).status_code == 422
        response = in_process.http.post("/search", data={"words": "Z-4711"}, headers=headers, follow_redirects=False)
    assert response.status_code == 303
    assert "z-4711" not in (response.headers["location"] + caplog.text).lower()
    page = in_process.http.get(response.headers["location"], headers=headers)
    assert "ZEBRA, QUAGGA" in page.text
    assert "<b>1 study</b> with “z-4711” in names" in page.text
    with in_process.database.transaction() as session:
        assert session.scalars(select(IdentityReadRow.study_id)).all() == [study]
        assert session.scalars(select(IdentitySearchRow.found)).all() == [1, 1]
    for forged in ("x", parts.vault.seal(["search", str(uuid4()), "Z-4711"]).decode(), parts.vault.seal("x").decode()):
        assert in_process.http.get("/", params={"search": forged}, headers=headers).status_code == 400
    assert in_process.http.post("/search", content="words=" + "1" * 2000, headers=headers).status_code == 400
