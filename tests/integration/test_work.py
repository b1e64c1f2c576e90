"""Claims, leases, retries and what is lost, on a real Postgres."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select

from shared.findings import Assessment, Finding, InstanceResult
from shared.repository import work
from shared.repository.intake import take_in
from shared.study import Claim, Priority, StudyStatus, may_become
from shared.tables import StudyRow
from shared.worklist import ALLOWANCES
from tests.pace import LIMIT_S, until
from tests.ward import Ward
from worker.ledger import Ledger

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=30)
S = timedelta(seconds=1)
LATER = NOW + LEASE + S  # a lease taken now has run out
EMPTY = dict.fromkeys(Priority)


# -- one claim ------------------------------------------------------------------------------------------------------


def test_two_workers_race_and_one_gets_the_study(ward: Ward) -> None:
    """However many workers ask for a study at the same moment, exactly one gets it."""
    for _ in range(10):
        study, start = ward.study(), threading.Barrier(6)

        def ask(_: int, study: UUID = study, start: threading.Barrier = start) -> Any:
            start.wait(LIMIT_S)
            return ward.claim(study)

        with ThreadPoolExecutor(6) as pool:
            claims = [claim for claim in pool.map(ask, range(6)) if claim is not None]
        assert len(claims) == 1
        assert ward.row(study).attempts == 1


def test_a_claim_waits_for_a_locked_row(ward: Ward) -> None:
    """A study that an upload holds for a moment is claimed after it, for its message is spent here."""
    study = ward.study()
    with ThreadPoolExecutor(1) as pool:
        with ward.database.transaction() as session:
            session.get_one(StudyRow, study, with_for_update=True)
            claiming = pool.submit(ward.claim, study)
            with pytest.raises(TimeoutError):
                claiming.result(0.3)
        assert claiming.result(LIMIT_S) is not None


def test_messages_for_nothing_claim_nothing(ward: Ward) -> None:
    """A message for an unknown, running, finished or not yet due study leads to no work."""
    assert ward.claim(uuid4()) is None
    study = ward.study()
    claim = ward.claim(study)
    assert ward.claim(study) is None
    ward.finish(claim, ward.answers(claim))
    assert ward.claim(study) is None
    waiting = ward.study()
    with ward.database.transaction() as session:
        work.retry(session, ward.claim(waiting), "the store is down", NOW + 10 * S, 4)
    assert ward.claim(waiting, NOW + 9 * S) is None
    assert ward.claim(waiting, NOW + 10 * S).attempt == 2


# -- the final write ------------------------------------------------------------------------------------------------


def test_the_results_of_a_study_are_written_and_summed_up(ward: Ward) -> None:
    """Finishing writes each frame's finding, and the worst one speaks for the study."""
    study = ward.study(images=3)
    claim = ward.claim(study)
    assert ward.finish(claim, ward.answers(claim))
    row = ward.row(study)
    assert (row.status, row.assessment, row.bundle, row.lease_token) == (StudyStatus.ANALYSED, "positive", "a", None)
    assert len(ward.findings(study)) == 3


def test_a_worker_that_lost_its_lease_writes_nothing(ward: Ward) -> None:
    """When another worker took the study over, the first one's results are dropped whole."""
    study = ward.study()
    late = ward.claim(study)
    taken = ward.claim(study, LATER, alone=True)
    assert not ward.finish(late, [InstanceResult(late.instances[0].id, error_reason="x", error_text="x")])
    with ward.database.transaction() as session:
        assert work.retry(session, late, "no", LATER, 4) == "lease lost"
    assert (ward.findings(study), ward.row(study).status) == ([], StudyStatus.RUNNING)
    assert ward.instances(study)[0].error_reason == ""
    assert ward.finish(taken, ward.answers(taken))
    assert ward.row(study).status == StudyStatus.ANALYSED


def test_finishing_twice_gives_no_finding_twice(ward: Ward) -> None:
    """A second final write by the same or by another worker adds no finding."""
    study = ward.study(images=2)
    first = ward.claim(study)
    second = ward.claim(study, LATER, alone=True)
    assert ward.finish(second, ward.answers(second))
    assert not ward.finish(second, ward.answers(second))
    assert not ward.finish(first, ward.answers(first))
    assert len(ward.findings(study)) == 2


