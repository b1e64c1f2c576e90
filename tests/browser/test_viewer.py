"""The viewer as a radiologist uses it: Chromium, a real API, a real worker whose model alone is a stand-in."""

import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, expect

from api.pages.render import STATIC
from infra.client.api import Client
from samples.objects import pattern_image, set_pixels, to_bytes, uid
from shared.pixels.decode import open_pixels
from tests.bordered import TOP, Border, Stored, as_dicom, bordered
from tests.browsing import WATCH_POLICY, leave, log_in, needs_chromium
from tests.forked import ForkedProcess
from tests.live_stack import KEYS, BreakableStack
from tests.pace import LIMIT_S, limit_s

SAMPLES = Path(__file__).parents[2] / "samples" / "studies"
SHOTS = os.environ.get("OSTEON_SHOTS")  # a folder, for those who want to look
CELLS = 28
SCORES = {"positive": 9.0, "unclear": 4.0, "negative": 0.2, "abstained": 8.0}  # as their assessments go
GRAVE = ("serious", "critical")
LARGE = (2500, 2000)  # rows and columns of a radiograph of 5 megapixels

pytestmark = needs_chromium


@dataclass
class ViewerSystem:
    """A running system with studies to look at."""

    live_stack: BreakableStack
    worker: "subprocess.Popen[bytes] | ForkedProcess"
    studies: dict[str, str]  # name to id

    def sql(self, statement: str, *values: object) -> None:
        """Change rows."""
        connection = psycopg2.connect(self.live_stack.postgres.url.replace("+psycopg2", ""))
        with connection, connection.cursor() as cursor:
            cursor.execute(statement, values)
        connection.close()

    def forget_frames(self) -> None:
        """Empty the cache of full-resolution frames, as an operator may at any time."""
        for radiograph in self.live_stack.folder.glob("objects/frames/**/*.frame"):
            radiograph.unlink()

    def find(
        self, study: str, assessment: str, probability: float, cells: np.ndarray, abstention: str | None = None
    ) -> None:
        """Have the model say this of all frames of a study. cells: (CELLS, CELLS) uint8."""
        self.sql(
            "UPDATE findings SET assessment = %s, fracture_probability = %s, score = %s, abstention = %s, heatmap = %s, "
            "heatmap_height = %s, heatmap_width = %s WHERE instance_id IN (SELECT id FROM instances WHERE study_id = %s)",
            assessment, probability, SCORES[assessment], abstention, psycopg2.Binary(cells.tobytes()), *cells.shape, self.studies[study],
        )  # fmt: skip


def spot(row: float, column: float, sigma: float = 1.4, peak: int = 255) -> np.ndarray:
    """A map with one warm spot, its place in cells."""
    rows, columns = np.mgrid[0:CELLS, 0:CELLS] + 0.5
    return np.asarray(np.rint(peak * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma**2))), np.uint8)


def gradient(name: str, shape: tuple[int, int], number: int = 1, **values: Any) -> bytes:
    """A 12-bit radiograph that grows brighter to the right, with a grid. values: of its header."""
    _, columns = shape
    ramp = np.broadcast_to(np.linspace(200, 3900, columns), shape).copy()
    ramp[::250] += 150
    ds = pattern_image(1, f"viewer/{name}/{number}")
    ds.StudyInstanceUID = uid(f"viewer/{name}")
    set_pixels(ds, [ramp.astype(np.uint16)], 12, "explicit")
    for keyword in ("WindowCenter", "WindowWidth"):
        ds.pop(keyword, None)
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return to_bytes(ds, "1.2.840.10008.1.2.1")


def hand() -> Stored:
    """A sample radiograph of 12 bits, (H, W), bone is the greater."""
    frame = open_pixels((SAMPLES / "05-hand/1-pa.dcm").read_bytes()).frame(0)
    return np.asarray(np.rint((frame - frame.min()) * (TOP / np.ptp(frame))), np.uint16)


def bordered_hand() -> bytes:
    """White above, and to the left."""
    border = Border("straight", "white", (0.3, 0, 0.1, 0), 0, 0, padded=False, mirrored=False)
    ids = {"SOPInstanceUID": uid("viewer/bordered/1"), "StudyInstanceUID": uid("viewer/bordered")}
    return as_dicom(bordered(hand(), border), border, **ids)


def turned_hand() -> bytes:
    """Askew on white."""
    border = Border("rotated", "white", (0.1,) * 4, -8.0, 0, padded=False, mirrored=False)
    ids = {"SOPInstanceUID": uid("viewer/turned/1"), "StudyInstanceUID": uid("viewer/turned")}
    return as_dicom(bordered(hand(), border), border, **ids)


def squashed_hand() -> bytes:
    """Every second column left away, and said so."""
    ids: dict[str, Any] = {"SOPInstanceUID": uid("viewer/squashed/1"), "StudyInstanceUID": uid("viewer/squashed")}
    return as_dicom(hand()[:, ::2], PixelAspectRatio=[1, 2], **ids)


@pytest.fixture(scope="module")
def viewer(standing: BreakableStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewerSystem]:
    standing.begin()
    worker = standing.worker()
    files = {name: sorted((SAMPLES / name).glob("*.dcm")) for name in ("05-hand", "24-leg", "21-leg", "15-shoulder")}
    large = tmp_path_factory.mktemp("radiographs") / "large.dcm"
    large.write_bytes(gradient("large", LARGE))
    files["large"] = [large]
    for name, content in (("bordered", bordered_hand()), ("squashed", squashed_hand()), ("turned", turned_hand())):
        files[name] = [large.with_name(f"{name}.dcm")]
        files[name][0].write_bytes(content)
    two = {  # the lateral view came first, and has pixels twice as large
        "LL": gradient("pair", (500, 400), 2, ViewPosition="LL", Laterality="R", PixelSpacing=[0.4, 0.4]),
        "AP": gradient("pair", (1000, 800), 1, ViewPosition="AP", Laterality="R", PixelSpacing=[0.2, 0.2]),
    }
    files["pair"] = [large.with_name(f"pair-{number}.dcm") for number in (1, 2)]
    for path, content in zip(files["pair"], two.values(), strict=True):
        path.write_bytes(content)
    studies = {}
    with Client(standing.url, KEYS["submitter"]) as client:
        for name, paths in files.items():
            (studies[name],) = client.submit([(path, path.name) for path in paths], "routine").studies
    standing.until(lambda: standing.studies.done(list(studies.values())) == len(studies), 120)
    made = ViewerSystem(standing, worker, studies)
    made.find("05-hand", "positive", 0.9, spot(14, 14))
    made.find("large", "positive", 0.9, spot(7, 14))
    made.find("bordered", "positive", 0.9, spot(14, 14))
    made.find("turned", "positive", 0.9, spot(7, 14))
    made.find("pair", "positive", 0.9, spot(14, 14))
    made.find("squashed", "positive", 0.9, spot(14, 14))
    made.find("24-leg", "unclear", 0.1, spot(10, 12, peak=60))
    made.find("21-leg", "abstained", 0.9, spot(14, 14), "metal")
    made.find("15-shoulder", "negative", 0.001, spot(14, 14, peak=0))
    yield made
    standing.end_processes(1)


