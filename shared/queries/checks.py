"""The daily check: who runs it, what it needs while it runs, what it looks at, and how it ended."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db.clock import db_now
from shared.db.tables import (
    AnalysisRow,
    BundleRow,
    CheckExpectationRow,
    CheckRow,
    DeliveryObjectRow,
    DeliveryRow,
    DestinationRow,
    DestinationRuleRow,
    FindingRow,
    InstanceRow,
    KeyRow,
    ResultObjectRow,
    ResultSetRow,
    SiteRow,
    StudyRow,
    WorkerRow,
)
from shared.db.tables.access import is_counted
from shared.domain.analysis import WAITING
from shared.domain.checks import (
    ENDED,
    SITE,
    STATES,
    TITLE,
    CheckReason,
    CheckState,
    CheckStep,
    FrameFinding,
    finding_of,
)
from shared.domain.destinations import DestinationKind, SetState, When
from shared.domain.results import ResultKind
from shared.domain.security import EventKind, Role, Subject, System
from shared.domain.study import Priority
from shared.errors import NotFound
from shared.queries.access import Key, key_hash
from shared.queries.analyses import IS_FIRST
from shared.queries.audit import Target, record, record_site_made
from shared.queries.operations import SILENT_AFTER, last_analysed_at

CHECKS_LOCK = 0x05_7E_0A_06
KEPT_FOR = timedelta(days=400)
MAX_LISTED = 100
EXPECTATION = "check-expectation"  # the setting's code in events
KINDS = (
    ResultKind.SC_OVERLAY, ResultKind.SC_SUMMARY, ResultKind.SR_OUTLINES, ResultKind.SR_STATEMENTS, ResultKind.PDF,
    ResultKind.GSPS,
)  # fmt: skip


# -- asked for, due, running, ended


def ask(session: Session, key: Key, *, accept: bool = False) -> CheckRow:
    """Ask for a check. Where one waits or runs already, that one is what is asked for.

    Args:
        session: the caller's transaction.
        key: of whoever asks.
        accept: what it finds is what is expected of this model on this engine from now on.

    Returns:
        Its row.
    """
    _serialize(session)
    row = session.scalars(
        select(CheckRow).where(CheckRow.state.in_((CheckState.RUNNING, CheckState.ASKED))).with_for_update()
    ).first()  # fmt: skip
    if row is None:
        row = CheckRow()
        session.add(row)
        session.flush()
    if accept and not row.accept:
        row.accept = True
        record(
            session, EventKind.SETTING_CHANGED, key, about=Target(Subject.SETTING, EXPECTATION), everywhere=True,
            before={"findings": "expected"}, after={"findings": "accepted"}, setting=EXPECTATION,
        )  # fmt: skip
    session.flush()
    session.refresh(row)
    return row


def take(session: Session, lease: timedelta, due_since: datetime | None) -> CheckRow | None:
    """Begin the check that somebody asked for, or the day's. One that died is ended first.

    Args:
        session: the caller's transaction.
        lease: how long it is the caller's, unless `renew` is called.
        due_since: when the day's check became due, if nobody has begun one since; None: none is due.

    Returns:
        The row; None if there is nothing to do, or another process runs a check.
    """
    _serialize(session)
    now = db_now(session)
    running = session.scalar(select(CheckRow).where(CheckRow.state == CheckState.RUNNING).with_for_update())
    if running is not None:
        if running.lease_until is not None and running.lease_until > now:
            return None
        end(session, running, CheckReason.DIED)
    row = session.scalar(select(CheckRow).where(CheckRow.state == CheckState.ASKED).with_for_update())
    if row is None and due_since is not None:
        begun = select(CheckRow.id).where(CheckRow.started_at >= due_since).limit(1)
        if session.scalar(begun) is None:
            row = CheckRow(scheduled=True, accept=False)
            session.add(row)
    if row is None:
        return None
    row.state, row.started_at, row.lease_until, row.steps = CheckState.RUNNING, now, now + lease, []
    session.execute(delete(CheckRow).where(CheckRow.asked_at < now - KEPT_FOR))
    session.flush()
    return row


def renew(session: Session, check_id: UUID, lease: timedelta, step: CheckStep) -> bool:
    """Go on with a check.

    Args:
        session: the caller's transaction.
        check_id: as `take` gave it.
        lease: from now on.
        step: in which it is.

    Returns:
        Whether it is the caller's still.
    """
    its = CheckRow.id == check_id, CheckRow.state == CheckState.RUNNING
    held = update(CheckRow).where(*its).values(lease_until=func.clock_timestamp() + lease, step=step)
    return session.scalar(held.returning(CheckRow.id)) is not None


def record_step(session: Session, row: CheckRow, step: CheckStep, seconds: float) -> None:
    """Note that a step is done.

    Args:
        session: the caller's transaction.
        row: of the check.
        step: which.
        seconds: that it took.
    """
    row.steps = [*row.steps, {"step": step.value, "seconds": round(seconds, 3)}]
    session.execute(update(CheckRow).where(CheckRow.id == row.id).values(steps=row.steps))


def put_back(session: Session, row: CheckRow) -> None:
    """Let the next process make a check from its beginning, since this one ends.

    Args:
        session: the caller's transaction.
        row: of the check.
    """
    _serialize(session)
    asked = session.scalar(select(CheckRow.id).where(CheckRow.state == CheckState.ASKED))
    its = CheckRow.id == row.id, CheckRow.state == CheckState.RUNNING
    if row.scheduled or asked is not None:  # the day's is due again by itself
        session.execute(delete(CheckRow).where(*its))
    else:
        fresh: dict[str, Any] = {
            "state": CheckState.ASKED,
            "started_at": None,
            "lease_until": None,
            "steps": [],
            "step": "",
        }
        session.execute(update(CheckRow).where(*its).values(fresh))


def end(session: Session, row: CheckRow, reason: CheckReason | None, detail: str = "") -> None:
    """Note how a check ended.

    Args:
        session: the caller's transaction.
        row: of the check.
        reason: why it did not end well; None: it did.
        detail: the fact that the reason is about, a code, a number or a class.
    """
    row.state = CheckState.WELL if reason is None else STATES.get(reason, CheckState.BROKEN)
    row.reason, row.reason_detail = reason or "", detail[:128]
    row.ended_at, row.lease_until = db_now(session), None
    names = (
        "state", "reason", "reason_detail", "ended_at", "lease_until", "step", "model", "engine", "learned",
        "probability_deviation", "heatmap_deviation",
    )  # fmt: skip
    session.execute(update(CheckRow).where(CheckRow.id == row.id).values({name: getattr(row, name) for name in names}))


def list_latest(session: Session, limit: int) -> Sequence[CheckRow]:
    """Read the last checks.

    Args:
        session: the caller's transaction.
        limit: so many, at most MAX_LISTED.

    Returns:
        The rows, the latest first.
    """
    order = CheckRow.asked_at.desc(), CheckRow.id
    return session.scalars(select(CheckRow).order_by(*order).limit(min(limit, MAX_LISTED))).all()


def get_check(session: Session, check_id: UUID) -> CheckRow:
    """Read a check.

    Args:
        session: the caller's transaction.
        check_id: of the check.

    Returns:
        Its row.

    Raises:
        NotFound: there is no such check.
    """
    row = session.get(CheckRow, check_id)
    if row is None:
        raise NotFound(f"there is no check {check_id}; the list of checks has the ids")
    return row


def last_ended(session: Session) -> CheckRow | None:
    """Read the check that ended last."""
    ended = select(CheckRow).where(CheckRow.state.in_(ENDED))
    return session.scalars(ended.order_by(CheckRow.ended_at.desc()).limit(1)).first()


def accepts(session: Session, check_id: UUID) -> bool:
    """Whether what a check finds is what is expected from now on, as somebody may have asked while it ran.

    Args:
        session: the caller's transaction.
        check_id: of the check.

    Returns:
        Whether it is.
    """
    return bool(session.scalar(select(CheckRow.accept).where(CheckRow.id == check_id)))


def _serialize(session: Session) -> None:
    """Let processes that ask for checks or begin them do so one after the other."""
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": CHECKS_LOCK})


# -- what a check needs


@dataclass(frozen=True)
class Access:
    """What a check may use while it runs."""

    site_id: UUID
    key_id: UUID
    secret: str  # of the key, which is known to nobody else and valid only while the check runs


def open_access(session: Session, host: str, port: int, valid: timedelta) -> Access:
    """Let a check send, read and delete at its own site, and have the results delivered to its receiver.

    The site, its key and its destination are made by the first check. The key's hash is replaced at each.

    Args:
        session: the caller's transaction.
        host: of the check's receiver.
        port: of the same.
        valid: until when the key is valid at the longest, where nobody closes it.

    Returns:
        Them.
    """
    site_id = session.scalar(select(SiteRow.id).where(SiteRow.checks))
    if site_id is None:
        made = insert(SiteRow).values(name=SITE, checks=True).on_conflict_do_nothing()
        site_id = session.scalar(made.returning(SiteRow.id))
        if site_id is None:  # a hospital bears that name
            made = insert(SiteRow).values(name=f"{SITE} {secrets.token_hex(4)}", checks=True)
            site_id = session.execute(made.returning(SiteRow.id)).scalar_one()
        record_site_made(session, System.CHECK, session.get_one(SiteRow, site_id).name, site_id)
    secret = f"osk_{secrets.token_urlsafe(32)}"
    until = db_now(session) + valid
    fresh = {"sha256": key_hash(secret), "expires_at": until, "revoked_at": None}
    key = insert(KeyRow).values(site_id=site_id, name=TITLE, role=Role.ADMIN, **fresh)
    key = key.on_conflict_do_update(index_elements=["site_id", "name"], set_=fresh)
    key_id = session.execute(key.returning(KeyRow.id)).scalar_one()
    address = {"host": host, "port": port, "called_ae": TITLE, "calling_ae": "OSTEON"}
    values = {
        **address, "disabled_at": None, "not_before": None, "failures": 0, "reason": "", "capabilities": {},
        "lease_token": None, "lease_until": None,
    }  # fmt: skip
    destination = insert(DestinationRow).values(site_id=site_id, name=TITLE, kind=DestinationKind.DICOM, **values)
    destination = destination.on_conflict_do_update(index_elements=["site_id", "name"], set_=values)
    destination_id = session.execute(destination.returning(DestinationRow.id)).scalar_one()
    rule = {"when": When.ANALYSED, "kinds": list(KINDS)}
    session.execute(
        insert(DestinationRuleRow)
        .values(destination_id=destination_id, place=1, **rule)
        .on_conflict_do_update(index_elements=["destination_id", "place"], set_=rule)
    )
    return Access(site_id, key_id, secret)


def close_access(session: Session, access: Access) -> None:
    """Take it back: nobody has the key any more, and nothing goes to the receiver, which is gone.

    Args:
        session: the caller's transaction.
        access: as `open_access` gave it. What a later check has opened stays open.
    """
    is_its_key = KeyRow.id == access.key_id, KeyRow.sha256 == key_hash(access.secret)
    closed = update(KeyRow).where(*is_its_key).values(sha256=key_hash(secrets.token_hex(32)), revoked_at=func.now())
    if session.scalar(closed.returning(KeyRow.id)) is not None:
        site = DestinationRow.site_id == access.site_id
        session.execute(update(DestinationRow).where(site).values(disabled_at=func.now()))


# -- what it looks at


def find_remains(session: Session, site_id: UUID) -> Sequence[UUID]:
    """Find the studies of the check's site: its own, or what checks that died have left.

    Args:
        session: the caller's transaction.
        site_id: the check's site.

    Returns:
        Their ids.
    """
    return session.scalars(select(StudyRow.id).where(StudyRow.site_id == site_id)).all()


def study_of(session: Session, site_id: UUID, study_instance_uid: str) -> StudyRow | None:
    """Read the study that a check has sent.

    Args:
        session: the caller's transaction.
        site_id: the check's site.
        study_instance_uid: of the study.

    Returns:
        Its row as it is now; None if it is not there.
    """
    is_its_study = StudyRow.site_id == site_id, StudyRow.study_instance_uid == study_instance_uid
    return session.scalar(select(StudyRow).where(*is_its_study).execution_options(populate_existing=True))


def engines(session: Session) -> tuple[str, ...]:
    """What the living workers compute with, each once, in alphabetical order."""
    alive = WorkerRow.stopped_at.is_(None), WorkerRow.seen_at > func.clock_timestamp() - SILENT_AFTER
    return tuple(session.scalars(select(WorkerRow.device).where(*alive).distinct().order_by(WorkerRow.device)))


@dataclass(frozen=True)
class OtherWork:
    """What hospitals have to do: how much of it waits, and when some was last done."""

    waiting: int
    last_done: datetime | None


def other_analyses(session: Session) -> OtherWork:
    """Count the analyses of hospitals that are served before the check's, or beside it."""
    waits = IS_FIRST, AnalysisRow.state.in_(WAITING), AnalysisRow.priority != Priority.BACKLOG
    waiting = session.scalar(select(func.count()).where(*waits, is_counted(AnalysisRow.site_id))) or 0
    return OtherWork(waiting, last_analysed_at(session))


