"""OpenVINO: Intel processors and graphics."""

from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import openvino
from jaxtyping import Float32, UInt8

from reidkit.bundle import Bundle
from reidkit.errors import RuntimeMissing
from reidkit.runtime.contract import Hint, Opening, check_crops, run_in_batches, runnable_graph, spec_of
from reidkit.runtime.openvino_core import CORE
from reidkit.types import EmbedderSpec, Precision

_CAPABILITIES: dict[Precision, tuple[str, str]] = {
    "float32": ("FP32", "f32"),
    "float16": ("FP16", "f16"),
    "bfloat16": ("BF16", "bf16"),
    "int8": ("INT8", "f32"),
}
"""What a device says of itself where it computes in a precision, and the hint for what is not quantised there."""


class OpenVinoEmbedder:
    """A bundle's graph, compiled by OpenVINO, with as many infer requests as OpenVINO wants for its hint.

    Calls of several threads run on different requests, and wait where all are taken. For throughput a call of many
    crops is cut into pieces, which run side by side.
    """

    def __init__(self, compiled: openvino.CompiledModel, spec: EmbedderSpec, hint: Hint) -> None:
        self._count = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(self._count):
            self._idle.put(compiled.create_infer_request())
        self._workers = ThreadPoolExecutor(self._count) if hint == "throughput" and self._count > 1 else None
        self.spec = spec

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`."""
        check_crops(crops, self.spec)
        batch = self.spec.batch or 1  # no piece of a fixed graph is smaller: it would be filled up
        batches = -(-len(crops) // batch)
        pieces = min(self._count, batches)
        if self._workers is None or pieces < 2:
            return self._run(crops)
        ends = [batches * i // pieces * batch for i in range(1, pieces)]
        return np.concatenate(list(self._workers.map(self._run, np.split(crops, ends))))

    def _run(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        return run_in_batches(crops, self.spec, self._infer)

    def _infer(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        request = self._idle.get()
        try:
            # A copy: the request's own output buffer is overwritten by the next call.
            return request.infer({0: np.ascontiguousarray(crops)})[0].copy()
        finally:
            self._idle.put(request)


def open_embedder(bundle: Bundle, opening: Opening) -> OpenVinoEmbedder:
    """Compiles the graph for a device of OpenVINO's ("cpu", "gpu", "npu"): in float32 unless asked, and for latency.

    Raises:
        RuntimeMissing: OpenVINO sees no such device, the device does not compute in that precision, or the bundle has
            no graph of it.
    """
    graph = runnable_graph(bundle, opening, "float16", "bfloat16")
    name = opening.device.upper()
    # "GPU" is the first of "GPU.0" and "GPU.1".
    if not any(found == name or found.startswith(f"{name}.") for found in CORE.available_devices):
        raise RuntimeMissing(f"OpenVINO sees no device {name}", expected=f"one of {', '.join(CORE.available_devices)}")
    hint: Hint = opening.hint or "latency"
    config: dict[str, object] = {
        "PERFORMANCE_HINT": hint.upper(),
        "INFERENCE_PRECISION_HINT": _arithmetic(name, bundle.manifest.precision, graph.precision),
    }
    if opening.threads is not None:
        config["INFERENCE_NUM_THREADS"] = opening.threads
    compiled = CORE.compile_model(str(graph.file), name, config)
    spec = spec_of(
        bundle.manifest,
        runtime=opening.runtime,
        device=opening.device,
        precision=graph.precision,
        build=graph.build,
    )
    return OpenVinoEmbedder(compiled, spec, hint)


def _arithmetic(device: str, own: Precision, asked: Precision) -> str:
    """The hint for the arithmetic of maps. Without one OpenVINO takes bfloat16 by itself where a processor has it.

    A graph whose own weights are float16 or bfloat16 says itself where it rounds: what is between is float32.
    """
    arithmetic: Precision = "float32" if asked == own != "int8" else asked
    offered = CORE.get_property(device, "OPTIMIZATION_CAPABILITIES")
    capability, hint = _CAPABILITIES[arithmetic]
    if capability not in offered:
        known = [precision for precision, (word, _) in _CAPABILITIES.items() if word in offered]
        raise RuntimeMissing(
            f"openvino does not run this bundle in {arithmetic} here",
            got=f"{device} does not compute in it",
            expected=f"one of {', '.join(known)}",
            fix="choose another precision or device",
        )
    return hint
