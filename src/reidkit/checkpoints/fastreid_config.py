"""fast-reid's `config.yaml`, as far as it says what a network is. Reading it never runs code."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reidkit.architecture import Pooling
from reidkit.checkpoints.reading import some
from reidkit.errors import ConfigError, unknown_name

_BASE = "_BASE_"
_DEEPEST = 16
_LARGEST = 1 << 20

PLAIN_BACKBONE = "build_resnet_backbone"
DISTILLED_BACKBONE = "build_resnet_backbone_distill"
OSNET_BACKBONE = "build_osnet_backbone"
_BACKBONES = (PLAIN_BACKBONE, DISTILLED_BACKBONE, OSNET_BACKBONE)

_META_ARCHITECTURES = ("Baseline", "MGN", "Distiller", "DistillerOverhaul")
_HEADS = ("EmbeddingHead", "BNneckHead", "ReductionHead", "LinearHead", "ClasHead")

NORMALIZATIONS = ("BN", "syncBN", "GhostBN", "FrozenBN")
"""All of them are a batch normalisation with stored statistics when a network is evaluated."""

POOLINGS: Mapping[str, Pooling] = {
    "avgpool": "average",
    "fastavgpool": "average",
    "GlobalAvgPool": "average",
    "FastGlobalAvgPool": "average",
    "FastGlobalAvgPool2d": "average",
    "maxpool": "max",
    "GlobalMaxPool": "max",
    "gempool": "gem",
    "gempoolP": "gem",
    "GeneralizedMeanPooling": "gem",
    "GeneralizedMeanPoolingP": "gem",
    "avgmaxpool": "average+max",
    "AdaptiveAvgMaxPool": "average+max",
    "AdaptiveAvgMaxPool2d": "average+max",
}
"""Poolings by their names of all times. `gempool` was learned until September 2020 and is not since."""

_LEARNED = ("gempoolP", "GeneralizedMeanPoolingP")
_UNSUPPORTED_POOLINGS = (
    "clipavgpool",
    "ClipGlobalAvgPool",
    "ClipGlobalAvgPool2d",
    "identity",
    "Identity",
    "flatten",
    "Flatten",
)


@dataclass(frozen=True, slots=True)
class FastReidConfig:
    """What a config says of a network; None where it does not say.

    Attributes:
        path: of the file.
        meta: `MODEL.META_ARCHITECTURE`.
        backbone: `MODEL.BACKBONE.NAME`.
        depth: `MODEL.BACKBONE.DEPTH`, such as "50x" or "x1_0".
        last_stride: of stage 4.
        ibn: `WITH_IBN`.
        se: `WITH_SE`.
        non_local: `WITH_NL`.
        embedding_dim: `HEADS.EMBEDDING_DIM`.
        neck: `HEADS.WITH_BNNECK`.
        pooling: `HEADS.POOL_LAYER`, a name of `POOLINGS`.
        size: height and width in a test.
        mean: `PIXEL_MEAN`, for pixels of 0 to 255.
        std: `PIXEL_STD`, likewise.
    """

    path: Path
    meta: str | None = None
    backbone: str | None = None
    depth: str | None = None
    last_stride: int | None = None
    ibn: bool | None = None
    se: bool | None = None
    non_local: bool | None = None
    embedding_dim: int | None = None
    neck: bool | None = None
    pooling: str | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    @property
    def distilled(self) -> bool | None:
        """Whether its ResNet is the one with pre-activation; None where it does not name a backbone."""
        return None if self.backbone is None else self.backbone == DISTILLED_BACKBONE

    @property
    def learned(self) -> bool:
        """Whether GeM's exponent is surely a weight."""
        return self.pooling in _LEARNED


def read_config(path: Path | str) -> FastReidConfig:
    """Reads a config of fast-reid, and those that it builds on (`_BASE_`).

    Raises:
        ConfigError: no such file, no YAML, a tag that would make Python objects, or a network that reidkit cannot say.
    """
    path = Path(path)
    values = _load(path, ())
    if values.get("MODEL") is None:
        got = some([str(key) for key in values], 8) or "nothing"
        raise ConfigError(f"{path} is no config of fast-reid: it says nothing of a MODEL", got=got, expected="MODEL")
    config = FastReidConfig(
        path=path,
        meta=_get(values, path, "MODEL.META_ARCHITECTURE", str),
        backbone=_get(values, path, "MODEL.BACKBONE.NAME", str),
        depth=_depth(values, path),
        last_stride=_get(values, path, "MODEL.BACKBONE.LAST_STRIDE", int),
        ibn=_get(values, path, "MODEL.BACKBONE.WITH_IBN", bool),
        se=_get(values, path, "MODEL.BACKBONE.WITH_SE", bool),
        non_local=_get(values, path, "MODEL.BACKBONE.WITH_NL", bool),
        embedding_dim=_get(values, path, "MODEL.HEADS.EMBEDDING_DIM", int),
        neck=_get(values, path, "MODEL.HEADS.WITH_BNNECK", bool),
        pooling=_get(values, path, "MODEL.HEADS.POOL_LAYER", str),
        size=_numbers(values, path, "INPUT.SIZE_TEST", int, 2),
        mean=_numbers(values, path, "MODEL.PIXEL_MEAN", float, 3),
        std=_numbers(values, path, "MODEL.PIXEL_STD", float, 3),
    )
    _check(config, values)
    return config


