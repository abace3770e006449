"""PyTorch: the network that was trained, built from the bundle's weights. The only engine that needs torch."""

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from reidkit.bundle import Bundle
from reidkit.errors import RuntimeMissing
from reidkit.models.checkpoint import load_deployed
from reidkit.models.model import DeployedModel
from reidkit.runtime.contract import Opening, require_precision, run_in_batches, spec_of
from reidkit.types import EmbedderSpec


class PyTorchEmbedder:
    """A model in evaluation mode on a device; the training loop measures itself with it too."""

    def __init__(self, model: DeployedModel, spec: EmbedderSpec) -> None:
        self._device = torch.device(spec.device)
        self._model = model.eval().to(self._device)
        self.spec = spec

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`."""
        return run_in_batches(crops, self.spec, self._run)

    def _run(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        with torch.inference_mode():
            # A copy: torch takes no reversed views, and warns of arrays that are read-only, as Pillow's are.
            pixels = torch.from_numpy(np.array(crops, order="C")).to(self._device)
            # cuDNN would take TF32 by itself: a float32 model is computed in float32.
            with torch.backends.cudnn.flags(benchmark=torch.backends.cudnn.benchmark, allow_tf32=False):
                return self._model(pixels).float().cpu().numpy()


def open_embedder(bundle: Bundle, opening: Opening) -> PyTorchEmbedder:
    """Builds the network on "cpu" or "cuda"; the threads set PyTorch's own number for the whole process.

    Raises:
        RuntimeMissing: PyTorch sees no such device.
        ModelError: the weights do not fit the architecture.
    """
    require_precision(opening, bundle.manifest.precision)
    device, threads = opening.device, opening.threads
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or not (index or "0").isdecimal():
        raise RuntimeMissing(f"Unknown device {device!r}", expected="cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise RuntimeMissing("PyTorch sees no such CUDA device", got=device, fix="say --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    spec = spec_of(bundle.manifest, runtime=opening.runtime, device=device)
    return PyTorchEmbedder(load_deployed(bundle), spec)
