"""CUDA's runtime, as far as an engine needs it: memory that is taken once, streams, events, captured graphs.

A few lines over NVIDIA's cuda-bindings; no torch. Every object gives back what it took when it is closed or collected.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import numpy as np
from cuda.bindings import runtime as cudart  # pyright: ignore[reportAttributeAccessIssue]  (a compiled module)
from jaxtyping import UInt8

from reidkit.errors import EngineError, RuntimeMissing

_SUCCESS = cudart.cudaError_t.cudaSuccess
_NO_MEMORY = cudart.cudaError_t.cudaErrorMemoryAllocation
_TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
_TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
_ON_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
_RELAXED = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed

_taken = 0  # allocations of this process so far


@dataclass(frozen=True, slots=True)
class Card:
    """A CUDA device.

    Attributes:
        index: its number.
        name: such as "NVIDIA H200".
        compute_capability: such as "9.0".
        memory: bytes.
        driver: newest CUDA that the driver knows, as "13.0".
    """

    index: int
    name: str
    compute_capability: str
    memory: int
    driver: str


def card(device: str = "cuda") -> Card:
    """What stands behind "cuda" or "cuda:N".

    Raises:
        RuntimeMissing: no such device, no card at all, or no driver.
    """
    index = device_index(device)
    error, count = cudart.cudaGetDeviceCount()
    if error != _SUCCESS or count == 0:
        raise RuntimeMissing(
            "There is no CUDA device here",
            got=_name(error) if error != _SUCCESS else "0 devices",
            expected="an NVIDIA card and its driver",
            fix="run `reid doctor`, or choose another runtime",
        )
    if index >= count:
        raise RuntimeMissing("There is no such CUDA device", got=device, expected=f"cuda:0 to cuda:{count - 1}")
    found = checked(cudart.cudaGetDeviceProperties(index))
    version = checked(cudart.cudaDriverGetVersion())
    return Card(
        index=index,
        name=_c_string(found.name),
        compute_capability=f"{found.major}.{found.minor}",
        memory=int(found.totalGlobalMem),
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )


def _c_string(buffer: bytes) -> str:
    """What stands before the first NUL: newer versions give a buffer whole, and what is behind it may be anything."""
    return buffer.split(b"\0", 1)[0].decode(errors="replace")


def device_index(device: str) -> int:
    """The number in "cuda" or "cuda:N".

    Raises:
        RuntimeMissing: another kind of device.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise RuntimeMissing(f"Unknown device {device!r}", expected="cuda or cuda:N")
    return int(index or 0)


@contextmanager
def on_device(index: int) -> Iterator[None]:
    """Makes a device the one that this thread works on, for the block: whoever calls may be on another."""
    before = checked(cudart.cudaGetDevice())
    if before != index:
        checked(cudart.cudaSetDevice(index))
    try:
        yield
    finally:
        if before != index:
            cudart.cudaSetDevice(before)


def checked(result: Any) -> Any:
    """What a call of the library gave, without its status.

    Raises:
        EngineError: the call failed.
    """
    error, *values = result
    if error != _SUCCESS:
        if error == _NO_MEMORY:
            free, total = free_memory()
            raise EngineError(
                "The card has no memory left",
                got=f"{free >> 20:,} of {total >> 20:,} MiB free",
                fix="close what else runs on it, or build for smaller batches",
            )
        raise EngineError("A call of CUDA failed", got=_name(error), fix="run `reid doctor`")
    return values[0] if len(values) == 1 else tuple(values)


def _name(error: Any) -> str:
    status, text = cudart.cudaGetErrorString(error)
    words = text.decode() if status == _SUCCESS and isinstance(text, bytes) else str(error)
    cudart.cudaGetLastError()  # or the next call of anybody would report it again
    return words


def free_memory() -> tuple[int, int]:
    """Bytes that are free on the device in use, and all there are."""
    error, free, total = cudart.cudaMemGetInfo()
    return (free, total) if error == _SUCCESS else (0, 0)


def allocations() -> int:
    """How often memory was taken through this module: a call that allocates nothing leaves it as it is."""
    return _taken


def _count() -> None:
    global _taken  # noqa: PLW0603 (a counter, to be read by whoever proves that a call takes no memory)
    _taken += 1