def test_two_final_writes_at_once_leave_one_set_of_findings(ward: Ward) -> None:
    """Even a token used by two threads at the same moment is good for one final write."""
    study = ward.study(images=2)
    claim = ward.claim(study)
    with ThreadPoolExecutor(2) as pool:
        written = list(pool.map(lambda _: ward.finish(claim, ward.answers(claim)), range(2)))
    assert sorted(written) == [False, True]
    assert len(ward.findings(study)) == 2


def test_an_image_that_came_late_requeues_its_study(ward: Ward) -> None:
    """An image that arrives while its study is analysed reopens the study, and only that image is analysed then."""
    files = [ward.file(999, image) for image in range(3)]
    study = ward.take_in(files[:2])
    claim = ward.claim(study)
    ward.take_in(files[2:], now=NOW + S)
    assert ward.finish(claim, ward.answers(claim))
    row = ward.row(study)
    assert (row.status, row.sent_at, row.attempts) == (StudyStatus.QUEUED, None, 0)
    assert ward.lost(EMPTY, NOW + 2 * S) == [study]
    again = ward.claim(study, NOW + 2 * S)
    assert [instance.sha256 for instance in again.instances] == [files[2].sha256]
    assert ward.finish(again, ward.answers(again))
    assert (ward.row(study).status, len(ward.findings(study))) == (StudyStatus.ANALYSED, 3)


def test_one_bad_image_does_not_sink_its_study(ward: Ward) -> None:
    """A study with one unreadable image among good ones is analysed, and that image says why it was not."""
    study = ward.study(images=3)
    claim = ward.claim(study)
    results = ward.answers(claim)
    results[1] = InstanceResult(claim.instances[1].id, error_reason="truncated-pixels", error_text="It was cut short")
    assert ward.finish(claim, results)
    assert (ward.row(study).status, ward.row(study).failed_images) == (StudyStatus.ANALYSED, 1)
    errors = {image.id: image.error_text for image in ward.instances(study) if image.error_text}
    assert errors == {claim.instances[1].id: "It was cut short"}


def test_a_study_with_unread_images_is_not_called_normal(ward: Ward, make_finding: Callable[..., Finding]) -> None:
    """Two images undecodable, one negative: class, due time and words are those of a study that is not judged."""
    study = ward.study(images=3)
    claim = ward.claim(study)
    results = [InstanceResult(one.id, error_reason="truncated-pixels", error_text="cut") for one in claim.instances]
    results[0] = InstanceResult(claim.instances[0].id, [make_finding(assessment=Assessment.NEGATIVE)])
    assert ward.finish(claim, results)
    row = ward.row(study)
    assert (row.assessment, row.abstention, row.abstention_detail) == (Assessment.ABSTAINED, "unread-images", "2")
    assert row.due_at == row.received_at + timedelta(minutes=ALLOWANCES["abstained"][Priority.ROUTINE])


def test_a_study_of_bad_images_only_is_quarantined_with_their_reason(ward: Ward) -> None:
    """When no image could be analysed, the study is set aside in the words of the image's error."""
    study = ward.study(images=2)
    claim = ward.claim(study)
    bad = [
        InstanceResult(i.id, error_reason="truncated-pixels", error_text="It was cut short") for i in claim.instances
    ]
    assert ward.finish(claim, bad)
    assert (ward.row(study).status, ward.row(study).reason) == (StudyStatus.QUARANTINED, "It was cut short")


def test_another_bundle_adds_findings_and_keeps_the_old_ones(ward: Ward) -> None:
    """A newer bundle analyses all images again; what the older one found stays."""
    study = ward.study(images=2)
    claim = ward.claim(study)
    ward.finish(claim, ward.answers(claim))
    ward.set(study, status=StudyStatus.QUEUED)
    ward.add_bundle("b")
    again = ward.claim(study, bundle="b")
    assert len(again.instances) == 2
    assert ward.finish(again, ward.answers(again, "b"), "b")
    assert [finding.bundle for finding in ward.findings(study)] == ["a", "b"] * 2
    assert ward.row(study).bundle == "b"


# -- leases, retries, quarantine ------------------------------------------------------------------------------------


