"""How the network is run: torch on a GPU, OpenVINO on a CPU where it is installed, torch otherwise.

What each does, what was measured, and why none computes in INT8: docs/adr/0021-engines.md.
"""

import copy
import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.logs import get_logger
from shared.model.converted import convert_or_read
from shared.model.network import BoneNet
from shared.settings import cpu_count

MAX_STREAMS = 8  # each holds the activations of a batch
BATCHES = (1, 2, 4, 8, 16, 32)  # images: what a GPU is made ready for
log = get_logger(__name__)
Floats = npt.NDArray[np.float32]


class EngineOutput(NamedTuple):
    """`network.NetworkOutput` in numpy, float32."""

    region: Floats  # (B, R)
    fracture: Floats  # (B,)
    extent: Floats  # (B, 3)
    heatmap: Floats  # (B, h, w)
    ood_score: Floats  # (B,)
    hardware: Floats  # (B,)


Engine = Callable[[npt.NDArray[np.uint8]], EngineOutput]  # takes (B, S, S) uint8
Step = Callable[[], Sequence[Tensor]]  # reads the buffer it was made for; returns the fields of `network.NetworkOutput`


def pick_engine(network: BoneNet, size: int, folder: Path | None = None) -> Engine:
    """Make the fastest engine for this machine, for a service that runs long: making it takes seconds.

    Args:
        network: the network with its weights.
        size: side of the squares, pixels.
        folder: where OpenVINO's converted networks are kept for the next start; None: nowhere.

    Returns:
        The engine.
    """
    if torch.cuda.is_available():
        return gpu_engine(network, size)
    if importlib.util.find_spec("openvino"):
        return openvino_engine(network, size, folder)
    return torch_engine(fold_batch_norm(network), torch.device("cpu"))


def engine_streams() -> int:
    """Count the batches that this machine's engine runs at a time.

    On a CPU a core that waits for the others at each layer's end loses time: with one stream a core, each goes on
    whatever else its neighbour has to do.

    Returns:
        The number of streams; 1 on a GPU.
    """
    return min(MAX_STREAMS, cpu_count()) if _openvino() else 1


def calling_threads() -> int:
    """How many threads should keep the engine busy: OpenVINO queues one call more, so no stream waits for Python."""
    return engine_streams() + 1 if _openvino() else 1


def images_per_call(max_images: int) -> int:
    """Count the images that a stream takes at a time.

    OpenVINO gains nothing from a batch: a single image is finished soonest, and an urgent one waits for no other's.

    Args:
        max_images: how many images the model may take at a time.

    Returns:
        The number of images.
    """
    return 1 if _openvino() else max_images


def device_description() -> str:
    """What the network runs on here, in words: "CPU, 2 streams, OpenVINO bf16", or the GPU's name."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch bf16"
    if not importlib.util.find_spec("openvino"):
        return "CPU, torch float32"
    import openvino  # noqa: PLC0415 - an extra

    half = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return f"CPU, {engine_streams()} stream{'s' * (engine_streams() > 1)}, OpenVINO {'bf16' if half else 'float32'}"


def half_precision(device: torch.device) -> torch.autocast:
    """For training: bfloat16 where the hardware multiplies it, else no change."""
    fast = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def torch_engine(network: BoneNet, device: torch.device) -> Engine:
    """Make an engine of eager torch, which starts at once.

    Args:
        network: the network with its weights; it is moved to the device.
        device: on a GPU the engine computes in bfloat16, with images uploaded as uint8; on a CPU in float32.

    Returns:
        The engine.
    """
    network = network.eval().to(device)
    network = network.to(memory_format=torch.channels_last)
    half = device.type == "cuda"

    def run(squares: npt.NDArray[np.uint8]) -> EngineOutput:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = network(torch.from_numpy(squares)[:, None].to(device))
        return EngineOutput(*(part.float().cpu().numpy() for part in output))

    return run


def fold_batch_norm(network: BoneNet) -> BoneNet:
    """Copy a network for inference: each batch norm that follows a convolution is merged into that one's weights.

    A third of a ResNet's passes over memory are saved.

    Args:
        network: the network with its weights.

    Returns:
        A copy that computes the same function, but for rounding.
    """
    network = copy.deepcopy(network).eval()
    graph = fx.symbolic_trace(network).graph  # the original's modules by name: who follows whom
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = network.get_submodule(str(before.target)), network.get_submodule(node.target)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            network.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            network.set_submodule(node.target, nn.Identity())
    return network


def to_bfloat16(network: BoneNet) -> BoneNet:
    """Convert the network's convolutions to bfloat16, rounded once and not at each batch; run it under autocast."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(torch.bfloat16)
    return network.to(memory_format=torch.channels_last)


