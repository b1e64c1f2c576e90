"""A second look's way through the workers: claimed, finished, retried, found again when lost.

It is a row of its own, so that its study keeps status, queue and findings until the new ones are whole.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, and_, any_, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.backlog import LookState, Purpose, newly_positive
from shared.findings import Assessment, Finding, Heatmap, Severity, StudySummary, abstention_of, summarise
from shared.repository.allowances import allowances_of
from shared.repository.bundles import active_bundle
from shared.repository.notices import findings_revised, worklist_changed
from shared.repository.work import (
    DIED,
    NOT_ALONE,
    Analysed,
    Answer,
    ToSend,
    clock,
    unanswered,
    uuids,
    write_findings,
)
from shared.study import Claim, Priority, StudyStatus
from shared.tables import AlertRow, FindingRow, InstanceRow, SecondLookRow, StudyRow
from shared.worklist import due_at

SPEAKS = (  # what is compared, and the lock on it
    StudyRow.id,
    StudyRow.status,
    StudyRow.priority,
    StudyRow.received_at,
    StudyRow.due_at,
    StudyRow.read_at,
    StudyRow.bundle,
    StudyRow.assessment,
    StudyRow.severity,
    StudyRow.region,
    StudyRow.fracture_probability,
)
NO_PICTURE = Heatmap(b"", 0, 0)  # a summary needs none
WAITS = (LookState.QUEUED, LookState.RUNNING)


def claim(
    session: Session,
    study_ids: Sequence[UUID],
    bundle: str,
    now: datetime,
    lease: timedelta,
    *,
    max_attempts: int,
    alone: bool = False,
) -> list[Answer]:
    """Take second looks by this bundle; as `work.claim`. One that has become needless is overtaken, and nobody's."""
    looks = session.scalars(
        select(SecondLookRow)
        .where(SecondLookRow.study_id == any_(uuids(study_ids)), SecondLookRow.bundle == bundle, _theirs())
        .order_by(SecondLookRow.study_id)
        .with_for_update()
    ).all()
    studies = {
        row.id: row
        for row in session.execute(select(*SPEAKS).where(StudyRow.id == any_(uuids([one.study_id for one in looks]))))
    }
    active = active_bundle(session)
    answers: dict[UUID, Answer] = {}
    for look in looks:
        study = studies[look.study_id]
        abandoned = look.state == LookState.RUNNING and look.lease_until is not None and look.lease_until < now
        waiting = look.state == LookState.QUEUED and (look.not_before is None or look.not_before <= now)
        if not (abandoned or waiting):
            continue
        if why := _needless(look, study.status, study.bundle, active.name if active else ""):
            _end(look, LookState.OVERTAKEN, why, now)
        elif abandoned and look.attempts >= max_attempts:
            _end(look, LookState.FAILED, f"{look.attempts} {DIED}", now)
        elif abandoned and not alone:
            answers[look.study_id] = NOT_ALONE
        else:
            look.state, look.attempts = LookState.RUNNING, look.attempts + 1
            look.lease_token, look.lease_until = uuid4(), now + lease
            answers[look.study_id] = Claim(
                look.study_id, look.lease_token, look.attempts, Priority.BACKLOG, study.received_at, []
            )
    claims = {id_: answer for id_, answer in answers.items() if isinstance(answer, Claim)}
    if claims:
        for study_id, instance in unanswered(session, list(claims), bundle):
            claims[study_id].instances.append(instance)
    return [answers.pop(study_id, None) for study_id in study_ids]


def renew(session: Session, tokens: Sequence[UUID], until: datetime) -> None:
    """Prolong the leases of a living worker, as `work.renew`."""
    held = (
        select(SecondLookRow.study_id, SecondLookRow.bundle)
        .where(SecondLookRow.state == LookState.RUNNING, SecondLookRow.lease_token.in_(tokens))
        .with_for_update(skip_locked=True)
        .subquery()
    )
    session.execute(
        update(SecondLookRow)
        .where(SecondLookRow.study_id == held.c.study_id, SecondLookRow.bundle == held.c.bundle)
        .values(lease_until=until)
        .execution_options(synchronize_session=False)
    )


def finish(session: Session, done: Sequence[Analysed], now: datetime) -> list[bool]:
    """Write what was found, and what follows from it. False, and nothing written, where the lease went elsewhere.

    An image that cannot be read fails its second look only: what stands of it since its first one is left alone.
    """
    looks = session.scalars(
        select(SecondLookRow)
        .where(SecondLookRow.study_id == any_(uuids([one.claim.study_id for one in done])), _theirs())
        .order_by(SecondLookRow.study_id, SecondLookRow.bundle)
        .with_for_update()
    ).all()
    held = {look.lease_token: look for look in looks if look.state == LookState.RUNNING}
    mine = {one.claim.token: one for one in done if one.claim.token in held}
    write_findings(session, mine.values())
    for token, one in mine.items():
        for result in one.results:
            if result.error_reason:
                _end(held[token], LookState.FAILED, f"an image could not be read again ({result.error_reason})", now)
    settle(session, [held[token] for token in mine if held[token].state == LookState.RUNNING], now)
    return [mine.get(one.claim.token) is one for one in done]


