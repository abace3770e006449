"""Test-time augmentation against views that are made by hand, and go through the same engine by hand."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

import reidkit
from conditions import as_installed
from reidkit.errors import ConfigError, InputError
from reidkit.runtime.tta import SCALES, MultiViewEmbedder, at_scale, with_tta
from reidkit.types import Embedder, EmbedderSpec, InputSpec

SPEC = EmbedderSpec(InputSpec(2, 3), 3, False, None, "fake", "float32", "cpu")
NAMES = ("none", "flip", "multiscale", "flip+multiscale")


class FirstColumn:
    """Embeds a crop as the mean colour of its first column, less a middle grey as a pre-processing would; two clear
    ways to be wrong: the wrong axis, and the grey taken twice."""

    def __init__(self, spec=SPEC):
        self.spec = spec

    def embed(self, crops):
        return crops[:, :, 0].mean(axis=1).astype(np.float32) - 128


class Unit(FirstColumn):
    """The direction of that."""

    def __init__(self, spec=SPEC):
        super().__init__(replace(spec, normalized=True))

    def embed(self, crops):
        embeddings = super().embed(crops)
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


class Watching(FirstColumn):
    """Keeps what it saw."""

    def __init__(self, spec=SPEC):
        super().__init__(spec)
        self.seen = []

    def embed(self, crops):
        self.seen.append(crops.copy())
        return super().embed(crops)


def noise(n=4, height=2, width=3):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.fixture
def crops():
    return noise()


def mirror(crops):
    """Left to right, by Pillow."""
    return np.stack([np.asarray(ImageOps.mirror(Image.fromarray(crop))) for crop in crops])


def closer(crops, down, right, resample=Image.Resampling.BICUBIC):
    """Without so many rows and columns on each side, back at the old size; by Pillow."""
    size = (crops.shape[2], crops.shape[1])
    box = (right, down, size[0] - right, size[1] - down)
    return np.stack([np.asarray(Image.fromarray(crop).crop(box).resize(size, resample)) for crop in crops])


def farther(crops, down, right, resample=Image.Resampling.BICUBIC):
    """The edge pixels once more, so many times on each side, back at the old size; by Pillow and indices."""
    height, width = crops.shape[1:3]
    rows = [0] * down + list(range(height)) + [height - 1] * down
    columns = [0] * right + list(range(width)) + [width - 1] * right
    larger = [Image.fromarray(crop[rows][:, columns]) for crop in crops]
    return np.stack([np.asarray(image.resize((width, height), resample)) for image in larger])


def mean_of(*embeddings):
    return np.mean([np.asarray(values, dtype=np.float64) for values in embeddings], axis=0)


# Flip


def test_the_mean_of_both_by_hand(crops):
    expected = (crops[:, :, 0].astype(float).mean(1) + crops[:, :, -1].astype(float).mean(1)) / 2 - 128
    np.testing.assert_allclose(with_tta(FirstColumn(), "flip").embed(crops), expected, rtol=1e-6)


def test_a_crop_and_its_mirror_image_become_the_same(crops):
    embedder = with_tta(FirstColumn(), "flip")
    np.testing.assert_array_equal(embedder.embed(crops), embedder.embed(mirror(crops)))


@pytest.mark.parametrize("runtime", ["onnxruntime", "pytorch"])
def test_flip_on_a_real_engine(tiny_bundle, runtime):
    embedder = reidkit.load(tiny_bundle, runtime, threads=1)
    golden = reidkit.open_bundle(tiny_bundle).golden().crops[:3]
    before = golden.copy()
    seen, mirrored = embedder.embed(golden), embedder.embed(mirror(golden))
    assert not np.allclose(seen, mirrored, rtol=1e-2)
    flipped = with_tta(embedder, "flip").embed(golden)
    assert flipped.dtype == np.float32
    np.testing.assert_allclose(flipped, (seen + mirrored) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(golden, before)
    # Once more gives the same: nothing that a pre-processing could have changed in place is left behind.
    np.testing.assert_array_equal(with_tta(embedder, "flip").embed(golden), flipped)


# Every augmentation: pre-processing once, nothing changed, bad crops


@pytest.mark.parametrize("tta", NAMES[1:])
def test_an_engine_that_changes_its_crops_in_place_does_no_harm(tta):
    """What fast-reid does: its first pass subtracts the mean from the caller's own pixels."""

    class InPlace(FirstColumn):
        def embed(self, crops):
            crops -= 128
            return crops[:, :, 0].mean(axis=1).astype(np.float32)

    spec = replace(SPEC, input=InputSpec(40, 20))
    crops = (noise(4, 40, 20) // 8 + 180).astype(np.uint8)  # no overshoot of a filter leaves 128 to 255
    before = crops.copy()
    got = with_tta(InPlace(spec), tta).embed(crops)
    np.testing.assert_array_equal(crops, before)
    np.testing.assert_allclose(got, with_tta(FirstColumn(spec), tta).embed(crops), rtol=1e-5)


@pytest.mark.parametrize("tta", NAMES[1:])
def test_each_view_reaches_the_engine_as_pixels_once(tta):
    """A view that had been pre-processed would not be uint8, and none is seen twice."""
    crops = noise(2, 40, 20)
    engine = Watching(replace(SPEC, input=InputSpec(40, 20)))
    with_tta(engine, tta).embed(crops)
    assert len(engine.seen) == {"flip": 2, "multiscale": len(SCALES), "flip+multiscale": 2 * len(SCALES)}[tta]
    assert all(view.dtype == np.uint8 and view.shape == crops.shape for view in engine.seen)
    assert len({view.tobytes() for view in engine.seen}) == len(engine.seen)
    assert any(np.array_equal(view, crops) for view in engine.seen)


@pytest.mark.parametrize("tta", NAMES)
def test_the_callers_crops_are_not_changed(crops, tta):
    before = crops.copy()
    crops.flags.writeable = False
    with_tta(FirstColumn(), tta).embed(crops)
    np.testing.assert_array_equal(crops, before)


@pytest.mark.parametrize("tta", NAMES)
@pytest.mark.parametrize("runtime", ["onnxruntime", "pytorch"])
def test_no_crops_and_wrong_crops(tiny_bundle, tta, runtime):
    embedder = with_tta(reidkit.load(tiny_bundle, runtime, threads=1), tta)
    empty = embedder.embed(np.zeros((0, 32, 16, 3), np.uint8))
    assert (empty.shape, empty.dtype) == ((0, 512), np.float32)
    for wrong in (np.zeros((32, 16), np.uint8), np.zeros((1, 16, 32, 3), np.uint8), np.zeros((1, 32, 16, 3), np.int64)):
        with as_installed(), pytest.raises(InputError, match="The crops do not fit the model\n  got: ") as caught:
            embedder.embed(wrong)
        assert caught.value.got == f"{wrong.dtype} {wrong.shape}"


# The mean


@pytest.mark.parametrize("tta", NAMES[1:])
def test_unit_length_is_kept_where_it_was_promised(crops, tta):
    embeddings = with_tta(Unit(), tta).embed(crops)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("engine", [FirstColumn, Unit])
def test_flip_and_scales_are_one_mean_over_all_views(engine):
    """Every view weighs the same. Flipping a multi-scale embedder of unit length would weigh them by how well the
    scales of each side agree."""
    crops = noise(6, 12, 18)
    engine = engine(replace(SPEC, input=InputSpec(12, 18)))
    views = [crops, closer(crops, 2, 3), farther(crops, 2, 3)]  # 12 (1 - 1/1.5) / 2, 18 (1 - 1/1.5) / 2
    expected = mean_of(*(engine.embed(view) for side in views for view in (side, mirror(side))))
    if engine.spec.normalized:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    embedder = MultiViewEmbedder(engine, scales=(1.0, 1.5, 0.75), flip=True)
    np.testing.assert_allclose(embedder.embed(crops), expected, rtol=1e-5, atol=1e-6)
    # And the difference would show.
    if engine.spec.normalized:
        inner = MultiViewEmbedder(engine, scales=(1.0, 1.5, 0.75))
        assert not np.allclose(MultiViewEmbedder(inner, flip=True).embed(crops), expected, rtol=1e-3)


@pytest.mark.parametrize("normalized", [False, True])
def test_opposites_cancel_out_to_zero_and_to_no_nan(normalized):
    class Opposite:
        spec = replace(SPEC, dim=2, normalized=normalized)

        def embed(self, crops):
            side = np.where(crops[:, 0, 0, 0] > crops[:, 0, -1, 0], 1, -1)
            return np.stack([side, 0 * side], axis=1).astype(np.float32)

    crops = np.zeros((1, 2, 3, 3), np.uint8)
    crops[0, :, 0] = 255
    assert with_tta(Opposite(), "flip").embed(crops).tolist() == [[0, 0]]


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.2, 0.8)])
def test_large_values_stay_finite(crops, scales):
    largest = np.finfo(np.float32).max

    class Large(FirstColumn):
        def embed(self, crops):
            return np.full((len(crops), 3), largest, np.float32)

    assert MultiViewEmbedder(Large(), scales=scales, flip=True).embed(crops).tolist() == [[largest] * 3] * 4


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(crops, normalized, broken):
    """To be named by whoever compares embeddings; a zero would hide it."""

    class Broken(FirstColumn):
        def embed(self, crops):
            embeddings = np.ones((len(crops), 3), np.float32)
            embeddings[2, 1] = broken
            return embeddings

    got = with_tta(Broken(replace(SPEC, normalized=normalized)), "flip").embed(crops)
    assert np.isfinite(got).all(axis=1).tolist() == [True, True, False, True]


