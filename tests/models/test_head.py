"""Pooling and neck by hand, from the formulas; and what the losses see."""

import numpy as np
import pytest
import torch

from reidkit.architecture import HeadSpec
from reidkit.models.head import GeneralizedMean, Head


def gem_by_hand(x, p):
    return (np.maximum(np.asarray(x, np.float64), 1e-6) ** p).mean(axis=(2, 3), keepdims=True) ** (1 / p)


def feature_map(seed=0, shape=(2, 512, 3, 2)):
    return torch.from_numpy(np.random.default_rng(seed).normal(0.5, 1.0, shape)).float()


@pytest.mark.parametrize("p", [1.0, 2.5, 3.0, 6.5])
@pytest.mark.parametrize("learned", [False, True])
def test_gem_by_hand(p, learned):
    x = feature_map(shape=(3, 4, 5, 2))
    assert (x < 0).any()  # the clamp has something to do
    got = GeneralizedMean(p, learned=learned)(x).detach().numpy()
    np.testing.assert_allclose(got, gem_by_hand(x, p), rtol=1e-5)


def test_gem_counts_what_is_below_the_floor_as_the_floor():
    x = torch.tensor([-5.0, 0.0, 1e-9, 1e-6]).view(1, 1, 2, 2)
    assert GeneralizedMean(1.0, learned=False)(x).item() == pytest.approx(1e-6, rel=1e-5)
    all_negative = GeneralizedMean(3.0, learned=False)(-feature_map().abs())
    np.testing.assert_allclose(all_negative, np.full(all_negative.shape, 1e-6), rtol=1e-5)


def test_gem_runs_between_the_mean_and_the_maximum():
    x = feature_map(shape=(2, 8, 4, 4)).abs() + 0.1
    mean, high = GeneralizedMean(1.0, learned=False)(x), GeneralizedMean(40.0, learned=False)(x)
    np.testing.assert_allclose(mean, x.numpy().mean(axis=(2, 3), keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(high, x.numpy().max(axis=(2, 3), keepdims=True), rtol=0.08)


def test_gem_is_float32_where_float16_would_overflow():
    x = torch.full((1, 1, 2, 2), 100.0, dtype=torch.float16)
    assert not torch.isfinite(x**3).all()
    got = GeneralizedMean(3.0, learned=False)(x)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(100.0, rel=1e-5)


def test_gem_is_float32_under_autocast():
    x = feature_map(shape=(2, 3, 4, 4)).bfloat16()
    pool = GeneralizedMean(3.0, learned=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = pool(x)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.detach().numpy(), gem_by_hand(x.float(), 3.0), rtol=1e-5)


def test_a_learned_exponent_gets_the_gradient_of_the_formula():
    x, p, step = feature_map(shape=(1, 1, 3, 3)), 3.0, 1e-5
    pool = GeneralizedMean(p, learned=True)
    pool(x).sum().backward()
    slope = (gem_by_hand(x, p + step) - gem_by_hand(x, p - step)).item() / (2 * step)
    assert pool.p.grad.item() == pytest.approx(slope, rel=1e-3)


def test_the_exponent_is_a_weight_only_when_it_is_learned():
    fixed, learned = Head(HeadSpec(), 8, None), Head(HeadSpec(gem_learned=True, gem_p=4.0), 8, None)
    assert "pool_layer.p" not in fixed.state_dict()
    assert learned.state_dict()["pool_layer.p"].tolist() == [4.0]
    assert dict(learned.named_parameters())["pool_layer.p"].requires_grad


def mean_and_max(x, axis):
    return np.mean(x, axis=axis) + np.max(x, axis=axis)


@pytest.mark.parametrize(("pooling", "by_hand"), [("average", np.mean), ("max", np.max), ("average+max", mean_and_max)])
def test_average_and_maximum_pooling_and_their_sum(pooling, by_hand):
    x = feature_map()
    before, _ = Head(HeadSpec(pooling=pooling), 512, None).eval()(x)
    np.testing.assert_allclose(before, by_hand(x.numpy(), axis=(2, 3)), rtol=1e-5, atol=1e-6)


def test_what_a_backbone_has_pooled_itself_passes_as_it_is():
    x = feature_map(shape=(3, 8, 1, 1))
    before, after = Head(HeadSpec(pooling="own", neck=False), 8, None).eval()(x)
    assert torch.equal(before, x[:, :, 0, 0])
    assert torch.equal(after, before)


NECK = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize(
    ("options", "names", "dim"),
    [
        ({}, {f"bottleneck.0.{name}" for name in NECK}, 8),
        ({"neck": False}, set(), 8),
        ({"neck": False, "relu": True, "gem_learned": True}, {"pool_layer.p"}, 8),
        ({"embedding_dim": 3}, {"bottleneck.0.weight"} | {f"bottleneck.1.{name}" for name in NECK}, 3),
        ({"embedding_dim": 3, "embedding_bias": True, "neck": False}, {"bottleneck.0.weight", "bottleneck.0.bias"}, 3),
        (
            {"embedding_dim": 3, "embedding_bias": True, "relu": True},
            {"bottleneck.0.weight", "bottleneck.0.bias"} | {f"bottleneck.1.{name}" for name in NECK},
            3,
        ),
    ],
)
@pytest.mark.parametrize("identities", [None, 7])
def test_names_and_shapes_are_those_of_fast_reid(options, names, dim, identities):
    head = Head(HeadSpec(**options), 8, identities)
    shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    assert head.dim == dim
    assert shapes.pop("weight", None) == (None if identities is None else (7, dim))
    assert set(shapes) == names
    expected = {"pool_layer.p": (1,), "bottleneck.0.weight": (3, 8, 1, 1) if dim == 3 else (8,)}
    for name, shape in shapes.items():
        assert shape == (() if name.endswith("tracked") else expected.get(name, (dim,)))


def randomise(head, seed=2):
    """A value of its own for every weight and statistic, the neck's bias included, as in torchreid's files."""
    rng = np.random.default_rng(seed)
    for name, tensor in head.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.from_numpy(rng.uniform(0.2, 2, tensor.shape)))
        elif tensor.ndim:
            tensor.copy_(torch.from_numpy(rng.normal(0.1, 1, tensor.shape)))
    return head.eval()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("neck", [False, True])
@pytest.mark.parametrize(("embedding_dim", "bias"), [(0, False), (5, False), (5, True)])
def test_the_embedding_by_hand(embedding_dim, bias, neck, relu):
    spec = HeadSpec(embedding_dim=embedding_dim, embedding_bias=bias, neck=neck, relu=relu)
    head = randomise(Head(spec, 9, None))
    w = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    x = feature_map(shape=(4, 9, 3, 2))
    before, after = head(x)
    pooled = expected = gem_by_hand(x, 3.0).reshape(4, 9)
    if embedding_dim:
        expected = expected @ w["bottleneck.0.weight"][:, :, 0, 0].T + w.get("bottleneck.0.bias", 0)
    if neck:
        name = "bottleneck.1" if embedding_dim else "bottleneck.0"
        centred = (expected - w[f"{name}.running_mean"]) / np.sqrt(w[f"{name}.running_var"] + 1e-5)
        expected = centred * w[f"{name}.weight"] + w[f"{name}.bias"]
    if relu:
        assert (expected < 0).any() or not (embedding_dim or neck)
        expected = np.maximum(expected, 0)
    np.testing.assert_allclose(before, pooled, rtol=1e-5)
    np.testing.assert_allclose(after.detach(), expected, rtol=1e-4, atol=1e-5)


def test_evaluation_needs_no_labels_and_gives_what_comes_after_the_neck_as_long_as_it_is():
    torch.manual_seed(0)
    head, x = Head(HeadSpec(), 6, None).eval(), feature_map(shape=(2, 6, 3, 3))
    # A fresh neck: mean 0, variance 1, scale 1.
    expected = gem_by_hand(x, 3.0).reshape(2, 6) / np.sqrt(1 + 1e-5)
    _, after = head(x)
    np.testing.assert_allclose(after.detach(), expected, rtol=1e-5)
    assert np.abs(np.linalg.norm(after.detach(), axis=1) - 1).min() > 0.1  # not normalised


@pytest.mark.parametrize("pooling", ["gem", "average", "max", "average+max"])
def test_the_whole_head_is_float32_under_autocast(pooling):
    head = randomise(Head(HeadSpec(pooling=pooling, embedding_dim=4), 6, None))
    x = feature_map(shape=(3, 6, 4, 4)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head(x)
    wanted = head(x.float())
    assert [part.dtype for part in got] == [torch.float32] * 2
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))


