"""The short way to read plain elements and values gives what pydicom gives."""

import io
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.charset import python_encoding
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from samples.objects import SYNTAX, pattern_image, set_pixels, to_bytes
from shared.dicom.elements import (
    CountedFile,
    ReadBudget,
    StopElement,
    code_string,
    count,
    read_plain,
    tagged_keyword,
    text_of,
    uid_of,
)
from shared.dicom.header import PREAMBLE, WANTED
from shared.dicom.image import BIG_ENDIAN, IMPLICIT_LE
from shared.errors import Rejected
from shared.settings import ROOT

PIXELS = 0x7FE00010
LONG = ("OB", "OW", "SQ", "UN", "UT", "UC", "UR", "OD", "OF", "OL", "OV", "SV", "UV")
SHORT = ("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST", "TM",
         "UI", "UL", "US")  # fmt: skip
TAGS = sorted({*WANTED, 0x00080001, 0x00090010, 0x00091001, 0x00200060, 0x00204000, 0xFFFEE000, 0xFFFEE00D, 0x00020010})


def element(tag: int, vr: str, value: bytes, order: str, *, implicit: bool, length: int | None = None) -> bytes:
    """An element; length: what it says, where it lies."""
    size = len(value) if length is None else length
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack(f"{order}L", size) + value
    if vr in LONG:
        return head + vr.encode() + b"\0\0" + struct.pack(f"{order}L", size) + value
    return head + vr.encode() + struct.pack(f"{order}H", size & 0xFFFF) + value


VALUES = st.one_of(
    st.binary(max_size=12),
    st.text("ABC 019.^=\\", max_size=12).map(str.encode),
    st.sampled_from([b"ISO_IR 100", b"ISO_IR 192", b"\\ISO 2022 IR 87", b"utf-16", bytes(5_000), b"1.2.3\0"]),
)
ELEMENTS = st.tuples(
    st.sampled_from(TAGS),
    st.sampled_from((*SHORT, *LONG, *SHORT, "--", "ZZ", "\0\0")),
    VALUES,
    st.sampled_from([None] * 20 + [0xFFFFFFFF, 3, 70_000]),
)


def by_pydicom(
    data: bytes, begin: int, order: str, budget: ReadBudget, wanted: frozenset[int] | None, *, implicit: bool
) -> tuple[Dataset, StopElement | None, int]:
    """What it reads up to the pixels, how these begin, and where the file stands then."""
    stops: list[StopElement] = []
    file = io.BytesIO(data)
    file.seek(begin)

    def at_pixels(tag: Any, vr: str | None, length: int) -> bool:
        if int(tag) >= PIXELS:
            stops.append(StopElement(int(tag), vr, file.tell(), length))
        return int(tag) >= PIXELS

    dataset = read_dataset(
        CountedFile(file, budget, "" if implicit else order),  # type: ignore[arg-type]
        is_implicit_VR=implicit,
        is_little_endian=order == "<",
        stop_when=at_pixels,
        specific_tags=None if wanted is None else list(wanted),
    )
    return dataset, stops[-1] if stops else None, file.tell()


def check(
    data: bytes, begin: int, order: str, wanted: frozenset[int] | None, budget: ReadBudget, *, implicit: bool
) -> bool:
    """Hold both against each other; whether the data set was plain."""
    file = io.BytesIO(data)
    file.seek(begin)
    ours, theirs = ReadBudget(budget.bytes_left, budget.reads_left), ReadBudget(budget.bytes_left, budget.reads_left)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = read_plain(file, ours, order, lambda tag: tag >= PIXELS, wanted, implicit=implicit)
        if plain is None:
            assert (file.tell(), ours) == (begin, budget)
            return False
        dataset, stop = plain
        wanted_dataset, wanted_stop, end = by_pydicom(data, begin, order, theirs, wanted, implicit=implicit)
    assert dict(dataset.items()) == dict(wanted_dataset.items())
    assert list(dataset.original_character_set) == list(wanted_dataset.original_character_set)
    assert dataset.original_encoding == wanted_dataset.original_encoding
    assert (stop, file.tell(), ours) == (wanted_stop, end, theirs)
    return True


