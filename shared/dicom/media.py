"""Files on a patient's disc beside the images: skipped, neither stored nor rejected.

A viewer, its settings, a text to read, and the DICOMDIR that lists the images (PS3.10 8, PS3.12). A file that may be a
damaged image is never skipped: its sender must learn of it.
"""

import re
from enum import StrEnum
from pathlib import PurePosixPath
from typing import BinaryIO

from shared.archives import starts_as_archive
from shared.dicom.header import PREAMBLE, read_header
from shared.dicom.image import ImageLimits
from shared.errors import Rejected

HEAD_BYTES = 4096
DIRECTORY_UID = b"1.2.840.10008.1.3.10"  # Media Storage Directory Storage
DICOM_ROOT = b"1.2.840.10008."  # in the first bytes of every DICOM file: the UIDs of syntax and class begin so
_MEDIA_CLASS = re.compile(rb"\x02\x00\x02\x00UI..([0-9.]*)", re.DOTALL)  # (0002,0002)
IMAGE_NAMES = frozenset({".dcm", ".dicom", ".dic", ".ima", ".acr"})


class SkippedFileKind(StrEnum):
    """Why a file is skipped; `words` says it in full."""

    DIRECTORY = "dicomdir"
    OTHER = "no-dicom"

    @property
    def words(self) -> str:
        """The reason as a phrase for people."""
        if self is SkippedFileKind.DIRECTORY:
            return "a DICOMDIR, the list of a disc's images; it is none itself"
        return "no DICOM file, and nothing that was one: no DICOM mark, no data set, no such name"


def why_skipped(file: BinaryIO, size_bytes: int, name: str, limits: ImageLimits) -> SkippedFileKind | None:
    """Say why a file can be skipped. A file that read_header accepts never is.

    Args:
        file: seekable, at its start; left at its start unless it is a DICOMDIR.
        size_bytes: size of the file.
        name: its path where it lies, with or without folders and archive.
        limits: bounds on what a header may claim.

    Returns:
        The reason; None for a file that is an image, or may be a damaged one.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if head[PREAMBLE : PREAMBLE + 4] == b"DICM" or head[:4] == b"\x02\x00\x00\x00":
        match = _MEDIA_CLASS.search(head)
        if match is None or match[1] != DIRECTORY_UID:
            return None
        try:
            read_header(file, size_bytes, limits)
        except Rejected:
            return SkippedFileKind.DIRECTORY
        return None  # an image whose meta information says otherwise
    if starts_as_archive(head):
        return None  # one that opens is looked into; one that does not may have held images
    return None if _may_be_damaged(head, name) else SkippedFileKind.OTHER


def _may_be_damaged(head: bytes, name: str) -> bool:
    """Whether a file without a DICOM mark may have been an image, by its first element, its name, or its zeros."""
    if head[:2] in (b"\x08\x00", b"\x00\x08") and head[2:4] != b"\xff\xff":
        return True  # a data set without meta information
    if DICOM_ROOT in head and b"\0" in head:
        return True  # a text about UIDs has no zero bytes
    suffix = PurePosixPath(re.split(r"[/\\!]", name)[-1]).suffix.lower()
    if suffix in IMAGE_NAMES:
        return True
    if suffix and not suffix[1:].isdigit():
        return False
    # as on a disc, or a UID: no suffix says what it is. A broken copy is empty, or zeros
    return not head.strip(b"\0")
