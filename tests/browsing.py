"""A real browser whose console is watched: an error, or a violation of the page's policy, fails the test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

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


@contextmanager
def watched(browser: Browser, width: int = 1440, refused: tuple[int, ...] = ()) -> Iterator[Page]:
    """A page of a fresh profile. refused: statuses that the test provokes, which Chromium notes in its console."""
    context = browser.new_context(viewport={"width": width, "height": 1000}, timezone_id="Europe/Berlin")
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
    yield page
    context.close()
    assert errors == []


def leave(page: Page, api_url: str) -> None:
    """Go elsewhere, as a reader does: a page's farewell would not get out of a profile that is closed at once."""
    if not page.is_closed():
        page.goto(f"{api_url}/login")
