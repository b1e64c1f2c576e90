"""Readers who give feedback, look at agreement, and print reports: a real browser against a real server."""

import io
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect
from sqlalchemy import insert, select

from shared.db.clock import db_now
from shared.db.tables import FeedbackRow, FindingRow, InstanceRow, StudyRow
from shared.domain.feedback import GENESIS, Entry
from shared.domain.findings import RESEARCH_USE, Assessment
from shared.domain.security import Role
from shared.queries.access import add_key, find_key
from shared.storage import preview_key, sha256_of
from tests.browsing import call, log_in, needs_chromium
from tests.feedback_data import analyse, study_file

SCRIPT = "<img src=x onerror=alert(1)>"

pytestmark = needs_chromium


def add(api: Any, number: int, images: int = 1, assessment: Assessment = Assessment.POSITIVE) -> str:
    """An analysed study with pictures."""
    contents = [study_file(number, image, 160, 120) for image in range(1, images + 1)]
    study: str = api.post({f"{n}": content for n, content in enumerate(contents)}).json()["studies"][0]["id"]
    analyse(api, study, assessment=assessment)
    out = io.BytesIO()
    Image.radial_gradient("L").resize((120, 160)).save(out, "JPEG")
    for content in contents:
        store = api.http.app.state.parts.store
        store.put(preview_key(sha256_of(content), 1), io.BytesIO(out.getvalue()), out.getbuffer().nbytes)
    return study


@pytest.fixture
def study(in_process: Any) -> str:
    return add(in_process, 1, images=2)


def feedback_log(api: Any) -> list[FeedbackRow]:
    with api.database.transaction() as session:
        return list(session.scalars(select(FeedbackRow).order_by(FeedbackRow.number)))


def view(page: Page, study: str, fragment: str = "") -> None:
    page.goto(f"/view/{study}{fragment}")
    expect(page.locator("#reply-state")).not_to_have_text("Feedback is being fetched.")


def shoot(page: Page, name: str, tmp_path: Path) -> None:
    """A screenshot for people to look at, where OSTEON_SHOTS names a folder for it."""
    if "OSTEON_SHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["OSTEON_SHOTS"]) / f"{name}.png", full_page=True)


def grave(page: Page) -> list[str]:
    """What axe finds serious or critical."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


def row(page: Page, image: int) -> Any:
    return page.get_by_role("group", name=f"Feedback on image {image}")


def test_agree_by_click_and_by_key(reader: Page, in_process: Any, study: str, tmp_path: Path) -> None:
    """One click agrees, and so does one key with the next finding; the history says who and when, in the reader's zone."""
    view(reader, study)
    expect(reader.locator("#reply-state")).to_have_text("2 of 2 without your feedback.")
    row(reader, 1).get_by_role("button", name="Agree", exact=False).first.click()
    expect(reader.locator("#reply-state")).to_have_text("1 of 2 without your feedback.")
    reader.keyboard.press("a")
    expect(reader.locator("#reply-state")).to_have_text("All findings have your feedback.")
    reader.locator("#history summary").click()
    expect(reader.locator("#entries li")).to_have_count(2)
    expect(reader.locator("#entries li").first).to_contain_text("radiologist agrees on image 1")
    assert "UTC" not in reader.locator("#entries time").first.inner_text()
    assert [entry.verdict for entry in feedback_log(in_process)] == ["agree", "agree"]
    shoot(reader, "panel-agreed", tmp_path)
    assert grave(reader) == []


