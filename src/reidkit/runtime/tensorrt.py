"""TensorRT, every flavour: runs an engine that `reid build` made for this bundle and this card. No torch, no pycuda.

A call takes a lane: two slots of buffers, each with a stream, and the contexts that its graphs were captured from. It
fills the pinned buffer of one slot while the card works on the other, and launches one captured graph for each batch.
The first lane's memory is taken when the engine is opened, that of others when threads come together. Graphs of each
profile's largest batch are captured with it, those of other batches, with their contexts, when they come first.
"""

import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from reidkit.bundle import Bundle
from reidkit.errors import BundleError, EngineError, InputError, RuntimeMissing
from reidkit.runtime import cuda
from reidkit.runtime.contract import CROPS, EMBEDDINGS, Opening, run_in_batches, spec_of
from reidkit.runtime.device_arrays import DeviceArray, read_device_array
from reidkit.runtime.engine_store import EngineFacts, Machine, Profile, open_engine
from reidkit.runtime.flavour import Flavour, open_flavour
from reidkit.types import EmbedderSpec

_LANES = 4  # threads that may be on the card at once; more of them wait
_SLOTS = (0, 1)  # of buffers in a lane: one is filled and read while the card works on the other
_GRAPHS = 16  # captured graphs a slot keeps; the one that was not used for longest goes

_logger = logging.getLogger(__name__)


