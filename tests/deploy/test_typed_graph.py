"""What is computed in what, node by node; and the embeddings that come of it, against PyTorch."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from reidkit.architecture import ModelSpec, named_model
from reidkit.deploy.typed_graph import typed_graph, value_types
from reidkit.errors import ModelError
from reidkit.golden import golden_crops
from reidkit.types import InputSpec

SPEC = InputSpec(64, 32)
RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.normal(scale=0.3, size=shape).astype(np.float32)


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs.split(), output.split(), name=output.split()[0], **attributes)


def graph_of(nodes, weights, *, opset=17, shape=("n", 4, 8, 6)):
    """From float maps x to y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)  # it gives the output a shape
    del model.graph.value_info[:]
    return model


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0]).astype(np.float64)


def computed_in(model):
    """By node name: the type of its first float input that is no Cast's."""
    types = value_types(model)
    return {
        found.name: next(types[name] for name in (*found.input, *found.output) if name in types)
        for found in model.graph.node
        if found.op_type != "Cast"
    }


def assert_sound(model):
    """Types agree at every node, no cast undoes another or is made twice, nothing is left over."""
    types = value_types(model)
    # Before opset 22 the standard has no convolutions in bfloat16.
    onnx.checker.check_model(model, full_check="bfloat16" not in types.values() or model.opset_import[0].version >= 22)
    makers = {name: found for found in model.graph.node for name in found.output}
    casts = Counter()
    for found in model.graph.node:
        kinds = {types[name] for name in found.input if name in types}
        if found.op_type == "Cast":
            assert kinds != {types[found.output[0]]}
            before = makers.get(found.input[0])
            assert before is None or before.op_type != "Cast" or before.input[0] not in types
            casts[found.input[0], types[found.output[0]]] += 1
        elif found.op_type != "Resize":
            assert len(kinds) <= 1, (found.op_type, kinds)
    assert set(casts.values()) <= {1}
    read = {name for found in model.graph.node for name in found.input} | {value.name for value in model.graph.output}
    assert {tensor.name for tensor in model.graph.initializer} <= read


def typed(model, kind="float16", **options):
    result = typed_graph(model, kind, **options)
    assert_sound(result)
    return result


CONV = node("Conv", "x w", "conv")


