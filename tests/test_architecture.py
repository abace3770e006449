import math

import pytest

from conditions import as_installed
from reidkit.architecture import (
    CATALOGUE,
    HeadSpec,
    ModelSpec,
    OSNetSpec,
    ResNetSpec,
    TimmSpec,
    in_words,
    named_model,
    read_model_spec,
    with_size,
)
from reidkit.config import to_dict
from reidkit.errors import ConfigError


@pytest.mark.parametrize(
    ("spec", "dim"),
    [
        (ResNetSpec(depth=18), 512),
        (ResNetSpec(depth=34), 512),
        (ResNetSpec(depth=50), 2048),
        (ResNetSpec(depth=152), 2048),
        (OSNetSpec(width=1.0), 512),
        (OSNetSpec(width=0.25), 128),
    ],
)
def test_the_last_feature_map_is_as_wide_as_the_last_stage(spec, dim):
    assert spec.dim == dim


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (ResNetSpec, {"depth": 19}, "No ResNet of this depth\n  got: 19\n  expected: one of [18"),
        (ResNetSpec, {"last_stride": 0}, "The last stride cannot be this\n  got: 0\n  expected: 1 or 2"),
        (ResNetSpec, {"last_stride": 3}, "The last stride cannot be this\n  got: 3\n  expected: 1 or 2"),
        (ResNetSpec, {"non_local": "one"}, "Nobody has placed non-local blocks in a ResNet of this depth\n  got: 18"),
        (
            ResNetSpec,
            {"depth": 50, "non_local": "one", "preactivation": True},
            "A pre-activated ResNet has no non-local blocks\n  got: non_local one\n  expected: none",
        ),
        (
            HeadSpec,
            {"pooling": "average", "gem_learned": True},
            "Only GeM has an exponent to learn\n  got: pooling ave",
        ),
        (HeadSpec, {"embedding_bias": True}, "There is no embedding layer to have a bias"),
        (TimmSpec, {"size": (-1, 0)}, "The size of the crops is out of range\n  got: (-1, 0)"),
        (ModelSpec, {"backbone": ResNetSpec(preactivation=True), "branches": "mgn"}, "MGN has another backbone"),
        (OSNetSpec, {"width": 0.3}, "No OSNet of this width\n  got: 0.3\n  expected: one of [1.0, 0.75"),
        (TimmSpec, {"name": ""}, "A timm backbone has no name"),
        (HeadSpec, {"gem_p": 0.0}, "GeM's exponent is out of range\n  got: 0.0\n  expected: above 0, at most 16"),
        (HeadSpec, {"gem_p": 16.5}, "GeM's exponent is out of range\n  got: 16.5"),
        (HeadSpec, {"gem_p": math.nan}, "GeM's exponent is out of range\n  got: nan"),
        (HeadSpec, {"gem_p": math.inf}, "GeM's exponent is out of range\n  got: inf"),
        (HeadSpec, {"embedding_dim": -1}, "The width of the embedding layer is out of range\n  got: -1"),
        (ModelSpec, {"backbone": OSNetSpec(), "branches": "mgn"}, "MGN has another backbone\n  got: OSNetSpec"),
        (
            ModelSpec,
            {"backbone": ResNetSpec(depth=50, non_local="one"), "branches": "mgn"},
            "MGN has another backbone\n  got: ResNetSpec",
        ),
        (ModelSpec, {"head": HeadSpec(pooling="own")}, "A backbone of family resnet does not pool by itself"),
    ],
)
def test_what_cannot_be_is_refused(kind, options, text):
    with pytest.raises(ConfigError) as caught:
        kind(**options)
    assert str(caught.value).startswith(text)


def test_the_limits_themselves_can_be():
    assert ResNetSpec(last_stride=2).last_stride == 2
    assert HeadSpec(gem_p=16.0).gem_p == 16.0


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ResNetSpec, {"ibn": "c"}, "Unknown kind of IBN 'c'"),
        (ResNetSpec, {"max_pool": "floor"}, "Unknown max-pooling of the stem 'floor'"),
        (ResNetSpec, {"non_local": "all"}, "Unknown inner width of non-local blocks 'all'"),
        (OSNetSpec, {"variant": "aim"}, r"Unknown variant of OSNet 'aim'[\s\S]*did you mean 'ain'"),
        (HeadSpec, {"pooling": "mean"}, "Unknown pooling 'mean'"),
        (ModelSpec, {"branches": "two"}, "Unknown kind of branches 'two'"),
    ],
)
def test_an_option_that_is_not_there_is_refused(kind, options, message):
    with as_installed(), pytest.raises(ConfigError, match=message):
        kind(**options)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_named_network_goes_through_plain_values(name):
    assert read_model_spec(to_dict(named_model(name))) == CATALOGUE[name]


def test_no_two_names_mean_the_same_network():
    assert len(set(CATALOGUE.values())) == len(CATALOGUE)


def test_a_network_of_timm_has_a_name_too():
    assert named_model("timm:convnext_tiny") == ModelSpec(TimmSpec(name="convnext_tiny"), HeadSpec(pooling="own"))


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"Unknown model 'osnet-x0.2'[\s\S]*did you mean 'osnet-x0.25'"):
        named_model("osnet-x0.2")


@pytest.mark.parametrize("options", [None, 3, []])
def test_a_flat_spec_of_the_first_schema_that_is_none(options):
    with pytest.raises(ConfigError, match=r"architecture\.options has the wrong type"):
        read_model_spec({"family": "resnet", "options": options})


def test_only_a_network_of_timm_is_built_for_a_size():
    assert with_size(named_model("resnet18"), (64, 32)) == named_model("resnet18")
    sized = with_size(named_model("timm:vit_tiny_patch16_224"), (64, 32))
    assert sized.backbone == TimmSpec(name="vit_tiny_patch16_224", size=(64, 32))
    assert with_size(sized, (32, 32)) == sized
    assert "for 64x32" in in_words(sized)


def test_a_spec_in_words():
    spec = ModelSpec(ResNetSpec(depth=50, non_local="one"), HeadSpec(gem_learned=True))
    assert in_words(spec) == (
        "ResNet-50 with IBN-a, non-local (one), last stride 1, ceiling max-pool; learned GeM (from 3), BNneck"
    )
    assert in_words(named_model("osnet-ain-x0.5")) == "OSNet-AIN x0.5; average pooling, 512-d layer, BNneck, ReLU"
    assert in_words(named_model("mgn-r50-ibn")).startswith("MGN of ResNet-50 with IBN-a")
    assert in_words(named_model("timm:vit_tiny_patch16_224")) == "timm's vit_tiny_patch16_224; its own pooling, BNneck"
