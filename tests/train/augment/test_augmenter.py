"""All changes together: how often, in which order, and what stays as it was."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from random_crops import array, crops_of, within_chance

from reidkit.errors import InputError
from reidkit.train.augment import Augmenter
from reidkit.train.augment.background import body_weight
from reidkit.train.augment.draws import Numbers
from reidkit.train.settings import Augment

STILL = {"flip": 0.0, "pad": 0, "erase": 0.0}
COLORS = {"policy": 0.5, "color": 0.5, "hue": 0.1, "grey": 0.2}
ALL = {"flip": 0.5, "pad": 2, "affine": 0.5, "shear": 5.0, "background": 0.5, "patch": 0.5, "erase": 0.5, **COLORS}
CHANGES = ("flip", "affine", "background", "policy", "color", "grey", "patch", "erase")
FILL = torch.tensor([10.5, 20.5, 30.5])  # no uint8 value: what is filled can be told


def augmenter(height, width, *, fill=FILL, **changes):
    settings = Augment(**(STILL | changes))
    return Augmenter(settings, height=height, width=width, fill=fill, device=torch.device("cpu"))


def augmented(crops, *, seed=0, fill=FILL, **changes):
    _, height, width, _ = crops.shape
    change = augmenter(height, width, fill=fill, **changes)
    return change(crops, torch.Generator().manual_seed(seed)).numpy()


def filled(pictures):
    """Where every channel has the fill's value: (..., height, width)."""
    return (pictures == FILL.numpy()[:, None, None]).all(axis=-3)


def numbers(n=1, **given):
    """All 0.5, but for the given ones."""
    return torch.stack([torch.full((n,), float(given.get(name, 0.5))) for name in Numbers._fields])


# -- nothing, always, how often ----------------------------------------------------------------------------------------


def test_no_change_changes_nothing():
    crops = crops_of()
    got = augmented(crops)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, array(crops))


def test_chances_of_0_change_nothing_whatever_the_strengths():
    strengths = {"rotation": 90.0, "zoom": 2.0, "shear": 30.0, "brightness": 1.0, "contrast": 1.0, "hue": 0.5}
    np.testing.assert_array_equal(augmented(crops_of(), **strengths), array(crops_of()))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("chance", [0.25, 1.0])
def test_a_change_falls_to_each_crop_by_its_own_draw(change, chance):
    crops = crops_of(400, 12, 8)
    got = augmented(crops, **{change: chance})
    changed = (np.abs(got - array(crops)) > 1e-3).any(axis=(1, 2, 3))
    if change == "policy":  # draws nothing for some of the crops that it was drawn for, and an equal value for others
        assert 0.6 * chance < changed.mean() < chance
    else:
        assert within_chance(changed, chance)


def test_the_crops_given_stay_as_they_were():
    crops = crops_of()
    before = crops.clone()
    augmented(crops, **ALL)
    augmented(crops, flip=1.0)
    augmented(crops)[:] = 0
    assert torch.equal(crops, before)


# -- the order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_flip_mirrors_and_a_shift_moves_the_content(flip):
    crops, pad = crops_of(80, 6, 5), 2
    seen = set()
    for got, crop in zip(augmented(crops, pad=pad, flip=flip), array(crops), strict=True):
        padded = np.broadcast_to(FILL.numpy()[:, None, None], (3, 10, 9)).copy()
        padded[:, 2:-2, 2:-2] = crop[..., ::-1] if flip else crop
        cuts = [(y, x) for y in range(5) for x in range(5)]
        found = [(y, x) for y, x in cuts if np.array_equal(got, padded[:, y : y + 6, x : x + 5])]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 18  # 80 draws of the 25 moves find about 24


def test_a_turn_is_within_its_limits():
    """A crop with one bright row: where it goes tells the angle."""
    crops = torch.zeros((200, 41, 41, 3), dtype=torch.uint8)
    crops[:, 20] = 255
    slopes = []
    got = augmented(crops, affine=1.0, rotation=20.0, zoom=0.0)
    for picture in got[:, 0] * ~filled(got):
        columns = np.arange(10, 31)
        heights = (picture[:, columns] * np.arange(41)[:, None]).sum(axis=0) / picture[:, columns].sum(axis=0)
        slopes.append(np.degrees(np.arctan(np.polyfit(columns, heights, 1)[0])))
    assert -20.5 < min(slopes) < -18
    assert 18 < max(slopes) < 20.5


def test_a_zoom_goes_either_way_and_keeps_its_limits():
    crops = torch.zeros((200, 41, 41, 3), dtype=torch.uint8)
    crops[:, 15:26, 15:26] = 255
    areas = (augmented(crops, affine=1.0, rotation=0.0, zoom=0.5)[:, 0] > 127).sum(axis=(1, 2)) ** 0.5 / 11
    assert 1 / 1.5 - 0.06 < areas.min() < 0.72
    assert 1.4 < areas.max() < 1.5 + 0.06
    assert abs(np.median(areas) - 1) < 0.1


