"""OHIF in Chromium opens studies that Osteon serves, from another origin and with a key. Needs npm and chromium."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from infra.embedded.process import free_port
from samples.objects import SYNTAX, pattern_image, set_pixels, to_bytes, uid
from shared.settings import ROOT
from tests.browsing import ARGUMENTS, ARTIFACTS
from tests.conftest import InProcessApi
from tests.pace import limit_s
from tests.served import served
from tests.systems.ohif import serving

pytestmark = pytest.mark.systems
WHOLE_CHROMIUM = "/usr/bin/chromium"  # the headless shell has no PDF viewer
# What OHIF writes into the console as an error whatever server it has, and why: a part of the text, to the reason.
KNOWN_ERRORS = {
    "supplied to advanceOn": "the tour for who comes first looks for an image before one is drawn",
    "for this Shepherd step was not found": "the same, where a step of the tour is shown before",
}
DRAWN = """() => {
  try {
    const { viewportGridService: grid, cornerstoneViewportService: views } = window.services;
    const view = views.getCornerstoneViewport(grid.getActiveViewportId());
    if (!view.getCornerstoneImage()) return false;
    view.render(); // a page that nobody looks at may have put it off
    return view.viewportStatus === 'rendered';
  } catch (notYet) {
    return false;
  }
}"""
# of points of the image, column and row: what the viewer has of its pixels, and the gray of the canvas there
READ = """(points) => {
  const { viewportGridService: grid, cornerstoneViewportService: views } = window.services;
  const view = views.getCornerstoneViewport(grid.getActiveViewportId());
  const image = view.getCornerstoneImage(), { imageData } = view.getImageData(), pixels = image.getPixelData();
  const source = view.getCanvas(), canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [source.width, source.height];
  const pen = canvas.getContext('2d');
  pen.drawImage(source, 0, 0);
  const scale = source.width / source.clientWidth;
  const seen = points.map(([column, row]) => {
    const [x, y] = view.worldToCanvas(imageData.indexToWorld([column, row, 0]));
    return pen.getImageData(Math.round(x * scale), Math.round(y * scale), 1, 1).data[0];
  });
  const all = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  return {
    stored: points.map(([column, row]) => pixels[row * image.columns + column]),
    seen, grays: new Set(all.filter((_, at) => at % 4 === 0)).size,
  };
}"""
GRAYS = {(40, 40): 20, (216, 40): 90, (128, 128): 128, (40, 216): 190, (216, 216): 240}  # of points, column and row


def squares(encoding: str) -> bytes:
    """A study of an image with a square of each gray around its point; its window shows each stored value as the same gray."""
    ds = pattern_image(7, f"ohif/{encoding}")
    pixels = np.full((256, 256), 60, np.uint8)
    for (column, row), gray in GRAYS.items():
        pixels[row - 32 : row + 32, column - 32 : column + 32] = gray
    set_pixels(ds, [pixels], 8, encoding)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(f"ohif/{encoding}"), uid(f"ohif/{encoding}/series")
    return to_bytes(ds, SYNTAX[encoding])


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Chromium with WebGL and its PDF viewer."""
    flags = [one for one in ARGUMENTS if one != "--disable-gpu"]
    with sync_playwright() as playwright:
        drawing = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        opened = playwright.chromium.launch(executable_path=WHOLE_CHROMIUM, args=[*flags, *drawing])
        yield opened
        opened.close()


@contextmanager
def visit(browser: Browser, url: str) -> Iterator[Page]:
    """A page of a fresh profile; nothing but KNOWN_ERRORS may stand in its console."""
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and not any(known in message.text for known in KNOWN_ERRORS):
            errors.append(message.text)

    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(limit_s(20) * 1000)
    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    yield page
    page.close()
    assert errors == []


@pytest.mark.timeout(900)
def test_ohif_shows_what_osteon_serves(make_api: Callable[..., InProcessApi], browser: Browser) -> None:
    """From its study list to the radiograph: each of five grays is that of the stored image, in two transfer syntaxes."""
    port = free_port()
    api = make_api(dicomweb_origins=f"http://127.0.0.1:{port}")
    files = {encoding: squares(encoding) for encoding in ("jpegls", "explicit")}
    assert api.post(files).json()["stored"] == len(files)
    sample = sorted((ROOT / "samples/studies/02-hand").glob("*.dcm"))
    assert api.post({path.name: path.read_bytes() for path in sample}).json()["stored"] == len(sample)
    key = api.keys["radiologist"]
    with served(api.http.app) as api_port, serving(port, f"http://127.0.0.1:{api_port}/dicom-web", key) as ohif:  # type: ignore[arg-type]
        with visit(browser, f"{ohif}/") as page:
            page.get_by_text("SAMPLE, BEN").wait_for()
        for encoding in files:
            with visit(browser, f"{ohif}/viewer?StudyInstanceUIDs={uid(f'ohif/{encoding}')}") as page:
                page.wait_for_function(DRAWN)
                found = page.evaluate(READ, list(map(list, GRAYS)))
                assert found["grays"] > len(GRAYS)
                assert found["stored"] == list(GRAYS.values())
                assert found["seen"] == pytest.approx(list(GRAYS.values()), abs=1)
        with visit(browser, f"{ohif}/viewer?StudyInstanceUIDs={uid('2')}") as page:
            page.wait_for_function(DRAWN)
            assert page.evaluate(READ, [[1, 1]])["grays"] > 50
            if ARTIFACTS:
                page.get_by_text("Skip all").click()  # of a tour that is offered to who comes first
                page.screenshot(path=Path(ARTIFACTS, "ohif.png"))
