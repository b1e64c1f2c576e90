"""DICOM headers: read without the pixels, checked before anything is stored.

Source: PS3.10 7 (file format), PS3.3 C.7.6.3 (image pixel), PS3.5 A (transfer syntaxes).
"""

import io
import os
import re
import warnings
import zlib
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from typing import BinaryIO, cast
from uuid import NAMESPACE_OID, uuid5

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from shared.dicom import image, kept
from shared.dicom.conformance import STORAGE, Handling, StorageClass
from shared.dicom.elements import (
    MAX_NUMBER,
    SKIP_OVER_BYTES,
    CountedFile,
    ReadBudget,
    code_string,
    count,
    in_our_words,
    items_of,
    read_plain,
    text_of,
    uid_of,
)
from shared.dicom.image import NATIVE, ImageLimits, describe_image, locate_frames, read_until_pixels
from shared.dicom.streams import ENCAPSULATED, inspect_stream, join_fragments
from shared.domain.study import Examination, Header, Identity, ProcedureRequest, RejectionNote, Series, StoredOnly
from shared.errors import (
    BadAttributes,
    CannotUnderstand,
    EmptyFile,
    NoFileMeta,
    NotDicom,
    Rejected,
    SopClassNotSupported,
    TooLarge,
    UnknownTransferSyntax,
)

PREAMBLE = 128
MAX_RATIO = 200  # of a deflated data set, unless the caller sets another
MIN_CHECKED_BYTES, INFLATE_STEP_BYTES = 65536, 1 << 20  # bytes
INFLATES_TOO_MUCH = "The deflated data sets and archives of this request expand to more than it may"
SEND_APART = "Send this file in a request with fewer others."
_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Modality", "BodyPartExamined", "Rows", "Columns",
    "NumberOfFrames", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation", "PatientName", "PatientID",
    "PatientBirthDate", "AccessionNumber", "SpecificCharacterSet", "PatientAge", "StudyDate", "Manufacturer",
    "ManufacturerModelName", "IssuerOfPatientID", "PatientSex", "StudyTime", "StudyDescription", "SeriesDescription",
    "Laterality", "ImageLaterality", "ViewPosition", "ViewCodeSequence", "StudyID", "ReferringPhysicianName",
    "TimezoneOffsetFromUTC", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "SeriesDate", "SeriesTime",
    "ProtocolName", "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "PerformedProcedureStepID",
    "PerformedProcedureStepDescription", "RequestAttributesSequence",
)  # fmt: skip
WANTED = frozenset({*image.WANTED, *kept.WANTED, *(int(Tag(keyword)) for keyword in _KEYWORDS)})
MAX_AGE_YEARS = 90  # years; an age above would identify one of few
AGE_PATTERN = re.compile(r"([0-9]{3})([DWMY])")
DATE_PATTERN = re.compile(r"[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])")
TIME_PATTERN = re.compile(r"([0-9]{2})([0-9]{2})?([0-9]{2})?(?:\.[0-9]{1,6})?")
NUMBER_PATTERN = re.compile(r"[+-]?[0-9]{1,10}")
OFFSET_PATTERN = re.compile(r"[+-](0[0-9]|1[0-4])[0-5][0-9]")  # PS3.3 C.12.1.1.8
MAX_REQUESTS = 10  # of a series that are kept
SEXES, SIDES = ("M", "F", "O"), ("R", "L", "B")
UID_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)*")
DECODABLE = NATIVE | ENCAPSULATED


