"""Random numbers, and what they decide."""

import numpy as np
import pytest
import torch

from reidkit.train.augment.draws import Numbers, another, between, chosen, draw_numbers, whole

LARGEST = float(np.nextafter(np.float32(1), np.float32(0)))


def test_a_row_for_every_choice():
    numbers = draw_numbers(5000, torch.Generator().manual_seed(0))
    assert numbers.shape == (len(Numbers._fields), 5000)
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1
    assert (np.abs(np.corrcoef(numbers.numpy()) - np.eye(len(numbers))) < 0.07).all()


def test_the_generator_is_asked_for_as_many_whatever_is_switched_on():
    generator = torch.Generator().manual_seed(0)
    first, second = draw_numbers(3, generator), draw_numbers(3, generator)
    assert not torch.equal(first, second)
    assert torch.equal(draw_numbers(3, torch.Generator().manual_seed(0)), first)


def test_a_chance_of_0_never_and_of_1_always():
    numbers = torch.tensor([0.0, 0.25, 0.5, LARGEST])
    assert chosen(numbers, 0.0).tolist() == [False] * 4
    assert chosen(numbers, 1.0).tolist() == [True] * 4
    assert chosen(numbers, 0.5).tolist() == [True, True, False, False]


def test_between():
    assert between(torch.tensor([0.0, 0.25, 0.5]), -2.0, 6.0).tolist() == [-2, 0, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 21, 25, 31, 32, 33, 255, 257, 4097])
def test_whole_numbers_reach_from_0_to_the_last(count):
    numbers = torch.tensor([0.0, LARGEST])
    assert whole(numbers, count).tolist() == [0, count - 1]
    assert whole(numbers, torch.tensor([count, count])).tolist() == [0, count - 1]


def test_whole_numbers_are_equally_likely():
    found = whole(torch.rand(21000, generator=torch.Generator().manual_seed(0)), 21)
    assert (np.abs(np.bincount(found, minlength=21) - 1000) < 140).all()  # 4.5 standard deviations


def test_another_crop_is_any_but_the_crop_itself():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([another(torch.rand(5, generator=generator)) for _ in range(2000)]).numpy()
    for crop in range(5):
        counts = np.bincount(drawn[:, crop], minlength=5)
        assert counts[crop] == 0
        assert (np.abs(np.delete(counts, crop) - 500) < 88).all()


def test_a_crop_that_is_alone_is_its_own_other():
    assert another(torch.tensor([0.0])).tolist() == [0]
    assert another(torch.tensor([LARGEST])).tolist() == [0]