def test_a_renewed_lease_keeps_the_study(ward: Ward) -> None:
    """A living worker's lease does not run out, and renewing touches nobody else's."""
    study, other = ward.study(), ward.study()
    claim, _ = ward.claim(study), ward.claim(other)
    with ward.database.transaction() as session:
        work.renew(session, [claim.token, uuid4()], LATER + LEASE)
    assert ward.claim(study, LATER, alone=True) is None
    assert ward.row(other).lease_until == NOW + LEASE


def test_renewing_never_waits_for_a_locked_row(ward: Ward) -> None:
    """An upload that holds one study does not keep the other studies' leases from being renewed."""
    studies = [ward.study() for _ in range(3)]
    tokens = [ward.claim(study).token for study in studies]
    with ward.database.transaction() as holder, ThreadPoolExecutor(1) as pool:
        holder.get_one(StudyRow, studies[1], with_for_update=True)

        def renew() -> None:
            with ward.database.transaction() as session:
                work.renew(session, tokens, LATER)

        pool.submit(renew).result(LIMIT_S)
    assert [ward.row(study).lease_until for study in studies] == [LATER, NOW + LEASE, LATER]


def test_after_an_expired_lease_a_study_is_a_suspect(ward: Ward) -> None:
    """A study whose worker fell silent is given out again only to be analysed alone, and asking costs no attempt."""
    study = ward.study()
    assert ward.claim(study) is not None
    for _ in range(3):
        assert ward.claim(study, LATER) is work.NOT_ALONE
    assert ward.row(study).attempts == 1
    again = ward.claim(study, LATER, alone=True)
    assert again.attempt == 2


def test_a_retry_is_no_suspect(ward: Ward) -> None:
    """A study that was given back in words needs no quarantine of its own."""
    study = ward.study()
    with ward.database.transaction() as session:
        assert work.retry(session, ward.claim(study), "the object is missing", NOW, 4) == "will retry"
    assert ward.claim(study) is not None


def test_attempts_run_out_with_words(ward: Ward) -> None:
    """A study that fails every time is set aside after N attempts with the last reason."""
    study, outcomes = ward.study(), []
    for _ in range(4):
        with ward.database.transaction() as session:
            outcomes.append(work.retry(session, ward.claim(study), "the object is missing", NOW, 4))
    assert outcomes == ["will retry"] * 3 + ["quarantined"]
    row = ward.row(study)
    assert (row.status, row.reason, row.lease_token) == (StudyStatus.QUARANTINED, "the object is missing", None)


def test_a_study_that_kills_its_worker_each_time_is_quarantined_with_words(ward: Ward) -> None:
    """After N attempts that ended without a word the study is set aside, and the reason says that the worker died."""
    study, now = ward.study(), NOW
    ward.claim(study)
    for attempt in range(2, 5):
        now += LEASE + S
        assert ward.claim(study, now, alone=True).attempt == attempt
    assert ward.claim(study, now + LEASE + S) is None
    row = ward.row(study)
    assert (row.status, row.reason) == (
        StudyStatus.QUARANTINED,
        "4 attempts ended without a result: the worker died or hung each time",
    )


def test_a_blameless_attempt_does_not_count(ward: Ward) -> None:
    """While the whole store is down, no number of attempts sets a study aside."""
    study = ward.study()
    for _ in range(10):
        with ward.database.transaction() as session:
            assert work.retry(session, ward.claim(study), "the store is down", NOW, 4, blameless=True) == "will retry"
    assert (ward.row(study).status, ward.row(study).attempts) == (StudyStatus.RETRYING, 0)


@pytest.mark.parametrize("status", list(StudyStatus))
@pytest.mark.parametrize("move", ["claim", "claim alone", "finish", "retry"])
def test_no_move_of_the_repository_breaks_the_table(ward: Ward, status: StudyStatus, move: str) -> None:
    """From any state, each move either follows the table of transitions, is refused, or changes nothing."""
    study = ward.study()
    claim = ward.claim(study)
    expired = {"lease_until": NOW - S} if move.startswith("claim") else {}
    ward.set(study, status=status, **expired)
    before = ward.row(study)
    try:
        with ward.database.transaction() as session:
            if move.startswith("claim"):
                work.claim(session, [study], "a", NOW, LEASE, max_attempts=4, alone=move.endswith("alone"))
            elif move == "finish":
                work.finish(session, [work.Analysed(claim, ward.answers(claim), "a")], NOW)
            else:
                work.retry(session, claim, "why", NOW, 4)
    except AssertionError as refused:
        assert "may not become" in str(refused)
        allowed = False
    else:
        allowed = True
    after = ward.row(study)
    if (after.status, after.attempts, after.lease_token) != (before.status, before.attempts, before.lease_token):
        assert allowed
        assert may_become(StudyStatus(before.status), StudyStatus(after.status))
    else:
        assert ward.findings(study) == []