def read_header(file: BinaryIO, size_bytes: int, limits: ImageLimits, inflation: "Inflation | None" = None) -> Header:
    """Read and check the header of one DICOM file; no pixel is read.

    An object that is stored and not analysed has `kept`, and was checked to be whole. Memory stays under a few times
    limits.max_header_bytes.

    Args:
        file: seekable, at its start.
        size_bytes: size of the file.
        limits: bounds on what the file may claim.
        inflation: what deflated data sets may still expand to, which is reduced by what this one takes. None: MAX_RATIO
            times the size of the file, and at most limits.max_decoded_bytes.

    Returns:
        What is stored and shown of the header.

    Raises:
        Rejected: a subclass that says what is wrong with the file.
        MemoryError: memory ran out while pydicom read it.
    """
    _check_start(file, size_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values are common and harmless; their text could name a patient
            return _read(file, size_bytes, limits, inflation or Inflation(limits.max_decoded_bytes, MAX_RATIO))
    except Rejected:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises nearly anything on damaged headers
        raise in_our_words(error) from None


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


def _read(file: BinaryIO, size_bytes: int, limits: ImageLimits, inflation: "Inflation") -> Header:
    if file.read(PREAMBLE + 4)[PREAMBLE:] != b"DICM":
        file.seek(0)
    budget = ReadBudget(limits.max_header_bytes)
    if plain := read_plain(file, budget, "<", _after_meta, any_stop=True):
        meta, _ = plain
    else:
        meta = read_dataset(
            CountedFile(file, budget),  # type: ignore[arg-type]
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=lambda tag, _vr, _length: _after_meta(tag),
        )
    syntax = UID(uid_of(meta, "TransferSyntaxUID"))
    if not syntax:
        raise NoFileMeta
    if syntax not in DECODABLE:
        raise UnknownTransferSyntax
    begin = file.tell()
    deflated = inflation if syntax == DeflatedExplicitVRLittleEndian else None
    announced = STORAGE.get(_optional_text(meta, "MediaStorageSOPClassUID", 65))
    header = None
    if announced is None or announced.handling is Handling.ANALYSED:
        header = _read_image(file, size_bytes, syntax, limits, deflated)
    if header is None:
        file.seek(begin)
        header = _read_kept(file, size_bytes, syntax, limits, deflated)
    if header is None:  # the meta information names another class than the data set
        file.seek(begin)
        header = _read_image(file, size_bytes, syntax, limits, deflated)
    assert header is not None, "one of both takes it, by the same rule"
    return header


def _read_image(
    file: BinaryIO, size_bytes: int, syntax: UID, limits: ImageLimits, inflation: "Inflation | None"
) -> Header | None:
    """An image that is analysed; None for an object that is kept. inflation: of a deflated data set."""
    budget = ReadBudget(limits.max_header_bytes)
    if inflation is not None:
        inflating = _InflatedFile(file, limits.max_header_bytes, inflation)
        data: BinaryIO = cast("BinaryIO", inflating)
        dataset, pixels = read_until_pixels(data, syntax, budget, WANTED, inflating.extent)
    else:
        data = file
        dataset, pixels = read_until_pixels(data, syntax, budget, WANTED, lambda: (size_bytes, size_bytes))
    storage = _storage(dataset)
    if kept.why_kept(dataset, storage, pixels, syntax) is not None:
        return None
    frames = max(1, count(dataset, "NumberOfFrames", default=1, least=0))  # some writers say 0 and mean one
    header = _header(dataset, storage, syntax, (count(dataset, "Rows"), count(dataset, "Columns"), frames))
    described = describe_image(dataset, pixels, syntax, limits, budget)
    end = size_bytes
    if data is not file:  # no further than the pixels, whatever follows them
        inflating.check(described.start + described.native_bytes, size_bytes)
        end = inflating.reach(described.start + described.native_bytes)
    read = CountedFile(data, budget).at
    for pieces in locate_frames(described, dataset, pixels, syntax, read, end):
        inspect_stream(syntax, *join_fragments(read, pieces), described.samples)
    return replace(header, head_bytes=described.start if data is file else 0)


def _read_kept(
    file: BinaryIO, size_bytes: int, syntax: UID, limits: ImageLimits, inflation: "Inflation | None"
) -> Header | None:
    """An object that is kept, and whole; None for one that is analysed. inflation: of a deflated data set."""
    budget = ReadBudget(limits.max_header_bytes)
    data, end = file, size_bytes
    if inflation is not None:
        inflating = _InflatedFile(file, limits.max_header_bytes, inflation)
        data, end = cast("BinaryIO", inflating), inflating.reach(limits.max_header_bytes + 1)
        if end > limits.max_header_bytes:
            raise TooLarge(f"A deflated object that is no radiograph may have {limits.max_header_bytes} bytes")
        if not inflating.ended:
            raise CannotUnderstand(kept.CUT_SHORT)
    begin = data.tell()
    stored_object = kept.read_whole(data, end, syntax, budget, WANTED)
    storage = _storage(stored_object.dataset)
    why = kept.why_kept(stored_object.dataset, storage, stored_object.pixels, syntax)
    if why is None:
        return None
    size = kept.check_pixels(stored_object, storage, syntax)
    note = None
    if more := kept.further_tags(storage.uid):
        data.seek(begin)
        note = kept.rejection_note(kept.read_whole(data, end, syntax, budget, more).dataset, storage, budget)
    header = _header(
        stored_object.dataset, storage, syntax, size, StoredOnly.OWN_RESULT if stored_object.own else why, note
    )
    return replace(
        header, head_bytes=stored_object.pixels.start if stored_object.pixels.tag and data is file else size_bytes
    )


def _after_meta(tag: int) -> bool:
    return tag >> 16 != 2


def _storage(dataset: Dataset) -> StorageClass:
    uid = _uid(dataset, "SOPClassUID")
    if storage := STORAGE.get(uid):
        return storage
    name = UID(uid).name
    raise SopClassNotSupported(
        f"{name if name != uid else 'The SOP Class (0008,0016)'} is not stored here", name if name != uid else ""
    )


def _header(
    dataset: Dataset,
    storage: StorageClass,
    syntax: UID,
    size: tuple[int, int, int],
    why: StoredOnly | None = None,
    rejects: RejectionNote | None = None,
) -> Header:
    """What is stored of a header. size: rows, columns and frames."""
    rows, columns, frames = size
    return Header(
        study_instance_uid=_uid(dataset, "StudyInstanceUID"),
        sop_instance_uid=_uid(dataset, "SOPInstanceUID"),
        sop_class_uid=storage.uid,
        transfer_syntax_uid=str(syntax),
        modality=code_string(dataset, "Modality"),
        body_part=code_string(dataset, "BodyPartExamined"),
        rows=rows,
        columns=columns,
        frames=frames,
        identity=Identity(
            patient_name=text_of(dataset, "PatientName", 324),
            patient_id=text_of(dataset, "PatientID", 64),
            birth_date=text_of(dataset, "PatientBirthDate", 8),
            accession_number=text_of(dataset, "AccessionNumber", 16),
            issuer=_optional_text(dataset, "IssuerOfPatientID", 64),
            study_description=_optional_line(dataset, "StudyDescription"),
            dicom_study_id=_optional_line(dataset, "StudyID")[:16],
            referring_physician=_optional_text(dataset, "ReferringPhysicianName", 324),
        ),
        age_years=age_years(
            _optional_text(dataset, "PatientAge", 8),
            _optional_text(dataset, "PatientBirthDate", 8),
            _optional_text(dataset, "StudyDate", 8),
        ),
        scanner=scanner_of(
            _optional_text(dataset, "Manufacturer", 64), _optional_text(dataset, "ManufacturerModelName", 64)
        ),
        examination=_examination(dataset),
        series=_series(dataset),
        instance_number=_number(dataset, "InstanceNumber"),
        bits_allocated=count(dataset, "BitsAllocated", default=0, least=0) if frames else 0,
        kept=why,
        rejects=rejects,
    )


def _uid(dataset: Dataset, keyword: str) -> str:
    value = uid_of(dataset, keyword)
    if len(value) > 64 or not UID_PATTERN.fullmatch(value):
        what = "is missing" if not value else "is not a valid UID (PS3.5 9.1)"
        raise BadAttributes(f"{keyword} {what}", keyword)
    return value


def _optional_text(dataset: Dataset, keyword: str, longest: int) -> str:
    """A text that an image may well lack: a damaged one is none, and no reason to turn the file away."""
    try:
        return text_of(dataset, keyword, longest)
    except BadAttributes:
        return ""


def age_years(age: str, birth_date: str, study_date: str) -> int | None:
    """Find a patient's age at the study. Source: PS3.5 6.2, AS and DA.

    Args:
        age: Patient's Age, e.g. "034Y" or "018M"; the two dates are used if it is empty or malformed.
        birth_date: Patient's Birth Date, YYYYMMDD, or "".
        study_date: Study Date, YYYYMMDD, or "".

    Returns:
        Whole years, at most MAX_AGE_YEARS; None if the header does not say.
    """
    if match := AGE_PATTERN.fullmatch(age):
        number = int(match[1])
        return min(
            {"D": number // 365, "W": number * 7 // 365, "M": number // 12, "Y": number}[match[2]], MAX_AGE_YEARS
        )
    if not (DATE_PATTERN.fullmatch(birth_date) and DATE_PATTERN.fullmatch(study_date)):
        return None
    years = int(study_date[:4]) - int(birth_date[:4]) - (study_date[4:] < birth_date[4:])
    return min(years, MAX_AGE_YEARS) if years >= 0 else None


def scanner_of(maker: str, model: str) -> str:
    """Name a scanner in one line; many models begin with their maker, which is then not repeated.

    Args:
        maker: Manufacturer.
        model: Manufacturer's Model Name.

    Returns:
        At most 128 printable characters.
    """
    both = model if model.casefold().startswith(maker.casefold()) else f"{maker} {model}"
    return one_line(both)[:128]


def one_line(text: str) -> str:
    """The text with single spaces, and without what cannot be seen."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _optional_line(dataset: Dataset, keyword: str) -> str:
    """A short text of one line; "" for a damaged one."""
    return one_line(_optional_text(dataset, keyword, 64))


def _examination(dataset: Dataset) -> Examination:
    """What was examined. None of it is a reason to turn a file away. Source: PS3.3 C.7.1.1, C.7.2.1, C.7.3.1, C.8."""
    sex = _optional_line(dataset, "PatientSex").upper()
    sides = (_optional_line(dataset, keyword).upper() for keyword in ("ImageLaterality", "Laterality"))
    return Examination(
        sex=sex if sex in SEXES else "",
        study_date=date_of(_optional_text(dataset, "StudyDate", 10)),
        study_time=time_of(_optional_text(dataset, "StudyTime", 16)),
        laterality=next((side for side in sides if side in SIDES), ""),
        view=_optional_line(dataset, "ViewPosition")[:16] or _view_of_code(dataset),
        manufacturer=_optional_line(dataset, "Manufacturer"),
        model=_optional_line(dataset, "ManufacturerModelName"),
        series_description=_optional_line(dataset, "SeriesDescription"),
        utc_offset=_offset(dataset),
    )


def _offset(dataset: Dataset) -> str:
    offset = _optional_text(dataset, "TimezoneOffsetFromUTC", 16)
    return offset if OFFSET_PATTERN.fullmatch(offset) else ""


def _series(dataset: Dataset) -> Series:
    """What the header says of its series. None of it is a reason to turn a file away. Source: PS3.3 C.7.3.1, 10.6."""
    uid = _optional_text(dataset, "SeriesInstanceUID", 65)
    if len(uid) > 64 or not UID_PATTERN.fullmatch(uid):
        uid = series_without_uid(_uid(dataset, "StudyInstanceUID"))
    return Series(
        instance_uid=uid,
        number=_number(dataset, "SeriesNumber"),
        description=_optional_line(dataset, "SeriesDescription"),
        protocol=_optional_line(dataset, "ProtocolName"),
        series_date=date_of(_optional_text(dataset, "SeriesDate", 10)),
        series_time=time_of(_optional_text(dataset, "SeriesTime", 16)),
        performed_date=date_of(_optional_text(dataset, "PerformedProcedureStepStartDate", 10)),
        performed_time=time_of(_optional_text(dataset, "PerformedProcedureStepStartTime", 16)),
        performed_step_id=_optional_line(dataset, "PerformedProcedureStepID"),
        performed_step_description=_optional_line(dataset, "PerformedProcedureStepDescription"),
        requests=_requests(dataset),
    )


def series_without_uid(study_instance_uid: str) -> str:
    """Name the series of a study's instances that have no sound Series Instance UID: the same for all of them."""
    return f"2.25.{uuid5(NAMESPACE_OID, f'{study_instance_uid} series').int}"


def _requests(dataset: Dataset) -> tuple[ProcedureRequest, ...]:
    try:
        items = items_of(dataset, "RequestAttributesSequence", ReadBudget(SKIP_OVER_BYTES, 1000))[:MAX_REQUESTS]
        requests = [
            ProcedureRequest(
                _optional_line(item, "ScheduledProcedureStepID"), _optional_line(item, "RequestedProcedureID")
            )
            for item in items
        ]
    except Exception:  # noqa: BLE001 - whatever pydicom raises on a damaged sequence
        return ()
    return tuple(one for one in requests if one != ProcedureRequest())


def _number(dataset: Dataset, keyword: str) -> int | None:
    """A whole number of 32 bits (PS3.5 6.2, IS); None for a damaged one."""
    text = _optional_text(dataset, keyword, 16)
    number = int(text) if NUMBER_PATTERN.fullmatch(text) else None
    return number if number is not None and -MAX_NUMBER - 1 <= number <= MAX_NUMBER else None


def _view_of_code(dataset: Dataset) -> str:
    """What the View Code Sequence calls the view, where View Position is missing (PS3.3 C.8.11.5)."""
    try:
        for item in items_of(dataset, "ViewCodeSequence", ReadBudget(SKIP_OVER_BYTES, 100)):
            return _optional_line(item, "CodeMeaning")[:32]
    except Exception:  # noqa: BLE001 - whatever pydicom raises on a damaged sequence
        return ""
    return ""


def date_of(text: str) -> date | None:
    """A DICOM date, also as ACR-NEMA wrote it ("2026.11.29"); None for anything else. Source: PS3.5 6.2, DA."""
    digits = text.strip().replace(".", "")
    try:
        return datetime.strptime(digits, "%Y%m%d").date() if DATE_PATTERN.fullmatch(digits) else None  # noqa: DTZ007
    except ValueError:  # the 30th of February
        return None


def time_of(text: str) -> time | None:
    """A DICOM time to the second, also as ACR-NEMA wrote it ("14:02:00"). Source: PS3.5 6.2, TM."""
    found = TIME_PATTERN.fullmatch(text.strip().replace(":", ""))
    if not found:
        return None
    hour, minute, second = (int(part or 0) for part in found.groups())
    return time(hour, minute, min(second, 59)) if hour < 24 and minute < 60 and second <= 60 else None


def date_text(day: date | None) -> str:
    """A date as DICOM writes it, YYYYMMDD; "" for none. Source: PS3.5 6.2, DA."""
    return f"{day.year:04}{day:%m%d}" if day else ""


def time_text(moment: time | None) -> str:
    """A time as DICOM writes it, HHMMSS; "" for none. Source: PS3.5 6.2, TM."""
    return f"{moment:%H%M%S}" if moment is not None else ""


@dataclass
class Inflation:
    """What deflated data sets, and archives beside them, may still expand to in one request."""

    bytes_left: int
    max_ratio: int  # of what a data set says that it holds to its size in the file; small ones may be more


class _InflatedFile(io.RawIOBase):
    """A deflated data set, inflated as far as it is read, and at most to `max_bytes` bytes of it. Source: PS3.5 A.5."""

    def __init__(self, file: BinaryIO, max_bytes: int, inflation: Inflation) -> None:
        self.file, self.max_bytes, self.inflation = file, max_bytes, inflation
        self.total = 0  # bytes inflated, of which `max_bytes` are kept
        self._kept = bytearray()
        self._position = 0
        self._machine = zlib.decompressobj(-zlib.MAX_WBITS)
        self._packed = b""
        self.ended = False

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """From the start alone."""
        assert whence == os.SEEK_SET, "nobody knows its end"
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Raises TooLarge when the request's budget is used up, and zlib.error for damaged data."""
        end = self.max_bytes if size < 0 else min(self._position + size, self.max_bytes)
        self.reach(end)
        data = bytes(self._kept[self._position : end])
        self._position += len(data)
        return data

    def reach(self, end: int) -> int:
        """Inflate up to a position; return how many bytes were inflated by then. Raises as read."""
        while self.total < end and not self.ended:
            if not self._packed:
                self._packed = self.file.read(MIN_CHECKED_BYTES)
                if not self._packed:
                    break
            part = self._machine.decompress(self._packed, min(INFLATE_STEP_BYTES, end - self.total))
            # at the end of its stream zlib may return the same rest for ever; what follows the data set is ignored
            self._packed, self.ended = self._machine.unconsumed_tail, self._machine.eof
            self.total += len(part)
            self.inflation.bytes_left -= len(part)
            if self.inflation.bytes_left < 0:
                raise TooLarge(INFLATES_TOO_MUCH, hint=SEND_APART)
            if len(self._kept) < self.max_bytes:
                self._kept += part[: self.max_bytes - len(self._kept)]
        return self.total

    def extent(self) -> tuple[int, int]:
        """Return how many bytes can be read, and how many there are: one more if data follow those that are kept."""
        there = self.reach(min(self._position, self.max_bytes))
        goes_on = self._position > self.max_bytes and self.reach(self.max_bytes + 1) > self.max_bytes
        return (self.max_bytes, self.max_bytes + 1) if goes_on else (there, there)

    def check(self, end: int, size_bytes: int) -> None:
        """Raise TooLarge, before inflating, if `end` bytes are too many for a file of size_bytes or for the request."""
        if end > max(size_bytes * self.inflation.max_ratio, self.max_bytes):
            raise TooLarge(
                f"The deflated data set would expand to more than {self.inflation.max_ratio} times its size",
                hint="Send it in another transfer syntax.",
            )
        if end - self.total > self.inflation.bytes_left:
            raise TooLarge(INFLATES_TOO_MUCH, hint=SEND_APART)
