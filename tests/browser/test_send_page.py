"""The sender's page in a real browser: real files, wrong ones, a connection that is lost, and what became of a study."""

import csv
import os
import re
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect
from sqlalchemy import func, select

from shared.db.tables import InstanceRow, StudyRow
from tests.browsing import log_in, needs_chromium, watched
from tests.conftest import SAMPLES, InProcessApi
from tests.feedback_data import analyse
from tests.pace import limit_s

pytestmark = needs_chromium
SHOTS = os.environ.get("OSTEON_SHOTS", "")  # a folder, for those who want to look
SIZES = ((1920, 1080), (1024, 768), (390, 844))
LINE = "#lines tr"
# the first request arrives, and the page gets no response; all keys of requests are kept
LOSE_FIRST_RESPONSE = """
window.keys = [];
const status = Object.getOwnPropertyDescriptor(XMLHttpRequest.prototype, "status");
const set = XMLHttpRequest.prototype.setRequestHeader;
XMLHttpRequest.prototype.setRequestHeader = function (name, value) {
  if (name === "Idempotency-Key") this.isFirst = window.keys.push(value) === 1;
  return set.call(this, name, value);
};
Object.defineProperty(XMLHttpRequest.prototype, "status", { get() { return this.isFirst ? 0 : status.get.call(this); } });
"""


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    """A CD with a study of two images, and what else lies on one."""
    made = tmp_path / "CD"
    (made / "IMAGES" / "A").mkdir(parents=True)
    study = next(one for one in sorted((SAMPLES / "studies").iterdir()) if len(list(one.glob("*.dcm"))) > 1)
    for place, file in zip((made / "IMAGES", made / "IMAGES" / "A"), sorted(study.glob("*.dcm")), strict=False):
        shutil.copy(file, place / file.name)
    shutil.copy(SAMPLES / "broken" / "text.dcm", made / "readme.txt")
    shutil.copy(SAMPLES / "broken" / "truncated-pixels.dcm", made / "IMAGES" / "cut.dcm")
    return made


def fates(page: Page) -> dict[str, str]:
    """By the end of its name, what the page says of each file."""
    rows = page.locator(LINE).all()
    return {one.locator("th").inner_text().rsplit("/", 1)[-1]: one.locator("td").inner_text() for one in rows}


def test_a_disc_is_sent_and_its_study_found(
    browser: Browser, in_process: InProcessApi, url: str, disc: Path, tmp_path: Path
) -> None:
    """A submitter logs in, and sees this page alone; each file has its fate; the second time nothing is stored twice."""
    api = in_process
    with watched(browser, refused=(403, 409)) as page:
        page.goto(f"{url}/login")
        page.get_by_label("Your key").fill(api.keys["submitter"])
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{url}/send")
        page.locator("#folder").set_input_files(disc)
        expect(page.locator("#said")).to_contain_text("All is sent")
        told = fates(page)
        assert sorted(word.split(":")[0] for word in told.values()) == ["rejected", "rejected", "stored", "stored"], (
            told
        )
        assert told["readme.txt"].startswith("rejected: ")
        with api.database.transaction() as session:
            study = session.scalars(select(StudyRow)).one()
            assert session.scalar(select(func.count()).select_from(InstanceRow)) == 2
        expect(page.locator("#studies li")).to_have_text(f"{study.id}: received, waits to be analysed")
        assert not Axe().run(page).response["violations"]
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if SHOTS:
                page.screenshot(path=Path(SHOTS) / f"send-{width}.png", full_page=True)
        page.set_viewport_size({"width": 1440, "height": 1000})
        # once more, the same
        page.locator("#folder").set_input_files(disc)
        expect(page.locator(LINE)).to_have_count(8)
        expect(page.locator("#totals")).to_contain_text("2 was here before")
        expect(page.locator("#said")).to_contain_text("All is sent")
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save the receipt").click()
        place = tmp_path / "receipt.csv"
        saved.value.save_as(place)
        lines = list(csv.DictReader(place.read_text(encoding="utf-8-sig").splitlines()))
        assert sorted(one["outcome"] for one in lines) == ["duplicate"] * 2 + ["rejected"] * 4 + ["stored"] * 2
        assert {one["study"] for one in lines if one["outcome"] == "stored"} == {str(study.id)}
        # what became of it
        analyse(api, str(study.id))
        expect(page.locator("#studies li")).to_have_text(f"{study.id}: analysed")
        page.get_by_label("Accession number or Study Instance UID").fill(str(study.study_instance_uid))
        page.keyboard.press("Enter")
        expect(page.locator("#answer")).to_contain_text("Analysed. Received")
        expect(page.locator("#answer")).to_contain_text(str(study.id))
        page.get_by_label("Accession number or Study Instance UID").fill("ACC-NOBODY")
        page.keyboard.press("Enter")
        expect(page.locator("#answer")).to_contain_text("Nothing with this number is stored here")
        page.goto(f"{url}/")
        expect(page.locator("main")).to_contain_text("role radiologist")


def test_a_lost_connection_loses_nothing(browser: Browser, in_process: InProcessApi, url: str, disc: Path) -> None:
    """The response that was lost is given again, so what arrived is no duplicate; and it can be stopped, and go on."""
    calls = 0

    def answer(route: Route) -> None:
        """The second time the server is busy."""
        nonlocal calls
        calls += 1
        if calls == 2:
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"detail": "busy"})
        else:
            route.continue_()

    images = sorted(disc.rglob("*.dcm"))[:2]
    with closing(browser.new_context()) as context:  # whose console has the lost request
        page = context.new_page()
        page.set_default_timeout(limit_s(30) * 1000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        log_in(page.context, url, in_process.keys["submitter"])
        page.add_init_script(LOSE_FIRST_RESPONSE)
        page.goto(f"{url}/send")
        page.route(re.compile(r"/api/v1/studies$"), answer)
        page.locator("#files").set_input_files(images)
        expect(page.locator("#said")).to_contain_text("All is sent")
        keys = page.evaluate("window.keys")
        assert (calls, len(keys), len(set(keys))) == (3, 3, 1)
        assert list(fates(page).values()) == ["stored", "stored"]
        # stopped before anything has arrived, and going on
        held: list[Route] = []
        page.unroute_all()
        page.route(re.compile(r"/api/v1/studies$"), lambda route: held.append(route) if not held else route.continue_())
        page.locator("#files").set_input_files(images)
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#said")).to_contain_text("Stopped")
        expect(page.get_by_role("button", name="Go on")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#said")).to_contain_text("All is sent")
        expect(page.locator("#totals")).to_contain_text("was here before")
        assert errors == []