# Scales


@pytest.mark.parametrize("tta", ["multiscale", "flip+multiscale"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "pytorch"])
def test_scales_on_a_real_engine(tiny_bundle, runtime, tta):
    embedder = reidkit.load(tiny_bundle, runtime, threads=1)
    crops = noise(3, 32, 16)
    views = []
    for scale in SCALES:
        down, right = (round(abs(side - side / scale) / 2) for side in (32, 16))
        views.append(crops if scale == 1 else (closer if scale > 1 else farther)(crops, down, right))
    if tta == "flip+multiscale":
        views += [mirror(view) for view in views]
    each = [embedder.embed(view) for view in views]
    assert all(not np.allclose(each[0], other, rtol=1e-2) for other in each[1:])
    got = with_tta(embedder, tta).embed(crops)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, mean_of(*each), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [InputSpec(2, 3), InputSpec(1, 1), InputSpec(37, 23)])
def test_scale_one_is_the_crop_bit_for_bit(spec):
    crops = noise(3, spec.height, spec.width)
    engine = Watching(replace(SPEC, input=spec))
    got = MultiViewEmbedder(engine).embed(crops)
    np.testing.assert_array_equal(engine.seen, [crops])
    np.testing.assert_array_equal(got, FirstColumn().embed(crops))
    for crop in crops:
        np.testing.assert_array_equal(at_scale(crop, 1.0, spec), crop)