class TensorRtEmbedder:
    """An engine on a card. Threads run side by side, each with contexts and buffers of its own.

    Attributes:
        spec: what it is.
        facts: of the engine.
    """

    def __init__(
        self, flavour: Flavour, runtime: Any, engine: Any, facts: EngineFacts, spec: EmbedderSpec, log: Any
    ) -> None:
        self.spec = spec
        self.facts = facts
        self._flavour = flavour
        self._runtime = runtime  # has to outlive the engine
        self._engine = engine
        self._device = cuda.device_index(spec.device)
        # Nothing of this may hold the embedder itself: its memory is to go with the last name for it.
        self._lanes = _Lanes(partial(_Lane, flavour, engine, facts.profiles, self._crop_shape, spec.dim, log))
        with self._lane():
            pass  # the first one's memory is taken now

    @property
    def batches(self) -> tuple[int, ...]:
        """The largest batch of each profile."""
        return tuple(profile.most for profile in self.facts.profiles)

    @property
    def device_memory(self) -> int:
        """Bytes of the card that the engine, and scratch and buffers of its lanes take; by what was asked for."""
        return self.facts.size + self._lanes.made * self._lane_bytes

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`.

        Raises:
            EngineError: the card has no memory left for another thread, or failed.
        """
        return run_in_batches(crops, self.spec, self._run)

    def _run(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        result = np.empty((len(crops), self.spec.dim), np.float32)
        with self._lane() as lane:
            lane.run(crops, result)
        return result

    def embed_device(self, crops: Any, *, out: Any = None, stream: int | None = None) -> Any:
        """Maps crops that are on the card to embeddings that stay there; nothing passes through the host.

        Args:
            crops: uint8 (n, height, width, 3), C-contiguous, on this device: anything with DLPack or
                `__cuda_array_interface__` (PyTorch, CuPy, Numba, JAX); n at most the engine's largest batch.
            out: float32 (n, dim), C-contiguous, likewise; None makes a new array, the only memory that is taken.
            stream: CUDA stream that makes the crops, as a number: it is waited for. None asks the arrays for theirs.

        Returns:
            `out`, or an array with both interfaces; finished when this returns.

        Raises:
            InputError: another type, shape, layout or device; or more crops than the engine takes at once.
        """
        with cuda.on_device(self._device):
            given = read_device_array(crops, device=self._device, stream=stream)
            wanted = self._crop_shape
            if given.dtype != np.uint8 or len(given.shape) != 4 or given.shape[1:] != wanted:
                raise InputError(
                    "The crops do not fit the model",
                    got=f"{given.dtype} {given.shape}",
                    expected=f"uint8 (n, {', '.join(map(str, wanted))}), RGB",
                )
            count, shape = given.shape[0], (given.shape[0], self.spec.dim)
            if count:
                self._check_batch(count)
            result = DeviceArray.new(shape, np.dtype(np.float32), device=self._device) if out is None else out
            target = read_device_array(result, device=self._device, stream=stream)
            if target.dtype != np.float32 or target.shape != shape:
                got = f"{target.dtype} {target.shape}"
                raise InputError("The output does not fit the crops", got=got, expected=f"float32 {shape}")
            streams = dict.fromkeys(view.stream for view in (given, target) if view.stream is not None)
            if count:
                with self._lane() as lane:
                    lane.run_on_device(given.address, target.address, count, tuple(streams))
            return result

    def device_seconds(self, batch: int, runs: int) -> list[float]:
        """Time on the card of one batch, crops and embeddings staying there; by CUDA events, one graph launch each."""
        self._check_batch(batch)
        with self._lane() as lane:
            return lane.time(batch, runs)

    def _check_batch(self, batch: int) -> None:
        if self.facts.profiles[0].least <= batch <= self._most:
            return
        problem = "The engine does not take so many crops at once"
        if self.spec.batch is not None:
            raise InputError(problem, got=batch, expected=f"{self.spec.batch}, which is fixed in the graph")
        fix = f"give fewer at once, or build for more: reid build --batch {batch}" if batch > 0 else None
        raise InputError(problem, got=batch, expected=f"1 to {self._most}", fix=fix)

    @property
    def _lane_bytes(self) -> int:
        crop = int(np.prod(self._crop_shape)) + self.spec.dim * 4
        return self._flavour.scratch_bytes(self._engine) + len(_SLOTS) * self._most * crop

    @property
    def _most(self) -> int:
        return self.facts.profiles[-1].most

    @property
    def _crop_shape(self) -> tuple[int, int, int]:
        return self.spec.input.height, self.spec.input.width, 3

    @contextmanager
    def _lane(self) -> Iterator["_Lane"]:
        with cuda.on_device(self._device), self._lanes.take() as lane:
            yield lane


class _Lanes:
    """Lanes that threads take in turn: more are made while threads wait, up to a number or to the card's memory."""

    def __init__(self, make: Callable[[], "_Lane"]) -> None:
        self._make = make
        self._idle: list[_Lane] = []
        self._changed = threading.Condition()
        self._most = _LANES
        self.made = 0

    @contextmanager
    def take(self) -> Iterator["_Lane"]:
        lane = self._get()
        try:
            yield lane
        except BaseException:
            self._put(None)  # what is still on its streams is unknown: it is not used again
            raise
        self._put(lane)

    def _get(self) -> "_Lane":
        while True:
            with self._changed:
                while not self._idle and self.made >= self._most:
                    self._changed.wait()
                if self._idle:
                    return self._idle.pop()
                self.made += 1
            try:
                return self._make()
            except EngineError as error:
                with self._changed:
                    self.made -= 1
                    self._changed.notify()
                    if self.made == 0:
                        raise
                    self._most = self.made
                _logger.warning("Threads take turns from here on: %s", error.problem)
            except BaseException:
                self._put(None)
                raise

    def _put(self, lane: "_Lane | None") -> None:
        with self._changed:
            if lane is None:
                self.made -= 1
            else:
                self._idle.append(lane)
            self._changed.notify()


class _Slot:
    """Buffers of one batch on the host and on the card, the stream it runs on, and its captured graphs."""

    def __init__(self, most: int, crop_shape: tuple[int, int, int], dim: int) -> None:
        self.stream = cuda.Stream()
        self.finished = cuda.Event()
        crop_bytes = int(np.prod(crop_shape))
        self.pinned_crops = cuda.PinnedMemory(most * crop_bytes)
        self.pinned_embeddings = cuda.PinnedMemory(most * dim * 4)
        self.crops = cuda.DeviceMemory(most * crop_bytes)
        self.embeddings = cuda.DeviceMemory(most * dim * 4)
        self.crops_in = self.pinned_crops.bytes.reshape(most, *crop_shape)
        self.embeddings_out = self.pinned_embeddings.bytes.view(np.float32).reshape(most, dim)
        self.graphs: OrderedDict[tuple[int, ...], _Captured] = OrderedDict()


class _Captured(NamedTuple):
    """A graph, and the context that it was captured from: to be left as it is for as long as the graph is used."""

    graph: cuda.Graph
    context: Any


class _Lane:
    """What one thread runs on: two slots, and contexts, one for each captured graph, that share one scratch memory."""

    def __init__(
        self,
        flavour: Flavour,
        engine: Any,
        profiles: Sequence[Profile],
        crop_shape: tuple[int, int, int],
        dim: int,
        log: Any,
    ) -> None:
        self._flavour, self._engine, self._profiles, self._log = flavour, engine, profiles, log
        self._crop_shape = crop_shape
        self._crop_bytes, self._row_bytes = int(np.prod(crop_shape)), dim * 4
        self._most = profiles[-1].most
        self._slots = [_Slot(self._most, crop_shape, dim) for _ in _SLOTS]
        self._computed = cuda.Event()
        size = flavour.scratch_bytes(engine)
        self._scratch = cuda.DeviceMemory(max(1, size))
        for profile in profiles:  # now, so that an engine which is not what its facts say fails when it is opened
            slot = self._slots[0]
            self._graph(slot, profile.most, slot.crops.address, slot.embeddings.address, to_host=True)

    def run(self, crops: UInt8[np.ndarray, "n height width 3"], result: Float32[np.ndarray, "n dim"]) -> None:
        """Embeds crops, a batch at a time: while one is computed, the next is copied."""
        under_way: list[tuple[_Slot, int, int]] = []
        for number, start in enumerate(range(0, len(crops), self._most)):
            slot = self._slots[number % len(self._slots)]
            if len(under_way) == len(self._slots):
                self._collect(*under_way.pop(0), result)
            stop = min(start + self._most, len(crops))
            np.copyto(slot.crops_in[: stop - start], crops[start:stop])
            self._launch(slot, stop - start)
            under_way.append((slot, start, stop))
        for item in under_way:
            self._collect(*item, result)

    def _launch(self, slot: _Slot, batch: int) -> None:
        graph = self._graph(slot, batch, slot.crops.address, slot.embeddings.address, to_host=True)
        slot.stream.to_device(slot.crops.address, slot.pinned_crops.address, batch * self._crop_bytes)
        slot.stream.wait_for(self._computed)  # the other slot's batch works in the same scratch
        slot.stream.launch(graph)
        self._computed.record(slot.stream)
        slot.finished.record(slot.stream)

    def _collect(self, slot: _Slot, start: int, stop: int, result: Float32[np.ndarray, "n dim"]) -> None:
        slot.finished.synchronize()
        result[start:stop] = slot.embeddings_out[: stop - start]

    def run_on_device(self, crops: int, embeddings: int, batch: int, streams: Sequence[int]) -> None:
        """Embeds crops at one address of the card to another, when these streams have made them.

        Through the slot's own buffers: a copy costs microseconds, capturing a graph for every address milliseconds; and
        TensorRT wants addresses in steps of 256 bytes, which a part of somebody's array has not.
        """
        slot = self._slots[0]
        graph = self._graph(slot, batch, slot.crops.address, slot.embeddings.address, to_host=False)
        for stream in streams:
            cuda.wait_for_stream(slot.stream, stream)
        slot.stream.on_device(slot.crops.address, crops, batch * self._crop_bytes)
        slot.stream.launch(graph)
        slot.stream.on_device(embeddings, slot.embeddings.address, batch * self._row_bytes)
        slot.stream.synchronize()

    def time(self, batch: int, runs: int) -> list[float]:
        """Seconds on the card of each of so many launches."""
        slot = self._slots[0]
        graph = self._graph(slot, batch, slot.crops.address, slot.embeddings.address, to_host=False)
        events = [cuda.Event(timed=True) for _ in range(runs + 1)]
        events[0].record(slot.stream)
        for event in events[1:]:
            slot.stream.launch(graph)
            event.record(slot.stream)
        slot.stream.synchronize()
        return [later.seconds_since(earlier) for earlier, later in itertools.pairwise(events)]

    def _graph(self, slot: _Slot, batch: int, crops: int, embeddings: int, *, to_host: bool) -> cuda.Graph:
        """The captured work for a batch from and to addresses; made the first time, and kept."""
        key = (batch, crops, embeddings, to_host)
        if key in slot.graphs:
            slot.graphs.move_to_end(key)
            return slot.graphs[key].graph
        for other in self._slots:
            other.stream.synchronize()  # they work in the same scratch
        context = self._context(slot, batch)
        context.set_tensor_address(CROPS, crops)
        context.set_tensor_address(EMBEDDINGS, embeddings)
        self._enqueue(context, slot)  # once as it is: it prepares itself for the shape, which cannot be captured
        slot.stream.synchronize()
        with slot.stream.capture() as captured:
            self._enqueue(context, slot)
            if to_host:
                slot.stream.to_host(slot.pinned_embeddings.address, embeddings, batch * self._row_bytes)
        slot.graphs[key] = _Captured(captured.graph, context)
        if len(slot.graphs) > _GRAPHS:
            slot.graphs.popitem(last=False)[1].graph.close()
        return captured.graph

    def _context(self, slot: _Slot, batch: int) -> Any:
        """A context for a batch, of the profile that holds it."""
        index = next(i for i, profile in enumerate(self._profiles) if profile.least <= batch <= profile.most)
        context = self._flavour.context(self._engine, self._scratch.address, self._scratch.size)
        if context is None:
            raise self._refusal("TensorRT gives no context", "most likely no memory left on the card")
        # Also the first: only the first context of an engine has it from the beginning.
        if not context.set_optimization_profile_async(index, slot.stream.number):
            raise EngineError("TensorRT does not take its own profile", got=index, fix="build the engine again")
        slot.stream.synchronize()
        if not context.set_input_shape(CROPS, (batch, *self._crop_shape)):
            raise EngineError("TensorRT does not take a batch of its own profile", got=batch)
        return context

    def _enqueue(self, context: Any, slot: _Slot) -> None:
        if not context.execute_async_v3(slot.stream.number):
            raise self._refusal("TensorRT could not run the engine", "it does not say why")

    def _refusal(self, problem: str, otherwise: str) -> EngineError:
        """With the library's own words, where it has any."""
        fix = "where memory ran out, close what else uses the card, or build for smaller batches"
        return EngineError(problem, got=self._log.last_error() or otherwise, fix=fix)


def open_embedder(bundle: Bundle, opening: Opening) -> TensorRtEmbedder:
    """Opens the engine that was built for a bundle, this library and this card.

    Raises:
        RuntimeMissing: no card, nothing built, or nothing that fits here; says why.
        BundleError: the engine's file is missing, truncated or changed.
        EngineError: the card has no memory left.
    """
    flavour = open_flavour(opening.runtime)
    machine = machine_of(flavour, opening.device)
    facts, data = open_engine(bundle, opening.runtime, opening.precision, opening.via, machine)
    return _deserialized(bundle, facts, data, flavour, opening.device)


def _deserialized(bundle: Bundle, facts: EngineFacts, data: bytes, flavour: Flavour, device: str) -> TensorRtEmbedder:
    if facts.stripped:
        raise RuntimeMissing(
            f"The engine {facts.name} has no weights",
            expected="an engine that was built with them",
            fix="refit it with TensorRT's own tools where it is to run, or build it without --weight-stripped",
        )
    log = flavour.log()
    with cuda.on_device(cuda.device_index(device)):
        runtime = flavour.trt.Runtime(log)
        if "version-compatible" in facts.options:
            runtime.engine_host_code_allowed = True  # such an engine brings a part of the library along
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BundleError(
            f"{flavour.runtime} {flavour.version} cannot read the engine {facts.name}",
            got=log.first_error(),
            fix="build it again: reid build --rebuild",
        )
    spec = spec_of(bundle.manifest, runtime=facts.runtime, device=device, precision=facts.precision, build=facts.sha256)
    return TensorRtEmbedder(flavour, runtime, engine, facts, spec, log)


def machine_of(flavour: Flavour, device: str = "cuda") -> Machine:
    """The library and the card that an engine has to fit.

    Raises:
        RuntimeMissing: no such card.
    """
    card = cuda.card(device)
    return Machine(
        runtime=flavour.runtime,
        version=flavour.version,
        gpu=card.name,
        compute_capability=card.compute_capability,
        driver=card.driver,
    )
