# ruff: noqa: N802, N815
"""CUDA's runtime played in the memory of the host, with the names of cuda-bindings.

Streams are queues of work that run as late as they may: when somebody waits for them. So a buffer that is filled
again before it was read, or read before it was filled, shows in the results. Addresses are checked against what was
allocated.
"""

import ctypes
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from cuda.bindings import runtime as real

OK = real.cudaError_t.cudaSuccess
Work = Callable[[], object]


@dataclass
class _Stream:
    work: deque[Work] = field(default_factory=deque)
    captured: list[Work] | None = None


@dataclass
class _Mark:
    stream: _Stream
    passed: bool = False


class FakeCuda:
    """Stands in for `cuda.bindings.runtime`.

    Attributes:
        memory: bytes of the card.
        live: size and kind ("device", "pinned") of what is allocated, by address.
        calls: names of the calls so far.
        failing: what a call of a name gives, from now on.
        devices: how many cards there are.
        name: of each, as the library gives it: in some versions the whole buffer.
        current: the card in use, by thread.
    """

    cudaError_t = real.cudaError_t
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaStreamNonBlocking = real.cudaStreamNonBlocking
    cudaEventDisableTiming = real.cudaEventDisableTiming
    cudaStream_t = int

    def __init__(self, memory: int = 1 << 30) -> None:
        self.memory = memory
        self.live: dict[int, tuple[int, str]] = {}
        self.calls: list[str] = []
        self.failing: dict[str, tuple[Any, ...]] = {}
        self.devices = 1
        self.name = b"NVIDIA Fake"
        self.current: dict[int, int] = {}
        self.streams: dict[int, _Stream] = {0: _Stream(), 1: _Stream()}
        self.graphs = 0  # instantiated and not yet given back
        self._buffers: dict[int, Any] = {}
        self._lock = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        found: Any = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(found) or isinstance(found, type):
            return found

        def call(*arguments: Any) -> tuple[Any, ...]:
            with self._lock:
                self.calls.append(name)
                if name in self.failing:
                    return self.failing[name]
                return found(*arguments)

        return call

    def stream(self) -> int:
        """A stream of somebody else's."""
        return self._new_stream()

    def enqueue(self, stream: int, work: Work) -> None:
        """Puts work behind what is queued, or into the graph that is being captured."""
        with self._lock:
            found = self.streams[stream]
            (found.work if found.captured is None else found.captured).append(work)

    def capturing(self, stream: int) -> bool:
        """Whether what is queued now becomes a graph."""
        return self.streams[stream].captured is not None

    def address(self, address: int, size: int, *kinds: str) -> int:
        """An address at which so many bytes of memory lie; pinned or on the card."""
        for start, (length, kind) in self.live.items():
            if start <= address and address + size <= start + length and kind in kinds:
                return address
        raise AssertionError(f"{size} bytes at {address} are not all in one piece of {' or '.join(kinds)} memory")

    def adopt(self, array: Any) -> Any:
        """Makes the memory of a NumPy array some of the card's."""
        self.live[array.ctypes.data] = (array.nbytes, "device")
        return array

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return OK, self.devices

    def cudaGetDeviceProperties(self, index: int) -> tuple[Any, ...]:
        return OK, SimpleNamespace(name=self.name, major=9, minor=0, totalGlobalMem=self.memory)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return OK, 13020

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return OK, self.current.get(threading.get_ident(), 0)

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        self.current[threading.get_ident()] = index
        return (OK,)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return OK, f"words for {error.name}".encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (OK,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return OK, self.memory - self._used(), self.memory

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self._used() + size > self.memory:
            return self.cudaError_t.cudaErrorMemoryAllocation, 0
        return OK, self._take(size, "device")

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return OK, self._take(size, "pinned")

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        assert self.live.pop(address)[1] == "device"
        for stream in list(self.streams.values()):  # as the real one, it waits for all that may still use it
            self._run(stream)
        del self._buffers[address]
        return (OK,)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        assert self.live.pop(address)[1] == "pinned"
        del self._buffers[address]
        return (OK,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> tuple[Any, ...]:
        ends = {"cudaMemcpyHostToDevice": ("device", "pinned"), "cudaMemcpyDeviceToHost": ("pinned", "device")}
        to, origin = ends.get(kind.name, ("device", "device"))
        self.address(target, size, to)
        self.address(source, size, origin)
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size))
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == real.cudaStreamNonBlocking
        return OK, self._new_stream()

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del self.streams[stream]
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert not self.capturing(stream)
        self._run(self.streams[stream])
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        assert mode.name == "cudaStreamCaptureModeRelaxed"  # others may allocate meanwhile
        assert not self.capturing(stream)
        self.streams[stream].captured = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        found = self.streams[stream]
        work, found.captured = found.captured, None
        self.graphs += 1
        return OK, work

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> tuple[Any, ...]:
        self.graphs += 1
        return OK, list(graph)

    def cudaGraphDestroy(self, graph: list[Work]) -> tuple[Any, ...]:
        self.graphs -= 1
        return (OK,)

    def cudaGraphExecDestroy(self, graph: list[Work]) -> tuple[Any, ...]:
        self.graphs -= 1
        graph.clear()
        return (OK,)

    def cudaGraphLaunch(self, graph: list[Work], stream: int) -> tuple[Any, ...]:
        assert graph, "a graph that was given back"
        for work in graph:
            self.enqueue(stream, work)
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return OK, SimpleNamespace(mark=None, timed=flags == 0)

    def cudaEventDestroy(self, event: Any) -> tuple[Any, ...]:
        return (OK,)

    def cudaEventRecord(self, event: Any, stream: int) -> tuple[Any, ...]:
        mark = event.mark = _Mark(self.streams[stream])

        def passing() -> None:
            mark.passed = True

        self.enqueue(stream, passing)
        return (OK,)

    def cudaEventSynchronize(self, event: Any) -> tuple[Any, ...]:
        self._pass(event.mark)
        return (OK,)

    def cudaStreamWaitEvent(self, stream: int, event: Any, flags: int) -> tuple[Any, ...]:
        mark = event.mark
        self.enqueue(stream, lambda: self._pass(mark))
        return (OK,)

    def cudaEventElapsedTime(self, earlier: Any, later: Any) -> tuple[Any, ...]:
        for event in (earlier, later):
            assert event.timed
            assert event.mark.passed
        return OK, 0.25

    def _new_stream(self) -> int:
        number = max(self.streams) + 7
        self.streams[number] = _Stream()
        return number

    def _take(self, size: int, kind: str) -> int:
        buffer = (ctypes.c_uint8 * (size + 256))()
        address = ctypes.addressof(buffer) + -ctypes.addressof(buffer) % 256
        ctypes.memset(address, 0xAB, size)
        self._buffers[address], self.live[address] = buffer, (size, kind)
        return address

    def _used(self) -> int:
        return sum(size for size, kind in self.live.values() if kind == "device")

    def _pass(self, mark: _Mark | None) -> None:
        while mark is not None and not mark.passed:
            mark.stream.work.popleft()()

    def _run(self, stream: _Stream) -> None:
        while stream.work:
            stream.work.popleft()()
