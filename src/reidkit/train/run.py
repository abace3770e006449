"""A run while it goes on: its stages one after the other, reported, measured, saved and stopped on the way."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reidkit.config import to_dict
from reidkit.errors import OutputError, TrainingError
from reidkit.models.model import Network, Preprocess
from reidkit.train.arithmetic import autocast_type
from reidkit.train.augment import Augmenter
from reidkit.train.crops import CropSource
from reidkit.train.ema import Average
from reidkit.train.journal import Journal, Measured, StepReport
from reidkit.train.losses.criterion import Criterion
from reidkit.train.mining import mined_batches, round_subset
from reidkit.train.optimizer import freeze, make_optimizer, set_learning_rate
from reidkit.train.outcome import BEFORE, CHECKPOINT, LAST, Outcome, check_finite
from reidkit.train.parallel import Team
from reidkit.train.plan import Plan, Steps
from reidkit.train.recipe import Recipe, Stage
from reidkit.train.schedule import learning_rate
from reidkit.train.state import STATE, RunState, random_states, restore_random, save_state
from reidkit.train.step import Learner, Step
from reidkit.train.teacher import Teacher
from reidkit.train.training_data import TrainingData
from reidkit.train.validation import Examination, embed
from reidkit.types import Progress, no_progress

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Who is told what happens.

    Attributes:
        on_note: what a user should know, in a sentence.
        on_decode: progress of decoding.
        on_step: where the run is, every now and then.
        on_measured: what a validation found.
    """

    on_note: Callable[[str], None] = lambda _: None
    on_decode: Progress = no_progress
    on_step: Callable[[StepReport], None] = lambda _: None
    on_measured: Callable[[Measured], None] = lambda _: None


