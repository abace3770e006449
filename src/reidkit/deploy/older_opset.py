"""A graph of opset 18 in the words of opset 17, for parsers that read no newer one.

TensorRT 8.6.0's parser takes opset 18 without a complaint and does not look at the axes of a ReduceMean, which are an
input since then: it averages over everything, the batch included. Found by `reid verify`, not by the parser.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from reidkit.deploy.graph_links import (
    Links,
    ValueType,
    attribute,
    copied,
    drop_unused,
    replace_all,
    split_sizes,
    value_table,
)
from reidkit.errors import ModelError
from reidkit.onnx_file import is_standard, standard_opset

OPSET = 17

_REDUCTIONS = frozenset(
    f"Reduce{name}" for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)
"""Whose axes became an input in opset 18; those of ReduceSum are one since 13."""

_NEW = frozenset(
    {
        *("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im"),
        *("GroupNormalization", "LpPool", "Mish", "ScatterElements", "ScatterND"),
    }
)
"""New in opset 18, or changed so that nobody here has looked into it."""


def in_opset_17(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the axes of reductions as attributes; a copy of it where it is no newer than that.

    Raises:
        ModelError: newer than opset 18, computed axes, or an operator that opset 17 does not have in this form.
    """
    result = copied(model)
    opset = standard_opset(result)
    if opset <= OPSET:
        return result
    if opset > OPSET + 1:
        raise _not_in_17(f"the graph is of opset {opset}")
    links, table = Links(result.graph), value_table(result)
    for node in result.graph.node:
        if any(item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for item in node.attribute):
            raise _not_in_17(f"{node.name or node.op_type} holds a graph of its own")
        if is_standard(node, node.op_type):
            _rewrite(node, links, table)
    for entry in result.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
    drop_unused(result.graph)
    return result


def _rewrite(node: onnx.NodeProto, links: Links, table: Mapping[str, ValueType]) -> None:
    if node.op_type in _REDUCTIONS:
        given = len(node.input) > 1 and node.input[1]
        axes = links.array(node.input[1]) if given else None
        if given and axes is None:
            raise _not_in_17(f"the axes of {node.name or node.op_type} are computed")
        if (axes is None or not np.size(axes)) and attribute(node, "noop_with_empty_axes"):
            raise _not_in_17(f"{node.name or node.op_type} reduces over nothing")
        kept = [item for item in node.attribute if item.name != "noop_with_empty_axes"]
        replace_all(node.attribute, kept)
        del node.input[1:]
        if axes is not None and np.size(axes):
            node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in np.ravel(axes)]))
    elif node.op_type == "Split" and attribute(node, "num_outputs") is not None:
        _state_sizes(node, links, table)
    elif node.op_type == "Pad" and len(node.input) > 3 and node.input[3]:
        raise _not_in_17(f"{node.name or 'a Pad'} names its axes")
    elif node.op_type == "Resize" and (attribute(node, "axes") or attribute(node, "antialias")):
        raise _not_in_17(f"{node.name or 'a Resize'} names axes or smooths")
    elif node.op_type in _NEW:
        raise _not_in_17(f"it has {node.op_type}")


def _state_sizes(node: onnx.NodeProto, links: Links, table: Mapping[str, ValueType]) -> None:
    """A Split into a number of parts becomes one into parts of stated sizes."""
    shape, axis = table[node.input[0]].shape, attribute(node, "axis", 0)
    whole = None if shape is None else shape[axis]
    if whole is None:
        raise _not_in_17(f"{node.name or 'a Split'} counts its parts, of a size that is not known")
    sizes = np.array(split_sizes(node, links, whole), np.int64)
    del node.input[1:]
    node.input.append(links.add_constant(sizes, f"{node.output[0]}_sizes"))
    kept = [item for item in node.attribute if item.name != "num_outputs"]
    replace_all(node.attribute, kept)


def _not_in_17(why: str) -> ModelError:
    return ModelError(
        "The graph cannot be said in opset 17, the newest that this parser reads",
        got=why,
        fix="build it with --via network, with a newer TensorRT, or from a graph of opset 17 or older",
    )
