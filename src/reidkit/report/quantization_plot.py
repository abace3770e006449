"""Eight bits as pictures: where a network is sensitive to rounding, and what calibration with few pictures costs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from reidkit.atomic import output_file
from reidkit.errors import InputError
from reidkit.metrics.bootstrap import PairedDifference
from reidkit.report.plotting import COLORS, FAINT, GRID, INK, dress
from reidkit.report.results import printable

_ROUNDED, _KEPT, _INTERVAL = COLORS[0], COLORS[1], "#93a4bd"
_MARKERS = ("o", "s", "^", "D", "v", "P")
_WIDE_RANGE = 30.0  # above this ratio of largest to smallest, a linear axis would flatten the small ones
_NAME = 34  # letters of a group's name
_FORMATS = ("png", "svg")


@runtime_checkable
class SensitivityRow(Protocol):
    """A network in eight bits but for one group of layers."""

    @property
    def name(self) -> str:
        """Of the group that stays float."""
        ...

    @property
    def layers(self) -> Sequence[str]:
        """Of the group."""
        ...

    @property
    def kept(self) -> Sequence[str]:
        """Those of them that the choice keeps in float."""
        ...

    @property
    def share(self) -> float:
        """Of the multiply-adds of all layers; a fraction of 1."""
        ...

    @property
    def error(self) -> float:
        """1 - mean cosine to the float network's embeddings."""
        ...

    @property
    def gain(self) -> PairedDifference:
        """Of mAP, over all layers in eight bits; fractions of 1."""
        ...


class CalibrationRow(NamedTuple):
    """MAP of a network that was quantised by the ranges of so many pictures; several rows of the same are draws.

    Attributes:
        method: that made the ranges.
        images: that they were learned of.
        mean_ap: a fraction of 1.
        network: name, of which each has a panel.
    """

    method: str
    images: int
    mean_ap: float
    network: str = ""


class Level(NamedTuple):
    """MAP that needs no pictures: of the float network, or of one that was trained for eight bits.

    Attributes:
        name: what it is of.
        mean_ap: a fraction of 1.
        network: as in `CalibrationRow`.
    """

    name: str
    mean_ap: float
    network: str = ""


def plot_format(out: Path | str) -> str:
    """The format that a plot is drawn in, by its file's name: asked first, it spares what the plot is drawn of.

    Raises:
        InputError: the name is of another format.
    """
    kind = Path(out).suffix.lower().removeprefix(".")
    if kind not in _FORMATS:
        raise InputError(f"{out} is of no format that plots are drawn in", expected="a name ending in .png or .svg")
    return kind


def write_sensitivity_plot(
    out: Path | str, rows: Sequence[SensitivityRow], *, error: float, drop: float, max_drop: float, title: str = ""
) -> None:
    """Draws how much of the harm of rounding each group takes away when it alone stays float.

    On the left the bars reach from the error with everything rounded to what is left of it, on the right from no gain
    of mAP to what is gained, with its 95 % interval: long is sensitive in both. Groups of which the choice keeps layers
    in float are of another colour, and say how many.

    Args:
        out: a .png or .svg file.
        rows: groups, the first at the top.
        error: 1 - mean cosine with all layers in eight bits.
        drop: of mAP, with all layers in eight bits; a fraction of 1.
        max_drop: that is allowed.
        title: a line for the top, for example the network and the data set.

    Raises:
        InputError: there are no groups, a number is not finite or an error below 0, or the file is of another format.
        OutputError: the file cannot be written.
    """
    kind = plot_format(out)
    _check_rows(rows, (error, drop, max_drop))
    figure = _figure(11.0, 2.2 + 0.27 * len(rows))
    left, right = figure.subplots(1, 2)
    _draw_errors(left, rows, error)
    lines: dict[str, Line2D | LineCollection] = {
        "95 % interval": _draw_gains(right, rows),
        "all in eight bits": right.axvline(0, color=INK, linewidth=1.2),
        "float network": right.axvline(100 * drop, color=FAINT, linestyle="--", linewidth=1.5),
        "allowed drop": right.axvline(100 * (drop - max_drop), color=COLORS[2], linestyle=":", linewidth=1.5),
    }
    for axes in (left, right):
        axes.set_ylim(len(rows) - 0.4, -0.6)
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_color(_KEPT if row.kept else INK)
    bars = {"one block in float": Patch(color=_ROUNDED)}
    if any(row.kept for row in rows):
        bars["so many of its layers are chosen to stay float"] = Patch(color=_KEPT)
    _finish(figure, {**bars, **lines}, title, columns=5 if len(bars) == 1 else 3)
    _save(figure, out, kind)


