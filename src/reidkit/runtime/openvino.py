"""OpenVINO: Intel processors and graphics."""

import numpy as np
import openvino
from jaxtyping import Float32, UInt8

from reidkit.bundle import Bundle
from reidkit.errors import RuntimeMissing
from reidkit.runtime.contract import run_in_batches, spec_of
from reidkit.types import EmbedderSpec


class OpenVinoEmbedder:
    """A bundle's graph, compiled by OpenVINO."""

    def __init__(self, compiled: openvino.CompiledModel, spec: EmbedderSpec) -> None:
        self._request = compiled.create_infer_request()
        self.spec = spec

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`. One call at a time."""
        # A copy: the request's own output buffer is overwritten by the next call.
        return run_in_batches(
            crops, self.spec, lambda part: self._request.infer({0: np.ascontiguousarray(part)})[0].copy()
        )


def open_embedder(bundle: Bundle, device: str, threads: int | None) -> OpenVinoEmbedder:
    """Compiles the graph for a device of OpenVINO's ("cpu", "gpu", "npu"), in float32 and for low latency.

    Raises:
        RuntimeMissing: OpenVINO sees no such device.
    """
    core = openvino.Core()
    name = device.upper()
    if name not in core.available_devices:
        raise RuntimeMissing(f"OpenVINO sees no device {name}", expected=f"one of {', '.join(core.available_devices)}")
    # The float32 graph stays float32, also on processors where OpenVINO would choose bfloat16 by itself.
    config: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(str(bundle.model), name, config)
    spec = spec_of(bundle.manifest, runtime="openvino", device=device)
    return OpenVinoEmbedder(compiled, spec)
