"""The random numbers behind a batch's changes: all drawn at once, and what one of them decides."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Numbers(NamedTuple):
    """From 0 to below 1, one of each per crop, whether its change is switched on or not.

    So switching a change on leaves what the others draw as it was.
    """

    flip: Tensor
    shift_x: Tensor
    shift_y: Tensor
    affine: Tensor
    rotation: Tensor
    zoom: Tensor
    shear: Tensor
    background: Tensor
    background_share: Tensor
    background_crop: Tensor
    policy: Tensor
    policy_choice: Tensor
    policy_first: Tensor
    policy_second: Tensor
    policy_sign: Tensor
    color: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grey: Tensor
    patch: Tensor
    patch_crop: Tensor
    patch_area: Tensor
    patch_aspect: Tensor
    patch_x: Tensor
    patch_y: Tensor
    patch_from_x: Tensor
    patch_from_y: Tensor
    erase: Tensor
    erase_area: Tensor
    erase_aspect: Tensor
    erase_x: Tensor
    erase_y: Tensor


COUNT = len(Numbers._fields)


def draw_numbers(n: int, generator: torch.Generator) -> Float[Tensor, "numbers {n}"]:
    """The fields of `Numbers` for `n` crops, as rows, on the generator's device."""
    return torch.rand((COUNT, n), generator=generator, device=generator.device)


def chosen(number: Float[Tensor, " n"], chance: float) -> Bool[Tensor, " n"]:
    """True with this chance: never for 0, always for 1."""
    return number < chance


def between(number: Float[Tensor, " n"], low: float, high: float) -> Float[Tensor, " n"]:
    """Spread evenly from low to high."""
    return low + (high - low) * number


def whole(number: Float[Tensor, " n"], count: int | Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """One of 0, 1, ..., count - 1, each as likely."""
    # Below `count` in float32, too: the largest number below 1 falls short of it by more than rounding can make up.
    return (number * count).long()


def another(number: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The index of another crop of the batch; a crop that is alone gets its own."""
    n = len(number)
    return (torch.arange(n, device=number.device) + 1 + whole(number, n - 1)) % n
