"""The log of a training run as a picture: losses, accuracy and learning rate over the epochs."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reidkit.atomic import output_file
from reidkit.errors import DataError
from reidkit.report.plotting import COLORS, FAINT, GRID, INK, dress

_FIRST, _LAST = ("stage", "step", "epoch", "loss"), ("lr", "images_per_second", "mean_ap", "rank1")
_WIDE_RANGE = 30.0  # above this ratio of largest to smallest, a linear axis would flatten the small ones
_MOST = 1 << 53  # whole numbers below it are exact in float64, too
_LONG = 60  # reports; of more, a moving mean is drawn too
_DOTTED = 30  # validations; of more, the dots would run together


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """A run's `log.csv`. A value is NaN where its cell is empty.

    Attributes:
        stage: of the recipe, from 1, ascending.
        epoch: passes over the data, counted over all stages.
        losses: "loss", which is the weighted sum, and each of its parts.
        lr: learning rate.
        mean_ap: mAP of a validation, a fraction of 1.
        rank1: of the same validation, a fraction of 1.
        boundaries: epochs at which the stages after the first begin.
    """

    stage: Int64[np.ndarray, " rows"]
    epoch: Float64[np.ndarray, " rows"]
    losses: dict[str, Float64[np.ndarray, " rows"]]
    lr: Float64[np.ndarray, " rows"]
    mean_ap: Float64[np.ndarray, " rows"]
    rank1: Float64[np.ndarray, " rows"]
    boundaries: tuple[float, ...]


def read_log(path: Path | str) -> TrainingLog:
    """Reads what `reid train` logged; the run may still go on.

    A last line without an end is left out, for it is being written, or was when the run broke off.

    Raises:
        DataError: the file is missing, no training log, without rows yet, or damaged.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = [line for line in stream if line.endswith("\n")]
        header, *rows = csv.reader(lines) if lines else [[]]
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there", expected="the log.csv of a training run") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read", got=error, expected="the log.csv of a training run") from error
    if tuple(header[:4]) != _FIRST or tuple(header[-4:]) != _LAST or len(set(header)) < len(header):
        raise DataError(
            f"{path} is no training log",
            got=f"the columns {','.join(header)[:200]}" if header else "an empty file",
            expected=f"the columns {','.join(_FIRST)}, the parts of the loss, {','.join(_LAST)}",
            fix="give the log.csv of a run of this version of reidkit",
        )
    if not rows:
        raise DataError(
            f"{path} has no rows yet", expected="at least one report", fix="wait for the run's first report"
        )
    return _log(dict(zip(header, _numbers(path, rows, len(header)).T, strict=True)))


def write_training_curves(log: Path | str, out: Path | str, *, title: str = "") -> None:
    """Draws a run as a PNG: its losses, mAP and rank-1 if it was measured, and the learning rate, over the epochs.

    Epochs are counted over all stages; a broken line is where one ends and the next begins. The validation with the
    highest mAP is marked. Of a long run each loss is drawn twice: as it was logged, and smoothed.

    Args:
        log: the run's `log.csv`.
        out: the PNG file.
        title: a line for the top, for example the name of the run.

    Raises:
        DataError: as `read_log`.
        OutputError: the file cannot be written.
    """
    figure = _draw(read_log(log), title)
    with output_file(out) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _numbers(path: Path, rows: Sequence[list[str]], count: int) -> Float64[np.ndarray, "rows columns"]:
    found = np.empty((len(rows), count))
    for number, row in enumerate(rows):
        try:
            found[number] = [float(cell or "nan") for cell in row]
            place = [int(cell) for cell in row[:2]]
            if not 0 < min(place) <= max(place) < _MOST or not np.isfinite(found[number, 2]):
                raise ValueError
        except ValueError as error:
            raise DataError(
                f"{path} is damaged in line {number + 2}",
                got=",".join(row)[:100] or "an empty line",
                expected=f"{count} cells, each empty or a number; stage and step whole ones from 1, epoch not empty",
                fix="mend the line or take it out",
            ) from error
    return found


def _log(columns: dict[str, Float64[np.ndarray, " rows"]]) -> TrainingLog:
    stage, epoch = columns["stage"].astype(np.int64), columns["epoch"].copy()
    boundaries, done = [], 0.0
    for number in np.unique(stage):
        if number > stage.min():
            boundaries.append(done)
        here = stage == number
        epoch[here] += done
        done = float(epoch[here].max())
    losses = {name: values for name, values in columns.items() if name not in (*_FIRST[:3], *_LAST)}
    scores = {name: columns[name] for name in ("lr", "mean_ap", "rank1")}
    return TrainingLog(stage, epoch, losses, **scores, boundaries=tuple(boundaries))


