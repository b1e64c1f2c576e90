"""A network in OpenVINO's form: kept on disk, for to convert it takes seconds (docs/adr/0023-converted-networks.md)."""

import contextlib
import errno
import hashlib
import inspect
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torchvision

from shared.vision import network as network_module
from shared.vision.network import BoneNet

if TYPE_CHECKING:
    import openvino

KEPT = 4  # networks: the active one, the one before it, and what second looks use
log = logging.getLogger(__name__)


def converted(network: BoneNet, size: int, folder: Path | None = None) -> "openvino.Model":
    """The network for squares of `size` pixels a side, (B, 1, S, S) uint8, any B; its outputs are `Reading`'s fields.

    folder: where converted networks are kept; None: nowhere. Whatever is wrong with it costs time and nothing else:
    what cannot be read, or is not what was written, is converted anew.
    """
    if folder is None:
        return _convert(network, size)
    place = folder / _name(network, size)
    if place.is_dir():
        try:
            return _read(place)
        except (OSError, RuntimeError, ValueError) as error:
            log.warning("a converted network cannot be used, it is made anew", extra={"error": type(error).__name__})
            shutil.rmtree(place, ignore_errors=True)
    model = _convert(network, size)
    try:
        _keep(model, place)
    except (OSError, RuntimeError) as error:  # OpenVINO says of a full disk RuntimeError
        log.warning("the converted network is not kept", extra={"error": type(error).__name__})
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
    """Of all that a converted network is made of: weights, layers, code, versions and the square's side."""
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
    """Write it, whole or not at all, and forget those that nobody used for longest. Raises OSError, RuntimeError."""
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
    for path in used[KEPT:]:
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
