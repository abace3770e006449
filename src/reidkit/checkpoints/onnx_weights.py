"""The weights of a known network out of an ONNX file: by name where names survived, else by how its layers are wired.

Exporters rename weights and fold batch normalisations into the convolutions before them, so a file seldom has the state
dict that it was made from. What survives is the order of the layers, the shapes of their weights and which layer feeds
which. Both graphs are reduced to that, laid on each other, and the result is proven: the network with the weights found
has to give what ONNX Runtime gives for the file.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reidkit.checkpoints.onnx_wiring import FLOATS, NORM_PARTS, Layer, array, file_layers, network_layers, squeezed
from reidkit.errors import ModelError
from reidkit.onnx_file import read_model

_TOLERANCE = 1e-4
"""Largest difference between network and file, as a fraction of the largest value. Rounding stays below 1e-5."""

_COUNTER = "num_batches_tracked"


def weights_from_onnx(path: Path | str, model: nn.Module, size: tuple[int, int]) -> dict[str, Tensor]:
    """Finds the weights of a network in an ONNX file of the same network, and proves that they are its weights.

    A batch normalisation that an exporter folded away becomes one that changes nothing but adds the bias: weight 1,
    mean 0, variance 1 - eps. The network computes the same; trained on, it starts from statistics that are not its own.

    Args:
        path: of the ONNX file; its one input is a float32 picture, n x 3 x height x width, normalised as for the model.
        model: the network in PyTorch, with any weights; it stays as it is.
        size: height and width of the picture that both are run with.

    Returns:
        A state dict for `model`, complete.

    Raises:
        ModelError: the file cannot be read; the first of its layers that the network does not have there, with shapes;
            or the network with the weights found does not give the file's output.
    """
    path = Path(path)
    network = copy.deepcopy(model).cpu().eval()
    proto = read_model(path)
    wanted = network.state_dict()
    found = _by_name(proto.graph, wanted)
    if found is None:
        found = _by_wiring(path, proto.graph, network, size)
    missing = [name for name in wanted if name not in found and not name.endswith(_COUNTER)]
    if missing:
        raise ModelError(
            f"{path} has no layer for {len(missing)} tensors of the network",
            got=", ".join(missing[:4]) + (", …" if len(missing) > 4 else ""),
            expected="every tensor in a convolution, a linear layer or a normalisation, or under its own name",
            fix="take the checkpoint that the file was exported from",
        )
    weights = {name: found.get(name, torch.zeros_like(tensor)).reshape(tensor.shape) for name, tensor in wanted.items()}
    network.load_state_dict(weights)
    _check_agreement(path, network, size)
    return weights


def _by_name(graph: onnx.GraphProto, wanted: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights, if every one of them is in use in the graph under its own name, all behind one prefix or none."""
    used = {name for node in graph.node for name in node.input}
    tensors = {t.name: t for t in graph.initializer if t.name in used and t.data_type in FLOATS}
    names = [name for name in wanted if not name.endswith(_COUNTER)]
    for prefix in [name.removesuffix(names[0]) for name in tensors if name.endswith(names[0])]:
        fits = (
            prefix + name in tensors and squeezed(tensors[prefix + name].dims) == squeezed(wanted[name].shape)
            for name in names
        )
        if all(fits):
            return {name: torch.from_numpy(array(tensors[prefix + name])) for name in names}
    return None


def _by_wiring(path: Path, graph: onnx.GraphProto, network: nn.Module, size: tuple[int, int]) -> dict[str, Tensor]:
    """Lays the file's layers on the network's, from the picture on: same kind, same shape, fed by the same layers.

    Of several that are alike so far, such as the streams of an omni-scale block, the first to run comes first.
    """
    ours, theirs = network_layers(network, size), file_layers(graph)
    found: dict[str, np.ndarray] = {}
    partner: dict[int, int] = {}
    free = dict.fromkeys(range(len(ours)))
    for number, layer in enumerate(theirs):
        sources = frozenset(partner[source] for source in layer.sources)
        fed = [other for other in free if ours[other].sources == sources]
        fits = [other for other in fed if (ours[other].kind, ours[other].shape) == (layer.kind, layer.shape)]
        if not fits:
            _refuse(path, layer, [ours[other] for other in fed] or [ours[other] for other in free][:1])
        partner[number] = fits[0]
        del free[fits[0]]
        for name, value in _taken(path, layer, ours[fits[0]], network).items():
            if not np.array_equal(found.setdefault(name, value), value):
                expected = "the same weights at every use, as the network has one layer there"
                raise ModelError(
                    f"{path}: {layer.place} has other weights for {name} than an earlier use", expected=expected
                )
    if free:
        rest = ours[next(iter(free))]
        raise ModelError(
            f"{path} ends before the network does",
            got=f"{len(theirs)} layers with weights",
            expected=f"{len(ours)}; the first that is missing is {rest.place}, weights {rest.shape}",
            fix="choose the architecture that the file was exported from",
        )
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}


