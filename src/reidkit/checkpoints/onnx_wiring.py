"""The layers of a network, in PyTorch or in an ONNX graph, in one form: the weights of each, and what feeds it."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}

NORM_PARTS = ("weight", "bias", "running_mean", "running_var")

T = TypeVar("T")


def squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape without the 1s at its end: a linear layer and a 1x1 convolution have the same weights."""
    kept = list(shape)
    while kept and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def array(tensor: onnx.TensorProto) -> np.ndarray:
    """The values of a float tensor of a file, in float32."""
    # A copy: what numpy_helper gives may be a read-only view of the file's bytes.
    return np.array(numpy_helper.to_array(tensor), dtype=np.float32)


@dataclass
class Layer(Generic[T]):
    """A layer with weights, and the batch normalisation right behind it.

    Attributes:
        kind: "product" for a convolution or a linear layer, "batch norm" where it stands alone, or "instance norm".
        place: where it stands, for messages.
        shape: of its weights, without 1s at the end.
        sources: the layers whose output reaches it through nothing that has weights.
        own: its tensors by part ("weight", "bias", ...): arrays in a file, names in a network.
        norm: those of the batch normalisation, if there is one.
    """

    kind: str
    place: str
    shape: tuple[int, ...]
    sources: frozenset[int]
    own: dict[str, T]
    norm: dict[str, T] | None = None


@dataclass
class _Wiring(Generic[T]):
    """The layers of a network in the order in which they run, and what feeds each. Values go by any key."""

    layers: list[Layer[T]] = field(default_factory=list)
    _sources: dict[Hashable, frozenset[int]] = field(default_factory=dict)
    _fresh: dict[Hashable, int] = field(default_factory=dict)

    def sources(self, values: Iterable[Hashable]) -> frozenset[int]:
        """The layers that values come from."""
        return frozenset().union(*(self._sources.get(value, frozenset()) for value in values))

    def hand_on(self, inputs: Iterable[Hashable], outputs: Iterable[Hashable]) -> None:
        """Something without weights ran."""
        sources = self.sources(list(inputs))
        for value in outputs:
            self._sources[value] = sources
            self._fresh.pop(value, None)  # in place: the value is no longer what the layer gave

    def add(self, kind: str, place: str, shape: Iterable[int], own: dict[str, T], x: Hashable, out: Hashable) -> None:
        """A layer ran. A batch normalisation right behind a convolution or a linear layer becomes a part of it."""
        before = self._fresh.get(x)
        if kind == "batch norm" and before is not None and self.layers[before].norm is None:
            self.layers[before].norm = own
            self._sources[out] = frozenset({before})
            self._fresh.pop(out, None)
            return
        self.layers.append(Layer(kind, place, squeezed(shape), self.sources([x]), own))
        self._sources[out] = frozenset({len(self.layers) - 1})
        self._fresh.pop(out, None)
        if kind == "product":
            self._fresh[out] = len(self.layers) - 1

    def add_bias(self, value: T, x: Hashable, out: Hashable) -> bool:
        """A bias was added behind a layer; False where there is no layer that still lacks one."""
        layer = self.layers[self._fresh[x]] if x in self._fresh else None
        if layer is None or "bias" in layer.own or layer.norm is not None:
            return False
        layer.own["bias"] = value
        self._sources[out], self._fresh[out] = self._sources[x], self._fresh[x]
        return True


