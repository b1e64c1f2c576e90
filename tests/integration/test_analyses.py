"""Analyses on a real Postgres: states, claims, leases, retries, results, and what is lost."""

import itertools
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select

from shared.db.engine import Database, Limits
from shared.db.tables import AnalysisRow, InstanceRow, SiteRow, StudyRow
from shared.domain.analysis import AnalysisState, Claim, InvalidTransition, Purpose, TaskOutcome, may_move
from shared.domain.findings import Assessment, Finding, InstanceResult
from shared.domain.security import Role
from shared.domain.study import Priority, StudyStatus
from shared.domain.worklist import TURNAROUND_TARGETS
from shared.errors import Cause, Reason
from shared.queries import analyses
from shared.queries.access import add_key, find_key
from shared.queries.intake import take_in
from shared.settings import ROOT
from tests.databases import run_sql
from tests.examples import examples
from tests.hospital import Hospital
from tests.pace import LIMIT_S, until
from worker.group_commit import GroupCommitter

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=30)
S = timedelta(seconds=1)
LATER = NOW + LEASE + S  # a lease taken now has run out
EMPTY = dict.fromkeys(Priority)


# -- one claim ------------------------------------------------------------------------------------------------------


def test_two_workers_race_and_one_gets_the_study(hospital: Hospital) -> None:
    """However many workers ask for a study at the same moment, exactly one gets it."""
    for _ in range(10):
        study, start = hospital.study(), threading.Barrier(6)

        def ask(_: int, study: UUID = study, start: threading.Barrier = start) -> Any:
            start.wait(LIMIT_S)
            return hospital.claim(study)

        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(ask, range(6)))
        assert sum(isinstance(result, Claim) for result in results) == 1
        assert all(result in (None, analyses.LOCKED) for result in results if not isinstance(result, Claim))
        assert hospital.row(study).attempts == 1


def test_a_claim_passes_a_locked_row_by(hospital: Hospital) -> None:
    """A study that another transaction has locked is told apart from one that is done, and no other waits for it."""
    done, locked, free = hospital.study(), hospital.study(), hospital.study()
    claim = hospital.claim(done)
    hospital.finish(claim, hospital.results(claim))
    with hospital.database.transaction() as holder:
        holder.get_one(AnalysisRow, hospital.current(locked), with_for_update=True)
        holder.get_one(AnalysisRow, hospital.current(done), with_for_update=True)
        with hospital.database.transaction() as session:
            asked = [done, locked, free, uuid4()]
            results = analyses.claim(
                session, [hospital.current(study) for study in asked], "a", NOW, LEASE, max_attempts=4
            )
    assert [results[0], results[1], results[3]] == [None, analyses.LOCKED, None]
    assert isinstance(results[2], Claim)
    assert hospital.row(locked).attempts == 0
    assert hospital.claim(locked).attempt == 1


def test_results_of_a_locked_study_are_written_later(hospital: Hospital) -> None:
    """Neither the others' results nor those of a lost lease wait for a locked row; its own are kept and written after."""
    studies = [hospital.study() for _ in range(3)]
    claims = [hospital.claim(study) for study in studies]
    hospital.claim(studies[2], LATER, alone=True)
    done = [analyses.AnalysisResult(claim, hospital.results(claim)) for claim in claims]
    with hospital.database.transaction() as holder:
        for study in studies[1:]:
            holder.get_one(StudyRow, study, with_for_update=True)
        with hospital.database.transaction() as session:
            assert analyses.finish(session, done, LATER) == [True, analyses.LOCKED, False]
    assert [len(hospital.findings(study)) for study in studies] == [1, 0, 0]
    assert hospital.finish(claims[1], hospital.results(claims[1]))


def test_group_commit_asks_again_for_what_is_locked(hospital: Hospital) -> None:
    """`finish` waits for a locked row, and by any other lock that one of a group meets only that one is held up."""
    studies = [hospital.study() for _ in range(4)]
    claims = [hospital.claim(study) for study in studies]
    impatient = Database(hospital.database.engine.url.render_as_string(hide_password=False), 4, Limits(lock_s=0.1))
    committer = GroupCommitter(impatient, LEASE, 4, slots=8)
    row, image = studies[0], claims[1].instances[0].id
    try:
        with ThreadPoolExecutor(4) as pool:
            with hospital.database.transaction() as holder:
                holder.get_one(StudyRow, row, with_for_update=True)
                holder.get_one(InstanceRow, image, with_for_update=True)  # findings refer to it
                written = [
                    pool.submit(committer.finish, analyses.AnalysisResult(claim, hospital.results(claim)))
                    for claim in claims
                ]
                assert [each.result(LIMIT_S) for each in written[2:]] == [True, True]
                assert not any(each.done() for each in written[:2])
            assert [each.result(LIMIT_S) for each in written[:2]] == [True, True]
    finally:
        committer.close()
        impatient.close()


def test_what_is_sent_passes_a_locked_row_by(hospital: Hospital) -> None:
    """Neither an upload's messages nor the reconciler wait for a study that another transaction has locked; it is known."""
    locked, free = hospital.study(), hospital.study()
    with hospital.database.transaction() as holder:
        holder.get_one(AnalysisRow, hospital.current(locked), with_for_update=True)
        with hospital.database.transaction() as session:
            assert [one.study_id for one in analyses.mark_unsent_as_sent(session, [locked, free], NOW)] == [free]
        with hospital.database.transaction() as session:
            assert [one.study_id for one in analyses.resend_lost(session, EMPTY, LATER, S)] == [free]
            assert analyses.lost_but_locked(session, EMPTY, LATER, S) == {hospital.current(locked)}
    with hospital.database.transaction() as session:
        assert analyses.lost_but_locked(session, EMPTY, LATER, S) == set()
        assert [one.study_id for one in analyses.resend_lost(session, EMPTY, LATER, S)] == [locked]


