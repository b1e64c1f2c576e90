"""Objects that are stored and not analysed: which ones, why, and whether they are whole.

They are read to their end without keeping more than a header: a report or a plan may hold a million elements.
Source: PS3.5 7 (data set) and A.4 (encapsulated pixels), PS3.3 C.7.3.1 (Modality), C.17.6 (key objects).
"""

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from shared.dicom.conformance import KEY_OBJECTS, RT_DOSE, SECONDARY_CAPTURE, Handling, StorageClass
from shared.dicom.elements import ReadBudget, code_string, count, items_of, text_of, uid_of
from shared.dicom.image import BIG_ENDIAN, IMPLICIT_LE, NATIVE, UNDEFINED_LENGTH, PixelElement, is_colour
from shared.domain.device import DEVICE_ROOT, is_own_device
from shared.domain.study import Rejection, RejectionNote, StoredOnly
from shared.errors import CannotUnderstand, NoPixelData, TooLarge, TruncatedPixels, UndecodablePixels

MAX_ELEMENTS = 2_000_000  # of a file, at all depths: some seconds
MAX_REJECTED = 10_000  # instances that one document names
MAX_DEPTH = 64  # sequences within sequences
# defined terms of Modality that are no projection radiograph of a bone; what else a radiograph's header says is left to
# the model, which abstains. Source: PS3.3 C.7.3.1.1.1
_OTHER_MODALITIES = (
    "ANN AR ASMT AU BDUS BI BMD CFM CT CTPROTOCOL DG DMS DOC ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT IVUS KER"
    " KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS PA PLAN POS PR PT PX REG RESP RTDOSE RTIMAGE"
    " RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XAPROTOCOL"
    " XC"
)
OTHER_MODALITIES = frozenset(_OTHER_MODALITIES.split())
DIGITISED_MODALITIES = ("CR", "DX", "RG")  # of a secondary capture that is a radiograph
DEVICE_KEYWORDS = ("DeviceUID", "ManufacturerDeviceClassUID")
WANTED = frozenset(
    int(Tag(keyword))
    for keyword in (
        *DEVICE_KEYWORDS, "ContributingEquipmentSequence", "SOPClassUID", "Modality", "PhotometricInterpretation",
        "SamplesPerPixel", "PlanarConfiguration", "BitsAllocated", "Rows", "Columns", "NumberOfFrames",
    )
)  # fmt: skip
_CONTENT = int(Tag("ContentSequence"))
_KEY_OBJECT = frozenset(
    int(Tag(keyword))
    for keyword in ("ContentSequence", "ConceptNameCodeSequence", "CurrentRequestedProcedureEvidenceSequence")
)
_FLOAT, _DOUBLE, _PIXELS = 0x7FE00008, 0x7FE00009, 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_VRS = {vr.value.encode(): vr.value for vr in VR if len(vr.value) == 2}
_LONG = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_CHARACTER_SET = 0x00080005
_AHEAD = 65536  # bytes read at a time
CUT_SHORT = "The DICOM object is cut short: the file ends within an element"


def why_kept(dataset: Dataset, storage: StorageClass, pixels: PixelElement, syntax: str) -> StoredOnly | None:
    """Say why an object is stored and not analysed.

    Args:
        dataset: the header with the attributes in WANTED.
        storage: its SOP class.
        pixels: the element that holds its pixels.
        syntax: Transfer Syntax UID.

    Returns:
        The reason; None: it is analysed.

    Raises:
        BadAttributes: an attribute that decides about it is no number.
    """
    if _is_own(dataset):
        return StoredOnly.OWN_RESULT
    if not storage.image:
        return StoredOnly.NOT_AN_IMAGE
    modality = code_string(dataset, "Modality").upper()
    captured = storage.uid in SECONDARY_CAPTURE
    if captured and (storage.handling is Handling.KEPT or modality not in DIGITISED_MODALITIES):
        return StoredOnly.SECONDARY_CAPTURE
    if storage.handling is Handling.KEPT or modality in OTHER_MODALITIES:
        return StoredOnly.OTHER_MODALITY
    return StoredOnly.COLOUR if pixels.tag == _PIXELS and is_colour(dataset, pixels, syntax) else None