class _Recorder(TorchFunctionMode):
    """Notes the wiring of a network while it runs once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.wiring: _Wiring[str] = _Wiring()
        self._network = network
        # Every tensor of the run is kept, so that no two of them ever have one id.
        self._kept: list[Tensor] = []
        self._names = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor | list | tuple) or isinstance(result, torch.Size):
            return result  # a question about a tensor, such as its shape
        outputs = list(_tensors(result))
        inputs = list(_tensors([args, kwargs or {}]))
        self._kept += outputs
        owned = [self._names[id(tensor)] for tensor in inputs if id(tensor) in self._names]
        module_name = owned[0].rpartition(".")[0] if owned else ""
        module = self._network.get_submodule(module_name)
        kind = _kind(module) if outputs and owned else None
        if kind is None:
            self.wiring.hand_on(map(id, inputs), map(id, outputs))
        else:
            own = {name.removeprefix(f"{module_name}."): name for name in owned}
            shape = module.get_parameter("weight").shape
            self.wiring.add(kind, module_name, shape, own, id(inputs[0]), id(outputs[0]))
        return result


def _kind(module: nn.Module) -> str | None:
    match module:
        case nn.Conv2d() | nn.Linear():
            return "product"
        case _BatchNorm(affine=True):
            return "batch norm"
        case _InstanceNorm(affine=True):
            return "instance norm"
        case _:
            return None


def _tensors(values: Any) -> Iterator[Tensor]:
    """Every tensor in nested arguments."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def network_layers(network: nn.Module, size: tuple[int, int]) -> list[Layer[str]]:
    """The layers of a network, with the names of their tensors, in the order in which a picture of this size runs."""
    recorder = _Recorder(network)
    picture = torch.zeros(1, 3, *size)
    with torch.inference_mode(), recorder:
        network(picture)
    return recorder.wiring.layers


def file_layers(graph: onnx.GraphProto) -> list[Layer[np.ndarray]]:
    """The layers of a graph, with the values of their tensors as PyTorch has them, in the order of the nodes."""
    wiring: _Wiring[np.ndarray] = _Wiring()
    constants = {tensor.name: array(tensor) for tensor in graph.initializer if tensor.data_type in FLOATS}
    for node in graph.node:
        inputs, out = list(node.input), node.output[0]
        if (value := _constant(node, constants)) is not None:
            constants[out] = value
        elif (layer := _file_layer(node, constants)) is not None:
            kind, own = layer
            wiring.add(kind, _place(node), own["weight"].shape, own, inputs[0], out)
        elif not _adds_bias(node, constants, wiring):
            # The shape of a value says nothing of where it comes from.
            wiring.hand_on([] if node.op_type in ("Shape", "Size") else inputs, node.output)
    return wiring.layers


def _place(node: onnx.NodeProto) -> str:
    return f"node {node.name or node.output[0]!r} ({node.op_type})"


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _constant(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The value of a node that only names one. PyTorch's exporter passes weights that are equal through Identity."""
    if node.op_type == "Identity":
        return constants.get(node.input[0])
    if node.op_type != "Constant":
        return None
    value = _attributes(node).get("value")
    return array(value) if isinstance(value, onnx.TensorProto) and value.data_type in FLOATS else None


def _file_layer(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]] | None:
    """What a node is as a layer, with its weights as PyTorch has them; None for one without weights."""
    values = [constants.get(name) for name in node.input]
    if len(values) < 2 or any(value is None for value in values[1:]):
        return None
    match node.op_type:
        case "Conv":
            return "product", _named(values, ("weight", "bias"))
        case "Gemm":
            options = _attributes(node)
            if options.get("transA", 0):
                return None
            own = _named(values, ("weight", "bias"))
            weight = own["weight"] * np.float32(options.get("alpha", 1.0))
            own["weight"] = weight if options.get("transB", 0) else weight.T
            if "bias" in own:
                own["bias"] = own["bias"] * np.float32(options.get("beta", 1.0))
            return "product", own
        case "MatMul" if values[1] is not None and values[1].ndim == 2:
            return "product", {"weight": values[1].T}
        case "BatchNormalization":
            return "batch norm", _named(values, NORM_PARTS)
        case "InstanceNormalization":
            return "instance norm", _named(values, ("weight", "bias"))
        case _:
            return None


def _named(values: Iterable[np.ndarray | None], parts: Iterable[str]) -> dict[str, np.ndarray]:
    _, *weights = values
    return {part: value for part, value in zip(parts, weights, strict=False) if value is not None}


def _adds_bias(node: onnx.NodeProto, constants: Mapping[str, np.ndarray], wiring: _Wiring[np.ndarray]) -> bool:
    """Whether a node is the bias of the layer before it, and notes that."""
    if node.op_type != "Add":
        return False
    for x, other in (tuple(node.input), tuple(reversed(node.input))):
        bias = constants.get(other)
        if bias is not None and bias.ndim == 1 and wiring.add_bias(bias, x, node.output[0]):
            return True
    return False