def other_sets(session: Session) -> OtherWork:
    """Count the sets of results of hospitals that are due."""
    its = is_counted(ResultSetRow.site_id)
    due = ResultSetRow.state == SetState.WAITING, ResultSetRow.next_at <= func.clock_timestamp(), its
    waiting = session.scalar(select(func.count()).where(*due)) or 0
    lately = ResultSetRow.made_at > func.clock_timestamp() - timedelta(hours=1), its
    return OtherWork(
        waiting, session.scalar(select(func.max(ResultSetRow.made_at)).where(*lately)) if waiting else None
    )


def digest_of(session: Session, model: str) -> str:
    """Read the digest of a model's bundle.

    Args:
        session: the caller's transaction.
        model: the bundle's name.

    Returns:
        Its SHA-256, hexadecimal.
    """
    return session.get_one(BundleRow, model).sha256


def findings(session: Session, study_id: UUID, model: str, places: Mapping[str, int]) -> list[FrameFinding]:
    """Read what a model has found in the reference study.

    Args:
        session: the caller's transaction.
        study_id: of the study.
        model: the bundle's name.
        places: the images' numbers in the reference study, by SOP Instance UID.

    Returns:
        A finding for each frame.
    """
    rows = session.execute(
        select(FindingRow, InstanceRow.sop_instance_uid)
        .join(InstanceRow, InstanceRow.id == FindingRow.instance_id)
        .where(InstanceRow.study_id == study_id, FindingRow.bundle == model)
    )
    return [
        FrameFinding(
            places.get(uid, 0), row.frame, row.region, row.assessment, row.severity, row.abstention or "",
            tuple(row.field or ()), row.region_probability, row.fracture_probability, bytes(row.heatmap),
            row.heatmap_height, row.heatmap_width,
        )
        for row, uid in rows
    ]  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """Findings that are expected of a model; engine: on which they were found."""

    engine: str
    findings: list[FrameFinding]


