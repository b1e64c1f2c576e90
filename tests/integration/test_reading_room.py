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

from shared.answers import Verdict
from shared.errors import NotNow
from shared.findings import Assessment, Severity, StudySummary
from shared.repository import answers, reading_room
from shared.repository.access import Key, Role, add_key, find_key
from shared.repository.allowances import allowances_of, choose_allowances, redue
from shared.repository.reading_room import Claimed, HeldBy, claim, claims_of, mark_read, release, unread
from shared.repository.work import clock
from shared.study import Header, Identity, Priority, StoredFile
from shared.tables import (
    AllowancesRow,
    IdentityReadRow,
    IdentitySearchRow,
    IdentityTokenRow,
    StudyRow,
)
from shared.worklist import ALLOWANCES, due_at
from tests.pace import LIMIT_S, until
from tests.ward import Ward

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=60)
S = timedelta(seconds=1)


def add_studies(database: Any, site: UUID, rows: list[dict[str, Any]]) -> list[UUID]:
    """Studies straight into the table, with what a test wants different."""
    values: list[dict[str, Any]] = [
        {
            "id": uuid4(), "site_id": site, "study_instance_uid": f"1.2.{uuid4().int}", "priority": "routine",
            "queue": "routine", "status": "analysed", "received_at": NOW, "due_at": NOW, "attempts": 1, "reason": "",
            "modality": "CR", "assessment": "negative", "severity": "none", "region": "hand", "images": 1,
            "failed_images": 0, "age_years": None, "read_at": None,
            "abstention": "metal" if row.get("assessment") == "abstained" else None,
        } | row for row in rows
    ]  # fmt: skip
    with database.transaction() as session:
        session.execute(insert(StudyRow), values)
    return [value["id"] for value in values]


def key_of(ward: Any, name: str) -> Key:
    with ward.database.transaction() as session:
        add_key(session, "default", name, Role.RADIOLOGIST, f"secret of {name}")
        found = find_key(session, f"secret of {name}")
    assert found is not None
    return found


def listed(api: Any, **query: Any) -> list[str]:
    answer = api.http.get("/worklist", params=query, headers=api.headers("radiologist"))
    assert answer.status_code == 200, answer.text
    return [entry["study_id"] for entry in answer.json()["entries"]]


# -- claims ---------------------------------------------------------------------------------------------------------


def test_a_claim_keeps_others_out_until_it_ends(ward: Any) -> None:
    """The second reader is told who has the study and since when; once the lease has run out it is theirs."""
    study, ada, bob = ward.study(), key_of(ward, "ada"), key_of(ward, "bob")
    with ward.database.transaction() as session:
        assert isinstance(claim(session, study, ada, "1", NOW, LEASE), Claimed)
        assert claim(session, study, bob, "2", NOW + S, LEASE) == HeldBy("ada", NOW, NOW + LEASE, same_key=False)
        assert isinstance(claim(session, study, ada, "1", NOW + 30 * S, LEASE), Claimed)  # prolongs it
        assert isinstance(claim(session, study, bob, "2", NOW + 61 * S, LEASE), HeldBy)
        got = claim(session, study, bob, "2", NOW + 91 * S, LEASE)
        assert isinstance(got, Claimed)
        past = claims_of(session, study)
    assert [(one.name, one.ended, one.ended_at, one.taken_from) for one in past] == [
        ("ada", "expired", NOW + 90 * S, None),
        ("bob", "", None, None),
    ]


def test_a_takeover_is_on_record(ward: Any) -> None:
    """Whoever takes over has the study, the other one is told, and the history names both."""
    study, ada, bob = ward.study(), key_of(ward, "ada"), key_of(ward, "bob")
    with ward.database.transaction() as session:
        claim(session, study, ada, "1", NOW, LEASE)
        assert isinstance(claim(session, study, bob, "2", NOW + S, LEASE, take_over=True), Claimed)
        assert claim(session, study, ada, "1", NOW + 2 * S, LEASE) == HeldBy(
            "bob", NOW + S, NOW + S + LEASE, same_key=False
        )
        past = claims_of(session, study)
    assert [(one.name, one.taken_from, one.ended) for one in past] == [("ada", None, "taken over"), ("bob", "ada", "")]


