"""Headers: every kind of broken file has its own error, memory is bounded, and no error names a patient."""

import io
import logging
import os
import re
import shutil
import struct
import subprocess
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from datetime import date, time
from pathlib import Path

import pydicom.uid as uids
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID

from samples.objects import SYNTAX, pattern_image, report, set_pixels, to_bytes
from shared import errors
from shared.dicom.elements import MAX_READS, decimals, decode_iso2022
from shared.dicom.header import Inflation, age_years, date_of, read_header, series_without_uid, time_of
from shared.dicom.image import ImageLimits
from shared.domain.study import Header, ProcedureRequest, Series
from shared.pixels.decode import open_pixels
from shared.settings import ROOT

MARKER = "ZEBRA^QUAGGA"
EXPLICIT = SYNTAX["explicit"]
SEQUENCE = b"\x09\x00\x01\x10SQ\0\0\xff\xff\xff\xff"
ITEM, ITEM_END = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0"
EMPTY_ITEM, SEQUENCE_END = b"\xfe\xff\x00\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"


class CountingFile(io.BytesIO):
    """Counts the bytes that were read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def read(data: bytes, limits: ImageLimits | None = None) -> Header:
    return read_header(io.BytesIO(data), len(data), limits or ImageLimits())


def image(change: Callable[[Dataset], object] = lambda _: None, syntax: str = EXPLICIT) -> bytes:
    """A sound little radiograph of the marked patient, changed."""
    ds = pattern_image(1, "a")
    ds.PatientName, ds.PatientID = MARKER, "ZEBRA-1"
    change(ds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some changes are wrong on purpose
        return to_bytes(ds, syntax)


def without(keyword: str) -> bytes:
    return image(lambda ds: delattr(ds, keyword))


def having(**values: object) -> bytes:
    return image(lambda ds: [setattr(ds, name, value) for name, value in values.items()])


def before_rows(data: bytes, inserted: bytes) -> bytes:
    at = data.index(b"\x28\x00\x02\x00US")
    return data[:at] + inserted + data[at:]


SOUND = image()
META_END = 132 + 12 + struct.unpack("<L", SOUND[140:144])[0]
PIXELS = SOUND.index(b"\xe0\x7f\x10\x00")
ROWS = SOUND.index(b"\x28\x00\x10\x00US")


def encoded_as(syntax: str) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        set_pixels(ds, [dcmread(io.BytesIO(SOUND)).pixel_array], 8, syntax)

    return change


def cut_in_pixels(data: bytes) -> bytes:
    return data[: data.index(b"\xe0\x7f\x10\x00") + 14]


def test_sound_file() -> None:
    """A sound header comes back whole, identity apart, and an identity never prints itself."""
    header = read(SOUND)
    assert (header.rows, header.columns, header.frames, header.modality, header.body_part) == (
        128,
        128,
        1,
        "CR",
        "HAND",
    )
    assert header.transfer_syntax_uid == EXPLICIT
    assert header.identity.patient_name == MARKER
    assert "ZEBRA" not in repr(header)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "deflated", "rle", "jpegls", "jpeg2000", "jpegsv1"])
def test_every_syntax_reads_the_same(syntax: str) -> None:
    """The header does not depend on how the file is encoded."""
    header, expected = read(image(encoded_as(syntax), SYNTAX[syntax])), read(SOUND)
    assert (header.sop_instance_uid, header.rows, header.identity) == (
        expected.sop_instance_uid, expected.rows, expected.identity,
    )  # fmt: skip


def test_missing_preamble() -> None:
    """Files that lost their preamble are read."""
    assert read(SOUND[132:]).rows == 128


REFUSED: dict[str, tuple[bytes, type[errors.Rejected]]] = {
    "no bytes": (b"", errors.EmptyFile),
    "a text": (b"Dear colleague, " * 50, errors.NotDicom),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(500), errors.NotDicom),
    "one byte": (b"\x08", errors.NotDicom),
    "a data set without meta": (SOUND[META_END:], errors.NoFileMeta),
    "DICM and nothing more": (bytes(128) + b"DICM", errors.NoFileMeta),
    "no transfer syntax": (SOUND.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x11\x00UI"), errors.NoFileMeta),
    "no pixels": (without("PixelData"), errors.NoPixelData),
    "empty pixels": (having(PixelData=b""), errors.NoPixelData),
    "60000 x 60000": (having(Rows=60000, Columns=60000), errors.TooLarge),
    "too many frames": (having(NumberOfFrames=100_000), errors.TooLarge),
    "too much memory": (having(Rows=7000, Columns=7000, NumberOfFrames=150, BitsAllocated=32), errors.TooLarge),
    "header cut in meta": (SOUND[:200], errors.Rejected),
    "header cut in an element": (SOUND[: ROWS + 5], errors.CannotUnderstand),
    "header cut in a skipped value": (
        before_rows(SOUND, b"\x09\x00\x02\x10OB\0\0" + struct.pack("<L", 2**20) + b"x")[: ROWS + 20],
        errors.CannotUnderstand,
    ),
    "header cut between elements": (SOUND[:ROWS], errors.BadAttributes),
    "pixels cut": (SOUND[:-1000], errors.TruncatedPixels),
    "encapsulated pixels cut": (
        cut_in_pixels(image(encoded_as("jpegls"), SYNTAX["jpegls"])),
        errors.TruncatedPixels,
    ),
    "wrong VR: a text for Rows": (SOUND[:ROWS] + b"\x28\x00\x10\x00LO\x02\0xx" + SOUND[ROWS + 10 :], errors.BadAttributes),
    "wrong VR: nonsense": (SOUND[:ROWS] + b"\x28\x00\x10\x00QQ\x02\0\x80\0" + SOUND[ROWS + 10 :], errors.Rejected),
    "rows of zero": (having(Rows=0), errors.BadAttributes),
    "no rows": (without("Rows"), errors.BadAttributes),
    "no study UID": (without("StudyInstanceUID"), errors.BadAttributes),
    "bits of 7": (having(BitsAllocated=7), errors.BadAttributes),
    "an unknown syntax": (SOUND.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"), errors.UnknownTransferSyntax),
    "a video syntax": (SOUND.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.102\0"[:20]), errors.UnknownTransferSyntax),
    "a class that is not stored": (having(SOPClassUID=uids.HangingProtocolStorage), errors.SopClassNotSupported),
    "a class that nobody knows": (having(SOPClassUID="1.2.3.4"), errors.SopClassNotSupported),
    "a structured report, cut": (to_bytes(report(1), EXPLICIT)[:-3], errors.CannotUnderstand),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_broken_files_are_refused(case: str) -> None:
    """Each kind of broken file is refused for its own reason, in words, with a DICOM failure code."""
    data, kind = REFUSED[case]
    with pytest.raises(kind) as caught:
        read(data)
    assert len(str(caught.value)) >= 20
    assert caught.value.failure in {0x0122, 0xA900, 0xA700, 0xC122, *range(0xC000, 0xC100)}
    assert re.fullmatch("[a-z-]+", caught.value.reason)
    assert "ZEBRA" not in str(caught.value)


def test_uid_of_an_injection_is_refused() -> None:
    """A UID holds digits and dots only, so it can be stored and shown as it is."""
    for bad in ("1.2.'; --", "1.2" * 40, "x", "1..2", ""):
        with pytest.raises(errors.BadAttributes):
            read(with_sop_uid(bad))


def with_sop_uid(value: str) -> bytes:
    raw = value.encode() + b"\0" * (len(value) % 2)
    at = SOUND.index(b"\x08\x00\x18\x00UI", META_END)
    length = struct.unpack("<H", SOUND[at + 6 : at + 8])[0]
    return SOUND[: at + 6] + struct.pack("<H", len(raw)) + raw + SOUND[at + 8 + length :]


def test_large_values_are_stepped_over() -> None:
    """A header element of 50 MB costs neither reading nor memory."""
    data = before_rows(SOUND, b"\x09\x00\x02\x10OB\0\0" + struct.pack("<L", 50 * 2**20) + bytes(50 * 2**20))
    file = CountingFile(data)
    assert read_header(file, len(data), ImageLimits()).rows == 128
    assert file.count < 20_000


def test_large_header_is_refused() -> None:
    """A header that must be read, and is larger than the limit, is refused when the limit is reached."""
    data = before_rows(SOUND, SEQUENCE + ITEM + b"\x09\x00\x02\x10OB\0\0" + struct.pack("<L", 2**21) + bytes(2**21)
                       + ITEM_END + SEQUENCE_END)  # fmt: skip
    file = CountingFile(data)
    with pytest.raises(errors.TooLarge):
        read_header(file, len(data), ImageLimits(max_header_bytes=2**20))
    assert file.count <= 2**20 + 10_000
    assert read(data).rows == 128


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fragment", [b"\0\0", b"\xff\x4f\xff\x51" + bytes(96), b"\0" * 300])
def test_fragments_without_end_are_walked_within_the_budget(fragment: bytes) -> None:
    """99,000 fragments that must be looked at one by one cost what a header may cost, and no more."""
    items = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<L", len(each)) + each for each in (b"", *[fragment] * 99_000))
    data = image(encoded_as("jpeg2000"), SYNTAX["jpeg2000"])
    at = data.index(b"\xe0\x7f\x10\x00") + 12
    data = data[:at] + items + b"\xfe\xff\xdd\xe0\0\0\0\0"
    data = before_rows(data, b"\x28\x00\x08\x00IS\x02\x002 ")
    file = CountingFile(data)
    limits = ImageLimits(max_header_bytes=2**20)
    with pytest.raises(errors.Rejected):
        read_header(file, len(data), limits)
    assert file.count <= 2 * limits.max_header_bytes


def test_deep_nesting() -> None:
    """Sequences nested ten thousand deep are refused, and a modest nesting is read."""

    def nested(depth: int) -> bytes:
        return before_rows(SOUND, (SEQUENCE + ITEM) * depth + (ITEM_END + SEQUENCE_END) * depth)

    assert read(nested(20)).rows == 128
    with pytest.raises(errors.Rejected):
        read(nested(10_000))


def test_a_million_empty_items() -> None:
    """A sequence of a million empty items, 8 bytes each, does not blow up to gigabytes of objects."""
    data = before_rows(SOUND, SEQUENCE + EMPTY_ITEM * 1_000_000 + SEQUENCE_END)
    with pytest.raises(errors.TooLarge):
        peak(data)
    assert MAX_READS < 1_000_000
    assert read(before_rows(SOUND, SEQUENCE + EMPTY_ITEM * 5000 + SEQUENCE_END)).rows == 128


def peak(data: bytes, most: int = 100 * 2**20) -> None:
    """Read with the peak of memory watched."""
    tracemalloc.start()
    try:
        read(data)
    finally:
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert used < most, f"{used / 2**20:.0f} MiB"


def deflated(dataset: bytes, after: bytes = b"") -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = image(syntax=SYNTAX["deflated"])
    end = 132 + 12 + struct.unpack("<L", start[140:144])[0]
    return start[:end] + packer.compress(dataset) + packer.flush() + after


def inflated(data: bytes, limits: ImageLimits, most: int = 2**40, ratio: int = 200) -> tuple[Header | str, int]:
    """What read_header says of a file, and how many bytes it inflated for that."""
    inflation = Inflation(most, ratio)
    try:
        said: Header | str = read_header(io.BytesIO(data), len(data), limits, inflation)
    except errors.Rejected as error:
        said = error.reason
    return said, most - inflation.bytes_left


def test_deflate_bomb() -> None:
    """What a deflated data set holds behind its pixels is not inflated, nor what it must not hold."""
    limits = ImageLimits(max_decoded_bytes=2**40, max_header_bytes=2**18, max_frames=2**20)
    sound = len(SOUND) - META_END
    bomb = deflated(SOUND[META_END:] + bytes(20 * 2**20))
    assert len(bomb) < 2**17
    said, used = inflated(bomb, limits)
    assert isinstance(said, Header)
    assert used <= sound
    # pixels that cannot be: refused by what the header says, before any of them is inflated
    claims = before_rows(SOUND, b"\x28\x00\x08\x00IS\x06\x00  1000")[META_END:] + bytes(20 * 2**20)
    said, used = inflated(deflated(claims), limits)
    assert said == errors.TooLarge.reason
    assert used <= sound
    # a value that is stepped over costs its inflation, up to the limit on headers
    value = b"\x09\x00\x02\x10OB\0\0" + struct.pack("<L", 20 * 2**20) + bytes(20 * 2**20)
    said, used = inflated(deflated(value + SOUND[META_END:]), limits)
    assert said == errors.TooLarge.reason
    assert used <= 2**18 + 1


def test_a_budget_for_all_deflated_data_sets_of_a_request() -> None:
    """Once it is used up the next one is refused, and costs nothing."""
    data, limits = deflated(SOUND[META_END:]), ImageLimits()
    _, costs = inflated(data, limits)
    inflation = Inflation(2 * costs, 200)
    for _ in range(2):
        assert read_header(io.BytesIO(data), len(data), limits, inflation).rows == 128
    assert inflation.bytes_left == 0
    with pytest.raises(errors.TooLarge, match="fewer others"):
        read_header(io.BytesIO(data), len(data), limits, inflation)


@given(st.integers(0, 40_000))
@example(6)  # not a whole element's head
def test_a_deflated_data_set_that_was_cut_is_refused_as_a_plain_one(cut: int) -> None:
    """The same reason, wherever it ends: intake looks as far as the pixels reach."""
    body = SOUND[META_END:]
    cut = min(cut, len(body) - 1)

    def reason(data: bytes) -> str:
        try:
            return str(read(data).rows)
        except errors.Rejected as error:
            return error.reason

    assert reason(deflated(body[:cut])) == reason(SOUND[:META_END] + body[:cut])


def test_bytes_behind_a_deflated_data_set() -> None:
    """What follows the deflated data set is not collected in memory."""
    peak(deflated(SOUND[META_END:], bytes(64 * 2**20)), 40 * 2**20)


@pytest.mark.timeout(20)
def test_bytes_behind_a_data_set_that_inflates_to_megabytes() -> None:
    """They are left alone, too: zlib once handed the same rest back for ever, and the reading never ended."""
    data = deflated(SOUND[META_END:] + bytes(3 * 2**20), bytes(range(256)) * 16)
    assert read(data).rows == 128


def test_a_deflated_header_beyond_the_limit() -> None:
    """It is refused for its size, not for what lies behind the part that was read."""
    value = b"\x09\x00\x02\x10OB\0\0" + struct.pack("<L", 3 * 2**20) + bytes(3 * 2**20)
    with pytest.raises(errors.TooLarge):
        read(deflated(value + SOUND[META_END:]), ImageLimits(max_header_bytes=2**20))


def test_numbers_that_no_image_has() -> None:
    """A number of hundreds of digits is refused, and not repeated."""
    for text in (b"9" * 400, b"-" + b"9" * 400, b"4294967296"):
        data = before_rows(SOUND, b"\x28\x00\x08\x00IS" + struct.pack("<H", len(text)) + text)
        with pytest.raises(errors.BadAttributes) as caught:
            read(data)
        assert b"999" not in str(caught.value).encode()


def test_a_sequence_in_a_number_s_place() -> None:
    """Items in Rows are refused before any is made an object."""
    items = EMPTY_ITEM * 5000
    data = SOUND[:ROWS] + b"\x28\x00\x10\x00SQ\0\0" + struct.pack("<L", len(items)) + items + SOUND[ROWS + 10 :]
    with pytest.raises(errors.BadAttributes, match="Rows is a sequence"):
        read(data)


@pytest.mark.parametrize("read_it", [read, open_pixels])
def test_values_that_are_read_before_anybody_asks(read_it: Callable[[bytes], object]) -> None:
    """A character set of millions of parts, or a transfer syntax of a million items, is never taken apart."""
    charset = SOUND.index(b"\x08\x00\x05\x00CS", META_END)
    parts = b"\x08\x00\x05\x00UC\0\0" + struct.pack("<L", 2_000_000) + b"\\" * 2_000_000
    syntax = SOUND.index(b"\x02\x00\x10\x00UI")
    items = b"\x02\x00\x10\x00SQ\0\0" + struct.pack("<L", 8_000_000) + EMPTY_ITEM * 1_000_000
    for data in (
        SOUND[:charset] + parts + SOUND[charset + 18 :],
        SOUND[:syntax] + items + SOUND[syntax + 8 + SOUND[syntax + 6] :],
    ):
        tracemalloc.start()
        with pytest.raises(errors.Rejected):
            read_it(data)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert used < 40 * 2**20


def test_text_that_no_database_takes() -> None:
    """Half a surrogate pair in a name, and controls in a code, are left out: both are stored as text."""
    odd = image(lambda ds: [setattr(ds, "PatientName", "A\\ud800"), setattr(ds, "Modality", "C\x1b[31m")])
    odd = odd.replace(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", b"\x08\x00\x05\x00CS\x0e\x00unicode_escape")
    header = read(odd)
    assert (header.identity.patient_name, header.modality) == ("A?", "C[31m")


@settings(max_examples=400, deadline=None)
@given(
    base=st.sampled_from(
        [SOUND, image(syntax=SYNTAX["implicit"]), image(syntax=SYNTAX["deflated"])]
        + [image(encoded_as(name), SYNTAX[name]) for name in ("rle", "jpegls", "jpeg2000", "jpegsv1")]
    ),
    changes=st.lists(st.tuples(st.integers(0, 1500), st.binary(min_size=1, max_size=6)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 2500)),
)
def test_damaged_files(base: bytes, changes: list[tuple[int, bytes]], cut: int | None) -> None:
    """Whatever is damaged, the result is a header or a Rejected that names nobody, after a bounded reading."""
    data = bytearray(base)
    for at, new in changes:
        data[at : at + len(new)] = new
    data = data[:cut]
    file = CountingFile(bytes(data))
    limits = ImageLimits(max_header_bytes=8192)
    try:
        read_header(file, len(data), limits)
    except errors.Rejected as error:
        assert "ZEBRA" not in str(error)
        assert error.__cause__ is None
    deflate_input = len(data) if b"1.2.840.10008.1.2.1.99" in base else 0
    assert file.count <= 2 * limits.max_header_bytes + 1000 + deflate_input


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_noise(noise: bytes, mark: bool) -> None:
    """Noise is refused, even under a DICM mark."""
    with pytest.raises(errors.Rejected):
        read(bytes(128) + b"DICM" + noise if mark else noise)


def test_odd_values_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Values that break their VR's rules are taken, and neither a log line nor a warning quotes them."""
    odd = having(PatientBirthDate="ZEBRA BORN IN MAY", AccessionNumber="ZEBRA" * 10, PatientName="ZEBRA\\" + "Z" * 90)
    odd = odd.replace(b"ISO_IR 100", b"ISO_IR 999")
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        header = read(odd)
    assert header.identity.accession_number.startswith("ZEBRA")
    assert not warned
    assert "ZEBRA" not in caplog.text


