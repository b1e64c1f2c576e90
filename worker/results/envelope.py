"""What all result objects have in common: patient, study, series and equipment; and how they are written.

Nothing here asks for the time or for chance: the same inputs are the same bytes.
Source: PS3.3 C.7.3.1 (series), C.7.5.1 (equipment), C.12.1 (SOP Common), PS3.10 7 (the file).
"""

import warnings
from collections.abc import Iterable, Sequence
from datetime import datetime

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from shared.domain.device import DEVICE_ROOT, device_uid
from shared.domain.results import OF_AN_IMAGE, SERIES_NUMBERS, ModelStatement, ResultInput, ResultKind, ResultObject
from worker.results.plain import plain
from worker.results.source import Source

MANUFACTURER, MODEL_NAME = "Osteon", "Osteon fracture"
IMPLEMENTATION_CLASS_UID = f"{DEVICE_ROOT}.1.1"
IMPLEMENTATION_VERSION = "OSTEON-RESULTS"  # SH, at most 16 characters
DESCRIPTIONS = {  # LO, at most 64 characters, and the first words count: lists cut them off
    ResultKind.SC_OVERLAY: "AI Osteon fracture - research use - outlines on images",
    ResultKind.SC_SUMMARY: "AI Osteon fracture - research use - summary",
    ResultKind.SR_OUTLINES: "AI Osteon fracture - research use - SR outlines",
    ResultKind.SR_STATEMENTS: "AI Osteon fracture - research use - SR statements",
    ResultKind.SR_OUTLINES_2D: "AI Osteon fracture - research use - SR outlines",
    ResultKind.SR_STATEMENTS_2D: "AI Osteon fracture - research use - SR statements",
    ResultKind.PDF: "AI Osteon fracture - research use - report",
    ResultKind.GSPS: "AI Osteon fracture - research use - presentation",
}
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")  # PS3.16 CID 7005


def begin_object(
    inputs: ResultInput, kind: ResultKind, source: Source, sop_class_uid: str, modality: str, number: int = 1
) -> Dataset:
    """Begin an object: everything but its content.

    Args:
        inputs: the inputs.
        kind: of the object.
        source: whose patient and study it has.
        sop_class_uid: of the object.
        modality: of its series.
        number: of the image that it is of; 1 for an object of the study.

    Returns:
        A data set to which the content is added.
    """
    of_image = kind in OF_AN_IMAGE
    models = inputs.models_of(source.image) if of_image else inputs.models
    made_at = (source.image.analysed_at or source.image.received_at) if of_image else inputs.made_at
    clock = source.clock(made_at, inputs.site)
    made = source.copy_identity()
    made.StudyInstanceUID = inputs.study_instance_uid
    made.SOPClassUID, made.SOPInstanceUID = sop_class_uid, inputs.sop_uid(kind, number)
    made.InstanceCreationDate, made.InstanceCreationTime = date_and_time(clock)
    made.ContentDate, made.ContentTime = date_and_time(clock)
    made.Modality, made.SeriesInstanceUID = modality, inputs.series_uid(kind, number)
    made.SeriesNumber, made.InstanceNumber = SERIES_NUMBERS[kind], number
    made.SeriesDescription = DESCRIPTIONS[kind]
    if not of_image:  # the images of a series may come on several days
        made.SeriesDate, made.SeriesTime = date_and_time(clock)
    made.Manufacturer, made.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    made.SoftwareVersions = [plain(inputs.software, 64), *(plain(model.name, 64) for model in models)]
    made.DeviceSerialNumber = plain(inputs.site.name, 64)
    made.ContributingEquipmentSequence = [_equipment(inputs.software, model) for model in models or (None,)]
    return made


def _equipment(software: str, model: ModelStatement | None) -> Dataset:
    """The algorithm as a device; Osteon alone where no model found anything. Source: PS3.3 C.12.1, IHE AIR 6.5.3."""
    item = Dataset()
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = plain(model.title, 64) if model else MODEL_NAME
    item.SoftwareVersions = [plain(software, 64), plain(model.name, 64)] if model else plain(software, 64)
    item.DeviceUID = device_uid(model.sha256) if model else DEVICE_ROOT
    item.ContributionDescription = "Fracture detection on radiographs - research use only"
    item.PurposeOfReferenceCodeSequence = [code_item(PROCESSING_EQUIPMENT)]
    return item


def code_item(code: Code) -> Dataset:
    """A code as an item of a sequence. Source: PS3.3 8."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def date_and_time(clock: datetime) -> tuple[str, str]:
    """DA and TM of a time, by its own clock."""
    return f"{clock:%Y%m%d}", f"{clock:%H%M%S}"


def reference_item(source: Source, frames: Sequence[int] = ()) -> Dataset:
    """An item that names an image.

    Args:
        source: the image.
        frames: numbers of its frames; none of an image with one frame.

    Returns:
        The item.
    """
    item = Dataset()
    item.ReferencedSOPClassUID = source.sop_class_uid
    item.ReferencedSOPInstanceUID = source.image.sop_instance_uid
    if frames and source.frames > 1:
        item.ReferencedFrameNumber = list(frames)
    return item


def references_by_series(sources: Iterable[Source]) -> list[Dataset]:
    """Items that name images, series by series, as a Referenced Series Sequence has them but for the UID's name."""
    series: dict[str, list[Dataset]] = {}
    for source in sources:
        series.setdefault(source.series_instance_uid, []).append(reference_item(source))
    items = []
    for uid, images in series.items():
        item = Dataset()
        item.SeriesInstanceUID = uid
        item.ReferencedSOPSequence = images
        items.append(item)
    return items


def write_object(kind: ResultKind, number: int, made: Dataset) -> ResultObject:
    """Write an object as a file.

    Args:
        kind: of the object.
        number: of the image that it is of; 1 for an object of the study.
        made: the whole data set.

    Returns:
        The object, in Explicit VR Little Endian.
    """
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = UID(IMPLEMENTATION_CLASS_UID), IMPLEMENTATION_VERSION
    out = DicomBytesIO()
    out.write(bytes(128) + b"DICM")
    write_file_meta_info(out, meta, enforce_standard=True)
    out.is_implicit_VR, out.is_little_endian = False, True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # copied values may be odd, and its words quote them
        write_dataset(out, made)
    return ResultObject(
        kind, number, str(made.SOPClassUID), str(made.SeriesInstanceUID), str(made.SOPInstanceUID),
        str(meta.TransferSyntaxUID), out.getvalue(),
    )  # fmt: skip
