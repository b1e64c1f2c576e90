"""DICOM JSON of a data set without its bulk data. Source: PS3.18 F and 10.4.1.1.2."""

import io
import math
import warnings
import zlib
from array import array
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import correct_ambiguous_vr_element
from pydicom.hooks import raw_element_vr
from pydicom.tag import BaseTag
from pydicom.valuerep import AMBIGUOUS_VR, BYTES_VR

from shared.dicom.elements import CountedFile, ReadBudget, in_our_words, items_at, uid_of
from shared.dicom.header import PREAMBLE
from shared.dicom.image import BIG_ENDIAN, DEFLATED, IMPLICIT_LE, ImageLimits, PixelElement
from shared.errors import CannotUnderstand, NoFileMeta, NotFound, Rejected, TooLarge

INLINE_BYTES = 1024  # a longer binary value is left out, with the path by which `bulk_value` finds it
MAX_DEPTH = 30  # sequences within each other; what is deeper is left out
UTF_8 = "ISO_IR 192"  # the character set of all DICOM JSON
UNDEFINED_LENGTH = 0xFFFFFFFF
_CHARACTER_SET, _PIXELS_FROM = 0x00080005, 0x7FE00008
_ASSUMED_VR = {
    "US or SS": "US",
    "US or SS or OW": "OW",
    "US or OW": "OW",
    "OB or OW": "OW",
}  # where the header cannot tell
_WORDS = {"OW": "H", "OF": "I", "OL": "I", "OD": "Q", "OV": "Q"}  # array's codes: PS3.5 7.3
_SPECIAL = {math.inf: "inf", -math.inf: "-inf"}


def metadata_of(file: BinaryIO, size_bytes: int, limits: ImageLimits) -> dict[str, Any]:
    """Make the DICOM JSON of an instance; no pixel is read.

    It is what pydicom's `to_json_dict` makes, but for these: text is in UTF-8 and Specific Character Set says so; group
    lengths, the file meta information and whatever follows the pixels are left out; binary values of more than
    INLINE_BYTES, and the pixels, have a BulkDataURI, which is the value's path: tags, and numbers of items from 1,
    with slashes between them. A damaged value is left out, its element stays.

    Args:
        file: seekable, at its start; may end early, but not before the pixels.
        size_bytes: size of the whole file.
        limits: bounds on what the header may claim.

    Returns:
        Elements by tag, as 8 hexadecimal digits in ascending order.

    Raises:
        TooLarge: the header is beyond the limits, or the file ends too early.
        Rejected: it is damaged.
        MemoryError: memory ran out while pydicom read it.
    """
    with _with_own_errors():
        opened = _open(file, size_bytes, limits)
        attributes = opened.json(opened.dataset, "", 1)
        if opened.pixels.tag:
            key = f"{opened.pixels.tag:08X}"
            attributes[key] = {"vr": opened.pixels.vr} | ({"BulkDataURI": key} if opened.pixels.length else {})
        return attributes


def bulk_value(file: BinaryIO, size_bytes: int, path: str, limits: ImageLimits) -> tuple[str, bytes]:
    """Read a value that the metadata left out; the pixels are not among them.

    Args:
        file: seekable, at its start.
        size_bytes: size of the whole file.
        path: as `metadata_of` has it.
        limits: bounds on what the header may claim.

    Returns:
        Its value representation, and its bytes in little endian.

    Raises:
        NotFound: the instance has no such binary value.
        Rejected: it is damaged. MemoryError, as `metadata_of`.
    """
    with _with_own_errors():
        opened = _open(file, size_bytes, limits)
        dataset, steps = opened.dataset, path.split("/")
        for sequence, number in zip(steps[:-1:2], steps[1::2], strict=False):
            items = opened.items(dataset, _tag(sequence))
            if not number.isdecimal() or not 1 <= int(number) <= len(items):
                raise NotFound("The instance has no such value")
            dataset = items[int(number) - 1]
        tag = _tag(steps[-1] if len(steps) % 2 else "")
        if tag not in dataset:
            raise NotFound("The instance has no such value")
        return opened.binary(dataset, tag)


@contextmanager
def _with_own_errors() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as shared.dicom.header: their text could name a patient
            yield
    except (Rejected, NotFound):
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises nearly anything on damaged headers
        raise in_our_words(error) from None