def test_surroundings_come_from_another_crop():
    crops = torch.stack([torch.full((32, 16, 3), 10), torch.full((32, 16, 3), 210)]).to(torch.uint8)
    change = augmenter(32, 16, background=1.0)
    got = change.change(crops, numbers(2, background_share=0.999999))
    body = body_weight(32, 16)
    torch.testing.assert_close(got[0, 0], 10 * body + 210 * (1 - body), atol=1e-2, rtol=0)
    torch.testing.assert_close(got[1, 0], 210 * body + 10 * (1 - body), atol=1e-2, rtol=0)


def test_the_policys_turn_comes_after_the_affine_change():
    """A row across the middle, sheared along x, stays where it is; turned after that, it lies at the turn's angle."""
    line = torch.zeros((2, 41, 41, 3), dtype=torch.uint8)
    line[:, 20] = 255
    # Row 10 of the table: no colour for a number of 0.99, a turn by 24 degrees for one of 0.
    draw = numbers(2, affine=0, shear=1, policy_choice=10.5 / 25, policy_first=0, policy_second=0.99)
    draw[Numbers._fields.index("policy_sign")] = torch.tensor([0.4, 0.6])
    settings = {"affine": 1.0, "rotation": 0.0, "zoom": 0.0, "shear": 45.0, "policy": 1.0}
    got = augmenter(41, 41, **settings).change(line, draw).numpy()
    slopes = []
    for picture in got[:, 0] * ~filled(got):
        lit = np.argwhere(picture > 127)
        slopes.append(np.degrees(np.arctan(np.polyfit(lit[:, 1], lit[:, 0], 1)[0])))
    # Sheared after it was turned, it would lie at atan(tan 24 / (1 - tan 24)), 38.7 degrees, or at 17.1.
    assert slopes == pytest.approx([24, -24], abs=1)  # rows grow downwards: minus is counter-clockwise


def test_the_policys_two_operations_come_in_their_order():
    crops = crops_of(1, 24, 12)
    # Row 6 of the table: solarize from 76 on, then equalize.
    draw = numbers(policy=0, policy_choice=6.5 / 25, policy_first=0, policy_second=0)
    expected = ImageOps.equalize(ImageOps.solarize(Image.fromarray(crops[0].numpy()), 76))
    np.testing.assert_array_equal(
        augmenter(24, 12, policy=1.0).change(crops, draw)[0], np.asarray(expected).transpose(2, 0, 1)
    )


def test_before_the_policy_pixels_are_rounded_not_cut():
    crops = crops_of(40, 24, 12)
    mixed = augmented(crops, background=1.0)
    np.testing.assert_array_equal(augmented(crops, background=1.0, policy=1e-6), mixed.round())


def test_colour_is_brightness_then_contrast_then_saturation():
    strength, found = 0.3, []
    # Values near the middle, so that nothing is cut off at 0 or 255.
    crops = (crops_of(40, 6, 5) // 4) + 96
    jitter = {"color": 1.0, "brightness": strength, "contrast": strength, "saturation": strength}
    for got, x in zip(augmented(crops, **jitter).astype(np.float64), array(crops).astype(np.float64), strict=True):
        grey = np.broadcast_to(0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2], x.shape)
        mean = np.full(x.shape, grey.mean())
        # b (mean + c (grey + s (x - grey) - mean)) is linear in x, grey and mean: three numbers fit it, or none do.
        parts = np.stack([x.ravel(), grey.ravel(), mean.ravel()], axis=1)
        (with_x, with_grey, with_mean), *_ = np.linalg.lstsq(parts, got.ravel(), rcond=None)
        np.testing.assert_allclose(parts @ [with_x, with_grey, with_mean], got.ravel(), atol=1e-2)
        brightness = with_x + with_grey + with_mean
        found.append((with_x / (with_x + with_grey), (with_x + with_grey) / brightness, brightness))
    factors = np.array(found)
    assert (np.abs(factors - 1) <= strength + 1e-3).all()
    assert (factors.min(axis=0) < 0.8).all()  # each of the three is drawn, over the whole range
    assert (factors.max(axis=0) > 1.2).all()
    assert (np.abs(np.corrcoef(factors.T) - np.eye(3)) < 0.5).all()  # and on its own


def test_brightness_is_cut_off_before_contrast_is_measured():
    crops = torch.tensor([[[[200, 200, 200], [40, 40, 40]]]], dtype=torch.uint8)
    change = augmenter(1, 2, color=1.0, brightness=0.5, contrast=0.5, saturation=0.0)
    got = change.change(crops, numbers(color=0, brightness=0.999999, contrast=0))[0, 0, 0]
    # 300 is cut to 255, the other is 60; their mean is 157.5, and half of each distance from it is left.
    torch.testing.assert_close(got, torch.tensor([206.25, 108.75]), atol=1e-3, rtol=0)


