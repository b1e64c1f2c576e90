"""Who may send by DICOM, what they sent, and who was refused."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Date, and_, cast, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, joinedload
from sqlalchemy.sql import text

from shared.db.clock import db_now
from shared.db.tables import CallerRow, KeyRow, PeerDayRow, PeerRow, SiteRow
from shared.domain.peers import (
    DAYS_LOOKED_AT,
    FINGERPRINT_LENGTH,
    Caller,
    CallerReason,
    PeerRule,
    are_disjoint,
    check_ae_title,
    matches,
    mismatch,
    plain_address,
    printable_title,
    silent_since,
    specificity,
)
from shared.domain.security import EventKind, Role, Subject, System
from shared.errors import BadRequest, InvalidState, NotFound
from shared.queries.access import IS_VALID, Key, key_of_row, make_key, unused_key_name
from shared.queries.audit import State, Target, difference, network_of, record

# refused callers that are kept: a flood of made-up titles drives out itself, since each of them comes once
MAX_CALLERS = 200
MAX_CALLERS_OF_NETWORK = 12
CALLERS_KEPT = timedelta(days=30)
FIGURES_SPAN = timedelta(days=30)
REASONS_BY_NEARNESS = (  # how near a refused caller came to a peer, the nearest last
    CallerReason.CALLING_AE, CallerReason.CALLED_AE, CallerReason.CERTIFICATE, CallerReason.ADDRESS,
    CallerReason.DISABLED,
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A peer that an association was accepted from. `key` is the sender of its files, as of an upload."""

    id: UUID
    site_id: UUID
    name: str
    rule: PeerRule
    key: Key


@dataclass(frozen=True)
class Traffic:
    """What a peer sent within some time."""

    associations: int = 0
    images: int = 0
    size_bytes: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class PeerFigures:
    """A peer with what it sent: today (UTC), within 30 days, since it is known; and whether it is silent."""

    row: PeerRow
    today: Traffic
    month: Traffic
    whole: Traffic
    last_contact_at: datetime | None
    last_images_at: datetime | None
    silent_since: datetime | None  # None: it is not, or it is disabled


# -- the listener


def find_peer(session: Session, caller: Caller) -> Peer | None:
    """Find the peer that a caller is.

    Args:
        session: the caller's transaction.
        caller: as the association request and its connection show it.

    Returns:
        The peer; of several that fit, the one that is described most exactly. None if there is none, or it is disabled:
        call `note_refused` then.
    """
    called = (PeerRow.calling_ae == caller.calling_ae.strip(" "), PeerRow.called_ae == caller.called_ae.strip(" "))
    rows = session.execute(
        select(PeerRow, PeerRow.disabled_at.is_(None) & IS_VALID)
        .join(PeerRow.key).options(joinedload(PeerRow.key)).where(*called)
    )  # fmt: skip
    found = [(rule, row, enabled) for row, enabled in rows if matches(rule := rule_of(row), caller)]
    if not found:
        return None
    meant, row, enabled = max(found, key=lambda one: specificity(one[0]))
    if not enabled:
        return None
    key = key_of_row(row.key)
    return Peer(
        row.id, row.site_id, row.key.name, meant,
        Key(key.id, key.site_id, key.name, key.role, key.issuer, address=plain_address(caller.address)),
    )  # fmt: skip


def note_refused(session: Session, caller: Caller) -> CallerReason:
    """Record a caller that `find_peer` did not find, so that an administrator can admit it.

    The table stays small whatever is sent: at most 12 callers of one address (of IPv6, one /64), 200 in all, none older
    than 30 days. Who came once only goes first.

    Args:
        session: the caller's transaction.
        caller: as the association request and its connection show it.

    Returns:
        Why it is refused.
    """
    reason = _reason(session, caller)
    address = plain_address(caller.address)
    shown = caller.fingerprint.lower()
    values = {
        "calling_ae": printable_title(caller.calling_ae), "called_ae": printable_title(caller.called_ae),
        "address": address,
    }  # fmt: skip
    now = {
        "reason": reason, "last_at": func.clock_timestamp(),
        "tls_fingerprint": shown if len(shown) == FINGERPRINT_LENGTH else "",
    }  # fmt: skip
    again = update(CallerRow).filter_by(**values).values(times=CallerRow.times + 1, **now)
    if session.scalar(again.returning(CallerRow.id)) is not None:
        return reason
    lock(session, "dicom_callers")
    network = network_of(address)
    _delete_oldest_callers(session, network)
    new = insert(CallerRow).values(id=uuid4(), network=network, **values, **now)
    session.execute(
        new.on_conflict_do_update(
            index_elements=["calling_ae", "called_ae", "address"], set_={"times": CallerRow.times + 1, **now}
        )
    )
    return reason


