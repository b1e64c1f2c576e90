"""Worklist and reading locks as radiologists use them: real browsers, one API, and lists of none, one and 100,000 studies."""

import io
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import insert, text

from benchmarks.workload import ANALYSES
from shared.db.engine import Database
from shared.db.tables import FindingRow, InstanceRow, StudyRow
from shared.domain.security import Role
from shared.domain.study import Identity
from shared.queries.access import Key, Vault, add_key, find_key
from shared.queries.reading_locks import mark_read
from shared.storage import open_store, preview_key
from tests.browsing import WATCH_POLICY, call, needs_chromium
from tests.databases import run_sql
from tests.live_stack import BreakableStack
from tests.pace import limit_s

TABLET = {"width": 820, "height": 1180}
SHOTS = os.environ.get("OSTEON_SHOTS", "")  # a folder: pictures to look at
MANY = """
INSERT INTO studies (id, site_id, study_instance_uid, priority, status, received_at, current_analysis_id, reason, due_at,
    modality, assessment, severity, region, fracture_probability, abstention, bundle, images, failed_images, analysed_at,
    age_years, read_at)
SELECT gen_random_uuid(), :site, '1.9.' || n, CASE n % 20 WHEN 0 THEN 'urgent' ELSE 'routine' END,
    CASE n % 50 WHEN 7 THEN 'queued' ELSE 'analysed' END, now() - n * interval '1 minute', gen_random_uuid(), '',
    now() + (500 - n) * interval '1 minute', CASE n % 3 WHEN 0 THEN 'CR' ELSE 'DX' END,
    CASE WHEN n % 50 = 7 THEN NULL WHEN n % 10 = 0 THEN 'positive' WHEN n % 10 = 1 THEN 'abstained' ELSE 'negative' END,
    CASE WHEN n % 10 = 0 THEN 'moderate' ELSE 'none' END, CASE n % 4 WHEN 0 THEN 'hand' ELSE 'leg' END, (n % 100) / 100.0,
    CASE WHEN n % 50 <> 7 AND n % 10 = 1 THEN 'metal' END, 'second-look-2', 1, 0, now(), n % 90, CASE WHEN n > 100000 THEN now() END
FROM generate_series(1, 100200) AS n"""

pytestmark = [needs_chromium, pytest.mark.slow]


