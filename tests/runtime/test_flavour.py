"""The one page of differences between TensorRT's libraries, with each of them played."""

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from fake_cuda import FakeCuda
from fake_tensorrt import fake_tensorrt
from reidkit.errors import RuntimeMissing
from reidkit.runtime.flavour import Flavour, open_flavour

INDEX = " --extra-index-url https://pypi.nvidia.com"


@pytest.mark.parametrize(
    ("runtime", "version", "typed", "precisions", "card"),
    [
        ("tensorrt", "8.6.0", False, ("float32", "tf32", "float16", "int8"), True),
        ("tensorrt", "10.9.0.34", True, ("float32", "tf32", "float16", "bfloat16", "int8"), True),
        ("tensorrt", "11.0.0", True, ("float32", "tf32", "float16", "bfloat16", "int8"), True),
        ("tensorrt-rtx", "1.7.1.116", True, ("float32", "tf32", "float16", "bfloat16", "int8"), False),
    ],
)
def test_what_a_version_is(runtime, version, typed, precisions, card):
    trt = fake_tensorrt("10.0" if version.startswith("1.") else version)
    trt.__version__ = version
    flavour = Flavour(runtime, trt)
    assert (flavour.version, flavour.typed, flavour.precisions) == (version, typed, precisions)
    assert flavour.needs_card is card


def test_a_network_is_of_any_batch_and_typed_where_that_is_known():
    for version, flag in (("8.6.0", "EXPLICIT_BATCH"), ("10.9.0", "STRONGLY_TYPED"), ("11.0.0", "STRONGLY_TYPED")):
        trt = fake_tensorrt(version)
        network = Flavour("tensorrt", trt).network(trt.Builder(None))
        assert network.flags == 1 << trt.NetworkDefinitionCreationFlag[flag]


def test_a_version_that_knows_nothing_but_typed_networks_takes_no_flag():
    trt = fake_tensorrt("11.0.0")
    trt.NetworkDefinitionCreationFlag = object()
    assert Flavour("tensorrt", trt).network(trt.Builder(None)).flags == 0


def test_a_normalisation_is_added_by_the_call_that_a_version_has():
    flavour = Flavour("tensorrt", fake_tensorrt("10.9.0"))
    older = SimpleNamespace(add_normalization=lambda *given: ("first", *given))
    assert flavour.normalization(older, "x", "scale", "bias", axes=12) == ("first", "x", "scale", "bias", 12)
    newer = SimpleNamespace(add_normalization_v2=lambda *given: ("second", *given), **vars(older))
    assert flavour.normalization(newer, "x", "scale", "bias", axes=12) == ("second", "x", "scale", "bias", 12)


@pytest.mark.parametrize(("version", "own"), [("8.6.0", False), ("10.9.0", True), ("11.0.0", True)])
def test_a_context_works_in_memory_of_ours(version, own):
    trt = fake_tensorrt(version, FakeCuda())
    flavour = Flavour("tensorrt", trt)
    engine = trt.Runtime(None).deserialize_cuda_engine(b"engine")
    assert flavour.scratch_bytes(engine) == engine.scratch
    assert hasattr(engine, "create_execution_context") is own
    assert flavour.context(engine, 512, engine.scratch).device_memory == 512
    engine.most = 1
    assert flavour.context(engine, 512, engine.scratch) is None


def test_messages_go_to_the_log_and_errors_are_kept(caplog):
    trt = fake_tensorrt("10.9.0")
    log = Flavour("tensorrt", trt).log()
    assert log.first_error() is None
    with caplog.at_level(logging.DEBUG, logger="reidkit"):
        for severity in (trt.ILogger.VERBOSE, trt.ILogger.INFO, trt.ILogger.WARNING, trt.ILogger.ERROR):
            log.log(severity, "message")
        log.log(trt.ILogger.INTERNAL_ERROR, "worse")
    levels = [record.levelname for record in caplog.records]
    assert levels == ["DEBUG", "DEBUG", "INFO", "INFO", "INFO"]
    assert log.errors == ["message", "worse"]
    for number in range(20):
        log.log(trt.ILogger.ERROR, str(number))
    assert log.errors == [str(number) for number in range(10, 20)]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("2: [virtualMemoryBuffer.cpp::resizePhysical::144] Error Code 2: OutOfMemory", "Error Code 2: OutOfMemory"),
        ("[graph.cpp::operator ()::12] Error Code 4: x", "Error Code 4: x"),
        ("[cudaResources.cpp::ScopedCudaStream::25] Error Code 1: y (at a.cpp:25)", "Error Code 1: y (at a.cpp:25)"),
        ("IBuilder::buildSerializedNetwork: Error Code 9: z", "IBuilder::buildSerializedNetwork: Error Code 9: z"),
        ("[a] b", "[a] b"),
    ],
)
def test_an_error_is_told_without_its_place_in_the_source(message, words):
    trt = fake_tensorrt("10.9.0")
    log = Flavour("tensorrt", trt).log()
    log.log(trt.ILogger.ERROR, message)
    log.log(trt.ILogger.ERROR, "a later one")
    assert (log.first_error(), log.last_error()) == (words, "a later one")


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_library_that_is_not_there(monkeypatch, runtime):
    name = runtime.replace("-", "_")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeMissing) as caught:
        open_flavour(runtime)
    command = f"pip install 'reidkit[{runtime}]'" + INDEX * (runtime == "tensorrt")
    assert str(caught.value) == f"{name} is not installed\n  to do: {command}"


@pytest.mark.parametrize(
    "line",
    [
        "raise ImportError('libnvinfer.so.8: cannot open shared object file')",
        "raise OSError('libnvinfer.so.8: cannot open shared object file\\nmore')",
        "import tensorrt_libs_that_nobody_has",
    ],
)
def test_a_library_whose_own_parts_are_missing(monkeypatch, tmp_path, line):
    (tmp_path / "tensorrt.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(RuntimeMissing) as caught:
        open_flavour("tensorrt")
    assert caught.value.problem == "tensorrt cannot be loaded"
    assert str(caught.value.got).startswith(("libnvinfer.so.8", "No module named 'tensorrt_libs_that_nobody_has'"))
    assert "\n" not in str(caught.value.got)
    assert caught.value.fix == "run `reid doctor`"


def test_a_name_without_the_library(monkeypatch, tmp_path):
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # a folder without code comes behind a library that is there
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(RuntimeMissing, match=r"tensorrt is there without the library\n  got: .*tensorrt\n"):
        open_flavour("tensorrt")
    stub = ModuleType("tensorrt")
    stub.__file__ = "/somewhere/tensorrt/__init__.py"
    monkeypatch.setitem(sys.modules, "tensorrt", stub)
    with pytest.raises(RuntimeMissing, match=r"got: /somewhere/tensorrt/__init__\.py"):
        open_flavour("tensorrt")