def test_disagree_with_words_choice_and_mark(reader: Page, in_process: Any, study: str, tmp_path: Path) -> None:
    """d disagrees at once, and again opens the form; what is typed, chosen and marked is stored, and shown as text."""
    view(reader, study)
    reader.evaluate("""() => {
        window.started = 0; window.shown = null;
        document.addEventListener("osteon:mark-start", () => { window.started += 1; });
        document.addEventListener("osteon:marks", (event) => { window.shown = event.detail.marks; });
    }""")
    reader.keyboard.press("d")
    expect(reader.locator("#reply-state")).to_have_text("1 of 2 without your feedback.")
    (at_once,) = feedback_log(in_process)
    assert (at_once.verdict, at_once.fracture) == ("disagree", "no")
    reader.keyboard.press("d")
    expect(reader.get_by_role("heading", name="Disagree with image 1, corrected")).to_be_visible()
    expect(reader.get_by_label("I see a fracture")).to_have_value("no")
    reader.get_by_label("I see a fracture").select_option("unsure")
    reader.get_by_label("Region").last.select_option("leg")
    reader.keyboard.press("Tab")
    reader.get_by_label("In words").fill("hidas 0+- " + SCRIPT)
    reader.get_by_role("button", name="Mark where").click()
    assert reader.evaluate("window.started") == 1
    mark = "{detail: {image: 1, frame: 1, x: 0.25, y: 0.125, width: 0.5, height: 0.25}}"
    reader.evaluate(f"document.dispatchEvent(new CustomEvent('osteon:mark', {mark}))")
    expect(reader.locator("#marks")).to_have_text("1 mark")
    shoot(reader, "panel-form", tmp_path)
    assert grave(reader) == []
    reader.get_by_role("button", name="Store", exact=True).click()
    expect(reader.locator("#reply-form")).to_be_hidden()
    reader.locator("#history summary").click()
    expect(reader.locator("#entries .said")).to_have_text("hidas 0+- " + SCRIPT)
    first, entry = feedback_log(in_process)
    assert (entry.verdict, entry.fracture, entry.region, entry.marks[0]["width"]) == ("disagree", "unsure", "leg", 0.5)
    assert [one["x"] for one in reader.evaluate("window.shown")] == [0.25]
    shoot(reader, "panel-history", tmp_path)
    reader.get_by_role("button", name=re.compile("^Correct: disagrees on image 1")).click()
    expect(reader.get_by_label("In words")).to_have_value("hidas 0+- " + SCRIPT)
    expect(reader.locator("#marks")).to_have_text("1 mark")
    reader.get_by_label("In words").fill("an old break")
    reader.get_by_role("button", name="Store", exact=True).click()
    expect(reader.locator("#entries .past .said")).to_have_text("hidas 0+- " + SCRIPT)
    expect(reader.locator("#entries li:not(.past) .said")).to_have_text("an old break")
    assert [one.supersedes for one in feedback_log(in_process)] == [None, first.id, entry.id]


def test_typing_is_not_taken_for_the_pages_keys(reader: Page, study: str) -> None:
    """While words are typed, letters neither invert the image nor open another choice."""
    view(reader, study)
    reader.keyboard.press("s")
    reader.keyboard.type("hands, said a dad")
    expect(reader.get_by_label("In words")).to_have_value("hands, said a dad")
    expect(reader.get_by_role("heading", name="Supplement to image 1")).to_be_visible()
    expect(reader.locator("#invert")).to_have_attribute("aria-pressed", "false")


@pytest.mark.slow
def test_nothing_typed_is_lost(reader: Page, in_process: Any, study: str, tmp_path: Path) -> None:
    """The server fails, the page is loaded again: words, choices and marks are there, and stored once it answers."""
    view(reader, study)
    reader.keyboard.press("s")
    reader.get_by_label("In words").fill("a second line below")
    lost: list[str] = []

    def fail(route: Route) -> None:
        if route.request.method == "POST" and not lost:
            route.fetch()  # it is stored, but the response gets lost on its way
            lost.append(str(route.request.headers["idempotency-key"]))
            route.abort()
        else:
            route.continue_()

    reader.route("**/feedback*", fail)
    reader.get_by_role("button", name="Store", exact=True).click()
    expect(reader.get_by_role("alert").filter(has_text="Not stored: the server does not answer.")).to_be_visible()
    shoot(reader, "panel-error", tmp_path)
    reader.reload()
    expect(reader.get_by_label("In words")).to_have_value("a second line below")
    reader.get_by_role("button", name="Store", exact=True).click()
    expect(reader.locator("#reply-form")).to_be_hidden()
    assert len(feedback_log(in_process)) == 1
    reader.reload()
    expect(reader.locator("#history")).to_be_visible()
    expect(reader.locator("#reply-form")).to_be_hidden()