def _check(config: FastReidConfig, values: Mapping[str, Any]) -> None:
    """Refuses by name what reidkit has no network for."""
    named = (
        ("MODEL.META_ARCHITECTURE", config.meta, _META_ARCHITECTURES),
        ("MODEL.BACKBONE.NAME", config.backbone, _BACKBONES),
        ("MODEL.BACKBONE.NORM", _get(values, config.path, "MODEL.BACKBONE.NORM", str), NORMALIZATIONS),
        ("MODEL.HEADS.NORM", _get(values, config.path, "MODEL.HEADS.NORM", str), NORMALIZATIONS),
        ("MODEL.HEADS.NAME", _get(values, config.path, "MODEL.HEADS.NAME", str), _HEADS),
    )
    for key, got, known in named:
        if got is not None and got not in known:
            raise ConfigError(
                f"{config.path}: reidkit has nothing for this {key}", got=got, expected=f"one of {', '.join(known)}"
            )
    if _get(values, config.path, "INPUT.CROP.ENABLED", bool):
        raise ConfigError(
            f"{config.path}: reidkit resizes to the size of the network, and crops nothing out of its middle",
            got="INPUT.CROP.ENABLED true",
            expected="false: fast-reid otherwise cuts INPUT.CROP.SIZE out of the resized picture, in a test too",
        )
    if config.pooling in _UNSUPPORTED_POOLINGS:
        raise ConfigError(
            f"{config.path}: reidkit has nothing for this MODEL.HEADS.POOL_LAYER",
            got=config.pooling,
            expected=f"one of {', '.join(POOLINGS)}",
        )
    if config.pooling is not None and config.pooling not in POOLINGS:
        raise unknown_name(f"value of MODEL.HEADS.POOL_LAYER in {config.path}:", config.pooling, POOLINGS)


class _Loader(yaml.SafeLoader):
    """YAML's plain values, and tuples, which fast-reid writes into the configs that it dumps."""


def _tuple(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def _load(path: Path, below: Sequence[Path]) -> dict[str, Any]:
    if path.resolve() in below or len(below) > _DEEPEST:
        raise ConfigError(f"{path} builds on itself through {_BASE}", got=" > ".join(p.name for p in (*below, path)))
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{path} is too large for a config", expected=f"at most {_LARGEST} bytes")
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a safe loader)
    except FileNotFoundError:
        named = f", which {below[-1]} builds on" if below else ""
        raise ConfigError(f"No such file: {path}{named}", fix="check the path") from None
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"{path} holds a tag that stands for more than plain values",
            got=f"{error.problem}, {str(error.problem_mark).strip()}",
            expected="plain YAML: no config needs to make Python objects, and none may",
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as YAML", got=error) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no config of fast-reid", got=type(values).__name__, expected="a table with MODEL")
    base = values.pop(_BASE, None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: {_BASE} is no path", got=repr(base))
    return _merge(_load(path.parent / Path(base).expanduser(), (*below, path.resolve())), values)


def _merge(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in values.items():
        old = result.get(key)
        result[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _get(values: Mapping[str, Any], path: Path, key: str, kind: type) -> Any:
    value = _find(values, path, key)
    if value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{path}: {key} has the wrong type", got=repr(value), expected=kind.__name__)
    return value


def _find(values: Mapping[str, Any], path: Path, key: str) -> Any:
    place: Any = values
    for part in key.split("."):
        if not isinstance(place, Mapping):
            raise ConfigError(f"{path}: {key} cannot be there", got=repr(place), expected="a table")
        place = place.get(part)
        if place is None:
            return None
    return place


def _depth(values: Mapping[str, Any], path: Path) -> str | None:
    """Early configs say 50, later ones 50x."""
    depth = _find(values, path, "MODEL.BACKBONE.DEPTH")
    if depth is None or (isinstance(depth, str | int) and not isinstance(depth, bool)):
        return None if depth is None else str(depth)
    raise ConfigError(f"{path}: MODEL.BACKBONE.DEPTH has the wrong type", got=repr(depth), expected="such as 50x")


def _numbers(values: Mapping[str, Any], path: Path, key: str, kind: type, count: int) -> Any:
    """A list of numbers, or one in the words of Python, which fast-reid reads too."""
    value = _find(values, path, key)
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            value = None
    numbers = value if isinstance(value, list | tuple) else ()
    allowed = (int, float) if kind is float else (int,)
    if len(numbers) != count or not all(isinstance(n, allowed) and not isinstance(n, bool) for n in numbers):
        got = repr(_find(values, path, key))
        raise ConfigError(f"{path}: {key} cannot be this", got=got, expected=f"a list of {count} numbers")
    return tuple(kind(number) for number in numbers)