# -- files that another tool kit wrote -------------------------------------------------------------------------------


@pytest.fixture
def dcmtk(tmp_path: Path) -> Callable[..., bytes]:
    """Runs a DCMTK program on a sample file and returns the file that it made."""
    if shutil.which("dcmconv") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("DCMTK must be installed in CI")
        pytest.skip("DCMTK is not installed")

    def run(program: str, *options: str, source: Path | None = None) -> bytes:
        file, out = tmp_path / "in.dcm", tmp_path / "out.dcm"
        file.write_bytes(source.read_bytes() if source else SOUND)
        if program == "dcmodify":
            subprocess.run(["dcmodify", "-nb", *options, file], check=True, capture_output=True)
            return file.read_bytes()
        subprocess.run([program, *options, file, out], check=True, capture_output=True)
        return out.read_bytes()

    return run


@pytest.mark.parametrize(
    "program", [("dcmconv", "+ti"), ("dcmconv", "+tb"), ("dcmconv", "+td"), ("dcmconv", "+e"), ("dcmcjpls",)]
)
def test_files_by_dcmtk(dcmtk: Callable[..., bytes], program: tuple[str, ...]) -> None:
    """What DCMTK writes, in each encoding, reads as the file that it was made from."""
    header, sound = read(dcmtk(*program)), read(SOUND)
    assert (header.study_instance_uid, header.rows, header.identity) == (
        sound.study_instance_uid, sound.rows, sound.identity,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["-e", "PixelData"], errors.NoPixelData),
        (["-m", "Rows=60000", "-m", "Columns=60000"], errors.TooLarge),
        (["-m", "SOPClassUID=1.2.840.10008.5.1.4.38.1"], errors.SopClassNotSupported),
        (["-e", "BitsAllocated"], errors.BadAttributes),
        (["-m", "Rows=500"], errors.TruncatedPixels),
    ],
)
def test_files_broken_by_dcmtk(dcmtk: Callable[..., bytes], options: list[str], kind: type[errors.Rejected]) -> None:
    """Files that DCMTK's dcmodify broke are refused for the right reason."""
    with pytest.raises(kind):
        read(dcmtk("dcmodify", *options))


