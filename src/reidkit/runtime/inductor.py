"""PyTorch's compiler: the network that was trained, its operators fused; on a graphics card, one launch a batch.

On a graphics card each batch size of `SIZES` is compiled and captured as a CUDA graph of its own when it is first
needed; other numbers of crops are cut and filled up to these (`cut`). On the processor two programs are compiled: for
one crop, and for any number from two up. Each takes up to a minute; PyTorch keeps the parts in a cache of its own, so
that the next process takes less.

PyTorch's own `mode="reduce-overhead"` captures too, but asks in every call whether what it has compiled still holds,
and serves no thread but the main one.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from reidkit.bundle import Bundle
from reidkit.errors import EngineError, ModelError, RuntimeMissing
from reidkit.models.checkpoint import load_deployed
from reidkit.models.deployed import PlacedModel, event_seconds, open_device, precisions
from reidkit.runtime.contract import Opening, check_crops, require_precision, run_in_batches, spec_of
from reidkit.types import EmbedderSpec

SIZES = (1, 4, 16, 32, 64)
"""Batches that have a graph of their own on a graphics card."""

_WARM_UP = 3  # runs before a capture: the first one compiles, and libraries choose and allocate
_NO_COMPILER = ("InvalidCxxCompiler", "TritonMissing", "Failed to find C compiler", "Cannot find a working triton")


class CompiledEmbedder:
    """A compiled model on the processor; calls take turns.

    Args:
        model: on the processor.
        spec: of the embedder.
    """

    def __init__(self, model: PlacedModel, spec: EmbedderSpec) -> None:
        self.spec = spec
        self._program = _compiled(model)
        self._turn = threading.Lock()

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`. The first call of one, and of several, compiles."""
        return run_in_batches(crops, self.spec, self._run)

    def _run(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        pixels = torch.from_numpy(np.array(crops, order="C"))
        if len(crops) > 1:
            torch._dynamo.mark_dynamic(pixels, 0)  # part of torch.compile's documented interface, whatever its name
        with self._turn, torch.no_grad():
            return self._program(pixels).numpy()


class _Captured(NamedTuple):
    """A batch that one launch runs: its graph, where it finds its crops, and where it leaves its embeddings."""

    graph: "torch.cuda.CUDAGraph"
    crops: Tensor
    embeddings: Tensor


class CapturedEmbedder:
    """A compiled model on a graphics card, a CUDA graph for each batch size; calls take turns.

    Args:
        model: on the card.
        spec: of the embedder.
    """

    def __init__(self, model: PlacedModel, spec: EmbedderSpec) -> None:
        self.spec = spec
        self._model = model
        self._program = _compiled(model)
        self._captured: dict[int, _Captured] = {}
        on_card = model.device.type == "cuda"  # always, but in tests
        self._pinned = torch.empty((SIZES[-1], *_crop_shape(spec)), dtype=torch.uint8, pin_memory=on_card)
        self._turn = threading.Lock()

    @property
    def batches(self) -> tuple[int, ...]:
        """Every size that is compiled and captured on its own."""
        return SIZES

    @property
    def device_memory(self) -> int:
        """Bytes of the card; see `reidkit.types.Timed` and `PlacedModel.device_memory`."""
        return self._model.device_memory

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`. The first batch of a size compiles it."""
        return run_in_batches(crops, self.spec, self._run)

    def embed_device(self, crops: UInt8[Tensor, "n height width 3"]) -> Float32[Tensor, "n dim"]:
        """The same for crops on the card, ordered by PyTorch's current stream; the embeddings stay there.

        Raises:
            InputError: the crops have another type, size or number of channels.
        """
        check_crops(np.broadcast_to(np.empty((), str(crops.dtype).removeprefix("torch.")), crops.shape), self.spec)
        result = torch.empty((len(crops), self.spec.dim), device=self._model.device)
        with self._on_card():
            for start, count, size in cut(len(crops)):
                rows = slice(start, start + count)
                result[rows] = self._launch(crops[rows], size)
            torch.cuda.current_stream().synchronize()  # the next turn may be another stream's
        return result

    def device_seconds(self, batch: int, runs: int) -> list[float]:
        """Seconds of the card for each of so many runs of a batch; see `reidkit.types.Timed`."""
        with self._on_card():
            graphs = [self._graph(size).graph for _, _, size in cut(batch)]
            return event_seconds(lambda: [graph.replay() for graph in graphs], runs)

    def _run(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        result = np.empty((len(crops), self.spec.dim), np.float32)
        with self._on_card():
            for start, count, size in cut(len(crops)):
                part = self._pinned[:count]
                part.numpy()[:] = crops[start : start + count]
                result[start : start + count] = self._launch(part, size).cpu().numpy()  # waits for all of it
        return result

    def _launch(self, crops: Tensor, size: int) -> Tensor:
        """Embeddings of at most `size` crops, where the next launch will write over them."""
        captured = self._graph(size)
        captured.crops[: len(crops)].copy_(crops, non_blocking=True)
        captured.graph.replay()
        return captured.embeddings[: len(crops)]

    def _graph(self, size: int) -> _Captured:
        if size not in self._captured:
            with self._model.arithmetic(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*TensorFloat32")  # which float32 goes without on purpose
                self._captured[size] = self._capture(size)
        return self._captured[size]

    def _capture(self, size: int) -> _Captured:
        crops = torch.zeros((size, *_crop_shape(self.spec)), dtype=torch.uint8, device=self._model.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._program(crops)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the card meanwhile
            embeddings = self._program(crops)
        return _Captured(graph, crops, embeddings)

    @contextmanager
    def _on_card(self) -> Iterator[None]:
        with self._turn, torch.no_grad(), torch.cuda.device(self._model.device):
            yield


InductorEmbedder: TypeAlias = CompiledEmbedder | CapturedEmbedder


def cut(count: int) -> list[tuple[int, int, int]]:
    """How crops are cut into batches that have a graph: where each begins, its crops, and the size it is filled up to.

    The largest size is taken while it is full. Of the rest, a size is filled up where the rest is at least half of it,
    and else the one below is taken full.

    Args:
        count: number of crops.
    """
    parts: list[tuple[int, int, int]] = []
    start = 0
    while start < count:
        rest = count - start
        full = max(size for size in SIZES if size <= rest)
        above = min((size for size in SIZES if size >= rest), default=full)
        size = above if 2 * rest >= above else full
        parts.append((start, min(rest, size), size))
        start += size
    return parts


def open_embedder(bundle: Bundle, opening: Opening) -> InductorEmbedder:
    """Compiles the network for one crop on "cpu" or "cuda"; the threads set PyTorch's own number for the process.

    Raises:
        RuntimeMissing: PyTorch sees no such device, does not compute in this precision there, or finds no compiler
            for what it writes.
        ModelError: the weights do not fit the architecture, or PyTorch cannot compile the network.
        EngineError: the card has no memory left.
    """
    device = open_device(opening.device)
    precision = require_precision(opening, *precisions(device))
    if opening.threads is not None:
        torch.set_num_threads(opening.threads)
    spec = spec_of(bundle.manifest, runtime=opening.runtime, device=opening.device, precision=precision)
    model = PlacedModel(load_deployed(bundle), device, precision)
    embedder = CapturedEmbedder(model, spec) if device.type == "cuda" else CompiledEmbedder(model, spec)
    try:
        embedder.embed(np.zeros((1, *_crop_shape(spec)), np.uint8))
    except Exception as error:
        raise _explained(error, bundle) from error
    return embedder


def _compiled(model: PlacedModel) -> FunctionType:
    """The model as one program. Shapes are fixed, but for those that are marked as dynamic.

    PyTorch counts what it has compiled by code object, and stops at eight: each model gets one of its own.
    """
    call: FunctionType = lambda crops: model(crops)  # noqa: E731, PLW0108 (code to be copied)
    own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def _explained(error: Exception, bundle: Bundle) -> Exception:
    """What a compiler's exception means to whoever opens a bundle."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any(isinstance(cause, torch.OutOfMemoryError) for cause in causes):
        return EngineError("The graphics card has no memory left for a compiled network", fix="close what else uses it")
    said = f"{type(causes[-1]).__name__}: {str(causes[-1]).strip().partition(chr(10))[0]}"
    if any(name in f"{type(cause).__name__} {cause}" for name in _NO_COMPILER for cause in causes):
        return RuntimeMissing(
            "PyTorch's compiler finds no compiler for the code that it writes",
            got=said,
            expected="a C++ compiler, and on a graphics card Triton and a C compiler",
            fix="apt install g++, or choose the runtime pytorch",
        )
    return ModelError(f"PyTorch cannot compile {bundle.path.name}", got=said, fix="choose the runtime pytorch")


def _crop_shape(spec: EmbedderSpec) -> tuple[int, int, int]:
    return spec.input.height, spec.input.width, 3