def _is_own(dataset: Dataset) -> bool:
    """Whether a device that made the object, or had a part in it, is Osteon."""
    try:
        made_by = [dataset, *items_of(dataset, "ContributingEquipmentSequence", ReadBudget(1 << 20, 10_000))]
        uids = [text_of(one, keyword, 1024) for one in made_by for keyword in DEVICE_KEYWORDS]
    except Exception:  # noqa: BLE001 - whatever pydicom raises on a damaged sequence: it is not ours
        return False
    return any(is_own_device(uid) for several in uids for uid in several.split("\\"))


# -- to the end of the file


@dataclass(frozen=True)
class WholeObject:
    """What was read of an object that is whole."""

    dataset: Dataset  # the wanted elements
    pixels: PixelElement  # tag 0: there are none
    own: bool  # whether its content names Osteon's device
    fragments: int  # of encapsulated pixels


def read_whole(file: BinaryIO, end: int, syntax: str, budget: ReadBudget, tags: Collection[int]) -> WholeObject:
    """Read the wanted elements of a data set and step over all others, up to its end or that of its pixels.

    Args:
        file: at the start of the data set.
        end: where the file ends.
        syntax: Transfer Syntax UID.
        budget: what may still be read of the header: of wanted values only.
        tags: tags to keep.

    Returns:
        The elements, and what else was seen on the way.

    Raises:
        CannotUnderstand: the object is damaged, or ends early.
        TooLarge: it has more elements than MAX_ELEMENTS, or the wanted ones are over the budget.
        TruncatedPixels: the file ends within its pixels.
        UndecodablePixels: encapsulated pixels are no items.
    """
    walk = _ElementWalker(file, end, ">" if syntax == BIG_ENDIAN else "<", implicit=syntax == IMPLICIT_LE)
    elements: dict[BaseTag, DataElement | RawDataElement] = {}
    encoding: str | list[str] = default_encoding
    own, place = False, file.tell()
    pixels, fragments = PixelElement(0, "", 0, 0), 0
    while not walk.is_padding(place):
        tag, vr, start, length = walk.head(place)
        if tag in (_FLOAT, _DOUBLE, _PIXELS):
            pixels = PixelElement(tag, vr or "OW", start, length)
            if length == UNDEFINED_LENGTH:
                fragments = walk.count_fragments(start)
            elif start + length > end:
                available = max(0, end - start)
                text = f"Pixel Data has {available} bytes where {length} are needed: the file was cut short"
                raise TruncatedPixels(text, f"{available} of {length} bytes")
            break
        place = walk.end_of(tag, vr, start, length)
        value_end = place - 8 if length == UNDEFINED_LENGTH else place
        if tag in tags or tag == _CHARACTER_SET:
            size = value_end - start
            budget.bytes_left -= size
            if budget.bytes_left < 0:
                raise TooLarge("The DICOM header is larger than this installation reads")
            known = BaseTag(tag)
            value = walk.value(start, size)
            kind = "SQ" if length == UNDEFINED_LENGTH and vr in (None, "UN") else vr
            implicit = walk.implicit or (length == UNDEFINED_LENGTH and vr == "UN")
            elements[known] = RawDataElement(known, kind, size, value, start, implicit, walk.order == "<")
            if tag == _CHARACTER_SET:
                encoding = _encodings(value)
        if tag == _CONTENT:
            own = walk.contains(DEVICE_ROOT.encode(), start, value_end)
    dataset = Dataset(elements)
    dataset.set_original_encoding(walk.implicit, walk.order == "<", encoding)
    return WholeObject(dataset, pixels, own, fragments)


def _encodings(value: bytes) -> str | list[str]:
    try:
        return list(convert_encodings([part.strip() for part in value[:256].decode("ascii").strip(" \0").split("\\")]))
    except (ValueError, LookupError):
        return default_encoding


