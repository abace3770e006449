"""Which weights a network wants and does not get, in words: the one listing of everything that loads weights."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

_MOST_GROUPS = 8
_BLOCK = re.compile(r"^(?P<block>.*?\.\d+(?:\.\d+)*)\.")


@runtime_checkable
class Tensor(Protocol):
    """An array of numpy's or a tensor of torch's, as far as this page looks at it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its axes."""
        ...

    @property
    def dtype(self) -> object:
        """Type of its values."""
        ...


@dataclass(frozen=True, slots=True)
class Misfit:
    """What keeps weights from fitting a network, name by name. False where nothing does.

    Attributes:
        missing: wanted, and not there.
        unexpected: there, and not wanted.
        shapes: there with another shape, and what both shapes are.
        types: there with another type, and what both types are.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shapes: tuple[tuple[str, str], ...] = ()
    types: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes or self.types)

    def describe(self) -> str:
        """A line for each kind of fault: how many names, grouped by block."""
        lines = [
            f"{len(names)} {what}: {group_names(names)}"
            for what, names in (("missing", self.missing), ("unexpected", self.unexpected))
            if names
        ]
        for what, faults in (("of another shape", self.shapes), ("of another type", self.types)):
            if faults:
                first, words = faults[0]
                lines.append(f"{len(faults)} {what}: {group_names(name for name, _ in faults)}; {first} is {words}")
        return "\n       ".join(lines)


def misfit(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> Misfit:
    """Compares names, shapes and types of the weights that a network wants with those that there are."""
    both = sorted(wanted.keys() & got.keys())
    return Misfit(
        missing=tuple(sorted(wanted.keys() - got.keys())),
        unexpected=tuple(sorted(got.keys() - wanted.keys())),
        shapes=tuple(
            (name, f"{tuple(got[name].shape)}, not {tuple(wanted[name].shape)}")
            for name in both
            if got[name].shape != wanted[name].shape
        ),
        types=tuple(
            (name, f"{_type(got[name])}, not {_type(wanted[name])}")
            for name in both
            if got[name].dtype != wanted[name].dtype
        ),
    )


def group_names(names: Iterable[str]) -> str:
    """Names of weights by the block they belong to, counted: `backbone.layer3.4.* (6), heads.weight`.

    Where there are many blocks, by what holds these.
    """
    names = sorted(names, key=_in_order)
    for level in (None, 2, 1):
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(_group(name, level), []).append(name)
        if len(groups) <= _MOST_GROUPS:
            break
    shown = [members[0] if len(members) == 1 else f"{group} ({len(members)})" for group, members in groups.items()]
    more = len(shown) - _MOST_GROUPS
    return ", ".join([*shown[:_MOST_GROUPS], *([f"and {more} more groups"] if more > 0 else [])])


def _group(name: str, level: int | None) -> str:
    """The block of a name, as a pattern: up to its first run of numbers; or its first `level` parts."""
    parts = name.split(".")
    if level is not None:
        return ".".join([*parts[:level], "*"]) if len(parts) > level else name
    found = _BLOCK.match(name)
    if found:
        return f"{found['block']}.*"
    return ".".join([*parts[:-1], "*"]) if len(parts) > 2 else name


def _in_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
