"""Losses against loops in float64 and PyTorch's own; gradients against differences."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reidkit.train.losses import batch_hard_triplet, identity_loss, pairwise_euclidean


def smoothed_cross_entropy(logits, labels, smoothing):
    """The mean over rows of -sum(target * log softmax), the targets written out in full."""
    losses = []
    for row, label in zip(np.asarray(logits, np.float64), labels, strict=True):
        target = np.full(len(row), smoothing / (len(row) - 1))
        target[label] = 1 - smoothing
        losses.append(-(target * (row - row.max() - np.log(np.exp(row - row.max()).sum()))).sum())
    return np.mean(losses)


def triplet_loop(embeddings, labels, margin):
    x, losses = np.asarray(embeddings, np.float64), []
    for a in range(len(x)):
        gaps = [math.dist(x[a], x[i]) for i in range(len(x))]
        positives = [gaps[i] for i in range(len(x)) if i != a and labels[i] == labels[a]]
        negatives = [gaps[i] for i in range(len(x)) if labels[i] != labels[a]]
        if positives and negatives:
            gap = max(positives) - min(negatives)
            losses.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    return float(np.mean(losses)) if losses else 0.0


def difference_gradient(function, x, step=1e-6):
    x, gradient = np.array(x, np.float64), np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        kept = x[place]
        x[place] = kept + step
        above = function(x)
        x[place] = kept - step
        gradient[place] = (above - function(x)) / (2 * step)
        x[place] = kept
    return gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("identities", [2, 7])
def test_identity_loss_by_hand(smoothing, identities):
    rng = np.random.default_rng(identities)
    logits, labels = rng.normal(0, 4, (5, identities)), rng.integers(0, identities, 5)
    got = identity_loss(torch.from_numpy(logits).float(), torch.from_numpy(labels), smoothing=smoothing)
    assert got.item() == pytest.approx(smoothed_cross_entropy(logits, labels, smoothing), rel=1e-5)


def test_identity_loss_against_pytorch():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 5 * torch.randn(6, 9, generator=generator), torch.randint(0, 9, (6,), generator=generator)
    torch.testing.assert_close(identity_loss(logits, labels, smoothing=0.0), F.cross_entropy(logits, labels))
    # PyTorch spreads over all 9 classes: 0.1 over the other 8 is its 0.1 * 9 / 8.
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1 * 9 / 8)
    torch.testing.assert_close(identity_loss(logits, labels, smoothing=0.1), expected)
    assert identity_loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)  # 0.1 is the default


def test_identity_loss_survives_large_and_half_precision_logits():
    logits, labels = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([1])
    assert identity_loss(logits, labels, smoothing=0.0).item() == pytest.approx(2e4)
    half = identity_loss(logits.bfloat16() / 1e3, labels)
    assert half.dtype == torch.float32


def test_identity_loss_gradient():
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(0, 2, (3, 5)), np.array([4, 0, 2])
    x = torch.from_numpy(logits).float().requires_grad_()
    identity_loss(x, torch.from_numpy(labels), smoothing=0.2).backward()
    expected = difference_gradient(lambda z: smoothed_cross_entropy(z, labels, 0.2), logits)
    np.testing.assert_allclose(x.grad, expected, atol=1e-5)


def test_pairwise_distances_by_hand():
    x = np.random.default_rng(5).normal(0, 1, (6, 16))
    expected = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.testing.assert_allclose(pairwise_euclidean(torch.from_numpy(x).float()), expected, atol=2e-3)
    far_from_diagonal = ~np.eye(6, dtype=bool)
    got = pairwise_euclidean(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(got[far_from_diagonal], expected[far_from_diagonal], rtol=1e-5)


BATCHES = {
    "P x K": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "uneven": [5, 5, 5, 5, 9, 9, 7, 7, 7],
    "with single crops": [0, 1, 1, 2, 3, 3, 3, 4, 5],
    "only single crops": [0, 1, 2, 3, 4, 5, 6, 7, 8],
    "one identity": [3] * 9,
    "one crop": [0],
}


@pytest.mark.parametrize("margin", [0.3, 0.0, None])
@pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)
def test_batch_hard_triplet_against_a_loop(labels, margin):
    rng = np.random.default_rng(6)
    for scale in (0.1, 1.0, 20.0):
        x, order = rng.normal(0, scale, (len(labels), 8)), rng.permutation(labels)
        tensor = torch.from_numpy(x).float().requires_grad_()
        got = batch_hard_triplet(tensor, torch.from_numpy(order), margin=margin)
        assert got.item() == pytest.approx(triplet_loop(x, order, margin), rel=1e-4, abs=1e-5)
        got.backward()
        assert torch.isfinite(tensor.grad).all()
        if scale == 1.0:
            # Differences of a maximum are right only away from ties, which random numbers keep.
            expected = difference_gradient(lambda z, order=order: triplet_loop(z, order, margin), x)
            np.testing.assert_allclose(tensor.grad, expected, atol=1e-4)


def test_a_triplet_known_in_the_head():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [30.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 2])
    # Anchors 0 and 1 count: farthest positive 5; nearest negatives 1 and sqrt(18).
    expected = ((5 - 1 + 0.3) + (5 - math.sqrt(18) + 0.3)) / 2
    assert batch_hard_triplet(x, labels, margin=0.3).item() == pytest.approx(expected, rel=1e-5)
    soft = (math.log1p(math.exp(4)) + math.log1p(math.exp(5 - math.sqrt(18)))) / 2
    assert batch_hard_triplet(x, labels, margin=None).item() == pytest.approx(soft, rel=1e-5)


@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("height", [0.0, 1.0, 30.0])
def test_the_gradient_is_finite_where_embeddings_coincide(margin, height):
    x = torch.full((6, 32), height)
    x[3:, 0] += torch.tensor([0.0, 1e-7, 1.0])
    x.requires_grad_()
    loss = batch_hard_triplet(x, torch.tensor([0, 0, 1, 1, 2, 2]), margin=margin)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() < 10


def test_distances_are_float32_under_autocast():
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(1)) + 10
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = batch_hard_triplet(x, labels)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(triplet_loop(x, labels.tolist(), 0.3), rel=1e-4)
