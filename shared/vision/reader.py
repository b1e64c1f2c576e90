"""A bundle at work: prepared squares in, findings out. The worker, `osteon predict` and evaluation all use it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from shared.findings import SCORED, AbstentionReason, Assessment, ExposedField, Finding, Heatmap, Severity
from shared.settings import cpu_count
from shared.vision.bundle import Manifest, load_bundle, pick_device
from shared.vision.engines import Engine, lanes, pick_engine, torch_engine
from shared.vision.network import BoneNet
from shared.vision.tensors import UInt8Image

SEVERITIES = list(Severity)
BLANK_SPREAD = 2.0  # gray levels; a prepared film with less standard deviation shows nothing
EXPOSED_FROM, LEAST_EXPOSED = 16, 0.02  # gray level; share of the square that must be brighter
SMOOTHING = 0.7  # standard deviation, cells
RIM, BRIGHT, BRIGHTER = 0.04, 150, 25  # share of the side; gray levels of the surround, and above the middle


class Look(StrEnum):
    """What can be seen of a square without a network; all but the usual are reasons to abstain, by the same codes."""

    USUAL = ""
    BLANK = "blank"
    COLLIMATED = "collimated"
    INVERTED = "inverted"


def look(square: UInt8Image) -> Look:
    """square: (S, S) uint8 from `prepare`. A radiograph's surround is dark; a bright one says that gray is reversed."""
    if cv2.meanStdDev(square)[1].item() < BLANK_SPREAD:
        return Look.BLANK
    left, top, width, height = cv2.boundingRect(square)  # of what is not black
    content = square[top : top + height, left : left + width]
    if np.count_nonzero(content > EXPOSED_FROM) < LEAST_EXPOSED * square.size:
        return Look.COLLIMATED
    rim = max(1, round(min(content.shape) * RIM))
    inner = content[rim:-rim, rim:-rim]
    sides = (content[:rim], content[-rim:], content[:, :rim], content[:, -rim:])
    surround = float(np.median(np.concatenate([side.ravel() for side in sides])))
    if inner.size and surround > BRIGHT and surround > cv2.mean(inner)[0] + BRIGHTER:
        return Look.INVERTED
    return Look.USUAL


@dataclass(frozen=True)
class RawReading:
    """The network's answer to one square, in numpy, before any threshold."""

    region: npt.NDArray[np.float32]  # (R,) probabilities
    fracture: float  # calibrated probability
    severity: npt.NDArray[np.float32]  # (3,) P(at least mild, moderate, severe)
    heatmap: npt.NDArray[np.float32]  # (h, w) cell probabilities, uncalibrated, as `shown` makes them
    strangeness: float  # about 1 for films like those that were learned from
    hardware: float  # P(metal in view)
    look: Look