def test_two_people_with_one_key_are_two_readers(ward: Any) -> None:
    """Another login of the same key is asked as anybody else is, and gets the study on purpose only, or after the lease."""
    study, ada = ward.study(), key_of(ward, "ada")
    with ward.database.transaction() as session:
        one = claim(session, study, ada, "one desk", NOW, LEASE)
        assert isinstance(one, Claimed)
        asked = claim(session, study, ada, "another", NOW + S, LEASE)
        assert asked == HeldBy("ada", NOW, NOW + LEASE, same_key=True)
        other = claim(session, study, ada, "another", NOW + S, LEASE, take_over=True)
        assert isinstance(other, Claimed)
        assert other.own_since == NOW
        told = claim(session, study, ada, "one desk", NOW + 2 * S, LEASE, token=one.token)
        assert told == HeldBy("ada", NOW + S, NOW + S + LEASE, same_key=True)
        kept = claim(session, study, ada, "another", NOW + 3 * S, LEASE, token=other.token)
        assert isinstance(kept, Claimed)
        assert [(one.ended, one.taken_from) for one in claims_of(session, study)] == [("taken over", None), ("", "ada")]
        assert isinstance(claim(session, study, ada, "third", NOW + 64 * S, LEASE), Claimed)  # that desk has gone


def test_a_new_claim_ends_those_of_pages_that_died(ward: Any) -> None:
    """A page that says no farewell leaves its claim open until somebody claims anything: it ends when its lease did."""
    dead, other, ada, bob = ward.study(), ward.study(), key_of(ward, "ada"), key_of(ward, "bob")
    with ward.database.transaction() as session:
        claim(session, dead, ada, "1", NOW, LEASE)
        claim(session, other, bob, "2", NOW + 60 * S, LEASE)
        assert [(one.ended, one.ended_at) for one in claims_of(session, dead)] == [("", None)]
        claim(session, ward.study(), bob, "2", NOW + 61 * S, LEASE)
        assert [(one.ended, one.ended_at) for one in claims_of(session, dead)] == [("expired", NOW + LEASE)]
        assert [one.ended for one in claims_of(session, other)] == [""]


@pytest.mark.parametrize("first", ["done", "claim"])
def test_done_and_a_claim_at_once_never_wait_for_each_other(ward: Any, first: str) -> None:
    """However "done" and a new claim of one study meet, one waits for the other, and neither for a deadlock."""
    study, ada, bob = ward.study(), key_of(ward, "ada"), key_of(ward, "bob")
    met, go_on = threading.Event(), threading.Event()

    def done() -> None:
        with ward.database.transaction() as session:
            answers.hold(session, ada.site_id, study)
            if first == "done":
                met.set()
                go_on.wait(LIMIT_S)
            answers.append(session, ada, "request", answers.Said(study, Verdict.DONE))

    def take() -> None:
        with ward.database.transaction() as session:
            reading_room.lock_claims(session, study)  # as far as a claim has come before it writes its row
            if first == "claim":
                met.set()
                go_on.wait(LIMIT_S)
            claim(session, study, bob, "", clock(session), LEASE)

    early, late = (done, take) if first == "done" else (take, done)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(early)
        assert met.wait(LIMIT_S)
        two = pool.submit(late)
        with ward.database.transaction() as session:
            waits = select(func.count()).select_from(text("pg_locks")).where(text("NOT granted"))
            until(lambda: session.scalar(waits), 10, every_s=0.02)
        go_on.set()
        one.result(LIMIT_S)
        if first == "done":
            two.result(LIMIT_S)
        else:  # bob holds it by then
            with pytest.raises(NotNow):
                two.result(LIMIT_S)


def test_only_the_newest_page_gives_the_study_back(ward: Any) -> None:
    """A page that is loaded again claims before the old one's farewell comes: that must not free the study."""
    study, ada, bob = ward.study(), key_of(ward, "ada"), key_of(ward, "bob")
    with ward.database.transaction() as session:
        old = claim(session, study, ada, "1", NOW, LEASE)
        assert isinstance(old, Claimed)
        kept = claim(session, study, ada, "1", NOW + S, LEASE, token=old.token)
        assert isinstance(kept, Claimed)
        assert kept.token == old.token
        new = claim(session, study, ada, "1", NOW + 2 * S, LEASE)
        assert isinstance(new, Claimed)
        assert not release(session, study, ada, old.token, NOW + 2 * S)
        assert not release(session, study, bob, new.token, NOW + 2 * S)
        assert isinstance(claim(session, study, bob, "2", NOW + 3 * S, LEASE), HeldBy)
        assert release(session, study, ada, new.token, NOW + 3 * S)
        again = claim(session, study, ada, "1", NOW + 4 * S, LEASE)  # the page is back at once: one line of history
        assert isinstance(again, Claimed)
        assert again.since == NOW
        assert release(session, study, ada, again.token, NOW + 5 * S)
        assert isinstance(claim(session, study, bob, "2", NOW + 6 * S, LEASE), Claimed)
        assert [one.ended for one in claims_of(session, study)] == ["released", ""]