def _draw(log: TrainingLog, title: str) -> Figure:
    measured = bool(np.any(np.isfinite(log.mean_ap)))
    heights = [3.0, 2.6, 1.3] if measured else [3.0, 1.3]
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)  # inches
    figure = Figure(figsize=(9, 2.2 + 1.25 * sum(heights)), dpi=144, layout=layout, facecolor="white")
    panels = list(figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}))
    _draw_losses(panels[0], log)
    if measured:
        _draw_scores(panels[1], log)
    _draw_rate(panels[-1], log)
    for axes in panels:
        for boundary in log.boundaries:
            axes.axvline(boundary, color=FAINT, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
    for number, boundary in zip(np.unique(log.stage)[1:], log.boundaries, strict=True):
        panels[0].annotate(
            f"stage {number}", (boundary, 1), (4, -2), ("data", "axes fraction"), "offset points",
            color=FAINT, fontsize=9, va="top",
        )  # fmt: skip
    panels[-1].set_xlim(0, max(float(log.epoch.max()), 1e-9))
    panels[-1].set_xlabel("epochs", color=FAINT)
    if title:
        figure.suptitle(title, color=INK, fontsize=14, fontweight="bold", parse_math=False)
    return figure


def _draw_losses(axes: Axes, log: TrainingLog) -> None:
    dress(axes, "Loss", "", "")
    drawn = []
    for number, (name, values) in enumerate(log.losses.items()):
        there = np.isfinite(values)
        # The sum lies below its parts and is broader: it shows where there is one part alone.
        label, color, width = (name, COLORS[(number - 1) % len(COLORS)], 1.8) if number else ("sum", INK, 3.0)
        for stage in np.unique(log.stage[there]):  # a line does not go on from one stage to the next
            here = there & (log.stage == stage)
            epochs, shown = log.epoch[here], values[here]
            if len(shown) > _LONG:
                axes.plot(epochs, shown, linewidth=0.8, alpha=0.2, color=color)
                shown = _smoothed(shown, len(shown) // 40)
            marker = "o" if len(shown) == 1 else None
            axes.plot(epochs, shown, color=color, linewidth=width, marker=marker, markersize=4, label=label)
            label = None
            drawn.append(shown)
    _scale(axes, np.concatenate(drawn) if drawn else np.empty(0))
    if drawn:
        _add_legend(axes, "upper right")


def _draw_scores(axes: Axes, log: TrainingLog) -> None:
    dress(axes, "Validation", "", "%")
    there = np.isfinite(log.mean_ap)
    epochs = log.epoch[there]
    best = int(np.argmax(log.mean_ap[there]))
    axes.axvline(epochs[best], color=GRID, linewidth=1.5, zorder=1)
    lines = (("mAP", log.mean_ap, COLORS[0]), ("rank-1", log.rank1, COLORS[1]))
    for name, values, color in lines:
        shown = 100 * values[there]
        dots = "o" if len(shown) <= _DOTTED else None
        axes.plot(epochs, shown, color=color, linewidth=1.8, marker=dots, markersize=3.5, clip_on=False)
        here, label = slice(best, best + 1), f"{name} {shown[best]:.1f} %"
        axes.plot(epochs[here], shown[here], color=color, marker="o", markersize=8, clip_on=False, label=label)
    _add_legend(axes, "lower right", title=f"best mAP, at epoch {epochs[best]:.4g}")


def _draw_rate(axes: Axes, log: TrainingLog) -> None:
    dress(axes, "Learning rate", "", "")
    there = np.isfinite(log.lr)
    for stage in np.unique(log.stage[there]):
        here = there & (log.stage == stage)
        marker = "o" if np.count_nonzero(here) == 1 else None
        axes.plot(log.epoch[here], log.lr[here], color=COLORS[2], linewidth=1.8, marker=marker, markersize=4)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))


def _smoothed(values: Float64[np.ndarray, " rows"], reach: int) -> Float64[np.ndarray, " rows"]:
    """The mean of each value and its neighbours, `reach` on either side, fewer at the ends."""
    window = np.ones(2 * reach + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _scale(axes: Axes, values: Float64[np.ndarray, " values"]) -> None:
    if len(values) == 0:
        return
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > _WIDE_RANGE:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    elif low >= 0 and not math.isclose(high, 0):
        axes.set_ylim(0, high * 1.08)


def _add_legend(axes: Axes, place: Literal["upper right", "lower right"], *, title: str = "") -> None:
    legend = axes.legend(
        loc=place,
        title=title,
        ncols=2,
        fontsize=9,
        title_fontsize=9,
        labelcolor=INK,
        edgecolor="none",
        framealpha=0.85,
        alignment="left",
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
