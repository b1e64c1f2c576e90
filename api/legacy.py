"""Old paths of the API, from before 0.2.0: served until 0.3.0, with a warning.

An old path is answered by the route of its new one and is not redirected: an upload that is being streamed cannot
follow a redirect. Old addresses of pages are redirected, so that bookmarks are renewed.
"""

import re
import time
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.logs import get_logger

log = get_logger(__name__)
# Old path to new path; a name in braces stands for one segment and is copied. Goes with 0.3.0.
API_PATHS = {
    "/agreement": "/api/v1/agreement",
    "/alerts": "/api/v1/revised-findings",
    "/alerts/count": "/api/v1/revised-findings/count",
    "/alerts/{alert_id}/seen": "/api/v1/revised-findings/{alert_id}/seen",
    "/allowances": "/api/v1/turnaround-targets",
    "/arrivals": "/api/v1/arrivals",
    "/audit-events": "/api/v1/audit-events",
    "/backlog": "/api/v1/backfill-runs",
    "/backlog/{day}": "/api/v1/backfill-runs/{day}",
    "/bundles": "/api/v1/bundles",
    "/bundles/{name}/activate": "/api/v1/bundles/{name}/activate",
    "/bundles/{name}/retire": "/api/v1/bundles/{name}/retire",
    "/bundles/{name}/shadow": "/api/v1/bundles/{name}/shadow",
    "/bundles/{old}/compare/{new}": "/api/v1/bundles/{old}/compare/{new}",
    "/deletions": "/api/v1/deletions",
    "/filters": "/api/v1/filters",
    "/filters/{filter_id}": "/api/v1/filters/{filter_id}",
    "/held-files": "/api/v1/held-files",
    "/held-files/{held_id}/decision": "/api/v1/held-files/{held_id}/decision",
    "/keys": "/api/v1/keys",
    "/keys/{key_id}": "/api/v1/keys/{key_id}",
    "/keys/{key_id}/revoke": "/api/v1/keys/{key_id}/revoke",
    "/ledger": "/api/v1/feedback",
    "/ledger/labels": "/api/v1/feedback/labels",
    "/operations": "/api/v1/operations",
    "/quarantine": "/api/v1/quarantine",
    "/quarantine/release": "/api/v1/quarantine/release",
    "/quarantine/{study_id}/delete": "/api/v1/quarantine/{study_id}/delete",
    "/quarantine/{study_id}/dismiss": "/api/v1/quarantine/{study_id}/dismiss",
    "/studies": "/api/v1/studies",
    "/studies/states": "/api/v1/studies/states",
    "/studies/{study_id}": "/api/v1/studies/{study_id}",
    "/studies/{study_id}/answers": "/api/v1/studies/{study_id}/feedback",
    "/studies/{study_id}/answers/{entry_id}/undo": "/api/v1/studies/{study_id}/feedback/{entry_id}/undo",
    "/studies/{study_id}/claim": "/api/v1/studies/{study_id}/lock",
    "/studies/{study_id}/claim/{token}": "/api/v1/studies/{study_id}/lock/{token}",
    "/studies/{study_id}/claims": "/api/v1/studies/{study_id}/locks",
    "/studies/{study_id}/film": "/api/v1/studies/{study_id}/frame",
    "/studies/{study_id}/heatmap.json": "/api/v1/studies/{study_id}/heatmap.json",
    "/studies/{study_id}/heatmap.png": "/api/v1/studies/{study_id}/heatmap.png",
    "/studies/{study_id}/images/{sop_instance_uid}": "/api/v1/studies/{study_id}/images/{sop_instance_uid}",
    "/studies/{study_id}/original": "/api/v1/studies/{study_id}/original",
    "/studies/{study_id}/overlay.jpg": "/api/v1/studies/{study_id}/overlay.jpg",
    "/studies/{study_id}/preview.jpg": "/api/v1/studies/{study_id}/preview.jpg",
    "/studies/{study_id}/release": "/api/v1/studies/{study_id}/release",
    "/studies/{study_id}/report.pdf": "/api/v1/studies/{study_id}/report.pdf",
    "/worklist": "/api/v1/worklist",
    "/worklist/events": "/api/v1/worklist/events",
    "/worklist/search": "/api/v1/worklist/search",
    "/security-events": "/api/v1/audit-events",
}
PAGES = {
    "/admin": "/operations",
    "/agreement.html": "/agreement",
    "/second-looks": "/revised",
    "/second-looks/{alert_id}/seen": "/revised/{alert_id}/seen",
    "/studies/{study_id}/report.html": "/view/{study_id}/report",
}
REUSED_AS_PAGES = {"/agreement", "/operations"}  # old paths of the API that are pages today
DEPRECATED = "@1795996800"  # 30 November 2026, when 0.2.0 renamed them (RFC 9745)
WARNING_INTERVAL_S = 3600.0  # the use of an old path is logged no more often


class LegacyPaths:
    """Leads a request for an old path to the route of the new one, and says in the response which that is. Plain ASGI.

    The headers are Deprecation (RFC 9745) and Link with rel="successor-version" (RFC 5829). It looks at the address
    only: keys, limits and bodies are asked for by the route, and the request is counted under that route.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        known = sorted((API_PATHS | PAGES).items(), key=lambda one: one[0].count("{"))  # the most exact comes first
        self._known = [(_path_pattern(old), old, new) for old, new in known]
        self._first = {old.split("/")[1] for old, _ in known}
        self._logged: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http" or (found := self._successor(scope)) is None:
            await self.app(scope, receive, send)
            return
        old, new, path = found
        self._warn(old, new)

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Deprecation"] = DEPRECATED
                headers.append("Link", f'<{quote(path)}>; rel="successor-version"')
            await send(message)

        if old in PAGES and scope["method"] in ("GET", "HEAD"):
            query = scope["query_string"].decode("latin-1")
            await RedirectResponse(quote(path) + (f"?{query}" if query else ""), 308)(scope, receive, send_more)
            return
        inner = {**scope, "path": path, "raw_path": quote(path).encode()}
        try:
            await self.app(inner, receive, send_more)
        finally:
            scope["route"] = inner.get("route")  # as `route_of` of api/request_metrics.py asks for it

    def _successor(self, scope: Scope) -> tuple[str, str, str] | None:
        """The old and the new path as in the table, and the new path of this request; None for one that is not old."""
        path = scope["path"].removesuffix("/")
        if not self._first.issuperset(path.split("/", 2)[1:2]):
            return None
        for pattern, old, new in self._known:
            if match := pattern.fullmatch(path):
                if old in REUSED_AS_PAGES and _asks_for_page(scope):
                    return None
                return old, new, new.format(**match.groupdict())
        return None

    def _warn(self, old: str, new: str) -> None:
        """One line an hour for each old path, without the ids in it."""
        now = time.monotonic()
        if now - self._logged.get(old, -WARNING_INTERVAL_S) >= WARNING_INTERVAL_S:
            self._logged[old] = now
            log.warning("old path requested", old=old, new=new, works_until="0.3.0")


def _path_pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template)))


def _asks_for_page(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") and "text/html" in Headers(scope=scope).get("accept", "")