def test_a_page_that_leaves_before_it_is_answered_gives_the_study_back(ward: Any) -> None:
    """Its token is its own: it need not wait for the answer to know it. A second page's renewal makes it the newest."""
    study, ada, bob = ward.study(), key_of(ward, "ada"), key_of(ward, "bob")
    one, two = uuid4(), uuid4()
    with ward.database.transaction() as session:
        got = claim(session, study, ada, "1", NOW, LEASE, token=one)
        assert isinstance(got, Claimed)
        assert got.token == one
        assert release(session, study, ada, one, NOW + S)
        assert isinstance(claim(session, study, bob, "2", NOW + 2 * S, LEASE, token=one), Claimed)
        assert not release(session, study, ada, one, NOW + 3 * S)  # the token alone frees nobody else's
        for page in (one, two, one):
            assert isinstance(claim(session, study, bob, "2", NOW + 4 * S, LEASE, token=page), Claimed)
        assert not release(session, study, bob, two, NOW + 5 * S)


def test_of_many_at_once_one_gets_it(ward: Any) -> None:
    """However many ask in the same moment, one has the study and the others are told so."""
    study = ward.study()
    keys = [key_of(ward, f"reader {number}") for number in range(6)]
    start = threading.Barrier(len(keys))

    def ask(key: Key) -> Any:
        with ward.database.transaction() as session:
            start.wait(LIMIT_S)
            return claim(session, study, key, "", NOW, LEASE)

    with ThreadPoolExecutor(len(keys)) as pool:
        answers = list(pool.map(ask, keys))
    (winner,) = [key.name for key, answer in zip(keys, answers, strict=True) if isinstance(answer, Claimed)]
    assert {answer.name for answer in answers if isinstance(answer, HeldBy)} == {winner}


def test_claims_over_http(in_process: Any) -> None:
    """A claim is 200, somebody else's 409 with who and since when; a stranger's study is 404; submitters claim none."""
    (study,) = add_studies(in_process.database, in_process.key().site_id, [{}])
    url, mine, other = f"/studies/{study}/claim", in_process.headers("radiologist"), in_process.headers("admin")
    got = in_process.http.post(url, headers=mine)
    assert (got.status_code, got.json()["mine"], got.json()["name"]) == (200, True, "radiologist")
    refused = in_process.http.post(url, headers=other)
    assert refused.status_code == 409
    assert (refused.json()["mine"], refused.json()["name"]) == (False, "radiologist")
    assert refused.json()["since"] == got.json()["since"]
    assert in_process.http.get(url, headers=other).json()["name"] == "radiologist"
    row = in_process.http.get("/worklist", headers=other).json()["entries"][0]
    assert (row["reader"], row["reading_since"]) == ("radiologist", got.json()["since"])
    assert in_process.http.post(f"{url}?take_over=true", headers=other).json()["mine"] is True
    assert in_process.http.delete(f"{url}/{got.json()['claim']}", headers=mine).status_code == 204  # no longer theirs
    assert in_process.http.get(url, headers=mine).json()["name"] == "admin"
    history = in_process.http.get(f"/studies/{study}/claims", headers=mine).json()
    assert [(one["name"], one["taken_from"]) for one in history] == [("radiologist", None), ("admin", "radiologist")]
    assert in_process.http.post(f"/studies/{uuid4()}/claim", headers=mine).status_code == 404
    assert in_process.http.post(url, headers=in_process.headers("submitter")).status_code == 403


