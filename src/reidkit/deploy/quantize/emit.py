"""From a float graph, a placement and a table to a graph that says itself where it is rounded: explicit Q/DQ."""

from typing import Any

import numpy as np
import onnx
from onnx import helper

from reidkit.calibration import Calibration
from reidkit.deploy.graph_links import Links, copied, copied_node, drop_unused, free_name, replace_all
from reidkit.deploy.quantize.grids import Grid, grid_of, rounded, steps_for
from reidkit.deploy.quantize.pixel_rows import arithmetic_in_rows
from reidkit.deploy.quantize.placement import Layer, Placement
from reidkit.errors import ModelError

_MOST_OF_INT32 = 2.0**30


def quantized_graph(model: onnx.ModelProto, placement: Placement, table: Calibration) -> onnx.ModelProto:
    """The graph with values of the placement rounded to the grids of their ranges, and weights of layers to theirs.

    For processors weights lie in the file as int8, and biases as int32 in steps of input times weight, which is how
    their kernels add them. For TensorRT weights stay float32 with a pair of Q and DQ, which all of its parsers read.

    Args:
        model: a cleaned graph.
        placement: for this graph.
        table: with a range for every owner of the placement and steps for every layer.

    Raises:
        ModelError: a range or steps are missing, or the steps are not as many as the layer's outputs.
    """
    result = copied(model)
    if placement.kind == "cpu":
        arithmetic_in_rows(result.graph)
    emitter = _Emitter(result, placement, table)
    for value in result.graph.input:
        emitter.round(value.name)
    for node in list(result.graph.node):
        emitter.write(node)
    replace_all(result.graph.node, emitter.nodes)
    drop_unused(result.graph)
    del result.graph.value_info[:]
    return result


class _Emitter:
    """Writes a graph's nodes again, rounded values in between."""

    def __init__(self, model: onnx.ModelProto, placement: Placement, table: Calibration) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.links = Links(model.graph)
        self._placement = placement
        self._table = table
        self._layers = {(layer.weight, layer.input): layer for layer in placement.layers}
        self._read_as: dict[str, str] = {}

    def write(self, node: onnx.NodeProto) -> None:
        """Writes one node, and behind it what rounds its results."""
        layer = self._layers.get((node.input[1], node.input[0])) if len(node.input) > 1 else None
        result = copied_node(node)
        for place, name in enumerate(node.input):
            only = self._placement.readers.get(name)
            if name in self._read_as and (only is None or node.output[0] in only):
                result.input[place] = self._read_as[name]
        if layer is not None:
            self._round_weights(result, layer)
        self.nodes.append(result)
        for name in node.output:
            self.round(name)

    def round(self, value: str) -> None:
        """Puts a pair of Q and DQ behind a value, where the placement has one."""
        owner = self._placement.owners.get(value)
        if owner is None:
            return
        grid = self._grid(owner)
        step = self.links.add_constant(np.array(grid.step, np.float32), f"{value}_step")
        zero = self.links.add_constant(np.array(grid.zero, grid.dtype), f"{value}_zero")
        self._read_as[value] = self._pair(value, step, zero)

    def _grid(self, owner: str) -> Grid:
        if owner not in self._table.ranges:
            raise ModelError(
                f"The table has no range for value {owner!r}",
                expected=f"{len(set(self._placement.owners.values()))} ranges, of this graph",
                fix="quantise the bundle again with pictures",
            )
        return grid_of(self._table.ranges[owner], self._placement.kind)

    def _pair(self, value: str, step: str, zero: str, axis: int | None = None) -> str:
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        integers, floats = (free_name(f"{value}_{word}", self.links.taken) for word in ("int8", "rounded"))
        self.nodes.append(helper.make_node("QuantizeLinear", [value, step, zero], [integers], integers, **attributes))
        self.nodes.append(helper.make_node("DequantizeLinear", [integers, step, zero], [floats], floats, **attributes))
        return floats

    def _round_weights(self, node: onnx.NodeProto, layer: Layer) -> None:
        weight = self.links.array(layer.weight)
        assert weight is not None
        steps = np.array(self._table.scales.get(layer.name, ()), np.float32)
        if len(steps) != weight.shape[layer.axis]:
            raise ModelError(
                f"The table does not fit layer {layer.name}",
                got=f"{len(steps)} steps",
                expected=f"{weight.shape[layer.axis]}, one an output",
                fix="quantise the bundle again with pictures",
            )
        steps = steps_for(steps, self._placement.kind)
        bias_name = node.input[2] if len(node.input) > 2 and node.input[2] else None
        bias = None if bias_name is None else self.links.array(bias_name)
        if self._placement.kind == "cpu" and bias is not None and bias.shape == steps.shape:
            step = self._grid(self._placement.owners[layer.input]).step
            # A channel of next to no weights may have a bias that int32 does not hold in its steps.
            steps = np.maximum(steps, (np.abs(bias) / (step * _MOST_OF_INT32)).astype(np.float32))
            node.input[2] = self._rounded_bias(bias, steps * step, bias_name or "")
        node.input[1] = self._rounded_weight(layer, weight, steps)

    def _rounded_weight(self, layer: Layer, weight: np.ndarray, steps: np.ndarray) -> str:
        # Also of weights that several layers share: their steps may differ by the bias, and ONNX Runtime in its exact
        # mode (session.x64quantprecision) opens no graph whose integers are shared.
        scale = self.links.add_constant(steps, f"{layer.weight}_step")
        zero = self.links.add_constant(np.zeros(len(steps), np.int8), f"{layer.weight}_zero")
        if self._placement.kind == "tensorrt":
            return self._pair(layer.weight, scale, zero, axis=layer.axis)
        integers = self.links.add_constant(rounded(weight, steps, layer.axis), f"{layer.weight}_int8")
        return self._dequantized(integers, scale, zero, layer.axis)

    def _rounded_bias(self, bias: np.ndarray, steps: np.ndarray, base: str) -> str:
        integers = self.links.add_constant(np.rint(bias / steps.astype(np.float64)).astype(np.int32), f"{base}_int32")
        scale = self.links.add_constant(steps.astype(np.float32), f"{base}_step")
        zero = self.links.add_constant(np.zeros(len(steps), np.int32), f"{base}_zero")
        return self._dequantized(integers, scale, zero, 0)

    def _dequantized(self, integers: str, step: str, zero: str, axis: int) -> str:
        floats = free_name(f"{integers}_rounded", self.links.taken)
        self.nodes.append(helper.make_node("DequantizeLinear", [integers, step, zero], [floats], floats, axis=axis))
        return floats