def test_messages_for_nothing_claim_nothing(hospital: Hospital) -> None:
    """A message for an unknown, running, finished or not yet due study leads to no work."""
    assert hospital.claim(uuid4()) is None
    study = hospital.study()
    claim = hospital.claim(study)
    assert hospital.claim(study) is None
    hospital.finish(claim, hospital.results(claim))
    assert hospital.claim(study) is None
    waiting = hospital.study()
    with hospital.database.transaction() as session:
        analyses.retry(session, hospital.claim(waiting), Cause(Reason.STORE_UNAVAILABLE), NOW + 10 * S, 4)
    assert hospital.claim(waiting, NOW + 9 * S) is None
    assert hospital.claim(waiting, NOW + 10 * S).attempt == 2


# -- the final write ------------------------------------------------------------------------------------------------


def test_the_results_of_a_study_are_written_and_summed_up(hospital: Hospital) -> None:
    """Finishing writes each frame's finding, and the worst one speaks for the study."""
    study = hospital.study(images=3)
    claim = hospital.claim(study)
    assert hospital.finish(claim, hospital.results(claim))
    row = hospital.row(study)
    assert (row.status, row.assessment, row.bundle, row.lease_token) == (StudyStatus.ANALYSED, "positive", "a", None)
    assert len(hospital.findings(study)) == 3


def test_a_worker_that_lost_its_lease_writes_nothing(hospital: Hospital) -> None:
    """When another worker took the study over, the first one's results are dropped whole."""
    study = hospital.study()
    late = hospital.claim(study)
    taken = hospital.claim(study, LATER, alone=True)
    assert not hospital.finish(late, [InstanceResult(late.instances[0].id, error_reason=Reason.TRUNCATED_PIXELS)])
    with hospital.database.transaction() as session:
        assert analyses.retry(session, late, Cause(Reason.OTHER), LATER, 4) is TaskOutcome.LEASE_LOST
    assert (hospital.findings(study), hospital.row(study).status) == ([], StudyStatus.RUNNING)
    assert hospital.instances(study)[0].error_reason == ""
    assert hospital.finish(taken, hospital.results(taken))
    assert hospital.row(study).status == StudyStatus.ANALYSED


def test_finishing_twice_gives_no_finding_twice(hospital: Hospital) -> None:
    """A second final write by the same or by another worker adds no finding."""
    study = hospital.study(images=2)
    first = hospital.claim(study)
    second = hospital.claim(study, LATER, alone=True)
    assert hospital.finish(second, hospital.results(second))
    assert not hospital.finish(second, hospital.results(second))
    assert not hospital.finish(first, hospital.results(first))
    assert len(hospital.findings(study)) == 2


def test_two_final_writes_at_once_leave_one_set_of_findings(hospital: Hospital) -> None:
    """Even a token used by two threads at the same moment is good for one final write."""
    study = hospital.study(images=2)
    claim = hospital.claim(study)

    def finish(_: int) -> analyses.Written:
        with hospital.database.transaction() as session:
            (written,) = analyses.finish(session, [analyses.AnalysisResult(claim, hospital.results(claim))], NOW)
        return written

    with ThreadPoolExecutor(2) as pool:
        written = set(pool.map(finish, range(2)))
    # the second comes after the first, or while that one holds the row
    assert written in ({True, False}, {True, analyses.NotClaimed.LOCKED})
    assert not hospital.finish(claim, hospital.results(claim))
    assert len(hospital.findings(study)) == 2


def test_an_image_that_came_late_requeues_its_study(hospital: Hospital) -> None:
    """An image that arrives while its study is analysed reopens the study, and only that image is analysed then."""
    files = [hospital.file(999, image) for image in range(3)]
    study = hospital.take_in(files[:2])
    claim = hospital.claim(study)
    hospital.take_in(files[2:], now=NOW + S)
    assert hospital.finish(claim, hospital.results(claim))
    row = hospital.row(study)
    assert (row.status, row.sent_at, row.attempts) == (StudyStatus.QUEUED, None, 0)
    assert hospital.lost(EMPTY, NOW + 2 * S) == [study]
    again = hospital.claim(study, NOW + 2 * S)
    assert [instance.sha256 for instance in again.instances] == [files[2].sha256]
    assert hospital.finish(again, hospital.results(again))
    assert (hospital.row(study).status, len(hospital.findings(study))) == (StudyStatus.ANALYSED, 3)


def test_one_bad_image_does_not_sink_its_study(hospital: Hospital) -> None:
    """A study with one unreadable image among good ones is analysed, and that image says why it was not."""
    study = hospital.study(images=3)
    claim = hospital.claim(study)
    results = hospital.results(claim)
    results[1] = InstanceResult(claim.instances[1].id, error_reason=Reason.TRUNCATED_PIXELS, error_detail="1 of 2")
    assert hospital.finish(claim, results)
    assert (hospital.row(study).status, hospital.row(study).failed_images) == (StudyStatus.ANALYSED, 1)
    errors = {image.id: (image.error_reason, image.error_detail) for image in hospital.instances(study)}
    assert errors.pop(claim.instances[1].id) == ("truncated-pixels", "1 of 2")
    assert set(errors.values()) == {("", "")}


def test_a_study_with_unread_images_is_not_called_normal(
    hospital: Hospital, make_finding: Callable[..., Finding]
) -> None:
    """Two images undecodable, one negative: class, due time and words are those of a study that is not judged."""
    study = hospital.study(images=3)
    claim = hospital.claim(study)
    results = [InstanceResult(one.id, error_reason=Reason.TRUNCATED_PIXELS) for one in claim.instances]
    results[0] = InstanceResult(claim.instances[0].id, [make_finding(assessment=Assessment.NEGATIVE)])
    assert hospital.finish(claim, results)
    row = hospital.row(study)
    assert (row.assessment, row.abstention, row.abstention_detail) == (Assessment.ABSTAINED, "unread-images", "2")
    assert row.due_at == row.received_at + timedelta(minutes=TURNAROUND_TARGETS["abstained"][Priority.ROUTINE])


