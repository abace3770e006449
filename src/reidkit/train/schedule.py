"""The course of the learning rate over a stage."""

import math
from bisect import bisect_right

from reidkit.train.settings import Optim


def learning_rate(epoch: float, optim: Optim) -> float:
    """Linear warm-up to the highest rate, then half a cosine to zero, or steps.

    Warm-up takes at most half of the run. Steps that lie within it are taken at its end.

    Args:
        epoch: passes done, as a fraction; beyond the end, the rate of the end.
        optim: see there for the schedule.

    Source: warm-up for re-identification: Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
    Re-identification", CVPRW 2019; cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    warmup = min(optim.warmup_epochs, optim.epochs / 2)
    if epoch < warmup:
        return optim.lr * (optim.warmup_start + (1 - optim.warmup_start) * epoch / warmup)
    if optim.schedule == "steps":
        return optim.lr * optim.gamma ** bisect_right(optim.steps, epoch)
    done = min(1.0, (epoch - warmup) / (optim.epochs - warmup))
    return optim.lr * 0.5 * (1 + math.cos(math.pi * done))
