"""A bundle at work: prepared squares in, findings out. The worker, `osteon predict` and evaluation all use it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.findings import IN_SCOPE, Call, Finding, Heatmap, Severity
from shared.vision.bundle import Manifest, load_bundle, pick_device
from shared.vision.engines import Engine, pick_engine, torch_engine
from shared.vision.network import BoneNet
from shared.vision.tensors import UInt8Image

SEVERITIES = list(Severity)
BLANK_SPREAD = 2.0  # gray levels; a prepared film with less standard deviation shows nothing


@dataclass(frozen=True)
class RawReading:
    """The network's answer to one square, in numpy, before any threshold."""

    region: npt.NDArray[np.float32]  # (R,) probabilities
    fracture: float  # calibrated probability
    severity: npt.NDArray[np.float32]  # (3,) P(at least mild, moderate, severe)
    heatmap: npt.NDArray[np.float32]  # (h, w) map values
    blank: bool


class Reader:
    """Runs a bundle's network on batches."""

    def __init__(self, network: BoneNet, manifest: Manifest, engine: Engine | None = None) -> None:
        """engine: how the network is run; default: eager torch, which starts at once."""
        self.manifest = manifest
        self._run = engine or torch_engine(network, pick_device())

    @classmethod
    def of_bundle(cls, content: bytes, sha256: str | None = None, *, resident: bool = False) -> "Reader":
        """content: a bundle file; resident: for a service, take seconds now to compile for speed. Raises BadBundle."""
        network, manifest = load_bundle(content, sha256)
        return cls(network, manifest, pick_engine(network, manifest.input_size) if resident else None)

    @property
    def size(self) -> int:
        """Side of the squares it reads, pixels."""
        return self.manifest.input_size

    def read(self, squares: Sequence[UInt8Image]) -> list[RawReading]:
        """squares: each (S, S) uint8 from `prepare`; returns one reading each, in order."""
        stacked = np.stack(squares)
        region, fracture, severity, heatmap = self._run(stacked)
        manifest = self.manifest
        chances = _sigmoid(fracture * manifest.calibration.slope + manifest.calibration.offset)
        regions = _softmax(region / manifest.region_temperature)
        # P(at least severe) can never exceed P(at least moderate): ordinal answers are made monotone
        severities = np.minimum.accumulate(_sigmoid(severity), axis=1)
        blank = stacked.reshape(len(stacked), -1).std(1) < BLANK_SPREAD
        return [
            RawReading(regions[i], float(chances[i]), severities[i], heatmap[i], bool(blank[i]))
            for i in range(len(stacked))
        ]

    def finding(self, reading: RawReading, frame: int, modality: str) -> Finding:
        """Put a reading in words. frame: 1 for the first; modality: DICOM's, "" for a plain picture."""
        manifest = self.manifest
        best = int(reading.region.argmax())
        scope = self._scope(reading, float(reading.region[best]), modality)
        call = manifest.operating_points.call(reading.fracture) if scope == IN_SCOPE else Call.ABSTAINED
        extent = int((reading.severity >= 0.5).sum())
        if call in (Call.LIKELY, Call.POSSIBLE):
            extent = max(1, extent)  # a fracture that is called has some extent
        return Finding(
            frame=frame,
            bundle=manifest.name,
            region=manifest.regions[best],
            region_probability=float(reading.region[best]),
            fracture_probability=reading.fracture,
            call=call,
            severity=SEVERITIES[extent] if call in (Call.LIKELY, Call.POSSIBLE) else Severity.NONE,
            scope=scope,
            heatmap=self._heatmap(reading.heatmap),
        )

    def _scope(self, reading: RawReading, region_probability: float, modality: str) -> str:
        if modality and modality not in self.manifest.modalities:
            return f"modality {modality} is outside the model's validated scope"
        if reading.blank:
            return "the image is blank"
        if region_probability < self.manifest.least_region_probability:
            return "the body region was not recognised"
        return IN_SCOPE

    def _heatmap(self, values: npt.NDArray[np.float32]) -> Heatmap:
        scaled = np.clip(values / self.manifest.heatmap_full, 0, 1)
        return Heatmap(np.rint(scaled * 255).astype(np.uint8).tobytes(), *values.shape)


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    raised = np.exp(-np.clip(logits, -80, 80))  # exp(89) overflows float32
    return np.asarray(1 / (1 + raised), np.float32)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True), np.float32)
