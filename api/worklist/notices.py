"""GET /api/v1/notices: what people of a site are told of, for pages that stay open; their browsers may show it."""

from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api.dependencies import Radiologist, SessionDep
from api.requests import API, Moment, Router
from api.schemas import RowView
from shared.db.clock import db_now
from shared.domain.notices import ALARMS, BEGUN_BY, Event
from shared.domain.security import Role
from shared.queries import notices
from shared.queries.access import Key

router = Router(prefix=API, tags=["read"])
LISTED = 50
OVERLAP = timedelta(seconds=60)  # a notice may become visible so long after the time that it bears
OF_READING = (Event.OVERDUE, Event.REVISED_FINDING)
WORDS = {
    Event.OVERDUE: "A positive study waits beyond its target.",
    Event.REVISED_FINDING: "A newer model finds something in a study that was negative.",
    Event.QUEUE_LATE: "Studies wait too long for the model.",
    Event.QUEUE_ON_TIME: "No study waits too long for the model any more.",
    Event.DELIVERY_FAILED: "Deliveries of results fail.",
    Event.DELIVERY_WELL: "No delivery of results fails any more.",
}


class NoticeView(RowView):
    """What people are told of. It names no patient."""

    id: UUID = Field(description="of the notice")
    event: Event = Field(description="what happened")
    words: str = Field(description="the same as a sentence")
    happened_at: datetime = Field(description="when; of a study that waits: when it should have been read")
    study_id: UUID | None = Field(description="the study that it is about; null: it is about the site")
    count: int = Field(description="of a site: how many studies wait, or deliveries fail")
    about: str = Field(description="of deliveries: the name of their destination")
    path: str = Field(description="of the page to look at")


class Notices(BaseModel):
    """What people of a site are told of."""

    at: datetime = Field(description="ask again with `after` at this time; what comes twice has the same id")
    notices: list[NoticeView] = Field(description="the latest first, 50 at most")


@router.get("/notices")
def list_notices(
    key: Radiologist,
    session: SessionDep,
    after: Annotated[Moment | None, Query(description="only what was written after this time")] = None,
) -> Notices:
    """List what people of your site are told of by mail or webhook, where somebody wants that: codes, counts and ids.

    A radiologist gets what is about studies; an administrator late queues and failing deliveries as well.
    """
    return notices_of(session, key, after)


def notices_of(session: Session, key: Key, after: datetime | None = None) -> Notices:
    """Build the response of GET /api/v1/notices, which the page uses too.

    Args:
        session: the caller's transaction.
        key: of the request.
        after: only what was written after this time; None: the latest.

    Returns:
        The notices.
    """
    at = db_now(session) - OVERLAP
    found = notices.list_alarms(session, key.site_id, events_for(key), after, LISTED)
    return Notices(at=at, notices=[_view(one) for one in found])


def events_for(key: Key) -> list[Event]:
    """What the holder of a key is told of, in a browser."""
    return [*ALARMS, *BEGUN_BY] if key.may(Role.ADMIN) else [*OF_READING]


def _view(one: notices.Alarm) -> NoticeView:
    event = Event(one.row.event)
    return NoticeView.of_row(
        one.row, event=event, words=WORDS[event], count=one.content.count if one.content else 0,
        about=one.about or (one.content.about if one.content else ""),
        path=f"/view/{one.row.study_id}" if one.row.study_id else "/operations",
    )  # fmt: skip