def test_a_newer_finding_is_told(reader: Page, in_process: Any, study: str) -> None:
    """When another bundle's finding came meanwhile, the reader hears of it and may give feedback on the older one all the same."""
    view(reader, study)
    analyse(in_process, study, "second")
    reader.keyboard.press("s")
    reader.get_by_label("In words").fill("about what I saw")
    reader.get_by_role("button", name="Store", exact=True).click()
    expect(reader.locator("#reply-wrong")).to_contain_text("Meanwhile the finding of second is shown here")
    reader.get_by_role("button", name="Store for the older finding").click()
    expect(reader.locator("#reply-form")).to_be_hidden()
    assert [entry.bundle for entry in feedback_log(in_process)] == ["first"]


@pytest.mark.parametrize("verdict", ["agree", "disagree"])
def test_the_worklists_keys_lead_to_the_control(reader: Page, in_process: Any, study: str, verdict: str) -> None:
    """#agree and #disagree put the focus on that button, and write nothing."""
    view(reader, study, f"#{verdict}")
    expect(row(reader, 1).locator(f"[data-verdict={verdict}]")).to_be_focused()
    assert feedback_log(in_process) == []


def test_done_leads_to_the_next_study_and_can_be_undone(reader: Page, in_process: Any, study: str) -> None:
    """Done marks the study read and opens the next unread one, loaded ahead; back there, Reopen takes it back."""
    other = add(in_process, 2)
    with reader.expect_response(re.compile(f"/studies/{other}/preview.jpg")) as ahead:
        view(reader, study)
    assert ahead.value.ok
    reader.get_by_role("button", name="Done, next study").click()
    reader.get_by_role("button", name="Mark as read without feedback").click()
    expect(reader).to_have_url(re.compile(f"/view/{other}$"))
    expect(reader.locator("#done")).to_have_text("Done")
    view(reader, study)
    expect(reader.locator("#reply-state")).to_have_text("This study is marked as read.")
    reader.get_by_role("button", name="Reopen").click()
    expect(reader.get_by_role("button", name="Reopen")).to_be_hidden()
    with in_process.database.transaction() as session:
        assert session.get_one(StudyRow, UUID(study)).read_at is None
    assert [entry.verdict for entry in feedback_log(in_process)] == ["done", "reopened"]


def fill_feedback(api: Any, study: str, course: list[bool]) -> None:
    """Answers to one finding over weeks, each of another reader: of one reader only the last verdict counts."""
    with api.database.transaction() as session:
        instance = session.scalars(select(InstanceRow).where(InstanceRow.study_id == UUID(study))).first()
        assert instance is not None
        key, now, previous = api.key("radiologist"), db_now(session), GENESIS
        for number, agrees in enumerate(course, start=1):
            add_key(session, "default", f"reader {number}", Role.RADIOLOGIST, f"osk_reader_{number}")
            reader = find_key(session, f"osk_reader_{number}")
            assert reader is not None
            entry = Entry(
                uuid4(), key.site_id, number, UUID(study), reader.id, now - timedelta(hours=6 * (len(course) - number)),
                f"r{number}", "agree" if agrees else "disagree", instance.id, 1, "first", None if agrees else "no", None,
                None, [], None, True, None,
            )  # fmt: skip
            digest = entry.hash(previous)
            session.execute(insert(FeedbackRow).values(**vars(entry), previous_hash=previous, hash=digest))
            previous = digest
        assert session.scalars(select(FindingRow)).first() is not None