def note_contact(session: Session, peer_id: UUID) -> None:
    """Record that a peer opened an association, C-ECHO included.

    Args:
        session: the caller's transaction; other notes of the peer wait until it ends, so let it end soon.
        peer_id: of the peer.
    """
    _count(session, peer_id, {"associations": 1})


def note_images(session: Session, peer_id: UUID, images: int, size_bytes: int, rejected: int) -> None:
    """Record what a peer sent.

    Args:
        session: the transaction that stores it; other notes of the peer wait until it ends, so call this last.
        peer_id: of the peer.
        images: data sets that were accepted, those that were known already included.
        size_bytes: of these.
        rejected: data sets that were answered with a failure.
    """
    if images or rejected:
        _count(session, peer_id, {"images": images, "size_bytes": size_bytes, "rejected": rejected})


def _reason(session: Session, caller: Caller) -> CallerReason:
    try:
        calling = check_ae_title(caller.calling_ae)
        check_ae_title(caller.called_ae)
    except BadRequest:
        return CallerReason.BAD_TITLE
    reasons = [CallerReason.CALLING_AE]
    rows = session.scalars(select(PeerRow).where(PeerRow.calling_ae == calling))
    reasons += [mismatch(rule_of(row), caller) or CallerReason.DISABLED for row in rows]
    return max(reasons, key=REASONS_BY_NEARNESS.index)


def _delete_oldest_callers(session: Session, network: str) -> None:
    session.execute(delete(CallerRow).where(CallerRow.last_at < func.now() - CALLERS_KEPT))
    order = CallerRow.times.desc(), CallerRow.last_at.desc()
    for chosen, max_callers in (
        (CallerRow.network == network, MAX_CALLERS_OF_NETWORK),
        (CallerRow.id.is_not(None), MAX_CALLERS),
    ):
        beyond = select(CallerRow.id).where(chosen).order_by(*order).offset(max_callers - 1)
        session.execute(delete(CallerRow).where(CallerRow.id.in_(beyond)))


def _count(session: Session, peer_id: UUID, more: dict[str, int]) -> None:
    now = func.clock_timestamp()
    times: dict[str, Any] = {"last_contact_at": now} | ({"last_images_at": now} if more.get("images") else {})
    new = insert(PeerDayRow).values(peer_id=peer_id, day=_day(now), **more, **times)
    sums = {name: getattr(PeerDayRow, name) + getattr(new.excluded, name) for name in more}
    session.execute(new.on_conflict_do_update(index_elements=["peer_id", "day"], set_={**sums, **times}))


def _day(at: ColumnElement[datetime]) -> ColumnElement[date]:
    return cast(func.timezone("UTC", at), Date)


def lock(session: Session, name: str) -> None:
    """Wait until no other transaction holds the lock of this name; hold it until this one ends.

    Args:
        session: the caller's transaction.
        name: of the lock.
    """
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    session.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


# -- administrators


def rule_of(row: PeerRow) -> PeerRule:
    """The rule that a row holds."""
    return PeerRule(**{field.name: getattr(row, field.name) for field in fields(PeerRule)})


def peer_of_site(session: Session, site_id: UUID | None, peer_id: UUID) -> PeerRow:
    """Read a peer's row.

    Args:
        session: the caller's transaction.
        site_id: the site that the peer must belong to; None: any.
        peer_id: of the peer.

    Returns:
        The row.

    Raises:
        NotFound: there is no such peer.
    """
    row = session.get(PeerRow, peer_id)
    if row is None or site_id not in (None, row.site_id):
        raise NotFound(f"there is no DICOM peer {peer_id} here; the list of peers has the ids")
    return row