def test_same_fields_as_dcm2xml(dcmtk: Callable[..., bytes]) -> None:
    """Osteon and DCMTK read the same values from the published sample files."""
    for source in sorted((ROOT / "samples/studies").glob("2[56]-real-*/*.dcm")):
        xml = dcmtk("dcm2xml", source=source).decode("latin-1")
        header = read(source.read_bytes())
        told = [re.findall(rf'name="{name}">([^<]*)<', xml)[:1] for name in ("Rows", "Columns", "Modality")]
        assert told == [
            [str(header.rows)],
            [str(header.columns)],
            [header.modality],
        ]


def test_what_is_taken_in_can_be_decoded() -> None:
    """Each transfer syntax that intake accepts has a decoder."""
    from shared.dicom.header import DECODABLE
    from shared.dicom.image import NATIVE
    from shared.pixels.codecs import _DECODERS

    assert DECODABLE == {*NATIVE, *_DECODERS, SYNTAX["rle"]}


# -- VRs that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vr", [b"--", b"??", b"  ", b"us", b"o1", b"\0\0", b"ZZ"])
@pytest.mark.parametrize("size", [2, 6, 8, 300])
@pytest.mark.parametrize("tag", [b"\x10\x00\x40\x00", b"\x09\x00\x10\x10", b"\x10\x00\x02\x10"])
def test_an_element_of_no_vr_is_stepped_over(vr: bytes, size: int, tag: bytes) -> None:
    """Two bytes of length, as DCMTK takes it; of known tags, private ones, and sequences; at the top and in items."""
    odd = tag + vr + struct.pack("<H", size) + b"x" * size
    at = SOUND.index(b"\x10\x00\x40\x00CS", META_END) if tag[:2] == b"\x10\0" else SOUND.index(b"\x10\x00\x10\x00PN")
    data = SOUND[:at] + odd + SOUND[at:]
    assert (read(data).rows, read(data).identity) == (read(SOUND).rows, read(SOUND).identity)
    assert open_pixels(data).rows == 128
    nested = SEQUENCE + ITEM + b"\x09\x00\x01\x10LO\x02\0ab" + odd + ITEM_END + SEQUENCE_END
    assert read(before_rows(SOUND, nested)).rows == 128


