"""The bundles: which there are, one that looks at history unseen, how it compares, and its promotion."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from sqlalchemy.orm import Session

from api.dependencies import Admin, PartsDep
from api.retrospect import BundleView, ComparisonView, RunView, ShadowWanted
from shared.repository import bundles as repository
from shared.repository import nights, reports, work
from shared.tables import BundleRow

router = APIRouter(tags=["administer"])
Name = Annotated[str, Path(max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")]


@router.get("/bundles")
def bundles(parts: PartsDep, _key: Admin) -> list[BundleView]:
    """All bundles, the newest first, each with its state and with what its manifest says was measured."""
    with parts.database.transaction() as session:
        now = work.clock(session)
        return [_view(session, row, now) for row in repository.bundles(session)]


@router.post("/bundles/{name}/shadow")
def shadow(name: Name, parts: PartsDep, _key: Admin, wanted: ShadowWanted | None = None) -> BundleView:
    """Let a bundle look at history, newest day first, without touching what radiologists see.

    404 if there is none of that name, 409 if it is active or looks already.
    """
    wanted = wanted or ShadowWanted()
    with parts.database.transaction() as session:
        now = work.clock(session)
        nights.begin_shadow(session, name, now, wanted.since, wanted.limit)
        return _view(session, repository.bundle(session, name), now)


@router.post("/bundles/{name}/retire")
def retire(name: Name, parts: PartsDep, _key: Admin) -> BundleView:
    """End a bundle's time as a shadow; what it found stays, unseen. 404 if there is none, 409 if it is no shadow."""
    with parts.database.transaction() as session:
        now = work.clock(session)
        nights.retire(session, name, now)
        return _view(session, repository.bundle(session, name), now)


@router.post("/bundles/{name}/activate")
def activate(name: Name, parts: PartsDep, _key: Admin) -> BundleView:
    """Make a stored bundle the active one, for all sites: a promotion, if it was a shadow. 404 if there is none.

    What it found as a shadow counts from now on: the nights put it in place without decoding an image again.
    """
    with parts.database.transaction() as session:
        repository.activate_bundle(session, name)
    with parts.database.transaction() as session:
        return _view(session, repository.bundle(session, name), work.clock(session))


@router.get("/bundles/{old}/compare/{new}")
def compare(old: Name, new: Name, parts: PartsDep, key: Admin) -> ComparisonView:
    """Two bundles, paired on this site's studies that `old` spoke for when `new` looked. 404 for an unknown one."""
    with parts.database.transaction() as session:
        for name in (old, new):
            repository.bundle(session, name)
        compared = reports.compare(session, key.site_id, old, new)
    return ComparisonView.of(old, new, compared, reports.turned(compared.all.changes))


def _view(session: Session, row: BundleRow, now: datetime) -> BundleView:
    run = reports.shadow_run(session, row.name)
    return BundleView(
        name=row.name,
        state=state_of(row),
        added_at=row.added_at,
        activated_at=row.activated_at,
        sensitive=row.manifest.get("sensitive"),
        specific=row.manifest.get("specific"),
        regions=row.manifest.get("regions", []),
        metrics=row.manifest.get("metrics", {}),
        run=RunView.of(run, reports.forecast_of(session, run, now)) if run else None,
    )


def state_of(row: BundleRow) -> Literal["active", "shadow", "available"]:
    """What a bundle does now."""
    return "active" if row.active else "shadow" if row.shadow else "available"