def _tag(text: str) -> BaseTag:
    """Raises NotFound."""
    try:
        if len(text) == 8:
            return BaseTag(int(text, 16))
    except ValueError:
        pass
    raise NotFound("The instance has no such value")


@dataclass
class _OpenDataset:
    """A data set up to its pixels; values of more than INLINE_BYTES are still in the file."""

    file: BinaryIO
    dataset: Dataset
    budget: ReadBudget
    big_endian: bool
    pixels: PixelElement

    def json(self, dataset: Dataset, path: str, depth: int) -> dict[str, Any]:
        """The elements by tag. path: of the data set, with a slash at its end; depth: 1 for the whole."""
        attributes: dict[str, Any] = {}
        for tag in sorted(dataset.keys()):
            if tag.element == 0 or tag.group == 2:
                continue
            key = f"{int(tag):08X}"
            if tag == _CHARACTER_SET:
                attributes[key] = {"vr": "CS", "Value": [UTF_8]}
                continue
            try:
                attributes[key] = self._element(dataset, tag, f"{path}{key}", depth)
            except Exception as error:  # noqa: BLE001 - see below
                # pydicom raises nearly anything on a damaged value, and wraps what our file raises
                if isinstance(told_as := in_our_words(error), TooLarge | MemoryError):
                    raise told_as from None
                attributes[key] = {"vr": _ASSUMED_VR.get(vr := self._vr(dataset, tag), vr)}
        return attributes

    def _element(self, dataset: Dataset, tag: BaseTag, path: str, depth: int) -> dict[str, Any]:
        vr = self._vr(dataset, tag)
        if vr == "SQ":
            if depth >= MAX_DEPTH:
                return {"vr": vr}
            items = items_at(dataset, self.load(dataset, tag), self.budget)
            return {
                "vr": vr,
                "Value": [self.json(item, f"{path}/{number}/", depth + 1) for number, item in enumerate(items, 1)],
            }
        raw = dataset.get_item(tag, keep_deferred=True)
        if vr in BYTES_VR and _deferred(raw):
            return {"vr": vr, "BulkDataURI": path}
        element = dataset[self.load(dataset, tag)]
        if element.VR in AMBIGUOUS_VR:
            element = self._resolved(dataset, element)
        if element.VR not in BYTES_VR:
            return _finite(element.to_json_dict(None, 0))
        attribute: dict[str, Any] = {"vr": str(element.VR)}
        if not element.is_empty and len(element.value) > INLINE_BYTES:
            attribute["BulkDataURI"] = path
        elif not element.is_empty:
            attribute["InlineBinary"] = b64encode(self._in_little_endian(attribute["vr"], element.value)).decode()
        return attribute

    def items(self, dataset: Dataset, tag: BaseTag) -> list[Dataset]:
        """The items of a sequence; none of another element."""
        if tag not in dataset or self._vr(dataset, tag) != "SQ":
            return []
        return items_at(dataset, self.load(dataset, tag), self.budget)

    def binary(self, dataset: Dataset, tag: BaseTag) -> tuple[str, bytes]:
        """The value representation and the bytes of a binary value. Raises NotFound for another one."""
        element = dataset[self.load(dataset, tag)]
        if element.VR in AMBIGUOUS_VR:
            element = self._resolved(dataset, element)
        if element.VR not in BYTES_VR or not isinstance(element.value, bytes):
            raise NotFound("The instance has no such value")
        return str(element.VR), self._in_little_endian(str(element.VR), element.value)

    def load(self, dataset: Dataset, tag: BaseTag) -> BaseTag:
        """Read a value that is still in the file; returns the tag. Raises TooLarge, CannotUnderstand."""
        raw = dataset.get_item(tag, keep_deferred=True)
        if isinstance(raw, RawDataElement) and _deferred(raw):
            self.file.seek(raw.value_tell)
            binary = self._vr(dataset, tag) in BYTES_VR  # what is not parsed costs what it weighs
            value = self.file.read(raw.length) if binary else self._counted(raw)
            if len(value) < raw.length:
                raise CannotUnderstand("The DICOM header is cut short: the file ends within an element")
            dataset[tag] = raw._replace(value=value)
        return tag

    def _counted(self, raw: RawDataElement) -> bytes:
        return CountedFile(self.file, self.budget).at(raw.value_tell, raw.length)

    @staticmethod
    def _vr(dataset: Dataset, tag: BaseTag) -> str:
        element = dataset.get_item(tag, keep_deferred=True)
        if not isinstance(element, RawDataElement):
            return str(element.VR)
        data: dict[str, Any] = {}
        raw_element_vr(element, data, ds=dataset)
        return str(data["VR"])

    def _resolved(self, dataset: Dataset, element: Any) -> Any:  # noqa: ANN401 - pydicom's has no type
        """The element with one value representation. Source: PS3.5 A, PS3.3 C.7.6.3."""
        ambiguous = str(element.VR)
        with suppress(AttributeError):  # what would tell is missing
            correct_ambiguous_vr_element(element, dataset, not self.big_endian)
        if element.VR in AMBIGUOUS_VR:
            element.VR = _ASSUMED_VR[ambiguous]
            if element.VR == "US" and isinstance(element.value, bytes):
                numbers = array("H", element.value)
                if self.big_endian:
                    numbers.byteswap()
                element.value = numbers.tolist() if len(numbers) > 1 else numbers[0] if numbers else None
        return element

    def _in_little_endian(self, vr: str, value: bytes) -> bytes:
        """The bytes in little endian. Source: PS3.5 7.3."""
        if not self.big_endian or vr not in _WORDS:
            return value
        words = array(_WORDS[vr], value)
        words.byteswap()
        return words.tobytes()


