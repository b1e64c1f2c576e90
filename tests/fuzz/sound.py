"""Sound files of every kind, small, of a marked patient: what the mutators start from."""

import copy
import functools
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID

from samples.objects import pattern_image, set_pixels
from shared.settings import ROOT
from tests.fuzz.specimen import Specimen, take_apart

# none of these may stand in an error, a log line, a warning or the output of a codec
MARKERS = ("ZEBRA", "QUAGGA", "73199264", "19530612", "OKAPI")
JPEG = "1.2.840.10008.1.2.4."
NATIVE = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big": "1.2.840.10008.1.2.2",
}
RLE = "1.2.840.10008.1.2.5"
SHAPE = (44, 36)


def radiograph(dtype: str = "u2", bits: int = 12, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """A ramp with noise and a bright bar, (H, W): something that every codec has work with."""
    rng = np.random.default_rng(bits)
    top = (1 << bits) - 1
    values = np.add.outer(np.linspace(0, top * 0.6, shape[0]), np.linspace(0, top * 0.2, shape[1]))
    values += rng.integers(0, max(2, top // 8), shape)
    values[10:14, 5:30] = top
    if np.dtype(dtype).kind == "i":
        values -= 1 << (bits - 1)
    return np.clip(values, -(1 << (bits - 1)) if dtype[0] == "i" else 0, top).astype(dtype)


def described(pixels: np.ndarray, bits: int, frames: int = 1) -> Dataset:
    """A radiograph's data set, marked, without its Pixel Data."""
    ds = pattern_image(1, "hostile")
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "ZEBRA^QUAGGA", "73199264", "19530612"
    ds.AccessionNumber, ds.StudyDescription, ds.ReferringPhysicianName = "OKAPI-1", "of OKAPI", "OKAPI^DR"
    set_pixels(ds, [pixels], bits, "explicit")
    if frames > 1:
        ds.NumberOfFrames = frames
    return ds


def finished(name: str, ds: Dataset, syntax: str) -> Specimen:
    """The data set with its file meta, taken apart."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.FileMetaInformationVersion = b"\0\1"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.file_meta.ImplementationClassUID = UID("1.2.3.4")
    return take_apart(name, ds, syntax)


def native(kind: str, dtype: str = "u2", bits: int = 12, frames: int = 1) -> Specimen:
    """An uncompressed radiograph."""
    pixels = radiograph(dtype, bits)
    ds = described(pixels, bits, frames)
    order: Literal["<", ">"] = ">" if kind == "big" else "<"
    raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() * frames
    if kind == "big" and pixels.itemsize == 1:
        raw = np.frombuffer(raw, "<u2").astype(">u2").tobytes()
    ds.PixelData = raw
    ds["PixelData"].VR = "OW"
    return finished(f"{kind}-{dtype}", ds, NATIVE[kind])


def packed(
    name: str, syntax: str, pack: Callable[[np.ndarray], bytes], dtype: str = "u2", bits: int = 12, frames: int = 1,
    *, fragments: int = 1, table: str = "basic",
) -> Specimen:  # fmt: skip
    """A compressed radiograph; table: "basic", "none" or "extended" offsets."""
    pixels = radiograph(dtype, bits)
    ds = described(pixels, bits, frames)
    streams = [pack(pixels)] * frames
    if table == "extended":
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(streams)
    else:
        ds.PixelData = encapsulate(streams, fragments_per_frame=fragments, has_bot=table == "basic")
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return finished(name, ds, syntax)


def rle(pixels: np.ndarray) -> bytes:
    from samples.objects import encode

    return encode(pixels, "rle", pixels.itemsize * 8)


def jpeg(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, level=90, bitspersample=8 if pixels.itemsize == 1 else 12))


def lossless(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=8 * pixels.itemsize))


def jpegls(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpegls_encode(pixels))


def near(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpegls_encode(pixels, level=3))


def j2k(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", reversible=True, bitspersample=12))


def j2k_lossy(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", level=40, bitspersample=12))


def jp2(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="JP2", reversible=True, bitspersample=12))


def htj2k(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.htj2k_encode(pixels, reversible=True))


def enhanced() -> Specimen:
    """Three frames, each with a rescale and a VOI LUT or window of its own, after a shared modality LUT."""
    ds = described(radiograph(), 12, 3)
    ds.PixelData = radiograph().tobytes() * 3
    ds["PixelData"].VR = "OW"
    groups = []
    for number in range(3):
        value, voi, group = Dataset(), Dataset(), Dataset()
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = number + 1, -5, "US"
        voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = 2000, 3000, "SIGMOID"
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [value], [voi]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence, ds.SharedFunctionalGroupsSequence = groups, [Dataset()]
    return finished("enhanced", ds, NATIVE["explicit"])


def with_luts() -> Specimen:
    """A modality LUT and a VOI LUT."""
    ds = described(radiograph(), 12)
    ds.PixelData = radiograph().tobytes()
    ds["PixelData"].VR = "OW"
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        item = Dataset()
        item.LUTDescriptor, item.LUTData = [4096, 0, 12], np.arange(4096, dtype="u2").tobytes()
        item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
        if keyword == "ModalityLUTSequence":
            item.ModalityLUTType = "US"
        setattr(ds, keyword, [item])
    return finished("luts", ds, NATIVE["explicit"])


def palette() -> Specimen:
    """Palette colour, which is refused by name."""
    ds = described(radiograph("u1", 8), 8)
    ds.PixelData = radiograph("u1", 8).tobytes()
    ds["PixelData"].VR = "OW"
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 8])
        ds[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(ds, f"{colour}PaletteColorLookupTableData", bytes(range(256)))
    return finished("palette", ds, NATIVE["explicit"])


def foreign(charset: str | list[str], name: str) -> Specimen:
    """A name in another script."""
    ds = described(radiograph("u1", 8), 8)
    ds.SpecificCharacterSet, ds.PatientName = charset, name
    ds.PixelData = radiograph("u1", 8).tobytes()
    ds["PixelData"].VR = "OW"
    return finished("foreign", ds, NATIVE["explicit"])


def mirrored() -> Specimen:
    """MONOCHROME1, signed, rescaled."""
    ds = described(radiograph("i2", 12), 12)
    ds.PhotometricInterpretation, ds.RescaleSlope, ds.RescaleIntercept = "MONOCHROME1", 2, -9
    ds.PixelData = radiograph("i2", 12).tobytes()
    ds["PixelData"].VR = "OW"
    return finished("mirrored", ds, NATIVE["explicit"])


def sample(path: str) -> Specimen:
    """A published sample study's file, marked as the others are."""
    ds = pydicom.dcmread(ROOT / "samples" / path)
    ds.PatientName, ds.PatientID, ds.AccessionNumber = "ZEBRA^QUAGGA", "73199264", "OKAPI-1"
    return take_apart(path, ds, str(ds.file_meta.TransferSyntaxUID))


MAKERS: dict[str, Callable[[], Specimen]] = {
    "explicit-u1": lambda: native("explicit", "u1", 8),
    "explicit-u2": lambda: native("explicit"),
    "explicit-i2": lambda: native("explicit", "i2", 16),
    "explicit-u4": lambda: native("explicit", "u4", 32),
    "explicit-frames": lambda: native("explicit", "u2", 12, 3),
    "implicit-u2": lambda: native("implicit"),
    "big-u1": lambda: native("big", "u1", 8),
    "big-u2": lambda: native("big"),
    "big-frames": lambda: native("big", "u1", 8, 3),
    "deflated-u2": lambda: native("deflated"),
    "deflated-frames": lambda: native("deflated", "u1", 8, 3),
    "mirrored": mirrored,
    "luts": with_luts,
    "enhanced": enhanced,
    "palette": palette,
    "japanese": lambda: foreign(["", "ISO 2022 IR 87"], "Zebra^QUAGGA=山田^太郎"),
    "chinese": lambda: foreign("GB18030", "ZEBRA^QUAGGA=王^小东"),
    "utf8": lambda: foreign("ISO_IR 192", "ZEBRA^Ünïcode=Ж"),
    "rle-u1": lambda: packed("rle", RLE, rle, "u1", 8),
    "rle-u2": lambda: packed("rle", RLE, rle),
    "rle-frames": lambda: packed("rle", RLE, rle, "u2", 12, 3),
    "jpeg-baseline": lambda: packed("jpeg", JPEG + "50", jpeg, "u1", 8),
    "jpeg-frames": lambda: packed("jpeg", JPEG + "50", jpeg, "u1", 8, 3, fragments=2, table="none"),
    "jpeg-extended": lambda: packed("jpeg12", JPEG + "51", jpeg),
    "jpeg-lossless": lambda: packed("lossless", JPEG + "57", lossless),
    "jpeg-sv1": lambda: packed("sv1", JPEG + "70", lossless),
    "jpegls": lambda: packed("jpegls", JPEG + "80", jpegls),
    "jpegls-near": lambda: packed("near", JPEG + "81", near),
    "jpegls-frames": lambda: packed("jpegls", JPEG + "80", jpegls, "u2", 12, 3, table="extended"),
    "j2k": lambda: packed("j2k", JPEG + "90", j2k),
    "j2k-lossy": lambda: packed("j2k lossy", JPEG + "91", j2k_lossy),
    "j2k-frames": lambda: packed("j2k", JPEG + "90", j2k, "u2", 12, 3, fragments=3),
    "jp2-boxed": lambda: packed("jp2", JPEG + "90", jp2),
    "htj2k": lambda: packed("htj2k", JPEG + "201", htj2k),
    "htj2k-any": lambda: packed("htj2k", JPEG + "203", htj2k),
    "sample-jpegls": lambda: sample("studies/21-leg/1-ap.dcm"),
    "sample-jpeg": lambda: sample("studies/22-leg/1-ap.dcm"),
    "sample-j2k": lambda: sample("studies/11-elbow/1-lateral.dcm"),
    "sample-deflated": lambda: sample("studies/13-elbow/1-ap.dcm"),
    "sample-frames": lambda: sample("studies/24-leg/1-oblique.dcm"),
    "sample-rle": lambda: sample("studies/08-elbow/2-lateral.dcm"),
    "sample-implicit": lambda: sample("studies/20-hip/1-ap.dcm"),
    "sample-sv1": lambda: sample("studies/05-hand/2-lateral.dcm"),
}


@functools.cache
def _made(name: str) -> Specimen:
    return MAKERS[name]()


def specimen(name: str) -> Specimen:
    """A sound file of this name, to be changed at will."""
    return copy.deepcopy(_made(name))


@functools.cache
def content(name: str) -> bytes:
    """The same as bytes."""
    return specimen(name).file_bytes()


def archive(names: tuple[str, ...], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of sound files, ZEBRA in their names' place."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as members:
        for number, name in enumerate(names):
            members.writestr(zipfile.ZipInfo(f"folder/{number}.dcm", (2026, 1, 1, 0, 0, 0)), content(name), method)
    return out.getvalue()


def broken_samples() -> dict[str, bytes]:
    """The published files that are broken on purpose."""
    return {path.name: path.read_bytes() for path in sorted(Path(ROOT / "samples/broken").iterdir())}
