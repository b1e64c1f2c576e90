"""Original Attributes Sequence: what an object said before Osteon changed it. Source: PS3.3 C.12.1.1.9.1."""

from collections.abc import Mapping
from copy import copy
from datetime import UTC, datetime

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

SYSTEM = "OSTEON"
COERCED = "COERCE"  # changed to fit what is stored here; PS3.3 table C.12.1.1.9, Reason for the Attribute Modification


def note_originals(dataset: Dataset, changes: Mapping[str, str], when: datetime, source: str = "") -> None:
    """Give a data set other values, by keyword, and keep those that it had.

    source: who sent it, "" where that is not known. An item is added to those that other systems left. Nothing is added
    where nothing changes.
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
