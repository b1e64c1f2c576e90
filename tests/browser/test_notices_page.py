"""Notices: chosen, tested and shown in a real browser, whose system's notifications a stand-in keeps."""

import os
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from shared.db.clock import db_now
from shared.db.tables import DestinationRow, NoticeRow
from shared.domain.destinations import Destination, DestinationKind, Rule
from shared.domain.notices import ALARMS, Event, NoticeContent
from tests.browsing import call, log_in, needs_chromium, watched
from tests.conftest import InProcessApi
from tests.mail_server import MailServer
from tests.pace import limit_s, until
from tests.results import Outbox, rows

pytestmark = needs_chromium
SHOTS = os.environ.get("OSTEON_SHOTS", "")  # a folder, for those who want to look
SIZES = ((1920, 1080), (1024, 768), (390, 844))
# the headless browser has no place to show one: what would be shown is kept
STAND_IN = """
window.shown = [];
window.Notification = class extends EventTarget {
  static permission = "default";
  static async requestPermission() { return (window.Notification.permission = window.granted ?? "granted"); }
  constructor(title, options) { super(); window.shown.push(`${title}: ${options.body}`); window.last = this; }
};
if (localStorage.getItem("osteon.granted")) window.Notification.permission = "granted";
"""


def test_notices_are_chosen_tested_and_shown(browser: Browser, in_process: InProcessApi, url: str) -> None:
    """By the keyboard alone; off at first; what was there before is not shown; mail is tested from the page."""
    key = in_process.key("admin")
    with MailServer().open() as server:
        settings = in_process.settings.model_copy(
            update={"mail_host": "127.0.0.1", "mail_port": server.port, "mail_security": "none", "mail_from": "o@h.example"}
        )  # fmt: skip
        outbox = Outbox(in_process.database, settings, key.site_id, key)
        outbox.add(
            Destination(DestinationKind.MAIL, address="room@h.example"), Rule(events=ALARMS, hour_from=7, hour_to=19)
        )

        def happens(event: Event, count: int = 2) -> None:
            with in_process.database.transaction() as session:
                now = db_now(session)
                told = NoticeContent(event, now, now, "", count=count).as_json()
                session.add(NoticeRow(site_id=key.site_id, event=event, happened_at=now, told=told))

        happens(Event.QUEUE_LATE)
        with watched(browser) as page:
            page.add_init_script(STAND_IN)
            log_in(page.context, url, in_process.keys["admin"])
            page.goto(f"{url}/notices")
            expect(page.locator("#browser-state")).to_have_text("This browser shows no notices.")
            expect(page.locator(".lately")).to_contain_text("Studies wait too long for the model.")
            expect(page.locator(".told")).to_contain_text("from 7 to 19 h")
            assert not Axe().run(page).response["violations"]
            for width, height in SIZES:
                page.set_viewport_size({"width": width, "height": height})
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                if SHOTS:
                    page.screenshot(path=Path(SHOTS) / f"notices-{width}.png", full_page=True)
            page.set_viewport_size({"width": 1440, "height": 1000})
            # a browser that refuses
            page.evaluate("window.granted = 'denied'")
            page.locator("#browser-on").focus()
            page.keyboard.press("Enter")
            expect(page.locator("#said")).to_contain_text("does not let this site show anything")
            # one that lets us: the second of what is offered is left out
            page.evaluate("window.granted = 'granted'")
            page.get_by_role("checkbox", name="A newer model finds something in a study that was negative").focus()
            page.keyboard.press("Space")
            page.locator("#browser-on").focus()
            page.keyboard.press("Enter")
            expect(page.locator("#browser-state")).to_have_text("This browser shows what is chosen.")
            page.locator("#browser-test").focus()
            page.keyboard.press("Enter")
            page.wait_for_function("window.shown.length === 1")
            happens(Event.QUEUE_ON_TIME)
            for _ in range(2):  # it is shown once, whichever page asks
                call(page, "live/notices.js", "it.ask()")
            page.evaluate("localStorage.setItem('osteon.granted', '1')")
            other = page.context.new_page()
            other.add_init_script(STAND_IN)
            other.goto(f"{url}/notices")
            expect(other.locator(".lately li")).to_have_count(2)
            call(other, "live/notices.js", "it.ask()")
            assert other.evaluate("window.shown") == []
            other.close()
            assert page.evaluate("window.shown") == [
                "Osteon: This is a test of notices.", "Osteon: No study waits too long for the model any more."
            ]  # fmt: skip
            # mail, by the process that sends
            page.get_by_role("button", name="Test PACS").focus()
            page.keyboard.press("Enter")
            expect(page.locator("#said")).to_have_text("The test is under way.")
            until(lambda: rows(in_process.database, DestinationRow)[0].test_asked_at, 10)
            outbox.send()
            expect(page.locator("#said")).to_have_text("PACS has taken the test.", timeout=limit_s(30) * 1000)
            assert server.messages[0]["Subject"] == "Osteon: test of notices"
            page.locator("#browser-off").focus()
            page.keyboard.press("Enter")
            expect(page.locator("#browser-state")).to_have_text("This browser shows no notices.")


def test_a_radiologist_chooses_among_what_is_about_studies(
    browser: Browser, in_process: InProcessApi, url: str
) -> None:
    with watched(browser) as page:
        log_in(page.context, url, in_process.keys["radiologist"])
        page.goto(f"{url}/notices")
        expect(page.locator('[name="events"]')).to_have_count(2)
        expect(page.locator("#told-title")).to_have_count(0)
