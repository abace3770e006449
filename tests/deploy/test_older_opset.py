"""Graphs of opset 18 said in opset 17: the same numbers, and what cannot be said is refused."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from reidkit.deploy.older_opset import in_opset_17
from reidkit.errors import ModelError


def graph(nodes, constants=(), *, opset=18):
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in constants],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return x, session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("operator", "by_numpy"), [("ReduceMean", np.mean), ("ReduceMax", np.max), ("ReduceMin", np.min)]
)
@pytest.mark.parametrize("axes", [[2, 3], [-1]])
def test_axes_become_an_attribute(operator, by_numpy, axes):
    model = graph([helper.make_node(operator, ["x", "axes"], ["y"], keepdims=1)], [("axes", axes)])
    older = in_opset_17(model)
    assert [(entry.domain, entry.version) for entry in older.opset_import] == [("", 17)]
    assert list(older.graph.node[0].input) == ["x"]
    assert not older.graph.initializer  # nobody reads the axes any more
    x, got = run(older)
    np.testing.assert_allclose(got, by_numpy(x, axis=tuple(axes), keepdims=True), rtol=1e-5, atol=1e-6)
    assert model.graph.node[0].input[1] == "axes"  # what was given stays as it was


def test_without_axes_everything_is_reduced():
    older = in_opset_17(graph([helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)]))
    x, got = run(older)
    np.testing.assert_allclose(got, x.mean(), rtol=1e-5)


def test_the_axes_of_a_sum_stay_an_input():
    older = in_opset_17(graph([helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)], [("axes", [1])]))
    assert list(older.graph.node[0].input) == ["x", "axes"]
    x, got = run(older)
    np.testing.assert_allclose(got, x.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-5)


def test_a_split_states_its_sizes():
    older = in_opset_17(graph([helper.make_node("Split", ["x"], ["y", "z"], axis=3, num_outputs=2)]))
    assert [attribute.name for attribute in older.graph.node[0].attribute] == ["axis"]
    x, got = run(older)
    np.testing.assert_array_equal(got, x[..., :3])  # of five, three and two


def test_an_older_graph_is_copied_as_it_is():
    model = graph([helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3])], opset=13)
    assert in_opset_17(model).SerializeToString() == model.SerializeToString()


def test_empty_axes_that_mean_nothing_are_refused():
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="none", noop_with_empty_axes=1)
    with pytest.raises(ModelError, match="none reduces over nothing"):
        in_opset_17(graph([node], [("axes", [])]))


@pytest.mark.parametrize(
    ("nodes", "opset", "why"),
    [
        ([helper.make_node("Relu", ["x"], ["y"])], 19, "the graph is of opset 19"),
        ([helper.make_node("ReduceMean", ["x", "x"], ["y"], name="mean")], 18, "the axes of mean are computed"),
        (
            [helper.make_node("ReduceMean", ["x"], ["y"], name="none", noop_with_empty_axes=1)],
            18,
            "none reduces over nothing",
        ),
        (
            [helper.make_node("Split", ["x"], ["y", "z"], name="cut", num_outputs=2)],
            18,
            "cut counts its parts, of a size that is not known",
        ),
        ([helper.make_node("Mish", ["x"], ["y"])], 18, "it has Mish"),
        (
            [
                helper.make_node(
                    "Loop",
                    ["", "", "x"],
                    ["y"],
                    name="loop",
                    body=helper.make_graph(
                        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Relu", ["v"], ["w"])],
                        "body",
                        [
                            helper.make_tensor_value_info("i", TensorProto.INT64, []),
                            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
                        ],
                        [
                            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
                            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
                        ],
                    ),
                )
            ],
            18,
            "loop holds a graph of its own",
        ),
    ],
)
def test_what_cannot_be_said_is_refused(nodes, opset, why):
    with pytest.raises(ModelError) as error:
        in_opset_17(graph(nodes, opset=opset))
    assert str(error.value) == (
        "The graph cannot be said in opset 17, the newest that this parser reads\n"
        f"  got: {why}\n"
        "  to do: build it with --via network, with a newer TensorRT, or from a graph of opset 17 or older"
    )
