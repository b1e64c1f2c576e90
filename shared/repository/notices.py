"""Word to the API processes that a worklist changed: Postgres' NOTIFY, which leaves with the commit, or not at all."""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import String, column, func, select, values
from sqlalchemy.orm import Session

CHANNEL = "worklist"  # the payload is the site's id


def worklist_changed(session: Session, site_ids: Iterable[UUID]) -> None:
    """Tell those who look at these sites' worklists, once the transaction commits."""
    if told := [(str(site_id),) for site_id in set(site_ids)]:
        sites = values(column("site", String), name="changed").data(told)
        session.execute(select(func.pg_notify(CHANNEL, sites.c.site)))
