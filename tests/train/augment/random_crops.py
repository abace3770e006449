"""Crops to change, and what the tests look at them with."""

import numpy as np
import torch


def crops_of(n=4, height=9, width=7, seed=0):
    """Noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), generator=generator, dtype=torch.uint8)


def smooth_crops(n=4, height=9, width=7, seed=0):
    """Noise of narrower and narrower range, with the steep histograms of real pictures."""
    noise = crops_of(n, height, width, seed).float() / 255
    low, span = torch.rand(2, n, 1, 1, 3, generator=torch.Generator().manual_seed(seed)).unbind()
    return ((low + (1 - low) * span * noise**3) * 255).to(torch.uint8)


def planes(crops):
    """As the changes take them: float, n x 3 x height x width."""
    return crops.permute(0, 3, 1, 2).float()


def array(crops):
    return planes(crops).numpy()


def within_chance(hits, chance):
    """Whether so many hits are within 4.5 standard deviations of what the chance promises."""
    hits = np.asarray(hits)
    return abs(hits.sum() - chance * hits.size) <= 4.5 * np.sqrt(hits.size * chance * (1 - chance))
