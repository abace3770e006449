"""The body's outline, and the mixing of what is around it."""

import numpy as np
import pytest
import torch
from random_crops import array, crops_of, planes

from reidkit.train.augment.background import body_weight, surrounded


def test_the_weight_by_hand():
    # In row 5 of 10 (height 0.55) the body reaches to 0.75; pixels of 8 have their middles at 1/8, 3/8, 5/8, 7/8.
    expected = [1 / (1 + np.exp((x - 0.75) / 0.06)) for x in (7 / 8, 5 / 8, 3 / 8, 1 / 8, 1 / 8, 3 / 8, 5 / 8, 7 / 8)]
    np.testing.assert_allclose(body_weight(10, 8)[5], expected, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(256, 128), (64, 32), (48, 63)])
def test_a_head_over_shoulders_over_legs(height, width):
    weight = body_weight(height, width).numpy()
    np.testing.assert_allclose(weight, weight[:, ::-1], atol=1e-6)  # as wide on both sides
    widths = (weight > 0.5).mean(axis=1)
    head, shoulders, legs = (widths[int(at * height)] for at in (0.08, 0.25, 0.9))
    assert head < legs < shoulders
    assert 0.4 < widths.mean() < 0.75
    assert weight[height // 2, width // 2] > 0.99
    assert weight[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 0.01
    assert weight.min() >= 0
    assert weight.max() <= 1


def test_surroundings_move_towards_the_other_crops():
    crops, body = crops_of(3, 6, 4), torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    moved = planes(crops).flip(3)
    got = surrounded(moved, crops, body, torch.tensor([2, 0, 1]), torch.tensor([1.0, 0.25, 0.0])).numpy()
    for i, (other, share) in enumerate([(2, 1.0), (0, 0.25), (1, 0.0)]):
        kept = 1 - share * (1 - body.numpy())
        np.testing.assert_allclose(got[i], moved[i].numpy() * kept + array(crops)[other] * (1 - kept), atol=1e-3)
    np.testing.assert_array_equal(got[2], moved[2])  # a share of 0 is no change at all