@pytest.mark.slow
def test_agreement_shows_rates_and_alarms(reader: Page, in_process: Any, study: str, tmp_path: Path) -> None:
    """The page is found from the navigation; a fall of agreement alarms in words, in the chart, and for scripts."""
    fill_feedback(in_process, study, [n % 10 > 0 for n in range(1, 140)] + [n % 2 > 0 for n in range(60)])
    reader.goto("/")
    reader.get_by_role("link", name="Agreement").click()
    expect(reader.get_by_role("heading", name="Agreement of readers with the model")).to_be_visible()
    expect(reader.get_by_role("alert").nth(0)).to_contain_text("Drift: first, region hand.")
    expect(reader.get_by_role("alert").nth(1)).to_contain_text("Drift: first, scanner Osteon samples")
    expect(reader.get_by_role("img", name=re.compile("Agreement by week"))).to_be_visible()
    expect(reader.get_by_role("row", name=re.compile("^model says fracture"))).to_contain_text("of 199")
    hands = reader.get_by_role("table").filter(has_text="Region").get_by_role("img", name=re.compile("^hand by week"))
    expect(hands).to_have_accessible_name(re.compile(r"first [0-9]+\s%, last [0-9]+\s%, [0-9]+ weeks with verdicts"))
    expect(reader.get_by_role("main")).not_to_contain_text("radiologist")
    shoot(reader, "agreement", tmp_path)
    assert grave(reader) == []
    response = in_process.http.get("/api/v1/agreement", headers=in_process.headers("radiologist")).json()
    assert [(one["by"], one["alarm"]) for one in response["drift"]] == [("region", True), ("scanner", True)]
    for width in (820, 480):
        reader.set_viewport_size({"width": width, "height": 1000})
        assert reader.evaluate("document.documentElement.scrollWidth") <= width


def test_agreement_of_few_says_so(reader: Page, in_process: Any, study: str) -> None:
    """Without feedback, and with three, the page promises nothing."""
    reader.goto("/agreement")
    expect(reader.get_by_role("main")).to_contain_text("No reader gave a verdict in this time.")
    fill_feedback(in_process, study, [True, True, False])
    reader.reload()
    expect(reader.get_by_role("main")).to_contain_text("hardly more than an anecdote")
    expect(reader.get_by_role("main")).to_contain_text("too few to tell")
    assert grave(reader) == []


