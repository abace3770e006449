"""Which layers are left in float together: those of a block."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reidkit.deploy.quantize.placement import Layer

_BLOCK = re.compile(r"(?:.*?\.)??\d+(?:\.\d+)*(?=\.|$)")  # up to the first numbers that stand between dots


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that are rounded, or not, together: those of a block, or one that is in no block.

    Attributes:
        name: of the block, such as "backbone.layer1.0"; or of the one layer.
        layers: names, in the order of the graph.
        multiply_adds: of all of them, for one crop; 0 where no size is known.
        share: of the multiply-adds of all layers that can be rounded; a fraction of 1.
    """

    name: str
    layers: tuple[str, ...]
    multiply_adds: int
    share: float


def groups_of(layers: Sequence[Layer]) -> tuple[Group, ...]:
    """Divides layers into the blocks of their network, by name; each is alone where there is but one block.

    A block's name ends with the first numbers in it: "backbone.layer1.0" of "backbone.layer1.0.downsample.0". PyTorch's
    exporter drops the names of weights that it folds, but values still tell the module that made them, and so the
    block: "/layer1/layer1.0/relu/Relu_output_0". A layer of which nothing tells a block is alone.

    Args:
        layers: of a graph, in its order.
    """
    members: dict[str, list[Layer]] = {}
    for layer in layers:
        members.setdefault(_block_of(layer), []).append(layer)
    if len(members) == 1:
        members = {}
        for layer in layers:
            members.setdefault(layer.name, []).append(layer)
    total = sum(layer.multiply_adds for layer in layers)
    groups = []
    for name, found in members.items():
        multiply_adds = sum(layer.multiply_adds for layer in found)
        groups.append(Group(name, names_of(found), multiply_adds, multiply_adds / (total or 1)))
    return tuple(groups)


def names_of(layers: Iterable[Layer]) -> tuple[str, ...]:
    """Names of layers, each once: those that share their weights share their name."""
    return tuple(dict.fromkeys(layer.name for layer in layers))


def _block_of(layer: Layer) -> str:
    block = _BLOCK.match(layer.name if "." in layer.name else _module_of(layer.result))
    return block[0] if block else layer.name


def _module_of(value: str) -> str:
    """The module that made a value, as PyTorch's exporter tells it: "layer1.0.relu" of "/layer1/layer1.0/relu/Relu"."""
    parts: list[str] = []
    for part in value.split("/")[1:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)
