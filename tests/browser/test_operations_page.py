"""The administrator's page in a real browser: empty, with one study, with 100,000."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect
from sqlalchemy import func, select, text, update

from api.app import create_app
from benchmarks.workload import ANALYSES
from infra.embedded.postgres import EmbeddedPostgres
from infra.embedded.process import free_port
from infra.prepare import store_bundle_file
from shared.db.clock import db_now
from shared.db.engine import Database
from shared.db.tables import KeyRow, PeerDayRow, StudyRow
from shared.domain.peers import Caller, PeerRule
from shared.domain.security import EventKind, Role, Subject, System
from shared.queries import operations, peers, statistics
from shared.queries.access import add_key, find_key
from shared.queries.audit import Target, record
from shared.queries.models import add_bundle
from shared.settings import Settings
from tests.browsing import call, needs_chromium, watched
from tests.databases import admin_sql, copied
from tests.feedback_data import MANIFEST
from tests.pace import LIMIT_S

pytestmark = [needs_chromium, pytest.mark.slow]
SECRET = "osk_admin_of_these_tests"
SHOTS = Path(os.environ.get("OSTEON_SHOTS", "")) if os.environ.get("OSTEON_SHOTS") else None
# as after a month: mostly analysed, 30,000 waiting, 300 set aside for four reasons
MANY = """
INSERT INTO studies (id, site_id, study_instance_uid, priority, status, received_at, current_analysis_id, reason,
    due_at, modality, region, bundle, images, failed_images, analysed_at, quarantined_at)
SELECT gen_random_uuid(), (SELECT id FROM sites), '1.2.' || n, class, status, at, gen_random_uuid(),
    CASE status WHEN 'quarantined' THEN (ARRAY['decoding-timed-out', 'object-missing', 'analysis-failed', 'worker-died'])[1 + n % 4]
        ELSE '' END,
    at + interval '1 hour', 'DX', 'hand', 'second-look-2', 1, 0,
    CASE status WHEN 'analysed' THEN at + wait END,
    CASE status WHEN 'quarantined' THEN at + wait END
FROM (
    SELECT n, now() - (100000 - n) * interval '25.9 seconds' AS at,
        interval '1 second' * (3 + 20 * random() + 200 * power(sin(n / 3000.0), 8) * random()) AS wait,
        CASE WHEN n % 20 = 0 THEN 'urgent' WHEN n % 5 = 0 THEN 'backlog' ELSE 'routine' END AS class,
        CASE WHEN n % 333 = 0 THEN 'quarantined' WHEN n > 70000 AND n % 20 <> 0 THEN 'queued'
             WHEN n > 99990 THEN 'queued' ELSE 'analysed' END AS status
    FROM generate_series(1, 100000) AS n) AS thrown"""
RUNNING = """
UPDATE analyses SET state = 'running', attempts = 1, started_at = now() FROM studies
WHERE study_id = studies.id AND study_instance_uid = '1.2.100000'"""


class Site:
    """An API of the test's own on an empty database, and a browser that an administrator is logged in with."""

    def __init__(self, url: str, settings: Settings, database: Database, page: Page) -> None:
        self.url, self.settings, self.database, self.page = url, settings, database, page

    def open(self, query: str = "") -> Page:
        """Open the page, at a tab where `query` begins with "?tab="."""
        self.page.goto(f"{self.url}/operations{query}")
        expect(self.page.get_by_role("heading", name="Operations", level=1)).to_be_visible()
        return self.page

    def sql(self, statement: str, **values: object) -> None:
        with self.database.transaction() as session:
            session.execute(text(statement), values)

    def beat(self, host: str, **more: object) -> None:
        with self.database.transaction() as session:
            heartbeat = {
                "id": session.scalar(text("SELECT gen_random_uuid()")), "host": host, "pid": 4711,
                "device": "CPU, 2 streams, OpenVINO bf16", "bundle": "second-look-2", "threads": 32, "taken": 68_123,
                "in_hand": 8,
            }  # fmt: skip
            operations.write_heartbeat(session, operations.Heartbeat(**(heartbeat | more)))

    def shot(self, name: str, *, full_page: bool = True) -> None:
        if SHOTS:
            SHOTS.mkdir(exist_ok=True)
            self.page.screenshot(path=SHOTS / f"{name}.png", full_page=full_page)


