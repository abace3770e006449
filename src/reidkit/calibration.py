"""The table of ranges that a bundle was quantised by: `calibration.json`.

One table serves every engine: it says in which range each value lies and how wide a step each channel of the weights
takes, and of which pictures that was learned. The graphs for the engines are made from it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from reidkit.config import from_dict, to_dict
from reidkit.errors import BundleError, ConfigError, require_one_of

SCHEMA = 1

EngineKind = Literal["cpu", "tensorrt"]
"""Whose placement: that of ONNX Runtime and OpenVINO, or that of every TensorRT."""

_MOST = (2 - 2.0**-23) * 2.0**127  # of float32
_LONG = 400  # characters of what somebody else wrote, in a message

Method = Literal["minmax", "entropy", "percentile", "mse", "qat"]
"""How a range comes from what was seen; "qat" learned it in training."""

Source = Literal["train", "query", "gallery", "folder"]
"""Where pictures come from: a data set's subset, or a plain folder of which nothing more is known."""


@dataclass(frozen=True, slots=True)
class Range:
    """What a rounded value holds: 0 is always in it, since engines pad with it.

    Attributes:
        low: 0 or below.
        high: 0 or above.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -_MOST <= self.low <= 0 <= self.high <= _MOST:  # a NaN is not, either
            raise ConfigError(
                "A range cannot be this", got=f"{self.low} to {self.high}", expected="finite numbers around 0"
            )


@dataclass(frozen=True, slots=True)
class RoundedLayer:
    """A layer of a network as an engine computes it in eight bits: what training has to imitate.

    Grids are told by name, and one that several layers share has one name: the input of two layers is rounded once.

    Attributes:
        name: of the layer, canonical: "backbone.layer1.0.conv2".
        input: grid that its input is rounded to.
        output: grid that its result is rounded to, with batch normalisation folded in (of IBN, the half that is one)
            and, where nothing else reads it, behind its ReLU; None where that stays float.
    """

    name: str
    input: str
    output: str | None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that ranges were learned of.

    Attributes:
        name: of the file, below the data set or folder.
        sha256: of its bytes.
    """

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """A table of ranges, and where it is from.

    Attributes:
        graph: sha256 of the float32 graph that it belongs to.
        placement: number of the placement that chose its values.
        method: that made ranges of what was seen.
        percentile: share of values inside the range, in percent, where that is the method.
        ranges: by value of the graph.
        scales: step of the weights, by layer and output channel.
        floats: layers that stay float.
        dataset: that the pictures are of, its format and folder.
        source: subset that they are of.
        seed: that chose them.
        pictures: in the order in which they were chosen.
        created: ISO 8601, UTC.
        reidkit: version that wrote it.
    """

    graph: str
    placement: int
    method: Method
    ranges: Mapping[str, Range]
    scales: Mapping[str, tuple[float, ...]]
    percentile: float | None = None
    floats: tuple[str, ...] = ()
    dataset: str = ""
    source: Source = "folder"
    seed: int = 0
    pictures: tuple[Picture, ...] = field(default=())
    created: str | None = None
    reidkit: str | None = None

    def __post_init__(self) -> None:
        require_one_of("calibration method", self.method, get_args(Method))
        require_one_of("source of pictures", self.source, get_args(Source))
        if self.seed < 0:
            raise ConfigError("A seed cannot be this", got=self.seed, expected="0 or above")
        for name in (*self.ranges, *self.scales):
            if not name.isprintable():  # each is a line of TensorRT's own table
                raise ConfigError("A value or layer cannot be called this", got=repr(name)[:_LONG])
        for layer, steps in self.scales.items():
            if not steps or not all(0 < step <= _MOST for step in steps):
                raise ConfigError(f"The steps of {layer} cannot be this", got=list(steps)[:5], expected="above 0")


def calibration_bytes(calibration: Calibration) -> bytes:
    """The table as it is written: JSON, a line for every value and layer."""
    values = {"schema": SCHEMA, **to_dict(calibration)}
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            inner = ",\n".join(f"    {_json(key)}: {_json(entry)}" for key, entry in value.items())
            lines.append(f"  {_json(name)}: {{\n{inner}\n  }}")
        elif name == "pictures" and value:
            inner = ",\n".join(f"    {_json(entry)}" for entry in value)
            lines.append(f"  {_json(name)}: [\n{inner}\n  ]")
        else:
            lines.append(f"  {_json(name)}: {_json(value)}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def parse_calibration(data: bytes, *, source: str) -> Calibration:
    """Reads a table back.

    Args:
        data: the file's bytes.
        source: name of the file, for the messages.

    Raises:
        BundleError: no table, or of a schema that this version cannot read.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source} cannot be read", got=error, fix="quantise the bundle again") from error
    schema = values.pop("schema", None) if isinstance(values, dict) else None
    if type(schema) is not int or schema != SCHEMA:
        raise BundleError(
            f"{source} is no table of ranges that this reidkit reads",
            got=f"schema {schema}" if type(schema) is int else "no number as its schema",
            expected=f"an object with schema {SCHEMA}",
            fix="quantise the bundle again, or update reidkit (pip install -U reidkit)",
        )
    try:
        _check_ranges(values.get("ranges"))
        return from_dict(Calibration, values, where="calibration.json")
    except (ConfigError, RecursionError) as error:
        raise BundleError(f"{source} is not what this reidkit writes", got=_cut(error)) from error


def _check_ranges(ranges: object) -> None:
    """Reads each range by itself: one that is none is refused by the name of its value."""
    for name, ends in ranges.items() if isinstance(ranges, dict) else ():
        if isinstance(ends, dict):
            try:
                from_dict(Range, ends, where=f"calibration.json.ranges.{name}")
            except ConfigError as error:
                raise ConfigError(f"The range of {name!r} cannot be read", got=error) from error


def _cut(found: object) -> str:
    text = str(found)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)
