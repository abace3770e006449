import re
import sys

import numpy as np
import pytest

from reidkit.errors import InputError
from reidkit.report.curves import CmcCurve, RocCurve, cmc_svg, roc_places, roc_svg

RISING = np.array([0.5, 0.75, 1.0])


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def lines(svg):
    """The curves, as points: the thick lines that have a colour of their own, the samples of the legend left out."""
    found = re.findall(r'<path d="([^"]*)" style="fill: none; stroke(?:-dasharray[^#]*stroke)?: #([^"]*)"', svg)
    points = [
        np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path), dtype=float)
        for path, style in found
        if "1.8" in style
    ]
    return points[: len(points) // 2]


def test_cmc_values_stand_where_they_should():
    (line,) = lines(cmc_svg([CmcCurve("a", RISING)]))
    x, y = line.T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.02)  # rank 1, 2, 3
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.02)  # 50, 75, 100 %
    assert y[0] > y[2]  # down is low in SVG
    assert texts(cmc_svg([CmcCurve("a", RISING)]))[-1] == "a"
    assert "50" not in texts(cmc_svg([CmcCurve("a", np.ones(3))]))


def test_as_many_curves_as_reports_and_each_looks_different():
    svg = cmc_svg([CmcCurve(f"model {i}", np.full(50, 0.3 + i / 20)) for i in range(12)])
    assert len(lines(svg)) == 12
    assert [text for text in texts(svg) if text.startswith("model")] == [f"model {i}" for i in range(12)]
    styles = re.findall(r'style="(fill: none; stroke[^"]*stroke-width: 1.8[^"]*)"', svg)
    assert len(set(styles)) == 12
    assert styles[:12] == styles[12:]  # the legend shows the same ones


def test_extreme_curves_can_be_seen():
    one, zero, perfect = (
        lines(cmc_svg([CmcCurve("x", values)]))[0] for values in (RISING[:1], np.zeros(9), np.ones(9))
    )
    assert np.ptp(one[:, 0]) > 50  # one rank is a stroke
    assert np.ptp(zero[:, 1]) == np.ptp(perfect[:, 1]) == 0
    assert zero[0, 1] > perfect[0, 1]
    (line,) = lines(roc_svg([RocCurve("x", np.array([0.0]), np.array([1.0]))]))  # no wrong pair at all
    assert np.ptp(line[:, 1]) == 0


def test_roc_holds_its_value_until_the_next_rate():
    curve = RocCurve("a", np.array([0.0, 0.01, 0.1, 1.0]), np.array([0.2, 0.4, 0.8, 1.0]))
    rates, values = roc_places(curve, 1e-3)
    assert (rates[0], rates[-1]) == (pytest.approx(1e-3), 1.0)
    assert np.all(values[rates < 0.0099] == 0.2)
    assert np.all(values[(rates > 0.0101) & (rates < 0.099)] == 0.4)
    assert np.all(values[(rates > 0.101) & (rates < 1)] == 0.8)
    assert values[-1] == 1.0
    # A curve that was kept up to a rate ends there.
    rates, values = roc_places(RocCurve("a", curve.false_positive_rates[:2], curve.true_positive_rates[:2]), 1e-4)
    assert (rates[-1], values[-1]) == (0.01, 0.4)


def test_the_axis_of_roc_is_logarithmic():
    rates = np.geomspace(1e-4, 1, 401)
    curve = RocCurve("a", rates, 1 + np.log10(rates) / 4)  # a straight line on such an axis
    svg = roc_svg([curve])
    (line,) = lines(svg)
    slope = np.diff(line[:, 1][::30]) / np.diff(line[:, 0][::30])
    assert slope == pytest.approx(slope[0], rel=0.1)
    assert [text for text in texts(svg) if "e-" in text or text == "0.1"] == ["1e-4", "1e-3", "1e-2", "0.1"]


def test_svg_can_stand_twice_on_a_page_and_fetches_nothing():
    for svg in (cmc_svg([CmcCurve("a", RISING)]), roc_svg([RocCurve("a", RISING, RISING)])):
        assert svg.startswith("<svg viewBox=")
        assert not re.search(r"\bid=|href|url\(|http|//|<script|<!|<\?|metadata|<image|<use|xmlns", svg)
        assert "var(--ink, #0f172a)" in svg  # in the dark the page's own colour


def test_names_are_text_and_short():
    name = "<script>&\"' $x^2$ " + 60 * "long " + "\u202e end"
    svg = cmc_svg([CmcCurve(name, RISING), CmcCurve("b", RISING / 2)])
    assert "<script>" not in svg
    (shown,) = [text for text in texts(svg) if "script" in text]
    assert shown.startswith("&lt;script&gt;&amp;\"' $x^2$ long")
    assert shown.endswith("\ufffd end")
    assert len(shown) < 70
    twins = [f"{30 * 'x'}{i}{30 * 'x'}" for i in range(2)]
    legend = texts(cmc_svg([CmcCurve(twin, RISING) for twin in twins]))[-2:]
    assert [text[:4] for text in legend] == ["1. x", "2. x"]


def test_the_same_curves_give_the_same_bytes_without_pyplot(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    curves = [CmcCurve("a", RISING), CmcCurve("b", RISING / 2)]
    assert cmc_svg(curves) == cmc_svg(curves)


@pytest.mark.parametrize("draw", [cmc_svg, roc_svg])
def test_nothing_to_draw(draw):
    with pytest.raises(InputError, match="There are no curves to draw"):
        draw([])


@pytest.mark.parametrize(
    ("values", "got"), [([], "no values"), ([0.5, np.nan], "values from nan to nan"), ([0.5, 70.0], "from 0.5 to 70.0")]
)
def test_what_is_no_curve_is_named(values, got):
    with pytest.raises(InputError, match=rf"The curve of osnet cannot be drawn\n  got: .*{got}"):
        cmc_svg([CmcCurve("osnet", np.array(values, dtype=np.float64))])
