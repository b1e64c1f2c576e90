"""When a study is complete, on real Postgres: uploads, associations that are released or cut, senders' counts, limits."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from shared.db.engine import Database
from shared.db.tables import SendingRow, SeriesRow, StudyRow
from shared.domain.completeness import Completeness
from shared.domain.peers import PeerRule
from shared.domain.security import System
from shared.domain.study import Priority
from shared.errors import Unavailable
from shared.queries import completeness, peers
from shared.queries.completeness import SeriesCount
from shared.queries.intake import take_in
from shared.settings import Settings
from tests.hospital import Hospital
from tests.integration.test_held_files import image, sent
from tests.pace import LIMIT_S, until
from worker.maintenance.sweeper import Sweeper
from worker.tasks import MessageCount

QUIET, LIMIT = timedelta(seconds=20), timedelta(minutes=15)
TIMES = [SendingRow.began_at, SendingRow.ended_at, SendingRow.asked_at, SendingRow.answered_at]


class Department:
    """A site whose studies come by associations, and a clock that can be set forward."""

    def __init__(self, database: Database, hospital: Hospital) -> None:
        self.database, self.hospital = database, hospital
        with database.transaction() as session:
            self.peers = [
                peers.admit(session, System.PREPARE, hospital.site_id, rule).id
                for rule in (
                    PeerRule("CR1"),
                    PeerRule("CR2"),
                    PeerRule("PACS", "OSTEON", "", "", True, False, "pacs", 104, "PACS"),
                )
            ]

    def image(self, number: int, association: UUID | None = None, peer: int = 0, study: int = 900) -> UUID:
        """An image of a study comes, in one transaction, as the intake and the listener write it."""
        with self.database.transaction() as session:
            now = session.scalar(select(func.clock_timestamp()))
            assert now is not None
            (taken,) = take(session, self.hospital, study, number, now)
            if association is not None:
                completeness.record_sending(session, self.peers[peer], {association: {taken}})
        return taken

    def end(self, association: UUID, *, released: bool = True) -> None:
        """An association ends."""
        with self.database.transaction() as session:
            completeness.record_ended(session, [association], released=released)

    def wait(self, seconds: float) -> None:
        """Let time pass: all that is stored was so much earlier."""
        by = timedelta(seconds=seconds)
        with self.database.transaction() as session:
            session.execute(update(SendingRow).values({column.key: column - by for column in TIMES}))
            session.execute(
                update(StudyRow).values(
                    completeness_since=StudyRow.completeness_since - by, last_received_at=StudyRow.last_received_at - by
                )
            )

    def sweep(self) -> int:
        """What the worker does every few seconds."""
        with self.database.transaction() as session:
            return completeness.complete_studies(session, QUIET, LIMIT)[0]

    def state(self, study: UUID) -> str:
        """State, as it is stored."""
        with self.database.transaction() as session:
            return session.get_one(StudyRow, study).completeness

    def stands(self, study: UUID) -> tuple[str, int, int | None]:
        """State, stored, expected, after a sweep."""
        self.sweep()
        with self.database.transaction() as session:
            row = session.get_one(StudyRow, study)
            return row.completeness, row.images, row.expected_images

    def ask(self, answer: Any) -> int:
        """The listener's look for counts that are due; each is answered so."""
        with self.database.transaction() as session:
            due = completeness.take_due_counts(session)
        for question in due:
            with self.database.transaction() as session:
                completeness.record_count(session, question, answer)
        return len(due)


def take(session: Any, hospital: Hospital, study: int, number: int, now: Any) -> list[UUID]:
    """Rows of one file."""
    return [
        one.study_id
        for one in take_in(
            session, hospital.vault, hospital.site_id, Priority.ROUTINE, [hospital.file(study, number)], now
        )
    ]


@pytest.fixture
def department(database: Database, hospital: Hospital) -> Department:
    return Department(database, hospital)


RECEIVING, COMPLETE, FORCED = Completeness


def test_an_upload_ends_with_its_response(department: Department) -> None:
    """Complete after the quiet time; a late image opens the study again, and its time begins anew."""
    study = department.image(1)
    assert department.stands(study) == (RECEIVING, 1, None)
    department.wait(15)
    department.image(2)
    department.wait(15)
    assert department.stands(study) == (RECEIVING, 2, None)
    department.wait(6)
    assert department.stands(study) == (COMPLETE, 2, None)
    department.wait(3600)
    department.image(2)  # is there already
    assert department.stands(study) == (COMPLETE, 2, None)
    department.image(3)
    assert department.stands(study) == (RECEIVING, 3, None)
    department.wait(21)
    assert department.stands(study) == (COMPLETE, 3, None)


