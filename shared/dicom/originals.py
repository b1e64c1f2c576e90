"""Original Attributes Sequence: what an object said before Osteon changed it. Source: PS3.3 C.12.1.1.9.1."""

from collections.abc import Mapping
from copy import copy
from datetime import UTC, datetime

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

SYSTEM = "OSTEON"
COERCED = "COERCE"  # changed to fit what is stored here; PS3.3 table C.12.1.1.9, Reason for the Attribute Modification


def coerce_attributes(dataset: Dataset, changes: Mapping[str, str], when: datetime, source: str = "") -> None:
    """Change attributes of a data set, and record what they were before; if nothing changes, nothing is recorded.

    The record is one more item of the sequence, after those of other systems. Source: PS3.3 C.12.1.1.9.1.

    Args:
        dataset: changed in place, with its file meta information.
        changes: new values by DICOM keyword; those that the data set lacks are not added.
        when: time of the change, with a time zone.
        source: who sent the data set; "" if that is not known.
    """
    before = Dataset()
    for keyword, value in changes.items():
        if keyword in dataset and str(dataset[keyword].value) != value:
            before.add(copy(dataset[keyword]))
    if not before:
        return
    for keyword in (element.keyword for element in before):
        setattr(dataset, keyword, changes[keyword])
    if "SOPInstanceUID" in before and hasattr(dataset, "file_meta"):
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    item = Dataset()
    item.SourceOfPreviousValues = source
    item.AttributeModificationDateTime = f"{when.astimezone(UTC):%Y%m%d%H%M%S}+0000"
    item.ModifyingSystem = SYSTEM
    item.ReasonForTheAttributeModification = COERCED
    item.ModifiedAttributesSequence = Sequence([before])
    dataset.OriginalAttributesSequence = Sequence([*dataset.get("OriginalAttributesSequence", ()), item])
