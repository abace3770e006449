import numpy as np
import pytest


@pytest.fixture
def clustered():
    """Embeddings of 30 people around 30 points, close enough together to be mixed up; with their identities."""
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(30, 16))
    pids = np.repeat(np.arange(30), 9)
    embeddings = (centers[pids] + rng.normal(size=(270, 16)) * 0.8).astype(np.float32)
    return embeddings, pids
