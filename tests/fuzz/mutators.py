"""What is done to a sound file: small, named changes that can follow one another.

Each takes the specimen and a rng of its own, and changes the specimen in place; one that finds nothing to change
leaves it. Those of PIECES change elements and fragments, those of BODY the data set's bytes before they are deflated,
those of BYTES the finished file; they are applied in this order.
"""

import itertools
import random
import struct
import zlib
from collections.abc import Callable

from pydicom.uid import DeflatedExplicitVRLittleEndian

from tests.fuzz import sound
from tests.fuzz.specimen import ITEM, ITEM_END, LONG_VR, PIXELS, SEQUENCE_END, UNDEFINED, Element, Specimen, tag_of

Mutator = Callable[[Specimen, random.Random], None]
PIECES: dict[str, Mutator] = {}
BODY: dict[str, Mutator] = {}
BYTES: dict[str, Mutator] = {}
ONLY: dict[str, tuple[str, ...]] = {}
PACKED = ("rle", "jpeg", "j2k", "jp2", "htj2k", "sample-j", "sample-rle", "sample-sv1", "sample-frames")
DEFLATED = ("deflated", "sample-deflated")

SHORTS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    10,
    12,
    15,
    16,
    17,
    24,
    31,
    32,
    33,
    63,
    64,
    255,
    256,
    999,
    1000,
    4095,
    32767,
    32768,
    65534,
    65535,
)
LONGS = (0, 1, 2, 3, 7, 8, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFE, UNDEFINED)
TEXTS = (
    b"", b" ", b"\0", b"NaN", b"nan", b"inf", b"-inf", b"1e308", b"-1e308", b"1e-320", b"1e999", b"1e38", b"3.4e38",
    b"-3.4e38", b"0", b"-0", b"-1", b"1", b"2", b"0.5", b"1e-30", b"1e20", b"-1024", b"65536", b"2147483648", b"1,5",
    b"0x10", b"1_0", b"1\\2\\3", b"\\", b"\\\\\\", b"ZEBRA", b"\xd9\xa3", b"\xff\xfe", b"9" * 400, b"9" * 4200,
    b"9" * 6000, b"1." + b"0" * 3000 + b"1", b"+", b"--1", b"1e", b"\xb2", b"true",
)  # fmt: skip
GEOMETRY = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "SamplesPerPixel",
    "PixelRepresentation",
    "PlanarConfiguration",
)
DECIMALS = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth")
READ = (
    *GEOMETRY, *DECIMALS, "NumberOfFrames", "PhotometricInterpretation", "SOPClassUID", "SOPInstanceUID",
    "StudyInstanceUID", "Modality", "BodyPartExamined", "PatientName", "PatientID", "PatientBirthDate",
    "AccessionNumber", "SpecificCharacterSet", "VOILUTFunction", "PixelData",
)  # fmt: skip
VRS = (
    *(
        vr.encode()
        for vr in (
            "AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV"
        ).split()
    ),
    b"ZZ", b"\0\0", b"  ", b"\xff\xff", b"us", b"O\0", b"??",
)  # fmt: skip
CHARSETS = (
    b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 101", b"ISO_IR 144", b"ISO_IR 166", b"ISO_IR 192", b"ISO_IR 13",
    b"ISO 2022 IR 6\\ISO 2022 IR 87", b"\\ISO 2022 IR 149", b"\\ISO 2022 IR 58", b"GB18030", b"GBK", b"ISO_IR 999",
    b"utf-7", b"utf-16", b"utf_8_sig", b"rot13", b"zlib_codec", b"idna", b"unicode_escape", b"raw_unicode_escape",
    b"undefined", b"punycode", b"hex", b"ZEBRA", b"\\" * 300, b"ISO 2022 IR 13\\ISO 2022 IR 87\\ISO 2022 IR 159",
    b"ISO_IR 192\\ISO 2022 IR 87", b"\0", b"\xff", b"latin_1", b"mbcs", b"surrogateescape",
)  # fmt: skip


def _into(registry: dict[str, Mutator], of: tuple[str, ...] = ()) -> Callable[[Mutator], Mutator]:
    """of: beginnings of the names of the sound files that it has something to change in; none: all."""

    def register(mutator: Mutator) -> Mutator:
        registry[mutator.__name__] = mutator
        if of:
            ONLY[mutator.__name__] = of
        return mutator

    return register


def _us(specimen: Specimen, value: int) -> bytes:
    return struct.pack(f"{specimen.order}H", value & 0xFFFF)


# -- pieces: values that mean nothing, or contradict each other ----------------------------------------------------