def test_another_sites_study_cannot_be_claimed(in_process: Any) -> None:
    """A study of another site is as if it were not there."""
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
        other = find_key(session, "osk_elsewhere")
    assert other is not None
    (study,) = add_studies(in_process.database, other.site_id, [{}])
    for method, path in (("POST", "claim"), ("GET", "claim"), ("GET", "claims")):
        answer = in_process.http.request(method, f"/studies/{study}/{path}", headers=in_process.headers())
        assert answer.status_code == 404


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
    first = in_process.http.get("/worklist", params={"state": "read", "limit": 2}, headers=in_process.headers()).json()
    rest = listed(in_process, state="read", limit=2, after=first["next"])
    assert [entry["study_id"] for entry in first["entries"]] + rest == [str(ids[n]) for n in (3, 1, 4)]
    assert first["counts"]["analysed"] == 3
    with in_process.database.transaction() as session:
        unread(session, ids[1], key)
    assert listed(in_process) == [str(ids[n]) for n in (0, 1, 2, 5)]


def test_reading_ends_the_claim(ward: Any) -> None:
    """A study that was read is held by nobody, and the history says who read it, claimed or not."""
    study, other, ada = ward.study(), ward.study(), key_of(ward, "ada")
    with ward.database.transaction() as session:
        claim(session, study, ada, "1", NOW, LEASE)
        mark_read(session, study, ada, NOW + S, "1")
        mark_read(session, other, ada, NOW + S, "1")
        assert reading_room.holder(session, study, NOW + S) is None
        for one in (study, other):
            assert [(past.name, past.ended) for past in claims_of(session, one)] == [("ada", "read")]
    assert ward.row(study).read_at == NOW + S


def test_nobody_finishes_what_somebody_else_reads(ward: Any) -> None:
    """While another reader, or another login of the key, holds a study, it is not done; once their lease ended, it is."""
    study, ada, bob = ward.study(), key_of(ward, "ada"), key_of(ward, "bob")
    with ward.database.transaction() as session:
        claim(session, study, ada, "1", NOW, LEASE)
        with pytest.raises(NotNow, match="ada reads this study now"):
            mark_read(session, study, bob, NOW + S, "2")
        with pytest.raises(NotNow, match="Another login of your own key, ada, reads"):
            mark_read(session, study, ada, NOW + S, "2")
        assert ward.row(study).read_at is None
        mark_read(session, study, bob, NOW + 61 * S, "2")
        past = claims_of(session, study)
    assert [(one.name, one.ended, one.ended_at) for one in past] == [
        ("ada", "expired", NOW + LEASE),
        ("bob", "read", NOW + 61 * S),
    ]


def test_only_looking_finishes_nothing(in_process: Any) -> None:
    """Over HTTP "done" is 409 with words while somebody else holds the study, and 201 after a takeover."""
    (study,) = add_studies(in_process.database, in_process.key().site_id, [{}])
    mine, other = in_process.headers("radiologist"), in_process.headers("admin")
    url, done = f"/studies/{study}", {"verdict": "done"}
    in_process.http.post(f"{url}/claim", headers=mine)
    refused = in_process.http.post(f"{url}/answers", json=done, headers=other)
    assert (refused.status_code, "radiologist reads this study now" in refused.json()["detail"]) == (409, True)
    assert in_process.http.get(f"{url}/claim", headers=other).json()["name"] == "radiologist"
    assert in_process.http.get(f"{url}/answers", headers=other).json()["entries"] == []
    in_process.http.post(f"{url}/claim?take_over=true", headers=other)
    assert in_process.http.post(f"{url}/answers", json=done, headers=other).status_code == 201
    assert in_process.http.get(f"{url}/claim", headers=mine).json()["name"] == ""


def test_the_next_study_is_in_no_other_hands_and_on_the_readers_list(in_process: Any) -> None:
    """Passed by: what another login of the same key holds, and what the filter that the reader came with does not show."""
    kinds: list[dict[str, Any]] = [{}, {"region": "leg"}, {"region": "hand"}, {"region": "leg"}]
    kinds = [{"due_at": NOW + n * 60 * S, **kind} for n, kind in enumerate(kinds)]
    ids = add_studies(in_process.database, in_process.key().site_id, kinds)
    key = in_process.key("radiologist")
    with in_process.database.transaction() as session:
        claim(session, ids[1], key, "1", clock(session), LEASE)
        assert answers.next_unread(session, key, ids[0], "1") == ids[1]
        assert answers.next_unread(session, key, ids[0], "2") == ids[2]

    def following(worklist: str) -> Any:
        query, headers = {"worklist": worklist}, in_process.headers("radiologist")
        return in_process.http.get(f"/studies/{ids[0]}/answers", params=query, headers=headers).json()["next_study"]

    assert following("") == f"/view/{ids[2]}"
    assert following("?region=leg&after=x") == f"/view/{ids[3]}"
    assert following("?region=leg&state=read") == f"/view/{ids[3]}"
    assert following("?region=wrist") is None
    assert following("?search=sealed&region=wrist") == f"/view/{ids[2]}"


