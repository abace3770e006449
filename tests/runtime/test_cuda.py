"""CUDA's memory, streams, events and graphs, over a runtime that is played in the host's memory."""

import gc
import threading

import numpy as np
import pytest
from cuda.bindings import runtime as real

from fake_cuda import FakeCuda
from reidkit.errors import EngineError, RuntimeMissing
from reidkit.runtime import cuda


@pytest.fixture
def card(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "cudart", fake)
    return fake


def test_a_card_says_what_it_is(card):
    assert cuda.card("cuda:0") == cuda.Card(0, "NVIDIA Fake", "9.0", 1 << 30, "13.2")


@pytest.mark.parametrize("behind", [b"\0", b"\0stale \xff\xfe\0"])
def test_a_name_ends_where_c_ends_it_whatever_else_is_in_its_buffer(card, behind):
    card.name = (b"NVIDIA H200" + behind).ljust(256, b"\0")
    assert cuda.card().name == "NVIDIA H200"


def test_a_name_that_is_no_text_is_still_a_name(card):
    card.name = b"NVIDIA \xff"
    assert cuda.card().name == "NVIDIA \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:12", 12)])
def test_the_number_of_a_device(device, index):
    assert cuda.device_index(device) == index


@pytest.mark.parametrize("device", ["cpu", "gpu", "cuda:x", "cuda:-1", "cuda:1.0", "CUDA", ""])
def test_other_devices_are_refused(device):
    with pytest.raises(RuntimeMissing, match=r"Unknown device .*\n  expected: cuda or cuda:N"):
        cuda.device_index(device)


def test_a_machine_without_a_card(card):
    card.devices = 0
    with pytest.raises(RuntimeMissing, match=r"There is no CUDA device here\n  got: 0 devices\n(?s:.*)reid doctor"):
        cuda.card()
    card.failing["cudaGetDeviceCount"] = (real.cudaError_t.cudaErrorInsufficientDriver, 0)
    with pytest.raises(RuntimeMissing, match="got: words for cudaErrorInsufficientDriver"):
        cuda.card()


def test_a_card_that_is_not_there(card):
    card.devices = 2
    with pytest.raises(RuntimeMissing, match=r"no such CUDA device\n  got: cuda:2\n  expected: cuda:0 to cuda:1"):
        cuda.card("cuda:2")


def test_memory_goes_back_when_it_is_closed_or_collected(card):
    before = cuda.allocations()
    memory, pinned = cuda.DeviceMemory(100), cuda.PinnedMemory(50)
    assert card.live == {memory.address: (100, "device"), pinned.address: (50, "pinned")}
    assert cuda.allocations() == before + 2
    pinned.bytes[:] = 7
    assert pinned.bytes.shape == (50,)
    memory.close()
    memory.close()  # once is enough
    del pinned
    gc.collect()
    assert card.live == {}


def test_no_memory_left_says_how_much_there_is(card):
    card.memory = 3 << 20
    kept = cuda.DeviceMemory(1 << 20)
    with pytest.raises(EngineError) as caught:
        cuda.DeviceMemory(3 << 20)
    assert caught.value.problem == "The card has no memory left"
    assert caught.value.got == "2 of 3 MiB free"
    assert "smaller batches" in (caught.value.fix or "")
    assert list(card.live) == [kept.address]


def test_a_call_that_fails_says_why_and_is_not_reported_again(card):
    card.failing["cudaStreamCreateWithFlags"] = (real.cudaError_t.cudaErrorLaunchFailure, 0)
    with pytest.raises(EngineError, match=r"A call of CUDA failed\n  got: words for cudaErrorLaunchFailure\n"):
        cuda.Stream()
    assert card.calls[-1] == "cudaGetLastError"


def test_copies_run_in_the_order_of_their_stream_and_after_what_they_wait_for(card):
    there, pinned, back = cuda.DeviceMemory(4), cuda.PinnedMemory(4), cuda.PinnedMemory(4)
    first, second, event = cuda.Stream(), cuda.Stream(), cuda.Event()
    pinned.bytes[:] = [1, 2, 3, 4]
    first.to_device(there.address, pinned.address, 4)
    event.record(first)
    second.wait_for(event)
    second.to_host(back.address, there.address, 4)
    assert back.bytes.tolist() == [0xAB] * 4  # nothing has run yet
    second.synchronize()
    assert back.bytes.tolist() == [1, 2, 3, 4]


def test_another_librarys_stream_is_waited_for(card):
    ran = []
    theirs, ours = card.stream(), cuda.Stream()
    card.enqueue(theirs, lambda: ran.append("theirs"))
    cuda.wait_for_stream(ours, theirs)
    gc.collect()
    card.enqueue(ours.number, lambda: ran.append("ours"))
    ours.synchronize()
    assert ran == ["theirs", "ours"]


def test_a_captured_block_runs_when_its_graph_is_launched(card):
    stream, ran = cuda.Stream(), []
    with stream.capture() as captured:
        card.enqueue(stream.number, lambda: ran.append(1))
    stream.synchronize()
    assert ran == []
    for _ in range(3):
        stream.launch(captured.graph)
    stream.synchronize()
    assert ran == [1, 1, 1]
    assert card.graphs == 1
    captured.graph.close()
    assert card.graphs == 0


def test_a_block_that_fails_leaves_the_stream_usable_and_no_graph(card):
    stream = cuda.Stream()
    with pytest.raises(KeyError, match="it"), stream.capture():
        raise KeyError("it")
    assert card.graphs == 0
    with stream.capture() as captured:
        card.enqueue(stream.number, lambda: None)
    stream.launch(captured.graph)
    stream.synchronize()


def test_a_graph_that_cannot_be_made_leaves_nothing(card):
    stream = cuda.Stream()
    card.failing["cudaGraphInstantiate"] = (real.cudaError_t.cudaErrorMemoryAllocation, 0)
    with pytest.raises(EngineError, match="no memory left"), stream.capture():
        card.enqueue(stream.number, lambda: None)
    assert card.graphs == 0


def test_time_between_events_is_in_seconds(card):
    stream, one, other = cuda.Stream(), cuda.Event(timed=True), cuda.Event(timed=True)
    one.record(stream)
    other.record(stream)
    other.synchronize()
    assert other.seconds_since(one) == pytest.approx(0.00025)


def test_a_device_is_in_use_for_a_block(card):
    with cuda.on_device(1):
        assert card.current[threading.get_ident()] == 1
        with cuda.on_device(0):
            assert card.current[threading.get_ident()] == 0
        assert card.current[threading.get_ident()] == 1
    assert card.current[threading.get_ident()] == 0


def test_pinned_memory_is_an_array_of_bytes(card):
    memory = cuda.PinnedMemory(24)
    floats = memory.bytes.view(np.float32).reshape(2, 3)
    floats[:] = 1.5
    assert memory.bytes[:4].tobytes() == np.float32(1.5).tobytes()
