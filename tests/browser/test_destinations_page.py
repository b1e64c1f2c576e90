"""Where results go, on the operations page and on a study's, in a real browser."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import func, select, update

from api.operations.destinations import DestinationSettings
from infra.embedded.process import free_port
from shared.db.tables import DeliveryRow, DestinationRow, ResultObjectRow
from shared.domain.destinations import Destination, DestinationKind, Rule, When
from shared.domain.notices import Event
from shared.errors import BadRequest
from shared.queries import notices
from shared.settings import ROOT
from tests.browsing import call, log_in, needs_chromium, watched
from tests.conftest import InProcessApi
from tests.hospital import Hospital
from tests.pace import limit_s
from tests.results import DEFAULT, Archive, Outbox

pytestmark = needs_chromium
SHOTS = os.environ.get("OSTEON_SHOTS", "")  # a folder, for those who want to look
SIZES = ((1920, 1080), (1024, 768), (390, 844))


@pytest.fixture
def outbox(in_process: InProcessApi, hospital: Hospital, tmp_path: Path) -> Outbox:
    """What makes and sends the results of the site whose administrator looks."""
    (tmp_path / "out").mkdir()
    key = in_process.key("admin")
    settings = in_process.settings.model_copy(update={"delivery_folder": tmp_path / "out", "delivery_answer_s": 1.0})
    return Outbox(in_process.database, settings, key.site_id, key)


def analysed(in_process: InProcessApi, hospital: Hospital) -> UUID:
    hospital.add_bundle("b", manifest={"sensitive": 0.1, "specific": 0.6, "regions": ["hand"]})
    content = (ROOT / "samples" / "studies" / "01-hand" / "1-pa.dcm").read_bytes()
    study = UUID(in_process.post({"1": content}).json()["studies"][0]["id"])
    claim = hospital.claim(study, bundle="b")
    assert hospital.finish(claim, hospital.results(claim, "b"), "b")
    return study


def shoot(page: Page, name: str, part: str) -> None:
    """Look at a part in three sizes: nothing hangs over the edge."""
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate(f"document.getElementById('{part}').scrollIntoView()")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / f"{name}-{width}.png", timeout=limit_s(60) * 1000)
    page.set_viewport_size({"width": 1440, "height": 1000})


def accessible(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    grave = [
        (one["id"], [node["html"] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_a_destination_is_added_tested_and_tried_again_by_page(
    browser: Browser, in_process: InProcessApi, hospital: Hospital, outbox: Outbox, url: str, tmp_path: Path
) -> None:
    """By keyboard as well: what is wrong is said in the form, a test's answer appears, and what failed goes again."""
    with watched(browser, refused=(400, 422)) as page:
        page.set_default_timeout(limit_s(20) * 1000)
        log_in(page.context, url, in_process.keys["admin"])
        page.goto(f"{url}/operations?tab=results")
        section, dialog = page.locator("#destinations"), page.locator("#destination")
        expect(section).to_contain_text("Results go nowhere.")
        section.get_by_role("button", name="Add a destination").press("Enter")
        expect(dialog).to_be_visible()
        expect(dialog.get_by_label("URL, without")).to_be_hidden()
        shoot(page, "destination-dialog", "destination")
        accessible(page)
        dialog.get_by_label("Name", exact=True).fill("PACS")
        dialog.get_by_label("Host", exact=True).fill("127.0.0.1")
        dialog.get_by_label("AE title, of the archive").fill("PACS")
        dialog.get_by_role("button", name="Add").click()
        expect(dialog.get_by_role("alert")).to_contain_text("A port is a number")
        dialog.get_by_label("Port", exact=True).fill(str(free_port()))
        dialog.locator("[name=when]").select_option("analysed")
        dialog.get_by_label("the report as a PDF").check()
        dialog.get_by_role("button", name="Add").press("Enter")
        expect(page.locator("#said")).to_contain_text("PACS gets results from now on")
        rows = section.get_by_role("region", name="Destinations").locator("tbody tr")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("analysed: sc-overlay, sc-summary, sr-outlines, sr-statements, pdf")
        section.get_by_role("button", name="Add a destination").click()
        dialog.locator("[name=kind]").select_option("folder")
        expect(dialog.get_by_label("Host", exact=True)).to_be_hidden()
        dialog.get_by_label("Name", exact=True).fill("SHARE")
        dialog.get_by_label("Folder, below").fill("share")
        dialog.locator("[name=when]").select_option("analysed")
        dialog.get_by_role("button", name="Add").click()
        expect(rows).to_have_count(2)

        share = rows.filter(has_text="SHARE")
        share.get_by_role("button", name="Test").click()
        expect(share).to_contain_text("under way")
        outbox.send()
        expect(share).to_contain_text("Its folder is missing, or cannot be written to.")
        expect(share).to_contain_text("Osteon says: there is no such folder")
        expect(page.locator("#said")).to_contain_text("The test is done")

        study = analysed(in_process, hospital)
        outbox.make()
        outbox.send()
        call(page, "operations.js", "it.refresh()")
        expect(rows.filter(has_text="PACS")).to_contain_text("It takes no connection")
        expect(share).to_contain_text("Its folder is missing, or cannot be written to. Next try at")
        share.get_by_role("button", name="Try now").click()
        expect(page.locator("#said")).to_contain_text("Done: try now")
        expect(share).not_to_contain_text("Next try")
        with in_process.database.transaction() as session:
            its = select(DestinationRow.id).where(DestinationRow.name == "SHARE").scalar_subquery()
            told = {"state": "failed", "reason": "gave-up"}
            session.execute(update(DeliveryRow).where(DeliveryRow.destination_id == its).values(**told))
        call(page, "operations.js", "it.refresh()")
        failed = section.get_by_role("region", name="Failed, held and unconfirmed deliveries").locator("tbody tr")
        expect(failed).to_contain_text(str(study)[:8])
        expect(page.locator("#troubles")).to_contain_text(re.compile("destination SHARE of site .*: 1 failed. Look"))
        accessible(page)
        shoot(page, "destinations", "destinations")
        (tmp_path / "out" / "share").mkdir()
        share.get_by_role("button", name="Send again").click()
        page.get_by_role("dialog").get_by_role("button", name="Yes").click()
        expect(section.get_by_role("region", name="Failed, held and unconfirmed deliveries")).to_have_count(0)
        outbox.send()
        call(page, "operations.js", "it.refresh()")
        expect(share.locator("td").nth(5)).to_have_text("1")

        rows.filter(has_text="PACS").get_by_role("button", name="Change").click()
        expect(dialog.get_by_label("Name", exact=True)).to_be_hidden()
        expect(dialog.get_by_label("Host", exact=True)).to_have_value("127.0.0.1")
        dialog.get_by_label("AE title, of the archive").fill("ARCHIVE")
        dialog.get_by_role("button", name="Change").click()
        expect(rows.filter(has_text="PACS")).to_contain_text("ARCHIVE")
        rows.filter(has_text="PACS").get_by_role("button", name="Disable").click()
        page.get_by_role("dialog").get_by_role("button", name="Yes").click()
        expect(rows.filter(has_text="PACS")).to_contain_text("disabled")


