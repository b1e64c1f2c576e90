"""The login page: why somebody is there, and that pages are left when their login ends."""

import os
import re
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from playwright.sync_api import Browser, Error, Page, expect
from sqlalchemy import func, update

from shared.db.tables import SessionRow
from tests.browsing import call, log_out, needs_chromium, watched
from tests.conftest import InProcessApi
from tests.served import served

pytestmark = needs_chromium
SHOTS = os.environ.get("OSTEON_SHOTS", "")


def accessible(page: Page) -> None:
    """No serious or critical finding of axe."""
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


def test_a_page_that_nobody_uses_is_left(browser: Browser, in_process: InProcessApi) -> None:
    """Once its login has ended the page leaves by itself for the login page, which says why, and goes back there after."""
    api, app = in_process, in_process.http.app
    assert isinstance(app, FastAPI)
    with served(app) as port, watched(browser, refused=(401,)) as page:
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_label("Your key").fill(api.keys["radiologist"])
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Worklist")).to_be_visible()
        with api.database.transaction() as session:
            session.execute(update(SessionRow).values(active_at=func.now() - timedelta(minutes=31)))
        with suppress(Error):  # the page may be gone before it answers, or have left by itself
            call(page, "lib/session.js", "void setTimeout(it.checkLogin)")
        expect(page).to_have_url(re.compile("/login"))
        expect(page.get_by_role("status")).to_contain_text("You were logged out, because the page was not used")
        accessible(page)
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / "logged-out.png")
        page.get_by_label("Your key").fill(api.keys["operator"])
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Operations", level=1)).to_be_visible()
        accessible(page)
        log_out(page)
        expect(page.get_by_role("status")).to_contain_text("You are logged out")