@pytest.mark.parametrize("size", [0, 2, 8, 70_000])
def test_a_vr_of_the_future_has_a_length_of_four_bytes(size: int) -> None:
    """PS3.5 6.2: two reserved bytes, then the length."""
    data = before_rows(SOUND, b"\x21\x00\x10\x10XQ\0\0" + struct.pack("<L", size) + b"x" * size)
    assert read(data).rows == 128
    short = before_rows(SOUND, b"\x21\x00\x10\x10XQ\0\0")  # none at all, in the short form
    assert read(short).rows == 128


@pytest.mark.parametrize("vr", [b"--", b"??", b"us"])
def test_a_wanted_element_of_no_vr_is_read_by_its_tag(vr: bytes) -> None:
    """Rows and a name are what the dictionary says that they are."""
    data = SOUND.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00" + vr).replace(
        b"\x10\x00\x10\x00PN", b"\x10\x00\x10\x00" + vr
    )
    assert (read(data).rows, read(data).identity.patient_name) == (128, MARKER)


# -- texts and numbers ----------------------------------------------------------------------------------------------

SCRIPTS = {
    "ISO 2022 IR 87": ("iso2022_jp", "山田太郎やまだたろう東京都"),
    "ISO 2022 IR 149": ("euc_kr", "김희중길동洪吉洞"),
    "ISO 2022 IR 58": ("gb2312", "张小东王明中文"),
    "ISO 2022 IR 144": ("iso8859_5", "Иванов"),
    "ISO 2022 IR 126": ("iso8859_7", "Διονυσιος"),
    "ISO 2022 IR 166": ("tis_620", "นามสกุล"),
    "ISO 2022 IR 101": ("iso8859_2", "Wałęsa"),
}
ESCAPES = {"ISO 2022 IR 87": b"\x1b$B", "ISO 2022 IR 149": b"\x1b$)C", "ISO 2022 IR 58": b"\x1b$)A",
           "ISO 2022 IR 144": b"\x1b-L", "ISO 2022 IR 126": b"\x1b-F", "ISO 2022 IR 166": b"\x1b-T",
           "ISO 2022 IR 101": b"\x1b-B"}  # fmt: skip


