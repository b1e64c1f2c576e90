"""The table of what is taken over a DICOM network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID

from shared.dicom.conformance import (
    LOSSLESS_SYNTAXES,
    NATIVE_SYNTAXES,
    OTHER_SYNTAXES,
    STORAGE,
    Handling,
    accepted,
)
from shared.dicom.header import DECODABLE

# storage classes that are not taken: of no patient's study, of other industries, or retired before they were common
NOT_TAKEN = (
    "Retired", "DICOS", "Eddy Current", "Media Storage", "Defined Procedure Protocol", "Protocol Approval", "Inventory",
    "Hanging Protocol", "Color Palette", "Implant Template", "Implant Assembly", "Storage Commitment",
)  # fmt: skip
NEWER = {
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("66.7", "66.8", "9.100.1", "9.100.2")
}  # than pydicom's dictionary
RETIRED_AND_TAKEN = {
    "1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.5", "1.2.840.10008.5.1.4.1.1.6",
}  # fmt: skip


def test_images_come_in_exactly_what_the_decoder_reads() -> None:
    assert {*LOSSLESS_SYNTAXES, *NATIVE_SYNTAXES, *OTHER_SYNTAXES} == DECODABLE
    assert len(LOSSLESS_SYNTAXES + NATIVE_SYNTAXES + OTHER_SYNTAXES) == len(DECODABLE)
    lossy = {UID(uid).name for uid in OTHER_SYNTAXES}
    assert not any("Lossless" in name and "Near" not in name for name in lossy)
    for storage in STORAGE.values():
        assert len(set(storage.transfer_syntaxes)) == len(storage.transfer_syntaxes)
        is_image = "Image Storage" in UID(storage.uid).name
        assert set(storage.transfer_syntaxes) == DECODABLE or not is_image


def test_every_storage_class_of_the_dictionary_is_taken_or_named_here() -> None:
    known = {
        str(uid): f"{name} {retired}"
        for uid, (name, kind, _info, retired, _keyword) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name
    }
    assert set(STORAGE) - set(known) == NEWER
    untaken = {uid for uid, name in known.items() if any(word in name for word in NOT_TAKEN)}
    assert set(known) - set(STORAGE) == untaken - RETIRED_AND_TAKEN


def test_the_network_library_knows_every_class_that_is_not_retired() -> None:
    from pynetdicom.service_class import StorageServiceClass
    from pynetdicom.sop_class import uid_to_service_class

    assert {uid for uid in STORAGE if uid_to_service_class(uid) is not StorageServiceClass} == RETIRED_AND_TAKEN


def test_radiographs_alone_are_analysed() -> None:
    analysed = {UID(one.uid).keyword for one in STORAGE.values() if one.handling is Handling.ANALYSED}
    assert analysed == {
        "ComputedRadiographyImageStorage",
        "DigitalXRayImageStorageForPresentation",
        "DigitalXRayImageStorageForProcessing",
        # where Modality says that they are digitised radiographs
        "MultiFrameGrayscaleByteSecondaryCaptureImageStorage",
        "MultiFrameGrayscaleWordSecondaryCaptureImageStorage",
    }


@given(
    st.sampled_from(sorted(STORAGE)), st.lists(st.sampled_from([*sorted(DECODABLE), "1.2.840.10008.1.2.4.110", "1.2"]))
)
def test_lossless_compression_is_preferred_and_else_the_senders_order(uid: str, proposed: list[str]) -> None:
    taken = accepted(uid, proposed)
    assert set(taken) == set(proposed) & set(STORAGE[uid].transfer_syntaxes)
    assert len(set(taken)) == len(taken)
    lossless = [syntax for syntax in taken if syntax in LOSSLESS_SYNTAXES]
    assert taken[: len(lossless)] == lossless
    for kind in (lossless, taken[len(lossless) :]):
        assert kind == sorted(kind, key=proposed.index)


@pytest.mark.parametrize("uid", ["", "1.2.840.10008.1.1", "1.2.3", "1.2.840.10008.5.1.4.1.1.501.1"])
def test_nothing_is_accepted_for_other_classes(uid: str) -> None:
    assert accepted(uid, sorted(DECODABLE)) == []
