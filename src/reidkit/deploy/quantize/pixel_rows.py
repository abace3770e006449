"""Arithmetic on pixels, a row of the picture at a time.

ONNX Runtime's integer convolutions read channels last, and so it moves a turn to channels first behind whatever is done
to single pixels: mean and deviation then meet three channels at the innermost place, and take a sixth of the time of
all of a ResNet-18. Along a whole row the same numbers take a tenth of that.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from reidkit.deploy.graph_links import Links, attribute, copied_node, free_name, replace_all
from reidkit.onnx_file import is_standard

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})


def arithmetic_in_rows(graph: onnx.GraphProto) -> None:
    """Brings what is added to channels of the crops, or multiplied with, before their turn to channels first; in place.

    Every number is computed as before. A graph that begins in another way stays as it is.

    Args:
        graph: cleaned, that takes uint8 crops with channels last.
    """
    links, crops = Links(graph), graph.input[0]
    sizes = [dim.dim_value for dim in crops.type.tensor_type.shape.dim]
    casts = [node for node in links.readers.get(crops.name, ()) if is_standard(node, "Cast")]
    if len(sizes) != 4 or not all(sizes[1:]) or [attribute(cast, "to") for cast in casts] != [TensorProto.FLOAT]:
        return
    (cast,) = casts
    height, width, channels = sizes[1:]
    steps = _steps(links, cast.output[0], channels)
    while steps and steps[-1].factors is None:
        steps.pop()  # behind the last arithmetic nothing moves
    if not steps:
        return
    arithmetic = [(step.node, step.place, step.factors) for step in steps if step.factors is not None]
    nodes, value = [copied_node(cast)], cast.output[0]

    def add(node: onnx.NodeProto, place: int = 0) -> None:
        nonlocal value
        node.input[place] = value
        value = node.output[0] = free_name(f"{node.output[0]}_early", links.taken)
        nodes.append(node)

    def reshape(name: str, *shape: int) -> None:
        name = free_name(name, links.taken)
        add(helper.make_node("Reshape", ["", links.add_constant(np.array(shape), f"{name}_shape")], [name], name))

    reshape("rows", 0, height, width * channels)
    for node, place, factors in arithmetic:
        by_row = copied_node(node)
        by_row.input[place] = links.add_constant(np.tile(factors, width), f"{node.input[place]}_row")
        add(by_row, 1 - place)
    reshape("pixels", 0, height, width, channels)
    for step in steps:
        if step.factors is None:
            add(copied_node(step.node))
    nodes[-1].output[0] = steps[-1].node.output[0]
    moved = {cast.output[0], *(step.node.output[0] for step in steps)}
    rest = [copied_node(node) for node in graph.node if moved.isdisjoint(node.output)]
    replace_all(graph.node, [*nodes, *rest])


@dataclass(frozen=True, slots=True)
class _Step:
    """What is done to pixels: arithmetic, or else they are only moved.

    Attributes:
        node: that does it.
        factors: of arithmetic, by channel of the crops.
        place: of the constant among the node's inputs.
    """

    node: onnx.NodeProto
    factors: np.ndarray | None = None
    place: int = 0


def _steps(links: Links, value: str, channels: int) -> list[_Step]:
    """What is done to pixels alone, one after the other, from a value with channels last.

    Its end may be steps that only move them.
    """
    axis, order, steps = 3, np.arange(channels), []
    readers = [node for node in links.readers.get(value, ()) if node.op_type != "Shape"]  # the value itself stays
    node = readers[0] if len(readers) == 1 and value not in links.pinned else None
    while node is not None and is_standard(node, node.op_type):
        if node.op_type == "Transpose":
            axis = attribute(node, "perm", [3, 2, 1, 0]).index(axis)
            steps.append(_Step(node))
        elif (moved := _swapped(links, node, order, axis)) is not None:
            order = moved
            steps.append(_Step(node))
        elif (found := _factors(links, node, channels, axis)) is not None:
            place, factors = found
            steps.append(_Step(node, factors[np.argsort(order)], place))  # of the crops' channels again
        else:
            break
        node = _only_reader(links, node.output[0])
    return steps


def _swapped(links: Links, node: onnx.NodeProto, order: np.ndarray, axis: int) -> np.ndarray | None:
    """The order that a node brings channels in, as of BGR; None if it does something else.

    Args:
        links: of the graph.
        node: any.
        order: of the channels that it reads, as numbers of the crops' own.
        axis: where it reads them.
    """
    constants: list[Any] = [links.array(name) for name in node.input[1:]]
    if not constants or any(values is None for values in constants):
        return None
    if node.op_type == "Gather" and attribute(node, "axis", 0) % 4 == axis and constants[0].ndim == 1:
        moved = order[constants[0]]
    elif node.op_type == "Slice" and len(constants) == 4 and np.array_equal(constants[2] % 4, [axis]):
        moved = order[slice(*(int(values[0]) for values in (constants[0], constants[1], constants[3])))]
    else:
        return None
    return moved if np.array_equal(np.sort(moved), np.arange(len(order))) else None


def _factors(links: Links, node: onnx.NodeProto, channels: int, axis: int) -> tuple[int, np.ndarray] | None:
    """The place of the only constant of arithmetic, and its values by channel."""
    places = [place for place, name in enumerate(node.input) if name in links.constants]
    if node.op_type not in _ARITHMETIC or not places:
        return None
    values = links.array(node.input[places[0]])
    by_channel = [channels if place == axis else 1 for place in range(4)]
    if values is None or values.ndim > 4 or (values.size > 1 and values.shape != tuple(by_channel[4 - values.ndim :])):
        return None
    return places[0], np.broadcast_to(values.reshape(-1), channels)


def _only_reader(links: Links, value: str) -> onnx.NodeProto | None:
    return links.readers[value][0] if links.only_read_by_one(value) else None
