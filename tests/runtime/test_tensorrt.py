"""Engines run on a card that is played, whose embedding is the mean colour; and on a real one where there is one.

The card works as late as it may, so what is copied too early or used again too soon is seen in the embeddings.
"""

import gc
import importlib.util
import logging
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime as real
from safetensors.numpy import save_file

import reidkit
from conditions import as_installed
from fake_cuda import FakeCuda
from fake_tensorrt import Context, fake_tensorrt
from foreign_checkpoints import make_fastreid_resnet
from reidkit.architecture import HeadSpec, ModelSpec
from reidkit.errors import BundleError, EngineError, InputError, RuntimeMissing
from reidkit.runtime import cuda, tensorrt
from reidkit.runtime.device_arrays import DeviceArray
from reidkit.runtime.engine_facts import EngineFacts, Profile, graph_digest
from reidkit.runtime.engine_store import write_engine
from reidkit.runtime.flavour import open_flavour
from reidkit.types import InputSpec

MOST = 8
PROFILES = (Profile(1, 1, 1), Profile(2, 4, 4), Profile(5, 8, 8))
RNG = np.random.default_rng(0)


def random_crops(n):
    return RNG.integers(0, 256, (n, 4, 2, 3), dtype=np.uint8)


def means(crops):
    return crops.mean((1, 2)).astype(np.float32)


@pytest.fixture
def card(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "cudart", fake)
    return fake


@pytest.fixture
def play(card, monkeypatch, make_bundle):
    """A bundle with an engine of a version, and that version played."""

    def played(version="10.9.0", *, data=b"engine", profiles=PROFILES, batch=None, **facts):
        trt = fake_tensorrt(version, card)
        trt.__spec__ = importlib.util.spec_from_loader("tensorrt", None)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        bundle = make_bundle(batch=batch)
        values: dict[str, Any] = {"gpu": "NVIDIA Fake", "compute_capability": "9.0", "driver": "13.2"} | facts
        wanted = EngineFacts(
            "tensorrt", version, "float32", "parser", graph_digest(bundle, "parser"), profiles, **values
        )
        return bundle, write_engine(bundle, wanted, data), trt

    return played


@pytest.fixture
def embedder(play):
    bundle, _, _ = play()
    return opened(bundle)


def opened(bundle, **options) -> Any:
    return reidkit.load(bundle, "tensorrt", **options)


def lane_of(embedder):
    (lane,) = embedder._lanes._idle
    return lane


# Crops of the host


@pytest.mark.parametrize("version", ["8.6.0", "10.9.0", "11.0.0"])
def test_the_golden_embeddings_come_out_in_every_version(play, version):
    bundle, facts, _ = play(version)
    embedder = reidkit.load(bundle, "tensorrt", precision="float32", via="parser")
    golden = bundle.golden()
    np.testing.assert_allclose(embedder.embed(golden.crops), golden.embeddings, rtol=1e-6)
    spec = embedder.spec
    assert (spec.runtime, spec.precision, spec.device, spec.build) == ("tensorrt", "float32", "cuda", facts.sha256)


def test_any_number_of_crops_is_taken_and_no_buffer_is_used_too_soon(embedder):
    for n in (0, 1, 2, 3, 4, 5, MOST, MOST + 1, 2 * MOST, 3 * MOST + 7, 5 * MOST + 1, 1):
        crops = random_crops(n)
        got = embedder.embed(crops)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, means(crops).reshape(n, 3), rtol=1e-6)


def test_crops_that_do_not_lie_in_one_piece(embedder):
    crops = random_crops(20)
    np.testing.assert_allclose(embedder.embed(crops[::2]), means(crops[::2]), rtol=1e-6)
    np.testing.assert_allclose(embedder.embed(crops[:, :, ::-1]), means(crops), rtol=1e-6)


def test_other_crops_are_refused_and_the_engine_stays(embedder):
    for wrong in (random_crops(2).astype(np.float32), np.zeros((2, 4, 3, 3), np.uint8)):
        with as_installed(), pytest.raises(InputError, match="The crops do not fit the model"):
            embedder.embed(wrong)
    assert embedder._lanes.made == 1