def test_a_study_of_bad_images_only_is_quarantined_with_their_reason(hospital: Hospital) -> None:
    """When no image could be analysed, the study is set aside for what is wrong with the first."""
    study = hospital.study(images=2)
    claim = hospital.claim(study)
    bad = [
        InstanceResult(i.id, error_reason=Reason.TRUNCATED_PIXELS, error_detail="1 of 2 bytes") for i in claim.instances
    ]
    assert hospital.finish(claim, bad)
    row = hospital.row(study)
    assert (row.status, row.reason, row.reason_detail) == ("quarantined", "truncated-pixels", "1 of 2 bytes")


def test_another_bundle_adds_findings_and_keeps_the_old_ones(hospital: Hospital) -> None:
    """A newer bundle analyses all images again; what the older one found stays."""
    study = hospital.study(images=2)
    claim = hospital.claim(study)
    hospital.finish(claim, hospital.results(claim))
    hospital.set(study, status=StudyStatus.QUEUED)
    hospital.add_bundle("b")
    again = hospital.claim(study, bundle="b")
    assert len(again.instances) == 2
    assert hospital.finish(again, hospital.results(again, "b"), "b")
    assert [finding.bundle for finding in hospital.findings(study)] == ["a", "b"] * 2
    assert hospital.row(study).bundle == "b"


# -- leases, retries, quarantine ------------------------------------------------------------------------------------


def test_a_renewed_lease_keeps_the_study(hospital: Hospital) -> None:
    """A living worker's lease does not run out, and renewing touches nobody else's."""
    study, other = hospital.study(), hospital.study()
    claim, _ = hospital.claim(study), hospital.claim(other)
    with hospital.database.transaction() as session:
        analyses.renew_leases(session, [claim.token, uuid4()], LATER + LEASE)
    assert hospital.claim(study, LATER, alone=True) is None
    assert hospital.row(other).lease_until == NOW + LEASE


def test_renewing_never_waits_for_a_locked_row(hospital: Hospital) -> None:
    """An upload that holds one study does not keep the other studies' leases from being renewed."""
    studies = [hospital.study() for _ in range(3)]
    tokens = [hospital.claim(study).token for study in studies]
    with hospital.database.transaction() as holder, ThreadPoolExecutor(1) as pool:
        holder.get_one(AnalysisRow, hospital.current(studies[1]), with_for_update=True)

        def renew() -> None:
            with hospital.database.transaction() as session:
                analyses.renew_leases(session, tokens, LATER)

        pool.submit(renew).result(LIMIT_S)
    assert [hospital.row(study).lease_until for study in studies] == [LATER, NOW + LEASE, LATER]


def test_after_an_expired_lease_a_study_is_a_suspect(hospital: Hospital) -> None:
    """A study whose worker fell silent is given out again only to be analysed alone, and asking costs no attempt."""
    study = hospital.study()
    assert hospital.claim(study) is not None
    for _ in range(3):
        assert hospital.claim(study, LATER) is analyses.NOT_ALONE
    assert hospital.row(study).attempts == 1
    again = hospital.claim(study, LATER, alone=True)
    assert again.attempt == 2


def test_a_retry_is_no_suspect(hospital: Hospital) -> None:
    """A study that was given back in words needs no quarantine of its own."""
    study = hospital.study()
    with hospital.database.transaction() as session:
        assert (
            analyses.retry(session, hospital.claim(study), Cause(Reason.OBJECT_MISSING, "a key"), NOW, 4)
            is TaskOutcome.WILL_RETRY
        )
    assert hospital.claim(study) is not None


def test_attempts_run_out_with_words(hospital: Hospital) -> None:
    """A study that fails every time is set aside after N attempts with the last reason."""
    study, outcomes = hospital.study(), []
    for _ in range(4):
        with hospital.database.transaction() as session:
            outcomes.append(
                analyses.retry(session, hospital.claim(study), Cause(Reason.OBJECT_MISSING, "a key"), NOW, 4)
            )
    assert outcomes == [TaskOutcome.WILL_RETRY] * 3 + [TaskOutcome.QUARANTINED]
    row = hospital.row(study)
    assert (row.status, row.reason, row.reason_detail) == (StudyStatus.QUARANTINED, "object-missing", "a key")
    assert row.lease_token is None


def test_a_study_that_kills_its_worker_each_time_is_quarantined_with_words(hospital: Hospital) -> None:
    """After N attempts that ended without a word the study is set aside, and the reason says that the worker died."""
    study, now = hospital.study(), NOW
    hospital.claim(study)
    for attempt in range(2, 5):
        now += LEASE + S
        assert hospital.claim(study, now, alone=True).attempt == attempt
    assert hospital.claim(study, now + LEASE + S) is None
    row = hospital.row(study)
    assert (row.status, row.reason, row.reason_detail) == (StudyStatus.QUARANTINED, "worker-died", "4")


def test_a_blameless_attempt_does_not_count(hospital: Hospital) -> None:
    """While the whole store is down, no number of attempts sets a study aside."""
    study = hospital.study()
    for _ in range(10):
        with hospital.database.transaction() as session:
            down = Cause(Reason.STORE_UNAVAILABLE)
            told = analyses.retry(session, hospital.claim(study), down, NOW, 4, blameless=True)
            assert told is TaskOutcome.WILL_RETRY
    assert (hospital.row(study).status, hospital.row(study).attempts) == (StudyStatus.RETRYING, 0)


