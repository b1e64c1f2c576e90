"""Word to the API processes that a worklist changed: Postgres' NOTIFY, which leaves with the commit, or not at all."""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import String, column, func, select, values
from sqlalchemy.orm import Session

CHANNEL = "worklist"  # the payload is the site's id, and REVISED behind it where findings were revised or seen
REVISED = "revised"


def worklist_changed(session: Session, site_ids: Iterable[UUID]) -> None:
    """Tell those who look at these sites' worklists, once the transaction commits."""
    _tell(session, [str(site_id) for site_id in set(site_ids)])


def findings_revised(session: Session, site_ids: Iterable[UUID]) -> None:
    """As `worklist_changed`, and tell that another number of revised findings waits to be seen."""
    _tell(session, [f"{site_id} {REVISED}" for site_id in set(site_ids)])


def _tell(session: Session, payloads: list[str]) -> None:
    if payloads:
        sites = values(column("site", String), name="changed").data([(one,) for one in payloads])
        session.execute(select(func.pg_notify(CHANNEL, sites.c.site)))
