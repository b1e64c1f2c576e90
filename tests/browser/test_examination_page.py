"""The examination is named wherever a study stands, and an administrator decides on conflicts: in a real browser."""

import io
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from pydicom import dcmread

from infra.embedded.process import free_port
from samples.objects import to_bytes
from shared.storage import preview_key
from tests.browsing import needs_chromium, watched
from tests.conftest import InProcessApi
from tests.hospital import Hospital
from tests.pace import LIMIT_S, limit_s

REPORTS = Path(__file__).parents[1] / "data/field_reports"
SHOTS = os.environ.get("OSTEON_SHOTS", "")  # a folder, for those who want to look
SIZES = ((1920, 1080), (1024, 768), (390, 844))
LONG = "Unterschenkel beidseits in zwei Ebenen <b>mit</b> Sprunggelenk"
NAMED = {
    "PatientName": "SAMPLE^UNA", "PatientID": "SAMPLE-0021", "PatientSex": "F", "PatientAge": "041Y",
    "StudyDate": "20261128", "StudyTime": "140200", "StudyDescription": LONG, "SeriesDescription": "Tibia AP",
    "BodyPartExamined": "TIBIA FIBULA", "Laterality": "R", "ViewPosition": "AP", "Manufacturer": "AGFA",
    "ManufacturerModelName": "DX-D", "AccessionNumber": "A-20931", "IssuerOfPatientID": "ST ANNA",
}  # fmt: skip
PRIOR = NAMED | {"StudyDate": "20250312", "StudyDescription": "Knee", "BodyPartExamined": "KNEE"}
BARE = dict.fromkeys((*NAMED, "PatientBirthDate"), "")

pytestmark = needs_chromium


def file(name: str, **values: Any) -> bytes:
    ds = dcmread(REPORTS / name)
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, ds.file_meta.TransferSyntaxUID)


@pytest.fixture
def studies(hospital: Hospital, in_process: InProcessApi) -> dict[str, str]:
    """Analysed studies: one that says everything and has a prior, one that says nothing, a conflict, and a correction."""
    hospital.add_bundle("b", manifest={"sensitive": 0.1, "specific": 0.6, "regions": ["hand"]})
    sent = {
        "named": [
            file("o1-first.dcm", StudyInstanceUID="2.25.1", SOPInstanceUID="2.25.11", **NAMED),
            file("o1-first.dcm", StudyInstanceUID="2.25.1", SOPInstanceUID="2.25.12", **{**NAMED, "ViewPosition": "LL"}),
        ],
        "prior": [
            file("o1-first.dcm", StudyInstanceUID="2.25.3", SOPInstanceUID="2.25.31", **{**PRIOR, "ViewPosition": "LL"}),
            file("o1-first.dcm", StudyInstanceUID="2.25.3", SOPInstanceUID="2.25.32", **PRIOR),
        ],
        "bare": [file("o1-first.dcm", StudyInstanceUID="2.25.2", SOPInstanceUID="2.25.21", **BARE)],
        "first": [(REPORTS / "o2-first-patient.dcm").read_bytes()],
        "corrected": [(REPORTS / "o1-first.dcm").read_bytes()],
    }  # fmt: skip
    ids = {}
    store = in_process.http.app.state.parts.store  # type: ignore[attr-defined]
    for name, contents in sent.items():
        receipt = in_process.post({str(n): content for n, content in enumerate(contents)}).json()
        ids[name] = receipt["studies"][0]["id"]
        study = UUID(ids[name])
        claim = hospital.claim(study, bundle="b")
        assert hospital.finish(claim, hospital.results(claim, "b"), "b")
        for content, one in zip(contents, hospital.instances(study), strict=True):
            ds = dcmread(io.BytesIO(content))
            out = io.BytesIO()
            Image.frombytes("L", (ds.Columns, ds.Rows), ds.PixelData[: ds.Rows * ds.Columns]).save(out, "JPEG")
            store.put(preview_key(one.sha256, 1), io.BytesIO(out.getvalue()), len(out.getvalue()))
    for name in ("o2-second-patient-same-study-uid.dcm", "o1-corrected-name.dcm"):
        assert in_process.post({name: (REPORTS / name).read_bytes()}).status_code == 200
    return ids


