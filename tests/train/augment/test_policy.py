"""AutoAugment's table, and who draws what of it."""

import numpy as np
import pytest
import torch
from random_crops import within_chance

from reidkit.train.augment.draws import Numbers, draw_numbers
from reidkit.train.augment.geometry import source_of
from reidkit.train.augment.policy import Operation, Operations, chosen_operations, imagenet_policy, turn_of

POLICY = imagenet_policy(torch.device("cpu"))


def drawn(n=20000, wanted=True, seed=0):
    numbers = Numbers(*draw_numbers(n, torch.Generator().manual_seed(seed)))
    return chosen_operations(POLICY, torch.full((n,), wanted), numbers)


def test_the_table_has_25_rows_of_two():
    for column in POLICY:
        assert column.shape == (25, 2)


@pytest.mark.parametrize(
    ("row", "place", "kind", "value", "chance"),
    [
        # Table 9 of the paper, with the ranges of its table 6.
        (0, 0, Operation.POSTERIZE, 7, 0.4),
        (0, 1, Operation.ROTATE, 27, 0.6),
        (1, 0, Operation.SOLARIZE, 128, 0.6),
        (1, 1, Operation.AUTO_CONTRAST, 0, 0.6),
        (3, 1, Operation.POSTERIZE, 6, 0.6),
        (10, 1, Operation.COLOR, 0.1, 0.4),
        (12, 0, Operation.EQUALIZE, 0, 0.0),
        (14, 1, Operation.CONTRAST, 1.54, 1.0),
        (17, 0, Operation.SHARPNESS, 1.36, 0.4),
        (18, 0, Operation.SHEAR_X, 0.15, 0.6),
        (22, 0, Operation.INVERT, 0, 0.6),
        (24, 1, Operation.EQUALIZE, 0, 0.6),
    ],
)
def test_the_table_is_the_papers(row, place, kind, value, chance):
    assert POLICY.kind[row, place] == kind
    assert POLICY.value[row, place].item() == pytest.approx(value)
    assert POLICY.chance[row, place].item() == pytest.approx(chance)


def test_a_crop_that_is_not_wanted_gets_nothing():
    for operations in drawn(wanted=False):
        assert (operations.kind == Operation.NOTHING).all()


@pytest.mark.parametrize("place", [0, 1])
def test_operations_are_as_frequent_as_the_table_says(place):
    kinds = drawn()[place].kind.numpy()
    for kind in Operation:
        if kind != Operation.NOTHING:
            share = (POLICY.chance[:, place] * (POLICY.kind[:, place] == kind)).sum().item() / 25
            assert within_chance(kinds == kind, share), kind


def test_the_two_operations_of_a_crop_are_of_one_row():
    first, second = drawn()
    rows = {tuple(row) for row in POLICY.kind.tolist()}
    pairs = np.stack([first.kind.numpy(), second.kind.numpy()], axis=1)
    both = pairs[(pairs != Operation.NOTHING).all(axis=1)]
    assert {tuple(pair) for pair in both.tolist()} == rows


def test_turns_and_shears_go_either_way():
    first, second = drawn()
    turns = second.value[second.kind == Operation.ROTATE]
    assert within_chance((turns > 0).numpy(), 0.5)
    assert {round(value) for value in turns.tolist()} == {27, 24, -27, -24}
    assert {round(value, 2) for value in first.value[first.kind == Operation.SHEAR_X].tolist()} == {0.15, -0.15}


def test_the_turn_of_two_operations():
    first = Operations(torch.tensor([9, 1, 10, 4]), torch.tensor([24.0, 7.0, -0.15, 0.0]))
    second = Operations(torch.tensor([7, 9, 4, 2]), torch.tensor([0.46, -27.0, 0.0, 76.0]))
    degrees, slant = torch.tensor([24.0, -27.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, -0.15, 0.0])
    torch.testing.assert_close(turn_of((first, second)), source_of(degrees, torch.ones(4), slant))


def test_no_row_has_two_turns():
    moving = (POLICY.kind == Operation.ROTATE) | (POLICY.kind == Operation.SHEAR_X)
    assert (moving.sum(dim=1) <= 1).all()