def test_the_form_asks_for_every_setting() -> None:
    """Of each kind what it has, no less and no more: a setting that the form lacks would be lost with each change by it."""
    html = (ROOT / "api/pages/templates/destinations.html").read_text()
    labels = re.findall(r'<label[^>]*data-kinds="([^"]+)">.*?name="(\w+)"', html)
    asked = {(kind, name) for kinds, name in labels for kind in kinds.split() if name != "events"}
    other: dict[str, Any] = {
        "host": "other.example", "port": 99, "called_ae": "OTHER", "calling_ae": "OTHER", "tls_fingerprint": "ab" * 32,
        "url": "https://other.example/a", "folder": "other", "confirm": True, "application": "OTHER",
        "facility": "OTHER", "sending_application": "OTHER", "sending_facility": "OTHER", "character_set": "8859/1",
        "accession": "both", "processing": "T", "probability": True, "networks": "10.1.0.0/16",
        "address": "other@hospital.example",
    }  # fmt: skip
    assert {*other} == {*DestinationSettings.model_fields} - {"kind"}
    for kind in DestinationKind:
        needed = "host", "port", "called_ae", "url", "folder", "address"
        least = {name: other[name] for name in needed if (kind, name) in asked}
        for name, value in other.items():
            try:
                kept = getattr(Destination(kind, **least | {name: value}).validate(), name) == value
            except BadRequest:
                kept = False
            assert kept == ((kind, name) in asked), (kind, name)