@pytest.fixture
def make_page(browser: Browser, viewer: ViewerSystem) -> Iterator[Callable[..., Page]]:
    """Makes a page that a radiologist is logged in to; the test fails if its console told of an error."""
    contexts, errors = [], []

    def note(message: ConsoleMessage) -> None:
        # Chromium notes every response with an error status; a refused radiograph is one on purpose
        refused = message.text.startswith("Failed to load resource") and "/frame?" in message.location.get("url", "")
        # and a claim that an earlier test's page left behind, gone before it had its response
        left = "status of 409" in message.text
        if message.type == "error" and not refused and not left:
            errors.append(message.text)

    def make(**options: Any) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1600, "height": 1000}} | options))
        contexts.append(context)
        context.add_init_script(WATCH_POLICY)
        page = context.new_page()
        page.set_default_timeout(limit_s(20) * 1000)
        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        log_in(context, viewer.live_stack.url, KEYS["radiologist"])
        return page

    yield make
    for context in contexts:
        for page in context.pages:
            leave(page, viewer.live_stack.url)
        context.close()
    assert errors == []


@pytest.fixture
def page(make_page: Callable[..., Page]) -> Page:
    return make_page()


def look(page: Page, viewer: ViewerSystem, study: str, kind: str = "full-resolution frame") -> Locator:
    """Open a study and wait for its picture; returns the active pane."""
    page.goto(f"{viewer.live_stack.url}/view/{viewer.studies[study]}")
    expect(page.locator("#stage")).to_have_attribute("data-shown", re.compile(f"{kind}$"))
    return page.locator(".pane.active")


def one_pane(page: Page) -> None:
    """As a reader who chose it."""
    page.add_init_script("sessionStorage.setItem('layout', '1')")


def shot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def gray(page: Page, x: float = 0.5, y: float = 0.5) -> Any:
    """The red value of the canvas at a place, 0..1 of the stage, without the heatmap's if that is hidden."""
    return page.evaluate(
        """([x, y]) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
            const canvas = document.querySelector(".pane.active canvas");
            const [left, top] = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
            done(canvas.getContext("2d").getImageData(left, top, 1, 1).data[0]);
        })))""",
        [x, y],
    )


def view(page: Page) -> list[float]:
    """The part of the radiograph that the stage shows: left, top, width, height in its pixels."""
    return [float(number) for number in str(page.locator(".pane.active .lines").get_attribute("viewBox")).split()]


# -- the exposed field ----------------------------------------------------------------------------------------------


def outlined(page: Page) -> list[float]:
    """Middle of what the outlines surround, in shares of the radiograph."""
    return list(
        page.evaluate(
            """() => {
                const boxes = [...document.querySelectorAll(".pane.active .lines path.outline")].map((path) => path.getBBox());
                const [left, top] = [Math.min(...boxes.map((box) => box.x)), Math.min(...boxes.map((box) => box.y))];
                const right = Math.max(...boxes.map((box) => box.x + box.width));
                const bottom = Math.max(...boxes.map((box) => box.y + box.height));
                const { columns, rows } = document.querySelector(".finding:not([hidden])").dataset;
                return [(left + right) / 2 / columns, (top + bottom) / 2 / rows];
            }"""
        )
    )


