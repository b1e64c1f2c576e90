"""Which model bundles there are, and which one is active."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import NotFound
from shared.tables import BundleRow


def active_bundle(session: Session) -> BundleRow | None:
    """The bundle that workers analyse with; None before the first activation."""
    return session.scalar(select(BundleRow).where(BundleRow.active))


def all_bundles(session: Session, most: int = 50) -> Sequence[BundleRow]:
    """The active bundle first, then the latest."""
    return session.scalars(
        select(BundleRow).order_by(BundleRow.active.desc(), BundleRow.added_at.desc()).limit(most)
    ).all()


def add_bundle(session: Session, name: str, sha256: str, manifest: dict[str, Any]) -> None:
    """Record a bundle whose object is stored. Raises ValueError if the name stands for other bytes already."""
    row = {"name": name, "sha256": sha256, "manifest": manifest, "active": False}
    session.execute(insert(BundleRow).values(row).on_conflict_do_nothing())
    if session.scalar(select(BundleRow.sha256).where(BundleRow.name == name)) != sha256:
        raise ValueError(f"bundle {name} is stored with other bytes; give the new one another name")


def activate_bundle(session: Session, name: str) -> None:
    """Make this the active bundle; workers notice between batches. Raises NotFound."""
    if session.get(BundleRow, name, with_for_update=True) is None:
        raise NotFound(f"there is no bundle {name}")
    session.execute(update(BundleRow).where(BundleRow.active, BundleRow.name != name).values(active=False))
    session.execute(update(BundleRow).where(BundleRow.name == name).values(active=True))


def thresholds(session: Session, names: set[str]) -> dict[str, tuple[float, float]]:
    """The (sensitive, specific) operating points of these bundles, as probabilities."""
    rows = session.scalars(select(BundleRow).where(BundleRow.name.in_(names)))
    return {row.name: (row.manifest["sensitive"], row.manifest["specific"]) for row in rows}