def test_a_row_is_yours_by_key_and_login_not_by_name(in_process: Any) -> None:
    """Two keys may have one name, and two people one key: only what this login reads is "you read it"."""
    (study,) = add_studies(in_process.database, in_process.key().site_id, [{}])
    with in_process.database.transaction() as session:
        claim(session, study, in_process.key("radiologist"), "another desk", clock(session), LEASE)
    headers = in_process.headers("radiologist")
    (entry,) = in_process.http.get("/worklist", headers=headers).json()["entries"]
    assert (entry["reader"], entry["mine"]) == ("radiologist", False)
    assert "radiologist reads it" in in_process.http.get("/", headers=headers).text
    in_process.http.post(f"/studies/{study}/claim?take_over=true", headers=headers)
    assert in_process.http.get("/worklist", headers=headers).json()["entries"][0]["mine"] is True
    assert "you read it" in in_process.http.get("/", headers=headers).text


def test_a_late_image_opens_a_read_study_again(ward: Any) -> None:
    """Whoever read it has not seen the new image, so the study comes back to the list."""
    files = [ward.file(4711, image) for image in range(2)]
    study, ada = ward.take_in(files[:1]), key_of(ward, "ada")
    with ward.database.transaction() as session:
        mark_read(session, study, ada, NOW)
    ward.take_in(files[:1])
    assert ward.row(study).read_at == NOW  # the same image again is no news
    ward.take_in(files)
    assert ward.row(study).read_at is None


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
        assert in_process.http.get("/worklist", params=wrong, headers=in_process.headers()).status_code == 422, wrong


# -- allowances -----------------------------------------------------------------------------------------------------


def other_table(seed: int) -> dict[str, dict[Priority, int]]:
    """A sound table that is not the built-in one."""
    chance = random.Random(seed)
    columns: list[list[int]] = []
    for _ in Priority:
        column = sorted(chance.sample(range(1, 3000), len(ALLOWANCES)))
        columns.append([max(a, b) for a, b in zip(column, columns[-1], strict=True)] if columns else column)
    return {name: {word: columns[n][row] for n, word in enumerate(Priority)} for row, name in enumerate(ALLOWANCES)}


@pytest.mark.parametrize("seed", range(3))
def test_a_new_table_moves_every_unread_study(ward: Any, seed: int) -> None:
    """After a change, unread studies stand where the table wants them, as `due_at` says; read ones stay."""
    key, table = key_of(ward, "ada"), other_table(seed)
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
        for severity in Severity
    ]
    for kind in kinds:
        kind["score"] = None
    kinds += [kind | {"score": score} for kind in kinds for score in (1, 4, 8) if kind["assessment"] == "abstained"]
    kinds += [{"priority": priority, "assessment": None, "severity": None, "status": status, "score": None}
              for priority in Priority for status in ("queued", "running", "retrying", "quarantined")]  # fmt: skip
    ids = add_studies(ward.database, ward.site_id, kinds)
    (read,) = add_studies(ward.database, ward.site_id, [{"read_at": NOW}])
    with ward.database.transaction() as session:
        choose_allowances(session, key, table)
    moved = 0
    with ward.database.transaction() as session:
        while step := redue(session, ward.site_id, most=7):
            assert step <= 7
            moved += step
    assert moved == len(ids)
    for study in ids:
        row = ward.row(study)
        said = Assessment(row.assessment) if row.assessment else None
        summary = said and StudySummary(said, Severity(row.severity), "", 0.5, row.score)
        assert row.due_at == due_at(row.received_at, Priority(row.priority), summary or None, table)
    assert ward.row(read).due_at == NOW