class ReadingSites:
    """An API, and readers of sites with none, one, some and many studies."""

    def __init__(self, live_stack: BreakableStack) -> None:
        self.live_stack, self.url, self.database = live_stack, live_stack.url, Database(live_stack.postgres.url, 2)
        self.vault = Vault(live_stack.environment["OSTEON_IDENTITY_KEY"])
        self.store = open_store(live_stack.environment["OSTEON_STORE_URL"])
        self.keys = {
            name: self._key(site, name) for site, name in (
                ("none", "nobody"), ("one", "single"), ("some", "dr-ada"), ("some", "dr-bob"), ("many", "busy"))
        }  # fmt: skip
        self.single = self.add("single", received_at=datetime.now(UTC))
        with self.database.transaction() as session:
            session.execute(text(MANY), {"site": self.keys["busy"].site_id})
            session.execute(text(ANALYSES))
        run_sql(live_stack.postgres.owner_url, "ANALYZE studies, analyses")

    def short_lease(self) -> tuple[str, int]:
        """URL of another API of the same system, and its lease in seconds: little more than a page needs to ask again."""
        return self.live_stack.api(OSTEON_READING_LOCK_S="14"), 14

    def _key(self, site: str, name: str) -> Key:
        with self.database.transaction() as session:
            add_key(session, site, name, Role.RADIOLOGIST, f"osk_{name}")
            found = find_key(session, f"osk_{name}")
        assert found is not None
        return found

    def add(self, owner: str, identity: Identity | None = None, **changes: Any) -> str:
        """An analysed study with a picture, in the site of this key; told of as an upload is."""
        now, site = datetime.now(UTC), self.keys[owner].site_id
        study, instance, sha256 = uuid4(), uuid4(), uuid4().hex * 2
        values = {
            "id": study, "site_id": site, "study_instance_uid": f"1.2.{study.int}", "priority": "routine",
            "status": "analysed", "received_at": now - timedelta(minutes=42),
            "due_at": now + timedelta(minutes=30), "reason": "", "modality": "CR", "assessment": "positive", "region": "elbow",
            "severity": "moderate", "fracture_probability": 0.91, "images": 1, "failed_images": 0,
            "bundle": "second-look-2", "age_years": 34,
        } | changes  # fmt: skip
        picture = io.BytesIO()
        Image.linear_gradient("L").save(picture, "JPEG")
        self.store.put(preview_key(sha256, 1), io.BytesIO(picture.getvalue()), len(picture.getvalue()))
        with self.database.transaction() as session:
            session.execute(insert(StudyRow).values(values))
            session.execute(insert(InstanceRow).values(
                id=instance, site_id=site, study_id=study, sop_instance_uid=f"1.3.{study.int}", sop_class_uid="1.2",
                transfer_syntax_uid="1.2", sha256=sha256, size_bytes=1, modality="CR", body_part="ELBOW", rows=256,
                columns=256, frames=1, received_at=now))  # fmt: skip
            session.execute(insert(FindingRow).values(
                id=uuid4(), instance_id=instance, frame=1, bundle="second-look-2", region="elbow", region_probability=0.9,
                fracture_probability=0.91, assessment="positive", severity="moderate", heatmap=bytes(64),
                heatmap_height=8, heatmap_width=8))  # fmt: skip
            self.vault.store_identities(session, site, {study: identity or Identity("DOE^JANE", "4711")})
            session.execute(text("SELECT pg_notify('worklist', :site)"), {"site": str(site)})
        return str(study)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadingSites]:
    live_stack = BreakableStack(tmp_path_factory.mktemp("sites"))
    try:
        live_stack.start()
        made = ReadingSites(live_stack)
        yield made
        made.database.close()
    finally:
        live_stack.stop()


@pytest.fixture
def reader(browser: Browser, sites: ReadingSites) -> Iterator[Callable[..., Page]]:
    """Opens a browser profile of its own, logged in; the test fails if its console told of an error."""
    contexts, errors = [], []

    def log_in(name: str, url: str = sites.url, **changes: Any) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1440, "height": 900}} | changes))
        contexts.append(context)
        context.add_init_script(WATCH_POLICY)
        page = context.new_page()
        page.set_default_timeout(limit_s(20) * 1000)

        def note(message: Any) -> None:
            # Chromium notes every response with an error status: a claim is refused on purpose
            url = message.location.get("url", "")
            refused = "/lock" in url and re.search("status of 40[39]", message.text)
            if message.type == "error" and not refused and "/preview.jpg" not in url:  # the 100,000 have no pictures
                errors.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}/login")
        page.get_by_label("Your key").fill(f"osk_{name}")
        page.get_by_role("button", name="Log in").click()
        started(page)
        return page

    yield log_in
    for context in contexts:
        context.close()
    assert errors == []


def started(page: Page) -> None:
    """The list is there, and its script has begun."""
    expect(page.locator("#updated")).to_have_text(re.compile("pdated"))


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png")


def no_barriers(page: Page) -> None:
    """axe finds nothing serious."""
    found = Axe().run(page).response["violations"]
    grave = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    assert grave == []


def only_live(page: Page) -> None:
    """From here on nothing asks the server by itself but what it tells of."""
    expect(page.locator("#updated")).to_contain_text("Live")
    page.evaluate("for (let id = 0; id < 10000; id++) clearInterval(id)")


def row(page: Page, study: str) -> Any:
    return page.locator(f"tr[data-study='{study}']")


# -- the list -------------------------------------------------------------------------------------------------------


