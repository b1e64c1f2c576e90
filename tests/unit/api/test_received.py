"""The head of a file for a data set that came by C-STORE."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from api.listener.association import Announced
from api.listener.received import file_meta
from shared.dicom.conformance import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from shared.errors import Rejected

UIDS = some.lists(some.integers(0, 10**9), min_size=2, max_size=6).map(lambda parts: ".".join(map(str, parts)))


@given(UIDS, UIDS, UIDS)
def test_the_head_is_that_of_pydicom(syntax: str, sop_class: str, instance: str) -> None:
    """Byte for byte: what was stored before is the same file as what comes again."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(instance)
    meta.TransferSyntaxUID, meta.ImplementationClassUID = UID(syntax), UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    head = io.BytesIO()
    write_file_meta_info(head, meta)  # type: ignore[arg-type] # a plain file is taken
    assert file_meta(Announced(syntax, sop_class, instance)) == bytes(128) + b"DICM" + head.getvalue()


@pytest.mark.parametrize("uid", ["1.2.\u00e4", "1" * 70_000])
def test_a_uid_that_no_file_can_hold_is_refused(uid: str) -> None:
    with pytest.raises(Rejected, match="UIDs"):
        file_meta(Announced("1.2.840.10008.1.2", "1.2", uid))
