"""Values of a DICOM data set, read within bounds: neither a huge element nor a million items costs much.

Source: PS3.5 6.2 (value representations) and 7 (data set).
"""

import functools
import io
import logging
import math
import re
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom import config
from pydicom.charset import convert_encodings, default_encoding, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement, empty_value_for_VR
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR
from pydicom.values import convert_string

from shared.errors import BadAttributes, CannotUnderstand, Rejected, TooLarge

# pydicom logs and warns about odd values in words that quote them: a quoted value can be a patient's name
logging.getLogger("pydicom").disabled = True
config.settings.reading_validation_mode = config.IGNORE

SKIP_OVER_BYTES = 65536  # values longer than this are stepped over, not read
MAX_READS = 100_000  # an element takes one to three; a header of a million empty items would fill the memory
_CHARSET = (b"\x08\x00\x05\x00", b"\x00\x08\x00\x05")  # its tag, in either byte order
MAX_NUMBER = 2**31 - 1  # PS3.5 6.2, IS
_VRS = frozenset(vr.value.encode() for vr in VR if len(vr.value) == 2)
_ITEM_GROUP = 0xFFFE
_NOTHING_READ = (-2, 0)
_DECIMAL = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")


@dataclass
class ReadBudget:
    """What may still be read of a header, in all its sequences together."""

    bytes_left: int
    reads_left: int = MAX_READS


class CountedFile:
    """A file that refuses to be read beyond a budget; stepping over values is free.

    order: "<" or ">" where its elements have a VR; then an element with one that DICOM does not know is read, too.
    """

    def __init__(self, file: BinaryIO, budget: ReadBudget, order: str = "") -> None:
        self.file, self.budget = file, budget
        self.cut_short = False
        self._last = b""
        self._order = order
        self._value = _NOTHING_READ  # where the value of the last element lies, and its length
        self._owed = b""  # the four bytes of a length that was two bytes long
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read as a file does, within the budget.

        Args:
            size: how many bytes to read; negative: all that the budget allows.

        Returns:
            The bytes; fewer than `size` where the file ends.

        Raises:
            TooLarge: the budget is used up, or Specific Character Set is huge: pydicom splits and looks up every part
                of it before any value is asked for.
        """
        if self._owed:
            owed, self._owed = self._owed, b""
            return owed
        if size > SKIP_OVER_BYTES and self._last in _CHARSET:
            raise TooLarge("Specific Character Set (0008,0005) is far longer than it may be", hint=BadAttributes.hint)
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
        """Read bytes at a position.

        Args:
            position: offset from the start of the file, in bytes.
            size: how many bytes to read.

        Returns:
            The bytes; fewer than `size` where the file ends.

        Raises:
            TooLarge: the budget is used up.
        """
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

    def _element(self, place: int, start: bytes) -> bytes:  # noqa: PLR0911 - one return for each case of the docstring
        """Note where an element's value lies; returns its first eight bytes, with a VR that pydicom knows.

        One that DICOM does not know ("--", "??") has a length of two bytes, as DCMTK takes it, and gives way to that
        of its tag. Bytes that cannot be a VR are left to pydicom: they belong to an item in implicit VR.
        """
        vr = start[4:6]
        group, element, length = struct.unpack(f"{self._order}HH2xH", start)
        if self._value == _NOTHING_READ and not vr.isalpha():  # implicit VR under another name: pydicom finds out, too
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


# -- plain data sets -------------------------------------------------------------------------------------------------

_HEAD_BYTES = 4096  # read at a time; most headers fit
_LONG_VRS = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_NAMES = {vr: vr.decode() for vr in _VRS}
_UNDEFINED = 0xFFFFFFFF
_CHARACTER_SET = 0x00080005
_LONGEST_CHARACTER_SET = 256  # bytes, in a plain data set


@dataclass(frozen=True)
class StopElement:
    """The element before which reading stopped."""

    tag: int
    vr: str | None  # None in implicit VR
    start: int  # where its value begins
    length: int


class _NeedsPydicom(Exception):
    """What comes next is left to pydicom."""


class _ReadAhead:
    """A file that is read some bytes ahead."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.base = file.tell()  # where in the file its data begin
        self.data = file.read(_HEAD_BYTES)

    def offset_of(self, place: int, size: int) -> int:
        """Where in the data these bytes of the file begin. Raises _NeedsPydicom where the file ends before."""
        at = place - self.base
        if at + size > len(self.data):
            self.file.seek(place)
            self.base, self.data, at = place, self.file.read(max(_HEAD_BYTES, size)), 0
            if len(self.data) < size:
                raise _NeedsPydicom
        return at


