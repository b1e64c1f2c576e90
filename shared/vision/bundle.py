"""A model bundle: fp16 weights as safetensors, with a manifest in its metadata that says what they are good for.

The metadata also holds the sha256 of both, so that a damaged bundle is refused wherever the damage is.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from shared.errors import BadBundle
from shared.findings import OperatingPoints
from shared.vision.network import ARCHITECTURES, BoneNet
from shared.vision.tensors import HIGH_PERCENTILE, LOW_PERCENTILE

FORMAT = "osteon-bundle-2"
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class Calibration(BaseModel):
    """Platt scaling (Platt 1999): probability = sigmoid(slope * logit + offset)."""

    model_config = ConfigDict(frozen=True)
    slope: float = 1.0
    offset: float = 0.0


class Manifest(BaseModel):
    """What a bundle is: everything that serving needs to know, and what was measured of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: str = FORMAT
    name: str = Field(pattern=NAME)
    architecture: str = "resnet50"
    regions: list[str]
    input_size: int = Field(gt=0, multiple_of=32, description="side of the square, pixels; a multiple of 32")
    low_percentile: float = LOW_PERCENTILE
    high_percentile: float = HIGH_PERCENTILE
    calibration: Calibration = Calibration()
    region_temperature: float = 1.0
    sensitive: float = Field(description="operating point: sensitivity >= 0.95 on the validation films")
    specific: float = Field(description="operating point: specificity >= 0.95 on the validation films")
    modalities: list[str] = Field(description="in scope; others are analysed, but the model abstains")
    other_body_parts: list[str] = Field(
        default_factory=list, description="Body Part Examined (PS3.16 CID 4031 or annex L) out of scope; abstains"
    )
    region_neighbours: list[tuple[str, str]] = Field(
        default_factory=list, description="regions that share a bone: between the two of a pair no region is doubtful"
    )
    least_region_probability: float = Field(
        description="below this the likeliest region counts as unknown, and so do the likeliest two neighbours together"
    )
    most_strangeness: float = Field(gt=0, description="above this a film is not like those that were learned from")
    hardware: float = Field(ge=0, le=1, description="from this probability on metal counts as in view")
    heatmap_full: float = Field(gt=0, le=1, description="cell probability drawn at full strength")
    data: dict[str, Any] = Field(default_factory=dict, description="data set, licence, split")
    metrics: dict[str, Any] = Field(default_factory=dict)
    limits: str = "Research use only. Not certified for clinical decisions."

    @property
    def operating_points(self) -> OperatingPoints:
        """Both thresholds."""
        return OperatingPoints(self.sensitive, self.specific)


def save_bundle(path: Path, network: BoneNet, manifest: Manifest) -> str:
    """Write a bundle; floating point weights become fp16. Returns the file's sha256.

    Raises ValueError for weights that fp16 cannot hold, or that are no numbers.
    """
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    broken = [name for name, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"weights are not finite in fp16: {', '.join(broken[:3])}")
    described = manifest.model_dump_json()
    metadata = {
        "manifest": described,
        "manifest_sha256": _digest(described.encode()),
        "weights_sha256": _digest(save(tensors)),
    }
    content = save(tensors, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)
    return hashlib.sha256(content).hexdigest()


def load_bundle(content: bytes, sha256: str | None = None) -> tuple[BoneNet, Manifest]:
    """Rebuild the network, in float32 and eval mode.

    content: the whole file; sha256: what it must hash to, when known.
    Raises BadBundle for anything but an intact bundle of a known format.
    """
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise BadBundle("The bundle's bytes are not those that were published (sha256 differs)")
    metadata = _metadata(content)
    manifest = _manifest(metadata)
    if manifest.architecture not in ARCHITECTURES:
        raise BadBundle(f"Architecture {manifest.architecture} is not known to this version of Osteon")
    if (manifest.low_percentile, manifest.high_percentile) != (LOW_PERCENTILE, HIGH_PERCENTILE):
        raise BadBundle("The bundle was trained with another intensity window than this version applies")
    try:
        tensors = load(content)
    except SafetensorError as wrong:
        raise BadBundle(f"The bundle's weights cannot be read: {wrong}") from wrong
    if _digest(save(tensors)) != metadata.get("weights_sha256"):
        raise BadBundle("The bundle's weights are damaged (sha256 differs)")
    network = BoneNet(len(manifest.regions), manifest.architecture)
    try:
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except RuntimeError as wrong:
        raise BadBundle("The bundle's weights do not fit its architecture") from wrong
    return network.eval(), manifest


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata in a safetensors header: eight bytes of length, then JSON."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        if not 2 <= length <= min(len(content) - 8, 100_000_000):
            raise BadBundle
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        return {str(key): str(value) for key, value in metadata.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadBundle from None


def _manifest(metadata: dict[str, str]) -> Manifest:
    try:
        described = metadata["manifest"]
        if _digest(described.encode()) != metadata["manifest_sha256"]:
            raise BadBundle("The bundle's manifest is damaged (sha256 differs)")
        manifest = Manifest.model_validate_json(described)
    except KeyError as missing:
        raise BadBundle(f"This is no Osteon model bundle: its metadata has no {missing}") from None
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        raise BadBundle from None
    except ValidationError as wrong:
        fields = ", ".join(".".join(str(part) for part in e["loc"]) or "not JSON" for e in wrong.errors())
        raise BadBundle(f"The bundle's manifest is wrong: {fields}") from None
    if manifest.format != FORMAT:
        raise BadBundle(f"The bundle's format {manifest.format} is not known to this version of Osteon")
    return manifest


def pick_device() -> torch.device:
    """A GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
