"""Arguments and options that several commands share."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from reidkit.errors import ConfigError, unknown_name
from reidkit.metrics.distance import Metric
from reidkit.runtime import RuntimeName
from reidkit.types import InputSpec

BundlePath = Annotated[Path, typer.Argument(help="The model: a folder NAME.reid.", metavar="BUNDLE")]
DataRoot = Annotated[
    Path, typer.Option("--data", help="A data set: Market-1501 or another known layout, a plain folder, or a CSV.")
]
DataFormat = Annotated[str | None, typer.Option("--format", help="Layout of the data set; found out if not given.")]
DataVariant = Annotated[str | None, typer.Option("--variant", help="For CUHK03: detected or labeled.")]
Runtime = Annotated[RuntimeName, typer.Option("--runtime", help="Engine to run on.")]
Device = Annotated[str, typer.Option("--device", help="Where to run, in the engine's own words: cpu, cuda, gpu.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads that decode pictures")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Crops a call of the engine.")]
MetricName = Annotated[Metric, typer.Option("--metric", help="Distance between embeddings.")]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out pictures that cannot be decoded, and say which.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]


T = TypeVar("T", bound=str)


def each_of(known: Iterable[T], values: Sequence[str], *, what: str) -> list[T]:
    """The values of an option that may be repeated, each checked to be a known one.

    Raises:
        ConfigError: one is not; suggests the nearest.
    """
    by_name: dict[str, T] = {name: name for name in known}
    for value in values:
        if value not in by_name:
            raise unknown_name(what, value, by_name)
    return [by_name[value] for value in values]


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of a `--size`.

    Raises:
        ConfigError: not two numbers with an x between, or out of range.
    """
    height, separator, width = text.lower().partition("x")
    if not separator or not (height.isdecimal() and width.isdecimal()):
        raise ConfigError("Cannot read --size", got=text, expected="HEIGHTxWIDTH, such as 256x128")
    spec = InputSpec(int(height), int(width))  # which knows the limits
    return spec.height, spec.width
