"""Done, next study, as a reader meets it: the question, the toast with Undo, feedback by one key, the readers' headline."""

import os
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from playwright.sync_api import Locator, Page, expect

from shared.db.tables import StudyRow
from shared.domain.findings import Assessment
from tests.browser.test_feedback_panel import add, feedback_log, grave, row, view
from tests.browsing import needs_chromium
from tests.feedback_data import analyse

SIZES = {"1920": (1920, 1080), "1024": (1024, 768), "390": (390, 844)}

pytestmark = needs_chromium


@pytest.fixture
def study(in_process: Any) -> str:
    """Two positive images."""
    return add(in_process, 1, images=2)


def shoot(page: Page, name: str) -> None:
    """Screenshots for people to look at in three sizes, where OSTEON_SHOTS names a folder; nothing hangs over the edge."""
    before = page.viewport_size
    for size, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, size)
        if "OSTEON_SHOTS" in os.environ:
            page.screenshot(path=Path(os.environ["OSTEON_SHOTS"]) / f"{name}-{size}.png")
    if before:
        page.set_viewport_size(before)


def verdicts(api: Any) -> list[str]:
    return [entry.verdict for entry in feedback_log(api)]


def is_read(api: Any, study: str) -> bool:
    with api.database.transaction() as session:
        return session.get_one(StudyRow, UUID(study)).read_at is not None


def question(page: Page) -> Locator:
    return page.get_by_role("dialog", name=re.compile("no feedback"))


def toast(page: Page) -> Locator:
    return page.get_by_role("region", name="The study before")


def test_the_question_by_keyboard(reader: Page, in_process: Any, study: str) -> None:
    """n and Enter ask; the focus stays inside; Escape goes back; a agrees with all, the next study opens, z undoes."""
    other = add(in_process, 2, assessment=Assessment.NEGATIVE)
    view(reader, study)
    reader.keyboard.press("n")
    reader.keyboard.press("Enter")
    expect(question(reader)).to_have_accessible_name("2 positive images have no feedback")
    expect(question(reader).get_by_role("listitem")).to_have_count(2)
    expect(reader.locator("#ask-back")).to_be_focused()
    assert grave(reader) == []
    shoot(reader, "question")
    for name in ("ask-agree", "ask-leave", "ask-back", "ask-agree"):
        reader.keyboard.press("Tab")
        expect(reader.locator(f"#{name}")).to_be_focused()
    reader.keyboard.press("Shift+Tab")
    expect(reader.locator("#ask-back")).to_be_focused()
    for key in ("h", "d", "s", "?", "]"):  # the page below is covered
        reader.keyboard.press(key)
    expect(question(reader)).to_be_visible()
    reader.keyboard.press("Escape")
    expect(question(reader)).to_be_hidden()
    expect(reader.locator("#done")).to_be_focused()
    assert (verdicts(in_process), is_read(in_process, study)) == ([], False)

    reader.keyboard.press("Enter")
    expect(question(reader)).to_be_visible()
    reader.keyboard.press("a")
    expect(reader).to_have_url(re.compile(f"/view/{other}$"))
    expect(toast(reader)).to_contain_text("The study is marked as read, and you agreed with 2 findings.")
    assert (verdicts(in_process), is_read(in_process, study)) == (["agree", "agree", "done"], True)
    assert grave(reader) == []
    shoot(reader, "toast")
    reader.keyboard.press("z")
    expect(reader).to_have_url(re.compile(f"/view/{study}$"))
    expect(reader.locator("#reply-state")).to_have_text("2 of 2 without your feedback.")
    expect(reader.locator("#lock")).to_contain_text("You read this study")
    expect(toast(reader)).to_have_count(0)
    assert not is_read(in_process, study)
    assert verdicts(in_process)[3:] == ["withdrawn", "withdrawn", "reopened"]


@pytest.mark.slow
def test_the_question_by_pointer(reader: Page, in_process: Any, study: str) -> None:
    """A click asks, Back closes, and without a next study the worklist offers Undo."""
    view(reader, study)
    row(reader, 1).locator("[data-verdict=agree]").click()
    expect(reader.locator("#reply-state")).to_have_text("1 of 2 without your feedback.")
    reader.locator("#done").click()
    expect(question(reader)).to_have_accessible_name("1 positive image has no feedback")
    question(reader).get_by_role("button", name="Back to the study").click()
    expect(question(reader)).to_be_hidden()
    expect(reader.locator(".reply-row.current")).to_have_attribute("data-image", "2")
    reader.locator("#done").click()
    question(reader).get_by_role("button", name="Mark as read without feedback").click()
    expect(reader.get_by_role("heading", name="Worklist")).to_be_visible()
    expect(toast(reader)).to_contain_text("The study is marked as read.")
    assert verdicts(in_process) == ["agree", "done"]
    toast(reader).get_by_role("button", name="Undo").click()
    expect(reader).to_have_url(re.compile(f"/view/{study}$"))
    assert (verdicts(in_process), is_read(in_process, study)) == (["agree", "done", "reopened"], False)


