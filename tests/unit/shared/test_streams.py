"""Where frames lie and what their streams say: a wrong second frame is worse than none, and intake sees all of it."""

import io
import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate

from samples.objects import SYNTAX, encode, pattern_image, set_pixels, to_bytes
from shared import errors
from shared.dicom.header import read_header
from shared.dicom.image import ImageLimits
from shared.pixels.decode import open_pixels
from shared.settings import ROOT
from tests.fuzz import sound

JPEG = "1.2.840.10008.1.2.4."


def radiograph(number: int) -> np.ndarray:
    """A frame that is none of the others: (24, 20) uint8."""
    return np.random.default_rng(number).integers(0, 256, (24, 20)).astype("u1")


STREAMS: dict[str, Callable[[np.ndarray], bytes]] = {
    SYNTAX["rle"]: lambda pixels: encode(pixels, "rle", 8),
    JPEG + "70": lambda pixels: bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1)),
    JPEG + "80": lambda pixels: bytes(imagecodecs.jpegls_encode(pixels)),
    JPEG + "90": lambda pixels: bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", reversible=True)),
    JPEG + "201": lambda pixels: bytes(imagecodecs.htj2k_encode(pixels, reversible=True)),
}


def encapsulated(syntax: str, frames: int, table: bytes, fragments: list[bytes]) -> bytes:
    """A file of these fragments, whatever the table says."""
    ds = pattern_image(1, "frames")
    set_pixels(ds, [radiograph(0)], 8, "jpegls", [b"\0\0"])
    ds.NumberOfFrames = frames
    items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in (table, *fragments))
    ds.PixelData = items + b"\xfe\xff\xdd\xe0\0\0\0\0"
    ds["PixelData"].is_undefined_length = True
    return to_bytes(ds, syntax)


def taken_in(content: bytes) -> None:
    """Raises Rejected as intake does."""
    read_header(io.BytesIO(content), len(content), ImageLimits())


@st.composite
def tables(draw: st.DrawFn, syntax: str) -> tuple[int, bytes, list[bytes], str]:
    """Number of frames, offset table, fragments, and what is wrong with the table."""
    frames = draw(st.integers(1, 4))
    fragments, starts = [], []
    at = 0
    for number in range(frames):
        stream = STREAMS[syntax](radiograph(number))
        padding = [b"", b"\0" * 64, b"\0" * 5000, b"\xff" * 10]
        stream += b"\0" * (len(stream) % 2) + draw(st.sampled_from(padding[: 3 if syntax == SYNTAX["rle"] else 4]))
        # only RLE forbids fragments of a frame, for nothing marks its end
        cuts = draw(
            st.lists(st.integers(1, len(stream) // 2 - 1), max_size=0 if syntax == SYNTAX["rle"] else 3, unique=True)
        )
        edges = [0, *(2 * cut for cut in sorted(cuts)), len(stream)]
        starts.append(at)
        for begin, end in itertools.pairwise(edges):
            fragments.append(stream[begin:end])
            at += 8 + end - begin
    wrong = draw(st.sampled_from(["right", "none", "zeros", "absolute", "short", "long", "shuffled", "random", "odd"]))
    offsets = {
        "right": starts,
        "none": [],
        "zeros": [0] * frames,
        "absolute": [start + draw(st.integers(1, 5000)) for start in starts],
        "short": starts[:-1],
        "long": [*starts, at],
        "shuffled": draw(st.permutations(starts)),
        "random": [draw(st.integers(0, 2**32 - 1)) for _ in starts],
        "odd": starts,
    }[wrong]
    table = struct.pack(f"<{len(offsets)}L", *offsets) + (b"\0\0" if wrong == "odd" else b"")
    return frames, table, fragments, wrong


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(list(STREAMS)))
def test_frames_are_right_whatever_the_table_says(data: st.DataObject, syntax: str) -> None:
    """Right, missing or useless: intake takes the file, and each frame is its own, in order."""
    frames, table, fragments, _wrong = data.draw(tables(syntax))
    content = encapsulated(syntax, frames, table, fragments)
    taken_in(content)
    source = open_pixels(content)
    assert source.frames == frames
    for number in range(frames):
        np.testing.assert_array_equal(source.stored(number), radiograph(number))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(list(STREAMS)))