def read_plain(
    file: BinaryIO,
    budget: ReadBudget,
    order: str,
    stop_when: Callable[[int], bool],
    tags: Collection[int] | None = None,
    *,
    implicit: bool = False,
    any_stop: bool = False,
) -> tuple[Dataset, StopElement] | None:
    """Read the wanted elements of a plain data set, up to the first tag at which to stop.

    Reads and takes from the budget what pydicom's read_dataset would, several times as fast, and leaves the file before
    the element at which it stops. In a plain data set all elements have a length and a VR that DICOM knows, and none is
    an item. pydicom has rules for other data sets, so those are left to it.

    Args:
        file: at the start of the data set.
        budget: what may still be read of the header; it is taken from only if the data set is plain.
        order: byte order, "<" or ">".
        stop_when: whether to stop before the element with this tag.
        tags: tags to keep; None for all.
        implicit: whether the data set is in implicit VR.
        any_stop: whether the element at which to stop may have an unknown VR, since another data set begins with it.

    Returns:
        The wanted elements, and the element at which reading stopped. None for a data set that is not plain; the file
        is then at its start again.
    """
    ahead = _ReadAhead(file)
    begin = ahead.base
    if implicit and ahead.data[4:6].isalpha() and ahead.data[4:6].isupper():
        file.seek(begin)
        return None  # explicit VR under another name
    elements: dict[BaseTag, RawDataElement | DataElement] = {}
    encoding: str | list[str] = default_encoding
    # pydicom looks at the first VR by itself
    left = ReadBudget(budget.bytes_left - 6, budget.reads_left - 2)
    try:
        for tag, vr, place, length in _read_heads(ahead, left, order, stop_when, implicit=implicit, any_stop=any_stop):
            if stop_when(tag):
                break
            if tags is None or tag in tags or tag == _CHARACTER_SET:
                value = _value(ahead, left, vr, place, length)
                if tag == _CHARACTER_SET:
                    encoding = _encodings(vr, value or b"")
                known = BaseTag(tag)
                elements[known] = RawDataElement(known, vr, length, value, place, implicit, order == "<")
    except _NeedsPydicom:
        file.seek(begin)
        return None
    budget.bytes_left, budget.reads_left = left.bytes_left, left.reads_left
    file.seek(place - (12 if vr in EXPLICIT_VR_LENGTH_32 else 8))
    dataset = Dataset(elements)
    dataset.set_original_encoding(implicit, order == "<", encoding)
    return dataset, StopElement(tag, vr, place, length)