@pytest.mark.parametrize("state", list(AnalysisState))
@pytest.mark.parametrize("verb", ["claim", "claim alone", "finish", "retry"])
def test_no_verb_of_the_queue_breaks_the_table(hospital: Hospital, state: AnalysisState, verb: str) -> None:
    """From any state, each verb either follows the table of transitions, is refused, or changes nothing."""
    study = hospital.study()
    claim = hospital.claim(study)
    hospital.set(study, state=state, **({"lease_until": NOW - S} if verb.startswith("claim") else {}))
    before = hospital.row(study).analysis
    allowed = True
    try:
        with hospital.database.transaction() as session:
            if verb.startswith("claim"):
                alone = verb.endswith("alone")
                analyses.claim(session, [before.id], "a", NOW, LEASE, max_attempts=4, alone=alone)
            elif verb == "finish":
                analyses.finish(session, [analyses.AnalysisResult(claim, hospital.results(claim))], NOW)
            else:
                analyses.retry(session, claim, Cause(Reason.OTHER), NOW, 4)
    except InvalidTransition:
        allowed = False
    after = hospital.row(study).analysis
    if (after.state, after.attempts, after.lease_token) != (before.state, before.attempts, before.lease_token):
        assert allowed
        assert may_move(Purpose.FIRST, AnalysisState(before.state), AnalysisState(after.state))
    else:
        assert hospital.findings(study) == []


@pytest.mark.parametrize("purpose", list(Purpose))
def test_move_refuses_what_the_table_does_not_know(hospital: Hospital, purpose: Purpose) -> None:
    """Each transition is either one of the table and is made, or raises and changes nothing, with every row of the call."""
    fine, other = hospital.study(), hospital.study()
    for now, then in itertools.product(AnalysisState, AnalysisState):
        hospital.set(fine, state="running")
        hospital.set(other, state=now, purpose=purpose, model="a")
        _moved(hospital, fine, other, purpose, now, then)


def _moved(
    hospital: Hospital, fine: UUID, other: UUID, purpose: Purpose, now: AnalysisState, then: AnalysisState
) -> None:
    with hospital.database.transaction() as session:
        rows = session.execute(
            select(*analyses.QUEUE).where(AnalysisRow.study_id.in_([fine, other])).order_by(AnalysisRow.id)
        ).all()
        allowed = may_move(purpose, now, then) and may_move(Purpose.FIRST, AnalysisState.RUNNING, then)
        if allowed:
            analyses.move(session, rows, then)
        else:
            with pytest.raises(InvalidTransition, match="may not become"):
                analyses.move(session, rows, then)
    assert hospital.row(other).analysis.state == (then if allowed else now)
    assert hospital.row(fine).analysis.state == (then if allowed else "running")


def test_nothing_else_sets_a_state() -> None:
    """In the code, the state of an analysis is written by `move` alone, and by what makes a new row: always queued."""
    written = re.compile(r"""(state=|["']state["']: |\.state = |SET state)(?!=)\s*(\S+)""")
    found = []
    for folder in ("shared", "worker"):  # nobody else builds SQL
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            if "AnalysisRow" in text or "analyses" in text:
                values = [value for _, value in written.findall(text) if not value.startswith("CheckState.")]
                found += [(path.relative_to(ROOT).as_posix(), value) for value in values]
    assert sorted(found) == [
        ("shared/queries/analyses.py", "AnalysisState.QUEUED,"),  # first
        ("shared/queries/analyses.py", "AnalysisState.QUEUED,"),  # ask_again
        ("shared/queries/analyses.py", "then,"),
        ("shared/queries/analyses.py", "then}"),
    ]


def test_each_release_is_a_new_analysis_and_history_stays(hospital: Hospital) -> None:
    """A quarantined study that is released has a new analysis, with all attempts; the failed one keeps its reason."""
    with hospital.database.transaction() as session:
        add_key(session, session.get_one(SiteRow, hospital.site_id).name, "ada", Role.ADMIN, "osk_ada")
        admin = find_key(session, "osk_ada")
    assert admin is not None
    study = hospital.study()
    for _ in range(4):
        with hospital.database.transaction() as session:
            analyses.retry(session, hospital.claim(study), Cause(Reason.OBJECT_MISSING, "a key"), NOW, 4)
    with hospital.database.transaction() as session:
        released = analyses.release_study(session, admin, study, LATER)
        assert released is not None
        assert analyses.release_study(session, admin, study, LATER) is None, "it is queued"
    old, new = hospital.analyses(study)
    assert (old.state, old.reason, old.attempts, new.state, new.reason, new.attempts) == (
        "failed", "object-missing", 4, "queued", "", 0,
    )  # fmt: skip
    assert hospital.current(study) == new.id == released.analysis_id
    claim = hospital.claim(study, LATER)
    assert hospital.finish(claim, hospital.results(claim), now=LATER)
    assert [one.state for one in hospital.analyses(study)] == ["failed", "done"]


def test_what_ends_an_analysis_waits_for_nobody_who_holds_its_study(hospital: Hospital) -> None:
    """Intake locks a study and then its analysis, `finish` the other way round: it passes by, so that neither waits."""
    study = hospital.study()
    claim = hospital.claim(study)
    with hospital.database.transaction() as intake, ThreadPoolExecutor(1) as pool:
        intake.get_one(StudyRow, study, with_for_update=True)

        def finish() -> list[analyses.Written]:
            with hospital.database.transaction() as session:
                return analyses.finish(session, [analyses.AnalysisResult(claim, hospital.results(claim))], NOW)

        assert pool.submit(finish).result(LIMIT_S) == [analyses.LOCKED]
        assert analyses.lock_open(intake, [study]).keys() == {study}


# -- what is lost ---------------------------------------------------------------------------------------------------

