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

from shared.domain.findings import SCORED, AbstentionReason, Assessment, ExposedField, Extent, Finding, Heatmap
from shared.domain.manifest import Manifest
from shared.model.bundle import load_bundle, pick_device
from shared.model.engines import Engine, engine_streams, pick_engine, torch_engine
from shared.model.network import BoneNet
from shared.pixels.tensors import UInt8Image
from shared.settings import cpu_count

EXTENTS = list(Extent)
BLANK_SPREAD = 2.0  # gray levels; a prepared radiograph with less standard deviation shows nothing
EXPOSED_FROM, MIN_EXPOSED = 16, 0.02  # gray level; share of the square that must be brighter
SMOOTHING = 0.7  # standard deviation, cells
RIM, BRIGHT, BRIGHTER = 0.04, 150, 25  # share of the side; gray levels of the surround, and above the middle


class QualityFlag(StrEnum):
    """What the image quality check finds without a network; all but NONE are reasons to abstain, by the same codes."""

    NONE = ""
    BLANK = "blank"
    COLLIMATED = "collimated"
    INVERTED = "inverted"


def quality_flag(square: UInt8Image) -> QualityFlag:
    """Check the quality of an image.

    A radiograph's surround is dark; a bright one says that gray is reversed.

    Args:
        square: (S, S) uint8 from `prepare_square`.

    Returns:
        What is wrong with it.
    """
    if cv2.meanStdDev(square)[1].item() < BLANK_SPREAD:
        return QualityFlag.BLANK
    left, top, width, height = cv2.boundingRect(square)  # of what is not black
    content = square[top : top + height, left : left + width]
    if np.count_nonzero(content > EXPOSED_FROM) < MIN_EXPOSED * square.size:
        return QualityFlag.COLLIMATED
    rim = max(1, round(min(content.shape) * RIM))
    inner = content[rim:-rim, rim:-rim]
    sides = (content[:rim], content[-rim:], content[:, :rim], content[:, -rim:])
    surround = float(np.median(np.concatenate([side.ravel() for side in sides])))
    if inner.size and surround > BRIGHT and surround > cv2.mean(inner)[0] + BRIGHTER:
        return QualityFlag.INVERTED
    return QualityFlag.NONE


@dataclass(frozen=True)
class ModelOutput:
    """The network's output to one square, in numpy, before any threshold."""

    region: npt.NDArray[np.float32]  # (R,) probabilities
    fracture: float  # calibrated probability
    extent: npt.NDArray[np.float32]  # (3,) P(at least mild, moderate, severe)
    heatmap: npt.NDArray[np.float32]  # (h, w) cell probabilities, uncalibrated, as `displayed_heatmaps` makes them
    ood_score: float  # about 1 for radiographs like those that were learned from
    hardware: float  # P(metal in view)
    quality: QualityFlag


