"""Inner products and cosines in float32: what bfloat16 rounds away is what tells a hard pair from an easy one."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F

MASKED = torch.finfo(torch.float32).min
"""What stands for a pair that does not count before a softmax: minus infinity would leave no number in a row of it."""

_SHORTEST = 1e-6


def inner_products(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float32[Tensor, "n m"]:
    """Of every row of `x` with every row of `y`, in float32 whatever the autocast type."""
    # Of all that losses do, only products of matrices would be taken down to half precision.
    with torch.autocast(x.device.type, enabled=False):
        return x.float() @ y.float().T


def unit_length(x: Float[Tensor, "n dim"]) -> Float32[Tensor, "n dim"]:
    """Rows of Euclidean length 1, in float32; those shorter than 1e-6 stay shorter, so that slopes stay finite."""
    return F.normalize(x.float(), dim=1, eps=_SHORTEST)


def cosines(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float32[Tensor, "n m"]:
    """Of the angles between every row of `x` and every row of `y`; rounding may take them just beyond -1 and 1."""
    return inner_products(unit_length(x), unit_length(y))
