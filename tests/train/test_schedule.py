"""The learning rate at the corners of its course, by hand."""

import math

import pytest

from reidkit.train.schedule import learning_rate
from reidkit.train.settings import Optim

COSINE = Optim(epochs=120.0, lr=1e-3, warmup_epochs=10.0)
STEPS = Optim(epochs=120.0, lr=1e-3, warmup_epochs=10.0, schedule="steps", steps=(40.0, 90.0), gamma=0.1)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0.0, 1e-5),
        (5.0, (1e-5 + 1e-3) / 2),
        (9.999999, 1e-3),
        (10.0, 1e-3),
        (37.5, 1e-3 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the way down
        (65.0, 5e-4),
        (120.0, 0.0),
        (130.0, 0.0),
    ],
)
def test_cosine(epoch, rate):
    assert learning_rate(epoch, COSINE) == pytest.approx(rate, rel=1e-5, abs=1e-15)


def test_cosine_is_highest_at_the_end_of_the_warm_up():
    rates = [learning_rate(tenth / 10, COSINE) for tenth in range(1201)]
    assert max(rates) == rates[100]
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0.0, 1e-5), (10.0, 1e-3), (39.999, 1e-3), (40.0, 1e-4), (89.999, 1e-4), (90.0, 1e-5), (130.0, 1e-5)],
)
def test_steps(epoch, rate):
    assert learning_rate(epoch, STEPS) == pytest.approx(rate)


def test_steps_within_the_warm_up_are_taken_at_its_end():
    optim = Optim(epochs=20.0, lr=1.0, warmup_epochs=8.0, warmup_start=0.0, schedule="steps", steps=(4.0,), gamma=0.5)
    assert learning_rate(6.0, optim) == 0.75
    assert learning_rate(8.0, optim) == 0.5


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_no_warm_up_and_a_warm_up_from_the_full_rate(schedule):
    at_once = Optim(epochs=10.0, lr=2.0, warmup_epochs=0.0, schedule=schedule)
    flat = Optim(epochs=10.0, lr=2.0, warmup_epochs=2.0, warmup_start=1.0, schedule=schedule)
    assert learning_rate(0.0, at_once) == 2.0
    assert learning_rate(1.0, flat) == 2.0


def test_warm_up_is_at_most_half_of_the_run():
    optim = Optim(epochs=10.0, lr=2.0, warmup_epochs=50.0)
    assert learning_rate(2.5, optim) == pytest.approx(2.0 * 0.505)
    assert learning_rate(5.0, optim) == pytest.approx(2.0)
    assert learning_rate(10.0, optim) == pytest.approx(0.0)
