"""Reruns as a radiologist meets them: a real browser against the API, with studies that have only rows."""

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select
from typer.testing import CliRunner

from infra import cli
from infra.embedded.process import free_port
from shared.db.clock import db_now
from shared.db.tables import KeyRow, RevisedFindingRow
from shared.domain.analysis import Claim
from shared.domain.findings import Assessment, Extent, Finding, Heatmap, InstanceResult
from shared.domain.study import Identity, Priority
from shared.queries import analyses, backfill
from shared.queries.access import Vault
from shared.queries.models import activate_bundle, active_bundle, add_bundle
from tests import browsing
from tests.browsing import needs_chromium
from tests.conftest import InProcessApi
from tests.hospital import Hospital
from tests.pace import LIMIT_S, limit_s

NAMES = ["DOE^JANE", "<b>EVIL</b>^NAME", "ROE^RICHARD"]
MANIFEST = {"sensitive": 0.1, "specific": 0.6, "regions": ["hand", "elbow"]}

pytestmark = needs_chromium


@pytest.fixture
def revised(hospital: Hospital, in_process: InProcessApi) -> list[UUID]:
    """Three studies that an older bundle called negative; bundle "third-look" does not."""
    vault = Vault(in_process.settings.identity_key.get_secret_value())
    for name in ("second-look", "third-look"):
        with hospital.database.transaction() as session:
            add_bundle(session, name, "0" * 64, MANIFEST)
            activate_bundle(session, name)
    hospital.vault = vault
    studies = [hospital.study() for _ in NAMES]
    for study, name in zip(studies, NAMES, strict=True):
        with hospital.database.transaction() as session:
            session.connection().exec_driver_sql("DELETE FROM identities WHERE study_id = %s", (str(study),))
            vault.store_identities(
                session, hospital.site_id, {study: Identity(name, f"PID-{study.hex[:4]}", "19700101", "")}
            )
        claim = hospital.claim(study, bundle="second-look")
        hospital.finish(claim, found(claim, "second-look", 0.02, Assessment.NEGATIVE), "second-look")
    with hospital.database.transaction() as session:
        backfill.open_backfill_run(session, datetime.now(UTC).date(), datetime.now(UTC), "third-look", 4.0, 100)
    with hospital.database.transaction() as session:
        backfill.next_batch(session, backfill.Pacing(9, 2.0, timedelta(8)), dict.fromkeys(Priority), datetime.now(UTC))
    for study, chance in zip(studies, (0.91, 0.45, 0.7), strict=True):
        asked = hospital.rerun(study, "third-look").id
        with hospital.database.transaction() as session:
            now = db_now(session)
            (claim,) = analyses.claim(session, [asked], "third-look", now, timedelta(60), max_attempts=4)
            assert isinstance(claim, Claim)
            assessment = Assessment.POSITIVE if chance > 0.6 else Assessment.UNCLEAR
            done = analyses.AnalysisResult(claim, found(claim, "third-look", chance, assessment))
            assert analyses.finish(session, [done], now) == [True]
    return studies


def found(claim: Claim, bundle: str, chance: float, assessment: Assessment) -> list[InstanceResult]:
    severity = Extent.NONE if assessment is Assessment.NEGATIVE else Extent.MILD
    finding = Finding(1, bundle, "elbow", 0.9, chance, assessment, severity, Heatmap(b"\0" * 4, 2, 2))
    return [InstanceResult(one.id, [finding]) for one in claim.instances]