def test_new_and_finished_studies_follow_the_sites_table(ward: Any) -> None:
    """Uploads and results are due by the table in force at their site, at once."""
    key, table = key_of(ward, "ada"), other_table(5)
    with ward.database.transaction() as session:
        choose_allowances(session, key, table)
    study = ward.study()
    assert ward.row(study).due_at == due_at(NOW, Priority.ROUTINE, None, table)
    held = ward.claim(study)
    assert ward.finish(held, ward.answers(held))
    found = StudySummary(Assessment.POSITIVE, Severity.MILD, "hand", 0.8)
    assert ward.row(study).due_at == due_at(NOW, Priority.ROUTINE, found, table)
    with ward.database.transaction() as session:
        assert redue(session, ward.site_id) == 0
        assert allowances_of(session, [ward.site_id])[ward.site_id] == table


def test_a_site_keeps_its_own_table(ward: Any) -> None:
    """What one site chooses moves nothing elsewhere; earlier choices stay on record."""
    with ward.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
        other = find_key(session, "osk_elsewhere")
        assert other is not None
        choose_allowances(session, other, other_table(1))
        choose_allowances(session, other, other_table(2))
    with ward.database.transaction() as session:
        tables = allowances_of(session, [ward.site_id, other.site_id])
        assert session.scalar(select(func.count()).select_from(AllowancesRow)) == 2
    assert tables == {ward.site_id: ALLOWANCES, other.site_id: other_table(2)}


def test_allowances_over_http(in_process: Any) -> None:
    """An admin reads and changes the table and hears how many studies moved; an unsound one is 422 in plain words."""
    (study,) = add_studies(in_process.database, in_process.key().site_id, [{"due_at": NOW + timedelta(minutes=1440)}])
    headers = in_process.headers()
    shown = in_process.http.get("/allowances", headers=headers).json()
    assert shown["minutes"] == json.loads(json.dumps(ALLOWANCES))
    assert (shown["longest_minutes"], shown["most_minutes"], shown["chosen_by"]) == (2880, 10080, None)
    wanted = shown["minutes"] | {"negative": {"urgent": 61, "routine": 1441, "backlog": 2881}}
    answer = in_process.http.put("/allowances", json={"minutes": wanted}, headers=headers).json()
    assert (answer["moved"], answer["chosen_by"], answer["longest_minutes"]) == (1, "admin", 2881)
    entry = in_process.http.get("/worklist", headers=headers).json()["entries"][0]
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
        refused = in_process.http.put("/allowances", json={"minutes": wanted | change}, headers=headers)
        assert (refused.status_code, words in str(refused.json()["detail"])) == (422, True), refused.text
    assert (
        in_process.http.put(
            "/allowances", json={"minutes": wanted}, headers=in_process.headers("radiologist")
        ).status_code
        == 403
    )


# -- saved filters --------------------------------------------------------------------------------------------------


def test_saved_filters_belong_to_their_key(in_process: Any) -> None:
    """A filter is saved under a name, replaced under the same, seen and deleted by its owner only."""
    mine, other = in_process.headers("radiologist"), in_process.headers("admin")

    def save(name: str, query: str) -> Any:
        return in_process.http.post("/filters", json={"name": name, "query": query}, headers=mine)

    assert save("hands", "assessment=positive&region=hand&after=x&search=secret&state=unread").status_code == 201
    save("children", "age=0-17")
    save("hands", "region=hand&severity=mild")
    got = in_process.http.get("/filters", headers=mine).json()
    assert [(one["name"], one["query"]) for one in got] == [
        ("children", "age=0-17"),
        ("hands", "severity=mild&region=hand"),
    ]
    assert in_process.http.get("/filters", headers=other).json() == []
    assert in_process.http.delete(f"/filters/{got[0]['id']}", headers=other).status_code == 404
    assert in_process.http.delete(f"/filters/{got[0]['id']}", headers=mine).status_code == 204
    assert [one["name"] for one in in_process.http.get("/filters", headers=mine).json()] == ["hands"]
    assert save("bad", "assessment=perhaps").status_code == 400
    for name in ("", " ", "x" * 41, "a\0b"):
        assert save(name, "age=0-17").status_code == 422, name
    for number in range(29):
        assert save(str(number), "age=65%2B").status_code == 201
    assert save("one too many", "age=0-17").status_code == 409


# -- search ---------------------------------------------------------------------------------------------------------


def taken_in(ward: Ward, number: int, identity: Identity) -> UUID:
    plain = ward.file(number, 0)
    values = plain.header.__dict__ | {"identity": identity}
    return ward.take_in([StoredFile(plain.sha256, 9, Header(**values))])