# -- what is lost ---------------------------------------------------------------------------------------------------

# so many more that wait like the first, and how many rows of studies this transaction has read
WAITING = """
    INSERT INTO studies (id, site_id, study_instance_uid, priority, status, received_at, queue, sent_at, queued_at,
        attempts, reason, due_at, modality, region, bundle, images, failed_images)
    SELECT gen_random_uuid(), site_id, 'waiting.' || n, priority, status, received_at, queue, sent_at, queued_at,
        attempts, reason, due_at, modality, region, bundle, images, failed_images
    FROM studies, generate_series(1, %(count)s) n WHERE id = %(first)s
"""
READ = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'studies'"


def sent(ward: Ward, at: datetime = NOW, priority: Priority = Priority.ROUTINE) -> UUID:
    study = ward.study(priority=priority)
    ward.set(study, sent_at=at)
    return study


def test_unsent_studies_are_sent_once(ward: Ward) -> None:
    """Each study that needs a message is named once, and not again until its message fails to leave."""
    studies = sorted((ward.study(), ward.study()), key=str)
    with ward.database.transaction() as session:
        assert [to_send.study_id for to_send in work.unsent(session, studies, NOW)] == studies
    with ward.database.transaction() as session:
        assert work.unsent(session, studies, NOW) == []
        work.sending_failed(session, studies[:1])
    assert ward.lost({**EMPTY, Priority.ROUTINE: NOW}, NOW + S) == studies[:1]


def test_the_reconciler_sends_what_was_never_sent(ward: Ward) -> None:
    """A study whose message never left is sent at the next sweep."""
    study = ward.study()
    assert ward.lost(EMPTY, NOW + S) == [study]
    assert ward.lost(EMPTY, NOW + 2 * S) == []


def test_the_reconciler_sends_what_was_overtaken(ward: Ward) -> None:
    """A study sent before the oldest message of its queue is in the queue no more, and is sent again."""
    old, new = sent(ward, NOW), sent(ward, NOW + 100 * S)
    heads = {**EMPTY, Priority.ROUTINE: NOW + 90 * S}
    assert ward.lost(heads, NOW + 110 * S) == [old]
    assert ward.lost(heads, NOW + 111 * S) == []
    assert ward.row(new).sent_at == NOW + 100 * S


def test_each_queue_has_a_head_of_its_own(ward: Ward) -> None:
    """That the urgent queue is empty says nothing about what waits in the backlog."""
    urgent, backlog = sent(ward, priority=Priority.URGENT), sent(ward, priority=Priority.BACKLOG)
    heads = {**EMPTY, Priority.BACKLOG: NOW}
    assert ward.lost(heads, NOW + 600 * S) == [urgent]
    assert ward.row(backlog).sent_at == NOW


def test_an_empty_queue_is_given_its_grace(ward: Ward) -> None:
    """A message just taken from the queue has time to become a claim before its study is sent again."""
    study = sent(ward)
    assert ward.lost(EMPTY, NOW + 29 * S) == []
    assert ward.lost(EMPTY, NOW + 31 * S) == [study]


def test_the_reconciler_does_not_walk_through_a_long_queue(ward: Ward) -> None:
    """It reads the rows of what is lost, and not those of what waits, however much that is."""
    first, forgotten = sent(ward, NOW), sent(ward, NOW - 100 * S)
    heads = {**EMPTY, Priority.ROUTINE: NOW}
    with ward.database.transaction() as session:
        session.connection().exec_driver_sql(WAITING, {"first": first, "count": 5000})
        session.connection().exec_driver_sql("ANALYZE studies")  # as autovacuum does
    with ward.database.transaction() as session:
        assert work.any_forgotten(session, heads, NOW, timedelta(seconds=30))
        assert [one.study_id for one in work.lost(session, heads, NOW, timedelta(seconds=30))] == [forgotten]
        assert session.connection().exec_driver_sql(READ).scalar_one() < 50


