"""ONNX Runtime: the engine that runs everywhere."""

import numpy as np
import onnxruntime
from jaxtyping import Float32, UInt8

from reidkit.bundle import Bundle
from reidkit.errors import RuntimeMissing
from reidkit.runtime.contract import Opening, Optimization, run_in_batches, runnable_graph, spec_of
from reidkit.types import EmbedderSpec

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_LEVELS: dict[Optimization, onnxruntime.GraphOptimizationLevel] = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_ERRORS_ONLY = 3


class OnnxRuntimeEmbedder:
    """A bundle's graph in an ONNX Runtime session."""

    def __init__(self, session: onnxruntime.InferenceSession, spec: EmbedderSpec) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self.spec = spec

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`."""
        return run_in_batches(crops, self.spec, self._run)

    def _run(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        return np.asarray(self._session.run(None, {self._input: crops})[0])


def open_embedder(bundle: Bundle, opening: Opening) -> OnnxRuntimeEmbedder:
    """Opens a session on "cpu", "cuda" or "cuda:N"; in int8, which only the processor runs, on the quantised graph.

    Raises:
        RuntimeMissing: this build of ONNX Runtime has no such device, or the bundle no graph of that precision; it
            never moves to another in silence.
    """
    device, threads = opening.device, opening.threads
    kind, _, index = device.partition(":")
    if kind not in _PROVIDERS or not (index or "0").isdecimal():
        raise RuntimeMissing(f"ONNX Runtime has no device {device!r} here", expected="cpu, cuda or cuda:N")
    graph = runnable_graph(bundle, opening)
    if kind == "cuda" and graph.build is not None:
        raise RuntimeMissing(
            "ONNX Runtime does not run the quantised graph on a card",
            got=f"int8 on {device}",
            expected="int8 on cpu; on cards int8 goes through TensorRT",
            fix="reid build --runtime tensorrt --precision int8",
        )
    provider = _PROVIDERS[kind]
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeMissing(
            f"This build of ONNX Runtime has no {kind}",
            got=", ".join(onnxruntime.get_available_providers()),
            expected=provider,
            fix="pip install onnxruntime-gpu, or say --device cpu",
        )
    # TF32 is off: a float32 graph is computed in float32.
    settings = {"device_id": index or "0", "use_tf32": "0"} if kind == "cuda" else {}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = _LEVELS[opening.optimization or "all"]
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph.file), options, providers=[(provider, settings)])
    if provider not in session.get_providers():
        raise RuntimeMissing(f"ONNX Runtime could not start {device}", got=", ".join(session.get_providers()))
    spec = spec_of(
        bundle.manifest, runtime=opening.runtime, device=device, precision=graph.precision, build=graph.build
    )
    return OnnxRuntimeEmbedder(session, spec)