@pytest.mark.parametrize("name", ["bilinear", "lanczos"])
@pytest.mark.parametrize(
    ("height", "width", "scale", "down", "right"),
    [
        (256, 128, 1.1, 12, 6),  # 256 (1 - 1/1.1) / 2 = 11.6, 128 (1 - 1/1.1) / 2 = 5.8
        (37, 23, 1.5, 6, 4),  # 6.2, 3.8
        (37, 23, 4.0, 14, 9),  # 13.9, 8.6
        (2, 3, 4.0, 0, 1),  # 0.75 and 1.1: a row has to be left
        (5, 1, 4.0, 2, 0),
        (256, 128, 0.9, -14, -7),  # 14.2, 7.1
        (37, 23, 0.5, -18, -12),  # 18.5, to the even one; 11.5 likewise
        (2, 3, 0.25, -3, -4),  # 3, 4.5
        (1, 1, 0.25, -2, -2),
    ],
)
def test_at_scale_by_pillow(height, width, scale, down, right, name):
    """The middle 1/scale of both sides, to whole pixels and the same on opposite sides, with the model's own filter."""
    crops = noise(2, height, width)
    spec = InputSpec(height, width, resize=name)
    view = closer(crops, down, right, Image.Resampling[name.upper()]) if scale > 1 else None
    expected = farther(crops, -down, -right, Image.Resampling[name.upper()]) if view is None else view
    np.testing.assert_array_equal([at_scale(crop, scale, spec) for crop in crops], expected)


def test_what_the_scales_look_like():
    """A white square in the middle of a black crop grows and shrinks; a frame is repeated around it."""
    crop = np.zeros((40, 20, 3), np.uint8)
    crop[10:30, 5:15] = 255
    spec = InputSpec(40, 20, resize="nearest")
    assert [(at_scale(crop, scale, spec) == 255).sum() / 3 for scale in (0.5, 1.0, 2.0)] == [50, 200, 800]
    framed = np.full((40, 20, 3), 9, np.uint8)
    framed[1:-1, 1:-1] = 77
    assert set(np.unique(at_scale(framed, 0.5, spec))) == {9, 77}
    assert (at_scale(framed, 0.5, spec)[:9] == 9).all()
    assert (at_scale(framed, 2.0, spec) == 77).all()


def test_views_come_one_after_the_other():
    """Ten scales take no more memory than two."""
    crops = noise(32, 48, 24)
    engine = FirstColumn(replace(SPEC, input=InputSpec(48, 24)))
    peaks = []
    for scales in ((0.9, 1.1), tuple(np.linspace(0.8, 1.2, 10))):
        embedder = MultiViewEmbedder(engine, scales=scales, flip=True)
        embedder.embed(crops)
        tracemalloc.start()
        embedder.embed(crops)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + crops.nbytes / 2
    assert peaks[1] < 4 * crops.nbytes


@pytest.mark.parametrize("scale", [0.0, -1.1, math.nan, math.inf, 100.0, 0.2, 4.1])
def test_a_scale_that_makes_no_sense(scale):
    message = rf"A scale is out of range\n  got: {scale}\n  expected: 0\.25 to 4"
    with pytest.raises(ConfigError, match=message):
        MultiViewEmbedder(FirstColumn(), scales=(1.0, scale))
    with pytest.raises(ConfigError, match=message):
        at_scale(noise()[0], scale, SPEC.input)


def test_no_scale_at_all():
    with pytest.raises(ConfigError, match=r"There is no scale to look at\n  got: none\n  expected: at least one"):
        MultiViewEmbedder(FirstColumn(), scales=())


# The names


def test_none_is_the_embedder_itself():
    plain = FirstColumn()
    assert with_tta(plain, "none") is plain
    for tta in NAMES[1:]:
        augmented = with_tta(plain, tta)
        assert isinstance(augmented, Embedder)
        assert augmented.spec is plain.spec


def test_an_unknown_name():
    with as_installed(), pytest.raises(ConfigError, match=r"Unknown test-time augmentation 'flop'(.|\n)*mean 'flip'"):
        with_tta(FirstColumn(), "flop")  # pyright: ignore[reportArgumentType]
