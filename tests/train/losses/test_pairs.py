"""Losses between pairs against loops in float64 and pytorch-metric-learning; gradients against differences."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from numpy_losses import (
    BATCHES,
    circle_pairs,
    contrastive,
    difference_gradient,
    triplet_hard,
    triplet_weighted,
)
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import CircleLoss, SupConLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch.nn import functional as F

from reidkit.train.losses.pairs import (
    batch_hard_triplet,
    circle_loss,
    pairwise_euclidean,
    supervised_contrastive,
    weighted_triplet,
)

LOSSES = {
    "batch-hard": (partial(batch_hard_triplet, margin=0.3), partial(triplet_hard, margin=0.3)),
    "batch-hard 0": (partial(batch_hard_triplet, margin=0.0), partial(triplet_hard, margin=0.0)),
    "batch-hard soft": (partial(batch_hard_triplet, margin="soft"), partial(triplet_hard, margin="soft")),
    "weighted": (weighted_triplet, triplet_weighted),
    "circle": (partial(circle_loss, scale=8.0, margin=0.25), partial(circle_pairs, scale=8.0, margin=0.25)),
    "contrastive": (partial(supervised_contrastive, temperature=0.2), partial(contrastive, temperature=0.2)),
}
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)


def test_pairwise_distances_by_hand():
    x = np.random.default_rng(5).normal(0, 1, (6, 16))
    expected = np.linalg.norm(x[:, None] - x[None], axis=2)
    got = pairwise_euclidean(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(got, expected, atol=2e-3)
    off_the_diagonal = ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(got[off_the_diagonal], expected[off_the_diagonal], rtol=1e-5)


def test_short_distances_far_from_the_origin():
    x = np.random.default_rng(5).normal(0, 0.01, (6, 512)) + 100.0
    x = torch.from_numpy(x).float()
    expected = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    off_the_diagonal = ~torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(
        pairwise_euclidean(x)[off_the_diagonal], expected[off_the_diagonal].float(), rtol=1e-4, atol=0
    )


@EVERY_LOSS
@pytest.mark.parametrize("batch", BATCHES)
def test_against_a_loop(name, batch):
    loss, loop = LOSSES[name]
    rng = np.random.default_rng(6)
    for size in (0.1, 1.0, 20.0):
        x, labels = rng.normal(0, size, (len(BATCHES[batch]), 8)), rng.permutation(BATCHES[batch])
        tensor = torch.from_numpy(x).float().requires_grad_()
        got = loss(tensor, torch.from_numpy(labels))
        assert got.item() == pytest.approx(loop(x, labels), rel=1e-4, abs=1e-5)
        got.backward()
        assert torch.isfinite(tensor.grad).all()
        if size == 1.0:
            fixed = {"weighed_by": x} if name == "circle" else {}
            # Differences of a maximum are right only away from ties, which random numbers keep.
            expected = difference_gradient(lambda z, labels=labels, fixed=fixed: loop(z, labels, **fixed), x)
            np.testing.assert_allclose(tensor.grad, expected, rtol=1e-3, atol=1e-4)


def test_a_triplet_known_in_the_head():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [30.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 2])
    # Anchors 0 and 1 count: farthest positive 5; nearest negatives 1 and sqrt(18).
    expected = ((5 - 1 + 0.3) + (5 - math.sqrt(18) + 0.3)) / 2
    assert batch_hard_triplet(x, labels, margin=0.3).item() == pytest.approx(expected, rel=1e-5)
    soft = (math.log1p(math.exp(4)) + math.log1p(math.exp(5 - math.sqrt(18)))) / 2
    assert batch_hard_triplet(x, labels, margin="soft").item() == pytest.approx(soft, rel=1e-5)


def test_a_weighted_triplet_known_in_the_head():
    x = torch.tensor([[0.0], [1.0], [2.0]])
    labels = torch.tensor([0, 0, 1])
    # Only one positive and one negative each: the gaps are 1 - 2 and 1 - 1.
    expected = (math.log1p(math.exp(-1)) + math.log(2)) / 2
    assert weighted_triplet(x, labels).item() == pytest.approx(expected, rel=1e-5)


def test_circle_and_contrastive_known_in_the_head():
    x, labels = torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, 0.0]]), torch.tensor([0, 0, 1])
    # Cosines: anchor 0 has its positive at 0 and its negative at 1, anchor 1 both at 0; anchor 2 has no positive.
    contrast = (math.log(1 + math.exp(2)) + math.log(2)) / 2
    assert supervised_contrastive(x, labels, temperature=0.5).item() == pytest.approx(contrast, rel=1e-5)
    pull, pushes = 2 * 1.25 * 0.75, (2 * 1.25 * 0.75, -2 * 0.25 * 0.25)
    circle = np.mean([math.log1p(math.exp(pull + push)) for push in pushes])
    assert circle_loss(x, labels, scale=2.0, margin=0.25).item() == pytest.approx(circle, rel=1e-5)


EUCLIDEAN = LpDistance(normalize_embeddings=False)


@pytest.mark.parametrize(
    ("loss", "oracle", "miner"),
    [
        (
            partial(batch_hard_triplet, margin=0.3),
            TripletMarginLoss(margin=0.3, distance=EUCLIDEAN, reducer=MeanReducer()),
            BatchHardMiner(distance=EUCLIDEAN),
        ),
        (
            partial(batch_hard_triplet, margin="soft"),
            TripletMarginLoss(margin=0.0, smooth_loss=True, distance=EUCLIDEAN, reducer=MeanReducer()),
            BatchHardMiner(distance=EUCLIDEAN),
        ),
        (partial(circle_loss, scale=64.0, margin=0.35), CircleLoss(m=0.35, gamma=64, reducer=MeanReducer()), None),
        (partial(supervised_contrastive, temperature=0.1), SupConLoss(0.1, reducer=MeanReducer()), None),
    ],
    ids=["batch-hard", "batch-hard soft", "circle", "contrastive"],
)
def test_against_pytorch_metric_learning(loss, oracle, miner):
    labels = torch.arange(8).repeat_interleave(4)[torch.randperm(32, generator=torch.Generator().manual_seed(1))]
    ours, theirs = (torch.randn(32, 24, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2))
    expected = oracle(theirs, labels, None if miner is None else miner(theirs, labels))
    got = loss(ours, labels)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    got.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


@EVERY_LOSS
@pytest.mark.parametrize("height", [0.0, 1.0, 30.0, 1e15])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [4] * 6, [0, 1, 2, 3, 4, 5]], ids=["pairs", "one", "all"])
def test_the_gradient_is_finite_where_embeddings_coincide(name, height, labels):
    x = torch.full((6, 32), height)
    x[3:, 0] += torch.tensor([0.0, 1e-7, 1.0])
    x.requires_grad_()
    loss = LOSSES[name][0](x, torch.tensor(labels))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()
    if name.startswith(("batch-hard", "weighted")):
        assert x.grad.abs().max() < 10


@EVERY_LOSS
def test_huge_embeddings(name):
    x = (1e15 * torch.randn(8, 64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = LOSSES[name][0](x, torch.arange(4).repeat(2))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


@EVERY_LOSS
def test_a_crop_without_a_pair_has_no_gradient_of_its_own(name):
    # With one identity there is no negative, with nobody twice no positive: nothing is to be learnt.
    for labels in ([4] * 6, list(range(6))):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = LOSSES[name][0](x, torch.tensor(labels))
        loss.backward()
        assert loss.item() == 0
        assert not x.grad.any()


@EVERY_LOSS
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_all_is_float32_under_autocast(name, kind):
    loss, loop = LOSSES[name]
    x = (torch.randn(6, 32, generator=torch.Generator().manual_seed(1)) + 10).to(kind)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(x, labels)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(loop(x.double().numpy(), labels.tolist()), rel=1e-3)


def test_cosines_do_not_see_lengths():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    for name in ("circle", "contrastive"):
        loss = LOSSES[name][0]
        torch.testing.assert_close(loss(7 * x, labels), loss(F.normalize(x), labels))
