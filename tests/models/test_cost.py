"""Counted costs against published ones.

Sources: torchvision's weight tables (`num_params` and `_ops` in billions, with the 1000-way classifier, 224 x 224);
torchreid's model zoo and what its `compute_model_complexity` prints for 256 x 128; Touvron et al., "Training
data-efficient image transformers", ICML 2021 (table 1); Liu et al., "A ConvNet for the 2020s", CVPR 2022 (table 1).
"""

import importlib.util

import pytest

from reidkit.architecture import CATALOGUE, HeadSpec, ModelSpec, ResNetSpec, named_model
from reidkit.errors import ConfigError, InputError
from reidkit.manifest import Cost
from reidkit.models.cost import anatomy, model_cost


def multiply_adds_of(cost):
    assert cost.multiply_adds is not None
    return cost.multiply_adds


BARE = HeadSpec(pooling="average", neck=False)


def imagenet(depth):
    """A ResNet as it was first published: stride 2 to the end, padded max-pooling, no neck."""
    return ModelSpec(ResNetSpec(depth=depth, ibn="none", last_stride=2, max_pool="pad"), BARE)


@pytest.mark.parametrize(
    ("depth", "parameters", "billions"),
    [
        (18, 11_689_512, 1.814),
        (34, 21_797_672, 3.664),
        (50, 25_557_032, 4.089),
        (101, 44_549_160, 7.801),
        (152, 60_192_808, 11.514),
    ],
)
def test_resnets_cost_what_torchvision_says(depth, parameters, billions):
    cost, dim = anatomy(imagenet(depth), (224, 224))
    assert dim == (512 if depth < 50 else 2048)
    assert cost.parameters + 1000 * dim + 1000 == parameters
    assert round((multiply_adds_of(cost) + 1000 * dim) / 1e9, 3) == billions


# torchreid's zoo says 2.2 M and 978.9 M for x1.0, 0.2 M and 82.3 M for x0.25; these are the exact numbers it prints.
@pytest.mark.parametrize(
    ("name", "middle", "parameters", "multiply_adds"),
    [
        ("osnet-x1.0", (64, 96, 128), 2_193_616, 978_878_352),
        ("osnet-x0.25", (16, 24, 32), 203_568, 82_316_000),
    ],
)
def test_osnets_cost_what_torchreid_prints(name, middle, parameters, multiply_adds):
    cost, dim = anatomy(CATALOGUE[name], (256, 128))
    assert dim == 512
    # Each block's gate, two 1x1 convolutions with biases, is one module that four streams go through. torchreid counts
    # its weights at each of the four, and every bias as a multiply-add; we count weights once and no biases.
    inner = [channels // 16 for channels in middle]
    gates = 2 * sum(2 * c * i + c + i for c, i in zip(middle, inner, strict=True))
    biases = 2 * 4 * sum(c + i for c, i in zip(middle, inner, strict=True)) + 512
    assert cost.parameters + 3 * gates == parameters
    assert multiply_adds_of(cost) + biases == multiply_adds


@pytest.mark.parametrize(("name", "millions"), [("osnet-x0.75", 571.8), ("osnet-x0.5", 272.9)])
def test_osnets_between(name, millions):
    assert multiply_adds_of(model_cost(CATALOGUE[name], (256, 128))) / 1e6 == pytest.approx(millions, abs=0.06)


def test_resnet50_of_torchreid():
    cost = model_cost(imagenet(50), (256, 128))
    assert (round(cost.parameters / 1e6, 1), round(multiply_adds_of(cost) / 1e9, 1)) == (23.5, 2.7)


def test_resnet18_by_hand():
    stem = 7 * 7 * 3 * 64 * (32 * 16)
    stage1 = 4 * 9 * 64 * 64 * (16 * 8)
    stage2 = (9 * 64 * 128 + 3 * 9 * 128 * 128 + 64 * 128) * (8 * 4)
    stage3 = (9 * 128 * 256 + 3 * 9 * 256 * 256 + 128 * 256) * (4 * 2)
    stage4 = (9 * 256 * 512 + 3 * 9 * 512 * 512 + 256 * 512) * (4 * 2)  # its stride is 1
    # 11,176,512 are torchvision's without the classifier; the neck has 1,024.
    assert model_cost(CATALOGUE["resnet18"], (64, 32)) == Cost(11_177_536, stem + stage1 + stage2 + stage3 + stage4)


def test_a_small_head_by_hand():
    plain = model_cost(imagenet(18), (32, 32))
    spec = ModelSpec(imagenet(18).backbone, HeadSpec(embedding_dim=7, embedding_bias=True, gem_learned=True))
    cost, dim = anatomy(spec, (32, 32))
    assert dim == 7
    assert cost.parameters == plain.parameters + 512 * 7 + 7 + 1 + 2 * 7  # layer, its bias, GeM's exponent, the neck
    assert multiply_adds_of(cost) == multiply_adds_of(plain) + 512 * 7


def test_mgn_gives_eight_embeddings():
    assert anatomy(CATALOGUE["mgn-r50-ibn"], (384, 128)).dim == 8 * 256


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_timm_attention_is_counted():
    spec = named_model("timm:vit_small_patch16_224")
    cost, dim = anatomy(spec, (224, 224))
    tokens, width = 14 * 14 + 1, 384
    block = 12 * tokens * width**2 + 2 * tokens**2 * width  # q, k, v, projection and MLP; then QK' and its values
    assert multiply_adds_of(cost) == 196 * 3 * 16**2 * width + 12 * block
    assert round(multiply_adds_of(cost) / 1e9, 1) == 4.6  # DeiT-S
    assert (round(cost.parameters / 1e6), dim) == (22, 384)
    assert multiply_adds_of(model_cost(spec, (256, 128))) < multiply_adds_of(
        cost
    )  # built for its own 224 it would refuse


def test_nothing_is_allocated(monkeypatch):
    import torch

    devices = set()
    build = torch.nn.Conv2d.__init__

    def watched(self, *arguments, **options):
        build(self, *arguments, **options)
        devices.add(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Conv2d, "__init__", watched)
    state = torch.random.get_rng_state()
    model_cost(CATALOGUE["resnet18"], (64, 32))
    assert devices == {"meta"}
    assert torch.equal(torch.random.get_rng_state(), state)  # and nobody's random numbers change
    assert torch.nn.Linear(1, 1).weight.device.type == "cpu"
    assert torch.empty(9).normal_().unique().numel() > 1  # filled again


@pytest.mark.parametrize("size", [(0, 128), (256, -1)])
def test_a_size_that_is_none(size):
    with pytest.raises(ConfigError, match=r"The input size is out of range\n  got: .*height x width"):
        model_cost(CATALOGUE["resnet18"], size)


def test_a_crop_too_small_for_the_network():
    with pytest.raises(
        ConfigError, match=r"OSNet x1.0; .* takes no crop of 16x8 \(height x width\)\n  got: .*too small"
    ):
        model_cost(CATALOGUE["osnet-x1.0"], (16, 8))
    with pytest.raises(InputError, match="The crops are too low for MGN"):
        model_cost(CATALOGUE["mgn-r50-ibn"], (16, 8))
