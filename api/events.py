"""GET /worklist/events: a line whenever the worklist changed, for pages that stay open."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, HTTPException
from fastapi.responses import StreamingResponse

from api.dependencies import PartsDep, Radiologist

router = APIRouter(tags=["read"])
RETRY_MS = 3000


@router.get("/worklist/events", response_class=StreamingResponse)
async def events(parts: PartsDep, key: Radiologist) -> StreamingResponse:
    """Server-sent events: `worklist` when something in your site's list changed, at most one a second.

    `revised` follows when another number of revised findings waits to be seen.

    An event says only that; ask for the list anew. The stream ends after ten minutes: connect again. 429 when your key
    has too many open.
    """
    most = parts.settings.streams_per_key
    if parts.events.full(key.id, most):
        raise HTTPException(429, f"Your key has {most} live worklists open; close one", headers={"Retry-After": "60"})

    async def lines() -> AsyncIterator[str]:
        with parts.events.place(key.id):
            yield f"retry: {RETRY_MS}\n\n"
            async for changes in parts.events.changes(key.site_id):
                yield "".join(f"event: {change}\ndata: changed\n\n" for change in changes) or ": alive\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