# so many more that wait like the first, and how many rows of studies this transaction has read
WAITING = """
    WITH made AS (
        INSERT INTO studies (id, site_id, study_instance_uid, priority, status, received_at, reason, due_at, modality,
            region, bundle, images, failed_images)
        SELECT gen_random_uuid(), site_id, 'waiting.' || n, priority, status, received_at, reason, due_at, modality,
            region, bundle, images, failed_images
        FROM studies, generate_series(1, %(count)s) n WHERE id = %(first)s
        RETURNING id
    )
    INSERT INTO analyses (id, study_id, site_id, purpose, state, priority, queued_at, sent_at)
    SELECT gen_random_uuid(), made.id, site_id, purpose, state, priority, queued_at, sent_at
    FROM analyses, made WHERE study_id = %(first)s
"""
READ = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'analyses'"


def sent(hospital: Hospital, at: datetime = NOW, priority: Priority = Priority.ROUTINE) -> UUID:
    study = hospital.study(priority=priority)
    hospital.set(study, sent_at=at)
    return study


def test_unsent_studies_are_sent_once(hospital: Hospital) -> None:
    """Each study that needs a message is named once, and not again until its message fails to leave."""
    studies = sorted((hospital.study(), hospital.study()), key=str)
    with hospital.database.transaction() as session:
        assert [to_send.study_id for to_send in analyses.mark_unsent_as_sent(session, studies, NOW)] == studies
    with hospital.database.transaction() as session:
        assert analyses.mark_unsent_as_sent(session, studies, NOW) == []
        analyses.mark_not_sent(session, [hospital.current(studies[0])])
    assert hospital.lost({**EMPTY, Priority.ROUTINE: NOW}, NOW + S) == studies[:1]


def test_the_reconciler_sends_what_was_never_sent(hospital: Hospital) -> None:
    """A study whose message never left is sent at the next sweep."""
    study = hospital.study()
    assert hospital.lost(EMPTY, NOW + S) == [study]
    assert hospital.lost(EMPTY, NOW + 2 * S) == []


def test_the_reconciler_sends_what_was_overtaken(hospital: Hospital) -> None:
    """A study sent before the oldest message of its queue is in the queue no more, and is sent again."""
    old, new = sent(hospital, NOW), sent(hospital, NOW + 100 * S)
    oldest = {**EMPTY, Priority.ROUTINE: NOW + 90 * S}
    assert hospital.lost(oldest, NOW + 110 * S) == [old]
    assert hospital.lost(oldest, NOW + 111 * S) == []
    assert hospital.row(new).sent_at == NOW + 100 * S


def test_each_queue_has_a_head_of_its_own(hospital: Hospital) -> None:
    """That the urgent queue is empty says nothing about what waits in the backlog."""
    urgent, backlog = sent(hospital, priority=Priority.URGENT), sent(hospital, priority=Priority.BACKLOG)
    oldest = {**EMPTY, Priority.BACKLOG: NOW}
    assert hospital.lost(oldest, NOW + 600 * S) == [urgent]
    assert hospital.row(backlog).sent_at == NOW


def test_an_empty_queue_is_given_its_grace(hospital: Hospital) -> None:
    """A message just taken from the queue has time to become a claim before its study is sent again."""
    study = sent(hospital)
    assert hospital.lost(EMPTY, NOW + 29 * S) == []
    assert hospital.lost(EMPTY, NOW + 31 * S) == [study]


def test_the_reconciler_does_not_walk_through_a_long_queue(hospital: Hospital, owner_url: str) -> None:
    """It reads the rows of what is lost, and not those of what waits, however much that is."""
    first, forgotten = sent(hospital, NOW), sent(hospital, NOW - 100 * S)
    oldest = {**EMPTY, Priority.ROUTINE: NOW}
    with hospital.database.transaction() as session:
        session.connection().exec_driver_sql(WAITING, {"first": first, "count": 5000})
    run_sql(owner_url, "ANALYZE analyses")  # as autovacuum does
    with hospital.database.transaction() as session:
        assert analyses.any_lost(session, oldest, NOW, timedelta(seconds=30))
        assert [one.study_id for one in analyses.resend_lost(session, oldest, NOW, timedelta(seconds=30))] == [
            forgotten
        ]
        assert session.connection().exec_driver_sql(READ).scalar_one() < 50


def test_the_reconciler_sends_what_a_dead_worker_held(hospital: Hospital) -> None:
    """A study whose lease ran out is sent once, and again only when that message too is nowhere."""
    study = sent(hospital, NOW - S)
    hospital.claim(study)
    assert hospital.lost(EMPTY, NOW + 29 * S) == []
    assert hospital.lost(EMPTY, LATER) == [study]
    assert hospital.lost({**EMPTY, Priority.URGENT: NOW}, LATER + 600 * S) == []  # it waits in a long queue
    assert hospital.lost(EMPTY, LATER + 31 * S) == [study]


@pytest.mark.parametrize("status", [StudyStatus.QUEUED, StudyStatus.RETRYING, StudyStatus.RUNNING])
def test_a_failed_message_is_sent_whatever_became_of_its_study(hospital: Hospital, status: StudyStatus) -> None:
    """When the broker refuses the message of a waiting, retrying or abandoned study, the next sweep sends it."""
    study = hospital.study()
    claim = hospital.claim(study)
    if status is StudyStatus.RETRYING:
        with hospital.database.transaction() as session:
            analyses.retry(session, claim, Cause(Reason.OTHER), NOW, 4)
    elif status is StudyStatus.QUEUED:
        hospital.set(study, status=StudyStatus.QUEUED, sent_at=None, lease_token=None, lease_until=None)
    assert hospital.lost(EMPTY, LATER) == [study]
    with hospital.database.transaction() as session:
        analyses.mark_not_sent(session, [hospital.current(study)])
    assert hospital.row(study).status == status
    assert hospital.lost({**EMPTY, Priority.ROUTINE: NOW}, LATER + S) == [study]