def figures(session: Session, site_id: UUID | None, peer_id: UUID | None = None) -> list[PeerFigures]:
    """Read peers with what they sent.

    Args:
        session: the caller's transaction.
        site_id: of these peers; None: of all sites.
        peer_id: of the only peer; None: all.

    Returns:
        The peers, the enabled ones first, then by site and name.
    """
    order = PeerRow.disabled_at.is_not(None), SiteRow.name, KeyRow.name
    chosen = (
        select(PeerRow).join(PeerRow.site).join(PeerRow.key).order_by(*order)
        .options(joinedload(PeerRow.site), joinedload(PeerRow.key))
    )  # fmt: skip
    if site_id is not None:
        chosen = chosen.where(PeerRow.site_id == site_id)
    if peer_id is not None:
        chosen = chosen.where(PeerRow.id == peer_id)
    rows = session.scalars(chosen).all()
    now = db_now(session)
    today = now.astimezone(UTC).date()
    names = [field.name for field in fields(Traffic)]
    within = {"today": PeerDayRow.day == today, "month": PeerDayRow.day > today - FIGURES_SPAN, "whole": None}
    sums = [
        func.coalesce(
            func.sum(column) if when is None else func.sum(column).filter(when), 0
        ).label(f"{span}_{name}")
        for span, when in within.items() for name in names for column in (getattr(PeerDayRow, name),)
    ]  # fmt: skip
    last = func.max(PeerDayRow.last_contact_at).label("contact"), func.max(PeerDayRow.last_images_at).label("images")
    sent = {
        one.peer_id: one
        for one in session.execute(select(PeerDayRow.peer_id, *last, *sums).group_by(PeerDayRow.peer_id))
    }
    days = _days(session)
    found = []
    for row in rows:
        one = sent.get(row.id)
        spans = {
            span: Traffic(**{name: int(getattr(one, f"{span}_{name}")) for name in names}) if one else Traffic()
            for span in within
        }
        images_at = one.images if one else None
        silent = None
        if row.disabled_at is None and row.may_send:
            silent = silent_since(row.silent_after_h, days[row.id], images_at, row.added_at, now)
        contact_at = one.contact if one else None
        found.append(
            PeerFigures(row, **spans, last_contact_at=contact_at, last_images_at=images_at, silent_since=silent)
        )  # fmt: skip
    return found


def _days(session: Session) -> dict[UUID, list[date]]:
    """The days with images within the week that ends with each peer's last one."""
    latest = func.max(PeerDayRow.day).over(partition_by=PeerDayRow.peer_id).label("latest")
    with_images = select(PeerDayRow.peer_id, PeerDayRow.day, latest).where(PeerDayRow.images > 0).subquery()
    days = defaultdict(list)
    lately = with_images.c.day > with_images.c.latest - DAYS_LOOKED_AT
    for peer_id, day in session.execute(select(with_images.c.peer_id, with_images.c.day).where(lately)):
        days[peer_id].append(day)
    return days


def callers(session: Session, site_id: UUID | None) -> Sequence[CallerRow]:
    """Read refused callers.

    Args:
        session: the caller's transaction.
        site_id: only those that this site's administrators may admit; None: all.

    Returns:
        The rows, the latest first.
    """
    lately = CallerRow.last_at > func.now() - CALLERS_KEPT
    rows = session.scalars(select(CallerRow).where(lately).order_by(CallerRow.last_at.desc(), CallerRow.id)).all()
    return rows if site_id is None else [row for row in rows if may_decide(session, site_id, row.called_ae)]


def caller(session: Session, site_id: UUID | None, caller_id: UUID) -> CallerRow:
    """Read a refused caller.

    Args:
        session: the caller's transaction.
        site_id: the site whose administrators must be allowed to admit it; None: any.
        caller_id: of the row.

    Returns:
        The row.

    Raises:
        NotFound: there is none, any more.
    """
    row = session.get(CallerRow, caller_id)
    if row is None or (site_id is not None and not may_decide(session, site_id, row.called_ae)):
        raise NotFound("there is no such refused caller, any more: let the device call again, and look at the list")
    return row


def may_decide(session: Session, site_id: UUID, called_ae: str) -> bool:
    """Whether a site's administrators decide who sends under a called AE title.

    They do where there is no other site, and where the site's peers, and no other's, are called by it. Else one site
    could have another's images sent to itself, and only operators decide.

    Args:
        session: the caller's transaction.
        site_id: the site.
        called_ae: the title by which a device calls Osteon.

    Returns:
        Whether they do.
    """
    sites = set(session.scalars(select(PeerRow.site_id).where(PeerRow.called_ae == called_ae).distinct()))
    if sites:
        return sites == {site_id}
    return session.scalar(select(func.count()).select_from(SiteRow).where(~SiteRow.checks)) == 1


def admit(
    session: Session, actor: Key | System, site_id: UUID, rule: PeerRule, *, name: str = "", issuer: str = ""
) -> PeerRow:
    """Make a peer. Refused callers that it lets in are forgotten.

    Args:
        session: the caller's transaction.
        actor: who does it.
        site_id: whose images it sends.
        rule: how it is known and what it may do.
        name: of the peer, and of the sender in audits and quotas; empty: its calling AE title, with a number if need
            be.
        issuer: of patient IDs that come without one.

    Returns:
        The row.

    Raises:
        BadRequest: the rule is not valid.
        InvalidState: a key or peer has the name; another peer has the rule; or another site's peer could be meant.
    """
    rule = rule.validate()
    lock(session, "dicom_peers")
    _refuse_overlap(session, site_id, rule)
    # the secret is nobody's: what a peer sends comes by associations alone
    key, _ = make_key(
        session, site_id, name or unused_key_name(session, site_id, rule.calling_ae), Role.SUBMITTER, issuer
    )
    row = PeerRow(site_id=site_id, key_id=key.id, **asdict(rule))
    session.add(row)
    session.flush()
    _delete_callers(session, rule)
    record(
        session, EventKind.PEER_ADMITTED, actor, about=Target(Subject.PEER, row.id), site_id=site_id, after=_state(row),
        name=key.name,
    )  # fmt: skip
    return row


