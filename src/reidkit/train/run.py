"""A run while it goes on: its stages one after the other, reported, measured, saved and stopped on the way."""

import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reidkit.config import to_dict
from reidkit.errors import OutputError, TrainingError
from reidkit.manifest import CHECKPOINT
from reidkit.models.model import Network
from reidkit.train.callbacks import Callbacks
from reidkit.train.crops import CropSource
from reidkit.train.interrupts import interrupts
from reidkit.train.journal import Journal, Measured, StepReport
from reidkit.train.learner import make_learner
from reidkit.train.losses.criterion import Criterion
from reidkit.train.mining import mined_batches, round_subset
from reidkit.train.optimizer import freeze, set_learning_rate
from reidkit.train.outcome import BEFORE, Outcome, check_finite
from reidkit.train.parallel import Team
from reidkit.train.plan import Plan, Steps
from reidkit.train.recipe import Recipe, Stage
from reidkit.train.rounded_network import RoundedNetwork, follow
from reidkit.train.schedule import learning_rate
from reidkit.train.state import STATE, RunState, random_states, restore_random, save_state
from reidkit.train.step import Step
from reidkit.train.teacher import Teacher
from reidkit.train.training_data import TrainingData
from reidkit.train.validation import Examination, embed


@dataclass(slots=True)
class Run:
    """The parts of a run, and how far it is with measuring and saving.

    Attributes:
        recipe: what to learn and how.
        team: the processes.
        model: the network that learns.
        source: the crops: those to learn from, then those to be measured on.
        data: who is on the former.
        examination: the latter.
        outcome: writes checkpoints.
        teacher: to copy from.
        callbacks: who is told.
        report_every: steps between two reports.
        save_every: seconds between two writings of the state, at least.
        best: the best measurement of this stage, since the run was resumed if it was.
        best_figure: its mAP, from before that, too.
        without_best: measurements in a row since then.
        saved: when the state was written last.
    """

    recipe: Recipe
    team: Team
    model: Network | RoundedNetwork
    source: CropSource
    data: TrainingData
    examination: Examination | None
    outcome: Outcome
    teacher: Teacher | None
    callbacks: Callbacks
    report_every: int
    save_every: float
    best: Measured | None = None
    best_figure: float | None = None
    without_best: int = 0
    saved: float = field(default_factory=time.monotonic)

    def go(self, state: RunState | None, *, tensorboard: bool) -> int:
        """Runs all stages, or those that a saved state has before it; returns the steps done.

        Raises:
            TrainingError: losses or weights that are not finite.
            OutputError: a checkpoint or the log cannot be written.
            KeyboardInterrupt: the run was interrupted; its state is saved.
        """
        stages = self.recipe.stages
        criteria = [self._criterion(stage) for stage in stages]
        parts = list(dict.fromkeys(name for criterion in criteria for name in criterion.names))
        first = 0 if state is None else state.stage
        if first >= len(stages):
            raise _misfit(f"stage {first + 1}", f"the recipe has {len(stages)}")
        steps = 0
        with ExitStack() as stack:
            journal = None
            with self.team.together():
                if self.team.leads:
                    journal = stack.enter_context(self._journal(parts, state, tensorboard=tensorboard))
            stop = stack.enter_context(interrupts())
            for number in range(first, len(stages)):
                stretch = _Stretch(self, number, stages[number], criteria[number], journal, stop)
                steps += stretch.go(state if number == first else None)
                if number < len(stages) - 1:
                    with self.team.together():
                        if self.team.leads:
                            self.outcome.write(self.model, BEFORE)
        with self.team.together():
            if self.team.leads:
                self.outcome.finish(self.model, measured=self.examination is not None)
        return steps

    def _criterion(self, stage: Stage) -> Criterion:
        with torch.no_grad():
            blank = torch.zeros(2, 3, *self.data.size, device=self.team.device)
            heads = self.model.eval().training_outputs(blank)
        teaches = self.teacher is not None
        criterion = Criterion(
            stage.loss, heads, distils=teaches, teacher_scores=self.teacher is not None and self.teacher.has_logits
        )
        return criterion.to(self.team.device)

    def _journal(self, parts: list[str], state: RunState | None, *, tensorboard: bool) -> Journal:
        if state is None:
            self.outcome.clear()  # with the log, the state of an earlier run goes: nobody could resume it
        after = None if state is None else (state.stage + 1, state.step)
        return Journal(self.outcome.folder, parts, after=after, tensorboard=tensorboard)


