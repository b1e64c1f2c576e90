"""Words of ours that any character set can hold, and short ones for a title."""

import unicodedata

# what has no decomposition into a letter and its marks (Unicode 5.18), and signs that have a plain form
_PLAIN = str.maketrans({
    "\N{HYPHEN}": "-", "\N{NON-BREAKING HYPHEN}": "-", "\N{FIGURE DASH}": "-", "\N{EN DASH}": "-", "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-", "\N{LEFT SINGLE QUOTATION MARK}": "'", "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"', "\N{MIDDLE DOT}": "-",
    "\N{MULTIPLICATION SIGN}": "x", "\N{GREATER-THAN OR EQUAL TO}": ">=", "\N{LESS-THAN OR EQUAL TO}": "<=",
    "\N{LATIN SMALL LETTER SHARP S}": "ss", "\N{LATIN SMALL LETTER AE}": "ae", "\N{LATIN CAPITAL LETTER AE}": "Ae",
    "\N{LATIN SMALL LETTER O WITH STROKE}": "o", "\N{LATIN CAPITAL LETTER O WITH STROKE}": "O",
    "\N{LATIN SMALL LIGATURE OE}": "oe", "\N{LATIN CAPITAL LIGATURE OE}": "Oe",
    "\N{LATIN SMALL LETTER D WITH STROKE}": "d",
    "\N{LATIN CAPITAL LETTER D WITH STROKE}": "D", "\N{LATIN SMALL LETTER L WITH STROKE}": "l",
    "\N{LATIN CAPITAL LETTER L WITH STROKE}": "L", "\N{LATIN SMALL LETTER DOTLESS I}": "i",
    # ISO_IR 13 has a yen sign and an overline in these places (PS3.5 6.1.2.3); a backslash divides values
    "\\": "/", "~": "-",
})  # fmt: skip


def plain(text: str, longest: int = 1024) -> str:
    """Make a text that every character set of DICOM holds: printable ASCII, without a backslash.

    A letter with a mark becomes the letter; what has no plain form is left out.

    Args:
        text: any text.
        longest: the most characters.

    Returns:
        One line, without spaces at its ends; may be empty.
    """
    letters = unicodedata.normalize("NFKD", " ".join(text.translate(_PLAIN).split())).translate(_PLAIN)
    kept = "".join(letter for letter in letters if letter.isascii() and letter.isprintable())
    return " ".join(kept.split())[:longest].strip()
