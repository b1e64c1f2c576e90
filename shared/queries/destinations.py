"""Where results go: destinations and their rules, as administrators keep them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload, selectinload

from shared.db.clock import db_now
from shared.db.tables import DestinationRow, DestinationRuleRow, SiteRow
from shared.db.tables.access import is_counted
from shared.domain.destinations import BY_HL7, Destination, DestinationKind, Rule
from shared.domain.notices import SECRETS_OVERLAP
from shared.domain.security import EventKind, Subject
from shared.errors import InvalidState, NotFound
from shared.queries import deliveries
from shared.queries.access import Key
from shared.queries.audit import Target, difference, record
from shared.queries.deliveries import OutboxFigures, destination_of
from shared.queries.results import rule_of

MAX_DESTINATIONS = 50  # destinations of a site
MAX_RULES = 20  # of a destination


@dataclass(frozen=True)
class DestinationFigures:
    """A destination with what stands there."""

    row: DestinationRow
    outbox: OutboxFigures


def list_destinations(
    session: Session, site_id: UUID | None, destination_id: UUID | None = None
) -> list[DestinationFigures]:
    """Read destinations with what waits for them.

    Args:
        session: the caller's transaction.
        site_id: of these; None: of all sites.
        destination_id: of the only one; None: all.

    Returns:
        The destinations, the enabled ones first, then by site and name.
    """
    query = (
        select(DestinationRow)
        .join(DestinationRow.site)
        .options(joinedload(DestinationRow.site), selectinload(DestinationRow.rules))
        .order_by(DestinationRow.disabled_at.is_not(None), SiteRow.name, DestinationRow.name)
        .execution_options(populate_existing=True)
    )
    query = query.where(is_counted(DestinationRow.site_id) if site_id is None else DestinationRow.site_id == site_id)
    if destination_id is not None:
        query = query.where(DestinationRow.id == destination_id)
    rows = session.scalars(query).all()
    figures = deliveries.figures(session, [row.id for row in rows])
    return [DestinationFigures(row, figures[row.id]) for row in rows]


def lock_destination(session: Session, site_id: UUID | None, destination_id: UUID) -> DestinationRow:
    """Read a destination's row, and lock it.

    Args:
        session: the caller's transaction.
        site_id: the site that it must belong to; None: any.
        destination_id: of the destination.

    Returns:
        The row.

    Raises:
        NotFound: there is no such destination.
    """
    row = session.scalar(select(DestinationRow).where(DestinationRow.id == destination_id).with_for_update())
    if row is None or site_id not in (None, row.site_id) or row.site.checks:
        raise NotFound(f"there is no destination {destination_id} here; the list of destinations has the ids")
    return row


def add(
    session: Session, key: Key, site_id: UUID, name: str, destination: Destination, rules: Sequence[Rule]
) -> DestinationRow:
    """Add a destination; results that become due from now on go there.

    Args:
        session: the caller's transaction.
        key: of whoever adds it.
        site_id: whose results go there.
        name: unique at the site.
        destination: checked.
        rules: checked; empty: nothing goes there by itself.

    Returns:
        The row.

    Raises:
        InvalidState: the name is taken, or the site has MAX_DESTINATIONS destinations.
        BadRequest: a rule does not fit the destination's kind.
    """
    for rule in rules:
        rule.check_kind(destination.kind)
    session.execute(select(SiteRow.id).where(SiteRow.id == site_id).with_for_update(key_share=True))
    names = session.scalars(select(DestinationRow.name).where(DestinationRow.site_id == site_id)).all()
    if name in names:
        raise InvalidState(f"The site has a destination named {name} already: choose another name", "name-taken")
    if len(names) >= MAX_DESTINATIONS:
        raise InvalidState(f"A site has at most {MAX_DESTINATIONS} destinations")
    row = DestinationRow(site_id=site_id, name=name, **asdict(destination))
    row.rules = _rows(rules)
    session.add(row)
    session.flush()
    record(
        session, EventKind.DESTINATION_ADDED, key, about=Target(Subject.DESTINATION, row.id), site_id=site_id,
        after=_state(row), name=name,
    )  # fmt: skip
    return row


def change(session: Session, key: Key, row: DestinationRow, destination: Destination) -> None:
    """Change where a destination is. What it took before is forgotten, and it is tried at once.

    Args:
        session: the caller's transaction.
        key: of whoever changes it.
        row: locked.
        destination: checked.

    Raises:
        InvalidState: it would be of another kind.
    """
    if destination.kind != row.kind:
        raise InvalidState("A destination keeps its kind: add another one, and disable this one")
    before = _state(row)
    for name, value in asdict(destination).items():
        setattr(row, name, value)
    row.capabilities, row.failures, row.reason, row.not_before = {}, 0, "", None
    if not destination.confirm:
        deliveries.stop_asking(session, row.id)
    _record_change(session, key, row, before)


def set_rules(session: Session, key: Key, row: DestinationRow, rules: Sequence[Rule]) -> None:
    """Replace the rules of a destination.

    Args:
        session: the caller's transaction.
        key: of whoever changes them.
        row: locked.
        rules: checked, MAX_RULES at most; empty: nothing goes there by itself.

    Raises:
        InvalidState: there are more.
        BadRequest: a rule does not fit the destination's kind.
    """
    for rule in rules:
        rule.check_kind(DestinationKind(row.kind))
    if len(rules) > MAX_RULES:
        raise InvalidState(f"A destination has at most {MAX_RULES} rules")
    before = _state(row)
    row.rules = []
    session.flush()
    row.rules = _rows(rules)
    session.flush()
    _record_change(session, key, row, before)


def replace_secret(session: Session, key: Key, row: DestinationRow, *, at_once: bool) -> int:
    """Let a webhook be signed with a new secret, and with the one before for SECRETS_OVERLAP.

    Args:
        session: the caller's transaction.
        key: of whoever replaces it.
        row: locked.
        at_once: whether the one before signs nothing any more.

    Returns:
        The new secret's number.

    Raises:
        InvalidState: it is no webhook.
    """
    if row.kind != DestinationKind.WEBHOOK:
        raise InvalidState("Only a webhook has a secret")
    before = row.secret_number
    row.secret_number += 1
    row.former_secret_until = None if at_once else db_now(session) + SECRETS_OVERLAP
    record(
        session, EventKind.DESTINATION_CHANGED, key, about=Target(Subject.DESTINATION, row.id), site_id=row.site_id,
        before={"secret": str(before)}, after={"secret": str(row.secret_number)}, name=row.name,
    )  # fmt: skip
    session.flush()
    return row.secret_number


def enable(session: Session, key: Key, row: DestinationRow, *, enabled: bool) -> None:
    """Disable a destination, or enable it again. What waits for one that is disabled stays, and goes on afterwards.

    Args:
        session: the caller's transaction.
        key: of whoever decides.
        row: locked.
        enabled: what it shall be.
    """
    if (row.disabled_at is None) == enabled:
        return
    row.disabled_at = None if enabled else db_now(session)
    kind = EventKind.DESTINATION_ENABLED if enabled else EventKind.DESTINATION_DISABLED
    states = {"state": "disabled" if enabled else "enabled"}, {"state": "enabled" if enabled else "disabled"}
    record(
        session, kind, key, about=Target(Subject.DESTINATION, row.id), site_id=row.site_id, before=states[0],
        after=states[1], name=row.name,
    )  # fmt: skip


def ask_test(session: Session, row: DestinationRow) -> None:
    """Have the process that sends try whether a destination answers.

    Args:
        session: the caller's transaction.
        row: locked.
    """
    row.test_asked_at = func.clock_timestamp()
    row.capabilities = {}
    session.flush()


def _rows(rules: Sequence[Rule]) -> list[DestinationRuleRow]:
    return [
        DestinationRuleRow(place=place, **{field.name: _plain(getattr(rule, field.name)) for field in fields(Rule)})
        for place, rule in enumerate(rules, 1)
    ]


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _record_change(session: Session, key: Key, row: DestinationRow, before: dict[str, Any]) -> None:
    was, now = difference(before, _state(row))
    if was or now:
        record(
            session, EventKind.DESTINATION_CHANGED, key, about=Target(Subject.DESTINATION, row.id),
            site_id=row.site_id, before=was, after=now, name=row.name,
        )  # fmt: skip


def _state(row: DestinationRow) -> dict[str, Any]:
    """The state of a destination, as events show it: addresses and codes."""
    values: dict[str, Any] = {"name": row.name}
    of_hl7 = set() if row.kind in BY_HL7 else {"sending_application", "character_set", "accession", "processing"}
    values |= {name: str(value) for name, value in asdict(destination_of(row)).items() if value and name not in of_hl7}
    for rule in map(rule_of, row.rules):
        what = " ".join((*rule.kinds, *rule.events))
        values[f"rule {1 + sum(name.startswith('rule') for name in values)}"] = f"{rule.when}: {what}"
    return values
