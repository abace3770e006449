"""Other surroundings for the person in a crop, without knowing where exactly that person is."""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

# Half the body's width (1: the crop's) at heights from 0 (top) to 1. The outline within which the crops of
# Market-1501's training set differ from their own left and right borders by at least half as much as at the chest; at
# the feet, which are nowhere twice, held at the knees' width.
_HEIGHTS = (0.0, 0.14, 0.2, 0.55, 1.0)
_HALF_WIDTHS = (0.38, 0.38, 0.78, 0.75, 0.6)
_EDGE = 0.06  # of half the width: from a quarter to three quarters of the weight takes about twice this


def body_weight(height: int, width: int) -> Float[Tensor, "{height} {width}"]:
    """How much each pixel is likely to belong to the person: about 1 inside, about 0 around, 0.5 on the outline.

    A head over shoulders over legs, upright in the middle: a detector's box puts a person there, and every
    re-identification data set is cut out so. An ellipse of that area would lose shoulders and feet. Not for vehicles.
    """
    y = (np.arange(height) + 0.5) / height
    x = (np.arange(width) + 0.5) / width * 2 - 1
    outline = np.interp(y, _HEIGHTS, _HALF_WIDTHS)
    weight = 1 / (1 + np.exp((np.abs(x) - outline[:, None]) / _EDGE))
    return torch.from_numpy(weight.astype(np.float32))


def surrounded(
    pixels: Float[Tensor, "n 3 height width"],
    crops: UInt8[Tensor, "n height width 3"],
    body: Float[Tensor, "height width"],
    other: Int[Tensor, " n"],
    share: Float[Tensor, " n"],
) -> Float[Tensor, "n 3 height width"]:
    """Blends what surrounds the person towards the same places of another crop.

    Args:
        pixels: crops after their own moves.
        crops: the batch as it came: no pixel of it was shifted in.
        body: of `body_weight`.
        other: index of the other crop.
        share: of the other crop in the surroundings: 0 keeps a crop as it is.
    """
    weight = (1 - body) * share[:, None, None]
    elsewhere = crops.index_select(0, other).permute(0, 3, 1, 2).float()
    return torch.lerp(pixels, elsewhere, weight[:, None])
