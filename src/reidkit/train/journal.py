"""What a run says of itself on the way: a log as CSV, and events for TensorBoard."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from reidkit.atomic import growing_file, output_file
from reidkit.errors import RuntimeMissing, TrainingError

LOG = "log.csv"
EVENTS = "tensorboard"

_AFRESH = "begin the run again with --overwrite"


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where a run is.

    Attributes:
        stage: of the recipe, from 1.
        step: batches done in this stage.
        steps: batches of the whole stage, an estimate while it runs.
        epoch: passes over the data in this stage so far, as a fraction.
        lr: learning rate.
        images_per_second: since the last report.
        losses: means since the last report: first "loss", their weighted sum, then each part by name.
    """

    stage: int
    step: int
    steps: int
    epoch: float
    lr: float
    images_per_second: float
    losses: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a validation found.

    Attributes:
        stage: of the recipe, from 1.
        step: batches done in this stage.
        epoch: passes over the data in this stage so far, as a fraction.
        mean_ap: mAP, a fraction of 1.
        rank1: share of queries whose nearest crop shows the same identity.
        best: the highest mAP of the run so far.
    """

    stage: int
    step: int
    epoch: float
    mean_ap: float
    rank1: float
    best: bool


class Journal:
    """Writes `log.csv`, and TensorBoard's events where asked for; a context manager.

    The log grows row by row and stays when the run breaks off. Its columns are stage, step, epoch, loss, each part of
    the loss, lr, images_per_second, mean_ap and rank1; a validation has a row of its own, and a cell is empty where
    there is no value.

    A run that is resumed keeps the rows up to where it goes on, and drops later ones: their steps are done again. A
    last line without an end is dropped too, for it was being written when the run broke off.

    Each stage is a run of its own in TensorBoard, since its steps begin at 1.

    Args:
        out: folder of the run.
        parts: names of the losses of all stages.
        after: stage and step that the state of a resumed run was saved at; None begins a new log.
        tensorboard: write events too, into the folder `tensorboard`.

    Raises:
        RuntimeMissing: events are asked for and TensorBoard is not installed.
        TrainingError: on entering, when the log of a resumed run is missing, damaged or another's.
        OutputError: on entering, and while it is open, when the log cannot be written.
    """

    def __init__(
        self, out: Path | str, parts: Sequence[str], *, after: tuple[int, int] | None = None, tensorboard: bool = False
    ) -> None:
        self.path = Path(out) / LOG
        self._columns = ("stage", "step", "epoch", "loss", *parts, "lr", "images_per_second", "mean_ap", "rank1")
        self._after = after
        self._events = _open_events(Path(out) / EVENTS, after) if tensorboard else None
        self._open = ExitStack()

    def __enter__(self) -> "Journal":
        if self._after is not None:
            self._cut(*self._after)
        with ExitStack() as stack:
            stream = stack.enter_context(growing_file(self.path, append=self._after is not None))
            self._table = csv.DictWriter(stream, self._columns, lineterminator="\n")
            if self._after is None:
                self._table.writeheader()
            if self._events is not None:
                stack.callback(self._events.close)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def write(self, report: StepReport) -> None:
        """Adds a row of losses."""
        values = {**report.losses, "lr": report.lr, "images_per_second": report.images_per_second}
        self._table.writerow({"stage": report.stage, "step": report.step, "epoch": report.epoch, **values})
        if self._events is not None:
            losses = {f"loss/{name}": value for name, value in report.losses.items()}
            rates = {name: values[name] for name in ("lr", "images_per_second")}
            self._events.add(report.stage, report.step, {**losses, **rates})

    def measured(self, result: Measured) -> None:
        """Adds a row of what a validation found."""
        values = {"mean_ap": result.mean_ap, "rank1": result.rank1}
        self._table.writerow({"stage": result.stage, "step": result.step, "epoch": result.epoch, **values})
        if self._events is not None:
            scores = {f"validation/{name}": value for name, value in values.items()}
            self._events.add(result.stage, result.step, scores)

    def _cut(self, stage: int, step: int) -> None:
        """Drops the rows after a step; the file is written only when there are any."""
        lines, whole = _lines(self.path)
        header = _cells(lines[0])
        if header != list(self._columns):
            raise TrainingError(
                f"{self.path} is the log of another run",
                got=f"the columns {','.join(header)}",
                expected=",".join(self._columns),
                fix=f"put the log of this run back, or {_AFRESH}",
            )
        kept = [lines[0]]
        for number, line in enumerate(lines[1:], start=2):
            place = _place(_cells(line), len(header))
            if place is None:
                raise TrainingError(
                    f"{self.path} is damaged in line {number}",
                    got=line.strip()[:100] or "an empty line",
                    expected=f"{len(header)} cells, each empty or a number",
                    fix=f"mend the line or take it out, or {_AFRESH}",
                )
            if place <= (stage, step):
                kept.append(line)
        if not whole or len(kept) < len(lines):
            with output_file(self.path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8", newline="")


def _open_events(folder: Path, after: tuple[int, int] | None) -> Any:
    try:
        from reidkit.train.events import Events
    except ModuleNotFoundError as error:
        if error.name != "tensorboard":
            raise
        raise RuntimeMissing("tensorboard is not installed", fix="pip install 'reidkit[train]'") from error
    return Events(folder, after)


def _lines(path: Path) -> tuple[list[str], bool]:
    """The whole lines of a log, and whether nothing stands behind them."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = stream.readlines()
    except (OSError, UnicodeDecodeError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise TrainingError(
            f"{path} is not there" if missing else f"{path} cannot be read",
            got=None if missing else error,
            expected="the log of the run that is resumed",
            fix=f"put it back, or {_AFRESH}",
        ) from error
    whole = [line for line in lines if line.endswith("\n")]
    if not whole:
        raise TrainingError(
            f"{path} is empty", expected="the log of the run that is resumed", fix=f"put it back, or {_AFRESH}"
        )
    return whole, len(whole) == len(lines)


def _cells(line: str) -> list[str]:
    return line.rstrip("\r\n").split(",")


def _place(cells: list[str], count: int) -> tuple[int, int] | None:
    """Stage and step of a row, or None where it is no row."""
    try:
        _ = [float(cell) for cell in cells[2:] if cell]
        place = int(cells[0]), int(cells[1])
    except (ValueError, IndexError):
        return None
    return place if len(cells) == count else None