@pytest.mark.slow
def test_pressed_twice_nothing_is_skipped(reader: Page, in_process: Any, study: str) -> None:
    """A second stroke, a key that is held, and a double click land on Back at worst: nothing is written."""
    view(reader, study)
    for _ in range(2):
        reader.locator("#done").focus()
        reader.keyboard.press("Enter")
        expect(question(reader)).to_be_visible()
        reader.keyboard.press("Enter")
        expect(question(reader)).to_be_hidden()
    reader.locator("#done").focus()
    for _ in range(5):
        reader.keyboard.down("Enter")
    reader.keyboard.up("Enter")
    expect(question(reader)).to_be_visible()
    reader.keyboard.press("Escape")
    reader.locator("#done").dblclick()
    expect(question(reader)).to_be_visible()
    assert (verdicts(in_process), is_read(in_process, study)) == ([], False)


@pytest.mark.slow
def test_without_open_positives_done_does_not_ask(reader: Page, in_process: Any) -> None:
    """An unclear study is done at once, and twice pressed it is done once."""
    study = add(in_process, 1, assessment=Assessment.UNCLEAR)
    view(reader, study)
    reader.locator("#done").dblclick()
    expect(reader.get_by_role("heading", name="Worklist")).to_be_visible()
    assert verdicts(in_process) == ["done"]


@pytest.mark.slow
def test_the_toast_ends_by_itself(reader: Page, in_process: Any, study: str) -> None:
    """Its time goes on when the page is loaded again, then it is gone, z does nothing, and the study stays read."""
    view(reader, study)
    reader.locator("#done").click()
    reader.keyboard.press("r")
    expect(toast(reader)).to_be_visible()
    left = "JSON.parse(sessionStorage.getItem('done')).left"
    assert 0 < reader.evaluate(left) <= 10_000
    reader.evaluate("""sessionStorage.setItem('done', JSON.stringify({ ...JSON.parse(sessionStorage.getItem('done')), left: 400 }));
        location.reload()""")
    reader.wait_for_function("() => sessionStorage.getItem('done') === null")  # the new page, and its time is over
    expect(toast(reader)).to_have_count(0)
    reader.keyboard.press("z")
    reader.reload()
    expect(toast(reader)).to_have_count(0)
    assert (verdicts(in_process), is_read(in_process, study)) == (["done"], True)


def test_undo_says_who_has_it_now(reader: Page, in_process: Any, study: str) -> None:
    """Somebody took the study meanwhile: it is back on the list, not the reader's, and that is said in words."""
    view(reader, study)
    reader.locator("#done").click()
    reader.keyboard.press("r")
    expect(toast(reader)).to_be_visible()
    toast(reader).get_by_role("button").focus()  # it waits for who is in it
    taken = in_process.http.post(f"/api/v1/studies/{study}/lock", headers=in_process.headers("admin"))
    assert taken.json()["mine"]
    reader.keyboard.press("Enter")
    expect(toast(reader)).to_contain_text("The study is back on the list, but not yours: admin reads it now.")
    assert grave(reader) == []
    shoot(reader, "undo-taken")
    assert not is_read(in_process, study)
    toast(reader).get_by_role("button", name="Close").click()
    expect(toast(reader)).to_have_count(0)


def test_a_finding_that_came_meanwhile_is_asked_about(reader: Page, in_process: Any) -> None:
    """Between page load and Done another model found a fracture: nobody agrees unseen; l loads the page with it."""
    study = add(in_process, 1, assessment=Assessment.NEGATIVE)
    view(reader, study)
    analyse(in_process, study, "second")
    reader.locator("#done").click()
    expect(question(reader)).to_contain_text("second has found this since you opened the page")
    expect(reader.locator("#ask-agree")).to_be_hidden()
    reader.keyboard.press("a")
    expect(question(reader)).to_be_visible()
    reader.evaluate("window.same = true")
    reader.keyboard.press("l")
    reader.wait_for_function("() => !window.same")
    expect(reader.locator("#reply-state")).to_have_text("1 of 1 without your feedback.")
    assert verdicts(in_process) == []
    reader.locator("#done").click()
    reader.keyboard.press("a")
    expect(toast(reader)).to_be_visible()
    assert [entry.bundle for entry in feedback_log(in_process)] == ["second", None]


