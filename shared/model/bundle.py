"""A model bundle: fp16 weights as safetensors, with a manifest in its metadata that says what they are good for.

The metadata also holds the sha256 of both, so that a damaged bundle is refused wherever the damage is.
"""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from shared.domain.manifest import Manifest, digest_of, header_length, header_of, manifest_of, metadata_of
from shared.errors import BadBundle
from shared.model.network import BoneNet


def save_bundle(path: Path, network: BoneNet, manifest: Manifest) -> str:
    """Write a bundle; floating point weights become fp16.

    Args:
        path: where the file is to be, replaced as a whole; its folder is made.
        network: the network with its weights.
        manifest: what the weights are good for.

    Returns:
        The file's sha256, hexadecimal.

    Raises:
        ValueError: weights that fp16 cannot hold, or that are no numbers.
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
        "manifest_sha256": digest_of(described.encode()),
        "weights_sha256": digest_of(save(tensors)),
    }
    content = save(tensors, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)
    return hashlib.sha256(content).hexdigest()


def load_bundle(content: bytes, sha256: str | None = None) -> tuple[BoneNet, Manifest]:
    """Rebuild the network from a bundle.

    Args:
        content: the whole file.
        sha256: what it must hash to, hexadecimal; None if that is not known.

    Returns:
        The network in float32 and eval mode, and its manifest.

    Raises:
        BadBundle: this is no intact bundle of a known format.
    """
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise BadBundle("The bundle's bytes are not those that were published (sha256 differs)")
    length = header_length(content[:8], len(content))
    metadata = metadata_of(header_of(content[8 : 8 + length]))
    manifest = manifest_of(metadata)
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise BadBundle(f"The bundle's weights cannot be read: {error}") from error
    if digest_of(save(tensors)) != metadata.get("weights_sha256"):
        raise BadBundle("The bundle's weights are damaged (sha256 differs)")
    network = BoneNet(len(manifest.regions), manifest.architecture)
    try:
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except RuntimeError as error:
        raise BadBundle("The bundle's weights do not fit its architecture") from error
    return network.eval(), manifest


def pick_device() -> torch.device:
    """Return a GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
