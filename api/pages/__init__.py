"""The pages for people: they show what the API answers, rendered here without a build."""

from fastapi import APIRouter
from starlette.staticfiles import StaticFiles

from api.pages import agreement, alerts, login, operations, report, study, worklist
from api.pages.login import problem_page, to_login, wants_page
from api.pages.render import HERE

papers = report.router  # they stand in the API's documentation, for programs fetch them too

__all__ = ["STATIC", "papers", "problem_page", "router", "to_login", "wants_page"]

STATIC = StaticFiles(directory=HERE / "static")
router = APIRouter(include_in_schema=False)
for page in (login, worklist, study, alerts, agreement, operations):
    router.include_router(page.router)
