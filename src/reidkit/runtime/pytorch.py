"""PyTorch: the network that was trained, built from the bundle's weights, run operator by operator."""

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from reidkit.bundle import Bundle
from reidkit.models.checkpoint import load_deployed
from reidkit.models.deployed import PlacedModel, event_seconds, open_device, precisions
from reidkit.runtime.contract import Opening, require_precision, run_in_batches, spec_of
from reidkit.types import Embedder, EmbedderSpec


class PyTorchEmbedder:
    """A model in evaluation mode on a device."""

    def __init__(self, model: PlacedModel, spec: EmbedderSpec) -> None:
        self._model = model
        self.spec = spec

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`."""
        return run_in_batches(crops, self.spec, self._run)

    def _run(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        with torch.inference_mode(), self._model.arithmetic():
            # A copy: torch takes no reversed views, and warns of arrays that are read-only, as Pillow's are.
            pixels = torch.from_numpy(np.array(crops, order="C")).to(self._model.device)
            return self._model(pixels).cpu().numpy()


class CudaPyTorchEmbedder:
    """The same on a graphics card, whose clock and memory can be read (`reidkit.types.Timed`)."""

    def __init__(self, model: PlacedModel, spec: EmbedderSpec) -> None:
        self._model = model
        self._embedder = PyTorchEmbedder(model, spec)
        self.spec = spec

    @property
    def device_memory(self) -> int:
        """Bytes of the card; see `PlacedModel.device_memory`."""
        return self._model.device_memory

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`."""
        return self._embedder.embed(crops)

    def device_seconds(self, batch: int, runs: int) -> list[float]:
        """Seconds of the card for each run of a batch. Where it waits for Python to launch kernels, that counts too."""
        device, size = self._model.device, self.spec.input
        with torch.inference_mode(), torch.cuda.device(device), self._model.arithmetic():
            crops = torch.zeros((batch, size.height, size.width, 3), dtype=torch.uint8, device=device)
            return event_seconds(lambda: self._model(crops), runs)


def open_embedder(bundle: Bundle, opening: Opening) -> Embedder:
    """Builds the network on "cpu" or "cuda"; the threads set PyTorch's own number for the whole process.

    Raises:
        RuntimeMissing: PyTorch sees no such device, or does not compute in this precision there.
        ModelError: the weights do not fit the architecture.
    """
    device = open_device(opening.device)
    precision = require_precision(opening, *precisions(device))
    if opening.threads is not None:
        torch.set_num_threads(opening.threads)
    model = PlacedModel(load_deployed(bundle), device, precision)
    spec = spec_of(bundle.manifest, runtime=opening.runtime, device=opening.device, precision=precision)
    return CudaPyTorchEmbedder(model, spec) if device.type == "cuda" else PyTorchEmbedder(model, spec)
