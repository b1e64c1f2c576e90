"""Twenty studies of one to three views, read by keyboard alone: how many keys that takes, and how long a reader waits."""

import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from infra.client.api import Client
from tests.browser.test_viewer import ViewerSystem, spot
from tests.browsing import log_in, needs_chromium
from tests.live_stack import KEYS, BreakableStack
from tests.pace import limit_s

SAMPLES = Path(__file__).parents[2] / "samples" / "studies"
STUDIES = 20
POSITIVES = 6
MAX_KEYS = 1.6  # for a study, on average; 2.4 when one image was shown at a time, with all that is drawn on it
SEEN = """() => [...document.querySelectorAll("[data-shown]")].map((one) => one.dataset.shown.split("/")[0])"""

pytestmark = needs_chromium


class KeyboardReader:
    """A page, and the keys that were pressed on it."""

    def __init__(self, page: Page) -> None:
        """page: of somebody who is logged in."""
        self.page, self.keys, self.waited_s = page, 0, 0.0

    def press(self, key: str) -> None:
        """Press a key, and count it."""
        self.keys += 1
        self.page.keyboard.press(key)

    def wait_for_pictures(self) -> None:
        """Wait until the study that was opened shows one, or says that there is none."""
        began = time.monotonic()
        self.page.wait_for_function("() => document.querySelector('[data-shown], .empty-stage')")
        self.waited_s += time.monotonic() - began

    def look(self) -> None:
        """See each view of the study, without anything drawn on it."""
        if self.page.locator(".empty-stage").count():
            return
        for name, key in (("overlay", "h"), ("outline", "t")):
            if self.page.locator(f"#{name}").get_attribute("aria-pressed") == "true":
                self.press(key)
        views = {one.get_attribute("data-image") for one in self.page.locator(".thumb:not([data-prior])").all()}
        seen = set(self.page.evaluate(SEEN))
        for _ in range(len(views)):
            if seen >= views:
                break
            before = self.page.evaluate(SEEN)
            self.press("]")
            self.page.wait_for_function(f"(before) => String(({SEEN})()) !== String(before)", arg=before)
            seen |= set(self.page.evaluate(SEEN))
        assert seen >= views

    def done(self, *, more: bool) -> None:
        """Say that it is read, and agree with what is positive; wait for the next study, or for the list."""
        here = self.page.url
        self.press("Enter")
        self.page.wait_for_function(
            "(here) => location.href !== here || document.querySelector('#ask[open]')", arg=here
        )
        if self.page.url == here:
            self.press("a")
        self.page.wait_for_url(lambda url: url != here and ("/view/" in url) == more)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_studies_are_read_by_keyboard_alone(browser: Browser, standing: BreakableStack) -> None:
    """From the list to the list: each view is seen bare, each positive study gets an answer, and few keys are pressed."""
    standing.begin()
    worker = standing.worker()
    folders = sorted(SAMPLES.iterdir(), key=lambda folder: -len(list(folder.glob("*.dcm"))))[:STUDIES]
    studies: dict[str, str] = {}
    with Client(standing.url, KEYS["submitter"]) as client:
        for folder in folders:
            files = [(path, path.name) for path in sorted(folder.glob("*.dcm"))]
            (studies[folder.name],) = client.submit(files, "routine").studies
    standing.until(lambda: standing.studies.done(list(studies.values())) == len(studies), 120)
    system = ViewerSystem(standing, worker, studies)
    for name in list(studies)[:POSITIVES]:
        system.find(name, "positive", 0.9, spot(14, 14))
    ids = list(studies.values())
    system.sql("UPDATE studies SET read_at = now() WHERE read_at IS NULL AND id <> ALL (%s::uuid[])", ids)

    context = browser.new_context(viewport={"width": 1920, "height": 1080})
    page = context.new_page()
    page.set_default_timeout(limit_s(20) * 1000)
    log_in(context, standing.url, KEYS["radiologist"])
    page.goto(standing.url)
    expect(page.locator("a.open").first).to_be_visible()
    reader = KeyboardReader(page)
    reader.press("j")
    reader.press("c")
    page.wait_for_url("**/view/**")
    began = time.monotonic()
    for number in range(1, STUDIES + 1):
        reader.wait_for_pictures()
        reader.look()
        reader.done(more=number < STUDIES)
    seconds = time.monotonic() - began
    print(
        f"{reader.keys / STUDIES:.2f} keys and {seconds / STUDIES:.2f} s a study, of which {reader.waited_s / STUDIES:.2f} s "
        "are the wait for its first picture"
    )
    context.close()
    assert standing.studies.ask("SELECT count(*) FROM studies WHERE id = ANY(%s::uuid[]) AND read_at IS NULL", ids) == [
        (0,)
    ]
    assert reader.keys <= MAX_KEYS * STUDIES
