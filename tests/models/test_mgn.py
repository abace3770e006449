"""The network of three branches: published names, and which part of which map ends up where."""

import numpy as np
import pytest
import torch

from reidkit.architecture import CATALOGUE, HeadSpec, ModelSpec, ResNetSpec
from reidkit.errors import InputError
from reidkit.models.mgn import MGN
from reidkit.models.resnet import ResNet

SMALL = ModelSpec(ResNetSpec(), HeadSpec(pooling="average", embedding_dim=3), branches="mgn")
HEADS = ("b1", "b2", "b3", "b21", "b22", "b31", "b32", "b33")


@pytest.fixture(scope="module")
def network():
    """MGN on a ResNet-18, every weight and statistic of its own, in evaluation."""
    torch.manual_seed(0)
    network = MGN(SMALL)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.ndim == 1:
            tensor.normal_(1.0 if name.endswith(".weight") else 0.0, 0.2)
    return network.eval()


def on_meta(spec, identities=None):
    with torch.device("meta"):
        return MGN(spec, identities)


def published_names(trunk):
    """Where fast-reid's MGN keeps each tensor of a ResNet-50."""
    names = set()
    for name in trunk:
        top, _, rest = name.partition(".")
        block, _, below = rest.partition(".")
        if top in {"conv1", "bn1", "layer1", "layer2"}:
            place = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5}[top]
            names.add(f"backbone.{place}.{rest}")
        elif top == "layer3" and block == "0":
            names.add(f"backbone.6.{below}")
        elif top == "layer3":
            names |= {f"b{branch}.0.{int(block) - 1}.{below}" for branch in (1, 2, 3)}
        else:
            names |= {f"b{branch}.1.{rest}" for branch in (1, 2, 3)}
    return names


def test_names_are_those_of_fast_reid_and_as_many_as_published():
    # 728: with IBN-a, learned exponents, embedding layers without a bias, and all eight classifiers.
    spec = CATALOGUE["mgn-r50-ibn"]
    network = on_meta(spec, 751)
    with torch.device("meta"):
        trunk = ResNet(spec.backbone).state_dict()
    neck = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    head = {"pool_layer.p", "weight", "bottleneck.0.weight", *(f"bottleneck.1.{name}" for name in neck)}
    names = published_names(trunk) | {f"{part}_head.{name}" for part in HEADS for name in head}
    assert set(network.state_dict()) == names
    assert len(names) == 728
    assert network.dim == 8 * 256


def test_shapes_of_what_is_split_and_of_the_heads():
    shapes = {name: tuple(t.shape) for name, t in on_meta(CATALOGUE["mgn-r50-ibn"], 751).state_dict().items()}
    assert shapes["backbone.6.conv1.weight"] == (256, 512, 1, 1)
    assert shapes["backbone.6.downsample.0.weight"] == (1024, 512, 1, 1)
    for branch in (1, 2, 3):
        assert shapes[f"b{branch}.0.0.conv1.weight"] == (256, 1024, 1, 1)
        assert shapes[f"b{branch}.1.0.downsample.0.weight"] == (2048, 1024, 1, 1)
    for part in HEADS:
        assert shapes[f"{part}_head.pool_layer.p"] == (1,)
        assert shapes[f"{part}_head.bottleneck.0.weight"] == (256, 2048, 1, 1)
        assert shapes[f"{part}_head.weight"] == (751, 256)


def test_without_identities_no_head_has_a_classifier():
    assert not [name for name in on_meta(SMALL).state_dict() if name.endswith("_head.weight")]


def maps_of(network, x):
    """What the three branches give for a picture, by running their parts one after the other."""
    with torch.inference_mode():
        shared = network.backbone(x)
        return {branch: getattr(network, branch)(shared).double().numpy() for branch in ("b1", "b2", "b3")}


def head_by_hand(network, part, cut):
    w = {name: t.double().numpy() for name, t in getattr(network, f"{part}_head").state_dict().items()}
    y = cut.mean(axis=(2, 3)) @ w["bottleneck.0.weight"][:, :, 0, 0].T
    centred = (y - w["bottleneck.1.running_mean"]) / np.sqrt(w["bottleneck.1.running_var"] + 1e-5)
    return centred * w["bottleneck.1.weight"] + w["bottleneck.1.bias"]


