"""PyTorch's compiler as an engine. But for one slow test, what it writes is run by PyTorch itself and not compiled."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import reidkit
from conditions import as_installed
from reidkit.bundle import open_bundle
from reidkit.errors import InputError, ModelError, RuntimeMissing
from reidkit.models.checkpoint import load_deployed
from reidkit.models.deployed import PlacedModel
from reidkit.runtime import inductor
from reidkit.runtime.inductor import SIZES, CapturedEmbedder, CompiledEmbedder, cut
from reidkit.types import Embedder, EmbedderSpec, InputSpec, Timed

SPEC = EmbedderSpec(InputSpec(32, 16), 512, False, None, "inductor", "float32", "cuda")


def random_crops(n):
    return np.random.default_rng(n).integers(0, 256, (n, 32, 16, 3), dtype=np.uint8)


@pytest.fixture
def uncompiled(monkeypatch):
    """The compiler's front, which reads the network, with PyTorch itself in place of what it would write."""
    compiled = torch.compile
    programs = []

    def eager(function, **how):
        programs.append(how)
        return compiled(function, backend="eager", **how)

    monkeypatch.setattr(torch, "compile", eager)
    return programs


@pytest.fixture
def expected(tiny_bundle):
    return reidkit.load(tiny_bundle, "pytorch").embed


def test_it_reads_the_network_whole(tiny_bundle, expected, uncompiled):
    with as_installed():
        embedder = reidkit.load(tiny_bundle, "inductor", precision="float16")
        for n in (1, 3, 2):
            got, truth = embedder.embed(random_crops(n)), expected(random_crops(n))
            cosine = (got * truth).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(truth, axis=1)
            assert 0.9999 < cosine.min() < 1 - 1e-8
        assert embedder.embed(np.empty((0, 32, 16, 3), np.uint8)).shape == (0, 512)
    assert isinstance(embedder, Embedder)
    assert not isinstance(embedder, Timed)
    assert (embedder.spec.runtime, embedder.spec.precision, embedder.spec.device) == ("inductor", "float16", "cpu")
    assert uncompiled == [{"fullgraph": True, "dynamic": False}]


def test_each_model_compiles_one_program_for_one_crop_and_one_for_several(monkeypatch):
    graphs = []
    compiled = torch.compile

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled(function, backend=counted, **how))
    with as_installed():
        for _ in range(5):  # PyTorch compiles one piece of code eight times, and no more
            embedder = CompiledEmbedder(Sum(), SPEC)  # pyright: ignore[reportArgumentType]
            for n in (1, 2, 3, 7):
                np.testing.assert_allclose(embedder.embed(random_crops(n)), random_crops(n).reshape(n, -1, 512).sum(1))
    assert len(graphs) == 10


class Sum(torch.nn.Module):
    """A small model for the compiler: pixels are added up."""

    def forward(self, crops):
        return crops.float().reshape(len(crops), -1, 512).sum(1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's compiler uses it itself
def test_compiled_it_gives_what_the_network_gives(tiny_bundle, expected):
    with as_installed():
        embedder = reidkit.load(tiny_bundle, "inductor", threads=1)
        got = embedder.embed(random_crops(1))
        with ThreadPoolExecutor(2) as pool:
            for again in pool.map(lambda _: embedder.embed(random_crops(1)), range(2)):
                np.testing.assert_array_equal(again, got)
    np.testing.assert_allclose(got, expected(random_crops(1)), rtol=1e-4, atol=1e-4)


def failing(error):
    def compiled(function, **_):
        def call(crops):
            raise RuntimeError("while compiling") from error

        return call

    return compiled


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            type("InvalidCxxCompiler", (Exception,), {})("No working C++ compiler found"),
            RuntimeMissing,
            r"PyTorch's compiler finds no compiler .*\n  got: InvalidCxx.*: No .*\n  expected: a C\+\+ .*\n.*apt ",
        ),
        (
            ValueError("no such operator"),
            ModelError,
            r"PyTorch cannot compile tiny\.reid\n  got: ValueError: no such operator\n.*: choose the runtime pytorch",
        ),
    ],
)
def test_what_cannot_be_compiled_is_said_when_it_is_opened(tiny_bundle, monkeypatch, error, kind, text):
    monkeypatch.setattr(torch, "compile", failing(error))
    with pytest.raises(kind, match=text):
        reidkit.load(tiny_bundle, "inductor")