def _read_heads(
    ahead: _ReadAhead, left: ReadBudget, order: str, stop_when: Callable[[int], bool], *, implicit: bool, any_stop: bool
) -> Iterator[tuple[int, str | None, int, int]]:
    """Tag, VR, place of the value and length of one element after the other. Raises _NeedsPydicom."""
    element_head, implicit_head, long_length = _STRUCTS[order]
    place = ahead.base
    vr: str | None = None
    while True:
        at = ahead.offset_of(place, 12)
        size = 8
        if implicit:
            group, number, length = implicit_head(ahead.data, at)
        else:
            group, number, code, length = element_head(ahead.data, at)
            vr = _NAMES.get(code)
            if code in _LONG_VRS:
                (length,) = long_length(ahead.data, at + 8)
                size, left.reads_left = 12, left.reads_left - 1
        tag = group << 16 | number
        stops = stop_when(tag)
        left.bytes_left, left.reads_left = left.bytes_left - size, left.reads_left - 1
        known = vr is not None or implicit or (stops and any_stop)
        if group == _ITEM_GROUP or not known or left.bytes_left < 0 or left.reads_left < 0:
            raise _NeedsPydicom
        if length == _UNDEFINED and not stops:
            raise _NeedsPydicom
        yield tag, vr, place + size, length
        place += size + length


def _value(ahead: _ReadAhead, left: ReadBudget, vr: str | None, place: int, length: int) -> bytes | None:
    """The value's bytes, as pydicom has them for an empty one. Raises _NeedsPydicom."""
    if not length:
        return empty_value_for_VR(vr, raw=True)  # type: ignore[return-value]
    left.bytes_left, left.reads_left = left.bytes_left - length, left.reads_left - 1
    if left.bytes_left < 0 or left.reads_left < 0:
        raise _NeedsPydicom
    at = ahead.offset_of(place, length)
    return ahead.data[at : at + length]


_STRUCTS = {
    order: tuple(struct.Struct(order + form).unpack_from for form in ("HH2sH", "HHL", "L")) for order in ("<", ">")
}


def _encodings(vr: str | None, value: bytes) -> list[str]:
    """Python's codecs for Specific Character Set, as pydicom has them. Raises _NeedsPydicom for an odd one."""
    if vr not in ("CS", None) or len(value) > _LONGEST_CHARACTER_SET:
        raise _NeedsPydicom
    try:
        return list(_codecs(value))
    except (ValueError, LookupError):
        raise _NeedsPydicom from None


@functools.lru_cache(maxsize=256)
def _codecs(value: bytes) -> tuple[str, ...]:
    return tuple(convert_encodings(convert_string(value, is_little_endian=True)))


def in_our_words(broken: BaseException) -> Rejected | MemoryError:
    """What to raise for something that came up while pydicom read a header."""
    within: BaseException | None = broken
    while within is not None:
        # pydicom turns what a file raises into errors of its own; a lack of memory is no flaw of the file
        if isinstance(within, Rejected | MemoryError):
            return within
        within = within.__context__
    # the exception's own text may quote values, so only its kind is passed on
    kind = type(broken).__name__
    return CannotUnderstand(f"The DICOM header cannot be read: it is damaged or cut short ({kind})", kind)


def count(dataset: Dataset, keyword: str, default: int | None = None, least: int = 1) -> int:
    """Read a whole number of the header. Source: PS3.3 C.7.6.3.

    Args:
        dataset: the header.
        keyword: DICOM keyword of the attribute.
        default: returned if the attribute is missing or empty; None if it must be there.
        least: the smallest number that is accepted.

    Returns:
        The number, from `least` to MAX_NUMBER, or the default.

    Raises:
        BadAttributes: the attribute is missing, no number, too small, or too large.
    """
    value = _plain_number(dataset, keyword)
    if value is None:
        value = value_of(dataset, keyword)
    if value is None or value == "":
        if default is None:
            raise BadAttributes(f"{keyword} is missing; an image must have it (PS3.3 C.7.6.3)", keyword)
        return default
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise BadAttributes(f"{keyword} is not a number", keyword) from None
    if abs(number) > MAX_NUMBER:
        raise BadAttributes(f"{keyword} is a number beyond what DICOM allows (PS3.5 6.2)", keyword)
    if number < least:
        raise BadAttributes(f"{keyword} is {number}; it must be at least {least}", f"{keyword} {number}")
    return number


