"""The fastest faithful engine: real engines on the processor; for a card, engines that are made up."""

import shutil
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest

import reidkit
from reidkit.bundle import Golden, open_bundle, write_bundle
from reidkit.deploy import choose as module
from reidkit.deploy.choose import choose, winners_of
from reidkit.deploy.ways import Way
from reidkit.errors import ConfigError, EngineError, ModelError, RuntimeMissing
from reidkit.runtime import ENGINES, auto
from reidkit.runtime.engine_facts import Pick
from reidkit.runtime.engine_store import read_choice
from reidkit.runtime.machine import machine
from reidkit.types import EmbedderSpec, InputSpec

ONNX, VINO, TORCH = Way("onnxruntime", "float32"), Way("openvino", "float32"), Way("pytorch", "float32")


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return open_bundle(shutil.copytree(tiny_bundle, tmp_path / "a model.reid"))


class Fake:
    """Gives the golden embeddings, with an error of its own, and takes its time on a clock that tests look at."""

    def __init__(self, clock, way, golden, *, error=0.0, milliseconds=1.0, most=None):
        height, width = golden.crops.shape[1:3]
        dim = golden.embeddings.shape[1]
        self.spec = EmbedderSpec(
            InputSpec(height, width), dim, False, None, way.runtime, way.precision, "cuda", way.in_words()
        )
        self._clock, self._golden, self._error, self._ms, self._most = clock, golden, error, milliseconds, most

    def embed(self, crops):
        if self._most is not None and len(crops) > self._most:
            raise MemoryError("so many crops\nwould not fit")
        self._clock.now += 1e-3 * (self._ms(len(crops)) if callable(self._ms) else self._ms)
        table = {crop.tobytes(): row for crop, row in zip(self._golden.crops, self._golden.embeddings, strict=True)}
        return np.stack([table[crop.tobytes()] for crop in crops]) * np.float32(1 + self._error)


@pytest.fixture
def card(bundle, monkeypatch):
    """A machine with a card whose engines are fakes: `engines[way]` opens one, or raises; `built` says what was."""
    golden = bundle.golden()
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    engines: dict[Way, dict | Exception] = {}
    built: list[tuple] = []

    def build(opened, name, *, precision, via, batches, device):
        built.append((name, precision, via, tuple(batches), device))

    def load(opened, name, *, device=None, threads=None, precision=None, via=None):
        way = Way(name, precision, via)
        found = engines.get(way, RuntimeMissing(f"{way.in_words()} is not here", got="one\nand another"))
        if isinstance(found, Exception):
            raise found
        assert device == "cuda"
        return Fake(clock, way, golden, **found)

    here = [engine.library for engine in ENGINES.values() if engine.library != "tensorrt_rtx"]
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name in here or None)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "build_engine", build)
    monkeypatch.setattr("reidkit.deploy.ways.load", load)
    monkeypatch.setattr(auto, "load", load)
    return SimpleNamespace(engines=engines, built=built, clock=clock)


def reasons(chosen):
    return {trial.way.in_words(): trial.reason for trial in chosen.trials if trial.reason is not None}


# On the processor, for real


def test_the_engines_of_a_processor(bundle):
    steps = []
    chosen = choose(
        bundle.path, batches=[4, 1, 4], device="cpu", seconds=0.05, progress=lambda *step: steps.append(step)
    )
    assert chosen.batches == (1, 4)
    timed = {trial.way: trial for trial in chosen.trials if trial.reason is None}
    assert list(timed) == [ONNX, VINO, TORCH]
    for trial in timed.values():
        assert trial.parity is not None
        assert trial.parity.passed
        assert len(trial.ms) == 2
        assert min(trial.ms) > 0
        assert trial.gpu_ms == (None, None)
    left_out = reasons(chosen)
    assert set(left_out) == {"inductor", "tensorrt", "tensorrt-rtx"}
    assert left_out["inductor"].startswith("compiling for a processor takes a minute and gains nothing")
    assert steps[-1] == (len(ENGINES) + 10, len(ENGINES) + 10)
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert read_choice(bundle, machine("cpu"), "cpu") == chosen.choice
    assert [batch for batch, _ in chosen.choice.timed] == [1, 4]
    embedder = reidkit.load(bundle, "auto", device="cpu")
    golden = bundle.golden()
    np.testing.assert_allclose(embedder.embed(golden.crops), golden.embeddings, rtol=1e-3, atol=1e-3)
    assert set(embedder.spec.runtime.split("+")) <= {"onnxruntime", "openvino", "pytorch"}


