"""ONNX Runtime: the engine that runs everywhere."""

import numpy as np
import onnxruntime
from jaxtyping import Float32, UInt8

from reidkit.bundle import Bundle
from reidkit.errors import RuntimeMissing
from reidkit.runtime.contract import Opening, require_precision, run_in_batches, spec_of
from reidkit.types import EmbedderSpec

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
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
    """Opens a session on "cpu", "cuda" or "cuda:N".

    Raises:
        RuntimeMissing: this build of ONNX Runtime has no such device; it never moves to another in silence.
    """
    require_precision(opening, bundle.manifest.precision)
    device, threads = opening.device, opening.threads
    kind, _, index = device.partition(":")
    if kind not in _PROVIDERS or not (index or "0").isdecimal():
        raise RuntimeMissing(f"ONNX Runtime has no device {device!r} here", expected="cpu, cuda or cuda:N")
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
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(bundle.model), options, providers=[(provider, settings)])
    if provider not in session.get_providers():
        raise RuntimeMissing(f"ONNX Runtime could not start {device}", got=", ".join(session.get_providers()))
    spec = spec_of(bundle.manifest, runtime=opening.runtime, device=device)
    return OnnxRuntimeEmbedder(session, spec)
