"""A model bundle's manifest: read from the file, and checked, without loading its weights.

A bundle is a safetensors file (https://github.com/huggingface/safetensors, "Format"): eight bytes with the length of a
JSON header, the header, then the tensors' bytes. Its `__metadata__` holds the manifest and the sha256 of both.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shared.domain.findings import OperatingPoints
from shared.errors import BadBundle

FORMAT = "osteon-bundle-2"
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
ARCHITECTURES = ("resnet50", "densenet121", "densenet169", "vgg16")
LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.0  # of the intensity window that networks see
MAX_HEADER_BYTES = 100_000_000  # bytes; safetensors' own limit
CHUNK = 1 << 20
OTHER_VERSION = "Update Osteon, or use a bundle that this version exported."


class Calibration(BaseModel):
    """Platt scaling (Platt 1999): probability = sigmoid(slope * logit + offset)."""

    model_config = ConfigDict(frozen=True)
    slope: float = 1.0
    offset: float = 0.0


class Manifest(BaseModel):
    """A bundle's description: all that serving needs, and what was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: str = FORMAT
    name: str = Field(pattern=NAME)
    title: str = Field("", description="the name that people see; empty: the key")
    architecture: str = "resnet50"
    regions: list[str]
    input_size: int = Field(gt=0, multiple_of=32, description="side of the square, pixels; a multiple of 32")
    low_percentile: float = LOW_PERCENTILE
    high_percentile: float = HIGH_PERCENTILE
    calibration: Calibration = Calibration()
    region_temperature: float = 1.0
    sensitive: float = Field(description="operating point: sensitivity >= 0.95 on the validation radiographs")
    specific: float = Field(description="operating point: specificity >= 0.95 on the validation radiographs")
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
    most_ood_score: float = Field(gt=0, description="above this a radiograph is not like those that were learned from")
    hardware: float = Field(ge=0, le=1, description="from this probability on metal counts as in view")
    heatmap_full: float = Field(gt=0, le=1, description="cell probability drawn at full strength")
    data: dict[str, Any] = Field(default_factory=dict, description="data set, licence, split")
    metrics: dict[str, Any] = Field(default_factory=dict)
    limits: str = "Research use only. Not certified for clinical decisions."

    @model_validator(mode="before")
    @classmethod
    def _limit_by_new_name(cls, manifest: object) -> object:
        # bundles of before 0.2.0 say most_strangeness
        if isinstance(manifest, dict) and "most_strangeness" in manifest and "most_ood_score" not in manifest:
            return {("most_ood_score" if key == "most_strangeness" else key): it for key, it in manifest.items()}
        return manifest

    @field_validator("metrics", mode="before")
    @classmethod
    def _by_new_names(cls, metrics: object) -> object:
        return by_new_names(metrics)

    @property
    def operating_points(self) -> OperatingPoints:
        """Both thresholds."""
        return OperatingPoints(self.sensitive, self.specific)


# Bundles that were shipped before manifests had a title. Their keys stay: results are stored under them, and readers'
# feedback is hashed with them. "Second look" is another thing in radiology (a targeted second examination).
TITLES = {"second-look": "Osteon FracAtlas 1", "second-look-2": "Osteon FracAtlas 2"}


def title_of(name: str, manifest: Mapping[str, Any] | None = None) -> str:
    """Give the name by which people see a model.

    Args:
        name: key of the bundle.
        manifest: of the bundle, where it is at hand.

    Returns:
        The manifest's title, or that of a shipped bundle, or the key.
    """
    return str((manifest or {}).get("title") or TITLES.get(name, name))


def title_and_key(name: str, manifest: Mapping[str, Any] | None = None) -> str:
    """Give a model's title with its key in brackets where they differ: for reports, which people keep.

    Args:
        name: key of the bundle.
        manifest: of the bundle, where it is at hand.

    Returns:
        Title and key.
    """
    title = title_of(name, manifest)
    return title if title == name else f"{title} ({name})"