def test_what_a_dead_worker_held_does_not_queue_up_again(hospital: Hospital) -> None:
    """An abandoned study, which was at the front once, goes one queue up; what merely waited stays where it is."""
    studies = {queue: sent(hospital, NOW - S, queue) for queue in Priority}
    waiting = hospital.study()
    for study in studies.values():
        hospital.claim(study)
    up = {
        Priority.URGENT: Priority.URGENT, Priority.ROUTINE: Priority.URGENT, Priority.BACKLOG: Priority.ROUTINE,
    }  # fmt: skip
    assert set(hospital.lost(EMPTY, LATER)) == {*studies.values(), waiting}
    assert {queue: hospital.row(study).queue for queue, study in studies.items()} == up
    assert hospital.row(waiting).queue == Priority.ROUTINE
    # the broker forgets those messages: none was at a front, so none goes up again
    assert set(hospital.lost(EMPTY, LATER + 60 * S)) == {*studies.values(), waiting}
    assert {queue: hospital.row(study).queue for queue, study in studies.items()} == up


def test_a_retry_is_sent_when_it_is_due_and_only_once(hospital: Hospital) -> None:
    """A retry leaves at its time, not before, and while it waits in a long queue it is not sent again."""
    study = hospital.study()
    with hospital.database.transaction() as session:
        analyses.retry(session, hospital.claim(study), Cause(Reason.STORE_UNAVAILABLE), NOW + 60 * S, 4)
    long = {**EMPTY, Priority.ROUTINE: NOW}
    assert hospital.lost(long, NOW + 59 * S) == []
    assert hospital.lost(long, NOW + 60 * S) == [study]
    assert [hospital.lost(long, NOW + seconds * S) for seconds in (61, 100, 500, 5000)] == [[]] * 4


def many(hospital: Hospital, count: int, queue: Priority = Priority.ROUTINE, queued_at: datetime = NOW) -> None:
    """Rows of studies that wait, quickly; sent one a second."""
    common = {
        "site_id": hospital.site_id, "priority": queue, "status": "queued", "received_at": queued_at, "due_at": NOW,
    }  # fmt: skip
    ids = [uuid4() for _ in range(count)]
    with hospital.database.transaction() as session:
        session.execute(
            insert(StudyRow), [common | {"id": id_, "study_instance_uid": f"2.25.5.{id_.int}"} for id_ in ids]
        )
        rows = [
            analyses.first_analysis_values(id_, hospital.site_id, queue, queued_at, sent_at=NOW + i * S)
            for i, id_ in enumerate(ids)
        ]
        analyses.add_analyses(session, rows)


def test_a_long_queue_is_never_flooded(hospital: Hospital) -> None:
    """While 10,000 studies merely wait in a queue, hour after hour, not one is sent again."""
    many(hospital, 10_000)
    for worked_off in (0, 1, 5_000, 9_999):
        # the queue's oldest message is that of the first study not yet taken
        with hospital.database.transaction() as session:
            taken = AnalysisRow.sent_at < NOW + worked_off * S
            session.query(AnalysisRow).filter(taken).update({"state": AnalysisState.DONE})
        for hours in (1, 10):
            now = NOW + timedelta(hours=3 + hours)
            assert hospital.lost({**EMPTY, Priority.ROUTINE: NOW + worked_off * S}, now) == []


def test_after_a_flush_everything_is_sent_once_and_urgent_studies_first(hospital: Hospital) -> None:
    """When the broker forgot everything, sweeps send each study exactly once, the urgent ones before all others."""
    many(hospital, 1500, queued_at=NOW - 60 * S)
    many(hospital, 20, Priority.URGENT)
    many(hospital, 5, Priority.BACKLOG, queued_at=NOW - 120 * S)
    now = NOW + timedelta(hours=1)
    with hospital.database.transaction() as session:
        first = analyses.resend_lost(session, EMPTY, now, 30 * S)
    assert [to_send.queue for to_send in first] == [Priority.URGENT] * 20 + [Priority.ROUTINE] * 980
    # their messages stand in the queues now
    oldest = {**EMPTY, Priority.URGENT: now, Priority.ROUTINE: now}
    second = hospital.lost(oldest, now + 5 * S)
    assert len(second) == 525
    assert not {to_send.study_id for to_send in first} & set(second)
    assert hospital.lost(dict.fromkeys(Priority, now), now + 600 * S) == []


def test_two_reconcilers_at_once_send_once(hospital: Hospital) -> None:
    """Of reconcilers that sweep at the same moment, only one sends."""
    studies = [hospital.study() for _ in range(50)]
    start = threading.Barrier(6)

    def sweep(_: int) -> list[UUID]:
        start.wait(LIMIT_S)
        return hospital.lost(EMPTY, NOW + S)

    with ThreadPoolExecutor(6) as pool:
        found = [study for swept in pool.map(sweep, range(6)) for study in swept]
    assert sorted(found, key=str) == sorted(studies, key=str)


def test_a_second_reconciler_does_nothing_while_the_first_is_at_work(hospital: Hospital) -> None:
    """The lock is held until the first one's marks are committed."""
    study = hospital.study()
    with hospital.database.transaction() as session:
        assert [to_send.study_id for to_send in analyses.resend_lost(session, EMPTY, NOW + S, 30 * S)] == [study]
        assert hospital.lost(EMPTY, NOW + S) == []
    assert hospital.lost(EMPTY, NOW + 2 * S) == []


