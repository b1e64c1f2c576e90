"""OHIF in Chromium draws the outlines of a result document, and shows captures and the report."""

import io
import subprocess
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page
from pydicom import dcmread
from pydicom.dataset import Dataset

from infra.embedded.process import free_port
from shared.domain.results import ResultKind
from shared.settings import ROOT
from tests.browsing import ARTIFACTS
from tests.conftest import InProcessApi
from tests.pace import limit_s, until
from tests.results import found, read_back, study_of
from tests.served import served
from tests.systems.ohif import PassedOn, serving, serving_behind_one_proxy
from tests.systems.test_ohif import DRAWN, browser, visit  # noqa: F401 - a fixture

pytestmark = [pytest.mark.systems, pytest.mark.timeout(900)]

SOURCE = ROOT / "samples/studies/02-hand/1-pa.dcm"
KINDS = (ResultKind.SR_OUTLINES, ResultKind.SC_OVERLAY, ResultKind.PDF)
# the lines of a document are drawn when the viewport is drawn again: by somebody who moves the mouse, or here
DRAWN_LINE = f"() => ({DRAWN})() && document.querySelector('svg.svg-layer polyline') !== null"
# points of the stored image in the viewport's own pixels, and those of the line that it draws
LINES = """(points) => {
  const { viewportGridService: grid, cornerstoneViewportService: views } = window.services;
  const view = views.getCornerstoneViewport(grid.getActiveViewportId()), { imageData } = view.getImageData();
  const drawn = [...document.querySelectorAll('svg.svg-layer polyline')].map((one) => ({
    points: one.getAttribute('points').trim().split(/\\s+/).map((part) => part.replace(',', '')).map(Number),
    style: one.outerHTML.replace(/points="[^"]*"/, ''),
  }));
  return { drawn, stored: points.map(([x, y]) => view.worldToCanvas(imageData.indexToWorld([x, y, 0]))) };
}"""
# whether the image of that SOP Instance UID is drawn in the active viewport
SHOWN = f"""(uid) => ({DRAWN})() && (() => {{
  const {{ viewportGridService: grid, cornerstoneViewportService: views }} = window.services;
  const view = views.getCornerstoneViewport(grid.getActiveViewportId());
  return view.getCurrentImageId().includes(`/instances/${{uid}}/`);
}})()"""
# the canvas as a PNG, and the column and row of the image at the middle of each of three of its pixels
CANVAS = """() => {
  const { viewportGridService: grid, cornerstoneViewportService: views } = window.services;
  const view = views.getCornerstoneViewport(grid.getActiveViewportId()), { imageData } = view.getImageData();
  const canvas = view.getCanvas(), scale = canvas.width / canvas.clientWidth;
  const places = [[0, 0], [1, 0], [0, 1]].map(([x, y]) =>
    imageData.worldToIndex(view.canvasToWorld([(x + 0.5) / scale, (y + 0.5) / scale])).slice(0, 2));
  view.render();
  return { png: canvas.toDataURL('image/png').split(',')[1], places: places.map((one) => [...one]) };
}"""


class Results:
    """A study of the samples with its results, in an API."""

    def __init__(self, make_api: Callable[..., InProcessApi]) -> None:
        self.port = free_port()
        self.api = make_api(dicomweb_origins=f"http://127.0.0.1:{self.port}")
        study = study_of([SOURCE.read_bytes()], [[found()]])
        objects = study.build(*KINDS)
        files = {"source": SOURCE.read_bytes()} | {str(one.kind): one.content for one in objects}
        receipt = self.api.post(files).json()
        assert (receipt["stored"], receipt["kept"]) == (1, len(objects))
        self.objects: dict[ResultKind, Dataset] = {one.kind: read_back(one) for one in objects}
        document = self.objects[ResultKind.PDF]
        self.report = document.EncapsulatedDocument[: document.EncapsulatedDocumentLength]
        self.passed_on: list[PassedOn] = []
        self.viewer = f"viewer?StudyInstanceUIDs={study.told.study_instance_uid}"

    @contextmanager
    def opened(self, browser: Browser, singlepart: str | None = None) -> Iterator[Page]:  # noqa: F811
        """The study in OHIF, of another origin or, with a `singlepart`, of the same."""
        key = self.api.keys["radiologist"]
        with served(self.api.http.app) as api_port:  # type: ignore[arg-type]
            root = f"http://127.0.0.1:{api_port}/dicom-web"
            if singlepart is None:
                serving_it = serving(self.port, root, key)
            else:
                serving_it = serving_behind_one_proxy(self.port, api_port, key, singlepart, self.passed_on)
            with serving_it as ohif, visit(browser, f"{ohif}/{self.viewer}") as page:
                page.wait_for_function(DRAWN)
                page.get_by_text("Skip all").click()  # of a tour that is offered to who comes first
                page.get_by_text("S:9002").wait_for()
                yield page


@pytest.fixture
def results(make_api: Callable[..., InProcessApi]) -> Results:
    """One study of the samples with its results."""
    return Results(make_api)


def leave(page: Page, name: str) -> None:
    """Leave a picture of the page where artifacts are asked for."""
    if ARTIFACTS:
        page.wait_for_timeout(3000)
        page.screenshot(path=Path(ARTIFACTS, name))


def test_ohif_draws_the_stored_outlines(results: Results, browser: Browser) -> None:  # noqa: F811
    """The line in OHIF's SVG is the one that the document holds, to a pixel of the screen."""
    points = graphic(results.objects[ResultKind.SR_OUTLINES])
    with results.opened(browser) as page:
        page.locator("[data-cy=study-browser-thumbnail-no-image]").filter(has_text="SR").dblclick()
        page.wait_for_function(DRAWN_LINE, timeout=limit_s(60) * 1000)
        lines = page.evaluate(LINES, points)
        (drawn,) = lines["drawn"]
        line = np.array(drawn["points"]).reshape(-1, 2)
        stored = np.array(lines["stored"])
        gap = np.hypot(*(line[:, None] - stored[None]).transpose(2, 0, 1)).min(axis=1)
        assert len(line) > 50
        assert gap.max() < 1.5
        leave(page, "ohif-results.png")


