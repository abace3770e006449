"""Batches of crops that are on the device before they are asked for: filled by threads, copied ahead of their use."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

AHEAD = 2
"""Batches that are on their way to the device while it works on another one."""

_BUFFERS = 2 * AHEAD + 1  # of a batch each: as many again are being filled meanwhile
_THREADS = 2  # that fill them


@runtime_checkable
class Lane(Protocol):
    """The way of a batch from a buffer on the host to the device."""

    def buffer(self, shape: Sequence[int]) -> Tensor:
        """A buffer on the host."""
        ...

    def send(self, filled: Tensor) -> Any:
        """Begins to copy a buffer and gives what knows of that copy; does not wait for it."""
        ...

    def receive(self, copy: Any) -> Tensor:
        """The batch on the device: whatever is computed there from now on sees it whole."""
        ...

    def release(self, copy: Any) -> None:
        """Waits until the buffer has been read, and may be filled again."""
        ...


class CudaLane:
    """Pinned buffers, copied on a stream of their own.

    Only the thread that asks for batches talks to the device, and only while it asks: a CUDA graph may be captured
    between two batches, which a call from another thread would break.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def buffer(self, shape: Sequence[int]) -> Tensor:
        """In pinned memory, which the device reads by itself."""
        return torch.empty(tuple(shape), dtype=torch.uint8, pin_memory=True)

    def send(self, filled: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Ordered on the stream of copies."""
        with torch.cuda.stream(self._stream):
            batch = filled.to(self._device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return batch, copied

    def receive(self, copy: tuple[Tensor, torch.cuda.Event]) -> Tensor:
        """The current stream waits for the copy; the host does not."""
        batch, copied = copy
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_event(copied)
        batch.record_stream(consumer)  # its memory is of the other stream, which must not have it back too early
        return batch

    def release(self, copy: tuple[Tensor, torch.cuda.Event]) -> None:
        """The host waits, hardly ever: the copy was ordered batches ago, and behind nothing but other copies."""
        copy[1].synchronize()


def prefetched(
    crops: UInt8[np.ndarray, "n height width 3"], batches: Sequence[np.ndarray], lane: Lane
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Gives batches in order, while threads fill buffers with the next ones and full buffers are on their way.

    Whatever stops a thread is raised where its batch would have come. When the iterator ends or is closed, no thread is
    left.

    Args:
        crops: what to gather from.
        batches: indices, all of them of crops.
        lane: to the device.
    """
    todo = iter(batches)
    filling: deque[tuple[Future[None], Tensor, np.ndarray]] = deque()
    sent: deque[tuple[Any, Tensor, np.ndarray]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="reidkit-gather") as pool:

        def fill(buffer: Tensor) -> None:
            for indices in todo:
                future = pool.submit(gather, crops, indices, buffer[: len(indices)].numpy())
                filling.append((future, buffer, indices))
                return

        try:
            largest = max(map(len, batches), default=0)
            for _ in range(min(_BUFFERS, len(batches))):
                fill(lane.buffer((largest, *crops.shape[1:])))
            while filling or sent:
                # Waits for a buffer, or raises what befell it, only when there is nothing else to give.
                while filling and len(sent) <= AHEAD and (not sent or _is_full(filling[0][0])):
                    future, buffer, indices = filling.popleft()
                    future.result()
                    sent.append((lane.send(buffer[: len(indices)]), buffer, indices))
                copy, buffer, indices = sent.popleft()
                yield lane.receive(copy), indices
                lane.release(copy)
                fill(buffer)
        finally:
            for future, _, _ in filling:
                future.cancel()


def _is_full(future: Future[None]) -> bool:
    return future.done() and future.exception() is None


def gather(
    crops: UInt8[np.ndarray, "n height width 3"],
    indices: Int64[np.ndarray, " batch"],
    out: UInt8[np.ndarray, "batch height width 3"],
) -> None:
    """Writes the crops of these indices into `out`; all of them must be in range."""
    # With the mode that checks indices numpy would gather elsewhere first, and copy.
    np.take(crops, indices, axis=0, out=out, mode="clip")