def test_no_damage_gives_another_frame(data: st.DataObject, syntax: str) -> None:
    """Fragments left out, doubled or in another order: frames in their order, or a refusal; never a wrong one.

    What is put together in another order and still is a whole stream is that stream: no file can tell.
    """
    frames, table, fragments, _wrong = data.draw(tables(syntax))
    number = data.draw(st.integers(0, len(fragments) - 1))
    change = data.draw(st.sampled_from(["left out", "doubled", "cut"]))
    changed = {
        "left out": fragments[:number] + fragments[number + 1 :],
        "doubled": fragments[: number + 1] + fragments[number:],
        "cut": [*fragments[:number], fragments[number][: len(fragments[number]) // 4 * 2], *fragments[number + 1 :]],
    }[change]
    content = encapsulated(syntax, frames, table, changed)
    whole = [radiograph(i) for i in range(frames)]
    try:
        source = open_pixels(content)
        for i in range(source.frames):
            assert any(np.array_equal(source.stored(i), one) for one in whole)
    except (errors.UndecodablePixels, errors.TruncatedPixels, errors.UnsupportedPixels):
        return
    except AssertionError:
        # a stream that lost a part within can decode to other pixels of its own frame; it is never mixed with another
        assert change != "doubled" or len(fragments) > frames


@pytest.mark.parametrize(
    ("syntax", "known"),
    [("explicit", False), ("explicit", True), ("implicit", False), ("implicit", True), ("deflated", True)],
)
def test_items_under_an_uncompressed_syntax_are_no_pixels(syntax: str, known: bool) -> None:
    """However long Pixel Data says it is, a table and fragments are told from samples."""
    ds = pattern_image(1, "items")
    set_pixels(ds, [radiograph(0)], 8, "explicit")
    stream = STREAMS[JPEG + "80"](radiograph(0))
    stream += b"\0" * (len(stream) % 2)
    items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in (b"", stream))
    ds.PixelData = items + b"\xfe\xff\xdd\xe0" + bytes(4)
    assert len(ds.PixelData) >= radiograph(0).size  # long enough to pass for samples
    content = to_bytes(ds, SYNTAX[syntax])
    if not known:
        at = content.rindex(b"\xe0\x7f\x10\x00") + (4 if syntax == "implicit" else 8)
        content = content[:at] + b"\xff" * 4 + content[at + 4 :]
    for read in (taken_in, open_pixels):
        with pytest.raises(errors.UndecodablePixels, match=r"transfer syntax \(0002,0010\)"):
            read(content)


@pytest.mark.parametrize("number", ["90", "91", "201", "202", "203"])
@pytest.mark.parametrize("coder", ["90", "201"])
def test_either_coder_of_jpeg_2000_is_read_under_either_name(number: str, coder: str) -> None:
    """A stream says itself which block coder it has."""
    content = encapsulated(JPEG + number, 1, b"", [STREAMS[JPEG + coder](radiograph(1))])
    taken_in(content)
    np.testing.assert_array_equal(open_pixels(content).stored(0), radiograph(1))


@pytest.mark.parametrize(("bits", "read"), [(17, True), (24, True), (25, False), (32, False)])
def test_jpeg_2000_is_read_as_far_as_it_is_exact(bits: int, read: bool) -> None:
    """OpenJPEG gives other values beyond 24 bits, without a word."""
    pixels = np.random.default_rng(bits).integers(0, 1 << bits, (24, 20)).astype("u4")
    ds = pattern_image(1, "deep")
    set_pixels(ds, [radiograph(0)], 8, "jpegls", [b"\0\0"])
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 32, bits, bits - 1
    stream = bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", reversible=True, bitspersample=bits))
    ds.PixelData = encapsulate([stream])
    ds["PixelData"].is_undefined_length = True
    content = to_bytes(ds, JPEG + "90")
    if read:
        taken_in(content)
        np.testing.assert_array_equal(open_pixels(content).stored(0), pixels)
    else:
        with pytest.raises(errors.UnsupportedPixels, match="up to 24"):
            taken_in(content)


# -- what intake takes, the decoder does not refuse for a reason that intake could see ------------------------------

FOLDERS = ("tests/data/dicom/files", "tests/data/field_reports", "samples/studies", "samples/broken")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file())
DAMAGED_WITHIN = {"966.dcm"}  # its marker segments are sound, its packets are not


def agree(content: bytes) -> str:
    """Take it in and decode it; returns what came of that, or fails where the two differ."""
    limits = ImageLimits(max_frame_pixels=10_000_000, max_decoded_bytes=10**8, max_header_bytes=2**20)
    refused: errors.Rejected | None = None
    try:
        if read_header(io.BytesIO(content), len(content), limits).kept:
            return "kept"
    except errors.Rejected as error:
        refused = error
    try:
        source = open_pixels(content, limits)
    except errors.Rejected as error:
        assert refused, f"intake took what the decoder refuses on opening: {error}"
        return "refused"
    try:
        for number in range(source.frames):
            source.frame(number)
    except errors.Rejected as error:
        assert refused or isinstance(error, errors.UndecodablePixels), f"intake took what the decoder refuses: {error}"
        return "refused" if refused else "damaged within"
    return "refused" if refused else "read"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_taken_in_is_decoded(path: Path) -> None:
    """Each sample is refused by intake, or read; one file's damage shows only when it is decoded."""
    expected = ("damaged within",) if path.name in DAMAGED_WITHIN else ("read", "refused", "kept")
    assert agree(path.read_bytes()) in expected


MUTATED = ("explicit-u2", "explicit-frames", "implicit-u2", "big-u1", "deflated-u2", "luts", "enhanced", "rle-frames",
           "jpeg-frames", "jpeg-sv1", "jpegls-frames", "j2k-frames", "jp2-boxed", "htj2k")  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(MUTATED),
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.binary(min_size=1, max_size=4)), max_size=5),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_mutated_files_are_judged_alike(name: str, changes: list[tuple[float, bool, bytes]], cut: float | None) -> None:
    """Changed anywhere, or around the pixels' beginning: no file passes intake and is refused on opening."""
    content = bytearray(sound.content(name))
    pixels = max(content.find(b"\xe0\x7f\x10\x00"), content.find(b"\x7f\xe0\x00\x10"), 200)
    for place, near, new in changes:
        at = int(place * 200) + pixels - 40 if near else 132 + int(place * (len(content) - 133))
        content[at : at + len(new)] = new
    agree(bytes(content[: None if cut is None else int(cut * len(content))]))
