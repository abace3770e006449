"""Which ways a bundle can be run in: engines times precisions, and what was built."""

import pytest

from reidkit.bundle import INT8_MODELS, replace_files
from reidkit.deploy.ways import Way, ways_of
from reidkit.errors import RuntimeMissing
from reidkit.runtime.engine_facts import EngineFacts, Profile, graph_digest
from reidkit.runtime.engine_store import write_engine
from small_bundle import write


@pytest.fixture
def bundle(tmp_path):
    """With three engines of TensorRT's."""
    bundle = write(tmp_path / "a.reid")
    for precision, via in (("float16", "network"), ("float16", "parser"), ("float32", "network")):
        facts = EngineFacts("tensorrt", "8.6.0", precision, via, graph_digest(bundle, via), (Profile(1, 1, 4),))
        write_engine(bundle, facts, f"{precision} {via}".encode())
    return bundle


def test_engines_times_precisions(bundle):
    ways = ways_of(bundle, ["pytorch", "openvino"], ["float16", "float32", "float16"])
    assert ways == [
        Way("pytorch", "float16"),
        Way("pytorch", "float32"),
        Way("openvino", "float16"),
        Way("openvino", "float32"),
    ]
    assert ways_of(bundle, ["pytorch"]) == [Way("pytorch")]


def test_of_engines_that_are_built_those_that_were(bundle):
    half = {Way("tensorrt", "float16", "network"), Way("tensorrt", "float16", "parser")}
    assert set(ways_of(bundle, ["tensorrt"])) == half | {Way("tensorrt", "float32", "network")}
    assert set(ways_of(bundle, ["tensorrt"], [None, "float16"])) == half | {Way("tensorrt", "float32", "network")}
    assert set(ways_of(bundle, ["tensorrt"], ["float16"])) == half


def test_what_was_not_built_stays_in_the_list_so_that_opening_it_says_so(bundle):
    assert ways_of(bundle, ["tensorrt", "tensorrt-rtx"], ["bfloat16"]) == [
        Way("tensorrt", "bfloat16"),
        Way("tensorrt-rtx", "bfloat16"),
    ]


def test_int8_on_a_processor_however_its_name_is_written(tmp_path):
    quantized = replace_files(write(tmp_path / "b.reid"), {INT8_MODELS["cpu"]: b"a quantised graph"})
    both = [Way("openvino"), Way("openvino", "int8")]
    assert [ways_of(quantized, ["openvino"], device=name) for name in (None, "cpu", "CPU")] == [both] * 3
    assert ways_of(quantized, ["openvino"], device="GPU") == [Way("openvino")]


def test_a_way_in_words():
    assert Way("pytorch").in_words() == "pytorch"
    assert Way("tensorrt", "float16", "parser").in_words() == "tensorrt float16 by parser"


@pytest.mark.usefixtures("plain_processor")
def test_a_way_is_opened_as_it_says(tiny_bundle):
    from reidkit.bundle import open_bundle

    bundle = open_bundle(tiny_bundle)
    assert Way("pytorch", "bfloat16").open(bundle, device="cpu").spec.precision == "bfloat16"
    with pytest.raises(RuntimeMissing, match="openvino does not run this bundle in bfloat16 here"):
        Way("openvino", "bfloat16").open(bundle)