class _ElementWalker:
    """A file of elements of which only the heads are read."""

    def __init__(self, file: BinaryIO, end: int, order: str, *, implicit: bool) -> None:
        self.file, self.end, self.order, self.implicit = file, end, order, implicit
        self._base, self._data = 0, b""
        self._left = MAX_ELEMENTS
        self._head = struct.Struct(order + "HHL").unpack_from
        self._short, self._long = struct.Struct(order + "H").unpack_from, struct.Struct(order + "L").unpack_from

    def value(self, place: int, size: int) -> bytes:
        """The bytes there. Raises CannotUnderstand where the file ends before."""
        at = place - self._base
        if at < 0 or at + size > len(self._data):
            self.file.seek(place)
            self._base, self._data, at = place, self.file.read(max(size, _AHEAD)), 0
            if len(self._data) < size:
                raise CannotUnderstand(CUT_SHORT)
        return self._data[at : at + size]

    def check_position(self, place: int) -> int:
        """The same place. Raises CannotUnderstand if it lies behind the file's end."""
        if place > self.end:
            raise CannotUnderstand(CUT_SHORT)
        return place

    def is_padding(self, place: int) -> bool:
        """Whether nothing follows, or zeros: the length of an element's head at most are looked at."""
        rest = min(8, self.end - place)
        return rest <= 0 or not self.value(place, rest).strip(b"\0")

    def head(self, place: int, *, implicit: bool = False) -> tuple[int, str | None, int, int]:
        """Tag, VR (None in implicit VR), place of the value and length of the element there.

        A VR that DICOM does not know is of one of its later editions, with a length of four bytes (PS3.5 6.2).
        """
        self._left -= 1
        if self._left < 0:
            raise TooLarge(f"The object has more than {MAX_ELEMENTS} elements")
        data = self.value(place, 8)
        group, number, length = self._head(data)
        tag = group << 16 | number
        code = data[4:6]
        letters = code.isalpha() and code.isupper()
        if implicit or self.implicit or group == 0xFFFE or not letters:
            return tag, None, place + 8, length
        if code in _VRS and code not in _LONG:
            return tag, _VRS[code], place + 8, self._short(data, 6)[0]
        return tag, _VRS.get(code, "UN"), place + 12, self._long(self.value(place + 8, 4))[0]

    def end_of(self, tag: int, vr: str | None, start: int, length: int, depth: int = 0) -> int:
        """Where the next element begins."""
        if length != UNDEFINED_LENGTH:
            return self.check_position(start + length)
        if depth > MAX_DEPTH:
            raise TooLarge("The object's sequences are nested too deeply")
        if tag >> 16 == 0xFFFE:
            raise CannotUnderstand("The DICOM object is damaged: an item lies outside of a sequence")
        # what is written as UN of unknown length is in implicit VR (PS3.5 6.2.2)
        return self._end_of_items(start, depth, implicit=self.implicit or vr in ("UN", None))

    def _end_of_items(self, place: int, depth: int, *, implicit: bool) -> int:
        while True:
            tag, _, place, length = self.head(place, implicit=True)
            if tag == _SEQUENCE_END:
                return place
            if tag != _ITEM:
                raise CannotUnderstand("The DICOM object is damaged: a sequence holds what is no item")
            if length != UNDEFINED_LENGTH:
                place = self.check_position(place + length)
                continue
            while True:
                tag, vr, start, size = self.head(place, implicit=implicit)
                if tag == _ITEM_END:
                    place = start
                    break
                place = self.end_of(tag, vr, start, size, depth + 1)

    def count_fragments(self, place: int) -> int:
        """The number of fragments of encapsulated pixels behind their offset table. Raises as `read_whole`."""
        found = -1  # the first item is the offset table
        while not (found > 0 and place >= self.end):  # some writers leave the last mark out
            try:
                tag, _, start, length = self.head(place, implicit=True)
                if tag == _SEQUENCE_END:
                    break
                if tag != _ITEM or length == UNDEFINED_LENGTH:
                    raise UndecodablePixels("Pixel Data (7FE0,0010) is damaged: it holds what is no fragment")
                place = self.check_position(start + length)
            except CannotUnderstand:
                raise TruncatedPixels("Pixel Data (7FE0,0010) is cut short: the file ends within a fragment") from None
            found += 1
        return max(0, found)

    def contains(self, pattern: bytes, start: int, end: int) -> bool:
        """Whether these bytes occur there."""
        return any(pattern in part for part in self._parts(start, end, len(pattern)))

    def _parts(self, start: int, end: int, overlap: int) -> Iterator[bytes]:
        before = b""
        for place in range(start, end, _AHEAD):
            part = before + self.value(place, min(_AHEAD, end - place))
            yield part
            before = part[-overlap:]