class DeviceMemory:
    """Bytes on the device.

    Attributes:
        address: of the first.
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self.address = int(checked(cudart.cudaMalloc(size)))
        self.size = size
        _count()
        self._free = finalize(self, cudart.cudaFree, self.address)

    def close(self) -> None:
        """Gives it back."""
        self._free()


class PinnedMemory:
    """Bytes of the host that the device reads and writes by itself.

    Attributes:
        address: of the first.
        bytes: all of them, as an array.
    """

    def __init__(self, size: int) -> None:
        self.address = int(checked(cudart.cudaMallocHost(size)))
        _count()
        self._free = finalize(self, cudart.cudaFreeHost, self.address)
        self.bytes: UInt8[np.ndarray, " size"] = np.ctypeslib.as_array(
            (ctypes.c_uint8 * size).from_address(self.address)
        )

    def close(self) -> None:
        """Gives it back; the array must not be used any more."""
        self._free()


class Stream:
    """A queue of work on the device.

    Attributes:
        handle: the library's.
    """

    def __init__(self) -> None:
        self.handle = checked(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self._destroy = finalize(self, cudart.cudaStreamDestroy, self.handle)

    @property
    def number(self) -> int:
        """The handle as other libraries take it."""
        return int(self.handle)

    def to_device(self, target: int, source: int, size: int) -> None:
        """Queues a copy of pinned bytes."""
        checked(cudart.cudaMemcpyAsync(target, source, size, _TO_DEVICE, self.handle))

    def to_host(self, target: int, source: int, size: int) -> None:
        """Queues a copy to pinned bytes."""
        checked(cudart.cudaMemcpyAsync(target, source, size, _TO_HOST, self.handle))

    def on_device(self, target: int, source: int, size: int) -> None:
        """Queues a copy from one place of the device to another."""
        checked(cudart.cudaMemcpyAsync(target, source, size, _ON_DEVICE, self.handle))

    def wait_for(self, event: "Event") -> None:
        """Lets what is queued next wait for an event."""
        checked(cudart.cudaStreamWaitEvent(self.handle, event.handle, 0))

    def launch(self, graph: "Graph") -> None:
        """Queues a graph."""
        checked(cudart.cudaGraphLaunch(graph.handle, self.handle))

    def synchronize(self) -> None:
        """Waits until all that was queued is done."""
        checked(cudart.cudaStreamSynchronize(self.handle))

    @contextmanager
    def capture(self) -> Iterator["Capture"]:
        """What the block queues becomes a graph, and is not run. A block that fails leaves the stream usable."""
        captured = Capture()
        checked(cudart.cudaStreamBeginCapture(self.handle, _RELAXED))
        try:
            yield captured
        except BaseException:
            error, graph = cudart.cudaStreamEndCapture(self.handle)
            if error == _SUCCESS:
                cudart.cudaGraphDestroy(graph)
            cudart.cudaGetLastError()
            raise
        captured.graph = Graph(checked(cudart.cudaStreamEndCapture(self.handle)))


class Capture:
    """Where the graph of a captured block is found when the block has ended."""

    graph: "Graph"


class Graph:
    """Work that was captured once, and is queued by one call.

    Attributes:
        handle: the library's, ready to launch.
    """

    def __init__(self, captured: Any) -> None:
        try:
            self.handle = checked(cudart.cudaGraphInstantiate(captured, 0))
        finally:
            cudart.cudaGraphDestroy(captured)
        self._destroy = finalize(self, cudart.cudaGraphExecDestroy, self.handle)

    def close(self) -> None:
        """Gives back what it holds; it must not be running."""
        self._destroy()


class Event:
    """A point in a stream.

    Attributes:
        handle: the library's.
    """

    def __init__(self, *, timed: bool = False) -> None:
        self.handle = checked(cudart.cudaEventCreateWithFlags(0 if timed else cudart.cudaEventDisableTiming))
        self._destroy = finalize(self, cudart.cudaEventDestroy, self.handle)

    def record(self, stream: Stream) -> None:
        """Puts it behind all that is queued now."""
        checked(cudart.cudaEventRecord(self.handle, stream.handle))

    def synchronize(self) -> None:
        """Waits until it is passed."""
        checked(cudart.cudaEventSynchronize(self.handle))

    def seconds_since(self, earlier: "Event") -> float:
        """Time on the device between two events that are passed, both timed."""
        return float(checked(cudart.cudaEventElapsedTime(earlier.handle, self.handle))) / 1e3


def wait_for_stream(stream: Stream, other: int) -> None:
    """Lets a stream wait for what another library has queued on one of its own, given as a number."""
    event = Event()
    checked(cudart.cudaEventRecord(event.handle, cudart.cudaStream_t(other)))
    stream.wait_for(event)