class _Stretch:
    """One stage of a run while it goes on."""

    def __init__(
        self,
        run: Run,
        number: int,
        stage: Stage,
        criterion: Criterion,
        journal: Journal | None,
        stop: threading.Event,
    ) -> None:
        self.run, self.number, self.stage, self.journal, self.stop = run, number, stage, journal, stop
        self.learner = make_learner(
            run.model, criterion, stage, run.recipe, run.team, number=number, teacher=run.teacher
        )
        self.plan = Plan(run.data.labels, run.data.cameras, stage, run.recipe.seed, run.team.rank, run.team.size)
        self.measured_at = self._measured_at()
        self.done = 0
        self.losses = torch.zeros(0, 1 + len(criterion.names))  # of the steps since the last report
        self.reported = time.perf_counter()
        self.steps_reported = 0
        run.best, run.best_figure, run.without_best = None, None, 0

    def go(self, state: RunState | None) -> int:
        """Learns to the end of the stage; returns the steps that it took."""
        if state is not None:
            self._restore(state)
        start = self.done
        self._learn()
        learned, kept = self.learner.model, self._kept()
        if kept is not learned:
            learned.load_state_dict(kept.state_dict())
        freeze(learned, frozen=False)
        self.run.team.equalize(learned)
        return self.done - start

    def _learn(self) -> None:
        run, learner, plan = self.run, self.learner, self.plan
        step: Step | None = None
        frozen = False
        for piece in plan.pieces(self.done, self._mine):
            labels = torch.from_numpy(run.data.labels[np.stack(piece)]).to(run.team.device)
            with closing(run.source.stream(piece)) as batches:  # pyright: ignore[reportArgumentType]
                for (crops, _), targets in zip(batches, labels, strict=True):
                    if step is None or frozen != self._freezes():
                        if step is not None:
                            self._read_losses(step)
                        frozen = self._freezes()
                        step = self._make_step(frozen=frozen)
                    set_learning_rate(learner.optimizer, learning_rate(plan.epoch(self.done), self.stage.optim))
                    follow(learner.model, self._following())
                    step(crops, targets)
                    self.done += 1
                    if self._pause(step):
                        return

    def _freezes(self) -> bool:
        return self.plan.epoch(self.done) < self.stage.optim.freeze_epochs

    def _following(self) -> float:
        """How far ranges of eight bits go towards what the next step sees."""
        settings = self.run.recipe.quantization
        if settings is None or settings.ranges == "learned" or self.done >= settings.freeze_after * self.plan.steps:
            return 0.0
        return 1 - settings.momentum

    def _make_step(self, *, frozen: bool) -> Step:
        self.learner.model.train()
        freeze(self.learner.model, frozen=frozen)
        device, wanted = self.run.team.device, self.run.recipe.compile
        compiled = device.type == "cuda" if wanted == "auto" else wanted
        return Step(self.learner, batch=self.stage.batches.size, history=self.run.report_every, compiled=compiled)

    def _mine(self, number: int) -> Steps:
        # The first process mines for all: statistics of normalisation differ between them, and so would the batches.
        return self.run.team.share(lambda: self._mined(number))

    def _mined(self, number: int) -> Steps:
        data, mining, seed = self.run.data, self.stage.mining, self.run.recipe.seed
        subset = round_subset(len(data.labels), mining, seed=seed, number=number)
        # As the loss that compares crops sees them: the triplet loss before the neck, the others cosines after it.
        triplet = self.stage.loss.triplet
        embeddings = embed(
            self.learner.model, self.learner.preprocess, self.run.source.batch, subset, pooled=triplet.weight > 0
        )
        if triplet.normalize or triplet.weight == 0:
            embeddings = F.normalize(embeddings)
        labels = data.labels[subset]
        return mined_batches(embeddings, labels, subset, mining, self.stage.batches, seed=seed, number=number)

    # -- between two steps ---------------------------------------------------------------------------------------------

    def _pause(self, step: Step) -> bool:
        """Reports, measures, saves and stops where it is time to; says whether the stage ends early."""
        run = self.run
        measures = self.done in self.measured_at
        if measures or self.done % run.report_every == 0 or self.done == self.plan.steps:
            self._read_losses(step)
            self._report()
            if measures and self._measure():
                return True
            stopped = run.team.any(self.stop.is_set())
            due = run.team.any(time.monotonic() - run.saved > run.save_every) and self.done < self.plan.steps
        else:
            # Several processes stop after a report, where they agree; one need not wait for it.
            stopped, due = run.team.size == 1 and self.stop.is_set(), False
            if stopped:
                self._read_losses(step)
        if stopped or due:
            self._save(must=stopped)
        if stopped:
            raise KeyboardInterrupt
        return False

    def _read_losses(self, step: Step) -> None:
        """Takes over the losses of the last steps; stops where they are not finite."""
        losses = self.losses = torch.cat([self.losses, step.read_losses()])
        wrong = (~torch.isfinite(losses[:, 0])).nonzero()[:, 0].tolist()
        if self.run.team.any(bool(wrong)):
            names = self.learner.criterion.names
            bad = losses[wrong[0], 1:].tolist() if wrong else ()
            at = self.done - len(losses) + wrong[0] + 1 if wrong else self.done
            raise TrainingError(
                f"The loss stopped being a number at step {at}",
                got=", ".join(f"{name} {value:g}" for name, value in zip(names, bad, strict=False)) or "elsewhere",
                expected="finite losses",
                fix="lower the learning rate, --set optim.lr=1e-4; checkpoints that were written before are good",
            )

    def _report(self) -> None:
        now, learner = time.perf_counter(), self.learner
        crops = (self.done - self.steps_reported) * self.plan.crops_a_step
        report = StepReport(
            stage=self.number + 1,
            step=self.done,
            steps=self.plan.steps,
            epoch=self.plan.epoch(self.done),
            lr=learning_rate(self.plan.epoch(self.done - 1), self.stage.optim),
            images_per_second=crops / (now - self.reported),
            losses=dict(zip(("loss", *learner.criterion.names), self.losses.mean(dim=0).tolist(), strict=True)),
        )
        self.losses = self.losses[:0]
        self.reported, self.steps_reported = now, self.done
        with self.run.team.together():
            if self.journal is not None:
                self.journal.write(report)
                self.run.callbacks.on_step(report)

    def _measured_at(self) -> set[int]:
        """Steps after which the network is measured; the last is always one of them."""
        every, plan = self.run.recipe.validation.every, self.plan
        if self.run.examination is None:
            return set()
        every = max(every, self.stage.optim.epochs / plan.steps)  # more often than every step there is nothing new
        return {plan.step_at(every * i) for i in range(1, int(self.stage.optim.epochs / every) + 1)} | {plan.steps}

    def _measure(self) -> bool:
        """Measures, keeps the best, and says whether to end early."""
        run, ends = self.run, False
        with run.team.together():
            if run.team.leads:
                self._examine()
                patience = run.recipe.validation.patience
                ends = 0 < patience <= run.without_best
                if ends:
                    run.callbacks.on_note(f"ended at step {self.done}: {patience} measurements without a new best mAP")
        self.reported = time.perf_counter()  # measuring is no training
        return run.team.any(ends)

    def _examine(self) -> None:
        run, examination, model = self.run, self.run.examination, self._kept()
        assert examination is not None
        check_finite(model)
        first = len(run.data.labels)
        indices = np.arange(first, first + len(examination.crops))
        ranking = examination.rank(embed(model, self.learner.preprocess, run.source.batch, indices).cpu().numpy())
        figure = float(ranking.mean_ap)
        best = run.best_figure is None or figure > run.best_figure
        found = Measured(self.number + 1, self.done, self.plan.epoch(self.done), figure, float(ranking.cmc(1)), best)
        run.without_best = 0 if best else run.without_best + 1
        if best:
            run.best, run.best_figure = found, figure
            if self.number == len(run.recipe.stages) - 1:
                run.outcome.write(model, CHECKPOINT)
        if self.journal is not None:
            self.journal.measured(found)
        run.callbacks.on_measured(found)

    def _kept(self) -> Network | RoundedNetwork:
        """The network that is worth keeping: the average where there is one."""
        average = self.learner.average
        return self.learner.model if average is None else average.module  # pyright: ignore[reportReturnType]

    # -- saving --------------------------------------------------------------------------------------------------------

    def _save(self, *, must: bool) -> None:
        run, before = self.run, time.perf_counter()
        random = run.team.gather(random_states(self.learner.generator))
        with run.team.together():
            if run.team.leads:
                self._write_state(random, must=must)
        run.saved = time.monotonic()
        self.reported += time.perf_counter() - before  # saving is no training

    def _write_state(self, random: list[dict[str, Tensor]], *, must: bool) -> None:
        run, learner = self.run, self.learner
        check_finite(learner.model)
        state = RunState(
            recipe=to_dict(run.recipe),
            data=run.data.digest,
            stage=self.number,
            step=self.done,
            model=dict(learner.model.state_dict()),
            criterion=dict(learner.criterion.state_dict()),
            optimizer=learner.optimizer.state_dict(),
            random=random,
            ema=None if learner.average is None else learner.average.state_dict(),
            scaler=None if learner.scaler is None else learner.scaler.state_dict(),
            best=run.best_figure,
            without_best=run.without_best,
            mining_round=self.plan.round,
            mined=self.plan.mined,
            losses=self.losses,
            origin=run.outcome.origin,
        )
        path = run.outcome.folder / STATE
        try:
            save_state(path, state)
        except OutputError as error:
            if must:
                raise
            # A full disk must not cost the hours of training that may fit on it in the end.
            run.callbacks.on_note(f"the state could not be saved ({error.problem}); the run goes on without")
        else:
            if must:
                run.callbacks.on_note(
                    f"stopped after step {self.done} of {self.plan.steps}; everything needed to go on is in {path}"
                )

    def _restore(self, state: RunState) -> None:
        learner, run = self.learner, self.run
        self._check_place(state)
        try:
            learner.model.load_state_dict(state.model)
            learner.criterion.load_state_dict(state.criterion)
            learner.optimizer.load_state_dict(state.optimizer)
            if learner.average is not None:
                learner.average.load_state_dict(state.ema or {})
            if learner.scaler is not None:
                learner.scaler.load_state_dict(state.scaler or {})
        except (RuntimeError, KeyError, ValueError) as error:
            raise _misfit("tensors of another network", error) from error
        if state.losses is not None:
            self.losses = state.losses
        self.plan.mined, self.plan.round = state.mined, state.mining_round
        self.done = self.steps_reported = state.step
        run.best_figure, run.without_best = state.best, state.without_best
        restore_random(state, learner.generator, rank=run.team.rank, processes=run.team.size)

    def _check_place(self, state: RunState) -> None:
        """Refuses a state that somebody else made, or that was changed: it could make a run that never ends."""
        size, count = self.stage.batches.size, len(self.run.data.labels)
        mines = self.stage.mining.round_epochs > 0
        if state.step > self.plan.steps:
            raise _misfit(f"step {state.step}", f"the stage has {self.plan.steps}")
        if (state.mined is not None) != (state.mining_round is not None) or (state.mined is not None and not mines):
            raise _misfit("batches that were mined", "their round, or the recipe's mining, is missing")
        if state.mined is not None and not all(_is_batch(batch, size, count) for batch in state.mined or [np.empty(0)]):
            raise _misfit("batches that were mined", f"{size} indices each, of {count} crops")
        if state.losses is not None and state.losses.shape[1] != self.losses.shape[1]:
            raise _misfit(f"{state.losses.shape[1]} losses a step", f"the recipe has {self.losses.shape[1]}")


def _is_batch(batch: np.ndarray, size: int, count: int) -> bool:
    return len(batch) == size and bool((batch >= 0).all() and (batch < count).all())


def _misfit(got: str, why: object) -> TrainingError:
    return TrainingError(
        "The saved state does not fit this run",
        got=f"{got}: {why}",
        expected="a state that this run itself wrote",
        fix="resume with the file of the run, or train anew with --overwrite",
    )