@given(st.data(), st.sampled_from(list(SCRIPTS)))
def test_names_with_code_extensions_are_decoded(data: st.DataObject, charset: str) -> None:
    """Groups and components in ASCII and another set, in any mixture, come back; no escape sequence is left."""
    codec, letters = SCRIPTS[charset]
    raw, expected = b"", ""
    for number in range(data.draw(st.integers(1, 6))):
        delimiter = data.draw(st.sampled_from("^=")) if number else ""
        ascii_part = data.draw(st.text("ABCdef 'x-", max_size=4))
        other = data.draw(st.text(letters, max_size=5))
        packed = other.encode(codec)
        if charset != "ISO 2022 IR 87" and other:
            packed = ESCAPES[charset] + packed
        raw += delimiter.encode() + ascii_part.encode() + packed
        expected += delimiter + ascii_part + other
    assert decode_iso2022(raw, "iso8859") == expected


@given(st.binary(max_size=60), st.sampled_from(["iso8859", "shift_jis", "iso2022_jp", "iso_ir_58", "euc_kr", "UTF8"]))
def test_any_bytes_decode_to_some_text(noise: bytes, first: str) -> None:
    """Whatever stands in a name, decoding it neither fails nor leaves an escape sequence that DICOM knows."""
    text = decode_iso2022(b"\x1b$B" + noise, first)
    assert "\x1b$B" not in text


