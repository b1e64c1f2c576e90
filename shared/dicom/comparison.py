"""Whether two DICOM files hold one object: the data set without group 0002 and the pixels, without decoding any.

What is only written in another way is no difference: transfer syntax, byte order, character set, padding, lengths.
Source: PS3.5 6.2 (padding), 7.1 (elements), A.4 (encapsulated pixels).
"""

import array
import hashlib
import io
import warnings
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from shared.dicom.elements import CountedFile, ReadBudget, count, in_our_words, value_of
from shared.dicom.header import PREAMBLE
from shared.dicom.image import UNDEFINED_LENGTH, ImageLimits
from shared.errors import CannotUnderstand, Rejected, TooLarge

PIXEL_DATA = 0x7FE00010
CONTENT_DATE = 0x0040A000  # from here on: content of reports, annotations, documents, plans (PS3.6 6)
MAX_BYTES = 64 * 2**20  # of a file; larger ones are compared by a worker
MAX_DEPTH = 16  # sequences within sequences
# not of the image but of its way here: length to end, character set (texts are compared decoded), where it can be
# fetched, whether it is online, padding behind the data set
NOT_COMPARED = frozenset({0x00080001, 0x00080005, 0x00080054, 0x00080056, 0xFFFCFFFC})
DECODED = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")  # texts in the file's character set
TEXTS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR")
UNITS = {"US": 2, "SS": 2, "OW": 2, "AT": 2, "UL": 4, "SL": 4, "FL": 4, "OL": 4, "OF": 4, "FD": 8, "OD": 8, "OV": 8,
         "SV": 8, "UV": 8}  # fmt: skip


class Verdict(StrEnum):
    """How a second file with one SOP Instance UID is related to the first."""

    SAME = "same"
    HEADER = "header"  # the pixels are the same
    PIXELS = "pixels"
    UNKNOWN = "unknown"  # only who decodes the pixels can tell


@dataclass(frozen=True)
class ComparedParts:
    """What is compared of a file."""

    header: bytes  # digest of the data set without group 0002 and the pixels
    shape: tuple[int, int, int, int]  # frames, rows, columns, samples per pixel
    form: tuple[int, int, int]  # bits allocated, bits stored, pixel representation
    syntax: str  # "" for native ones, whose pixels are brought to one byte order
    pixels: bytes  # digest of the value of Pixel Data; of an object without, of its content

    @property
    def exact(self) -> bool:
        """Whether other bytes are other pixels: every bit is a pixel's."""
        return not self.syntax and self.form[0] == self.form[1]


def compare(one: bytes, other: bytes, limits: ImageLimits) -> Verdict:
    """Compare two whole files that were taken in.

    Args:
        one: the bytes of the first file.
        other: the bytes of the second file, with the same SOP Instance UID.
        limits: bounds on what either header may claim.

    Returns:
        The verdict; UNKNOWN if a file is over MAX_BYTES, or too odd to tell from its bytes.
    """
    if max(len(one), len(other)) > MAX_BYTES:
        return Verdict.UNKNOWN
    try:
        return compared(facts_of(one, limits), facts_of(other, limits))
    except Rejected:
        return Verdict.UNKNOWN


def compared(one: ComparedParts, other: ComparedParts) -> Verdict:
    """Compare what was read of two files.

    Args:
        one: facts of the first file.
        other: facts of the second file.

    Returns:
        The verdict; UNKNOWN if the values of Pixel Data differ in a way that may leave the decoded pixels the same.
    """
    if one.shape != other.shape:
        return Verdict.PIXELS
    if (one.form, one.syntax, one.pixels) == (other.form, other.syntax, other.pixels):
        return Verdict.SAME if one.header == other.header else Verdict.HEADER
    return Verdict.PIXELS if one.exact and other.exact and one.form == other.form else Verdict.UNKNOWN


