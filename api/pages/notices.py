"""Notices as a page: what happened of late, what this browser shows, and who is told by mail or webhook."""

from fastapi import Response

from api.dependencies import PartsDep, Radiologist, SessionDep
from api.operations.destinations import destination_views
from api.pages.render import header, render
from api.requests import Router
from api.worklist.notices import WORDS, events_for, notices_of
from shared.domain.destinations import DestinationKind
from shared.domain.notices import ALARMS, BEGUN_BY
from shared.domain.security import Role

router = Router(include_in_schema=False)
TELLS = (DestinationKind.MAIL, DestinationKind.WEBHOOK)
EVENT_WORDS = {event: WORDS[event].rstrip(".").lower() for event in ALARMS}


@router.get("/notices")
def show_notices(parts: PartsDep, key: Radiologist, session: SessionDep) -> Response:
    """Show the latest notices of the site; for administrators who is told, with a test."""
    administers = key.may(Role.ADMIN)
    told = [one for one in destination_views(session, key) if one.kind in TELLS] if administers else []
    own = [one for one in told if set(ALARMS) & {event for rule in one.rules for event in rule.events}]
    context = {
        "administers": administers,
        "notices": notices_of(session, key).notices,
        "chosen": [(event, WORDS[event].rstrip(".")) for event in events_for(key) if event not in BEGUN_BY],
        "zone": parts.settings.backfill_timezone,
        "told": own,
        "event_words": EVENT_WORDS,
        "mail": DestinationKind.MAIL,
    }
    return render("notices.html", 200, **header(session, key), **context)