def test_the_profile_of_a_batch_runs_it_and_each_graph_has_a_context_of_its_own(embedder):
    for n in (1, 2, 4, 5, 8, 4, 1):
        embedder.embed(random_crops(n))
    (engine,) = sys.modules["tensorrt"].engines
    # A context may not be changed while a graph that was captured from it is in use.
    made = [(context.profile, context.shape[0]) for context in engine.contexts]
    assert made == [(0, 1), (1, 4), (2, 8), (1, 2), (2, 5)]  # the first three when it was opened
    assert [context.enqueued for context in engine.contexts] == [2] * 5  # once as it is, once to be captured
    assert len({context.device_memory for context in engine.contexts}) == 1  # they run in turn


def test_its_memory_goes_with_the_last_name_for_it(play, card):
    bundle, _, _ = play()
    embedder = opened(bundle)
    embedder.embed(random_crops(3))
    assert card.live
    sys.modules["tensorrt"].engines.clear()
    gone = weakref.ref(embedder)
    gc.disable()  # nobody may wait for the collector, which knows nothing of a card's memory
    try:
        del embedder
        assert gone() is None
        assert not card.live
    finally:
        gc.enable()


def test_the_callers_card_stays_in_use(play, card):
    bundle, _, _ = play()
    card.devices = 2
    embedder = opened(bundle, device="cuda:1")
    assert card.current.get(threading.get_ident(), 0) == 0
    embedder.embed(random_crops(2))
    assert card.current[threading.get_ident()] == 0


def test_a_batch_is_captured_once_and_then_only_launched(embedder, card):
    crops = random_crops(MOST)
    embedder.embed(crops)
    taken, calls = cuda.allocations(), len(card.calls)
    live = dict(card.live)
    for _ in range(5):
        embedder.embed(crops)
    assert cuda.allocations() == taken
    assert card.live == live
    one = ["cudaGetDevice", "cudaMemcpyAsync", "cudaStreamWaitEvent", "cudaGraphLaunch"]
    one += ["cudaEventRecord", "cudaEventRecord", "cudaEventSynchronize"]
    assert card.calls[calls:] == one * 5


def test_graphs_are_bounded_and_those_that_go_are_given_back(embedder, card, monkeypatch):
    monkeypatch.setattr(tensorrt, "_GRAPHS", 3)
    for n in (1, 2, 3, 1, 4, 5, 1, 2, 6, 7, 8):
        crops = random_crops(n)
        np.testing.assert_allclose(embedder.embed(crops), means(crops), rtol=1e-6)
    slot = lane_of(embedder)._slots[0]
    assert [key[0] for key in slot.graphs] == [6, 7, 8]
    assert card.graphs == 3
    (engine,) = sys.modules["tensorrt"].engines
    # 1 was used again and again, so it stayed until the end; 2 went, and was captured again.
    assert [context.shape[0] for context in engine.contexts] == [1, 4, 8, 2, 3, 4, 5, 2, 6, 7, 8]


def test_a_graph_with_a_fixed_batch_is_filled_up(play):
    bundle, _, _ = play(batch=3, profiles=(Profile(3, 3, 3),))
    trt = sys.modules["tensorrt"]
    embedder = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fake_tensorrt.Engine.ranges", ((3, 3),), raising=False)
        patch.setattr("fake_tensorrt.Engine.__init__", _with_ranges(((3, 3),)))
        embedder = opened(bundle)
    assert len(trt.engines) == 1
    for n in (1, 3, 7):
        crops = random_crops(n)
        np.testing.assert_allclose(embedder.embed(crops), means(crops), rtol=1e-6)
    with pytest.raises(
        InputError, match=r"so many crops at once\n  got: 2\n  expected: 3, which is fixed in the graph$"
    ):
        embedder.embed_device(DeviceArray.new((2, 4, 2, 3), np.dtype(np.uint8), device=0))


def _with_ranges(ranges):
    def make(self, runtime):
        self.runtime, self.cuda, self.contexts, self.most, self.ranges = runtime, runtime.trt.cuda, [], 1000, ranges

    return make


def test_the_card_knows_what_it_holds_and_gets_it_back(play, card):
    bundle, facts, _ = play()
    embedder = opened(bundle)
    taken = sum(size for size, kind in card.live.values() if kind == "device")
    assert embedder.device_memory == facts.size + taken
    embedder.embed(random_crops(20))
    del embedder
    gc.collect()
    assert card.live == {}
    assert card.graphs == 0
    assert set(card.streams) == {0, 1}