def test_ohif_shows_the_capture(results: Results, browser: Browser) -> None:  # noqa: F811
    """The canvas has the stored picture, 99 of 100 pixels to 3 of 255: anatomy, outlines, and the words burnt in."""
    capture = results.objects[ResultKind.SC_OVERLAY]
    stored = capture.pixel_array.astype(float)
    anatomy = dcmread(SOURCE).Rows
    with results.opened(browser) as page:
        page.locator("[data-cy=study-browser-thumbnail]").filter(has_text="S:9002").dblclick()
        page.wait_for_function(SHOWN, arg=str(capture.SOPInstanceUID))
        canvas = page.evaluate(CANVAS)
        seen = np.asarray(Image.open(io.BytesIO(b64decode(canvas["png"]))).convert("RGB")).astype(float)
        expected, inside, row = drawn_as(stored, canvas["places"], seen.shape[:2])
        gap = np.abs(seen - expected).max(axis=2)
        for part in (inside & (row < anatomy), inside & (row >= anatomy)):
            assert part.sum() > 100_000
            assert np.quantile(gap[part], 0.99) <= 3
            assert expected[part].std() > 30  # neither is empty
        assert np.ptp(expected[inside], axis=1).max() > 50  # it is in colour
        leave(page, "ohif-capture.png")


def test_ohif_shows_the_report_of_another_origin(results: Results, browser: Browser) -> None:  # noqa: F811
    """It fetches the bytes with its key, and shows them."""
    with results.opened(browser) as page:
        open_report(page, results.report)
        leave(page, "ohif-report.png")


@pytest.mark.parametrize(("singlepart", "below"), [("", "bulk/00420011"), ("bulkdata,video,pdf", "rendered")])
def test_ohif_shows_the_report_behind_one_proxy(
    results: Results,
    browser: Browser,  # noqa: F811
    singlepart: str,
    below: str,
) -> None:
    """As docs/send/dicomweb.md configures it; with pdf in `singlepart` its page embeds the rendered instance itself."""
    with results.opened(browser, singlepart) as page:
        open_report(page, results.report)
    (answer,) = {one for one in results.passed_on if one.path.endswith(f"/{below}")}
    assert answer.status == 200
    if below == "rendered":
        assert (answer.content_type, answer.body) == ("application/pdf", results.report)
    else:
        assert "application/pdf" in answer.content_type
        assert results.report in answer.body


def open_report(page: Page, report: bytes) -> None:
    """Open the PDF; returns once its first page is seen as poppler draws it."""
    page.locator("[data-cy=study-browser-thumbnail-no-image]").filter(has_text="DOC").dblclick()
    place = page.locator("object[type='application/pdf']")
    place.wait_for()
    command = ["pdftoppm", "-r", "150", "-gray", "-png", "-singlefile", "-"]
    done = subprocess.run(command, input=report, capture_output=True, timeout=limit_s(60), check=True)
    first = Image.open(io.BytesIO(done.stdout)).convert("L")

    def is_seen() -> bool:
        page.wait_for_timeout(200)
        shown = np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("L")).astype(float)
        margins = np.flatnonzero((shown > 250).mean(axis=0) > 0.8)  # of the page; all around it is dark
        if not margins.size:
            return False
        left, right = margins[[0, -1]]
        paper = shown[:, left : right + 1]
        top = int(np.argmax((paper > 250).mean(axis=1) > 0.9))
        drawn = np.asarray(first.resize((paper.shape[1], round(paper.shape[1] * first.height / first.width))))
        rows = min(len(drawn), len(paper) - top)
        return rows > 300 and np.corrcoef(paper[top : top + rows].ravel(), drawn[:rows].ravel())[0, 1] > 0.8

    until(is_seen, 60)


def drawn_as(stored: Any, places: list[list[float]], shape: tuple[int, int]) -> Any:
    """The picture as a canvas of that shape shows it, by linear interpolation; where it lies within it, and on which row.

    places: column and row of the picture at the middle of the canvas' pixels (0, 0), (1, 0) and (0, 1).
    """
    origin, right, below = (np.array(one) for one in places)
    y, x = np.mgrid[: shape[0], : shape[1]]
    column, row = (origin[at] + x * (right - origin)[at] + y * (below - origin)[at] for at in (0, 1))
    inside = (column >= 0) & (row >= 0) & (column <= stored.shape[1] - 1) & (row <= stored.shape[0] - 1)
    left = np.clip(np.floor(column).astype(int), 0, stored.shape[1] - 2)
    top = np.clip(np.floor(row).astype(int), 0, stored.shape[0] - 2)
    across, down = (column - left)[..., None], (row - top)[..., None]
    upper = stored[top, left] * (1 - across) + stored[top, left + 1] * across
    lower = stored[top + 1, left] * (1 - across) + stored[top + 1, left + 1] * across
    return upper * (1 - down) + lower * down, inside, row


def graphic(document: Any) -> list[list[float]]:
    """Columns and rows of the one outline."""
    (region,) = [item for item in _items(document) if item.ValueType == "SCOORD"]
    values = [float(value) for value in region.GraphicData]
    return [[x, y] for x, y in zip(values[::2], values[1::2], strict=True)]


def _items(node: Any) -> Any:
    for item in node.get("ContentSequence", ()):
        yield item
        yield from _items(item)