def facts_of(content: bytes, limits: ImageLimits) -> ComparedParts:
    """Read what is compared.

    Args:
        content: the bytes of a whole DICOM file.
        limits: bounds on what its header may claim.

    Returns:
        Digests of the header and the pixels, with the form of the image.

    Raises:
        Rejected: the header is damaged or beyond the limits.
        MemoryError: memory ran out while pydicom read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as shared.dicom.header: their text could name a patient
            return _facts(content, limits)
    except Rejected:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises nearly anything on damaged headers
        raise in_our_words(error) from None


def _facts(content: bytes, limits: ImageLimits) -> ComparedParts:
    budget = ReadBudget(limits.max_header_bytes)
    file = io.BytesIO(content)
    if content[PREAMBLE : PREAMBLE + 4] == b"DICM":
        file.seek(PREAMBLE + 4)
    meta = read_dataset(
        CountedFile(file, budget), is_implicit_VR=False, is_little_endian=True,  # type: ignore[arg-type]
        stop_when=lambda tag, _vr, _length: bool(tag.group != 2),
    )  # fmt: skip
    syntax = UID(str(value_of(meta, "TransferSyntaxUID") or ""))
    if syntax == DeflatedExplicitVRLittleEndian:
        content = _inflated(content[file.tell() :])
        file = io.BytesIO(content)
    order = "" if syntax.is_implicit_VR else "<" if syntax.is_little_endian else ">"
    dataset = read_dataset(
        CountedFile(file, budget, order),  # type: ignore[arg-type]
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
        stop_when=lambda tag, _vr, _length: bool(tag >= PIXEL_DATA),
    )  # fmt: skip
    digest = hashlib.sha256()
    if file.tell() == len(content):  # no pixels: what the object is about stands in groups of its own
        _hash_dataset(digest, dataset[:CONTENT_DATE], budget, 0)
        content_digest = hashlib.sha256()
        _hash_dataset(content_digest, dataset[CONTENT_DATE:], budget, 0)
        return ComparedParts(digest.digest(), (0, 0, 0, 0), (0, 0, 0), "", content_digest.digest())
    _hash_dataset(digest, dataset, budget, 0)
    bits = count(dataset, "BitsAllocated")
    form = bits, count(dataset, "BitsStored", default=bits), count(dataset, "PixelRepresentation", default=0, least=0)
    shape = (
        max(1, count(dataset, "NumberOfFrames", default=1, least=0)), count(dataset, "Rows"),
        count(dataset, "Columns"), count(dataset, "SamplesPerPixel", default=1),
    )  # fmt: skip
    value = _pixel_value(content, file.tell(), syntax)
    if syntax.is_encapsulated or (bits <= 8 and not syntax.is_little_endian):  # bytes within words: PS3.5 8.1.1
        return ComparedParts(digest.digest(), shape, form, str(syntax), hashlib.sha256(value).digest())
    frames, rows, columns, samples = shape
    native: memoryview[int] | bytes = value[: (frames * rows * columns * samples * bits + 7) // 8]
    if not syntax.is_little_endian and bits > 8:
        native = _byte_swapped(native, bits // 8)
    return ComparedParts(digest.digest(), shape, form, "", hashlib.sha256(native).digest())


def _inflated(data: bytes) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflate.decompress(data, MAX_BYTES)
    if inflate.unconsumed_tail:
        raise TooLarge("The deflated data set expands beyond what is compared here")
    return content


def _pixel_value(content: bytes, at: int, syntax: UID) -> "memoryview[int]":
    """The bytes behind the head of Pixel Data, which begins at `at`: up to its length, or to the file's end."""
    order: Literal["little", "big"] = "little" if syntax.is_little_endian else "big"
    tag = b"\xe0\x7f\x10\x00" if syntax.is_little_endian else b"\x7f\xe0\x00\x10"
    if content[at : at + 4] != tag:
        raise CannotUnderstand
    if syntax.is_implicit_VR:
        length, start = int.from_bytes(content[at + 4 : at + 8], order), at + 8
    else:
        length, start = int.from_bytes(content[at + 8 : at + 12], order), at + 12
    end = len(content) if length == UNDEFINED_LENGTH else start + length
    return memoryview(content)[start:end]


