"""Which crops each step of a stage learns from; from any step on, so that a run can be resumed.

A *step* is one change of the weights. It takes `accumulate` batches on each device.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from jaxtyping import Int

from reidkit.train.recipe import Stage
from reidkit.train.sampler import identity_batches, plain_batches

Steps = list[Int[np.ndarray, " crops"]]
"""The crops of some steps in a row."""

_AGAIN = 3  # stream of random numbers
_ROUNDING = 1e-6  # of a step: three times 0.1 epochs are 0.3, and not a step more


@dataclass(slots=True)
class Plan:
    """The batches of a stage for one of the processes that share them.

    Attributes:
        labels: identity of each crop.
        cameras: of each crop.
        stage: whose batches these are.
        seed: of the run.
        rank: of this process.
        processes: how many there are.
        mined: batches of the last round of mining, for all processes.
        round: its number; None before the first.
    """

    labels: Int[np.ndarray, " n"]
    cameras: Int[np.ndarray, " n"]
    stage: Stage
    seed: int
    rank: int = 0
    processes: int = 1
    mined: Steps | None = None
    round: int | None = None

    @property
    def crops_a_step(self) -> int:
        """Of all processes."""
        return self.stage.batches.size * self.stage.optim.accumulate * self.processes

    @property
    def steps(self) -> int:
        """Of the whole stage."""
        return self._steps_in(self.stage.optim.epochs)

    def epoch(self, step: int) -> float:
        """Passes over the data once so many steps are done."""
        return self.stage.optim.epochs * step / self.steps

    def step_at(self, epoch: float) -> int:
        """The first step at or after so many passes."""
        return min(self.steps, math.ceil(epoch * self.steps / self.stage.optim.epochs - _ROUNDING))

    def pieces(self, start: int, mine: Callable[[int], Steps]) -> Iterator[Steps]:
        """The crops of all steps from one on, in pieces of an epoch or a round of mining.

        A piece is drawn when it is asked for, so that a round mines with the network as it then is.

        Args:
            start: steps that are done.
            mine: finds the batches of a round, given its number.
        """
        done = start
        if done == self.steps:
            return
        for drawn in self._mined(start, mine) if self.stage.mining.round_epochs > 0 else self._drawn(start):
            piece = drawn[: self.steps - done]
            done += len(piece)
            if piece:
                yield piece
            if done == self.steps:
                return

    def _drawn(self, start: int) -> Iterator[Steps]:
        batches_a_step = self.stage.optim.accumulate * self.processes
        rest: Steps = []
        position = 0
        for epoch in count():
            drawn = [*rest, *self._epoch(epoch)]
            whole = len(drawn) // batches_a_step
            first = min(whole, max(0, start - position))
            yield [self._own(drawn[i * batches_a_step : (i + 1) * batches_a_step]) for i in range(first, whole)]
            rest = drawn[whole * batches_a_step :]
            position += whole

    def _epoch(self, epoch: int) -> Iterator[np.ndarray]:
        batches = self.stage.batches
        if self.stage.loss.compares:
            return identity_batches(self.labels, self.cameras, batches, seed=self.seed, epoch=epoch)
        return plain_batches(len(self.labels), size=batches.size, seed=self.seed, epoch=epoch)

    def _mined(self, start: int, mine: Callable[[int], Steps]) -> Iterator[Steps]:
        length = max(1, self._steps_in(self.stage.mining.round_epochs))
        batches_a_step = self.stage.optim.accumulate * self.processes
        for number in count(start // length):
            if self.mined is None or self.round != number:
                self.mined, self.round = mine(number), number
            order = self._endless(len(self.mined), length * batches_a_step, number)
            steps = [order[i : i + batches_a_step] for i in range(0, len(order), batches_a_step)]
            first = start - number * length if number == start // length else 0
            yield [self._own([self.mined[i] for i in step]) for step in steps[first:]]

    def _endless(self, batches: int, wanted: int, number: int) -> list[int]:
        """Batches in the order in which they were mined; when they are used up, again and shuffled."""
        rng = np.random.default_rng([self.seed, number, _AGAIN])
        order = list(range(batches))
        while len(order) < wanted:
            order += rng.permutation(batches).tolist()
        return order[:wanted]

    def _own(self, batches: Steps) -> np.ndarray:
        accumulate = self.stage.optim.accumulate
        return np.concatenate(batches[self.rank * accumulate : (self.rank + 1) * accumulate])

    def _steps_in(self, epochs: float) -> int:
        return max(1, round(epochs * len(self.labels) / self.crops_a_step))