@pytest.mark.slow
def test_receivers_of_messages_are_added_and_changed_by_page(
    browser: Browser, in_process: InProcessApi, hospital: Hospital, outbox: Outbox, url: str
) -> None:
    """HL7 with its mapping, which a change keeps; a webhook, whose secret is shown once and replaced."""
    with watched(browser, refused=(400, 403)) as page:
        page.set_default_timeout(limit_s(20) * 1000)
        log_in(page.context, url, in_process.keys["admin"])
        page.goto(f"{url}/operations?tab=results")
        section, dialog = page.locator("#destinations"), page.locator("#destination")
        rows = section.get_by_role("region", name="Destinations").locator("tbody tr")
        section.get_by_role("button", name="Add a destination").click()
        dialog.locator("[name=kind]").select_option("hl7-tls")
        expect(dialog.get_by_label("AE title, of the archive")).to_be_hidden()
        expect(dialog.get_by_label("the report as a PDF")).to_be_hidden()
        expect(dialog.get_by_label("it was read")).to_be_hidden()
        expect(dialog.get_by_label("Character set (MSH-18)")).to_have_value("UNICODE UTF-8")
        dialog.get_by_label("Name", exact=True).fill("RIS")
        dialog.get_by_label("Host", exact=True).fill("127.0.0.1")
        dialog.get_by_label("Port", exact=True).fill(str(free_port()))
        dialog.get_by_label("Application of the receiver").fill("RIS")
        dialog.get_by_label("Facility of Osteon").fill("NORTH")
        dialog.get_by_label("Accession number in").select_option("both")
        dialog.get_by_label("Character set (MSH-18)").select_option("8859/1")
        dialog.get_by_label("Processing").select_option("training")
        dialog.get_by_label("tell the calibrated probability").check()
        shoot(page, "destination-hl7", "destination")
        accessible(page)
        dialog.get_by_role("button", name="Add").click()
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("HL7, TLS: OSTEON|NORTH → RIS at 127.0.0.1:")
        expect(rows).to_contain_text("8859/1; accession number in OBR-2 and OBR-3; training; with the probability")
        expect(rows).to_contain_text("complete: study.analysed, study.revised")
        rows.get_by_role("button", name="Change").click()
        expect(dialog.get_by_label("Application of the receiver")).to_have_value("RIS")
        dialog.get_by_label("Application of the receiver").fill("RIS2")
        dialog.get_by_role("button", name="Change").click()
        expect(rows).to_contain_text("→ RIS2 at")
        expect(rows).to_contain_text("8859/1; accession number in OBR-2 and OBR-3; training; with the probability")

        section.get_by_role("button", name="Add a destination").click()
        dialog.locator("[name=kind]").select_option("webhook")
        dialog.get_by_label("Name", exact=True).fill("HOOK")
        expect(dialog.get_by_label("URL, without")).to_be_hidden()
        expect(dialog.get_by_label("Networks beside")).not_to_be_editable()
        dialog.get_by_label("URL of the receiver").fill("http://hooks.example/osteon")
        dialog.get_by_label("it was read").uncheck()
        dialog.get_by_role("button", name="Add").click()
        expect(dialog.get_by_role("alert")).to_contain_text("https://")
        dialog.get_by_label("URL of the receiver").fill("https://hooks.example/osteon")
        shoot(page, "destination-webhook", "destination")
        dialog.get_by_role("button", name="Add").click()
        box = page.locator("#webhook-secret")
        expect(box).to_be_focused()
        expect(box).to_contain_text("The secret of HOOK.")
        first = box.locator("code").inner_text()
        assert first.startswith("whsec_")
        accessible(page)
        call(page, "operations.js", "it.refresh()")
        expect(box.locator("code")).to_have_text(first)
        box.get_by_role("button", name="Hide").click()
        expect(box).to_be_hidden()
        assert first not in page.content()
        hook = rows.filter(has_text="HOOK")
        expect(hook).to_contain_text("webhook: https://hooks.example/osteon")
        expect(hook).to_contain_text("1 secret signs")
        expect(hook).to_contain_text("complete: study.analysed, study.quarantined, study.revised")
        hook.get_by_role("button", name="New secret for").click()
        page.get_by_role("dialog").get_by_role("button", name="Yes").click()
        expect(box.locator("code")).not_to_have_text(first)
        second = box.locator("code").inner_text()
        expect(hook).to_contain_text("2 secrets sign")
        hook.get_by_role("button", name="New secret at once").click()
        page.get_by_role("dialog").get_by_role("button", name="Yes").click()
        expect(box.locator("code")).not_to_have_text(second)
        expect(hook).to_contain_text("1 secret signs")


