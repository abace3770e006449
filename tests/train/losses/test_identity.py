"""Scores of identities against loops in float64, PyTorch and pytorch-metric-learning; gradients against differences."""

import math

import numpy as np
import pytest
import torch
from numpy_losses import arcface, circle_classes, cosface, difference_gradient, smoothed_cross_entropy
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss
from torch.nn import functional as F

from reidkit.train.losses.identity import arcface_logits, circle_logits, cosface_logits, identity_loss
from reidkit.train.losses.similarity import cosines

MARGINS = {cosface_logits: cosface, arcface_logits: arcface}


def random_cosines(rows=12, identities=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (rows, identities)), rng.integers(0, identities, rows)


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


def test_identity_loss_of_one_identity_is_0():
    assert identity_loss(torch.tensor([[3.0], [-2.0]]), torch.tensor([0, 0]), smoothing=0.0).item() == 0


def test_identity_loss_survives_large_and_half_precision_logits():
    logits, labels = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([1])
    assert identity_loss(logits, labels, smoothing=0.0).item() == pytest.approx(2e4)
    for kind in (torch.bfloat16, torch.float16):
        half = identity_loss(logits.to(kind), labels, smoothing=0.1)
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(0.9 * 2e4 + 0.05 * 1e4, rel=1e-2)


def test_identity_loss_gradient():
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(0, 2, (3, 5)), np.array([4, 0, 2])
    x = torch.from_numpy(logits).float().requires_grad_()
    identity_loss(x, torch.from_numpy(labels), smoothing=0.2).backward()
    expected = difference_gradient(lambda z: smoothed_cross_entropy(z, labels, 0.2), logits)
    np.testing.assert_allclose(x.grad, expected, atol=1e-5)


@pytest.mark.parametrize("function", MARGINS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("margin", [0.0, 0.35, 0.9])
def test_margins_by_hand(function, margin):
    table, labels = random_cosines()
    table[:4, :] = np.array([1.0, -1.0, 0.0, -0.99])[:, None]
    got = function(torch.from_numpy(table).float(), torch.from_numpy(labels), scale=30.0, margin=margin)
    # An angle of 0 is off by what its sine is kept above: 0.001.
    np.testing.assert_allclose(got, MARGINS[function](table, labels, 30.0, margin), rtol=1e-5, atol=30 * 1.1e-3)
    np.testing.assert_allclose(got[1:], MARGINS[function](table, labels, 30.0, margin)[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", MARGINS, ids=lambda function: function.__name__)
def test_gradients_through_a_margin(function):
    table, labels = random_cosines(4, 5)
    table[0, labels[0]] = -0.97  # beyond where ArcFace changes its form
    x = torch.from_numpy(table).float().requires_grad_()
    targets = torch.from_numpy(labels)
    identity_loss(function(x, targets, scale=4.0, margin=0.5), targets, smoothing=0.1).backward()
    plain = MARGINS[function]
    expected = difference_gradient(lambda z: smoothed_cross_entropy(plain(z, labels, 4.0, 0.5), labels, 0.1), table)
    np.testing.assert_allclose(x.grad, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "oracle"),
    [
        (cosface_logits, CosFaceLoss(6, 16, margin=0.35, scale=30)),
        (arcface_logits, ArcFaceLoss(6, 16, margin=math.degrees(0.35), scale=30)),
    ],
    ids=["CosFace", "ArcFace"],
)
def test_margins_against_pytorch_metric_learning(function, oracle):
    generator = torch.Generator().manual_seed(3)
    rows, labels = torch.randn(6, 16, generator=generator), torch.randint(0, 6, (20,), generator=generator)
    oracle.W.data = rows.T.contiguous()
    ours, theirs = (torch.randn(20, 16, generator=generator.manual_seed(4)).requires_grad_() for _ in range(2))
    got = identity_loss(function(cosines(ours, rows), labels, scale=30.0, margin=0.35), labels, smoothing=0.0)
    expected = oracle(theirs, labels)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    got.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0])
def test_arcface_falls_with_the_angle_all_the_way(margin):
    angles = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    table = torch.stack([angles.cos().float(), torch.zeros(2001)], dim=1)
    scores = arcface_logits(table, torch.zeros(2001, dtype=torch.int64), scale=1.0, margin=margin)[:, 0]
    assert (scores[40:-40].diff() < 0).all()
    assert (scores.diff() <= 0).all()  # next to 0 and pi, float32 does not tell the cosines apart


@pytest.mark.parametrize("function", [*MARGINS, circle_logits], ids=lambda function: function.__name__)
def test_cosines_that_rounding_took_too_far(function):
    edge = torch.tensor([[1.0000002, 1.0], [-1.0000002, -1.0], [1.0, -1.0], [-1.0, 1.0]]).requires_grad_()
    logits = function(edge, torch.tensor([0, 0, 1, 1]), scale=30.0, margin=0.35)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(edge.grad).all()


@pytest.mark.parametrize("margin", [0.0, 0.25, 0.4])
def test_circle_logits_give_the_loss_of_the_paper(margin):
    table, labels = random_cosines(seed=7)
    tensors = torch.from_numpy(table).float(), torch.from_numpy(labels)
    got = identity_loss(circle_logits(*tensors, scale=16.0, margin=margin), tensors[1], smoothing=0.0)
    assert got.item() == pytest.approx(circle_classes(table, labels, 16.0, margin), rel=1e-5)


def test_the_weights_of_circle_logits_carry_no_gradient():
    x = torch.tensor([[0.4, 0.1, -0.6]], requires_grad=True)
    circle_logits(x, torch.tensor([0]), scale=2.0, margin=0.25).sum().backward()
    np.testing.assert_allclose(x.grad, [[2 * (1.25 - 0.4), 2 * (0.1 + 0.25), 0.0]], rtol=1e-6)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [*MARGINS, circle_logits], ids=lambda function: function.__name__)
def test_half_precision_cosines(function, kind):
    table, labels = random_cosines()
    half, targets = torch.from_numpy(table).to(kind), torch.from_numpy(labels)
    got = function(half, targets, scale=30.0, margin=0.35)
    assert got.dtype == torch.float32
    assert torch.equal(got, function(half.float(), targets, scale=30.0, margin=0.35))
