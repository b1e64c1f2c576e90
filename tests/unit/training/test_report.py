"""The report: complete, self-contained, and never broken by its radiographs."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from shared.domain.findings import RESEARCH_USE
from shared.domain.manifest import Manifest
from shared.errors import BadDataset
from training import evaluate, report
from training.datasets import MISSING, REGIONS, LabelledRadiograph
from training.evaluate import FINE_MAP_SIDE, CalibratedPredictions, Predictions, judge_as_shipped, judge_cross_fitted
from training.report import overlay, write_report

SQUARE = np.array([[0.5, 0.5], [0.75, 0.5], [0.75, 0.75], [0.5, 0.75]], np.float32)
SECTIONS = [
    "In short",
    "Telling fractured from sound radiographs",
    "Reliability of the probabilities",
    "Region and extent",
    "Operating points",
    "Kinds of radiographs",
    "Where it looks",
    "What this does not show",
]
MANIFEST = Manifest(
    name="tiny-1",
    regions=list(REGIONS),
    input_size=64,
    sensitive=0.2,
    specific=0.7,
    modalities=["DX"],
    least_region_probability=0.5,
    most_ood_score=2.0,
    hardware=0.9,
    heatmap_full=0.5,
    limits="Bones of <b>mice</b> only.",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "RESAMPLES", 5)
    monkeypatch.setattr(report, "BAND_RESAMPLES", 5)
    monkeypatch.setattr(report, "GALLERY_SIZE", 2)


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledRadiograph]:
    """Sixty radiographs, every second one fractured and outlined."""
    folder, rng = tmp_path_factory.mktemp("radiographs"), np.random.default_rng(1)
    made = []
    for number in range(60):
        path = folder / f"{number:02}.png"
        image = rng.integers(20, 120, (48, 40)).astype(np.uint8)
        image[:, 10:30] += 80
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        fractured = number % 2
        made.append(
            LabelledRadiograph(
                path=path,
                block=str(number // 3),
                region=number % 5,
                fractured=fractured,
                extent=fractured * (1 + number % 3),
                hardware=int(number % 7 == 0),
                original_size=(40, 48),
                outlines=[SQUARE] if fractured else [],
            )
        )
    return made


def predictions(radiographs: list[LabelledRadiograph]) -> Predictions:
    """A fair model's: fractured radiographs score higher, two in three peaks lie in the outline."""
    count, rng = len(radiographs), np.random.default_rng(2)
    region = rng.normal(0, 1, (count, 5))
    heatmaps = rng.normal(-4, 0.5, (count, 8, 8))
    for index, radiograph in enumerate(radiographs):
        region[index, radiograph.region] += 2
        heatmaps[index, 5, 5 if index % 3 else 1] = 3
    truth = np.array([radiograph.fractured for radiograph in radiographs])
    return Predictions(
        radiographs=radiographs,
        fracture=1.5 * truth - 1 + rng.normal(0, 1, count),
        region=region,
        extent=np.sort(rng.normal(0, 2, (count, 3)), axis=1)[:, ::-1].copy(),
        heatmaps=heatmaps,
        ood_score=np.ones(count),
        hardware=np.full(count, -4.0),
    )


def judged(radiographs: list[LabelledRadiograph]) -> CalibratedPredictions:
    return judge_as_shipped(predictions(radiographs), MANIFEST)


