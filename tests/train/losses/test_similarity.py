"""Products and cosines against numpy in float64, and under autocast."""

import numpy as np
import pytest
import torch
from numpy_losses import cosine_table

from reidkit.train.losses.similarity import cosines, inner_products, unit_length


@pytest.fixture
def tables():
    rng = np.random.default_rng(0)
    return rng.normal(3, 1, (4, 16)), rng.normal(-1, 2, (5, 16))


def test_products_and_cosines_by_hand(tables):
    x, y = tables
    tensors = [torch.from_numpy(table).float() for table in tables]
    np.testing.assert_allclose(inner_products(*tensors), x @ y.T, rtol=1e-5)
    np.testing.assert_allclose(cosines(*tensors), cosine_table(x, y), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(unit_length(tensors[0]).square().sum(dim=1), np.ones(4), rtol=1e-6)


@pytest.mark.parametrize("function", [inner_products, cosines])
def test_autocast_changes_nothing(tables, function):
    x, y = (torch.from_numpy(table).float() for table in tables)
    plain = function(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ y.T).dtype == torch.bfloat16  # what would happen without care
        assert torch.equal(function(x, y), plain)


@pytest.mark.parametrize(("size", "cosine"), [(0, 0), (1e-20, 0), (1e-3, 1), (1, 1), (1e15, 1), (1e30, 0)])
def test_lengths_without_limits(size, cosine):
    x = (size * torch.eye(3, 8)).requires_grad_()
    cosines(x, x).sum().backward()
    assert torch.isfinite(x.grad).all()
    # Too short or too long for float32 to tell the length: no direction, and no infinity either.
    np.testing.assert_allclose(cosines(x, x).detach(), cosine * np.eye(3), atol=1e-6)