@given(st.floats(-1e6, 1e6), st.sampled_from([".6f", ".3e", "g"]), st.booleans())
def test_a_decimal_comma_is_a_point(number: float, form: str, several: bool) -> None:
    """The same number by either sign, alone or with others."""
    told = format(number, form)
    ds = Dataset()
    raw = told.replace(".", ",") + ("\\2,5" if several else "")
    ds[0x00281053] = RawDataElement(Tag(0x00281053), "DS", len(raw), raw.encode(), 0, False, True)
    assert decimals(ds, "RescaleSlope") == [float(told), *([2.5] if several else [])]


@pytest.mark.parametrize("text", ["1,024.5", "1.024,5", "1,2,3", "one", "1 2", "0x10", "--1", "inf"])
def test_what_is_no_number_is_refused_by_its_tag(text: str) -> None:
    """Both signs, or two of one, leave more than one meaning."""
    raw = text.encode()
    ds = Dataset()
    ds[0x00281053] = RawDataElement(Tag(0x00281053), "DS", len(raw), raw, 0, False, True)
    with pytest.raises(errors.BadAttributes, match=r"RescaleSlope \(0028,1053\)"):
        decimals(ds, "RescaleSlope")


# -- age and scanner ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "born", "studied", "years"),
    [
        ("034Y", "", "", 34),
        ("018M", "", "", 1),
        ("051W", "", "", 0),
        ("053W", "", "", 1),
        ("900D", "", "", 2),
        ("090Y", "", "", 90),
        ("101Y", "", "", 90),
        ("000D", "", "", 0),
        ("034Y", "19000101", "20260101", 34),  # what was written at the study counts
        ("", "20000301", "20260228", 25),
        ("", "20000301", "20260301", 26),
        ("", "20240229", "20250228", 0),
        ("", "19000101", "20260101", 90),
        ("34", "20000301", "20260301", 26),
        ("ABCY", "", "", None),
        ("", "20000301", "", None),
        ("", "20000301", "19990101", None),
        ("", "20001301", "20260301", None),
        ("", "2000.3.1", "20260301", None),
        ("", "", "", None),
    ],
)
def test_age(age: str, born: str, studied: str, years: int | None) -> None:
    """The age at the study in whole years, as written or by the two dates; above 90 it would tell who it is."""
    assert age_years(age, born, studied) == years


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_any_age_is_none_or_believable(age: str, born: str, studied: str) -> None:
    """Whatever stands there, an age is from 0 to 90, or not known."""
    assert age_years(age, born, studied) in {None, *range(91)}