def check_pixels(stored_object: WholeObject, storage: StorageClass, syntax: str) -> tuple[int, int, int]:
    """Check that an image which is kept holds the pixels that its header tells of, without decoding any.

    Args:
        stored_object: the object.
        storage: its SOP class.
        syntax: Transfer Syntax UID.

    Returns:
        Rows, columns and frames; 0 each where there are no pixels.

    Raises:
        BadAttributes: an attribute is missing, or no number.
        NoPixelData: an image has no pixels.
        TruncatedPixels: there are fewer than the header says.
        UndecodablePixels: they are encapsulated where the transfer syntax says otherwise, or the reverse.
    """
    dataset, pixels = stored_object.dataset, stored_object.pixels
    if not storage.image:
        return 0, 0, 0
    if not pixels.tag or not pixels.length:
        if storage.uid == RT_DOSE:
            return 0, 0, 0
        raise NoPixelData
    rows, columns = count(dataset, "Rows"), count(dataset, "Columns")
    frames = max(1, count(dataset, "NumberOfFrames", 1, least=0))
    if (syntax in NATIVE) is (pixels.length == UNDEFINED_LENGTH):
        raise UndecodablePixels(
            "Pixel Data (7FE0,0010) is not encoded as the transfer syntax (0002,0010) says", "TransferSyntaxUID"
        )
    if syntax not in NATIVE:
        if stored_object.fragments < frames:
            text = f"Pixel Data has {stored_object.fragments} fragments for {frames} frames: the file was cut short"
            raise TruncatedPixels(text, f"{stored_object.fragments} of {frames} fragments")
        return rows, columns, frames
    samples = count(dataset, "SamplesPerPixel", 1)
    halved = text_of(dataset, "PhotometricInterpretation", 16).strip().upper() in ("YBR_FULL_422", "YBR_PARTIAL_422")
    if halved and samples == 3:
        samples = 2  # two pixels share their colours (PS3.3 C.7.6.3.1.2)
    needed = (rows * columns * frames * samples * count(dataset, "BitsAllocated") + 7) // 8
    if pixels.length < needed:
        text = f"Pixel Data has {pixels.length} bytes where {needed} are needed: the file was cut short"
        raise TruncatedPixels(text, f"{pixels.length} of {needed} bytes")
    return rows, columns, frames


# -- documents that reject


def further_tags(sop_class_uid: str) -> frozenset[int]:
    """Further tags to read of an object of this SOP class."""
    return _KEY_OBJECT if sop_class_uid == KEY_OBJECTS else frozenset()


def rejection_note(dataset: Dataset, storage: StorageClass, budget: ReadBudget) -> RejectionNote | None:
    """Read which instances a Key Object Selection Document rejects.

    Args:
        dataset: with the attributes of `further_tags`.
        storage: its SOP class.
        budget: what may still be read of the header.

    Returns:
        Title and instances; None for any other object.

    Raises:
        TooLarge: it rejects more than MAX_REJECTED instances.
        Rejected: its references cannot be read.
    """
    if storage.uid != KEY_OBJECTS:
        return None
    title = next(iter(items_of(dataset, "ConceptNameCodeSequence", budget)), Dataset())
    code = text_of(title, "CodeValue", 16)
    if code not in list(Rejection) or text_of(title, "CodingSchemeDesignator", 16) != "DCM":
        return None
    named = [
        reference
        for study in items_of(dataset, "CurrentRequestedProcedureEvidenceSequence", budget)
        for one in items_of(study, "ReferencedSeriesSequence", budget)
        for reference in items_of(one, "ReferencedSOPSequence", budget)
    ]
    for item in items_of(dataset, "ContentSequence", budget):
        named += items_of(item, "ReferencedSOPSequence", budget)
    uids = dict.fromkeys(uid_of(one, "ReferencedSOPInstanceUID") for one in named)
    if len(uids) > MAX_REJECTED:
        raise TooLarge(f"The document rejects more than {MAX_REJECTED} instances")
    return RejectionNote(Rejection(code), tuple(uid for uid in uids if uid and len(uid) <= 64))
