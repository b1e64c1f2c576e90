"""The pages for people: they show what the API answers, rendered here without a build."""

import mimetypes

from starlette.staticfiles import StaticFiles

from api.pages import agreement, deletion, login, notices, operations, report, revised, send, study, worklist
from api.pages.login import problem_page, to_login, wants_page
from api.pages.render import STATIC_DIR
from api.requests import Router

papers = report.files

__all__ = ["FILES", "papers", "problem_page", "router", "to_login", "wants_page"]

mimetypes.add_type("font/woff2", ".woff2")  # Python 3.11 does not know it
FILES = StaticFiles(directory=STATIC_DIR)
router = Router(include_in_schema=False)
for page in (login, worklist, study, report, deletion, revised, agreement, notices, send, operations):
    router.include_router(page.router)
