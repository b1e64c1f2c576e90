"""The sender's page: files, folders and discs are sent from a browser, and what became of a study is asked."""

from fastapi import Response

from api.dependencies import PartsDep, SessionDep, Submitter
from api.pages.render import header, render
from api.requests import Router
from shared.domain.study import Priority

router = Router(include_in_schema=False)
PRIORITIES = (Priority.ROUTINE, Priority.URGENT)  # that a sender chooses from


@router.get("/send")
def show_send(parts: PartsDep, key: Submitter, session: SessionDep) -> Response:
    """Show the page; what it sends goes to POST /api/v1/studies, as that of any other sender."""
    limits = {"max_files": parts.settings.max_request_files, "max_bytes": parts.settings.max_request_bytes}
    return render("send.html", 200, **header(session, key), priorities=PRIORITIES, limits=limits)
