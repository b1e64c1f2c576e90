"""A report as a PDF: A4, research use on every page, pages counted; what no font draws is said, never dropped."""

import functools
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image as Picture
from reportlab.lib.colors import HexColor, black
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.pdfmetrics import getFont, registerFont, registerFontFamily
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Image, KeepTogether, Paragraph, SimpleDocTemplate, Spacer, Table

from shared.domain.findings import RESEARCH_USE

FONTS = Path(__file__).parent / "fonts"
PLAIN, BOLD = "DejaVuSans", "DejaVuSans-Bold"
# fonts of the viewer, which no PDF needs to bring: name, and the encoding that shows whether it has a character
EAST_ASIAN = (("HeiseiKakuGo-W5", "shift_jis"), ("STSong-Light", "gb2312"), ("HYGothic-Medium", "euc_kr"),
              ("MSung-Light", "big5"))  # fmt: skip
MISSING = "\N{WHITE SQUARE}"
MARGIN, BAND = 15 * mm, 8 * mm
WIDTH = A4[0] - 2 * MARGIN - 12  # a frame of ReportLab's keeps 6 points free on each side
HEIGHTS = (88 * mm, 70 * mm, 54 * mm, 42 * mm, 32 * mm)  # of a picture: the greatest with which all fits on one page
MAX_ON_A_PAGE = 4
GRAY = HexColor("#444444")
EXTENT = (
    "Extent is by annotation, how many fractures were outlined in the training radiographs and how large; it is not a "
    "clinical grade."
)
EARLIER = "A newer finding has replaced the one that this feedback is about; it says nothing of the newer one."
NOT_THERE = "There is no picture of this image in the store."


@dataclass(frozen=True)
class ReportImage:
    """One image of a report."""

    number: int
    size: str
    lines: Sequence[str]  # what is said of it
    pictureless: str = NOT_THERE  # what stands in the place of its picture


@dataclass(frozen=True, repr=False)
class ReportContent:
    """Everything that a report's PDF says. It names a patient, so it has no repr."""

    study_id: str
    study_instance_uid: str
    name: str
    facts: Sequence[tuple[str, str]]  # who and what, each under its name
    standing: Sequence[tuple[str, str]]  # how the study stands, in the second column
    headline: str
    images: Sequence[ReportImage]
    pictures: Mapping[int, bytes] = field(repr=False)  # JPEG by number of the image
    generated_at: str
    generated_by: str
    note: str  # what the pictures show
    beside: str = ""
    bundles: Mapping[str, Sequence[str]] = field(default_factory=dict)  # title and key, to what is to be known of it
    feedback: Sequence[str] = ()
    earlier: Sequence[str] = ()  # feedback on findings that newer ones have replaced


