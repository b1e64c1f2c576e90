"""The scripts of every page load, run without an error, and are all of one version."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from api.pages.render import STATIC, modules
from tests.browser.test_feedback_panel import add
from tests.browsing import call, needs_chromium, watched
from tests.conftest import InProcessApi

SHOTS = os.environ.get("OSTEON_SHOTS", "")  # a folder, for people to look at
SIZES = ((1920, 1080), (1024, 768), (390, 844))
STUDY = "/view/{study}"
PAGES = {  # path: its script beside that of the theme, none where nobody is logged in, and whose page it is
    "/login": ("", ""),
    "/": ("worklist.js", "radiologist"),
    STUDY: ("study.js", "radiologist"),
    "/view/{study}/report": ("page.js", "radiologist"),
    "/revised": ("page.js", "radiologist"),
    "/agreement": ("page.js", "radiologist"),
    "/operations": ("operations.js", "admin"),
    "/view/{study}/delete": ("page.js", "admin"),
}  # fmt: skip

pytestmark = needs_chromium


@pytest.fixture
def study(in_process: InProcessApi) -> str:
    return add(in_process, 1, images=2)


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """Closed before its server is: an event stream that breaks off is an error in the console."""
    with watched(browser) as opened:
        yield opened


def log_in(page: Page, url: str, secret: str) -> None:
    page.goto(f"{url}/login")
    page.get_by_label("Your key").fill(secret)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator(".account > summary")).to_be_visible()


def test_every_page_loads_what_it_names_and_no_error(
    page: Page, in_process: InProcessApi, url: str, study: str
) -> None:
    """Each script that a page imports is asked for once, at the address of this version; none fails; nothing is amiss."""
    asked: list[Request] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request) if request.resource_type == "script" else None)
    page.on("requestfailed", lambda gone: failed.append(f"{gone.url} {gone.failure}"))
    page.on(
        "response",
        lambda response: failed.append(f"{response.url} {response.status}") if response.status >= 400 else None,
    )
    logged_in = ""
    for path, (script, role) in PAGES.items():
        if role != logged_in:
            log_in(page, url, in_process.keys[role])
            logged_in = role
        asked.clear()
        page.goto(url + path.format(study=study), wait_until="load")
        if script:
            call(page, script, "1")  # it has run to its end
        if path == STUDY:
            expect(page.locator("#stage")).to_have_attribute("data-shown", "1/1/preview")
            expect(page.locator("#reply-state")).not_to_have_text("Feedback is being fetched.")
        wanted = {f"{url}{STATIC}/{name}" for name in ("theme.js", *(modules(script) if script else ()))}
        assert {request.url for request in asked} == wanted, path
        shoot(page, script.removesuffix(".js") or "login")
    # a request that the page itself gave up, as it does when it is left, is none that failed
    assert [each for each in failed if "ERR_ABORTED" not in each] == []


def shoot(page: Page, name: str) -> None:
    for width, height in SIZES if SHOTS else ():
        page.set_viewport_size({"width": width, "height": height})
        page.screenshot(path=Path(SHOTS) / f"scripts-{name}-{width}.png")


def test_no_script_leaves_names_behind(page: Page, in_process: InProcessApi, url: str, study: str) -> None:
    """Modules share nothing but what they import: the global scope of a page holds what the browser itself put there."""
    page.goto(f"{url}/openapi.json")  # without scripts
    names: Any = "Object.getOwnPropertyNames(window)"
    before = set(page.evaluate(names))
    log_in(page, url, in_process.keys["radiologist"])
    for path, script in (("/", "worklist.js"), (f"/view/{study}", "study.js"), ("/revised", "page.js")):
        page.goto(url + path)
        call(page, script, "1")
        assert {name for name in page.evaluate(names) if name not in before} == set(), path