@_into(PIECES)
def odd_geometry(specimen: Specimen, rng: random.Random) -> None:
    """One to three numbers of the Image Pixel module are others."""
    for keyword in rng.sample(GEOMETRY, rng.randint(1, 3)):
        tag = tag_of(keyword)
        was = specimen.number(tag)
        value = rng.choice((*SHORTS, was + 1, was - 1, was * 2, was // 2, was + 8))
        specimen.put(Element(tag, b"US", _us(specimen, value)))


@_into(PIECES)
def odd_frames(specimen: Specimen, rng: random.Random) -> None:
    """Number of Frames is wrong, huge, or no number."""
    text = rng.choice((*TEXTS, b"2", b"4", b"20", b"21", b"199", b"200", b"201", b"10000", b"1.0", b"3.7"))
    specimen.put(Element(tag_of("NumberOfFrames"), b"IS", text))


@_into(PIECES)
def odd_decimals(specimen: Specimen, rng: random.Random) -> None:
    """Rescale and window are absurd."""
    for keyword in rng.sample(DECIMALS, rng.randint(1, 4)):
        specimen.put(Element(tag_of(keyword), b"DS", rng.choice(TEXTS)))
    if rng.random() < 0.4:
        function = rng.choice((b"SIGMOID", b"LINEAR", b"LINEAR_EXACT", b"ZEBRA", b"", b"\xff"))
        specimen.put(Element(tag_of("VOILUTFunction"), b"CS", function))


@_into(PIECES)
def odd_rescale_of_plausible_size(specimen: Specimen, rng: random.Random) -> None:
    """Slope and intercept that pass as numbers and strain float32."""
    slope = rng.choice((1, -1, 1e-38, 1e-45, 1e30, 5e34, -5e34, 1e-7, 3.0e38 / 65536, 7))
    intercept = rng.choice((0, -1024, 1e30, -1e38, 3.4e38, 1e-40, 16777217))
    specimen.put(Element(tag_of("RescaleSlope"), b"DS", f"{slope:g}".encode()))
    specimen.put(Element(tag_of("RescaleIntercept"), b"DS", f"{intercept:g}".encode()))
    if rng.random() < 0.5:
        width = rng.choice((1, 1.0000001, 1e-300, 1e300, 1e38, 0.5, -3))
        specimen.put(Element(tag_of("WindowWidth"), b"DS", f"{width:g}".encode()))
        specimen.put(Element(tag_of("WindowCenter"), b"DS", f"{rng.choice((0, 1e38, -1e300, 1e-300)):g}".encode()))
        function = rng.choice((b"SIGMOID", b"LINEAR", b"LINEAR_EXACT"))
        specimen.put(Element(tag_of("VOILUTFunction"), b"CS", function))


@_into(PIECES)
def odd_photometric(specimen: Specimen, rng: random.Random) -> None:
    """Another colour space, or none."""
    text = rng.choice(
        (
            b"MONOCHROME1",
            b"MONOCHROME2 ",
            b"RGB",
            b"YBR_FULL",
            b"PALETTE COLOR",
            b"",
            b"ZEBRA",
            b"\xff\xfe",
            b"MONOCHROME1\\RGB",
        )
    )
    specimen.put(Element(tag_of("PhotometricInterpretation"), b"CS", text))


@_into(PIECES)
def odd_charset(specimen: Specimen, rng: random.Random) -> None:
    """A character set that is unknown, that Python knows and DICOM does not, or that the names are not in."""
    specimen.put(Element(0x00080005, b"CS", rng.choice(CHARSETS)))
    if rng.random() < 0.5:
        name = rng.choice(
            (
                b"ZEBRA\x1b$B\x21^QUAGGA",
                b"ZEBRA\xed\xa0\x80",
                b"\xff\xfeZEBRA",
                b"+2AA-ZEBRA",
                b"ZEBRA\\ud800",
                b"\x1b$)C\x1b(J",
            )
        )
        for keyword in ("PatientName", "Modality", "BodyPartExamined"):
            if rng.random() < 0.6:
                specimen.put(Element(tag_of(keyword), b"PN" if keyword == "PatientName" else b"CS", name))


@_into(PIECES)
def overlong(specimen: Specimen, rng: random.Random) -> None:
    """A value that is read has hundreds of thousands of parts, items or digits."""
    filler = rng.choice((b"\\", b"1\\", b"\xfe\xff\x00\xe0\0\0\0\0", b"9", b"\0", b"ISO_IR 192\\", b"\x1b$B"))
    value = filler * (rng.choice((70_000, 900_000)) // len(filler))
    if rng.random() < 0.2:
        at = rng.randrange(len(specimen.meta))
        specimen.meta[at] = Element(specimen.meta[at].tag, rng.choice((b"SQ", b"UC", b"UN", b"UT")), value)
        return
    tag = tag_of(rng.choice((*READ[:-1], "SpecificCharacterSet")))
    specimen.put(Element(tag, rng.choice((b"SQ", b"UC", b"UN", b"UT", b"OB")), value))


@_into(PIECES)
def odd_text(specimen: Specimen, rng: random.Random) -> None:
    """Attributes that are stored and shown hold controls, NULs, megabytes, several values, or markup."""
    keyword = rng.choice(
        (
            "PatientName",
            "PatientID",
            "Modality",
            "BodyPartExamined",
            "AccessionNumber",
            "PatientBirthDate",
            "SOPInstanceUID",
            "StudyInstanceUID",
            "SOPClassUID",
        )
    )
    text = rng.choice(
        (
            *TEXTS,
            b"ZEBRA" * 20_000,
            b"CR\0\0\0",
            b"DX\\CR\\ZEBRA",
            b"<script>",
            b"\r\n\t\x1b[31m",
            b"1.2.3",
            b"1" * 64,
            b"1" * 65,
            b"1.2." + b"9" * 70,
            b"CR\n",
            b"1.2.3\n",
        )
    )
    at = specimen.find(tag_of(keyword))
    vr = specimen.body[at].vr if at is not None else b"LO"
    specimen.put(Element(tag_of(keyword), vr, text if vr in LONG_VR or specimen.implicit else text[:65534]))


@_into(PIECES)
def another_vr(specimen: Specimen, rng: random.Random) -> None:
    """An element that is read claims another VR; its value stays, or becomes noise of some length."""
    at = specimen.find(tag_of(rng.choice(READ)))
    if at is None:
        at = rng.randrange(len(specimen.body))
    old = specimen.body[at]
    value = old.value if rng.random() < 0.6 else rng.randbytes(rng.choice((0, 1, 2, 3, 4, 7, 8, 16, 100)))
    specimen.body[at] = Element(old.tag, rng.choice(VRS), value, old.length)


@_into(PIECES)
def another_length(specimen: Specimen, rng: random.Random) -> None:
    """An element's length field lies."""
    at = rng.randrange(len(specimen.body))
    if rng.random() < 0.3:
        at = specimen.find(PIXELS) or at
    old = specimen.body[at]
    true = len(old.value)
    specimen.body[at] = Element(
        old.tag, old.vr, old.value, rng.choice((*LONGS, true + 1, true - 1, true + 2, true // 2, true * 2))
    )


@_into(PIECES)
def missing(specimen: Specimen, rng: random.Random) -> None:
    """One to four elements are not there, in two cases of three of those that are read."""
    for _ in range(rng.randint(1, 4)):
        wanted = specimen.find(tag_of(rng.choice(READ)))
        at = wanted if wanted is not None and rng.random() < 0.66 else rng.randrange(len(specimen.body))
        if len(specimen.body) > 1:
            del specimen.body[at]


@_into(PIECES)
def doubled(specimen: Specimen, rng: random.Random) -> None:
    """Elements occur twice, with the same or another value, next to each other or far apart."""
    for _ in range(rng.randint(1, 3)):
        wanted = specimen.find(tag_of(rng.choice(READ)))
        old = specimen.body[wanted if wanted is not None else rng.randrange(len(specimen.body))]
        value = old.value if rng.random() < 0.3 else rng.choice((_us(specimen, rng.choice(SHORTS)), *TEXTS[:20]))
        specimen.body.insert(rng.randint(0, len(specimen.body)), Element(old.tag, old.vr, value))


@_into(PIECES)
def shuffled(specimen: Specimen, rng: random.Random) -> None:
    """Elements are not in the order of their tags: two are exchanged, or all are thrown together."""
    if rng.random() < 0.3:
        rng.shuffle(specimen.body)
        return
    first, second = rng.randrange(len(specimen.body)), rng.randrange(len(specimen.body))
    specimen.body[first], specimen.body[second] = specimen.body[second], specimen.body[first]


@_into(PIECES)
def other_tags(specimen: Specimen, rng: random.Random) -> None:
    """Elements that do not belong: delimiters, groups 0 and FFFF, command and meta elements, float pixels."""
    tag = rng.choice(
        (
            0,
            0x00000010,
            0x00020010,
            ITEM,
            ITEM_END,
            SEQUENCE_END,
            0xFFFFFFFF,
            0x7FE00008,
            0x7FE00009,
            0x7FE00001,
            0x7FE00002,
            0x7FDF0010,
            0x00080000,
            0x00280103,
        )
    )
    value = rng.randbytes(rng.choice((0, 2, 8, 12, 24)))
    specimen.body.insert(rng.randint(0, len(specimen.body)), Element(tag, rng.choice(VRS), value))


# -- pieces: sequences ---------------------------------------------------------------------------------------------


def _item(content: bytes, order: str, *, defined: bool) -> bytes:
    head = struct.pack(f"{order}HHL", 0xFFFE, 0xE000, len(content) if defined else UNDEFINED)
    return head + content + (b"" if defined else struct.pack(f"{order}HHL", 0xFFFE, 0xE00D, 0))


def _sequence(tag: int, items: bytes, specimen: Specimen, *, defined: bool) -> bytes:
    from tests.fuzz.specimen import encode

    end = b"" if defined else struct.pack(f"{specimen.order}HHL", 0xFFFE, 0xE0DD, 0)
    element = Element(tag, b"SQ", items + end, len(items) if defined else UNDEFINED)
    return encode(element, specimen.order, implicit=specimen.implicit)


SEQUENCES = (
    "ModalityLUTSequence", "VOILUTSequence", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
    "ReferencedImageSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence",
)  # fmt: skip


def _whole(specimen: Specimen, tag: int, items: bytes, *, defined: bool) -> None:
    """Put a sequence as a top-level element."""
    end = b"" if defined else struct.pack(f"{specimen.order}HHL", 0xFFFE, 0xE0DD, 0)
    specimen.put(Element(tag, b"SQ", items + end, None if defined else UNDEFINED))


@_into(PIECES)
def deep_nesting(specimen: Specimen, rng: random.Random) -> None:
    """Sequences within sequences, up to thousands deep, closed or not."""
    tag = tag_of(rng.choice(SEQUENCES))
    depth = rng.choice((2, 10, 50, 150, 400, 1000, 3000))
    defined = rng.random() < 0.5 and depth <= 400
    items = b""
    for _ in range(depth):
        items = _item(_sequence(tag, items, specimen, defined=defined), specimen.order, defined=defined)
        if len(items) > 200_000:
            break
    if rng.random() < 0.3:
        items = items[: rng.randrange(len(items))]
    _whole(specimen, tag, items, defined=rng.random() < 0.5)


@_into(PIECES)
def many_items(specimen: Specimen, rng: random.Random) -> None:
    """A sequence of thousands of empty or tiny items, of defined or undefined length."""
    tag = tag_of(rng.choice(SEQUENCES))
    inner = rng.choice((b"", struct.pack(f"{specimen.order}HHL", 0x0028, 0x1050, 0), rng.randbytes(8)))
    items = _item(inner, specimen.order, defined=rng.random() < 0.7) * rng.choice((10, 1000, 20_000, 120_000))
    _whole(specimen, tag, items, defined=rng.random() < 0.6)


@_into(PIECES)
def odd_lut(specimen: Specimen, rng: random.Random) -> None:
    """Lookup tables whose descriptor and data contradict each other, the pixels, or arithmetic."""
    from tests.fuzz.specimen import encode

    tag = tag_of(rng.choice(("ModalityLUTSequence", "VOILUTSequence")))
    count, first, bits = (rng.choice(SHORTS) for _ in range(3))
    if rng.random() < 0.6:
        count, bits = rng.choice((1, 2, 16, 256, 4096)), rng.choice((8, 12, 16))
    descriptor = struct.pack(f"{specimen.order}3H", count, first, bits)[: rng.choice((6, 6, 6, 6, 4, 2, 0))]
    size = max(0, rng.choice((2 * count, count, 2 * count - 2, 0, 1, 2, 3, 131072)))
    data = rng.choice((rng.randbytes(min(size, 4096)) * 32, bytes(size), b"\xff" * size))[:size]
    parts = [
        Element(tag_of("LUTDescriptor"), rng.choice((b"US", b"SS", b"US", b"UN", b"OB", b"DS")), descriptor),
        Element(tag_of("LUTData"), rng.choice((b"OW", b"US", b"OW", b"OB", b"UN", b"SS", b"LO")), data[:65534]),
    ]
    if rng.random() < 0.15:
        del parts[rng.randrange(2)]
    content = b"".join(encode(part, specimen.order, implicit=specimen.implicit) for part in parts)
    _whole(specimen, tag, _item(content, specimen.order, defined=True), defined=True)


@_into(PIECES)
def odd_groups(specimen: Specimen, rng: random.Random) -> None:
    """Functional groups for fewer or more frames than there are, with rescales that mean nothing, or of a wrong kind."""
    from tests.fuzz.specimen import encode

    def macro() -> bytes:
        keyword = rng.choice(("PixelValueTransformationSequence", "FrameVOILUTSequence"))
        values = [
            Element(tag_of(name), b"DS", rng.choice(TEXTS)[:60])
            for name in sorted(rng.sample(DECIMALS, rng.randint(0, 4)), key=tag_of)
        ]
        content = b"".join(encode(value, specimen.order, implicit=specimen.implicit) for value in values)
        items = _item(content, specimen.order, defined=True) * rng.choice((0, 1, 1, 1, 2))
        return _sequence(tag_of(keyword), items, specimen, defined=True)

    tag = tag_of(rng.choice(("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")))
    items = b"".join(
        _item(macro(), specimen.order, defined=rng.random() < 0.8) for _ in range(rng.choice((0, 1, 2, 3, 5, 30)))
    )
    if rng.random() < 0.2:
        specimen.put(Element(tag, rng.choice(VRS), items))
    else:
        _whole(specimen, tag, items, defined=rng.random() < 0.7)


# -- pieces: the file around the data set --------------------------------------------------------------------------


@_into(PIECES)
def another_syntax(specimen: Specimen, rng: random.Random) -> None:
    """The file meta name a transfer syntax that the data set is not in."""
    syntaxes = (
        *sound.NATIVE.values(),
        sound.RLE,
        *(sound.JPEG + n for n in ("50", "51", "57", "70", "80", "81", "90", "91", "201", "202", "203", "100", "55")),
    )
    syntax = rng.choice((*syntaxes, "1.2.3", "", "ZEBRA", "1.2.840.10008.1.2\\1.2", "1" * 70))
    for i, element in enumerate(specimen.meta):
        if element.tag == 0x00020010:
            specimen.meta[i] = Element(element.tag, element.vr, syntax.encode() + b"\0" * (len(syntax) % 2))
    specimen.encoded_as = specimen.encoded_as or specimen.syntax
    if rng.random() < 0.7:  # else a deflated body stays deflated, and a plain one plain
        specimen.syntax = syntax


@_into(PIECES)
def odd_meta(specimen: Specimen, rng: random.Random) -> None:
    """File meta elements doubled, missing, out of order, or of a wrong VR or length."""
    how = rng.randrange(5)
    at = rng.randrange(len(specimen.meta))
    old = specimen.meta[at]
    if how == 0:
        del specimen.meta[at]
    elif how == 1:
        specimen.meta.insert(rng.randint(0, len(specimen.meta)), Element(old.tag, old.vr, rng.choice(TEXTS)))
    elif how == 2:
        rng.shuffle(specimen.meta)
    elif how == 3:
        specimen.meta[at] = Element(old.tag, rng.choice(VRS), old.value)
    else:
        specimen.meta[at] = Element(old.tag, old.vr, old.value, rng.choice(LONGS))


@_into(PIECES)
def odd_preamble(specimen: Specimen, rng: random.Random) -> None:
    """No preamble, none of the mark, or one of another file format."""
    specimen.preamble = rng.choice(
        (
            b"",
            b"DICM",
            bytes(128),
            b"PK\x03\x04".ljust(128, b"\0") + b"DICM",
            b"II*\0".ljust(128, b"\0") + b"DICM",
            bytes(128) + b"dicm",
            bytes(132) + b"DICM",
        )
    )


@_into(PIECES, DEFLATED)
def deflate_bomb(specimen: Specimen, rng: random.Random) -> None:
    """A deflated data set that swells, by a value in its header or by bytes behind its pixels."""
    if specimen.syntax != DeflatedExplicitVRLittleEndian:
        return
    swollen = bytes(rng.choice((1, 5, 20, 100)) * 2**20)
    tag = rng.choice((0x00091001, 0x00280001, 0x7FE10010, 0x00203000))
    specimen.put(Element(tag, b"OB", swollen))


# -- pieces: encapsulated pixels -----------------------------------------------------------------------------------


def _some_fragment(specimen: Specimen, rng: random.Random) -> int | None:
    if not specimen.fragments or len(specimen.fragments) < 2:
        return None
    return rng.randrange(1, len(specimen.fragments))


@_into(PIECES, PACKED)
def odd_offsets(specimen: Specimen, rng: random.Random) -> None:
    """A Basic Offset Table that points nowhere, or an Extended one that does."""
    if not specimen.fragments:
        return
    count = rng.choice((0, 1, 2, 3, 7, 500))
    total = sum(map(len, specimen.fragments))
    if rng.random() < 0.5:
        numbers = [rng.choice((*LONGS, total & UNDEFINED, (total - 8) & UNDEFINED, 8)) for _ in range(count)]
        specimen.fragments[0] = struct.pack(f"<{count}L", *numbers) + rng.randbytes(rng.choice((0, 0, 1, 3)))
        return
    wide = [rng.choice((*LONGS, total, 2**63, 2**64 - 1, 2**40)) for _ in range(2 * count)]
    specimen.put(
        Element(
            tag_of("ExtendedOffsetTable"),
            rng.choice((b"OV", b"OV", b"OB", b"UN", b"SQ")),
            struct.pack(f"<{count}Q", *wide[:count]),
        )
    )
    if rng.random() < 0.8:
        specimen.put(Element(tag_of("ExtendedOffsetTableLengths"), b"OV", struct.pack(f"<{count}Q", *wide[count:])))


@_into(PIECES, PACKED)
def odd_fragments(specimen: Specimen, rng: random.Random) -> None:
    """Fragments missing, doubled, empty, swapped, split at odd places, or without their delimiter."""
    fragments = specimen.fragments
    at = _some_fragment(specimen, rng)
    if fragments is None or at is None:
        return
    how = rng.randrange(8)
    if how == 0:
        del fragments[at]
    elif how == 1:
        fragments.insert(at, fragments[at])
    elif how == 2:
        fragments[at] = b""
    elif how == 3:
        other = rng.randrange(len(fragments))
        fragments[at], fragments[other] = fragments[other], fragments[at]
    elif how == 4:
        cut = rng.randint(0, len(fragments[at]))
        fragments[at : at + 1] = [fragments[at][:cut], fragments[at][cut:]]
    elif how == 5:
        specimen.delimiter = rng.choice(
            (
                b"",
                b"\xfe\xff",
                struct.pack("<HHL", 0xFFFE, 0xE00D, 0),
                struct.pack("<HHL", 0xFFFE, 0xE0DD, 7),
                rng.randbytes(8),
            )
        )
    elif how == 6:
        del fragments[0]
    else:
        specimen.fragment_lengths[rng.randrange(len(fragments))] = rng.choice((*LONGS, len(fragments[at]) + 2))


@_into(PIECES, PACKED)
def many_fragments(specimen: Specimen, rng: random.Random) -> None:
    """Thousands of fragments, empty or of a byte or two, with many frames that must be found among them."""
    fragments = specimen.fragments
    if not fragments:
        return
    count = rng.choice((100, 2000, 20_000, 90_000, 110_000))
    filler = rng.choice((b"", b"\0\0", b"\xff\xd9"))
    fragments[rng.choice((1, len(fragments))) :] = [filler] * count
    if rng.random() < 0.5:
        fragments[0] = b""
    specimen.put(Element(tag_of("NumberOfFrames"), b"IS", str(rng.choice((1, 3, 19, 20))).encode()))


@_into(PIECES, PACKED)
def cut_fragment(specimen: Specimen, rng: random.Random) -> None:
    """A compressed stream ends early, with or without an end marker."""
    at = _some_fragment(specimen, rng)
    if at is not None and specimen.fragments:
        stream = specimen.fragments[at]
        specimen.fragments[at] = stream[: rng.randint(0, len(stream))] + rng.choice(
            (b"", b"\xff\xd9", b"\0" * 50 + b"\xff\xd9")
        )


@_into(PIECES, PACKED)
def flipped_fragment(specimen: Specimen, rng: random.Random) -> None:
    """Bits flip in a compressed stream, anywhere or in its first hundred bytes."""
    at = _some_fragment(specimen, rng)
    if at is None or not specimen.fragments or not specimen.fragments[at]:
        return
    stream = bytearray(specimen.fragments[at])
    reach = min(len(stream), rng.choice((100, len(stream))))
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        stream[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    specimen.fragments[at] = bytes(stream)


@_into(PIECES, tuple(name for name in PACKED if "rle" not in name))
def odd_segment(specimen: Specimen, rng: random.Random) -> None:
    """A marker segment of a JPEG, JPEG-LS or JPEG 2000 stream: a number in it changes, it is doubled, or missing."""
    at = _some_fragment(specimen, rng)
    if at is None or not specimen.fragments:
        return
    stream = bytearray(specimen.fragments[at])
    segments = list(_segments(stream))
    if not segments:
        return
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        start, end = rng.choice(segments)
        how = rng.random()
        if how < 0.75 and end - start > 4:
            width = rng.choice((1, 1, 2, 2, 4))
            place = rng.randrange(start + 2, end)
            value = rng.choice((*LONGS, *SHORTS)) & ((1 << 8 * width) - 1)
            stream[place : place + width] = value.to_bytes(width, "big")
        elif how < 0.85:
            stream[end:end] = stream[start:end] * rng.choice((1, 2, 500))
            break
        elif how < 0.95:
            del stream[start:end]
            break
        else:
            stream[start + 1] = rng.choice(
                (
                    0xC0,
                    0xC1,
                    0xC2,
                    0xC3,
                    0xC4,
                    0xC9,
                    0xCF,
                    0xDA,
                    0xDB,
                    0xDD,
                    0xE0,
                    0xEE,
                    0xF7,
                    0xF8,
                    0xFE,
                    0x4F,
                    0x51,
                    0x52,
                    0x53,
                    0x55,
                    0x5C,
                    0x5F,
                    0x90,
                    0x93,
                    0xD9,
                    0x00,
                    0xFF,
                )
            )
    specimen.fragments[at] = bytes(stream)


def _segments(stream: bytes | bytearray) -> list[tuple[int, int]]:
    """(start, end) of the marker segments of a sound stream, up to its entropy coded data."""
    found, at = [], max(0, stream.find(b"\xff\x4f\xff\x51")) + 2
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        found.append((at, min(end, len(stream))))
        if stream[at + 1] in (0xDA, 0x93):
            break
        at = end
    return found


@_into(PIECES, tuple(name for name in PACKED if "rle" not in name))
def absurd_codestream(specimen: Specimen, rng: random.Random) -> None:
    """JPEG 2000 with absurd tiles, components, subsampling, levels, layers, code blocks; JPEG with absurd sizes."""
    at = _some_fragment(specimen, rng)
    if at is None or not specimen.fragments:
        return
    stream = bytearray(specimen.fragments[at])
    siz = stream.find(b"\xff\x51")
    if siz > 0 and siz + 47 < len(stream):
        # (offset in SIZ, width): image and tile geometry, components, precision, steps
        for place, width in rng.sample(
            (
                (4, 2),
                (6, 4),
                (10, 4),
                (14, 4),
                (18, 4),
                (22, 4),
                (26, 4),
                (30, 4),
                (34, 4),
                (38, 2),
                (40, 1),
                (41, 1),
                (42, 1),
            ),
            rng.randint(1, 3),
        ):
            value = rng.choice((*LONGS, *SHORTS, 44, 36)) & ((1 << 8 * width) - 1)
            if place in (6, 10) and rng.random() < 0.8:
                continue  # most sizes must agree with the header to come any further
            stream[siz + place : siz + place + width] = value.to_bytes(width, "big")
        cod = stream.find(b"\xff\x52")
        if cod > 0 and rng.random() < 0.7:
            place = cod + rng.choice((4, 5, 6, 7, 8, 9, 10, 11, 12, 13))
            stream[place] = rng.choice((0, 1, 2, 4, 5, 6, 10, 32, 33, 127, 128, 255))
    else:
        for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xf7"):
            sof = stream.find(marker)
            if sof > 0:
                place, width = rng.choice(((4, 1), (5, 2), (7, 2), (9, 1), (11, 1), (12, 1), (2, 2)))
                value = rng.choice((*SHORTS, 44, 36)) & ((1 << 8 * width) - 1)
                stream[sof + place : sof + place + width] = value.to_bytes(width, "big")
    specimen.fragments[at] = bytes(stream)


@_into(PIECES, tuple(name for name in PACKED if "j2k" in name or "jp2" in name))
def many_parts(specimen: Specimen, rng: random.Random) -> None:
    """JPEG 2000 of a megapixel, in header and stream, in tiles, precincts, blocks or layers that are far too many."""
    at = _some_fragment(specimen, rng)
    if at is None or not specimen.fragments:
        return
    rows, columns = rng.choice(((1000, 1000), (15, 65535), (400, 2500)))
    specimen.put(Element(tag_of("Rows"), b"US", _us(specimen, rows)))
    specimen.put(Element(tag_of("Columns"), b"US", _us(specimen, columns)))
    stream = bytearray(specimen.fragments[at])
    siz, cod = stream.find(b"\xff\x51"), stream.find(b"\xff\x52")
    if siz < 0 or cod < 0 or len(stream) < cod + 30:
        return
    stream[siz + 6 : siz + 14] = struct.pack(">LL", columns, rows)
    stream[siz + 22 : siz + 30] = struct.pack(
        ">LL", *rng.choice(((columns, rows), (columns, rows), (256, 256), (9, 9)))
    )
    stream[cod + 6 : cod + 8] = struct.pack(">H", rng.choice((1, 1, 20, 65535)))
    stream[cod + 10 : cod + 12] = bytes(rng.choice(((0, 0), (4, 4), (0, 8))))
    levels = rng.choice((stream[cod + 9], 0, 32))
    stream[cod + 9] = levels
    length = int.from_bytes(stream[cod + 2 : cod + 4], "big")
    segment = stream[cod : cod + 2 + length]
    if rng.random() < 0.8 and len(segment) > 10:
        segment[4] |= 1
        segment = segment[:14] + bytes([17 * rng.choice((0, 1, 2, 4, 6, 15))]) * (levels + 1)
        segment[2:4] = struct.pack(">H", len(segment) - 2)
    part = stream.find(b"\xff\x90")
    if rng.random() < 0.3 and part > 0:  # in the header of a tile-part, where it overrides
        stream[part + 12 : part + 12] = segment
        stream[part + 6 : part + 10] = bytes(4)
    else:
        stream[cod : cod + 2 + length] = segment
    specimen.fragments[at] = bytes(stream)


@_into(PIECES)
def stream_of_another(specimen: Specimen, rng: random.Random) -> None:
    """The fragments are another codec's, or another radiograph's."""
    donor = sound.specimen(rng.choice([name for name in sound.MAKERS if not name.startswith("sample")]))
    if specimen.fragments and donor.fragments:
        specimen.fragments[1:] = donor.fragments[1:]
    elif specimen.fragments:
        specimen.fragments = None
    elif donor.fragments:
        specimen.fragments = donor.fragments


@_into(PIECES, PACKED)
def enlarged(specimen: Specimen, rng: random.Random) -> None:
    """Header and stream agree on a far larger image than the stream holds."""
    at = _some_fragment(specimen, rng)
    rows, columns = rng.choice(((1000, 1000), (999, 1001), (1, 65535), (65535, 15), (3000, 300)))
    specimen.put(Element(tag_of("Rows"), b"US", _us(specimen, rows)))
    specimen.put(Element(tag_of("Columns"), b"US", _us(specimen, columns)))
    if at is None or not specimen.fragments:
        return
    stream = bytearray(specimen.fragments[at])
    siz = stream.find(b"\xff\x4f\xff\x51")
    if siz >= 0:
        stream[siz + 8 : siz + 16] = struct.pack(">LL", columns, rows)
        if rng.random() < 0.5:
            stream[siz + 24 : siz + 32] = struct.pack(
                ">LL", *rng.choice(((columns, rows), (1, 1), (7, 3), (columns, 1)))
            )
    for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xf7"):
        sof = stream.find(marker)
        if siz < 0 and sof > 0:
            stream[sof + 5 : sof + 9] = struct.pack(">HH", rows, columns)
            break
    specimen.fragments[at] = bytes(stream)


@_into(PIECES, ("rle", "sample-rle"))
def odd_rle(specimen: Specimen, rng: random.Random) -> None:
    """An RLE header with absurd segment counts and offsets, or runs beyond the frame."""
    at = _some_fragment(specimen, rng)
    if at is None or not specimen.fragments or specimen.syntax != sound.RLE:
        return
    stream = bytearray(specimen.fragments[at])
    for _ in range(rng.randint(1, 4)):
        place = 4 * rng.randrange(16)
        value = rng.choice((*LONGS, 64, 65, 1, len(stream), len(stream) - 1, 0xFFFFFFC0))
        stream[place : place + 4] = struct.pack("<L", value)
    if rng.random() < 0.4:
        stream[64:] = rng.choice((b"\x81\xff" * 5000, b"\x7f" * 300, b"\x80" * 4000, b"\x81", b"", rng.randbytes(500)))
    specimen.fragments[at] = bytes(stream)


# -- body: the data set's bytes, before they are deflated ----------------------------------------------------------


def _parts(data: bytes, order: str) -> tuple[int, int]:
    """Where Pixel Data begins in a data set; its end where it has none."""
    at = data.find(struct.pack(f"{order}HH", 0x7FE0, 0x0010))
    return (at if at >= 0 else len(data)), len(data)


def _changed(data: bytes, begin: int, end: int, rng: random.Random) -> bytes:
    """Some bytes between begin and end are others."""
    changed = bytearray(data)
    if end <= begin:
        return data
    for _ in range(rng.choice((1, 1, 2, 3, 8, 30))):
        at = rng.randrange(begin, end)
        how = rng.random()
        if how < 0.5:
            changed[at] ^= 1 << rng.randrange(8)
        elif how < 0.8:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0xFE, 0x20, 0x5C, rng.randrange(256)))
        else:
            width = rng.choice((2, 4, 8))
            changed[at : at + width] = rng.choice((b"\xff", b"\0", b"\x80", b"\xfe\xff", b"\xe0\x7f")) * width
            del changed[len(data) :]
    return bytes(changed)


@_into(BODY)
def flipped_header(specimen: Specimen, rng: random.Random) -> None:
    """Bits and bytes of the header change."""
    data = specimen.body_bytes()
    begin, _ = _parts(data, specimen.order)
    specimen.inflated = _changed(data, 0, begin, rng)


@_into(BODY)
def flipped_pixels(specimen: Specimen, rng: random.Random) -> None:
    """Bits and bytes from Pixel Data on change: its tag, VR, length, items, values."""
    data = specimen.body_bytes()
    begin, end = _parts(data, specimen.order)
    specimen.inflated = _changed(data, begin, min(end, begin + rng.choice((12, 40, 200, 10**9))), rng)


@_into(BODY)
def cut_body(specimen: Specimen, rng: random.Random) -> None:
    """The data set ends early: in its header, around the start of Pixel Data, or in the pixels."""
    data = specimen.body_bytes()
    begin, end = _parts(data, specimen.order)
    at = rng.choice(
        (rng.randint(0, begin), begin + rng.randint(-12, 40), rng.randint(begin, end), end - rng.randint(0, 20))
    )
    specimen.inflated = data[: max(0, at)]


@_into(BODY)
def spliced_body(specimen: Specimen, rng: random.Random) -> None:
    """A stretch of the data set is left out, doubled, or taken from another file."""
    data = specimen.body_bytes()
    start = rng.randint(0, len(data))
    end = min(len(data), start + rng.choice((1, 2, 4, 8, 12, 100, 1000)))
    donor = sound.specimen(rng.choice([name for name in sound.MAKERS if not name.startswith("sample")])).body_bytes()
    place = rng.randrange(len(donor))
    specimen.inflated = data[:start] + rng.choice((b"", data[start:end] * 2, donor[place : place + 200])) + data[end:]


@_into(BODY)
def appended_body(specimen: Specimen, rng: random.Random) -> None:
    """Something follows the data set: padding, a second data set, noise."""
    tail = rng.choice(
        (
            bytes(rng.randrange(1, 5000)),
            specimen.body_bytes(),
            rng.randbytes(300),
            struct.pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, 100),
        )
    )
    specimen.inflated = specimen.body_bytes() + tail


# -- bytes: the finished file --------------------------------------------------------------------------------------


@_into(BYTES)
def flipped_file(specimen: Specimen, rng: random.Random) -> None:
    """Bits and bytes anywhere in the file change, or in its first kilobyte."""
    data = specimen.file_bytes()
    specimen.raw = _changed(data, 0, min(len(data), rng.choice((400, 1024, 10**9))), rng)


@_into(BYTES)
def cut_file(specimen: Specimen, rng: random.Random) -> None:
    """The file ends early."""
    data = specimen.file_bytes()
    specimen.raw = data[
        : rng.choice((0, 1, 4, 127, 128, 131, 132, 133, 140, 144, rng.randint(0, len(data)), len(data) - 1))
    ]


@_into(BYTES)
def noise(specimen: Specimen, rng: random.Random) -> None:
    """From some place on, noise."""
    data = specimen.file_bytes()
    specimen.raw = data[: rng.choice((0, 132, 200, rng.randint(0, len(data))))] + rng.randbytes(
        rng.choice((10, 1000, 20_000))
    )


@_into(BYTES, DEFLATED)
def odd_deflate(specimen: Specimen, rng: random.Random) -> None:
    """A deflated data set in a zlib or gzip wrapper, deflated twice, or with bytes behind it."""
    if specimen.syntax != DeflatedExplicitVRLittleEndian:
        return
    whole, body = specimen.file_bytes(), specimen.body_bytes()
    machine = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = machine.compress(body) + machine.flush()
    head = whole[: len(whole) - len(packed)]
    again = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    tail = rng.choice(
        (
            zlib.compress(body),
            zlib.compress(body, wbits=31),
            again.compress(packed) + again.flush(),
            packed + rng.randbytes(99),
            packed[:-3],
            b"",
            b"\x03\0",
            body,
        )
    )
    specimen.raw = head + tail


LEVELS = (PIECES, BODY, BYTES)
ALL = dict(itertools.chain.from_iterable(level.items() for level in LEVELS))