def test_only_an_operator_names_networks_by_page(
    browser: Browser, in_process: InProcessApi, hospital: Hospital, url: str
) -> None:
    """A change by a site's administrator keeps what an operator named."""
    for role, address in (("operator", "https://hooks.example/a"), ("admin", "https://hooks.example/b")):
        with watched(browser) as page:
            page.set_default_timeout(limit_s(20) * 1000)
            log_in(page.context, url, in_process.keys[role])
            page.goto(f"{url}/operations?tab=results")
            section, dialog = page.locator("#destinations"), page.locator("#destination")
            if role == "operator":
                section.get_by_role("button", name="Add a destination").click()
                dialog.locator("[name=kind]").select_option("webhook")
                dialog.get_by_label("Name", exact=True).fill("EVENTS")
                dialog.get_by_label("Networks beside").fill("10.1.0.0/16")
            else:
                section.get_by_role("button", name="Change").click()
            dialog.get_by_label("URL of the receiver").fill(address)
            dialog.locator("#destination-save").click()
            expect(section).to_contain_text(f"webhook: {address}")
            expect(section).to_contain_text("in 10.1.0.0/16; 1 secret signs")


@pytest.mark.slow
def test_what_an_archive_does_not_keep_is_decided_by_page(
    browser: Browser, in_process: InProcessApi, hospital: Hospital, outbox: Outbox, url: str
) -> None:
    """Committed with the time, not confirmed yet, not kept with the archive's reason and a button that sends again."""
    archive = Archive(commits=lambda _: 0x0000, at_once=True)
    outbox.settings = outbox.settings.model_copy(update={"delivery_answer_s": 30.0, "lease_s": 60.0})
    with archive.open(), watched(browser, refused=(404,)) as page:
        page.set_default_timeout(limit_s(20) * 1000)
        log_in(page.context, url, in_process.keys["admin"])
        page.goto(f"{url}/operations?tab=results")
        section, dialog = page.locator("#destinations"), page.locator("#destination")
        section.get_by_role("button", name="Add a destination").click()
        for label, value in (("Name", "PACS"), ("Host", "127.0.0.1"), ("Port", str(archive.port))):
            dialog.get_by_label(label, exact=True).fill(value)
        dialog.get_by_label("AE title, of the archive").fill("ARCHIVE")
        dialog.locator("[name=when]").select_option("analysed")
        dialog.get_by_label("ask it whether it keeps").check()
        dialog.get_by_role("button", name="Add").click()
        row = section.get_by_role("region", name="Destinations").locator("tbody tr")
        expect(row.locator("[data-label=commitment]")).to_have_text("asked for")
        study = analysed(in_process, hospital)
        outbox.make()
        with in_process.database.transaction() as session:
            archive.not_kept = {str(session.scalars(select(ResultObjectRow.sop_instance_uid)).first()): 0x0213}
        outbox.send()
        call(page, "operations.js", "it.refresh()")
        expect(row.locator("[data-label=commitment]")).to_have_text("1 not confirmed")
        undecided = section.get_by_role("region", name="Failed, held and unconfirmed deliveries").locator("tbody tr")
        expect(undecided).to_contain_text("not kept")
        expect(undecided.get_by_role("button", name="Send what it lacks again")).to_be_visible()
        expect(page.locator("#troubles")).to_contain_text(re.compile("destination PACS of site .*: 1 not confirmed"))
        accessible(page)
        shoot(page, "destinations-unconfirmed", "destinations")

        page.goto(f"{url}/view/{study}#results")
        results = page.locator("#results")
        expect(results).to_contain_text(
            re.compile(r"sent to PACS at .*\d\d:\d\d:\d\d.*, not kept: It was sent, and says")
        )
        expect(results).to_contain_text("4 of 4 objects; 1 not kept; 3 committed")
        accessible(page)
        shoot(page, "study-unconfirmed", "results")
        results.get_by_role("button", name="Send what it lacks again").click()
        expect(results).to_contain_text("waits for PACS")
        archive.not_kept, archive.at_once = {}, False
        outbox.send()
        page.reload()
        expect(results).to_contain_text("not confirmed yet")
        assert len(archive.received) == 5  # the lost one again, and no other
        with in_process.database.transaction() as session:
            told = {"confirmation": "confirmed", "confirmed_at": func.now()}
            session.execute(update(DeliveryRow).values(told))
        page.reload()
        expect(results).to_contain_text(re.compile(r"sent to PACS at .*, committed at .*\d\d:\d\d:\d\d"))