@pytest.mark.parametrize("precision", ["tf32", "int8"])
@pytest.mark.parametrize("runtime", ["inductor", "pytorch"])
def test_a_precision_that_there_is_not(tiny_bundle, runtime, precision):
    text = rf"{runtime} does not run this bundle in {precision} here\n  expected: one of float32, float16, bfloat16"
    with pytest.raises(RuntimeMissing, match=text):
        reidkit.load(tiny_bundle, runtime, precision=precision)


@pytest.mark.parametrize("runtime", ["inductor", "pytorch"])
def test_a_card_that_is_not_there(tiny_bundle, runtime):
    with pytest.raises(RuntimeMissing, match=r"PyTorch sees no such CUDA device\n  got: cuda:64"):
        reidkit.load(tiny_bundle, runtime, device="cuda:64")


# -- on a card: the way of crops to and from its graphs ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, []),
        (1, [1]),
        (2, [4]),
        (4, [4]),
        (5, [4, 1]),
        (8, [16]),
        (17, [32]),
        (15, [16]),
        (7, [4, 4]),
        (32, [32]),
        (33, [64]),
        (64, [64]),
        (71, [64, 4, 4]),
        (130, [64, 64, 4]),
    ],
)
def test_how_crops_are_cut(count, sizes):
    assert [size for _, _, size in cut(count)] == sizes


def test_every_crop_is_in_one_batch():
    for count in range(300):
        parts = cut(count)
        assert [i for start, number, _ in parts for i in range(start, start + number)] == list(range(count))
        assert all(0 < number <= size and size in SIZES for _, number, size in parts)
        assert sum(size for *_, size in parts) <= 2 * count


class Replay:
    """Stands in for a captured graph: fixed places in, fixed places out."""

    def __init__(self, program, crops, embeddings):
        self._do = lambda: embeddings.copy_(program(crops))
        self.replays = 0

    def replay(self):
        self.replays += 1
        self._do()


@pytest.fixture
def on_card(tiny_bundle, monkeypatch, uncompiled):
    """An embedder of a card, whose graphs run on the processor."""
    for name in ("device", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: Nothing())
    model = PlacedModel(load_deployed(open_bundle(tiny_bundle)), torch.device("cpu"), "float32")

    def capture(self, size):
        crops, embeddings = torch.zeros((size, 32, 16, 3), dtype=torch.uint8), torch.zeros((size, 512))
        return inductor._Captured(Replay(model, crops, embeddings), crops, embeddings)

    monkeypatch.setattr(CapturedEmbedder, "_capture", capture)
    with as_installed():
        yield CapturedEmbedder(model, SPEC)


class Nothing(nullcontext):
    def synchronize(self):
        pass


@pytest.mark.parametrize("n", [1, 3, 6, 17, 70])
def test_whatever_number_of_crops_comes_back_in_order(on_card, expected, n):
    np.testing.assert_allclose(on_card.embed(random_crops(n)), expected(random_crops(n)), rtol=1e-3, atol=1e-4)
    on_device = on_card.embed_device(torch.from_numpy(random_crops(n)))
    np.testing.assert_allclose(on_device.numpy(), expected(random_crops(n)), rtol=1e-3, atol=1e-4)
    assert set(on_card._captured) == {size for _, _, size in cut(n)}


def test_what_it_gave_stays_when_it_runs_again(on_card):
    first, on_device = on_card.embed(random_crops(4)), on_card.embed_device(torch.from_numpy(random_crops(4)))
    kept = first.copy()
    on_card.embed(random_crops(4)[::-1])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(on_device.numpy(), kept)


def test_threads_take_turns(on_card, expected):
    truth = {n: expected(random_crops(n)) for n in (1, 2, 4)}
    with ThreadPoolExecutor(4) as pool:
        for n, got in pool.map(lambda n: (n, on_card.embed(random_crops(n))), [1, 2, 4] * 5):
            np.testing.assert_allclose(got, truth[n], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("crops", [torch.zeros((2, 32, 16, 3)), torch.zeros((2, 16, 32, 3), dtype=torch.uint8)])
def test_crops_on_the_card_that_do_not_fit(on_card, crops):
    with pytest.raises(InputError, match=r"The crops do not fit the model\n  got: .*\(2, "):
        on_card.embed_device(crops)


def test_its_time_is_that_of_every_graph_of_a_batch(on_card, monkeypatch):
    calls = []
    monkeypatch.setattr(inductor, "event_seconds", lambda run, runs: [calls.append(run()) or 0.5] * runs)
    assert on_card.device_seconds(5, 3) == [0.5] * 3
    assert {size: captured.graph.replays for size, captured in on_card._captured.items()} == {4: 1, 1: 1}
