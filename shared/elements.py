"""Values of a DICOM data set, read within bounds: neither a huge element nor a million items costs much.

Source: PS3.5 6.2 (value representations) and 7 (data set).
"""

import functools
import io
import logging
import math
import re
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom import config
from pydicom.charset import default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from shared.errors import BadAttributes, CannotUnderstand, Rejected, TooLarge

# pydicom logs and warns about odd values in words that quote them: a quoted value can be a patient's name
logging.getLogger("pydicom").disabled = True
config.settings.reading_validation_mode = config.IGNORE

SKIP_OVER_BYTES = 65536  # values longer than this are stepped over, not read
MAX_READS = 100_000  # an element takes one to three; a header of a million empty items would fill the memory
_CHARSET = (b"\x08\x00\x05\x00", b"\x00\x08\x00\x05")  # its tag, in either byte order
LARGEST_NUMBER = 2**31 - 1  # PS3.5 6.2, IS
_VRS = frozenset(vr.value.encode() for vr in VR if len(vr.value) == 2)
_ITEM_GROUP = 0xFFFE
_NONE_YET = (-2, 0)
_DECIMAL = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")


@dataclass
class Budget:
    """What may still be read of a header, in all its sequences together."""

    bytes_left: int
    reads_left: int = MAX_READS


class CountedFile:
    """A file that refuses to be read beyond a budget; stepping over values is free.

    order: "<" or ">" where its elements have a VR; then an element with one that DICOM does not know is read, too.
    """

    def __init__(self, file: BinaryIO, budget: Budget, order: str = "") -> None:
        self.file, self.budget = file, budget
        self.cut_short = False
        self._last = b""
        self._order = order
        self._value = _NONE_YET  # where the value of the last element lies, and its length
        self._owed = b""  # the four bytes of a length that was two bytes long
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """As a file's read. Raises TooLarge once the budget is used up, and for a huge Specific Character Set.

        The latter because pydicom splits and looks up every part of it before anybody has asked for it.
        """
        if self._owed:
            owed, self._owed = self._owed, b""
            return owed
        if size > SKIP_OVER_BYTES and self._last in _CHARSET:
            raise TooLarge("Specific Character Set (0008,0005) is far longer than it may be")
        place = self.tell() if self._order else 0
        data = self._take(size)
        # the end of a file is met between elements; met within one, the file was cut
        self.cut_short |= 0 < len(data) < size
        if size == 8 and not (self._order and (place, size) == self._value):  # the beginning of an element
            self._last = data[:4]
            if self._order and len(data) == size:
                data = self._element(place, data)
        elif size == 4 and len(data) == size and self._value == (place + 4, -1):  # the rest of it
            self._value = (place + 4, struct.unpack(f"{self._order}L", data)[0])
        return data

    def at(self, position: int, size: int) -> bytes:
        """So many bytes from a place, fewer where the file ends. Raises TooLarge once the budget is used up."""
        self.seek(position)
        return self._take(size)

    def _take(self, size: int) -> bytes:
        left = self.budget.bytes_left
        data = self.file.read(size if 0 <= size <= left else left + 1)
        self.budget.bytes_left -= len(data)
        self.budget.reads_left -= 1
        if self.budget.bytes_left < 0 or self.budget.reads_left < 0:
            raise TooLarge("The DICOM header is larger than this installation reads")
        return data

    def _element(self, place: int, start: bytes) -> bytes:
        """Note where an element's value lies; returns its first eight bytes, with a VR that pydicom knows.

        One that DICOM does not know ("--", "??") has a length of two bytes, as DCMTK takes it, and gives way to that
        of its tag. Bytes that cannot be a VR are left to pydicom: they belong to an item in implicit VR.
        """
        vr = start[4:6]
        group, element, length = struct.unpack(f"{self._order}HH2xH", start)
        if self._value == _NONE_YET and not vr.isalpha():  # implicit VR under another name: pydicom finds out, too
            self._order = ""
            return start
        if vr in _VRS:
            self._value = (place + 12, -1) if vr.decode() in EXPLICIT_VR_LENGTH_32 else (place + 8, length)
            return start
        self._value = (-1, 0)
        capitals = vr.isalpha() and vr.isupper()
        odd = (vr == b"\0\0" and length) or (vr.isascii() and vr.decode().isprintable() and not capitals)
        if group != _ITEM_GROUP and capitals and length == 0 and self._is_long(place, group):
            self._value = (place + 12, -1)
            return start[:4] + b"UN\0\0"
        if group == _ITEM_GROUP or not (odd or capitals):
            return start
        self._value = (place + 8, length)
        if capitals:  # pydicom does as much
            return start
        try:
            known = dictionary_VR(BaseTag(group << 16 | element))[:2]  # the first of "US or SS"
        except KeyError:
            known = "UN"
        if known not in EXPLICIT_VR_LENGTH_32:
            return start[:4] + known.encode() + start[6:]
        self._owed = struct.pack(f"{self._order}L", length)
        return start[:4] + known.encode() + b"\0\0"

    def _is_long(self, place: int, group: int) -> bool:
        """Whether an element of a VR that is not known yet has a length of four bytes, as PS3.5 6.2 wants it.

        Told by what follows: another element.
        """
        rest = self.at(place + 8, 4)
        (length,) = struct.unpack(f"{self._order}L", rest) if len(rest) == 4 else (0,)
        following = self.at(place + 12 + length, 8)
        self.seek(place + 8)
        known = len(following) == 8 and following[4:6] in _VRS
        return known and group <= struct.unpack(f"{self._order}H", following[:2])[0]


