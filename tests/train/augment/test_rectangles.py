"""Rectangles, and what is pasted into them."""

import numpy as np
import pytest
import torch
from random_crops import array, crops_of, planes

from reidkit.train.augment.draws import whole
from reidkit.train.augment.rectangles import Rectangles, covered, log_between, patched, random_rectangles


def rectangles(*rows):
    return Rectangles(*torch.tensor(rows).unbind(dim=1))


def test_size_and_place_by_hand():
    # 0.25 of 40 x 20 is 200 pixels; aspect 2 makes it 20 high and 10 wide, so top is one of 21 and left one of 11.
    number, area, aspect = torch.tensor([0.0, 0.5, 0.999]), torch.full((3,), 0.25), torch.full((3,), 2.0)
    got = random_rectangles((40, 20), torch.ones(3, dtype=torch.bool), area, aspect, y=number, x=number)
    assert got.height.tolist() == [20] * 3
    assert got.width.tolist() == [10] * 3
    assert got.top.tolist() == [0, 10, 20]
    assert got.left.tolist() == [0, 5, 10]


def test_what_does_not_fit_is_cut():
    got = random_rectangles(
        (40, 20), torch.tensor([True, True]), torch.tensor([1.0, 1.0]), torch.tensor([10.0, 0.1]),
        y=torch.tensor([0.9, 0.9]), x=torch.tensor([0.9, 0.9]),
    )  # fmt: skip
    assert got.height.tolist() == [39, 9]
    assert got.width.tolist() == [9, 19]


def test_a_crop_that_is_not_wanted_has_none():
    half = torch.tensor([0.5, 0.5])
    got = random_rectangles((40, 20), torch.tensor([False, True]), half, half, y=half, x=half)
    assert covered(got, (40, 20)).flatten(1).any(dim=1).tolist() == [False, True]


def test_an_aspect_is_as_likely_as_its_inverse():
    number = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    aspect = log_between(number, 0.1, 10.0).numpy()
    assert aspect.min() < 0.11
    assert aspect.max() > 9
    assert abs(np.median(aspect) - 1) < 0.05
    assert log_between(torch.tensor([0.0, 0.5]), 0.1, 10.0).tolist() == pytest.approx([0.1, 1.0])


def test_covered_pixels():
    mask = covered(rectangles((1, 0, 2, 3), (0, 2, 0, 0)), (4, 5))
    assert mask[0].int().tolist() == [[0, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert not mask[1].any()


def test_a_patch_is_a_piece_of_another_crop():
    generator, size = np.random.default_rng(0), (9, 7)
    crops = crops_of(30, *size)
    other, tops, lefts = generator.permutation(30), generator.random(30), generator.random(30)
    area, aspect, y, x = torch.from_numpy(generator.random((4, 30), dtype=np.float32))
    wanted = torch.arange(30) % 5 > 0
    where = random_rectangles(size, wanted, area, aspect + 0.5, y=y, x=x)
    top = whole(torch.from_numpy(tops).float(), size[0] - where.height + 1)
    left = whole(torch.from_numpy(lefts).float(), size[1] - where.width + 1)
    got = patched(planes(crops), where, covered(where, size), torch.from_numpy(other), top=top, left=left)
    before, expected = array(crops), array(crops).copy()
    for i in range(30):
        for y in range(where.height[i]):
            for x in range(where.width[i]):
                expected[i, :, where.top[i] + y, where.left[i] + x] = before[other[i], :, top[i] + y, left[i] + x]
    np.testing.assert_array_equal(got, expected)
    assert (expected != before).any(axis=(1, 2, 3)).tolist() == wanted.tolist()
