"""A training run as it goes on: a table that is drawn anew in a terminal, lines in a log file."""

import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import zip_longest
from types import TracebackType

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from reidkit.cli import console
from reidkit.train.journal import Measured, StepReport
from reidkit.train.recipe import Recipe

_WAITS = "-"


class TrainingTable:
    """Shows where a run is, and how long it will still take; a context manager.

    Args:
        recipe: of the run, whose stages say how many epochs there are.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._epochs = [stage.optim.epochs for stage in recipe.stages]
        self._decoded: tuple[int, int] | None = None
        self._step: StepReport | None = None
        self._measured: Measured | None = None
        self._best: Measured | None = None
        self._first: tuple[float, float] | None = None  # time and epochs of the first report: before it, all warms up
        self._left: float | None = None
        self._lined = (0, -1)  # stage and epoch of the last line in a log file
        self._live = Live(get_renderable=self._draw, console=console.err) if console.err.is_terminal else None

    def __enter__(self) -> "TrainingTable":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def on_decode(self, done: int, total: int) -> None:
        """So many crops are decoded."""
        self._decoded = done, total

    def on_step(self, report: StepReport) -> None:
        """The run is there; a log file gets a line an epoch."""
        self._step = report
        self._left = self._time_left(report)
        at = report.stage, int(report.epoch)
        if self._live is None and at > self._lined:
            self._lined = at
            losses = "  ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
            console.note(
                f"{self._place(report.stage, report.epoch)}  step {report.step}/{report.steps}  {losses}  "
                f"lr {report.lr:.1e}  {report.images_per_second:,.0f} images/s  {_duration(self._left)} left"
            )

    def on_measured(self, result: Measured) -> None:
        """A validation found that; a log file gets a line."""
        self._measured = result
        if result.best:
            self._best = result
        if self._live is None:
            best = "the best so far" if result.best else f"best {self._best_in_words()}"
            console.note(f"{self._place(result.stage, result.epoch)}  {_scores(result)}  ({best})")

    # -- words ---------------------------------------------------------------------------------------------------------

    def _place(self, stage: int, epoch: float) -> str:
        words = f"epoch {epoch:.1f}/{self._epochs[stage - 1]:g}"
        return words if len(self._epochs) == 1 else f"stage {stage}/{len(self._epochs)}  {words}"

    def _best_in_words(self) -> str:
        if self._best is None:
            return "before the run was resumed" if self._measured is not None else _WAITS
        return f"{_scores(self._best)} at {self._place(self._best.stage, self._best.epoch)}"

    def _done(self, report: StepReport) -> float:
        """Epochs of all stages."""
        return sum(self._epochs[: report.stage - 1]) + report.epoch

    def _time_left(self, report: StepReport) -> float | None:
        """Seconds to the end of the run if it goes on as since the first report; None before the second."""
        now, done, whole = time.monotonic(), self._done(report), sum(self._epochs)
        if self._first is None:
            self._first = now, done
        since, began = self._first
        if done >= whole:
            return 0.0
        return None if done <= began else (now - since) / (done - began) * (whole - done)

    # -- the table -----------------------------------------------------------------------------------------------------

    def _draw(self) -> RenderableType:
        if self._step is None:
            if self._decoded is None:
                return Text("getting ready")
            done, total = self._decoded
            return _bar(done, total, f"{done:,} of {total:,} crops" if done < total else "waiting for the first steps")
        facts = Table.grid(padding=(0, 2))
        for side in ("left", "right") * 2:
            facts.add_column(justify="left" if side == "left" else "right", no_wrap=True)
        for left, right in zip_longest(self._run_rows(self._step), self._loss_rows(self._step), fillvalue=("", "")):
            facts.add_row(Text(left[0], "dim"), left[1], Text(right[0], "dim"), right[1])
        lines = [_bar(self._done(self._step), sum(self._epochs), f"{_duration(self._left)} left"), facts]
        if self._measured is not None:
            scores = Table.grid(padding=(0, 2))
            scores.add_row(Text("measured", "dim"), _scores(self._measured))
            scores.add_row(Text("best", "dim"), self._best_in_words())
            lines.append(scores)
        return Group(*lines)

    def _run_rows(self, report: StepReport) -> Iterator[tuple[str, str]]:
        yield "stage", f"{report.stage} of {len(self._epochs)}"
        yield "epoch", f"{report.epoch:.1f} of {self._epochs[report.stage - 1]:g}"
        yield "step", f"{report.step:,} of {report.steps:,}"
        yield "learning rate", f"{report.lr:.2e}"
        yield "images/s", f"{report.images_per_second:,.0f}"

    def _loss_rows(self, report: StepReport) -> Iterator[tuple[str, str]]:
        for name, value in report.losses.items():
            yield name, f"{value:.4f}"


def _bar(done: float | int, total: float | int, words: str) -> Table:
    row = Table.grid(padding=(0, 2))
    row.add_row(ProgressBar(total=total, completed=done, width=40), f"{done / max(total, 1e-9):.0%}", words)
    return row


def _scores(result: Measured) -> str:
    return f"mAP {100 * result.mean_ap:.1f} %  rank-1 {100 * result.rank1:.1f} %"


def _duration(seconds: float | None) -> str:
    return _WAITS if seconds is None else str(timedelta(seconds=round(seconds)))
