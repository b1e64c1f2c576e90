"""HL7 v2.5.1 ORU^R01: what was found in a study, as a preliminary result of its order; and what a receiver answers.

A message is made of its arguments alone: made again it has the same bytes, so that a receiver that got it twice sees
that. Source: HL7 v2.5.1 chapters 2 (encoding, MSH, acknowledgements), 3 (PID, PV1), 4 (ORC, OBR) and 7 (ORU, OBX);
tables 0008, 0085, 0123, 0211, 0357.
"""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from enum import StrEnum

from shared.domain.coding import CERTAINTY, FRACTURE, IMAGING_STUDY, PRESENCE, REGIONS, SUMMARY, Code
from shared.domain.findings import RESEARCH_USE, Assessment
from shared.domain.notices import CODECS, UTF_8, AccessionPlace

VERSION = "2.5.1"
CONTROL_ID_LENGTH = 20  # of MSH-10
MAX_TEXT_LENGTH = 1000  # characters of an OBX of text
MAX_SEGMENTS, MAX_WORDS_LENGTH = 64, 200  # that are read of an acknowledgement
PRELIMINARY = "P"  # OBR-25 (table 0123) and OBX-11 (table 0085)
_ESCAPES = {"|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\\": "\\E\\"}
_NAMES = {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\"}
_SEX = {"M": "M", "F": "F", "O": "O"}  # of DICOM, as table 0001 has it


class NoAccessionNumber(ValueError):
    """The study has no accession number: no receiver could tell which order the result is of."""


class NotEncodable(ValueError):
    """A number that must be exact has a character that the destination's character set lacks. field: which."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} cannot be written in the destination's character set; choose UNICODE UTF-8")
        self.field = name


@dataclass(frozen=True)
class Receiver:
    """How one destination wants its messages; texts are free of any form."""

    application: str = ""  # MSH-5
    facility: str = ""  # MSH-6
    sending_application: str = "OSTEON"  # MSH-3
    sending_facility: str = ""  # MSH-4
    character_set: str = UTF_8  # of CODECS
    accession: AccessionPlace = AccessionPlace.FILLER
    processing: str = "P"  # MSH-11: P production, T training, D debugging
    probability: bool = False  # whether the calibrated probability is told

    def __post_init__(self) -> None:
        """Raises ValueError for a character set that is not known."""
        if self.character_set not in CODECS:
            raise ValueError(f"There is no character set of this name; there are {', '.join(CODECS)}")


@dataclass(frozen=True, repr=False)
class Order:
    """Patient and order, as the header of the study's images says them; has no repr, as it names the patient."""

    patient_id: str
    accession_number: str
    issuer: str = ""
    patient_name: str = ""  # DICOM person name
    birth_date: str = ""  # YYYYMMDD
    sex: str = ""
    placer_number: str = ""
    filler_number: str = ""
    procedure: Code = IMAGING_STUDY
    study_date: date | None = None
    study_time: time | None = None
    utc_offset: str = ""  # "+0100"; empty: not known


@dataclass(frozen=True)
class Result:
    """What is told of a study."""

    study_instance_uid: str
    processed: Code  # of CID 6047
    assessment: Assessment
    region: str
    text: Sequence[str]  # in lines
    found_at: datetime
    model: str
    device_uid: str
    probability: float | None = None
    link: str = ""  # to the study's page


@dataclass(frozen=True)
class Message:
    """A message, the id that its acknowledgement must name, and the encoding of what is no UTF-8 in that."""

    control_id: str
    content: bytes = field(repr=False)
    codec: str = "latin-1"


def control_id(*parts: str) -> str:
    """Make MSH-10 of what the message is about.

    Args:
        *parts: that tell it apart from all others, as the digest of a set of results and the destination.

    Returns:
        20 letters and digits, the same for the same parts: at each try to send it.
    """
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return base64.b32encode(digest).decode()[:CONTROL_ID_LENGTH]


def make_oru(order: Order, result: Result, receiver: Receiver, id_: str) -> Message:
    """Make the message.

    Args:
        order: of the patient and the study.
        result: what was found.
        receiver: who gets it.
        id_: as `control_id` returns it.

    Returns:
        The message in the receiver's character set, segments ended by a carriage return, without MLLP's frame.

    Raises:
        NoAccessionNumber: there is none.
        NotEncodable: an identifier has letters that the character set lacks.
    """
    if not order.accession_number.strip():
        raise NoAccessionNumber("The study has no accession number; no HL7 message is made of it")
    write = _Writer(CODECS[receiver.character_set])
    placer, filler = _numbers(order, receiver.accession)
    both = [write.exact(placer, "OBR-2"), write.exact(filler, "OBR-3")]
    segments = [
        [
            "MSH", "^~\\&", write.text(receiver.sending_application), write.text(receiver.sending_facility),
            write.text(receiver.application), write.text(receiver.facility), _moment(result.found_at), "",
            "ORU^R01^ORU_R01", id_, receiver.processing, VERSION, "", "", "", "", "", receiver.character_set,
        ],
        _pid(order, write),
        ["PV1", "1", "U"],
        ["ORC", "RE", *both],
        [
            "OBR", "1", *both, write.code(order.procedure), "", "", _study_moment(order), *[""] * 10,
            write.exact(order.accession_number, "OBR-18"), "", "", "", _moment(result.found_at), "", "RAD", PRELIMINARY,
        ],
        *_observations(result, receiver, write),
    ]  # fmt: skip
    content = "".join("|".join(one).rstrip("|") + "\r" for one in segments)
    codec = CODECS[receiver.character_set]
    return Message(id_, content.encode(codec), codec)


def _numbers(order: Order, place: AccessionPlace) -> tuple[str, str]:
    """Placer and filler order number: the header's where the accession number does not take their place."""
    accession = order.accession_number
    placer = accession if place is not AccessionPlace.FILLER else order.placer_number
    filler = accession if place is not AccessionPlace.PLACER else order.filler_number
    return placer, filler


def _pid(order: Order, write: "_Writer") -> list[str]:
    number = write.exact(order.patient_id, "PID-3")
    issuer = write.exact(order.issuer, "PID-3, the issuer")
    birth = order.birth_date if re.fullmatch(r"\d{8}", order.birth_date, re.ASCII) else ""
    return ["PID", "1", "", f"{number}^^^{issuer}^MR" if number else "", "", write.name(order.patient_name), "", birth,
            _SEX.get(order.sex, "U")]  # fmt: skip


def _observations(result: Result, receiver: Receiver, write: "_Writer") -> list[list[str]]:
    found: list[tuple[str, Code, str, str]] = [("CWE", SUMMARY, write.code(result.processed), "")]
    if result.assessment in PRESENCE:
        found.append(("CWE", FRACTURE, write.code(PRESENCE[result.assessment]), ""))
        if receiver.probability and result.probability is not None:
            found.append(("NM", CERTAINTY, f"{100 * result.probability:.1f}", "%^percent^UCUM"))
        if result.region:
            region = REGIONS.get(result.region)
            found.append(("CWE", SITE, write.code(region) if region else f"^{write.text(result.region)}", ""))
    found += [("TX", COMMENT, write.text(line), "") for line in (*result.text, RESEARCH_USE) if line.strip()]
    if result.link:
        found.append(("RP", LINK, f"{write.text(result.link)}^OSTEON^TEXT^HTML", ""))
    producer = write.text(f"Osteon {result.model}")
    return [
        [
            "OBX", str(number), kind, write.code(code), str(number), value, units, "", "", "", "", PRELIMINARY, "", "",
            _moment(result.found_at), producer, "", "", f"{result.device_uid}^^{result.device_uid}^ISO",
        ]
        for number, (kind, code, value, units) in enumerate(found, start=1)
    ]  # fmt: skip


SITE = Code("363698007", "SCT", "Finding Site")
COMMENT = Code("121106", "DCM", "Comment")
LINK = Code("LINK", "99OSTEON", "Study in Osteon")


class _Writer:
    """Writes values in a character set. What is no identifier loses what the set lacks; identifiers lose nothing."""

    def __init__(self, codec: str) -> None:
        self._codec = codec

    def text(self, value: str) -> str:
        """A text for people."""
        return escape(self.plain(value))

    def plain(self, value: str) -> str:
        """The same without escapes."""
        return "".join(map(self._letter, value[:MAX_TEXT_LENGTH]))

    def exact(self, value: str, name: str) -> str:
        """A number by which others find something. Raises NotEncodable."""
        stripped = value.strip()
        try:
            stripped.encode(self._codec)
        except UnicodeEncodeError:
            raise NotEncodable(name) from None
        return escape(stripped)

    def code(self, code: Code) -> str:
        """A coded value (CWE)."""
        return f"{escape(code.value)}^{self.text(code.meaning)}^{escape(code.scheme)}"

    def name(self, person: str) -> str:
        """A person name (XPN): its groups, alphabetic, ideographic and phonetic, as repetitions."""
        groups = []
        for group, representation in zip(person.split("="), ("A", "I", "P"), strict=False):
            # DICOM has the prefix before the suffix, HL7 the other way round
            family, given, middle, prefix, suffix = [*group.split("^"), *[""] * 5][:5]
            if representation != "A" and not self._holds(group):
                continue
            parts = [self.text(part.strip()) for part in (family, given, middle, suffix, prefix)]
            if any(parts):
                groups.append("^".join([*parts, "", "", representation]))
        return "~".join(groups)

    def _holds(self, text: str) -> bool:
        try:
            text.encode(self._codec)
        except UnicodeEncodeError:
            return False
        return True

    def _letter(self, letter: str) -> str:
        """The letter; the same without its accents; or a question mark."""
        if self._holds(letter):
            return letter
        plain = "".join(one for one in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(one))
        return plain if plain and self._holds(plain) else "?"


def letters(text: str, codec: str) -> str:
    """Write a text in the letters of an encoding, as messages do: without accents, or with question marks.

    Args:
        text: for people.
        codec: name of the encoding.

    Returns:
        The text as a receiver reads it.
    """
    return _Writer(codec).plain(text)


def escape(text: str) -> str:
    """Write a text so that it holds no delimiter and no control character. Source: HL7 v2.5.1 2.7."""
    return "".join(
        _ESCAPES.get(one) or (f"\\X{ord(one):02X}\\" if ord(one) < 32 or ord(one) == 127 else one) for one in text
    )


def unescape(text: str) -> str:
    """Read what `escape` wrote; sequences that it does not write are left out."""

    def letter(found: re.Match[str]) -> str:
        name = found[1]
        if name in _NAMES:
            return _NAMES[name]
        if re.fullmatch(r"X(?:[0-9A-Fa-f]{2})+", name, re.ASCII):
            return bytes.fromhex(name[1:]).decode("latin-1")
        return ""

    return re.sub(r"\\([^\\]*)\\", letter, text)


def _moment(moment: datetime) -> str:
    """A time with its zone (TS)."""
    return moment.strftime("%Y%m%d%H%M%S%z")


def _study_moment(order: Order) -> str:
    if order.study_date is None:
        return ""
    clock = order.study_time.strftime("%H%M%S") if order.study_time else ""
    return f"{order.study_date:%Y%m%d}{clock}{order.utc_offset if clock else ''}"


# -- what a receiver answers


class Verdict(StrEnum):
    """What an acknowledgement says of a message."""

    ACCEPTED = "accepted"
    LATER = "later"  # not now: the same message may be accepted later
    REFUSED = "refused"  # never, as it is
    UNSUPPORTED = "unsupported"  # nor any other of this type, version or processing id


class NoAcknowledgement(ValueError):
    """What came is no acknowledgement: it is cut off, damaged, or something else. It has no text of it."""


@dataclass(frozen=True)
class Acknowledgement:
    """An acknowledgement. words: the receiver's own, bounded; they may repeat what the message held."""

    code: str  # MSA-1: AA, AE, AR, CA, CE or CR
    control_id: str  # MSA-2: of the message that it answers
    verdict: Verdict
    words: str = field(default="", repr=False)


_ACCEPTED, _ERROR, _REJECTED = ("AA", "CA"), ("AE", "CE"), ("AR", "CR")
# table 0357: types, events, processing ids and versions that it does not know; a locked record, an internal error
_NEVER, _PASSING = frozenset({"200", "201", "202", "203"}), frozenset({"206", "207"})


def acknowledgement(content: bytes, codec: str = "latin-1") -> Acknowledgement:
    """Read an acknowledgement.

    AR and CR mean that the receiver could not take the message for reasons that are not in it, so that it may be sent
    again; AE and CE that something in it is wrong. A code of table 0357 says otherwise. Source: HL7 v2.5.1 2.9.3.

    Args:
        content: of a frame.
        codec: in which what is no UTF-8 is written.

    Returns:
        What it says.

    Raises:
        NoAcknowledgement: it is none.
    """
    text = content.decode("utf-8", "replace") if _is_utf8(content) else content.decode(codec, "replace")
    segments = [line for line in re.split(r"[\r\n]+", text.strip("\r\n")) if line][:MAX_SEGMENTS]
    if not segments or not segments[0].startswith("MSH") or len(segments[0]) < 8:
        raise NoAcknowledgement("it does not begin with MSH")
    bar, component = segments[0][3], segments[0][4]
    rows = [one.split(bar) for one in segments[1:]]
    found = next((row for row in rows if row[0] == "MSA" and len(row) > 2), None)
    if found is None or found[1].strip() not in (*_ACCEPTED, *_ERROR, *_REJECTED):
        raise NoAcknowledgement("it has no MSA with a code that HL7 knows")
    code = found[1].strip()
    errors = [[*row, *[""] * 9][:9] for row in rows if row[0] == "ERR"]
    conditions = {error[3].split(component)[0].strip() for error in errors}
    texts = [*found[3:4], *(error[8] or error[7] for error in errors)]
    words = " ".join(" ".join(unescape(one) for one in texts if one).split())[:MAX_WORDS_LENGTH]
    shown = "".join(letter for letter in words if letter.isprintable())
    return Acknowledgement(code, found[2].strip(), _verdict(code, conditions), shown)


def _verdict(code: str, conditions: set[str]) -> Verdict:
    if code in _ACCEPTED:
        return Verdict.ACCEPTED
    if conditions & _NEVER:
        return Verdict.UNSUPPORTED
    if code in _REJECTED or conditions & _PASSING:
        return Verdict.LATER
    return Verdict.REFUSED


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
