"""The benchmark as a picture: latency and throughput against the batch size."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reidkit.atomic import output_file
from reidkit.errors import InputError
from reidkit.report.plotting import COLORS, INK, dress


@runtime_checkable
class LatencyRow(Protocol):
    """One measurement of one runtime at one batch size."""

    @property
    def runtime(self) -> str:
        """Name of the engine."""
        ...

    @property
    def precision(self) -> str:
        """Of the arithmetic inside."""
        ...

    @property
    def via(self) -> str | None:
        """How the network came to an engine's builder; None where nothing was built."""
        ...

    @property
    def batch(self) -> int:
        """Crops per call."""
        ...

    @property
    def decode(self) -> bool:
        """Whether decoding and resizing the pictures is included."""
        ...

    @property
    def median_ms(self) -> float:
        """Milliseconds per call, half of the calls."""
        ...

    @property
    def p90_ms(self) -> float:
        """Milliseconds per call, nine of ten calls."""
        ...

    @property
    def images_per_second(self) -> float:
        """Crops per second."""
        ...


_Series: TypeAlias = tuple[str, str, str | None, bool]
"""Runtime, precision, how the engine was built, and whether decoding is included."""

_MARKERS = {"float32": "o", "tf32": "P", "float16": "s", "bfloat16": "^", "int8": "D"}
_WIDE_RANGE = 30.0  # above this ratio of largest to smallest, a linear axis would flatten the small ones


def write_latency_plot(out: Path | str, rows: Sequence[LatencyRow], *, title: str = "") -> None:
    """Draws a benchmark as a PNG: a panel of latency and a panel of throughput, both against the batch size.

    One colour is one runtime, one marker one precision, half filled where an engine was built through the parser; solid
    lines are the network alone, dashed ones include decoding and resizing. The band reaches from the median latency to
    the 90th percentile.

    Args:
        out: the PNG file.
        rows: the measurements, in any order.
        title: a line for the top, for example the device.

    Raises:
        InputError: there are no measurements, or one is not a positive finite number.
        OutputError: the file cannot be written.
    """
    _check(rows)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)  # inches
    figure = Figure(figsize=(11, 5.2), dpi=144, layout=layout, facecolor="white")
    latency, throughput = figure.subplots(1, 2)
    runtimes = list(dict.fromkeys(row.runtime for row in rows))
    handles: dict[_Series, Line2D] = {}
    for (runtime, precision, via, decode), series in _series(rows).items():
        style = {
            "color": COLORS[runtimes.index(runtime) % len(COLORS)],
            "marker": _MARKERS.get(precision, "v"),
            "linestyle": "--" if decode else "-",
            "markerfacecolor": "white" if decode else None,
            "fillstyle": "bottom" if via == "parser" and not decode else "full",
        }
        batches = [row.batch for row in series]
        medians, tails = [row.median_ms for row in series], [row.p90_ms for row in series]
        latency.fill_between(batches, medians, tails, color=style["color"], alpha=0.13, linewidth=0)
        latency.vlines(batches, medians, tails, color=style["color"], alpha=0.35, linewidth=1.2)
        (handles[runtime, precision, via, decode],) = latency.plot(batches, medians, linewidth=2, markersize=6, **style)
        throughput.plot(batches, [row.images_per_second for row in series], linewidth=2, markersize=6, **style)
    batches = sorted({row.batch for row in rows})
    _dress(latency, "Latency of a call, median to 90th percentile", "milliseconds", batches)
    _dress(throughput, "Throughput", "pictures per second", batches)
    _scale(latency, [row.median_ms for row in rows] + [row.p90_ms for row in rows])
    _scale(throughput, [row.images_per_second for row in rows])
    _add_legend(figure, handles)
    if title:
        figure.suptitle(title, color=INK, fontsize=14, fontweight="bold", parse_math=False)
    with output_file(out) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _check(rows: Sequence[LatencyRow]) -> None:
    if not rows:
        raise InputError("There are no measurements to draw", expected="at least one")
    for row in rows:
        numbers = (row.batch, row.median_ms, row.p90_ms, row.images_per_second)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise InputError(
                f"A measurement of {row.runtime} {row.precision} cannot be drawn",
                got=f"batch {row.batch}, median {row.median_ms} ms, 90th percentile {row.p90_ms} ms, "
                f"{row.images_per_second} pictures per second",
                expected="finite numbers above 0",
            )


def _series(rows: Sequence[LatencyRow]) -> dict[_Series, list[LatencyRow]]:
    found: dict[_Series, list[LatencyRow]] = {}
    for row in sorted(rows, key=lambda row: row.batch):
        found.setdefault((row.runtime, row.precision, row.via, row.decode), []).append(row)
    order = list(dict.fromkeys((row.runtime, row.precision, row.via) for row in rows))
    return {key: found[key] for key in sorted(found, key=lambda key: (order.index(key[:3]), key[3]))}


def _add_legend(figure: Figure, handles: Mapping[_Series, Line2D]) -> None:
    names = [
        f"{runtime} {precision}{f' by {via}' if via else ''}{', with decoding' * decode}"
        for runtime, precision, via, decode in handles
    ]
    figure.legend(
        handles.values(),
        names,
        loc="outside lower center",
        ncols=min(3, len(names)),
        handlelength=3.4,
        frameon=False,
        labelcolor=INK,
    )


def _dress(axes: Axes, title: str, unit: str, batches: Sequence[int]) -> None:
    dress(axes, title, "batch size", unit)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    if len(batches) == 1:
        axes.set_xlim(batches[0] / 2, batches[0] * 2)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    if max(values) / min(values) > _WIDE_RANGE:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, max(values) * 1.08)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
