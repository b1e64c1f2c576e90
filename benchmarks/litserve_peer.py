"""`python -m benchmarks.litserve_peer PORT BATCH WORKERS`: LitServe with the shipped model, for benchmarks/peers.py."""

import base64
import sys
from typing import Any

import litserve
import numpy as np
import numpy.typing as npt

from shared.model.bundle import load_bundle
from shared.model.engines import EngineOutput, pick_engine
from shared.settings import Settings


class Peer(litserve.LitAPI):  # type: ignore[misc]
    """The same engine behind LitServe's queue; squares are base64 in JSON, as in its examples for images."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's
        """Load and compile the bundle for the device that the engine chooses; LitServe's argument is not used."""
        network, manifest = load_bundle(Settings().bundle_path.read_bytes())
        self.size = manifest.input_size
        self.engine = pick_engine(network, self.size, Settings().cache)

    def decode_request(self, request: dict[str, Any]) -> npt.NDArray[np.uint8]:
        """Decode one square, (S, S) uint8."""
        return np.frombuffer(base64.b64decode(request["square"]), np.uint8).reshape(self.size, self.size)

    def batch(self, inputs: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """Stack squares, (B, S, S) uint8."""
        return np.stack(inputs)

    def predict(self, x: npt.NDArray[np.uint8]) -> EngineOutput:
        """Run the engine on (B, S, S), or on (S, S) if LitServe does not batch."""
        return self.engine(x if x.ndim == 3 else x[None])

    def unbatch(self, output: EngineOutput) -> list[tuple[float, bytes]]:
        """Split into fracture logit and heatmap of each square."""
        return [(float(one), heat.tobytes()) for one, heat in zip(output.fracture, output.heatmap, strict=True)]

    def encode_response(self, output: Any) -> dict[str, Any]:  # noqa: ANN401 - LitServe's
        """Encode as JSON."""
        fracture, heat = output if isinstance(output, tuple) and len(output) == 2 else self.unbatch(output)[0]
        return {"fracture": fracture, "heatmap": base64.b64encode(heat).decode()}


if __name__ == "__main__":
    port, size, workers = (int(argument) for argument in sys.argv[1:])
    litserve.LitServer(
        Peer(max_batch_size=size, batch_timeout=0.015), accelerator="cpu", workers_per_device=workers, fast_queue=True
    ).run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