def test_an_empty_list_and_one_study(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """Nobody's list says what to do; one study stands there with its reason and its wait, and the counts say 0 and 1."""
    page = reader("nobody")
    expect(page.get_by_role("heading", name="Nothing waits to be read")).to_be_visible()
    expect(page.locator("#tabs")).to_contain_text(re.compile(r"all unread\s*0"))
    no_barriers(page)
    shoot(page, "empty")
    page = reader("single")
    for words in ("positive", "elbow", "moderate", "routine"):
        expect(row(page, sites.single)).to_contain_text(words)
    expect(page.locator("#tabs")).to_contain_text(re.compile(r"positive\s*1"))
    expect(page.locator("[data-late='just'], [data-late='long']")).to_have_count(0)
    shoot(page, "one")


def test_a_hundred_thousand(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """With 100,000 unread studies counts, order, paging and filters say what is there; what was read is apart."""
    page = reader("busy")
    expect(page.locator("#tabs")).to_contain_text(re.compile(r"all unread\s*100,000"))
    expect(page.locator("#tabs")).to_contain_text(re.compile(r"not analysed\s*2,000"))
    rows = page.locator("tr[data-study]")
    expect(rows).to_have_count(50)
    assert page.locator("tr.late [data-late='long']").count() == 50
    expect(page.locator(".many-late")).to_have_count(1)
    shoot(page, "many")
    no_barriers(page)
    seen: list[str] = []
    for _ in range(3):
        seen += page.eval_on_selector_all(".when > time", "times => times.map(time => time.dateTime)")
        page.get_by_role("link", name="Next", exact=True).click()
        expect(page.get_by_role("link", name="First page")).to_be_visible()
    assert seen == sorted(seen)
    assert len(set(seen)) == 150
    page.goto(f"{sites.url}/?assessment=positive&severity=moderate&age=18-39&region=hand&modality=CR")
    words = rows.all_inner_texts()
    assert words
    assert all(word in text for text in words for word in ("positive", "hand", "moderate"))
    page.goto(f"{sites.url}/?state=read")
    expect(rows).to_have_count(50)
    assert all("ago" in text for text in page.locator(".far").all_inner_texts())
    expect(page.locator("tr.late")).to_have_count(0)
    shoot(page, "read")


def test_filters_are_linked_saved_and_deleted(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """What is chosen stands in the address and no more; saved, it is a link under its name, until it is deleted."""
    page = reader("busy")
    page.get_by_role("link", name="positive").click()
    page.locator(".chip summary", has_text="Age").click()
    page.get_by_role("link", name="0-17").click()
    expect(page).to_have_url(f"{sites.url}/?assessment=positive&age=0-17")
    no_barriers(page)
    page.get_by_role("button", name="Save this view").click()
    page.get_by_label("Name", exact=True).fill("Children's fractures")
    shoot(page, "save")
    page.keyboard.press("Enter")
    saved = page.get_by_role("link", name="Children's fractures")
    expect(saved).to_be_visible()
    shoot(page, "filtered")
    page.get_by_role("link", name="Remove the filter Age").click()
    saved.click()
    expect(page).to_have_url(re.compile(r"/\?assessment=positive&age=0-17&columns="))
    expect(saved).to_have_attribute("aria-current", "page")
    page.get_by_role("button", name="Delete the view Children's fractures").click()
    expect(saved).to_have_count(0)
    page.reload()
    expect(saved).to_have_count(0)


def test_search_names_nobody_in_the_address(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """A number finds its studies, read ones too, and stands in no address; one that is nobody's says so."""
    study = sites.add("dr-ada", Identity("ZEBRA^QUAGGA", "Z-90210", "", "ACC-77"))
    with sites.database.transaction() as session:
        mark_read(session, UUID(study), sites.keys["dr-bob"], datetime.now(UTC))
    page = reader("dr-ada")
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    for number in ("z-90210", "ACC-77"):
        page.keyboard.press("/")
        expect(page.get_by_role("searchbox")).to_be_focused()
        page.keyboard.type(number)
        page.keyboard.press("Enter")
        expect(row(page, study)).to_contain_text("ZEBRA, QUAGGA")
        expect(page.get_by_text("1 study")).to_be_visible()
        assert number not in page.url
        started(page)
        page.locator("#rows").click()
    shoot(page, "found")
    page.get_by_role("searchbox").fill("Z-9021X")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
    assert not [address for address in addresses if "90210" in address or "ACC-77" in address]


def test_keys_walk_open_and_help(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """j and k walk, Enter, c, a and d open the chosen study in their ways, ? helps; none of it while typing."""
    page = reader("busy")
    links = page.locator("a.open")
    first, second = (links.nth(n).get_attribute("href") for n in (0, 1))
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(links.nth(1)).to_be_focused()
    page.keyboard.press("k")
    expect(links.nth(0)).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    no_barriers(page)
    shoot(page, "help")
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    expect(links.nth(0)).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.type("jkacd?")
    expect(page.get_by_role("searchbox")).to_have_value("jkacd?")
    for key, suffix in (("Enter", ""), ("c", ""), ("a", "#agree"), ("d", "#disagree")):
        page.goto(sites.url)
        started(page)
        page.keyboard.press("j")
        page.keyboard.press("j" if key == "a" else "Shift")
        page.keyboard.press(key)
        expect(page).to_have_url(f"{sites.url}{second if key == 'a' else first}{suffix}")


# -- live -----------------------------------------------------------------------------------------------------------


def test_the_list_is_live(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """A study that comes in, is claimed, and is read, shows so at once, without a reload and with the focus kept."""
    kept = sites.add("dr-ada", Identity("KEPT^KAREN", "1"))
    page, other = reader("dr-ada"), reader("dr-bob")
    only_live(page)
    page.evaluate("window.same = true")
    row(page, kept).locator("a.open").focus()
    study = sites.add("dr-ada", Identity("LATE^LISA", "2"))
    expect(page.locator("#fresh")).to_have_text("1 new: show")
    page.keyboard.press("n")
    expect(row(page, study)).to_contain_text("LATE, LISA")
    other.goto(f"{sites.url}/view/{study}")
    expect(row(page, study)).to_contain_text("dr-bob reads it, since")
    shoot(page, "live")
    other.goto(sites.url)
    expect(row(page, study)).not_to_contain_text("dr-bob")
    with sites.database.transaction() as session:
        mark_read(session, UUID(study), sites.keys["dr-bob"], datetime.now(UTC))
    expect(row(page, study)).to_contain_text("no longer here")
    expect(row(page, kept).locator("a.open")).to_be_focused()
    page.keyboard.press("n")
    expect(row(page, study)).to_have_count(0)
    assert page.evaluate("window.same")


def test_a_quiet_live_list_goes_with_the_time(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """Nothing tells that a study is overdue by now, or a claim run out: a live page asks all the same, if seldom."""
    page = reader("dr-ada")
    only_live(page)  # before: what the page asks for when its stream opens must not show the study
    study = sites.add("dr-ada", Identity("SOON^SUE", "5"))
    expect(row(page, study)).to_contain_text("SOON, SUE")
    with sites.database.transaction() as session:  # tells nobody, as the clock does not
        session.execute(text("UPDATE studies SET due_at = now() - interval '1 second' WHERE id = :id"), {"id": study})
    call(page, "worklist.js", "it.round()")  # as its clock does
    page.wait_for_timeout(1000)
    expect(page.locator(f"tr.late[data-study='{study}']")).to_have_count(0)
    call(page, "worklist.js", "(it.state.lastGood = new Date(Date.now() - 60000), it.round())")
    expect(page.locator(f"tr.late[data-study='{study}']")).to_be_visible()


def test_a_change_during_a_refresh_is_not_lost(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """What happens while the page asks is asked for once more, since that response may show the time before."""
    page = reader("dr-ada")
    only_live(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.resource_type == "fetch" else None)
    call(page, "worklist.js", "Promise.all([it.refresh(), it.refresh(), it.refresh()])")
    page.wait_for_timeout(1500)
    assert len(asked) == 2


def test_without_the_stream_the_list_still_comes(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """Where events do not come through, the page asks by itself, and does not say that it is live."""
    page = reader("dr-ada")
    page.context.route("**/api/v1/worklist/events", lambda route: route.fulfill(status=204))
    page.reload()
    expect(page.locator("#updated")).to_have_text(re.compile("^Updated "))
    study = sites.add("dr-ada", Identity("POLLED^PAUL", "3"))
    call(page, "worklist.js", "it.round()")  # as its clock does
    expect(row(page, study)).to_contain_text("POLLED, PAUL")


# -- two readers, one study -----------------------------------------------------------------------------------------


def hidden(page: Page) -> bool:
    return bool(page.evaluate(
        "[...document.querySelectorAll('main img, main canvas, .lines, #stage > *')]"
        ".every(one => getComputedStyle(one).visibility === 'hidden')"
    ))  # fmt: skip


def test_two_people_never_unknowingly_read_one_study(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """The second is told who reads it before they see a picture; a takeover is on purpose, and the first one is told."""
    study = sites.add("dr-ada")
    ada, bob = reader("dr-ada"), reader("dr-bob")
    url = f"{sites.url}/view/{study}"
    ada.goto(url)
    expect(ada.locator("#lock")).to_contain_text("You read this study, since")
    assert ada.locator("main img").count() > 0
    assert not hidden(ada)
    no_barriers(ada)
    shoot(ada, "claimed")

    bob.goto(url)
    held = bob.get_by_role("dialog", name="Somebody else reads this study")
    expect(held).to_be_visible()
    expect(bob.get_by_role("alert")).to_contain_text("dr-ada has been reading it since")
    assert hidden(bob)
    no_barriers(bob)
    shoot(bob, "held")
    bob.keyboard.press("Escape")
    expect(held).to_be_visible()  # a way must be chosen
    bob.get_by_role("link", name="Back to the worklist").click()
    expect(row(bob, study)).to_contain_text("dr-ada reads it, since")

    bob.goto(url)
    bob.get_by_role("button", name="Only look").click()
    expect(bob.locator("#lock")).to_contain_text("You only look: it is not yours")
    assert not hidden(bob)
    shoot(bob, "looking")

    bob.reload()
    bob.get_by_role("button", name="Take it over").click()
    expect(bob.locator("#lock")).to_contain_text("You read this study")
    ada.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # sooner than its clock
    expect(ada.get_by_role("dialog", name="This study was taken over")).to_be_visible()
    expect(ada.get_by_role("alert")).to_contain_text("dr-bob took this study over")
    assert hidden(ada)
    shoot(ada, "taken")
    history = ada.evaluate(f"fetch('/api/v1/studies/{study}/locks').then(response => response.json())")
    assert [(one["name"], one["taken_from"], one["ended"]) for one in history] == [
        ("dr-ada", None, "taken-over"),
        ("dr-bob", "dr-ada", ""),
    ]

    bob.goto(sites.url)  # and the study is free again
    ada.get_by_role("button", name="Take it back").click()
    expect(ada.locator("#lock")).to_contain_text("You read this study")


def test_one_key_in_two_browsers_is_two_readers(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """Two people who share a key are asked before they take a study from each other; one person's two tabs are not."""
    study = sites.add("dr-ada")
    one, other = reader("dr-ada"), reader("dr-ada")
    one.goto(f"{sites.url}/view/{study}")
    expect(one.locator("#lock")).to_contain_text("You read this study")
    tab = one.context.new_page()
    tab.goto(f"{sites.url}/view/{study}")
    expect(tab.locator("#lock")).to_contain_text("You read this study")
    expect(row(other, study)).to_contain_text("dr-ada reads it, since")
    other.goto(f"{sites.url}/view/{study}")
    expect(other.get_by_role("dialog")).to_contain_text(
        "Another login of your own key, dr-ada, has been reading it since"
    )
    assert hidden(other)
    other.get_by_role("button", name="Take it over").click()
    expect(other.get_by_role("alert")).to_contain_text("Another login of your key, dr-ada, had it open since")
    assert not hidden(other)
    shoot(other, "shared")
    one.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(one.get_by_role("alert")).to_contain_text("Another login of your own key, dr-ada, took this study over")
    assert hidden(one)


def test_why_nothing_can_be_claimed_is_said(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """What the server answers to a claim is told in its own words; it does answer, after all."""
    study = sites.add("dr-ada")
    page = reader("dr-ada")
    page.route("**/lock?*", lambda route: route.fulfill(
        status=403, content_type="application/problem+json", body='{"detail": "Your browser is too old."}'
    ))  # fmt: skip
    page.goto(f"{sites.url}/view/{study}")
    expect(page.locator("#lock")).to_contain_text("reads this study: Your browser is too old. Trying on.")


def test_a_page_that_is_left_at_once_gives_the_study_back(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """Its claim is on record, and it goes before it hears of that: the next reader finds the study free."""
    study = sites.add("dr-ada")
    ada, bob, responses = reader("dr-ada"), reader("dr-bob"), []
    ours = {"sec-fetch-site": "same-origin"}  # Chromium adds it to what it sends itself
    ada.route("**/lock?*", lambda route: responses.append(route.fetch(headers=route.request.headers | ours).status))
    ada.goto(f"{sites.url}/view/{study}")  # whose script never hears
    while not responses:
        ada.wait_for_timeout(20)
    assert responses[0] == 200
    expect(ada.locator("#lock")).to_have_attribute("data-state", "asking")
    ada.goto(sites.url)
    started(ada)
    bob.goto(f"{sites.url}/view/{study}")
    expect(bob.locator("#lock")).to_contain_text("You read this study")
    history = bob.evaluate(f"fetch('/api/v1/studies/{study}/locks').then(response => response.json())")
    assert [(one["name"], one["ended"]) for one in history] == [("dr-ada", "released"), ("dr-bob", "")]


def test_a_claim_lasts_as_long_as_its_page_and_no_longer(sites: ReadingSites, reader: Callable[..., Page]) -> None:
    """An open page keeps its study beyond the lease; one that died without a farewell loses it when the lease ends."""
    url, lease_s = sites.short_lease()
    study = sites.add("dr-ada")
    ada, bob = reader("dr-ada", url), reader("dr-bob", url)
    ada.goto(f"{url}/view/{study}")
    expect(ada.locator("#lock")).to_contain_text("You read this study")
    bob.wait_for_timeout((lease_s + 8) * 1000)
    expect(row(bob, study)).to_contain_text("dr-ada reads it, since")
    bob.goto(f"{url}/view/{study}")
    expect(bob.get_by_role("dialog", name="Somebody else reads this study")).to_be_visible()
    ada.context.set_offline(True)  # its farewell does not come through
    ada.context.close()
    asked = bob.evaluate(f"fetch('/api/v1/studies/{study}/lock').then(response => response.json())")
    assert asked["name"] == "dr-ada"
    bob.wait_for_timeout((lease_s + 2) * 1000)
    bob.reload()
    expect(bob.locator("#lock")).to_contain_text("You read this study")
    history = bob.evaluate(f"fetch('/api/v1/studies/{study}/locks').then(response => response.json())")
    assert [(one["name"], one["ended"]) for one in history] == [("dr-ada", "expired"), ("dr-bob", "")]


# -- tablets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(820, 1180), (1180, 820)])
def test_a_tablet_shows_all_and_is_touched_easily(
    sites: ReadingSites, reader: Callable[..., Page], width: int, height: int
) -> None:
    """On a tablet, upright or across, nothing hangs over the edge, and all that is touched is 44 pixels high."""
    page = reader("busy", viewport={"width": width, "height": height}, has_touch=True)
    page.goto(f"{sites.url}/?assessment=positive")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for target in page.locator("main .tab, main .button, main input[type=search], main summary").all():
        box = target.bounding_box()
        assert box is None or box["width"] == 0 or box["height"] >= 44, target.evaluate("element => element.outerHTML")
    shoot(page, f"tablet-{width}")
    no_barriers(page)
    first = page.locator("a.open").first.get_attribute("href")
    page.locator("td.finding").first.tap()
    expect(page).to_have_url(f"{sites.url}{first}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