def test_a_study_waits_until_its_images_no_longer_trickle_in(hospital: Hospital) -> None:
    """A study that gets an image from a further request is neither sent nor claimed until none came for a while."""
    study = hospital.study()
    with hospital.database.transaction() as session:
        uid = session.get_one(StudyRow, study).study_instance_uid
        first = hospital.file(int(uid.removeprefix("2.25.")), 7)
        take_in(session, hospital.vault, hospital.site_id, Priority.ROUTINE, [first], NOW + S, debounce=3 * S)
    with hospital.database.transaction() as session:
        assert analyses.mark_unsent_as_sent(session, [study], NOW + 2 * S) == []
        assert analyses.claim(session, [hospital.current(study)], "a", NOW + 2 * S, LEASE, max_attempts=4) == [None]
    assert hospital.lost(EMPTY, NOW + 2 * S) == []
    assert hospital.lost(EMPTY, NOW + 5 * S) == [study]
    assert len(hospital.claim(study, NOW + 5 * S).instances) == 2


# -- many at once ---------------------------------------------------------------------------------------------------


@examples(8, 60, data=st.data())
def test_a_group_gets_what_each_would_get_alone(hospital: Hospital, data: st.DataObject) -> None:
    """Claims of many studies in one transaction are those that the same studies, in the same states, get one by one."""
    states = st.sampled_from(["new", "retrying", "not due", "held", "abandoned", "given up", "analysed"])
    drawn = data.draw(st.lists(states, min_size=1, max_size=8))
    one_by_one, together = ([in_state(hospital, state) for state in drawn] for _ in range(2))
    expected = [shape(hospital.claim(study, LATER)) for study in one_by_one]
    asked = [*together, uuid4()]
    with hospital.database.transaction() as session:
        results = analyses.claim(
            session, [hospital.current(study) for study in asked], "a", LATER, LEASE, max_attempts=4
        )
    assert [shape(result) for result in results] == [*expected, None]
    for study, twin in zip(together, one_by_one, strict=True):
        assert (hospital.row(study).status, hospital.row(study).attempts) == (
            hospital.row(twin).status,
            hospital.row(twin).attempts,
        )
    claims = [result for result in results if isinstance(result, Claim)]
    assert len({claim.token for claim in claims}) == len(claims)


def in_state(hospital: Hospital, state: str) -> UUID:
    study = hospital.study(images=2)
    if state == "analysed":
        claim = hospital.claim(study)
        hospital.finish(claim, hospital.results(claim))
    elif state in ("held", "abandoned", "given up"):
        hospital.claim(study, LATER if state == "held" else NOW)
        hospital.set(study, attempts=4 if state == "given up" else 1)
    elif state in ("retrying", "not due"):
        with hospital.database.transaction() as session:
            analyses.retry(
                session, hospital.claim(study), Cause(Reason.OTHER), LATER + S * (1 if state == "not due" else -1), 4
            )
    return study


def shape(result: Any) -> Any:
    return (result.attempt, len(result.instances)) if isinstance(result, Claim) else result


