"""The policy's operations on colour, each crop its own, in Pillow's arithmetic: whole numbers in, whole numbers out.

Most of them give every value of a channel one other value. These are tables of 256, so a batch is changed by one
look-up, whatever its crops have drawn. The rest pull a picture towards or away from its grey or its smoothed self.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from reidkit.train.augment.color import luma
from reidkit.train.augment.policy import Operation, Operations, which


def operated(pixels: Float[Tensor, "n 3 height width"], operations: Operations) -> Float[Tensor, "n 3 height width"]:
    """Does to each crop its operation, if that is one of colour.

    As Pillow's ImageOps and ImageEnhance do it, to the bit but for two: where AutoContrast's exact result is a whole
    number, Pillow's floating point may fall just short of it and give 1 less; and so may blending, either way.

    Args:
        pixels: whole numbers from 0 to 255.
        operations: of this turn.
    """
    n, _, height, width = pixels.shape
    grey = (luma(pixels) + 0.5).floor()
    values = pixels.long().flatten(2)
    table = _tables(values, grey.mean(dim=(1, 2, 3)), operations)
    pixels = table.gather(2, values).view(n, 3, height, width)
    return _blended(pixels, grey, operations)


def _tables(
    values: Int[Tensor, "n 3 pixels"], mean_grey: Float[Tensor, " n"], operations: Operations
) -> Float[Tensor, "n 3 256"]:
    """What each value of a channel becomes."""
    histogram = torch.zeros((len(values), 3, 256), dtype=torch.int32, device=values.device)
    histogram.scatter_add_(2, values, histogram.new_ones(()).expand_as(values))
    levels = torch.arange(256, device=values.device)
    low = torch.where(histogram > 0, levels, 255).amin(dim=2, keepdim=True)
    high = torch.where(histogram > 0, levels, 0).amax(dim=2, keepdim=True)
    kind, value = (field[:, None, None] for field in operations)
    table = levels.expand_as(histogram)
    for operation, changed in (
        (Operation.POSTERIZE, _posterized(levels, value)),
        (Operation.SOLARIZE, torch.where(levels < value, levels, 255 - levels)),
        (Operation.AUTO_CONTRAST, _stretched(levels, low, high)),
        (Operation.EQUALIZE, _equalized(levels, histogram, high)),
        (Operation.INVERT, 255 - levels),
        (Operation.CONTRAST, _pulled(levels, (mean_grey + 0.5).floor()[:, None, None], value)),
    ):
        table = torch.where(which(kind, operation), changed, table)
    return table.float()


def _posterized(levels: Int[Tensor, "256"], bits: Float[Tensor, "n 1 1"]) -> Tensor:
    dropped = (8 - bits.long()).clamp(0, 8)  # the value of another operation is any number
    return (levels >> dropped) << dropped


def _stretched(levels: Int[Tensor, "256"], low: Int[Tensor, "n 3 1"], high: Int[Tensor, "n 3 1"]) -> Tensor:
    spread = high - low
    wide = torch.div((levels - low) * 255, spread.clamp(min=1), rounding_mode="floor").clamp(0, 255)
    return torch.where(spread > 0, wide, levels)


def _equalized(levels: Int[Tensor, "256"], histogram: Int[Tensor, "n 3 256"], high: Int[Tensor, "n 3 1"]) -> Tensor:
    up_to = histogram.cumsum(dim=2)
    step = torch.div(up_to[:, :, -1:] - histogram.gather(2, high), 255, rounding_mode="floor")
    below = up_to - histogram + torch.div(step, 2, rounding_mode="floor")
    flat = torch.div(below, step.clamp(min=1), rounding_mode="floor").clamp(max=255)
    return torch.where(step > 0, flat, levels)


def _blended(
    pixels: Float[Tensor, "n 3 height width"], grey: Float[Tensor, "n 1 height width"], operations: Operations
) -> Float[Tensor, "n 3 height width"]:
    kind, value = (field[:, None, None, None] for field in operations)
    target = torch.where(which(kind, Operation.SHARPNESS), _smoothed(pixels), grey)
    factor = torch.where(which(kind, Operation.COLOR) | which(kind, Operation.SHARPNESS), value, 1.0)
    return _pulled(pixels, target, factor)


def _pulled(values: Tensor, target: Tensor, factor: Tensor) -> Tensor:
    """`target` for a factor of 0, `values` for 1, beyond them above; cut to a whole number."""
    return (target + factor * (values - target)).clamp(0, 255).floor()


def _smoothed(pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 height width"]:
    """The mean of 3 x 3 pixels, the middle one counted five times; the picture's border stays."""
    if min(pixels.shape[2:]) < 3:
        return pixels
    sums = F.avg_pool2d(pixels, 3, stride=1, divisor_override=1)
    inner = ((sums + 4 * pixels[:, :, 1:-1, 1:-1]) / 13 + 0.5).floor()
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = inner
    return smooth