def find_expected(session: Session, reference: str, bundle_sha256: str, engine: str) -> Expected | None:
    """Read what is expected of a model for the reference study.

    Args:
        session: the caller's transaction.
        reference: digest of the reference study.
        bundle_sha256: of the model.
        engine: that computes.

    Returns:
        What is expected on this engine; without that, what another one found first; None: nothing is known yet.
    """
    row = session.scalars(
        select(CheckExpectationRow)
        .where(CheckExpectationRow.reference == reference, CheckExpectationRow.bundle_sha256 == bundle_sha256)
        .order_by(CheckExpectationRow.engine != engine, CheckExpectationRow.set_at)
        .limit(1)
    ).first()
    return None if row is None else Expected(row.engine, [finding_of(one) for one in row.findings])


def set_expected(
    session: Session, reference: str, bundle_sha256: str, engine: str, findings: Sequence[FrameFinding]
) -> None:  # fmt: skip
    """Expect these findings from now on.

    Args:
        session: the caller's transaction.
        reference: digest of the reference study.
        bundle_sha256: of the model.
        engine: that computed them.
        findings: the findings.
    """
    values = {"findings": [one.as_json() for one in findings], "set_at": func.clock_timestamp()}
    key = {"reference": reference, "bundle_sha256": bundle_sha256, "engine": engine}
    row = insert(CheckExpectationRow).values(**key, **values)
    session.execute(row.on_conflict_do_update(index_elements=list(key), set_=values))