def test_the_reconciler_sends_what_a_dead_worker_held(ward: Ward) -> None:
    """A study whose lease ran out is sent once, and again only when that message too is nowhere."""
    study = sent(ward, NOW - S)
    ward.claim(study)
    assert ward.lost(EMPTY, NOW + 29 * S) == []
    assert ward.lost(EMPTY, LATER) == [study]
    assert ward.lost({**EMPTY, Priority.URGENT: NOW}, LATER + 600 * S) == []  # it waits in a long queue
    assert ward.lost(EMPTY, LATER + 31 * S) == [study]


@pytest.mark.parametrize("status", [StudyStatus.QUEUED, StudyStatus.RETRYING, StudyStatus.RUNNING])
def test_a_failed_message_is_sent_whatever_became_of_its_study(ward: Ward, status: StudyStatus) -> None:
    """When the broker refuses the message of a waiting, retrying or abandoned study, the next sweep sends it."""
    study = ward.study()
    claim = ward.claim(study)
    if status is StudyStatus.RETRYING:
        with ward.database.transaction() as session:
            work.retry(session, claim, "why", NOW, 4)
    elif status is StudyStatus.QUEUED:
        ward.set(study, status=StudyStatus.QUEUED, sent_at=None, lease_token=None, lease_until=None)
    assert ward.lost(EMPTY, LATER) == [study]
    with ward.database.transaction() as session:
        work.sending_failed(session, [study])
    assert ward.row(study).status == status
    assert ward.lost({**EMPTY, Priority.ROUTINE: NOW}, LATER + S) == [study]


def test_what_a_dead_worker_held_does_not_queue_up_again(ward: Ward) -> None:
    """An abandoned study, which was at the front once, goes one queue up; what merely waited stays where it is."""
    studies = {queue: sent(ward, NOW - S, queue) for queue in Priority}
    waiting = ward.study()
    for study in studies.values():
        ward.claim(study)
    up = {
        Priority.URGENT: Priority.URGENT, Priority.ROUTINE: Priority.URGENT, Priority.BACKLOG: Priority.ROUTINE,
    }  # fmt: skip
    assert set(ward.lost(EMPTY, LATER)) == {*studies.values(), waiting}
    assert {queue: ward.row(study).queue for queue, study in studies.items()} == up
    assert ward.row(waiting).queue == Priority.ROUTINE
    # the broker forgets those messages: none was at a front, so none goes up again
    assert set(ward.lost(EMPTY, LATER + 60 * S)) == {*studies.values(), waiting}
    assert {queue: ward.row(study).queue for queue, study in studies.items()} == up


def test_a_retry_is_sent_when_it_is_due_and_only_once(ward: Ward) -> None:
    """A retry leaves at its time, not before, and while it waits in a long queue it is not sent again."""
    study = ward.study()
    with ward.database.transaction() as session:
        work.retry(session, ward.claim(study), "the store is down", NOW + 60 * S, 4)
    long = {**EMPTY, Priority.ROUTINE: NOW}
    assert ward.lost(long, NOW + 59 * S) == []
    assert ward.lost(long, NOW + 60 * S) == [study]
    assert [ward.lost(long, NOW + seconds * S) for seconds in (61, 100, 500, 5000)] == [[]] * 4


def many(ward: Ward, count: int, queue: Priority = Priority.ROUTINE, **values: Any) -> None:
    """Rows of studies, quickly; sent one a second."""
    common = {
        "site_id": ward.site_id, "priority": queue, "queue": queue, "status": StudyStatus.QUEUED, "received_at": NOW,
        "due_at": NOW,
    }  # fmt: skip
    rows = [
        common | {"study_instance_uid": f"2.25.5.{uuid4().int}", "sent_at": NOW + i * S} | values for i in range(count)
    ]
    with ward.database.transaction() as session:
        session.execute(insert(StudyRow), rows)