def by_new_names(metrics: object) -> object:
    """Figures of a bundle with the keys of today: bundles of before 0.2.0 count `films`, overall and in each group."""
    if not isinstance(metrics, dict):
        return metrics
    found = {("radiographs" if key == "films" else key): value for key, value in metrics.items()}
    if isinstance(found.get("groups"), dict):
        found["groups"] = {name: by_new_names(group) for name, group in found["groups"].items()}
    return found


def read_manifest(file: BinaryIO, size_bytes: int) -> Manifest:
    """Read the manifest of a bundle file, and check every byte against the sha256 in its metadata.

    Args:
        file: at its start; read to its end.
        size_bytes: size of the file.

    Returns:
        The manifest.

    Raises:
        BadBundle: this is no intact bundle of a known format.
    """
    header = header_of(file.read(header_length(file.read(8), size_bytes)))
    metadata = metadata_of(header)
    manifest = manifest_of(metadata)
    # as safetensors writes these tensors without any metadata, which is what the digest was taken of
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    plain = json.dumps(tensors, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
    padded = plain + b" " * (-len(plain) % 8)
    digest = hashlib.sha256(struct.pack("<Q", len(padded)) + padded)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    if digest.hexdigest() != metadata.get("weights_sha256"):
        raise BadBundle("The bundle's weights are damaged (sha256 differs)")
    return manifest


def header_length(first: bytes, size_bytes: int) -> int:
    """Read how long the header is.

    Args:
        first: the file's first eight bytes.
        size_bytes: size of the file.

    Returns:
        The header's length, in bytes.

    Raises:
        BadBundle: the length does not fit the file.
    """
    try:
        (length,) = struct.unpack_from("<Q", first)
    except struct.error:
        raise BadBundle from None
    if not 2 <= length <= min(size_bytes - 8, MAX_HEADER_BYTES):
        raise BadBundle
    return int(length)


def header_of(content: bytes) -> dict[str, Any]:
    """Parse the JSON header. Raises BadBundle."""
    try:
        header = json.loads(content)
    except (ValueError, RecursionError):
        raise BadBundle from None
    if not isinstance(header, dict):
        raise BadBundle
    return header


def metadata_of(header: dict[str, Any]) -> dict[str, str]:
    """The header's own metadata. Raises BadBundle."""
    try:
        return {str(key): str(value) for key, value in header["__metadata__"].items()}
    except (KeyError, TypeError, AttributeError):
        raise BadBundle from None


def manifest_of(metadata: dict[str, str]) -> Manifest:
    """The manifest in a bundle's metadata. Raises BadBundle if it is damaged, or this version cannot serve it."""
    try:
        described = metadata["manifest"]
        if digest_of(described.encode()) != metadata["manifest_sha256"]:
            raise BadBundle("The bundle's manifest is damaged (sha256 differs)")
        manifest = Manifest.model_validate_json(described)
    except KeyError as error:
        raise BadBundle(f"This is no Osteon model bundle: its metadata has no {error}") from None
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        raise BadBundle from None
    except ValidationError as error:
        fields = ", ".join(".".join(str(part) for part in e["loc"]) or "not JSON" for e in error.errors())
        raise BadBundle(f"The bundle's manifest is wrong: {fields}") from None
    if manifest.format != FORMAT:
        raise BadBundle(
            f"This version of Osteon does not know the bundle's format {manifest.format}", hint=OTHER_VERSION
        )
    if manifest.architecture not in ARCHITECTURES:
        raise BadBundle(
            f"Architecture {manifest.architecture} is not known to this version of Osteon", hint=OTHER_VERSION
        )
    if (manifest.low_percentile, manifest.high_percentile) != (LOW_PERCENTILE, HIGH_PERCENTILE):
        raise BadBundle(
            "The bundle was trained with another intensity window than this version applies", hint=OTHER_VERSION
        )
    return manifest


def digest_of(content: bytes) -> str:
    """Hex digest (sha256) of the bytes."""
    return hashlib.sha256(content).hexdigest()