def test_time_on_the_card(embedder):
    assert embedder.device_seconds(4, 3) == pytest.approx([0.00025] * 3)
    with pytest.raises(InputError, match=r"so many crops at once\n  got: 9\n  expected: 1 to 8\n  to do: give fewer"):
        embedder.device_seconds(9, 3)


# Threads


def test_threads_have_lanes_of_their_own_up_to_a_number(embedder):
    inside, most, lock, failures = set(), [], threading.Lock(), []
    barrier = threading.Barrier(tensorrt._LANES)

    def work():
        try:
            for turn in range(5):
                with embedder._lane() as lane:
                    with lock:
                        assert id(lane) not in inside
                        inside.add(id(lane))
                        most.append(len(inside))
                    if turn == 0 and threading.current_thread().name == "first":
                        barrier.wait(timeout=30)
                    with lock:
                        inside.remove(id(lane))
        except BaseException as error:
            failures.append(error)
            raise

    first = [threading.Thread(target=work, name="first") for _ in range(tensorrt._LANES)]
    later = [threading.Thread(target=work) for _ in range(4)]
    for thread in first + later:
        thread.start()
    for thread in first + later:
        thread.join(timeout=60)
    assert failures == []
    assert max(most) == embedder._lanes.made == tensorrt._LANES


def test_threads_do_not_mix_their_crops(embedder):
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for n in (1, 9, 3, 30, 8):
            crops = rng.integers(0, 256, (n, 4, 2, 3), dtype=np.uint8)
            if not np.allclose(embedder.embed(crops), means(crops), rtol=1e-6):
                failures.append((seed, n))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert failures == []


