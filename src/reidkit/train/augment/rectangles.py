"""Random rectangles: covered by a piece of another crop, or erased."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reidkit.train.augment.draws import between, whole
from reidkit.train.augment.geometry import picked


class Rectangles(NamedTuple):
    """One per crop, in pixels; of height and width 0 where a crop has none."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def random_rectangles(
    size: tuple[int, int],
    wanted: Bool[Tensor, " n"],
    area: Float[Tensor, " n"],
    aspect: Float[Tensor, " n"],
    *,
    y: Float[Tensor, " n"],
    x: Float[Tensor, " n"],
) -> Rectangles:
    """Rectangles inside a crop, each at least one pixel short of its height and width.

    The papers draw again when a rectangle does not fit, which a batch cannot wait for: here it is cut to what fits.

    Args:
        size: height and width of crops.
        wanted: which crops get one.
        area: as a fraction of the crop's.
        aspect: height over width.
        y: number from 0 to 1 that decides the place.
        x: as `y`.
    """
    tallest, widest = size[0] - 1, size[1] - 1
    pixels = area * (size[0] * size[1])
    height = (pixels * aspect).sqrt().round().clamp(1, tallest).long()
    width = (pixels / aspect).sqrt().round().clamp(1, widest).long()
    top, left = whole(y, size[0] - height + 1), whole(x, size[1] - width + 1)
    return Rectangles(top, left, height * wanted, width * wanted)


def log_between(number: Float[Tensor, " n"], low: float, high: float) -> Float[Tensor, " n"]:
    """Spread from low to high, every doubling as likely: of an aspect and its inverse, neither is favoured."""
    return torch.exp(between(number, math.log(low), math.log(high)))


def covered(rectangles: Rectangles, size: tuple[int, int]) -> Bool[Tensor, "n height width"]:
    """Which pixels lie within a crop's rectangle."""
    top, left, height, width = (field[:, None] for field in rectangles)
    rows = torch.arange(size[0], device=top.device)
    columns = torch.arange(size[1], device=top.device)
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return in_rows[:, :, None] & in_columns[:, None, :]


def patched(
    pixels: Float[Tensor, "n 3 height width"],
    rectangles: Rectangles,
    within: Bool[Tensor, "n height width"],
    other: Int[Tensor, " n"],
    *,
    top: Int[Tensor, " n"],
    left: Int[Tensor, " n"],
) -> Float[Tensor, "n 3 height width"]:
    """Covers rectangles with equally large pieces of other crops.

    Args:
        pixels: the batch.
        rectangles: what is covered.
        within: `covered(rectangles, size)`.
        other: index of the crop that a piece comes from.
        top: of the piece, in that crop.
        left: of the piece, in that crop.
    """
    height, width = pixels.shape[2:]
    rows = torch.arange(height, device=pixels.device) + (top - rectangles.top)[:, None]
    columns = torch.arange(width, device=pixels.device) + (left - rectangles.left)[:, None]
    pieces = picked(pixels, rows.clamp(0, height - 1), columns.clamp(0, width - 1), other)
    return torch.where(within[:, None], pieces, pixels)
