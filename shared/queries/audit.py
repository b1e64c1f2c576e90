"""Audit events: who did what, written once, never changed."""

import ipaddress
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, String, cast, func, select
from sqlalchemy.orm import Session

from shared.db.tables import AuditEventRow, KeyRow, SiteRow
from shared.domain.security import FAILURES, EventKind, KeyRefusal, Subject, System
from shared.logs import get_logger
from shared.queries.access import Key

log = get_logger(__name__)


State = Mapping[str, object]  # codes, numbers and None, by name


@dataclass(frozen=True)
class Target:
    """What an event is about: a thing of some kind, by its id or its name."""

    kind: Subject
    id: UUID | str


def record(
    session: Session,
    kind: EventKind,
    actor: Key | System,
    *,
    about: Target | None = None,
    study_id: UUID | None = None,
    site_id: UUID | None = None,
    everywhere: bool = False,
    before: State | None = None,
    after: State | None = None,
    **detail: str | int | None,
) -> None:
    """Record who did what, in the transaction that does it, so that neither is there without the other; and log it.

    Values are codes, numbers, names of keys and models; never a secret, never free text that may name a patient, never
    what a DICOM header holds.

    Args:
        session: the transaction that makes the change.
        kind: what happened.
        actor: who did it.
        about: what was changed; None: nothing in particular.
        study_id: the study that this belongs to; None: none.
        site_id: the site that it concerns; None: the key's.
        everywhere: whether it concerns all sites, as a model does; only operators see it then.
        before: what was changed, as it was; None: it did not exist.
        after: what was changed, as it is now; None: it does not exist any more.
        **detail: further facts; those that are None are left out.
    """
    key = actor if isinstance(actor, Key) else None
    _write_event(
        session, kind, key, None if everywhere else site_id or (key.site_id if key else None),
        actor=key.name if key else str(actor), address=key.address if key else "", study_id=study_id,
        subject_kind=about.kind if about else None, subject_id=str(about.id) if about else None,
        before=before, after=after, detail=detail,
    )  # fmt: skip


def record_key_made(session: Session, actor: Key | System, row: KeyRow) -> None:
    """Record that a key was made.

    Args:
        session: the transaction that makes it.
        actor: who made it.
        row: the new key.
    """
    until = row.expires_at.isoformat() if row.expires_at else None
    record(
        session, EventKind.KEY_MADE, actor, about=Target(Subject.KEY, row.id), site_id=row.site_id,
        after={"state": "valid", "role": role_words(row), "until": until}, name=row.name, role=role_words(row),
    )  # fmt: skip


def role_words(row: KeyRow) -> str:
    """The role of a key; an admin's key that is an operator's too says both."""
    return f"{row.role}, operator" if row.operates else row.role


def record_site_made(session: Session, actor: Key | System, name: str, site_id: UUID) -> None:
    """Record that a site was made.

    Args:
        session: the transaction that makes it.
        actor: who made it.
        name: of the site.
        site_id: of the site.
    """
    record(session, EventKind.SITE_MADE, actor, about=Target(Subject.SITE, name), site_id=site_id, after={"name": name})


