"""Which crops each step learns from: shares of the processes, epochs, resuming, rounds of mining."""

from itertools import count

import numpy as np
import pytest

from reidkit.train.plan import Plan
from reidkit.train.recipe import Stage
from reidkit.train.sampler import identity_batches, plain_batches
from reidkit.train.settings import Batches, Loss, Mining, Optim, TripletLoss

LABELS = np.repeat(np.arange(9), [4, 5, 6, 2, 8, 3, 4, 4, 4])  # 40 crops
CAMERAS = np.arange(40) % 3
BATCHES = Batches(3, 2)


def stage_of(epochs=3.0, accumulate=1, round_epochs=0.0, *, plain=False):
    loss = Loss(triplet=TripletLoss(weight=0.0)) if plain else Loss()
    optim = Optim(epochs=epochs, accumulate=accumulate)
    return Stage(batches=BATCHES, loss=loss, optim=optim, mining=Mining(round_epochs=round_epochs))


def plan_of(stage, rank=0, processes=1, seed=5):
    return Plan(LABELS, CAMERAS, stage, seed, rank, processes)


def no_mining(number):
    raise AssertionError("mined")


def drawn(plan, start=0, mine=no_mining):
    return [crops.tolist() for piece in plan.pieces(start, mine) for crops in piece]


def endless(epoch_batches):
    """By hand: the batches of one epoch after the other."""
    for epoch in count():
        yield from (batch.tolist() for batch in epoch_batches(epoch))


def identity_epochs(epoch):
    return identity_batches(LABELS, CAMERAS, BATCHES, seed=5, epoch=epoch)


def plain_epochs(epoch):
    return plain_batches(len(LABELS), size=6, seed=5, epoch=epoch)


def test_steps_and_epochs():
    plan = plan_of(stage_of(epochs=3.0, accumulate=2), processes=2)
    assert plan.crops_a_step == 3 * 2 * 2 * 2
    assert plan.steps == 5  # 3 x 40 crops / 24
    assert [plan.epoch(step) for step in (0, 1, 5)] == pytest.approx([0.0, 0.6, 3.0])
    assert plan_of(stage_of(epochs=0.01)).steps == 1  # at least one


def test_the_step_of_an_epoch_is_the_first_that_reaches_it():
    plan = plan_of(stage_of(epochs=1.5))  # 10 steps
    assert plan.steps == 10
    assert [plan.step_at(epoch) for epoch in (0.1, 0.15, 0.16, 0.75, 1.5, 9.0)] == [1, 1, 2, 5, 10, 10]
    for step in range(11):
        assert plan.step_at(plan.epoch(step)) == step
    # 3 x 0.1, as computers have it, is a little above 0.3.
    plan = plan_of(stage_of(epochs=0.9))  # 6 steps
    assert [plan.step_at(0.1 * i) for i in (3, 6, 9)] == [2, 4, 6]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_the_processes_share_each_steps_batches_and_none_is_left_out(plain, processes, accumulate):
    stage = stage_of(epochs=6.0, accumulate=accumulate, plain=plain)
    plans = [plan_of(stage, rank, processes) for rank in range(processes)]
    shares = [drawn(plan) for plan in plans]
    assert {len(share) for share in shares} == {plans[0].steps}
    batches = endless(plain_epochs if plain else identity_epochs)
    for step in zip(*shares, strict=True):
        together = [crop for share in step for crop in share]
        expected = [crop for _ in range(processes * accumulate) for crop in next(batches)]
        assert together == expected


def test_more_batches_in_a_step_than_in_an_epoch():
    stage = stage_of(epochs=30.0, accumulate=5)
    shares = [drawn(plan_of(stage, rank, 3)) for rank in range(3)]
    assert len(shares[0]) == round(30 * 40 / 90)
    batches = endless(identity_epochs)
    flat = [crop for step in zip(*shares, strict=True) for share in step for crop in share]
    assert flat == [crop for _ in range(len(flat) // 6) for crop in next(batches)]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("rank", "processes", "accumulate"), [(0, 1, 1), (1, 2, 3)])
def test_the_rest_is_the_same_from_every_step_on(plain, rank, processes, accumulate):
    stage = stage_of(epochs=8.0, accumulate=accumulate, plain=plain)
    whole = drawn(plan_of(stage, rank, processes))
    for start in range(len(whole) + 1):
        assert drawn(plan_of(stage, rank, processes), start) == whole[start:]


def test_the_seed_decides():
    assert drawn(plan_of(stage_of())) == drawn(plan_of(stage_of()))
    assert drawn(plan_of(stage_of())) != drawn(plan_of(stage_of(), seed=6))


# -- mining ------------------------------------------------------------------------------------------------------------


def mined_of(number, batches=4):
    """Batches that say their round and place."""
    return [np.full(6, 100 * number + place) for place in range(batches)]


def asked_miner(batches=4):
    asked = []
    return asked, lambda number: asked.append(number) or mined_of(number, batches)


def test_rounds_are_mined_when_they_begin_and_dealt_out_in_order():
    stage = stage_of(epochs=3.0, round_epochs=0.5)  # 20 steps, rounds of 3
    asked, mine = asked_miner()
    plan, steps = plan_of(stage), []
    for piece in plan.pieces(0, mine):
        assert asked == list(range(len(asked)))
        assert len(asked) == len(steps) // 3 + 1  # not a round ahead
        steps += [crops.tolist() for crops in piece]
    assert [step[0] for step in steps] == [100 * (i // 3) + i % 3 for i in range(20)]
    assert asked == list(range(7))


def test_a_short_round_begins_again_in_another_order():
    _, mine = asked_miner(batches=4)
    steps = drawn(plan_of(stage_of(epochs=6.0, round_epochs=3.0)), 0, mine)  # rounds of 20 steps with 4 batches
    places = np.array([step[0] for step in steps]).reshape(2, 5, 4) % 100
    assert places[0, 0].tolist() == places[1, 0].tolist() == [0, 1, 2, 3]
    assert all(sorted(row) == [0, 1, 2, 3] for row in places.reshape(-1, 4).tolist())
    assert len({tuple(row) for row in places.reshape(-1, 4).tolist()}) > 2


def test_processes_share_mined_batches():
    stage = stage_of(epochs=3.0, accumulate=2, round_epochs=1.0)
    shares = [drawn(plan_of(stage, rank, 2), 0, asked_miner(50)[1]) for rank in range(2)]
    firsts = [[crop for share in step for crop in share[::6]] for step in zip(*shares, strict=True)]
    assert firsts == [[0, 1, 2, 3], [4, 5, 6, 7], [100, 101, 102, 103], [104, 105, 106, 107], [200, 201, 202, 203]]


def test_mined_rounds_go_on_from_every_step():
    stage = stage_of(epochs=3.0, round_epochs=0.5)
    whole = drawn(plan_of(stage), 0, asked_miner(2)[1])
    for start in range(len(whole) + 1):
        before = plan_of(stage)
        if start:
            steps = (crops for piece in before.pieces(0, asked_miner(2)[1]) for crops in piece)
            for _ in range(start):
                next(steps)
        asked, mine = asked_miner(2)
        resumed = plan_of(stage)
        resumed.mined, resumed.round = before.mined, before.round
        assert drawn(resumed, start, mine) == whole[start:]
        # A round that had begun is not mined again, for the network has moved on; and none when all is done.
        assert asked == list(range(-(-start // 3), 7 if start < len(whole) else 0))