def test_a_studys_page_says_what_receivers_were_told(
    browser: Browser, in_process: InProcessApi, hospital: Hospital, outbox: Outbox, url: str
) -> None:
    """A message is named by its event, and has no objects to count."""
    hook = Destination(DestinationKind.WEBHOOK, url="https://hooks.example/osteon")
    outbox.add(hook, Rule(When.ANALYSED, events=(Event.ANALYSED,)), name="EVENTS")
    study = analysed(in_process, hospital)
    with in_process.database.transaction() as session:
        while notices.write_next_deliveries(session, outbox.settings.backfill_timezone) is not None:
            pass
    for told, words in (
        ({"state": "waiting"}, "study.analysed waits for EVENTS"),
        ({"state": "failed", "reason": "address-not-allowed"}, "failed, study.analysed to EVENTS: Its name leads into"),
        ({"state": "sent", "reason": "", "sent_at": func.now()}, "study.analysed told to EVENTS at"),
    ):
        with in_process.database.transaction() as session:
            session.execute(update(DeliveryRow).values(**told))
        with watched(browser, refused=(404, 409)) as page:
            log_in(page.context, url, in_process.keys["admin"])
            page.goto(f"{url}/view/{study}")
            expect(page.locator("#results")).to_contain_text(words)
            expect(page.locator("#results .delivery")).not_to_contain_text("objects")
            if told["state"] == "failed":
                page.goto(f"{url}/operations?tab=results")
                listed = page.get_by_role("region", name="Failed, held and unconfirmed deliveries")
                expect(listed.locator("[data-label=what]")).to_have_text("study.analysed")


def test_a_studys_page_says_where_its_results_went(
    browser: Browser, in_process: InProcessApi, hospital: Hospital, outbox: Outbox, url: str, tmp_path: Path
) -> None:
    """Sent and when, failed with the peer's words, held until somebody compares, waiting; readers get no buttons."""
    (tmp_path / "out" / "share").mkdir()
    rule = Rule(When.ANALYSED, DEFAULT)
    outbox.add(Destination(DestinationKind.FOLDER, folder="share"), rule, name="SHARE")
    archive = Destination(DestinationKind.DICOM, "127.0.0.1", free_port(), "PACS")
    for name in ("FAILS", "HOLDS", "AWAY"):
        outbox.add(replace(archive), rule, name=name)
    study = analysed(in_process, hospital)
    outbox.make()
    outbox.send()
    with in_process.database.transaction() as session:
        for name, told in {
            "FAILS": {"state": "failed", "reason": "refused", "status": "A900", "words": "Data set does not match"},
            "HOLDS": {"state": "held", "reason": "patient-differs"},
        }.items():
            its = select(DestinationRow.id).where(DestinationRow.name == name).scalar_subquery()
            session.execute(update(DeliveryRow).where(DeliveryRow.destination_id == its).values(**told))
    with watched(browser, refused=(404,)) as page:  # no worker has made a preview
        page.set_default_timeout(limit_s(20) * 1000)
        log_in(page.context, url, in_process.keys["admin"])
        page.goto(f"{url}/view/{study}#results")
        results = page.locator("#results")
        expect(results).to_contain_text(re.compile(r"sent to SHARE at .*\d\d:\d\d:\d\d.*4 of 4 objects"))
        expect(results).to_contain_text("waits for AWAY: It takes no connection")
        expect(results).to_contain_text("It refuses what it was sent, as its answer says.")
        expect(results).to_contain_text("It said: A900 · Data set does not match")
        results.get_by_text("What was made").click()
        expect(results).to_contain_text("after the analysis: made")
        expect(results).to_contain_text(re.compile("1 . summary picture"))
        accessible(page)
        shoot(page, "study-results", "results")
        expect(results.get_by_role("button", name="It is the same patient")).to_be_hidden()
        results.get_by_text("Send all the same").press("Enter")
        results.get_by_role("button", name="It is the same patient").press("Enter")
        expect(page.locator("#results .delivery-held")).to_have_count(0)
        page.locator("#results").get_by_role("button", name="Send again").click()
        expect(page.locator("#results .delivery-failed")).to_have_count(0)
        expect(page.locator("#results .delivery-waiting")).to_have_count(3)
        page.locator("#results").get_by_role("button", name="Make and send now").click()
        expect(page.locator("#results-made li")).to_have_count(2)
    with watched(browser, refused=(404, 409)) as page:  # 409: the administrator's page still holds the study
        page.set_default_timeout(limit_s(20) * 1000)
        log_in(page.context, url, in_process.keys["radiologist"])
        page.goto(f"{url}/view/{study}")
        expect(page.locator("#results")).to_contain_text("sent to SHARE")
        expect(page.locator("#results button")).to_have_count(0)
        expect(page.locator("#results")).not_to_contain_text("It said")