def test_a_long_queue_is_never_flooded(ward: Ward) -> None:
    """While 10,000 studies merely wait in a queue, hour after hour, not one is sent again."""
    many(ward, 10_000)
    for worked_off in (0, 1, 5_000, 9_999):
        # the queue's oldest message is that of the first study not yet taken
        with ward.database.transaction() as session:
            taken = StudyRow.sent_at < NOW + worked_off * S
            session.query(StudyRow).filter(taken).update({"status": StudyStatus.ANALYSED})
        for hours in (1, 10):
            now = NOW + timedelta(hours=3 + hours)
            assert ward.lost({**EMPTY, Priority.ROUTINE: NOW + worked_off * S}, now) == []


def test_after_a_flush_everything_is_sent_once_and_urgent_studies_first(ward: Ward) -> None:
    """When the broker forgot everything, sweeps send each study exactly once, the urgent ones before all others."""
    many(ward, 1500, received_at=NOW - 60 * S)
    many(ward, 20, Priority.URGENT)
    many(ward, 5, Priority.BACKLOG, received_at=NOW - 120 * S)
    now = NOW + timedelta(hours=1)
    with ward.database.transaction() as session:
        first = work.lost(session, EMPTY, now, 30 * S)
    assert [to_send.queue for to_send in first] == [Priority.URGENT] * 20 + [Priority.ROUTINE] * 980
    # their messages stand in the queues now
    heads = {**EMPTY, Priority.URGENT: now, Priority.ROUTINE: now}
    second = ward.lost(heads, now + 5 * S)
    assert len(second) == 525
    assert not {to_send.study_id for to_send in first} & set(second)
    assert ward.lost(dict.fromkeys(Priority, now), now + 600 * S) == []


def test_two_reconcilers_at_once_send_once(ward: Ward) -> None:
    """Of reconcilers that sweep at the same moment, only one sends."""
    studies = [ward.study() for _ in range(50)]
    start = threading.Barrier(6)

    def sweep(_: int) -> list[UUID]:
        start.wait(LIMIT_S)
        return ward.lost(EMPTY, NOW + S)

    with ThreadPoolExecutor(6) as pool:
        found = [study for swept in pool.map(sweep, range(6)) for study in swept]
    assert sorted(found, key=str) == sorted(studies, key=str)


def test_a_second_reconciler_does_nothing_while_the_first_is_at_work(ward: Ward) -> None:
    """The lock is held until the first one's marks are committed."""
    study = ward.study()
    with ward.database.transaction() as session:
        assert [to_send.study_id for to_send in work.lost(session, EMPTY, NOW + S, 30 * S)] == [study]
        assert ward.lost(EMPTY, NOW + S) == []
    assert ward.lost(EMPTY, NOW + 2 * S) == []


def test_images_that_trickle_in_settle_before_they_are_analysed(ward: Ward) -> None:
    """A study that gets an image from a further request is neither sent nor claimed until none came for a while."""
    study = ward.study()
    with ward.database.transaction() as session:
        uid = session.get_one(StudyRow, study).study_instance_uid
        first = ward.file(int(uid.removeprefix("2.25.")), 7)
        take_in(session, ward.vault, ward.site_id, Priority.ROUTINE, [first], NOW + S, settle=3 * S)
    with ward.database.transaction() as session:
        assert work.unsent(session, [study], NOW + 2 * S) == []
        assert work.claim(session, [study], "a", NOW + 2 * S, LEASE, max_attempts=4) == [None]
    assert ward.lost(EMPTY, NOW + 2 * S) == []
    assert ward.lost(EMPTY, NOW + 5 * S) == [study]
    assert len(ward.claim(study, NOW + 5 * S).instances) == 2


# -- many at once ---------------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_group_gets_what_each_would_get_alone(ward: Ward, data: st.DataObject) -> None:
    """Claims of many studies in one transaction are those that the same studies, in the same states, get one by one."""
    states = st.sampled_from(["new", "retrying", "not due", "held", "abandoned", "given up", "analysed"])
    drawn = data.draw(st.lists(states, min_size=1, max_size=8))
    one_by_one, together = ([in_state(ward, state) for state in drawn] for _ in range(2))
    expected = [shape(ward.claim(study, LATER)) for study in one_by_one]
    asked = [*together, uuid4()]
    with ward.database.transaction() as session:
        answers = work.claim(session, asked, "a", LATER, LEASE, max_attempts=4)
    assert [shape(answer) for answer in answers] == [*expected, None]
    for study, twin in zip(together, one_by_one, strict=True):
        assert (ward.row(study).status, ward.row(study).attempts) == (ward.row(twin).status, ward.row(twin).attempts)
    claims = [answer for answer in answers if isinstance(answer, Claim)]
    assert len({claim.token for claim in claims}) == len(claims)