def test_a_number_finds_its_studies(ward: Any) -> None:
    """Accession number and patient id find whole and exact, whatever their capitals and spaces; every search is on record."""
    key = key_of(ward, "ada")
    one = taken_in(ward, 9001, Identity("DOE^JANE", "AB-4711", "19700101", "ACC 1"))
    two = taken_in(ward, 9002, Identity("DOE^JANE", "ab-4711", "", "ACC2"))
    three = taken_in(ward, 9003, Identity("ROE^RICHARD", "", "", "AB-4711"))
    taken_in(ward, 9004, Identity())
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
        with ward.database.transaction() as session:
            assert set(ward.vault.search(session, key, number)) == expected, number
    with ward.database.transaction() as session:
        found = session.scalars(select(IdentitySearchRow.found).order_by(IdentitySearchRow.id)).all()
        stored = session.scalars(select(IdentityTokenRow.token)).all()
    assert found == [3, 3, 1, 1, 0, 0, 0, 0, 0]
    assert all(b"4711" not in token for token in stored)


def test_a_number_is_looked_up_within_the_site(ward: Any) -> None:
    """A reader of another site finds nothing, and the same number has another token there."""
    with ward.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
        other = find_key(session, "osk_elsewhere")
    assert other is not None
    taken_in(ward, 9005, Identity("", "4711", "", ""))
    with ward.database.transaction() as session:
        assert ward.vault.search(session, other, "4711") == []
    assert ward.vault._token(ward.site_id, "patient_id", "4711") != ward.vault._token(
        other.site_id, "patient_id", "4711"
    )
    assert ward.vault._token(ward.site_id, "patient_id", "4711") != ward.vault._token(
        ward.site_id, "accession_number", "4711"
    )


def test_studies_from_before_the_search_become_searchable(ward: Any) -> None:
    """Bounded steps write the missing tokens, each study once, those without a number too."""
    key = key_of(ward, "ada")
    ids = [taken_in(ward, 9100 + n, Identity("", f"P{n}" if n else "", "", "")) for n in range(5)]
    with ward.database.transaction() as session:
        session.execute(text("DELETE FROM identity_tokens"))
    steps = []
    with ward.database.transaction() as session:
        while step := ward.vault.make_searchable(session, 2):
            steps.append(step)
    assert steps == [2, 2, 1]
    with ward.database.transaction() as session:
        assert ward.vault.search(session, key, "P3") == [ids[3]]


def test_search_over_http_and_page(in_process: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Programs post the number; the page seals it, so no address and no log names a patient; names shown are recorded."""
    (study, _other) = add_studies(in_process.database, in_process.key().site_id, [{"read_at": NOW}, {}])
    parts = in_process.http.app.state.parts
    with in_process.database.transaction() as session:
        parts.vault.keep_identities(session, in_process.key().site_id, {study: Identity("ZEBRA^QUAGGA", "Z-4711")})
    headers = in_process.headers("radiologist")
    with caplog.at_level("DEBUG"):
        got = in_process.http.post("/worklist/search", json={"number": "z-4711"}, headers=headers).json()
        assert [entry["study_id"] for entry in got["entries"]] == [str(study)]
        assert in_process.http.post("/worklist/search", json={"number": ""}, headers=headers).status_code == 422
        answer = in_process.http.post("/search", data={"number": "Z-4711"}, headers=headers, follow_redirects=False)
    assert answer.status_code == 303
    assert "4711" not in answer.headers["location"]
    assert "4711" not in caplog.text
    page = in_process.http.get(answer.headers["location"], headers=headers)
    assert "ZEBRA, QUAGGA" in page.text
    assert "1 study with exactly this number" in page.text
    with in_process.database.transaction() as session:
        assert session.scalars(select(IdentityReadRow.study_id)).all() == [study]
        assert session.scalars(select(IdentitySearchRow.found)).all() == [1, 1]
    for forged in ("x", parts.vault.seal(["search", str(uuid4()), "Z-4711"]).decode(), parts.vault.seal("x").decode()):
        assert in_process.http.get("/", params={"search": forged}, headers=headers).status_code == 400
    assert in_process.http.post("/search", content="number=" + "1" * 2000, headers=headers).status_code == 400
