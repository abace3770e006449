"""CMC and ROC curves of several models in one figure each, as SVG for a page."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from reidkit.errors import InputError
from reidkit.metrics.roc import rate_text
from reidkit.report.plotting import COLORS, INK, dress, inline_svg
from reidkit.report.results import printable

_STYLES = ("-", "--", "-.", ":")
_NAME = 50  # letters of a name in the legend
_RANKS = (1, 5, 10, 20, 30, 40, 50)
_RATES = (1e-6, 1e-2)  # the least false positive rate on the axis is between these
_PLACES = 300  # of a ROC curve: as many as its axis has pixels


class CmcCurve(NamedTuple):
    """CMC of one model.

    Attributes:
        name: of the model, or whatever tells the curves apart.
        values: CMC at the ranks from 1 on, fractions of 1.
    """

    name: str
    values: Float64[np.ndarray, " ranks"]


class RocCurve(NamedTuple):
    """ROC of one model; fractions of 1.

    Attributes:
        name: of the model, or whatever tells the curves apart.
        false_positive_rates: ascending.
        true_positive_rates: at each of them.
    """

    name: str
    false_positive_rates: Float64[np.ndarray, " points"]
    true_positive_rates: Float64[np.ndarray, " points"]


def cmc_svg(curves: Sequence[CmcCurve]) -> str:
    """Draws the share of queries that are found within each rank.

    One line a curve, told apart by colour and by style. The SVG has no ids, so several may stand on one page, and the
    same curves give the same bytes.

    Raises:
        InputError: there are no curves, or a value is no fraction of 1.
    """
    _check(curves)
    figure, axes = _figure(len(curves))
    dress(axes, "CMC", "rank", "queries found, %")
    last = max(len(curve.values) for curve in curves)
    lines = []
    for number, curve in enumerate(curves):
        ranks, values = np.arange(1, len(curve.values) + 1), 100 * curve.values
        if len(values) == 1:  # a stroke, since a point could not be seen
            ranks, values = np.array([0.8, 1.2]), np.repeat(values, 2)
        lines += axes.plot(ranks, values, **_style(number))
    axes.set_xlim(0.5 if last == 1 else 1, max(last, 1.5))
    axes.xaxis.set_major_locator(FixedLocator([rank for rank in _RANKS if rank <= last]))
    lowest = min(float(curve.values.min()) for curve in curves)
    axes.set_ylim(10 * max(int(10 * lowest - 0.2), 0), 100)  # some room below the lowest
    _add_legend(figure, [curve.name for curve in curves], lines)
    return inline_svg(figure, f"CMC: {_names(curves)}")


def roc_svg(curves: Sequence[RocCurve]) -> str:
    """Draws the share of right pairs that are accepted at each share of wrong pairs that are, on a logarithmic axis.

    A curve ends at its last false positive rate: nothing is drawn that was not kept. See `cmc_svg` for lines and bytes.

    Raises:
        InputError: there are no curves, or a value is no fraction of 1.
    """
    _check(curves)
    figure, axes = _figure(len(curves))
    dress(axes, "ROC", "false positive rate", "true positive rate, %")
    start = _least_rate(curves)
    lines = []
    for number, curve in enumerate(curves):
        rates, values = roc_places(curve, start)
        lines += axes.plot(rates, 100 * values, **_style(number))
    axes.set_xscale("log")
    axes.set_xlim(start, max(line.get_xdata()[-1] for line in lines))
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: rate_text(rate)))
    axes.set_ylim(0, 100)
    _add_legend(figure, [curve.name for curve in curves], lines)
    return inline_svg(figure, f"ROC: {_names(curves)}")


def roc_places(curve: RocCurve, start: float) -> tuple[Float64[np.ndarray, " places"], Float64[np.ndarray, " places"]]:
    """Where a ROC curve is drawn: evenly on the logarithmic axis from `start` to its end, and what it reaches there.

    That is its value at the largest of its rates that is not above; 0 where there is none. A curve without a positive
    rate had no wrong pair to accept, and is drawn to 1.
    """
    rates, values = curve.false_positive_rates, curve.true_positive_rates
    end = float(rates[-1]) if rates[-1] > 0 else 1.0
    places = np.geomspace(min(start, end), end, _PLACES)
    places[-1] = end
    reached = np.concatenate([[0.0], values])
    return places, reached[np.searchsorted(rates, places, side="right")]


def _least_rate(curves: Sequence[RocCurve]) -> float:
    """A power of ten that no curve's first step is left of, within reason."""
    found = [rate for curve in curves for rate in curve.false_positive_rates[curve.false_positive_rates > 0][:1]]
    low, high = _RATES
    return float(10.0 ** np.floor(np.log10(np.clip(min(found, default=high), low, high)) + 1e-9))


def _check(curves: Sequence[CmcCurve] | Sequence[RocCurve]) -> None:
    if not curves:
        raise InputError("There are no curves to draw", expected="at least one")
    for curve in curves:
        for values in curve[1:]:
            if len(values) == 0 or not np.all((values >= 0) & (values <= 1)):
                raise InputError(
                    f"The curve of {printable(curve.name)} cannot be drawn",
                    got="no values" if len(values) == 0 else f"values from {np.min(values)} to {np.max(values)}",
                    expected="fractions of 1",
                )


def _figure(curves: int) -> tuple[Figure, Axes]:
    # Narrow, so that it can be read on a telephone, where it is not scaled down.
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04)  # inches
    figure = Figure(figsize=(4.8, 3.1 + 0.19 * curves), layout=layout)
    axes = figure.subplots()
    axes.tick_params(axis="x", pad=7)  # clear of the lowest number beside it
    return figure, axes


def _style(number: int) -> dict[str, Any]:
    # Neighbours differ in colour and in style; the first 24 pairs are all different.
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": _STYLES[(number + number // 12) % len(_STYLES)],
        "linewidth": 1.8,
        "clip_on": False,
        "zorder": 3,  # before the line at the bottom
    }


def _add_legend(figure: Figure, names: Sequence[str], lines: Sequence[Line2D]) -> None:
    legend = figure.legend(
        lines,
        _short_names(names),
        loc="outside lower left",
        handlelength=3.2,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _short_names(names: Sequence[str]) -> list[str]:
    short = [_short(name) for name in names]
    if len(set(short)) == len(short):
        return short
    return [f"{number}. {name}" for number, name in enumerate(short, start=1)]


def _short(name: str) -> str:
    """A name that fits into the legend: its middle is what is left out, since names differ at their ends."""
    name = printable(name)
    if len(name) <= _NAME:
        return name
    head = _NAME // 2
    return f"{name[:head]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - (_NAME - head - 1) :]}"


def _names(curves: Sequence[CmcCurve] | Sequence[RocCurve]) -> str:
    return ", ".join(printable(curve.name) for curve in curves)
