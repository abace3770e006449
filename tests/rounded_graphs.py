"""Small float graphs, tables for them, and NumPy's word on what rounding makes of a number: float64, by the formula."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from reidkit.calibration import Calibration, EngineKind, Range
from reidkit.deploy.graph_cleanup import cleaned
from reidkit.deploy.graph_links import Links
from reidkit.deploy.quantize.emit import quantized_graph
from reidkit.deploy.quantize.placement import PLACEMENT, place, quantizable_layers

Array = np.ndarray[Any, Any]


def graph(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    """A float32 graph, cleaned; its input is `x`, of four crops at most, unless told otherwise."""
    made = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (inputs or {"x": ("n", 4, 6, 5)}).items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    types = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
    del model.graph.output[:]
    model.graph.output.extend(types[name] for name in outputs)
    return cleaned(model)


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], output, **attributes)


def run(model: onnx.ModelProto, feeds: Mapping[str, Array], *outputs: str, optimized: bool = False) -> list[Array]:
    """What ONNX Runtime gives, for any values of the graph."""
    told = onnx.ModelProto()
    told.CopyFrom(model)
    known = {value.name for value in told.graph.output}
    told.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs if name not in known)
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # Processors without VNNI add pairs of products in 16 bits otherwise, which do not hold them.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(told.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(values) for values in session.run(list(outputs) or None, dict(feeds))]


def table_for(
    model: onnx.ModelProto, feeds: Mapping[str, Array], *, ranges: Mapping[str, Range] | None = None
) -> Calibration:
    """A table by what ONNX Runtime sees on these numbers; weights in steps of their peak, by the formula."""
    owners = {name for kind in ("cpu", "tensorrt") for name in place(model, kind).owners.values()}
    names = sorted(owners)
    seen = {
        name: Range(min(0.0, float(values.min())), max(0.0, float(values.max())))
        for name, values in zip(names, run(model, feeds, *names), strict=True)
    }
    links, scales = Links(model.graph), {}
    for layer in quantizable_layers(model):
        weight = links.array(layer.weight)
        assert weight is not None
        rows = np.abs(np.moveaxis(weight, layer.axis, 0).reshape(weight.shape[layer.axis], -1)).max(1)
        scales[layer.name] = tuple(float(np.float32(peak / 127)) if peak else 1.0 for peak in rows.astype(np.float64))
    return Calibration("0" * 64, PLACEMENT, "minmax", {**seen, **(ranges or {})}, scales)


def emitted(model: onnx.ModelProto, table: Calibration, kind: EngineKind, **options: Any) -> onnx.ModelProto:
    """The rounded graph, checked."""
    result = quantized_graph(model, place(model, kind, **options), table)
    onnx.checker.check_model(result, full_check=True)
    return result


def on_unsigned_grid(values: Array, ends: Range) -> Array:
    """Numbers rounded to 256 that reach from one end to the other, 0 among them."""
    step = np.float64(np.float32((ends.high - ends.low) / 255))
    zero = np.rint(np.float32(-ends.low) / np.float32(step))
    return (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step


def on_signed_grid(values: Array, peak: float) -> Array:
    """Numbers rounded to 127 steps to either side; a step that float16 does not hold is the next that it does."""
    step = peak / 127
    if step >= 2.0**-14:
        ulp = 2.0 ** (np.floor(np.log2(step)) - 10)
        step = np.ceil(step / ulp) * ulp
    return np.clip(np.rint(values / step), -127, 127) * step


def step_of(ends: Range) -> float:
    return (ends.high - ends.low) / 255


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def reader(model: onnx.ModelProto, operator: str, place: int = 0) -> onnx.NodeProto:
    """The node of that operator, counted in the order of the graph."""
    return [node for node in model.graph.node if node.op_type == operator][place]


def source(model: onnx.ModelProto, value: str) -> list[str]:
    """The operators that a value came through, from the last one up to the first that is not of rounding."""
    makers = {name: node for node in model.graph.node for name in node.output}
    through = []
    while value in makers:
        through.append(makers[value].op_type)
        if through[-1] not in {"DequantizeLinear", "QuantizeLinear"}:
            break
        value = makers[value].input[0]
    return through
