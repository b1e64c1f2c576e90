"""How the network is run: torch on a GPU, OpenVINO on a CPU where it is installed, torch otherwise."""

import importlib.util
import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from shared.settings import cpu_count
from shared.vision.network import BoneNet

MOST_STREAMS = 8  # each holds the activations of a batch
log = logging.getLogger(__name__)
Floats = npt.NDArray[np.float32]


class Answer(NamedTuple):
    """`network.Reading` in numpy, float32."""

    region: Floats  # (B, R)
    fracture: Floats  # (B,)
    severity: Floats  # (B, 3)
    heatmap: Floats  # (B, h, w)
    strangeness: Floats  # (B,)
    hardware: Floats  # (B,)


Engine = Callable[[npt.NDArray[np.uint8]], Answer]  # takes (B, S, S) uint8


def pick_engine(network: BoneNet, size: int) -> Engine:
    """The fastest engine for this machine, for a service that runs long: compiling takes seconds.

    size: side of the squares, pixels.
    """
    if torch.cuda.is_available():
        return torch_engine(network, torch.device("cuda"))
    if importlib.util.find_spec("openvino"):
        return openvino_engine(network, size)
    return torch_engine(network, torch.device("cpu"))


def lanes() -> int:
    """How many batches the engine of this machine runs at a time.

    On a CPU a batch gains nothing, and a core that waits for the others at each layer's end loses: with one stream a
    core, each goes on whatever else its neighbour has to do. A GPU has one.
    """
    if torch.cuda.is_available() or not importlib.util.find_spec("openvino"):
        return 1
    return min(MOST_STREAMS, cpu_count())


def device() -> str:
    """What the network runs on here, in words: "CPU, 2 lanes, OpenVINO bf16", or the GPU's name."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch bf16"
    if not importlib.util.find_spec("openvino"):
        return "CPU, torch float32"
    import openvino  # noqa: PLC0415 - an extra

    half = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return f"CPU, {lanes()} lane{'s' * (lanes() > 1)}, OpenVINO {'bf16' if half else 'float32'}"


def half_precision(device: torch.device) -> torch.autocast:
    """For training: bfloat16 where the hardware multiplies it, else no change."""
    fast = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def torch_engine(network: BoneNet, device: torch.device) -> Engine:
    """Eager torch; on a GPU in bfloat16, with images uploaded as uint8."""
    network = network.eval().to(device)
    network = network.to(memory_format=torch.channels_last)
    half = device.type == "cuda"

    def run(squares: npt.NDArray[np.uint8]) -> Answer:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            reading = network(torch.from_numpy(squares)[:, None].to(device))
        return Answer(*(part.float().cpu().numpy() for part in reading))

    return run


def openvino_engine(network: BoneNet, size: int) -> Engine:
    """OpenVINO on the CPU, in bfloat16 where the processor has it and float32 elsewhere (OpenVINO's own choice)."""
    import openvino  # noqa: PLC0415 - an extra

    example = torch.zeros(2, 1, size, size, dtype=torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(
            network.eval().cpu(), (example,), dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}}
        )
    model = openvino.convert_model(exported)
    streams = {"NUM_STREAMS": lanes(), "INFERENCE_NUM_THREADS": cpu_count()}
    compiled = openvino.Core().compile_model(model, "CPU", streams)
    log.info("openvino", extra={"precision": str(compiled.get_property("INFERENCE_PRECISION_HINT"))})
    own = threading.local()

    def run(squares: npt.NDArray[np.uint8]) -> Answer:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        answer = own.request.infer(squares[:, None])
        return Answer(*(np.array(answer[index]) for index in range(len(Answer._fields))))

    return run