def write_calibration_plot(
    out: Path | str, rows: Sequence[CalibrationRow], levels: Sequence[Level] = (), *, title: str = ""
) -> None:
    """Draws mAP against the number of calibration pictures: a panel a network, a line a method.

    A line goes through the means over draws, and a band from the least to the most of them.

    Args:
        out: a .png or .svg file.
        rows: measurements, in any order.
        levels: drawn across.
        title: a line for the top, for example the data set.

    Raises:
        InputError: there are no measurements, one cannot be, a level is of no network; or another format.
        OutputError: the file cannot be written.
    """
    kind = plot_format(out)
    _check_calibration(rows, levels)
    networks = list(dict.fromkeys(row.network for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    crossing = list(dict.fromkeys(level.name for level in levels))
    handles: dict[str, Line2D] = {}
    figure = _figure(max(7.0, 5.5 * len(networks)), 5.0)
    for axes, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        dress(axes, printable(network) or "Accuracy by calibration", "calibration pictures", "mAP, %")
        own = [row for row in rows if row.network == network]
        for level in levels:
            if level.network == network:
                style = ("--", ":", "-.")[crossing.index(level.name) % 3]
                handles[level.name] = axes.axhline(100 * level.mean_ap, color=FAINT, linestyle=style, linewidth=1.5)
        for number, method in enumerate(methods):
            if any(row.method == method for row in own):
                handles[method] = _method_line(axes, [row for row in own if row.method == method], number)
        counts = sorted({row.images for row in own})
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.xaxis.set_minor_locator(NullLocator())
        if len(counts) == 1:
            axes.set_xlim(counts[0] / 2, counts[0] * 2)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.margins(y=0.08)
    _finish(figure, {name: handles[name] for name in [*methods, *crossing]}, title)
    _save(figure, out, kind)


def _draw_errors(axes: Axes, rows: Sequence[SensitivityRow], error: float) -> None:
    _dress_bars(
        axes, "Error with one block in float", "1 - mean cosine to the float network (by the names: share of the work)"
    )
    # Bars begin at what they are compared with: a logarithmic axis has no 0 to begin at.
    axes.barh(range(len(rows)), [row.error - error for row in rows], left=error, height=0.62, color=_colors(rows))
    axes.axvline(error, color=INK, linewidth=1.2)
    axes.set_yticks(range(len(rows)), [f"{_short(row.name)}  {100 * row.share:.0f} %" for row in rows])
    low, high = (end([error, *(row.error for row in rows)]) for end in (min, max))
    if low > 0 and high / low > _WIDE_RANGE:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.5, high * 1.5)
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(min(0.0, low), 1.06 * high or 1e-6)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _draw_gains(axes: Axes, rows: Sequence[SensitivityRow]) -> LineCollection:
    """Gives what draws the intervals, for the legend."""
    _dress_bars(axes, "mAP gained with one block in float", "points of mAP")
    places = range(len(rows))
    axes.barh(places, [100 * row.gain.difference for row in rows], height=0.62, color=_colors(rows))
    low, high = ([100 * row.gain.interval[end] for row in rows] for end in (0, 1))
    intervals = axes.hlines(places, low, high, color=_INTERVAL, linewidth=3)
    axes.yaxis.tick_right()
    axes.set_yticks(places, [f"{len(row.kept)} of {len(row.layers)}" if row.kept else "" for row in rows])
    return intervals


def _colors(rows: Sequence[SensitivityRow]) -> list[str]:
    return [_KEPT if row.kept else _ROUNDED for row in rows]


def _method_line(axes: Axes, rows: Sequence[CalibrationRow], number: int) -> Line2D:
    draws: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: row.images):
        draws.setdefault(row.images, []).append(100 * row.mean_ap)
    counts, color = list(draws), COLORS[number % len(COLORS)]
    low, high = ([end(values) for values in draws.values()] for end in (min, max))
    axes.fill_between(counts, low, high, color=color, alpha=0.13, linewidth=0)
    axes.vlines(counts, low, high, color=color, alpha=0.5, linewidth=1.2)
    means = [math.fsum(values) / len(values) for values in draws.values()]
    marker = _MARKERS[number % len(_MARKERS)]
    return axes.plot(counts, means, color=color, marker=marker, linewidth=2, markersize=5.5)[0]