SILENT = Callbacks()
"""Nobody."""


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
    model: Network
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
        after = None if state is None else (state.stage + 1, state.step)
        steps = 0
        with ExitStack() as stack:
            journal = None
            if self.team.leads:
                journal = stack.enter_context(Journal(self.outcome.folder, parts, after=after, tensorboard=tensorboard))
            stop = stack.enter_context(_interrupts())
            for number in range(first, len(stages)):
                done = state.step if state is not None and number == first else 0
                stretch = _Stretch(self, number, stages[number], criteria[number], journal, stop)
                steps += stretch.go(state if number == first else None) - done
                if self.team.leads and number < len(stages) - 1:
                    self.outcome.write(self.model, BEFORE)
        if self.team.leads:
            self.outcome.write(self.model, CHECKPOINT if self.examination is None else LAST)
            (self.outcome.folder / STATE).unlink(missing_ok=True)
        self.team.wait()
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
        team, recipe = run.team, run.recipe
        size = run.data.size
        generator = torch.Generator(team.device)
        generator.manual_seed(int(np.random.SeedSequence([recipe.seed, number, team.rank]).generate_state(1)[0]))
        arithmetic = autocast_type(team.device, recipe.amp)
        spec = recipe.input
        fill = torch.tensor(spec.mean) * spec.scale
        preprocess = Preprocess(spec).to(team.device)
        self.learner = Learner(
            model=run.model,
            criterion=criterion,
            optimizer=make_optimizer(
                run.model,
                criterion,
                stage.optim,
                capturable=team.device.type == "cuda" and arithmetic != torch.float16,
            ),
            augmenter=Augmenter(
                stage.augment,
                height=size[0],
                width=size[1],
                fill=fill.flip(0) if spec.color == "bgr" else fill,
                device=team.device,
            ),
            preprocess=preprocess,
            generator=generator,
            optim=stage.optim,
            team=team,
            arithmetic=arithmetic,
            average=Average(run.model, stage.optim.ema) if stage.optim.ema > 0 else None,
            scaler=torch.amp.GradScaler(team.device.type) if arithmetic == torch.float16 else None,
            teacher=run.teacher,
        )
        self.plan = Plan(run.data.labels, run.data.cameras, stage, recipe.seed, team.rank, team.size)
        self.done = 0
        self.reported = time.perf_counter()
        self.steps_reported = 0
        run.best, run.best_figure, run.without_best = None, None, 0

    def go(self, state: RunState | None) -> int:
        """Learns to the end of the stage; returns the steps that are done of it."""
        if state is not None:
            self._restore(state)
        learner, plan, data, device = self.learner, self.plan, self.run.data, self.run.team.device
        measured_at = self._measured_at()
        step: Step | None = None
        frozen = False
        for piece in plan.pieces(self.done, self._mine):
            labels = torch.from_numpy(data.labels[np.stack(piece)]).to(device)
            with closing(self.run.source.stream(piece)) as batches:  # pyright: ignore[reportArgumentType]
                for (crops, _), targets in zip(batches, labels, strict=True):
                    if step is None or frozen != self._freezes():
                        frozen = self._freezes()
                        step = self._make_step(frozen=frozen)
                    set_learning_rate(learner.optimizer, learning_rate(plan.epoch(self.done), self.stage.optim))
                    step(crops, targets)
                    self.done += 1
                    due = self.done in measured_at
                    if due or self.done % self.run.report_every == 0 or self.done == plan.steps:
                        self._report(step.read_losses())
                        if due and self._measure():
                            return self._finished()
                        self._pause(step)
        return self._finished()

    def _freezes(self) -> bool:
        return self.plan.epoch(self.done) < self.stage.optim.freeze_epochs

    def _make_step(self, *, frozen: bool) -> Step:
        self.learner.model.train()
        freeze(self.learner.model, frozen=frozen)
        device, wanted = self.run.team.device, self.run.recipe.compile
        compiled = device.type == "cuda" if wanted == "auto" else wanted
        return Step(self.learner, batch=self.stage.batches.size, history=self.run.report_every, compiled=compiled)

    def _mine(self, number: int) -> Steps:
        data, mining, seed = self.run.data, self.stage.mining, self.run.recipe.seed
        subset = round_subset(len(data.labels), mining, seed=seed, number=number)
        embeddings = embed(self.learner.model, self.learner.preprocess, self.run.source.batch, subset, pooled=True)
        if self.stage.loss.triplet.normalize:
            embeddings = F.normalize(embeddings)
        labels = data.labels[subset]
        return mined_batches(embeddings, labels, subset, mining, self.stage.batches, seed=seed, number=number)

    # -- between two steps ---------------------------------------------------------------------------------------------

    def _report(self, losses: Tensor) -> None:
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
        now, learner = time.perf_counter(), self.learner
        crops = (self.done - self.steps_reported) * self.plan.crops_a_step
        report = StepReport(
            stage=self.number + 1,
            step=self.done,
            steps=self.plan.steps,
            epoch=self.plan.epoch(self.done),
            lr=learning_rate(self.plan.epoch(self.done - 1), self.stage.optim),
            images_per_second=crops / (now - self.reported),
            losses=dict(zip(("loss", *learner.criterion.names), losses.mean(dim=0).tolist(), strict=True)),
        )
        self.reported, self.steps_reported = now, self.done
        if self.journal is not None:
            self.journal.write(report)
            self.run.callbacks.on_step(report)

    def _measured_at(self) -> set[int]:
        """Steps after which the network is measured; the last is always one of them."""
        every, plan = self.run.recipe.validation.every, self.plan
        if self.run.examination is None:
            return set()
        return {plan.step_at(every * i) for i in range(1, int(self.stage.optim.epochs / every) + 1)} | {plan.steps}

    def _measure(self) -> bool:
        """Measures, keeps the best, and says whether to end early."""
        run, examination = self.run, self.run.examination
        assert examination is not None
        model = self._kept()
        ends = False
        if run.team.leads:
            first = len(run.data.labels)
            indices = np.arange(first, first + len(examination.crops))
            check_finite(model)
            embeddings = embed(model, self.learner.preprocess, run.source.batch, indices)
            ranking = examination.rank(embeddings.cpu().numpy())
            figure = float(ranking.mean_ap)
            best = run.best_figure is None or figure > run.best_figure
            found = Measured(
                self.number + 1, self.done, self.plan.epoch(self.done), figure, float(ranking.cmc(1)), best
            )
            run.without_best = 0 if best else run.without_best + 1
            if best:
                run.best, run.best_figure = found, figure
                if self.number == len(run.recipe.stages) - 1:
                    run.outcome.write(model, CHECKPOINT)
            if self.journal is not None:
                self.journal.measured(found)
            run.callbacks.on_measured(found)
            patience = run.recipe.validation.patience
            ends = 0 < patience <= run.without_best
            if ends:
                run.callbacks.on_note(f"ended at step {self.done}: {patience} measurements without a new best mAP")
        ends = run.team.any(ends)
        self.reported = time.perf_counter()  # measuring is no training
        return ends

    def _pause(self, step: Step) -> None:
        """Stops where that was asked for; saves where it is time to."""
        stopped = self.run.team.any(self.stop.is_set())
        due = self.run.team.any(time.monotonic() - self.run.saved > self.run.save_every)
        if stopped or (due and self.done < self.plan.steps):
            before = time.perf_counter()
            self._save(must=stopped)
            self.reported += time.perf_counter() - before
        if stopped:
            self.run.callbacks.on_note(
                f"stopped after step {self.done} of {self.plan.steps}; everything needed to go on is in "
                f"{self.run.outcome.folder / STATE}"
            )
            raise KeyboardInterrupt

    def _finished(self) -> int:
        kept = self._kept()
        if kept is not self.learner.model:
            self.learner.model.load_state_dict(kept.state_dict())
        freeze(self.learner.model, frozen=False)
        return self.done

    def _kept(self) -> Network:
        """The network that is worth keeping: the average where there is one."""
        average = self.learner.average
        return self.learner.model if average is None else average.module  # pyright: ignore[reportReturnType]

    # -- saving --------------------------------------------------------------------------------------------------------

    def _save(self, *, must: bool) -> None:
        run, learner = self.run, self.learner
        random = run.team.gather(random_states(learner.generator))
        run.saved = time.monotonic()
        if not run.team.leads:
            return
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
        )
        try:
            save_state(run.outcome.folder / STATE, state)
        except OutputError as error:
            if must:
                raise
            # A full disk must not cost the hours of training that may fit on it in the end.
            run.callbacks.on_note(f"the state could not be saved ({error.problem}); the run goes on without")

    def _restore(self, state: RunState) -> None:
        learner, run = self.learner, self.run
        learner.model.load_state_dict(state.model)
        learner.criterion.load_state_dict(state.criterion)
        learner.optimizer.load_state_dict(state.optimizer)
        if learner.average is not None and state.ema is not None:
            learner.average.load_state_dict(state.ema)
        if learner.scaler is not None and state.scaler is not None:
            learner.scaler.load_state_dict(state.scaler)
        self.plan.mined, self.plan.round = state.mined, state.mining_round
        self.done = self.steps_reported = state.step
        run.best_figure, run.without_best = state.best, state.without_best
        restore_random(state, learner.generator, rank=run.team.rank, processes=run.team.size)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a step can end in peace; the second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals go to the main thread, and so do their handlers
        return
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: object) -> None:
        _logger.info("signal %d: stopping after this report", number)
        stop.set()
        signal.signal(number, earlier[signal.Signals(number)])

    for number in earlier:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
