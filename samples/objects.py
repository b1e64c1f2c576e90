"""The sample studies' data sets: modules of the standard filled in, pixels encoded, written as DICOM files."""

import io
import uuid
from dataclasses import dataclass

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom.uid as uids
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from training.datasets import LabelledRadiograph

SYNTAX = {
    "explicit": uids.ExplicitVRLittleEndian,
    "implicit": uids.ImplicitVRLittleEndian,
    "deflated": uids.DeflatedExplicitVRLittleEndian,
    "rle": uids.RLELossless,
    "jpegls": uids.JPEGLSLossless,
    "jpeg2000": uids.JPEG2000Lossless,
    "jpegsv1": uids.JPEGLosslessSV1,
    "jpeg": uids.JPEGBaseline8Bit,  # the source's own JPEG stream, not compressed a second time
}
SOP_CLASS = {
    "CR": uids.ComputedRadiographyImageStorage,
    "DX": uids.DigitalXRayImageStorageForPresentation,
    "MF": uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
}
ANATOMY = {
    "HAND": codes.cid4031.Hand,
    "ELBOW": codes.cid4031.ElbowJoint,
    "SHOULDER": codes.cid4031.Shoulder,
    "HIP": codes.cid4031.Hip,
    "PELVIS": codes.cid4031.Pelvis,
    "LEG": codes.cid4031.LowerLeg,
    "KNEE": codes.cid4031.Knee,
    "FOOT": codes.cid4031.Foot,
}
VIEW_CODE = {"AP": codes.cid4010.AnteroPosterior, "PA": codes.cid4010.PosteroAnterior}

GIVEN_NAMES = (
    "ADA BEN CLEO DAN EVE FINN GAIL HUGO IRIS JON KIM LEO MIA NED OLGA PIA QUINN ROY SUE TOM UNA VIC WANDA XENA"
)

Pixels = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Shot:
    """One image of the table above."""

    radiographs: list[LabelledRadiograph]
    part: str
    view: str
    side: str
    kind: str
    encoding: str
    option: str

    @property
    def series(self) -> str:
        """What tells the series of a study apart."""
        return f"{self.kind} {self.view} {self.side}"


def uid(name: str) -> str:
    """A UID under 2.25 that follows from the name."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, f'osteon/samples/{name}').int}"


def code(entry: Code) -> Dataset:
    """A coded entry as a sequence item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = entry.value, entry.scheme_designator, entry.meaning
    return item


def base(study: int, series: str, instance: str, sop_class: str, modality: str) -> Dataset:
    """Patient, study, series, equipment and SOP common modules of study number `study`."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid(f"{study}/{series}/{instance}")
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = f"202601{1 + study % 28:02}"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = f"{8 + study % 10:02}{study * 7 % 60:02}00"
    ds.AccessionNumber = f"SAMPLE-A{study:04}"
    ds.ReferringPhysicianName = ""
    given = GIVEN_NAMES.split()[(study - 1) % 24]
    ds.PatientName, ds.PatientID, ds.IssuerOfPatientID = f"SAMPLE^{given}", f"SAMPLE-{study:04}", "OSTEON SAMPLES"
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.PatientIdentityRemoved, ds.DeidentificationMethod = "YES", "Published without identities; invented name and ID"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(f"{study}"), uid(f"{study}/{series}")
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = str(study), 1, 1
    ds.Modality = modality
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = "Osteon samples", "samples.build", "1"
    ds.DeviceSerialNumber = "0"
    return ds


def read_source(radiograph: LabelledRadiograph) -> npt.NDArray[np.uint8]:
    """The radiograph as (H, W) uint8."""
    image = cv2.imread(str(radiograph.path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"{radiograph.path} is not an 8-bit gray JPEG")
    return np.asarray(image, np.uint8)


def stored_values(source: npt.NDArray[np.uint8], option: str) -> Pixels:
    """Map the source's 8 bits to what is stored; every mapping can be undone exactly."""
    if option == "inverted":
        return 255 - source
    if option in ("12", "signed"):
        wide = (source.astype(np.uint16) << 4) | (source >> 4)  # 0..4095
        return wide if option == "12" else (wide.astype(np.int16) - 2048)
    return source


