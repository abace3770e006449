"""Engines built here with TensorRT-RTX, and TensorRT's other versions played; bad input, memory, several builders."""

import hashlib
import json
import logging
import multiprocessing
import shutil
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save

from conditions import unprivileged
from fake_cuda import FakeCuda
from fake_tensorrt import Builder, fake_tensorrt
from known_networks import draw_model
from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec, TimmSpec
from reidkit.bundle import Golden, open_bundle, write_bundle
from reidkit.deploy import build
from reidkit.deploy.build import build_engine, profiles_of
from reidkit.deploy.network.onnx_layers import onnx_network
from reidkit.deploy.typed_graph import value_types
from reidkit.errors import ConfigError, EngineError, ModelError, OutputError, RuntimeMissing
from reidkit.manifest import Embedding, Manifest
from reidkit.runtime import cuda
from reidkit.runtime.engine_facts import WRITER
from reidkit.runtime.engine_store import Machine, Profile, graph_digest, read_engine, read_store
from reidkit.runtime.flavour import open_flavour
from reidkit.types import InputSpec

CARD = Machine("tensorrt", "0", "NVIDIA Fake", "9.0", "13.0")
RTX = {"runtime": "tensorrt-rtx", "batches": [1]}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A ResNet whose graph the ONNX writer has made, which takes no time."""
    input_, spec = InputSpec(32, 16), ModelSpec(ResNetSpec(), HeadSpec(embedding_dim=8))
    tensors = {name: tensor.numpy() for name, tensor in draw_model(spec).state_dict().items()}
    manifest = Manifest("tiny", "person", input_, Embedding(8), architecture=spec)
    crops = np.zeros((2, 32, 16, 3), np.uint8)
    path = tmp_path_factory.mktemp("bundles") / "tiny.reid"
    golden = Golden(crops, np.zeros((2, 8), np.float32))
    write_bundle(path, manifest, model=onnx_network(spec, input_, tensors), golden=golden, weights=save(tensors))
    return path


@pytest.fixture
def bundle(small, tmp_path):
    shutil.copytree(small, tmp_path / "tiny.reid")
    return open_bundle(tmp_path / "tiny.reid")


@pytest.fixture
def foreign(tmp_path):
    return write_foreign(tmp_path / "foreign.reid")


def write_foreign(path, *, batch=None, nodes=None):
    """A graph whose embedding is the mean colour."""
    rows = "n" if batch is None else batch
    graph = helper.make_graph(
        nodes
        or [
            helper.make_node("Cast", ["crops"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels"], ["embeddings"], axes=[1, 2], keepdims=0),
        ],
        "mean_color",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, [rows, 4, 2, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [rows, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    crops = np.zeros((batch or 2, 4, 2, 3), np.uint8)
    golden = Golden(crops, np.zeros((len(crops), 3), np.float32))
    manifest = Manifest("foreign", "person", InputSpec(4, 2), Embedding(3), batch=batch)
    return write_bundle(path, manifest, model=model.SerializeToString(), golden=golden)


@pytest.fixture
def play(monkeypatch):
    """Plays a version of TensorRT, on a machine with a card."""

    def played(version):
        trt = fake_tensorrt(version)
        monkeypatch.setattr(cuda, "cudart", FakeCuda())
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setattr(build, "_machine", lambda flavour, device: replace(CARD, version=flavour.version))
        return trt

    return played


def stored(bundle):
    folder = bundle.path / "engines"
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock") if folder.exists() else []


# With TensorRT-RTX itself


@pytest.mark.parametrize(
    ("precision", "via"),
    [("float32", "parser"), ("tf32", "network"), ("float16", "network"), ("float16", "parser"), ("bfloat16", "parser")],
)
def test_an_engine_is_built_both_ways_and_in_every_precision(bundle, via, precision):
    pytest.importorskip("tensorrt_rtx")
    facts = build_engine(bundle, "tensorrt-rtx", precision=precision, via=via, batches=[2, 5])
    assert (facts.precision, facts.via, facts.profiles) == (precision, via, (Profile(1, 2, 2), Profile(3, 5, 5)))
    assert facts.graph == graph_digest(bundle, via)
    assert (facts.gpu, facts.compute_capability, facts.options) == (None, None, ())
    assert facts.created is not None
    assert facts.created.endswith("+00:00")
    data = read_engine(bundle, facts)
    weights = (bundle.path / "weights.safetensors").stat().st_size / (1 if precision in ("float32", "tf32") else 2)
    assert 0.8 * weights < len(data) < 1.6 * weights + (1 << 20)
    assert read_store(bundle) == [facts]


def test_the_exporters_graph_is_parsed(tiny_bundle, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    shutil.copytree(tiny_bundle, tmp_path / "tiny.reid")
    assert build_engine(tmp_path / "tiny.reid", **RTX, via="parser").size > 11_000_000


def test_the_known_way_is_taken_first_and_a_foreign_graph_is_parsed(bundle, foreign):
    pytest.importorskip("tensorrt_rtx")
    assert build_engine(bundle.path, **RTX).via == "network"
    facts = build_engine(foreign, **RTX)
    assert (facts.via, facts.precision) == ("parser", "float16")


def test_an_engine_that_stands_is_taken_and_another_wish_builds_anew(foreign, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    built, build_one = [], build._build
    monkeypatch.setattr(build, "_build", lambda *given: built.append(given) or build_one(*given))
    first = build_engine(foreign, **RTX)
    assert build_engine(foreign, **RTX) == first
    assert len(built) == 1
    build_engine(foreign, **RTX, rebuild=True)
    assert build_engine(foreign, **RTX, options=["refit"]).options == ("refit",)
    assert build_engine(foreign, **RTX, options=["refit"], workspace=1 << 20).workspace == 1 << 20
    assert build_engine(foreign, **RTX, effort=1).effort == 1
    assert build_engine(foreign, "tensorrt-rtx", batches=[2]).profiles == (Profile(1, 2, 2),)
    assert len(built) == 6
    assert len(stored(foreign)) == 2  # one of a kind stands in the store


def test_what_rtx_cannot_do_is_said(bundle):
    """Weights that can be changed later want a card while it builds, as soon as there are more than a few."""
    pytest.importorskip("tensorrt_rtx")
    for option in ("refit", "weight-stripped"):
        with pytest.raises(EngineError, match=rf"cannot build this engine\n(?s:.*)to do: leave --{option} out"):
            build_engine(bundle, **RTX, options=[option])
    with pytest.raises(RuntimeMissing, match="tensorrt-rtx builds no version-compatible engines: each runs on"):
        build_engine(bundle, **RTX, options=["version-compatible"])
    assert stored(bundle) == []


@pytest.mark.parametrize(("here", "least"), [("7.5", "7.5"), ("8.9", "8.0"), ("12.0", "8.0")])
def test_rtx_builds_for_turing_alone_or_for_all_that_came_after(foreign, monkeypatch, here, least):
    pytest.importorskip("tensorrt_rtx")
    machine = Machine("tensorrt-rtx", "0", "NVIDIA Fake", here, "13.0")
    monkeypatch.setattr(cuda, "cudart", FakeCuda())
    monkeypatch.setattr(build, "_machine", lambda flavour, device: replace(machine, version=flavour.version))
    configs, aim = [], build.Flavour.aim
    monkeypatch.setattr(build.Flavour, "aim", lambda *given: configs.append(given[1]) or aim(*given))
    assert build_engine(foreign, **RTX).compute_capability == least
    assert configs[0].num_compute_capabilities == (1 if least == "7.5" else 0)


def test_an_engine_whose_file_is_damaged_does_not_stand(foreign, caplog):
    pytest.importorskip("tensorrt_rtx")
    facts = build_engine(foreign, **RTX)
    file = foreign.path / "engines" / facts.file
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        again = build_engine(foreign, **RTX)
    assert "It is built again" in caplog.text
    read_engine(foreign, again)


def test_a_standing_engine_is_taken_from_a_bundle_that_is_not_ours(foreign):
    pytest.importorskip("tensorrt_rtx")
    facts = build_engine(foreign, **RTX)
    for path in (foreign.path / "engines", foreign.path):
        path.chmod(0o555)
    with unprivileged(foreign.path):
        assert build_engine(foreign, **RTX) == facts
        with pytest.raises(OutputError, match=r"Cannot write .*\n.*\n  to do: copy the bundle to a folder"):
            build_engine(foreign, **RTX, precision="float32")


def _build_at_once(path, ready, results):
    ready.wait()
    facts = build_engine(path, "tensorrt-rtx", batches=[1])
    results.put((facts.sha256, facts.created, facts.build_seconds))


def test_two_processes_build_one_engine(bundle):
    pytest.importorskip("tensorrt_rtx")
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_build_at_once, args=(bundle.path, ready, results)) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = results.get(timeout=120), results.get(timeout=120)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert first == second  # whoever waited found what the other had built
    assert [name.endswith(".json") for name in stored(bundle)].count(True) == 1


@pytest.mark.parametrize("version", ["rtx", "8.6.0", "10.9.0"])
def test_a_fixed_batch_gets_one_profile_of_it(tmp_path, play, version):
    foreign = write_foreign(tmp_path / "fixed.reid", batch=3)
    if version == "rtx":
        pytest.importorskip("tensorrt_rtx")
        facts = build_engine(foreign, "tensorrt-rtx", precision="float32", batches=[1, 8, 64])
    else:
        trt = play(version)
        facts = build_engine(foreign, precision="float32", batches=[1, 8, 64])
        assert [profile.shapes for profile in trt.builders[0].config.profiles] == [((3, 4, 2, 3),) * 3]
    assert facts.profiles == (Profile(3, 3, 3),)
    assert build_engine(foreign, facts.runtime, precision="float32", batches=[2]) == facts


# What the versions are told


@pytest.mark.parametrize(
    ("version", "precision", "network", "flags"),
    [
        ("8.6.0", "float32", "EXPLICIT_BATCH", set()),
        ("8.6.0", "tf32", "EXPLICIT_BATCH", {"TF32"}),
        ("8.6.0", "float16", "EXPLICIT_BATCH", {"FP16", "OBEY_PRECISION_CONSTRAINTS"}),
        ("10.9.0", "float32", "STRONGLY_TYPED", set()),
        ("10.9.0", "tf32", "STRONGLY_TYPED", {"TF32"}),
        ("10.9.0", "bfloat16", "STRONGLY_TYPED", set()),
        ("11.0.0", "float16", "STRONGLY_TYPED", set()),
    ],
)
@pytest.mark.parametrize("via", ["network", "parser"])
def test_every_version_is_told_in_its_own_words(bundle, play, version, precision, network, flags, via):
    trt = play(version)
    facts = build_engine(bundle, precision=precision, via=via, batches=[1, 8], workspace=1 << 30, effort=5)
    assert (facts.version, facts.gpu, facts.driver) == (version, "NVIDIA Fake", "13.0")
    (builder,) = trt.builders
    assert builder.network.flags == 1 << trt.NetworkDefinitionCreationFlag[network]
    assert builder.config.flags == flags
    assert builder.config.sources == ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
    assert builder.config.limits == {"workspace": 1 << 30}
    assert builder.config.preview == ({"sharing": True} if not version.startswith("11") else {})
    assert builder.config.builder_optimization_level == 5
    shapes = [tuple(shape[0] for shape in profile.shapes) for profile in builder.config.profiles]
    assert shapes == [(1, 1, 1), (2, 8, 8)]
    assert {profile.name for profile in builder.config.profiles} == {"crops"}
    if via == "parser":
        assert trt.parsers[0].flags == ["native"]


def test_untyped_a_parsed_network_has_the_types_of_its_graph(bundle, play):
    trt = play("8.6.0")
    build_engine(bundle, precision="float16", via="parser")
    told = {(layer.kind, layer.precision) for layer in trt.builders[0].network.layers}
    assert {kind for kind, precision in told if precision == "float16"} >= {"CONVOLUTION", "ELEMENTWISE"}
    assert ("ELEMENTWISE", "float32") in told
    assert ("CONVOLUTION", None) not in told
    # What the parser puts in between, under a name of its own, has the type of what comes of it.
    pairs = zip(trt.builders[0].network.layers, trt.builders[0].network.layers[1:], strict=False)
    helpers = [(one.precision, other.precision) for one, other in pairs if one.kind == "MATRIX_MULTIPLY"]
    assert set(helpers) == {("float16", "float16"), ("float32", "float32")}  # the latter the embedding layer
    assert {precision for kind, precision in told if kind in ("CAST", "SHUFFLE")} == {None}
    typed = play("10.9.0")
    build_engine(bundle, precision="float16", via="parser")
    assert {layer.precision for layer in typed.builders[0].network.layers} == {None}


@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("version", ["8.6.0", "10.9.0"])
def test_by_parser_ibn_is_one_normalisation_in_the_type_that_a_version_computes_well(
    bundle, play, version, precision, monkeypatch
):
    trt = play(version)
    flavour = open_flavour("tensorrt")
    network = flavour.network(trt.Builder(None))
    # As if the graph had come of `reid quantize`; its pairs make no difference here.
    monkeypatch.setattr("reidkit.bundle.Bundle.int8_model", lambda self, engine: self.model)
    build._parse(bundle, flavour, network, None, precision)
    graph = trt.parsers[0].model.graph
    operators = Counter(node.op_type for node in graph.node)
    assert (operators["InstanceNormalization"], operators["Split"], operators["Concat"]) == (6, 0, 0)
    types = value_types(trt.parsers[0].model)
    kinds = {types[name] for node in graph.node if node.op_type == "InstanceNormalization" for name in node.input}
    untyped = version == "8.6.0"
    assert kinds == {"float16" if untyped and precision == "float16" else "float32"}
    told = {
        (layer.precision, *layer.output_types.values()) for layer in network.layers if layer.kind == "NORMALIZATION"
    }
    assert told == ({("float16", "float16")} if untyped else {(None,)})


def test_what_is_written_has_its_number(bundle, play, monkeypatch):
    """Engines of before are to be built again, so `WRITER` goes up with every change of these layers."""
    monkeypatch.setattr("reidkit.bundle.Bundle.int8_model", lambda self, engine: self.model)
    written = []
    for version in ("8.6.0", "10.9.0"):
        for via, precision in (("network", "float16"), ("parser", "float16"), ("parser", "int8")):
            trt = play(version)
            build_engine(bundle, precision=precision, via=via)
            layers = trt.builders[0].network.layers
            written.append([(layer.kind, layer.precision, sorted(layer.output_types.items())) for layer in layers])
    digest = hashlib.sha256(json.dumps(written).encode()).hexdigest()[:16]
    assert (WRITER, digest) == (3, "afef2535e938d088")


@pytest.mark.parametrize(
    ("version", "option", "flag"),
    [
        ("8.6.0", "version-compatible", "VERSION_COMPATIBLE"),
        ("8.6.0", "refit", "REFIT"),
        ("10.9.0", "weight-stripped", "STRIP_PLAN"),
        ("11.0.0", "weight-stripped", "STRIP_PLAN"),
    ],
)
def test_options_are_flags(bundle, play, version, option, flag):
    trt = play(version)
    facts = build_engine(bundle, precision="float32", options=[option, option])
    assert facts.options == (option,)
    assert trt.builders[0].config.flags == {flag}


def test_hardware_compatibility_is_a_level(bundle, play):
    trt = play("8.6.0")
    build_engine(bundle, precision="float32", options=["hardware-compatible"])
    assert trt.builders[0].config.hardware_compatibility_level == "ampere+"


# Bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runtime": "tensort"}, r"Unknown flavour of TensorRT 'tensort'(?s:.*)did you mean 'tensorrt'\?"),
        ({"options": ["refitt"]}, r"Unknown engine option 'refitt'(?s:.*)did you mean 'refit'\?"),
        ({"effort": 6}, r"The effort is out of range\n  got: 6\n  expected: 0 to 5"),
        ({"effort": -1}, r"The effort is out of range"),
        ({"batches": []}, r"A batch size cannot be this\n  got: \[\]\n  expected: 1 or above"),
        ({"batches": [8, 0]}, r"A batch size cannot be this\n  got: \[8, 0\]"),
        ({"workspace": 0}, r"The workspace is out of range\n  got: 0\n  expected: 1 byte or more"),
    ],
)
def test_impossible_wishes(bundle, changes, words):
    with pytest.raises(ConfigError, match=words):
        build_engine(bundle, **{"runtime": "tensorrt-rtx", **changes})
    assert stored(bundle) == []


def test_profiles_follow_each_other():
    assert profiles_of([64, 1, 8, 8]) == (Profile(1, 1, 1), Profile(2, 8, 8), Profile(9, 64, 64))
    assert profiles_of([4]) == (Profile(1, 4, 4),)


def test_a_precision_that_a_version_lacks(bundle, play):
    play("8.6.0")
    with pytest.raises(RuntimeMissing) as caught:
        build_engine(bundle, precision="bfloat16")
    assert caught.value.problem == "tensorrt 8.6.0 has no bfloat16"
    assert str(caught.value.expected).startswith("one of float32, tf32, float16")
    assert stored(bundle) == []


def test_int8_is_of_bundles_that_were_quantised_and_by_parser_alone(bundle, play):
    play("10.9.0")
    with pytest.raises(ModelError, match=r"was not quantised\n.*\n  to do: reid quantize .* --calibration DIR"):
        build_engine(bundle, precision="int8")
    with pytest.raises(ModelError, match="int8 is built from the quantised graph alone"):
        build_engine(bundle, precision="int8", via="network")
    assert stored(bundle) == []


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_nothing_is_built_of_a_graph_that_was_quantised_elsewhere(foreign, play, precision):
    play("10.9.0")
    rounded = replace(foreign, manifest=replace(foreign.manifest, precision="int8"))
    text = (
        r"builds nothing from foreign\.reid, whose own graph was quantised elsewhere[\s\S]*to do: import the float net"
    )
    with pytest.raises(ModelError, match=text):
        build_engine(rounded, precision=precision)
    assert stored(foreign) == []


def test_an_option_that_a_version_lacks(bundle, play):
    play("8.6.0")
    with pytest.raises(RuntimeMissing, match=r"tensorrt 8\.6\.0 builds no weight-stripped engines\n  to do: leave"):
        build_engine(bundle, options=["weight-stripped"])
    assert stored(bundle) == []


def test_a_foreign_graph_has_no_network_to_write(foreign, play):
    play("10.9.0")
    with pytest.raises(ModelError, match=r"foreign\.reid is a foreign graph, .*\n  to do: build it with --via parser"):
        build_engine(foreign, via="network")


def test_timms_networks_have_no_description(bundle, play):
    trt = play("10.9.0")
    spec = ModelSpec(TimmSpec(name="resnet10t"))
    other = replace(bundle, manifest=replace(bundle.manifest, architecture=spec))
    with pytest.raises(ModelError, match=r"There is no description of .*resnet10t(?s:.*)--via parser"):
        build_engine(other, via="network")
    assert build_engine(other).via == "parser"
    assert len(trt.parsers) == 1


def test_weights_of_another_network_are_refused_by_name(bundle, play):
    play("10.9.0")
    backbone = replace(bundle.manifest.architecture.backbone, se=True)
    other = replace(bundle, manifest=replace(bundle.manifest, architecture=ModelSpec(backbone)))
    with pytest.raises(ModelError, match=r"(?s)weights\.safetensors do not fit.*missing: backbone\.layer1\."):
        build_engine(other)
    assert stored(bundle) == []


def test_a_graph_that_the_parser_refuses(bundle, play):
    trt = play("10.9.0")
    trt.parse_errors = ["no importer for Foo", "no importer for Foo", "no Bar"]
    with pytest.raises(ModelError) as caught:
        build_engine(bundle, via="parser")
    assert caught.value.problem == f"tensorrt 10.9.0 cannot parse {bundle.model}"
    assert caught.value.got == "no importer for Foo; no Bar"
    assert caught.value.fix == "build it with --via network, or another runtime"


def test_rtxs_own_parser_says_what_it_does_not_know(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    nodes = [
        helper.make_node("Cast", ["crops"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Det", ["pixels"], ["determinant"]),
        helper.make_node("ReduceMean", ["determinant"], ["one"], keepdims=1, axes=[1]),
        helper.make_node("Slice", ["flat", "from", "to", "axis"], ["three"]),
        helper.make_node("Add", ["three", "one"], ["embeddings"]),
        *(
            helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.array([number])))
            for name, number in (("from", 0), ("to", 3), ("axis", 1))
        ),
    ]
    foreign = write_foreign(tmp_path / "odd.reid", nodes=[*nodes[-3:], *nodes[:-3]])
    with pytest.raises(ModelError, match=r"tensorrt-rtx [\d.]+ cannot parse (?s:.*)got: .*operator: Det"):
        build_engine(foreign, "tensorrt-rtx", precision="float32", batches=[1])


def test_without_a_card_tensorrt_does_not_start(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.9.0"))
    monkeypatch.setattr("reidkit.runtime.cuda.cudart.cudaGetDeviceCount", lambda: (_no_device(), 0), raising=False)
    with pytest.raises(RuntimeMissing, match=r"There is no CUDA device here\n(?s:.*)run `reid doctor`"):
        build_engine(bundle)
    assert stored(bundle) == []


def _no_device():
    from cuda.bindings import runtime

    return runtime.cudaError_t.cudaErrorNoDevice


def test_without_the_library(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        RuntimeMissing, match=r"tensorrt is not installed\n  to do: pip install 'reidkit\[tensorrt\]' --extra"
    ):
        build_engine(bundle)


# The builder fails


@pytest.mark.parametrize(
    "message",
    [
        "2: [virtualMemoryBuffer.cpp::resizePhysical::144] Error Code 2: OutOfMemory (no further information)",
        "[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory (no further information)",
    ],
)
@pytest.mark.parametrize(("workspace", "smaller"), [(None, "1GiB"), (8 << 30, "4096MiB"), (1 << 20, "1MiB")])
def test_no_memory_to_build_names_the_workspace(bundle, play, message, workspace, smaller):
    trt = play("10.9.0")
    trt.failure = [message, "something that follows from it"]
    with pytest.raises(EngineError) as caught:
        build_engine(bundle, workspace=workspace)
    assert caught.value.problem == "There is not enough memory to build the engine with tensorrt 10.9.0"
    assert caught.value.got == "Error Code 2: OutOfMemory (no further information)"
    assert f"--workspace {smaller};" in (caught.value.fix or "")
    assert stored(bundle) == []


@pytest.mark.parametrize(
    "message",
    [
        "Requested amount of GPU memory (1024 bytes) could not be allocated. There may not be enough free memory.",
        "Error Code 1: Cuda Runtime (out of memory)",
        "cudaMalloc failed",
    ],
)
def test_other_words_for_no_memory(bundle, play, message):
    play("8.6.0").failure = [message]
    with pytest.raises(EngineError, match=r"not enough memory(?s:.*)--workspace 1GiB"):
        build_engine(bundle)


@pytest.mark.parametrize(
    ("failure", "got"), [(["10: [optimizer.cpp::computeCosts::3869] No kernel"], "No kernel"), ([], "no reason given")]
)
def test_another_failure_has_other_words(bundle, play, failure, got):
    play("10.9.0").failure = failure
    with pytest.raises(EngineError) as caught:
        build_engine(bundle)
    assert caught.value.problem == "tensorrt 10.9.0 cannot build this engine"
    assert caught.value.got == got
    assert "--via" in (caught.value.fix or "")


def test_a_library_that_cannot_start(bundle, play):
    def broken(log):
        log.log(1, "6: CUDA initialization failure with error: 2, out of memory")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    play("10.9.0").Builder = broken
    with pytest.raises(EngineError, match=r"not enough memory to build(?s:.*)CUDA initialization failure"):
        build_engine(bundle)


def test_a_failed_build_leaves_the_standing_engine(bundle, play):
    trt = play("10.9.0")
    facts = build_engine(bundle)
    trt.failure = ["broken"]
    with pytest.raises(EngineError, match="cannot build this engine"):
        build_engine(bundle, rebuild=True)
    assert read_store(bundle) == [facts]
    assert read_engine(bundle, facts) == b"an engine"


# The timing cache


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("REIDKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "timing" / "tensorrt-10.9.0-nvidia_fake-13.0.cache"


def test_what_kernels_took_is_kept_for_the_next_build(bundle, play, cache):
    trt = play("10.9.0")
    build_engine(bundle)
    assert cache.read_bytes() == b"timed"
    build_engine(bundle, precision="float32")
    assert trt.builders[1].config.cache.data == b"timed"
    assert cache.read_bytes() == b"timedtimed"


@pytest.mark.parametrize(
    ("meanwhile", "kept"),
    [
        (b"timed, and more", b"timed, and moretimed"),
        (b"garbage", b"timedtimed"),
        (b"another card", b"timedtimed"),
    ],
)
def test_builds_beside_each_other_keep_what_both_have_timed(bundle, play, cache, monkeypatch, meanwhile, kept):
    play("10.9.0")
    build_engine(bundle)
    build_network = Builder.build_serialized_network

    def while_another_ends(builder, network, config):
        cache.write_bytes(meanwhile)
        return build_network(builder, network, config)

    monkeypatch.setattr(Builder, "build_serialized_network", while_another_ends)
    build_engine(bundle, precision="float32")
    assert cache.read_bytes() == kept


def test_an_engine_is_there_before_its_timings_are(bundle, play, cache, monkeypatch, caplog):
    """Somebody may hold their lock for long, or the file system know none."""
    play("10.9.0")
    stood = []

    def no_lock(*given, **how):
        stood.append(len(stored(bundle)))
        raise NotImplementedError("no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", no_lock)
    monkeypatch.setattr(build, "engine_lock", _no_lock)
    build_engine(bundle)
    assert stood == [2]
    assert "The timing cache is not kept: no locks here" in caplog.text


@pytest.mark.parametrize("data", [b"garbage", b"another card"])
def test_a_timing_cache_of_something_else_begins_anew(bundle, play, cache, caplog, data):
    trt = play("10.9.0")
    cache.parent.mkdir(parents=True)
    cache.write_bytes(data)
    build_engine(bundle)
    assert trt.builders[0].config.cache.data == b""
    assert "is of something else, and begins anew" in caplog.text
    assert cache.read_bytes() == b"timed"


def test_a_timing_cache_that_cannot_be_read_or_written_costs_a_warning(bundle, play, cache, caplog):
    play("10.9.0")
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"timed")
    cache.chmod(0o000)
    cache.parent.chmod(0o555)
    with unprivileged(cache), pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "engine_lock", _no_lock)
        patch.setattr(build, "write_engine", lambda bundle, facts, data: facts)
        build_engine(bundle)
    assert "The timing cache is not used" in caplog.text
    assert "The timing cache is not kept" in caplog.text
    cache.parent.chmod(0o755)
    cache.chmod(0o644)
    assert cache.read_bytes() == b"timed"


def _no_lock(*arguments):
    from contextlib import nullcontext

    return nullcontext()


def test_rtx_has_no_timing_cache(foreign, monkeypatch, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("REIDKIT_CACHE", str(tmp_path / "cache"))
    build_engine(foreign, **RTX)
    assert not (tmp_path / "cache").exists()


def test_it_is_built_on_the_card_that_was_asked_for(bundle, play, monkeypatch):
    """Kernels are tried out on the card in use; whoever calls may be on another."""
    trt = play("10.9.0")
    seen = []
    builder = trt.Builder
    monkeypatch.setattr(trt, "Builder", lambda log: seen.append(cuda.cudart.cudaGetDevice()[1]) or builder(log))
    build_engine(bundle, "tensorrt", device="cuda:1")
    assert seen == [1]
    assert cuda.cudart.cudaGetDevice()[1] == 0
