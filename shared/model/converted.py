"""A network in OpenVINO's form, kept on disk: converting it takes seconds (docs/adr/0023-converted-networks.md)."""

import contextlib
import errno
import hashlib
import inspect
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torchvision

from shared.logs import get_logger
from shared.model import network as network_module
from shared.model.network import BoneNet

if TYPE_CHECKING:
    import openvino

MAX_KEPT_NETWORKS = 4  # networks: the active one, the one before it, and what reruns use
log = get_logger(__name__)


def convert_or_read(network: BoneNet, size: int, folder: Path | None = None) -> "openvino.Model":
    """Convert the network for OpenVINO, or read what was converted before.

    A fault of the folder costs time and nothing else: what cannot be read, or is not what was written, is converted
    again.

    Args:
        network: the network with its weights.
        size: side of the squares, pixels.
        folder: where converted networks are kept; None: nowhere.

    Returns:
        A model that takes (B, 1, S, S) uint8, any B; its outputs are `NetworkOutput`'s fields.
    """
    if folder is None:
        return _convert(network, size)
    place = folder / _name(network, size)
    if place.is_dir():
        try:
            return _read(place)
        except (OSError, RuntimeError, ValueError) as error:
            log.warning("converted network discarded", error=type(error).__name__)
            shutil.rmtree(place, ignore_errors=True)
    model = _convert(network, size)
    try:
        _keep(model, place)
    except (OSError, RuntimeError) as error:  # OpenVINO raises RuntimeError for a full disk
        log.warning("converted network not kept", error=type(error).__name__)
    return model


def _convert(network: BoneNet, size: int) -> "openvino.Model":
    import openvino  # noqa: PLC0415 - an extra

    example = torch.zeros(2, 1, size, size, dtype=torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(
            network.eval().cpu(), (example,), dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}}
        )
    return openvino.convert_model(exported)


def _name(network: BoneNet, size: int) -> str:
    """Hash all that a converted network is made of: weights, layers, code, versions and the square's side."""
    import openvino  # noqa: PLC0415 - an extra

    code = (inspect.getsource(network_module), inspect.getsource(sys.modules[__name__]))
    versions = (openvino.__version__, torch.__version__, torchvision.__version__)
    digest = hashlib.sha256("\0".join([*code, *versions, repr(network), str(size)]).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _read(place: Path) -> "openvino.Model":
    """Raises OSError, RuntimeError; ValueError for other bytes than were written."""
    import openvino  # noqa: PLC0415 - an extra

    written = (place / "sha256").read_text()
    if written != _digest(place):
        raise ValueError(f"{place} is damaged")
    with contextlib.suppress(OSError):
        os.utime(place)  # used lately
    return openvino.Core().read_model(place / "network.xml")


def _keep(model: "openvino.Model", place: Path) -> None:
    """Write it, whole or not at all, and remove those that were used longest ago. Raises OSError, RuntimeError."""
    import openvino  # noqa: PLC0415 - an extra

    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=place.parent, prefix="partial-"))
    try:
        openvino.save_model(model, partial / "network.xml", compress_to_fp16=False)
        (partial / "sha256").write_text(_digest(partial))
        partial.rename(place)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another worker was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    used = sorted((path for path in place.parent.iterdir() if path.is_dir()), key=_used_at, reverse=True)
    for path in used[MAX_KEPT_NETWORKS:]:
        shutil.rmtree(path, ignore_errors=True)


def _digest(place: Path) -> str:
    digests = []
    for name in ("network.xml", "network.bin"):
        with (place / name).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return " ".join(digests)


def _used_at(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:  # another worker forgot it
        return 0.0