@pytest.mark.parametrize(
    ("maker", "model", "scanner"),
    [
        ("ACME", "Ray 3", "ACME Ray 3"),
        ("Acme", "ACME Ray 3", "ACME Ray 3"),
        ("", "Ray 3", "Ray 3"),
        ("ACME", "", "ACME"),
        (" ACME  Ltd ", "Ray\t3\x1b", "ACME Ltd Ray 3"),
        ("A" * 64, "B" * 64, "A" * 64 + " " + "B" * 63),
        ("", "", ""),
    ],
)
def test_scanner(maker: str, model: str, scanner: str) -> None:
    """Maker and model in one line, without what cannot be seen."""
    assert read(having(Manufacturer=maker, ManufacturerModelName=model)).scanner == scanner


def test_age_is_read_from_the_header() -> None:
    """Both ways an age may be written are read, and a damaged one turns no file away."""
    assert read(having(PatientAge="007Y")).age_years == 7
    assert read(having(PatientBirthDate="20100102", StudyDate="20260101")).age_years == 15
    assert read(having(PatientAge="seven")).age_years is None
    assert read(having(PatientAge=["007Y", "008Y"])).age_years is None


# -- the examination ------------------------------------------------------------------------------------------------


def test_examination_is_read() -> None:
    """All that names the examination, each from its own tag."""
    told = read(
        having(
            PatientSex="f", StudyDate="20261128", StudyTime="140207.123", StudyDescription="Lower leg  2 views",
            SeriesDescription="AP\tright", ImageLaterality="R", Laterality="L", ViewPosition="AP", Manufacturer="AGFA",
            ManufacturerModelName="DX-D", IssuerOfPatientID="ST ANNA", BodyPartExamined="TIBIA FIBULA",
        )
    )  # fmt: skip
    seen = told.examination
    assert (seen.sex, seen.study_date, seen.study_time) == ("F", date(2026, 11, 28), time(14, 2, 7))
    assert (seen.laterality, seen.view, seen.manufacturer, seen.model) == ("R", "AP", "AGFA", "DX-D")
    assert (told.identity.study_description, seen.series_description) == ("Lower leg 2 views", "AP right")
    assert (told.identity.issuer, told.body_part) == ("ST ANNA", "TIBIA FIBULA")


