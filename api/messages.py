"""Sends the messages of studies once their rows are committed."""

from uuid import UUID

from api.backends import Backends
from shared.db.clock import db_now
from shared.errors import Unavailable
from shared.logs import get_logger
from shared.queries.analyses import mark_not_sent, mark_unsent_as_sent

log = get_logger(__name__)


def send_tasks(backends: Backends, study_ids: list[UUID]) -> None:
    """Send the messages of studies after the commit. A broker that is down fails no upload: the reconciler sends later.

    Args:
        backends: of this process.
        study_ids: the studies.
    """
    try:
        with backends.database.transaction() as session:
            to_send = mark_unsent_as_sent(session, study_ids, db_now(session))
        failed = backends.publisher.send(to_send)
        if failed:
            with backends.database.transaction() as session:
                mark_not_sent(session, failed)
    except Unavailable:
        log.warning("unsent messages not recorded", studies=len(study_ids))
