"""DICOM headers: read without the pixels, checked before anything is stored.

Source: PS3.10 7 (file format), PS3.3 C.7.6.3 (image pixel), PS3.5 A (transfer syntaxes).
"""

import functools
import io
import logging
import re
import warnings
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom import config
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from shared.errors import (
    BadAttributes,
    CannotUnderstand,
    EmptyFile,
    NoFileMeta,
    NoPixelData,
    NotAnImage,
    NotDicom,
    Rejected,
    TooLarge,
    TruncatedPixels,
    UnknownTransferSyntax,
)
from shared.study import Header, Identity

# pydicom logs and warns about odd values in words that quote them: a quoted value can be a patient's name
logging.getLogger("pydicom").disabled = True
config.settings.reading_validation_mode = config.IGNORE

PREAMBLE = 128
PIXEL_DATA = 0x7FE00010
UNDEFINED_LENGTH = 0xFFFFFFFF
SKIP_OVER_BYTES = 65536  # values longer than this are stepped over, not read
MAX_READS = 100_000  # an element takes one to three; a header of a million empty items would fill the memory
_CHARSET = (b"\x08\x00\x05\x00", b"\x00\x08\x00\x05")  # its tag, in either byte order
LARGEST_NUMBER = 2**31 - 1  # PS3.5 6.2, IS
_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Modality", "BodyPartExamined", "Rows", "Columns",
    "NumberOfFrames", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation", "PatientName", "PatientID",
    "PatientBirthDate", "AccessionNumber", "SpecificCharacterSet", "PatientAge", "StudyDate", "Manufacturer",
    "ManufacturerModelName",
)  # fmt: skip
WANTED = [Tag(tag_for_keyword(keyword) or 0) for keyword in _KEYWORDS]
OLDEST = 90  # years; of the few who are older an age would tell who they are
AGE_PATTERN = re.compile(r"([0-9]{3})([DWMY])")
DATE_PATTERN = re.compile(r"[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])")
UID_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)*")
_JPEG = "1.2.840.10008.1.2.4."
# what shared.vision can decode (tests/unit/shared/test_dicom.py holds the two together)
DECODABLE = frozenset(
    {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"}
    | {_JPEG + number for number in ("50", "51", "57", "70", "80", "81", "90", "91", "201", "202", "203")}
)


@dataclass(frozen=True)
class HeaderLimits:
    """Bounds that a header is held to."""

    max_header_bytes: int = 16 * 2**20
    max_frame_pixels: int = 60_000_000
    max_frames: int = 200
    max_decoded_bytes: int = 2 * 2**30


def read_header(file: BinaryIO, size_bytes: int, limits: HeaderLimits) -> Header:
    """Read and check the header of one DICOM file; no pixel is read.

    file: seekable, at its start. Memory stays under a few times limits.max_header_bytes.
    Raises a Rejected that says what is wrong with the file.
    """
    _check_start(file, size_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values are common and harmless; their text could name a patient
            return _read(file, size_bytes, limits)
    except Rejected:
        raise
    except Exception as broken:  # noqa: BLE001 - pydicom raises nearly anything on damaged headers
        raise in_our_words(broken) from None


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


def _check_start(file: BinaryIO, size_bytes: int) -> None:
    if size_bytes == 0:
        raise EmptyFile
    start = file.read(PREAMBLE + 4)
    file.seek(0)
    if start[PREAMBLE:] == b"DICM" or start[:4] == b"\x02\x00\x00\x00":
        return
    if start[:2] in (b"\x08\x00", b"\x00\x08") and start[2:4] != b"\xff\xff":
        raise NoFileMeta
    raise NotDicom


def _read(file: BinaryIO, size_bytes: int, limits: HeaderLimits) -> Header:
    counted = CountedFile(file, Budget(limits.max_header_bytes))
    if file.read(PREAMBLE + 4)[PREAMBLE:] != b"DICM":
        file.seek(0)
    meta = read_dataset(counted, is_implicit_VR=False, is_little_endian=True, stop_when=_after_meta)  # type: ignore[arg-type]
    syntax = UID(str(value_of(meta, "TransferSyntaxUID") or ""))
    if not syntax:
        raise NoFileMeta
    if syntax not in DECODABLE:
        raise UnknownTransferSyntax
    readable = None  # of a deflated data set, its head only
    if syntax == DeflatedExplicitVRLittleEndian:
        file, size_bytes = _inflated_head(file, limits)
        readable = limits.max_header_bytes
        counted = CountedFile(file, Budget(limits.max_header_bytes))
    pixels: list[tuple[int, int]] = []  # (position of the value, its length), once found

    def at_pixels(tag: BaseTag, _vr: str | None, length: int) -> bool:
        if tag == PIXEL_DATA:
            pixels.append((file.tell(), length))
        return bool(tag >= PIXEL_DATA)

    dataset = read_dataset(
        counted,  # type: ignore[arg-type]
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
        stop_when=at_pixels,
        defer_size=SKIP_OVER_BYTES,
        specific_tags=list(WANTED),
    )
    if readable is not None and size_bytes > readable and (counted.cut_short or file.tell() > readable):
        raise TooLarge("The DICOM header is larger than this installation reads")
    if counted.cut_short or file.tell() > size_bytes:  # values that nobody asked for are stepped over, past the end too
        raise CannotUnderstand("The DICOM header is cut short: the file ends within an element. Send it again")
    header = _header(dataset, syntax)
    _check_size(dataset, header, limits)
    if not pixels:
        raise NoPixelData
    position, length = pixels[0]
    _check_pixels(dataset, header, size_bytes - position, length)
    return header


def _after_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return bool(tag.group != 2)


def _header(dataset: Dataset, syntax: UID) -> Header:
    sop_class = UID(_uid(dataset, "SOPClassUID"))
    if "Image Storage" not in sop_class.name:
        raise NotAnImage(
            f"{sop_class.name if sop_class.name != sop_class else 'The SOP Class'} is not analysed: only images are"
        )
    header = Header(
        study_instance_uid=_uid(dataset, "StudyInstanceUID"),
        sop_instance_uid=_uid(dataset, "SOPInstanceUID"),
        sop_class_uid=str(sop_class),
        transfer_syntax_uid=str(syntax),
        modality=code_string(dataset, "Modality"),
        body_part=code_string(dataset, "BodyPartExamined"),
        rows=count(dataset, "Rows"),
        columns=count(dataset, "Columns"),
        frames=max(1, count(dataset, "NumberOfFrames", default=1, least=0)),  # some writers say 0 and mean one
        identity=Identity(
            patient_name=_text(dataset, "PatientName", 324),
            patient_id=_text(dataset, "PatientID", 64),
            birth_date=_text(dataset, "PatientBirthDate", 8),
            accession_number=_text(dataset, "AccessionNumber", 16),
        ),
        age_years=age_years(
            _if_sound(dataset, "PatientAge", 8),
            _if_sound(dataset, "PatientBirthDate", 8),
            _if_sound(dataset, "StudyDate", 8),
        ),
        scanner=_scanner(_if_sound(dataset, "Manufacturer", 64), _if_sound(dataset, "ManufacturerModelName", 64)),
    )
    if count(dataset, "BitsAllocated") not in (1, 8, 16, 32):
        raise BadAttributes("Bits Allocated (0028,0100) must be 1, 8, 16 or 32")
    return header


def _uid(dataset: Dataset, keyword: str) -> str:
    value = str(value_of(dataset, keyword) or "")
    if len(value) > 64 or not UID_PATTERN.fullmatch(value):
        raise BadAttributes(f"{keyword} {'is missing' if not value else 'is not a valid UID (PS3.5 9.1)'}")
    return value


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


def items_of(dataset: Dataset, keyword: str, budget: "Budget") -> list[Dataset]:
    """The items of a sequence, [] where it is missing; reading them takes from the budget.

    Raises TooLarge when that is used up, BadAttributes for an element that is no sequence, and what pydicom raises.
    """
    element = dataset.get_item(_tag(keyword))
    if element is None:
        return []
    if isinstance(element, RawDataElement):
        if element.VR not in ("SQ", "UN", None):
            raise BadAttributes(f"{keyword} is no sequence")
        value = element.value or b""
        counted = CountedFile(io.BytesIO(value), budget)
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
    return "".join(letter for letter in _text(dataset, keyword, 16) if letter.isprintable())


def _text(dataset: Dataset, keyword: str, longest: int) -> str:
    # a NUL is legal padding in some writers and illegal in a Postgres text, as is half of a surrogate pair
    text = str(value_of(dataset, keyword) or "").encode("utf-8", "replace").decode()
    return text.replace("\0", "").strip()[:longest]


def _if_sound(dataset: Dataset, keyword: str, longest: int) -> str:
    """A text that an image may well lack: a damaged one is none, and no reason to turn the file away."""
    try:
        return _text(dataset, keyword, longest)
    except BadAttributes:
        return ""


def age_years(age: str, birth_date: str, study_date: str) -> int | None:
    """A patient's age at the study in whole years, at most OLDEST; None where the header does not tell.

    age: Patient's Age, e.g. "034Y", "018M"; where it is missing or malformed the two dates tell.
    Source: PS3.5 6.2, AS and DA.
    """
    if told := AGE_PATTERN.fullmatch(age):
        number = int(told[1])
        return min({"D": number // 365, "W": number * 7 // 365, "M": number // 12, "Y": number}[told[2]], OLDEST)
    if not (DATE_PATTERN.fullmatch(birth_date) and DATE_PATTERN.fullmatch(study_date)):
        return None
    years = int(study_date[:4]) - int(birth_date[:4]) - (study_date[4:] < birth_date[4:])
    return min(years, OLDEST) if years >= 0 else None


def _scanner(maker: str, model: str) -> str:
    """Both in one line, of which only characters that can be seen are kept; many models begin with their maker."""
    both = model if model.casefold().startswith(maker.casefold()) else f"{maker} {model}"
    return " ".join("".join(letter if letter.isprintable() else " " for letter in both).split())[:128]


def _check_size(dataset: Dataset, header: Header, limits: HeaderLimits) -> None:
    if header.rows * header.columns > limits.max_frame_pixels or header.frames > limits.max_frames:
        raise TooLarge(
            f"The image claims {header.frames} frame(s) of {header.rows} x {header.columns} pixels; at most "
            f"{limits.max_frames} frames of {limits.max_frame_pixels} pixels are taken here"
        )
    if _native_bytes(dataset, header) > limits.max_decoded_bytes:
        raise TooLarge(f"The image would need more than {limits.max_decoded_bytes} bytes of memory")


def _native_bytes(dataset: Dataset, header: Header) -> int:
    samples, bits = count(dataset, "SamplesPerPixel", default=1), count(dataset, "BitsAllocated")
    return (header.rows * header.columns * header.frames * samples * bits + 7) // 8


def _check_pixels(dataset: Dataset, header: Header, remaining: int, length: int) -> None:
    """Native pixels must be all there; of encapsulated ones only the decoder can tell."""
    if length == 0:
        raise NoPixelData("Pixel Data (7FE0,0010) is empty")
    if UID(header.transfer_syntax_uid).is_encapsulated:
        if remaining <= 8:
            raise TruncatedPixels
        return
    needed = _native_bytes(dataset, header)
    there = min(remaining, length) if length != UNDEFINED_LENGTH else remaining
    if there < needed:
        raise TruncatedPixels(f"Pixel Data has {there} bytes where {needed} are needed: the file was cut short")


def _inflated_head(file: BinaryIO, limits: HeaderLimits) -> tuple[BinaryIO, int]:
    """The first bytes of a deflated data set, and its whole size, without ever holding the whole.

    Raises TooLarge when it expands beyond the limits.
    """
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    head, total = bytearray(), 0
    most = limits.max_decoded_bytes + limits.max_header_bytes
    while chunk := file.read(65536):
        while chunk and not inflate.eof:  # at the end of its stream zlib may name the same rest for ever
            part = inflate.decompress(chunk, 1 << 20)
            total += len(part)
            if total > most:
                raise TooLarge("The deflated data set expands beyond the limits")
            head += part[: max(0, limits.max_header_bytes - len(head))]
            chunk = inflate.unconsumed_tail
        if inflate.eof:
            break  # what follows the data set is nobody's
    return io.BytesIO(bytes(head)), total


@dataclass
class Budget:
    """What may still be read of a header, in all its sequences together."""

    bytes_left: int
    reads_left: int = MAX_READS


class CountedFile:
    """A file that refuses to be read beyond a budget; stepping over values is free."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self.file, self.budget = file, budget
        self.cut_short = False
        self._last = b""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """As a file's read. Raises TooLarge once the budget is used up, and for a huge Specific Character Set.

        The latter because pydicom splits and looks up every part of it before anybody has asked for it.
        """
        if size > SKIP_OVER_BYTES and self._last in _CHARSET:
            raise TooLarge("Specific Character Set (0008,0005) is far longer than it may be")
        left = self.budget.bytes_left
        data = self.file.read(size if 0 <= size <= left else left + 1)
        if size == 8:  # the beginning of an element
            self._last = data[:4]
        self.budget.bytes_left -= len(data)
        self.budget.reads_left -= 1
        # the end of a file is met between elements; met within one, the file was cut
        self.cut_short |= 0 < len(data) < size
        if self.budget.bytes_left < 0 or self.budget.reads_left < 0:
            raise TooLarge("The DICOM header is larger than this installation reads")
        return data
