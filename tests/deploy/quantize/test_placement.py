"""Which values are rounded, on graphs small enough to see it; and that a table serves whatever stays float."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from known_networks import CASES, draw_model
from quick_networks import narrow_resnets
from reidkit.deploy.graph_cleanup import cleaned
from reidkit.deploy.graph_links import Links
from reidkit.deploy.network.onnx_layers import onnx_network
from reidkit.deploy.quantize.placement import place, quantizable_layers, rounded_layers
from reidkit.errors import ConfigError, ModelError
from rounded_graphs import graph, node

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def layers_of(model):
    return [(layer.name, layer.operator, layer.input, layer.result) for layer in quantizable_layers(model)]


def pooled(value):
    return [node("ReduceMean", [value], "y", axes=[2, 3], keepdims=0)]


def residual(*, downsample):
    """conv, ReLU, conv, and a sum with what came past them."""
    nodes = [
        node("Conv", ["x", "stem.weight"], "s"),
        node("Relu", ["s"], "a"),
        node("Conv", ["a", "one.weight"], "b"),
        node("Relu", ["b"], "c"),
        node("Conv", ["c", "two.weight"], "d"),
        *([node("Conv", ["a", "past.weight"], "p")] if downsample else []),
        node("Add", ["d", "p" if downsample else "a"], "e"),
        node("Relu", ["e"], "f"),
        node("Conv", ["f", "last.weight"], "g"),
        *pooled("g"),
    ]
    names = ["stem", "one", "two", *(["past"] if downsample else []), "last"]
    return graph(nodes, {f"{name}.weight": floats(4, 4, 1, 1) for name in names})


def test_processors_round_what_layers_read_and_make():
    for downsample in (False, True):
        placement = place(residual(downsample=downsample), "cpu")
        assert set(placement.owners) == {*"xacdfg", *("p" if downsample else "")}  # not s, b: a ReLU follows; not e
        assert all(value == owner for value, owner in placement.owners.items())
        assert placement.readers == {}


def test_tensorrt_rounds_what_layers_read_and_of_a_sum_what_came_past():
    plain = place(residual(downsample=False), "tensorrt")
    assert list(plain.owners) == [*"xacf"]
    assert plain.readers == {"x": {"s"}, "a": {"b", "e"}, "c": {"d"}, "f": {"g"}}
    down = place(residual(downsample=True), "tensorrt")
    assert list(down.owners) == [*"xacpf"]  # of two layers' results the one that was begun first
    assert down.readers == {"x": {"s"}, "a": {"b", "p"}, "c": {"d"}, "p": {"e"}, "f": {"g"}}


@pytest.mark.parametrize("swapped", [False, True])
def test_a_sum_is_the_same_either_way_round(swapped):
    model = residual(downsample=True)
    add = next(found for found in model.graph.node if found.op_type == "Add")
    if swapped:
        add.input[:] = list(add.input)[::-1]
    assert place(model, "tensorrt").readers["p"] == {"e"}


def test_a_sum_without_a_layer_is_no_residual():
    model = graph(
        [
            node("Conv", ["x", "w"], "a"),
            node("Sigmoid", ["a"], "b"),
            node("Add", ["b", "x"], "c"),
            node("Add", ["a", "a"], "d"),
            node("Add", ["c", "d"], "e"),
            *pooled("e"),
        ],
        {"w": floats(4, 4, 1, 1)},
    )
    assert place(model, "tensorrt").readers == {"x": {"a"}}


def test_a_constant_is_not_rounded_in_a_sum():
    model = graph(
        [node("Conv", ["x", "w"], "a"), node("Add", ["a", "k"], "b"), *pooled("b")],
        {"w": floats(4, 4, 1, 1), "k": floats(1, 4, 6, 5)},
    )
    assert list(place(model, "tensorrt").owners) == ["x"]


def test_what_is_moved_stays_on_its_grid():
    model = graph(
        [
            node("Conv", ["x", "w"], "a"),
            node("Relu", ["a"], "b"),
            node("MaxPool", ["b"], "c", kernel_shape=[2, 2], strides=[2, 2]),
            node("Transpose", ["c"], "d", perm=[0, 1, 3, 2]),
            node("Conv", ["d", "v"], "e"),
            node("AveragePool", ["e"], "f", kernel_shape=[2, 1]),
            node("Conv", ["f", "w"], "g"),
            *pooled("g"),
        ],
        {"w": floats(4, 4, 1, 1), "v": floats(4, 4, 1, 1)},
    )
    assert place(model, "cpu").owners == {
        "x": "x", "b": "b", "c": "b", "d": "b", "e": "e", "f": "f", "g": "g"
    }  # fmt: skip
    assert place(model, "tensorrt").owners == {"x": "x", "d": "d", "f": "f"}


def ibn():
    """Half of the channels normalised by instance, as IBN-a has it."""
    split = helper.make_node("Split", ["a", "sizes"], ["i", "r"], "split", axis=1)
    nodes = [
        node("Conv", ["x", "one.weight"], "a"),
        split,
        node("InstanceNormalization", ["i", "s", "o"], "n"),
        node("Concat", ["n", "r"], "c", axis=1),
        node("Relu", ["c"], "d"),
        node("Conv", ["d", "two.weight"], "e"),
        *pooled("e"),
    ]
    weights = {"one.weight": floats(4, 4, 1, 1), "two.weight": floats(4, 4, 1, 1)}
    return graph(nodes, {**weights, "sizes": np.array([2, 2]), "s": floats(2), "o": floats(2)})


def test_both_halves_of_ibn_are_on_grids_where_they_meet():
    # The float half is rounded as the whole is, behind its ReLU: what is below 0 becomes 0 either way.
    assert place(ibn(), "cpu").owners == {"x": "x", "a": "a", "i": "a", "r": "a", "n": "d", "d": "d", "e": "e"}
    assert place(ibn(), "tensorrt").owners == {"x": "x", "d": "d"}


@pytest.mark.parametrize(
    ("bounds", "follows"),
    [((0.0, 6.0), True), ((-1.0, 1.0), False), ((0.0, None), True), ((None, 6.0), False)],
)
def test_a_clip_from_0_on_is_a_relu(bounds, follows):
    limits = {name: np.float32(value) for name, value in zip(("lo", "hi"), bounds, strict=True) if value is not None}
    names = ["lo" if "lo" in limits else "", *(["hi"] if "hi" in limits else [])]
    model = graph(
        [node("Conv", ["x", "w"], "a"), node("Clip", ["a", *names], "b"), *pooled("b")],
        {"w": floats(4, 4, 1, 1), **limits},
    )
    assert layers_of(model) == [("w", "Conv", "x", "b" if follows else "a")]


def test_a_relu_is_left_alone_where_something_else_reads_the_result_or_it_is_given_out():
    nodes = [node("Conv", ["x", "w"], "a"), node("Relu", ["a"], "b"), node("Add", ["a", "b"], "c")]
    assert layers_of(graph([*nodes, *pooled("c")], {"w": floats(4, 4, 1, 1)})) == [("w", "Conv", "x", "a")]
    pinned = graph([*nodes[:2], *pooled("b")], {"w": floats(4, 4, 1, 1)}, outputs=("y", "a"))
    assert layers_of(pinned) == [("w", "Conv", "x", "a")]


def test_gates_and_the_tail_stay_float():
    model = graph(
        [
            node("Conv", ["x", "map.weight"], "a"),
            node("GlobalAveragePool", ["a"], "p"),
            node("Conv", ["p", "fc1.weight"], "q"),
            node("Relu", ["q"], "q1"),
            node("Conv", ["q1", "fc2.weight"], "r"),
            node("Sigmoid", ["r"], "t"),
            node("Mul", ["a", "t"], "u"),
            node("GlobalAveragePool", ["u"], "v"),
            node("Conv", ["v", "embed.weight"], "w"),
            node("Flatten", ["w"], "z"),
            node("Gemm", ["z", "head.weight"], "y"),
        ],
        {
            **{f"{name}.weight": floats(4, 4, 1, 1) for name in ("map", "fc1", "fc2", "embed")},
            "head.weight": floats(4, 2),
        },
    )
    assert layers_of(model) == [("map", "Conv", "x", "a")]


def test_products_over_positions_are_layers_and_those_of_rows_are_not():
    nodes = [
        node("MatMul", ["x", "in.weight"], "a"),
        node("Reshape", ["a", "rows"], "b"),
        node("Gemm", ["b", "mid.weight"], "c", transB=1),
        node("MatMul", ["c", "two.weight"], "d"),
        node("Reshape", ["d", "maps"], "e"),
        node("MatMul", ["e", "e"], "f"),
        node("MatMul", ["stack", "f"], "g"),
        node("ReduceMean", ["g"], "h", axes=[1], keepdims=0),
        node("Gemm", ["h", "out.weight"], "y"),
    ]
    weights = {"in.weight": floats(4, 6), "mid.weight": floats(3, 6), "two.weight": floats(3, 3), "stack": floats(3, 3)}
    shapes = {"rows": np.array([-1, 6]), "maps": np.array([-1, 3, 3])}
    model = graph(nodes, {**weights, **shapes, "out.weight": floats(3, 2)}, inputs={"x": ("n", 3, 4)})
    (layer,) = quantizable_layers(model)
    assert (layer.name, layer.operator, layer.axis, layer.multiply_adds) == ("in", "MatMul", 1, 3 * 4 * 6)


def test_a_grouped_convolution_and_what_it_costs():
    model = graph(
        [node("Conv", ["x", "d.weight"], "a", group=4, pads=[1, 1, 1, 1], strides=[2, 1]), *pooled("a")],
        {"d.weight": floats(4, 1, 3, 3)},
    )
    (layer,) = quantizable_layers(model)
    assert (layer.axis, layer.multiply_adds) == (0, 4 * 9 * 3 * 5)


@pytest.mark.parametrize(
    ("weight", "name"),
    [("model.backbone.conv1.weight", "backbone.conv1"), ("backbone.conv1.weight_folded", "backbone.conv1"), ("w", "w")],
)
def test_a_layer_has_the_name_of_its_weights(weight, name):
    model = graph([node("Conv", ["x", weight], "a"), *pooled("a")], {weight: floats(4, 4, 1, 1)})
    assert [layer.name for layer in quantizable_layers(model)] == [name]


def test_two_weights_never_share_a_name_and_shared_weights_do():
    nodes = [
        node("Conv", ["x", "a"], "b"),
        node("Conv", ["b", "a.weight"], "c"),
        node("Conv", ["c", "a"], "d"),
        *pooled("d"),
    ]
    model = graph(nodes, {"a": floats(4, 4, 1, 1), "a.weight": floats(4, 4, 1, 1)})
    assert [layer.name for layer in quantizable_layers(model)] == ["a", "a.weight", "a"]


def test_computed_and_low_weights_and_operators_of_others_are_no_layers():
    nodes = [
        node("Mul", ["w", "k"], "computed"),
        node("Conv", ["x", "computed"], "a"),
        helper.make_node("Conv", ["a", "w"], ["b"], "b", domain="acme"),
        node("Conv", ["x", "w"], "c"),
        node("Add", ["b", "c"], "d"),
        *pooled("d"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(v, n) for n, v in {"w": floats(4, 4, 1, 1), "k": floats(1)}.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)])
    assert layers_of(model) == [("w", "Conv", "x", "c")]


def test_nothing_to_quantise():
    with pytest.raises(ModelError) as caught:
        quantizable_layers(graph([*pooled("x")], {}))
    assert str(caught.value) == (
        "The graph has nothing to quantise\n"
        "  got: no convolution or matrix product with constant float32 weights before the pooling\n"
        "  expected: a convolutional network, or one of matrix products over positions"
    )


def test_a_graph_that_is_quantised_already():
    weights = {"step": np.float32(0.1), "zero": np.uint8(3), "w": floats(4, 4, 1, 1)}
    nodes = [
        node("QuantizeLinear", ["x", "step", "zero"], "q"),
        node("DequantizeLinear", ["q", "step", "zero"], "d"),
        node("Conv", ["d", "w"], "a"),
        *pooled("a"),
    ]
    with pytest.raises(ModelError) as caught:
        quantizable_layers(graph(nodes, weights))
    assert str(caught.value) == (
        "The graph is quantised already\n  got: DequantizeLinear, QuantizeLinear\n  expected: a float32 graph\n"
        "  to do: quantise the float32 network that it was made from"
    )


def test_layers_to_keep_in_float():
    model = residual(downsample=False)
    placement = place(model, "cpu", floats=["one", "last"])
    assert [layer.name for layer in placement.layers] == ["stem", "two"]
    assert set(placement.owners) == {*"xacd"}
    with pytest.raises(ConfigError) as caught:
        place(model, "tensorrt", floats=["three", "one", "lost"])
    assert str(caught.value) == (
        "Unknown layer to keep in float: 'lost'\n  expected: one of stem, one, two, last\n  to do: did you mean 'last'?"
    )
    with pytest.raises(ModelError, match=r"Nothing is left to quantise\n  got: every layer is to stay float"):
        place(model, "cpu", floats=["stem", "one", "two", "last"])


def test_in_the_words_of_the_network():
    told = {layer.name: (layer.input, layer.output) for layer in rounded_layers(ibn(), place(ibn(), "cpu"))}
    assert told == {"one": ("one:input", "one:output"), "two": ("two:input", "two:output")}
    model = residual(downsample=True)
    assert {layer.name: (layer.input, layer.output) for layer in rounded_layers(model, place(model, "tensorrt"))} == {
        "stem": ("stem:input", "stem:output"),
        "one": ("stem:output", "one:output"),
        "two": ("one:output", None),
        "past": ("stem:output", "past:output"),
        "last": ("last:input", None),
    }


@pytest.fixture(scope="module", params=["r18-ibn-a", "r18-se", "mgn"])
def known_graph(request):
    spec, input_ = CASES[request.param]
    with narrow_resnets():
        tensors = {name: tensor.numpy() for name, tensor in draw_model(spec).state_dict().items()}
        return request.param, cleaned(onnx.load_from_string(onnx_network(spec, input_, tensors)))


def test_known_networks_are_rounded_as_far_as_the_pooling(known_graph):
    case, model = known_graph
    links = Links(model.graph)
    layers = quantizable_layers(model)
    assert len(layers) == {"r18-ibn-a": 20, "r18-se": 20, "mgn": 34}[case]
    rounded = {name for kind in ("cpu", "tensorrt") for name in place(model, kind).owners}
    floats_only = {"GlobalAveragePool", "Pow", "Sigmoid", "Flatten"}
    for found in model.graph.node:
        if found.op_type in floats_only:
            assert not rounded.intersection(found.output), found.op_type
    gates = [found for found in model.graph.node if found.op_type == "Sigmoid"]
    assert len(gates) == (8 if case == "r18-se" else 0)
    for gate in gates:
        maker = links.makers[gate.input[0]]
        assert maker.op_type == "Conv"
        assert maker.input[1] not in {layer.weight for layer in layers}


def test_whatever_stays_float_no_other_value_needs_a_range(known_graph):
    _, model = known_graph
    names = [layer.name for layer in quantizable_layers(model)]
    seen = {owner for kind in ("cpu", "tensorrt") for owner in place(model, kind).owners.values()}
    drawn = [RNG.choice(names, size, replace=False) for size in (3, len(names) // 2, len(names) - 2)]
    for floats_ in [[names[0]], [names[1]], [names[-1]], *(list(map(str, choice)) for choice in drawn)]:
        for kind in ("cpu", "tensorrt"):
            assert set(place(model, kind, floats=floats_).owners.values()) <= seen