def difference(before: State, after: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Find what two states do not have in common.

    Args:
        before: the earlier state.
        after: the later state.

    Returns:
        The values that differ: before, and after; None for one that is missing.
    """
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return {name: before.get(name) for name in changed}, {name: after.get(name) for name in changed}


def _write_event(
    session: Session,
    kind: EventKind,
    key: Key | None,
    site_id: UUID | None,
    *,
    address: str,
    detail: Mapping[str, str | int | None],
    actor: str | None = None,
    **columns: Any,  # noqa: ANN401 - of the row
) -> None:
    values = {name: value for name, value in detail.items() if value is not None}
    session.add(
        AuditEventRow(
            kind=kind, site_id=site_id, key_id=key.id if key else None, actor=actor or (key.name if key else None),
            address=address, network=network_of(address), detail=values, **columns,
        )
    )  # fmt: skip
    more = {"kind": str(kind), "key": key.id if key else None, "actor": actor, "address": address, "detail": values}
    more |= {name: value for name, value in columns.items() if value is not None}
    log.log(logging.WARNING if kind in FAILURES else logging.INFO, "audit event recorded", **more)


def network_of(address: str) -> str:
    """The address by which failures are counted: of IPv4 itself, of IPv6 its /64, which one customer has whole."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:49]
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


@dataclass(frozen=True)
class Throttle:
    """How many failures of one network, or with one key, are answered within a time; further ones have to wait."""

    max_failures: int
    within: timedelta = timedelta(minutes=1)

    def wait(self, session: Session, network: str, key_id: UUID | None) -> timedelta | None:
        """Find how long an attempt has to wait.

        Args:
            session: the caller's transaction.
            network: as `network_of` returns it.
            key_id: of the key that is shown and not valid any more; None: unknown.

        Returns:
            The time; None: no wait.
        """
        marks = [AuditEventRow.network == network]
        if key_id is not None:
            marks.append(AuditEventRow.key_id == key_id)
        waits = []
        for mark in marks:
            recent = (
                select(AuditEventRow.at)
                .where(mark, AuditEventRow.kind.in_(FAILURES), AuditEventRow.at > func.now() - self.within)
                .order_by(AuditEventRow.at.desc())
                .limit(self.max_failures)
            ).subquery()
            count, left = session.execute(
                select(func.count(), func.min(recent.c.at) + self.within - func.clock_timestamp())
            ).one()
            if count >= self.max_failures:
                waits.append(max(left, timedelta(seconds=1)))
        return max(waits, default=None)


def record_failure(
    session: Session, kind: EventKind, throttle: Throttle, key: Key | None, address: str, why: KeyRefusal
) -> None:
    """Record that a key was refused, and whether this was one failure too many.

    Args:
        session: the caller's transaction.
        kind: a login or a request.
        throttle: how many failures are allowed.
        key: the key that has ended; None if it is not known.
        address: where the request came from.
        why: the key was refused.
    """
    _write_event(session, kind, key, key.site_id if key else None, address=address, detail={"reason": why})
    session.flush()
    if throttle.wait(session, network_of(address), key.id if key else None) is not None:
        _write_event(session, EventKind.THROTTLED, key, key.site_id if key else None, address=address, detail={})


@dataclass(frozen=True)
class Event:
    """An audit event, as it is shown."""

    id: int
    at: datetime
    kind: EventKind
    site: str | None
    actor: str | None  # the key's name, or a System; None: unknown
    key_id: UUID | None
    address: str
    subject_kind: Subject | None
    subject_id: str | None
    study_id: UUID | None
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    detail: Mapping[str, str | int]


@dataclass(frozen=True)
class AuditQuery:
    """Which events: of these kinds, by this actor, about this subject. An empty value or None means any."""

    site_id: UUID | None = None  # None: of all sites, and of none
    kinds: Collection[EventKind] = ()
    actor: str = ""
    subject: str = ""  # its id or name; of an id the first digits do, and a study has its images' events, too
    before: int | None = None  # number of an event: only those before it


MIN_ID_DIGITS = 4  # digits that may be given for an id
_actor_name: ColumnElement[str] = func.coalesce(AuditEventRow.actor, KeyRow.name)  # names of keys do not change


def events(session: Session, query: AuditQuery, limit: int) -> list[Event]:
    """Read the latest events.

    Args:
        session: the caller's transaction.
        query: which ones.
        limit: how many.

    Returns:
        The events, the latest first.
    """
    chosen = _with_names().order_by(AuditEventRow.id.desc()).limit(limit)
    if query.site_id is not None:
        chosen = chosen.where(AuditEventRow.site_id == query.site_id)
    if query.kinds:
        chosen = chosen.where(AuditEventRow.kind.in_(query.kinds))
    if query.actor:
        chosen = chosen.where(_actor_name == query.actor)
    if query.subject:
        chosen = chosen.where(_is_about(query.subject))
    if query.before is not None:
        chosen = chosen.where(AuditEventRow.id < query.before)
    return [_event(*found) for found in session.execute(chosen)]


def latest(
    session: Session, site_id: UUID | None, subjects: Collection[Subject], kinds: Collection[EventKind]
) -> dict[tuple[EventKind, str], Event]:
    """Read the last event of each kind about each subject.

    Args:
        session: the caller's transaction.
        site_id: only events of this site; None: of all.
        subjects: kinds of subjects.
        kinds: kinds of events.

    Returns:
        The events by their kind and their subject's id.
    """
    last = select(func.max(AuditEventRow.id)).where(
        AuditEventRow.subject_kind.in_(subjects), AuditEventRow.kind.in_(kinds)
    )
    if site_id is not None:
        last = last.where(AuditEventRow.site_id == site_id)
    last = last.group_by(AuditEventRow.subject_kind, AuditEventRow.subject_id, AuditEventRow.kind)
    found = [_event(*row) for row in session.execute(_with_names().where(AuditEventRow.id.in_(last)))]
    return {(one.kind, str(one.subject_id)): one for one in found}


def _with_names() -> Select[AuditEventRow, str, str]:
    return (
        select(AuditEventRow, SiteRow.name, _actor_name)
        .outerjoin(SiteRow, SiteRow.id == AuditEventRow.site_id)
        .outerjoin(KeyRow, KeyRow.id == AuditEventRow.key_id)
    )


def _is_about(subject: str) -> ColumnElement[bool]:
    exact = AuditEventRow.subject_id == subject
    if len(subject) < MIN_ID_DIGITS or not set(subject) <= set("0123456789abcdef-"):
        return exact
    begins = cast(AuditEventRow.study_id, String).startswith(subject, autoescape=True)
    return exact | AuditEventRow.subject_id.startswith(subject, autoescape=True) | begins


def _event(row: AuditEventRow, site: str | None, actor: str | None) -> Event:
    return Event(
        id=row.id, at=row.at, kind=EventKind(row.kind), site=site, actor=actor, key_id=row.key_id, address=row.address,
        subject_kind=Subject(row.subject_kind) if row.subject_kind else None, subject_id=row.subject_id,
        study_id=row.study_id, before=row.before, after=row.after, detail=row.detail,
    )  # fmt: skip