class Predictor:
    """Runs a bundle's network on batches."""

    def __init__(self, network: BoneNet, manifest: Manifest, engine: Engine | None = None) -> None:
        """engine: how the network is run; default: eager torch, which starts at once."""
        self.manifest = manifest
        places = {name: place for place, name in enumerate(manifest.regions)}
        self._neighbours = [(places[one], places[other]) for one, other in manifest.region_neighbours]
        self._run = engine or torch_engine(network, pick_device())

    @classmethod
    def for_few_images(cls, content: bytes, sha256: str | None = None) -> "Predictor":
        """Make a predictor that starts at once, for a command that reads few images.

        Args:
            content: a bundle file.
            sha256: what it must hash to, hexadecimal; None if that is not known.

        Returns:
            The predictor.

        Raises:
            BadBundle: this is no intact bundle of a known format.
        """
        return cls(*load_bundle(content, sha256))

    @classmethod
    def for_service(cls, content: bytes, sha256: str | None, folder: Path) -> "Predictor":
        """Make the fastest predictor that this machine has, for a service or many images.

        Args:
            content: a bundle file.
            sha256: what it must hash to, hexadecimal; None if that is not known.
            folder: where converted networks are kept, which saves a later start seconds.

        Returns:
            The predictor.

        Raises:
            BadBundle: this is no intact bundle of a known format.
        """
        network, manifest = load_bundle(content, sha256)
        torch.set_num_threads(
            max(1, cpu_count() // engine_streams())
        )  # where torch computes, each stream has its share
        return cls(network, manifest, pick_engine(network, manifest.input_size, folder))

    def with_limits(self, **limits: float) -> "Predictor":
        """Copy the predictor with other limits of the manifest; the network is the same."""
        other = copy.copy(self)
        other.manifest = self.manifest.model_copy(update=limits)
        return other

    @property
    def size(self) -> int:
        """Side of the squares it reads, pixels."""
        return self.manifest.input_size

    def predict(self, squares: Sequence[UInt8Image]) -> list[ModelOutput]:
        """squares: each (S, S) uint8 from `prepare_square`; returns one output each, in order."""
        stacked = np.stack(squares)
        output = self._run(stacked)
        manifest = self.manifest
        chances = _sigmoid(output.fracture * manifest.calibration.slope + manifest.calibration.offset)
        regions = _softmax(output.region / manifest.region_temperature)
        # P(at least severe) can never exceed P(at least moderate): ordinal outputs are made monotone
        extents = np.minimum.accumulate(_sigmoid(output.extent), axis=1)
        cells, hardware = displayed_heatmaps(output.heatmap), _sigmoid(output.hardware)
        return [
            ModelOutput(
                regions[i],
                float(chances[i]),
                extents[i],
                cells[i],
                float(output.ood_score[i]),
                float(hardware[i]),
                quality_flag(squares[i]),
            )
            for i in range(len(stacked))
        ]

    def finding(
        self, output: ModelOutput, frame: int, modality: str, body_part: str = "", field: ExposedField | None = None
    ) -> Finding:
        """Judge an output by the bundle's thresholds.

        Args:
            output: what `predict` returned for the frame.
            frame: number of the frame, from 1.
            modality: DICOM's code; "" for a plain picture.
            body_part: DICOM's Body Part Examined; "" if the file does not say.
            field: what the square shows of the image; None for all of it.

        Returns:
            The finding.
        """
        manifest = self.manifest
        best = int(output.region.argmax())
        abstention, detail = self._abstention(output, modality, body_part)
        assessment = manifest.operating_points.assessment(output.fracture)
        score: float | None = manifest.operating_points.score(output.fracture)
        # metal is suspected beside many a displaced fracture: a caveat where the raw score is positive, never silence,
        # but where the image is doubtful for other reasons too
        caveat = (
            abstention is AbstentionReason.METAL
            and assessment is Assessment.POSITIVE
            and not self._quality_abstention(output)
        )
        if abstention is not None and not caveat:
            assessment = Assessment.ABSTAINED
            score = score if abstention in SCORED else None
        extent = int((output.extent >= 0.5).sum())
        if assessment in (Assessment.POSITIVE, Assessment.UNCLEAR):
            extent = max(1, extent)  # a fracture that is called has some extent
        return Finding(
            frame=frame,
            bundle=manifest.name,
            region=manifest.regions[best],
            region_probability=float(output.region[best]),
            fracture_probability=output.fracture,
            assessment=assessment,
            extent=EXTENTS[extent] if assessment in (Assessment.POSITIVE, Assessment.UNCLEAR) else Extent.NONE,
            heatmap=self._heatmap(output.heatmap),
            score=score,
            abstention=abstention,
            abstention_detail=detail,
            field=field,
        )

    def certainty(self, output: ModelOutput) -> float:
        """Judge how sure the body region is.

        A radiograph of the thigh shows hip and knee: it may be between two regions and still is of a known one.

        Args:
            output: what `predict` returned for the frame.

        Returns:
            The probability of the likeliest region, or of the likeliest two neighbours together.
        """
        pairs = (output.region[one] + output.region[other] for one, other in self._neighbours)
        return float(max(output.region.max(), *pairs, 0.0))

    def _abstention(self, output: ModelOutput, modality: str, body_part: str) -> tuple[AbstentionReason | None, str]:
        """The first reason to abstain, and the value that it is about; None in scope."""
        if body_part in self.manifest.other_body_parts:
            return AbstentionReason.BODY_PART, body_part
        if modality and modality not in self.manifest.modalities:
            return AbstentionReason.MODALITY, modality
        if output.quality in (QualityFlag.BLANK, QualityFlag.COLLIMATED):
            return AbstentionReason(output.quality), ""
        if output.hardware >= self.manifest.hardware:
            return AbstentionReason.METAL, ""
        return self._quality_abstention(output), ""

    def _quality_abstention(self, output: ModelOutput) -> AbstentionReason | None:
        """Why this may be no radiograph of a known region as it should be shown."""
        if output.quality != QualityFlag.NONE:
            return AbstentionReason(output.quality)
        if not output.ood_score <= self.manifest.most_ood_score:
            return AbstentionReason.OUT_OF_DISTRIBUTION
        if self.certainty(output) < self.manifest.least_region_probability:
            return AbstentionReason.REGION
        return None

    def _heatmap(self, values: npt.NDArray[np.float32]) -> Heatmap:
        scaled = np.clip(values / self.manifest.heatmap_full, 0, 1)
        return Heatmap(np.rint(scaled * 255).astype(np.uint8).tobytes(), *values.shape)


def displayed_heatmaps(heatmaps: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Make the heatmaps that people see, lightly smoothed.

    A fracture spans more than one cell; a single hot one beside others that are cold is more often wrong.

    Args:
        heatmaps: (B, h, w), cell logits.

    Returns:
        (B, h, w) float32, probabilities.
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