@pytest.fixture
def url(in_process: InProcessApi) -> Iterator[str]:
    """The API on a port, for a browser."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(in_process.http.app, port=port, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(LIMIT_S)


def test_revised_findings_are_read_opened_and_seen(
    browser: Browser, hospital: Hospital, in_process: InProcessApi, revised: list[UUID], url: str, tmp_path: Path
) -> None:
    """The list has the likeliest fracture first, old words and new ones, leads to the study, and loses what was seen, for
    good; nothing hangs over the edge of a narrow window, and the console stays silent."""
    page = browser.new_page(viewport={"width": 1440, "height": 900}, timezone_id="Asia/Kathmandu")
    page.set_default_timeout(limit_s(30) * 1000)
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{url}/revised")
    page.get_by_label("Your key").fill(in_process.keys["radiologist"])
    page.get_by_role("button", name="Log in").click()
    findings = page.locator(".revised-finding")
    expect(findings).to_have_count(3)
    expect(page.get_by_role("link", name="Revised findings 3 not seen")).to_be_visible()
    assert [re.sub(r"\s+", " ", text) for text in page.locator(".patient .open").all_inner_texts()] == [
        "DOE, JANE", "ROE, RICHARD", "<b>EVIL</b>, NAME"
    ]  # fmt: skip
    expect(findings.first).to_contain_text("negative")
    expect(findings.first).to_contain_text("positive")
    expect(findings.first.locator("time").first).not_to_contain_text("UTC")
    for width in (1440, 900, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(path=os.environ.get("SHOTS", str(tmp_path)) + f"/findings-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1440, "height": 900})
    page.get_by_role("link", name="DOE, JANE", exact=True).click()
    expect(page).to_have_url(f"{url}/view/{revised[0]}")
    page.go_back()
    page.get_by_role("button", name="Seen DOE, JANE").click()
    expect(page).to_have_url(f"{url}/revised")
    expect(findings).to_have_count(2)
    page.reload()
    expect(findings).to_have_count(2)
    for _ in range(2):
        page.get_by_role("button", name="Seen").first.click()
        page.wait_for_load_state()
    expect(page.get_by_role("heading", name="Nothing to look at again")).to_be_visible()
    # the radiographs have no pictures here: what the study's page lacks is no error of this page
    assert [error for error in errors if "404" not in error] == []
    page.context.close()
    with hospital.database.transaction() as session:
        assert set(
            session.scalars(select(KeyRow.name).join(RevisedFindingRow, RevisedFindingRow.seen_by == KeyRow.id))
        ) == {"radiologist"}


def test_the_command_line_tells_the_same(
    hospital: Hospital, in_process: InProcessApi, revised: list[UUID], url: str
) -> None:
    """`osteon bundles`, `shadow`, `compare-bundles` and `backfill` print what the API answers, for people and as JSON."""
    bare = CliRunner()

    def osteon(*words: str) -> tuple[int, str]:
        key = in_process.keys["operator" if words[0] == "shadow" else "admin"]
        done = bare.invoke(cli.app, [*words, "--url", url, "--key", key])
        return done.exit_code, done.output

    states = {one["name"]: one["state"] for one in json.loads(osteon("bundles", "--json")[1])}
    assert states == {"a": "available", "second-look": "available", "third-look": "active"}
    assert "third-look" in osteon("bundles")[1]
    code, said = osteon("compare-bundles", "second-look", "third-look")
    assert (code, "3 studies that both have looked at" in said, str(revised[0]) in said) == (0, True, True)
    assert json.loads(osteon("compare-bundles", "second-look", "third-look", "--json")[1])["newly_positive"] == 3
    code, said = osteon("shadow", "second-look", "--limit", "5")
    assert (code, "second-look: shadow" in said) == (0, True)
    assert osteon("shadow", "third-look")[0] == 1
    assert "available" in osteon("shadow", "second-look", "--retire")[1]
    kinds = {run["kind"] for run in json.loads(osteon("backfill", "--json")[1])}
    assert kinds == {"backfill", "shadow"}
    assert "shadow" in osteon("backfill")[1]
    code, said = osteon("backfill", str(datetime.now(UTC).date()))
    assert (code, "3 studies called negative before are unclear or positive now" in said, str(revised[0]) in said) == (
        0,
        True,
        True,
    )
    assert osteon("backfill", "2020-01-01")[0] == 1


@pytest.mark.usefixtures("revised", "address")
def test_a_stored_bundle_is_promoted_by_its_name(
    hospital: Hospital, in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`osteon activate NAME` makes a stored bundle the active one; a name that nobody stored is an error in words."""
    monkeypatch.setenv("OSTEON_KEY", in_process.keys["operator"])
    done = CliRunner().invoke(cli.app, ["activate", "second-look"])
    assert (done.exit_code, done.output) == (0, "second-look is active\n")
    with hospital.database.transaction() as session:
        active = active_bundle(session)
        assert active is not None and active.name == "second-look"
    done = CliRunner().invoke(cli.app, ["activate", "nobody-s"])
    assert (done.exit_code, "no bundle has this name" in done.output) == (1, True)


def test_the_worklist_says_that_revised_findings_wait(revised: list[UUID], in_process: InProcessApi) -> None:
    """Above the worklist stands how many wait, until the last one has been seen."""
    headers = in_process.headers("radiologist")
    in_process.http.post("/login", data={"key": in_process.keys["radiologist"]})

    def told() -> int | None:
        page = in_process.http.get("/", headers={"Accept": "text/html"})
        found = re.search(r"(\d+) stud(?:y|ies) that an older model assessed as negative", page.text)
        return found and int(found[1])

    assert told() == len(revised)
    for left in (2, 1, None):
        (first, *_) = in_process.http.get("/api/v1/revised-findings", headers=headers).json()["revised_findings"]
        assert in_process.http.post(f"/api/v1/revised-findings/{first['id']}/seen", headers=headers).status_code == 204
        assert told() == left