@pytest.mark.parametrize(
    ("height", "halves", "thirds"),
    [
        (96, (0, 3, 6), (0, 2, 4, 6)),
        (80, (0, 3, 5), (0, 2, 4, 5)),  # a map of height 5: what is left over goes short at the bottom
    ],
)
def test_parts_are_cut_from_top_to_bottom_and_stand_in_the_published_order(network, height, halves, thirds):
    x = torch.randn(2, 3, height, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        got = network(x).numpy()
    maps = maps_of(network, x)
    assert maps["b1"].shape == (2, 512, halves[-1], 2)
    cuts = {
        **maps,
        "b21": maps["b2"][:, :, halves[0] : halves[1]],
        "b22": maps["b2"][:, :, halves[1] : halves[2]],
        "b31": maps["b3"][:, :, thirds[0] : thirds[1]],
        "b32": maps["b3"][:, :, thirds[1] : thirds[2]],
        "b33": maps["b3"][:, :, thirds[2] : thirds[3]],
    }
    expected = np.concatenate([head_by_hand(network, part, cuts[part]) for part in HEADS], axis=1)
    assert got.shape == (2, network.dim) == (2, 24)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_each_branch_is_the_rest_of_a_resnet(network):
    """The shared part and one branch, put together again, are a ResNet."""
    weights = network.state_dict()
    names = {"backbone.0": "conv1", "backbone.1": "bn1", "backbone.4": "layer1", "backbone.5": "layer2"}
    names |= {"backbone.6": "layer3.0", "b2.0.0": "layer3.1", "b2.1": "layer4"}
    tensors = {
        f"{inside}{name.removeprefix(outside)}": tensor
        for name, tensor in weights.items()
        for outside, inside in names.items()
        if name.startswith(f"{outside}.")
    }
    trunk = ResNet(ResNetSpec()).eval()
    trunk.load_state_dict(tensors)
    x = torch.randn(1, 3, 64, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = trunk(x).double().numpy()
    np.testing.assert_allclose(maps_of(network, x)["b2"], expected, rtol=1e-5, atol=1e-6)


def test_only_the_first_branch_keeps_a_last_stride_of_two():
    network = on_meta(ModelSpec(ResNetSpec(last_stride=2), SMALL.head, "mgn"))
    shared = network.backbone(torch.zeros(1, 3, 96, 32, device="meta"))
    sizes = [tuple(branch(shared).shape[2:]) for branch in (network.b1, network.b2, network.b3)]
    assert sizes == [(3, 1), (6, 2), (6, 2)]


def test_the_branches_begin_with_the_same_weights_and_share_none():
    network = MGN(SMALL)
    first, *others = (getattr(network, branch).state_dict() for branch in ("b1", "b2", "b3"))
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    places = [tensor.data_ptr() for weights in (first, *others) for tensor in weights.values()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(("height", "rows"), [(32, 2), (64, 4)])
def test_crops_that_cannot_be_cut_in_three_are_refused(network, height, rows):
    # A third of 4 rows is rounded up to 2, which leaves none for the third part.
    with torch.inference_mode(), pytest.raises(InputError) as caught:
        network(torch.zeros(1, 3, height, 32))
    assert str(caught.value) == (
        "The crops are too low for MGN\n"
        f"  got: a last feature map of height {rows}\n"
        "  expected: one that can be cut in 3\n"
        "  to do: take higher crops, such as 384 x 128"
    )


# -- in training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learner():
    """The small MGN with classifiers of four identities."""
    torch.manual_seed(3)
    return MGN(SMALL, 4)


def pictures(count=4):
    return torch.randn(count, 3, 96, 32, generator=torch.Generator().manual_seed(5))


def test_the_losses_see_eight_heads_of_which_three_saw_the_whole_crop(learner):
    with torch.inference_mode():
        outputs = learner.eval().training_outputs(pictures())
        embedding = learner(pictures())
    assert [head.whole for head in outputs] == [True] * 3 + [False] * 5
    assert torch.equal(torch.cat([head.embedding for head in outputs], dim=1), embedding)
    assert {tuple(head.pooled.shape) for head in outputs} == {(4, 512)}
    for part, head in zip(HEADS, outputs, strict=True):
        assert head.classifier is getattr(learner, f"{part}_head").weight
        assert head.classifier.shape == (4, 3)


def test_everything_in_it_learns_but_the_biases_of_the_necks(learner):
    learner.train().zero_grad(set_to_none=True)
    outputs = learner.training_outputs(pictures())
    torch.stack([(head.embedding @ head.classifier.T).logsumexp(dim=1).sum() for head in outputs]).sum().backward()
    still = {name for name, parameter in learner.named_parameters() if parameter.grad is None}
    assert still == {f"{part}_head.bottleneck.1.bias" for part in HEADS}


def test_a_stripe_moves_its_own_branch_and_the_trunk_only(learner):
    learner.train().zero_grad(set_to_none=True)
    outputs = learner.training_outputs(pictures())
    stripe = outputs[HEADS.index("b32")]
    (stripe.embedding @ stripe.classifier.T).logsumexp(dim=1).sum().backward()
    moved = {name.split(".")[0] for name, parameter in learner.named_parameters() if parameter.grad is not None}
    assert moved == {"backbone", "b3", "b32_head"}


def test_without_identities_there_is_nothing_to_train(network):
    with pytest.raises(AssertionError, match="a model built without identities has no classifier"):
        network.training_outputs(pictures(1))
