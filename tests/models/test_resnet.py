"""The trunk against fast-reid's published layout: names, shapes, sizes, and each normalisation by hand."""

import math

import numpy as np
import pytest
import torch

from reidkit.architecture import ResNetSpec
from reidkit.errors import ConfigError
from reidkit.models.model import EmbeddingModel
from reidkit.models.resnet import InstanceBatchNorm, ResNet


def batch_norm(name, channels):
    vectors = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**vectors, f"{name}.num_batches_tracked": ()}


def fast_reid_layout(*, ibn, identities=None, gem_learned=False):
    """Names and shapes of fast-reid's ResNet-18, written out from its checkpoints."""
    layout = {"backbone.conv1.weight": (64, 3, 7, 7), **batch_norm("backbone.bn1", 64)}
    inputs = 64
    for stage, width in ((1, 64), (2, 128), (3, 256), (4, 512)):
        for block in (0, 1):
            name = f"backbone.layer{stage}.{block}"
            layout[f"{name}.conv1.weight"] = (width, inputs, 3, 3)
            if ibn and stage < 4:
                layout |= {f"{name}.bn1.IN.weight": (width // 2,), f"{name}.bn1.IN.bias": (width // 2,)}
                layout |= batch_norm(f"{name}.bn1.BN", width // 2)
            else:
                layout |= batch_norm(f"{name}.bn1", width)
            layout[f"{name}.conv2.weight"] = (width, width, 3, 3)
            layout |= batch_norm(f"{name}.bn2", width)
            if inputs != width:
                layout[f"{name}.downsample.0.weight"] = (width, inputs, 1, 1)
                layout |= batch_norm(f"{name}.downsample.1", width)
            inputs = width
    layout |= batch_norm("heads.bottleneck.0", 512)
    if identities is not None:
        layout["heads.weight"] = (identities, 512)
    if gem_learned:
        layout["heads.pool_layer.p"] = (1,)
    return layout


@pytest.mark.parametrize("ibn", ["a", "none"])
@pytest.mark.parametrize(("identities", "gem_learned"), [(None, False), (751, True)])
def test_names_and_shapes_are_those_of_fast_reid(ibn, identities, gem_learned):
    model = EmbeddingModel(ResNetSpec(ibn=ibn, gem_learned=gem_learned), identities=identities)
    got = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert got == fast_reid_layout(ibn=ibn == "a", identities=identities, gem_learned=gem_learned)


def test_tensors_and_parameters_add_up():
    model = EmbeddingModel(ResNetSpec(ibn="a"), identities=10)
    # torchvision's ResNet-18 has 11,689,512 parameters, of which 513,000 are its classifier; the neck adds 2 x 512.
    assert sum(p.numel() for p in model.parameters()) == 11_689_512 - 513_000 + 2 * 512 + 10 * 512
    # It has 122 tensors, 2 of them the classifier's. Each of the 6 halved normalisations holds 7 and not 5.
    assert len(model.state_dict()) == 122 - 2 + 6 * 2 + 5 + 1


def test_every_normalisation_has_the_published_epsilon():
    norms = (torch.nn.BatchNorm2d, torch.nn.InstanceNorm2d)
    epsilons = [m.eps for m in EmbeddingModel(ResNetSpec()).modules() if isinstance(m, norms)]
    assert epsilons == [1e-5] * (1 + 6 * 3 + 2 * 2 + 3 + 1)


@pytest.mark.parametrize("channels", [6, 5])
def test_instance_batch_norm_by_hand(channels):
    # A spread of about the epsilon, so that another epsilon would show.
    rng = np.random.default_rng(1)
    x = rng.normal(0.3, 4e-3, (3, channels, 4, 5))
    half = channels // 2
    layer = InstanceBatchNorm(channels).eval()
    facts = {
        "IN.weight": rng.normal(1, 0.3, half),
        "IN.bias": rng.normal(0, 0.3, half),
        "BN.weight": rng.normal(1, 0.3, channels - half),
        "BN.bias": rng.normal(0, 0.3, channels - half),
        "BN.running_mean": rng.normal(0.3, 0.01, channels - half),
        "BN.running_var": rng.uniform(1e-5, 3e-5, channels - half),
        "BN.num_batches_tracked": np.array(1),
    }
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in facts.items()})
    expected = np.empty_like(x)
    for n in range(3):
        for c in range(half):
            values = x[n, c]
            centred = (values - values.mean()) / math.sqrt(values.var() + 1e-5)
            expected[n, c] = centred * facts["IN.weight"][c] + facts["IN.bias"][c]
        for c in range(half, channels):
            k = c - half
            centred = (x[n, c] - facts["BN.running_mean"][k]) / math.sqrt(facts["BN.running_var"][k] + 1e-5)
            expected[n, c] = centred * facts["BN.weight"][k] + facts["BN.bias"][k]
    got = layer(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("height", "width", "last_stride", "expected"),
    [
        (256, 128, 1, (16, 8)),
        (256, 128, 2, (8, 4)),
        (32, 16, 1, (2, 1)),
        (32, 16, 2, (1, 1)),
        (33, 17, 1, (2, 1)),  # 17 x 9, pooled 8 x 4
        (35, 19, 1, (3, 2)),  # 18 x 10, pooled 9 x 5: the ceiling counts, a floor would give 8 x 4 and then 2 x 1
        (35, 19, 2, (2, 1)),
        (19, 3, 1, (2, 1)),  # the smallest that works
    ],
)
def test_size_of_the_last_feature_map(height, width, last_stride, expected):
    backbone = ResNet(ResNetSpec(last_stride=last_stride)).eval()
    with torch.inference_mode():
        assert tuple(backbone(torch.zeros(1, 3, height, width)).shape) == (1, 512, *expected)


def test_stem_pools_windows_that_hang_over_the_edge_and_none_before_it():
    pool = ResNet(ResNetSpec()).maxpool
    row = torch.tensor([5.0, 1.0, 2.0, 3.0, 9.0, 4.0, -7.0, -8.0])
    got = pool(row.view(1, 1, 1, 8).expand(1, 1, 3, 8))
    # Windows 0..2, 2..4, 4..6 and the cut one 6..7; padding of one would begin with -1..1 and end with 5..7.
    assert got[0, 0].tolist() == [[5.0, 9.0, 9.0, -7.0]]


def test_stage_strides_sit_on_the_first_convolution_and_the_shortcut():
    backbone = ResNet(ResNetSpec(last_stride=1))
    for stage, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
        first, second = getattr(backbone, f"layer{stage}")
        assert (first.conv1.stride, first.conv2.stride) == ((stride, stride), (1, 1))
        assert (second.conv1.stride, second.conv2.stride) == ((1, 1), (1, 1))
        assert (first.downsample is None) == (stage == 1)


def test_impossible_networks_are_refused():
    with pytest.raises(ConfigError, match=r"No ResNet of this depth\n  got: 19\n  expected: one of \[18"):
        ResNetSpec(depth=19)
    with pytest.raises(ConfigError, match=r"last stride cannot be this\n  got: 3\n  expected: 1 or 2"):
        ResNetSpec(last_stride=3)
    for p in (0.0, -1.0, math.nan, math.inf, 101.0):
        with pytest.raises(ConfigError, match="exponent is out of range"):
            ResNetSpec(gem_p=p)