def gpu_engine(network: BoneNet, size: int) -> Engine:
    """Make a GPU's engine: batch norm folded, bfloat16, channels last, one CUDA graph for each batch size.

    Args:
        network: the network with its weights; it is copied.
        size: side of the squares, pixels.

    Returns:
        The engine.
    """
    torch.backends.cudnn.benchmark = True  # shapes are fixed: the search for the best kernel pays once
    ready = to_bfloat16(fold_batch_norm(network)).to("cuda")
    return fixed_batches(size, lambda squares: _captured(ready, squares), pinned=True)


def fixed_batches(size: int, start: Callable[[Tensor], Step], *, pinned: bool = False) -> Engine:
    """Make an engine of steps with fixed batch sizes: a batch is padded to the next size, one beyond the last is split.

    The padding is images of earlier batches; no image's result depends on the others of its batch.

    Args:
        size: side of the squares, pixels.
        start: makes a step that reads this buffer, (B, 1, S, S) uint8 in the host's memory, whenever it is called.
            Buffers are reused, so callers wait for each other.
        pinned: whether a GPU reads the buffers.

    Returns:
        The engine.
    """
    with torch.inference_mode():
        buffers = {batch: torch.zeros((batch, 1, size, size), dtype=torch.uint8) for batch in BATCHES}
        if pinned:
            buffers = {batch: buffer.pin_memory() for batch, buffer in buffers.items()}
        steps = {batch: start(buffer) for batch, buffer in buffers.items()}
    held = threading.Lock()

    def part(squares: npt.NDArray[np.uint8]) -> EngineOutput:
        batch = next(batch for batch in BATCHES if batch >= len(squares))
        buffers[batch][: len(squares), 0].numpy()[:] = squares
        # copied: the next batch writes over it
        return EngineOutput(*(np.array(one[: len(squares)].float().numpy()) for one in steps[batch]()))

    def run(squares: npt.NDArray[np.uint8]) -> EngineOutput:
        with held, torch.inference_mode():
            parts = [part(squares[at : at + BATCHES[-1]]) for at in range(0, len(squares), BATCHES[-1])]
        return (
            parts[0]
            if len(parts) == 1
            else EngineOutput(*(np.concatenate(field) for field in zip(*parts, strict=True)))
        )

    return run


def _captured(network: BoneNet, squares: Tensor) -> Step:
    """The network as a CUDA graph: copy up, compute, copy down, without Python in between.

    All that needs a GPU, and the one function here that no test reaches: it was written without a GPU at hand.
    network: as `to_bfloat16` makes it, on the GPU; squares: (B, 1, S, S) uint8, pinned.
    """
    above = squares.cuda()

    def forward() -> list[Tensor]:
        # without its cache: what that holds would be freed while the graph still reads it
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return [part.float() for part in network(above)]

    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # kernels are chosen and memory is taken before the capture
            forward()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # thread_local: the bundle before this one is still at work in another thread
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = forward()
    below = [torch.empty(part.shape, dtype=part.dtype).pin_memory() for part in outputs]

    def step() -> list[Tensor]:
        above.copy_(squares, non_blocking=True)
        graph.replay()
        for host, part in zip(below, outputs, strict=True):
            host.copy_(part, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return below

    return step


def openvino_engine(network: BoneNet, size: int, folder: Path | None = None) -> Engine:
    """Make an engine of OpenVINO on the CPU, in bfloat16 if the processor has it, else float32 (OpenVINO's own choice).

    Args:
        network: the network with its weights.
        size: side of the squares, pixels.
        folder: where converted networks are kept for the next start; None: nowhere.

    Returns:
        The engine.
    """
    import openvino  # noqa: PLC0415 - an extra

    model = convert_or_read(network, size, folder)
    options = {"NUM_STREAMS": engine_streams(), "INFERENCE_NUM_THREADS": cpu_count()}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    log.info("network compiled", engine="openvino", precision=str(compiled.get_property("INFERENCE_PRECISION_HINT")))
    own = threading.local()

    def run(squares: npt.NDArray[np.uint8]) -> EngineOutput:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        output = own.request.infer(squares[:, None])
        return EngineOutput(*(np.array(output[index]) for index in range(len(EngineOutput._fields))))

    # alone: where two threads are the first to show OpenVINO's bindings an array, one waits for the interpreter lock
    # and the other, which holds it, for the first
    run(np.zeros((1, size, size), np.uint8))
    return run


def _openvino() -> bool:
    """Whether that is what `pick_engine` picks."""
    return not torch.cuda.is_available() and importlib.util.find_spec("openvino") is not None