def test_an_engine_that_gives_other_embeddings_is_left_out(bundle, monkeypatch):
    openvino = pytest.importorskip("reidkit.runtime.openvino")
    embed = openvino.OpenVinoEmbedder.embed
    monkeypatch.setattr(openvino.OpenVinoEmbedder, "embed", lambda self, crops: embed(self, crops) * 1.001)
    chosen = choose(bundle, batches=[1], device="cpu", seconds=0.0)
    assert reasons(chosen)["openvino float32"].startswith(
        "it fails verification: max rel 1.0e-03, min cosine 1.000000; expected: max rel at most 0.0001, min cosine at "
    )
    assert VINO not in chosen.winners
    (trial,) = [trial for trial in chosen.trials if trial.way == VINO]
    assert trial.parity is not None
    assert trial.ms == ()


def test_a_model_without_weights_is_not_for_pytorch(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, "openvino", replace(ENGINES["openvino"], library="openvino_that_is_not_here"))
    golden = bundle.golden()
    manifest = replace(bundle.manifest, architecture=None)
    foreign = write_bundle(tmp_path / "b.reid", manifest, model=bundle.model.read_bytes(), golden=golden, weights=None)
    chosen = choose(foreign, batches=[2], device="cpu", seconds=0.0)
    assert chosen.winners == (ONNX,)
    left_out = reasons(chosen)
    assert left_out["openvino"] == "openvino_that_is_not_here is not installed: pip install 'reidkit[openvino]'"
    assert left_out["pytorch float32"].startswith("b.reid is a foreign graph without named weights")


def test_nobody_passes(bundle, monkeypatch):
    golden = bundle.golden()
    monkeypatch.setattr(
        "reidkit.bundle.Bundle.golden", lambda self: Golden(golden.crops, golden.embeddings[::-1].copy())
    )
    with pytest.raises(RuntimeMissing, match=r"No engine here runs a model\.reid on cpu as it should") as caught:
        choose(bundle, batches=[1], device="cpu", seconds=0.0)
    assert "\n    onnxruntime float32: it fails verification: max rel " in str(caught.value)
    assert "\n    inductor: compiling" in str(caught.value)
    assert read_choice(bundle, machine("cpu"), "cpu") is None


@pytest.mark.parametrize("batches", [[], [4, 0]])
def test_batches_that_cannot_be(bundle, batches):
    with pytest.raises(ConfigError, match="A batch size cannot be this"):
        choose(bundle, batches=batches, device="cpu")


def lower_graph(bundle, folder, precision):
    """The same graph, of which the manifest says that it computes in another precision by itself."""
    manifest = replace(bundle.manifest, architecture=None, precision=precision)
    return write_bundle(folder, manifest, model=bundle.model.read_bytes(), golden=bundle.golden(), weights=None)


@pytest.mark.parametrize("own", ["float16", "int8"])
def test_a_graph_that_is_lower_by_itself_runs_in_that(bundle, tmp_path, monkeypatch, own):
    monkeypatch.setitem(ENGINES, "openvino", replace(ENGINES["openvino"], library="openvino_that_is_not_here"))
    lower = lower_graph(bundle, tmp_path / "b.reid", own)
    chosen = choose(lower, batches=[1], device="cpu", seconds=0.0)
    assert (chosen.winners, chosen.choice.precision) == ((Way("onnxruntime", own),), own)
    asked = choose(lower, precision="float32", batches=[1], device="cpu", seconds=0.0)
    assert (asked.winners, asked.choice.precision) == ((Way("onnxruntime", own),), "float32")
    assert reasons(asked)["onnxruntime float32"] == "onnxruntime does not run this bundle in float32 here"