@pytest.fixture
def site(browser: Browser, make_settings: Callable[..., Settings]) -> Iterator[Site]:
    port = free_port()
    settings = make_settings(flower_url="http://127.0.0.1:5599")
    database = Database(settings.database_url.get_secret_value(), 4)
    with database.transaction() as session:
        if find_key(session, SECRET) is None:
            add_key(session, "default", "admin", Role.ADMIN, SECRET, operates=True)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        with watched(browser, width=1600, refused=(400, 409, 422)) as page:
            url = f"http://127.0.0.1:{port}"
            page.goto(f"{url}/login?next=/operations")
            page.get_by_label("Your key").fill(SECRET)
            page.get_by_role("button", name="Log in").click()
            yield Site(url, settings, database, page)
    finally:
        server.should_exit = True
        thread.join(LIMIT_S)
        database.close()


@pytest.fixture(scope="module")
def full_template(postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with 100,000 studies, their history, workers, backfill runs and rejections, to copy from."""
    with copied(postgres, template) as url:
        database = Database(url, 2)
        store = Settings(store_url=f"file:{tmp_path_factory.mktemp('objects')}")
        store_bundle_file(store, database, store.bundle_path, activate=True)
        fill(database)
        database.close()
        admin_sql(postgres, f"CREATE DATABASE full_of_studies TEMPLATE {url.rsplit('/', 1)[1]} OWNER osteon")
    return "full_of_studies"


def fill(database: Database) -> None:
    def sql(statement: str) -> None:
        with database.transaction() as session:
            session.execute(text(statement))

    with database.transaction() as session:
        add_key(session, "default", "admin", Role.ADMIN, SECRET, operates=True)
    sql(MANY)
    sql(ANALYSES)
    sql(RUNNING)
    sql(
        "INSERT INTO backfill_runs (id, day, started_at, finished_at, failed, stranded, outdated, bundle) SELECT "
        "gen_random_uuid(), current_date - n, current_date - n + interval '2 hours', current_date - n + interval '3 hours', "
        "n % 5, 0, 300 - n, 'second-look-2' FROM generate_series(0, 12) AS n"
    )
    sql(
        "INSERT INTO instances (id, site_id, study_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, sha256, "
        "size_bytes, modality, body_part, rows, columns, frames, received_at, error_reason) SELECT "
        "gen_random_uuid(), site_id, id, study_instance_uid || '.1', '1', '1', repeat('0', 64), 8400000, 'DX', 'HAND', 9, 9, "
        "1, received_at, '' FROM studies"
    )
    with database.transaction() as session:
        where = session.scalars(select(KeyRow.site_id)).first()
        assert where is not None
        told = "The transfer syntax is not one that Osteon can decode. Send the image uncompressed or as JPEG-LS or JPEG 2000."
        operations.record_rejections(session, where, [("unknown-transfer-syntax", "0xC000", told)] * 412)
        words = "This is not a DICOM file: no DICM mark and no DICOM file meta information at its start."
        operations.record_rejections(session, where, [("not-dicom", "0xC000", words)])
    sampled(database)


def sampled(database: Database) -> None:
    """The history as a worker writes it."""
    for _ in range(1000):
        with database.transaction() as session:
            if not statistics.write_statistics(session, db_now(session)):
                break
    with database.transaction() as session:
        statistics.count_stored(session)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A database of the test's own, full where it asks for that."""
    with copied(
        postgres, request.getfixturevalue("full_template") if "filled" in request.fixturenames else template
    ) as url:
        yield url


@pytest.fixture
def filled(site: Site, full_template: str) -> Site:
    """100,000 studies, their history, two living workers and one that was killed, a bundle, backfill runs, rejections."""
    store_bundle_file(site.settings, site.database, site.settings.bundle_path, activate=True)
    site.sql("INSERT INTO bundles SELECT 'third-look', repeat('ab', 32), manifest, false, now() FROM bundles")
    site.beat("reading-1")
    site.beat("reading-2", pid=812, device="NVIDIA L4, torch bf16", in_hand=31, taken=912_004)
    site.beat("reading-3", pid=99)
    site.sql("UPDATE workers SET seen_at = now() - interval '7 minutes' WHERE host = 'reading-3'")
    return site


def accessible(page: Page) -> None:
    """No serious or critical finding of axe."""
    found = Axe().run(page).response["violations"]
    grave = [
        (one["id"], [node["html"] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert grave == []


def fits(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_an_empty_system(site: Site) -> None:
    """Before the first study the page says what is missing, draws nothing, and breaks nowhere."""
    page = site.open()
    expect(page.locator("#now")).to_contain_text("No worker is alive")
    expect(page.locator("#now")).to_contain_text("No bundle is active")
    expect(page.locator("#history")).to_contain_text("Nothing happened in this time")
    empty = {
        "queue": ("#quarantine", "No study is in quarantine"), "senders": ("#rejections", "No file was rejected"),
        "results": ("#destinations", "Results go nowhere."), "models": ("#backfill-runs", "No backfill run yet"),
        "keys": ("#key-list", "(yours)"), "events": ("#event-list", "logged in"),
    }  # fmt: skip
    for tab, (part, words) in empty.items():
        page.locator(f"#tab-{tab}").press("Enter")
        expect(page.locator(part)).to_contain_text(words)
        expect(page.locator("#tabs [aria-current]")).to_have_id(f"tab-{tab}")
        accessible(page)
        site.shot(f"empty-{tab}-1600")
        for width in (1180, 480, 390):
            fits(page, width)
        page.set_viewport_size({"width": 1600, "height": 1000})
    expect(page.locator("#tab-models")).to_contain_text("1 trouble")


def test_a_link_to_a_part_opens_its_tab(site: Site) -> None:
    """Addresses of before there were tabs lead to their part; a reload stays on the tab; a page without script has all tabs."""
    page = site.open("#quarantine")
    expect(page.locator("#quarantine")).to_be_visible()
    expect(page).to_have_url(f"{site.url}/operations?tab=queue#quarantine")
    page.reload()
    expect(page.locator("#tab-queue")).to_have_attribute("aria-current", "page")
    page.evaluate("location.hash = 'bundles'")
    expect(page.locator("#bundles")).to_be_visible()
    page.go_back()
    expect(page.locator("#quarantine")).to_be_visible()
    assert page.context.browser is not None
    plain = page.context.browser.new_context(java_script_enabled=False, storage_state=page.context.storage_state())
    still = plain.new_page()
    still.goto(f"{site.url}/operations")
    still.get_by_role("link", name="Events").click()
    expect(still.locator("#event-list")).to_be_visible()
    plain.close()


def test_one_study(site: Site) -> None:
    """One study that was analysed shows in all ranges, in the plot and in its table."""
    site.beat("reading-1", taken=1, in_hand=0)
    site.sql(
        MANY.replace("100000", "1")
        .replace("25.9 seconds", "0 seconds")
        .replace("now() -", "date_trunc('minute', now()) - interval '5 minutes' -")
    )
    sampled(site.database)
    for query in ("", "?range=24h", "?range=30d"):
        page = site.open(query)
        plot = page.locator("#plot-throughput")
        expect(plot.get_by_role("img", name=re.compile("Studies per"))).to_be_visible()
        plot.locator("summary").click()
        expect(plot.locator("tbody tr")).to_have_count(1)
        expect(plot.locator("tbody td").first).to_have_text("1")
        site.shot(f"one{query[-3:]}")
    accessible(page)


def test_what_was_sent(site: Site) -> None:
    """The site and each key, with what they may send in an hour."""
    site.sql(
        "INSERT INTO upload_usage SELECT site_id, date_trunc('minute', now()), id, 1250000000, 1234, 7 FROM api_keys"
    )
    page = site.open("?tab=senders")
    rows = page.locator("#sent tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("the whole site")
    expect(rows.nth(1)).to_have_text(re.compile(r"admin\s*1.25.GB\s*200.GB\s*1,234\s*50,000\s*7"))
    expect(page.locator("#sent")).to_contain_text("50 % of all")
    accessible(page)
    for width, height in ((1920, 1080), (1024, 768), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.locator("#sent").scroll_into_view_if_needed()
        if SHOTS:
            SHOTS.mkdir(exist_ok=True)
            page.locator("#sent").screenshot(path=SHOTS / f"sent-{width}.png")


def test_a_hundred_thousand(filled: Site) -> None:
    """With 100,000 studies every part holds its numbers, fits its width, and is free of grave faults of access."""
    page = filled.open("?range=30d")
    expect(page.locator("#now")).to_contain_text(re.compile(r"backlog\s*[\d,]+\s*[\d]+ d"))
    silent = page.locator("tr.worker-silent")
    expect(silent).to_have_count(1)
    expect(silent).to_contain_text("reading-3")
    expect(silent).to_contain_text("silent")
    expect(page.locator("#storage")).to_contain_text("100,000 images, 840 GB")
    expect(page.locator("#tab-queue")).to_contain_text("300 in quarantine")
    assert (page.locator("#plot-waits path.line-2").last.get_attribute("d") or "").count("L") > 50
    filled.open("?tab=queue")
    expect(page.locator("#quarantine h2")).to_contain_text("300 studies")
    expect(page.locator("#quarantine table").first.locator("tbody tr")).to_have_count(4)
    filled.open("?tab=senders")
    expect(page.locator("#rejections tbody tr")).to_have_count(2)
    filled.open("?tab=models")
    expect(page.locator("#backfill-runs tbody tr")).to_have_count(13)
    for query in ("?range=30d", "?range=24h", "?range=1h", "?tab=queue", "?tab=senders", "?tab=models"):
        filled.open(query)
        for width in (1600, 1180):
            fits(page, width)
            accessible(page)
            filled.shot(f"many-{query.rpartition('=')[2]}-{width}")
        fits(page, 480)
        filled.shot(f"many-{query.rpartition('=')[2]}-480")


def test_a_study_is_released_by_its_button(filled: Site) -> None:
    """Release sends one study back to its queue, says so, and leaves the keyboard where it was: in that part."""
    page = filled.open("?tab=queue")
    button = page.locator("#quarantine").get_by_role("button", name=re.compile("^Release study")).first
    study = str(button.get_attribute("id")).removeprefix("release-")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text(re.compile("released|Done: release"))
    expect(page.locator(f"#release-{study}")).to_have_count(0)
    expect(page.locator("#quarantine-title")).to_be_focused()
    with filled.database.transaction() as session:
        assert session.scalar(select(StudyRow.status).where(StudyRow.id == study)) == "queued"


def test_a_reason_is_released_by_its_button(filled: Site) -> None:
    """Release all empties one reason and no other."""
    page = filled.open("?tab=queue")
    rows = page.locator("#quarantine table").first.locator("tbody tr")
    expect(rows).to_have_count(4)
    row = rows.filter(has_text="are not in the object store")
    expect(row).to_have_count(1)
    row.get_by_role("button").click()
    expect(page.locator("#said")).to_contain_text("75 released")
    expect(rows).to_have_count(3)
    expect(page.locator("#quarantine h2")).to_contain_text("225 studies")


def test_a_refusal_of_the_server_is_shown(site: Site) -> None:
    """What the server refuses is told in its own words, and the page goes on."""
    page = site.open("?tab=keys")
    page.get_by_role("button", name="Revoke the key of admin").click()
    expect(page.get_by_role("dialog")).to_contain_text("Revoke the key of admin?")
    page.get_by_role("button", name="Yes").click()
    expect(page.locator("#wrong")).to_contain_text("make another one first")


def test_a_key_is_made_used_and_revoked_by_page(site: Site) -> None:
    """A key made on the page works at once; its secret is shown once; revoked on the page, it opens nothing."""
    page = site.open("?tab=keys")
    page.get_by_label("Who will hold it").fill("emergency room")
    page.locator("#new-key select").select_option("radiologist")
    page.get_by_role("button", name="Make key").click()
    secret = page.locator("#secret code")
    expect(secret).to_have_text(re.compile("^osk_"))
    expect(page.locator("#secret")).to_be_focused()
    accessible(page)
    site.shot("key")
    key = secret.inner_text()
    use = {"Authorization": f"Bearer {key}"}
    assert page.request.get(f"{site.url}/api/v1/worklist", headers=use).status == 200
    call(page, "operations.js", "it.refresh()")
    expect(secret).to_have_text(key)
    page.get_by_role("button", name="Hide").click()
    assert key not in page.content()
    page.get_by_role("button", name="Revoke the key of emergency room").click()
    page.get_by_role("button", name="Cancel").click()
    assert page.request.get(f"{site.url}/api/v1/worklist", headers=use).status == 200
    page.get_by_role("button", name="Revoke the key of emergency room").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.locator("#key-list tr", has_text="emergency room")).to_contain_text("revoked")
    assert page.request.get(f"{site.url}/api/v1/worklist", headers=use).status == 401


def test_dicom_peers_are_admitted_changed_and_disabled_by_page(site: Site) -> None:
    """A refused caller stands on the page with a button; what it opens admits it, by keyboard as well."""
    callers = [
        Caller("PACS1", "OSTEON", "10.1.2.3"), Caller("CT-ROOM-2", "OSTEON", "10.1.2.40", "ab" * 32),
        Caller("BAD\\TITLE", "OSTEON", "10.1.2.9"),
    ]  # fmt: skip
    with site.database.transaction() as session:
        for caller in callers:
            peers.note_refused(session, caller)
    page = site.open("?tab=senders")
    section, dialog = page.locator("#dicom-peers"), page.locator("#peer")
    expect(section.get_by_role("region", name="Refused callers").locator("tbody tr")).to_have_count(3)
    expect(section.get_by_role("button", name="Admit")).to_have_count(2)  # a title that is none cannot be admitted
    section.get_by_role("button", name="Admit PACS1").press("Enter")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_label("Address or network")).to_have_value("10.1.2.3")
    expect(dialog.get_by_label("Site")).to_have_value("default")
    for width, height in ((1920, 1080), (1024, 768), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        site.shot(f"peer-dialog-{width}", full_page=False)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1600, "height": 1000})
    accessible(page)
    dialog.get_by_label("Address or network").fill("pacs.example")
    dialog.get_by_role("button", name="Admit").click()
    expect(dialog.get_by_role("alert")).to_contain_text("names of hosts are not looked up")
    dialog.get_by_label("Address or network").fill("10.1.2.3")
    dialog.get_by_label("Issuer").fill("NORTH")
    dialog.get_by_role("button", name="Admit").press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#said")).to_contain_text("PACS1 may send to OSTEON now")
    with site.database.transaction() as session:
        found = peers.find_peer(session, callers[0])
    assert found
    assert found.key.issuer == "NORTH"
    expect(section.get_by_role("region", name="Refused callers").locator("tbody tr")).to_have_count(2)
    with site.database.transaction() as session:
        peers.note_contact(session, found.id)
        peers.note_images(session, found.id, 1204, 9_800_000_000, 3)
        old = update(PeerDayRow).values(last_images_at=func.now() - timedelta(hours=50))
        session.execute(old)
    section.get_by_role("button", name="Change the peer PACS1").click()
    expect(dialog.get_by_label("Name")).to_be_hidden()
    dialog.get_by_label("Silent after hours").fill("24")
    dialog.get_by_label("may ask for Storage Commitment").check()
    dialog.get_by_text("Count a study's images").click()
    dialog.get_by_label("Host").fill("pacs.example")
    dialog.get_by_label("Port").fill("104")
    dialog.get_by_label("AE title", exact=True).fill("PACS")
    dialog.get_by_role("button", name="Change").click()
    expect(page.locator("#said")).to_contain_text("PACS1 is changed")
    row = section.get_by_role("region", name="Peers").get_by_role("row").filter(has_text="PACS1")
    expect(row).to_contain_text("silent for")
    expect(row).to_contain_text("1,204")
    expect(page.locator("#troubles .wrong").filter(has_text="PACS1")).to_be_visible()
    with site.database.transaction() as session:
        peers.admit(session, System.PREPARE, found.site_id, PeerRule("DX-ANY"), name="Any device of the old building")
    call(page, "operations.js", "it.refresh()")
    expect(section.get_by_role("region", name="Peers").locator("tbody tr")).to_have_count(2)
    accessible(page)
    for width, height in ((1920, 1080), (1024, 768), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.locator("#dicom-peers-title").scroll_into_view_if_needed()
        page.evaluate("document.getElementById('dicom-peers').scrollIntoView()")
        site.shot(f"peers-{width}", full_page=False)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    row.get_by_role("button", name="Disable the peer PACS1").click()
    page.get_by_role("button", name="Yes").click()
    expect(row).to_contain_text("disabled")
    with site.database.transaction() as session:
        assert peers.find_peer(session, callers[0]) is None
    site.open("?tab=events")
    expect(page.locator("#event-list tr").filter(has_text="disabled the DICOM peer PACS1")).to_be_visible()


def test_who_did_what(site: Site) -> None:
    """Who, when, what, from what to what: each in words, filtered by keyboard, page by page, and linked from its thing."""
    with site.database.transaction() as session:
        for name in ("first-look", "third-look"):
            add_bundle(session, name, "0" * 64, MANIFEST)
    use = {"Authorization": f"Bearer {SECRET}"}

    def post(path: str, **wanted: object) -> Any:
        response = site.page.request.post(f"{site.url}{path}", headers=use, data=wanted or None)
        assert response.ok, response.text()
        return response.json()

    for number in range(32):
        post("/api/v1/keys", name=f"scanner {number}", role="submitter")
    post("/api/v1/keys", name="ada", role="admin", site="north", new_site=True)
    post("/api/v1/bundles/first-look/activate")
    post("/api/v1/bundles/third-look/shadow", limit=500)
    table = site.page.request.get(f"{site.url}/api/v1/turnaround-targets", headers=use).json()["minutes"]
    table["positive"]["routine"], table["positive severe"]["urgent"] = 25, 5
    assert site.page.request.put(f"{site.url}/api/v1/turnaround-targets", headers=use, data={"minutes": table}).ok
    post(f"/api/v1/keys/{post('/api/v1/keys', name='ct-2', role='submitter')['id']}/revoke")
    post("/api/v1/bundles/third-look/activate")
    with site.database.transaction() as session:
        about = Target(Subject.RUN, "0b7c6a9e-6a53-4f4e-9a55-0d7c2c1f9b10")
        record(session, EventKind.RUN_BEGUN, System.BEAT, about=about, everywhere=True, after={"model": "third-look"})
    page = site.open("?tab=queue")
    expect(page.locator("#turnaround-targets")).to_contain_text("Chosen by admin")
    page = site.open("?tab=keys")
    expect(page.locator("#key-list tr", has_text="ct-2")).to_contain_text(re.compile("revoked .* by admin"))
    page = site.open("?tab=events")
    rows = page.locator("#event-list tbody tr")
    expect(rows).to_have_count(30)
    expect(rows.nth(0)).to_contain_text("Osteon, by its schedule")
    expect(rows.nth(1)).to_contain_text("activated the model third-look")
    expect(rows.nth(1)).to_contain_text("active first-look → third-look")
    expect(rows.nth(1)).to_contain_text("state shadow → active")
    expect(rows.nth(1).locator("time")).to_have_attribute("data-form", re.compile("."))
    expect(rows.nth(2)).to_contain_text("state valid → revoked")
    targets = rows.filter(has_text="changed the setting turnaround-targets")
    expect(targets).to_contain_text("positive, routine 30 → 25")
    expect(targets).to_contain_text("table built-in → chosen")
    for part in ("keys", "events"):
        site.open(f"?tab={part}")
        accessible(page)
        for width, height in ((1920, 1080), (1024, 768), (390, 844)):
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            site.shot(f"{part}-{width}")
    page.get_by_role("link", name="Older ones").click()
    expect(rows.filter(has_text="made the key scanner 0 ")).to_have_count(1)
    page.get_by_role("link", name="The latest ones").click()
    expect(rows.nth(0)).to_contain_text("began a backfill run")
    site.open("?tab=models")
    active = page.locator("#bundles").get_by_role("row", name=re.compile("^third-look"))
    expect(active).to_contain_text(re.compile("active since .* by admin"))
    active.get_by_role("link", name="events").click()
    expect(rows).to_have_count(2)
    page.locator(".event-filters select").focus()
    page.keyboard.type("model sh")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Filter").press("Enter")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("studies none → 500")
    call(page, "operations.js", "it.refresh()")
    expect(rows).to_have_count(1)
    page.reload()
    expect(rows).to_have_count(1)
    page.get_by_label("Who", exact=True).fill("nobody")
    page.keyboard.press("Enter")
    expect(page.locator("#event-list")).to_contain_text("No such event")
    page.locator("#events").get_by_role("link", name="All").click()
    expect(rows).to_have_count(30)


def test_a_refresh_moves_nothing(filled: Site) -> None:
    """New numbers come in place: the focus, an opened table and what is being typed stay."""
    page = filled.open("?tab=queue")
    page.evaluate("window.same = true")
    page.get_by_label("pending, routine, minutes").fill("77")
    button = page.locator("[id^=release-all]").nth(1)
    button.focus()
    identity = button.get_attribute("id")
    page.evaluate("document.getElementById('quarantine').classList.add('before')")
    filled.beat("reading-9")
    call(page, "operations.js", "it.refresh()")
    expect(page.locator("#quarantine")).not_to_have_class(re.compile("before"))
    expect(page.locator(f"#{identity}")).to_be_focused()
    expect(page.get_by_label("pending, routine, minutes")).to_have_value("77")
    assert page.evaluate("window.same")

    filled.open()
    page.locator("#table-queue summary").press("Enter")
    filled.beat("reading-10")
    call(page, "operations.js", "it.refresh()")
    expect(page.locator("#now")).to_contain_text("reading-10")
    expect(page.locator("#table-queue")).to_have_attribute("open", "")
    expect(page.locator("#table-queue summary")).to_be_focused()


def test_buttons_of_bundles_call_what_they_say(filled: Site) -> None:
    """Activate asks first, then posts; Shadow posts."""
    page = filled.open("?tab=models")
    asked = []

    def response(route: Route) -> None:
        asked.append((route.request.method, route.request.url.removeprefix(filled.url)))
        route.fulfill(json={})

    page.route("**/api/v1/bundles/**", response)
    page.get_by_role("button", name="Activate third-look").click()
    expect(page.get_by_role("dialog")).to_contain_text("Analyse from now on with third-look?")
    assert asked == []
    page.get_by_role("button", name="Yes").click()
    expect(page.locator("#said")).to_contain_text("Done: activate third-look.")
    page.get_by_role("button", name="Shadow third-look").click()
    expect(page.locator("#said")).to_contain_text("Done: shadow third-look.")
    assert asked == [("POST", "/api/v1/bundles/third-look/activate"), ("POST", "/api/v1/bundles/third-look/shadow")]


LOOKS = """
INSERT INTO analyses (id, priority, study_id, model, site_id, run_id, purpose, state, queued_at, attempts, old_region,
    old_model, old_assessment, old_probability, assessment, fracture_probability, finished_at)
SELECT gen_random_uuid(), 'backlog', id, 'third-look', site_id, (SELECT id FROM backfill_runs WHERE day = current_date),
    'rerun', 'done', now(), 1, CASE WHEN n % 2 = 0 THEN 'hand' ELSE 'leg' END, 'second-look-2', CASE WHEN n = 4 THEN 'positive' ELSE 'negative' END,
    0.1, CASE WHEN n <= 3 THEN 'unclear' ELSE 'negative' END, 0.2, now()
FROM (SELECT id, site_id, row_number() OVER (ORDER BY id) AS n FROM studies WHERE status = 'analysed') AS numbered
WHERE n <= 12
"""


def test_a_comparison_and_a_backfill_run_are_told_in_tables(filled: Site) -> None:
    """What the server answers to Compare and of a backfill run stands there in words, tables and links, not as JSON."""
    page = filled.open("?tab=models")
    page.get_by_role("button", name="Compare third-look with second-look-2").click()
    report = page.locator("#compared")
    expect(report).to_contain_text("No study was looked at by both yet")
    filled.sql(LOOKS)
    page.get_by_role("button", name="Compare third-look with second-look-2").click()
    expect(report.get_by_role("heading")).to_have_text("second-look-2 against third-look")
    expect(report.get_by_role("heading")).to_be_focused()
    expect(report).to_contain_text(
        "Both have looked at 12 studies. third-look does not say negative of 3 studies of which second-look-2 did"
    )
    expect(report.get_by_role("row", name=re.compile("^was negative"))).to_have_text("was negative0308")
    expect(report.get_by_role("row", name=re.compile("^was positive"))).to_have_text("was positive0001")
    expect(report.get_by_role("row", name=re.compile("^hand"))).to_have_text("hand620.1000")
    expect(report.locator("a")).to_have_count(4)
    filled.shot("comparison")
    page.locator("#backfill-runs").get_by_role("button").first.click()
    expect(report.get_by_role("heading")).to_have_text(re.compile(r"^Backfill run of [0-9-]{10}, second-look-2$"))
    expect(report).to_contain_text(
        "3 studies that the older bundle assessed as negative are unclear or positive now, 1 no longer"
    )
    expect(report.get_by_role("row", name=re.compile("^outdated"))).to_have_text("outdated12")
    filled.shot("backfill-run")
    accessible(page)


def test_refused_kinds_are_chosen_by_page(site: Site) -> None:
    """By keyboard: what is chosen is in force at once, and given up again."""
    page = site.open("?tab=senders")
    part = page.locator("#refused-kinds")
    part.get_by_label("refuse secondary captures").press("Space")
    part.get_by_role("button", name="Refuse these").press("Enter")
    expect(page.locator("#said")).to_contain_text("Refused: secondary-capture.")
    expect(part).to_contain_text("the choice of this site")
    accessible(page)
    page = site.open("?tab=senders")
    expect(page.get_by_label("refuse secondary captures")).to_be_checked()
    page.locator("#refused-kinds").get_by_role("button", name="As the installation").press("Enter")
    expect(page.locator("#said")).to_contain_text("Nothing is refused.")
    expect(page.get_by_label("refuse secondary captures")).not_to_be_checked()


def test_what_results_state_is_chosen_by_page(site: Site) -> None:
    """By keyboard; another visit shows what was chosen."""
    for probability, modality, words in (
        (True, "CR", "state the probability; pictures are CR"),
        (False, "OT", "do not state"),
    ):
        part = site.open("?tab=results").locator("#result-choices")
        expect(part.get_by_label("state the calibrated probability")).to_be_checked(checked=not probability)
        part.get_by_label("state the calibrated probability").press("Space")
        part.get_by_label("Modality of pictures").select_option(modality)
        part.get_by_role("button", name="Choose").press("Enter")
        expect(part.page.locator("#said")).to_contain_text(words)


def test_turnaround_targets_are_changed_by_page(site: Site) -> None:
    """A table that fits is in force at once and moves what is unread; one that does not is refused in words."""
    site.sql(MANY.replace("generate_series(1, 100000)", "generate_series(1, 50)"))
    site.sql(ANALYSES)
    page = site.open("?tab=queue")
    field = page.get_by_label("pending, routine, minutes")
    field.fill("60")
    page.get_by_role("button", name="Change").click()
    expect(page.locator("#wrong")).to_contain_text("may not wait longer")
    for name in ("positive severe", "positive", "unclear", "abstained", "pending"):
        page.get_by_label(f"{name}, routine, minutes", exact=True).fill("5")
        page.get_by_label(f"{name}, urgent, minutes", exact=True).fill("5")
    page.get_by_role("button", name="Change").click()
    expect(page.locator("#said")).to_contain_text(
        "Changed. 50 unread studies moved; the longest wait is now 2880 minutes."
    )
    with site.database.transaction() as session:
        waits = session.scalars(
            text("SELECT DISTINCT due_at - received_at FROM studies WHERE priority = 'routine'")
        ).all()
    assert [wait.total_seconds() for wait in waits] == [300]
    site.shot("turnaround-targets")
