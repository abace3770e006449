"""Graphs that say where they are rounded: integers by hand, numbers by NumPy in float64, engines by each other."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper

from known_networks import CASES, draw_model
from numpy_layers import convolve, instance_norm, sigmoid
from quick_networks import narrow_resnets
from reidkit.calibration import Range
from reidkit.deploy.graph_cleanup import cleaned
from reidkit.deploy.network.onnx_layers import onnx_network
from reidkit.deploy.quantize.emit import quantized_graph
from reidkit.deploy.quantize.placement import place
from reidkit.errors import ModelError
from reidkit.runtime.flavour import open_flavour
from reidkit.runtime.openvino_core import CORE
from rounded_graphs import (
    constants,
    emitted,
    graph,
    node,
    on_signed_grid,
    on_unsigned_grid,
    reader,
    run,
    source,
    step_of,
    table_for,
)

RNG = np.random.default_rng(0)
KINDS = ["cpu", "tensorrt"]


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = floats(3, 4, 6, 5)


def pooled(value):
    return [node("ReduceMean", [value], "y", axes=[2, 3], keepdims=0)]


def through_openvino(model, feeds):
    compiled = CORE.compile_model(
        CORE.read_model(model.SerializeToString(), b""),
        "CPU",
        {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"},
    )
    return [compiled(dict(feeds))[place_].copy() for place_ in range(len(model.graph.output))]


def agree(model, feeds, kind, *, steps):
    """Every engine that a graph is for gives what the graph says, to a number of steps."""
    plain = run(model, feeds)
    others = [run(model, feeds, optimized=True), *([through_openvino(model, feeds)] if kind == "cpu" else [])]
    for other in others:
        for one, two in zip(plain, other, strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=steps)
    return plain


def built_by_tensorrt(model, shapes):
    """Whether TensorRT-RTX takes a graph, typed strongly: its parser's errors, or the engine."""
    pytest.importorskip("tensorrt_rtx")
    flavour = open_flavour("tensorrt-rtx")
    log = flavour.log()
    builder = flavour.trt.Builder(log)
    network = flavour.network(builder)
    parser = flavour.parser(network, log)
    data = model.SerializeToString()
    if not parser.parse(data):
        return [str(parser.get_error(i)) for i in range(parser.num_errors)]
    if shapes is None:
        return network.num_layers
    config = flavour.config(builder, "float32", (), None)
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, *((rows, *shape) for rows in (1, 2, 2)))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, log.errors
    return bytes(engine)


# By hand


def one_layer(bias=True, *, weight=((1.0,), (-0.5,))):
    rows = np.array(weight, np.float32)[..., None, None]
    nodes = [node("Conv", ["x", "c.weight", *(["c.bias"] if bias else [])], "a"), *pooled("a")]
    weights = {"c.weight": rows, **({"c.bias": np.array([0.3, -1.0], np.float32)} if bias else {})}
    return graph(nodes, weights, inputs={"x": ("n", 1, 2, 2)}, outputs=("y", "a"))


RAMP = np.array([[[[-1.0, 1.55], [0.0, 0.5]]]], np.float32)


def test_integers_by_hand_for_processors():
    model = one_layer()
    result = emitted(model, table_for(model, {"x": RAMP}), "cpu")
    held = constants(result)
    assert (held["x_step"], held["x_zero"]) == (np.float32(0.01), np.uint8(100))
    assert held["c.weight_int8"].ravel().tolist() == [127, -127]
    np.testing.assert_allclose(held["c.weight_step"], [1 / 127, 0.5 / 127], rtol=1e-6)
    assert held["c.bias_int32"].tolist() == [round(0.3 * 127 / 0.01), round(-1.0 * 127 / 0.005)]
    assert held["c.bias_int32"].dtype == np.int32
    np.testing.assert_allclose(held["c.bias_step"], [0.01 / 127, 0.005 / 127], rtol=1e-6)
    assert not {"c.weight", "c.bias"} & held.keys()
    conv = reader(result, "Conv")
    assert [source(result, name) for name in conv.input] == [
        ["DequantizeLinear", "QuantizeLinear"], ["DequantizeLinear"], ["DequantizeLinear"]
    ]  # fmt: skip


