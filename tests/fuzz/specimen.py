"""A DICOM file taken apart, so that a mutator can change one piece of it and leave the others sound."""

import struct
import zlib
from dataclasses import dataclass, field, replace

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

LONG_VR = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
UNDEFINED = 0xFFFFFFFF
PIXELS = 0x7FE00010
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


def tag_of(keyword: str) -> int:
    """The tag of a keyword of the standard."""
    return int(tag_for_keyword(keyword) or 0)


@dataclass(frozen=True)
class Element:
    """One data element, top level; a sequence is one value."""

    tag: int
    vr: bytes
    value: bytes
    length: int | None = None  # what its length field says, where that is not the truth


@dataclass
class Specimen:
    """A file before it is written. Once `raw` is set the pieces are history, and only bytes can be changed."""

    name: str
    syntax: str
    meta: list[Element]
    body: list[Element]
    encoded_as: str = ""  # the syntax that the body is written in, where it is not the one that meta names
    preamble: bytes = bytes(128) + b"DICM"
    fragments: list[bytes] | None = None  # of encapsulated pixels: offset table first; they stand for the value
    fragment_lengths: dict[int, int] = field(default_factory=dict)  # lies, by index
    delimiter: bytes = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    inflated: bytes | None = None  # the body in bytes, once a mutator changed it as such
    raw: bytes | None = None

    @property
    def order(self) -> str:
        """Of the body, in struct's notation."""
        return ">" if (self.encoded_as or self.syntax) == ExplicitVRBigEndian else "<"

    @property
    def implicit(self) -> bool:
        """Whether the body has no VRs."""
        return (self.encoded_as or self.syntax) == "1.2.840.10008.1.2"

    def find(self, tag: int) -> int | None:
        """Index of an element in body."""
        return next((i for i, element in enumerate(self.body) if element.tag == tag), None)

    def put(self, element: Element) -> None:
        """Replace the element with this tag, or add it where it belongs."""
        at = self.find(element.tag)
        if at is not None:
            self.body[at] = element
            return
        later = [i for i, other in enumerate(self.body) if other.tag > element.tag]
        self.body.insert(later[0] if later else len(self.body), element)

    def number(self, tag: int) -> int:
        """A US value of the body; 0 where there is none."""
        at = self.find(tag)
        if at is None or len(self.body[at].value) != 2:
            return 0
        value: int = struct.unpack(f"{self.order}H", self.body[at].value)[0]
        return value

    def body_bytes(self) -> bytes:
        """The data set in bytes, before it is deflated."""
        if self.inflated is None:
            self.inflated = b"".join(self._element(element) for element in self.body)
        return self.inflated

    def file_bytes(self) -> bytes:
        """The file."""
        if self.raw is None:
            body = self.body_bytes()
            if self.syntax == DeflatedExplicitVRLittleEndian:
                machine = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
                body = machine.compress(body) + machine.flush()
            meta = b"".join(encode(element, "<", implicit=False) for element in self.meta)
            self.raw = self.preamble + meta + body
        return self.raw

    def _element(self, element: Element) -> bytes:
        if element.tag == PIXELS and self.fragments is not None:
            items = b"".join(
                struct.pack("<HHL", 0xFFFE, 0xE000, self.fragment_lengths.get(i, len(fragment))) + fragment
                for i, fragment in enumerate(self.fragments)
            )
            value, length = items + self.delimiter, element.length
            element = replace(element, value=value, length=UNDEFINED if length is None else length)
        return encode(element, self.order, implicit=self.implicit)


def encode(element: Element, order: str, *, implicit: bool) -> bytes:
    """An element in bytes, with its true length or the one that it claims."""
    tag = struct.pack(f"{order}HH", element.tag >> 16, element.tag & 0xFFFF)
    length = len(element.value) if element.length is None else element.length
    if implicit:
        return tag + struct.pack(f"{order}L", length & UNDEFINED) + element.value
    if element.vr in LONG_VR:
        return tag + element.vr + b"\0\0" + struct.pack(f"{order}L", length & UNDEFINED) + element.value
    return tag + element.vr + struct.pack(f"{order}H", length & 0xFFFF) + element.value


def take_apart(name: str, dataset: Dataset, syntax: str) -> Specimen:
    """The pieces of a sound data set with a complete file_meta."""
    little = syntax != ExplicitVRBigEndian
    implicit = syntax == "1.2.840.10008.1.2"
    body = [_encoded(dataset, tag, little=little, implicit=implicit) for tag in sorted(dataset.keys())]
    meta = [_encoded(dataset.file_meta, tag, little=True, implicit=False) for tag in sorted(dataset.file_meta.keys())]
    specimen = Specimen(name, syntax, meta, body)
    at = specimen.find(PIXELS)
    if at is not None and UID(syntax).is_encapsulated:
        specimen.fragments = split_items(body[at].value)
    return specimen


def split_items(value: bytes) -> list[bytes]:
    """The items of a sound encapsulated value, offset table first, delimiter left off."""
    found, at = [], 0
    while at + 8 <= len(value):
        group, element, length = struct.unpack_from("<HHL", value, at)
        if group << 16 | element != ITEM:
            break
        found.append(value[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def _encoded(dataset: Dataset, tag: int, *, little: bool, implicit: bool) -> Element:
    element = dataset[Tag(tag)]
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = little, implicit
    write_data_element(file, element, "ISO_IR 100" if tag >> 16 == 2 else list(_charsets(dataset)))
    written = file.getvalue()
    vr = str(element.VR).encode()[:2]
    head = 8 if implicit or vr not in LONG_VR else 12
    return Element(int(tag), vr, written[head:])


def _charsets(dataset: Dataset) -> list[str]:
    from pydicom.charset import convert_encodings

    return list(convert_encodings(dataset.get("SpecificCharacterSet", "ISO_IR 100")))