def test_side_and_view_by_other_tags() -> None:
    """A CR has Laterality where a DX has Image Laterality, and a DX may say its view by a code alone."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "399067008", "SCT", "lateral projection"
    told = read(having(Laterality="L", ViewPosition="", ViewCodeSequence=[code])).examination
    assert (told.laterality, told.view) == ("L", "lateral projection")
    assert read(having(ImageLaterality="U", Laterality="")).examination.laterality == ""
    assert read(having(ViewPosition="", ViewCodeSequence=[])).examination.view == ""


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("20261128", date(2026, 11, 28)),
        ("2026.11.28", date(2026, 11, 28)),
        ("20260230", None),
        ("2026", None),
        ("", None),
    ],
)
def test_dates(text: str, when: date | None) -> None:
    """A date, or none: never another one."""
    assert date_of(text) == when


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("140207", time(14, 2, 7)), ("1402", time(14, 2)), ("14", time(14)), ("14:02:07", time(14, 2, 7)),
        ("140207.5", time(14, 2, 7)), ("235960", time(23, 59, 59)), ("2460", None), ("noon", None), ("", None),
    ],
)  # fmt: skip
def test_times(text: str, when: time | None) -> None:
    """A time to the second, or none."""
    assert time_of(text) == when


def test_series_is_read() -> None:
    """All that QIDO-RS returns of a series and an instance, each from its own tag."""
    request = Dataset()
    request.ScheduledProcedureStepID, request.RequestedProcedureID = "SPS-1", "RP-1"
    told = read(
        having(
            SeriesInstanceUID="1.2.3.4", SeriesNumber="7", InstanceNumber="-3", SeriesDescription="Hand  PA",
            SeriesDate="20261128", SeriesTime="1402", ProtocolName="HAND", PerformedProcedureStepStartDate="20261127",
            PerformedProcedureStepStartTime="2359", PerformedProcedureStepID="PPS-1",
            PerformedProcedureStepDescription="hand", RequestAttributesSequence=[request, Dataset()], StudyID="S-1",
            ReferringPhysicianName="DOE^JIM", TimezoneOffsetFromUTC="+0100",
        )
    )  # fmt: skip
    assert told.series == Series(
        "1.2.3.4", 7, "Hand PA", "HAND", date(2026, 11, 28), time(14, 2), date(2026, 11, 27), time(23, 59), "PPS-1",
        "hand", (ProcedureRequest("SPS-1", "RP-1"),),
    )  # fmt: skip
    assert (told.instance_number, told.bits_allocated, told.examination.utc_offset) == (-3, 8, "+0100")
    assert (told.identity.dicom_study_id, told.identity.referring_physician) == ("S-1", "DOE^JIM")


@pytest.mark.parametrize("uid", ["", "no uid", "1." * 40 + "1"])
def test_instances_without_a_series_uid_are_one_series_of_their_study(uid: str) -> None:
    """It is the same for all of them, another one in another study, and no reason to turn a file away."""
    one, other = read(having(SeriesInstanceUID=uid)), read(having(SeriesInstanceUID=uid, StudyInstanceUID="1.2.3"))
    assert one.series is not None and other.series is not None
    assert one.series.instance_uid == series_without_uid(one.study_instance_uid) != other.series.instance_uid
    assert UID(one.series.instance_uid).is_valid


@given(
    st.sampled_from(["SeriesNumber", "InstanceNumber"]),
    st.text(st.characters(codec="ascii", exclude_characters="\\"), max_size=14),
)
@settings(max_examples=60, deadline=None)
def test_an_odd_number_is_none(keyword: str, value: str) -> None:
    """Whatever stands there, it is a number of 32 bits or nothing, and the file is taken in."""
    ds = pattern_image(1, "numbered")
    ds[keyword] = DataElement(keyword, "LO", value)  # as it stands in the file: IS would refuse it here
    told = read(to_bytes(ds, uids.ExplicitVRLittleEndian))
    assert told.series is not None
    number = told.series.number if keyword == "SeriesNumber" else told.instance_number
    plain = value.replace("\0", "").strip()
    assert number == (int(plain) if re.fullmatch(r"[+-]?[0-9]{1,10}", plain) and abs(int(plain)) < 2**31 else None)


@given(st.sampled_from(["PatientSex", "StudyDate", "StudyTime", "StudyDescription", "SeriesDescription", "Laterality", "ViewPosition", "ManufacturerModelName", "IssuerOfPatientID", "StudyID", "ProtocolName", "SeriesDate", "TimezoneOffsetFromUTC", "PerformedProcedureStepID"]), st.text(st.characters(codec="latin-1"), max_size=80))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_an_odd_examination_turns_no_file_away(keyword: str, value: str) -> None:
    """Whatever stands in these tags, the image is taken in, and what is kept of it can be seen and is short."""
    told = read(having(**{keyword: value.replace("\\", "")}))
    kept = [
        told.identity.study_description,
        told.identity.dicom_study_id,
        *(text for text in vars(told.series).values() if isinstance(text, str)),
        *(text for text in vars(told.examination).values() if isinstance(text, str)),
    ]
    assert all(text.isprintable() and len(text) <= 64 for text in kept)
    assert "repr" not in repr(told.examination) and MARKER not in repr(told)