def test_weights_for_tensorrt_stay_float_behind_a_pair():
    model = one_layer()
    result = emitted(model, table_for(model, {"x": RAMP}), "tensorrt")
    held = constants(result)
    assert held["x_zero"].dtype == np.int8
    assert held["c.weight"].ravel().tolist() == [1.0, -0.5]
    conv = reader(result, "Conv")
    assert [source(result, name) for name in conv.input] == [
        ["DequantizeLinear", "QuantizeLinear"], ["DequantizeLinear", "QuantizeLinear"], []
    ]  # fmt: skip
    pairs = [found for found in result.graph.node if found.input[0] == "c.weight"]
    assert [helper.get_attribute_value(found.attribute[0]) for found in pairs] == [0]
    assert held["c.weight_step"].shape == (2,)


def test_a_layer_without_bias_gets_none():
    model = one_layer(bias=False)
    for kind in KINDS:
        result = emitted(model, table_for(model, {"x": RAMP}), kind)
        assert len(reader(result, "Conv").input) == 2
        assert not any("bias" in name or "int32" in name for name in constants(result))


def test_a_bias_that_int32_would_not_hold_makes_the_steps_of_its_weights_wider():
    model = one_layer(weight=((1.0,), (1e-12,)))
    table = table_for(model, {"x": RAMP})
    result = emitted(model, table, "cpu")
    held = constants(result)
    assert np.abs(held["c.bias_int32"].astype(np.int64)).max() <= 2**30 * 1.000001
    assert held["c.weight_step"][1] > 1e-11  # of 1e-12 / 127
    assert held["c.weight_int8"].ravel().tolist() == [127, 0]
    y, _ = agree(result, {"x": RAMP}, "cpu", steps=1.01 * step_of(table.ranges["a"]))
    np.testing.assert_allclose(y[0, 1], -1.0, atol=step_of(table.ranges["a"]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_was_only_0_and_weights_that_are(kind):
    model = one_layer(weight=((1.0,), (0.0,)))
    nothing = {"x": np.zeros((2, 1, 2, 2), np.float32)}
    table = table_for(model, nothing, ranges={"a": Range(0.0, 0.0)} if kind == "cpu" else {})
    result = emitted(model, table, kind)
    assert constants(result)["x_step"] == 1
    y, _ = agree(result, nothing, kind, steps=1)
    assert np.isfinite(y).all()
    if kind == "tensorrt":
        np.testing.assert_allclose(y, [[0.3, -1.0]] * 2)


# Against NumPy


class Rounding:
    """What rounding makes of values and weights, by the formula."""

    def __init__(self, kind, table):
        self.kind, self.table = kind, table

    def __call__(self, values, name):
        ends = self.table.ranges[name]
        if self.kind == "cpu":
            return on_unsigned_grid(values, ends)
        return on_signed_grid(values, max(-ends.low, ends.high))

    def for_processors(self, values, name):
        return self(values, name) if self.kind == "cpu" else values

    def for_tensorrt(self, values, name):
        return self(values, name) if self.kind == "tensorrt" else values

    def weight(self, weight):
        rows = weight.astype(np.float64)
        if self.kind == "tensorrt":
            return np.stack([on_signed_grid(row, np.abs(row).max()) for row in rows])
        steps = np.abs(rows).max(tuple(range(1, rows.ndim)), keepdims=True) / 127
        return np.rint(rows / steps) * steps

    def bias(self, bias, weight, source):
        """Whole steps of input times weight on processors, float elsewhere."""
        values = bias.astype(np.float64)
        peaks = np.abs(weight.astype(np.float64)).reshape(len(weight), -1).max(1)
        steps = step_of(self.table.ranges[source]) * peaks / 127
        return np.rint(values / steps) * steps if self.kind == "cpu" else values


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_block_computes_what_numpy_says(kind):
    """Stem, ReLU, pooling, a block with a sum, and a float tail."""
    nodes = [
        node("Conv", ["x", "w0", "b0"], "s", pads=[1, 1, 1, 1]),
        node("Relu", ["s"], "a"),
        node("MaxPool", ["a"], "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w1", "b1"], "c", pads=[1, 1, 1, 1]),
        node("Add", ["c", "p"], "d"),
        node("Relu", ["d"], "e"),
        node("Conv", ["e", "w2", "b2"], "f"),
        *pooled("f"),
    ]
    weights = {"w0": floats(6, 4, 3, 3), "w1": floats(6, 6, 3, 3) / 5, "w2": floats(5, 6, 1, 1)}
    biases = {f"b{i}": floats(len(weights[f"w{i}"])) for i in range(3)}
    model = graph(nodes, {**weights, **biases})
    table = table_for(model, {"x": X})
    result, grid = emitted(model, table, kind), Rounding(kind, table)
    low = {name: grid.weight(weight) for name, weight in weights.items()}
    bias = {f"b{i}": grid.bias(biases[f"b{i}"], weights[f"w{i}"], name) for i, name in enumerate("xae")}
    s = np.maximum(convolve(grid(X.astype(np.float64), "x"), low["w0"], bias["b0"], padding=1), 0)
    a = grid.for_processors(s, "a")
    p = grid.for_tensorrt(a[:, :, :, :4].reshape(3, 6, 3, 2, 2, 2).max((3, 5)), "p")
    c = grid.for_processors(convolve(p, low["w1"], bias["b1"], padding=1), "c")
    e = grid(np.maximum(c + p, 0), "e")
    f = grid.for_processors(convolve(e, low["w2"], bias["b2"]), "f")
    got_f, got_p = run(result, {"x": X}, "f_rounded" if kind == "cpu" else "f", "p_rounded")
    np.testing.assert_allclose(got_p, p, atol=1e-5)
    np.testing.assert_allclose(got_f, f, atol=1e-5)
    (y,) = agree(result, {"x": X}, kind, steps=1.5 * step_of(table.ranges["f"]))
    np.testing.assert_allclose(y, f.mean((2, 3)), atol=1e-5)
    if kind == "cpu":
        assert constants(result)["p_step"] == constants(result)["a_step"]  # what is moved stays on its grid


@pytest.mark.parametrize("kind", KINDS)
def test_ibn_computes_what_numpy_says(kind):
    nodes = [
        node("Conv", ["x", "w0", "b0"], "a"),
        helper.make_node("Split", ["a", "sizes"], ["i", "r"], "split", axis=1),
        node("InstanceNormalization", ["i", "n.weight", "n.bias"], "n"),
        node("Concat", ["n", "r"], "c", axis=1),
        node("Relu", ["c"], "d"),
        node("Conv", ["d", "w1", "b1"], "e"),
        *pooled("e"),
    ]
    weights = {"w0": floats(6, 4, 1, 1), "w1": floats(5, 6, 1, 1), "b0": floats(6), "b1": floats(5)}
    norm = {"n.weight": floats(3), "n.bias": floats(3)}
    model = graph(nodes, {**weights, **norm, "sizes": np.array([3, 3])})
    table = table_for(model, {"x": X})
    result, grid = emitted(model, table, kind), Rounding(kind, table)
    b0, b1 = (grid.bias(weights[f"b{i}"], weights[f"w{i}"], name) for i, name in enumerate("xd"))
    a = convolve(grid(X.astype(np.float64), "x"), grid.weight(weights["w0"]), b0)
    a = grid.for_processors(a, "a")
    d = grid(np.maximum(np.concatenate([instance_norm(norm, "n", a[:, :3]), a[:, 3:]], axis=1), 0), "d")
    e = grid.for_processors(convolve(d, grid.weight(weights["w1"]), b1), "e")
    got_d, got_e = run(result, {"x": X}, "d_rounded", "e_rounded" if kind == "cpu" else "e")
    np.testing.assert_allclose(got_d, d, atol=1e-5)
    np.testing.assert_allclose(got_e, e, atol=1e-5)
    (y,) = agree(result, {"x": X}, kind, steps=2 * step_of(table.ranges["e"]))
    np.testing.assert_allclose(y, e.mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_are_float_and_grouped_layers_are_rounded(kind):
    nodes = [
        node("Conv", ["x", "w0"], "a", group=4, pads=[1, 1, 1, 1], strides=[2, 2]),
        node("GlobalAveragePool", ["a"], "g"),
        node("Conv", ["g", "w1", "b1"], "h"),
        node("Sigmoid", ["h"], "t"),
        node("Mul", ["a", "t"], "m"),
        node("Conv", ["m", "w2"], "f"),
        node("Clip", ["f", "lo", "hi"], "r"),
        *pooled("r"),
    ]
    weights = {"w0": floats(4, 1, 3, 3), "w1": floats(4, 4, 1, 1), "b1": floats(4), "w2": floats(5, 4, 1, 1)}
    model = graph(nodes, {**weights, "lo": np.float32(0), "hi": np.float32(1.5)})
    table = table_for(model, {"x": X})
    result, grid = emitted(model, table, kind), Rounding(kind, table)
    w0, w2 = grid.weight(weights["w0"]), grid.weight(weights["w2"])
    a = grid.for_processors(convolve(grid(X.astype(np.float64), "x"), w0, stride=2, padding=1), "a")
    t = sigmoid(convolve(a.mean((2, 3), keepdims=True), weights["w1"].astype(np.float64), weights["b1"]))
    r = grid.for_processors(np.clip(convolve(grid(a * t, "m"), w2), 0, 1.5), "r")
    (y,) = agree(result, {"x": X}, kind, steps=2 * step_of(table.ranges["r"]))
    np.testing.assert_allclose(y, r.mean((2, 3)), atol=1e-5)
    assert constants(result)["w1"].tolist() == weights["w1"].tolist()
    assert source(result, reader(result, "Sigmoid").input[0]) == ["Conv"]
    if kind == "cpu":
        assert source(result, reader(result, "Clip").input[0]) == ["Conv"]  # rounded once, behind it


@pytest.mark.parametrize("kind", KINDS)
def test_products_over_positions(kind):
    x = floats(3, 7, 4)
    nodes = [
        node("MatMul", ["x", "w0"], "a"),
        node("Add", ["a", "b0"], "b"),
        node("Relu", ["b"], "r"),
        node("MatMul", ["r", "w1"], "d"),
        node("Add", ["d", "b1"], "e"),
        node("ReduceMean", ["e"], "y", axes=[1], keepdims=0),
    ]
    weights = {"w0": floats(4, 6), "w1": floats(6, 3), "b0": floats(6), "b1": floats(3)}
    model = graph(nodes, weights, inputs={"x": ("n", 7, 4)})
    table = table_for(model, {"x": x})
    result, grid = emitted(model, table, kind), Rounding(kind, table)
    w0, w1 = (grid.weight(weights[name].T).T for name in ("w0", "w1"))
    a = grid.for_processors(grid(x.astype(np.float64), "x") @ w0, "a")
    d = grid.for_processors(grid(np.maximum(a + weights["b0"], 0), "r") @ w1, "d")
    (y,) = agree(result, {"x": x}, kind, steps=2 * step_of(table.ranges["d"]))
    np.testing.assert_allclose(y, d.mean(1) + weights["b1"], atol=1e-5)
    assert reader(result, "Add").input[1] == "b0"  # float: the result before it is rounded


# Who reads what


def test_who_reads_a_rounded_value_and_what_is_given_out_stays_float():
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Conv", ["a", "v"], "b"),
        node("Mul", ["a", "a"], "m"),
        node("ReduceMean", ["m"], "y", axes=[2, 3], keepdims=0),
        node("ReduceMean", ["b"], "z", axes=[2, 3], keepdims=0),
    ]
    model = graph(nodes, {"w": floats(4, 4, 1, 1), "v": floats(4, 4, 1, 1)}, outputs=("y", "a", "z"))
    table = table_for(model, {"x": X})
    processors = emitted(model, table, "cpu")
    assert list(reader(processors, "Mul").input) == ["a_rounded", "a_rounded"]
    assert list(reader(processors, "ReduceMean", 1).input) == ["b_rounded"]
    card = emitted(model, table, "tensorrt")
    assert list(reader(card, "Mul").input) == ["a", "a"]
    assert reader(card, "Conv", 1).input[0] == "a_rounded"
    for result in (processors, card):
        assert [value.name for value in result.graph.output] == ["y", "a", "z"]
        (a,) = run(result, {"x": X}, "a")
        assert np.abs(a / table.ranges["a"].high - on_unsigned_grid(a, table.ranges["a"])).max() > 0


def test_of_a_sum_tensorrt_rounds_what_comes_past_alone():
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Relu", ["a"], "b"),
        node("Conv", ["b", "v"], "c"),
        node("Add", ["c", "b"], "d"),
        node("Add", ["d", "b"], "e"),
        *pooled("e"),
    ]
    model = graph(nodes, {"w": floats(4, 4, 1, 1), "v": floats(4, 4, 1, 1)})
    result = emitted(model, table_for(model, {"x": X}), "tensorrt")
    assert list(reader(result, "Add", 0).input) == ["c", "b_rounded"]
    assert list(reader(result, "Add", 1).input) == ["d", "b"]


