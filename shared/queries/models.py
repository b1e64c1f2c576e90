"""Which model bundles there are, and which one is active."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db.tables import BundleRow
from shared.errors import NotFound


@dataclass(frozen=True)
class BundleState:
    """Which bundle is active (None: none is), and the state of the one in question."""

    active: str | None
    state: str


def state_of(row: BundleRow) -> Literal["active", "shadow", "available"]:
    """What a bundle does now."""
    return "active" if row.active else "shadow" if row.shadow else "available"


def active_bundle(session: Session) -> BundleRow | None:
    """The bundle that workers analyse with; None before the first activation."""
    return session.scalar(select(BundleRow).where(BundleRow.active))


def any_active_before(session: Session, at: datetime) -> bool:
    """Check whether a bundle was activated a while ago.

    Args:
        session: the caller's transaction.
        at: the time, with a time zone.

    Returns:
        Whether any bundle was last activated before it.
    """
    return bool(session.scalar(select(exists().where(BundleRow.activated_at < at))))


def digest_of_bundle(session: Session, name: str) -> str | None:
    """Find the bytes of a bundle.

    Args:
        session: the caller's transaction.
        name: of the bundle.

    Returns:
        Its sha256, hexadecimal; None if there is no such bundle.
    """
    return session.scalar(select(BundleRow.sha256).where(BundleRow.name == name))


def add_bundle(session: Session, name: str, sha256: str, manifest: dict[str, Any]) -> bool:
    """Record a bundle whose object is stored.

    Args:
        session: the caller's transaction.
        name: of the bundle.
        sha256: of its bytes, hexadecimal.
        manifest: as JSON.

    Returns:
        Whether it is new.

    Raises:
        ValueError: a bundle of this name has other bytes.
    """
    row = {"name": name, "sha256": sha256, "manifest": manifest, "active": False}
    new = insert(BundleRow).values(row).on_conflict_do_nothing()
    made = session.scalar(new.returning(BundleRow.name))
    if session.scalar(select(BundleRow.sha256).where(BundleRow.name == name)) != sha256:
        raise ValueError(f"bundle {name} is stored with other bytes; give the new one another name")
    return made is not None


def activate_bundle(session: Session, name: str) -> BundleState | None:
    """Make this the active bundle; workers notice between batches. What it found as a shadow counts from now on.

    Args:
        session: the caller's transaction.
        name: of the bundle.

    Returns:
        The state before; None if it was active already, so that nothing changed.

    Raises:
        NotFound: there is no such bundle.
    """
    # all are locked in one order: two that activate at once wait for each other
    every = select(BundleRow).order_by(BundleRow.name).with_for_update(key_share=True)
    rows = {row.name: row for row in session.scalars(every.execution_options(populate_existing=True))}
    row = rows.get(name) or get_bundle(session, name)
    if row.active:
        return None
    active = next((each for each in rows.values() if each.active), None)
    before = BundleState(active.name if active else None, state_of(row))
    session.execute(update(BundleRow).where(BundleRow.active, BundleRow.name != name).values(active=False))
    values = {"active": True, "shadow": False, "activated_at": func.clock_timestamp()}
    session.execute(update(BundleRow).where(BundleRow.name == name).values(values))
    return before


def get_bundle(session: Session, name: str) -> BundleRow:
    """Read a bundle's row.

    Args:
        session: the caller's transaction.
        name: of the bundle.

    Returns:
        The row.

    Raises:
        NotFound: there is no such bundle.
    """
    row = session.get(BundleRow, name)
    if row is None:
        raise NotFound("no bundle has this name; `osteon bundles` lists them")
    return row


def lock_bundle(session: Session, name: str) -> BundleRow:
    """Read a bundle's row, and lock it.

    Args:
        session: the caller's transaction.
        name: of the bundle.

    Returns:
        The row.

    Raises:
        NotFound: there is no such bundle.
    """
    row = session.get(BundleRow, name, with_for_update={"key_share": True})
    if row is None:
        raise NotFound("no bundle has this name; `osteon bundles` lists them")
    return row


def list_bundles(session: Session) -> Sequence[BundleRow]:
    """All bundles, the newest first."""
    return session.scalars(select(BundleRow).order_by(BundleRow.added_at.desc(), BundleRow.name)).all()


def manifests(session: Session, names: set[str]) -> dict[str, dict[str, Any]]:
    """Read manifests of bundles.

    Args:
        session: the caller's transaction.
        names: of the bundles.

    Returns:
        The manifests as JSON, by name, of those that exist.
    """
    rows = session.scalars(select(BundleRow).where(BundleRow.name.in_(names)))
    return {row.name: row.manifest for row in rows}


def thresholds(session: Session, names: set[str]) -> dict[str, tuple[float, float]]:
    """Read operating points of bundles.

    Args:
        session: the caller's transaction.
        names: of the bundles.

    Returns:
        The sensitive and the specific probability, by name, of those bundles that exist.
    """
    rows = session.scalars(select(BundleRow).where(BundleRow.name.in_(names)))
    return {row.name: (row.manifest["sensitive"], row.manifest["specific"]) for row in rows}