def in_state(ward: Ward, state: str) -> UUID:
    study = ward.study(images=2)
    if state == "analysed":
        claim = ward.claim(study)
        ward.finish(claim, ward.answers(claim))
    elif state in ("held", "abandoned", "given up"):
        ward.claim(study, LATER if state == "held" else NOW)
        ward.set(study, attempts=4 if state == "given up" else 1)
    elif state in ("retrying", "not due"):
        with ward.database.transaction() as session:
            work.retry(session, ward.claim(study), "why", LATER + S * (1 if state == "not due" else -1), 4)
    return study


def shape(answer: Any) -> Any:
    return (answer.attempt, len(answer.instances)) if isinstance(answer, Claim) else answer


def test_two_messages_in_one_group_give_one_claim(ward: Ward) -> None:
    """Two threads with messages for one study, whose claims come into one transaction, do not both get it."""
    first, study = ward.study(), ward.study()
    ledger = Ledger(ward.database, LEASE, 4, places=8)
    try:
        with ThreadPoolExecutor(3) as pool:
            with ward.database.transaction() as session:
                session.get_one(StudyRow, first, with_for_update=True)
                asked = [pool.submit(ledger.claim, first, "a", Priority.URGENT)]
                # its claim waits for the row, and the next ones wait for it, together
                until(lambda: ledger._claims.lanes[0].busy_since, 20)
                asked += [pool.submit(ledger.claim, study, "a", Priority.URGENT) for _ in range(2)]
                until(lambda: ledger._claims.waiting == 2, 20)
            claims = [each.result(LIMIT_S) for each in asked]
    finally:
        ledger.close()
    assert isinstance(claims[0], Claim)
    assert sum(claim is not None for claim in claims[1:]) == 1
    assert ward.row(study).attempts == 1


def test_results_of_many_studies_are_written_at_once(ward: Ward) -> None:
    """In one transaction each study gets its own findings and summary, and one whose lease is lost gets nothing."""
    studies = [ward.study(images=2) for _ in range(5)]
    claims = [ward.claim(study) for study in studies]
    taken_over = ward.claim(studies[2], LATER, alone=True)
    done = [work.Analysed(claim, ward.answers(claim), "a") for claim in claims]
    with ward.database.transaction() as session:
        assert work.finish(session, done, LATER) == [True, True, False, True, True]
    assert [len(ward.findings(study)) for study in studies] == [2, 2, 0, 2, 2]
    assert [ward.row(study).status for study in studies].count(StudyStatus.ANALYSED) == 4
    assert ward.finish(taken_over, ward.answers(taken_over))


# -- nothing starves ------------------------------------------------------------------------------------------------

LIMITS = {Priority.ROUTINE: timedelta(hours=4), Priority.BACKLOG: timedelta(days=7)}


def promote(ward: Ward, now: datetime, most: int = 100) -> list[tuple[UUID, Priority]]:
    with ward.database.transaction() as session:
        return [(one.study_id, one.queue) for one in work.promote(session, LIMITS, now, most)]


def test_a_study_beyond_its_limit_is_moved_up(ward: Ward) -> None:
    """What waited longer than its queue allows gets a message in the next faster one, once; others stay."""
    routine, backlog = ward.study(), ward.study(priority=Priority.BACKLOG)
    in_hand = ward.study()
    ward.claim(in_hand)
    assert promote(ward, NOW + timedelta(hours=4)) == []
    assert promote(ward, NOW + timedelta(hours=4, seconds=1)) == [(routine, Priority.URGENT)]
    assert promote(ward, NOW + timedelta(hours=5)) == []
    late = ward.study(now=NOW + timedelta(days=7))
    assert promote(ward, NOW + timedelta(days=7, seconds=1)) == [(backlog, Priority.ROUTINE)]
    assert ward.row(late).queue == Priority.ROUTINE
    assert promote(ward, NOW + timedelta(days=7, seconds=2)) == [(backlog, Priority.URGENT)]
    assert ward.row(routine).priority == Priority.ROUTINE, "what the sender said stays"