def minute_text(moment: datetime) -> str:
    """A time as reports show it, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


@functools.cache
def _fonts() -> frozenset[int]:
    """Register them once; the code points that ours draw."""
    for name in (PLAIN, BOLD):
        registerFont(TTFont(name, str(FONTS / f"{name}.ttf")))
    registerFontFamily(PLAIN, normal=PLAIN, bold=BOLD, italic=PLAIN, boldItalic=BOLD)
    for name, _ in EAST_ASIAN:
        registerFont(UnicodeCIDFont(name))
    return frozenset(getFont(PLAIN).face.charToGlyph)


def to_markup(text: str) -> tuple[str, list[str]]:
    """Convert a text to a Paragraph's markup.

    Latin, Greek and Cyrillic come with the PDF; Chinese, Japanese and Korean are drawn by the viewer's own fonts. What
    is written from right to left, or needs its letters joined, would come out wrong and is not drawn.

    Args:
        text: any text.

    Returns:
        The markup, and the characters that cannot be drawn, each of which is a white square in it.
    """
    code_points, pieces, missing = _fonts(), [], []
    for font, run in _runs(unicodedata.normalize("NFC", text), code_points):
        if font is None:
            missing += [character for character in run if character not in missing]
            pieces.append(MISSING * len(run))
        else:
            pieces.append(escape(run) if font == PLAIN else f'<font name="{font}">{escape(run)}</font>')
    return "".join(pieces), missing


def _runs(text: str, code_points: frozenset[int]) -> list[tuple[str | None, str]]:
    """The text in pieces of one font each; None where no font draws it."""
    strange = "".join(character for character in text if not _is_in_our_font(character, code_points))
    asian = next((name for name, encoding in EAST_ASIAN if strange and _encodes(strange, encoding)), None)
    runs: list[tuple[str | None, str]] = []
    for character in text:
        font = PLAIN if _is_in_our_font(character, code_points) else asian or _asian_font(character)
        if runs and runs[-1][0] == font:
            runs[-1] = font, runs[-1][1] + character
        else:
            runs.append((font, character))
    return runs


def _is_in_our_font(character: str, code_points: frozenset[int]) -> bool:
    return character in "\n\t" or (
        ord(character) in code_points and unicodedata.bidirectional(character) not in ("R", "AL", "AN")
    )


def _asian_font(character: str) -> str | None:
    return next((name for name, encoding in EAST_ASIAN if _encodes(character, encoding)), None)


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return all(unicodedata.east_asian_width(character) in "WFA" for character in text)


def render_pdf(content: ReportContent) -> bytes:
    """Set a report: one page for up to four images, if there is little feedback.

    Args:
        content: what it says.

    Returns:
        The PDF; the same for the same content, whenever it is made.
    """
    few = len(content.images) <= MAX_ON_A_PAGE
    for height in HEIGHTS if few else HEIGHTS[2:3]:
        data, pages = _lay_out(content, height)
        if pages == 1:
            break
    else:
        data, _ = _lay_out(content, HEIGHTS[1 if few else 2])
    return data


def _lay_out(content: ReportContent, height: float) -> tuple[bytes, int]:
    out = io.BytesIO()
    document = SimpleDocTemplate(
        out, pagesize=A4, leftMargin=MARGIN, rightMargin=MARGIN, topMargin=MARGIN + BAND, bottomMargin=MARGIN + 4 * mm,
        title=f"Osteon report {content.study_id}", author="Osteon", subject=RESEARCH_USE, lang="en", invariant=1,
    )  # fmt: skip
    pages: list[int] = []

    class NumberedCanvas(Canvas):  # type: ignore[misc] # reportlab carries no types
        """Knows how many pages there are before it draws the first one's foot."""

        def __init__(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - as Canvas has them
            super().__init__(*arguments, **more)
            self._states: list[dict[str, Any]] = []

        def showPage(self) -> None:  # noqa: N802 - as Canvas has it
            """Keep the page for later."""
            self._states.append(dict(self.__dict__))
            self._startPage()

        def save(self) -> None:
            """Draw every page's band and foot, then write."""
            pages.append(len(self._states))
            for state in self._states:
                self.__dict__.update(state)
                _draw_frame(self, content, len(self._states))
                super().showPage()
            super().save()

    document.build(_story(content, height), canvasmaker=NumberedCanvas)
    return out.getvalue(), pages[-1]


def _draw_frame(canvas: Any, content: ReportContent, pages: int) -> None:  # noqa: ANN401 - reportlab carries no types
    """The band above and the foot below, on every page."""
    _fonts()
    wide, high = A4
    canvas.setFillColor(HexColor("#ffe2b3"))
    canvas.rect(MARGIN + 6, high - MARGIN - BAND + 3 * mm, WIDTH, BAND - 1 * mm, stroke=0, fill=1)
    canvas.setFillColor(black)
    canvas.setFont(BOLD, 9.5)
    canvas.drawCentredString(wide / 2, high - MARGIN - BAND + 5.2 * mm, RESEARCH_USE.upper())
    canvas.setFont(PLAIN, 6.5)
    canvas.setFillColor(GRAY)
    made = f"Generated {content.generated_at} by {content.generated_by}. Study {content.study_id}"
    canvas.drawString(MARGIN + 6, MARGIN - 1 * mm, made)
    canvas.drawString(MARGIN + 6, MARGIN - 4.5 * mm, f"Study Instance UID {content.study_instance_uid}")
    canvas.drawRightString(wide - MARGIN - 6, MARGIN - 1 * mm, f"page {canvas.getPageNumber()} of {pages}")


def _style(size: float, **more: Any) -> ParagraphStyle:  # noqa: ANN401 - reportlab carries no types
    values = {"fontName": PLAIN, "fontSize": size, "leading": size * 1.35} | more
    return ParagraphStyle("report", **values)


TITLE, HEAD = _style(15, fontName=BOLD), _style(9.5, fontName=BOLD, spaceBefore=5, spaceAfter=1)
TEXT, SMALL = _style(8.5), _style(7.5, textColor=GRAY)
STRONG = _style(11, fontName=BOLD, spaceBefore=6, spaceAfter=3)


def _story(content: ReportContent, height: float) -> list[Any]:
    missing: list[str] = []
    borrowed = False

    def words(text: str, style: ParagraphStyle = TEXT) -> Paragraph:
        nonlocal borrowed
        markup, gone = to_markup(text)
        missing.extend(gone)
        borrowed = borrowed or any(f'name="{name}"' in markup for name, _ in EAST_ASIAN)
        return Paragraph(markup.replace("\n", "<br/>"), style)

    story = [words("Osteon report", TITLE), Spacer(1, 3), _identity(content, words), words(content.headline, STRONG)]
    if content.beside:
        story.append(words(content.beside))
    story += _images(content, height, words)
    story += [words(content.note, SMALL)]
    story += [words("What extent means", HEAD), words(EXTENT)]
    for name, facts in content.bundles.items():
        story += [words(f"Model bundle {name}, and its limits", HEAD), words(" ".join(facts))]
    story += [words("Readers' feedback", HEAD)]
    story += [words(one) for one in content.feedback] or [words("No reader has given feedback yet.")]
    if content.earlier:
        story += [words("Feedback on earlier findings", HEAD), words(EARLIER, SMALL)]
        story += [words(one) for one in content.earlier]
    if borrowed:
        note = (
            "Chinese, Japanese and Korean letters are drawn by your viewer's own fonts. Where it has none, empty boxes "
            "or gaps stand in their place; the report's page shows the letters."
        )
        story.insert(3, Paragraph(note, SMALL))
    if missing:
        codes = ", ".join(f"U+{ord(character):04X}" for character in dict.fromkeys(missing))
        note = f"{MISSING} stands for characters that this PDF cannot draw ({codes}). The report's page shows them all."
        story.insert(3, Paragraph(escape(note), _style(8.5, fontName=BOLD)))
    return story


def _identity(content: ReportContent, words: Any) -> Table:  # noqa: ANN401 - a local function
    left, right = [("Patient", content.name), *content.facts], content.standing
    cells = [(*one, *other) for one, other in zip_longest(left, right, fillvalue=("", ""))]
    rows = [[words(cell, SMALL if place % 2 == 0 else TEXT) for place, cell in enumerate(row)] for row in cells]
    table = Table(rows, colWidths=[22 * mm, WIDTH / 2 - 22 * mm, 22 * mm, WIDTH / 2 - 22 * mm], hAlign="LEFT")
    line = HexColor("#999999")
    table.setStyle([
        ("VALIGN", (0, 0), (-1, -1), "TOP"), ("TOPPADDING", (0, 0), (-1, -1), 1),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 1), ("BOX", (0, 0), (-1, -1), 0.5, line),
    ])  # fmt: skip
    return table