def _plain_number(dataset: Dataset, keyword: str) -> int | None:
    """One number of VR US; None for any other value."""
    element = dataset.get_item(_tag(keyword), keep_deferred=True)
    if not isinstance(element, RawDataElement) or element.VR != "US" or element.length != 2:
        return None
    if keyword == "PixelRepresentation" or not isinstance(element.value, bytes):
        return None  # by reading that, pydicom learns the signs of other elements
    return int.from_bytes(element.value, "little" if element.is_little_endian else "big")


@functools.cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def tagged_keyword(keyword: str) -> str:
    """The keyword with its tag, as it is named in messages: "RescaleSlope (0028,1053)"."""
    tag = _tag(keyword)
    return f"{keyword} ({tag.group:04X},{tag.element:04X})"


def value_of(dataset: Dataset, keyword: str, longest: int = SKIP_OVER_BYTES) -> Any:  # noqa: ANN401 - as pydicom's
    """Read a value that is no sequence.

    Args:
        dataset: the header.
        keyword: DICOM keyword of the attribute.
        longest: the longest value that is accepted, in bytes.

    Returns:
        The value as pydicom converts it; None if the attribute is missing.

    Raises:
        BadAttributes: the value is longer than `longest`, or claims to be a sequence. Of every item or value in it,
            pydicom would make an object up to a thousand times as large.
    """
    tag = _tag(keyword)
    element = dataset.get_item(tag, keep_deferred=True)
    if element is None:
        return None
    if isinstance(element, RawDataElement) and element.length > longest:
        raise BadAttributes(f"{keyword} is far longer than it may be", keyword)
    if element.VR == "SQ":
        raise BadAttributes(f"{keyword} is a sequence where a value is expected", keyword)
    return dataset[tag].value


def raw_value_of(dataset: Dataset, keyword: str) -> bytes | None:
    """Read the bytes of a value as they are in the file.

    Args:
        dataset: the header.
        keyword: DICOM keyword of the attribute.

    Returns:
        The bytes; None if the attribute is missing or pydicom has already converted its value.

    Raises:
        BadAttributes: the value is longer than SKIP_OVER_BYTES.
    """
    element = dataset.get_item(_tag(keyword), keep_deferred=True)
    if not isinstance(element, RawDataElement):
        return None
    if element.length > SKIP_OVER_BYTES:
        raise BadAttributes(f"{keyword} is far longer than it may be", keyword)
    return element.value if isinstance(element.value, bytes) else None


def decimals(dataset: Dataset, keyword: str) -> list[float]:
    """Read the numbers of a decimal string. Source: PS3.5 6.2, DS.

    A comma is read as the decimal point: some writers follow the language of their system, and DS allows no comma,
    so that nothing else can be meant.

    Args:
        dataset: the header.
        keyword: DICOM keyword of the attribute.

    Returns:
        The numbers, NaN for an empty one among others; [] if the attribute is missing or empty.

    Raises:
        BadAttributes: a value is no number.
    """
    raw = raw_value_of(dataset, keyword)
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
            raise BadAttributes(f"{tagged_keyword(keyword)} is not a decimal number", keyword)
        numbers.append(float(text.replace(",", ".")) if text else math.nan)
    return numbers


def items_of(dataset: Dataset, keyword: str, budget: ReadBudget) -> list[Dataset]:
    """Read the items of a sequence.

    Args:
        dataset: the header; the items are kept in it.
        keyword: DICOM keyword of the sequence.
        budget: what may still be read of the header; reading items takes from it.

    Returns:
        The items; [] if the sequence is missing.

    Raises:
        BadAttributes: the element is no sequence.
        TooLarge: the budget is used up. pydicom's own errors pass through.
    """
    return items_at(dataset, _tag(keyword), budget, keyword)


