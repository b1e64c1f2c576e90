"""A real browser whose console is watched: an error, or a violation of the page's policy, fails the test.

Where OSTEON_TEST_ARTIFACTS names a folder, a failing test leaves there what its pages showed and did: a screenshot of each
page, and a trace to open with `playwright show-trace`. A conftest turns that on: it starts the browser with `launch` and
imports `pytest_runtest_makereport` from here.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Playwright

from api.pages.render import STATIC

# the headless shell draws the same pages with half of the processor time; Debian has it in a package of its own
CHROMIUM = next(filter(os.path.exists, ["/usr/bin/chromium-headless-shell"]), "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-quic",
]  # fmt: skip
WATCH_POLICY = """document.addEventListener("securitypolicyviolation",
    (event) => console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`))"""
needs_chromium = pytest.mark.skipif(
    not Path(CHROMIUM).exists() and "CI" not in os.environ, reason="needs chromium: apt-get install chromium"
)


ARTIFACTS = os.environ.get("OSTEON_TEST_ARTIFACTS", "")  # a folder
_open: list[BrowserContext] = []
_recorded: list[Path] = []  # what the test that runs has left so far


def launch(playwright: Playwright) -> Browser:
    """Chromium; its profiles are recorded where artifacts are asked for."""
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
    if ARTIFACTS:
        make = browser.new_context

        def make_recorded(**options: Any) -> BrowserContext:
            context = make(**options)
            _begin(context)
            return context

        browser.new_context = make_recorded  # type: ignore[method-assign]
    return browser


def _begin(context: BrowserContext) -> None:
    """Record from now on, and before the profile is closed write down what was recorded."""
    close = context.close

    def write_and_close(**options: Any) -> None:
        if context in _open:
            _open.remove(context)
            _write(context)
        close(**options)

    context.close = write_and_close  # type: ignore[method-assign]
    context.tracing.start(screenshots=True, snapshots=True)
    _open.append(context)


def _write(context: BrowserContext) -> None:
    folder = Path(tempfile.mkdtemp(prefix="osteon-browser-"))
    _recorded.append(folder)
    with suppress(Error):  # the browser is gone, or the page hangs: what there is, is kept
        for number, page in enumerate(context.pages, 1):
            page.screenshot(path=folder / f"page-{number}.png", timeout=5000)
    with suppress(Error):
        context.tracing.stop(path=folder / "trace.zip")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """After each phase of a test: keep the recordings of one that failed, drop those of one that is through."""
    report = yield
    if report.failed:
        _open[:] = [context for context in _open if context.browser is not None and context.browser.is_connected()]
        for context in _open:
            _write(context)
            with suppress(Error):
                context.tracing.start(screenshots=True, snapshots=True)
        place = Path(item.config.rootpath, ARTIFACTS, re.sub(r"[^\w.-]+", "-", item.nodeid))
        for number, folder in enumerate(_recorded, 1):
            shutil.copytree(folder, place / f"{report.when}-{number}", dirs_exist_ok=True)
    if report.failed or report.when == "teardown":
        for folder in _recorded:
            shutil.rmtree(folder)
        _recorded.clear()
    return report


@contextmanager
def watched(
    browser: Browser, width: int = 1440, refused: tuple[int, ...] = (), theme: Literal["dark", "light"] = "dark"
) -> Iterator[Page]:
    """A page of a fresh profile.

    Args:
        browser: that of the test.
        width: of the window.
        refused: statuses that the test provokes, which Chromium notes in its console.
        theme: of the system.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 1000}, timezone_id="Europe/Berlin", color_scheme=theme
    )
    context.add_init_script(WATCH_POLICY)
    page = context.new_page()
    page.set_default_timeout(20_000)
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        expected = any(f"status of {status}" in message.text for status in refused)
        if message.type == "error" and not expected:
            errors.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        yield page
    finally:
        context.close()
    assert errors == [], errors


def call(page: Page, name: str, expression: str) -> Any:
    """What an expression gives of a script that the page has loaded: `call(page, "worklist.js", "it.refresh()")`."""
    return page.evaluate(f"import('{STATIC}/{name}').then((it) => {expression})")


def log_in(context: BrowserContext, url: str, key: str) -> None:
    """Log a profile in without drawing a page, for tests that are about something else than the login."""
    answer = context.request.post(f"{url}/login", form={"key": key}, max_redirects=0)
    assert answer.status == 303, answer.text()


def log_out(page: Page) -> None:
    """Press the button that stands in the menu under the key's name."""
    page.locator(".account > summary").click()
    page.get_by_role("button", name="Log out").click()


def leave(page: Page, api_url: str) -> None:
    """Go elsewhere, as a reader does: a page's farewell would not get out of a profile that is closed at once."""
    if not page.is_closed():
        page.goto(f"{api_url}/login")
