"""Deleting by page, in a real browser: it asks, needs no script, and can be used without a mouse."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from tests.browser.test_examination_page import log_in, shoot, url
from tests.browsing import needs_chromium, watched
from tests.conftest import InProcessApi
from tests.feedback_data import study_file

__all__ = ["url"]
pytestmark = needs_chromium


def test_a_study_is_deleted_by_page(browser: Browser, in_process: InProcessApi, url: str) -> None:
    """From the study's page, by keyboard: a reason must be chosen; then the worklist stands there without it."""
    study = in_process.post({"a": study_file(1, 1), "b": study_file(1, 2)}).json()["studies"][0]["id"]
    with watched(browser) as page:
        log_in(page, url, in_process.keys["admin"])
        page.goto(f"{url}/view/{study}")
        page.locator("#delete").click()
        expect(page.get_by_role("heading", name="Delete this study for good?")).to_be_visible()
        found = Axe().run(page)
        assert not found.response["violations"], found.generate_report()
        shoot(page, "delete")
        page.get_by_text("Delete one image instead").click()
        page.locator("#image-2").click()
        expect(page.get_by_role("heading", name="Delete image 2 of this study for good?")).to_be_visible()
        shoot(page, "delete-image")
        page.goto(f"{url}/view/{study}/delete")
        page.get_by_label("Why").select_option("test")
        page.get_by_label("More").fill("a phantom")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Worklist")).to_be_visible()
        assert page.locator(f'tr[data-study="{study}"]').count() == 0