def items_at(dataset: Dataset, tag: BaseTag, budget: ReadBudget, keyword: str = "An element") -> list[Dataset]:
    """Read the items of a sequence, as `items_of`.

    Args:
        dataset: the header; the items are kept in it.
        tag: of the sequence.
        budget: what may still be read of the header; reading items takes from it.
        keyword: DICOM keyword of the sequence, for the error.

    Returns:
        The items; [] if the sequence is missing.

    Raises:
        BadAttributes: the element is no sequence.
        TooLarge: the budget is used up. pydicom's own errors pass through.
    """
    element = dataset.get_item(tag, keep_deferred=True)
    if element is None:
        return []
    if isinstance(element, RawDataElement):
        if element.VR not in ("SQ", "UN", None):
            raise BadAttributes(f"{keyword} is no sequence", keyword)
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
        raise BadAttributes(f"{keyword} is no sequence", keyword)
    return list(element.value or ())


def code_string(dataset: Dataset, keyword: str) -> str:
    """Read a CS value without its unprintable characters, because it is shown and stored. Source: PS3.5 6.2.

    Args:
        dataset: the header.
        keyword: DICOM keyword of the attribute.

    Returns:
        At most 16 characters; "" if the attribute is missing.

    Raises:
        BadAttributes: the value is far too long, or is a sequence.
    """
    return "".join(letter for letter in text_of(dataset, keyword, 16) if letter.isprintable())


_PLAIN_VRS = frozenset({"AE", "AS", "CS", "DA", "LO", "PN", "SH", "TM", "UI"})
# in these a byte under 0x80 that no escape sequence precedes is a letter of ASCII
_ASCII_ALIKE = frozenset(python_encoding.values())
_NOT_PLAIN = re.compile(rb"[\x1b\\=\x80-\xff]")  # an escape sequence, several values, groups of a name, other letters


def _plain_text(dataset: Dataset, keyword: str, vrs: Collection[str] = _PLAIN_VRS) -> str | None:
    """A value that reads the same in every character set, as it is in the file; None for any other."""
    tag = _tag(keyword)
    element = dataset.get_item(tag, keep_deferred=True)
    if not isinstance(element, RawDataElement) or element.length > SKIP_OVER_BYTES:
        return None
    if (element.VR or dictionary_VR(tag)) not in vrs or not isinstance(element.value, bytes):
        return None
    charset = dataset.original_character_set
    first = charset if isinstance(charset, str) else next(iter(charset), default_encoding)
    if first not in _ASCII_ALIKE or _NOT_PLAIN.search(element.value):
        return None
    return element.value.decode("ascii")


def uid_of(dataset: Dataset, keyword: str) -> str:
    """Read a UID without its padding; its form is not checked.

    Args:
        dataset: the header.
        keyword: DICOM keyword of the attribute.

    Returns:
        The UID; "" if the attribute is missing.

    Raises:
        BadAttributes: the value is far too long, or is a sequence.
    """
    plain = _plain_text(dataset, keyword, ("UI",))
    return str(value_of(dataset, keyword) or "") if plain is None else plain.rstrip("\0 ").strip()


def text_of(dataset: Dataset, keyword: str, longest: int) -> str:
    """Read a text value, decoded by Specific Character Set, without padding.

    Args:
        dataset: the header.
        keyword: DICOM keyword of the attribute.
        longest: how many characters are kept.

    Returns:
        The text, several values with a backslash between them; "" if the attribute is missing.

    Raises:
        BadAttributes: the value is longer than SKIP_OVER_BYTES, or is a sequence.
    """
    if (plain := _plain_text(dataset, keyword)) is not None:
        return plain.replace("\0", "").strip()[:longest]
    raw = raw_value_of(dataset, keyword)
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
    """Decode a text with code extensions. Source: PS3.5 6.1.2.5, PS3.3 C.12.1.1.2.

    Args:
        raw: the text's bytes with their escape sequences.
        first: Python's codec for the first value of Specific Character Set.

    Returns:
        The text. What cannot be decoded becomes U+FFFD; escape sequences that DICOM does not know are left out.
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
