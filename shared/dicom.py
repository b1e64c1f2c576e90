"""DICOM headers: read without the pixels, checked before anything is stored.

Source: PS3.10 7 (file format), PS3.3 C.7.6.3 (image pixel), PS3.5 A (transfer syntaxes).
"""

import io
import re
import warnings
import zlib
from datetime import date, datetime, time
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from shared import image
from shared.elements import (
    SKIP_OVER_BYTES,
    Budget,
    CountedFile,
    code_string,
    count,
    in_our_words,
    items_of,
    text_of,
    value_of,
)
from shared.errors import (
    BadAttributes,
    EmptyFile,
    NoFileMeta,
    NotAnImage,
    NotDicom,
    Rejected,
    TooLarge,
    UnknownTransferSyntax,
)
from shared.image import NATIVE, ImageLimits, describe, locate, read_until_pixels
from shared.streams import ENCAPSULATED, inspect, joined
from shared.study import Examination, Header, Identity

PREAMBLE = 128
_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Modality", "BodyPartExamined", "Rows", "Columns",
    "NumberOfFrames", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation", "PatientName", "PatientID",
    "PatientBirthDate", "AccessionNumber", "SpecificCharacterSet", "PatientAge", "StudyDate", "Manufacturer",
    "ManufacturerModelName", "IssuerOfPatientID", "PatientSex", "StudyTime", "StudyDescription", "SeriesDescription",
    "Laterality", "ImageLaterality", "ViewPosition", "ViewCodeSequence",
)  # fmt: skip
WANTED = sorted({*image.WANTED, *(int(Tag(keyword)) for keyword in _KEYWORDS)})
OLDEST = 90  # years; of the few who are older an age would tell who they are
AGE_PATTERN = re.compile(r"([0-9]{3})([DWMY])")
DATE_PATTERN = re.compile(r"[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])")
TIME_PATTERN = re.compile(r"([0-9]{2})([0-9]{2})?([0-9]{2})?(?:\.[0-9]{1,6})?")
SEXES, SIDES = ("M", "F", "O"), ("R", "L", "B")
UID_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)*")
DECODABLE = NATIVE | ENCAPSULATED


def read_header(file: BinaryIO, size_bytes: int, limits: ImageLimits) -> Header:
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


def _read(file: BinaryIO, size_bytes: int, limits: ImageLimits) -> Header:
    if file.read(PREAMBLE + 4)[PREAMBLE:] != b"DICM":
        file.seek(0)
    meta = read_dataset(
        CountedFile(file, Budget(limits.max_header_bytes)),  # type: ignore[arg-type]
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=_after_meta,
    )
    syntax = UID(str(value_of(meta, "TransferSyntaxUID") or ""))
    if not syntax:
        raise NoFileMeta
    if syntax not in DECODABLE:
        raise UnknownTransferSyntax
    readable = size_bytes  # of a deflated data set, its head only
    if syntax == DeflatedExplicitVRLittleEndian:
        file, size_bytes = _inflated_head(file, limits)
        readable = min(size_bytes, limits.max_header_bytes)
    budget = Budget(limits.max_header_bytes)
    dataset, pixels = read_until_pixels(file, syntax, budget, WANTED, readable, size_bytes)
    header = _header(dataset, syntax)
    described = describe(dataset, pixels, syntax, limits, budget)
    read = CountedFile(file, budget).at
    for pieces in locate(described, dataset, pixels, syntax, read, size_bytes):
        inspect(syntax, *joined(read, pieces), described.samples)
    return header


def _after_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return bool(tag.group != 2)


def _header(dataset: Dataset, syntax: UID) -> Header:
    sop_class = UID(_uid(dataset, "SOPClassUID"))
    if "Image Storage" not in sop_class.name:
        raise NotAnImage(
            f"{sop_class.name if sop_class.name != sop_class else 'The SOP Class'} is not analysed: only images are"
        )
    return Header(
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
            patient_name=text_of(dataset, "PatientName", 324),
            patient_id=text_of(dataset, "PatientID", 64),
            birth_date=text_of(dataset, "PatientBirthDate", 8),
            accession_number=text_of(dataset, "AccessionNumber", 16),
            issuer=_if_sound(dataset, "IssuerOfPatientID", 64),
            study_description=_line(dataset, "StudyDescription"),
        ),
        age_years=age_years(
            _if_sound(dataset, "PatientAge", 8),
            _if_sound(dataset, "PatientBirthDate", 8),
            _if_sound(dataset, "StudyDate", 8),
        ),
        scanner=scanner_of(_if_sound(dataset, "Manufacturer", 64), _if_sound(dataset, "ManufacturerModelName", 64)),
        examination=_examination(dataset),
    )


def _uid(dataset: Dataset, keyword: str) -> str:
    value = str(value_of(dataset, keyword) or "")
    if len(value) > 64 or not UID_PATTERN.fullmatch(value):
        raise BadAttributes(f"{keyword} {'is missing' if not value else 'is not a valid UID (PS3.5 9.1)'}")
    return value


def _if_sound(dataset: Dataset, keyword: str, longest: int) -> str:
    """A text that an image may well lack: a damaged one is none, and no reason to turn the file away."""
    try:
        return text_of(dataset, keyword, longest)
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


def scanner_of(maker: str, model: str) -> str:
    """Both in one line, of which only characters that can be seen are kept; many models begin with their maker."""
    both = model if model.casefold().startswith(maker.casefold()) else f"{maker} {model}"
    return one_line(both)[:128]


def one_line(text: str) -> str:
    """The text with single spaces, and without what cannot be seen."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _line(dataset: Dataset, keyword: str) -> str:
    """A short text of one line; "" for a damaged one."""
    return one_line(_if_sound(dataset, keyword, 64))


def _examination(dataset: Dataset) -> Examination:
    """What was examined. None of it is a reason to turn a file away. Source: PS3.3 C.7.1.1, C.7.2.1, C.7.3.1, C.8."""
    sex = _line(dataset, "PatientSex").upper()
    sides = (_line(dataset, keyword).upper() for keyword in ("ImageLaterality", "Laterality"))
    return Examination(
        sex=sex if sex in SEXES else "",
        study_date=date_of(_if_sound(dataset, "StudyDate", 10)),
        study_time=time_of(_if_sound(dataset, "StudyTime", 16)),
        laterality=next((side for side in sides if side in SIDES), ""),
        view=_line(dataset, "ViewPosition")[:16] or _view_of_code(dataset),
        manufacturer=_line(dataset, "Manufacturer"),
        model=_line(dataset, "ManufacturerModelName"),
        series_description=_line(dataset, "SeriesDescription"),
    )


def _view_of_code(dataset: Dataset) -> str:
    """What the View Code Sequence calls the view, where View Position is missing (PS3.3 C.8.11.5)."""
    try:
        for item in items_of(dataset, "ViewCodeSequence", Budget(SKIP_OVER_BYTES, 100)):
            return _line(item, "CodeMeaning")[:32]
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


def _inflated_head(file: BinaryIO, limits: ImageLimits) -> tuple[BinaryIO, int]:
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
