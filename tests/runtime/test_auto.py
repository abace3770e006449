"""What was chosen is opened as it was chosen, or not at all."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from conditions import as_installed
from reidkit.errors import ConfigError, EngineError, InputError, RuntimeMissing
from reidkit.evaluate.embedding_cache import open_cache
from reidkit.runtime import auto, load
from reidkit.runtime.auto import DispatchingEmbedder, TimedDispatchingEmbedder
from reidkit.runtime.engine_facts import Choice, Pick, graph_digest
from reidkit.runtime.engine_store import record_choice
from reidkit.runtime.machine import machine
from reidkit.types import EmbedderSpec, InputSpec, Timed

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("openvino") is None,
    reason="no two engines here",
)
SPEC = EmbedderSpec(InputSpec(4, 2), 1, False, None, "tensorrt", "float16", "cuda", "ab" * 32)


class Fake:
    """Answers with the number of crops it was given, plus its own number."""

    def __init__(self, number, **changes):
        self.spec = replace(SPEC, **changes)
        self.device_memory = number
        self._number = number

    def embed(self, crops):
        return np.full((len(crops), 1), self._number, np.float32)

    def device_seconds(self, batch, runs):
        return [float(self._number)] * runs


def crops_of(count):
    return np.zeros((count, 4, 2, 3), np.uint8)


def choose(bundle, *picks, **changes):
    choice = Choice(machine("cpu"), "cpu", graph_digest(bundle, "parser"), "float32", picks)
    record_choice(bundle, replace(choice, **changes))


def test_the_number_of_crops_decides():
    small, large = Fake(10), Fake(20, runtime="inductor")
    embedder = DispatchingEmbedder([(1, small), (16, large), (None, small)])
    for count, number in ((0, 10), (1, 10), (2, 20), (16, 20), (17, 10), (200, 10)):
        np.testing.assert_array_equal(embedder.embed(crops_of(count)), np.full((count, 1), number))
    with pytest.raises(InputError, match="The crops do not fit the model"), as_installed():
        embedder.embed(np.zeros((2, 4, 2, 3), np.float32))


def test_its_spec_tells_all_of_them():
    small, large = Fake(1), Fake(2, runtime="inductor", precision="float32", build=None)
    spec = DispatchingEmbedder([(1, small), (None, large)]).spec
    assert (spec.runtime, spec.precision, spec.device, spec.dim) == ("tensorrt+inductor", "float16", "cuda", 1)
    others = [
        [(2, small), (None, large)],
        [(1, Fake(1, build="cd" * 32)), (None, large)],
        [(1, small), (None, Fake(2, runtime="inductor", precision="float16", build=None))],
    ]
    builds = {spec.build, *(DispatchingEmbedder(ranges).spec.build for ranges in others)}
    assert len(builds) == 4


def test_it_keeps_time_where_all_of_them_do():
    small, large = Fake(1), Fake(2)
    embedder = TimedDispatchingEmbedder([(1, small), (4, large), (None, small)])
    assert isinstance(embedder, Timed)
    assert embedder.device_memory == 3
    assert [embedder.device_seconds(batch, 2) for batch in (1, 4, 5)] == [[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]]
    assert embedder.embed(crops_of(4))[0, 0] == 2


def test_one_that_was_chosen_alone_is_itself(make_bundle):
    bundle = make_bundle()
    choose(bundle, Pick(None, "openvino", "float32"))
    embedder = load(bundle.path, "auto", device="cpu", threads=1)
    assert type(embedder).__name__ == "OpenVinoEmbedder"
    assert (embedder.spec.runtime, embedder.spec.build) == ("openvino", None)


def test_two_engines_of_which_one_has_two_ranges(make_bundle, monkeypatch, tmp_path):
    bundle = make_bundle()
    opened: list[str] = []
    real = auto.load
    monkeypatch.setattr(auto, "load", lambda bundle, name, **how: opened.append(name) or real(bundle, name, **how))
    onnx, vino = Pick(1, "onnxruntime", "float32"), Pick(2, "openvino", "float32")
    choose(bundle, onnx, vino, replace(onnx, most=None))
    embedder = load(bundle, "auto", device="cpu", precision="float32")
    assert opened == ["onnxruntime", "openvino"]
    assert embedder.spec.runtime == "onnxruntime+openvino"
    assert not isinstance(embedder, Timed)
    golden = bundle.golden()
    for count in (1, 2, 3):
        np.testing.assert_allclose(embedder.embed(golden.crops[:count]), golden.embeddings[:count], rtol=1e-5)
    open_cache(tmp_path, bundle, embedder.spec, "none")
    with pytest.raises(ConfigError, match="Unknown runtime 'openvin'"):
        open_cache(tmp_path, bundle, replace(embedder.spec, runtime="onnxruntime+openvin"), "none")


def test_nothing_was_chosen(make_bundle):
    bundle = make_bundle()
    with pytest.raises(RuntimeMissing) as caught:
        load(bundle, "auto", device="cpu")
    assert str(caught.value) == (
        "It was not yet found out which engine runs mean.reid fastest here\n"
        f"  got: no choice for this graph on cpu of {machine('cpu')}\n"
        f"  to do: reid build {bundle.path} --runtime auto --device cpu"
    )


@pytest.mark.parametrize("change", [{"graph": "0" * 64}, {"device": "cuda"}, {"machine": "another"}])
def test_what_was_chosen_for_something_else(make_bundle, change):
    bundle = make_bundle()
    choose(bundle, Pick(None, "openvino", "float32"), **change)
    with pytest.raises(RuntimeMissing, match="It was not yet found out"):
        load(bundle, "auto", device="cpu")


@pytest.mark.parametrize(
    ("pick", "reason"),
    [
        (Pick(None, "openvino", "float32", None, "ab" * 32), "it was built or quantised again since"),
        (Pick(None, "auto", "float32"), "no engine is called auto"),
        (Pick(None, "pytorch", "float32"), "is a foreign graph without named weights"),
        (Pick(None, "openvino", "float16"), "openvino does not run this bundle in float16 here"),
    ],
)
@pytest.mark.usefixtures("plain_processor")
def test_what_cannot_be_opened_any_more(make_bundle, pick, reason):
    bundle = make_bundle()
    choose(bundle, pick)
    with pytest.raises(RuntimeMissing, match=r"What was fastest for mean\.reid cannot be opened any more") as caught:
        load(bundle, "auto", device="cpu")
    assert reason in str(caught.value.got)
    assert caught.value.fix == f"reid build {bundle.path} --runtime auto --device cpu --precision float32"


def test_a_choice_in_int8_is_made_again_in_int8(make_bundle):
    bundle = make_bundle()
    command = f"reid build {bundle.path} --runtime auto --device cpu --precision int8"
    with pytest.raises(RuntimeMissing, match="It was not yet found out") as caught:
        load(bundle, "auto", device="cpu", precision="int8")
    assert caught.value.fix == command
    choose(bundle, Pick(None, "openvino", "int8", None, "ab" * 32), precision="int8")
    with pytest.raises(RuntimeMissing, match="cannot be opened any more: openvino in int8") as caught:
        load(bundle, "auto", device="cpu")  # its quantised graph is gone
    assert caught.value.fix == command


def test_a_card_without_memory_is_no_reason_to_choose_again(make_bundle, monkeypatch):
    bundle = make_bundle()
    choose(bundle, Pick(None, "openvino", "float32"))

    def full(*arguments, **options):
        raise EngineError("no memory left")

    monkeypatch.setattr(auto, "load", full)
    with pytest.raises(EngineError, match="no memory left"):
        load(bundle, "auto", device="cpu")


def test_what_was_chosen_is_not_asked_for_otherwise(make_bundle):
    bundle = make_bundle()
    choose(bundle, Pick(None, "openvino", "float32"))
    with pytest.raises(RuntimeMissing, match="auto does not run this bundle in float16 here"):
        load(bundle, "auto", device="cpu", precision="float16")
    with pytest.raises(ConfigError, match="The runtime auto has chosen how the network came to the builder"):
        load(bundle, "auto", device="cpu", via="parser")
