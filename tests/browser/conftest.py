"""One Chromium for all pages."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browsing import ARGUMENTS, CHROMIUM
from tests.pace import limit_s


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium. Not of the whole session: while it runs, no other event loop runs in this thread."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=limit_s(20) * 1000)
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()