@given(
    st.lists(ELEMENTS, max_size=12),
    st.sampled_from(["<", ">"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 40),
    st.sampled_from([2**20, 60, 6_000]),
    st.sampled_from([1000, 9]),
)
@settings(max_examples=400)
def test_plain_elements_are_read_as_pydicom_reads_them(
    elements: list[tuple[int, str, bytes, int | None]],
    order: str,
    implicit: bool,
    everything: bool,
    cut: int,
    bytes_left: int,
    reads_left: int,
) -> None:
    """The same elements, character set, places and costs, whatever stands there; or it is left to pydicom."""
    data = b"".join(
        element(tag, vr, value, order, implicit=implicit, length=length) for tag, vr, value, length in elements
    )
    data += element(PIXELS, "OW", bytes(40), order, implicit=implicit)[: 48 - cut]
    wanted = None if everything else frozenset(WANTED)
    check(b"before" + data, 6, order, wanted, ReadBudget(bytes_left, reads_left), implicit=implicit)


@pytest.mark.parametrize("name", sorted(SYNTAX.keys() - {"jpeg", "deflated"}))
def test_an_image_is_plain(name: str) -> None:
    """What most files hold needs no pydicom, in any transfer syntax but the deflated one."""
    ds = pattern_image(1, "plain")
    set_pixels(ds, [np.zeros((64, 64), np.uint8)], 8, name)
    data = to_bytes(ds, SYNTAX[name])
    assert check_file(data)


def test_real_files() -> None:
    """The samples of real devices, plain or not."""
    contents = [file.read_bytes() for file in sorted((ROOT / "tests/data/dicom/files").glob("*.dcm"))]
    plain = [check_file(content) for content in contents if content[PREAMBLE : PREAMBLE + 4] == b"DICM"]
    assert sum(plain) > 20


def check_file(data: bytes) -> bool:
    """Hold both ways against each other on a whole file; whether its data set was plain."""
    meta = io.BytesIO(data)
    meta.seek(PREAMBLE + 4)
    plain = read_plain(meta, ReadBudget(2**20), "<", lambda tag: tag >> 16 != 2, any_stop=True)
    assert plain is not None
    syntax = uid_of(plain[0], "TransferSyntaxUID")
    order, implicit = ">" if syntax == BIG_ENDIAN else "<", syntax == IMPLICIT_LE
    return check(data, meta.tell(), order, frozenset(WANTED), ReadBudget(2**24), implicit=implicit)


def having(keyword: str, vr: str, value: bytes, charset: str | list[str], *, implicit: bool) -> Dataset:
    """A data set of one raw element."""
    tag = int(tagged_keyword(keyword)[-10:-6] + tagged_keyword(keyword)[-5:-1], 16)
    data = element(tag, vr, value, "<", implicit=implicit) + element(PIXELS, "OW", bytes(10), "<", implicit=implicit)
    read = read_plain(io.BytesIO(data), ReadBudget(2**20), "<", lambda tag: tag >= PIXELS, implicit=implicit)
    assert read is not None
    read[0].set_original_encoding(implicit, True, charset)
    return read[0]


def slowly(read: Callable[[Dataset], object], dataset: Dataset, keyword: str) -> object:
    """The same of a data set whose value pydicom has read already."""
    dataset[keyword]
    return read(dataset)


LETTERS = st.one_of(
    st.text("AZaz019 ^=\\.-_\t\0\x1b~\x7f", max_size=10).map(str.encode), st.binary(max_size=10), st.just(b"0\0")
)


@given(
    st.sampled_from(["PatientName", "PatientID", "Modality", "StudyDate", "StudyTime", "PatientAge", "SOPInstanceUID"]),
    st.sampled_from((*SHORT, "UT", "UN")),
    LETTERS,
    st.sampled_from(sorted({*python_encoding.values(), "utf-16", "utf-7", "no such codec"})),
    st.booleans(),
)
@settings(max_examples=500)
def test_plain_text_is_read_as_pydicom_reads_it(
    keyword: str, vr: str, value: bytes, charset: str, implicit: bool
) -> None:
    """Text, codes and UIDs are the same with and without pydicom's values, in every character set."""
    for read in (
        lambda ds: text_of(ds, keyword, 64),
        lambda ds: code_string(ds, keyword),
        lambda ds: uid_of(ds, keyword),
    ):
        results = []
        for way in (read, lambda ds, read=read: slowly(read, ds, keyword)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    results.append(way(having(keyword, vr, value, charset, implicit=implicit)))
                except Rejected as error:
                    results.append(str(error))
                except Exception as error:
                    results.append(type(error))
        assert results[0] == results[1] or b"\x1b" in value  # what has escape sequences is decoded here


@given(st.sampled_from(["Rows", "HighBit", "PixelRepresentation"]), st.integers(0, 65535), st.booleans())
def test_numbers(keyword: str, number: int, implicit: bool) -> None:
    """A number of two bytes."""
    dataset = having(keyword, "US", struct.pack("<H", number), "iso8859", implicit=implicit)
    assert count(dataset, keyword, least=0) == number
