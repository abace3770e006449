"""Pooling and neck by hand, from the formulas."""

import numpy as np
import pytest
import torch

from reidkit.architecture import ResNetSpec
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
    fixed, learned = Head(ResNetSpec(gem_learned=False), None), Head(ResNetSpec(gem_learned=True, gem_p=4.0), None)
    assert "pool_layer.p" not in fixed.state_dict()
    assert learned.state_dict()["pool_layer.p"].tolist() == [4.0]
    assert dict(learned.named_parameters())["pool_layer.p"].requires_grad


@pytest.mark.parametrize(("pooling", "by_hand"), [("average", np.mean), ("max", np.max)])
def test_average_and_maximum_pooling(pooling, by_hand):
    x = feature_map()
    before, _ = Head(ResNetSpec(pooling=pooling), None).eval()(x)
    np.testing.assert_allclose(before, by_hand(x.numpy(), axis=(2, 3)), rtol=1e-5, atol=1e-6)


def test_neck_in_evaluation_by_hand():
    rng = np.random.default_rng(2)
    mean, var, scale = rng.normal(0, 1, 512), rng.uniform(0.2, 2, 512), rng.normal(1, 0.3, 512)
    head = Head(ResNetSpec(), None).eval()
    neck = head.bottleneck[0]
    for target, values in ((neck.running_mean, mean), (neck.running_var, var), (neck.weight.data, scale)):
        target.copy_(torch.from_numpy(values))
    x = feature_map()
    before, after = head(x)
    pooled = gem_by_hand(x, 3.0).reshape(2, 512)
    np.testing.assert_allclose(before, pooled, rtol=1e-5)
    np.testing.assert_allclose(after.detach(), (pooled - mean) / np.sqrt(var + 1e-5) * scale, rtol=1e-4, atol=1e-5)


def test_neck_in_training_takes_the_statistics_of_the_batch():
    head = Head(ResNetSpec(), 3).train()
    x = feature_map(shape=(6, 512, 2, 2))
    _, after = head(x)
    pooled = gem_by_hand(x, 3.0).reshape(6, 512)
    expected = (pooled - pooled.mean(axis=0)) / np.sqrt(pooled.var(axis=0) + 1e-5)
    np.testing.assert_allclose(after.detach(), expected, rtol=1e-3, atol=1e-4)


def test_the_bias_of_the_neck_is_zero_and_stays_zero():
    head = Head(ResNetSpec(), 3).train()
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    weight = head.bottleneck[0].weight.clone()
    for seed in range(2):
        head.logits(head(feature_map(seed, (4, 512, 2, 2)))[1]).square().sum().backward()
        optimizer.step()
    assert not torch.equal(head.bottleneck[0].weight, weight)  # the rest of the neck does learn
    assert head.bottleneck[0].bias.tolist() == [0.0] * 512


def test_logits_are_inner_products_without_a_bias():
    head = Head(ResNetSpec(), 7)
    embeddings = feature_map(shape=(5, 512, 1, 1)).flatten(1)
    expected = embeddings.double().numpy() @ head.weight.detach().double().numpy().T
    np.testing.assert_allclose(head.logits(embeddings).detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_identities_has_no_classifier():
    head = Head(ResNetSpec(), None)
    assert "weight" not in head.state_dict()
    with pytest.raises(AssertionError, match="a model built without identities has no classifier"):
        head.logits(torch.zeros(1, 512))