def test_a_shutter_covers_borders_and_can_be_lifted(page: Page, viewer: ViewerSystem) -> None:
    """Black over what lies outside the field, by button and key; the outline lies where the field's evidence is."""
    stage = look(page, viewer, "bordered")
    shutter = page.get_by_role("button", name="Shutter")
    expect(shutter).to_have_attribute("aria-pressed", "true")
    assert gray(page, 0.5, 0.05) == 0
    shot(page, "shutter-closed")
    stage.press("b")
    expect(shutter).to_have_attribute("aria-pressed", "false")
    assert gray(page, 0.5, 0.05) > 200
    shot(page, "shutter-lifted")
    page.locator("#invert").click()
    shutter.click()
    assert gray(page, 0.5, 0.05) == 0  # whatever else is inverted
    page.locator("#reset").click()
    page.keyboard.press("t")
    assert outlined(page) == pytest.approx([(0.1 + 0.5) / 1.1, (0.3 + 0.5) / 1.3], abs=0.03)
    for width, height in ((1024, 768), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        shot(page, f"shutter-{width}")


def test_a_field_that_lies_askew_is_drawn_so(page: Page, viewer: ViewerSystem) -> None:
    """The model read it upright; shutter, heatmap and outline are turned to where it lies in the image."""
    look(page, viewer, "turned")
    told = page.locator(".finding:not([hidden])").evaluate("element => ({ ...element.dataset })")
    turn = float(told["turn"])
    assert turn == pytest.approx(8, abs=0.1)
    assert gray(page, 0.265, 0.03) == 0 and gray(page, 0.735, 0.97) == 0  # corners of the image
    shot(page, "turned-closed")
    page.locator("#shutter").click()
    assert gray(page, 0.265, 0.03) > 200 and gray(page, 0.735, 0.97) > 200
    page.keyboard.press("t")
    page.locator("#overlay").click()
    shot(page, "turned-lifted")
    height, width = hand().shape
    rows, columns = float(told["rows"]), float(told["columns"])
    up = (14 - 7) / CELLS * max(height, width)  # from the field's middle to the spot, turned clockwise
    across, down = up * math.sin(math.radians(turn)), -up * math.cos(math.radians(turn))
    assert outlined(page) == pytest.approx([0.5 + across / columns, 0.5 + down / rows], abs=0.02)


def test_where_all_is_exposed_there_is_no_shutter(page: Page, viewer: ViewerSystem) -> None:
    """Its button is not shown, and its key does nothing."""
    stage = look(page, viewer, "large")
    expect(page.locator("#shutter")).to_be_hidden()
    before = gray(page)
    stage.press("b")
    assert gray(page) == before
    expect(page.locator("#shutter")).to_have_attribute("aria-pressed", "true")


def test_pixels_that_are_not_square_are_drawn_in_true_proportions(page: Page, viewer: ViewerSystem) -> None:
    """Twice as broad as high; preview, radiograph and outlines agree on that."""
    height, width = hand().shape
    look(page, viewer, "squashed")
    told = page.locator(".finding:not([hidden])")
    expect(told).to_have_attribute("data-columns", str(2 * ((width + 1) // 2)))
    expect(told).to_have_attribute("data-rows", str(height))
    still = page.locator(".thumb img, #still").first
    ratio = still.evaluate("image => image.naturalWidth / image.naturalHeight")
    assert ratio == pytest.approx(width / height, abs=0.02)
    page.keyboard.press("t")
    assert outlined(page) == pytest.approx([0.5, 0.5], abs=0.03)
    shot(page, "squashed")


# -- the picture, and how it is drawn -------------------------------------------------------------------------------


def test_from_click_to_picture(page: Page, viewer: ViewerSystem) -> None:
    """A click in the worklist and on another image shows the worker's preview; the times are printed."""
    study = viewer.studies["05-hand"]
    viewer.sql(
        "UPDATE studies SET due_at = due_at - interval '1 year' WHERE id = %s", study
    )  # first of all tests' studies
    page.goto(viewer.live_stack.url)
    link = page.locator(f"a.open[href='/view/{study}']")
    link.evaluate(
        "link => link.addEventListener('click', () => sessionStorage.setItem('clicked', "
        "performance.timeOrigin + performance.now()))"
    )
    link.click()
    expect(page.locator("#stage")).to_have_attribute("data-shown", re.compile("1/1/"))
    took = page.evaluate(
        "performance.getEntriesByName('picture')[0].startTime + performance.timeOrigin - sessionStorage.getItem('clicked')"
    )
    times = []
    for number in (2, 3):
        expect(page.locator("#stage")).to_have_attribute("data-shown", re.compile("full-resolution frame$"))
        times.append(
            page.evaluate(
                """(number) => new Promise((done) => {
                    performance.clearMarks();
                    const start = performance.now();
                    document.querySelector(`.thumb[data-image="${number}"]`).click();
                    const look = () => {
                        const [picture] = performance.getEntriesByName("picture");
                        if (picture) done(picture.startTime - start);
                        else requestAnimationFrame(look);
                    };
                    look();
                })""",
                number,
            )
        )
    print(f"\nclick to picture: from the worklist {took:.0f} ms, another image {times} ms")
    expect(page.locator("#stage")).to_have_attribute("data-shown", "3/1/full-resolution frame")


def test_radiograph_takes_the_previews_place(page: Page, viewer: ViewerSystem) -> None:
    """The full-resolution frame brings all gray levels, and neither zoom nor place change."""
    held: list[Any] = []
    page.route("**/frame?*", lambda route: held.append(route))  # noqa: PLW0108 - Playwright marks it
    look(page, viewer, "large", "preview")
    expect(page.locator(".pane.active .quality")).to_have_text(
        re.compile("^preview, 8 bit; the full-resolution frame is coming")
    )
    for _ in range(3):
        page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("slider", name="Centre").fill("400")
    page.wait_for_timeout(300)
    before, seen = view(page), gray(page, 0.3)
    held[0].continue_()
    page.unroute("**/frame?*")
    expect(page.locator(".pane.active .quality")).to_have_text("full-resolution frame, 12 bit")
    assert view(page) == pytest.approx(before)
    assert abs(gray(page, 0.3) - seen) <= 12  # the reader's own window came along
    pixels = page.evaluate("Number(document.getElementById('centre-value').textContent)")
    assert pixels > 255


def test_window_changes_the_pixels(page: Page, viewer: ViewerSystem) -> None:
    """Sliders, presets and the right button change the gray of a place, and Reset brings it back."""
    look(page, viewer, "large")
    start = gray(page)
    page.get_by_label("Centre").fill("900")
    dark = gray(page)
    assert dark < start - 40
    expect(page.get_by_label("Preset")).to_have_value("own")
    page.get_by_label("Preset").select_option("full")
    assert gray(page) > dark
    stage = page.locator("#stage").bounding_box()
    assert stage is not None
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    before = gray(page)
    page.mouse.move(x, y)
    page.mouse.down(button="right")
    page.mouse.move(x, y + 150, steps=4)
    page.mouse.up(button="right")
    assert gray(page) < before - 20
    left = view(page)
    page.keyboard.press("w")
    page.mouse.down()
    page.mouse.move(x, y - 200, steps=4)
    page.mouse.up()
    assert view(page) == left  # the window moved, the radiograph did not
    page.keyboard.press("r")
    assert gray(page) == start


def test_invert(page: Page, viewer: ViewerSystem) -> None:
    """Inverted, black is white, and twice inverted it is as before."""
    look(page, viewer, "large")
    before = gray(page, 0.4)
    page.keyboard.press("i")
    expect(page.get_by_role("button", name="Invert")).to_have_attribute("aria-pressed", "true")
    assert gray(page, 0.4) == pytest.approx(255 - before, abs=1)
    page.get_by_role("button", name="Invert").click()
    assert gray(page, 0.4) == before


def test_zoom_about_the_pointer_and_pan(page: Page, viewer: ViewerSystem) -> None:
    """The radiograph's point under the pointer stays there; a drag takes the radiograph along; a double click fits it again."""
    stage = look(page, viewer, "large")
    box = stage.bounding_box()
    assert box is not None
    fitted = view(page)
    at = (0.6, 0.3)
    under = fitted[0] + at[0] * fitted[2], fitted[1] + at[1] * fitted[3]
    page.mouse.move(box["x"] + 1 + at[0] * (box["width"] - 2), box["y"] + 1 + at[1] * (box["height"] - 2))
    for _ in range(4):
        page.mouse.wheel(0, -100)
    page.wait_for_function("document.querySelector('.pane.active .where').textContent.includes('2.4 ')")
    page.wait_for_timeout(100)
    zoomed = view(page)
    assert (zoomed[0] + at[0] * zoomed[2], zoomed[1] + at[1] * zoomed[3]) == pytest.approx(under, rel=0.01)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 300, steps=3)
    page.mouse.up()
    page.wait_for_timeout(100)
    moved = view(page)
    assert moved[2:] == pytest.approx(zoomed[2:])
    assert moved[:2] != pytest.approx(zoomed[:2])
    page.mouse.dblclick(box["x"] + 300, box["y"] + 300)
    page.wait_for_timeout(100)
    assert view(page) == pytest.approx(fitted)
    page.get_by_role("button", name="1:1").click()
    expect(page.locator(".pane.active .where")).to_contain_text("100 % of its pixels")


def test_touch_pans_and_pinches(make_page: Callable[..., Page], viewer: ViewerSystem) -> None:
    """One finger moves the radiograph, two zoom it."""
    page = make_page(viewport={"width": 820, "height": 1180}, has_touch=True)
    stage = look(page, viewer, "large")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        touched = [{"x": a, "y": b, "id": i} for i, (a, b) in enumerate(points)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})

    before = view(page)
    touch("touchStart", (x - 40, y), (x + 40, y))
    for apart in (60, 80, 100, 120):
        touch("touchMove", (x - apart, y), (x + apart, y))
    touch("touchEnd")
    page.wait_for_timeout(200)
    pinched = view(page)
    assert pinched[2] == pytest.approx(before[2] / 3, rel=0.15)
    touch("touchStart", (x, y))
    touch("touchMove", (x - 60, y - 30))
    touch("touchMove", (x - 120, y - 60))
    touch("touchEnd")
    page.wait_for_timeout(200)
    dragged = view(page)
    assert dragged[2:] == pytest.approx(pinched[2:])
    assert dragged[0] > pinched[0]
    assert dragged[1] > pinched[1]


@pytest.mark.slow
def test_five_megapixels_stay_fluid(page: Page, viewer: ViewerSystem) -> None:
    """A drag of the window repaints a radiograph of 5 megapixels by what is seen of it; the times are printed."""
    viewer.forget_frames()
    look(page, viewer, "large")
    marks = page.evaluate(
        "performance.getEntriesByName('picture').map(mark => [mark.detail, Math.round(mark.startTime)])"
    )
    print(f"\nfrom the call of the page, the worker having to make the radiograph: {marks} ms")
    took = page.evaluate(
        """async () => {
            const shape = { width: ABOUT.columns, height: ABOUT.rows, field: { x: 0, y: 0, width: 1, height: 1 } };
            const { Radiograph } = await import("STATIC/viewer/radiograph.js");
            const radiograph = Radiograph.ofResponse(await (await fetch(URL)).arrayBuffer(), ABOUT, shape);
            const canvas = Object.assign(document.createElement("canvas"), { width: 1200, height: 1000 });
            const context = canvas.getContext("2d");
            const scale = 1000 / radiograph.height;
            const times = [];
            for (let i = 0; i < 40; i++) {
                const start = performance.now();
                radiograph.setWindow([i * 10, 3000 + i], false);
                radiograph.draw(context, [scale, 0, 0, scale, 0, 0]);
                context.getImageData(0, 0, 1, 1);
                times.push(performance.now() - start);
            }
            return times.sort((a, b) => a - b)[20];
        }""".replace("URL", f"'/api/v1/studies/{viewer.studies['large']}/frame'")
        .replace(
            "ABOUT", "{rows: 2500, columns: 2000, bits: 12, slope: 1, intercept: 0, window: [0, 4095], exact: true}"
        )
        .replace("STATIC", STATIC)
    )
    print(f"\na picture of {LARGE[0]} x {LARGE[1]} at a new window: {took:.1f} ms in the median")


# -- many images and frames -----------------------------------------------------------------------------------------


def test_images_and_frames_by_keys_alone(page: Page, viewer: ViewerSystem) -> None:
    """Without a mouse every image and frame is reached; words, picture and announcement follow."""
    look(page, viewer, "05-hand")
    page.keyboard.press("]")
    expect(page.locator("#stage")).to_have_attribute("data-shown", re.compile("^2/1/"))
    expect(page.locator("#said")).to_contain_text("image 2 of 3")
    expect(page.locator(".image:visible")).to_have_attribute("data-image", "2")
    page.keyboard.press("]")
    page.keyboard.press("]")
    expect(page.locator("#stage")).to_have_attribute("data-shown", re.compile("^3/1/"))
    page.keyboard.press("[")
    expect(page.locator("#stage")).to_have_attribute("data-shown", re.compile("^2/1/"))
    page.reload()
    expect(page.locator("#stage")).to_have_attribute("data-shown", re.compile("^2/1/"))  # where the reader was
    look(page, viewer, "24-leg")
    expect(page.locator("#frame-value")).to_have_text("frame 1 of 2")
    page.keyboard.press(".")
    expect(page.locator("#stage")).to_have_attribute("data-shown", "1/2/full-resolution frame")
    expect(page.locator(".finding:visible")).to_have_attribute("data-frame", "2")
    page.keyboard.press(",")
    expect(page.locator("#stage")).to_have_attribute("data-shown", re.compile("^1/1/"))
    page.locator(".pane.active").focus()
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.wait_for_timeout(100)
    before = view(page)
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(100)
    assert view(page)[0] > before[0]
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("A line does not outline a fracture")
    shot(page, "help")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_no_picture_stands_beside_anothers_words(page: Page, viewer: ViewerSystem) -> None:
    """While the next image's picture is on its way nothing is shown, not the image before."""
    one_pane(page)
    look(page, viewer, "05-hand")
    assert gray(page, 0.5, 0.2) > 0
    page.evaluate(
        """() => {
            const decode = HTMLImageElement.prototype.decode;
            HTMLImageElement.prototype.decode = function () {
                return new Promise((done) => (window.release = () => done(decode.call(this))));
            };
        }"""
    )
    page.keyboard.press("]")
    expect(page.locator(".image:visible")).to_have_attribute("data-image", "2")
    assert gray(page, 0.5, 0.2) == 0
    expect(page.locator(".pane.active .lines .outline")).to_have_count(0)
    page.evaluate("window.release()")
    expect(page.locator("#stage")).to_have_attribute("data-shown", "2/1/full-resolution frame")


def test_only_the_shown_radiograph_is_fetched(page: Page, viewer: ViewerSystem) -> None:
    """Of many images those on the stage are fetched in full; who leafs through fetches none of those in between."""
    one_pane(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/frame?" in request.url else None)
    look(page, viewer, "05-hand")
    assert {url.split("?")[1] for url in asked} == {"image=1&frame=1"}
    page.evaluate("for (const number of [2, 3]) document.querySelector(`.thumb[data-image='${number}']`).click()")
    expect(page.locator("#stage")).to_have_attribute("data-shown", "3/1/full-resolution frame")
    assert {url.split("?")[1] for url in asked} == {"image=1&frame=1", "image=3&frame=1"}


# -- panes ----------------------------------------------------------------------------------------------------------


def seen(page: Page) -> list[list[float]]:
    """What each pane shows of its radiograph: left, top, width and height in its pixels."""
    boxes = page.evaluate(
        """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() =>
            done([...document.querySelectorAll(".pane .lines")].map((lines) => lines.getAttribute("viewBox"))))))"""
    )
    return [[float(number) for number in box.split()] for box in boxes]


def corner(page: Page, pane: int) -> Locator:
    """The words in a pane's corner; panes are counted from 0."""
    return page.locator(".pane").nth(pane).locator(".corners")


def two_panes(page: Page, viewer: ViewerSystem) -> None:
    """The study of two views, each with its full-resolution frame."""
    look(page, viewer, "pair")
    for pane in page.locator(".pane").all():
        expect(pane).to_have_attribute("data-shown", re.compile("full-resolution frame$"))


def test_two_views_hang_beside_each_other(page: Page, viewer: ViewerSystem) -> None:
    """Frontal left, lateral right, whichever came first; keys choose one, and the words are of the chosen one."""
    two_panes(page, viewer)
    expect(page.locator(".pane .what")).to_have_text(["AP, right", "LL, right"])
    page.keyboard.press("1")
    expect(page.locator(".pane").first).to_be_focused()
    expect(page.locator(".image:visible")).to_have_attribute("data-image", "2")
    expect(page.locator(".reply-row.current")).to_have_attribute("data-image", "2")
    page.keyboard.press("Tab")
    expect(page.locator(".pane").nth(1)).to_have_class(re.compile("active"))
    expect(page.locator(".reply-row.current")).to_have_attribute("data-image", "1")
    expect(page.locator("#stage")).to_have_attribute("data-shown", "1/1/full-resolution frame")
    expect(page.locator(".ruler .source").first).to_have_text("by Pixel Spacing")
    shot(page, "panes-1600")
    page.keyboard.press("y")
    expect(page.locator(".pane .what")).to_have_text(["LL, right"])  # what the reader looked at stays
    expect(page.locator("#link")).to_be_hidden()
    page.keyboard.press("y")
    expect(page.locator(".pane .what")).to_have_text(["AP, right", "LL, right"])
    page.keyboard.press("[")
    page.keyboard.press("]")
    expect(page.locator(".pane.active .what")).to_have_text("AP, right")  # the second image hangs on the left
    page.evaluate("sessionStorage.removeItem('layout')")
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator(".pane .what")).to_have_text(["AP, right"])
    shot(page, "panes-390")


def test_panes_move_together_until_told_otherwise(page: Page, viewer: ViewerSystem) -> None:
    """Zoom by millimetres, place and window; a key takes the link away."""
    two_panes(page, viewer)
    page.keyboard.press("1")
    fitted = seen(page)
    assert fitted[0][2] * 0.2 == pytest.approx(fitted[1][2] * 0.4, rel=0.02)
    for _ in range(3):
        page.keyboard.press("+")
    zoomed = seen(page)
    assert zoomed[0][2] == pytest.approx(fitted[0][2] / 1.25**3, rel=0.01)
    assert zoomed[0][2] * 0.2 == pytest.approx(zoomed[1][2] * 0.4, rel=0.01)
    page.keyboard.press("ArrowRight")
    moved = seen(page)
    assert (moved[0][0] - zoomed[0][0]) * 0.2 == pytest.approx((moved[1][0] - zoomed[1][0]) * 0.4, rel=0.02)
    assert moved[0][0] > zoomed[0][0]
    other = page.locator(".pane").nth(1).locator(".where")
    window = str(other.text_content()).split("·")[0]
    page.get_by_role("slider", name="Centre").fill("300")
    expect(other).not_to_contain_text(window)
    page.get_by_role("slider", name="Centre").blur()
    page.keyboard.press("k")
    expect(page.locator("#link")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("0")
    alone = seen(page)
    assert alone[0] == pytest.approx(fitted[0], rel=0.01)
    assert alone[1] == pytest.approx(moved[1])
    page.reload()
    expect(page.locator("#link")).to_have_attribute("aria-pressed", "false")  # it is remembered


def test_a_prior_stands_beside_and_takes_no_answers(page: Page, viewer: ViewerSystem) -> None:
    """Its pane says what it is; nothing is drawn on it, keys answer nothing there, and the next press closes it."""
    look(page, viewer, "large")
    page.keyboard.press("t")
    page.evaluate(
        """(study) => {
            const thumb = Object.assign(document.createElement("button"), { className: "thumb", type: "button" });
            Object.assign(thumb.dataset, { prior: "12 Mar 2025", study, image: 1, frame: 1, view: "PA", field: "0 0 1 1", turn: 0,
                rows: 512, columns: 512, preview: `/api/v1/studies/${study}/preview.jpg?image=1&frame=1` });
            document.getElementById("thumbs").after(thumb);
            document.dispatchEvent(new CustomEvent("osteon:priors"));
        }""",
        viewer.studies["05-hand"],
    )
    page.keyboard.press("p")
    prior = page.locator(".pane.prior")
    expect(prior).to_have_class(re.compile("active"))
    expect(prior).to_have_attribute("data-shown", "1/1/full-resolution frame")
    expect(prior.locator(".what")).to_have_text("prior, 12 Mar 2025 · PA")
    expect(prior.locator(".outline")).to_have_count(0)
    expect(page.locator(".pane:not(.prior) .outline")).to_have_count(1)
    expect(page.locator(".reply-row.current")).to_have_count(0)
    page.keyboard.press("a")
    page.keyboard.press("l")
    page.keyboard.press("Enter")
    expect(prior.locator(".measure.ends")).to_have_count(1)
    page.evaluate("document.dispatchEvent(new CustomEvent('osteon:mark-start'))")
    expect(prior.locator(".drawing")).to_have_count(0)
    expect(page.locator(".pane.active:not(.prior) .mark.drawing")).to_have_count(1)  # marks go to the study's own image
    page.keyboard.press("Escape")
    expect(page.locator("#reply-state")).to_have_text("1 of 1 without your feedback.")
    shot(page, "prior")
    page.keyboard.press("p")
    expect(page.locator(".pane")).to_have_count(1)
    expect(page.locator(".reply-row.current")).to_have_count(1)


# -- tools ----------------------------------------------------------------------------------------------------------


def test_turned_and_mirrored(page: Page, viewer: ViewerSystem) -> None:
    """Four quarter turns are none, mirroring twice is none; outlines, marks and places go along."""
    pane = look(page, viewer, "large")
    page.keyboard.press("t")
    left, right = gray(page, 0.4), gray(page, 0.6)
    assert left < right
    whole = view(page)
    page.keyboard.press("x")
    assert gray(page, 0.4) == pytest.approx(right, abs=3)
    page.keyboard.press("x")
    page.keyboard.press("o")
    quarter = view(page)
    assert quarter[2] / quarter[3] == pytest.approx(whole[2] / whole[3])
    assert gray(page, 0.5, 0.3) < gray(page, 0.5, 0.7)  # what was on the left is above
    spotted = pane.locator(".outline").first.bounding_box()
    stage = pane.bounding_box()
    assert spotted is not None
    assert stage is not None
    assert spotted["x"] + spotted["width"] / 2 > stage["x"] + stage["width"] / 2  # and what was above is on the right
    for _ in range(3):
        page.keyboard.press("o")
    assert view(page) == pytest.approx(whole)
    assert gray(page, 0.4) == left
    page.keyboard.press("o")
    page.keyboard.press("r")
    assert view(page) == pytest.approx(whole)


def drag(page: Page, *places: tuple[float, float]) -> None:
    """From one place of the active pane to the next ones, 0..1 of it."""
    box = page.locator(".pane.active").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + places[0][0] * box["width"], box["y"] + places[0][1] * box["height"])
    page.mouse.down()
    for x, y in places[1:]:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
    page.mouse.up()


def test_lengths_and_angles(page: Page, viewer: ViewerSystem) -> None:
    """By pointer and by keys; calibrated where the file has a spacing; they survive a reload and turn with the image."""
    two_panes(page, viewer)
    page.keyboard.press("1")
    words = page.locator(".pane.active .mark-label")
    shown = seen(page)[0]
    page.keyboard.press("l")
    before = view(page)
    drag(page, (0.4, 0.5), (0.6, 0.5))
    assert view(page) == before  # nothing else moved
    expect(words).to_have_count(1)
    length = float(str(words.text_content()).removesuffix(" mm"))
    assert length == pytest.approx(0.2 * shown[2] * 0.2, rel=0.02)
    expect(page.locator("#said")).to_contain_text("by Pixel Spacing")
    page.keyboard.press("o")
    page.keyboard.press("+")
    expect(words).to_have_text(f"{length} mm")
    page.keyboard.press("g")
    drag(page, (0.4, 0.4), (0.5, 0.5))
    drag(page, (0.6, 0.4), (0.6, 0.4))
    expect(words).to_have_count(2)
    assert re.fullmatch(r"[0-9.]+°", str(words.nth(1).text_content()))
    page.keyboard.press("2")
    page.keyboard.press("l")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(words).to_have_count(1)
    page.keyboard.press("l")
    page.keyboard.press("Escape")
    expect(words).to_have_count(1)
    shot(page, "measures")
    page.reload()
    expect(page.locator(".pane").first.locator(".mark-label")).to_have_count(2)
    page.keyboard.press("2")
    expect(words).to_have_count(1)
    page.keyboard.press("Backspace")
    expect(words).to_have_count(0)
    expect(page.locator("#unmeasure")).to_be_hidden()
    expect(page.locator(".pane").first.locator(".mark-label")).to_have_count(2)


def test_without_a_spacing_lengths_are_in_pixels(page: Page, viewer: ViewerSystem) -> None:
    """And there is no ruler; a lens shows what is under the pointer larger, until it is put away."""
    look(page, viewer, "large")
    expect(page.locator(".ruler path")).to_have_count(0)
    page.keyboard.press("l")
    page.keyboard.press("Enter")
    expect(page.locator(".mark-label")).to_have_text(re.compile("^[0-9]+ px$"))
    page.keyboard.press("Backspace")
    box = page.locator(".pane.active").bounding_box()
    assert box is not None
    plain = gray(page, 0.55)
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.keyboard.press("q")
    assert gray(page, 0.55) < plain  # nearer to the middle, which is darker
    page.keyboard.press("q")
    assert gray(page, 0.55) == plain


def test_full_screen_keeps_who_and_what_for(page: Page, viewer: ViewerSystem) -> None:
    """The stage has the window but for the bar; there keys answer nothing; the same key brings the page back."""
    look(page, viewer, "large")
    page.keyboard.press("f")
    expect(page.locator(".rail")).to_be_hidden()
    expect(page.locator(".research")).to_be_in_viewport(ratio=1)
    expect(page.locator(".case h1")).to_be_in_viewport(ratio=1)
    expect(page.locator(".reply-row.current")).to_have_count(0)
    box = page.locator("#stage").bounding_box()
    assert box is not None
    assert box["width"] == page.evaluate("innerWidth")
    page.keyboard.press("f")
    expect(page.locator(".rail")).to_be_visible()
    expect(page.locator(".reply-row.current")).to_have_count(1)


# -- what the model says, drawn -------------------------------------------------------------------------------------


def boxes(page: Page, name: str) -> Any:
    """The bounding boxes of a line's paths, in the radiograph's pixels."""
    # found and measured in one step: a path that a zoom has replaced in between has an empty box
    return page.evaluate(
        """selector => [...document.querySelectorAll(selector)].map((path) => {
            const b = path.getBBox();
            return {x: b.x, y: b.y, w: b.width, h: b.height};
        })""",
        f".pane.active .lines .outline.{name}",
    )


def red(page: Page, y: float) -> Any:
    """How much more red than blue a place in the middle of the stage is."""
    return page.evaluate(
        """(y) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
            const canvas = document.querySelector(".pane.active canvas");
            const [r, , b] = canvas.getContext("2d").getImageData(canvas.width / 2, y * canvas.height, 1, 1).data;
            done(r - b);
        })))""",
        y,
    )


def test_the_overlay_does_not_lead(page: Page, viewer: ViewerSystem) -> None:
    """Nothing is drawn until the reader asks; a held key warms the image or bares the bone; what they chose is kept."""
    look(page, viewer, "large")
    outline = page.locator(".pane.active .lines .outline")
    expect(page.locator("#drawn")).to_contain_text("Outlines are off")
    expect(outline).to_have_count(0)
    assert red(page, 7 / CELLS) == 0
    page.keyboard.down("h")
    assert red(page, 7 / CELLS) > 30
    page.keyboard.down("v")
    assert red(page, 7 / CELLS) == 0
    page.keyboard.up("v")
    page.keyboard.up("h")
    assert red(page, 7 / CELLS) == 0
    page.keyboard.down("h")
    page.evaluate("dispatchEvent(new Event('blur'))")  # the key is let go in another window
    assert red(page, 7 / CELLS) == 0
    page.keyboard.up("h")
    page.keyboard.press("t")
    expect(outline).to_have_count(1)  # the line of the point by which it is positive, and no wider one
    expect(outline).to_have_class("outline specific")
    page.keyboard.down("v")
    expect(outline).to_have_count(0)
    page.keyboard.up("v")
    expect(outline).to_have_count(1)
    page.locator("#overlay").click()
    assert red(page, 7 / CELLS) > 30
    page.reload()
    expect(outline).to_have_count(1)
    expect(page.locator("#overlay")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("r")
    expect(outline).to_have_count(0)
    assert red(page, 7 / CELLS) == 0


def test_a_site_may_begin_with_outlines(page: Page, viewer: ViewerSystem) -> None:
    """Until the reader has chosen otherwise."""

    def choose(route: Route) -> None:
        response = route.fetch()
        body = response.text().replace('data-overlay="none"', 'data-overlay="outlines"')
        route.fulfill(response=response, body=body)

    page.route("**/view/*", choose)
    look(page, viewer, "large")
    expect(page.locator(".pane.active .lines .outline.specific")).to_have_count(1)
    page.keyboard.press("t")
    page.reload()
    expect(page.locator("#drawn")).to_contain_text("Outlines are off")
    expect(page.locator(".pane.active .lines .outline")).to_have_count(0)


def test_outlines_stand_where_the_evidence_is(page: Page, viewer: ViewerSystem) -> None:
    """The solid line lies within the dotted one, both around the spot, whatever the zoom; t hides them."""
    look(page, viewer, "large")
    page.keyboard.press("t")
    page.get_by_label("Also the wider").check()
    expect(page.locator("#drawn")).to_contain_text("solid: alone enough for “positive”")
    ((dotted,), (solid,)) = boxes(page, "sensitive"), boxes(page, "specific")
    rows, columns = LARGE
    # the spot: row 7 of 28, in the middle; the square is as high as the radiograph
    place = columns / 2, 7 / CELLS * rows
    for line in (dotted, solid):
        assert (line["x"] + line["w"] / 2, line["y"] + line["h"] / 2) == pytest.approx(place, abs=rows / CELLS / 2)
    assert dotted["x"] < solid["x"]
    assert solid["x"] + solid["w"] < dotted["x"] + dotted["w"]
    dashes = [
        page.locator(f".pane.active .lines .outline.{name}").evaluate("path => getComputedStyle(path).strokeDasharray")
        for name in ("sensitive", "specific")
    ]
    assert dashes[0] != "none"
    assert dashes[1] == "none"
    before = page.locator(".pane.active .lines").get_attribute("viewBox")
    assert before
    page.keyboard.press("+")
    expect(page.locator(".pane.active .lines")).not_to_have_attribute("viewBox", before)
    assert boxes(page, "specific") == [solid]
    shot(page, "outlines")
    page.keyboard.press("t")
    expect(page.locator(".pane.active .lines .outline")).to_have_count(0)


def test_no_outline_where_the_radiograph_is_not_called(page: Page, viewer: ViewerSystem) -> None:
    """A radiograph under the solid point has no solid line; one under both has none; the legend says so."""
    look(page, viewer, "24-leg")
    page.keyboard.press("t")
    expect(page.locator("#drawn")).to_contain_text("dotted: alone enough for “unclear”")
    assert boxes(page, "specific") == []
    assert boxes(page, "sensitive") != []
    look(page, viewer, "15-shoulder")
    expect(page.locator("#drawn")).to_contain_text("A negative image has no outline")
    assert boxes(page, "specific") + boxes(page, "sensitive") == []


def test_abstention_is_told_and_draws_nothing_unasked(page: Page, viewer: ViewerSystem) -> None:
    """Where the model abstains there is a reason in plain words, no line however hot the map, and a map when asked for."""
    look(page, viewer, "21-leg")
    words = page.locator(".finding:visible .abstains")
    expect(words).to_contain_text("Outside the validated scope: metal in view. Raw score high")
    expect(words).to_contain_text("mislead the model")
    expect(words).to_contain_text("Silence is not normal")
    silent = "No outline is drawn: the model abstains. Silence is not normal."
    hidden = f"{silent} Its heatmap is hidden until you ask for it (hold h)."
    overlay = page.locator("#overlay")
    expect(page.locator("#drawn")).to_have_text(hidden)
    expect(overlay).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("t")
    expect(page.locator(".pane.active .lines .outline")).to_have_count(0)
    shot(page, "abstained")
    overlay.click()
    expect(overlay).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#drawn")).to_have_text(silent)
    look(page, viewer, "05-hand")  # asking or not of one that abstains changes nothing for another
    expect(overlay).to_have_attribute("aria-pressed", "false")
    overlay.click()
    look(page, viewer, "21-leg")
    expect(overlay).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#drawn")).to_have_text(hidden)


def test_heatmap_fades_hides_and_is_cut_off(page: Page, viewer: ViewerSystem) -> None:
    """Opacity and threshold change the colour over the radiograph, its button takes it away; the threshold is a number."""
    look(page, viewer, "large")
    expect(page.locator("#drawn")).not_to_be_empty()
    page.locator("#overlay").click()
    middle, rim = 7 / CELLS, 9 / CELLS
    weak = red(page, middle)
    assert weak > 30
    page.get_by_label("Opacity").fill("90")
    assert red(page, middle) > weak + 20
    assert red(page, rim) > 5
    page.get_by_label("Threshold").fill("70")
    expect(page.locator("#threshold-value")).to_have_text(re.compile("≥ 30 %"))
    assert red(page, rim) == 0
    assert red(page, middle) > weak
    page.locator("#overlay").click()
    assert red(page, middle) == 0


def test_model_is_told_in_plain_words(page: Page, viewer: ViewerSystem) -> None:
    """What it was validated for, and of 100 radiographs how many it calls, stand beside the radiograph."""
    look(page, viewer, "05-hand")
    page.get_by_text("What Osteon FracAtlas 2 is good for").click()
    words = page.locator("details.model")
    expect(words).to_contain_text("Validated for hand, elbow, shoulder, hip and leg")
    expect(words).to_contain_text("Of 100 fractured radiographs 98 are unclear or positive (94 to 100)")
    expect(words).to_contain_text("of 100 sound ones 55 too (49 to 60)")
    expect(words).to_contain_text("95 % intervals")


# -- marks, which the feedback panel asks for -------------------------------------------------------------------------


def test_a_reader_marks_a_place(page: Page, viewer: ViewerSystem) -> None:
    """After osteon:mark-start a drag, or the keys, give a box in shares of the radiograph; marks that are given are drawn."""
    stage = look(page, viewer, "large")
    page.evaluate("document.addEventListener('osteon:mark', (event) => (window.marked = event.detail))")
    seen = view(page)
    page.evaluate("document.dispatchEvent(new CustomEvent('osteon:mark-start'))")
    box = stage.bounding_box()  # the radiograph takes the focus, and comes into sight by that
    assert box is not None
    page.mouse.move(box["x"] + 1 + 0.45 * (box["width"] - 2), box["y"] + 1 + 0.25 * (box["height"] - 2))
    page.mouse.down()
    page.mouse.move(box["x"] + 1 + 0.55 * (box["width"] - 2), box["y"] + 1 + 0.5 * (box["height"] - 2), steps=3)
    page.mouse.up()
    marked = page.evaluate("window.marked")
    assert (marked["image"], marked["frame"]) == (1, 1)
    columns = LARGE[1]
    assert marked["x"] == pytest.approx((seen[0] + 0.45 * seen[2]) / columns, abs=0.01)
    assert marked["y"] == pytest.approx(0.25, abs=0.01)
    assert marked["width"] == pytest.approx(0.1 * seen[2] / columns, abs=0.01)
    assert marked["height"] == pytest.approx(0.25, abs=0.01)
    assert view(page) == seen
    page.evaluate(
        "mark => document.dispatchEvent(new CustomEvent('osteon:marks', {detail: {marks: [mark]}}))",
        marked | {"label": "my box"},
    )
    expect(page.locator(".pane.active .lines .mark")).to_have_count(1)
    expect(page.locator(".pane.active .lines .mark-label")).to_have_text("my box")
    shot(page, "marked")
    page.evaluate("document.dispatchEvent(new CustomEvent('osteon:mark-start'))")
    expect(stage).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    keyed = page.evaluate("window.marked")
    assert keyed["x"] + keyed["width"] / 2 > 0.5
    assert keyed["y"] + keyed["height"] / 2 == pytest.approx(0.5)


# -- everybody ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "study", ["05-hand", *(pytest.param(one, marks=pytest.mark.slow) for one in ("24-leg", "21-leg"))]
)
def test_axe_finds_nothing_serious(page: Page, viewer: ViewerSystem, study: str) -> None:
    """No serious or critical fault of accessibility, with the model's words opened and the help sheet shown too."""
    look(page, viewer, study)
    page.locator("details.model summary").click()
    for _ in range(2):
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        grave = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found if one["impact"] in GRAVE]
        assert grave == []
        page.keyboard.press("?")


@pytest.mark.parametrize(
    ("width", "height"),
    [*(pytest.param(*size, marks=pytest.mark.slow) for size in ((1600, 1000), (1180, 820), (820, 1180))), (480, 900)],
)
def test_nothing_hangs_over_the_edge(
    make_page: Callable[..., Page], viewer: ViewerSystem, width: int, height: int
) -> None:
    """On a desktop, on a tablet held either way, and on a telephone, no page needs to be scrolled sideways."""
    page = make_page(viewport={"width": width, "height": height})
    for study in ("05-hand", "24-leg", "21-leg"):
        look(page, viewer, study)
        expect(page.locator("#drawn")).not_to_be_empty()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shot(page, f"{study}-{width}")


# -- when something is missing; last, for they end the worker -------------------------------------------------------


def test_refused_radiograph_says_why(page: Page, viewer: ViewerSystem) -> None:
    """A radiograph that cannot be made leaves the preview, with the reason."""
    page.route("**/frame?*", lambda route: route.fulfill(status=422, json={"detail": "The pixels are damaged."}))
    look(page, viewer, "15-shoulder", "preview")
    expect(page.locator(".pane.active .quality")).to_contain_text("No full-resolution frame: The pixels are damaged.")
    expect(page.locator("#said")).to_contain_text("The pixels are damaged.")


@pytest.mark.slow
def test_without_a_worker_the_preview_stays(page: Page, viewer: ViewerSystem) -> None:
    """No worker: the preview is there and says that the full-resolution frame does not come; once one runs, it comes."""
    viewer.worker.kill()
    viewer.worker.wait(LIMIT_S)
    viewer.forget_frames()
    look(page, viewer, "15-shoulder", "preview")
    expect(page.locator(".pane.active .quality")).to_contain_text(
        "The full-resolution frame does not come; perhaps no worker runs"
    )
    shot(page, "no-worker")
    viewer.worker = viewer.live_stack.worker()
    expect(page.locator(".pane.active .quality")).to_have_text(
        re.compile("^full-resolution frame"), timeout=limit_s(60) * 1000
    )