def _check_rows(rows: Sequence[SensitivityRow], numbers: Sequence[float]) -> None:
    if not rows:
        raise InputError("There are no groups of layers to draw", expected="at least one")
    for what, values in [
        ("all layers in eight bits", numbers),
        *((f"group {printable(row.name)}", (row.error, row.share, row.gain.difference)) for row in rows),
    ]:
        if not all(map(math.isfinite, values)) or values[0] < -1e-6:
            raise InputError(
                f"The figures of {what} cannot be drawn",
                got=", ".join(f"{value:g}" for value in values),
                expected="finite numbers, and an error of 0 or above",
            )


def _check_calibration(rows: Sequence[CalibrationRow], levels: Sequence[Level]) -> None:
    if not rows:
        raise InputError("There are no measurements to draw", expected="at least one")
    for row in rows:
        if row.images < 1 or not 0 <= row.mean_ap <= 1:
            raise InputError(
                f"A measurement of method {printable(row.method)} cannot be drawn",
                got=f"{row.images} images, mAP {row.mean_ap}",
                expected="1 image or more, mAP as a fraction of 1",
            )
    networks = {row.network for row in rows}
    for level in levels:
        if level.network not in networks or not 0 <= level.mean_ap <= 1:
            raise InputError(
                f"The level {printable(level.name)} cannot be drawn",
                got=f"network {level.network!r}, mAP {level.mean_ap}",
                expected=f"one of the networks {', '.join(map(repr, sorted(networks)))}, mAP as a fraction of 1",
            )


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)  # inches
    return Figure(figsize=(width, height), dpi=144, layout=layout, facecolor="white")


def _dress_bars(axes: Axes, title: str, unit: str) -> None:
    dress(axes, title, unit, "")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID)


def _finish(
    figure: Figure, legend: Mapping[str, Line2D | LineCollection | Patch], title: str, *, columns: int = 7
) -> None:
    most = min(columns, len(legend))
    figure.legend(
        list(legend.values()), list(legend), loc="outside lower center", ncols=most, frameon=False, labelcolor=INK
    )
    if title:
        figure.suptitle(printable(title), color=INK, fontsize=14, fontweight="bold")
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names of layers, networks and folders may hold a $


def _save(figure: Figure, out: Path | str, kind: str) -> None:
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with output_file(out) as temporary, mpl.rc_context({"svg.hashsalt": "reidkit"}):
        figure.savefig(temporary, format=kind, metadata=metadata)


def _short(name: str) -> str:
    """A name that fits beside the bars: its end tells the blocks of a network apart."""
    name = printable(name)
    return name if len(name) <= _NAME else f"\N{HORIZONTAL ELLIPSIS}{name[1 - _NAME :]}"