def _deferred(element: Any) -> bool:  # noqa: ANN401 - one of two types
    return isinstance(element, RawDataElement) and element.value is None and element.length > INLINE_BYTES


def _finite(attribute: dict[str, Any]) -> dict[str, Any]:
    """The element with words in place of numbers that JSON does not have."""
    values = attribute.get("Value")
    if values and any(isinstance(value, float) and not math.isfinite(value) for value in values):
        attribute["Value"] = [
            _SPECIAL.get(value, "NaN") if isinstance(value, float) and not math.isfinite(value) else value
            for value in values
        ]
    return attribute


def _open(file: BinaryIO, size_bytes: int, limits: ImageLimits) -> _OpenDataset:
    """Read a data set up to its pixels. Raises TooLarge where the file ends before them, but is not whole."""
    budget = ReadBudget(limits.max_header_bytes)
    readable = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(PREAMBLE + 4)[PREAMBLE:] != b"DICM":
        file.seek(0)
    meta = read_dataset(
        CountedFile(file, budget),  # type: ignore[arg-type]
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: int(tag) >> 16 != 2,
    )
    syntax = uid_of(meta, "TransferSyntaxUID")
    if not syntax:
        raise NoFileMeta
    if syntax == DEFLATED:
        machine = zlib.decompressobj(-zlib.MAX_WBITS)
        data = machine.decompress(file.read(), limits.max_header_bytes)
        whole = machine.eof or (readable == size_bytes and not machine.unconsumed_tail)
        file, readable, size_bytes = io.BytesIO(data), len(data), len(data) + (not whole)
    pixels = PixelElement(0, "", 0, 0)

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal pixels
        if int(tag) >= _PIXELS_FROM:
            pixels = PixelElement(int(tag), vr or "OW", 0, length)
            return True
        return False

    order = {IMPLICIT_LE: "", BIG_ENDIAN: ">"}.get(syntax, "<")
    counted = CountedFile(file, budget, order)
    dataset = read_dataset(
        counted,  # type: ignore[arg-type]
        is_implicit_VR=syntax == IMPLICIT_LE,
        is_little_endian=syntax != BIG_ENDIAN,
        stop_when=at_pixels,
        defer_size=INLINE_BYTES,
    )
    if not pixels.tag and (readable < size_bytes or file.tell() > readable or counted.cut_short):
        if readable < size_bytes:
            raise TooLarge("The DICOM header is larger than this installation reads")
        raise CannotUnderstand("The DICOM header is cut short: the file ends within an element")
    return _OpenDataset(file, dataset, budget, syntax == BIG_ENDIAN, pixels)
