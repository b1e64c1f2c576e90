"""Notifies the API processes of changed worklists: Postgres' NOTIFY, sent with the commit, or not at all."""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import ARRAY, String, bindparam, func, select
from sqlalchemy.orm import Session

CHANNEL = "worklist"  # the payload is the site's id, and REVISED behind it where findings were revised or seen
REVISED = "revised"
TELL = select(func.pg_notify(CHANNEL, func.unnest(bindparam("payloads", type_=ARRAY(String)))))


def worklist_changed(session: Session, site_ids: Iterable[UUID]) -> None:
    """Notify pages that show these sites' worklists, once the transaction commits.

    Args:
        session: in the transaction that changes them.
        site_ids: the sites.
    """
    _tell(session, [str(site_id) for site_id in set(site_ids)])


def findings_revised(session: Session, site_ids: Iterable[UUID]) -> None:
    """Notify as `worklist_changed`, and that the number of revised findings to see has changed.

    Args:
        session: in the transaction that changes them.
        site_ids: the sites.
    """
    _tell(session, [f"{site_id} {REVISED}" for site_id in set(site_ids)])


def _tell(session: Session, payloads: list[str]) -> None:
    if payloads:
        session.execute(TELL, {"payloads": payloads})