class Page(HTMLParser):
    """What of a page matters here."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.headings: list[str] = []
        self.text = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._open = tag
        self.loads += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open == "h2" and data.strip():
            self.headings.append(data)


def written(told: CalibratedPredictions, out: Path, **more: Any) -> tuple[dict[str, Any], Page]:
    figures = write_report(told, MANIFEST, out, **more)
    assert json.loads((out / "metrics.json").read_text()) == figures
    return figures, Page((out / "report.html").read_text(encoding="utf-8"))


def test_report_holds_everything_in_order(radiographs: list[LabelledRadiograph], tmp_path: Path) -> None:
    """Name, banner, note, all sections, headline figures with intervals, curves and all four rows of radiographs."""
    figures, page = written(judged(radiographs), tmp_path / "new" / "folder", note="60 radiographs held out by block")
    assert page.headings == SECTIONS
    for said in ("tiny-1", RESEARCH_USE, "60 radiographs held out by block", "Extent, by annotation", "in 20 blocks"):
        assert said in page.text
    estimate, low, high = figures["fracture_auroc"]
    assert f"{estimate:.3f} ({low:.3f} to {high:.3f})" in page.text
    for name in figures["groups"]:
        assert name in page.text
    curves = [image for image in page.images if (image["src"] or "").startswith("data:image/svg")]
    pictures = [image for image in page.images if (image["src"] or "").startswith("data:image/png")]
    assert [(image["alt"] or "").split(".")[0].split(" in ")[0] for image in curves] == [
        "ROC curve",
        "Precision-recall curve",
        "Reliability diagram",
    ]
    for shelf in ("Hits", "Misses", "False alarms", "Missed fractures"):
        assert sum((image["alt"] or "").startswith(f"{shelf}:") for image in pictures) == 2
    assert "Too few radiographs" not in page.text


def test_report_loads_nothing_from_elsewhere(radiographs: list[LabelledRadiograph], tmp_path: Path) -> None:
    """Every picture is in the page with words for those who cannot see it; no script, style sheet or font is fetched."""
    _, page = written(judged(radiographs), tmp_path)
    assert page.loads
    assert all(address.startswith("data:image/") for address in page.loads)
    assert all(image["alt"] for image in page.images)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    for image in page.images:
        kind, content = (image["src"] or "").split(";base64,")
        drawn = base64.b64decode(content, validate=True)
        assert drawn.startswith(b"<?xml" if kind.endswith("svg+xml") else b"\x89PNG")
        if kind.endswith("svg+xml"):
            assert b"<script" not in drawn
            assert b'href="http' not in drawn


def test_same_predictions_make_the_same_report(radiographs: list[LabelledRadiograph], tmp_path: Path) -> None:
    """No date and no chance is in it: written twice it is the same to the byte."""
    for name in ("one", "other"):
        write_report(judged(radiographs), MANIFEST, tmp_path / name)
    assert (tmp_path / "one/report.html").read_bytes() == (tmp_path / "other/report.html").read_bytes()


def test_report_escapes_what_comes_from_data(radiographs: list[LabelledRadiograph], tmp_path: Path) -> None:
    """File names, sources, notes and limits are text, whatever they hold."""
    path = tmp_path / """<img src=x onerror=alert(1)>&"'.png"""
    path.write_bytes(radiographs[1].path.read_bytes())
    some = [replace(radiographs[1], path=path, source="<script>alert(2)</script>"), *radiographs[2:4]]
    scope = {"<u>noise</u>": {"images": 4, "abstained": 3}, "nothing": {"images": 0, "abstained": 0}}
    figures, page = written(judged(some), tmp_path / "out", note="<i>all</i>", extra={"scope": scope})
    assert figures["scope"] == scope
    assert not page.tags & {"script", "u", "i"}
    for said in (path.name, "source <script>alert(2)</script>", "<i>all</i>", "<b>mice</b>", "<u>noise</u>", "75 %"):
        assert said in page.text
    assert str(tmp_path) not in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_operating_points_say_whose_thresholds_they_are(radiographs: list[LabelledRadiograph], tmp_path: Path) -> None:
    """Rates of the bundle's own thresholds and rates that were cross-fitted are told apart in words."""
    _, shipped = written(judged(radiographs), tmp_path / "shipped")
    _, crossed = written(judge_cross_fitted(predictions(radiographs)), tmp_path / "crossed")
    assert "the bundle's own thresholds" in shipped.text
    assert "fitted on the other half" in crossed.text
    assert "0.2000" in crossed.text


CASES: dict[str, Callable[[list[LabelledRadiograph]], list[LabelledRadiograph]]] = {
    "one radiograph": lambda radiographs: radiographs[:1],
    "one fractured radiograph": lambda radiographs: radiographs[1:2],
    "few radiographs": lambda radiographs: radiographs[:7],
    "no fracture": lambda radiographs: radiographs[::2],
    "nothing but fractures": lambda radiographs: radiographs[1::2],
    "one block": lambda radiographs: [replace(radiograph, block="0") for radiograph in radiographs],
    "no outline": lambda radiographs: [replace(radiograph, outlines=[]) for radiograph in radiographs],
    "some labels missing": lambda radiographs: [
        replace(radiograph, fractured=MISSING, region=MISSING, extent=MISSING, hardware=MISSING)
        if n % 4 < 2
        else radiograph
        for n, radiograph in enumerate(radiographs)
    ],
    "all labels missing": lambda radiographs: [
        replace(radiograph, fractured=MISSING, region=MISSING, extent=MISSING, hardware=MISSING, outlines=[])
        for radiograph in radiographs
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_report_of_any_radiographs(radiographs: list[LabelledRadiograph], tmp_path: Path, case: str) -> None:
    """However few radiographs there are and whatever they lack, the report has all its sections and says what is missing."""
    figures, page = written(judged(CASES[case](radiographs)), tmp_path)
    assert page.headings == SECTIONS
    assert ("Too few radiographs" in page.text) == (figures["fracture_auroc"] is None)
    assert "nan" not in page.text.split()


def test_no_radiograph_is_no_report(tmp_path: Path) -> None:
    """Without a radiograph there is nothing to say, and nothing is written."""
    with pytest.raises(BadDataset, match="no radiograph to measure"):
        write_report(judged([]), MANIFEST, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overlay_shows_map_outline_and_radiograph(radiographs: list[LabelledRadiograph]) -> None:
    """Warm where the map is strong, blue along the outline, a ring at the peak, gray and unchanged elsewhere."""
    heatmap = np.full((8, 8), -30.0)
    heatmap[1, 1] = 3
    plain = overlay(radiographs[0], np.full((8, 8), -30.0), 0.5)
    drawn = overlay(radiographs[1], heatmap, 0.5)
    assert drawn.shape == (FINE_MAP_SIDE, FINE_MAP_SIDE, 3)
    assert drawn.dtype == np.uint8
    peak = drawn[96, 96].astype(int)
    assert peak[2] > peak[0] + 50
    beside_peak = drawn[70:122, 70:122].reshape(-1, 3)
    assert (beside_peak == 255).all(1).any()
    blue = (drawn == report.SKY).all(2)
    assert blue[250:390, 250:400].any()
    assert not blue[:200].any()
    # outside of all marks only gray is left; the ring of an even map sits in a corner
    assert (np.ptp(plain[100:400, 100:400].astype(int), axis=2) == 0).all()