def test_one_instance_an_association(department: Department) -> None:
    """Each release begins the quiet time anew; all of them are gone once the study is complete."""
    for number in range(3):
        association = uuid4()
        study = department.image(number, association)
        department.wait(15)
        assert department.stands(study)[0] is not COMPLETE
        department.end(association)
        department.wait(15)
        assert department.stands(study) == (RECEIVING, number + 1, None)
    department.wait(6)
    assert department.stands(study) == (COMPLETE, 3, None)
    with department.database.transaction() as session:
        assert session.scalars(select(SendingRow)).all() == []


def test_three_senders_at_once(department: Department) -> None:
    """A study is complete a while after the last of its associations, whoever ended first; an open one is waited for."""
    associations = [uuid4() for _ in range(3)]
    start = threading.Barrier(3)

    def send(number: int) -> None:
        start.wait()
        for each in range(4):
            department.image(10 * number + each, associations[number], number)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    department.wait(60)
    for ended in associations[:2]:
        department.end(ended)
        department.wait(60)
        study = department.image(0, associations[0])
        assert department.stands(study) == (RECEIVING, 12, None)
    department.end(associations[2])
    assert department.ask(12) == 0  # the third can be asked, in 30 seconds
    department.wait(31)
    assert department.ask(12) == 1
    assert department.stands(study) == (COMPLETE, 12, 12)
    for number in range(3):
        department.image(10 * number + 9, uuid4(), number)
    assert department.stands(study) == (RECEIVING, 15, 12)


@pytest.mark.parametrize("again", [True, False])
def test_after_an_aborted_association(department: Department, *, again: bool) -> None:
    """The rest is waited for until the sender has come again, or for the longest time; nothing is discarded."""
    cut, other = uuid4(), uuid4()
    study = department.image(1, cut)
    department.image(2, other, 1)
    department.end(cut, released=False)
    department.end(other)
    department.wait(600)
    assert department.stands(study) == (RECEIVING, 2, None)
    if again:
        once_more = uuid4()
        department.image(1, once_more)  # a duplicate
        department.image(3, once_more)
        department.end(once_more)
        department.wait(21)
        assert department.stands(study) == (COMPLETE, 3, None)
        return
    department.wait(301)
    assert department.stands(study) == (FORCED, 2, None)
    department.image(3)
    assert department.stands(study) == (RECEIVING, 3, None)
    department.wait(21)
    assert department.stands(study) == (COMPLETE, 3, None)


def test_an_association_that_never_ends(department: Department) -> None:
    """A listener that was killed says nothing of its associations: the longest time ends it."""
    study = department.image(1, uuid4())
    department.wait(899)
    assert department.stands(study) == (RECEIVING, 1, None)
    department.wait(2)
    assert department.stands(study) == (FORCED, 1, None)


def test_one_study_by_http_and_dicom_at_once(department: Department) -> None:
    """An upload does not end what an association still sends."""
    association = uuid4()
    study = department.image(1, association)
    department.image(2)
    department.wait(60)
    assert department.stands(study) == (RECEIVING, 2, None)
    department.end(association)
    department.image(3)
    department.wait(21)
    assert department.stands(study) == (COMPLETE, 3, None)


def test_a_sender_s_count(department: Department) -> None:
    """Asked 30 s and 2 min after the end; "2 of 3" until the third comes, which completes it at once."""
    association = uuid4()
    study = department.image(1, association, 2)
    department.image(2, association, 2)
    assert department.ask(3) == 0
    department.end(association)
    department.wait(25)
    assert department.ask(3) == 0
    assert department.stands(study) == (RECEIVING, 2, None)  # the count is awaited
    department.wait(6)
    assert department.ask(3) == 1
    assert department.ask(3) == 0
    assert department.stands(study) == (RECEIVING, 2, 3)
    department.wait(90)
    assert department.ask(3) == 1
    department.wait(300)
    assert department.ask(3) == 0
    assert department.stands(study) == (RECEIVING, 2, 3)
    department.image(3, uuid4(), 2)
    assert department.stands(study) == (COMPLETE, 3, 3)


def test_a_count_that_is_never_reached(department: Department) -> None:
    """The study is said to have 2 of 3 images when its longest time is over; a fourth makes the count worthless."""
    association = uuid4()
    study = department.image(1, association, 2)
    department.image(2, association, 2)
    department.end(association)
    department.wait(31)
    department.ask(3)
    department.wait(870)
    assert department.stands(study) == (FORCED, 2, 3)
    department.image(3)
    department.image(4)
    department.wait(19)
    assert department.stands(study) == (RECEIVING, 4, 3)
    department.wait(2)
    assert department.stands(study) == (COMPLETE, 4, 3)