def log_in(browser: Browser, in_process: InProcessApi, url: str, role: str = "radiologist") -> Page:
    """A reader's page in a profile of its own."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, base_url=url)
    browsing.log_in(context, url, in_process.keys[role])
    page = context.new_page()
    page.set_default_timeout(limit_s(30) * 1000)
    page.goto("/")
    return page


def shoot(page: Page, name: str) -> None:
    """Pictures of three sizes for people to look at, where OSTEON_SHOTS names a folder; nothing hangs over the edge."""
    for width, height in ((1920, 1080), (1024, 768), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
        if "OSTEON_SHOTS" in os.environ:
            page.screenshot(path=Path(os.environ["OSTEON_SHOTS"]) / f"{name}-{width}.png")
    page.set_viewport_size({"width": 1440, "height": 900})


def grave(page: Page) -> list[str]:
    """What axe finds serious or critical."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


def test_a_revised_finding_is_seen_on_its_study(
    browser: Browser, hospital: Hospital, in_process: InProcessApi, revised: list[UUID], url: str
) -> None:
    """From the count in the navigation over the list to the study: its banner tells both assessments, Seen is pressed by
    key, radiographs and claim stay, the count falls, and the history has who and when."""
    hospital.set(revised[0], read_at=datetime.now(UTC) - timedelta(days=1))
    page = log_in(browser, in_process, url)
    page.get_by_role("link", name="Revised findings 3 not seen").click()
    assert [re.sub(r"\s+", " ", one) for one in page.locator(".revised > h2").all_inner_texts()] == [
        "Already read nobody comes back to these studies by themselves",
        "Not read yet these studies stand in the worklist, too",
    ]
    expect(page.locator("#revised-read ~ ul .revised-finding")).to_have_count(1)
    expect(page.locator("#revised-unread ~ ul .revised-finding")).to_have_count(2)
    assert grave(page) == []
    shoot(page, "revised-list")
    page.get_by_role("link", name="DOE, JANE", exact=True).click()
    banner = page.get_by_role("region", name="Revised finding: positive")
    expect(banner).to_contain_text("third-look found this")
    expect(banner).to_contain_text(re.compile("second-look had said .*negative"))
    expect(banner).to_contain_text("The study was marked as read")
    expect(banner.locator("time").first).not_to_contain_text("UTC")
    expect(page.locator("#lock")).to_contain_text("You read this study")
    assert grave(page) == []
    shoot(page, "revised-banner")
    page.evaluate("window.same = true")
    banner.get_by_role("button", name="Seen").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".revision-seen")).to_contain_text("You have seen it")
    expect(page.locator(".revision-seen")).to_be_focused()
    expect(page.get_by_role("link", name="Revised findings 2 not seen")).to_be_visible()
    assert page.evaluate("window.same")
    page.locator("#history summary").click()
    expect(page.locator("#entries")).to_contain_text("radiologist has seen the revised finding of third-look")
    page.reload()
    expect(page.locator(".revision-seen")).to_contain_text("Seen by radiologist")
    expect(banner).to_have_count(0)
    shoot(page, "revised-seen")
    page.goto(f"/view/{revised[1]}")
    page.get_by_role("button", name="Seen").click()
    expect(page.get_by_role("link", name="Revised findings 1 not seen")).to_be_visible()
    page.context.close()


@pytest.fixture
def live_url(in_process: InProcessApi) -> Iterator[str]:
    """The same API, whose streams live in the loop of its own server."""
    app: Any = in_process.http.app
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    events = app.state.parts.events

    def serve() -> None:
        async def run() -> None:
            events._loop = asyncio.get_running_loop()
            await server.serve()

        asyncio.run(run())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    events._end_streams()
    server.should_exit = True
    thread.join(LIMIT_S)


@pytest.mark.slow
def test_the_count_is_live_on_open_pages(
    browser: Browser, in_process: InProcessApi, revised: list[UUID], live_url: str
) -> None:
    """What a colleague has seen leaves the count of a study's page and of the agreement page; none asks on its own."""
    study, rates = (log_in(browser, in_process, live_url) for _ in range(2))
    study.goto(f"/view/{revised[2]}")
    rates.goto("/agreement")
    for page in (study, rates):
        expect(page.locator("#revised-count")).to_have_text("3 not seen")
        page.evaluate("for (let id = 0; id < 10000; id++) clearInterval(id)")
    headers = in_process.headers("admin")
    for left in (2, 1, 0):
        (first, *_) = in_process.http.get("/api/v1/revised-findings", headers=headers).json()["revised_findings"]
        assert in_process.http.post(f"/api/v1/revised-findings/{first['id']}/seen", headers=headers).status_code == 204
        for page in (study, rates):
            expect(page.locator("#revised-count")).to_have_attribute("data-count", str(left))
    expect(study.locator("#revised-count")).to_be_hidden()
    expect(study.locator("#news")).to_be_visible()  # this very study's finding was seen, too
    for page in (study, rates):
        page.context.close()