def test_grey_comes_after_hue_and_before_patches():
    got = augmented(crops_of(60, 12, 8), color=1.0, hue=0.5, grey=1.0, patch=1.0)
    assert np.ptp(got, axis=1).max() < 1e-3


def test_patches_cover_what_was_shifted_in_and_erasing_covers_patches():
    crops = crops_of(200, 12, 8)
    gaps, patches, all_three = (
        filled(augmented(crops, pad=4, **more)) for more in ({}, {"patch": 1.0}, {"patch": 1.0, "erase": 1.0})
    )
    erased = filled(augmented(crops, erase=1.0))
    assert not (patches & ~gaps).any()
    assert (gaps & ~patches).any()
    np.testing.assert_array_equal(all_three, patches | erased)


def test_erasing_paints_one_rectangle_of_2_to_40_percent():
    crops = crops_of(300, 48, 32)
    areas, shapes = [], []
    for got, crop in zip(augmented(crops, erase=1.0), array(crops), strict=True):
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


def test_the_largest_erased_rectangle_is_the_recipes():
    areas = filled(augmented(crops_of(300, 48, 32), erase=1.0, erase_max=0.1)).mean(axis=(1, 2))
    assert 0.08 < areas.max() < 0.115


# -- what holds for all of them together -------------------------------------------------------------------------------


def test_what_is_filled_is_not_recoloured():
    crops = crops_of(60, 12, 8)
    moves = {"flip": 0.5, "pad": 4, "affine": 0.5, "erase": 0.5}
    plain = filled(augmented(crops, **moves))
    assert 0.1 < plain.mean() < 0.6
    recoloured = filled(augmented(crops, **moves, background=1.0, **(COLORS | {"policy": 0.0})))
    np.testing.assert_array_equal(recoloured, plain)


def test_a_turn_of_the_policy_fills_too():
    assert filled(augmented(crops_of(60, 12, 8), policy=1.0)).any(axis=(1, 2)).sum() > 5


@pytest.mark.parametrize("fill", [(0.0, 0.0, 0.0), (255.0, 255.0, 255.0), (123.7, 116.3, 103.5)])
def test_pixels_stay_within_0_and_255(fill):
    got = augmented(crops_of(60, 12, 8), fill=torch.tensor(fill), **ALL, brightness=1.0, contrast=1.0, saturation=1.0)
    assert np.isfinite(got).all()
    assert got.min() == 0
    assert got.max() == 255


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2), (7, 19)])
@pytest.mark.parametrize("n", [1, 5])
def test_the_smallest_crops_and_batches_go_through(n, height, width):
    got = augmented(crops_of(n, height, width), **(ALL | {"pad": 1}))
    assert got.shape == (n, 3, height, width)
    assert np.isfinite(got).all()


def test_alone_in_its_batch_a_crop_is_patched_with_itself():
    got = augmented(crops_of(1, 12, 8), patch=1.0, background=1.0)
    assert np.isin(got, array(crops_of(1, 12, 8))).mean() > 0.99


def test_the_generator_decides():
    first, again = (augmented(crops_of(), seed=3, **ALL) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, augmented(crops_of(), seed=4, **ALL))


def test_a_state_taken_up_again_goes_on_the_same():
    generator, change = torch.Generator().manual_seed(0), augmenter(9, 7, **ALL)
    change(crops_of(), generator)
    state = generator.get_state()
    second = change(crops_of(), generator)
    generator = torch.Generator()
    generator.set_state(state)
    assert torch.equal(change(crops_of(), generator), second)
    assert not torch.equal(change(crops_of(), generator), second)


def test_switching_one_change_on_leaves_what_the_others_draw():
    crops = crops_of(40, 12, 8)
    alone, both = filled(augmented(crops, erase=0.5)), filled(augmented(crops, erase=0.5, color=1.0, flip=0.5))
    np.testing.assert_array_equal(alone, both)


def test_crops_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"wrong size\n  got: 9x7\n  expected: 8x7 \(height x width\)"):
        augmenter(8, 7)(crops_of(), torch.Generator())


COMPILED = """
import torch
from reidkit.train.augment import Augmenter
from reidkit.train.augment.draws import draw_numbers
from reidkit.train.settings import Augment

fill, device = torch.tensor([10.5, 20.5, 30.5]), torch.device("cpu")
change = Augmenter(Augment(**{changes}), height=12, width=8, fill=fill, device=device)
generator = torch.Generator().manual_seed(0)
crops = torch.randint(0, 256, (6, 12, 8, 3), generator=generator, dtype=torch.uint8)
compiled = torch.compile(change.change, fullgraph=True, backend="eager")
for _ in range(2):
    numbers = draw_numbers(6, generator)
    assert torch.equal(compiled(crops, numbers), change.change(crops, numbers))
print("one graph")
"""


def test_all_changes_are_one_graph():
    # In a process of its own: here every function is checked for shapes, which a graph cannot hold.
    code = COMPILED.replace("{changes}", repr(ALL))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "one graph\n", done.stderr
