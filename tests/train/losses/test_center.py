"""Center loss against a loop in float64, differences, and a step known in the head."""

import numpy as np
import pytest
import torch
from numpy_losses import center, difference_gradient

from reidkit.train.losses.center import center_loss


@pytest.mark.parametrize("labels", [[0, 0, 2, 4, 2, 2], [3] * 6, [0, 1, 2, 3, 4, 0]])
def test_against_a_loop(labels):
    rng = np.random.default_rng(0)
    x, centers = rng.normal(0, 2, (6, 4)), rng.normal(0, 1, (5, 4))
    tensors = [torch.from_numpy(table).float().requires_grad_() for table in (x, centers)]
    loss = center_loss(tensors[0], torch.tensor(labels), tensors[1])
    assert loss.item() == pytest.approx(center(x, labels, centers), rel=1e-5)
    loss.backward()
    expected = difference_gradient(lambda z: center(z, labels, centers), x)
    np.testing.assert_allclose(tensors[0].grad, expected, rtol=1e-4, atol=1e-5)
    expected = difference_gradient(lambda z: center(x, labels, z), centers)
    np.testing.assert_allclose(tensors[1].grad, expected, rtol=1e-4, atol=1e-5)


def test_a_step_takes_a_center_to_the_mean_of_its_crops():
    x, centers = torch.tensor([[2.0, 0.0], [4.0, 2.0], [9.0, 9.0]]), torch.zeros(3, 2, requires_grad=True)
    center_loss(x, torch.tensor([1, 1, 2]), centers).backward()
    # The slope is 2 / 3 for each crop, so a rate of 3 / 4 takes a centre of two crops all the way.
    np.testing.assert_allclose(-0.75 * centers.grad, [[0, 0], [3, 1], [4.5, 4.5]], rtol=1e-6)


@pytest.mark.parametrize("height", [0.0, 1e15])
def test_the_gradient_is_finite(height):
    x, centers = torch.full((4, 8), height, requires_grad=True), torch.zeros(2, 8, requires_grad=True)
    loss = center_loss(x, torch.tensor([0, 0, 1, 1]), centers)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(centers.grad).all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings(kind):
    x, centers = torch.full((2, 512), 300.0, dtype=kind), torch.zeros(1, 512)
    loss = center_loss(x, torch.tensor([0, 0]), centers)
    assert loss.dtype == torch.float32
    assert loss.item() == 300.0**2 * 512  # more than float16 holds
