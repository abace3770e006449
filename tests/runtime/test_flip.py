"""Flip augmentation against mirrored crops that go through the same engine by hand."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

import reidkit
from conditions import as_installed
from reidkit.errors import InputError
from reidkit.runtime.flip import FlipEmbedder, with_tta
from reidkit.types import Embedder, EmbedderSpec, InputSpec

SPEC = EmbedderSpec(InputSpec(2, 3), 3, False, None, "fake", "float32", "cpu")


class FirstColumn:
    """Embeds a crop as the mean colour of its first column, less a middle grey as a pre-processing would; two clear
    ways to be wrong: the wrong axis, and the grey taken twice."""

    def __init__(self, spec=SPEC):
        self.spec = spec

    def embed(self, crops):
        return crops[:, :, 0].mean(axis=1).astype(np.float32) - 128


@pytest.fixture
def crops():
    return np.random.default_rng(0).integers(0, 256, (4, 2, 3, 3), dtype=np.uint8)


def mirror(crops):
    """Left to right, by Pillow."""
    return np.stack([np.asarray(ImageOps.mirror(Image.fromarray(crop))) for crop in crops])


def test_the_mean_of_both_by_hand(crops):
    expected = (crops[:, :, 0].astype(float).mean(1) + crops[:, :, -1].astype(float).mean(1)) / 2 - 128
    np.testing.assert_allclose(FlipEmbedder(FirstColumn()).embed(crops), expected, rtol=1e-6)


def test_a_crop_and_its_mirror_image_become_the_same(crops):
    embedder = FlipEmbedder(FirstColumn())
    np.testing.assert_array_equal(embedder.embed(crops), embedder.embed(mirror(crops)))


@pytest.mark.parametrize("runtime", ["onnxruntime", "pytorch"])
def test_a_real_engine(tiny_bundle, runtime):
    embedder = reidkit.load(tiny_bundle, runtime, threads=1)
    golden = reidkit.open_bundle(tiny_bundle).golden().crops[:3]
    before = golden.copy()
    seen, mirrored = embedder.embed(golden), embedder.embed(mirror(golden))
    assert not np.allclose(seen, mirrored, rtol=1e-2)
    flipped = FlipEmbedder(embedder).embed(golden)
    np.testing.assert_allclose(flipped, (seen + mirrored) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(golden, before)
    # Once more gives the same: nothing that a pre-processing could have changed in place is left behind.
    np.testing.assert_array_equal(FlipEmbedder(embedder).embed(golden), flipped)


def test_an_engine_that_changes_its_crops_in_place_does_no_harm(crops):
    """What fast-reid does: its first pass subtracts the mean from the caller's own pixels."""

    class InPlace(FirstColumn):
        def embed(self, crops):
            crops -= 128
            return crops[:, :, 0].mean(axis=1).astype(np.float32)

    crops = (crops // 2 + 128).astype(np.uint8)
    expected = (crops[:, :, 0].astype(float).mean(1) + crops[:, :, -1].astype(float).mean(1)) / 2 - 128
    np.testing.assert_allclose(FlipEmbedder(InPlace()).embed(crops.copy()), expected, rtol=1e-6)


def test_the_callers_crops_are_not_changed(crops):
    before = crops.copy()
    crops.flags.writeable = False
    FlipEmbedder(FirstColumn()).embed(crops)
    np.testing.assert_array_equal(crops, before)


def test_unit_length_is_kept_where_it_was_promised(crops):
    class Unit(FirstColumn):
        def embed(self, crops):
            embeddings = super().embed(crops)
            return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    embedder = FlipEmbedder(Unit(replace(SPEC, normalized=True)))
    embeddings = embedder.embed(crops)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    both = Unit().embed(crops) + Unit().embed(mirror(crops))
    np.testing.assert_allclose(embeddings, both / np.linalg.norm(both, axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_opposites_cancel_out_to_zero_and_to_no_nan(normalized):
    class Opposite:
        spec = replace(SPEC, dim=2, normalized=normalized)

        def embed(self, crops):
            side = np.where(crops[:, 0, 0, 0] > crops[:, 0, -1, 0], 1, -1)
            return np.stack([side, 0 * side], axis=1).astype(np.float32)

    crops = np.zeros((1, 2, 3, 3), np.uint8)
    crops[0, :, 0] = 255
    assert FlipEmbedder(Opposite()).embed(crops).tolist() == [[0, 0]]


def test_large_values_stay_finite(crops):
    class Large(FirstColumn):
        def embed(self, crops):
            return np.full((len(crops), 3), 3e38, np.float32)

    assert FlipEmbedder(Large()).embed(crops).tolist() == [[np.float32(3e38)] * 3] * 4


def test_no_crops_and_wrong_crops(tiny_bundle):
    embedder = FlipEmbedder(reidkit.load(tiny_bundle, "onnxruntime", threads=1))
    assert embedder.embed(np.zeros((0, 32, 16, 3), np.uint8)).shape == (0, 512)
    with as_installed(), pytest.raises(InputError, match="The crops do not fit the model"):
        embedder.embed(np.zeros((32, 16), np.uint8))


def test_none_is_the_embedder_itself():
    plain = FirstColumn()
    assert with_tta(plain, "none") is plain
    flipped = with_tta(plain, "flip")
    assert isinstance(flipped, FlipEmbedder)
    assert isinstance(flipped, Embedder)
    assert flipped.spec is plain.spec
