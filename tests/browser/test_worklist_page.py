# ruff: noqa: RUF001 - names in five scripts
"""The worklist as a table one owns: at four sizes, sorted, filtered, saved, live; with names and words that are hard to show."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from sqlalchemy import text

from shared.domain.study import Identity
from tests.browsing import call, needs_chromium
from tests.integration.test_reading import add_studies

pytestmark = needs_chromium
SIZES = [(1920, 1080), (1440, 900), (1024, 768), (390, 844)]
LONG = "Unterschenkel und Sprunggelenk in zwei Ebenen nach Sturz auf der Treppe, Frage nach Fraktur, " * 3
NAMES = [
    "Müller-Lüdenscheidt-von-und-zu-Hohenstein^Maximilian Alexander Konstantin Ferdinand", "ИВАНОВА^АННА", "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "محمد^أحمد", "כהן^דוד", "SMITH^JOHN",
]  # fmt: skip


def studies(api: Any, count: int = 60, **changes: Any) -> list[UUID]:
    """Studies of every kind, each later than the one before, with a name and a description."""
    now = datetime.now(UTC)
    kinds: list[dict[str, Any]] = [
        {"assessment": "positive", "score": 9.1, "severity": "moderate"},
        {"assessment": "unclear", "score": 4.4, "severity": "mild"},
        {"assessment": "abstained", "score": 8.0, "severity": "none"},
        {"assessment": "negative", "score": 0.9, "severity": "none"},
        {"assessment": None, "status": "queued", "region": ""},
        {"assessment": "positive", "score": 7.2, "severity": "severe", "failed_images": 1, "images": 2},
    ]
    rows = [
        kinds[n % len(kinds)] | {
            "due_at": now + timedelta(minutes=n * 20 - 15), "received_at": now - timedelta(minutes=42), "age_years": n % 90,
            "sex": "F", "views": "AP, LL", "laterality": "R", "study_date": now.date(), "priority": "urgent" if n % 7 == 0 else "routine",
        } | changes
        for n in range(count)
    ]  # fmt: skip
    ids = add_studies(api, rows)
    told = {
        id_: Identity(NAMES[n % len(NAMES)], f"SAMPLE-{n:04}", accession_number=f"ACC-{n}", study_description=LONG[:200] if n % 5 == 0 else "Hand")
        for n, id_ in enumerate(ids)
    }  # fmt: skip
    with api.database.transaction() as session:
        api.http.app.state.parts.vault.store_identities(session, api.key().site_id, told)
    return ids


def started(page: Page) -> None:
    expect(page.locator("#updated")).to_contain_text("pdated")


def places(page: Page) -> dict[str, float]:
    found: dict[str, float] = page.eval_on_selector_all(
        "tr[data-study]",
        "rows => Object.fromEntries(rows.map(row => [row.dataset.study, row.getBoundingClientRect().top]))",
    )
    return found


def no_barriers(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []


@pytest.fixture
def page(reader: Page, in_process: Any) -> Page:
    studies(in_process)
    reader.goto("/")
    started(reader)
    return reader


def test_nothing_overflows_at_four_sizes(page: Page) -> None:
    """Long names, five scripts, right to left, 200 characters of description: every row is in the window, and 60 pixels high."""
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width
        over = page.eval_on_selector_all(
            "#list td, .list-foot, .tab, .chip, th",
            f"all => all.filter(one => one.getBoundingClientRect().right > {width} && !one.closest('.tabs, .filter-chips'))"
            ".map(one => one.outerHTML.slice(0, 200))",
        )  # fmt: skip
        assert over == [], (width, over[:3])
        if width > 860:
            heights = page.eval_on_selector_all("tr[data-study]", "rows => rows.map(row => row.offsetHeight)")
            assert set(heights) <= {60, 61}, heights
        no_barriers(page)
        page.locator(".chip summary", has_text="Columns").click()
        menu = page.locator("#columns .menu").bounding_box()
        assert menu
        assert menu["x"] >= 0
        assert menu["x"] + menu["width"] <= width
        page.keyboard.press("Escape")
        expect(page.locator("#columns .menu")).to_be_hidden()
    page.locator(".chip summary", has_text="Sort: Due ↑").click()  # on a phone, in place of the heads
    page.locator(".sort-chip").get_by_role("link", name="Patient").click()
    expect(page.locator(".sort-chip summary")).to_have_text("Sort: Patient ↑")


def test_the_list_is_filtered_sorted_laid_out_and_saved(page: Page) -> None:
    """By tabs, chips, heads and columns; each stands in the address or in this browser, and a view keeps them under a name."""
    expect(page.locator("#rows")).to_have_text("1 to 50 of 60")
    expect(page.locator("#paging .page-number")).to_have_text("page 1 of 2")
    page.get_by_role("link", name="unclear").click()
    expect(page.locator("#tabs [aria-current]")).to_have_text(re.compile(r"unclear\s*10"))
    expect(page.locator("tr[data-study]")).to_have_count(10)
    page.locator(".chip summary", has_text="Priority").click()
    page.get_by_role("link", name="urgent", exact=True).click()
    expect(page.locator(".chip.set summary")).to_have_text("Priority: urgent")
    page.get_by_role("columnheader", name="Patient").get_by_role("link").click()
    page.get_by_role("columnheader", name="Patient").get_by_role("link").click()
    expect(page.get_by_role("columnheader", name="Patient")).to_have_attribute("aria-sort", "descending")
    ages = [int(re.findall(r"(\d+) y", words)[0]) for words in page.locator("td.patient .more").all_inner_texts()]
    assert ages == sorted(ages, reverse=True)
    assert ages
    page.locator(".chip summary", has_text="Columns").click()
    page.get_by_role("checkbox", name="Examination").uncheck()
    page.get_by_role("checkbox", name="Accession").check()
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.get_by_role("columnheader", name="Accession")).to_be_visible()
    expect(page.get_by_role("columnheader", name="Examination")).to_have_count(0)
    page.get_by_role("button", name="Save this view").click()
    page.get_by_label("Name", exact=True).fill("Urgent ones")
    page.keyboard.press("Enter")
    view = page.get_by_role("link", name="Urgent ones")
    page.get_by_role("link", name="Remove the filter Priority").click()
    expect(page.locator("tr[data-study]")).to_have_count(10)
    page.get_by_role("button", name="Rename the view Urgent ones").click()
    page.get_by_label("Name", exact=True).fill("By age")
    page.keyboard.press("Enter")
    expect(view).to_have_count(0)
    view = page.get_by_role("link", name="By age")
    page.context.clear_cookies(name="worklist-columns")
    view.click()
    expect(page).to_have_url(re.compile(r"assessment=unclear&priority=urgent&sort=-age&columns="))
    expect(view).to_have_attribute("aria-current", "page")
    expect(page.get_by_role("columnheader", name="Accession")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert download.value.suggested_filename == "worklist.csv"
    page.get_by_role("button", name="Delete the view By age").click()
    expect(view).to_have_count(0)
    page.goto("/")
    page.get_by_role("link", name="Next").click()
    expect(page.locator("#rows")).to_have_text("51 to 60 of 60")
    page.get_by_role("link", name="Previous").click()
    expect(page.locator("#rows")).to_have_text("1 to 50 of 60")


def test_no_row_moves_under_the_pointer_or_the_focus(page: Page, in_process: Any) -> None:
    """New rows wait, rows that left are marked, and others are renewed in place, until the reader leaves the list or asks."""
    page.locator("#list tr[data-study]").nth(3).hover()
    before = places(page)
    first, second = list(before)[:2]
    new = studies(in_process, 2, due_at=datetime.now(UTC) - timedelta(hours=1), received_at=datetime.now(UTC))
    with in_process.database.transaction() as session:
        session.execute(text("UPDATE studies SET read_at = now() WHERE id = :id"), {"id": first})
        session.execute(text("UPDATE studies SET region = 'elbow' WHERE id = :id"), {"id": second})
    call(page, "worklist.js", "it.refresh()")
    expect(page.locator("#fresh")).to_have_text("2 new: show")
    expect(page.locator("#tabs [aria-current]")).to_have_text(re.compile(r"all unread\s*61"))
    assert places(page) == before
    expect(page.locator(f"tr[data-study='{first}']")).to_contain_text("no longer here")
    expect(page.locator(f"tr[data-study='{second}'] td.region")).to_have_text("elbow")
    page.locator("#words").hover()
    expect(page.locator(f"tr[data-study='{new[0]}']")).to_be_visible()
    expect(page.locator(f"tr[data-study='{first}']")).to_have_count(0)
    expect(page.locator("#fresh")).to_be_hidden()

    page.keyboard.press("j")
    page.keyboard.press("j")
    chosen = page.evaluate("document.activeElement.closest('tr').dataset.study")
    before = places(page)
    studies(in_process, 1, due_at=datetime.now(UTC) - timedelta(hours=2))
    call(page, "worklist.js", "it.refresh()")
    expect(page.locator("#fresh")).to_have_text("1 new: show")
    assert places(page) == before
    assert page.evaluate("document.activeElement.closest('tr').dataset.study") == chosen
    page.keyboard.press("n")
    expect(page.locator("#fresh")).to_be_hidden()
    assert len(set(places(page)) - set(before)) == 1
    assert page.evaluate("document.activeElement.closest('tr').dataset.study") == chosen


def test_why_here_lateness_and_search(page: Page) -> None:
    """The due time says why a study stands here; lateness has two grades; the search says what it understood, and why it found nothing."""
    first = page.locator("#list tr[data-study]").first
    expect(first.locator(".why")).to_be_hidden()
    first.locator(".when").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    expect(first.locator(".why")).to_be_visible()
    expect(first.locator(".why")).to_contain_text(re.compile(r"Came .*; its kind may wait"))
    expect(first.locator(".far time")).to_have_attribute("data-late", "long")
    assert page.locator(".far [data-late='long'], .far [data-late='just']").count() == 1
    page.locator("#list").press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("太郎 hand")
    page.keyboard.press("Enter")
    expect(page.locator("#understood")).to_contain_text(
        "“太郎” and “hand” in names, IDs, accession numbers and descriptions"
    )
    expect(page.locator("tr[data-study] .patient .open").first).to_contain_text("山田")
    assert "%E5%A4%AA" not in page.url
    no_barriers(page)
    page.get_by_role("searchbox").fill("31.02.2026")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
    expect(page.locator(".empty")).to_contain_text("31.02.2026 is no date")
