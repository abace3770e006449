"""The same numbers to the bit, held to ONNX Runtime on the graph as it was."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from known_networks import CASES, draw_model
from quick_networks import narrow_resnets
from reidkit.deploy.graph_cleanup import cleaned
from reidkit.deploy.graph_links import copied
from reidkit.deploy.network.onnx_layers import onnx_network
from reidkit.deploy.quantize.pixel_rows import arithmetic_in_rows

HEIGHT, WIDTH = 4, 5
CROPS = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
WEIGHTS = {
    "factor": np.array([0.5, 2, 3], np.float32).reshape(1, 3, 1, 1),
    "offset": np.array([-1, 0.3, 7], np.float32).reshape(3, 1, 1),
    "two": np.float32(2),
    "four": np.full((1, 1, 1, 1), 4, np.float32),
    "deep": np.full((1, 1, 1, 1, 1), 4, np.float32),
    "green": np.array(1),
    "by_first": np.array([0.5, 2, 3], np.float32).reshape(3, 1, 1, 1),
    "back": np.array([-1, 3, HEIGHT, WIDTH]),
    "one_channel": np.array([-1, 1, HEIGHT, WIDTH]),
    "begin": np.array([0]),
    "all": np.array([3]),
    "third_last": np.array([-3]),
    "last_axis": np.array([-1]),
    "row": np.linspace(0, 1, WIDTH, dtype=np.float32),
    "last": np.array([0.1, 5, -2], np.float32),
    "bgr": np.array([2, 1, 0]),
    "turned_round": np.array([1, 2, 0]),
    "twice_red": np.array([0, 0, 1]),
    "start": np.array([-1]),
    "end": np.array([-(2**63)]),
    "axis": np.array([1]),
    "step": np.array([-1]),
    "w": np.random.default_rng(1).normal(size=(2, 3, 1, 1)).astype(np.float32),
}
CAST, TURN = ("Cast", "crops", "floats"), ("Transpose", "floats", "turned")


def graph_of(*nodes, size=("n", HEIGHT, WIDTH, 3), outputs=("y",), perm=(0, 3, 1, 2), axis=1):
    """Nodes as (operator, inputs, result), in a row, and a convolution of what the last makes.

    A Reverse is a Transpose that leaves out `perm`.
    """
    options = {
        "Cast": {"to": TensorProto.FLOAT},
        "Transpose": {"perm": perm},
        "Gather": {"axis": axis},
        "Concat": {"axis": 1},
    }
    made = [
        helper.make_node(
            "Transpose" if operator == "Reverse" else operator,
            inputs.split(),
            [result],
            result,
            **options.get(operator, {}),
        )
        for operator, inputs, result in (*nodes, ("Conv", f"{nodes[-1][2]} w", "y"))
    ]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, size)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in WEIGHTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    types = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
    del model.graph.output[:]
    model.graph.output.extend(types[name] for name in outputs)
    return model


def run(model, crops=CROPS):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"crops": crops})


def moved(model, crops=CROPS):
    """What becomes of a graph; it computes the same to the bit."""
    result = copied(model)
    arithmetic_in_rows(result.graph)
    onnx.checker.check_model(result, full_check=True)
    for one, two in zip(run(model, crops), run(result, crops), strict=True):
        np.testing.assert_array_equal(one, two)
    return [node.op_type for node in result.graph.node]


@pytest.mark.parametrize("size", [("n", HEIGHT, WIDTH, 3), (3, HEIGHT, WIDTH, 3)])
def test_arithmetic_comes_before_the_turn(size):
    chain = [("Mul", "turned factor", "a"), ("Sub", "offset a", "b"), ("Div", "b two", "c"), ("Add", "four c", "d")]
    operators = moved(graph_of(CAST, TURN, *chain, size=size))
    assert operators == ["Cast", "Reshape", "Mul", "Sub", "Div", "Add", "Reshape", "Transpose", "Conv"]


def test_what_others_read_stays_where_it_is():
    chain = [("Mul", "turned factor", "a"), ("Add", "a offset", "b"), ("Mul", "b two", "c")]
    operators = moved(graph_of(CAST, TURN, *chain, outputs=("y", "b")))
    assert operators == ["Cast", "Reshape", "Mul", "Add", "Reshape", "Transpose", "Mul", "Conv"]


def test_whoever_asks_for_sizes_is_in_nobodys_way():
    asks = [("Shape", "floats", "sizes"), ("Shape", "crops", "others")]
    operators = moved(graph_of(CAST, *asks, TURN, ("Mul", "turned factor", "a"), outputs=("y", "sizes", "others")))
    assert operators == ["Cast", "Reshape", "Mul", "Reshape", "Transpose", "Shape", "Shape", "Conv"]


def test_a_turn_that_swaps_height_and_width():
    operators = moved(graph_of(CAST, TURN, ("Mul", "turned factor", "a"), perm=(0, 3, 2, 1)))
    assert operators == ["Cast", "Reshape", "Mul", "Reshape", "Transpose", "Conv"]


@pytest.mark.parametrize(
    "swap",
    [
        ("Gather", "turned bgr", "a"),
        ("Gather", "turned turned_round", "a"),
        ("Slice", "turned start end axis step", "a"),
    ],
)
def test_channels_in_another_order_keep_their_numbers(swap):
    operators = moved(graph_of(CAST, TURN, swap, ("Mul", "a factor", "b"), ("Add", "b offset", "c")))
    assert operators == ["Cast", "Reshape", "Mul", "Add", "Reshape", "Transpose", swap[0], "Conv"]


def test_axes_are_counted_from_the_end_too():
    chain = [("Gather", "turned bgr", "a"), ("Slice", "a start end third_last step", "b"), ("Mul", "b factor", "c")]
    operators = moved(graph_of(CAST, TURN, *chain, axis=-3))
    assert operators == ["Cast", "Reshape", "Mul", "Reshape", "Transpose", "Gather", "Slice", "Conv"]


def test_a_turn_without_an_order_is_the_other_way_round():
    chain = [("Reverse", "floats", "a"), ("Mul", "a by_first", "b"), ("Reverse", "b", "c"), ("Transpose", "c", "d")]
    operators = moved(graph_of(CAST, *chain))
    assert operators == ["Cast", "Reshape", "Mul", "Reshape", "Transpose", "Transpose", "Transpose", "Conv"]


def test_names_that_a_network_has_already():
    moved(graph_of(CAST, TURN, ("Mul", "turned factor", "rows"), ("Add", "rows offset", "pixels")))


def test_operators_of_others_are_not_known():
    model = graph_of(CAST, TURN, ("Mul", "turned factor", "a"))
    model.graph.node[2].domain = "somebody"
    before = copied(model)
    arithmetic_in_rows(model.graph)
    assert model == before


def test_crops_without_sizes_stay_as_they_are():
    model = graph_of(CAST, TURN, ("Mul", "turned factor", "a"))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    before = copied(model)
    arithmetic_in_rows(model.graph)
    assert model == before


def test_arithmetic_on_channels_last_is_by_rows_too():
    """Of foreign networks reidkit writes it so."""
    chain = [("Gather", "floats bgr", "a"), ("Mul", "a last", "b"), ("Sub", "b last", "c"), ("Transpose", "c", "d")]
    operators = moved(graph_of(CAST, *chain, axis=3))
    assert operators == ["Cast", "Reshape", "Mul", "Sub", "Reshape", "Gather", "Transpose", "Conv"]


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ([CAST, TURN], {}),
        ([CAST, TURN, ("Relu", "turned", "a"), ("Mul", "a factor", "b")], {}),
        ([CAST, TURN, ("Mul", "turned row", "a")], {}),
        ([CAST, TURN, ("Gather", "turned twice_red", "a"), ("Mul", "a factor", "b")], {}),
        ([CAST, TURN, ("Gather", "turned bgr", "a")], {}),
        ([CAST, TURN, ("Slice", "turned begin all axis", "a"), ("Mul", "a two", "b")], {}),
        ([CAST, TURN, ("Slice", "turned start end last_axis step", "a"), ("Mul", "a factor", "b")], {}),
        ([CAST, TURN, ("Mul", "turned turned", "a")], {}),
        ([CAST, TURN, ("Mul", "turned factor", "a")], {"outputs": ("y", "turned")}),
        ([CAST, TURN, ("Mul", "turned factor", "a")], {"outputs": ("y", "floats")}),
        ([CAST, TURN, ("Mul", "turned factor", "a")], {"size": ("n", "h", "w", 3)}),
        ([("Transpose", "crops", "turned"), ("Cast", "turned", "b"), ("Mul", "b factor", "c")], {}),
        ([CAST, TURN, ("Mul", "turned deep", "a"), ("Reshape", "a back", "b")], {}),
        (
            [
                CAST,
                TURN,
                ("Gather", "turned green", "a"),
                ("Mul", "a two", "b"),
                ("Reshape", "b one_channel", "c"),
                ("Concat", "c c c", "d"),
            ],
            {},
        ),
    ],
)
def test_graphs_that_begin_otherwise_stay_as_they_are(nodes, options):
    model = graph_of(*nodes, **options)
    assert moved(model) == [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("case", ["r18-ibn-a", "osnet"])
def test_the_pixels_of_known_networks(case):
    spec, input_ = CASES[case]
    with narrow_resnets():
        tensors = {name: tensor.numpy() for name, tensor in draw_model(spec).state_dict().items()}
        model = cleaned(onnx.load_from_string(onnx_network(spec, input_, tensors)))
    crops = np.random.default_rng(2).integers(0, 256, (2, input_.height, input_.width, 3), dtype=np.uint8)
    operators = moved(model, crops)
    before = operators[: operators.index("Conv")]
    swap = ["Gather"] if input_.color == "bgr" else []
    assert before == ["Cast", "Reshape", "Mul", "Add", "Reshape", "Transpose", *swap]
