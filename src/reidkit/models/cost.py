"""What a network costs, counted on shapes alone: nothing is allocated and nothing is computed."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from reidkit.architecture import ModelSpec, in_words, with_size
from reidkit.errors import ConfigError
from reidkit.manifest import Cost
from reidkit.models.model import build_model


class Anatomy(NamedTuple):
    """What can be said of a network before it has weights.

    Attributes:
        cost: of one crop.
        dim: width of an embedding.
    """

    cost: Cost
    dim: int


def model_cost(spec: ModelSpec, size: tuple[int, int]) -> Cost:
    """Parameters, without a classifier, and multiply-adds of one crop; see `anatomy`."""
    return anatomy(spec, size).cost


def anatomy(spec: ModelSpec, size: tuple[int, int]) -> Anatomy:
    """Builds a network on PyTorch's meta device, sends one crop through and counts.

    A multiply-add counts once. That is what papers and model zoos of the field call a FLOP, though it is two floating
    point operations, so `multiply_adds / 1e9` is their "GFLOPs". Convolutions and matrix products are counted, those of
    attention included; biases, normalisations, activations and pooling are not.

    Args:
        spec: of the architecture; a backbone of timm that names no size is built for this one.
        size: height and width of the crop.

    Raises:
        ConfigError: the network cannot be built, or takes no crop of this size.
    """
    height, width = size
    if min(size) < 1:
        raise ConfigError(
            "The input size is out of range", got=f"{height}x{width} (height x width)", expected="1 or more"
        )
    spec = with_size(spec, size)
    with _Unfilled(), torch.device("meta"):
        model = build_model(spec).eval()
        crop = torch.empty(1, 3, height, width)
    _skip_normalizations(model)
    counter = FlopCounterMode(display=False)
    try:
        with torch.inference_mode(), counter:
            embedding = model(crop)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{in_words(spec)} takes no crop of {height}x{width} (height x width)",
            got=str(error).partition("\n")[0],
            fix="choose another size",
        ) from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Anatomy(Cost(parameters, counter.get_total_flops() // 2), embedding.shape[1])


class _Unfilled(TorchFunctionMode):
    """Random weights are not drawn: on the meta device there is nothing to fill, and PyTorch takes long to see it."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _skip_normalizations(model: nn.Module) -> None:
    """They keep every shape and are not counted, but on the meta device take longer than all the rest."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)):
            module.forward = nn.Identity().forward
