"""Arguments and options that several commands share."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar, get_args, overload

import typer

from reidkit.errors import ConfigError, unknown_name
from reidkit.index.refinement import Refinement
from reidkit.index.reranking import KReciprocal
from reidkit.manifest import Tta
from reidkit.metrics.prepared import Metric
from reidkit.metrics.protocol import PROTOCOLS
from reidkit.runtime import RuntimeName
from reidkit.runtime.contract import Hint, Optimization
from reidkit.types import InputSpec, Precision

BundlePath = Annotated[Path, typer.Argument(help="The model: a folder NAME.reid.", metavar="BUNDLE")]
DataRoot = Annotated[
    Path, typer.Option("--data", help="A data set: Market-1501 or another known layout, a plain folder, or a CSV.")
]
DataFormat = Annotated[str | None, typer.Option("--format", help="Layout of the data set; found out if not given.")]
DataVariant = Annotated[
    str | None, typer.Option("--variant", help="CUHK03: detected or labeled. VehicleID: small, medium or large.")
]
Runtime = Annotated[RuntimeName, typer.Option("--runtime", help="Engine to run on.")]
Device = Annotated[
    str | None, typer.Option("--device", help="Where to run, in the engine's own words: cpu, cuda, gpu.")
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="Of the engine's arithmetic: fp32, tf32, fp16, bf16 or int8.")
]
PrecisionsOption = Annotated[
    list[str] | None,
    typer.Option("--precision", help="fp32, tf32, fp16, bf16 or int8; may be repeated (default: what there is)."),
]
Rebuild = Annotated[
    bool,
    typer.Option("--rebuild", help="Build an engine that does not fit this machine or model again, as it was built."),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes, or threads for few pictures, that decode (default: one a core)."),
]
ThreadsPerCall = Annotated[
    int | None, typer.Option("--threads-per-call", min=1, help="Threads of the processor that one call may use.")
]
HintOption = Annotated[
    Hint | None, typer.Option("--hint", help="OpenVINO: fast at one call, or at many crops (default: latency).")
]
OptimizationOption = Annotated[
    Optimization | None,
    typer.Option("--optimization", help="ONNX Runtime: how far it may rewrite the graph (default: all)."),
]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Crops a call of the engine.")]
MetricName = Annotated[Metric, typer.Option("--metric", help="Distance between embeddings.")]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out pictures that cannot be decoded, and say which.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]


Memory = Annotated[str, typer.Option("--memory", help="Ranking may take, beside the embeddings: 1GiB, 512MiB.")]
ProtocolOption = Annotated[
    str | None,
    typer.Option("--protocol", help=f"{', '.join(PROTOCOLS)} (default: the one of the data set's layout)."),
]
TtaOption = Annotated[Tta, typer.Option("--tta", help="Test-time augmentation: mirrored, at several scales, or both.")]
Dba = Annotated[int, typer.Option("--dba", min=0, help="Database augmentation by so many neighbours.")]
QueryExpansion = Annotated[int, typer.Option("--query-expansion", min=0, help="Expand queries by so many neighbours.")]
Alpha = Annotated[
    float, typer.Option("--alpha", min=0, help="Neighbours count by cosine to this power; 0 is the average.")
]
Rerank = Annotated[bool, typer.Option("--rerank", help="Re-rank by k-reciprocal neighbours.")]
_USUAL = KReciprocal()
K1 = Annotated[
    int | None, typer.Option("--k1", min=1, help=f"Of --rerank: reciprocal neighbours (default: {_USUAL.k1}).")
]
K2 = Annotated[
    int | None, typer.Option("--k2", min=1, help=f"Of --rerank: neighbours to average over (default: {_USUAL.k2}).")
]
Weight = Annotated[
    float | None,
    typer.Option(
        "--lambda", min=0, max=1, help=f"Of --rerank: weight of the original distance (default: {_USUAL.weight})."
    ),
]
Cached = Annotated[bool, typer.Option("--cache/--no-cache", help="Embed the same pictures with the same model once.")]


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


_PRECISIONS: dict[str, Precision] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    **{name: name for name in get_args(Precision)},
}


@overload
def parse_precision(text: str) -> Precision: ...
@overload
def parse_precision(text: None) -> None: ...
def parse_precision(text: str | None) -> Precision | None:
    """The precision of a `--precision`, by its short or its long name; None stays None.

    Raises:
        ConfigError: neither; suggests the nearest.
    """
    if text is None:
        return None
    if text.lower() not in _PRECISIONS:
        raise unknown_name("precision", text, _PRECISIONS)
    return _PRECISIONS[text.lower()]


def parse_precisions(texts: Iterable[str] | None) -> list[Precision | None]:
    """Those of a `--precision` that may be repeated, each once; none given is None alone: what there is."""
    found: dict[Precision | None, None] = {parse_precision(text): None for text in texts or ()}
    return list(found) or [None]


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


_UNITS = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_memory(text: str, option: str = "--memory") -> int:
    """Bytes of a `--memory`, or of another option of that kind.

    Raises:
        ConfigError: not a number and a unit, or none at all.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower(), re.ASCII)
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise ConfigError(f"Cannot read {option}", got=text, expected="a number and a unit, such as 1GiB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2]])


def refinement(
    *,
    dba: int = 0,
    query_expansion: int = 0,
    alpha: float = 0.0,
    rerank: bool = False,
    k1: int | None = None,
    k2: int | None = None,
    weight: float | None = None,
) -> Refinement:
    """The options that refine distances, as one; None takes what is usual.

    Raises:
        ConfigError: they do not go together.
    """
    if not rerank:
        given = {"--k1": k1, "--k2": k2, "--lambda": weight}
        refuse_idle({name: value is not None for name, value in given.items()}, "without --rerank")
    return Refinement(
        database_augmentation=dba,
        query_expansion=query_expansion,
        alpha=alpha,
        rerank=KReciprocal(
            _USUAL.k1 if k1 is None else k1,
            _USUAL.k2 if k2 is None else k2,
            _USUAL.weight if weight is None else weight,
        )
        if rerank
        else None,
    )


def refuse_idle(given: Mapping[str, object], where: str) -> None:
    """Refuses options that would be ignored.

    Args:
        given: by option, something true where it asks for anything.
        where: in words, such as "without --rerank".

    Raises:
        ConfigError: one was given.
    """
    idle = [option for option, value in given.items() if value]
    if idle:
        raise ConfigError(f"{', '.join(idle)} would change nothing {where}", fix=f"leave out {' and '.join(idle)}")