def encode(pixels: Pixels, encoding: str, bits: int) -> bytes:
    """One compressed frame."""
    if encoding == "jpegls":
        return bytes(imagecodecs.jpegls_encode(pixels))
    if encoding == "jpeg2000":
        return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", reversible=True, bitspersample=bits))
    if encoding == "jpegsv1":
        return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=bits))
    if encoding == "rle":
        return get_encoder(SYNTAX["rle"]).encode(
            pixels.tobytes(), rows=pixels.shape[0], columns=pixels.shape[1], samples_per_pixel=1, number_of_frames=1,
            bits_allocated=pixels.itemsize * 8, bits_stored=bits, pixel_representation=0,
            photometric_interpretation="MONOCHROME2", pixel_keyword="PixelData",
        )  # fmt: skip
    raise ValueError(f"no encoder called {encoding}")


def set_pixels(ds: Dataset, frames: list[Pixels], bits: int, encoding: str, streams: list[bytes] | None = None) -> None:
    """The Image Pixel module. streams: frames that are compressed already."""
    first = frames[0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = first.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = first.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = int(first.dtype.kind == "i")
    if SYNTAX[encoding].is_encapsulated:
        ds.PixelData = encapsulate(streams or [encode(frame, encoding, bits) for frame in frames])
        ds["PixelData"].VR = "OB"
    else:
        raw = b"".join(frame.tobytes() for frame in frames)
        ds.PixelData = raw + b"\0" * (len(raw) % 2)
        ds["PixelData"].VR = "OW" if first.itemsize == 2 or encoding == "implicit" else "OB"


def to_bytes(ds: Dataset, syntax: str) -> bytes:
    """The data set as a DICOM file."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = uids.UID(syntax)
    ds.file_meta.ImplementationClassUID = uids.UID(uid("build"))
    ds.file_meta.ImplementationVersionName = "OSTEON_SAMPLES"
    known = not uids.UID(syntax).is_private
    out = io.BytesIO()
    dcmwrite(out, ds, enforce_file_format=True, **({} if known else {"implicit_vr": False, "little_endian": True}))
    return out.getvalue()


def image(study: int, shot: Shot) -> Dataset:
    """A radiograph of the table as a data set."""
    names = [radiograph.path.stem for radiograph in shot.radiographs]
    modality = "DX" if shot.kind == "DX" else "CR"
    ds = base(study, shot.series, "+".join(names), SOP_CLASS[shot.kind], modality)
    sources = [read_source(radiograph) for radiograph in shot.radiographs]
    frames = [stored_values(source, shot.option) for source in sources]
    streams = [radiograph.path.read_bytes() for radiograph in shot.radiographs] if shot.encoding == "jpeg" else None
    bits = 12 if shot.option in ("12", "signed") else 8
    set_pixels(ds, frames, bits, shot.encoding, streams)
    ds.StudyDescription = f"{shot.part} radiographs (sample)"
    ds.SeriesDescription = f"{shot.part} {shot.view} {shot.side}".strip()
    ds.ImageComments = f"FracAtlas {', '.join(names)}, CC BY 4.0"
    ds.ImageType = ["DERIVED", "PRIMARY"] + ([""] if shot.kind == "DX" else [])
    ds.DerivationDescription = "FracAtlas radiograph at reduced size, written as DICOM"
    ds.BodyPartExamined, ds.AnatomicRegionSequence = shot.part, [code(ANATOMY[shot.part])]
    ds.PatientOrientation = ""
    if shot.view in VIEW_CODE and shot.side:
        # seen from the front the patient's left is at the right; PA hands are shown from behind
        ds.PatientOrientation = ["R" if shot.view == "PA" else "L", "F"]
    ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", "ISO_10918_1"  # in the source already
    packed = sum(radiograph.path.stat().st_size for radiograph in shot.radiographs)
    ds.LossyImageCompressionRatio = round(sum(source.size for source in sources) / packed, 2)
    ds.BurnedInAnnotation = "NO"
    ds.WindowCenter, ds.WindowWidth = 2 ** (bits - 1), 2**bits
    if shot.option == "inverted":
        ds.PhotometricInterpretation = "MONOCHROME1"
    if shot.option == "signed":
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 2048, 1, "US"
    {"CR": _cr, "DX": _dx, "MF": _multiframe}[shot.kind](ds, shot)
    return ds


def _cr(ds: Dataset, shot: Shot) -> None:
    """CR Series and General Series: side and view belong to the series."""
    ds.ViewPosition = shot.view if shot.view in VIEW_CODE else ""
    if shot.part != "PELVIS":  # which is not paired
        ds.Laterality = shot.side


def _dx(ds: Dataset, shot: Shot) -> None:
    """DX Series, Anatomy, Image, Detector and Positioning, VOI LUT and Acquisition Context."""
    ds.PresentationIntentType, ds.ImageLaterality = "FOR PRESENTATION", shot.side
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", -1 if shot.option != "inverted" else 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape = "INVERSE" if shot.option == "inverted" else "IDENTITY"
    ds.DetectorType, ds.PositionerType = "STORAGE", ""
    # required here, yet unknown: as if the longer side were a 43 cm cassette
    ds.ImagerPixelSpacing = [round(430 / max(ds.Rows, ds.Columns), 3)] * 2
    ds.DerivationDescription += "; Imager Pixel Spacing is nominal"
    ds.ViewPosition, ds.ViewCodeSequence = shot.view, [code(VIEW_CODE[shot.view])]
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
    ds.AcquisitionContextSequence = []


def _multiframe(ds: Dataset, shot: Shot) -> None:
    """SC Equipment, SC Multi-frame Image and Vector, Multi-frame."""
    ds.ConversionType, ds.Laterality = "WSD", shot.side
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType, ds.PresentationLUTShape = 0, 1, "US", "IDENTITY"
    ds.NumberOfFrames, ds.FrameIncrementPointer = len(shot.radiographs), 0x00182001
    ds.PageNumberVector = list(range(1, len(shot.radiographs) + 1))


def pattern_image(study: int, name: str) -> Dataset:
    """A sound little CR of no patient: 128 x 128, a ramp with a bright bar."""
    ds = base(study, "CR", name, SOP_CLASS["CR"], "CR")
    pixels = np.add.outer(np.arange(128), np.arange(128)).astype(np.uint8) // 2
    pixels[:, 56:72] = 230
    set_pixels(ds, [pixels], 8, "explicit")
    ds.ImageType, ds.BodyPartExamined, ds.ViewPosition = ["ORIGINAL", "PRIMARY"], "HAND", "PA"
    ds.PatientOrientation = ds.Laterality = ""
    ds.WindowCenter, ds.WindowWidth, ds.BurnedInAnnotation = 128, 256, "NO"
    ds.ImageComments = "Test pattern, no radiograph"
    return ds


def report(study: int) -> Dataset:
    """A minimal Basic Text SR."""
    ds = base(study, "SR", "report", uids.BasicTextSRStorage, "SR")
    ds.ReferencedPerformedProcedureStepSequence, ds.PerformedProcedureCodeSequence = [], []
    ds.CompletionFlag, ds.VerificationFlag = "COMPLETE", "UNVERIFIED"
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ConceptNameCodeSequence = [code(Code("18748-4", "LN", "Diagnostic imaging report"))]
    text = Dataset()
    text.RelationshipType, text.ValueType, text.TextValue = "CONTAINS", "TEXT", "A report, not an image."
    text.ConceptNameCodeSequence = [code(codes.DCM.Finding)]
    ds.ContentSequence = [text]
    return ds
