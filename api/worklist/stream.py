"""GET /api/v1/worklist/events: an event whenever the worklist changed, for pages that stay open."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import Depends, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.dependencies import PartsDep, Radiologist
from api.requests import API, Router
from shared.queries.logins import Holder

router = Router(prefix=API, tags=["read"])
RETRY_MS = 3000


def _room(parts: PartsDep, key: Radiologist) -> None:
    """Raises HTTPException (429) before the stream begins, when the key has too many open."""
    max_streams = parts.settings.streams_per_key
    if parts.events.is_full(key.id, max_streams):
        raise HTTPException(
            429, f"Your key has {max_streams} live worklists open; close one", headers={"Retry-After": "60"}
        )


@router.get("/worklist/events", response_class=EventSourceResponse, dependencies=[Depends(_room)])
async def events(parts: PartsDep, key: Radiologist) -> AsyncIterator[ServerSentEvent]:
    """Stream server-sent events: `worklist` when your site's list changed, at most one a second.

    `revised` follows when the number of revised findings to see has changed.

    An event says only that; load the list again. The stream ends after ten minutes: connect again. It ends within
    seconds after your key or login. 429 if your key has too many streams open.
    """
    with parts.events.count_stream(key.id):
        yield ServerSentEvent(retry=RETRY_MS)
        async with aclosing(parts.events.changes(key.site_id, Holder(key.id, key.login))) as batches:
            async for changes in batches:
                for change in changes:
                    yield ServerSentEvent(event=change, raw_data="changed")