@pytest.mark.parametrize("answered", [True, False])
def test_a_sender_that_does_not_count(department: Department, *, answered: bool) -> None:
    """Neither a useless answer nor a listener that asks nobody keeps a study for long."""
    association = uuid4()
    study = department.image(1, association, 2)
    department.end(association)
    department.wait(31)
    if answered:
        assert department.ask(None) == 1
    else:
        assert department.stands(study) == (RECEIVING, 1, None)
        department.wait(20)
    assert department.stands(study) == (COMPLETE, 1, None)


def test_series_that_hold_no_radiographs_are_not_expected(department: Department) -> None:
    """A PACS counts reports too, ours among them; what it has more in a series of images is missing here."""
    association = uuid4()
    study = department.image(1, association, 2)
    with department.database.transaction() as session:
        session.add(
            SeriesRow(site_id=department.hospital.site_id, study_id=study, series_instance_uid="1.5", modality="CR")
        )
    department.end(association)
    department.wait(31)
    answer = [SeriesCount("1.5", "CR", 1), SeriesCount("1.6", "CR", 1), SeriesCount("1.7", "SR", 4)]
    assert department.ask(answer) == 1
    assert department.stands(study) == (RECEIVING, 1, 3)  # the instance of this test has no series


def test_what_waits_does_not_hold_up_the_others(department: Department, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies that cannot be decided yet do not use up what one look takes on."""
    monkeypatch.setattr(completeness, "BATCH_STUDIES", 2)
    for study in range(5):
        association = uuid4()
        department.image(1, association, study=910 + study)
        department.end(association, released=False)
    done = [department.image(1, study=920 + study) for study in range(5)]
    department.wait(30)
    after, total = None, 0
    for _ in range(10):
        with department.database.transaction() as session:
            number, after = completeness.complete_studies(session, QUIET, LIMIT, after)
        total += number
        if after is None:
            break
    assert total == 5
    assert all(department.stands(study)[0] == COMPLETE for study in done)


def test_the_sweeper_completes_studies(
    department: Department, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the broker does not answer, and in as many rounds as it needs."""
    monkeypatch.setattr(completeness, "BATCH_STUDIES", 2)
    studies = [department.image(1, study=930 + number) for number in range(5)]
    settings = make_settings(quiet_s=0.01, reconcile_every_s=0.01)

    class Away:
        def waiting(self) -> dict[str, int]:
            raise Unavailable("no broker")

    running = Sweeper(settings, department.database, Away(), MessageCount(), 1)  # type: ignore[arg-type]
    try:
        until(lambda: all(department.state(study) == COMPLETE for study in studies), LIMIT_S)
    finally:
        running.close()


@pytest.mark.parametrize(
    ("state", "expected", "words"),
    [
        ("receiving", None, "more expected"),
        ("receiving", 3, "2 of 3"),
        ("forced", 3, "2 of 3"),
        ("forced", None, "more were expected"),
        ("complete", 2, ""),
    ],
)
def test_pages_and_api_say_what_is_missing(in_process: Any, state: str, expected: int | None, words: str) -> None:
    """Codes in the API, of which a sender gets them, too; words on list and study page, which looks again by itself."""
    api, headers = in_process, in_process.headers()
    (line, _) = sent(api, image(1, 1), image(1, 2))
    study = line["study_id"]
    said = {"status": "analysed", "expected_images": expected}
    with api.database.transaction() as session:
        session.execute(update(StudyRow).values(completeness=state, **said))
    (row,) = api.http.get("/api/v1/worklist", headers=headers).json()["entries"]
    whole = api.http.get(f"/api/v1/studies/{study}", headers=headers).json()
    asked = api.http.post("/api/v1/studies/states", json={"ids": [study]}, headers=api.headers("submitter")).json()
    for one in (row, whole, asked["studies"][0]):
        assert (one["completeness"], one["expected_images"]) == (state, expected)
    assert row["stored_instances"] == whole["stored_instances"] == asked["studies"][0]["images"] == 2
    assert whole["last_received_at"]
    pages = [api.http.get(path, headers=api.headers(page=True)).text for path in ("/", f"/view/{study}")]
    assert all(words in page for page in pages)
    for other in {"2 of 3", "more expected", "more were expected"} - {words}:
        assert not any(other in page for page in pages)
    assert ("data-receiving" in pages[1]) is (state == "receiving")