def shared(bias):
    """Weights that two layers share, with biases of their own where one is large."""
    nodes = [
        node("Conv", ["x", "w", *(["b0"] if bias else [])], "a"),
        node("Conv", ["a", "w", *(["b1"] if bias else [])], "b"),
        *pooled("b"),
    ]
    biases = {"b0": floats(4), "b1": floats(4) * 1e9} if bias else {}
    return graph(nodes, {"w": floats(4, 4, 1, 1) / 4, **biases})


@pytest.mark.parametrize("kind", KINDS)
def test_shared_weights(kind):
    model = shared(bias=False)
    table = table_for(model, {"x": X})
    result = emitted(model, table, kind)
    # ONNX Runtime in its exact mode, which `run` asks for, opens no graph whose integers are shared.
    assert reader(result, "Conv", 0).input[1] != reader(result, "Conv", 1).input[1]
    assert (constants(result)["w_step"] == constants(result)["w_step_"]).all()
    agree(result, {"x": X}, kind, steps=1.5 * step_of(table.ranges["b"]))


def test_shared_weights_where_a_bias_wants_wider_steps():
    model = shared(bias=True)
    result = emitted(model, table_for(model, {"x": X}), "cpu")
    held = constants(result)
    assert (held["w_step_"] >= held["w_step"]).all()
    assert (
        max(np.abs(values.astype(np.int64)).max() for name, values in held.items() if "int32" in name)
        <= 2**30 * 1.000001
    )