def in_our_words(broken: BaseException) -> Rejected | MemoryError:
    """What to raise for something that came up while pydicom read a header."""
    within: BaseException | None = broken
    while within is not None:
        # pydicom turns what a file raises into errors of its own; a lack of memory is no flaw of the file
        if isinstance(within, Rejected | MemoryError):
            return within
        within = within.__context__
    # the exception's own text may quote values, so only its kind is passed on
    return CannotUnderstand(f"{CannotUnderstand.__doc__} ({type(broken).__name__})")


def count(dataset: Dataset, keyword: str, default: int | None = None, least: int = 1) -> int:
    """A whole number of the header; default: for a missing or empty one, None where it must be there.

    Raises BadAttributes when it is missing, no number, under `least` or over LARGEST_NUMBER. Source: PS3.3 C.7.6.3.
    """
    value = value_of(dataset, keyword)
    if value is None or value == "":
        if default is None:
            raise BadAttributes(f"{keyword} is missing; an image must have it (PS3.3 C.7.6.3)")
        return default
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise BadAttributes(f"{keyword} is not a number") from None
    if abs(number) > LARGEST_NUMBER:
        raise BadAttributes(f"{keyword} is a number beyond what DICOM allows (PS3.5 6.2)")
    if number < least:
        raise BadAttributes(f"{keyword} is {number}; it must be at least {least}")
    return number


@functools.cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def named(keyword: str) -> str:
    """The keyword with its tag, as it is named in messages: "RescaleSlope (0028,1053)"."""
    tag = _tag(keyword)
    return f"{keyword} ({tag.group:04X},{tag.element:04X})"


def value_of(dataset: Dataset, keyword: str, longest: int = SKIP_OVER_BYTES) -> Any:  # noqa: ANN401 - as pydicom's
    """A value that is no sequence; None where it is missing.

    Raises BadAttributes for one longer than `longest` bytes, or one that claims to be a sequence: pydicom would make
    an object, up to a thousand times as large, of every item or value in it.
    """
    tag = _tag(keyword)
    element = dataset.get_item(tag, keep_deferred=True)
    if element is None:
        return None
    if isinstance(element, RawDataElement) and element.length > longest:
        raise BadAttributes(f"{keyword} is far longer than it may be")
    if element.VR == "SQ":
        raise BadAttributes(f"{keyword} is a sequence where a value is expected")
    return dataset[tag].value


