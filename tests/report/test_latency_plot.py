import sys
from dataclasses import dataclass, replace

import pytest
from PIL import Image

from reidkit.errors import InputError
from reidkit.report import latency_plot
from reidkit.report.latency_plot import write_latency_plot


@dataclass(frozen=True)
class Row:
    runtime: str
    precision: str
    batch: int
    decode: bool
    median_ms: float
    p90_ms: float
    images_per_second: float
    via: str | None = None


ROWS = [
    Row("onnxruntime", "float32", 1, False, 10.0, 12.0, 100.0),
    Row("onnxruntime", "float32", 8, False, 60.0, 70.0, 133.0),
    Row("onnxruntime", "float32", 8, True, 75.0, 95.0, 107.0),
    Row("openvino", "int8", 8, False, 0.5, 0.6, 16000.0),
]


def colors(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 24)}


def test_each_runtime_has_its_color(tmp_path):
    write_latency_plot(tmp_path / "all.png", ROWS, title="a $5 board_with_names")
    write_latency_plot(tmp_path / "one.png", ROWS[:3])
    blue, vermillion = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    assert {blue, vermillion} <= colors(tmp_path / "all.png")
    assert blue in colors(tmp_path / "one.png")
    assert vermillion not in colors(tmp_path / "one.png")


def test_the_same_rows_give_the_same_bytes_in_any_order(tmp_path):
    write_latency_plot(tmp_path / "x.png", ROWS[:2])
    write_latency_plot(tmp_path / "y.png", ROWS[1::-1])
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


def test_an_engine_built_both_ways_is_two_lines(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(latency_plot.Figure, "legend", lambda self, handles, names, **_: named.extend(names))
    built = [replace(ROWS[1], runtime="tensorrt", precision="tf32", via=via) for via in ("network", "parser")]
    write_latency_plot(tmp_path / "x.png", [*built, ROWS[2]])
    assert named == ["tensorrt tf32 by network", "tensorrt tf32 by parser", "onnxruntime float32, with decoding"]


def test_a_single_measurement_needs_no_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    write_latency_plot(tmp_path / "x.png", ROWS[:1])
    assert (0x00, 0x72, 0xB2) in colors(tmp_path / "x.png")


def test_measurements_that_cannot_be_drawn_are_named(tmp_path):
    with pytest.raises(InputError, match="There are no measurements to draw"):
        write_latency_plot(tmp_path / "x.png", [])
    with pytest.raises(InputError, match=r"onnxruntime float32 cannot be drawn\n  got: batch 8, median nan ms"):
        write_latency_plot(tmp_path / "x.png", [ROWS[0], replace(ROWS[1], median_ms=float("nan"))])
    assert not list(tmp_path.iterdir())