def test_what_stays_float_is_not_touched():
    model = shared(bias=False)
    model.graph.node[1].input[1] = "v"
    model.graph.initializer.append(onnx.numpy_helper.from_array(floats(4, 4, 1, 1), "v"))
    table = table_for(model, {"x": X})
    result = emitted(model, table, "cpu", floats=["v"])
    assert [source(result, name) for name in reader(result, "Conv", 1).input] == [
        ["DequantizeLinear", "QuantizeLinear", "Conv"], []
    ]  # fmt: skip
    assert source(result, reader(result, "ReduceMean").input[0]) == ["Conv"]


def test_the_model_that_is_given_stays_as_it_was():
    model = shared(bias=True)
    before = model.SerializeToString(deterministic=True)
    table = table_for(model, {"x": X})
    first, second = (
        quantized_graph(model, place(model, "cpu"), table).SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second
    assert model.SerializeToString(deterministic=True) == before


# What does not fit


def without(table, what, name):
    values = {key: value for key, value in getattr(table, what).items() if key != name}
    return type(table)(table.graph, table.placement, table.method, **{
        "ranges": table.ranges, "scales": table.scales, what: values
    })  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_lacks_a_range(kind):
    model = shared(bias=False)
    table = without(table_for(model, {"x": X}), "ranges", "a")
    with pytest.raises(ModelError) as caught:
        quantized_graph(model, place(model, kind), table)
    assert str(caught.value) == (
        f"The table has no range for value 'a'\n  expected: {3 if kind == 'cpu' else 2} ranges, of this graph\n"
        "  to do: quantise the bundle again with pictures"
    )


@pytest.mark.parametrize(("steps", "got"), [((0.5, 0.5), "2 steps"), (None, "0 steps")])
def test_a_table_of_other_steps(steps, got):
    model = shared(bias=False)
    table = without(table_for(model, {"x": X}), "scales", "w")
    if steps is not None:
        table = type(table)(table.graph, table.placement, table.method, table.ranges, {"w": steps})
    with pytest.raises(ModelError) as caught:
        quantized_graph(model, place(model, "cpu"), table)
    assert str(caught.value) == (
        f"The table does not fit layer w\n  got: {got}\n  expected: 4, one an output\n"
        "  to do: quantise the bundle again with pictures"
    )


# Whole networks


def known_graph(case):
    spec, input_ = CASES[case]
    with narrow_resnets():
        tensors = {name: tensor.numpy() for name, tensor in draw_model(spec).state_dict().items()}
        model = cleaned(onnx.load_from_string(onnx_network(spec, input_, tensors)))
    crops = RNG.integers(0, 256, (3, input_.height, input_.width, 3), dtype=np.uint8)
    return model, {"crops": crops}


def likeness(one, two):
    """The least cosine of two embeddings of one crop."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return float(((one * two).sum(1) / norms).min())


def test_a_resnet_with_ibn_in_every_engine():
    model, crops = known_graph("r18-ibn-a")
    table = table_for(model, crops)
    (truth,) = run(model, crops)
    processors = emitted(model, table, "cpu")
    results = [
        *run(processors, crops),
        *run(processors, crops, optimized=True),
        *through_openvino(processors, crops),
        *run(emitted(model, table, "tensorrt"), crops),
    ]
    assert [likeness(got, truth) > 0.999 for got in results] == [True] * 4
    assert likeness(results[0], truth) < 0.9999999  # it is rounded
    assert Counter(found.op_type for found in processors.graph.node)["QuantizeLinear"] == 53


@pytest.mark.parametrize(
    ("case", "end"),
    [("mgn", None), ("r50-se-nl", "Add_10"), ("osnet-ain", "Add_2")],  # MGN has all of a ResNet-18 IBN-a
)
def test_tensorrt_parses_and_builds_what_is_emitted(case, end):
    """Whole networks are parsed; of the deep ones the first blocks are built, which takes a tenth of the time."""
    model, crops = known_graph(case)
    table = table_for(model, crops)
    whole = emitted(model, table, "tensorrt")
    assert isinstance(built_by_tensorrt(whole, None), int)
    if end is not None:
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info(end, 1, ["n", None, None, None]))
        whole = emitted(cleaned(model), table, "tensorrt")
        assert (
            {"InstanceNormalization"}
            if case == "osnet-ain"
            else {"Sigmoid", "MatMul"} <= {found.op_type for found in whole.graph.node}
        )
    shape = crops["crops"].shape[1:]
    assert len(built_by_tensorrt(whole, {"crops": shape})) > 10_000


def test_tensorrt_refuses_the_graph_for_processors():
    """Which is why there are two."""
    model = one_layer()
    (reason,) = built_by_tensorrt(emitted(model, table_for(model, {"x": RAMP}), "cpu"), None)
    assert "Non-zero zero point is not supported" in reason