# On a card that is made up

NETWORK, PARSER = Way("tensorrt", "float16", "network"), Way("tensorrt", "float16", "parser")
EAGER, COMPILED = Way("pytorch", "float16"), Way("inductor", "float16")


def test_each_batch_has_its_engine_and_the_choice_dispatches(bundle, card):
    card.engines[NETWORK] = {"milliseconds": lambda n: 0.5 if n == 1 else 0.1 * n}
    card.engines[COMPILED] = {"milliseconds": lambda n: 0.6 if n == 1 else 0.08 * n}
    card.engines[EAGER] = {"milliseconds": 20.0}
    chosen = choose(bundle, batches=[1, 2, 4], device="cuda", seconds=0.1)
    assert chosen.winners == (NETWORK, COMPILED, COMPILED)
    assert chosen.choice.precision == "float16"
    assert chosen.choice.timed == ((1, 0.5), (2, 0.16), (4, 0.32))
    assert chosen.choice.picks == (
        Pick(1, "tensorrt", "float16", "network", NETWORK.in_words()),
        Pick(None, "inductor", "float16", None, COMPILED.in_words()),
    )
    embedder = reidkit.load(bundle, "auto", device="cuda")
    golden = bundle.golden()
    for count, milliseconds in ((1, 0.5), (2, 0.16), (3, 0.24), (8, 0.64)):
        before = card.clock.now
        np.testing.assert_array_equal(embedder.embed(golden.crops[:count]), golden.embeddings[:count])
        assert 1e3 * (card.clock.now - before) == pytest.approx(milliseconds)


def test_what_is_built_and_with_which_batches(bundle, card):
    card.engines[PARSER] = {}
    chosen = choose(bundle, batches=[64, 1], device="cuda", seconds=0.0)
    assert chosen.winners == (PARSER, PARSER)
    assert card.built == [
        ("tensorrt", "float16", "network", (1, 64), "cuda"),
        ("tensorrt", "float16", "parser", (1, 64), "cuda"),  # one of them passes: float32 is not built
    ]
    left_out = reasons(chosen)
    assert left_out["tensorrt float16 by network"] == "tensorrt float16 by network is not here"
    assert left_out["tensorrt-rtx"] == "tensorrt_rtx is not installed: pip install 'reidkit[tensorrt-rtx]'"
    assert {"onnxruntime float16", "onnxruntime float32"} <= set(left_out)


def test_what_passes_by_network_is_not_built_by_parser(bundle, card):
    """Engines of the two are as fast, and each takes minutes."""
    card.engines[NETWORK] = card.engines[PARSER] = {}
    chosen = choose(bundle, batches=[1], device="cuda", seconds=0.0)
    assert chosen.winners == (NETWORK,)
    assert [(precision, via) for _, precision, via, *_ in card.built] == [("float16", "network")]
    assert not any("by parser" in trial.way.in_words() for trial in chosen.trials)


def test_float32_where_nothing_passes_in_what_was_asked_for(bundle, card):
    card.engines[NETWORK] = card.engines[PARSER] = {"error": 0.1}
    card.engines[Way("tensorrt", "float32", "network")] = {"milliseconds": 2.0}
    card.engines[EAGER] = {"milliseconds": 3.0}
    chosen = choose(bundle, batches=[1], device="cuda", seconds=0.0)
    assert chosen.winners == (Way("tensorrt", "float32", "network"),)
    assert [(precision, via) for _, precision, via, *_ in card.built] == [
        ("float16", "network"),
        ("float16", "parser"),
        ("float32", "network"),
    ]
    assert reasons(chosen)["tensorrt float16 by parser"].startswith("it fails verification: max rel 1.0e-01, ")
    assert chosen.choice.precision == "float16"


