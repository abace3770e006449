"""Random changes to crops, one at a time, each held to what it may do."""

import numpy as np
import pytest
import torch

from reidkit.train.augment import augment_batch
from reidkit.train.recipe import Augment

STILL = {"flip": 0.0, "pad": 0, "color": 0.0, "erase": 0.0}
FILL = torch.tensor([10.5, 20.5, 30.5])  # no uint8 value: what is filled can be told


def crops_of(n=4, height=9, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), generator=generator, dtype=torch.uint8)


def augmented(crops, *, seed=0, fill=FILL, **changes):
    generator = torch.Generator().manual_seed(seed)
    return augment_batch(crops, Augment(**(STILL | changes)), generator=generator, fill=fill).numpy()


def planes(crops):
    return crops.numpy().astype(np.float32).transpose(0, 3, 1, 2)


def filled(picture):
    """Where every channel has the fill's value: (height, width)."""
    return (picture == FILL.numpy()[:, None, None]).all(axis=0)


def test_no_change_changes_nothing():
    crops = crops_of()
    got = augmented(crops)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, planes(crops))


def test_the_crops_given_stay_as_they_were():
    crops = crops_of()
    before = crops.clone()
    augmented(crops, flip=0.5, pad=2, color=0.5, erase=1.0)
    assert torch.equal(crops, before)


def test_a_flip_mirrors_columns():
    crops = crops_of()
    np.testing.assert_array_equal(augmented(crops, flip=1.0), planes(crops)[..., ::-1])


def test_a_flip_falls_to_each_crop_by_its_own_draw():
    crops = crops_of(400, 2, 3)
    got, kept = augmented(crops, flip=0.25), planes(crops)
    mirrored = (got == kept[..., ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (got == kept).all(axis=(1, 2, 3))).all()
    assert 70 < mirrored.sum() < 130


def shifted(picture, dx, dy):
    """The picture's content moved left by dx and up by dy, what comes in filled."""
    _, height, width = picture.shape
    out = np.empty_like(picture)
    for y in range(height):
        for x in range(width):
            inside = 0 <= y + dy < height and 0 <= x + dx < width
            out[:, y, x] = picture[:, y + dy, x + dx] if inside else FILL.numpy()
    return out


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_shift_moves_the_content_and_fills_the_rest(flip):
    crops, pad = crops_of(80, 6, 5), 2
    seen = set()
    for got, crop in zip(augmented(crops, pad=pad, flip=flip), planes(crops), strict=True):
        source = crop[..., ::-1] if flip else crop
        moves = [(dx, dy) for dx in range(-pad, pad + 1) for dy in range(-pad, pad + 1)]
        found = [move for move in moves if np.array_equal(got, shifted(source, *move))]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 18  # 80 draws of the 25 moves find about 24


def test_erasing_paints_one_rectangle_of_2_to_40_percent():
    crops = crops_of(300, 48, 32)
    areas, shapes = [], []
    for got, crop in zip(augmented(crops, erase=1.0), planes(crops), strict=True):
        mask = filled(got)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.sum() == len(rows) * len(columns) > 0
        np.testing.assert_array_equal(got[:, ~mask], crop[:, ~mask])
        areas.append(mask.mean())
        shapes.append(len(rows) / len(columns))
    assert 0.015 < min(areas) < 0.05
    assert 0.33 < max(areas) < 0.43
    assert min(shapes) < 0.5
    assert max(shapes) > 2
    touched = np.stack([filled(got) for got in augmented(crops, erase=1.0)]).any(axis=0)
    # Up to every edge; only the very corners are rare.
    assert touched[0].any() and touched[-1].any() and touched[:, 0].any() and touched[:, -1].any()  # noqa: PT018
    assert touched[4:-4, 4:-4].all()


def test_erasing_falls_to_each_crop_by_its_own_draw():
    erased = [filled(got).any() for got in augmented(crops_of(400, 12, 8), erase=0.25)]
    assert 70 < sum(erased) < 130


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_the_smallest_crops_go_through(height, width):
    crops = crops_of(50, height, width)
    got = augmented(crops, flip=0.5, pad=1, color=0.2, erase=1.0, fill=torch.tensor([9.0, 9.0, 9.0]))
    assert got.shape == (50, 3, height, width)
    assert np.isfinite(got).all()


def test_colour_is_saturation_then_contrast_then_brightness():
    strength, found = 0.3, []
    # Values near the middle, so that nothing is cut off at 0 or 255.
    crops = (crops_of(40, 6, 5) // 4) + 96
    for got, x in zip(
        augmented(crops, color=strength).astype(np.float64), planes(crops).astype(np.float64), strict=True
    ):
        grey = np.broadcast_to(0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2], x.shape)
        mean = np.full(x.shape, grey.mean())
        # ((mean + (grey + (x - grey) s - mean) c) b is linear in x, grey and mean: three numbers fit it, or none do.
        parts = np.stack([x.ravel(), grey.ravel(), mean.ravel()], axis=1)
        (with_x, with_grey, with_mean), *_ = np.linalg.lstsq(parts, got.ravel(), rcond=None)
        np.testing.assert_allclose(parts @ [with_x, with_grey, with_mean], got.ravel(), atol=1e-3)
        brightness = with_x + with_grey + with_mean
        contrast = (with_x + with_grey) / brightness
        found.append((with_x / (with_x + with_grey), contrast, brightness))
    factors = np.array(found)
    assert (np.abs(factors - 1) <= strength + 1e-4).all()
    assert (factors.min(axis=0) < 0.8).all()  # each of the three is drawn, over the whole range
    assert (factors.max(axis=0) > 1.2).all()
    assert (np.abs(np.corrcoef(factors.T) - np.eye(3)) < 0.5).all()  # and on its own


def test_pixels_stay_within_0_and_255():
    got = augmented(crops_of(50), color=1.0, flip=0.5, pad=3, erase=0.5)
    assert got.min() >= 0
    assert got.max() <= 255
    assert got.max() == 255  # some were cut off there


def test_what_is_filled_is_not_recoloured():
    got = augmented(crops_of(20, 6, 5), color=0.5, pad=4, erase=1.0)
    assert all(filled(picture).any() for picture in got)


def test_the_generator_decides():
    everything = {"flip": 0.5, "pad": 2, "color": 0.3, "erase": 0.5}
    first, again = (augmented(crops_of(), seed=3, **everything) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, augmented(crops_of(), seed=4, **everything))


def test_a_run_draws_on_from_where_it_was():
    generator = torch.Generator().manual_seed(0)
    settings = Augment(flip=0.0, pad=3, color=0.0, erase=0.0)
    first, second = (augment_batch(crops_of(), settings, generator=generator, fill=FILL) for _ in range(2))
    assert not torch.equal(first, second)