@pytest.mark.slow
def test_two_tabs_do_not_skip_it(reader: Page, in_process: Any, study: str) -> None:
    """The other tab answered one image: this one asks by what it shows, and writes only what is not answered."""
    view(reader, study)
    tab = reader.context.new_page()
    view(tab, study)
    row(tab, 1).get_by_role("button", name="Disagree").click()
    expect(tab.locator("#reply-state")).to_have_text("1 of 2 without your feedback.")
    reader.bring_to_front()
    reader.locator("#done").click()
    reader.keyboard.press("a")
    expect(reader.get_by_role("heading", name="Worklist")).to_be_visible()
    assert verdicts(in_process) == ["disagree", "agree", "done"]
    tab.locator("#done").click()
    tab.keyboard.press("r")
    expect(tab.get_by_role("heading", name="Worklist")).to_be_visible()
    assert verdicts(in_process) == ["disagree", "agree", "done"]


def test_a_contradiction_is_asked_about(reader: Page, in_process: Any, study: str) -> None:
    """No fracture and a box: Escape goes back to the words, f says that there is one, s stores it as it is."""
    view(reader, study)
    reader.keyboard.press("d")
    expect(row(reader, 1).locator("[data-verdict=disagree]")).to_have_attribute("aria-pressed", "true")
    for key in ("f", "s"):
        row(reader, 1).locator("[data-verdict=disagree]").click()
        expect(reader.locator("#reply-form")).to_be_visible()
        reader.get_by_label("I see a fracture").select_option("no")
        if key == "f":
            detail = "{image: 1, frame: 1, x: 0.25, y: 0.125, width: 0.5, height: 0.25}"
            reader.evaluate(f"document.dispatchEvent(new CustomEvent('osteon:mark', {{detail: {detail}}}))")
        reader.get_by_role("button", name="Store", exact=True).click()
        doubt = reader.get_by_role("dialog", name="This feedback contradicts itself")
        expect(doubt).to_contain_text("It says that there is no fracture, and a box is drawn.")
        expect(reader.locator("#doubt-back")).to_be_focused()
        if key == "f":
            assert grave(reader) == []
            shoot(reader, "contradiction")
        reader.keyboard.press("Escape")
        expect(reader.locator("#marks")).to_have_text("1 mark")
        reader.get_by_role("button", name="Store", exact=True).click()
        expect(doubt).to_be_visible()
        reader.keyboard.press(key)
        expect(reader.locator("#reply-form")).to_be_hidden()
    found = [(entry.fracture, len(entry.marks)) for entry in feedback_log(in_process)]
    assert found == [("no", 0), ("yes", 1), ("no", 1)]


def test_feedback_by_one_key_can_be_taken_back(reader: Page, in_process: Any, study: str) -> None:
    """A letter hit by mistake is feedback that the reader sees, changes by another key, or takes back."""
    view(reader, study)
    reader.keyboard.press("a")
    expect(reader.locator("#reply-state")).to_have_text("1 of 2 without your feedback.")
    row(reader, 1).get_by_role("button", name="Take back").click()
    expect(reader.locator("#reply-state")).to_have_text("2 of 2 without your feedback.")
    expect(row(reader, 1).locator("[data-verdict=agree]")).to_have_attribute("aria-pressed", "false")
    assert verdicts(in_process) == ["agree", "withdrawn"]


@pytest.mark.slow
def test_the_readers_word_heads_the_page(reader: Page, in_process: Any) -> None:
    """After a disagreement the headline is the reader's, with the model's beside it, at once and after a reload."""
    study = add(in_process, 1)
    view(reader, study)
    expect(reader.locator("#readers-summary")).to_be_hidden()
    reader.keyboard.press("d")
    expect(reader.locator("#readers-summary")).to_have_text("No fracture, hand, says radiologist.")
    expect(reader.locator("#model-word .whose")).to_be_visible()
    assert grave(reader) == []
    shoot(reader, "headline")
    reader.reload()
    expect(reader.locator("#readers-summary")).to_have_text("No fracture, hand, says radiologist.")
    reader.goto(f"/view/{study}/report")
    expect(reader.locator(".headline")).to_contain_text("No fracture, hand, says radiologist.")
    expect(reader.locator(".beside")).to_contain_text("Model: ")
    shoot(reader, "report")