def _refuse(path: Path, layer: Layer[np.ndarray], expected: list[Layer[str]]) -> NoReturn:
    raise ModelError(
        f"{path} is another network: it departs from this one at {layer.place}",
        got=f"{layer.kind} with weights {layer.shape}",
        expected=" or ".join(f"{other.kind} {other.place} with weights {other.shape}" for other in expected)
        or "the end of the network",
        fix="choose the architecture that the file was exported from",
    )


def _taken(path: Path, theirs: Layer[np.ndarray], ours: Layer[str], network: nn.Module) -> dict[str, np.ndarray]:
    """The values of one layer's tensors, by their names in the network."""
    values, norm = dict(theirs.own), theirs.norm
    if ours.norm is not None and norm is None:
        # Folded: the bias stands for the whole normalisation, unless the layer has one of its own.
        bias = values.get("bias")
        if bias is None:
            _differ(path, theirs, ours, got="no batch normalisation and no bias")
        if "bias" in ours.own:
            bias = np.zeros_like(bias)
        else:
            del values["bias"]
        module = network.get_submodule(ours.norm["weight"].rpartition(".")[0])
        assert isinstance(module, _BatchNorm)
        ones = np.ones_like(bias)
        norm = dict(zip(NORM_PARTS, (ones, bias, np.zeros_like(bias), ones - np.float32(module.eps)), strict=True))
    if ours.norm is None and norm is not None:
        _differ(path, theirs, ours, got="a batch normalisation")
    if "bias" in values and "bias" not in ours.own and not values["bias"].any():
        del values["bias"]
    if values.keys() != ours.own.keys():
        _differ(path, theirs, ours, got=" and ".join(values))
    named = {name: values[part] for part, name in ours.own.items()}
    return named | ({} if ours.norm is None or norm is None else {ours.norm[part]: norm[part] for part in NORM_PARTS})


def _differ(path: Path, theirs: Layer[np.ndarray], ours: Layer[str], *, got: str) -> NoReturn:
    expected = " and ".join(ours.own) + (", then a batch normalisation" if ours.norm is not None else "")
    raise ModelError(
        f"{path} is another network: {theirs.place} has other parts than {ours.place}", got=got, expected=expected
    )


def _check_agreement(path: Path, network: nn.Module, size: tuple[int, int]) -> None:
    """Runs both on random pictures: what the layers' wiring cannot show, their activations and pooling, shows here.

    Raises:
        ModelError: ONNX Runtime cannot run the file on this input, or the outputs differ.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure comes as an exception; the library would print it as well
    generator = torch.Generator().manual_seed(0)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        taken = session.get_inputs()[0]
        batch = taken.shape[0] if taken.shape and isinstance(taken.shape[0], int) else 2
        pictures = torch.randn((batch, 3, *size), generator=generator)
        theirs = np.asarray(session.run(None, {taken.name: pictures.numpy()})[0])
    except Exception as error:  # onnxruntime's errors have no base class of their own
        raise ModelError(
            f"{path} does not run on a normalised picture of {size[0]}x{size[1]} (height x width)",
            got=str(error).partition("\n")[0],
            expected="one float32 input, n x 3 x height x width",
        ) from error
    with torch.inference_mode():
        ours = network(pictures).numpy()
    if ours.size != theirs.size:
        raise ModelError(f"{path} gives another output than the network", got=theirs.shape, expected=ours.shape)
    difference, largest = np.abs(ours.ravel() - theirs.ravel()).max(), np.abs(theirs).max()
    if not difference <= _TOLERANCE * largest:
        raise ModelError(
            f"The weights of {path} fit this network's layers, but the file computes something else with them",
            got=f"outputs that differ by up to {difference:.3g}, where the largest value is {largest:.3g}",
            expected=f"a difference of at most {_TOLERANCE:g} of the largest value",
            fix="choose another variant of the architecture; it may also be that layers of one shape stand in another "
            "order, or that the file normalises its pictures itself",
        )
