"""From TOML, JSON and `--set a.b=c` to frozen dataclasses, checked when built; and back to plain values.

A dataclass beside its owner is the schema: field names are the keys, annotations the types, `__post_init__` the ranges.
An unknown key is an error that suggests the nearest name; a value is never converted in silence (but 1 is a float).
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from reidkit.errors import ConfigError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def from_dict(kind: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Builds the frozen dataclass `kind` from plain values, nested dataclasses included.

    Args:
        kind: a dataclass type.
        values: plain values by field name, as TOML and JSON give them.
        where: dotted name of the place that `values` came from, for the messages.

    Raises:
        ConfigError: an unknown or missing key, a value of another type, or one that the dataclass refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # pyright: ignore[reportArgumentType]
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            raise unknown_name("key", _dotted(where, key), fields, short=key)
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(
            f"Missing in {where or 'the configuration'}: {', '.join(missing)}", fix="add the missing keys"
        )
    converted = {key: _convert(hints[key], value, _dotted(where, key)) for key, value in values.items()}
    try:
        return kind(**converted)
    except ConfigError as error:
        raise _placed(error, where) from None


def to_dict(value: Any) -> Any:
    """Plain dicts, lists, strings and numbers of a dataclass, ready for JSON or TOML; the inverse of `from_dict`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def load_toml(
    kind: type[T],
    path: Path | str,
    *,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    instead: Mapping[str, Any] = MappingProxyType({}),
    overrides: Sequence[str] = (),
) -> T:
    """Reads a TOML file into the dataclass `kind`.

    Args:
        kind: a dataclass type.
        path: of the file.
        defaults: whole tables for those that the file does not have.
        instead: whole tables that take the place of the file's.
        overrides: assignments such as `optim.lr=1e-3`, made last.

    Raises:
        ConfigError: no such file, no TOML, or anything that `from_dict` refuses.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"No such file: {path}", fix="check the path") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as TOML", got=error) from error
    return from_dict(kind, with_overrides({**defaults, **values, **instead}, overrides))


def with_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of nested `values` with `a.b=c` assignments made; `c` is read as a TOML value, else as a string.

    Raises:
        ConfigError: an assignment without `=`, or through something that is not a table.
    """
    result = _deep_copy(values)
    for assignment in overrides:
        name, separator, text = assignment.partition("=")
        *tables, key = name.strip().split(".")
        if not separator or not key:
            raise ConfigError(f"Cannot read the override {assignment!r}", expected="NAME.NAME=VALUE")
        place = result
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ConfigError(f"Cannot set {name}", got=f"{table} is a value, not a table", expected="a table")
        place[key] = _toml_value(text.strip())
    return result


def _placed(error: ConfigError, where: str) -> ConfigError:
    """An error of a dataclass that names its keys as from the top, where its table stands deeper than that."""
    parts = where.split(".")
    for start in range(1, len(parts)):
        if error.problem.startswith(".".join(parts[start:]) + "."):
            front = ".".join(parts[:start])
            return ConfigError(f"{front}.{error.problem}", got=error.got, expected=error.expected, fix=error.fix)
    return error


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _deep_copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _deep_copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if value not in args or isinstance(value, bool) != isinstance(args[0], bool):
            raise unknown_name(f"value of {where}:", str(value), map(str, args))
        return value
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _wrong_type(where, value, "a table")
        return from_dict(hint, value, where=where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong_type(where, value, "a table")
        return {key: _convert(args[1], item, _dotted(where, key)) for key, item in value.items()}
    if hint is Any:
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with suppress(OverflowError):  # TOML and JSON integers have no limit
            return float(value)
    kind: type = hint
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong_type(where, value, kind.__name__)
    return value


def _convert_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in args:
        return None
    rest = [arg for arg in args if arg is not types.NoneType]
    if len(rest) > 1 and all(dataclasses.is_dataclass(arg) for arg in rest):
        return _convert_tagged(rest, value, where)
    for arg in rest[:-1]:
        with suppress(ConfigError):
            return _convert(arg, value, where)
    return _convert(rest[-1], value, where)


def _convert_tagged(kinds: list[type], value: Any, where: str) -> Any:
    """One of several dataclasses: the first field of each is a `Literal` with one value, which tells them apart."""
    if not isinstance(value, Mapping):
        raise _wrong_type(where, value, "a table")
    tag = dataclasses.fields(kinds[0])[0].name
    by_tag = {get_args(typing.get_type_hints(kind)[tag])[0]: kind for kind in kinds}
    if tag not in value:
        raise ConfigError(
            f"Missing in {where}: {tag}", expected=f"one of {', '.join(by_tag)}", fix="add the missing key"
        )
    if not isinstance(value[tag], str) or value[tag] not in by_tag:
        raise unknown_name(f"value of {_dotted(where, tag)}:", str(value[tag]), by_tag)
    return from_dict(by_tag[value[tag]], value, where=where)


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(where, value, "a list")
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise _wrong_type(where, value, f"a list of {len(args)}")
    return tuple(_convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))


def _wrong_type(where: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{where} has the wrong type", got=f"{value!r} ({type(value).__name__})", expected=expected)