def raw_of(dataset: Dataset, keyword: str) -> bytes | None:
    """The bytes of a value as they stand in the file; None where they are missing, or were read as something else.

    Raises BadAttributes for one longer than SKIP_OVER_BYTES.
    """
    element = dataset.get_item(_tag(keyword), keep_deferred=True)
    if not isinstance(element, RawDataElement):
        return None
    if element.length > SKIP_OVER_BYTES:
        raise BadAttributes(f"{keyword} is far longer than it may be")
    return element.value if isinstance(element.value, bytes) else None


def decimals(dataset: Dataset, keyword: str) -> list[float]:
    """The numbers of a decimal string, [] where it is missing or empty; NaN for an empty one among others.

    A comma is read as the decimal point: some writers follow the language of their system, and DS allows no comma,
    so that nothing else can be meant. Raises BadAttributes for a value that is no number. Source: PS3.5 6.2, DS.
    """
    raw = raw_of(dataset, keyword)
    element = dataset.get_item(_tag(keyword), keep_deferred=True)
    if raw is None or element is None or element.VR not in ("DS", "IS", "UN", "LO", "SH", "ST", "LT", "UT", "CS", None):
        value = value_of(dataset, keyword)
        several = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
        texts = ["" if one is None else str(one) for one in several]
    else:
        texts = raw.decode("ascii", "replace").split("\\")
    texts = [text.strip(" \0\t\r\n") for text in texts]
    if not any(texts):
        return []
    numbers = []
    for text in texts:
        if text and not _DECIMAL.fullmatch(text):
            raise BadAttributes(f"{named(keyword)} is not a decimal number")
        numbers.append(float(text.replace(",", ".")) if text else math.nan)
    return numbers


def items_of(dataset: Dataset, keyword: str, budget: Budget) -> list[Dataset]:
    """The items of a sequence, [] where it is missing; reading them takes from the budget.

    Raises TooLarge when that is used up, BadAttributes for an element that is no sequence, and what pydicom raises.
    """
    element = dataset.get_item(_tag(keyword), keep_deferred=True)
    if element is None:
        return []
    if isinstance(element, RawDataElement):
        if element.VR not in ("SQ", "UN", None):
            raise BadAttributes(f"{keyword} is no sequence")
        value = element.value or b""
        order = "" if element.is_implicit_VR else "<" if element.is_little_endian else ">"
        counted = CountedFile(io.BytesIO(value), budget, order)
        charset = dataset.original_character_set
        # pydicom does this by itself, but without a bound
        items = read_sequence(
            counted,
            element.is_implicit_VR,
            element.is_little_endian,
            len(value),
            charset,
        )
        dataset[element.tag] = element = DataElement(element.tag, "SQ", items)
    if element.VR != "SQ":
        raise BadAttributes(f"{keyword} is no sequence")
    return list(element.value or ())


def code_string(dataset: Dataset, keyword: str) -> str:
    """A CS value, of which only characters that can be seen are kept: it is shown and stored. Source: PS3.5 6.2."""
    return "".join(letter for letter in text_of(dataset, keyword, 16) if letter.isprintable())


def text_of(dataset: Dataset, keyword: str, longest: int) -> str:
    """A text value, decoded by Specific Character Set, without padding and of at most `longest` characters.

    Several values stand with a backslash between them. Raises BadAttributes as value_of.
    """
    raw = raw_of(dataset, keyword)
    if raw is not None and _ESCAPE in raw:
        encodings = dataset.original_character_set
        first = encodings if isinstance(encodings, str) else (list(encodings) or [default_encoding])[0]
        text = decode_iso2022(raw, first)
    else:
        value = value_of(dataset, keyword)
        several = isinstance(value, list | tuple) or (hasattr(value, "append") and not isinstance(value, str))
        text = "\\".join(str(one) for one in value) if several else str(value or "")
    # a NUL is legal padding in some writers and illegal in a Postgres text, as is half of a surrogate pair
    return text.encode("utf-8", "replace").decode().replace("\0", "").strip()[:longest]


