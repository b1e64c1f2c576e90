"""One Chromium for all pages, and a radiologist who is logged in."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Dialog, Page, expect, sync_playwright

from tests.browsing import launch, log_in, pytest_runtest_makereport
from tests.pace import limit_s

__all__ = ["pytest_runtest_makereport"]  # pytest finds it here: it keeps what pages showed in a test that failed


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium. Not of the whole session: while it runs, no other event loop runs in this thread."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=limit_s(20) * 1000)
        opened = launch(playwright)
        yield opened
        opened.close()


@pytest.fixture
def url(in_process: Any) -> Iterator[str]:
    """The test's own API behind a real port."""
    server = uvicorn.Server(
        uvicorn.Config(in_process.http.app, port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def reader(browser: Browser, in_process: Any, url: str) -> Iterator[Page]:
    """A radiologist's page; the test fails if a script threw, or the policy was violated."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, timezone_id="Asia/Kathmandu", base_url=url)
    page = context.new_page()
    page.set_default_timeout(limit_s(20) * 1000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)

    def refuse(dialog: Dialog) -> None:
        errors.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    log_in(context, url, in_process.keys["radiologist"])
    yield page
    context.close()
    assert errors == []