def test_an_error_drops_its_lane_and_wakes_who_waits(play, monkeypatch, card):
    monkeypatch.setattr(tensorrt, "_LANES", 1)
    bundle, _, trt = play()
    embedder = opened(bundle)
    held, waits, results = threading.Event(), threading.Event(), []
    crops = random_crops(2)

    def hold_and_fail():
        with embedder._lane() as lane:
            held.set()
            waits.wait(timeout=30)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Context, "failing", True)
                lane.run(crops, np.empty((2, 3), np.float32))

    def fails():
        with pytest.raises(
            EngineError, match=r"could not run the engine\n  got: it does not say why\n  to do: where memory"
        ):
            hold_and_fail()

    def succeeds():
        held.wait(timeout=30)
        waits.set()
        results.append(embedder.embed(crops))

    threads = [threading.Thread(target=target) for target in (fails, succeeds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    np.testing.assert_allclose(results[0], means(crops), rtol=1e-6)
    assert embedder._lanes.made == 1
    each = len(PROFILES) + 1
    assert len(trt.engines[0].contexts) == 2 * each  # those of a new lane
    assert card.calls.count("cudaStreamEndCapture") == 2 * each - 1  # what failed did so before it was captured


def test_ctrl_c_drops_the_lane_as_well(embedder, monkeypatch):
    first = lane_of(embedder)
    monkeypatch.setattr(type(first), "_collect", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embedder.embed(random_crops(2))
    monkeypatch.undo()
    assert embedder._lanes.made == 0


def test_without_memory_for_a_second_lane_threads_take_turns(play, card, caplog):
    bundle, _, _ = play()
    embedder = opened(bundle)
    card.memory = sum(size for size, kind in card.live.values() if kind == "device") + 100
    crops, results = random_crops(MOST + 1), []
    thread = threading.Thread(target=lambda: results.append(embedder.embed(crops)))
    with caplog.at_level(logging.WARNING), embedder._lane():
        thread.start()
        for _ in range(1000):
            if caplog.records:
                break
            thread.join(timeout=0.01)
        assert results == []
    thread.join(timeout=60)
    np.testing.assert_allclose(results[0], means(crops), rtol=1e-6)
    assert [record.message for record in caplog.records] == [
        "Threads take turns from here on: The card has no memory left"
    ]
    assert embedder._lanes.made == 1
    gc.collect()
    assert sum(kind == "pinned" for _, kind in card.live.values()) == 4  # nothing is left of the second


def test_without_memory_for_the_first_lane_it_does_not_open(play, card):
    bundle, _, _ = play()
    card.memory = 1000
    with pytest.raises(EngineError, match=r"The card has no memory left\n  got: 0 of 0 MiB free"):
        reidkit.load(bundle, "tensorrt")
    gc.collect()
    assert card.live == {}


# Crops of the card


def on_card(card, array):
    """In the card's memory, with a description; its own memory for as long as the result lives."""
    memory = DeviceArray.new(array.shape, array.dtype, device=0)
    place(memory, array.nbytes)[:] = array.view(np.uint8).reshape(-1)
    return memory


def place(memory, size):
    import ctypes

    address = memory.__cuda_array_interface__["data"][0]
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def values(result):
    return place(result, 4 * int(np.prod(result.shape))).view(np.float32).reshape(result.shape)


def test_crops_on_the_card_stay_there(embedder, card):
    for n in (1, 3, MOST, 3):
        crops = random_crops(n)
        given = on_card(card, crops)
        before = card.calls.count("cudaMallocHost")
        result = embedder.embed_device(given)
        assert (result.shape, result.dtype, result.device) == ((n, 3), np.dtype(np.float32), 0)
        np.testing.assert_allclose(values(result), means(crops), rtol=1e-6)
        assert card.calls.count("cudaMallocHost") == before
    assert embedder.embed_device(on_card(card, random_crops(1)[:0])).shape == (0, 3)


def test_nothing_is_taken_where_the_output_is_given(embedder, card):
    crops = random_crops(3)
    given, out = on_card(card, crops), on_card(card, np.zeros((3, 3), np.float32))
    embedder.embed_device(given, out=out)
    taken, graphs = cuda.allocations(), card.calls.count("cudaGraphInstantiate")
    for number in range(4):
        place(given, crops.nbytes)[0] = number
        assert embedder.embed_device(given, out=out) is out
    assert cuda.allocations() == taken
    assert card.calls.count("cudaGraphInstantiate") == graphs
    crops.reshape(-1)[0] = 3
    np.testing.assert_allclose(values(out), means(crops), rtol=1e-6)


def test_arrays_at_any_address_use_one_graph(embedder, card):
    """A part of somebody's array begins anywhere, and no two calls have the same addresses."""
    whole = card.adopt(random_crops(40))
    out = card.adopt(np.zeros((40, 3), np.float32))
    before = card.calls.count("cudaGraphInstantiate")
    for start in range(0, 30, 3):
        embedder.embed_device(Given(whole[start : start + 3]), out=Given(out[start : start + 3]))
    np.testing.assert_allclose(out[:30], means(whole[:30]), rtol=1e-6)
    assert card.calls.count("cudaGraphInstantiate") == before + 1


class Given:
    """Memory of the card with Numba's interface."""

    def __init__(self, array, **more):
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "version": 3,
            **more,
        }


@pytest.mark.parametrize("told", ["by the caller", "by the array"])
def test_whoever_makes_the_crops_is_waited_for(embedder, card, told):
    crops, late = card.adopt(np.zeros((2, 4, 2, 3), np.uint8)), random_crops(2)
    theirs = card.stream()
    card.enqueue(theirs, lambda: np.copyto(crops, late))
    if told == "by the caller":
        result = embedder.embed_device(Given(crops), stream=theirs)
    else:
        result = embedder.embed_device(Given(crops, stream=theirs))
    np.testing.assert_allclose(values(result), means(late), rtol=1e-6)


def test_dlpack_is_taken_and_the_default_stream_is_waited_for(embedder, card):
    crops, late = card.adopt(np.zeros((2, 4, 2, 3), np.uint8)), random_crops(2)

    class Lent:
        def __dlpack_device__(self):
            return 2, 0

        def __dlpack__(self, *, stream):
            assert stream == 1
            card.enqueue(1, lambda: np.copyto(crops, late))
            return crops.__dlpack__()

    np.testing.assert_allclose(values(embedder.embed_device(Lent())), means(late), rtol=1e-6)


def test_an_output_is_made_on_the_engines_card_in_every_thread(play, card):
    card.devices = 2
    bundle, _, _ = play()
    embedder = opened(bundle, device="cuda:1")
    given, made = DeviceArray.new((2, 4, 2, 3), np.dtype(np.uint8), device=1), []
    take = card._take

    def record(size, kind):
        made.append(card.current.get(threading.get_ident(), 0))
        return take(size, kind)

    card._take = record
    thread = threading.Thread(target=lambda: embedder.embed_device(given))
    thread.start()
    thread.join(timeout=60)
    assert made == [1]
    with pytest.raises(InputError, match=r"another device\n  got: DLPack device 2:0\n  expected: cuda:1"):
        embedder.embed_device(DeviceArray.new((2, 4, 2, 3), np.dtype(np.uint8), device=0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            np.zeros((2, 4, 2, 3), np.float32),
            r"do not fit the model\n  got: float32 \(2, 4, 2, 3\)\n  expected: uint8 \(n, 4",
        ),
        (np.zeros((2, 4, 2), np.uint8), r"do not fit the model\n  got: uint8 \(2, 4, 2\)"),
        (np.zeros((2, 2, 4, 3), np.uint8), r"do not fit the model\n  got: uint8 \(2, 2, 4, 3\)"),
        (
            np.zeros((9, 4, 2, 3), np.uint8),
            r"so many crops at once\n  got: 9\n  expected: 1 to 8\n  to do: .*--batch 9",
        ),
    ],
)
def test_other_crops_on_the_card_are_refused(embedder, given, words):
    with pytest.raises(InputError, match=words):
        embedder.embed_device(Given(given))
    assert embedder._lanes.made == 1


def test_other_arrays_are_refused(embedder, card):
    crops = random_crops(4)
    with pytest.raises(InputError, match="not C-contiguous"):
        embedder.embed_device(Given(crops[::2], strides=crops[::2].strides))
    with pytest.raises(InputError, match=r"another device\n  got: DLPack device 1:0"):
        embedder.embed_device(crops)
    for out in (np.zeros((3, 3), np.float32), np.zeros((4, 3), np.float64), np.zeros((4, 3, 1), np.float32)):
        with pytest.raises(
            InputError, match=r"The output does not fit the crops\n  got: .*\n  expected: float32 \(4, 3\)"
        ):
            embedder.embed_device(Given(crops), out=Given(out))
    assert embedder._lanes.made == 1


# Opening


def test_an_engine_that_the_library_cannot_read(play):
    bundle, facts, _ = play("8.6.0", data=b"broken engine")
    with pytest.raises(BundleError) as caught:
        reidkit.load(bundle, "tensorrt")
    assert caught.value.problem == f"tensorrt 8.6.0 cannot read the engine {facts.name}"
    assert caught.value.got == "Error Code 1: broken"
    assert caught.value.fix == "build it again: reid build --rebuild"


def test_a_truncated_engine_is_not_given_to_the_library(play):
    bundle, facts, trt = play()
    file = bundle.path / "engines" / facts.file
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match="has the wrong length"):
        reidkit.load(bundle, "tensorrt")
    assert trt.engines == []


