"""One Chromium for all pages."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browsing import launch, pytest_runtest_makereport
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
