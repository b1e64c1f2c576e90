"""What leaves Osteon as DICOM objects: their kinds, all that they are made of, and the UIDs that follow from it.

An object is made once, stored, and sent byte for byte each time. Its UIDs are a hash of all that it is made of: the
same inputs have the same UIDs, in whichever process they are computed, so that an archive holds no result twice.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from uuid import NAMESPACE_OID, uuid5

from shared.domain.feedback import ReadersAssessment
from shared.domain.findings import Finding, OperatingPoints, StudySummary, summarise
from shared.errors import Reason

LAYOUT = 1  # counted up when the same inputs make other objects


class ResultKind(StrEnum):
    """A kind of object. Each has a series of its own: viewers show the last document of a series only."""

    SC_OVERLAY = "sc-overlay"  # Secondary Capture of each image that has findings, with its outlines burnt in
    SC_SUMMARY = "sc-summary"  # Secondary Capture of the study: each image small, and what is said of the study
    SR_OUTLINES = (
        "sr-outlines"  # Comprehensive 3D SR, TID 1500: a group for each outline; none where nothing is outlined
    )
    SR_STATEMENTS = "sr-statements"  # Comprehensive 3D SR, TID 1500: what is said of each image and of the study
    SR_OUTLINES_2D = "sr-outlines-2d"  # the same as Comprehensive SR
    SR_STATEMENTS_2D = "sr-statements-2d"
    PDF = "pdf"  # Encapsulated PDF of the report
    GSPS = "gsps"  # Grayscale Softcopy Presentation State of each image that has outlines


OF_AN_IMAGE = frozenset({ResultKind.SC_OVERLAY, ResultKind.GSPS})  # the others are of the study
IN_PLACE_OF = {  # for a destination that refuses Comprehensive 3D SR
    ResultKind.SR_OUTLINES: ResultKind.SR_OUTLINES_2D,
    ResultKind.SR_STATEMENTS: ResultKind.SR_STATEMENTS_2D,
}
DOCUMENTS = frozenset({*IN_PLACE_OF, *IN_PLACE_OF.values()})  # those that name their predecessors
SERIES_NUMBERS = {
    ResultKind.SC_SUMMARY: 9001,
    ResultKind.SC_OVERLAY: 9002,
    ResultKind.SR_OUTLINES: 9003,
    ResultKind.SR_STATEMENTS: 9004,
    ResultKind.SR_OUTLINES_2D: 9005,
    ResultKind.SR_STATEMENTS_2D: 9006,
    ResultKind.PDF: 9007,
    ResultKind.GSPS: 9008,
}


class CaptureModality(StrEnum):
    """The modality of Secondary Captures: some archives hide OT."""

    OT = "OT"
    CR = "CR"
    DX = "DX"


@dataclass(frozen=True)
class SiteStatement:
    """What a site chooses for its results."""

    name: str  # stands as serial number of the device
    zone: str = (
        "UTC"  # IANA name; the site's clock, by which results are dated. A source that says its offset has its own
    )
    modality: CaptureModality = CaptureModality.OT  # of Secondary Captures
    probability: bool = False  # whether documents state the calibrated probability


@dataclass(frozen=True)
class ModelStatement:
    """A model bundle whose findings are told."""

    name: str
    title: str
    sha256: str
    points: OperatingPoints
    slope: float = 1.0  # of its calibration, and `full`, as its manifest has them: outlines are drawn by them
    full: float = 1.0
    facts: tuple[str, ...] = ()  # what it learned from, and its limits, in words


@dataclass(frozen=True)
class ImageStatement:
    """An image of the study, and what became of it: findings, a reason why there can be none, or neither yet."""

    number: int  # in its study, from 1, as pages count
    sop_instance_uid: str  # as it is found now
    sha256: str  # of the stored object, by which it is read
    received_at: datetime
    analysed_at: datetime | None = None  # when the newest of the findings was stored
    findings: tuple[Finding, ...] = ()  # the shown one of each frame; an image without findings has no overlay
    error_reason: Reason | None = None
    error_detail: str = ""


@dataclass(frozen=True)
class ReaderStatement:
    """What the readers of the study answered."""

    answered_at: datetime
    reading: ReadersAssessment | None = None  # None: they agree with the model
    region: str = ""
    words: tuple[str, ...] = ()  # each entry in a sentence without the reader's free text; the PDF has them


@dataclass(frozen=True)
class Replaced:
    """The set of results that this one replaces: a late image, an answer or another model made a new one."""

    digest: str  # `ResultInput.digest` of it
    made_at: datetime
    kinds: tuple[ResultKind, ...]  # of which it had objects


@dataclass(frozen=True)
class ResultInput:
    """All that a set of results is made of, but for the images' bytes, which their digests name."""

    study_id: str  # ours
    study_instance_uid: str
    site: SiteStatement
    images: tuple[ImageStatement, ...]  # in the order of their numbers; at least one
    models: tuple[ModelStatement, ...]  # those that the findings name
    software: str  # version of Osteon
    expected_images: int | None = None  # as the sender counted them; None: not known
    reader: ReaderStatement | None = None
    replaces: Replaced | None = None
    # SHA-256 of the object whose header says who the patient is, where somebody has decided that; None: its image's
    patient: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of everything here and of the layout; 64 hexadecimal digits. It names the set."""
        values = asdict(self)
        del values["patient"]
        return _digest(values | self._decided())

    @property
    def made_at(self) -> datetime:
        """When the newest input came into being: the time that the set's objects bear."""
        times = [image.analysed_at or image.received_at for image in self.images]
        return max([*times, self.reader.answered_at] if self.reader else times)

    @property
    def unread(self) -> int:
        """How many images can never be analysed."""
        return sum(image.error_reason is not None for image in self.images)

    @property
    def summary(self) -> StudySummary | None:
        """The finding that stands for the study; None without one."""
        return summarise([finding for image in self.images for finding in image.findings], self.unread)

    def series_uid(self, kind: ResultKind, number: int = 1) -> str:
        """Name a series.

        A series with an object for each image depends on the study and the images' model alone, so that a late image's
        object joins those of the others; any other series is of one set.

        Args:
            kind: of its objects.
            number: of an image of it; 1 for objects of the study.

        Returns:
            The Series Instance UID.
        """
        if kind not in OF_AN_IMAGE:
            return object_uid(self.digest, kind, 0)
        return object_uid(_digest(self._around(self.image(number))), kind, 0)

    def sop_uid(self, kind: ResultKind, number: int = 1) -> str:
        """Name an object.

        What is of an image depends on that image alone: it has the same UID, and the same bytes, in each set of its
        study.

        Args:
            kind: of the object.
            number: of the image that the object is of; 1 for an object of the study.

        Returns:
            Its SOP Instance UID.
        """
        if kind not in OF_AN_IMAGE:
            return object_uid(self.digest, kind, 1)
        image = self.image(number)
        return object_uid(_digest({"image": asdict(image), **self._around(image)}), kind, number)

    def image(self, number: int) -> ImageStatement:
        """The image with this number. Raises StopIteration if there is none."""
        return next(one for one in self.images if one.number == number)

    def models_of(self, image: ImageStatement) -> tuple[ModelStatement, ...]:
        """The models that an image's findings name."""
        named = {finding.bundle for finding in image.findings}
        return tuple(model for model in self.models if model.name in named)

    def _around(self, image: ImageStatement) -> dict[str, object]:
        """What an image's own object is made of, but for the image."""
        models = [asdict(model) for model in self.models_of(image)]
        return {
            "study": self.study_instance_uid, "site": asdict(self.site), "models": models, "software": self.software,
            **self._decided(),
        }  # fmt: skip

    def _decided(self) -> dict[str, object]:
        """Whose header says who the patient is. Where nobody has decided that, objects are named as ever."""
        return {"patient": self.patient} if self.patient else {}


@dataclass(frozen=True, repr=False)
class ResultObject:
    """An object that was made: a DICOM file."""

    kind: ResultKind
    number: int  # of the image that it is of; 1 for an object of the study
    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    content: bytes


def object_uid(digest: str, kind: ResultKind, number: int) -> str:
    """Name an object, or a series, of a set.

    Source: PS3.5 B.2 (UIDs made of UUIDs), RFC 9562 5.5 (UUIDs made of names).

    Args:
        digest: of the inputs.
        kind: of the object.
        number: from 1; 0 for the series.

    Returns:
        A UID of at most 44 characters, the same for the same arguments.
    """
    return f"2.25.{uuid5(NAMESPACE_OID, f'osteon/{digest}/{kind}/{number}').int}"


def _digest(inputs: Mapping[str, object]) -> str:
    canonical = json.dumps({"layout": LAYOUT, **inputs}, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: object) -> str:
    """Times in UTC, a heatmap's bytes by their digest. Raises TypeError for anything else."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, bytes | memoryview):
        return hashlib.sha256(bytes(value)).hexdigest()
    raise TypeError(f"{type(value).__name__} has no place among the inputs")