def test_the_longest_wait_is_moved_up_first_and_no_more_than_its_share(ward: Ward) -> None:
    """However many are late, so few are moved that an urgent study hardly notices, in the order in which they came."""
    studies = [ward.study(now=NOW + i * S) for i in (3, 1, 2, 0)]
    late = NOW + timedelta(hours=5)
    assert [study for study, _ in promote(ward, late, most=3)] == [studies[3], studies[1], studies[2]]
    assert [study for study, _ in promote(ward, late, most=3)] == [studies[0]]


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
        if tick % 10:  # nine urgent strangers in ten ticks: a tenth of the capacity is what promotion may take
            queues[Priority.URGENT].append((tick, False))
        else:
            late = [q for q, limit in limits.items() if queues[q] and queues[q][0][0] < tick - limit]
            if late:
                queues[work.FASTER[late[0]]].append(queues[late[0]].popleft())
        for waiting in queues.values():
            if waiting:
                served += waiting.popleft()[1]
                break
        tick += 1
        assert tick < 5000, "somebody starves"


@given(arrivals=st.lists(st.tuples(st.sampled_from(list(Priority)), st.integers(0, 12)), min_size=1, max_size=8))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_on_real_rows_nothing_starves_and_nobody_is_overtaken_by_a_slower_class(
    ward: Ward, arrivals: list[tuple[Priority, int]]
) -> None:
    """Under a load of urgent studies that leaves no more than the promoted ones' share, every study is analysed once soon
    after its limit; no backlog study is claimed while a routine one waits; and an urgent one hardly waits.

    Rows, claims, results and promotion are the real ones, one study a second; only the broker is three lists.
    """
    ward.set(*ids_of(ward), status=StudyStatus.QUARANTINED)  # of the example before
    limits = {Priority.ROUTINE: 10 * S, Priority.BACKLOG: 20 * S}
    broker: dict[Priority, deque[UUID]] = {queue: deque() for queue in Priority}
    came: dict[UUID, int] = {}  # study to second, of the urgent ones that come on and on too
    served: dict[UUID, int] = {}
    guests = []

    def ring(to_send: Sequence[work.ToSend]) -> None:
        for one in to_send:
            broker[one.queue].append(one.study_id)

    def arrive(queue: Priority, second: int) -> UUID:
        study = ward.study(priority=queue, now=NOW + second * S)
        came[study] = second
        with ward.database.transaction() as session:
            ring(work.unsent(session, [study], NOW + second * S))
        return study

    def serve(second: int) -> None:
        for queue in broker.values():
            while queue:
                study = queue.popleft()
                claim = ward.claim(study, NOW + second * S)
                if claim is None:  # rung for twice: it was moved up
                    assert study in served
                    continue
                faster = [one for one in Priority if list(Priority).index(one) < list(Priority).index(claim.priority)]
                assert [ward.count(status=StudyStatus.QUEUED, queue=one) for one in faster] == [0] * len(faster)
                assert ward.finish(claim, ward.answers(claim), now=NOW + second * S)
                served[study] = second
                return

    # each may be moved up twice, one every fifth second, and then waits for a second that no urgent one takes
    last = 12 + 30 + 15 * len(arrivals)
    for second in range(last):
        guests += [arrive(queue, second) for queue, at in arrivals if at == second]
        if second % 5:
            arrive(Priority.URGENT, second)
        else:
            with ward.database.transaction() as session:
                ring(work.promote(session, limits, NOW + second * S, 1))
        serve(second)
        if second > 12 and all(guest in served for guest in guests):
            break
    assert [guest for guest in guests if guest not in served] == [], "somebody starves"
    assert all(len(ward.findings(guest)) == 1 for guest in guests)
    crowd = sum(queue is Priority.URGENT for queue, _ in arrivals)
    urgent = [study for study in served if ward.row(study).priority == Priority.URGENT]
    assert max((served[study] - came[study] for study in urgent), default=0) <= 2 + crowd


def ids_of(ward: Ward) -> list[UUID]:
    with ward.database.transaction() as session:
        return list(session.scalars(select(StudyRow.id)))
