"""The table of ranges: what it is, what it looks like in JSON, and hostile files that say they are one."""

import dataclasses
import json
import math

import pytest

from conditions import as_installed
from reidkit.calibration import Calibration, Picture, Range, calibration_bytes, parse_calibration
from reidkit.errors import BundleError, ConfigError

TABLE = Calibration(
    graph="ab" * 32,
    placement=3,
    method="percentile",
    ranges={"x": Range(-0.5, 1.25), "größe": Range(0.0, 1e-30)},
    scales={"backbone.conv1": (0.1, 1e-20, 3.0), "last": (1.0,)},
    percentile=99.9,
    floats=("last",),
    dataset="market1501 market",
    source="train",
    seed=7,
    pictures=(Picture("a/1.jpg", "c" * 64), Picture("2.jpg", "d" * 64)),
    created="2025-01-01T00:00:00+00:00",
    reidkit="1.0",
)
LEAST = Calibration("0" * 64, 1, "minmax", {}, {})


@pytest.mark.parametrize("table", [TABLE, LEAST])
def test_what_was_written_is_read(table):
    assert parse_calibration(calibration_bytes(table), source="c.json") == table


def test_it_is_readable_and_every_value_has_a_line():
    lines = calibration_bytes(TABLE).decode("ascii").splitlines()
    assert lines[:2] == ["{", '  "schema": 1,']
    assert '    "x": {"low": -0.5, "high": 1.25},' in lines
    assert '    "backbone.conv1": [0.1, 1e-20, 3.0],' in lines
    assert '    {"name": "a/1.jpg", "sha256": "' + "c" * 64 + '"},' in lines
    assert json.loads(calibration_bytes(TABLE))["ranges"]["größe"] == {"low": 0.0, "high": 1e-30}


@pytest.mark.parametrize(
    ("low", "high"), [(0.1, 1.0), (-1.0, -0.1), (math.nan, 1.0), (0.0, math.inf), (-math.inf, 0.0), (1.0, -1.0)]
)
def test_a_range_that_is_none(low, high):
    with pytest.raises(ConfigError) as caught:
        Range(low, high)
    assert str(caught.value) == f"A range cannot be this\n  got: {low} to {high}\n  expected: finite numbers around 0"


@pytest.mark.parametrize("steps", [(), (0.0,), (-1.0,), (1.0, math.nan), (math.inf,)])
def test_steps_that_are_none(steps):
    with pytest.raises(ConfigError, match=r"The steps of last cannot be this\n  got: \[.*\]\n  expected: above 0"):
        dataclasses.replace(TABLE, scales={"last": steps})


@pytest.mark.parametrize(
    ("change", "text"), [({"method": "magic"}, "method 'magic'"), ({"source": "x"}, "pictures 'x'")]
)
def test_words_that_are_none(change, text):
    with as_installed(), pytest.raises(ConfigError, match=f"Unknown .*{text}\n  expected: one of "):
        dataclasses.replace(TABLE, **change)


def refused(data):
    with as_installed(), pytest.raises(BundleError) as caught:
        parse_calibration(data, source="m.reid/calibration.json")
    text = str(caught.value)
    assert text.startswith("m.reid/calibration.json ")
    assert len(text) < 700
    return text


def changed(**values):
    return json.dumps({**json.loads(calibration_bytes(TABLE)), **values}).encode()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"ranges": {"x": {"low": math.nan, "high": 1}}}, "The range of 'x' cannot be read\n  got: A range cannot be"),
        ({"ranges": {"x": {"low": 0, "high": math.inf}}}, "The range of 'x' cannot be read"),
        ({"ranges": {"x": {"low": 0, "high": 10**400}}}, "calibration.json.ranges.x.high has the wrong type"),
        ({"ranges": {"x": {"low": "0", "high": 1}}}, "calibration.json.ranges.x.low has the wrong type\n  got: '0'"),
        ({"ranges": {"x": {"low": 0}}}, "Missing in calibration.json.ranges.x: high"),
        ({"ranges": {"x": {"low": 0, "high": 1, "mid": 0}}}, "Unknown key 'calibration.json.ranges.x.mid'"),
        ({"ranges": {"x": [0, 1]}}, "calibration.json.ranges.x has the wrong type"),
        ({"ranges": [1]}, "calibration.json.ranges has the wrong type\n  got: [1] (list)"),
        ({"ranges": None}, "calibration.json.ranges has the wrong type"),
        ({"scales": {"l": [0.0]}}, "The steps of l cannot be this"),
        ({"scales": {"l": []}}, "The steps of l cannot be this"),
        ({"scales": {"l": "abc"}}, "calibration.json.scales.l has the wrong type"),
        ({"scales": {"l": [True]}}, "calibration.json.scales.l[0] has the wrong type\n  got: True"),
        ({"method": "magic"}, "calibration.json.method: 'magic'"),
        ({"placement": 1.5}, "calibration.json.placement has the wrong type"),
        ({"graph": None}, "calibration.json.graph has the wrong type"),
        ({"pictures": [{"name": "x"}]}, "Missing in calibration.json.pictures[0]: sha256"),
        ({"grpah": "x"}, "Unknown key 'calibration.json.grpah'"),
        ({"dataset": ["a" * 10_000_000]}, "calibration.json.dataset has the wrong type"),
    ],
)
def test_hostile_values_are_named(values, text):
    message = refused(changed(**values))
    assert "is not what this reidkit writes\n  got: " in message
    assert text in message


@pytest.mark.parametrize("schema", [0, 2, "1", True, 1.0, None, [[]]])
def test_a_schema_of_another_version(schema):
    text = refused(changed(schema=schema))
    got = f"schema {schema}" if type(schema) is int else "no number as its schema"
    assert f"is no table of ranges that this reidkit reads\n  got: {got}\n  expected: an object with schema 1" in text


@pytest.mark.parametrize("data", [b"[]", b"{}", b"null", b"3"])
def test_json_that_is_no_table(data):
    assert "is no table of ranges that this reidkit reads\n  got: no number as its schema" in refused(data)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b'{"schema": 1', b'{"schema": 1,}', b"\x00" * 100])
def test_what_is_no_json(data):
    assert "cannot be read\n  got: " in refused(data)


@pytest.mark.parametrize("depth", [*range(880, 1010, 10), 100_000])
def test_deep_nesting(depth):
    text = changed(dataset="@").replace(b'"@"', b"[" * depth + b"]" * depth)
    assert "cannot be read" in refused(text) or "is not what this reidkit writes" in refused(text)
