"""The prefetching of batches, without a GPU: with a lane that does everything as late as it may."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing

import numpy as np
import pytest
import torch

from reidkit.train import prefetch
from reidkit.train.prefetch import AHEAD, prefetched

CROPS = np.random.default_rng(0).integers(0, 256, (20, 4, 3, 3), dtype=np.uint8)


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 20, rng.integers(1, 6)) for _ in range(count)]


class LateLane:
    """Copies a buffer only when the copy is waited for; by then a buffer that was filled too early is another batch."""

    def __init__(self):
        self.buffers, self.sent, self.released = 0, 0, 0

    def buffer(self, shape):
        self.buffers += 1
        return torch.empty(tuple(shape), dtype=torch.uint8)

    def send(self, filled):
        self.sent += 1
        return filled, filled.clone()

    def receive(self, copy):
        filled, when_sent = copy
        assert torch.equal(filled, when_sent)
        return filled.clone()

    def release(self, copy):
        self.released += 1
        filled, when_sent = copy
        assert torch.equal(filled, when_sent)


def gather_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reidkit-gather")]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6, 50])
def test_every_batch_comes_whole_and_in_order(count):
    lane, wanted = LateLane(), batches(count)
    got = [(batch.numpy(), indices.tolist()) for batch, indices in prefetched(CROPS, wanted, lane)]
    assert [indices for _, indices in got] == [indices.tolist() for indices in wanted]
    for (batch, _), indices in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(batch, CROPS[indices])
    assert (lane.sent, lane.released) == (count, count)
    assert lane.buffers <= 2 * AHEAD + 1
    assert gather_threads() == []


def test_two_batches_are_on_their_way_while_one_is_worked_on(monkeypatch):
    filled = []

    class Noted(ThreadPoolExecutor):
        def submit(self, *call):
            filled.append(super().submit(*call))
            return filled[-1]

    monkeypatch.setattr(prefetch, "ThreadPoolExecutor", Noted)
    lane = LateLane()
    with closing(prefetched(CROPS, batches(20), lane)) as stream:
        next(stream)
        assert len(filled) == 2 * AHEAD + 1
        for worked_on in range(2, 16):
            assert not wait(filled, timeout=30).not_done  # while the one before is worked on
            next(stream)
            assert lane.sent == worked_on + AHEAD


def test_slow_gathering_does_not_hold_back_what_is_ready(monkeypatch):
    gather = prefetch.gather
    blocked = threading.Event()

    def slow(crops, indices, out):
        if indices[0] == 7:
            blocked.wait(10)
        gather(crops, indices, out)

    monkeypatch.setattr(prefetch, "gather", slow)
    with closing(prefetched(CROPS, [np.array([i]) for i in (1, 2, 7, 3)], LateLane())) as stream:
        assert [next(stream)[1].tolist() for _ in range(2)] == [[1], [2]]
        blocked.set()
        assert [indices.tolist() for _, indices in stream] == [[7], [3]]


def test_what_stops_a_thread_is_raised_in_its_place(monkeypatch):
    gather = prefetch.gather

    def failing(crops, indices, out):
        if indices[0] == 7:
            raise OSError("the disk is gone")
        gather(crops, indices, out)

    monkeypatch.setattr(prefetch, "gather", failing)
    stream = prefetched(CROPS, [np.array([i]) for i in (1, 2, 7, 3, 4)], LateLane())
    assert [next(stream)[1].tolist() for _ in range(2)] == [[1], [2]]
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert gather_threads() == []


def test_closing_early_leaves_no_thread():
    stream = prefetched(CROPS, batches(50), LateLane())
    next(stream)
    assert gather_threads()
    stream.close()
    assert gather_threads() == []
