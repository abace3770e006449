"""Folding and dropping, held to ONNX Runtime on the graph as it was."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from reidkit.deploy.graph_cleanup import cleaned

RNG = np.random.default_rng(0)


def graph_of(nodes, weights, *, shape=("n", 6, 5, 4), out=None, opset=17, element=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)  # it gives the output a shape
    del model.graph.value_info[:]
    return model


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def norm_weights(channels, prefix="b"):
    values = [floats(channels), floats(channels), floats(channels), RNG.uniform(0.5, 2, channels).astype(np.float32)]
    return {f"{prefix}{i}": part for i, part in enumerate(values)}


def norm(source, result, prefix="b", **attributes):
    return helper.make_node("BatchNormalization", [source, *(f"{prefix}{i}" for i in range(4))], [result], **attributes)


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


def assert_same(model, *, shape=(3, 6, 5, 4), atol=1e-5):
    x = floats(*shape)
    result = cleaned(model)
    onnx.checker.check_model(result, full_check=True)
    np.testing.assert_allclose(run(result, x), run(model, x), rtol=1e-5, atol=atol)
    return result


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("operator", "weight", "attributes"),
    [
        ("Conv", (8, 3, 3, 3), {"group": 2, "strides": [2, 1]}),
        ("ConvTranspose", (6, 4, 3, 3), {"group": 2, "strides": [2, 2]}),
    ],
)
def test_a_batch_norm_is_folded_into_the_convolution_before_it(operator, weight, attributes, bias):
    weights = {"w": floats(*weight), **norm_weights(8), **({"c": floats(8)} if bias else {})}
    conv = helper.make_node(operator, ["x", "w", *(["c"] if bias else [])], ["m"], **attributes)
    result = assert_same(graph_of([conv, norm("m", "y", epsilon=0.01)], weights))
    assert operators(result) == {operator: 1}


@pytest.mark.parametrize("bias", [None, (5,), (1, 5), (1,), ()])
@pytest.mark.parametrize("turned", [0, 1])
def test_a_batch_norm_is_folded_into_a_fully_connected_layer(bias, turned):
    weights = {"w": floats(*((5, 6) if turned else (6, 5))), **norm_weights(5)}
    if bias is not None:
        weights["c"] = floats(*bias) if bias else np.float32(0.7)
    names = ["x", "w", *(["c"] if bias is not None else [])]
    layer = helper.make_node("Gemm", names, ["m"], transB=turned, alpha=0.5, beta=2.0)
    result = assert_same(graph_of([layer, norm("m", "y")], weights, shape=("n", 6)), shape=(3, 6))
    assert operators(result) == {"Gemm": 1}


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_the_batch_norm_of_ibn_is_folded_into_the_convolution_before_the_split(opset):
    sizes = {"split": [3, 5]} if opset == 11 else {}
    weights = {"w": floats(8, 6, 1, 1), **norm_weights(5), "g": floats(3), "o": floats(3)}
    if opset > 11:
        weights["sizes"] = np.array([3, 5])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["m"]),
        helper.make_node("Split", ["m", *(["sizes"] if opset > 11 else [])], ["p", "q"], axis=1, **sizes),
        helper.make_node("InstanceNormalization", ["p", "g", "o"], ["i"]),
        norm("q", "b"),
        helper.make_node("Concat", ["i", "b"], ["y"], axis=1),
    ]
    result = assert_same(graph_of(nodes, weights, opset=opset))
    assert [node.op_type for node in result.graph.node] == ["Conv", "Split", "InstanceNormalization", "Concat"]
    assert list(result.graph.node[-1].input) == ["i", "q"]


def test_a_convolution_that_others_read_keeps_its_weights():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["m"]),
        norm("m", "b"),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    result = assert_same(graph_of(nodes, {"w": floats(8, 6, 1, 1), **norm_weights(8)}))
    assert operators(result) == {"Conv": 1, "Mul": 1, "Add": 2}


def test_a_weight_that_two_convolutions_share_is_folded_for_each_alone():
    weights = {"w": floats(6, 6, 1, 1), **norm_weights(6), **norm_weights(6, "c")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["m"]),
        norm("m", "b"),
        helper.make_node("Conv", ["b", "w"], ["o"]),
        norm("o", "y", "c"),
    ]
    result = assert_same(graph_of(nodes, weights), atol=1e-4)
    assert operators(result) == {"Conv": 2}
    assert "w" not in {tensor.name for tensor in result.graph.initializer}


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5), (3, 6, 5, 4)])
def test_a_batch_norm_with_nothing_before_it_is_a_product_and_a_sum(shape):
    result = assert_same(graph_of([norm("x", "y")], norm_weights(6), shape=("n", *shape[1:])), shape=shape)
    assert [node.op_type for node in result.graph.node] == ["Mul", "Add"]


def test_a_batch_norm_that_moves_nothing_is_a_product():
    weights = {**norm_weights(6), "b1": np.zeros(6, np.float32), "b2": np.zeros(6, np.float32)}
    assert [node.op_type for node in assert_same(graph_of([norm("x", "y")], weights)).graph.node] == ["Mul"]


def test_a_batch_norm_in_training_is_left_alone():
    result = cleaned(graph_of([norm("x", "y", training_mode=1)], norm_weights(6)))
    assert operators(result) == {"BatchNormalization": 1}


def test_what_does_nothing_is_dropped_wherever_it_stands():
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a"], ["b"]),
        helper.make_node("Identity", ["two"], ["also_two"]),
        helper.make_node("Mul", ["b", "also_two"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Add", ["e", "d"], ["f"]),
        helper.make_node("Identity", ["f"], ["y"]),
        helper.make_node("Sigmoid", ["f"], ["unused"]),
    ]
    result = assert_same(graph_of(nodes, {"nobody_reads": floats(3)}))
    assert [node.op_type for node in result.graph.node] == ["Mul", "Relu", "Add"]
    assert [tensor.name for tensor in result.graph.initializer] == ["two"]
    assert list(result.graph.node[-1].output) == ["y"]


@pytest.mark.parametrize("source", ["x", "w"])
def test_an_identity_between_what_has_to_keep_its_name_stays(source):
    model = graph_of([helper.make_node("Identity", [source], ["y"])], {"w": floats(3, 6, 5, 4)})
    assert operators(assert_same(model)) == {"Identity": 1}


def test_dropout_that_is_asked_for_is_left():
    weights = {"ratio": np.float32(0.5), "on": np.array([True])[0]}
    model = graph_of([helper.make_node("Dropout", ["x", "ratio", "on"], ["y"])], weights)
    assert operators(cleaned(model)) == {"Dropout": 1}


def test_what_a_branch_reads_keeps_its_name():
    then = helper.make_graph(
        [helper.make_node("Relu", ["a"], ["t"])], "t", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["o"])], "o", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other),
    ]
    result = assert_same(graph_of(nodes, {"yes": np.array([True])[0]}))
    assert operators(result) == {"Identity": 1, "If": 1}


def test_crops_are_made_float_before_they_are_moved():
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Gather", ["t", "bgr"], ["g"], axis=1),
        helper.make_node("Cast", ["g"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ConstantOfShape", ["sizes"], ["z"]),
        helper.make_node("Transpose", ["z"], ["zt"], perm=[0, 3, 1, 2]),
        helper.make_node("Add", ["f", "zt"], ["y"]),
    ]
    model = graph_of(nodes, {"bgr": np.array([2, 1, 0])}, shape=("n", 5, 4, 3), element=TensorProto.UINT8)
    result = cleaned(model)
    x = RNG.integers(0, 256, (2, 5, 4, 3), np.uint8)
    np.testing.assert_array_equal(run(result, x), run(model, x))
    assert [node.op_type for node in result.graph.node if "x" in node.input] == ["Cast"]
    assert operators(result)["Cast"] == 1


def test_arithmetic_on_bytes_is_left_as_it_is():
    nodes = [
        helper.make_node("Max", ["x", "x"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    model = graph_of(nodes, {}, element=TensorProto.UINT8)
    assert [node.op_type for node in cleaned(model).graph.node] == ["Max", "Cast"]


def test_local_functions_are_written_out():
    body = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], {})
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Twice", ["x"], ["y"], domain="own"))
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert operators(assert_same(model)) == {"Add": 1}


def test_weights_that_an_old_file_lists_as_inputs_are_no_inputs():
    model = graph_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": floats(4, 6, 1, 1)})
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 6, 1, 1)))
    result = cleaned(model)
    assert [value.name for value in result.graph.input] == ["x"]
    assert result.ir_version == 4
    assert len(model.graph.input) == 2
