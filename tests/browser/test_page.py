"""The page as a radiologist meets it: a real browser against the running system."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pydicom
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, expect
from pydicom.uid import generate_uid

from api.pages.render import STATIC
from tests.browsing import WATCH_POLICY, call, leave, log_out, needs_chromium
from tests.pace import limit_s

SAMPLES = Path(__file__).parents[2] / "samples"
FINDINGS = re.compile("positive|unclear|negative|abstained")
SCRIPT = "<script>alert(1)</script>"

pytestmark = needs_chromium


@pytest.fixture
def page(browser: Browser, system: Any) -> Iterator[Page]:
    """A page of a fresh browser profile; the test fails if the console told of an error or of a policy violation."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, timezone_id="Asia/Kathmandu")
    context.add_init_script(WATCH_POLICY)
    page = context.new_page()
    page.set_default_timeout(limit_s(20) * 1000)
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # Chromium notes every page that is answered with an error status, as a refused login is on purpose
        refused = message.text.startswith("Failed to load resource") and "/login" in message.location.get("url", "")
        # and a claim that a page left behind which was gone before it had its response
        left = "status of 409" in message.text
        # and a picture of the list that is asked for while the reader logs out
        left = left or ("status of 401" in message.text and "/preview.jpg" in message.location.get("url", ""))
        if message.type == "error" and not refused and not left:
            errors.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))

    def refuse(dialog: Dialog) -> None:
        errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", refuse)
    yield page
    try:
        leave(page, system.api_url)
    finally:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def studies(system: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Analysed studies, name to id: two plain ones, one of two frames, and one whose patient's name is a script."""
    paths = {name: sorted((SAMPLES / "studies" / name).glob("*.dcm")) for name in ("01-hand", "08-elbow", "24-leg")}
    paths["script"] = [forged(tmp_path_factory.mktemp("forged") / "script.dcm", SCRIPT)]
    ids = {}
    for name, files in paths.items():
        receipt = system.submit(files, priority="urgent" if name == "script" else "routine")
        (ids[name],) = [study["id"] for study in receipt["studies"]]
    system.wait(list(ids.values()), 180)
    return ids


def forged(path: Path, name: str) -> Path:
    """A sample under another name, as a study of its own."""
    dataset = pydicom.dcmread(SAMPLES / "studies" / "03-hand" / "1-pa.dcm")
    dataset.PatientName = name
    dataset.StudyInstanceUID = generate_uid()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.save_as(path)
    return path


@pytest.fixture
def reader(page: Page, system: Any) -> Page:
    """A page that a radiologist is logged in to."""
    log_in(page, system, system.keys["radiologist"])
    expect(page.get_by_role("heading", name="Worklist")).to_be_visible()
    return page


def log_in(page: Page, system: Any, secret: str) -> None:
    page.goto(f"{system.api_url}/login")
    page.get_by_label("Your key").fill(secret)
    page.get_by_role("button", name="Log in").click()


def open_study(page: Page, system: Any, study_id: str) -> None:
    page.goto(f"{system.api_url}/view/{study_id}")


def all_rows(page: Page, system: Any) -> list[tuple[str, str, str]]:
    """(study id, due time, text) of every row, over all pages of the list."""
    page.goto(system.api_url)
    rows: list[tuple[str, str, str]] = []
    while True:
        rows += page.eval_on_selector_all(
            "tr[data-study]",
            "rows => rows.map(row => [row.dataset.study, row.querySelector('.due time').dateTime, row.innerText])",
        )
        following = page.get_by_role("link", name="Next", exact=True)
        if not following.count():
            return rows
        page.goto(system.api_url + str(following.get_attribute("href")))


def test_who_is_not_logged_in_is_sent_to_the_login_and_back(page: Page, system: Any, studies: dict[str, str]) -> None:
    """Nothing is shown without a key, and the way that was wanted is kept."""
    open_study(page, system, studies["01-hand"])
    expect(page).to_have_url(re.compile("/login\\?next="))
    page.get_by_label("Your key").fill(system.keys["radiologist"])
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{system.api_url}/view/{studies['01-hand']}")


@pytest.mark.parametrize("target", ["//evil.example/", "https://evil.example/", "/\\evil.example", "/%09/evil.example"])
def test_login_leads_nowhere_else(page: Page, system: Any, target: str) -> None:
    """A prepared link cannot use the login to send a reader to another site."""
    page.goto(f"{system.api_url}/login?next={target}")
    page.get_by_label("Your key").fill(system.keys["radiologist"])
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{system.api_url}/")


def test_wrong_key_is_refused_in_words(page: Page, system: Any) -> None:
    """A key that does not exist brings 401 and says so."""
    with page.expect_response(lambda response: response.request.method == "POST") as response:
        log_in(page, system, "osk_wrong")
    assert response.value.status == 401
    expect(page.get_by_role("alert")).to_contain_text("This key is not valid")


def test_submitter_gets_the_page_to_send_and_no_other(page: Page, system: Any) -> None:
    """A key that only sends may not see patients: what a reader's page answers it, tests/browser/test_send_page.py asks."""
    log_in(page, system, system.keys["submitter"])
    expect(page).to_have_url(f"{system.api_url}/send")
    expect(page.get_by_label("Pages").get_by_role("link")).to_have_count(1)


def test_login_and_logout(reader: Page, system: Any) -> None:
    """After the logout the browser's cookie opens nothing."""
    expect(reader.get_by_role("heading", name="Worklist")).to_be_visible()
    expect(reader.get_by_role("banner")).to_contain_text("radiologist")
    expect(reader.get_by_role("complementary", name="Research use")).to_contain_text(
        "Research use only, not for clinical decisions"
    )
    log_out(reader)
    expect(reader).to_have_url(re.compile("/login"))
    reader.goto(system.api_url)
    expect(reader).to_have_url(re.compile("/login"))


def test_worklist_shows_most_urgent_first(reader: Page, system: Any, studies: dict[str, str]) -> None:
    """Every submitted study stands in the list, by due time, with its finding in words."""
    rows = all_rows(reader, system)
    assert set(studies.values()) <= {study for study, _, _ in rows}
    minutes = [due[:16] for _, due, _ in rows]  # within one the score decides
    assert minutes == sorted(minutes)
    for study, _, text in rows:
        if study in studies.values():
            assert FINDINGS.search(text), text


def test_times_are_in_the_zone_of_the_reader(reader: Page, studies: dict[str, str]) -> None:
    """The server speaks UTC; the browser shows its own zone and says which."""
    reader.reload()
    expect(reader.locator("#zone")).to_contain_text(re.compile("Kathmandu|Katmandu"))
    due, shown = reader.locator(".due time").first.evaluate("time => [time.dateTime, time.innerText]")
    assert "UTC" not in shown
    assert shown.endswith(f"{datetime.fromisoformat(due).astimezone(ZoneInfo('Asia/Kathmandu')):%H:%M}")


def test_filter_keeps_what_it_says(reader: Page, studies: dict[str, str], system: Any) -> None:
    """After filtering by priority only such studies remain, and the chip shows the choice."""
    reader.goto(system.api_url)
    reader.locator(".chip summary", has_text="Priority").click()
    reader.get_by_role("link", name="urgent", exact=True).click()
    expect(reader).to_have_url(re.compile("priority=urgent"))
    expect(reader.locator(".chip.set summary")).to_have_text("Priority: urgent")
    words = reader.locator("td.priority").all_inner_texts()
    assert words
    assert set(words) == {"urgent"}
    reader.get_by_role("link", name="Remove the filter Priority").click()
    expect(reader).to_have_url(f"{system.api_url}/")


def test_worklist_refreshes_in_place(reader: Page, system: Any, studies: dict[str, str], tmp_path: Path) -> None:
    """A new study is told of without a reload, and appears when asked for, without taking the reader's focus away."""
    link = f"a.open[href='/view/{studies['script']}']"
    reader.goto(f"{system.api_url}/?priority=urgent")
    reader.locator(link).focus()
    reader.evaluate("window.same = true")
    receipt = system.submit([forged(tmp_path / "late.dcm", "LATE^LISA")], priority="urgent")
    call(reader, "worklist.js", "it.refresh()")
    expect(reader.locator("#fresh")).to_have_text("1 new: show")
    reader.keyboard.press("n")
    expect(reader.locator(f"tr[data-study='{receipt['studies'][0]['id']}']")).to_contain_text("LATE, LISA")
    assert reader.evaluate("window.same")
    expect(reader.locator(link)).to_be_focused()
    expect(reader.locator("#updated")).to_have_text(re.compile("[Uu]pdated "))


def test_unchanged_worklist_is_not_sent_again(reader: Page, system: Any, studies: dict[str, str]) -> None:
    """A refresh that shows nothing new is answered 304, so it reads nobody's identity."""
    system.wait(list(studies.values()), 180)
    ask = """fetch(location.href, {headers: {Accept: "text/html",
        "If-None-Match": document.getElementById("list").dataset.version}}).then(response => response.status)"""
    reader.goto(f"{system.api_url}/?status=quarantined&priority=backlog")
    assert reader.evaluate(ask) in (200, 304)  # 200 if a count changed in between
    reader.wait_for_function(
        f"async () => (await (await import('{STATIC}/worklist.js')).refresh(), (await {ask}) === 304)"
    )


def test_study_opens_by_key(reader: Page, system: Any, studies: dict[str, str]) -> None:
    """The worklist can be walked and opened without a mouse."""
    reader.goto(system.api_url)
    first = reader.locator("a.open").first.get_attribute("href")
    reader.keyboard.press("j")
    reader.keyboard.press("Enter")
    expect(reader).to_have_url(f"{system.api_url}{first}")
    # left before its claim arrives, the page would keep the study from the next test for a lease's time
    expect(reader.get_by_role("region", name="Who reads this study")).to_contain_text("You read this study")


def test_study_shows_radiograph_and_words(reader: Page, system: Any, studies: dict[str, str]) -> None:
    """The preview is there at once, the worker's full-resolution frame after it, beside the model's words. See test_viewer.py."""
    open_study(reader, system, studies["01-hand"])
    expect(reader.get_by_role("heading", name="SAMPLE, ADA")).to_be_visible()
    expect(reader.locator("#stage")).to_have_attribute(
        "data-shown", re.compile("^[12]/1/(preview|full-resolution frame)$")
    )
    expect(reader.locator(".pane.active .quality")).to_have_text(re.compile("^full-resolution frame"))
    assert reader.locator(".thumb").count() == len(list((SAMPLES / "studies" / "01-hand").glob("*.dcm")))
    expect(reader.locator(".finding:visible")).to_contain_text(FINDINGS)
    expect(reader.get_by_role("img", name=re.compile("unclear from .*, positive from"))).to_be_visible()
    expect(reader.get_by_role("img", name=re.compile("Radiograph, .* The model says: positive")).first).to_be_visible()
    expect(reader.locator(".lines .outline")).to_have_count(0)
    reader.keyboard.press("t")
    expect(reader.locator(".pane.active .outline.specific")).to_have_count(1)


def test_name_is_shown_as_text(reader: Page, system: Any, studies: dict[str, str]) -> None:
    """A patient name that is a script is read, not run, on both pages."""
    open_study(reader, system, studies["script"])
    expect(reader.get_by_role("heading", level=1)).to_have_text(SCRIPT)
    assert any(SCRIPT in text for _, _, text in all_rows(reader, system))


@pytest.mark.parametrize("width", [pytest.param(820, marks=pytest.mark.slow), 480])
def test_nothing_hangs_over_the_edge(reader: Page, system: Any, studies: dict[str, str], width: int) -> None:
    """On a tablet, and on a telephone, no page needs to be scrolled sideways."""
    reader.set_viewport_size({"width": width, "height": 1180})
    for path in ("/", f"/view/{studies['01-hand']}", f"/view/{studies['24-leg']}"):
        reader.goto(system.api_url + path)
        assert reader.evaluate("document.documentElement.scrollWidth") <= width
