"""What is taken and asked over a DICOM network: SOP classes, their transfer syntaxes, what becomes of the objects.

One table: the listener negotiates by it, the conformance statement prints it, and a test proposes every pair of it.
Source: PS3.4 B.5 (storage SOP classes), PS3.5 10 and A (transfer syntaxes), PS3.6 A (their UIDs).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.dicom.image import BIG_ENDIAN, DEFLATED, EXPLICIT_LE, IMPLICIT_LE
from shared.dicom.streams import RLE

# of files that Osteon writes and of its associations. Source: PS3.7 D.3.3.2
IMPLEMENTATION_CLASS_UID = "2.25.6992655290321576965129124055340827715"
IMPLEMENTATION_VERSION = "OSTEON"
VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # Study Root Query/Retrieve Information Model - FIND
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_DELIVERY = "1.2.840.10008.5.1.4.34."
_JPEG = "1.2.840.10008.1.2.4."

NATIVE_SYNTAXES = (EXPLICIT_LE, IMPLICIT_LE, BIG_ENDIAN, DEFLATED)
LOSSLESS_SYNTAXES = (*(_JPEG + end for end in ("80", "90", "70", "57", "201", "202")), RLE)
OTHER_SYNTAXES = tuple(_JPEG + end for end in ("50", "51", "81", "91", "203"))  # lossy, or they do not say
# of messages that are no images: C-ECHO, storage commitment
MESSAGE_SYNTAXES = (EXPLICIT_LE, IMPLICIT_LE, BIG_ENDIAN)


class Handling(StrEnum):
    """What becomes of the objects of a SOP class."""

    ANALYSED = "analysed"  # unless colour, modality or origin of the single object says that it is none to analyse
    KEPT = "kept"  # stored and shown, never analysed


class Role(StrEnum):
    """What Osteon does in a service. Source: PS3.4 4.2."""

    SCP = "SCP"
    SCU = "SCU"


@dataclass(frozen=True)
class Service:
    """A service of the DICOM network beside storage. An SCU's are used at destinations of results and at peers."""

    sop_class_uid: str
    role: Role
    by_default: bool  # whether it is offered, or used, without a setting


SERVICES = (
    Service(VERIFICATION, Role.SCP, by_default=True),
    Service(STORAGE_COMMITMENT, Role.SCP, by_default=False),
    Service(VERIFICATION, Role.SCU, by_default=True),
    Service(STORAGE_COMMITMENT, Role.SCU, by_default=False),
    Service(STUDY_ROOT_FIND, Role.SCU, by_default=True),
)

# the ends of the UIDs below 1.2.840.10008.5.1.4.1.1
_RADIOGRAPHS = "1 1.1 1.1.1"
_DIGITISED = "7.2 7.3"  # secondary capture in gray levels of several frames, as digitisers write radiographs
_CAPTURES = "7 7.1 7.4"
_IMAGES = (
    "1.2 1.2.1 1.3 1.3.1"  # mammography, intra-oral
    " 2 2.1 2.2 3 3.1 4 4.1 4.3 4.4 5 6 6.1 6.2 6.3"  # CT, ultrasound, MR; 3, 5 and 6 are retired
    " 12.1 12.1.1 12.2 12.2.1 13.1.1 13.1.2 13.1.3 13.1.4 13.1.5 14.1 14.2 20"  # angiography, breast, OCT, NM
    " 30 66.4 66.7 66.8"  # parametric maps, segmentations
    " 77.1.1 77.1.1.1 77.1.2 77.1.2.1 77.1.3 77.1.4 77.1.4.1 77.1.5.1 77.1.5.2 77.1.5.4 77.1.5.5 77.1.5.6 77.1.5.7"
    " 77.1.5.8 77.1.6 77.1.7 77.1.8 77.1.9"  # visible light, ophthalmology
    " 81.1 82.1 128 128.1 130 481.1 481.2 481.23 481.24"  # maps of the eye, PET, radiotherapy's images and doses
)
_OTHERS = (
    "4.2"  # spectroscopy
    " 9.1.1 9.1.2 9.1.3 9.1.4 9.2.1 9.3.1 9.4.1 9.4.2 9.5.1 9.6.1 9.6.2 9.7.1 9.7.2 9.7.3 9.7.4 9.8.1 9.100.1"
    " 9.100.2"  # waveforms
    " 11.1 11.2 11.3 11.4 11.5 11.6 11.7 11.8 11.9 11.10 11.11 11.12"  # presentation states
    " 66 66.1 66.2 66.3 66.5 66.6 67 68.1 68.2"  # raw data, registrations, surfaces
    " 77.1.5.3 78.1 78.2 78.3 78.4 78.5 78.6 78.7 78.8 79.1 80.1"  # measurements of the eye
    " 88.11 88.22 88.33 88.34 88.35 88.40 88.50 88.59 88.65 88.67 88.68 88.69 88.70 88.71 88.72 88.73 88.74 88.75"
    " 88.76 88.77 90.1 91.1"  # structured reports, key object selections, annotations
    " 104.1 104.2 104.3 104.4 104.5 131"  # PDF and other documents, displays
    " 200.2 200.8 481.3 481.4 481.5 481.6 481.7 481.8 481.9 481.10 481.11 481.12 481.13 481.14 481.15 481.16 481.17"
    " 481.18 481.19 481.20 481.21 481.22 481.25"  # protocols as performed, radiotherapy's plans and records
)


@dataclass(frozen=True)
class StorageClass:
    """A storage SOP class that is taken."""

    uid: str
    handling: Handling
    transfer_syntaxes: tuple[str, ...]
    image: bool  # whether its objects hold pixels


def _table() -> dict[str, StorageClass]:
    # images in what the decoder reads: a sender decompresses for us what we refuse, and what we accept must be shown
    pixels = (*LOSSLESS_SYNTAXES, *NATIVE_SYNTAXES, *OTHER_SYNTAXES)
    kinds = (
        (_STORAGE, f"{_RADIOGRAPHS} {_DIGITISED}", Handling.ANALYSED, pixels),
        (_STORAGE, f"{_CAPTURES} {_IMAGES}", Handling.KEPT, pixels),
        (_STORAGE, _OTHERS, Handling.KEPT, NATIVE_SYNTAXES),
        (_DELIVERY, "7 10", Handling.KEPT, NATIVE_SYNTAXES),
    )
    return {
        root + end: StorageClass(root + end, handling, syntaxes, image=syntaxes is pixels)
        for root, ends, handling, syntaxes in kinds
        for end in ends.split()
    }


STORAGE = _table()
SECONDARY_CAPTURE = frozenset(_STORAGE + end for end in f"{_CAPTURES} {_DIGITISED}".split())
KEY_OBJECTS = _STORAGE + "88.59"
RT_DOSE = _STORAGE + "481.2"  # without pixels where it holds histograms only


def accepted(sop_class_uid: str, proposed: Sequence[str]) -> list[str]:
    """Say which proposed transfer syntaxes are accepted for a storage class, the best first.

    Compressed lossless ones come first: who stores compressed and proposes both would have to decompress otherwise. The
    others follow in the sender's order, so that nobody who stores uncompressed is led to compress with losses.

    Args:
        sop_class_uid: a storage SOP class, or anything else.
        proposed: Transfer Syntax UIDs in the sender's order.

    Returns:
        Those that are accepted; empty if the class is not taken or none of them is.
    """
    storage = STORAGE.get(sop_class_uid)
    taken = [syntax for syntax in dict.fromkeys(proposed) if storage and syntax in storage.transfer_syntaxes]
    return sorted(taken, key=lambda syntax: syntax not in LOSSLESS_SYNTAXES)