def settle(session: Session, looks: Sequence[SecondLookRow], now: datetime) -> None:
    """End second looks whose findings are written: compare, and give an outdated study its new summary.

    looks: of locked rows. Summary, comparison and alert are one transaction with the findings. What was read does not
    come back into the worklist, an alert is how it is told; what is unread yet moves up where its new class wants it.
    """
    if not looks:
        return
    ids = [look.study_id for look in looks]
    studies = {
        row.id: row
        for row in session.execute(
            select(*SPEAKS).where(StudyRow.id == any_(uuids(ids))).order_by(StudyRow.id).with_for_update()
        )
    }
    # read once the studies are ours, see `redue`
    allowances = allowances_of(session, {look.site_id for look in looks})
    active = active_bundle(session)
    summaries: dict[tuple[UUID, str], StudySummary | None] = {}
    for bundle in {look.bundle for look in looks}:
        of_bundle = [look.study_id for look in looks if look.bundle == bundle]
        summaries |= {(id_, bundle): summary for id_, summary in _summaries(session, of_bundle, bundle).items()}
    switched, alerts = [], []
    for look in looks:
        study, summary = studies[look.study_id], summaries.get((look.study_id, look.bundle))
        if why := _needless(look, study.status, study.bundle, active.name if active else ""):
            _end(look, LookState.OVERTAKEN, why, now)
        elif summary is None:
            _end(look, LookState.FAILED, "not every image could be read again", now)
        else:
            _end(look, LookState.DONE, "", now)
            look.region, look.old_bundle, look.old_assessment = study.region, study.bundle, study.assessment
            look.old_severity, look.old_probability = study.severity, study.fracture_probability
            look.new_assessment, look.new_severity = summary.assessment, summary.severity
            look.new_probability = summary.fracture_probability
            if look.purpose == Purpose.OUTDATED:
                due = due_at(study.received_at, Priority(study.priority), summary, allowances[look.site_id])
                # never later than it stood: a finding that became milder pushes nobody back
                due = min(study.due_at, due) if study.read_at is None else study.due_at
                switched.append(_values(look, summary) | {"due_at": due})
                if newly_positive(study.assessment, summary.assessment):
                    alerts.append(_alert(look, summary))
    if switched:
        session.execute(update(StudyRow), switched)
    if alerts:
        session.execute(insert(AlertRow).on_conflict_do_nothing(), alerts)
    revised = {look.site_id for look in looks} if alerts else set()
    findings_revised(session, revised)
    if switched and not revised:
        worklist_changed(session, {look.site_id for look in looks})


def retry(
    session: Session, claimed: Claim, reason: str, not_before: datetime, max_attempts: int, *, blameless: bool = False
) -> str:
    """Give a second look back after something that can heal; the last attempt fails it. Returns what it did."""
    look = session.scalar(
        select(SecondLookRow)
        .where(SecondLookRow.study_id == claimed.study_id, SecondLookRow.lease_token == claimed.token)
        .with_for_update()
    )
    if look is None:
        return "lease lost"
    if look.attempts >= max_attempts and not blameless:
        _end(look, LookState.FAILED, reason, clock(session))
        return "second look failed"
    look.attempts -= blameless
    look.state, look.reason, look.not_before, look.sent_at = LookState.QUEUED, reason, not_before, None
    look.lease_token = look.lease_until = None
    return "will look again"


def lost(session: Session, head: datetime | None, now: datetime, grace: timedelta) -> list[ToSend]:
    """Second looks that stand here but not in the backlog queue, marked as sent. By the rule of `work.lost`.

    head: when the oldest message of that queue was sent, None for an empty one.
    """
    nowhere = or_(SecondLookRow.sent_at.is_(None), SecondLookRow.sent_at < min(head or now, now) - grace)
    due = or_(SecondLookRow.not_before.is_(None), SecondLookRow.not_before <= now)
    looks = session.scalars(
        select(SecondLookRow)
        .where(
            SecondLookRow.state.in_(WAITS),
            _theirs(),
            or_(
                and_(SecondLookRow.state == LookState.QUEUED, due, nowhere),
                and_(
                    SecondLookRow.state == LookState.RUNNING,
                    SecondLookRow.lease_until < now,
                    or_(SecondLookRow.sent_at < SecondLookRow.lease_until, nowhere),
                ),
            ),
        )
        .order_by(SecondLookRow.queued_at, SecondLookRow.study_id)
        .limit(1000)
        .with_for_update(skip_locked=True)
    )
    return [sent(look, now) for look in looks]