def test_two_messages_in_one_group_give_one_claim(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads with messages for one study, whose claims come into one transaction, do not both get it."""
    first, study = hospital.study(), hospital.study()
    committer = GroupCommitter(hospital.database, LEASE, 4, slots=8)
    busy, go_on = threading.Event(), threading.Event()
    claim = analyses.claim

    def slow(*arguments: Any, **options: Any) -> Any:
        busy.set()
        go_on.wait(LIMIT_S)
        return claim(*arguments, **options)

    monkeypatch.setattr(analyses, "claim", slow)
    try:
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(committer.claim, hospital.current(first), "a", Priority.URGENT)]
            busy.wait(LIMIT_S)
            # the next ones wait for its transaction, together
            asked += [pool.submit(committer.claim, hospital.current(study), "a", Priority.URGENT) for _ in range(2)]
            until(lambda: committer._claims.waiting == 2, 20)
            go_on.set()
            claims = [each.result(LIMIT_S) for each in asked]
    finally:
        committer.close()
    assert isinstance(claims[0], Claim)
    assert sum(claim is not None for claim in claims[1:]) == 1
    assert hospital.row(study).attempts == 1


def test_results_of_many_studies_are_written_at_once(hospital: Hospital) -> None:
    """In one transaction each study gets its own findings and summary, and one whose lease is lost gets nothing."""
    studies = [hospital.study(images=2) for _ in range(5)]
    claims = [hospital.claim(study) for study in studies]
    taken_over = hospital.claim(studies[2], LATER, alone=True)
    done = [analyses.AnalysisResult(claim, hospital.results(claim)) for claim in claims]
    with hospital.database.transaction() as session:
        assert analyses.finish(session, done, LATER) == [True, True, False, True, True]
    assert [len(hospital.findings(study)) for study in studies] == [2, 2, 0, 2, 2]
    assert [hospital.row(study).status for study in studies].count(StudyStatus.ANALYSED) == 4
    assert hospital.finish(taken_over, hospital.results(taken_over))


# -- nothing starves ------------------------------------------------------------------------------------------------

LIMITS = {Priority.ROUTINE: timedelta(hours=4), Priority.BACKLOG: timedelta(days=7)}


def promote(hospital: Hospital, now: datetime, most: int = 100) -> list[tuple[UUID, Priority]]:
    with hospital.database.transaction() as session:
        return [(one.study_id, one.queue) for one in analyses.promote_late(session, LIMITS, now, most)]


def test_a_study_beyond_its_limit_is_moved_up(hospital: Hospital) -> None:
    """What waited longer than its queue allows gets a message in the next faster one, once; others stay."""
    routine, backlog = hospital.study(), hospital.study(priority=Priority.BACKLOG)
    in_hand = hospital.study()
    hospital.claim(in_hand)
    assert promote(hospital, NOW + timedelta(hours=4)) == []
    assert promote(hospital, NOW + timedelta(hours=4, seconds=1)) == [(routine, Priority.URGENT)]
    assert promote(hospital, NOW + timedelta(hours=5)) == []
    late = hospital.study(now=NOW + timedelta(days=7))
    assert promote(hospital, NOW + timedelta(days=7, seconds=1)) == [(backlog, Priority.ROUTINE)]
    assert hospital.row(late).queue == Priority.ROUTINE
    assert promote(hospital, NOW + timedelta(days=7, seconds=2)) == [(backlog, Priority.URGENT)]
    assert hospital.row(routine).priority == Priority.ROUTINE, "what the sender said stays"


def test_the_longest_wait_is_moved_up_first_and_no_more_than_its_share(hospital: Hospital) -> None:
    """However many are late, so few are moved that an urgent study hardly notices, in the order in which they came."""
    studies = [hospital.study(now=NOW + i * S) for i in (3, 1, 2, 0)]
    late = NOW + timedelta(hours=5)
    assert [study for study, _ in promote(hospital, late, most=3)] == [studies[3], studies[1], studies[2]]
    assert [study for study, _ in promote(hospital, late, most=3)] == [studies[0]]


@given(arrivals=st.lists(st.tuples(st.sampled_from(list(Priority)), st.integers(0, 30)), min_size=1, max_size=60))
@settings(max_examples=150, deadline=None)
def test_under_any_load_every_study_is_served(arrivals: list[tuple[Priority, int]]) -> None:
    """A worker that is always busy with urgent studies still comes to each routine and backlog one.

    A model of the queues: one study a tick, strict order, an urgent one arriving every tick, and every tenth tick the
    one that waited longest beyond its limit is moved up, as `promote` does.
    """
    limits = {Priority.ROUTINE: 40, Priority.BACKLOG: 80}
    queues: dict[Priority, deque[tuple[int, bool]]] = {queue: deque() for queue in Priority}
    pending = sorted(((at, queue) for queue, at in arrivals), key=lambda arrival: arrival[0])
    served, tick = 0, 0
    while served < len(arrivals):
        while pending and pending[0][0] <= tick:
            at, queue = pending.pop(0)
            queues[queue].append((at, True))
        if tick % 10:  # nine urgent others in ten ticks: a tenth of the capacity is what promotion may take
            queues[Priority.URGENT].append((tick, False))
        else:
            late = [q for q, limit in limits.items() if queues[q] and queues[q][0][0] < tick - limit]
            if late:
                queues[analyses.NEXT_FASTER_QUEUE[late[0]]].append(queues[late[0]].popleft())
        for waiting in queues.values():
            if waiting:
                served += waiting.popleft()[1]
                break
        tick += 1
        assert tick < 5000, "somebody starves"


@examples(
    4, 24, arrivals=st.lists(st.tuples(st.sampled_from(list(Priority)), st.integers(0, 12)), min_size=1, max_size=8)
)
def test_on_real_rows_nothing_starves_and_nobody_is_overtaken_by_a_slower_class(
    hospital: Hospital, arrivals: list[tuple[Priority, int]]
) -> None:
    """Under a load of urgent studies that leaves no more than the promoted ones' share, every study is analysed once soon
    after its limit; no backlog study is claimed while a routine one waits; and an urgent one hardly waits.

    Rows, claims, results and promotion are the real ones, one study a second; only the broker is three lists.
    """
    hospital.set(*ids_of(hospital), status=StudyStatus.QUARANTINED)  # of the example before
    limits = {Priority.ROUTINE: 10 * S, Priority.BACKLOG: 20 * S}
    broker: dict[Priority, deque[UUID]] = {queue: deque() for queue in Priority}
    came: dict[UUID, int] = {}  # study to second, of the urgent ones that come on and on too
    served: dict[UUID, int] = {}
    guests = []

    def send(to_send: Sequence[analyses.DueMessage]) -> None:
        for one in to_send:
            broker[one.queue].append(one.study_id)

    def arrive(queue: Priority, second: int) -> UUID:
        study = hospital.study(priority=queue, now=NOW + second * S)
        came[study] = second
        with hospital.database.transaction() as session:
            send(analyses.mark_unsent_as_sent(session, [study], NOW + second * S))
        return study

    def serve(second: int) -> None:
        for queue in broker.values():
            while queue:
                study = queue.popleft()
                claim = hospital.claim(study, NOW + second * S)
                if claim is None:  # rung for twice: it was moved up
                    assert study in served
                    continue
                faster = [one for one in Priority if list(Priority).index(one) < list(Priority).index(claim.priority)]
                assert [hospital.count(status=StudyStatus.QUEUED, queue=one) for one in faster] == [0] * len(faster)
                assert hospital.finish(claim, hospital.results(claim), now=NOW + second * S)
                served[study] = second
                return

    # each may be moved up twice, one every fifth second, and then waits for a second that no urgent one takes
    last = 12 + 30 + 15 * len(arrivals)
    for second in range(last):
        guests += [arrive(queue, second) for queue, at in arrivals if at == second]
        if second % 5:
            arrive(Priority.URGENT, second)
        else:
            with hospital.database.transaction() as session:
                send(analyses.promote_late(session, limits, NOW + second * S, 1))
        serve(second)
        if second > 12 and all(guest in served for guest in guests):
            break
    assert [guest for guest in guests if guest not in served] == [], "somebody starves"
    assert all(len(hospital.findings(guest)) == 1 for guest in guests)
    crowd = sum(queue is Priority.URGENT for queue, _ in arrivals)
    urgent = [study for study in served if hospital.row(study).priority == Priority.URGENT]
    assert max((served[study] - came[study] for study in urgent), default=0) <= 2 + crowd


def ids_of(hospital: Hospital) -> list[UUID]:
    with hospital.database.transaction() as session:
        return list(session.scalars(select(StudyRow.id)))