def test_an_engine_without_weights_is_not_opened(play):
    bundle, facts, trt = play(options=("weight-stripped",))
    with pytest.raises(RuntimeMissing, match=rf"The engine {facts.name} has no weights\n(?s:.*)--weight-stripped"):
        reidkit.load(bundle, "tensorrt")
    assert trt.engines == []


@pytest.mark.parametrize(("options", "allowed"), [((), False), (("version-compatible",), True)])
def test_an_engine_that_brings_code_along_may_only_where_that_was_asked_for(play, options, allowed):
    bundle, _, trt = play(options=options)
    reidkit.load(bundle, "tensorrt")
    assert trt.engines[0].runtime.engine_host_code_allowed is allowed


def test_an_engine_of_another_card_is_refused(play):
    bundle, _, trt = play(gpu="NVIDIA Other")
    with pytest.raises(RuntimeMissing, match=r"No tensorrt engine of mean\.reid fits this machine(?s:.*)NVIDIA Other"):
        reidkit.load(bundle, "tensorrt")
    assert trt.engines == []


def test_facts_with_profiles_that_the_engine_has_not(play):
    bundle, _, _ = play(profiles=(*PROFILES, Profile(9, 64, 64)))
    with pytest.raises(EngineError, match=r"does not take its own profile\n  got: 3\n  to do: build the engine again"):
        reidkit.load(bundle, "tensorrt")


def test_facts_with_batches_that_the_engine_has_not(play):
    bundle, _, _ = play(profiles=(*PROFILES[:2], Profile(5, 64, 64)))
    with pytest.raises(EngineError, match=r"does not take a batch of its own profile\n  got: 64"):
        opened(bundle)


def test_a_context_that_the_card_has_no_memory_for(play, monkeypatch):
    bundle, _, _ = play()
    monkeypatch.setattr("fake_tensorrt.Engine._context", lambda self: None)
    with pytest.raises(EngineError, match=r"TensorRT gives no context\n  got: most likely no memory left"):
        reidkit.load(bundle, "tensorrt")