def change(session: Session, actor: Key | System, row: PeerRow, rule: PeerRule, issuer: str) -> None:
    """Change how a peer is known, and what it may do. Associations that are open stay so.

    Args:
        session: the caller's transaction.
        actor: who does it.
        row: of the peer.
        rule: the new one.
        issuer: of patient IDs that come without one.

    Raises:
        BadRequest: the rule is not valid.
        InvalidState: another peer has the rule, or another site's peer could be meant.
    """
    rule = rule.validate()
    lock(session, "dicom_peers")
    session.refresh(row, with_for_update={"of": PeerRow})
    _refuse_overlap(session, row.site_id, rule, row.id)
    before = _state(row)
    for name, value in asdict(rule).items():
        setattr(row, name, value)
    row.key.issuer = issuer
    old, new = difference(before, _state(row))
    if new:
        _delete_callers(session, rule)
        record(
            session, EventKind.PEER_CHANGED, actor, about=Target(Subject.PEER, row.id), site_id=row.site_id, before=old,
            after=new, name=row.key.name,
        )  # fmt: skip


def enable(session: Session, actor: Key | System, row: PeerRow, *, enabled: bool) -> None:
    """Disable a peer, whose next association is refused then, or enable it again.

    Args:
        session: the caller's transaction.
        actor: who does it.
        row: of the peer.
        enabled: whether it may call from now on.
    """
    session.refresh(row, with_for_update={"of": PeerRow})
    before = _state(row)
    if enabled == (row.disabled_at is None):
        return
    row.disabled_at = None if enabled else db_now(session)
    if enabled:
        _delete_callers(session, rule_of(row))
    old, new = difference(before, _state(row))
    kind = EventKind.PEER_ENABLED if enabled else EventKind.PEER_DISABLED
    record(
        session, kind, actor, about=Target(Subject.PEER, row.id), site_id=row.site_id, before=old, after=new,
        name=row.key.name,
    )  # fmt: skip


def _refuse_overlap(session: Session, site_id: UUID, rule: PeerRule, but: UUID | None = None) -> None:
    """Refuse a rule that another peer has, or by which another site's peer could be meant: whose images are they?"""
    same = and_(PeerRow.calling_ae == rule.calling_ae, PeerRow.called_ae == rule.called_ae)
    for row in session.scalars(select(PeerRow).where(same, PeerRow.id != but if but else same)):
        if row.site_id != site_id and not are_disjoint(rule_of(row), rule):
            raise InvalidState(
                "A peer of another site has these AE titles, and could call from the same address. Let the device call "
                "your site by another AE title, or tell both apart by addresses or certificates",
                "not-apart",
            )
        if (row.address, row.tls_fingerprint) == (rule.address, rule.tls_fingerprint):
            state = "change it" if row.disabled_at is None else "it is disabled: enable it"
            raise InvalidState(
                f"The peer {row.key.name} has these AE titles, address and certificate already; {state}", "peer-known"
            )


def _delete_callers(session: Session, rule: PeerRule) -> None:
    """Forget refused callers that a rule admits."""
    titles = (CallerRow.calling_ae == rule.calling_ae, CallerRow.called_ae == rule.called_ae)
    for row in session.scalars(select(CallerRow).where(*titles)):
        if matches(rule, Caller(row.calling_ae, row.called_ae, row.address, row.tls_fingerprint)):
            session.delete(row)


def _state(row: PeerRow) -> State:
    """What audits compare."""
    query = f"{row.query_ae} at {row.query_host} port {row.query_port}" if row.query_host else None
    return {
        "state": "disabled" if row.disabled_at else "enabled", "calling_ae": row.calling_ae,
        "called_ae": row.called_ae, "address": row.address or None, "certificate": row.tls_fingerprint or None,
        "may_send": row.may_send, "may_commit": row.may_commit, "counted_at": query,
        "silent_after_h": row.silent_after_h, "issuer": row.key.issuer or None,
    }  # fmt: skip
