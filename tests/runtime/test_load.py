import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from conditions import as_installed
from played_processor import PlayedProcessor
from reidkit import runtime
from reidkit.bundle import INT8_MODELS, file_sha256, replace_files
from reidkit.errors import BundleError, ConfigError, RuntimeMissing
from reidkit.runtime import ENGINES, RUNTIMES, Engine, RuntimeName, installed, load
from reidkit.runtime.engine_facts import graph_digest
from reidkit.runtime.openvino import OpenVinoEmbedder
from reidkit.runtime.openvino_core import CORE
from reidkit.types import Embedder
from small_bundle import write

LIBRARIES: dict[RuntimeName, str] = {"onnxruntime": "onnxruntime", "openvino": "openvino", "pytorch": "torch"}
CROPS = np.random.default_rng(3).integers(0, 256, (5, 4, 2, 3), dtype=np.uint8)
GRAPH_ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"no {name} here"))
    for name in ("onnxruntime", "openvino")
]


def hide(monkeypatch: pytest.MonkeyPatch, name: RuntimeName) -> None:
    """Makes an engine's library as good as not installed."""
    monkeypatch.delitem(sys.modules, ENGINES[name].module, raising=False)
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)


@pytest.mark.parametrize("name", GRAPH_ENGINES)
@pytest.mark.parametrize("batch", [None, 2])
def test_an_engine_gives_the_mean_color(make_bundle, name, batch):
    embedder = load(make_bundle(batch=batch), name, threads=1)
    assert isinstance(embedder, Embedder)
    assert (embedder.spec.runtime, embedder.spec.device, embedder.spec.precision) == (name, "cpu", "float32")
    assert (embedder.spec.dim, embedder.spec.batch, embedder.spec.normalized) == (3, batch, False)
    first = embedder.embed(CROPS)
    kept = first.copy()
    np.testing.assert_allclose(first, CROPS.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(embedder.embed(CROPS[::-1])[::-1], CROPS.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(first, kept)  # the second call did not write over the first one's answer
    assert embedder.embed(CROPS[:0]).shape == (0, 3)


def test_onnxruntime_is_what_load_takes_by_itself(make_bundle):
    assert load(str(make_bundle().path)).spec.runtime == "onnxruntime"


def test_an_unknown_runtime_suggests_the_nearest(make_bundle):
    bundle = make_bundle()
    with as_installed(), pytest.raises(ConfigError) as caught:
        load(bundle, "onnxrutime")  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == (
        f"Unknown runtime 'onnxrutime'\n  expected: one of {', '.join(RUNTIMES)}\n  to do: did you mean 'onnxruntime'?"
    )


def test_what_can_be_loaded_is_an_engine_or_what_was_chosen():
    assert (*ENGINES, "auto") == RUNTIMES
    assert "auto" not in installed()


def test_a_path_that_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"none\.reid does not exist"):
        load(tmp_path / "none.reid")


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino"), ("pytorch", "train")])
def test_a_missing_library_names_the_command(make_bundle, monkeypatch, name, extra):
    bundle = make_bundle(weights=b"weights")
    hide(monkeypatch, name)
    with pytest.raises(RuntimeMissing) as caught:
        load(bundle, name)
    assert str(caught.value) == (f"{LIBRARIES[name]} is not installed\n  to do: pip install 'reidkit[{extra}]'")


@pytest.mark.parametrize("missing", ["our_own_typo", "onnxruntime.half_installed"])
def test_a_module_missing_inside_is_not_mistaken_for_the_library(make_bundle, monkeypatch, tmp_path, missing):
    (tmp_path / "engine_with_a_typo.py").write_text(f"import onnxruntime\nimport {missing}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(runtime.ENGINES, "onnxruntime", Engine("engine_with_a_typo", "onnxruntime", "onnx"))
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{missing}'"):
        load(make_bundle(), "onnxruntime")
    assert "engine_with_a_typo" not in sys.modules


def test_pytorch_cannot_build_a_foreign_graph_and_says_so_without_torch(make_bundle, monkeypatch):
    hide(monkeypatch, "pytorch")
    with pytest.raises(RuntimeMissing) as caught:
        load(make_bundle(), "pytorch")
    assert str(caught.value).startswith(
        "mean.reid is a foreign graph without named weights, which pytorch cannot build\n"
        "  expected: one of onnxruntime, openvino"
    )


class TestInstalled:
    @pytest.mark.parametrize("name", LIBRARIES)
    def test_a_library_that_is_hidden_is_not_installed(self, monkeypatch, name):
        before = installed()
        hide(monkeypatch, name)
        assert installed() == [other for other in before if other != name]

    def test_they_are_those_whose_library_can_be_found(self):
        here = [name for name, library in LIBRARIES.items() if importlib.util.find_spec(library) is not None]
        assert [name for name in installed() if name in LIBRARIES] == here

    def test_for_a_foreign_graph_without_those_that_need_weights(self, make_bundle):
        assert installed(make_bundle()) == [name for name in installed() if name in ("onnxruntime", "openvino")]

    def test_for_a_bundle_with_weights_all_that_need_not_be_built_first(self, make_bundle):
        ready = [name for name in installed() if not ENGINES[name].built]
        assert installed(make_bundle(weights=b"weights")) == ready


@pytest.mark.parametrize("name", GRAPH_ENGINES)
def test_a_graph_that_is_none_names_engine_and_file(tmp_path, name):
    bundle = write(tmp_path / "m.reid")  # its hashes are right, its graph is no graph
    with pytest.raises(
        BundleError,
        match=rf"^{name} cannot open .*model\.onnx\n  got: .+\n  to do: update {name}, or choose another runtime",
    ):
        load(bundle, name)


@pytest.mark.parametrize(
    ("library", "command"),
    [
        (True, "pip install cuda-bindings"),
        (False, "pip install 'reidkit[tensorrt]' --extra-index-url https://pypi.nvidia.com"),
    ],
)
def test_tensorrt_without_the_bindings_of_cuda(make_bundle, monkeypatch, library, command):
    def missing(name):
        raise ModuleNotFoundError("No module named 'cuda.bindings'", name="cuda.bindings")

    bundle = make_bundle()
    monkeypatch.setattr(runtime.importlib, "import_module", missing)
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: object() if library else None)
    with pytest.raises(RuntimeMissing) as caught:
        load(bundle, "tensorrt")
    assert str(caught.value) == f"cuda-bindings is not installed\n  to do: {command}"


# -- precision ---------------------------------------------------------------------------------------------------------


def other_graph(factor: float) -> bytes:
    """The mean colour, multiplied: nobody takes it for the float graph."""
    nodes = [
        helper.make_node("Cast", ["crops"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["mean", "factor"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "other",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["n", 4, 2, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.float32(factor), "factor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def quantized(make_bundle):
    return replace_files(make_bundle(), {INT8_MODELS["cpu"]: other_graph(16)})


@pytest.mark.parametrize("name", GRAPH_ENGINES)
def test_int8_runs_the_quantised_graph_and_says_which(quantized, name):
    embedder = load(quantized, name, precision="int8")
    np.testing.assert_allclose(embedder.embed(CROPS), 16 * CROPS.mean(axis=(1, 2)), rtol=1e-5)
    digest = file_sha256(quantized.path / "model.int8-cpu.onnx")
    assert (embedder.spec.precision, embedder.spec.build) == ("int8", digest)
    plain = load(quantized, name)
    assert (plain.spec.precision, plain.spec.build) == ("float32", None)
    np.testing.assert_allclose(plain.embed(CROPS), CROPS.mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("name", GRAPH_ENGINES)
def test_int8_of_a_bundle_that_was_not_quantised(make_bundle, name):
    bundle = make_bundle()
    with pytest.raises(RuntimeMissing) as caught:
        load(bundle, name, precision="int8")
    assert str(caught.value) == (
        f"mean.reid was not quantised, so {name} cannot run it in int8\n"
        "  expected: a bundle with model.int8-cpu.onnx\n"
        f"  to do: reid quantize {bundle.path} --calibration DIR"
    )


def test_int8_on_a_card_is_tensorrts(quantized):
    text = r"ONNX Runtime does not run the quantised graph on a card\n  got: int8 on cuda:1[\s\S]*--runtime tensorrt"
    with pytest.raises(RuntimeMissing, match=text):
        load(quantized, "onnxruntime", device="cuda:1", precision="int8")


def test_a_new_calibration_is_another_graph_for_engines_in_int8_alone(make_bundle):
    bundle = make_bundle()
    before = replace_files(bundle, {INT8_MODELS["tensorrt"]: b"one"})
    after = replace_files(before, {INT8_MODELS["tensorrt"]: b"two"})
    digests = [[graph_digest(b, "parser", p) for b in (bundle, before, after)] for p in ("float16", "int8")]
    assert len(set(digests[0])) == 1
    assert len(set(digests[1])) == 3


def test_openvino_computes_in_16_bits_where_the_device_offers_it(make_bundle, monkeypatch):
    processor = PlayedProcessor("FP32", "FP16")
    monkeypatch.setattr("reidkit.runtime.openvino.CORE", processor)
    spec = load(make_bundle(), "openvino", precision="float16").spec
    assert (spec.precision, processor.asked["INFERENCE_PRECISION_HINT"]) == ("float16", "f16")


@pytest.mark.parametrize(
    ("precision", "offered", "refused", "known"),
    [
        ("bfloat16", ("FP32", "FP16"), "bfloat16", "float32, float16"),
        (None, ("FP16", "INT8"), "float32", "float16, int8"),
        ("int8", ("FP32", "BIN"), "int8", "float32"),
    ],
)
def test_openvino_computes_in_nothing_else_where_it_does_not(
    quantized, monkeypatch, precision, offered, refused, known
):
    monkeypatch.setattr("reidkit.runtime.openvino.CORE", PlayedProcessor(*offered))
    with pytest.raises(RuntimeMissing) as caught:
        load(quantized, "openvino", precision=precision)
    assert str(caught.value) == (
        f"openvino does not run this bundle in {refused} here\n  got: CPU does not compute in it\n"
        f"  expected: one of {known}\n  to do: choose another precision or device"
    )


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_onnxruntime_computes_in_the_graphs_own_precision(make_bundle, precision):
    text = rf"onnxruntime does not run this bundle in {precision} here\n  expected: one of float32\n"
    with pytest.raises(RuntimeMissing, match=text):
        load(make_bundle(), "onnxruntime", precision=precision)


# -- options of one engine ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "able"),
    [
        ("onnxruntime", {"hint": "latency"}, "openvino"),
        ("openvino", {"optimization": "all"}, "onnxruntime"),
        ("auto", {"hint": "throughput"}, "openvino"),
        ("tensorrt", {"optimization": "basic"}, "onnxruntime"),
    ],
)
def test_an_option_that_an_engine_does_not_know_is_refused(make_bundle, name, options, able):
    ((option, value),) = options.items()
    with pytest.raises(ConfigError) as caught:
        load(make_bundle(), name, **options)
    text = f"{name} knows no {option}\n  got: {option} {value}\n  expected: runtime {able}\n  to do: leave it out"
    assert str(caught.value) == text


def test_an_unknown_hint_suggests_the_nearest(make_bundle):
    with as_installed(), pytest.raises(ConfigError, match=r"Unknown hint 'latancy'[\s\S]*did you mean 'latency'"):
        load(make_bundle(), "openvino", hint="latancy")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("level", ["none", "basic", "extended", "all", None])
def test_onnxruntime_rewrites_a_graph_as_far_as_it_may(make_bundle, monkeypatch, level):
    seen = []
    session = onnxruntime.InferenceSession

    def opened(path, options, **others):
        seen.append((options.graph_optimization_level.name, options.intra_op_num_threads))
        return session(path, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    with as_installed():
        embedder = load(make_bundle(), "onnxruntime", optimization=level, threads=1)
    word = (level or "all").upper()
    assert seen == [("ORT_DISABLE_ALL" if level == "none" else f"ORT_ENABLE_{word}", 1)]
    np.testing.assert_allclose(embedder.embed(CROPS), CROPS.mean(axis=(1, 2)), rtol=1e-5)


class Compiled:
    """A compiled model that wants three requests, whatever the machine, and counts what each is given."""

    def __init__(self, compiled):
        self.compiled, self.sizes = compiled, []

    def get_property(self, name):
        assert name == "OPTIMAL_NUMBER_OF_INFER_REQUESTS"
        return 3

    def create_infer_request(self):
        request, sizes = self.compiled.create_infer_request(), self.sizes

        class Request:
            def infer(self, inputs):
                sizes.append(len(inputs[0]))
                return request.infer(inputs)

        return Request()


@pytest.mark.parametrize(
    ("hint", "batch", "pieces"),
    [
        ("latency", None, {1: [1], 2: [2], 7: [7]}),
        ("latency", 2, {1: [2], 7: [2, 2, 2, 2]}),
        ("throughput", None, {1: [1], 2: [1, 1], 7: [2, 2, 3], 9: [3, 3, 3]}),
        ("throughput", 2, {1: [2], 3: [2, 2], 7: [2, 2, 2, 2], 12: [2] * 6}),
    ],
)
def test_for_throughput_a_call_is_cut_into_pieces(make_bundle, hint, batch, pieces):
    bundle = make_bundle(batch=batch)
    spec = load(bundle, "openvino").spec
    compiled = Compiled(CORE.compile_model(str(bundle.model), "CPU"))
    with as_installed():
        embedder = OpenVinoEmbedder(compiled, spec, hint)
        for n, sizes in pieces.items():
            crops = np.random.default_rng(n).integers(0, 256, (n, 4, 2, 3), dtype=np.uint8)
            np.testing.assert_allclose(embedder.embed(crops), crops.mean(axis=(1, 2)), rtol=1e-5)
            assert sorted(compiled.sizes) == sizes
            compiled.sizes.clear()
        assert embedder.embed(CROPS[:0]).shape == (0, 3)


def test_pieces_are_whole_batches_and_none_is_empty(make_bundle, monkeypatch):
    bundle = make_bundle(batch=4)
    spec = load(bundle, "openvino").spec
    run, pieces = OpenVinoEmbedder._run, []
    monkeypatch.setattr(OpenVinoEmbedder, "_run", lambda self, crops: pieces.append(len(crops)) or run(self, crops))
    with as_installed():
        embedder = OpenVinoEmbedder(Compiled(CORE.compile_model(str(bundle.model), "CPU")), spec, "throughput")
        for count, expected in ((5, [1, 4]), (9, [1, 4, 4]), (14, [4, 4, 6])):
            crops = np.random.default_rng(count).integers(0, 256, (count, 4, 2, 3), dtype=np.uint8)
            np.testing.assert_allclose(embedder.embed(crops), crops.mean(axis=(1, 2)), rtol=1e-5)
            assert sorted(pieces) == expected
            pieces.clear()


def test_calls_of_several_threads_share_the_requests(make_bundle):
    embedder = load(make_bundle(), "openvino", hint="throughput")
    every = np.random.default_rng(1).integers(0, 256, (12, 30, 4, 2, 3), dtype=np.uint8)
    with ThreadPoolExecutor(6) as pool:
        for crops, got in zip(every, pool.map(embedder.embed, every), strict=True):
            np.testing.assert_allclose(got, crops.mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_openvino_is_told_the_hint_and_the_threads(make_bundle, monkeypatch, hint):
    processor = PlayedProcessor("FP32")
    monkeypatch.setattr("reidkit.runtime.openvino.CORE", processor)
    load(make_bundle(), "openvino", hint=hint, threads=1)
    assert processor.asked == {
        "PERFORMANCE_HINT": hint.upper(),
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 1,
    }


def test_a_signal_after_two_openvino_engines_is_only_a_signal(make_bundle):
    """Cores of their own would leave a stack for signals behind that is there no more; see `runtime.openvino_core`."""
    script = """if True:
        import signal, sys
        import reidkit
        engines = [reidkit.load(sys.argv[1], "openvino") for _ in range(2)]
        while engines:
            engines.pop(0)
        signal.signal(signal.SIGINT, lambda *_: print("a signal"))
        signal.raise_signal(signal.SIGINT)
    """
    program = [sys.executable, "-c", script, str(make_bundle().path)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "a signal\n"), ended.stderr


def test_a_graph_of_its_own_precision_is_run_in_that_alone(make_bundle):
    bundle = make_bundle()
    coarse = replace(bundle, manifest=replace(bundle.manifest, precision="float16"))
    assert load(coarse, "openvino").spec.precision == "float16"
    with pytest.raises(
        RuntimeMissing, match=r"openvino does not run this bundle in float32 here\n  expected: one of float16"
    ):
        load(coarse, "openvino", precision="float32")