def test_neck_in_training_takes_the_statistics_of_the_batch():
    head = Head(HeadSpec(), 512, 3).train()
    x = feature_map(shape=(6, 512, 2, 2))
    _, after = head(x)
    pooled = gem_by_hand(x, 3.0).reshape(6, 512)
    expected = (pooled - pooled.mean(axis=0)) / np.sqrt(pooled.var(axis=0) + 1e-5)
    np.testing.assert_allclose(after.detach(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("embedding_dim", "place"), [(0, 0), (5, 1)])
def test_the_bias_of_the_neck_is_zero_and_stays_zero(embedding_dim, place):
    torch.manual_seed(1)
    head = Head(HeadSpec(embedding_dim=embedding_dim), 16, 3).train()
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    neck = head.bottleneck[place]
    weight = neck.weight.clone()
    for seed in range(2):
        outputs = head.training_outputs(feature_map(seed, (4, 16, 2, 2)))
        (outputs.embedding @ outputs.classifier.T).square().sum().backward()
        optimizer.step()
    assert not torch.equal(neck.weight, weight)  # the rest of the neck does learn
    assert neck.bias.tolist() == [0.0] * head.dim


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("embedding_dim", [0, 5])
def test_what_the_losses_see(embedding_dim, whole):
    head = randomise(Head(HeadSpec(embedding_dim=embedding_dim), 9, 7))
    x = feature_map(shape=(4, 9, 3, 2))
    pooled, embedding, classifier, is_whole = head.training_outputs(x, whole=whole)
    before, after = head(x)
    assert torch.equal(pooled, before)
    assert torch.equal(embedding, after)
    assert pooled.shape == (4, 9)  # of the feature map, also where the embedding is narrower
    assert embedding.shape == (4, embedding_dim or 9)
    assert classifier is head.weight  # what learns, not a copy
    assert classifier.shape == (7, embedding_dim or 9)
    assert is_whole == whole


def test_all_of_a_head_learns_but_the_bias_of_its_neck():
    head = Head(HeadSpec(embedding_dim=5, gem_learned=True), 9, 7).train()
    outputs = head.training_outputs(feature_map(shape=(4, 9, 3, 2)))
    # As the losses ask: classification after the neck, distances before it.
    ((outputs.embedding @ outputs.classifier.T).logsumexp(dim=1).sum() + outputs.pooled.square().sum()).backward()
    without = {name for name, parameter in head.named_parameters() if parameter.grad is None}
    assert without == {"bottleneck.1.bias"}


def test_a_model_without_identities_has_no_classifier():
    head = Head(HeadSpec(), 512, None)
    assert "weight" not in head.state_dict()
    with pytest.raises(AssertionError, match="a model built without identities has no classifier"):
        head.training_outputs(torch.zeros(1, 512, 2, 2))