@dataclass(frozen=True)
class MadeResults:
    """Where the results of the check's study stand."""

    waiting: int  # sets that are to be made
    states: tuple[tuple[str, str], ...]  # of the others, state and reason
    assessments: tuple[str, ...]  # that they state
    kinds: Mapping[str, str]  # of the objects that are to be delivered, by SOP Instance UID
    deliveries: tuple[tuple[str, str], ...]  # state and reason


def find_results(session: Session, study_id: UUID) -> MadeResults:
    """Read where the results of the check's study stand.

    Args:
        session: the caller's transaction.
        study_id: of the study.

    Returns:
        That.
    """
    sets = session.scalars(
        select(ResultSetRow).where(ResultSetRow.study_id == study_id).execution_options(populate_existing=True)
    ).all()
    objects = session.execute(
        select(ResultObjectRow.sop_instance_uid, ResultObjectRow.kind)
        .join(DeliveryObjectRow, DeliveryObjectRow.object_id == ResultObjectRow.id)
        .join(DeliveryRow, DeliveryRow.id == DeliveryObjectRow.delivery_id)
        .where(DeliveryRow.study_id == study_id)
    )
    sent = session.execute(select(DeliveryRow.state, DeliveryRow.reason).where(DeliveryRow.study_id == study_id))
    ended = [one for one in sets if one.state != SetState.WAITING]
    return MadeResults(
        len(sets) - len(ended),
        tuple((one.state, one.reason) for one in ended),
        tuple(one.assessment for one in ended if one.assessment),
        {uid: kind for uid, kind in objects},  # noqa: C416 - of rows
        tuple((state, reason) for state, reason in sent),
    )


def series_of(session: Session, study_id: UUID) -> Mapping[str, str]:
    """Find the series of the objects that were made for a study.

    Args:
        session: the caller's transaction.
        study_id: of the study.

    Returns:
        Series Instance UIDs by SOP Instance UID.
    """
    its = select(ResultObjectRow.sop_instance_uid, ResultObjectRow.series_instance_uid)
    return {uid: series for uid, series in session.execute(its.where(ResultObjectRow.study_id == study_id))}  # noqa: C416