def sent(look: SecondLookRow, now: datetime) -> ToSend:
    """The message of this second look, marking it as sent; send after the commit."""
    look.sent_at = now
    return ToSend(look.study_id, Priority.BACKLOG, now, look.bundle)


def sending_failed(session: Session, unsent: Sequence[ToSend]) -> None:
    """The broker did not take these messages: they count as lost, and are sent again."""
    for bundle in {one.bundle for one in unsent}:
        free = (
            select(SecondLookRow.study_id)
            .where(
                SecondLookRow.study_id == any_(uuids([one.study_id for one in unsent if one.bundle == bundle])),
                SecondLookRow.bundle == bundle,
            )
            .with_for_update(skip_locked=True)
        )
        session.execute(
            update(SecondLookRow)
            .where(SecondLookRow.study_id.in_(free), SecondLookRow.bundle == bundle)
            .values(sent_at=None)
            .execution_options(synchronize_session=False)
        )


def _theirs() -> ColumnElement[bool]:
    """Second looks proper; of failed and stranded studies a run only keeps the account here."""
    return SecondLookRow.purpose.in_((Purpose.OUTDATED, Purpose.SHADOW))


def _needless(look: SecondLookRow, status: str, bundle: str, active: str) -> str:
    """Why this second look is needless by now, in words; "" if it is not."""
    if status != StudyStatus.ANALYSED:
        return "the study is analysed anew"
    if bundle == look.bundle:
        return "this bundle speaks for the study already"
    if look.purpose == Purpose.OUTDATED and look.bundle != active:
        return "another bundle is active"
    return ""


def _end(look: SecondLookRow, state: LookState, reason: str, now: datetime) -> None:
    look.state, look.reason, look.finished_at = state, reason, now
    look.lease_token = look.lease_until = look.not_before = None


def _summaries(session: Session, study_ids: Sequence[UUID], bundle: str) -> dict[UUID, StudySummary | None]:
    """What this bundle says of each study; None where it has not seen all images that can be read."""
    rows = session.execute(
        select(
            InstanceRow.study_id,
            FindingRow.frame,
            FindingRow.bundle,
            FindingRow.region,
            FindingRow.region_probability,
            FindingRow.fracture_probability,
            FindingRow.assessment,
            FindingRow.severity,
            FindingRow.score,
            FindingRow.abstention,
            FindingRow.abstention_detail,
        )
        .join(FindingRow, FindingRow.instance_id == InstanceRow.id)
        .where(InstanceRow.study_id == any_(uuids(study_ids)), FindingRow.bundle == bundle)
    )
    found: dict[UUID, list[Finding]] = {}
    for row in rows:
        finding = Finding(
            row.frame, row.bundle, row.region, row.region_probability, row.fracture_probability,
            Assessment(row.assessment), Severity(row.severity), NO_PICTURE, row.score, abstention_of(row.abstention),
            row.abstention_detail,
        )  # fmt: skip
        found.setdefault(row.study_id, []).append(finding)
    gaps = {study_id for study_id, _ in unanswered(session, study_ids, bundle)}
    failed = dict(
        session.execute(
            select(InstanceRow.study_id, func.count())
            .where(InstanceRow.study_id == any_(uuids(study_ids)), InstanceRow.error_reason != "")
            .group_by(InstanceRow.study_id)
        ).all()
    )  # fmt: skip
    return {id_: None if id_ in gaps else summarise(each, failed.get(id_, 0)) for id_, each in found.items()}


def _values(look: SecondLookRow, summary: StudySummary) -> dict[str, object]:
    return {
        "id": look.study_id,
        "assessment": summary.assessment,
        "severity": summary.severity,
        "region": summary.region,
        "fracture_probability": summary.fracture_probability,
        "score": summary.score,
        "abstention": summary.abstention,
        "abstention_detail": summary.abstention_detail,
        "bundle": look.bundle,
    }


def _alert(look: SecondLookRow, summary: StudySummary) -> dict[str, object]:
    return {
        "id": uuid4(),
        "site_id": look.site_id,
        "study_id": look.study_id,
        "run_id": look.run_id,
        "old_bundle": look.old_bundle,
        "new_bundle": look.bundle,
        "old_assessment": look.old_assessment,
        "new_assessment": summary.assessment,
        "region": summary.region,
        "old_probability": look.old_probability or 0.0,
        "new_probability": summary.fracture_probability,
    }
