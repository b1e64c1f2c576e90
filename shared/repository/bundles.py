"""Which model bundles there are, and which one is active."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import NotFound
from shared.tables import BundleRow


def active_bundle(session: Session) -> BundleRow | None:
    """The bundle that workers analyse with; None before the first activation."""
    return session.scalar(select(BundleRow).where(BundleRow.active))


def any_active_before(session: Session, at: datetime) -> bool:
    """Whether a bundle was last activated before then."""
    return bool(session.scalar(select(exists().where(BundleRow.activated_at < at))))


def add_bundle(session: Session, name: str, sha256: str, manifest: dict[str, Any]) -> None:
    """Record a bundle whose object is stored. Raises ValueError if the name stands for other bytes already."""
    row = {"name": name, "sha256": sha256, "manifest": manifest, "active": False}
    session.execute(insert(BundleRow).values(row).on_conflict_do_nothing())
    if session.scalar(select(BundleRow.sha256).where(BundleRow.name == name)) != sha256:
        raise ValueError(f"bundle {name} is stored with other bytes; give the new one another name")


def activate_bundle(session: Session, name: str) -> None:
    """Make this the active bundle; workers notice between batches. What it found as a shadow counts from now on.

    Raises NotFound.
    """
    # the active one first, then the new one, each locked: two that activate at once wait for each other in one order
    session.execute(select(BundleRow.name).order_by(BundleRow.name).with_for_update(key_share=True))
    bundle(session, name)
    session.execute(update(BundleRow).where(BundleRow.active, BundleRow.name != name).values(active=False))
    values = {"active": True, "shadow": False, "activated_at": func.clock_timestamp()}
    session.execute(update(BundleRow).where(BundleRow.name == name, ~BundleRow.active).values(values))


def bundle(session: Session, name: str) -> BundleRow:
    """The bundle of this name. Raises NotFound."""
    row = session.get(BundleRow, name)
    if row is None:
        raise NotFound(f"there is no bundle {name}")
    return row


def bundle_to_change(session: Session, name: str) -> BundleRow:
    """The bundle of this name, locked. Raises NotFound."""
    row = session.get(BundleRow, name, with_for_update={"key_share": True})
    if row is None:
        raise NotFound(f"there is no bundle {name}")
    return row


def bundles(session: Session) -> Sequence[BundleRow]:
    """All bundles, the newest first."""
    return session.scalars(select(BundleRow).order_by(BundleRow.added_at.desc(), BundleRow.name)).all()


def manifests(session: Session, names: set[str]) -> dict[str, dict[str, Any]]:
    """What these bundles say of themselves."""
    rows = session.scalars(select(BundleRow).where(BundleRow.name.in_(names)))
    return {row.name: row.manifest for row in rows}


def thresholds(session: Session, names: set[str]) -> dict[str, tuple[float, float]]:
    """The (sensitive, specific) operating points of these bundles, as probabilities."""
    rows = session.scalars(select(BundleRow).where(BundleRow.name.in_(names)))
    return {row.name: (row.manifest["sensitive"], row.manifest["specific"]) for row in rows}