def _byte_swapped(data: "memoryview[int] | bytes", unit: int) -> bytes:
    """The same numbers in the other byte order."""
    turned = array.array({2: "H", 4: "I", 8: "Q"}[unit], bytes(data[: len(data) // unit * unit]))
    turned.byteswap()
    return turned.tobytes()


def _hash_dataset(digest: Any, dataset: Dataset, budget: ReadBudget, depth: int) -> None:  # noqa: ANN401 - hashlib's is private
    if depth > MAX_DEPTH:
        raise TooLarge("The header's sequences are nested too deeply")
    for tag in sorted(dataset.keys()):
        if tag.element == 0 or tag.group in (0x0002, 0x7FE0) or tag in NOT_COMPARED:
            continue
        element = dataset.get_item(tag)
        items = _items(dataset, element, budget)
        if items is not None:
            if items:
                digest.update(b"S%d/%d:" % (tag, len(items)))
            for item in items:
                _hash_dataset(digest, item, budget, depth + 1)
                digest.update(b";")
            continue
        value = _value(dataset, tag, element)
        if value:  # one without a value says no more than one that is not there
            digest.update(b"V%d/%d:" % (tag, len(value)))
            digest.update(value)


def _vr(tag: BaseTag, element: Any) -> str:  # noqa: ANN401 - one of pydicom's two elements
    if dictionary_has_tag(tag):
        return str(dictionary_VR(tag))
    return str(element.VR or "UN")


def _items(dataset: Dataset, element: Any, budget: ReadBudget) -> list[Dataset] | None:  # noqa: ANN401 - as above
    """The items of a sequence; None for what is none."""
    vr = _vr(element.tag, element)
    if not isinstance(element, RawDataElement):
        return list(element.value or ()) if element.VR == "SQ" else None
    if vr != "SQ" or element.VR not in ("SQ", "UN", None):
        return None
    value = element.value or b""
    counted = CountedFile(io.BytesIO(value), budget)
    # what is written as UN is encoded as implicit little endian (PS3.5 6.2.2)
    implicit = element.is_implicit_VR or element.VR == "UN"
    return list(
        read_sequence(counted, implicit, element.is_little_endian, len(value), dataset.original_character_set)  # type: ignore[arg-type]
    )


def _value(dataset: Dataset, tag: BaseTag, element: Any) -> bytes:  # noqa: ANN401 - as above
    """A value in the one form in which it is compared; b"" for none."""
    vr = _vr(tag, element)
    if not isinstance(element, RawDataElement):
        return _text(str(element.value or ""), vr)
    raw: bytes = element.value or b""
    if vr in DECODED and dictionary_has_tag(tag):
        try:
            value = dataset[tag].value
        except Exception:  # noqa: BLE001 - a text that cannot be decoded is compared as it is written
            return raw.rstrip(b" \0")
        return _text(
            "\\".join(map(str, value)) if isinstance(value, list | tuple) or _is_multiple(value) else str(value), vr
        )
    if vr in TEXTS and dictionary_has_tag(tag):
        return b"\\".join(part.strip(b" \0") for part in raw.split(b"\\")) if raw.strip(b" \0\\") else b""
    unit = UNITS.get(vr.split(" or ")[0] if vr != "OB or OW" else "OW", 1)
    if unit > 1 and not element.is_little_endian:
        raw = _byte_swapped(raw, unit)
    return raw if unit > 1 else raw.rstrip(b" \0")


def _is_multiple(value: object) -> bool:
    return type(value).__name__ == "MultiValue"


def _text(text: str, vr: str) -> bytes:
    parts = text.split("\\") if vr not in ("LT", "ST", "UT") else [text]
    kept = [part.strip(" \0") if vr not in ("LT", "ST", "UT") else part.rstrip(" \0") for part in parts]
    return "\\".join(kept).encode("utf-8", "surrogatepass") if any(kept) else b""
