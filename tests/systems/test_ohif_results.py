"""OHIF in Chromium draws the outlines of a result document, and shows captures and the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from infra.embedded.process import free_port
from shared.domain.results import ResultKind
from shared.settings import ROOT
from tests.browsing import ARTIFACTS
from tests.conftest import InProcessApi
from tests.pace import limit_s
from tests.results import found, read_back, study_of
from tests.served import served
from tests.systems.ohif import serving
from tests.systems.test_ohif import DRAWN, browser, visit  # noqa: F401 - a fixture

pytestmark = [pytest.mark.systems, pytest.mark.timeout(900)]

DRAWN_LINE = "() => document.querySelector('svg.svg-layer polyline') !== null"
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


def test_ohif_draws_the_stored_outlines_and_shows_the_capture(
    make_api: Callable[..., InProcessApi],
    browser: Browser,  # noqa: F811
) -> None:
    """The line in OHIF's SVG is the one that the document holds, to a pixel of the screen."""
    port = free_port()
    api = make_api(dicomweb_origins=f"http://127.0.0.1:{port}")
    source = ROOT / "samples/studies/02-hand/1-pa.dcm"
    study = study_of([source.read_bytes()], [[found()]])
    objects = study.build(ResultKind.SR_OUTLINES, ResultKind.SC_OVERLAY, ResultKind.PDF)
    files = {"source": source.read_bytes()} | {str(one.kind): one.content for one in objects}
    receipt = api.post(files).json()
    assert (receipt["stored"], receipt["kept"]) == (1, len(objects))
    document = read_back(next(one for one in objects if one.kind is ResultKind.SR_OUTLINES))
    points = graphic(document)
    key = api.keys["radiologist"]
    with served(api.http.app) as api_port, serving(port, f"http://127.0.0.1:{api_port}/dicom-web", key) as ohif:  # type: ignore[arg-type]
        with visit(browser, f"{ohif}/viewer?StudyInstanceUIDs={study.told.study_instance_uid}") as page:
            page.wait_for_function(DRAWN)
            page.get_by_text("Skip all").click()  # of a tour that is offered to who comes first
            page.get_by_text("S:9002").wait_for()
            page.locator("[data-cy=study-browser-thumbnail-no-image]").filter(has_text="SR").dblclick()
            page.wait_for_function(DRAWN_LINE, timeout=limit_s(60) * 1000)
            told = page.evaluate(LINES, points)
            (drawn,) = told["drawn"]
            line = np.array(drawn["points"]).reshape(-1, 2)
            stored = np.array(told["stored"])
            gap = np.hypot(*(line[:, None] - stored[None]).transpose(2, 0, 1)).min(axis=1)
            assert len(line) > 50
            assert gap.max() < 1.5
            if ARTIFACTS:
                page.wait_for_timeout(3000)
                page.screenshot(path=Path(ARTIFACTS, "ohif-results.png"))


def graphic(document: Any) -> list[list[float]]:
    """Columns and rows of the one outline."""
    (region,) = [item for item in _items(document) if item.ValueType == "SCOORD"]
    values = [float(value) for value in region.GraphicData]
    return [[x, y] for x, y in zip(values[::2], values[1::2], strict=True)]


def _items(node: Any) -> Any:
    for item in node.get("ContentSequence", ()):
        yield item
        yield from _items(item)
