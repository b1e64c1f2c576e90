"""The colours of the pages: every text can be read on every ground, in both themes, and the fonts are our own."""

import itertools
import re

import pytest

from api.pages.render import STATIC_DIR

STYLE = (STATIC_DIR / "osteon.css").read_text()
TOKEN = re.compile(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)")
THEMES = ("light", "dark")
GROUNDS = ("ground", "panel", "raised", "hover", "chosen", "notice")
TEXTS = (
    "text", "quiet", "accent", "positive", "unclear", "negative", "abstained", "agreed", "late-just", "late", "alarm",
)  # fmt: skip
MARKS = ("edge", "faint")  # borders of what is filled in, and what tells no fact
ON_ACCENT = (("on-accent", "accent"), ("on-accent", "accent-hover"))
MIN_TEXT, MIN_MARK = 4.5, 3.0  # WCAG 2.2, 1.4.3 and 1.4.11


def luminance(colour: str) -> float:
    """Of "#rrggbb", as WCAG defines it."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """From 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def tokens(style: str) -> dict[str, dict[str, str]]:
    """Theme -> name of a token -> its colour."""
    return {theme: {found[0]: found[1 + at] for found in TOKEN.findall(style)} for at, theme in enumerate(THEMES)}


def more_contrast() -> str:
    """What the style changes for readers who ask for more contrast."""
    return STYLE.partition("@media (prefers-contrast: more) {")[2].partition("\n}")[0]


def test_contrast_is_computed_as_defined() -> None:
    """Black on white is 21, a colour on itself 1, and a known pair has its known value."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#777777") == 1
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("style", [STYLE.partition("@media (prefers-contrast")[0], STYLE], ids=["usual", "more"])
def test_every_text_can_be_read_on_every_ground(theme: str, style: str) -> None:
    """4.5:1 for texts, 3:1 for marks on the grounds that stand still; also where the reader asks for more contrast."""
    colours = tokens(style)[theme]
    pairs = [(text, ground, MIN_TEXT) for text, ground in (*itertools.product(TEXTS, GROUNDS), *ON_ACCENT)]
    pairs += [(mark, ground, MIN_MARK) for mark, ground in itertools.product(MARKS, ("ground", "panel", "raised"))]
    found = {f"{one} on {other}": round(contrast(colours[one], colours[other]), 2) for one, other, _ in pairs}
    wanted = {f"{one} on {other}": least for one, other, least in pairs}
    assert {pair: value for pair, value in found.items() if value < wanted[pair]} == {}


@pytest.mark.parametrize("theme", THEMES)
def test_more_contrast_is_more(theme: str) -> None:
    """Whoever asks for it gets lines and secondary text that differ more from the page than for others."""
    usual, more = (tokens(style)[theme] for style in (STYLE.partition("@media (prefers-contrast")[0], more_contrast()))
    assert more.keys() >= {"line", "edge", "quiet"}
    assert all(contrast(more[name], usual["panel"]) > contrast(usual[name], usual["panel"]) + 1 for name in more)
    assert contrast(more["quiet"], usual["panel"]) >= 7


def test_the_fonts_are_served_by_us() -> None:
    """Each file that the style names is there and is a font, the licence stands beside them, nothing is taken elsewhere."""
    named = re.findall(r'url\("([^"]+)"\)', STYLE)
    assert {f"fonts/{path.name}" for path in (STATIC_DIR / "fonts").glob("*.woff2")} == set(named)
    assert all((STATIC_DIR / name).read_bytes()[:4] == b"wOF2" for name in named)
    assert "SIL OPEN FONT LICENSE" in (STATIC_DIR / "fonts/LICENSE_INTER").read_text()
    assert not any(re.search(r"url\(\"?(https?:)?//", path.read_text()) for path in STATIC_DIR.rglob("*.css"))


def test_every_colour_has_a_name() -> None:
    """No style but that of the variables has colours of its own, which would stand in both themes; black is the stage's."""
    stage = {"#000", "#fff", "#8ff0ff", "#555"}  # on radiographs, which stand on black in every theme
    rest = STYLE.partition("color-scheme: light dark;")[2].replace(more_contrast(), "")
    styles = {path.name: path.read_text() for path in STATIC_DIR.glob("*.css")} | {"osteon.css": rest}
    found = {
        name: set(re.findall(r"#[0-9a-f]{3,8}\b", style.partition("@media print")[0])) - stage
        for name, style in styles.items()
    }
    assert {name: colours for name, colours in found.items() if colours} == {}