def test_without_a_card_nothing_opens(play, card):
    bundle, _, trt = play()
    card.failing["cudaGetDeviceCount"] = (real.cudaError_t.cudaErrorNoDevice, 0)
    with pytest.raises(RuntimeMissing, match=r"There is no CUDA device here\n  got: words for cudaErrorNoDevice"):
        reidkit.load(bundle, "tensorrt")
    with pytest.raises(RuntimeMissing, match="There is no CUDA device here"):
        tensorrt.machine_of(open_flavour("tensorrt"))
    assert trt.engines == []


# On a real card


def _has_card():
    error, count = real.cudaGetDeviceCount()
    return error == real.cudaError_t.cudaSuccess and count > 0 and importlib.util.find_spec("tensorrt") is not None


needs_card = pytest.mark.skipif(not _has_card(), reason="needs a CUDA device and TensorRT")


def draw_known_network(folder):
    """A bundle of a ResNet-18 IBN-a, its truth NumPy's: beside the TensorRT of a Jetson's Python there is no torch."""
    from reidkit.deploy.network_import import import_network

    weights = folder / "drawn.safetensors"
    save_file(make_fastreid_resnet(np.random.default_rng(0), depth=18, ibn=True, pooling="gem"), weights)
    spec = ModelSpec(head=HeadSpec(gem_learned=True))
    return import_network(weights, folder / "drawn.reid", spec=spec, input_=InputSpec(32, 16))


@pytest.fixture(scope="module")
def real_engine(tmp_path_factory):
    """The known network in float32, with two profiles."""
    from reidkit.deploy.build import build_engine

    bundle = draw_known_network(tmp_path_factory.mktemp("real"))
    build_engine(bundle, precision="float32", batches=[1, 8])
    return reidkit.load(bundle, "tensorrt"), bundle.golden()


def many(golden, n):
    return golden.crops[np.arange(n) % len(golden.crops)], golden.embeddings[np.arange(n) % len(golden.crops)]


@needs_card
@pytest.mark.parametrize("n", [1, 2, 8, 9, 31])
def test_a_real_engine_reproduces_the_golden_embeddings(real_engine, n):
    embedder, golden = real_engine
    crops, truth = many(golden, n)
    np.testing.assert_allclose(embedder.embed(crops), truth, rtol=1e-3, atol=1e-5 * np.abs(truth).max())


@needs_card
def test_a_real_engine_takes_no_memory_for_a_call(real_engine):
    embedder, golden = real_engine
    crops, _ = many(golden, 31)
    embedder.embed(crops)
    taken, same = cuda.allocations(), []
    for _ in range(20):
        free = cuda.free_memory()
        embedder.embed(crops)
        same.append(cuda.free_memory() == free)
    assert cuda.allocations() == taken
    assert any(same)  # what a call took would be missing after each of them; other programs use the card as well


@needs_card
def test_a_real_engine_serves_several_threads(real_engine):
    embedder, golden = real_engine
    failures = []

    def work(n):
        crops, truth = many(golden, n)
        near: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5 * float(np.abs(truth).max())}
        failures.extend(n for _ in range(10) if not np.allclose(embedder.embed(crops), truth, **near))

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 5, 8, 9, 17, 31)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@needs_card
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_a_real_engine_takes_and_gives_other_libraries_arrays(real_engine, library):
    arrays = pytest.importorskip(library)
    if library == "torch" and not arrays.cuda.is_available():
        pytest.skip("torch without CUDA")
    embedder, golden = real_engine
    crops, truth = many(golden, 8)
    tolerance: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5 * float(np.abs(truth).max())}
    if library == "torch":
        with arrays.cuda.stream(arrays.cuda.Stream()):
            given = arrays.from_numpy(crops).pin_memory().cuda(non_blocking=True)
            result = arrays.from_dlpack(embedder.embed_device(given[1:]))
        np.testing.assert_allclose(result.cpu().numpy(), truth[1:], **tolerance)
        out = arrays.empty(truth.shape, device="cuda")
        embedder.embed_device(given, out=out)
        np.testing.assert_allclose(out.cpu().numpy(), truth, **tolerance)
    else:
        result = arrays.from_dlpack(embedder.embed_device(arrays.asarray(crops)))
        np.testing.assert_allclose(arrays.asnumpy(result), truth, **tolerance)
    del result
    gc.collect()
