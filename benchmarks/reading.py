"""Measures what a reader waits for in a real browser who reads one study after the other: from Done to the next image.

A study is one radiograph of 2,500 x 2,000 pixels. The reader looks at each for LOOK_S after all its pixels have come;
meanwhile the page loads ahead. Decoding the same bytes alone, in the same page, is measured beside it.
"""

import contextlib
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.measure import Case, Goal, Result, Say
from benchmarks.radiographs import radiograph
from benchmarks.viewer import FLAGS, find_chromium
from infra.embedded.live_stack import KEYS, LiveStack

if TYPE_CHECKING:
    from playwright.sync_api import Page

REQUIRED_MS, REQUIRED_FULL_MS = 150.0, 500.0
GOAL = Goal("<=", 1.0)
FLAT = Goal("<=", 1.1)
STUDIES, QUICK_STUDIES = 200, 8
ENCODING = "jpegls"  # as they are sent; the browser gets all pixels, uncompressed
LOOK_S = 3.0
TENTH = 10
# the time of the last click or key outlives the page that it leaves
NOTE = """for (const kind of ["click", "keydown"]) document.addEventListener(kind, () => sessionStorage.setItem("left",
    performance.timeOrigin + performance.now()), true)"""
SHOWN = """(words) => performance.getEntriesByName("picture").find((one) => one.detail.includes(words))"""
TOOK = f"""(words) => ({SHOWN})(words).startTime + performance.timeOrigin - Number(sessionStorage.getItem("left"))"""
# what no page can do without: the bytes of the picture, and its gray levels on a canvas
ALONE = """async (address) => {
    const bytes = await (await fetch(address)).arrayBuffer();
    const start = performance.now();
    const image = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
    const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
    canvas.drawImage(image, 0, 0);
    canvas.getImageData(0, 0, 1, 1);
    return performance.now() - start;
}"""
ALONE_FULL = """async (address) => {
    const bytes = await (await fetch(address)).arrayBuffer();
    const start = performance.now();
    const values = new Uint16Array(bytes);
    const canvas = new OffscreenCanvas(2000, 2500).getContext("2d");
    const shown = canvas.createImageData(2000, 2500);
    const gray = new Uint32Array(shown.data.buffer);
    for (let at = 0; at < values.length; at++) gray[at] = 0xff000000 | ((values[at] >> 4) * 0x010101);
    canvas.putImageData(shown, 0, 0);
    canvas.getImageData(0, 0, 1, 1);
    return performance.now() - start;
}"""


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Read studies one after the other.

    Args:
        quick: QUICK_STUDIES instead of STUDIES.
        say: is called with a line of progress.

    Returns:
        Times from Done to the next study's first image, in units of REQUIRED_MS, to all of its pixels, in units of
        REQUIRED_FULL_MS, and the memory of the browser in the last tenth of the studies to that in the second.

    Raises:
        MissingRequirement: Chromium is not installed.
    """
    from playwright.sync_api import sync_playwright

    number = QUICK_STUDIES if quick else STUDIES
    first: list[float] = []
    full: list[float] = []
    alone: list[float] = []
    alone_full: list[float] = []
    memory: list[float] = []
    chromium = find_chromium()
    with _analysed(number, say) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        context = browser.new_context(viewport={"width": 1600, "height": 1000})
        context.add_init_script(NOTE)
        page = context.new_page()
        page.goto(f"{url}/login")
        page.get_by_label("Your key").fill(KEYS["radiologist"])
        page.get_by_role("button", name="Log in").click()
        page.locator("a.open").first.click()
        for read in range(number):
            page.wait_for_function(SHOWN, arg="full-resolution")
            if read:
                first.append(float(page.evaluate(TOOK, "")))
                full.append(float(page.evaluate(TOOK, "full-resolution")))
            addresses = _addresses(page)
            alone.append(float(page.evaluate(ALONE, addresses["preview"])))
            alone_full.append(float(page.evaluate(ALONE_FULL, addresses["frame"])))
            memory.append(_resident())
            if read % 20 == 0:
                say(f"study {read + 1} of {number} is read")
            page.wait_for_timeout(1000 * LOOK_S)
            here = page.url
            if read + 1 < number:
                page.locator("#done").click()
                asked = page.locator("#ask-agree")
                page.wait_for_function(
                    "(here) => location.href !== here || document.querySelector('#ask[open]')", arg=here
                )
                if page.url == here:
                    asked.click()
                page.wait_for_url(lambda now, before=here: now != before and "/view/" in now)  # type: ignore[misc]
        browser.close()
    tenth = max(1, number // TENTH)
    pairs = {"memory of the browser, last tenth to second": (memory[-tenth:], memory[tenth : 2 * tenth])}
    return Result(
        "reading",
        f"from Done to the next study, in units of {REQUIRED_MS:.0f} ms for its first image and of "
        f"{REQUIRED_FULL_MS:.0f} ms for all its pixels",
        GOAL,
        (
            Case.of("first image", "ms", first, [REQUIRED_MS] * len(first)),
            Case.of("all pixels", "ms", full, [REQUIRED_FULL_MS] * len(full)),
            *(Case.of(label, "MB", last, second, goal=FLAT) for label, (last, second) in pairs.items()),
        ),
        {
            "studies": number,
            "first image, p95 and longest, ms": [round(_p95(first)), round(max(first))],
            "all pixels, p95 and longest, ms": [round(_p95(full)), round(max(full))],
            "decoding a preview's bytes alone, ms": round(statistics.median(alone), 1),
            "decoding a frame's bytes alone, ms": round(statistics.median(alone_full), 1),
        },
        quick,
    )


def _p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20, method="inclusive")[-1]


def _addresses(page: "Page") -> dict[str, str]:
    """The pictures of the study that is open."""
    finding = page.locator(".finding").first
    study, preview = page.locator("#viewer").get_attribute("data-study"), finding.get_attribute("data-preview")
    return {"preview": preview or "", "frame": f"/api/v1/studies/{study}/frame?image=1&frame=1"}


def _resident() -> float:
    """Memory of the browser's processes that draw pages, MB; what they share is counted once for each."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "--type=renderer" in process.cmdline():
                found += process.memory_info().rss
    return found / 1e6


@contextlib.contextmanager
def _analysed(number: int, say: Say) -> Iterator[str]:
    """Analyse studies of one radiograph; yields the API's URL, while a worker makes full-resolution frames."""
    with LiveStack() as live_stack, tempfile.TemporaryDirectory() as folder:
        url = live_stack.api()
        live_stack.worker()
        say(f"{number} studies are made and analysed")
        studies: list[str] = []
        with live_stack.client(url) as client:
            for one in range(number):
                file = Path(folder) / f"{one}.dcm"
                file.write_bytes(radiograph(one, ENCODING))
                studies += client.submit([(file, file.name)]).studies
                file.unlink()
            client.wait_for_states(studies, 600)
        yield url