@pytest.fixture
def url(in_process: InProcessApi) -> Iterator[str]:
    """The API on a port, for a browser."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(in_process.http.app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(LIMIT_S)


def log_in(page: Page, url: str, secret: str) -> None:
    page.goto(f"{url}/login")
    page.get_by_label("Your key").fill(secret)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Worklist")).to_be_visible()


def shoot(page: Page, name: str) -> None:
    """Look at it in three sizes: nothing hangs over the edge."""
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / f"{name}-{width}.png", timeout=limit_s(60) * 1000)
    page.set_viewport_size({"width": 1440, "height": 900})


def test_examination_is_named(browser: Browser, in_process: InProcessApi, studies: dict[str, str], url: str) -> None:
    """List, search, study, thumbnails and report name it; what is missing leaves no sign; text is text."""
    with watched(browser) as page:
        log_in(page, url, in_process.keys["radiologist"])
        row = page.locator(f"[data-study='{studies['named']}']")
        expect(row.locator(".patient")).to_contain_text("F · 41 y · SAMPLE-0021")
        expect(row.locator(".examination")).to_contain_text("28 Nov 2026, 14:02 · CR")
        whole = f"{LONG}, AP, LL, right"
        expect(row.locator(f".examination [title='{whole}']")).to_have_text(
            re.compile("^Unterschenkel.*…, AP, LL, right$")
        )
        bare = page.locator(f"[data-study='{studies['bare']}']")
        expect(bare.locator(".patient")).to_have_text("Name not given")
        expect(bare.locator(".examination")).to_have_text("CR")
        shoot(page, "examination-worklist")

        page.get_by_role("searchbox").fill("PID-SECOND")
        page.keyboard.press("Enter")
        expect(page.locator(".held")).to_contain_text("under the Study Instance UID of another patient")
        shoot(page, "examination-search")

        page.goto(f"{url}/view/{studies['named']}")
        page.locator("#more > summary").click()
        identity = page.locator("#more .sheet")
        for words in ("SAMPLE-0021 · ST ANNA", "F · 41 y", "28 Nov 2026, 14:02 · AGFA DX-D", "A-20931"):
            expect(identity).to_contain_text(words)
        page.locator("#more > summary").click()
        expect(page.locator(".case .identity")).to_contain_text("SAMPLE, UNA")
        expect(page.locator(".thumb .seen").first).to_have_text("AP, right")
        expect(page.locator("#image-1")).to_contain_text("AP, right · Tibia AP · CR")
        shoot(page, "examination-study")
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()

        page.goto(f"{url}/view/{studies['first']}")
        expect(page.locator(".rail .held")).to_contain_text("1 file of another patient")
        page.goto(f"{url}/view/{studies['corrected']}")
        expect(page.locator(".rail .held")).to_contain_text("1 corrected header waits")
        shoot(page, "examination-study-corrected")

        page.goto(f"{url}/view/{studies['named']}/report")
        expect(page.locator(".facts")).to_contain_text(f"{LONG}, AP, LL, right")
        expect(page.locator("#radiograph-1")).to_contain_text("AP, right, CR")
        shoot(page, "examination-report")
        page.goto(f"{url}/view/{studies['bare']}/report")
        expect(page.locator(".facts")).not_to_contain_text("Examination")
        page.goto(f"{url}/login")


def test_priors_stand_beside(browser: Browser, in_process: InProcessApi, studies: dict[str, str], url: str) -> None:
    """A strip under the images and words in the rail; the same view first. Without script a prior is a link."""
    with watched(browser) as page:
        log_in(page, url, in_process.keys["radiologist"])
        page.goto(f"{url}/view/{studies['named']}")
        thumbs = page.locator("#priors .thumb")
        expect(thumbs).to_have_count(2)
        named = re.compile(r"Prior of 12 Mar 2025: Knee, .*positive\. Image 2, AP, right")
        expect(page.get_by_role("button", name=named)).to_be_visible()
        first = {
            name: thumbs.first.get_attribute(f"data-{name}") for name in ("prior", "study", "image", "frame", "view")
        }
        assert first == {
            "prior": "12 Mar 2025", "study": studies["prior"], "image": "2", "frame": "1", "view": "AP, right",
        }  # fmt: skip
        assert thumbs.first.evaluate("one => one.querySelector('img').decode().then(() => true)"), "it has a picture"
        since = page.locator(".since")
        expect(since.get_by_role("heading")).to_have_text("Since the prior of 12 Mar 2025")
        expect(since).to_contain_text("Opens beside this study p")
        beside = page.locator(".pane.prior")
        page.keyboard.press("p")
        expect(beside.locator(".what")).to_have_text("prior, 12 Mar 2025 · AP, right")
        expect(beside).to_have_attribute("data-shown", re.compile("^2/1/"))
        expect(thumbs.first).to_have_attribute("aria-pressed", "true")
        shoot(page, "examination-prior")
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
        page.keyboard.press("p")
        expect(beside).to_have_count(0)
        since.get_by_role("link", name=re.compile("^Knee, .*positive$")).click()
        expect(page).to_have_url(re.compile(f"/view/{studies['prior']}"))
        expect(page.locator(".since, #priors")).to_have_count(0)

        plain = browser.new_context(java_script_enabled=False, storage_state=page.context.storage_state()).new_page()
        plain.goto(f"{url}/view/{studies['named']}")
        expect(plain.locator("#priors")).to_be_hidden()
        expect(plain.locator(".beside-words")).to_be_hidden()
        plain.locator(".since a").click()
        expect(plain).to_have_url(re.compile(f"/view/{studies['prior']}"))
        plain.context.close()
        page.goto(f"{url}/login")


SHARES = {(1920, 1080): 0.75, (1440, 900): 0.7, (1024, 768): 0.62, (390, 844): 0.55}  # of the window


@pytest.mark.parametrize("name", ["named", "bare"])
def test_the_image_comes_first(
    browser: Browser, in_process: InProcessApi, studies: dict[str, str], url: str, name: str
) -> None:
    """The stage has most of the window; who it is, the assessment and Done are in view; the rail alone is scrolled."""
    with watched(browser) as page:
        log_in(page, url, in_process.keys["radiologist"])
        for (width, height), share in SHARES.items():
            page.set_viewport_size({"width": width, "height": height})
            page.goto(f"{url}/view/{studies[name]}")
            expect(page.locator("#lock")).to_have_attribute("data-state", "mine")
            stage = page.locator("#stage").bounding_box()
            assert stage is not None
            assert stage["width"] * stage["height"] >= share * width * height, (width, stage)
            assert stage["height"] >= 0.6 * height, (width, stage)
            size = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
            assert size == [width, height]
            for wanted in (".case h1", ".research", "#stage", ".verdict .headline >> visible=true", "#done"):
                expect(page.locator(wanted).first).to_be_in_viewport(ratio=1)
            assert page.locator(".case h1").evaluate("h1 => h1.scrollWidth <= h1.clientWidth"), "the name is cut off"
        page.goto(f"{url}/login")


def test_an_administrator_decides(
    browser: Browser, in_process: InProcessApi, studies: dict[str, str], url: str
) -> None:
    """Both patients stand side by side; one click and a yes makes another study, applies, or rejects with a reason."""
    with watched(browser) as page:
        log_in(page, url, in_process.keys["admin"])
        page.goto(f"{url}/operations#held")
        part = page.locator("#held")
        expect(part.get_by_role("heading")).to_contain_text("2 files wait")
        conflict = part.locator("tbody tr", has_text="Another patient")
        expect(conflict).to_contain_text("CASE, TWO-A")
        expect(conflict).to_contain_text("SECOND^PATIENT")
        shoot(page, "examination-operations")
        results = Axe().run(page, context="#held")
        assert results.violations_count == 0, results.generate_report()

        part.locator("tr", has_text="Corrected header").get_by_role("button", name="Apply").click()
        page.get_by_role("button", name="Yes").click()
        expect(page.locator("#said")).to_contain_text("Done: apply")
        conflict.get_by_role("button", name="Reject").click()
        page.get_by_label("Reason").fill("console mix-up")
        page.get_by_role("button", name="Cancel").click()
        conflict.get_by_role("button", name="Another study").click()
        expect(page.get_by_label("Reason")).to_be_hidden()
        page.get_by_role("button", name="Yes").click()
        expect(part.get_by_role("heading").first).to_contain_text("none waits")
        part.get_by_text("Decided last").click()
        expect(part).to_contain_text("Another patient: made a study of its own")
        shoot(page, "examination-operations-decided")

        page.goto(f"{url}/view/{studies['corrected']}")
        expect(page.get_by_role("heading", level=1)).to_have_text("CORRECTED, NAME")
        page.get_by_text(re.compile("^Corrected")).click()
        expect(page.locator(".history")).to_contain_text("name CASE^CORR → CORRECTED^NAME")
        page.goto(f"{url}/login")