class Reader:
    """Runs a bundle's network on batches."""

    def __init__(self, network: BoneNet, manifest: Manifest, engine: Engine | None = None) -> None:
        """engine: how the network is run; default: eager torch, which starts at once."""
        self.manifest = manifest
        places = {name: place for place, name in enumerate(manifest.regions)}
        self._neighbours = [(places[one], places[other]) for one, other in manifest.region_neighbours]
        self._run = engine or torch_engine(network, pick_device())

    @classmethod
    def of_bundle(cls, content: bytes, sha256: str | None = None) -> "Reader":
        """content: a bundle file. It starts at once, for a command that reads few films. Raises BadBundle."""
        return cls(*load_bundle(content, sha256))

    @classmethod
    def resident(cls, content: bytes, sha256: str | None, folder: Path) -> "Reader":
        """For a service, or many images: the fastest that this machine has. Raises BadBundle.

        content: a bundle file; sha256: what it must hash to, if known; folder: where converted networks are kept, which
        saves a later start seconds.
        """
        network, manifest = load_bundle(content, sha256)
        torch.set_num_threads(max(1, cpu_count() // lanes()))  # where torch computes, each lane has its share
        return cls(network, manifest, pick_engine(network, manifest.input_size, folder))

    def limited(self, **limits: float) -> "Reader":
        """The same network judged by other limits of the manifest."""
        other = copy.copy(self)
        other.manifest = self.manifest.model_copy(update=limits)
        return other

    @property
    def size(self) -> int:
        """Side of the squares it reads, pixels."""
        return self.manifest.input_size

    def read(self, squares: Sequence[UInt8Image]) -> list[RawReading]:
        """squares: each (S, S) uint8 from `prepare`; returns one reading each, in order."""
        stacked = np.stack(squares)
        said = self._run(stacked)
        manifest = self.manifest
        chances = _sigmoid(said.fracture * manifest.calibration.slope + manifest.calibration.offset)
        regions = _softmax(said.region / manifest.region_temperature)
        # P(at least severe) can never exceed P(at least moderate): ordinal answers are made monotone
        severities = np.minimum.accumulate(_sigmoid(said.severity), axis=1)
        cells, hardware = shown(said.heatmap), _sigmoid(said.hardware)
        return [
            RawReading(
                regions[i],
                float(chances[i]),
                severities[i],
                cells[i],
                float(said.strangeness[i]),
                float(hardware[i]),
                look(squares[i]),
            )
            for i in range(len(stacked))
        ]

    def finding(
        self, reading: RawReading, frame: int, modality: str, body_part: str = "", field: ExposedField | None = None
    ) -> Finding:
        """Judge a reading by the bundle's thresholds.

        frame: 1 for the first; modality, body_part: DICOM's, "" for a plain picture or where the file says nothing;
        field: what the square shows of the image, None for all of it.
        """
        manifest = self.manifest
        best = int(reading.region.argmax())
        abstention, detail = self._abstention(reading, modality, body_part)
        assessment = manifest.operating_points.assessment(reading.fracture)
        score: float | None = manifest.operating_points.score(reading.fracture)
        # metal is suspected beside many a displaced fracture: a caveat where the raw score is positive, never silence,
        # but where the image is doubtful for other reasons too
        caveat = (
            abstention is AbstentionReason.METAL and assessment is Assessment.POSITIVE and not self._doubtful(reading)
        )
        if abstention is not None and not caveat:
            assessment = Assessment.ABSTAINED
            score = score if abstention in SCORED else None
        extent = int((reading.severity >= 0.5).sum())
        if assessment in (Assessment.POSITIVE, Assessment.UNCLEAR):
            extent = max(1, extent)  # a fracture that is called has some extent
        return Finding(
            frame=frame,
            bundle=manifest.name,
            region=manifest.regions[best],
            region_probability=float(reading.region[best]),
            fracture_probability=reading.fracture,
            assessment=assessment,
            severity=SEVERITIES[extent] if assessment in (Assessment.POSITIVE, Assessment.UNCLEAR) else Severity.NONE,
            heatmap=self._heatmap(reading.heatmap),
            score=score,
            abstention=abstention,
            abstention_detail=detail,
            field=field,
        )

    def certainty(self, reading: RawReading) -> float:
        """How sure the body region is: the probability of the likeliest, or of the likeliest two neighbours together.

        A radiograph of the thigh shows hip and knee: it may stand between two regions and is of a known one.
        """
        pairs = (reading.region[one] + reading.region[other] for one, other in self._neighbours)
        return float(max(reading.region.max(), *pairs, 0.0))

    def _abstention(self, reading: RawReading, modality: str, body_part: str) -> tuple[AbstentionReason | None, str]:
        """The first reason to abstain, and the value that it is about; None in scope."""
        if body_part in self.manifest.other_body_parts:
            return AbstentionReason.BODY_PART, body_part
        if modality and modality not in self.manifest.modalities:
            return AbstentionReason.MODALITY, modality
        if reading.look in (Look.BLANK, Look.COLLIMATED):
            return AbstentionReason(reading.look), ""
        if reading.hardware >= self.manifest.hardware:
            return AbstentionReason.METAL, ""
        return self._doubtful(reading), ""

    def _doubtful(self, reading: RawReading) -> AbstentionReason | None:
        """Why this may be no radiograph of a known region as it should be shown."""
        if reading.look != Look.USUAL:
            return AbstentionReason(reading.look)
        if not reading.strangeness <= self.manifest.most_strangeness:
            return AbstentionReason.OUT_OF_DISTRIBUTION
        if self.certainty(reading) < self.manifest.least_region_probability:
            return AbstentionReason.REGION
        return None

    def _heatmap(self, values: npt.NDArray[np.float32]) -> Heatmap:
        scaled = np.clip(values / self.manifest.heatmap_full, 0, 1)
        return Heatmap(np.rint(scaled * 255).astype(np.uint8).tobytes(), *values.shape)


def shown(heatmaps: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The heatmaps that people see: (B, h, w) cell logits to (B, h, w) probabilities, lightly smoothed.

    A fracture spans more than one cell; a single hot one beside others that are cold is more often wrong.
    """
    chances = _sigmoid(np.asarray(heatmaps, np.float32))
    # replicated: a mirrored border would pull a peak beside it to the edge
    blurred = [cv2.GaussianBlur(one, (0, 0), SMOOTHING, borderType=cv2.BORDER_REPLICATE) for one in chances]
    return np.asarray(blurred, np.float32)


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    raised = np.exp(-np.clip(logits, -80, 80))  # exp(89) overflows float32
    return np.asarray(1 / (1 + raised), np.float32)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True), np.float32)