def _images(content: ReportContent, height: float, words: Any) -> list[Any]:  # noqa: ANN401 - as above
    columns = 1 if len(content.images) == 1 else 2
    wide = (WIDTH - (columns - 1) * 4 * mm) / columns
    cells: list[Any] = []
    for image in content.images:
        cell: list[Any] = [words(f"Image {image.number} ({image.size})", HEAD)]
        picture = content.pictures.get(image.number)
        if picture:
            cell.append(_picture(picture, wide - 4 * mm, height))
        else:
            cell.append(words(image.pictureless, SMALL))
        cell += [Spacer(1, 2), *(words(line) for line in image.lines)]
        cells.append(cell)
    tables = []
    for at in range(0, len(cells), columns):
        row = cells[at : at + columns] + [""] * (columns - len(cells[at : at + columns]))
        table = Table([row], colWidths=[wide + 2 * mm] * columns, hAlign="LEFT")
        table.setStyle([
            ("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), 0),
            ("TOPPADDING", (0, 0), (-1, -1), 0), ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
        ])  # fmt: skip
        tables.append(KeepTogether([table]))
    return tables


def _picture(content: bytes, wide: float, high: float) -> Image:
    with Picture.open(io.BytesIO(content)) as picture:
        width, height = picture.size
    scale = min(wide / width, high / height)
    image = Image(io.BytesIO(content), width * scale, height * scale)
    image.hAlign = "LEFT"
    return image
