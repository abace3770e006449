import sys
from dataclasses import dataclass, replace

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from reidkit.errors import InputError
from reidkit.metrics.bootstrap import Interval, PairedDifference
from reidkit.report.quantization_plot import (
    CalibrationRow,
    Level,
    write_calibration_plot,
    write_sensitivity_plot,
)

BLUE, VERMILLION = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


@dataclass(frozen=True)
class Row:
    name: str
    error: float
    gain: PairedDifference
    kept: tuple[str, ...] = ()
    layers: tuple[str, ...] = ("a", "b", "c")
    share: float = 0.25


def gain(difference):
    return PairedDifference(difference, Interval(difference - 0.01, difference + 0.01), 0.5, 3, 2)


ROWS = [
    Row("stem", 0.02, gain(-0.001)),
    Row("layer1.0_of_$x$ and $y$", 0.008, gain(0.03), kept=("a", "b")),
    Row("layer2.0", 0.019, gain(0.002)),
]
CALIBRATIONS = [
    CalibrationRow("minmax", 512, 0.801),
    CalibrationRow("minmax", 32, 0.80),
    CalibrationRow("minmax", 32, 0.78),
    CalibrationRow("entropy", 32, 0.79),
]


def draw(out, rows=ROWS, *, error=0.02, drop=0.04, max_drop=0.005, title=""):
    write_sensitivity_plot(out, rows, error=error, drop=drop, max_drop=max_drop, title=title)


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn."""
    found = []
    save = Figure.savefig

    def keep(figure, *arguments, **options):
        found.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return found


def colors(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 24) or ()}


def ends(axes: Axes):
    """Where each bar begins and ends."""
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    return [(round(bar.get_x(), 9), round(bar.get_x() + bar.get_width(), 9)) for bar in bars]


def test_bars_say_what_a_block_takes_away_and_gives_back(tmp_path, figures):
    draw(tmp_path / "x.png")
    left, right = figures[0].axes
    assert ends(left) == [(0.02, 0.02), (0.02, 0.008), (0.02, 0.019)]
    assert ends(right) == [(0, -0.1), (0, 3), (0, 0.2)]
    assert left.get_xscale() == "linear"
    assert left.get_xlim()[0] == 0
    assert [round(line.get_xdata()[0], 9) for line in right.lines] == [0, 4, 3.5]  # of float, and of what is allowed
    whiskers = [segment[:, 0] for segment in right.collections[0].get_segments()]
    assert [list(x) for x in whiskers] == [pytest.approx(x) for x in ([-1.1, 0.9], [2, 4], [-0.8, 1.2])]
    assert left.get_ylim() == right.get_ylim() == (2.6, -0.6)  # the first group is at the top


def test_blocks_that_stay_float_are_marked(tmp_path, figures):
    draw(tmp_path / "x.png")
    draw(tmp_path / "none.png", [replace(row, kept=()) for row in ROWS])
    assert {BLUE, VERMILLION} <= colors(tmp_path / "x.png")
    assert VERMILLION not in colors(tmp_path / "none.png")
    left, right = figures[0].axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["", "2 of 3", ""]
    assert left.get_yticklabels()[0].get_text() == "stem  25 %"
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend[1] == "so many of its layers are chosen to stay float"
    assert legend[1] not in [text.get_text() for text in figures[1].legends[0].get_texts()]


def test_errors_far_apart_are_on_a_logarithmic_axis(tmp_path, figures):
    draw(tmp_path / "x.png", [*ROWS, Row("layer3.0", 1e-5, gain(0.04))])
    assert figures[0].axes[0].get_xscale() == "log"
    low, high = figures[0].axes[0].get_xlim()
    assert low < 1e-5
    assert high > 0.02


def test_a_network_that_rounding_does_nothing_to_and_a_long_name(tmp_path, figures):
    draw(tmp_path / "x.png", [Row("x" * 50 + ".layer4.1", 0.0, gain(0.0))], error=0.0, drop=0.0)
    label = figures[0].axes[0].get_yticklabels()[0].get_text()
    assert label == "\N{HORIZONTAL ELLIPSIS}" + "x" * 24 + ".layer4.1  25 %"


def test_a_line_goes_through_the_means_of_draws(tmp_path, figures):
    write_calibration_plot(tmp_path / "x.png", CALIBRATIONS, [Level("float32", 0.81)])
    (axes,) = figures[0].axes
    level, minmax, entropy = axes.lines
    assert list(minmax.get_xdata()) == [32, 512]
    assert list(minmax.get_ydata()) == pytest.approx([79, 80.1])
    assert list(entropy.get_ydata()) == pytest.approx([79])
    assert list(level.get_ydata()) == [81, 81]
    draws = axes.collections[1].get_segments()[0]
    assert draws[:, 1] == pytest.approx([78, 80])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["32", "512"]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["minmax", "entropy", "float32"]


def test_each_network_has_a_panel_and_a_method_one_color_in_all(tmp_path, figures):
    rows = [CalibrationRow("mse", 64, 0.7, "small"), CalibrationRow("minmax", 64, 0.8, "large")]
    rows.append(CalibrationRow("mse", 64, 0.81, "large"))
    write_calibration_plot(tmp_path / "x.png", rows, [Level("qat", 0.82, "large")], title="a $5 set_of $ people")
    small, large = figures[0].axes
    assert [axes.get_title(loc="left") for axes in (small, large)] == ["small", "large"]
    assert len(small.lines) == 1
    assert len(large.lines) == 3
    assert small.lines[0].get_color() == large.lines[1].get_color()
    assert large.lines[2].get_color() != large.lines[1].get_color()


@pytest.mark.parametrize("name", ["x.png", "x.svg"])
def test_the_same_rows_give_the_same_bytes_without_pyplot(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for folder in "ab":
        draw(tmp_path / folder / name, title="A < B")
        write_calibration_plot(tmp_path / folder / f"calibration-{name}", CALIBRATIONS)
    for each in (name, f"calibration-{name}"):
        data = (tmp_path / "a" / each).read_bytes()
        assert data == (tmp_path / "b" / each).read_bytes()
        assert data.startswith(b"\x89PNG" if name == "x.png" else b"<?xml")


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(InputError, match="There are no groups of layers to draw"):
        draw(tmp_path / "x.png", [])
    with pytest.raises(InputError, match=r"group stem cannot be drawn\n  got: nan, 0.25, -0.001"):
        draw(tmp_path / "x.png", [replace(ROWS[0], error=float("nan"))])
    with pytest.raises(InputError, match=r"all layers in eight bits cannot be drawn\n  got: -1, 0.04, 0.005"):
        draw(tmp_path / "x.png", error=-1.0)
    with pytest.raises(InputError, match=r"x\.jpg is of no format that plots are drawn in\n.*\.png or \.svg"):
        draw(tmp_path / "x.jpg")
    with pytest.raises(InputError, match="There are no measurements to draw"):
        write_calibration_plot(tmp_path / "x.png", [])
    with pytest.raises(InputError, match=r"method mse cannot be drawn\n  got: 0 images, mAP 0.5"):
        write_calibration_plot(tmp_path / "x.png", [CalibrationRow("mse", 0, 0.5)])
    with pytest.raises(InputError, match=r"method mse cannot be drawn\n  got: 9 images, mAP 50.0"):
        write_calibration_plot(tmp_path / "x.png", [CalibrationRow("mse", 9, 50.0)])
    with pytest.raises(InputError, match=r"level float32 cannot be drawn\n  got: network 'r50', mAP 0.8"):
        write_calibration_plot(tmp_path / "x.png", CALIBRATIONS, [Level("float32", 0.8, "r50")])
    assert not list(tmp_path.iterdir())
