"""Walking in a graph, on one small enough to read."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from reidkit.deploy.graph_links import Links, attribute, drop_unused, free_name, split_sizes, value_table

FLOAT = TensorProto.FLOAT


def model_of(nodes, weights, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 7, 4])],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_sizes_that_depend_on_the_batch_are_known_once_it_is():
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"], end=1),
        helper.make_node("Concat", ["sizes", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
    ]
    model = model_of(nodes, {"rest": np.array([-1, 2])})
    assert value_table(model)["x"].shape == (None, 7, 4)
    table = value_table(model, batch=3)
    assert table["y"].shape == (3, 14, 2)
    assert table["y"].element == FLOAT
    assert table["sizes"].element == TensorProto.INT64
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 0


def test_links_of_a_small_graph():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Mul", ["a", "w"], ["b"]),
        helper.make_node("Add", ["b", "b"], ["y"]),
    ]
    links = Links(model_of(nodes, {"w": np.ones(4, np.float32)}).graph)
    assert links.makers["b"].op_type == "Mul"
    assert links.only_read_by_one("a")
    assert not links.only_read_by_one("b")  # twice
    assert not links.only_read_by_one("y")  # an output
    np.testing.assert_array_equal(links.array("w"), np.ones(4))
    assert links.array("a") is None
    assert links.add_constant(np.zeros(2, np.float32), "w") == "w_"
    assert [tensor.name for tensor in links.graph.initializer] == ["w", "w_"]


@pytest.mark.parametrize(
    ("names", "attributes", "expected"),
    [
        (["x"], {"num_outputs": 2}, [4, 3]),
        (["x"], {"split": [5, 2]}, [5, 2]),
        (["x", "w"], {}, [1, 6]),
        (["x", "computed"], {}, None),
    ],
)
def test_sizes_of_a_split_in_every_spelling(names, attributes, expected):
    node = helper.make_node("Split", names, ["a", "b"], axis=1, **attributes)
    links = Links(model_of([node], {"w": np.array([1, 6])}, outputs=("a", "b")).graph)
    assert split_sizes(node, links, 7) == expected
    if "num_outputs" in attributes:
        assert split_sizes(node, links, None) is None


def test_what_no_output_needs_is_dropped():
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["y"]),
        helper.make_node("Relu", ["x"], ["dead"]),
        helper.make_node("Add", ["dead", "v"], ["deader"]),
    ]
    graph = model_of(nodes, {"w": np.ones(4, np.float32), "v": np.ones(4, np.float32)}).graph
    drop_unused(graph)
    assert [node.op_type for node in graph.node] == ["Mul"]
    assert [tensor.name for tensor in graph.initializer] == ["w"]


def test_attributes_and_names():
    node = helper.make_node("Split", ["x"], ["a"], axis=1)
    assert attribute(node, "axis") == 1
    assert attribute(node, "split") is None
    taken = {"a", "a_"}
    assert free_name("a", taken) == "a__"
    assert "a__" in taken
