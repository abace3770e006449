"""AutoAugment's policy for ImageNet, on whole batches: every crop draws its own two operations.

Source: Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data (CVPR 2019), table 9 (the sub-policies)
and table 6 (what a magnitude means). All operations are here. How we differ: turns and shears are about the crop's
middle, bilinear, and made in the one gather of `geometry`, before any change of colour; what they bring in from outside
is the data's mean colour, not a grey of 128.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reidkit.train.augment.draws import Numbers, whole
from reidkit.train.augment.geometry import source_of


class Operation(IntEnum):
    """What can be done to a crop. The comment says what its value is."""

    NOTHING = 0
    POSTERIZE = 1  # bits that are kept
    SOLARIZE = 2  # from this pixel value on, inverted
    AUTO_CONTRAST = 3
    EQUALIZE = 4
    INVERT = 5
    CONTRAST = 6  # factor
    COLOR = 7  # factor of saturation
    SHARPNESS = 8  # factor
    ROTATE = 9  # degrees
    SHEAR_X = 10  # pixels to the right for each pixel down


# Of magnitudes from 0 to 10. An operation that is not here has none.
_RANGES = {
    Operation.POSTERIZE: (4, 8),
    Operation.SOLARIZE: (0, 256),
    Operation.CONTRAST: (0.1, 1.9),
    Operation.COLOR: (0.1, 1.9),
    Operation.SHARPNESS: (0.1, 1.9),
    Operation.ROTATE: (0, 30),
    Operation.SHEAR_X: (0, 0.3),
}
_WHOLE = (Operation.POSTERIZE, Operation.SOLARIZE)

# Operation, chance, magnitude; twice.
_SUB_POLICIES = """
    posterize 0.4 8, rotate 0.6 9
    solarize 0.6 5, auto_contrast 0.6 -
    equalize 0.8 -, equalize 0.6 -
    posterize 0.6 7, posterize 0.6 6
    equalize 0.4 -, solarize 0.2 4
    equalize 0.4 -, rotate 0.8 8
    solarize 0.6 3, equalize 0.6 -
    posterize 0.8 5, equalize 1.0 -
    rotate 0.2 3, solarize 0.6 8
    equalize 0.6 -, posterize 0.4 6
    rotate 0.8 8, color 0.4 0
    rotate 0.4 9, equalize 0.6 -
    equalize 0.0 -, equalize 0.8 -
    invert 0.6 -, equalize 1.0 -
    color 0.6 4, contrast 1.0 8
    rotate 0.8 8, color 1.0 2
    color 0.8 8, solarize 0.8 7
    sharpness 0.4 7, invert 0.6 -
    shear_x 0.6 5, equalize 1.0 -
    color 0.4 0, equalize 0.6 -
    equalize 0.4 -, solarize 0.2 4
    solarize 0.6 5, auto_contrast 0.6 -
    invert 0.6 -, equalize 1.0 -
    color 0.6 4, contrast 1.0 8
    equalize 0.8 -, equalize 0.6 -
"""


class Operations(NamedTuple):
    """What is done to each crop: `kind` is an `Operation`, `value` means what is said there."""

    kind: Tensor
    value: Tensor


class Policy(NamedTuple):
    """The table, one row per sub-policy, one column for its first and one for its second operation."""

    kind: Tensor
    value: Tensor
    chance: Tensor


def which(kind: Tensor, operation: Operation) -> Tensor:
    """Where `kind` is this operation."""
    return kind == operation.value  # not the member itself, which torch.compile takes to be unlike any tensor


def imagenet_policy(device: torch.device) -> Policy:
    """The 25 sub-policies."""
    kinds, values, chances = [], [], []
    for line in _SUB_POLICIES.strip().splitlines():
        for part in line.split(","):
            name, chance, magnitude = part.split()
            kind = Operation[name.upper()]
            kinds.append(kind)
            values.append(0.0 if magnitude == "-" else _value(kind, int(magnitude)))
            chances.append(float(chance))
    kind, value, chance = torch.tensor(kinds), torch.tensor(values), torch.tensor(chances)
    return Policy(*(column.view(-1, 2).to(device) for column in (kind, value, chance)))


def chosen_operations(policy: Policy, wanted: Bool[Tensor, " n"], numbers: Numbers) -> tuple[Operations, Operations]:
    """The first and the second operation of every crop; of those not wanted, NOTHING."""
    choice = whole(numbers.policy_choice, len(policy.kind))
    sign = torch.where(numbers.policy_sign < 0.5, -1.0, 1.0)
    found = []
    for place, number in enumerate((numbers.policy_first, numbers.policy_second)):
        kind, value, chance = (column[:, place].index_select(0, choice) for column in policy)
        done = wanted & (number < chance)
        either_way = which(kind, Operation.ROTATE) | which(kind, Operation.SHEAR_X)
        found.append(Operations(kind * done, torch.where(either_way, value * sign, value)))
    return found[0], found[1]


def turn_of(operations: tuple[Operations, Operations]) -> Float[Tensor, "n 2 2"]:
    """The part of two operations that moves pixels, as the matrix that `geometry.turned` takes."""
    # No sub-policy has two of them, so sums will do.
    degrees, slant = (
        sum((value * which(kind, wanted) for kind, value in operations), start=torch.zeros_like(operations[0].value))
        for wanted in (Operation.ROTATE, Operation.SHEAR_X)
    )
    return source_of(degrees, torch.ones_like(degrees), slant)


def _value(kind: Operation, magnitude: int) -> float:
    low, high = _RANGES[kind]
    value = low + (high - low) * magnitude / 10
    return float(int(value)) if kind in _WHOLE else value