@pytest.mark.slow
def test_report_is_reached_and_prints_on_one_page(reader: Page, in_process: Any, study: str, tmp_path: Path) -> None:
    """From the study a reader gets to the report, its pictures load, the printed page is one, and the PDF is linked."""
    view(reader, study)
    row(reader, 1).get_by_role("button", name="Agree", exact=False).first.click()
    expect(reader.locator("#reply-state")).to_have_text("1 of 2 without your feedback.")
    reader.get_by_role("link", name="Report").click()
    expect(reader.get_by_role("heading", name="Osteon report")).to_be_visible()
    expect(reader.get_by_role("main")).to_contain_text("radiologist agrees on image 1")
    expect(reader.get_by_label("Research use")).to_contain_text(RESEARCH_USE)
    reader.wait_for_function("() => [...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert reader.locator(".radiographs img").count() == 2
    shoot(reader, "report", tmp_path)
    assert grave(reader) == []
    assert len(re.findall(rb"/Type\s*/Page\b", reader.pdf(format="A4", prefer_css_page_size=True))) == 1
    reader.set_viewport_size({"width": 480, "height": 1000})
    assert reader.evaluate("document.documentElement.scrollWidth") <= 480
    link = reader.get_by_role("link", name="PDF")
    response = reader.request.get(str(link.get_attribute("href")))
    assert response.body().startswith(b"%PDF")
    (tmp_path / "report.pdf").write_bytes(response.body())


@pytest.mark.parametrize("width", [pytest.param(820, marks=pytest.mark.slow), 480])
def test_the_panel_fits(reader: Page, study: str, width: int) -> None:
    """On a tablet and on a telephone the panel with its form open needs no scrolling sideways."""
    reader.set_viewport_size({"width": width, "height": 1180})
    view(reader, study)
    reader.keyboard.press("s")
    assert reader.evaluate("document.documentElement.scrollWidth") <= width


# -- feedback belongs to the radiograph on the screen -----------------------------------------------------------------------


def entries(api: Any, study: str) -> list[Any]:
    """The study's feedback log, as the API tells it."""
    found: list[Any] = api.http.get(f"/api/v1/studies/{study}/feedback", headers=api.headers("radiologist")).json()[
        "entries"
    ]
    return found


def shown(page: Page, image: int) -> None:
    """The radiograph of this image is on the screen, and its finding is the one that keys speak of."""
    expect(page.locator("#stage")).to_have_attribute("data-shown", re.compile(f"^{image}/1/"))
    expect(page.locator(".reply-row.current")).to_have_attribute("data-image", str(image))


@pytest.mark.slow
def test_keys_are_for_the_radiograph_that_is_shown(reader: Page, in_process: Any) -> None:
    """Leafing chooses the finding; feedback leads on to the next one's radiograph; a finding's row opens its radiograph."""
    study = add(in_process, 3, images=3)
    view(reader, study)
    first = int(str(reader.locator("#viewer").get_attribute("data-image")))
    shown(reader, first)
    for image in (2, 3):
        reader.keyboard.press("]")
        expect(reader.locator(".reply-row.current")).to_have_attribute("data-image", str(image))
    shown(reader, 3)
    reader.keyboard.press("a")
    expect(reader.locator("#reply-state")).to_have_text("2 of 3 without your feedback.")
    assert [entry["image"] for entry in entries(in_process, study)] == [3]
    shown(reader, 1)
    row(reader, 2).locator("[data-verdict=disagree]").focus()
    shown(reader, 2)
    reader.keyboard.press("d")
    expect(reader.locator("#reply-state")).to_have_text("1 of 3 without your feedback.")
    assert [(entry["image"], entry["verdict"]) for entry in entries(in_process, study)] == [
        (3, "agree"),
        (2, "disagree"),
    ]


def test_agreeing_again_writes_nothing(reader: Page, in_process: Any, study: str) -> None:
    """Enter held on Agree, and Agree pressed again, are one entry."""
    view(reader, study)
    agree = row(reader, 1).locator("[data-verdict=agree]")
    agree.focus()
    for _ in range(5):
        reader.keyboard.down("Enter")  # from the second on these are repeats
        reader.wait_for_timeout(80)
    reader.keyboard.up("Enter")
    expect(agree).to_have_attribute("aria-pressed", "true")
    agree.click()
    reader.wait_for_timeout(300)
    assert len(feedback_log(in_process)) == 1


def middle(page: Page) -> tuple[float, float]:
    box = page.locator(".pane.active").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_box_drawn_on_the_radiograph_is_stored(reader: Page, in_process: Any, study: str, tmp_path: Path) -> None:
    """From Mark where over a drag on the radiograph to the feedback log, nothing in between replaced."""
    view(reader, study)
    shown(reader, 1)
    reader.keyboard.press("s")
    reader.get_by_role("button", name="Mark where").click()
    x, y = middle(reader)
    reader.mouse.click(x, y)  # draws nothing
    expect(reader.locator("#stage")).to_have_class(re.compile("marking"))
    reader.mouse.move(x - 40, y - 30)
    reader.mouse.down()
    reader.mouse.move(x + 40, y + 30, steps=3)
    reader.mouse.up()
    expect(reader.locator("#marks")).to_have_text("1 mark")
    shoot(reader, "panel-marked", tmp_path)
    reader.get_by_role("button", name="Store", exact=True).click()
    expect(reader.locator("#reply-form")).to_be_hidden()
    ((mark,),) = [entry["marks"] for entry in entries(in_process, study)]
    assert (mark["image"], mark["frame"]) == (1, 1)
    assert (mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2) == pytest.approx((0.5, 0.5), abs=0.02)
    assert mark["width"] * 120 / (mark["height"] * 160) == pytest.approx(80 / 60, rel=0.05)


def test_no_begun_box_is_lost(reader: Page, in_process: Any, study: str) -> None:
    """Store takes a box that was moved by keys, tells of one that was only begun, and Cancel gives it up."""
    view(reader, study)
    shown(reader, 1)
    reader.keyboard.press("s")
    reader.get_by_role("button", name="Mark where").click()
    reader.get_by_role("button", name="Store", exact=True).click()
    expect(reader.locator("#reply-wrong")).to_contain_text("A box is begun on the radiograph")
    assert feedback_log(in_process) == []
    reader.get_by_role("button", name="Cancel").click()
    expect(reader.locator("#stage")).not_to_have_class(re.compile("marking"))
    expect(reader.locator(".lines .drawing")).to_have_count(0)
    reader.keyboard.press("s")
    reader.get_by_role("button", name="Mark where").click()
    reader.mouse.click(*middle(reader))
    reader.keyboard.press("ArrowRight")
    reader.get_by_role("button", name="Store", exact=True).click()
    expect(reader.locator("#reply-form")).to_be_hidden()
    ((mark,),) = [entry.marks for entry in feedback_log(in_process)]
    assert mark["width"] > 0.05
    assert mark["x"] + mark["width"] / 2 > 0.5


def test_a_box_on_another_radiograph_is_not_taken(reader: Page, study: str) -> None:
    """Mark where shows the feedback's radiograph; who leafs on and draws there is told."""
    view(reader, study)
    shown(reader, 1)
    reader.keyboard.press("s")
    reader.locator(".pane.active").focus()
    reader.keyboard.press("]")
    shown(reader, 2)
    reader.get_by_role("button", name="Mark where").click()
    shown(reader, 1)
    reader.keyboard.press("]")
    shown(reader, 2)
    reader.keyboard.press("Enter")
    expect(reader.locator("#reply-wrong")).to_contain_text("drawn on another radiograph")
    expect(reader.locator("#marks")).to_have_text("no mark yet")


@pytest.mark.slow
def test_help_and_the_keys_of_the_page(reader: Page, in_process: Any, study: str) -> None:
    """Help opens with and without radiographs; behind it no key acts; n leads to Done, u to the list."""
    view(reader, study)
    reader.keyboard.press("?")
    sheet = reader.get_by_role("dialog")
    for words in ("agree with the finding", "disagree with it", "done with this study", "back to the worklist"):
        expect(sheet).to_contain_text(words)
    for key in "dsan":
        reader.keyboard.press(key)
    expect(reader.locator("#reply-form")).to_be_hidden()
    reader.keyboard.press("Escape")
    reader.keyboard.press("n")
    expect(reader.locator("#done")).to_be_focused()
    waiting: str = in_process.post({"1": study_file(9)}).json()["studies"][0]["id"]
    view(reader, waiting)
    reader.keyboard.press("?")
    expect(sheet).to_be_visible()
    reader.keyboard.press("Escape")
    reader.keyboard.press("u")
    expect(reader).to_have_url(re.compile(r"/(\?.*)?$"))


@pytest.mark.slow
def test_a_refresh_waits_for_who_writes(reader: Page, in_process: Any, study: str) -> None:
    """News of a study neither take away words nor a box; they are told, and come once the reader is through."""
    with in_process.database.transaction() as session:
        session.get_one(StudyRow, UUID(study)).status = "queued"
    view(reader, study)
    reader.evaluate("window.same = true; main.dataset.version = 'an older one'")
    reader.keyboard.press("s")
    reader.get_by_label("In words").fill("a second line")
    call(reader, "study.js", "it.lookAgain()")
    expect(reader.get_by_role("alert").filter(has_text="This study has news")).to_be_visible()
    assert reader.evaluate("window.same")
    reader.get_by_role("button", name="Cancel").click()
    call(reader, "study.js", "void setTimeout(it.lookAgain)")
    reader.wait_for_function("() => !window.same")


@pytest.mark.slow
def test_a_draft_outlives_feedback_that_cannot_be_fetched(reader: Page, study: str) -> None:
    """The regions to choose from come with the feedback; without them the draft's own stays chosen."""
    view(reader, study)
    reader.keyboard.press("s")
    reader.get_by_label("Region").last.select_option("leg")
    reader.route("**/feedback*", lambda route: route.abort())
    reader.reload()
    expect(reader.locator("#reply-state")).to_have_text("Earlier feedback could not be fetched.")
    expect(reader.get_by_label("Region").last).to_have_value("leg")


def test_fingers_find_the_study_pages_controls(browser: Browser, in_process: Any, url: str, study: str) -> None:
    """On a touch screen every button, choice and slider of the study page is 44 px high at least."""
    context = browser.new_context(viewport={"width": 820, "height": 1180}, has_touch=True, is_mobile=True, base_url=url)
    page = context.new_page()
    log_in(context, url, in_process.keys["radiologist"])
    view(page, study)
    page.locator("[data-verdict=disagree]").first.click()
    small = page.evaluate("""[...document.querySelectorAll("button, .button, select, input, .navigation a")]
        .map(one => [one.id || one.textContent.trim(), one.getBoundingClientRect()])
        .filter(([, box]) => box.width && (box.height < 44 || box.width < 44)).map(([name]) => name)""")
    assert small == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 820
    context.close()
