"""How the network is run: torch on a GPU, OpenVINO on a CPU where it is installed, torch otherwise.

What each does, what was measured, and why none computes in INT8: docs/adr/0021-engines.md.
"""

import copy
import importlib.util
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.settings import cpu_count
from shared.vision.converted import converted
from shared.vision.network import BoneNet

MOST_STREAMS = 8  # each holds the activations of a batch
BATCHES = (1, 2, 4, 8, 16, 32)  # images: what a GPU is made ready for
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
Step = Callable[[], Sequence[Tensor]]  # reads the buffer it was made for; returns the fields of `network.Reading`


def pick_engine(network: BoneNet, size: int, folder: Path | None = None) -> Engine:
    """The fastest engine for this machine, for a service that runs long: making it takes seconds.

    size: side of the squares, pixels; folder: where converted networks are kept, for one that is loaded again.
    """
    if torch.cuda.is_available():
        return gpu_engine(network, size)
    if importlib.util.find_spec("openvino"):
        return openvino_engine(network, size, folder)
    return torch_engine(folded(network), torch.device("cpu"))


def lanes() -> int:
    """How many batches the engine of this machine runs at a time.

    On a CPU a core that waits for the others at each layer's end loses: with one stream a core, each goes on whatever
    else its neighbour has to do. A GPU has one.
    """
    return min(MOST_STREAMS, cpu_count()) if _openvino() else 1


def callers() -> int:
    """How many threads should keep the engine busy: OpenVINO queues one call more, so no lane waits for Python."""
    return lanes() + 1 if _openvino() else 1


def images_a_call(most: int) -> int:
    """How many images a lane takes at a time, where the model may hold so many.

    OpenVINO gains nothing from a batch: one image is out of the way soonest, and an urgent one waits for no other's.
    """
    return 1 if _openvino() else most


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
    """Eager torch, which starts at once; on a GPU in bfloat16, with images uploaded as uint8."""
    network = network.eval().to(device)
    network = network.to(memory_format=torch.channels_last)
    half = device.type == "cuda"

    def run(squares: npt.NDArray[np.uint8]) -> Answer:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            reading = network(torch.from_numpy(squares)[:, None].to(device))
        return Answer(*(part.float().cpu().numpy() for part in reading))

    return run


def folded(network: BoneNet) -> BoneNet:
    """A copy for inference, in which each batch norm that follows a convolution has gone into that one's weights.

    The same function, but for rounding; a third of a ResNet's passes over memory are saved.
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


def halved(network: BoneNet) -> BoneNet:
    """The network with its convolutions in bfloat16, rounded once and not at each batch; run it under autocast."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(torch.bfloat16)
    return network.to(memory_format=torch.channels_last)


def gpu_engine(network: BoneNet, size: int) -> Engine:
    """A GPU's: batch norm folded, bfloat16, channels last, one CUDA graph for each batch size.

    size: side of the squares, pixels.
    """
    torch.backends.cudnn.benchmark = True  # shapes are fixed: the search for the best kernel pays once
    ready = halved(folded(network)).to("cuda")
    return fixed_batches(size, lambda squares: _captured(ready, squares), pinned=True)


def fixed_batches(size: int, start: Callable[[Tensor], Step], *, pinned: bool = False) -> Engine:
    """An engine out of steps of fixed batch sizes: a batch is padded up to the next, one beyond the last is cut.

    size: side of the squares, pixels. start: makes a step that reads this buffer, (B, 1, S, S) uint8 in the host's
    memory, whenever it is called; buffers are reused, so one caller is answered at a time. pinned: a GPU reads them.
    What lies in the padding are images of earlier batches; no image's answer depends on its neighbours.
    """
    with torch.inference_mode():
        buffers = {batch: torch.zeros((batch, 1, size, size), dtype=torch.uint8) for batch in BATCHES}
        if pinned:
            buffers = {batch: buffer.pin_memory() for batch, buffer in buffers.items()}
        steps = {batch: start(buffer) for batch, buffer in buffers.items()}
    held = threading.Lock()

    def part(squares: npt.NDArray[np.uint8]) -> Answer:
        batch = next(batch for batch in BATCHES if batch >= len(squares))
        buffers[batch][: len(squares), 0].numpy()[:] = squares
        # copied: the next batch writes over it
        return Answer(*(np.array(one[: len(squares)].float().numpy()) for one in steps[batch]()))

    def run(squares: npt.NDArray[np.uint8]) -> Answer:
        with held, torch.inference_mode():
            parts = [part(squares[at : at + BATCHES[-1]]) for at in range(0, len(squares), BATCHES[-1])]
        return parts[0] if len(parts) == 1 else Answer(*(np.concatenate(field) for field in zip(*parts, strict=True)))

    return run


def _captured(network: BoneNet, squares: Tensor) -> Step:
    """The network as a CUDA graph: copy up, compute, copy down, without Python in between.

    All that needs a GPU, and the one function here that no test reaches: it was written without a GPU at hand.
    network: as `halved` makes it, on the GPU; squares: (B, 1, S, S) uint8, pinned.
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
        said = forward()
    below = [torch.empty(part.shape, dtype=part.dtype).pin_memory() for part in said]

    def step() -> list[Tensor]:
        above.copy_(squares, non_blocking=True)
        graph.replay()
        for host, part in zip(below, said, strict=True):
            host.copy_(part, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return below

    return step


def openvino_engine(network: BoneNet, size: int, folder: Path | None = None) -> Engine:
    """OpenVINO on the CPU, in bfloat16 where the processor has it and float32 elsewhere (OpenVINO's own choice).

    size, folder: as for `pick_engine`.
    """
    import openvino  # noqa: PLC0415 - an extra

    model = converted(network, size, folder)
    streams = {"NUM_STREAMS": lanes(), "INFERENCE_NUM_THREADS": cpu_count()}
    compiled = openvino.Core().compile_model(model, "CPU", streams)
    log.info("openvino", extra={"precision": str(compiled.get_property("INFERENCE_PRECISION_HINT"))})
    own = threading.local()

    def run(squares: npt.NDArray[np.uint8]) -> Answer:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        answer = own.request.infer(squares[:, None])
        return Answer(*(np.array(answer[index]) for index in range(len(Answer._fields))))

    # alone: where two threads are the first to show OpenVINO's bindings an array, one waits for the interpreter lock
    # and the other, which holds it, for the first
    run(np.zeros((1, size, size), np.uint8))
    return run


def _openvino() -> bool:
    """Whether that is what `pick_engine` picks."""
    return not torch.cuda.is_available() and importlib.util.find_spec("openvino") is not None
