"""The theme: as the system says or as the reader chose, before anything is drawn, and every page can be read in the light one."""

import os
from pathlib import Path
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from api.pages.operations import Tab
from api.pages.render import HERE
from tests.browser.test_feedback_panel import add
from tests.browsing import log_in, log_out, needs_chromium, watched
from tests.conftest import InProcessApi

pytestmark = needs_chromium
SHOTS = os.environ.get("OSTEON_SHOTS", "")  # a folder, for people to look at
SIZES = ((1920, 1080), (1440, 900), (1024, 768), (390, 844))
LIGHT, DARK, BLACK = "rgb(246, 247, 249)", "rgb(10, 12, 15)", "rgb(0, 0, 0)"
THEMES: tuple[tuple[Literal["dark", "light"], str], ...] = (("light", LIGHT), ("dark", DARK))
STUDY = ("/view/{study}", "/view/{study}/report", "/view/{study}/delete")
PAGES = ("/", "/notices", "/send", "/revised", "/agreement", *STUDY, *(f"/operations?tab={tab}" for tab in Tab))


def look(page: Page, name: str) -> None:
    """No grave finding of axe, and nothing hangs over the edge; the page is left as it was."""
    found = Axe().run(page).response["violations"]
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(name, one["id"], [node["html"] for node in one["nodes"]][:3]) for one in grave] == []
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / f"{name}-{width}.png")
    page.set_viewport_size({"width": 1440, "height": 900})


def named(address: str) -> str:
    return (
        address.format(study="study").strip("/").replace("/", "-").replace("operations?tab=", "operations-") or "list"
    )


def test_every_page_can_be_read_in_both_themes(browser: Browser, in_process: InProcessApi, url: str) -> None:
    """In a light system the pages are light and radiographs stand on black; in a dark one they are dark; axe finds nothing."""
    study = add(in_process, 1, images=2)
    with watched(browser, theme="light") as page:
        page.goto(f"{url}/login")
        for theme, ground in THEMES:
            page.emulate_media(color_scheme=theme)
            expect(page.locator("html")).to_have_css("background-color", ground)
            look(page, f"login-{theme}")
        log_in(page.context, url, in_process.keys["admin"])
        for address in PAGES:
            page.goto(url + address.format(study=study))
            expect(page.locator("fieldset.theme")).to_have_count(1)
            for theme, ground in reversed(THEMES):
                page.emulate_media(color_scheme=theme)
                expect(page.locator("html")).to_have_css("background-color", ground)
                look(page, f"{named(address)}-{theme}")
            if address == STUDY[0]:
                expect(page.locator("#viewer")).to_have_css("background-color", BLACK)
                expect(page.locator("#viewer")).to_have_css("color", "rgb(232, 236, 240)")
        page.goto(f"{url}/login")


def test_the_chosen_theme_is_kept(browser: Browser, in_process: InProcessApi, url: str) -> None:
    """By keyboard: it is there at once, on every page, after a reload, a login and a logout; "System" gives it up again."""
    base = (HERE / "templates/base.html").read_text()
    assert base.index("{{ theme_script }}") < base.index('rel="stylesheet"')  # it is known before anything is drawn
    with watched(browser, theme="light") as page:
        page.goto(f"{url}/login")
        theme = page.get_by_role("group", name="Theme")
        expect(theme.get_by_label("System")).to_be_checked()
        theme.get_by_label("System").press("ArrowLeft")
        theme.get_by_label("Light").press("ArrowLeft")
        expect(page.locator("html")).to_have_css("background-color", DARK)
        page.reload()
        expect(theme.get_by_label("Dark")).to_be_checked()
        page.get_by_label("Your key").fill(in_process.keys["radiologist"])
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("html")).to_have_css("background-color", DARK)
        page.goto(f"{url}/revised")
        page.locator(".account > summary").press("Enter")
        theme.get_by_label("Dark").press("ArrowRight")
        expect(page.locator("html")).to_have_css("background-color", LIGHT)
        page.keyboard.press("Escape")
        expect(page.locator(".account > summary")).to_be_focused()
        expect(theme).to_be_hidden()
        page.emulate_media(color_scheme="dark")
        log_out(page)
        expect(theme.get_by_label("Light")).to_be_checked()
        expect(page.locator("html")).to_have_css("background-color", LIGHT)
        theme.get_by_label("Light").press("ArrowRight")
        expect(page.locator("html")).to_have_css("background-color", DARK)
        assert "theme=" not in page.evaluate("document.cookie")


def test_readers_who_ask_for_more_contrast_or_less_motion_get_it(browser: Browser, url: str) -> None:
    """Secondary text and lines differ more from their ground; nothing moves by itself."""
    with watched(browser) as page:
        page.goto(f"{url}/login")
        quiet = page.locator("#hint")
        expect(quiet).to_have_css("color", "rgb(147, 160, 173)")
        page.emulate_media(contrast="more", reduced_motion="reduce")
        expect(quiet).to_have_css("color", "rgb(198, 207, 216)")
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p class=below>x</p>')")
        expect(page.locator(".below")).to_have_css("transition-property", "none")
