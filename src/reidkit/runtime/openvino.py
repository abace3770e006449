"""OpenVINO: Intel processors and graphics."""

import threading

import numpy as np
import openvino
from jaxtyping import Float32, UInt8

from reidkit.bundle import Bundle
from reidkit.errors import RuntimeMissing
from reidkit.runtime.contract import Opening, require_precision, run_in_batches, spec_of
from reidkit.types import EmbedderSpec


class OpenVinoEmbedder:
    """A bundle's graph, compiled by OpenVINO."""

    def __init__(self, compiled: openvino.CompiledModel, spec: EmbedderSpec) -> None:
        self._request = compiled.create_infer_request()
        self._turn = threading.Lock()  # a request takes one call at a time
        self.spec = spec

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`."""
        return run_in_batches(crops, self.spec, self._run)

    def _run(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        with self._turn:
            # A copy: the request's own output buffer is overwritten by the next call.
            return self._request.infer({0: np.ascontiguousarray(crops)})[0].copy()


def open_embedder(bundle: Bundle, opening: Opening) -> OpenVinoEmbedder:
    """Compiles the graph for a device of OpenVINO's ("cpu", "gpu", "npu"), in float32 and for low latency.

    Raises:
        RuntimeMissing: OpenVINO sees no such device.
    """
    require_precision(opening, bundle.manifest.precision)
    core = openvino.Core()
    name = opening.device.upper()
    # "GPU" is the first of "GPU.0" and "GPU.1".
    if not any(found == name or found.startswith(f"{name}.") for found in core.available_devices):
        raise RuntimeMissing(f"OpenVINO sees no device {name}", expected=f"one of {', '.join(core.available_devices)}")
    # The float32 graph stays float32, also on processors where OpenVINO would choose bfloat16 by itself.
    config: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if opening.threads is not None:
        config["INFERENCE_NUM_THREADS"] = opening.threads
    compiled = core.compile_model(str(bundle.model), name, config)
    spec = spec_of(bundle.manifest, runtime=opening.runtime, device=opening.device)
    return OpenVinoEmbedder(compiled, spec)