def test_on_a_card_a_graph_in_bfloat16_is_not_tried_in_float16(bundle, card, tmp_path):
    card.engines[Way("tensorrt", "bfloat16", "parser")] = {}
    chosen = choose(lower_graph(bundle, tmp_path / "b.reid", "bfloat16"), batches=[1], device="cuda", seconds=0.0)
    assert chosen.winners == (Way("tensorrt", "bfloat16", "parser"),)
    assert {precision for _, precision, *_ in card.built} == {"bfloat16"}


def test_one_that_cannot_be_built_is_listed(bundle, card, monkeypatch):
    def build(opened, name, *, precision, via, batches, device):
        if via == "network":
            raise EngineError("There is not enough memory to build the engine", got="no byte left")
        raise ModelError("It cannot be parsed")

    monkeypatch.setattr(module, "build_engine", build)
    card.engines[EAGER] = {}
    left_out = reasons(choose(bundle, batches=[1], device="cuda", seconds=0.0))
    assert left_out["tensorrt float16 by network"] == "There is not enough memory to build the engine (no byte left)"
    assert left_out["tensorrt float32 by parser"] == "It cannot be parsed"


def test_one_that_fails_at_a_batch_is_listed(bundle, card):
    card.engines[COMPILED] = {"milliseconds": 0.1, "most": 16}
    card.engines[EAGER] = {"milliseconds": 9.0}
    chosen = choose(bundle, batches=[1, 64], device="cuda", seconds=0.0)
    assert chosen.winners == (EAGER, EAGER)
    assert reasons(chosen)["inductor float16"] == "batch 64: MemoryError: so many crops"


def test_tensorrt_rtx_is_not_built_for_a_card_that_it_does_not_know(bundle, card, monkeypatch):
    cuda = pytest.importorskip("reidkit.runtime.cuda")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: True)
    h200 = SimpleNamespace(name="NVIDIA H200", compute_capability="9.0")
    monkeypatch.setattr(cuda, "card", lambda device="cuda": h200)
    card.engines[EAGER] = {}
    left_out = reasons(choose(bundle, batches=[1], device="cuda", seconds=0.0))
    told = "tensorrt-rtx does not run on NVIDIA H200 (compute capability 9.0)"
    assert left_out["tensorrt-rtx float16 by network"] == told
    assert {name for name, *_ in card.built} == {"tensorrt"}


def test_the_candidates_take_turns(bundle, card, monkeypatch):
    order: list[str] = []
    embed = Fake.embed
    monkeypatch.setattr(Fake, "embed", lambda self, crops: order.append(self.spec.runtime) or embed(self, crops))
    card.engines[EAGER] = card.engines[COMPILED] = {"milliseconds": 1.0}
    choose(bundle, batches=[1], device="cuda", seconds=0.05)
    turns = "".join(name[0] for name, _ in groupby(order))
    # Each is verified alone; then five rounds, the second and the fourth begun by the other one.
    assert turns == "pipipipi"
    assert order.count("pytorch") == order.count("inductor")


# The winners


@pytest.mark.parametrize(
    ("timed", "winners"),
    [
        ({"a": [1.0, 9.0], "b": [2.0, 3.0]}, "ab"),
        ({"a": [1.0, 3.05], "b": [2.0, 3.0]}, "aa"),  # within 2 % at every batch
        ({"a": [1.0, 3.07], "b": [2.0, 3.0]}, "ab"),
        ({"a": [1.01, 1.02], "b": [1.0, 1.0]}, "bb"),  # of two that are near, the nearer
        ({"a": [1.0, 3.0, 1.0], "b": [2.0, 1.0, 2.0]}, "aba"),
        ({"a": [5.0]}, "a"),
    ],
)
def test_who_wins(timed, winners):
    ways = {"a": Way("pytorch"), "b": Way("openvino")}
    found = winners_of({ways[name]: times for name, times in timed.items()})
    assert found == tuple(ways[name] for name in winners)