# -- ISO 2022 -------------------------------------------------------------------------------------------------------

_ESCAPE = b"\x1b"
# escape sequences of PS3.3 C.12.1.1.2: which half of the code table they fill, and Python's codec for it
_SETS: dict[bytes, tuple[str, str]] = {
    b"\x1b(B": ("low", "ascii"),
    b"\x1b(J": ("low", "jis-roman"),
    b"\x1b$B": ("low", "jis-x-0208"),
    b"\x1b$@": ("low", "jis-x-0208"),
    b"\x1b$(D": ("low", "jis-x-0212"),
    b"\x1b)I": ("high", "shift_jis"),
    b"\x1b-A": ("high", "latin_1"),
    b"\x1b-B": ("high", "iso8859_2"),
    b"\x1b-C": ("high", "iso8859_3"),
    b"\x1b-D": ("high", "iso8859_4"),
    b"\x1b-F": ("high", "iso8859_7"),
    b"\x1b-G": ("high", "iso8859_6"),
    b"\x1b-H": ("high", "iso8859_8"),
    b"\x1b-L": ("high", "iso8859_5"),
    b"\x1b-M": ("high", "iso8859_9"),
    b"\x1b-T": ("high", "tis_620"),
    b"\x1b-b": ("high", "iso8859_15"),
    b"\x1b$)C": ("high", "euc_kr"),
    b"\x1b$)A": ("high", "gb2312"),
}
_TWO_BYTES_LOW = {"jis-x-0208": b"\x1b$B", "jis-x-0212": b"\x1b$(D"}
_TWO_BYTES_HIGH = ("euc_kr", "gb2312")
_RESETS = b"\r\n\f\t^=\\"  # PS3.5 6.1.2.5.3: after these the first character set is in force again
_RUN = re.compile(rb"\x1b\$\([A-Z]|\x1b\$[)]?[@-Z]|\x1b[()\-][A-Za-z]|[\x80-\xff]+|[^\x1b\x80-\xff]+|\x1b", re.DOTALL)


def decode_iso2022(raw: bytes, first: str) -> str:
    """A text with code extensions. first: Python's codec of the first value of Specific Character Set.

    What cannot be decoded becomes U+FFFD; escape sequences that DICOM does not know are left out.
    Source: PS3.5 6.1.2.5, PS3.3 C.12.1.1.2.
    """
    high_at_first = first if first not in ("iso2022_jp", "iso2022_jp_2", "ascii", "iso8859") else "latin_1"
    low, high = "ascii", high_at_first
    parts: list[str] = []
    for found in _RUN.finditer(raw):
        run = found.group()
        if run.startswith(_ESCAPE):
            half, name = _SETS.get(run, ("", ""))
            low, high = (name if half == "low" else low), (name if half == "high" else high)
        elif run[0] >= 0x80:
            codec = "gb2312" if high == "iso_ir_58" else high
            parts.append(run.decode(codec, "replace"))
        else:
            text, low, high = _decode_low(run, low, high, high_at_first)
            parts.append(text)
    return "".join(parts)


def _decode_low(run: bytes, low: str, high: str, high_at_first: str) -> tuple[str, str, str]:
    """Bytes under 0x80, and the sets that are in force after them."""
    parts: list[str] = []
    at = 0
    while at < len(run):
        # a delimiter alone at the end of a run: the writer did not return to the first set before it
        alone = run[at] in _RESETS and not run[at + 1 :].strip(b" \0")
        if low in _TWO_BYTES_LOW and run[at] not in b"\r\n\f\t" and not alone:
            pair = run[at : at + 2]
            parts.append((_TWO_BYTES_LOW[low] + pair).decode("iso2022_jp_2", "replace"))
            at += 2
            continue
        if run[at] in _RESETS:
            low, high = "ascii", high_at_first
        parts.append(chr(run[at]))
        at += 1
    return "".join(parts), low, high