def test_a_gate_of_channels_is_low_but_for_its_mean_and_the_tail_is_float32():
    nodes = [
        CONV,
        node("GlobalAveragePool", "conv", "mean"),
        node("Conv", "mean w1", "shrink"),
        node("Relu", "shrink", "hidden"),
        node("Conv", "hidden w2", "grow"),
        node("Sigmoid", "grow", "share"),
        node("Mul", "conv share", "gated"),
        node("Relu", "gated", "map"),
        node("GlobalAveragePool", "map", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("Gemm", "flat w3", "dense"),
        node("Relu", "dense", "y"),
    ]
    weights = {"w": floats(8, 4, 1, 1), "w1": floats(2, 8, 1, 1), "w2": floats(8, 2, 1, 1), "w3": floats(8, 5)}
    result = typed(graph_of(nodes, weights))
    low = {"conv", "shrink", "hidden", "grow", "share", "gated", "map"}
    assert {name for name, kind in computed_in(result).items() if kind == "float16"} == low
    # x, the map to its mean and back, the map to the pool.
    assert Counter(found.op_type for found in result.graph.node)["Cast"] == 4
    assert Counter(tensor.data_type for tensor in result.graph.initializer) == {TensorProto.FLOAT16: 3, 1: 1}


@pytest.mark.parametrize("opset", [7, 11, 13, 18, 20])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_generalised_mean_pooling_is_float32_in_every_spelling(kind, opset):
    weights = {"w": floats(8, 4, 1, 1), "p": np.float32(3), "q": np.float32(1 / 3)}
    clip, mean = {}, {"axes": [2, 3]}
    if opset < 11:
        clip = {"min": 1e-6}
    else:
        weights["least"] = np.float32(1e-6)
    if opset >= 18:
        mean, weights["axes"] = {}, np.array([2, 3])
    nodes = [
        CONV,
        node("Relu", "conv", "map"),
        node("Clip", "map least" if opset >= 11 else "map", "clipped", **clip),
        node("Pow", "clipped p", "powered"),
        node("ReduceMean", "powered axes" if opset >= 18 else "powered", "mean", **mean),
        node("Pow", "mean q", "y"),
    ]
    result = typed(graph_of(nodes, weights, opset=opset), kind)
    kinds = computed_in(result)
    assert {name for name, found in kinds.items() if found == kind} == {"conv", "map"}
    assert [found.op_type for found in result.graph.node].count("Cast") == 2


def test_bounds_that_the_low_type_holds_follow_their_data():
    weights = {"w": floats(8, 4, 1, 1), "low": np.float32(0), "high": np.float32(6)}
    model = graph_of([CONV, node("Clip", "conv low high", "y")], weights)
    assert computed_in(typed(model)) == {"conv": "float16", "y": "float16"}
    old = graph_of([CONV, node("Clip", "conv", "y", min=0.0, max=6.0)], {"w": weights["w"]}, opset=7)
    assert computed_in(typed(old)) == {"conv": "float16", "y": "float16"}


IBN = [
    CONV,
    node("Split", "conv sizes", "first rest", axis=1),
    node("InstanceNormalization", "first g o", "normed"),
    node("BatchNormalization", "rest b0 b1 b2 b3", "scaled"),
    node("Concat", "normed scaled", "joined", axis=1),
    node("Relu", "joined", "map"),
    node("Conv", "map v", "y"),
]


def ibn_weights():
    weights = {"w": floats(8, 4, 1, 1), "v": floats(3, 8, 3, 3), "sizes": np.array([3, 5])}
    weights |= {"g": floats(3), "o": floats(3), "b0": floats(5), "b1": floats(5), "b2": floats(5)}
    return weights | {"b3": RNG.uniform(0.5, 2, 5).astype(np.float32)}


def ibn_of(*parts, shape=("n", 4, 8, 6), last="Relu"):
    """IBN of parts, each a number of channels and an epsilon, or None where they are only kept."""
    sizes = [size for size, _ in parts]
    names = [f"part{number}" for number in range(len(parts))]
    weights = {"w": floats(sum(sizes), 4, *(1,) * (len(shape) - 2)), "sizes": np.array(sizes)}
    nodes = [node("Conv", "x w", "conv"), node("Split", "conv sizes", " ".join(names), axis=1)]
    for number, (size, epsilon) in enumerate(parts):
        if epsilon is not None:
            weights |= {f"g{number}": floats(size), f"o{number}": floats(size)}
            given = f"part{number} g{number} o{number}"
            nodes.append(node("InstanceNormalization", given, f"normed{number}", epsilon=epsilon))
            names[number] = f"normed{number}"
    nodes.append(node("Concat", " ".join(names), "map" if last else "y", axis=1))
    return graph_of([*nodes, node(last, "map", "y")] if last else nodes, weights, shape=shape)


@pytest.mark.parametrize("low_instance_norm", [False, True])
@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize(
    ("parts", "shape"),
    [
        ([(3, 0.1), (5, None)], ("n", 4, 8, 6)),
        ([(5, None), (3, 0.1)], ("n", 4, 6)),
        ([(2, 0.1), (3, None), (3, 0.1)], ("n", 4, 8, 6)),
        ([(3, 0.1), (5, 0.1)], ("n", 4, 8, 6)),
    ],
)
@pytest.mark.parametrize("last", ["Relu", None])
def test_ibn_is_one_normalisation_and_one_sum(kind, low_instance_norm, parts, shape, last):
    model = ibn_of(*parts, shape=shape, last=last)
    result = typed(model, kind, low_instance_norm=low_instance_norm)
    present = Counter(found.op_type for found in result.graph.node)
    kept = any(epsilon is None for _, epsilon in parts)
    names = ("InstanceNormalization", "Mul", "Add", "Split", "Concat")
    assert [present[name] for name in names] == [1, kept, kept, 0, 0]
    x = floats(2, *shape[1:]) + 3
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if kind == "float32" else {"rtol": 0.02, "atol": 0.02}
    np.testing.assert_allclose(run(result, x), run(model, x), **tolerance)
    types = value_types(result)
    makers = {found.op_type: found for found in result.graph.node}
    norm = makers["InstanceNormalization"]
    within = kind if low_instance_norm else "float32"
    assert {types[name] for name in norm.input} == {within}
    if kept:
        assert {types[name] for name in (*makers["Add"].input, *makers["Mul"].input)} == {kind}


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_the_batch_normalised_half_of_ibn_is_folded_first(opset):
    model = graph_of(IBN, ibn_weights(), opset=opset)
    result = typed(model, low_instance_norm=True)
    present = Counter(found.op_type for found in result.graph.node)
    assert not {"Split", "Concat", "BatchNormalization"} & set(present)
    kinds = computed_in(result)
    assert set(kinds.values()) == {"float16"}
    x = floats(2, 4, 8, 6)
    np.testing.assert_allclose(run(result, x), run(model, x), rtol=0.05, atol=0.1)


def test_deviations_whose_square_float16_does_not_hold():
    model = graph_of(IBN, ibn_weights(), opset=17)
    x = 50 * floats(2, 4, 8, 6)
    x[:, :, 0, 0] = 400  # more than 256 from the mean: a square beyond 65,504
    assert np.square(x.astype(np.float64) - x.mean((2, 3), keepdims=True)).max() > 65_504
    for low_instance_norm in (False, True):  # ONNX Runtime, too, computes them in float32 whatever they are told
        got = run(typed(model, "float16", low_instance_norm=low_instance_norm), x)
        assert np.isfinite(got).all()
        # What is held in float16 is off by 2**-11 of itself.
        np.testing.assert_allclose(got[:, :2], run(model, x)[:, :2], rtol=0.02, atol=0.02)


def test_normalisations_of_two_epsilons_stay_two():
    model = ibn_of((3, 1e-5), (5, 1e-2))
    result = typed(model, "float32")
    assert Counter(found.op_type for found in result.graph.node)["InstanceNormalization"] == 2
    x = floats(2, 4, 8, 6)
    np.testing.assert_allclose(run(result, x), run(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [("n", 4, 6), ("n", 4, 8, 6)])
def test_an_instance_normalisation_of_a_whole_map(shape):
    nodes = [node("InstanceNormalization", "x g o", "y", epsilon=0.1)]
    model = graph_of(nodes, {"g": floats(4), "o": floats(4)}, shape=shape)
    x = floats(3, *shape[1:])
    axes = tuple(range(2, x.ndim))
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axes, keepdims=True)
    g, o = (numpy_helper.to_array(tensor).reshape(-1, *(1,) * len(axes)) for tensor in model.graph.initializer)
    expected = centred / np.sqrt(wide.var(axes, keepdims=True) + 0.1) * g + o
    np.testing.assert_allclose(run(typed(model, "float32"), x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kept", [False, True])
def test_a_normalisation_of_weights_that_float16_does_not_hold_is_float32(kept):
    model = ibn_of((3, 0.1), (5, None if kept else 0.1))
    for tensor in model.graph.initializer:
        if tensor.name == "g0":
            tensor.CopyFrom(numpy_helper.from_array(np.float32([1e5, 1, 1]), "g0"))
    result = typed(model, "float16", low_instance_norm=True)
    types = value_types(result)
    (norm,) = [found for found in result.graph.node if found.op_type == "InstanceNormalization"]
    assert {types[name] for name in (*norm.input, *norm.output)} == {"float32"}
    (relu,) = [found for found in result.graph.node if found.op_type == "Relu"]
    assert types[relu.input[0]] == "float16"
    # It has the same name in float32, from which an untyped parser makes layers that are told these types.
    assert norm.output[0] in value_types(typed(model, "float32"))


def test_a_normalisation_of_computed_weights_is_float32():
    nodes = [CONV, node("Relu", "g", "h"), node("InstanceNormalization", "conv h o", "y")]
    model = graph_of(nodes, {"w": floats(8, 4, 1, 1), "g": floats(8) + 1e5, "o": floats(8)})
    x = floats(2, 4, 8, 6)
    result = typed(model, "float16", low_instance_norm=True)
    np.testing.assert_allclose(run(result, x), run(model, x), rtol=0.02, atol=300)


def attention():
    nodes = [
        CONV,
        node("Reshape", "conv flat", "rows"),
        node("Transpose", "rows", "tokens", perm=[0, 2, 1]),
        node("Add", "tokens place", "placed"),
        node("LayerNormalization", "placed ng no", "normed"),
        node("MatMul", "normed wq", "query"),
        node("MatMul", "normed wk", "key"),
        node("Transpose", "key", "turned", perm=[0, 2, 1]),
        node("MatMul", "query turned", "table"),
        node("Div", "table root", "scaled"),
        node("Softmax", "scaled", "shares"),
        node("MatMul", "shares normed", "attended"),
        node("Add", "placed attended", "sum"),
        node("LayerNormalization", "sum ng no", "last"),
        node("Gather", "last zero", "token", axis=1),
        node("Gemm", "token wo", "y"),
    ]
    weights = {
        "w": floats(8, 4, 1, 1),
        "flat": np.array([0, 8, -1]),
        "place": floats(1, 48, 8),
        "root": np.float32(2.5),
        "ng": floats(8),
        "no": floats(8),
        "wq": floats(8, 8),
        "wk": floats(8, 8),
        "wo": floats(8, 5),
        "zero": np.array(0),
    }
    return graph_of(nodes, weights)


def test_attention_is_low_but_for_its_normalisations_and_its_softmax():
    model = attention()
    result = typed(model)
    kinds = computed_in(result)
    high = {"normed", "shares", "last", "token", "y"}
    assert {name for name, kind in kinds.items() if kind == "float32"} == high
    x = floats(2, 4, 8, 6)
    np.testing.assert_allclose(run(result, x), run(model, x), atol=5e-3)


def test_the_parts_of_a_normalisation_stay_float32_and_a_map_joins_its_shortcut_low():
    nodes = [
        CONV,
        node("ReduceMean", "conv", "mean", axes=[1]),
        node("Sub", "conv mean", "centred"),
        node("Mul", "centred centred", "squares"),
        node("ReduceMean", "squares", "variance", axes=[1]),
        node("Add", "variance tiny", "safe"),
        node("Sqrt", "safe", "deviation"),
        node("Div", "centred deviation", "unit"),
        node("Mul", "unit g", "normed"),
        node("Add", "conv normed", "sum"),
        node("Conv", "sum v", "y"),
    ]
    weights = {"w": floats(8, 4, 1, 1), "v": floats(3, 8, 1, 1), "tiny": np.float32(1e-12), "g": floats(8, 1, 1)}
    result = typed(graph_of(nodes, weights))
    kinds = computed_in(result)
    assert {name for name, kind in kinds.items() if kind == "float16"} == {"conv", "sum", "y"}


def test_pixels_are_float32_up_to_the_first_layer():
    nodes = [node("Div", "x scale", "pixels"), node("Sub", "pixels mean", "centred"), node("Conv", "centred w", "y")]
    weights = {"scale": np.float32(255), "mean": floats(4, 1, 1), "w": floats(3, 4, 3, 3)}
    assert computed_in(typed(graph_of(nodes, weights))) == {"pixels": "float32", "centred": "float32", "y": "float16"}


@pytest.mark.parametrize(("size", "kind"), [(2, "float16"), (5, "float16"), (9, "float32")])
def test_an_average_is_low_over_few_positions_only(size, kind):
    nodes = [CONV, node("AveragePool", "conv", "y", kernel_shape=[size, size])]
    result = typed(graph_of(nodes, {"w": floats(8, 4, 1, 1)}, shape=("n", 4, 16, 16)))
    assert computed_in(result) == {"conv": "float16", "y": kind}


@pytest.mark.parametrize(
    ("weights", "kind", "expected"),
    [
        (np.full((8, 4, 1, 1), 1e5), "float16", "float32"),
        (np.full((8, 4, 1, 1), 1e5), "bfloat16", "bfloat16"),
        (np.full((8, 4, 1, 1), 1e-9), "float16", "float32"),
        (np.full((8, 4, 1, 1), 1e-9), "bfloat16", "bfloat16"),
        (np.zeros((8, 4, 1, 1)), "float16", "float16"),
        (np.concatenate([np.full((4, 4, 1, 1), 1e-9), np.ones((4, 4, 1, 1))]), "float16", "float16"),
    ],
)
def test_a_layer_whose_weights_the_low_type_does_not_hold_is_float32(weights, kind, expected):
    nodes = [node("Conv", "x u", "odd"), node("Conv", "odd v", "y")]
    model = graph_of(nodes, {"u": weights.astype(np.float32), "v": floats(3, 8, 1, 1)})
    assert computed_in(typed(model, kind)) == {"odd": expected, "y": kind}


def test_a_bias_beyond_float16_keeps_its_layer_in_float32():
    model = graph_of([node("Conv", "x w b", "y")], {"w": floats(8, 4, 1, 1), "b": np.full(8, 7e4, np.float32)})
    assert computed_in(typed(model)) == {"y": "float32"}


def test_a_mask_beyond_float16_is_added_in_float32_and_an_infinite_one_is_held():
    for value, kind in ((-3.4e38, "float32"), (-np.inf, "float16")):
        nodes = [
            CONV,
            node("Add", "conv mask", "masked"),
            node("Softmax", "masked", "shares"),
            node("Conv", "shares v", "y"),
        ]
        weights = {"w": floats(8, 4, 1, 1), "v": floats(3, 8, 1, 1), "mask": np.float32(value)}
        assert computed_in(typed(graph_of(nodes, weights)))["masked"] == kind


def test_sizes_of_a_resize_stay_float32():
    nodes = [CONV, node("Resize", "conv  scales".replace("  ", " none "), "big"), node("Relu", "big", "y")]
    nodes[1].input[1] = ""
    weights = {"w": floats(8, 4, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32)}
    result = typed(graph_of(nodes, weights))
    assert computed_in(result) == {"conv": "float16", "big": "float16", "y": "float16"}
    assert value_types(result)["scales"] == "float32"


def test_a_weight_that_many_read_is_converted_once():
    nodes = [node("Conv", "x w", "a"), node("Conv", "a w", "b"), node("Conv", "b w", "y")]
    result = typed(graph_of(nodes, {"w": floats(4, 4, 1, 1)}))
    assert [tensor.data_type for tensor in result.graph.initializer] == [TensorProto.FLOAT16]


def test_a_bfloat16_graph_gets_an_opset_with_bfloat16_layers_where_nothing_else_changes():
    nodes = [CONV, node("Relu", "conv", "y")]
    for opset, expected in ((17, 17), (18, 22), (21, 22), (22, 22)):
        model = graph_of(nodes, {"w": floats(8, 4, 1, 1)}, opset=opset)
        assert typed(model, "bfloat16").opset_import[0].version == expected
        assert typed(model, "float16").opset_import[0].version == opset
    grouped = [CONV, node("GroupNormalization", "conv g g", "y", num_groups=2)]
    model = graph_of(grouped, {"w": floats(8, 4, 1, 1), "g": floats(2)}, opset=18)
    assert typed_graph(model, "bfloat16").opset_import[0].version == 18


def test_what_comes_of_constants_and_sizes_joins_the_maps():
    nodes = [
        CONV,
        node("Shape", "conv", "sizes"),
        node("Expand", "token sizes", "tokens"),
        node("ConstantOfShape", "sizes", "zeros"),
        node("Concat", "conv tokens zeros", "joined", axis=1),
        node("Conv", "joined v", "y"),
    ]
    weights = {"w": floats(8, 4, 1, 1), "token": floats(1, 8, 1, 1), "v": floats(3, 24, 1, 1)}
    kinds = computed_in(typed(graph_of(nodes, weights)))
    assert {name for name, kind in kinds.items() if kind == "float32"} == {"tokens", "zeros"}


def test_inputs_and_outputs_stay_as_they_are_and_so_does_the_model():
    model = graph_of(IBN, ibn_weights())
    before = model.SerializeToString(deterministic=True)
    for kind in ("float32", "float16", "bfloat16"):
        for low_instance_norm in (False, True):
            types = value_types(typed(model, kind, low_instance_norm=low_instance_norm))
            assert types["x"] == types["y"] == "float32"
    assert model.SerializeToString(deterministic=True) == before


def half_graph(element=TensorProto.FLOAT16):
    nodes = [node("Cast", "x", "h", to=element), node("Cast", "h", "y", to=TensorProto.FLOAT)]
    return graph_of(nodes, {})


def test_a_graph_with_types_of_its_own_is_given_back_as_it_is_or_refused():
    half = half_graph()
    assert typed_graph(half, "float16") == half
    for kind in ("float32", "bfloat16"):
        with pytest.raises(ModelError, match=r"types of its own\n  got: float16\n.*\n  to do: ask for float16"):
            typed_graph(half, kind)
    weights = {"scale": np.float32(0.1), "zero": np.int8(0)}
    nodes = [node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "q scale zero", "y")]
    quantized = graph_of(nodes, weights)
    assert typed_graph(quantized, "float32") == quantized
    with pytest.raises(ModelError, match="got: int8"):
        typed_graph(quantized, "float16")


def test_what_has_types_that_cannot_be_told_is_refused_but_in_float32():
    inner = helper.make_graph(
        [node("Relu", "x", "t")], "t", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    )
    branch = helper.make_node("If", ["yes"], ["y"], name="either", then_branch=inner, else_branch=inner)
    odd = node("Odd", "x", "z")
    odd.domain = "com.example"
    unknown = graph_of([node("Relu", "x", "y")], {})
    unknown.opset_import.append(helper.make_opsetid("com.example", 1))
    unknown.graph.node.insert(0, odd)
    unknown.graph.node[1].input[0] = "z"
    double = graph_of([node("Cast", "x", "d", to=11), node("Relu", "d", "e"), node("Cast", "e", "y", to=1)], {})
    for model, message in (
        (graph_of([branch], {"yes": np.array([True])[0]}), "inside If node 'either' cannot be told"),
        (unknown, "type of value 'z' of Odd node 'z' is not known\n  got: com.example"),
        (double, "Value 'd' of Cast node 'd' is float64"),
    ):
        with pytest.raises(ModelError, match=message):
            typed_graph(model, "float16")
        assert typed_graph(model, "float32").graph.node


def torch_network(name):
    """A network of PyTorch's with random weights and statistics, its ONNX graph, and its golden embeddings."""
    import torch

    from reidkit.deploy.network.onnx_layers import onnx_network
    from reidkit.models.model import DeployedModel, build_model

    spec = named_model(name) if isinstance(name, str) else name
    torch.manual_seed(0)
    model = build_model(spec).eval()
    for key, tensor in (*model.named_buffers(), *model.named_parameters()):
        if key.endswith("running_mean"):
            tensor.data.normal_(std=0.1)
        elif key.endswith("running_var"):
            tensor.data.uniform_(0.5, 1.5)
        elif key.endswith("W.1.weight"):
            tensor.data.normal_(std=0.2)
    crops = golden_crops(SPEC, 4)
    with torch.inference_mode():
        expected = DeployedModel(model, SPEC).eval()(torch.from_numpy(crops)).double().numpy()
    tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    return onnx.load_from_string(onnx_network(spec, SPEC, tensors)), crops, expected


def cosine(a, b):
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()


def as_float32(model):
    """A bfloat16 graph whose numbers are rounded but computed with in float32, as ONNX Runtime's CPU kernels need."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            bits = np.frombuffer(tensor.raw_data, "<u2").astype(np.uint32) << 16
            tensor.CopyFrom(numpy_helper.from_array(bits.view(np.float32).reshape(tuple(tensor.dims)), tensor.name))
    for found in result.graph.node:
        for attribute in found.attribute:
            if found.op_type == "Cast" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    return result


SE = ModelSpec(replace(named_model("resnet18-se").backbone, ibn="a"), named_model("sbs-r50-ibn").head)


@pytest.mark.parametrize("name", ["osnet-ain-x0.25", "resnet18-ibn-b", SE])
def test_known_networks_agree_with_pytorch(name):
    model, crops, expected = torch_network(name)
    plain = typed(model, "float32")
    np.testing.assert_allclose(run(plain, crops), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert cosine(run(typed(model), crops), expected) >= 0.9999
    coarse = run(as_float32(typed(model, "bfloat16")), crops)
    assert cosine(coarse, expected) >= 0.995
    assert not np.array_equal(coarse, run(plain, crops))


def test_the_exported_graph_agrees_with_its_golden_embeddings(tiny_bundle):
    model = onnx.load(tiny_bundle / "model.onnx")
    golden = np.load(tiny_bundle / "golden.npz")
    crops, expected = golden["crops"], golden["embeddings"].astype(np.float64)
    for low_instance_norm in (False, True):
        exact = typed(model, "float32", low_instance_norm=low_instance_norm)
        np.testing.assert_allclose(run(exact, crops), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        result = typed(model, "float16", low_instance_norm=low_instance_norm)
        assert cosine(run(result, crops), expected) >= 0.9999
        types = value_types(result)
        makers = {name: found for found in result.graph.node for name in found.output}
        assert {types[found.output[0]] for found in makers.values() if found.op_type in {"Conv", "MaxPool"}} == {
            "float16"
        }
        assert not any(found.op_type in {"BatchNormalization", "Identity"} for found in result.graph.node)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_tensorrt_rtx_builds_the_exported_graph(tiny_bundle, kind):
    data = typed(onnx.load(tiny_bundle / "model.onnx"), kind).SerializeToString()
    assert build(data, (32, 16, 3)) is not None


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_tensorrt_rtx_builds_attention_and_hard_swish(kind):
    model = attention()
    model.graph.node.insert(1, node("HardSwish", "conv", "swished"))
    model.graph.node[2].input[0] = "swished"
    assert build(typed(model, kind).SerializeToString(), (4, 8, 6)) is not None


def build(data, shape):
    trt = pytest.importorskip("tensorrt_rtx")
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(data), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, (1, *shape), (4, *shape), (8, *shape))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return builder.build_serialized_network(network, config)


def test_pairs_of_ours_stay_and_take_the_type_of_their_maps():
    """A weight's step that float16 does not hold stays above 0, and the integers are those of the pair."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    weight[1] *= 1e-9
    steps = (np.abs(weight).max((1, 2, 3)) / 127).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["xq"], "xq"),
        helper.make_node("DequantizeLinear", ["xq", "step", "zero"], ["xd"], "xd"),
        helper.make_node("QuantizeLinear", ["w", "steps", "zeros"], ["wq"], "wq", axis=0),
        helper.make_node("DequantizeLinear", ["wq", "steps", "zeros"], ["wd"], "wd", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["y"], "y"),
        helper.make_node("GlobalAveragePool", ["y"], ["p"], "p"),
        helper.make_node("Flatten", ["p"], ["embeddings"], "embeddings"),
    ]
    constants = {"w": weight, "steps": steps, "zeros": np.zeros(4, np.int8), "zero": np.array(0, np.int8)}
    constants["step"] = np.array(2.0**-6, np.float32)
    graph = helper.make_graph(
        nodes,
        "pairs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    result = typed_graph(model, "float16", rounded_by_us=True)
    onnx.checker.check_model(result, full_check=True)
    assert [node.op_type for node in result.graph.node].count("QuantizeLinear") == 1
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    stored = next(node for node in result.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays)
    integers, scales = arrays[stored.input[0]], arrays[stored.input[1]]
    expected = np.rint(weight / np.maximum(steps, 2.0**-24)[:, None, None, None])
    np.testing.assert_array_equal(integers, expected)
    assert scales.dtype == np.float16
    assert (scales > 0).all()
    assert value_types(result)["y"] == "float16"
    with pytest.raises(ModelError, match="The graph has types of its own"):
        typed_graph(model, "float16")
